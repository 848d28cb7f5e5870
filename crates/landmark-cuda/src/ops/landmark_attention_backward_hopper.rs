//! Gradients of landmark attention, by the matrix units and copy engines of Hopper
//! (`kernels/landmark_attention_backward_hopper.cuh` says how).
//!
//! Two launches, one a tile of queries (dq, and two numbers for every query and block), one a tile of keys (dk and dv from
//! those numbers). The numbers take `8 · B · H · Nq · (Nk / block)` bytes, 128 MiB a head at 32,768 positions of blocks of 64, so
//! heads are served in slices whose numbers stay below [`STATISTICS_BYTES`] (one key head's if those alone are more).
//!
//! Serves what the forward kernel serves, with blocks of 8 to 128 positions, to 64 where heads have 256 columns; the rest
//! is left to the other kernels of the op.

use super::landmark_attention_hopper::map;
use crate::attention::{HalfGradients, Launches};
use crate::compile::{Defines, Variant};
use crate::driver::Arg;
use crate::plan::args;
use landmark_core::ops::Heads;
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

/// Every shape of tile in every head width; f16 differs from bf16 in the instructions' names alone, so one block of it will do.
pub(super) fn variants() -> Vec<Variant> {
    let blocks = [0, 8, 16, 32, 51, 64, 100, 128].map(|block| (block, DType::Bf16));
    let mut all = Vec::new();
    for head_dim in [64, 80, 96, 128, 256] {
        for (block, dtype) in blocks.into_iter().chain([(64, DType::F16)]) {
            if Tiles::new(block, head_dim).is_some() {
                let of = |(file, _)| Variant::for_hopper(file, defines(block, head_dim, dtype));
                all.extend(KERNELS.map(of));
            }
        }
    }
    all
}

/// Batch rows and query heads that are served together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slice {
    batch: usize,
    batches: usize,
    head: usize,
    heads: usize,
}

/// What the two kernels leave for each other: numbers of every query and block.
#[derive(Clone, Copy, Debug)]
struct Statistics {
    heads: Heads,
    block: usize,
}

impl Statistics {
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

    /// Bytes of one slice's.
    fn bytes(&self) -> u64 {
        let widest = self.slices().iter().map(|s| s.batches * s.heads).max().unwrap_or(0);
        (widest * self.head_bytes()) as u64
    }
}

/// Launches the pass if these kernels serve it.
pub(super) fn try_backward(g: &HalfGradients, to: &mut dyn Launches) -> Result<bool> {
    let f = &g.forward;
    let Heads { queries, keys, heads, kv_heads, head_dim, .. } = f.heads;
    let statistics = Statistics { heads: f.heads, block: f.block };
    if !to.arch().is_hopper() || f.first_key != 0 || statistics.bytes() > MOST_WORKSPACE {
        return Ok(false);
    }
    let Some(tiles) = Tiles::new(f.block, head_dim) else { return Ok(false) };
    let group = heads / kv_heads;
    let workspace = to.workspace(statistics.bytes());
    let [of_queries, of_keys] = KERNELS;
    let defines = defines(f.block, head_dim, f.dtype);
    let of_queries = to.kernel(of_queries.0, of_queries.1, defines.clone())?;
    let of_keys = to.kernel(of_keys.0, of_keys.1, defines)?;
    for slice in statistics.slices() {
        let tail = |mut args: Vec<Arg>| {
            args.extend(args![
                queries as i32,
                keys as i32,
                heads as i32,
                group as i32,
                slice.batch as i32,
                slice.head as i32,
                statistics.blocks() as i32,
                statistics.panels() as i32,
                f.scale,
            ]);
            args
        };
        let args = tail(args![
            map(f, f.q, queries, heads, ROWS)?,
            map(f, f.k, keys, kv_heads, tiles.inner)?,
            map(f, f.v, keys, kv_heads, tiles.inner)?,
            map(f, g.dout, queries, heads, ROWS)?,
            map(f, g.dq, queries, heads, ROWS)?,
            f.out.address,
            f.out.batch as u64,
            f.out.row as u64,
            f.out.head as u64,
            g.dout.address,
            g.dout.batch as u64,
            g.dout.row as u64,
            g.dout.head as u64,
            f.lse,
            f.phases,
            workspace,
        ]);
        let grid = [queries.div_ceil(QUERIES) as u32, slice.heads as u32, slice.batches as u32];
        to.launch_dependent(&of_queries, grid, THREADS, tiles.shared[0] as u32, args)?;
        let args = tail(args![
            map(f, f.q, queries, heads, ROWS)?,
            map(f, f.k, keys, kv_heads, ROWS)?,
            map(f, f.v, keys, kv_heads, ROWS)?,
            map(f, g.dout, queries, heads, ROWS)?,
            map(f, g.dk, keys, kv_heads, ROWS)?,
            map(f, g.dv, keys, kv_heads, ROWS)?,
            f.phases,
            workspace,
        ]);
        let grid = [keys.div_ceil(tiles.keys) as u32, (slice.heads / group) as u32, slice.batches as u32];
        to.launch_dependent(&of_keys, grid, THREADS, tiles.shared[1] as u32, args)?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shared memory that a block of Hopper may have.
    const MOST_SHARED: usize = 232_448;

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
            let op = Statistics { heads: h, block: 64 };
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
            let heads = Heads { batch: 1, queries: keys, keys, heads: 1, kv_heads: 1, head_dim: 64 };
            Statistics { heads, block }.blocks()
        };
        // 64 keys in phase 63 lie in two blocks, 65 keys in two, 66 in three only past phase 62.
        assert_eq!([with(1, 64), with(2, 64), with(65, 64), with(66, 64), with(66, 0)], [1, 2, 2, 3, 0]);
    }
}
