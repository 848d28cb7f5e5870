//! Optimisers.

use super::real::{CHUNK, Real, vectorised};
use super::storage::Memory;
use crate::ops::{Adafactor, AdamW, ClipScale, Sgd, SquaredNorm};
use crate::tensor::Tensor;
use rayon::prelude::*;

fn scale<T: Real>(m: &Memory<'_, T>, scale: Option<Tensor>) -> T {
    scale.map_or(T::ONE, |t| m.real(t)[0])
}

/// The weights in the type that products read, where there is one.
fn put_copy<T: Real>(copy: Option<Tensor>, param: &[T], m: &mut Memory<'_, T>) {
    let Some(tensor) = copy else { return };
    let mut copy = m.take(tensor);
    copy.copy_from_slice(param);
    m.put(tensor, copy);
}

pub(super) fn adamw<T: Real>(op: &AdamW, m: &mut Memory<'_, T>) {
    let hyper = m.real(op.hyper).to_vec();
    let (lr, correction1, correction2) = (hyper[0], hyper[1], hyper[2]);
    let of = |x: f32| T::of(f64::from(x));
    let (beta1, beta2, eps) = (of(op.beta1), of(op.beta2), of(op.eps));
    let keep = T::ONE - lr * of(op.weight_decay);
    let (step, root) = (lr / correction1, correction2.sqrt());
    let factor = scale(m, op.scale);
    let [mut param, mut grad, mut first, mut second] = [op.param, op.grad, op.m, op.v].map(|t| m.take(t));
    param
        .par_chunks_mut(CHUNK)
        .zip(grad.par_chunks_mut(CHUNK))
        .zip(first.par_chunks_mut(CHUNK))
        .zip(second.par_chunks_mut(CHUNK))
        .for_each(|(((param, grad), first), second)| {
            vectorised(
                #[inline(always)]
                || {
                    for i in 0..param.len() {
                        let g = factor * grad[i];
                        first[i] = beta1 * first[i] + (T::ONE - beta1) * g;
                        second[i] = beta2 * second[i] + (T::ONE - beta2) * g * g;
                        param[i] = param[i] * keep - step * first[i] / (second[i].sqrt() / root + eps);
                        grad[i] = T::ZERO;
                    }
                },
            );
        });
    put_copy(op.copy, &param, m);
    for (tensor, lease) in [(op.param, param), (op.grad, grad), (op.m, first), (op.v, second)] {
        m.put(tensor, lease);
    }
}

pub(super) fn sgd<T: Real>(op: &Sgd, m: &mut Memory<'_, T>) {
    let lr = m.real(op.hyper)[0];
    let (momentum, decay) = (T::of(f64::from(op.momentum)), T::of(f64::from(op.weight_decay)));
    let factor = scale(m, op.scale);
    let [mut param, mut grad, mut buffer] = [op.param, op.grad, op.buffer].map(|t| m.take(t));
    param.par_chunks_mut(CHUNK).zip(grad.par_chunks_mut(CHUNK)).zip(buffer.par_chunks_mut(CHUNK)).for_each(
        |((param, grad), buffer)| {
            for i in 0..param.len() {
                buffer[i] = momentum * buffer[i] + factor * grad[i] + decay * param[i];
                param[i] -= lr * buffer[i];
                grad[i] = T::ZERO;
            }
        },
    );
    put_copy(op.copy, &param, m);
    for (tensor, lease) in [(op.param, param), (op.grad, grad), (op.buffer, buffer)] {
        m.put(tensor, lease);
    }
}

pub(super) fn adafactor<T: Real>(op: &Adafactor, m: &mut Memory<'_, T>) {
    let hyper = m.real(op.hyper).to_vec();
    let (relative_step, lr, fresh) = (hyper[0], hyper[1], hyper[2]);
    let (eps1, eps2) = (T::of(f64::from(f32::EPSILON)), T::of(1e-3));
    let factor = scale(m, op.scale);
    let cols = m.cols(op.param);
    let [mut param, mut grad, mut rows] = [op.param, op.grad, op.rows].map(|t| m.take(t));
    let mut columns = op.columns.map(|t| m.take(t));
    let numel = T::of(param.len() as f64);
    let rms = (squares(&param) / numel).sqrt();
    let alpha = rms.max(eps2) * relative_step;
    let keep = T::ONE - lr * T::of(f64::from(op.weight_decay));
    grad.iter_mut().for_each(|g| *g = factor * *g);
    // `grad` becomes the update before its clipping.
    match &mut columns {
        Some(columns) => {
            let n_rows = T::of(rows.len() as f64);
            let mut column_sums = vec![T::ZERO; cols];
            for (row, g) in rows.iter_mut().zip(grad.chunks_exact(cols)) {
                *row += fresh * (squares(g) / T::of(cols as f64) - *row);
                column_sums.iter_mut().zip(g).for_each(|(s, &g)| *s += g * g);
            }
            for (column, &s) in columns.iter_mut().zip(&column_sums) {
                *column += fresh * (s / n_rows - *column);
            }
            let mean = (rows.iter().copied().sum::<T>() / n_rows).max(eps1);
            for (&row, g) in rows.iter().zip(grad.chunks_exact_mut(cols)) {
                for (g, &column) in g.iter_mut().zip(columns.iter()) {
                    *g = *g / (row * column / mean).max(eps1 * eps1).sqrt();
                }
            }
        }
        None => {
            for (v, g) in rows.iter_mut().zip(grad.iter_mut()) {
                *v += fresh * (*g * *g - *v);
                *g = *g / v.max(eps1 * eps1).sqrt();
            }
        }
    }
    let clip = (squares(&grad) / numel).sqrt().max(T::ONE);
    for (param, g) in param.iter_mut().zip(grad.iter_mut()) {
        *param = *param * keep - alpha / clip * *g;
        *g = T::ZERO;
    }
    put_copy(op.copy, &param, m);
    for (tensor, lease) in [(op.param, param), (op.grad, grad), (op.rows, rows)] {
        m.put(tensor, lease);
    }
    if let (Some(tensor), Some(lease)) = (op.columns, columns) {
        m.put(tensor, lease);
    }
}

/// Sum of squares: fixed pieces, added in order.
fn squares<T: Real>(x: &[T]) -> T {
    let parts: Vec<T> = x.par_chunks(CHUNK).map(|part| super::real::dot(part, part)).collect();
    parts.into_iter().sum()
}

pub(super) fn squared_norm<T: Real>(op: &SquaredNorm, m: &mut Memory<'_, T>) {
    let value = squares(&m.real(op.x));
    let mut out = m.take(op.out.tensor);
    out[0] = if op.out.add { out[0] + value } else { value };
    m.put(op.out.tensor, out);
}

pub(super) fn clip_scale<T: Real>(op: &ClipScale, m: &mut Memory<'_, T>) {
    let norm = m.real(op.squared_norm)[0].sqrt();
    let scale = T::of(f64::from(op.max_norm)) / (norm + T::of(1e-6));
    let mut out = m.take(op.out);
    out[0] = if scale < T::ONE { scale } else { T::ONE };
    m.put(op.out, out);
}
