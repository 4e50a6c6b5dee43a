//! Shared parts of the programs: devices by name, prompts, image files, model options.
#![allow(clippy::print_stderr, reason = "programs print")]

mod adapter;
pub mod model;
mod pictures;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Device;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::de::DeserializeOwned;
use swiftbrush_checkpoint::{Event, Hub, read_lines, read_text};

pub use pictures::{
    decode_image, enlarged, enlargement, grid, image, mask, pictures, read_image, read_mask,
    shrunk, tensor, write_picture, write_png,
};

/// The values of `--device` in this build.
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

/// The device with this name; `cuda:1` is the second card. On the CPU, the variable `SWIFTBRUSH_VECTORS` (`avx2` or `portable`)
/// limits the vectors, to generate what another processor or a browser generates.
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
        "flex" => {
            limit_vectors()?;
            Device::flex()
        }
        #[cfg(feature = "wgpu")]
        "wgpu" => Device::wgpu(burn::tensor::DeviceKind::DefaultDevice),
        #[cfg(feature = "cuda")]
        "cuda" => Device::cuda(index),
        #[cfg(feature = "metal")]
        "metal" => Device::metal(burn::tensor::DeviceKind::DefaultDevice),
        _ => bail!(
            "--device {name} is not available in this build, which has {}; build with --features for others",
            DEVICES.join(", ")
        ),
    })
}

#[cfg(feature = "flex")]
fn limit_vectors() -> Result<()> {
    use swiftbrush_kernels::{Vectors, set_vectors};
    let Some(name) = std::env::var_os("SWIFTBRUSH_VECTORS") else {
        return Ok(());
    };
    match name.to_str() {
        Some("avx2") => set_vectors(Vectors::Avx2),
        Some("portable") => set_vectors(Vectors::Portable),
        _ => bail!("SWIFTBRUSH_VECTORS is {name:?}; expected avx2 or portable"),
    }
    Ok(())
}

/// Parses a name on the command line as in configuration files.
pub fn named<T: DeserializeOwned>(name: &str) -> Result<T, String> {
    serde_json::from_value(name.into()).map_err(|error| error.to_string())
}

/// The miniature model in this repository.
pub fn miniature() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../miniature/model")
}

/// Reads the prompts of a text file, one per line, or the captions of COCO in GigaGAN's list: JSON whose `labels` are pairs of an
/// image and its caption. Blank lines are skipped and reported on stderr.
pub fn read_prompts(path: &Path) -> Result<Vec<String>> {
    let is_json = path
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    if is_json {
        return read_captions(path);
    }
    let (prompts, n_blank) = read_lines(path)?;
    if n_blank > 0 {
        eprintln!(
            "{}: skipped {n_blank} blank lines, {} prompts remain",
            path.display(),
            prompts.len()
        );
    }
    Ok(prompts)
}

fn read_captions(path: &Path) -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Captions {
        labels: Vec<(String, String)>,
    }
    let captions: Captions = serde_json::from_str(&read_text(path)?)
        .with_context(|| format!("cannot read captions of {}", path.display()))?;
    let captions: Vec<_> = captions.labels.into_iter().map(|(_, text)| text).collect();
    ensure!(!captions.is_empty(), "{} has no captions", path.display());
    Ok(captions)
}

/// Formats a list for messages, truncated after eight entries.
pub fn shortened(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Prints warnings of the libraries without time and module.
pub fn print_warnings() {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing::Level::WARN)
        .without_time()
        .with_target(false)
        .init();
}

/// Files of a repository on the Hugging Face hub.
#[derive(Clone, Copy, Debug)]
pub enum Wanted<'a> {
    /// These components of a model, in a variant.
    Model(&'a [&'a str], Option<&'a str>),
    /// A repository that is a single component, or one of its files.
    Component,
}

/// Finds a local file or folder, or downloads it from the hub: `owner/name` or `owner/name@revision` [default: `main`],
/// and for a component also `owner/name/file`. An existing path takes precedence.
pub fn find(name: &str, wanted: Wanted<'_>) -> Result<PathBuf> {
    let path = PathBuf::from(name);
    let parts: Vec<_> = name.split('/').collect();
    let is_id = parts
        .iter()
        .all(|part| !part.is_empty() && !part.starts_with('.'));
    if path.exists() || !is_id || parts.len() < 2 {
        return Ok(path);
    }
    let hub = Hub::from_env()?;
    let bar = ProgressBar::hidden();
    let mut watch = |event| show(&bar, event);
    let found = match (parts.as_slice(), wanted) {
        (_, Wanted::Model(components, variant)) => {
            let model = hub.model(name, components, variant, &mut watch);
            model.map(|model| model.root().to_owned())
        }
        ([owner, name, file @ ..], Wanted::Component) if !file.is_empty() => {
            hub.file(&format!("{owner}/{name}"), &file.join("/"), &mut watch)
        }
        (_, Wanted::Component) => hub.component(name, &mut watch),
    };
    bar.finish_and_clear();
    found.with_context(|| format!("{name}: no such file or folder, and not available from the hub"))
}

/// Shows a download in a progress bar, and warnings above it.
fn show(bar: &ProgressBar, event: Event) -> ControlFlow<()> {
    let line = match &event {
        Event::Progress(download) => download.file.clone(),
        event => event.to_string(),
    };
    if event.is_warning() {
        bar.suspend(|| eprintln!("warning: {event}"));
        return ControlFlow::Continue(());
    }
    if bar.is_hidden() || bar.message() != line {
        bar.set_draw_target(ProgressDrawTarget::stderr());
        let template = match event {
            Event::Progress(_) => "{msg} {bar:30} {bytes} of {total_bytes}, {eta} left",
            _ => "{msg}",
        };
        let style = ProgressStyle::with_template(template);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.reset();
        bar.set_message(line);
    }
    if let Event::Progress(download) = event {
        bar.set_length(download.size);
        bar.set_position(download.done);
    }
    bar.tick();
    ControlFlow::Continue(())
}
