//! An adapter merged into the weights of its model, weight by weight.
//!
//! Reading PEFT's files is the formats crate's, the product is [`lora::merge`]; here each tensor of the one is held
//! against the weight of the other that it changes. Nothing is merged until everything fits.
//!
//! Fine-tuning writes the `config.json` of the model that an adapter makes beside it, with its landmarks and its grown
//! vocabulary; where there is one, that is the merged model's. An adapter from elsewhere changes the vocabulary's size
//! at most, which its whole embedding shows.

use std::path::Path;

use landmark_formats::huggingface::CONFIG;
use landmark_formats::peft::Adapter;
use landmark_formats::tensor::TensorRef;
use landmark_model::config::ModelConfig;
use landmark_model::huggingface::Fields;
use landmark_model::lora::{self, Lora, Targets, Whole};
use landmark_model::weights::Parameter;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::huggingface::{ModelFolder, read_config};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// An adapter and the model that it makes of its base.
#[derive(Debug)]
pub struct Merge {
    adapter: Adapter,
    fields: Fields,
    config: ModelConfig,
    scale: f32,
}

impl Merge {
    /// Opens the adapter in `folder`, for the model in `base`.
    ///
    /// # Errors
    /// If there is none, it is damaged, or a variant that is not known here.
    pub fn open(folder: &Path, base: &ModelFolder) -> Result<Merge> {
        if !Adapter::is_one(folder) {
            return Err(Error::flag(
                "--merge-lora",
                format!("{} holds no adapter_config.json", folder.display()),
                "give a folder with an adapter in PEFT's layout",
            ));
        }
        let adapter = Adapter::open(folder)?;
        let (fields, mut config) = if folder.join(CONFIG).is_file() {
            read_config(&folder.into())?
        } else {
            (base.fields().clone(), base.config().clone())
        };
        if adapter.contains(EMBEDDING)
            && let Some(&rows) = adapter.get(EMBEDDING)?.shape().first()
        {
            config.vocab_size = rows;
        }
        let peft = adapter.config();
        let lora = Lora {
            rank: peft.rank,
            alpha: peft.alpha,
            dropout: 0.0,
            rank_stabilised: peft.rank_stabilised,
            targets: Targets::ALL,
            whole: Whole::default(),
        };
        let checked = lora.validate(&config).map_err(|error| error.to_string());
        let checked = checked.and_then(|()| config.validate().map_err(|error| error.to_string()));
        checked.map_err(|reason| misfit(&adapter, reason))?;
        Ok(Merge { adapter, fields, config, scale: lora.scale() })
    }

    /// The folder of the adapter.
    pub fn path(&self) -> &Path {
        self.adapter.path()
    }

    /// The merged model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The fields from which its `config.json` is made.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// Checks that every tensor of the adapter changes a weight that it fits, and that the other weights of the merged
    /// model are those of the base. Returns how many weights change.
    ///
    /// # Errors
    /// Names the tensor that has no place or another shape.
    pub fn check(&self, base: &Checkpoint, parameters: &[Parameter]) -> Result<usize> {
        let misfit = |reason: String| Err(misfit(&self.adapter, reason));
        let find = |name: &str| parameters.iter().find(|parameter| parameter.name == name);
        for name in self.adapter.names() {
            let shape = self.adapter.get(name)?.shape().to_vec();
            let rank = self.adapter.config().rank;
            let layer = |half: &str| {
                let layer = name.strip_suffix(".weight")?.strip_suffix(half)?;
                Some(find(&format!("{layer}weight")).map(|weight| weight.shape.clone()))
            };
            let expected = if let Some(weight) = layer("lora_A") {
                weight.filter(|shape| shape.len() == 2).map(|shape| vec![rank, shape[1]])
            } else if let Some(weight) = layer("lora_B") {
                weight.filter(|shape| shape.len() == 2).map(|shape| vec![shape[0], rank])
            } else if self.config.tied && name == HEAD {
                self.check_tied()?;
                continue;
            } else {
                find(name).map(|weight| weight.shape.clone())
            };
            match expected {
                None => return misfit(format!("its `{name}` has no place in the model")),
                Some(expected) if expected != shape => {
                    return misfit(format!(
                        "its `{name}` has shape {shape:?}, the model asks for {expected:?}"
                    ));
                }
                Some(_) => {}
            }
            for (half, other) in [("lora_A", "lora_B"), ("lora_B", "lora_A")] {
                let partner = name.replace(half, other);
                if name.contains(half) && !self.adapter.contains(&partner) {
                    return misfit(format!("it has a `{name}` and no `{partner}`"));
                }
            }
        }
        // What comes from the base has to be there as the merged model needs it; what is replaced need not.
        let kept: Vec<Parameter> =
            parameters.iter().filter(|weight| !self.adapter.contains(&weight.name)).cloned().collect();
        let kept_names: Vec<&str> = kept.iter().map(|weight| weight.name.as_str()).collect();
        let mut replaced: Vec<Parameter> = Vec::new();
        for (name, shape) in base.weights()? {
            if !kept_names.contains(&name.as_str())
                && let Some(weight) = find(&name)
            {
                replaced.push(Parameter { shape, ..weight.clone() });
            }
        }
        base.check(&self.config, &[kept, replaced].concat())?;
        Ok(parameters.iter().filter(|weight| self.changes(&weight.name)).count())
    }

    /// The two halves of a tied matrix cannot differ once they are one again.
    fn check_tied(&self) -> Result<()> {
        let is_same = self.adapter.contains(EMBEDDING) && {
            let (embedding, head) = (self.adapter.get(EMBEDDING)?, self.adapter.get(HEAD)?);
            embedding.shape() == head.shape() && embedding.to_f32() == head.to_f32()
        };
        if is_same {
            return Ok(());
        }
        let reason = "it trained an output matrix of its own, and in this model that is the embedding";
        Err(misfit(&self.adapter, reason.to_owned()))
    }

    /// Whether a weight is another after merging.
    pub fn changes(&self, name: &str) -> bool {
        self.adapter.contains(name) || self.halves(name).is_some()
    }

    /// Names of `A` and `B` for a weight.
    fn halves(&self, name: &str) -> Option<[String; 2]> {
        let layer = name.strip_suffix(".weight")?;
        let halves = ["lora_A", "lora_B"].map(|half| format!("{layer}.{half}.weight"));
        halves.iter().all(|half| self.adapter.contains(half)).then_some(halves)
    }

    /// The values of a weight after merging; `base` is what it was before, where the base has it.
    ///
    /// # Errors
    /// If a tensor is damaged. The shapes have been [checked](Merge::check).
    pub fn merged(&self, name: &str, base: Option<&TensorRef<'_>>) -> landmark_formats::Result<Vec<f32>> {
        let whole = if self.adapter.contains(name) { Some(self.adapter.get(name)?) } else { None };
        let mut values = whole.as_ref().or(base).map(TensorRef::to_f32).unwrap_or_default();
        if let Some([a, b]) = self.halves(name) {
            let (a, b) = (self.adapter.get(&a)?.to_f32(), self.adapter.get(&b)?.to_f32());
            lora::merge(&mut values, &a, &b, self.adapter.config().rank, self.scale);
        }
        Ok(values)
    }
}

fn misfit(adapter: &Adapter, reason: String) -> Error {
    let made_for = match &adapter.config().base_model {
        Some(base) => format!("it was made for {base}: give that model"),
        None => "give the model that it was trained on".to_owned(),
    };
    Error::Input { path: adapter.path().to_owned(), reason, help: made_for }
}
