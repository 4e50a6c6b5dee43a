//! Subcommands of the protocol.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use swiftbrush_checkpoint::{read_json, sha256, write_json};

use crate::model::Workshop;
use crate::protocol::captions::{Captions, Set};
use crate::protocol::classifier::{Classifier, STEPS, train_classifier};
use crate::protocol::figure::{Curve, draw};
use crate::protocol::measures::{Measures, Reference};
use crate::protocol::statistics::{Interval, Paired};
use crate::protocol::system::System;
use crate::world::HeldOut;

/// Caption set and class.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Choice {
    /// Caption set.
    #[arg(long, value_enum, default_value = "choose")]
    set: Set,
    /// Held-out pairs in the captions.
    #[arg(long, value_enum, default_value = "none")]
    class: HeldOut,
}

impl Choice {
    fn captions(self) -> Captions {
        Captions {
            set: self.set,
            class: self.class,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train the classifier and write its weights next to the source.
    Classifier {
        #[arg(long, default_value_t = STEPS)]
        steps: u64,
    },
    /// Print one row per system: NAME for one step, NAME/STEPS/GUIDANCE for DDIM. Rows of ground truth come first.
    Table {
        systems: Vec<System>,
        #[command(flatten)]
        choice: Choice,
    },
    /// Print the paired differences between the first system and each of the others.
    Compare {
        first: System,
        #[arg(required = true)]
        others: Vec<System>,
        #[command(flatten)]
        choice: Choice,
    },
    /// Print means over training runs with t intervals.
    Runs {
        /// One system per training seed.
        #[arg(required = true)]
        systems: Vec<System>,
        /// System whose paired difference from each run is also averaged.
        #[arg(long)]
        against: Option<System>,
        #[command(flatten)]
        choice: Choice,
    },
    /// Plot accuracy over the Fréchet distance: the teacher's curve and the students.
    Figure {
        /// SVG file.
        output: PathBuf,
        /// Points of the teacher's curve, in order of guidance.
        #[arg(long, required = true, num_args = 1..)]
        teacher: Vec<System>,
        #[arg(long, num_args = 1..)]
        students: Vec<System>,
        #[command(flatten)]
        choice: Choice,
    },
}

/// Caption sets on which averages are chosen and reported.
pub(crate) const SEEN: [(Set, HeldOut); 2] =
    [(Set::Choose, HeldOut::None), (Set::Report, HeldOut::None)];

/// Caption sets of the comparison.
pub(crate) const SETS: [(Set, HeldOut); 5] = [
    (Set::Choose, HeldOut::None),
    (Set::Choose, HeldOut::First),
    (Set::Report, HeldOut::None),
    (Set::Report, HeldOut::First),
    (Set::Report, HeldOut::Second),
];

/// Returns whether a system's measures on all of some caption sets are stored.
pub(crate) fn is_measured(system: &System, sets: &[(Set, HeldOut)], workshop: &Workshop) -> bool {
    sets.iter().all(|&(set, class)| {
        let folder = system.folder(workshop, Captions { set, class });
        folder.join("measures.json").is_file()
    })
}

/// Measures finished systems on caption sets, so that the measures outlive the weights.
pub(crate) fn measure(
    workshop: &Workshop,
    systems: &[System],
    sets: &[(Set, HeldOut)],
) -> Result<()> {
    for &(set, class) in sets {
        let bench = Bench::new(workshop, Captions { set, class })?;
        for system in systems {
            let measures = bench.measures(system)?;
            let right = Interval::of_share(&measures.right);
            eprintln!(
                "{system}, {}: all right {right:.4}",
                bench.captions.folder()
            );
        }
    }
    Ok(())
}

impl Command {
    pub(crate) fn run(self, workshop: &Workshop) -> Result<()> {
        match self {
            Self::Classifier { steps } => make_classifier(workshop, steps),
            Self::Table { systems, choice } => {
                table(&Bench::new(workshop, choice.captions())?, &systems)
            }
            Self::Compare {
                first,
                others,
                choice,
            } => compare(&Bench::new(workshop, choice.captions())?, &first, &others),
            Self::Runs {
                systems,
                against,
                choice,
            } => {
                let bench = Bench::new(workshop, choice.captions())?;
                runs(&bench, &systems, against.as_ref())
            }
            Self::Figure {
                output,
                teacher,
                students,
                choice,
            } => {
                let bench = Bench::new(workshop, choice.captions())?;
                figure(&bench, &output, &teacher, &students)
            }
        }
    }
}

fn make_classifier(workshop: &Workshop, steps: u64) -> Result<()> {
    let stage = workshop.stage("classifier");
    train_classifier(&stage, workshop.seed, steps, &workshop.device)?.save()
}

/// Caption set with its ground truth and the measures so far.
struct Bench<'a> {
    workshop: &'a Workshop,
    captions: Captions,
    reference: Reference,
    /// Hash of the classifier.
    classifier: String,
}

/// Stored measures, which are valid for only one classifier.
#[derive(Serialize, Deserialize)]
struct Kept {
    classifier: String,
    measures: Measures,
}

impl<'a> Bench<'a> {
    fn new(workshop: &'a Workshop, captions: Captions) -> Result<Self> {
        let device = &workshop.device;
        let classifier = Classifier::open(device)
            .context("the protocol needs its classifier; `protocol classifier` trains it")?;
        Ok(Self {
            workshop,
            captions,
            reference: Reference::new(captions, classifier, device)?,
            classifier: sha256(Classifier::path())?,
        })
    }

    /// Measures of a system; generates its images first if there are none. Stored measures need neither images nor weights.
    fn measures(&self, system: &System) -> Result<Measures> {
        system.check_settings(self.workshop, self.captions)?;
        let path = system
            .folder(self.workshop, self.captions)
            .join("measures.json");
        if path.is_file() {
            let kept: Kept = read_json(&path)?;
            if kept.classifier == self.classifier {
                return Ok(kept.measures);
            }
            eprintln!(
                "{}: measured with another classifier; measuring again",
                path.display()
            );
        }
        let images = system.images(self.workshop, self.captions)?;
        let measures = self.reference.measure(&images)?;
        let kept = Kept {
            classifier: self.classifier.clone(),
            measures,
        };
        write_json(&path, &kept)?;
        Ok(kept.measures)
    }

    fn floor(&self) -> Result<Measures> {
        self.reference.measure(&self.captions.floor())
    }
}

fn table(bench: &Bench<'_>, systems: &[System]) -> Result<()> {
    println!(
        "| system | calls | all right | ground | colour | shape | relation | Fréchet, placements | precision | recall | Fréchet, classifier | precision | recall |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    print_row("other ground truth", "–", &bench.floor()?);
    for system in systems {
        let measures = bench.measures(system)?;
        print_row(
            &system.to_string(),
            &system.n_calls().to_string(),
            &measures,
        );
    }
    Ok(())
}

fn print_row(name: &str, calls: &str, measures: &Measures) {
    let Measures {
        right,
        ground,
        color,
        shape,
        relation,
        placements,
        classifier,
    } = measures;
    let right = Interval::of_share(right);
    println!(
        "| {name} | {calls} | {right:.4} | {ground:.4} | {color:.4} | {shape:.4} | {relation:.4} | {:.3} | {:.3} | {:.3} | {:.3} | {:.3} | {:.3} |",
        placements.frechet,
        placements.precision,
        placements.recall,
        classifier.frechet,
        classifier.precision,
        classifier.recall
    );
}

fn compare(bench: &Bench<'_>, first: &System, others: &[System]) -> Result<()> {
    println!("| difference | all right | McNemar z | discordant | detectable |");
    println!("|---|---|---|---|---|");
    let measured = bench.measures(first)?;
    for other in others {
        let Paired {
            difference,
            z,
            discordant,
            detectable,
        } = Paired::new(&measured.right, &bench.measures(other)?.right)?;
        println!(
            "| {first} − {other} | {difference:.4} | {z:.2} | {discordant:.4} | {detectable:.4} |"
        );
    }
    Ok(())
}

fn runs(bench: &Bench<'_>, systems: &[System], against: Option<&System>) -> Result<()> {
    let measured: Result<Vec<_>> = systems.iter().map(|s| bench.measures(s)).collect();
    let measured = measured?;
    let print = |name: &str, of: &dyn Fn(&Measures) -> Result<f64>| -> Result<()> {
        let values: Result<Vec<_>> = measured.iter().map(of).collect();
        println!("| {name} | {:.4} |", Interval::of_runs(&values?)?);
        Ok(())
    };
    println!(
        "| measure | mean of {} runs, 95 % t interval |\n|---|---|",
        systems.len()
    );
    print("all right", &|m| Ok(Interval::of_share(&m.right).mean))?;
    print("Fréchet, placements", &|m| Ok(m.placements.frechet))?;
    print("recall, placements", &|m| Ok(m.placements.recall))?;
    print("Fréchet, classifier", &|m| Ok(m.classifier.frechet))?;
    print("precision, classifier", &|m| Ok(m.classifier.precision))?;
    print("recall, classifier", &|m| Ok(m.classifier.recall))?;
    if let Some(against) = against {
        let other = bench.measures(against)?;
        print(&format!("all right, less {against}"), &|m| {
            Ok(Paired::new(&m.right, &other.right)?.difference.mean)
        })?;
    }
    Ok(())
}

fn figure(bench: &Bench<'_>, output: &Path, teacher: &[System], students: &[System]) -> Result<()> {
    let point = |system: &System, name: String| -> Result<_> {
        let measures = bench.measures(system)?;
        let right = Interval::of_share(&measures.right);
        Ok((name, measures.classifier.frechet, right))
    };
    let guidance = |system: &System| {
        let guidance = system.guidance();
        guidance.map_or(system.to_string(), |guidance| format!("{guidance}"))
    };
    let points = teacher.iter().map(|system| point(system, guidance(system)));
    let curve: Result<Vec<_>> = points.collect();
    let points = students
        .iter()
        .map(|system| point(system, system.to_string()));
    let students: Result<Vec<_>> = points.collect();
    let svg = draw(&Curve {
        teacher: curve?,
        students: students?,
    })?;
    std::fs::write(output, svg).with_context(|| format!("cannot write {}", output.display()))
}
