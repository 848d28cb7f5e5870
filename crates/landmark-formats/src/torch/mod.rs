//! PyTorch checkpoints, read without PyTorch and without executing anything.
//!
//! `torch.save` writes a zip file: `NAME/data.pkl` is a pickle that describes the objects, `NAME/data/0`, `1`, ... are
//! the storages, the raw bytes that tensors are strided views of.
//!
//! | file | what it does |
//! |---|---|
//! | `archive.rs` | finds the entries of the zip file |
//! | `pickle.rs` | the stack machine that reads the pickle |
//! | `globals.rs` | the functions and classes that a pickle may name, and what they stand for |
//! | `rebuild.rs` | what calling one of them gives |
//! | `objects.rs` | the objects, and [`Value`], the way to look at them |
//! | here | [`TorchFile`]: opening, state dicts, tensors |
//!
//! Existing crates were considered: they either wrap libtorch, or load a pickle into a tree of owned values, which a
//! hostile file can make arbitrarily deep, or stop at the first object that they do not know, which the schedulers in
//! real checkpoints are full of.
//!
//! Every byte is checked against the zip file's checksums before it is believed, so that a damaged download is an
//! error and not a slightly worse model.

mod archive;
mod globals;
mod objects;
mod pickle;
mod rebuild;
#[cfg(test)]
mod tests;

pub use objects::{Kind, Value};

use crate::bytes::FileBytes;
use crate::error::{short, some_names};
use crate::tensor::{DType, TensorRef, element_count};
use crate::{Error, Result};
use archive::{Archive, damaged};
use objects::{Arena, Id};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

/// How much larger than its file a tensor may become when it is made contiguous. Tensors may repeat their elements
/// (`expand` has stride 0), so a few bytes can stand for any number of them.
const EXPANSION_ALLOWED: usize = 64 << 20;

/// How much is looked at before it is given up again while a checksum is computed.
const CHECKED_AT_ONCE: usize = 8 << 20;

/// Whether entries are compared with their checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checksums {
    /// Each entry when it is first used.
    #[default]
    Verify,
    /// Never: for files saved under `torch.serialization.set_crc32_options(False)`, whose checksums are not true.
    Ignore,
}

/// Where a tensor's elements lie. Everything that it spans was checked to lie within its storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorMeta {
    dtype: DType,
    shape: Vec<usize>,
    /// In elements, as all of the following.
    strides: Vec<usize>,
    offset: usize,
    /// Index of the storage's entry in the archive.
    entry: usize,
}

impl TensorMeta {
    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The shape, outermost dimension first; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Whether both are views of one storage, as tied weights are.
    pub fn shares_storage(&self, other: &TensorMeta) -> bool {
        self.entry == other.entry
    }

    /// How many bytes of the storage, from its start, the tensor reaches into; `None` if that overflows, or if there
    /// are not as many strides as dimensions.
    fn bytes_spanned(&self) -> Option<usize> {
        if self.shape.len() != self.strides.len() {
            return None;
        }
        if element_count(&self.shape)? == 0 {
            return Some(0);
        }
        let mut last = self.offset;
        for (&dimension, &stride) in self.shape.iter().zip(&self.strides) {
            last = last.checked_add((dimension - 1).checked_mul(stride)?)?;
        }
        last.checked_add(1)?.checked_mul(self.dtype.size())
    }

    /// Bytes of the tensor once contiguous.
    fn byte_count(&self) -> Option<usize> {
        element_count(&self.shape)?.checked_mul(self.dtype.size())
    }

    /// Whether elements lie one behind another in row-major order. Strides of dimensions of length 1 mean nothing.
    fn is_contiguous(&self) -> bool {
        let mut expected = 1usize;
        self.shape.iter().zip(&self.strides).rev().all(|(&dimension, &stride)| {
            let fits = dimension == 1 || stride == expected;
            expected = expected.saturating_mul(dimension);
            fits
        })
    }
}

/// An open checkpoint: its objects read, its storages not yet touched.
#[derive(Debug)]
pub struct TorchFile {
    bytes: FileBytes,
    archive: Archive,
    arena: Arena,
    root: Id,
    checksums: Checksums,
    /// Which entries have been found to match their checksums.
    verified: Vec<AtomicBool>,
}

impl TorchFile {
    /// Maps the checkpoint at `path` and reads its objects.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be opened, [`Error::Damaged`] or [`Error::Unsupported`] if it is not a checkpoint as
    /// `torch.save` has written them since PyTorch 1.6, [`Error::ForbiddenGlobal`] if it tries to run code.
    #[cfg(not(target_family = "wasm"))]
    pub fn open(path: &std::path::Path) -> Result<Self> {
        Self::open_with(path, Checksums::Verify)
    }

    /// As [`TorchFile::open`], with a choice about checksums.
    ///
    /// # Errors
    /// As [`TorchFile::open`].
    #[cfg(not(target_family = "wasm"))]
    pub fn open_with(path: &std::path::Path, checksums: Checksums) -> Result<Self> {
        Self::parse(FileBytes::open(path)?, checksums)
    }

    /// Reads a checkpoint that is in memory; `label` names it in errors.
    ///
    /// # Errors
    /// As [`TorchFile::open`].
    pub fn from_bytes(label: impl Into<String>, bytes: Vec<u8>) -> Result<Self> {
        Self::from_bytes_with(label, bytes, Checksums::Verify)
    }

    /// As [`TorchFile::from_bytes`], with a choice about checksums.
    ///
    /// # Errors
    /// As [`TorchFile::open`].
    pub fn from_bytes_with(label: impl Into<String>, bytes: Vec<u8>, checksums: Checksums) -> Result<Self> {
        Self::parse(FileBytes::from_vec(label, bytes), checksums)
    }

    /// Reads a checkpoint, wherever its bytes are.
    ///
    /// # Errors
    /// As [`TorchFile::open`].
    pub fn parse(bytes: FileBytes, checksums: Checksums) -> Result<Self> {
        let archive = Archive::parse(&bytes)?;
        let Some(pickle) = archive.find("data.pkl") else {
            return Err(Error::Unsupported {
                file: bytes.label().to_string(),
                reason: "it is a zip file without data.pkl, so torch.save did not write it".to_string(),
            });
        };
        let verified = archive.entries().iter().map(|_| AtomicBool::new(false)).collect();
        let mut file =
            TorchFile { bytes, archive, arena: Arena::default(), root: Id(0), checksums, verified };
        let loaded = pickle::load(file.entry(pickle)?, &file.archive);
        (file.arena, file.root) = loaded.map_err(|failure| match failure {
            pickle::Failure::Malformed(reason) => damaged(&file.bytes, reason),
            pickle::Failure::Forbidden(global) => {
                Error::ForbiddenGlobal { file: file.bytes.label().to_string(), global: short(&global) }
            }
        })?;
        Ok(file)
    }

    /// The object that was saved.
    pub fn root(&self) -> Value<'_> {
        Value { arena: &self.arena, id: self.root }
    }

    /// The path, or the label given with the bytes.
    pub fn label(&self) -> &str {
        self.bytes.label()
    }

    /// The tensors of the dictionary found by following `path` from the root: `["model"]` for a training checkpoint,
    /// `[]` for a bare state dict. In the order of the dictionary; entries that are plain data are passed over.
    ///
    /// # Errors
    /// [`Error::Missing`] if a step of the path does not exist; [`Error::Unsupported`] if there is no dictionary there,
    /// or something in it is neither a tensor nor plain data.
    pub fn state_dict(&self, path: &[&str]) -> Result<Vec<(String, TensorMeta)>> {
        let dict = self.follow(path)?;
        let at = if path.is_empty() { "its root".to_string() } else { format!("`{}`", path.join(".")) };
        let unsupported = |reason: String| Error::Unsupported { file: self.label().to_string(), reason };
        if !matches!(dict.kind(), Kind::Dict(_)) {
            return Err(unsupported(format!("{at} is {}, not a dictionary of tensors", dict.describe())));
        }
        let mut tensors: Vec<(String, TensorMeta)> = Vec::new();
        let mut index: HashMap<&str, usize> = HashMap::new();
        let mut total = 0usize;
        for (key, value) in dict.entries() {
            let meta = match value.kind() {
                Kind::Tensor(meta) => meta,
                Kind::Opaque(_) => {
                    let key = short(key.as_str().unwrap_or("an entry"));
                    return Err(unsupported(format!(
                        "`{key}` in {at} is {}, which is not understood; save the weights alone, as plain tensors",
                        value.describe()
                    )));
                }
                _ => continue,
            };
            let Some(name) = key.as_str() else {
                return Err(unsupported(format!("a tensor in {at} has {} as its name", key.describe())));
            };
            total = total.saturating_add(meta.byte_count().unwrap_or(usize::MAX));
            match index.get(name) {
                Some(&earlier) => tensors[earlier].1 = meta.clone(), // as in Python, the last one counts
                None => {
                    index.insert(name, tensors.len());
                    tensors.push((name.to_string(), meta.clone()));
                }
            }
        }
        // Tied weights share bytes, but not sixteen-fold; a caller may well load all of this.
        let allowed = self.bytes.as_slice().len().saturating_mul(16).saturating_add(EXPANSION_ALLOWED);
        if total > allowed {
            let reason = format!("the tensors in {at} would take {total} bytes, far more than the file has");
            return Err(damaged(&self.bytes, reason));
        }
        Ok(tensors)
    }

    fn follow(&self, path: &[&str]) -> Result<Value<'_>> {
        let mut value = self.root();
        for (depth, step) in path.iter().enumerate() {
            value = value.get(step).ok_or_else(|| {
                let names: Vec<&str> =
                    value.entries().take(1000).filter_map(|(key, _)| key.as_str()).collect();
                Error::Missing {
                    file: self.label().to_string(),
                    what: format!("`{}`", path[..=depth].join(".")),
                    present: some_names(names.iter().copied()),
                }
            })?;
        }
        Ok(value)
    }

    /// The elements of a tensor of this file: a view where they lie in row-major order, gathered otherwise.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the storage does not match its checksum, or the tensor repeats elements beyond reason.
    pub fn tensor(&self, meta: &TensorMeta) -> Result<TensorRef<'_>> {
        let storage = self.entries_of(meta)?;
        // A meta of another file is a mistake of the caller, but must not panic.
        let (Some(spanned), Some(length)) = (meta.bytes_spanned(), meta.byte_count()) else {
            return Err(damaged(&self.bytes, "a tensor of another file was asked for".to_string()));
        };
        if spanned > storage.len() {
            return Err(damaged(&self.bytes, "a tensor of another file was asked for".to_string()));
        }
        if length == 0 {
            return TensorRef::new(meta.dtype, meta.shape.clone(), &[][..]);
        }
        if meta.is_contiguous() {
            let start = meta.offset * meta.dtype.size();
            return TensorRef::new(meta.dtype, meta.shape.clone(), &storage[start..start + length]);
        }
        if length > self.bytes.as_slice().len().max(EXPANSION_ALLOWED) {
            let reason =
                format!("a tensor of shape {:?} repeats the elements of a small storage", meta.shape);
            return Err(damaged(&self.bytes, reason));
        }
        TensorRef::new(meta.dtype, meta.shape.clone(), gather(meta, storage, length))
    }

    /// Gives up the memory that looking at these bytes of a tensor took; see [`FileBytes::release`].
    pub fn release(&self, part: &[u8]) {
        self.bytes.release(part);
    }

    fn entries_of(&self, meta: &TensorMeta) -> Result<&[u8]> {
        if meta.entry >= self.verified.len() {
            return Err(damaged(&self.bytes, "a tensor of another file was asked for".to_string()));
        }
        self.entry(meta.entry)
    }

    /// The bytes of an entry, compared with its checksum the first time.
    fn entry(&self, index: usize) -> Result<&[u8]> {
        let entry = &self.archive.entries()[index];
        let bytes = &self.bytes.as_slice()[entry.range.clone()];
        if self.checksums == Checksums::Verify && !self.verified[index].load(Ordering::Relaxed) {
            let mut hasher = crc32fast::Hasher::new();
            for piece in bytes.chunks(CHECKED_AT_ONCE) {
                hasher.update(piece);
                self.bytes.release(piece);
            }
            let actual = hasher.finalize();
            if actual != entry.crc32 {
                let reason = format!(
                    "`{}` in it has checksum {actual:08x} where {:08x} was written",
                    short(&entry.name),
                    entry.crc32
                );
                return Err(damaged(&self.bytes, reason));
            }
            self.verified[index].store(true, Ordering::Relaxed);
        }
        Ok(bytes)
    }
}

impl rebuild::Storages for Archive {
    fn find(&self, key: &str) -> Option<usize> {
        Archive::find(self, &format!("data/{key}"))
    }

    fn length(&self, entry: usize) -> usize {
        self.entries()[entry].range.len()
    }
}

/// The elements of a strided tensor in row-major order, row by row of the innermost dimension. The tensor has at least
/// one dimension and one element: a scalar is contiguous.
fn gather(meta: &TensorMeta, storage: &[u8], length: usize) -> Vec<u8> {
    let size = meta.dtype.size();
    let mut gathered = Vec::with_capacity(length);
    let innermost = meta.shape.len() - 1;
    let (row, step) = (meta.shape[innermost], meta.strides[innermost]);
    let mut index = vec![0usize; innermost];
    let mut start = meta.offset;
    loop {
        if step == 1 {
            gathered.extend_from_slice(&storage[start * size..(start + row) * size]);
        } else {
            for i in 0..row {
                let element = (start + i * step) * size;
                gathered.extend_from_slice(&storage[element..element + size]);
            }
        }
        // The next row: count up the outer dimensions, the last of them fastest.
        let mut axis = innermost;
        loop {
            if axis == 0 {
                return gathered;
            }
            axis -= 1;
            index[axis] += 1;
            start = start.wrapping_add(meta.strides[axis]); // past the end only until it is taken back below
            if index[axis] < meta.shape[axis] {
                break;
            }
            start = start.wrapping_sub(index[axis].wrapping_mul(meta.strides[axis]));
            index[axis] = 0;
        }
    }
}
