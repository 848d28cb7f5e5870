//! `landmark prepare`: a corpus on disk becomes token streams on disk.
//!
//! Three stages run at once, joined by bounded channels: one thread reads (`corpus::read`), all cores
//! encode, one thread writes and hashes (`output`). Order is kept at each step, so the streams do not depend on
//! the number of cores. A document is followed by the tokenizer's end token; landmarks are not stored, they are put
//! in when batches are drawn.
//!
//! Text files are read as Python's text mode reads them, since the released program does: `\r\n` and `\r` are `\n`.

mod output;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use crate::corpus::read::{self, Item, Payload};
use crate::corpus::{self, Corpus, Format, Plan, jsonl};
use crate::dataset::{DatasetInfo, Settings, Split, TokenType};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use output::Output;

/// What to prepare, and how.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// The kind of corpus.
    pub corpus: Corpus,
    /// Where it lies.
    pub input: PathBuf,
    /// The folder for the streams; made if it does not exist.
    pub output: PathBuf,
    /// Share of the documents that is set aside for validation where the corpus comes undivided: 0 (none) to 0.5.
    /// Every n-th document is taken, beginning with the first.
    pub validation_fraction: f64,
    /// How to store tokens; by default the narrowest type that holds the vocabulary.
    pub dtype: Option<TokenType>,
    /// Replace what the output folder holds.
    pub force: bool,
    /// Longest line of JSON, and longest document for a tokenizer that must see it whole, in bytes. A
    /// `tokenizer.json` takes some 100 bytes of memory for each.
    pub max_document_bytes: usize,
}

impl PrepareOptions {
    /// The defaults: 0.5 % for validation, lines and undivided documents of at most 64 MiB.
    pub fn new(corpus: Corpus, input: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Self {
        Self {
            corpus,
            input: input.into(),
            output: output.into(),
            validation_fraction: 0.005,
            dtype: None,
            force: false,
            max_document_bytes: 64 << 20,
        }
    }
}

/// How far preparing has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Bytes of the corpus done, as stored.
    pub bytes_done: u64,
    /// Bytes of the corpus.
    pub bytes_total: u64,
    /// Tokens so far, of all splits.
    pub tokens: u64,
    /// Documents so far, of all splits.
    pub documents: u64,
    /// Since the start.
    pub elapsed: Duration,
}

/// The outcome of [`prepare`].
#[derive(Clone, Debug)]
pub struct Summary {
    /// What the output folder holds now.
    pub info: DatasetInfo,
    /// Nothing was done: the output was complete already, with the same settings.
    pub skipped: bool,
    /// Time taken.
    pub elapsed: Duration,
}

/// Encodes a corpus. `progress` is called now and then, from this thread.
///
/// Streams appear in the output folder when they are whole, `dataset.json` after them. If the folder holds the
/// result of the same settings already, nothing is done; if it holds anything else, nothing is done without
/// `force`.
///
/// # Errors
/// Bad input or options, each named; see [`Error`]. What the output folder held is then untouched.
pub fn prepare(
    options: &PrepareOptions,
    tokenizer: &Tokenizer,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Summary> {
    let start = Instant::now();
    let period = validation_period(options.validation_fraction)?;
    if options.output.exists() && !options.output.is_dir() {
        let message = format!("{} is a file; name a folder", options.output.display());
        return Err(Error::Option { option: "--output", message });
    }
    let dtype = token_type(options.dtype, tokenizer)?;
    let plan = corpus::plan(options.corpus, &options.input, options.validation_fraction)?;
    let settings = Settings {
        dataset: options.corpus.name().into(),
        source_files: plan.files,
        source_bytes: plan.bytes,
        tokenizer: tokenizer.info().clone(),
        dtype,
        validation_fraction: (!plan.divided).then_some(options.validation_fraction),
    };
    if !options.force
        && let Some(info) = output::existing(&options.output, &settings)?
    {
        return Ok(Summary { info, skipped: true, elapsed: start.elapsed() });
    }

    let output =
        Output::create(&options.output, dtype, plan.sources.iter().filter_map(|source| source.split))?;
    let encoder = Encoder { plan: &plan, tokenizer, dtype };
    let mut report = |mut at: Progress| {
        at.bytes_total = plan.bytes;
        at.elapsed = start.elapsed();
        progress(&at);
    };
    let finished = run(&encoder, options.max_document_bytes, period, output, &mut report)?;
    let splits = finished.check(&options.input, plan.divided, plan.divided || period > 0)?;
    let info = DatasetInfo { settings, source: options.input.display().to_string(), splits };
    finished.publish(&info)?;
    Ok(Summary { info, skipped: false, elapsed: start.elapsed() })
}

/// Every how many-th document goes to validation; 0 for none.
fn validation_period(fraction: f64) -> Result<u64> {
    match fraction {
        0.0 => Ok(0),
        _ if (1e-9..=0.5).contains(&fraction) => Ok((1.0 / fraction).round() as u64),
        _ => Err(Error::Option {
            option: "--validation-fraction",
            message: format!("{fraction} is not between 0 and 0.5"),
        }),
    }
}

fn token_type(wanted: Option<TokenType>, tokenizer: &Tokenizer) -> Result<TokenType> {
    let needed = TokenType::for_vocabulary(tokenizer.vocab_size());
    match wanted {
        Some(TokenType::Uint16) if needed == TokenType::Uint32 => Err(Error::Option {
            option: "--dtype",
            message: format!(
                "the {} tokens of {} do not fit uint16; use uint32",
                tokenizer.vocab_size(),
                tokenizer.info().name
            ),
        }),
        wanted => Ok(wanted.unwrap_or(needed)),
    }
}

/// Runs the three stages to the end, or to the first error.
fn run(
    encoder: &Encoder<'_>,
    limit: usize,
    period: u64,
    output: Output,
    report: &mut dyn FnMut(Progress),
) -> Result<Output> {
    let read_options = read::Options {
        tokenizer: encoder.tokenizer,
        limit,
        period,
        batch_bytes: (rayon::current_num_threads() << 20).max(4 << 20),
    };
    thread::scope(|scope| {
        let (send_batch, batches) = sync_channel(2);
        let (send_encoded, encoded) = sync_channel(2);
        scope.spawn(|| read::read_all(encoder.plan, &read_options, send_batch));
        let writer = scope.spawn(|| output.write_all(encoded));
        // This closure owns its ends of the channels: when it returns, early or not, reader and writer stop too.
        let outcome = (move || {
            let mut at = Progress::default();
            for batch in batches {
                let batch = batch?;
                let parts: Vec<Result<Option<Encoded>>> =
                    batch.items.par_iter().map(|item| encoder.encode(item)).collect();
                for part in parts {
                    let Some(part) = part? else { continue };
                    at.tokens += (part.bytes.len() / encoder.dtype.width()) as u64;
                    at.documents += u64::from(part.ends_document);
                    if send_encoded.send(part).is_err() {
                        return Ok(()); // the writer failed, and says why below
                    }
                }
                at.bytes_done = batch.bytes_done;
                report(at);
            }
            Ok(())
        })();
        let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        outcome.and(written)
    })
}

/// Tokens as they are stored.
pub(crate) struct Encoded {
    split: Split,
    bytes: Vec<u8>,
    ends_document: bool,
}

/// What every core needs to know to encode an item.
struct Encoder<'a> {
    plan: &'a Plan,
    tokenizer: &'a Tokenizer,
    dtype: TokenType,
}

impl Encoder<'_> {
    /// `None` if the item is filtered out.
    fn encode(&self, item: &Item) -> Result<Option<Encoded>> {
        let source = &self.plan.sources[item.source];
        let path = &source.path;
        let (text, ends_document) = match &item.payload {
            Payload::Text { bytes, offset, last } => (text(bytes, path, *offset)?, *last),
            Payload::Json { bytes, line } => {
                let Format::JsonLines(_, filter) = source.format else { return Ok(None) };
                match jsonl::document(bytes, filter, path, *line)? {
                    Some(text) => (text, true),
                    None => return Ok(None),
                }
            }
        };
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        self.tokenizer
            .encode_ordinary_into(&text, &mut ids)
            .map_err(|error| Error::Encode { path: self.place(item), message: error.to_string() })?;
        if ends_document {
            ids.push(self.tokenizer.eot());
        }
        let bytes = self.store(&ids).map_err(|id| Error::Encode {
            path: self.place(item),
            message: format!("the tokenizer gives token {id}, which does not fit uint16; use --dtype uint32"),
        })?;
        Ok(Some(Encoded { split: item.split, bytes, ends_document }))
    }

    /// The ids as bytes of the stream; fails with the first that does not fit.
    fn store(&self, ids: &[u32]) -> Result<Vec<u8>, u32> {
        let mut bytes = vec![0; ids.len() * self.dtype.width()];
        match self.dtype {
            TokenType::Uint16 => {
                for (pair, &id) in bytes.as_chunks_mut().0.iter_mut().zip(ids) {
                    *pair = u16::try_from(id).map_err(|_| id)?.to_le_bytes();
                }
            }
            TokenType::Uint32 => {
                for (four, id) in bytes.as_chunks_mut().0.iter_mut().zip(ids) {
                    *four = id.to_le_bytes();
                }
            }
        }
        Ok(bytes)
    }

    /// File and line of an item, for messages.
    fn place(&self, item: &Item) -> PathBuf {
        let path = &self.plan.sources[item.source].path;
        match &item.payload {
            Payload::Json { line, .. } => format!("{}, line {line}", path.display()).into(),
            Payload::Text { offset, .. } => {
                let line = read::line_at(path, *offset).unwrap_or(1);
                format!("{}, from line {line} on", path.display()).into()
            }
        }
    }
}

/// `bytes`, found at `offset` of a text file, as text with Python's universal newlines.
fn text<'b>(bytes: &'b [u8], path: &Path, offset: u64) -> Result<Cow<'b, str>> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let offset = offset + error.valid_up_to() as u64;
            return Err(Error::NotUtf8 { path: path.into(), line: read::line_at(path, offset)?, offset });
        }
    };
    if !bytes.contains(&b'\r') {
        return Ok(Cow::Borrowed(text));
    }
    Ok(Cow::Owned(text.replace("\r\n", "\n").replace('\r', "\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newlines_are_universal() {
        let read = |bytes: &'static [u8]| text(bytes, Path::new("f"), 0).unwrap().into_owned();
        assert_eq!(read(b"a\r\nb\rc\nd\r\r\n\n\r"), "a\nb\nc\nd\n\n\n\n");
        assert_eq!(
            read("\u{feff}é\n".as_bytes()),
            "\u{feff}é\n",
            "a byte order mark is kept, as Python keeps it"
        );
    }

    #[test]
    fn fractions_become_periods() {
        assert_eq!(validation_period(0.005).unwrap(), 200);
        assert_eq!(validation_period(0.5).unwrap(), 2);
        assert_eq!(validation_period(0.0).unwrap(), 0);
        for fraction in [-0.1, 0.6, f64::NAN, f64::INFINITY, 1e-300] {
            let error = validation_period(fraction).unwrap_err().to_string();
            assert!(error.starts_with("--validation-fraction: "), "{error}");
        }
    }

    #[test]
    fn ids_that_do_not_fit_are_refused() {
        let tokenizer = Tokenizer::gpt2();
        let plan = Plan { sources: Vec::new(), files: 0, bytes: 0, divided: false };
        let mut encoder = Encoder { plan: &plan, tokenizer: &tokenizer, dtype: TokenType::Uint16 };
        assert_eq!(encoder.store(&[1, 65535]), Ok(vec![1, 0, 255, 255]));
        assert_eq!(encoder.store(&[1, 65536]), Err(65536));
        encoder.dtype = TokenType::Uint32;
        assert_eq!(encoder.store(&[65536]), Ok(vec![0, 0, 1, 0]));
    }
}
