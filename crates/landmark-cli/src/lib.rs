//! The `landmark` command: prepare text, train, evaluate, generate.
//!
//! A command goes through three stages, and each knows less of the world than the next. [`args`] **parses**
//! the command line and touches nothing. [`settings`] and the first half of each of the [`commands`]
//! **resolve** it: defaults, a checkpoint's own settings and the flags given become one checked record. Only
//! then a command **runs**. So every mistake that can be seen before work begins is reported before work
//! begins.
//!
//! Results go to standard output (under `--json` one JSON object and nothing else), everything else to
//! standard error; see [`report`].

#![deny(unsafe_code)]

pub mod adapted;
pub mod adapter;
pub mod answer;
pub mod answerer;
pub mod args;
pub mod backend;
pub mod checkpoint;
pub mod commands;
pub mod device;
pub mod embedded;
mod environment;
pub mod error;
pub mod evaluation;
pub mod finetuning;
pub mod hub;
pub mod huggingface;
pub mod machine;
pub mod opened;
pub mod probe;
pub mod python;
pub mod report;
pub mod settings;
pub mod stream;
pub mod training;

use std::process::ExitCode;

pub use error::{Error, Result};

/// Runs the command line of this process. The exit code is 0 for success, 2 for a command line that cannot be
/// followed, 1 for everything else that goes wrong.
pub fn main() -> ExitCode {
    environment::prepare();
    match args::parse(std::env::args_os()).and_then(|parsed| commands::run(&parsed)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report::failure(&error),
    }
}
