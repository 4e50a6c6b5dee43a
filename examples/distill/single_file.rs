//! A single-file model in the layout of the original training code ("LDM"), which ComfyUI and
//! AUTOMATIC1111's web UI read.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result};
use burn::tensor::{DType, Device, TensorData};
use swiftbrush_checkpoint::{LazyTensor, Model, named_tensors, write_tensors};
use swiftbrush_clip::TextEncoder;
use swiftbrush_scheduler::{PredictionType, SchedulerConfig};
use swiftbrush_unet::UNet;
use swiftbrush_vae::AutoencoderKl;

/// Tensors by name.
type Tensors = BTreeMap<String, TensorData>;

/// Width of the text encoder of Stable Diffusion 1.x, which keeps transformers' names.
const WIDTH_OF_1: usize = 768;

/// Writes a denoiser with the text encoder and autoencoder of a model.
pub(crate) fn write(
    unet: &UNet,
    model: &Model,
    scheduler: &SchedulerConfig,
    dtype: DType,
    device: &Device,
    path: &Path,
) -> Result<()> {
    let f32 = Some(DType::F32);
    let text = named_tensors(&TextEncoder::from_model(
        model,
        "text_encoder",
        f32,
        device,
    )?);
    let vae = named_tensors(&AutoencoderKl::from_model(model, "vae", f32, device)?);
    let components = [
        ("model.diffusion_model.", denoiser(named_tensors(unet))),
        ("first_stage_model.", autoencoder(vae)),
        ("cond_stage_model.", text_encoder(text)?),
    ];
    let tensors = components.into_iter().flat_map(|(prefix, tensors)| {
        tensors.into_iter().map(move |(name, data)| {
            LazyTensor::ready(format!("{prefix}{name}"), data.convert_dtype(dtype))
        })
    });
    let predicts = match scheduler.prediction_type {
        PredictionType::Epsilon => "epsilon",
        PredictionType::VPrediction => "v",
        PredictionType::Sample => "sample",
    };
    let metadata = [
        ("format", "pt"),
        ("modelspec.sai_model_spec", "1.0.0"),
        ("modelspec.prediction_type", predicts),
    ];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned()));
    write_tensors(path, tensors.collect(), HashMap::from(metadata))?;
    eprintln!("wrote {}", path.display());
    Ok(())
}

/// Replaces prefixes of names using the first matching pair, and the rest using `inside`.
fn rename(
    tensors: Tensors,
    stems: &[(String, String)],
    inside: impl Fn(&str) -> String,
) -> Tensors {
    let renamed = tensors.into_iter().map(|(name, data)| {
        let found = stems.iter().find_map(|(old, new)| {
            let rest = name.strip_prefix(old.as_str())?.strip_prefix('.')?;
            Some(format!("{new}.{}", inside(rest)))
        });
        (found.unwrap_or(name), data)
    });
    renamed.collect()
}

/// Replaces the prefix of a name using the first matching pair.
fn replace_start(name: &str, pairs: &[(&str, &str)]) -> String {
    let found = pairs
        .iter()
        .find_map(|(old, new)| Some(format!("{new}{}", name.strip_prefix(old)?)));
    found.unwrap_or_else(|| name.to_owned())
}

fn denoiser(tensors: Tensors) -> Tensors {
    const INSIDE: [(&str, &str); 6] = [
        ("norm1.", "in_layers.0."),
        ("conv1.", "in_layers.2."),
        ("time_emb_proj.", "emb_layers.1."),
        ("norm2.", "out_layers.0."),
        ("conv2.", "out_layers.3."),
        ("conv_shortcut.", "skip_connection."),
    ];
    let stems = denoiser_stems(&tensors);
    rename(tensors, &stems, |rest| replace_start(rest, &INSIDE))
}

/// LDM numbers residual blocks and changes of resolution consecutively, all the way down and all the way up.
fn denoiser_stems(tensors: &Tensors) -> Vec<(String, String)> {
    let has = |stem: &str| {
        let stem = format!("{stem}.");
        tensors.keys().any(|name| name.starts_with(&stem))
    };
    let mut stems: Vec<_> = [
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
        ("conv_in", "input_blocks.0.0"),
        ("mid_block.resnets.0", "middle_block.0"),
        ("mid_block.attentions.0", "middle_block.1"),
        ("mid_block.resnets.1", "middle_block.2"),
        ("conv_norm_out", "out.0"),
        ("conv_out", "out.2"),
    ]
    .map(|(old, new)| (old.to_owned(), new.to_owned()))
    .into();
    let mut index = 1;
    for block in (0..).map(|block| format!("down_blocks.{block}")) {
        if !has(&block) {
            break;
        }
        for layer in 0.. {
            let resnet = format!("{block}.resnets.{layer}");
            if !has(&resnet) {
                break;
            }
            let attention = format!("{block}.attentions.{layer}");
            stems.push((resnet, format!("input_blocks.{index}.0")));
            stems.push((attention, format!("input_blocks.{index}.1")));
            index += 1;
        }
        let downsampler = format!("{block}.downsamplers.0.conv");
        if has(&downsampler) {
            stems.push((downsampler, format!("input_blocks.{index}.0.op")));
            index += 1;
        }
    }
    let mut index = 0;
    for block in (0..).map(|block| format!("up_blocks.{block}")) {
        if !has(&block) {
            break;
        }
        for layer in 0.. {
            let resnet = format!("{block}.resnets.{layer}");
            if !has(&resnet) {
                break;
            }
            let attention = format!("{block}.attentions.{layer}");
            stems.push((resnet, format!("output_blocks.{index}.0")));
            stems.push((attention, format!("output_blocks.{index}.1")));
            index += 1;
        }
        let part = 1 + usize::from(has(&format!("{block}.attentions.0")));
        let upsampler = format!("{block}.upsamplers.0.conv");
        stems.push((
            upsampler,
            format!("output_blocks.{}.{part}.conv", index - 1),
        ));
    }
    stems
}

fn autoencoder(tensors: Tensors) -> Tensors {
    const ATTENTION: [(&str, &str); 5] = [
        ("group_norm.", "norm."),
        ("to_q.", "q."),
        ("to_k.", "k."),
        ("to_v.", "v."),
        ("to_out.0.", "proj_out."),
    ];
    let level = |name: &String| {
        let rest = name.strip_prefix("decoder.up_blocks.")?;
        rest.split('.').next()?.parse::<usize>().ok()
    };
    let levels = tensors
        .keys()
        .filter_map(level)
        .max()
        .map_or(0, |last| last + 1);
    let mut stems = Vec::new();
    for half in ["encoder", "decoder"] {
        stems.extend(
            [
                ("conv_norm_out", "norm_out"),
                ("mid_block.resnets.0", "mid.block_1"),
                ("mid_block.attentions.0", "mid.attn_1"),
                ("mid_block.resnets.1", "mid.block_2"),
            ]
            .map(|(old, new)| (format!("{half}.{old}"), format!("{half}.{new}"))),
        );
    }
    for level in 0..levels {
        // The decoder's levels are numbered from the finest.
        let up = levels - 1 - level;
        for (old, new) in [
            ("encoder.down_blocks", format!("encoder.down.{level}")),
            ("decoder.up_blocks", format!("decoder.up.{up}")),
        ] {
            let old = format!("{old}.{level}");
            stems.push((format!("{old}.resnets"), format!("{new}.block")));
            stems.push((format!("{old}.downsamplers.0"), format!("{new}.downsample")));
            stems.push((format!("{old}.upsamplers.0"), format!("{new}.upsample")));
        }
    }
    let inside = |rest: &str| {
        let rest = replace_start(rest, &ATTENTION);
        rest.replace("conv_shortcut", "nin_shortcut")
    };
    let renamed = rename(tensors, &stems, inside).into_iter();
    // Attention is computed by 1×1 convolutions.
    let reshaped = renamed.map(|(name, data)| {
        let shape = data.shape().to_vec();
        let data = match (name.contains(".mid.attn_1."), shape.as_slice()) {
            (true, &[outputs, inputs]) => with_shape(data, [outputs, inputs, 1, 1]),
            _ => data,
        };
        (name, data)
    });
    reshaped.collect()
}

fn with_shape(data: TensorData, shape: impl Into<burn::tensor::Shape>) -> TensorData {
    let (bytes, _, dtype) = data.into_parts();
    TensorData::from_bytes(bytes, shape, dtype)
}

/// Renames the text encoder: transformers' names for 1.x, open_clip's for 2.x.
fn text_encoder(tensors: Tensors) -> Result<Tensors> {
    let norm = tensors.get("text_model.final_layer_norm.weight");
    let width = norm.map_or(0, |norm| norm.shape()[0]);
    if width == WIDTH_OF_1 {
        let prefixed = tensors.into_iter();
        return Ok(prefixed
            .map(|(name, data)| (format!("transformer.{name}"), data))
            .collect());
    }
    const STARTS: [(&str, &str); 4] = [
        (
            "embeddings.token_embedding.weight",
            "token_embedding.weight",
        ),
        (
            "embeddings.position_embedding.weight",
            "positional_embedding",
        ),
        ("final_layer_norm.", "ln_final."),
        ("encoder.layers.", "transformer.resblocks."),
    ];
    const INSIDE: [(&str, &str); 5] = [
        (".self_attn.", ".attn."),
        (".layer_norm1.", ".ln_1."),
        (".layer_norm2.", ".ln_2."),
        (".mlp.fc1.", ".mlp.c_fc."),
        (".mlp.fc2.", ".mlp.c_proj."),
    ];
    let renamed = tensors.into_iter().map(|(name, data)| {
        let name = replace_start(name.trim_start_matches("text_model."), &STARTS);
        let name = INSIDE
            .iter()
            .fold(name, |name, (old, new)| name.replacen(old, new, 1));
        (format!("model.{name}"), data)
    });
    fuse_projections(renamed.collect())
}

/// Concatenates the projections of queries, keys and values, as in open_clip.
fn fuse_projections(mut tensors: Tensors) -> Result<Tensors> {
    let queries: Vec<_> = tensors
        .keys()
        .filter(|name| name.contains(".attn.q_proj."))
        .cloned()
        .collect();
    for query in queries {
        let mut take = |part: &str| {
            let name = query.replace("q_proj", part);
            tensors
                .remove(&name)
                .with_context(|| format!("the text encoder has no {name}"))
        };
        let parts = [take("q_proj")?, take("k_proj")?, take("v_proj")?];
        let mut shape = parts[0].shape().to_vec();
        shape[0] *= 3;
        let values: Vec<f32> = parts.iter().flat_map(|part| part.iter::<f32>()).collect();
        let name = query.replace("q_proj.", "in_proj_");
        tensors.insert(name, TensorData::new(values, shape));
    }
    Ok(tensors)
}
