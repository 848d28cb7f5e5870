//! The landmark memory at inference (spec section 4): store blocks, score their landmarks, choose, attend.
//!
//! One number per row of the batch describes the whole memory: `lengths[b]`, the positions stored so far,
//! landmarks included. Position `p` lies in block `p / block`; block `j` lies in ring slot
//! `j % (blocks + 1)`; so the ring holds the last `blocks` whole blocks and, in one slot more, the
//! unfinished one. Keys are stored *without* positions; positions are applied at each use ("stingy": the last
//! `k` blocks keep their distance, all older ones share the slots before them).
//!
//! Order in a program: [`LandmarkScores`] and [`SelectBlocks`], [`RetrievalAttention`], then [`AppendKv`] (a
//! chunk may overwrite blocks that it still wanted to read), then the host advances `lengths`.

use super::landmark_attention::{Heads, check_heads};
use super::rope::RopeStyle;
use super::*;

/// Marks a slot without a block in the result of [`SelectBlocks`].
pub const NO_BLOCK: u32 = u32::MAX;

/// Where the unfinished block stands, behind the retrieved ones.
///
/// The two agree as soon as more than `k` blocks were seen. Before that, the released GPT counts the blocks seen and
/// so puts the last of them one block too near; the released LLaMA keeps every distance true.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// At `min(blocks seen, k + 1) · block` (the released GPT; spec section 4).
    #[default]
    BlocksSeen,
    /// At `(blocks retrieved + 1) · block` (the released LLaMA).
    BlocksRetrieved,
}

/// Extents of a memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryShape {
    /// Rows of the batch.
    pub batch: usize,
    /// Whole blocks that the ring keeps (`mem_cache_size`).
    pub blocks: usize,
    /// Positions of a block, its landmark included.
    pub block: usize,
    /// Blocks retrieved (`cache_topk`); fewer where there are fewer.
    pub top_k: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Position of the unfinished block.
    pub origin: Origin,
}

/// What a memory of a given length holds; every derived number of spec section 4 in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryState {
    /// Whole blocks seen so far, kept or not.
    pub seen: usize,
    /// Whole blocks kept.
    pub cached: usize,
    /// Positions of the unfinished block.
    pub unfinished: usize,
    /// Blocks that can be retrieved: `min(top_k, cached)`.
    pub retrieved: usize,
    /// Position of the unfinished block's first key; the chunk's first query follows `unfinished` later.
    pub start: usize,
}

impl MemoryShape {
    /// Ring slots: the kept blocks and the unfinished one.
    pub fn slots(&self) -> usize {
        self.blocks + 1
    }

    /// State of a row that has stored `length` positions.
    pub fn state(&self, length: usize) -> MemoryState {
        let seen = length / self.block;
        let cached = seen.min(self.blocks);
        let retrieved = self.top_k.min(cached);
        let start = match self.origin {
            Origin::BlocksSeen => seen.min(self.top_k + 1),
            Origin::BlocksRetrieved => retrieved + 1,
        };
        MemoryState { seen, cached, unfinished: length % self.block, retrieved, start: start * self.block }
    }

    /// Elements of a page of the rings: one block of one key head. Rings may be kept in pages, see
    /// [`Paging`](crate::paging::Paging).
    pub fn page(&self) -> usize {
        self.block * self.head_dim
    }

    /// The page of a ring that holds `slot` of row `b` and key head `head`.
    pub fn page_of(&self, b: usize, slot: usize, head: usize) -> usize {
        (b * self.slots() + slot) * self.kv_heads + head
    }

    /// Ring slot of cached block `j` (0 = the oldest kept).
    pub fn slot(&self, state: &MemoryState, j: usize) -> usize {
        (state.seen - state.cached + j) % self.slots()
    }

    /// Stingy index of cached block `j`: 0 for old blocks, `1..=retrieved` for the last ones.
    pub fn index(&self, state: &MemoryState, j: usize) -> usize {
        (j + state.retrieved + 1).saturating_sub(state.cached)
    }
}

fn check_ring(p: &Program, m: &MemoryShape, keys: Tensor, values: Tensor) -> Result<(), String> {
    let shape = [m.batch, m.slots(), m.kv_heads, m.block, m.head_dim];
    expect_shape(p, "keys", keys, shape)?;
    expect_shape(p, "values", values, shape)
}

/// Checks a number for each row of the batch.
fn check_rowwise(p: &Program, m: &MemoryShape, field: &str, tensor: Tensor) -> Result<(), String> {
    expect_dtype(p, field, tensor, DType::U32)?;
    expect_numel(p, field, tensor, m.batch)
}

/// Stores a chunk: position `lengths[b] + t` of row `b` takes `k[b, skip + t]` and `v[b, skip + t]`, for
/// `t < counts[b]`. What follows in the row is padding.
///
/// `k` and `v` `(B, skip + T, Hkv · D)`, keys without positions. `keys` and `values`
/// `(B, blocks + 1, Hkv, block, D)`; `landmarks` `(B, Hkv, blocks + 1, D)` keeps the keys of landmarks a second
/// time, close together, since every query reads all of them.
#[derive(Clone, Debug)]
pub struct AppendKv {
    /// Extents.
    pub memory: MemoryShape,
    /// Rows in front that are not stored (the context-miss token).
    pub skip: usize,
    /// Keys of the chunk, without positions.
    pub k: Cols,
    /// Values of the chunk.
    pub v: Cols,
    /// Positions stored before this chunk, `(B)` u32.
    pub lengths: Tensor,
    /// Positions of each row that are no padding, `(B)` u32.
    pub counts: Tensor,
    /// Ring of keys.
    pub keys: Tensor,
    /// Ring of values.
    pub values: Tensor,
    /// Landmark keys.
    pub landmarks: Tensor,
}

impl Operation for AppendKv {
    fn name(&self) -> &'static str {
        "AppendKv"
    }
    fn operands(&self, o: &mut Operands) {
        o.read("k", self.k.tensor);
        o.read("v", self.v.tensor);
        o.read("lengths", self.lengths);
        o.read("counts", self.counts);
        o.part("keys", self.keys);
        o.part("values", self.values);
        o.part("landmarks", self.landmarks);
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        expect_cols(p, "k", self.k)?;
        expect_cols(p, "v", self.v)?;
        let m = &self.memory;
        if self.k.width != m.kv_heads * m.head_dim || self.v.width != self.k.width {
            return Err(format!("{} columns are not {} heads of {}", self.k.width, m.kv_heads, m.head_dim));
        }
        check_ring(p, m, self.keys, self.values)?;
        expect_shape(p, "landmarks", self.landmarks, [m.batch, m.kv_heads, m.slots(), m.head_dim])?;
        check_rowwise(p, m, "counts", self.counts)?;
        check_rowwise(p, m, "lengths", self.lengths)
    }
    fn cost(&self, p: &Program) -> Cost {
        let elements = 2 * p.shape(self.k.tensor).rows() * self.k.width;
        let bytes = (elements * p.info(self.keys).dtype.size()) as u64;
        Cost { flops: 0, bytes_read: bytes, bytes_written: bytes }
    }
}

/// `out[b, h, t, j] = q[b, skip + t, h] · rope(landmark of cached block j) / sqrt(D)`; undefined where there is no
/// block `j`, so that a memory with room for a million blocks costs what the blocks in it cost.
///
/// `q` `(B, skip + T, H · D)` with positions applied; `out` `(B, H, T, blocks)`, blocks in time order.
#[derive(Clone, Debug)]
pub struct LandmarkScores {
    /// Extents.
    pub memory: MemoryShape,
    /// Query heads.
    pub heads: usize,
    /// Rows in front without a choice (the context-miss token).
    pub skip: usize,
    /// Queries.
    pub q: Cols,
    /// Landmark keys `(B, Hkv, blocks + 1, D)`.
    pub landmarks: Tensor,
    /// Positions stored so far `(B)` u32.
    pub lengths: Tensor,
    /// Angles `(D / 2)`.
    pub frequencies: Tensor,
    /// Rotary pairs.
    pub style: RopeStyle,
    /// Result.
    pub out: Tensor,
}

impl Operation for LandmarkScores {
    fn name(&self) -> &'static str {
        "LandmarkScores"
    }
    fn operands(&self, o: &mut Operands) {
        o.read("q", self.q.tensor);
        o.read("landmarks", self.landmarks);
        o.read("lengths", self.lengths);
        o.read("frequencies", self.frequencies);
        o.write("out", self.out);
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        let m = &self.memory;
        expect_cols(p, "q", self.q)?;
        check_rowwise(p, m, "lengths", self.lengths)?;
        expect_shape(p, "landmarks", self.landmarks, [m.batch, m.kv_heads, m.slots(), m.head_dim])?;
        let queries = p.shape(self.q.tensor).rows() / m.batch - self.skip;
        expect_shape(p, "out", self.out, [m.batch, self.heads, queries, m.blocks])
    }
    fn cost(&self, p: &Program) -> Cost {
        elementwise(p, self, self.out, 2 * self.memory.head_dim as u64)
    }
}

/// How many choices a chunk makes (`cache_selection_method`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Each token and head chooses for itself.
    PerTokenAndHead,
    /// One choice for each token: probabilities maximised over heads.
    MaxOverHeads,
    /// One choice for each head: probabilities maximised over the chunk's tokens.
    MaxOverTokens,
}

/// `chosen[b, h, t, ..]` = the `min(k, cached)` best blocks in time order, then [`NO_BLOCK`]; nothing but
/// [`NO_BLOCK`] for `t >= counts[b]`.
///
/// `scores` `(B, H, T, blocks)` become probabilities over the cached blocks before they are maximised, over the
/// tokens that are no padding. Which of equally good blocks is chosen is the backend's business; the CPU chooses as
/// the released program does there. `chosen` `(B, H, T, k)` u32, indices of cached blocks (0 = the oldest).
#[derive(Clone, Debug)]
pub struct SelectBlocks {
    /// Extents.
    pub memory: MemoryShape,
    /// Granularity.
    pub selection: Selection,
    /// Scores.
    pub scores: Tensor,
    /// Positions stored so far `(B)` u32.
    pub lengths: Tensor,
    /// Positions of each row that are no padding, `(B)` u32.
    pub counts: Tensor,
    /// Result.
    pub chosen: Tensor,
}

impl Operation for SelectBlocks {
    fn name(&self) -> &'static str {
        "SelectBlocks"
    }
    fn operands(&self, o: &mut Operands) {
        o.read("scores", self.scores);
        o.read("lengths", self.lengths);
        o.read("counts", self.counts);
        o.write("chosen", self.chosen);
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        check_rowwise(p, &self.memory, "lengths", self.lengths)?;
        check_rowwise(p, &self.memory, "counts", self.counts)?;
        expect_dtype(p, "chosen", self.chosen, DType::U32)?;
        let mut shape = p.shape(self.scores).dims().to_vec();
        *shape.last_mut().ok_or("scores have no extents")? = self.memory.top_k;
        expect_shape(p, "chosen", self.chosen, &shape[..])
    }
    fn cost(&self, p: &Program) -> Cost {
        elementwise(p, self, self.scores, 4)
    }
}

/// Grouped softmax attention over `[retrieved blocks, unfinished block, chunk]`.
///
/// `q` `(B, T, H · D)`, `k` and `v` `(B, T, Hkv · D)` with the positions that follow
/// [`MemoryState::start`]` + unfinished`. Key `o` of the block in slot `s` gets position
/// `s · block + o`, plus `block` when the block is among the last `k`. Landmarks of the chunk stand where the
/// memory's blocks end. With a context-miss token, row 0 is the token and retrieved blocks are gated.
/// `out` `(B, T, H · D)`.
#[derive(Clone, Debug)]
pub struct RetrievalAttention {
    /// Extents of the memory.
    pub memory: MemoryShape,
    /// Extents of the chunk.
    pub heads: Heads,
    /// Queries.
    pub q: Cols,
    /// Keys of the chunk.
    pub k: Cols,
    /// Values of the chunk.
    pub v: Cols,
    /// Ring of keys.
    pub keys: Tensor,
    /// Ring of values.
    pub values: Tensor,
    /// Positions stored so far `(B)` u32.
    pub lengths: Tensor,
    /// Result of [`SelectBlocks`]; `None` retrieves nothing.
    pub chosen: Option<Tensor>,
    /// Angles `(D / 2)`.
    pub frequencies: Tensor,
    /// Rotary pairs.
    pub style: RopeStyle,
    /// Row 0 is the context-miss token.
    pub miss: bool,
    /// Shares `S(-1)` below this count as 0 (`rem_cutoff`).
    pub miss_cutoff: Option<f32>,
    /// If wanted, the share of the attention that goes to each chosen block, `(B, H, T, k)`: `S_{i,p_b}` of spec
    /// section 2, 0 where there is no block.
    pub shares: Option<Tensor>,
    /// Result.
    pub out: Tensor,
}

impl Operation for RetrievalAttention {
    fn name(&self) -> &'static str {
        "RetrievalAttention"
    }
    fn operands(&self, o: &mut Operands) {
        o.read("q", self.q.tensor);
        o.read("k", self.k.tensor);
        o.read("v", self.v.tensor);
        o.read("keys", self.keys);
        o.read("values", self.values);
        o.read("lengths", self.lengths);
        o.read("chosen", self.chosen);
        o.read("frequencies", self.frequencies);
        o.write("shares", self.shares);
        o.write("out", self.out);
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        let (m, h) = (&self.memory, &self.heads);
        check_heads(p, h, self.q, self.k, self.v)?;
        check_ring(p, m, self.keys, self.values)?;
        check_rowwise(p, m, "lengths", self.lengths)?;
        if h.queries != h.keys || h.batch != m.batch || h.kv_heads != m.kv_heads || h.head_dim != m.head_dim {
            return Err(format!("{h:?} does not fit {m:?}"));
        }
        if let Some(chosen) = self.chosen {
            let queries = h.queries - usize::from(self.miss);
            expect_shape(p, "chosen", chosen, [h.batch, h.heads, queries, m.top_k])?;
        }
        match (self.shares, self.chosen) {
            (Some(shares), Some(chosen)) => {
                expect_shape(p, "shares", shares, p.shape(chosen).clone())?;
            }
            (Some(_), None) => return Err("shares of blocks that nobody chooses".into()),
            (None, _) => {}
        }
        expect_numel(p, "out", self.out, h.batch * h.queries * h.heads * h.head_dim)
    }
    fn cost(&self, p: &Program) -> Cost {
        let (m, h) = (&self.memory, &self.heads);
        let fetched = (h.batch * h.heads * h.queries * (m.top_k + 1) * m.block) as u64;
        let bytes = 2 * fetched * (m.head_dim * p.info(self.keys).dtype.size()) as u64;
        let chunk = p.info(self.q.tensor).bytes() as u64 * 3;
        Cost {
            flops: (fetched + h.pairs()) * 4 * h.head_dim as u64,
            bytes_read: bytes + chunk,
            bytes_written: p.info(self.out).bytes() as u64,
        }
    }
}
