//! The pictures to generate: prompts, seeds and files, checked before a model is loaded.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use swiftbrush_pipeline::BetweenRecord;

use crate::Args;

/// A picture to generate.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) prompt: String,
    pub(crate) seed: u64,
    pub(crate) path: PathBuf,
    /// The other end of an animation.
    pub(crate) between: Option<BetweenRecord>,
}

/// The value of `--seed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seed {
    Given(u64),
    /// −1, as in AUTOMATIC1111's web UI.
    Random,
}

impl Seed {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "-1" => Ok(Self::Random),
            _ => text
                .parse()
                .map(Self::Given)
                .map_err(|_| format!("expected 0 to {}, or -1 for a random seed", u64::MAX)),
        }
    }

    /// The seed, or a random one of 32 bits, which every other program accepts.
    fn value(self) -> u64 {
        match self {
            Self::Given(seed) => seed,
            Self::Random => RandomState::new().build_hasher().finish() >> 32,
        }
    }
}

/// The frames of an animation: its ends, and equal steps between them.
fn frames(args: &Args, prompt: &str, to: &str) -> Result<Vec<Job>> {
    let seed = args.seed.value();
    let paths = paths(args, args.frames)?.into_iter().enumerate();
    let frame = |(index, path)| Job {
        prompt: prompt.to_owned(),
        seed,
        path,
        between: Some(BetweenRecord {
            prompt: to.to_owned(),
            seed: args.to_seed.unwrap_or(seed),
            share: index as f64 / (args.frames - 1) as f64,
        }),
    };
    Ok(paths.map(frame).collect())
}

/// All pictures in order: each prompt `--count` times, with consecutive seeds.
pub(crate) fn jobs(args: &Args) -> Result<Vec<Job>> {
    if let (Some(prompt), Some(to)) = (&args.prompt, &args.to) {
        return frames(args, prompt, to);
    }
    let prompts = match (&args.prompt, &args.prompts) {
        (Some(prompt), _) => vec![prompt.clone()],
        (None, Some(path)) => examples_common::read_prompts(path)?,
        (None, None) => bail!("give a prompt, or --prompts FILE"),
    };
    let count = prompts
        .len()
        .checked_mul(args.count)
        .with_context(|| format!("--count {} is too large", args.count))?;
    let first = args.seed.value();
    ensure!(
        first.checked_add(count as u64 - 1).is_some(),
        "--seed {first} is too large: each picture takes the next"
    );
    let paths = paths(args, count)?;
    let prompts = prompts
        .iter()
        .flat_map(|prompt| std::iter::repeat_n(prompt, args.count));
    let jobs = prompts.zip(first..=u64::MAX).zip(paths);
    let job = |((prompt, seed), path): ((&String, u64), PathBuf)| Job {
        prompt: prompt.clone(),
        seed,
        path,
        between: None,
    };
    Ok(jobs.map(job).collect())
}

/// The file of each picture: `--output` itself for a single picture, else numbered files in that folder, which is created.
fn paths(args: &Args, count: usize) -> Result<Vec<PathBuf>> {
    let default = Path::new("picture.png");
    if count == 1 && args.prompts.is_none() {
        let file = args.output.as_deref().unwrap_or(default);
        check_file(file, "--output")?;
        check_png(file)?;
        return Ok(vec![file.to_owned()]);
    }
    let folder = args.output.as_deref();
    let folder =
        folder.with_context(|| format!("{count} pictures need a folder: give --output FOLDER"))?;
    let is_picture = folder.extension().is_some_and(|extension| {
        ["png", "jpg", "jpeg"]
            .iter()
            .any(|known| extension.eq_ignore_ascii_case(known))
    });
    ensure!(
        !is_picture || folder.is_dir(),
        "--output {}: expected a folder for {count} pictures, found the name of a file",
        folder.display()
    );
    std::fs::create_dir_all(folder)
        .with_context(|| format!("--output {}: cannot create the folder", folder.display()))?;
    let name = |index| folder.join(format!("{index:05}.png"));
    Ok((0..count).map(name).collect())
}

/// Checks that a file can be written, and creates its folder.
pub(crate) fn check_file(path: &Path, option: &str) -> Result<()> {
    ensure!(
        !path.is_dir(),
        "{option} {}: expected a file, found a folder",
        path.display()
    );
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("{option} {}: cannot create its folder", path.display()))?;
    }
    Ok(())
}

/// Checks for PNG, which `verify` needs to read the record of a picture.
fn check_png(path: &Path) -> Result<()> {
    let extension = path.extension();
    ensure!(
        extension.is_some_and(|extension| extension.eq_ignore_ascii_case("png")),
        "--output {}: expected a name that ends in .png; only PNG keeps how a picture was made and every pixel",
        path.display()
    );
    Ok(())
}
