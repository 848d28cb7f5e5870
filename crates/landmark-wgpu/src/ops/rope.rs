//! Rotary positions.
//!
//! In a step of generation, queries and keys are turned by the kernels that read them (`is_left_to_readers`), which are
//! few; a launch of its own would take longer than all of that.

use super::{memory, retrieval};
use crate::kernel::Kernel;
use crate::plan::{Compiler, alignment};
use landmark_core::ops::{Access, Op, Rope, RopeStyle};
use landmark_core::{Cols, Program, Result, Tensor};
use std::collections::HashMap;

/// Heads that whoever reads them turns for himself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ToTurn {
    /// Where they were to be.
    out: Cols,
    /// Where they are.
    x: Cols,
    positions: Tensor,
}

/// What is to be turned lives for those who do, with the number of the last one.
pub(crate) fn borrowed(program: &Program, last: &HashMap<Tensor, usize>) -> Vec<(Tensor, usize)> {
    let of = |op: &Op| match op {
        Op::Rope(op) => Some((op.x.tensor, *last.get(&op.out.tensor)?)),
        _ => None,
    };
    program.ops().iter().filter_map(of).collect()
}

/// Alignment of units of heads of this width, which start at sums of `extents`.
pub(super) fn head_alignment(style: RopeStyle, head_dim: usize, extents: &[usize]) -> usize {
    let unit = if style == RopeStyle::Halves { head_dim / 2 } else { head_dim };
    alignment(&[&[unit, head_dim], extents].concat())
}

fn overlap(one: Cols, other: Cols) -> bool {
    one.tensor == other.tensor && one.start < other.start + other.width && other.start < one.start + one.width
}

/// Whether all who read the result can turn it for themselves.
fn is_left_to_readers(op: &Rope, c: &Compiler<'_>) -> bool {
    let Some(last) = c.last_if_scratch(op.out.tensor).filter(|_| !op.inverse) else { return false };
    let is_touched = |tensor| [op.x, op.out].iter().any(|cols| c.owner(cols.tensor) == c.owner(tensor));
    c.ahead(1..=last - c.number()).iter().all(|later| {
        let is_read = match later {
            Op::LandmarkScores(later) => {
                !overlap(later.q, op.out) || (later.q == op.out && memory::is_step(later, c))
            }
            Op::RetrievalAttention(later) => {
                let others = [later.q, later.k, later.v].into_iter().filter(|cols| *cols != op.out);
                retrieval::is_split(later, c)
                    && later.v != op.out
                    && others.into_iter().all(|cols| !overlap(cols, op.out))
            }
            Op::AppendKv(later) => ![later.k, later.v].iter().any(|cols| overlap(*cols, op.out)),
            Op::Rope(later) => !overlap(later.x, op.out),
            other => other.operand_list().iter().all(|o| o.tensor != op.out.tensor),
        };
        is_read && later.operand_list().iter().all(|o| o.access == Access::Read || !is_touched(o.tensor))
    })
}

/// Where heads lie: those that are to be turned, before they are.
pub(super) fn place(heads: Cols, c: &Compiler<'_>) -> Cols {
    c.to_turn.get(&heads.tensor).filter(|to_turn| to_turn.out == heads).map_or(heads, |to_turn| to_turn.x)
}

/// Binds heads in units, and turns them if they are to be.
pub(super) fn read_heads(
    k: &mut Kernel,
    c: &Compiler<'_>,
    (name, positions): (&str, &str),
    heads: Cols,
    (style, head_dim): (RopeStyle, usize),
) -> Result<()> {
    let at = place(heads, c);
    let cols = c.cols(at.tensor);
    c.read(k, name, at.tensor, head_alignment(style, head_dim, &[at.start, cols]))?;
    match c.to_turn.get(&heads.tensor).filter(|to_turn| to_turn.out == heads) {
        Some(to_turn) => {
            c.uniform(k, positions, to_turn.positions)?;
            k.pairs_to_turn(name, cols);
        }
        None => k.pairs(name),
    }
    Ok(())
}

pub(super) fn rope(op: &Rope, c: &mut Compiler<'_>) -> Result<()> {
    if is_left_to_readers(op, c) {
        c.to_turn.insert(op.out.tensor, ToTurn { out: op.out, x: op.x, positions: op.positions });
        return Ok(());
    }
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
