//! Rotary positions.

use super::real::{Real, for_rows};
use super::storage::Memory;
use crate::ops::{Rope, RopeStyle};

/// Sine and cosine of every pair's angle at a position. The product of position and frequency is taken in `T`,
/// as the released program does.
pub(super) fn angles<T: Real>(position: i32, frequencies: &[T]) -> Vec<(T, T)> {
    let position = T::of(f64::from(position));
    frequencies.iter().map(|&f| (position * f).sin_cos()).collect()
}

/// Turns one head.
#[inline(always)]
pub(super) fn turn<T: Real>(head: &mut [T], style: RopeStyle, angles: &[(T, T)]) {
    let half = head.len() / 2;
    for (i, &(sin, cos)) in angles.iter().enumerate() {
        let (a, b) = match style {
            RopeStyle::Pairs => (2 * i, 2 * i + 1),
            RopeStyle::Halves => (i, i + half),
        };
        let (x, y) = (head[a], head[b]);
        head[a] = x * cos - y * sin;
        head[b] = y * cos + x * sin;
    }
}

pub(super) fn rope<T: Real>(op: &Rope, m: &mut Memory<'_, T>) {
    let stride = m.cols(op.out.tensor);
    let mut out = m.take(op.out.tensor);
    let (positions, frequencies) = (m.i32(op.positions), m.real(op.frequencies));
    // In place, the input is the buffer that was just taken.
    let source = (op.x != op.out).then(|| (m.real(op.x.tensor), m.cols(op.x.tensor)));
    for_rows(&mut out, stride, |(n, row)| {
        let row = &mut row[op.out.start..][..op.out.width];
        if let Some((x, x_stride)) = &source {
            row.copy_from_slice(&x[n * x_stride + op.x.start..][..op.x.width]);
        }
        let position = if op.inverse { -positions[n] } else { positions[n] };
        let angles = angles(position, &frequencies);
        row.chunks_exact_mut(op.head_dim).for_each(|head| turn(head, op.style, &angles));
    });
    drop((frequencies, source));
    m.put(op.out.tensor, out);
}
