//! Measures a model, or a folder of pictures, and compares results.
//!
//! Pictures are painted and looked at a batch at a time and not kept; what networks have seen in them is. An interrupted run
//! goes on where it was when the same command is given again, to the same numbers.
//!
//! ```sh
//! # The miniature, with its own CLIP, beside true pictures of its world:
//! cargo run --release --example miniature -- --root runs/truth truth --count 1024 runs/truth/pictures
//! cargo run --release --example evaluate -- --prompts runs/truth/pictures/prompts.txt \
//!     --reference runs/truth/pictures --output runs/student
//! # SwiftBrush v2's protocol:
//! cargo run --release --features cuda --example evaluate -- --model sd-turbo --unet swiftbrush \
//!     --protocol swiftbrush-v2 --prompts dataset.json --count 30000 --reference val2014 \
//!     --network inception=pt_inception-2015-12-05-6726825d.pth --network clip=ViT-g-14 --output runs/coco
//! # Two folders, as clean-fid does:
//! cargo run --release --example evaluate -- --pictures mine --reference theirs --protocol clean-fid \
//!     --network inception=pt_inception-2015-12-05-6726825d.pth --output runs/mine
//! # Results side by side; those of one name are seeds of it:
//! cargo run --release --example evaluate -- compare runs/*/result.json
//! ```
#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a program talks to its user"
)]

mod pictures;
mod report;
mod store;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Device;
use clap::{Parser, Subcommand};
use serde_json::{Value as Json, json};
use swiftbrush_checkpoint::{sha256, write_json};
use swiftbrush_evaluator::{
    Evaluation, NETWORKS, Networks, Protocol, Reference, comparable, differences, open,
};
use swiftbrush_metrics::Gaussian;

use crate::pictures::Pictures;
use examples_common::model::{MethodArgs, ModelArgs};
use examples_common::{Wanted, find, read_prompts};
use crate::store::{Seer, hash_of};

/// Measures a model, or a folder of pictures.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    method: MethodArgs,
    /// A folder of pictures to measure instead of a model, in the order of their names.
    #[arg(long)]
    pictures: Option<PathBuf>,
    /// What to paint, or what the pictures show: a file with a prompt on each line, or a list of COCO's captions (JSON).
    #[arg(long)]
    prompts: Option<PathBuf>,
    /// Takes the first prompts only.
    #[arg(long)]
    count: Option<usize>,
    /// Pictures of each prompt, which follow one another.
    #[arg(long, default_value_t = 1)]
    per_prompt: usize,
    /// The first picture's seed; the next has the next.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What to compare with: a folder of pictures, a reference.safetensors of an earlier run, or an .npz with `mu` and
    /// `sigma`, which is enough for a Fréchet distance.
    #[arg(long)]
    reference: Option<PathBuf>,
    /// How to measure: a name, or a file with a protocol of one's own (JSON).
    #[arg(long, default_value = "clip", help = protocols())]
    protocol: String,
    /// Weights of a network, inception=FILE, efficientnet-lite0=FILE, clip=FOLDER (or a name on the hub); can be given
    /// again [default of clip: the model's own].
    #[arg(long, value_name = "NAME=PATH")]
    network: Vec<String>,
    /// Resamples for the standard errors of distances; 0 for none.
    #[arg(long, default_value_t = 20)]
    resamples: usize,
    /// Pictures painted and looked at in one go.
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// What the result is called [default: the model's or the folder's name].
    #[arg(long)]
    name: Option<String>,
    /// Folder for the result and what it was computed from.
    #[arg(long, short, default_value = "evaluation")]
    output: PathBuf,
    /// Also writes the pictures, as they were measured.
    #[arg(long)]
    keep: bool,
    /// How many of the best and of the worst pictures are on the contact sheet.
    #[arg(long, default_value_t = 24)]
    sheet: usize,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Puts results side by side, if they were measured in the same way; those of one name are put together.
    Compare {
        /// Files that runs have written.
        #[arg(required = true)]
        results: Vec<PathBuf>,
    },
}

fn protocols() -> String {
    format!(
        "How to measure: {}, or a file with a protocol of one's own (JSON)",
        Protocol::NAMES.join(", ")
    )
}

/// Set by Ctrl-C: the run ends after the current batch.
static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> Result<()> {
    swiftbrush_kernels::keep_freed_memory();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing::Level::WARN)
        .init();
    // Set once; in tests it never is.
    ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed))?;
    let args = Args::parse();
    let Some(Command::Compare { results }) = &args.command else {
        let evaluation = evaluate(&args, &STOP)?;
        print!("{}", report::table(std::slice::from_ref(&evaluation)));
        for note in &evaluation.notes {
            println!("note: {note}");
        }
        return Ok(());
    };
    print!("{}", compare(results)?);
    Ok(())
}

fn compare(results: &[PathBuf]) -> Result<String> {
    let read = |path: &PathBuf| -> Result<Evaluation> {
        let named = || format!("cannot read the result {}", path.display());
        let text = std::fs::read_to_string(path).with_context(named)?;
        serde_json::from_str(&text).with_context(named)
    };
    let results = results.iter().map(read).collect::<Result<Vec<_>>>()?;
    comparable(&results)?;
    Ok(report::table(&results))
}

/// What is measured, and how.
struct Plan {
    protocol: Protocol,
    networks: Networks,
    /// Hashes of weights by network, and of prompts.
    hashes: BTreeMap<String, String>,
    prompts: Option<Vec<String>>,
    device: Device,
}

fn evaluate(args: &Args, stop: &AtomicBool) -> Result<Evaluation> {
    ensure!(
        args.batch > 0 && args.per_prompt > 0,
        "--batch and --per-prompt are 1 at least"
    );
    let plan = plan(args)?;
    let pictures = Pictures::new(args, &plan)?;
    std::fs::create_dir_all(&args.output)
        .with_context(|| format!("cannot make {}", args.output.display()))?;
    keep_settings(args, &plan, &pictures)?;

    let reference = reference(args, &plan, stop)?;
    let seer = Seer {
        plan: &plan,
        batch: args.batch,
        keep: args.keep.then(|| args.output.join("pictures")),
        stop,
    };
    let generated = seer.see(&pictures, &args.output.join("generated"))?;
    let measured = plan.networks.measure(
        &plan.protocol,
        &generated.seen,
        &reference.known,
        args.per_prompt,
        args.resamples,
        &plan.device,
    )?;
    let mut hashes = plan.hashes.clone();
    hashes.insert("pictures".to_owned(), generated.hash);
    hashes.extend(reference.hash.map(|hash| ("reference".to_owned(), hash)));
    let evaluation = Evaluation {
        subject: args.name.clone().unwrap_or_else(|| pictures.name()),
        protocol: plan.protocol.clone(),
        software: concat!("swiftbrush ", env!("CARGO_PKG_VERSION")).to_owned(),
        hashes,
        pictures: pictures.len(),
        per_prompt: args.per_prompt,
        reference_pictures: reference.count,
        painted: pictures.record(),
        values: measured.values.clone(),
        notes: measured.notes.clone(),
    };
    report::sheet(
        args,
        &plan,
        &pictures,
        &generated.seen,
        &reference.known,
        &measured,
    )?;
    write_json(&args.output.join("result.json"), &evaluation)?;
    Ok(evaluation)
}

fn plan(args: &Args) -> Result<Plan> {
    let protocol = match args.protocol.ends_with(".json") {
        true => Protocol::open(Path::new(&args.protocol))?,
        false => Protocol::named(&args.protocol)?,
    };
    let device = args.model.device()?;
    let mut hashes = BTreeMap::new();
    let mut prompts = args.prompts.as_deref().map(read_prompts).transpose()?;
    if let (Some(prompts), Some(count)) = (&mut prompts, args.count) {
        ensure!(
            count > 0 && count <= prompts.len(),
            "--count {count} of {} prompts",
            prompts.len()
        );
        prompts.truncate(count);
    }
    if let Some(prompts) = &prompts {
        hashes.insert("prompts".to_owned(), hash_of(prompts.join("\n").as_bytes()));
    }
    ensure!(
        prompts.is_some() || !protocol.needs_prompts(),
        "the protocol {} looks at prompts too: give --prompts",
        protocol.name
    );
    ensure!(
        args.reference.is_some() || !protocol.needs_reference(),
        "the protocol {} compares with other pictures: give --reference",
        protocol.name
    );
    let mut networks = Networks::default();
    let weights = weights(args)?;
    for name in protocol.networks() {
        let base = name.split('/').next().unwrap_or(name);
        let path = weights.get(base).with_context(|| {
            format!(
                "the protocol {} measures with {name}: give --network {base}=PATH",
                protocol.name
            )
        })?;
        let network = open(name, path, &device)
            .with_context(|| format!("cannot open the network {}", path.display()))?;
        networks = networks.with(name, network);
        hashes.insert(base.to_owned(), hash_of_weights(path)?);
    }
    Ok(Plan {
        protocol,
        networks,
        hashes,
        prompts,
        device,
    })
}

/// Where the weights of networks are, by name.
fn weights(args: &Args) -> Result<BTreeMap<String, PathBuf>> {
    let mut weights = BTreeMap::new();
    if args.pictures.is_none() {
        let model = args.model.model.as_ref();
        let own = model
            .map_or_else(examples_common::miniature, PathBuf::from)
            .join("clip");
        if own.is_dir() {
            weights.insert("clip".to_owned(), own);
        }
    }
    for network in &args.network {
        let (name, path) = network
            .split_once('=')
            .with_context(|| format!("--network {network}: expected NAME=PATH"))?;
        let is_known = NETWORKS
            .iter()
            .any(|known| known.split('/').next() == Some(name));
        ensure!(
            is_known,
            "--network {name}: there are inception, clip and efficientnet-lite0"
        );
        weights.insert(name.to_owned(), find(path, Wanted::Component)?);
    }
    Ok(weights)
}

/// The hash of a file of weights, or of those in a folder.
fn hash_of_weights(path: &Path) -> Result<String> {
    if !path.is_dir() {
        return Ok(sha256(path)?);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).with_context(|| path.display().to_string())? {
        let path = entry?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if path.is_file() && matches!(extension, Some("safetensors" | "bin" | "pt" | "json")) {
            files.push(path);
        }
    }
    files.sort();
    let hashes = files
        .iter()
        .map(|file| Ok(sha256(file)?))
        .collect::<Result<Vec<_>>>()?;
    Ok(hash_of(hashes.concat().as_bytes()))
}

/// What there is to compare with.
#[derive(Default)]
struct Known {
    known: Reference,
    hash: Option<String>,
    count: Option<usize>,
}

fn reference(args: &Args, plan: &Plan, stop: &AtomicBool) -> Result<Known> {
    let Some(path) = &args.reference else {
        return Ok(Known::default());
    };
    if path.extension().is_some_and(|extension| extension == "npz") {
        let gaussian = Gaussian::open(path)?;
        let networks = plan.protocol.networks().into_iter();
        return Ok(Known {
            known: Reference {
                statistics: networks
                    .map(|name| (name.to_owned(), gaussian.clone()))
                    .collect(),
                ..Reference::default()
            },
            hash: Some(sha256(path)?),
            count: None,
        });
    }
    let seer = Seer {
        plan,
        batch: args.batch,
        keep: None,
        stop,
    };
    let found = match path.is_dir() {
        true => seer.see(
            &Pictures::folder(path, None)?,
            &args.output.join("reference"),
        )?,
        false => seer.open(path)?,
    };
    Ok(Known {
        count: Some(found.count),
        hash: Some(found.hash),
        known: Reference {
            seen: found.seen,
            ..Reference::default()
        },
    })
}

/// Writes what the run depends on beside what it finds; a run that goes on must depend on the same.
fn keep_settings(args: &Args, plan: &Plan, pictures: &Pictures) -> Result<()> {
    let path = args.output.join("settings.json");
    let settings = json!({
        "protocol": plan.protocol,
        "hashes": plan.hashes,
        "painted": pictures.record(),
        "pictures": pictures.len(),
        "per prompt": args.per_prompt,
        "batch": args.batch,
        "device": args.model.device,
        "reference": args.reference,
    });
    if path.is_file() {
        let text = std::fs::read_to_string(&path)?;
        let before: Json = serde_json::from_str(&text)
            .with_context(|| format!("{} is damaged: take another --output", path.display()))?;
        let found = differences(&before, &settings);
        if !found.is_empty() {
            bail!(
                "{} is another run's; take another --output, or remove it:\n{}",
                args.output.display(),
                found.join("\n")
            );
        }
        return Ok(());
    }
    Ok(write_json(&path, &settings)?)
}
