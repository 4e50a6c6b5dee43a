use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use swiftbrush_scheduler::{PredictionType, SamplerKind, SchedulerConfig, TimestepSpacing};

use crate::{Error, Mask, NegativeMethod, Picture};

/// The method of generation, from noise to latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// SwiftBrush's one-step rule, one network call; see [`one_step`](crate::one_step).
    OneStep,
    /// A sampler with this many steps. Euler with one step and trailing spacing is SD-Turbo's own rule.
    Sampler(SamplerKind, usize),
}

impl Method {
    /// The default for a scheduler: the one-step rule for marked students ([`SchedulerConfig::is_one_step`]); one step for
    /// SD-Turbo, whose file has Euler with trailing timesteps for a network that predicts noise; else
    /// [`SamplerKind::default_steps`] of the file's sampler, or of the closest one.
    ///
    /// # Errors
    ///
    /// If the file names a class without a close enough sampler.
    pub fn of_scheduler(scheduler: &SchedulerConfig) -> Result<Self, Error> {
        if scheduler.is_one_step {
            return Ok(Self::OneStep);
        }
        let kind = scheduler.sampler()?;
        let is_turbo = scheduler.class_name == SamplerKind::Euler.class()
            && scheduler.timestep_spacing == TimestepSpacing::Trailing
            && scheduler.prediction_type == PredictionType::Epsilon;
        let steps = if is_turbo { 1 } else { kind.default_steps() };
        Ok(Self::Sampler(kind, steps))
    }

    /// The same method with enough steps that image to image with this strength takes at least one of them: two for
    /// SD-Turbo at a strength of 0.8. Has no effect for strengths of 0 or less.
    #[must_use]
    pub fn with_a_step_at(self, strength: f64) -> Self {
        match self {
            Self::Sampler(kind, steps) if strength > 0.0 && n_taken(steps, strength) == 0 => {
                let mut steps = (1.0 / strength).ceil() as usize;
                // The quotient may be rounded down.
                steps += usize::from(n_taken(steps, strength) == 0);
                Self::Sampler(kind, steps)
            }
            method => method,
        }
    }

    /// Number of network calls for an image from noise, not counting guidance.
    pub fn n_calls(self) -> usize {
        match self {
            Self::OneStep => 1,
            Self::Sampler(SamplerKind::Pndm, steps) if steps > 1 => steps + 1,
            Self::Sampler(_, steps) => steps,
        }
    }

    /// True if an image of this strength takes a single network call; the strength of an image from noise is 1.
    pub fn is_one_call(self, strength: f64) -> bool {
        match self {
            Self::OneStep => true,
            Self::Sampler(_, steps) => n_taken(steps, strength) == 1,
        }
    }
}

/// Number of steps that a sampler of `steps` takes from an image at this strength, counted as in diffusers.
pub(crate) fn n_taken(steps: usize, strength: f64) -> usize {
    ((steps as f64 * strength) as usize).min(steps)
}

/// Images to start from instead of noise.
#[derive(Clone, Debug)]
pub struct Start {
    /// `[batch, 3, height, width]`, RGB in −1…1, one image per prompt; sides are multiples of the number of pixels per
    /// latent (8 for Stable Diffusion).
    pub images: Tensor<4>,
    /// Share of the images that is replaced with noise, 0 to 1. Samplers skip the remaining share of their steps; the
    /// one-step rule is applied at that share of the timesteps, any of them.
    pub strength: f64,
    /// The part of the images that may change; `None` for all. Latents are blended after every step, outside the mask
    /// with those of the images at the same noise, and pixels at the end.
    pub mask: Option<Mask>,
}

impl Start {
    /// Starts from images, all of which may change.
    ///
    /// # Shapes
    ///
    /// - images: `[batch, 3, height, width]`, RGB in −1…1
    pub fn new(images: Tensor<4>, strength: f64) -> Self {
        Self {
            images,
            strength,
            mask: None,
        }
    }

    /// Starts from pictures of the same size.
    ///
    /// # Errors
    ///
    /// If there are none, or their sizes differ.
    pub fn from_pictures(
        pictures: &[Picture],
        strength: f64,
        device: &Device,
    ) -> Result<Self, Error> {
        Ok(Self::new(Picture::to_images(pictures, device)?, strength))
    }

    /// Sets the part of the images that may change.
    pub fn with_mask(mut self, mask: Mask) -> Self {
        self.mask = Some(mask);
        self
    }

    /// Replaces, outside the mask, images by the originals.
    pub(crate) fn paste(&self, images: Tensor<4>) -> Tensor<4> {
        match &self.mask {
            Some(mask) => mask.paste(images, &self.images),
            None => images,
        }
    }
}

/// The images to generate.
///
/// ```
/// use swiftbrush_pipeline::scheduler::SamplerKind;
/// use swiftbrush_pipeline::{Method, Request};
///
/// let request = Request::new(["a red circle", "a green star"])
///     .with_method(Method::Sampler(SamplerKind::DpmSolver, 20))
///     .with_guidance(7.5)
///     .with_negative_prompt("blurry")
///     .with_size(768, 512);
/// assert_eq!(request.size, Some([512, 768]));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Request {
    /// A prompt for each image.
    pub prompts: Vec<String>,
    /// The negative prompt, applied by guidance or by the negative method.
    pub negative_prompt: String,
    /// The method that applies the negative prompt without guidance; `None` for the default, see
    /// [`effective_negative_method`](Self::effective_negative_method).
    pub negative_method: Option<NegativeMethod>,
    /// The method of generation.
    pub method: Method,
    /// Spacing of the sampler's timesteps; `None` for that of the model's scheduler.
    pub spacing: Option<TimestepSpacing>,
    /// Scale of classifier-free guidance, like diffusers' `guidance_scale`: values up to 1 turn it off, which one-step
    /// students need.
    pub guidance: f64,
    /// Height and width in pixels; `None` for the size that the model was trained on, or that of the start images.
    pub size: Option<[usize; 2]>,
    /// Start images; `None` for pure noise.
    pub start: Option<Start>,
}

impl Request {
    /// Requests one image per prompt, in one step, without guidance.
    /// [`TextToImage::request`](crate::TextToImage::request) uses the model's own method instead.
    pub fn new<S: Into<String>>(prompts: impl IntoIterator<Item = S>) -> Self {
        Self {
            prompts: prompts.into_iter().map(Into::into).collect(),
            negative_prompt: String::new(),
            negative_method: None,
            method: Method::OneStep,
            spacing: None,
            guidance: 1.0,
            size: None,
            start: None,
        }
    }

    /// Replaces the prompts.
    pub fn with_prompts<S: Into<String>>(mut self, prompts: impl IntoIterator<Item = S>) -> Self {
        self.prompts = prompts.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the negative prompt.
    pub fn with_negative_prompt(mut self, prompt: impl Into<String>) -> Self {
        self.negative_prompt = prompt.into();
        self
    }

    /// Sets the method that applies the negative prompt without guidance.
    pub fn with_negative_method(mut self, method: NegativeMethod) -> Self {
        self.negative_method = Some(method);
        self
    }

    /// Sets the method of generation.
    pub fn with_method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    /// Sets the spacing of the sampler's timesteps.
    pub fn with_spacing(mut self, spacing: TimestepSpacing) -> Self {
        self.spacing = Some(spacing);
        self
    }

    /// Sets the scale of classifier-free guidance.
    pub fn with_guidance(mut self, guidance: f64) -> Self {
        self.guidance = guidance;
        self
    }

    /// Sets the size in pixels.
    pub fn with_size(mut self, width: usize, height: usize) -> Self {
        self.size = Some([height, width]);
        self
    }

    /// Sets the start images.
    pub fn with_start(mut self, start: Start) -> Self {
        self.start = Some(start);
        self
    }

    /// Returns whether classifier-free guidance is on, which is above a scale of 1, as in diffusers.
    pub fn is_guided(&self) -> bool {
        self.guidance > 1.0
    }

    /// The method that applies the negative prompt in cross-attention: the request's own, or [`NegativeMethod::NASA`]
    /// if there is a negative prompt, no guidance and a single network call. `None` leaves it to guidance, which
    /// one-step models do not use.
    pub fn effective_negative_method(&self) -> Option<NegativeMethod> {
        let is_default = !self.is_guided()
            && !self.negative_prompt.is_empty()
            && self.method.is_one_call(self.strength());
        let default = is_default.then_some(NegativeMethod::NASA);
        self.negative_method.or(default)
    }

    /// Generated images with the originals outside a mask.
    pub(crate) fn paste(&self, images: Tensor<4>) -> Tensor<4> {
        match &self.start {
            Some(start) => start.paste(images),
            None => images,
        }
    }

    /// The mask of the images to start from.
    pub(crate) fn mask(&self) -> Option<Mask> {
        self.start.as_ref().and_then(|start| start.mask.clone())
    }

    pub(crate) fn strength(&self) -> f64 {
        self.start.as_ref().map_or(1.0, |start| start.strength)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_call_without_guidance_applies_a_negative_prompt_by_nasa() {
        let turbo = Method::Sampler(SamplerKind::Euler, 1);
        let request = |method| {
            Request::new(["a"])
                .with_method(method)
                .with_negative_prompt("b")
        };
        for method in [Method::OneStep, turbo] {
            let request = request(method);
            let found = request.effective_negative_method();
            assert_eq!(found, Some(NegativeMethod::NASA), "{method:?}");
            let own = request.clone().with_negative_method(NegativeMethod::NAG);
            assert_eq!(own.effective_negative_method(), Some(NegativeMethod::NAG));
            let guided = request.clone().with_guidance(2.0);
            assert_eq!(guided.effective_negative_method(), None);
            let none = request.with_negative_prompt("");
            assert_eq!(none.effective_negative_method(), None);
        }
        let many = Method::Sampler(SamplerKind::Euler, 4);
        assert_eq!(request(many).effective_negative_method(), None);
        assert!(many.is_one_call(0.3) && !many.is_one_call(0.5));
    }

    #[test]
    fn a_method_takes_at_least_one_step_from_an_image() {
        let steps = |steps, strength| match Method::Sampler(SamplerKind::Euler, steps)
            .with_a_step_at(strength)
        {
            Method::Sampler(_, steps) => steps,
            Method::OneStep => 0,
        };
        assert_eq!(steps(1, 0.8), 2);
        assert_eq!(steps(1, 0.3), 4);
        assert_eq!(steps(25, 0.8), 25);
        for percent in 1..=100 {
            let strength = f64::from(percent) / 100.0;
            assert_eq!(n_taken(steps(1, strength), strength), 1, "{strength}");
        }
        assert_eq!(Method::OneStep.with_a_step_at(0.1), Method::OneStep);
    }
}
