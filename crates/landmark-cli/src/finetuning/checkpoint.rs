//! Checkpoints of a fine-tuning run: folders `checkpoint-N` that other programs can load, and that a run goes on from.
//!
//! | file | what it is |
//! |---|---|
//! | `config.json`, `model.safetensors`, tokenizer files | the model in Hugging Face's layout; or, of adapters, |
//! | `adapter_config.json`, `adapter_model.safetensors` | the adapters in PEFT's, beside the `config.json` of the model that they make |
//! | `optimizer.safetensors` | AdamW's moments |
//! | `trainer_state.json` | the step, the logged losses, and the settings of the run |
//!
//! A folder is filled under a temporary name and renamed, so a checkpoint is whole or not there. The result of a
//! run goes into its folder beside the checkpoints, file by file, the configuration last.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use landmark_core::{Backend, Tensor};
use landmark_formats::atomic;
use landmark_formats::huggingface::{CONFIG, ModelWriter, SHARD_BYTES, WeightFolder};
use landmark_formats::peft::{self, Adapter, PeftConfig};
use landmark_formats::safetensors::{SafetensorsFile, TensorSource, write_safetensors};
use landmark_formats::tensor::DType;
use landmark_model::huggingface;
use landmark_model::train::Trainer;
use pollster::block_on;
use serde_json::{Value, json};

use super::base::Base;
use crate::error::{Error, Result};
use crate::training::METRICS;

/// State of the optimiser.
pub const OPTIMIZER: &str = "optimizer.safetensors";
/// State of the run.
pub const STATE: &str = "trainer_state.json";

/// Files of a tokenizer that are copied as they are.
const COPIED: [&str; 2] = ["tokenizer.model", "generation_config.json"];

/// What a run is, beyond its weights.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Settings that a run goes on with only if they are the same.
    pub identity: Value,
    /// Identifies the text.
    pub text: Value,
    /// Steps of the run.
    pub steps: u64,
    /// Steps of an epoch.
    pub per_epoch: u64,
    /// Steps between two entries of the log.
    pub log_every: u64,
}

/// Checkpoints of a folder, by step.
///
/// # Errors
/// If the folder cannot be read.
pub fn all(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let step = name.strip_prefix("checkpoint-").and_then(|step| step.parse::<u64>().ok());
        // Folders of that name without our state are somebody else's.
        found.extend(step.filter(|_| path.join(STATE).is_file()).map(|step| (step, path)));
    }
    found.sort();
    Ok(found)
}

/// Deletes all but the newest `keep` checkpoints.
///
/// # Errors
/// If one cannot be deleted.
pub fn forget_old(folder: &Path, keep: Option<usize>) -> Result<()> {
    let found = all(folder)?;
    let old = found.len().saturating_sub(keep.unwrap_or(usize::MAX));
    for (step, path) in &found[..old] {
        delete(folder, *step, path)?;
    }
    Ok(())
}

/// Deletes a checkpoint: first it gets a name under which it is none, so that a half-deleted one is never found.
fn delete(folder: &Path, step: u64, path: &Path) -> Result<()> {
    let doomed = folder.join(format!(".checkpoint-{step}.tmp"));
    if doomed.exists() {
        std::fs::remove_dir_all(&doomed).map_err(|e| Error::io(&doomed, e))?;
    }
    std::fs::rename(path, &doomed).map_err(|e| Error::io(path, e))?;
    std::fs::remove_dir_all(&doomed).map_err(|e| Error::io(&doomed, e))
}

/// Saves a checkpoint of the step that the trainer has reached.
///
/// # Errors
/// If the disk is full or fails; a checkpoint that was there is then still there.
pub fn save<B: Backend>(trainer: &Trainer<B>, base: &Base, folder: &Path, progress: &Progress) -> Result<()> {
    let step = trainer.done();
    let target = folder.join(format!("checkpoint-{step}"));
    if target.exists() {
        // Left by a run that was resumed from an earlier one.
        delete(folder, step, &target)?;
    }
    let writer = ModelWriter::create(&target)?;
    let optimizer = trainer.optimizer_state();
    let tensors = optimizer.into_iter().map(|tensor| source(trainer, tensor));
    write_safetensors(&writer.path().join(OPTIMIZER), tensors, &BTreeMap::new())?;
    writer.write(STATE, state(trainer, folder, progress)?.as_bytes())?;
    fill(writer, trainer, base)
}

/// Puts the finished model into the run's folder.
///
/// # Errors
/// If the disk is full or fails.
pub fn save_result<B: Backend>(
    trainer: &Trainer<B>,
    base: &Base,
    folder: &Path,
    progress: &Progress,
) -> Result<()> {
    // Named as a leftover, so that a run killed here cleans up when it goes on.
    let staged = folder.join(".result.tmp");
    let writer = ModelWriter::create(&staged)?;
    writer.write(STATE, state(trainer, folder, progress)?.as_bytes())?;
    fill(writer, trainer, base)?;
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&staged).map_err(|e| Error::io(&staged, e))? {
        names.push(entry.map_err(|e| Error::io(&staged, e))?.file_name());
    }
    // Whoever finds a configuration finds its weights.
    names.sort_by_key(|name| [CONFIG, peft::CONFIG].iter().any(|last| name.as_os_str() == *last));
    for name in names {
        let (from, to) = (staged.join(&name), folder.join(&name));
        std::fs::rename(&from, &to).map_err(|e| Error::io(&to, e))?;
    }
    std::fs::remove_dir(&staged).map_err(|e| Error::io(&staged, e))?;
    Ok(atomic::sync_directory(folder)?)
}

/// Writes model or adapters, tokenizer and configuration, and lets the folder appear.
fn fill<B: Backend>(writer: ModelWriter, trainer: &Trainer<B>, base: &Base) -> Result<()> {
    let weights: Vec<_> = trainer.weights().into_iter().map(|tensor| source(trainer, tensor)).collect();
    match base.lora() {
        None => writer.write_weights(weights, SHARD_BYTES)?,
        Some(lora) => {
            let config = PeftConfig {
                base_model: Some(base.name().to_owned()),
                rank: lora.rank,
                alpha: lora.alpha,
                dropout: f64::from(lora.dropout),
                rank_stabilised: lora.rank_stabilised,
                targets: lora.targets.names().into_iter().map(str::to_owned).collect(),
                whole: lora.whole.names().into_iter().map(str::to_owned).collect(),
            };
            peft::write_adapter(writer.path(), &config, with_tied_head(weights, trainer, base))?;
        }
    }
    for (name, text) in &base.vocabulary().files {
        writer.write(name, text.as_bytes())?;
    }
    for name in COPIED {
        let from = base.path().join(name);
        if from.is_file() {
            writer.copy(&from, name)?;
        }
    }
    let fields = huggingface::to_fields(base.config(), Some(base.fields()));
    let mut fields = fields.map_err(|error| Error::Input {
        path: base.path().to_owned(),
        reason: error.to_string(),
        help: String::new(),
    })?;
    fields.insert("pad_token_id".into(), json!(base.vocabulary().padding));
    fields.insert("torch_dtype".into(), json!("float32"));
    Ok(writer.finish(&fields)?)
}

/// PEFT holds the two halves of a tied matrix apart once they are trained; both are this one.
fn with_tied_head<'a, B: Backend>(
    mut weights: Vec<TensorSource<'a>>,
    trainer: &'a Trainer<B>,
    base: &Base,
) -> Vec<TensorSource<'a>> {
    let is_trained = base.lora().is_some_and(|lora| lora.whole.embedding);
    if base.config().tied && is_trained {
        let embedding =
            trainer.weights().into_iter().find(|(name, ..)| name.ends_with("embed_tokens.weight"));
        weights.extend(embedding.map(|tensor| source(trainer, tensor).renamed("lm_head.weight")));
    }
    weights
}

/// A tensor read back from the backend when its turn comes.
fn source<B: Backend>(
    trainer: &Trainer<B>,
    (name, shape, tensor): (String, Vec<usize>, Tensor),
) -> TensorSource<'_> {
    TensorSource::lazy(name.clone(), DType::F32, shape, move || {
        let values = block_on(trainer.engine_ref().read::<u8>(tensor));
        let reason = |e: landmark_model::engine::Error| landmark_formats::Error::Tensor {
            name,
            reason: e.to_string(),
        };
        values.map(Cow::Owned).map_err(reason)
    })
}

/// The contents of `trainer_state.json`, as `transformers` writes it, with what is ours under a key of its own.
fn state<B: Backend>(trainer: &Trainer<B>, folder: &Path, progress: &Progress) -> Result<String> {
    let path = folder.join(METRICS);
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let is_logged = |line: &Value| {
        let step = line["step"].as_u64().unwrap_or(0);
        step.is_multiple_of(progress.log_every) || step == progress.steps
    };
    let state = json!({
        "global_step": trainer.done(),
        "max_steps": progress.steps,
        "epoch": trainer.done() as f64 / progress.per_epoch as f64,
        "log_history": lines.filter(is_logged).collect::<Vec<Value>>(),
        "landmark": { "settings": progress.identity, "text": progress.text },
    });
    Ok(format!("{state:#}\n"))
}

/// Goes on from a checkpoint of this very run.
///
/// # Errors
/// If it is damaged, or of a run with other settings or other text.
pub fn restore<B: Backend>(
    trainer: &mut Trainer<B>,
    path: &Path,
    progress: &Progress,
    is_adapter: bool,
) -> Result<()> {
    let refuse = |reason: String| {
        Error::Input {
        path: path.to_owned(),
        reason,
        help: "a run goes on only with the settings and the text that it began with; give another --output-dir to start \
               anew, or --overwrite-output-dir to delete its checkpoints"
            .to_owned(),
    }
    };
    let file = path.join(STATE);
    let bytes = landmark_formats::huggingface::read_bounded(&file, 1 << 30)?;
    let state: Value =
        serde_json::from_slice(&bytes).map_err(|error| refuse(format!("its {STATE}: {error}")))?;
    let step = state["global_step"].as_u64().filter(|&step| step <= progress.steps);
    let step =
        step.ok_or_else(|| refuse(format!("is not from one of the {} steps of this run", progress.steps)))?;
    let stored = &state["landmark"];
    let settings = progress.identity.as_object().into_iter().flatten();
    for (name, value) in settings {
        if stored["settings"][name] != *value {
            return Err(refuse(format!("was trained with {name} {}, not {value}", stored["settings"][name])));
        }
    }
    if stored["text"] != progress.text {
        return Err(refuse("was trained on another text".to_owned()));
    }
    // The learning rate depends on the length of the run.
    if state["max_steps"].as_u64() != Some(progress.steps) {
        return Err(refuse(format!("is of a run of {} steps, not {}", state["max_steps"], progress.steps)));
    }
    let optimizer = SafetensorsFile::open(&path.join(OPTIMIZER))?;
    let weights = if is_adapter {
        Saved::Adapter(Box::new(Adapter::open(path)?))
    } else {
        Saved::Model(WeightFolder::open(path)?)
    };
    trainer.restore(step, |name| -> Result<_> {
        let tensor = match &weights {
            _ if name.starts_with("optimizer.") => {
                if !optimizer.contains(name) {
                    return Ok(None);
                }
                optimizer.get(name)?
            }
            Saved::Adapter(adapter) if adapter.contains(name) => adapter.get(name)?,
            Saved::Model(folder) if folder.contains(name) => folder.get(name)?,
            _ => return Ok(None),
        };
        Ok(Some((tensor.shape().to_vec(), tensor.to_f32())))
    })
}

/// Weights of a checkpoint.
enum Saved {
    Adapter(Box<Adapter>),
    Model(WeightFolder),
}
