//! GELU, SwiGLU and constants.

use crate::kernel::Kernel;
use crate::plan::{Compiler, WORKGROUP, alignment};
use landmark_core::ops::{Fill, Gelu, SwiGlu};
use landmark_core::{Result, Tensor};

/// Finishes a kernel with a thread for every four elements.
fn launch(mut k: Kernel, c: &mut Compiler<'_>, numel: usize) -> Result<()> {
    k.constant("WORKGROUP", WORKGROUP);
    k.param("numel", numel);
    c.dispatch(k, numel.div_ceil(4 * WORKGROUP))
}

fn elements(c: &Compiler<'_>, tensor: Tensor) -> (usize, usize) {
    let numel = c.shape(tensor).numel();
    (numel, alignment(&[numel]))
}

pub(super) fn gelu(op: &Gelu, c: &mut Compiler<'_>) -> Result<()> {
    let (numel, alignment) = elements(c, op.out);
    let mut k = Kernel::new("gelu", include_str!("../shaders/gelu.wgsl"));
    k.include(include_str!("../shaders/activations.wgsl"));
    c.read(&mut k, "x", op.x, alignment)?;
    c.write(&mut k, "out", op.out, alignment)?;
    launch(k, c, numel)
}

pub(super) fn swiglu(op: &SwiGlu, c: &mut Compiler<'_>) -> Result<()> {
    let (numel, alignment) = elements(c, op.out);
    let mut k = Kernel::new("swiglu", include_str!("../shaders/swiglu.wgsl"));
    k.include(include_str!("../shaders/activations.wgsl"));
    c.read(&mut k, "gate", op.gate, alignment)?;
    c.read(&mut k, "up", op.up, alignment)?;
    c.write(&mut k, "out", op.out, alignment)?;
    launch(k, c, numel)
}

pub(super) fn fill(op: &Fill, c: &mut Compiler<'_>) -> Result<()> {
    let (numel, alignment) = elements(c, op.out);
    let mut k = Kernel::new("fill", include_str!("../shaders/fill.wgsl"));
    k.param("value", op.value);
    c.write(&mut k, "out", op.out, alignment)?;
    launch(k, c, numel)
}
