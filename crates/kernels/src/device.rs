//! Checks whether a device's backend is supported.

use burn::backend::DispatchDevice;
use burn::tensor::Device;

/// The reason why this crate cannot compute on a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// burn was compiled with the backend of a device, but this crate was not.
    #[error(
        "{device} is not supported: swiftbrush-kernels was compiled without this backend; enable the feature of the same \
         name as burn's (`flex`, `wgpu`, `metal` or `cuda`) of swiftbrush or swiftbrush-kernels"
    )]
    UnsupportedDevice {
        /// The device, as burn prints it.
        device: String,
    },
}

/// Checks that this crate was compiled with the backend of a device. On other devices its operations panic, because burn
/// selects the backend at run time; call this where a device is chosen.
///
/// # Errors
///
/// If the crate's feature for that backend is off.
///
/// # Examples
///
/// ```
/// use burn::tensor::Device;
///
/// swiftbrush_kernels::supports(&Device::flex())?;
/// # Ok::<(), swiftbrush_kernels::Error>(())
/// ```
pub fn supports(device: &Device) -> Result<(), Error> {
    let device = device.clone().inner();
    match device.as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => Ok(()),
        #[cfg(feature = "cube")]
        DispatchDevice::Cube(_) => Ok(()),
        #[allow(
            unreachable_patterns,
            reason = "the variants depend on burn's features"
        )]
        other => Err(unsupported(other)),
    }
}

fn unsupported(device: &DispatchDevice) -> Error {
    Error::UnsupportedDevice {
        device: format!("{device:?}"),
    }
}

#[cfg(test)]
mod tests {
    use swiftbrush_testing::device;

    use super::*;

    #[test]
    fn the_test_device_is_supported_with_and_without_autodiff() {
        assert_eq!(supports(&device()), Ok(()));
        assert_eq!(supports(&device().autodiff()), Ok(()));
    }

    #[test]
    fn the_error_names_the_device_and_the_features() {
        let message = unsupported(device().as_dispatch()).to_string();
        assert!(message.contains(&format!("{:?}", device().as_dispatch())));
        assert!(message.contains("`flex`") && message.contains("swiftbrush-kernels"));
    }
}
