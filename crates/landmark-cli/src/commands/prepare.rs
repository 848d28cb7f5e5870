//! `landmark prepare`: flags to options, and progress; the work is done by `landmark-data`.

use landmark_data::{Corpus, PrepareOptions, Summary, TokenType, Tokenizer};
use serde_json::json;

use crate::args::prepare::{PrepareArgs, Source, Width};
use crate::error::{Error, Result};
use crate::report::{Report, duration, scaled};

/// Resolves the flags. Reads nothing.
///
/// # Errors
/// Names the flag that cannot be followed.
pub fn options(args: &PrepareArgs) -> Result<PrepareOptions> {
    args.device.device.check()?;
    if !(0.0..=0.5).contains(&args.validation_fraction) {
        let reason = format!("{} is not a fraction from 0 to 0.5", args.validation_fraction);
        return Err(Error::flag(
            "--validation-fraction",
            reason,
            "0.01 puts one document in a hundred aside",
        ));
    }
    let corpus = match args.dataset {
        Source::Pg19 => Corpus::Pg19,
        Source::Arxivmath => Corpus::ArxivMath,
        Source::Redpajama => Corpus::RedPajama,
        Source::Text => Corpus::Text,
    };
    let mut options = PrepareOptions::new(corpus, &args.input, &args.output);
    options.validation_fraction = args.validation_fraction;
    options.force = args.force;
    options.dtype = args.dtype.map(|width| match width {
        Width::Uint16 => TokenType::Uint16,
        Width::Uint32 => TokenType::Uint32,
    });
    Ok(options)
}

/// Prepares token streams.
///
/// # Errors
/// If the flags cannot be followed, or text cannot be read or tokens written.
pub fn run(args: &PrepareArgs, report: &Report) -> Result<()> {
    let options = options(args)?;
    let tokenizer = match &args.tokenizer {
        Some(path) => Tokenizer::from_file(path, args.eot.as_deref())?,
        None => Tokenizer::gpt2(),
    };
    let mut bar = None;
    let summary = landmark_data::prepare(&options, &tokenizer, &mut |at| {
        let bar = bar.get_or_insert_with(|| report.progress("preparing", at.bytes_total, "bytes"));
        bar.at(at.bytes_done, &format!("{} tokens", scaled(at.tokens as f64)));
    })?;
    drop(bar);
    show(&options, &summary, report)
}

fn show(options: &PrepareOptions, summary: &Summary, report: &Report) -> Result<()> {
    let Summary { info, skipped, elapsed } = summary;
    if *skipped {
        report.log("the output is complete already, from the same settings; --force prepares it again");
    }
    for (split, part) in &info.splits {
        report.print(format!(
            "{}: {} tokens, {} documents",
            options.output.join(split.file_name()).display(),
            part.tokens,
            part.documents
        ))?;
    }
    let seconds = elapsed.as_secs_f64();
    let tokens: u64 = info.splits.values().map(|part| part.tokens).sum();
    if !skipped {
        let speed = scaled(info.settings.source_bytes as f64 / seconds / 1e6);
        report.log(format!("{} at {speed} MB/s", duration(seconds)));
    }
    report.json(&json!({
        "output": options.output,
        "skipped": skipped,
        "seconds": seconds,
        "tokens": tokens,
        "dataset": info,
    }))
}
