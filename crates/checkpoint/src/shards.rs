//! Indices of sharded weights.

use std::collections::BTreeMap;
#[cfg(feature = "hub")]
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::Path;

use serde::Deserialize;

use crate::Error;
use crate::files::Files;
use crate::json::read_json_in;

/// The part of an index's name before its variant, if it has one.
const INDEX: &str = ".index.";

/// Returns whether a path is named like an index: `model.safetensors.index.json`, `model.safetensors.index.fp16.json` or
/// `model.safetensors.fp16.index.json`.
pub(crate) fn is_index(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.contains(INDEX) && name.ends_with(".json"))
}

/// Reads the shard of each tensor.
pub(crate) fn read_index(files: &Files, path: &Path) -> Result<BTreeMap<String, String>, Error> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = read_json_in(files, path)?;
    // Shards are in the folder of their index. An untrusted index must not point outside of it, nor to an index.
    let is_shard = |name: &str| {
        let path = Path::new(name);
        path.file_name() == Some(OsStr::new(name)) && !is_index(path)
    };
    match index.weight_map.values().find(|name| !is_shard(name)) {
        None => Ok(index.weight_map),
        Some(name) => Err(Error::damaged(
            path,
            format!("{name:?} is not the name of a shard"),
        )),
    }
}

/// The names of the shards that an index lists.
#[cfg(feature = "hub")]
pub(crate) fn shards(index: &Path) -> Result<BTreeSet<String>, Error> {
    Ok(read_index(&Files::System, index)?.into_values().collect())
}
