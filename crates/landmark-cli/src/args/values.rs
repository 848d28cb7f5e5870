//! Values of flags: the words of the released program, `None` among them.

use landmark_model::record::Granularity;
use std::fmt::Display;
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A value, or `None` spelled out, as in `--mem_freq None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Maybe<T>(pub Option<T>);

impl<T: FromStr<Err: Display>> FromStr for Maybe<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Maybe<T>, String> {
        match text {
            "None" | "none" => Ok(Maybe(None)),
            text => text
                .parse()
                .map(|value| Maybe(Some(value)))
                .map_err(|error: T::Err| format!("{error} (or None)")),
        }
    }
}

/// A number that is one: neither infinite nor NaN, which no setting can be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Finite(pub f64);

impl FromStr for Finite {
    type Err = String;

    fn from_str(text: &str) -> Result<Finite, String> {
        let number = text.parse::<f64>().map_err(|_| format!("{text:?} is not a number"))?;
        if number.is_finite() { Ok(Finite(number)) } else { Err("give a finite number".to_owned()) }
    }
}

/// Reads yes or no as Python writes them. The released program takes `--bias` with `type=bool`, under which
/// every word that is not empty, `False` included, means yes; here `False` means no.
pub fn python_bool(text: &str) -> Result<bool, String> {
    match text {
        "True" | "true" | "1" => Ok(true),
        "False" | "false" | "0" | "" => Ok(false),
        _ => Err("give true or false".to_owned()),
    }
}

/// `--config_format`: the released program knows two names, and one of them works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum ConfigFormat {
    /// The released default; here it means the same as `rotary`.
    #[default]
    Base,
    /// The one set of flags there is.
    Rotary,
}

/// `--model`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum Model {
    /// A plain transformer.
    Base,
    /// A plain transformer, by the name that is the released default.
    #[default]
    BaseRotary,
    /// Landmark attention.
    Landmark,
    /// Landmark attention with a context miss token.
    LandmarkWithCmt,
}

/// `--scheduler`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum Scheduler {
    /// OneCycle, in straight lines.
    Linear,
    /// OneCycle, along cosines.
    #[default]
    Cos,
    /// A constant rate.
    None,
    /// Linear warm-up, then a cosine of --cycles periods.
    WarmupCos,
}

/// `--opt`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    /// Adam with decoupled weight decay.
    #[default]
    Adamw,
    /// Gradient descent with momentum 0.9.
    Sgd,
    /// Adafactor.
    Adafactor,
}

/// `--dtype`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Dtype {
    /// bfloat16 products, float32 weights.
    #[default]
    #[value(name = "torch.bfloat16", aliases = ["bfloat16", "bf16"])]
    #[serde(rename = "torch.bfloat16")]
    Bfloat16,
    /// float16 products, float32 weights.
    #[value(name = "torch.float16", aliases = ["float16", "f16"])]
    #[serde(rename = "torch.float16")]
    Float16,
    /// float32 throughout.
    #[value(name = "torch.float32", aliases = ["float32", "f32"])]
    #[serde(rename = "torch.float32")]
    Float32,
}

/// `--softmax_func`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum SoftmaxFunc {
    /// Grouped softmax.
    #[default]
    MemOpt,
    /// One softmax over everything, landmarks included.
    Nomem,
    /// A name that the released program lists but does not implement.
    Mem,
    /// One softmax over everything but landmarks.
    IgnoreMem,
}

/// `--positional_encoder`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum PositionalEncoder {
    /// Rotary positions.
    #[default]
    Rotary,
    /// Rotary positions that jump at random after each landmark, in training.
    RotaryMemJump,
}

/// `--distributed_backend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum DistributedBackend {
    /// Several GPUs through NCCL.
    Nccl,
}

impl FromStr for DistributedBackend {
    type Err = String;

    fn from_str(text: &str) -> Result<DistributedBackend, String> {
        ValueEnum::from_str(text, false).map_err(|_| format!("there is no backend {text:?}; give nccl"))
    }
}

/// `--lm_cache`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum LmCache {
    /// No memory.
    #[default]
    #[value(alias = "None")]
    None,
    /// Blocks, found by their landmarks.
    Mem,
    /// The last keys and values.
    Kv,
    /// The last keys and values, in training too.
    KvTrain,
}

/// `--cache_selection_method`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// Each token and head chooses for itself.
    #[default]
    PerTokenAndHead,
    /// One choice a token.
    MaxOverHeads,
    /// One choice a head.
    MaxOverTokens,
}

impl Selection {
    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<Selection> {
        <Selection as ValueEnum>::from_str(name, false).ok()
    }
}

impl From<Granularity> for Selection {
    fn from(granularity: Granularity) -> Selection {
        match granularity {
            Granularity::PerTokenAndHead => Selection::PerTokenAndHead,
            Granularity::MaxOverHeads => Selection::MaxOverHeads,
            Granularity::MaxOverTokens => Selection::MaxOverTokens,
        }
    }
}

/// `--optimization_process`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum OptimizationProcess {
    /// Segments of --total_sequence_length, carrying keys and values along.
    TransformerXl,
    /// One window at a time.
    #[default]
    Landmark,
}

/// `--accumulation`: what the gradients of the micro-batches of a step become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum Accumulation {
    /// Their sum, as released.
    #[default]
    Sum,
    /// Their mean.
    Mean,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_is_a_value() {
        assert_eq!("None".parse(), Ok(Maybe::<usize>(None)));
        assert_eq!("7".parse(), Ok(Maybe(Some(7usize))));
        assert!("-7".parse::<Maybe<usize>>().is_err());
        assert_eq!("2e-3".parse(), Ok(Finite(0.002)));
        assert!("inf".parse::<Finite>().is_err() && "nan".parse::<Maybe<Finite>>().is_err());
    }

    #[test]
    fn false_is_not_true() {
        assert_eq!(python_bool("False"), Ok(false));
        assert_eq!(python_bool("True"), Ok(true));
        assert!(python_bool("maybe").is_err());
    }
}
