use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use image::RgbImage;
use serde::{Deserialize, Serialize};
use swiftbrush_images::{Filter, centre_square, resize};

use crate::Error;

/// Everything that a number depends on besides the pictures: what is done to them, which networks look at them and how, and
/// what is computed. Two numbers compare only if their protocols are equal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// Its name.
    pub name: String,
    /// Raised whenever anything in the protocol of this name changes.
    pub version: u32,
    /// What is done to the pictures of both sets first.
    pub pictures: Preparation,
    /// What is computed.
    pub measures: Vec<Measure>,
}

/// What is done to pictures before any network sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preparation {
    /// Nothing.
    AsTheyAre,
    /// The middle square is resized on bytes.
    Square {
        /// Its new side.
        side: u32,
        /// How.
        filter: Filter,
    },
}

impl Preparation {
    /// Prepares a picture.
    ///
    /// # Panics
    ///
    /// If the new side is zero.
    pub fn apply(self, picture: RgbImage) -> RgbImage {
        match self {
            Self::AsTheyAre => picture,
            Self::Square { side, filter } => resize(&centre_square(&picture), side, side, filter),
        }
    }
}

/// Something that is computed of one set of pictures, or of two.
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
        /// Whose features.
        network: String,
    },
    /// FID∞; see [`frechet_infinity`](swiftbrush_metrics::frechet_infinity).
    FrechetInfinity {
        /// Whose features.
        network: String,
        /// Pictures of the smallest subset.
        smallest: usize,
        /// Subsets.
        points: usize,
    },
    /// KID on Inception's features; see [`kernel_distance`](swiftbrush_metrics::kernel_distance).
    KernelDistance {
        /// Whose features.
        network: String,
        /// Subsets of both sets.
        subsets: usize,
        /// Pictures of each; fewer if there are fewer.
        size: usize,
    },
    /// See [`precision_recall`](swiftbrush_metrics::precision_recall).
    PrecisionRecall {
        /// Whose features.
        network: String,
        /// Which neighbour is the edge of a picture's neighbourhood.
        k: usize,
    },
    /// See [`density_coverage`](swiftbrush_metrics::density_coverage).
    DensityCoverage {
        /// Whose features.
        network: String,
        /// Which neighbour is the edge of a picture's neighbourhood.
        k: usize,
    },
    /// See [`inception_score`](swiftbrush_metrics::inception_score); pictures are shuffled first.
    InceptionScore {
        /// Whose classes.
        network: String,
        /// Parts.
        splits: usize,
    },
    /// Mean cosine of pictures and their prompts: the CLIP score, HPSv2, PickScore, by the weights.
    ClipScore {
        /// Whose embeddings.
        network: String,
        /// What is put before each prompt.
        prefix: String,
        /// What the cosine is multiplied by.
        scale: f64,
    },
    /// CMMD on CLIP's embeddings; see [`gaussian_mmd`](swiftbrush_metrics::gaussian_mmd).
    GaussianDistance {
        /// Whose features.
        network: String,
        /// Width of the kernel.
        sigma: f64,
        /// What the squared discrepancy is multiplied by.
        scale: f64,
    },
    /// See [`diversity`](swiftbrush_metrics::diversity).
    Diversity {
        /// Whose features.
        network: String,
    },
    /// Mean distance to the nearest picture of the reference; see [`nearest`](swiftbrush_metrics::nearest).
    NearestNeighbour {
        /// Whose features.
        network: String,
    },
}

impl Measure {
    /// The network whose features it is of.
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

    /// Whether it compares with a reference.
    pub fn needs_reference(&self) -> bool {
        !matches!(
            self,
            Self::InceptionScore { .. } | Self::ClipScore { .. } | Self::Diversity { .. }
        )
    }

    /// Whether it needs the prompts.
    pub fn needs_prompts(&self) -> bool {
        matches!(self, Self::ClipScore { .. })
    }
}

/// The names that the field knows: FID and KID are distances on Inception's features and on no others.
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

const PYTORCH_FID: &str = "inception/pytorch-fid";
const TORCH_FIDELITY: &str = "inception/torch-fidelity";
const CLEAN_FID: &str = "inception/clean-fid";
const CLIP: &str = "clip/crop";
const LITE: &str = "efficientnet-lite0";

impl Protocol {
    /// The names of the protocols that are built in.
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

    /// A protocol that is built in.
    ///
    /// | name | what it is |
    /// |---|---|
    /// | `swiftbrush-v2` | that of the paper (arXiv 2408.14176) and its published evaluation: middle squares by Lanczos to 256 pixels; clean-fid's FID, precision and recall with k = 3 on TensorFlow's Inception, inception score, CLIP score with "A photo depicts ", for which the paper has open_clip's ViT-g-14 `laion2b_s12b_b42k` |
    /// | `clean-fid`, `pytorch-fid`, `torch-fidelity` | what those programs say of two folders (torch-fidelity's precision and recall, which are on VGG's features, are left out) |
    /// | `cmmd` | CLIP ViT-L/14 of 336 pixels, σ = 10, times 1000 |
    /// | `hpsv2` | HPSv2's ViT-H/14, times 100 as its tables have it |
    /// | `efficientnet-lite0` | distances on features that can be had from a package |
    /// | `clip` | distances on the features of any CLIP, such as the miniature's own |
    ///
    /// # Errors
    ///
    /// If there is none of that name.
    pub fn named(name: &str) -> Result<Self, Error> {
        let frechet = |network: &str| Measure::FrechetDistance {
            network: network.to_owned(),
        };
        let kernel = |network: &str| Measure::KernelDistance {
            network: network.to_owned(),
            subsets: 100,
            size: 1000,
        };
        let precision_recall = |network: &str| Measure::PrecisionRecall {
            network: network.to_owned(),
            k: 3,
        };
        let density_coverage = |network: &str| Measure::DensityCoverage {
            network: network.to_owned(),
            k: 5,
        };
        let inception_score = |network: &str| Measure::InceptionScore {
            network: network.to_owned(),
            splits: 10,
        };
        let clip_score = |network: &str, prefix: &str, scale| Measure::ClipScore {
            network: network.to_owned(),
            prefix: prefix.to_owned(),
            scale,
        };
        let (pictures, measures) = match name {
            "swiftbrush-v2" => (
                Preparation::Square {
                    side: 256,
                    filter: Filter::Lanczos,
                },
                vec![
                    frechet(CLEAN_FID),
                    precision_recall(TORCH_FIDELITY),
                    inception_score(TORCH_FIDELITY),
                    clip_score(CLIP, "A photo depicts ", 1.0),
                ],
            ),
            "clean-fid" => (
                Preparation::AsTheyAre,
                vec![frechet(CLEAN_FID), kernel(CLEAN_FID)],
            ),
            "pytorch-fid" => (Preparation::AsTheyAre, vec![frechet(PYTORCH_FID)]),
            "torch-fidelity" => (
                Preparation::AsTheyAre,
                vec![
                    frechet(TORCH_FIDELITY),
                    kernel(TORCH_FIDELITY),
                    inception_score(TORCH_FIDELITY),
                ],
            ),
            "cmmd" => (
                Preparation::AsTheyAre,
                vec![Measure::GaussianDistance {
                    network: "clip/stretch".to_owned(),
                    sigma: 10.0,
                    scale: 1000.0,
                }],
            ),
            "hpsv2" => (
                Preparation::AsTheyAre,
                vec![clip_score("clip/pad", "", 100.0)],
            ),
            "efficientnet-lite0" => (
                Preparation::AsTheyAre,
                vec![
                    frechet(LITE),
                    kernel(LITE),
                    precision_recall(LITE),
                    density_coverage(LITE),
                ],
            ),
            "clip" => (
                Preparation::AsTheyAre,
                vec![
                    frechet(CLIP),
                    kernel(CLIP),
                    precision_recall(CLIP),
                    density_coverage(CLIP),
                    clip_score(CLIP, "", 1.0),
                ],
            ),
            _ => {
                return Err(Error::Protocol {
                    name: name.to_owned(),
                    reason: format!("there are {}", Self::NAMES.join(", ")),
                });
            }
        };
        Ok(Self {
            name: name.to_owned(),
            version: 1,
            pictures,
            measures,
        })
    }

    /// Reads a protocol of one's own, as results hold it (JSON). It may not have the name of one that is built in.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or describes none.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let bad = |reason: String| Error::Protocol {
            name: path.display().to_string(),
            reason,
        };
        let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        let protocol: Self = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        protocol.check().map_err(|reason| bad(reason.to_owned()))?;
        match Self::named(&protocol.name) {
            Ok(known) if known != protocol => Err(bad(format!(
                "{} is another protocol, which is built in: give yours a name of its own",
                protocol.name
            ))),
            _ => Ok(protocol),
        }
    }

    /// Whether the numbers in it are ones that can be computed with.
    fn check(&self) -> Result<(), &'static str> {
        if let Preparation::Square { side: 0, .. } = self.pictures {
            return Err("pictures without a side");
        }
        for measure in &self.measures {
            match measure {
                Measure::FrechetInfinity {
                    smallest, points, ..
                } if *smallest < 2 || *points < 2 => {
                    return Err("smallest and points are 2 at least");
                }
                Measure::KernelDistance { subsets, size, .. } if *subsets < 1 || *size < 2 => {
                    return Err("there is a subset at least, of two pictures at least");
                }
                Measure::PrecisionRecall { k: 0, .. } | Measure::DensityCoverage { k: 0, .. } => {
                    return Err("k is 1 at least");
                }
                Measure::InceptionScore { splits: 0, .. } => return Err("splits is 1 at least"),
                Measure::GaussianDistance { sigma, scale, .. }
                    if !(*sigma > 0.0 && sigma.is_finite() && scale.is_finite()) =>
                {
                    return Err("sigma is positive, and scale a number");
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The networks that it looks with.
    pub fn networks(&self) -> BTreeSet<&str> {
        self.measures.iter().map(Measure::network).collect()
    }

    /// Whether anything in it compares with a reference.
    pub fn needs_reference(&self) -> bool {
        self.measures.iter().any(Measure::needs_reference)
    }

    /// Whether anything in it needs the prompts.
    pub fn needs_prompts(&self) -> bool {
        self.measures.iter().any(Measure::needs_prompts)
    }
}
