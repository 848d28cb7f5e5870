//! `landmark weight-diff`.

use std::path::PathBuf;

use clap::ValueEnum;

use super::convert::WeightType;
use super::values::python_bool;
use super::{Common, DeviceArg};

/// The two directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Task {
    /// The difference of fine-tuned and raw weights.
    #[value(aliases = ["make_diff", "make-diff"])]
    Make,
    /// Fine-tuned weights from raw ones and a difference.
    Recover,
}

/// Flags of `landmark weight-diff`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  landmark weight-diff recover --path_raw llama-7b --path_diff landmark-attention-llama7b-wdiff --path_tuned tuned --preset paper
  landmark weight-diff make --path_raw llama-7b --path_tuned tuned --path_diff diff

Weights are read and written tensor by tensor, piece by piece: memory does not grow with the model. --device is
accepted as in the released program; sums are made on the CPU.")]
pub struct WeightDiffArgs {
    /// What to do.
    #[arg(value_enum)]
    pub task: Task,
    /// Folder of the raw model, in Hugging Face's layout.
    #[arg(long, value_name = "DIR")]
    pub path_raw: PathBuf,
    /// Folder of the difference.
    #[arg(long, value_name = "DIR")]
    pub path_diff: PathBuf,
    /// Folder of the fine-tuned model. Without it, recover checks the sum and writes nothing.
    #[arg(long, value_name = "DIR", required_if_eq("task", "make"))]
    pub path_tuned: Option<PathBuf>,
    /// What the files do not say: paper (the weights published in 2023).
    #[arg(long, value_name = "NAME")]
    pub preset: Option<String>,
    /// Check the sum of all weights against checksum_psum.txt, or the preset's.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value = "true", value_parser = python_bool, value_name = "BOOL")]
    pub check_integrity_naively: bool,
    /// Accepted, and without effect, as in the released program.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_parser = python_bool, value_name = "BOOL")]
    pub test_inference: Option<bool>,
    /// Number format of the weights written.
    #[arg(long, value_enum, default_value = "f32")]
    pub dtype: WeightType,
    /// Where to compute: the CPU, whatever is given.
    #[command(flatten)]
    pub device: DeviceArg,
    /// Flags of every command.
    #[command(flatten)]
    pub common: Common,
}
