//! Landmark attention, forward, by the matrix units and copy engines of Hopper (`kernels/landmark_attention_hopper.cu`).
//!
//! Serves sixteen-bit tensors, regular blocks of 8 positions or more or none, and heads of up to 128 or of 256 columns. What it
//! does not serve (other landmarks, a context-miss token, dropout, f32) is left to the other kernels of the op.
//! A [`Fused`] is independent of recorded programs: `fused_landmark_attention` launches it, too. A long chunk's attention to the
//! landmark memory ends with the same kernel ([`Fused::launch_with_slots`]): see `retrieval_prefill`.

use crate::compile::{Defines, Variant};
use crate::driver::{Arg, TensorMap, TensorMapShape};
use crate::plan::{Compiler, args};
use landmark_core::ops::{Blocks, Heads, LandmarkAttention, MemoryShape};
use landmark_core::tensor::Cols;
use landmark_core::{DType, Result};

const FILE: &str = "landmark_attention_hopper.cu";
/// As in the kernel: threads of a block, queries of a block and of a warp group, tiles in flight.
const THREADS: u32 = 384;
const ROWS: usize = 128;
const GROUP_ROWS: u32 = 64;
const STAGES: usize = 2;
const BARRIER_BYTES: usize = 128;
/// Shared memory that a block of Hopper may have.
const SHARED_BYTES: usize = 232_448;
/// Columns of a tile in shared memory: the copy engine's 128-byte swizzle over sixteen-bit elements.
const PANEL: usize = 64;
/// Keys and values of the heads that are walked together stay below this, so that they are read once from memory and
/// then from the L2 cache (50 MB on an H100).
const CACHED_BYTES: usize = 16 << 20;

/// `(batch, rows, heads, head_dim)` in device memory. Strides in elements; `head_dim` is dense.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeadsAt {
    /// Of the first element; a multiple of 16.
    pub address: u64,
    /// From one row of the batch to the next.
    pub batch: usize,
    /// From one position to the next.
    pub row: usize,
    /// From one head to the next.
    pub head: usize,
}

/// A forward pass with all addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fused {
    pub(crate) heads: Heads,
    /// Positions of a block; 0: no landmarks.
    pub(crate) block: usize,
    pub(crate) dtype: DType,
    pub(crate) scale: f32,
    pub(crate) q: HeadsAt,
    pub(crate) k: HeadsAt,
    pub(crate) v: HeadsAt,
    pub(crate) out: HeadsAt,
    /// `(B)` u32; anything without landmarks.
    pub(crate) phases: u64,
    /// `(1)` u32, 0 between launches, of one launch at a time.
    pub(crate) ticket: u64,
    /// `(B, H, Nq)` f32.
    pub(crate) lse: u64,
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
    /// Blocks that the memory holds.
    pub(super) blocks: usize,
}

/// Everything that a launch needs besides the function.
pub(crate) struct FusedLaunch {
    pub(crate) grid: [u32; 3],
    pub(crate) threads: u32,
    pub(crate) shared: u32,
    pub(crate) args: Vec<Arg>,
}

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

/// What the kernel of a chunk is compiled for besides; `None`: not served.
pub(super) fn slot_defines(
    dtype: DType,
    m: &MemoryShape,
    choice: bool,
    shares: bool,
) -> Option<(&'static str, &'static str, Defines)> {
    let t = tile(m.block, m.head_dim).filter(|_| m.block > 0)?;
    let defines = defines(m.block, m.head_dim, t, dtype).set("MEMORY", 1).set("TOPK", m.top_k);
    Some((FILE, "attend_chunk", defines.flag("CHOICE", choice).flag("SHARES", shares)))
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

impl Fused {
    /// Why this kernel does not serve, if it does not.
    pub(crate) fn refusal(&self) -> Option<String> {
        let Heads { head_dim, .. } = self.heads;
        if !matches!(self.dtype, DType::Bf16 | DType::F16) {
            return Some(format!("{:?} instead of bf16 or f16", self.dtype));
        }
        if tile(self.block, head_dim).is_none() {
            return Some(format!("blocks of {} with heads of {head_dim}", self.block));
        }
        let aligned = |x: &HeadsAt| {
            x.address.is_multiple_of(16)
                && [x.batch, x.row, x.head]
                    .iter()
                    .all(|stride| (stride * self.dtype.size()).is_multiple_of(16))
        };
        let sides = [("q", self.q), ("k", self.k), ("v", self.v), ("out", self.out)];
        sides.iter().find(|(_, side)| !aligned(side)).map(|(name, side)| {
            format!("{name} {side:?}: address and strides are not multiples of 16 bytes, as the copy engine needs them")
        })
    }

    pub(crate) fn kernel(&self) -> Option<(&'static str, &'static str, Defines)> {
        let t = tile(self.block, self.heads.head_dim)?;
        Some((FILE, "forward", defines(self.block, self.heads.head_dim, t, self.dtype)))
    }

    fn map(&self, side: HeadsAt, rows: usize, heads: usize, box_rows: u32) -> Result<TensorMap> {
        let size = self.dtype.size() as u64;
        TensorMap::new(&TensorMapShape {
            dtype: self.dtype,
            address: side.address,
            extents: &[self.heads.head_dim as u64, heads as u64, rows as u64, self.heads.batch as u64],
            strides: &[side.head as u64 * size, side.row as u64 * size, side.batch as u64 * size],
            box_: &[PANEL as u32, 1, box_rows, 1],
            swizzle: 128,
        })
    }

    /// Positions that a tile of keys advances: its whole blocks.
    pub(super) fn span(&self) -> usize {
        let tile = self.tile();
        tile.checked_div(self.block).map_or(tile, |blocks| blocks * self.block)
    }

    fn tile(&self) -> usize {
        tile(self.block, self.heads.head_dim).unwrap_or(PANEL)
    }

    /// Maps of queries, keys, values.
    fn inputs(&self) -> Result<Vec<Arg>> {
        let Heads { queries, keys, heads, kv_heads, .. } = self.heads;
        let tile = self.tile() as u32;
        Ok(args![
            self.map(self.q, queries, heads, ROWS as u32)?,
            self.map(self.k, keys, kv_heads, tile)?,
            self.map(self.v, keys, kv_heads, tile)?,
        ])
    }

    fn output(&self) -> Result<TensorMap> {
        self.map(self.out, self.heads.queries, self.heads.heads, GROUP_ROWS)
    }

    fn heads_at_once(&self) -> usize {
        let Heads { batch, keys, heads, kv_heads, head_dim, .. } = self.heads;
        let group = heads / kv_heads;
        (CACHED_BYTES * group / (keys * head_dim * 2 * self.dtype.size())).clamp(1, batch * heads)
    }

    fn with(&self, args: Vec<Arg>, multiprocessors: u32) -> FusedLaunch {
        let Heads { batch, queries, heads, head_dim, .. } = self.heads;
        let panels = head_dim.div_ceil(PANEL);
        let (tile_bytes, query_bytes) = (panels * self.tile() * 2 * PANEL, panels * ROWS * 2 * PANEL);
        let mut shared = query_bytes + 2 * STAGES * tile_bytes + BARRIER_BYTES;
        if shared + query_bytes + 1024 <= SHARED_BYTES {
            shared += query_bytes;
        }
        let items = batch * heads * queries.div_ceil(ROWS);
        let grid = [multiprocessors.min(items as u32), 1, 1];
        FusedLaunch { grid, threads: THREADS, shared: shared as u32, args }
    }

    /// What to launch on a device of so many multiprocessors.
    pub(crate) fn launch(&self, multiprocessors: u32) -> Result<FusedLaunch> {
        let Heads { batch, queries, keys, heads, kv_heads, .. } = self.heads;
        let mut args = self.inputs()?;
        args.extend(args![
            self.output()?,
            self.phases,
            self.ticket,
            self.lse,
            batch as i32,
            heads as i32,
            (heads / kv_heads) as i32,
            queries as i32,
            keys as i32,
            self.heads_at_once() as i32,
            self.scale * std::f32::consts::LOG2_E,
        ]);
        Ok(self.with(args, multiprocessors))
    }

    /// The same for a chunk whose rows join what their slots brought; phases are the memory's lengths, and no log of the sum
    /// is left.
    pub(super) fn launch_with_slots(&self, slots: &Slots, multiprocessors: u32) -> Result<FusedLaunch> {
        let Heads { batch, queries, heads, kv_heads, .. } = self.heads;
        let mut args = self.inputs()?;
        // What lies behind a tile's blocks arrives as zeros.
        for first in slots.first {
            args.extend(args![self.map(first, self.span(), kv_heads, self.tile() as u32)?]);
        }
        args.extend(args![
            self.output()?,
            self.phases,
            self.ticket,
            slots.chosen,
            slots.parts,
            slots.marks,
            slots.shares,
            slots.blocks as i32,
            batch as i32,
            heads as i32,
            (heads / kv_heads) as i32,
            queries as i32,
            self.heads_at_once() as i32,
            self.scale * std::f32::consts::LOG2_E,
        ]);
        Ok(self.with(args, multiprocessors))
    }
}

/// Columns of a tensor as heads of `head_dim`, `rows` for each row of the batch.
pub(super) fn side(cols: Cols, rows: usize, head_dim: usize, c: &Compiler<'_>) -> HeadsAt {
    let row = c.cols(cols.tensor);
    HeadsAt { address: c.cols_pointer(cols), batch: rows * row, row, head: head_dim }
}

/// Launches `op` if this kernel serves it.
pub(super) fn try_launch(op: &LandmarkAttention, c: &mut Compiler<'_>) -> Result<bool> {
    let is_dropping = op.randomness.is_some_and(|r| r.dropout > 0.0 || r.group_dropout > 0.0);
    let (block, phases) = match op.blocks {
        Blocks::None => (0, 0),
        Blocks::Regular { block, phases } => (block, c.pointer(phases)),
        Blocks::Anywhere { .. } => return Ok(false),
    };
    let dtypes = [op.q.tensor, op.k.tensor, op.v.tensor, op.out].map(|t| c.dtype(t));
    let plain = op.miss.is_none() && op.first_key.is_none() && !is_dropping && c.dtype(op.lse) == DType::F32;
    if !c.arch().is_hopper() || !plain || dtypes.iter().any(|&t| t != dtypes[0]) {
        return Ok(false);
    }
    let h = op.heads;
    let fused = Fused {
        heads: h,
        block,
        dtype: dtypes[0],
        scale: 1.0 / (h.head_dim as f32).sqrt(),
        q: side(op.q, h.queries, h.head_dim, c),
        k: side(op.k, h.keys, h.head_dim, c),
        v: side(op.v, h.keys, h.head_dim, c),
        out: side(Cols::all(op.out, h.heads * h.head_dim), h.queries, h.head_dim, c),
        phases,
        ticket: c.ticket(),
        lse: c.pointer(op.lse),
    };
    let (None, Some((file, function, defines))) = (fused.refusal(), fused.kernel()) else { return Ok(false) };
    let kernel = c.kernel(file, function, defines)?;
    let launch = fused.launch(c.multiprocessors())?;
    c.launch_dependent(&kernel, launch.grid, launch.threads, launch.shared, launch.args)?;
    Ok(true)
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
