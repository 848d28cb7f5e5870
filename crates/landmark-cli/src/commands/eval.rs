//! `landmark eval`: flags and a checkpoint's own settings to the settings of one evaluation. Tables are in
//! [`super::sweep`], the evaluation itself in [`crate::evaluation`].

use std::path::{Path, PathBuf};

use landmark_model::table::{Format, Table};

use super::sweep;
use crate::args::eval::EvalArgs;
use crate::args::values::LmCache;
use crate::checkpoint::Checkpoint;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::evaluation::{self, Outcome};
use crate::report::{Report, scaled};
use crate::settings::{RunArgs, Settings, check};

/// What is evaluated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stream {
    /// This file of 16-bit tokens.
    File(PathBuf),
    /// The validation stream in this folder.
    Folder(PathBuf),
}

/// One evaluation, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalSettings {
    /// All settings.
    pub run: RunArgs,
    /// What is evaluated.
    pub stream: Stream,
    /// Where to compute.
    pub device: Device,
    /// What the user should know.
    pub remarks: Vec<String>,
}

/// Resolves the flags of one evaluation of a checkpoint that was trained with the settings `stored`. Reads
/// nothing.
///
/// # Errors
/// Names the flag that cannot be followed.
pub fn settings(args: &EvalArgs, stored: &Settings) -> Result<EvalSettings> {
    let mut run = RunArgs::resolve(stored, &args.given);
    // A stream that is given is taken as it is; what was put into the training data is not put into it
    // unasked.
    if !args.data.is_empty() && !args.given.has("mem_freq") {
        run.mem_freq = None;
    }
    let mut remarks = Vec::new();
    let names_cache = args.given.lm_cache.is_some_and(|cache| cache != LmCache::None);
    if names_cache && args.given.use_cache.is_none() && !run.use_cache {
        run.use_cache = true;
        remarks.push(
            "--lm-cache is given, so the cache is used (--use-cache false evaluates without)".to_owned(),
        );
    }
    if run.use_cache && run.lm_cache == LmCache::Mem && run.mem_freq.is_some() {
        leave_landmarks_to_the_memory(&mut run, args)?;
    }
    check::evaluation(&run)?;
    let device = run.device.select()?;
    let stream = match &args.data[..] {
        [] => Stream::Folder(super::data_folder(&mut run.dataset, args.data_dir.as_ref())?),
        [file] => Stream::File(PathBuf::from(file)),
        _ => return Err(Error::flag("--data", "one stream is evaluated at a time", "give one file")),
    };
    if run.lm_cache != LmCache::None && !run.use_cache {
        remarks.push(
            "--lm-cache is not used without --use-cache: every chunk is evaluated by itself".to_owned(),
        );
    }
    Ok(EvalSettings { run, stream, device, remarks })
}

/// The memory puts landmarks in as its blocks fill up; a stream that holds them already would have them twice.
fn leave_landmarks_to_the_memory(run: &mut RunArgs, args: &EvalArgs) -> Result<()> {
    if args.given.has("mem_freq") {
        return Err(Error::flag(
            "--mem-freq",
            "the mem cache puts landmarks in itself (--mem-cache-freq), so the stream must not hold them",
            "give --mem-freq None, or leave it out",
        ));
    }
    run.mem_freq = None;
    Ok(())
}

/// Evaluates one checkpoint, or a table of the paper.
///
/// # Errors
/// If the flags cannot be followed, the checkpoint cannot be read, or the evaluation fails.
pub fn run(args: &EvalArgs, report: &Report) -> Result<()> {
    if let Some(table) = args.table {
        return sweep::run(args, table, report);
    }
    let [checkpoint] = &args.checkpoint[..] else {
        let help = "give one, or --table with NAME=PATH for each";
        return Err(Error::flag("--checkpoint", "one checkpoint is evaluated at a time", help));
    };
    let checkpoint = Checkpoint::open(Path::new(checkpoint))?;
    let settings = settings(args, checkpoint.settings())?;
    for remark in &settings.remarks {
        report.warn(remark);
    }
    let outcome = evaluation::run(&checkpoint, &settings, report)?;
    report.json(&outcome)?;
    report.print(for_people(&outcome).trim_end())
}

/// A result as a table.
fn for_people(outcome: &Outcome) -> String {
    let mut table = Table::new(["", "value"]);
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    row("loss (nats a token)", format!("{:.4}", outcome.val_loss));
    row("perplexity", format!("{:.3}", outcome.val_perplexity));
    row("accuracy", format!("{:.2} %", 100.0 * outcome.val_acc));
    row("tokens", outcome.tokens.to_string());
    row("tokens/s", scaled(outcome.tokens_per_second));
    if let Some(bytes) = outcome.peak_memory_bytes {
        row("peak memory", format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)));
    }
    let mut text = table.render(Format::Text);
    if outcome.chunk_losses.len() > 1 {
        let mut chunks = Table::new(["chunk", "loss"]);
        for (index, loss) in outcome.chunk_losses.iter().enumerate() {
            chunks.row([(index + 1).to_string(), format!("{loss:.4}")]);
        }
        text = text + "\n" + &chunks.render(Format::Text);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::values::Selection;
    use crate::args::{Command, parse};

    fn eval(flags: &str) -> EvalArgs {
        let line = format!("landmark eval {flags}");
        let Command::Eval(eval) = parse(line.split_whitespace()).unwrap().command else { panic!() };
        *eval
    }

    fn stored() -> Settings {
        let stored = serde_json::json!({"mem_freq": 7, "vocab_size": 128, "landmark_id": 100, "model": "landmark",
            "n_embd": 64, "n_head": 4, "n_layer": 2, "sequence_length": 64, "mem_cache_size": 6, "mem_cache_freq": 7,
            "cache_topk": 2, "dataset": "pg19"});
        stored.as_object().unwrap().clone()
    }

    /// A line of the authors' command generator, against a checkpoint's own settings.
    #[test]
    fn flags_beat_what_the_checkpoint_was_trained_with() {
        let flags = "--checkpoint a --distributed_backend None --lm_cache mem --mem_cache_size 40 --mem_cache_freq 7 \
                     --mem_freq None --eval_seq_length 2048 --cache_selection_method max_over_heads --no_compile \
                     --batch_size 16 --mid_length 250 --positional_encoder rotary --pos_jump_on_mem 0 --use_cache";
        let settings = settings(&eval(flags), &stored()).unwrap();
        let run = settings.run;
        assert_eq!((run.mem_freq, run.mem_cache_size, run.cache_topk, run.n_embd), (None, Some(40), 2, 64));
        assert_eq!(run.cache_selection_method, Selection::MaxOverHeads);
        assert_eq!(settings.stream, Stream::Folder("./data/pg19".into()));
        assert!(settings.remarks.is_empty());
    }

    #[test]
    fn a_given_stream_is_taken_as_it_is() {
        let plain = settings(&eval("--checkpoint a --data val.bin"), &stored()).unwrap();
        assert_eq!((plain.run.mem_freq, plain.stream), (None, Stream::File("val.bin".into())));
        let laden = settings(&eval("--checkpoint a --data val.bin --mem_freq 7"), &stored()).unwrap();
        assert_eq!(laden.run.mem_freq, Some(7));
        let trained = settings(&eval("--checkpoint a"), &stored()).unwrap();
        assert_eq!(trained.run.mem_freq, Some(7));
    }

    #[test]
    fn a_named_cache_is_used_unless_refused() {
        let of =
            |flags: &str| settings(&eval(&format!("--checkpoint a --data b {flags}")), &stored()).unwrap();
        let named = of("--lm_cache mem");
        assert!(named.run.use_cache && named.remarks[0].contains("the cache is used"), "{:?}", named.remarks);
        let unused = of("--lm_cache mem --use_cache false");
        assert!(!unused.run.use_cache && unused.remarks[0].contains("is not used"), "{:?}", unused.remarks);
        assert!(of("").remarks.is_empty() && of("--lm_cache none").remarks.is_empty());
    }

    /// What was in the training data is not put in a second time; what is asked for twice is refused.
    #[test]
    fn landmarks_are_put_in_once() {
        let of = |flags: &str| settings(&eval(&format!("--checkpoint a --lm_cache mem {flags}")), &stored());
        assert_eq!(of("").unwrap().run.mem_freq, None);
        assert_eq!(of("--use_cache false").unwrap().run.mem_freq, Some(7));
        let error = of("--mem_freq 7").unwrap_err().to_string();
        assert!(error.starts_with("--mem-freq: "), "{error}");
    }
}
