//! The released pass key test: a number somewhere in a field of filler.
//!
//! Task, filler, the number, filler, question, joined by line breaks, as the released `run_test.py` makes it: the filler
//! is counted in characters and cut wherever that is, the split between the parts before and after the number is
//! uniform, both parts begin at the start of the filler, and the number is uniform from 1 to 50000. An answer of at
//! most ten tokens is right if the first integer in it is the number.
//!
//! What is added: the length may be given in tokens of the model (the prompt then has as many, or the one or two fewer that cutting
//! a word leaves), the number may stand at a given depth instead of a random one, other filler may be used,
//! and every question is drawn from a seed of its own. The released filler ends after 178,000 characters, ours does not.

use std::fmt::Display;

use serde::{Deserialize, Serialize};

use crate::case::{Case, CaseKey, Count, Scoring, Suite, combine};
use crate::draw::Draw;
use crate::filler::{Endless, Filler};
use crate::fit::fit;
use crate::{Error, Result};

/// The task's name.
pub const TASK: &str = "passkey";

/// Lengths of the released test, in characters of filler.
pub const RELEASED_CHARACTERS: [usize; 13] =
    [0, 100, 500, 1000, 5000, 8000, 10000, 12000, 14000, 18000, 20000, 25000, 38000];

/// Questions of each length in the released test.
pub const RELEASED_TESTS: usize = 50;

/// Tokens that an answer may have, as released.
pub const MAX_NEW_TOKENS: usize = 10;

const DESCRIPTION: &str = "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. \
                           I will quiz you about the important information there.";
/// What is asked, as the last line of a prompt.
pub const QUESTION: &str = "What is the pass key? The pass key is";
const LARGEST_KEY: usize = 50_000;

/// What a length counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Tokens of the whole prompt.
    #[default]
    Tokens,
    /// Characters of the filler alone: the released way.
    Characters,
}

/// A pass key test.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Passkey {
    /// Lengths of prompts.
    pub lengths: Vec<usize>,
    /// What `lengths` count.
    pub unit: Unit,
    /// Where the number stands: fractions of the filler that precede it. Random (the released way) if there are none.
    pub depths: Vec<f64>,
    /// Questions of each length and depth.
    pub tests: usize,
    /// What the number is hidden in.
    pub filler: Filler,
    /// Seed of every draw.
    pub seed: u64,
}

impl Passkey {
    /// The released test.
    pub fn released(seed: u64) -> Passkey {
        Passkey {
            lengths: RELEASED_CHARACTERS.to_vec(),
            unit: Unit::Characters,
            depths: Vec::new(),
            tests: RELEASED_TESTS,
            filler: Filler::Released,
            seed,
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// Names the one that makes no sense.
    pub fn validate(&self) -> Result<()> {
        check_depths(&self.depths)?;
        for (setting, is_empty) in [("lengths", self.lengths.is_empty()), ("num-tests", self.tests == 0)] {
            if is_empty {
                return Err(Error::Setting { setting, reason: "at least one is needed".into() });
            }
        }
        Ok(())
    }
}

/// Depths are fractions.
pub(crate) fn check_depths(depths: &[f64]) -> Result<()> {
    match depths.iter().find(|depth| !(0.0..=1.0).contains(*depth)) {
        None => Ok(()),
        Some(depth) => Err(Error::Setting {
            setting: "depths",
            reason: format!("{depth} is not a fraction from 0 (the beginning) to 1 (the end)"),
        }),
    }
}

/// The prompt, from its two parts of filler and the number.
fn prompt(before: &str, key: usize, after: &str) -> String {
    format!("{DESCRIPTION}\n{before}\n{}\n{after}\n{QUESTION}", needle(key))
}

/// The line that is hidden.
pub fn needle(key: impl Display) -> String {
    format!("The pass key is {key}. Remember it. {key} is the pass key.")
}

/// A pass key in a text that somebody brought, instead of filler: of the text as much as a prompt of `length` tokens has room
/// for, from its beginning. `depth` is the fraction of that which precedes the number.
///
/// # Errors
/// A depth that is none, too few tokens for the question alone, tokens that cannot be counted.
pub fn in_text(text: &str, length: usize, depth: f64, seed: u64, count: &Count<'_>) -> Result<Case> {
    check_depths(&[depth])?;
    let key = CaseKey { task: TASK.to_owned(), length, depth: Some(depth), index: 0 };
    let pass_key = Draw::new(seed, &key, 0).between(1, LARGEST_KEY);
    // Where each character begins, and where the last one ends.
    let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    let most = starts.len() - 1;
    let before = |n: usize| (depth * n as f64).round() as usize;
    let build = |n: usize| {
        let n = n.min(most);
        let (split, end) = (starts[before(n).min(n)], starts[n]);
        prompt(&text[..split], pass_key, &text[split..end])
    };
    let id = key.to_string();
    let (found, _) = fit(&id, length, 0, count, |n, _| build(n))?;
    let used = found.units.min(most);
    Ok(Case {
        id,
        key,
        unit: Unit::Tokens,
        placed: Some(before(used) as f64 / used.max(1) as f64),
        tokens: found.tokens,
        max_new_tokens: MAX_NEW_TOKENS,
        scoring: Scoring::FirstInteger,
        expected: vec![pass_key.to_string()],
        prompt: build(used),
    })
}

impl Suite for Passkey {
    fn keys(&self) -> Vec<CaseKey> {
        combine(&[TASK], &self.lengths, &self.depths, self.tests)
    }

    fn make(&self, case: &CaseKey, count: &Count<'_>) -> Result<Case> {
        let id = case.to_string();
        let mut draw = Draw::new(self.seed, case, 0);
        let pass_key = draw.between(1, LARGEST_KEY);
        let split = draw.unit();
        // The number of characters before the number, of n: all of 0..=n are equally likely.
        let before = |n: usize| match case.depth {
            Some(depth) => (depth * n as f64).round() as usize,
            None => (split * (n + 1) as f64) as usize,
        };
        let stream = |side: u64| Endless::new(self.filler, Draw::new(self.seed, case, 1 + side));
        let (mut first, mut second) = (stream(0), stream(1));
        let mut build = |n: usize| {
            let before = before(n).min(n);
            prompt(first.first(before), pass_key, second.first(n - before))
        };
        let (characters, tokens) = match self.unit {
            Unit::Tokens => {
                let (found, _) = fit(&id, case.length, 0, count, |n, _| build(n))?;
                (found.units, found.tokens)
            }
            Unit::Characters => {
                let tokens = count(&build(case.length));
                (case.length, tokens.map_err(|source| Error::Count { id: id.clone(), source })?)
            }
        };
        let placed = before(characters).min(characters) as f64 / characters.max(1) as f64;
        Ok(Case {
            id,
            key: case.clone(),
            unit: self.unit,
            placed: Some(placed),
            tokens,
            max_new_tokens: MAX_NEW_TOKENS,
            scoring: Scoring::FirstInteger,
            expected: vec![pass_key.to_string()],
            prompt: build(characters),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{characters, pieces};

    /// The released prompt for 100 characters of filler, 37 of them before the number, written down from its source.
    #[test]
    fn the_prompt_is_the_released_one() {
        let expected = "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. \
            I will quiz you about the important information there.\n\
            The grass is green. The sky is blue. \n\
            The pass key is 4711. Remember it. 4711 is the pass key.\n\
            The grass is green. The sky is blue. The sun is yellow. Here we\n\
            What is the pass key? The pass key is";
        let mut filler = Endless::new(Filler::Released, Draw::new(1, &Passkey::released(1).keys()[0], 0));
        let (before, after) = (filler.first(37).to_owned(), filler.first(63).to_owned());
        assert_eq!(prompt(&before, 4711, &after), expected);
    }

    #[test]
    fn characters_are_counted_as_released() {
        let suite = Passkey { lengths: vec![0, 1, 100, 38_000], tests: 40, ..Passkey::released(2) };
        let overhead = prompt("", 1, "").len() - 2;
        let mut splits = Vec::new();
        for key in suite.keys() {
            let case = suite.make(&key, &characters).unwrap();
            let digits = 2 * case.expected[0].len();
            assert_eq!(case.prompt.len(), overhead + digits + key.length, "{}", case.id);
            assert_eq!(case.prompt.lines().count(), 5);
            let number: usize = case.expected[0].parse().unwrap();
            assert!((1..=50_000).contains(&number));
            let line = format!("\nThe pass key is {number}. Remember it. {number} is the pass key.\n");
            assert_eq!(case.prompt.matches(&line).count(), 1);
            assert_eq!((case.score(&format!(" {number}. ")), case.score("0")), (1.0, 0.0));
            if key.length == 38_000 {
                splits.push(case.placed.unwrap());
                assert_eq!(
                    case.prompt.lines().nth(1).unwrap().len(),
                    (case.placed.unwrap() * 38e3).round() as usize
                );
            }
        }
        let mean = splits.iter().sum::<f64>() / splits.len() as f64;
        assert!((0.35..0.65).contains(&mean), "splits are uniform: {mean}");
        assert!(splits.iter().any(|&s| s < 0.2) && splits.iter().any(|&s| s > 0.8));
    }

    #[test]
    fn tokens_are_met_to_within_two() {
        for (_, filler) in Filler::NAMED {
            let suite = Passkey {
                lengths: vec![120, 121, 122, 1000, 4096, 30_000],
                unit: Unit::Tokens,
                depths: vec![0.0, 0.37, 1.0],
                tests: 3,
                filler,
                seed: 3,
            };
            for key in suite.keys() {
                let case = suite.make(&key, &pieces).unwrap();
                assert_eq!(case.tokens, pieces(&case.prompt).unwrap());
                assert!(
                    case.tokens <= key.length && case.tokens + 2 >= key.length,
                    "{} {}",
                    case.id,
                    case.tokens
                );
                if key.length > 1000 {
                    assert!((case.placed.unwrap() - key.depth.unwrap()).abs() < 1e-3);
                }
            }
        }
    }

    #[test]
    fn a_key_is_hidden_in_a_text_of_ones_own() {
        let text = "Ein Bär aß süße Beeren. ".repeat(400);
        for (length, depth) in [(400, 0.0), (777, 0.5), (1000, 1.0), (1_000_000, 0.25)] {
            let case = in_text(&text, length, depth, 9, &characters).unwrap();
            assert_eq!(case.tokens, case.prompt.chars().count());
            assert!(case.tokens == length || length > text.len(), "{length}: {}", case.tokens);
            let number = &case.expected[0];
            let line = format!("\nThe pass key is {number}. Remember it. {number} is the pass key.\n");
            let (before, after) = case.prompt.split_once(&line).unwrap();
            let before = before.strip_prefix(DESCRIPTION).unwrap().strip_prefix('\n').unwrap();
            let after = after.strip_suffix(QUESTION).unwrap().strip_suffix('\n').unwrap();
            assert!(text.starts_with(&format!("{before}{after}")));
            assert!((case.placed.unwrap() - depth).abs() < 0.01, "{depth}: {:?}", case.placed);
        }
        assert!(in_text(&text, 20, 0.5, 9, &characters).is_err(), "no room for the question");
        assert!(in_text(&text, 500, 1.5, 9, &characters).is_err(), "no depth");
        assert!(in_text("", 500, 0.5, 9, &characters).unwrap().prompt.ends_with(QUESTION));
    }

    #[test]
    fn one_question_can_be_made_again_alone() {
        let suite = Passkey { lengths: vec![500, 700], tests: 5, unit: Unit::Tokens, ..Passkey::released(5) };
        let all: Vec<Case> = suite.keys().iter().map(|key| suite.make(key, &pieces).unwrap()).collect();
        let alone = Passkey { lengths: vec![700], tests: 50, ..suite.clone() };
        assert_eq!(alone.make(&alone.keys()[3], &pieces).unwrap(), all[8]);
        let mut keys: Vec<&String> = all.iter().map(|case| &case.expected[0]).collect();
        keys.sort_unstable();
        keys.dedup();
        assert!(keys.len() >= 9, "keys differ");
        let other = Passkey { seed: 6, ..suite.clone() };
        assert_ne!(other.make(&other.keys()[0], &pieces).unwrap().expected, all[0].expected);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let suite = Passkey { lengths: vec![10], unit: Unit::Tokens, ..Passkey::released(1) };
        let error = suite.make(&suite.keys()[0], &pieces).unwrap_err().to_string();
        assert!(error.contains("passkey: a prompt of 10 tokens") && error.contains("at least"), "{error}");
        for wrong in [
            Passkey { depths: vec![0.5, 1.5], ..suite.clone() },
            Passkey { depths: vec![f64::NAN], ..suite.clone() },
            Passkey { tests: 0, ..suite.clone() },
            Passkey { lengths: vec![], ..suite.clone() },
        ] {
            assert!(wrong.validate().is_err(), "{wrong:?}");
        }
    }
}
