//! The gradients of landmark attention: which kernels serve an op, and the tensor cores' (`kernels/landmark_attention_backward.cu`).
//!
//! Two launches a slice of key heads: first the queries' gradients and what each (query, landmark block) needs to know,
//! then the keys'. The latter is 8 bytes for each (query, block), so long rows go some heads at a time.

use super::landmark_attention::{Tiling, common_shapes, most_shared, placed, side, together, whole};
use super::{landmark_attention_any, landmark_attention_backward_hopper};
use crate::attention::{Gradients, HalfGradients, Launches, Struct};
use crate::compile::{Arch, Defines, Variant};
use crate::plan::{Compiler, args};
use landmark_core::ops::{Heads, LandmarkAttentionBackward};
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
    let (h, g) = (&op.forward.heads, &op.gradients);
    let gradients = Gradients {
        forward: placed(&op.forward, c)?,
        dout: whole(op.dout, h, c),
        dq: side(g.dq, h.queries, h, c),
        dk: side(g.dk, h.keys, h, c),
        dv: side(g.dv, h.keys, h, c),
    };
    backward(&gradients, c)
}

/// A backward pass by the fastest kernels that serve it.
pub(crate) fn backward(gradients: &Gradients, to: &mut dyn Launches) -> Result<()> {
    if let Some(halves) = gradients.halves() {
        if landmark_attention_backward_hopper::try_backward(&halves, to)? {
            return Ok(());
        }
        let extents = Extents::new(&halves);
        if extents.are_served(to.arch()) {
            return by_tensor_cores(&halves, &extents, to);
        }
    }
    landmark_attention_any::backward(gradients, to)
}

/// Extents of the two launches.
#[derive(Clone, Copy, Debug)]
struct Extents {
    heads: Heads,
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

impl Extents {
    fn new(halves: &HalfGradients) -> Self {
        let (heads, block) = (halves.forward.heads, halves.forward.block);
        let shape = Tiling::new(block, heads.head_dim);
        // A row's first block may have begun before its first key.
        let key_tiles = (heads.keys + block.saturating_sub(1)).div_ceil(shape.span());
        Extents { heads, shape, ld: heads.queries.next_multiple_of(QUERIES), key_tiles }
    }

    /// Landmark blocks of a row, rounded up to a tile of keys.
    fn blocks(&self) -> usize {
        if self.shape.block == 0 { 0 } else { self.key_tiles * self.shape.blocks }
    }

    /// Bytes of workspace for a key head.
    fn head_bytes(&self) -> usize {
        4 * (2 + 2 * self.blocks()) * self.ld * (self.heads.heads / self.heads.kv_heads)
    }

    fn are_served(&self, arch: Arch) -> bool {
        self.shape.is_possible(LONGEST_BLOCK)
            && query_bytes(&self.shape).max(key_bytes(&self.shape, 1)) <= most_shared(arch)
            && self.head_bytes() <= MOST_WORKSPACE
    }
}

fn by_tensor_cores(g: &HalfGradients, x: &Extents, to: &mut dyn Launches) -> Result<()> {
    let (f, h, shape, arch) = (&g.forward, x.heads, x.shape, to.arch());
    let defines = defines(&shape, f.dtype, arch);
    let queries = to.kernel(FILE, "backward_queries", defines.clone())?;
    let keys = to.kernel(FILE, "backward_keys", defines)?;
    let (count, group) = (h.batch * h.kv_heads, h.heads / h.kv_heads);
    let at_once = (WORKSPACE / x.head_bytes()).clamp(1, count);
    let row = (4 * at_once * group * x.ld) as u64;
    let (tops, deltas) = (to.workspace(row), to.workspace(row));
    let list = row * x.blocks() as u64;
    let (logs, means) = (to.workspace(list), to.workspace(list));
    let arguments = |first: usize, slice: usize, tiles: usize, together: usize| {
        Struct::default()
            .heads(f.q)
            .heads(f.k)
            .heads(f.v)
            .heads(f.out)
            .heads(g.dout)
            .heads(g.dq)
            .heads(g.dk)
            .heads(g.dv)
            .address(f.lse)
            .address(f.phases)
            .address(f.first_key)
            .address(tops)
            .address(deltas)
            .address(logs)
            .address(means)
            .int(h.batch)
            .int(h.queries)
            .int(h.keys)
            .int(h.heads)
            .int(h.kv_heads)
            .int(x.ld)
            .int(x.blocks())
            .int(tiles)
            .int(together)
            .int(first)
            .int(slice)
            .float(f.scale)
            .finish(296)
    };
    for first in (0..count).step_by(at_once) {
        let slice = at_once.min(count - first);
        let tiles = x.ld / QUERIES;
        let args = args![arguments(first, slice, tiles, together(&h, slice * group, group))];
        let grid = [(tiles * slice * group) as u32, 1, 1];
        to.launch_dependent(&queries, grid, 128, query_bytes(&shape) as u32, args)?;
        let args = args![arguments(first, slice, x.key_tiles, together(&h, slice, 1))];
        let grid = [(x.key_tiles * slice) as u32, split(h.head_dim) as u32, 1];
        let bytes = key_bytes(&shape, stages(&shape, arch));
        to.launch_dependent(&keys, grid, 32 * key_warps(&shape) as u32, bytes as u32, args)?;
    }
    Ok(())
}
