//! The likeliest token.

use crate::compile::{Defines, Variant};
use crate::plan::{Compiler, args};
use landmark_core::Result;
use landmark_core::ops::Likeliest;

const FILE: &str = "likeliest.cu";
const THREADS: u32 = 1024;

pub(super) fn likeliest(op: &Likeliest, c: &mut Compiler<'_>) -> Result<()> {
    let kernel = c.kernel(FILE, "likeliest", Defines::new())?;
    let args = args![
        c.pointer(op.logits),
        c.pointer(op.out),
        c.cols(op.logits) as i32,
        op.banned.unwrap_or(Likeliest::NO_TOKEN),
    ];
    c.launch_dependent(&kernel, [c.rows(op.logits) as u32, 1, 1], THREADS, 0, args)
}

pub(super) fn variants() -> Vec<Variant> {
    vec![Variant::new(FILE, Defines::new())]
}
