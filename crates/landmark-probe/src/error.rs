//! The one error type of the crate.

/// What went wrong in somebody else's code: a tokenizer's, a model's.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The result of a step of a probe.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a probe cannot be made, run or reported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A prompt that must be longer than it may be.
    #[error(
        "{task}: a prompt of {length} tokens has no room for the question, which alone takes {least}; \
         ask for at least {least} tokens"
    )]
    TooShort {
        /// The task.
        task: String,
        /// Tokens that the prompt may have.
        length: usize,
        /// Tokens that it has without any filler.
        least: usize,
    },
    /// A task of a name that there is not.
    #[error("there is no task {name:?}; there are {known}")]
    UnknownTask {
        /// The name given.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// A setting that makes no sense.
    #[error("{setting}: {reason}")]
    Setting {
        /// Which.
        setting: &'static str,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// Text that could not be counted in tokens.
    #[error("the prompt of {id} cannot be tokenised: {source}")]
    Count {
        /// The question.
        id: String,
        /// Why.
        source: Failure,
    },
    /// A question that was not answered.
    #[error("{id} was not answered: {source}")]
    Unanswered {
        /// The question.
        id: String,
        /// Why.
        source: Failure,
    },
    /// A file of prompts or answers that is not what it should be.
    #[error("{file}: {reason}")]
    File {
        /// The file.
        file: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// A file that cannot be read or written.
    #[error(transparent)]
    Formats(#[from] landmark_formats::Error),
}
