//! The module without WebGPU, which is much smaller.

use crate::painter::{Error, Place};

/// Fails: the page asks this module for the CPU alone.
pub(crate) async fn place() -> Result<Place, Error> {
    Err(Error::Gpu("this module has no WebGPU".to_owned()))
}

/// Returns no error.
pub(crate) fn check() -> Result<(), Error> {
    Ok(())
}
