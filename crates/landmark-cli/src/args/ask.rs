//! `landmark index` and `landmark ask`.

use std::path::PathBuf;

use super::generate::AnswerArgs;
use super::memory::{MemoryArgs, ModelArgs};
use super::{Common, DeviceArg};

/// Flags of `landmark index`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:
  landmark index moby-dick.txt --model llama-landmark -o moby-dick.memory
  landmark ask moby-dick.memory \"What colour is the whale?\"")]
pub struct IndexArgs {
    /// The text to read; - for standard input.
    #[arg(value_name = "TEXT")]
    pub text: PathBuf,
    /// The file that keeps the memory.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// How the text is remembered.
    #[command(flatten)]
    pub memory: MemoryArgs,
    /// Where to compute.
    #[command(flatten)]
    pub device: DeviceArg,
    /// Flags of every command.
    #[command(flatten)]
    pub common: Common,
}

/// Flags of `landmark ask`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:
  landmark ask moby-dick.memory \"What colour is the whale?\" --lookups-html answer.html

The answer is what `landmark generate` gives for the text with the question behind it. Chunks, blocks retrieved and
their choice are by default those with which the text was read.")]
#[command(mut_arg("model", |arg| arg.help("The model [default: the one that read the text]").long_help(None)))]
pub struct AskArgs {
    /// A memory that `landmark index` saved.
    #[arg(value_name = "MEMORY")]
    pub saved: PathBuf,
    /// The question.
    #[arg(value_name = "QUESTION", allow_hyphen_values = true, required_unless_present = "question_tokens")]
    pub question: Option<String>,
    /// The question as tokens, 1,2,3.
    #[arg(long, value_name = "IDS", value_delimiter = ',', conflicts_with = "question")]
    pub question_tokens: Option<Vec<u32>>,
    /// What stands before and after the question.
    #[arg(long, value_name = "TEXT", default_value = "\n{question}")]
    pub template: String,
    /// Which model; the one that read the text by default.
    #[command(flatten)]
    pub model: ModelArgs,
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
