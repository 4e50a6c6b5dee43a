//! Tensors that backward passes keep, counted in elements per sample.

use std::collections::BTreeMap;

use crate::lpips::STAGES;
use crate::parameters::Parameter;

/// Elements that the backward pass of a network needs, per sample.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Activations {
    /// Inputs of the layers that are recomputed one at a time.
    inputs: u64,
    /// Tensors within each of these layers.
    layers: Vec<u64>,
}

/// Tensors of a transformer block that are kept, in units of its input: of normalisations, attentions and the gated GELU,
/// with weights frozen, and in addition if they are trained.
const TRANSFORMER: [u64; 2] = [24, 9];

/// Tensors of a layer of CLIP's vision tower that are kept, in units of its input, with frozen weights.
const TOWER_LAYER: u64 = 13;

impl Activations {
    /// Elements kept at the same time.
    pub(super) fn kept(&self, checkpointing: bool) -> u64 {
        match checkpointing {
            true => self.inputs + self.layers.iter().max().copied().unwrap_or(0),
            false => self.layers.iter().sum(),
        }
    }

    /// Those of a denoiser on latents of a height and width.
    pub(super) fn of_denoiser(
        parameters: &[Parameter],
        [height, width]: [usize; 2],
        is_frozen: bool,
    ) -> Self {
        let blocks = Blocks::of(parameters);
        let mut pixels = (height * width) as u64;
        let mut found = Self::default();
        let extra = u64::from(!is_frozen);
        for block in blocks.0.values() {
            for (index, &[inputs, outputs]) in block.resnets.iter().enumerate() {
                let resnet = (1 + extra) * (inputs + outputs);
                let channels = block.transformers.get(index).copied().unwrap_or(0);
                let transformer = (TRANSFORMER[0] + extra * TRANSFORMER[1]) * channels;
                found.layers.push((resnet + transformer) * pixels);
                found.inputs += outputs * pixels;
            }
            let outputs = block.resnets.last().map_or(0, |&[_, outputs]| outputs);
            match block.resampling {
                Resampling::Down => pixels /= 4,
                Resampling::Up => pixels *= 4,
                Resampling::None => {}
            }
            if block.resampling != Resampling::None {
                found.inputs += outputs * pixels;
            }
        }
        found
    }

    /// Those of TAESD's decoder: after each convolution of a residual block its output.
    pub(super) fn of_decoder(parameters: &[Parameter], [height, width]: [usize; 2]) -> Self {
        let convolutions = parameters.iter().filter(|parameter| {
            parameter.name.starts_with("decoder.") && parameter.name.ends_with(".weight")
        });
        let mut pixels = (height * width) as u64;
        let mut found = Self::default();
        let mut stage = 0;
        for (index, convolution) in convolutions.enumerate() {
            let (outputs, inputs) = (convolution.shape[0] as u64, convolution.shape[1] as u64);
            let in_block = convolution.name.contains(".conv.");
            if index > 0 && !in_block && outputs == inputs {
                found.layers.push(std::mem::take(&mut stage));
                found.inputs += inputs * pixels;
                pixels *= 4;
            }
            stage += outputs * pixels;
        }
        found.layers.push(stage);
        found
    }

    /// Those of LPIPS's VGG16 on the decoded image, whose side is eight times the latents': of each convolution its output,
    /// before and after the activation, and of each stage its features for four operations.
    pub(super) fn of_vgg16(parameters: &[Parameter], [height, width]: [usize; 2]) -> Self {
        const SIDE: usize = 8;
        let outputs = |end: &str| {
            let mut parameters = parameters.iter();
            let found = parameters.find(|parameter| parameter.name == end);
            found.map_or(0, |parameter| parameter.shape[0] as u64)
        };
        let mut pixels = (height * width * SIDE * SIDE) as u64;
        let (mut layer, mut found) = (0, Self::default());
        for count in STAGES {
            let channels = outputs(&format!("features.{layer}.weight"));
            layer += count;
            found
                .layers
                .push((2 * count as u64 + 4) * channels * pixels);
            pixels /= 4;
        }
        found
    }

    /// Those of CLIP's vision tower.
    pub(super) fn of_tower(parameters: &[Parameter]) -> Self {
        let find = |end: &str| {
            let mut parameters = parameters.iter();
            parameters.find(|parameter| parameter.name.ends_with(end))
        };
        let Some(positions) = find("vision_model.embeddings.position_embedding.weight") else {
            return Self::default();
        };
        let states: u64 = positions.shape.iter().map(|&side| side as u64).product();
        let layers = parameters.iter().filter(|parameter| {
            parameter.name.starts_with("vision_model.") && parameter.name.ends_with("fc1.weight")
        });
        let count = layers.count();
        Self {
            inputs: count as u64 * states,
            layers: vec![TOWER_LAYER * states; count],
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Resampling {
    Down,
    Up,
    #[default]
    None,
}

#[derive(Debug, Default)]
struct Block {
    /// Channels before and after each.
    resnets: Vec<[u64; 2]>,
    /// Channels of each.
    transformers: Vec<u64>,
    resampling: Resampling,
}

/// Blocks in the order in which they run.
#[derive(Debug, Default)]
struct Blocks(BTreeMap<(usize, usize), Block>);

impl Blocks {
    fn of(parameters: &[Parameter]) -> Self {
        let mut blocks = Self::default();
        for Parameter { name, shape, .. } in parameters {
            let mut parts = name.split('.');
            let order = match parts.next() {
                Some("down_blocks") => 0,
                Some("mid_block") => 1,
                Some("up_blocks") => 2,
                _ => continue,
            };
            let index = match order {
                1 => 0,
                _ => parts
                    .next()
                    .and_then(|index| index.parse().ok())
                    .unwrap_or(0),
            };
            let block = blocks.0.entry((order, index)).or_default();
            if name.ends_with(".conv1.weight") {
                block.resnets.push([shape[1] as u64, shape[0] as u64]);
            } else if name.ends_with(".attn1.to_q.weight") {
                block.transformers.push(shape[0] as u64);
            } else if name.contains(".downsamplers.") {
                block.resampling = Resampling::Down;
            } else if name.contains(".upsamplers.") {
                block.resampling = Resampling::Up;
            }
        }
        blocks
    }
}

#[cfg(test)]
mod tests {
    use swiftbrush_testing::device;
    use swiftbrush_unet::UNetConfig;

    use super::*;
    use crate::parameters::parameters;

    #[test]
    fn a_denoiser_of_two_blocks_is_counted() {
        let unet = UNetConfig::tiny().init(&device());
        let found = Activations::of_denoiser(&parameters(&unet), [8, 8], true);
        // Down: resnet 8 → 8 and 8 → 16, each with a transformer; mid: two resnets and a transformer at 4×4.
        let down = [(8 + 8 + 24 * 8) * 64, (8 + 16 + 24 * 16) * 16];
        let mid = [(16 + 16 + 24 * 16) * 16, (16 + 16) * 16];
        assert_eq!(found.layers[..4], [down[0], down[1], mid[0], mid[1]]);
        assert_eq!(found.layers.len(), 4 + 2 * 2);
        assert_eq!(found.kept(false), found.layers.iter().sum::<u64>());
        assert!(found.kept(true) < found.kept(false));
    }
}
