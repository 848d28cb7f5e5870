//! What the tests of this crate share: tokenizers to count with, and answerers of known accuracy.

use crate::{Answer, Answerer, Failure};

/// A token a character.
pub(crate) fn characters(text: &str) -> Result<usize, Failure> {
    Ok(text.chars().count())
}

/// Pieces of up to four letters or digits of one word, and everything else alone: cutting a word can add a token, as with
/// real encodings.
pub(crate) fn pieces(text: &str) -> Result<usize, Failure> {
    let mut tokens = 0;
    let mut run = 0;
    for c in text.chars() {
        if c.is_alphanumeric() {
            if run % 4 == 0 {
                tokens += 1;
            }
            run += 1;
        } else {
            // A blank belongs to the word behind it.
            tokens += usize::from(c != ' ');
            run = 0;
        }
    }
    Ok(tokens)
}

/// How an answerer of known accuracy answers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Skill {
    /// Always right.
    Right,
    /// Always wrong.
    Wrong,
    /// Right if the pass key stands within the last so many characters.
    Last(usize),
}

/// Reads the pass key from the prompt by rule, as well as its skill allows.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) skill: Skill,
    /// Prompts answered.
    pub(crate) asked: usize,
}

impl Reader {
    pub(crate) fn new(skill: Skill) -> Reader {
        Reader { skill, asked: 0 }
    }
}

impl Answerer for Reader {
    fn count(&self, text: &str) -> Result<usize, Failure> {
        pieces(text)
    }

    fn answer(&mut self, prompt: &str, _: usize) -> Result<Answer, Failure> {
        self.asked += 1;
        let seen = match self.skill {
            Skill::Right => prompt,
            Skill::Wrong => "",
            Skill::Last(n) => &prompt[prompt.len().saturating_sub(n)..],
        };
        let marker = "The pass key is ";
        let found = seen.find(marker).map(|at| &seen[at + marker.len()..]);
        let digits = found.map(|rest| &rest[..rest.find('.').unwrap_or(0)]).filter(|d| !d.is_empty());
        Ok(Answer {
            text: format!(" {}. The grass is green.", digits.unwrap_or("0")),
            prompt_tokens: pieces(prompt)?,
            seconds: 0.5,
            peak_memory_bytes: Some(prompt.len() as u64),
        })
    }
}
