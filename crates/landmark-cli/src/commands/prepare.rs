//! `landmark prepare`: flags to settings.

use crate::args::prepare::PrepareArgs;
use crate::error::{Error, Result};
use crate::report::Report;

/// Checks the flags. Reads nothing.
///
/// # Errors
/// Names the flag that cannot be followed.
pub fn check(args: &PrepareArgs) -> Result<()> {
    args.device.device.select()?;
    if !(0.0..1.0).contains(&args.validation_fraction) {
        let reason = format!("{} is not a fraction from 0 to below 1", args.validation_fraction);
        return Err(Error::flag(
            "--validation-fraction",
            reason,
            "0.01 puts one document in a hundred aside",
        ));
    }
    Ok(())
}

/// Prepares token streams.
///
/// # Errors
/// If the flags cannot be followed, or text cannot be read or tokens written.
pub fn run(args: &PrepareArgs, _report: &Report) -> Result<()> {
    check(args)?;
    Err(Error::NotWired("prepare"))
}
