//! A token stream as training and evaluation read it: mapped into memory, so that a stream of any size opens at
//! once, costs no memory of its own, and is shared by all processes that read it.
//!
//! The format is the released program's: token ids, little-endian, nothing else. Ids are checked when they are read,
//! not when the file is opened; reading all of a large stream first would take minutes.

use std::ops::Range;
use std::path::{Path, PathBuf};

use landmark_formats::bytes::FileBytes;

use crate::dataset::{DatasetInfo, TokenType};
use crate::error::{Error, Result};

/// A read-only sequence of token ids.
pub struct TokenStream {
    bytes: FileBytes,
    dtype: TokenType,
    /// For messages.
    path: PathBuf,
    vocab_size: Option<u32>,
}

impl TokenStream {
    /// Opens a stream. How wide its tokens are, and the size of their vocabulary, come from the `dataset.json` in
    /// the same folder if that lists the file; else tokens are `uint16` and any id is allowed.
    ///
    /// # Errors
    /// If the file cannot be read, is empty or cut off, or is shorter or longer than its `dataset.json` says.
    pub fn open(path: &Path) -> Result<Self> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(info) = DatasetInfo::load(folder)? else { return Self::open_as(path, TokenType::default()) };
        let Some(split) = info.splits.values().find(|split| Some(split.file.as_str()) == name) else {
            return Self::open_as(path, TokenType::default());
        };
        let stream = Self::open_as(path, info.settings.dtype)?;
        if stream.len() as u64 != split.tokens {
            let message = format!(
                "has {} tokens where dataset.json says {}; prepare the data set again with --force",
                stream.len(),
                split.tokens
            );
            return Err(stream.wrong(message));
        }
        Ok(stream.with_vocabulary(info.settings.tokenizer.vocab_size))
    }

    /// Opens a stream whose tokens are stored as `dtype`.
    ///
    /// # Errors
    /// If the file cannot be read, is empty or cut off.
    pub fn open_as(path: &Path, dtype: TokenType) -> Result<Self> {
        Self::new(FileBytes::open(path)?, dtype, path)
    }

    /// A stream in memory; `name` is used in messages.
    ///
    /// # Errors
    /// If `bytes` are empty or cut off.
    pub fn from_bytes(bytes: Vec<u8>, dtype: TokenType, name: &str) -> Result<Self> {
        Self::new(FileBytes::from_vec(name, bytes), dtype, Path::new(name))
    }

    fn new(bytes: FileBytes, dtype: TokenType, path: &Path) -> Result<Self> {
        let stream = Self { bytes, dtype, path: path.into(), vocab_size: None };
        let length = stream.bytes().len();
        if length == 0 {
            return Err(stream.wrong("is empty; prepare the data set again".into()));
        }
        if !length.is_multiple_of(dtype.width()) {
            let width = dtype.width();
            return Err(stream.wrong(format!(
                "has {length} bytes, which is no multiple of {width}: it was cut off, or is no stream of {width}-byte \
                 tokens; prepare the data set again"
            )));
        }
        Ok(stream)
    }

    /// From now on, reading an id that is not less than `vocab_size` is an error.
    #[must_use]
    pub fn with_vocabulary(mut self, vocab_size: u32) -> Self {
        self.vocab_size = Some(vocab_size);
        self
    }

    /// Tokens; never 0.
    #[expect(clippy::len_without_is_empty, reason = "an empty stream cannot be opened")]
    pub fn len(&self) -> usize {
        self.bytes().len() / self.dtype.width()
    }

    /// How tokens are stored.
    pub fn dtype(&self) -> TokenType {
        self.dtype
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tokens of `range`.
    ///
    /// # Errors
    /// If the range ends beyond the stream, or an id is not in the vocabulary.
    pub fn get(&self, range: Range<usize>) -> Result<Vec<u32>> {
        if range.start > range.end || range.end > self.len() {
            return Err(self.beyond(range.start, range.end));
        }
        let mut ids = vec![0; range.len()];
        self.read(range.start, &mut ids)?;
        Ok(ids)
    }

    /// Fills `ids` with the tokens from `start` on.
    ///
    /// # Errors
    /// If the stream ends before, or an id is not in the vocabulary.
    pub fn read(&self, start: usize, ids: &mut [u32]) -> Result<()> {
        let width = self.dtype.width();
        let Some(end) = start.checked_add(ids.len()).filter(|&end| end <= self.len()) else {
            return Err(self.beyond(start, start.saturating_add(ids.len())));
        };
        let bytes = &self.bytes()[start * width..end * width];
        match self.dtype {
            TokenType::Uint16 => {
                for (id, pair) in ids.iter_mut().zip(bytes.as_chunks().0) {
                    *id = u32::from(u16::from_le_bytes(*pair));
                }
            }
            TokenType::Uint32 => {
                for (id, four) in ids.iter_mut().zip(bytes.as_chunks().0) {
                    *id = u32::from_le_bytes(*four);
                }
            }
        }
        let Some(vocab_size) = self.vocab_size else { return Ok(()) };
        match ids.iter().position(|&id| id >= vocab_size) {
            None => Ok(()),
            Some(at) => Err(self.wrong(format!(
                "token {} is {}, beyond the vocabulary of {vocab_size}; the stream is damaged, or was made with \
                 another tokenizer",
                start + at,
                ids[at]
            ))),
        }
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    fn beyond(&self, start: usize, end: usize) -> Error {
        self.wrong(format!("tokens {start}..{end} were asked for, but it has {}", self.len()))
    }

    fn wrong(&self, message: String) -> Error {
        Error::Stream { path: self.path.clone(), message }
    }
}

impl std::fmt::Debug for TokenStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} {:?} tokens)", self.path.display(), self.len(), self.dtype)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn tokens_are_little_endian() {
        let bytes = vec![1, 0, 0x50, 0xC4, 0xFF, 0xFF, 2, 0];
        let short = TokenStream::from_bytes(bytes.clone(), TokenType::Uint16, "s").unwrap();
        assert_eq!(short.len(), 4);
        assert_eq!(short.get(0..4).unwrap(), [1, 50256, 65535, 2]);
        assert_eq!(short.get(1..2).unwrap(), [50256]);
        assert!(short.get(4..4).unwrap().is_empty());
        let long = TokenStream::from_bytes(bytes, TokenType::Uint32, "s").unwrap();
        assert_eq!(long.get(0..2).unwrap(), [0xC450_0001, 0x0002_FFFF]);
    }

    #[test]
    fn ranges_beyond_the_end_are_errors() {
        let stream = TokenStream::from_bytes(vec![0; 8], TokenType::Uint16, "s.bin").unwrap();
        #[expect(clippy::reversed_empty_ranges)]
        for range in [0..5, 5..5, 3..2, usize::MAX..usize::MAX] {
            let error = stream.get(range).unwrap_err().to_string();
            assert!(error.starts_with("s.bin: tokens ") && error.ends_with("has 4"), "{error}");
        }
        assert!(stream.read(usize::MAX, &mut [0; 2]).is_err());
    }

    #[test]
    fn empty_and_cut_off_streams_are_errors() {
        for (bytes, dtype) in [(0, TokenType::Uint16), (3, TokenType::Uint16), (6, TokenType::Uint32)] {
            let error = TokenStream::from_bytes(vec![0; bytes], dtype, "s.bin").unwrap_err().to_string();
            assert!(error.starts_with("s.bin: ") && error.contains("prepare the data set again"), "{error}");
        }
    }

    #[test]
    fn ids_beyond_the_vocabulary_are_found_when_they_are_read() {
        let stream =
            TokenStream::from_bytes(vec![1, 0, 9, 0], TokenType::Uint16, "s").unwrap().with_vocabulary(9);
        assert_eq!(stream.get(0..1).unwrap(), [1]);
        let error = stream.get(1..2).unwrap_err().to_string();
        assert!(error.contains("token 1 is 9, beyond the vocabulary of 9"), "{error}");
    }

    #[test]
    fn files_are_mapped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.bin");
        fs::write(&path, [7, 0, 8, 0]).unwrap();
        assert_eq!(TokenStream::open(&path).unwrap().get(0..2).unwrap(), [7, 8]);
        fs::write(&path, []).unwrap();
        assert!(TokenStream::open(&path).unwrap_err().to_string().contains("is empty"));
        assert!(TokenStream::open(folder.path()).unwrap_err().to_string().contains("not a regular file"));
        assert!(
            TokenStream::open(&folder.path().join("none.bin")).unwrap_err().to_string().contains("none.bin")
        );
    }

    #[test]
    fn a_damaged_dataset_json_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("train.bin"), [7, 0]).unwrap();
        fs::write(folder.path().join("dataset.json"), "{").unwrap();
        let error = TokenStream::open(&folder.path().join("train.bin")).unwrap_err().to_string();
        assert!(error.contains("dataset.json: not a dataset.json"), "{error}");
    }
}
