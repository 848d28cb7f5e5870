//! LayerNorm and RMSNorm, alone or behind a residual addition, as far as products of few rows do not make them
//! (`matvec.rs`).

use super::matvec;
use crate::kernel::Kernel;
use crate::plan::{Compiler, alignment};
use landmark_core::ops::{AddNorm, Norm, NormKind};
use landmark_core::{Result, Tensor};

struct Operands {
    kind: NormKind,
    x: Tensor,
    delta: Option<Tensor>,
    weight: Tensor,
    bias: Option<Tensor>,
    sum: Option<Tensor>,
    out: Tensor,
}

pub(super) fn norm(op: &Norm, c: &mut Compiler<'_>) -> Result<()> {
    if matvec::takes_norm(op, c) {
        return Ok(());
    }
    let &Norm { kind, x, weight, bias, out } = op;
    launch(&Operands { kind, x, delta: None, weight, bias, sum: None, out }, c)
}

pub(super) fn add_norm(op: &AddNorm, c: &mut Compiler<'_>) -> Result<()> {
    if let Some(rest) = matvec::rest_of(op, c) {
        return norm(&rest, c);
    }
    let &AddNorm { kind, x, delta, weight, bias, sum, out } = op;
    launch(&Operands { kind, x, delta: Some(delta), weight, bias, sum: Some(sum), out }, c)
}

fn launch(op: &Operands, c: &mut Compiler<'_>) -> Result<()> {
    let (rows, cols) = (c.rows(op.x), c.cols(op.x));
    let alignment = alignment(&[cols]);
    let mut k = Kernel::new("norm", include_str!("../shaders/norm.wgsl"));
    // A thread has at least two vectors to read, where the row is long enough.
    let groups = c.rows_by(&mut k, rows, if cols >= 2048 { 256 } else { 64 });
    let (is_layer, eps) = match op.kind {
        NormKind::Layer { eps } => (true, eps),
        NormKind::Rms { eps } => (false, eps),
    };
    k.flag("LAYER", is_layer);
    c.read(&mut k, "x", op.x, alignment)?;
    c.read_if(&mut k, "delta", op.delta, alignment)?;
    c.read(&mut k, "weight", op.weight, alignment)?;
    c.read_if(&mut k, "bias", op.bias, alignment)?;
    c.write_if(&mut k, "sum", op.sum, alignment)?;
    c.write(&mut k, "out", op.out, alignment)?;
    k.param("rows", rows);
    k.param("cols", cols);
    k.param("eps", eps);
    c.dispatch(k, groups)
}
