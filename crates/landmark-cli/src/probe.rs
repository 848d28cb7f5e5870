//! What `landmark passkey` and `landmark retrieval` have in common: prompts written, asked or scored; answers kept; results
//! shown as a table, JSON, CSV and a picture.
//!
//! | flags | prompts come from | answers come from |
//! |---|---|---|
//! | none, or `--model` | the suite | the model |
//! | `--prompts`, with or without `--model` | a file | the model |
//! | `--prompts --answers` | a file | a file |
//! | `--dump-prompts` | the suite | nobody: the prompts are written |

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use landmark_formats::atomic::write_atomic;
use landmark_probe::case::Suite;
use landmark_probe::journal::Journal;
use landmark_probe::passkey::Unit;
use landmark_probe::prompts::{PromptFile, write_prompts};
use landmark_probe::run::{Record, run as ask};
use landmark_probe::summary::Summary;
use landmark_probe::{Answerer, csv, heatmap, table};
use serde_json::{Map, Value, json};

use crate::answerer::{self, Counter};
use crate::args::passkey::ProbeArgs;
use crate::error::{Error, Result};
use crate::report::Report;

/// What is asked.
pub struct Plan<'a> {
    /// `passkey` or `retrieval`.
    pub name: &'static str,
    /// What lengths count.
    pub unit: Unit,
    /// The questions.
    pub suite: &'a dyn Suite,
    /// What has to agree for answers of an earlier run to count, beside the model.
    pub settings: Value,
    /// Where results go if `--output-dir` does not say it. Answers are not kept there, so that any run may follow any other.
    pub results: Option<PathBuf>,
}

/// Follows the flags from prompts to results.
///
/// # Errors
/// If a file or the model cannot be read, a question is not answered, or a result cannot be written.
pub fn run(plan: &Plan<'_>, args: &ProbeArgs, report: &Report) -> Result<()> {
    args.device.device.check()?;
    if let Some(path) = &args.dump_prompts {
        return dump(plan, path, args, report);
    }
    let file = args.prompts.as_deref().map(PromptFile::open).transpose()?;
    let plan = &match &file {
        Some(file) => Plan {
            unit: file.unit(),
            suite: file,
            settings: json!({}),
            results: plan.results.clone(),
            ..*plan
        },
        None => Plan { settings: plan.settings.clone(), results: plan.results.clone(), ..*plan },
    };
    if let (Some(file), Some(answers)) = (&file, &args.answers) {
        let title = answers.display().to_string();
        return show(plan, &title, json!({ "answers": answers }), &file.score(answers)?, args, report);
    }
    // What length the prompts of a suite will have.
    let lengths = plan.suite.keys().into_iter().map(|key| key.length);
    let longest = lengths.max().filter(|_| plan.unit == Unit::Tokens && file.is_none());
    let mut opened = answerer::open(args, longest)?;
    if let Some(folder) = folder(plan, args) {
        // Before hours of work, not after.
        std::fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
    }
    let mut settings = Map::new();
    settings.insert("probe".into(), plan.name.into());
    settings.insert("model".into(), opened.identity.clone());
    settings.extend(plan.settings.as_object().cloned().unwrap_or_default());
    if let Some(path) = &args.prompts {
        settings.insert("prompts".into(), json!(path));
    }
    let records = answer(plan.suite, &mut *opened.answerer, &settings, args, report)?;
    show(plan, &opened.title, Value::Object(settings), &records, args, report)
}

/// Writes the prompts for other programs.
fn dump(plan: &Plan<'_>, path: &Path, args: &ProbeArgs, report: &Report) -> Result<()> {
    let counter = Counter::open(args)?;
    let total = plan.suite.keys().len();
    let progress = report.progress("writing prompts", total as u64, "prompts");
    let written = write_prompts(path, plan.suite, &|text| counter.count(text), &mut |done| {
        progress.at(done as u64, "")
    })?;
    drop(progress);
    report.print(format!("{}: {written} prompts", path.display()))?;
    report.json(&json!({ "prompts": path, "count": written }))
}

/// Asks what was not answered before, keeping every answer at once.
fn answer(
    suite: &dyn Suite,
    answerer: &mut dyn Answerer,
    settings: &Map<String, Value>,
    args: &ProbeArgs,
    report: &Report,
) -> Result<Vec<Record>> {
    let mut journal = None;
    let mut known = Vec::new();
    if let Some(folder) = &args.output_dir {
        let (opened, records) = Journal::open(&folder.join("answers.jsonl"), settings)?;
        (journal, known) = (Some(opened), records);
    }
    let mut bar = None;
    let records = ask(suite, answerer, known, &mut |record, at| {
        if let (Some(record), Some(journal)) = (record, &mut journal) {
            journal.add(record)?;
        }
        // Time goes with the lengths of prompts, so these are what is counted.
        let bar = bar.get_or_insert_with(|| {
            let bar = report.progress("asking", at.total, "tokens");
            bar.resume_at(at.done);
            if at.answered > 0 {
                report.log(format!("{} of {} questions were answered before", at.answered, at.questions));
            }
            bar
        });
        bar.at(
            at.done,
            &format!("{}/{} questions, accuracy {:.1} %", at.answered, at.questions, at.accuracy * 100.0),
        );
        Ok(())
    })?;
    Ok(records)
}

/// Where results go, if anywhere.
fn folder<'a>(plan: &'a Plan<'_>, args: &'a ProbeArgs) -> Option<&'a Path> {
    args.output_dir.as_deref().or(plan.results.as_deref())
}

/// Shows results, and writes them where that was asked for.
fn show(
    plan: &Plan<'_>,
    title: &str,
    settings: Value,
    records: &[Record],
    args: &ProbeArgs,
    report: &Report,
) -> Result<()> {
    let summary = Summary::new(plan.name, plan.unit, records);
    let mut json = serde_json::to_value(&summary).unwrap_or_default();
    json["settings"] = settings;
    if let Some(folder) = folder(plan, args) {
        std::fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
        let write = |name: &str, text: String| {
            let text = text.into_bytes();
            write_atomic(&folder.join(name), |writer| std::io::Write::write_all(writer, &text))
        };
        write("results.json", serde_json::to_string_pretty(&json).unwrap_or_default() + "\n")?;
        write("results.csv", csv::to_csv(&summary))?;
        heatmap::write_svg(&folder.join("results.svg"), &format!("{}: {title}", plan.name), &summary)?;
        report.log(format!("wrote results.json, results.csv and results.svg in {}", folder.display()));
    }
    report.json(&json)?;
    report.print(table::to_text(&summary, std::io::stdout().is_terminal()).trim_end())
}
