//! The landmark memory: append, score, select, attend.

use super::landmark_attention::divide;
use super::rope::head_alignment;
use super::{MEMORY, SOFTMAX};
use crate::kernel::{Entry, Kernel, Resource};
use crate::plan::{Compiler, Part, WORKGROUP, alignment};
use landmark_core::ops::{
    AppendKv, LandmarkScores, MemoryShape, Origin, RetrievalAttention, RopeStyle, SelectBlocks, Selection,
};
use landmark_core::{DType, Result, Tensor};

/// Extents of a memory, for `memory.wgsl`.
fn describe(k: &mut Kernel, memory: &MemoryShape) {
    k.param("blocks", memory.blocks);
    k.param("block", memory.block);
    k.param("top_k", memory.top_k);
    k.include(MEMORY);
}

pub(super) fn append_kv(op: &AppendKv, c: &mut Compiler<'_>) -> Result<()> {
    let MemoryShape { batch, kv_heads, .. } = op.memory;
    let tokens = c.rows(op.k.tensor) / batch - op.skip;
    for (keys, values) in c.rings(op.keys, op.values)? {
        let held = keys.rows.min(kv_heads);
        append_heads(op, c, [&keys, &values], held, tokens)?;
    }
    Ok(())
}

/// Stores the key heads that lie in a piece of the rings.
fn append_heads(
    op: &AppendKv,
    c: &mut Compiler<'_>,
    rings: [&Part; 2],
    held: usize,
    tokens: usize,
) -> Result<()> {
    let MemoryShape { batch, block, kv_heads, head_dim, .. } = op.memory;
    let mut k = Kernel::new("append_kv", include_str!("../shaders/append_kv.wgsl"));
    k.constant("WORKGROUP", WORKGROUP);
    for (name, cols) in [("k", op.k), ("v", op.v)] {
        c.read(&mut k, name, cols.tensor, alignment(&[head_dim, cols.start, c.cols(cols.tensor)]))?;
    }
    c.uniform(&mut k, "lengths", op.lengths)?;
    c.uniform(&mut k, "counts", op.counts)?;
    for (name, tensor, part) in [("keys", op.keys, rings[0]), ("values", op.values, rings[1])] {
        c.ring(&mut k, name, tensor, alignment(&[head_dim]), Entry::Write, part)?;
    }
    c.write(&mut k, "landmarks", op.landmarks, alignment(&[head_dim]))?;
    k.param("batch", batch);
    k.param("tokens", tokens);
    k.param("skip", op.skip);
    k.param("slots", op.memory.slots());
    k.param("block", block);
    k.param("kv_heads", kv_heads);
    k.param("first_head", rings[0].first);
    k.param("held", held);
    k.param("head_dim", head_dim);
    k.param("k_cols", c.cols(op.k.tensor));
    k.param("k_start", op.k.start);
    k.param("v_cols", c.cols(op.v.tensor));
    k.param("v_start", op.v.start);
    c.dispatch(k, (batch * tokens * held * head_dim.div_ceil(4)).div_ceil(WORKGROUP))
}

pub(super) fn landmark_scores(op: &LandmarkScores, c: &mut Compiler<'_>) -> Result<()> {
    let MemoryShape { batch, blocks, kv_heads, head_dim, .. } = op.memory;
    let tokens = c.rows(op.q.tensor) / batch - op.skip;
    let mut k = Kernel::new("landmark_scores", include_str!("../shaders/landmark_scores.wgsl"));
    // Queries lie in workgroup memory, 16 of heads up to 128.
    let most = (16 * 128 / head_dim).clamp(1, 16);
    let queries = tokens.next_power_of_two().min(1 << most.ilog2());
    k.constant("WORKGROUP", WORKGROUP);
    k.constant("QUERIES", queries);
    k.rotary(op.style, head_dim);
    let q = head_alignment(op.style, head_dim, &[op.q.start, c.cols(op.q.tensor)]);
    c.read(&mut k, "q", op.q.tensor, q)?;
    c.read(&mut k, "landmarks", op.landmarks, head_alignment(op.style, head_dim, &[]))?;
    k.pairs("q");
    k.pairs("landmarks");
    c.uniform(&mut k, "lengths", op.lengths)?;
    c.uniform(&mut k, "frequencies", op.frequencies)?;
    c.write(&mut k, "out", op.out, 1)?;
    describe(&mut k, &op.memory);
    k.param("tokens", tokens);
    k.param("skip", op.skip);
    k.param("heads", op.heads);
    k.param("kv_heads", kv_heads);
    k.param("share", op.heads / kv_heads);
    k.param("q_cols", c.cols(op.q.tensor));
    k.param("q_start", op.q.start);
    k.param("scale", 1.0 / (head_dim as f32).sqrt());
    let groups = [blocks.div_ceil(WORKGROUP / queries), tokens.div_ceil(queries), batch * op.heads];
    c.dispatch_grid(k, groups)
}

/// What the three kernels of a choice share.
fn choice(
    name: &'static str,
    body: &'static str,
    op: &SelectBlocks,
    c: &Compiler<'_>,
    threads: usize,
) -> Result<Kernel> {
    let mut k = Kernel::new(name, body);
    k.constant("WORKGROUP", threads);
    describe(&mut k, &op.memory);
    let scores = c.shape(op.scores).dims();
    k.param("batch", scores[0]);
    k.param("heads", scores[1]);
    k.param("tokens", scores[2]);
    c.uniform(&mut k, "lengths", op.lengths)?;
    c.uniform(&mut k, "counts", op.counts)?;
    Ok(k)
}

pub(super) fn select_blocks(op: &SelectBlocks, c: &mut Compiler<'_>) -> Result<()> {
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
    // Few blocks keep few threads busy.
    let threads = blocks.next_power_of_two().clamp(32, WORKGROUP);
    let mut k = choice("select_blocks", include_str!("../shaders/select_blocks.wgsl"), op, c, threads)?;
    k.constant("TOP_K", op.memory.top_k);
    k.constant("SELECTION", number);
    match best {
        Some(best) => k.storage("scores", DType::F32, 1, Entry::Read, best),
        None => c.read(&mut k, "scores", op.scores, 1)?,
    }
    c.write(&mut k, "chosen", op.chosen, 1)?;
    c.dispatch(k, choices)
}

/// Probabilities, maximised over heads or tokens.
fn maximise(op: &SelectBlocks, c: &mut Compiler<'_>, choices: usize) -> Result<Resource> {
    let scores = c.shape(op.scores).dims();
    let (rows, blocks) = (scores[0] * scores[1] * scores[2], scores[3]);
    let statistics = c.workspace(8 * rows as u64);
    let best = c.workspace(4 * (choices * blocks) as u64);
    let threads = blocks.next_power_of_two().clamp(32, WORKGROUP);
    let mut k =
        choice("select_statistics", include_str!("../shaders/select_statistics.wgsl"), op, c, threads)?;
    c.read(&mut k, "scores", op.scores, 1)?;
    k.raw("statistics", "vec2<f32>", Entry::Write, statistics.clone());
    c.dispatch(k, rows)?;
    let mut k = choice("select_maximum", include_str!("../shaders/select_maximum.wgsl"), op, c, WORKGROUP)?;
    k.flag("OVER_HEADS", op.selection == Selection::MaxOverHeads);
    c.read(&mut k, "scores", op.scores, 1)?;
    k.raw("statistics", "vec2<f32>", Entry::Read, statistics);
    k.raw("best", "f32", Entry::Write, best.clone());
    c.dispatch(k, (choices * blocks).div_ceil(WORKGROUP))?;
    Ok(best)
}

/// The table of angles of the positions `0 .. positions`, filled by the first op of a program that wants it.
fn angles(
    c: &mut Compiler<'_>,
    frequencies: Tensor,
    style: RopeStyle,
    head_dim: usize,
    positions: usize,
) -> Result<Resource> {
    let numel = positions * head_dim.div_ceil(8);
    let name = format!("angles of {} to {positions}", frequencies.index());
    let (table, is_new) = c.table(name, 32 * numel as u64);
    if is_new {
        let mut k = Kernel::new("angles", include_str!("../shaders/angles.wgsl"));
        k.constant("WORKGROUP", 64);
        k.rotary(style, head_dim);
        c.uniform(&mut k, "frequencies", frequencies)?;
        k.raw("angles", "vec4<f32>", Entry::Write, table.clone());
        k.param("positions", positions);
        c.dispatch(k, numel.div_ceil(64))?;
    }
    Ok(table)
}

pub(super) fn retrieval_attention(op: &RetrievalAttention, c: &mut Compiler<'_>) -> Result<()> {
    let table = angles(c, op.frequencies, op.style, op.memory.head_dim, op.memory.block)?;
    for (keys, values) in c.rings(op.keys, op.values)? {
        // With everything bound at once there would be nine storage buffers, one more than WebGPU promises.
        attend(op, c, table.clone(), [&keys, &values], false)?;
        if op.shares.is_some() {
            attend(op, c, table.clone(), [&keys, &values], true)?;
        }
    }
    Ok(())
}

/// The attention's result, or the shares of its blocks, of the heads whose keys lie in a piece of the rings.
fn attend(
    op: &RetrievalAttention,
    c: &mut Compiler<'_>,
    table: Resource,
    rings: [&Part; 2],
    is_shares: bool,
) -> Result<()> {
    let (memory, heads) = (&op.memory, &op.heads);
    let held = rings[0].rows.min(heads.kv_heads);
    let head_dim = heads.head_dim;
    let mut k = Kernel::new("retrieval_attention", include_str!("../shaders/retrieval_attention.wgsl"));
    divide(&mut k, c, head_dim)?;
    k.rotary(op.style, head_dim);
    k.constant("TOP_K", memory.top_k.max(1));
    k.flag("MISS", op.miss);
    k.flag("RETRIEVES", op.chosen.is_some());
    k.flag("BLOCKS_SEEN", memory.origin == Origin::BlocksSeen);
    k.include(SOFTMAX);
    for (name, cols) in [("q", op.q), ("k", op.k)] {
        let alignment = head_alignment(op.style, head_dim, &[cols.start, c.cols(cols.tensor)]);
        c.read(&mut k, name, cols.tensor, alignment)?;
        k.pairs(name);
    }
    c.ring(&mut k, "keys", op.keys, head_alignment(op.style, head_dim, &[]), Entry::Read, rings[0])?;
    k.pairs("keys");
    c.read_if(&mut k, "chosen", op.chosen, 1)?;
    k.raw("angles", "vec4<f32>", Entry::Read, table);
    c.uniform(&mut k, "lengths", op.lengths)?;
    c.uniform(&mut k, "frequencies", op.frequencies)?;
    let wanted = |tensor| (!is_shares).then_some(tensor);
    let v = alignment(&[head_dim, op.v.start, c.cols(op.v.tensor)]);
    c.read_if(&mut k, "v", wanted(op.v.tensor), v)?;
    if is_shares {
        k.absent("values");
    } else {
        c.ring(&mut k, "values", op.values, alignment(&[head_dim]), Entry::Read, rings[1])?;
    }
    c.write_if(&mut k, "out", wanted(op.out), alignment(&[head_dim]))?;
    c.write_if(&mut k, "shares", op.shares.filter(|_| is_shares), 1)?;
    describe(&mut k, memory);
    k.param("batch", heads.batch);
    k.param("rows", heads.queries);
    k.param("heads", heads.heads);
    k.param("first_head", rings[0].first);
    k.param("held", held);
    k.param("share", heads.heads / heads.kv_heads);
    for (start, stride, cols) in
        [("q_start", "q_cols", op.q), ("k_start", "k_cols", op.k), ("v_start", "v_cols", op.v)]
    {
        k.param(start, cols.start);
        k.param(stride, c.cols(cols.tensor));
    }
    k.param("scale", 1.0 / (head_dim as f32).sqrt());
    k.param("cutoff", op.miss_cutoff.unwrap_or(0.0));
    c.dispatch(k, heads.batch * held * (heads.heads / heads.kv_heads) * heads.queries)
}
