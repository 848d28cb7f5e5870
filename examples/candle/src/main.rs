//! Landmark attention in a model written with candle: a custom op around `Cuda::fused_landmark_attention`.
//!
//! `cargo run --release` in this folder, with a GPU from sm_80 on and CUDA's toolkit: candle compiles its own kernels with nvcc and
//! links with cuBLAS, cuRAND and the driver (where they are not in the usual places, `CUDA_PATH` and `PATH` say so, and `CUDA_COMPUTE_CAP=90`
//! builds for another GPU than that at hand); ours need NVRTC alone, and the first run compiles them, for up to a minute. `op.rs` is what a
//! model takes along. A model changes in three places:
//!
//! 1. **Tokens.** A landmark goes in after every `block - 1` tokens; the vocabulary has one entry more ([`with_landmarks`]).
//! 2. **Attention.** Behind the projections and the rotation of queries and keys, with the model's `q`, `k` and `v` as they are:
//!    ```text
//!    - let scores = (q.matmul(&k.t()?)? / (head_dim as f64).sqrt())?.broadcast_add(&mask)?;
//!    - let out = softmax_last_dim(&scores)?.matmul(&v)?;
//!    + let out = landmark_attention(&cuda, [&q, &k, &v], block, &phases)?;
//!    ```
//!    `cuda` is `Cuda::new(0)?`, made once; `phases` is zeros where rows begin with a block. Keys and values of grouped heads are not repeated.
//! 3. **Loss.** The target of a token is the next token that is no landmark, and a landmark has none ([`with_landmarks`] again).
//!
//! Which sizes are served, and how, `landmark_cuda::fused` says: every block length, head width and GPU, in bf16, f16 and f32.
//!
//! What it does here: it holds the op, forward and backward, against the definition in candle's own ops in f64, by the rule that it may
//! err twice as much as those ops do in the op's own type, says the time of both, and exits with 1 if anything is off.

mod op;
mod plain;

use candle_core::{DType, Device, Result, Tensor, Var};
use landmark_cuda::Cuda;
use op::landmark_attention;
use plain::Masks;
use std::process::ExitCode;
use std::time::Instant;

/// A text's tokens with a landmark at the end of every block, and each input's target, if it has one.
fn with_landmarks(text: &[u32], block: usize, landmark: u32) -> (Vec<u32>, Vec<Option<u32>>) {
    let (mut inputs, mut targets) = (Vec::new(), Vec::new());
    for (i, &token) in text.iter().enumerate() {
        inputs.push(token);
        targets.push(text.get(i + 1).copied());
        if inputs.len() % block == block - 1 {
            inputs.push(landmark);
            targets.push(None);
        }
    }
    (inputs, targets)
}

/// Extents of a check; row 0 of two begins with a block, row 1 within one.
#[derive(Clone, Copy)]
struct Case {
    queries: usize,
    keys: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    block: usize,
    dtype: DType,
}

const BATCH: usize = 2;

/// Queries, keys, values, or the gradient of a result, as projections give them: `(B, N, H, D)`, exact in `dtype`.
fn random(rows: usize, heads: usize, head_dim: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    Tensor::randn(0_f32, 1.0, (BATCH, rows, heads, head_dim), device)?.to_dtype(dtype)
}

/// Result and gradients of an attention whose operands are in `dtype`, all in f64.
fn results(
    sides: &[Tensor; 3],
    dout: &Tensor,
    dtype: DType,
    attention: impl Fn([&Tensor; 3]) -> Result<Tensor>,
) -> Result<Vec<(&'static str, Tensor)>> {
    let [q, k, v] = sides.each_ref().map(|x| Var::from_tensor(&x.to_dtype(dtype)?));
    let (q, k, v) = (q?, k?, v?);
    // Seen as (B, H, N, D). The op takes the strides as they are.
    let out = attention([&q.transpose(1, 2)?, &k.transpose(1, 2)?, &v.transpose(1, 2)?])?;
    let loss = (out.to_dtype(DType::F64)? * dout.transpose(1, 2)?.to_dtype(DType::F64)?)?.sum_all()?;
    let gradients = loss.backward()?;
    let mut all = vec![("out", out.to_dtype(DType::F64)?)];
    for (name, of) in [("dq", &q), ("dk", &k), ("dv", &v)] {
        let gradient = gradients.get(of).ok_or_else(|| candle_core::Error::Msg(format!("no {name}")))?;
        all.push((name, gradient.to_dtype(DType::F64)?));
    }
    Ok(all)
}

fn largest(x: &Tensor) -> Result<f64> {
    x.abs()?.flatten_all()?.max(0)?.to_scalar()
}

/// Whether the op errs at most twice as much as candle's ops do in the same type (and a few roundings of the largest value, for what
/// these get right by luck).
fn check(case: Case, cuda: &Cuda, device: &Device) -> Result<bool> {
    let Case { queries, keys, heads, kv_heads, head_dim, block, dtype } = case;
    println!(
        "{queries} queries of {keys} keys, {heads} heads over {kv_heads} of {head_dim} columns, blocks of {block}, {dtype:?}"
    );
    let phases = [0, block as u32 / 3];
    let masks = Masks::new(queries, keys, block, &phases, device)?;
    let phases = Tensor::new(&phases, device)?;
    let side = |rows, heads| random(rows, heads, head_dim, dtype, device);
    let sides = [side(queries, heads)?, side(keys, kv_heads)?, side(keys, kv_heads)?];
    let dout = side(queries, heads)?;
    let exact = results(&sides, &dout, DType::F64, |qkv| plain::landmark_attention(qkv, &masks))?;
    let naive = results(&sides, &dout, dtype, |qkv| plain::landmark_attention(qkv, &masks))?;
    let found = results(&sides, &dout, dtype, |qkv| landmark_attention(cuda, qkv, block, &phases))?;
    let rounding = match dtype {
        DType::BF16 => 2.0_f64.powi(-9),
        DType::F16 => 2.0_f64.powi(-12),
        _ => 2.0_f64.powi(-24),
    };
    let mut is_well = true;
    for (i, (name, exact)) in exact.iter().enumerate() {
        let error = largest(&(&found[i].1 - exact)?)?;
        let of_naive = largest(&(&naive[i].1 - exact)?)?;
        let allowed = 2.0 * of_naive + 2.0 * rounding * largest(exact)?;
        let fits = error <= allowed;
        let verdict = if fits { "" } else { "  OFF" };
        println!(
            "  {name:3}  error {error:.2e}, of candle's ops {of_naive:.2e}, allowed {allowed:.2e}, largest value {:.2e}{verdict}",
            largest(exact)?
        );
        is_well &= fits;
    }
    Ok(is_well)
}

/// Milliseconds of a call, after two that are not counted.
fn time(device: &Device, call: impl Fn() -> Result<()>) -> Result<f64> {
    const RUNS: u32 = 10;
    for _ in 0..2 {
        call()?;
    }
    device.synchronize()?;
    let began = Instant::now();
    for _ in 0..RUNS {
        call()?;
    }
    device.synchronize()?;
    Ok(began.elapsed().as_secs_f64() * 1e3 / f64::from(RUNS))
}

/// The op with blocks of 64 beside causal attention without landmarks, in candle's ops.
fn clock(cuda: &Cuda, device: &Device) -> Result<()> {
    let (rows, heads, head_dim) = (2048, 16, 128);
    let side = || random(rows, heads, head_dim, DType::BF16, device);
    let [q, k, v] = [Var::from_tensor(&side()?)?, Var::from_tensor(&side()?)?, Var::from_tensor(&side()?)?];
    let qkv = [&q.transpose(1, 2)?, &k.transpose(1, 2)?, &v.transpose(1, 2)?];
    let phases = Tensor::zeros(BATCH, DType::U32, device)?;
    let see = |x: usize| if x % rows <= x / rows { 0.0 } else { f32::NEG_INFINITY };
    let mask: Vec<f32> = (0..rows * rows).map(see).collect();
    let mask = Tensor::from_vec(mask, (rows, rows), device)?.to_dtype(DType::BF16)?;
    println!("{BATCH} rows of {rows}, {heads} heads of {head_dim}, BF16, milliseconds:");
    let fused = || landmark_attention(cuda, qkv, 64, &phases);
    let plain = || plain::causal_attention(qkv, &mask);
    type Call<'a> = &'a dyn Fn() -> Result<Tensor>;
    for (name, call) in
        [("landmark attention", &fused as Call<'_>), ("causal attention in candle's ops", &plain)]
    {
        let forward = time(device, || call().map(drop))?;
        let both = time(device, || call()?.sum_all()?.backward().map(drop))?;
        println!("  {name}: forward {forward:.3}, with the gradients {both:.3}");
    }
    Ok(())
}

fn main() -> std::result::Result<ExitCode, Box<dyn std::error::Error>> {
    let (inputs, targets) = with_landmarks(&[10, 11, 12, 13, 14], 4, 99);
    println!("tokens {inputs:?}, targets {targets:?}");
    let device = Device::new_cuda(0)?;
    let cuda = Cuda::new(0)?;
    println!("{}", cuda.info().name);
    let usual =
        Case { queries: 300, keys: 300, heads: 8, kv_heads: 2, head_dim: 128, block: 64, dtype: DType::BF16 };
    let mut is_well = true;
    for case in [
        usual,
        Case { queries: 70, keys: 131, head_dim: 64, block: 51, dtype: DType::F16, ..usual },
        Case { block: 3, head_dim: 80, ..usual },
        Case { block: 200, head_dim: 256, ..usual },
        Case { dtype: DType::F32, ..usual },
    ] {
        is_well &= check(case, &cuda, &device)?;
    }
    if !is_well {
        eprintln!("the op is off");
        return Ok(ExitCode::FAILURE);
    }
    // The clock is for a look: `--no-clock` leaves it out, as under a tool that makes everything slow.
    if !std::env::args().any(|arg| arg == "--no-clock") {
        clock(&cuda, &device)?;
    }
    Ok(ExitCode::SUCCESS)
}
