//! Landmark attention: which kernels serve an op, and the forward pass by tensor cores (`kernels/landmark_attention.cu`).
//!
//! Three paths, the fastest that serves: Hopper's own instructions (`landmark_attention_hopper`), `mma.sync` for every
//! GPU from sm_80 on (here and in `landmark_attention_backward`), and f32 arithmetic for every feature
//! (`landmark_attention_any`). The choice depends on the op alone, never on data.

use super::landmark_attention_any;
use crate::compile::{Arch, Defines, Variant};
use crate::driver::Arg;
use crate::plan::{Compiler, args};
use landmark_core::ops::{Blocks, Heads, LandmarkAttention};
use landmark_core::{Cols, DType, Result, Tensor};
use std::sync::Arc;

const FILE: &str = "landmark_attention.cu";
/// As in the kernel.
const WARPS: usize = 4;
/// Keys and values of heads that are walked side by side stay below this, so that they are read once from memory and
/// then from the L2 cache (40 MB on an A100, 50 MB on an H100).
const CACHED_BYTES: usize = 24 << 20;

pub(super) fn launch(op: &LandmarkAttention, c: &mut Compiler<'_>) -> Result<()> {
    match Halves::of(op, c, &[op.q.tensor, op.k.tensor, op.v.tensor, op.out]) {
        Some(halves) if halves.serves(LONGEST_BLOCK) => forward(op, halves, c),
        _ => landmark_attention_any::forward(op, c),
    }
}

// ---- arguments ----

/// A struct that a kernel takes by value: its members in order. The kernel file asserts its size.
#[derive(Default)]
pub(super) struct Struct(Vec<u8>);

impl Struct {
    pub(super) fn address(mut self, address: u64) -> Self {
        debug_assert!(self.0.len().is_multiple_of(8), "addresses stand before smaller members");
        self.0.extend(address.to_le_bytes());
        self
    }

    pub(super) fn int(mut self, value: usize) -> Self {
        debug_assert!(i32::try_from(value).is_ok(), "extents fit into 31 bits");
        self.0.extend((value as i32).to_le_bytes());
        self
    }

    pub(super) fn signed(mut self, value: i32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(super) fn word(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(super) fn float(mut self, value: f32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    /// Of some heads: address, and strides in elements from one row of the batch, position and head to the next.
    pub(super) fn view(self, view: View) -> Self {
        let mut this = self.address(view.address);
        this.0.extend((view.batch as u64).to_le_bytes());
        this.int(view.row).int(view.head)
    }

    /// As the kernel's parameter of `bytes` bytes.
    pub(super) fn finish(mut self, bytes: usize) -> Arg {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        debug_assert_eq!(self.0.len(), bytes, "the kernel's struct has another size");
        let words = self.0.chunks_exact(8).map(|b| b.iter().rev().fold(0, |w, &b| w << 8 | u64::from(b)));
        Arg::from(words.collect::<Arc<[u64]>>())
    }
}

/// The heads in some columns of a tensor.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct View {
    address: u64,
    batch: usize,
    row: usize,
    head: usize,
}

impl View {
    pub(super) fn new(cols: Cols, rows: usize, head_dim: usize, c: &Compiler<'_>) -> Self {
        let row = c.cols(cols.tensor);
        View { address: c.cols_pointer(cols), batch: rows * row, row, head: head_dim }
    }

    /// Of a whole tensor of heads.
    pub(super) fn whole(tensor: Tensor, h: &Heads, c: &Compiler<'_>) -> Self {
        // Its rows may be cut otherwise than by heads; its elements lie the same.
        let row = h.heads * h.head_dim;
        View { address: c.pointer(tensor), batch: h.queries * row, row, head: h.head_dim }
    }

    /// Whether every row of a head begins at a multiple of 16 bytes in a tensor of halves.
    pub(super) fn is_aligned(&self) -> bool {
        self.address.is_multiple_of(16)
            && [self.batch, self.row, self.head].iter().all(|s| s.is_multiple_of(8))
    }
}

// ---- what the tensor cores serve ----

/// Longest block whose scores fit into registers beside the results of a row.
const LONGEST_BLOCK: usize = 256;

/// An attention whose operands are all of one half type, over regular blocks or none, without a context-miss token and
/// dropout.
#[derive(Clone, Copy, Debug)]
pub(super) struct Halves {
    pub(super) heads: Heads,
    /// Positions of a block; 0: no landmarks.
    pub(super) block: usize,
    pub(super) dtype: DType,
    pub(super) phases: u64,
    pub(super) first_key: u64,
    pub(super) arch: Arch,
}

impl Halves {
    /// The op as such, if it is one; `tensors` are those that have to have one type.
    pub(super) fn of(op: &LandmarkAttention, c: &Compiler<'_>, tensors: &[Tensor]) -> Option<Self> {
        let (block, phases) = match op.blocks {
            Blocks::None => (0, 0),
            Blocks::Regular { block, phases } => (block, c.pointer(phases)),
            Blocks::Anywhere { .. } => return None,
        };
        let dtype = c.dtype(op.q.tensor);
        let is_dropping = op.randomness.is_some_and(|r| r.dropout > 0.0 || r.group_dropout > 0.0);
        let is_half =
            matches!(dtype, DType::Bf16 | DType::F16) && tensors.iter().all(|&t| c.dtype(t) == dtype);
        let is_plain = op.miss.is_none() && !is_dropping && c.dtype(op.lse) == DType::F32;
        (is_half && is_plain).then(|| Halves {
            heads: op.heads,
            block,
            dtype,
            phases,
            first_key: c.pointer_or_null(op.first_key),
            arch: c.arch(),
        })
    }

    fn serves(&self, longest: usize) -> bool {
        let shape = Tiling::new(self.block, self.heads.head_dim);
        shape.is_possible(longest) && shape.forward_bytes() <= most_shared(self.arch)
    }

    /// Heads whose tiles run side by side, of `count`, where `share` of them share a key head.
    pub(super) fn together(&self, count: usize, share: usize) -> usize {
        let head_bytes = 4 * self.heads.keys * self.heads.head_dim;
        (CACHED_BYTES / head_bytes * share).clamp(1, count)
    }
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

fn forward(op: &LandmarkAttention, halves: Halves, c: &mut Compiler<'_>) -> Result<()> {
    let h = op.heads;
    let shape = Tiling::new(halves.block, h.head_dim);
    let (q, k, v) = (
        View::new(op.q, h.queries, h.head_dim, c),
        View::new(op.k, h.keys, h.head_dim, c),
        View::new(op.v, h.keys, h.head_dim, c),
    );
    if ![q, k, v].iter().all(View::is_aligned) {
        return landmark_attention_any::forward(op, c);
    }
    let kernel = c.kernel(FILE, "forward", shape.forward_defines(halves.dtype))?;
    let (tiles, count) = (h.queries.div_ceil(shape.tile_queries()), h.batch * h.heads);
    let arguments = Struct::default()
        .view(q)
        .view(k)
        .view(v)
        .view(View::whole(op.out, &h, c))
        .address(c.pointer(op.lse))
        .address(halves.phases)
        .address(halves.first_key)
        .int(h.batch)
        .int(h.queries)
        .int(h.keys)
        .int(h.heads)
        .int(h.kv_heads)
        .int(tiles)
        .int(halves.together(count, h.heads / h.kv_heads))
        .float(std::f32::consts::LOG2_E / (h.head_dim as f32).sqrt())
        .finish(152);
    let shared = shape.forward_bytes() as u32;
    c.launch_dependent(&kernel, [(tiles * count) as u32, 1, 1], 32 * WARPS as u32, shared, args![arguments])
}
