use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use image::RgbImage;
use serde::{Deserialize, Serialize};
use swiftbrush_images::{Filter, Orient, centre_square, resize};

use crate::Error;

/// Everything that a score depends on besides the images: their preparation, the feature networks and the measures. Scores are
/// comparable only if their protocols are equal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// Name.
    pub name: String,
    /// Version, increased whenever the protocol of this name changes.
    pub version: u32,
    /// Preparation of the images in both sets.
    pub pictures: Preparation,
    /// Handling of Exif orientations in both sets.
    #[serde(default, skip_serializing_if = "is_upright")]
    pub orientation: Orient,
    /// Measures to compute, in order.
    pub measures: Vec<Measure>,
}

fn is_upright(orientation: &Orient) -> bool {
    *orientation == Orient::Upright
}

/// Preparation of images before any network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preparation {
    /// None.
    AsTheyAre,
    /// Crops the central square and resizes it in 8-bit precision.
    Square {
        /// New side in pixels.
        side: u32,
        /// Resampling filter.
        filter: Filter,
    },
}

impl Preparation {
    /// Prepares an image.
    ///
    /// # Panics
    ///
    /// If `side` is zero.
    #[track_caller]
    pub fn apply(self, picture: RgbImage) -> RgbImage {
        match self {
            Self::AsTheyAre => picture,
            Self::Square { side, filter } => resize(&centre_square(&picture), side, side, filter),
        }
    }
}

/// A measure of one set of images, or of two.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "measure",
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case",
    deny_unknown_fields
)]
pub enum Measure {
    /// FID on Inception's features; see [`frechet_distance`](swiftbrush_metrics::frechet_distance).
    FrechetDistance {
        /// Feature network.
        network: String,
    },
    /// FID∞; see [`frechet_infinity`](swiftbrush_metrics::frechet_infinity).
    FrechetInfinity {
        /// Feature network.
        network: String,
        /// Images in the smallest subset.
        smallest: usize,
        /// Number of subsets.
        points: usize,
    },
    /// KID on Inception's features; see [`kernel_distance`](swiftbrush_metrics::kernel_distance).
    KernelDistance {
        /// Feature network.
        network: String,
        /// Number of subsets drawn from both sets.
        subsets: usize,
        /// Images in a subset; all if the sets have fewer.
        size: usize,
    },
    /// See [`precision_recall`](swiftbrush_metrics::precision_recall).
    PrecisionRecall {
        /// Feature network.
        network: String,
        /// The neighbour whose distance is the radius of a neighbourhood.
        k: usize,
    },
    /// See [`density_coverage`](swiftbrush_metrics::density_coverage).
    DensityCoverage {
        /// Feature network.
        network: String,
        /// The neighbour whose distance is the radius of a neighbourhood.
        k: usize,
    },
    /// See [`inception_score`](swiftbrush_metrics::inception_score); images are shuffled first.
    InceptionScore {
        /// Classifier.
        network: String,
        /// Number of parts.
        splits: usize,
    },
    /// Mean cosine of images and their prompts: CLIP score, HPSv2 or PickScore, depending on the weights.
    ClipScore {
        /// Encoder of images and texts.
        network: String,
        /// Text before each prompt.
        prefix: String,
        /// Factor of the cosine.
        scale: f64,
    },
    /// CMMD on CLIP's embeddings; see [`gaussian_mmd`](swiftbrush_metrics::gaussian_mmd).
    GaussianDistance {
        /// Feature network.
        network: String,
        /// Width of the kernel.
        sigma: f64,
        /// Factor of the squared discrepancy.
        scale: f64,
    },
    /// See [`diversity`](swiftbrush_metrics::diversity).
    Diversity {
        /// Feature network.
        network: String,
    },
    /// Mean distance to the nearest image of the reference; see [`nearest`](swiftbrush_metrics::nearest).
    NearestNeighbour {
        /// Feature network.
        network: String,
    },
}

impl Measure {
    /// The feature network.
    pub fn network(&self) -> &str {
        match self {
            Self::FrechetDistance { network }
            | Self::FrechetInfinity { network, .. }
            | Self::KernelDistance { network, .. }
            | Self::PrecisionRecall { network, .. }
            | Self::DensityCoverage { network, .. }
            | Self::InceptionScore { network, .. }
            | Self::ClipScore { network, .. }
            | Self::GaussianDistance { network, .. }
            | Self::Diversity { network }
            | Self::NearestNeighbour { network } => network,
        }
    }

    /// True if it compares with a reference.
    pub fn needs_reference(&self) -> bool {
        !matches!(
            self,
            Self::InceptionScore { .. } | Self::ClipScore { .. } | Self::Diversity { .. }
        )
    }

    /// True if it needs prompts.
    pub fn needs_prompts(&self) -> bool {
        matches!(self, Self::ClipScore { .. })
    }
}

/// The usual names: distances are called FID and KID only on Inception's features.
impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let network = self.network();
        let is_inception = network.starts_with("inception/");
        match self {
            Self::FrechetDistance { .. } if is_inception => write!(f, "FID"),
            Self::FrechetDistance { .. } => write!(f, "Fréchet distance"),
            Self::FrechetInfinity { .. } if is_inception => write!(f, "FID∞"),
            Self::FrechetInfinity { .. } => write!(f, "Fréchet distance∞"),
            Self::KernelDistance { .. } if is_inception => write!(f, "KID"),
            Self::KernelDistance { .. } => write!(f, "kernel distance"),
            Self::PrecisionRecall { .. } => write!(f, "precision and recall"),
            Self::DensityCoverage { .. } => write!(f, "density and coverage"),
            Self::InceptionScore { .. } if is_inception => write!(f, "inception score"),
            Self::InceptionScore { .. } => write!(f, "class score"),
            Self::ClipScore { .. } => write!(f, "CLIP score"),
            Self::GaussianDistance { .. } if network.starts_with("clip/") => write!(f, "CMMD"),
            Self::GaussianDistance { .. } => write!(f, "Gaussian kernel distance"),
            Self::Diversity { .. } => write!(f, "diversity"),
            Self::NearestNeighbour { .. } => write!(f, "distance to the nearest"),
        }
    }
}

fn frechet(network: &str) -> Measure {
    Measure::FrechetDistance {
        network: network.to_owned(),
    }
}

fn kernel(network: &str) -> Measure {
    Measure::KernelDistance {
        network: network.to_owned(),
        subsets: 100,
        size: 1000,
    }
}

fn precision_recall(network: &str) -> Measure {
    Measure::PrecisionRecall {
        network: network.to_owned(),
        k: 3,
    }
}

fn inception_score(network: &str) -> Measure {
    Measure::InceptionScore {
        network: network.to_owned(),
        splits: 10,
    }
}

fn clip_score(network: &str, prefix: &str, scale: f64) -> Measure {
    Measure::ClipScore {
        network: network.to_owned(),
        prefix: prefix.to_owned(),
        scale,
    }
}

fn cmmd() -> Measure {
    Measure::GaussianDistance {
        network: "clip/stretch".to_owned(),
        sigma: 10.0,
        scale: 1000.0,
    }
}

fn swiftbrush_v2() -> Vec<Measure> {
    vec![
        frechet(CLEAN_FID),
        precision_recall(TORCH_FIDELITY),
        inception_score(TORCH_FIDELITY),
        clip_score(CLIP, "A photo depicts ", 1.0),
    ]
}

fn torch_fidelity() -> Vec<Measure> {
    vec![
        frechet(TORCH_FIDELITY),
        kernel(TORCH_FIDELITY),
        inception_score(TORCH_FIDELITY),
    ]
}

/// All distances that apply to the features of any network.
fn distances(network: &str) -> Vec<Measure> {
    vec![
        frechet(network),
        kernel(network),
        precision_recall(network),
        Measure::DensityCoverage {
            network: network.to_owned(),
            k: 5,
        },
    ]
}

const PYTORCH_FID: &str = "inception/pytorch-fid";
const TORCH_FIDELITY: &str = "inception/torch-fidelity";
const CLEAN_FID: &str = "inception/clean-fid";
const CLIP: &str = "clip/crop";
const LITE: &str = "efficientnet-lite0";

impl Protocol {
    /// Names of the built-in protocols.
    pub const NAMES: [&str; 8] = [
        "swiftbrush-v2",
        "clean-fid",
        "pytorch-fid",
        "torch-fidelity",
        "cmmd",
        "hpsv2",
        "efficientnet-lite0",
        "clip",
    ];

    /// A built-in protocol.
    ///
    /// | name | definition |
    /// |---|---|
    /// | `swiftbrush-v2` | follows the paper (arXiv 2408.14176) and its published evaluation: central squares, resized to 256 pixels with Lanczos; clean-fid's FID, precision and recall with k = 3 on TensorFlow's Inception, inception score, CLIP score with the prefix "A photo depicts ", in the paper on open_clip's ViT-g-14 `laion2b_s12b_b42k` |
    /// | `clean-fid`, `pytorch-fid`, `torch-fidelity` | the results of those programs for two folders (without torch-fidelity's precision and recall, which need VGG) |
    /// | `cmmd` | CLIP ViT-L/14 at 336 pixels, σ = 10, times 1000 |
    /// | `hpsv2` | HPSv2's ViT-H/14, times 100 as in its tables |
    /// | `efficientnet-lite0` | distances on the features of a network available as a Python package |
    /// | `clip` | distances and the CLIP score on any CLIP, such as the miniature's |
    ///
    /// Protocols of other programs ignore Exif orientations, as those programs do; the last two rotate images upright.
    ///
    /// # Errors
    ///
    /// If the name is unknown.
    pub fn named(name: &str) -> Result<Self, Error> {
        use Orient::{AsStored, Upright};
        use Preparation::AsTheyAre;
        let square = Preparation::Square {
            side: 256,
            filter: Filter::Lanczos,
        };
        let (version, pictures, orientation, measures) = match name {
            "swiftbrush-v2" => (1, square, AsStored, swiftbrush_v2()),
            "clean-fid" => {
                let measures = vec![frechet(CLEAN_FID), kernel(CLEAN_FID)];
                (1, AsTheyAre, AsStored, measures)
            }
            "pytorch-fid" => (1, AsTheyAre, AsStored, vec![frechet(PYTORCH_FID)]),
            "torch-fidelity" => (1, AsTheyAre, AsStored, torch_fidelity()),
            "cmmd" => (1, AsTheyAre, AsStored, vec![cmmd()]),
            "hpsv2" => {
                let measures = vec![clip_score("clip/pad", "", 100.0)];
                (1, AsTheyAre, AsStored, measures)
            }
            "efficientnet-lite0" => (2, AsTheyAre, Upright, distances(LITE)),
            "clip" => {
                let mut measures = distances(CLIP);
                measures.push(clip_score(CLIP, "", 1.0));
                (2, AsTheyAre, Upright, measures)
            }
            _ => {
                return Err(Error::Protocol {
                    name: name.to_owned(),
                    reason: format!("expected one of {}", Self::NAMES.join(", ")),
                });
            }
        };
        Ok(Self {
            name: name.to_owned(),
            version,
            pictures,
            orientation,
            measures,
        })
    }

    /// Reads a custom protocol in the JSON form stored in results. Its name must differ from those of built-in protocols.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or is not a valid protocol.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let bad = |reason: String| Error::Protocol {
            name: path.display().to_string(),
            reason,
        };
        let text =
            swiftbrush_checkpoint::read_text(path).map_err(|error| bad(error.to_string()))?;
        let protocol: Self = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        protocol.check().map_err(|reason| bad(reason.to_owned()))?;
        match Self::named(&protocol.name) {
            Ok(known) if known != protocol => Err(bad(format!(
                "{} is the name of a different built-in protocol; choose another",
                protocol.name
            ))),
            _ => Ok(protocol),
        }
    }

    /// Checks the ranges of all parameters.
    fn check(&self) -> Result<(), &'static str> {
        if let Preparation::Square { side: 0, .. } = self.pictures {
            return Err("expected a side of at least 1");
        }
        for measure in &self.measures {
            match measure {
                Measure::FrechetInfinity {
                    smallest, points, ..
                } if *smallest < 2 || *points < 2 => {
                    return Err("expected `smallest` and `points` of at least 2");
                }
                Measure::KernelDistance { subsets, size, .. } if *subsets < 1 || *size < 2 => {
                    return Err("expected `subsets` of at least 1 and `size` of at least 2");
                }
                Measure::PrecisionRecall { k: 0, .. } | Measure::DensityCoverage { k: 0, .. } => {
                    return Err("expected `k` of at least 1");
                }
                Measure::InceptionScore { splits: 0, .. } => {
                    return Err("expected `splits` of at least 1");
                }
                Measure::GaussianDistance { sigma, scale, .. }
                    if !(*sigma > 0.0 && sigma.is_finite() && scale.is_finite()) =>
                {
                    return Err("expected a positive `sigma` and a finite `scale`");
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The networks to run on generated images.
    pub fn networks(&self) -> BTreeSet<&str> {
        self.measures.iter().map(Measure::network).collect()
    }

    /// The networks to run on the reference: those of measures that compare with it.
    pub fn reference_networks(&self) -> BTreeSet<&str> {
        let measures = self.measures.iter();
        let comparing = measures.filter(|measure| measure.needs_reference());
        comparing.map(Measure::network).collect()
    }

    /// True if a measure compares with a reference.
    pub fn needs_reference(&self) -> bool {
        self.measures.iter().any(Measure::needs_reference)
    }

    /// True if a measure needs prompts.
    pub fn needs_prompts(&self) -> bool {
        self.measures.iter().any(Measure::needs_prompts)
    }
}
