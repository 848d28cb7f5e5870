//! `landmark init`: a LLaMA of any size with random weights, and a vocabulary learned from text.

use landmark_core::Layout;
use landmark_data::{Tokenizer, learn_vocabulary};
use landmark_formats::huggingface::{ModelWriter, SHARD_BYTES, read_bounded};
use landmark_formats::safetensors::TensorSource;
use landmark_formats::tensor::{DType, float_bytes};
use landmark_model::config::{Attention, Family, Mlp, ModelConfig, Norm, Rotary, Scaling};
use landmark_model::engine::Error as EngineError;
use landmark_model::huggingface;
use landmark_model::weights::{Types, Weights};
use serde::Serialize;
use serde_json::json;

use crate::args::init::InitArgs;
use crate::error::{Error, Result};
use crate::report::{Report, scaled};

/// Longest tokenizer.json that is read, in bytes.
const LARGEST_TOKENIZER: u64 = 256 << 20;

/// What was made.
#[derive(Debug, Serialize)]
struct Outcome {
    output: std::path::PathBuf,
    parameters: usize,
    vocab_size: usize,
    model: ModelConfig,
}

fn config(args: &InitArgs, vocab_size: usize) -> ModelConfig {
    let (width, heads) = (args.hidden_size, args.num_attention_heads);
    ModelConfig {
        family: Family::Llama,
        kv_heads: args.num_key_value_heads.unwrap_or(heads),
        hidden: args.intermediate_size.unwrap_or_else(|| (width * 8).div_ceil(3).next_multiple_of(32)),
        norm: Norm::Rms(1e-5),
        mlp: Mlp::SwiGlu,
        tied: args.tie_word_embeddings,
        rotary: Rotary { pairs: false, theta: args.rope_theta, scaling: Scaling::None },
        context: args.max_position_embeddings,
        landmark_id: 0,
        ..ModelConfig::gpt(vocab_size, width, args.num_hidden_layers, heads, Attention::Plain)
    }
}

/// Makes a model.
///
/// # Errors
/// Extents that no model can have, text that cannot be read, a folder that is there already.
pub fn run(args: &InitArgs, report: &Report) -> Result<()> {
    args.device.device.check()?;
    let json = match (&args.tokenizer, &args.vocabulary_from) {
        (Some(path), _) => read_bounded(path, LARGEST_TOKENIZER)?,
        (None, Some(folder)) => {
            report.log(format!("learning a vocabulary of {} tokens", args.vocab_size));
            learn_vocabulary(folder, args.vocab_size, args.single_digits)?.into_bytes()
        }
        (None, None) => {
            let help = "give --vocabulary-from DIR, or --tokenizer FILE";
            return Err(Error::flag("--tokenizer", "no vocabulary is given", help));
        }
    };
    let tokenizer = Tokenizer::from_json(&json, "tokenizer.json", None)?;
    let config = config(args, tokenizer.vocab_size() as usize);
    config.validate().map_err(EngineError::from)?;
    let parameters = Weights::lay_out(&config, None, Types::F32, &mut Layout::new()).parameters;
    let writer = ModelWriter::create(&args.output)?;
    let sources = parameters.iter().enumerate().map(|(index, parameter)| {
        let draw = move || float_bytes(&parameter.initial(args.seed, index), DType::F32).map(Into::into);
        TensorSource::lazy(parameter.name.clone(), DType::F32, parameter.shape.clone(), draw)
    });
    writer.write_weights(sources.collect(), SHARD_BYTES)?;
    writer.write("tokenizer.json", &json)?;
    let mut fields = huggingface::to_fields(&config, None).map_err(|error| Error::Input {
        path: args.output.clone(),
        reason: error.to_string(),
        help: String::new(),
    })?;
    // Documents end with it, and generation does.
    for (name, value) in [
        ("eos_token_id", json!(tokenizer.eot())),
        ("bos_token_id", json!(null)),
        ("torch_dtype", json!("float32")),
    ] {
        fields.insert(name.to_owned(), value);
    }
    writer.finish(&fields)?;
    let count = parameters.iter().map(|parameter| parameter.numel()).sum();
    report.print(format!(
        "{}: {} parameters, a vocabulary of {}",
        args.output.display(),
        scaled(count as f64),
        config.vocab_size
    ))?;
    report.json(&Outcome {
        output: args.output.clone(),
        parameters: count,
        vocab_size: config.vocab_size,
        model: config,
    })
}
