//! Checkpoints as Hugging Face lays them out: a folder with `config.json` and the weights in one file or several.
//!
//! | file | what it holds |
//! |---|---|
//! | `model.safetensors` | all weights |
//! | `model.safetensors.index.json` | which of several safetensors files holds which weight |
//! | `pytorch_model.bin` | all weights, as PyTorch pickles them |
//! | `pytorch_model.bin.index.json` | which of several of those |
//!
//! They are looked for in this order, which is that of `transformers`. [`WeightFolder`] maps every file and hands out
//! tensors one by one; [`ModelWriter`] writes such a folder, tensor by tensor as well, so that neither ever holds a
//! model in memory. Mapped pages count as memory of the process until they are given up, so whoever walks through
//! a checkpoint calls [`WeightFolder::release`] behind itself.

pub mod index;
mod write;

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use landmark_core::quantize::Bits;

use crate::error::{short, some_names};
use crate::folder::Folder;
use crate::safetensors::SafetensorsFile;
use crate::tensor::{DType, TensorRef};
use crate::torch::{Checksums, TensorMeta, TorchFile};
use crate::{Error, Result};

pub use write::{ModelWriter, SHARD_BYTES};

/// The file with the configuration.
pub const CONFIG: &str = "config.json";

/// Files with weights, in the order in which they are looked for, and whether they are indices.
pub const WEIGHTS: [(&str, bool); 4] = [
    ("model.safetensors", false),
    ("model.safetensors.index.json", true),
    ("pytorch_model.bin", false),
    ("pytorch_model.bin.index.json", true),
];

/// The weights of a folder: every file mapped and its header checked, no tensor touched.
#[derive(Debug)]
pub struct WeightFolder {
    /// The file, or the index, that was found.
    entry: PathBuf,
    shards: Vec<Shard>,
    /// Tensors in the order of the files, each with its file.
    names: Vec<(String, usize)>,
    places: HashMap<String, usize>,
}

#[derive(Debug)]
enum Shard {
    Safetensors(SafetensorsFile),
    Torch(TorchFile, HashMap<String, TensorMeta>),
}

impl WeightFolder {
    /// The file with weights, or the index of several, that a folder is read from, if there is one.
    pub fn find(folder: &Path) -> Option<PathBuf> {
        WEIGHTS.iter().map(|(name, _)| folder.join(name)).find(|path| path.is_file())
    }

    /// Opens the weights of a folder.
    ///
    /// # Errors
    /// [`Error::Missing`] if there are none, or a file of the index or a tensor that it promises is not there;
    /// [`Error::Damaged`] if files contradict each other or are no checkpoints.
    pub fn open(folder: &Path) -> Result<Self> {
        WeightFolder::open_in(&Folder::from(folder))
    }

    /// The same, of a folder that may be a part of the program.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_in(folder: &Folder) -> Result<Self> {
        let Some((name, is_index)) = WEIGHTS.iter().find(|(name, _)| folder.has(name)) else {
            let wanted: Vec<&str> = WEIGHTS.iter().map(|(name, _)| *name).collect();
            return Err(Error::Missing {
                file: folder.path().display().to_string(),
                what: format!("weights ({})", wanted.join(", ")),
                present: some_names(folder.names()?.iter().map(String::as_str)),
            });
        };
        let entry = folder.file(name);
        let mut weights =
            WeightFolder { entry, shards: Vec::new(), names: Vec::new(), places: HashMap::new() };
        if !is_index {
            weights.add(folder, name)?;
            return Ok(weights);
        }
        let bytes = folder.read(name, index::LARGEST)?;
        let map = index::parse(&bytes).map_err(|reason| weights.damaged_index(reason))?;
        let files: BTreeSet<&String> = map.files.values().collect();
        for file in &files {
            if !folder.has(file) {
                let here = files.iter().filter(|file| folder.has(file)).count();
                return Err(Error::Missing {
                    file: folder.path().display().to_string(),
                    what: format!("file `{}`, which {name} names", short(file)),
                    present: format!("{here} of {} such files; fetch the others as well", files.len()),
                });
            }
            weights.add(folder, file)?;
        }
        let order: Vec<&&String> = files.iter().collect();
        for (tensor, file) in &map.files {
            if weights.places.get(tensor).is_none_or(|&at| *order[at] != file) {
                let reason = format!("it puts `{}` into `{}`, where it is not", short(tensor), short(file));
                return Err(weights.damaged_index(reason));
            }
        }
        Ok(weights)
    }

    fn damaged_index(&self, reason: String) -> Error {
        Error::Damaged { file: self.entry.display().to_string(), format: "checkpoint index", reason }
    }

    /// Adds a file and its tensors.
    fn add(&mut self, folder: &Folder, name: &str) -> Result<()> {
        let path = folder.file(name);
        let is_torch = path.extension().is_some_and(|extension| extension != "safetensors");
        let (shard, names) = if is_torch {
            let file = TorchFile::parse(folder.open(name)?, Checksums::Verify)?;
            let tensors = file.state_dict(&[])?;
            let names = tensors.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
            (Shard::Torch(file, tensors.into_iter().collect()), names)
        } else {
            let file = SafetensorsFile::parse(folder.open(name)?)?;
            let names = file.names().map(str::to_owned).collect();
            (Shard::Safetensors(file), names)
        };
        let place = self.shards.len();
        self.shards.push(shard);
        for name in names {
            if let Some(earlier) = self.places.insert(name.clone(), place) {
                let files = (self.shards[earlier].label(), path.display());
                let reason = format!("`{}` is in {} and in {} as well", short(&name), files.0, files.1);
                return Err(self.damaged_index(reason));
            }
            self.names.push((name, place));
        }
        Ok(())
    }

    /// The file with the weights, or their index.
    pub fn entry(&self) -> &Path {
        &self.entry
    }

    /// Names of all tensors, file by file, in the order in which each file holds them.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.names.iter().map(|(name, _)| name.as_str())
    }

    /// The files that hold tensors.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.shards.iter().map(|shard| Path::new(shard.label()))
    }

    /// Number of files.
    pub fn shard_count(&self) -> usize {
        self.shards.len()
    }

    /// How matrices are quantised, if any file's are: see [`quantized`](crate::quantized).
    pub fn quantization(&self) -> Option<Bits> {
        self.shards.iter().find_map(|shard| match shard {
            Shard::Safetensors(file) => file.quantization(),
            Shard::Torch(..) => None,
        })
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// The shape of a tensor.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is none.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>> {
        match self.shard(name)? {
            Shard::Safetensors(file) => file.shape(name),
            Shard::Torch(_, tensors) => Ok(tensors[name].shape().to_vec()),
        }
    }

    /// The element type of a tensor.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is none, [`Error::Tensor`] if it is none of [`DType`].
    pub fn dtype(&self, name: &str) -> Result<DType> {
        match self.shard(name)? {
            Shard::Safetensors(file) => file.dtype(name),
            Shard::Torch(_, tensors) => Ok(tensors[name].dtype()),
        }
    }

    /// A tensor, as a view into its file where possible.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is none, [`Error::Tensor`] for an unknown type, [`Error::Damaged`] if its bytes do not
    /// match their checksum.
    pub fn get(&self, name: &str) -> Result<TensorRef<'_>> {
        match self.shard(name)? {
            Shard::Safetensors(file) => file.get(name),
            Shard::Torch(file, tensors) => file.tensor(&tensors[name]),
        }
    }

    /// Gives up the memory that looking at some bytes of a tensor took; see [`FileBytes::release`](crate::bytes::FileBytes::release).
    pub fn release(&self, name: &str, part: &[u8]) {
        match self.shard(name) {
            Ok(Shard::Safetensors(file)) => file.release(part),
            Ok(Shard::Torch(file, _)) => file.release(part),
            Err(_) => {}
        }
    }

    fn shard(&self, name: &str) -> Result<&Shard> {
        match self.places.get(name) {
            Some(&place) => Ok(&self.shards[place]),
            None => Err(Error::Missing {
                file: self.entry.display().to_string(),
                what: format!("tensor `{}`", short(name)),
                present: some_names(self.names()),
            }),
        }
    }
}

impl Shard {
    fn label(&self) -> &str {
        match self {
            Shard::Safetensors(file) => file.label(),
            Shard::Torch(file, _) => file.label(),
        }
    }
}

/// The bytes of a small file: configurations, indices.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::Unsupported`] if it has more than `largest` bytes.
pub fn read_bounded(path: &Path, largest: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    file.take(largest + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, "read", e))?;
    if bytes.len() as u64 > largest {
        let reason = format!("it has more than {largest} bytes, far more than such a file needs");
        return Err(Error::Unsupported { file: path.display().to_string(), reason });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
