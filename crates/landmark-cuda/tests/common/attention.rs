//! Attentions to be tested on Hopper.

use super::{Case, cuda};
use landmark_core::ops::{Blocks, Heads, LandmarkAttention};
use landmark_core::{Cols, DType};
use landmark_cuda::Cuda;

/// Extents.
pub fn heads(
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
) -> Heads {
    Heads { batch, queries, keys, heads, kv_heads, head_dim }
}

/// The device, if it is a Hopper.
pub fn hopper() -> Option<&'static Cuda> {
    let cuda = cuda()?;
    if cuda.info().capability != 90 {
        eprintln!("not run: {} is not a Hopper GPU", cuda.info().name);
        return None;
    }
    Some(cuda)
}

/// Tensors of an attention, its queries, keys and values columns of one tensor where they have the same rows.
pub fn attention(case: &mut Case, h: Heads, block: usize, phases: &[f64], dtype: DType) -> LandmarkAttention {
    let (q, k) = (h.heads * h.head_dim, h.kv_heads * h.head_dim);
    let [q, k, v] = if h.queries == h.keys {
        let tensor = case.normal(dtype, [h.batch, h.keys, q + 2 * k], 1.0);
        [(0, q), (q, k), (q + k, k)].map(|(start, width)| Cols { tensor, start, width })
    } else {
        [(h.queries, q), (h.keys, k), (h.keys, k)]
            .map(|(rows, width)| Cols::all(case.normal(dtype, [h.batch, rows, width], 1.0), width))
    };
    let blocks = match block {
        0 => Blocks::None,
        block => Blocks::Regular { block, phases: case.holding(DType::U32, [h.batch], phases) },
    };
    let out = case.result(dtype, [h.batch, h.queries, h.heads * h.head_dim]);
    let lse = case.result(DType::F32, [h.batch, h.heads, h.queries]);
    LandmarkAttention { heads: h, q, k, v, blocks, miss: None, first_key: None, randomness: None, out, lse }
}
