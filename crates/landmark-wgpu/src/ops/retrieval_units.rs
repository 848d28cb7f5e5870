//! Attention of a long chunk on matrix units, and the scores of its landmarks: what `retrieval.rs` and
//! `memory.rs` launch where there are such units and all tensors are in f16.
//!
//! Queries are listed by the block that they chose (`list_choosers.wgsl`), each block is read once for up to a tile of
//! them (`attend_blocks.wgsl`), and what a tile of queries sees of the chunk is joined with that (`attend_chunk.wgsl`).

use super::memory::describe_scores;
use super::retrieval::{extents, heads_in};
use super::rope::head_alignment;
use crate::kernel::{Entry, Kernel, Resource};
use crate::matrix_units::Units;
use crate::plan::{Compiler, Part, WORKGROUP, alignment};
use landmark_core::ops::{LandmarkScores, MemoryShape, Origin, RetrievalAttention, RopeStyle};
use landmark_core::{Cols, DType, Result};
use std::ops::Range;

/// Shorter chunks leave most of a tile empty.
const FEWEST_QUERIES: usize = 32;
/// Blocks that a tile of keys has room for, and those that are worth one.
const BLOCKS: std::ops::RangeInclusive<usize> = 17..=64;
/// Workgroups that share the pieces of a head's lists, at most.
const MOST_PIECES: usize = 4096;
/// Bytes of the records of one launch, at most.
const MOST_RECORDS: u64 = 128 << 20;

/// How the kernels are cut: which matrix units, and how many subgroups a workgroup has, 16 queries each.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    units: Units,
    subgroups: usize,
}

impl Cut {
    /// `None` where these kernels do not serve.
    pub(super) fn of(op: &RetrievalAttention, c: &Compiler<'_>) -> Option<Cut> {
        let is_vectors = |cols: &Cols| {
            let extents = [cols.start, c.cols(cols.tensor)];
            c.dtype(cols.tensor) == DType::F16 && extents.iter().all(|n| n.is_multiple_of(8))
        };
        let is_served = !op.miss
            && BLOCKS.contains(&op.memory.block)
            && [op.q, op.k, op.v].iter().all(is_vectors)
            && [op.keys, op.values].iter().all(|ring| c.dtype(*ring) == DType::F16);
        Cut::with(op.heads.queries, op.heads.head_dim, c).filter(|_| is_served)
    }

    /// For so many queries.
    fn with(queries: usize, head_dim: usize, c: &Compiler<'_>) -> Option<Cut> {
        if queries < FEWEST_QUERIES || !matches!(head_dim, 64 | 128) || !c.has(wgpu::Features::SUBGROUP) {
            return None;
        }
        let units = c.matrix_units()?;
        let bytes = |subgroups: usize| {
            let tile = 64 * (head_dim / 4 + 2) * 8;
            let of_row = 18 * (16 + 8) + 8;
            (tile + 16 * subgroups * of_row) as u32
        };
        let subgroups = [4, 2].into_iter().find(|&n| bytes(n) <= c.workgroup_bytes())?;
        Some(Cut { units, subgroups })
    }

    fn queries(self) -> usize {
        16 * self.subgroups
    }

    /// What the kernels on matrix units are given; `block`: keys of a tile.
    fn describe(self, k: &mut Kernel, block: usize, style: RopeStyle, head_dim: usize) {
        k.constant("SUBGROUPS", self.subgroups);
        k.constant("BLOCK", block);
        k.rotary(style, head_dim);
        self.units.describe(k);
        k.include(include_str!("../shaders/attention_tile.wgsl"));
    }
}

/// A record is the result of a slot, two halves a word, and the landmark's score.
fn describe_records(k: &mut Kernel, head_dim: usize) {
    k.constant("QUADS", head_dim / 4);
    k.constant("RECORD", head_dim / 4 + 1);
}

/// Attention of the heads whose keys lie in a piece of the rings.
pub(super) fn attend(
    op: &RetrievalAttention,
    cut: Cut,
    c: &mut Compiler<'_>,
    table: &Resource,
    rings: [&Part; 2],
) -> Result<()> {
    let (queries, heads, tile) = (op.heads.queries, heads_in(op, rings[0]), cut.queries());
    let top_k = if op.chosen.is_some() { op.memory.top_k } else { 0 };
    let of_row = (heads * top_k * (op.heads.head_dim / 4 + 1) * 8) as u64;
    let most = MOST_RECORDS.min(c.largest_binding()) / of_row.max(1);
    let rows = queries.min((most as usize / tile).max(1) * tile);
    let records = c.workspace((of_row * rows as u64).max(16));
    // A list's last piece may be any length, so each block adds one; and in front there is their number.
    let room = rows * top_k / tile + op.memory.blocks.min(rows * top_k) + 1;
    let list = c.workspace((4 * heads * rows * top_k).max(16) as u64);
    let pieces = c.workspace((16 * heads * room) as u64);
    for first in (0..queries).step_by(rows) {
        let some = first..queries.min(first + rows);
        if top_k > 0 {
            let lists = [&list, &pieces, &records];
            list_choosers(op, cut, c, rings[0], lists, room, some.clone())?;
            attend_blocks(op, cut, c, table, rings, lists, room, some.clone())?;
        }
        attend_chunk(op, cut, c, rings, records.clone(), top_k, some)?;
    }
    Ok(())
}

fn list_choosers(
    op: &RetrievalAttention,
    cut: Cut,
    c: &mut Compiler<'_>,
    ring: &Part,
    [list, pieces, records]: [&Resource; 3],
    room: usize,
    rows: Range<usize>,
) -> Result<()> {
    let mut k = Kernel::new("list_choosers", include_str!("../shaders/list_choosers.wgsl"));
    k.constant("WORKGROUP", WORKGROUP);
    k.constant("QUERIES", cut.queries());
    describe_records(&mut k, op.heads.head_dim);
    c.read_if(&mut k, "chosen", op.chosen, 1)?;
    k.raw("list", "u32", Entry::Write, list.clone());
    k.raw("pieces", "vec4<u32>", Entry::Write, pieces.clone());
    k.raw("records", "vec2<u32>", Entry::Write, records.clone());
    c.uniform(&mut k, "lengths", op.lengths)?;
    describe_rows(op, c, &mut k, ring, rows);
    k.param("room", room);
    c.dispatch_grid(k, [heads_in(op, ring) / op.heads.batch, op.heads.batch, 1])
}

#[allow(clippy::too_many_arguments)]
fn attend_blocks(
    op: &RetrievalAttention,
    cut: Cut,
    c: &mut Compiler<'_>,
    table: &Resource,
    rings: [&Part; 2],
    [list, pieces, records]: [&Resource; 3],
    room: usize,
    rows: Range<usize>,
) -> Result<()> {
    let mut k = Kernel::new("attend_blocks", include_str!("../shaders/attend_blocks.wgsl"));
    k.constant("TOP_K", op.memory.top_k);
    describe_records(&mut k, op.heads.head_dim);
    cut.describe(&mut k, op.memory.block, op.style, op.heads.head_dim);
    let alignment = head_alignment(op.style, op.heads.head_dim, &[]);
    c.read(&mut k, "q", op.q.tensor, alignment)?;
    k.pairs("q");
    c.ring(&mut k, "keys", op.keys, alignment, Entry::Read, rings[0])?;
    k.pairs("keys");
    k.octs("values", rings[1].resource.clone());
    k.raw("angles", "vec4<f32>", Entry::Read, table.clone());
    k.raw("list", "u32", Entry::Read, list.clone());
    k.raw("pieces", "vec4<u32>", Entry::Read, pieces.clone());
    k.raw("records", "vec2<u32>", Entry::Write, records.clone());
    c.uniform(&mut k, "lengths", op.lengths)?;
    c.uniform(&mut k, "frequencies", op.frequencies)?;
    describe_rows(op, c, &mut k, rings[0], rows);
    k.param("room", room);
    let heads = heads_in(op, rings[0]) / op.heads.batch;
    c.dispatch_grid(k, [(room - 1).min(MOST_PIECES), heads, op.heads.batch])
}

fn attend_chunk(
    op: &RetrievalAttention,
    cut: Cut,
    c: &mut Compiler<'_>,
    rings: [&Part; 2],
    records: Resource,
    top_k: usize,
    rows: Range<usize>,
) -> Result<()> {
    let head_dim = op.heads.head_dim;
    let mut k = Kernel::new("attend_chunk", include_str!("../shaders/attend_chunk.wgsl"));
    k.constant("SLOTS", top_k);
    k.flag("BLOCKS_SEEN", op.memory.origin == Origin::BlocksSeen);
    describe_records(&mut k, op.heads.head_dim);
    cut.describe(&mut k, op.memory.block, op.style, op.heads.head_dim);
    for (name, cols) in [("q", op.q), ("k", op.k), ("v", op.v)] {
        k.octs(name, c.whole(cols.tensor)?);
    }
    c.ring(&mut k, "keys", op.keys, head_alignment(op.style, head_dim, &[]), Entry::Read, rings[0])?;
    k.pairs("keys");
    k.octs("values", rings[1].resource.clone());
    k.raw("records", "vec2<u32>", Entry::Read, records);
    c.write(&mut k, "out", op.out, alignment(&[head_dim]))?;
    c.write_if(&mut k, "shares", op.shares, 1)?;
    c.uniform(&mut k, "lengths", op.lengths)?;
    c.uniform(&mut k, "frequencies", op.frequencies)?;
    let tiles = rows.len().div_ceil(cut.queries());
    describe_rows(op, c, &mut k, rings[0], rows);
    let heads = heads_in(op, rings[0]) / op.heads.batch;
    c.dispatch_grid(k, [tiles, heads, op.heads.batch])
}

/// Scores of all landmarks for many queries, if matrix units serve: whether they do.
pub(super) fn score_landmarks(op: &LandmarkScores, c: &mut Compiler<'_>) -> Result<bool> {
    let MemoryShape { batch, blocks, head_dim, .. } = op.memory;
    let tokens = c.rows(op.q.tensor) / batch - op.skip;
    let is_half = [op.q.tensor, op.landmarks].iter().all(|tensor| c.dtype(*tensor) == DType::F16);
    let Some(cut) = Cut::with(tokens, head_dim, c).filter(|_| is_half) else { return Ok(false) };
    let mut k = Kernel::new("score_landmarks", include_str!("../shaders/score_landmarks.wgsl"));
    k.constant("QUADS", head_dim / 4);
    cut.describe(&mut k, *BLOCKS.end(), op.style, head_dim);
    let q = head_alignment(op.style, head_dim, &[op.q.start, c.cols(op.q.tensor)]);
    c.read(&mut k, "q", op.q.tensor, q)?;
    c.read(&mut k, "landmarks", op.landmarks, head_alignment(op.style, head_dim, &[]))?;
    k.pairs("q");
    k.pairs("landmarks");
    c.uniform(&mut k, "lengths", op.lengths)?;
    c.uniform(&mut k, "frequencies", op.frequencies)?;
    c.write(&mut k, "out", op.out, alignment(&[blocks]))?;
    describe_scores(op, tokens, c, &mut k);
    c.dispatch_grid(k, [tokens.div_ceil(cut.queries()), op.heads, batch])?;
    Ok(true)
}

/// Extents, and which rows of the chunk.
fn describe_rows(op: &RetrievalAttention, c: &Compiler<'_>, k: &mut Kernel, ring: &Part, rows: Range<usize>) {
    extents(op, c, k, ring);
    k.param("first_row", rows.start);
    k.param("row_count", rows.len());
}
