use std::ops::ControlFlow;

use burn::tensor::Tensor;

use crate::Error;
use crate::checks::Checks;

/// The state of a generation, passed to the progress callback before each stage and after each network call. Breaking
/// cancels the generation at that point.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Progress {
    /// Index of the current batch, from 0.
    pub batch: usize,
    /// Number of batches; 1 except in [`generate_in_batches`](crate::TextToImage::generate_in_batches).
    pub n_batches: usize,
    /// The stage within the batch.
    pub stage: Stage,
}

/// A stage of generation.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[expect(
    clippy::large_enum_variant,
    reason = "one value per network call; a box would complicate every match"
)]
pub enum Stage {
    /// Prompts and start images are about to be encoded.
    Encoding,
    /// The denoiser: before the first call, and after each.
    Call {
        /// Number of calls made.
        done: usize,
        /// Total number of calls; the second call of split guidance is not counted.
        n_calls: usize,
        /// The clean latents predicted by the last call, `[batch, channels, height, width]`, which can be decoded as a
        /// preview.
        expected: Option<Tensor<4>>,
    },
    /// Latents are about to be decoded, or the next tile of them.
    Decoding {
        /// Number of tiles decoded.
        done: usize,
        /// Total number of tiles; 1 without tiling.
        n_tiles: usize,
    },
}

/// A progress callback; breaking cancels.
pub type Watch<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;

/// The progress callback of one batch.
pub(crate) struct Watcher<'a> {
    watch: Watch<'a>,
    pub(crate) checks: Checks,
}

impl<'a> Watcher<'a> {
    pub(crate) fn new(watch: Watch<'a>) -> Self {
        Self {
            watch,
            checks: Checks::Now,
        }
    }

    /// A callback of a generation that must not wait for the device.
    pub(crate) fn without_waiting(watch: Watch<'a>) -> Self {
        Self {
            watch,
            checks: Checks::Later(Vec::new()),
        }
    }

    /// Tells the state of the denoiser.
    pub(crate) fn call(
        &mut self,
        done: usize,
        n_calls: usize,
        expected: Option<Tensor<4>>,
    ) -> Result<(), Error> {
        self.tell(Stage::Call {
            done,
            n_calls,
            expected,
        })
    }

    pub(crate) fn flow(&mut self, stage: Stage) -> ControlFlow<()> {
        (self.watch)(Progress {
            batch: 0,
            n_batches: 1,
            stage,
        })
    }

    pub(crate) fn tell(&mut self, stage: Stage) -> Result<(), Error> {
        match self.flow(stage) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled),
        }
    }
}

impl Progress {
    pub(crate) fn in_batch(self, batch: usize, n_batches: usize) -> Self {
        Self {
            batch,
            n_batches,
            ..self
        }
    }
}
