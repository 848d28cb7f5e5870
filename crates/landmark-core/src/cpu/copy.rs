//! Rows moved between tensors, and constants.

use super::real::Real;
use super::storage::Memory;
use crate::ops::{CopyRows, Fill};

pub(super) fn copy_rows<T: Real>(op: &CopyRows, m: &mut Memory<'_, T>) {
    let (from_shape, to_shape) = (m.info(op.from.tensor).shape.clone(), m.info(op.to.tensor).shape.clone());
    let (batch, from_rows, to_rows) = (from_shape.dims()[0], from_shape.dims()[1], to_shape.dims()[1]);
    let (from_cols, to_cols, width) = (from_shape.cols(), to_shape.cols(), op.from.width);
    let mut to = m.take(op.to.tensor);
    let from = m.real(op.from.tensor);
    for b in 0..batch {
        for r in 0..op.rows {
            let source = (b * from_rows + op.from_row + r) * from_cols + op.from.start;
            let target = (b * to_rows + op.to_row + r) * to_cols + op.to.start;
            let (source, target) = (&from[source..][..width], &mut to[target..][..width]);
            if op.add {
                target.iter_mut().zip(source).for_each(|(to, &x)| *to += x);
            } else {
                target.copy_from_slice(source);
            }
        }
    }
    drop(from);
    m.put(op.to.tensor, to);
}

pub(super) fn fill<T: Real>(op: &Fill, m: &mut Memory<'_, T>) {
    let mut out = m.take(op.out);
    out.fill(T::of(f64::from(op.value)));
    m.put(op.out, out);
}
