//! `landmark info`: what there is: this machine, a model, a checkpoint, a saved memory, a token stream, or a prepared
//! data set.

mod machine;

use std::collections::BTreeMap;
use std::path::Path;

use landmark_data::{DatasetInfo, TokenStream, TokenType};
use landmark_formats::pages::MemoryFile;
use landmark_model::config::Attention;
use landmark_model::table::{Format, Table};
use serde_json::{Value, json};

use crate::args::info::InfoArgs;
use crate::checkpoint::Checkpoint;
use crate::embedded;
use crate::error::{Error, Result};
use crate::hub::{self, COMPANIONS};
use crate::huggingface::ModelFolder;
use crate::python;
use crate::report::Report;
use crate::settings::{Given, RunArgs};

/// Describes this machine, or the file or folder given.
///
/// # Errors
/// If the file or folder cannot be read.
pub fn run(args: &InfoArgs, report: &Report) -> Result<()> {
    args.device.device.check()?;
    match &args.path {
        None => machine::describe(args, report),
        Some(path) => described(path, report),
    }
}

/// A folder with a `dataset.json` is a data set, any other a checkpoint's; a `.bin` is a stream unless it is a zip
/// file, as PyTorch's are; a saved memory is known by its first bytes.
fn described(path: &Path, report: &Report) -> Result<()> {
    if embedded::is_name(path) {
        return checkpoint(path, report);
    }
    let path = &*hub::resolve(path)?;
    let kind = std::fs::metadata(path).map_err(|error| Error::io(path, error))?;
    if kind.is_dir()
        && let Some(info) = DatasetInfo::load(path)?
    {
        return dataset(path, &info, report);
    }
    if path.extension().is_some_and(|extension| extension == "bin") && !is_zip(path)? {
        return stream(path, report);
    }
    if !kind.is_dir() && MemoryFile::is_one(path)? {
        return memory(path, report);
    }
    checkpoint(path, report)
}

fn is_zip(path: &Path) -> Result<bool> {
    use std::io::Read;
    let mut first = [0; 4];
    let mut file = std::fs::File::open(path).map_err(|error| Error::io(path, error))?;
    Ok(file.read_exact(&mut first).is_ok() && first == *b"PK\x03\x04")
}

/// A folder in Hugging Face's layout.
fn model(folder: &ModelFolder, report: &Report) -> Result<()> {
    let config = folder.config();
    let weights = folder.weights();
    let (mut shapes, mut types) = (folder.shapes()?, BTreeMap::<&str, usize>::new());
    shapes.sort();
    for (name, _) in &shapes {
        *types.entry(weights.dtype(name)?.name()).or_default() += 1;
    }
    let parameters: usize = shapes.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    let files = weights.files().map(|file| {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = folder.files().open(&name)?.as_slice().len() as u64;
        Ok((name, bytes))
    });
    let files = files.collect::<Result<Vec<_>>>()?;
    let companions: Vec<&str> = COMPANIONS.into_iter().filter(|name| folder.files().has(name)).collect();
    let tokenizer = folder.tokenizer()?;
    let landmark = (config.attention == Attention::Landmark).then(|| {
        json!({
            "mem_id": config.landmark_id,
            "mem_freq": config.mem_freq,
            "train_context_length": config.context,
            "include_landmark_in_loss": config.landmark_in_loss,
        })
    });
    let mut table = Table::new(["setting", "value"]);
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    row("folder", folder.path().display().to_string());
    row("model_type", folder.fields().get("model_type").map_or("-".to_owned(), python::str));
    row("parameters", parameters.to_string());
    let of_type = |(name, count): (&&str, &usize)| format!("{name} ({count} tensors)");
    row("types", types.iter().map(of_type).collect::<Vec<_>>().join(", "));
    row("layers", config.layers.to_string());
    row("width", config.width.to_string());
    row("heads", format!("{} of {}, {} for keys", config.heads, config.head_dim, config.kv_heads));
    row("vocabulary", config.vocab_size.to_string());
    row("context", config.context.to_string());
    match landmark.as_ref().and_then(Value::as_object) {
        None => row("landmarks", "none".to_owned()),
        Some(fields) => fields.iter().for_each(|(name, value)| row(name, python::str(value))),
    }
    for (name, bytes) in &files {
        row("weights", format!("{name}, {}", bytesize::ByteSize(*bytes)));
    }
    row(
        "tokenizer",
        match &tokenizer {
            None => "none".to_owned(),
            Some(tokenizer) => format!("{} tokens, {}", tokenizer.vocab_size(), tokenizer.info().name),
        },
    );
    report.print(table.render(Format::Text).trim_end())?;
    report.json(&json!({
        "kind": "model",
        "path": folder.path(),
        "parameters": parameters,
        "types": types,
        "model": config,
        "landmark": landmark,
        "files": files.iter().map(|(name, bytes)| json!({"name": name, "bytes": bytes})).collect::<Vec<_>>(),
        "companions": companions,
        "tokenizer": tokenizer.as_ref().map(landmark_data::Tokenizer::info),
        "config": folder.fields(),
        "weights": shapes.into_iter().map(|(name, shape)| (name, json!(shape))).collect::<serde_json::Map<_, _>>(),
    }))
}

/// Name and bytes of a file.
fn file_size(path: &Path) -> Result<(String, u64)> {
    let bytes = std::fs::metadata(path).map_err(|error| Error::io(path, error))?.len();
    Ok((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), bytes))
}

fn memory(path: &Path, report: &Report) -> Result<()> {
    let saved = MemoryFile::open(path)?;
    let (info, (_, bytes)) = (saved.info(), file_size(path)?);
    let mut table = Table::new(["setting", "value"]);
    for (name, value) in [
        ("memory", path.display().to_string()),
        ("size", bytesize::ByteSize(bytes).to_string()),
        ("tokens", info.tokens.to_string()),
        ("blocks", format!("{} of {} positions", info.blocks(), info.block)),
        ("chunk", format!("{} tokens", info.chunk)),
        ("read with", format!("k {}, {}", info.top_k, info.retrieval)),
        ("model", info.model_path.clone()),
        ("layers", info.layers.to_string()),
        ("key heads", format!("{} of {}", info.kv_heads, info.head_dim)),
    ] {
        table.row([name.to_owned(), value]);
    }
    report.print(table.render(Format::Text).trim_end())?;
    let mut all = json!(info);
    if let Value::Object(fields) = &mut all {
        fields.insert("kind".to_owned(), json!("memory"));
        fields.insert("path".to_owned(), json!(path));
        fields.insert("bytes".to_owned(), json!(bytes));
        fields.insert("blocks".to_owned(), json!(info.blocks()));
    }
    report.json(&all)
}

fn checkpoint(path: &Path, report: &Report) -> Result<()> {
    let checkpoint = Checkpoint::open(path)?;
    if let Some(folder) = checkpoint.hugging_face() {
        return model(folder, report);
    }
    let run = RunArgs::resolve(checkpoint.settings(), &Given::default());
    let config = checkpoint.config(&run)?;
    let mut weights = checkpoint.weights()?;
    weights.sort();
    let parameters: usize = weights.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    let mut table = Table::new(["setting", "value"]);
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    row("file", checkpoint.path().display().to_string());
    row("written by", if checkpoint.is_released() { "the released program" } else { "landmark" }.to_owned());
    row("iteration", checkpoint.iteration().map_or("-".to_owned(), |step| step.to_string()));
    row("parameters", parameters.to_string());
    for (key, value) in checkpoint.settings() {
        row(key, python::str(value));
    }
    report.print(table.render(Format::Text).trim_end())?;
    report.json(&json!({
        "kind": "checkpoint",
        "path": checkpoint.path(),
        "released": checkpoint.is_released(),
        "iteration": checkpoint.iteration(),
        "parameters": parameters,
        "model": config,
        "settings": checkpoint.settings(),
        "weights": weights.into_iter().map(|(name, shape)| (name, json!(shape))).collect::<serde_json::Map<_, _>>(),
    }))
}

fn stream(path: &Path, report: &Report) -> Result<()> {
    let stream = TokenStream::open(path)?;
    let (mut largest, mut ids) = (0, vec![0; 1 << 16]);
    for start in (0..stream.len()).step_by(ids.len()) {
        let count = ids.len().min(stream.len() - start);
        stream.read(start, &mut ids[..count])?;
        largest = largest.max(ids[..count].iter().copied().max().unwrap_or(0));
    }
    let first = stream.get(0..stream.len().min(16))?;
    let dtype = if stream.dtype() == TokenType::Uint16 { "uint16" } else { "uint32" };
    let start: Vec<String> = first.iter().map(u32::to_string).collect();
    report.print(format!(
        "{}: {} tokens ({dtype}), the largest {largest}; it begins {}",
        path.display(),
        stream.len(),
        start.join(" ")
    ))?;
    report.json(&json!({
        "kind": "stream",
        "path": path,
        "tokens": stream.len(),
        "dtype": dtype,
        "largest_token": largest,
        "first_tokens": first,
    }))
}

fn dataset(path: &Path, info: &DatasetInfo, report: &Report) -> Result<()> {
    let mut table = Table::new(["part", "file", "tokens", "documents"]);
    for (split, part) in &info.splits {
        let name = json!(split).as_str().map_or_else(String::new, str::to_owned);
        table.row([name, part.file.clone(), part.tokens.to_string(), part.documents.to_string()]);
    }
    report.print(format!(
        "{}: {} from {}, tokens of {}\n\n{}",
        path.display(),
        info.settings.dataset,
        info.source,
        info.settings.tokenizer.name,
        table.render(Format::Text).trim_end()
    ))?;
    let mut all = json!(info);
    if let Value::Object(fields) = &mut all {
        fields.insert("kind".to_owned(), json!("dataset"));
    }
    report.json(&all)
}
