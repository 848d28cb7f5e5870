//! `dataset.json`, which says what lies in a folder of token streams and how it was made.
//!
//! It is written last: a folder with a `dataset.json` is complete. Streams without one, such as those that the
//! released program wrote, are read as `uint16`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, reading};
use crate::tokenizer::TokenizerInfo;

/// The file's name.
pub const FILE_NAME: &str = "dataset.json";
/// Larger files are not ours.
const MAX_FILE: u64 = 1 << 20;

/// How a stream stores a token; always little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenType {
    /// Two bytes.
    #[default]
    Uint16,
    /// Four bytes.
    Uint32,
}

impl TokenType {
    /// Bytes a token.
    pub fn width(self) -> usize {
        match self {
            Self::Uint16 => 2,
            Self::Uint32 => 4,
        }
    }

    /// The narrowest type for ids less than `vocab_size`.
    pub fn for_vocabulary(vocab_size: u32) -> Self {
        if vocab_size <= 1 << 16 { Self::Uint16 } else { Self::Uint32 }
    }
}

/// A part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// What a model is trained on.
    Train,
    /// What it is evaluated on.
    Validation,
    /// A third part, where the corpus has one.
    Test,
}

impl Split {
    /// All of them, in the order in which they are written.
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];

    /// The name of its stream in the output folder.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Train => "train.bin",
            Self::Validation => "validation.bin",
            Self::Test => "test.bin",
        }
    }
}

/// One stream of a data set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitInfo {
    /// File name, in the folder of `dataset.json`.
    pub file: String,
    /// Tokens, those after documents included.
    pub tokens: u64,
    /// Documents.
    pub documents: u64,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
}

/// How a data set was made: two runs with equal settings write equal streams.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The kind of corpus, as the command line spells it.
    pub dataset: String,
    /// Files of the corpus.
    pub source_files: u64,
    /// Their size together, in bytes, as stored.
    pub source_bytes: u64,
    /// The tokenizer.
    pub tokenizer: TokenizerInfo,
    /// How tokens are stored.
    pub dtype: TokenType,
    /// Share of the documents that went to validation; none where the corpus comes divided.
    pub validation_fraction: Option<f64>,
}

/// The contents of `dataset.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatasetInfo {
    /// How it was made.
    #[serde(flatten)]
    pub settings: Settings,
    /// The corpus, as it was named; for people.
    pub source: String,
    /// The streams.
    pub splits: BTreeMap<Split, SplitInfo>,
}

impl DatasetInfo {
    /// Reads the `dataset.json` of a folder; `None` if there is none.
    ///
    /// # Errors
    /// If it cannot be read, or is not one of ours.
    pub fn load(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE_NAME);
        let wrong = |message: String| Error::Stream { path: path.clone(), message };
        match fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(reading(&path)(error)),
            Ok(found) if found.len() > MAX_FILE => return Err(wrong("too large for a dataset.json".into())),
            Ok(_) => {}
        }
        let json = fs::read(&path).map_err(reading(&path))?;
        serde_json::from_slice(&json)
            .map(Some)
            .map_err(|error| wrong(format!("not a dataset.json ({error}); prepare the data set again")))
    }

    /// Where the stream of a split lies, given the folder of this `dataset.json`.
    pub fn path(&self, folder: &Path, split: Split) -> Option<PathBuf> {
        // Only the last component is used, so that the file cannot point outside its folder.
        self.splits.get(&split).and_then(|info| Some(folder.join(Path::new(&info.file).file_name()?)))
    }

    /// Whether every stream is there, with the length that it should have. Contents are not compared.
    pub(crate) fn is_complete(&self, folder: &Path) -> bool {
        self.splits.iter().all(|(&split, info)| {
            let length = self.path(folder, split).and_then(|path| fs::metadata(path).ok()).map(|m| m.len());
            length.is_some() && length == info.tokens.checked_mul(self.settings.dtype.width() as u64)
        })
    }
}
