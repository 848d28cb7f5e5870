//! GELU and SwiGLU.

use crate::compile::{Defines, Variant};
use crate::plan::{Compiler, args};
use landmark_core::ops::Gelu;
use landmark_core::{DType, Result};

const FILE: &str = "elementwise.cu";
/// Threads of a block, and elements of a thread: as in the kernel file.
const THREADS: u32 = 256;
const VECTOR: usize = 8;

fn defines(x: DType, result: DType, add: bool) -> Defines {
    Defines::new().dtype("X_T", x).dtype("G_T", result).flag("ADD", add)
}

pub(super) fn variants() -> Vec<Variant> {
    let floats = [DType::F32, DType::Bf16, DType::F16];
    let all = floats.iter().flat_map(|&t| [false, true].map(|add| defines(t, t, add)));
    all.map(|defines| Variant::new(FILE, defines)).collect()
}

fn grid(numel: usize) -> [u32; 3] {
    [numel.div_ceil(VECTOR * THREADS as usize) as u32, 1, 1]
}

pub(super) fn gelu(op: &Gelu, c: &mut Compiler<'_>) -> Result<()> {
    let kernel = c.kernel(FILE, "gelu", defines(c.dtype(op.x), c.dtype(op.out), false))?;
    let numel = c.shape(op.x).numel();
    c.launch_dependent(
        &kernel,
        grid(numel),
        THREADS,
        0,
        args![c.pointer(op.x), c.pointer(op.out), numel as u64],
    )
}
