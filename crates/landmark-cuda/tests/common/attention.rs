//! Attentions to be tested, and what they may err.

use super::naive::stored;
use super::{Case, cuda, fits, rounding};
use landmark_core::ops::{Blocks, Heads, LandmarkAttention};
use landmark_core::testing::attention::{AttentionCase, Inputs, Landmarks};
use landmark_core::testing::naive::allowed;
use landmark_core::testing::{magnitude, worst};
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

/// A case of these extents over blocks of `block`, 0 for none.
pub fn case(heads: [usize; 6], block: usize, phases: &[u32]) -> AttentionCase {
    let [batch, queries, keys, heads, kv_heads, head_dim] = heads;
    let landmarks = if block == 0 { Landmarks::None } else { Landmarks::Regular(block, phases.to_vec()) };
    AttentionCase {
        name: format!("block {block}, {queries} of {keys}, {heads}/{kv_heads} heads of {head_dim}"),
        heads: Heads { batch, queries, keys, heads, kv_heads, head_dim },
        landmarks,
        miss: false,
        gated: false,
        first_key: None,
        dropout: 0.0,
        group_dropout: 0.0,
    }
}

/// The case's inputs as tensors of this type hold them.
pub fn inputs(case: &AttentionCase, dtype: DType) -> Inputs {
    let exact = case.inputs();
    let rounded = |x: Vec<f64>| x.iter().map(|&x| stored(dtype, x)).collect();
    Inputs { q: rounded(exact.q), k: rounded(exact.k), v: rounded(exact.v), dout: rounded(exact.dout) }
}

/// The largest error of `found` (out, dq, dk, dv, each as the oracle has it) over what is allowed: twice that of naive code that
/// computes in f32 and leaves inputs, scores, weights, their gradients and results in `dtype`.
pub fn ratio(case: &AttentionCase, given: &Inputs, dtype: DType, found: &[Vec<f64>; 4]) -> f64 {
    let oracle = case.naive::<f64>(given);
    let naive = case.naive_stored::<f32>(given, |x| stored(dtype, f64::from(x)) as f32);
    // Gradients that cancel exactly in the oracle cancel to the rounding of their terms.
    let terms = oracle.iter().map(|(_, x)| magnitude(x)).fold(0.0, f64::max);
    let mut largest = 0.0_f64;
    for (i, found) in found.iter().enumerate() {
        let (result, oracle) = &oracle[i];
        let naive: Vec<f64> = naive[i].1.iter().map(|&x| stored(dtype, x)).collect();
        let error = worst(oracle, found);
        let permitted = allowed(oracle, &naive, rounding(dtype) / 2.0) + 16.0 * rounding(DType::F32) * terms;
        let ratio = if error == 0.0 { 0.0 } else { error / permitted };
        if !fits(ratio) {
            println!("{} in {}, {result}: error {error:e}, allowed {permitted:e}", case.name, dtype.name());
        }
        largest = if ratio > largest || ratio.is_nan() { ratio } else { largest };
    }
    largest
}
