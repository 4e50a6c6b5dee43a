use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::tensor::{DType, TensorData};
use regex::Regex;
use serde_json::{Map, Value, json};
use swiftbrush_checkpoint::{LazyTensor, Weights, read_json, write_json, write_tensors};

use crate::names::{Component, Layout, Name, format, other_kind, parse};
use crate::{Adapter, Adapters, Error};

/// Key of diffusers' configuration in a file's header.
const DIFFUSERS_METADATA: &str = "lora_adapter_metadata";
/// PEFT's configuration, which lies in a file beside its tensors.
const PEFT_CONFIG: &str = "adapter_config.json";

/// What a file of adapters holds, whatever its layout.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdapterFile {
    /// Adapters of the denoiser.
    pub unet: Adapters,
    /// Adapters of the text encoder.
    pub text_encoder: Adapters,
}

impl AdapterFile {
    /// Reads a file in any [`Layout`]; which it is, its names say.
    ///
    /// α comes from the file where it has tensors for it, else from the header (diffusers) or from
    /// `adapter_config.json` beside it (PEFT), module by module; where nobody says, it is the rank. rsLoRA's α, which
    /// is divided by √rank, is converted to one that is divided by the rank.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or holds anything but pairs of factors: all names that are not understood are in
    /// the error, and adapters of other kinds (DoRA, LoHa, LoKr) are named as such.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let weights = Weights::open(path)?;
        let mut parts: BTreeMap<(Component, String), [Option<TensorData>; 3]> = BTreeMap::new();
        let mut unknown = Vec::new();
        for name in weights.names() {
            if let Some(kind) = other_kind(name) {
                return Err(Error::OtherKind {
                    path: path.to_owned(),
                    kind,
                    name: name.to_owned(),
                });
            }
            let Some(Name {
                component,
                module,
                role,
            }) = parse(name)
            else {
                unknown.push(name.to_owned());
                continue;
            };
            let data = weights.read(name)?.convert_dtype(DType::F32);
            let bad = |found: &str| Error::BadPair {
                path: path.to_owned(),
                module: module.clone(),
                found: found.to_owned(),
            };
            let parts = parts.entry((component, module.clone())).or_default();
            if parts[role as usize].replace(data).is_some() {
                return Err(bad(&format!("{name} is there twice, in two layouts")));
            }
        }
        if !unknown.is_empty() {
            return Err(Error::UnknownNames {
                path: path.to_owned(),
                names: unknown,
            });
        }
        let config = |component| Config::read(&weights, path, component);
        let (unet, text_encoder) = (config(Component::Unet)?, config(Component::TextEncoder)?);
        let mut all: [BTreeMap<String, Adapter>; 2] = Default::default();
        for ((component, module), [down, up, alpha]) in parts {
            let bad = |found: String| Error::BadPair {
                path: path.to_owned(),
                module: module.clone(),
                found,
            };
            let (Some(down), Some(up)) = (down, up) else {
                return Err(bad("one factor is missing".to_owned()));
            };
            let rank = down.shape().to_vec().first().copied().unwrap_or_default();
            let config = match component {
                Component::Unet => &unet,
                Component::TextEncoder => &text_encoder,
            };
            let alpha = match alpha {
                Some(alpha) => alpha.iter::<f64>().next().unwrap_or(f64::NAN),
                None => config.alpha(&module, rank),
            };
            let adapter = Adapter { up, down, alpha };
            adapter.check().map_err(bad)?;
            all[component as usize].insert(module, adapter);
        }
        let [unet, text_encoder] = all.map(|adapters| adapters.into_iter().collect());
        Ok(Self { unet, text_encoder })
    }

    /// Writes the adapters in a layout, atomically; for PEFT also `adapter_config.json` beside the file. Layouts without
    /// α have it multiplied into B.
    ///
    /// # Errors
    ///
    /// If the files cannot be written, or the layout has no name for some modules: all are in the error.
    pub fn save(&self, path: &Path, layout: Layout) -> Result<(), Error> {
        let networks = [
            (Component::Unet, &self.unet),
            (Component::TextEncoder, &self.text_encoder),
        ];
        if layout == Layout::Peft && networks.iter().all(|(_, adapters)| !adapters.is_empty()) {
            return Err(Error::TwoNetworks(path.to_owned()));
        }
        let (mut tensors, mut unnamed) = (Vec::new(), Vec::new());
        for (component, adapters) in networks {
            for (module, adapter) in adapters.iter() {
                let Some([down, up, alpha]) = format(layout, component, module) else {
                    unnamed.push(module.to_owned());
                    continue;
                };
                let has_alpha = match layout {
                    Layout::DiffusersLora | Layout::DiffusersProcessor => false,
                    Layout::Peft | Layout::Diffusers | Layout::Kohya | Layout::KohyaLdm => true,
                };
                let factor = match has_alpha {
                    true => adapter.up.clone(),
                    false => scaled(&adapter.up, adapter.scale()),
                };
                let alpha_data = TensorData::new(vec![adapter.alpha as f32], Vec::<usize>::new());
                let named = [
                    (down, adapter.down.clone()),
                    (up, factor),
                    (alpha, alpha_data),
                ];
                let named = named
                    .into_iter()
                    .filter_map(|(name, data)| Some(LazyTensor::ready(name?, data)));
                tensors.extend(named);
            }
        }
        if !unnamed.is_empty() {
            return Err(Error::NoName {
                layout,
                modules: unnamed,
            });
        }
        let mut metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        match layout {
            Layout::Diffusers => {
                let mut config = Map::new();
                for (component, adapters) in networks {
                    let of = Config::of(adapters).to_json(adapters);
                    let named = of
                        .into_iter()
                        .map(|(key, value)| (format!("{}.{key}", component.name()), value));
                    config.extend(named.filter(|_| !adapters.is_empty()));
                }
                metadata.insert(
                    DIFFUSERS_METADATA.to_owned(),
                    Value::Object(config).to_string(),
                );
            }
            Layout::Peft => {
                let (_, adapters) = networks
                    .into_iter()
                    .find(|(_, adapters)| !adapters.is_empty())
                    .unwrap_or(networks[0]);
                let mut config = Config::of(adapters).to_json(adapters);
                for (key, value) in [
                    ("peft_type", json!("LORA")),
                    ("lora_dropout", json!(0.0)),
                    ("bias", json!("none")),
                    ("init_lora_weights", json!(true)),
                    ("inference_mode", json!(true)),
                ] {
                    config.insert(key.to_owned(), value);
                }
                write_json(&path.with_file_name(PEFT_CONFIG), &config)?;
            }
            _ => {}
        }
        Ok(write_tensors(path, tensors, metadata)?)
    }
}

fn scaled(data: &TensorData, scale: f64) -> TensorData {
    let values: Vec<f32> = data.iter::<f32>().collect();
    let values = values.into_iter().map(|x| (f64::from(x) * scale) as f32);
    TensorData::new(values.collect::<Vec<_>>(), data.shape().to_vec())
}

/// What PEFT's configuration says of α.
#[derive(Debug, Default)]
struct Config {
    alpha: Option<f64>,
    rank: Option<usize>,
    alpha_pattern: Vec<(Regex, f64)>,
    is_rank_stabilized: bool,
}

impl Config {
    fn read(weights: &Weights, path: &Path, component: Component) -> Result<Self, Error> {
        let in_header = weights.metadata().get(DIFFUSERS_METADATA);
        let beside = path.with_file_name(PEFT_CONFIG);
        let (config, prefix): (Map<String, Value>, _) = match in_header {
            Some(text) => {
                let config = serde_json::from_str(text).map_err(|error| Error::BadConfig {
                    path: path.to_owned(),
                    reason: format!("{DIFFUSERS_METADATA} in its header: {error}"),
                })?;
                (config, format!("{}.", component.name()))
            }
            None if beside.is_file() => (read_json(&beside)?, String::new()),
            None => return Ok(Self::default()),
        };
        let bad = |reason: String| Error::BadConfig {
            path: path.to_owned(),
            reason,
        };
        let get = |key: &str| config.get(&format!("{prefix}{key}"));
        let is = |key: &str| get(key).and_then(Value::as_bool).unwrap_or_default();
        if is("use_dora") {
            return Err(bad("use_dora = true is not supported".to_owned()));
        }
        let patterns = get("alpha_pattern").and_then(Value::as_object);
        let alpha_pattern = patterns.into_iter().flatten().map(|(pattern, alpha)| {
            // As PEFT matches: the end of a path, after a dot.
            let regex = Regex::new(&format!(r"^(.*\.)?({pattern})$"));
            match (regex, alpha.as_f64()) {
                (Ok(regex), Some(alpha)) => Ok((regex, alpha)),
                _ => Err(bad(format!("alpha_pattern {pattern:?} = {alpha}"))),
            }
        });
        Ok(Self {
            alpha: get("lora_alpha").and_then(Value::as_f64),
            rank: None,
            alpha_pattern: alpha_pattern.collect::<Result<_, _>>()?,
            is_rank_stabilized: is("use_rslora"),
        })
    }

    fn alpha(&self, module: &str, rank: usize) -> f64 {
        let of_module = self.alpha_pattern.iter();
        let of_module = of_module.filter(|(pattern, _)| pattern.is_match(module));
        let alpha = of_module.map(|(_, alpha)| *alpha).next().or(self.alpha);
        match alpha {
            None => rank as f64,
            Some(alpha) if self.is_rank_stabilized => alpha * (rank as f64).sqrt(),
            Some(alpha) => alpha,
        }
    }

    /// The most frequent rank and α, from which others differ.
    fn of(adapters: &Adapters) -> Self {
        let mut counts: Vec<((usize, f64), usize)> = Vec::new();
        for (_, adapter) in adapters.iter() {
            let key = (adapter.rank(), adapter.alpha);
            match counts.iter_mut().find(|(found, _)| *found == key) {
                Some((_, count)) => *count += 1,
                None => counts.push((key, 1)),
            }
        }
        let usual = counts.into_iter().max_by_key(|(_, count)| *count);
        let (rank, alpha) = usual.map_or((0, 0.0), |(key, _)| key);
        Self {
            alpha: Some(alpha),
            rank: Some(rank),
            ..Self::default()
        }
    }

    fn to_json(&self, adapters: &Adapters) -> Map<String, Value> {
        let (rank, alpha) = (
            self.rank.unwrap_or_default(),
            self.alpha.unwrap_or_default(),
        );
        let others = |differs: &dyn Fn(&Adapter) -> Option<Value>| -> Value {
            let differing = adapters.iter().filter_map(|(module, adapter)| {
                Some((target(module).to_owned(), differs(adapter)?))
            });
            Value::Object(differing.collect())
        };
        let targets: Vec<_> = adapters.names().map(target).collect();
        let config = json!({
            "r": rank,
            "lora_alpha": number(alpha),
            "target_modules": targets,
            "rank_pattern": others(&|adapter| (adapter.rank() != rank).then(|| json!(adapter.rank()))),
            "alpha_pattern": others(&|adapter| (adapter.alpha != alpha).then(|| number(adapter.alpha))),
        });
        match config {
            Value::Object(config) => config,
            _ => unreachable!("it was written as an object"),
        }
    }
}

/// A module as PEFT is to look for it: by the end of its path, for the text encoder's begins otherwise in transformers 5.
fn target(module: &str) -> &str {
    module.strip_prefix("text_model.").unwrap_or(module)
}

/// Whole numbers as such: PEFT's own files hold them so.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 {
        json!(value as i64)
    } else {
        json!(value)
    }
}
