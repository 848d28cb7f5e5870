//! What came of a run: accuracy by length, by task, and by length and depth.

use serde::Serialize;

use crate::passkey::Unit;
use crate::run::Record;

/// Rows of a picture where depths were random.
const DECILES: usize = 10;

/// What some questions gave together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Tokens of a prompt, on average.
    pub tokens: u64,
    /// Mean score, from 0 to 1.
    pub accuracy: f64,
    /// Time that all of them took together.
    pub seconds: f64,
    /// How many there were.
    pub tests: usize,
    /// The most memory that the process had held by the end of the last, where that is known.
    pub peak_memory_bytes: Option<u64>,
}

impl Outcome {
    fn of<'a>(records: impl Iterator<Item = &'a Record> + Clone) -> Outcome {
        let tests = records.clone().count();
        let mean = |sum: f64| if tests == 0 { 0.0 } else { sum / tests as f64 };
        Outcome {
            tokens: mean(records.clone().map(|record| record.tokens as f64).sum()).round() as u64,
            accuracy: mean(records.clone().map(|record| record.score).sum()),
            seconds: records.clone().map(|record| record.seconds).sum(),
            tests,
            peak_memory_bytes: records.filter_map(|record| record.peak_memory_bytes).max(),
        }
    }
}

/// All questions of one length.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OfLength {
    /// The length asked for.
    pub length: usize,
    /// What came of them.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// All questions of one task and length.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OfTask {
    /// The task.
    pub task: String,
    /// The length asked for.
    pub length: usize,
    /// What came of them.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// All questions of one task, length and depth.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OfDepth {
    /// The task.
    pub task: String,
    /// The length asked for.
    pub length: usize,
    /// The depth asked for, or the middle of a tenth of the text where depths were random.
    pub depth: f64,
    /// What came of them.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// A run in numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// `passkey` or `retrieval`.
    pub probe: String,
    /// What lengths count.
    pub unit: Unit,
    /// All questions together.
    #[serde(flatten)]
    pub overall: Outcome,
    /// By length, in the order of the run.
    pub results: Vec<OfLength>,
    /// By task and length.
    pub tasks: Vec<OfTask>,
    /// By task, length and depth, for the tasks to which depths mean something.
    pub depths: Vec<OfDepth>,
}

impl Summary {
    /// Sums up a run.
    pub fn new(probe: &str, unit: Unit, records: &[Record]) -> Summary {
        let lengths = distinct(records.iter().map(|record| record.key.length));
        let tasks = distinct(records.iter().map(|record| record.key.task.as_str()));
        let mut summary = Summary {
            probe: probe.to_owned(),
            unit,
            overall: Outcome::of(records.iter()),
            results: Vec::new(),
            tasks: Vec::new(),
            depths: Vec::new(),
        };
        for &length in &lengths {
            let outcome = Outcome::of(records.iter().filter(|record| record.key.length == length));
            summary.results.push(OfLength { length, outcome });
        }
        for &task in &tasks {
            for &length in &lengths {
                let of: Vec<&Record> =
                    records.iter().filter(|r| r.key.task == task && r.key.length == length).collect();
                if of.is_empty() {
                    continue;
                }
                let outcome = Outcome::of(of.iter().copied());
                summary.tasks.push(OfTask { task: task.to_owned(), length, outcome });
                let mut depths = distinct(of.iter().filter_map(|record| depth(record)));
                depths.sort_by(f64::total_cmp);
                for at in depths {
                    let outcome = Outcome::of(of.iter().copied().filter(|record| depth(record) == Some(at)));
                    summary.depths.push(OfDepth { task: task.to_owned(), length, depth: at, outcome });
                }
            }
        }
        summary
    }

    /// As one line of JSON would have it, over several lines.
    pub fn to_json(&self) -> String {
        // A record of numbers and names; it has a form in JSON.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }
}

/// The row of a record: the depth asked for, or the middle of the tenth where the thing stood.
fn depth(record: &Record) -> Option<f64> {
    let tenth = |placed: f64| {
        let tenth = ((placed * DECILES as f64) as usize).min(DECILES - 1);
        (2 * tenth + 1) as f64 / (2 * DECILES) as f64
    };
    record.key.depth.or(record.placed.map(tenth))
}

fn distinct<T: PartialEq>(items: impl Iterator<Item = T>) -> Vec<T> {
    items.fold(Vec::new(), |mut all, item| {
        if !all.contains(&item) {
            all.push(item);
        }
        all
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::case::CaseKey;

    /// A record of a task at a length and depth, with a score.
    pub(crate) fn record(
        task: &str,
        length: usize,
        depth: Option<f64>,
        placed: Option<f64>,
        score: f64,
    ) -> Record {
        let key = CaseKey { task: task.to_owned(), length, depth, index: 0 };
        Record {
            id: key.to_string(),
            key,
            placed,
            tokens: length - 1,
            expected: vec!["1".to_owned()],
            answer: "1".to_owned(),
            score,
            seconds: 2.0,
            peak_memory_bytes: Some(length as u64 * 1000),
        }
    }

    #[test]
    fn sums_by_hand() {
        let records = [
            record("a", 100, Some(0.0), Some(0.0), 1.0),
            record("a", 100, Some(0.0), Some(0.0), 0.0),
            record("a", 100, Some(0.5), Some(0.5), 1.0),
            record("b", 100, None, None, 0.25),
            record("b", 200, None, None, 0.75),
        ];
        let summary = Summary::new("retrieval", Unit::Tokens, &records);
        assert_eq!(
            (summary.overall.tests, summary.overall.accuracy, summary.overall.seconds),
            (5, 0.6, 10.0)
        );
        let results: Vec<_> =
            summary.results.iter().map(|r| (r.length, r.outcome.accuracy, r.outcome.tests)).collect();
        assert_eq!(results, [(100, 0.5625, 4), (200, 0.75, 1)]);
        assert_eq!(summary.results[1].outcome.peak_memory_bytes, Some(200_000));
        assert_eq!(summary.results[1].outcome.tokens, 199);
        let tasks: Vec<_> =
            summary.tasks.iter().map(|r| (r.task.as_str(), r.length, r.outcome.tests)).collect();
        assert_eq!(tasks, [("a", 100, 3), ("b", 100, 1), ("b", 200, 1)]);
        let depths: Vec<_> = summary.depths.iter().map(|r| (r.length, r.depth, r.outcome.accuracy)).collect();
        assert_eq!(depths, [(100, 0.0, 0.5), (100, 0.5, 1.0)]);
    }

    #[test]
    fn random_depths_are_put_into_tenths() {
        let placed = [0.0, 0.09, 0.1, 0.55, 1.0].map(|placed| record("a", 10, None, Some(placed), 1.0));
        let summary = Summary::new("passkey", Unit::Tokens, &placed);
        let rows: Vec<_> = summary.depths.iter().map(|row| (row.depth, row.outcome.tests)).collect();
        assert_eq!(rows, [(0.05, 2), (0.15, 1), (0.55, 1), (0.95, 1)]);
    }

    #[test]
    fn the_json_is_one_object_with_results() {
        let summary = Summary::new("passkey", Unit::Tokens, &[record("passkey", 10, None, Some(0.3), 1.0)]);
        let json: serde_json::Value = serde_json::from_str(&summary.to_json()).unwrap();
        let expected = serde_json::json!([{"length": 10, "tokens": 9, "accuracy": 1.0, "seconds": 2.0, "tests": 1,
            "peak_memory_bytes": 10_000}]);
        assert_eq!(json["results"], expected);
        assert_eq!((json["unit"].as_str(), json["accuracy"].as_f64()), (Some("tokens"), Some(1.0)));
        let empty = Summary::new("passkey", Unit::Tokens, &[]);
        assert_eq!((empty.overall.accuracy, empty.results.len()), (0.0, 0));
    }
}
