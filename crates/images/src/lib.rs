//! Image files and pixels: decoding with limits, upright and without transparency; cropping; and resizing that matches
//! Pillow's bit for bit.
//!
//! [`open`] reads any supported format and reports what it changed, [`Folder::list`] lists a folder in natural order, and
//! [`resize`] resizes like Pillow.
#![cfg_attr(doctest, doc = include_str!("../README.md"))]

mod bilinear;
mod crop;
mod fit;
mod folder;
mod npy;
mod open;
mod orientation;
mod pillow;

pub use bilinear::{Grid, resize_bilinear};
pub use crop::centre_square;
pub use fit::{fit, resize_and_crop, round_down};
pub use folder::{EXTENSIONS, Folder, natural_order};
pub use open::{Decoded, Error, MAX_FILE, MAX_PIXELS, decode, open, read_file};
pub use orientation::Orient;
pub use pillow::{Filter, resize, resize_floats, to_floats};
