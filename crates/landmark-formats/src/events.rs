//! TensorBoard event files: scalars by step, as TensorFlow's summary writer has them.
//!
//! A file is a sequence of records (TFRecord framing: length, masked CRC-32C of the length, payload, masked CRC-32C
//! of the payload), each an `Event` protobuf. Only the fields that scalars need are declared here; `prost` does the
//! encoding. TensorBoard itself converts the old `simple_value` form on reading, and every tool that imports event
//! files understands it, so that is what is written.
//!
//! Like [`jsonl`](crate::jsonl) this is a log, appended in place and cut back on resuming.
//!
//! Framing: `tensorflow/core/lib/io/record_writer.h`; messages: `tensorflow/core/util/event.proto`.

use crate::{Error, Result};
use prost::Message;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The first event of every file.
const VERSION: &str = "brain.Event:2";

/// The largest payload believed when reading back our own file; scalars take some fifty bytes each.
const LARGEST_RECORD: u64 = 16 << 20;

#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// An open event file.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    writer: BufWriter<File>,
}

impl EventWriter {
    /// A file name that TensorBoard finds: `events.out.tfevents.SECONDS.landmark`.
    pub fn file_name() -> String {
        format!("events.out.tfevents.{:010}.landmark", now() as u64)
    }

    /// Starts a new file, emptying one that is there.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be created or written.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|e| Error::io(path, "create", e))?;
        let mut writer = EventWriter { path: path.to_path_buf(), writer: BufWriter::new(file) };
        writer.write_version()?;
        Ok(writer)
    }

    /// Continues a file, or starts it if there is none. Events are kept up to the first that is torn or damaged, or
    /// whose step is above `last_step`; everything from there on is cut off.
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
        let last_step = i64::try_from(last_step).unwrap_or(i64::MAX);
        let kept = kept_length(&file, last_step).map_err(|e| Error::io(path, "read", e))?;
        file.set_len(kept).and_then(|()| file.sync_all()).map_err(|e| Error::io(path, "cut back", e))?;
        file.seek(SeekFrom::Start(kept)).map_err(|e| Error::io(path, "write", e))?;
        let mut writer = EventWriter { path: path.to_path_buf(), writer: BufWriter::new(file) };
        if kept == 0 {
            writer.write_version()?;
        }
        Ok(writer)
    }

    /// Appends scalars, each a tag and a value, all at `step` and at the present time.
    ///
    /// # Errors
    /// [`Error::Io`] if they cannot be written.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f32)]) -> Result<()> {
        let value =
            values.iter().map(|&(tag, value)| Scalar { tag: tag.to_string(), simple_value: Some(value) });
        let summary = Some(Summary { value: value.collect() });
        let step = i64::try_from(step).unwrap_or(i64::MAX);
        self.append(&Event { wall_time: now(), step, file_version: None, summary })
    }

    /// Hands everything to the operating system, where TensorBoard sees it.
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

    fn write_version(&mut self) -> Result<()> {
        let file_version = Some(VERSION.to_string());
        self.append(&Event { wall_time: now(), step: 0, file_version, summary: None })?;
        self.flush()
    }

    fn append(&mut self, event: &Event) -> Result<()> {
        let record = frame(&event.encode_to_vec());
        self.writer.write_all(&record).map_err(|e| Error::io(&self.path, "write", e))
    }
}

/// A payload with its length and checksums around it.
fn frame(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), payload, &masked_crc(payload)].concat()
}

/// TensorFlow masks checksums, because a checksum of data that holds its own checksum is a weak one.
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// The payload of the next record, or `None` where the file ends or stops making sense.
fn read_record(reader: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut header = Vec::new();
    reader.by_ref().take(12).read_to_end(&mut header)?;
    let Some((length, crc)) = header.split_first_chunk::<8>() else { return Ok(None) };
    if crc != masked_crc(length) {
        return Ok(None);
    }
    let length = u64::from_le_bytes(*length);
    if length > LARGEST_RECORD {
        return Ok(None);
    }
    let mut payload = Vec::new();
    reader.by_ref().take(length + 4).read_to_end(&mut payload)?;
    if payload.len() as u64 != length + 4 {
        return Ok(None);
    }
    let crc = payload.split_off(length as usize);
    Ok((crc == masked_crc(&payload)).then_some(payload))
}

/// The length of the records to keep.
fn kept_length(file: &File, last_step: i64) -> io::Result<u64> {
    let mut reader = BufReader::new(file);
    let mut kept = 0;
    while let Some(payload) = read_record(&mut reader)? {
        match Event::decode(&payload[..]) {
            Ok(event) if event.step <= last_step => kept += payload.len() as u64 + 16,
            _ => break,
        }
    }
    Ok(kept)
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// (step, tag, value) of all scalars, and whether the file begins with its version.
    fn read_back(path: &Path) -> (bool, Vec<(i64, String, f32)>) {
        let bytes = fs::read(path).unwrap();
        let mut reader = &bytes[..];
        let (mut version, mut scalars) = (false, Vec::new());
        while let Some(payload) = read_record(&mut reader).unwrap() {
            let event = Event::decode(&payload[..]).unwrap();
            version |= event.file_version.as_deref() == Some(VERSION);
            for scalar in event.summary.into_iter().flat_map(|summary| summary.value) {
                scalars.push((event.step, scalar.tag, scalar.simple_value.unwrap()));
            }
        }
        assert!(reader.is_empty());
        (version, scalars)
    }

    #[test]
    fn the_framing_is_tensorflows() {
        // CRC-32C of the payload "abc" is 364b3fb7; rotated right by 15 it is 7f6e6c96; plus a282ead8, 21f1576e.
        assert_eq!(crc32c::crc32c(b"abc"), 0x364b_3fb7);
        let record = frame(b"abc");
        assert_eq!(record.len(), 8 + 4 + 3 + 4);
        assert_eq!(record[..8], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(record[12..15], *b"abc");
        assert_eq!(record[15..], 0x21f1_576e_u32.to_le_bytes());
    }

    #[test]
    fn the_message_is_the_protobuf_of_event_proto() {
        let summary = Summary { value: vec![Scalar { tag: "a".into(), simple_value: Some(1.5) }] };
        let event = Event { wall_time: 1.0, step: 3, file_version: None, summary: Some(summary) };
        let expected = [
            &[0x09, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f][..], // field 1, double 1.0
            &[0x10, 3],                                // field 2, varint 3
            &[0x2a, 10, 0x0a, 8],                      // field 5, 10 bytes: field 1, 8 bytes:
            &[0x0a, 1, b'a', 0x15, 0, 0, 0xc0, 0x3f],  // field 1, "a"; field 2, float 1.5
        ]
        .concat();
        assert_eq!(event.encode_to_vec(), expected);
    }

    #[test]
    fn a_resumed_file_reads_as_if_it_had_never_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(EventWriter::file_name());
        let mut writer = EventWriter::create(&path).unwrap();
        for step in 0..7 {
            writer.scalars(step, &[("loss", step as f32), ("lr", 0.5)]).unwrap();
        }
        writer.flush().unwrap();
        drop(writer);
        let mut writer = EventWriter::resume(&path, 4).unwrap();
        writer.scalars(5, &[("loss", 55.0)]).unwrap();
        writer.sync().unwrap();
        let (version, scalars) = read_back(&path);
        assert!(version);
        assert_eq!(scalars.len(), 11);
        assert_eq!(scalars[9], (4, "lr".to_string(), 0.5));
        assert_eq!(scalars[10], (5, "loss".to_string(), 55.0));
    }

    #[test]
    fn wherever_a_crash_tears_the_file_whole_events_remain() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let mut writer = EventWriter::create(&path).unwrap();
        writer.scalars(1, &[("loss", 1.0)]).unwrap();
        writer.scalars(2, &[("loss", 2.0)]).unwrap();
        drop(writer);
        let whole = fs::read(&path).unwrap();
        for length in 0..=whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let mut writer = EventWriter::resume(&path, 9).unwrap();
            writer.scalars(3, &[("loss", 3.0)]).unwrap();
            drop(writer);
            let (version, scalars) = read_back(&path);
            assert!(version, "cut at {length}");
            assert_eq!(scalars.last().unwrap().0, 3, "cut at {length}");
        }
    }

    #[test]
    fn damage_ends_what_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let mut writer = EventWriter::create(&path).unwrap();
        writer.scalars(1, &[("loss", 1.0)]).unwrap();
        drop(writer);
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 6;
        bytes[last] ^= 1;
        bytes.extend_from_slice(&[0xff; 64]); // a length of 2^64 - 1, were it believed
        fs::write(&path, &bytes).unwrap();
        drop(EventWriter::resume(&path, 9).unwrap());
        assert_eq!(read_back(&path), (true, vec![]));
    }
}
