//! CUDA kernels on a CPU.
//!
//! A tool for tests: it runs the PTX that NVRTC makes of a kernel, and stands in for NVIDIA's driver and cuBLASLt, so
//! that the whole CUDA backend (launchers, plans, graphs, kernels) runs on a machine that has no GPU. It is strict
//! where a GPU is not: an access outside of an allocation, a read of shared memory that nobody wrote, a barrier that
//! some threads never reach, a result that is used before it was waited for, are errors that name the kernel, the
//! line of PTX, the block and the thread.
//!
//! Made as a shared library; `libcuda.so` and `libcublasLt.so` are symbolic links to it (not `libcuda.so.1`, which NVRTC
//! opens by itself to ask for functions that are not public).
//!
//! - [`ptx`] reads the text.
//! - [`machine`] runs it.
//! - [`driver`], [`lt`] and [`tensor_map`] are what a program calls; [`memory`] is what it allocates, [`function`]
//!   what it loads and launches, [`stream`] where that happens, [`status`] what it is told.

pub mod driver;
pub mod function;
mod gemm_door;
pub mod lt;
pub mod machine;
pub mod memory;
pub mod product;
pub mod ptx;
pub mod status;
pub mod stream;
pub mod tensor_map;

pub use machine::{Launch, Memory, run};
pub use ptx::{Kernel, Module, Parameter};
