//! The one error type of the crate.
//!
//! Variants differ where a caller may want to act differently or where the advice differs; everything that a
//! damaged file can do wrong is one variant with a sentence, because there is only one thing to do about it.

use std::io;

/// Anything that can go wrong between a file and the values in it. `file` is the path, or the label that was
/// given with bytes from elsewhere.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {file}: {}", explain(.source))]
    Io {
        /// The file or directory.
        file: String,
        /// What was tried, as a verb: "open", "write".
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },

    /// The file is not what its format promises: truncated, altered, or made to mislead.
    #[error("{file} is not a valid {format} file: {reason}; copy or download it again")]
    Damaged {
        /// The file.
        file: String,
        /// The format that it was read as.
        format: &'static str,
        /// What is wrong with it.
        reason: String,
    },

    /// The file may be good, but this reader does not read it.
    #[error("{file} cannot be read: {reason}")]
    Unsupported {
        /// The file.
        file: String,
        /// What is not supported, and what to do instead.
        reason: String,
    },

    /// A pickle names a function whose only use there is to run code.
    #[error(
        "{file} asks for `{global}` to be called on loading, which is how a checkpoint runs code on the reader's \
         machine; nothing was executed. Do not load this file with other programs; get the weights as safetensors"
    )]
    ForbiddenGlobal {
        /// The file.
        file: String,
        /// The function, as module and name.
        global: String,
    },

    /// The file is good, but what was asked of it is not in it.
    #[error("{file} holds no {what}; it has {present}")]
    Missing {
        /// The file.
        file: String,
        /// What was looked for.
        what: String,
        /// A few of the names that are there.
        present: String,
    },

    /// A tensor cannot be had in the type or shape that was asked for, or its bytes do not fit its shape.
    #[error("tensor {name}: {reason}")]
    Tensor {
        /// The tensor, or a description where it has no name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A picture could not be drawn.
    #[error("cannot draw {file}: {reason}")]
    Drawing {
        /// The picture.
        file: String,
        /// What the drawing library said.
        reason: String,
    },
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The error of a system call on `path`; `action` is a verb, as in "cannot open x".
    pub fn io(path: &std::path::Path, action: &'static str, source: io::Error) -> Self {
        Error::Io { file: path.display().to_string(), action, source }
    }

    pub(crate) fn tensor(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Tensor { name: name.into(), reason: reason.into() }
    }
}

/// The system's message, and for the causes that a user meets, what to do about them.
fn explain(source: &io::Error) -> String {
    let advice = match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "the disk is full, free some space and run again (nothing that was there before is lost)"
        }
        io::ErrorKind::PermissionDenied => "check the permissions of the file and of its directory",
        io::ErrorKind::NotFound => "check the path",
        io::ErrorKind::ReadOnlyFilesystem => "choose a directory that can be written to",
        _ => return source.to_string(),
    };
    format!("{source}; {advice}")
}

/// Up to eight names for an error message, with the number of those left out.
pub(crate) fn some_names<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    const SHOWN: usize = 8;
    let total = names.len();
    if total == 0 {
        return "nothing".to_string();
    }
    let mut text = names.take(SHOWN).map(short).collect::<Vec<_>>().join(", ");
    if total > SHOWN {
        text.push_str(&format!(" and {} more", total - SHOWN));
    }
    text
}

/// A name from a file, cut to a length that fits an error message.
pub(crate) fn short(name: &str) -> String {
    const LONGEST: usize = 120;
    match name.char_indices().nth(LONGEST) {
        Some((cut, _)) => format!("{}...", &name[..cut]).escape_debug().to_string(),
        None => name.escape_debug().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_says_so() {
        let error = Error::Io {
            file: "out/w.safetensors".into(),
            action: "write",
            source: io::Error::from(io::ErrorKind::StorageFull),
        };
        let text = error.to_string();
        assert!(text.contains("out/w.safetensors") && text.contains("the disk is full"), "{text}");
    }

    #[test]
    fn names_in_messages_are_bounded_and_printable() {
        let names: Vec<String> = (0..20).map(|i| format!("{}\n", "x".repeat(1000 + i))).collect();
        let text = some_names(names.iter().map(String::as_str));
        assert!(text.len() < 2000 && text.contains("12 more") && !text.contains('\n'), "{text}");
    }
}
