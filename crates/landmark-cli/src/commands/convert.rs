//! `landmark convert`: a model from one layout, type or number of files to another.
//!
//! Everything is checked before anything is written: that the layout has a form for the model, that weights and
//! configuration belong together, that an adapter fits. Then tensors pass through one by one, in pieces, so that a
//! model of any size needs no more memory than its largest tensor, and only that if an adapter is merged into it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use landmark_core::Layout;
use landmark_formats::atomic::DirWriter;
use landmark_formats::folder::Folder;
use landmark_formats::huggingface::{ModelWriter, SHARD_BYTES};
use landmark_formats::safetensors::{TensorSource, write_safetensors};
use landmark_formats::tensor::{DType, TensorRef, float_bytes};
use landmark_model::config::{Family, ModelConfig};
use landmark_model::huggingface::{self, Fields};
use landmark_model::weights::{Parameter, Types, Weights};
use serde::Serialize;
use serde_json::json;

use crate::adapter::Merge;
use crate::args::convert::{CheckpointLayout, ConvertArgs, WeightType};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::hub::COMPANIONS;
use crate::huggingface::ModelFolder;
use crate::report::{Progress, Report};
use crate::settings::{Given, RunArgs};

/// Elements that pass at a time.
const PIECE: usize = 1 << 20;

/// Name of the file in a folder of ours.
const CHECKPOINT: &str = "ckpt.safetensors";

/// What was written.
#[derive(Debug, Serialize)]
struct Converted {
    input: PathBuf,
    output: PathBuf,
    layout: &'static str,
    parameters: u64,
    /// Of the weights.
    bytes: u64,
    /// Weights that an adapter changed.
    merged: usize,
    files: Vec<String>,
}

/// Converts a model.
///
/// # Errors
/// If the layout has no form for the model, the model is incomplete, or the result exists or cannot be written.
pub fn run(args: &ConvertArgs, report: &Report) -> Result<()> {
    args.device.device.check()?;
    if args.max_shard_size.is_some_and(|size| size.as_u64() == 0) {
        return Err(Error::flag("--max-shard-size", "must be at least 1 byte", ""));
    }
    refuse_occupied(&args.output)?;
    let checkpoint = Checkpoint::open(&args.input)?;
    let run = RunArgs::resolve(checkpoint.settings(), &Given::default());
    let config = checkpoint.config(&run)?;
    refuse_formless(args, &config)?;
    let merge = match (&args.merge_lora, checkpoint.hugging_face()) {
        (Some(adapter), Some(folder)) => Some(Merge::open(adapter, folder)?),
        _ => None,
    };
    let config = merge.as_ref().map_or(&config, Merge::config);
    let parameters = Weights::lay_out(config, None, Types::F32, &mut Layout::new()).parameters;
    let merged = match &merge {
        Some(merge) => merge.check(&checkpoint, &parameters)?,
        None => checkpoint.check(config, &parameters).map(|()| 0)?,
    };
    let total: usize = parameters.iter().map(Parameter::numel).sum();
    let progress = report.progress("converting", total as u64, "weights");
    let conversion = Conversion {
        checkpoint: &checkpoint,
        merge: merge.as_ref(),
        dtype: args.dtype.map(WeightType::stored),
        progress,
        done: Cell::new(0),
    };
    let sources = parameters.iter().map(|p| conversion.source(p)).collect::<Result<Vec<_>>>()?;
    let bytes = sources.iter().map(TensorSource::byte_count).sum();
    let layout = match checkpoint.hugging_face() {
        Some(folder) => {
            write_folder(args, folder, merge.as_ref(), config, sources)?;
            "huggingface"
        }
        None => {
            write_ours(args, &checkpoint, sources)?;
            "landmark"
        }
    };
    drop(conversion);
    let files = files_of(&args.output)?;
    report.print(format!("{}: {total} weights in {}", args.output.display(), files.join(", ")))?;
    let (input, output) = (checkpoint.path().to_owned(), args.output.clone());
    report.json(&Converted { input, output, layout, parameters: total as u64, bytes, merged, files })
}

/// A GPT is no LLaMA, and flags of the one's layout mean nothing in the other's.
fn refuse_formless(args: &ConvertArgs, config: &ModelConfig) -> Result<()> {
    let path = args.input.display();
    match (config.family, args.to) {
        (Family::Gpt, Some(CheckpointLayout::HuggingFace)) => {
            let reason = huggingface::to_fields(config, None).err().map(|error| error.to_string());
            let reason = format!("{path}: {}", reason.unwrap_or_default());
            Err(Error::flag("--to", reason, "use --to landmark, a safetensors file under the released names"))
        }
        (Family::Llama, Some(CheckpointLayout::Landmark)) => {
            let reason = format!(
                "{path} is a LLaMA, and the released program's checkpoints hold GPTs: they have no place for RMSNorm, \
                 SwiGLU and separate projections"
            );
            Err(Error::flag("--to", reason, "use --to huggingface; all commands read that layout as it is"))
        }
        (Family::Gpt, _) if args.merge_lora.is_some() => {
            Err(Error::flag("--merge-lora", format!("{path} is a GPT, and adapters are for LLaMAs"), ""))
        }
        (Family::Gpt, _) if args.max_shard_size.is_some() => Err(Error::flag(
            "--max-shard-size",
            format!("{path} is a GPT, whose checkpoints are one file"),
            "leave it out",
        )),
        _ => Ok(()),
    }
}

pub(super) fn refuse_occupied(output: &Path) -> Result<()> {
    let is_free = match std::fs::read_dir(output) {
        Ok(mut entries) => entries.next().is_none() && !is_file_name(output),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    if is_free {
        return Ok(());
    }
    Err(Error::Input {
        path: output.to_owned(),
        reason: "is there already, and not an empty folder".to_owned(),
        help: "name a new folder: nothing is overwritten".to_owned(),
    })
}

/// Whether the result of a GPT's conversion is to be a file of this name.
fn is_file_name(output: &Path) -> bool {
    output.extension().is_some_and(|extension| extension == "safetensors")
}

/// Tensors on their way.
struct Conversion<'a> {
    checkpoint: &'a Checkpoint,
    merge: Option<&'a Merge>,
    dtype: Option<DType>,
    progress: Progress,
    /// Weights that have passed.
    done: Cell<u64>,
}

impl Conversion<'_> {
    /// A weight as it is to be written.
    fn source(&self, parameter: &Parameter) -> Result<TensorSource<'_>> {
        let (name, shape) = (parameter.name.clone(), parameter.shape.clone());
        let own = self.checkpoint.dtype(&name)?;
        let own = own.filter(|own| own.is_float()).unwrap_or(DType::F32);
        let dtype = self.dtype.unwrap_or(own);
        Ok(TensorSource::pieces(name.clone(), dtype, shape, move |sink| {
            self.pass(&name, dtype, sink).map_err(|error| named(error, &name))
        }))
    }

    fn pass(
        &self,
        name: &str,
        dtype: DType,
        sink: &mut landmark_formats::safetensors::Sink<'_>,
    ) -> landmark_formats::Result<()> {
        let tensor = self.checkpoint.tensor(name)?;
        if let Some(merge) = self.merge.filter(|merge| merge.changes(name)) {
            let values = merge.merged(name, tensor.as_ref())?;
            if let Some(tensor) = &tensor {
                self.checkpoint.release(name, tensor.data());
            }
            for part in values.chunks(PIECE) {
                sink(&float_bytes(part, dtype)?)?;
                self.passed(part.len());
            }
            return Ok(());
        }
        let Some(tensor) = tensor else { return Ok(()) };
        for start in (0..tensor.element_count()).step_by(PIECE) {
            let part = tensor.part(start..(start + PIECE).min(tensor.element_count()));
            sink(&converted(&part, dtype)?)?;
            self.checkpoint.release(name, part.data());
            self.passed(part.element_count());
        }
        Ok(())
    }

    fn passed(&self, count: usize) {
        self.done.set(self.done.get() + count as u64);
        self.progress.at(self.done.get(), "");
    }
}

/// The numbers of a piece in another type; as they are, to the bit, in their own.
fn converted(part: &TensorRef<'_>, dtype: DType) -> landmark_formats::Result<Vec<u8>> {
    if part.dtype() == dtype { Ok(part.data().to_vec()) } else { float_bytes(&part.to_f32(), dtype) }
}

/// An error about a piece, with the name of the whole.
fn named(error: landmark_formats::Error, name: &str) -> landmark_formats::Error {
    match error {
        landmark_formats::Error::Tensor { reason, .. } => {
            landmark_formats::Error::Tensor { name: name.to_owned(), reason }
        }
        other => other,
    }
}

/// Writes a folder in Hugging Face's layout.
fn write_folder(
    args: &ConvertArgs,
    base: &ModelFolder,
    merge: Option<&Merge>,
    config: &ModelConfig,
    sources: Vec<TensorSource<'_>>,
) -> Result<()> {
    let original = merge.map_or(base.fields(), Merge::fields);
    let fields = huggingface::to_fields(config, Some(original)).map_err(|error| Error::Input {
        path: base.path().to_owned(),
        reason: error.to_string(),
        help: String::new(),
    })?;
    let writer = ModelWriter::create(&args.output)?;
    writer.write_weights(sources, args.max_shard_size.map_or(SHARD_BYTES, |size| size.as_u64()))?;
    copy_companions(&writer, base.files(), merge.map(Merge::path))?;
    let fields = match args.dtype {
        Some(of) => with_type(fields, of),
        None => fields,
    };
    Ok(writer.finish(&fields)?)
}

/// Tokenizer and the like: those of the adapter if it brings a tokenizer, for then the vocabulary grew.
pub(super) fn copy_companions(writer: &ModelWriter, base: &Folder, adapter: Option<&Path>) -> Result<()> {
    let has_tokenizer =
        |folder: &Folder| ["tokenizer.json", "tokenizer.model"].iter().any(|name| folder.has(name));
    let adapter = adapter.map(Folder::from).filter(has_tokenizer);
    for name in COMPANIONS {
        let of_tokenizer = name != "generation_config.json";
        let folder = adapter.as_ref().filter(|folder| of_tokenizer || folder.has(name)).unwrap_or(base);
        if folder.has(name) {
            writer.write(name, folder.open(name)?.as_slice())?;
        }
    }
    Ok(())
}

/// The fields that name the type of the weights, in the spelling of old and new versions of `transformers`.
pub fn with_type(mut fields: Fields, of: WeightType) -> Fields {
    let name = of.name();
    if fields.contains_key("dtype") {
        fields.insert("dtype".to_owned(), json!(name));
    }
    if fields.contains_key("torch_dtype") || !fields.contains_key("dtype") {
        fields.insert("torch_dtype".to_owned(), json!(name));
    }
    fields
}

/// Writes a file under the released names, alone or in a folder of its own.
fn write_ours(args: &ConvertArgs, checkpoint: &Checkpoint, sources: Vec<TensorSource<'_>>) -> Result<()> {
    let settings = serde_json::Value::Object(checkpoint.settings().clone()).to_string();
    let mut metadata =
        BTreeMap::from([("args".to_owned(), settings), ("format".to_owned(), "pt".to_owned())]);
    if let Some(iteration) = checkpoint.iteration() {
        metadata.insert("iteration".to_owned(), iteration.to_string());
    }
    let output = &args.output;
    if let Some(parent) = output.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(|error| Error::io(parent, error))?;
    }
    if is_file_name(output) {
        return Ok(write_safetensors(output, sources, &metadata)?);
    }
    let folder = DirWriter::create(output)?;
    write_safetensors(&folder.path().join(CHECKPOINT), sources, &metadata)?;
    Ok(folder.commit()?)
}

/// Names of what was written, sorted.
pub(super) fn files_of(output: &Path) -> Result<Vec<String>> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if output.is_file() {
        return Ok(vec![name(output)]);
    }
    let entries = std::fs::read_dir(output).map_err(|error| Error::io(output, error))?;
    let mut names: Vec<String> = entries.flatten().map(|entry| name(&entry.path())).collect();
    names.sort();
    Ok(names)
}
