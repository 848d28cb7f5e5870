//! `landmark lessons`.

use std::path::PathBuf;

use super::{Common, DeviceArg};

/// Flags of `landmark lessons`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:
  landmark lessons lessons.jsonl --model fresh --count 200000 --max-tokens 480
  landmark finetune --model_name_or_path fresh --train_file lessons.jsonl books.txt --output_dir trained

Writes texts from which a model learns to retrieve: prompts of landmark passkey and landmark retrieval with the right
answers behind them, one JSON object a line. The seed should be another one than that of the test.")]
pub struct LessonsArgs {
    /// The new file.
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// A model in whose tokens lengths are counted.
    #[arg(long, value_name = "PATH", required_unless_present = "tokenizer", conflicts_with = "tokenizer")]
    pub model: Option<PathBuf>,
    /// A tokenizer.json to count with instead.
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// What is taught, in equal parts: passkey, passkey_released, passkey_notes, passkey_prose, or tasks of landmark retrieval.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "passkey,niah_single_1,niah_single_2,niah_multikey_1"
    )]
    pub tasks: Vec<String>,
    /// Texts.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub count: usize,
    /// Fewest tokens of a text.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub min_tokens: usize,
    /// Most tokens of a text.
    #[arg(long, value_name = "N", default_value_t = 480)]
    pub max_tokens: usize,
    /// Seed of every draw.
    #[arg(long, value_name = "N", default_value_t = 1_000_003)]
    pub seed: u64,
    /// Where to compute (nothing is).
    #[command(flatten)]
    pub device: DeviceArg,
    /// Flags of every command.
    #[command(flatten)]
    pub common: Common,
}
