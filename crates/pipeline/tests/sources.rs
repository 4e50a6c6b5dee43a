//! Models from other sources than the file system.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use burn::tensor::Tensor;
use bytes::Bytes;
use swiftbrush_checkpoint::{FileSource, MemoryFiles};
use swiftbrush_pipeline::edit::Edit;
use swiftbrush_pipeline::{Given, Loader, Method, Model, Request, Rng, Seeds};
use swiftbrush_testing::device;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/model")
}

/// All files of a folder under `root`.
fn files_below(folder: &Path, root: &Path, files: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let inside = root.join(path.file_name().unwrap());
        match path.is_dir() {
            true => files_below(&path, &inside, files),
            false => files.push((inside, std::fs::read(path).unwrap())),
        }
    }
}

fn in_memory(folder: &Path) -> MemoryFiles {
    let mut files = Vec::new();
    files_below(folder, Path::new("some/model"), &mut files);
    files.into_iter().collect()
}

/// Files in memory that note the longest range that was read, and can fail.
struct Watched {
    files: MemoryFiles,
    longest: Mutex<u64>,
    fails_on: Option<&'static str>,
}

impl FileSource for Watched {
    fn len(&self, path: &Path) -> io::Result<Option<u64>> {
        self.files.len(path)
    }

    fn read(&self, path: &Path, range: Range<u64>) -> io::Result<Bytes> {
        if self.fails_on.is_some_and(|end| path.ends_with(end)) {
            return Err(io::Error::other("the network was cut"));
        }
        let mut longest = self.longest.lock().unwrap();
        *longest = (*longest).max(range.end - range.start);
        self.files.read(path, range)
    }

    fn names(&self, folder: &Path) -> Vec<PathBuf> {
        self.files.names(folder)
    }
}

fn watched(fails_on: Option<&'static str>) -> Arc<Watched> {
    Arc::new(Watched {
        files: in_memory(&folder()),
        longest: Mutex::new(0),
        fails_on,
    })
}

fn generated(model: Model) -> Vec<u8> {
    let pipeline = Loader::new(model, &device()).load().unwrap();
    let request = Request::new(["a cat"]).with_method(Method::OneStep);
    let mut noise = Seeds::new(Rng::Native, [5]);
    let generation = pipeline.generate(&request, &mut noise).unwrap();
    generation.pictures()[0].bytes.clone()
}

#[test]
fn a_model_from_a_source_generates_what_the_folder_generates_and_reads_no_file_whole() {
    let source = watched(None);
    let model = Model::from_source("some/model", source.clone()).unwrap();
    assert!(!model.is_in_file_system());
    assert_eq!(generated(model), generated(Model::open(folder()).unwrap()));
    let weights = folder().join("unet/diffusion_pytorch_model.safetensors");
    let whole = weights.metadata().unwrap().len();
    let longest = *source.longest.lock().unwrap();
    assert!(longest < whole / 2, "{longest} of {whole} bytes at once");
}

#[test]
fn a_failing_source_is_an_error_that_names_the_file() {
    let name = "unet/diffusion_pytorch_model.safetensors";
    let model = Model::from_source("some/model", watched(Some(name))).unwrap();
    let error = Loader::new(model, &device()).load().unwrap_err();
    let error = with_causes(&error);
    assert!(
        error.contains(name) && error.contains("the network was cut"),
        "{error}"
    );
    let error = Model::from_source("another", watched(None)).unwrap_err();
    assert!(error.to_string().contains("another"), "{error}");
}

/// An error with its causes.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[test]
fn only_folders_on_the_file_system_are_quantised() {
    let model = Model::from_source("some/model", watched(None)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let error = Loader::new(model, &device()).quantize(folder.path().join("int8"));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("not on the file system"), "{error}");
}

/// The result of a future that has nothing to wait for.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut context = Context::from_waker(Waker::noop());
    match pin!(future).poll(&mut context) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the CPU has to wait for nothing"),
    }
}

#[test]
fn generating_without_waiting_gives_the_same_images_and_errors() {
    let pipeline = Loader::new(Model::open(folder()).unwrap(), &device());
    let pipeline = pipeline.load().unwrap();
    let request = Request::new(["a cat"]).with_method(Method::OneStep);
    let noise = || Seeds::new(Rng::Native, [5]);
    let blocking = pipeline.generate(&request, &mut noise()).unwrap();
    let generation = now(pipeline.generate_async(&request, &mut noise())).unwrap();
    assert_eq!(
        now(generation.pictures_async()).unwrap(),
        blocking.pictures()
    );

    let edit = Edit::of_picture(&blocking.pictures()[0], "a cat", "a dog", &device()).unwrap();
    let edit = edit.with_method(Method::OneStep);
    let edited = now(pipeline.edit_async(&edit, &mut noise())).unwrap();
    let expected = pipeline.edit(&edit, &mut noise()).unwrap();
    assert_eq!(edited.pictures(), expected.pictures());

    let nan = || Given::from(Tensor::full([1, 4, 8, 8], f32::NAN, &device()));
    let blocking = pipeline.generate(&request, &mut nan()).unwrap_err();
    let error = now(pipeline.generate_async(&request, &mut nan())).unwrap_err();
    assert_eq!(error.to_string(), blocking.to_string());
    assert!(error.to_string().contains("denoiser"), "{error}");
}
