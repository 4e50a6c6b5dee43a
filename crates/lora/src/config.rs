//! PEFT's adapter configuration: `adapter_config.json`, or the copy in the header of diffusers' files.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use regex::Regex;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value, json};

use crate::{Adapter, Adapters};

/// Defaults of PEFT's `LoraConfig` (0.21).
const DEFAULT_RANK: usize = 8;
const DEFAULT_ALPHA: f64 = 8.0;

/// Options that are read, or that do not affect a trained adapter.
const NEUTRAL: [&str; 25] = [
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
    // Written by diffusers into the headers of its files.
    "_custom_modules",
];
/// Initialisations whose result is replaced by the saved factors. Others change the adapted weights when PEFT loads them
/// (PiSSA, OLoRA, CorDA, LoftQ) or are different kinds of adapters (MiCA).
const INITIALISATIONS: [&str; 4] = ["gaussian", "eva", "orthogonal", "lora_ga"];

/// The modules targeted by a configuration.
#[derive(Debug)]
enum Targets {
    /// Names, or suffixes of paths after a dot.
    Names(Vec<String>),
    /// A regular expression for the whole path.
    Pattern(Regex),
}

impl Targets {
    fn of(key: &str, value: &Value) -> Result<Option<Self>, String> {
        const ALL: &str = "all-linear";
        match value {
            Value::Null => Ok(None),
            Value::String(all) if all == ALL => Ok(None),
            Value::String(pattern) => match Regex::new(&format!("^(?:{pattern})$")) {
                Ok(regex) => Ok(Some(Self::Pattern(regex))),
                Err(_) => Err(format!(
                    "unsupported `{key}` = {pattern:?}; expected a regular expression without look-around"
                )),
            },
            Value::Array(names) => {
                let names = names.iter().map(|name| name.as_str().map(str::to_owned));
                let names = names.collect::<Option<Vec<_>>>();
                match names {
                    Some(names) if names.is_empty() => Ok(None),
                    Some(names) => Ok(Some(Self::Names(names))),
                    None => Err(format!("`{key}` = {value}; expected names")),
                }
            }
            _ => Err(format!("`{key}` = {value}; expected names or a pattern")),
        }
    }

    fn contains(&self, module: &str) -> bool {
        match self {
            Self::Pattern(pattern) => pattern.is_match(module),
            Self::Names(names) => names.iter().any(|name| {
                let rest = module.strip_suffix(name.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }),
        }
    }
}

/// The parts of a configuration that affect results.
#[derive(Debug, Default)]
pub(crate) struct Config {
    /// `None` without a configuration: ranks and α then follow from the factors.
    base: Option<(usize, f64)>,
    /// Patterns in file order, because the first match wins.
    ranks: Vec<(Regex, f64)>,
    alphas: Vec<(Regex, f64)>,
    is_rank_stabilized: bool,
    targets: Option<Targets>,
    excluded: Option<Targets>,
}

impl Config {
    /// Reads the options of a JSON object whose keys begin with `prefix`. Errors are reasons, without the path.
    pub(crate) fn parse(text: &str, prefix: &str) -> Result<Self, String> {
        let all: Entries<Field> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let mut config = Self::default();
        let mut options = BTreeMap::new();
        for (key, field) in all.0 {
            if let Some(key) = key.strip_prefix(prefix) {
                options.insert(key.to_owned(), field);
            }
        }
        if options.is_empty() {
            return Ok(config);
        }
        let null = Field::Value(Value::Null);
        let get = |key: &str| options.get(key).unwrap_or(&null);
        for (key, field) in &options {
            check(key, field)?;
        }
        let rank = number("r", get("r"))?.map_or(DEFAULT_RANK, |rank| rank as usize);
        let alpha = number("lora_alpha", get("lora_alpha"))?.unwrap_or(DEFAULT_ALPHA);
        config.base = Some((rank, alpha));
        config.ranks = patterns("rank_pattern", get("rank_pattern"))?;
        config.alphas = patterns("alpha_pattern", get("alpha_pattern"))?;
        config.is_rank_stabilized = get("use_rslora").value() == Some(&Value::Bool(true));
        for (key, place) in [
            ("target_modules", &mut config.targets),
            ("exclude_modules", &mut config.excluded),
        ] {
            let value = get(key)
                .value()
                .ok_or_else(|| format!("`{key}` is an object"))?;
            *place = Targets::of(key, value)?;
        }
        Ok(config)
    }

    /// α of a module whose factors have this rank, normalised so that the scale is α/rank.
    pub(crate) fn alpha(&self, module: &str, rank: usize) -> f64 {
        match self.base {
            None => rank as f64,
            Some((_, alpha)) => {
                let alpha = first_match(&self.alphas, module).unwrap_or(alpha);
                match self.is_rank_stabilized {
                    true => alpha * (rank as f64).sqrt(),
                    false => alpha,
                }
            }
        }
    }

    /// Returns whether PEFT would load an adapter of this rank into the module; otherwise the reason.
    pub(crate) fn check_adapter(&self, module: &str, rank: usize) -> Result<(), String> {
        let Some((base, _)) = self.base else {
            return Ok(());
        };
        // transformers 5 and earlier versions nest the text encoder differently.
        let names = [module, target(module)];
        let is_in = |targets: &Targets| names.iter().any(|name| targets.contains(name));
        if !self.targets.as_ref().is_none_or(is_in) {
            return Err(format!("`target_modules` does not include {module}"));
        }
        if self.excluded.as_ref().is_some_and(is_in) {
            return Err(format!("`exclude_modules` includes {module}"));
        }
        let expected = first_match(&self.ranks, module).unwrap_or(base as f64);
        match expected == rank as f64 {
            true => Ok(()),
            false => Err(format!(
                "`r` and `rank_pattern` say rank {expected} for {module}, but its factors have rank {rank}; \
                 the configuration belongs to other adapters"
            )),
        }
    }
}

/// Matches patterns as PEFT does: against the end of a path, after a dot.
fn first_match(patterns: &[(Regex, f64)], module: &str) -> Option<f64> {
    let mut patterns = patterns.iter();
    let found = patterns.find(|(pattern, _)| pattern.is_match(module));
    found.map(|(_, value)| *value)
}

/// Checks that an option is supported with its value.
fn check(key: &str, field: &Field) -> Result<(), String> {
    let refused = |expected: &str| Err(format!("unsupported `{key}` = {field}; {expected}"));
    match (key, field.value()) {
        ("peft_type", Some(Value::String(kind))) if kind != "LORA" => refused("expected \"LORA\""),
        ("init_lora_weights", Some(Value::String(kind)))
            if !INITIALISATIONS.contains(&kind.to_lowercase().as_str()) =>
        {
            refused(
                "it changes the adapted weights; save the adapter with PEFT's \
                 `path_initial_model_for_weight_conversion`",
            )
        }
        ("bias", Some(Value::String(kind))) if kind == "none" => Ok(()),
        (key, _) if NEUTRAL.contains(&key) || field.is_off() => Ok(()),
        _ => refused("only the default of this option is supported"),
    }
}

fn number(key: &str, field: &Field) -> Result<Option<f64>, String> {
    match field.value() {
        Some(Value::Null) => Ok(None),
        Some(Value::Number(number)) => Ok(number.as_f64()),
        _ => Err(format!("`{key}` = {field}; expected a number")),
    }
}

fn patterns(key: &str, field: &Field) -> Result<Vec<(Regex, f64)>, String> {
    let entries = match field {
        Field::Map(entries) => entries.0.as_slice(),
        Field::Value(Value::Null) => &[],
        Field::Value(_) => return Err(format!("`{key}` = {field}; expected an object")),
    };
    let patterns = entries.iter().map(|(pattern, value)| {
        let regex = Regex::new(&format!(r"^(.*\.)?({pattern})$"));
        match (regex, value.as_f64()) {
            (Ok(regex), Some(value)) => Ok((regex, value)),
            _ => Err(format!(
                "`{key}` {pattern:?} = {value}; expected a regular expression without look-around and a number"
            )),
        }
    });
    patterns.collect()
}

/// The entries of a JSON object in file order, which serde_json's map does not keep.
#[derive(Debug)]
struct Entries<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Reader<T> {
            type Value = Entries<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<T>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Reader(PhantomData))
    }
}

#[derive(Debug, serde::Deserialize)]
#[serde(untagged)]
enum Field {
    Map(Entries<Value>),
    Value(Value),
}

impl Field {
    /// The value, unless it is an object.
    fn value(&self) -> Option<&Value> {
        match self {
            Self::Map(_) => None,
            Self::Value(value) => Some(value),
        }
    }

    /// Returns whether it is null, false or empty, the defaults of all options that enable something.
    fn is_off(&self) -> bool {
        match self {
            Self::Map(entries) => entries.0.is_empty(),
            Self::Value(Value::Array(items)) => items.is_empty(),
            Self::Value(value) => matches!(value, Value::Null | Value::Bool(false)),
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) => write!(f, "{value}"),
            Self::Map(_) => f.write_str("{…}"),
        }
    }
}

/// The configuration that makes PEFT read adapters correctly: the most frequent rank and α, and patterns for the others.
pub(crate) fn to_json(adapters: &Adapters) -> Map<String, Value> {
    let (rank, alpha) = most_frequent(adapters);
    let others = |differs: &dyn Fn(&Adapter) -> Option<Value>| -> Value {
        let differing = adapters
            .iter()
            .filter_map(|(module, adapter)| Some((target(module).to_owned(), differs(adapter)?)));
        Value::Object(differing.collect())
    };
    let targets: Vec<_> = adapters.names().map(target).collect();
    let ranks = others(&|adapter| (adapter.rank() != rank).then(|| json!(adapter.rank())));
    let alphas = others(&|adapter| (adapter.alpha != alpha).then(|| whole(adapter.alpha)));
    let entries = [
        ("r", json!(rank)),
        ("lora_alpha", whole(alpha)),
        ("target_modules", json!(targets)),
        ("rank_pattern", ranks),
        ("alpha_pattern", alphas),
    ];
    let entries = entries.map(|(key, value)| (key.to_owned(), value));
    entries.into_iter().collect()
}

fn most_frequent(adapters: &Adapters) -> (usize, f64) {
    let mut counts: Vec<((usize, f64), usize)> = Vec::new();
    for (_, adapter) in adapters.iter() {
        let key = (adapter.rank(), adapter.alpha);
        match counts.iter_mut().find(|(found, _)| *found == key) {
            Some((_, count)) => *count += 1,
            None => counts.push((key, 1)),
        }
    }
    let usual = counts.into_iter().max_by_key(|(_, count)| *count);
    usual.map_or((0, 0.0), |(key, _)| key)
}

/// The suffix of a module's path by which PEFT finds it. transformers 5 nests the text encoder one level less.
fn target(module: &str) -> &str {
    module.strip_prefix("text_model.").unwrap_or(module)
}

/// Writes whole numbers as integers, as in PEFT's own files.
fn whole(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        json!(value as i64)
    } else {
        json!(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pattern_of_the_file_counts() {
        let alpha = |patterns: &str| {
            let text = format!(r#"{{"r": 2, "lora_alpha": 4, "alpha_pattern": {patterns}}}"#);
            Config::parse(&text, "")
                .unwrap()
                .alpha("mid_block.attn1.to_q", 2)
        };
        assert_eq!(alpha(r#"{"to_q": 1, "attn1.to_q": 32}"#), 1.0);
        assert_eq!(alpha(r#"{"attn1.to_q": 32, "to_q": 1}"#), 32.0);
        assert_eq!(alpha(r#"{"^mid_block.*to_q": 16, "to_q": 1}"#), 16.0);
        assert_eq!(alpha("{}"), 4.0);
    }

    #[test]
    fn adapters_that_peft_would_not_load_are_named() {
        let text = r#"{"r": 2, "target_modules": ["to_q"], "exclude_modules": "up.*", "rank_pattern": {"attn2.to_q": 4}}"#;
        let config = Config::parse(text, "").unwrap();
        let check = |module: &str, rank| config.check_adapter(module, rank);
        assert_eq!(check("down.attn1.to_q", 2), Ok(()));
        assert_eq!(check("down.attn2.to_q", 4), Ok(()));
        for (module, rank, reason) in [
            ("down.attn1.to_k", 2, "target_modules"),
            ("up.attn1.to_q", 2, "exclude_modules"),
            ("down.attn1.to_q", 4, "rank 2"),
            ("down.attn2.to_q", 2, "rank 4"),
        ] {
            let error = check(module, rank).unwrap_err();
            assert!(error.contains(reason) && error.contains(module), "{error}");
        }
    }
}
