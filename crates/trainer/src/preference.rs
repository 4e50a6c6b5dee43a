use std::path::Path;

use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use swiftbrush_clip::{TextEncoder, Tokenizer};
use swiftbrush_lora::LoraConfig;
use swiftbrush_pipeline::one_step;
use swiftbrush_scheduler::NoiseSchedule;
use swiftbrush_unet::UNet;

use crate::fingerprint::{FINGERPRINT, hash, saved_fingerprint};
use crate::gradients::clipping;
use crate::networks::setting;
use crate::recipe::{check_adamw, check_lora};
use crate::trained::{Trained, trainable};
use crate::{
    AdamW, AdamWConfig, DriftTargets, Ema, Error, Fingerprint, NamedGradients, Networks, Purpose,
    Random, Snapshot, Student, Threads, drift_loss,
};

/// A reward for images that needs no gradient: the score of a network, a program or a person.
pub trait Judge: std::fmt::Debug + Send + Sync {
    /// One score for each image of a prompt; only their order matters.
    ///
    /// # Shapes
    ///
    /// - latents: `[images, channels, height, width]`, without autodiff
    fn scores(&self, latents: Tensor<4>, prompt: &str) -> Vec<f64>;
}

/// The space in which preference tuning compares images. Raw latents are a poor choice.
pub trait FeatureMap: std::fmt::Debug + Send + Sync {
    /// Features of some images, `[images, width]` each, whose losses are added. Gradients flow to the latents, but not
    /// to weights.
    ///
    /// # Shapes
    ///
    /// - latents: `[images, channels, height, width]`, with or without autodiff
    /// - context: `[images, length, width]`, noise: like the latents, both without
    fn features(&self, latents: Tensor<4>, context: Tensor<3>, noise: Tensor<4>) -> Vec<Tensor<2>>;
}

/// Settings of preference tuning; the defaults are those of DrPO for SD-Turbo.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PreferenceRecipe {
    /// Seed of all random numbers.
    pub seed: u64,
    /// Number of prompts in a step, whose gradients are averaged.
    pub prompts: usize,
    /// Number of samples per prompt.
    pub samples: usize,
    /// Number of best samples that all samples drift towards.
    pub preferred: usize,
    /// Number of worst samples that all samples drift away from.
    pub rejected: usize,
    /// Weight of preferred and rejected samples, relative to the others.
    pub weight: f64,
    /// Weight of the drift towards the samples of the initial student, which keeps their variety.
    pub anchor: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Norm to which gradients are clipped.
    pub max_grad_norm: f64,
    /// Decay of the averaged weights.
    pub ema_decay: f64,
    /// Settings of the optimiser.
    pub adamw: AdamWConfig,
    /// Adapters that are trained; `None` trains all weights.
    pub lora: Option<LoraConfig>,
}

impl Default for PreferenceRecipe {
    fn default() -> Self {
        Self {
            seed: 0,
            prompts: 32,
            samples: 24,
            preferred: 8,
            rejected: 8,
            weight: 3000.0,
            anchor: 0.2,
            learning_rate: 1e-4,
            max_grad_norm: 1.0,
            ema_decay: 0.99,
            adamw: AdamWConfig::default(),
            lora: Some(LoraConfig::new(
                16,
                16.0,
                ["to_q", "to_k", "to_v", "to_out.0"],
            )),
        }
    }
}

impl PreferenceRecipe {
    fn check(&self) -> Result<(), String> {
        let check = |holds: bool, text: String| match holds {
            true => Ok(()),
            false => Err(text),
        };
        check(
            self.prompts > 0,
            "prompts = 0; expected at least 1".to_owned(),
        )?;
        check_adamw(&self.adamw)?;
        if let Some(lora) = &self.lora {
            check_lora("lora", lora)?;
        }
        let (samples, ranked) = (self.samples, self.preferred.saturating_add(self.rejected));
        check(
            self.preferred > 0 && self.rejected > 0 && ranked <= samples,
            format!(
                "preferred = {} and rejected = {} of samples = {samples}; expected at least 1 of each, and no sample in both",
                self.preferred, self.rejected
            ),
        )?;
        for (name, value) in [
            ("weight", self.weight),
            ("learning_rate", self.learning_rate),
            ("max_grad_norm", self.max_grad_norm),
        ] {
            check(
                value.is_finite() && value > 0.0,
                format!("{name} = {value}; expected a number above 0"),
            )?;
        }
        check(
            self.anchor.is_finite() && self.anchor >= 0.0,
            format!("anchor = {}; expected 0 or more", self.anchor),
        )?;
        check(
            (0.0..1.0).contains(&self.ema_decay),
            format!(
                "ema_decay = {}; expected 0 to 1, 1 excluded",
                self.ema_decay
            ),
        )
    }
}

/// Losses and scores of a step of preference tuning.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PreferenceReport {
    /// Number of steps before this one.
    pub step: u64,
    /// Mean loss of the prompts; it says little about progress.
    pub loss: f64,
    /// Mean score of all samples, before the update.
    pub score: f64,
    /// Number of prompts whose samples differ in score; for the others, only the anchor acts.
    pub ranked: usize,
    /// Norm of the gradient before clipping.
    pub norm: f64,
}

/// Preference tuning of a one-step student by a reward without gradients (DrPO): its samples are ranked, and drift in
/// feature space towards the best and away from the worst.
#[derive(Debug)]
pub struct PreferenceTuner {
    recipe: PreferenceRecipe,
    tokenizer: Tokenizer,
    text_encoder: TextEncoder,
    schedule: NoiseSchedule,
    latents: [usize; 3],
    device: Device,
    judge: Box<dyn Judge>,
    features: Box<dyn FeatureMap>,
    base: UNet,
    student: Trained,
    ema: Ema,
    step: u64,
    threads: Threads,
}

/// Random inputs of a prompt.
struct Draw<'a> {
    prompt: &'a str,
    noise: Tensor<4>,
    feature_noise: Tensor<4>,
}

/// Loss, scores and gradients of a prompt.
struct Outcome {
    loss: f64,
    scores: Vec<f64>,
    is_ranked: bool,
    grads: NamedGradients,
}

impl PreferenceTuner {
    /// Creates a run at its first step, from the student of some networks; their teacher is not used.
    ///
    /// # Errors
    ///
    /// If a setting is out of range, or the adapters match nothing in the student.
    pub fn new(
        recipe: PreferenceRecipe,
        networks: Networks,
        judge: Box<dyn Judge>,
        features: Box<dyn FeatureMap>,
        device: &Device,
    ) -> Result<Self, Error> {
        recipe.check().map_err(setting)?;
        let base = networks.student;
        let student = trainable(&base, recipe.lora.as_ref(), recipe.seed)?;
        Ok(Self {
            tokenizer: networks.tokenizer,
            text_encoder: networks.text_encoder,
            schedule: networks.student_schedule,
            latents: networks.latents,
            device: device.clone(),
            judge,
            features,
            base,
            ema: Ema::new(&student, recipe.ema_decay),
            student: Trained::new(student, AdamW::new(recipe.adamw)),
            step: 0,
            threads: Threads::new(1),
            recipe,
        })
    }

    /// Computes the prompts of a step on this many threads, which changes no result.
    pub fn with_threads(mut self, count: usize) -> Self {
        self.threads = Threads::new(count);
        self
    }

    /// Resumes from a snapshot of the same run.
    ///
    /// # Errors
    ///
    /// If its settings or its initial student differ, or its tensors are those of other networks. `source` is the file named in
    /// the error.
    pub fn restore(mut self, snapshot: &Snapshot, source: impl AsRef<Path>) -> Result<Self, Error> {
        let source = source.as_ref();
        let saved = saved_fingerprint(snapshot, source)?;
        let changes = self.fingerprint().changes(&saved, &[])?;
        if !changes.is_empty() {
            let path = source.to_owned();
            return Err(Error::Changed { path, changes });
        }
        let adamw = || snapshot.adamw("adamw", self.recipe.adamw, &self.device);
        let student = snapshot.group("student");
        self.student = self.student.restore(student, adamw, source)?;
        self.ema = snapshot.ema("ema", self.recipe.ema_decay, &self.device);
        self.step = snapshot.step();
        Ok(self)
    }

    /// The state of the run: trained weights, their averages, the optimiser and the step.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::new(self.step);
        let fingerprint = serde_json::to_string(&self.fingerprint());
        let fingerprint = fingerprint.expect("settings are plain data");
        snapshot.set_text(FINGERPRINT, fingerprint);
        snapshot.insert_trained("student", self.student.unet());
        snapshot.insert_adamw("adamw", self.student.adamw());
        snapshot.insert_ema("ema", &self.ema);
        snapshot
    }

    /// Settings and inputs that determine the weights, except judge and features.
    fn fingerprint(&self) -> Fingerprint {
        let mut fingerprint = Fingerprint::default();
        let recipe = serde_json::to_string(&self.recipe);
        fingerprint.set("recipe", recipe.expect("settings are plain data"));
        fingerprint.set("student", hash(&self.base));
        fingerprint
    }

    /// Number of steps done.
    pub fn n_steps(&self) -> u64 {
        self.step
    }

    /// The student with its averaged weights, adapters merged, without autodiff.
    pub fn averaged_student(&self) -> UNet {
        self.trained_student().averaged().merged()
    }

    /// The student with its adapters and averages.
    pub fn trained_student(&self) -> Student {
        let lora = self.recipe.lora.clone();
        Student::new(self.student.plain(), lora, self.ema.clone())
    }

    /// Performs one step: samples, ranks and updates.
    ///
    /// # Errors
    ///
    /// If a score, the loss or the gradient is not finite; nothing is updated then.
    ///
    /// # Panics
    ///
    /// If there are not as many prompts as the recipe says, or the judge does not score each image.
    #[track_caller]
    pub fn step(&mut self, prompts: &[String]) -> Result<PreferenceReport, Error> {
        let count = self.recipe.prompts;
        assert_eq!(prompts.len(), count, "a step takes `prompts` prompts");
        let draws = self.draws(prompts);
        let outcomes = self.threads.map(&draws, |draw| self.outcome(draw));
        let (mut loss, mut scores, mut ranked) = (0.0, Vec::new(), 0);
        let mut grads = NamedGradients::default();
        for outcome in outcomes {
            loss += outcome.loss / count as f64;
            scores.extend(outcome.scores);
            ranked += usize::from(outcome.is_ranked);
            grads = grads.plus(outcome.grads);
        }
        let share = 1.0 / count as f64;
        let report = PreferenceReport {
            step: self.step,
            loss,
            score: scores.iter().sum::<f64>() / scores.len() as f64,
            ranked,
            norm: grads.norm() * share,
        };
        for (what, value) in [
            ("score", report.score),
            ("loss", report.loss),
            ("gradient norm", report.norm),
        ] {
            if !value.is_finite() {
                return Err(Error::Preference {
                    what,
                    value,
                    step: self.step,
                });
            }
        }
        let grads = grads.scale(share * clipping(report.norm, self.recipe.max_grad_norm));
        self.student.update(grads, self.recipe.learning_rate);
        self.ema.update(self.student.unet())?;
        self.step += 1;
        Ok(report)
    }

    fn draws<'a>(&self, prompts: &'a [String]) -> Vec<Draw<'a>> {
        let mut random = Random::new(self.recipe.seed, Purpose::Student, self.step);
        let [channels, height, width] = self.latents;
        let shape = [self.recipe.samples, channels, height, width];
        let draw = |prompt: &'a String| Draw {
            prompt,
            noise: random.normal(shape, &self.device),
            feature_noise: random.normal(shape, &self.device),
        };
        prompts.iter().map(draw).collect()
    }

    fn outcome(&self, draw: &Draw<'_>) -> Outcome {
        let samples = self.recipe.samples;
        let tokens = self.tokenizer.encode_batch(&[draw.prompt], &self.device);
        let context = self.text_encoder.forward(tokens).repeat_dim(0, samples);
        let student = self.student.own();
        let (noise, schedule) = (draw.noise.clone(), &self.schedule);
        let latents = one_step(
            &student,
            schedule,
            noise.clone().autodiff(),
            context.clone().autodiff(),
        );
        let scores = self.judge.scores(latents.clone().inner(), draw.prompt);
        assert_eq!(scores.len(), samples, "the judge scores each image");
        let features = |latents: Tensor<4>| {
            let noise = draw.feature_noise.clone();
            self.features.features(latents, context.clone(), noise)
        };
        let ranking = Ranking::new(&scores, self.recipe.preferred, self.recipe.rejected);
        let own = features(latents);
        let mut losses = Vec::new();
        if let Some(ranking) = &ranking {
            losses.extend(own.iter().map(|own| {
                let targets = ranking.targets(own.clone().inner(), self.recipe.weight);
                drift_loss(own.clone(), &targets)
            }));
        }
        if self.recipe.anchor > 0.0 {
            let base = one_step(&self.base, schedule, noise, context.clone());
            let pairs = own.into_iter().zip(features(base));
            losses.extend(pairs.map(|(own, positives)| {
                let targets = DriftTargets {
                    positives,
                    negatives: None,
                    weight: 1.0,
                };
                drift_loss(own, &targets) * self.recipe.anchor
            }));
        }
        let (mut value, mut grads) = (0.0, NamedGradients::default());
        if let Some(loss) = losses.into_iter().reduce(|a, b| a + b) {
            value = loss.clone().into_data().iter::<f64>().sum();
            grads = NamedGradients::take(&student, &mut loss.backward());
        }
        Outcome {
            loss: value,
            is_ranked: ranking.is_some(),
            scores,
            grads,
        }
    }
}

/// Indices of preferred and rejected samples.
#[derive(Debug, PartialEq, Eq)]
struct Ranking {
    preferred: Vec<usize>,
    rejected: Vec<usize>,
}

impl Ranking {
    /// At most this many of the best and of the worst samples. A preferred sample always scores higher than a rejected
    /// one: samples with a score that would be on both sides stay on the side that has no other, or on neither.
    fn new(scores: &[f64], preferred: usize, rejected: usize) -> Option<Self> {
        let mut order: Vec<_> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
        let mut ranking = Self {
            preferred: order[..preferred].to_vec(),
            rejected: order[order.len() - rejected..].to_vec(),
        };
        let tie = scores[*ranking.rejected.first()?];
        if scores[*ranking.preferred.last()?] > tie {
            return Some(ranking);
        }
        let differs = |index: &usize| scores[*index] != tie;
        let [best, worst] =
            [&ranking.preferred, &ranking.rejected].map(|side| side.iter().any(differs));
        if worst {
            ranking.rejected.retain(differs);
        }
        if best {
            ranking.preferred.retain(differs);
        }
        (best || worst).then_some(ranking)
    }

    fn targets(&self, features: Tensor<2>, weight: f64) -> DriftTargets {
        let select = |indices: &[usize]| {
            let values: Vec<i32> = indices.iter().map(|&index| index as i32).collect();
            let data = TensorData::new(values, [indices.len()]);
            let indices = Tensor::<1, Int>::from_data(data, &features.device());
            features.clone().select(0, indices)
        };
        DriftTargets {
            positives: select(&self.preferred),
            negatives: Some(select(&self.rejected)),
            weight,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_and_the_worst_are_ranked_and_ties_are_on_one_side() {
        let ranked = |scores: &[f64]| {
            let ranking = Ranking::new(scores, 2, 2)?;
            Some((ranking.preferred, ranking.rejected))
        };
        let some =
            |preferred: &[usize], rejected: &[usize]| Some((preferred.to_vec(), rejected.to_vec()));
        assert_eq!(ranked(&[1.0, 4.0, 3.0, 2.0, 5.0]), some(&[4, 1], &[3, 0]));
        assert_eq!(ranked(&[1.0, 0.0, 1.0, 1.0]), some(&[0, 2], &[1]));
        assert_eq!(ranked(&[0.0, 1.0, 0.0, 0.0]), some(&[1], &[2, 3]));
        assert_eq!(ranked(&[2.0, 1.0, 1.0, 0.0]), some(&[0], &[3]));
        assert_eq!(ranked(&[1.0; 4]), None);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        for (change, part) in [
            (
                (|recipe: &mut PreferenceRecipe| recipe.samples = 15) as fn(&mut PreferenceRecipe),
                "samples = 15",
            ),
            (|recipe| recipe.rejected = 0, "rejected = 0"),
            (|recipe| recipe.prompts = 0, "prompts = 0"),
            (|recipe| recipe.weight = f64::NAN, "weight = NaN"),
            (|recipe| recipe.anchor = -1.0, "anchor = -1"),
            (|recipe| recipe.ema_decay = 1.0, "ema_decay = 1"),
        ] {
            let mut recipe = PreferenceRecipe::default();
            change(&mut recipe);
            let error = recipe.check().unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(PreferenceRecipe::default().check(), Ok(()));
    }
}
