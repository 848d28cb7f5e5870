//! The landmark memory: append, score, select, attend.
//!
//! Retrieval groups the queries by the block that they chose, and computes each block's scores and values for
//! all of its queries as one matrix product. A key's position inside its block is applied to the key, the
//! position of its slot is taken off the query instead (`R(p) q · R(s + o) k = R(p - s) q · R(o) k`), so that a
//! block is turned once however many slots it stands in.
//!
//! Where the rings are kept in pages, the chosen blocks are fetched in batches that fit the budget, keys for the
//! scores and then values for the result. The order of the blocks, and so every sum, is the same with and without.

use super::gemm::{Mat, MatMut, gemm};
use super::grouped_softmax::{Factors, Miss};
use super::real::{Real, dot, max, vectorised};
use super::rope::{angles, turn};
use super::storage::{Memory, Ring};
use crate::error::Result;
use crate::ops::{
    AppendKv, LandmarkScores, MemoryShape, MemoryState, NO_BLOCK, RetrievalAttention, SelectBlocks, Selection,
};
use crate::paging::PageId;
use crate::tensor::{Cols, Tensor};
use rayon::prelude::*;
use std::borrow::Cow;
use std::collections::BTreeMap;

pub(super) fn append_kv<T: Real>(op: &AppendKv, m: &mut Memory<'_, T>) -> Result<()> {
    let shape = op.memory;
    let MemoryShape { batch, block, kv_heads, head_dim, .. } = shape;
    let rows = m.rows(op.k.tensor) / batch;
    let counts = m.u32(op.counts).to_vec();
    let mut landmarks = m.take(op.landmarks);
    let k = (m.real(op.k.tensor), m.cols(op.k.tensor), op.k.start);
    for (b, &count) in counts.iter().enumerate() {
        let length = m.u32(op.lengths)[b] as usize;
        // Landmarks among positions `length .. length + count`.
        for position in (length..length + count as usize).filter(|p| p % block + 1 == block) {
            let slot = position / block % shape.slots();
            for h in 0..kv_heads {
                let row = b * rows + op.skip + position - length;
                let key = &k.0[row * k.1 + k.2 + h * head_dim..][..head_dim];
                landmarks[((b * kv_heads + h) * shape.slots() + slot) * head_dim..][..head_dim]
                    .copy_from_slice(key);
            }
        }
    }
    drop(k);
    m.put(op.landmarks, landmarks);
    append_to_ring(op, m, &counts, op.k, op.keys)?;
    append_to_ring(op, m, &counts, op.v, op.values)
}

/// Stores the keys or the values of a chunk, block by block: each is one page for each key head.
fn append_to_ring<T: Real>(
    op: &AppendKv,
    m: &mut Memory<'_, T>,
    counts: &[u32],
    from: Cols,
    ring: Tensor,
) -> Result<()> {
    let shape = op.memory;
    let MemoryShape { batch, block, kv_heads, head_dim, .. } = shape;
    let (rows, stride) = (m.rows(from.tensor) / batch, m.cols(from.tensor));
    let paged = m.paged(ring);
    let mut whole = paged.is_none().then(|| m.take(ring));
    let x = m.real(from.tensor);
    for (b, &count) in counts.iter().enumerate() {
        let length = m.u32(op.lengths)[b] as usize;
        let (mut position, end) = (length, length + count as usize);
        while position < end {
            let (slot, offset) = (position / block % shape.slots(), position % block);
            let here = (block - offset).min(end - position);
            for h in 0..kv_heads {
                let number = shape.page_of(b, slot, h);
                let store = |page: &mut [T]| {
                    for o in 0..here {
                        let row = b * rows + op.skip + position + o - length;
                        page[(offset + o) * head_dim..][..head_dim]
                            .copy_from_slice(&x[row * stride + from.start + h * head_dim..][..head_dim]);
                    }
                };
                match (&mut whole, paged) {
                    (Some(whole), _) => store(&mut whole[number * shape.page()..][..shape.page()]),
                    (None, Some(tensor)) => {
                        let id = PageId { tensor, page: number };
                        let mut pager = m.pager.borrow_mut();
                        let page = shape.page();
                        let mut page =
                            if offset == 0 { pager.fresh(id, page) } else { pager.take(id, page)? };
                        store(&mut page.data);
                        page.dirty = true;
                        pager.put(id, page)?;
                    }
                    (None, None) => unreachable!("a ring is whole or in pages"),
                }
            }
            position += here;
        }
    }
    drop(x);
    if let Some(whole) = whole {
        m.put(ring, whole);
    }
    Ok(())
}

fn scale<T: Real>(head_dim: usize) -> T {
    T::of(1.0 / (head_dim as f64).sqrt())
}

/// With fewer queries the scores are computed one by one. A product of so few rows treats its last columns unlike
/// the others, and equal landmarks (see [`super::top_k`]) would get scores that differ in the last bit.
const FEW_QUERIES: usize = 8;

pub(super) fn landmark_scores<T: Real>(op: &LandmarkScores, m: &mut Memory<'_, T>) {
    let shape = op.memory;
    let MemoryShape { batch, blocks, block, kv_heads, head_dim, .. } = shape;
    let rows = m.rows(op.q.tensor) / batch;
    let (queries, heads) = (rows - op.skip, op.heads);
    if blocks == 0 {
        return;
    }
    let mut out = m.take(op.out);
    let (q, landmarks, frequencies) = (m.real(op.q.tensor), m.real(op.landmarks), m.real(op.frequencies));
    let (lengths, q_stride) = (m.u32(op.lengths), m.cols(op.q.tensor));
    out.par_chunks_mut(queries * blocks).enumerate().for_each(|(task, out)| {
        let (b, h) = (task / heads, task % heads);
        let state = shape.state(lengths[b] as usize);
        let keys = (b * kv_heads + h / (heads / kv_heads)) * shape.slots() * head_dim;
        let keys = &landmarks[keys..][..shape.slots() * head_dim];
        let start = b * rows * q_stride + op.skip * q_stride + op.q.start + h * head_dim;
        let q: Vec<T> = (0..queries).flat_map(|t| &q[start + t * q_stride..][..head_dim]).copied().collect();
        // All old blocks share one position. It is taken off the queries, and their keys are read where they lie.
        let old = state.cached - state.retrieved;
        let mut away = q.clone();
        let angles_back = angles(-((block - 1) as i32), &frequencies);
        away.chunks_exact_mut(head_dim).for_each(|q| turn(q, op.style, &angles_back));
        if old > 0 {
            let (first, last) = (shape.slot(&state, 0), shape.slot(&state, old - 1));
            // One product for all of them, though the ring may have come round: equal keys get equal scores only
            // from one and the same product.
            let lying: Cow<'_, [T]> = if first <= last {
                Cow::Borrowed(&keys[first * head_dim..(last + 1) * head_dim])
            } else {
                Cow::Owned([&keys[first * head_dim..], &keys[..(last + 1) * head_dim]].concat())
            };
            score(&away, &lying, head_dim, out, blocks);
        }
        for j in old..state.cached {
            let mut key = keys[shape.slot(&state, j) * head_dim..][..head_dim].to_vec();
            let position = (shape.index(&state, j) * block + block - 1) as i32;
            turn(&mut key, op.style, &angles(position, &frequencies));
            score(&q, &key, head_dim, &mut out[j..], blocks);
        }
    });
    drop((q, landmarks, frequencies));
    m.put(op.out, out);
}

/// Scores of keys in columns of `out`, a row of `stride` for each query.
fn score<T: Real>(q: &[T], keys: &[T], head_dim: usize, out: &mut [T], stride: usize) {
    let (queries, count) = (q.len() / head_dim, keys.len() / head_dim);
    if queries >= FEW_QUERIES && count > 1 {
        let (q, keys) = (Mat::new(q, queries, head_dim), Mat::new(keys, count, head_dim));
        gemm(MatMut::strided(out, queries, count, stride), false, scale(head_dim), q, keys.t(), false);
        return;
    }
    vectorised(
        #[inline(always)]
        || {
            for (q, out) in q.chunks_exact(head_dim).zip(out.chunks_mut(stride)) {
                for (out, key) in out.iter_mut().zip(keys.chunks_exact(head_dim)) {
                    *out = scale::<T>(head_dim) * dot(q, key);
                }
            }
        },
    );
}

pub(super) fn select_blocks<T: Real>(op: &SelectBlocks, m: &mut Memory<'_, T>) {
    let dims = m.info(op.scores).shape.dims().to_vec();
    let (batch, heads, queries, blocks) = (dims[0], dims[1], dims[2], dims[3]);
    let k = op.memory.top_k;
    if k == 0 {
        return;
    }
    let mut chosen = m.take_u32(op.chosen);
    let (scores, lengths, counts) = (m.real(op.scores), m.u32(op.lengths), m.u32(op.counts));
    // A task is a head of a row of the batch, but where heads choose together it is the whole row.
    let together = if op.selection == Selection::MaxOverHeads { heads } else { 1 };
    let of_task = together * queries * k;
    chosen[..batch * heads * queries * k].par_chunks_mut(of_task).enumerate().for_each(|(task, chosen)| {
        let (b, first) = (task / (heads / together), task % (heads / together));
        let state = op.memory.state(lengths[b] as usize);
        let row = |h: usize, t: usize| &scores[((b * heads + h) * queries + t) * blocks..][..state.cached];
        let count = (counts[b] as usize).min(queries);
        let mut pick = Picker::new(&op.memory, &state);
        chosen.fill(NO_BLOCK);
        match op.selection {
            Selection::PerTokenAndHead => {
                for (t, chosen) in chosen.chunks_exact_mut(k).enumerate().take(count) {
                    pick.best(row(first, t), chosen);
                }
            }
            Selection::MaxOverHeads => {
                for t in 0..count {
                    let top = maximum((0..heads).map(|h| row(h, t)), state.cached);
                    for h in 0..heads {
                        pick.best(&top, &mut chosen[(h * queries + t) * k..][..k]);
                    }
                }
            }
            Selection::MaxOverTokens => {
                let top = maximum((0..count).map(|t| row(first, t)), state.cached);
                for chosen in chosen.chunks_exact_mut(k).take(count) {
                    pick.best(&top, chosen);
                }
            }
        }
    });
    drop(scores);
    m.put_u32(op.chosen, chosen);
}

/// Largest probability that any of the rows of scores gives to each block.
fn maximum<'a, T: Real>(rows: impl Iterator<Item = &'a [T]>, cached: usize) -> Vec<T> {
    let mut top = vec![T::ZERO; cached];
    let mut p = vec![T::ZERO; cached];
    for row in rows {
        p.copy_from_slice(row);
        let shift = max(&p);
        let sum = super::real::exp_sum(&mut p, shift);
        top.iter_mut().zip(&p).for_each(|(top, &p)| *top = top.max(p / sum));
    }
    top
}

/// Finds the best blocks of a row of scores; kept from row to row to save allocations.
///
/// The scores are ranked in the order of the *released* ring, block `a` of the sequence in slot
/// `a % blocks`: with equal scores, that order decides (see [`super::top_k`]).
struct Picker<T> {
    k: usize,
    blocks: usize,
    first: usize,
    ring: Vec<T>,
    order: Vec<u32>,
}

impl<T: Real> Picker<T> {
    fn new(memory: &MemoryShape, state: &MemoryState) -> Self {
        let first = state.seen - state.cached;
        Picker { k: memory.top_k, blocks: memory.blocks, first, ring: Vec::new(), order: Vec::new() }
    }

    fn best(&mut self, scores: &[T], chosen: &mut [u32]) {
        let n = scores.len();
        let k = self.k.min(n);
        if k == 0 {
            return;
        }
        let oldest = self.first % self.blocks;
        let ranked = if oldest == 0 {
            scores
        } else {
            self.ring.resize(n, T::ZERO);
            self.ring[oldest..].copy_from_slice(&scores[..n - oldest]);
            self.ring[..oldest].copy_from_slice(&scores[n - oldest..]);
            &self.ring
        };
        super::top_k::largest(ranked, k, &mut self.order);
        for (chosen, &slot) in chosen.iter_mut().zip(&self.order[..k]) {
            *chosen = ((slot as usize + n - oldest) % n) as u32;
        }
        chosen[..k].sort_unstable();
    }
}

/// What the tasks of [`retrieval_attention`] read, besides the rings.
struct Retrieval<'a, T> {
    op: &'a RetrievalAttention,
    q: (&'a [T], usize),
    k: (&'a [T], usize),
    v: (&'a [T], usize),
    chosen: Option<&'a [u32]>,
    /// Angles of every offset inside a block.
    offsets: Vec<Vec<(T, T)>>,
    /// Angles, to be taken off a query, of every multiple of the block that a slot can start at.
    slots: Vec<Vec<(T, T)>>,
}

/// One query head of one batch row.
struct Task<'a, T> {
    b: usize,
    h: usize,
    /// Key head.
    kv: usize,
    state: MemoryState,
    /// Blocks retrieved.
    retrieved: usize,
    /// What is read of the rings, by page, ascending: the order in which values are added up.
    parts: Vec<(usize, Part)>,
    /// Scores, then weights, of `[context-miss token, retrieved blocks, unfinished block, chunk]`, a row a query.
    scores: Vec<T>,
    /// Length of a row of scores.
    length: usize,
    /// Result `(rows, D)`.
    out: &'a mut [T],
    /// Share of each chosen block `(queries, k)`; empty where nobody asks.
    shares: Vec<T>,
}

/// The queries that chose one block: `(query, slot)` each.
type Choosers = Vec<(usize, usize)>;

/// One block that a task reads.
enum Part {
    /// The unfinished one, which every query sees.
    Unfinished,
    /// A cached one, by its number among those, with the queries that chose it.
    Chosen(usize, Choosers),
}

pub(super) fn retrieval_attention<T: Real>(op: &RetrievalAttention, m: &mut Memory<'_, T>) -> Result<()> {
    let (shape, heads) = (op.memory, op.heads);
    let rows = heads.queries;
    let out_len = heads.batch * heads.heads * rows * heads.head_dim;
    let mut workspace = m.take_workspace(out_len);
    let (q, k, v) = (m.real(op.q.tensor), m.real(op.k.tensor), m.real(op.v.tensor));
    let frequencies = m.real(op.frequencies);
    let table =
        |positions: &mut dyn Iterator<Item = i32>| positions.map(|p| angles(p, &frequencies)).collect();
    let retrieval = Retrieval {
        op,
        q: (&q, m.cols(op.q.tensor)),
        k: (&k, m.cols(op.k.tensor)),
        v: (&v, m.cols(op.v.tensor)),
        chosen: op.chosen.map(|t| m.u32(t)),
        offsets: table(&mut (0..shape.block as i32)),
        slots: table(&mut (0..=shape.top_k as i32 + 1).map(|s| -s * shape.block as i32)),
    };
    let lengths = m.u32(op.lengths);
    let pieces = workspace[..out_len].par_chunks_mut(rows * heads.head_dim).enumerate();
    let mut tasks: Vec<Task<'_, T>> = pieces.map(|(task, out)| retrieval.begin(task, lengths, out)).collect();
    // Pages in the order in which their blocks are added up: ascending for each row and key head.
    let mut wanted: Vec<usize> =
        tasks.iter().flat_map(|task| task.parts.iter().map(|(page, _)| *page)).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let each = |tasks: &mut [Task<'_, T>], work: &(dyn Fn(&mut Task<'_, T>) + Sync)| {
        tasks.par_iter_mut().for_each(|task| {
            vectorised(
                #[inline(always)]
                || work(task),
            );
        });
    };
    for batch in wanted.chunks(m.pages_at_once(op.keys, shape.page())) {
        let keys = m.fetch(op.keys, shape.page(), batch.iter().copied())?;
        each(&mut tasks, &|task| retrieval.score(task, &keys, batch));
        m.release(op.keys, keys)?;
    }
    each(&mut tasks, &|task| retrieval.weigh(task));
    for batch in wanted.chunks(m.pages_at_once(op.values, shape.page())) {
        let values = m.fetch(op.values, shape.page(), batch.iter().copied())?;
        each(&mut tasks, &|task| retrieval.add_values(task, &values, batch));
        m.release(op.values, values)?;
    }
    let shares: Vec<T> = tasks.into_iter().flat_map(|task| task.shares).collect();
    drop(retrieval);
    drop((q, k, v, frequencies));
    if let Some(tensor) = op.shares {
        let mut to = m.take(tensor);
        to.copy_from_slice(&shares);
        m.put(tensor, to);
    }
    let whole = Cols { tensor: op.out, start: 0, width: heads.heads * heads.head_dim };
    m.scatter_heads(whole, &workspace, heads.batch, rows, heads.head_dim);
    m.put_workspace(workspace);
    Ok(())
}

impl<T: Real> Retrieval<'_, T> {
    /// A task with the scores of its chunk.
    fn begin<'o>(&self, task: usize, lengths: &[u32], out: &'o mut [T]) -> Task<'o, T> {
        let (shape, heads) = (&self.op.memory, &self.op.heads);
        let (b, h) = (task / heads.heads, task % heads.heads);
        let (d, rows, skip) = (heads.head_dim, heads.queries, usize::from(self.op.miss));
        let state = shape.state(lengths[b] as usize);
        let kv = h / (heads.heads / heads.kv_heads);
        let retrieved = if self.chosen.is_some() { state.retrieved } else { 0 };
        let chunk_at = skip + retrieved * shape.block + state.unfinished;
        let length = chunk_at + rows - skip;
        let mut scores = vec![T::ZERO; rows * length];
        let (q_at, q_stride) = self.first(self.q.1, self.op.q, b, h);
        let (k_at, k_stride) = self.first(self.k.1, self.op.k, b, kv);
        let q = Mat::strided(&self.q.0[q_at..], rows, d, q_stride);
        // The chunk itself, and before it the context-miss token.
        let k = Mat::strided(&self.k.0[k_at + skip * k_stride..], rows - skip, d, k_stride);
        gemm(
            MatMut::strided(&mut scores[chunk_at..], rows, rows - skip, length),
            false,
            scale(d),
            q,
            k.t(),
            false,
        );
        if self.op.miss {
            let miss = Mat::strided(&self.k.0[k_at..], 1, d, k_stride);
            gemm(MatMut::strided(&mut scores, rows, 1, length), false, scale(d), q, miss.t(), false);
        }
        let page = |slot: usize| shape.page_of(b, slot, kv);
        let chosen = self.choosers(b, h, &state).into_iter();
        let chosen = chosen.map(|(j, list)| (page(shape.slot(&state, j)), Part::Chosen(j, list)));
        let unfinished = (state.unfinished > 0).then(|| (page(state.seen % shape.slots()), Part::Unfinished));
        let mut parts: Vec<(usize, Part)> = chosen.chain(unfinished).collect();
        parts.sort_unstable_by_key(|(page, _)| *page);
        Task { b, h, kv, state, retrieved, parts, scores, length, out, shares: Vec::new() }
    }

    /// First element of a head's columns in row `b` of the batch, and the stride of its rows.
    fn first(&self, stride: usize, cols: Cols, b: usize, head: usize) -> (usize, usize) {
        (b * self.op.heads.queries * stride + cols.start + head * self.op.heads.head_dim, stride)
    }

    /// Scores of those blocks whose keys are in `batch`.
    fn score(&self, task: &mut Task<'_, T>, keys: &Ring<'_, T>, batch: &[usize]) {
        let parts = std::mem::take(&mut task.parts);
        for (page, part) in parts.iter().filter(|(page, _)| batch.binary_search(page).is_ok()) {
            let keys = keys.page(*page, self.op.memory.page());
            match part {
                Part::Unfinished => self.score_unfinished(task, keys),
                Part::Chosen(j, list) => self.score_block(task, *j, list, keys),
            }
        }
        task.parts = parts;
    }

    /// Adds the values of those blocks that are in `batch`.
    fn add_values(&self, task: &mut Task<'_, T>, values: &Ring<'_, T>, batch: &[usize]) {
        let parts = std::mem::take(&mut task.parts);
        for (page, part) in parts.iter().filter(|(page, _)| batch.binary_search(page).is_ok()) {
            let values = values.page(*page, self.op.memory.page());
            match part {
                Part::Unfinished => self.add_unfinished(task, values),
                Part::Chosen(_, list) => self.add_block(task, list, values),
            }
        }
        task.parts = parts;
    }

    /// The unfinished block, at its true distance.
    fn score_unfinished(&self, task: &mut Task<'_, T>, keys: &[T]) {
        let (shape, d, rows) = (&self.op.memory, self.op.heads.head_dim, self.op.heads.queries);
        let unfinished = task.state.unfinished;
        let turned = self.turned_block(keys, unfinished);
        let slot = task.state.start / shape.block;
        let queries = self.turned_queries(task.b, task.h, slot, &mut (0..rows));
        let at = usize::from(self.op.miss) + task.retrieved * shape.block;
        let to = MatMut::strided(&mut task.scores[at..], rows, unfinished, task.length);
        let keys = Mat::new(&turned, unfinished, d);
        gemm(to, false, scale(d), Mat::new(&queries, rows, d), keys.t(), false);
    }

    fn add_unfinished(&self, task: &mut Task<'_, T>, values: &[T]) {
        let (d, rows, unfinished) = (self.op.heads.head_dim, self.op.heads.queries, task.state.unfinished);
        let at = usize::from(self.op.miss) + task.retrieved * self.op.memory.block;
        let weights = Mat::strided(&task.scores[at..], rows, unfinished, task.length);
        gemm(MatMut::new(task.out, rows, d), true, T::ONE, weights, Mat::new(values, unfinished, d), false);
    }

    /// The first `count` keys of a block, turned by their offset in it.
    fn turned_block(&self, keys: &[T], count: usize) -> Vec<T> {
        let d = self.op.memory.head_dim;
        let mut keys = keys[..count * d].to_vec();
        for (key, angles) in keys.chunks_exact_mut(d).zip(&self.offsets) {
            turn(key, self.op.style, angles);
        }
        keys
    }

    /// Queries with the start of slot number `slot` taken off their position.
    fn turned_queries(
        &self,
        b: usize,
        h: usize,
        slot: usize,
        which: &mut dyn Iterator<Item = usize>,
    ) -> Vec<T> {
        let (d, (at, stride)) = (self.op.heads.head_dim, self.first(self.q.1, self.op.q, b, h));
        let mut queries = Vec::new();
        for t in which {
            let first = queries.len();
            queries.extend_from_slice(&self.q.0[at + t * stride..][..d]);
            turn(&mut queries[first..], self.op.style, &self.slots[slot]);
        }
        queries
    }

    /// For every block that somebody chose, who and into which slot.
    fn choosers(&self, b: usize, h: usize, state: &MemoryState) -> Vec<(usize, Choosers)> {
        let Some(chosen) = self.chosen else { return Vec::new() };
        let (heads, k) = (&self.op.heads, self.op.memory.top_k);
        let skip = usize::from(self.op.miss);
        let queries = heads.queries - skip;
        let mut lists: BTreeMap<usize, Choosers> = BTreeMap::new();
        for t in 0..queries {
            let row = &chosen[((b * heads.heads + h) * queries + t) * k..][..state.retrieved];
            for (slot, &j) in row.iter().enumerate().filter(|&(_, &j)| j != NO_BLOCK) {
                lists.entry(j as usize).or_default().push((t + skip, slot));
            }
        }
        lists.into_iter().collect()
    }

    fn score_block(&self, task: &mut Task<'_, T>, j: usize, list: &Choosers, keys: &[T]) {
        let m = &self.op.memory;
        let (block, d, skip) = (m.block, m.head_dim, usize::from(self.op.miss));
        // Blocks among the last ones stand one slot later.
        let later = usize::from(m.index(&task.state, j) > 0);
        let turned = self.turned_block(keys, block);
        let mut queries = Vec::with_capacity(list.len() * d);
        for &(t, slot) in list {
            queries.extend(self.turned_queries(task.b, task.h, slot + later, &mut std::iter::once(t)));
        }
        let mut result = vec![T::ZERO; list.len() * block];
        let (q, k) = (Mat::new(&queries, list.len(), d), Mat::new(&turned, block, d));
        gemm(MatMut::new(&mut result, list.len(), block), false, scale(d), q, k.t(), false);
        for (&(t, slot), row) in list.iter().zip(result.chunks_exact(block)) {
            task.scores[t * task.length + skip + slot * block..][..block].copy_from_slice(row);
        }
    }

    /// Scores become weights, row by row; the chunk's values begin the result.
    fn weigh(&self, task: &mut Task<'_, T>) {
        let (block, skip) = (self.op.memory.block, usize::from(self.op.miss));
        let (length, fetched) = (task.length, task.retrieved * block);
        // Landmarks of a row: the ends of the fetched blocks, then wherever the running block ends.
        let landmarks: Vec<usize> = (1..=length / block).map(|b| b * block - 1).collect();
        let gated = |l: usize| l < fetched;
        let cutoff = self.op.miss_cutoff.map(|c| T::of(f64::from(c)));
        let mut factors = Factors::default();
        for (t, row) in task.scores.chunks_exact_mut(length).enumerate() {
            if self.op.miss && t == 0 {
                row.fill(T::ZERO);
                continue;
            }
            let end = skip + fetched + task.state.unfinished + t - skip + 1;
            row[end..].fill(T::ZERO);
            let (miss_score, row) = row[..end].split_at_mut(skip);
            let visible = landmarks.partition_point(|&l| l < row.len());
            let miss = miss_score.first().map(|&score| Miss { score, gated: &gated, cutoff });
            factors.forward(row, 0, &landmarks[..visible], miss, |_| T::ONE);
            if self.op.shares.is_some() {
                let shares = factors.shares().iter().copied().take(task.retrieved);
                let none = std::iter::repeat_n(T::ZERO, self.op.memory.top_k - task.retrieved);
                task.shares.extend(shares.chain(none));
            }
        }
        let (d, rows) = (self.op.heads.head_dim, self.op.heads.queries);
        let chunk_at = skip + fetched + task.state.unfinished;
        let (v_at, v_stride) = self.first(self.v.1, self.op.v, task.b, task.kv);
        let v = Mat::strided(&self.v.0[v_at + skip * v_stride..], rows - skip, d, v_stride);
        let weights = Mat::strided(&task.scores[chunk_at..], rows, rows - skip, length);
        gemm(MatMut::new(task.out, rows, d), false, T::ONE, weights, v, false);
    }

    fn add_block(&self, task: &mut Task<'_, T>, list: &Choosers, values: &[T]) {
        let m = &self.op.memory;
        let (block, d, skip) = (m.block, m.head_dim, usize::from(self.op.miss));
        let values = Mat::new(values, block, d);
        let weights: Vec<T> = list
            .iter()
            .flat_map(|&(t, slot)| {
                task.scores[t * task.length + skip + slot * block..][..block].iter().copied()
            })
            .collect();
        let mut result = vec![T::ZERO; list.len() * d];
        gemm(
            MatMut::new(&mut result, list.len(), d),
            false,
            T::ONE,
            Mat::new(&weights, list.len(), block),
            values,
            false,
        );
        for (&(t, _), row) in list.iter().zip(result.chunks_exact(d)) {
            task.out[t * d..][..d].iter_mut().zip(row).for_each(|(out, &x)| *out += x);
        }
    }
}
