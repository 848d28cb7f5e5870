//! Token embedding: rows of a table.

use crate::kernel::Kernel;
use crate::plan::{Compiler, WORKGROUP, alignment};
use landmark_core::Result;
use landmark_core::ops::Embed;

pub(super) fn embed(op: &Embed, c: &mut Compiler<'_>) -> Result<()> {
    let (rows, cols) = (c.shape(op.tokens).numel(), c.cols(op.table));
    for part in c.parts(op.table)? {
        let mut k = Kernel::new("embed", include_str!("../shaders/embed.wgsl"));
        k.constant("WORKGROUP", WORKGROUP);
        c.read(&mut k, "tokens", op.tokens, 1)?;
        c.read_part(&mut k, "table", op.table, &part, alignment(&[cols]));
        c.write(&mut k, "out", op.out, alignment(&[cols]))?;
        c.index_check(&mut k, op.tokens, c.rows(op.table));
        k.param("rows", rows);
        k.param("cols", cols);
        k.param("limit", c.rows(op.table));
        k.param("first", part.first);
        k.param("held", part.rows);
        c.dispatch(k, (rows * cols.div_ceil(4)).div_ceil(WORKGROUP))?;
    }
    Ok(())
}
