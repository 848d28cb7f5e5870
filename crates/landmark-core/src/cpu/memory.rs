//! The landmark memory: append, score, select, attend.
//!
//! Retrieval groups the queries by the block that they chose, and computes each block's scores and values for
//! all of its queries as one matrix product. A key's position inside its block is applied to the key, the
//! position of its slot is taken off the query instead (`R(p) q · R(s + o) k = R(p - s) q · R(o) k`), so that a
//! block is turned once however many slots it stands in.

use super::gemm::{Mat, MatMut, gemm};
use super::grouped_softmax::{Factors, Miss};
use super::real::{Real, max, vectorised};
use super::rope::{angles, turn};
use super::storage::Memory;
use crate::ops::{
    AppendKv, LandmarkScores, MemoryShape, MemoryState, NO_BLOCK, RetrievalAttention, SelectBlocks, Selection,
};
use crate::tensor::Cols;
use rayon::prelude::*;

pub(super) fn append_kv<T: Real>(op: &AppendKv, m: &mut Memory<'_, T>) {
    let shape = op.memory;
    let MemoryShape { batch, block, kv_heads, head_dim, .. } = shape;
    let rows = m.rows(op.k.tensor) / batch;
    let [mut keys, mut values, mut landmarks] = [op.keys, op.values, op.landmarks].map(|t| m.take(t));
    let (k, v) = (m.real(op.k.tensor), m.real(op.v.tensor));
    let (k_stride, v_stride) = (m.cols(op.k.tensor), m.cols(op.v.tensor));
    for b in 0..batch {
        let length = m.u32(op.lengths)[b] as usize;
        for t in op.skip..rows {
            let position = length + t - op.skip;
            let (slot, offset) = (position / block % shape.slots(), position % block);
            for h in 0..kv_heads {
                let key = &k[(b * rows + t) * k_stride + op.k.start + h * head_dim..][..head_dim];
                let value = &v[(b * rows + t) * v_stride + op.v.start + h * head_dim..][..head_dim];
                let at = (((b * shape.slots() + slot) * kv_heads + h) * block + offset) * head_dim;
                keys[at..][..head_dim].copy_from_slice(key);
                values[at..][..head_dim].copy_from_slice(value);
                if offset + 1 == block {
                    let at = ((b * kv_heads + h) * shape.slots() + slot) * head_dim;
                    landmarks[at..][..head_dim].copy_from_slice(key);
                }
            }
        }
    }
    drop((k, v));
    for (tensor, lease) in [(op.keys, keys), (op.values, values), (op.landmarks, landmarks)] {
        m.put(tensor, lease);
    }
}

fn scale<T: Real>(head_dim: usize) -> T {
    T::of(1.0 / (head_dim as f64).sqrt())
}

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
        out.fill(T::NEG_INFINITY);
        if state.cached == 0 {
            return;
        }
        let kv = h / (heads / kv_heads);
        let mut turned = vec![T::ZERO; state.cached * head_dim];
        let mut last = None;
        for (j, key) in turned.chunks_exact_mut(head_dim).enumerate() {
            let at = ((b * kv_heads + kv) * shape.slots() + shape.slot(&state, j)) * head_dim;
            key.copy_from_slice(&landmarks[at..][..head_dim]);
            let position = (shape.index(&state, j) * block + block - 1) as i32;
            // All old blocks share one position.
            if last.as_ref().is_none_or(|&(p, _)| p != position) {
                last = Some((position, angles(position, &frequencies)));
            }
            if let Some((_, angles)) = &last {
                turn(key, op.style, angles);
            }
        }
        let start = (b * rows + op.skip) * q_stride + op.q.start + h * head_dim;
        let q = Mat::strided(&q[start..], queries, head_dim, q_stride);
        let keys = Mat::new(&turned, state.cached, head_dim);
        gemm(MatMut::strided(out, queries, state.cached, blocks), false, scale(head_dim), q, keys.t(), false);
    });
    drop((q, landmarks, frequencies));
    m.put(op.out, out);
}

pub(super) fn select_blocks<T: Real>(op: &SelectBlocks, m: &mut Memory<'_, T>) {
    let dims = m.info(op.scores).shape.dims().to_vec();
    let (batch, heads, queries, blocks) = (dims[0], dims[1], dims[2], dims[3]);
    let k = op.memory.top_k;
    if k == 0 {
        return;
    }
    let mut chosen = m.take_u32(op.chosen);
    let (scores, lengths) = (m.real(op.scores), m.u32(op.lengths));
    let per_row = heads * queries;
    chosen[..batch * per_row * k].par_chunks_mut(per_row * k).enumerate().for_each(|(b, chosen)| {
        let state = op.memory.state(lengths[b] as usize);
        let row = |h: usize, t: usize| &scores[((b * heads + h) * queries + t) * blocks..][..state.cached];
        let mut pick = Picker::new(&op.memory, &state);
        match op.selection {
            Selection::PerTokenAndHead => {
                for (i, chosen) in chosen.chunks_exact_mut(k).enumerate() {
                    pick.best(row(i / queries, i % queries), chosen);
                }
            }
            Selection::MaxOverHeads => {
                for t in 0..queries {
                    let top = maximum((0..heads).map(|h| row(h, t)), state.cached);
                    for h in 0..heads {
                        pick.best(&top, &mut chosen[(h * queries + t) * k..][..k]);
                    }
                }
            }
            Selection::MaxOverTokens => {
                for h in 0..heads {
                    let top = maximum((0..queries).map(|t| row(h, t)), state.cached);
                    for t in 0..queries {
                        pick.best(&top, &mut chosen[(h * queries + t) * k..][..k]);
                    }
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
        chosen.fill(NO_BLOCK);
        if k == 0 {
            return;
        }
        self.ring.resize(n, T::ZERO);
        for (j, &score) in scores.iter().enumerate() {
            self.ring[(self.first + j) % self.blocks] = score;
        }
        super::top_k::largest(&self.ring, k, &mut self.order);
        let oldest = self.first % self.blocks;
        for (chosen, &slot) in chosen.iter_mut().zip(&self.order[..k]) {
            *chosen = ((slot as usize + n - oldest) % n) as u32;
        }
        chosen[..k].sort_unstable();
    }
}

/// What the tasks of [`retrieval_attention`] read.
struct Retrieval<'a, T> {
    op: &'a RetrievalAttention,
    q: (&'a [T], usize),
    k: (&'a [T], usize),
    v: (&'a [T], usize),
    keys: &'a [T],
    values: &'a [T],
    chosen: Option<&'a [u32]>,
    /// Angles of every offset inside a block.
    offsets: Vec<Vec<(T, T)>>,
    /// Angles, to be taken off a query, of every multiple of the block that a slot can start at.
    slots: Vec<Vec<(T, T)>>,
}

/// The queries that chose one block: `(query, slot)` each.
type Choosers = Vec<(usize, usize)>;

pub(super) fn retrieval_attention<T: Real>(op: &RetrievalAttention, m: &mut Memory<'_, T>) {
    let (shape, heads) = (op.memory, op.heads);
    let rows = heads.queries;
    let out_len = heads.batch * heads.heads * rows * heads.head_dim;
    let mut workspace = m.take_workspace(out_len);
    let (q, k, v) = (m.real(op.q.tensor), m.real(op.k.tensor), m.real(op.v.tensor));
    let (keys, values, frequencies) = (m.real(op.keys), m.real(op.values), m.real(op.frequencies));
    let table =
        |positions: &mut dyn Iterator<Item = i32>| positions.map(|p| angles(p, &frequencies)).collect();
    let retrieval = Retrieval {
        op,
        q: (&q, m.cols(op.q.tensor)),
        k: (&k, m.cols(op.k.tensor)),
        v: (&v, m.cols(op.v.tensor)),
        keys: &keys,
        values: &values,
        chosen: op.chosen.map(|t| m.u32(t)),
        offsets: table(&mut (0..shape.block as i32)),
        slots: table(&mut (0..=shape.top_k as i32 + 1).map(|s| -s * shape.block as i32)),
    };
    let lengths = m.u32(op.lengths);
    workspace[..out_len].par_chunks_mut(rows * heads.head_dim).enumerate().for_each(|(task, out)| {
        let (b, h) = (task / heads.heads, task % heads.heads);
        vectorised(
            #[inline(always)]
            || retrieval.head(b, h, &shape.state(lengths[b] as usize), out),
        );
    });
    drop(retrieval);
    drop((q, k, v, keys, values, frequencies));
    let whole = Cols { tensor: op.out, start: 0, width: heads.heads * heads.head_dim };
    m.scatter_heads(whole, &workspace, heads.batch, rows, heads.head_dim);
    m.put_workspace(workspace);
}

impl<T: Real> Retrieval<'_, T> {
    /// One query head of one batch row. A row of scores holds
    /// `[context-miss token, retrieved blocks, unfinished block, chunk]`.
    fn head(&self, b: usize, h: usize, state: &MemoryState, out: &mut [T]) {
        let (shape, heads) = (&self.op.memory, &self.op.heads);
        let (d, rows) = (heads.head_dim, heads.queries);
        let kv = h / (heads.heads / heads.kv_heads);
        let skip = usize::from(self.op.miss);
        let retrieved = if self.chosen.is_some() { state.retrieved } else { 0 };
        let unfinished_at = skip + retrieved * shape.block;
        let chunk_at = unfinished_at + state.unfinished;
        let length = chunk_at + rows - skip;
        let at = |stride: usize, cols: Cols, head: usize| (b * rows * stride + cols.start + head * d, stride);
        let (q_at, q_stride) = at(self.q.1, self.op.q, h);
        let (k_at, k_stride) = at(self.k.1, self.op.k, kv);
        let (v_at, v_stride) = at(self.v.1, self.op.v, kv);
        let q = Mat::strided(&self.q.0[q_at..], rows, d, q_stride);
        let mut scores = vec![T::ZERO; rows * length];

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
        // The unfinished block, in the slot after the kept ones, at its true distance.
        let unfinished_slot = state.seen % shape.slots();
        if state.unfinished > 0 {
            let turned = self.turned_block(b, kv, unfinished_slot, state.unfinished);
            let queries = self.turned_queries(b, h, state.start / shape.block, &mut (0..rows));
            let to = MatMut::strided(&mut scores[unfinished_at..], rows, state.unfinished, length);
            let keys = Mat::new(&turned, state.unfinished, d);
            gemm(to, false, scale(d), Mat::new(&queries, rows, d), keys.t(), false);
        }
        let choosers = self.choosers(b, h, state, retrieved);
        for (j, list) in &choosers {
            self.score_block(b, h, kv, state, *j, list, &mut scores, length);
        }
        self.weigh(state, retrieved, &mut scores, length);

        // Values, in the same order.
        let p = |from: usize, count: usize, scores: &[T]| -> Vec<T> {
            scores.chunks_exact(length).flat_map(|row| row[from..from + count].iter().copied()).collect()
        };
        let v = Mat::strided(&self.v.0[v_at + skip * v_stride..], rows - skip, d, v_stride);
        let weights = Mat::strided(&scores[chunk_at..], rows, rows - skip, length);
        gemm(MatMut::new(out, rows, d), false, T::ONE, weights, v, false);
        if state.unfinished > 0 {
            let weights = p(unfinished_at, state.unfinished, &scores);
            let values = Mat::new(self.block(self.values, b, kv, unfinished_slot), state.unfinished, d);
            gemm(
                MatMut::new(out, rows, d),
                true,
                T::ONE,
                Mat::new(&weights, rows, state.unfinished),
                values,
                false,
            );
        }
        for (j, list) in &choosers {
            self.add_values(b, kv, state, *j, list, &scores, length, out);
        }
    }

    fn block<'a>(&self, ring: &'a [T], b: usize, kv: usize, slot: usize) -> &'a [T] {
        let m = &self.op.memory;
        let at = ((b * m.slots() + slot) * m.kv_heads + kv) * m.block * m.head_dim;
        &ring[at..][..m.block * m.head_dim]
    }

    /// The first `count` keys of a slot, turned by their offset in the block.
    fn turned_block(&self, b: usize, kv: usize, slot: usize, count: usize) -> Vec<T> {
        let d = self.op.memory.head_dim;
        let mut keys = self.block(self.keys, b, kv, slot)[..count * d].to_vec();
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
        let (d, rows) = (self.op.heads.head_dim, self.op.heads.queries);
        let mut queries = Vec::new();
        for t in which {
            let at = (b * rows + t) * self.q.1 + self.op.q.start + h * d;
            let first = queries.len();
            queries.extend_from_slice(&self.q.0[at..][..d]);
            turn(&mut queries[first..], self.op.style, &self.slots[slot]);
        }
        queries
    }

    /// For every block that somebody chose, who and into which slot.
    fn choosers(&self, b: usize, h: usize, state: &MemoryState, retrieved: usize) -> Vec<(usize, Choosers)> {
        let Some(chosen) = self.chosen else { return Vec::new() };
        let (heads, k) = (&self.op.heads, self.op.memory.top_k);
        let skip = usize::from(self.op.miss);
        let queries = heads.queries - skip;
        let mut lists: Vec<Choosers> = vec![Vec::new(); state.cached];
        for t in 0..queries {
            let row = &chosen[((b * heads.heads + h) * queries + t) * k..][..retrieved];
            for (slot, &j) in row.iter().enumerate() {
                lists[j as usize].push((t + skip, slot));
            }
        }
        lists.into_iter().enumerate().filter(|(_, list)| !list.is_empty()).collect()
    }

    fn score_block(
        &self,
        b: usize,
        h: usize,
        kv: usize,
        state: &MemoryState,
        j: usize,
        list: &Choosers,
        scores: &mut [T],
        length: usize,
    ) {
        let m = &self.op.memory;
        let (block, d, skip) = (m.block, m.head_dim, usize::from(self.op.miss));
        // Blocks among the last ones stand one slot later.
        let later = usize::from(m.index(state, j) > 0);
        let turned = self.turned_block(b, kv, m.slot(state, j), block);
        let mut queries = Vec::with_capacity(list.len() * d);
        for &(t, slot) in list {
            queries.extend(self.turned_queries(b, h, slot + later, &mut std::iter::once(t)));
        }
        let mut result = vec![T::ZERO; list.len() * block];
        let (q, k) = (Mat::new(&queries, list.len(), d), Mat::new(&turned, block, d));
        gemm(MatMut::new(&mut result, list.len(), block), false, scale(d), q, k.t(), false);
        for (&(t, slot), row) in list.iter().zip(result.chunks_exact(block)) {
            scores[t * length + skip + slot * block..][..block].copy_from_slice(row);
        }
    }

    /// Scores become weights, row by row.
    fn weigh(&self, state: &MemoryState, retrieved: usize, scores: &mut [T], length: usize) {
        let (block, skip) = (self.op.memory.block, usize::from(self.op.miss));
        let fetched = retrieved * block;
        // Landmarks of a row: the ends of the fetched blocks, then wherever the running block ends.
        let landmarks: Vec<usize> = (1..=length / block).map(|b| b * block - 1).collect();
        let gated = |l: usize| l < fetched;
        let cutoff = self.op.miss_cutoff.map(|c| T::of(f64::from(c)));
        let mut factors = Factors::default();
        for (t, row) in scores.chunks_exact_mut(length).enumerate() {
            if self.op.miss && t == 0 {
                row.fill(T::ZERO);
                continue;
            }
            let end = skip + fetched + state.unfinished + t - skip + 1;
            row[end..].fill(T::ZERO);
            let (miss_score, row) = row[..end].split_at_mut(skip);
            let visible = landmarks.partition_point(|&l| l < row.len());
            let miss = miss_score.first().map(|&score| Miss { score, gated: &gated, cutoff });
            factors.forward(row, 0, &landmarks[..visible], miss, |_| T::ONE);
        }
    }

    fn add_values(
        &self,
        b: usize,
        kv: usize,
        state: &MemoryState,
        j: usize,
        list: &Choosers,
        scores: &[T],
        length: usize,
        out: &mut [T],
    ) {
        let m = &self.op.memory;
        let (block, d, skip) = (m.block, m.head_dim, usize::from(self.op.miss));
        let values = Mat::new(self.block(self.values, b, kv, m.slot(state, j)), block, d);
        let weights: Vec<T> = list
            .iter()
            .flat_map(|&(t, slot)| scores[t * length + skip + slot * block..][..block].iter().copied())
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
            out[t * d..][..d].iter_mut().zip(row).for_each(|(out, &x)| *out += x);
        }
    }
}
