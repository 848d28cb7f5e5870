//! Answers kept as they come: `answers.jsonl`, one JSON object a line.
//!
//! The first line says of which run they are (model, settings, seed), each further one is a [`Record`]. A run that
//! was killed leaves at most a torn last line; the next one with the same first line cuts that off and goes on behind it. Lengths, depths
//! and numbers of questions are not part of the first line, since questions have names: a run can be extended.

use std::path::Path;

use landmark_formats::jsonl::JsonlWriter;
use serde_json::{Map, Value, json};

use crate::prompts::lines;
use crate::run::Record;
use crate::{Error, Result};

/// No answer comes near this; a longer line is damage.
const LONGEST_LINE: u64 = 16 << 20;

/// An open file of answers.
#[derive(Debug)]
pub struct Journal(JsonlWriter);

impl Journal {
    /// Opens the file of a run, and gives the answers that it holds already. `run` is what has to agree for these
    /// to count.
    ///
    /// # Errors
    /// If the file cannot be read or written, or belongs to another run.
    pub fn open(path: &Path, run: &Map<String, Value>) -> Result<(Journal, Vec<Record>)> {
        let refuse = |reason: String| Error::File { file: path.display().to_string(), reason };
        let mut records = Vec::new();
        let mut is_new = true;
        if path.exists() {
            for line in lines(path, LONGEST_LINE)? {
                // A torn or damaged line: it and all behind it is cut off, and asked again.
                let Ok(line) = line else { break };
                let Ok(Value::Object(found)) = serde_json::from_str(&line.text) else { break };
                if is_new {
                    let Some(Value::Object(stored)) = found.get("run") else {
                        return Err(refuse(
                            "holds no answers of a run; give another folder for the output".into(),
                        ));
                    };
                    if let Some(difference) = difference(stored, run) {
                        return Err(refuse(format!(
                            "holds answers of a run with another {difference}; \
                             give another folder for the output, or delete it"
                        )));
                    }
                    is_new = false;
                } else {
                    let record = serde_json::from_value(Value::Object(found));
                    records.push(record.map_err(|error| {
                        refuse(format!(
                            "line {} is no answer ({error}); delete the file to begin anew",
                            line.number
                        ))
                    })?);
                }
            }
        }
        let mut writer = JsonlWriter::resume(path, u64::MAX)?;
        if is_new {
            writer.write(&json!({ "run": run }))?;
            writer.sync()?;
        }
        Ok((Journal(writer), records))
    }

    /// Adds an answer, which then survives anything but the loss of the disk.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add(&mut self, record: &Record) -> Result<()> {
        self.0.write(record)?;
        Ok(self.0.sync()?)
    }
}

/// The first setting in which two runs differ.
fn difference<'a>(stored: &'a Map<String, Value>, run: &'a Map<String, Value>) -> Option<&'a str> {
    let mut names = run.keys().chain(stored.keys());
    names.find(|name| stored.get(*name) != run.get(*name)).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passkey::{Passkey, Unit};
    use crate::run::run;
    use crate::testing::{Reader, Skill};
    use std::fs;

    fn suite() -> Passkey {
        Passkey { lengths: vec![300], unit: Unit::Tokens, tests: 6, ..Passkey::released(7) }
    }

    fn settings(seed: u64) -> Map<String, Value> {
        let Value::Object(map) = json!({"model": "m", "seed": seed}) else { panic!() };
        map
    }

    /// Runs with a journal; gives the records and how many prompts were answered.
    fn go(path: &Path) -> (Vec<Record>, usize) {
        let (mut journal, known) = Journal::open(path, &settings(1)).unwrap();
        let mut reader = Reader::new(Skill::Right);
        let records = run(&suite(), &mut reader, known, &mut |record, _| {
            record.map_or(Ok(()), |record| journal.add(record))
        });
        (records.unwrap(), reader.asked)
    }

    #[test]
    fn wherever_a_run_is_killed_the_next_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("answers.jsonl");
        let (all, asked) = go(&path);
        assert_eq!((all.len(), asked), (6, 6));
        assert_eq!(go(&path), (all.clone(), 0));
        let whole = fs::read_to_string(&path).unwrap();
        let ends: Vec<usize> = whole.match_indices('\n').map(|(at, _)| at + 1).collect();
        for length in (0..whole.len()).step_by(97).chain(ends.clone()) {
            fs::write(&path, &whole[..length]).unwrap();
            let lines = ends.iter().filter(|&&end| end <= length).count();
            let (resumed, asked) = go(&path);
            assert_eq!((&resumed, asked), (&all, 6 - lines.saturating_sub(1)), "cut at {length}");
            assert_eq!(fs::read_to_string(&path).unwrap(), whole, "cut at {length}");
        }
    }

    #[test]
    fn answers_of_another_run_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("answers.jsonl");
        go(&path);
        let before = fs::read(&path).unwrap();
        let error = Journal::open(&path, &settings(2)).unwrap_err().to_string();
        assert!(error.contains("answers.jsonl") && error.contains("another seed"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), before, "untouched");
        fs::write(&path, "{\"step\":1}\n").unwrap();
        assert!(Journal::open(&path, &settings(1)).is_err());
        fs::write(&path, "{\"run\":{\"model\":\"m\",\"seed\":1}}\n{\"id\":3}\n").unwrap();
        let error = Journal::open(&path, &settings(1)).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }
}
