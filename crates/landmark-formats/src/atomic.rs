//! Whole files, or none: how everything that is not a log gets onto the disk.
//!
//! A process may be killed at any instruction and a machine may lose power at any write. So a file is written
//! under a temporary name in its own directory (renaming across file systems is a copy), synced, renamed onto its
//! final name, and the directory is synced so that the rename itself lasts. A reader sees the old file or the new
//! one. A failed write removes its temporary file; a killed one leaves a file named `.NAME.XXXXXX.tmp`, which
//! nothing here ever reads and [`remove_leftovers`] deletes.
//!
//! Directories that must appear as a whole (a checkpoint of several files) go the same way: [`DirWriter`] fills a
//! temporary sibling and renames it. Replacing a non-empty directory in one step is not possible portably, so it
//! refuses to; checkpoints get a name of their own for each step instead.

use crate::{Error, Result};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Temporary names end so; a leading dot keeps them out of globs.
const SUFFIX: &str = ".tmp";

/// A megabyte: large enough that tensors of many small rows do not cost a system call each.
const BUFFER: usize = 1 << 20;

/// Writes the file at `path` by calling `fill` with a buffered writer. The file appears whole, and lasts once this
/// returns; on an error or a panic nothing is left behind, and a file that was there before is untouched.
///
/// # Errors
/// [`Error::Io`] with the path, whether `fill` or the file system failed.
pub fn write_atomic<F>(path: &Path, fill: F) -> Result<()>
where
    F: FnOnce(&mut FileWriter) -> io::Result<()>,
{
    write_atomic_with(path, |writer| fill(writer).map_err(|e| Error::io(path, "write", e)))
}

/// As [`write_atomic`], for a `fill` that has errors of this crate to report.
///
/// # Errors
/// What `fill` returns, or [`Error::Io`] with the path.
pub fn write_atomic_with<F>(path: &Path, fill: F) -> Result<()>
where
    F: FnOnce(&mut FileWriter) -> Result<()>,
{
    let mut writer = FileWriter::create(path)?;
    fill(&mut writer)?;
    writer.finish()?.commit()
}

/// A file that is written under a temporary name, for writers that live longer than a call of [`write_atomic`].
/// Dropping it deletes it.
#[derive(Debug)]
pub struct FileWriter {
    buffered: BufWriter<tempfile::NamedTempFile>,
    target: PathBuf,
}

impl FileWriter {
    /// Starts a file that is to appear at `target`.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory cannot be written to.
    pub fn create(target: &Path) -> Result<Self> {
        let temporary =
            builder(target).tempfile_in(parent(target)).map_err(|e| Error::io(target, "create", e))?;
        Ok(FileWriter { buffered: BufWriter::with_capacity(BUFFER, temporary), target: target.to_path_buf() })
    }

    /// Brings everything to disk. What is left is the rename, so that several files can be made to appear at
    /// nearly one moment.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk fails or is full.
    pub fn finish(self) -> Result<FinishedFile> {
        let FileWriter { buffered, target } = self;
        let written = |source| Error::io(&target, "write", source);
        let temporary = buffered.into_inner().map_err(|e| written(e.into_error()))?;
        temporary.as_file().sync_all().map_err(written)?;
        Ok(FinishedFile { temporary, target })
    }
}

impl Write for FileWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffered.write(bytes)
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.buffered.write_all(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.buffered.flush()
    }
}

/// A whole file on the disk that has no name of its own yet. Dropping it deletes it.
#[derive(Debug)]
pub struct FinishedFile {
    temporary: tempfile::NamedTempFile,
    target: PathBuf,
}

impl FinishedFile {
    /// Gives the file its name.
    ///
    /// # Errors
    /// [`Error::Io`] if the name is that of a directory, or the disk fails.
    pub fn commit(self) -> Result<()> {
        self.temporary
            .persist(&self.target)
            .map_err(|e| Error::io(&self.target, "rename a temporary file to", e.error))?;
        sync_directory(parent(&self.target))
    }
}

/// A directory that is filled under a temporary name and then appears under its own. Dropping it without
/// [`DirWriter::commit`] deletes it.
#[derive(Debug)]
pub struct DirWriter {
    temporary: tempfile::TempDir,
    target: PathBuf,
}

impl DirWriter {
    /// Starts a directory that is to appear at `target`.
    ///
    /// # Errors
    /// [`Error::Io`] if the parent cannot be written to.
    pub fn create(target: &Path) -> Result<Self> {
        let temporary =
            builder(target).tempdir_in(parent(target)).map_err(|e| Error::io(target, "create", e))?;
        Ok(DirWriter { temporary, target: target.to_path_buf() })
    }

    /// Where to write the files for now. Files written here need no temporary names, but must be synced:
    /// [`write_atomic`] does.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Renames the directory to its target.
    ///
    /// # Errors
    /// [`Error::Io`] if the target exists and is not an empty directory, or the disk fails.
    pub fn commit(self) -> Result<()> {
        sync_directory(self.temporary.path())?;
        fs::rename(self.temporary.path(), &self.target)
            .map_err(|e| Error::io(&self.target, "rename a temporary directory to", e))?;
        let _ = self.temporary.keep(); // it is no longer there under that name
        sync_directory(parent(&self.target))
    }
}

/// Deletes what killed writers left in `directory`, and returns how many there were. Only call it where no other
/// process is writing.
///
/// # Errors
/// [`Error::Io`] if the directory cannot be listed or an entry not deleted.
pub fn remove_leftovers(directory: &Path) -> Result<usize> {
    let entries = fs::read_dir(directory).map_err(|e| Error::io(directory, "list", e))?;
    let mut removed = 0;
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(directory, "list", e))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !(name.starts_with('.') && name.ends_with(SUFFIX)) {
            continue;
        }
        let path = entry.path();
        let is_directory = entry.file_type().map_err(|e| Error::io(&path, "read", e))?.is_dir();
        let outcome = if is_directory { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        outcome.map_err(|e| Error::io(&path, "delete", e))?;
        removed += 1;
    }
    Ok(removed)
}

/// Makes renames and removals in `directory` last.
///
/// # Errors
/// [`Error::Io`] if it cannot be opened or synced.
pub fn sync_directory(directory: &Path) -> Result<()> {
    // Only Unix can open a directory as a file; elsewhere the file system orders renames itself.
    if cfg!(unix) {
        let opened = File::open(directory).map_err(|e| Error::io(directory, "open", e))?;
        opened.sync_all().map_err(|e| Error::io(directory, "sync", e))?;
    }
    Ok(())
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Temporary names tell which file they were to become. The permissions are those of any new file; the library's
/// default is a file that only its owner can read, which would surprise whoever shares checkpoints.
fn builder(path: &Path) -> TemporaryName {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    TemporaryName { prefix: format!(".{name}.") }
}

struct TemporaryName {
    prefix: String,
}

impl TemporaryName {
    fn tempfile_in(&self, directory: &Path) -> io::Result<tempfile::NamedTempFile> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(&self.prefix).suffix(SUFFIX);
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        builder.tempfile_in(directory)
    }

    fn tempdir_in(&self, directory: &Path) -> io::Result<tempfile::TempDir> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(&self.prefix).suffix(SUFFIX);
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        builder.tempdir_in(directory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_whole_and_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        for text in ["first", "second, longer"] {
            write_atomic(&path, |w| w.write_all(text.as_bytes())).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(names(dir.path()), ["a.json"]);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        fs::write(&path, "old").unwrap();
        let error = write_atomic(&path, |w| {
            w.write_all(&[0; 3 << 20])?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        })
        .unwrap_err()
        .to_string();
        assert!(error.contains("a.json") && error.contains("disk is full"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names(dir.path()), ["a.json"]);
    }

    #[test]
    fn the_target_is_untouched_until_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "old").unwrap();
        write_atomic(&path, |w| {
            w.write_all(b"new")?;
            w.flush()?;
            assert_eq!(fs::read_to_string(&path)?, "old");
            assert_eq!(names(dir.path()).len(), 2, "the temporary file is a neighbour");
            Ok(())
        })
        .unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    }

    #[test]
    fn a_missing_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = write_atomic(&dir.path().join("no/such/a"), |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("no/such/a"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn others_may_read_what_we_write() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (ours, plain) = (dir.path().join("a"), dir.path().join("b"));
        write_atomic(&ours, |_| Ok(())).unwrap();
        fs::write(&plain, "").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
    }

    #[test]
    fn directories_appear_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("step-10");
        let writer = DirWriter::create(&target).unwrap();
        write_atomic(&writer.path().join("weights"), |w| w.write_all(b"w")).unwrap();
        assert!(!target.exists());
        writer.commit().unwrap();
        assert_eq!(names(&target), ["weights"]);

        drop(DirWriter::create(&dir.path().join("step-20")).unwrap());
        assert_eq!(names(dir.path()), ["step-10"]);

        let again = DirWriter::create(&target).unwrap();
        assert!(
            again.commit().unwrap_err().to_string().contains("step-10"),
            "a full directory is not replaced"
        );
        assert_eq!(names(dir.path()), ["step-10"]);
    }

    #[test]
    fn leftovers_go_and_other_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".a.safetensors.Xy12.tmp"), "").unwrap();
        fs::create_dir(dir.path().join(".step-3.Zz.tmp")).unwrap();
        fs::write(dir.path().join(".hidden"), "").unwrap();
        fs::write(dir.path().join("b.tmp"), "").unwrap();
        assert_eq!(remove_leftovers(dir.path()).unwrap(), 2);
        assert_eq!(names(dir.path()), [".hidden", "b.tmp"]);
    }
}
