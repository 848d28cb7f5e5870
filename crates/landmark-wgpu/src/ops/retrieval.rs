//! Attention over retrieved blocks, the unfinished block and the chunk.
//!
//! Few queries, a step of generation, are split over their blocks: a workgroup for each, and a second launch that joins
//! the results. Of many queries each retrieves by a workgroup of its own, since each chose its own blocks; what they see
//! of the chunk is a product of matrices, in tiles of queries and keys, which then joins both. Matrix units do that, and
//! the retrieved blocks as well, where a device has them (`retrieval_units.rs`). What no path serves (the context-miss
//! token, long blocks) goes to a workgroup a query that does everything. Software has a way of its own (`retrieval_alone.rs`).

use super::SOFTMAX;
use super::landmark_attention::divide;
use super::memory::{FEW, append_threads, describe, describe_append, describe_choice};
use super::rope::{head_alignment, place, read_heads};
use super::{retrieval_alone, retrieval_units};
use crate::kernel::{Entry, Kernel, Resource};
use crate::plan::{Compiler, Part, alignment};
use landmark_core::ops::{AppendKv, MemoryShape, Op, Origin, RetrievalAttention, RopeStyle};
use landmark_core::{Result, Tensor};

/// Longest block of the tiles of `chunk_attention.wgsl`, and the queries of one.
const TILE: (usize, usize) = (64, 32);
/// Bytes of the records of one launch, at most: where they are more, some rows of the chunk come after the others.
pub(super) const MOST_RECORDS: u64 = 64 << 20;
/// Scores that a workgroup of `block_results.wgsl` keeps, at most.
const MOST_SCORES: usize = 1024;

/// The table of angles of the offsets inside a block and of the places of blocks, filled by the first op of a program
/// that wants it.
pub(super) fn angles(
    memory: &MemoryShape,
    style: RopeStyle,
    frequencies: Tensor,
    c: &mut Compiler<'_>,
) -> Result<Resource> {
    let (head_dim, block) = (memory.head_dim, memory.block);
    let rows = block + memory.top_k + 2;
    let name = format!("angles of {}, {rows} with blocks of {block}", frequencies.index());
    let (table, is_new) = c.table(name, (32 * rows * head_dim.div_ceil(8)) as u64);
    if is_new {
        let mut k = Kernel::new("angles", include_str!("../shaders/angles.wgsl"));
        k.constant("WORKGROUP", 64);
        k.rotary(style, head_dim);
        c.uniform(&mut k, "frequencies", frequencies)?;
        k.raw("angles", "vec4<f32>", Entry::Write, table.clone());
        k.param("rows", rows);
        k.param("block", block);
        c.dispatch(k, (rows * head_dim.div_ceil(8)).div_ceil(64))?;
    }
    Ok(table)
}

pub(super) fn retrieval_attention(op: &RetrievalAttention, c: &mut Compiler<'_>) -> Result<()> {
    let table = angles(&op.memory, op.style, op.frequencies, c)?;
    let (head_dim, rows, block) = (op.heads.head_dim, op.heads.queries, op.memory.block);
    let pieces = c.rings(op.keys, op.values)?;
    let append = append_behind(op, c).filter(|_| pieces.len() == 1);
    for (keys, values) in pieces {
        let rings = [&keys, &values];
        if !op.miss && c.works_alone() {
            retrieval_alone::attend(op, c, &table, rings)?;
            continue;
        }
        if is_split(op, c) {
            split(op, c, table.clone(), rings, append)?;
            continue;
        }
        if let Some(cut) = retrieval_units::Cut::of(op, c) {
            retrieval_units::attend(op, cut, c, &table, rings)?;
            continue;
        }
        if !op.miss && rows > FEW && block <= TILE.0 && head_dim <= 256 {
            tiled(op, c, table.clone(), rings)?;
            continue;
        }
        // With everything bound at once there would be nine storage buffers, one more than WebGPU promises.
        attend(op, c, table.clone(), rings, false)?;
        if op.shares.is_some() {
            attend(op, c, table.clone(), rings, true)?;
        }
    }
    Ok(())
}

/// Whether each block of each query has a workgroup: a step of generation.
pub(super) fn is_split(op: &RetrievalAttention, c: &Compiler<'_>) -> bool {
    let is_served = op.heads.queries <= FEW && op.memory.block <= MOST_SCORES && op.heads.head_dim <= 256;
    is_served && !op.miss && !c.works_alone()
}

/// The op behind a step's attention, if it stores the chunk that this reads: the launch that joins the results does that,
/// for by then nobody reads the rings any more.
fn append_behind<'a>(op: &RetrievalAttention, c: &Compiler<'a>) -> Option<&'a AppendKv> {
    let [Op::AppendKv(append)] = c.ahead(1..=1) else { return None };
    let is_alike = is_split(op, c)
        && append.skip == 0
        && [place(op.k, c), op.v] == [append.k, append.v]
        && [op.keys, op.values] == [append.keys, append.values];
    is_alike.then_some(append)
}

/// Binds queries, and keys of the chunk, in units.
pub(super) fn projections(op: &RetrievalAttention, c: &Compiler<'_>, k: &mut Kernel) -> Result<()> {
    k.rotary(op.style, op.heads.head_dim);
    let heads = (op.style, op.heads.head_dim);
    read_heads(k, c, ("q", "q_positions"), op.q, heads)?;
    read_heads(k, c, ("k", "k_positions"), op.k, heads)
}

pub(super) fn read_keys(
    op: &RetrievalAttention,
    c: &Compiler<'_>,
    k: &mut Kernel,
    ring: &Part,
) -> Result<()> {
    let alignment = head_alignment(op.style, op.heads.head_dim, &[]);
    c.ring(k, "keys", op.keys, alignment, Entry::Read, ring)?;
    k.pairs("keys");
    Ok(())
}

/// Where heads lie in the projections, and which of them.
pub(super) fn extents(op: &RetrievalAttention, c: &Compiler<'_>, k: &mut Kernel, ring: &Part) {
    let heads = &op.heads;
    describe(k, &op.memory);
    k.param("batch", heads.batch);
    k.param("rows", heads.queries);
    k.param("heads", heads.heads);
    k.param("first_head", ring.first);
    k.param("held", ring.rows.min(heads.kv_heads));
    k.param("share", heads.heads / heads.kv_heads);
    for (start, stride, cols) in [
        ("q_start", "q_cols", place(op.q, c)),
        ("k_start", "k_cols", place(op.k, c)),
        ("v_start", "v_cols", op.v),
    ] {
        k.param(start, cols.start);
        k.param(stride, c.cols(cols.tensor));
    }
    k.param("scale", 1.0 / (heads.head_dim as f32).sqrt());
}

/// Query heads whose keys lie in a piece of the rings, of all rows of the batch.
pub(super) fn heads_in(op: &RetrievalAttention, ring: &Part) -> usize {
    let heads = &op.heads;
    heads.batch * ring.rows.min(heads.kv_heads) * (heads.heads / heads.kv_heads)
}

/// Blocks whose results a workgroup leaves in one record, and how many records a query has.
#[derive(Clone, Copy)]
struct Records {
    slots: usize,
    items: usize,
    /// Whether the last one is the own blocks'.
    own: bool,
    /// Vectors of a record.
    length: usize,
}

impl Records {
    fn new(op: &RetrievalAttention, slots: usize, own: bool) -> Self {
        let slots = slots.max(1);
        let retrieved = if op.chosen.is_some() { op.memory.top_k.div_ceil(slots) } else { 0 };
        let length = op.heads.head_dim.div_ceil(4) + 1 + slots.div_ceil(4);
        Records { slots, items: retrieved + usize::from(own), own, length }
    }

    fn describe(&self, op: &RetrievalAttention, k: &mut Kernel) {
        k.constant("QUADS", op.heads.head_dim.div_ceil(4));
        k.constant("SLOTS", self.slots);
        k.constant("RECORD", self.length);
        k.param("items", self.items);
    }
}

/// A workgroup for each block of each query, and the own blocks of a query in one; then the outer softmax.
fn split(
    op: &RetrievalAttention,
    c: &mut Compiler<'_>,
    table: Resource,
    rings: [&Part; 2],
    append: Option<&AppendKv>,
) -> Result<()> {
    let (rows, head_dim) = (op.heads.queries, op.heads.head_dim);
    let layout = Records::new(op, 1, true);
    let queries = heads_in(op, rings[0]) * rows;
    let records = c.workspace((16 * queries * layout.items * layout.length) as u64);
    block_results(op, c, table, rings, records.clone(), layout, 0..rows)?;
    let mut k = Kernel::new("join_blocks", include_str!("../shaders/join_blocks.wgsl"));
    let threads = queries * head_dim.div_ceil(4);
    k.constant("WORKGROUP", 64);
    k.constant("HEAD", head_dim);
    layout.describe(op, &mut k);
    k.raw("records", "vec4<f32>", Entry::Read, records);
    c.write(&mut k, "out", op.out, alignment(&[head_dim]))?;
    c.write_if(&mut k, "shares", op.shares, 1)?;
    extents(op, c, &mut k, rings[0]);
    let Some(append) = append else {
        k.each("join");
        return c.dispatch(k, threads.div_ceil(64));
    };
    describe_append(append, c, &mut k, rings)?;
    k.constant("JOINING", threads);
    k.include(
        "fn join_or_append(i: u32) {
    if (i < JOINING) {
        join(i);
    } else {
        append(i - JOINING);
    }
}
",
    );
    k.each("join_or_append");
    let more = append_threads(append, c, rings[0].rows.min(append.memory.kv_heads));
    c.dispatch(k, (threads + more).div_ceil(64))?;
    c.take_next();
    Ok(())
}

/// A workgroup for what each query retrieves, then one for each tile of queries.
fn tiled(op: &RetrievalAttention, c: &mut Compiler<'_>, table: Resource, rings: [&Part; 2]) -> Result<()> {
    let (queries, heads, head_dim) = (op.heads.queries, heads_in(op, rings[0]), op.heads.head_dim);
    let layout = Records::new(op, op.memory.top_k.min(MOST_SCORES / op.memory.block).min(64), false);
    let of_row = (16 * heads * layout.items * layout.length) as u64;
    let most = MOST_RECORDS.min(c.largest_binding()) / of_row.max(1);
    let rows = queries.min((most as usize / TILE.1).max(1) * TILE.1);
    let records = c.workspace((of_row * rows as u64).max(16));
    for first in (0..queries).step_by(rows) {
        let some = first..queries.min(first + rows);
        if layout.items > 0 {
            block_results(op, c, table.clone(), rings, records.clone(), layout, some.clone())?;
        }
        let mut k = Kernel::new("chunk_attention", include_str!("../shaders/chunk_attention.wgsl"));
        k.constant("BLOCK", op.memory.block);
        k.flag("BLOCKS_SEEN", op.memory.origin == Origin::BlocksSeen);
        layout.describe(op, &mut k);
        projections(op, c, &mut k)?;
        read_keys(op, c, &mut k, rings[0])?;
        c.read(&mut k, "v", op.v.tensor, alignment(&[head_dim, op.v.start, c.cols(op.v.tensor)]))?;
        c.ring(&mut k, "values", op.values, alignment(&[head_dim]), Entry::Read, rings[1])?;
        k.raw("records", "vec4<f32>", Entry::Read, records.clone());
        c.write(&mut k, "out", op.out, alignment(&[head_dim]))?;
        c.write_if(&mut k, "shares", op.shares, 1)?;
        c.uniform(&mut k, "lengths", op.lengths)?;
        c.uniform(&mut k, "frequencies", op.frequencies)?;
        extents(op, c, &mut k, rings[0]);
        k.param("first_row", some.start);
        k.param("row_count", some.len());
        let tiles = some.len().div_ceil(TILE.1);
        c.dispatch_grid(k, [tiles, heads / op.heads.batch, op.heads.batch])?;
    }
    Ok(())
}

/// Records of some rows of the chunk, `(heads, rows, items)`.
fn block_results(
    op: &RetrievalAttention,
    c: &mut Compiler<'_>,
    table: Resource,
    rings: [&Part; 2],
    records: Resource,
    layout: Records,
    rows: std::ops::Range<usize>,
) -> Result<()> {
    let (block, head_dim) = (op.memory.block, op.heads.head_dim);
    // The own run: the unfinished block, and the chunk up to the query.
    let own = block - 1 + FEW;
    let mut k = Kernel::new("block_results", include_str!("../shaders/block_results.wgsl"));
    let choice = c.to_choose.take_if(|choice| op.chosen == Some(choice.chosen));
    k.working(choice.is_some());
    k.flag("CHOOSES", choice.is_some());
    let (scores, blocks) = if layout.own { (own, own.div_ceil(block)) } else { (0, 0) };
    k.constant("WORKGROUP", if layout.own { 256 } else { 128 });
    k.constant("SCORES", scores.max(layout.slots * block));
    k.constant("BLOCKS", blocks.max(layout.slots));
    k.flag("OWN", layout.own);
    k.flag("BLOCKS_SEEN", op.memory.origin == Origin::BlocksSeen);
    layout.describe(op, &mut k);
    projections(op, c, &mut k)?;
    read_keys(op, c, &mut k, rings[0])?;
    c.read(&mut k, "v", op.v.tensor, alignment(&[head_dim, op.v.start, c.cols(op.v.tensor)]))?;
    c.ring(&mut k, "values", op.values, alignment(&[head_dim]), Entry::Read, rings[1])?;
    match &choice {
        Some(choice) => {
            k.include(include_str!("../shaders/subgroup_choice.wgsl"));
            k.include(include_str!("../shaders/block_of_slot.wgsl"));
            describe_choice(choice, c, &mut k)?;
        }
        None => {
            k.include(
                "fn block_of_slot(choice: u32, slot: u32, b: u32, t: u32) -> u32 { return NO_BLOCK; }\n",
            );
            c.read_if(&mut k, "chosen", op.chosen, 1)?;
        }
    }
    k.raw("angles", "vec4<f32>", Entry::Read, table);
    k.raw("records", "vec4<f32>", Entry::Write, records);
    c.uniform(&mut k, "lengths", op.lengths)?;
    c.uniform(&mut k, "frequencies", op.frequencies)?;
    extents(op, c, &mut k, rings[0]);
    k.param("first_row", rows.start);
    k.param("row_count", rows.len());
    c.dispatch(k, heads_in(op, rings[0]) * rows.len() * layout.items)
}

/// The attention's result, or the shares of its blocks, of the heads whose keys lie in a piece of the rings.
fn attend(
    op: &RetrievalAttention,
    c: &mut Compiler<'_>,
    table: Resource,
    rings: [&Part; 2],
    is_shares: bool,
) -> Result<()> {
    let head_dim = op.heads.head_dim;
    let mut k = Kernel::new("retrieval_attention", include_str!("../shaders/retrieval_attention.wgsl"));
    divide(&mut k, c, head_dim)?;
    k.constant("TOP_K", op.memory.top_k.max(1));
    k.flag("MISS", op.miss);
    k.flag("RETRIEVES", op.chosen.is_some());
    k.flag("BLOCKS_SEEN", op.memory.origin == Origin::BlocksSeen);
    k.include(SOFTMAX);
    projections(op, c, &mut k)?;
    read_keys(op, c, &mut k, rings[0])?;
    c.read_if(&mut k, "chosen", op.chosen, 1)?;
    k.raw("angles", "vec4<f32>", Entry::Read, table);
    c.uniform(&mut k, "lengths", op.lengths)?;
    c.uniform(&mut k, "frequencies", op.frequencies)?;
    let wanted = |tensor: Tensor| (!is_shares).then_some(tensor);
    let v = alignment(&[head_dim, op.v.start, c.cols(op.v.tensor)]);
    c.read_if(&mut k, "v", wanted(op.v.tensor), v)?;
    if is_shares {
        k.absent("values");
    } else {
        c.ring(&mut k, "values", op.values, alignment(&[head_dim]), Entry::Read, rings[1])?;
    }
    c.write_if(&mut k, "out", wanted(op.out), alignment(&[head_dim]))?;
    c.write_if(&mut k, "shares", op.shares.filter(|_| is_shares), 1)?;
    extents(op, c, &mut k, rings[0]);
    k.param("cutoff", op.miss_cutoff.unwrap_or(0.0));
    c.dispatch(k, heads_in(op, rings[0]) * op.heads.queries)
}
