//! One question: its name, its prompt, what is expected, and how an answer is scored.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::passkey::Unit;
use crate::{Failure, Result};

/// Counts the tokens of a text, as the model will see it.
pub type Count<'a> = dyn Fn(&str) -> std::result::Result<usize, Failure> + 'a;

/// Which question of a suite: all that its random draws depend on, but for the seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaseKey {
    /// The task, as [`crate::retrieval`] and [`crate::passkey`] name it.
    pub task: String,
    /// How long the prompt is to be, in the suite's unit.
    pub length: usize,
    /// Where in the text the answer is to stand, from 0 (first) to 1 (last); random if there is none.
    pub depth: Option<f64>,
    /// Which of the questions that have all of this in common.
    pub index: usize,
}

impl fmt::Display for CaseKey {
    /// `task/length/depth/index`: the question's name in files.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}/", self.task, self.length)?;
        match self.depth {
            Some(depth) => write!(out, "{depth}/{}", self.index),
            None => write!(out, "random/{}", self.index),
        }
    }
}

/// A question, complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// The name of the question: [`CaseKey`] as text.
    pub id: String,
    /// Which question it is.
    #[serde(flatten)]
    pub key: CaseKey,
    /// What its length counts.
    pub unit: Unit,
    /// Where the (first) thing asked for came to stand: the part of the filler that precedes it, from 0 to 1. None where
    /// it is spread over all of the text.
    pub placed: Option<f64>,
    /// Tokens of the prompt; 0 where nobody counted.
    pub tokens: usize,
    /// Tokens that an answer may have.
    pub max_new_tokens: usize,
    /// How an answer is scored.
    pub scoring: Scoring,
    /// What a right answer holds.
    pub expected: Vec<String>,
    /// What the model is asked.
    pub prompt: String,
}

/// How an answer is scored, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scoring {
    /// 1 if the first integer in the answer is the one expected: the released pass key test.
    FirstInteger,
    /// The fraction of the expected strings that the answer contains, in whatever case: RULER's `string_match_all`.
    Recall,
}

impl Scoring {
    /// The score of an answer.
    pub fn score(self, answer: &str, expected: &[String]) -> f64 {
        match self {
            Scoring::FirstInteger => {
                let found = first_integer(answer);
                f64::from(u8::from(found.is_some_and(|n| expected.iter().any(|e| without_zeros(e) == n))))
            }
            Scoring::Recall => {
                let answer = answer.to_lowercase();
                let found = expected.iter().filter(|e| answer.contains(&e.to_lowercase())).count();
                if expected.is_empty() { 0.0 } else { found as f64 / expected.len() as f64 }
            }
        }
    }
}

/// The first run of digits (`\d+`), without leading zeros: what Python's `int` makes of it, whatever its length.
/// Digits other than ASCII's, which `\d` and `int` take too, are not looked for.
fn first_integer(answer: &str) -> Option<&str> {
    let start = answer.find(|c: char| c.is_ascii_digit())?;
    let rest = &answer[start..];
    Some(without_zeros(&rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())]))
}

fn without_zeros(digits: &str) -> &str {
    match digits.trim_start_matches('0') {
        "" => "0",
        rest => rest,
    }
}

impl Case {
    /// The score of an answer to this question, from 0 to 1.
    pub fn score(&self, answer: &str) -> f64 {
        self.scoring.score(answer, &self.expected)
    }
}

/// Many questions, made one at a time: the prompts of a suite may be far more text than fits into memory.
pub trait Suite {
    /// All questions, in the order in which they are asked.
    fn keys(&self) -> Vec<CaseKey>;

    /// Makes a question of [`Suite::keys`].
    ///
    /// # Errors
    /// If there is no room for it in a prompt of its length, or tokens cannot be counted.
    fn make(&self, key: &CaseKey, count: &Count<'_>) -> Result<Case>;
}

/// All combinations, in the order in which they are asked: by length, then task, then depth. No depths means random ones.
pub(crate) fn combine(tasks: &[&str], lengths: &[usize], depths: &[f64], each: usize) -> Vec<CaseKey> {
    let depths: Vec<Option<f64>> =
        if depths.is_empty() { vec![None] } else { depths.iter().copied().map(Some).collect() };
    let mut keys = Vec::new();
    for &length in lengths {
        for &task in tasks {
            for &depth in &depths {
                keys.extend((0..each).map(|index| CaseKey { task: task.to_owned(), length, depth, index }));
            }
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(scoring: Scoring, answer: &str, expected: &[&str]) -> f64 {
        scoring.score(answer, &expected.iter().map(|e| (*e).to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn pass_keys_are_scored_by_the_first_integer() {
        for (answer, right) in [
            (" 4711.", true),
            ("4711", true),
            ("is 04711 and not 12", true),
            ("\n\nThe pass key is 4711", true),
            ("-4711", true), // \d+ does not see the sign
            ("12 or 4711", false),
            ("47110", false),
            ("47 11", false),
            ("4,711", false),
            ("", false),
            ("none", false),
            ("99999999999999999999999999999999", false),
        ] {
            assert_eq!(
                score(Scoring::FirstInteger, answer, &["4711"]),
                f64::from(u8::from(right)),
                "{answer:?}"
            );
        }
    }

    #[test]
    fn recall_is_the_fraction_found() {
        let expected = ["ABC", "def", "12"];
        for (answer, found) in [
            ("abc, DEF, 12", 3.0),
            ("xabcx", 1.0),
            ("1 2", 0.0),
            ("", 0.0),
            ("12 12 12", 1.0),
            ("def 3123", 2.0),
        ] {
            assert_eq!(score(Scoring::Recall, answer, &expected), found / 3.0, "{answer}");
        }
        assert_eq!(score(Scoring::Recall, "anything", &[]), 0.0);
    }

    #[test]
    fn combinations_are_in_order_and_have_names() {
        let keys = combine(&["a", "b"], &[10, 20], &[], 2);
        let names: Vec<String> = keys.iter().map(CaseKey::to_string).collect();
        let expected = ["a/10/random/0", "a/10/random/1", "b/10/random/0", "b/10/random/1", "a/20/random/0"];
        assert_eq!(names[..5], expected);
        assert_eq!(combine(&["a"], &[10], &[0.0, 0.25], 3)[5].to_string(), "a/10/0.25/2");
    }
}
