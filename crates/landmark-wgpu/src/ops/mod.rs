//! Launchers: what each op becomes on the device.
//!
//! One file an op, named as the op's file in the core. A launcher reads the op and its tensors' shapes and types, and
//! appends dispatches to the [`Compiler`].

mod elementwise;
mod matmul;

use crate::plan::Compiler;
use landmark_core::Result;
use landmark_core::ops::Op;

/// Launches an op.
pub(crate) fn launch(c: &mut Compiler<'_>) -> Result<()> {
    match c.op() {
        Op::Fill(op) => elementwise::fill(op, c),
        Op::Gelu(op) => elementwise::gelu(op, c),
        Op::Matmul(op) => matmul::matmul(op, c),
        Op::SwiGlu(op) => elementwise::swiglu(op, c),
        _ => Err(c.unsupported(
            "the wgpu backend runs models and does not train them: train with --device cuda or --device cpu",
        )),
    }
}
