//! What can go wrong while a program is compiled or run.
//!
//! Mistakes made while *recording* (shapes that do not fit) are mistakes of the programmer, and panic with
//! the op, the operand and both shapes. Everything that can depend on a user's input is an [`Error`].

/// What a backend reports.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes given for a tensor do not fit it.
    #[error("tensor `{tensor}` holds {expected} bytes, but {given} were given")]
    Size {
        /// Name of the tensor.
        tensor: String,
        /// Bytes that it holds.
        expected: usize,
        /// Bytes that were given.
        given: usize,
    },
    /// An index stored in a tensor points outside another one.
    #[error(
        "{op}: index {index} in `{tensor}` is out of range (there are {limit}); check that the tokens match the model's vocabulary"
    )]
    Index {
        /// The op that met it.
        op: &'static str,
        /// Name of the tensor that holds the index.
        tensor: String,
        /// The index.
        index: u64,
        /// How many there are.
        limit: usize,
    },
    /// The backend cannot run this op as it was recorded.
    #[error("{op}: {reason}")]
    Unsupported {
        /// The op.
        op: &'static str,
        /// Why, and what to do.
        reason: String,
    },
    /// There is not enough memory.
    #[error("out of memory: {needed} bytes are needed for {what}")]
    OutOfMemory {
        /// Bytes asked for.
        needed: u64,
        /// What they were for.
        what: String,
    },
    /// Pages of the memory that could not be stored or fetched, in the words of the store.
    #[error("{0}")]
    Pages(String),
    /// The budgets of a paged memory are too small, and there is no file for the rest.
    #[error(
        "the landmark memory outgrew its {budget} bytes: raise --host-memory or --device-memory, or give --memory-file FILE for the rest"
    )]
    Budget {
        /// Bytes of pages allowed.
        budget: u64,
    },
    /// A device or its driver failed.
    #[error("{0}")]
    Device(String),
}

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
