//! One-step text to image in a web page, from the same crates as everywhere else.
//!
//! [`painter`] is the part without a browser, which is tested natively; `page` is its interface to JavaScript and compiled for
//! wasm32 alone, and `gpu` the device of its second module. The script `build` next to this crate makes the page, and the
//! page's own files are in `www`.

pub mod painter;

#[cfg(target_arch = "wasm32")]
#[cfg_attr(not(feature = "webgpu"), path = "no_gpu.rs")]
mod gpu;
#[cfg(target_arch = "wasm32")]
mod page;
