use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{DType, Device};
use swiftbrush_checkpoint::{Model, abridged};
use swiftbrush_clip::{TextEncoder, Tokenizer};
use swiftbrush_lora::LoraConfig;
use swiftbrush_pipeline::Loader;
use swiftbrush_scheduler::NoiseSchedule;
use swiftbrush_unet::{UNet, UNetConfig};

use crate::parameters::{Parameter, parameters};
use crate::storage::with_owned_weights;
use crate::{
    ClipNetworks, Error, FrozenStorage, LpipsNetworks, Recipe, RewardModel, RewardNetworks,
};

/// The networks that a run starts from, in f32 and without autodiff.
///
/// Parameters are handles, so a network that appears twice uses memory only once.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Networks {
    /// The tokenizer of the text encoder, and of CLIP if there is one.
    pub tokenizer: Tokenizer,
    /// The encoder of prompts for the denoisers.
    pub text_encoder: TextEncoder,
    /// The frozen multi-step model.
    pub teacher: UNet,
    /// The initial student, SD-Turbo in the paper.
    pub student: UNet,
    /// Schedule and prediction type of the teacher and the fake teacher.
    pub schedule: NoiseSchedule,
    /// Schedule and prediction type of the student.
    pub student_schedule: NoiseSchedule,
    /// Channels, height and width of the latents.
    pub latents: [usize; 3],
    /// The networks of the CLIP loss, for a recipe that has one, and of the watcher's CLIP score.
    pub clip: Option<ClipNetworks>,
    /// The networks of published rewards, for a recipe that has some.
    pub rewards: BTreeMap<RewardModel, RewardNetworks>,
    /// The networks of LPIPS, for a recipe with a regression that uses it.
    pub lpips: Option<LpipsNetworks>,
}

impl Networks {
    /// Combines networks with the same schedule for teacher and student.
    pub fn new(
        tokenizer: Tokenizer,
        text_encoder: TextEncoder,
        [teacher, student]: [UNet; 2],
        schedule: NoiseSchedule,
        latents: [usize; 3],
    ) -> Self {
        Self {
            tokenizer,
            text_encoder,
            teacher,
            student,
            student_schedule: schedule.clone(),
            schedule,
            latents,
            clip: None,
            rewards: BTreeMap::new(),
            lpips: None,
        }
    }

    /// Sets the schedule of the student if it differs from the teacher's: a student that predicts noise can
    /// be distilled from a teacher that predicts velocity, and vice versa.
    pub fn with_student_schedule(mut self, schedule: NoiseSchedule) -> Self {
        self.student_schedule = schedule;
        self
    }

    /// Adds the networks of the CLIP loss and the watcher's CLIP score.
    pub fn with_clip(mut self, clip: ClipNetworks) -> Self {
        self.clip = Some(clip);
        self
    }

    /// Adds the networks of a published reward.
    pub fn with_reward(mut self, model: RewardModel, networks: RewardNetworks) -> Self {
        self.rewards.insert(model, networks);
        self
    }

    /// Adds the networks of LPIPS.
    pub fn with_lpips(mut self, lpips: LpipsNetworks) -> Self {
        self.lpips = Some(lpips);
        self
    }

    /// Loads the denoiser `component` of two models, with tokenizer and text encoder of the teacher
    /// and each scheduler. Weights that the recipe freezes are stored as the recipe says, one network after the other.
    ///
    /// # Errors
    ///
    /// If a component is missing, cannot be read, has unsupported settings, or has weights beyond the range of their type.
    pub fn load(
        (teacher, teacher_component): (&Model, &str),
        (student, student_component): (&Model, &str),
        recipe: &Recipe,
        device: &Device,
    ) -> Result<Self, Error> {
        let f32 = Some(DType::F32);
        let storage = recipe.frozen_weights;
        let schedule = |model: &Model, component: &str| -> Result<_, Error> {
            let loader = Loader::new(model.clone(), device).with_denoiser(component);
            Ok(NoiseSchedule::new(&loader.scheduler()?))
        };
        let config = UNetConfig::from_model(teacher, teacher_component)?;
        let tokenizer = Tokenizer::from_model(teacher, "tokenizer");
        let text_encoder = TextEncoder::from_model(teacher, "text_encoder", f32, device)?;
        let text_encoder = stored(storage, "text_encoder", text_encoder)?;
        let of_teacher = UNet::from_model(teacher, teacher_component, f32, device)?;
        let of_teacher = stored(storage, "teacher", of_teacher)?;
        let of_student = UNet::from_model(student, student_component, f32, device)?;
        let of_student = stored(recipe.student_storage(), "student", of_student)?;
        // An optimiser that owns the weights alone overwrites them; mapped ones would stay beside what it makes of them.
        let of_student = match recipe.student_lora {
            None => with_owned_weights(of_student),
            Some(_) => of_student,
        };
        let networks = Self::new(
            tokenizer.map_err(swiftbrush_pipeline::Error::from)?,
            text_encoder,
            [of_teacher, of_student],
            schedule(teacher, teacher_component)?,
            [config.in_channels, config.sample_size, config.sample_size],
        );
        Ok(networks.with_student_schedule(schedule(student, student_component)?))
    }

    /// The networks with frozen weights stored as the recipe says.
    ///
    /// # Errors
    ///
    /// If a weight is beyond the range of its type.
    pub(crate) fn stored(self, recipe: &Recipe) -> Result<Self, Error> {
        let storage = recipe.frozen_weights;
        let clip = self.clip.map(|networks| networks.stored(storage));
        let lpips = self.lpips.map(|networks| networks.stored(storage));
        let rewards = self.rewards.into_iter();
        let rewards = rewards.map(|(model, networks)| Ok((model, networks.stored(storage)?)));
        Ok(Self {
            text_encoder: stored(storage, "text_encoder", self.text_encoder)?,
            teacher: stored(storage, "teacher", self.teacher)?,
            student: stored(recipe.student_storage(), "student", self.student)?,
            clip: clip.transpose()?,
            lpips: lpips.transpose()?,
            rewards: rewards.collect::<Result<_, Error>>()?,
            ..self
        })
    }

    /// Checks that the networks can be trained with a recipe on a device.
    pub(crate) fn check(&self, recipe: &Recipe, device: &Device) -> Result<(), Error> {
        let (teacher, student) = (parameters(&self.teacher), parameters(&self.student));
        let text = parameters(&self.text_encoder);
        let frozen = recipe.frozen_weights;
        for (network, parameters, storage) in [
            ("teacher", &teacher, frozen),
            ("student", &student, recipe.student_storage()),
            ("text_encoder", &text, frozen),
        ] {
            check_storage(network, parameters, storage, device)?;
        }
        for (network, parameters) in [("teacher", &teacher), ("student", &student)] {
            self.check_sizes(network, parameters, &text)?;
        }
        check_vocabulary("text_encoder", &text, &self.tokenizer)?;
        check_targets("fake_lora", &recipe.fake_lora, &teacher)?;
        if let Some(lora) = &recipe.student_lora {
            check_targets("student_lora", lora, &student)?;
        }
        self.check_timesteps(recipe)?;
        for model in recipe.rewards.keys() {
            let found = self.rewards.get(model);
            let found = found.ok_or(Error::NoReward(model.name()))?;
            check_clip(
                model.name(),
                &found.networks,
                &found.tokenizer,
                frozen,
                device,
            )?;
        }
        if recipe.uses_lpips() {
            let found = self.lpips.as_ref().ok_or(Error::NoLpips)?;
            check_storage("lpips", &parameters(&found.lpips), frozen, device)?;
            check_storage("decoder", &parameters(&found.decoder), frozen, device)?;
        }
        match (&recipe.clip, &self.clip) {
            (Some(_), None) => Err(Error::NoClip),
            (_, Some(networks)) if recipe.uses_clip() => {
                check_clip("clip", networks, &self.tokenizer, frozen, device)
            }
            _ => Ok(()),
        }
    }

    fn check_sizes(
        &self,
        network: &'static str,
        denoiser: &[Parameter],
        text: &[Parameter],
    ) -> Result<(), Error> {
        let [channels, _, _] = self.latents;
        let width = size(text, "token_embedding.weight", 1);
        let found = [
            (
                "input channels",
                size(denoiser, "conv_in.weight", 1),
                channels,
            ),
            (
                "output channels",
                size(denoiser, "conv_out.weight", 0),
                channels,
            ),
            (
                "context width",
                size(denoiser, "attn2.to_k.weight", 1),
                width.unwrap_or(0),
            ),
        ];
        for (what, found, expected) in found {
            if let Some(found) = found.filter(|&found| found != expected) {
                let reason = format!("{what}: expected {expected}, found {found}");
                return Err(Error::Network { network, reason });
            }
        }
        Ok(())
    }

    fn check_timesteps(&self, recipe: &Recipe) -> Result<(), Error> {
        let last = self.schedule.last();
        let settings = [
            ("max_timestep", Some(recipe.max_timestep)),
            ("max_guided_timestep", recipe.max_guided_timestep),
        ];
        for (name, value) in settings {
            if let Some(value) = value.filter(|&value| value > last) {
                return Err(setting(format!(
                    "{name} = {value}: the teacher's schedule ends at {last}"
                )));
            }
        }
        Ok(())
    }
}

/// An error in a setting of the recipe.
pub(crate) fn setting(reason: String) -> Error {
    Error::Recipe {
        path: "recipe".into(),
        reason,
    }
}

/// The size along an axis of the first parameter whose name has this suffix.
fn size(parameters: &[Parameter], name: &str, axis: usize) -> Option<usize> {
    let mut parameters = parameters.iter();
    let found = parameters.find(|parameter| parameter.name.ends_with(name));
    found.map(|parameter| parameter.shape[axis])
}

/// A module with its weights stored in a type.
pub(crate) fn stored<M: Module>(
    storage: FrozenStorage,
    network: &'static str,
    module: M,
) -> Result<M, Error> {
    let stored = storage.store(module);
    stored.map_err(|reason| Error::Network { network, reason })
}

fn check_storage(
    network: &'static str,
    parameters: &[Parameter],
    storage: FrozenStorage,
    device: &Device,
) -> Result<(), Error> {
    let bad = |reason| Err(Error::Network { network, reason });
    for Parameter {
        name,
        shape,
        dtype,
        device: found,
        ..
    } in parameters
    {
        let expected = storage.dtype(name, shape.len());
        if *dtype != expected {
            let dtype = match dtype {
                DType::QFloat(_) => "int8".to_owned(),
                dtype => format!("{dtype:?}"),
            };
            return bad(format!(
                "{name} is {dtype}, training needs {expected:?}: load the network with \
                 Some(DType::F32)"
            ));
        }
        if found.is_autodiff() {
            return bad(format!(
                "{name} is on an autodiff device: pass the network without .train()"
            ));
        }
        if found != device {
            return bad(format!("{name} is on {found:?}, the run on {device:?}"));
        }
    }
    Ok(())
}

fn check_clip(
    name: &'static str,
    networks: &ClipNetworks,
    tokenizer: &Tokenizer,
    frozen: FrozenStorage,
    device: &Device,
) -> Result<(), Error> {
    let clip = parameters(&networks.clip);
    check_storage(name, &clip, frozen, device)?;
    check_storage("decoder", &parameters(&networks.decoder), frozen, device)?;
    check_vocabulary(name, &clip, tokenizer)
}

fn check_vocabulary(
    network: &'static str,
    parameters: &[Parameter],
    tokenizer: &Tokenizer,
) -> Result<(), Error> {
    let tokens = size(parameters, "token_embedding.weight", 0).unwrap_or(0);
    let length = size(parameters, "position_embedding.weight", 0).unwrap_or(0);
    let (vocabulary, needed) = (tokenizer.vocabulary(), tokenizer.length());
    // A table may be padded beyond CLIP's vocabulary of 49,408, but must not be smaller.
    if tokens < vocabulary || length < needed {
        return Err(Error::Network {
            network,
            reason: format!(
                "it knows {tokens} tokens at {length} positions, the tokenizer produces {vocabulary} at \
                 {needed}: use the tokenizer that the network was trained with"
            ),
        });
    }
    Ok(())
}

/// Checks that each target matches linear layers and nothing else.
fn check_targets(name: &str, lora: &LoraConfig, parameters: &[Parameter]) -> Result<(), Error> {
    let (mut unmatched, mut others) = (Vec::new(), Vec::new());
    for target in &lora.target_modules {
        let layers = parameters.iter().filter_map(|parameter| {
            let module = parameter.name.strip_suffix(".weight")?;
            let rest = module.strip_suffix(target.as_str())?;
            (rest.is_empty() || rest.ends_with('.')).then_some((module, parameter))
        });
        let layers: Vec<_> = layers.collect();
        if layers.is_empty() {
            unmatched.push(target.clone());
        }
        let others_of_target = layers.iter().filter(|(_, layer)| layer.shape.len() != 2);
        others.extend(others_of_target.map(|(module, _)| (*module).to_owned()));
    }
    if !unmatched.is_empty() {
        let unmatched = abridged(&unmatched);
        return Err(setting(format!(
            "{name}.target_modules: the network has no layers called {unmatched}"
        )));
    }
    if !others.is_empty() {
        let others = abridged(&others);
        return Err(setting(format!(
            "{name}.target_modules: only linear layers can be adapted, but {others} are convolutions or \
             normalisations: remove their names"
        )));
    }
    Ok(())
}
