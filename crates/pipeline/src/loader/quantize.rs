//! Model folders with weights in int8.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::Path;

use burn::module::Module;
use burn::tensor::DType;
use serde_json::{Value, json};
use swiftbrush_checkpoint::{
    Error as FileError, int8_config, is_int8_file, save, save_int8, sha256, write_atomically,
    write_json,
};
use swiftbrush_clip::TextEncoder;
use swiftbrush_kernels::Int8Weight;
use swiftbrush_scheduler::SchedulerConfig;
use swiftbrush_vae::{AutoencoderKl, AutoencoderTiny, AutoencoderTinyConfig};

use super::Loader;
use super::scheduler::SCHEDULER;
use crate::Error;

/// Name of the weights of diffusers' networks.
const DIFFUSERS: &str = "diffusion_pytorch_model.safetensors";
/// Files of a tokenizer; not every tokenizer has all of them.
const TOKENIZER: [&str; 6] = [
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
];

impl Loader {
    /// Writes the model as a folder in diffusers' layout, with the denoiser and the text encoder in int8; see
    /// [`Int8Weight`]. The embeddings of the text encoder and the autoencoder are in int8 only in their files. The adapters of the
    /// loader are merged first. The scheduler is the one that the weights need, which a replaced denoiser may bring along; the
    /// tokenizer is copied, and so is the tiny autoencoder if there is one. Loading the folder needs no option.
    ///
    /// The headers of the files in int8 record the layout of the weights, the hashes of their source files, and the
    /// strengths of adapters, under `quantization`, `source` and `adapters`.
    ///
    /// # Errors
    ///
    /// Same as [`check`](Self::check), or if the model is a single file or already in int8, or `folder` is not empty or
    /// cannot be written.
    pub fn quantize(&self, folder: impl AsRef<Path>) -> Result<(), Error> {
        let (folder, mut loader) = (folder.as_ref(), self.clone());
        loader.options.int8 = true;
        loader.check()?;
        loader.check_quantizable(folder)?;
        let denoiser = &self.options.denoiser;
        let unet = folder.join("unet");
        let network = loader.unet()?;
        loader.write_int8(&network, denoiser, &unet.join(DIFFUSERS), |_, _| false)?;
        drop(network);
        let encoder = folder.join("text_encoder").join("model.safetensors");
        let network = loader.text_encoder()?;
        loader.write_int8(
            &network,
            "text_encoder",
            &encoder,
            TextEncoder::is_int8_stored,
        )?;
        drop(network);
        if self.model.has("vae") {
            let vae = folder.join("vae").join(DIFFUSERS);
            let network = AutoencoderKl::from_model(&self.model, "vae", None, &self.device)?;
            loader.write_int8(&network, "vae", &vae, AutoencoderKl::is_int8_stored)?;
        }
        self.write_scheduler(&folder.join(SCHEDULER))?;
        self.write_tiny(&folder.join("taesd"))?;
        for file in TOKENIZER.map(|name| format!("tokenizer/{name}")) {
            let source = self.model.path(&file);
            if let Some(source) = source.filter(|source| self.model.is_file(source)) {
                copy(&source, &folder.join(file))?;
            }
        }
        let index = self.model.root().join("model_index.json");
        match index.is_file() {
            true => copy(&index, &folder.join("model_index.json")),
            false => Ok(()),
        }
    }

    fn check_quantizable(&self, folder: &Path) -> Result<(), Error> {
        if !self.model.is_in_file_system() {
            let reason = "its files are not on the file system, from which components are copied";
            return Err(self.contradiction(reason.to_owned()));
        }
        if self.model.single_file().is_some() {
            let reason = "a single file; only folders in diffusers' layout can be quantised";
            return Err(self.contradiction(reason.to_owned()));
        }
        for component in [self.options.denoiser.as_str(), "text_encoder", "vae"] {
            if self.is_stored_in_int8(component)? {
                return Err(self.contradiction(format!("its {component} is in int8 already")));
            }
        }
        match fs::read_dir(folder).map(|mut entries| entries.next().is_some()) {
            Ok(true) => Err(Error::Model {
                path: folder.to_owned(),
                reason: "the folder is not empty; name another one".to_owned(),
            }),
            Ok(false) | Err(_) => Ok(()),
        }
    }

    /// Writes a network and its configuration.
    fn write_int8<M: Module>(
        &self,
        network: &M,
        component: &str,
        path: &Path,
        is_stored: fn(&str, &[usize]) -> bool,
    ) -> Result<(), Error> {
        let config = self.model.config(component)?;
        let config = config.ok_or_else(|| self.contradiction(format!("no {component} config")))?;
        let mut config: BTreeMap<String, Value> = self.model.read_json(&config)?;
        config.insert("quantization_config".to_owned(), int8_config());
        save_int8(network, path, self.origin(component)?, is_stored)?;
        Ok(write_json(path.with_file_name("config.json"), &config)?)
    }

    /// The entries of a header that name the sources of a network.
    fn origin(&self, component: &str) -> Result<HashMap<String, String>, Error> {
        let mut hashes = BTreeMap::new();
        for path in self.model.weight_files(component) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            hashes.insert(name.into_owned(), sha256(&path)?);
        }
        let strengths: Vec<_> = self.adapters.iter().map(|(_, strength)| strength).collect();
        let entry = |key: &str, value: Value| (key.to_owned(), value.to_string());
        let mut origin = HashMap::from([
            ("format".to_owned(), "pt".to_owned()),
            entry("source", json!(hashes)),
        ]);
        if !strengths.is_empty() && component != "vae" {
            origin.extend([entry("adapters", json!(strengths))]);
        }
        Ok(origin)
    }

    /// Copies the scheduler's configuration, or writes the one that replaces it; see [`scheduler`](Self::scheduler).
    fn write_scheduler(&self, output: &Path) -> Result<(), Error> {
        let config = self.scheduler()?;
        let own = self.model.path(SCHEDULER);
        if let Some(own) = own.filter(|own| self.model.is_file(own)) {
            let found = SchedulerConfig::from_json(&self.model.read_text(&own)?);
            if found.is_ok_and(|found| found == config) {
                return copy(&own, output);
            }
        }
        Ok(write_json(output, &config)?)
    }

    /// Writes the tiny autoencoder in diffusers' layout, if the model has one.
    fn write_tiny(&self, folder: &Path) -> Result<(), Error> {
        let (model, name) = (&self.model, "taesd");
        if !model.path(name).is_some_and(|path| model.exists(path)) {
            return Ok(());
        }
        let network = AutoencoderTiny::from_model(model, name, None, &self.device)?;
        let weights = model.weights(name).ok();
        let is_f16 = weights.is_some_and(|weights| {
            let mut names = weights.names();
            names.all(|name| weights.dtype(name).is_ok_and(|dtype| dtype == DType::F16))
        });
        let dtype = if is_f16 { DType::F16 } else { DType::F32 };
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        save(&network, folder.join(DIFFUSERS), dtype, metadata)?;
        let output = folder.join("config.json");
        match model.config(name) {
            Ok(Some(config)) => copy(&config, &output),
            _ => Ok(write_json(
                output,
                &AutoencoderTinyConfig::from_model(model, name)?,
            )?),
        }
    }

    /// Returns whether the weights of a component are in int8 in their file.
    pub(super) fn is_stored_in_int8(&self, component: &str) -> Result<bool, Error> {
        match self.model.has(component) {
            true => Ok(is_int8_file(&self.model.weights(component)?)?),
            false => Ok(false),
        }
    }

    /// Returns whether the denoiser or the text encoder is in int8, in its file or by the options.
    ///
    /// # Errors
    ///
    /// If weights are quantised in an unknown layout.
    pub fn is_int8(&self) -> Result<bool, Error> {
        Ok(self.options.int8
            || self.is_stored_in_int8(&self.options.denoiser)?
            || self.is_stored_in_int8("text_encoder")?)
    }

    /// Checks that int8 is possible with the device, the element types and the adapters.
    pub(super) fn check_int8(&self) -> Result<(), Error> {
        if !self.is_int8()? {
            return Ok(());
        }
        let refuse = |reason: String| Err(Error::Options(reason));
        if let Err(error) = Int8Weight::check_device(&self.device) {
            return refuse(error.to_string());
        }
        let wanted = [Some(self.options.dtype), self.options.storage];
        if let Some(dtype) = wanted
            .into_iter()
            .flatten()
            .find(|&dtype| dtype != DType::F32)
        {
            return refuse(format!(
                "weights in int8 compute in f32; found the element type {dtype:?}"
            ));
        }
        for component in [self.options.denoiser.as_str(), "text_encoder"] {
            if !self.adapters.is_empty() && self.is_stored_in_int8(component)? {
                return refuse(format!(
                    "adapters cannot be merged into weights in int8, which {component} of {} has; quantise the original model \
                     with them",
                    self.model.root().display()
                ));
            }
        }
        Ok(())
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let mut source = File::open(from).map_err(|error| FileError::read(from, error))?;
    Ok(write_atomically(to, |file| {
        io::copy(&mut source, file).map(drop)
    })?)
}
