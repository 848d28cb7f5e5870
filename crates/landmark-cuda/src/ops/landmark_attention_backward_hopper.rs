//! Gradients of landmark attention, by the matrix units and copy engines of Hopper
//! (`kernels/landmark_attention_backward_hopper.cuh` says how).
//!
//! Two launches, one a tile of queries (dq, and two numbers for every query and block), one a tile of keys (dk and dv from
//! those numbers). The numbers take `8 · B · H · Nq · (Nk / block)` bytes, 128 MiB a head at 32,768 positions of blocks of 64, so
//! heads are served in slices whose numbers stay below [`STATISTICS_BYTES`] (one key head's if those alone are more).
//!
//! Serves what the forward kernel serves, with blocks of 8 to 128 positions, to 64 where heads have 256 columns; the rest
//! is left to the other kernels of the op.

use super::landmark_attention_hopper::HeadsAt;
use crate::compile::{Defines, Variant};
use crate::driver::{Arg, TensorMap, TensorMapShape};
use crate::plan::{Compiler, args};
use landmark_core::ops::{Blocks, Heads, LandmarkAttentionBackward};
use landmark_core::tensor::Cols;
use landmark_core::{DType, Result};

/// First and second launch: file and function.
const KERNELS: [(&str, &str); 2] = [
    ("landmark_attention_backward_queries_hopper.cu", "queries"),
    ("landmark_attention_backward_keys_hopper.cu", "keys"),
];
/// As in the kernels: threads of a block; queries of a block; rows of a warp group, of a box and of a panel of statistics.
const THREADS: u32 = 384;
const QUERIES: usize = 128;
const ROWS: usize = 64;
/// Columns of a tile in shared memory: the copy engine's 128-byte swizzle over sixteen-bit elements.
const PANEL: usize = 64;
/// Bytes of a panel of `ROWS` rows.
const PANEL_BYTES: usize = ROWS * 128;
/// What the statistics of a slice may take.
const STATISTICS_BYTES: usize = 256 << 20;
/// What they may take where one key head's alone are more.
const MOST_WORKSPACE: u64 = 4 << 30;

/// How the kernels cut up a head; every number as the kernels compute it from the same definitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tiles {
    /// Rows of a tile of keys that a tile of queries meets.
    inner: usize,
    /// Keys of a block of the second kernel.
    keys: usize,
    /// Dynamic shared memory of the two.
    shared: [usize; 2],
}

impl Tiles {
    /// `None`: not served.
    fn new(block: usize, head_dim: usize) -> Option<Tiles> {
        let is_wide = head_dim == 256;
        if !(is_wide || head_dim.is_multiple_of(16) && (16..=128).contains(&head_dim)) {
            return None;
        }
        let most = if (1..16).contains(&block) {
            32
        } else if is_wide || (16..32).contains(&block) {
            64
        } else if (33..43).contains(&block) {
            96
        } else {
            128
        };
        if block != 0 && !(8..=most).contains(&block) {
            return None;
        }
        let span = most.checked_div(block).map_or(most, |blocks| blocks * block);
        let inner = span.next_multiple_of(16);
        let panels = head_dim.div_ceil(PANEL);
        let (key_stages, value_stages) = (2, if is_wide { 1 } else { 2 });
        let queries = 4 * PANEL_BYTES * panels
            + (key_stages + value_stages) * inner * 128 * panels
            + 8 * (1 + 2 * (key_stages + value_stages));
        let (keys, stages) = if is_wide { (ROWS, 2) } else { (2 * ROWS, 3) };
        let slots = (keys + block).saturating_sub(2).checked_div(block).map_or(0, |blocks| blocks + 1);
        let statistics = ((slots + 1) * 2 * ROWS * 4).next_multiple_of(1024);
        let second =
            2 * panels * keys * 128 + stages * (2 * panels * PANEL_BYTES + statistics) + 8 * (1 + 2 * stages);
        Some(Tiles { inner, keys, shared: [queries, second] })
    }
}

fn defines(block: usize, head_dim: usize, dtype: DType) -> Defines {
    Defines::new().set("BLOCK", block).set("HEAD_DIM", head_dim).flag("HALF_F16", dtype == DType::F16)
}

pub(super) fn variants() -> Vec<Variant> {
    let mut all = Vec::new();
    for head_dim in [64, 80, 96, 128, 256] {
        for block in [0, 8, 16, 32, 51, 64, 100, 128] {
            if Tiles::new(block, head_dim).is_none() {
                continue;
            }
            for dtype in [DType::Bf16, DType::F16] {
                let of = |(file, _)| Variant::for_hopper(file, defines(block, head_dim, dtype));
                all.extend(KERNELS.map(of));
            }
        }
    }
    all
}

/// A backward pass with all addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FusedBackward {
    pub(crate) heads: Heads,
    /// Positions of a block; 0: no landmarks.
    pub(crate) block: usize,
    pub(crate) dtype: DType,
    pub(crate) scale: f32,
    pub(crate) q: HeadsAt,
    pub(crate) k: HeadsAt,
    pub(crate) v: HeadsAt,
    pub(crate) out: HeadsAt,
    pub(crate) dout: HeadsAt,
    pub(crate) dq: HeadsAt,
    pub(crate) dk: HeadsAt,
    pub(crate) dv: HeadsAt,
    /// `(B)` u32; anything without landmarks.
    pub(crate) phases: u64,
    /// `(B, H, Nq)` f32.
    pub(crate) lse: u64,
}

/// One launch of the two kernels.
#[derive(Debug)]
pub(crate) struct BackwardLaunch {
    /// 0: queries, 1: keys.
    pub(crate) kernel: usize,
    pub(crate) grid: [u32; 3],
    pub(crate) threads: u32,
    pub(crate) shared: u32,
    pub(crate) args: Vec<Arg>,
}

/// Batch rows and query heads that are served together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slice {
    batch: usize,
    batches: usize,
    head: usize,
    heads: usize,
}

impl FusedBackward {
    /// Why these kernels do not serve, if they do not.
    pub(crate) fn refusal(&self) -> Option<String> {
        let Heads { head_dim, .. } = self.heads;
        if !matches!(self.dtype, DType::Bf16 | DType::F16) {
            return Some(format!("{:?} instead of bf16 or f16", self.dtype));
        }
        if Tiles::new(self.block, head_dim).is_none() {
            return Some(format!("blocks of {} with heads of {head_dim}", self.block));
        }
        if self.workspace_bytes() > MOST_WORKSPACE {
            return Some(format!(
                "{} bytes of workspace for the query heads of one key head",
                self.workspace_bytes()
            ));
        }
        let aligned = |x: &HeadsAt| {
            x.address.is_multiple_of(16)
                && [x.batch, x.row, x.head]
                    .iter()
                    .all(|stride| (stride * self.dtype.size()).is_multiple_of(16))
        };
        let sides = [
            ("q", self.q),
            ("k", self.k),
            ("v", self.v),
            ("out", self.out),
            ("dout", self.dout),
            ("dq", self.dq),
            ("dk", self.dk),
            ("dv", self.dv),
        ];
        sides.iter().find(|(_, side)| !aligned(side)).map(|(name, side)| {
            format!("{name} {side:?}: address and strides are not multiples of 16 bytes, as the copy engine needs them")
        })
    }

    /// File, function and definitions of the two kernels.
    pub(crate) fn kernels(&self) -> [(&'static str, &'static str, Defines); 2] {
        KERNELS.map(|(file, function)| (file, function, defines(self.block, self.heads.head_dim, self.dtype)))
    }

    /// Blocks that a row of keys can touch, whatever its phase.
    fn blocks(&self) -> usize {
        (self.heads.keys + self.block).saturating_sub(2).checked_div(self.block).map_or(0, |last| last + 1)
    }

    /// Panels of `ROWS` queries; even.
    fn panels(&self) -> usize {
        self.heads.queries.div_ceil(QUERIES) * (QUERIES / ROWS)
    }

    /// Bytes of one query head's statistics.
    fn head_bytes(&self) -> usize {
        (self.blocks() + 1) * self.panels() * 2 * ROWS * 4
    }

    /// As few slices as the budget allows.
    fn slices(&self) -> Vec<Slice> {
        let Heads { batch, heads, kv_heads, .. } = self.heads;
        let group = heads / kv_heads;
        let affordable = (STATISTICS_BYTES / self.head_bytes()).max(1);
        let batches_at_once = (affordable / heads).clamp(1, batch);
        let heads_at_once = (affordable / group * group).clamp(group, heads);
        let mut slices = Vec::new();
        for first in (0..batch).step_by(batches_at_once) {
            for head in (0..heads).step_by(heads_at_once) {
                slices.push(Slice {
                    batch: first,
                    batches: batches_at_once.min(batch - first),
                    head,
                    heads: heads_at_once.min(heads - head),
                });
            }
        }
        slices
    }

    /// What [`launches`](Self::launches) needs: a multiple of 16 as its address.
    pub(crate) fn workspace_bytes(&self) -> u64 {
        let widest = self.slices().iter().map(|s| s.batches * s.heads).max().unwrap_or(0);
        (widest * self.head_bytes()) as u64
    }

    fn map(&self, side: HeadsAt, rows: usize, heads: usize, box_rows: usize) -> Result<TensorMap> {
        let size = self.dtype.size() as u64;
        TensorMap::new(&TensorMapShape {
            dtype: self.dtype,
            address: side.address,
            extents: &[self.heads.head_dim as u64, heads as u64, rows as u64, self.heads.batch as u64],
            strides: &[side.head as u64 * size, side.row as u64 * size, side.batch as u64 * size],
            box_: &[PANEL as u32, 1, box_rows as u32, 1],
            swizzle: 128,
        })
    }

    /// What to launch, in order. Empty where [`refusal`](Self::refusal) has something to say.
    pub(crate) fn launches(&self, workspace: u64) -> Result<Vec<BackwardLaunch>> {
        let Heads { queries, keys, heads, kv_heads, head_dim, .. } = self.heads;
        let Some(tiles) = Tiles::new(self.block, head_dim) else { return Ok(Vec::new()) };
        let group = heads / kv_heads;
        let mut launches = Vec::new();
        for slice in self.slices() {
            let tail = |mut args: Vec<Arg>| {
                args.extend(args![
                    queries as i32,
                    keys as i32,
                    heads as i32,
                    group as i32,
                    slice.batch as i32,
                    slice.head as i32,
                    self.blocks() as i32,
                    self.panels() as i32,
                    self.scale,
                ]);
                args
            };
            launches.push(BackwardLaunch {
                kernel: 0,
                grid: [queries.div_ceil(QUERIES) as u32, slice.heads as u32, slice.batches as u32],
                threads: THREADS,
                shared: tiles.shared[0] as u32,
                args: tail(args![
                    self.map(self.q, queries, heads, ROWS)?,
                    self.map(self.k, keys, kv_heads, tiles.inner)?,
                    self.map(self.v, keys, kv_heads, tiles.inner)?,
                    self.map(self.dout, queries, heads, ROWS)?,
                    self.map(self.dq, queries, heads, ROWS)?,
                    self.out.address,
                    self.out.batch as u64,
                    self.out.row as u64,
                    self.out.head as u64,
                    self.dout.address,
                    self.dout.batch as u64,
                    self.dout.row as u64,
                    self.dout.head as u64,
                    self.lse,
                    self.phases,
                    workspace,
                ]),
            });
            launches.push(BackwardLaunch {
                kernel: 1,
                grid: [keys.div_ceil(tiles.keys) as u32, (slice.heads / group) as u32, slice.batches as u32],
                threads: THREADS,
                shared: tiles.shared[1] as u32,
                args: tail(args![
                    self.map(self.q, queries, heads, ROWS)?,
                    self.map(self.k, keys, kv_heads, ROWS)?,
                    self.map(self.v, keys, kv_heads, ROWS)?,
                    self.map(self.dout, queries, heads, ROWS)?,
                    self.map(self.dk, keys, kv_heads, ROWS)?,
                    self.map(self.dv, keys, kv_heads, ROWS)?,
                    self.phases,
                    workspace,
                ]),
            });
        }
        Ok(launches)
    }
}

/// Launches `op` if these kernels serve it.
pub(super) fn try_launch(op: &LandmarkAttentionBackward, c: &mut Compiler<'_>) -> Result<bool> {
    let f = &op.forward;
    let is_dropping = f.randomness.is_some_and(|r| r.dropout > 0.0 || r.group_dropout > 0.0);
    let (block, phases) = match f.blocks {
        Blocks::None => (0, 0),
        Blocks::Regular { block, phases } => (block, c.pointer(phases)),
        Blocks::Anywhere { .. } => return Ok(false),
    };
    let g = &op.gradients;
    let tensors = [f.q.tensor, f.k.tensor, f.v.tensor, f.out, op.dout, g.dq.tensor, g.dk.tensor, g.dv.tensor];
    let dtype = c.dtype(f.q.tensor);
    let plain = f.miss.is_none() && f.first_key.is_none() && !is_dropping && c.dtype(f.lse) == DType::F32;
    if !c.arch().is_hopper() || !plain || tensors.iter().any(|&t| c.dtype(t) != dtype) {
        return Ok(false);
    }
    let h = f.heads;
    let side = |cols: Cols, rows: usize| {
        let row = c.cols(cols.tensor);
        HeadsAt { address: c.cols_pointer(cols), batch: rows * row, row, head: h.head_dim }
    };
    let whole = |tensor| side(Cols::all(tensor, h.heads * h.head_dim), h.queries);
    let fused = FusedBackward {
        heads: h,
        block,
        dtype,
        scale: 1.0 / (h.head_dim as f32).sqrt(),
        q: side(f.q, h.queries),
        k: side(f.k, h.keys),
        v: side(f.v, h.keys),
        out: whole(f.out),
        dout: whole(op.dout),
        dq: side(g.dq, h.queries),
        dk: side(g.dk, h.keys),
        dv: side(g.dv, h.keys),
        phases,
        lse: c.pointer(f.lse),
    };
    if fused.refusal().is_some() {
        return Ok(false);
    }
    let workspace = c.workspace(fused.workspace_bytes());
    let [queries, keys] = fused.kernels();
    let kernels = [c.kernel(queries.0, queries.1, queries.2)?, c.kernel(keys.0, keys.1, keys.2)?];
    for launch in fused.launches(workspace)? {
        c.launch_dependent(&kernels[launch.kernel], launch.grid, launch.threads, launch.shared, launch.args)?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shared memory that a block of Hopper may have.
    const MOST_SHARED: usize = 232_448;

    fn backward(heads: Heads, block: usize) -> FusedBackward {
        let at = HeadsAt { address: 0, batch: 0, row: 0, head: 0 };
        FusedBackward {
            heads,
            block,
            dtype: DType::Bf16,
            scale: 1.0,
            q: at,
            k: at,
            v: at,
            out: at,
            dout: at,
            dq: at,
            dk: at,
            dv: at,
            phases: 0,
            lse: 0,
        }
    }

    #[test]
    fn tiles_fit_shared_memory() {
        for head_dim in [16, 64, 80, 96, 128, 256] {
            for tiles in (0..=256).filter_map(|block| Tiles::new(block, head_dim)) {
                assert!(tiles.shared.iter().all(|&bytes| bytes <= MOST_SHARED), "{head_dim}: {tiles:?}");
            }
        }
        assert_eq!(Tiles::new(51, 128).map(|t| t.inner), Some(112));
        assert_eq!(Tiles::new(64, 256).map(|t| t.inner), Some(64));
        assert_eq!(Tiles::new(0, 80).map(|t| t.inner), Some(128));
        assert!(
            [(7, 128), (129, 128), (65, 256), (64, 72), (64, 192)]
                .iter()
                .all(|&(b, d)| Tiles::new(b, d).is_none())
        );
    }

    #[test]
    fn slices_cover_every_head_once_within_the_budget() {
        let heads = |batch, queries, heads, kv_heads| Heads {
            batch,
            queries,
            keys: queries,
            heads,
            kv_heads,
            head_dim: 128,
        };
        for (h, expected) in [
            (heads(4, 2048, 32, 32), 1),
            (heads(2, 4096, 32, 8), 1),
            (heads(1, 32768, 32, 32), 32),
            (heads(3, 16384, 8, 4), 6),
        ] {
            let op = backward(h, 64);
            let mut seen = vec![0; h.batch * h.heads];
            for s in op.slices() {
                let group = h.heads / h.kv_heads;
                assert!(s.head % group == 0 && s.heads % group == 0, "{s:?}");
                assert!(
                    s.batches * s.heads * op.head_bytes() <= STATISTICS_BYTES.max(group * op.head_bytes()),
                    "{s:?}"
                );
                for b in s.batch..s.batch + s.batches {
                    (s.head..s.head + s.heads).for_each(|head| seen[b * h.heads + head] += 1);
                }
            }
            assert!(seen.iter().all(|&n| n == 1), "{h:?}: {seen:?}");
            assert_eq!(op.slices().len(), expected, "{h:?}: {:?}", op.slices());
        }
    }

    #[test]
    fn blocks_count_the_one_that_a_phase_begins() {
        let with = |keys, block| {
            backward(Heads { batch: 1, queries: keys, keys, heads: 1, kv_heads: 1, head_dim: 64 }, block)
                .blocks()
        };
        // 64 keys in phase 63 lie in two blocks, 65 keys in two, 66 in three only past phase 62.
        assert_eq!([with(1, 64), with(2, 64), with(65, 64), with(66, 64), with(66, 0)], [1, 2, 2, 3, 0]);
    }
}
