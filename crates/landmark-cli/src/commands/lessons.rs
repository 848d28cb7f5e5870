//! `landmark lessons`: texts to learn retrieval from.

use std::io::Write;

use landmark_data::Tokenizer;
use landmark_formats::atomic::write_atomic;
use landmark_probe::lessons::{Lesson, Lessons};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::json;

use crate::args::lessons::LessonsArgs;
use crate::error::{Error, Result};
use crate::report::Report;

/// Texts made side by side before they are written.
const PIECE: usize = 1024;

/// What was written.
#[derive(Debug, Serialize)]
struct Outcome {
    output: std::path::PathBuf,
    texts: usize,
    bytes: u64,
}

fn tokenizer(args: &LessonsArgs) -> Result<Tokenizer> {
    match (&args.tokenizer, &args.model) {
        (Some(path), _) => Ok(Tokenizer::from_file(path, None)?),
        (None, Some(folder)) => Tokenizer::from_folder(folder, None)?.ok_or_else(|| {
            Error::flag("--model", format!("{} has no tokenizer", folder.display()), "give --tokenizer FILE")
        }),
        (None, None) => Err(Error::flag("--model", "no model is given", "give --model, or --tokenizer FILE")),
    }
}

/// Writes lessons.
///
/// # Errors
/// Tasks that are not known, lengths that are too short for them, a disk that fails.
pub fn run(args: &LessonsArgs, report: &Report) -> Result<()> {
    args.device.device.check()?;
    let tokenizer = tokenizer(args)?;
    let mut lessons = Lessons {
        lessons: Vec::new(),
        tokens: [args.min_tokens, args.max_tokens],
        count: args.count,
        seed: args.seed,
    };
    for name in &args.tasks {
        lessons.lessons.extend(Lesson::of(name)?);
    }
    lessons.validate()?;
    let count = |text: &str| Ok(tokenizer.encode(text)?.len());
    let progress = report.progress("writing", args.count as u64, "texts");
    let mut failed = None;
    write_atomic(&args.output, |writer| {
        for first in (0..args.count).step_by(PIECE) {
            let last = (first + PIECE).min(args.count);
            let texts: std::result::Result<Vec<String>, _> =
                (first..last).into_par_iter().map(|index| lessons.text(index, &count)).collect();
            match texts {
                Ok(texts) => {
                    for text in texts {
                        writeln!(writer, "{}", json!({ "text": text }))?;
                    }
                }
                Err(error) => {
                    let said = error.to_string();
                    failed = Some(error);
                    return Err(std::io::Error::other(said));
                }
            }
            progress.at(last as u64, "");
        }
        Ok(())
    })
    .or_else(|error| failed.take().map_or(Err(Error::from(error)), |error| Err(error.into())))?;
    let bytes = std::fs::metadata(&args.output).map_err(|error| Error::io(&args.output, error))?.len();
    report.print(format!(
        "{}: {} texts, {}",
        args.output.display(),
        args.count,
        bytesize::ByteSize(bytes)
    ))?;
    report.json(&Outcome { output: args.output.clone(), texts: args.count, bytes })
}
