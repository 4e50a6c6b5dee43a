//! Networks that turn images into features.

mod clip;
mod efficientnet;
mod inception;
mod layers;

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use image::{Rgb32FImage, RgbImage};
use rayon::prelude::*;
use swiftbrush_metrics::Features;

use crate::Error;

pub use clip::{ClipInput, ClipNetwork};
pub use efficientnet::EfficientNetLite0;
pub use inception::{Inception, InceptionInput};

/// A network that turns images into features. Protocols refer to it by its name in [`Networks`](crate::Networks).
pub trait FeatureNetwork {
    /// The number of features.
    fn width(&self) -> usize;

    /// Computes the features of images of any size.
    ///
    /// # Shapes
    ///
    /// - returns: `[images, width]`
    fn features(&self, pictures: &[RgbImage]) -> Tensor<2>;

    /// Class logits, for the inception score; `None` for a network that does not classify.
    ///
    /// # Shapes
    ///
    /// - features: `[images, width]`
    /// - returns: `[images, classes]`
    fn logits(&self, features: Tensor<2>) -> Option<Tensor<2>> {
        let _ = features;
        None
    }

    /// Features of texts in the same space, for the CLIP score; `None` for a network without a text encoder.
    ///
    /// # Shapes
    ///
    /// - returns: `[texts, width]`, of length one
    fn texts(&self, texts: &[String]) -> Option<Tensor<2>> {
        let _ = texts;
        None
    }
}

/// Names of the networks that [`open`] loads, with their input transforms.
pub const NETWORKS: [&str; 7] = [
    "inception/pytorch-fid",
    "inception/torch-fidelity",
    "inception/clean-fid",
    "clip/crop",
    "clip/pad",
    "clip/stretch",
    "efficientnet-lite0",
];

/// Opens a network by name. `path` is a weight file, or a folder for CLIP.
///
/// # Errors
///
/// If the name is not in [`NETWORKS`], or the weights cannot be read.
pub fn open(
    name: &str,
    path: impl AsRef<Path>,
    device: &Device,
) -> Result<Box<dyn FeatureNetwork>, Error> {
    use InceptionInput::{CleanFid, PytorchFid, TorchFidelity};
    let path = path.as_ref();
    let inception = |input| -> Result<Box<dyn FeatureNetwork>, Error> {
        Ok(Box::new(Inception::open(path, input, device)?))
    };
    let clip = |input| -> Result<Box<dyn FeatureNetwork>, Error> {
        Ok(Box::new(ClipNetwork::open(path, input, device)?))
    };
    match name {
        "inception/pytorch-fid" => inception(PytorchFid),
        "inception/torch-fidelity" => inception(TorchFidelity),
        "inception/clean-fid" => inception(CleanFid),
        "clip/crop" => clip(ClipInput::Crop),
        "clip/pad" => clip(ClipInput::Pad),
        "clip/stretch" => clip(ClipInput::Stretch),
        "efficientnet-lite0" => Ok(Box::new(EfficientNetLite0::open(path, device)?)),
        _ => Err(Error::UnknownNetwork {
            name: name.to_owned(),
        }),
    }
}

/// Converts prepared images to a tensor `[images, 3, height, width]`.
fn batch(
    pictures: &[RgbImage],
    prepare: impl Fn(&RgbImage) -> Rgb32FImage + Send + Sync,
    device: &Device,
) -> Tensor<4> {
    let prepared: Vec<_> = pictures.par_iter().map(prepare).collect();
    let (width, height) = prepared
        .first()
        .map_or((1, 1), |picture| picture.dimensions());
    let values: Vec<f32> = prepared
        .into_iter()
        .flat_map(|picture| picture.into_raw())
        .collect();
    let shape = [pictures.len(), height as usize, width as usize, 3];
    Tensor::<4>::from_data(TensorData::new(values, shape), device).permute([0, 3, 1, 2])
}

/// Converts a tensor of features, `[images, width]`, to the rows that the measures take.
///
/// # Errors
///
/// If a value is NaN or infinite.
pub fn to_features(tensor: Tensor<2>) -> Result<Features, Error> {
    let [_, width] = tensor.dims();
    let values = tensor.into_data().iter::<f32>().collect();
    Ok(Features::new(width, values)?)
}
