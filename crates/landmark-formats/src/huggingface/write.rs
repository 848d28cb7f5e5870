//! Writing a folder in Hugging Face's layout.
//!
//! The folder is filled under a temporary name and appears as a whole, `config.json` last: nobody ever sees a
//! configuration without its weights. Weights go out tensor by tensor, each made when its turn comes.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use landmark_core::quantize::Bits;
use serde_json::{Map, Value, json};

use super::CONFIG;
use crate::atomic::{DirWriter, write_atomic};
use crate::quantized;
use crate::safetensors::{TensorSource, write_safetensors};
use crate::{Error, Result};

/// How large a file of weights may grow before the next one is begun, unless told otherwise: what
/// `transformers` uses.
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// A folder that is being written. Dropping it without [`ModelWriter::finish`] leaves nothing behind.
#[derive(Debug)]
pub struct ModelWriter {
    folder: DirWriter,
}

impl ModelWriter {
    /// Starts a folder that is to appear at `target`; its parents are made.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if `target` is there and not an empty folder, [`Error::Io`] if nothing can be written.
    pub fn create(target: &Path) -> Result<Self> {
        let is_free = match std::fs::read_dir(target) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
            Err(error) => return Err(Error::io(target, "create", error)),
        };
        if !is_free {
            let reason =
                "a model would be written there, but it is there already and not empty; name a new folder";
            return Err(Error::Unsupported { file: target.display().to_string(), reason: reason.to_owned() });
        }
        if let Some(parent) = target.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent).map_err(|e| Error::io(parent, "create", e))?;
        }
        Ok(ModelWriter { folder: DirWriter::create(target)? })
    }

    /// Where the folder is for now, for files beside the weights.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a small file.
    ///
    /// # Errors
    /// [`Error::Io`] from the disk.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        write_atomic(&self.path().join(name), |writer| writer.write_all(bytes))
    }

    /// Copies a file as it is.
    ///
    /// # Errors
    /// [`Error::Io`] from either disk.
    pub fn copy(&self, from: &Path, name: &str) -> Result<()> {
        let mut source = std::fs::File::open(from).map_err(|e| Error::io(from, "open", e))?;
        write_atomic(&self.path().join(name), |writer| std::io::copy(&mut source, writer).map(|_| ()))
    }

    /// Writes the weights, in files of at most `shard_bytes` each where tensors allow it: as `model.safetensors` if
    /// one file is enough, else as `model-00001-of-0000N.safetensors` with their index.
    ///
    /// # Errors
    /// What a tensor's source returns, [`Error::Tensor`] for names given twice, [`Error::Io`] from the disk.
    pub fn write_weights(&self, tensors: Vec<TensorSource<'_>>, shard_bytes: u64) -> Result<()> {
        let total: u64 = tensors.iter().map(TensorSource::byte_count).sum();
        let shards = into_shards(tensors, shard_bytes);
        // Readers tell by this whose tensors they are.
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let count = shards.len();
        if count == 1 {
            for shard in shards {
                write_safetensors(&self.path().join("model.safetensors"), shard, &metadata)?;
            }
            return Ok(());
        }
        let mut map = Map::new();
        for (i, shard) in shards.into_iter().enumerate() {
            let name = format!("model-{:05}-of-{count:05}.safetensors", i + 1);
            for tensor in &shard {
                if map.insert(tensor.name().to_owned(), json!(name)).is_some() {
                    return Err(Error::tensor(tensor.name(), "the name is taken already"));
                }
            }
            write_safetensors(&self.path().join(name), shard, &metadata)?;
        }
        let index = json!({"metadata": {"total_size": total}, "weight_map": Value::Object(map)});
        self.write("model.safetensors.index.json", pretty(&index).as_bytes())
    }

    /// Writes weights of which matrices are quantised ([`quantized::sources`]) as `model.safetensors`: one file, since
    /// codes and scales stay together, and nobody else's reader would take several.
    ///
    /// # Errors
    /// As [`write_weights`](Self::write_weights).
    pub fn write_quantized(&self, tensors: Vec<TensorSource<'_>>, bits: Bits) -> Result<()> {
        let metadata = BTreeMap::from([(quantized::METADATA.to_owned(), quantized::name(bits).to_owned())]);
        write_safetensors(&self.path().join("model.safetensors"), tensors, &metadata)
    }

    /// Writes `config.json` and lets the folder appear.
    ///
    /// # Errors
    /// [`Error::Io`] from the disk.
    pub fn finish(self, config: &Map<String, Value>) -> Result<()> {
        self.write(CONFIG, pretty(&json!(config)).as_bytes())?;
        self.folder.commit()
    }
}

/// JSON for people, with a last line's end.
fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Cuts tensors into files, in their order: a tensor that would make a file larger than `limit` begins the next. There
/// is always one file, and never an empty one beside others.
fn into_shards(tensors: Vec<TensorSource<'_>>, limit: u64) -> Vec<Vec<TensorSource<'_>>> {
    let (mut shards, mut bytes) = (vec![Vec::new()], 0u64);
    for tensor in tensors {
        let size = tensor.byte_count();
        let last = shards.len() - 1;
        if !shards[last].is_empty() && bytes.saturating_add(size) > limit {
            shards.push(vec![tensor]);
            bytes = size;
        } else {
            shards[last].push(tensor);
            bytes = bytes.saturating_add(size);
        }
    }
    shards
}
