//! One evaluation, from an opened checkpoint to numbers.
//!
//! `landmark eval` runs one, `landmark eval --table` one for each row, and the demonstration two.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use landmark_core::{Backend, DType};
use landmark_data::TokenStream;
use landmark_model::batch::{Batch, EvalRows, Sample};
use landmark_model::config::ModelConfig;
use landmark_model::engine::Engine;
use landmark_model::evaluate::{self, Averages, evaluate_batch};
use landmark_model::model::{CacheShape, Room};
use landmark_model::reader::laden_length;
use landmark_model::record::Granularity;
use landmark_model::tokens::Laden;
use pollster::block_on;
use serde::Serialize;

use crate::args::values::{LmCache, Selection};
use crate::checkpoint::{AttentionBias, Checkpoint};
use crate::commands::eval::{EvalSettings, Stream};
use crate::error::{Error, Result};
use crate::machine::peak_memory;
use crate::report::Report;
use crate::settings::{RunArgs, Settings};
use crate::stream::{self, Mapped};

/// The settings that decide an evaluation's result, by which it is told from others.
const ECHOED: [&str; 16] = [
    "model",
    "softmax_func",
    "landmark_id",
    "mem_freq",
    "batch_size",
    "eval_seq_length",
    "eval_sample_size",
    "seed",
    "mid_length",
    "use_cache",
    "lm_cache",
    "mem_cache_size",
    "mem_cache_freq",
    "cache_topk",
    "cache_selection_method",
    "rem_cutoff",
];

/// What an evaluation measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Mean loss of the rows, in nats a token.
    pub val_loss: f64,
    /// Share of tokens whose most likely successor was right. The released program prints this times the batch
    /// size: it divides by the tokens of one row.
    pub val_acc: f64,
    /// `2.71828^val_loss`.
    pub val_perplexity: f64,
    /// Mean loss of the first, second, ... chunk of the rows.
    pub chunk_losses: Vec<f64>,
    /// Tokens scored.
    pub tokens: usize,
    /// Tokens scored in each second; loading is not counted.
    pub tokens_per_second: f64,
    /// The most memory that the process held, where the system says.
    pub peak_memory_bytes: Option<u64>,
    /// The checkpoint file.
    pub checkpoint: PathBuf,
    /// The stream.
    pub data: PathBuf,
    /// The settings of the evaluation.
    pub settings: Settings,
}

/// Evaluates a checkpoint on the device of its settings.
///
/// # Errors
/// Weights that do not fit the settings, a stream that is too short or not of this vocabulary, a loss that is
/// not finite.
pub fn run(checkpoint: &Checkpoint, settings: &EvalSettings, report: &Report) -> Result<Outcome> {
    let blocks = settings.device.blocks(checkpoint.quantization());
    run_on(settings.device.open(blocks)?, checkpoint, settings, report)
}

fn run_on<B: Backend>(
    backend: B,
    checkpoint: &Checkpoint,
    settings: &EvalSettings,
    report: &Report,
) -> Result<Outcome> {
    let run = &settings.run;
    let config = checkpoint.config(run)?;
    let (stream, data) = open(&settings.stream, run)?;
    let sample = run.eval_sample_size.map(|tokens| Sample { tokens, seed: run.seed });
    let rows = EvalRows::new(stream, run.eval_seq_length, sample)?;
    let batch_size = run.batch_size.min(rows.rows());
    let room = Room { compute: settings.device.compute(run.dtype), ..room(run, batch_size) };
    let mut engine = Engine::new(backend, config.clone(), room)?;
    if checkpoint.load(&mut engine, AttentionBias::AsReleasedEvaluation)? {
        report.warn(
            "the biases of queries, keys and values are left at 0, as the released evaluation leaves them \
             (it passes over every name with \"attn.bias\" in it)",
        );
    }
    let how = evaluate::EvalSettings {
        chunk: run.mid_length,
        selection: granularity(run.cache_selection_method),
        miss_cutoff: run.rem_cutoff.map(|cutoff| cutoff as f32),
    };
    let progress = report.progress("evaluating", rows.rows() as u64, "rows");
    let (mut averages, mut done) = (Averages::default(), 0);
    let began = Instant::now();
    for batch in rows.batches(batch_size) {
        refuse_foreign(&batch, &config, &data)?;
        block_on(evaluate_batch(&mut engine, &how, &batch, &mut averages))?;
        done += batch.batch as u64;
        progress.at(done, &format!("loss {:.4}", averages.loss()));
    }
    drop(progress);
    let seconds = began.elapsed().as_secs_f64();
    if !averages.loss().is_finite() {
        let help = "training may have diverged; evaluate an earlier checkpoint".to_owned();
        let reason = format!("the loss is {}: its weights are no usable numbers", averages.loss());
        return Err(Error::Input { path: checkpoint.path().to_owned(), reason, help });
    }
    Ok(Outcome {
        val_loss: averages.loss(),
        val_acc: averages.accuracy(),
        val_perplexity: averages.perplexity(),
        chunk_losses: averages.chunk_losses(),
        tokens: averages.tokens(),
        tokens_per_second: averages.tokens() as f64 / seconds,
        peak_memory_bytes: peak_memory(),
        checkpoint: checkpoint.path().to_owned(),
        data,
        settings: echoed(run),
    })
}

/// The stream of an evaluation, and where it lies.
fn open(stream: &Stream, run: &RunArgs) -> Result<(Laden<Mapped>, PathBuf)> {
    match stream {
        Stream::File(path) => {
            let mapped = Mapped(TokenStream::open(path)?);
            let mem_freq = run.mem_freq.and_then(NonZeroUsize::new);
            Ok((Laden::new(mapped, mem_freq, run.landmark_id), path.clone()))
        }
        Stream::Folder(folder) => {
            Ok((stream::open(folder, "validation", run.mem_freq, run.landmark_id)?, folder.clone()))
        }
    }
}

/// What a batch of rows needs.
fn room(run: &RunArgs, batch: usize) -> Room {
    let chunk = run.mid_length.min(run.eval_seq_length);
    let cache = cache(run);
    let tokens = if let CacheShape::Mem { block, .. } = cache { laden_length(chunk, block) } else { chunk };
    Room { batch, tokens, logits: 0, cache, training: None, lookups: false, compute: DType::F32 }
}

/// The cache that the settings ask for.
fn cache(run: &RunArgs) -> CacheShape {
    let (size, freq) = (run.mem_cache_size.unwrap_or(0), run.mem_cache_freq.unwrap_or(0));
    match run.lm_cache {
        _ if !run.use_cache => CacheShape::None,
        LmCache::None => CacheShape::None,
        LmCache::Kv | LmCache::KvTrain => CacheShape::Kv { positions: size },
        LmCache::Mem => {
            CacheShape::Mem { blocks: size, block: freq.saturating_add(1), top_k: run.cache_topk }
        }
    }
}

/// As the model names it.
pub fn granularity(selection: Selection) -> Granularity {
    match selection {
        Selection::PerTokenAndHead => Granularity::PerTokenAndHead,
        Selection::MaxOverHeads => Granularity::MaxOverHeads,
        Selection::MaxOverTokens => Granularity::MaxOverTokens,
    }
}

/// A stream of another tokenizer is told by its name, before the model meets it.
fn refuse_foreign(batch: &Batch, config: &ModelConfig, data: &std::path::Path) -> Result<()> {
    let foreign = |&token: &u32| token as usize >= config.vocab_size;
    let target = batch.targets.iter().filter_map(|&target| u32::try_from(target).ok());
    let Some(token) = batch.tokens.iter().copied().chain(target).find(foreign) else { return Ok(()) };
    Err(Error::Input {
        path: data.to_owned(),
        reason: format!("holds token {token}, and the model's vocabulary has {}", config.vocab_size),
        help: "evaluate on a stream that was prepared with the model's own tokenizer".to_owned(),
    })
}

/// The settings that decide a result.
pub fn echoed(run: &RunArgs) -> Settings {
    let all = run.to_map();
    ECHOED.iter().filter_map(|&key| Some((key.to_owned(), all.get(key)?.clone()))).collect()
}
