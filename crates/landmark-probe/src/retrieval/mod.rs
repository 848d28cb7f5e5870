//! Retrieval and more, after RULER (Hsieh et al. 2024, arXiv 2404.06654).
//!
//! RULER's synthetic tasks in words of our own, from the paper's description: what is hidden, how much of it, what is asked and how it is
//! scored follow the paper, the sentences do not, so scores compare with the published ones in kind and not to the digit. The
//! two question answering tasks are left out: they need data sets, and nothing is downloaded here.
//!
//! | name | haystack | asked for |
//! |---|---|---|
//! | `niah_single_1` | a few sentences, repeated | one number by one name |
//! | `niah_single_2` | prose | one number by one name |
//! | `niah_single_3` | prose | one UUID by one name |
//! | `niah_multikey_1` | prose, 4 names | one of the numbers |
//! | `niah_multikey_2` | nothing but names with numbers | one of the numbers |
//! | `niah_multikey_3` | nothing but UUIDs with UUIDs | one of the values |
//! | `niah_multivalue` | prose | the 4 numbers of one name |
//! | `niah_multiquery` | prose, 4 names | all 4 numbers |
//! | `vt` | a few sentences, repeated | the 5 variables of a chain of assignments |
//! | `cwe` | a numbered list of words | the 10 that come most often |
//! | `fwe` | made-up words, as often as Zipf's law has it | the 3 that come most often |
//!
//! A length is the number of tokens of the prompt (RULER counts the answer's budget in; subtract it to compare). Prompts
//! end in the beginning of the answer, so that models that were never taught to follow instructions answer, too. Every
//! answer is scored by the fraction of the expected strings in it.

mod needles;
mod variables;
pub(crate) mod vocabulary;
mod words;

use serde::{Deserialize, Serialize};

pub use needles::{Haystack, KeyKind, Needles, ValueKind};
pub use variables::Variables;
pub use words::{CommonWords, FrequentWords};

use crate::case::{Case, CaseKey, Count, Scoring, Suite, combine};
use crate::draw::Draw;
use crate::fit::fit;
use crate::passkey::{Unit, check_depths};
use crate::{Error, Result};

/// Tasks, as named on a command line.
pub const NAMES: [&str; 11] = [
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "niah_multivalue",
    "niah_multiquery",
    "vt",
    "cwe",
    "fwe",
];

/// What is hidden, and what is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Needles in a haystack.
    Needles(Needles),
    /// Variable tracking.
    Variables(Variables),
    /// Common words extraction.
    CommonWords(CommonWords),
    /// Frequent words extraction.
    FrequentWords(FrequentWords),
}

/// A task with its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Its name.
    pub name: String,
    /// What is hidden.
    pub kind: Kind,
    /// Tokens that an answer may have, as published: 128 for needles, 30, 120 and 50 for the others.
    pub max_new_tokens: usize,
}

impl Task {
    /// A task of [`NAMES`], with the published settings.
    pub fn named(name: &str) -> Option<Task> {
        let needles = |haystack, values: usize, keys: usize, queries: usize| Needles {
            haystack,
            key: KeyKind::Words,
            value: ValueKind::Number,
            keys,
            values,
            queries,
        };
        let uuids = |needles: Needles| Needles { value: ValueKind::Uuid, ..needles };
        let (kind, max_new_tokens) = match name {
            "niah_single_1" => (Kind::Needles(needles(Haystack::Noise, 1, 1, 1)), 128),
            "niah_single_2" => (Kind::Needles(needles(Haystack::Prose, 1, 1, 1)), 128),
            "niah_single_3" => (Kind::Needles(uuids(needles(Haystack::Prose, 1, 1, 1))), 128),
            "niah_multikey_1" => (Kind::Needles(needles(Haystack::Prose, 1, 4, 1)), 128),
            "niah_multikey_2" => (Kind::Needles(needles(Haystack::Needles, 1, 1, 1)), 128),
            "niah_multikey_3" => {
                let needles = uuids(needles(Haystack::Needles, 1, 1, 1));
                (Kind::Needles(Needles { key: KeyKind::Uuid, ..needles }), 128)
            }
            "niah_multivalue" => (Kind::Needles(needles(Haystack::Prose, 4, 1, 1)), 128),
            "niah_multiquery" => (Kind::Needles(needles(Haystack::Prose, 1, 4, 4)), 128),
            "vt" => (Kind::Variables(Variables { chains: 1, hops: 4 }), 30),
            "cwe" => (Kind::CommonWords(CommonWords { words: 10, often: None, seldom: None }), 120),
            "fwe" => (Kind::FrequentWords(FrequentWords { alpha: 2.0, words: 3 }), 50),
            _ => return None,
        };
        Some(Task { name: name.to_owned(), kind, max_new_tokens })
    }

    /// The tasks that a name stands for: one, or all whose names begin so (`niah`, `niah_single`), or `all`.
    ///
    /// # Errors
    /// If there is none.
    pub fn of(name: &str) -> Result<Vec<Task>> {
        let group = format!("{name}_");
        let is_meant = |known: &&str| name == "all" || **known == *name || known.starts_with(&group);
        let tasks: Vec<Task> =
            NAMES.iter().filter(|known| is_meant(known)).filter_map(|n| Task::named(n)).collect();
        if tasks.is_empty() {
            return Err(Error::UnknownTask {
                name: name.to_owned(),
                known: NAMES.join(", ") + ", niah, all",
            });
        }
        Ok(tasks)
    }

    /// Whether a depth means something to it. The others are spread over all of the text.
    pub fn has_depth(&self) -> bool {
        matches!(self.kind, Kind::Needles(_))
    }

    fn validate(&self) -> Result<()> {
        match &self.kind {
            Kind::Needles(needles) => needles.validate(),
            Kind::Variables(variables) => variables.validate(),
            Kind::CommonWords(words) => words.validate(),
            Kind::FrequentWords(words) => words.validate(),
        }
    }
}

/// Several tasks at several lengths.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Retrieval {
    /// What to ask.
    pub tasks: Vec<Task>,
    /// Tokens of the prompts.
    pub lengths: Vec<usize>,
    /// Where what is asked for stands, for the tasks to which that means something. Random if there are none.
    pub depths: Vec<f64>,
    /// Questions of each task, length and depth.
    pub samples: usize,
    /// Seed of every draw.
    pub seed: u64,
}

impl Retrieval {
    /// Checks the settings.
    ///
    /// # Errors
    /// Names the one that makes no sense.
    pub fn validate(&self) -> Result<()> {
        check_depths(&self.depths)?;
        for (setting, is_empty) in [
            ("tasks", self.tasks.is_empty()),
            ("lengths", self.lengths.is_empty()),
            ("num-samples", self.samples == 0),
        ] {
            if is_empty {
                return Err(Error::Setting { setting, reason: "at least one is needed".into() });
            }
        }
        self.tasks.iter().try_for_each(Task::validate)
    }
}

/// A prompt under construction: what a task writes for so much filler.
pub(crate) trait Write {
    /// The prompt with `units` of filler and `padding` small units behind them.
    fn prompt(&mut self, units: usize, padding: usize) -> String;

    /// The most padding that makes sense.
    fn most_padding(&self) -> usize {
        0
    }

    /// What a right answer to that prompt holds, and where the first of it stands.
    fn answer(&mut self, units: usize) -> (Vec<String>, Option<f64>);
}

impl Suite for Retrieval {
    fn keys(&self) -> Vec<CaseKey> {
        let mut keys = Vec::new();
        for &length in &self.lengths {
            for task in &self.tasks {
                let depths: &[f64] = if task.has_depth() { &self.depths } else { &[] };
                keys.extend(combine(&[&task.name], &[length], depths, self.samples));
            }
        }
        keys
    }

    fn make(&self, case: &CaseKey, count: &Count<'_>) -> Result<Case> {
        let known = || self.tasks.iter().map(|task| task.name.as_str()).collect::<Vec<_>>().join(", ");
        let task = self.tasks.iter().find(|task| task.name == case.task);
        let task = task.ok_or_else(|| Error::UnknownTask { name: case.task.clone(), known: known() })?;
        let draw = |stream| Draw::new(self.seed, case, stream);
        let mut writer: Box<dyn Write> = match &task.kind {
            Kind::Needles(needles) => Box::new(needles.writer(case.depth, &draw)),
            Kind::Variables(variables) => Box::new(variables.writer(&draw)),
            Kind::CommonWords(words) => Box::new(words.writer(case.length, &draw)),
            Kind::FrequentWords(words) => Box::new(words.writer(&draw)),
        };
        let id = case.to_string();
        let most_padding = writer.most_padding();
        let (units, padding) = fit(&id, case.length, most_padding, count, |n, m| writer.prompt(n, m))?;
        let (expected, placed) = writer.answer(units.units);
        if expected.is_empty() {
            let reason = format!("{} tokens are too few to tell which words come most often", case.length);
            return Err(Error::Setting { setting: "lengths", reason });
        }
        Ok(Case {
            id,
            key: case.clone(),
            unit: Unit::Tokens,
            placed,
            tokens: padding.tokens,
            max_new_tokens: task.max_new_tokens,
            scoring: Scoring::Recall,
            expected,
            prompt: writer.prompt(units.units, padding.units),
        })
    }
}

/// `a`, `a and b`, `a, b and c`.
fn enumerate(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// The beginning of a sentence, `words` words of it, behind a blank: filler smaller than a sentence.
fn padding(sentence: &str, words: usize) -> String {
    sentence.split(' ').take(words).fold(String::new(), |text, word| text + " " + word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pieces;

    fn suite(name: &str, lengths: &[usize]) -> Retrieval {
        Retrieval {
            tasks: Task::of(name).unwrap(),
            lengths: lengths.to_vec(),
            depths: vec![],
            samples: 3,
            seed: 1,
        }
    }

    #[test]
    fn names_stand_for_one_or_several_tasks() {
        let count = |name: &str| Task::of(name).map(|tasks| tasks.len()).unwrap_or(0);
        assert_eq!(
            [count("all"), count("niah"), count("niah_single"), count("niah_multikey")],
            [11, 8, 3, 3]
        );
        assert_eq!(
            [count("vt"), count("niah_single_2"), count("niah_s"), count(""), count("qa")],
            [1, 1, 0, 0, 0]
        );
        let budgets: Vec<usize> = Task::of("all").unwrap().iter().map(|task| task.max_new_tokens).collect();
        assert_eq!(budgets, [128, 128, 128, 128, 128, 128, 128, 128, 30, 120, 50]);
        assert!(Task::of("qa").unwrap_err().to_string().contains("niah_multivalue"));
    }

    /// Every task, from the shortest prompts that hold it: at most as long as asked, and hardly shorter.
    #[test]
    fn lengths_are_met() {
        for length in [700, 1500, 4095, 4096, 20_000] {
            let suite = suite("all", &[length]);
            for key in suite.keys() {
                let case = suite.make(&key, &pieces).unwrap();
                assert_eq!(case.tokens, pieces(&case.prompt).unwrap(), "{}", case.id);
                let few = if key.task == "cwe" { 9 } else { 4 };
                assert!(
                    case.tokens <= length && case.tokens + few >= length,
                    "{} has {} tokens",
                    case.id,
                    case.tokens
                );
                assert_eq!(case.score(&case.expected.join(" ")), 1.0);
                assert_eq!(case.score(""), 0.0);
                let question = case.prompt.rsplit('\n').next().unwrap();
                assert!(case.expected.iter().all(|e| !question.contains(e)), "{} tells the answer", case.id);
                let found = case.expected.iter().filter(|e| case.prompt.contains(*e)).count();
                assert_eq!(found, case.expected.len(), "{} cannot be answered", case.id);
            }
        }
    }

    #[test]
    fn questions_are_the_same_each_time_and_all_different() {
        let suite = suite("all", &[1000]);
        let mut seen = std::collections::BTreeSet::new();
        for key in suite.keys() {
            let case = suite.make(&key, &pieces).unwrap();
            assert_eq!(suite.make(&key, &pieces).unwrap(), case);
            assert!(seen.insert(case.expected.clone()), "{}", case.id);
        }
        assert_eq!(seen.len(), 33);
    }

    #[test]
    fn short_lengths_and_wrong_settings_are_refused() {
        let short = suite("all", &[30]);
        for key in short.keys() {
            let error = short.make(&key, &pieces).unwrap_err().to_string();
            assert!(error.contains("at least") && error.contains(&key.task), "{error}");
        }
        for empty in [Retrieval { tasks: vec![], ..short.clone() }, Retrieval { samples: 0, ..short.clone() }]
        {
            assert!(empty.validate().is_err());
        }
        assert!(short.validate().is_ok());
    }

    #[test]
    fn lists_read_well() {
        let list = |n| enumerate(&["a", "b", "c"].map(String::from)[..n]);
        assert_eq!([list(0), list(1), list(2), list(3)], ["", "a", "a and b", "a, b and c"]);
        assert_eq!(padding("One two three.", 2), " One two");
    }
}
