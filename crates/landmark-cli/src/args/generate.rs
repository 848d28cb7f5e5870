//! `landmark generate`.

use std::path::PathBuf;

use super::memory::{MemoryArgs, ModelArgs};
use super::{Common, DeviceArg};

/// Flags of `landmark generate`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  landmark generate --model exps/a --prompt \"Once upon a time\" --max-new-tokens 200 --temperature 0.8
  cat book.txt | landmark generate --model llama-landmark --cache-topk 4 --memory-file /fast/scratch
  landmark generate --model llama-landmark --prompts questions.jsonl --batch-size 4 --json

Without --prompt, --prompt-file, --prompt-tokens or --prompts the prompt is read from standard input.
By default the memory is as large as the prompt needs; --lm-cache none reads the last window alone.
--prompts takes one JSON object a line, {\"prompt\": \"...\"} or {\"prompt_tokens\": [1, 2]}.")]
pub struct GenerateArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text to continue.
    #[arg(long, value_name = "TEXT", group = "prompted", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// A file with the text to continue.
    #[arg(long, value_name = "FILE", group = "prompted")]
    pub prompt_file: Option<PathBuf>,
    /// The tokens to continue, as 1,2,3.
    #[arg(long, value_name = "IDS", value_delimiter = ',', group = "prompted")]
    pub prompt_tokens: Option<Vec<u32>>,
    /// A file with many prompts, one JSON object a line.
    #[arg(long, value_name = "FILE", group = "prompted")]
    pub prompts: Option<PathBuf>,
    /// Prompts read and continued side by side.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub batch_size: usize,
    /// How to answer.
    #[command(flatten)]
    pub answer: AnswerArgs,
    /// How earlier text is remembered.
    #[command(flatten)]
    pub memory: MemoryArgs,
    /// Where to compute.
    #[command(flatten)]
    pub device: DeviceArg,
    /// Flags of every command.
    #[command(flatten)]
    pub common: Common,
}

/// How many tokens, how they are chosen, and what is told about them.
#[derive(Clone, Debug, clap::Args)]
pub struct AnswerArgs {
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
    /// Go on after the token that ends a text (prompts of tokens always do).
    #[arg(long, help_heading = "Choice of tokens")]
    pub ignore_eos: bool,
    /// With --json: the five best logits of every new token.
    #[arg(long, help_heading = "What was looked up")]
    pub logits: bool,
    /// Which blocks each layer and head fetched for every new token: shown behind the text, or part of the JSON.
    #[arg(long, help_heading = "What was looked up")]
    pub lookups: bool,
    /// The same as a page of its own: the text with its blocks shaded.
    #[arg(long, value_name = "FILE", help_heading = "What was looked up")]
    pub lookups_html: Option<PathBuf>,
    /// Print the text when it is complete, not token by token.
    #[arg(long)]
    pub no_stream: bool,
}

impl AnswerArgs {
    /// Whether it is kept what was looked up.
    pub fn wants_lookups(&self) -> bool {
        self.lookups || self.lookups_html.is_some()
    }
}
