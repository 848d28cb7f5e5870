//! Matrix products and column sums.
//!
//! Products with a handful of rows read every weight once and are a kernel of ours (`matvec.rs`); all others are
//! cuBLASLt's. A bias is added by its epilogue, which wants it in the result's type: it is converted on the way.

use super::matvec;
use crate::compile::{Defines, Variant};
use crate::cublaslt::{Ask, Scale, WORKSPACE};
use crate::plan::{Compiler, args};
use landmark_core::ops::{Matmul, SumRows};
use landmark_core::{DType, Result, Tensor};

const FLOATS: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

pub(super) fn variants() -> Vec<Variant> {
    let sums = FLOATS.iter().flat_map(|&x| FLOATS.map(|out| (x, out)));
    let sums = sums.filter(|(x, out)| x == out || *out == DType::F32);
    let sums = sums.flat_map(|(x, out)| [false, true].map(|add| sum_defines(x, out, add)));
    sums.map(|defines| Variant::new("sum_rows.cu", defines)).collect()
}

/// `tensor` in `dtype`: itself, or a converted copy in the workspace.
pub(super) fn converted(c: &mut Compiler<'_>, tensor: Tensor, dtype: DType) -> Result<u64> {
    let numel = c.shape(tensor).numel();
    if c.dtype(tensor) == dtype {
        return Ok(c.pointer(tensor));
    }
    let to = c.workspace((numel * dtype.size()) as u64);
    super::copy::convert(c, c.pointer(tensor), c.dtype(tensor), to, dtype, numel)?;
    Ok(to)
}

pub(super) fn matmul(op: &Matmul, c: &mut Compiler<'_>) -> Result<()> {
    if matvec::try_launch(op, c)? {
        return Ok(());
    }
    let (m, n, k) = op.extents(c.program());
    let result = c.dtype(op.out.tensor);
    // Factors of two types meet in the narrower one: what is wide there is a gradient or an activation.
    let factors = match (c.dtype(op.a), c.dtype(op.b)) {
        (DType::F32, other) | (other, DType::F32) if result != DType::F32 || other == DType::F32 => other,
        (DType::F32, _) | (_, DType::F32) => DType::F32,
        (a, _) => a,
    };
    let (a, b) = (converted(c, op.a, factors)?, converted(c, op.b, factors)?);
    let bias = op.bias.map_or(Ok(0), |bias| converted(c, bias, result))?;
    let workspace = c.workspace(WORKSPACE);
    c.product(Ask {
        m,
        n,
        k,
        factors,
        result,
        transpose_a: op.transpose_a,
        transpose_b: op.transpose_b,
        strides: [c.cols(op.a), c.cols(op.b), n],
        a,
        b,
        out: c.pointer(op.out.tensor),
        bias,
        scale: Scale::Host(op.scale),
        add: op.out.add,
        workspace,
    })
}

pub(super) fn sum_defines(x: DType, out: DType, add: bool) -> Defines {
    Defines::new().dtype("X_T", x).dtype("OUT_T", out).flag("ADD", add)
}

/// Rows that a block of `sum_rows` adds up, at least.
const ROWS: usize = 32;

pub(super) fn sum_rows(op: &SumRows, c: &mut Compiler<'_>) -> Result<()> {
    let (rows, cols) = (c.rows(op.x), c.cols(op.x));
    let defines = sum_defines(c.dtype(op.x), c.dtype(op.out.tensor), op.out.add);
    let partial = c.kernel("sum_rows.cu", "partial_sums", defines.clone())?;
    let total = c.kernel("sum_rows.cu", "total", defines)?;
    let pieces = rows.div_ceil(ROWS).clamp(1, 128);
    let rows_of_piece = rows.div_ceil(pieces);
    let pieces = rows.div_ceil(rows_of_piece);
    let between = c.workspace((pieces * cols * 4) as u64);
    let grid = [cols.div_ceil(256) as u32, pieces as u32, 1];
    c.launch_dependent(
        &partial,
        grid,
        256,
        0,
        args![c.pointer(op.x), between, rows as i32, cols as i32, rows_of_piece as i32],
    )?;
    column_total(c, &total, between, pieces, c.pointer(op.out.tensor), cols)
}

/// Adds up rows of partial sums: function `total` of `sum_rows.cu`.
pub(super) fn column_total(
    c: &mut Compiler<'_>,
    total: &crate::plan::Kernel,
    partial: u64,
    pieces: usize,
    out: u64,
    cols: usize,
) -> Result<()> {
    let grid = [cols.div_ceil(32) as u32, 1, 1];
    c.launch_dependent(total, grid, 256, 0, args![partial, out, pieces as i32, cols as i32])
}
