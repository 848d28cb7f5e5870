//! `landmark eval`: flags and a checkpoint's own settings to settings.

use std::path::{Path, PathBuf};

use landmark_model::sweep::{self, Dataset, Method, PaperTable, Row};

use crate::args::eval::EvalArgs;
use crate::args::values::LmCache;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::report::Report;
use crate::settings::{RunArgs, Settings, check, summary};

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
    check::evaluation(&run)?;
    let device = run.device.select()?;
    let stream = match &args.data[..] {
        [] => Stream::Folder(super::data_folder(&mut run.dataset, args.data_dir.as_ref())?),
        [file] => Stream::File(PathBuf::from(file)),
        _ => return Err(Error::flag("--data", "one stream is evaluated at a time", "give one file")),
    };
    let mut remarks = Vec::new();
    if run.lm_cache != LmCache::None && !run.use_cache {
        remarks.push(
            "--lm-cache is not used without --use-cache: every chunk is evaluated by itself".to_owned(),
        );
    }
    Ok(EvalSettings { run, stream, device, remarks })
}

/// The folder of a checkpoint, which holds its summary.json, and the file in it, if one is given.
///
/// # Errors
/// If there is no such file or folder.
pub fn locate(checkpoint: &Path) -> Result<(PathBuf, Option<PathBuf>)> {
    let kind = std::fs::metadata(checkpoint).map_err(|error| Error::io(checkpoint, error))?;
    if kind.is_dir() {
        return Ok((checkpoint.to_owned(), None));
    }
    let folder = checkpoint.parent().filter(|folder| !folder.as_os_str().is_empty());
    Ok((folder.unwrap_or(Path::new(".")).to_owned(), Some(checkpoint.to_owned())))
}

/// The names by which `--table` knows checkpoints.
const TABLE_CHECKPOINTS: [(&str, Dataset, Method); 5] = [
    ("pg19_landmark", Dataset::Pg19, Method::Landmark),
    ("pg19_baseline", Dataset::Pg19, Method::Plain),
    ("pg19_xl", Dataset::Pg19, Method::Xl),
    ("arxiv_landmark", Dataset::ArxivMath, Method::Landmark),
    ("arxiv_baseline", Dataset::ArxivMath, Method::Plain),
];

/// The released flags that a table leaves open, and those that mean nothing to an evaluation.
const LEFT_OPEN: [&str; 11] = [
    "batch_size",
    "eval_sample_size",
    "mem_cache_freq",
    "seed",
    "device",
    "dtype",
    "landmark_id",
    "no_compile",
    "distributed_backend",
    "config_format",
    "max_groups_for_softmax",
];

/// A sweep over a table of the paper, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct SweepSettings {
    /// The table.
    pub table: PaperTable,
    /// All of its rows, those without a checkpoint included.
    pub rows: Vec<Row>,
    /// The checkpoints there are.
    pub checkpoints: Vec<(Dataset, Method, PathBuf)>,
    /// Streams given with --data.
    pub streams: Vec<(Dataset, PathBuf)>,
    /// Where results are kept.
    pub output: PathBuf,
}

impl SweepSettings {
    /// The checkpoint for a row.
    pub fn checkpoint(&self, row: &Row) -> Option<&Path> {
        let matching = self.checkpoints.iter().find(|entry| (entry.0, entry.1) == (row.dataset, row.method));
        matching.map(|entry| entry.2.as_path())
    }

    /// The flags of the evaluation of a row: those of the table, under those given that the table leaves
    /// open.
    pub fn flags(&self, row: &Row, args: &EvalArgs) -> Result<EvalArgs> {
        let table = &row.settings;
        let stream = self.streams.iter().find(|stream| stream.0 == row.dataset);
        let mut line = ["landmark", "eval", "--mem-freq=None", "--checkpoint=-"].map(String::from).to_vec();
        let mut set = |flag: &str, value: String| line.extend([format!("--{flag}={value}")]);
        set("dataset", row.dataset.name().to_owned());
        set("eval-seq-length", table.eval_seq_length.to_string());
        set("mid-length", table.mid_length.to_string());
        set("lm-cache", table.lm_cache.clone());
        set("use-cache", table.use_cache.to_string());
        set("cache-selection-method", table.cache_selection_method.name().to_owned());
        set("positional-encoder", "rotary".to_owned());
        set("pos-jump-on-mem", "0".to_owned());
        let optional = |value: Option<usize>| value.map_or("None".to_owned(), |value| value.to_string());
        set("mem-cache-size", optional(table.mem_cache_size));
        set("mem-cache-freq", optional(table.mem_cache_freq));
        set("eval-sample-size", optional(table.eval_sample_size));
        set("batch-size", table.batch_size.to_string());
        set("cache-topk", table.cache_topk.unwrap_or(1).to_string());
        let crate::args::Command::Eval(mut flags) = crate::args::parse(line)?.command else {
            return Err(Error::NotWired("eval"));
        };
        let given = &args.given;
        flags.given.batch_size = given.batch_size.or(flags.given.batch_size);
        flags.given.eval_sample_size = given.eval_sample_size.or(flags.given.eval_sample_size);
        flags.given.mem_cache_freq = given.mem_cache_freq.or(flags.given.mem_cache_freq);
        flags.given.seed = given.seed;
        flags.given.device = given.device;
        flags.given.dtype = given.dtype;
        flags.given.landmark_id = given.landmark_id;
        flags.checkpoint =
            self.checkpoint(row).map(|path| path.to_string_lossy().into_owned()).into_iter().collect();
        flags.data = stream.map(|stream| stream.1.to_string_lossy().into_owned()).into_iter().collect();
        flags.common = args.common.clone();
        Ok(*flags)
    }
}

/// Resolves the flags of a sweep. Reads nothing.
///
/// # Errors
/// Names the flag that cannot be followed.
pub fn sweep_settings(args: &EvalArgs, table: u8) -> Result<SweepSettings> {
    let table = PaperTable::try_from(table).map_err(|reason| Error::flag("--table", reason, ""))?;
    refuse_beside_table(args)?;
    let rows = sweep::rows(table);
    let mut checkpoints: Vec<(Dataset, Method, PathBuf)> = Vec::new();
    for entry in &args.checkpoint {
        let named = entry.split_once('=').and_then(|(name, path)| {
            let known = TABLE_CHECKPOINTS.iter().find(|known| known.0 == name)?;
            (!path.is_empty()).then(|| (known.1, known.2, PathBuf::from(path)))
        });
        let named = named.ok_or_else(|| {
            let names = TABLE_CHECKPOINTS.map(|known| known.0).join(", ");
            let help = format!("with --table give NAME=PATH, NAME being one of {names}");
            Error::flag("--checkpoint", format!("{entry:?} does not say which checkpoint it is"), help)
        })?;
        if checkpoints.iter().any(|other| (other.0, other.1) == (named.0, named.1)) {
            return Err(Error::flag("--checkpoint", format!("{entry:?} is the second of its name"), ""));
        }
        checkpoints.push(named);
    }
    let mut streams = Vec::new();
    for entry in &args.data {
        let named = entry.split_once('=').and_then(|(name, path)| {
            let dataset =
                [Dataset::Pg19, Dataset::ArxivMath].into_iter().find(|known| known.name() == name)?;
            (!path.is_empty()).then(|| (dataset, PathBuf::from(path)))
        });
        let help = "with --table give pg19=FILE or arxivmath=FILE";
        streams.push(named.ok_or_else(|| {
            Error::flag("--data", format!("{entry:?} does not say which data set it is"), help)
        })?);
    }
    Ok(SweepSettings { table, rows, checkpoints, streams, output: args.output.clone() })
}

/// Rows that differ from the paper's in more than their batches would not be rows of the paper.
fn refuse_beside_table(args: &EvalArgs) -> Result<()> {
    let given = args.given.names();
    let closed = given.iter().map(String::as_str).find(|name| !LEFT_OPEN.contains(name));
    match closed.or(args.data_dir.is_some().then_some("data_dir")) {
        None => Ok(()),
        Some(name) => {
            let flag = format!("--{}", name.replace('_', "-"));
            let reason = "cannot be combined with --table, whose rows and checkpoints decide it";
            Err(Error::flag(&flag, reason, "leave it out; --data NAME=FILE gives a stream"))
        }
    }
}

/// Evaluates one checkpoint, or a table of the paper.
///
/// # Errors
/// If the flags cannot be followed, the checkpoint cannot be read, or the evaluation fails.
pub fn run(args: &EvalArgs, report: &Report) -> Result<()> {
    if let Some(table) = args.table {
        sweep_settings(args, table)?;
        return Err(Error::NotWired("eval --table"));
    }
    let [checkpoint] = &args.checkpoint[..] else {
        let help = "give one, or --table with NAME=PATH for each";
        return Err(Error::flag("--checkpoint", "one checkpoint is evaluated at a time", help));
    };
    let (folder, _file) = locate(Path::new(checkpoint))?;
    let stored = summary::read(&folder.join(summary::FILE_NAME))?;
    let settings = settings(args, &stored)?;
    for remark in &settings.remarks {
        report.warn(remark);
    }
    Err(Error::NotWired("eval"))
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
    fn an_unused_cache_is_remarked_upon() {
        let unused = settings(&eval("--checkpoint a --data b --lm_cache mem"), &stored()).unwrap();
        assert_eq!(unused.remarks.len(), 1);
    }

    #[test]
    fn a_table_becomes_evaluations() {
        let args = eval(
            "--table 1 --checkpoint pg19_landmark=a --checkpoint arxiv_baseline=b --data pg19=v.bin \
             --batch_size 2 --mem_cache_freq 7",
        );
        let sweep = sweep_settings(&args, 1).unwrap();
        let possible: Vec<&Row> = sweep.rows.iter().filter(|row| sweep.checkpoint(row).is_some()).collect();
        assert_eq!(possible.len(), 9 + 2);
        let first = settings(&sweep.flags(possible[0], &args).unwrap(), &stored()).unwrap();
        let run = first.run;
        assert_eq!((run.eval_seq_length, run.mid_length, run.mem_cache_size), (512, 250, Some(10)));
        assert_eq!((run.batch_size, run.mem_cache_freq, run.cache_topk), (2, Some(7), 2));
        assert!(run.use_cache && run.lm_cache == LmCache::Mem);
        assert_eq!(first.stream, Stream::File("v.bin".into()));
        let plain = sweep.flags(possible[9], &args).unwrap();
        assert_eq!(plain.given.eval_sample_size.unwrap().0, Some(4_000_000));
        assert_eq!((plain.given.use_cache, plain.given.lm_cache), (Some(false), Some(LmCache::None)));
    }

    #[test]
    fn tables_refuse_what_they_set_and_what_they_cannot_place() {
        for (flags, flag) in [
            ("--checkpoint pg19_landmark=a --mid_length 3", "--mid-length"),
            ("--checkpoint pg19_landmark=a --n_embd 64", "--n-embd"),
            ("--checkpoint pg19_landmark=a --data-dir d", "--data-dir"),
            ("--checkpoint a", "--checkpoint"),
            ("--checkpoint pg19_landmark=", "--checkpoint"),
            ("--checkpoint pg19_xl=a --checkpoint pg19_xl=b", "--checkpoint"),
            ("--checkpoint pg19_xl=a --data v.bin", "--data"),
        ] {
            let error = sweep_settings(&eval(&format!("--table 2 {flags}")), 2).expect_err(flags);
            assert!(error.to_string().starts_with(&format!("{flag}: ")), "{error}");
        }
    }

    #[test]
    fn a_checkpoint_is_a_file_or_a_folder() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().to_owned();
        let file = folder.join("ckpt.pt");
        std::fs::write(&file, "").unwrap();
        assert_eq!(locate(&folder).unwrap(), (folder.clone(), None));
        assert_eq!(locate(&file).unwrap(), (folder.clone(), Some(file.clone())));
        assert!(locate(&folder.join("none")).is_err());
    }
}
