//! A fine-tuning run: from a model, a tokenizer and text to a model with landmarks, or to adapters.
//!
//! The trainer is the one that trains GPTs; what differs is where a run begins ([`base`]), what a batch is
//! ([`landmark_model::rows`]), and what lies on disk ([`checkpoint`]): folders `checkpoint-N` in Hugging Face's layout,
//! each whole or not there at all. `metrics.jsonl` has a line for each step and is cut back to the checkpoint when
//! a run goes on, so a run that was killed at any moment, started again, ends as if it had not been.

pub mod base;
pub mod checkpoint;

use std::path::{Path, PathBuf};
use std::time::Instant;

use landmark_core::{Backend, Paging};
use landmark_data::packed::{self, Special};
use landmark_formats::atomic;
use landmark_formats::jsonl::JsonlWriter;
use landmark_model::engine::{self, Engine};
use landmark_model::model::{CacheShape, Optimizer, Room};
use landmark_model::record::Regularisation;
use landmark_model::rows::Rows;
use landmark_model::train::{Step, TrainSettings, Trainer};
use pollster::block_on;
use serde::Serialize;
use serde_json::{Value, json};

use crate::commands::finetune::{FinetuneSettings, Save, Start};
use crate::error::{Error, Result};
use crate::report::{Report, scaled};
use crate::training::METRICS;
use base::Base;
use checkpoint::Progress;

/// What a finished run gave.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Where the result lies.
    pub output_dir: PathBuf,
    /// Steps done.
    pub steps: u64,
    /// Passes over the text.
    pub epochs: f64,
    /// Mean loss of all steps, in nats.
    pub train_loss: f64,
    /// Loss of the last step.
    pub last_loss: f64,
    /// Rows of the text.
    pub rows: usize,
    /// Numbers that were trained.
    pub trained_parameters: usize,
    /// Tokens trained on in this process, each second.
    pub tokens_per_second: f64,
}

/// A line of the metrics.
#[derive(Serialize)]
struct Record {
    step: u64,
    epoch: f64,
    loss: f64,
    learning_rate: f64,
}

/// Fine-tunes to the end.
///
/// # Errors
/// A model, tokenizer or text that cannot be used, a checkpoint of another run, a loss that is not finite, a full disk.
pub fn run<B: Backend>(backend: B, settings: &FinetuneSettings, report: &Report) -> Result<Outcome> {
    let base = Base::open(settings)?;
    for warning in base.warnings() {
        report.warn(warning);
    }
    let rows = rows(&base, settings, report)?;
    let per_epoch = rows.steps_per_epoch(settings.batch);
    let steps = settings.max_steps.unwrap_or((settings.epochs * per_epoch as f64).ceil() as u64).max(1);
    let schedule = settings.schedule(steps);
    schedule.validate()?;
    let training = training(settings, &rows, schedule);
    let folder = &settings.folder;
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    atomic::remove_leftovers(folder)?;
    let progress = Progress {
        identity: settings.identity(),
        text: fingerprint(&rows),
        steps,
        per_epoch,
        log_every: settings.log_every,
    };
    let (batch, per_step) = (training.batch, training.tokens_per_step());
    let room = Room { compute: settings.device.compute(settings.dtype), ..training.room() };
    let mut engine = Engine::with(backend, base.config().clone(), room, base.lora(), Paging::default())?;
    base.load(&mut engine)?;
    engine.initialise_adapters(settings.seed)?;
    let (all, trained_parameters) = (engine.model().parameter_count(), engine.model().trained_count());
    report.log(format!(
        "{} parameters, {} of them trained; {} rows of {} tokens, {steps} steps",
        scaled(all as f64),
        scaled(trained_parameters as f64),
        rows.count(),
        rows.laden_length()
    ));
    let mut trainer = Trainer::new(engine, training);
    if let Some(path) = start_of(settings)? {
        checkpoint::restore(&mut trainer, &path, &progress, base.lora().is_some())?;
        report.log(format!("going on from {} (step {})", path.display(), trainer.done()));
    }
    let mut metrics = JsonlWriter::resume(&folder.join(METRICS), trainer.done())?;
    let bar = report.progress("fine-tuning", steps, "steps");
    bar.resume_at(trainer.done());
    let (began, first) = (Instant::now(), trainer.done());
    let speed = |done: u64| ((done - first) * per_step) as f64 / began.elapsed().as_secs_f64().max(1e-9);
    while trainer.done() < steps {
        let step = block_on(trainer.step(&rows)).map_err(|error| stopped(error, folder))?;
        let epoch = step.step as f64 / per_epoch as f64;
        let Step { step, loss, rate } = step;
        metrics.write(&Record { step, epoch, loss, learning_rate: rate })?;
        bar.at(step, &format!("loss {loss:.3}, {} tokens/s", scaled(speed(step))));
        if step.is_multiple_of(settings.log_every) || step == steps {
            metrics.flush()?;
            report.log(format!("step {step}: loss {loss:.4}, lr {rate:.2e}, epoch {epoch:.2}"));
        }
        let is_due = match settings.save {
            Save::Never => false,
            Save::Every(every) => step.is_multiple_of(every),
            Save::Epoch => step.is_multiple_of(per_epoch),
        };
        if is_due {
            metrics.sync()?;
            checkpoint::save(&trainer, &base, folder, &progress)?;
            checkpoint::forget_old(folder, settings.keep)?;
        }
    }
    drop(bar);
    metrics.sync()?;
    let losses = losses(&folder.join(METRICS))?;
    checkpoint::save_result(&trainer, &base, folder, &progress)?;
    Ok(Outcome {
        output_dir: folder.clone(),
        steps,
        epochs: steps as f64 / per_epoch as f64,
        train_loss: losses.iter().sum::<f64>() / losses.len().max(1) as f64,
        last_loss: losses.last().copied().unwrap_or(f64::NAN),
        rows: rows.count() / batch.max(1) * batch,
        trained_parameters,
        tokens_per_second: speed(trainer.done()),
    })
}

/// The text as rows.
fn rows(base: &Base, settings: &FinetuneSettings, report: &Report) -> Result<Rows> {
    let vocabulary = base.vocabulary();
    let special =
        Special { beginning: vocabulary.beginning, end: vocabulary.end, padding: vocabulary.padding };
    let total: u64 = settings.files.iter().filter_map(|file| Some(file.metadata().ok()?.len())).sum();
    let bar = report.progress("encoding", total, "bytes");
    let packed =
        packed::pack(&settings.files, &vocabulary.tokenizer, special, settings.length, &mut |done| {
            bar.at(done.min(total), "");
        })?;
    drop(bar);
    report.log(format!("{} documents, {} tokens", packed.documents, scaled(packed.tokens.len() as f64)));
    let rows = Rows::new(
        packed.tokens,
        settings.length,
        settings.mem_freq,
        vocabulary.landmark,
        Some(vocabulary.padding),
        settings.placing,
        settings.micro_batches,
    );
    rows.map_err(|error| Error::Input {
        path: settings.files.first().cloned().unwrap_or_default(),
        reason: error.to_string(),
        help: "give more text, or a smaller --model-max-length".to_owned(),
    })
}

fn training(
    settings: &FinetuneSettings,
    rows: &Rows,
    schedule: landmark_model::schedule::Schedule,
) -> TrainSettings {
    let [beta1, beta2, eps] = settings.adam.map(|x| x as f32);
    let length = rows.laden_length();
    TrainSettings {
        schedule,
        optimizer: Optimizer::AdamW { beta1, beta2, eps },
        weight_decay: settings.weight_decay as f32,
        max_norm: settings.max_norm.map(|norm| norm as f32),
        batch: settings.batch,
        length,
        total_length: length,
        micro_batches: settings.micro_batches,
        mean: true,
        regularisation: Regularisation::default(),
        position_jump: None,
        seed: settings.seed,
        cache: CacheShape::None,
        recompute: settings.recompute,
    }
}

/// The checkpoint to begin with.
fn start_of(settings: &FinetuneSettings) -> Result<Option<PathBuf>> {
    match &settings.start {
        Start::At(path) => Ok(Some(path.clone())),
        Start::Newest => Ok(checkpoint::all(&settings.folder)?.pop().map(|(_, path)| path)),
        Start::Anew => {
            checkpoint::forget_old(&settings.folder, Some(0))?;
            Ok(None)
        }
    }
}

/// A number that other text would not give.
fn fingerprint(rows: &Rows) -> Value {
    // FNV-1a over the first and last rows and their count: what a changed text changes.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |value: u64| hash = (hash ^ value).wrapping_mul(0x0100_0000_01b3);
    add(rows.count() as u64);
    let sampled = (0..rows.count()).step_by((rows.count() / 1024).max(1)).chain([rows.count() - 1]);
    for index in sampled {
        rows.row(index).0.iter().for_each(|&token| add(u64::from(token)));
    }
    json!(format!("{hash:016x}"))
}

/// The losses in the metrics.
fn losses(path: &Path) -> Result<Vec<f64>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let loss = |line: &str| serde_json::from_str::<Value>(line).ok()?["loss"].as_f64();
    Ok(text.lines().filter_map(loss).collect())
}

/// Says what to do about a loss that is no number.
fn stopped(error: engine::Error, folder: &Path) -> Error {
    let engine::Error::Loss { .. } = error else { return error.into() };
    let newest = checkpoint::all(folder).ok().and_then(|mut found| found.pop());
    let help = match newest {
        Some((step, path)) => {
            format!("the last checkpoint is {} (step {step}); lower --learning-rate", path.display())
        }
        None => "lower --learning-rate, or check the weights of the model".to_owned(),
    };
    Error::Input { path: folder.to_owned(), reason: error.to_string(), help }
}
