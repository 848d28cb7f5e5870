//! `landmark passkey`, and the flags that it shares with `landmark retrieval`.

use std::path::PathBuf;

use clap::ValueEnum;

use super::memory::{MemoryArgs, ModelArgs};
use super::{Common, DeviceArg};

/// What the pass key is hidden in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FillerName {
    /// The released sentence, again and again.
    Released,
    /// A few short sentences in random order.
    Notes,
    /// Sentences by rule, no two alike.
    Prose,
}

/// Flags of everything that asks questions about long prompts.
#[derive(Clone, Debug, clap::Args)]
pub struct ProbeArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Where in the text the answer stands, as fractions 0,0.25,1 [default: at random; passkey without --model and --num-tests:
    /// 0,0.25,0.5,0.75,1].
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub depths: Vec<f64>,
    /// Seed of the prompts: the same seed, the same prompts.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub seed: u64,
    /// Folder for results.json, results.csv, results.svg and answers.jsonl. A run that was stopped goes on there [default: none;
    /// passkey without --model puts all but answers.jsonl into passkey-results, over what an earlier run left].
    #[arg(long, value_name = "DIR", help_heading = "Files")]
    pub output_dir: Option<PathBuf>,
    /// Write the prompts as JSON lines, for other programs, and ask nothing.
    #[arg(long, value_name = "FILE", visible_alias = "offline-prompts", help_heading = "Files", conflicts_with_all = ["prompts", "answers"])]
    pub dump_prompts: Option<PathBuf>,
    /// Ask the prompts of a file that --dump-prompts wrote, instead of making them.
    #[arg(long, value_name = "FILE", help_heading = "Files")]
    pub prompts: Option<PathBuf>,
    /// Score another program's answers to --prompts: JSON lines of {"id": ..., "answer": ...}.
    #[arg(long, value_name = "FILE", help_heading = "Files", requires = "prompts")]
    pub answers: Option<PathBuf>,
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

impl ProbeArgs {
    /// Whether the built-in model is asked: none is named, and one is needed.
    pub fn asks_builtin(&self) -> bool {
        self.model.model.is_none() && self.dump_prompts.is_none() && self.answers.is_none()
    }
}

/// Flags of `landmark passkey`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  landmark passkey
  landmark passkey --lengths 131072 --num-tests 20 --filler notes
  landmark passkey --model exps/a
  landmark passkey --model exps/a --lengths 4096,32768 --num-tests 50 --json
  landmark passkey --model exps/a --lengths 4096,8192,16384 --depths 0,0.25,0.5,0.75,1 --num-tests 10 --output-dir passkey
  landmark passkey --lengths 4096 --dump-prompts prompts.jsonl
  landmark passkey --prompts prompts.jsonl --answers theirs.jsonl

Without --model the built-in model is asked, which needs nothing but this program: one question at each of five depths of
texts of 512, 2,048, 8,192 and 32,768 tokens. That takes some minutes on two cores and seconds on a GPU, prints how
many answers were right, and draws it in passkey-results/results.svg.

With --model, but without --lengths or --n-values, the prompts are as long as the released test's. An answer is right if
the first integer in its first 10 tokens is the pass key.")]
pub struct PasskeyArgs {
    /// Lengths of the prompts, in tokens [default without --model: 512,2048,8192,32768].
    #[arg(long, value_name = "LIST", value_delimiter = ',', conflicts_with = "n_values")]
    pub lengths: Vec<usize>,
    /// Lengths of the filler, in characters, as in the released test [default with --model: 0,100,500,1000,...,38000].
    #[arg(long, value_name = "LIST", value_delimiter = ',', visible_alias = "garbage")]
    pub n_values: Vec<usize>,
    /// Questions of each length (and depth) [default: 50; without --model 1].
    #[arg(long, value_name = "N")]
    pub num_tests: Option<usize>,
    /// What the pass key is hidden in [default: released; without --model prose].
    #[arg(long, value_enum)]
    pub filler: Option<FillerName>,
    /// Flags shared with `retrieval`.
    #[command(flatten)]
    pub probe: ProbeArgs,
}
