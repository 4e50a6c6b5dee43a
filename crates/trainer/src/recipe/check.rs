//! Checks of settings for their ranges.

use swiftbrush_lora::LoraConfig;

use super::{GuidanceScale, Recipe};
use crate::AdamWConfig;

impl Recipe {
    /// Checks every value for its range; the message names the setting.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.check_numbers()?;
        self.check_guidance()?;
        self.check_watch()?;
        for (name, regression) in [("pairs", &self.pairs), ("denoise", &self.denoise)] {
            regression
                .as_ref()
                .map_or(Ok(()), |regression| regression.check(name))?;
        }
        for (name, lora) in [
            ("fake_lora", Some(&self.fake_lora)),
            ("student_lora", self.student_lora.as_ref()),
        ] {
            lora.map_or(Ok(()), |lora| check_lora(name, lora))?;
        }
        if self.min_timestep > self.max_timestep {
            let (min, max) = (self.min_timestep, self.max_timestep);
            return Err(format!("min_timestep = {min} exceeds max_timestep = {max}"));
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<(), String> {
        for (name, value) in [
            ("steps", self.steps as f64),
            ("student_every", self.student_every as f64),
            ("batch", self.batch as f64),
            ("accumulation", self.accumulation as f64),
            ("save_every", self.save_every as f64),
            ("keep_last", self.keep_last as f64),
            ("learning_rate", self.learning_rate),
            ("fake_learning_rate", self.fake_learning_rate),
            ("max_grad_norm", self.max_grad_norm),
        ] {
            let is_positive = value.is_finite() && value > 0.0;
            expect(name, value, is_positive, "a finite number above 0")?;
        }
        for (name, value) in [
            ("null_probability", self.null_probability),
            ("ema_decay", self.ema_decay),
        ] {
            expect(name, value, (0.0..=1.0).contains(&value), "0 to 1")?;
        }
        check_adamw(&self.adamw)?;
        let clip = self.clip.as_ref();
        let weight = clip.map_or(0.0, |clip| clip.weight);
        let is_valid = weight.is_finite() && weight >= 0.0;
        let expected = "a finite number of at least 0";
        expect("clip.weight", weight, is_valid, expected)?;
        let threshold = clip.map_or(0.0, |clip| clip.threshold);
        let is_valid = threshold.is_finite();
        expect("clip.threshold", threshold, is_valid, "a finite number")?;
        for (model, reward) in &self.rewards {
            let (table, weight) = (format!("rewards.{}", model.name()), reward.weight);
            let is_valid = weight.is_finite() && weight >= 0.0;
            let expected = "a finite number of at least 0";
            expect(&format!("{table}.weight"), weight, is_valid, expected)?;
            let (name, threshold) = (format!("{table}.threshold"), reward.threshold);
            expect(&name, threshold, threshold.is_finite(), "a finite number")?;
        }
        Ok(())
    }

    fn check_watch(&self) -> Result<(), String> {
        let timesteps = (self.max_timestep + 1).saturating_sub(self.min_timestep);
        let watch = self.watch.as_ref();
        watch.map_or(Ok(()), |watch| watch.check(timesteps))
    }

    fn check_guidance(&self) -> Result<(), String> {
        let scales = match self.guidance {
            GuidanceScale::Constant(scale) => [scale; 2],
            GuidanceScale::Uniform { uniform } => uniform,
        };
        let [low, high] = scales;
        for value in scales {
            expect("guidance", value, value.is_finite(), "a finite number")?;
        }
        if low > high {
            let range = format!("uniform = [{low}, {high}]");
            return Err(format!("guidance: {range}: expected the lower bound first"));
        }
        let fake = self.fake_guidance.unwrap_or(1.0);
        expect("fake_guidance", fake, fake.is_finite(), "a finite number")
    }
}

pub(crate) fn check_adamw(adamw: &AdamWConfig) -> Result<(), String> {
    for (name, value) in [("adamw.beta1", adamw.beta1), ("adamw.beta2", adamw.beta2)] {
        expect(name, value, (0.0..1.0).contains(&value), "0 to below 1")?;
    }
    let epsilon = adamw.epsilon;
    let is_valid = epsilon.is_finite() && epsilon > 0.0;
    expect(
        "adamw.epsilon",
        epsilon,
        is_valid,
        "a finite number above 0",
    )?;
    let decay = adamw.weight_decay;
    let is_valid = decay.is_finite() && decay >= 0.0;
    let expected = "a finite number of at least 0";
    expect("adamw.weight_decay", decay, is_valid, expected)
}

pub(crate) fn check_lora(name: &str, lora: &LoraConfig) -> Result<(), String> {
    let rank = lora.rank as f64;
    expect(&format!("{name}.rank"), rank, lora.rank > 0, "at least 1")?;
    let is_positive = lora.alpha.is_finite() && lora.alpha > 0.0;
    let expected = "a finite number above 0";
    expect(&format!("{name}.alpha"), lora.alpha, is_positive, expected)?;
    match lora.target_modules.is_empty() {
        true => Err(format!(
            "{name}.target_modules is empty: name at least one module"
        )),
        false => Ok(()),
    }
}

fn expect(name: &str, value: f64, is_valid: bool, expected: &str) -> Result<(), String> {
    match is_valid {
        true => Ok(()),
        false => Err(format!("{name} = {value}: expected {expected}")),
    }
}
