//! Rows moved between tensors, constants, and conversions between element types.

use crate::compile::{Defines, Variant};
use crate::plan::{Compiler, args};
use landmark_core::ops::{CopyRows, Fill};
use landmark_core::{Cols, DType, Result};

const FILE: &str = "copy.cu";
const THREADS: u32 = 256;

fn defines(from: DType, to: DType, add: bool, vector: usize) -> Defines {
    Defines::new().dtype("FROM_T", from).dtype("TO_T", to).flag("ADD", add).set("WIDE", vector)
}

pub(super) fn variants() -> Vec<Variant> {
    let floats = [DType::F32, DType::Bf16, DType::F16];
    let mut all = Vec::new();
    for half in floats {
        for (from, to) in [(half, half), (DType::F32, half), (half, DType::F32)] {
            for (vector, add) in [(1, true), (8, false), (8, true)] {
                all.push(Variant::new(FILE, defines(from, to, add, vector)));
            }
        }
    }
    all
}

pub(super) fn copy_rows(op: &CopyRows, c: &mut Compiler<'_>) -> Result<()> {
    let (from, to) = (c.dtype(op.from.tensor), c.dtype(op.to.tensor));
    let extents = |tensor| (c.shape(tensor).dims()[1], c.cols(tensor));
    let ((from_rows, from_cols), (to_rows, to_cols)) = (extents(op.from.tensor), extents(op.to.tensor));
    let (batch, width) = (c.shape(op.from.tensor).dims()[0], op.from.width);
    // Batches that follow one another are rows.
    let is_flat = op.rows == from_rows && op.rows == to_rows;
    let (batch, rows) = if is_flat { (1, batch * op.rows) } else { (batch, op.rows) };
    let starts = [op.from.start, op.to.start, from_cols, to_cols, width];
    let vector = [8, 4, 2, 1].into_iter().find(|v| starts.iter().all(|s| s.is_multiple_of(*v))).unwrap_or(1);
    let kernel = c.kernel(FILE, "copy_rows", defines(from, to, op.add, vector))?;
    let blocks = (rows * width / vector).div_ceil(THREADS as usize).min(1 << 20);
    let first = |cols: Cols, row: usize, stride: usize| {
        c.cols_pointer(cols) + (row * stride * c.dtype(cols.tensor).size()) as u64
    };
    let args = args![
        first(op.from, op.from_row, from_cols),
        first(op.to, op.to_row, to_cols),
        (from_rows * from_cols) as u64,
        (to_rows * to_cols) as u64,
        from_cols as i32,
        to_cols as i32,
        width as i32,
        rows as i32,
    ];
    c.launch_dependent(&kernel, [blocks as u32, batch as u32, 1], THREADS, 0, args)
}

fn grid(numel: usize) -> [u32; 3] {
    [numel.div_ceil(8 * THREADS as usize) as u32, 1, 1]
}

pub(super) fn fill(op: &Fill, c: &mut Compiler<'_>) -> Result<()> {
    let (dtype, numel) = (c.dtype(op.out), c.shape(op.out).numel());
    let kernel = c.kernel(FILE, "fill", defines(dtype, dtype, false, 8))?;
    c.launch_dependent(&kernel, grid(numel), THREADS, 0, args![c.pointer(op.out), numel as u64, op.value])
}

/// Appends a conversion of `numel` elements.
pub(super) fn convert(
    c: &mut Compiler<'_>,
    from: u64,
    from_type: DType,
    to: u64,
    to_type: DType,
    numel: usize,
) -> Result<()> {
    let kernel = c.kernel(FILE, "convert", defines(from_type, to_type, false, 8))?;
    c.launch_dependent(&kernel, grid(numel), THREADS, 0, args![from, to, numel as u64])
}
