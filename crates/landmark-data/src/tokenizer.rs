//! Text to tokens and back, by GPT-2's encoding or by any `tokenizer.json`.
//!
//! Two kinds behind one type rather than a trait: callers choose at run time, and nobody else implements it. GPT-2's
//! is our own encoder (`gpt2`); a `tokenizer.json` is read by the `tokenizers` crate, with everything that
//! the file may say about truncation and padding turned off, since documents are encoded whole. A SentencePiece
//! `tokenizer.model` becomes a `tokenizer.json` first (`sentencepiece`).
//!
//! Text is only ever text: the name of a special token in it is encoded letter by letter. What belongs before and
//! after a text, such as a BOS, is the tokenizer's to say and added by [`Tokenizer::encode`].

#[cfg(not(target_family = "wasm"))]
use std::fs::File;
#[cfg(not(target_family = "wasm"))]
use std::io::Read;
#[cfg(not(target_family = "wasm"))]
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::contain::contain;
#[cfg(not(target_family = "wasm"))]
use crate::error::reading;
use crate::error::{Error, Result};
#[cfg(not(target_family = "wasm"))]
use crate::gpt2::{self, gpt2};
use crate::hash::sha256_hex;
#[cfg(not(target_family = "wasm"))]
use crate::sentencepiece;

/// Largest `tokenizer.json` that is read, in bytes; the largest in use have some 30 MB.
const MAX_FILE: u64 = 256 << 20;
/// Names under which vocabularies hold the token that ends a document, in the order in which they are tried.
const END_NAMES: [&str; 7] =
    ["<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "<|endofsentence|>", "[SEP]"];

/// An encoding of text as token ids.
pub struct Tokenizer {
    kind: Kind,
    info: TokenizerInfo,
    /// What [`Tokenizer::encode`] puts before and after a text.
    around: Around,
}

/// Tokens before and after a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Around {
    before: Vec<u32>,
    after: Vec<u32>,
}

enum Kind {
    #[cfg(not(target_family = "wasm"))]
    Gpt2,
    Json(Box<tokenizers::Tokenizer>),
}

/// What identifies a tokenizer; part of `dataset.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizerInfo {
    /// `gpt2`, or the path of the `tokenizer.json` as it was given.
    pub name: String,
    /// SHA-256 of the `tokenizer.json`, in hexadecimal; none for GPT-2, of which there is only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Ids are less than this.
    pub vocab_size: u32,
    /// The token that follows every document.
    pub eot: u32,
}

impl Tokenizer {
    /// GPT-2's byte-pair encoding: 50257 tokens, `<|endoftext|>` = 50256. Needs no file and no network.
    #[cfg(not(target_family = "wasm"))]
    pub fn gpt2() -> Self {
        let info = TokenizerInfo {
            name: "gpt2".into(),
            sha256: None,
            vocab_size: gpt2::VOCAB_SIZE,
            eot: gpt2::END_OF_TEXT,
        };
        Self { kind: Kind::Gpt2, info, around: Around::default() }
    }

    /// Reads a Hugging Face `tokenizer.json`, a SentencePiece model (`*.model`), or the folder of a model with either.
    ///
    /// `eot` names the token that ends a document; without it the usual names are tried (`<|endoftext|>`,
    /// `</s>`, ...).
    ///
    /// # Errors
    /// If the file cannot be read, is no tokenizer, or has no such token.
    #[cfg(not(target_family = "wasm"))]
    pub fn from_file(path: &Path, eot: Option<&str>) -> Result<Self> {
        if path.is_dir() {
            return Self::from_folder(path, eot)?.ok_or_else(|| Error::Tokenizer {
                name: path.display().to_string(),
                message: "has no tokenizer.json and no tokenizer.model; give the folder or file that has"
                    .into(),
            });
        }
        let bytes = read_file(path)?;
        let name = path.display().to_string();
        if path.extension().is_some_and(|extension| extension == "model") {
            return Self::from_sentencepiece(&bytes, &name, eot);
        }
        Self::from_json(&bytes, &name, eot)
    }

    /// Reads a SentencePiece model from its bytes.
    ///
    /// # Errors
    /// If it is none, or has no such token.
    #[cfg(not(target_family = "wasm"))]
    pub fn from_sentencepiece(bytes: &[u8], name: &str, eot: Option<&str>) -> Result<Self> {
        let wrong = |message| Error::Tokenizer { name: name.into(), message };
        if bytes.len() as u64 > MAX_FILE {
            return Err(wrong(format!("more than {MAX_FILE} bytes; this is no tokenizer.model")));
        }
        let json = sentencepiece::to_tokenizer_json(bytes).map_err(wrong)?;
        let mut tokenizer = Self::from_json(json.to_string().as_bytes(), name, eot)?;
        tokenizer.info.sha256 = Some(sha256_hex(bytes));
        Ok(tokenizer)
    }

    /// The same from the bytes of a `tokenizer.json`; `name` is used in messages and in [`Self::info`].
    ///
    /// # Errors
    /// If `json` is no tokenizer, or has no such token.
    pub fn from_json(json: &[u8], name: &str, eot: Option<&str>) -> Result<Self> {
        let wrong = |message: String| Error::Tokenizer { name: name.into(), message };
        if json.len() as u64 > MAX_FILE {
            return Err(wrong(format!("more than {MAX_FILE} bytes; this is no tokenizer.json")));
        }
        let tokenizer =
            contain(|| read_json(json)).unwrap_or_else(|panic| Err(panic.into())).map_err(|error| {
                wrong(format!("cannot be used ({error}); expected a Hugging Face tokenizer.json"))
            })?;

        let vocabulary = tokenizer.get_vocab(true);
        let vocab_size = vocabulary.values().max().map_or(0, |&id| id.saturating_add(1));
        let eot = match eot {
            Some(token) => *vocabulary.get(token).ok_or_else(|| {
                wrong(format!("has no token {token:?}; name the token that ends a document with --eot"))
            })?,
            None => *END_NAMES.iter().find_map(|&token| vocabulary.get(token)).ok_or_else(|| {
                wrong(format!(
                    "has none of the tokens {END_NAMES:?}; name the one that ends a document with --eot"
                ))
            })?,
        };
        let info = TokenizerInfo { name: name.into(), sha256: Some(sha256_hex(json)), vocab_size, eot };
        let around = around(&tokenizer);
        Ok(Self { kind: Kind::Json(Box::new(tokenizer)), info, around })
    }

    /// What identifies this tokenizer.
    pub fn info(&self) -> &TokenizerInfo {
        &self.info
    }

    /// The token that follows every document.
    pub fn eot(&self) -> u32 {
        self.info.eot
    }

    /// Ids are less than this.
    pub fn vocab_size(&self) -> u32 {
        self.info.vocab_size
    }

    /// The tokens of `text`. Nothing in it is special: the name of a special token is encoded as the characters
    /// that it is made of, and nothing is put before or after.
    ///
    /// # Errors
    /// If a `tokenizer.json` has no token for a part of the text, nor one for the unknown. GPT-2 never fails.
    pub fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        self.encode_ordinary_into(text, &mut ids)?;
        Ok(ids)
    }

    /// The same, appended to `ids`.
    ///
    /// # Errors
    /// As [`Self::encode_ordinary`].
    pub fn encode_ordinary_into(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        match &self.kind {
            #[cfg(not(target_family = "wasm"))]
            Kind::Gpt2 => gpt2().encode_ordinary(text, ids),
            Kind::Json(tokenizer) => {
                let encoding = contain(|| tokenizer.encode_fast(text, false))
                    .unwrap_or_else(|panic| Err(panic.into()))
                    .map_err(|error| Error::Tokenizer {
                        name: self.info.name.clone(),
                        message: format!("cannot encode this text: {error}"),
                    })?;
                ids.extend_from_slice(encoding.get_ids());
            }
        }
        Ok(())
    }

    /// The tokens of `text` with those that the tokenizer puts before and after it, such as LLaMA's BOS. The text itself
    /// is encoded as [`Self::encode_ordinary`] does it.
    ///
    /// # Errors
    /// As [`Self::encode_ordinary`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.around.before.clone();
        self.encode_ordinary_into(text, &mut ids)?;
        ids.extend_from_slice(&self.around.after);
        Ok(ids)
    }

    /// What [`Self::encode`] puts before a text.
    pub fn before(&self) -> &[u32] {
        &self.around.before
    }

    /// The id of a token by its name.
    pub fn token_id(&self, name: &str) -> Option<u32> {
        match &self.kind {
            #[cfg(not(target_family = "wasm"))]
            Kind::Gpt2 => (name == "<|endoftext|>").then_some(gpt2::END_OF_TEXT),
            Kind::Json(tokenizer) => tokenizer.token_to_id(name),
        }
    }

    /// Says what to put before and after a text.
    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn put_around(&mut self, before: Option<Vec<u32>>, after: Option<Vec<u32>>) {
        let Around { before: old_before, after: old_after } = std::mem::take(&mut self.around);
        self.around = Around { before: before.unwrap_or(old_before), after: after.unwrap_or(old_after) };
    }

    /// The text of `ids`. Special tokens appear by name; ids beyond the vocabulary and bytes that form no UTF-8
    /// become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        match &self.kind {
            #[cfg(not(target_family = "wasm"))]
            Kind::Gpt2 => {
                let mut bytes = Vec::new();
                for &id in ids {
                    bytes.extend_from_slice(gpt2().token(id).unwrap_or("\u{FFFD}".as_bytes()));
                }
                String::from_utf8_lossy(&bytes).into_owned()
            }
            Kind::Json(tokenizer) => decode_json(tokenizer, ids, self.info.vocab_size),
        }
    }

    /// A decoder that is fed one token at a time.
    pub fn decode_stream(&self) -> StreamDecoder<'_> {
        StreamDecoder { tokenizer: self, ids: Vec::new(), emitted: 0 }
    }

    /// The last place where a document's `bytes` can be cut so that encoding the parts gives what encoding the
    /// whole gives. Only GPT-2's rule is known well enough to tell.
    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn last_cut(&self, bytes: &[u8]) -> Option<usize> {
        match self.kind {
            Kind::Gpt2 => gpt2().last_cut(bytes),
            Kind::Json(_) => None,
        }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.info.fmt(f)
    }
}

/// The bytes of a tokenizer's file, one more than allowed if it is too long.
#[cfg(not(target_family = "wasm"))]
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(reading(path))?;
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(reading(path))?;
    Ok(bytes)
}

/// What a post-processor puts around a text: what is there of an encoded letter beyond the letter.
fn around(tokenizer: &tokenizers::Tokenizer) -> Around {
    let encode = |special| {
        let encoding = contain(|| tokenizer.encode_fast("a", special)).ok()?.ok()?;
        Some(encoding.get_ids().to_vec())
    };
    let (Some(with), Some(without)) = (encode(true), encode(false)) else { return Around::default() };
    let at = with.windows(without.len().max(1)).position(|part| part == without);
    match at {
        Some(at) => Around { before: with[..at].to_vec(), after: with[at + without.len()..].to_vec() },
        None => Around::default(),
    }
}

/// A tokenizer that encodes whole documents, and no name of a special token as that token.
fn read_json(json: &[u8]) -> tokenizers::Result<tokenizers::Tokenizer> {
    let mut tokenizer = tokenizers::Tokenizer::from_bytes(json)?;
    tokenizer.with_truncation(None)?.with_padding(None);
    tokenizer.set_encode_special_tokens(true);
    Ok(tokenizer)
}

/// `tokenizers` leaves out ids that it does not know; here they become U+FFFD, as in GPT-2's.
fn decode_json(tokenizer: &tokenizers::Tokenizer, ids: &[u32], vocab_size: u32) -> String {
    let mut text = String::new();
    for (i, known) in ids.split(|&id| id >= vocab_size).enumerate() {
        if i > 0 {
            text.push('\u{FFFD}');
        }
        if !known.is_empty() {
            let decoded = contain(|| tokenizer.decode(known, false)).ok().and_then(Result::ok);
            text.push_str(decoded.as_deref().unwrap_or("\u{FFFD}"));
        }
    }
    text
}

/// Decodes one token at a time, giving out text only when its characters are whole: a character may be spread
/// over several tokens.
///
/// A token's text depends on its neighbours (a first blank is dropped, bytes combine), so a few tokens that were
/// already given out are kept and decoded again with the new one; what the new one adds is the answer.
pub struct StreamDecoder<'t> {
    tokenizer: &'t Tokenizer,
    /// Tokens that were given out last, then those that wait.
    ids: Vec<u32>,
    /// How many of `ids` were given out.
    emitted: usize,
}

impl StreamDecoder<'_> {
    /// More waiting tokens than any character can need: what they hold is not UTF-8 and never will be.
    const MAX_WAITING: usize = 8;

    /// Adds a token and returns the text that is now certain, perhaps none.
    pub fn push(&mut self, id: u32) -> String {
        self.ids.push(id);
        let text = self.waiting();
        let whole = !text.is_empty() && !text.ends_with('\u{FFFD}');
        if !whole && self.ids.len() - self.emitted <= Self::MAX_WAITING {
            return String::new();
        }
        self.ids.drain(..self.emitted);
        self.emitted = self.ids.len();
        text
    }

    /// The text of tokens that still wait; the decoder is then as new.
    pub fn finish(&mut self) -> String {
        let text = self.waiting();
        self.ids.clear();
        self.emitted = 0;
        text
    }

    /// What the waiting tokens add to the text of those before them.
    fn waiting(&self) -> String {
        let before = self.tokenizer.decode(&self.ids[..self.emitted]);
        let mut all = self.tokenizer.decode(&self.ids);
        match all.get(before.len()..) {
            Some(_) => all.split_off(before.len()),
            None => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words and an unknown; a piece of WordLevel, small enough to write down.
    const WORDS: &str = r#"{"version":"1.0","truncation":{"direction":"Right","max_length":1,"strategy":"LongestFirst","stride":0},
        "padding":null,"added_tokens":[{"id":3,"content":"</s>","single_word":false,"lstrip":false,
        "rstrip":false,"normalized":false,"special":true}],"normalizer":null,"pre_tokenizer":{"type":"Whitespace"},
        "post_processor":null,"decoder":null,
        "model":{"type":"WordLevel","vocab":{"one":0,"two":1,"[UNK]":2,"</s>":3},"unk_token":"[UNK]"}}"#;

    #[test]
    fn json_is_read_whole_and_nothing_is_special() {
        let tokenizer = Tokenizer::from_json(WORDS.as_bytes(), "words", None).unwrap();
        assert_eq!((tokenizer.eot(), tokenizer.vocab_size()), (3, 4));
        assert_eq!(
            tokenizer.encode_ordinary("two one two three").unwrap(),
            [1, 0, 1, 2],
            "truncation is off"
        );
        assert!(!tokenizer.encode_ordinary("one </s>").unwrap().contains(&3), "a name in the text is text");
        assert_eq!(tokenizer.decode(&[0, 3]), "one </s>");
        assert_eq!(tokenizer.decode(&[0, 99]), "one\u{FFFD}");
    }

    #[test]
    fn the_end_token_can_be_named() {
        let tokenizer = Tokenizer::from_json(WORDS.as_bytes(), "words", Some("two")).unwrap();
        assert_eq!(tokenizer.eot(), 1);
        let error = Tokenizer::from_json(WORDS.as_bytes(), "words", Some("<eot>")).unwrap_err().to_string();
        assert!(error.starts_with("words: has no token \"<eot>\"") && error.contains("--eot"), "{error}");
        let error = Tokenizer::from_json(&WORDS.replace("</s>", "<x>").into_bytes(), "words", None);
        assert!(error.unwrap_err().to_string().contains("--eot"));
    }

    #[test]
    fn what_is_no_tokenizer_is_refused_by_name() {
        for json in ["", "{}", "[1]", "{\"version\":\"9.0\"}", &WORDS[..WORDS.len() - 9]] {
            let error = Tokenizer::from_json(json.as_bytes(), "t.json", None).unwrap_err().to_string();
            assert!(error.starts_with("t.json: "), "{error}");
        }
        // The library panics on this one.
        let decoder = WORDS.replace(r#""decoder":null"#, "\"decoder\":{\"type\":\"Fuse\",\"\u{1}\":0}");
        let error = Tokenizer::from_json(decoder.as_bytes(), "t.json", None).unwrap_err().to_string();
        assert!(error.starts_with("t.json: cannot be used ("), "{error}");
        let error = Tokenizer::from_file(Path::new("/nowhere/tokenizer.json"), None).unwrap_err().to_string();
        assert!(error.contains("/nowhere/tokenizer.json"), "{error}");
    }

    #[test]
    fn gpt2_decodes() {
        let tokenizer = Tokenizer::gpt2();
        for text in ["Hello world", "naïve 🙂 中文\n\n", ""] {
            assert_eq!(tokenizer.decode(&tokenizer.encode_ordinary(text).unwrap()), text);
        }
        assert_eq!(tokenizer.decode(&[50256]), "<|endoftext|>");
        assert_eq!(tokenizer.decode(&[15496, 50300]), "Hello\u{FFFD}");
    }

    #[test]
    fn a_stream_gives_out_whole_characters() {
        let tokenizer = Tokenizer::gpt2();
        let ids = tokenizer.encode_ordinary("a 🦙中 b").unwrap();
        let mut stream = tokenizer.decode_stream();
        let parts: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
        assert!(parts.iter().any(String::is_empty), "the llama takes several tokens: {parts:?}");
        assert!(parts.iter().all(|part| !part.contains('\u{FFFD}')), "{parts:?}");
        assert_eq!(parts.concat(), "a 🦙中 b");
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn a_stream_does_not_wait_for_ever() {
        let tokenizer = Tokenizer::gpt2();
        let broken = tokenizer.encode_ordinary("🦙").unwrap()[0];
        let mut stream = tokenizer.decode_stream();
        let text: String = (0..100).map(|_| stream.push(broken)).collect();
        assert!(text.chars().filter(|&c| c == '\u{FFFD}').count() > 80, "{text:?}");
        assert!(stream.ids.len() <= 2 * StreamDecoder::MAX_WAITING + 2);
        let mut stream = tokenizer.decode_stream();
        assert_eq!((stream.push(broken), stream.finish()), (String::new(), "\u{FFFD}".into()));
    }

    #[test]
    fn a_stream_of_words_keeps_their_blanks() {
        let tokenizer = Tokenizer::from_json(WORDS.as_bytes(), "words", None).unwrap();
        let mut stream = tokenizer.decode_stream();
        let text: String = [0, 1, 0].iter().map(|&id| stream.push(id)).collect();
        assert_eq!(text, "one two one");
    }
}
