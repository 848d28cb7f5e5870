//! Tensors, ops, recorded programs, and the CPU backend.
//!
//! Model code *records* a [`Program`]: a straight line of typed, fused [`ops`] over named tensors of
//! static shape. A [`Backend`] *compiles* a program once and *runs* it many times; nothing is allocated
//! while it runs. Whatever can be done once for every backend is done here, over the operands that each
//! op declares: shape checks while recording, the reverse walk that records gradients ([`reverse`]), the
//! memory plan ([`plan`]), counts of operations and bytes ([`count`]), and the lockstep comparison of two
//! backends ([`lockstep`]).
//!
//! The crate knows no GPU, no files and no model; it builds for `wasm32-unknown-unknown`.

#![deny(unsafe_code)]

pub mod backend;
pub mod count;
pub mod cpu;
mod error;
pub mod lockstep;
pub mod ops;
pub mod paging;
pub mod plan;
pub mod program;
pub mod quantize;
pub mod random;
pub mod reverse;
pub mod tensor;
#[cfg(feature = "test-support")]
pub mod testing;

pub use backend::{Answer, Backend, Elements};
pub use cpu::Cpu;
pub use error::{Error, Result};
pub use paging::{PageId, PageStore, Paging};
pub use program::{Layout, Program, Recorder};
pub use tensor::{Cols, DType, Out, Shape, Tensor};
