//! `landmark quantize`: a LLaMA's matrices in blocks of 8 or 4 bits.
//!
//! Everything is checked before anything is written. Matrices pass through one by one, each twice, for its codes and for
//! its scales lie at different places of the file; rounding is fast, and keeping either would be keeping a model in memory.

use std::cell::Cell;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

use landmark_core::Layout;
use landmark_core::quantize::{Bits, is_matrix};
use landmark_formats::huggingface::ModelWriter;
use landmark_formats::quantized;
use landmark_formats::safetensors::TensorSource;
use landmark_formats::tensor::{DType, float_bytes};
use landmark_model::huggingface;
use landmark_model::weights::{Parameter, Types, Weights};
use serde::Serialize;

use super::convert::{copy_companions, files_of, refuse_occupied};
use crate::args::quantize::QuantizeArgs;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::huggingface::ModelFolder;
use crate::report::{Progress, Report, scaled};

/// What was written.
#[derive(Debug, Serialize)]
struct Quantized {
    input: PathBuf,
    output: PathBuf,
    bits: u32,
    parameters: u64,
    /// Of these, how many are in blocks.
    quantized: u64,
    /// Of the weights, scales included.
    bytes: u64,
    /// Root of the mean square of the rounding over that of the matrices.
    relative_error: f64,
    files: Vec<String>,
}

/// Sums of squares: of the rounding, and of what was rounded.
#[derive(Debug, Default)]
struct Squares {
    errors: Cell<f64>,
    values: Cell<f64>,
}

impl Squares {
    fn add(&self, values: &[f32], bits: Bits) {
        let rounded =
            landmark_core::quantize::dequantize(&landmark_core::quantize::quantize(values, bits), bits);
        let square = |sum: f64, x: f64| sum + x * x;
        let errors = values.iter().zip(&rounded).map(|(&x, &y)| f64::from(x) - f64::from(y));
        self.errors.set(errors.fold(self.errors.get(), square));
        self.values.set(values.iter().map(|&x| f64::from(x)).fold(self.values.get(), square));
    }

    fn relative_error(&self) -> f64 {
        (self.errors.get() / self.values.get().max(f64::MIN_POSITIVE)).sqrt()
    }
}

/// Quantises a model.
///
/// # Errors
/// If it is no whole model in Hugging Face's layout, or is quantised already; if the result exists or cannot be written.
pub fn run(args: &QuantizeArgs, report: &Report) -> Result<()> {
    args.device.device.check()?;
    let bits = Bits::from(args.bits);
    refuse_occupied(&args.output)?;
    let checkpoint = Checkpoint::open(&args.input)?;
    let folder = folder_of(&checkpoint, &args.input)?;
    let parameters = Weights::lay_out(folder.config(), None, Types::F32, &mut Layout::new()).parameters;
    checkpoint.check(folder.config(), &parameters)?;
    let total: usize = parameters.iter().map(Parameter::numel).sum();
    let in_blocks = |p: &&Parameter| is_matrix(&p.name, &p.shape);
    let matrices: usize = parameters.iter().filter(in_blocks).map(Parameter::numel).sum();
    if matrices == 0 {
        return Err(Error::Input {
            path: args.input.clone(),
            reason: "has no matrix whose rows are whole blocks of 32 numbers".to_owned(),
            help: "such a model is kept as it is; landmark convert --dtype f16 halves it".to_owned(),
        });
    }
    let work = Work {
        checkpoint: &checkpoint,
        bits,
        squares: Squares::default(),
        progress: report.progress("quantising", total as u64, "weights"),
        measured: Cell::default(),
        done: Cell::new(0),
    };
    let mut sources = Vec::new();
    for parameter in &parameters {
        sources.extend(work.sources(parameter)?);
    }
    let bytes = sources.iter().map(TensorSource::byte_count).sum();
    let writer = ModelWriter::create(&args.output)?;
    writer.write_quantized(sources, bits)?;
    copy_companions(&writer, folder.files(), None)?;
    let number = bits.count();
    writer.finish(&huggingface::quantized(folder.fields().clone(), number))?;
    let relative_error = work.squares.relative_error();
    drop(work);
    report.print(format!(
        "{}: {} weights in {}, {number} bits a number in {:.1} % of them; rounding is {:.2} % of their size",
        args.output.display(),
        scaled(total as f64),
        bytesize::ByteSize(bytes),
        100.0 * matrices as f64 / total as f64,
        100.0 * relative_error
    ))?;
    report.json(&Quantized {
        input: checkpoint.path().to_owned(),
        output: args.output.clone(),
        bits: number,
        parameters: total as u64,
        quantized: matrices as u64,
        bytes,
        relative_error,
        files: files_of(&args.output)?,
    })
}

/// The folder of a checkpoint that can be quantised.
fn folder_of<'a>(checkpoint: &'a Checkpoint, input: &Path) -> Result<&'a ModelFolder> {
    let refused = |reason: &str, help: &str| Error::Input {
        path: input.to_owned(),
        reason: reason.into(),
        help: help.into(),
    };
    let Some(folder) = checkpoint.hugging_face() else {
        let reason = "is a GPT of the released program, and blocks are for LLaMAs in Hugging Face's layout";
        return Err(refused(reason, "give a folder with config.json"));
    };
    if checkpoint.quantization().is_some() {
        let reason = "is quantised already, and rounding twice would lose more than rounding once";
        return Err(refused(reason, "give the folder that it was made of"));
    }
    Ok(folder)
}

/// Weights on their way.
struct Work<'a> {
    checkpoint: &'a Checkpoint,
    bits: Bits,
    squares: Squares,
    progress: Progress,
    /// Matrices whose rounding has been measured: each comes by twice.
    measured: Cell<HashSet<String>>,
    done: Cell<u64>,
}

impl Work<'_> {
    /// A weight as it is to be written: codes and scales, or what it was.
    fn sources<'w>(&'w self, parameter: &'w Parameter) -> Result<Vec<TensorSource<'w>>> {
        let (name, shape) = (parameter.name.as_str(), &parameter.shape);
        if let (true, &[rows, cols]) = (is_matrix(name, shape), &shape[..]) {
            return Ok(quantized::sources(name, [rows, cols], self.bits, || self.matrix(name)).into());
        }
        // A browser reads no other types.
        let dtype = match self.checkpoint.dtype(name)? {
            Some(DType::F16) => DType::F16,
            _ => DType::F32,
        };
        let bytes = move || Ok(float_bytes(&self.values(name)?, dtype)?.into());
        Ok(vec![TensorSource::lazy(name, dtype, shape.clone(), bytes)])
    }

    fn values(&self, name: &str) -> landmark_formats::Result<Vec<f32>> {
        let Some(tensor) = self.checkpoint.tensor(name)? else { return Ok(Vec::new()) };
        let values = tensor.to_f32();
        self.checkpoint.release(name, tensor.data());
        Ok(values)
    }

    fn matrix(&self, name: &str) -> landmark_formats::Result<Vec<f32>> {
        let values = self.values(name)?;
        let mut measured = self.measured.take();
        if measured.insert(name.to_owned()) {
            self.squares.add(&values, self.bits);
            self.done.set(self.done.get() + values.len() as u64);
            self.progress.at(self.done.get(), "");
        }
        self.measured.set(measured);
        Ok(values)
    }
}
