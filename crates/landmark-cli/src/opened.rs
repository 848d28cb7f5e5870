//! A model, opened to be asked: the settings of its memory resolved, its blocks put into their tiers.
//!
//! `generate`, `index`, `ask`, `passkey` and `retrieval` all begin here, so that a flag means the same in each.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytesize::ByteSize;
use landmark_core::quantize::Bits;
use landmark_core::{Backend, DType, PageId, PageStore, Paging};
use landmark_data::Tokenizer;
use landmark_formats::pages::{MemoryFile, ScratchPages};
use landmark_model::config::{Attention, ModelConfig};
use landmark_model::engine::Engine;
use landmark_model::generate::{DEFAULT_TOP_K, Settings, fitting_chunk, fitting_top_k};
use landmark_model::model::{CacheShape, Room};
use landmark_model::preset::Preset;
use landmark_model::reader::PredictAt;
use landmark_model::record::Granularity;
use landmark_model::sample::Sampling;

use crate::adapted::{self, Adapted};
use crate::args::memory::{MemoryArgs, ModelArgs};
use crate::args::values::{LmCache, Selection};
use crate::checkpoint::{AttentionBias, Checkpoint};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::evaluation::granularity;
use crate::settings::{Given, RunArgs};

/// Bytes of blocks that a GPU keeps of a memory that was offloaded to the host.
const BESIDE_THE_HOST: u64 = 2 << 30;

/// Bytes of pages kept in memory beside a file, if no budget is given.
const BESIDE_A_FILE: u64 = 256 << 20;

/// Pages that have to fit the budget at the least: one in use, and one to come.
const FEWEST_PAGES: u64 = 4;

/// A model whose files are open; its weights are not read yet.
pub struct Opened {
    /// Its files.
    pub checkpoint: Checkpoint,
    /// The settings that it was trained with, as far as the released program names them.
    pub run: RunArgs,
    /// The model.
    pub config: ModelConfig,
    /// Its tokenizer, if it has one. Tokens can be given and had without.
    pub tokenizer: Option<Tokenizer>,
    /// Settings that its files did not say.
    pub preset: Option<Preset>,
    /// Adapters on it.
    pub adapter: Option<Adapted>,
    /// Where it computes.
    pub device: Device,
    /// What it computes in.
    pub compute: DType,
}

impl Opened {
    /// Opens a model.
    ///
    /// # Errors
    /// If there is none, its files are damaged, or its tokenizer is another model's.
    pub fn open(args: &ModelArgs, device: Device) -> Result<Opened> {
        adapted::refuse_as_model(args.path())?;
        let mut checkpoint = Checkpoint::open(args.path())?;
        let preset = args.preset.as_deref().map(preset).transpose()?;
        if let Some(preset) = &preset {
            checkpoint = checkpoint.with_preset(preset)?;
        }
        let run = RunArgs::resolve(checkpoint.settings(), &Given::default());
        let mut config = checkpoint.config(&run)?;
        let adapter = match &args.adapter {
            Some(path) => Some(Adapted::open(path, &checkpoint, &config)?),
            None => None,
        };
        let mut beside = None;
        if let Some(adapter) = &adapter {
            config = adapter.config().clone();
            beside = adapter.tokenizer()?;
        }
        let tokenizer = match &args.tokenizer {
            Some(path) => Some(Tokenizer::from_file(path, None)?),
            None if beside.is_some() => beside,
            // The GPTs are trained on GPT-2's tokens, and come without a tokenizer.
            None if checkpoint.hugging_face().is_none() => Some(Tokenizer::gpt2()),
            None => checkpoint.tokenizer()?,
        };
        let compute = device.compute_with(args.dtype, blocks(device, &checkpoint, adapter.as_ref()));
        Ok(Opened { checkpoint, run, config, tokenizer, preset, adapter, device, compute })
    }

    /// The blocks in which the device is to keep weights, if it is: see [`Device::blocks`].
    pub fn blocks(&self) -> Option<Bits> {
        blocks(self.device, &self.checkpoint, self.adapter.as_ref())
    }

    /// Tokens of a text as the model is to see it, with what the tokenizer puts in front.
    ///
    /// # Errors
    /// If the text cannot be encoded, or the tokenizer has tokens that the model lacks.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let tokenizer = self.tokenizer()?;
        self.known(tokenizer, tokenizer.encode(text)?)
    }

    /// Tokens of a text that follows another.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_more(&self, text: &str) -> Result<Vec<u32>> {
        let tokenizer = self.tokenizer()?;
        self.known(tokenizer, tokenizer.encode_ordinary(text)?)
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// If the model has none.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| Error::Input {
            path: self.checkpoint.path().to_owned(),
            reason: "has no tokenizer.json and no tokenizer.model".to_owned(),
            help: "give one with --tokenizer, or give tokens (--prompt-tokens)".to_owned(),
        })
    }

    fn known(&self, tokenizer: &Tokenizer, tokens: Vec<u32>) -> Result<Vec<u32>> {
        match tokens.iter().find(|&&token| token as usize >= self.config.vocab_size) {
            None => Ok(tokens),
            Some(token) => Err(Error::flag(
                "--tokenizer",
                format!(
                    "{} gives token {token}, the model has {}",
                    tokenizer.info().name,
                    self.config.vocab_size
                ),
                "give the tokenizer.json that the model was trained with",
            )),
        }
    }

    /// Tokens after which nothing more is generated.
    pub fn end_tokens(&self) -> Vec<u32> {
        match self.checkpoint.hugging_face() {
            Some(folder) => landmark_model::huggingface::token_ids(folder.fields(), "eos_token_id"),
            None => self.tokenizer.iter().map(Tokenizer::eot).collect(),
        }
    }

    /// A name for what the model computes, its adapters included: see [`Checkpoint::fingerprint`].
    ///
    /// # Errors
    /// If a weight cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        let model = self.checkpoint.fingerprint(&self.config)?;
        self.adapter.as_ref().map_or(Ok(model.clone()), |adapter| adapter.fingerprint(&model))
    }

    /// Puts the model's weights into an engine, an adapter's as well.
    ///
    /// # Errors
    /// Files that cannot be read, weights that do not fit.
    pub fn fill<B: Backend>(&self, engine: &mut Engine<B>) -> Result<()> {
        match &self.adapter {
            Some(adapter) => adapter.load(&self.checkpoint, engine)?,
            None => _ = self.checkpoint.load(engine, AttentionBias::Keep)?,
        }
        Ok(())
    }

    /// Resolves the flags of the memory for a text of `length` tokens in all.
    ///
    /// # Errors
    /// Names the flag that cannot be followed.
    pub fn memory(&self, args: &MemoryArgs, length: usize) -> Result<Memory> {
        memory(args, &self.run, &self.config, self.preset.as_ref(), length)
    }
}

/// Adapters are matrices too, and not quantised: with them, weights are kept as values.
fn blocks(device: Device, checkpoint: &Checkpoint, adapter: Option<&Adapted>) -> Option<Bits> {
    device.blocks(checkpoint.quantization().filter(|_| adapter.is_none()))
}

/// The preset of this name (`--preset`).
///
/// # Errors
/// If there is none.
pub fn preset(name: &str) -> Result<Preset> {
    Preset::named(name).ok_or_else(|| {
        let known: Vec<&str> = Preset::ALL.iter().map(|preset| preset.name).collect();
        let help = format!("give {}", known.join(" or "));
        Error::flag("--preset", format!("there is no preset {name:?}"), help)
    })
}

/// A memory as the flags ask for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The cache.
    pub cache: CacheShape,
    /// Ordinary tokens of a chunk.
    pub chunk: usize,
    /// How finely blocks are chosen.
    pub selection: Granularity,
    /// Shares of the context-miss token below this count as 0, as bits.
    miss_cutoff: Option<u32>,
    predict: PredictAt,
}

impl Memory {
    /// Settings of a generator.
    pub fn settings(&self, sampling: Sampling, seed: u64, lookups: bool) -> Settings {
        Settings {
            sampling,
            seed,
            chunk: self.chunk,
            selection: self.selection,
            miss_cutoff: self.miss_cutoff.map(f32::from_bits),
            predict: self.predict,
            lookups,
        }
    }
}

fn memory(
    args: &MemoryArgs,
    run: &RunArgs,
    config: &ModelConfig,
    preset: Option<&Preset>,
    length: usize,
) -> Result<Memory> {
    for (flag, count) in [
        ("--mem-cache-size", args.mem_cache_size),
        ("--mem-cache-freq", args.mem_cache_freq),
        ("--mid-length", args.mid_length),
    ] {
        if count == Some(0) {
            return Err(Error::flag(flag, "must be at least 1", ""));
        }
    }
    let is_landmark = config.attention != Attention::Plain;
    let default = if is_landmark { LmCache::Mem } else { LmCache::None };
    let length = length.max(1);
    let (cache, chunk) = match args.lm_cache.unwrap_or(default) {
        LmCache::None => (CacheShape::None, config.context),
        LmCache::Kv | LmCache::KvTrain => {
            // Keys farther back than the trained context are of no use to a model that never saw the distance.
            let positions = args.mem_cache_size.unwrap_or(length.min(config.context));
            (CacheShape::Kv { positions }, args.mid_length.unwrap_or(config.context.min(256)).min(length))
        }
        LmCache::Mem if !is_landmark => {
            return Err(Error::flag(
                "--lm-cache",
                "mem finds blocks by their landmarks, and this model has none",
                "use kv or none for this model",
            ));
        }
        LmCache::Mem => landmark_memory(args, run, config, preset, length)?,
    };
    let offloaded = args.offload_cache_to_cpu == Some(true);
    let selection = match (args.cache_selection_method, preset) {
        (Some(given), _) => granularity(given),
        (None, _) if offloaded => granularity(Selection::MaxOverTokens),
        (None, Some(preset)) => preset.selection,
        (None, None) => granularity(run.cache_selection_method),
    };
    let miss_cutoff = run.rem_cutoff.map(|cutoff| (cutoff as f32).to_bits());
    Ok(Memory { cache, chunk, selection, miss_cutoff, predict: PredictAt::of(config) })
}

fn landmark_memory(
    args: &MemoryArgs,
    run: &RunArgs,
    config: &ModelConfig,
    preset: Option<&Preset>,
    length: usize,
) -> Result<(CacheShape, usize)> {
    let trained = config.mem_freq.or(run.mem_freq).or(run.mem_cache_freq);
    let freq = args.mem_cache_freq.or(trained).ok_or_else(|| {
        let help = "give the number of ordinary tokens between landmarks that it was trained with";
        Error::flag("--mem-cache-freq", "the checkpoint does not say how long its blocks are", help)
    })?;
    let block = freq.max(1).saturating_add(1);
    let default = preset.map_or(DEFAULT_TOP_K, |preset| preset.top_k);
    let top_k = args.cache_topk.unwrap_or_else(|| fitting_top_k(config.context, block, default));
    let chunk = args.mid_length.or(preset.map(|preset| preset.chunk));
    // Beside k retrieved blocks and an unfinished one there has to be room for a chunk of at least one block.
    let fits = (config.context / block).saturating_sub(2);
    if chunk.is_none() && top_k > fits.max(1) {
        let reason = format!(
            "{top_k} blocks of {block} positions leave no room for the text in the trained context of {} positions",
            config.context
        );
        let help =
            format!("the largest that fits is {}; or set the chunk yourself with --mid-length", fits.max(1));
        return Err(Error::flag("--cache-topk", reason, help));
    }
    let blocks = args.mem_cache_size.unwrap_or(length / (block - 1) + 1);
    let chunk = chunk.unwrap_or_else(|| fitting_chunk(config.context, block, top_k)).min(length);
    Ok((CacheShape::Mem { blocks, block, top_k }, chunk))
}

/// An engine with this memory for `batch` texts at a time, and room for the weights that [`Opened::fill`] puts into it. Blocks
/// come from `saved` where it holds them.
///
/// # Errors
/// A budget that is too small, a folder that cannot be written to, too little memory.
pub fn engine<B: Backend>(
    backend: B,
    opened: &Opened,
    memory: &Memory,
    args: &MemoryArgs,
    batch: usize,
    lookups: bool,
    saved: Option<MemoryFile>,
) -> Result<Engine<B>> {
    let settings = memory.settings(Sampling::default(), 0, lookups);
    let room = Room { compute: opened.compute, ..settings.room(&opened.config, memory.cache, batch) };
    // Before anything is computed from its extents.
    room.validate(&opened.config).map_err(landmark_model::engine::Error::from)?;
    let paging = paging(args, opened, memory.cache, batch, saved)?;
    let lora = opened.adapter.as_ref().map(Adapted::lora);
    Ok(Engine::with(backend, opened.config.clone(), room, lora, paging)?)
}

/// Where the pages of a memory go.
fn paging(
    args: &MemoryArgs,
    opened: &Opened,
    cache: CacheShape,
    batch: usize,
    saved: Option<MemoryFile>,
) -> Result<Paging> {
    let (config, element) = (&opened.config, opened.compute.size());
    let CacheShape::Mem { blocks, block, .. } = cache else {
        let given = args.device_memory.is_some() || args.host_memory.is_some() || args.memory_file.is_some();
        return match given {
            false => Ok(Paging::default()),
            true => Err(Error::flag(
                "--device-memory",
                "tiers are for a landmark memory, and this run has none",
                "leave --device-memory, --host-memory and --memory-file out",
            )),
        };
    };
    let pages = batch * (blocks + 1) * config.kv_heads;
    let page = block * config.head_dim * element;
    let landmarks = (config.layers * pages * config.head_dim * element) as u64;
    let total = (2 * config.layers * pages) as u64 * page as u64;
    if let Device::Wgpu(_) = opened.device {
        return on_one_tier(args, landmarks + total, saved, opened);
    }
    let fewest = landmarks + FEWEST_PAGES * page as u64;
    // In host memory: but for what a GPU keeps of the blocks that it used last.
    let offloaded = args.offload_cache_to_cpu == Some(true) && opened.device != Device::Cpu;
    let offloaded = offloaded.then_some(landmarks + BESIDE_THE_HOST);
    let device = match args.device_memory.map(|size| size.as_u64()).or(offloaded) {
        Some(size) if size < fewest => {
            let reason = format!("the landmark keys of {blocks} blocks alone take {}", ByteSize(landmarks));
            return Err(Error::flag(
                "--device-memory",
                reason,
                format!("give at least {}", ByteSize(fewest)),
            ));
        }
        size => size.map(|size| size - landmarks),
    };
    let host = args.host_memory.map(|size| size.as_u64());
    if args.memory_file.is_none() && saved.is_none() {
        if let (Some(device), Some(host)) = (device, host)
            && device.saturating_add(host) < total
        {
            let reason =
                format!("{blocks} blocks take {}, more than both budgets", ByteSize(total + landmarks));
            return Err(Error::flag(
                "--host-memory",
                reason,
                "raise it, or give --memory-file FILE for the rest",
            ));
        }
        return Ok(Paging { device, host, store: None });
    }
    let folder = match &args.memory_file {
        Some(file) => match file.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        },
        None => std::env::temp_dir(),
    };
    let scratch = ScratchPages::create(&folder, &vec![pages; 2 * config.layers], page)?;
    let dtype = stored(opened.compute);
    let store = Arc::new(Store { saved, scratch, dtype, written: Mutex::default() });
    let device = device.or_else(|| host.is_none().then_some(BESIDE_A_FILE));
    Ok(Paging { device: Some(device.unwrap_or(0)), host: Some(host.unwrap_or(0)), store: Some(store) })
}

/// Where there is the device's memory alone: budgets that hold everything change nothing, and smaller ones cannot be kept.
fn on_one_tier(args: &MemoryArgs, needed: u64, saved: Option<MemoryFile>, opened: &Opened) -> Result<Paging> {
    let offloaded = args.offload_cache_to_cpu == Some(true);
    let has_room = args.device_memory.is_none_or(|size| size.as_u64() >= needed);
    let other_tiers = [
        ("--device-memory", !has_room),
        ("--host-memory", args.host_memory.is_some()),
        ("--memory-file", args.memory_file.is_some()),
        ("--offload-cache-to-cpu", offloaded),
    ];
    if let Some((flag, _)) = other_tiers.iter().find(|(_, is_asked)| *is_asked) {
        let reason =
            format!("wgpu keeps a memory whole on the device, and this one takes {}", ByteSize(needed));
        let help = "leave it out, or use --device cuda or --device cpu, which have a tier in host memory";
        return Err(Error::flag(flag, reason, help));
    }
    let store = saved.map(|saved| -> Arc<dyn PageStore> {
        Arc::new(Saved { memory: saved, dtype: stored(opened.compute) })
    });
    Ok(Paging { device: None, host: None, store })
}

/// The pages of a saved memory, which a device reads once.
#[derive(Debug)]
struct Saved {
    memory: MemoryFile,
    /// Type of the pages that are asked for.
    dtype: landmark_formats::tensor::DType,
}

impl PageStore for Saved {
    fn read(&self, id: PageId, into: &mut [u8]) -> std::result::Result<(), String> {
        self.memory
            .read_as(id.tensor, id.page, self.dtype, into)
            .map(|_| ())
            .map_err(|error| error.to_string())
    }

    fn write(&self, _: PageId, _: &[u8]) -> std::result::Result<(), String> {
        Err("a saved memory is not written to".to_owned())
    }
}

/// A type of floats as files have it.
pub(crate) fn stored(compute: DType) -> landmark_formats::tensor::DType {
    match compute {
        DType::Bf16 => landmark_formats::tensor::DType::BF16,
        DType::F16 => landmark_formats::tensor::DType::F16,
        _ => landmark_formats::tensor::DType::F32,
    }
}

/// Pages in a scratch file, over those of a saved memory.
#[derive(Debug)]
struct Store {
    saved: Option<MemoryFile>,
    scratch: ScratchPages,
    /// Type of the pages that are asked for.
    dtype: landmark_formats::tensor::DType,
    /// Pages that the scratch file holds; kept only if the saved memory might hold others of the same names.
    written: Mutex<HashSet<PageId>>,
}

impl Store {
    fn is_written(&self, id: PageId) -> bool {
        self.written.lock().is_ok_and(|written| written.contains(&id))
    }
}

impl PageStore for Store {
    fn read(&self, id: PageId, into: &mut [u8]) -> std::result::Result<(), String> {
        if let Some(saved) = self.saved.as_ref().filter(|_| !self.is_written(id))
            && saved.read_as(id.tensor, id.page, self.dtype, into).map_err(|error| error.to_string())?
        {
            return Ok(());
        }
        self.scratch.read(id.tensor, id.page, into).map_err(|error| error.to_string())
    }

    fn write(&self, id: PageId, from: &[u8]) -> std::result::Result<(), String> {
        self.scratch.write(id.tensor, id.page, from).map_err(|error| {
            format!("{error}; free some space, name another place with --memory-file, or raise --host-memory")
        })?;
        if self.saved.is_some()
            && let Ok(mut written) = self.written.lock()
        {
            written.insert(id);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, parse};

    /// A model of context 64 and blocks of 8: with k 5, two blocks of 7 tokens are left for a chunk.
    #[test]
    fn memories_fit_model_and_text() {
        let resolve = |model: &str, flags: &str| {
            let line = format!("landmark generate --checkpoint a {flags}");
            let Command::Generate(args) = parse(line.split_whitespace()).unwrap().command else { panic!() };
            let stored = serde_json::json!({"model": model, "n_embd": 64, "n_head": 4, "n_layer": 2,
                "sequence_length": 64, "mem_freq": 7});
            let run = RunArgs::resolve(stored.as_object().unwrap(), &Given::default());
            let config = landmark_model::released::config(&run.to_map()).unwrap();
            super::memory(&args.memory, &run, &config, None, 1000).map(|memory| (memory.cache, memory.chunk))
        };
        let mem = |blocks, block, top_k| CacheShape::Mem { blocks, block, top_k };
        assert_eq!(resolve("landmark", "").unwrap(), (mem(143, 8, 5), 14));
        let given =
            resolve("landmark", "--mem_cache_size 9 --mem_cache_freq 3 --cache_topk 2 --mid_length 30");
        assert_eq!(given.unwrap(), (mem(9, 4, 2), 30));
        assert_eq!(resolve("base", "").unwrap().0, CacheShape::None);
        assert_eq!(resolve("landmark", "--lm_cache none").unwrap().0, CacheShape::None);
        assert_eq!(resolve("base", "--lm_cache kv").unwrap().0, CacheShape::Kv { positions: 64 });
        let too_many = resolve("landmark", "--cache_topk 7").unwrap_err();
        assert!(too_many.help().unwrap().contains("the largest that fits is 6"), "{too_many}");
        assert_eq!(resolve("landmark", "--mid-length 0").unwrap_err().exit_code(), 2);
        assert!(resolve("base", "--lm_cache mem").unwrap_err().to_string().starts_with("--lm-cache: "));
    }
}
