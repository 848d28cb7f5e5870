//! LayerNorm and RMSNorm.

use super::real::{Real, dot, for_rows, sum, vectorised};
use super::storage::Memory;
use crate::ops::{AddNorm, Norm, NormBackward, NormKind};
use rayon::prelude::*;

/// Mean (0 for RMSNorm) and reciprocal scale of a row.
#[inline(always)]
fn statistics<T: Real>(kind: NormKind, row: &[T]) -> (T, T) {
    let n = T::of(row.len() as f64);
    match kind {
        NormKind::Layer { eps } => {
            let mean = sum(row) / n;
            let mut squares = T::ZERO;
            for &x in row {
                squares += (x - mean) * (x - mean);
            }
            (mean, T::ONE / (squares / n + T::of(f64::from(eps))).sqrt())
        }
        NormKind::Rms { eps } => (T::ZERO, T::ONE / (dot(row, row) / n + T::of(f64::from(eps))).sqrt()),
    }
}

#[inline(always)]
fn normalise<T: Real>(kind: NormKind, x: &[T], weight: &[T], bias: Option<&[T]>, out: &mut [T]) {
    let (mean, scale) = statistics(kind, x);
    for (i, out) in out.iter_mut().enumerate() {
        *out = (x[i] - mean) * scale * weight[i];
    }
    if let Some(bias) = bias {
        out.iter_mut().zip(bias).for_each(|(out, &b)| *out += b);
    }
}

pub(super) fn norm<T: Real>(op: &Norm, m: &mut Memory<'_, T>) {
    let cols = m.cols(op.x);
    let mut out = m.take(op.out);
    let (x, weight, bias) = (m.real(op.x), m.real(op.weight), op.bias.map(|b| m.real(b)));
    for_rows(&mut out, cols, |(n, row)| {
        normalise(op.kind, &x[n * cols..][..cols], &weight, bias.as_deref(), row);
    });
    drop((x, weight, bias));
    m.put(op.out, out);
}

pub(super) fn add_norm<T: Real>(op: &AddNorm, m: &mut Memory<'_, T>) {
    let cols = m.cols(op.x);
    let mut sum = m.take(op.sum);
    let mut out = m.take(op.out);
    let (x, delta) = (m.real(op.x), m.real(op.delta));
    for_rows(&mut sum, cols, |(n, row)| {
        let (x, delta) = (&x[n * cols..][..cols], &delta[n * cols..][..cols]);
        for i in 0..cols {
            row[i] = x[i] + delta[i];
        }
    });
    let (weight, bias) = (m.real(op.weight), op.bias.map(|b| m.real(b)));
    for_rows(&mut out, cols, |(n, row)| {
        normalise(op.kind, &sum[n * cols..][..cols], &weight, bias.as_deref(), row);
    });
    drop((x, delta, weight, bias));
    m.put(op.sum, sum);
    m.put(op.out, out);
}

/// Rows whose share of the parameters' gradients is summed in one piece.
const ROWS: usize = 64;

pub(super) fn norm_backward<T: Real>(op: &NormBackward, m: &mut Memory<'_, T>) {
    let cols = m.cols(op.x);
    let mut dx = op.dx.map(|o| (o, m.take(o.tensor)));
    let (x, weight, dout) = (m.real(op.x), m.real(op.weight), m.real(op.dout));
    if let Some((out, dx)) = &mut dx {
        let add = out.add;
        for_rows(dx, cols, |(n, dx)| {
            let (x, dout) = (&x[n * cols..][..cols], &dout[n * cols..][..cols]);
            let (mean, scale) = statistics(op.kind, x);
            // With g = dout · weight and x̂ the normalised row: scale · (g - mean(g) - x̂ · mean(g x̂)), where
            // RMSNorm has no mean(g).
            let (mut g_sum, mut gx_sum) = (T::ZERO, T::ZERO);
            for i in 0..cols {
                let g = dout[i] * weight[i];
                g_sum += g;
                gx_sum += g * (x[i] - mean) * scale;
            }
            let n = T::of(cols as f64);
            let g_mean = if matches!(op.kind, NormKind::Layer { .. }) { g_sum / n } else { T::ZERO };
            let gx_mean = gx_sum / n;
            for i in 0..cols {
                let value = scale * (dout[i] * weight[i] - g_mean - (x[i] - mean) * scale * gx_mean);
                dx[i] = if add { dx[i] + value } else { value };
            }
        });
    }
    let partial: Vec<(Vec<T>, Vec<T>)> = x
        .par_chunks(ROWS * cols)
        .zip(dout.par_chunks(ROWS * cols))
        .map(|(x, dout)| {
            let (mut dweight, mut dbias) = (vec![T::ZERO; cols], vec![T::ZERO; cols]);
            vectorised(
                #[inline(always)]
                || {
                    for (x, dout) in x.chunks_exact(cols).zip(dout.chunks_exact(cols)) {
                        let (mean, scale) = statistics(op.kind, x);
                        for i in 0..cols {
                            dweight[i] += dout[i] * (x[i] - mean) * scale;
                            dbias[i] += dout[i];
                        }
                    }
                },
            );
            (dweight, dbias)
        })
        .collect();
    drop((x, weight, dout));
    if let Some((out, dx)) = dx {
        m.put(out.tensor, dx);
    }
    for (out, pick) in [(op.dweight, 0), (op.dbias, 1)] {
        let Some(out) = out else { continue };
        let mut to = m.take(out.tensor);
        if !out.add {
            to.fill(T::ZERO);
        }
        for pair in &partial {
            let part = if pick == 0 { &pair.0 } else { &pair.1 };
            to.iter_mut().zip(part).for_each(|(to, &x)| *to += x);
        }
        m.put(out.tensor, to);
    }
}
