//! CLIP: the judge of the distillation.

use std::path::Path;

use anyhow::{Result, ensure};
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use examples_common::pictures;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use swiftbrush_clip::{
    Clip, ClipConfig, HiddenAct, TextConfig, Tokenizer, VisionConfig, preprocess,
};
use swiftbrush_kernels::{Linear, LinearConfig};
use swiftbrush_trainer::AdamWConfig;
use swiftbrush_vae::AutoencoderKl;

use crate::attributes::{ATTRIBUTES, attribute_loss, cross_entropy};
use crate::data::{Batch, LENGTH, SIDE, images};
use crate::training::{PARTS, Schedule, train};
use crate::world::{COLORS, HeldOut, Layout, Object, SHAPES, Scene};

/// Side of the patches of the vision tower.
const PATCH: usize = 4;
/// Width of the vision tower.
const WIDTH: usize = 96;
/// Width of the joint space.
const SHARED: usize = 64;

pub(crate) fn clip_config(n_tokens: usize) -> ClipConfig {
    ClipConfig {
        text_config: TextConfig {
            vocab_size: n_tokens,
            hidden_size: 64,
            intermediate_size: 256,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            max_position_embeddings: LENGTH,
            hidden_act: HiddenAct::Gelu,
            projection_dim: SHARED,
            eos_token_id: n_tokens as i64 - 1,
            ..TextConfig::default()
        },
        vision_config: VisionConfig {
            hidden_size: WIDTH,
            intermediate_size: 4 * WIDTH,
            num_hidden_layers: 4,
            num_attention_heads: 3,
            image_size: SIDE,
            patch_size: PATCH,
            hidden_act: HiddenAct::Gelu,
            ..VisionConfig::default()
        },
        projection_dim: SHARED,
        ..ClipConfig::default()
    }
}

/// CLIP with two linear probes that train its towers and are then dropped.
///
/// Contrastive training alone learns colours and positions within hundreds of steps, but hardly any shapes: a wrong
/// shape is a small part of the error of a whole caption. The probes predict each attribute separately.
#[derive(Module, Debug)]
struct Probed {
    clip: Clip,
    /// Predicts the attributes of a scene from an embedding of either tower.
    attributes: Linear,
    /// Predicts colour and shape of the object in a patch from the state of that patch.
    patches: Linear,
}

/// Trains CLIP (arXiv 2103.00020, figure 3) on batches of near misses: a scene, the scenes that differ from it
/// in one attribute, and an image of each, so that every caption is contrasted with all five wrong shapes, another
/// colour, swapped colours, swapped objects, another relation and another ground.
///
/// [`Blends`] are further negatives of the captions of both their shapes: without them CLIP takes the rounded squares of a
/// student, which the scorer takes for circles, for squares.
pub(crate) fn train_clip(
    folder: &Path,
    tokenizer: &Tokenizer,
    beginning: Clip,
    kl: &AutoencoderKl,
    seed: u64,
    steps: u64,
    device: &Device,
) -> Result<Clip> {
    const BATCH: usize = 28;
    const BLENDS: usize = 10;
    ensure!(
        tokenizer.length() == LENGTH,
        "expected a tokenizer of {LENGTH} tokens, found one of {}: it belongs to another miniature",
        tokenizer.length()
    );
    let blends = Blends::new(kl, seed, device);
    let device = device.clone().autodiff();
    let schedule = Schedule {
        learning_rate: 1.5e-3,
        adamw: AdamWConfig {
            beta2: 0.99,
            weight_decay: 0.01,
            ..AdamWConfig::default()
        },
        ..Schedule::new(steps, PARTS)
    };
    let loss = |model: &Probed, step| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(step);
        let mut scenes = near_misses(&mut rng, BATCH);
        let blends = blends.draw(&mut rng, BLENDS, &mut scenes);
        let batch = Batch::of(scenes, &mut rng);
        model.loss(&batch, &blends, tokenizer, &device)
    };
    let look = |model: &Probed, step| {
        let [seen, held_out] = [HeldOut::None, HeldOut::Any]
            .map(|class| told_shapes(&model.clip, tokenizer, class, seed ^ 1, 512));
        let blends = blends.cosine(&model.clip, tokenizer);
        eprintln!(
            "step {step}: shape told from all others, known pairs {seen}; held-out {held_out}; cosine of blends {blends:.3}"
        );
        Ok(())
    };
    let linear = |inputs, classes| LinearConfig::new(inputs, classes).init(&device);
    let beginning = Probed {
        clip: beginning.train().unfreeze(),
        attributes: linear(SHARED, ATTRIBUTES.iter().sum()),
        patches: linear(WIDTH, COLORS.len() + SHAPES.len()),
    };
    Ok(train(folder, beginning, schedule, &device, loss, look)?.clip)
}

impl Probed {
    fn loss(
        &self,
        batch: &Batch,
        blends: &[Vec<u8>],
        tokenizer: &Tokenizer,
        device: &Device,
    ) -> Tensor<1> {
        let (clip, count) = (&self.clip, batch.scenes.len());
        let pictures = Tensor::cat(vec![batch.images(device), images(blends, device)], 0);
        let states = clip.image_states(preprocess(pictures, SIDE));
        let images = clip.embed_image_states(states.clone());
        let texts = clip.embed_texts(tokenizer.encode_batch(&batch.captions(), device));
        let scale = clip.logit_scale.val().clamp_max(100f32.ln()).exp();
        let logits = images.clone().matmul(texts.clone().transpose()) * scale.unsqueeze::<2>();
        let own: Vec<_> = (0..count).collect();
        let of_images = cross_entropy(logits.clone().narrow(0, 0, count), &own);
        let contrast = (of_images + cross_entropy(logits.transpose(), &own)) * 0.5;
        contrast
            + self.attribute_loss(images.narrow(0, 0, count), batch)
            + self.attribute_loss(texts, batch)
            + self.patch_loss(states.narrow(0, 0, count), batch)
    }

    fn attribute_loss(&self, embeddings: Tensor<2>, batch: &Batch) -> Tensor<1> {
        // Embeddings have unit length, but logits need more.
        const SCALE: f64 = 8.0;
        attribute_loss(self.attributes.forward(embeddings * SCALE), &batch.scenes)
    }

    fn patch_loss(&self, states: Tensor<3>, batch: &Batch) -> Tensor<1> {
        let [images, tokens, width] = states.dims();
        let patches = states.narrow(1, 1, tokens - 1);
        let patches = patches.reshape([images * (tokens - 1), width]);
        let (mut places, mut colors, mut shapes) = (vec![], vec![], vec![]);
        for (place, object) in batch.patches(PATCH).into_iter().enumerate() {
            if let Some(object) = object {
                places.push(place as i32);
                colors.push(object.color);
                shapes.push(object.shape);
            }
        }
        let count = places.len();
        let places = TensorData::new(places, [count]);
        let places = Tensor::<1, Int>::from_data(places, &patches.device());
        let logits = self.patches.forward(patches.select(0, places));
        cross_entropy(logits.clone().narrow(1, 0, COLORS.len()), &colors)
            + cross_entropy(logits.narrow(1, COLORS.len(), SHAPES.len()), &shapes)
    }
}

/// Images between two shapes, as a student paints them when it has not decided: the latents of two scenes that differ in one shape,
/// at the same place, mixed and decoded.
struct Blends {
    pairs: Vec<[Scene; 2]>,
    pictures: Vec<Vec<u8>>,
}

impl Blends {
    const COUNT: usize = 8192;
    /// Weights of the second scene.
    const WEIGHTS: std::ops::Range<f64> = 0.3..0.7;

    fn new(kl: &AutoencoderKl, seed: u64, device: &Device) -> Self {
        const BATCH: usize = 64;
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xb1e4d);
        let mut blends = Self {
            pairs: Vec::new(),
            pictures: Vec::new(),
        };
        while blends.pairs.len() < Self::COUNT {
            let scene = Scene::random(&mut rng, HeldOut::None);
            let others = reshaped(&scene, rng.random_range(0..scene.objects().len()));
            let other = others[rng.random_range(0..others.len())];
            if other.is_valid() && HeldOut::None.contains(&other) {
                blends.pairs.push([scene, other]);
            }
        }
        for pairs in blends.pairs.chunks(BATCH) {
            let mut rendered = [vec![], vec![]];
            for [scene, other] in pairs {
                let placements = scene.place(&mut rng);
                rendered[0].push(scene.render(SIDE, &placements));
                rendered[1].push(other.render(SIDE, &placements));
            }
            let [first, second] =
                rendered.map(|pictures| kl.encode(images(&pictures, device)).mode());
            let weights = pairs.iter().map(|_| rng.random_range(Self::WEIGHTS) as f32);
            let weights = TensorData::new(weights.collect::<Vec<_>>(), [pairs.len(), 1, 1, 1]);
            let weights = Tensor::<4>::from_data(weights, device);
            let latents = first.clone() + (second - first) * weights;
            let painted = pictures(kl.decode(latents)).into_iter();
            blends
                .pictures
                .extend(painted.map(|picture| picture.into_raw()));
        }
        blends
    }

    /// Mean cosine of 512 blends with the nearer one of their captions.
    fn cosine(&self, clip: &Clip, tokenizer: &Tokenizer) -> f64 {
        const COUNT: usize = 512;
        let device = &clip.logit_scale.val().device();
        let captions = self.pairs[..COUNT].iter().flatten().map(Scene::caption);
        let captions: Vec<_> = captions.collect();
        let texts = clip.embed_texts(tokenizer.encode_batch(&captions, device));
        let pictures = images(&self.pictures[..COUNT], device);
        let pictures = clip.embed_images(preprocess(pictures, SIDE));
        let products = texts.reshape([COUNT, 2, SHARED]) * pictures.reshape([COUNT, 1, SHARED]);
        let nearer = products.sum_dim(2).max_dim(1).mean().into_data();
        nearer.iter::<f64>().sum()
    }

    /// Draws blends whose scenes are not among `scenes`, and adds their scenes.
    fn draw(&self, rng: &mut ChaCha8Rng, count: usize, scenes: &mut Vec<Scene>) -> Vec<Vec<u8>> {
        let mut drawn = Vec::with_capacity(count);
        while drawn.len() < count {
            let index = rng.random_range(0..self.pairs.len());
            let pair = &self.pairs[index];
            if !pair.iter().any(|scene| scenes.contains(scene)) {
                scenes.extend(pair);
                drawn.push(self.pictures[index].clone());
            }
        }
        drawn
    }
}

/// Draws scenes in groups: one at random, then those that differ from it in one respect. No two are the same,
/// and none contains a held-out pair.
fn near_misses(rng: &mut ChaCha8Rng, count: usize) -> Vec<Scene> {
    let mut scenes: Vec<Scene> = Vec::with_capacity(count);
    while scenes.len() < count {
        let base = Scene::random(rng, HeldOut::None);
        for scene in std::iter::once(base).chain(altered(&base, rng)) {
            let is_new = scene.is_valid() && HeldOut::None.contains(&scene);
            if scenes.len() < count && is_new && !scenes.contains(&scene) {
                scenes.push(scene);
            }
        }
    }
    scenes
}

/// All five wrong shapes of one object, swapped colours, swapped objects, another relation, another colour and
/// another ground; scenes may be invalid or repeat.
fn altered(scene: &Scene, rng: &mut ChaCha8Rng) -> Vec<Scene> {
    let which = rng.random_range(0..scene.objects().len());
    let mut altered = reshaped(scene, which);
    let (color, ground) = (
        rng.random_range(0..COLORS.len()),
        rng.random_range(0..COLORS.len()),
    );
    altered.push(scene.with_object(which, |object| object.color = color));
    altered.push(Scene { ground, ..*scene });
    let other = Object {
        color: rng.random_range(0..COLORS.len()),
        shape: rng.random_range(0..SHAPES.len()),
    };
    let recolored = |a: Object, b: Object| {
        let with = |object: Object, color| Object { color, ..object };
        (with(a, b.color), with(b, a.color))
    };
    let layouts = match scene.layout {
        Layout::One(object) => {
            [Layout::Above(object, other), Layout::LeftOf(other, object)].to_vec()
        }
        Layout::Above(a, b) => {
            let (c, d) = recolored(a, b);
            [
                Layout::Above(c, d),
                Layout::Above(b, a),
                Layout::LeftOf(a, b),
            ]
            .to_vec()
        }
        Layout::LeftOf(a, b) => {
            let (c, d) = recolored(a, b);
            [
                Layout::LeftOf(c, d),
                Layout::LeftOf(b, a),
                Layout::Above(a, b),
            ]
            .to_vec()
        }
    };
    altered.extend(layouts.into_iter().map(|layout| Scene { layout, ..*scene }));
    altered
}

/// The scene with each of the other shapes in place of one of its objects.
pub(crate) fn reshaped(scene: &Scene, which: usize) -> Vec<Scene> {
    let reshape = |by| {
        scene.with_object(which, |object| {
            object.shape = (object.shape + by) % SHAPES.len();
        })
    };
    (1..SHAPES.len()).map(reshape).collect()
}

/// Share of ground-truth images whose own caption is nearer than the one with a wrong shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Told {
    /// Nearer than each of the five.
    pub(crate) from_all: f64,
    /// Nearer than one of the five, drawn at random.
    pub(crate) from_one: f64,
    /// Mean cosine of images with their own captions.
    pub(crate) own: f64,
    /// Mean cosine with captions that name a wrong shape.
    pub(crate) wrong: f64,
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            from_all,
            from_one,
            own,
            wrong,
        } = self;
        write!(
            f,
            "{from_all:.3} (from one {from_one:.3}; cosines {own:.3} and {wrong:.3})"
        )
    }
}

/// Measures how well CLIP distinguishes shapes in unseen images. The shape of the held-out object is changed if there
/// is one.
pub(crate) fn told_shapes(
    clip: &Clip,
    tokenizer: &Tokenizer,
    class: HeldOut,
    seed: u64,
    count: usize,
) -> Told {
    const BATCH: usize = 128;
    let device = &clip.logit_scale.val().device();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(u64::MAX);
    let scenes: Vec<_> = (0..count).map(|_| Scene::random(&mut rng, class)).collect();
    let mut cosines: Vec<f64> = Vec::new();
    for scenes in scenes.chunks(BATCH) {
        let batch = Batch::of(scenes.to_vec(), &mut rng);
        let captions = scenes.iter().flat_map(|scene| {
            let objects = scene.objects();
            let held_out = objects.iter().position(|object| object.is_held_out());
            let which = held_out.unwrap_or_else(|| rng.random_range(0..objects.len()));
            let scenes = std::iter::once(*scene).chain(reshaped(scene, which));
            scenes.map(|scene| scene.caption()).collect::<Vec<_>>()
        });
        let captions: Vec<_> = captions.collect();
        let images = clip.embed_images(preprocess(batch.images(device), SIDE));
        let texts = clip.embed_texts(tokenizer.encode_batch(&captions, device));
        let texts = texts.reshape([scenes.len(), SHAPES.len(), SHARED]);
        let products = texts * images.reshape([scenes.len(), 1, SHARED]);
        cosines.extend(products.sum_dim(2).into_data().iter::<f64>());
    }
    let rows: Vec<_> = cosines.chunks(SHAPES.len()).collect();
    let mean = |of: &dyn Fn(&[f64]) -> f64| {
        rows.iter().map(|row| of(row)).sum::<f64>() / rows.len() as f64
    };
    let wrong = (SHAPES.len() - 1) as f64;
    Told {
        from_all: mean(&|row| f64::from(u8::from(row[1..].iter().all(|other| row[0] > *other)))),
        from_one: mean(&|row| {
            row[1..].iter().filter(|other| row[0] > **other).count() as f64 / wrong
        }),
        own: mean(&|row| row[0]),
        wrong: mean(&|row| row[1..].iter().sum::<f64>() / wrong),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_misses_are_distinct_and_hold_no_held_out_pair() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let scenes = near_misses(&mut rng, 480);
        for (at, scene) in scenes.iter().enumerate() {
            assert!(
                scene.is_valid() && HeldOut::None.contains(scene),
                "{scene:?}"
            );
            assert!(!scenes[..at].contains(scene), "{scene:?}");
        }
    }

    #[test]
    fn a_scene_brings_its_wrong_shapes() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let scenes = near_misses(&mut rng, 480);
        let has_wrong_shape = |scene: &&Scene| {
            let wrong = (0..scene.objects().len()).flat_map(|which| reshaped(scene, which));
            wrong.filter(|other| scenes.contains(other)).count() >= 3
        };
        let share = scenes.iter().filter(has_wrong_shape).count() as f64 / scenes.len() as f64;
        assert!(share > 0.4, "{share}");
    }
}
