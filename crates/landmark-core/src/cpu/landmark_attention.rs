//! Landmark attention over keys that are all at hand: training, and evaluation without a memory.
//!
//! One task a (row of the batch, key head); inside it, queries go in tiles, so that scores are two small
//! matrix products and a pass of the grouped softmax over each row of the tile. Scores are computed again in
//! the backward pass.

use super::gemm::{Mat, MatMut, gemm};
use super::grouped_softmax::{Factors, Miss};
use super::real::{Real, vectorised};
use super::storage::Memory;
use crate::ops::{Blocks, Heads, LandmarkAttention, LandmarkAttentionBackward};
use crate::random::Stream;
use crate::tensor::Cols;
use rayon::prelude::*;

/// Queries of a tile.
const TILE: usize = 64;

/// One head of a `(B, rows, columns)` tensor.
#[derive(Clone, Copy)]
struct Side<'a, T> {
    data: &'a [T],
    stride: usize,
    rows: usize,
    start: usize,
}

impl<'a, T> Side<'a, T> {
    fn new<'m>(m: &Memory<'m, T>, data: &'a [T], cols: Cols, rows: usize) -> Self
    where
        T: Real,
    {
        Side { data, stride: m.cols(cols.tensor), rows, start: cols.start }
    }

    /// Rows `from .. from + count` of head `h` in batch row `b`.
    fn mat(&self, b: usize, h: usize, from: usize, count: usize, head_dim: usize) -> Mat<'a, T> {
        let offset = (b * self.rows + from) * self.stride + self.start + h * head_dim;
        Mat::strided(&self.data[offset..], count, head_dim, self.stride)
    }
}

/// Everything that is the same for all heads of a batch row.
struct Row<'a> {
    /// Landmarks among the keys, ascending; the context-miss token is not counted.
    landmarks: Vec<usize>,
    first_key: usize,
    gated: Option<&'a [u32]>,
}

/// What the tasks read.
struct Setting<'a, T> {
    heads: Heads,
    q: Side<'a, T>,
    k: Side<'a, T>,
    v: Side<'a, T>,
    rows: Vec<Row<'a>>,
    miss: bool,
    dropout: Option<(Stream, f32)>,
    group_dropout: Option<(Stream, f32)>,
}

fn landmarks_of<T: Real>(m: &Memory<'_, T>, blocks: Blocks, b: usize, tokens: usize) -> Vec<usize> {
    match blocks {
        Blocks::None => Vec::new(),
        Blocks::Regular { block, phases } => {
            let first = block - 1 - m.u32(phases)[b] as usize % block;
            (first..tokens).step_by(block).collect()
        }
        Blocks::Anywhere { is_landmark } => {
            let mask = &m.u32(is_landmark)[b * tokens..][..tokens];
            (0..tokens).filter(|&j| mask[j] != 0).collect()
        }
    }
}

impl<'a, T: Real> Setting<'a, T> {
    fn new(op: &LandmarkAttention, m: &'a Memory<'_, T>, q: &'a [T], k: &'a [T], v: &'a [T]) -> Self {
        let heads = op.heads;
        let tokens = heads.keys - usize::from(op.miss.is_some());
        let row = |b| Row {
            landmarks: landmarks_of(m, op.blocks, b, tokens),
            first_key: op.first_key.map_or(0, |t| m.u32(t)[b] as usize),
            gated: op.miss.and_then(|miss| miss.gated).map(|t| &m.u32(t)[b * tokens..][..tokens]),
        };
        let random = op.randomness.map(|r| (m.u32(r.seed), r));
        // Two streams of one op: the salts of ops stay below 2^15.
        let stream = |bit: u32, p: fn(&crate::ops::Randomness) -> f32| {
            random.and_then(|(seed, r)| (p(&r) > 0.0).then(|| (Stream::new(seed, r.salt | bit), p(&r))))
        };
        Setting {
            heads,
            q: Side::new(m, q, op.q, heads.queries),
            k: Side::new(m, k, op.k, heads.keys),
            v: Side::new(m, v, op.v, heads.keys),
            rows: (0..heads.batch).map(row).collect(),
            miss: op.miss.is_some(),
            dropout: stream(0, |r| r.dropout),
            group_dropout: stream(1 << 15, |r| r.group_dropout),
        }
    }

    fn scale(&self) -> T {
        T::of(1.0 / (self.heads.head_dim as f64).sqrt())
    }

    /// Index of an attention weight among all of them, for its random bits.
    fn index(&self, b: usize, h: usize, query: usize, key: usize) -> u64 {
        (((b * self.heads.heads + h) * self.heads.queries + query) * self.heads.keys + key) as u64
    }

    /// Scores of a tile of queries in place of `scores`, `(count, keys)`; returns how many keys they see.
    fn scores(&self, b: usize, h: usize, from: usize, count: usize, scores: &mut [T]) -> usize {
        let Heads { queries, keys, head_dim, .. } = self.heads;
        let seen = keys - queries + from + count;
        let q = self.q.mat(b, h, from, count, head_dim);
        let k = self.k.mat(b, h / self.group(), 0, seen, head_dim);
        gemm(MatMut::strided(scores, count, seen, keys), false, self.scale(), q, k.t(), false);
        seen
    }

    fn group(&self) -> usize {
        self.heads.heads / self.heads.kv_heads
    }

    /// Scores of one query become weights; `row` is its row of the tile.
    fn weigh(&self, b: usize, h: usize, query: usize, row: &mut [T], seen: usize, factors: &mut Factors<T>) {
        let shift = usize::from(self.miss);
        let own = self.heads.keys - self.heads.queries + query;
        row[own + 1..seen].fill(T::ZERO);
        if self.miss && query == 0 {
            row[..seen].fill(T::ZERO);
            factors.lse = T::NEG_INFINITY;
            return;
        }
        let info = &self.rows[b];
        let (miss_score, row) = row.split_at_mut(shift);
        let row = &mut row[..own + 1 - shift];
        let visible = info.landmarks.partition_point(|&l| l < row.len());
        let gated = |l: usize| info.gated.is_some_and(|g| g[l] != 0);
        let miss = miss_score.first().map(|&score| Miss { score, gated: &gated, cutoff: None });
        let keep = |l: usize| match &self.group_dropout {
            None => T::ONE,
            Some((stream, p)) => keep_factor(stream, self.index(b, h, query, l + shift), *p),
        };
        factors.forward(row, info.first_key, &info.landmarks[..visible], miss, keep);
        miss_score.fill(T::ZERO);
    }

    /// Applies attention dropout to a row: weights in the forward pass, their gradients in the backward one.
    fn drop_keys(&self, b: usize, h: usize, query: usize, row: &mut [T]) {
        if let Some((stream, p)) = &self.dropout {
            for (j, value) in row.iter_mut().enumerate() {
                *value *= keep_factor(stream, self.index(b, h, query, j), *p);
            }
        }
    }
}

fn keep_factor<T: Real>(stream: &Stream, index: u64, p: f32) -> T {
    if stream.draw(index, p) { T::ZERO } else { T::of(1.0 / (1.0 - f64::from(p))) }
}

/// First query and number of queries of every tile.
fn tiles(queries: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..queries).step_by(TILE).map(move |from| (from, TILE.min(queries - from)))
}

pub(super) fn forward<T: Real>(op: &LandmarkAttention, m: &mut Memory<'_, T>) {
    let Heads { batch, queries, keys, heads, head_dim, .. } = op.heads;
    let mut lse = m.take(op.lse);
    let mut workspace = m.take_workspace(batch * heads * queries * head_dim);
    let (q, k, v) = (m.real(op.q.tensor), m.real(op.k.tensor), m.real(op.v.tensor));
    let setting = Setting::new(op, m, &q, &k, &v);
    let out = &mut workspace[..batch * heads * queries * head_dim];
    out.par_chunks_mut(queries * head_dim).zip(lse.par_chunks_mut(queries)).enumerate().for_each_init(
        || (vec![T::ZERO; TILE.min(queries) * keys], Factors::default()),
        |(tile, factors), (task, (out, lse))| {
            let (b, h) = (task / heads, task % heads);
            for (from, count) in tiles(queries) {
                let seen = setting.scores(b, h, from, count, tile);
                vectorised(
                    #[inline(always)]
                    || {
                        for (i, row) in tile.chunks_exact_mut(keys).take(count).enumerate() {
                            setting.weigh(b, h, from + i, row, seen, factors);
                            lse[from + i] = factors.lse;
                            setting.drop_keys(b, h, from + i, &mut row[..seen]);
                        }
                    },
                );
                let out = MatMut::new(&mut out[from * head_dim..][..count * head_dim], count, head_dim);
                let values = setting.v.mat(b, h / setting.group(), 0, seen, head_dim);
                gemm(out, false, T::ONE, Mat::strided(tile, count, seen, keys), values, false);
            }
        },
    );
    drop(setting);
    drop((q, k, v));
    m.put(op.lse, lse);
    let whole = Cols::all(op.out, heads * head_dim);
    m.scatter_heads(whole, &workspace, batch, queries, head_dim);
    m.put_workspace(workspace);
}

pub(super) fn backward<T: Real>(op: &LandmarkAttentionBackward, m: &mut Memory<'_, T>) {
    let Heads { batch, queries, keys, heads, kv_heads, head_dim } = op.forward.heads;
    let (dq_len, dk_len) = (batch * heads * queries * head_dim, batch * kv_heads * keys * head_dim);
    let mut workspace = m.take_workspace(dq_len + 2 * dk_len);
    let f = &op.forward;
    let (q, k, v) = (m.real(f.q.tensor), m.real(f.k.tensor), m.real(f.v.tensor));
    let dout = m.real(op.dout);
    let setting = Setting::new(f, m, &q, &k, &v);
    let whole = Cols::all(op.dout, heads * head_dim);
    let dout_side = Side::new(m, &dout, whole, queries);
    let (dq, rest) = workspace[..dq_len + 2 * dk_len].split_at_mut(dq_len);
    let (dk, dv) = rest.split_at_mut(dk_len);
    dk.fill(T::ZERO);
    dv.fill(T::ZERO);
    let group = setting.group();
    dq.par_chunks_mut(group * queries * head_dim)
        .zip(dk.par_chunks_mut(keys * head_dim))
        .zip(dv.par_chunks_mut(keys * head_dim))
        .enumerate()
        .for_each_init(
            || (vec![T::ZERO; TILE.min(queries) * keys], vec![T::ZERO; TILE.min(queries) * keys]),
            |(weights, gradients), (task, ((dq, dk), dv))| {
                let (b, kv) = (task / kv_heads, task % kv_heads);
                for (g, dq) in dq.chunks_exact_mut(queries * head_dim).enumerate() {
                    backward_head(&setting, &dout_side, b, kv * group + g, (dq, dk, dv), weights, gradients);
                }
            },
        );
    drop(setting);
    drop((q, k, v, dout));
    let g = &op.gradients;
    m.scatter_heads(g.dq, &workspace[..dq_len], batch, queries, head_dim);
    m.scatter_heads(g.dk, &workspace[dq_len..][..dk_len], batch, keys, head_dim);
    m.scatter_heads(g.dv, &workspace[dq_len + dk_len..][..dk_len], batch, keys, head_dim);
    m.put_workspace(workspace);
}

/// One query head: writes its `dq`, adds to the `dk` and `dv` of its key head.
fn backward_head<T: Real>(
    setting: &Setting<'_, T>,
    dout: &Side<'_, T>,
    b: usize,
    h: usize,
    (dq, dk, dv): (&mut [T], &mut [T], &mut [T]),
    weights: &mut [T],
    gradients: &mut [T],
) {
    let Heads { queries, keys, head_dim, .. } = setting.heads;
    let (kv, shift) = (h / setting.group(), usize::from(setting.miss));
    let mut factors = Factors::default();
    for (from, count) in tiles(queries) {
        let seen = setting.scores(b, h, from, count, weights);
        let dout = dout.mat(b, h, from, count, head_dim);
        let values = setting.v.mat(b, kv, 0, seen, head_dim);
        gemm(MatMut::strided(gradients, count, seen, keys), false, T::ONE, dout, values.t(), false);
        vectorised(
            #[inline(always)]
            || {
                let rows = weights.chunks_exact_mut(keys).zip(gradients.chunks_exact_mut(keys));
                for (i, (weights, gradients)) in rows.take(count).enumerate() {
                    let query = from + i;
                    setting.weigh(b, h, query, weights, seen, &mut factors);
                    let end = keys - queries + query + 1;
                    gradients[end..seen].fill(T::ZERO);
                    if setting.miss && query == 0 {
                        gradients[..end].fill(T::ZERO);
                        continue;
                    }
                    setting.drop_keys(b, h, query, &mut gradients[..end]);
                    let dmiss = factors.backward(&weights[shift..end], &mut gradients[shift..end]);
                    if setting.miss {
                        gradients[0] = dmiss;
                    }
                    // What multiplied the values were the weights after dropout.
                    setting.drop_keys(b, h, query, &mut weights[..end]);
                }
            },
        );
        let (p, ds) = (Mat::strided(weights, count, seen, keys), Mat::strided(gradients, count, seen, keys));
        let scale = setting.scale();
        gemm(MatMut::new(&mut dv[..seen * head_dim], seen, head_dim), true, T::ONE, p.t(), dout, false);
        let q = setting.q.mat(b, h, from, count, head_dim);
        gemm(MatMut::new(&mut dk[..seen * head_dim], seen, head_dim), true, scale, ds.t(), q, false);
        let dq = MatMut::new(&mut dq[from * head_dim..][..count * head_dim], count, head_dim);
        gemm(dq, false, scale, ds, setting.k.mat(b, kv, 0, seen, head_dim), false);
    }
}
