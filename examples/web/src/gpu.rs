//! WebGPU: its device, and the errors that it reports.

use std::cell::RefCell;
use std::sync::Arc;

use burn::tensor::Device;
use burn::tensor::wgpu::{WgpuSetup, wgpu};

use crate::painter::{Error, Limit, Place};

thread_local! {
    /// The device, which can be initialised only once.
    static PLACE: RefCell<Option<Place>> = const { RefCell::new(None) };
    /// The first error of the GPU that no call returned.
    static FAULT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The GPU that the browser prefers.
///
/// # Errors
///
/// If there is none.
pub(crate) async fn place() -> Result<Place, Error> {
    if let Some(place) = PLACE.with_borrow(Clone::clone) {
        check()?;
        return Ok(place);
    }
    let setup = Device::wgpu_options().init_with_setup_async().await;
    let (device, setup) = setup.map_err(|error| {
        Error::Gpu(format!(
            "WebGPU cannot be used: {error}; compute on the CPU"
        ))
    })?;
    watch(&setup);
    let limits = setup.device.limits();
    let limit = limits
        .max_buffer_size
        .min(u64::from(limits.max_storage_buffer_binding_size));
    let place = Place {
        device,
        name: "wgpu",
        limit: Limit::Buffer(limit),
    };
    PLACE.set(Some(place.clone()));
    Ok(place)
}

/// Keeps the first error that the GPU reports: burn only logs shaders that do not compile, and a kernel that did not run
/// leaves arbitrary values.
fn watch(setup: &WgpuSetup) {
    let keep = |text: String| {
        FAULT.with_borrow_mut(|fault| {
            fault.get_or_insert(text);
        });
    };
    setup
        .device
        .on_uncaptured_error(Arc::new(move |error: wgpu::Error| keep(error.to_string())));
    setup.device.set_device_lost_callback(move |reason, text| {
        keep(format!("it was lost ({reason:?}) {text}"))
    });
}

/// Returns the error that the GPU has reported, if any. It stays: later results could be wrong too.
///
/// # Errors
///
/// If there is one.
pub(crate) fn check() -> Result<(), Error> {
    FAULT.with_borrow(|fault| match fault {
        None => Ok(()),
        Some(text) => Err(Error::Gpu(format!(
            "the GPU failed: {text}; reload the page, or compute on the CPU"
        ))),
    })
}
