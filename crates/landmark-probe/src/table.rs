//! Results for people: a table by length, a table by task, a grid of length and depth for each task.
//!
//! On a terminal that shows colours, the cells of a grid are coloured as in the picture; elsewhere they are numbers alone.

use std::fmt::Write;

use crate::passkey::Unit;
use crate::summary::{Outcome, Summary};

/// Cells of the bar that shows accuracy.
const BAR: usize = 10;

/// All tables.
pub fn to_text(summary: &Summary, colours: bool) -> String {
    let mut text = by_length(summary);
    let tasks = tasks(summary);
    if tasks.len() > 1 {
        text.push('\n');
        let rows = tasks.iter().map(|task| {
            let value = |length| {
                summary.tasks.iter().find(|of| of.task == *task && of.length == length).map(|of| of.outcome)
            };
            (printable(task), summary.results.iter().map(|of| value(of.length)).collect())
        });
        text += &grid("task", summary, rows.collect(), colours);
    }
    for task in tasks {
        let rows = of_depths(summary, task);
        if rows.len() > 1 {
            let _ = write!(text, "\n{}, by depth:\n", printable(task));
            text += &grid("depth", summary, rows, colours);
        }
    }
    text
}

fn by_length(summary: &Summary) -> String {
    let unit = match summary.unit {
        Unit::Tokens => "length",
        Unit::Characters => "characters",
    };
    let mut text = format!(
        "{unit:>10} {:>10} {:>9} {:BAR$} {:>6} {:>10} {:>9}\n",
        "tokens", "accuracy", "", "tests", "seconds", "memory"
    );
    for of in &summary.results {
        let Outcome { tokens, accuracy, seconds, tests, peak_memory_bytes } = of.outcome;
        let memory = peak_memory_bytes.map_or_else(|| "-".to_owned(), bytes);
        let _ = writeln!(
            text,
            "{:>10} {tokens:>10} {:>7.1} % {} {tests:>6} {seconds:>10.1} {memory:>9}",
            of.length,
            accuracy * 100.0,
            bar(accuracy)
        );
    }
    text
}

/// Accuracy as a bar, to an eighth of a cell.
fn bar(accuracy: f64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (accuracy.clamp(0.0, 1.0) * (8 * BAR) as f64).round() as usize;
    let text = "█".repeat(eighths / 8) + EIGHTHS[eighths % 8];
    let width = eighths.div_ceil(8);
    text + &" ".repeat(BAR - width)
}

/// The tasks, in the order of the run.
pub(crate) fn tasks(summary: &Summary) -> Vec<&str> {
    let mut tasks: Vec<&str> = summary.tasks.iter().map(|of| of.task.as_str()).collect();
    tasks.dedup();
    tasks
}

/// A row's name, and what there is for each length of the run.
pub(crate) type Row = (String, Vec<Option<Outcome>>);

/// A row for each depth of a task.
pub(crate) fn of_depths(summary: &Summary, task: &str) -> Vec<Row> {
    let mut depths: Vec<f64> =
        summary.depths.iter().filter(|of| of.task == task).map(|of| of.depth).collect();
    depths.sort_by(f64::total_cmp);
    depths.dedup();
    let row = |depth: f64| {
        let value = |length| {
            let mut all = summary.depths.iter();
            all.find(|of| of.task == task && of.length == length && of.depth == depth).map(|of| of.outcome)
        };
        (percent(depth), summary.results.iter().map(|of| value(of.length)).collect())
    };
    depths.into_iter().map(row).collect()
}

/// A fraction in percent, without needless digits.
fn percent(fraction: f64) -> String {
    format!("{} %", (fraction * 1e5).round() / 1e3)
}

fn grid(corner: &str, summary: &Summary, rows: Vec<Row>, colours: bool) -> String {
    let first = rows.iter().map(|row| row.0.chars().count()).chain([corner.len()]).max().unwrap_or(0);
    let widths: Vec<usize> = summary.results.iter().map(|of| of.length.to_string().len().max(5)).collect();
    let mut text = format!("{corner:first$}");
    for (of, width) in summary.results.iter().zip(&widths) {
        let _ = write!(text, "  {:>width$}", of.length);
    }
    text.push('\n');
    for (name, values) in rows {
        text += &name;
        text += &" ".repeat(first - name.chars().count());
        for (value, &width) in values.iter().zip(&widths) {
            let cell =
                value.map_or_else(|| "-".to_owned(), |outcome| format!("{:.1}", outcome.accuracy * 100.0));
            let _ = match value.filter(|_| colours) {
                Some(outcome) => {
                    let (r, g, b) = colour(outcome.accuracy);
                    write!(text, " \x1b[30;48;2;{r};{g};{b}m {cell:>width$}\x1b[0m")
                }
                None => write!(text, "  {cell:>width$}"),
            };
        }
        text.push('\n');
    }
    text
}

/// The colour of an accuracy: vermilion, yellow, bluish green. The usual red to green, in tones that colour-blind eyes
/// tell apart (Okabe and Ito). Black can be read on all of them.
pub fn colour(accuracy: f64) -> (u8, u8, u8) {
    const STOPS: [[f64; 3]; 3] = [[226.0, 106.0, 32.0], [240.0, 228.0, 66.0], [52.0, 178.0, 132.0]];
    let at = accuracy.clamp(0.0, 1.0) * 2.0;
    let (low, share) = if at < 1.0 { (0, at) } else { (1, at - 1.0) };
    let mix = |channel: usize| {
        (STOPS[low][channel] * (1.0 - share) + STOPS[low + 1][channel] * share).round() as u8
    };
    (mix(0), mix(1), mix(2))
}

/// A size in bytes as people say it.
fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Text that may hold anything, fit for one line of a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || is_invisible(c) { '·' } else { c }).collect()
}

/// Characters that change the direction or the meaning of those around them.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::tests::record;

    fn summary() -> Summary {
        let records = [
            record("a", 100, Some(0.0), Some(0.0), 1.0),
            record("a", 100, Some(0.125), Some(0.1), 0.0),
            record("a", 2000, Some(0.0), Some(0.0), 0.5),
            record("b", 2000, None, None, 0.25),
        ];
        Summary::new("retrieval", Unit::Tokens, &records)
    }

    #[test]
    fn tables_by_hand() {
        let expected = "    \
    length     tokens  accuracy             tests    seconds    memory
       100         99    50.0 % █████           2        4.0  97.7 KiB
      2000       1999    37.5 % ███▊            2        4.0   1.9 MiB

task    100   2000
a      50.0   50.0
b         -   25.0

a, by depth:
depth     100   2000
0 %     100.0   50.0
12.5 %    0.0      -
";
        assert_eq!(
            to_text(&summary(), false),
            expected.trim_start_matches("    ").replacen("length", "    length", 1)
        );
    }

    #[test]
    fn colours_are_for_terminals() {
        let plain = to_text(&summary(), false);
        let coloured = to_text(&summary(), true);
        assert!(!plain.contains('\x1b') && coloured.contains("\x1b[30;48;2;52;178;132m"));
        let mut stripped = String::new();
        let mut rest = coloured.as_str();
        while let Some((before, after)) = rest.split_once('\x1b') {
            stripped += before;
            rest = after.split_once('m').unwrap().1;
        }
        assert_eq!(stripped + rest, plain);
        assert_eq!([colour(0.0), colour(0.5), colour(7.0)], [(226, 106, 32), (240, 228, 66), (52, 178, 132)]);
    }

    #[test]
    fn bars_sizes_and_hostile_names() {
        assert_eq!(
            [bar(0.0), bar(1.0), bar(0.0625)].map(|b| b.trim_end().to_owned()),
            ["", "██████████", "▋"]
        );
        assert!([0.0, 0.01, 0.33, 0.999, 1.0].iter().all(|&a| bar(a).chars().count() == BAR));
        assert_eq!(
            [bytes(0), bytes(1023), bytes(1024), bytes(3 << 30)],
            ["0 B", "1023 B", "1.0 KiB", "3.0 GiB"]
        );
        assert_eq!(printable("a\x1b[2J\n\u{202e}ü"), "a·[2J··ü");
    }
}
