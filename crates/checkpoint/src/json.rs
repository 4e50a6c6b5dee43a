use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::Error;
use crate::files::Files;

/// Reads a JSON file.
///
/// # Errors
///
/// If it cannot be read or does not have the form of `T`.
pub fn read_json<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<T, Error> {
    read_json_in(&Files::System, path.as_ref())
}

pub(crate) fn read_json_in<T: DeserializeOwned>(files: &Files, path: &Path) -> Result<T, Error> {
    let text = files.read_to_string(path)?;
    serde_json::from_str(&text).map_err(|cause| Error::Json {
        path: path.to_owned(),
        cause,
    })
}

/// Reads a component's `config.json` into `T`; missing options are taken from `defaults`.
///
/// Options that `T` lacks are unsupported, unless their value is null or listed in `accepted`, which contains the values
/// that have no effect. Keys that begin with an underscore, and those that diffusers adds to averaged weights, are ignored,
/// except for the class (`_class_name`) if `accepted` has one: a configuration that names another is an error.
///
/// # Errors
///
/// If the file cannot be read, an option has a value of the wrong type, or it sets an unsupported option. The error
/// names the option.
pub fn read_config<T>(
    path: impl AsRef<Path>,
    defaults: &T,
    accepted: &[(&str, Value)],
) -> Result<T, Error>
where
    T: DeserializeOwned + Serialize,
{
    read_config_in(&Files::System, path.as_ref(), defaults, accepted)
}

pub(crate) fn read_config_in<T>(
    files: &Files,
    path: &Path,
    defaults: &T,
    accepted: &[(&str, Value)],
) -> Result<T, Error>
where
    T: DeserializeOwned + Serialize,
{
    let config: Map<String, Value> = read_json_in(files, path)?;
    let refused = |reason| Error::Config {
        path: path.to_owned(),
        reason,
    };
    let Ok(Value::Object(known)) = serde_json::to_value(defaults) else {
        unreachable!("a configuration is a struct with named fields")
    };
    if let Some(reason) = wrong_class(&config, accepted) {
        return Err(refused(reason));
    }
    let mut all = known.clone();
    for (name, value) in config {
        if let Some(field) = all.get_mut(&name) {
            *field = like(field, value);
        } else if !passes(&name, &value, accepted) {
            return Err(refused(unsupported(&name, &value, accepted)));
        }
    }
    serde_json::from_value(Value::Object(all.clone())).map_err(|error| {
        // serde does not report the field, so try one at a time.
        let is_bad = |name: &&String| {
            let mut one = known.clone();
            one.insert((*name).clone(), all[*name].clone());
            serde_json::from_value::<T>(Value::Object(one)).is_err()
        };
        refused(match all.keys().find(is_bad) {
            Some(name) => format!("`{name}` = {}: {error}", short(&all[name])),
            None => error.to_string(),
        })
    })
}

/// Keys that do not describe the network: the state of diffusers' averaged weights (`EMAModel`), and the element type.
const NOTES: [&str; 9] = [
    "decay",
    "dtype",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "torch_dtype",
    "update_after_step",
    "use_ema_warmup",
];

const CLASS: &str = "_class_name";

/// Why a configuration belongs to a network of another class, if it names one and the class is among the accepted options.
fn wrong_class(config: &Map<String, Value>, accepted: &[(&str, Value)]) -> Option<String> {
    let found = config.get(CLASS)?.as_str()?;
    let (_, expected) = accepted.iter().find(|(option, _)| *option == CLASS)?;
    let expected = expected.as_str()?;
    (found != expected).then(|| format!("expected the configuration of {expected}, found {found}"))
}

fn passes(name: &str, value: &Value, accepted: &[(&str, Value)]) -> bool {
    let mut accepted = accepted.iter();
    name.starts_with('_')
        || NOTES.contains(&name)
        || value.is_null()
        || accepted.any(|(option, accepted)| *option == name && same(accepted, value))
}

fn unsupported(name: &str, value: &Value, accepted: &[(&str, Value)]) -> String {
    let accepted = accepted.iter().filter(|(option, _)| *option == name);
    let expected: Vec<_> = accepted.map(|(_, value)| value.to_string()).collect();
    let expected = match expected.as_slice() {
        [] => "the option is unknown".to_owned(),
        values => format!("expected {}", values.join(" or ")),
    };
    format!("unsupported `{name}` = {}; {expected}", short(value))
}

/// Converts a whole number written as 1000.0 if an integer is expected; diffusers accepts both.
fn like(default: &Value, value: Value) -> Value {
    let whole = value
        .as_f64()
        .filter(|number| number.fract() == 0.0 && number.abs() < 1e15);
    match whole {
        Some(whole) if value.is_f64() && (default.is_i64() || default.is_u64()) => {
            Value::from(whole as i64)
        }
        _ => value,
    }
}

/// Formats a value for a message, truncated.
fn short(value: &Value) -> String {
    const LENGTH: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LENGTH) {
        None => text,
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// Compares JSON values, treating 1 and 1.0 as equal.
fn same(left: &Value, right: &Value) -> bool {
    match (left.as_f64(), right.as_f64()) {
        (Some(left), Some(right)) => left == right,
        _ => left == right,
    }
}
