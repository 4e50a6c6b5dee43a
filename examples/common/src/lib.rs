//! What the programs share: devices by name, pictures as files.
pub mod model;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{Device, Tensor, TensorData};
use image::RgbImage;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::de::DeserializeOwned;
use swiftbrush_checkpoint::{Download, Hub};
use swiftbrush_pipeline::{Picture, Record};

/// Names that `--device` takes in this build.
pub const DEVICES: &[&str] = &[
    #[cfg(feature = "flex")]
    "flex",
    #[cfg(feature = "wgpu")]
    "wgpu",
    #[cfg(feature = "cuda")]
    "cuda",
    #[cfg(feature = "metal")]
    "metal",
];

/// The device of a name; `cuda:1` is the second card.
pub fn device(name: &str) -> Result<Device> {
    let (kind, index) = match name.split_once(':') {
        Some((kind, index)) => (
            kind,
            index
                .parse::<usize>()
                .with_context(|| format!("--device {name}"))?,
        ),
        None => (name, 0),
    };
    let _ = index;
    swiftbrush_kernels::keep_compiled_kernels();
    Ok(match kind {
        #[cfg(feature = "flex")]
        "flex" => Device::flex(),
        #[cfg(feature = "wgpu")]
        "wgpu" => Device::wgpu(burn::tensor::DeviceKind::DefaultDevice),
        #[cfg(feature = "cuda")]
        "cuda" => Device::cuda(index),
        #[cfg(feature = "metal")]
        "metal" => Device::metal(burn::tensor::DeviceKind::DefaultDevice),
        _ => bail!(
            "--device {name} is not in this build, which has {}; others come with --features",
            DEVICES.join(", ")
        ),
    })
}

/// What a name on the command line stands for: that which a file of settings calls so.
pub fn named<T: DeserializeOwned>(name: &str) -> Result<T, String> {
    serde_json::from_value(name.into()).map_err(|error| error.to_string())
}

/// The miniature that lies beside the programs.
pub fn miniature() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../miniature/model")
}

/// Prompts of a file, one on each line, or the captions of COCO as GigaGAN's list has them: JSON whose `labels` are pairs of a
/// picture and its caption.
pub fn read_prompts(path: &Path) -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Captions {
        labels: Vec<(String, String)>,
    }
    let named = || format!("cannot read prompts of {}", path.display());
    let text = std::fs::read_to_string(path).with_context(named)?;
    let is_json = path
        .extension()
        .is_some_and(|extension| extension == "json");
    let prompts: Vec<_> = match is_json {
        true => {
            let captions: Captions = serde_json::from_str(&text).with_context(named)?;
            captions
                .labels
                .into_iter()
                .map(|(_, caption)| caption)
                .collect()
        }
        false => text.lines().map(str::to_owned).collect(),
    };
    ensure!(
        !prompts.is_empty(),
        "there are no prompts in {}",
        path.display()
    );
    Ok(prompts)
}

/// What of a repository on the Hugging Face hub is wanted.
#[derive(Clone, Copy, Debug)]
pub enum Wanted<'a> {
    /// A model with these components.
    Model(&'a [&'a str], Option<&'a str>),
    /// The one component that it is.
    Component,
}

/// A file or folder of this machine, or one out of the hub: `owner/name` (with `@revision`, if it is not `main`), and
/// `owner/name/file` for a file. What is here goes first.
pub fn find(name: &str, wanted: Wanted<'_>) -> Result<PathBuf> {
    let path = PathBuf::from(name);
    let parts: Vec<_> = name.split('/').collect();
    let is_id = parts
        .iter()
        .all(|part| !part.is_empty() && !part.starts_with('.'));
    if path.exists() || !is_id || parts.len() < 2 {
        return Ok(path);
    }
    let bar = ProgressBar::hidden();
    let template = "{msg} {bar:30} {bytes} of {total_bytes}, {eta} left";
    bar.set_style(ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar()));
    let mut told = |download: Download| {
        if bar.is_hidden() || bar.message() != download.file {
            bar.set_draw_target(ProgressDrawTarget::stderr());
            bar.reset();
            bar.set_message(download.file);
        }
        bar.set_length(download.size as u64);
        bar.set_position(download.done as u64);
    };
    let hub = Hub::from_env();
    let found = match (parts.as_slice(), wanted) {
        ([_, _], Wanted::Model(components, variant)) => {
            let model = hub.model(name, components, variant, &mut told);
            model.map(|model| model.root().to_owned())
        }
        ([_, _], Wanted::Component) => hub.component(name, &mut told),
        ([owner, name, file @ ..], _) => {
            hub.file(&format!("{owner}/{name}"), &file.join("/"), &mut told)
        }
        _ => return Ok(path),
    };
    bar.finish_and_clear();
    found.with_context(|| {
        format!("{name} is neither a file or folder here nor to be had from the hub")
    })
}

/// Images of a batch in −1…1 as pictures.
pub fn pictures(images: Tensor<4>) -> Vec<RgbImage> {
    Picture::of_images(images).iter().map(image).collect()
}

/// A picture as the crate `image` has it.
pub fn image(picture: &Picture) -> RgbImage {
    let (width, height) = (picture.width as u32, picture.height as u32);
    RgbImage::from_raw(width, height, picture.bytes.clone()).expect("three bytes a pixel")
}

/// A picture of a file.
pub fn read_image(path: &Path) -> Result<Picture> {
    let image = image::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let image = image.into_rgb8();
    Ok(Picture {
        width: image.width() as usize,
        height: image.height() as usize,
        bytes: image.into_raw(),
    })
}

/// A picture `count` times over, `[count, 3, height, width]` in −1…1.
pub fn tensor(picture: &Picture, count: usize, device: &Device) -> Tensor<4> {
    let values: Vec<f32> = picture
        .bytes
        .iter()
        .map(|&byte| f32::from(byte) / 127.5 - 1.0)
        .collect();
    let (height, width) = (picture.height, picture.width);
    let image = TensorData::new(values, [1, height, width, 3]);
    let image = Tensor::<4>::from_data(image, device).permute([0, 3, 1, 2]);
    image.repeat_dim(0, count)
}

/// Writes a picture that says how it was made, replacing an older one only when it is whole.
pub fn write_picture(picture: &Picture, record: &Record, path: &Path) -> Result<()> {
    let bytes = picture.to_png(record);
    Ok(swiftbrush_checkpoint::write_atomically(path, |file| {
        file.write_all(&bytes)
    })?)
}

/// Each pixel as a square of `factor` pixels.
pub fn enlarged(picture: &Picture, factor: u32) -> Picture {
    let factor = factor as usize;
    let (width, height) = (picture.width * factor, picture.height * factor);
    let pixel = |index: usize| {
        let (row, column) = (index / width / factor, index % width / factor);
        let start = 3 * (row * picture.width + column);
        &picture.bytes[start..start + 3]
    };
    Picture {
        width,
        height,
        bytes: (0..width * height).flat_map(pixel).copied().collect(),
    }
}

/// Pictures side by side, `columns` in a row.
pub fn grid(pictures: &[RgbImage], columns: usize) -> RgbImage {
    let (width, height) = pictures.first().map_or((1, 1), RgbImage::dimensions);
    let columns = columns.min(pictures.len()).max(1);
    let rows = pictures.len().div_ceil(columns);
    let mut grid = RgbImage::new(width * columns as u32, height * rows as u32);
    for (index, picture) in pictures.iter().enumerate() {
        let (x, y) = (
            (index % columns) as u32 * width,
            (index / columns) as u32 * height,
        );
        image::imageops::replace(&mut grid, picture, x.into(), y.into());
    }
    grid
}

/// Writes a PNG that replaces an older one only when it is whole.
pub fn write_png(picture: &RgbImage, path: &Path) -> Result<()> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png)?;
    Ok(swiftbrush_checkpoint::write_atomically(path, |file| {
        file.write_all(bytes.get_ref())
    })?)
}
