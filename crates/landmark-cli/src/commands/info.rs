//! `landmark info`: what there is.

use serde::Serialize;

use crate::args::info::InfoArgs;
use crate::error::{Error, Result};
use crate::report::Report;

/// What `landmark info` says about this machine.
#[derive(Debug, Serialize)]
struct Machine {
    version: &'static str,
    system: String,
    threads: usize,
    devices: Vec<&'static str>,
}

/// Describes this machine, or the file or folder given.
///
/// # Errors
/// If the file or folder cannot be read.
pub fn run(args: &InfoArgs, report: &Report) -> Result<()> {
    args.device.device.select()?;
    if args.path.is_some() {
        return Err(Error::NotWired("info PATH"));
    }
    let threads = args.common.threads.or_else(|| std::thread::available_parallelism().ok());
    let machine = Machine {
        version: env!("CARGO_PKG_VERSION"),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        threads: threads.map_or(1, std::num::NonZeroUsize::get),
        devices: vec!["cpu"],
    };
    report.print(format!(
        "landmark {} on {}, {} threads\ndevices: {} (cuda and wgpu are not part of this build)",
        machine.version,
        machine.system,
        machine.threads,
        machine.devices.join(", ")
    ))?;
    report.json(&machine)
}
