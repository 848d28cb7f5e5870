//! GELU and SwiGLU.

use crate::compile::{Defines, Variant};
use crate::plan::{Compiler, args};
use landmark_core::ops::{Gelu, GeluBackward, SwiGlu, SwiGluBackward};
use landmark_core::{DType, Result};

const FILE: &str = "elementwise.cu";
/// Threads of a block, and elements of a thread: as in the kernel file.
const THREADS: u32 = 256;
const VECTOR: usize = 8;

fn defines(x: DType, g: DType, d: DType, add: [bool; 2]) -> Defines {
    let types = Defines::new().dtype("X_T", x).dtype("G_T", g).dtype("D_T", d);
    types.flag("ADD", add[0]).flag("ADD2", add[1])
}

pub(super) fn variants() -> Vec<Variant> {
    let mut all = Vec::new();
    for t in [DType::F32, DType::Bf16, DType::F16] {
        all.extend([[false; 2], [true; 2]].map(|add| defines(t, t, t, add)));
        all.extend([(DType::F32, t), (t, DType::F32)].map(|(g, d)| defines(t, g, d, [true, false])));
    }
    all.into_iter().map(|defines| Variant::new(FILE, defines)).collect()
}

fn grid(numel: usize) -> [u32; 3] {
    [numel.div_ceil(VECTOR * THREADS as usize) as u32, 1, 1]
}

pub(super) fn gelu(op: &Gelu, c: &mut Compiler<'_>) -> Result<()> {
    let (x, out, numel) = (c.dtype(op.x), c.dtype(op.out), c.shape(op.x).numel());
    let kernel = c.kernel(FILE, "gelu", defines(x, out, x, [false; 2]))?;
    c.launch_dependent(
        &kernel,
        grid(numel),
        THREADS,
        0,
        args![c.pointer(op.x), c.pointer(op.out), numel as u64],
    )
}

pub(super) fn gelu_backward(op: &GeluBackward, c: &mut Compiler<'_>) -> Result<()> {
    let (x, dout, dx) = (c.dtype(op.x), c.dtype(op.dout), c.dtype(op.dx.tensor));
    let kernel = c.kernel(FILE, "gelu_backward", defines(x, dout, dx, [op.dx.add, false]))?;
    let numel = c.shape(op.x).numel();
    let args = args![c.pointer(op.x), c.pointer(op.dout), c.pointer(op.dx.tensor), numel as u64];
    c.launch_dependent(&kernel, grid(numel), THREADS, 0, args)
}

pub(super) fn swiglu(op: &SwiGlu, c: &mut Compiler<'_>) -> Result<()> {
    let (x, out, numel) = (c.dtype(op.gate), c.dtype(op.out), c.shape(op.gate).numel());
    if c.dtype(op.up) != x {
        return Err(c.unsupported("gate and up have different element types"));
    }
    let kernel = c.kernel(FILE, "swiglu", defines(x, out, x, [false; 2]))?;
    let args = args![c.pointer(op.gate), c.pointer(op.up), c.pointer(op.out), numel as u64];
    c.launch_dependent(&kernel, grid(numel), THREADS, 0, args)
}

pub(super) fn swiglu_backward(op: &SwiGluBackward, c: &mut Compiler<'_>) -> Result<()> {
    let (x, dout, numel) = (c.dtype(op.gate), c.dtype(op.dout), c.shape(op.gate).numel());
    let Some(written) = op.dgate.or(op.dup) else { return Ok(()) };
    let d = c.dtype(written.tensor);
    if c.dtype(op.up) != x || op.dup.is_some_and(|dup| c.dtype(dup.tensor) != d) {
        return Err(c.unsupported("gate and up have different element types"));
    }
    let add = [op.dgate.is_some_and(|o| o.add), op.dup.is_some_and(|o| o.add)];
    let kernel = c.kernel(FILE, "swiglu_backward", defines(x, dout, d, add))?;
    let (dgate, dup) =
        (c.pointer_or_null(op.dgate.map(|o| o.tensor)), c.pointer_or_null(op.dup.map(|o| o.tensor)));
    let args = args![c.pointer(op.gate), c.pointer(op.up), c.pointer(op.dout), dgate, dup, numel as u64];
    c.launch_dependent(&kernel, grid(numel), THREADS, 0, args)
}
