//! `landmark generate`.

use std::path::PathBuf;

use super::values::{LmCache, Selection};
use super::{Common, DeviceArg};

/// Flags of `landmark generate`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  landmark generate --checkpoint exps/a --prompt \"Once upon a time\" --max-new-tokens 200 --temperature 0.8
  cat book.txt | landmark generate --checkpoint exps/a --cache-topk 4

Without --prompt, --prompt-file or --prompt-tokens the prompt is read from standard input.
By default the memory is as large as the prompt needs; --lm-cache none reads the last window alone.")]
pub struct GenerateArgs {
    /// A checkpoint or its folder.
    #[arg(long, value_name = "PATH")]
    pub checkpoint: PathBuf,
    /// The text to continue.
    #[arg(long, value_name = "TEXT", group = "prompted", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// A file with the text to continue.
    #[arg(long, value_name = "FILE", group = "prompted")]
    pub prompt_file: Option<PathBuf>,
    /// The tokens to continue, as 1,2,3.
    #[arg(long, value_name = "IDS", value_delimiter = ',', group = "prompted")]
    pub prompt_tokens: Option<Vec<u32>>,
    /// A tokenizer.json [default: GPT-2's BPE, built in].
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// Tokens to generate.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub max_new_tokens: usize,
    /// 0 for the likeliest token each time; higher is more varied.
    #[arg(long, value_name = "T", default_value_t = 0.0, help_heading = "Choice of tokens")]
    pub temperature: f32,
    /// Choose among the K likeliest tokens.
    #[arg(long, value_name = "K", help_heading = "Choice of tokens")]
    pub top_k: Option<usize>,
    /// Choose among the likeliest tokens that together reach this probability.
    #[arg(long, value_name = "P", help_heading = "Choice of tokens")]
    pub top_p: Option<f32>,
    /// Seed of the choice.
    #[arg(long, value_name = "N", default_value_t = 2, help_heading = "Choice of tokens")]
    pub seed: u64,
    /// What is remembered [default: mem for landmark models, none for others].
    #[arg(long, value_enum, help_heading = "Memory")]
    pub lm_cache: Option<LmCache>,
    /// Cached blocks (mem) or keys (kv) [default: as many as the text needs; kv: at most the trained context].
    #[arg(long, value_name = "N", help_heading = "Memory")]
    pub mem_cache_size: Option<usize>,
    /// Ordinary tokens of a block [default: as trained].
    #[arg(long, value_name = "N", help_heading = "Memory")]
    pub mem_cache_freq: Option<usize>,
    /// Blocks retrieved [default: 5, or as many as fit the trained context].
    #[arg(long, value_name = "K", help_heading = "Memory")]
    pub cache_topk: Option<usize>,
    /// How finely blocks are chosen [default: per_token_and_head].
    #[arg(long, value_enum, help_heading = "Memory")]
    pub cache_selection_method: Option<Selection>,
    /// Tokens of the chunks in which the prompt is read [default: what fits the trained context].
    #[arg(long, value_name = "N", help_heading = "Memory")]
    pub mid_length: Option<usize>,
    /// Print the text when it is complete, not token by token.
    #[arg(long)]
    pub no_stream: bool,
    /// Where to compute.
    #[command(flatten)]
    pub device: DeviceArg,
    /// Flags of every command.
    #[command(flatten)]
    pub common: Common,
}
