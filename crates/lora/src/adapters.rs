use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor, TensorData};
use serde_json::{Map, Value, json};
use swiftbrush_checkpoint::{Archive, LazyTensor, ModulePath, named_tensors, write_tensors};

use crate::Error;

/// The two factors of one layer's update, on the host in f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// B, `[outputs, rank]`.
    pub up: TensorData,
    /// A, `[rank, inputs]`.
    pub down: TensorData,
    /// α; the update is multiplied by α/rank.
    pub alpha: f64,
}

impl Adapter {
    /// Rank of the update.
    pub fn rank(&self) -> usize {
        self.down.shape()[0]
    }

    /// α/rank.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank() as f64
    }
}

/// How the tensors of a file are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout<'a> {
    /// `adapter_model.safetensors` of PEFT, `base_model.model.<module>.lora_A.weight`.
    Peft,
    /// `pytorch_lora_weights.safetensors` of diffusers, `<component>.<module>.lora_A.weight`, with the
    /// configuration in the header.
    Diffusers {
        /// `unet` or `text_encoder`.
        component: &'a str,
    },
}

impl Layout<'_> {
    fn prefix(&self) -> String {
        match self {
            Self::Peft => "base_model.model.".to_owned(),
            Self::Diffusers { component } => format!("{component}."),
        }
    }
}

/// Where burn keeps the factors of an adapter, after the path of the module.
const UP: &str = ".weight.lora.a";
const DOWN: &str = ".weight.lora.b";
/// Key of diffusers' configuration in a file's header.
const DIFFUSERS_METADATA: &str = "lora_adapter_metadata";
/// PEFT's configuration, which lies in a file beside its tensors.
const PEFT_CONFIG: &str = "adapter_config.json";

/// The adapters of a model, by the paths of the modules that they belong to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Adapters(BTreeMap<String, Adapter>);

impl Adapters {
    /// The adapters that are attached to a module, with the α that they were attached with.
    pub fn from_module<M: Module>(module: &M, alpha: f64) -> Self {
        let mut factors = named_tensors(module);
        let ups: Vec<_> = factors
            .keys()
            .filter_map(|name| name.strip_suffix(UP))
            .map(str::to_owned)
            .collect();
        let adapters = ups.into_iter().filter_map(|module| {
            let mut take = |suffix| {
                Some(
                    factors
                        .remove(&format!("{module}{suffix}"))?
                        .convert_dtype(DType::F32),
                )
            };
            let (up, down) = (take(UP)?, take(DOWN)?);
            Some((module, Adapter { up, down, alpha }))
        });
        Self(adapters.collect())
    }

    /// Outputs and inputs of every linear layer of a module, by its path.
    pub(crate) fn linear_layers<M: Module>(module: &M) -> BTreeMap<String, [usize; 2]> {
        struct Layers(ModulePath, BTreeMap<String, [usize; 2]>);
        impl ModuleVisitor for Layers {
            fn enter_module(&mut self, name: &str, container: &str) {
                self.0.enter(name, container);
            }
            fn exit_module(&mut self, _name: &str, container: &str) {
                self.0.exit(container);
            }
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if let ([outputs, inputs], Some(module)) = (
                    param.lazy_shape().to_vec().as_slice(),
                    self.0.name().strip_suffix(".weight"),
                ) {
                    self.1.insert(module.to_owned(), [*outputs, *inputs]);
                }
            }
        }
        let mut layers = Layers(ModulePath::default(), BTreeMap::new());
        module.visit(&mut layers);
        layers.1
    }

    /// The adapter of a module.
    pub fn get(&self, module: &str) -> Option<&Adapter> {
        self.0.get(module)
    }

    /// The paths of the adapted modules, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Reads a file of PEFT or diffusers; which one is seen from its names.
    ///
    /// α comes from the header (diffusers) or from `adapter_config.json` beside the file (PEFT); where
    /// neither says, it is the rank.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or holds anything but pairs of factors for linear layers.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let archive = Archive::open(path)?;
        let mut pairs: BTreeMap<String, [Option<TensorData>; 2]> = BTreeMap::new();
        let mut unknown = Vec::new();
        let mut component = None;
        for name in archive.names() {
            let Some((prefix, module, factor)) = split_name(&name) else {
                unknown.push(name.clone());
                continue;
            };
            component = component.or(prefix.map(str::to_owned));
            let data = archive.read(&name)?.convert_dtype(DType::F32);
            pairs.entry(module.to_owned()).or_default()[factor] = Some(data);
        }
        if !unknown.is_empty() {
            return Err(Error::UnknownNames {
                path: path.to_owned(),
                names: unknown,
            });
        }
        let alpha = read_alpha(&archive, path, component.as_deref())?;
        let adapters = pairs.into_iter().map(|(module, [down, up])| {
            let bad = |found: String| Error::BadPair {
                path: path.to_owned(),
                module: module.clone(),
                found,
            };
            let (Some(down), Some(up)) = (down, up) else {
                return Err(bad("one factor is missing".to_owned()));
            };
            match (
                down.shape().to_vec().as_slice(),
                up.shape().to_vec().as_slice(),
            ) {
                ([rank, _], [_, again]) if rank == again && *rank > 0 => {
                    let alpha = alpha.unwrap_or(*rank as f64);
                    Ok((module, Adapter { up, down, alpha }))
                }
                (down, up) => Err(bad(format!("{down:?} and {up:?}"))),
            }
        });
        Ok(Self(adapters.collect::<Result<_, _>>()?))
    }

    /// Writes the adapters in a layout, atomically; for PEFT also `adapter_config.json` beside the file.
    ///
    /// # Errors
    ///
    /// If the files cannot be written.
    pub fn save(&self, path: &Path, layout: Layout<'_>) -> Result<(), Error> {
        let prefix = layout.prefix();
        let tensors = self.0.iter().flat_map(|(module, adapter)| {
            let tensor = |factor: &str, data: &TensorData| {
                LazyTensor::ready(format!("{prefix}{module}.{factor}.weight"), data.clone())
            };
            [
                tensor("lora_A", &adapter.down),
                tensor("lora_B", &adapter.up),
            ]
        });
        let mut metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let first = self.0.values().next();
        let (rank, alpha) = first.map_or((0, 0.0), |adapter| (adapter.rank(), adapter.alpha));
        let targets: Vec<_> = self.names().collect();
        match layout {
            Layout::Diffusers { component } => {
                let config = json!({
                    format!("{component}.r"): rank,
                    format!("{component}.lora_alpha"): number(alpha),
                    format!("{component}.target_modules"): targets,
                });
                metadata.insert(DIFFUSERS_METADATA.to_owned(), config.to_string());
            }
            Layout::Peft => {
                let config = json!({
                    "peft_type": "LORA", "r": rank, "lora_alpha": number(alpha),
                    "target_modules": targets, "lora_dropout": 0.0, "bias": "none",
                    "init_lora_weights": true, "inference_mode": true,
                });
                swiftbrush_checkpoint::write_json(&path.with_file_name(PEFT_CONFIG), &config)?;
            }
        }
        Ok(write_tensors(path, tensors.collect(), metadata)?)
    }
}

/// Whole numbers as such: PEFT's own files hold them so.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 {
        json!(value as i64)
    } else {
        json!(value)
    }
}

/// Component (none for PEFT), module and factor (0 for A, 1 for B) of a tensor's name.
fn split_name(name: &str) -> Option<(Option<&str>, &str, usize)> {
    let (rest, factor) = match (
        name.strip_suffix(".lora_A.weight"),
        name.strip_suffix(".lora_B.weight"),
    ) {
        (Some(rest), _) => (rest, 0),
        (_, Some(rest)) => (rest, 1),
        _ => return None,
    };
    if let Some(module) = rest.strip_prefix("base_model.model.") {
        return Some((None, module, factor));
    }
    ["unet", "text_encoder"].into_iter().find_map(|component| {
        let module = rest.strip_prefix(component)?.strip_prefix('.')?;
        Some((Some(component), module, factor))
    })
}

fn read_alpha(
    archive: &Archive,
    path: &Path,
    component: Option<&str>,
) -> Result<Option<f64>, Error> {
    let Some(component) = component else {
        let path = path.with_file_name(PEFT_CONFIG);
        if !path.is_file() {
            return Ok(None);
        }
        let config: Map<String, Value> = swiftbrush_checkpoint::read_json(&path)?;
        return Ok(config.get("lora_alpha").and_then(Value::as_f64));
    };
    let metadata = archive.metadata();
    let config: Option<Map<String, Value>> = metadata
        .get(DIFFUSERS_METADATA)
        .and_then(|text| serde_json::from_str(text).ok());
    Ok(config.and_then(|config| config.get(&format!("{component}.lora_alpha"))?.as_f64()))
}
