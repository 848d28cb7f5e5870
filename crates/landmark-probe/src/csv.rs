//! Results as comma-separated values (RFC 4180), for spreadsheets: a row for each task, length and depth.

use crate::summary::{Outcome, Summary};

/// Names of the columns.
const HEADER: [&str; 8] =
    ["task", "length", "depth", "tests", "accuracy", "tokens", "seconds", "peak_memory_bytes"];

/// The table. Tasks to which depths mean nothing have rows without one.
pub fn to_csv(summary: &Summary) -> String {
    let mut text = row(&HEADER.map(str::to_owned));
    for of in &summary.tasks {
        let mut depths =
            summary.depths.iter().filter(|d| d.task == of.task && d.length == of.length).peekable();
        if depths.peek().is_none() {
            text += &line(&of.task, of.length, None, &of.outcome);
        }
        for at in depths {
            text += &line(&at.task, at.length, Some(at.depth), &at.outcome);
        }
    }
    text
}

fn line(task: &str, length: usize, depth: Option<f64>, outcome: &Outcome) -> String {
    row(&[
        task.to_owned(),
        length.to_string(),
        depth.map_or_else(String::new, |depth| depth.to_string()),
        outcome.tests.to_string(),
        outcome.accuracy.to_string(),
        outcome.tokens.to_string(),
        outcome.seconds.to_string(),
        outcome.peak_memory_bytes.map_or_else(String::new, |bytes| bytes.to_string()),
    ])
}

/// A row; fields with commas, quotes or line breaks are quoted.
fn row(fields: &[String]) -> String {
    let quoted = |field: &String| match field.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.clone(),
    };
    fields.iter().map(quoted).collect::<Vec<_>>().join(",") + "\r\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passkey::Unit;
    use crate::summary::tests::record;

    #[test]
    fn a_table_by_hand() {
        let records = [
            record("a", 100, Some(0.25), Some(0.3), 1.0),
            record("a", 100, Some(0.25), Some(0.3), 0.0),
            record("b \"x\", y\n", 100, None, None, 0.5),
        ];
        let summary = Summary::new("retrieval", Unit::Tokens, &records);
        assert_eq!(
            to_csv(&summary),
            "task,length,depth,tests,accuracy,tokens,seconds,peak_memory_bytes\r\n\
             a,100,0.25,2,0.5,99,4,100000\r\n\
             \"b \"\"x\"\", y\n\",100,,1,0.5,99,2,100000\r\n"
        );
    }
}
