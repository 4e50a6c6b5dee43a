//! Files of the tests.

use std::io;
use std::path::Path;

/// Reads a file.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    std::fs::read(path)
}

/// Reads a file through node, because wasm32 has no file system.
#[cfg(target_arch = "wasm32")]
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    use wasm_bindgen::prelude::*;

    #[wasm_bindgen(module = "node:fs")]
    extern "C" {
        #[wasm_bindgen(catch, js_name = readFileSync)]
        fn read_file(path: &str) -> Result<Vec<u8>, JsValue>;
    }
    read_file(&path.to_string_lossy()).map_err(|error| io::Error::other(format!("{error:?}")))
}
