//! `landmark init`.

use std::path::PathBuf;

use super::{Common, DeviceArg};

/// Flags of `landmark init`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:
  landmark init fresh --vocabulary-from books/ --vocab-size 4096 --hidden-size 256 --num-hidden-layers 6
  landmark finetune --model_name_or_path fresh --train_file books.jsonl --output_dir trained --model_max_length 480

Writes a folder in Hugging Face's layout: a LLaMA whose weights are drawn at random, with a tokenizer. It has no landmarks
yet; landmark finetune gives it the token and trains it.")]
pub struct InitArgs {
    /// The new folder.
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// Learn the vocabulary from the .txt files of this folder.
    #[arg(long, value_name = "DIR", required_unless_present = "tokenizer", conflicts_with = "tokenizer")]
    pub vocabulary_from: Option<PathBuf>,
    /// Tokens of the vocabulary that is learned.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub vocab_size: usize,
    /// Make each digit a token of its own in the vocabulary that is learned.
    #[arg(long)]
    pub single_digits: bool,
    /// A tokenizer.json to take instead.
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// Width of the residual stream.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub hidden_size: usize,
    /// Inner width of the MLP [default: 8/3 of the width, rounded up to a multiple of 32].
    #[arg(long, value_name = "N")]
    pub intermediate_size: Option<usize>,
    /// Blocks of attention and MLP.
    #[arg(long, value_name = "N", default_value_t = 6)]
    pub num_hidden_layers: usize,
    /// Query heads.
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub num_attention_heads: usize,
    /// Key and value heads [default: as many].
    #[arg(long, value_name = "N")]
    pub num_key_value_heads: Option<usize>,
    /// Positions that it is going to be trained on.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub max_position_embeddings: usize,
    /// Base of the rotary angles.
    #[arg(long, value_name = "X", default_value_t = 10_000.0)]
    pub rope_theta: f64,
    /// Use the embedding as the output matrix.
    #[arg(long)]
    pub tie_word_embeddings: bool,
    /// Seed of the weights.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub seed: u64,
    /// Where to compute (nothing is: weights are drawn on the host).
    #[command(flatten)]
    pub device: DeviceArg,
    /// Flags of every command.
    #[command(flatten)]
    pub common: Common,
}
