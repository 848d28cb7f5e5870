//! `landmark demo`: flags to settings.

use crate::args::demo::DemoArgs;
use crate::error::{Error, Result};
use crate::report::Report;

/// Shows what landmark attention does, from nothing.
///
/// # Errors
/// If the flags cannot be followed, or a step fails.
pub fn run(args: &DemoArgs, _report: &Report) -> Result<()> {
    args.device.device.select()?;
    if args.iterations == Some(0) {
        return Err(Error::flag("--iterations", "must be at least 1", ""));
    }
    Err(Error::NotWired("demo"))
}
