//! Rotary positions.

use crate::kernel::Kernel;
use crate::plan::{Compiler, alignment};
use landmark_core::Result;
use landmark_core::ops::{Op, Rope, RopeStyle};

/// Alignment of units of heads of this width, which start at sums of `extents`.
pub(super) fn head_alignment(style: RopeStyle, head_dim: usize, extents: &[usize]) -> usize {
    let unit = if style == RopeStyle::Halves { head_dim / 2 } else { head_dim };
    alignment(&[&[unit, head_dim], extents].concat())
}

pub(super) fn rope(op: &Rope, c: &mut Compiler<'_>) -> Result<()> {
    let second = match c.next() {
        Some(Op::Rope(next)) if go_together(op, next, c)? => Some(next),
        _ => None,
    };
    let rows = c.rows(op.out.tensor);
    let heads = |op: &Rope| op.out.width / op.head_dim;
    let mut k = Kernel::new("rope", include_str!("../shaders/rope.wgsl"));
    k.constant("WORKGROUP", 64);
    k.flag("IS_TWO", second.is_some());
    k.rotary(op.style, op.head_dim);
    c.read(&mut k, "positions", op.positions, 1)?;
    c.uniform(&mut k, "frequencies", op.frequencies)?;
    k.param("rows", rows);
    k.param("direction", if op.inverse { -1.0_f32 } else { 1.0 });
    k.param("heads", heads(op));
    k.param("heads_2", second.map_or(1, heads));
    bind(op, c, &mut k, ["x", "out"], ["x_cols", "x_start", "out_cols", "out_start"])?;
    let mut units = rows * heads(op) * op.head_dim.div_ceil(8);
    if let Some(second) = second {
        bind(second, c, &mut k, ["x_2", "out_2"], ["x_cols_2", "x_start_2", "out_cols_2", "out_start_2"])?;
        units += rows * heads(second) * op.head_dim.div_ceil(8);
        c.take_next();
    } else {
        for name in ["x_2", "out_2"] {
            k.absent(name);
        }
        k.pairs("x_2");
        k.put_pairs("out_2");
        for name in ["x_cols_2", "x_start_2", "out_cols_2", "out_start_2"] {
            k.param(name, 0_usize);
        }
    }
    c.dispatch(k, units.div_ceil(64))
}

/// Whether two ops turn by the same angles and neither touches what the other writes: then one launch serves both.
fn go_together(op: &Rope, next: &Rope, c: &Compiler<'_>) -> Result<bool> {
    let angles = |op: &Rope| (op.positions, op.frequencies, op.style, op.head_dim, op.inverse);
    if angles(op) != angles(next) || c.rows(op.out.tensor) != c.rows(next.out.tensor) {
        return Ok(false);
    }
    let [x, out, next_x, next_out] =
        [op.x.tensor, op.out.tensor, next.x.tensor, next.out.tensor].map(|tensor| c.whole(tensor));
    let (x, out, next_x, next_out) = (x?, out?, next_x?, next_out?);
    Ok(out != next_x && out != next_out && x != next_out)
}

/// Binds what an op reads and writes.
fn bind(
    op: &Rope,
    c: &Compiler<'_>,
    k: &mut Kernel,
    [x, out]: [&'static str; 2],
    [x_cols, x_start, out_cols, out_start]: [&'static str; 4],
) -> Result<()> {
    let cols = [c.cols(op.x.tensor), c.cols(op.out.tensor)];
    let alignment = head_alignment(op.style, op.head_dim, &[cols[0], cols[1], op.x.start, op.out.start]);
    if op.x == op.out {
        k.alias(x, out);
    } else {
        c.read(k, x, op.x.tensor, alignment)?;
    }
    c.write(k, out, op.out.tensor, alignment)?;
    k.pairs(x);
    k.put_pairs(out);
    k.param(x_cols, cols[0]);
    k.param(x_start, op.x.start);
    k.param(out_cols, cols[1]);
    k.param(out_start, op.out.start);
    Ok(())
}
