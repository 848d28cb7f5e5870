//! Attention over retrieved blocks, the unfinished block and the chunk by threads that work alone: what `retrieval.rs`
//! launches where a device computes in software.
//!
//! There a barrier suspends every thread and workgroup memory is memory, so scores are stored instead, a row for each query
//! of a head (`query_rows.wgsl`): made block by block (`page_scores.wgsl`) and for the chunk (`chunk_scores.wgsl`), turned into
//! weights where they are (`block_weights.wgsl`), and multiplied by values (`page_values.wgsl`, `chunk_values.wgsl`).

use super::retrieval::{MOST_RECORDS, extents, heads_in, projections, read_keys};
use crate::kernel::{Entry, Kernel, Resource};
use crate::plan::{Compiler, LONE_THREADS, Part, alignment};
use landmark_core::ops::{Origin, RetrievalAttention};
use landmark_core::{DType, Result};
use std::ops::Range;

/// Queries of a tile.
const TILE: usize = 8;
/// Threads that share the keys of a tile of queries.
const PARTS: usize = 4;

/// Some rows of the chunk, and how long the rows of their scores are.
struct Rows {
    range: Range<usize>,
    slots: usize,
    width: usize,
    scores: Resource,
}

/// Attention of the heads whose keys lie in a piece of the rings.
pub(super) fn attend(
    op: &RetrievalAttention,
    c: &mut Compiler<'_>,
    table: &Resource,
    rings: [&Part; 2],
) -> Result<()> {
    let (queries, heads, head_dim) = (op.heads.queries, heads_in(op, rings[0]), op.heads.head_dim);
    let slots = if op.chosen.is_some() { op.memory.top_k } else { 0 };
    // The own run is the unfinished block and the chunk.
    let width = (slots + 1) * op.memory.block + queries.next_multiple_of(TILE);
    let of_row = (4 * heads * width) as u64;
    let most = MOST_RECORDS.min(c.largest_binding()) / of_row;
    let rows = queries.min((most as usize / TILE).max(1) * TILE);
    let scores = c.workspace(of_row * rows as u64);
    let sums = c.workspace((16 * heads * rows * head_dim.div_ceil(4)) as u64);
    for first in (0..queries).step_by(rows) {
        let range = first..queries.min(first + rows);
        let rows = Rows { range, slots, width, scores: scores.clone() };
        page_scores(op, c, table, rings[0], &rows)?;
        chunk_scores(op, c, rings[0], &rows)?;
        block_weights(op, c, rings[0], &rows)?;
        page_values(op, c, rings, &rows, sums.clone())?;
        chunk_values(op, c, rings[0], &rows, sums.clone())?;
    }
    Ok(())
}

/// A launch of `threads` for each row of scores.
fn launch(
    op: &RetrievalAttention,
    c: &mut Compiler<'_>,
    mut k: Kernel,
    ring: &Part,
    rows: &Rows,
    threads: usize,
) -> Result<()> {
    k.constant("WORKGROUP", LONE_THREADS);
    k.flag("BLOCKS_SEEN", op.memory.origin == Origin::BlocksSeen);
    k.include(include_str!("../shaders/query_rows.wgsl"));
    c.uniform(&mut k, "lengths", op.lengths)?;
    extents(op, c, &mut k, ring);
    k.param("first_row", rows.range.start);
    k.param("row_count", rows.range.len());
    k.param("slots", rows.slots);
    k.param("width", rows.width);
    c.dispatch(k, threads.div_ceil(LONE_THREADS))
}

fn page_scores(
    op: &RetrievalAttention,
    c: &mut Compiler<'_>,
    table: &Resource,
    ring: &Part,
    rows: &Rows,
) -> Result<()> {
    let mut k = Kernel::new("page_scores", include_str!("../shaders/page_scores.wgsl"));
    projections(op, c, &mut k)?;
    read_keys(op, c, &mut k, ring)?;
    c.read_if(&mut k, "chosen", op.chosen, 1)?;
    k.raw("angles", "vec4<f32>", Entry::Read, table.clone());
    k.raw("scores", "f32", Entry::Write, rows.scores.clone());
    c.uniform(&mut k, "frequencies", op.frequencies)?;
    let parts = (rows.slots + 1) * op.memory.block.div_ceil(16);
    launch(op, c, k, ring, rows, heads_in(op, ring) * rows.range.len() * parts)
}

fn chunk_scores(op: &RetrievalAttention, c: &mut Compiler<'_>, ring: &Part, rows: &Rows) -> Result<()> {
    let mut k = Kernel::new("chunk_scores", include_str!("../shaders/chunk_scores.wgsl"));
    k.constant("PARTS", PARTS);
    k.include(include_str!("../shaders/unit_tile.wgsl"));
    projections(op, c, &mut k)?;
    k.absent("chosen");
    k.storage("out", DType::F32, 1, Entry::Write, rows.scores.clone());
    c.uniform(&mut k, "frequencies", op.frequencies)?;
    let tiles = rows.range.len().div_ceil(TILE);
    launch(op, c, k, ring, rows, heads_in(op, ring) * tiles * PARTS)
}

fn block_weights(op: &RetrievalAttention, c: &mut Compiler<'_>, ring: &Part, rows: &Rows) -> Result<()> {
    let mut k = Kernel::new("block_weights", include_str!("../shaders/block_weights.wgsl"));
    k.constant("HEAD", op.heads.head_dim);
    c.read_if(&mut k, "chosen", op.chosen, 1)?;
    c.write_if(&mut k, "shares", op.shares, 1)?;
    k.raw("scores", "f32", Entry::Write, rows.scores.clone());
    launch(op, c, k, ring, rows, heads_in(op, ring) * rows.range.len())
}

fn page_values(
    op: &RetrievalAttention,
    c: &mut Compiler<'_>,
    rings: [&Part; 2],
    rows: &Rows,
    sums: Resource,
) -> Result<()> {
    let head_dim = op.heads.head_dim;
    let mut k = Kernel::new("page_values", include_str!("../shaders/page_values.wgsl"));
    describe_head(&mut k, head_dim);
    c.ring(&mut k, "values", op.values, alignment(&[head_dim]), Entry::Read, rings[1])?;
    c.read_if(&mut k, "chosen", op.chosen, 1)?;
    k.raw("scores", "f32", Entry::Read, rows.scores.clone());
    k.raw("sums", "vec4<f32>", Entry::Write, sums);
    let parts = head_dim.div_ceil(16);
    launch(op, c, k, rings[0], rows, heads_in(op, rings[0]) * rows.range.len() * parts)
}

fn chunk_values(
    op: &RetrievalAttention,
    c: &mut Compiler<'_>,
    ring: &Part,
    rows: &Rows,
    sums: Resource,
) -> Result<()> {
    let head_dim = op.heads.head_dim;
    let mut k = Kernel::new("chunk_values", include_str!("../shaders/chunk_values.wgsl"));
    describe_head(&mut k, head_dim);
    c.read(&mut k, "v", op.v.tensor, alignment(&[head_dim, op.v.start, c.cols(op.v.tensor)]))?;
    k.absent("chosen");
    k.raw("scores", "f32", Entry::Read, rows.scores.clone());
    k.raw("sums", "vec4<f32>", Entry::Read, sums);
    c.write(&mut k, "out", op.out, alignment(&[head_dim]))?;
    let tiles = rows.range.len().div_ceil(TILE);
    launch(op, c, k, ring, rows, heads_in(op, ring) * tiles * head_dim.div_ceil(8))
}

fn describe_head(k: &mut Kernel, head_dim: usize) {
    k.constant("HEAD", head_dim);
    k.constant("QUADS", head_dim.div_ceil(4));
}
