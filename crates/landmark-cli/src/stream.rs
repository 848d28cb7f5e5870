//! Prepared token streams, as the model's batches draw from them.

use std::num::NonZeroUsize;
use std::path::Path;

use landmark_data::{DatasetInfo, TokenStream};
use landmark_model::batch::END_OF_TEXT;
use landmark_model::tokens::{Laden, Tokens};

use crate::error::{Error, Result};

/// A memory-mapped stream.
#[derive(Debug)]
pub struct Mapped(pub TokenStream);

impl Tokens for Mapped {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn read(&self, start: usize, out: &mut [u32]) {
        // Batches stay inside the stream. An id outside the vocabulary is passed on as one that no vocabulary
        // has, and is refused with its name by the embedding.
        if self.0.read(start, out).is_err() {
            out.fill(u32::MAX);
        }
    }
}

/// Opens `train.bin` or `validation.bin` of a prepared data set (`val.bin` where that is what there is).
///
/// # Errors
/// If it is not there, or is no stream of tokens.
pub fn open(folder: &Path, split: &str, mem_freq: Option<usize>, landmark: u32) -> Result<Laden<Mapped>> {
    let mut path = folder.join(format!("{split}.bin"));
    if split == "validation" && !path.exists() && folder.join("val.bin").exists() {
        path = folder.join("val.bin");
    }
    if !path.exists() {
        let reason = "is not there; the data set is not prepared".to_owned();
        let help =
            format!("run `landmark prepare --output {} ...` first, or give --data-dir", folder.display());
        return Err(Error::Input { path, reason, help });
    }
    Ok(Laden::new(Mapped(TokenStream::open(&path)?), mem_freq.and_then(NonZeroUsize::new), landmark))
}

/// The token that ends a document of a prepared data set; GPT-2's where nothing says otherwise.
///
/// # Errors
/// If the folder's `dataset.json` cannot be read.
pub fn end_of_text(folder: &Path) -> Result<u32> {
    Ok(DatasetInfo::load(folder)?.map_or(END_OF_TEXT, |info| info.settings.tokenizer.eot))
}
