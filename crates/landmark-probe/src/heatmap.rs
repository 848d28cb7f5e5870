//! The picture: accuracy by length and depth, as SVG, the usual one of tests with a needle in a haystack.
//!
//! One panel for each task with depths; with several tasks, one of tasks and lengths above them. Every cell has its
//! number written in it, so colour is not the only way to read it. `plotters` draws, and only its SVG backend is compiled
//! in; its text is set by whoever shows the picture.

use std::io::Write;
use std::path::Path;

use landmark_formats::atomic::write_atomic;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::passkey::Unit;
use crate::summary::Summary;
use crate::table::{Row, colour, of_depths, tasks};
use crate::{Error, Result};

/// Pixels around and beside panels, before whoever shows the picture scales it.
const LEFT: i32 = 150;
const RIGHT: i32 = 110;
const TOP: i32 = 60;
const BOTTOM: i32 = 64;
const CELL: (i32, i32) = (72, 34);
/// Panels are at most about so wide and high, with narrower cells if need be.
const MOST: (i32, i32) = (2400, 1600);

/// A rectangle of coloured cells.
struct Panel {
    title: String,
    row_label: &'static str,
    column_label: &'static str,
    columns: Vec<String>,
    rows: Vec<Row>,
    cell: (i32, i32),
}

impl Panel {
    fn new(title: String, row_label: &'static str, summary: &Summary, rows: Vec<Row>) -> Panel {
        let columns: Vec<String> = summary.results.iter().map(|of| of.length.to_string()).collect();
        let column_label = match summary.unit {
            Unit::Tokens => "tokens of the prompt",
            Unit::Characters => "characters of filler",
        };
        let fit = |size: i32, count: usize, most: i32| size.min(most / count.max(1) as i32).max(2);
        let cell = (fit(CELL.0, columns.len(), MOST.0), fit(CELL.1, rows.len(), MOST.1));
        Panel { title, row_label, column_label, columns, rows, cell }
    }

    fn size(&self) -> (i32, i32) {
        let (columns, rows) = (self.columns.len() as i32, self.rows.len() as i32);
        (LEFT + columns * self.cell.0 + RIGHT, TOP + rows * self.cell.1 + BOTTOM)
    }
}

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// Draws the picture to `path`.
///
/// # Errors
/// If it cannot be drawn or written.
pub fn write_svg(path: &Path, title: &str, summary: &Summary) -> Result<()> {
    let svg =
        to_svg(title, summary).map_err(|reason| Error::File { file: path.display().to_string(), reason })?;
    Ok(write_atomic(path, |writer| writer.write_all(svg.as_bytes()))?)
}

fn to_svg(title: &str, summary: &Summary) -> std::result::Result<String, String> {
    let all = tasks(summary);
    let mut panels = Vec::new();
    if all.len() > 1 {
        let rows = all.iter().map(|task| {
            let of = |length| summary.tasks.iter().find(|of| of.task == *task && of.length == length);
            ((*task).to_owned(), summary.results.iter().map(|l| of(l.length).map(|of| of.outcome)).collect())
        });
        panels.push(Panel::new("all tasks".into(), "task", summary, rows.collect()));
    }
    for task in all {
        let rows = of_depths(summary, task);
        // A single row is still a picture if there is no other.
        if rows.len() > 1 || panels.is_empty() {
            panels.push(Panel::new(task.to_owned(), "depth", summary, rows));
        }
    }
    let width = panels.iter().map(|panel| panel.size().0).max().unwrap_or(400).max(400);
    let height = 50 + panels.iter().map(|panel| panel.size().1).sum::<i32>();
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (width as u32, height as u32)).into_drawing_area();
        let drawn = draw(&root, title, &panels).and_then(|()| Ok(root.present()?));
        drawn.map_err(|error| format!("cannot be drawn: {error}"))?;
    }
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw(root: &Area<'_>, title: &str, panels: &[Panel]) -> Drawn {
    root.fill(&WHITE)?;
    text(root, title, (20, 30), 20, HPos::Left)?;
    let mut top = 50;
    for panel in panels {
        draw_panel(root, panel, top)?;
        top += panel.size().1;
    }
    Ok(())
}

fn draw_panel(root: &Area<'_>, panel: &Panel, top: i32) -> Drawn {
    let (width, height) = panel.cell;
    let (left, first) = (LEFT, top + TOP);
    let bottom = first + panel.rows.len() as i32 * height;
    text(root, &panel.title, (left, top + 20), 16, HPos::Left)?;
    text(root, panel.row_label, (left - 10, first - 14), 13, HPos::Right)?;
    // As many labels as there is room for.
    let every = |label: i32, cell: i32| ((label + cell - 1) / cell).max(1) as usize;
    for (row, (name, values)) in panel.rows.iter().enumerate() {
        let y = first + row as i32 * height;
        if row % every(14, height) == 0 {
            text(root, name, (left - 10, y + height / 2), 13, HPos::Right)?;
        }
        for (column, value) in values.iter().enumerate() {
            let x = left + column as i32 * width;
            let style = match value {
                Some(outcome) => {
                    let (r, g, b) = colour(outcome.accuracy);
                    RGBColor(r, g, b).filled()
                }
                None => RGBColor(238, 238, 238).filled(),
            };
            root.draw(&Rectangle::new([(x, y), (x + width, y + height)], style))?;
            if let Some(outcome) = value.filter(|_| width >= 30 && height >= 14) {
                let accuracy = format!("{:.0}", outcome.accuracy * 100.0);
                text(root, &accuracy, (x + width / 2, y + height / 2), 13, HPos::Center)?;
            }
        }
    }
    for (column, name) in panel.columns.iter().enumerate() {
        if column % every(64, width) == 0 {
            let x = left + column as i32 * width + width / 2;
            text(root, name, (x, bottom + 14), 13, HPos::Center)?;
        }
    }
    let middle = left + panel.columns.len() as i32 * width / 2;
    text(root, panel.column_label, (middle, bottom + 36), 13, HPos::Center)?;
    draw_scale(root, (left + panel.columns.len() as i32 * width + 24, first, bottom))
}

/// What the colours mean, in percent.
fn draw_scale(root: &Area<'_>, (x, top, bottom): (i32, i32, i32)) -> Drawn {
    const STEPS: i32 = 20;
    let at = |step: i32| bottom - (bottom - top) * step / STEPS;
    for step in 0..STEPS {
        let (r, g, b) = colour((f64::from(step) + 0.5) / f64::from(STEPS));
        let corners = [(x, at(step + 1)), (x + 14, at(step))];
        root.draw(&Rectangle::new(corners, RGBColor(r, g, b).filled()))?;
    }
    text(root, "100 %", (x + 20, top + 6), 12, HPos::Left)?;
    text(root, "0 %", (x + 20, bottom - 6), 12, HPos::Left)
}

fn text(root: &Area<'_>, text: &str, at: (i32, i32), size: i32, side: HPos) -> Drawn {
    let style = ("sans-serif", size).into_font().into_text_style(root).pos(Pos::new(side, VPos::Center));
    root.draw(&Text::new(text.to_owned(), at, style))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::tests::record;

    #[test]
    fn every_cell_has_its_colour_and_number() {
        let records = [
            record("a", 100, Some(0.0), None, 1.0),
            record("a", 100, Some(1.0), None, 0.0),
            record("a", 2000, Some(0.0), None, 0.5),
        ];
        let summary = Summary::new("passkey", Unit::Tokens, &records);
        let svg = to_svg("a <model> & more", &summary).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for said in ["a &lt;model&gt; &amp; more", "tokens of the prompt", "2000", "100 %", "depth"] {
            assert!(svg.contains(said), "{said}");
        }
        let cells = |colour: &str| svg.matches(&format!("fill=\"{colour}\"")).count();
        assert_eq!([cells("#34B284"), cells("#E26A20"), cells("#F0E442"), cells("#EEEEEE")], [1, 1, 1, 1]);
        for number in ["100", "0", "50"] {
            assert!(svg.lines().any(|line| line.trim() == number), "{number}");
        }
    }

    #[test]
    fn many_tasks_and_no_results_are_drawn() {
        let mut records = Vec::new();
        for task in ["a", "b"] {
            for length in 1..300 {
                records.push(record(task, 100 * length, None, Some(0.1), 0.3));
            }
        }
        records.push(record("c", 100, None, None, 0.3));
        let svg = to_svg("wide", &Summary::new("retrieval", Unit::Characters, &records)).unwrap();
        assert!(svg.contains("all tasks") && svg.contains("characters of filler") && svg.len() < 1 << 20);
        assert!(to_svg("none", &Summary::new("passkey", Unit::Tokens, &[])).unwrap().contains("none"));
    }

    #[test]
    fn pictures_are_written_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results.svg");
        let summary = Summary::new("passkey", Unit::Tokens, &[record("a", 9, None, Some(0.1), 1.0)]);
        write_svg(&path, "title", &summary).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().contains("title"));
        assert!(
            write_svg(&dir.path().join("no/x.svg"), "t", &summary)
                .unwrap_err()
                .to_string()
                .contains("no/x.svg")
        );
    }
}
