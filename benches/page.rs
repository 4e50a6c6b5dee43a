//! Times the page's painter natively, on the calling thread: `page [COUNT]`. Prints the median and the range of the times to generate
//! an image, from the prompt to the pixels; `examples/web/tests/bench.mjs` is the same in WebAssembly.
//!
//! `examples/web/tests/bench` runs both in turn, with vectors of 128 bits.
#![allow(clippy::print_stdout, reason = "a benchmark talks to its user")]

use std::error::Error;
use std::num::NonZeroU64;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

mod common;
use examples_web::painter::{Limit, Painter, Painting, Place, Wish};
use swiftbrush_checkpoint::MemoryFiles;

/// The files of the miniature that are needed to generate.
const FILES: [&str; 11] = [
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];

fn main() -> Result<(), Box<dyn Error>> {
    let count = std::env::args().nth(1).unwrap_or("50".to_owned());
    let count = count.parse::<NonZeroU64>();
    let count = count.map_err(|error| format!("COUNT: {error}"))?.get();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/miniature/model");
    let mut files = Vec::new();
    for path in FILES {
        files.push((format!("model/{path}"), std::fs::read(folder.join(path))?));
    }
    let place = Place {
        device: common::device(),
        name: "flex",
        limit: Limit::Total(u64::MAX),
    };
    let painter = Painter::open("model", Arc::new(MemoryFiles::from_iter(files)), place)?;
    let mut times = Vec::new();
    for seed in 0..=count {
        let wish = Wish {
            prompt: "a red circle above a green star on a white background".to_owned(),
            seed,
            ..Wish::default()
        };
        let began = Instant::now();
        paint(&painter, &wish)?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let first = times.remove(0);
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((share * count as f64) as usize).min(times.len() - 1)];
    println!(
        "image: first {first:.0} ms, then median {:.1} ms, from {:.1} to {:.1} ms, {count} images",
        at(0.5),
        at(0.0),
        at(1.0)
    );
    common::report();
    Ok(())
}

/// The CPU has to wait for nothing.
fn paint(painter: &Painter, wish: &Wish) -> Result<Painting, Box<dyn Error>> {
    match pin!(painter.paint(wish)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(painting) => Ok(painting?),
        Poll::Pending => Err("the device did not answer at once".into()),
    }
}
