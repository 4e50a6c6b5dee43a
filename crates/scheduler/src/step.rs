use burn::tensor::{FloatDType, Tensor};

/// One step of a sampler: the input of the network, and the next latents computed from its output.
///
/// The network gets `x · input_scale` at `timestep`. Its output is converted to a prediction (the output itself, the noise
/// or the clean latents), and the next latents are `x · keep`, plus the predictions of this and previous steps, each with
/// its own factor, plus new noise.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Step {
    /// The timestep passed to the network; Euler's linspace has fractional ones.
    pub timestep: f64,
    /// Factor of the latents in the input of the network.
    pub input_scale: f64,
    /// Factors of the latents and of the network's output in the prediction.
    pub prediction: [f64; 2],
    /// Factors of the latents and of the network's output in the predicted clean latents.
    pub clean: [f64; 2],
    /// Factor of the latents in the result.
    pub keep: f64,
    /// Factors of the predictions of this step, of the previous step, and so on.
    pub predicted: Vec<f64>,
    /// Bound of the predicted clean latents and their factor in the result, if they are clipped.
    pub clipped: Option<[f64; 2]>,
    /// Factor of new unit noise in the result; 0 in deterministic samplers.
    pub fresh: f64,
    /// Factors of clean latents and of unit noise in the latents at the start of this step, for image to image.
    pub entry: [f64; 2],
}

/// The latest predictions of a run, which multi-step samplers combine.
#[derive(Clone, Debug, Default)]
pub struct History(Vec<Tensor<4>>);

/// The maximum number of predictions that a sampler combines.
const MEMORY: usize = 5;

impl Step {
    /// Creates a step whose prediction is the network's output and that adds nothing.
    pub(crate) fn at(timestep: f64, clean: [f64; 2], entry: [f64; 2]) -> Self {
        Self {
            timestep,
            input_scale: 1.0,
            prediction: [0.0, 1.0],
            clean,
            keep: 1.0,
            predicted: Vec::new(),
            clipped: None,
            fresh: 0.0,
            entry,
        }
    }

    /// The input of the network.
    ///
    /// # Shapes
    ///
    /// - latents and the result: `[batch, channels, height, width]`
    pub fn input(&self, latents: Tensor<4>) -> Tensor<4> {
        latents * self.input_scale
    }

    /// The clean latents predicted by the network, in f32.
    ///
    /// # Shapes
    ///
    /// - latents, output and the result: `[batch, channels, height, width]`
    pub fn clean(&self, latents: Tensor<4>, output: Tensor<4>) -> Tensor<4> {
        combine(self.clean, latents, output)
    }

    /// Computes the next latents in f32; `history` is that of this run. If [`fresh`](Self::fresh) is not 0, the caller
    /// must add unit noise times that factor.
    ///
    /// # Shapes
    ///
    /// - latents, output and the result: `[batch, channels, height, width]`
    ///
    /// # Panics
    ///
    /// If the shapes differ, or the previous steps were not taken with the same history.
    #[track_caller]
    pub fn advance(
        &self,
        latents: Tensor<4>,
        output: Tensor<4>,
        history: &mut History,
    ) -> Tensor<4> {
        assert_eq!(
            latents.dims(),
            output.dims(),
            "latents and output differ in shape"
        );
        let clipped = self.clipped.map(|[bound, factor]| {
            let clean = self.clean(latents.clone(), output.clone());
            clean.clamp(-bound, bound) * factor
        });
        history.push(combine(self.prediction, latents.clone(), output));
        assert!(
            history.0.len() >= self.predicted.len(),
            "this step combines {} predictions, the history holds {}",
            self.predicted.len(),
            history.0.len()
        );
        let dtype = latents.dtype();
        let start = latents.cast(FloatDType::F32) * self.keep;
        let terms = history.0.iter().zip(&self.predicted);
        let next = terms.fold(start, |sum, (prediction, &factor)| {
            sum + prediction.clone() * factor
        });
        match clipped {
            Some(clipped) => (next + clipped).cast(dtype),
            None => next.cast(dtype),
        }
    }
}

impl History {
    fn push(&mut self, prediction: Tensor<4>) {
        self.0.insert(0, prediction);
        self.0.truncate(MEMORY);
    }
}

/// `a·latents + b·output` in f32.
fn combine([of_latents, of_output]: [f64; 2], latents: Tensor<4>, output: Tensor<4>) -> Tensor<4> {
    let output = output.cast(FloatDType::F32) * of_output;
    if of_latents == 0.0 {
        return output;
    }
    output + latents.cast(FloatDType::F32) * of_latents
}
