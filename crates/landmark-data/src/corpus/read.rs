//! Reads the files of a plan into batches for the encoder.
//!
//! Everything that must be done in order happens here, on one thread, and as little else as possible: files are read,
//! decompressed and cut into items; validating, parsing and encoding is left to the others. Batches go through a
//! bounded channel, so a slow encoder holds the reader up and memory does not grow with the corpus.
//!
//! Text is cut into segments where the tokenizer knows that a cut changes nothing. So one large book keeps
//! all cores busy, and a text larger than memory can be read.

use std::cell::Cell;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::mpsc::SyncSender;

use super::jsonl::Lines;
use super::{Format, Plan, Source};
use crate::dataset::Split;
use crate::error::{Error, Result, reading};
use crate::tokenizer::Tokenizer;

/// Text is cut into segments of about this many bytes: small enough to share out, large enough that the cost of an
/// item does not matter.
const SEGMENT: usize = 256 << 10;

/// Work for one core.
pub(crate) struct Item {
    /// Index of the file in the plan.
    pub(crate) source: usize,
    pub(crate) split: Split,
    pub(crate) payload: Payload,
}

pub(crate) enum Payload {
    /// Part of a text, from byte `offset` of its file; `last` if the document ends with it.
    Text { bytes: Vec<u8>, offset: u64, last: bool },
    /// A line of JSON.
    Json { bytes: Vec<u8>, line: u64 },
}

/// Items in order, and how much of the corpus has been read with them.
pub(crate) struct Batch {
    pub(crate) items: Vec<Item>,
    /// Bytes of the corpus, as stored, up to the end of this batch.
    pub(crate) bytes_done: u64,
}

/// How the corpus is read.
pub(crate) struct Options<'a> {
    pub(crate) tokenizer: &'a Tokenizer,
    /// Longest line, and longest stretch of text without a cut, in bytes.
    pub(crate) limit: usize,
    /// Every how many-th document goes to validation, where the plan does not say; 0 for none.
    pub(crate) period: u64,
    /// A batch is sent once it holds this many bytes.
    pub(crate) batch_bytes: usize,
}

/// Reads the whole plan into `batches`; an error is the last thing sent.
pub(crate) fn read_all(plan: &Plan, options: &Options<'_>, batches: SyncSender<Result<Batch>>) {
    let mut batcher = Batcher { items: Vec::new(), held: 0, options, read: 0, batches: &batches };
    let mut documents = 0;
    for (index, source) in plan.sources.iter().enumerate() {
        let outcome = match source.format {
            Format::Text => {
                documents += 1;
                let split = source.split.unwrap_or_else(|| options.split(documents - 1));
                read_text(source, index, split, &mut batcher)
            }
            Format::JsonLines(..) => read_lines(source, index, &mut documents, &mut batcher),
        };
        match outcome {
            Ok(()) => {}
            Err(Stop::Hung) => return,
            Err(Stop::Failed(error)) => {
                // What was read before the error goes first, so that the earliest error wins.
                if batcher.flush().is_ok() {
                    let _ = batches.send(Err(error));
                }
                return;
            }
        }
    }
    let _ = batcher.flush();
}

impl Options<'_> {
    fn split(&self, document: u64) -> Split {
        if self.period > 0 && document.is_multiple_of(self.period) { Split::Validation } else { Split::Train }
    }
}

/// Why reading ends early.
enum Stop {
    Failed(Error),
    /// The receiver is gone.
    Hung,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

struct Batcher<'a> {
    items: Vec<Item>,
    held: usize,
    options: &'a Options<'a>,
    /// Bytes read from disk so far.
    read: u64,
    batches: &'a SyncSender<Result<Batch>>,
}

impl Batcher<'_> {
    fn push(&mut self, item: Item) -> Result<(), Stop> {
        self.held += match &item.payload {
            Payload::Text { bytes, .. } | Payload::Json { bytes, .. } => bytes.len(),
        };
        self.items.push(item);
        if self.held >= self.options.batch_bytes { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Stop> {
        self.held = 0;
        let batch = Batch { items: std::mem::take(&mut self.items), bytes_done: self.read };
        self.batches.send(Ok(batch)).map_err(|_| Stop::Hung)
    }
}

/// Counts what is read through it.
struct Counted<'c, R> {
    reader: R,
    count: &'c Cell<u64>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.count.set(self.count.get() + read as u64);
        Ok(read)
    }
}

/// The part of the file that the source names.
fn open(source: &Source) -> std::io::Result<impl Read + use<>> {
    let mut file = File::open(&source.path)?;
    file.seek(SeekFrom::Start(source.range.start))?;
    Ok(file.take(source.range.end - source.range.start))
}

fn read_text(source: &Source, index: usize, split: Split, batcher: &mut Batcher<'_>) -> Result<(), Stop> {
    let options = batcher.options;
    let mut reader = open(source).map_err(reading(&source.path))?;
    let mut offset = source.range.start;
    let mut held: Vec<u8> = Vec::new();
    loop {
        // Without a cut, twice as much is looked at next: the search stays linear.
        let more = held.len().max(SEGMENT);
        let read = reader.by_ref().take(more as u64).read_to_end(&mut held).map_err(reading(&source.path))?;
        batcher.read += read as u64;
        let last = read < more;
        let cut = if last { Some(held.len()) } else { options.tokenizer.last_cut(&held) };
        let Some(cut) = cut else {
            if held.len() > options.limit {
                return Err(too_long(&source.path, offset, options.limit)?.into());
            }
            continue;
        };
        let rest = held.split_off(cut);
        let bytes = std::mem::replace(&mut held, rest);
        let payload = Payload::Text { bytes, offset, last };
        offset += cut as u64;
        batcher.push(Item { source: index, split, payload })?;
        if last {
            return Ok(());
        }
    }
}

fn too_long(path: &Path, offset: u64, limit: usize) -> Result<Error> {
    let what = "the text from here on, which this tokenizer can only encode whole,";
    Ok(Error::TooLong { path: path.into(), line: line_at(path, offset)?, what, limit })
}

fn read_lines(
    source: &Source,
    index: usize,
    documents: &mut u64,
    batcher: &mut Batcher<'_>,
) -> Result<(), Stop> {
    let Format::JsonLines(compression, _) = source.format else { return Ok(()) };
    let count = Cell::new(0);
    let before = batcher.read;
    let reader = Counted { reader: open(source).map_err(reading(&source.path))?, count: &count };
    let mut lines = Lines::new(reader, compression, batcher.options.limit).map_err(reading(&source.path))?;
    while let Some((line, bytes)) = lines.next_line(&source.path)? {
        batcher.read = before + count.get();
        let split = source.split.unwrap_or_else(|| batcher.options.split(*documents));
        *documents += 1;
        batcher.push(Item { source: index, split, payload: Payload::Json { bytes, line } })?;
    }
    batcher.read = before + count.get();
    Ok(())
}

/// The line, from 1, in which byte `offset` of a file lies. Reads the file again: only errors need to know.
pub(crate) fn line_at(path: &Path, offset: u64) -> Result<u64> {
    let mut reader = BufReader::new(File::open(path).map_err(reading(path))?).take(offset);
    let mut line = 1;
    loop {
        let buffer = reader.fill_buf().map_err(reading(path))?;
        if buffer.is_empty() {
            return Ok(line);
        }
        line += buffer.iter().filter(|&&byte| byte == b'\n').count() as u64;
        let length = buffer.len();
        reader.consume(length);
    }
}

/// The offset of the first line that begins at byte `offset` or later (perhaps the end of the file).
pub(crate) fn next_line(path: &Path, offset: u64) -> Result<u64> {
    let Some(mut at) = offset.checked_sub(1) else { return Ok(0) };
    let mut file = File::open(path).map_err(reading(path))?;
    file.seek(SeekFrom::Start(at)).map_err(reading(path))?;
    let mut reader = BufReader::new(file);
    loop {
        let buffer = reader.fill_buf().map_err(reading(path))?;
        if let Some(newline) = buffer.iter().position(|&byte| byte == b'\n') {
            return Ok(at + newline as u64 + 1);
        }
        if buffer.is_empty() {
            return Ok(at);
        }
        let length = buffer.len();
        at += length as u64;
        reader.consume(length);
    }
}
