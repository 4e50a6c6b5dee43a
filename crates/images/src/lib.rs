//! Pictures for measuring: strict decoding, centre crops, and resizing that equals Pillow's.

mod bilinear;
mod crop;
mod pillow;
mod read;

pub use bilinear::{Grid, resize_bilinear};
pub use crop::centre_square;
pub use pillow::{Filter, resize, resize_floats, to_floats};
pub use read::{Error, decode, list, read};
