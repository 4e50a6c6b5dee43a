use std::ops::ControlFlow;

use crate::{Error, Event};

/// A listener to the events of a run: steps, previews, watcher reports and snapshots. [`Run::train`](crate::Run::train)
/// takes one; [`Observers`] combines several.
///
/// A closure is an observer, too: `run.train(|event: &Event| …)`.
///
/// ```
/// use std::ops::ControlFlow;
/// use swiftbrush_trainer::{Error, Event, Observer};
///
/// /// Stops a run when its fake teacher is good enough.
/// struct Until(f64);
///
/// impl Observer for Until {
///     fn observe(&mut self, event: &Event) -> Result<ControlFlow<()>, Error> {
///         Ok(match event {
///             Event::Step { report, .. } if report.losses.fake < self.0 => ControlFlow::Break(()),
///             _ => ControlFlow::Continue(()),
///         })
///     }
/// }
/// ```
pub trait Observer {
    /// Receives an event; `Break` stops the run after its current step, whose state is saved.
    ///
    /// # Errors
    ///
    /// If the observer fails; the run stops with this error and keeps its last snapshot.
    fn observe(&mut self, event: &Event) -> Result<ControlFlow<()>, Error>;
}

impl<F: FnMut(&Event) -> ControlFlow<()>> Observer for F {
    fn observe(&mut self, event: &Event) -> Result<ControlFlow<()>, Error> {
        Ok(self(event))
    }
}

/// Several observers, each of which receives every event, in order.
#[derive(Default)]
pub struct Observers<'a>(Vec<Box<dyn Observer + 'a>>);

impl<'a> Observers<'a> {
    /// Adds an observer.
    pub fn with(mut self, observer: impl Observer + 'a) -> Self {
        self.0.push(Box::new(observer));
        self
    }
}

impl std::fmt::Debug for Observers<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} observers", self.0.len())
    }
}

impl Observer for Observers<'_> {
    fn observe(&mut self, event: &Event) -> Result<ControlFlow<()>, Error> {
        let mut flow = ControlFlow::Continue(());
        for observer in &mut self.0 {
            if observer.observe(event)?.is_break() {
                flow = ControlFlow::Break(());
            }
        }
        Ok(flow)
    }
}
