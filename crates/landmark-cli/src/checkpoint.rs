//! Checkpoints as the commands open them: ours, the released program's, and Hugging Face's.
//!
//! | file | settings | weights |
//! |---|---|---|
//! | `*.safetensors` | its metadata key `args`; without it, `summary.json` beside it | under the released names; `optimizer.*` is passed over |
//! | `*.pt` | `summary.json` beside it | the dictionary `model` in it |
//! | a folder with `config.json`, `hf://owner/name`, or `builtin://passkey` | that file | one file or several, see [`landmark_formats::huggingface`] |
//!
//! Any other folder stands for the newest checkpoint in it: `ckpt.safetensors` or `ckpt.pt`, which finished runs have, else
//! the `ckpt_N` of the highest `N`.
//!
//! Every weight of the model has to be there, and every tensor that is there has to belong to the model, with the
//! exceptions listed at `is_derived`: weights and settings that were mixed up shall be an error, not a model
//! that computes something else.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use landmark_core::Backend;
use landmark_core::quantize::Bits;
use landmark_data::Tokenizer;
use landmark_formats::safetensors::SafetensorsFile;
use landmark_formats::tensor::{DType, TensorRef};
use landmark_formats::torch::{TensorMeta, TorchFile};
use landmark_model::config::{Biases, ModelConfig};
use landmark_model::engine::{self, Engine};
use landmark_model::preset::Preset;
use landmark_model::released;
use landmark_model::weights::Parameter;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::hub;
use crate::huggingface::ModelFolder;
use crate::settings::{RunArgs, Settings, summary};

/// Weights and the settings that they were trained with.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    settings: Settings,
    iteration: Option<u64>,
    weights: Weights,
}

#[derive(Debug)]
enum Weights {
    Ours(SafetensorsFile),
    /// By the names without a wrapper's prefix.
    Released(TorchFile, HashMap<String, TensorMeta>),
    HuggingFace(Box<ModelFolder>),
}

/// What becomes of the biases of queries, keys and values in a checkpoint of the released program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionBias {
    /// They are loaded.
    Keep,
    /// They are 0, as in the released *evaluation*: it passes over every name with `attn.bias` in it, meaning
    /// the causal mask, and `attn.c_attn.bias` with it.
    AsReleasedEvaluation,
}

impl Checkpoint {
    /// Opens a checkpoint file, a folder in Hugging Face's layout, a model of the hub or of the program by its
    /// name, or the newest checkpoint of another folder.
    /// Weights are not read yet.
    ///
    /// # Errors
    /// If there is none, it is damaged, or its settings cannot be found or understood.
    pub fn open(checkpoint: &Path) -> Result<Checkpoint> {
        let folder = hub::folder(checkpoint)?;
        if ModelFolder::is_one(&folder) {
            return Ok(Checkpoint::in_hugging_face_layout(ModelFolder::open(folder)?));
        }
        let path = locate(folder.path())?;
        if is_torch(&path) {
            let file = TorchFile::open(&path)?;
            let weights = file.state_dict(&["model"])?.into_iter();
            let weights = weights.map(|(name, meta)| (unwrapped(&name).to_owned(), meta)).collect();
            let iteration = file.root().get("itr").and_then(|itr| u64::try_from(itr.as_i64()?).ok());
            let settings = beside(&path)?;
            return Ok(Checkpoint { path, settings, iteration, weights: Weights::Released(file, weights) });
        }
        let file = SafetensorsFile::open(&path)?;
        let settings = match file.metadata_value("args") {
            None => beside(&path)?,
            Some(args) => {
                let args = released::parse_args(args.as_bytes()).map_err(|error| Error::Input {
                    path: path.clone(),
                    reason: format!("its metadata `args`: {error}"),
                    help: "it should be a JSON object with the settings of the run".to_owned(),
                })?;
                summary::settings_of(&args, &path)?
            }
        };
        let iteration = file.metadata_value("iteration").and_then(|text| text.parse().ok());
        Ok(Checkpoint { path, settings, iteration, weights: Weights::Ours(file) })
    }

    fn in_hugging_face_layout(folder: ModelFolder) -> Checkpoint {
        Checkpoint {
            path: folder.path().to_owned(),
            settings: folder.settings(),
            iteration: None,
            weights: Weights::HuggingFace(Box::new(folder)),
        }
    }

    /// The same weights under the settings of a preset, for a checkpoint whose files do not say them.
    ///
    /// # Errors
    /// If the preset does not fit the model, or the checkpoint says its settings itself.
    pub fn with_preset(self, preset: &Preset) -> Result<Checkpoint> {
        match self.weights {
            Weights::HuggingFace(folder) => {
                Ok(Checkpoint::in_hugging_face_layout(folder.with_preset(preset)?))
            }
            _ => Err(Error::flag(
                "--preset",
                format!("{} holds the settings that it was trained with", self.path.display()),
                "presets are for folders in Hugging Face's layout; leave --preset out",
            )),
        }
    }

    /// The folder, if this is a checkpoint in Hugging Face's layout.
    pub fn hugging_face(&self) -> Option<&ModelFolder> {
        match &self.weights {
            Weights::HuggingFace(folder) => Some(folder),
            _ => None,
        }
    }

    /// The tokenizer that comes with the weights, if one does.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        self.hugging_face().map_or(Ok(None), ModelFolder::tokenizer)
    }

    /// The file, or the folder in Hugging Face's layout.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The settings that it was trained with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Steps of training, if it says.
    pub fn iteration(&self) -> Option<u64> {
        self.iteration
    }

    /// Whether the released program wrote it.
    pub fn is_released(&self) -> bool {
        matches!(self.weights, Weights::Released(..))
    }

    /// The model of a run whose settings begin with those of this checkpoint. Hugging Face's layout says the model
    /// in full, and the settings of a run change nothing about it.
    ///
    /// # Errors
    /// Names the setting that is impossible.
    pub fn config(&self, run: &RunArgs) -> Result<ModelConfig> {
        if let Weights::HuggingFace(folder) = &self.weights {
            return Ok(folder.config().clone());
        }
        released::config(&run.to_map()).map_err(|error| Error::Input {
            path: self.path.clone(),
            reason: format!("its settings describe no model: {error}"),
            help: "they come from summary.json or the checkpoint itself, under flags of the same names"
                .to_owned(),
        })
    }

    /// Names and shapes of the weights, in no particular order.
    ///
    /// # Errors
    /// A tensor of an unknown type.
    pub fn weights(&self) -> Result<Vec<(String, Vec<usize>)>> {
        let is_weight = |name: &str| !name.starts_with("optimizer.") && !is_derived(name);
        match &self.weights {
            Weights::Ours(file) => file
                .names()
                .filter(|name| is_weight(name))
                .map(|name| Ok((name.to_owned(), file.shape(name)?)))
                .collect(),
            Weights::Released(_, weights) => Ok(weights
                .iter()
                .filter(|(name, _)| is_weight(name))
                .map(|(name, meta)| (name.clone(), meta.shape().to_vec()))
                .collect()),
            Weights::HuggingFace(folder) => folder.shapes(),
        }
    }

    /// Loads every weight of a model. True if biases were left at 0 as [`AttentionBias`] asks.
    ///
    /// # Errors
    /// A weight that is missing, has another shape, or has no place in the model.
    pub fn load<B: Backend>(&self, engine: &mut Engine<B>, bias: AttentionBias) -> Result<bool> {
        self.load_changed(engine, bias, |_, _, _| {})
    }

    /// The same, with each weight passed through `change`, by name.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_changed<B: Backend>(
        &self,
        engine: &mut Engine<B>,
        bias: AttentionBias,
        mut change: impl FnMut(&str, &mut Vec<usize>, &mut Vec<f32>),
    ) -> Result<bool> {
        self.refuse_strangers(engine.config(), &engine.model().weights.parameters)?;
        let mut dropped = false;
        engine
            .load(|name| -> Result<_> {
                let mut found = self.find(name)?;
                let is_passed_over = self.is_released() && name.contains("attn.bias");
                if let (AttentionBias::AsReleasedEvaluation, true, Some((_, values))) =
                    (bias, is_passed_over, &mut found)
                {
                    dropped |= values.iter().any(|&x| x != 0.0);
                    values.fill(0.0);
                }
                if let Some((shape, values)) = &mut found {
                    change(name, shape, values);
                }
                Ok(found)
            })
            .map_err(|error| match error {
                Error::Model(error @ (engine::Error::Missing(_) | engine::Error::Shape { .. })) => {
                    self.mixed_up(error.to_string())
                }
                other => other,
            })?;
        Ok(dropped)
    }

    /// A name for what the model computes: SHA-256 of its configuration and of the values of all weights, in
    /// hexadecimal. Files of other types with the same values have the same one.
    ///
    /// # Errors
    /// If a weight cannot be read.
    pub fn fingerprint(&self, config: &ModelConfig) -> Result<String> {
        let mut weights = self.weights()?;
        weights.sort();
        // Weight by weight in parallel: a hash alone is slower than the disk.
        let digests = weights.par_iter().map(|(name, shape)| -> Result<_> {
            let mut hash = Sha256::new_with_prefix(format!("{name} {shape:?} "));
            if let Some((_, values)) = self.find(name)? {
                for values in values.chunks(1 << 16) {
                    hash.update(bytemuck::cast_slice::<f32, u8>(values));
                }
            }
            Ok(hash.finalize())
        });
        let digests = digests.collect::<Result<Vec<_>>>()?;
        let mut whole = Sha256::new_with_prefix(format!("{config:?}"));
        digests.iter().for_each(|digest| whole.update(digest));
        Ok(hex(whole))
    }

    fn find(&self, name: &str) -> Result<Option<(Vec<usize>, Vec<f32>)>> {
        let Some(tensor) = self.tensor(name)? else { return Ok(None) };
        let values = tensor.to_f32();
        self.release(name, tensor.data());
        Ok(Some((tensor.shape().to_vec(), values)))
    }

    /// A weight as it lies in its file, if there is one of this name.
    ///
    /// # Errors
    /// If it is damaged or of an unknown type.
    pub fn tensor(&self, name: &str) -> landmark_formats::Result<Option<TensorRef<'_>>> {
        match &self.weights {
            Weights::Ours(file) => file.contains(name).then(|| file.get(name)).transpose(),
            Weights::Released(file, weights) => weights.get(name).map(|meta| file.tensor(meta)).transpose(),
            Weights::HuggingFace(folder) => {
                let weights = folder.weights();
                weights.contains(name).then(|| weights.get(name)).transpose()
            }
        }
    }

    /// The type of a weight's numbers in its file, if there is one of this name; F32 for one in blocks.
    ///
    /// # Errors
    /// A type that is unknown.
    pub fn dtype(&self, name: &str) -> landmark_formats::Result<Option<DType>> {
        match &self.weights {
            Weights::Ours(file) => file.contains(name).then(|| file.dtype(name)).transpose(),
            Weights::Released(_, weights) => Ok(weights.get(name).map(TensorMeta::dtype)),
            Weights::HuggingFace(folder) => {
                let weights = folder.weights();
                weights.contains(name).then(|| weights.dtype(name)).transpose()
            }
        }
    }

    /// How matrices are kept in the file, if in blocks.
    pub fn quantization(&self) -> Option<Bits> {
        match &self.weights {
            Weights::Ours(file) => file.quantization(),
            Weights::Released(..) => None,
            Weights::HuggingFace(folder) => folder.weights().quantization(),
        }
    }

    /// Gives up the memory that looking at some bytes of a weight took: a model is never twice in memory.
    pub fn release(&self, name: &str, part: &[u8]) {
        match &self.weights {
            Weights::Ours(file) => file.release(part),
            Weights::Released(file, _) => file.release(part),
            Weights::HuggingFace(folder) => folder.weights().release(name, part),
        }
    }

    /// Checks that these are the weights of a model: each there in its shape, and no others.
    ///
    /// # Errors
    /// As [`load`](Checkpoint::load).
    pub fn check(&self, config: &ModelConfig, parameters: &[Parameter]) -> Result<()> {
        self.refuse_strangers(config, parameters)?;
        let shapes: HashMap<String, Vec<usize>> = self.weights()?.into_iter().collect();
        for Parameter { name, shape, .. } in parameters {
            let error = match shapes.get(name) {
                None => engine::Error::Missing(name.clone()),
                Some(found) if found == shape => continue,
                Some(found) => {
                    engine::Error::Shape { name: name.clone(), found: found.clone(), expected: shape.clone() }
                }
            };
            return Err(self.mixed_up(error.to_string()));
        }
        Ok(())
    }

    /// A weight that the model has no place for is a sign of other settings.
    fn refuse_strangers(&self, config: &ModelConfig, parameters: &[Parameter]) -> Result<()> {
        let known: Vec<&str> = parameters.iter().map(|p| p.name.as_str()).collect();
        let mut strangers = self.weights()?;
        strangers.retain(|(name, _)| !known.contains(&name.as_str()));
        strangers.sort();
        match strangers.first() {
            None => Ok(()),
            Some((name, shape)) => Err(self.mixed_up(format!(
                "weight `{name}` of shape {shape:?} has no place in a model of {} layers of width {}{}",
                config.layers,
                config.width,
                if config.biases == Biases::NONE { " without biases" } else { "" }
            ))),
        }
    }

    fn mixed_up(&self, reason: String) -> Error {
        let help = match &self.weights {
            Weights::HuggingFace(_) => {
                "config.json and weights belong to different models: fetch both from one place"
            }
            _ => {
                "the settings are those of another model: give the summary.json that belongs to this checkpoint, \
                 or flags such as --n-layer and --n-embd"
            }
        };
        Error::Input { path: self.path.clone(), reason, help: help.to_owned() }
    }
}

/// A digest in hexadecimal.
pub fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Tensors that the released program saves beside the weights and that follow from the settings: causal masks,
/// frequencies of the positions, and the output matrix, which is the embedding.
fn is_derived(name: &str) -> bool {
    name.ends_with(".attn.bias") || name.contains("wpe.") || name == "lm_head.weight"
}

/// A name without what `torch.compile` and distributed training put in front of it.
fn unwrapped(name: &str) -> &str {
    let name = name.strip_prefix("module.").unwrap_or(name);
    let name = name.strip_prefix("_orig_mod.").unwrap_or(name);
    name.strip_prefix("module.").unwrap_or(name)
}

fn is_torch(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "pt" || extension == "pth" || extension == "bin")
}

/// The settings in the `summary.json` beside a checkpoint.
fn beside(checkpoint: &Path) -> Result<Settings> {
    let path = checkpoint.with_file_name(summary::FILE_NAME);
    if !path.exists() {
        return Err(Error::Input {
            path: checkpoint.to_owned(),
            reason: format!("holds no settings, and there is no {} beside it", summary::FILE_NAME),
            help: "copy the summary.json of the run next to its checkpoint".to_owned(),
        });
    }
    summary::read(&path)
}

/// The checkpoint file that a file or folder stands for.
fn locate(checkpoint: &Path) -> Result<PathBuf> {
    let kind = std::fs::metadata(checkpoint).map_err(|error| Error::io(checkpoint, error))?;
    if !kind.is_dir() {
        return Ok(checkpoint.to_owned());
    }
    for name in ["ckpt.safetensors", "ckpt.pt"] {
        let path = checkpoint.join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(checkpoint).map_err(|error| Error::io(checkpoint, error))? {
        let path = entry.map_err(|error| Error::io(checkpoint, error))?.path();
        found.extend(step_of(&path).map(|step| (step, path)));
    }
    // Of two with one step, ours: `.safetensors` sorts behind `.pt`.
    let newest = found.into_iter().max();
    newest.map(|(_, path)| path).ok_or_else(|| Error::Input {
        path: checkpoint.to_owned(),
        reason: "holds no checkpoint".to_owned(),
        help: "give a folder with ckpt.safetensors, ckpt.pt or ckpt_N of either kind, or the file itself"
            .to_owned(),
    })
}

/// `N` of a file `ckpt_N.safetensors` or `ckpt_N.pt`.
fn step_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_prefix("ckpt_")?;
    name.strip_suffix(".safetensors").or_else(|| name.strip_suffix(".pt"))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_stands_for_its_newest_checkpoint() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path();
        assert!(locate(folder).unwrap_err().to_string().contains("holds no checkpoint"));
        assert!(matches!(locate(&folder.join("none")), Err(Error::Io { .. })));
        for (name, expected) in [
            ("ckpt_9.safetensors", "ckpt_9.safetensors"),
            ("ckpt_10.pt", "ckpt_10.pt"),
            ("ckpt_10.safetensors", "ckpt_10.safetensors"),
            ("ckpt_x.safetensors", "ckpt_10.safetensors"),
            ("ckpt.pt", "ckpt.pt"),
            ("ckpt.safetensors", "ckpt.safetensors"),
        ] {
            std::fs::write(folder.join(name), "").unwrap();
            assert_eq!(locate(folder).unwrap(), folder.join(expected), "after {name}");
        }
        assert_eq!(locate(&folder.join("ckpt_9.safetensors")).unwrap(), folder.join("ckpt_9.safetensors"));
    }

    #[test]
    fn wrappers_and_derived_tensors_are_seen_through() {
        assert_eq!(unwrapped("_orig_mod.transformer.wte.weight"), "transformer.wte.weight");
        assert_eq!(unwrapped("module._orig_mod.lm_head.weight"), "lm_head.weight");
        assert!(is_derived("transformer.h.3.attn.bias") && is_derived("transformer.wpe.freqs"));
        assert!(!is_derived("transformer.h.3.attn.c_attn.bias") && !is_derived("transformer.h.0.ln_1.bias"));
    }
}
