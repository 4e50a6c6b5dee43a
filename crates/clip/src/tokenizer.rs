use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::Deserialize;
use serde_json::{Map, Value};
use swiftbrush_checkpoint::{Model, read_json};
use tokenizers::models::bpe::{BPE, BpeBuilder};
use tokenizers::normalizers::{self, Lowercase, NFC, Replace, replace::ReplacePattern};
use tokenizers::pre_tokenizers::{self, byte_level::ByteLevel, split::Split, split::SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use crate::open_clip::is_open_clip;
use crate::vocabulary::clip_vocabulary;

pub(crate) const START: &str = "<|startoftext|>";
pub(crate) const END: &str = "<|endoftext|>";
pub(crate) const END_OF_WORD: &str = "</w>";
/// What pads prompts in Stable Diffusion 2.x.
const PAD_OF_2: &str = "!";
/// Contractions, words, single digits, and runs of anything else.
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// CLIP's byte-pair tokenizer, padding as the checkpoint says.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    start: i32,
    end: i32,
    pad: i32,
    length: usize,
}

/// The tokens of one prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Start, text, end, padding: always the tokenizer's full length.
    pub ids: Vec<i32>,
    /// Tokens of the text that found no place and were dropped from its end.
    pub n_dropped: usize,
}

/// A vocabulary that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A file of the folder cannot be read.
    #[error(transparent)]
    File(#[from] swiftbrush_checkpoint::Error),
    /// The folder holds no vocabulary.
    #[error("{folder} has neither vocab.json with merges.txt nor tokenizer.json")]
    NoVocabulary {
        /// The folder.
        folder: PathBuf,
    },
    /// The vocabulary is not valid.
    #[error("the vocabulary in {folder} cannot be used: {reason}")]
    Vocabulary {
        /// The folder.
        folder: PathBuf,
        /// Why.
        reason: String,
    },
}

/// What is read of `tokenizer_config.json` and `special_tokens_map.json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Settings {
    pad_token: Option<Value>,
    model_max_length: Option<f64>,
}

impl Settings {
    fn read(path: &Path) -> Result<Self, TokenizerError> {
        if path.is_file() {
            Ok(read_json(path)?)
        } else {
            Ok(Self::default())
        }
    }

    /// Tokens are written as text or as an object with its `content`.
    fn pad(&self) -> Option<String> {
        let token = self.pad_token.as_ref()?;
        token
            .as_str()
            .or_else(|| token.get("content")?.as_str())
            .map(str::to_owned)
    }
}

/// Tokens in a prompt when the folder does not say.
const DEFAULT_LENGTH: usize = 77;

impl Tokenizer {
    /// Reads the `tokenizer` of a model: `vocab.json` with `merges.txt`, or `tokenizer.json`; for a single file
    /// without one it is CLIP's own.
    ///
    /// The padding token is that of `special_tokens_map.json`, else of `tokenizer_config.json`, else
    /// the end of text: in Stable Diffusion 2.1 the two files disagree and the first is right.
    ///
    /// # Errors
    ///
    /// If the files are missing or damaged, or the vocabulary lacks the special tokens.
    pub fn from_model(model: &Model, component: &str) -> Result<Self, TokenizerError> {
        let Some(folder) = model.path(component) else {
            // The text encoder of 2.x is open_clip's, and pads with what that library pads with.
            let is_2 = model
                .weights("text_encoder")
                .is_ok_and(|weights| is_open_clip(&weights));
            return Ok(Self::clip(if is_2 { PAD_OF_2 } else { END }));
        };
        let bad = |reason: String| TokenizerError::Vocabulary {
            folder: folder.clone(),
            reason,
        };
        let special = Settings::read(&folder.join("special_tokens_map.json"))?;
        let config = Settings::read(&folder.join("tokenizer_config.json"))?;

        let (vocab, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
        let whole = folder.join("tokenizer.json");
        let inner = if vocab.is_file() && merges.is_file() {
            from_vocabulary(&vocab, &merges)
        } else if whole.is_file() {
            from_whole(&whole)?
        } else {
            return Err(TokenizerError::NoVocabulary { folder });
        };
        let inner = inner.map_err(|error| bad(error.to_string()))?;
        let padding = special
            .pad()
            .or_else(|| config.pad())
            .unwrap_or_else(|| END.to_owned());
        // transformers writes 1e30 for "no limit".
        let length = config
            .model_max_length
            .filter(|&length| (2.0..1e6).contains(&length));
        let length = length.map_or(DEFAULT_LENGTH, |length| length as usize);
        Self::new(inner, &padding, length).map_err(bad)
    }

    /// CLIP's own vocabulary, prompts of 77 tokens, padded with `padding`: `!` in Stable Diffusion 2.x,
    /// `<|endoftext|>` in 1.x and wherever CLIP is used alone.
    ///
    /// # Panics
    ///
    /// If there is no such token.
    pub fn clip(padding: &str) -> Self {
        let (vocabulary, merges) = clip_vocabulary();
        let inner = from_bpe(BPE::builder().vocab_and_merges(vocabulary, merges));
        let inner = inner.expect("the vocabulary that is compiled in is whole");
        Self::new(inner, padding, DEFAULT_LENGTH).unwrap_or_else(|reason| panic!("{reason}"))
    }

    fn new(mut inner: tokenizers::Tokenizer, padding: &str, length: usize) -> Result<Self, String> {
        let id = |token: &str| {
            let id = inner
                .token_to_id(token)
                .and_then(|id| i32::try_from(id).ok());
            id.ok_or_else(|| format!("it has no token {token:?}"))
        };
        let (start, end, pad) = (id(START)?, id(END)?, id(padding)?);
        // Special tokens are found in the text before it is split into words; transformers counts the
        // padding among them, so "!!" is two tokens where "!" pads.
        inner.add_special_tokens(&[START, END, padding].map(|token| AddedToken::from(token, true)));
        Ok(Self {
            inner,
            start,
            end,
            pad,
            length,
        })
    }

    /// Different tokens that there are, and so more than the largest of them.
    pub fn vocabulary(&self) -> usize {
        let largest = self.inner.get_vocab(true).into_values().max();
        largest.map_or(0, |largest| largest as usize + 1)
    }

    /// Tokens in every encoded prompt.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Encodes a prompt; one that is too long loses its end, which the result says.
    pub fn encode(&self, prompt: &str) -> Tokens {
        let encoding = self.inner.encode(prompt, false);
        let ids = encoding.expect("byte-pair encoding is total: every byte is a token");
        let room = self.length - 2;
        let text = ids.get_ids().iter().take(room).map(|&id| id as i32);
        let mut tokens: Vec<_> = [self.start]
            .into_iter()
            .chain(text)
            .chain([self.end])
            .collect();
        tokens.resize(self.length, self.pad);
        Tokens {
            ids: tokens,
            n_dropped: ids.len().saturating_sub(room),
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

/// What transformers' `CLIPTokenizerFast` does with the two files.
fn from_vocabulary(vocab: &Path, merges: &Path) -> tokenizers::Result<tokenizers::Tokenizer> {
    let text = |path: &Path| {
        path.to_str()
            .map(str::to_owned)
            .ok_or("a path that is not UTF-8")
    };
    from_bpe(BPE::from_file(&text(vocab)?, &text(merges)?))
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

/// A `tokenizer.json`, of which only the way from text to tokens is taken: start, end, length and padding are put on
/// here, and nothing is decoded. (A damaged decoder makes `tokenizers` 0.22 panic.)
fn from_whole(path: &Path) -> Result<tokenizers::Result<tokenizers::Tokenizer>, TokenizerError> {
    let mut whole: Map<String, Value> = read_json(path)?;
    for part in ["decoder", "post_processor", "padding", "truncation"] {
        whole.insert(part.to_owned(), Value::Null);
    }
    Ok(serde_json::from_value(Value::Object(whole)).map_err(Into::into))
}
