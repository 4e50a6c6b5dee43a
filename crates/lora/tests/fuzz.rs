//! Any adapter configuration is either read or an error, never a panic.
//!
//! `SWIFTBRUSH_FUZZ_SECONDS=600 cargo test --release --workspace --test fuzz` runs longer. Failing inputs are kept
//! in `corpus`.

use std::path::{Path, PathBuf};

use swiftbrush_lora::{AdapterFile, Layout};
use swiftbrush_testing::fuzz;

fn here(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(file)
}

#[test]
fn adapter_configurations() {
    let source = here("golden/configurations");
    let seeds: Vec<_> = ["order", "ranks", "pattern-of-targets", "excluded", "pissa"]
        .iter()
        .map(|name| {
            std::fs::read(source.join(name).join("adapter_config.json")).expect("it exists")
        })
        .collect();
    let words = [
        "\"to_q\"",
        "\"r\": ",
        "\"lora_alpha\": ",
        "\"alpha_pattern\": {\"(.*)+$\": 1}",
        "\"target_modules\": \"a{1000}{1000}\"",
        "init_lora_weights",
        "use_rslora",
        "true",
        "1e308",
        "NaN",
    ];
    let folder = tempfile::tempdir().expect("a writable folder");
    let file = "adapter_model.safetensors";
    std::fs::copy(source.join("order").join(file), folder.path().join(file))
        .expect("a writable folder");
    let again = folder.path().join("again.safetensors");
    fuzz(&here("corpus/configurations"), &seeds, &words, |bytes| {
        std::fs::write(folder.path().join("adapter_config.json"), bytes)
            .expect("a writable folder");
        let Ok(file) = AdapterFile::open(folder.path()) else {
            return;
        };
        for layout in [Layout::Diffusers, Layout::DiffusersLora, Layout::Kohya] {
            if file.save(&again, layout).is_ok() {
                let read = AdapterFile::open(&again).expect("written files can be read");
                assert_eq!(read.unet.len(), file.unet.len(), "{layout:?}");
            }
        }
    });
}
