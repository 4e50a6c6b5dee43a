use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::{Error, Protocol, Value};

/// A result with everything that it depends on: what is written to a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// What was measured, in a word or two.
    pub subject: String,
    /// How.
    pub protocol: Protocol,
    /// Name and version of what measured.
    pub software: String,
    /// Hashes (SHA-256) of the networks' weights by their names, of `prompts`, `reference` and `pictures`.
    pub hashes: BTreeMap<String, String>,
    /// Pictures that were measured.
    pub pictures: usize,
    /// Pictures of a prompt.
    pub per_prompt: usize,
    /// Pictures of the reference; none of means and covariances that do not say it.
    pub reference_pictures: Option<usize>,
    /// How the pictures were painted, if they were; a seed, a model, a method.
    pub painted: Json,
    /// The numbers.
    pub values: Vec<Value>,
    /// What has to be said beside them.
    pub notes: Vec<String>,
}

impl Evaluation {
    /// What keeps this result from being compared with another, in words: all that numbers depend on but the pictures and
    /// how they were painted.
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

/// Every place where two values differ, in words.
pub fn differences(first: &Json, second: &Json) -> Vec<String> {
    let mut found = Vec::new();
    differ("", first, second, &mut found);
    found
}

/// Whether results were measured under the same conditions.
///
/// # Errors
///
/// If not, with every difference from the first.
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
