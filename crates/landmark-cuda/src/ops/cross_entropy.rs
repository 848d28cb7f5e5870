//! The output matrix and the loss, some rows at a time.
//!
//! With gradients, logits are held in the activations' type, become gradients in place, and feed two products. Without,
//! they are f32, since an evaluation is worth the bytes.

use super::matmul::converted;
use crate::compile::{Defines, Variant};
use crate::cublaslt::{Ask, Scale, WORKSPACE};
use crate::plan::{Compiler, args};
use landmark_core::ops::LinearCrossEntropy;
use landmark_core::{DType, Result};

const FILE: &str = "cross_entropy.cu";
/// Bytes of logits held at a time, at most.
const LOGITS: usize = 512 << 20;

/// Elements from one row of logits to the next: products and wide loads like multiples of 64.
fn stride(vocabulary: usize) -> usize {
    vocabulary.next_multiple_of(64)
}

/// Threads of a row: eight logits each at a time, in blocks that fill a multiprocessor.
fn threads(vocabulary: usize) -> u32 {
    (vocabulary / 8).next_power_of_two().clamp(32, 512) as u32
}

fn defines(logits: DType, vocabulary: usize) -> Defines {
    let extents = Defines::new().set("VOCAB", vocabulary).set("STRIDE", stride(vocabulary));
    extents.set("ROW_THREADS", threads(vocabulary)).dtype("LOGIT_T", logits)
}

pub(super) fn variants() -> Vec<Variant> {
    let mut all = Vec::new();
    for vocabulary in [11, 32_002, 50_304] {
        let floats = [DType::F32, DType::Bf16, DType::F16];
        all.extend(floats.map(|t| Variant::new(FILE, defines(t, vocabulary))));
    }
    all
}

pub(super) fn linear_cross_entropy(op: &LinearCrossEntropy, c: &mut Compiler<'_>) -> Result<()> {
    let (rows, width, vocabulary) = (c.rows(op.x), c.cols(op.x), c.rows(op.weight));
    let threads = threads(vocabulary);
    if c.dtype(op.loss) != DType::F32 {
        return Err(c.unsupported("the loss is f32"));
    }
    // An activation in f32 beside a half matrix is rounded: the product's factors have one type.
    let factors = c.dtype(op.weight);
    let (x, weight) = (converted(c, op.x, factors)?, c.pointer(op.weight));
    let logits_type = if op.gradient.is_some() { factors } else { DType::F32 };
    let row_bytes = stride(vocabulary) * logits_type.size();
    let pieces = (rows * row_bytes).div_ceil(LOGITS).max(1);
    let of_piece = if pieces == 1 { rows } else { rows.div_ceil(pieces).next_multiple_of(128) };
    let defines = defines(logits_type, vocabulary);
    let count_targets = c.kernel(FILE, "count_targets", defines.clone())?;
    let score = c.kernel(FILE, "score_rows", defines.clone())?;
    let mean = c.kernel(FILE, "mean_loss", defines)?;
    let (factors_at, count) = (c.workspace(16), c.workspace(4));
    let (losses, logits) = (c.workspace(4 * rows as u64), c.workspace((of_piece * row_bytes) as u64));
    let workspace = c.workspace(WORKSPACE);
    let targets = c.pointer(op.targets);
    let (status, check) = c.index_check("LinearCrossEntropy", op.targets, vocabulary);
    let scale = op.gradient.map_or(1.0, |g| g.scale);
    let args = args![targets, rows as i32, scale, factors_at, count, status, check];
    c.launch_dependent(&count_targets, [1; 3], threads, 0, args)?;
    for first in (0..rows).step_by(of_piece) {
        let n = of_piece.min(rows - first);
        let x_piece = x + (first * width * factors.size()) as u64;
        c.product(Ask {
            m: n,
            n: vocabulary,
            k: width,
            factors,
            result: logits_type,
            transpose_a: false,
            transpose_b: true,
            strides: [width, width, stride(vocabulary)],
            a: x_piece,
            b: weight,
            out: logits,
            bias: 0,
            scale: Scale::Host(1.0),
            add: false,
            workspace,
        })?;
        let offset = 4 * first as u64;
        let predictions = op.predictions.map_or(0, |p| c.pointer(p) + offset);
        let gradient = i32::from(op.gradient.is_some());
        let args = args![logits, targets + offset, losses + offset, predictions, gradient];
        c.launch_dependent(&score, [n as u32, 1, 1], threads, 0, args)?;
        let Some(gradient) = &op.gradient else { continue };
        let dx = c.dtype(gradient.dx);
        c.product(Ask {
            m: n,
            n: width,
            k: vocabulary,
            factors,
            result: dx,
            transpose_a: false,
            transpose_b: false,
            strides: [stride(vocabulary), width, width],
            a: logits,
            b: weight,
            out: c.pointer(gradient.dx) + (first * width * dx.size()) as u64,
            bias: 0,
            scale: Scale::Device(factors_at),
            add: false,
            workspace,
        })?;
        if let Some(dweight) = gradient.dweight {
            let add = dweight.add || first > 0;
            c.product(Ask {
                m: vocabulary,
                n: width,
                k: n,
                factors,
                result: c.dtype(dweight.tensor),
                transpose_a: true,
                transpose_b: false,
                strides: [stride(vocabulary), width, width],
                a: logits,
                b: x_piece,
                out: c.pointer(dweight.tensor),
                bias: 0,
                scale: Scale::Device(factors_at + if add { 8 } else { 0 }),
                add,
                workspace,
            })?;
        }
    }
    c.launch_dependent(&mean, [1; 3], threads, 0, args![losses, rows as i32, count, c.pointer(op.loss)])
}
