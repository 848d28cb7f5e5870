//! Landmark attention in a model written with candle: a custom op around `Cuda::fused_landmark_attention`.
//!
//! `cargo run --release` in this folder, with a Hopper GPU and CUDA's toolkit of 13.0 (candle compiles its own kernels
//! with nvcc; ours need NVRTC alone). The op is [`LandmarkAttention`]; `main` holds it against the definition.
//!
//! What else changes in a model is said in `landmark_cuda::fused`: landmark tokens go into the input, and have no target.

mod op;

use candle_core::{DType, Device, Result, Tensor, Var};
use landmark_cuda::Cuda;
use op::LandmarkAttention;
use std::sync::Arc;

/// Grouped softmax of one query by its definition: what each of the keys `0..=query` weighs.
fn weights(scores: &[f32], block: usize, phase: usize) -> Vec<f32> {
    let query = scores.len() - 1;
    let block_of = |j: usize| (j + phase) / block;
    let is_landmark = |j: usize| (j + phase) % block == block - 1;
    let own = |j: usize| block_of(j) == block_of(query);
    // The outer softmax is over the own block's ordinary keys and the landmarks of those before.
    let outer: f32 = (0..=query).filter(|&j| own(j) != is_landmark(j)).map(|j| scores[j].exp()).sum();
    let weight = |j: usize| match (own(j), is_landmark(j)) {
        (_, true) => 0.0,
        (true, false) => scores[j].exp() / outer,
        (false, false) => {
            let mates = (0..=query).filter(|&i| block_of(i) == block_of(j));
            let inner: f32 = mates.clone().filter(|&i| !is_landmark(i)).map(|i| scores[i].exp()).sum();
            let landmark: f32 = mates.filter(|&i| is_landmark(i)).map(|i| scores[i].exp()).sum();
            landmark / outer * scores[j].exp() / inner
        }
    };
    (0..=query).map(weight).collect()
}

/// The largest difference between the op's result and the definition's, over all rows of one head.
fn difference(
    qkv: [&Tensor; 3],
    out: &Tensor,
    at: (usize, usize, usize),
    block: usize,
    phase: usize,
) -> Result<f32> {
    let (b, h, kv) = at;
    let of = |t: &Tensor, head: usize| {
        t.get(b)?.get(head)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.to_vec2::<f32>()
    };
    let (q, k, v, out) = (of(qkv[0], h)?, of(qkv[1], kv)?, of(qkv[2], kv)?, of(out, h)?);
    let scale = 1.0 / (q[0].len() as f32).sqrt();
    let mut worst = 0.0_f32;
    for (i, q) in q.iter().enumerate() {
        let scores: Vec<f32> =
            k[..=i].iter().map(|k| scale * q.iter().zip(k).map(|(q, k)| q * k).sum::<f32>()).collect();
        let weights = weights(&scores, block, phase);
        for (d, &found) in out[i].iter().enumerate() {
            let expected: f32 = weights.iter().zip(&v).map(|(w, v)| w * v[d]).sum();
            worst = worst.max((expected - found).abs());
        }
    }
    Ok(worst)
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let (batch, heads, kv_heads, rows, head_dim, block) = (2, 8, 2, 300, 128, 64);
    let device = Device::new_cuda(0)?;
    let cuda = Arc::new(Cuda::new(0)?);
    // As projections give them: (B, N, H, D), seen as (B, H, N, D). The op takes the strides as they are.
    let project = |n: usize| {
        Var::from_tensor(
            &Tensor::randn(0_f32, 1.0, (batch, rows, n, head_dim), &device)?.to_dtype(DType::BF16)?,
        )
    };
    let projected = [project(heads)?, project(kv_heads)?, project(kv_heads)?];
    let (q, k, v) =
        (projected[0].transpose(1, 2)?, projected[1].transpose(1, 2)?, projected[2].transpose(1, 2)?);
    // Row 0 begins with a block, row 1 in the middle of one.
    let phases = [0_u32, 20];
    let op = LandmarkAttention::new(cuda, block, Tensor::new(&phases, &device)?);
    let out = q.apply_op3(&k, &v, op)?;
    for (b, &phase) in phases.iter().enumerate() {
        let worst = difference([&q, &k, &v], &out, (b, 5, 5 * kv_heads / heads), block, phase as usize)?;
        println!("row {b} of the batch: at most {worst:.4} from the definition");
        assert!(worst < 0.02, "beyond what rounding to bf16 explains");
    }
    // Training: gradients come from the op's backward pass.
    let gradients = out.to_dtype(DType::F32)?.sqr()?.sum_all()?.backward()?;
    for (name, of) in ["queries", "keys", "values"].into_iter().zip(&projected) {
        let gradient = gradients.get(of).ok_or("no gradient")?.to_dtype(DType::F32)?;
        println!("gradient of the {name}: {:.3}", gradient.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>()?);
    }
    Ok(())
}
