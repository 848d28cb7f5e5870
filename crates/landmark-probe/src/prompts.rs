//! Prompts for other programs, and their answers.
//!
//! A file of prompts is JSON lines: a [`Case`] each, with `id`, `prompt` and `max_new_tokens` for whoever answers and the
//! rest for the score. A file of answers is JSON lines, too: `{"id": ..., "answer": ...}`, in any order, the answer being the text
//! after the prompt. So any program that generates text is scored by the code that scores ours.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use landmark_formats::atomic::FileWriter;
use serde::Deserialize;

use crate::case::{Case, CaseKey, Count, Suite};
use crate::passkey::Unit;
use crate::run::{Answer, Record};
use crate::{Error, Result};

/// Longest line of a file of prompts or answers, in bytes: a prompt of some fifty million tokens.
const LONGEST_LINE: u64 = 256 << 20;

/// A line of a file.
pub(crate) struct Line {
    /// From 1.
    pub(crate) number: usize,
    /// Bytes of the file before it.
    pub(crate) offset: u64,
    pub(crate) text: String,
}

/// The lines of a file, none of them longer than `longest`; the last must end in a line break, too, or it counts
/// as torn.
pub(crate) fn lines(path: &Path, longest: u64) -> Result<impl Iterator<Item = Result<Line>>> {
    let open = |error| landmark_formats::Error::io(path, "open", error);
    let mut reader = BufReader::new(File::open(path).map_err(open)?);
    let (mut number, mut offset, path) = (0, 0, path.to_owned());
    Ok(std::iter::from_fn(move || {
        let refuse = |number, reason: &str| {
            let reason = format!("line {number} {reason}");
            Some(Err(Error::File { file: path.display().to_string(), reason }))
        };
        let mut bytes = Vec::new();
        number += 1;
        match reader.by_ref().take(longest).read_until(b'\n', &mut bytes) {
            Err(error) => return Some(Err(landmark_formats::Error::io(&path, "read", error).into())),
            Ok(0) => return None,
            Ok(_) => {}
        }
        let begins = offset;
        offset += bytes.len() as u64;
        if bytes.pop() != Some(b'\n') {
            return refuse(number, "is cut off or too long");
        }
        match String::from_utf8(bytes) {
            Ok(text) => Some(Ok(Line { number, offset: begins, text })),
            Err(_) => refuse(number, "is not UTF-8"),
        }
    }))
}

/// Writes all prompts of a suite. `each` is told after each how many there are.
///
/// # Errors
/// If a prompt cannot be made, or the file not written.
pub fn write_prompts(
    path: &Path,
    suite: &dyn Suite,
    count: &Count<'_>,
    each: &mut dyn FnMut(usize),
) -> Result<usize> {
    let mut writer = FileWriter::create(path)?;
    let keys = suite.keys();
    for (number, key) in keys.iter().enumerate() {
        let case = suite.make(key, count)?;
        let mut line = serde_json::to_vec(&case).map_err(std::io::Error::other);
        if let Ok(line) = &mut line {
            line.push(b'\n');
        }
        let written = line.and_then(|line| writer.write_all(&line));
        written.map_err(|error| landmark_formats::Error::io(path, "write", error))?;
        each(number + 1);
    }
    writer.finish()?.commit()?;
    Ok(keys.len())
}

/// A file of prompts as a suite. Prompts stay in the file until they are asked for.
#[derive(Debug)]
pub struct PromptFile {
    path: PathBuf,
    /// Questions, and where each begins.
    cases: BTreeMap<String, u64>,
    keys: Vec<CaseKey>,
    unit: Unit,
}

impl PromptFile {
    /// Reads through a file of prompts once.
    ///
    /// # Errors
    /// If it cannot be read, a line is no question, or a question is there twice.
    pub fn open(path: &Path) -> Result<PromptFile> {
        let mut file = PromptFile {
            path: path.to_owned(),
            cases: BTreeMap::new(),
            keys: Vec::new(),
            unit: Unit::Tokens,
        };
        for line in lines(path, LONGEST_LINE)? {
            let line = line?;
            let case = file.parse(&line)?;
            if !file.keys.is_empty() && case.unit != file.unit {
                return Err(file.refuse(format!(
                    "line {}: the lengths of some count tokens, of others characters",
                    line.number
                )));
            }
            file.unit = case.unit;
            if file.cases.insert(case.id, line.offset).is_some() {
                return Err(file.refuse(format!("line {}: {} is there twice", line.number, case.key)));
            }
            file.keys.push(case.key);
        }
        if file.keys.is_empty() {
            return Err(file.refuse("holds no prompts".into()));
        }
        Ok(file)
    }

    fn refuse(&self, reason: String) -> Error {
        Error::File { file: self.path.display().to_string(), reason }
    }

    fn parse(&self, line: &Line) -> Result<Case> {
        let case: Case = serde_json::from_str(&line.text).map_err(|error| {
            self.refuse(format!(
                "line {} is no prompt ({error}); --dump-prompts writes such files",
                line.number
            ))
        })?;
        let depth = case.key.depth.is_none_or(|depth| (0.0..=1.0).contains(&depth));
        let placed = case.placed.is_none_or(|placed| (0.0..=1.0).contains(&placed));
        if case.id != case.key.to_string() || !depth || !placed {
            let reason = format!("line {}: id, task, length, depth and index do not agree", line.number);
            return Err(self.refuse(reason));
        }
        Ok(case)
    }

    /// What lengths count.
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// The scores of another program's answers.
    ///
    /// # Errors
    /// If `answers` cannot be read, or lacks one.
    pub fn score(&self, answers: &Path) -> Result<Vec<Record>> {
        let answers_by_id = read_answers(answers)?;
        let missing: Vec<&String> = self.cases.keys().filter(|id| !answers_by_id.contains_key(*id)).collect();
        if let Some(first) = missing.first() {
            let reason = format!(
                "has no answer to {} of {} prompts, the first being {first}",
                missing.len(),
                self.cases.len()
            );
            return Err(Error::File { file: answers.display().to_string(), reason });
        }
        let score = |key: &CaseKey| {
            let case = self.make(key, &|_| Ok(0))?;
            Ok(Record::new(&case, &answers_by_id[&case.id]))
        };
        self.keys.iter().map(score).collect()
    }
}

impl Suite for PromptFile {
    fn keys(&self) -> Vec<CaseKey> {
        self.keys.clone()
    }

    fn make(&self, key: &CaseKey, _: &Count<'_>) -> Result<Case> {
        let id = key.to_string();
        let &offset = self.cases.get(&id).ok_or_else(|| self.refuse(format!("holds no prompt {id}")))?;
        let wrong = |error| landmark_formats::Error::io(&self.path, "read", error);
        let mut file = File::open(&self.path).map_err(wrong)?;
        file.seek(SeekFrom::Start(offset)).map_err(wrong)?;
        let mut text = String::new();
        BufReader::new(file.take(LONGEST_LINE)).read_line(&mut text).map_err(wrong)?;
        let case = self.parse(&Line { number: 0, offset, text })?;
        if case.id != id {
            return Err(self.refuse("was changed while it was read".into()));
        }
        Ok(case)
    }
}

/// A line of a file of answers.
#[derive(Deserialize)]
struct Given {
    id: String,
    answer: String,
    #[serde(default)]
    seconds: f64,
    #[serde(default)]
    prompt_tokens: usize,
    #[serde(default)]
    peak_memory_bytes: Option<u64>,
}

fn read_answers(path: &Path) -> Result<BTreeMap<String, Answer>> {
    let refuse = |reason: String| Error::File { file: path.display().to_string(), reason };
    let mut answers = BTreeMap::new();
    for line in lines(path, LONGEST_LINE)? {
        let line = line?;
        let given: Given = serde_json::from_str(&line.text).map_err(|error| {
            refuse(format!(
                "line {} is no answer ({error}); a line is {{\"id\": ..., \"answer\": ...}}",
                line.number
            ))
        })?;
        let Given { id, answer, seconds, prompt_tokens, peak_memory_bytes } = given;
        let answer = Answer { text: answer, prompt_tokens, seconds, peak_memory_bytes };
        if answers.insert(id, answer).is_some() {
            return Err(refuse(format!("line {} answers a prompt for the second time", line.number)));
        }
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passkey::{Passkey, Unit};
    use crate::run::run;
    use crate::testing::{Reader, Skill, pieces};
    use std::fs;

    fn dumped(dir: &Path) -> (Passkey, PathBuf) {
        let suite = Passkey {
            lengths: vec![200, 400],
            unit: Unit::Tokens,
            depths: vec![0.25],
            tests: 2,
            ..Passkey::released(7)
        };
        let path = dir.join("prompts.jsonl");
        let mut told = 0;
        assert_eq!(write_prompts(&path, &suite, &pieces, &mut |n| told = n).unwrap(), 4);
        assert_eq!(told, 4);
        (suite, path)
    }

    #[test]
    fn prompts_from_a_file_are_the_prompts() {
        let dir = tempfile::tempdir().unwrap();
        let (suite, path) = dumped(dir.path());
        let file = PromptFile::open(&path).unwrap();
        assert_eq!((file.keys(), file.unit()), (suite.keys(), Unit::Tokens));
        let ask = |suite: &dyn Suite| {
            run(suite, &mut Reader::new(Skill::Last(900)), vec![], &mut |_, _| Ok(())).unwrap()
        };
        assert_eq!(ask(&file), ask(&suite));
    }

    #[test]
    fn answers_of_other_programs_are_scored() {
        let dir = tempfile::tempdir().unwrap();
        let (suite, path) = dumped(dir.path());
        let file = PromptFile::open(&path).unwrap();
        let answers = dir.path().join("answers.jsonl");
        let mut lines: Vec<String> = Vec::new();
        for (number, key) in suite.keys().iter().enumerate().rev() {
            let right = suite.make(key, &pieces).unwrap().expected[0].clone();
            let answer = if number == 1 { "no idea".to_owned() } else { format!("it is {right}, I think") };
            lines.push(serde_json::json!({"id": key.to_string(), "answer": answer}).to_string());
        }
        fs::write(&answers, lines.join("\n") + "\n").unwrap();
        let records = file.score(&answers).unwrap();
        assert_eq!(records.iter().map(|record| record.score).collect::<Vec<_>>(), [1.0, 0.0, 1.0, 1.0]);
        assert!(records.iter().all(|record| record.tokens > 190));

        for (text, said) in [
            (lines[1..].join("\n") + "\n", "1 of 4 prompts, the first being passkey/400/0.25/1"),
            (lines.join("\n") + "\n{\"id\":1}\n", "line 5 is no answer"),
            (lines.join("\n") + "\n" + &lines[0] + "\n", "line 5 answers a prompt for the second time"),
            (lines.join("\n"), "line 4 is cut off"),
        ] {
            fs::write(&answers, text).unwrap();
            let error = file.score(&answers).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains("answers.jsonl"), "{error}");
        }
    }

    #[test]
    fn files_that_are_none_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (_, path) = dumped(dir.path());
        let good = fs::read_to_string(&path).unwrap();
        let first = good.lines().next().unwrap().to_owned() + "\n";
        for (text, said) in [
            (String::new(), "holds no prompts"),
            (first.repeat(2), "is there twice"),
            (good[..good.len() - 10].to_owned(), "line 4 is cut off"),
            ("[]\n".to_owned(), "line 1 is no prompt"),
            (first.replace("\"depth\":0.25", "\"depth\":7"), "do not agree"),
            (first.replace("\"index\":0", "\"index\":1"), "do not agree"),
            (good.replacen("\"tokens\",", "\"characters\",", 1), "line 2: the lengths"),
        ] {
            fs::write(&path, text).unwrap();
            let error = PromptFile::open(&path).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains("prompts.jsonl"), "{error}");
        }
        assert!(PromptFile::open(&dir.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
