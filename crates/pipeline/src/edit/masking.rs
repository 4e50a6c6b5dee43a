use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::mask::{blur, enlarge};
use crate::{Error, Mask};

/// The part of images that an edit may change.
#[derive(Clone, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "one value lives for a whole edit"
)]
pub enum Masking {
    /// All of them.
    None,
    /// The regions where the predictions for the two prompts differ most.
    Automatic(AutomaticMask),
    /// A given mask.
    Given(Mask),
}

/// A mask from the size of the transport field: the mean magnitude over channels, blurred, and compared with a share of
/// its maximum in the image. Outside it, every byte of the image is kept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct AutomaticMask {
    /// Standard deviation of the Gaussian over the magnitude, in latents.
    pub blur: f64,
    /// Threshold above which pixels may change, as a share of the largest magnitude; lower values cover more.
    pub threshold: f64,
    /// Standard deviation of the Gaussian over the mask, in latents.
    pub feather: f64,
}

impl Default for AutomaticMask {
    fn default() -> Self {
        Self {
            blur: 1.0,
            threshold: 0.5,
            feather: 0.5,
        }
    }
}

impl AutomaticMask {
    /// Sets the Gaussian over the magnitude of the field.
    pub fn with_blur(mut self, blur: f64) -> Self {
        self.blur = blur;
        self
    }

    /// Sets the threshold above which pixels may change, as a share of the largest magnitude.
    pub fn with_threshold(mut self, threshold: f64) -> Self {
        self.threshold = threshold;
        self
    }

    /// Sets the Gaussian over the mask.
    pub fn with_feather(mut self, feather: f64) -> Self {
        self.feather = feather;
        self
    }

    /// Checks that every value is in range.
    ///
    /// # Errors
    ///
    /// If one is not.
    pub fn check(&self) -> Result<(), Error> {
        let is_width = |width: f64| width.is_finite() && width >= 0.0;
        for (holds, name, found, expected) in [
            (is_width(self.blur), "blur", self.blur, "0 or more"),
            (is_width(self.feather), "feather", self.feather, "0 or more"),
            (
                self.threshold > 0.0 && self.threshold <= 1.0,
                "threshold",
                self.threshold,
                "more than 0, up to 1",
            ),
        ] {
            if !holds {
                let text = format!("{name} {found} of an automatic mask; expected {expected}");
                return Err(Error::Request(text));
            }
        }
        Ok(())
    }

    /// The mask in latents of a field; all 0 where the field is 0 throughout.
    ///
    /// # Shapes
    ///
    /// - field: `[batch, channels, height, width]`
    /// - returns: `[batch, 1, height, width]`, 0…1
    pub fn of_field(&self, field: Tensor<4>) -> Tensor<4> {
        let size = blur(field.abs().mean_dim(1), self.blur);
        let [batch, _, _, _] = size.dims();
        let most: Tensor<2> = size.clone().flatten::<2>(1, 3).max_dim(1);
        // Keeps 0/0 from being compared.
        let most = most.clamp_min(f32::MIN_POSITIVE).reshape([batch, 1, 1, 1]);
        let inside = (size / most).greater_equal_elem(self.threshold as f32);
        blur(inside.float(), self.feather)
    }
}

impl Masking {
    pub(super) fn check(&self, images: [usize; 4]) -> Result<(), Error> {
        match self {
            Self::None => Ok(()),
            Self::Automatic(automatic) => automatic.check(),
            Self::Given(mask) => mask.check(images),
        }
    }

    /// The mask in latents, and the one in pixels.
    pub(super) fn of_field(&self, field: &Tensor<4>, scale: usize) -> Option<(Tensor<4>, Mask)> {
        match self {
            Self::None => None,
            Self::Automatic(automatic) => {
                let latents = automatic.of_field(field.clone());
                let pixels = Mask::new(enlarge(latents.clone(), scale));
                Some((latents, pixels.with_feather(automatic.feather)))
            }
            Self::Given(mask) => Some((mask.latents(scale), mask.clone())),
        }
    }
}
