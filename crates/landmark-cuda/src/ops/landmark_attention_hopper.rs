//! Landmark attention, forward, by the matrix units and copy engines of Hopper (`kernels/landmark_attention_hopper.cu`).
//!
//! Serves sixteen-bit tensors, regular blocks of 8 positions or more or none, and heads of up to 128 or of 256 columns. What it
//! does not serve (other landmarks, a context-miss token, dropout, f32) is left to the other kernels of the op. A long chunk's
//! attention to the landmark memory ends with the same kernel ([`attend_chunk`]): see `retrieval_prefill`.

use crate::attention::{Halves, HeadsAt, Launches};
use crate::compile::{Defines, Variant};
use crate::driver::{Arg, TensorMap, TensorMapShape};
use crate::plan::args;
use landmark_core::ops::{Heads, MemoryShape};
use landmark_core::{DType, Result};

const FILE: &str = "landmark_attention_hopper.cu";
/// As in the kernel: threads of a block, queries of a block and of a warp group, tiles in flight.
const THREADS: u32 = 384;
const ROWS: usize = 128;
const GROUP_ROWS: usize = 64;
const STAGES: usize = 2;
const BARRIER_BYTES: usize = 128;
/// Shared memory that a block of Hopper may have.
const SHARED_BYTES: usize = 232_448;
/// Columns of a tile in shared memory: the copy engine's 128-byte swizzle over sixteen-bit elements.
const PANEL: usize = 64;
/// Keys and values of the heads that are walked together stay below this, so that they are read once from memory and
/// then from the L2 cache (50 MB on an H100).
const CACHED_BYTES: usize = 16 << 20;

/// Keys of a tile: as many whole blocks as fill a multiple of 16, the matrix unit's step, best. `None`: not served.
///
/// Scores, weights and results of a row live in registers together: 160 keys beside 128 columns, 80 beside 256. More
/// than 8 blocks of a tile do not fit beside them. Where several fill equally, 128 keys are enough: wider ones waste more
/// on the diagonal.
fn tile(block: usize, head_dim: usize) -> Option<usize> {
    let most = match head_dim {
        256 => 80,
        d if d.is_multiple_of(16) && (16..=128).contains(&d) => 160,
        _ => return None,
    };
    if block == 0 {
        return Some(if head_dim == 256 { 64 } else { 128 });
    }
    let padded = |blocks: usize| (blocks * block).next_multiple_of(16);
    let filled = |blocks: usize| 1000 * blocks * block / padded(blocks);
    let candidates = (1..=8).filter(|&blocks| block >= 8 && padded(blocks) <= most);
    candidates
        .max_by_key(|&blocks| (filled(blocks), padded(blocks).min(128), most - padded(blocks)))
        .map(padded)
}

fn defines(block: usize, head_dim: usize, tile: usize, dtype: DType) -> Defines {
    let sizes = Defines::new().set("BLOCK", block).set("HEAD_DIM", head_dim).set("TILE", tile);
    sizes.flag("HALF_F16", dtype == DType::F16)
}

pub(super) fn variants() -> Vec<Variant> {
    let lengths = [0, 16, 51, 64, 128];
    let sizes = [64, 80, 96, 128, 256].into_iter().flat_map(|d| lengths.map(|block| (block, d, DType::Bf16)));
    let others = lengths.map(|block| (block, 128, DType::F16));
    let of = |(block, head_dim, dtype)| {
        tile(block, head_dim).map(|t| Variant::for_hopper(FILE, defines(block, head_dim, t, dtype)))
    };
    sizes.chain(others).filter_map(of).collect()
}

/// What the kernel of a chunk is compiled for besides.
fn chunk_defines(dtype: DType, m: &MemoryShape, tile: usize, choice: bool, shares: bool) -> Defines {
    let defines = defines(m.block, m.head_dim, tile, dtype).set("MEMORY", 1).set("TOPK", m.top_k);
    defines.flag("CHOICE", choice).flag("SHARES", shares)
}

/// The variant for chunks that are read into such a memory, if there is one.
pub(super) fn chunk_variant(dtype: DType, m: &MemoryShape, choice: bool, shares: bool) -> Option<Variant> {
    let tile = tile(m.block, m.head_dim)?;
    Some(Variant::for_hopper(FILE, chunk_defines(dtype, m, tile, choice, shares)))
}

/// Launches the pass if this kernel serves it.
pub(super) fn try_forward(x: &Halves, to: &mut dyn Launches) -> Result<bool> {
    let Heads { batch, queries, keys, heads, kv_heads, head_dim } = x.heads;
    if !to.arch().is_hopper() || x.first_key != 0 {
        return Ok(false);
    }
    let Some(tile) = tile(x.block, head_dim) else { return Ok(false) };
    let kernel = to.kernel(FILE, "forward", defines(x.block, head_dim, tile, x.dtype))?;
    let mut args = inputs(x, tile)?;
    args.extend(args![
        map(x, x.out, queries, heads, GROUP_ROWS)?,
        x.phases,
        to.ticket(),
        x.lse,
        batch as i32,
        heads as i32,
        (heads / kv_heads) as i32,
        queries as i32,
        keys as i32,
        heads_at_once(x) as i32,
        x.scale * std::f32::consts::LOG2_E,
    ]);
    let (grid, shared) = extents(x, tile, to);
    to.launch_dependent(&kernel, grid, THREADS, shared, args)?;
    Ok(true)
}

/// What a chunk that is read into a landmark memory has besides: addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slots {
    /// `(B, span, Hkv, D)`: keys and values of the first tile, where a block is unfinished.
    pub(super) first: [HeadsAt; 2],
    /// `(B, H, T, k)` u32.
    pub(super) chosen: u64,
    /// `(B, H, T, k, D)`, as fragments.
    pub(super) parts: u64,
    /// `(B, H, T, k)` f32.
    pub(super) marks: u64,
    /// `(B, H, T, k)` f32.
    pub(super) shares: u64,
}

/// Positions that a tile of keys advances on this GPU, its whole blocks; 0: chunks of such a memory are not served.
pub(super) fn chunk_span(m: &MemoryShape, to: &dyn Launches) -> usize {
    let tile = tile(m.block, m.head_dim).filter(|_| to.arch().is_hopper());
    tile.map_or(0, |tile| tile / m.block * m.block)
}

/// Launches the pass of a chunk, whose rows join what their slots brought. Phases are the memory's lengths, and no log of the
/// sums is left.
pub(super) fn attend_chunk(
    x: &Halves,
    m: &MemoryShape,
    (choice, shares): (bool, bool),
    slots: &Slots,
    to: &mut dyn Launches,
) -> Result<()> {
    let Heads { batch, queries, heads, kv_heads, head_dim, .. } = x.heads;
    let tile = tile(x.block, head_dim).unwrap_or(PANEL);
    let kernel = to.kernel(FILE, "attend_chunk", chunk_defines(x.dtype, m, tile, choice, shares))?;
    let mut args = inputs(x, tile)?;
    // What lies behind a tile's blocks arrives as zeros.
    for first in slots.first {
        args.extend(args![map(x, first, tile / x.block * x.block, kv_heads, tile)?]);
    }
    args.extend(args![
        map(x, x.out, queries, heads, GROUP_ROWS)?,
        x.phases,
        to.ticket(),
        slots.chosen,
        slots.parts,
        slots.marks,
        slots.shares,
        m.blocks as i32,
        batch as i32,
        heads as i32,
        (heads / kv_heads) as i32,
        queries as i32,
        heads_at_once(x) as i32,
        x.scale * std::f32::consts::LOG2_E,
    ]);
    let (grid, shared) = extents(x, tile, to);
    to.launch_dependent(&kernel, grid, THREADS, shared, args)
}

/// Maps of queries, keys and values.
fn inputs(x: &Halves, tile: usize) -> Result<Vec<Arg>> {
    let Heads { queries, keys, heads, kv_heads, .. } = x.heads;
    Ok(args![
        map(x, x.q, queries, heads, ROWS)?,
        map(x, x.k, keys, kv_heads, tile)?,
        map(x, x.v, keys, kv_heads, tile)?,
    ])
}

/// Heads that are walked together.
fn heads_at_once(x: &Halves) -> usize {
    let Heads { batch, keys, heads, kv_heads, head_dim, .. } = x.heads;
    (CACHED_BYTES * (heads / kv_heads) / (keys * head_dim * 2 * x.dtype.size())).clamp(1, batch * heads)
}

/// Blocks of a launch, and their shared memory.
fn extents(x: &Halves, tile: usize, to: &dyn Launches) -> ([u32; 3], u32) {
    let Heads { batch, queries, heads, head_dim, .. } = x.heads;
    let panels = head_dim.div_ceil(PANEL);
    let (tile_bytes, query_bytes) = (panels * tile * 2 * PANEL, panels * ROWS * 2 * PANEL);
    let mut shared = query_bytes + 2 * STAGES * tile_bytes + BARRIER_BYTES;
    if shared + query_bytes + 1024 <= SHARED_BYTES {
        shared += query_bytes;
    }
    let items = batch * heads * queries.div_ceil(ROWS);
    ([to.multiprocessors().min(items as u32), 1, 1], shared as u32)
}

/// What the copy engine has to know of a tensor whose rows it fetches `box_rows` at a time.
pub(super) fn map(
    x: &Halves,
    side: HeadsAt,
    rows: usize,
    heads: usize,
    box_rows: usize,
) -> Result<TensorMap> {
    let size = x.dtype.size() as u64;
    TensorMap::new(&TensorMapShape {
        dtype: x.dtype,
        address: side.address,
        extents: &[x.heads.head_dim as u64, heads as u64, rows as u64, x.heads.batch as u64],
        strides: &[side.head as u64 * size, side.row as u64 * size, side.batch as u64 * size],
        box_: &[PANEL as u32, 1, box_rows as u32, 1],
        swizzle: 128,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_hold_whole_blocks_and_waste_little() {
        assert_eq!(tile(64, 128), Some(128));
        assert_eq!(tile(51, 128), Some(160), "three blocks in ten steps, where two would waste a tenth");
        assert_eq!(tile(32, 128), Some(128));
        assert_eq!(tile(51, 256), Some(64));
        assert_eq!(tile(0, 80), Some(128));
        assert_eq!((tile(7, 128), tile(161, 128), tile(64, 72)), (None, None, None));
        for block in 8..=160 {
            let keys = tile(block, 128).expect("served");
            assert!(keys >= block && keys.is_multiple_of(16) && keys <= 160, "{block}: {keys}");
        }
    }
}
