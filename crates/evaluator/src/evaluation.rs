use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::{Error, Protocol, Value};

/// A result with everything it depends on, as stored in a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Short name of the model or folder.
    pub subject: String,
    /// The protocol.
    pub protocol: Protocol,
    /// Name and version of the evaluating program.
    pub software: String,
    /// SHA-256 of the weights by network name, and of `prompts`, `reference` and `pictures`.
    pub hashes: BTreeMap<String, String>,
    /// Number of images.
    pub pictures: usize,
    /// Number of images per prompt.
    pub per_prompt: usize,
    /// Number of reference images; `None` for means and covariances, which do not record it.
    pub reference_pictures: Option<usize>,
    /// Model, method and seed of the images, if they were generated.
    pub painted: Json,
    /// The values.
    pub values: Vec<Value>,
    /// Caveats to report with the values.
    pub notes: Vec<String>,
}

impl Evaluation {
    /// Differences that make two results incomparable: everything except the images and their generation.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let conditions = |of: &Self| {
            let hashes: BTreeMap<_, _> = of
                .hashes
                .iter()
                .filter(|(name, _)| *name != "pictures")
                .collect();
            json!({
                "protocol": of.protocol,
                "hashes": hashes,
                "pictures": of.pictures,
                "per prompt": of.per_prompt,
                "reference pictures": of.reference_pictures,
            })
        };
        differences(&conditions(self), &conditions(other))
    }
}

/// Lists all differences between two JSON values, one sentence each.
pub fn differences(first: &Json, second: &Json) -> Vec<String> {
    let mut found = Vec::new();
    differ("", first, second, &mut found);
    found
}

/// Checks that results were measured under the same conditions.
///
/// # Errors
///
/// If they were not, with all differences from the first.
pub fn comparable<'a>(evaluations: impl IntoIterator<Item = &'a Evaluation>) -> Result<(), Error> {
    let mut evaluations = evaluations.into_iter();
    let Some(first) = evaluations.next() else {
        return Ok(());
    };
    let mut differences = Vec::new();
    for other in evaluations {
        let found = first.differences(other);
        let which = format!("{} and {}", first.subject, other.subject);
        differences.extend(found.into_iter().map(|found| format!("{which}: {found}")));
    }
    match differences.is_empty() {
        true => Ok(()),
        false => Err(Error::Incomparable(differences)),
    }
}

fn differ(path: &str, first: &Json, second: &Json, found: &mut Vec<String>) {
    let below = |name: &str| match path.is_empty() {
        true => name.to_owned(),
        false => format!("{path}.{name}"),
    };
    match (first, second) {
        (Json::Object(a), Json::Object(b)) => {
            let names: BTreeSet<_> = a.keys().chain(b.keys()).collect();
            for name in names {
                let of = |map: &serde_json::Map<String, Json>| {
                    map.get(name).cloned().unwrap_or(Json::Null)
                };
                differ(&below(name), &of(a), &of(b), found);
            }
        }
        (Json::Array(a), Json::Array(b)) => {
            for index in 0..a.len().max(b.len()) {
                let of = |list: &[Json]| list.get(index).cloned().unwrap_or(Json::Null);
                differ(&below(&index.to_string()), &of(a), &of(b), found);
            }
        }
        _ if first != second => {
            let say = |value: &Json| match value {
                Json::Null => "nothing".to_owned(),
                value => value.to_string(),
            };
            found.push(format!("{path} is {} and {}", say(first), say(second)));
        }
        _ => {}
    }
}
