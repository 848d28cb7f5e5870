//! The bytes of a file: memory-mapped where there are files, owned where there are not, and those that the program brings along.
//!
//! Mapping is what lets a 13 GB checkpoint be opened in a millisecond and read tensor by tensor. Reading the
//! whole file into memory instead was rejected for that reason alone; it is what wasm does.
//!
//! Pages of a map that were looked at count as memory of the process for as long as the system likes. Whoever walks
//! through a large file calls [`FileBytes::release`] behind itself, and needs no more memory than a step does.
//!
//! This module holds the only `unsafe` of the crate. Mapping a file is unsafe in Rust because another process may
//! change or shorten the file while it is mapped, and then bytes that are borrowed as constant are not. That
//! cannot be ruled out from inside a process, on any system that we run on.

use std::fmt;

/// The bytes of one file and the name to use for it in errors.
pub struct FileBytes {
    label: String,
    backing: Backing,
}

enum Backing {
    Owned(Vec<u8>),
    Static(&'static [u8]),
    #[cfg(not(target_family = "wasm"))]
    Mapped(memmap2::Mmap),
}

impl FileBytes {
    /// Bytes that are in memory already; `label` stands for the path in errors.
    pub fn from_vec(label: impl Into<String>, bytes: Vec<u8>) -> Self {
        FileBytes { label: label.into(), backing: Backing::Owned(bytes) }
    }

    /// Bytes that are a part of the program.
    pub fn from_static(label: impl Into<String>, bytes: &'static [u8]) -> Self {
        FileBytes { label: label.into(), backing: Backing::Static(bytes) }
    }

    /// Maps the file at `path`.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if it cannot be opened or mapped, or is a directory.
    #[cfg(not(target_family = "wasm"))]
    pub fn open(path: &std::path::Path) -> crate::Result<Self> {
        use crate::Error;
        let file = std::fs::File::open(path).map_err(|e| Error::io(path, "open", e))?;
        let metadata = file.metadata().map_err(|e| Error::io(path, "open", e))?;
        if !metadata.is_file() {
            let source = std::io::Error::other("it is not a regular file; give the path of a file");
            return Err(Error::io(path, "open", source));
        }
        Ok(FileBytes { label: path.display().to_string(), backing: map(path, &file, metadata.len())? })
    }

    /// The name of the file for errors.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// All bytes of the file.
    pub fn as_slice(&self) -> &[u8] {
        match &self.backing {
            Backing::Owned(bytes) => bytes,
            Backing::Static(bytes) => bytes,
            #[cfg(not(target_family = "wasm"))]
            Backing::Mapped(map) => map,
        }
    }

    /// Gives up the memory that looking at `part` of these bytes took. They stay valid; who looks again reads
    /// them from the file again. Bytes that do not lie in the map are left alone.
    pub fn release(&self, part: &[u8]) {
        #[cfg(unix)]
        if let Backing::Mapped(map) = &self.backing {
            let offset = part.as_ptr().addr().checked_sub(map.as_ptr().addr());
            let is_inside =
                |&offset: &usize| offset.checked_add(part.len()).is_some_and(|end| end <= map.len());
            if let Some(offset) = offset.filter(is_inside) {
                give_up(map, offset, part.len());
            }
        }
        #[cfg(not(unix))]
        let _ = part;
    }
}

/// Unmaps pages until they are read again.
#[cfg(unix)]
fn give_up(map: &memmap2::Mmap, offset: usize, length: usize) {
    use memmap2::UncheckedAdvice::DontNeed;
    // SAFETY: the range lies within the map. The map is of a file and read-only, so the pages hold what the file holds,
    // and the next access reads it from there: references stay valid and see the same bytes. (The advice is
    // unsafe in general because it would drop what was written to private pages; nothing can be written to these.)
    #[allow(unsafe_code)]
    // A system that cannot do this keeps the pages, as if nothing had been asked.
    let _ = unsafe { map.unchecked_advise_range(DontNeed, offset, length) };
}

#[cfg(not(target_family = "wasm"))]
fn map(path: &std::path::Path, file: &std::fs::File, length: u64) -> crate::Result<Backing> {
    if length == 0 {
        return Ok(Backing::Owned(Vec::new())); // Linux refuses to map nothing
    }
    // SAFETY: the map is read-only and private to this object. What remains is the condition that nobody shortens
    // or rewrites the file in place while it is mapped. Our own writers never do (they rename whole files into
    // place, which leaves a mapped file as it was); that other programs do not is a documented requirement, as for
    // every program that maps its weights. If one does, values are wrong or the process gets SIGBUS; every length
    // and offset was checked against the size at opening, so no other memory is read.
    #[allow(unsafe_code)]
    let map = unsafe { memmap2::Mmap::map(file) };
    Ok(Backing::Mapped(map.map_err(|e| crate::Error::io(path, "map", e))?))
}

impl fmt::Debug for FileBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileBytes({}, {} bytes)", self.label, self.as_slice().len())
    }
}

#[cfg(all(test, not(target_family = "wasm")))]
mod tests {
    use super::*;

    #[test]
    fn mapped_bytes_are_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, b"abc").unwrap();
        assert_eq!(FileBytes::open(&path).unwrap().as_slice(), b"abc");
        std::fs::write(&path, b"").unwrap();
        assert_eq!(FileBytes::open(&path).unwrap().as_slice(), b"");
    }

    #[test]
    fn released_bytes_are_still_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let content: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let bytes = FileBytes::open(&path).unwrap();
        for range in [0..100_000, 5_000..60_000, 99_999..100_000, 7..7] {
            assert_eq!(bytes.as_slice(), content);
            bytes.release(&bytes.as_slice()[range]);
        }
        bytes.release(&content); // of another place
        assert_eq!(bytes.as_slice(), content);
    }

    #[test]
    fn errors_name_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let missing = FileBytes::open(&dir.path().join("missing.pt")).unwrap_err().to_string();
        assert!(missing.contains("missing.pt") && missing.contains("check the path"), "{missing}");
        let directory = FileBytes::open(dir.path()).unwrap_err().to_string();
        assert!(directory.contains("not a regular file"), "{directory}");
    }
}
