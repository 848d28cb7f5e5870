//! What can go wrong, and who can do something about it.
//!
//! The page has to know one thing of a failure: whether going on with another device would help. So errors have a
//! [`kind`](Error::kind), which becomes the `name` of the JavaScript error.

/// Why the page got no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the model that cannot be used.
    #[error("{file}: {reason}; clear the stored model and load the page again")]
    File {
        /// Its name.
        file: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A text or a question that cannot be read.
    #[error("{0}")]
    Input(String),
    /// Something was asked for before what it needs.
    #[error("{0} first")]
    Order(&'static str),
    /// No prompt could be made.
    #[error(transparent)]
    Prompt(#[from] landmark_probe::Error),
    /// A text could not be encoded.
    #[error(transparent)]
    Tokenizer(#[from] landmark_data::Error),
    /// No GPU.
    #[error(transparent)]
    Open(#[from] landmark_wgpu::OpenError),
    /// The model failed.
    #[error(transparent)]
    Generate(#[from] landmark_model::generate::Error),
}

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<landmark_model::engine::Error> for Error {
    fn from(error: landmark_model::engine::Error) -> Self {
        Error::Generate(error.into())
    }
}

impl Error {
    /// `LandmarkDeviceError` if another device might do what this one did not, `LandmarkModelError` if the model's files are
    /// at fault, else `LandmarkInputError`.
    pub fn kind(&self) -> &'static str {
        use landmark_core::Error as Core;
        use landmark_model::{engine, generate};
        match self {
            Error::File { .. } => "LandmarkModelError",
            Error::Open(_)
            | Error::Generate(generate::Error::Engine(engine::Error::Backend(
                Core::Device(_) | Core::OutOfMemory { .. } | Core::Unsupported { .. },
            ))) => "LandmarkDeviceError",
            _ => "LandmarkInputError",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_device_is_told_from_a_wrong_text() {
        let lost: Error =
            landmark_model::engine::Error::from(landmark_core::Error::Device("lost".into())).into();
        assert_eq!(lost.kind(), "LandmarkDeviceError");
        assert_eq!(Error::Input("empty".into()).kind(), "LandmarkInputError");
        let file = Error::File { file: "config.json", reason: String::new() };
        assert_eq!(file.kind(), "LandmarkModelError");
    }
}
