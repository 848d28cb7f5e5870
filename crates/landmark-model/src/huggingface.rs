//! The `config.json` of a checkpoint in Hugging Face's layout, and the model that it describes; and back.
//!
//! Bytes in, a [`ModelConfig`] out; no files, so that the browser can use it, and so that it can be fuzzed. What is
//! read here decides how much is allocated later, so every number has a bound: see [`ModelConfig::validate`].
//! As in [`crate::released`], nothing is deserialised into a struct of all fields: configurations differ from one
//! version of `transformers` to the next, and what is not understood is kept and written back as it was.
//!
//! ## Which configurations have landmarks
//! The released fine-tuning adds four fields (`mem_id`, `mem_freq`, `train_context_length`,
//! `include_landmark_in_loss`) and calls the type `llama_with_landmark`. A configuration with `mem_id` in the
//! vocabulary has landmark attention, whatever its type is called; one whose `mem_id` lies beyond it is that of a
//! base model to which the token was not added yet, and is plain. Under the released type, missing fields have the
//! released defaults.
//!
//! ## How a landmark model is written
//! As `model_type: llama`, with the four fields beside the others. `transformers` refuses the released type, which it
//! does not know, and keeps fields that it does not know, so with `llama` its Auto classes load the weights, and
//! the released program (which reads the fields and only warns about the type) does too.
//!
//! Rotary positions are written as `rope_theta` and `rope_scaling`, which every version of `transformers` reads;
//! version 5 calls them `rope_parameters`, which older ones pass over.

use serde_json::{Map, Value, json};

use crate::config::{Attention, Biases, ConfigError, Family, Mlp, ModelConfig, Norm, Rotary, Scaling};

/// The fields of a `config.json` by name.
pub type Fields = Map<String, Value>;

/// More than any configuration holds.
pub const LARGEST_CONFIG: usize = 16 << 20;

/// The type of the released fine-tuned models.
const RELEASED_TYPE: &str = "llama_with_landmark";

/// The method that the `quantization_config` of weights in blocks ([`landmark_core::quantize`]) names.
const QUANTIZED: &str = "landmark";

/// Longest piece of a value that is put into a message, in characters.
const SHOWN: usize = 60;

/// A configuration that describes no model that can be computed here.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum HuggingFaceError {
    /// Too many bytes.
    #[error("it is {0} bytes long, too long for a config.json")]
    TooLong(usize),
    /// Not a JSON object.
    #[error("it is not a JSON object ({0})")]
    NotJson(String),
    /// A field is not there.
    #[error("the field {0} is missing")]
    Missing(&'static str),
    /// A field has the wrong type, or is no word that it can be.
    #[error("the field {field} is {found}; it has to be {expected}")]
    Value {
        /// Name of the field.
        field: String,
        /// Its value, cut to a reasonable length.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// A model of another kind.
    #[error("the field {field} is {found}, which is not supported: {reason}")]
    Unsupported {
        /// Name of the field.
        field: String,
        /// Its value, cut to a reasonable length.
        found: String,
        /// Why not, and what to do.
        reason: &'static str,
    },
    /// A model that this layout has no place for.
    #[error("{0}")]
    NoForm(&'static str),
    /// Fields that are possible one by one, but not together.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

type Result<T> = std::result::Result<T, HuggingFaceError>;

/// The fields in the bytes of a `config.json`.
///
/// # Errors
/// If the bytes are no JSON object.
pub fn parse(bytes: &[u8]) -> Result<Fields> {
    if bytes.len() > LARGEST_CONFIG {
        return Err(HuggingFaceError::TooLong(bytes.len()));
    }
    serde_json::from_slice(bytes).map_err(|error| HuggingFaceError::NotJson(error.to_string()))
}

/// The model that a configuration describes.
///
/// # Errors
/// Names the field that is missing, malformed, unsupported or out of bounds.
pub fn config(fields: &Fields) -> Result<ModelConfig> {
    let biases = biases(fields)?;
    refuse_others(fields)?;
    let width = required(fields, "hidden_size")?;
    let heads = required(fields, "num_attention_heads")?;
    let kv_heads = count(fields, "num_key_value_heads")?.unwrap_or(heads);
    let longest = count(fields, "max_position_embeddings")?.unwrap_or(2048);
    // Bounded before anything is divided by them.
    for (name, value) in [
        ("hidden_size", width),
        ("num_attention_heads", heads),
        ("num_key_value_heads", kv_heads),
        ("max_position_embeddings", longest),
    ] {
        ModelConfig::check_extent(name, value)?;
    }
    if !heads.is_multiple_of(kv_heads) {
        let expected = "a divisor of num_attention_heads";
        return Err(wrong("num_key_value_heads", &json!(kv_heads), expected));
    }
    let head_dim = match count(fields, "head_dim")? {
        Some(head_dim) => head_dim,
        None if width.is_multiple_of(heads) => width / heads,
        None => {
            let expected = "a multiple of num_attention_heads, unless head_dim is given";
            return Err(wrong("hidden_size", &json!(width), expected));
        }
    };
    let mut config = ModelConfig {
        family: Family::Llama,
        vocab_size: required(fields, "vocab_size")?,
        width,
        layers: required(fields, "num_hidden_layers")?,
        heads,
        kv_heads,
        head_dim,
        hidden: required(fields, "intermediate_size")?,
        norm: Norm::Rms(number(fields, "rms_norm_eps")?.unwrap_or(1e-6) as f32),
        mlp: Mlp::SwiGlu,
        biases,
        tied: switch(fields, "tie_word_embeddings")?.unwrap_or(false),
        rotary: rotary(fields, longest)?,
        attention: Attention::Plain,
        landmark_id: 0,
        mem_freq: None,
        landmark_in_loss: false,
        context: longest,
    };
    landmarks(fields, &mut config)?;
    config.validate()?;
    Ok(config)
}

/// Reads the four released fields.
fn landmarks(fields: &Fields, config: &mut ModelConfig) -> Result<()> {
    let is_released = fields.get("model_type").and_then(Value::as_str) == Some(RELEASED_TYPE);
    let default = |value| is_released.then_some(value);
    let Some(id) = count(fields, "mem_id")?.or(default(32_001)) else { return Ok(()) };
    if !is_released && id >= config.vocab_size {
        return Ok(());
    }
    config.landmark_id = u32::try_from(id).map_err(|_| wrong("mem_id", &json!(id), "a token id"))?;
    config.attention = Attention::Landmark;
    config.mem_freq = count(fields, "mem_freq")?.or(default(50));
    config.landmark_in_loss = switch(fields, "include_landmark_in_loss")?.unwrap_or(true);
    let context = count(fields, "train_context_length")?.or(default(512));
    config.context = context.unwrap_or(config.context);
    Ok(())
}

/// Which layers have a bias, by the type of the model.
fn biases(fields: &Fields) -> Result<Biases> {
    let model = fields.get("model_type").unwrap_or(&Value::Null);
    let attention = switch(fields, "attention_bias")?.unwrap_or(false);
    let mlp = switch(fields, "mlp_bias")?.unwrap_or(false);
    match model.as_str() {
        Some("llama" | RELEASED_TYPE) => Ok(Biases { qkv: attention, output: attention, mlp, norm: false }),
        Some("mistral") => Ok(Biases::NONE),
        Some("qwen2") => Ok(Biases { qkv: true, ..Biases::NONE }),
        None if model.is_null() => Err(HuggingFaceError::Missing("model_type")),
        _ => {
            Err(unsupported("model_type", model, "it has to be llama, llama_with_landmark, mistral or qwen2"))
        }
    }
}

/// Refuses what a LLaMA cannot be here.
fn refuse_others(fields: &Fields) -> Result<()> {
    let field = |name: &str| fields.get(name).filter(|value| !value.is_null());
    if let Some(act) = field("hidden_act").filter(|act| !matches!(act.as_str(), Some("silu" | "swish"))) {
        return Err(unsupported("hidden_act", act, "the MLP is computed with silu only"));
    }
    // Blocks of our own kind are read as their values.
    if let Some(how) = field("quantization_config").filter(|how| how["quant_method"] != QUANTIZED) {
        return Err(unsupported("quantization_config", how, "give the checkpoint that is not quantised"));
    }
    let slides = |name| field(name).is_some_and(|window| window.as_bool() != Some(false));
    // Qwen2 names a window and says separately whether it is used.
    let has_switch = fields.contains_key("use_sliding_window");
    if slides("use_sliding_window") || (!has_switch && slides("sliding_window")) {
        let window = field("sliding_window").unwrap_or(&Value::Null);
        return Err(unsupported("sliding_window", window, "attention over a window is not computed here"));
    }
    if let Some(part) = field("partial_rotary_factor").filter(|part| part.as_f64() != Some(1.0)) {
        return Err(unsupported("partial_rotary_factor", part, "whole heads are rotated"));
    }
    Ok(())
}

/// Base and scaling of the positions, in the spellings of all versions.
fn rotary(fields: &Fields, longest: usize) -> Result<Rotary> {
    let nothing = Map::new();
    let inner = match fields.get("rope_parameters").or_else(|| fields.get("rope_scaling")) {
        None | Some(Value::Null) => &nothing,
        Some(Value::Object(inner)) => inner,
        Some(other) => return Err(wrong("rope_scaling", other, "an object or null")),
    };
    let theta = match number(inner, "rope_theta")? {
        Some(theta) => Some(theta),
        None => number(fields, "rope_theta")?,
    };
    Ok(Rotary { pairs: false, theta: theta.unwrap_or(10_000.0), scaling: scaling(fields, inner, longest)? })
}

fn scaling(fields: &Fields, inner: &Fields, longest: usize) -> Result<Scaling> {
    let factor = |name: &'static str| number(inner, name)?.ok_or(HuggingFaceError::Missing(name));
    let Some(kind) = inner.get("rope_type").or_else(|| inner.get("type")).filter(|kind| !kind.is_null())
    else {
        return match number(inner, "factor")? {
            None => Ok(Scaling::None),
            Some(_) => Err(HuggingFaceError::Missing("rope_scaling.rope_type")),
        };
    };
    match kind.as_str() {
        Some("default") => Ok(Scaling::None),
        Some("linear") => Ok(Scaling::Linear { factor: factor("factor")? }),
        Some("dynamic") => Ok(Scaling::Dynamic { factor: factor("factor")? }),
        Some("llama3") => {
            let name = "original_max_position_embeddings";
            let original = match count(inner, name)? {
                Some(original) => Some(original),
                None => count(fields, name)?,
            };
            Ok(Scaling::Llama3 {
                factor: factor("factor")?,
                low_freq_factor: factor("low_freq_factor")?,
                high_freq_factor: factor("high_freq_factor")?,
                original_context: original.unwrap_or(longest),
            })
        }
        _ => Err(unsupported(
            "rope_scaling.rope_type",
            kind,
            "it has to be default, linear, dynamic or llama3",
        )),
    }
}

/// The fields for weights in blocks of so many bits. Nobody else reads those: `transformers` would take codes for values
/// without a word, and with this field it refuses.
#[must_use]
pub fn quantized(mut fields: Fields, bits: u32) -> Fields {
    fields.insert("quantization_config".into(), json!({"quant_method": QUANTIZED, "bits": bits}));
    fields
}

/// The ids in a field such as `eos_token_id`, which holds one, several, or null; none if it holds anything else.
pub fn token_ids(fields: &Fields, name: &str) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match fields.get(name) {
        Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// The `config.json` of a model. Fields of `original` that say nothing about what is in a [`ModelConfig`] are kept, and
/// those that say the same in other words too.
///
/// # Errors
/// [`HuggingFaceError::NoForm`] for a model that no LLaMA is.
pub fn to_fields(config: &ModelConfig, original: Option<&Fields>) -> Result<Fields> {
    let (model_type, architecture) = kind(config)?;
    let Norm::Rms(eps) = config.norm else {
        return Err(HuggingFaceError::NoForm("a LLaMA has RMSNorm; this model has LayerNorm"));
    };
    let mut fields = original.cloned().unwrap_or_default();
    // What the original says already is left as it says it; its type may be one that nobody else reads.
    let before = original.and_then(|fields| self::config(fields).ok());
    let is_kept = |same: fn(&ModelConfig, &ModelConfig) -> bool| {
        before.as_ref().is_some_and(|before| same(before, config))
    };
    let keeps_type = ["llama", "mistral", "qwen2"]
        .iter()
        .any(|name| fields.get("model_type").is_some_and(|found| found == name));
    if !(keeps_type && is_kept(|a, b| a.biases == b.biases)) {
        fields.insert("model_type".into(), json!(model_type));
        fields.insert("architectures".into(), json!([architecture]));
        if model_type == "llama" {
            fields.insert("attention_bias".into(), json!(config.biases.qkv));
            fields.insert("mlp_bias".into(), json!(config.biases.mlp));
        }
    }
    // The base model's own limit stays; the context with landmarks has a field of its own.
    let longest = match config.attention {
        Attention::Plain => None,
        _ => count(&fields, "max_position_embeddings")?,
    };
    for (name, value) in [
        ("hidden_size", json!(config.width)),
        ("intermediate_size", json!(config.hidden)),
        ("num_hidden_layers", json!(config.layers)),
        ("num_attention_heads", json!(config.heads)),
        ("num_key_value_heads", json!(config.kv_heads)),
        ("head_dim", json!(config.head_dim)),
        ("vocab_size", json!(config.vocab_size)),
        ("max_position_embeddings", json!(longest.unwrap_or(config.context))),
        ("hidden_act", json!("silu")),
        ("tie_word_embeddings", json!(config.tied)),
    ] {
        fields.insert(name.into(), value);
    }
    // Weights are written as values.
    fields.shift_remove("quantization_config");
    if !is_kept(|a, b| a.norm == b.norm) {
        fields.insert("rms_norm_eps".into(), json!(shortest(eps)));
    }
    if !is_kept(|a, b| a.rotary == b.rotary) {
        fields.shift_remove("rope_parameters");
        fields.insert("rope_theta".into(), json!(config.rotary.theta));
        fields.insert("rope_scaling".into(), scaling_fields(config.rotary.scaling));
    }
    if config.attention == Attention::Landmark {
        fields.insert("mem_id".into(), json!(config.landmark_id));
        fields.insert("mem_freq".into(), json!(config.mem_freq));
        fields.insert("train_context_length".into(), json!(config.context));
        fields.insert("include_landmark_in_loss".into(), json!(config.landmark_in_loss));
    } else {
        // Left in place they would say that this model has landmarks.
        for name in ["mem_id", "mem_freq", "train_context_length", "include_landmark_in_loss"] {
            fields.shift_remove(name);
        }
    }
    Ok(fields)
}

/// `model_type` and architecture.
fn kind(config: &ModelConfig) -> Result<(&'static str, &'static str)> {
    let no_form = |reason| Err(HuggingFaceError::NoForm(reason));
    if config.family == Family::Gpt {
        return no_form(
            "a GPT of the released program has no form in Hugging Face's layout: its rotary positions on adjacent \
             pairs, fused projections and LayerNorms are no LLaMA's",
        );
    }
    if config.mlp != Mlp::SwiGlu || config.rotary.pairs || config.attention == Attention::LandmarkWithMiss {
        return no_form("a LLaMA has a SwiGLU MLP, positions on halves and no context-miss token");
    }
    match config.biases {
        Biases { norm: true, .. } => no_form("a LLaMA's norms have no bias"),
        Biases { qkv, output, .. } if qkv == output => Ok(("llama", "LlamaForCausalLM")),
        Biases { qkv: true, output: false, mlp: false, .. } => Ok(("qwen2", "Qwen2ForCausalLM")),
        _ => no_form("a LLaMA has biases in all projections of the attention or in none"),
    }
}

/// The number that was written when an `f32` was read: 1e-6, and not 9.999999974752427e-7.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

fn scaling_fields(scaling: Scaling) -> Value {
    match scaling {
        Scaling::None => Value::Null,
        // Versions before 4.43 know `type` only.
        Scaling::Linear { factor } => json!({"type": "linear", "rope_type": "linear", "factor": factor}),
        Scaling::Dynamic { factor } => json!({"type": "dynamic", "rope_type": "dynamic", "factor": factor}),
        Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_context,
        }),
    }
}

fn required(fields: &Fields, name: &'static str) -> Result<usize> {
    count(fields, name)?.ok_or(HuggingFaceError::Missing(name))
}

fn count(fields: &Fields, name: &str) -> Result<Option<usize>> {
    let Some(value) = fields.get(name).filter(|value| !value.is_null()) else { return Ok(None) };
    let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
    count.map(Some).ok_or_else(|| wrong(name, value, "a whole number, 0 or more"))
}

fn number(fields: &Fields, name: &str) -> Result<Option<f64>> {
    let Some(value) = fields.get(name).filter(|value| !value.is_null()) else { return Ok(None) };
    let number = value.as_f64().filter(|number| number.is_finite());
    number.map(Some).ok_or_else(|| wrong(name, value, "a number"))
}

fn switch(fields: &Fields, name: &str) -> Result<Option<bool>> {
    let Some(value) = fields.get(name).filter(|value| !value.is_null()) else { return Ok(None) };
    value.as_bool().map(Some).ok_or_else(|| wrong(name, value, "true or false"))
}

fn wrong(field: &str, value: &Value, expected: &'static str) -> HuggingFaceError {
    HuggingFaceError::Value { field: field.to_owned(), found: shown(value), expected }
}

fn unsupported(field: &str, value: &Value, reason: &'static str) -> HuggingFaceError {
    HuggingFaceError::Unsupported { field: field.to_owned(), found: shown(value), reason }
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> Fields {
        let value = json!({"model_type": "llama_with_landmark", "hidden_size": 64, "intermediate_size": 176,
            "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 2048, "vocab_size": 201,
            "rms_norm_eps": 1e-6, "hidden_act": "silu", "mem_id": 200, "mem_freq": 7, "train_context_length": 64,
            "include_landmark_in_loss": true, "bos_token_id": 1, "eos_token_id": [2, 3], "flavour": "vanilla"});
        value.as_object().cloned().unwrap()
    }

    fn with(changes: Value) -> Result<ModelConfig> {
        let mut fields = fields();
        for (name, value) in changes.as_object().unwrap() {
            fields.insert(name.clone(), value.clone());
        }
        config(&fields)
    }

    #[test]
    fn the_released_fields_are_read() {
        let config = config(&fields()).unwrap();
        assert_eq!((config.width, config.layers, config.heads, config.kv_heads), (64, 2, 4, 4));
        assert_eq!((config.head_dim, config.hidden, config.vocab_size), (16, 176, 201));
        assert_eq!(
            (config.attention, config.landmark_id, config.mem_freq),
            (Attention::Landmark, 200, Some(7))
        );
        assert_eq!((config.context, config.landmark_in_loss, config.tied), (64, true, false));
        assert_eq!((config.norm, config.biases), (Norm::Rms(1e-6), Biases::NONE));
        assert_eq!(token_ids(&fields(), "eos_token_id"), [2, 3]);
        assert_eq!(token_ids(&fields(), "bos_token_id"), [1]);
    }

    #[test]
    fn landmarks_follow_the_id() {
        let released =
            |changes: Value| with(changes).map(|c| (c.attention, c.landmark_id, c.mem_freq, c.context));
        // A base model with the fields of the diff that goes with it.
        let base = json!({"model_type": "llama", "vocab_size": 199});
        assert_eq!(released(base), Ok((Attention::Plain, 0, None, 2048)));
        assert!(matches!(
            released(json!({"vocab_size": 199})),
            Err(HuggingFaceError::Config(ConfigError::Landmark { .. }))
        ));
        let ours = json!({"model_type": "llama", "train_context_length": null, "mem_freq": null});
        assert_eq!(released(ours), Ok((Attention::Landmark, 200, None, 2048)));
        let defaults =
            json!({"mem_id": null, "mem_freq": null, "train_context_length": null, "vocab_size": 32002});
        assert_eq!(released(defaults), Ok((Attention::Landmark, 32_001, Some(50), 512)));
        let plain = json!({"model_type": "llama", "mem_id": null});
        assert_eq!(released(plain), Ok((Attention::Plain, 0, None, 2048)));
        let config =
            with(json!({"include_landmark_in_loss": false, "attention_bias": null, "sliding_window": null}));
        assert!(!config.unwrap().landmark_in_loss);
        assert!(with(json!({"include_landmark_in_loss": null})).unwrap().landmark_in_loss);
    }

    #[test]
    fn every_spelling_of_the_positions_is_read() {
        let rotary =
            |changes: Value| with(changes).map(|config| (config.rotary.theta, config.rotary.scaling));
        let llama3 = json!({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32, "rope_type": "llama3"});
        let expected = Scaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 32,
        };
        assert_eq!(rotary(json!({})), Ok((10_000.0, Scaling::None)));
        assert_eq!(rotary(json!({"rope_theta": 5e4, "rope_scaling": null})), Ok((5e4, Scaling::None)));
        assert_eq!(
            rotary(json!({"rope_theta": 5e5, "rope_scaling": llama3})),
            Ok((5e5, expected)),
            "LLaMA 3 as version 4 writes it"
        );
        let mut version5 = llama3.clone();
        version5["rope_theta"] = json!(5e5);
        assert_eq!(rotary(json!({"rope_parameters": version5})), Ok((5e5, expected)));
        let linear = json!({"rope_scaling": {"type": "linear", "factor": 2}});
        assert_eq!(rotary(linear), Ok((10_000.0, Scaling::Linear { factor: 2.0 })));
        let dynamic = json!({"rope_scaling": {"rope_type": "dynamic", "type": "dynamic", "factor": 2.0}});
        assert_eq!(rotary(dynamic), Ok((10_000.0, Scaling::Dynamic { factor: 2.0 })));
        assert_eq!(
            rotary(json!({"rope_parameters": {"rope_type": "default"}})),
            Ok((10_000.0, Scaling::None))
        );
        for (wrong, said) in [
            (json!({"rope_scaling": {"type": "yarn", "factor": 2.0}}), "linear, dynamic or llama3"),
            (json!({"rope_scaling": {"type": "linear"}}), "factor is missing"),
            (json!({"rope_scaling": {"factor": 2.0}}), "rope_type is missing"),
            (json!({"rope_scaling": {"type": "linear", "factor": 0}}), "above 0"),
            (json!({"rope_scaling": "linear"}), "an object or null"),
            (json!({"rope_theta": -1}), "rope_theta"),
        ] {
            let error = rotary(wrong).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn relatives_of_llama_are_read_and_strangers_are_not() {
        assert_eq!(
            with(json!({"model_type": "qwen2"})).unwrap().biases,
            Biases { qkv: true, ..Biases::NONE }
        );
        let biased = with(json!({"attention_bias": true, "mlp_bias": true})).unwrap().biases;
        assert_eq!(biased, Biases { norm: false, ..Biases::ALL });
        let unused = json!({"model_type": "qwen2", "use_sliding_window": false, "sliding_window": 4096});
        assert!(with(unused).is_ok());
        for (changes, said) in [
            (json!({"model_type": "bert"}), "bert"),
            (json!({"model_type": null}), "model_type"),
            (json!({"hidden_act": "gelu"}), "gelu"),
            (json!({"quantization_config": {"bits": 4}}), "not quantised"),
            (json!({"model_type": "mistral", "sliding_window": 4096}), "4096"),
            (json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 9}), "window"),
            (json!({"partial_rotary_factor": 0.5}), "0.5"),
        ] {
            let error = with(changes).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn blocks_of_our_own_are_read_and_not_passed_on() {
        let fields = quantized(fields(), 4);
        assert_eq!(fields["quantization_config"]["bits"], 4);
        let config = config(&fields).unwrap();
        assert!(!to_fields(&config, Some(&fields)).unwrap().contains_key("quantization_config"));
    }

    /// Each of these would ask for something impossible or enormous.
    #[test]
    fn hostile_numbers_are_errors() {
        let largest = json!(u64::MAX);
        for (name, value) in [
            ("hidden_size", largest.clone()),
            ("hidden_size", json!(0)),
            ("hidden_size", json!(66)),
            ("hidden_size", json!("64")),
            ("intermediate_size", largest.clone()),
            ("num_hidden_layers", json!(1 << 20)),
            ("num_attention_heads", json!(0)),
            ("num_attention_heads", largest.clone()),
            ("num_key_value_heads", json!(3)),
            ("num_key_value_heads", json!(0)),
            ("head_dim", json!(15)),
            ("head_dim", largest.clone()),
            ("vocab_size", json!(-1)),
            ("vocab_size", json!(1.5)),
            ("max_position_embeddings", largest.clone()),
            ("train_context_length", json!(0)),
            ("mem_id", largest.clone()),
            ("mem_freq", json!(0)),
            ("mem_freq", largest),
            ("tie_word_embeddings", json!(1)),
        ] {
            assert!(with(json!({name: value})).is_err(), "{name} = {value}");
        }
        for text in ["", "[]", "3", "{\"a\":"] {
            assert!(matches!(parse(text.as_bytes()), Err(HuggingFaceError::NotJson(_))), "{text}");
        }
        assert!(parse("[".repeat(1 << 20).as_bytes()).is_err(), "too deep");
        let error = with(json!({"model_type": "x".repeat(1000)})).unwrap_err().to_string();
        assert!(error.len() < 300, "{error}");
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut models = vec![config(&fields()).unwrap(), with(json!({"model_type": "qwen2"})).unwrap()];
        models.push(
            with(json!({"attention_bias": true, "mlp_bias": true, "head_dim": 32, "rms_norm_eps": 1e-5}))
                .unwrap(),
        );
        models
            .push(with(json!({"model_type": "llama", "mem_id": null, "tie_word_embeddings": true})).unwrap());
        for scaling in [
            Scaling::Linear { factor: 2.0 },
            Scaling::Dynamic { factor: 3.5 },
            Scaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_context: 32,
            },
        ] {
            let mut model = models[0].clone();
            model.rotary.scaling = scaling;
            models.push(model);
        }
        for model in models {
            let written = to_fields(&model, None).unwrap();
            assert_eq!(config(&written).unwrap(), model);
            assert_ne!(written["model_type"], json!(RELEASED_TYPE), "a type that transformers refuses");
            let over = to_fields(&model, Some(&fields())).unwrap();
            assert_eq!(config(&over).unwrap(), model);
            assert_eq!(over["flavour"], json!("vanilla"), "unknown fields are kept");
        }
        let written = to_fields(&config(&fields()).unwrap(), Some(&fields())).unwrap();
        assert_eq!(written["max_position_embeddings"], json!(2048), "the base model's limit is kept");
        assert_eq!(written["rms_norm_eps"], json!(1e-6));
    }

    #[test]
    fn what_no_llama_is_is_not_written() {
        let gpt = ModelConfig::gpt(100, 16, 1, 2, Attention::Landmark);
        let error = to_fields(&gpt, None).unwrap_err().to_string();
        assert!(error.contains("LayerNorm"), "{error}");
        let mut model = config(&fields()).unwrap();
        model.biases.output = true;
        assert!(to_fields(&model, None).is_err());
        model.biases = Biases::NONE;
        model.rotary.pairs = true;
        assert!(to_fields(&model, None).is_err());
    }
}
