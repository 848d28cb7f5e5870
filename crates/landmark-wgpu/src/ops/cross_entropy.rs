//! The output matrix and the loss, a slice of rows at a time: the logits of a whole batch would be the largest tensor
//! by far.

use super::matmul::{self, Product};
use crate::kernel::{Entry, Kernel};
use crate::plan::{Compiler, WORKGROUP};
use landmark_core::ops::LinearCrossEntropy;
use landmark_core::{DType, Result};

/// Bytes of logits held at a time, where a binding may be that large.
const SLICE: u64 = 64 << 20;

pub(super) fn linear_cross_entropy(op: &LinearCrossEntropy, c: &mut Compiler<'_>) -> Result<()> {
    if op.gradient.is_some() {
        return Err(c.unsupported(super::TRAINING));
    }
    let (rows, vocab) = (c.rows(op.x), c.rows(op.weight));
    let slice = (SLICE.min(c.largest_binding()) / (4 * vocab as u64)).clamp(1, rows.max(1) as u64) as usize;
    let logits = c.workspace(4 * (slice * vocab) as u64);
    let losses = c.workspace(4 * rows as u64);
    for first in (0..rows).step_by(slice) {
        let count = slice.min(rows - first);
        let product = Product { a: op.x, first, rows: count, b: op.weight };
        matmul::into_workspace(&product, &logits, c)?;
        let mut k = Kernel::new("cross_entropy", include_str!("../shaders/cross_entropy.wgsl"));
        k.constant("WORKGROUP", WORKGROUP);
        k.storage("logits", DType::F32, 1, Entry::Read, logits.clone());
        c.read(&mut k, "targets", op.targets, 1)?;
        c.write_if(&mut k, "predictions", op.predictions, 1)?;
        k.raw("losses", "f32", Entry::Write, losses.clone());
        c.index_check(&mut k, op.targets, vocab);
        k.param("rows", count);
        k.param("first", first);
        k.param("vocab", vocab);
        c.dispatch(k, count)?;
    }
    let mut k = Kernel::new("mean_loss", include_str!("../shaders/mean_loss.wgsl"));
    k.constant("WORKGROUP", WORKGROUP);
    k.raw("losses", "f32", Entry::Read, losses);
    c.read(&mut k, "targets", op.targets, 1)?;
    c.write(&mut k, "loss", op.loss, 1)?;
    k.param("rows", rows);
    c.dispatch(k, 1)
}
