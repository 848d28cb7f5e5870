//! Token embedding and its gradient.

use crate::compile::{Defines, Variant};
use crate::plan::{Compiler, args};
use landmark_core::ops::{Embed, EmbedBackward};
use landmark_core::{DType, Result};

const FILE: &str = "embed.cu";
const THREADS: usize = 256;

fn defines(cols: usize, table: DType, out: DType) -> Defines {
    Defines::new().set("COLS", cols).dtype("TABLE_T", table).dtype("OUT_T", out)
}

pub(super) fn variants() -> Vec<Variant> {
    let floats = [DType::F32, DType::Bf16, DType::F16];
    let mut all = Vec::new();
    for cols in [6, 1024] {
        for half in floats {
            let pairs = [(half, half), (half, DType::F32), (DType::F32, half)];
            all.extend(pairs.map(|(table, out)| Variant::new(FILE, defines(cols, table, out))));
        }
    }
    all
}

pub(super) fn embed(op: &Embed, c: &mut Compiler<'_>) -> Result<()> {
    let (tokens, cols, vocabulary) = (c.shape(op.tokens).numel(), c.cols(op.table), c.rows(op.table));
    let kernel = c.kernel(FILE, "embed", defines(cols, c.dtype(op.table), c.dtype(op.out)))?;
    let (status, check) = c.index_check("Embed", op.tokens, vocabulary);
    let vector = [8, 4].into_iter().find(|v| cols.is_multiple_of(*v)).unwrap_or(1);
    let grid = [(tokens * cols / vector).div_ceil(THREADS) as u32, 1, 1];
    let args = args![
        c.pointer(op.tokens),
        c.pointer(op.table),
        c.pointer(op.out),
        tokens as i32,
        vocabulary as u32,
        status,
        check
    ];
    c.launch_dependent(&kernel, grid, THREADS as u32, 0, args)
}

pub(super) fn embed_backward(op: &EmbedBackward, c: &mut Compiler<'_>) -> Result<()> {
    let table = op.dtable.tensor;
    let (tokens, cols, vocabulary) = (c.shape(op.tokens).numel(), c.cols(table), c.rows(table));
    if !op.dtable.add {
        c.zero(c.pointer(table), c.info(table).bytes() as u64);
    }
    let kernel = c.kernel(FILE, "embed_backward", defines(cols, c.dtype(table), c.dtype(op.dout)))?;
    let (status, check) = c.index_check("EmbedBackward", op.tokens, vocabulary);
    let args = args![
        c.pointer(op.tokens),
        c.pointer(op.dout),
        c.pointer(table),
        tokens as i32,
        vocabulary as u32,
        status,
        check
    ];
    c.launch_dependent(&kernel, [tokens as u32, 1, 1], THREADS as u32, 0, args)
}
