//! Any `torch.save` file is either read or an error, and never causes a panic or an unbounded allocation.
//!
//! `SWIFTBRUSH_FUZZ_SECONDS=600 cargo test --release --workspace --test fuzz` runs longer. Failing inputs are kept
//! in `corpus`.

use std::path::{Path, PathBuf};

use swiftbrush_checkpoint::Weights;
use swiftbrush_testing::fuzz;

fn here(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(file)
}

#[test]
fn files_of_torch_save() {
    let names = [
        "offsets",
        "lightning",
        "lightning-legacy",
        "lightning-protocol4",
        "strided-legacy",
        "parameters-legacy",
        "module",
        "float8",
    ];
    let seeds: Vec<_> = names
        .iter()
        .map(|name| std::fs::read(here(&format!("golden/torch/{name}.ckpt"))).expect("it exists"))
        .collect();
    let words = [
        "ctorch._utils\n_rebuild_tensor_v2\n",
        "ctorch\nFloatStorage\n",
        "ctorch\nUntypedStorage\n",
        "ccollections\nOrderedDict\n",
        "state_dict",
        "_parameters",
        "(((((((",
        "}}}}",
        "sssss",
        "2222",
        "RRRR",
        "bbbb",
        "Q",
        "u.",
        "data.pkl",
        "PK\u{3}\u{4}",
    ];
    let folder = tempfile::tempdir().expect("a writable folder");
    let path = folder.path().join("model.ckpt");
    fuzz(&here("corpus/torch"), &seeds, &words, |bytes| {
        std::fs::write(&path, bytes).expect("a writable folder");
        if let Ok(weights) = Weights::open(&path) {
            for name in weights.names() {
                let _ = weights.read(name);
            }
        }
    });
}
