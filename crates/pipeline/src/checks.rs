//! Checks for NaNs and infinities, whose values are read from the device at once or at the end.

use burn::tensor::{DType, FloatDType, Tensor, TensorData};

use crate::Error;

/// The checks of one generation.
pub(crate) enum Checks {
    /// Each waits for the device.
    Now,
    /// All are read together, without blocking; see [`Checks::read`].
    Later(Vec<Check>),
}

/// A tensor that must be finite, and no larger than a limit.
pub(crate) struct Check {
    part: &'static str,
    dtype: DType,
    largest: Tensor<1>,
    limit: f32,
}

/// Largest magnitude of pixels in −1…1. Resampling overshoots a little; pixels in 0…255 are far beyond.
const LARGEST_PIXEL: f32 = 2.0;

impl Checks {
    /// Checks the output of a network.
    pub(crate) fn finite<const D: usize>(
        &mut self,
        part: &'static str,
        tensor: &Tensor<D>,
    ) -> Result<(), Error> {
        self.finite_in(part, tensor, tensor.dtype())
    }

    /// Checks that images from the caller are in −1…1.
    pub(crate) fn pixels(&mut self, part: &'static str, images: &Tensor<4>) -> Result<(), Error> {
        self.check(part, images, images.dtype(), LARGEST_PIXEL)
    }

    /// Checks the output of a network, whose arithmetic was in `dtype`.
    pub(crate) fn finite_in<const D: usize>(
        &mut self,
        part: &'static str,
        tensor: &Tensor<D>,
        dtype: DType,
    ) -> Result<(), Error> {
        self.check(part, tensor, dtype, f32::MAX)
    }

    fn check<const D: usize>(
        &mut self,
        part: &'static str,
        tensor: &Tensor<D>,
        dtype: DType,
        limit: f32,
    ) -> Result<(), Error> {
        let check = Check {
            part,
            dtype,
            largest: tensor.clone().cast(FloatDType::F32).abs().max(),
            limit,
        };
        match self {
            Self::Now => check.judge(&check.largest.clone().into_data()),
            Self::Later(checks) => {
                checks.push(check);
                Ok(())
            }
        }
    }

    /// Reads the checks that were not made at once, in order.
    pub(crate) async fn read(self) -> Result<(), Error> {
        let Self::Later(checks) = self else {
            return Ok(());
        };
        for check in checks {
            let data = check.largest.clone().into_data_async().await;
            check.judge(&data.map_err(|error| Error::Execution(error.to_string()))?)?;
        }
        Ok(())
    }
}

impl Check {
    fn judge(&self, largest: &TensorData) -> Result<(), Error> {
        let (part, dtype) = (self.part, self.dtype);
        let largest = largest.iter::<f32>().next().unwrap_or(0.0);
        match largest {
            value if !value.is_finite() => Err(Error::NotFinite { part, dtype }),
            value if value > self.limit => Err(Error::Request(format!(
                "the {part} has values of up to {value}; expected -1 to 1"
            ))),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use swiftbrush_testing::device;

    use super::*;

    fn finite(values: Vec<f32>, mut checks: Checks) -> Result<(), Error> {
        let tensor = Tensor::<1>::from_data(TensorData::new(values, [3000]), &device());
        checks.finite("decoder", &tensor)?;
        match pin!(checks.read()).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => result,
            Poll::Pending => panic!("the CPU has to wait for nothing"),
        }
    }

    #[test]
    fn a_single_nan_or_infinity_is_noticed() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, 1, 1717, 2999] {
                let mut values = vec![0.5; 3000];
                values[place] = bad;
                let found = finite(values.clone(), Checks::Now);
                assert!(found.is_err(), "{bad} at {place}");
                let found = finite(values, Checks::Later(Vec::new()));
                assert!(found.is_err(), "{bad} at {place}, later");
            }
        }
        assert!(finite(vec![-3.0; 3000], Checks::Now).is_ok());
        assert!(finite(vec![-3.0; 3000], Checks::Later(Vec::new())).is_ok());
    }

    #[test]
    fn pixels_in_bytes_are_noticed() {
        let pixels = |value: f32| {
            let images = Tensor::<4>::full([1, 3, 2, 2], value, &device());
            Checks::Now.pixels("start image", &images)
        };
        assert!(pixels(-1.2).is_ok());
        let error = pixels(200.0).unwrap_err().to_string();
        assert!(
            error.contains("start image has values of up to 200"),
            "{error}"
        );
    }
}
