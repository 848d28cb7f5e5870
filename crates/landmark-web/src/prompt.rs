//! Texts with a pass key in them: those of `landmark passkey`, and ones made of a visitor's own text.

use crate::error::{Error, Result};
use landmark_data::Tokenizer;
use landmark_probe::case::{Case, Suite};
use landmark_probe::filler::Filler;
use landmark_probe::passkey::{Passkey, QUESTION, Unit, in_text, needle};
use std::ops::Range;

/// Tokens that an answer to a question of one's own may have.
pub const MAX_NEW_TOKENS: usize = 48;

/// A text in which something is hidden, and the question for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hidden {
    /// The text, without the question.
    pub text: String,
    /// The question, as it follows the text.
    pub question: String,
    /// The number that is asked for.
    pub expected: String,
    /// Where in the text it stands, with the words around it, in bytes.
    pub needle: Range<usize>,
    /// Tokens that an answer may have.
    pub max_new_tokens: usize,
}

/// What the key is hidden in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hay<'a> {
    /// Filler.
    Filler(Filler),
    /// A visitor's own text.
    Own(&'a str),
}

impl Hidden {
    /// A prompt of `length` tokens, the one that `landmark passkey --lengths .. --depths .. --seed ..` begins with. `depth` is
    /// the fraction of the filler that precedes the key.
    ///
    /// # Errors
    /// A length without room for the question, a depth that is none.
    pub fn new(tokenizer: &Tokenizer, hay: Hay<'_>, length: usize, depth: f64, seed: u64) -> Result<Hidden> {
        let count = |text: &str| Ok(tokenizer.encode(text)?.len());
        let case = match hay {
            Hay::Own(text) => in_text(text, length, depth, seed, &count)?,
            Hay::Filler(filler) => {
                let suite = Passkey {
                    lengths: vec![length],
                    unit: Unit::Tokens,
                    depths: vec![depth],
                    tests: 1,
                    filler,
                    seed,
                };
                suite.validate()?;
                suite.make(&suite.keys()[0], &count)?
            }
        };
        Hidden::of(case)
    }

    fn of(case: Case) -> Result<Hidden> {
        let wrong = || Error::Input("the prompt does not end with its question".into());
        let text = case.prompt.strip_suffix(QUESTION).ok_or_else(wrong)?.to_owned();
        let number = case.expected.first().cloned().unwrap_or_default();
        let line = needle(&number);
        let start = text.find(&line).ok_or_else(wrong)?;
        Ok(Hidden {
            question: QUESTION.to_owned(),
            expected: number,
            needle: start..start + line.len(),
            max_new_tokens: case.max_new_tokens,
            text,
        })
    }
}
