//! `landmark demo`: what landmark attention does, from nothing, on this machine.
//!
//! Four steps that a user could type: make a corpus (or take the user's), learn a vocabulary and prepare it,
//! train, evaluate. The evaluation reads rows of the training length, then rows eight times as long: once in
//! chunks that stand alone, once with the memory.

use std::path::{Path, PathBuf};

use landmark_core::Backend;
use landmark_data::{Corpus, PrepareOptions, Tokenizer, generate_demo_corpus, learn_vocabulary};
use landmark_formats::atomic::write_atomic;
use landmark_model::batch::{EvalRows, NO_LOSS};
use landmark_model::engine::Engine;
use landmark_model::evaluate::{Averages, EvalSettings, evaluate_batch};
use landmark_model::model::{CacheShape, Room};
use landmark_model::reader::laden_length;
use landmark_model::record::Granularity;
use landmark_model::schedule::{Anneal, Schedule};
use landmark_model::table::{Format, Table};
use pollster::block_on;
use serde::Serialize;

use super::train::{Start, TrainSettings};
use crate::args::demo::DemoArgs;
use crate::args::values::{Model, PositionalEncoder, Scheduler};
use crate::checkpoint::{AttentionBias, Checkpoint};
use crate::error::{Error, Result};
use crate::report::{Report, scaled};
use crate::settings::{RunArgs, experiment, model, summary};
use crate::{stream, training};

/// Tokens of the vocabulary; ids from here up to [`VOCABULARY_PADDED`] hold the landmark.
const VOCABULARY: usize = 1000;
const VOCABULARY_PADDED: usize = 1024;
/// Bytes of the corpus made by rule.
const CORPUS_BYTES: usize = 600_000;
/// Positions of a training window, landmarks included: eight blocks.
const CONTEXT: usize = 256;
/// Ordinary tokens of a block.
const MEM_FREQ: usize = 31;
/// Rows this many times as long as the context.
const TIMES: usize = 8;
/// Blocks retrieved.
const TOP_K: usize = 4;
/// With the memory, chunk, retrieved blocks and the shared slot fill the trained context.
const CHUNK: usize = (CONTEXT / (MEM_FREQ + 1) - TOP_K - 1) * MEM_FREQ;

/// One line of the result.
#[derive(Debug, Serialize)]
struct Line {
    /// What was read, and how.
    reading: &'static str,
    /// Tokens of a row, landmarks not counted.
    tokens: usize,
    /// Keys that a query attends to at most.
    attended: usize,
    /// Mean loss in nats.
    loss: f64,
    /// 2.71828^loss.
    perplexity: f64,
    /// Share of tokens predicted right.
    accuracy: f64,
}

/// Everything that the demo found.
#[derive(Debug, Serialize)]
struct Outcome {
    checkpoint: PathBuf,
    curve: PathBuf,
    train_tokens_per_second: f64,
    evaluation: Vec<Line>,
}

/// Shows what landmark attention does, from nothing.
///
/// # Errors
/// If the flags cannot be followed, or a step fails.
pub fn run(args: &DemoArgs, report: &Report) -> Result<()> {
    args.device.device.select_for_training()?;
    if args.iterations == Some(0) {
        return Err(Error::flag("--iterations", "must be at least 1", ""));
    }
    let data = prepare(args, report)?;
    let settings = settings(args, data)?;
    let finished = settings.folder.join(summary::FILE_NAME).is_file();
    if finished {
        report.log(format!("already trained: {} (remove it to train again)", settings.folder.display()));
    }
    let speed = if finished {
        0.0
    } else {
        training::run(settings.device.open(None)?, &settings, report)?.tokens_per_second
    };
    let checkpoint = settings.folder.join(training::FINAL);
    let evaluation = evaluate(&settings, &checkpoint, report)?;
    let outcome = Outcome {
        checkpoint,
        curve: settings.folder.join(training::CURVE),
        train_tokens_per_second: speed,
        evaluation,
    };
    report.json(&outcome)?;
    report.print(render(&outcome))
}

/// Corpus, vocabulary and streams, in folders of the output folder; what is there already is kept.
fn prepare(args: &DemoArgs, report: &Report) -> Result<PathBuf> {
    let (corpus, input) = match &args.data {
        Some(folder) => (Corpus::Text, folder.clone()),
        None => {
            let folder = args.output.join("corpus");
            report.log(format!("writing a corpus by rule to {}", folder.display()));
            generate_demo_corpus(&folder, args.seed, CORPUS_BYTES)?;
            (Corpus::Pg19, folder)
        }
    };
    report.log(format!("learning a vocabulary of {VOCABULARY} tokens"));
    let json = learn_vocabulary(&input, VOCABULARY, false)?;
    std::fs::create_dir_all(&args.output).map_err(|e| Error::io(&args.output, e))?;
    let path = args.output.join("tokenizer.json");
    write_atomic(&path, |writer| std::io::Write::write_all(writer, json.as_bytes()))?;
    let tokenizer = Tokenizer::from_file(&path, None)?;
    let output = args.output.join("data");
    let mut options = PrepareOptions::new(corpus, input, &output);
    (options.force, options.validation_fraction) = (true, 0.1);
    let done = landmark_data::prepare(&options, &tokenizer, &mut |_| {})?;
    let tokens: u64 = done.info.splits.values().map(|split| split.tokens).sum();
    report.log(format!("{} tokens in {}", scaled(tokens as f64), output.display()));
    Ok(output)
}

/// The run of the demo, as flags of `landmark train` would describe it.
fn settings(args: &DemoArgs, data: PathBuf) -> Result<TrainSettings> {
    let iterations = args.iterations.unwrap_or(ITERATIONS);
    let mut run = RunArgs {
        batch_size: 8,
        acc_steps: 1,
        seed: args.seed,
        iterations,
        lr: 3e-3,
        warmup_percent: 0.05,
        eval_freq: (iterations / 5).max(1),
        eval_batches: 8,
        save_checkpoint_freq: Some((iterations / 10).max(1)),
        dataset: Some("demo".into()),
        vocab_size: VOCABULARY_PADDED,
        mem_freq: Some(MEM_FREQ),
        model: Model::Landmark,
        n_head: 4,
        n_layer: 4,
        n_embd: 128,
        sequence_length: CONTEXT,
        positional_encoder: PositionalEncoder::Rotary,
        scheduler: Scheduler::Cos,
        landmark_id: VOCABULARY as u32,
        ..RunArgs::default()
    };
    run.exp_name = Some(experiment::name(&run));
    let schedule = Schedule::released(run.lr, run.iterations, run.warmup_percent, Anneal::Cos);
    schedule.validate()?;
    Ok(TrainSettings {
        folder: args.output.join(format!("run-{iterations}-seed{}", args.seed)),
        run,
        data,
        schedule,
        device: args.device.device.select_for_training()?,
        start: Start::Newest,
        keep_last: Some(1),
        remarks: Vec::new(),
    })
}

/// Steps that take a few minutes on two cores.
const ITERATIONS: u64 = 700;

fn evaluate(settings: &TrainSettings, checkpoint: &Path, report: &Report) -> Result<Vec<Line>> {
    let blocks = CONTEXT / (MEM_FREQ + 1);
    let window = blocks * MEM_FREQ;
    let memory = CacheShape::Mem { blocks: TIMES * blocks, block: MEM_FREQ + 1, top_k: TOP_K };
    let readings = [
        ("the training length", window, window, true, CacheShape::None),
        ("8x, in chunks that stand alone", TIMES * window, window, true, CacheShape::None),
        ("8x, with landmark memory", TIMES * window, CHUNK, false, memory),
    ];
    let mut lines = Vec::new();
    for (reading, tokens, chunk, laden, cache) in readings {
        let averages = read(settings, checkpoint, (tokens, chunk, laden, cache), reading, report)?;
        let attended = match cache {
            CacheShape::Mem { block, top_k, .. } => CHUNK + CHUNK / MEM_FREQ + top_k * block,
            _ => CONTEXT,
        };
        lines.push(Line {
            reading,
            tokens,
            attended,
            loss: averages.loss(),
            perplexity: averages.perplexity(),
            accuracy: averages.accuracy(),
        });
    }
    Ok(lines)
}

/// A way of reading: tokens of a row and of a chunk, whether landmarks are part of the rows, and the cache.
type Reading = (usize, usize, bool, CacheShape);

/// Reads the validation stream in rows; without a memory, landmarks are part of the rows.
fn read(
    settings: &TrainSettings,
    checkpoint: &Path,
    reading: Reading,
    what: &str,
    report: &Report,
) -> Result<Averages> {
    read_on(settings.device.open(None)?, settings, checkpoint, reading, what, report)
}

fn read_on<B: Backend>(
    backend: B,
    settings: &TrainSettings,
    checkpoint: &Path,
    (tokens, chunk, laden, cache): Reading,
    what: &str,
    report: &Report,
) -> Result<Averages> {
    const BATCH: usize = 4;
    let run = &settings.run;
    let (mem_freq, length, chunk) = match laden {
        true => (run.mem_freq, tokens / MEM_FREQ * (MEM_FREQ + 1), chunk / MEM_FREQ * (MEM_FREQ + 1)),
        false => (None, tokens, chunk),
    };
    let stream = stream::open(&settings.data, "validation", mem_freq, run.landmark_id)?;
    let rows = EvalRows::new(stream, length, None)?;
    let room = Room {
        batch: BATCH,
        tokens: laden_length(chunk, MEM_FREQ + 1),
        logits: 0,
        cache,
        training: None,
        lookups: false,
        compute: settings.device.compute(run.dtype),
    };
    let mut engine = Engine::new(backend, model::config(run)?, room)?;
    Checkpoint::open(checkpoint)?.load(&mut engine, AttentionBias::Keep)?;
    let reading = EvalSettings { chunk, selection: Granularity::PerTokenAndHead, miss_cutoff: None };
    let mut averages = Averages::default();
    let batches = rows.batches(BATCH);
    let progress = report.progress(what, batches.len() as u64, "batches");
    for (index, mut batch) in batches.enumerate() {
        if laden {
            score_as_trained(&mut batch.targets, &batch.tokens, run.landmark_id);
        }
        block_on(evaluate_batch(&mut engine, &reading, &batch, &mut averages))?;
        progress.at(index as u64 + 1, "");
    }
    Ok(averages)
}

/// Targets of a stream with landmarks, as in training: nothing is predicted at a landmark, and before one the
/// token behind it is.
fn score_as_trained(targets: &mut [i32], tokens: &[u32], landmark: u32) {
    for t in 0..targets.len() {
        if tokens[t] == landmark {
            targets[t] = NO_LOSS;
        } else if i64::from(targets[t]) == i64::from(landmark) {
            targets[t] = targets.get(t + 1).copied().unwrap_or(NO_LOSS);
        }
    }
}

fn render(outcome: &Outcome) -> String {
    let mut table = Table::new(["read", "tokens", "attended", "perplexity", "accuracy"]);
    for line in &outcome.evaluation {
        table.row([
            line.reading.to_owned(),
            line.tokens.to_string(),
            line.attended.to_string(),
            format!("{:.3}", line.perplexity),
            format!("{:.1} %", line.accuracy * 100.0),
        ]);
    }
    format!(
        "{}\ncheckpoint {}\nloss curve {}",
        table.render(Format::Text),
        outcome.checkpoint.display(),
        outcome.curve.display()
    )
}
