//! `landmark convert`.

use landmark_formats::tensor::DType;
use std::path::PathBuf;

use bytesize::ByteSize;
use clap::ValueEnum;

use super::{Common, DeviceArg};

/// Flags of `landmark convert`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  landmark convert exps/pg19/landmark/my-run/ckpt.pt my-run.safetensors
  landmark convert llama-7b llama-7b-bf16 --dtype bf16 --max-shard-size 2GB
  landmark convert hf://owner/name merged --merge-lora exps/adapter

Between Hugging Face's folders: another type, other files, PyTorch's weights as safetensors, an adapter merged. Tokenizer
and unknown fields of config.json come along. A checkpoint of the released GPT (ckpt.pt with its summary.json) becomes
a safetensors file under the released names, which is what landmark train writes. Weights only: the state of an optimiser
stays behind.")]
pub struct ConvertArgs {
    /// A folder in Hugging Face's layout, hf://OWNER/NAME, a checkpoint, or a folder of checkpoints.
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// The new folder; of a GPT also the new file, if it ends in .safetensors.
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// The layout to write [default: that of the model's family].
    #[arg(long, value_enum, value_name = "LAYOUT")]
    pub to: Option<CheckpointLayout>,
    /// Type of the numbers [default: as they are].
    #[arg(long, value_enum, value_name = "TYPE")]
    pub dtype: Option<WeightType>,
    /// Largest file of weights, such as 5GB; a tensor is never cut [default: 5GB].
    #[arg(long, value_name = "SIZE")]
    pub max_shard_size: Option<ByteSize>,
    /// A folder with an adapter in PEFT's layout, to be merged into the weights.
    #[arg(long, value_name = "DIR")]
    pub merge_lora: Option<PathBuf>,
    /// Where to compute (nothing is: conversions are the host's).
    #[command(flatten)]
    pub device: DeviceArg,
    /// Flags of every command.
    #[command(flatten)]
    pub common: Common,
}

/// How a checkpoint is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CheckpointLayout {
    /// A folder as `transformers` writes and reads it: LLaMAs.
    #[value(name = "huggingface", aliases = ["hf", "transformers"])]
    HuggingFace,
    /// A file under the released program's names: GPTs.
    Landmark,
}

/// Types in which weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WeightType {
    /// 32 bits.
    #[value(alias = "float32")]
    F32,
    /// 16 bits, numbers up to 65504.
    #[value(alias = "float16")]
    F16,
    /// 16 bits, the range of 32.
    #[value(alias = "bfloat16")]
    Bf16,
}

impl WeightType {
    /// As files store it.
    pub fn stored(self) -> DType {
        match self {
            WeightType::F32 => DType::F32,
            WeightType::F16 => DType::F16,
            WeightType::Bf16 => DType::BF16,
        }
    }

    /// As a `config.json` names it.
    pub fn name(self) -> &'static str {
        match self {
            WeightType::F32 => "float32",
            WeightType::F16 => "float16",
            WeightType::Bf16 => "bfloat16",
        }
    }
}
