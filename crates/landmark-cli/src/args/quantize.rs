//! `landmark quantize`.

use std::path::PathBuf;

use clap::ValueEnum;
use landmark_core::quantize::Bits;

use super::{Common, DeviceArg};

/// Flags of `landmark quantize`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:
  landmark quantize llama-7b llama-7b-q8
  landmark quantize llama-7b llama-7b-q4 --bits 4
  landmark generate --model llama-7b-q4 --device wgpu --prompt \"The pass key is\"

Writes a folder in Hugging Face's layout. Each matrix is cut into blocks of 32 numbers that share a scale: 8.5 or 4.5 bits a
number. All commands read such a folder. With --device wgpu weights stay in their blocks; elsewhere they are read as the
rounded numbers that the blocks stand for.")]
pub struct QuantizeArgs {
    /// A folder in Hugging Face's layout, or hf://OWNER/NAME.
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// The new folder.
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// Bits of a number, its share of the scale not counted.
    #[arg(long, value_enum, value_name = "BITS", default_value = "8")]
    pub bits: BlockBits,
    /// Where to compute (nothing is: weights are rounded on the host).
    #[command(flatten)]
    pub device: DeviceArg,
    /// Flags of every command.
    #[command(flatten)]
    pub common: Common,
}

/// Bits of a number in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BlockBits {
    /// 256 steps.
    #[value(name = "8", alias = "q8")]
    Eight,
    /// 16 steps.
    #[value(name = "4", alias = "q4")]
    Four,
}

impl From<BlockBits> for Bits {
    fn from(bits: BlockBits) -> Bits {
        match bits {
            BlockBits::Eight => Bits::Eight,
            BlockBits::Four => Bits::Four,
        }
    }
}
