//! An estimate of the memory of a run.

mod activations;

use std::fmt;

use burn::module::Module;
use swiftbrush_lora::LoraConfig;

use crate::networks::setting;
use crate::parameters::{Parameter, parameters};
use crate::{AverageStorage, Error, FrozenStorage, MomentStorage, Networks, Recipe};

use activations::Activations;

/// The memory that a run needs, part by part, computed from its recipe and the shapes of its networks.
/// [`Display`](fmt::Display) prints it as a table.
///
/// Weights, gradients, moments and averages are exact. Activations are counted from the tensors that backward passes keep;
/// scratch memory of operations and the allocator's overhead are not included.
///
/// ```
/// use swiftbrush_trainer::{Error, MemoryPlan, Networks, Recipe};
///
/// fn fits_8_gib(networks: &Networks) -> Result<(), Error> {
///     let recipe = Recipe::efficient();
///     println!("{}", MemoryPlan::new(&recipe, networks));
///     MemoryPlan::check(&recipe, networks, 8 << 30)
/// }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryPlan {
    parts: Vec<MemoryPart>,
}

/// A row of a [`MemoryPlan`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MemoryPart {
    /// Name of the part.
    pub name: &'static str,
    /// The setting that has the largest effect on it.
    pub setting: String,
    /// Bytes on the device.
    pub bytes: u64,
}

/// A change of a recipe that saves memory.
type Saving = (&'static str, fn(&mut Recipe));

/// Changes that save memory, cheapest first.
const SAVINGS: [Saving; 6] = [
    ("averages = \"file\"", |recipe| {
        recipe.averages = AverageStorage::File;
    }),
    ("frozen_weights = \"f16\"", |recipe| {
        recipe.frozen_weights = FrozenStorage::F16;
    }),
    ("checkpointing = true", |recipe| recipe.checkpointing = true),
    ("adamw.moments = \"8bit\"", |recipe| {
        recipe.adamw.moments = MomentStorage::EightBits;
    }),
    (
        "batch = 1, with accumulation multiplied by the old batch",
        |recipe| {
            recipe.accumulation *= recipe.batch;
            recipe.batch = 1;
        },
    ),
    ("scheme = \"b\"", |recipe| {
        recipe.student_lora = recipe
            .student_lora
            .take()
            .or(Recipe::efficient().student_lora);
    }),
];

impl MemoryPlan {
    /// The plan of a run on one thread; see [`Distiller::with_threads`](crate::Distiller::with_threads), which multiplies
    /// activations and gradients.
    pub fn new(recipe: &Recipe, networks: &Networks) -> Self {
        let (student, teacher) = (parameters(&networks.student), parameters(&networks.teacher));
        let trained = trained(&student, recipe.student_lora.as_ref());
        let fake = trained_by_adapters(&teacher, &recipe.fake_lora);
        let frozen = recipe.frozen_weights;
        let mut parts = Vec::new();
        let mut add = |name, setting: String, bytes| {
            parts.push(MemoryPart {
                name,
                setting,
                bytes,
            });
        };
        let of_frozen = || format!("frozen_weights = {}", toml_name(&frozen));
        let adapters = recipe.student_lora.is_some();
        add(
            "student",
            if adapters {
                of_frozen()
            } else {
                "trained in f32".to_owned()
            },
            stored(&student, recipe.student_storage())
                + if adapters { 4 * sum(&trained) } else { 0 },
        );
        add(
            "teacher, shared with the fake teacher",
            of_frozen(),
            stored(&teacher, frozen),
        );
        add(
            "adapters of the fake teacher",
            "trained in f32".to_owned(),
            4 * sum(&fake),
        );
        add(
            "text encoder",
            of_frozen(),
            weights(&networks.text_encoder, frozen),
        );
        if let Some(clip) = networks.clip.as_ref().filter(|_| recipe.uses_clip()) {
            let bytes = weights(&clip.clip, frozen) + weights(&clip.decoder, frozen);
            add("CLIP and its decoder", of_frozen(), bytes);
        }
        let all: Vec<u64> = trained.iter().chain(&fake).copied().collect();
        let of_gradients = match (recipe.checkpointing, recipe.accumulation) {
            (false, 2..) => (2, "checkpointing = false: the sum and a micro-batch"),
            _ => (1, "the sum"),
        };
        add(
            "gradients",
            of_gradients.1.to_owned(),
            of_gradients.0 * 4 * sum(&all),
        );
        let storage = recipe.adamw.moments;
        let setting = format!("adamw.moments = {}", toml_name(&storage));
        add(
            "moments",
            setting,
            all.iter().map(|&size| moments(size, storage)).sum(),
        );
        let average = match recipe.averages {
            AverageStorage::File => 0,
            AverageStorage::Device | AverageStorage::Host => 4 * sum(&trained),
        };
        add(
            "averaged weights",
            format!("averages = {}", toml_name(&recipe.averages)),
            average,
        );
        let setting = format!(
            "checkpointing = {}, batch = {}",
            recipe.checkpointing, recipe.batch
        );
        add(
            "activations",
            setting,
            activations(recipe, networks, &student, &teacher),
        );
        Self { parts }
    }

    /// The parts.
    pub fn parts(&self) -> &[MemoryPart] {
        &self.parts
    }

    /// The sum of all parts in bytes.
    pub fn total(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// Checks that a run fits in `available` bytes.
    ///
    /// # Errors
    ///
    /// If it does not; the error names settings with which it would.
    pub fn check(recipe: &Recipe, networks: &Networks, available: u64) -> Result<(), Error> {
        let total = Self::new(recipe, networks).total();
        if total <= available {
            return Ok(());
        }
        let (mut recipe, mut used, mut changes) = (recipe.clone(), total, Vec::new());
        for (name, change) in SAVINGS {
            let mut changed = recipe.clone();
            change(&mut changed);
            let bytes = Self::new(&changed, networks).total();
            if bytes < used {
                (recipe, used) = (changed, bytes);
                changes.push(name);
            }
            if used <= available {
                break;
            }
        }
        let needs = format!(
            "the run needs about {}, but {} are available",
            gibibytes(total),
            gibibytes(available)
        );
        let changes = changes.join("; ");
        Err(setting(match used <= available {
            true => format!("{needs}: it would fit with {changes}"),
            false => format!(
                "{needs}; even with {changes} it would need {}",
                gibibytes(used)
            ),
        }))
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.parts.iter().map(|part| part.name.len()).max();
        let width = width.unwrap_or(0);
        for MemoryPart {
            name,
            setting,
            bytes,
        } in &self.parts
        {
            writeln!(f, "{name:width$}  {:>10}  {setting}", gibibytes(*bytes))?;
        }
        write!(f, "{:width$}  {:>10}", "sum", gibibytes(self.total()))
    }
}

fn gibibytes(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}

/// The name of a setting's value in a recipe file.
fn toml_name(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("settings are plain data")
}

fn size(parameter: &Parameter) -> u64 {
    parameter.shape.iter().product::<usize>() as u64
}

fn sum(sizes: &[u64]) -> u64 {
    sizes.iter().sum()
}

fn weights<M: Module>(module: &M, storage: FrozenStorage) -> u64 {
    stored(&parameters(module), storage)
}

fn stored(parameters: &[Parameter], storage: FrozenStorage) -> u64 {
    let bytes = parameters.iter().map(|parameter| {
        let dtype = storage.dtype(&parameter.name, parameter.shape.len());
        size(parameter) * dtype.size() as u64
    });
    bytes.sum()
}

/// Sizes of trained parameters.
fn trained(parameters: &[Parameter], lora: Option<&LoraConfig>) -> Vec<u64> {
    match lora {
        Some(lora) => trained_by_adapters(parameters, lora),
        None => parameters.iter().map(size).collect(),
    }
}

fn trained_by_adapters(parameters: &[Parameter], lora: &LoraConfig) -> Vec<u64> {
    let layers = parameters.iter().filter(|parameter| {
        let module = parameter.name.strip_suffix(".weight");
        let is_target = |target: &String| {
            let rest = module.and_then(|module| module.strip_suffix(target.as_str()));
            rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        parameter.shape.len() == 2 && lora.target_modules.iter().any(is_target)
    });
    let factors = layers.flat_map(|layer| layer.shape.iter().map(|side| (side * lora.rank) as u64));
    factors.collect()
}

/// Bytes of both moments of a parameter.
fn moments(size: u64, storage: MomentStorage) -> u64 {
    match storage {
        MomentStorage::EightBits if size >= 4096 => 2 * (size + 4 * size.div_ceil(256)),
        _ => 8 * size,
    }
}

/// Bytes of activations in the pass that keeps the most: the student's with CLIP and its decoder, or the fake
/// teacher's.
fn activations(
    recipe: &Recipe,
    networks: &Networks,
    student: &[Parameter],
    teacher: &[Parameter],
) -> u64 {
    let [_, height, width] = networks.latents;
    let of = |denoiser: &[Parameter], is_frozen| {
        Activations::of_denoiser(denoiser, [height, width], is_frozen).kept(recipe.checkpointing)
    };
    let mut of_student = of(student, recipe.student_lora.is_some());
    if let (Some(_), Some(clip)) = (&recipe.clip, &networks.clip) {
        let decoder = Activations::of_decoder(&parameters(&clip.decoder), [height, width]);
        let tower = Activations::of_tower(&parameters(&clip.clip));
        let of_clip = match recipe.checkpointing {
            // The student's blocks run again after CLIP's.
            true => decoder.kept(true).max(tower.kept(true)),
            false => decoder.kept(false) + tower.kept(false) + of_student,
        };
        of_student = of_student.max(of_clip);
    }
    let elements = of_student.max(of(teacher, true));
    let dtype = burn::tensor::DType::from(recipe.precision.dtype());
    elements * recipe.batch as u64 * dtype.size() as u64
}
