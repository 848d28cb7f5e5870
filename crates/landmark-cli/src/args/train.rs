//! `landmark train`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use super::Common;
use super::released::Given;

/// Flags of `landmark train`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(
    after_help = "Example, the paper's model on PG19 (the released command line, with another program's name):
  landmark train --config_format rotary --model landmark --n_embd 1024 --n_head 8 --n_layer 12 \\
      --batch_size 16 --sequence_length 512 --acc_steps 8 --dataset pg19 --iterations 240000 \\
      --mem_freq 50 --save_checkpoint_freq 20000

Flags with dashes may be written with underscores. Results go to
RESULTS_BASE_FOLDER/DATASET/MODEL/EXP_NAME; an experiment that is finished there is skipped."
)]
pub struct TrainArgs {
    /// The released program's flags.
    #[command(flatten)]
    pub given: Given,
    /// Folder with train.bin and validation.bin, as `landmark prepare` writes them [default: ./data/pg19,
    /// ./data/proof-pile for arxivmath, ./data/NAME for others].
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    pub data_dir: Option<PathBuf>,
    /// Go on from the newest checkpoint of this experiment, or from the one given.
    #[arg(long, value_name = "CHECKPOINT", num_args = 0..=1, help_heading = "Beyond the released program")]
    pub resume: Option<Option<PathBuf>>,
    /// Keep this many of the checkpoints of --save-checkpoint-freq [default: all].
    #[arg(long, value_name = "N", help_heading = "Beyond the released program")]
    pub keep_last: Option<NonZeroUsize>,
    /// Flags of every command.
    #[command(flatten)]
    pub common: Common,
}
