use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::Deserialize;
use serde_json::{Map, Value};
use swiftbrush_checkpoint::Model;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::{BPE, BpeBuilder, Vocab};
use tokenizers::normalizers::{self, Lowercase, NFC, Replace, replace::ReplacePattern};
use tokenizers::pre_tokenizers::{self, byte_level::ByteLevel, split::Split, split::SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use crate::open_clip::is_of_2;
use crate::vocabulary::{END, END_OF_WORD, START, clip_vocabulary};

/// The padding token of Stable Diffusion 2.x.
const PAD_OF_2: &str = "!";
/// Contractions, words, single digits, and runs of other characters.
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// CLIP's byte-pair tokenizer with the checkpoint's padding. Clones share the vocabulary.
///
/// ```
/// use swiftbrush_clip::Tokenizer;
///
/// let tokenizer = Tokenizer::clip("<|endoftext|>");
/// let tokens = tokenizer.encode("a photo of a cat");
/// assert_eq!(tokens.ids[..7], [49406, 320, 1125, 539, 320, 2368, 49407]);
/// assert_eq!((tokens.ids.len(), tokens.lost), (77, None));
/// ```
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    start: i32,
    end: i32,
    pad: i32,
    length: usize,
}

/// The tokens of one prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tokens {
    /// Start, text, end and padding, always of the tokenizer's full length.
    pub ids: Vec<i32>,
    /// Number of tokens truncated from the end of the text.
    pub n_dropped: usize,
    /// The truncated end of the prompt, as it was written.
    pub lost: Option<String>,
}

/// Errors of loading a tokenizer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A file of the folder cannot be read.
    #[error(transparent)]
    File(#[from] swiftbrush_checkpoint::Error),
    /// The folder has no vocabulary.
    #[error("{folder} has neither vocab.json with merges.txt nor tokenizer.json")]
    NoVocabulary {
        /// The folder.
        folder: PathBuf,
    },
    /// The vocabulary or a setting is not valid.
    #[error("{folder}: {reason}")]
    Vocabulary {
        /// The folder.
        folder: PathBuf,
        /// The cause.
        reason: String,
    },
}

/// The relevant fields of `tokenizer_config.json` and `special_tokens_map.json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Settings {
    pad_token: Option<Value>,
    model_max_length: Option<f64>,
}

impl Settings {
    fn read(model: &Model, path: &Path) -> Result<Self, TokenizerError> {
        if model.is_file(path) {
            Ok(model.read_json(path)?)
        } else {
            Ok(Self::default())
        }
    }

    /// The padding token, written as text or as an object with its `content`.
    fn pad(&self) -> Option<String> {
        let token = self.pad_token.as_ref()?;
        token
            .as_str()
            .or_else(|| token.get("content")?.as_str())
            .map(str::to_owned)
    }

    /// Number of tokens in a prompt; transformers writes 1e30 for "no limit".
    fn length(&self) -> Result<usize, String> {
        match self.model_max_length {
            None => Ok(DEFAULT_LENGTH),
            Some(length) if length >= NO_LIMIT => Ok(DEFAULT_LENGTH),
            Some(length) if length >= 2.0 && length.fract() == 0.0 => Ok(length as usize),
            Some(length) => Err(format!(
                "unsupported `model_max_length` {length}; expected a whole number of at least 2"
            )),
        }
    }
}

/// Number of tokens in a prompt if the folder does not specify it.
const DEFAULT_LENGTH: usize = 77;
/// Lengths from this one on mean no limit.
const NO_LIMIT: f64 = 1e6;

impl Tokenizer {
    /// Reads the `tokenizer` of a model: `vocab.json` with `merges.txt`, or `tokenizer.json`; a single file without
    /// configurations gets CLIP's own vocabulary.
    ///
    /// The padding token is that of `special_tokens_map.json`, else of `tokenizer_config.json`, else the end of text. In
    /// Stable Diffusion 2.1 the two files disagree, and the first is right.
    ///
    /// # Errors
    ///
    /// If the files are missing or damaged, or the vocabulary lacks the special tokens or the unknown token that it
    /// declares.
    pub fn from_model(model: &Model, component: &str) -> Result<Self, TokenizerError> {
        let Some(folder) = model.path(component) else {
            // The text encoder of 2.x is open_clip's, with that library's padding.
            let is_2 = model
                .weights("text_encoder")
                .is_ok_and(|weights| is_of_2(&weights));
            return Ok(Self::clip(if is_2 { PAD_OF_2 } else { END }));
        };
        let bad = |reason: String| TokenizerError::Vocabulary {
            folder: folder.clone(),
            reason,
        };
        let special = Settings::read(model, &folder.join("special_tokens_map.json"))?;
        let config = Settings::read(model, &folder.join("tokenizer_config.json"))?;

        let (vocab, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
        let whole = folder.join("tokenizer.json");
        let inner = if model.is_file(&vocab) && model.is_file(&merges) {
            from_vocabulary(model.read_json(&vocab)?, &model.read_text(&merges)?)
        } else if model.is_file(&whole) {
            from_whole(model.read_json(&whole)?)
        } else {
            return Err(TokenizerError::NoVocabulary { folder });
        };
        let inner = inner.map_err(|error| bad(error.to_string()))?;
        let padding = special
            .pad()
            .or_else(|| config.pad())
            .unwrap_or_else(|| END.to_owned());
        let length = config.length().map_err(bad)?;
        Self::new(inner, &padding, length).map_err(bad)
    }

    /// Creates a tokenizer with CLIP's own vocabulary and prompts of 77 tokens. The padding is `!` in Stable Diffusion
    /// 2.x, and `<|endoftext|>` in 1.x and in CLIP itself.
    ///
    /// # Panics
    ///
    /// If the vocabulary has no such token.
    #[track_caller]
    pub fn clip(padding: &str) -> Self {
        let (vocabulary, merges) = clip_vocabulary();
        let inner = from_bpe(BPE::builder().vocab_and_merges(vocabulary, merges));
        let inner = inner.expect("the built-in vocabulary is complete");
        Self::new(inner, padding, DEFAULT_LENGTH).unwrap_or_else(|reason| panic!("{reason}"))
    }

    fn new(mut inner: tokenizers::Tokenizer, padding: &str, length: usize) -> Result<Self, String> {
        let id = |token: &str| {
            let id = inner
                .token_to_id(token)
                .and_then(|id| i32::try_from(id).ok());
            id.ok_or_else(|| format!("the vocabulary lacks the token {token:?}"))
        };
        let (start, end, pad) = (id(START)?, id(END)?, id(padding)?);
        if let Some(unknown) = unknown_token(inner.get_model())? {
            id(unknown)?;
        }
        // Special tokens are matched before the text is split into words. In transformers the padding is one of them, so
        // "!!" is two tokens if "!" is the padding.
        inner.add_special_tokens(&[START, END, padding].map(|token| AddedToken::from(token, true)));
        Ok(Self {
            inner: Arc::new(inner),
            start,
            end,
            pad,
            length,
        })
    }

    /// Vocabulary size: one more than the largest token.
    pub fn vocabulary(&self) -> usize {
        let largest = self.inner.get_vocab(true).into_values().max();
        largest.map_or(0, |largest| largest as usize + 1)
    }

    /// Number of tokens in every encoded prompt, including padding.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Encodes a prompt. If it is too long, its end is truncated and the result reports it.
    pub fn encode(&self, prompt: &str) -> Tokens {
        let encoding = self.inner.encode(prompt, false);
        let encoding = encoding.expect("every symbol is a token, or the unknown token");
        let room = self.length - 2;
        let text = encoding.get_ids().iter().take(room).map(|&id| id as i32);
        let mut ids: Vec<_> = [self.start]
            .into_iter()
            .chain(text)
            .chain([self.end])
            .collect();
        ids.resize(self.length, self.pad);
        let cut = encoding.get_offsets().get(room);
        // A token may begin inside a character.
        let lost = cut.map(|&(start, _)| {
            let whole = (0..=start).rev().find(|&at| prompt.is_char_boundary(at));
            prompt.get(whole.unwrap_or_default()..).unwrap_or_default()
        });
        Tokens {
            ids,
            n_dropped: encoding.len().saturating_sub(room),
            lost: lost.map(|lost| lost.trim_start().to_owned()),
        }
    }

    /// Encodes prompts as a tensor.
    ///
    /// # Shapes
    ///
    /// - returns: `[prompts, length]`
    pub fn encode_batch<S: AsRef<str>>(&self, prompts: &[S], device: &Device) -> Tensor<2, Int> {
        let ids: Vec<_> = prompts
            .iter()
            .flat_map(|prompt| self.encode(prompt.as_ref()).ids)
            .collect();
        Tensor::from_data(TensorData::new(ids, [prompts.len(), self.length]), device)
    }
}

/// The token for unknown symbols, which are dropped if there is none.
fn unknown_token(model: &ModelWrapper) -> Result<Option<&str>, String> {
    match model {
        ModelWrapper::BPE(model) => Ok(model.unk_token.as_deref()),
        ModelWrapper::WordLevel(model) => Ok(Some(&model.unk_token)),
        ModelWrapper::WordPiece(_) | ModelWrapper::Unigram(_) => {
            Err("unsupported model of tokenizer.json; expected BPE, as CLIP has it".to_owned())
        }
    }
}

/// Builds the tokenizer that transformers' `CLIPTokenizerFast` builds from the two files.
fn from_vocabulary(
    vocabulary: BTreeMap<String, u32>,
    merges: &str,
) -> tokenizers::Result<tokenizers::Tokenizer> {
    let merges = merges.lines().filter(|line| !line.starts_with("#version"));
    let pair = |(index, line): (usize, &str)| match line.split(' ').collect::<Vec<_>>()[..] {
        [left, right] => Ok((left.to_owned(), right.to_owned())),
        _ => Err(format!(
            "merge {} of merges.txt is {line:?}; expected two symbols",
            index + 1
        )),
    };
    let merges = merges
        .enumerate()
        .map(pair)
        .collect::<Result<Vec<_>, _>>()?;
    from_bpe(BPE::builder().vocab_and_merges(vocabulary.into_iter().collect::<Vocab>(), merges))
}

fn from_bpe(model: BpeBuilder) -> tokenizers::Result<tokenizers::Tokenizer> {
    let model = model
        .end_of_word_suffix(END_OF_WORD.to_owned())
        .unk_token(END.to_owned())
        .build()?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_normalizer(Some(normalizers::Sequence::new(vec![
        NFC.into(),
        Replace::new(ReplacePattern::Regex(r"\s+".to_owned()), " ")?.into(),
        Lowercase.into(),
    ])));
    let words = SplitPattern::Regex(WORDS.to_owned());
    tokenizer.with_pre_tokenizer(Some(pre_tokenizers::sequence::Sequence::new(vec![
        Split::new(words, SplitDelimiterBehavior::Removed, true)?.into(),
        ByteLevel::new(false, true, true).into(),
    ])));
    Ok(tokenizer)
}

/// Reads the part of a `tokenizer.json` that maps text to tokens. Start, end, length and padding are added here. The
/// decoder is not read, because a damaged one makes `tokenizers` 0.22 panic.
fn from_whole(mut whole: Map<String, Value>) -> tokenizers::Result<tokenizers::Tokenizer> {
    for part in ["decoder", "post_processor", "padding", "truncation"] {
        whole.insert(part.to_owned(), Value::Null);
    }
    serde_json::from_value(Value::Object(whole)).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, Model) {
        let folder = tempfile::tempdir().unwrap();
        let component = folder.path().join("tokenizer");
        std::fs::create_dir(&component).unwrap();
        for (name, text) in files {
            std::fs::write(component.join(name), text).unwrap();
        }
        let model = Model::open(folder.path()).unwrap();
        (folder, model)
    }

    #[test]
    fn the_truncated_end_of_a_long_prompt_is_reported_verbatim() {
        let tokenizer = Tokenizer::clip(END);
        let prompt = format!("{}  a Dog ☂!", "Ünter ".repeat(75 / 2));
        let tokens = tokenizer.encode(&prompt);
        assert!(tokens.n_dropped > 0);
        let lost = tokens.lost.unwrap();
        assert!(
            prompt.ends_with(&lost) && lost.ends_with("a Dog ☂!"),
            "{lost:?}"
        );
        assert_eq!(tokenizer.encode("a dog").lost, None);
    }

    #[test]
    fn a_token_for_unknown_symbols_must_be_in_the_vocabulary() {
        let whole = |kind: &str, unknown: &str| {
            format!(
                r#"{{"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
                "model": {{"type": "{kind}", "unk_token": "{unknown}", "merges": [],
                "vocab": {{"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2}}}}}}"#
            )
        };
        for kind in ["BPE", "WordLevel"] {
            let open = |unknown: &str| {
                let (_kept, model) = folder(&[("tokenizer.json", &whole(kind, unknown))]);
                Tokenizer::from_model(&model, "tokenizer")
            };
            let tokens = open("<|endoftext|>").unwrap().encode("x");
            assert_eq!(tokens.ids[..3], [0, 1, 1]);
            let error = open("[UNK]").unwrap_err().to_string();
            assert!(error.contains("\"[UNK]\""), "{error}");
        }
    }

    #[test]
    fn invalid_lengths_are_rejected() {
        for (length, expected) in [
            ("5", Some(5)),
            ("1e30", Some(77)),
            ("1", None),
            ("7.5", None),
        ] {
            let config = format!(r#"{{"model_max_length": {length}}}"#);
            let settings: Settings = serde_json::from_str(&config).unwrap();
            assert_eq!(settings.length().ok(), expected, "{length}");
        }
    }
}
