//! `landmark eval`.

use std::path::PathBuf;

use super::Common;
use super::released::Given;

/// Flags of `landmark eval`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(
    after_help = "Example, rows of 4096 tokens read 250 at a time, with a memory of 80 blocks of which each token and head takes 4:
  landmark eval --checkpoint exps/pg19_landmark --mem_freq None --eval_seq_length 4096 --mid_length 250 \\
      --use_cache --lm_cache mem --mem_cache_size 80 --mem_cache_freq 50 --cache_topk 4

Example, table 1 of the paper for two checkpoints (start it again to go on where it stopped):
  landmark eval --table 1 --checkpoint pg19_landmark=exps/a --checkpoint pg19_baseline=exps/b

Settings not given are those with which the checkpoint was trained."
)]
pub struct EvalArgs {
    /// A checkpoint or its folder. With --table, NAME=PATH for each checkpoint there is, NAME being
    /// pg19_landmark, pg19_baseline, pg19_xl, arxiv_landmark or arxiv_baseline.
    #[arg(long, value_name = "PATH", required = true, action = clap::ArgAction::Append)]
    pub checkpoint: Vec<String>,
    /// Evaluate this stream of 16-bit tokens, as it is (landmarks are put in only if --mem-freq is given
    /// here). With --table, pg19=FILE or arxivmath=FILE.
    #[arg(long, value_name = "FILE", action = clap::ArgAction::Append, help_heading = "Data")]
    pub data: Vec<String>,
    /// Folder with validation.bin [default: as for `landmark train`].
    #[arg(long, value_name = "DIR", conflicts_with = "data", help_heading = "Data")]
    pub data_dir: Option<PathBuf>,
    /// Evaluate all of table 1 or 2 of the paper for which there are checkpoints.
    #[arg(long, value_name = "1|2", value_parser = clap::value_parser!(u8).range(1..=2))]
    pub table: Option<u8>,
    /// Where --table keeps its results.
    #[arg(long, value_name = "DIR", default_value = "./exps/tables", requires = "table")]
    pub output: PathBuf,
    /// The released program's flags.
    #[command(flatten)]
    pub given: Given,
    /// Flags of every command.
    #[command(flatten)]
    pub common: Common,
}
