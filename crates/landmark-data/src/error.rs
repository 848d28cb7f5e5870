//! What can go wrong, each saying where and what to do about it.

use std::io;
#[cfg(not(target_family = "wasm"))]
use std::path::Path;
use std::path::PathBuf;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any failure of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused to read or write a file or folder.
    #[error(transparent)]
    File(#[from] landmark_formats::Error),
    /// A compressed file ended early or is damaged.
    #[error("{}, after line {line}: damaged or cut short ({source}); fetch or compress the file again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Lines that were whole.
        line: u64,
        /// What the decoder said.
        source: io::Error,
    },
    /// Text that is not UTF-8.
    #[error("{}, line {line} (byte {offset}): not UTF-8; convert the file first, for example with iconv", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Line of the offending byte, from 1.
        line: u64,
        /// The offending byte's offset: in the file, or for a line of JSON in the line.
        offset: u64,
    },
    /// A line or an unbroken document longer than the limit.
    #[error("{}, line {line}: {what} is longer than {limit} bytes; split it, or raise the limit", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Line where it begins, from 1.
        line: u64,
        /// What is too long.
        what: &'static str,
        /// The limit, in bytes.
        limit: usize,
    },
    /// A line that is not the JSON object that was expected.
    #[error("{}, line {line}: {message}; every line must be a JSON object with a string \"text\"", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        message: String,
    },
    /// The folder does not look like the data set that was named.
    #[error("{}: {message}", path.display())]
    Corpus {
        /// The folder or file.
        path: PathBuf,
        /// What was expected.
        message: String,
    },
    /// A tokenizer that cannot be used.
    #[error("{name}: {message}")]
    Tokenizer {
        /// The tokenizer's file or name.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// A document that the tokenizer refuses, or a token that the stream's type cannot hold.
    #[error("{}: {message}", path.display())]
    Encode {
        /// The document's file (and line).
        path: PathBuf,
        /// What happened.
        message: String,
    },
    /// An option with an impossible value.
    #[error("{option}: {message}")]
    Option {
        /// The option, as the command line spells it.
        option: &'static str,
        /// What it may be.
        message: String,
    },
    /// The output folder holds something else.
    #[error("{}: {message}; use --force to replace it, or name another output folder", path.display())]
    Exists {
        /// The output folder.
        path: PathBuf,
        /// What it holds.
        message: String,
    },
    /// A token stream or its `dataset.json` that is not what it should be.
    #[error("{}: {message}", path.display())]
    Stream {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        message: String,
    },
}

/// For `map_err`: a read error of `path`.
#[cfg(not(target_family = "wasm"))]
pub(crate) fn reading(path: &Path) -> impl Fn(io::Error) -> Error {
    |source| landmark_formats::Error::io(path, "read", source).into()
}

/// For `map_err`: a write error of `path`.
#[cfg(not(target_family = "wasm"))]
pub(crate) fn writing(path: &Path) -> impl Fn(io::Error) -> Error {
    |source| landmark_formats::Error::io(path, "write", source).into()
}
