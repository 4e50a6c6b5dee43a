//! Looks at fixed prompts.

use burn::tensor::Tensor;
use swiftbrush_checkpoint::read;
use swiftbrush_pipeline::one_step;
use swiftbrush_unet::UNet;

use super::Distiller;
use crate::losses::{Teachers, clip_cosines, predicted_noise};
use crate::watch::{Band, mean, pairwise_distance, teacher_distance};
use crate::{Purpose, Random, Strip, WatchRecipe, WatchReport};

/// Values of a prompt, on the device.
struct Look {
    /// Diversity, distances of the teachers, and the CLIP score if there is a CLIP.
    scalars: Tensor<1>,
    strip: [Tensor<4>; 3],
}

impl Distiller {
    /// Evaluates some prompts: generates `images` images for each with the current student, and compares the teachers.
    /// The noise is the same at every step. There are no alarms in the report, and there is a CLIP score only if
    /// [`Recipe::watch`](crate::Recipe::watch) is set.
    ///
    /// # Panics
    ///
    /// If there are no prompts, or a setting is out of range.
    pub fn watch(&self, recipe: &WatchRecipe, prompts: &[String]) -> (WatchReport, Strip) {
        let (student, fake) = (self.student.plain(), self.fake.plain());
        let mut random = Random::new(self.recipe.seed, Purpose::Watch, 0);
        let looks = prompts.iter().map(|prompt| {
            let networks = [&student, &fake];
            self.look(recipe, networks, prompt, &mut random)
        });
        let (scalars, strips): (Vec<_>, Vec<_>) =
            looks.map(|look| (look.scalars, look.strip)).unzip();
        let scalars: Vec<f64> = read(Tensor::stack::<2>(scalars, 0).mean_dim(0))
            .iter()
            .collect();
        let (distances, score) = scalars[1..].split_at(recipe.bands);
        let bands = recipe.bands(self.recipe.min_timestep, self.recipe.max_timestep);
        let bands = bands.into_iter().zip(distances);
        let report = WatchReport {
            step: self.step,
            clip_score: score.first().copied(),
            diversity: scalars[0],
            teacher_distance: bands
                .map(|(timesteps, &distance)| Band {
                    timesteps,
                    distance,
                })
                .collect(),
            alarms: Vec::new(),
        };
        let row = |index: usize| {
            let latents = strips.iter().map(|strip| strip[index].clone());
            Tensor::cat(latents.collect(), 0)
        };
        let strip = Strip {
            student: row(0),
            teacher: row(1),
            fake: row(2),
            timestep: self.middle(),
        };
        (report, strip)
    }

    fn middle(&self) -> usize {
        self.recipe.min_timestep.midpoint(self.recipe.max_timestep)
    }

    fn look(
        &self,
        recipe: &WatchRecipe,
        [student, fake]: [&UNet; 2],
        prompt: &str,
        random: &mut Random,
    ) -> Look {
        let context = self.frozen.encoder.encode(&[prompt]);
        // One by one: a batch would take more memory than a step.
        let images = (0..recipe.images).map(|_| {
            let noise = self.frozen.sizes.noise(random, 1);
            one_step(
                student,
                &self.frozen.student_schedule,
                noise,
                context.clone(),
            )
        });
        let images: Vec<_> = images.collect();
        let renoise = self.frozen.sizes.noise(random, 1);
        let teachers = Teachers {
            teacher: &self.frozen.teacher,
            fake,
            schedule: &self.frozen.schedule,
        };
        let bands = recipe.bands(self.recipe.min_timestep, self.recipe.max_timestep);
        let distances = bands.into_iter().map(|[first, last]| {
            let (latents, timestep) = (images[0].clone(), first.midpoint(last));
            teacher_distance(
                teachers,
                latents,
                renoise.clone(),
                timestep,
                context.clone(),
            )
        });
        let mut scalars = vec![pairwise_distance(Tensor::cat(images.clone(), 0))];
        scalars.extend(distances);
        scalars.extend(self.clip_score(&images, prompt));
        Look {
            scalars: Tensor::cat(scalars, 0),
            strip: self.strip(teachers, images[0].clone(), renoise, context),
        }
    }

    /// Latents, and the estimates of both teachers after noise was added.
    fn strip(
        &self,
        teachers: Teachers<'_>,
        latents: Tensor<4>,
        renoise: Tensor<4>,
        context: Tensor<3>,
    ) -> [Tensor<4>; 3] {
        let (schedule, timesteps) = (teachers.schedule, [self.middle()]);
        let noisy = schedule.add_noise(latents.clone(), renoise, &timesteps);
        let [teacher, fake] = [teachers.teacher, teachers.fake].map(|network| {
            let noise = predicted_noise(
                network,
                schedule,
                noisy.clone(),
                &timesteps,
                context.clone(),
            );
            schedule.predicted_latents(noisy.clone(), noise, &timesteps)
        });
        [latents, teacher, fake]
    }

    /// The mean cosine between images and their prompt.
    fn clip_score(&self, images: &[Tensor<4>], prompt: &str) -> Option<Tensor<1>> {
        let networks = self.frozen.clip.as_ref()?;
        let tokens = self
            .frozen
            .encoder
            .tokenizer
            .encode_batch(&[prompt], &self.frozen.sizes.device);
        let text = networks.clip.embed_texts(tokens);
        let cosines = images.iter().map(|latents| {
            let latents = latents.clone().cast(self.recipe.precision.dtype());
            let cosines = clip_cosines(&networks.clip, &networks.decoder, latents, text.clone());
            cosines
                .cast(burn::tensor::FloatDType::F32)
                .flatten::<1>(0, 1)
        });
        Some(mean(cosines.collect()))
    }
}
