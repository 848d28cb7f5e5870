//! Compiled kernels on disk, so that only the first run of a version compiles.
//!
//! A file is named by the SHA-256 of everything that went into it (source, headers, options, version of the compiler)
//! and begins with the SHA-256 of what follows. One that is damaged is as good as absent, and a folder that cannot be
//! written only costs time: nothing here is an error. Files are written under a temporary name, synced, and renamed,
//! so that several processes may share the folder.

use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::{Path, PathBuf};

/// First bytes of a file, with the version of this format.
const MAGIC: &[u8; 8] = b"LMCUBIN1";

/// A folder of compiled kernels; `None` where there is no place for one.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: Option<PathBuf>,
}

impl Cache {
    /// The user's: `LANDMARK_CUDA_CACHE`, else `$XDG_CACHE_HOME/landmark/cuda`, else `~/.cache/landmark/cuda`.
    pub fn of_user() -> Self {
        let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let folder = variable("LANDMARK_CUDA_CACHE").or_else(|| {
            let caches = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|h| h.join(".cache")))?;
            Some(caches.join("landmark").join("cuda"))
        });
        Cache { folder }
    }

    /// One in `folder`.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Cache { folder: Some(folder.into()) }
    }

    /// Where it is.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// What was stored under `key`, if it is there and whole.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        let bytes = std::fs::read(self.folder.as_ref()?.join(file_name(key))).ok()?;
        let (head, payload) = bytes.split_at_checked(MAGIC.len() + 32)?;
        let sound = head.starts_with(MAGIC) && head[MAGIC.len()..] == *Sha256::digest(payload);
        sound.then(|| payload.to_vec())
    }

    /// Stores `payload`, if it can be stored.
    pub fn put(&self, key: &str, payload: &[u8]) {
        let Some(folder) = &self.folder else { return };
        let store = || -> std::io::Result<()> {
            std::fs::create_dir_all(folder)?;
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            file.write_all(MAGIC)?;
            file.write_all(&Sha256::digest(payload))?;
            file.write_all(payload)?;
            file.as_file().sync_all()?;
            file.persist(folder.join(file_name(key)))?;
            Ok(())
        };
        // Without a cache everything works, only later.
        let _ = store();
    }
}

fn file_name(key: &str) -> String {
    format!("{key}.cubin")
}

/// SHA-256 of parts, each with its length, as lower-case hexadecimal digits.
pub(crate) fn key<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_got_until_a_bit_of_it_turns() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("deep").join("down"));
        assert_eq!(cache.get("k"), None);
        cache.put("k", b"kernel");
        assert_eq!(cache.get("k").as_deref(), Some(&b"kernel"[..]));
        let path = cache.folder().unwrap().join("k.cubin");
        let whole = std::fs::read(&path).unwrap();
        for at in [0, MAGIC.len(), whole.len() - 1] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(cache.get("k"), None, "byte {at}");
        }
        std::fs::write(&path, &whole[..10]).unwrap();
        assert_eq!(cache.get("k"), None, "cut short");
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), b"").unwrap();
        let cache = Cache::at(folder.path().join("file").join("below"));
        cache.put("k", b"kernel");
        assert_eq!(cache.get("k"), None);
    }

    #[test]
    fn keys_tell_where_parts_end() {
        assert_ne!(key([&b"ab"[..], b"c"]), key([&b"a"[..], b"bc"]));
        assert_eq!(key([&b"ab"[..]]).len(), 64);
    }
}
