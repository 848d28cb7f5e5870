//! A model in Hugging Face's layout: its configuration, its weights and its tokenizer, brought together.
//!
//! Parsing the configuration is the model crate's, reading files is the formats crate's; here one is held against
//! the other, and the settings that the commands ask for are answered from the configuration.

use std::path::{Path, PathBuf};

use landmark_data::Tokenizer;
use landmark_formats::folder::Folder;
use landmark_formats::huggingface::{CONFIG, WeightFolder};
use landmark_model::config::{Attention, ModelConfig};
use landmark_model::huggingface::{self, Fields, LARGEST_CONFIG};
use landmark_model::preset::Preset;
use serde_json::json;

use crate::error::{Error, Result};
use crate::settings::Settings;

/// A folder in Hugging Face's layout, its weights mapped and not yet read.
#[derive(Debug)]
pub struct ModelFolder {
    files: Folder,
    fields: Fields,
    config: ModelConfig,
    weights: WeightFolder,
}

impl ModelFolder {
    /// Whether a folder looks like one: it has a `config.json`.
    pub fn is_one(files: &Folder) -> bool {
        files.has(CONFIG)
    }

    /// Opens a folder.
    ///
    /// # Errors
    /// If its configuration describes no model, or its weights are incomplete or damaged.
    pub fn open(files: Folder) -> Result<ModelFolder> {
        let (fields, config) = read_config(&files)?;
        let weights = WeightFolder::open_in(&files)?;
        Ok(ModelFolder { files, fields, config, weights })
    }

    /// The folder, or the name that stands for one.
    pub fn path(&self) -> &Path {
        self.files.path()
    }

    /// Its files.
    pub fn files(&self) -> &Folder {
        &self.files
    }

    /// All fields of `config.json`.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// The model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The weights.
    pub fn weights(&self) -> &WeightFolder {
        &self.weights
    }

    /// The same under the settings of a preset.
    ///
    /// # Errors
    /// If the preset's landmark is no token of the model.
    pub fn with_preset(self, preset: &Preset) -> Result<ModelFolder> {
        let config = preset.apply(self.config).map_err(|error| Error::Input {
            path: self.files.file(CONFIG),
            reason: format!("--preset {}: {error}", preset.name),
            help: "the preset is for the recovered weights; `landmark weight-diff recover` makes them"
                .to_owned(),
        })?;
        Ok(ModelFolder { config, ..self })
    }

    /// What the flags of a run would have to say to describe this model, as far as they can.
    pub fn settings(&self) -> Settings {
        let config = &self.config;
        let model = if config.attention == Attention::Landmark { "landmark" } else { "base" };
        let settings = json!({
            "model": model,
            "vocab_size": config.vocab_size,
            "sequence_length": config.context,
            "n_embd": config.width,
            "n_head": config.heads,
            "n_layer": config.layers,
            "landmark_id": config.landmark_id,
            "mem_freq": config.mem_freq,
        });
        settings.as_object().cloned().unwrap_or_default()
    }

    /// The tokenizer of the folder, if it has one.
    ///
    /// # Errors
    /// If it cannot be read, or has more tokens than the model.
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        let Some(tokenizer) = Tokenizer::from_files(&self.files, None)? else { return Ok(None) };
        if tokenizer.vocab_size() as usize > self.config.vocab_size {
            return Err(Error::Input {
                path: PathBuf::from(&tokenizer.info().name),
                reason: format!(
                    "has {} tokens, and the model's vocabulary has {}",
                    tokenizer.vocab_size(),
                    self.config.vocab_size
                ),
                help: "it is the tokenizer of another model: fetch the one that belongs to these weights"
                    .to_owned(),
            });
        }
        Ok(Some(tokenizer))
    }

    /// Names and shapes of the weights that belong to the model.
    ///
    /// # Errors
    /// A tensor of an unknown type.
    pub fn shapes(&self) -> Result<Vec<(String, Vec<usize>)>> {
        let names = self.weights.names().filter(|name| !self.is_derived(name));
        names.map(|name| Ok((name.to_owned(), self.weights.shape(name)?))).collect()
    }

    /// Shape and values of a weight. Its file's pages are given up at once: a model is never twice in memory.
    ///
    /// # Errors
    /// If it is damaged or of an unknown type.
    pub fn find(&self, name: &str) -> Result<Option<(Vec<usize>, Vec<f32>)>> {
        if !self.weights.contains(name) {
            return Ok(None);
        }
        let tensor = self.weights.get(name)?;
        let values = tensor.to_f32();
        self.weights.release(name, tensor.data());
        Ok(Some((tensor.shape().to_vec(), values)))
    }

    /// Tensors that follow from the configuration: the frequencies that old versions of `transformers` saved, and the
    /// copy of a tied embedding.
    pub fn is_derived(&self, name: &str) -> bool {
        name.ends_with("rotary_emb.inv_freq") || (self.config.tied && name == "lm_head.weight")
    }
}

/// The fields of a folder's `config.json`, and the model that they describe.
///
/// # Errors
/// If there is none, or it describes no model.
pub fn read_config(folder: &Folder) -> Result<(Fields, ModelConfig)> {
    let bytes = folder.read(CONFIG, LARGEST_CONFIG as u64)?;
    let parsed = huggingface::parse(&bytes).and_then(|fields| {
        let config = huggingface::config(&fields)?;
        Ok((fields, config))
    });
    parsed.map_err(|error| Error::Input {
        path: folder.file(CONFIG),
        reason: error.to_string(),
        help: "it should be the config.json of a LLaMA, as `transformers` saves it".to_owned(),
    })
}
