//! Exponential moving average of weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use swiftbrush_checkpoint::{Error, ModulePath, read};
use swiftbrush_kernels::lerp;

use crate::parameters::is_trained;
use crate::scratch::{Scratch, Stored};
use crate::snapshot::Entry;

/// A running average of the trained parameters of a module, in f32. Frozen parameters are not stored.
///
/// The n-th update has the decay `min(n / (9 + n), decay)` and the first has none, as in diffusers'
/// `EMAModel`.
#[derive(Clone, Debug)]
pub struct Ema {
    decay: f64,
    n_updates: u64,
    place: Place,
    averages: BTreeMap<String, Average>,
}

/// The memory that holds averaged weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AverageStorage {
    /// The device's, where updates are fastest.
    #[default]
    Device,
    /// The host's. On a CPU that is the same memory.
    Host,
    /// An unnamed temporary file in the folder of the run, which every update of the student reads and writes in full.
    File,
}

/// The storage of the next update's averages.
#[derive(Clone, Debug)]
enum Place {
    Device,
    Host,
    Folder(PathBuf),
}

impl Place {
    /// A new file for averages, if they are kept in one.
    fn scratch(&self) -> Result<Option<Scratch>, Error> {
        match self {
            Self::Folder(folder) => Scratch::create(folder).map(Some),
            Self::Device | Self::Host => Ok(None),
        }
    }
}

/// The average of a parameter, flattened.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one value per parameter, small beside its elements"
)]
enum Average {
    Device(Tensor<1>),
    Host(Arc<Vec<f32>>),
    File(Stored),
}

impl Ema {
    /// Creates an average that starts at the current weights of a module, in the memory of their device.
    pub fn new<M: Module>(module: &M, decay: f64) -> Self {
        let weights = trained_tensors(module).into_iter();
        Self {
            decay,
            n_updates: 0,
            place: Place::Device,
            averages: weights
                .map(|(name, weight)| (name, Average::Device(weight)))
                .collect(),
        }
    }

    /// Keeps the averages in the memory of the host, from the next update on.
    pub fn on_host(self) -> Self {
        let place = Place::Host;
        Self { place, ..self }
    }

    /// Keeps the averages in an unnamed temporary file in a folder, from the next update on.
    pub fn in_folder(self, folder: impl AsRef<Path>) -> Self {
        let folder = folder.as_ref();
        let place = Place::Folder(folder.to_owned());
        Self { place, ..self }
    }

    /// Moves the average towards the current weights of the module.
    ///
    /// # Errors
    ///
    /// If averages are kept in a file that cannot be written.
    pub fn update<M: Module>(&mut self, module: &M) -> Result<(), Error> {
        self.n_updates += 1;
        let decay = match self.n_updates {
            1 => 0.0,
            n => (n as f64 / (9.0 + n as f64)).min(self.decay),
        };
        let factor = 1.0 - decay;
        let mut scratch = self.place.scratch()?;
        for (name, weight) in trained_tensors(module) {
            let average = self.averages.remove(&name);
            let average = match (&self.place, &mut scratch) {
                (Place::Folder(folder), Some(scratch)) => {
                    let values = on_host(average, weight, factor);
                    Average::File(scratch.append(&values, folder)?)
                }
                (Place::Device, _) => Average::Device(on_device(average, weight, factor)),
                _ => Average::Host(on_host(average, weight, factor)),
            };
            self.averages.insert(name, average);
        }
        Ok(())
    }

    /// Replaces the weights of a module with their averages.
    pub fn apply<M: Module>(&self, module: M) -> M {
        module.map(&mut Replace {
            path: ModulePath::default(),
            averages: &self.averages,
        })
    }

    /// Number of updates.
    pub fn n_updates(&self) -> u64 {
        self.n_updates
    }

    /// The averages as tensors on the host.
    pub fn state(&self) -> BTreeMap<String, TensorData> {
        let entries = self.entries();
        entries.map(|(name, entry)| (name, entry.read())).collect()
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = (String, Entry)> {
        let averages = self.averages.iter();
        averages.map(|(name, average)| (name.clone(), average.into()))
    }

    /// Restores an average from its [`state`](Self::state) and [`n_updates`](Self::n_updates).
    pub fn restore(
        decay: f64,
        n_updates: u64,
        state: BTreeMap<String, TensorData>,
        device: &Device,
    ) -> Self {
        let averages = state.into_iter();
        let averages = averages
            .map(|(name, data)| (name, Average::Device(Tensor::from_data(data, device))))
            .collect();
        Self {
            decay,
            n_updates,
            place: Place::Device,
            averages,
        }
    }

    /// The same averages, moved to where `other` keeps its own.
    ///
    /// # Errors
    ///
    /// If they are kept in a file that cannot be written.
    pub(crate) fn placed_as(self, other: &Self) -> Result<Self, Error> {
        let place = other.place.clone();
        let mut scratch = place.scratch()?;
        let averages = self.averages.into_iter().map(|(name, average)| {
            let average = match (&place, &mut scratch) {
                (Place::Folder(folder), Some(scratch)) => {
                    Average::File(scratch.append(&average.on_host(), folder)?)
                }
                (Place::Host, _) => Average::Host(Arc::new(average.on_host())),
                _ => average,
            };
            Ok((name, average))
        });
        Ok(Self {
            averages: averages.collect::<Result<_, Error>>()?,
            place,
            ..self
        })
    }
}

impl Average {
    fn on_device(&self, device: &Device) -> Tensor<1> {
        let tensor = |values: Vec<f32>| {
            let size = values.len();
            Tensor::from_data(TensorData::new(values, [size]), device)
        };
        match self {
            Self::Device(average) => average.clone(),
            Self::Host(values) => tensor(values.to_vec()),
            Self::File(stored) => tensor(stored.read()),
        }
    }

    fn on_host(self) -> Vec<f32> {
        match self {
            Self::Device(average) => host_values(average),
            Self::Host(values) => Arc::unwrap_or_clone(values),
            Self::File(stored) => stored.read(),
        }
    }
}

impl From<&Average> for Entry {
    fn from(average: &Average) -> Self {
        let data = |values: Vec<f32>| {
            let size = values.len();
            TensorData::new(values, [size])
        };
        match average.clone() {
            Average::Device(average) => (&average).into(),
            Average::Host(values) => {
                Self::new([values.len()], DType::F32, move || data(values.to_vec()))
            }
            Average::File(stored) => {
                Self::new([stored.len()], DType::F32, move || data(stored.read()))
            }
        }
    }
}

/// `average + factor·(weight − average)`; the weight, if there is no average.
fn on_device(average: Option<Average>, weight: Tensor<1>, factor: f64) -> Tensor<1> {
    match average {
        Some(Average::Device(average)) => lerp(average, weight, factor),
        Some(average) => lerp(average.on_device(&weight.device()), weight, factor),
        None => weight,
    }
}

/// The same on the host, with the same bits as the CPU kernel.
fn on_host(average: Option<Average>, weight: Tensor<1>, factor: f64) -> Arc<Vec<f32>> {
    const CHUNK: usize = 16 * 1024;
    let weights = host_values(weight);
    let Some(average) = average else {
        return Arc::new(weights);
    };
    let mut averages = average.on_host();
    let chunks = averages
        .par_chunks_mut(CHUNK)
        .zip(weights.par_chunks(CHUNK));
    chunks.for_each(|(averages, weights)| {
        for (average, weight) in averages.iter_mut().zip(weights) {
            *average += (weight - *average) * factor as f32;
        }
    });
    Arc::new(averages)
}

fn host_values(tensor: Tensor<1>) -> Vec<f32> {
    read(tensor).iter().collect()
}

fn trained_tensors<M: Module>(module: &M) -> BTreeMap<String, Tensor<1>> {
    struct Collect(ModulePath, BTreeMap<String, Tensor<1>>);
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, container: &str) {
            self.0.exit(container);
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let tensor = param.base();
            if is_trained(&tensor) {
                let flat = tensor.inner().cast(FloatDType::F32).reshape([-1]);
                self.1.insert(self.0.name(), flat);
            }
        }
    }
    let mut collect = Collect(ModulePath::default(), BTreeMap::new());
    module.visit(&mut collect);
    collect.1
}

struct Replace<'a> {
    path: ModulePath,
    averages: &'a BTreeMap<String, Average>,
}

impl ModuleMapper for Replace<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(average) = self.averages.get(&self.path.name()) else {
            return param;
        };
        param.map(|tensor| {
            let average = average.on_device(&tensor.device().inner());
            let average = average.reshape(tensor.dims()).cast(tensor.dtype());
            let (is_autodiff, requires_grad) = (tensor.is_autodiff(), tensor.is_require_grad());
            match (is_autodiff, requires_grad) {
                (true, true) => average.autodiff().require_grad(),
                (true, false) => average.autodiff(),
                (false, _) => average,
            }
        })
    }
}
