//! Pages of a landmark memory on the disk: in a scratch file while a text is read, and saved for later.
//!
//! A page is one block of one key head: keys, or values. A *saved memory* is what `landmark index` writes and `landmark
//! ask` opens, in any process, without reading the text again:
//!
//! ```text
//! magic (8 bytes) | pages, tensor after tensor | tokens, u32 | landmark keys, f32 | a CRC-32C of each page
//! description, JSON | its length, u64 | CRC-32C of tokens, landmarks, checks and description, u32 | magic
//! ```
//!
//! Everything is little-endian. The description stands at the end, so that a memory larger than the host's is written in
//! one go. Opening one reads all but the pages and checks it; a page is checked whenever it is fetched, so that a question
//! costs the reading of what it retrieves and not of the book. Files are read with positioned reads: a mapping would
//! count against the memory that the tiers are there to bound.

use crate::atomic::FileWriter;
use crate::tensor::{DType, TensorRef, float_bytes};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"LANDMEM1";
const FORMAT: &str = "memory";
/// Behind the description: its length, the checksum, the magic.
const TRAILER: u64 = 8 + 4 + 8;
/// Longest description that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// Element type of pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PageType {
    /// What a CPU computes in.
    #[default]
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
}

impl PageType {
    /// As of other tensors.
    pub fn dtype(self) -> DType {
        match self {
            PageType::F32 => DType::F32,
            PageType::Bf16 => DType::BF16,
            PageType::F16 => DType::F16,
        }
    }
}

/// What a saved memory holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryInfo {
    /// Fingerprint of the model that read the text.
    pub model: String,
    /// Where that model was.
    pub model_path: String,
    /// Layers of the model; each has a tensor of keys and one of values.
    pub layers: usize,
    /// Key heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Positions of a block, its landmark included.
    pub block: usize,
    /// Positions stored, landmarks included.
    pub positions: usize,
    /// Ordinary tokens of the text. Those behind the last whole chunk are not in the memory yet.
    pub tokens: usize,
    /// Ordinary tokens of the chunks in which it was read.
    pub chunk: usize,
    /// Blocks retrieved while it was read.
    pub top_k: usize,
    /// How finely they were chosen.
    pub retrieval: String,
    /// Type of the pages; landmark keys are in f32 always.
    #[serde(default)]
    pub dtype: PageType,
}

impl MemoryInfo {
    /// Whole blocks.
    pub fn blocks(&self) -> usize {
        self.positions / self.block
    }

    /// Pages of each tensor: those of the unfinished block included.
    pub fn pages(&self) -> usize {
        self.positions.div_ceil(self.block) * self.kv_heads
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        self.block * self.head_dim * self.dtype.dtype().size()
    }

    /// Landmark keys of a layer: `(kv_heads, blocks, head_dim)`.
    pub fn landmarks(&self) -> usize {
        self.kv_heads * self.blocks() * self.head_dim
    }

    /// Bytes of pages, tokens, landmarks and checks; `None` if they overflow, which no file holds.
    fn sizes(&self) -> Option<[u64; 4]> {
        let product = |factors: &[usize]| {
            factors.iter().try_fold(1_u64, |product, &factor| product.checked_mul(factor as u64))
        };
        if self.block < 2 || [self.layers, self.kv_heads, self.head_dim].contains(&0) {
            return None;
        }
        let pages = product(&[2, self.layers, self.positions.div_ceil(self.block), self.kv_heads])?;
        Some([
            pages.checked_mul(product(&[self.block, self.head_dim, self.dtype.dtype().size()])?)?,
            product(&[self.tokens, 4])?,
            product(&[self.layers, self.kv_heads, self.positions / self.block, self.head_dim, 4])?,
            pages.checked_mul(4)?,
        ])
    }
}

/// Writes a saved memory.
#[derive(Debug)]
pub struct MemoryWriter {
    file: FileWriter,
    path: PathBuf,
    info: MemoryInfo,
    checks: Vec<u8>,
}

impl MemoryWriter {
    /// Starts a file that is to appear at `path`.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be written to.
    pub fn create(path: &Path, info: MemoryInfo) -> Result<Self> {
        let mut writer =
            MemoryWriter { file: FileWriter::create(path)?, path: path.to_owned(), info, checks: Vec::new() };
        writer.put(MAGIC)?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io(&self.path, "write", e))
    }

    /// Appends pages: those of the keys of layer 0 first, then of its values, then layer 1.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk fails or is full.
    ///
    /// # Panics
    /// When `bytes` are no whole pages.
    pub fn pages(&mut self, bytes: &[u8]) -> Result<()> {
        let page = self.info.page_bytes();
        assert!(bytes.len().is_multiple_of(page), "whole pages");
        for page in bytes.chunks_exact(page) {
            self.checks.extend(crc32c::crc32c(page).to_le_bytes());
        }
        self.put(bytes)
    }

    /// Ends the file: the ordinary tokens of the text, and the landmark keys of every layer, `(kv_heads, blocks,
    /// head_dim)` each.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk fails or is full.
    ///
    /// # Panics
    /// When pages, tokens or landmarks are not as many as were announced.
    pub fn finish(mut self, tokens: &[u32], landmarks: &[Vec<f32>]) -> Result<()> {
        assert_eq!(self.checks.len(), 8 * self.info.layers * self.info.pages(), "pages");
        assert_eq!(tokens.len(), self.info.tokens, "tokens");
        assert!(landmarks.iter().all(|keys| keys.len() == self.info.landmarks()), "landmarks");
        let mut tail: Vec<u8> = tokens.iter().flat_map(|id| id.to_le_bytes()).collect();
        tail.extend(landmarks.iter().flatten().flat_map(|x| x.to_le_bytes()));
        tail.append(&mut self.checks);
        let description =
            serde_json::to_vec(&self.info).map_err(|e| Error::io(&self.path, "write", e.into()))?;
        tail.extend(&description);
        tail.extend((description.len() as u64).to_le_bytes());
        let check = crc32c::crc32c(&tail);
        self.put(&tail)?;
        self.put(&check.to_le_bytes())?;
        self.put(MAGIC)?;
        self.file.finish()?.commit()
    }
}

/// A saved memory, opened: everything but its pages, which are fetched one by one.
#[derive(Debug)]
pub struct MemoryFile {
    file: File,
    path: PathBuf,
    info: MemoryInfo,
    tokens: Vec<u32>,
    landmarks: Vec<Vec<f32>>,
    checks: Vec<u32>,
}

impl MemoryFile {
    /// Whether a file begins as a saved memory does.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn is_one(path: &Path) -> Result<bool> {
        let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
        let mut first = [0; MAGIC.len()];
        Ok(read_at(&file, &mut first, 0).is_ok() && first == *MAGIC)
    }

    /// Opens a file, and checks all of it but the pages.
    ///
    /// # Errors
    /// If it cannot be read, is no saved memory, or is damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
        let length = file.metadata().map_err(|e| Error::io(path, "read", e))?.len();
        let damaged = |reason: &str| Error::Damaged {
            file: path.display().to_string(),
            format: FORMAT,
            reason: reason.to_owned(),
        };
        let read = |at: u64, length: usize| -> Result<Vec<u8>> {
            let mut bytes = vec![0; length];
            read_at(&file, &mut bytes, at).map_err(|e| Error::io(path, "read", e))?;
            Ok(bytes)
        };
        let begins = length >= 8 && read(0, 8)? == MAGIC;
        if !begins {
            return Err(damaged("it does not begin as a memory saved by `landmark index`"));
        }
        if length < 8 + TRAILER {
            return Err(damaged("it ends too early"));
        }
        let trailer = read(length - TRAILER, TRAILER as usize)?;
        if &trailer[12..] != MAGIC {
            return Err(damaged("it ends too early"));
        }
        let size = u64::from_le_bytes(trailer[..8].try_into().unwrap_or_default());
        if size > LONGEST || size > length - 8 - TRAILER {
            return Err(damaged("its description is longer than the file"));
        }
        let at = length - TRAILER - size;
        let description = read(at, size as usize)?;
        let info: MemoryInfo = serde_json::from_slice(&description)
            .map_err(|e| damaged(&format!("its description cannot be understood ({e})")))?;
        let sizes = info.sizes().ok_or_else(|| damaged("its description is that of no memory"))?;
        let total = sizes.iter().try_fold(8_u64, |sum, &size| sum.checked_add(size));
        if total != Some(at) || info.positions - info.blocks() > info.tokens {
            return Err(damaged("its length is not the one that its description gives"));
        }
        // Bounded by the length of the file, which was just checked.
        let mut tail = read(8 + sizes[0], (length - TRAILER - 8 - sizes[0]) as usize)?;
        tail.extend(&trailer[..8]);
        if crc32c::crc32c(&tail).to_le_bytes() != trailer[8..12] {
            return Err(damaged("its checksum is wrong"));
        }
        let (tokens, rest) = tail.split_at(sizes[1] as usize);
        let (landmarks, rest) = rest.split_at(sizes[2] as usize);
        let checks = &rest[..sizes[3] as usize];
        let words = |bytes: &[u8]| -> Vec<u32> {
            bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        };
        let keys: Vec<f32> = words(landmarks).into_iter().map(f32::from_bits).collect();
        let landmarks = match info.landmarks() {
            0 => vec![Vec::new(); info.layers],
            each => keys.chunks_exact(each).map(<[f32]>::to_vec).collect(),
        };
        let (tokens, checks) = (words(tokens), words(checks));
        Ok(MemoryFile { file, path: path.to_owned(), info, tokens, landmarks, checks })
    }

    /// What it holds.
    pub fn info(&self) -> &MemoryInfo {
        &self.info
    }

    /// The ordinary tokens of the text.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Landmark keys of a layer `(kv_heads, blocks, head_dim)`.
    pub fn landmarks(&self, layer: usize) -> &[f32] {
        &self.landmarks[layer]
    }

    /// Reads a page of a tensor (twice the layer, plus one for values) as elements of a type of floats, which need not
    /// be that of the file. False if the file does not hold it.
    ///
    /// # Errors
    /// If it cannot be read, is damaged, or holds numbers too large for the type.
    pub fn read_as(&self, tensor: usize, page: usize, dtype: DType, into: &mut [u8]) -> Result<bool> {
        let own = self.info.dtype.dtype();
        if dtype == own {
            return self.read(tensor, page, into);
        }
        let mut stored = vec![0; self.info.page_bytes()];
        if into.len() * own.size() != stored.len() * dtype.size() || !self.read(tensor, page, &mut stored)? {
            return Ok(false);
        }
        let floats = TensorRef::new(own, vec![stored.len() / own.size()], &stored[..])?.to_f32();
        into.copy_from_slice(&float_bytes(&floats, dtype)?);
        Ok(true)
    }

    /// Reads a page of a tensor (twice the layer, plus one for values). False if the file does not hold it.
    ///
    /// # Errors
    /// If it cannot be read, or is damaged.
    pub fn read(&self, tensor: usize, page: usize, into: &mut [u8]) -> Result<bool> {
        let pages = self.info.pages();
        if tensor >= 2 * self.info.layers || page >= pages || into.len() != self.info.page_bytes() {
            return Ok(false);
        }
        let index = tensor * pages + page;
        let at = 8 + index as u64 * into.len() as u64;
        read_at(&self.file, into, at).map_err(|e| Error::io(&self.path, "read", e))?;
        if crc32c::crc32c(into) != self.checks[index] {
            return Err(Error::Damaged {
                file: self.path.display().to_string(),
                format: FORMAT,
                reason: format!("the checksum of page {page} of tensor {tensor} is wrong"),
            });
        }
        Ok(true)
    }
}

/// Pages in a file without a name, which is gone when the process is, however it ends.
#[derive(Debug)]
pub struct ScratchPages {
    file: File,
    folder: PathBuf,
    /// Where each tensor begins.
    starts: Vec<u64>,
    page: usize,
}

impl ScratchPages {
    /// Room for tensors of so many pages each, of `page` bytes. Nothing is taken from the disk before it is written.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be written to.
    pub fn create(folder: &Path, pages: &[usize], page: usize) -> Result<Self> {
        let file = tempfile::tempfile_in(folder).map_err(|e| Error::io(folder, "create a file in", e))?;
        let mut end = 0;
        let starts = pages.iter().map(|&pages| {
            end += pages as u64 * page as u64;
            end - pages as u64 * page as u64
        });
        let starts = starts.collect();
        file.set_len(end).map_err(|e| Error::io(folder, "make room in", e))?;
        Ok(ScratchPages { file, folder: folder.to_owned(), starts, page })
    }

    /// Reads a page: zeros where it was never written.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk fails.
    pub fn read(&self, tensor: usize, page: usize, into: &mut [u8]) -> Result<()> {
        read_at(&self.file, into, self.at(tensor, page))
            .map_err(|e| Error::io(&self.folder, "read pages in", e))
    }

    /// Writes a page.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk fails or is full.
    pub fn write(&self, tensor: usize, page: usize, from: &[u8]) -> Result<()> {
        write_at(&self.file, from, self.at(tensor, page))
            .map_err(|e| Error::io(&self.folder, "write pages in", e))
    }

    fn at(&self, tensor: usize, page: usize) -> u64 {
        self.starts[tensor] + page as u64 * self.page as u64
    }
}

#[cfg(unix)]
fn read_at(file: &File, into: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, into, at)
}

#[cfg(unix)]
fn write_at(file: &File, from: &[u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, from, at)
}

#[cfg(windows)]
fn read_at(file: &File, mut into: &mut [u8], mut at: u64) -> io::Result<()> {
    while !into.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, into, at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => (into, at) = (&mut into[n..], at + n as u64),
        }
    }
    Ok(())
}

#[cfg(windows)]
fn write_at(file: &File, mut from: &[u8], mut at: u64) -> io::Result<()> {
    while !from.is_empty() {
        match std::os::windows::fs::FileExt::seek_write(file, from, at)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => (from, at) = (&from[n..], at + n as u64),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> MemoryInfo {
        MemoryInfo {
            model: "abc".into(),
            model_path: "here".into(),
            layers: 2,
            kv_heads: 2,
            head_dim: 4,
            block: 3,
            positions: 7,
            tokens: 5,
            chunk: 2,
            top_k: 1,
            retrieval: "max_over_heads".into(),
            dtype: PageType::F32,
        }
    }

    /// A memory that a GPU read in bfloat16 is asked on a CPU, and the other way round.
    #[test]
    fn pages_are_read_in_another_type() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m");
        let info =
            MemoryInfo { dtype: PageType::Bf16, layers: 1, tokens: 2, positions: 3, kv_heads: 1, ..info() };
        let mut writer = MemoryWriter::create(&path, info).unwrap();
        let values: Vec<f32> = (0..24).map(|i| i as f32 - 7.5).collect();
        writer.pages(&float_bytes(&values, DType::BF16).unwrap()).unwrap();
        writer.finish(&[1, 2], &[vec![0.0; 4]]).unwrap();
        let file = MemoryFile::open(&path).unwrap();
        let mut found = [0; 48];
        assert!(file.read_as(1, 0, DType::F32, &mut found).unwrap());
        assert_eq!(found[..], float_bytes(&values[12..], DType::F32).unwrap()[..]);
        assert!(
            !file.read_as(1, 0, DType::F32, &mut [0; 24]).unwrap(),
            "pages of another length are not there"
        );
    }

    fn page(tensor: usize, page: usize) -> Vec<u8> {
        (0..48).map(|i| (tensor * 60 + page * 7 + i) as u8).collect()
    }

    fn save(path: &Path) {
        let info = info();
        let mut writer = MemoryWriter::create(path, info.clone()).unwrap();
        for tensor in 0..4 {
            for number in 0..info.pages() {
                writer.pages(&page(tensor, number)).unwrap();
            }
        }
        let landmarks: Vec<Vec<f32>> =
            (0..2).map(|layer| (0..16).map(|i| (layer * 100 + i) as f32).collect()).collect();
        writer.finish(&[1, 2, 3, 4, 5], &landmarks).unwrap();
    }

    #[test]
    fn what_was_saved_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.memory");
        save(&path);
        let memory = MemoryFile::open(&path).unwrap();
        assert_eq!((memory.info(), memory.tokens()), (&info(), &[1, 2, 3, 4, 5][..]));
        assert_eq!(memory.landmarks(1)[3], 103.0);
        let mut bytes = vec![0; 48];
        for (tensor, number) in [(0, 0), (1, 5), (3, 2)] {
            assert!(memory.read(tensor, number, &mut bytes).unwrap());
            assert_eq!(bytes, page(tensor, number));
        }
        assert!(!memory.read(3, 6, &mut bytes).unwrap());
        assert!(!memory.read(4, 0, &mut bytes).unwrap());
    }

    /// Whatever byte is changed, and wherever the file is cut, it is noticed.
    #[test]
    fn damage_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.memory");
        save(&path);
        let whole = std::fs::read(&path).unwrap();
        let is_noticed = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let Ok(memory) = MemoryFile::open(&path) else { return true };
            let mut page = vec![0; 48];
            (0..4).any(|tensor| (0..6).any(|number| memory.read(tensor, number, &mut page).is_err()))
        };
        assert!(!is_noticed(&whole));
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            assert!(is_noticed(&bytes), "byte {at}");
            assert!(is_noticed(&whole[..at]), "cut at {at}");
        }
        assert!(is_noticed(&[&whole[..], &[0]].concat()));
        assert!(MemoryFile::open(folder.path()).is_err());
    }

    #[test]
    fn scratch_pages_are_zero_until_written() {
        let folder = tempfile::tempdir().unwrap();
        let scratch = ScratchPages::create(folder.path(), &[3, 2], 8).unwrap();
        scratch.write(1, 1, &[7; 8]).unwrap();
        scratch.write(0, 2, &[9; 8]).unwrap();
        let mut page = [1; 8];
        for (tensor, number, expected) in [(0, 0, 0), (0, 2, 9), (1, 0, 0), (1, 1, 7)] {
            scratch.read(tensor, number, &mut page).unwrap();
            assert_eq!(page, [expected; 8]);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "it has no name");
        assert!(ScratchPages::create(&folder.path().join("none"), &[1], 8).is_err());
    }
}
