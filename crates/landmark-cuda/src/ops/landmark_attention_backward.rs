//! The gradients of landmark attention: which kernels serve an op, and the tensor cores' (`kernels/landmark_attention_backward.cu`).
//!
//! Two launches a slice of key heads: first the queries' gradients and what each (query, landmark block) needs to know,
//! then the keys'. The latter is 8 bytes for each (query, block), so long rows go some heads at a time.

use super::landmark_attention::{Halves, Struct, Tiling, View, common_shapes, most_shared};
use super::landmark_attention_any;
use crate::compile::{Arch, Defines, Variant};
use crate::plan::{Compiler, args};
use landmark_core::ops::LandmarkAttentionBackward;
use landmark_core::{DType, Result};

const FILE: &str = "landmark_attention_backward.cu";
/// Queries of a tile: as in the kernels.
const QUERIES: usize = 64;
/// Longest block whose scores and their gradients fit into registers.
const LONGEST_BLOCK: usize = 128;
/// As many heads at a time as fit into this; one in any case, up to [`MOST_WORKSPACE`].
const WORKSPACE: usize = 256 << 20;
const MOST_WORKSPACE: usize = 2 << 30;

pub(super) fn launch(op: &LandmarkAttentionBackward, c: &mut Compiler<'_>) -> Result<()> {
    let (f, g) = (&op.forward, &op.gradients);
    let tensors = [f.q.tensor, f.k.tensor, f.v.tensor, f.out, op.dout, g.dq.tensor, g.dk.tensor, g.dv.tensor];
    match Halves::of(f, c, &tensors) {
        Some(halves) if Backward::new(halves).serves(op, c) => backward(op, Backward::new(halves), c),
        _ => landmark_attention_any::backward(op, c),
    }
}

/// Extents of the two launches.
#[derive(Clone, Copy, Debug)]
struct Backward {
    halves: Halves,
    shape: Tiling,
    /// Queries, rounded up to a tile.
    ld: usize,
    key_tiles: usize,
}

/// Thread blocks that share the columns of a key tile's results.
fn split(head_dim: usize) -> usize {
    if head_dim > 128 { 2 } else { 1 }
}

/// Warps of a key tile.
fn key_warps(shape: &Tiling) -> usize {
    shape.keys().div_ceil(16)
}

fn query_bytes(shape: &Tiling) -> usize {
    2 * (QUERIES + shape.keys()) * shape.pitch()
}

fn key_bytes(shape: &Tiling, stages: usize) -> usize {
    let lists = if shape.block == 0 { 2 } else { 2 + 2 * shape.blocks };
    2 * 16 * key_warps(shape) * shape.pitch() + stages * (2 * QUERIES * shape.pitch() + 4 * lists * QUERIES)
}

/// Tiles of queries in shared memory: two where two thread blocks still fit a multiprocessor.
fn stages(shape: &Tiling, arch: Arch) -> usize {
    // A thread block takes a kilobyte besides.
    if 2 * (key_bytes(shape, 2) + 1024) <= most_shared(arch) { 2 } else { 1 }
}

fn defines(shape: &Tiling, dtype: DType, arch: Arch) -> Defines {
    shape.defines(dtype).set("SPLIT", split(shape.head_dim)).set("STAGES", stages(shape, arch))
}

pub(super) fn variants() -> Vec<Variant> {
    let shapes = common_shapes().into_iter().filter(|shape| shape.is_possible(LONGEST_BLOCK));
    let of_bf16 = shapes.flat_map(|shape| [80, 90].map(|sm| defines(&shape, DType::Bf16, Arch(sm))));
    let of_f16 = [defines(&Tiling::new(51, 128), DType::F16, Arch(80))];
    of_bf16.chain(of_f16).map(|defines| Variant::new(FILE, defines)).collect()
}

impl Backward {
    fn new(halves: Halves) -> Self {
        let shape = Tiling::new(halves.block, halves.heads.head_dim);
        // A row's first block may have begun before its first key.
        let key_tiles = (halves.heads.keys + halves.block.saturating_sub(1)).div_ceil(shape.span());
        Backward { halves, shape, ld: halves.heads.queries.next_multiple_of(QUERIES), key_tiles }
    }

    /// Landmark blocks of a row, rounded up to a tile of keys.
    fn blocks(&self) -> usize {
        if self.shape.block == 0 { 0 } else { self.key_tiles * self.shape.blocks }
    }

    /// Bytes of workspace for a key head.
    fn head_bytes(&self) -> usize {
        let h = &self.halves.heads;
        4 * (2 + 2 * self.blocks()) * self.ld * (h.heads / h.kv_heads)
    }

    fn serves(&self, op: &LandmarkAttentionBackward, c: &Compiler<'_>) -> bool {
        let (h, most) = (&self.halves.heads, most_shared(self.halves.arch));
        let (f, g) = (&op.forward, &op.gradients);
        let rows = [(f.q, h.queries), (f.k, h.keys), (f.v, h.keys)];
        let gradients = [(g.dq, h.queries), (g.dk, h.keys), (g.dv, h.keys)];
        self.shape.is_possible(LONGEST_BLOCK)
            && query_bytes(&self.shape).max(key_bytes(&self.shape, 1)) <= most
            && self.head_bytes() <= MOST_WORKSPACE
            && rows.iter().chain(&gradients).all(|&(cols, n)| View::new(cols, n, h.head_dim, c).is_aligned())
    }
}

fn backward(op: &LandmarkAttentionBackward, b: Backward, c: &mut Compiler<'_>) -> Result<()> {
    let (f, g, h) = (&op.forward, &op.gradients, b.halves.heads);
    let (shape, arch) = (b.shape, b.halves.arch);
    let defines = defines(&shape, b.halves.dtype, arch);
    let queries = c.kernel(FILE, "backward_queries", defines.clone())?;
    let keys = c.kernel(FILE, "backward_keys", defines)?;
    let (count, group) = (h.batch * h.kv_heads, h.heads / h.kv_heads);
    let at_once = (WORKSPACE / b.head_bytes()).clamp(1, count);
    let row = (4 * at_once * group * b.ld) as u64;
    let (tops, deltas) = (c.workspace(row), c.workspace(row));
    let list = row * b.blocks() as u64;
    let (logs, means) = (c.workspace(list), c.workspace(list));
    let arguments = |first: usize, slice: usize, tiles: usize, together: usize, c: &Compiler<'_>| {
        Struct::default()
            .view(View::new(f.q, h.queries, h.head_dim, c))
            .view(View::new(f.k, h.keys, h.head_dim, c))
            .view(View::new(f.v, h.keys, h.head_dim, c))
            .view(View::whole(f.out, &h, c))
            .view(View::whole(op.dout, &h, c))
            .view(View::new(g.dq, h.queries, h.head_dim, c))
            .view(View::new(g.dk, h.keys, h.head_dim, c))
            .view(View::new(g.dv, h.keys, h.head_dim, c))
            .address(c.pointer(f.lse))
            .address(b.halves.phases)
            .address(b.halves.first_key)
            .address(tops)
            .address(deltas)
            .address(logs)
            .address(means)
            .int(h.batch)
            .int(h.queries)
            .int(h.keys)
            .int(h.heads)
            .int(h.kv_heads)
            .int(b.ld)
            .int(b.blocks())
            .int(tiles)
            .int(together)
            .int(first)
            .int(slice)
            .float(1.0 / (h.head_dim as f32).sqrt())
            .finish(296)
    };
    for first in (0..count).step_by(at_once) {
        let slice = at_once.min(count - first);
        let tiles = b.ld / QUERIES;
        let together = b.halves.together(slice * group, group);
        let args = args![arguments(first, slice, tiles, together, c)];
        let grid = [(tiles * slice * group) as u32, 1, 1];
        c.launch_dependent(&queries, grid, 128, query_bytes(&shape) as u32, args)?;
        let together = b.halves.together(slice, 1);
        let args = args![arguments(first, slice, b.key_tiles, together, c)];
        let grid = [(b.key_tiles * slice) as u32, split(h.head_dim) as u32, 1];
        let bytes = key_bytes(&shape, stages(&shape, arch));
        c.launch_dependent(&keys, grid, 32 * key_warps(&shape) as u32, bytes as u32, args)?;
    }
    Ok(())
}
