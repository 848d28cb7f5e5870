//! The landmark memory, op by op: AppendKv, LandmarkScores, SelectBlocks, RetrievalAttention.
//!
//! These launchers serve every feature and type. What is common and must be fast is taken from them before they are
//! asked: a step of a few tokens by `retrieval_decode`, a long chunk by `retrieval_prefill`.

use super::{retrieval_decode, retrieval_prefill};
use crate::compile::{Defines, Variant};
use crate::plan::{Compiler, args};
use landmark_core::ops::{
    AppendKv, LandmarkScores, MemoryShape, Origin, RetrievalAttention, RopeStyle, SelectBlocks, Selection,
};
use landmark_core::{Cols, DType, Result};

/// Threads of a block, and queries or rows of one, as in the kernel files.
const APPEND_THREADS: usize = 256;
const SCORE_THREADS: usize = 128;
const SCORE_QUERIES: usize = 8;
const SELECT_WARPS: usize = 4;
const ATTEND_THREADS: u32 = 128;
const ATTEND_WARPS: usize = 4;

pub(super) fn style_code(style: RopeStyle) -> u32 {
    match style {
        RopeStyle::Pairs => 0,
        RopeStyle::Halves => 1,
    }
}

pub(super) fn origin_code(origin: Origin) -> u32 {
    match origin {
        Origin::BlocksSeen => 0,
        Origin::BlocksRetrieved => 1,
    }
}

fn together_code(selection: Selection) -> u32 {
    match selection {
        Selection::PerTokenAndHead => 0,
        Selection::MaxOverHeads => 1,
        Selection::MaxOverTokens => 2,
    }
}

fn append_defines(x: DType, ring: DType, m: &MemoryShape, wide: bool) -> Defines {
    let defines = Defines::new().dtype("X_T", x).dtype("RING_T", ring).set("HEAD_DIM", m.head_dim);
    defines.set("BLOCK", m.block).flag("WIDE", wide)
}

/// Whether the heads of a chunk can be stored 16 bytes at a time.
fn is_wide(op: &AppendKv, c: &Compiler<'_>) -> bool {
    let x = c.dtype(op.k.tensor);
    let whole = |elements: usize| (elements * x.size()).is_multiple_of(16);
    let fits = |cols: Cols| whole(cols.start) && whole(c.cols(cols.tensor));
    x == c.dtype(op.keys) && whole(op.memory.head_dim) && fits(op.k) && fits(op.v)
}

/// What every kernel that reads landmarks is compiled for.
pub(super) fn score_defines(x: DType, m: &MemoryShape, style: RopeStyle) -> Defines {
    let style = style_code(style);
    let extents = Defines::new().set("HEAD_DIM", m.head_dim).set("BLOCK", m.block).set("TOPK", m.top_k);
    extents.dtype("X_T", x).set("STYLE", style)
}

fn select_defines(selection: Selection, m: &MemoryShape) -> Defines {
    Defines::new().set("TOGETHER", together_code(selection)).set("BLOCK", m.block).set("TOPK", m.top_k)
}

/// What of an attention is known when it is compiled, besides the memory's extents.
struct Features {
    style: RopeStyle,
    choice: bool,
    miss: bool,
    cutoff: bool,
    shares: bool,
}

fn attend_defines(x: DType, ring: DType, m: &MemoryShape, f: &Features) -> Defines {
    score_defines(x, m, f.style)
        .dtype("RING_T", ring)
        .set("ORIGIN", origin_code(m.origin))
        .flag("CHOICE", f.choice)
        .flag("MISS", f.miss)
        .flag("CUTOFF", f.cutoff)
        .flag("SHARES", f.shares)
}

pub(super) fn append_kv(op: &AppendKv, c: &mut Compiler<'_>) -> Result<()> {
    let m = &op.memory;
    if c.dtype(op.keys) != c.dtype(op.values) || c.dtype(op.keys) != c.dtype(op.landmarks) {
        return Err(c.unsupported("keys, values and landmarks of a memory have one element type"));
    }
    if c.dtype(op.k.tensor) != c.dtype(op.v.tensor) {
        return Err(c.unsupported("keys and values of a chunk have one element type"));
    }
    let wide = is_wide(op, c);
    let defines = append_defines(c.dtype(op.k.tensor), c.dtype(op.keys), m, wide);
    let kernel = c.kernel("append_kv.cu", "append_kv", defines)?;
    let rows = c.rows(op.k.tensor) / m.batch;
    let unit = if wide { 16 / c.dtype(op.k.tensor).size() } else { 1 };
    let units = (rows - op.skip) * m.kv_heads * m.head_dim / unit;
    let blocks = units.div_ceil(APPEND_THREADS).min(4096) as u32;
    let args = args![
        c.cols_pointer(op.k),
        c.cols(op.k.tensor) as i32,
        c.cols_pointer(op.v),
        c.cols(op.v.tensor) as i32,
        c.pointer(op.lengths),
        c.pointer(op.counts),
        c.pointer(op.keys),
        c.pointer(op.values),
        c.pointer(op.landmarks),
        rows as i32,
        op.skip as i32,
        m.slots() as i32,
        m.kv_heads as i32,
    ];
    c.launch_dependent(&kernel, [blocks, m.batch as u32, 1], APPEND_THREADS as u32, 0, args)?;
    forget_pages(op, c)
}

/// Where pages of the rings are cached on the device, those that were written are forgotten.
fn forget_pages(op: &AppendKv, c: &mut Compiler<'_>) -> Result<()> {
    let m = &op.memory;
    let Some(heads) = c.query_heads(op.keys) else { return Ok(()) };
    let Some(ways) = retrieval_decode::ways(c, op.keys, op.values, heads, m) else { return Ok(()) };
    let defines = append_defines(c.dtype(op.k.tensor), c.dtype(op.keys), m, is_wide(op, c));
    let kernel = c.kernel("append_kv.cu", "forget_pages", defines)?;
    let args = args![c.pointer(op.lengths), c.pointer(op.counts), ways.tags, heads as i32, ways.ways as i32];
    c.launch_dependent(&kernel, [(m.batch * heads) as u32, 1, 1], 256, 0, args)
}

pub(super) fn landmark_scores(op: &LandmarkScores, c: &mut Compiler<'_>) -> Result<()> {
    let m = &op.memory;
    if c.dtype(op.q.tensor) != c.dtype(op.landmarks) || c.dtype(op.out) != DType::F32 {
        return Err(c.unsupported("queries and landmarks have one element type, and scores are float32"));
    }
    let defines = score_defines(c.dtype(op.q.tensor), m, op.style);
    let kernel = c.kernel("landmark_scores.cu", "landmark_scores", defines)?;
    let rows = c.rows(op.q.tensor) / m.batch;
    let queries = rows - op.skip;
    let grid = [
        m.blocks.div_ceil(SCORE_THREADS) as u32,
        queries.div_ceil(SCORE_QUERIES) as u32,
        (m.batch * op.heads) as u32,
    ];
    let args = args![
        c.cols_pointer(op.q),
        c.cols(op.q.tensor) as i32,
        c.pointer(op.landmarks),
        c.pointer(op.lengths),
        c.pointer(op.frequencies),
        c.pointer(op.out),
        rows as i32,
        op.skip as i32,
        m.blocks as i32,
        op.heads as i32,
        m.kv_heads as i32,
    ];
    c.launch_dependent(&kernel, grid, SCORE_THREADS as u32, 0, args)
}

pub(super) fn select_blocks(op: &SelectBlocks, c: &mut Compiler<'_>) -> Result<()> {
    let m = &op.memory;
    let [batch, heads, queries, blocks] = *c.shape(op.scores).dims() else {
        return Err(c.unsupported("scores are (B, H, T, blocks)"));
    };
    if c.dtype(op.scores) != DType::F32 {
        return Err(c.unsupported("scores are float32"));
    }
    if m.top_k == 0 || queries == 0 {
        return Ok(());
    }
    let defines = select_defines(op.selection, m);
    let threads = (SELECT_WARPS * 32) as u32;
    let grid = |rows: usize| [rows.div_ceil(SELECT_WARPS) as u32, 1, 1];
    let (lengths, counts) = (c.pointer(op.lengths), c.pointer(op.counts));
    let mut scores = c.pointer(op.scores);
    let groups = match op.selection {
        Selection::PerTokenAndHead => batch * heads * queries,
        Selection::MaxOverHeads => batch * queries,
        Selection::MaxOverTokens => batch * heads,
    };
    if op.selection != Selection::PerTokenAndHead {
        let rows = batch * heads * queries;
        let sums = c.workspace((rows * 8) as u64);
        let best = c.workspace((groups * blocks.max(1) * 4) as u64);
        let kernel = c.kernel("select_blocks.cu", "row_sums", defines.clone())?;
        let args = args![scores, lengths, sums, batch as i32, (heads * queries) as i32, blocks as i32];
        c.launch_dependent(&kernel, grid(rows), threads, 0, args)?;
        let kernel = c.kernel("select_blocks.cu", "best_probabilities", defines.clone())?;
        let args = args![scores, sums, lengths, counts, best, heads as i32, queries as i32, blocks as i32];
        c.launch_dependent(&kernel, [blocks.div_ceil(128) as u32, groups as u32, 1], 128, 0, args)?;
        scores = best;
    }
    let kernel = c.kernel("select_blocks.cu", "select_rows", defines)?;
    let args = args![
        scores,
        lengths,
        counts,
        c.pointer(op.chosen),
        batch as i32,
        heads as i32,
        queries as i32,
        blocks as i32,
    ];
    c.launch_dependent(&kernel, grid(groups), threads, 0, args)
}

pub(super) fn retrieval_attention(op: &RetrievalAttention, c: &mut Compiler<'_>) -> Result<()> {
    if retrieval_prefill::try_attention(op, c)? {
        return Ok(());
    }
    let (m, h) = (&op.memory, &op.heads);
    let x = c.dtype(op.q.tensor);
    let same = [op.k.tensor, op.v.tensor, op.out].iter().all(|&t| c.dtype(t) == x);
    if !same || c.dtype(op.keys) != c.dtype(op.values) || op.shares.is_some_and(|s| c.dtype(s) != DType::F32)
    {
        return Err(
            c.unsupported("queries, keys, values and result have one element type; shares are float32")
        );
    }
    let features = Features {
        style: op.style,
        choice: op.chosen.is_some(),
        miss: op.miss,
        cutoff: op.miss_cutoff.is_some(),
        shares: op.shares.is_some() && m.top_k > 0,
    };
    let kernel = c.kernel(
        "retrieval_attention.cu",
        "retrieval_attention",
        attend_defines(x, c.dtype(op.keys), m, &features),
    )?;
    // Whole blocks: what is behind the last key of one is read with it, and not used.
    let row = (m.top_k.min(m.blocks) * m.block + m.block - 1 + h.queries).next_multiple_of(m.block);
    let shared = 4 * ((m.top_k + 3).max(ATTEND_WARPS) * m.head_dim + row);
    if shared > 200 * 1024 {
        return Err(c.unsupported(format!(
            "{row} keys of one query do not fit shared memory: read the text in smaller chunks (--chunk)"
        )));
    }
    let args = args![
        c.cols_pointer(op.q),
        c.cols(op.q.tensor) as i32,
        c.cols_pointer(op.k),
        c.cols(op.k.tensor) as i32,
        c.cols_pointer(op.v),
        c.cols(op.v.tensor) as i32,
        c.pointer(op.keys),
        c.pointer(op.values),
        c.pointer(op.lengths),
        c.pointer_or_null(op.chosen),
        c.pointer(op.frequencies),
        c.pointer(op.out),
        c.pointer_or_null(op.shares),
        h.queries as i32,
        m.blocks as i32,
        h.heads as i32,
        h.kv_heads as i32,
        op.miss_cutoff.unwrap_or(0.0),
    ];
    let grid = [h.queries as u32, h.heads as u32, h.batch as u32];
    c.launch_dependent(&kernel, grid, ATTEND_THREADS, shared as u32, args)
}

/// A memory of one row and one head, for lists of variants: kernels are compiled for these extents and no others.
pub(super) fn sample(
    blocks: usize,
    head_dim: usize,
    block: usize,
    top_k: usize,
    origin: Origin,
) -> MemoryShape {
    MemoryShape { batch: 1, blocks, block, top_k, kv_heads: 1, head_dim, origin }
}

pub(super) fn variants() -> Vec<Variant> {
    let seven = sample(1, 128, 64, 5, Origin::BlocksRetrieved);
    let gpt = sample(1, 64, 51, 4, Origin::BlocksSeen);
    let small = sample(1, 16, 4, 0, Origin::BlocksSeen);
    let mut all = Vec::new();
    for (x, m, style, miss) in [
        (DType::F32, &seven, RopeStyle::Halves, false),
        (DType::Bf16, &gpt, RopeStyle::Pairs, true),
        (DType::F16, &gpt, RopeStyle::Pairs, false),
        (DType::F32, &small, RopeStyle::Pairs, true),
    ] {
        let f = Features { style, choice: m.top_k > 0, miss, cutoff: miss, shares: m.top_k > 0 };
        all.extend([false, true].map(|wide| Variant::new("append_kv.cu", append_defines(x, x, m, wide))));
        all.push(Variant::new("landmark_scores.cu", score_defines(x, m, style)));
        all.push(Variant::new("retrieval_attention.cu", attend_defines(x, x, m, &f)));
    }
    for selection in [Selection::PerTokenAndHead, Selection::MaxOverHeads, Selection::MaxOverTokens] {
        all.push(Variant::new("select_blocks.cu", select_defines(selection, &seven)));
    }
    all
}
