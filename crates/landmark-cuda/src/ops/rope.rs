//! Rotary positions.

use crate::compile::{Defines, Variant};
use crate::plan::{Compiler, args};
use landmark_core::ops::{Op, Rope, RopeStyle};
use landmark_core::{Cols, DType, Result};

const FILE: &str = "rope.cu";
/// Rows of a block.
const ROWS: usize = 4;

fn defines(
    dtype: DType,
    frequency: DType,
    style: RopeStyle,
    head_dim: usize,
    vector: usize,
    inverse: bool,
) -> Defines {
    Defines::new()
        .dtype("X_T", dtype)
        .dtype("FREQUENCY_T", frequency)
        .flag("HALVES", style == RopeStyle::Halves)
        .set("HEAD_DIM", head_dim)
        .set("WIDE", vector)
        .set("ROWS", ROWS)
        .flag("INVERSE", inverse)
}

pub(super) fn variants() -> Vec<Variant> {
    let mut all = Vec::new();
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        for style in [RopeStyle::Pairs, RopeStyle::Halves] {
            for (head_dim, vector, inverse) in [(64, 4, false), (128, 4, true), (128, 8, false), (6, 1, true)]
            {
                let defines = defines(dtype, DType::F32, style, head_dim, vector, inverse);
                all.push(Variant::new(FILE, defines));
            }
        }
    }
    all
}

/// Pairs of a thread: as many as fill 16 bytes and divide everything that addresses are made of.
fn vector(op: &Rope, dtype: DType, strides: [usize; 2]) -> usize {
    let half = op.head_dim / 2;
    let fits = |v: usize| {
        // Elements that are loaded together, and what their addresses are multiples of.
        let (load, steps) = match op.style {
            RopeStyle::Pairs => (2 * v, [op.head_dim, op.head_dim]),
            RopeStyle::Halves => (v, [half, op.head_dim]),
        };
        half.is_multiple_of(v)
            && load * dtype.size() <= 16
            && [steps[0], steps[1], strides[0], strides[1], op.x.start, op.out.start]
                .iter()
                .all(|s| s.is_multiple_of(load))
    };
    [8, 4, 2, 1].into_iter().find(|&v| fits(v)).unwrap_or(1)
}

/// The same turn of the columns behind, as keys follow queries in a fused projection.
fn joined(op: &Rope, behind: Option<&Op>) -> Option<Rope> {
    let Some(Op::Rope(next)) = behind else { return None };
    let follows = |a: Cols, b: Cols| a.tensor == b.tensor && a.start + a.width == b.start;
    let is_alike = op.positions == next.positions
        && op.frequencies == next.frequencies
        && (op.style, op.head_dim, op.inverse) == (next.style, next.head_dim, next.inverse);
    let join = |a: Cols, b: Cols| Cols { width: a.width + b.width, ..a };
    // In the backward pass, keys come first.
    if is_alike && follows(op.x, next.x) && follows(op.out, next.out) {
        Some(Rope { x: join(op.x, next.x), out: join(op.out, next.out), ..op.clone() })
    } else if is_alike && follows(next.x, op.x) && follows(next.out, op.out) {
        Some(Rope { x: join(next.x, op.x), out: join(next.out, op.out), ..op.clone() })
    } else {
        None
    }
}

/// Returns how many ops it took.
pub(super) fn rope(op: &Rope, c: &mut Compiler<'_>) -> Result<usize> {
    let both = joined(op, c.ahead().get(1));
    let taken = 1 + usize::from(both.is_some());
    let op = both.as_ref().unwrap_or(op);
    let dtype = c.dtype(op.out.tensor);
    if c.dtype(op.x.tensor) != dtype {
        return Err(c.unsupported("x and out have different element types"));
    }
    let (rows, strides) = (c.rows(op.x.tensor), [c.cols(op.x.tensor), c.cols(op.out.tensor)]);
    let vector = vector(op, dtype, strides);
    let frequency = c.dtype(op.frequencies);
    let defines = defines(dtype, frequency, op.style, op.head_dim, vector, op.inverse);
    let kernel = c.kernel(FILE, "rope", defines)?;
    let shared = ROWS * op.head_dim / 2 * 8;
    let args = args![
        c.cols_pointer(op.x),
        c.cols_pointer(op.out),
        c.pointer(op.positions),
        c.pointer(op.frequencies),
        rows as i32,
        op.x.width as i32,
        strides[0] as i32,
        strides[1] as i32,
    ];
    c.launch_dependent(&kernel, [rows.div_ceil(ROWS) as u32, 1, 1], 256, shared as u32, args)?;
    Ok(taken)
}
