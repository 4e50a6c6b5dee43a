//! Batches of the shapes world as tensors.

use std::path::Path;

use anyhow::Result;
use burn::tensor::{Device, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};
use swiftbrush_checkpoint::write_json;

use crate::world::{COLORS, HeldOut, Object, Placement, Scene, words};

/// Side of the images.
pub(crate) const SIDE: usize = 32;
/// Context length: the longest caption has 14 words.
pub(crate) const LENGTH: usize = 20;

/// Scenes with their images.
pub(crate) struct Batch {
    pub(crate) scenes: Vec<Scene>,
    placements: Vec<Vec<Placement>>,
    pictures: Vec<Vec<u8>>,
}

impl Batch {
    /// The batch of a step: a function of the seed, the step and the size.
    pub(crate) fn new(seed: u64, step: u64, size: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(step);
        let scene = |_| Scene::random(&mut rng, HeldOut::None);
        let scenes = (0..size).map(scene).collect();
        Self::of(scenes, &mut rng)
    }

    /// Renders scenes at random placements.
    pub(crate) fn of(scenes: Vec<Scene>, rng: &mut ChaCha8Rng) -> Self {
        let placements: Vec<_> = scenes.iter().map(|scene| scene.place(rng)).collect();
        let pairs = scenes.iter().zip(&placements);
        let pictures = pairs.map(|(scene, at)| scene.render(SIDE, at)).collect();
        Self {
            scenes,
            placements,
            pictures,
        }
    }

    pub(crate) fn captions(&self) -> Vec<String> {
        self.scenes.iter().map(Scene::caption).collect()
    }

    /// `[batch, 3, SIDE, SIDE]` in −1…1
    pub(crate) fn images(&self, device: &Device) -> Tensor<4> {
        images(&self.pictures, device)
    }

    /// Centre and size of both objects of each scene, zeros for a missing one: six values per scene.
    pub(crate) fn placement_values(&self) -> Vec<f32> {
        let row = |placements: &Vec<Placement>| {
            let mut row = [0.0; 6];
            for (row, at) in row.chunks_mut(3).zip(placements) {
                row.copy_from_slice(&[at.x, at.y, at.size].map(|value| value as f32));
            }
            row
        };
        self.placements.iter().flat_map(row).collect()
    }

    /// The object in each patch of each image, in row-major order; `None` in patches that show only the ground.
    pub(crate) fn patches(&self, patch: usize) -> Vec<Option<Object>> {
        let rows = SIDE / patch;
        let images = self.scenes.iter().zip(&self.placements).zip(&self.pictures);
        let patches = images.flat_map(|((scene, placements), picture)| {
            let ground = COLORS[scene.ground].1;
            let object_at = move |pixel: usize| {
                let (row, column) = (pixel / SIDE, pixel % SIDE);
                let objects = scene.objects().into_iter().zip(placements);
                let mut around = objects.filter(|(_, at)| at.contains(column, row, SIDE));
                let differs = picture[3 * pixel..3 * pixel + 3] != ground;
                around.next().filter(|_| differs).map(|(object, _)| object)
            };
            (0..rows * rows).map(move |place| {
                let (top, left) = (place / rows * patch, place % rows * patch);
                let pixels = 0..patch * patch;
                let mut pixels = pixels.map(|i| (top + i / patch) * SIDE + left + i % patch);
                pixels.find_map(object_at)
            })
        });
        patches.collect()
    }
}

/// RGB bytes as a tensor, `[images, 3, SIDE, SIDE]` in −1…1.
pub(crate) fn images(pictures: &[Vec<u8>], device: &Device) -> Tensor<4> {
    let bytes = pictures.iter().flatten();
    let values: Vec<f32> = bytes.map(|&byte| f32::from(byte) / 127.5 - 1.0).collect();
    let data = TensorData::new(values, [pictures.len(), SIDE, SIDE, 3]);
    Tensor::<4>::from_data(data, device).permute([0, 3, 1, 2])
}

/// Writes a tokenizer in CLIP's layout whose merges make every word of the shapes world a single token; all other
/// text falls back to bytes. Returns the vocabulary size.
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
    write_json(folder.join("vocab.json"), &vocab)?;
    std::fs::write(
        folder.join("merges.txt"),
        format!("#version: 0.2\n{}\n", merges.join("\n")),
    )?;
    let end = "<|endoftext|>";
    let config = json!({
        "tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "do_lower_case": true,
        "bos_token": "<|startoftext|>", "eos_token": end, "pad_token": end, "unk_token": end,
    });
    write_json(folder.join("tokenizer_config.json"), &config)?;
    let special = json!({
        "bos_token": "<|startoftext|>", "eos_token": end, "pad_token": end, "unk_token": end,
    });
    write_json(folder.join("special_tokens_map.json"), &special)?;
    Ok(symbols.len())
}

/// Characters of the bytes 0…255 in byte-level vocabularies.
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

/// The most frequent pair of adjacent symbols; ties go to the first in alphabetical order.
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
