//! Launchers: what each op becomes on the device.
//!
//! One file an op, named as the op's file in the core. A launcher reads the op and its tensors' shapes and types, and
//! appends launches to the [`Compiler`]. It may look at the ops behind its own and take some of them along; it
//! returns how many ops it took.

mod elementwise;

use crate::compile::Variant;
use crate::plan::Compiler;
use landmark_core::Result;
use landmark_core::ops::Op;

/// Launches the next op or ops; returns how many.
pub(crate) fn launch(c: &mut Compiler<'_>) -> Result<usize> {
    let op = c.ahead()[0].clone();
    match &op {
        Op::Gelu(op) => elementwise::gelu(op, c)?,
        _ => return Err(c.unsupported("the CUDA backend has no kernel for this op yet: use --device cpu")),
    }
    Ok(1)
}

/// Every kernel variant that the launchers may ask for: what is compiled without a GPU to see that it compiles and
/// spills no registers.
pub fn variants() -> Vec<Variant> {
    let mut all = vec![Variant::new("apply_writes.cu", crate::compile::Defines::new())];
    all.extend(elementwise::variants());
    all
}
