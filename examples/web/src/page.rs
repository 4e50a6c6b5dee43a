//! The interface to JavaScript. Everything here runs in the page's worker.

#![allow(
    unreachable_pub,
    reason = "JavaScript reaches what `wasm_bindgen` exports"
)]

use std::cell::RefCell;
use std::error::Error as _;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use js_sys::{Array, JsString, Reflect, Uint8Array};
use swiftbrush_checkpoint::FileSource;
use wasm_bindgen::prelude::*;

use crate::gpu;
use crate::painter::{Error, Painter, Painting, Place, Wish};

/// The CPU, with memory for weights and activations: the 4 GiB of a 32-bit address space, less what the module itself needs.
#[cfg(feature = "cpu")]
fn cpu() -> Result<Place, Error> {
    Ok(Place::cpu(4_000_000_000))
}

/// Fails: the page asks this module for the GPU alone.
#[cfg(not(feature = "cpu"))]
fn cpu() -> Result<Place, Error> {
    Err(Error::Gpu("this module has no CPU backend".to_owned()))
}

#[wasm_bindgen]
extern "C" {
    /// The files of a model, `Files` in `files.js`. Reading is synchronous, which a worker may do.
    pub type Files;
    /// The length of a file, or −1 if there is none.
    #[wasm_bindgen(method, catch)]
    fn size(this: &Files, path: &str) -> Result<f64, JsValue>;
    #[wasm_bindgen(method, catch)]
    fn read(this: &Files, path: &str, start: f64, end: f64) -> Result<Uint8Array, JsValue>;
    /// The paths of all files.
    #[wasm_bindgen(method)]
    fn paths(this: &Files) -> Array;
}

thread_local! {
    /// JavaScript's values belong to one thread, but a source may be used from any: sources are indices into this list. The
    /// worker is the only thread, and opens few models.
    static OPEN: RefCell<Vec<Option<Files>>> = const { RefCell::new(Vec::new()) };
}

/// The place of a model's files in `OPEN`.
struct PageFiles(usize);

impl PageFiles {
    fn new(files: Files) -> Self {
        OPEN.with_borrow_mut(|open| {
            open.push(Some(files));
            Self(open.len() - 1)
        })
    }

    fn with<T>(&self, read: impl FnOnce(&Files) -> Result<T, JsValue>) -> io::Result<T> {
        OPEN.with_borrow(|open| match open.get(self.0).and_then(Option::as_ref) {
            Some(files) => read(files).map_err(|error| io::Error::other(text(&error))),
            None => Err(io::Error::other("the model was opened by another thread")),
        })
    }
}

impl Drop for PageFiles {
    fn drop(&mut self) {
        OPEN.with_borrow_mut(|open| {
            if let Some(files) = open.get_mut(self.0) {
                *files = None;
            }
        });
    }
}

impl FileSource for PageFiles {
    fn len(&self, path: &Path) -> io::Result<Option<u64>> {
        let size = self.with(|files| files.size(&path.to_string_lossy()))?;
        Ok((size >= 0.0).then_some(size as u64))
    }

    fn read(&self, path: &Path, range: Range<u64>) -> io::Result<Bytes> {
        let (start, end) = (range.start as f64, range.end as f64);
        let array = self.with(|files| files.read(&path.to_string_lossy(), start, end))?;
        Ok(array.to_vec().into())
    }

    fn names(&self, folder: &Path) -> Vec<PathBuf> {
        let paths = self.with(|files| Ok(files.paths())).unwrap_or_default();
        let paths = paths.iter().filter_map(|path| path.as_string());
        let below =
            paths.filter_map(|path| Some(Path::new(&path).strip_prefix(folder).ok()?.into()));
        below.collect()
    }
}

/// The text of anything that JavaScript throws.
fn text(error: &JsValue) -> String {
    match error.dyn_ref::<js_sys::Error>() {
        Some(error) => String::from(error.message()),
        None => String::from(JsString::from(error.clone())),
    }
}

/// An error with its causes.
fn thrown(error: Error) -> JsError {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // Transparent errors repeat the text of their cause.
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        cause = error.source();
    }
    JsError::new(&message)
}

/// Leaves the text of a panic in the global `swiftbrushPanic`, because what reaches JavaScript is "unreachable".
#[wasm_bindgen(start)]
fn start() {
    std::panic::set_hook(Box::new(|panic| {
        let (key, text) = (
            JsValue::from("swiftbrushPanic"),
            JsValue::from(panic.to_string()),
        );
        // There is nobody left to tell of a failure.
        let _ = Reflect::set(&js_sys::global(), &key, &text);
    }));
}

/// A loaded model.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Studio {
    painter: Painter,
    is_gpu: bool,
}

#[wasm_bindgen]
impl Studio {
    /// Loads the model in the folder `root` of some files, on the GPU if `is_gpu` is set and on the CPU otherwise. A module
    /// that was built without the one or the other fails.
    pub async fn open(files: Files, root: String, is_gpu: bool) -> Result<Studio, JsError> {
        let place = match is_gpu {
            true => gpu::place().await.map_err(thrown)?,
            false => cpu().map_err(thrown)?,
        };
        let painter = Painter::open(&root, Arc::new(PageFiles::new(files)), place);
        let painter = painter.map_err(thrown)?;
        Ok(Self { painter, is_gpu })
    }

    /// Side of the images in pixels.
    pub fn side(&self) -> Result<usize, JsError> {
        self.painter.side().map_err(thrown)
    }

    /// Averages the denoiser with another one, λ·A + (1−λ)·B.
    pub fn interpolate(&mut self, other: &str, lambda: f64) -> Result<(), JsError> {
        self.painter.interpolate(other, lambda).map_err(thrown)
    }

    /// Generates an image.
    pub async fn paint(
        &self,
        prompt: String,
        negative: String,
        seed: u64,
    ) -> Result<Image, JsError> {
        let wish = wish(prompt, negative, seed);
        self.checked(self.painter.paint(&wish).await)
    }

    /// Changes the image in a PNG file that this page made.
    pub async fn edit(
        &self,
        png: Vec<u8>,
        file: String,
        prompt: String,
        seed: u64,
    ) -> Result<Image, JsError> {
        let wish = wish(prompt, String::new(), seed);
        self.checked(self.painter.edit(&png, &file, &wish).await)
    }

    /// An image, unless the GPU reported an error meanwhile.
    fn checked(&self, painting: Result<Painting, Error>) -> Result<Image, JsError> {
        if self.is_gpu {
            gpu::check().map_err(thrown)?;
        }
        painting.map(Image).map_err(thrown)
    }
}

fn wish(prompt: String, negative_prompt: String, seed: u64) -> Wish {
    Wish {
        prompt,
        negative_prompt,
        seed,
    }
}

/// An image.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Image(Painting);

#[wasm_bindgen]
impl Image {
    /// Encodes the image as a PNG file with its record.
    pub fn png(&self) -> Vec<u8> {
        self.0.png()
    }

    /// Warnings for the user.
    pub fn warnings(&self) -> Vec<String> {
        self.0.warnings.clone()
    }
}

/// The record of a PNG file as JSON.
#[wasm_bindgen]
pub fn record(png: &[u8], file: &str) -> Result<String, JsError> {
    let painting = Painting::of_png(png, file).map_err(thrown)?;
    Ok(serde_json::to_string(&painting.record)?)
}
