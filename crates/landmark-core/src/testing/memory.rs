//! The table of cases for the landmark memory, with a naive memory that keeps everything.
//!
//! Each case drives the memory ops over a sequence of chunks. The naive side holds all keys and values of a
//! row of the batch in one list, and for every query writes out which keys it sees and at which positions,
//! straight from the definition of the stingy positions.

use super::naive::{Key, dot, grouped_softmax};
use super::{f32_bytes, i32_bytes, normals, u32_bytes};
use crate::ops::{
    AppendKv, Heads, LandmarkScores, MemoryShape, Origin, RetrievalAttention, Rope, RopeStyle, SelectBlocks,
    Selection,
};
use crate::program::{Layout, Program, Recorder};
use crate::tensor::{Cols, DType, Tensor};

/// One case.
#[derive(Clone, Debug)]
pub struct MemoryCase {
    /// What it is for.
    pub name: &'static str,
    /// Extents of the memory.
    pub memory: MemoryShape,
    /// Query heads.
    pub heads: usize,
    /// Granularity of the choice.
    pub selection: Selection,
    /// Rotary pairs.
    pub style: RopeStyle,
    /// A context-miss token stands in front of every chunk.
    pub miss: bool,
    /// Shares of that token below this count as 0.
    pub cutoff: Option<f32>,
    /// Positions stored before the first chunk, for each row of the batch.
    pub start: Vec<usize>,
    /// Lengths of the chunks.
    pub chunks: Vec<usize>,
    /// Retrieve nothing, not even through an empty choice.
    pub without_choice: bool,
}

/// The table.
pub fn cases() -> Vec<MemoryCase> {
    use RopeStyle::{Halves, Pairs};
    use Selection::{MaxOverHeads, MaxOverTokens, PerTokenAndHead};
    let shape = |batch, blocks, block, top_k, kv_heads, head_dim| MemoryShape {
        batch,
        blocks,
        block,
        top_k,
        kv_heads,
        head_dim,
        origin: Origin::BlocksSeen,
    };
    let base = MemoryCase {
        name: "each token and head, rows of different lengths",
        memory: shape(3, 3, 4, 2, 2, 4),
        heads: 2,
        selection: PerTokenAndHead,
        style: Pairs,
        miss: false,
        cutoff: None,
        start: vec![0, 5, 15],
        chunks: vec![1, 3, 5, 7, 2, 9, 4, 13],
        without_choice: false,
    };
    let grouped = MemoryCase {
        name: "max over heads, grouped-query, halves",
        memory: shape(2, 5, 3, 3, 2, 6),
        heads: 6,
        selection: MaxOverHeads,
        style: Halves,
        start: vec![0, 31],
        chunks: vec![4, 1, 1, 7, 11, 2, 8],
        ..base.clone()
    };
    let tokens = MemoryCase {
        name: "max over tokens, chunks longer than the ring",
        memory: shape(2, 4, 2, 2, 1, 8),
        heads: 2,
        selection: MaxOverTokens,
        start: vec![3, 0],
        chunks: vec![5, 23, 1, 2, 17, 3],
        ..base.clone()
    };
    vec![
        MemoryCase {
            name: "blocks of 51",
            memory: shape(1, 3, 51, 2, 1, 16),
            start: vec![0],
            chunks: vec![50, 1, 52, 60, 40, 51],
            ..base.clone()
        },
        MemoryCase { name: "more retrieved than kept", memory: shape(3, 3, 4, 6, 2, 4), ..base.clone() },
        MemoryCase {
            name: "all kept are retrieved",
            memory: shape(3, 3, 4, 3, 2, 4),
            style: Halves,
            ..base.clone()
        },
        MemoryCase {
            name: "distances that stay true, few blocks",
            memory: MemoryShape { origin: Origin::BlocksRetrieved, ..shape(3, 9, 4, 5, 2, 4) },
            style: Halves,
            ..base.clone()
        },
        MemoryCase {
            name: "distances that stay true, many blocks",
            memory: MemoryShape { origin: Origin::BlocksRetrieved, ..shape(3, 9, 2, 2, 2, 4) },
            selection: MaxOverTokens,
            ..base.clone()
        },
        MemoryCase { name: "k = 0", memory: shape(3, 3, 4, 0, 2, 4), ..base.clone() },
        MemoryCase {
            name: "no choice",
            memory: shape(3, 3, 4, 0, 2, 4),
            without_choice: true,
            ..base.clone()
        },
        MemoryCase { name: "no block kept", memory: shape(3, 0, 4, 2, 2, 4), ..base.clone() },
        MemoryCase { name: "one block kept", memory: shape(3, 1, 4, 1, 2, 4), ..base.clone() },
        MemoryCase { name: "context-miss token", miss: true, ..base.clone() },
        MemoryCase { name: "context-miss token, cut off", miss: true, cutoff: Some(0.12), ..tokens.clone() },
        MemoryCase {
            name: "context-miss token, grouped-query",
            miss: true,
            cutoff: Some(0.05),
            ..grouped.clone()
        },
        base,
        grouped,
        tokens,
    ]
}

/// Keys and values of one row of the batch, every position ever stored; keys without positions.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// `(Hkv · D)` each.
    pub keys: Vec<Vec<f64>>,
    /// `(Hkv · D)` each.
    pub values: Vec<Vec<f64>>,
}

/// Queries, keys and values of a chunk, `(B, skip + T, heads · D)`, without positions.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// Tokens, the context-miss token not counted.
    pub tokens: usize,
    /// Queries.
    pub q: Vec<f64>,
    /// Keys.
    pub k: Vec<f64>,
    /// Values.
    pub v: Vec<f64>,
}

/// The tensors that a driver writes and reads.
#[derive(Clone, Debug)]
pub struct MemoryTensors {
    /// Persistent tensors; chunks are views of the first rows.
    pub layout: Layout,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    frequencies: Tensor,
    /// Positions stored so far, `(B)` u32; the driver advances it.
    pub lengths: Tensor,
    /// Positions of each row that are no padding, `(B)` u32.
    pub counts: Tensor,
    keys: Tensor,
    values: Tensor,
    landmarks: Tensor,
    /// Result, `(B, skip + T, H · D)` in front.
    pub out: Tensor,
}

/// One key of the explicit list that a query attends to.
struct Seen {
    key: Vec<f64>,
    position: i64,
    value: Vec<f64>,
    landmark: bool,
    gated: bool,
}

/// Turns one head to a position.
fn rope(head: &[f64], position: i64, style: RopeStyle) -> Vec<f64> {
    let (d, mut turned) = (head.len(), head.to_vec());
    for i in 0..d / 2 {
        let (a, b) = if style == RopeStyle::Pairs { (2 * i, 2 * i + 1) } else { (i, i + d / 2) };
        let (sin, cos) = (position as f64 * frequency(i, d)).sin_cos();
        (turned[a], turned[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
    }
    turned
}

/// Rounded to f32, as the tensor of frequencies is.
fn frequency(i: usize, d: usize) -> f64 {
    f64::from(10_000_f64.powf(-2.0 * i as f64 / d as f64) as f32)
}

impl MemoryCase {
    /// Rows in front of a chunk.
    pub fn skip(&self) -> usize {
        usize::from(self.miss)
    }

    fn width(&self) -> (usize, usize) {
        (self.heads * self.memory.head_dim, self.memory.kv_heads * self.memory.head_dim)
    }

    /// Random values of chunk number `index`.
    pub fn chunk(&self, index: usize) -> Chunk {
        let tokens = self.chunks[index];
        let rows = self.memory.batch * (self.skip() + tokens);
        let ((q, k), salt) = (self.width(), 10 * index as u32);
        Chunk {
            tokens,
            q: normals(salt, rows * q),
            k: normals(salt + 1, rows * k),
            v: normals(salt + 2, rows * k),
        }
    }

    /// Random keys and values of the positions stored before the first chunk.
    pub fn histories(&self) -> Vec<History> {
        let (_, width) = self.width();
        let list =
            |salt: u32, n: usize| normals(salt, n * width).chunks(width).map(<[f64]>::to_vec).collect();
        let history = |(b, &n): (usize, &usize)| History {
            keys: list(1000 + b as u32, n),
            values: list(2000 + b as u32, n),
        };
        self.start.iter().enumerate().map(history).collect()
    }

    /// Appends a chunk to what is remembered.
    pub fn remember(&self, histories: &mut [History], chunk: &Chunk) {
        let ((_, width), rows) = (self.width(), self.skip() + chunk.tokens);
        for (b, history) in histories.iter_mut().enumerate() {
            for t in self.skip()..rows {
                history.keys.push(chunk.k[(b * rows + t) * width..][..width].to_vec());
                history.values.push(chunk.v[(b * rows + t) * width..][..width].to_vec());
            }
        }
    }

    /// Position of row `t` of a chunk, the context-miss token's at -1.
    fn position(&self, stored: usize, t: usize) -> i64 {
        let m = &self.memory;
        let seen = stored / m.block;
        let blocks = match m.origin {
            Origin::BlocksSeen => seen.min(m.top_k + 1),
            // One block behind the retrieved ones: the last block ends where the unfinished one begins.
            Origin::BlocksRetrieved => m.top_k.min(seen).min(m.blocks) + 1,
        };
        let start = blocks * m.block + stored % m.block;
        if self.miss && t == 0 { -1 } else { (start + t - self.skip()) as i64 }
    }

    /// Stingy index of the kept blocks: 0 for old ones, then 1, 2, ...
    fn stingy(&self, kept: usize) -> Vec<usize> {
        let last = self.memory.top_k.min(kept);
        (0..kept).map(|j| if j < kept - last { 0 } else { j - (kept - last) + 1 }).collect()
    }

    /// Result of a chunk from the definition, `(B, skip + T, H · D)`.
    pub fn naive(&self, histories: &[History], chunk: &Chunk) -> Vec<f64> {
        let (m, d, rows) = (&self.memory, self.memory.head_dim, self.skip() + chunk.tokens);
        let mut out = vec![0.0; m.batch * rows * self.heads * d];
        for (b, history) in histories.iter().enumerate() {
            let stored = history.keys.len();
            let q = |h: usize, t: usize| {
                let at = ((b * rows + t) * self.heads + h) * d;
                rope(&chunk.q[at..][..d], self.position(stored, t), self.style)
            };
            let chosen = self.choose(history, &q, chunk.tokens);
            for (h, t) in (0..self.heads * rows).map(|i| (i / rows, i % rows)) {
                if !(self.miss && t == 0) {
                    let result = self.attend(history, chunk, b, h, t, &q(h, t), &chosen[h][t - self.skip()]);
                    out[((b * rows + t) * self.heads + h) * d..][..d].copy_from_slice(&result);
                }
            }
        }
        out
    }

    /// Kept blocks that each head and token chooses, in time order, as numbers among the kept ones.
    fn choose(
        &self,
        history: &History,
        q: &dyn Fn(usize, usize) -> Vec<f64>,
        tokens: usize,
    ) -> Vec<Vec<Vec<usize>>> {
        let m = &self.memory;
        let seen = history.keys.len() / m.block;
        let kept = seen.min(m.blocks);
        let index = self.stingy(kept);
        let scores = |h: usize, t: usize| -> Vec<f64> {
            let landmark = |j: usize| &history.keys[(seen - kept + j) * m.block + m.block - 1];
            let position = |j: usize| (index[j] * m.block + m.block - 1) as i64;
            let q = q(h, t + self.skip());
            (0..kept)
                .map(|j| {
                    dot(&q, &rope(self.head(landmark(j), h), position(j), self.style))
                        / (m.head_dim as f64).sqrt()
                })
                .collect()
        };
        let probabilities = |h: usize, t: usize| -> Vec<f64> {
            let scores = scores(h, t);
            let sum: f64 = scores.iter().map(|s| s.exp()).sum();
            scores.iter().map(|s| s.exp() / sum).collect()
        };
        let most = |lists: Vec<Vec<f64>>| -> Vec<f64> {
            (0..kept).map(|j| lists.iter().map(|p| p[j]).fold(0.0, f64::max)).collect()
        };
        let best = |p: Vec<f64>| -> Vec<usize> {
            let mut order: Vec<usize> = (0..kept).collect();
            order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
            order.truncate(m.top_k);
            order.sort_unstable();
            order
        };
        let one = |h: usize, t: usize| match self.selection {
            Selection::PerTokenAndHead => best(scores(h, t)),
            Selection::MaxOverHeads => best(most((0..self.heads).map(|h| probabilities(h, t)).collect())),
            Selection::MaxOverTokens => best(most((0..tokens).map(|t| probabilities(h, t)).collect())),
        };
        (0..self.heads).map(|h| (0..tokens).map(|t| one(h, t)).collect()).collect()
    }

    /// The key head that query head `h` reads.
    fn head<'a>(&self, row: &'a [f64], h: usize) -> &'a [f64] {
        &row[h / (self.heads / self.memory.kv_heads) * self.memory.head_dim..][..self.memory.head_dim]
    }

    /// One query: the explicit list of the keys that it sees, and the grouped softmax over it.
    fn attend(
        &self,
        history: &History,
        chunk: &Chunk,
        b: usize,
        h: usize,
        t: usize,
        q: &[f64],
        chosen: &[usize],
    ) -> Vec<f64> {
        let (m, stored, rows) = (&self.memory, history.keys.len(), self.skip() + chunk.tokens);
        let (seen, kept) = (stored / m.block, (stored / m.block).min(m.blocks));
        let index = self.stingy(kept);
        let (_, width) = self.width();
        let of_chunk = |x: &[f64], t: usize| self.head(&x[(b * rows + t) * width..][..width], h).to_vec();
        let mut list: Vec<Seen> = Vec::new();
        let remembered = |at: usize, position: i64, landmark: bool, gated: bool| Seen {
            key: self.head(&history.keys[at], h).to_vec(),
            value: self.head(&history.values[at], h).to_vec(),
            position,
            landmark,
            gated,
        };
        for (slot, &j) in chosen.iter().enumerate() {
            for o in 0..m.block {
                let position = slot * m.block + if index[j] > 0 { m.block } else { 0 } + o;
                let at = (seen - kept + j) * m.block + o;
                list.push(remembered(at, position as i64, o == m.block - 1, self.miss));
            }
        }
        for at in seen * m.block..stored {
            let position = self.position(stored, self.skip()) - (stored - at) as i64;
            list.push(remembered(at, position, false, false));
        }
        for t in self.skip()..=t {
            list.push(Seen {
                key: of_chunk(&chunk.k, t),
                value: of_chunk(&chunk.v, t),
                position: self.position(stored, t),
                landmark: (stored + t - self.skip()) % m.block == m.block - 1,
                gated: false,
            });
        }
        let score = |key: &[f64], position: i64| {
            dot(q, &rope(key, position, self.style)) / (m.head_dim as f64).sqrt()
        };
        let key = |s: &Seen| {
            let (landmark, gated) = (s.landmark, s.gated);
            Key { score: score(&s.key, s.position), landmark, gated, keep: 1.0 }
        };
        let keys: Vec<Key<f64>> = list.iter().map(key).collect();
        if !self.miss && keys.len() == 1 && keys[0].landmark {
            return vec![0.0; m.head_dim];
        }
        let miss = self.miss.then(|| score(&of_chunk(&chunk.k, 0), -1));
        let row = grouped_softmax(&keys, miss, self.cutoff.map(f64::from));
        let value = |i: usize| list.iter().zip(&row.weight).map(|(seen, w)| w * seen.value[i]).sum();
        (0..m.head_dim).map(value).collect()
    }

    /// The persistent tensors, for the longest chunk.
    pub fn tensors(&self) -> MemoryTensors {
        let (m, longest) = (&self.memory, self.skip() + self.chunks.iter().copied().max().unwrap_or(0));
        let ((q, k), mut layout) = (self.width(), Layout::new());
        let mut float = |name: &str, shape: &[usize]| layout.add(name, DType::F32, shape);
        let ring = [m.batch, m.slots(), m.kv_heads, m.block, m.head_dim];
        let [q, k, v, out] = [("q", q), ("k", k), ("v", k), ("out", q)]
            .map(|(name, width)| float(name, &[m.batch, longest, width]));
        let [keys, values] =
            ["keys", "values"].map(|name| layout.add_paged(name, DType::F32, ring, m.page()));
        let mut float = |name: &str, shape: &[usize]| layout.add(name, DType::F32, shape);
        let landmarks = float("landmarks", &[m.batch, m.kv_heads, m.slots(), m.head_dim]);
        let frequencies = float("frequencies", &[m.head_dim / 2]);
        let [lengths, counts] = ["lengths", "counts"].map(|name| layout.add(name, DType::U32, [m.batch]));
        let positions = layout.add("positions", DType::I32, [m.batch * longest]);
        MemoryTensors {
            layout,
            q,
            k,
            v,
            positions,
            frequencies,
            lengths,
            counts,
            keys,
            values,
            landmarks,
            out,
        }
    }

    /// What to write before the first chunk: the histories as the rings hold them, and the frequencies.
    pub fn prepare(&self, t: &MemoryTensors, histories: &[History]) -> Vec<(Tensor, Vec<u8>)> {
        let m = &self.memory;
        let numel = |tensor| t.layout.info(tensor).shape.numel();
        let [mut keys, mut values, mut landmarks] =
            [t.keys, t.values, t.landmarks].map(|t| vec![0.0; numel(t)]);
        for (b, history) in histories.iter().enumerate() {
            for (p, (key, value)) in history.keys.iter().zip(&history.values).enumerate() {
                let (slot, o) = (p / m.block % m.slots(), p % m.block);
                for h in 0..m.kv_heads {
                    let at = (((b * m.slots() + slot) * m.kv_heads + h) * m.block + o) * m.head_dim;
                    let head = h * m.head_dim..(h + 1) * m.head_dim;
                    keys[at..][..m.head_dim].copy_from_slice(&key[head.clone()]);
                    values[at..][..m.head_dim].copy_from_slice(&value[head.clone()]);
                    if o == m.block - 1 {
                        let at = ((b * m.kv_heads + h) * m.slots() + slot) * m.head_dim;
                        landmarks[at..][..m.head_dim].copy_from_slice(&key[head]);
                    }
                }
            }
        }
        let frequencies: Vec<f64> = (0..m.head_dim / 2).map(|i| frequency(i, m.head_dim)).collect();
        [(t.keys, keys), (t.values, values), (t.landmarks, landmarks), (t.frequencies, frequencies)]
            .map(|(tensor, values)| (tensor, f32_bytes(&values)))
            .to_vec()
    }

    /// What to write before a chunk.
    pub fn feed(&self, t: &MemoryTensors, histories: &[History], chunk: &Chunk) -> Vec<(Tensor, Vec<u8>)> {
        let rows = self.skip() + chunk.tokens;
        let stored: Vec<usize> = histories.iter().map(|h| h.keys.len()).collect();
        let position = |&s: &usize| (0..rows).map(move |t| self.position(s, t) as i32);
        let positions: Vec<i32> = stored.iter().flat_map(position).collect();
        let lengths: Vec<u32> = stored.iter().map(|&s| s as u32).collect();
        vec![
            (t.q, f32_bytes(&chunk.q)),
            (t.k, f32_bytes(&chunk.k)),
            (t.v, f32_bytes(&chunk.v)),
            (t.positions, i32_bytes(&positions)),
            (t.lengths, u32_bytes(&lengths)),
            (t.counts, u32_bytes(&vec![chunk.tokens as u32; self.memory.batch])),
        ]
    }

    /// The program of a chunk: positions, scores, choice, attention, and then the chunk is stored.
    pub fn record(&self, t: &MemoryTensors, tokens: usize) -> Program {
        let (memory, skip, rows) = (self.memory, self.skip(), self.skip() + tokens);
        let MemoryShape { batch, blocks, kv_heads, head_dim, top_k, .. } = memory;
        let (heads, (q_width, k_width)) = (self.heads, self.width());
        let mut r = Recorder::new(format!("{}: chunk of {tokens}", self.name), &t.layout);
        let view = |r: &mut Recorder, of, width| Cols::all(r.view(of, [batch, rows, width]), width);
        let [q0, k0, v] =
            [(t.q, q_width), (t.k, k_width), (t.v, k_width)].map(|(of, width)| view(&mut r, of, width));
        let out = view(&mut r, t.out, q_width).tensor;
        let positions = r.view(t.positions, [batch * rows]);
        let (frequencies, lengths, counts, style) = (t.frequencies, t.lengths, t.counts, self.style);
        let [q, k] = [("q turned", q0), ("k turned", k0)].map(|(name, x)| {
            let out = Cols { tensor: r.scratch(name, DType::F32, [batch, rows, x.width]), ..x };
            r.push(Rope { x, positions, frequencies, style, head_dim, inverse: false, out });
            out
        });
        let chosen = (!self.without_choice).then(|| {
            let scores = r.scratch("scores", DType::F32, [batch, heads, tokens, blocks]);
            let chosen = r.scratch("chosen", DType::U32, [batch, heads, tokens, top_k]);
            r.push(LandmarkScores {
                memory,
                heads,
                skip,
                q,
                landmarks: t.landmarks,
                lengths,
                frequencies,
                style,
                out: scores,
            });
            r.push(SelectBlocks { memory, selection: self.selection, scores, lengths, counts, chosen });
            chosen
        });
        r.push(RetrievalAttention {
            memory,
            heads: Heads { batch, queries: rows, keys: rows, heads, kv_heads, head_dim },
            q,
            k,
            v,
            keys: t.keys,
            values: t.values,
            lengths,
            chosen,
            frequencies,
            style,
            miss: self.miss,
            miss_cutoff: self.cutoff,
            shares: None,
            out,
        });
        let (keys, values, landmarks) = (t.keys, t.values, t.landmarks);
        r.push(AppendKv { memory, skip, k: k0, v, lengths, counts, keys, values, landmarks });
        r.finish()
    }
}
