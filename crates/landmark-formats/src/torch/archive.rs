//! The zip archive around a PyTorch checkpoint: where its entries lie in the file.
//!
//! `torch.save` stores entries uncompressed and aligned, which is what makes views into a mapped file possible. So
//! this reader takes stored entries only: it never inflates anything, and a zip bomb has nothing to inflate. Entries
//! that overlap are harmless for the same reason.
//!
//! The `zip` crate would serve too, but it reads through a file position and copies the directory into a table of
//! its own; `rawzip` walks the directory where it lies and says where each entry's bytes are.

use crate::bytes::FileBytes;
use crate::error::short;
use crate::{Error, Result};
use rawzip::{CompressionMethod, ZipArchive, ZipFileHeaderRecord, ZipSliceArchive};
use std::collections::HashMap;
use std::ops::Range;

/// What every zip file of PyTorch begins with: a local file header, not an empty or a spanned archive.
const MAGIC: &[u8] = b"PK\x03\x04";

/// One storage or other file within the archive.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Name within the archive, without the leading directory: "data/0".
    pub(super) name: String,
    /// Where its bytes lie in the file.
    pub(super) range: Range<usize>,
    /// The checksum that the directory gives for it.
    pub(super) crc32: u32,
}

/// The directory of one checkpoint.
#[derive(Debug)]
pub(super) struct Archive {
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
}

impl Archive {
    pub(super) fn parse(bytes: &FileBytes) -> Result<Self> {
        let file = bytes.as_slice();
        if !file.starts_with(MAGIC) {
            return Err(not_a_zip(bytes));
        }
        let zip = ZipArchive::from_slice(file).map_err(|e| damaged(bytes, e.to_string()))?;
        let directory = leading_directory(bytes, &zip)?;
        let mut archive = Archive { entries: Vec::new(), by_name: HashMap::new() };
        let mut records = zip.entries();
        while let Some(record) = records.next_entry().map_err(|e| damaged(bytes, e.to_string()))? {
            if let Some(name) = name_in(&directory, &record) {
                archive.add(bytes, &zip, &record, name)?;
            }
        }
        archive.check_byte_order(bytes)?;
        Ok(archive)
    }

    fn add(
        &mut self,
        bytes: &FileBytes,
        zip: &ZipSliceArchive<&[u8]>,
        record: &ZipFileHeaderRecord<'_>,
        name: &str,
    ) -> Result<()> {
        if record.compression_method() != CompressionMethod::STORE || record.flags().is_encrypted() {
            let reason = format!(
                "`{}` in it is compressed or encrypted, and PyTorch stores it as it is; unpack the file and save the \
                 model again with torch.save",
                short(name)
            );
            return Err(Error::Unsupported { file: bytes.label().to_string(), reason });
        }
        let local = zip.get_entry(record.wayfinder());
        let local = local.map_err(|e| damaged(bytes, format!("`{}`: {e}", short(name))))?;
        let (start, end) = local.compressed_data_range();
        let (start, end) = (start as usize, end as usize); // within the file, which is in the address space
        let lies_within = start <= end && end <= bytes.as_slice().len();
        if !lies_within || record.uncompressed_size_hint() != (end - start) as u64 {
            return Err(damaged(bytes, format!("`{}` has two different lengths", short(name))));
        }
        let entry = Entry { name: name.to_string(), range: start..end, crc32: record.crc32() };
        if self.by_name.insert(name.to_string(), self.entries.len()).is_some() {
            return Err(damaged(bytes, format!("`{}` is in it twice", short(name))));
        }
        self.entries.push(entry);
        Ok(())
    }

    /// The index of the entry `name`.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// All entries; [`Archive::find`] gives indices into them.
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Files from before PyTorch 2.1 have no `byteorder`; they were written on little-endian machines.
    fn check_byte_order(&self, bytes: &FileBytes) -> Result<()> {
        let Some(index) = self.find("byteorder") else { return Ok(()) };
        match &bytes.as_slice()[self.entries[index].range.clone()] {
            b"little" => Ok(()),
            b"big" => Err(Error::Unsupported {
                file: bytes.label().to_string(),
                reason: "it was saved on a big-endian machine; save it again on a little-endian one"
                    .to_string(),
            }),
            _ => Err(damaged(bytes, "its byteorder is neither little nor big".to_string())),
        }
    }
}

/// `torch.save` puts everything into one directory named after the file. The directory is found as PyTorch finds
/// it, by the first entry, rather than by name: files get renamed.
fn leading_directory(bytes: &FileBytes, zip: &ZipSliceArchive<&[u8]>) -> Result<String> {
    let first = zip.entries().next_entry().map_err(|e| damaged(bytes, e.to_string()))?;
    let directory = first.as_ref().and_then(raw_name).and_then(|name| name.split_once('/'));
    match directory {
        Some((directory, _)) => Ok(directory.to_string()),
        None => Err(Error::Unsupported {
            file: bytes.label().to_string(),
            reason: "it is a zip file, but not one that torch.save wrote: there is no directory in it"
                .to_string(),
        }),
    }
}

fn raw_name<'a>(record: &ZipFileHeaderRecord<'a>) -> Option<&'a str> {
    std::str::from_utf8(record.file_path().as_bytes()).ok()
}

/// The name of an entry below `directory`. Entries elsewhere, or with names that are not text, are no business of
/// ours.
fn name_in<'a>(directory: &str, record: &ZipFileHeaderRecord<'a>) -> Option<&'a str> {
    raw_name(record)?.strip_prefix(directory)?.strip_prefix('/').filter(|name| !name.is_empty())
}

pub(super) fn damaged(bytes: &FileBytes, reason: String) -> Error {
    Error::Damaged { file: bytes.label().to_string(), format: "PyTorch checkpoint", reason }
}

/// Says what the file probably is instead, since several formats go by `.pt` and `.bin`.
fn not_a_zip(bytes: &FileBytes) -> Error {
    let file = bytes.as_slice();
    let unsupported =
        |reason: &str| Error::Unsupported { file: bytes.label().to_string(), reason: reason.to_string() };
    let is_tar = file.get(257..262) == Some(b"ustar");
    if is_tar || matches!(file, [0x80, 0..=5, ..]) {
        return unsupported(
            "it is in PyTorch's format from before version 1.6 (or another bare pickle); load it with PyTorch once \
             and save it again with torch.save",
        );
    }
    if file.get(8) == Some(&b'{') {
        return unsupported("it looks like a safetensors file; give it the extension .safetensors");
    }
    damaged(bytes, format!("it has {} bytes and does not begin as a zip file does", file.len()))
}
