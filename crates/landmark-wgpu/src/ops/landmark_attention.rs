//! Landmark attention over keys that are all at hand.

use super::SOFTMAX;
use crate::kernel::Kernel;
use crate::plan::{Compiler, alignment};
use landmark_core::Result;
use landmark_core::ops::{Blocks, Heads, LandmarkAttention};

/// Threads of an attention's workgroup: keys of a tile, of which a block is one.
pub(super) const THREADS: usize = 64;

/// How the threads of an attention divide heads of this width: vectors of a head, and keys added up side by side.
pub(super) fn divide(k: &mut Kernel, c: &Compiler<'_>, head_dim: usize) -> Result<()> {
    let quads = head_dim.div_ceil(4);
    if quads > THREADS {
        return Err(c.unsupported(format!("heads of {head_dim} are wider than {}", 4 * THREADS)));
    }
    k.constant("WORKGROUP", THREADS);
    k.constant("QUADS", quads);
    k.constant("SPLIT", THREADS / quads);
    Ok(())
}

pub(super) fn landmark_attention(op: &LandmarkAttention, c: &mut Compiler<'_>) -> Result<()> {
    let Heads { batch, queries, keys, heads, kv_heads, head_dim } = op.heads;
    if op.randomness.is_some_and(|r| r.dropout > 0.0 || r.group_dropout > 0.0) {
        return Err(c.unsupported("dropout is for training, which the wgpu backend does not do"));
    }
    let mut k = Kernel::new("landmark_attention", include_str!("../shaders/landmark_attention.wgsl"));
    divide(&mut k, c, head_dim)?;
    k.constant("HEAD", head_dim);
    k.flag("MISS", op.miss.is_some());
    k.include(SOFTMAX);
    for (name, cols) in [("q", op.q), ("k", op.k), ("v", op.v)] {
        c.read(&mut k, name, cols.tensor, alignment(&[head_dim, cols.start, c.cols(cols.tensor)]))?;
    }
    let (kind, block, blocks) = match op.blocks {
        Blocks::None => (0, 0, None),
        Blocks::Regular { block, phases } => (1, block, Some(phases)),
        Blocks::Anywhere { is_landmark } => (2, 0, Some(is_landmark)),
    };
    k.constant("BLOCKS", kind);
    c.read_if(&mut k, "blocks", blocks, 1)?;
    c.read_if(&mut k, "gates", op.miss.and_then(|miss| miss.gated), 1)?;
    c.read_if(&mut k, "first_key", op.first_key, 1)?;
    c.write(&mut k, "out", op.out, alignment(&[head_dim]))?;
    c.write(&mut k, "lse", op.lse, 1)?;
    k.param("batch", batch);
    k.param("queries", queries);
    k.param("keys", keys);
    k.param("tokens", keys - usize::from(op.miss.is_some()));
    k.param("heads", heads);
    k.param("share", heads / kv_heads);
    k.param("block", block);
    for (start, stride, cols) in
        [("q_start", "q_cols", op.q), ("k_start", "k_cols", op.k), ("v_start", "v_cols", op.v)]
    {
        k.param(start, cols.start);
        k.param(stride, c.cols(cols.tensor));
    }
    k.param("scale", 1.0 / (head_dim as f32).sqrt());
    // No expression of WGSL's may be infinite.
    k.param("minus_infinity", f32::NEG_INFINITY);
    c.dispatch(k, batch * heads * queries)
}
