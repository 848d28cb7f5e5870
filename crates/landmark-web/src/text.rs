//! The text that is read, as tokens and as blocks.
//!
//! A block is so many ordinary tokens; which ones decides what a click on the strip shows, and which blocks hold the pass key.

use crate::error::Result;
use crate::files::ModelFiles;
use std::ops::Range;

/// Bytes at the end of a text that are encoded again with a question.
const TAIL: usize = 16 << 10;

/// A text, encoded.
#[derive(Debug)]
pub struct Text {
    source: String,
    tokens: Vec<u32>,
    /// Some of the source was left away.
    is_cut: bool,
    freq: usize,
}

impl Text {
    /// Encodes a text, of which the first `limit` tokens are kept.
    ///
    /// # Errors
    /// If the tokenizer has no tokens for it.
    pub fn new(files: &ModelFiles, source: String, limit: usize) -> Result<Text> {
        let mut tokens = files.tokenizer.encode(&source)?;
        let is_cut = tokens.len() > limit;
        tokens.truncate(limit);
        Ok(Text { source, tokens, is_cut, freq: files.freq })
    }

    /// Its tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Whether some of it was left away.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// How many blocks it has, the last of which may be unfinished.
    pub fn blocks(&self) -> usize {
        self.tokens.len().div_ceil(self.freq)
    }

    /// What stands in a block; nothing beyond the last.
    pub fn block(&self, files: &ModelFiles, block: usize) -> String {
        let at = |block: usize| block.saturating_mul(self.freq).min(self.tokens.len());
        files.tokenizer.decode(&self.tokens[at(block)..at(block.saturating_add(1))])
    }

    /// The first and the last block that hold some of these bytes of the source.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn blocks_of(&self, files: &ModelFiles, bytes: Range<usize>) -> Result<(usize, usize)> {
        let count = |end: usize| Ok::<_, crate::Error>(files.tokenizer.encode(&self.source[..end])?.len());
        let (first, end) = (count(bytes.start)?, count(bytes.end)?);
        Ok((first / self.freq, end.saturating_sub(1).max(first) / self.freq))
    }

    /// The tokens from number `from` on, with a question behind the text: those that the two would have together, as far as a
    /// memory that has read `from` tokens lets them.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn followed_by(&self, files: &ModelFiles, question: &str, from: usize) -> Result<Vec<u32>> {
        if !self.is_cut {
            if let Some(tokens) = self.tail_followed_by(files, question, from)? {
                return Ok(tokens);
            }
            let together = files.tokenizer.encode(&format!("{}{question}", self.source))?;
            if together.get(..from) == self.tokens.get(..from) {
                return Ok(together[from..].to_vec());
            }
        }
        let mut tokens = self.tokens[from..].to_vec();
        files.tokenizer.encode_ordinary_into(question, &mut tokens)?;
        Ok(tokens)
    }

    /// The same by encoding the end of the text alone, since a long text takes longer to encode than its question to answer, and
    /// much memory; nothing where the end is not seen to give the text's own tokens.
    fn tail_followed_by(&self, files: &ModelFiles, question: &str, from: usize) -> Result<Option<Vec<u32>>> {
        let start = self.source.floor_char_boundary(self.source.len().saturating_sub(TAIL));
        if start == 0 {
            return Ok(None);
        }
        let tail = &self.source[start..];
        let alone = files.tokenizer.encode(tail)?;
        // Its first tokens may be others than in the whole text.
        let settled = alone.len() / 2;
        let at = self.tokens.len().saturating_sub(alone.len() - settled);
        if from > at || self.tokens[at..] != alone[settled..] {
            return Ok(None);
        }
        let together = files.tokenizer.encode(&format!("{tail}{question}"))?;
        if together.get(..settled) != alone.get(..settled) {
            return Ok(None);
        }
        Ok(Some([&self.tokens[from..at], &together[settled..]].concat()))
    }
}
