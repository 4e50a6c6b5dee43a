//! Evaluates a model or a folder of pictures, and compares results.
//!
//! Pictures are generated and measured a batch at a time; only their features are kept. Running the same command again resumes an
//! interrupted run, with the same values.
//!
//! ```sh
//! # The miniature, with its own CLIP, against ground-truth pictures:
//! cargo run --release --example miniature -- --root runs/truth truth --count 1024 runs/truth/pictures
//! cargo run --release --example evaluate -- --prompts runs/truth/pictures/prompts.txt \
//!     --reference runs/truth/pictures --output runs/student
//! # SwiftBrush v2's protocol:
//! cargo run --release --features cuda --example evaluate -- --model sd-turbo --unet swiftbrush \
//!     --protocol swiftbrush-v2 --prompts dataset.json --count 30000 --reference val2014 \
//!     --network inception=pt_inception-2015-12-05-6726825d.pth --network clip=ViT-g-14 --output runs/coco
//! # Two folders, as clean-fid compares them:
//! cargo run --release --example evaluate -- --pictures mine --reference theirs --protocol clean-fid \
//!     --network inception=pt_inception-2015-12-05-6726825d.pth --output runs/mine
//! # A table of results; results with the same name are seeds of one model:
//! cargo run --release --example evaluate -- compare runs/*/result.json
//! ```
#![allow(clippy::print_stderr, clippy::print_stdout, reason = "programs print")]

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
    Evaluation, Measured, NETWORKS, Networks, Protocol, Reference, comparable, differences, open,
};
use swiftbrush_metrics::Statistics;

use crate::pictures::Pictures;
use crate::store::{Extracted, Extractor, Role, hash_of};
use examples_common::model::{MethodArgs, ModelArgs};
use examples_common::{Wanted, find, read_prompts};

/// Evaluates a model or a folder of pictures.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    method: MethodArgs,
    /// Folder of pictures to evaluate instead of a model; prompts are paired with them in natural order of names (2.png before
    /// 10.png)
    #[arg(long, conflicts_with_all = ["unet", "lora", "seed", "sampler", "steps"])]
    pictures: Option<PathBuf>,
    /// File of prompts, one per line (blank lines are skipped), or COCO's captions as JSON
    #[arg(long)]
    prompts: Option<PathBuf>,
    /// Number of prompts to use from the start of the file [default: all]
    #[arg(long, requires = "prompts")]
    count: Option<usize>,
    /// Number of consecutive pictures per prompt
    #[arg(long, default_value_t = 1)]
    per_prompt: usize,
    /// Seed of the first picture, incremented for each further one
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Reference: a folder of pictures, the reference.safetensors of an earlier run, or an .npz file with `mu` and `sigma`, which
    /// is enough for a Fréchet distance
    #[arg(long)]
    reference: Option<PathBuf>,
    #[arg(long, default_value = "clip", help = protocols())]
    protocol: String,
    /// Weights of a network: inception=FILE, efficientnet-lite0=FILE, clip=FOLDER (or a name on the hub); repeatable [default
    /// of clip: the model's own]
    #[arg(long, value_name = "NAME=PATH")]
    network: Vec<String>,
    /// Number of resamples for standard errors of distances and overlaps; 0 for no errors
    #[arg(long, default_value_t = 20)]
    resamples: usize,
    /// Number of pictures generated and measured at once
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Name of the result [default: that of the model or folder]
    #[arg(long)]
    name: Option<String>,
    /// Folder for the result and the features
    #[arg(long, short, default_value = "evaluation")]
    output: PathBuf,
    /// Also writes the pictures, as they were measured
    #[arg(long)]
    keep: bool,
    /// Number of best and worst pictures on the contact sheet
    #[arg(long, default_value_t = 24)]
    sheet: usize,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Prints a table of results measured under the same conditions; results with the same name are averaged
    Compare {
        /// Result files
        #[arg(required = true)]
        results: Vec<PathBuf>,
    },
}

fn protocols() -> String {
    format!(
        "Protocol: {}, or a JSON file with your own",
        Protocol::NAMES.join(", ")
    )
}

/// Set by Ctrl-C: the run ends after the current batch.
static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> Result<()> {
    swiftbrush_kernels::keep_freed_memory();
    swiftbrush_kernels::use_current_thread();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing::Level::WARN)
        .init();
    // Tests call `evaluate` directly and set no handler.
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

/// Everything that features and values depend on besides the pictures.
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
        "expected --batch and --per-prompt of at least 1"
    );
    let plan = plan(args)?;
    let pictures = Pictures::new(args, &plan)?;
    std::fs::create_dir_all(&args.output)
        .with_context(|| format!("cannot create {}", args.output.display()))?;
    keep_settings(args, &plan, &pictures)?;

    let reference = reference(args, &plan, stop)?;
    let extractor = Extractor {
        plan: &plan,
        role: Role::Generated,
        batch: args.batch,
        keep: args.keep.then(|| args.output.join("pictures")),
        stop,
    };
    let generated = extractor.extract(&pictures, &args.output.join("generated"))?;
    let measured = plan.networks.measure(
        &plan.protocol,
        &generated.features,
        &reference.reference,
        args.per_prompt,
        args.resamples,
        &plan.device,
    )?;
    report::sheet(
        args,
        &plan,
        &pictures,
        &generated.features,
        &reference.reference,
        &measured,
    )?;
    let evaluation = result(args, &plan, &pictures, &generated, reference, measured);
    write_json(args.output.join("result.json"), &evaluation)?;
    Ok(evaluation)
}

fn result(
    args: &Args,
    plan: &Plan,
    pictures: &Pictures,
    generated: &Extracted,
    reference: Compared,
    measured: Measured,
) -> Evaluation {
    let mut hashes = plan.hashes.clone();
    hashes.insert("pictures".to_owned(), generated.hash());
    hashes.extend(reference.hash.map(|hash| ("reference".to_owned(), hash)));
    let orientation = plan.protocol.orientation;
    let mut notes = pictures.notes(&plan.protocol);
    notes.extend(generated.changes.notes(generated.count(), orientation));
    notes.extend(
        reference
            .notes
            .into_iter()
            .map(|note| format!("reference: {note}")),
    );
    notes.extend(measured.notes);
    Evaluation {
        subject: args.name.clone().unwrap_or_else(|| pictures.name()),
        protocol: plan.protocol.clone(),
        software: concat!("swiftbrush ", env!("CARGO_PKG_VERSION")).to_owned(),
        hashes,
        pictures: pictures.len(),
        per_prompt: args.per_prompt,
        reference_pictures: reference.count,
        painted: pictures.record(),
        values: measured.values,
        notes,
    }
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
            "--count {count}: expected 1 to {}, the number of prompts",
            prompts.len()
        );
        prompts.truncate(count);
    }
    if let Some(prompts) = &prompts {
        hashes.insert("prompts".to_owned(), hash_of(prompts.join("\n").as_bytes()));
    }
    ensure!(
        prompts.is_some() || !protocol.needs_prompts(),
        "the protocol {} needs prompts: give --prompts FILE",
        protocol.name
    );
    ensure!(
        args.reference.is_some() || !protocol.needs_reference(),
        "the protocol {} needs a reference: give --reference PATH",
        protocol.name
    );
    let mut networks = Networks::default();
    let weights = weights(args)?;
    for name in protocol.networks() {
        let base = base(name);
        let path = weights.get(base).with_context(|| {
            format!(
                "the protocol {} needs the network {name}: give --network {base}=PATH",
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

/// The name of a network's weights: `inception` for `inception/clean-fid`.
fn base(network: &str) -> &str {
    network.split('/').next().unwrap_or(network)
}

/// Paths of weights by network.
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
        let is_known = NETWORKS.iter().any(|known| base(known) == name);
        ensure!(
            is_known,
            "--network {name}: expected inception, clip or efficientnet-lite0"
        );
        weights.insert(name.to_owned(), find(path, Wanted::Component)?);
    }
    Ok(weights)
}

/// Hashes a weight file, or those in a folder.
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

/// The reference and its description.
#[derive(Default)]
struct Compared {
    reference: Reference,
    hash: Option<String>,
    count: Option<usize>,
    notes: Vec<String>,
}

fn reference(args: &Args, plan: &Plan, stop: &AtomicBool) -> Result<Compared> {
    let Some(path) = &args.reference else {
        return Ok(Compared::default());
    };
    if !plan.protocol.needs_reference() {
        let note = format!("not used by the protocol {}", plan.protocol.name);
        return Ok(Compared {
            notes: vec![note],
            ..Compared::default()
        });
    }
    if path.extension().is_some_and(|extension| extension == "npz") {
        return statistics(path, plan);
    }
    let extractor = Extractor {
        plan,
        role: Role::Reference,
        batch: args.batch,
        keep: None,
        stop,
    };
    let mut notes = Vec::new();
    let found = match path.is_dir() {
        true => {
            let pictures = Pictures::folder(path, None, &plan.protocol)?;
            notes = pictures.notes(&plan.protocol);
            extractor.extract(&pictures, &args.output.join("reference"))?
        }
        false => extractor.open(path)?,
    };
    notes.extend(
        found
            .changes
            .notes(found.count(), plan.protocol.orientation),
    );
    Ok(Compared {
        count: Some(found.count()),
        hash: Some(found.hash()),
        reference: Reference {
            features: found.features,
            ..Reference::default()
        },
        notes,
    })
}

/// Reads means and covariances, of this program with the name of their network or of another program without.
fn statistics(path: &Path, plan: &Plan) -> Result<Compared> {
    let Statistics { gaussian, network } = Statistics::open(path)?;
    let networks = plan.protocol.reference_networks();
    let (names, notes) = match network {
        Some(name) => {
            ensure!(
                networks.contains(name.as_str()),
                "{} has statistics of {name}; the protocol {} needs {}",
                path.display(),
                plan.protocol.name,
                networks.into_iter().collect::<Vec<_>>().join(", ")
            );
            (vec![name], Vec::new())
        }
        None => {
            let names: Vec<_> = networks.into_iter().map(str::to_owned).collect();
            let note = format!(
                "{} does not name the network of its statistics; taken for {}",
                path.display(),
                names.join(", ")
            );
            (names, vec![note])
        }
    };
    let statistics = names.into_iter().map(|name| (name, gaussian.clone()));
    Ok(Compared {
        reference: Reference {
            statistics: statistics.collect(),
            ..Reference::default()
        },
        hash: Some(sha256(path)?),
        count: None,
        notes,
    })
}

/// Writes the settings next to the features; a resumed run must have the same ones.
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
    });
    if path.is_file() {
        let text = std::fs::read_to_string(&path)?;
        let before: Json = serde_json::from_str(&text).with_context(|| {
            format!(
                "{} is damaged: remove it, or choose another --output",
                path.display()
            )
        })?;
        let found = differences(&before, &settings);
        if !found.is_empty() {
            bail!(
                "{} belongs to another run: remove it, or choose another --output:\n{}",
                args.output.display(),
                found.join("\n")
            );
        }
        return Ok(());
    }
    Ok(write_json(&path, &settings)?)
}
