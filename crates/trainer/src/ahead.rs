//! Prompts of the next step, read and encoded while a step is computed.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use burn::tensor::{Device, FloatDType, Tensor};
use swiftbrush_clip::{TextEncoder, Tokenizer};

use crate::{Error, PromptSource};

/// The text encoder of the denoisers with its tokenizer. Clones share the weights.
#[derive(Clone, Debug)]
pub(crate) struct PromptEncoder {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) network: TextEncoder,
    /// The element type that denoisers compute in.
    pub(crate) dtype: FloatDType,
    pub(crate) device: Device,
}

impl PromptEncoder {
    /// Encodes prompts in the element type that denoisers compute in.
    pub(crate) fn encode<S: AsRef<str>>(&self, prompts: &[S]) -> Tensor<3> {
        let tokens = self.tokenizer.encode_batch(prompts, &self.device);
        self.network.forward(tokens).cast(self.dtype)
    }
}

/// Prompts of a step.
#[derive(Debug)]
pub(crate) struct StepPrompts {
    pub(crate) prompts: Vec<String>,
    /// Contexts of micro-batches, `None` for those of other ranks. Missing ones are encoded where they are used.
    pub(crate) contexts: Vec<Option<Tensor<3>>>,
}

/// The micro-batches that a rank computes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    /// Prompts of a micro-batch.
    pub(crate) batch: usize,
    pub(crate) rank: usize,
    pub(crate) ranks: usize,
}

impl StepPrompts {
    fn encode(prompts: Vec<String>, encoder: &PromptEncoder, share: Share) -> Self {
        let micro_batches = prompts.chunks(share.batch).enumerate();
        // In the groups of a step without this thread: the size of a batch may decide the last bits.
        let contexts = micro_batches.map(|(index, prompts)| {
            let is_own = index % share.ranks == share.rank;
            is_own.then(|| encoder.encode(prompts))
        });
        Self {
            contexts: contexts.collect(),
            prompts,
        }
    }
}

/// A thread that reads and encodes the prompts of one step while the caller computes the step before it.
///
/// It depends only on positions in the order of the prompts, so it adds nothing to a run's state.
#[derive(Debug)]
pub(crate) struct Ahead {
    /// Taken to end the thread.
    requests: Option<Sender<(u64, usize)>>,
    answers: Receiver<Result<StepPrompts, Error>>,
    thread: Option<JoinHandle<()>>,
    /// First prompt and number of prompts of the pending request.
    pending: Option<(u64, usize)>,
}

impl Ahead {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// If the system has no more threads.
    pub(crate) fn start(
        mut source: Box<dyn PromptSource>,
        encoder: PromptEncoder,
        share: Share,
    ) -> Result<Self, Error> {
        let (requests, queue) = channel::<(u64, usize)>();
        let (replies, answers) = channel();
        let thread = std::thread::Builder::new().name("prompts".to_owned());
        let thread = thread.spawn(move || {
            for (first, count) in queue {
                let prompts = source.get(first, count);
                let answer = prompts.map(|it| StepPrompts::encode(it, &encoder, share));
                if replies.send(answer).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            requests: Some(requests),
            answers,
            thread: Some(thread.map_err(Error::Thread)?),
            pending: None,
        })
    }

    /// The `count` prompts from number `first` on; the thread continues with those after them if `continues`.
    ///
    /// # Errors
    ///
    /// If the prompts cannot be read.
    ///
    /// # Panics
    ///
    /// If the source of prompts has panicked.
    pub(crate) fn take(
        &mut self,
        first: u64,
        count: usize,
        continues: bool,
    ) -> Result<StepPrompts, Error> {
        if self
            .pending
            .is_some_and(|pending| pending != (first, count))
        {
            // A step was not taken; its prompts are read again when it is.
            drop(self.receive());
        }
        if self.pending.is_none() {
            self.request(first, count);
        }
        let prompts = self.receive()?;
        if continues {
            self.request(first + count as u64, count);
        }
        Ok(prompts)
    }

    fn request(&mut self, first: u64, count: usize) {
        if let Some(requests) = &self.requests {
            // A thread that has ended is noticed when its answer is missing.
            let _ = requests.send((first, count));
            self.pending = Some((first, count));
        }
    }

    fn receive(&mut self) -> Result<StepPrompts, Error> {
        self.pending = None;
        self.answers.recv().unwrap_or_else(|_| self.panicked())
    }

    /// Resumes the panic of the thread, which otherwise ends only when told to.
    fn panicked(&mut self) -> ! {
        let thread = self.thread.take().map(JoinHandle::join);
        match thread {
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            _ => panic!("the thread that reads prompts has ended"),
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic has been reported by the thread itself.
            let _ = thread.join();
        }
    }
}
