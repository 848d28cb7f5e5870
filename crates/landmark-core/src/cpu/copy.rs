//! Rows moved between tensors, and constants.

use super::real::Real;
use super::storage::Memory;
use crate::ops::{CopyRows, Fill};

pub(super) fn copy_rows<T: Real>(op: &CopyRows, m: &mut Memory<'_, T>) {
    let (from_shape, to_shape) = (m.info(op.from).shape.clone(), m.info(op.to.tensor).shape.clone());
    let (batch, from_rows, cols) = (from_shape.dims()[0], from_shape.dims()[1], from_shape.dims()[2]);
    let to_rows = to_shape.dims()[1];
    let mut to = m.take(op.to.tensor);
    let from = m.real(op.from);
    for b in 0..batch {
        let source = &from[(b * from_rows + op.from_row) * cols..][..op.rows * cols];
        let target = &mut to[(b * to_rows + op.to_row) * cols..][..op.rows * cols];
        if op.to.add {
            target.iter_mut().zip(source).for_each(|(to, &x)| *to += x);
        } else {
            target.copy_from_slice(source);
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
