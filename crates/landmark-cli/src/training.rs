//! A training run on disk: checkpoints, metrics, the loss curve, and going on where a killed run stopped.
//!
//! The folder of a run holds `ckpt_N.safetensors` (weights under the released names, the optimiser's state, the
//! step and all settings), `metrics.jsonl`, a TensorBoard event file, and at the end `ckpt.safetensors`,
//! `loss.svg` and `summary.json`; the last marks the run as finished. Every file that matters is written under a
//! temporary name and renamed; the two logs are cut back to the checkpoint's step when a run goes on. So a run
//! that was killed at any moment, started again, ends as if it had not been.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use landmark_core::Backend;
use landmark_formats::atomic;
use landmark_formats::curve::Curve;
use landmark_formats::events::EventWriter;
use landmark_formats::jsonl::JsonlWriter;
use landmark_formats::safetensors::{SafetensorsFile, TensorSource, write_safetensors};
use landmark_formats::tensor::DType;
use landmark_model::batch::Windows;
use landmark_model::engine::Engine;
use landmark_model::evaluate::perplexity;
use landmark_model::model::Room;
use landmark_model::tokens::Tokens;
use landmark_model::train::{Step, Trainer, Validation};
use pollster::block_on;
use serde::Serialize;
use serde_json::{Value, json};

use crate::commands::train::{Start, TrainSettings};
use crate::error::{Error, Result};
use crate::report::{Report, scaled};
use crate::settings::{RunArgs, Settings, model, summary};
use crate::stream::{self, Mapped};

/// The finished weights.
pub const FINAL: &str = "ckpt.safetensors";
/// Losses, one JSON object a line.
pub const METRICS: &str = "metrics.jsonl";
/// The loss curve.
pub const CURVE: &str = "loss.svg";

/// Settings that may change when a run goes on: they change nothing that is computed.
const FREE: [&str; 12] = [
    "config_format",
    "device",
    "dtype",
    "exp_name",
    "eval_freq",
    "eval_batches",
    "max_groups_for_softmax",
    "no_compile",
    "results_base_folder",
    "save_checkpoint_freq",
    "wandb",
    "wandb_project",
];

/// What a finished run gave.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The finished weights.
    pub checkpoint: PathBuf,
    /// The loss curve.
    pub curve: PathBuf,
    /// Steps done.
    pub iterations: u64,
    /// Loss of the last step, in nats.
    pub train_loss: f64,
    /// Loss of the last evaluation.
    pub val_loss: f64,
    /// Accuracy of the last evaluation.
    pub val_acc: f64,
    /// Its perplexity, 2.71828^loss.
    pub val_perplexity: f64,
    /// Tokens trained on in this process, each second.
    pub tokens_per_second: f64,
}

/// A line of the metrics: a step, with an evaluation after some.
#[derive(Serialize)]
struct Record {
    step: u64,
    loss: f64,
    lr: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    val_loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    val_acc: Option<f64>,
}

/// Trains to the end.
///
/// # Errors
/// Streams that are missing or too short, a checkpoint of another run, a loss that is not finite, a full disk.
pub fn run<B: Backend>(backend: B, settings: &TrainSettings, report: &Report) -> Result<Outcome> {
    let run = &settings.run;
    let data = Data::open(settings)?;
    let training = model::training(run, settings.schedule.clone());
    let per_step = training.tokens_per_step();
    std::fs::create_dir_all(&settings.folder).map_err(|e| Error::io(&settings.folder, e))?;
    let mut engine = Engine::new(
        backend,
        model::config(run)?,
        Room { compute: settings.device.compute(run.dtype), ..training.room() },
    )?;
    engine.initialise(run.seed)?;
    let count = engine.model().parameter_count();
    report.log(format!(
        "{} parameters, {} training tokens",
        scaled(count as f64),
        scaled(data.tokens as f64)
    ));
    let mut trainer = Trainer::new(engine, training);
    if let Some(path) = start_of(settings)? {
        restore(&mut trainer, &path, run)?;
        report.log(format!("going on from {} (step {})", path.display(), trainer.done()));
    }
    let mut logs = Logs::open(&settings.folder, trainer.done())?;
    let progress = report.progress("training", run.iterations, "steps");
    progress.resume_at(trainer.done());
    let (began, first) = (Instant::now(), trainer.done());
    let mut rate = 0.0;
    while trainer.done() < run.iterations {
        let step = block_on(trainer.step(&data.train)).map_err(|e| stopped(e, settings))?;
        let is_due = step.step.is_multiple_of(run.eval_freq) || step.step == run.iterations;
        let validation = match is_due {
            true => Some(block_on(trainer.validate(&data.validation, run.eval_batches as u32))?),
            false => None,
        };
        logs.write(&step, validation)?;
        if let Some(v) = validation {
            report.log(format!(
                "step {}: loss {:.4}, validation {:.4} (perplexity {:.2}, accuracy {:.4}), lr {:.2e}",
                step.step,
                step.loss,
                v.loss,
                perplexity(v.loss),
                v.accuracy,
                step.rate
            ));
        }
        let speed = ((step.step - first) * per_step) as f64 / began.elapsed().as_secs_f64();
        progress.at(step.step, &format!("loss {:.3}, {} tokens/s", step.loss, scaled(speed)));
        rate = speed;
        if run.save_checkpoint_freq.is_some_and(|every| step.step.is_multiple_of(every)) {
            logs.sync()?;
            let path = settings.folder.join(format!("ckpt_{}.safetensors", step.step));
            save(&mut trainer, &path, run)?;
            forget_old(&settings.folder, settings.keep_last)?;
        }
    }
    drop(progress);
    logs.sync()?;
    finish(&mut trainer, settings, &logs, rate)
}

/// The two streams of a run.
struct Data {
    train: Windows<Mapped>,
    validation: Windows<Mapped>,
    tokens: usize,
}

impl Data {
    fn open(settings: &TrainSettings) -> Result<Data> {
        let (run, folder) = (&settings.run, &settings.data);
        let length = model::training(run, settings.schedule.clone()).total_length;
        let end_of_text = stream::end_of_text(folder)?;
        let open = |split| {
            let laden = stream::open(folder, split, run.mem_freq, run.landmark_id)?;
            let tokens = laden.len();
            Ok::<_, Error>((Windows::new(laden, length, end_of_text)?, tokens))
        };
        let ((train, tokens), (validation, _)) = (open("train")?, open("validation")?);
        Ok(Data { train, validation, tokens })
    }
}

/// The checkpoint to begin with. A run that was cut off goes on by itself: its folder is its own, by name.
fn start_of(settings: &TrainSettings) -> Result<Option<PathBuf>> {
    match &settings.start {
        Start::At(path) => Ok(Some(path.clone())),
        Start::Fresh | Start::Newest => Ok(checkpoints(&settings.folder)?.pop().map(|(_, path)| path)),
    }
}

/// Regular checkpoints of a folder, by step.
///
/// # Errors
/// If the folder cannot be read.
pub fn checkpoints(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        let step = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix("ckpt_")?.strip_suffix(".safetensors")?.parse::<u64>().ok());
        found.extend(step.map(|step| (step, path)));
    }
    found.sort();
    Ok(found)
}

fn forget_old(folder: &Path, keep: Option<usize>) -> Result<()> {
    let found = checkpoints(folder)?;
    let old = found.len().saturating_sub(keep.unwrap_or(usize::MAX));
    for (_, path) in &found[..old] {
        std::fs::remove_file(path).map_err(|e| Error::io(path, e))?;
    }
    Ok(())
}

/// Writes everything that the run needs to go on.
fn save<B: Backend>(trainer: &mut Trainer<B>, path: &Path, run: &RunArgs) -> Result<()> {
    let args = serde_json::to_string(&run.to_map()).map_err(|e| Error::io(path, e.into()))?;
    let metadata = BTreeMap::from([
        ("args".to_owned(), args),
        ("format".to_owned(), "pt".to_owned()),
        ("iteration".to_owned(), trainer.done().to_string()),
    ]);
    let state = trainer.state();
    let engine = &*trainer.engine();
    let tensors = state.into_iter().map(|(name, shape, tensor)| {
        TensorSource::lazy(name.clone(), DType::F32, shape, move || {
            let values = block_on(engine.read::<u8>(tensor));
            let reason = |e: landmark_model::engine::Error| landmark_formats::Error::Tensor {
                name,
                reason: e.to_string(),
            };
            values.map(Cow::Owned).map_err(reason)
        })
    });
    Ok(write_safetensors(path, tensors, &metadata)?)
}

/// Loads a checkpoint of this very run.
fn restore<B: Backend>(trainer: &mut Trainer<B>, path: &Path, run: &RunArgs) -> Result<()> {
    let file = SafetensorsFile::open(path)?;
    let refuse = |reason: String| Error::Input {
        path: path.to_owned(),
        reason,
        help: "training goes on only from a checkpoint that `landmark train` wrote with the same settings; \
               give another --exp-name to start anew"
            .to_owned(),
    };
    let stored: Settings = file
        .metadata_value("args")
        .and_then(|text| serde_json::from_str(text).ok())
        .ok_or_else(|| refuse("holds no settings of a training run".into()))?;
    let step: u64 = file
        .metadata_value("iteration")
        .and_then(|text| text.parse().ok())
        .filter(|&step| step <= run.iterations)
        .ok_or_else(|| refuse(format!("is not from one of the {} steps of this run", run.iterations)))?;
    let stored = summary::settings_of(&stored, path)?;
    for (key, value) in run.to_map() {
        let before = stored.get(&key);
        if !FREE.contains(&key.as_str()) && before.is_some_and(|before| *before != value) {
            let before = before.unwrap_or(&Value::Null);
            return Err(refuse(format!("was trained with {key} {before}, not {value}")));
        }
    }
    trainer.restore(step, |name| {
        if !file.contains(name) {
            return Ok::<_, Error>(None);
        }
        let tensor = file.get(name)?;
        Ok(Some((tensor.shape().to_vec(), tensor.to_f32())))
    })
}

/// Says what to do about a loss that is no number.
fn stopped(error: landmark_model::engine::Error, settings: &TrainSettings) -> Error {
    let landmark_model::engine::Error::Loss { .. } = error else { return error.into() };
    let newest = checkpoints(&settings.folder).ok().and_then(|mut found| found.pop());
    let help = match newest {
        Some((step, path)) => format!(
            "the last good checkpoint is {} (step {step}); lower --lr, or give --grad-clip 1",
            path.display()
        ),
        None => {
            "no checkpoint was saved yet: lower --lr, give --grad-clip 1, or --save-checkpoint-freq".into()
        }
    };
    Error::Input { path: settings.folder.clone(), reason: error.to_string(), help }
}

/// Metrics and events of a run.
struct Logs {
    metrics: JsonlWriter,
    events: EventWriter,
    path: PathBuf,
}

impl Logs {
    /// Opens the logs as they were after step `done`.
    fn open(folder: &Path, done: u64) -> Result<Logs> {
        atomic::remove_leftovers(folder)?;
        let path = folder.join(METRICS);
        let events = match events_of(folder)? {
            Some(path) => EventWriter::resume(&path, done)?,
            None => EventWriter::create(&folder.join(EventWriter::file_name()))?,
        };
        Ok(Logs { metrics: JsonlWriter::resume(&path, done)?, events, path })
    }

    fn write(&mut self, step: &Step, validation: Option<Validation>) -> Result<()> {
        let (val_loss, val_acc) = (validation.map(|v| v.loss), validation.map(|v| v.accuracy));
        let record = Record { step: step.step, loss: step.loss, lr: step.rate, val_loss, val_acc };
        self.metrics.write(&record)?;
        let mut scalars = vec![("train/loss", step.loss as f32), ("lr", step.rate as f32)];
        if let Some(v) = validation {
            scalars.extend([
                ("val/loss", v.loss as f32),
                ("val/perplexity", perplexity(v.loss) as f32),
                ("val/acc", v.accuracy as f32),
            ]);
        }
        self.events.scalars(step.step, &scalars)?;
        if validation.is_some() {
            self.metrics.flush()?;
            self.events.flush()?;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        self.metrics.sync()?;
        Ok(self.events.sync()?)
    }

    /// Everything written so far, by earlier processes too.
    fn records(&self) -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(&self.path).map_err(|e| Error::io(&self.path, e))?;
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }
}

/// The event file of a folder, the first by name.
fn events_of(folder: &Path) -> Result<Option<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let names = entries.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(names.filter(|p| p.to_string_lossy().contains("events.out.tfevents")).min())
}

/// Saves the finished weights, draws the curve, and marks the run as finished.
fn finish<B: Backend>(
    trainer: &mut Trainer<B>,
    settings: &TrainSettings,
    logs: &Logs,
    tokens_per_second: f64,
) -> Result<Outcome> {
    let (run, folder) = (&settings.run, &settings.folder);
    let checkpoint = folder.join(FINAL);
    save(trainer, &checkpoint, run)?;
    let records = logs.records()?;
    let column = |name: &str, only: &str| -> Vec<(f64, f64)> {
        let scored = records.iter().filter(|r| r.get(only).is_some());
        scored.filter_map(|r| Some((r["step"].as_f64()?, r[name].as_f64()?))).collect()
    };
    let (train, validation) = (column("loss", "loss"), column("val_loss", "val_loss"));
    let curve = folder.join(CURVE);
    let title = format!("{} on {}", run_title(run), run.dataset.as_deref().unwrap_or("text"));
    Curve::of_losses(title, train.clone(), validation.clone()).write_svg(&curve)?;
    let losses: Vec<f64> = validation.iter().map(|p| p.1).collect();
    let summary = json!({
        "train_loss": column("loss", "val_loss").iter().map(|p| p.1).collect::<Vec<_>>(),
        "val_loss": losses,
        "val_pp": losses.iter().map(|&loss| perplexity(loss)).collect::<Vec<_>>(),
        "val_acc": column("val_acc", "val_loss").iter().map(|p| p.1).collect::<Vec<_>>(),
        "args": run.to_map(),
    });
    let path = folder.join(summary::FILE_NAME);
    atomic::write_atomic(&path, |writer| {
        serde_json::to_writer_pretty(writer, &summary).map_err(std::io::Error::from)
    })?;
    let nothing = |points: &[(f64, f64)]| points.last().map_or(f64::NAN, |p| p.1);
    let val_loss = nothing(&validation);
    Ok(Outcome {
        checkpoint,
        curve,
        iterations: trainer.done(),
        train_loss: nothing(&train),
        val_loss,
        val_acc: nothing(&column("val_acc", "val_loss")),
        val_perplexity: perplexity(val_loss),
        tokens_per_second,
    })
}

fn run_title(run: &RunArgs) -> String {
    format!("{} {} x {}", run.to_map()["model"].as_str().unwrap_or("model"), run.n_layer, run.n_embd)
}
