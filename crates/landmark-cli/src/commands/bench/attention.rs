//! Landmark attention alone: one op forward, one backward, over random queries, keys and values.

use landmark_core::ops::{
    AttentionGradients, Blocks, Heads, LandmarkAttention, LandmarkAttentionBackward, Operation,
};
use landmark_core::{Backend, Cols, DType, Layout, Recorder, Tensor};
use landmark_formats::tensor::float_bytes;
use landmark_model::random::{Purpose, generator};
use pollster::block_on;
use rand::RngExt;
use serde::Serialize;

use crate::args::bench::BenchArgs;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::opened::stored;
use crate::report::Report;

/// Runs between two looks at the clock: the look waits for the device.
const RUNS: usize = 10;

/// What was measured.
#[derive(Debug, Serialize)]
struct Outcome {
    what: &'static str,
    /// Medians, in milliseconds.
    forward_milliseconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    backward_milliseconds: Option<f64>,
    /// By the op's own count: a causal half of the pairs.
    forward_tflops_per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    backward_tflops_per_second: Option<f64>,
    batch: usize,
    heads: usize,
    kv_heads: usize,
    tokens: usize,
    head_dim: usize,
    block: usize,
    dtype: &'static str,
    device: String,
}

/// Measures attention.
///
/// # Errors
/// If the flags cannot be followed.
pub(super) fn run(args: &BenchArgs, device: Device, report: &Report) -> Result<()> {
    let heads = args.n_head.unwrap_or(4);
    let shape = Heads {
        batch: args.batch_size.unwrap_or(4),
        queries: args.sequence_length.unwrap_or(256),
        keys: args.sequence_length.unwrap_or(256),
        heads,
        kv_heads: args.attention.n_kv_head.unwrap_or(heads),
        head_dim: args.attention.head_dim,
    };
    let is_empty = [shape.batch, shape.queries, shape.heads, shape.head_dim].contains(&0);
    if is_empty || shape.kv_heads == 0 || !shape.heads.is_multiple_of(shape.kv_heads) {
        let help = "give extents of at least 1, and key heads that divide the query heads";
        return Err(Error::flag("--n-kv-head", "these extents are of no attention", help));
    }
    if args.attention.block == 1 {
        return Err(Error::flag("--block", "a block of 1 holds no ordinary token", "give 0, or 2 and more"));
    }
    let dtype = device.compute(args.dtype.unwrap_or_default());
    run_on(&device.open(None)?, args, shape, dtype, device, report)
}

/// The tensors, and the two ops.
fn record(shape: Heads, block: usize, dtype: DType) -> (Layout, [Tensor; 3], LandmarkAttentionBackward) {
    let mut layout = Layout::new();
    let Heads { batch, queries, heads, kv_heads, head_dim, .. } = shape;
    let (q_width, kv_width) = (heads * head_dim, kv_heads * head_dim);
    // As a model has them: columns of one tensor.
    let fused = [batch, queries, q_width + 2 * kv_width];
    let (qkv, gradient) = (layout.add("qkv", dtype, fused), layout.add("d.qkv", dtype, fused));
    let out = layout.add("out", dtype, [batch, queries, q_width]);
    let dout = layout.add("d.out", dtype, [batch, queries, q_width]);
    let lse = layout.add("lse", DType::F32, [batch, heads, queries]);
    let phases = layout.add("phases", DType::U32, [batch]);
    let cols = |tensor| {
        let of = |start, width| Cols { tensor, start, width };
        (of(0, q_width), of(q_width, kv_width), of(q_width + kv_width, kv_width))
    };
    let ((q, k, v), (dq, dk, dv)) = (cols(qkv), cols(gradient));
    let blocks = if block == 0 { Blocks::None } else { Blocks::Regular { block, phases } };
    let (miss, first_key, randomness) = (None, None, None);
    let forward = LandmarkAttention { heads: shape, q, k, v, blocks, miss, first_key, randomness, out, lse };
    let backward = LandmarkAttentionBackward { forward, dout, gradients: AttentionGradients { dq, dk, dv } };
    (layout, [qkv, dout, lse], backward)
}

fn run_on<B: Backend>(
    backend: &B,
    args: &BenchArgs,
    shape: Heads,
    dtype: DType,
    device: Device,
    report: &Report,
) -> Result<()> {
    let block = args.attention.block;
    let (layout, [qkv, dout, lse], op) = record(shape, block, dtype);
    let failed = |error| Error::from(landmark_model::engine::Error::from(error));
    let mut arena = backend.allocate(&layout).map_err(failed)?;
    let mut random = generator(args.seed, Purpose::Weights, 0, 0);
    for tensor in [qkv, dout] {
        let count = layout.info(tensor).shape.numel();
        let values: Vec<f32> = (0..count).map(|_| random.random::<f32>() * 4.0 - 2.0).collect();
        let bytes = float_bytes(&values, stored(dtype))?;
        backend.write(&mut arena, tensor, &bytes).map_err(failed)?;
    }
    let mut measure = |name: &str, op: landmark_core::ops::Op| -> Result<(f64, u64)> {
        let mut recorder = Recorder::new(name, &layout);
        recorder.push(op);
        let program = recorder.finish();
        let mut plan = backend.compile(&program, &arena).map_err(failed)?;
        let times = super::measure(args.steps, report, |_| {
            for _ in 0..RUNS {
                backend.run(&mut plan, &mut arena).map_err(failed)?;
            }
            // The only way to know that it is done.
            block_on(backend.read_at(&arena, lse, 0..1)).map_err(failed)?;
            Ok(())
        })?;
        Ok((times[times.len() / 2] / RUNS as f64, program.ops()[0].cost(&program).flops))
    };
    let (forward, forward_flops) = measure("forward", op.forward.clone().into())?;
    // wgpu runs models, and has no gradients.
    let backward = match device {
        Device::Wgpu(_) => None,
        _ => Some(measure("backward", op.into())?),
    };
    let rate = |(seconds, flops): (f64, u64)| flops as f64 / seconds / 1e12;
    let outcome = Outcome {
        what: "attention",
        forward_milliseconds: forward * 1e3,
        backward_milliseconds: backward.map(|(seconds, _)| seconds * 1e3),
        forward_tflops_per_second: rate((forward, forward_flops)),
        backward_tflops_per_second: backward.map(rate),
        batch: shape.batch,
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        tokens: shape.queries,
        head_dim: shape.head_dim,
        block,
        dtype: dtype.name(),
        device: super::name(device),
    };
    report.json(&outcome)?;
    let shown =
        |name: &str, milliseconds: f64, rate: f64| format!("{name} {milliseconds:.3} ms ({rate:.2} TFLOP/s)");
    let mut line = shown("forward", outcome.forward_milliseconds, outcome.forward_tflops_per_second);
    if let (Some(milliseconds), Some(rate)) =
        (outcome.backward_milliseconds, outcome.backward_tflops_per_second)
    {
        line += &format!(", {}", shown("backward", milliseconds, rate));
    }
    report.print(line)
}
