//! Optimisers, and the clipping of gradients.
//!
//! `hyper` and `scale` are read on the device as f32, which is how models lay them out.

use crate::compile::{Defines, Variant};
use crate::plan::{Compiler, args};
use landmark_core::ops::{Adafactor, AdamW, ClipScale, Sgd, SquaredNorm};
use landmark_core::{DType, Result, Tensor};

const FILE: &str = "optimizer.cu";
const THREADS: usize = 256;
/// Partial sums of a sum of squares, at most: enough blocks to fill any device.
const PIECES: usize = 1024;

/// Element types: the parameter, its gradient, its states, its copy.
fn defines(param: DType, grad: DType, m: DType, v: DType, copy: Option<DType>) -> Defines {
    Defines::new()
        .dtype("P_T", param)
        .dtype("GRAD_T", grad)
        .dtype("M_T", m)
        .dtype("V_T", v)
        .dtype("COPY_T", copy.unwrap_or(DType::Bf16))
        .flag("COPY", copy.is_some())
}

pub(super) fn variants() -> Vec<Variant> {
    const F32: DType = DType::F32;
    let kinds = [
        defines(F32, F32, F32, F32, None),
        defines(F32, F32, F32, F32, Some(DType::Bf16)),
        defines(F32, F32, F32, F32, Some(DType::F16)),
        defines(DType::Bf16, DType::Bf16, F32, F32, None),
        defines(DType::F16, DType::F16, F32, F32, None),
    ];
    kinds.into_iter().map(|defines| Variant::new(FILE, defines)).collect()
}

fn hyper(c: &Compiler<'_>, hyper: Tensor, scale: Option<Tensor>) -> Result<(u64, u64)> {
    if [Some(hyper), scale].into_iter().flatten().any(|t| c.dtype(t) != DType::F32) {
        return Err(c.unsupported("learning rates and factors are f32"));
    }
    Ok((c.pointer(hyper), c.pointer_or_null(scale)))
}

/// Blocks for `numel` elements, `each` a thread.
fn grid(numel: usize, each: usize) -> [u32; 3] {
    [numel.div_ceil(THREADS * each) as u32, 1, 1]
}

pub(super) fn adamw(op: &AdamW, c: &mut Compiler<'_>) -> Result<()> {
    let types = [op.param, op.grad, op.m, op.v].map(|t| c.dtype(t));
    let defines = defines(types[0], types[1], types[2], types[3], op.copy.map(|t| c.dtype(t)));
    let kernel = c.kernel(FILE, "adamw", defines)?;
    let (hyper, scale) = hyper(c, op.hyper, op.scale)?;
    let numel = c.shape(op.param).numel();
    let args = args![
        c.pointer(op.param),
        c.pointer_or_null(op.copy),
        c.pointer(op.grad),
        c.pointer(op.m),
        c.pointer(op.v),
        hyper,
        scale,
        op.beta1,
        op.beta2,
        op.eps,
        op.weight_decay,
        numel as u64,
    ];
    c.launch_dependent(&kernel, grid(numel, 4), THREADS as u32, 0, args)
}

pub(super) fn sgd(op: &Sgd, c: &mut Compiler<'_>) -> Result<()> {
    let types = [op.param, op.grad, op.buffer].map(|t| c.dtype(t));
    let defines = defines(types[0], types[1], types[2], types[2], op.copy.map(|t| c.dtype(t)));
    let kernel = c.kernel(FILE, "sgd", defines)?;
    let (hyper, scale) = hyper(c, op.hyper, op.scale)?;
    let numel = c.shape(op.param).numel();
    let args = args![
        c.pointer(op.param),
        c.pointer_or_null(op.copy),
        c.pointer(op.grad),
        c.pointer(op.buffer),
        hyper,
        scale,
        op.momentum,
        op.weight_decay,
        numel as u64,
    ];
    c.launch_dependent(&kernel, grid(numel, 4), THREADS as u32, 0, args)
}

pub(super) fn adafactor(op: &Adafactor, c: &mut Compiler<'_>) -> Result<()> {
    let types = [op.param, op.grad, op.rows, op.columns.unwrap_or(op.rows)].map(|t| c.dtype(t));
    let defines = defines(types[0], types[1], types[2], types[3], op.copy.map(|t| c.dtype(t)));
    let (hyper, scale) = hyper(c, op.hyper, op.scale)?;
    let (numel, rows, cols) = (c.shape(op.param).numel(), c.rows(op.param), c.cols(op.param));
    let (param, grad) = (c.pointer(op.param), c.pointer(op.grad));
    let (row_moments, columns) = (c.pointer(op.rows), c.pointer_or_null(op.columns));
    let sums = c.workspace(8);
    let threads = THREADS as u32;
    if op.columns.is_some() {
        let kernel = c.kernel(FILE, "adafactor_rows", defines.clone())?;
        let args = args![grad, row_moments, hyper, scale, cols as i32];
        c.launch_dependent(&kernel, [rows as u32, 1, 1], threads, 0, args)?;
        let pieces = rows.div_ceil(32).clamp(1, 128);
        let of_piece = rows.div_ceil(pieces);
        let pieces = rows.div_ceil(of_piece);
        let partial = c.workspace((pieces * cols * 4) as u64);
        let kernel = c.kernel(FILE, "adafactor_column_squares", defines.clone())?;
        let args = args![grad, partial, scale, rows as i32, cols as i32, of_piece as i32];
        c.launch_dependent(&kernel, [grid(cols, 1)[0], pieces as u32, 1], threads, 0, args)?;
        let kernel = c.kernel(FILE, "adafactor_columns", defines.clone())?;
        let args = args![partial, pieces as i32, columns, hyper, rows as i32, cols as i32];
        c.launch_dependent(&kernel, grid(cols, 1), threads, 0, args)?;
        let kernel = c.kernel(FILE, "adafactor_mean", defines.clone())?;
        c.launch_dependent(&kernel, [1; 3], threads, 0, args![row_moments, sums, rows as i32])?;
    } else {
        let kernel = c.kernel(FILE, "adafactor_elements", defines.clone())?;
        let args = args![grad, row_moments, hyper, scale, numel as u64];
        c.launch_dependent(&kernel, grid(numel, 1), threads, 0, args)?;
    }
    let pieces = numel.div_ceil(THREADS).min(PIECES);
    let partial = c.workspace((2 * pieces * 4) as u64);
    let kernel = c.kernel(FILE, "adafactor_sizes", defines.clone())?;
    let args = args![param, grad, row_moments, columns, sums, scale, partial, numel as u64, cols as i32];
    c.launch_dependent(&kernel, [pieces as u32, 1, 1], threads, 0, args)?;
    let kernel = c.kernel(FILE, "adafactor_step", defines.clone())?;
    c.launch_dependent(
        &kernel,
        [1; 3],
        threads,
        0,
        args![partial, pieces as i32, hyper, sums, numel as u64],
    )?;
    let kernel = c.kernel(FILE, "adafactor_update", defines)?;
    let args = args![
        param,
        c.pointer_or_null(op.copy),
        grad,
        row_moments,
        columns,
        sums,
        hyper,
        scale,
        op.weight_decay,
        numel as u64,
        cols as i32,
    ];
    c.launch_dependent(&kernel, grid(numel, 1), threads, 0, args)
}

/// Types of an input and of a single result.
fn of_one(x: DType, out: DType) -> Defines {
    defines(x, DType::F32, out, DType::F32, None)
}

pub(super) fn squared_norm(op: &SquaredNorm, c: &mut Compiler<'_>) -> Result<()> {
    let defines = of_one(c.dtype(op.x), c.dtype(op.out.tensor));
    let partial = c.kernel(FILE, "partial_squares", defines.clone())?;
    let total = c.kernel(FILE, "total_squares", defines)?;
    let numel = c.shape(op.x).numel();
    let pieces = numel.div_ceil(THREADS * 4).clamp(1, PIECES);
    let between = c.workspace((pieces * 4) as u64);
    let threads = THREADS as u32;
    let args = args![c.pointer(op.x), between, numel as u64];
    c.launch_dependent(&partial, [pieces as u32, 1, 1], threads, 0, args)?;
    let args = args![between, pieces as i32, c.pointer(op.out.tensor), i32::from(op.out.add)];
    c.launch_dependent(&total, [1; 3], threads, 0, args)
}

pub(super) fn clip_scale(op: &ClipScale, c: &mut Compiler<'_>) -> Result<()> {
    let defines = of_one(c.dtype(op.squared_norm), c.dtype(op.out));
    let kernel = c.kernel(FILE, "clip_scale", defines)?;
    let args = args![c.pointer(op.squared_norm), c.pointer(op.out), op.max_norm];
    c.launch_dependent(&kernel, [1; 3], 1, 0, args)
}
