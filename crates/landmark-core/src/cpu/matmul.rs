//! Matrix products and column sums.

use super::gemm::{Mat, MatMut, gemm};
use super::real::{Real, for_rows};
use super::storage::Memory;
use crate::ops::{Matmul, SumRows};
use rayon::prelude::*;

pub(super) fn matmul<T: Real>(op: &Matmul, m: &mut Memory<'_, T>) {
    let mut out = m.take(op.out.tensor);
    let (a, b) = (m.real(op.a), m.real(op.b));
    let (mut left, mut right) =
        (Mat::new(&a, m.rows(op.a), m.cols(op.a)), Mat::new(&b, m.rows(op.b), m.cols(op.b)));
    if op.transpose_a {
        left = left.t();
    }
    if op.transpose_b {
        right = right.t();
    }
    let (rows, cols) = (left.rows, right.cols);
    let mut add = op.out.add;
    if let Some(bias) = op.bias {
        let bias = m.real(bias);
        for_rows(&mut out, cols, |(_, row)| {
            for (out, &b) in row.iter_mut().zip(bias.iter()) {
                *out = if op.out.add { *out + b } else { b };
            }
        });
        add = true;
    }
    let scale = T::of(f64::from(op.scale));
    gemm(MatMut::new(&mut out, rows, cols), add, scale, left, right, true);
    drop((a, b));
    m.put(op.out.tensor, out);
}

pub(super) fn sum_rows<T: Real>(op: &SumRows, m: &mut Memory<'_, T>) {
    const ROWS: usize = 64;
    let mut out = m.take(op.out.tensor);
    if !op.out.add {
        out.fill(T::ZERO);
    }
    let (x, cols) = (m.real(op.x), m.cols(op.x));
    let partial: Vec<Vec<T>> = x
        .par_chunks(ROWS * cols)
        .map(|rows| {
            let mut sum = vec![T::ZERO; cols];
            for row in rows.chunks_exact(cols) {
                sum.iter_mut().zip(row).for_each(|(s, &x)| *s += x);
            }
            sum
        })
        .collect();
    for part in &partial {
        out.iter_mut().zip(part).for_each(|(out, &x)| *out += x);
    }
    drop(x);
    m.put(op.out.tensor, out);
}
