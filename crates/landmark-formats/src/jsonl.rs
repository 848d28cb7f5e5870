//! Metrics as JSON lines: one object a line, appended as training goes.
//!
//! A log is the one kind of file that is written in place: it grows for days, and rewriting it for each line would
//! be absurd. What a crash can do to it is leave a torn last line; what a resumed run does to it is write steps again
//! that it holds already. [`JsonlWriter::resume`] deals with both by cutting the file back to the last line that the
//! checkpoint vouches for, after which the log reads as if training had never stopped.

use crate::{Error, Result};
use serde::Serialize;
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// No record of ours comes near this; a longer line is not a record but damage.
const LONGEST_LINE: u64 = 16 << 20;

/// An open metrics file.
#[derive(Debug)]
pub struct JsonlWriter {
    path: PathBuf,
    writer: BufWriter<File>,
}

impl JsonlWriter {
    /// Starts a new file, emptying one that is there.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be created.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|e| Error::io(path, "create", e))?;
        Ok(JsonlWriter { path: path.to_path_buf(), writer: BufWriter::new(file) })
    }

    /// Continues a file, or starts it if there is none. Records are kept up to the first that is torn, or whose
    /// `"step"` is above `last_step`; everything from there on is cut off. Records without a step are kept.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read or written.
    pub fn resume(path: &Path, last_step: u64) -> Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|e| Error::io(path, "open", e))?;
        let kept = kept_length(&file, last_step).map_err(|e| Error::io(path, "read", e))?;
        file.set_len(kept).and_then(|()| file.sync_all()).map_err(|e| Error::io(path, "cut back", e))?;
        file.seek(SeekFrom::Start(kept)).map_err(|e| Error::io(path, "write", e))?;
        Ok(JsonlWriter { path: path.to_path_buf(), writer: BufWriter::new(file) })
    }

    /// Appends one record. It reaches the disk at the next [`JsonlWriter::flush`], or when the buffer is full.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written or is not representable as JSON.
    pub fn write(&mut self, record: &impl Serialize) -> Result<()> {
        let line = serde_json::to_vec(record).map_err(std::io::Error::other);
        let line = line.and_then(|mut line| {
            line.push(b'\n');
            self.writer.write_all(&line)
        });
        line.map_err(|e| Error::io(&self.path, "write", e))
    }

    /// Hands everything to the operating system: it survives this process, though not a loss of power.
    ///
    /// # Errors
    /// [`Error::Io`], for example on a full disk.
    pub fn flush(&mut self) -> Result<()> {
        self.writer.flush().map_err(|e| Error::io(&self.path, "write", e))
    }

    /// Makes everything written so far last, as is done before each checkpoint.
    ///
    /// # Errors
    /// [`Error::Io`], for example on a full disk.
    pub fn sync(&mut self) -> Result<()> {
        self.flush()?;
        self.writer.get_ref().sync_all().map_err(|e| Error::io(&self.path, "write", e))
    }
}

/// The length of the records to keep.
fn kept_length(file: &File, last_step: u64) -> std::io::Result<u64> {
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    let mut kept = 0u64;
    loop {
        line.clear();
        let length = reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)?;
        let keep = line.ends_with(b"\n")
            && match serde_json::from_slice::<Value>(&line) {
                Ok(Value::Object(record)) => match record.get("step") {
                    Some(step) => step.as_u64().is_some_and(|step| step <= last_step),
                    None => true,
                },
                _ => false,
            };
        if !keep {
            return Ok(kept);
        }
        kept += length as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    fn write_steps(writer: &mut JsonlWriter, steps: impl IntoIterator<Item = u64>) {
        for step in steps {
            writer.write(&json!({"step": step, "loss": 1.5})).unwrap();
        }
        writer.flush().unwrap();
    }

    #[test]
    fn a_resumed_log_is_the_log_of_a_run_that_never_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, resumed) = (dir.path().join("whole"), dir.path().join("resumed"));
        write_steps(&mut JsonlWriter::create(&whole).unwrap(), 0..10);
        write_steps(&mut JsonlWriter::create(&resumed).unwrap(), 0..7);
        write_steps(&mut JsonlWriter::resume(&resumed, 4).unwrap(), 5..10);
        assert_eq!(fs::read_to_string(&resumed).unwrap(), fs::read_to_string(&whole).unwrap());
    }

    #[test]
    fn wherever_a_crash_tears_the_log_whole_lines_remain() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let line = "{\"step\":0,\"loss\":1.5}\n";
        let two = line.to_string() + &line.replace('0', "1");
        for length in 0..=two.len() {
            fs::write(&path, &two[..length]).unwrap();
            drop(JsonlWriter::resume(&path, 9).unwrap());
            let kept = fs::read_to_string(&path).unwrap();
            assert_eq!(kept.len(), length / line.len() * line.len(), "torn at {length}");
        }
    }

    #[test]
    fn damage_and_missing_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        drop(JsonlWriter::resume(&path, 0).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"");
        fs::write(&path, b"{\"config\":1}\n{\"step\":1}\n\xff\xfe\n{\"step\":2}\n").unwrap();
        drop(JsonlWriter::resume(&path, 9).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"config\":1}\n{\"step\":1}\n");
        let error = JsonlWriter::create(&dir.path().join("no/m.jsonl")).unwrap_err().to_string();
        assert!(error.contains("no/m.jsonl"), "{error}");
    }
}
