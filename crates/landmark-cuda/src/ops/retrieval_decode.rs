//! A step of a few tokens against the landmark memory: what lies between the projections of a layer, in one launch.
//!
//! The recorded ops are Rope of the queries (in place or not), Rope of the keys, LandmarkScores, SelectBlocks,
//! RetrievalAttention, AppendKv. When they come in this order, over one memory, and nobody else reads what passes
//! between them, the kernel takes all of them; it uses clusters where there are some (sm_90). With grouped queries AppendKv is a launch of
//! its own, since several clusters read what it writes.

use super::memory::{append_kv, origin_code, sample, style_code};
use crate::compile::{Arch, Defines, Variant};
use crate::paging::Ways;
use crate::plan::{Compiler, args};
use landmark_core::ops::{
    AppendKv, LandmarkScores, MemoryShape, Op, Origin, RetrievalAttention, Rope, RopeStyle, SelectBlocks,
    Selection,
};
use landmark_core::{DType, Result, Tensor};

const FILE: &str = "retrieval_decode.cu";
/// As in the kernel file.
const MOST_RANKS: usize = 8;
const WARPS: usize = 8;
/// More queries share the memory better in the kernels for chunks.
const MOST_TOKENS: usize = 4;
/// Bytes of shared memory that a block may have on every architecture.
const MOST_SHARED: usize = 96 * 1024;

/// The ops that become one launch.
struct Found {
    turn_q: Rope,
    scores: LandmarkScores,
    select: SelectBlocks,
    attend: RetrievalAttention,
    append: AppendKv,
}

const OPS: usize = 6;

fn find(ops: &[Op]) -> Option<Found> {
    match ops {
        [
            Op::Rope(turn_q),
            Op::Rope(turn_k),
            Op::LandmarkScores(scores),
            Op::SelectBlocks(select),
            Op::RetrievalAttention(attend),
            Op::AppendKv(append),
            ..,
        ] => {
            let is_chain = turn_q.out == scores.q
                && turn_q.out == attend.q
                && !turn_q.inverse
                && !turn_k.inverse
                && turn_k.x == append.k
                && turn_k.out == attend.k
                && turn_k.positions == turn_q.positions
                && scores.out == select.scores
                && attend.chosen == Some(select.chosen)
                && attend.v == append.v
                && attend.keys == append.keys
                && attend.values == append.values
                && scores.landmarks == append.landmarks
                && [turn_q.style, turn_k.style, attend.style].iter().all(|&s| s == scores.style)
                && [turn_q.frequencies, turn_k.frequencies, attend.frequencies]
                    .iter()
                    .all(|&f| f == scores.frequencies)
                && [attend.memory, append.memory, select.memory].iter().all(|&m| m == scores.memory)
                && select.counts == append.counts
                && [select.lengths, attend.lengths, append.lengths].iter().all(|&l| l == scores.lengths);
            let is_plain = !attend.miss && append.skip == 0 && scores.skip == 0;
            (is_chain && is_plain).then(|| Found {
                turn_q: turn_q.clone(),
                scores: scores.clone(),
                select: select.clone(),
                attend: attend.clone(),
                append: append.clone(),
            })
        }
        _ => None,
    }
}

/// Blocks of a cluster: as many as find at least 8 landmarks each to score, and a multiprocessor each to run on. (32
/// heads of 8 blocks took three turns at an H100, 37 us where 8 heads took 12.)
fn ranks(m: &MemoryShape, heads: usize, arch: Arch, multiprocessors: u32) -> usize {
    let apart = multiprocessors as usize / (m.batch * heads).max(1);
    let wanted = (m.blocks / 8).min(apart).clamp(1, MOST_RANKS);
    if arch.is_hopper() { 1 << wanted.ilog2() } else { 1 }
}

fn bytes_of_shared(m: &MemoryShape, tokens: usize, ranks: usize) -> usize {
    let four = |n: usize| n.next_multiple_of(4);
    let turned = 1 + m.top_k + m.top_k + 3;
    let owned = tokens.div_ceil(ranks);
    let floats = tokens * turned * m.head_dim
        + tokens * m.head_dim
        + WARPS * m.head_dim
        + owned * (m.top_k + 2) * m.head_dim
        + four(owned * (m.top_k + 2))
        + four(m.block)
        + four(tokens * m.top_k)
        + tokens * m.blocks.div_ceil(ranks);
    let angles = m.block * (m.head_dim / 2) * 8;
    let candidates = tokens * (ranks + WARPS) * m.top_k * 8;
    angles + 4 * floats + candidates
}

fn defines(
    x: DType,
    m: &MemoryShape,
    tokens: usize,
    style: RopeStyle,
    append: bool,
    shares: bool,
    (ranks, cached): (usize, bool),
) -> Defines {
    Defines::new()
        .dtype("X_T", x)
        .set("HEAD_DIM", m.head_dim)
        .set("BLOCK", m.block)
        .set("TOPK", m.top_k)
        .set("TOKENS", tokens)
        .set("STYLE", style_code(style))
        .set("ORIGIN", origin_code(m.origin))
        .flag("APPEND", append)
        .flag("SHARES", shares)
        .set("RANKS", ranks)
        .flag("CACHED", cached)
}

/// Whether the kernel serves these extents.
fn serves(x: DType, m: &MemoryShape, tokens: usize, ranks: usize) -> bool {
    let vector = 16 / x.size();
    let lanes = m.head_dim / vector;
    let span = lanes.next_power_of_two().max(4);
    let rounds = m.block.div_ceil(WARPS * 32 / span.min(32));
    (1..=MOST_TOKENS).contains(&tokens)
        && (tokens..=256).contains(&m.block)
        && (1..=16).contains(&m.top_k)
        && m.blocks > 0
        && (m.head_dim / 2).is_multiple_of(vector)
        && lanes <= 32
        && rounds <= 8
        && bytes_of_shared(m, tokens, ranks) <= MOST_SHARED
}

/// The ways of a memory in host memory. Every program over it has to come to the same ones: they follow from the whole
/// batch, and from the number of query heads, which is a model's.
pub(super) fn ways(
    c: &Compiler<'_>,
    keys: Tensor,
    values: Tensor,
    heads: usize,
    m: &MemoryShape,
) -> Option<Ways> {
    let (of_keys, of_values) = c.page_cache(keys, values)?;
    let rows = c.whole(keys).dims().first().copied()?;
    let page = (m.page() * c.dtype(keys).size()) as u64;
    let fewest = (MOST_TOKENS * m.top_k) as u64 + 1;
    Ways::cut(of_keys, of_values, (rows * heads) as u64, page, fewest)
}

/// Launches the ops of a step of a few tokens, if they come next; returns how many it took.
pub(super) fn try_launch(c: &mut Compiler<'_>) -> Result<usize> {
    let Some(Found { turn_q, scores, select, attend, append }) = find(c.ahead()) else { return Ok(0) };
    let (m, h) = (attend.memory, attend.heads);
    let x = c.dtype(attend.q.tensor);
    let tensors =
        [turn_q.x.tensor, attend.v.tensor, append.k.tensor, append.keys, append.values, append.landmarks];
    let ranks = ranks(&m, h.heads, c.arch(), c.multiprocessors());
    let fits = tensors.iter().all(|&t| c.dtype(t) == x)
        && c.dtype(attend.out) == x
        && attend.shares.is_none_or(|s| c.dtype(s) == DType::F32)
        && serves(x, &m, h.queries, ranks)
        && (select.selection == Selection::PerTokenAndHead
            || (select.selection == Selection::MaxOverTokens && h.queries == 1))
        && [turn_q.x, append.k, append.v].iter().all(|cols| {
            (cols.start * x.size()).is_multiple_of(16) && (c.cols(cols.tensor) * x.size()).is_multiple_of(16)
        });
    // What the launch leaves unwritten, or as it was: the turned queries and keys, and the scores.
    let fused = h.heads == h.kv_heads;
    let between = [turn_q.out.tensor, attend.k.tensor, scores.out];
    if !fits || !between.iter().all(|&t| c.is_passing(t, OPS)) {
        return Ok(0);
    }
    let ways = ways(c, append.keys, append.values, h.heads, &m);
    let kernel = c.kernel(
        FILE,
        "retrieval_decode",
        defines(x, &m, h.queries, scores.style, fused, attend.shares.is_some(), (ranks, ways.is_some())),
    )?;
    let args = args![
        c.cols_pointer(turn_q.x),
        c.cols(turn_q.x.tensor) as i32,
        c.cols_pointer(append.k),
        c.cols(append.k.tensor) as i32,
        c.cols_pointer(append.v),
        c.cols(append.v.tensor) as i32,
        c.pointer(turn_q.positions),
        c.pointer(attend.lengths),
        c.pointer(select.counts),
        c.pointer(scores.frequencies),
        c.pointer(append.keys),
        c.pointer(append.values),
        c.pointer(append.landmarks),
        c.pointer(attend.out),
        c.pointer(select.chosen),
        c.pointer_or_null(attend.shares),
        m.blocks as i32,
        h.heads as i32,
        h.kv_heads as i32,
        ways.map_or(0, |w| w.tags),
        ways.map_or(0, |w| w.hands),
        ways.map_or(0, |w| w.keys),
        ways.map_or(0, |w| w.values),
        ways.map_or(0, |w| w.ways as i32),
    ];
    let shared = bytes_of_shared(&m, h.queries, ranks) as u32;
    let grid = [ranks as u32, h.heads as u32, m.batch as u32];
    c.launch_cluster(&kernel, grid, ranks as u32, (WARPS * 32) as u32, shared, args)?;
    if !fused {
        append_kv(&append, c)?;
    }
    Ok(OPS)
}

pub(super) fn variants() -> Vec<Variant> {
    let shape = |head_dim, block, top_k, origin| sample(512, head_dim, block, top_k, origin);
    let seven = shape(128, 64, 5, Origin::BlocksRetrieved);
    let gpt = shape(128, 51, 4, Origin::BlocksSeen);
    let wide = shape(256, 64, 5, Origin::BlocksSeen);
    let narrow = shape(64, 16, 2, Origin::BlocksSeen);
    let (pairs, halves) = (RopeStyle::Pairs, RopeStyle::Halves);
    let mut all = vec![
        (DType::Bf16, &seven, 1, halves, true, false),
        (DType::Bf16, &seven, 2, halves, true, false),
        (DType::Bf16, &gpt, 4, pairs, true, true),
        (DType::F16, &gpt, 1, pairs, false, true),
        (DType::F32, &gpt, 1, pairs, true, false),
        (DType::F32, &seven, 2, halves, true, false),
        (DType::Bf16, &wide, 1, halves, true, false),
    ];
    all.push((DType::F16, &narrow, 2, halves, true, true));
    let variant = |ranks: usize| {
        all.clone().into_iter().map(move |(x, m, tokens, style, append, shares)| {
            defines(x, m, tokens, style, append, shares, (ranks, false))
        })
    };
    let tiered = |ranks| defines(DType::Bf16, &seven, 1, halves, true, false, (ranks, true));
    let clusters = variant(8).chain(variant(4).take(2)).chain([tiered(8), tiered(4)]);
    let clusters = clusters.map(|d| Variant::for_hopper(FILE, d));
    clusters.chain(variant(1).take(3).map(|d| Variant::new(FILE, d))).collect()
}
