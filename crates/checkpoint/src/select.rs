//! The choice among several weight files of a component, following diffusers and transformers.

use std::path::Path;

use serde_json::{Map, Value};

use crate::files::Files;
use crate::json::read_json_in;

/// The Python library that saves and loads a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Library {
    /// Denoisers and autoencoders.
    Diffusers,
    /// Text and image encoders.
    Transformers,
}

/// The half-precision variant, used if a component has nothing else.
pub(crate) const HALF: &str = "fp16";

impl Library {
    /// The library of the component in a folder, determined by its configuration or else by its name.
    pub(crate) fn of_folder(files: &Files, folder: &Path, component: &str) -> Self {
        let config = read_json_in::<Map<String, Value>>(files, &folder.join("config.json"));
        let has = |key: &str| config.as_ref().is_ok_and(|config| config.contains_key(key));
        match (
            has("_class_name"),
            has("architectures") || has("model_type"),
        ) {
            (true, _) => Self::Diffusers,
            (false, true) => Self::Transformers,
            (false, false) => Self::of_component(component),
        }
    }

    /// The library of a component by its name in a pipeline.
    pub(crate) fn of_component(component: &str) -> Self {
        const TRANSFORMERS: [&str; 3] = ["text_encoder", "image_encoder", "safety_checker"];
        match TRANSFORMERS.iter().any(|name| component.contains(name)) {
            true => Self::Transformers,
            false => Self::Diffusers,
        }
    }

    /// File names in the order in which the library tries them.
    ///
    /// diffusers prefers shards to a whole file (`ModelMixin.from_pretrained`), transformers the reverse
    /// (`_get_resolved_checkpoint_files`). Sharded pickles, which diffusers does not try, come last.
    fn names(self, variant: Option<&str>) -> Vec<String> {
        let with = |stem: &str, end: &str| match variant {
            None => format!("{stem}.{end}"),
            Some(variant) => format!("{stem}.{variant}.{end}"),
        };
        let index = |whole: &str| match variant {
            None => format!("{whole}.index.json"),
            Some(variant) => format!("{whole}.index.{variant}.json"),
        };
        match self {
            Self::Diffusers => {
                let stem = "diffusion_pytorch_model";
                let mut names = vec![index(&format!("{stem}.safetensors"))];
                // The spelling used in 2023.
                names.extend(variant.map(|it| format!("{stem}.safetensors.{it}.index.json")));
                names.push(with(stem, "safetensors"));
                names.push(with(stem, "bin"));
                names.push(index(&format!("{stem}.bin")));
                names
            }
            Self::Transformers => vec![
                with("model", "safetensors"),
                index("model.safetensors"),
                with("pytorch_model", "bin"),
                index("pytorch_model.bin"),
            ],
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Diffusers => Self::Transformers,
            Self::Transformers => Self::Diffusers,
        }
    }
}

/// Names of files that may contain the weights of a component, in order of preference: the variant, then full precision,
/// then `fp16`. Within each group, the names of the component's own library come first, then those of the other library,
/// then open_clip's.
pub(crate) fn weight_names(library: Library, variant: Option<&str>) -> Vec<String> {
    let variants = [variant, None, Some(HALF)];
    let variants = variants.into_iter().skip(usize::from(variant.is_none()));
    let names = variants.flat_map(|variant| {
        let mut names = library.names(variant);
        names.extend(library.other().names(variant));
        for (stem, end) in [
            ("open_clip_model", "safetensors"),
            ("open_clip_pytorch_model", "safetensors"),
            ("open_clip_pytorch_model", "bin"),
        ] {
            names.push(match variant {
                None => format!("{stem}.{end}"),
                Some(variant) => format!("{stem}.{variant}.{end}"),
            });
        }
        names
    });
    names.collect()
}

/// Returns whether a weight file belongs to a variant.
pub(crate) fn is_of_variant(name: &str, variant: &str) -> bool {
    let is_weights = [".safetensors", ".bin", ".json"]
        .iter()
        .any(|end| name.ends_with(end));
    // Shards: diffusion_pytorch_model.fp16-00001-of-00002.safetensors.
    is_weights && (name.contains(&format!(".{variant}.")) || name.contains(&format!(".{variant}-")))
}
