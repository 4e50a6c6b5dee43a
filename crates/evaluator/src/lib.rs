//! Evaluation of generated images with scores that are comparable with published ones.
//!
//! A [`Protocol`] describes everything that a score depends on besides the images: their preparation, the feature networks and
//! the measures. [`Networks::extract`] computes features, a batch at a time; [`Networks::measure`] computes the measures; an
//! [`Evaluation`] stores the values with the protocol and the hashes of all inputs, and [`comparable`] rejects results that were
//! measured under different conditions.
//!
//! Networks implement [`FeatureNetwork`]: [`Inception`] as in pytorch-fid, torch-fidelity and clean-fid, [`ClipNetwork`],
//! [`EfficientNetLite0`], or your own.
//!
//! ```
//! use burn::tensor::{Device, Tensor, TensorData};
//! use image::{Rgb, RgbImage};
//! use swiftbrush_evaluator::{FeatureNetwork, Networks, Protocol, Reference};
//!
//! /// The colour of the first pixel.
//! struct FirstPixel(Device);
//!
//! impl FeatureNetwork for FirstPixel {
//!     fn width(&self) -> usize {
//!         3
//!     }
//!
//!     fn features(&self, images: &[RgbImage]) -> Tensor<2> {
//!         let pixels = images.iter().flat_map(|image| image.get_pixel(0, 0).0.map(f32::from));
//!         Tensor::from_data(TensorData::new(pixels.collect(), [images.len(), 3]), &self.0)
//!     }
//! }
//!
//! let device = Device::default();
//! let protocol = Protocol::named("pytorch-fid")?;
//! let network = FirstPixel(device.clone());
//! let networks = Networks::default().with("inception/pytorch-fid", Box::new(network));
//! let images = |shift: u8| -> Vec<RgbImage> {
//!     let color = |i: u8| Rgb([shift + i, shift + 2 * i, shift + i * i]);
//!     (0..8).map(|i| RgbImage::from_pixel(4, 4, color(i))).collect()
//! };
//! let reference = Reference {
//!     features: networks.extract_reference(&protocol, &images(0))?,
//!     ..Reference::default()
//! };
//! let generated = networks.extract(&protocol, &images(10), None)?;
//! let measured = networks.measure(&protocol, &generated, &reference, 1, 0, &device)?;
//! // Three features, each shifted by 10.
//! assert!((measured.values[0].value - 300.0).abs() < 1e-3);
//! # Ok::<(), swiftbrush_evaluator::Error>(())
//! ```
#![cfg_attr(doctest, doc = include_str!("../README.md"))]

mod error;
mod evaluation;
mod extract;
mod measure;
mod networks;
mod protocol;

pub use error::Error;
pub use evaluation::{Evaluation, comparable, differences};
pub use extract::{FeatureSets, Networks};
pub use measure::{Measured, Reference, Value};
pub use networks::{
    ClipInput, ClipNetwork, EfficientNetLite0, FeatureNetwork, Inception, InceptionInput, NETWORKS,
    open, to_features,
};
pub use protocol::{Measure, Preparation, Protocol};
