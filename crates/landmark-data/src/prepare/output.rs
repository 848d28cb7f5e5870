//! The output folder: streams are written under temporary names, hashed on the way, and renamed when all of them
//! are whole and on disk; `dataset.json` follows last. Whatever stops the program, the folder holds either the
//! old streams or whole new ones, and says that it is complete only if it is.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;

use landmark_formats::atomic::{FileWriter, FinishedFile, write_atomic};
use sha2::{Digest, Sha256};

use super::Encoded;
use crate::dataset::{self, DatasetInfo, Settings, Split, SplitInfo, TokenType};
use crate::error::{Error, Result, writing};
use crate::hash::hex;

/// The streams being written, and their folder.
pub(super) struct Output {
    folder: PathBuf,
    streams: BTreeMap<Split, StreamWriter<FileWriter>>,
}

/// What the folder holds already, if that is complete and was made with these settings.
///
/// # Errors
/// If it holds streams that were made otherwise.
pub(super) fn existing(folder: &Path, settings: &Settings) -> Result<Option<DatasetInfo>> {
    let taken = |message: String| Error::Exists { path: folder.into(), message };
    let Some(info) = DatasetInfo::load(folder)? else {
        let stream = Split::ALL.into_iter().map(Split::file_name).find(|name| folder.join(name).exists());
        return match stream {
            Some(name) => Err(taken(format!("holds a {name} without a dataset.json"))),
            None => Ok(None),
        };
    };
    match difference(&info.settings, settings) {
        None => Ok(info.is_complete(folder).then_some(info)),
        Some(difference) => Err(taken(format!("holds a data set made otherwise ({difference})"))),
    }
}

/// The first setting in which two data sets differ.
fn difference(there: &Settings, wanted: &Settings) -> Option<String> {
    let fields = |settings: &Settings| {
        [
            ("dataset", settings.dataset.clone()),
            // A tokenizer.json may have moved; its contents decide.
            ("tokenizer", settings.tokenizer.sha256.as_ref().unwrap_or(&settings.tokenizer.name).clone()),
            ("end token", settings.tokenizer.eot.to_string()),
            ("dtype", format!("{:?}", settings.dtype).to_lowercase()),
            ("validation fraction", format!("{:?}", settings.validation_fraction.unwrap_or_default())),
            ("files of the corpus", settings.source_files.to_string()),
            ("bytes of the corpus", settings.source_bytes.to_string()),
        ]
    };
    fields(there).into_iter().zip(fields(wanted)).find_map(|((name, there), (_, wanted))| {
        (there != wanted).then(|| format!("{name}: {there} there, {wanted} now"))
    })
}

impl Output {
    /// Makes the folder and its temporary files: one for training, one for validation, and one for each further
    /// part in `splits`.
    pub(super) fn create(
        folder: &Path,
        dtype: TokenType,
        splits: impl IntoIterator<Item = Split>,
    ) -> Result<Self> {
        fs::create_dir_all(folder).map_err(writing(folder))?;
        let mut streams = BTreeMap::new();
        for split in splits.into_iter().chain([Split::Train, Split::Validation]) {
            if streams.contains_key(&split) {
                continue;
            }
            let path = folder.join(split.file_name());
            streams.insert(split, StreamWriter::new(FileWriter::create(&path)?, path, dtype));
        }
        Ok(Self { folder: folder.into(), streams })
    }

    /// Writes what comes, to the end.
    pub(super) fn write_all(mut self, parts: Receiver<Encoded>) -> Result<Self> {
        for part in parts {
            let stream = self.streams.get_mut(&part.split).expect("every split has a stream");
            stream.write(&part.bytes, part.ends_document)?;
        }
        Ok(self)
    }

    /// Drops parts that got no document, and says what the others hold.
    ///
    /// # Errors
    /// If there is nothing to train on, or if there should be a validation stream and is none.
    pub(super) fn check(
        &self,
        input: &Path,
        divided: bool,
        validation: bool,
    ) -> Result<BTreeMap<Split, SplitInfo>> {
        let splits: BTreeMap<Split, SplitInfo> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.documents > 0)
            .map(|(&split, stream)| (split, stream.info()))
            .collect();
        let empty = |message: &str| Err(Error::Corpus { path: input.into(), message: message.into() });
        match (splits.contains_key(&Split::Train), splits.contains_key(&Split::Validation)) {
            (false, false) => empty("has no documents to prepare; is this the right folder and --dataset?"),
            (false, true) if !divided => empty(
                "has a single document, which cannot be divided; use --validation-fraction 0, or add documents",
            ),
            (false, _) => empty("has no documents for training"),
            (true, false) if validation => empty("has no documents for validation"),
            (true, _) => Ok(splits),
        }
    }

    /// Gives the streams in `info` their names, and writes `dataset.json`.
    pub(super) fn publish(self, info: &DatasetInfo) -> Result<()> {
        let mut finished = Vec::new();
        for (split, stream) in self.streams {
            if info.splits.contains_key(&split) {
                finished.push(stream.finish()?);
            }
        }
        // From here until the new dataset.json is there, the folder does not claim to be complete.
        let json_path = self.folder.join(dataset::FILE_NAME);
        remove(&json_path)?;
        for file in finished {
            file.commit()?;
        }
        for split in Split::ALL {
            if !info.splits.contains_key(&split) {
                remove(&self.folder.join(split.file_name()))?;
            }
        }
        let mut json = serde_json::to_vec_pretty(info).map_err(|error| writing(&json_path)(error.into()))?;
        json.push(b'\n');
        Ok(write_atomic(&json_path, |writer| writer.write_all(&json))?)
    }
}

/// Removes a file that may not exist.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(writing(path)(error)),
        _ => Ok(()),
    }
}

/// Writes one stream, counting and hashing.
struct StreamWriter<W> {
    writer: W,
    path: PathBuf,
    hasher: Sha256,
    dtype: TokenType,
    bytes: u64,
    documents: u64,
}

impl<W: Write> StreamWriter<W> {
    fn new(writer: W, path: PathBuf, dtype: TokenType) -> Self {
        Self { writer, path, hasher: Sha256::new(), dtype, bytes: 0, documents: 0 }
    }

    fn write(&mut self, bytes: &[u8], ends_document: bool) -> Result<()> {
        self.writer.write_all(bytes).map_err(writing(&self.path))?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        self.documents += u64::from(ends_document);
        Ok(())
    }

    fn info(&self) -> SplitInfo {
        SplitInfo {
            file: self.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            tokens: self.bytes / self.dtype.width() as u64,
            documents: self.documents,
            sha256: hex(self.hasher.clone()),
        }
    }
}

impl StreamWriter<FileWriter> {
    /// Brings the stream to disk; what is left is to rename it.
    fn finish(self) -> Result<FinishedFile> {
        Ok(self.writer.finish()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with room for a few bytes.
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let written = bytes.len().min(self.0);
            self.0 -= written;
            if written == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(written) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_is_an_error_that_names_the_stream() {
        let mut stream = StreamWriter::new(Full(5), "out/train.bin".into(), TokenType::Uint16);
        stream.write(&[1, 2, 3, 4], true).unwrap();
        let error = stream.write(&[1, 2, 3, 4], true).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot write out/train.bin: ") && error.contains("the disk is full"),
            "{error}"
        );
    }
}
