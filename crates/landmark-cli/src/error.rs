//! What can go wrong, said so that the reader knows what to do.
//!
//! A message is one line that names the flag or file at fault; a second line, `help: ...`, says what to do
//! where the first does not. What the user asked for and cannot have is a usage error (exit code 2); what the
//! world refused is not (exit code 1).

use std::error::Error as Failure;
use std::path::PathBuf;

use bytesize::ByteSize;
use landmark_model::batch::BatchError;
use landmark_model::sample::SampleError;
use landmark_model::schedule::ScheduleError;

/// The result of a step of a command.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a command ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `--help` or `--version`: text for standard output, and success.
    #[error("{0}")]
    Shown(String),
    /// A command line that does not parse.
    #[error("{message}")]
    Parse {
        /// What is wrong.
        message: String,
        /// What to do.
        help: String,
    },
    /// A flag with a value that makes no sense, alone or beside the others.
    #[error("{flag}: {reason}")]
    Flag {
        /// The flag, with its dashes.
        flag: String,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        help: String,
    },
    /// A setting stored in a file that makes no sense.
    #[error("{}: {key}: {reason}", path.display())]
    Stored {
        /// The file.
        path: PathBuf,
        /// The setting's name in it.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file or folder that cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file or folder that is not what it should be.
    #[error("{}: {reason}", path.display())]
    Input {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        help: String,
    },
    /// A device that this build or machine does not have.
    #[error("--device {device}: {reason}")]
    Device {
        /// The device asked for.
        device: String,
        /// Why it cannot be had.
        reason: String,
    },
    /// More memory than there is.
    #[error("out of memory: {} are needed for {what}", ByteSize(*needed))]
    Memory {
        /// Bytes asked for.
        needed: u64,
        /// What they were for.
        what: String,
        /// What to do.
        help: &'static str,
    },
    /// A learning rate schedule that cannot be followed.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// A stream from which batches cannot be drawn.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// Tokens that cannot be chosen.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// A model that cannot be loaded or run.
    #[error(transparent)]
    Model(#[from] landmark_model::engine::Error),
    /// Text that cannot be generated.
    #[error(transparent)]
    Generate(#[from] landmark_model::generate::Error),
    /// A file of a known format that cannot be read or written.
    #[error(transparent)]
    Formats(#[from] landmark_formats::Error),
    /// A probe that cannot be made, run or reported.
    #[error(transparent)]
    Probe(landmark_probe::Error),
    /// A corpus, tokenizer or token stream that cannot be used.
    #[error(transparent)]
    Data(#[from] landmark_data::Error),
}

/// Settings of a probe are flags of the same names.
impl From<landmark_probe::Error> for Error {
    fn from(error: landmark_probe::Error) -> Error {
        match error {
            landmark_probe::Error::Setting { setting, reason } => {
                Error::flag(&format!("--{setting}"), reason, "")
            }
            landmark_probe::Error::UnknownTask { .. } => Error::flag("--tasks", error.to_string(), ""),
            other => Error::Probe(other),
        }
    }
}

impl Error {
    /// A flag whose value makes no sense.
    pub fn flag(flag: &str, reason: impl Into<String>, help: impl Into<String>) -> Error {
        Error::Flag { flag: flag.to_owned(), reason: reason.into(), help: help.into() }
    }

    /// A file or folder that the system refused.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Error {
        Error::Io { path: path.into(), source }
    }

    /// The same error; but if memory ran out anywhere, with what to do about it.
    pub fn for_want_of_memory(self, help: &'static str) -> Error {
        match wanted_memory(&self) {
            Some((needed, what)) => Error::Memory { needed, what, help },
            None => self,
        }
    }

    /// The second line of the message, if there is one.
    pub fn help(&self) -> Option<&str> {
        match self {
            Error::Parse { help, .. } | Error::Flag { help, .. } | Error::Input { help, .. } => {
                Some(help.as_str()).filter(|help| !help.is_empty())
            }
            Error::Memory { help, .. } => Some(help),
            Error::Stored { .. } => Some(
                "the file is damaged, or was written by another program; \
                 a flag of the same name on the command line takes precedence",
            ),
            Error::Device { .. } => Some(
                "use --device cpu, or --device auto for the best there is; landmark info says what was found",
            ),
            _ => None,
        }
    }

    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Shown(_) => 0,
            Error::Parse { .. }
            | Error::Flag { .. }
            | Error::Device { .. }
            | Error::Schedule(_)
            | Error::Sample(SampleError::Temperature(_) | SampleError::TopK | SampleError::TopP(_)) => 2,
            _ => 1,
        }
    }
}

/// How many bytes there were too few, and for what, if that is what an error is about.
fn wanted_memory(error: &(dyn Failure + 'static)) -> Option<(u64, String)> {
    use landmark_core::Error as Core;
    use landmark_model::{engine, generate};
    let inner: &(dyn Failure + 'static) =
        if let Some(Core::OutOfMemory { needed, what }) = error.downcast_ref() {
            return Some((*needed, what.clone()));
        } else if let Some(engine::Error::Backend(error)) = error.downcast_ref() {
            error
        } else if let Some(generate::Error::Engine(error)) = error.downcast_ref() {
            error
        } else {
            match error.downcast_ref::<Error>()? {
                Error::Model(error) => error,
                Error::Generate(error) => error,
                Error::Probe(landmark_probe::Error::Unanswered { source, .. }) => &**source,
                _ => return None,
            }
        };
    wanted_memory(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_want_of_memory_is_found_wherever_it_is_told() {
        let core = || landmark_core::Error::OutOfMemory { needed: 3 << 30, what: "weights".into() };
        let engine = || landmark_model::engine::Error::from(core());
        let unanswered = landmark_probe::Error::Unanswered {
            id: "a question".into(),
            source: Box::new(Error::Generate(engine().into())),
        };
        for error in [Error::Model(engine()), Error::Generate(engine().into()), Error::Probe(unanswered)] {
            let error = error.for_want_of_memory("take less");
            assert_eq!(error.to_string(), "out of memory: 3.0 GiB are needed for weights");
            assert_eq!((error.help(), error.exit_code()), (Some("take less"), 1));
        }
        let other = Error::Model(landmark_model::engine::Error::Missing("w".into()));
        assert!(matches!(other.for_want_of_memory("take less"), Error::Model(_)));
    }
}
