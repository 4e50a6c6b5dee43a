use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::parameters::parameters;
use crate::recipe::BOOKKEEPING;
use crate::{Error, Recipe, Snapshot};

/// The settings and inputs that determine the weights of a run, by name: settings of the recipe under
/// their names in the file (`clip.weight`), hashes of networks and prompts, and the version of the
/// trainer.
///
/// A snapshot contains the fingerprint of its run; [`Run::open`](crate::Run::open) rejects a snapshot whose
/// fingerprint differs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint(BTreeMap<String, String>);

/// A setting or input that differs between a snapshot and the run that resumes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its name.
    pub name: String,
    /// Its value in the snapshot.
    pub saved: Option<String>,
    /// Its value in the run.
    pub current: Option<String>,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [saved, current] =
            [&self.saved, &self.current].map(|value| value.as_deref().unwrap_or("not set"));
        write!(f, "{}: {saved} in the snapshot, {current} now", self.name)
    }
}

impl Fingerprint {
    /// Creates the fingerprint of a recipe, without bookkeeping settings such as `save_every`.
    pub(crate) fn of_recipe(recipe: &Recipe) -> Self {
        let mut fingerprint = Self::default();
        fingerprint.set("version", env!("CARGO_PKG_VERSION").to_owned());
        let settings = serde_json::to_value(recipe).expect("a recipe is plain data");
        fingerprint.flatten("", &settings);
        let is_kept = |name: &str| !BOOKKEEPING.iter().any(|other| covers(other, name));
        fingerprint.0.retain(|name, _| is_kept(name));
        fingerprint
    }

    fn flatten(&mut self, name: &str, value: &Value) {
        match value {
            Value::Object(fields) => {
                for (field, value) in fields {
                    let separator = if name.is_empty() { "" } else { "." };
                    self.flatten(&format!("{name}{separator}{field}"), value);
                }
            }
            Value::Null => {}
            value => self.set(name, value.to_string()),
        }
    }

    /// Sets an entry.
    pub fn set(&mut self, name: &str, value: String) {
        self.0.insert(name.to_owned(), value);
    }

    /// An entry.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The differences between a saved fingerprint and this one, except those accepted by the name of an
    /// entry (`clip.weight`) or of its table (`clip`).
    ///
    /// # Errors
    ///
    /// If an accepted name is in neither fingerprint.
    pub fn changes(&self, saved: &Self, accepted: &[String]) -> Result<Vec<Change>, Error> {
        let mut names: Vec<_> = self.0.keys().chain(saved.0.keys()).cloned().collect();
        names.sort();
        names.dedup();
        let known = || names.iter().map(String::as_str).chain(BOOKKEEPING);
        let is_unknown = |accepted: &&String| !known().any(|name| covers(accepted, name));
        if let Some(unknown) = accepted.iter().find(is_unknown) {
            return Err(Error::UnknownChange(unknown.clone(), names));
        }
        let changed = names.into_iter().filter(|name| {
            self.0.get(name) != saved.0.get(name)
                && !accepted.iter().any(|accepted| covers(accepted, name))
        });
        let change = |name: String| Change {
            saved: saved.0.get(&name).cloned(),
            current: self.0.get(&name).cloned(),
            name,
        };
        Ok(changed.map(change).collect())
    }
}

/// Returns whether `outer` is an entry or the table that contains it.
fn covers(outer: &str, name: &str) -> bool {
    let rest = name.strip_prefix(outer);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Keys of texts in a snapshot.
pub(crate) const FINGERPRINT: &str = "fingerprint";
pub(crate) const RECIPE: &str = "recipe";

/// The fingerprint in a snapshot.
pub(crate) fn saved_fingerprint(snapshot: &Snapshot, source: &Path) -> Result<Fingerprint, Error> {
    let bad = |reason: String| Error::Snapshot {
        path: source.to_owned(),
        reason,
    };
    let text = snapshot.text(FINGERPRINT).ok_or_else(|| {
        bad(
            "it has no fingerprint, as snapshots of earlier versions: finish the run with the \
             version that wrote it, or start again in another folder"
                .to_owned(),
        )
    })?;
    serde_json::from_str(text).map_err(|error| bad(format!("{FINGERPRINT}: {error}")))
}

/// SHA-256 over names, shapes and values of all parameters, in hexadecimal.
pub(crate) fn hash<M: Module>(module: &M) -> String {
    let parameters = parameters(module);
    let digests: Vec<_> = parameters
        .par_iter()
        .map(|parameter| {
            let mut hasher = Sha256::new();
            hasher.update(format!("{} {:?}", parameter.name, parameter.shape));
            hasher.update((parameter.read)().as_bytes());
            hasher.finalize()
        })
        .collect();
    let mut hasher = Sha256::new();
    for digest in digests {
        hasher.update(digest);
    }
    hex(&hasher.finalize())
}

/// Formats bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use swiftbrush_testing::device;
    use swiftbrush_unet::UNetConfig;

    use super::*;

    #[test]
    fn changes_are_named_and_accepted_by_entry_or_table() {
        let (before, mut recipe) = (Recipe::efficient(), Recipe::efficient());
        recipe.steps = 7;
        recipe.save_every = 9;
        recipe.clip.as_mut().unwrap().weight = 0.5;
        let [before, now] = [before, recipe].map(|recipe| Fingerprint::of_recipe(&recipe));
        let names = |accepted: &[&str]| {
            let accepted: Vec<_> = accepted.iter().map(|&name| name.to_owned()).collect();
            let changes = now.changes(&before, &accepted).unwrap();
            changes
                .iter()
                .map(|change| change.name.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&[]), ["clip.weight", "steps"]);
        assert_eq!(names(&["steps"]), ["clip.weight"]);
        assert_eq!(names(&["clip", "steps"]), [""; 0]);
        let text = now.changes(&before, &[]).unwrap()[0].to_string();
        assert_eq!(text, "clip.weight: 0.1 in the snapshot, 0.5 now");
        let error = now.changes(&before, &["cli".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("\"cli\""), "{error}");
    }

    #[test]
    fn a_network_that_is_absent_differs_from_any() {
        let mut with = Fingerprint::of_recipe(&Recipe::full());
        let without = with.clone();
        with.set("student", "ab".to_owned());
        let text = without.changes(&with, &[]).unwrap()[0].to_string();
        assert_eq!(text, "student: ab in the snapshot, not set now");
    }

    #[test]
    fn a_hash_tells_networks_apart() {
        let device = device();
        let unet = UNetConfig::tiny().init(&device);
        assert_eq!(hash(&unet), hash(&unet.clone()));
        assert_ne!(hash(&unet), hash(&UNetConfig::tiny().init(&device)));
    }
}
