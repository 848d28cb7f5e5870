//! GELU and SwiGLU.

use super::real::{CHUNK, Real, vectorised};
use super::storage::Memory;
use crate::ops::{Gelu, GeluBackward, SwiGlu, SwiGluBackward};
use crate::tensor::Out;
use rayon::prelude::*;

/// `out[i] (=|+=) f(i)`, in parallel.
fn fill_with<T: Real>(out: &mut [T], add: bool, f: impl Fn(usize) -> T + Sync) {
    out.par_chunks_mut(CHUNK).enumerate().for_each(|(c, chunk)| {
        let base = c * CHUNK;
        vectorised(
            #[inline(always)]
            || {
                for (i, out) in chunk.iter_mut().enumerate() {
                    let value = f(base + i);
                    *out = if add { *out + value } else { value };
                }
            },
        );
    });
}

fn write<T: Real>(m: &mut Memory<'_, T>, out: Out, f: impl Fn(&Memory<'_, T>, &mut [T])) {
    let mut lease = m.take(out.tensor);
    f(m, &mut lease);
    m.put(out.tensor, lease);
}

/// Φ(x), the normal distribution function.
#[inline(always)]
fn normal<T: Real>(x: T) -> T {
    T::of(0.5) * (T::ONE + (x * T::of(std::f64::consts::FRAC_1_SQRT_2)).erf())
}

pub(super) fn gelu<T: Real>(op: &Gelu, m: &mut Memory<'_, T>) {
    write(m, Out::set(op.out), |m, out| {
        let x = &m.real(op.x)[..];
        fill_with(
            out,
            false,
            #[inline(always)]
            |i| x[i] * normal(x[i]),
        );
    });
}

pub(super) fn gelu_backward<T: Real>(op: &GeluBackward, m: &mut Memory<'_, T>) {
    // 1 / sqrt(2π)
    let density = T::of(0.398_942_280_401_432_7);
    write(m, op.dx, |m, dx| {
        let (x, dout) = (&m.real(op.x)[..], &m.real(op.dout)[..]);
        fill_with(
            dx,
            op.dx.add,
            #[inline(always)]
            |i| {
                let x = x[i];
                dout[i] * (normal(x) + x * density * (x * x * T::of(-0.5)).exp())
            },
        );
    });
}

#[inline(always)]
fn sigmoid<T: Real>(x: T) -> T {
    T::ONE / (T::ONE + (-x).exp())
}

pub(super) fn swiglu<T: Real>(op: &SwiGlu, m: &mut Memory<'_, T>) {
    write(m, Out::set(op.out), |m, out| {
        let (gate, up) = (&m.real(op.gate)[..], &m.real(op.up)[..]);
        fill_with(
            out,
            false,
            #[inline(always)]
            |i| gate[i] * sigmoid(gate[i]) * up[i],
        );
    });
}

pub(super) fn swiglu_backward<T: Real>(op: &SwiGluBackward, m: &mut Memory<'_, T>) {
    if let Some(to) = op.dgate {
        write(m, to, |m, dgate| {
            let (gate, up, dout) = (&m.real(op.gate)[..], &m.real(op.up)[..], &m.real(op.dout)[..]);
            fill_with(
                dgate,
                to.add,
                #[inline(always)]
                |i| {
                    let s = sigmoid(gate[i]);
                    dout[i] * up[i] * s * (T::ONE + gate[i] * (T::ONE - s))
                },
            );
        });
    }
    if let Some(to) = op.dup {
        write(m, to, |m, dup| {
            let (gate, dout) = (&m.real(op.gate)[..], &m.real(op.dout)[..]);
            fill_with(
                dup,
                to.add,
                #[inline(always)]
                |i| dout[i] * gate[i] * sigmoid(gate[i]),
            );
        });
    }
}
