//! `landmark bench`: flags to settings.

use crate::args::bench::BenchArgs;
use crate::error::{Error, Result};
use crate::report::Report;
use crate::settings::{RunArgs, check};

/// The settings of the model that is measured. Reads nothing.
///
/// # Errors
/// Names the flag that cannot be followed.
pub fn settings(args: &BenchArgs) -> Result<RunArgs> {
    args.device.device.select()?;
    let run = RunArgs {
        model: args.model,
        n_layer: args.n_layer,
        n_head: args.n_head,
        n_embd: args.n_embd,
        sequence_length: args.sequence_length,
        batch_size: args.batch_size,
        vocab_size: args.vocab_size,
        mem_freq: Some(args.mem_freq),
        landmark_id: RunArgs::default().landmark_id.min(args.vocab_size.saturating_sub(1) as u32),
        seed: args.seed,
        device: args.device.device,
        ..RunArgs::default()
    };
    check::model(&run)?;
    if args.steps == Some(0) {
        return Err(Error::flag("--steps", "must be at least 1", ""));
    }
    Ok(run)
}

/// Measures speed.
///
/// # Errors
/// If the flags cannot be followed.
pub fn run(args: &BenchArgs, _report: &Report) -> Result<()> {
    settings(args)?;
    Err(Error::NotWired("bench"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, parse};

    #[test]
    fn small_vocabularies_have_a_landmark_too() {
        let resolve = |flags: &str| {
            let line = format!("landmark bench forward {flags}");
            let Command::Bench(bench) = parse(line.split_whitespace()).unwrap().command else { panic!() };
            settings(&bench)
        };
        assert_eq!(resolve("").unwrap().landmark_id, 50_260);
        assert_eq!(resolve("--vocab_size 128").unwrap().landmark_id, 127);
        assert!(resolve("--vocab_size 0").is_err());
        assert!(resolve("--n_head 3").is_err());
    }
}
