//! Rotary positions.

use crate::kernel::Kernel;
use crate::plan::{Compiler, alignment};
use landmark_core::Result;
use landmark_core::ops::{Rope, RopeStyle};

/// Alignment of units of heads of this width, which start at sums of `extents`.
pub(super) fn head_alignment(style: RopeStyle, head_dim: usize, extents: &[usize]) -> usize {
    let unit = if style == RopeStyle::Halves { head_dim / 2 } else { head_dim };
    alignment(&[&[unit, head_dim], extents].concat())
}

pub(super) fn rope(op: &Rope, c: &mut Compiler<'_>) -> Result<()> {
    let (rows, heads) = (c.rows(op.out.tensor), op.out.width / op.head_dim);
    let (x_cols, out_cols) = (c.cols(op.x.tensor), c.cols(op.out.tensor));
    let alignment = head_alignment(op.style, op.head_dim, &[x_cols, out_cols, op.x.start, op.out.start]);
    let mut k = Kernel::new("rope", include_str!("../shaders/rope.wgsl"));
    k.constant("WORKGROUP", 64);
    k.rotary(op.style, op.head_dim);
    c.read(&mut k, "positions", op.positions, 1)?;
    c.uniform(&mut k, "frequencies", op.frequencies)?;
    if op.x == op.out {
        k.alias("x", "out");
    } else {
        c.read(&mut k, "x", op.x.tensor, alignment)?;
    }
    c.write(&mut k, "out", op.out.tensor, alignment)?;
    k.pairs("x");
    k.put_pairs("out");
    k.param("rows", rows);
    k.param("heads", heads);
    k.param("x_cols", x_cols);
    k.param("x_start", op.x.start);
    k.param("out_cols", out_cols);
    k.param("out_start", op.out.start);
    k.param("direction", if op.inverse { -1.0_f32 } else { 1.0 });
    c.dispatch(k, (rows * heads * op.head_dim.div_ceil(8)).div_ceil(64))
}
