//! LayerNorm and RMSNorm.

use crate::compile::{Defines, Variant};
use crate::plan::{Compiler, args};
use landmark_core::ops::{AddNorm, CopyRows, Norm, NormBackward, NormKind, Op};
use landmark_core::{DType, Out, Result, Tensor};

const FILE: &str = "norm.cu";

/// Threads of a row, and elements that a thread takes at a time. Eight to thirty-two elements for each thread.
fn shape(cols: usize) -> (usize, usize) {
    let vector = if cols.is_multiple_of(8) {
        8
    } else if cols.is_multiple_of(4) {
        4
    } else {
        1
    };
    let threads = (cols / 8).next_power_of_two().clamp(32, 512);
    (threads, vector)
}

/// Element types of the operands, as `norm.cu` names them.
#[derive(Clone, Copy)]
struct Types {
    x: DType,
    delta: DType,
    out: DType,
    weight: DType,
    dx: DType,
    copy: Option<DType>,
}

impl Types {
    /// The row in `x`, everything else but the parameters in `out`.
    fn of(x: DType, out: DType, weight: DType) -> Self {
        Types { x, delta: out, out, weight, dx: x, copy: None }
    }
}

fn defines(kind: NormKind, cols: usize, bias: bool, types: Types, add: bool) -> Defines {
    let (threads, vector) = shape(cols);
    Defines::new()
        .set("COLS", cols)
        .set("ROW_THREADS", threads)
        .set("WIDE", vector)
        .flag("RMS", matches!(kind, NormKind::Rms { .. }))
        .flag("BIAS", bias)
        .dtype("X_T", types.x)
        .dtype("D_T", types.delta)
        .dtype("O_T", types.out)
        .dtype("W_T", types.weight)
        .dtype("R_T", types.dx)
        .dtype("HALF_T", types.copy.unwrap_or(DType::Bf16))
        .flag("COPY", types.copy.is_some())
        .flag("ADD", add)
}

pub(super) fn variants() -> Vec<Variant> {
    let mut all = Vec::new();
    let (layer, rms) = (NormKind::Layer { eps: 0.0 }, NormKind::Rms { eps: 0.0 });
    for (kind, bias, cols) in
        [(layer, true, 37), (layer, true, 1024), (layer, false, 768), (rms, false, 4096), (rms, false, 8192)]
    {
        for half in [DType::F32, DType::Bf16, DType::F16] {
            let plain = Types::of(DType::F32, half, DType::F32);
            let copied = Types { copy: Some(half), ..plain };
            all.push(Variant::new(FILE, defines(kind, cols, bias, plain, false)));
            all.push(Variant::new(FILE, defines(kind, cols, bias, copied, true)));
        }
    }
    all
}

fn eps(kind: NormKind) -> f32 {
    match kind {
        NormKind::Layer { eps } | NormKind::Rms { eps } => eps,
    }
}

fn same_type(c: &Compiler<'_>, weight: Tensor, bias: Option<Tensor>) -> Result<()> {
    match bias {
        Some(bias) if c.dtype(bias) != c.dtype(weight) => {
            Err(c.unsupported("scale and shift have different element types"))
        }
        _ => Ok(()),
    }
}

pub(super) fn norm(op: &Norm, c: &mut Compiler<'_>) -> Result<()> {
    same_type(c, op.weight, op.bias)?;
    let (rows, cols) = (c.rows(op.x), c.cols(op.x));
    let types = Types::of(c.dtype(op.x), c.dtype(op.out), c.dtype(op.weight));
    let kernel = c.kernel(FILE, "norm_alone", defines(op.kind, cols, op.bias.is_some(), types, false))?;
    let args = args![
        c.pointer(op.x),
        c.pointer(op.weight),
        c.pointer_or_null(op.bias),
        c.pointer(op.out),
        eps(op.kind)
    ];
    c.launch_dependent(&kernel, [rows as u32, 1, 1], shape(cols).0 as u32, 0, args)
}

pub(super) fn add_norm(op: &AddNorm, c: &mut Compiler<'_>) -> Result<()> {
    same_type(c, op.weight, op.bias)?;
    if c.dtype(op.sum) != c.dtype(op.x) {
        return Err(c.unsupported("the residual stream changes its element type"));
    }
    let (rows, cols) = (c.rows(op.x), c.cols(op.x));
    let types =
        Types { delta: c.dtype(op.delta), ..Types::of(c.dtype(op.x), c.dtype(op.out), c.dtype(op.weight)) };
    let kernel = c.kernel(FILE, "add_norm", defines(op.kind, cols, op.bias.is_some(), types, false))?;
    let args = args![
        c.pointer(op.x),
        c.pointer(op.delta),
        c.pointer(op.weight),
        c.pointer_or_null(op.bias),
        c.pointer(op.sum),
        c.pointer(op.out),
        eps(op.kind)
    ];
    c.launch_dependent(&kernel, [rows as u32, 1, 1], shape(cols).0 as u32, 0, args)
}

/// Whether the op behind takes the whole gradient of the input in another type: it is then written on the way.
///
/// It may lie where `dout` lies, which is of the same type, if of any: each thread reads its elements first.
fn copy_behind(c: &Compiler<'_>, x: Tensor, dx: Option<Out>) -> Option<Tensor> {
    let (Some(dx), Some(Op::CopyRows(copy))) = (dx, c.ahead().get(1)) else { return None };
    let CopyRows { from, from_row, to, add, to_row, .. } = *copy;
    let is_whole = from.tensor == dx.tensor
        && c.shape(from.tensor) == c.shape(to.tensor)
        && (from.start, to.start, from_row, to_row) == (0, 0, 0, 0)
        && from.width == c.cols(from.tensor)
        && copy.rows == c.shape(from.tensor).dims()[1]
        && !c.may_overlap(to.tensor, x);
    (is_whole && !add).then_some(to.tensor)
}

/// Returns how many ops it took.
pub(super) fn norm_backward(op: &NormBackward, c: &mut Compiler<'_>) -> Result<usize> {
    let (rows, cols) = (c.rows(op.x), c.cols(op.x));
    let copy = copy_behind(c, op.x, op.dx);
    let x = c.dtype(op.x);
    let types = Types {
        dx: op.dx.map_or(x, |dx| c.dtype(dx.tensor)),
        copy: copy.map(|t| c.dtype(t)),
        ..Types::of(x, c.dtype(op.dout), c.dtype(op.weight))
    };
    let add = op.dx.is_some_and(|dx| dx.add);
    let kernel = c.kernel(FILE, "norm_backward", defines(op.kind, cols, op.dbias.is_some(), types, add))?;
    let threads = shape(cols).0;
    let pieces = (c.multiprocessors() as usize * (512 / threads).clamp(1, 4)).min(rows);
    let mut partial = |out: Option<Out>| out.map_or(0, |_| c.workspace((pieces * cols * 4) as u64));
    let (dweight, dbias) = (partial(op.dweight), partial(op.dbias));
    let args = args![
        c.pointer(op.x),
        c.pointer(op.weight),
        c.pointer(op.dout),
        c.pointer_or_null(op.dx.map(|o| o.tensor)),
        c.pointer_or_null(copy),
        dweight,
        dbias,
        rows as i32,
        eps(op.kind),
    ];
    c.launch_dependent(&kernel, [pieces as u32, 1, 1], threads as u32, 0, args)?;
    for (out, partial) in [(op.dweight, dweight), (op.dbias, dbias)] {
        let Some(out) = out else { continue };
        let dtype = c.dtype(out.tensor);
        let total = c.kernel("sum_rows.cu", "total", super::matmul::sum_defines(dtype, dtype, out.add))?;
        let to = c.pointer(out.tensor);
        super::matmul::column_total(c, &total, partial, pieces, to, cols)?;
    }
    Ok(1 + usize::from(copy.is_some()))
}
