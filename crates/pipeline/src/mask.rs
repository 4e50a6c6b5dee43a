//! Masks: the pixels of an image that may change.

use burn::tensor::{Device, FloatDType, Tensor, TensorData};

use crate::Error;

/// Default of [`Mask::feather`].
const FEATHER: f64 = 0.5;

/// The share by which each pixel may change: 0 keeps every byte, 1 replaces the pixel.
///
/// ```
/// use burn::tensor::Device;
/// use swiftbrush_pipeline::Mask;
///
/// // The right half of an image of 4×2 pixels.
/// let mask = Mask::from_bytes(4, 2, &[0, 0, 255, 255, 0, 0, 255, 255], &Device::default())?;
/// assert_eq!(mask.share(), 0.5);
/// # Ok::<(), swiftbrush_pipeline::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Mask {
    /// `[batch, 1, height, width]` of the image, 0…1, f32; a batch of 1 holds for all images.
    pub pixels: Tensor<4>,
    /// Standard deviation, in latents, of the Gaussian that softens the mask of the latents; 0 for none.
    pub feather: f64,
}

impl Mask {
    /// Creates a mask with the default feather, half a latent.
    ///
    /// # Shapes
    ///
    /// - pixels: `[batch, 1, height, width]`, 0…1
    pub fn new(pixels: Tensor<4>) -> Self {
        Self {
            pixels: pixels.cast(FloatDType::F32),
            feather: FEATHER,
        }
    }

    /// Creates one mask for all images from a greyscale picture: black keeps, white changes.
    ///
    /// # Errors
    ///
    /// If the number of bytes is not `width · height`.
    pub fn from_bytes(
        width: usize,
        height: usize,
        bytes: &[u8],
        device: &Device,
    ) -> Result<Self, Error> {
        if bytes.len() != width * height {
            return Err(Error::Request(format!(
                "expected a mask of {width}x{height} grey bytes, found {}",
                bytes.len()
            )));
        }
        let values: Vec<f32> = bytes.iter().map(|&byte| f32::from(byte) / 255.0).collect();
        let pixels = TensorData::new(values, [1, 1, height, width]);
        Ok(Self::new(Tensor::from_data(pixels, device)))
    }

    /// Sets the standard deviation, in latents, of the Gaussian that softens the mask of the latents.
    pub fn with_feather(mut self, feather: f64) -> Self {
        self.feather = feather;
        self
    }

    /// Mean of the mask over all images.
    pub fn share(&self) -> f64 {
        f64::from(self.pixels.clone().mean().into_scalar::<f32>())
    }

    /// Number of masks: one for all images, or one for each.
    pub(crate) fn count(&self) -> usize {
        let [masks, ..] = self.pixels.dims();
        masks
    }

    /// Checks the mask against the shape of images.
    pub(crate) fn check(&self, [batch, _, height, width]: [usize; 4]) -> Result<(), Error> {
        let refuse = |text: String| Err(Error::Request(text));
        let [masks, channels, rows, columns] = self.pixels.dims();
        if channels != 1 {
            return refuse(format!(
                "expected a mask of 1 channel, found {channels}: convert it to grey"
            ));
        }
        if [rows, columns] != [height, width] {
            return refuse(format!(
                "the mask is {columns}x{rows}, the image {width}x{height}: resize the mask to the image"
            ));
        }
        if masks != 1 && masks != batch {
            return refuse(format!(
                "expected one mask, or one for each of {batch} images, found {masks}"
            ));
        }
        if !(self.feather.is_finite() && self.feather >= 0.0) {
            return refuse(format!(
                "a mask's feather is {}; expected 0 or more",
                self.feather
            ));
        }
        let values = self.pixels.to_data();
        match values
            .iter::<f32>()
            .find(|value| !(0.0..=1.0).contains(value))
        {
            Some(value) => refuse(format!("a mask has the value {value}; expected 0 to 1")),
            None => Ok(()),
        }
    }

    /// The mask in latents of `scale` pixels: the mean of each block, feathered.
    pub(crate) fn latents(&self, scale: usize) -> Tensor<4> {
        blur(block_means(self.pixels.clone(), scale), self.feather)
    }

    /// The part of the mask for images `first` to `first + len` of a batch.
    pub(crate) fn narrow(&self, first: usize, len: usize) -> Self {
        let [masks, ..] = self.pixels.dims();
        let pixels = match masks {
            1 => self.pixels.clone(),
            _ => self.pixels.clone().narrow(0, first, len),
        };
        Self {
            pixels,
            ..self.clone()
        }
    }

    /// Changed images where the mask is 1, and the originals, byte for byte, where it is 0.
    pub(crate) fn paste(&self, changed: Tensor<4>, originals: &Tensor<4>) -> Tensor<4> {
        let [changed, originals] = [changed, originals.clone()].map(|x| x.cast(FloatDType::F32));
        blend(self.pixels.clone(), changed, originals)
    }
}

/// `(1 − m)·kept + m·changed`: exactly one of them where the mask is 0 or 1.
pub(crate) fn blend(mask: Tensor<4>, changed: Tensor<4>, kept: Tensor<4>) -> Tensor<4> {
    kept * (1.0 - mask.clone()) + changed * mask
}

fn block_means(pixels: Tensor<4>, scale: usize) -> Tensor<4> {
    let [batch, _, height, width] = pixels.dims();
    let (rows, columns) = (height / scale, width / scale);
    let blocks = pixels.reshape([batch * rows, scale, columns, scale]);
    let means = blocks.mean_dim(1).mean_dim(3);
    means.reshape([batch, 1, rows, columns])
}

/// A Gaussian along both axes, whose weights within the image sum to 1.
///
/// # Shapes
///
/// - mask and the result: `[batch, 1, height, width]`
pub(crate) fn blur(mask: Tensor<4>, deviation: f64) -> Tensor<4> {
    if deviation == 0.0 {
        return mask;
    }
    let weight = |to: usize, from: usize| {
        let distance = to as f64 - from as f64;
        (-distance.powi(2) / (2.0 * deviation.powi(2))).exp()
    };
    let weights = |side: usize| {
        let rows = (0..side).flat_map(|to| {
            let total: f64 = (0..side).map(|from| weight(to, from)).sum();
            (0..side).map(move |from| weight(to, from) / total)
        });
        rows.collect()
    };
    resample(mask, |side| side, weights)
}

/// Bilinear enlargement to pixels, as PyTorch's without `align_corners`, in steps of 1/255: what a picture can store.
pub(crate) fn enlarge(mask: Tensor<4>, scale: usize) -> Tensor<4> {
    let weights = |side: usize| {
        let mut rows = vec![0.0; side * scale * side];
        for (index, row) in rows.chunks_mut(side).enumerate() {
            let place = (index as f64 + 0.5) / scale as f64 - 0.5;
            let place = place.clamp(0.0, (side - 1) as f64);
            let (low, share) = (place.floor() as usize, place.fract());
            row[low] += 1.0 - share;
            row[(low + 1).min(side - 1)] += share;
        }
        rows
    };
    let pixels = resample(mask, |side| side * scale, weights);
    (pixels * 255.0).round() / 255.0
}

/// Products with a matrix along each axis; `weights` gives it row by row for a side.
fn resample(
    mask: Tensor<4>,
    size: impl Fn(usize) -> usize,
    weights: impl Fn(usize) -> Vec<f64>,
) -> Tensor<4> {
    let [_, _, height, width] = mask.dims();
    let device = mask.device();
    let matrix = |side: usize| {
        let values: Vec<f32> = weights(side)
            .into_iter()
            .map(|value| value as f32)
            .collect();
        let shape = [1, 1, size(side), side];
        Tensor::<4>::from_data(TensorData::new(values, shape), &device)
    };
    let rows = matrix(height).matmul(mask);
    rows.matmul(matrix(width).transpose())
}

#[cfg(test)]
mod tests {
    use swiftbrush_testing::{F32, Golden, assert_close, device, values};

    use super::*;

    fn golden(name: &str) -> Tensor<4> {
        Golden::open(env!("CARGO_MANIFEST_DIR"), "edit").tensor(name, &device())
    }

    #[test]
    fn blocks_and_gaussians_are_those_of_pytorch() {
        let mask = Mask::new(golden("mask.pixels"));
        let sharp = mask.clone().with_feather(0.0).latents(2);
        assert_close(sharp, golden("mask.latents"), F32);
        let soft = mask.with_feather(0.8).latents(2);
        assert_close(soft, golden("mask.feathered"), F32);
    }

    #[test]
    fn enlarged_masks_are_those_of_pytorch() {
        let enlarged = enlarge(golden("mask.automatic"), 2);
        // A value halfway between two bytes may round to either.
        assert_close(enlarged, golden("mask.enlarged"), 1.01 / 255.0);
    }

    #[test]
    fn originals_are_kept_to_the_byte() {
        let device = device();
        let bytes: Vec<u8> = (0..=255).collect();
        let values_of = |bytes: &[u8]| -> Vec<f32> {
            let value = |&byte: &u8| f32::from(byte) / 127.5 - 1.0;
            bytes.iter().map(value).collect()
        };
        let image = TensorData::new(values_of(&bytes), [1, 1, 16, 16]);
        let image = Tensor::<4>::from_data(image, &device);
        let mask: Vec<u8> = (0..=255).map(|i| if i < 128 { 0 } else { 255 }).collect();
        let mask = Mask::from_bytes(16, 16, &mask, &device).expect("the sizes agree");
        let changed = Tensor::full([1, 1, 16, 16], 0.123, &device);
        let pasted = values(mask.paste(changed, &image));
        assert_eq!(pasted[..128], values(image)[..128]);
        assert!(pasted[128..].iter().all(|&value| value == 0.123));
    }
}
