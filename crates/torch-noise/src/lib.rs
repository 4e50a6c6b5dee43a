//! The numbers that PyTorch draws for a seed, without PyTorch.
//!
//! [`CpuGenerator`] stands for `torch.Generator("cpu")`, [`CudaGenerator`] for `torch.Generator("cuda")`;
//! both give `torch.rand` and `torch.randn` in f32, as flat lists in the order of a contiguous tensor.
//! On the CPU every bit is PyTorch's on x86; for CUDA cuRAND's formulas are followed, but for the GPU's own
//! approximations of logarithm and sine.
//!
//! Diffusers draws on the CPU if its generator is there, which its documentation recommends for
//! pictures that can be repeated; ComfyUI does by default; AUTOMATIC1111's interface draws on the GPU.
//!
//! ```
//! use swiftbrush_torch_noise::CpuGenerator;
//!
//! let mut generator = CpuGenerator::new(42);
//! let latents = generator.randn(4 * 64 * 64);
//! let next = generator.randn(4 * 64 * 64); // goes on where the first ended
//! # assert_ne!(latents, next);
//! ```

mod cephes;
mod cpu;
mod cuda;

pub use cpu::CpuGenerator;
pub use cuda::CudaGenerator;
