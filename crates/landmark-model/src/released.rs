//! The settings of the released program, as its `summary.json` (and our own checkpoints) store them, and the model
//! that they describe.
//!
//! Bytes in, a [`ModelConfig`] out; no files, so that the browser can use it, and so that it can be fuzzed. What is
//! read here decides how much is allocated later, so every number has a bound: see [`ModelConfig::validate`].
//! Rejected: deserialising into a struct of all settings, which fails on the first setting that it does not know;
//! summaries differ from one version of the released program to the next, and a model needs nine of their forty.

use serde_json::{Map, Value};

use crate::config::{Attention, Biases, ConfigError, ModelConfig};

/// Settings by name: `args` of a `summary.json`.
pub type Args = Map<String, Value>;

/// More than any summary holds: curves of a million evaluations.
pub const LARGEST_SUMMARY: usize = 64 << 20;

/// Settings that describe no model.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ReleasedError {
    /// Too many bytes.
    #[error("it is {0} bytes long, too long for a summary.json")]
    TooLong(usize),
    /// Not JSON.
    #[error("it is not JSON: {0}")]
    NotJson(String),
    /// No settings in it.
    #[error("it has no object \"args\" with the settings of the run")]
    NoArgs,
    /// A setting is not there.
    #[error("the setting {0} is missing")]
    Missing(&'static str),
    /// A setting has the wrong type, or is no word that it can be.
    #[error("the setting {key} is {found}; it has to be {expected}")]
    Value {
        /// Name of the setting.
        key: &'static str,
        /// Its value, cut to a reasonable length.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// A model of the released program that is not supported here.
    #[error("the setting {key} is {value}, which is not supported: {reason}")]
    Unsupported {
        /// Name of the setting.
        key: &'static str,
        /// Its value.
        value: &'static str,
        /// Why not, and what to do.
        reason: &'static str,
    },
    /// Settings that are possible one by one, but not together.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Why `softmax_func ignore_mem` is refused.
pub const IGNORE_MEM: &str = "it leaves landmarks out of a plain softmax, for an ablation that nothing else of the \
     released program uses; train with mem_opt, or with nomem on a stream without landmarks (mem_freq None)";

/// Why `softmax_func nomem` is refused for a model with a context-miss token.
pub const NOMEM_WITH_MISS: &str =
    "a context-miss token is part of the grouped softmax; use mem_opt, or the model base";

/// The settings in the bytes of a `summary.json`.
///
/// # Errors
/// If the bytes are no JSON object with an object `args` in it.
pub fn parse_summary(bytes: &[u8]) -> Result<Args, ReleasedError> {
    match parse(bytes)? {
        Value::Object(mut summary) => match summary.remove("args") {
            Some(Value::Object(args)) => Ok(args),
            _ => Err(ReleasedError::NoArgs),
        },
        _ => Err(ReleasedError::NoArgs),
    }
}

/// The settings in a JSON object of settings, as our checkpoints carry them.
///
/// # Errors
/// If the bytes are no JSON object.
pub fn parse_args(bytes: &[u8]) -> Result<Args, ReleasedError> {
    match parse(bytes)? {
        Value::Object(args) => Ok(args),
        _ => Err(ReleasedError::NoArgs),
    }
}

fn parse(bytes: &[u8]) -> Result<Value, ReleasedError> {
    if bytes.len() > LARGEST_SUMMARY {
        return Err(ReleasedError::TooLong(bytes.len()));
    }
    serde_json::from_slice(bytes).map_err(|error| ReleasedError::NotJson(error.to_string()))
}

/// The model that settings describe. Settings that the released program has defaults for may be missing.
///
/// # Errors
/// Names the setting that is missing, malformed, unsupported or out of bounds.
pub fn config(args: &Args) -> Result<ModelConfig, ReleasedError> {
    let attention = attention(args)?;
    let width = count(args, "n_embd")?;
    let layers = count(args, "n_layer")?;
    let heads = count(args, "n_head")?;
    let vocab_size = count(args, "vocab_size")?;
    let context = count(args, "sequence_length")?;
    // Bounded before anything is computed from them, such as the MLP's inner width.
    for (name, value) in
        [("the model's width (n_embd)", width), ("the context length (sequence_length)", context)]
    {
        ModelConfig::check_extent(name, value)?;
    }
    let mut config = ModelConfig::gpt(vocab_size, width, layers, heads, attention);
    config.context = context;
    config.biases = Biases::all_or_none(match args.get("bias") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(bias)) => *bias,
        Some(other) => return Err(wrong("bias", other, "true or false")),
    });
    if let Some(id) = args.get("landmark_id").filter(|id| !id.is_null()) {
        let narrow = id.as_u64().and_then(|id| u32::try_from(id).ok());
        config.landmark_id = narrow.ok_or_else(|| wrong("landmark_id", id, "a token id"))?;
    }
    config.validate()?;
    Ok(config)
}

fn attention(args: &Args) -> Result<Attention, ReleasedError> {
    let model = args.get("model").ok_or(ReleasedError::Missing("model"))?;
    let attention = match model.as_str() {
        Some("base" | "base_rotary") => return Ok(Attention::Plain),
        Some("landmark") => Attention::Landmark,
        Some("landmark_with_cmt") => Attention::LandmarkWithMiss,
        _ => return Err(wrong("model", model, "base, base_rotary, landmark or landmark_with_cmt")),
    };
    let key = "softmax_func";
    let softmax = args.get(key).unwrap_or(&Value::Null);
    match softmax.as_str() {
        Some("mem_opt") => Ok(attention),
        None if softmax.is_null() => Ok(attention),
        Some("nomem") if attention == Attention::LandmarkWithMiss => {
            Err(ReleasedError::Unsupported { key, value: "nomem", reason: NOMEM_WITH_MISS })
        }
        // Landmarks are then tokens like any other, attended to by one softmax.
        Some("nomem") => Ok(Attention::Plain),
        Some("ignore_mem") => {
            Err(ReleasedError::Unsupported { key, value: "ignore_mem", reason: IGNORE_MEM })
        }
        _ => Err(wrong(key, softmax, "mem_opt or nomem")),
    }
}

fn count(args: &Args, key: &'static str) -> Result<usize, ReleasedError> {
    let value = args.get(key).ok_or(ReleasedError::Missing(key))?;
    let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
    count.ok_or_else(|| wrong(key, value, "a whole number, at least 1"))
}

fn wrong(key: &'static str, value: &Value, expected: &'static str) -> ReleasedError {
    let text = value.to_string();
    let found =
        if text.chars().count() > 40 { text.chars().take(40).chain("...".chars()).collect() } else { text };
    ReleasedError::Value { key, found, expected }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn settings() -> Value {
        json!({"vocab_size": 128, "sequence_length": 64, "n_embd": 64, "n_head": 4, "n_layer": 2, "bias": true,
            "softmax_func": "mem_opt", "landmark_id": 100, "model": "landmark", "unknown": [1]})
    }

    fn with(key: &str, value: Value) -> Result<ModelConfig, ReleasedError> {
        let mut settings = settings();
        settings[key] = value;
        config(settings.as_object().unwrap())
    }

    #[test]
    fn a_summary_describes_a_model() {
        let text = json!({"train_loss": [], "args": settings()}).to_string();
        let config = config(&parse_summary(text.as_bytes()).unwrap()).unwrap();
        assert_eq!((config.width, config.layers, config.heads, config.hidden), (64, 2, 4, 256));
        assert_eq!((config.landmark_id, config.context, config.biases), (100, 64, Biases::ALL));
        assert_eq!(config.attention, Attention::Landmark);
    }

    #[test]
    fn attention_follows_model_and_softmax() {
        let attention = |key: &str, value: &str| with(key, json!(value)).map(|config| config.attention);
        assert_eq!(attention("model", "base_rotary"), Ok(Attention::Plain));
        assert_eq!(attention("model", "landmark_with_cmt"), Ok(Attention::LandmarkWithMiss));
        assert_eq!(attention("softmax_func", "nomem"), Ok(Attention::Plain));
        let error = attention("softmax_func", "ignore_mem").unwrap_err().to_string();
        assert!(error.contains("softmax_func is ignore_mem") && error.contains("ablation"), "{error}");
        assert!(attention("softmax_func", "mem").is_err() && attention("model", "gpt").is_err());
    }

    /// Each of these settings would ask for something impossible or enormous.
    #[test]
    fn hostile_numbers_are_errors() {
        let largest = json!(u64::MAX);
        for (key, value) in [
            ("n_embd", largest.clone()),
            ("n_embd", json!(0)),
            ("n_embd", json!(1u64 << 24)),
            ("n_embd", json!(66)),
            ("n_layer", largest.clone()),
            ("n_layer", json!(0)),
            ("n_head", json!(0)),
            ("n_head", largest.clone()),
            ("n_head", json!(-4)),
            ("vocab_size", json!(1.5)),
            ("vocab_size", largest.clone()),
            ("vocab_size", json!(100)),
            ("sequence_length", largest.clone()),
            ("landmark_id", largest),
            ("landmark_id", json!("100")),
            ("bias", json!("false")),
            ("model", json!(null)),
        ] {
            assert!(with(key, value.clone()).is_err(), "{key} = {value}");
        }
        let mut without = settings();
        without.as_object_mut().unwrap().remove("n_head");
        assert_eq!(config(without.as_object().unwrap()), Err(ReleasedError::Missing("n_head")));
    }

    #[test]
    fn what_is_no_summary_is_refused() {
        assert!(matches!(parse_summary(b"{\"args\": {"), Err(ReleasedError::NotJson(_))));
        for text in ["[]", "{}", "3", "{\"args\": 3}"] {
            assert_eq!(parse_summary(text.as_bytes()), Err(ReleasedError::NoArgs), "{text}");
        }
        // A stack overflow is not an error that can be caught.
        assert!(parse_summary("[".repeat(1 << 20).as_bytes()).is_err());
    }
}
