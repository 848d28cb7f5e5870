//! Variable tracking: who holds the value, directly or through others?
//!
//! Chains of assignments (`LET ABCDE = 12345`, `LET FGHIJ = ABCDE`, ...) are strewn over noise, each chain in its order; asked for are
//! all variables of one chain, by its value. A short example with its answer precedes the question, as published: without
//! it, models that only continue text do not know what is wanted.

use serde::{Deserialize, Serialize};

use super::{Write, padding};
use crate::draw::Draw;
use crate::filler::Filler;
use crate::{Error, Result};

/// Settings of the task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Variables {
    /// Chains, one of which is asked for.
    pub chains: usize,
    /// Assignments from one variable to another in each chain; so it has one variable more.
    pub hops: usize,
}

/// Sentences of noise in the example.
const EXAMPLE_NOISE: usize = 4;
const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const MOST: usize = 1000;

impl Variables {
    pub(super) fn validate(&self) -> Result<()> {
        if self.chains == 0 {
            return Err(Error::Setting { setting: "chains", reason: "at least one is needed".into() });
        }
        if self.chains.saturating_mul(self.hops.saturating_add(1)) > MOST {
            let reason = "at most 1000 variables can be hidden".to_owned();
            return Err(Error::Setting { setting: "hops", reason });
        }
        Ok(())
    }

    pub(super) fn writer(&self, draws: &dyn Fn(u64) -> Draw) -> Writer {
        let mut draw = draws(0);
        let mut used = Vec::new();
        let example = self.text(&mut draw, &mut used);
        let question = self.text(&mut draw, &mut used);
        Writer { example, question, hay: Vec::new(), draw: draws(1) }
    }

    /// Chains with names and values that were not `used`.
    fn text(&self, draw: &mut Draw, used: &mut Vec<String>) -> Text {
        let mut fresh = |draw: &mut Draw, make: &dyn Fn(&mut Draw) -> String| loop {
            let new = make(draw);
            if !used.contains(&new) {
                used.push(new.clone());
                return new;
            }
        };
        let mut text = Text { assignments: Vec::new(), value: String::new(), names: Vec::new() };
        for chain in 0..self.chains {
            let value = fresh(draw, &|draw| draw.between(10_000, 99_999).to_string());
            let names: Vec<String> =
                (0..=self.hops).map(|_| fresh(draw, &|draw| draw.letters(5, LETTERS))).collect();
            let mut depths: Vec<f64> = names.iter().map(|_| draw.unit()).collect();
            depths.sort_by(f64::total_cmp);
            let sources = std::iter::once(&value).chain(&names);
            for ((name, from), at) in names.iter().zip(sources).zip(depths) {
                text.assignments.push((at, format!("LET {name} = {from}.")));
            }
            if chain == 0 {
                (text.value, text.names) = (value, names);
            }
        }
        text.assignments.sort_by(|a, b| a.0.total_cmp(&b.0));
        text
    }
}

/// Chains of assignments, and what is asked about them.
struct Text {
    /// Depth and sentence, in order.
    assignments: Vec<(f64, String)>,
    value: String,
    names: Vec<String>,
}

impl Text {
    /// The assignments among sentences, and the question.
    fn write(&self, hay: &[String], pad: &str) -> String {
        let mut text = String::from("Follow the assignments of variables in this text.\n");
        let mut next = self.assignments.iter().peekable();
        for sentence in 0..=hay.len() {
            let is_here = |at: f64| (at * hay.len() as f64).round() as usize <= sentence;
            while let Some((_, assignment)) = next.next_if(|next| is_here(next.0)) {
                text += assignment;
                text.push('\n');
            }
            if let Some(sentence) = hay.get(sentence) {
                text += sentence;
                text.push('\n');
            }
        }
        text.truncate(text.trim_end().len());
        let (count, value) = (self.names.len(), &self.value);
        text + pad
            + &format!(
                "\nWhich variables hold the value {value}, directly or by way of others? \
                 By the assignments above, {count} variables hold the value {value}:"
            )
    }
}

/// Writes the prompts of one question.
pub(super) struct Writer {
    example: Text,
    question: Text,
    hay: Vec<String>,
    draw: Draw,
}

impl Write for Writer {
    fn prompt(&mut self, units: usize, pad: usize) -> String {
        while self.hay.len() < EXAMPLE_NOISE + units {
            self.hay.push(Filler::Notes.sentence(&mut self.draw));
        }
        let (first, rest) = self.hay.split_at(EXAMPLE_NOISE);
        let example = self.example.write(first, "") + " " + &self.example.names.join(", ") + ".\n\n";
        example
            + &self
                .question
                .write(&rest[..units], &padding("Nothing else happened all day, or so it seemed.", pad))
    }

    fn most_padding(&self) -> usize {
        8
    }

    fn answer(&mut self, _: usize) -> (Vec<String>, Option<f64>) {
        (self.question.names.clone(), None)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, Retrieval, Task};
    use super::*;
    use crate::case::{Case, Suite};
    use crate::testing::pieces;
    use std::collections::BTreeMap;

    fn cases(chains: usize, hops: usize) -> Vec<Case> {
        let kind = Kind::Variables(Variables { chains, hops });
        let tasks = vec![Task { kind, ..Task::named("vt").unwrap() }];
        let suite = Retrieval { tasks, lengths: vec![3000], depths: vec![0.5], samples: 5, seed: 4 };
        suite.keys().iter().map(|key| suite.make(key, &pieces).unwrap()).collect()
    }

    #[test]
    fn a_text_by_hand() {
        let assignments =
            [(0.0, "LET A = 7."), (0.5, "LET B = A."), (1.0, "LET C = B.")].map(|(at, s)| (at, s.to_owned()));
        let text = Text {
            assignments: assignments.to_vec(),
            value: "7".into(),
            names: ["A", "B", "C"].map(String::from).to_vec(),
        };
        assert_eq!(
            text.write(&["x.".to_owned(), "y.".to_owned()], " z"),
            "Follow the assignments of variables in this text.\n\
             LET A = 7.\nx.\nLET B = A.\ny.\nLET C = B. z\n\
             Which variables hold the value 7, directly or by way of others? \
             By the assignments above, 3 variables hold the value 7:"
        );
    }

    /// The prompt is solved by reading it: an assignment counts once what it reads from is known.
    #[test]
    fn chains_can_be_followed_in_order() {
        for (chains, hops) in [(1, 4), (3, 2), (2, 0), (5, 10)] {
            for case in cases(chains, hops) {
                assert_eq!((case.expected.len(), case.placed), (hops + 1, None));
                let (example, question) = case.prompt.split_once("\n\n").unwrap();
                for (part, answer) in [(example, None), (question, Some(&case.expected))] {
                    let mut values: BTreeMap<&str, &str> = BTreeMap::new();
                    for line in part.lines().filter_map(|line| line.strip_prefix("LET ")) {
                        let (name, rest) = line.split_once(" = ").unwrap();
                        let source = rest.split('.').next().unwrap();
                        let known = *values.get(source).unwrap_or(&source);
                        assert!(known.parse::<u32>().is_ok(), "{source} is assigned before it is used");
                        assert!(values.insert(name, known).is_none());
                    }
                    assert_eq!(values.len(), chains * (hops + 1));
                    let asked = part.split("hold the value ").nth(1).unwrap().split(',').next().unwrap();
                    let mut found: Vec<&str> =
                        values.iter().filter(|(_, value)| **value == asked).map(|(name, _)| *name).collect();
                    let given: Vec<&str> = match answer {
                        Some(expected) => expected.iter().map(String::as_str).collect(),
                        None => part.rsplit(": ").next().unwrap().trim_end_matches('.').split(", ").collect(),
                    };
                    let mut sorted = given.clone();
                    sorted.sort_unstable();
                    found.sort_unstable();
                    assert_eq!(found, sorted);
                }
            }
        }
    }

    #[test]
    fn impossible_settings_are_named() {
        assert!(Variables { chains: 0, hops: 1 }.validate().is_err());
        assert!(Variables { chains: 1, hops: usize::MAX }.validate().is_err());
        assert!(Variables { chains: 10, hops: 99 }.validate().is_ok());
    }
}
