//! The model as the page has it: three files, in memory.
//!
//! The weights stay in the bytes that were fetched, quantised if they are, and each matrix is unpacked only on its way to
//! a device. So a second engine (the one without a memory, or the one on the CPU after a GPU was lost) costs no download.

use landmark_core::quantize::Bits;
use landmark_data::Tokenizer;
use landmark_formats::safetensors::SafetensorsFile;
use landmark_model::config::{Attention, ModelConfig};
use landmark_model::huggingface;

use crate::error::{Error, Result};

/// A model's files, parsed.
#[derive(Debug)]
pub struct ModelFiles {
    /// The model.
    pub config: ModelConfig,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Tokens after which nothing more is generated.
    pub end: Vec<u32>,
    /// Ordinary tokens of a block.
    pub freq: usize,
    weights: SafetensorsFile,
    bytes: usize,
}

impl ModelFiles {
    /// Parses `config.json`, `tokenizer.json` and `model.safetensors`.
    ///
    /// # Errors
    /// Names the file at fault: damaged, another model's, or of a model without landmarks.
    pub fn parse(config: &[u8], tokenizer: &[u8], weights: Vec<u8>) -> Result<ModelFiles> {
        let wrong = |file| move |reason: String| Error::File { file, reason };
        let of_config = wrong("config.json");
        let fields = huggingface::parse(config).map_err(|e| of_config(e.to_string()))?;
        let config = huggingface::config(&fields).map_err(|e| of_config(e.to_string()))?;
        config.validate().map_err(|e| of_config(e.to_string()))?;
        let freq = config.mem_freq.filter(|_| config.attention != Attention::Plain);
        let freq = freq.ok_or_else(|| of_config("the model has no landmarks".into()))?;
        let tokenizer = Tokenizer::from_json(tokenizer, "tokenizer.json", None)
            .map_err(|e| wrong("tokenizer.json")(e.to_string()))?;
        if tokenizer.vocab_size() as usize > config.vocab_size {
            let reason = format!("has {} tokens, the model {}", tokenizer.vocab_size(), config.vocab_size);
            return Err(wrong("tokenizer.json")(reason));
        }
        let bytes = weights.len();
        let weights = SafetensorsFile::from_bytes("model.safetensors", weights)
            .map_err(|e| wrong("model.safetensors")(e.to_string()))?;
        let end = huggingface::token_ids(&fields, "eos_token_id");
        Ok(ModelFiles { config, tokenizer, end, freq, weights, bytes })
    }

    /// Positions of a block, its landmark included.
    pub fn block(&self) -> usize {
        self.freq + 1
    }

    /// Bits of a quantised matrix, if the file holds such.
    pub fn bits(&self) -> Option<Bits> {
        self.weights.quantization()
    }

    /// Bytes of the weights' file.
    pub fn weight_bytes(&self) -> usize {
        self.bytes
    }

    /// Shape and values of a weight.
    ///
    /// # Errors
    /// If the file holds it damaged, or in a type that is none of floats.
    pub fn find(&self, name: &str) -> Result<Option<(Vec<usize>, Vec<f32>)>> {
        if !self.weights.contains(name) {
            return Ok(None);
        }
        let tensor = self
            .weights
            .get(name)
            .map_err(|e| Error::File { file: "model.safetensors", reason: e.to_string() })?;
        Ok(Some((tensor.shape().to_vec(), tensor.to_f32())))
    }
}
