//! The likeliest token.

use crate::kernel::Kernel;
use crate::plan::{Compiler, WORKGROUP};
use landmark_core::Result;
use landmark_core::ops::Likeliest;

pub(super) fn likeliest(op: &Likeliest, c: &mut Compiler<'_>) -> Result<()> {
    let rows = c.rows(op.logits);
    let mut k = Kernel::new("likeliest", include_str!("../shaders/likeliest.wgsl"));
    k.constant("WORKGROUP", WORKGROUP);
    c.read(&mut k, "logits", op.logits, 1)?;
    c.write(&mut k, "out", op.out, 1)?;
    k.param("rows", rows);
    k.param("vocabulary", c.cols(op.logits));
    k.param("banned", op.banned.unwrap_or(Likeliest::NO_TOKEN));
    c.dispatch(k, rows)
}
