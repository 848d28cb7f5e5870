//! The bytes of a file: memory-mapped where there are files, owned where there are not.
//!
//! Mapping is what lets a 13 GB checkpoint be opened in a millisecond and read tensor by tensor. Reading the
//! whole file into memory instead was rejected for that reason alone; it is what wasm does.
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
    #[cfg(not(target_family = "wasm"))]
    Mapped(memmap2::Mmap),
}

impl FileBytes {
    /// Bytes that are in memory already; `label` stands for the path in errors.
    pub fn from_vec(label: impl Into<String>, bytes: Vec<u8>) -> Self {
        FileBytes { label: label.into(), backing: Backing::Owned(bytes) }
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
            #[cfg(not(target_family = "wasm"))]
            Backing::Mapped(map) => map,
        }
    }
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
    fn errors_name_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let missing = FileBytes::open(&dir.path().join("missing.pt")).unwrap_err().to_string();
        assert!(missing.contains("missing.pt") && missing.contains("check the path"), "{missing}");
        let directory = FileBytes::open(dir.path()).unwrap_err().to_string();
        assert!(directory.contains("not a regular file"), "{directory}");
    }
}
