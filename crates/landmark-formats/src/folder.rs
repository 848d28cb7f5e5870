//! Where the files of a model lie: in a folder on the disk, or in the program itself.
//!
//! A program may bring a model along ([`Embedded`], made of `include_bytes!`). Whoever reads a model asks a [`Folder`] for its
//! files by name, so there is one way to open a model, and an embedded one is checked like any other. Rejected: unpacking it
//! into a temporary folder, which costs a disk that may be full, and leaves files behind when the program is killed.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use crate::bytes::FileBytes;
use crate::huggingface::read_bounded;
use crate::{Error, Result};

/// The files of a model that is a part of the program.
#[derive(Debug)]
pub struct Embedded {
    /// What stands for the folder's path, in messages and on command lines.
    pub name: &'static str,
    /// Names and contents.
    pub files: &'static [(&'static str, &'static [u8])],
}

impl Embedded {
    /// What a file holds, if there is one of this name.
    pub fn file(&self, name: &str) -> Option<&'static [u8]> {
        self.files.iter().find(|(known, _)| *known == name).map(|(_, bytes)| *bytes)
    }
}

/// A folder with the files of a model.
#[derive(Clone, Debug)]
pub enum Folder {
    /// On the disk.
    Disk(PathBuf),
    /// In the program.
    Embedded(&'static Embedded),
}

impl Folder {
    /// Its path, or the name that stands for one.
    pub fn path(&self) -> &Path {
        match self {
            Folder::Disk(path) => path,
            Folder::Embedded(embedded) => Path::new(embedded.name),
        }
    }

    /// The path of a file in it, or the name that stands for one.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Whether there is a file of this name.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Folder::Disk(path) => path.join(name).is_file(),
            Folder::Embedded(embedded) => embedded.file(name).is_some(),
        }
    }

    /// The bytes of a small file.
    ///
    /// # Errors
    /// As [`read_bounded`]; [`Error::Missing`] if an embedded folder has none of this name.
    pub fn read(&self, name: &str, largest: u64) -> Result<Cow<'static, [u8]>> {
        match self {
            Folder::Disk(path) => Ok(Cow::Owned(read_bounded(&path.join(name), largest)?)),
            Folder::Embedded(embedded) => Ok(Cow::Borrowed(found(embedded, name)?)),
        }
    }

    /// A file, mapped if it is on the disk.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be opened; [`Error::Missing`] if an embedded folder has none of this name.
    pub fn open(&self, name: &str) -> Result<FileBytes> {
        match self {
            Folder::Disk(path) => FileBytes::open(&path.join(name)),
            Folder::Embedded(embedded) => {
                Ok(FileBytes::from_static(self.file(name).display().to_string(), found(embedded, name)?))
            }
        }
    }

    /// Names of the files in it, sorted.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be listed.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = match self {
            Folder::Disk(path) => std::fs::read_dir(path)
                .map_err(|e| Error::io(path, "list", e))?
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect(),
            Folder::Embedded(embedded) => embedded.files.iter().map(|(name, _)| (*name).to_owned()).collect(),
        };
        names.sort();
        Ok(names)
    }
}

fn found(embedded: &Embedded, name: &str) -> Result<&'static [u8]> {
    embedded.file(name).ok_or_else(|| Error::Missing {
        file: embedded.name.to_owned(),
        what: format!("file `{name}`"),
        present: embedded.files.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
    })
}

impl From<&Path> for Folder {
    fn from(path: &Path) -> Folder {
        Folder::Disk(path.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static EMBEDDED: Embedded =
        Embedded { name: "test://model", files: &[("b.json", b"{}"), ("a.bin", &[1, 2, 3])] };

    /// The same files, on the disk and in the program, are the same to whoever asks.
    #[test]
    fn both_kinds_answer_alike() {
        let disk = tempfile::tempdir().unwrap();
        for (name, bytes) in EMBEDDED.files {
            std::fs::write(disk.path().join(name), bytes).unwrap();
        }
        for folder in [Folder::from(disk.path()), Folder::Embedded(&EMBEDDED)] {
            assert_eq!(folder.names().unwrap(), ["a.bin", "b.json"]);
            assert!(folder.has("b.json") && !folder.has("c"));
            assert_eq!(&*folder.read("b.json", 9).unwrap(), b"{}");
            assert_eq!(folder.open("a.bin").unwrap().as_slice(), [1, 2, 3]);
            assert!(folder.open("a.bin").unwrap().label().ends_with("a.bin"));
            let whole = folder.open("a.bin").unwrap();
            whole.release(whole.as_slice());
            assert_eq!(whole.as_slice(), [1, 2, 3]);
            for error in [folder.read("c", 9).unwrap_err(), folder.open("c").unwrap_err()] {
                let said = error.to_string();
                assert!(said.contains(&*folder.path().to_string_lossy()) && said.contains('c'), "{said}");
            }
        }
    }
}
