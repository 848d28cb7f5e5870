//! What a command says, and where.
//!
//! Standard output carries results and nothing else: text for people, or with `--json` exactly one JSON
//! object, so that `landmark eval --json | jq .val_loss` works. Standard error carries progress, remarks and
//! errors. On a terminal progress is a bar; elsewhere (a log file, CI) it is a line now and then, because
//! bars redraw themselves.

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::args::Common;
use crate::error::{Error, Result};

/// Between two lines of progress in a log.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Where a command reports to.
#[derive(Debug)]
pub struct Report {
    json: bool,
    quiet: bool,
    /// All bars; lines are printed above them.
    bars: MultiProgress,
    is_terminal: bool,
}

impl Report {
    /// Reports as the flags ask for.
    pub fn new(common: &Common) -> Report {
        Report {
            json: common.json,
            quiet: common.quiet,
            bars: MultiProgress::new(),
            is_terminal: std::io::stderr().is_terminal(),
        }
    }

    /// A line about what is going on (standard error; not under `--quiet`).
    pub fn log(&self, line: impl AsRef<str>) {
        if !self.quiet {
            self.bars.suspend(|| to_stderr(&format!("{}\n", line.as_ref())));
        }
    }

    /// A line that the user should not miss (standard error, always).
    pub fn warn(&self, line: impl AsRef<str>) {
        self.bars.suspend(|| to_stderr(&format!("warning: {}\n", line.as_ref())));
    }

    /// A result for people (standard output; nothing under `--json`). A newline is added.
    ///
    /// # Errors
    /// If standard output cannot be written; a reader that went away (`| head`) is no error.
    pub fn print(&self, text: impl AsRef<str>) -> Result<()> {
        if self.json { Ok(()) } else { to_stdout(&format!("{}\n", text.as_ref())) }
    }

    /// A piece of a result, shown at once, without a newline: generated text (standard output; nothing under
    /// `--json`).
    ///
    /// # Errors
    /// As [`print`](Report::print).
    pub fn stream(&self, piece: &str) -> Result<()> {
        if self.json { Ok(()) } else { to_stdout(piece) }
    }

    /// The result as a JSON object (standard output; only under `--json`). A command calls it once.
    ///
    /// # Errors
    /// As [`print`](Report::print).
    pub fn json(&self, result: &impl Serialize) -> Result<()> {
        if !self.json {
            return Ok(());
        }
        let text =
            serde_json::to_string(result).map_err(|error| Error::io("<standard output>", error.into()))?;
        to_stdout(&(text + "\n"))
    }

    /// Begins a task of `total` units (of "tokens", "steps", "bytes", ...).
    pub fn progress(&self, task: &str, total: u64, unit: &'static str) -> Progress {
        let bar = if self.is_terminal && !self.quiet {
            let bar = self.bars.add(ProgressBar::new(total));
            let template = "{prefix} {wide_bar} {human_pos}/{human_len} {msg} {eta} left";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_prefix(task.to_owned());
            Some(bar)
        } else {
            None
        };
        let now = Instant::now();
        Progress {
            task: task.to_owned(),
            unit,
            total,
            bar,
            is_logged: !self.is_terminal && !self.quiet,
            began: now,
            began_at: Cell::new(0),
            logged: Cell::new(now),
        }
    }
}

/// Writes and flushes; a closed pipe is nobody's fault.
fn to_stdout(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::io("<standard output>", error))
        }
        _ => Ok(()),
    }
}

/// Writes a remark. Nobody is left to tell if that fails (`eprintln!` would panic).
fn to_stderr(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// A task under way. Dropping it takes its bar away.
#[derive(Debug)]
pub struct Progress {
    task: String,
    unit: &'static str,
    total: u64,
    bar: Option<ProgressBar>,
    is_logged: bool,
    began: Instant,
    /// Units done before this process began: a resumed run's rate is that of its own work.
    began_at: Cell<u64>,
    logged: Cell<Instant>,
}

impl Progress {
    /// Says that `done` units were already done when the task began (a resumed run).
    pub fn resume_at(&self, done: u64) {
        self.began_at.set(done);
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.reset_eta();
        }
    }

    /// Says that `done` units are done by now. `note` (say, the loss) is shown along with the rate.
    pub fn at(&self, done: u64, note: &str) {
        let elapsed = self.began.elapsed();
        let state = State { done, began_at: self.began_at.get(), total: self.total, elapsed };
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(join(&[&state.rate(self.unit), note]));
        }
        if self.is_logged && (self.logged.get().elapsed() >= LOG_EVERY || done == self.total) {
            self.logged.set(Instant::now());
            to_stderr(&format!("{}: {}\n", self.task, state.line(self.unit, note)));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// How far a task is. Apart from the clock, so that its lines can be tested.
struct State {
    done: u64,
    began_at: u64,
    total: u64,
    elapsed: Duration,
}

impl State {
    /// Units a second in this process; `None` before the first.
    fn speed(&self) -> Option<f64> {
        let own = self.done.saturating_sub(self.began_at) as f64;
        let seconds = self.elapsed.as_secs_f64();
        (own > 0.0 && seconds > 0.0).then(|| own / seconds)
    }

    fn rate(&self, unit: &str) -> String {
        self.speed().map_or_else(String::new, |speed| format!("{} {unit}/s", scaled(speed)))
    }

    fn line(&self, unit: &str, note: &str) -> String {
        let percent = if self.total == 0 { 100.0 } else { self.done as f64 / self.total as f64 * 100.0 };
        let left = self.speed().filter(|_| self.done < self.total).map_or_else(String::new, |speed| {
            format!("{} left", duration(self.total.saturating_sub(self.done) as f64 / speed))
        });
        let state = format!("{}/{} {unit} ({percent:.1}%)", self.done, self.total);
        join(&[&state, &self.rate(unit), &left, note])
    }
}

/// The parts that say something, separated by commas.
fn join(parts: &[&str]) -> String {
    let parts: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
    parts.join(", ")
}

/// A number with three significant digits, in thousands, millions or billions.
pub fn scaled(number: f64) -> String {
    let (number, suffix) = match number {
        n if n >= 1e9 => (n / 1e9, "G"),
        n if n >= 1e6 => (n / 1e6, "M"),
        n if n >= 1e4 => (n / 1e3, "k"),
        n => (n, ""),
    };
    let decimals = if number >= 100.0 {
        0
    } else if number >= 10.0 {
        1
    } else {
        2
    };
    format!("{number:.decimals$}{suffix}")
}

/// Seconds as people say them.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.clamp(0.0, 1e9) as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60);
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{minutes} min {:02} s", whole % 60),
        3600..86_400 => format!("{hours} h {minutes:02} min"),
        _ => format!("{days} d {hours:02} h"),
    }
}

/// Says why a command ended early, and gives the exit code for it. Help and version are no failure: they go
/// to standard output.
pub fn failure(error: &Error) -> ExitCode {
    match error {
        Error::Shown(text) => {
            let _ = to_stdout(&format!("{}\n", text.trim_end()));
        }
        _ => to_stderr(&failure_text(error)),
    }
    ExitCode::from(error.exit_code())
}

/// `error: ...`, and `help: ...` if there is any; a line each, whatever the message holds.
fn failure_text(error: &Error) -> String {
    let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut text = format!("error: {}\n", one_line(&error.to_string()));
    if let Some(help) = error.help() {
        text += &format!("help: {}\n", one_line(help));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(done: u64, began_at: u64, total: u64, seconds: u64) -> State {
        State { done, began_at, total, elapsed: Duration::from_secs(seconds) }
    }

    #[test]
    fn lines_tell_rate_and_time_left() {
        assert_eq!(
            state(1_000, 0, 4_000, 10).line("steps", "loss 3.21"),
            "1000/4000 steps (25.0%), 100 steps/s, 30 s left, loss 3.21"
        );
        // The 1000 steps of an earlier process do not count as fast ones of this.
        assert_eq!(
            state(1_100, 1_000, 4_000, 100).line("steps", ""),
            "1100/4000 steps (27.5%), 1.00 steps/s, 48 min 20 s left"
        );
        assert_eq!(state(0, 0, 4_000, 10).line("steps", ""), "0/4000 steps (0.0%)");
        assert_eq!(state(5, 0, 0, 0).line("files", ""), "5/0 files (100.0%)");
    }

    #[test]
    fn numbers_and_times_are_short() {
        assert_eq!(
            [scaled(0.5), scaled(647.2), scaled(95_700.0), scaled(3.17e5)],
            ["0.50", "647", "95.7k", "317k"]
        );
        assert_eq!([duration(59.9), duration(61.0), duration(7_320.0)], ["59 s", "1 min 01 s", "2 h 02 min"]);
        assert_eq!(duration(f64::INFINITY), "11574 d 01 h");
    }

    #[test]
    fn errors_are_one_line_and_help_another() {
        let error = Error::flag("--lr", "two\nlines", "do\nthis");
        assert_eq!(failure_text(&error), "error: --lr: two lines\nhelp: do this\n");
        assert_eq!(failure_text(&Error::flag("--lr", "no", "")).lines().count(), 1);
    }
}
