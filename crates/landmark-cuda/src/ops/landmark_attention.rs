//! Landmark attention: which kernels serve an op, and the forward pass by tensor cores (`kernels/landmark_attention.cu`).
//!
//! Three paths, the fastest that serves: Hopper's own instructions (`landmark_attention_hopper`), `mma.sync` for every
//! GPU from sm_80 on (here and in `landmark_attention_backward`), and f32 arithmetic for every feature
//! (`landmark_attention_any`). The choice depends on the op alone, never on data.

use super::{landmark_attention_any, landmark_attention_hopper};
use crate::attention::{Attention, Halves, HeadsAt, LandmarksAt, Launches, RandomnessAt, Side, Struct};
use crate::compile::{Arch, Defines, Variant};
use crate::plan::{Compiler, args};
use landmark_core::ops::{Blocks, Heads, LandmarkAttention};
use landmark_core::{Cols, DType, Result, Tensor};

const FILE: &str = "landmark_attention.cu";
/// As in the kernel.
const WARPS: usize = 4;
/// Keys and values of heads that are walked side by side stay below this, so that they are read once from memory and
/// then from the L2 cache (40 MB on an A100, 50 MB on an H100).
const CACHED_BYTES: usize = 24 << 20;

/// Longest block whose scores fit into registers beside the results of a row.
const LONGEST_BLOCK: usize = 256;

pub(super) fn launch(op: &LandmarkAttention, c: &mut Compiler<'_>) -> Result<()> {
    forward(&placed(op, c)?, c)
}

/// A forward pass by the fastest kernels that serve it.
pub(crate) fn forward(attention: &Attention, to: &mut dyn Launches) -> Result<()> {
    if let Some(halves) = attention.halves() {
        if landmark_attention_hopper::try_forward(&halves, to)? {
            return Ok(());
        }
        let shape = Tiling::new(halves.block, halves.heads.head_dim);
        if shape.is_possible(LONGEST_BLOCK) && shape.forward_bytes() <= most_shared(to.arch()) {
            return by_tensor_cores(&halves, &shape, to);
        }
    }
    landmark_attention_any::forward(attention, to)
}

/// The op with its addresses.
pub(super) fn placed(op: &LandmarkAttention, c: &Compiler<'_>) -> Result<Attention> {
    if c.dtype(op.lse) != DType::F32 {
        return Err(c.unsupported("`lse` has to be f32"));
    }
    let h = op.heads;
    let landmarks = match op.blocks {
        Blocks::None => LandmarksAt::Nowhere,
        Blocks::Regular { block, phases } => LandmarksAt::Regular { block, phases: c.pointer(phases) },
        Blocks::Anywhere { is_landmark } => LandmarksAt::Anywhere { is_landmark: c.pointer(is_landmark) },
    };
    let randomness = op.randomness.map_or_else(RandomnessAt::default, |r| RandomnessAt {
        seed: c.pointer(r.seed),
        salt: r.salt,
        dropout: r.dropout,
        group_dropout: r.group_dropout,
    });
    Ok(Attention {
        heads: h,
        landmarks,
        scale: 1.0 / (h.head_dim as f32).sqrt(),
        q: side(op.q, h.queries, &h, c),
        k: side(op.k, h.keys, &h, c),
        v: side(op.v, h.keys, &h, c),
        out: whole(op.out, &h, c),
        lse: c.pointer(op.lse),
        miss: op.miss.map(|m| c.pointer_or_null(m.gated)),
        first_key: c.pointer_or_null(op.first_key),
        randomness,
    })
}

/// The heads in some columns of a tensor with so many rows for each of the batch.
pub(super) fn side(cols: Cols, rows: usize, h: &Heads, c: &Compiler<'_>) -> Side {
    let row = c.cols(cols.tensor);
    let at = HeadsAt { address: c.cols_pointer(cols), batch: rows * row, row, head: h.head_dim };
    Side { at, dtype: c.dtype(cols.tensor) }
}

/// A whole tensor of query heads.
pub(super) fn whole(tensor: Tensor, h: &Heads, c: &Compiler<'_>) -> Side {
    // Its rows may be cut otherwise than by heads; its elements lie the same.
    let row = h.heads * h.head_dim;
    let at = HeadsAt { address: c.pointer(tensor), batch: h.queries * row, row, head: h.head_dim };
    Side { at, dtype: c.dtype(tensor) }
}

/// Heads whose tiles run side by side, of `count`, where `share` of them share a key head.
pub(super) fn together(h: &Heads, count: usize, share: usize) -> usize {
    let head_bytes = 4 * h.keys * h.head_dim;
    (CACHED_BYTES / head_bytes * share).clamp(1, count)
}

/// Shared memory that a thread block may have, in bytes (CUDA C++ programming guide, compute capabilities).
pub(super) fn most_shared(arch: Arch) -> usize {
    match arch.0 {
        80 | 87 => 163 << 10,
        90 | 100..=119 => 227 << 10,
        _ => 99 << 10,
    }
}

/// How landmark blocks lie in a tile of keys: as in `kernels/attention_tile.cuh`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiling {
    pub(super) block: usize,
    pub(super) head_dim: usize,
    /// Rows of a block: its positions, to a multiple of 8.
    padded: usize,
    pub(super) blocks: usize,
}

impl Tiling {
    pub(super) fn new(block: usize, head_dim: usize) -> Self {
        let padded = if block == 0 { 64 } else { block.next_multiple_of(8) };
        Tiling { block, head_dim, padded, blocks: (64 / padded).max(1) }
    }

    /// Rows of a tile.
    pub(super) fn keys(&self) -> usize {
        self.blocks * self.padded
    }

    /// Keys from one tile to the next.
    pub(super) fn span(&self) -> usize {
        if self.block == 0 { 64 } else { self.blocks * self.block }
    }

    /// Bytes of a row in shared memory.
    pub(super) fn pitch(&self) -> usize {
        2 * (self.head_dim + 8)
    }

    pub(super) fn defines(&self, dtype: DType) -> Defines {
        Defines::new().set("BLOCK", self.block).set("HEAD_DIM", self.head_dim).dtype("HALF_T", dtype)
    }

    /// Whether registers suffice for blocks of up to `longest`.
    pub(super) fn is_possible(&self, longest: usize) -> bool {
        match self.head_dim {
            d if d % 16 == 0 && (16..=128).contains(&d) => self.block <= longest,
            256 => self.block == 0 || (9..=64).contains(&self.block),
            _ => false,
        }
    }

    /// Queries of a warp. Results and scores of 32 rows fit beside each other up to 128 columns and 64 keys; many short
    /// blocks want registers of their own.
    fn warp_rows(&self) -> usize {
        if self.head_dim <= 128 && self.padded <= 64 && self.padded > 8 { 32 } else { 16 }
    }

    fn tile_queries(&self) -> usize {
        WARPS * self.warp_rows()
    }

    fn forward_bytes(&self) -> usize {
        (self.tile_queries() + 2 * self.keys()) * self.pitch()
    }

    fn forward_defines(&self, dtype: DType) -> Defines {
        self.defines(dtype).set("WARP_ROWS", self.warp_rows()).set("WARPS", WARPS)
    }
}

/// Block lengths and head widths by which the kernels are compiled without a GPU: every length for the commonest width,
/// the commonest lengths for every width.
pub(super) fn common_shapes() -> Vec<Tiling> {
    let blocks = [0, 2, 16, 51, 64, 100, 128, 256].map(|block| Tiling::new(block, 128));
    let widths = [64, 80, 96, 256].into_iter().flat_map(|d| [0, 51, 64].map(|block| Tiling::new(block, d)));
    blocks.into_iter().chain(widths).collect()
}

pub(super) fn variants() -> Vec<Variant> {
    let shapes = common_shapes().into_iter().filter(|shape| shape.is_possible(LONGEST_BLOCK));
    let of_bf16 = shapes.map(|shape| shape.forward_defines(DType::Bf16));
    let of_f16 = [Tiling::new(51, 128).forward_defines(DType::F16)];
    of_bf16.chain(of_f16).map(|defines| Variant::new(FILE, defines)).collect()
}

fn by_tensor_cores(halves: &Halves, shape: &Tiling, to: &mut dyn Launches) -> Result<()> {
    let h = halves.heads;
    let kernel = to.kernel(FILE, "forward", shape.forward_defines(halves.dtype))?;
    let (tiles, count) = (h.queries.div_ceil(shape.tile_queries()), h.batch * h.heads);
    let arguments = Struct::default()
        .heads(halves.q)
        .heads(halves.k)
        .heads(halves.v)
        .heads(halves.out)
        .address(halves.lse)
        .address(halves.phases)
        .address(halves.first_key)
        .int(h.batch)
        .int(h.queries)
        .int(h.keys)
        .int(h.heads)
        .int(h.kv_heads)
        .int(tiles)
        .int(together(&h, count, h.heads / h.kv_heads))
        .float(std::f32::consts::LOG2_E * halves.scale)
        .finish(152);
    let shared = shape.forward_bytes() as u32;
    to.launch_dependent(&kernel, [(tiles * count) as u32, 1, 1], 32 * WARPS as u32, shared, args![arguments])
}
