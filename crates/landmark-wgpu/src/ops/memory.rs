//! The landmark memory: append, score, select. What is retrieved is attended to in `retrieval.rs`.

use super::MEMORY;
use super::retrieval::{self, angles};
use super::retrieval_units;
use super::rope::{head_alignment, place, read_heads};
use crate::kernel::{Entry, Kernel, Resource};
use crate::plan::{Compiler, LONE_THREADS, Part, WORKGROUP, alignment};
use landmark_core::ops::{AppendKv, LandmarkScores, MemoryShape, Op, SelectBlocks, Selection};
use landmark_core::{DType, Program, Result, Tensor};
use std::collections::HashMap;

/// Queries of a row of the batch that are split over what they read: a step of generation.
pub(super) const FEW: usize = 8;

/// Extents of a memory, for `memory.wgsl`.
pub(super) fn describe(k: &mut Kernel, memory: &MemoryShape) {
    k.param("blocks", memory.blocks);
    k.param("block", memory.block);
    k.param("top_k", memory.top_k);
    k.include(MEMORY);
}

pub(super) fn append_kv(op: &AppendKv, c: &mut Compiler<'_>) -> Result<()> {
    let MemoryShape { batch, block, .. } = op.memory;
    for (keys, values) in c.rings(op.keys, op.values)? {
        let held = keys.rows.min(op.memory.kv_heads);
        let mut k = Kernel::new("append_kv", "");
        k.constant("WORKGROUP", WORKGROUP);
        k.each("append");
        k.param("batch", batch);
        k.param("block", block);
        k.param("first_head", keys.first);
        k.param("held", held);
        k.param("k_cols", c.cols(op.k.tensor));
        k.param("k_start", op.k.start);
        k.param("v_cols", c.cols(op.v.tensor));
        k.param("v_start", op.v.start);
        describe_append(op, c, &mut k, [&keys, &values])?;
        c.dispatch(k, append_threads(op, c, held).div_ceil(WORKGROUP))?;
    }
    Ok(())
}

/// Threads that store the key heads of a piece of the rings.
pub(super) fn append_threads(op: &AppendKv, c: &Compiler<'_>, held: usize) -> usize {
    let MemoryShape { batch, head_dim, .. } = op.memory;
    (c.rows(op.k.tensor) - batch * op.skip) * held * head_dim.div_ceil(4)
}

/// The function that stores what lies in a piece of the rings, where extents of heads, rings and projections are known.
pub(super) fn describe_append(
    op: &AppendKv,
    c: &Compiler<'_>,
    k: &mut Kernel,
    rings: [&Part; 2],
) -> Result<()> {
    let MemoryShape { batch, kv_heads, head_dim, .. } = op.memory;
    k.include(include_str!("../shaders/append_kv.wgsl"));
    for (name, cols) in [("k", op.k), ("v", op.v)] {
        c.read(k, name, cols.tensor, alignment(&[head_dim, cols.start, c.cols(cols.tensor)]))?;
    }
    c.uniform(k, "lengths", op.lengths)?;
    c.uniform(k, "counts", op.counts)?;
    for (name, tensor, part) in [("keys", op.keys, rings[0]), ("values", op.values, rings[1])] {
        c.ring(k, name, tensor, alignment(&[head_dim]), Entry::Write, part)?;
    }
    c.write(k, "landmarks", op.landmarks, alignment(&[head_dim]))?;
    k.param("tokens", c.rows(op.k.tensor) / batch - op.skip);
    k.param("skip", op.skip);
    k.param("slots", op.memory.slots());
    k.param("kv_heads", kv_heads);
    k.param("head_dim", head_dim);
    Ok(())
}

/// Whether scores are those of a step of generation.
pub(super) fn is_step(op: &LandmarkScores, c: &Compiler<'_>) -> bool {
    let tokens = c.rows(op.q.tensor) / op.memory.batch - op.skip;
    !c.works_alone() && tokens <= FEW && op.memory.head_dim.div_ceil(8) <= WORKGROUP
}

pub(super) fn landmark_scores(op: &LandmarkScores, c: &mut Compiler<'_>) -> Result<()> {
    if retrieval_units::score_landmarks(op, c)? {
        return Ok(());
    }
    let MemoryShape { batch, blocks, head_dim, .. } = op.memory;
    let tokens = c.rows(op.q.tensor) / batch - op.skip;
    let (mut k, threads, groups) = if c.works_alone() {
        let mut k = Kernel::new("landmark_scores", include_str!("../shaders/landmark_scores_alone.wgsl"));
        k.include(include_str!("../shaders/unit_tile.wgsl"));
        let table = angles(&op.memory, op.style, op.frequencies, c)?;
        k.raw("angles", "vec4<f32>", Entry::Read, table);
        let tiles = blocks.div_ceil(8) * tokens.div_ceil(8);
        (k, LONE_THREADS, [tiles.div_ceil(LONE_THREADS), 1])
    } else if is_step(op, c) {
        let k = Kernel::new("step_scores", include_str!("../shaders/step_scores.wgsl"));
        (k, WORKGROUP, [blocks.div_ceil(4 * (WORKGROUP / head_dim.div_ceil(8))), tokens])
    } else {
        let mut k = Kernel::new("landmark_scores", include_str!("../shaders/landmark_scores.wgsl"));
        // Queries lie in workgroup memory, 16 of heads up to 128.
        let most = (16 * 128 / head_dim).clamp(1, 16);
        let queries = tokens.next_power_of_two().min(1 << most.ilog2());
        k.constant("QUERIES", queries);
        (k, WORKGROUP, [blocks.div_ceil(WORKGROUP / queries), tokens.div_ceil(queries)])
    };
    k.constant("WORKGROUP", threads);
    k.rotary(op.style, head_dim);
    read_heads(&mut k, c, ("q", "q_positions"), op.q, (op.style, head_dim))?;
    c.read(&mut k, "landmarks", op.landmarks, head_alignment(op.style, head_dim, &[]))?;
    k.pairs("landmarks");
    c.uniform(&mut k, "lengths", op.lengths)?;
    c.uniform(&mut k, "frequencies", op.frequencies)?;
    c.write(&mut k, "out", op.out, 1)?;
    describe_scores(op, tokens, c, &mut k);
    c.dispatch_grid(k, [groups[0], groups[1], batch * op.heads])
}

/// Extents of the scores of all landmarks.
pub(super) fn describe_scores(op: &LandmarkScores, tokens: usize, c: &Compiler<'_>, k: &mut Kernel) {
    describe(k, &op.memory);
    k.param("tokens", tokens);
    k.param("skip", op.skip);
    k.param("heads", op.heads);
    k.param("kv_heads", op.memory.kv_heads);
    k.param("share", op.heads / op.memory.kv_heads);
    let q = place(op.q, c);
    k.param("q_cols", c.cols(q.tensor));
    k.param("q_start", q.start);
    k.param("scale", 1.0 / (op.memory.head_dim as f32).sqrt());
}

/// What the three kernels of a choice share.
fn choice(name: &'static str, body: &'static str, op: &SelectBlocks, c: &Compiler<'_>) -> Result<Kernel> {
    let mut k = Kernel::new(name, body);
    describe(&mut k, &op.memory);
    let scores = c.shape(op.scores).dims();
    k.param("batch", scores[0]);
    k.param("heads", scores[1]);
    k.param("tokens", scores[2]);
    c.uniform(&mut k, "lengths", op.lengths)?;
    c.uniform(&mut k, "counts", op.counts)?;
    Ok(k)
}

/// Whether the attention behind a choice makes it for itself: a step's, of every head by itself, that nobody asks for.
fn is_left_to_attention(op: &SelectBlocks, c: &Compiler<'_>) -> bool {
    let [Op::RetrievalAttention(next)] = c.ahead(1..=1) else { return false };
    op.selection == Selection::PerTokenAndHead
        && next.chosen == Some(op.chosen)
        && c.last_if_scratch(op.chosen) == Some(c.number() + 1)
        && next.lengths == op.lengths
        && next.heads.queries == c.shape(op.scores).dims()[2]
        && retrieval::is_split(next, c)
        && c.subgroups().is_some_and(|sizes| op.memory.top_k <= *sizes.start())
}

/// What attention looks for its blocks with.
pub(super) fn describe_choice(op: &SelectBlocks, c: &Compiler<'_>, k: &mut Kernel) -> Result<()> {
    k.include(include_str!("../shaders/block_choice.wgsl"));
    k.include("fn scores_one(e: u32) -> f32 { return of_landmarks_one(e); }\n");
    k.constant("TOP_K", op.memory.top_k);
    k.constant("SELECTION", 0);
    c.read(k, "of_landmarks", op.scores, 1)?;
    c.uniform(k, "counts", op.counts)?;
    k.param("tokens", c.shape(op.scores).dims()[2]);
    Ok(())
}

/// Scores live for the attention that chooses by them.
pub(crate) fn borrowed(program: &Program, last: &HashMap<Tensor, usize>) -> Vec<(Tensor, usize)> {
    let of = |op: &Op| match op {
        Op::SelectBlocks(op) => Some((op.scores, *last.get(&op.chosen)?)),
        _ => None,
    };
    program.ops().iter().filter_map(of).collect()
}

pub(super) fn select_blocks(op: &SelectBlocks, c: &mut Compiler<'_>) -> Result<()> {
    if op.memory.top_k > 0 && is_left_to_attention(op, c) {
        c.to_choose = Some(op.clone());
        return Ok(());
    }
    let scores = c.shape(op.scores).dims();
    let (batch, heads, tokens, blocks) = (scores[0], scores[1], scores[2], scores[3]);
    if op.memory.top_k == 0 {
        return Ok(());
    }
    if op.memory.top_k > 1024 {
        return Err(c.unsupported(format!("{} blocks to be chosen are more than 1024", op.memory.top_k)));
    }
    let (number, choices) = match op.selection {
        Selection::PerTokenAndHead => (0, batch * heads * tokens),
        Selection::MaxOverHeads => (1, batch * tokens),
        Selection::MaxOverTokens => (2, batch * heads),
    };
    let best = (number > 0).then(|| maximise(op, c, choices)).transpose()?;
    let subgroups = c.subgroups().filter(|sizes| op.memory.top_k <= *sizes.start() && !c.works_alone());
    let (threads, body, groups) = match &subgroups {
        _ if c.works_alone() => {
            let body = include_str!("../shaders/select_blocks_alone.wgsl");
            (LONE_THREADS, body, choices.div_ceil(LONE_THREADS))
        }
        Some(sizes) => {
            let body = include_str!("../shaders/select_blocks_subgroups.wgsl");
            (WORKGROUP, body, choices.div_ceil(WORKGROUP / sizes.end()))
        }
        // Few blocks keep few threads busy.
        None => {
            let threads = blocks.next_power_of_two().clamp(32, WORKGROUP);
            (threads, include_str!("../shaders/select_blocks.wgsl"), choices)
        }
    };
    let mut k = choice("select_blocks", body, op, c)?;
    k.constant("WORKGROUP", threads);
    k.include(include_str!("../shaders/block_choice.wgsl"));
    k.constant("TOP_K", op.memory.top_k);
    k.constant("SELECTION", number);
    if subgroups.is_some() {
        k.working(true);
        k.include(include_str!("../shaders/subgroup_choice.wgsl"));
    }
    match best {
        Some(best) => k.storage("scores", DType::F32, 1, Entry::Read, best),
        None => c.read(&mut k, "scores", op.scores, 1)?,
    }
    c.write(&mut k, "chosen", op.chosen, 1)?;
    c.dispatch(k, groups)
}

/// Probabilities, maximised over heads or tokens.
fn maximise(op: &SelectBlocks, c: &mut Compiler<'_>, choices: usize) -> Result<Resource> {
    let scores = c.shape(op.scores).dims();
    let (rows, blocks) = (scores[0] * scores[1] * scores[2], scores[3]);
    let statistics = c.workspace(8 * rows as u64);
    let best = c.workspace(4 * (choices * blocks) as u64);
    let threads = blocks.next_power_of_two().clamp(32, WORKGROUP);
    let mut k = choice("select_statistics", include_str!("../shaders/select_statistics.wgsl"), op, c)?;
    let groups = c.rows_by(&mut k, rows, threads);
    c.read(&mut k, "scores", op.scores, 1)?;
    k.raw("statistics", "vec2<f32>", Entry::Write, statistics.clone());
    c.dispatch(k, groups)?;
    let mut k = choice("select_maximum", include_str!("../shaders/select_maximum.wgsl"), op, c)?;
    k.constant("WORKGROUP", WORKGROUP);
    k.flag("OVER_HEADS", op.selection == Selection::MaxOverHeads);
    c.read(&mut k, "scores", op.scores, 1)?;
    k.raw("statistics", "vec2<f32>", Entry::Read, statistics);
    k.raw("best", "f32", Entry::Write, best.clone());
    c.dispatch(k, (choices * blocks).div_ceil(WORKGROUP))?;
    Ok(best)
}
