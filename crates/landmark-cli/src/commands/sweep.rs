//! `landmark eval --table 1|2`: the evaluations of a table of the paper, for the checkpoints that there are.
//!
//! Results are kept in `results.json` of the output folder, written after each row, so that a sweep that was
//! stopped goes on where it stopped. An entry counts only for the very evaluation that it came from: the same
//! checkpoint file, stream and settings; anything else is measured anew. Rejected: one results file beside each
//! checkpoint, which a folder shared read-only does not allow.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use landmark_formats::atomic::write_atomic;
use landmark_model::sweep::{self, Dataset, Measured, Method, PaperTable, Results, Row};
use serde::{Deserialize, Serialize};

use super::eval::{self, EvalSettings, Stream};
use crate::args::eval::EvalArgs;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::evaluation;
use crate::report::Report;
use crate::settings::Settings;

/// Name of the file with the results.
const RESULTS: &str = "results.json";

/// More than all rows of all tables take.
const LARGEST_RESULTS: u64 = 16 << 20;

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
            return Err(Error::flag("--table", "its flags are not those of an evaluation", ""));
        };
        let given = &args.given;
        flags.given.batch_size = given.batch_size.or(flags.given.batch_size);
        flags.given.eval_sample_size = given.eval_sample_size.or(flags.given.eval_sample_size);
        flags.given.mem_cache_freq = given.mem_cache_freq.or(flags.given.mem_cache_freq);
        flags.given.seed = given.seed;
        flags.given.device = given.device.clone();
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

/// What was measured, and of what, by the name of the row.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
struct Ledger(BTreeMap<String, Entry>);

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    measured: Measured,
    of: Identity,
}

/// All that decides a result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Identity {
    checkpoint: FileIdentity,
    data: FileIdentity,
    settings: Settings,
}

/// Which file, and whether it is still the one that it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct FileIdentity {
    path: PathBuf,
    bytes: u64,
    /// Milliseconds since 1970.
    modified: u64,
}

impl FileIdentity {
    fn of(path: &Path) -> Result<FileIdentity> {
        let found = std::fs::metadata(path).map_err(|error| Error::io(path, error))?;
        let modified = found.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let modified = modified.map_or(0, |time| time.as_millis() as u64);
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        Ok(FileIdentity { path, bytes: found.len(), modified })
    }
}

impl Identity {
    fn of(checkpoint: &Checkpoint, settings: &EvalSettings) -> Result<Identity> {
        let (Stream::File(data) | Stream::Folder(data)) = &settings.stream;
        Ok(Identity {
            checkpoint: FileIdentity::of(checkpoint.path())?,
            data: FileIdentity::of(data)?,
            settings: evaluation::echoed(&settings.run),
        })
    }
}

impl Ledger {
    fn load(path: &Path) -> Result<Ledger> {
        let refuse = |reason: String| Error::Input {
            path: path.to_owned(),
            reason,
            help: "it is no file of results: give another --output, or delete it to begin anew".to_owned(),
        };
        match std::fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Ledger::default()),
            Err(error) => return Err(Error::io(path, error)),
            Ok(found) if found.len() > LARGEST_RESULTS => return Err(refuse("is too long".to_owned())),
            Ok(_) => {}
        }
        let bytes = std::fs::read(path).map_err(|error| Error::io(path, error))?;
        serde_json::from_slice(&bytes).map_err(|error| refuse(format!("cannot be understood: {error}")))
    }

    fn save(&self, path: &Path) -> Result<()> {
        Ok(write_atomic(path, |writer| {
            serde_json::to_writer_pretty(writer, self).map_err(std::io::Error::from)
        })?)
    }
}

/// Evaluates the rows of a table that have a checkpoint and were not evaluated yet, and shows the table.
///
/// # Errors
/// If the flags cannot be followed, or a row cannot be evaluated; what was measured before stays saved.
pub fn run(args: &EvalArgs, table: u8, report: &Report) -> Result<()> {
    let sweep = sweep_settings(args, table)?;
    let path = sweep.output.join(RESULTS);
    let mut ledger = Ledger::load(&path)?;
    let mut results = Results::default();
    // Every row is resolved before the first is evaluated: mistakes shall not show after hours.
    let mut rows = Vec::new();
    for row in &sweep.rows {
        let Some(folder) = sweep.checkpoint(row) else { continue };
        let checkpoint = Checkpoint::open(folder)?;
        let settings = eval::settings(&sweep.flags(row, args)?, checkpoint.settings())?;
        let identity = Identity::of(&checkpoint, &settings)?;
        rows.push((row, settings, identity));
    }
    std::fs::create_dir_all(&sweep.output).map_err(|error| Error::io(&sweep.output, error))?;
    let count = rows.len();
    for (index, (row, settings, identity)) in rows.into_iter().enumerate() {
        if let Some(entry) = ledger.0.get(&row.name).filter(|entry| entry.of == identity) {
            report.log(format!("{}/{count} {}: measured before", index + 1, row.name));
            results.0.insert(row.name.clone(), entry.measured.clone());
            continue;
        }
        report.log(format!("{}/{count} {}", index + 1, row.name));
        let checkpoint = Checkpoint::open(&identity.checkpoint.path)?;
        let outcome = evaluation::run(&checkpoint, &settings, report)?;
        let measured = Measured {
            val_loss: outcome.val_loss,
            val_perplexity: outcome.val_perplexity,
            tokens_per_second: outcome.tokens_per_second,
        };
        results.0.insert(row.name.clone(), measured.clone());
        ledger.0.insert(row.name.clone(), Entry { measured, of: identity });
        ledger.save(&path)?;
    }
    let markdown = sweep::to_markdown(&sweep.rows, &results);
    let json = sweep::to_json(&sweep.rows, &results);
    for (ending, text) in [
        ("md", markdown.clone()),
        ("csv", sweep::to_csv(&sweep.rows, &results)),
        ("json", serde_json::to_string_pretty(&json).unwrap_or_default() + "\n"),
    ] {
        let file = sweep.output.join(format!("table_{}.{ending}", u8::from(sweep.table)));
        write_atomic(&file, |writer| std::io::Write::write_all(writer, text.as_bytes()))?;
        report.log(format!("wrote {}", file.display()));
    }
    report.json(&serde_json::json!({"table": sweep.table, "rows": json}))?;
    report.print(markdown.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::values::LmCache;
    use crate::args::{Command, parse};

    fn eval(flags: &str) -> EvalArgs {
        let line = format!("landmark eval {flags}");
        let Command::Eval(eval) = parse(line.split_whitespace()).unwrap().command else { panic!() };
        *eval
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
        let stored = serde_json::json!({"model": "landmark", "n_embd": 64, "n_head": 4, "vocab_size": 128,
            "landmark_id": 100});
        let stored = stored.as_object().unwrap();
        let first = eval::settings(&sweep.flags(possible[0], &args).unwrap(), stored).unwrap();
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
}
