//! `landmark bench`.

use clap::ValueEnum;

use super::values::Model;
use super::{Common, DeviceArg};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Training steps: forward, backward, update.
    Train,
    /// The forward pass alone.
    Forward,
}

/// Flags of `landmark bench`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:
  landmark bench train --json

Prints tokens a second on random tokens. The defaults are a model of 4 layers of width 256.")]
pub struct BenchArgs {
    /// What to measure.
    #[arg(value_enum)]
    pub what: What,
    /// Architecture.
    #[arg(long, value_enum, default_value = "landmark")]
    pub model: Model,
    /// Blocks of attention and MLP.
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub n_layer: usize,
    /// Attention heads.
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub n_head: usize,
    /// Width.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub n_embd: usize,
    /// Tokens of a row.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub sequence_length: usize,
    /// Rows.
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub batch_size: usize,
    /// Rows of the embedding.
    #[arg(long, value_name = "N", default_value_t = 50_304)]
    pub vocab_size: usize,
    /// Ordinary tokens between landmarks.
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub mem_freq: usize,
    /// Steps measured, after one that is not [default: as many as fit in 20 seconds].
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
    /// Seed of weights and tokens.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub seed: u64,
    /// Where to compute.
    #[command(flatten)]
    pub device: DeviceArg,
    /// Flags of every command.
    #[command(flatten)]
    pub common: Common,
}
