//! `landmark prepare`.

use std::path::PathBuf;

use clap::ValueEnum;

use super::{Common, DeviceArg};

/// Where text comes from, and so how documents are found in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Source {
    /// Folders train, validation and test of N.txt, one book a file.
    Pg19,
    /// proof-pile's .jsonl.gz, one paper a line.
    #[value(alias = "proof-pile", alias = "arxiv")]
    Arxivmath,
    /// .jsonl and .jsonl.zst, one document a line.
    Redpajama,
    /// Plain text files, one document each.
    Text,
}

/// How a token is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Width {
    /// Two bytes.
    Uint16,
    /// Four bytes.
    Uint32,
}

/// Flags of `landmark prepare`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:
  landmark prepare --dataset pg19 --input ~/pg19 --output ./data/pg19

OUTPUT gets train.bin and validation.bin: little-endian 16-bit tokens (32-bit for large vocabularies) without
landmarks, which training puts in.")]
pub struct PrepareArgs {
    /// What INPUT holds.
    #[arg(long, value_enum)]
    pub dataset: Source,
    /// A folder or a file.
    #[arg(long, value_name = "PATH")]
    pub input: PathBuf,
    /// Folder for train.bin and validation.bin.
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// A tokenizer.json [default: GPT-2's BPE, built in].
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// The token of --tokenizer that ends a document [default: the usual names are tried].
    #[arg(long, value_name = "TOKEN", requires = "tokenizer")]
    pub eot: Option<String>,
    /// How to store a token [default: uint16 if the vocabulary fits].
    #[arg(long, value_enum)]
    pub dtype: Option<Width>,
    /// Replace what OUTPUT holds.
    #[arg(long)]
    pub force: bool,
    /// Fraction of the documents put aside for validation, where the corpus has no validation part of its
    /// own.
    #[arg(long, value_name = "FRACTION", default_value_t = 0.005)]
    pub validation_fraction: f64,
    /// Where to compute; text is always prepared on the CPU.
    #[command(flatten)]
    pub device: DeviceArg,
    /// Flags of every command.
    #[command(flatten)]
    pub common: Common,
}
