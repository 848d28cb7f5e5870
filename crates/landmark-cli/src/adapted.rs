//! Adapters put on a model that is asked: PEFT's folder beside the model that it was trained on.
//!
//! The adapters stay apart, as two more products in each adapted layer: the model's weights are loaded as they are, and
//! an adapter of a few megabytes serves a model that many share. (Merged, they would be computed a little faster, and
//! cost a copy of the model.)
//!
//! A folder of `landmark finetune` also holds the configuration of the model that the two make together, with its
//! landmarks, and its tokenizer; these then count, not the model's own. A folder of PEFT's may hold neither.

use std::path::Path;

use landmark_core::Backend;
use landmark_data::Tokenizer;
use landmark_formats::huggingface::CONFIG;
use landmark_formats::peft::Adapter;
use landmark_model::config::ModelConfig;
use landmark_model::engine::{self, Engine};
use landmark_model::lora::{Lora, LoraError, Targets, Whole};
use sha2::{Digest, Sha256};

use crate::checkpoint::{AttentionBias, Checkpoint, hex};
use crate::error::{Error, Result};
use crate::finetuning::base::{grown, old_tokens};
use crate::huggingface::read_config;

/// The embedding, and the output matrix.
const TABLES: [&str; 2] = ["model.embed_tokens.weight", "lm_head.weight"];

/// An adapter and the model that it makes of another.
#[derive(Debug)]
pub struct Adapted {
    adapter: Adapter,
    lora: Lora,
    config: ModelConfig,
    /// Rows of the model's tables that mean something: new ones start as their mean.
    old: usize,
}

impl Adapted {
    /// Opens the adapter in a folder, for this model. Tensors are not read yet.
    ///
    /// # Errors
    /// If it is damaged, is a variant that is not known, or cannot be on this model.
    pub fn open(path: &Path, model: &Checkpoint, config: &ModelConfig) -> Result<Adapted> {
        let Some(folder) = model.hugging_face() else {
            let reason = "adapters are for models in Hugging Face's layout";
            return Err(Error::flag("--adapter", reason, "give the folder of such a model with --model"));
        };
        let adapter = Adapter::open(path)?;
        let refuse = |reason: String| Error::Input {
            path: path.to_owned(),
            reason,
            help: "give --model the model that the adapter was trained on".to_owned(),
        };
        let lora = lora(&adapter).map_err(|error| refuse(error.to_string()))?;
        let made = if path.join(CONFIG).is_file() { read_config(&path.into())?.1 } else { config.clone() };
        let rows = match TABLES.into_iter().find(|name| adapter.contains(name)) {
            Some(name) => adapter.get(name)?.shape().first().copied().unwrap_or(0),
            None => made.vocab_size,
        };
        let is_same = |other: &ModelConfig| {
            let of = |c: &ModelConfig| (c.layers, c.width, c.heads, c.kv_heads, c.hidden, c.tied);
            of(other) == of(config)
        };
        if !is_same(&made) || rows < config.vocab_size {
            return Err(refuse(format!("belongs to another model than {}", model.path().display())));
        }
        if made.tied && TABLES.iter().all(|name| adapter.contains(name)) {
            let [embedding, head] = TABLES.map(|name| adapter.get(name).map(|t| t.to_f32()));
            if embedding? != head? {
                let reason = "gives embedding and head other values, and this model has one matrix for both";
                return Err(refuse(reason.to_owned()));
            }
        }
        let made = ModelConfig { vocab_size: rows, ..made };
        lora.validate(&made).map_err(|error| refuse(error.to_string()))?;
        let old = match folder.tokenizer()? {
            Some(tokenizer) => old_tokens(&tokenizer, config),
            None => config.vocab_size,
        };
        Ok(Adapted { adapter, lora, config: made, old })
    }

    /// Low-rank matrices and those kept whole.
    pub fn lora(&self) -> Lora {
        self.lora
    }

    /// The model that the two make.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The tokenizer in the adapter's folder, if there is one.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        Ok(Tokenizer::from_folder(self.adapter.path(), None)?)
    }

    /// Loads the model's weights, with new rows where the vocabulary grew, and the adapters.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape, or has no place in the model.
    pub fn load<B: Backend>(&self, model: &Checkpoint, engine: &mut Engine<B>) -> Result<()> {
        let (width, rows) = (self.config.width, self.config.vocab_size);
        model.load_changed(engine, AttentionBias::Keep, |name, shape, values| {
            if TABLES.contains(&name) && *shape != [rows, width] && values.len().is_multiple_of(width) {
                *values = grown(std::mem::take(values), width, self.old, rows);
                *shape = vec![rows, width];
            }
        })?;
        let mixed_up = |reason: String| {
            Error::Input {
            path: self.adapter.path().to_owned(),
            reason,
            help: "adapter_config.json and adapter_model.safetensors are of two adapters, or the adapter is another \
                   model's"
                .to_owned(),
        }
        };
        let known: Vec<String> = engine.model().trained_parameters().map(|p| p.name.clone()).collect();
        let is_known = |name: &str| {
            known.iter().any(|known| known == name) || (self.config.tied && TABLES.contains(&name))
        };
        if let Some(name) = self.adapter.names().find(|name| !is_known(name)) {
            return Err(mixed_up(format!("its tensor `{name}` has no place in the model")));
        }
        let loaded = engine.load_trained(|name| -> Result<_> {
            // Of a tied matrix either half will do.
            let tied = TABLES.into_iter().filter(|_| self.config.tied && TABLES.contains(&name));
            let mut names = [name].into_iter().chain(tied);
            let Some(name) = names.find(|name| self.adapter.contains(name)) else { return Ok(None) };
            let tensor = self.adapter.get(name)?;
            Ok(Some((tensor.shape().to_vec(), tensor.to_f32())))
        });
        loaded.map_err(|error| match error {
            Error::Model(error @ (engine::Error::Missing(_) | engine::Error::Shape { .. })) => {
                mixed_up(error.to_string())
            }
            other => other,
        })
    }

    /// A name for what a model of this fingerprint computes with the adapter.
    ///
    /// # Errors
    /// If a tensor cannot be read.
    pub fn fingerprint(&self, model: &str) -> Result<String> {
        let mut hash = Sha256::new_with_prefix(format!("{model} {}", self.lora.scale()));
        let mut names: Vec<&str> = self.adapter.names().collect();
        names.sort_unstable();
        for name in names {
            let tensor = self.adapter.get(name)?;
            hash.update(format!("{name} {:?} ", tensor.shape()));
            hash.update(bytemuck::cast_slice::<f32, u8>(&tensor.to_f32()));
        }
        Ok(hex(hash))
    }
}

/// Refuses a folder of adapters where a model is wanted.
///
/// # Errors
/// If the folder holds adapters and no weights of a model.
pub fn refuse_as_model(path: &Path) -> Result<()> {
    let is_weights = |name: &str| name.starts_with("model") || name.starts_with("pytorch_model");
    let has_weights = || {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| entry.file_name().to_str().is_some_and(is_weights))
    };
    if !Adapter::is_one(path) || has_weights() {
        return Ok(());
    }
    let base = Adapter::open(path)?.config().base_model.clone();
    let base = base.unwrap_or_else(|| "the model that they were trained on".to_owned());
    let reason = format!("{} holds adapters, not a model", path.display());
    Err(Error::flag("--model", reason, format!("give --model {base} --adapter {}", path.display())))
}

/// What is adapted, by the tensors in the file.
fn lora(adapter: &Adapter) -> std::result::Result<Lora, LoraError> {
    let config = adapter.config();
    Ok(Lora {
        rank: config.rank,
        alpha: config.alpha,
        // For training only.
        dropout: 0.0,
        rank_stabilised: config.rank_stabilised,
        targets: Targets::named(adapter.targets())?,
        whole: Whole::named(adapter.whole())?,
    })
}
