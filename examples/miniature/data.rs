//! Batches of the shapes world as tensors.

use std::path::Path;

use anyhow::Result;
use burn::tensor::{Device, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};
use swiftbrush_checkpoint::write_json;

use crate::world::{Scene, words};

/// Side of the pictures.
pub(crate) const SIDE: usize = 32;
/// Tokens in a caption: the longest has 14 words.
pub(crate) const LENGTH: usize = 20;

/// Scenes with their pictures.
pub(crate) struct Batch {
    pub(crate) scenes: Vec<Scene>,
    pictures: Vec<Vec<u8>>,
}

impl Batch {
    /// The batch of a step: nothing but the seed and the step decides what is in it.
    pub(crate) fn new(seed: u64, step: u64, size: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(step);
        let scenes: Vec<_> = (0..size).map(|_| Scene::random(&mut rng, false)).collect();
        let pictures = scenes
            .iter()
            .map(|scene| scene.draw(SIDE, &mut rng))
            .collect();
        Self { scenes, pictures }
    }

    pub(crate) fn captions(&self) -> Vec<String> {
        self.scenes.iter().map(Scene::caption).collect()
    }

    /// `[batch, 3, SIDE, SIDE]` in −1…1
    pub(crate) fn images(&self, device: &Device) -> Tensor<4> {
        let values: Vec<f32> = self
            .pictures
            .iter()
            .flatten()
            .map(|&byte| f32::from(byte) / 127.5 - 1.0)
            .collect();
        let data = TensorData::new(values, [self.pictures.len(), SIDE, SIDE, 3]);
        Tensor::<4>::from_data(data, device).permute([0, 3, 1, 2])
    }
}

/// Writes a tokenizer in CLIP's layout whose merges make every word of the shapes world one token;
/// all other text falls back to bytes. Returns the number of tokens.
pub(crate) fn write_tokenizer(folder: &Path) -> Result<usize> {
    let bytes = byte_symbols();
    let mut symbols: Vec<String> = bytes.iter().map(char::to_string).collect();
    symbols.extend(bytes.iter().map(|symbol| format!("{symbol}</w>")));

    let mut splits: Vec<Vec<String>> = words().into_iter().map(letters).collect();
    let mut merges = Vec::new();
    while let Some(pair) = most_frequent_pair(&splits) {
        symbols.push(format!("{}{}", pair.0, pair.1));
        splits.iter_mut().for_each(|split| merge(split, &pair));
        merges.push(format!("{} {}", pair.0, pair.1));
    }
    symbols.extend(["<|startoftext|>", "<|endoftext|>"].map(str::to_owned));

    std::fs::create_dir_all(folder)?;
    let vocab: Map<String, Value> = symbols
        .iter()
        .enumerate()
        .map(|(id, symbol)| (symbol.clone(), json!(id)))
        .collect();
    write_json(&folder.join("vocab.json"), &vocab)?;
    std::fs::write(
        folder.join("merges.txt"),
        format!("#version: 0.2\n{}\n", merges.join("\n")),
    )?;
    let end = "<|endoftext|>";
    let config = json!({
        "tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "do_lower_case": true,
        "bos_token": "<|startoftext|>", "eos_token": end, "pad_token": end, "unk_token": end,
    });
    write_json(&folder.join("tokenizer_config.json"), &config)?;
    let special = json!({
        "bos_token": "<|startoftext|>", "eos_token": end, "pad_token": end, "unk_token": end,
    });
    write_json(&folder.join("special_tokens_map.json"), &special)?;
    Ok(symbols.len())
}

/// The character that stands for each byte in byte-level vocabularies.
fn byte_symbols() -> Vec<char> {
    let printable = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let rest = (0..256u32).filter(|byte| !printable(byte)).enumerate();
    let rest = rest.map(|(index, _)| 256 + index as u32);
    let symbols = (0..256).filter(printable).chain(rest);
    symbols
        .map(|code| char::from_u32(code).expect("none is a surrogate"))
        .collect()
}

fn letters(word: &str) -> Vec<String> {
    let mut letters: Vec<String> = word.chars().map(String::from).collect();
    if let Some(last) = letters.last_mut() {
        last.push_str("</w>");
    }
    letters
}

/// The pair of neighbours that occurs most often, the first of them in the order of the alphabet.
fn most_frequent_pair(splits: &[Vec<String>]) -> Option<(String, String)> {
    let mut counts = std::collections::BTreeMap::new();
    for split in splits {
        for pair in split.windows(2) {
            *counts
                .entry((pair[0].clone(), pair[1].clone()))
                .or_insert(0) += 1;
        }
    }
    let highest = counts.values().copied().max()?;
    counts
        .into_iter()
        .find(|(_, count)| *count == highest)
        .map(|(pair, _)| pair)
}

fn merge(split: &mut Vec<String>, pair: &(String, String)) {
    let mut at = 0;
    while at + 1 < split.len() {
        if split[at] == pair.0 && split[at + 1] == pair.1 {
            let second = split.remove(at + 1);
            split[at].push_str(&second);
        }
        at += 1;
    }
}
