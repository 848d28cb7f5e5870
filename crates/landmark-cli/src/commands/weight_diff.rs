//! `landmark weight-diff`: fine-tuned weights as their difference from weights that may not be passed on.
//!
//! `tuned = raw + diff` in float32, the raw vocabulary grown by `[PAD]` and `<landmark>` whose rows begin as the mean of the
//! others (spec section 5). Everything streams: a piece of one tensor of each model is in memory at a time. The sum of
//! all tuned weights tells whether the right raw model was used.

use std::cell::Cell;
use std::path::Path;

use landmark_formats::huggingface::{ModelWriter, SHARD_BYTES, WeightFolder, read_bounded};
use landmark_formats::safetensors::TensorSource;
use landmark_formats::tensor::{DType, float_bytes};
use landmark_model::config::ModelConfig;
use landmark_model::huggingface::{self, Fields};
use landmark_model::preset::Preset;
use serde::Serialize;

use crate::args::convert::WeightType;
use crate::args::weight_diff::{Task, WeightDiffArgs};
use crate::commands::convert::with_type;
use crate::error::{Error, Result};
use crate::hub::{self, COMPANIONS};
use crate::huggingface::read_config;
use crate::machine::peak_memory;
use crate::opened;
use crate::report::Report;

/// Elements of a tensor in memory at a time.
const PIECE: usize = 1 << 20;

/// The file with the sum of all tuned weights, beside a difference.
const CHECKSUM: &str = "checksum_psum.txt";

/// How far the sum may be off (the released program's tolerance).
const TOLERANCE: f64 = 1e-2;

/// What was done.
#[derive(Clone, Debug, Serialize)]
struct Outcome {
    /// Folder written, if one was.
    path: Option<String>,
    tensors: usize,
    parameters: u64,
    /// Sum of all tuned weights.
    checksum: f64,
    /// What it had to be, if that is known.
    expected_checksum: Option<f64>,
    peak_memory_bytes: Option<u64>,
}

/// Makes or applies a difference.
///
/// # Errors
/// If a folder cannot be read or does not fit the other, the sum is wrong, or nothing can be written.
pub fn run(args: &WeightDiffArgs, report: &Report) -> Result<()> {
    match (args.task, &args.path_tuned) {
        (Task::Make, Some(tuned)) => make(args, tuned, report),
        (Task::Make, None) => Err(Error::flag("--path_tuned", "no fine-tuned model is given", "")),
        (Task::Recover, _) => recover(args, report),
    }
}

/// A folder's configuration and weights.
struct Side {
    fields: Fields,
    config: ModelConfig,
    weights: WeightFolder,
}

impl Side {
    fn open(path: &Path) -> Result<Side> {
        let path = &*hub::resolve(path)?;
        let (fields, config) = read_config(&path.into())?;
        Ok(Side { fields, config, weights: WeightFolder::open(path)? })
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.weights.names().filter(|name| !name.ends_with("rotary_emb.inv_freq"))
    }
}

/// A tensor of the raw model, read as if its vocabulary had grown.
struct Grown<'a> {
    weights: &'a WeightFolder,
    name: &'a str,
    /// Elements that are there.
    old: usize,
    /// The row behind them, again and again; empty if nothing is missing.
    mean: Vec<f32>,
}

impl<'a> Grown<'a> {
    /// Checks that the tensor fits `shape`, that of the other model.
    fn new(raw: &'a Side, name: &'a str, shape: &[usize]) -> Result<Grown<'a>> {
        let mixed_up = |reason: String| Error::Input {
            path: raw.weights.entry().to_owned(),
            reason,
            help: "raw model and difference have to be those of one fine-tuning: check --path_raw".to_owned(),
        };
        if !raw.weights.contains(name) {
            return Err(mixed_up(format!("tensor `{name}` is missing")));
        }
        let found = raw.weights.shape(name)?;
        let old = found.iter().product();
        let grown = Grown { weights: &raw.weights, name, old, mean: Vec::new() };
        let is_table = name.ends_with("embed_tokens.weight") || name.ends_with("lm_head.weight");
        match (&found[..], shape) {
            _ if found == shape => Ok(grown),
            (&[old, width], &[new, same]) if is_table && width == same && 0 < old && old < new => {
                Ok(Grown { mean: grown.mean(old, width)?, ..grown })
            }
            _ => {
                Err(mixed_up(format!("tensor `{name}` has shape {found:?}, the other model's has {shape:?}")))
            }
        }
    }

    /// Elements of a part.
    fn read(&self, part: std::ops::Range<usize>) -> landmark_formats::Result<Vec<f32>> {
        let known = part.start.min(self.old)..part.end.min(self.old);
        let mut values = part_of(self.weights, self.name, known)?;
        let behind =
            (part.start.max(self.old)..part.end).map(|i| self.mean[(i - self.old) % self.mean.len()]);
        values.extend(behind);
        Ok(values)
    }

    fn mean(&self, rows: usize, width: usize) -> Result<Vec<f32>> {
        let mut sums = vec![0.0_f64; width];
        let step = (PIECE / width).max(1) * width;
        for start in (0..rows * width).step_by(step) {
            let values = part_of(self.weights, self.name, start..(start + step).min(rows * width))?;
            for row in values.chunks_exact(width) {
                sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
            }
        }
        Ok(sums.into_iter().map(|sum| (sum / rows as f64) as f32).collect())
    }
}

/// Elements of a tensor, its file's pages given up at once.
fn part_of(
    weights: &WeightFolder,
    name: &str,
    part: std::ops::Range<usize>,
) -> landmark_formats::Result<Vec<f32>> {
    let tensor = weights.get(name)?;
    let piece = tensor.part(part);
    let values = piece.to_f32();
    weights.release(name, piece.data());
    Ok(values)
}

/// Every tensor of `other` with the raw one of the same name: the pieces of `combine(other, raw)`, as they are written.
/// `sum` takes the sum of the tuned weights, which `tuned(other, combined)` picks.
struct Combination<'a> {
    raw: &'a Side,
    other: &'a Side,
    combine: fn(f32, f32) -> f32,
    tuned: fn(f32, f32) -> f32,
    dtype: DType,
    sum: Cell<f64>,
    done: Cell<u64>,
}

impl<'a> Combination<'a> {
    fn sources(&'a self, progress: &'a dyn Fn(u64)) -> Result<Vec<TensorSource<'a>>> {
        let known: Vec<&str> = self.other.names().collect();
        if let Some(extra) = self.raw.names().find(|name| !known.contains(name)) {
            return Err(Error::Input {
                path: self.other.weights.entry().to_owned(),
                reason: format!("tensor `{extra}` of the raw model is missing"),
                help: "raw model and difference have to be those of one fine-tuning: check --path_raw"
                    .to_owned(),
            });
        }
        let source = |name: &'a str| -> Result<TensorSource<'a>> {
            let shape = self.other.weights.shape(name)?;
            let grown = Grown::new(self.raw, name, &shape)?;
            let numel: usize = shape.iter().product();
            let pieces = move |sink: &mut landmark_formats::safetensors::Sink<'_>| {
                for start in (0..numel).step_by(PIECE) {
                    let part = start..(start + PIECE).min(numel);
                    let mut values = part_of(&self.other.weights, name, part.clone())?;
                    let mut sum = 0.0_f64;
                    for (value, raw) in values.iter_mut().zip(grown.read(part)?) {
                        let combined = (self.combine)(*value, raw);
                        sum += f64::from((self.tuned)(*value, combined));
                        *value = combined;
                    }
                    self.sum.set(self.sum.get() + sum);
                    self.done.set(self.done.get() + values.len() as u64);
                    progress(self.done.get());
                    sink(&float_bytes(&values, self.dtype)?)?;
                }
                Ok(())
            };
            Ok(TensorSource::pieces(name, self.dtype, shape, pieces))
        };
        known.into_iter().map(source).collect()
    }
}

fn parameters(side: &Side) -> Result<u64> {
    let count = |name: &str| Ok(side.weights.shape(name)?.iter().product::<usize>() as u64);
    side.names().map(count).sum()
}

fn make(args: &WeightDiffArgs, path_tuned: &Path, report: &Report) -> Result<()> {
    let path_tuned = &*hub::resolve(path_tuned)?;
    let (raw, tuned) = (Side::open(&args.path_raw)?, Side::open(path_tuned)?);
    let combination = Combination {
        raw: &raw,
        other: &tuned,
        combine: |tuned, raw| tuned - raw,
        tuned: |tuned, _| tuned,
        dtype: DType::F32,
        sum: Cell::new(0.0),
        done: Cell::new(0),
    };
    let parameters = parameters(&tuned)?;
    let bar = report.progress("subtracting", parameters, "weights");
    let progress = |done| bar.at(done, "");
    let writer = ModelWriter::create(&args.path_diff)?;
    writer.write_weights(combination.sources(&progress)?, SHARD_BYTES)?;
    let checksum = combination.sum.get();
    writer.write(CHECKSUM, format!("{checksum:?}").as_bytes())?;
    copy(&writer, path_tuned)?;
    writer.finish(&with_type(tuned.fields.clone(), WeightType::F32))?;
    drop(bar);
    report.print(format!(
        "{}: {parameters} weights, sum of the tuned ones {checksum}",
        args.path_diff.display()
    ))?;
    report.json(&Outcome {
        path: Some(args.path_diff.display().to_string()),
        tensors: tuned.names().count(),
        parameters,
        checksum,
        expected_checksum: None,
        peak_memory_bytes: peak_memory(),
    })
}

fn recover(args: &WeightDiffArgs, report: &Report) -> Result<()> {
    let preset = args.preset.as_deref().map(opened::preset).transpose()?;
    let path_diff = &*hub::resolve(&args.path_diff)?;
    let (raw, diff) = (Side::open(&args.path_raw)?, Side::open(path_diff)?);
    let expected = match args.check_integrity_naively {
        true => Some(expected(path_diff, preset.as_ref())?),
        false => None,
    };
    let combination = Combination {
        raw: &raw,
        other: &diff,
        combine: |diff, raw| diff + raw,
        tuned: |_, tuned| tuned,
        dtype: args.dtype.stored(),
        sum: Cell::new(0.0),
        done: Cell::new(0),
    };
    let parameters = parameters(&diff)?;
    let bar = report.progress("recovering", parameters, "weights");
    let progress = |done| bar.at(done, "");
    let sources = combination.sources(&progress)?;
    let written = match &args.path_tuned {
        Some(path) => {
            let writer = ModelWriter::create(path)?;
            writer.write_weights(sources, SHARD_BYTES)?;
            Some((writer, path))
        }
        None => {
            for source in sources {
                source.consume()?;
            }
            None
        }
    };
    let checksum = combination.sum.get();
    if let Some(expected) = expected {
        check(checksum, expected, &diff.config, preset.is_some(), path_diff)?;
    }
    drop(bar);
    if let Some((writer, path)) = written {
        copy(&writer, path_diff)?;
        writer.finish(&with_type(recovered_fields(&diff, preset.as_ref(), path_diff)?, args.dtype))?;
        report.log(format!("wrote {}", path.display()));
    }
    let verdict = match expected {
        Some(expected) => format!("as it has to be ({expected})"),
        None => "not checked".to_owned(),
    };
    report.print(format!("{parameters} weights recovered, their sum {checksum}: {verdict}"))?;
    report.json(&Outcome {
        path: args.path_tuned.as_ref().map(|path| path.display().to_string()),
        tensors: diff.names().count(),
        parameters,
        checksum,
        expected_checksum: expected,
        peak_memory_bytes: peak_memory(),
    })
}

/// The sum that the tuned weights must have.
fn expected(diff: &Path, preset: Option<&Preset>) -> Result<f64> {
    if let Some(preset) = preset {
        return Ok(preset.checksum);
    }
    let path = diff.join(CHECKSUM);
    if !path.is_file() {
        return Err(Error::Input {
            path: diff.to_owned(),
            reason: format!("has no {CHECKSUM}"),
            help: "for the weights published in 2023 give --preset paper; or --check_integrity_naively False"
                .to_owned(),
        });
    }
    let text = String::from_utf8_lossy(&read_bounded(&path, 1 << 10)?).trim().to_owned();
    text.parse().ok().filter(|sum: &f64| sum.is_finite()).ok_or_else(|| Error::Input {
        path,
        reason: format!("holds {text:?}, no number"),
        help: "copy or download it again, or give --check_integrity_naively False".to_owned(),
    })
}

/// Compares the sums. When the published weights were summed, `transformers` counted the rotary frequencies of every layer
/// among the weights; later it did not. For the preset either sum is right.
fn check(found: f64, expected: f64, config: &ModelConfig, is_preset: bool, diff: &Path) -> Result<()> {
    let turned: f64 = config.rotary.frequencies(config.head_dim).iter().map(|&x| f64::from(x)).sum::<f64>()
        * config.layers as f64;
    let is_right = (found - expected).abs() <= TOLERANCE;
    let is_right_with_frequencies = is_preset && (found + turned - expected).abs() <= TOLERANCE;
    if is_right || is_right_with_frequencies {
        return Ok(());
    }
    Err(Error::Input {
        path: diff.to_owned(),
        reason: format!("the sum of the recovered weights is {found}, it has to be {expected}"),
        help: "the raw model is another one, or a file is damaged; nothing was written. \
            --check_integrity_naively False recovers without the check"
            .to_owned(),
    })
}

/// The configuration of recovered weights: that of the difference, with the landmark fields of the preset.
fn recovered_fields(diff: &Side, preset: Option<&Preset>, path: &Path) -> Result<Fields> {
    let Some(preset) = preset else { return Ok(diff.fields.clone()) };
    let wrong = |reason: String| Error::Input { path: path.to_owned(), reason, help: String::new() };
    let config = preset.apply(diff.config.clone()).map_err(|error| wrong(error.to_string()))?;
    huggingface::to_fields(&config, Some(&diff.fields)).map_err(|error| wrong(error.to_string()))
}

fn copy(writer: &ModelWriter, from: &Path) -> Result<()> {
    for name in COMPANIONS.into_iter().chain(["LICENSE"]) {
        if from.join(name).is_file() {
            writer.copy(&from.join(name), name)?;
        }
    }
    Ok(())
}
