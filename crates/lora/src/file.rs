use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use serde_json::{Map, Value, json};
use swiftbrush_checkpoint::{LazyTensor, Weights, read_json, write_json, write_tensors};

use crate::config::{Config, to_json};
use crate::family::{other_family, whole_network};
use crate::names::{Component, Layout, Name, Role, format, is_peft, other_kind, parse};
use crate::{Adapter, Adapters, Error};

/// The key of diffusers' configuration in a file's header.
const DIFFUSERS_METADATA: &str = "lora_adapter_metadata";
/// PEFT's configuration, stored next to its tensors.
const PEFT_CONFIG: &str = "adapter_config.json";
/// Header entries that are written by a layout itself, or are outdated hashes of the tensors.
const OWN_METADATA: [&str; 5] = [
    "format",
    DIFFUSERS_METADATA,
    "sshs_model_hash",
    "sshs_legacy_hash",
    "modelspec.hash_sha256",
];

/// The contents of an adapter file, independent of its layout.
///
/// # Examples
///
/// ```
/// # use burn::tensor::TensorData;
/// use swiftbrush_lora::{Adapter, AdapterFile, Adapters, Layout};
///
/// # fn main() -> Result<(), swiftbrush_lora::Error> {
/// let adapter = Adapter {
///     up: TensorData::from([[1.0f32], [2.0]]),
///     down: TensorData::from([[0.5f32, 0.25]]),
///     alpha: 1.0,
/// };
/// let unet: Adapters = [("mid_block.attentions.0.proj_in".to_owned(), adapter)].into_iter().collect();
/// let file = AdapterFile::new(unet, Adapters::default());
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("style.safetensors");
/// file.save(&path, Layout::Kohya)?;
/// assert_eq!(AdapterFile::open(&path)?, file);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct AdapterFile {
    /// Adapters of the denoiser.
    pub unet: Adapters,
    /// Adapters of the text encoder.
    pub text_encoder: Adapters,
    /// Free-form strings of the header, such as kohya's `ss_*`, without those written by the layout itself.
    pub metadata: BTreeMap<String, String>,
    /// Messages about the file for the user.
    pub notes: Vec<String>,
}

impl AdapterFile {
    /// Creates a file from the adapters of a denoiser and a text encoder, either of which may be empty.
    pub fn new(unet: Adapters, text_encoder: Adapters) -> Self {
        Self {
            unet,
            text_encoder,
            ..Self::default()
        }
    }

    /// Reads a file in any [`Layout`], detected by its tensor names, or the adapter file in a folder of PEFT or diffusers.
    ///
    /// α is taken, module by module, from the file's own tensors, else from the header (diffusers) or, for files with PEFT's
    /// names, from `adapter_config.json` next to them; otherwise it is the rank. rsLoRA's α, which is divided by √rank, is
    /// converted to one that is divided by the rank. Factors keep their element type; 8-bit floats are widened to f16.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, is empty, contains anything but pairs of factors, belongs to another family of models
    /// or to a whole network, or has adapters of another kind (DoRA, LoHa, LoKr). Also if a configuration sets options
    /// that are unsupported or contradict the factors.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = file_of(path.as_ref())?;
        let weights = Weights::open(&path)?;
        check_names(&weights)?;
        let parts = Parts::read(&weights)?;
        let adapters = |component| parts.adapters(component, &config(&weights, component)?);
        let (unet, text_encoder) = (
            adapters(Component::Unet)?,
            adapters(Component::TextEncoder)?,
        );
        let mut metadata = weights.metadata().clone();
        metadata.retain(|key, _| !OWN_METADATA.contains(&key.as_str()));
        Ok(Self {
            unet,
            text_encoder,
            metadata,
            notes: weights.notes(),
        })
    }

    /// Writes the adapters in a layout, atomically; for PEFT also `adapter_config.json` next to the file. For layouts
    /// without α, it is multiplied into B, which is then stored in f32. [`metadata`](Self::metadata) goes into the header.
    ///
    /// # Errors
    ///
    /// If there are no adapters, the layout cannot name some modules, the files cannot be written, or PEFT's
    /// configuration of other adapters would be overwritten.
    pub fn save(&self, path: impl AsRef<Path>, layout: Layout) -> Result<(), Error> {
        let path = path.as_ref();
        let tensors = self.tensors(path, layout)?;
        let mut metadata: HashMap<_, _> = self.metadata.clone().into_iter().collect();
        metadata.insert("format".to_owned(), "pt".to_owned());
        match layout {
            Layout::Diffusers => {
                let config = Value::Object(self.header()).to_string();
                metadata.insert(DIFFUSERS_METADATA.to_owned(), config);
            }
            Layout::Peft => self.write_config(path)?,
            _ => {}
        }
        Ok(write_tensors(path, tensors, metadata)?)
    }

    fn networks(&self) -> [(Component, &Adapters); 2] {
        [
            (Component::Unet, &self.unet),
            (Component::TextEncoder, &self.text_encoder),
        ]
    }

    fn tensors(&self, path: &Path, layout: Layout) -> Result<Vec<LazyTensor<'static>>, Error> {
        let filled = self.networks().map(|(_, adapters)| !adapters.is_empty());
        match filled {
            [false, false] => return Err(Error::Empty(path.to_owned())),
            [true, true] if layout == Layout::Peft => {
                return Err(Error::TwoNetworks(path.to_owned()));
            }
            _ => {}
        }
        let (mut tensors, mut unnamed) = (Vec::new(), Vec::new());
        for (component, adapters) in self.networks() {
            for (module, adapter) in adapters.iter() {
                match format(layout, component, module) {
                    None => unnamed.push(module.to_owned()),
                    Some(names) => {
                        let factors = factors(adapter, names, layout);
                        tensors.extend(factors.map_err(|found| Error::BadPair {
                            path: path.to_owned(),
                            module: module.to_owned(),
                            found,
                        })?);
                    }
                }
            }
        }
        match unnamed.is_empty() {
            true => Ok(tensors),
            false => Err(Error::NoName {
                layout,
                modules: unnamed,
            }),
        }
    }

    /// diffusers' configuration, with the options of both networks in one object.
    fn header(&self) -> Map<String, Value> {
        let networks = self.networks().into_iter();
        let networks = networks.filter(|(_, adapters)| !adapters.is_empty());
        let options = networks.flat_map(|(component, adapters)| {
            let options = to_json(adapters).into_iter();
            options.map(move |(key, value)| (format!("{}.{key}", component.name()), value))
        });
        options.collect()
    }

    fn write_config(&self, path: &Path) -> Result<(), Error> {
        let adapters = match self.unet.is_empty() {
            true => &self.text_encoder,
            false => &self.unet,
        };
        let mut config = to_json(adapters);
        for (key, value) in [
            ("peft_type", json!("LORA")),
            ("lora_dropout", json!(0.0)),
            ("bias", json!("none")),
            ("init_lora_weights", json!(true)),
            ("inference_mode", json!(true)),
        ] {
            config.insert(key.to_owned(), value);
        }
        let beside = path.with_file_name(PEFT_CONFIG);
        // The configuration next to a PEFT file belongs to it.
        let is_own = Weights::open(path).is_ok_and(|weights| weights.names().any(is_peft));
        if beside.exists() && !is_own {
            let existing = read_json::<Map<String, Value>>(&beside);
            if !existing.is_ok_and(|existing| existing == config) {
                return Err(Error::ConfigExists(beside));
            }
        }
        Ok(write_json(&beside, &config)?)
    }
}

/// The file itself, or the adapter file in a folder of PEFT or diffusers.
fn file_of(path: &Path) -> Result<PathBuf, Error> {
    const FILES: [[&str; 2]; 2] = [
        ["adapter_model.safetensors", "adapter_model.bin"],
        [
            "pytorch_lora_weights.safetensors",
            "pytorch_lora_weights.bin",
        ],
    ];
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    // Both libraries prefer safetensors.
    let found = FILES.iter().filter_map(|names| {
        let paths = names.iter().map(|name| path.join(name));
        paths.into_iter().find(|path| path.is_file())
    });
    let mut found: Vec<_> = found.collect();
    match (found.pop(), found.pop()) {
        (Some(file), None) => Ok(file),
        (None, _) => Err(Error::Folder {
            folder: path.to_owned(),
            reason: format!(
                "has no {} or {}; pass the path of the adapter file",
                FILES[0][0], FILES[1][0]
            ),
        }),
        _ => Err(Error::Folder {
            folder: path.to_owned(),
            reason: "has adapters of PEFT and of diffusers; name one file".to_owned(),
        }),
    }
}

/// Rejects files that are not adapters for Stable Diffusion 1.x or 2.x.
fn check_names(weights: &Weights) -> Result<(), Error> {
    let path = weights.path().to_owned();
    if weights.is_empty() {
        return Err(Error::Empty(path));
    }
    let first = |kind: fn(&str) -> Option<&'static str>| {
        let mut names = weights.names();
        names.find_map(|name| Some((kind(name)?, name.to_owned())))
    };
    if let Some((family, name)) = first(other_family) {
        return Err(Error::OtherFamily { path, family, name });
    }
    if let Some((kind, name)) = first(other_kind) {
        return Err(Error::OtherKind { path, kind, name });
    }
    let unknown = weights.names().filter(|name| parse(name).is_none());
    let unknown: Vec<_> = unknown.map(str::to_owned).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    match first(whole_network) {
        Some((kind, name)) if unknown.len() == weights.len() => {
            Err(Error::WholeNetwork { path, kind, name })
        }
        _ => Err(Error::UnknownNames {
            path,
            names: unknown,
        }),
    }
}

/// The configuration of a network's adapters.
fn config(weights: &Weights, component: Component) -> Result<Config, Error> {
    let bad = |path: &Path, reason| Error::BadConfig {
        path: path.to_owned(),
        reason,
    };
    if let Some(text) = weights.metadata().get(DIFFUSERS_METADATA) {
        let config = Config::parse(text, &format!("{}.", component.name()));
        return config.map_err(|reason| {
            let reason = format!("{DIFFUSERS_METADATA} in its header: {reason}");
            bad(weights.path(), reason)
        });
    }
    if !weights.names().any(is_peft) {
        return Ok(Config::default());
    }
    let beside = weights.path().with_file_name(PEFT_CONFIG);
    if !beside.is_file() {
        let reason = format!("PEFT stores α in {PEFT_CONFIG}, which is missing in this folder");
        return Err(bad(weights.path(), reason));
    }
    let text = std::fs::read_to_string(&beside)
        .map_err(|error| swiftbrush_checkpoint::Error::read(&beside, error))?;
    Config::parse(&text, "").map_err(|reason| bad(&beside, reason))
}

/// The tensors of each adapter: both factors and α.
struct Parts {
    path: PathBuf,
    tensors: BTreeMap<(Component, String), [Option<TensorData>; 3]>,
}

impl Parts {
    fn read(weights: &Weights) -> Result<Self, Error> {
        let path = weights.path().to_owned();
        let mut tensors = BTreeMap::<_, [Option<TensorData>; 3]>::new();
        for name in weights.names() {
            let Some(Name {
                component,
                module,
                role,
            }) = parse(name)
            else {
                continue;
            };
            let (data, dtype) = (weights.read(name)?, weights.dtype(name)?);
            let is_number =
                dtype.is_float() || role == Role::Alpha && !matches!(dtype, DType::Bool(_));
            if !is_number {
                return Err(Error::NotFloat {
                    path,
                    name: name.to_owned(),
                    found: format!("{dtype:?}"),
                });
            }
            let parts = tensors.entry((component, module.clone())).or_default();
            if parts[role as usize].replace(data).is_some() {
                return Err(Error::BadPair {
                    path,
                    module,
                    found: format!("{name} is present twice, in two layouts"),
                });
            }
        }
        Ok(Self { path, tensors })
    }

    fn adapters(&self, component: Component, config: &Config) -> Result<Adapters, Error> {
        let of_component = self.tensors.iter();
        let of_component = of_component.filter(|((of, _), _)| *of == component);
        let adapters = of_component.map(|((_, module), [down, up, alpha])| {
            let bad = |found: String| Error::BadPair {
                path: self.path.clone(),
                module: module.clone(),
                found,
            };
            let (Some(down), Some(up)) = (down, up) else {
                return Err(bad("one factor is missing".to_owned()));
            };
            let rank = down.shape().to_vec().first().copied().unwrap_or_default();
            let alpha = match alpha {
                Some(alpha) if alpha.num_elements() == 1 => {
                    alpha.iter::<f64>().next().unwrap_or(f64::NAN)
                }
                Some(alpha) => return Err(bad(format!("α of shape {:?}", alpha.shape()))),
                None => config.alpha(module, rank),
            };
            let adapter = Adapter {
                up: up.clone(),
                down: down.clone(),
                alpha,
            };
            adapter.check().map_err(bad)?;
            config
                .check_adapter(module, rank)
                .map_err(|reason| Error::BadConfig {
                    path: self.path.clone(),
                    reason,
                })?;
            Ok((module.clone(), adapter))
        });
        adapters.collect()
    }
}

/// The tensors of an adapter under their names in a layout. It is an error if they contain, or their product with α would
/// be, a NaN or an infinity.
fn factors(
    adapter: &Adapter,
    [down, up, alpha]: [Option<String>; 3],
    layout: Layout,
) -> Result<Vec<LazyTensor<'static>>, String> {
    let up_data = match layout.has_alpha() {
        true => adapter.up.clone(),
        false => scaled(&adapter.up, adapter.scale()),
    };
    let written = Adapter {
        up: up_data,
        down: adapter.down.clone(),
        alpha: f64::from(adapter.alpha as f32),
    };
    written.check()?;
    let alpha_data = TensorData::new(vec![adapter.alpha as f32], Vec::<usize>::new());
    let named = [(down, written.down), (up, written.up), (alpha, alpha_data)];
    let named = named.into_iter();
    Ok(named
        .filter_map(|(name, data)| Some(LazyTensor::ready(name?, data)))
        .collect())
}

fn scaled(data: &TensorData, scale: f64) -> TensorData {
    if scale == 1.0 {
        return data.clone();
    }
    let values = data.iter::<f64>().map(|x| (x * scale) as f32);
    TensorData::new(values.collect::<Vec<_>>(), data.shape().to_vec())
}
