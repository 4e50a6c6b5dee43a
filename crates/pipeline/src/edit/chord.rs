use burn::tensor::{FloatDType, Tensor, TensorData};
use swiftbrush_scheduler::NoiseSchedule;

use crate::edit::{Options, Refinement};

/// A one-step network: its output in f32 for noisy latents, a timestep for each sample, and embeddings.
pub type Network<'a> = &'a dyn Fn(Tensor<4>, Tensor<1>, Tensor<3>) -> Tensor<4>;

/// The formulas of ChordEdit over any denoiser that predicts noise, velocity or clean latents.
///
/// ```text
/// D(t, c, e) = the clean latents that the network expects of z = α x + σ e at timestep k(t) under prompt c
/// R(t)       = mean over the noises e of D(t, target, e) − D(t, source, e)
/// û          = (t R(t−δ) + δ R(t)) / (t+δ)
/// x'         = x + λ û
/// ```
///
/// Both prompts and both times share the same noise, so that whatever the network draws from noise alone cancels.
#[derive(Clone, Copy)]
pub struct Chord<'a> {
    /// The schedule, which says what the network predicts.
    pub schedule: &'a NoiseSchedule,
    /// The network.
    pub network: Network<'a>,
}

impl std::fmt::Debug for Chord<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chord").finish_non_exhaustive()
    }
}

impl Chord<'_> {
    /// The transport field û, in one call of the network.
    ///
    /// # Shapes
    ///
    /// - latents, each noise and the result: `[batch, channels, height, width]`, scaled, f32
    /// - source, target: `[batch, length, width]`
    /// - noises: one or more; [`Options::noises`] is ignored
    ///
    /// # Panics
    ///
    /// If the shapes differ.
    #[track_caller]
    pub fn field(
        &self,
        latents: &Tensor<4>,
        source: &Tensor<3>,
        target: &Tensor<3>,
        noises: &[Tensor<4>],
        options: &Options,
    ) -> Tensor<4> {
        let [batch, ..] = latents.dims();
        let times = options.weights();
        let mut inputs = Vec::new();
        for &(time, _) in &times {
            for noise in noises {
                let noisy = self.noisy(latents, noise, self.timestep(time));
                inputs.extend([noisy.clone(), noisy]);
            }
        }
        let both = Tensor::cat(vec![source.clone(), target.clone()], 0);
        let context = both.repeat_dim(0, times.len() * noises.len());
        let samples = 2 * noises.len() * batch;
        let timesteps = times
            .iter()
            .flat_map(|&(time, _)| vec![self.timestep(time) as f32; samples]);
        let output = self.call(inputs, timesteps.collect(), context);

        let zeros = latents.zeros_like().cast(FloatDType::F32);
        let part = |index: usize| output.clone().narrow(0, index * batch, batch);
        let mut field = zeros.clone();
        for (index, &(time, weight)) in times.iter().enumerate() {
            let pairs = (0..noises.len()).map(|noise| 2 * (index * noises.len() + noise));
            let sum = pairs.fold(zeros.clone(), |sum, at| sum + (part(at + 1) - part(at)));
            // Clean latents are affine in the output, and the noisy latents cancel: they follow from the difference of
            // the outputs without dividing anything large.
            let mean = sum / noises.len() as f64;
            let timestep = self.timestep(time);
            let difference = self.schedule.clean_latents(mean, zeros.clone(), timestep);
            field = field + difference * weight;
        }
        field
    }

    /// The refinement of moved latents, blended with them.
    ///
    /// # Shapes
    ///
    /// - latents, noise and the result: `[batch, channels, height, width]`, scaled, f32
    /// - target: `[batch, length, width]`
    ///
    /// # Panics
    ///
    /// If the shapes differ.
    #[track_caller]
    pub fn refine(
        &self,
        latents: Tensor<4>,
        target: &Tensor<3>,
        noise: &Tensor<4>,
        refinement: Refinement,
    ) -> Tensor<4> {
        let [batch, ..] = latents.dims();
        let timestep = self.timestep(refinement.time);
        let noisy = self.noisy(&latents, noise, timestep);
        let timesteps = vec![timestep as f32; batch];
        let output = self.call(vec![noisy.clone()], timesteps, target.clone());
        let clean = self.schedule.clean_latents(output, noisy, timestep);
        clean * refinement.blend + latents * (1.0 - refinement.blend)
    }

    /// The timestep of a time, rounded as Python rounds.
    fn timestep(&self, time: f64) -> usize {
        (time * self.schedule.last() as f64).round_ties_even() as usize
    }

    fn noisy(&self, latents: &Tensor<4>, noise: &Tensor<4>, timestep: usize) -> Tensor<4> {
        let [alpha, sigma] = [self.schedule.alpha(timestep), self.schedule.sigma(timestep)];
        latents.clone().cast(FloatDType::F32) * alpha + noise.clone().cast(FloatDType::F32) * sigma
    }

    fn call(&self, inputs: Vec<Tensor<4>>, timesteps: Vec<f32>, context: Tensor<3>) -> Tensor<4> {
        let inputs = Tensor::cat(inputs, 0);
        let timesteps = TensorData::new(timesteps, [inputs.dims()[0]]);
        let timesteps = Tensor::from_data(timesteps, &inputs.device());
        (self.network)(inputs, timesteps, context).cast(FloatDType::F32)
    }
}
