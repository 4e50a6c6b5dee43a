use std::path::Path;

use burn::tensor::{DType, Device, Tensor};
use image::imageops::replace;
use image::{Rgb32FImage, RgbImage};
use swiftbrush_checkpoint::Model;
use swiftbrush_clip::{Clip, ClipConfig, MEAN, STD, Tokenizer};
use swiftbrush_images::{Filter, centre_square, resize, resize_floats, to_floats};

use super::{FeatureNetwork, batch};
use crate::Error;

/// End-of-text token, which is also CLIP's padding outside Stable Diffusion.
const END: &str = "<|endoftext|>";

/// Input transform from an image to CLIP's square.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClipInput {
    /// Resizes the shorter side with Pillow's 8-bit bicubic filter, then crops the centre: open_clip and transformers.
    Crop,
    /// Resizes the longer side, then pads with black: HPSv2.
    Pad,
    /// Resizes both sides with Pillow's bicubic filter on floats, clipped to 0…255: CMMD.
    Stretch,
}

impl ClipInput {
    fn prepare(self, picture: &RgbImage, side: u32) -> Rgb32FImage {
        let (width, height) = picture.dimensions();
        normalised(match self {
            Self::Crop => {
                let shorter = width.min(height);
                // Truncated, as in torchvision's `Resize`.
                let new =
                    |length| (u64::from(side) * u64::from(length) / u64::from(shorter)) as u32;
                let small = resize(picture, new(width), new(height), Filter::Bicubic);
                to_floats(&centre_square(&small))
            }
            Self::Pad => {
                let scale = f64::from(side) / f64::from(width.max(height));
                let new =
                    |length: u32| ((f64::from(length) * scale).round_ties_even() as u32).max(1);
                let small = resize(picture, new(width), new(height), Filter::Bicubic);
                let mut square = RgbImage::new(side, side);
                let border = |length: u32| i64::from((side - length) / 2);
                replace(
                    &mut square,
                    &small,
                    border(small.width()),
                    border(small.height()),
                );
                to_floats(&square)
            }
            Self::Stretch => resize_floats(&to_floats(picture), side, side, Filter::Bicubic),
        })
    }
}

fn normalised(mut picture: Rgb32FImage) -> Rgb32FImage {
    for pixel in picture.pixels_mut() {
        for (channel, value) in pixel.0.iter_mut().enumerate() {
            let share = f64::from(value.clamp(0.0, 255.0)) / 255.0;
            *value = ((share - MEAN[channel]) / STD[channel]) as f32;
        }
    }
    picture
}

/// Both encoders of any CLIP from transformers or open_clip, including HPSv2 and PickScore.
#[derive(Clone, Debug)]
pub struct ClipNetwork {
    clip: Clip,
    tokenizer: Tokenizer,
    input: ClipInput,
    width: usize,
    device: Device,
}

impl ClipNetwork {
    /// Loads a folder in the layout of transformers or open_clip. The tokenizer is the folder's own, else that of the
    /// sibling folder `tokenizer`, else CLIP's.
    ///
    /// # Errors
    ///
    /// If a file is missing or damaged, or the tokenizer does not match the model.
    pub fn open(
        folder: impl AsRef<Path>,
        input: ClipInput,
        device: &Device,
    ) -> Result<Self, Error> {
        let folder = folder.as_ref();
        let model = Model::open(folder)?;
        let has_vocabulary = |folder: &Path| {
            ["vocab.json", "tokenizer.json"]
                .iter()
                .any(|file| folder.join(file).is_file())
        };
        let beside = folder.with_file_name("tokenizer");
        let tokenizer = if has_vocabulary(folder) {
            Tokenizer::from_model(&model, ".")?
        } else if has_vocabulary(&beside) {
            Tokenizer::from_model(&Model::open(beside)?, ".")?
        } else {
            Tokenizer::clip(END)
        };
        let vocabulary = ClipConfig::from_model(&model, ".")?.text_config.vocab_size;
        if tokenizer.vocabulary() > vocabulary {
            return Err(Error::Vocabulary {
                folder: folder.to_owned(),
                found: tokenizer.vocabulary(),
                expected: vocabulary,
            });
        }
        let clip = Clip::from_model(&model, ".", Some(DType::F32), device)?;
        Ok(Self::new(clip, tokenizer, input, device))
    }

    /// Creates a network from loaded parts, in f32 on `device`.
    pub fn new(clip: Clip, tokenizer: Tokenizer, input: ClipInput, device: &Device) -> Self {
        Self {
            width: clip.width(),
            clip,
            tokenizer,
            input,
            device: device.clone(),
        }
    }

    /// Returns the same network with another input transform.
    pub fn with_input(&self, input: ClipInput) -> Self {
        Self {
            input,
            ..self.clone()
        }
    }

    /// Embeds texts.
    ///
    /// # Shapes
    ///
    /// - returns: `[texts, width]`, of length one
    pub fn embed_texts<S: AsRef<str>>(&self, texts: &[S]) -> Tensor<2> {
        let tokens = self.tokenizer.encode_batch(texts, &self.device);
        self.clip.embed_texts(tokens)
    }
}

impl FeatureNetwork for ClipNetwork {
    fn width(&self) -> usize {
        self.width
    }

    /// Embeddings of unit length.
    fn features(&self, pictures: &[RgbImage]) -> Tensor<2> {
        let side = self.clip.image_size() as u32;
        let prepare = |picture: &RgbImage| self.input.prepare(picture, side);
        self.clip
            .embed_images(batch(pictures, prepare, &self.device))
    }

    fn texts(&self, texts: &[String]) -> Option<Tensor<2>> {
        Some(self.embed_texts(texts))
    }
}
