//! Rows moved between tensors.

use crate::kernel::Kernel;
use crate::plan::{Compiler, WORKGROUP, alignment};
use landmark_core::Result;
use landmark_core::ops::CopyRows;

pub(super) fn copy_rows(op: &CopyRows, c: &mut Compiler<'_>) -> Result<()> {
    let (source, out) = (c.shape(op.from.tensor).dims(), c.shape(op.to.tensor).dims());
    let alignment = alignment(&[source[2], out[2], op.from.start, op.to.start, op.from.width]);
    let mut k = Kernel::new("copy_rows", include_str!("../shaders/copy_rows.wgsl"));
    k.constant("WORKGROUP", WORKGROUP);
    k.flag("ADD", op.add);
    c.read(&mut k, "source", op.from.tensor, alignment)?;
    c.write(&mut k, "out", op.to.tensor, alignment)?;
    k.param("batch", source[0]);
    k.param("rows", op.rows);
    k.param("width", op.from.width);
    k.param("source_rows", source[1]);
    k.param("source_row", op.from_row);
    k.param("source_cols", source[2]);
    k.param("source_start", op.from.start);
    k.param("out_rows", out[1]);
    k.param("out_row", op.to_row);
    k.param("out_cols", out[2]);
    k.param("out_start", op.to.start);
    c.dispatch(k, (source[0] * op.rows * op.from.width.div_ceil(4)).div_ceil(WORKGROUP))
}
