//! PyTorch's random number generators, without PyTorch.
//!
//! [`CpuGenerator`] is `torch.Generator("cpu")` and [`CudaGenerator`] is `torch.Generator("cuda")`; both implement
//! `torch.rand` and `torch.randn` in f32, as flat lists in the order of a contiguous tensor. The CPU generator matches
//! PyTorch on x86 bit for bit; the CUDA generator uses cuRAND's formulas, without a GPU's own approximations of logarithm
//! and sine.
//!
//! diffusers draws on the CPU if given a CPU generator, which its documentation recommends for reproducible images;
//! ComfyUI does so by default; AUTOMATIC1111's web UI draws on the GPU.
//!
//! ```
//! use swiftbrush_torch_noise::CpuGenerator;
//!
//! let mut generator = CpuGenerator::new(42);
//! let latents = generator.randn(4 * 64 * 64);
//! let next = generator.randn(4 * 64 * 64); // continues where the first draw ended
//! # assert_ne!(latents, next);
//! ```

mod cephes;
mod cpu;
mod cuda;

pub use cpu::CpuGenerator;
pub use cuda::CudaGenerator;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
