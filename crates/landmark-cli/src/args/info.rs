//! `landmark info`.

use std::path::PathBuf;

use super::{Common, DeviceArg};

/// Flags of `landmark info`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  landmark info
  landmark info exps/pg19/landmark/my-run
  landmark info hf://owner/name
  landmark info moby-dick.memory
  landmark info data/pg19/train.bin")]
pub struct InfoArgs {
    /// A model, a checkpoint or its folder, a saved memory, or a token stream [default: describe this machine].
    #[arg(value_name = "PATH")]
    pub path: Option<PathBuf>,
    /// Where to compute.
    #[command(flatten)]
    pub device: DeviceArg,
    /// Flags of every command.
    #[command(flatten)]
    pub common: Common,
}
