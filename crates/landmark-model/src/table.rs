//! Small tables, as every command prints them: aligned text for a terminal, Markdown, or CSV.
//!
//! A table here is a header and rows of strings; numbers are formatted by whoever knows their meaning.
//! Columns in which every filled cell is a number are set flush right.

use std::fmt::Write;

/// A header and rows of cells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// How a table is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Aligned columns for a terminal.
    Text,
    /// A pipe table.
    Markdown,
    /// Comma-separated values (RFC 4180, lines ended by a line feed).
    Csv,
}

impl Table {
    /// A table without rows.
    pub fn new<S: Into<String>>(header: impl IntoIterator<Item = S>) -> Table {
        Table { header: header.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// Adds a row. Missing cells are empty, cells beyond the header are dropped.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        let mut cells: Vec<String> = cells.into_iter().map(Into::into).collect();
        cells.resize(self.header.len(), String::new());
        self.rows.push(cells);
    }

    /// The table as text, each line ended.
    pub fn render(&self, format: Format) -> String {
        match format {
            Format::Text => self.text(),
            Format::Markdown => self.markdown(),
            Format::Csv => self.csv(),
        }
    }

    fn text(&self) -> String {
        let widths = self.widths();
        let mut out = String::new();
        let rule: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
        for row in [&self.header, &rule].into_iter().chain(&self.rows) {
            let line: Vec<String> = self.padded(row, &widths).collect();
            out.push_str(line.join("  ").trim_end());
            out.push('\n');
        }
        out
    }

    fn markdown(&self) -> String {
        let escaped = Table {
            header: self.header.iter().map(|cell| escape_markdown(cell)).collect(),
            rows: self
                .rows
                .iter()
                .map(|row| row.iter().map(|cell| escape_markdown(cell)).collect())
                .collect(),
        };
        let widths: Vec<usize> = escaped.widths().into_iter().map(|width| width.max(3)).collect();
        let rule: Vec<String> = (0..widths.len())
            .map(|column| {
                let dashes = "-".repeat(widths[column] - 1);
                if self.is_numeric(column) { format!("{dashes}:") } else { format!("{dashes}-") }
            })
            .collect();
        let mut out = String::new();
        for row in [&escaped.header, &rule].into_iter().chain(&escaped.rows) {
            let line: Vec<String> = self.padded(row, &widths).collect();
            let _ = writeln!(out, "| {} |", line.join(" | "));
        }
        out
    }

    fn csv(&self) -> String {
        let mut out = String::new();
        for row in std::iter::once(&self.header).chain(&self.rows) {
            let line: Vec<String> = row.iter().map(|cell| escape_csv(cell)).collect();
            let _ = writeln!(out, "{}", line.join(","));
        }
        out
    }

    fn widths(&self) -> Vec<usize> {
        (0..self.header.len())
            .map(|column| {
                let cells = std::iter::once(&self.header).chain(&self.rows);
                cells.map(|row| row[column].chars().count()).max().unwrap_or(0)
            })
            .collect()
    }

    fn padded<'a>(&'a self, row: &'a [String], widths: &'a [usize]) -> impl Iterator<Item = String> + 'a {
        row.iter().zip(widths).enumerate().map(|(column, (cell, &width))| {
            if self.is_numeric(column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        })
    }

    fn is_numeric(&self, column: usize) -> bool {
        let filled = || self.rows.iter().map(|row| row[column].as_str()).filter(|cell| !is_blank(cell));
        filled().next().is_some()
            && filled().all(|cell| cell.trim_end_matches('%').replace(',', "").trim().parse::<f64>().is_ok())
    }
}

/// Nothing, or the dash that stands for nothing.
fn is_blank(cell: &str) -> bool {
    cell.is_empty() || cell == "-"
}

fn escape_markdown(cell: &str) -> String {
    cell.replace('\\', "\\\\").replace('|', "\\|").replace(['\n', '\r'], " ")
}

fn escape_csv(cell: &str) -> String {
    if cell.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Table {
        let mut table = Table::new(["what", "loss"]);
        table.row(["with memory", "4.25"]);
        table.row(["a|b, \"c\"", "-"]);
        table.row(["short"]);
        table
    }

    #[test]
    fn text_is_aligned_without_trailing_spaces() {
        let expected = "\
what         loss
-----------  ----
with memory  4.25
a|b, \"c\"        -
short
";
        assert_eq!(example().render(Format::Text), expected);
    }

    #[test]
    fn markdown_escapes_pipes() {
        let expected = "\
| what        | loss |
| ----------- | ---: |
| with memory | 4.25 |
| a\\|b, \"c\"   |    - |
| short       |      |
";
        assert_eq!(example().render(Format::Markdown), expected);
    }

    #[test]
    fn csv_quotes_what_needs_it() {
        assert_eq!(
            example().render(Format::Csv),
            "what,loss\nwith memory,4.25\n\"a|b, \"\"c\"\"\",-\nshort,\n"
        );
    }

    #[test]
    fn tables_without_columns_or_rows_are_fine() {
        assert_eq!(Table::new(["a"]).render(Format::Markdown), "| a   |\n| --- |\n");
        assert_eq!(Table::new::<String>([]).render(Format::Csv), "\n");
    }
}
