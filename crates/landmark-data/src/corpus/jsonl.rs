//! Documents as JSON, one a line: `{"text": "...", "meta": ...}`.
//!
//! Lines are split here and parsed later, on all cores. JSON as Python writes it may hold half of a surrogate pair
//! (`"\ud83d"`), which is no Unicode; Python reads it and the tokenizer then replaces it with U+FFFD, so that is done
//! here too, rather than to stop in the middle of a large corpus.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Visitor};

use super::Compression;
use crate::error::{Error, Result, reading};

/// Which documents are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Every one.
    All,
    /// Those whose `meta`, an object or a string that holds one, has `"config": "arxiv"`.
    Arxiv,
}

/// Splits a file of JSON lines, decompressing it. Blank lines are left out.
pub struct Lines<'r> {
    reader: Box<dyn BufRead + 'r>,
    compression: Compression,
    limit: usize,
    line: u64,
}

impl<'r> Lines<'r> {
    /// The lines of what `reader` gives, of at most `limit` bytes each.
    ///
    /// # Errors
    /// If a decompressor cannot be set up.
    pub fn new(reader: impl Read + 'r, compression: Compression, limit: usize) -> io::Result<Self> {
        const BUFFER: usize = 256 << 10;
        let reader: Box<dyn BufRead + 'r> = match compression {
            Compression::None => Box::new(BufReader::with_capacity(BUFFER, reader)),
            Compression::Gzip => {
                let decoder = flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(BUFFER, reader));
                Box::new(BufReader::with_capacity(BUFFER, decoder))
            }
            Compression::Zstd => {
                // The decoder refuses windows of more than 128 MiB by itself.
                Box::new(BufReader::with_capacity(BUFFER, zstd::Decoder::new(reader)?))
            }
        };
        Ok(Self { reader, compression, limit, line: 0 })
    }

    /// The next line that is not blank and its number, from 1; `None` at the end. `path` is used in messages.
    ///
    /// # Errors
    /// If the file cannot be read or decompressed, or the line is longer than the limit.
    pub fn next_line(&mut self, path: &Path) -> Result<Option<(u64, Vec<u8>)>> {
        loop {
            let mut bytes = Vec::new();
            let most = self.limit as u64 + 1;
            match self.reader.by_ref().take(most).read_until(b'\n', &mut bytes) {
                Ok(0) => return Ok(None),
                Ok(_) => self.line += 1,
                Err(error) if self.compression == Compression::None => return Err(reading(path)(error)),
                Err(source) => return Err(Error::Damaged { path: path.into(), line: self.line, source }),
            }
            if bytes.len() > self.limit && bytes.last() != Some(&b'\n') {
                return Err(Error::TooLong {
                    path: path.into(),
                    line: self.line,
                    what: "the line",
                    limit: self.limit,
                });
            }
            if !bytes.iter().all(u8::is_ascii_whitespace) {
                return Ok(Some((self.line, bytes)));
            }
        }
    }
}

/// The text of the document on a line; `None` if the filter leaves it out. `path` and `number` are used in
/// messages.
///
/// # Errors
/// If the line is not UTF-8, no JSON object, or has no text.
pub fn document<'l>(
    line: &'l [u8],
    filter: Filter,
    path: &Path,
    number: u64,
) -> Result<Option<Cow<'l, str>>> {
    let wrong = |message: String| Error::Json { path: path.into(), line: number, message };
    if let Err(error) = std::str::from_utf8(line) {
        return Err(Error::NotUtf8 { path: path.into(), line: number, offset: error.valid_up_to() as u64 });
    }
    let parse_error = |error: serde_json::Error| {
        // serde_json ends with "at line 1 column N", where only the column tells something.
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default();
        wrong(format!("{message} (column {})", error.column()))
    };
    let text = match filter {
        Filter::All => serde_json::from_slice::<Plain<'l>>(line).map_err(parse_error)?.text,
        Filter::Arxiv => {
            let found: WithMeta<'l> = serde_json::from_slice(line).map_err(parse_error)?;
            if !is_arxiv(found.meta).map_err(|error| wrong(format!("\"meta\" holds no JSON ({error})")))? {
                return Ok(None);
            }
            found.text
        }
    };
    match text {
        Some(Text(text)) => Ok(Some(text)),
        None => Err(wrong("there is no \"text\"".into())),
    }
}

fn is_arxiv(meta: Option<serde_json::Value>) -> serde_json::Result<bool> {
    let meta = match meta {
        Some(serde_json::Value::String(json)) => serde_json::from_str(&json)?,
        Some(meta) => meta,
        None => return Ok(false),
    };
    Ok(meta.get("config").and_then(|config| config.as_str()) == Some("arxiv"))
}

#[derive(Deserialize)]
struct Plain<'l> {
    #[serde(borrow)]
    text: Option<Text<'l>>,
}

#[derive(Deserialize)]
struct WithMeta<'l> {
    #[serde(borrow)]
    text: Option<Text<'l>>,
    meta: Option<serde_json::Value>,
}

/// A JSON string, with U+FFFD for halves of surrogate pairs.
struct Text<'l>(Cow<'l, str>);

impl<'de: 'l, 'l> Deserialize<'de> for Text<'l> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl<'de> Visitor<'de> for Bytes {
            type Value = Cow<'de, str>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string as \"text\"")
            }

            fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
                Ok(match std::str::from_utf8(bytes) {
                    Ok(text) => Cow::Borrowed(text),
                    Err(_) => Cow::Owned(replace_surrogates(bytes)),
                })
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Self::Value, E> {
                Ok(Cow::Owned(replace_surrogates(bytes)))
            }
        }
        // As bytes, serde_json hands out halves of surrogate pairs as if they were characters of three bytes.
        deserializer.deserialize_bytes(Bytes).map(Text)
    }
}

/// UTF-8 in which halves of surrogate pairs (`ED A0..BF xx`) may occur.
fn replace_surrogates(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        // The decoder reports the three bytes of a half as three errors of one byte, the first of them ED.
        if chunk.invalid() == [0xED] {
            text.push('\u{FFFD}');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn text(line: &str) -> Result<String, String> {
        document(line.as_bytes(), Filter::All, Path::new("f.jsonl"), 7)
            .map(|text| text.unwrap().into_owned())
            .map_err(|error| error.to_string())
    }

    fn lines(bytes: &[u8], compression: Compression, limit: usize) -> Result<Vec<(u64, String)>, String> {
        let mut lines = Lines::new(bytes, compression, limit).unwrap();
        let mut all = Vec::new();
        while let Some((number, line)) = lines.next_line(Path::new("f")).map_err(|error| error.to_string())? {
            all.push((number, String::from_utf8(line).unwrap()));
        }
        Ok(all)
    }

    #[test]
    fn text_is_taken_as_json_says() {
        assert_eq!(text(r#"{"text": "a\nb \u00e9 \ud83d\ude42"}"#).unwrap(), "a\nb é 🙂");
        assert_eq!(text(r#" {"meta": [{"x": null}], "text": "plain é", "n": 1e400}"#).unwrap(), "plain é");
        assert_eq!(text(r#"{"text": ""}"#).unwrap(), "");
    }

    #[test]
    fn halves_of_surrogate_pairs_are_replaced() {
        assert_eq!(text(r#"{"text": "a\ud83db\ude42\ud800"}"#).unwrap(), "a\u{FFFD}b\u{FFFD}\u{FFFD}");
        assert_eq!(text(r#"{"text": "\ud83d\ud83d\ude42"}"#).unwrap(), "\u{FFFD}🙂");
    }

    #[test]
    fn wrong_lines_are_named() {
        for line in [
            "",
            "{",
            "[]",
            "3",
            r#"{"txt": "a"}"#,
            r#"{"text": null}"#,
            r#"{"text": 3}"#,
            r#"{"text": [65]}"#,
            r#"{"text": "a"} x"#,
            r#"{"text": "a"#,
            r#"{"text": {"a": 1}}"#,
        ] {
            let error = text(line).unwrap_err();
            assert!(error.starts_with("f.jsonl, line 7: "), "{line}: {error}");
            assert!(!error.contains("line 1 "), "{error}");
        }
        let error =
            document(b"{\"text\": \"\xFF\"}", Filter::All, Path::new("f"), 3).unwrap_err().to_string();
        assert!(error.starts_with("f, line 3 (byte 10): not UTF-8"), "{error}");
    }

    #[test]
    fn the_filter_reads_meta_as_object_and_as_string() {
        let kept =
            |line: &str| document(line.as_bytes(), Filter::Arxiv, Path::new("f"), 1).map(|t| t.is_some());
        assert!(kept(r#"{"text": "a", "meta": {"config": "arxiv"}}"#).unwrap());
        assert!(kept(r#"{"text": "a", "meta": "{\"config\": \"arxiv\"}"}"#).unwrap());
        assert!(!kept(r#"{"text": "a", "meta": "{\"config\": \"wiki\"}"}"#).unwrap());
        assert!(!kept(r#"{"text": "a", "meta": {"file": "arxiv"}}"#).unwrap());
        assert!(!kept(r#"{"text": "a"}"#).unwrap());
        assert!(kept(r#"{"text": "a", "meta": "arxiv"}"#).is_err());
    }

    #[test]
    fn lines_are_numbered_and_blank_ones_left_out() {
        let want = vec![(1, "a\n".into()), (3, "b\r\n".into()), (5, "c".into())];
        assert_eq!(lines(b"a\n\nb\r\n  \nc", Compression::None, 9).unwrap(), want);
    }

    #[test]
    fn long_lines_are_refused_without_being_held() {
        assert!(lines(b"12345\n12345", Compression::None, 5).is_ok());
        let error = lines(b"1\n123456\n", Compression::None, 5).unwrap_err();
        assert!(error.starts_with("f, line 2: the line is longer than 5 bytes"), "{error}");
    }

    #[test]
    fn compressed_lines() {
        let mut gzip = Vec::new();
        for part in ["a\nb", "c\n"] {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(part.as_bytes()).unwrap();
            gzip.extend(encoder.finish().unwrap());
        }
        let mut zstd = zstd::encode_all(&b"a\nb"[..], 1).unwrap();
        zstd.extend(zstd::encode_all(&b"c\n"[..], 1).unwrap());
        for (bytes, compression) in [(gzip, Compression::Gzip), (zstd, Compression::Zstd)] {
            let want = vec![(1, "a\n".into()), (2, "bc\n".into())];
            assert_eq!(
                lines(&bytes, compression, 9).unwrap(),
                want,
                "{compression:?}: several parts are one text"
            );
            for cut in [1, 5, bytes.len() - 1] {
                let error = lines(&bytes[..cut], compression, 9).unwrap_err();
                assert!(error.contains("damaged or cut short"), "{error}");
            }
        }
    }
}
