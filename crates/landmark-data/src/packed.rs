//! Documents packed into rows of one length, as the released program prepares text for fine-tuning.
//!
//! A thousand documents at a time (what the `datasets` library hands to a mapped function) become one text: joined by the
//! token that ends a document, one token in front that begins a text, padded behind to whole rows. So a document may
//! begin anywhere in a row and go on in the next, only the first row of a thousand documents begins with the beginning
//! token, and only the last is padded.
//!
//! The released program works with 32 processes, each on its own share of the documents, so its thousands are cut
//! elsewhere in a large corpus. Its slow tokenizer also takes the *name* of a special token in a text for that token;
//! here it is text.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::corpus::Compression;
use crate::corpus::jsonl::{Filter, Lines, document};
use crate::error::{Error, Result, reading};
use crate::tokenizer::Tokenizer;

/// Documents that are joined into one text.
pub const DOCUMENTS: usize = 1000;

/// Longest document, in bytes.
const LONGEST: usize = 64 << 20;

/// Text gathered before it is encoded, in bytes, if that is less than [`DOCUMENTS`]: bounds memory.
const GATHERED: usize = 64 << 20;

/// The tokens around documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Special {
    /// Begins a text, where the tokenizer puts one there.
    pub beginning: Option<u32>,
    /// Stands between documents.
    pub end: u32,
    /// Fills the last row.
    pub padding: u32,
}

/// Rows of tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Row after row.
    pub tokens: Vec<u32>,
    /// Documents in them.
    pub documents: u64,
}

/// Joins texts that are encoded already into rows of `length`.
///
/// # Panics
/// When `length` is 0.
pub fn join(documents: &[Vec<u32>], special: Special, length: usize, out: &mut Vec<u32>) {
    let start = out.len();
    out.extend(special.beginning);
    for (index, document) in documents.iter().enumerate() {
        if index > 0 {
            out.push(special.end);
        }
        out.extend_from_slice(document);
    }
    let whole = (out.len() - start).next_multiple_of(length);
    out.resize(start + whole, special.padding);
}

/// Reads `files` (JSON lines with a field `text`, `.jsonl`, `.gz` or `.zst`; or a document as `.txt`; or folders of these)
/// and packs their documents into rows of `length` tokens. `progress` is told the bytes of text encoded so far.
///
/// # Errors
/// A file that cannot be read or is not what its name says, with its line; text that cannot be encoded; no document.
pub fn pack(
    files: &[PathBuf],
    tokenizer: &Tokenizer,
    special: Special,
    length: usize,
    progress: &mut dyn FnMut(u64),
) -> Result<Packed> {
    let mut packed = Packed::default();
    let mut gathered = Gathered { texts: Vec::new(), bytes: 0, encoded: Vec::new() };
    let mut done = 0;
    for file in expand(files)? {
        each_document(&file, &mut |text| {
            done += text.len() as u64;
            gathered.bytes += text.len();
            gathered.texts.push(text);
            let is_whole = gathered.texts.len() + gathered.encoded.len() == DOCUMENTS;
            if is_whole || gathered.bytes >= GATHERED {
                gathered.encode(tokenizer)?;
                progress(done);
            }
            if is_whole {
                gathered.pack(special, length, &mut packed);
            }
            Ok(())
        })?;
    }
    gathered.encode(tokenizer)?;
    if !gathered.encoded.is_empty() {
        gathered.pack(special, length, &mut packed);
    }
    progress(done);
    if packed.documents == 0 {
        let path = files.first().cloned().unwrap_or_default();
        return Err(Error::Corpus { path, message: "holds no documents".into() });
    }
    Ok(packed)
}

/// Documents on their way into a text.
struct Gathered {
    texts: Vec<String>,
    bytes: usize,
    encoded: Vec<Vec<u32>>,
}

impl Gathered {
    fn encode(&mut self, tokenizer: &Tokenizer) -> Result<()> {
        let encoded: Vec<Result<Vec<u32>>> =
            self.texts.par_iter().map(|text| tokenizer.encode_ordinary(text)).collect();
        for ids in encoded {
            self.encoded.push(ids?);
        }
        self.texts.clear();
        self.bytes = 0;
        Ok(())
    }

    fn pack(&mut self, special: Special, length: usize, packed: &mut Packed) {
        join(&self.encoded, special, length, &mut packed.tokens);
        packed.documents += self.encoded.len() as u64;
        self.encoded.clear();
    }
}

/// The files, and in place of a folder those in it that have a known ending, in the order of their names.
fn expand(files: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut expanded = Vec::new();
    for file in files {
        if !fs::metadata(file).map_err(reading(file))?.is_dir() {
            expanded.push(file.clone());
            continue;
        }
        let mut inside = Vec::new();
        for entry in fs::read_dir(file).map_err(reading(file))? {
            let path = entry.map_err(reading(file))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let is_known =
                [".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt"].iter().any(|end| name.ends_with(end));
            if is_known && !name.starts_with('.') && path.is_file() {
                inside.push(path);
            }
        }
        if inside.is_empty() {
            let message = "has no .jsonl, .jsonl.gz, .jsonl.zst or .txt files; is this the right folder?";
            return Err(Error::Corpus { path: file.clone(), message: message.into() });
        }
        inside.sort();
        expanded.extend(inside);
    }
    Ok(expanded)
}

fn each_document(path: &Path, each: &mut dyn FnMut(String) -> Result<()>) -> Result<()> {
    let file = File::open(path).map_err(reading(path))?;
    let compression = match path.extension().and_then(|extension| extension.to_str()) {
        Some("txt") => return each(whole_text(path, file)?),
        Some("gz") => Compression::Gzip,
        Some("zst") => Compression::Zstd,
        _ => Compression::None,
    };
    let mut lines = Lines::new(file, compression, LONGEST).map_err(reading(path))?;
    while let Some((number, line)) = lines.next_line(path)? {
        if let Some(text) = document(&line, Filter::All, path, number)? {
            each(text.into_owned())?;
        }
    }
    Ok(())
}

fn whole_text(path: &Path, file: File) -> Result<String> {
    let mut bytes = Vec::new();
    file.take(LONGEST as u64 + 1).read_to_end(&mut bytes).map_err(reading(path))?;
    if bytes.len() > LONGEST {
        return Err(Error::TooLong { path: path.into(), line: 1, what: "the text", limit: LONGEST });
    }
    String::from_utf8(bytes).map_err(|error| Error::NotUtf8 {
        path: path.into(),
        line: 1,
        offset: error.utf8_error().valid_up_to() as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECIAL: Special = Special { beginning: Some(1), end: 2, padding: 0 };

    /// Worked by hand: one beginning, ends between, padding behind.
    #[test]
    fn documents_are_joined_and_padded() {
        let mut out = vec![9];
        join(&[vec![10, 11], vec![], vec![12]], SPECIAL, 4, &mut out);
        assert_eq!(out, [9, 1, 10, 11, 2, 2, 12, 0, 0]);
        let mut out = Vec::new();
        join(&[vec![10, 11, 12]], Special { beginning: None, ..SPECIAL }, 3, &mut out);
        assert_eq!(out, [10, 11, 12], "what is whole is not padded");
    }

    fn tokenizer() -> Tokenizer {
        let json = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
            "pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,
            "model":{"type":"WordLevel","vocab":{"[UNK]":0,"<s>":1,"</s>":2,"a":3,"b":4},"unk_token":"[UNK]"}}"#;
        Tokenizer::from_json(json.as_bytes(), "letters", None).unwrap()
    }

    #[test]
    fn files_of_all_kinds_are_packed_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("2.jsonl", "{\"text\": \"a b\"}\n\n{\"text\": \"b\", \"meta\": {}}\n");
        write("1.txt", "b a");
        write("3.md", "a");
        let all = [folder.path().to_path_buf()];
        let found = pack(&all, &tokenizer(), SPECIAL, 4, &mut |_| {}).unwrap();
        assert_eq!(found.documents, 3);
        assert_eq!(found.tokens, [1, 4, 3, 2, 3, 4, 2, 4]);
        assert_eq!(tokenizer().token_id("</s>"), Some(2));
    }

    /// The text of the first thousand documents ends before the next begins.
    #[test]
    fn a_thousand_documents_are_one_text() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("many.jsonl");
        fs::write(&file, "{\"text\": \"a\"}\n".repeat(DOCUMENTS + 1)).unwrap();
        let found = pack(&[file], &tokenizer(), SPECIAL, 7, &mut |_| {}).unwrap();
        // A beginning, 1000 documents and 999 ends: 2000, padded to 2002; then a beginning and a document.
        assert_eq!(found.tokens.len(), 2002 + 7);
        assert_eq!(found.tokens[..4], [1, 3, 2, 3]);
        assert_eq!(found.tokens[1999..2005], [3, 0, 0, 1, 3, 0]);
    }

    #[test]
    fn bad_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |name: &str, text: &[u8]| {
            let file = folder.path().join(name);
            fs::write(&file, text).unwrap();
            pack(&[file], &tokenizer(), SPECIAL, 4, &mut |_| {}).unwrap_err().to_string()
        };
        for (name, text, said) in [
            ("a.jsonl", &b"{\"text\": 3}"[..], "a.jsonl"),
            ("b.jsonl", b"{}", "no \"text\""),
            ("c.jsonl.gz", b"plain", "c.jsonl.gz"),
            ("d.txt", b"\xff", "d.txt"),
            ("e.jsonl", b"", "no documents"),
        ] {
            let error = refused(name, text);
            assert!(error.contains(said), "{error}");
        }
        let nowhere = folder.path().join("nowhere.jsonl");
        let error = pack(&[nowhere], &tokenizer(), SPECIAL, 4, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("nowhere.jsonl"), "{error}");
    }
}
