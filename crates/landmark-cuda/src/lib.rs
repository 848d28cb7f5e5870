//! The CUDA backend: recorded programs as CUDA graphs over kernels of our own and cuBLASLt's matrix products.
//!
//! Builds on any machine; libraries of NVIDIA's are looked for when [`Cuda::new`] is called, and what is missing is
//! an error that says which and where to get it. Kernels are the `.cu` files in `kernels/`, compiled by NVRTC for the
//! device at hand, specialised by `-D` ([`compile`]), and kept on disk ([`cache`]).
//!
//! A program is compiled once: each op's launcher (`ops/`) turns it into launches with all addresses fixed, and from
//! the second run on the launches are replayed as one CUDA graph (`plan`). So no launcher sees data, and whatever
//! changes from run to run (tokens, positions, counts) is read by kernels from small tensors.
//!
//! Results are bitwise repeatable: there are no atomics on floats, and partial sums are added in fixed orders.

#![deny(unsafe_code)]

mod arena;
mod attention;
mod backend;
pub mod cache;
pub mod compile;
mod cublaslt;
mod driver;
pub mod fused;
mod libraries;
mod modules;
mod nvrtc;
mod ops;
mod paging;
mod plan;
mod staging;

pub use arena::CudaArena;
pub use backend::Cuda;
pub use driver::{DeviceInfo, count as device_count, info as device_info, memory_in_use};
pub use ops::variants;
pub use plan::{CudaPlan, OpTime};
