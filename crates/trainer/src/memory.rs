//! An estimate of the memory of a run.

mod activations;

use std::collections::BTreeMap;
use std::fmt;

use burn::module::Module;
use swiftbrush_lora::LoraConfig;

use crate::networks::setting;
use crate::parameters::{Parameter, parameters};
use crate::shards::spread;
use crate::{
    AverageStorage, Error, FrozenStorage, MomentStorage, Networks, Recipe, RewardNetworks,
};

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
///     println!("{}", MemoryPlan::new(&recipe, networks, 1));
///     MemoryPlan::check(&recipe, networks, 1, 8 << 30)
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
    /// The plan of one of `ranks` processes that train together (1 for a single process): the rank that needs the most
    /// memory. It is for one thread; [`Distiller::with_threads`](crate::Distiller::with_threads) multiplies activations
    /// and gradients.
    ///
    /// # Panics
    ///
    /// If there are no ranks.
    #[track_caller]
    pub fn new(recipe: &Recipe, networks: &Networks, ranks: usize) -> Self {
        assert!(ranks > 0, "at least one rank");
        let (student, teacher) = (parameters(&networks.student), parameters(&networks.teacher));
        let trained = Trained {
            student: trained(&student, recipe.student_lora.as_ref()),
            fake: trained_by_adapters(&teacher, &recipe.fake_lora),
        };
        let mut plan = Self { parts: Vec::new() };
        plan.add_networks(recipe, networks, [&student, &teacher], &trained);
        let layer = match recipe.student_lora {
            Some(_) => 0, // adapters of a layer are small
            None => 4 * largest_layer(&student),
        };
        plan.add_training(recipe, &trained, layer, ranks);
        let setting = format!(
            "checkpointing = {}, batch = {}",
            recipe.checkpointing, recipe.batch
        );
        let bytes = activations(recipe, networks, &student, &teacher);
        plan.add("activations", setting, bytes);
        plan
    }

    fn add(&mut self, name: &'static str, setting: impl Into<String>, bytes: u64) {
        self.parts.push(MemoryPart {
            name,
            setting: setting.into(),
            bytes,
        });
    }

    fn add_networks(
        &mut self,
        recipe: &Recipe,
        networks: &Networks,
        [student, teacher]: [&[Parameter]; 2],
        trained: &Trained,
    ) {
        let frozen = recipe.frozen_weights;
        let of_frozen = format!("frozen_weights = {}", toml_name(&frozen));
        let of_student = stored(student, recipe.student_storage());
        match recipe.student_lora {
            Some(_) => self.add(
                "student",
                &of_frozen,
                of_student + 4 * sum(&trained.student),
            ),
            None => self.add("student", "trained in f32", of_student),
        }
        let name = "teacher, shared with the fake teacher";
        self.add(name, &of_frozen, stored(teacher, frozen));
        let of_fake = 4 * sum(&trained.fake);
        self.add("adapters of the fake teacher", "trained in f32", of_fake);
        let text = weights(&networks.text_encoder, frozen);
        self.add("text encoder", &of_frozen, text);
        if let Some(clip) = networks.clip.as_ref().filter(|_| recipe.uses_clip()) {
            let bytes = weights(&clip.clip, frozen) + weights(&clip.decoder, frozen);
            self.add("CLIP and its decoder", &of_frozen, bytes);
        }
        let rewards = of_recipe(recipe, networks).map(|found| {
            weights(&found.networks.clip, frozen) + weights(&found.networks.decoder, frozen)
        });
        match rewards.sum() {
            0 => {}
            bytes => self.add("rewards and their decoder", &of_frozen, bytes),
        }
        if let Some(lpips) = networks.lpips.as_ref().filter(|_| recipe.uses_lpips()) {
            let bytes = weights(&lpips.lpips, frozen) + weights(&lpips.decoder, frozen);
            self.add("LPIPS and its decoder", &of_frozen, bytes);
        }
    }

    /// Adds gradients, moments and averages; the gradients of one layer take at most `layer` bytes.
    fn add_training(&mut self, recipe: &Recipe, trained: &Trained, layer: u64, ranks: usize) {
        let (storage, all) = (recipe.adamw.moments, 4 * trained.elements());
        let (gradients, setting) = match (ranks, recipe.checkpointing, recipe.accumulation) {
            (2.., _, _) => (
                all + 4 * trained.most_of_a_rank(ranks, |size| size),
                format!("a micro-batch, and the sum of one of {ranks} ranks"),
            ),
            (_, false, 2..) => (
                2 * all,
                "checkpointing = false: the sum and a micro-batch".to_owned(),
            ),
            (_, true, 2..) => (
                all + layer,
                "the sum and a layer of a micro-batch".to_owned(),
            ),
            _ => (all, "the sum".to_owned()),
        };
        self.add("gradients", setting, gradients);
        let mut setting = format!("adamw.moments = {}", toml_name(&storage));
        if ranks > 1 {
            setting += &format!(", one of {ranks} ranks");
        }
        let of_moments = trained.most_of_a_rank(ranks, |size| moments(size, storage));
        self.add("moments", setting, of_moments);
        let average = match recipe.averages {
            AverageStorage::File => 0,
            AverageStorage::Device | AverageStorage::Host => 4 * sum(&trained.student),
        };
        let setting = format!("averages = {}", toml_name(&recipe.averages));
        self.add("averaged weights", setting, average);
    }

    /// The parts.
    pub fn parts(&self) -> &[MemoryPart] {
        &self.parts
    }

    /// The sum of all parts in bytes.
    pub fn total(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// Checks that each of `ranks` processes fits in `available` bytes; see [`new`](Self::new).
    ///
    /// # Errors
    ///
    /// If it does not; the error names settings with which it would.
    ///
    /// # Panics
    ///
    /// If there are no ranks.
    #[track_caller]
    pub fn check(
        recipe: &Recipe,
        networks: &Networks,
        ranks: usize,
        available: u64,
    ) -> Result<(), Error> {
        let total = Self::new(recipe, networks, ranks).total();
        if total <= available {
            return Ok(());
        }
        let (mut recipe, mut used, mut changes) = (recipe.clone(), total, Vec::new());
        for (name, change) in SAVINGS {
            let mut changed = recipe.clone();
            change(&mut changed);
            let bytes = Self::new(&changed, networks, ranks).total();
            if bytes < used {
                (recipe, used) = (changed, bytes);
                changes.push(name);
            }
            if used <= available {
                break;
            }
        }
        let needs = format!(
            "the run needs about {}, but {} is available",
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

/// Sizes of the trained parameters of both networks.
struct Trained {
    student: Vec<u64>,
    fake: Vec<u64>,
}

impl Trained {
    fn elements(&self) -> u64 {
        sum(&self.student) + sum(&self.fake)
    }

    /// The largest sum of `bytes` over the parameters of any rank.
    fn most_of_a_rank(&self, ranks: usize, bytes: impl Fn(u64) -> u64) -> u64 {
        let [student, fake] = [&self.student, &self.fake].map(|sizes| {
            let numbered = sizes.iter().map(|&size| size as usize).zip(0..);
            spread(numbered.collect::<Vec<(usize, usize)>>(), ranks)
        });
        let of = |share: &[(usize, usize)]| -> u64 {
            share.iter().map(|&(size, _)| bytes(size as u64)).sum()
        };
        let ranks = student.iter().zip(&fake);
        let bytes = ranks.map(|(student, fake)| of(student) + of(fake));
        bytes.max().unwrap_or(0)
    }
}

/// Elements of the largest layer that is recomputed at a time: a residual block with its attention.
fn largest_layer(parameters: &[Parameter]) -> u64 {
    let mut layers = BTreeMap::new();
    for parameter in parameters {
        *layers.entry(layer(&parameter.name)).or_insert(0) += size(parameter);
    }
    layers.into_values().max().unwrap_or(0)
}

/// Block and index of the layer of a parameter, such as `up_blocks.1` and `0`.
fn layer(name: &str) -> (&str, &str) {
    let parts = [".resnets.", ".attentions."].map(|kind| name.split_once(kind));
    match parts.into_iter().flatten().next() {
        Some((block, rest)) => (block, rest.split('.').next().unwrap_or(rest)),
        None => (name.rsplit_once('.').map_or(name, |(module, _)| module), ""),
    }
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

/// The networks of the rewards that a recipe has.
fn of_recipe<'a>(
    recipe: &'a Recipe,
    networks: &'a Networks,
) -> impl Iterator<Item = &'a RewardNetworks> {
    let models = recipe.rewards.keys();
    models.filter_map(|model| networks.rewards.get(model))
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
    let clip = networks.clip.iter().filter(|_| recipe.clip.is_some());
    let rewards = of_recipe(recipe, networks).map(|found| &found.networks);
    for networks in clip.chain(rewards) {
        let decoder = Activations::of_decoder(&parameters(&networks.decoder), [height, width]);
        let tower = Activations::of_tower(&parameters(&networks.clip));
        of_student = match recipe.checkpointing {
            // One after the other; the student's layers run again after them.
            true => of_student.max(decoder.kept(true)).max(tower.kept(true)),
            false => of_student + decoder.kept(false) + tower.kept(false),
        };
    }
    if let Some(lpips) = networks.lpips.as_ref().filter(|_| recipe.uses_lpips()) {
        let decoder = Activations::of_decoder(&parameters(&lpips.decoder), [height, width]);
        let vgg16 = Activations::of_vgg16(&parameters(&lpips.lpips), [height, width]);
        // A graph of both, beside that of the student unless its layers run again.
        let of_lpips = decoder.kept(false) + vgg16.kept(false);
        let beside = if recipe.checkpointing {
            0
        } else {
            of(student, recipe.student_lora.is_some())
        };
        of_student = of_student.max(of_lpips + beside);
    }
    let elements = of_student.max(of(teacher, true));
    let dtype = burn::tensor::DType::from(recipe.precision.dtype());
    elements * recipe.batch as u64 * dtype.size() as u64
}
