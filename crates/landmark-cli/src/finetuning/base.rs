//! Where fine-tuning begins: the model, its tokenizer, and the two tokens that are added to both.
//!
//! `[PAD]` is added where the tokenizer has no padding token, `<landmark>` where it has none, behind the last token. Their
//! rows of the embedding and of the output matrix start as the mean of the old rows. Rows that a model has beyond its
//! tokenizer's last token (some are padded to a round number) are used before new ones are made.

use std::path::{Path, PathBuf};

use landmark_core::Backend;
use landmark_data::Tokenizer;
use landmark_data::tokenizer_folder::{self, GrownTokenizer, LANDMARK, PAD};
use landmark_formats::folder::Folder;
use landmark_model::config::{Attention, ModelConfig};
use landmark_model::engine::{self, Engine};
use landmark_model::huggingface::Fields;
use landmark_model::lora::{Lora, Whole};
use landmark_model::rows::{Placing, laden_length};
use serde_json::Value;

use crate::commands::finetune::FinetuneSettings;
use crate::error::{Error, Result};
use crate::hub;
use crate::huggingface::ModelFolder;

/// What fine-tuning needs to know of the tokens.
#[derive(Debug)]
pub struct Vocabulary {
    /// Text to tokens.
    pub tokenizer: Tokenizer,
    /// Files of the grown tokenizer.
    pub files: Vec<(&'static str, String)>,
    /// Begins a text, where the tokenizer puts one there.
    pub beginning: Option<u32>,
    /// Ends a document.
    pub end: u32,
    /// Pads rows.
    pub padding: u32,
    /// Closes blocks.
    pub landmark: u32,
    /// Tokens before growth: rows of the embedding that mean something.
    pub old: usize,
    /// Rows after growth.
    pub rows: usize,
}

/// The model to begin with.
#[derive(Debug)]
pub struct Base {
    folder: ModelFolder,
    name: String,
    vocabulary: Vocabulary,
    config: ModelConfig,
    lora: Option<Lora>,
    warnings: Vec<String>,
}

impl Base {
    /// Opens the model of a run and works out what it becomes.
    ///
    /// # Errors
    /// If it is not there, is no LLaMA, has no tokenizer, or has landmarks that do not fit the settings.
    pub fn open(settings: &FinetuneSettings) -> Result<Base> {
        let path = &*hub::resolve(Path::new(&settings.model))?;
        let folder = Folder::from(path);
        if !ModelFolder::is_one(&folder) {
            return Err(Error::Input {
                path: path.to_owned(),
                reason: "is no folder of a model: it has no config.json".to_owned(),
                help: "give --model-name-or-path a folder in Hugging Face's layout".to_owned(),
            });
        }
        let folder = ModelFolder::open(folder)?;
        let vocabulary = vocabulary(path, folder.config())?;
        let mut warnings = Vec::new();
        let old = folder.config();
        let refuse = |reason: String, help: &str| {
            Err(Error::Input { path: path.to_owned(), reason, help: help.to_owned() })
        };
        if old.attention == Attention::LandmarkWithMiss || old.rotary.pairs {
            return refuse("is no model of the LLaMA family".into(), "fine-tuning is for LLaMA checkpoints");
        }
        if old.attention == Attention::Landmark {
            if old.landmark_id != vocabulary.landmark {
                let reason = format!(
                    "its landmark is token {} by config.json and {} by its tokenizer",
                    old.landmark_id, vocabulary.landmark
                );
                return refuse(reason, "give the tokenizer that was saved with the model");
            }
            if let Some(freq) = old.mem_freq.filter(|&freq| freq != settings.mem_freq) {
                warnings.push(format!(
                    "the model was trained with blocks of {freq} tokens, --mem-freq asks for {}",
                    settings.mem_freq
                ));
            }
        }
        let grew = vocabulary.rows > old.vocab_size || old.attention == Attention::Plain;
        let lora = settings.lora.as_ref().map(|asked| {
            let both = Whole { embedding: true, head: true };
            let mut whole = asked.whole.unwrap_or(if grew { both } else { Whole::default() });
            if old.tied && (whole.embedding || whole.head) {
                whole = both;
            }
            Lora { whole, ..asked.lora }
        });
        let context = match settings.placing {
            Placing::AsTokens => settings.length,
            Placing::Inside => laden_length(settings.length, settings.mem_freq, Placing::Inside),
        };
        let config = ModelConfig {
            vocab_size: vocabulary.rows,
            attention: Attention::Landmark,
            landmark_id: vocabulary.landmark,
            mem_freq: Some(settings.mem_freq),
            landmark_in_loss: settings.placing == Placing::AsTokens,
            context,
            ..old.clone()
        };
        let name = settings.model.clone();
        Ok(Base { folder, name, vocabulary, config, lora, warnings })
    }

    /// The path as it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Its tokens.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// The model that it becomes.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The fields of its `config.json`.
    pub fn fields(&self) -> &Fields {
        self.folder.fields()
    }

    /// Adapters, if they are what is trained.
    pub fn lora(&self) -> Option<Lora> {
        self.lora
    }

    /// What the user should know.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Loads the weights, the vocabulary grown.
    ///
    /// # Errors
    /// A weight that is missing, has another shape, or has no place in the model.
    pub fn load<B: Backend>(&self, engine: &mut Engine<B>) -> Result<()> {
        let mixed_up = |reason: String| Error::Input {
            path: self.path().to_owned(),
            reason,
            help: "its weights and its config.json are those of two models: get both anew".to_owned(),
        };
        let known: Vec<String> = engine.model().weights.parameters.iter().map(|p| p.name.clone()).collect();
        if let Some((name, shape)) = self.folder.shapes()?.into_iter().find(|(name, _)| !known.contains(name))
        {
            return Err(mixed_up(format!("weight `{name}` of shape {shape:?} has no place in the model")));
        }
        let (width, Vocabulary { old, rows, .. }) = (self.config.width, &self.vocabulary);
        let tables = ["model.embed_tokens.weight", "lm_head.weight"];
        let loaded = engine.load(|name| -> Result<_> {
            let found = self.folder.find(name)?;
            Ok(match found {
                Some((shape, values))
                    if tables.contains(&name) && shape == [self.folder.config().vocab_size, width] =>
                {
                    Some((vec![*rows, width], grown(values, width, *old, *rows)))
                }
                other => other,
            })
        });
        loaded.map_err(|error| match error {
            Error::Model(error @ (engine::Error::Missing(_) | engine::Error::Shape { .. })) => {
                mixed_up(error.to_string())
            }
            other => other,
        })
    }
}

/// The rows of a table after growth: those behind the `old` tokens are their mean, summed in f64.
pub fn grown(mut values: Vec<f32>, width: usize, old: usize, rows: usize) -> Vec<f32> {
    let old = old.min(values.len() / width);
    if old == rows {
        return values;
    }
    let mut mean = vec![0.0_f64; width];
    for row in values[..old * width].chunks_exact(width) {
        mean.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
    }
    let mean: Vec<f32> = mean.into_iter().map(|sum| (sum / old as f64) as f32).collect();
    values.truncate(old * width);
    while values.len() < rows * width {
        values.extend_from_slice(&mean);
    }
    values
}

/// The tokens of a model, with those that it lacks.
fn vocabulary(folder: &Path, config: &ModelConfig) -> Result<Vocabulary> {
    let missing = || Error::Input {
        path: folder.to_owned(),
        reason: "has no tokenizer.json and no tokenizer.model".to_owned(),
        help: "fine-tuning encodes text: put the model's tokenizer into its folder".to_owned(),
    };
    let tokenizer = Tokenizer::from_folder(folder, None)?.ok_or_else(missing)?;
    let padding = padding_of(folder).and_then(|name| tokenizer.token_id(&name));
    let wanted: &[&str] = if padding.is_some() { &[LANDMARK] } else { &[PAD, LANDMARK] };
    let GrownTokenizer { files, ids, vocab_size } =
        tokenizer_folder::grow(folder, wanted)?.ok_or_else(missing)?;
    let old = old_tokens(&tokenizer, config);
    let landmark = *ids.last().ok_or_else(missing)?;
    let padding = padding.or(ids.first().copied()).ok_or_else(missing)?;
    Ok(Vocabulary {
        beginning: tokenizer.before().first().copied(),
        end: tokenizer.eot(),
        padding,
        landmark,
        old,
        rows: config.vocab_size.max(vocab_size as usize),
        files,
        tokenizer,
    })
}

/// Rows of a model's tables that mean something: those of its tokens. (In a model with landmarks, whose tokenizer may
/// lack them, all do.)
pub fn old_tokens(tokenizer: &Tokenizer, config: &ModelConfig) -> usize {
    match config.attention {
        Attention::Landmark => config.vocab_size,
        _ => (tokenizer.vocab_size() as usize).min(config.vocab_size),
    }
}

/// The name of the padding token that a folder's files name.
fn padding_of(folder: &Path) -> Option<String> {
    let named = |file: &str| {
        let path: PathBuf = folder.join(file);
        let fields: Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        let token = &fields["pad_token"];
        token.as_str().or(token["content"].as_str()).map(str::to_owned)
    };
    named("tokenizer_config.json").or_else(|| named("special_tokens_map.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked by hand: the mean of the old rows, old unused rows replaced.
    #[test]
    fn new_rows_are_the_mean_of_the_old() {
        let values = vec![1.0, 10.0, 3.0, 30.0];
        assert_eq!(grown(values.clone(), 2, 2, 4), [1.0, 10.0, 3.0, 30.0, 2.0, 20.0, 2.0, 20.0]);
        assert_eq!(grown(values.clone(), 2, 2, 2), values);
        assert_eq!(grown(vec![1.0, 3.0, 99.0], 1, 2, 3), [1.0, 3.0, 2.0]);
    }
}
