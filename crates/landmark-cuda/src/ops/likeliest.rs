//! The likeliest token.

use crate::compile::{Arch, Defines, Variant};
use crate::plan::{Compiler, args};
use landmark_core::Result;
use landmark_core::ops::Likeliest;

const FILE: &str = "likeliest.cu";
/// As in the kernel file.
const THREADS: u32 = 512;
/// Blocks that share a row, where there are clusters.
const RANKS: u32 = 8;

fn ranks(arch: Arch) -> u32 {
    if arch.is_hopper() { RANKS } else { 1 }
}

fn defines(ranks: u32) -> Defines {
    Defines::new().set("RANKS", ranks)
}

pub(super) fn likeliest(op: &Likeliest, c: &mut Compiler<'_>) -> Result<()> {
    let ranks = ranks(c.arch());
    let kernel = c.kernel(FILE, "likeliest", defines(ranks))?;
    let args = args![
        c.pointer(op.logits),
        c.pointer(op.out),
        c.cols(op.logits) as i32,
        op.banned.unwrap_or(Likeliest::NO_TOKEN),
    ];
    c.launch_cluster(&kernel, [ranks, c.rows(op.logits) as u32, 1], ranks, THREADS, 0, args)
}

pub(super) fn variants() -> Vec<Variant> {
    vec![Variant::new(FILE, defines(1)), Variant::for_hopper(FILE, defines(RANKS))]
}
