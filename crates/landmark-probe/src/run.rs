//! Asks all questions of a suite, one after another, and skips those that were answered before.
//!
//! Questions are made when they are asked: a suite of long prompts is more text than fits into memory. What was answered
//! is handed out at once, so that a run that is killed loses one answer and not a night.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::case::{Case, CaseKey, Suite};
use crate::{Error, Failure, Result};

/// A model, as far as a probe is concerned.
pub trait Answerer {
    /// Tokens of a text, as the model will see it.
    ///
    /// # Errors
    /// If the text cannot be tokenised.
    fn count(&self, text: &str) -> std::result::Result<usize, Failure>;

    /// Continues a prompt, with nothing remembered of earlier ones. The answer is text without the prompt.
    ///
    /// # Errors
    /// Whatever keeps the model from answering; it ends the run.
    fn answer(&mut self, prompt: &str, max_new_tokens: usize) -> std::result::Result<Answer, Failure>;
}

/// What a model answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The text after the prompt.
    pub text: String,
    /// Tokens of the prompt, as read.
    pub prompt_tokens: usize,
    /// Time that reading and answering took.
    pub seconds: f64,
    /// The most memory that the process has held so far, where that is known.
    pub peak_memory_bytes: Option<u64>,
}

/// A question and its answer, without the prompt: what is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The question's name.
    pub id: String,
    /// Which question it is.
    #[serde(flatten)]
    pub key: CaseKey,
    /// Where what was asked for stood; see [`Case::placed`].
    pub placed: Option<f64>,
    /// Tokens of the prompt.
    pub tokens: usize,
    /// What a right answer holds.
    pub expected: Vec<String>,
    /// What was answered.
    pub answer: String,
    /// From 0 to 1.
    pub score: f64,
    /// Time that it took.
    pub seconds: f64,
    /// The most memory that the process had held by then.
    pub peak_memory_bytes: Option<u64>,
}

impl Record {
    /// A question with its answer.
    pub fn new(case: &Case, answer: &Answer) -> Record {
        Record {
            id: case.id.clone(),
            key: case.key.clone(),
            placed: case.placed,
            tokens: if answer.prompt_tokens > 0 { answer.prompt_tokens } else { case.tokens },
            expected: case.expected.clone(),
            answer: answer.text.clone(),
            score: case.score(&answer.text),
            seconds: answer.seconds,
            peak_memory_bytes: answer.peak_memory_bytes,
        }
    }
}

/// How far a run is. Work is counted in the lengths of prompts, to which time is roughly proportional.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Questions answered.
    pub answered: usize,
    /// Questions in all.
    pub questions: usize,
    /// Lengths of the prompts of the questions answered.
    pub done: u64,
    /// ... of all questions.
    pub total: u64,
    /// Mean score so far.
    pub accuracy: f64,
}

/// Asks every question of `suite` that `known` has no answer to. `each` gets every new record as soon as there is one, and
/// how far the run is; it is called once more, without a record, before the first question. The result is all records
/// of the suite, in its order.
///
/// # Errors
/// If a question cannot be made or is not answered, or what `each` returns.
pub fn run(
    suite: &dyn Suite,
    answerer: &mut dyn Answerer,
    known: Vec<Record>,
    each: &mut dyn FnMut(Option<&Record>, Progress) -> Result<()>,
) -> Result<Vec<Record>> {
    let keys = suite.keys();
    let mut known: BTreeMap<String, Record> =
        known.into_iter().rev().map(|record| (record.id.clone(), record)).collect();
    let total = keys.iter().map(|key| key.length as u64).sum();
    let mut progress = Progress { answered: 0, questions: keys.len(), done: 0, total, accuracy: 0.0 };
    let mut scores = 0.0;
    let mut count_in = |progress: &mut Progress, record: &Record| {
        scores += record.score;
        progress.answered += 1;
        progress.done += record.key.length as u64;
        progress.accuracy = scores / progress.answered as f64;
    };
    let mut records: Vec<Option<Record>> = keys.iter().map(|key| known.remove(&key.to_string())).collect();
    records.iter().flatten().for_each(|record| count_in(&mut progress, record));
    each(None, progress)?;
    for (key, slot) in keys.iter().zip(&mut records) {
        if slot.is_some() {
            continue;
        }
        let case = suite.make(key, &|text| answerer.count(text))?;
        let answer = answerer
            .answer(&case.prompt, case.max_new_tokens)
            .map_err(|source| Error::Unanswered { id: case.id.clone(), source })?;
        let record = Record::new(&case, &answer);
        count_in(&mut progress, &record);
        each(Some(&record), progress)?;
        *slot = Some(record);
    }
    Ok(records.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passkey::{Passkey, Unit};
    use crate::testing::{Reader, Skill};

    fn suite() -> Passkey {
        Passkey {
            lengths: vec![300, 2000],
            unit: Unit::Tokens,
            depths: vec![0.0, 0.5, 1.0],
            tests: 4,
            ..Passkey::released(7)
        }
    }

    fn ask(skill: Skill, known: Vec<Record>) -> (Vec<Record>, usize) {
        let mut reader = Reader::new(skill);
        let records = run(&suite(), &mut reader, known, &mut |_, _| Ok(())).unwrap();
        (records, reader.asked)
    }

    #[test]
    fn known_skills_get_known_scores() {
        let scores = |skill| ask(skill, vec![]).0.iter().map(|record| record.score).collect::<Vec<f64>>();
        assert_eq!(scores(Skill::Right), [1.0; 24]);
        assert_eq!(scores(Skill::Wrong), [0.0; 24]);
        // The last 2000 characters are all of a prompt of 300 tokens, and the last third or so of one of 2000.
        let mut expected = vec![1.0; 12];
        expected.extend([0.0; 8]);
        expected.extend([1.0; 4]);
        assert_eq!(scores(Skill::Last(2000)), expected);
    }

    #[test]
    fn what_is_known_is_not_asked_again() {
        let (all, asked) = ask(Skill::Right, vec![]);
        assert_eq!((all.len(), asked), (24, 24));
        let mut some: Vec<Record> = all.iter().step_by(2).cloned().collect();
        some.push(Record { id: "passkey/9/random/0".into(), ..all[0].clone() });
        let (resumed, asked) = ask(Skill::Right, some);
        assert_eq!((resumed == all, asked), (true, 12));
        assert_eq!(ask(Skill::Wrong, all.clone()), (all, 0));
    }

    #[test]
    fn progress_counts_lengths_and_what_was_known() {
        let (all, _) = ask(Skill::Right, vec![]);
        let mut seen = Vec::new();
        let mut reader = Reader::new(Skill::Wrong);
        run(&suite(), &mut reader, all[..12].to_vec(), &mut |record, progress| {
            assert_eq!(record.is_none(), seen.is_empty());
            seen.push((progress.answered, progress.done, progress.accuracy));
            assert_eq!((progress.questions, progress.total), (24, 12 * 2300));
            Ok(())
        })
        .unwrap();
        assert_eq!((seen[0], seen.len()), ((12, 3600, 1.0), 13));
        assert_eq!(seen[12], (24, 27_600, 0.5));
    }

    #[test]
    fn failures_name_the_question() {
        struct Broken;
        impl Answerer for Broken {
            fn count(&self, text: &str) -> std::result::Result<usize, Failure> {
                Ok(text.len())
            }
            fn answer(&mut self, _: &str, _: usize) -> std::result::Result<Answer, Failure> {
                Err("no memory".into())
            }
        }
        let suite = Passkey { lengths: vec![200], ..self::suite() };
        let error = run(&suite, &mut Broken, vec![], &mut |_, _| Ok(())).unwrap_err();
        assert!(error.to_string().contains("at least"), "200 characters are too few: {error}");
        let suite = Passkey { lengths: vec![2000], ..self::suite() };
        let error = run(&suite, &mut Broken, vec![], &mut |_, _| Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "passkey/2000/0/0 was not answered: no memory");
    }
}
