use std::ops::ControlFlow;

use burn::tensor::{FloatDType, Tensor};
use swiftbrush_scheduler::NoiseSchedule;

use crate::edit::{Chord, Edit};
use crate::limits::check_size;
use crate::mask::blend;
use crate::progress::{Stage, Watch, Watcher};
use crate::text_to_image::checked;
use crate::{Conditioning, Error, Generation, Method, Noise, TextToImage};

impl TextToImage {
    /// Edits images. Noise is drawn once for each of [`Options::noises`](crate::edit::Options::noises), in the shape of
    /// the latents.
    ///
    /// # Errors
    ///
    /// If the edit contradicts itself, the model or the noise, the model needs more than one call, or a network
    /// produces a NaN.
    pub fn edit(&self, edit: &Edit, noise: &mut dyn Noise) -> Result<Generation, Error> {
        self.edit_with(edit, noise, &mut |_| ControlFlow::Continue(()))
    }

    /// [`edit`](Self::edit) with a progress callback, which may cancel.
    ///
    /// # Errors
    ///
    /// Same as [`edit`](Self::edit), and [`Error::Cancelled`].
    pub fn edit_with(
        &self,
        edit: &Edit,
        noise: &mut dyn Noise,
        watch: Watch<'_>,
    ) -> Result<Generation, Error> {
        self.edit_watched(edit, noise, &mut Watcher::new(watch))
    }

    /// Like [`edit`](Self::edit), without waiting for the device; see
    /// [`generate_async`](TextToImage::generate_async).
    ///
    /// # Errors
    ///
    /// The future gives the errors of [`edit`](Self::edit), and [`Error::Execution`] if the device fails.
    pub fn edit_async(
        &self,
        edit: &Edit,
        noise: &mut dyn Noise,
    ) -> impl Future<Output = Result<Generation, Error>> + use<> {
        let mut watch = |_| ControlFlow::Continue(());
        let mut watcher = Watcher::without_waiting(&mut watch);
        let generation = self.edit_watched(edit, noise, &mut watcher);
        checked(generation, watcher.checks)
    }

    fn edit_watched(
        &self,
        edit: &Edit,
        noise: &mut dyn Noise,
        watcher: &mut Watcher<'_>,
    ) -> Result<Generation, Error> {
        self.check_edit(edit)?;
        watcher.checks.pixels("image to edit", &edit.images)?;
        watcher.tell(Stage::Encoding)?;
        let [source, target] = self.encode_edit(edit, watcher)?;
        self.check_parts(&target)?;
        let latents = self.decoder.encode_mode(edit.images.clone());
        let latents = latents.cast(FloatDType::F32);
        watcher.checks.finite("encoder", &latents)?;
        let draw = |_| noise.draw(latents.dims(), &self.device);
        let noises: Vec<_> = (0..edit.options.noises)
            .map(draw)
            .collect::<Result<_, _>>()?;

        let dtype = FloatDType::from(self.dtype);
        let schedule = NoiseSchedule::new(&self.scheduler);
        let network = |noisy: Tensor<4>, timesteps: Tensor<1>, context: Tensor<3>| {
            self.unet.forward(noisy.cast(dtype), timesteps, context)
        };
        let chord = Chord {
            schedule: &schedule,
            network: &network,
        };
        let [of_source, of_target] =
            [&source, &target].map(|prompt| prompt.context.clone().cast(dtype));
        let n_calls = edit.options.n_calls();
        watcher.call(0, n_calls, None)?;
        let field = chord.field(&latents, &of_source, &of_target, &noises, &edit.options);
        let mask = edit.masking.of_field(&field, self.decoder.scale());
        let field = match &mask {
            Some((mask, _)) => field * mask.clone(),
            None => field,
        };
        let mut edited = latents.clone() + field * edit.options.step;
        if let Some(refinement) = edit.options.refinement {
            watcher.call(1, n_calls, Some(edited.clone()))?;
            edited = chord.refine(edited, &of_target, &noises[0], refinement);
            if let Some((mask, _)) = &mask {
                edited = blend(mask.clone(), edited, latents);
            }
        }
        watcher.checks.finite_in("denoiser", &edited, self.dtype)?;
        watcher.call(n_calls, n_calls, Some(edited.clone()))?;

        let mut images = self.decoder.decode_watched(edited.clone(), watcher)?;
        let mask = mask.map(|(_, mask)| mask);
        if let Some(mask) = &mask {
            images = mask.paste(images, &edit.images);
        }
        let generation = Generation::new(images, edited, target, source.warnings);
        Ok(Generation { mask, ..generation })
    }

    /// Checks an edit without carrying it out.
    ///
    /// # Errors
    ///
    /// If it contradicts itself or the model, or the model needs more than one call.
    pub fn check_edit(&self, edit: &Edit) -> Result<(), Error> {
        check(edit, self.decoder.scale(), self.width, || {
            self.default_method()
        })
    }

    /// Embeddings of both prompts.
    fn encode_edit(
        &self,
        edit: &Edit,
        watcher: &mut Watcher<'_>,
    ) -> Result<[Conditioning; 2], Error> {
        let checks = &mut watcher.checks;
        Ok([
            self.encode_checked(&edit.sources, checks)?,
            self.encode_checked(&edit.targets, checks)?,
        ])
    }
}

/// Checks an edit against a model: its pixels per latent, the channels of its decoder at full resolution, and its method.
pub(crate) fn check(
    edit: &Edit,
    scale: usize,
    width: usize,
    method: impl FnOnce() -> Result<Method, Error>,
) -> Result<(), Error> {
    let refuse = |text: String| Err(Error::Request(text));
    let [batch, channels, rows, columns] = edit.images.dims();
    if channels != 3 {
        return refuse(format!(
            "expected images of 3 channels to edit, found {channels}"
        ));
    }
    if batch == 0 {
        return refuse("no images to edit".to_owned());
    }
    for (prompts, what) in [(&edit.sources, "source"), (&edit.targets, "target")] {
        if prompts.len() != batch {
            return refuse(format!(
                "expected a {what} prompt for each of {batch} images, found {}",
                prompts.len()
            ));
        }
    }
    check_size([rows, columns], scale, width)?;
    edit.options.check()?;
    edit.masking.check(edit.images.dims())?;
    check_calls(match edit.method {
        Some(method) => method,
        None => method()?,
    })
}

/// Fails for models whose single prediction from noise is a blur.
pub(crate) fn check_calls(method: Method) -> Result<(), Error> {
    let steps = match method {
        Method::Sampler(_, steps) if steps > 1 => steps,
        _ => return Ok(()),
    };
    Err(Error::Request(format!(
        "editing needs a one-step model, such as SD-Turbo or a SwiftBrush student, and this method takes {steps} steps; name the one-step method (`--sampler one-step`) if the denoiser is a student all the same"
    )))
}
