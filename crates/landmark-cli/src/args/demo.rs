//! `landmark demo`.

use std::path::PathBuf;

use super::{Common, DeviceArg};

/// Flags of `landmark demo`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  landmark demo
  landmark demo --data ~/notes --output ./demo-notes")]
pub struct DemoArgs {
    /// Folder of text files to train on [default: text made up by rule, with passkeys to remember].
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Folder for the corpus, the checkpoint and the loss curve.
    #[arg(long, value_name = "DIR", default_value = "./demo")]
    pub output: PathBuf,
    /// Training steps [default: what takes a few minutes on two cores].
    #[arg(long, value_name = "N")]
    pub iterations: Option<u64>,
    /// Seed of every random draw.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub seed: u64,
    /// Where to compute.
    #[command(flatten)]
    pub device: DeviceArg,
    /// Flags of every command.
    #[command(flatten)]
    pub common: Common,
}
