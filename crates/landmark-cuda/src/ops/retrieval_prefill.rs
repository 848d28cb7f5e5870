//! A long chunk against the landmark memory, on the tensor cores: the choice of blocks without stored scores, and the
//! attention that reads every block once for all queries that chose it.

use super::landmark_attention::{side, whole};
use super::landmark_attention_hopper::{Slots, attend_chunk, chunk_span, chunk_variant};
use super::memory::{origin_code, sample, score_defines};
use crate::attention::{Attention, Halves, HeadsAt, LandmarksAt, RandomnessAt};
use crate::compile::{Defines, Variant};
use crate::plan::{Compiler, args};
use landmark_core::ops::{
    LandmarkScores, MemoryShape, Op, Origin, RetrievalAttention, RopeStyle, SelectBlocks, Selection,
};
use landmark_core::{Cols, DType, Result};

const CHOICE: &str = "landmark_choice.cu";
const ATTENTION: &str = "retrieval_prefill.cu";
/// As in the kernel files: threads of a block, queries and landmarks of a tile, queries of a piece, threads of a team.
const THREADS: u32 = 128;
const TILE: usize = 64;
const MEMBERS: usize = 64;
const TEAM: usize = 64;
/// Fewer queries are served by the kernels for any chunk.
const FEWEST_QUERIES: usize = 16;
const MOST_TOP_K: usize = 8;
/// Landmarks that a thread of `turn_landmarks` turns, its part of each.
const TURNED_EACH: usize = 4;
/// Blocks of threads of `attend_blocks` for each multiprocessor, on which one is resident.
const BLOCKS_EACH: usize = 4;
/// Blocks of threads that `prepare` has besides one for each list.
const PREPARING: usize = 64;

fn key_stride(m: &MemoryShape) -> usize {
    let row = m.head_dim * 2;
    if row % 128 == 64 { row } else { row + 64 }
}

/// Bytes of a tile of keys and values.
fn tile_bytes(m: &MemoryShape) -> usize {
    m.block.next_multiple_of(16) * (key_stride(m) + m.head_dim * 2 + 16)
}

/// Teams of a block of `attend_blocks`, each with a tile, that fit in so much shared memory. Five and six leave a thread 168
/// registers, which is too few for pairs, and where a query's steps do not come in pairs.
fn teams(m: &MemoryShape, style: RopeStyle, shared: usize) -> usize {
    let most = if style == RopeStyle::Halves && m.head_dim.is_multiple_of(64) { 6 } else { 4 };
    (shared / tile_bytes(m)).min(most)
}

fn attend_defines(
    x: DType,
    m: &MemoryShape,
    style: RopeStyle,
    choice: bool,
    shares: bool,
    teams: usize,
) -> Defines {
    let defines = score_defines(x, m, style).set("ORIGIN", origin_code(m.origin));
    defines.flag("CHOICE", choice).flag("SHARES", shares).set("TEAMS", teams)
}

/// Whether heads of this type and width can be cut into fragments.
fn serves(x: DType, m: &MemoryShape) -> bool {
    matches!(x, DType::Bf16 | DType::F16) && m.head_dim.is_multiple_of(32) && m.head_dim <= 256
}

fn is_aligned(c: &Compiler<'_>, cols: Cols) -> bool {
    cols.start.is_multiple_of(8) && c.cols(cols.tensor).is_multiple_of(8)
}

/// Launches LandmarkScores and SelectBlocks as one, if they come next; returns how many ops it took.
pub(super) fn try_choice(c: &mut Compiler<'_>) -> Result<usize> {
    let [Op::LandmarkScores(scores), Op::SelectBlocks(select), ..] = c.ahead() else { return Ok(0) };
    let (scores, select) = (scores.clone(), select.clone());
    let m = scores.memory;
    let x = c.dtype(scores.q.tensor);
    let rows = c.rows(scores.q.tensor) / m.batch;
    let fits = select.scores == scores.out
        && select.memory == m
        && select.selection == Selection::PerTokenAndHead
        && select.lengths == scores.lengths
        && c.is_passing(scores.out, 2)
        && serves(x, &m)
        && c.dtype(scores.landmarks) == x
        && is_aligned(c, scores.q)
        && (1..=MOST_TOP_K).contains(&m.top_k)
        && m.blocks > 0
        && rows - scores.skip >= FEWEST_QUERIES;
    if !fits {
        return Ok(0);
    }
    launch_choice(&scores, &select, x, rows, c)?;
    Ok(2)
}

fn launch_choice(
    scores: &LandmarkScores,
    select: &SelectBlocks,
    x: DType,
    rows: usize,
    c: &mut Compiler<'_>,
) -> Result<()> {
    let m = scores.memory;
    let turned = c.workspace((m.batch * m.kv_heads * m.blocks * m.head_dim * x.size()) as u64);
    let defines = score_defines(x, &m, scores.style);
    let kernel = c.kernel(CHOICE, "turn_landmarks", defines.clone())?;
    let units = m.head_dim / if scores.style == RopeStyle::Pairs { 8 } else { 16 };
    let across = m.blocks.div_ceil(256 / units * TURNED_EACH) as u32;
    let args = args![
        c.pointer(scores.landmarks),
        c.pointer(scores.lengths),
        c.pointer(scores.frequencies),
        turned,
        m.blocks as i32,
        m.kv_heads as i32,
    ];
    c.launch_dependent(&kernel, [across, (m.batch * m.kv_heads) as u32, 1], 256, 0, args)?;
    let kernel = c.kernel(CHOICE, "landmark_choice", defines)?;
    let args = args![
        c.cols_pointer(scores.q),
        c.cols(scores.q.tensor) as i32,
        turned,
        c.pointer(scores.lengths),
        c.pointer(select.counts),
        c.pointer(select.chosen),
        rows as i32,
        scores.skip as i32,
        m.blocks as i32,
        scores.heads as i32,
        m.kv_heads as i32,
    ];
    let tiles = (rows - scores.skip).div_ceil(TILE) as u32;
    let shared = 2 * TILE * key_stride(&m);
    c.launch_dependent(&kernel, [tiles, scores.heads as u32, m.batch as u32], THREADS, shared as u32, args)
}

/// Launches an attention over the memory, if these kernels serve it.
pub(super) fn try_attention(op: &RetrievalAttention, c: &mut Compiler<'_>) -> Result<bool> {
    let (m, h) = (op.memory, op.heads);
    let x = c.dtype(op.q.tensor);
    let same = [op.k.tensor, op.v.tensor, op.out, op.keys, op.values].iter().all(|&t| c.dtype(t) == x);
    let choosers = 4 * (m.blocks + 1);
    let fits = same
        && serves(x, &m)
        && m.head_dim <= 128
        && (2..=128).contains(&m.block)
        && !op.miss
        && h.queries >= FEWEST_QUERIES
        && [op.q, op.k, op.v].iter().all(|&cols| is_aligned(c, cols))
        && op.shares.is_none_or(|s| c.dtype(s) == DType::F32)
        && 2 * tile_bytes(&m) <= c.shared_per_block()
        && choosers <= c.shared_per_block();
    if fits {
        launch_attention(op, x, c)?;
    }
    Ok(fits)
}

/// The chunk's own part, on Hopper; `None`: not served there.
fn on_hopper(op: &RetrievalAttention, c: &Compiler<'_>) -> Option<Halves> {
    let h = op.heads;
    let attention = Attention {
        heads: h,
        landmarks: LandmarksAt::Regular { block: op.memory.block, phases: c.pointer(op.lengths) },
        scale: 1.0 / (h.head_dim as f32).sqrt(),
        q: side(op.q, h.queries, &h, c),
        k: side(op.k, h.queries, &h, c),
        v: side(op.v, h.queries, &h, c),
        out: whole(op.out, &h, c),
        lse: 0,
        miss: None,
        first_key: 0,
        randomness: RandomnessAt::default(),
    };
    attention.halves().filter(|_| chunk_span(&op.memory, c) > 0)
}

/// Workspace between the launches of an attention.
struct Between {
    /// Results of slots and landmark scores.
    parts: u64,
    marks: u64,
    /// Keys and values of the first tile: see `prepare` in the kernel file.
    first: [u64; 2],
    span: usize,
}

fn launch_attention(op: &RetrievalAttention, x: DType, c: &mut Compiler<'_>) -> Result<()> {
    let (m, h) = (op.memory, op.heads);
    let choice = op.chosen.is_some() && m.top_k > 0 && m.blocks > 0;
    let shares = op.shares.is_some() && m.top_k > 0;
    let teams = teams(&m, op.style, c.shared_per_block());
    let defines = attend_defines(x, &m, op.style, choice, shares, teams);
    let hopper = on_hopper(op, c);
    let entries = if choice { h.batch * h.heads * h.queries * m.top_k } else { 0 };
    let span = hopper.map_or(0, |_| chunk_span(&m, c));
    let first = h.batch * span * h.kv_heads * h.head_dim * x.size();
    let between = Between {
        parts: c.workspace((entries * m.head_dim * x.size()) as u64),
        marks: c.workspace((entries * 4) as u64),
        first: [c.workspace(first as u64), c.workspace(first as u64)],
        span,
    };
    launch_blocks(op, &defines, teams, &between, choice, c)?;
    let Some(halves) = hopper else { return launch_local(op, defines, &between, c) };
    let row = h.kv_heads * h.head_dim;
    let slots = Slots {
        first: between.first.map(|address| HeadsAt { address, batch: span * row, row, head: h.head_dim }),
        chosen: c.pointer_or_null(op.chosen),
        parts: between.parts,
        marks: between.marks,
        shares: c.pointer_or_null(op.shares),
    };
    attend_chunk(&halves, &m, (choice, shares), &slots, c)
}

/// The chunk's own part by `mma.sync`.
fn launch_local(
    op: &RetrievalAttention,
    defines: Defines,
    between: &Between,
    c: &mut Compiler<'_>,
) -> Result<()> {
    let (m, h) = (op.memory, op.heads);
    let kernel = c.kernel(ATTENTION, "attend_local", defines)?;
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
        c.pointer(op.frequencies),
        c.pointer_or_null(op.chosen),
        between.parts,
        between.marks,
        c.pointer(op.out),
        c.pointer_or_null(op.shares),
        h.queries as i32,
        m.blocks as i32,
        h.heads as i32,
        h.kv_heads as i32,
    ];
    let grid = [h.queries.div_ceil(TILE) as u32, h.heads as u32, h.batch as u32];
    c.launch_dependent(&kernel, grid, THREADS, 2 * tile_bytes(&m) as u32, args)
}

/// What the chunk's own part waits for: its first tile, and every block for the queries that chose it.
fn launch_blocks(
    op: &RetrievalAttention,
    defines: &Defines,
    teams: usize,
    between: &Between,
    choice: bool,
    c: &mut Compiler<'_>,
) -> Result<()> {
    let (m, h) = (op.memory, op.heads);
    let lists = if choice { h.batch * h.heads } else { 0 };
    let of_head = h.queries * m.top_k;
    // Pieces of at most MEMBERS queries: at worst one for each block, and one more for each MEMBERS entries.
    let room = m.blocks.min(of_head) + of_head / MEMBERS;
    let angles = c.workspace(((m.block + m.top_k + 2) * m.head_dim / 2 * 8) as u64);
    let list = c.workspace((lists * of_head * 4) as u64);
    let tiles = c.workspace((lists * room * 16) as u64);
    let counts = c.workspace((lists * 4) as u64);
    if choice || between.span > 0 {
        let kernel = c.kernel(ATTENTION, "prepare", defines.clone())?;
        let args = args![
            c.pointer_or_null(op.chosen),
            c.pointer(op.lengths),
            list,
            tiles,
            counts,
            c.pointer(op.frequencies),
            angles,
            c.cols_pointer(op.k),
            c.cols(op.k.tensor) as i32,
            c.cols_pointer(op.v),
            c.cols(op.v.tensor) as i32,
            c.pointer(op.keys),
            c.pointer(op.values),
            between.first[0],
            between.first[1],
            between.span as i32,
            h.queries as i32,
            m.blocks as i32,
            h.heads as i32,
            h.kv_heads as i32,
            h.batch as i32,
            lists as i32,
            room as i32,
        ];
        let shared = (4 * (m.blocks + 1)) as u32;
        c.launch_dependent(&kernel, [(lists + PREPARING) as u32, 1, 1], 1024, shared, args)?;
    }
    if !choice {
        return Ok(());
    }
    let kernel = c.kernel(ATTENTION, "attend_blocks", defines.clone())?;
    let args = args![
        c.cols_pointer(op.q),
        c.cols(op.q.tensor) as i32,
        c.pointer(op.keys),
        c.pointer(op.values),
        c.pointer(op.lengths),
        angles,
        list,
        tiles,
        counts,
        between.parts,
        between.marks,
        h.queries as i32,
        m.blocks as i32,
        h.heads as i32,
        h.kv_heads as i32,
        room as i32,
    ];
    let across = (c.multiprocessors() as usize * BLOCKS_EACH / lists).clamp(1, room);
    let grid = [across as u32, h.heads as u32, h.batch as u32];
    c.launch_dependent(&kernel, grid, (teams * TEAM) as u32, (teams * tile_bytes(&m)) as u32, args)
}

/// Bytes of shared memory that a block can have on every GPU from 8.0 on, and on those that have most.
const LEAST_SHARED: usize = 99 << 10;
const MOST_SHARED: usize = 227 << 10;

pub(super) fn variants() -> Vec<Variant> {
    let shape = |head_dim, block, top_k, origin| sample(1, head_dim, block, top_k, origin);
    let seven = shape(128, 64, 5, Origin::BlocksRetrieved);
    let gpt = shape(128, 51, 4, Origin::BlocksSeen);
    let narrow = shape(64, 64, 2, Origin::BlocksSeen);
    let long = shape(96, 128, 8, Origin::BlocksSeen);
    let mut all = Vec::new();
    for (x, m, style, shares) in [
        (DType::Bf16, &seven, RopeStyle::Halves, false),
        (DType::F16, &gpt, RopeStyle::Pairs, true),
        (DType::Bf16, &narrow, RopeStyle::Halves, true),
        (DType::Bf16, &long, RopeStyle::Pairs, false),
    ] {
        all.push(Variant::new(CHOICE, score_defines(x, m, style)));
        for shared in [LEAST_SHARED, MOST_SHARED] {
            all.push(Variant::new(
                ATTENTION,
                attend_defines(x, m, style, true, shares, teams(m, style, shared)),
            ));
        }
        all.extend(chunk_variant(x, m, true, shares));
    }
    all.extend(chunk_variant(DType::Bf16, &seven, false, false));
    all.push(Variant::new(
        ATTENTION,
        attend_defines(
            DType::Bf16,
            &seven,
            RopeStyle::Halves,
            false,
            false,
            teams(&seven, RopeStyle::Halves, LEAST_SHARED),
        ),
    ));
    all.push(Variant::new(
        CHOICE,
        score_defines(DType::Bf16, &shape(256, 64, 5, Origin::BlocksSeen), RopeStyle::Halves),
    ));
    all
}
