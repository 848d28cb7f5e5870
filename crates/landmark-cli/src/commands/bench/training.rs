//! Training steps, and forward passes with the loss, on random tokens.
//!
//! A training step is `--acc-steps` micro-batches, forward and backward, and the update of every weight.

use std::num::NonZeroUsize;

use landmark_core::Backend;
use landmark_model::batch::Windows;
use landmark_model::engine::Engine;
use landmark_model::model::Room;
use landmark_model::random::{Purpose, generator};
use landmark_model::reader::Reader;
use landmark_model::record::{self, Context, Granularity, Pass, Placement, Update, Want};
use landmark_model::schedule::Schedule;
use landmark_model::tokens::Laden;
use landmark_model::train::{TrainSettings, Trainer};
use pollster::block_on;
use rand::RngExt;
use serde::Serialize;

use super::measure;
use crate::args::bench::{BenchArgs, ShapeName, What};
use crate::device::{Device, memory_in_use};
use crate::error::{Error, Result};
use crate::machine::peak_memory;
use crate::report::{Report, scaled};
use crate::settings::{RunArgs, Settings, check, model};

/// The settings of the model that is measured. Reads nothing.
///
/// # Errors
/// Names the flag that cannot be followed.
pub(super) fn settings(args: &BenchArgs) -> Result<RunArgs> {
    let released = RunArgs::default();
    let (layers, heads, width, length) = match args.shape {
        None => (4, 4, 256, 256),
        Some(ShapeName::Gpt) => (12, 8, 1024, 512),
        Some(ShapeName::Llama7b) => {
            let help = "use --shape gpt, or give --n-layer, --n-head and --n-embd";
            return Err(Error::flag("--shape", "llama-7b is for prefill and decode", help));
        }
    };
    let vocab_size = args.vocab_size.unwrap_or(50_304);
    let run = RunArgs {
        model: args.model,
        n_layer: args.n_layer.unwrap_or(layers),
        n_head: args.n_head.unwrap_or(heads),
        n_embd: args.n_embd.unwrap_or(width),
        sequence_length: args.sequence_length.unwrap_or(length),
        batch_size: args.batch_size.unwrap_or(4),
        acc_steps: args.acc_steps as usize,
        vocab_size,
        mem_freq: Some(args.mem_freq.unwrap_or(50)),
        landmark_id: released.landmark_id.min(vocab_size.saturating_sub(1) as u32),
        dtype: args.dtype.unwrap_or_default(),
        seed: args.seed,
        device: args.device.device.clone(),
        ..released
    };
    check::model(&run)?;
    Ok(run)
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Outcome {
    what: &'static str,
    /// Median over the measured steps.
    tokens_per_second: f64,
    /// Of the fastest step.
    best_tokens_per_second: f64,
    steps: usize,
    tokens_per_step: usize,
    parameters: usize,
    /// Floating-point operations of a step, by the programs' own count.
    flops_per_step: u64,
    /// By the median.
    gflops_per_second: f64,
    threads: usize,
    peak_memory_bytes: Option<u64>,
    device: String,
    /// Of a GPU, in use by all processes.
    device_memory_bytes: Option<u64>,
    settings: Settings,
}

/// Measures training, or the forward pass.
///
/// # Errors
/// If the flags cannot be followed.
pub(super) fn run(args: &BenchArgs, device: Device, report: &Report) -> Result<()> {
    let run = settings(args)?;
    run_on(device.open(None)?, args, &run, device, report)
}

fn run_on<B: Backend>(
    backend: B,
    args: &BenchArgs,
    run: &RunArgs,
    device: Device,
    report: &Report,
) -> Result<()> {
    let windows = windows(run)?;
    let is_forward = args.what == What::Forward;
    let mut training = model::training(run, Schedule::Constant { rate: 1e-4 });
    if is_forward {
        training.micro_batches = 1;
    }
    let mut room = Room { compute: device.compute(run.dtype), ..training.room() };
    if is_forward {
        room.training = None;
    }
    let mut engine = Engine::new(backend, model::config(run)?, room)?;
    engine.initialise(run.seed)?;
    let training_tokens = training.tokens_per_step() as usize;
    let (parameters, flops) = (engine.model().parameter_count(), flops(&engine, is_forward, run, &training));
    // The device's memory is looked at while the model is still there.
    let (what, times, device_memory_bytes) = match is_forward {
        true => {
            let times = forward(&mut engine, &windows, run, args.steps, report)?;
            ("forward", times, memory_in_use(device))
        }
        false => {
            let mut trainer = Trainer::new(engine, training);
            let step = |_| Ok(block_on(trainer.step(&windows)).map(|_| ())?);
            ("train", measure(args.steps, report, step)?, memory_in_use(device))
        }
    };
    let tokens = training_tokens;
    let median = times[times.len() / 2];
    let outcome = Outcome {
        what,
        tokens_per_second: tokens as f64 / median,
        best_tokens_per_second: tokens as f64 / times[0],
        steps: times.len(),
        tokens_per_step: tokens,
        parameters,
        flops_per_step: flops,
        gflops_per_second: flops as f64 / median / 1e9,
        threads: rayon::current_num_threads(),
        peak_memory_bytes: peak_memory(),
        device: super::name(device),
        device_memory_bytes,
        settings: shape(run),
    };
    report.json(&outcome)?;
    report.print(format!(
        "{what}: {} tokens/s (median of {} steps; best {}), {:.0} GFLOP/s on {} threads",
        scaled(outcome.tokens_per_second),
        outcome.steps,
        scaled(outcome.best_tokens_per_second),
        outcome.gflops_per_second,
        outcome.threads
    ))
}

/// Windows of random tokens, with landmarks in them.
fn windows(run: &RunArgs) -> Result<Windows<Box<[u32]>>> {
    let mut random = generator(run.seed, Purpose::Corpus, 0, 0);
    let ordinary = run.landmark_id.max(1);
    let count = 4 * run.batch_size.saturating_mul(run.sequence_length).clamp(1 << 12, 1 << 24);
    let tokens: Box<[u32]> = (0..count).map(|_| random.random_range(0..ordinary)).collect();
    let stream = Laden::new(tokens, run.mem_freq.and_then(NonZeroUsize::new), run.landmark_id);
    Ok(Windows::new(stream, run.sequence_length, u32::MAX)?)
}

/// Operations of a step, as the recorded programs count them.
fn flops<B: Backend>(engine: &Engine<B>, is_forward: bool, run: &RunArgs, training: &TrainSettings) -> u64 {
    let placement = run.mem_freq.map_or(Placement::None, |freq| Placement::Regular { block: freq + 1 });
    let want = match is_forward {
        true => Want::Loss,
        false => Want::Gradients {
            scale: 1.0,
            regularisation: training.regularisation,
            recompute: training.recompute,
        },
    };
    let pass =
        Pass { batch: run.batch_size, tokens: run.sequence_length, placement, context: Context::None, want };
    let model = engine.model();
    let update = match is_forward {
        true => 0,
        false => {
            let update = Update { weight_decay: training.weight_decay, max_norm: training.max_norm };
            record::update(model, &update).cost().flops
        }
    };
    record::step(model, &pass).cost().flops * u64::from(training.micro_batches) + update
}

fn forward<B: Backend>(
    engine: &mut Engine<B>,
    windows: &Windows<Box<[u32]>>,
    run: &RunArgs,
    steps: Option<u64>,
    report: &Report,
) -> Result<Vec<f64>> {
    measure(steps, report, |step| {
        let batch = windows.batch(run.seed, Purpose::EvalBatch, step, 0, run.batch_size);
        let mut reader = Reader::new(engine, batch.batch, Granularity::PerTokenAndHead, None);
        if let Some(block) = windows.stream().block() {
            reader.place_regularly(block, &batch.phases);
        }
        block_on(reader.score(&batch.tokens, &batch.targets))?;
        Ok(())
    })
}

/// The settings that decide how much there is to compute.
fn shape(run: &RunArgs) -> Settings {
    let all = run.to_map();
    let keys = [
        "model",
        "n_layer",
        "n_head",
        "n_embd",
        "sequence_length",
        "batch_size",
        "acc_steps",
        "vocab_size",
        "mem_freq",
        "dtype",
    ];
    keys.iter().filter_map(|&key| Some((key.to_owned(), all.get(key)?.clone()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, parse};

    #[test]
    fn small_vocabularies_have_a_landmark_too() {
        let resolve = |flags: &str| {
            let line = format!("landmark bench forward {flags}");
            let Command::Bench(bench) = parse(line.split_whitespace()).unwrap().command else { panic!() };
            settings(&bench)
        };
        assert_eq!(resolve("").unwrap().landmark_id, 50_260);
        assert_eq!(resolve("--vocab_size 128").unwrap().landmark_id, 127);
        assert!(resolve("--vocab_size 0").is_err());
        assert!(resolve("--n_head 3").is_err());
    }
}
