//! Reading a long prompt into a landmark memory, and generating with it, as `landmark generate` does both.
//!
//! Weights are random. A first, short prompt is read and continued before the clock starts, so that every program is
//! compiled by then.

use std::time::Instant;

use landmark_core::quantize::Bits;
use landmark_core::{Backend, Paging};
use landmark_model::config::{Attention, Family, Mlp, ModelConfig, Norm, Rotary, Scaling};
use landmark_model::engine::Engine;
use landmark_model::generate::{Generator, Settings, fitting_chunk};
use landmark_model::model::{CacheShape, Room};
use landmark_model::random::{Purpose, generator};
use landmark_model::reader::PredictAt;
use landmark_model::sample::Sampling;
use landmark_model::weights::Init;
use pollster::block_on;
use rand::RngExt;
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::bench::{BenchArgs, ShapeName, What};
use crate::device::{Device, memory_in_use};
use crate::error::{Error, Result};
use crate::evaluation::granularity;
use crate::machine::peak_memory;
use crate::report::{Report, scaled};

/// What was measured.
#[derive(Debug, Serialize)]
struct Outcome {
    what: &'static str,
    /// Tokens of the prompts read in each second, landmarks not counted.
    prefill_tokens_per_second: f64,
    /// Tokens generated in each second by all rows together; absent if only reading was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    decode_tokens_per_second: Option<f64>,
    /// The slowest tenth of the tokens took at least so long, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    slow_token_milliseconds: Option<f64>,
    parameters: usize,
    peak_memory_bytes: Option<u64>,
    device: String,
    /// Of a GPU, in use by all processes.
    device_memory_bytes: Option<u64>,
    settings: Value,
}

/// The model that is measured.
fn config(args: &BenchArgs) -> ModelConfig {
    let gpt = |vocab: usize, width, layers, heads| ModelConfig {
        landmark_id: 50_260.min(vocab.saturating_sub(1) as u32),
        ..ModelConfig::gpt(vocab, width, layers, heads, Attention::Landmark)
    };
    let mut config = match args.shape {
        None => gpt(50_304, 256, 4, 4),
        Some(ShapeName::Gpt) => gpt(50_304, 1024, 12, 8),
        Some(ShapeName::Llama7b) => ModelConfig {
            family: Family::Llama,
            hidden: 11_008,
            norm: Norm::Rms(1e-6),
            mlp: Mlp::SwiGlu,
            tied: false,
            rotary: Rotary { pairs: false, theta: 10_000.0, scaling: Scaling::None },
            landmark_id: 32_001,
            mem_freq: Some(63),
            context: 2048,
            ..gpt(32_002, 4096, 32, 32)
        },
    };
    if let Some(vocab) = args.vocab_size {
        (config.vocab_size, config.landmark_id) = (vocab, vocab.saturating_sub(1) as u32);
    }
    if let Some(width) = args.n_embd {
        config.width = width;
        config.hidden = if config.mlp == Mlp::SwiGlu { width * 8 / 3 } else { 4 * width };
    }
    config.layers = args.n_layer.unwrap_or(config.layers);
    if let Some(heads) = args.n_head {
        (config.heads, config.kv_heads) = (heads, heads);
    }
    config.head_dim = config.width / config.heads.max(1);
    config.mem_freq = Some(args.mem_freq.or(config.mem_freq).unwrap_or(50));
    config.context = args.sequence_length.unwrap_or(config.context);
    config
}

/// Measures reading, and generating if that is asked for.
///
/// # Errors
/// If the flags cannot be followed, or there is too little memory.
pub(super) fn run(args: &BenchArgs, device: Device, report: &Report) -> Result<()> {
    for (flag, count) in [
        ("--context", args.memory.context),
        ("--new-tokens", args.memory.new_tokens),
        ("--mem-freq", args.mem_freq.unwrap_or(1)),
        ("--batch-size", args.batch_size.unwrap_or(1)),
    ] {
        if count == 0 {
            return Err(Error::flag(flag, "must be at least 1", ""));
        }
    }
    if args.bits.is_some() && !matches!(device, Device::Wgpu(_)) {
        let help = "leave it out, or give --device wgpu";
        return Err(Error::flag("--bits", format!("{device} computes with weights as values"), help));
    }
    run_on(device.open(args.bits.map(Bits::from))?, args, device, report)
}

fn run_on<B: Backend>(backend: B, args: &BenchArgs, device: Device, report: &Report) -> Result<()> {
    let (config, flags) = (config(args), &args.memory);
    let (block, batch) = (config.mem_freq.unwrap_or(50) + 1, args.batch_size.unwrap_or(1));
    let top_k = flags.cache_topk;
    let chunk = flags.mid_length.unwrap_or_else(|| fitting_chunk(config.context, block, top_k));
    let chunk = chunk.clamp(1, flags.context);
    let blocks = (flags.context + flags.new_tokens) / (block - 1) + 1;
    let cache = CacheShape::Mem { blocks, block, top_k };
    let settings = Settings {
        sampling: Sampling::default(),
        seed: args.seed,
        chunk,
        selection: granularity(flags.cache_selection_method),
        miss_cutoff: None,
        predict: PredictAt::LastToken,
        lookups: false,
    };
    let room = Room {
        compute: device.compute_with(args.dtype, args.bits.map(Bits::from)),
        ..settings.room(&config, cache, batch)
    };
    let paging = Paging { device: flags.device_memory.map(|size| size.as_u64()), ..Paging::default() };
    let mut engine = Engine::with(backend, config.clone(), room, None, paging)?;
    randomise(&mut engine, args.seed, report)?;
    let prompts: Vec<Vec<u32>> =
        (0..batch as u64).map(|row| random_tokens(&config, args.seed, row, flags.context)).collect();
    // Every program that the measured run needs: whole chunks, the rest, single tokens, and tokens that fill a block.
    let rest = flags.context % chunk;
    let warm: Vec<&[u32]> = prompts.iter().map(|p| &p[..(chunk + rest).min(flags.context)]).collect();
    measure(&mut engine, &settings, &warm, flags.new_tokens.min(2 * block), report)?;
    let whole: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let new_tokens = if args.what == What::Decode { flags.new_tokens } else { 1 };
    let (read, mut steps) = measure(&mut engine, &settings, &whole, new_tokens, report)?;
    // The first token was there when the prompt was.
    steps.remove(0);
    let decode = (!steps.is_empty()).then(|| (batch * steps.len()) as f64 / steps.iter().sum::<f64>());
    steps.sort_by(f64::total_cmp);
    let outcome = Outcome {
        what: if args.what == What::Decode { "decode" } else { "prefill" },
        prefill_tokens_per_second: (batch * flags.context) as f64 / read,
        decode_tokens_per_second: decode,
        slow_token_milliseconds: steps.get(steps.len() * 9 / 10).map(|seconds| seconds * 1e3),
        parameters: engine.model().parameter_count(),
        peak_memory_bytes: peak_memory(),
        device: super::name(device),
        device_memory_bytes: memory_in_use(device),
        settings: json!({
            "model": config, "context": flags.context, "chunk": chunk, "block": block, "cache_topk": top_k,
            "cache_selection_method": settings.selection, "batch_size": batch, "new_tokens": new_tokens,
            "dtype": engine.model().room.compute.name(),
            "bits": args.bits.map(|bits| Bits::from(bits).count()),
            "device_memory": flags.device_memory.map(|size| size.as_u64()),
        }),
    };
    report.json(&outcome)?;
    let mut line = format!("prefill: {} tokens/s", scaled(outcome.prefill_tokens_per_second));
    if let Some(decode) = decode {
        line += &format!("; decode: {} tokens/s behind {} tokens", scaled(decode), flags.context);
    }
    report.print(line)
}

/// Seconds until the prompt is read and the first token can be chosen, and of each token.
fn measure<B: Backend>(
    engine: &mut Engine<B>,
    settings: &Settings,
    prompts: &[&[u32]],
    new_tokens: usize,
    report: &Report,
) -> Result<(f64, Vec<f64>)> {
    let mut generator = Generator::new(engine, settings.clone(), prompts.len())?;
    let total: usize = prompts.iter().map(|prompt| prompt.len()).sum();
    let progress = report.progress("reading", total as u64, "tokens");
    let began = Instant::now();
    block_on(generator.read(prompts, |read| progress.at(read as u64, "")))?;
    let read = began.elapsed().as_secs_f64();
    drop(progress);
    let progress = report.progress("generating", new_tokens as u64, "tokens");
    let mut steps = Vec::with_capacity(new_tokens);
    for index in 0..new_tokens {
        let began = Instant::now();
        block_on(generator.next())?;
        steps.push(began.elapsed().as_secs_f64());
        progress.at(index as u64 + 1, "");
    }
    Ok((read, steps))
}

/// Any ordinary tokens.
fn random_tokens(config: &ModelConfig, seed: u64, row: u64, count: usize) -> Vec<u32> {
    let mut random = generator(seed, Purpose::Corpus, row, 0);
    let landmark = config.landmark_id;
    let token = |_| match random.random_range(0..config.vocab_size as u32) {
        token if token == landmark => u32::from(landmark == 0),
        token => token,
    };
    (0..count).map(token).collect()
}

/// Weights from one pool of random numbers, over and over: drawing seven billion of them would take longer than all the
/// rest. They are written in whole rows, as quantised tensors need, from another place in the pool each time.
fn randomise<B: Backend>(engine: &mut Engine<B>, seed: u64, report: &Report) -> Result<()> {
    const POOL: usize = 1 << 20;
    /// No power of two, so that rows of a matrix differ.
    const STRIDE: usize = 7919;
    let mut random = generator(seed, Purpose::Weights, 0, 0);
    let pool: Vec<f32> = (0..2 * POOL).map(|_| random.random::<f32>() - 0.5).collect();
    let parameters = engine.model().weights.parameters.clone();
    let total: usize = parameters.iter().map(|parameter| parameter.numel()).sum();
    let (progress, mut done) = (report.progress("drawing weights", total as u64, "weights"), 0);
    for parameter in &parameters {
        // Uniform numbers of the variance of the usual normal ones.
        let factor = match parameter.init {
            Init::Normal(std) => std * 12_f32.sqrt(),
            Init::Uniform(bound) => 2.0 * bound,
            Init::Ones | Init::Zeros => 0.0,
        };
        let shift = if parameter.init == Init::Ones { 1.0 } else { 0.0 };
        let values: Vec<f32> = pool.iter().map(|x| x * factor + shift).collect();
        let columns = parameter.shape.last().copied().unwrap_or(1).max(1);
        let piece = (POOL / columns).max(1) * columns;
        for (index, first) in (0..parameter.numel()).step_by(piece).enumerate() {
            let (count, from) = (piece.min(parameter.numel() - first), index * STRIDE % POOL);
            engine.write_floats_at(parameter.tensor, first, &values[from..from + count])?;
            done += count;
            progress.at(done as u64, "");
        }
    }
    Ok(())
}
