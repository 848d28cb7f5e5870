//! Random masks.

use crate::compile::{Defines, Variant};
use crate::plan::{Compiler, args};
use landmark_core::ops::{Bernoulli, Dropout};
use landmark_core::{DType, Result};

const FILE: &str = "dropout.cu";

fn defines(x: DType, out: DType, add: bool) -> Defines {
    Defines::new().dtype("X_T", x).dtype("OUT_T", out).flag("ADD", add)
}

pub(super) fn variants() -> Vec<Variant> {
    let floats = [DType::F32, DType::Bf16, DType::F16];
    let mut all = Vec::new();
    for x in floats {
        all.push(Variant::new(FILE, defines(x, x, false)));
        all.push(Variant::new(FILE, defines(x, DType::F32, true)));
    }
    all
}

/// Blocks of 256 threads, four elements a thread.
fn grid(numel: usize) -> [u32; 3] {
    [numel.div_ceil(1024) as u32, 1, 1]
}

pub(super) fn dropout(op: &Dropout, c: &mut Compiler<'_>) -> Result<()> {
    let (out, numel) = (op.out.tensor, c.shape(op.x).numel());
    let kernel = c.kernel(FILE, "dropout", defines(c.dtype(op.x), c.dtype(out), op.out.add))?;
    let scale = (1.0 / (1.0 - f64::from(op.p))) as f32;
    let args = args![c.pointer(op.x), c.pointer(out), c.pointer(op.seed), op.salt, op.p, scale, numel as u64];
    c.launch_dependent(&kernel, grid(numel), 256, 0, args)
}

pub(super) fn bernoulli(op: &Bernoulli, c: &mut Compiler<'_>) -> Result<()> {
    let numel = c.shape(op.out).numel();
    let kernel = c.kernel(FILE, "bernoulli", defines(DType::F32, DType::F32, false))?;
    let args = args![c.pointer(op.out), c.pointer(op.seed), op.salt, op.p, numel as u64];
    c.launch_dependent(&kernel, grid(numel), 256, 0, args)
}
