//! Texts to learn retrieval from: the probes' own prompts with the right answer behind them, short enough for a
//! training row.
//!
//! A small model learns from these to find a number in whatever surrounds it; how far it carries that beyond the length
//! that it was trained on is what the probes then ask. Tasks, fillers, lengths and places are drawn anew for each
//! text, from a seed that has to differ from the probes' if answers are not to be learned by heart.

use serde::{Deserialize, Serialize};

use crate::case::{CaseKey, Count, Suite};
use crate::draw::Draw;
use crate::filler::Filler;
use crate::passkey::{Passkey, Unit};
use crate::retrieval::{Retrieval, Task};
use crate::{Error, Result};

/// What a text teaches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lesson {
    /// The pass key test in this filler.
    Passkey(Filler),
    /// A task of the retrieval suite.
    Retrieval(Task),
}

impl Lesson {
    /// The lessons of a name: `passkey` (all fillers), `passkey_NAME` (one), or whatever [`Task::of`] knows.
    ///
    /// # Errors
    /// If there is none.
    pub fn of(name: &str) -> Result<Vec<Lesson>> {
        let filler = name.strip_prefix("passkey").map(|rest| rest.trim_start_matches('_'));
        let fillers =
            Filler::NAMED.iter().filter(|(known, _)| filler.is_some_and(|f| f.is_empty() || f == *known));
        let lessons: Vec<Lesson> = fillers.map(|&(_, filler)| Lesson::Passkey(filler)).collect();
        if !lessons.is_empty() {
            return Ok(lessons);
        }
        Ok(Task::of(name)?.into_iter().map(Lesson::Retrieval).collect())
    }
}

/// A collection of lessons.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lessons {
    /// What they teach, in equal parts.
    pub lessons: Vec<Lesson>,
    /// Fewest and most tokens of a text.
    pub tokens: [usize; 2],
    /// How many texts.
    pub count: usize,
    /// Seed of every draw.
    pub seed: u64,
}

impl Lessons {
    /// Checks the settings.
    ///
    /// # Errors
    /// Names the one that makes no sense.
    pub fn validate(&self) -> Result<()> {
        let wrong = |setting, reason: &str| Err(Error::Setting { setting, reason: reason.to_owned() });
        match self {
            _ if self.lessons.is_empty() => wrong("tasks", "at least one is needed"),
            _ if self.tokens[0] > self.tokens[1] => wrong("min-tokens", "is more than --max-tokens"),
            _ => Ok(()),
        }
    }

    /// Text number `index`. A length that is too short for its task is drawn again, up to the longest.
    ///
    /// # Errors
    /// If even the longest is too short, or tokens cannot be counted.
    pub fn text(&self, index: usize, count: &Count<'_>) -> Result<String> {
        let key = |task: &str, length| CaseKey { task: task.to_owned(), length, depth: None, index };
        let mut draw = Draw::new(self.seed, &key("lessons", 0), 0);
        let lesson = &self.lessons[draw.below(self.lessons.len())];
        let mut shortest = self.tokens[0];
        loop {
            let length = draw.between(shortest, self.tokens[1]);
            match self.make(lesson, length, index, count) {
                Err(Error::TooShort { least, .. }) if length < self.tokens[1] => {
                    shortest = least.clamp(length + 1, self.tokens[1]);
                }
                other => return other,
            }
        }
    }

    fn make(&self, lesson: &Lesson, length: usize, index: usize, count: &Count<'_>) -> Result<String> {
        let (task, suite): (_, Box<dyn Suite>) = match lesson {
            Lesson::Passkey(filler) => (
                crate::passkey::TASK,
                Box::new(Passkey {
                    lengths: vec![length],
                    unit: Unit::Tokens,
                    depths: Vec::new(),
                    tests: index + 1,
                    filler: *filler,
                    seed: self.seed,
                }),
            ),
            Lesson::Retrieval(task) => (
                &task.name,
                Box::new(Retrieval {
                    tasks: vec![task.clone()],
                    lengths: vec![length],
                    depths: Vec::new(),
                    samples: index + 1,
                    seed: self.seed,
                }),
            ),
        };
        let answer_tokens = |answer: &str| {
            count(answer).map_err(|source| Error::Count { id: format!("{task}/{length}/{index}"), source })
        };
        // The answer is part of the length. A first prompt tells how long it is; all answers of a task are about so long.
        let key = |length| CaseKey { task: task.to_owned(), length, depth: None, index };
        let first = suite.make(&key(length), count)?;
        let room = answer_tokens(&answer(&first.expected))? + 1;
        let case = suite.make(&key(length.saturating_sub(room).max(1)), count)?;
        Ok(case.prompt.clone() + &answer(&case.expected))
    }
}

/// What stands behind the prompt.
fn answer(expected: &[String]) -> String {
    format!(" {}.", expected.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pieces;

    fn lessons(name: &str) -> Lessons {
        Lessons { lessons: Lesson::of(name).unwrap(), tokens: [150, 400], count: 40, seed: 7 }
    }

    #[test]
    fn texts_end_with_the_answer_that_they_hold() {
        for name in ["passkey", "niah_single_1", "niah_multikey_1", "niah_multiquery"] {
            let lessons = lessons(name);
            for index in 0..lessons.count {
                let text = lessons.text(index, &pieces).unwrap();
                let tokens = pieces(&text).unwrap();
                assert!((100..=400).contains(&tokens), "{name}: {tokens} tokens");
                // Numbers, the last of which ends the text.
                let numbers: Vec<&str> =
                    text.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty()).collect();
                let (answer, body) = numbers.split_last().unwrap();
                assert!(text.ends_with(&format!("{answer}.")), "{name}: {text}");
                assert!(body.contains(answer), "{name}: {answer} is not in the text before it");
            }
        }
    }

    #[test]
    fn lessons_differ_and_can_be_made_again_alone() {
        let lessons = lessons("passkey");
        assert_eq!(lessons.lessons.len(), 3, "all fillers");
        let mut texts: Vec<String> = (0..40).map(|i| lessons.text(i, &pieces).unwrap()).collect();
        assert_eq!(lessons.text(17, &pieces).unwrap(), texts[17]);
        assert!(texts.iter().any(|t| t.contains("The grass is green")), "the released filler");
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), 40);
        assert_ne!(
            Lessons { seed: 8, ..lessons.clone() }.text(0, &pieces).unwrap(),
            lessons.text(0, &pieces).unwrap()
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(Lesson::of("nothing").is_err());
        assert_eq!(Lesson::of("passkey_notes").unwrap(), [Lesson::Passkey(Filler::Notes)]);
        assert!(Lessons { tokens: [9, 8], ..lessons("passkey") }.validate().is_err());
        assert!(Lessons { lessons: Vec::new(), ..lessons("passkey") }.validate().is_err());
        let error = Lessons { tokens: [5, 10], ..lessons("passkey") }.text(0, &pieces).unwrap_err();
        assert!(error.to_string().contains("at least"), "{error}");
    }
}
