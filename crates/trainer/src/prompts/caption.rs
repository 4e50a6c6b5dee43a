use std::path::Path;

use serde_json::{Map, Value};
use swiftbrush_checkpoint::abridged;

/// Keys of captions in JSON Lines.
pub(crate) const KEYS: [&str; 3] = ["caption", "prompt", "text"];

/// The format of a prompt file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// A prompt per line.
    Text,
    /// A JSON object per line, with the caption under this key or, without one, under the only key of [`KEYS`] that it
    /// has.
    JsonLines(Option<String>),
}

impl Format {
    /// The format of a file by its extension.
    pub(crate) fn of(path: &Path, key: Option<&str>) -> Result<Self, String> {
        let extension = path.extension().map(|text| text.to_string_lossy());
        let extension = extension.unwrap_or_default().to_lowercase();
        match extension.as_str() {
            "jsonl" | "ndjson" => Ok(Self::JsonLines(key.map(str::to_owned))),
            PARQUET => Err(format!(
                "Parquet needs the feature `parquet`; build with it, or convert the file with: {}",
                conversion(path, key)
            )),
            "json" | "csv" | "tsv" | "arrow" | "gz" | "bz2" | "xz" | "zst" | "zip" | "tar" => {
                Err(format!(
                    "unsupported format .{extension}; expected text with one prompt per line, or JSON Lines (.jsonl)"
                ))
            }
            _ => match key {
                Some(key) => Err(format!(
                    "the key {key:?} is for JSON Lines (.jsonl), but this is a text file; omit the key"
                )),
                None => Ok(Self::Text),
            },
        }
    }

    /// The caption in a line, without surrounding white space.
    pub(crate) fn caption(&self, line: &str) -> Result<String, String> {
        match self {
            Self::Text => Ok(line.trim().to_owned()),
            Self::JsonLines(key) => caption_of_json(line, key.as_deref()),
        }
    }
}

/// The extension of Parquet files.
pub(crate) const PARQUET: &str = "parquet";

/// A command that converts a Parquet file to JSON Lines.
pub(crate) fn conversion(path: &Path, key: Option<&str>) -> String {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let key = key.unwrap_or(KEYS[0]);
    format!(
        "python -c \"import pandas as p; \
         p.read_parquet('{name}.parquet')[['{key}']].to_json('{name}.jsonl', orient='records', lines=True)\""
    )
}

fn caption_of_json(line: &str, key: Option<&str>) -> Result<String, String> {
    let object: Map<String, Value> = serde_json::from_str(line)
        .map_err(|error| format!("expected a JSON object per line ({error})"))?;
    let expected = key.map_or(KEYS.to_vec(), |key| vec![key]);
    let found: Vec<_> = expected
        .iter()
        .filter(|&&key| object.contains_key(key))
        .collect();
    match found[..] {
        [key] => match &object[*key] {
            Value::String(caption) => Ok(caption.trim().to_owned()),
            other => Err(format!("{key:?}: expected a string, found {other}")),
        },
        [] => Err(format!(
            "expected the key {}, found {}; name the key of the captions",
            expected.join(" or "),
            abridged(object.keys())
        )),
        _ => Err(format!(
            "expected one of the keys {}, found several; name the key of the captions",
            expected.join(", ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caption(line: &str, key: Option<&str>) -> Result<String, String> {
        Format::of(Path::new("a.jsonl"), key)?.caption(line)
    }

    #[test]
    fn a_caption_is_under_the_only_known_key_or_under_the_named_one() {
        for line in [
            r#"{"caption": " a cat "}"#,
            r#"{"id": 3, "prompt": "a cat"}"#,
            r#"{"text": "a \u0063at"}"#,
        ] {
            assert_eq!(caption(line, None).unwrap(), "a cat");
        }
        let line = r#"{"caption": "a cat", "prompt": "a dog", "title": "a fox"}"#;
        assert_eq!(caption(line, Some("prompt")).unwrap(), "a dog");
        assert_eq!(caption(line, Some("title")).unwrap(), "a fox");
        for (line, key, expected) in [
            (line, None, "several"),
            (
                r#"{"title": "a fox"}"#,
                None,
                "caption or prompt or text, found title",
            ),
            (
                r#"{"caption": "a cat"}"#,
                Some("title"),
                "title, found caption",
            ),
            (
                r#"{"caption": ["a cat"]}"#,
                None,
                "expected a string, found [\"a cat\"]",
            ),
            ("a cat", None, "expected a JSON object"),
            ("[1]", None, "expected a JSON object"),
        ] {
            let error = caption(line, key).unwrap_err();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }

    #[test]
    fn other_formats_are_rejected_by_name() {
        for (name, key, expected) in [
            (
                "a.parquet",
                None,
                "read_parquet('a.parquet')[['caption']].to_json('a.jsonl'",
            ),
            ("b.Parquet", Some("TEXT"), "[['TEXT']]"),
            ("a.csv", None, "unsupported format .csv"),
            ("a.txt", Some("caption"), "omit the key"),
        ] {
            let error = Format::of(Path::new(name), key).unwrap_err();
            assert!(error.contains(expected), "{name}: {error}");
        }
        assert_eq!(Format::of(Path::new("prompts"), None), Ok(Format::Text));
    }
}
