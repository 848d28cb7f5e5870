//! The wgpu backend: recorded programs on any GPU that speaks Vulkan, Metal or DX12, and in a browser with WebGPU.
//!
//! One shader an op, under the op's name (`shaders/`), written in WGSL against accessors that are generated for the
//! element types at hand (`kernel.rs`); one launcher an op (`ops/`) that turns it into dispatches. A program becomes
//! one compute pass whose pipelines and bind groups are made when it is compiled (`plan.rs`); running it encodes and
//! submits, and nothing else.
//!
//! Everything works on WebGPU's default limits without optional features: eight storage buffers a stage, 16 KiB of
//! workgroup memory, 256 invocations, 65,535 workgroups a dimension, bindings of 128 MiB (weights that are larger
//! are split by rows). Half types are stored packed in 32-bit words and unpacked by arithmetic, so they need no
//! feature either.
//!
//! On an adapter that computes in software, kernels use no workgroup memory and no barriers, which are dear there: their
//! threads work alone (`*_alone.wgsl`, `ops/retrieval_alone.rs`).
//!
//! Nothing waits but [`Backend::read`](landmark_core::Backend::read). In a browser nothing could.

#![deny(unsafe_code)]

mod adapter;
mod arena;
mod backend;
mod device;
mod kernel;
mod matrix_units;
mod ops;
mod plan;
mod profile;
mod readback;

pub use adapter::{AdapterInfo, Choice, OpenError, Options, adapters, find};
pub use arena::WgpuArena;
pub use backend::Wgpu;
pub use plan::WgpuPlan;
