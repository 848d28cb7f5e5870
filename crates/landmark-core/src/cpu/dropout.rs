//! Random masks.

use super::real::{CHUNK, Real};
use super::storage::Memory;
use crate::ops::{Bernoulli, Dropout};
use crate::random::Stream;
use rayon::prelude::*;

pub(super) fn dropout<T: Real>(op: &Dropout, m: &mut Memory<'_, T>) {
    let mut out = m.take(op.out.tensor);
    let stream = Stream::new(m.u32(op.seed), op.salt);
    let x = m.real(op.x);
    let scale = T::of(1.0 / (1.0 - f64::from(op.p)));
    out.par_chunks_mut(CHUNK).enumerate().for_each(|(c, chunk)| {
        for (i, out) in chunk.iter_mut().enumerate() {
            let index = c * CHUNK + i;
            let value = if stream.draw(index as u64, op.p) { T::ZERO } else { x[index] * scale };
            *out = if op.out.add { *out + value } else { value };
        }
    });
    drop(x);
    m.put(op.out.tensor, out);
}

pub(super) fn bernoulli<T: Real>(op: &Bernoulli, m: &mut Memory<'_, T>) {
    let numel = m.info(op.out).shape.numel();
    let mut out = m.take_u32(op.out);
    let stream = Stream::new(m.u32(op.seed), op.salt);
    for (i, out) in out[..numel].iter_mut().enumerate() {
        *out = u32::from(stream.draw(i as u64, op.p));
    }
    m.put_u32(op.out, out);
}
