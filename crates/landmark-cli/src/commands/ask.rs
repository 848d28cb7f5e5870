//! `landmark index` and `landmark ask`: a text is read once and asked often.
//!
//! `index` reads the whole chunks of a text and saves the memory with the tokens behind them; `ask` opens the file,
//! reads those few tokens and the question, and answers. So an answer is, token for token, what `generate` gives for
//! the text and the question in one.

use std::path::Path;
use std::time::Instant;

use landmark_core::{Backend, DType};
use landmark_formats::pages::{MemoryFile, MemoryInfo, MemoryWriter, PageType};
use landmark_model::engine::Engine;
use landmark_model::generate::Generator;
use landmark_model::memory_reader::MemoryReader;
use landmark_model::model::{CacheShape, LayerCache};
use landmark_model::sample::Sampling;
use pollster::block_on;
use serde::Serialize;

use super::generate::Prompt;
use crate::answer::{self, Continuation, Times};
use crate::args::ask::{AskArgs, IndexArgs};
use crate::args::memory::ModelArgs;
use crate::args::values::Selection;
use crate::embedded;
use crate::error::{Error, Result};
use crate::machine::peak_memory;
use crate::opened::{self, Opened};
use crate::report::Report;

/// Pages copied to a file at a time.
const PAGES_AT_ONCE: usize = 1024;

/// What reading a text gave.
#[derive(Clone, Debug, Serialize)]
struct Indexed {
    memory: String,
    tokens: usize,
    blocks: usize,
    bytes: u64,
    tokens_per_second: f64,
    peak_memory_bytes: Option<u64>,
}

/// Reads a text and saves the memory.
///
/// # Errors
/// If the flags cannot be followed, the text or the model cannot be read, or the file cannot be written.
pub fn index(args: &IndexArgs, report: &Report) -> Result<()> {
    let device = args.device.device.select()?;
    if args.memory.mem_cache_size.is_some() {
        let help = "leave it out";
        return Err(Error::flag("--mem-cache-size", "a saved memory keeps every block", help));
    }
    let prompt = match args.text.to_str() {
        Some("-") => Prompt::Stdin,
        _ => Prompt::File(args.text.clone()),
    };
    let text = prompt.text()?.unwrap_or_default();
    let opened = Opened::open(&args.model, device)?;
    let tokens = opened.encode(&text)?;
    index_on(device.open(opened.blocks())?, args, &opened, &tokens, report)
}

fn index_on<B: Backend>(
    backend: B,
    args: &IndexArgs,
    opened: &Opened,
    tokens: &[u32],
    report: &Report,
) -> Result<()> {
    // As long as any text, so that the chunks are those of a longer one: the question comes behind.
    let unbounded = opened.memory(&args.memory, usize::MAX >> 8)?;
    let mut memory = opened.memory(&args.memory, tokens.len())?;
    let CacheShape::Mem { block, top_k, .. } = memory.cache else {
        let help = "index works with a landmark memory; leave --lm-cache out";
        return Err(Error::flag("--model", "this model has no landmark memory", help));
    };
    let chunk = unbounded.chunk;
    memory.chunk = chunk;
    let mut engine = opened::engine(backend, opened, &memory, &args.memory, 1, false, None)?;
    opened.fill(&mut engine)?;
    let began = Instant::now();
    let settings = memory.settings(Sampling::default(), 0, false);
    let whole = tokens.len() / chunk * chunk;
    let mut reader =
        MemoryReader::new(&mut engine, vec![0], settings.selection, settings.miss_cutoff, settings.predict);
    let progress = report.progress("reading", whole as u64, "tokens");
    for start in (0..whole).step_by(chunk) {
        reader.fill(&[&tokens[start..start + chunk]])?;
        progress.at((start + chunk) as u64, "");
    }
    let positions = reader.lengths()[0];
    drop(progress);
    let seconds = began.elapsed().as_secs_f64();
    let config = &opened.config;
    let info = MemoryInfo {
        model: opened.fingerprint()?,
        model_path: absolute(opened.checkpoint.path()),
        layers: config.layers,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        block,
        positions,
        tokens: tokens.len(),
        chunk,
        top_k,
        retrieval: Selection::from(memory.selection).name(),
        dtype: page_type(opened.compute),
    };
    save(&engine, &info, tokens, &args.output, report)?;
    let bytes = std::fs::metadata(&args.output).map_err(|error| Error::io(&args.output, error))?.len();
    report.print(format!(
        "{} holds {} tokens in {} blocks: {}",
        args.output.display(),
        tokens.len(),
        info.blocks(),
        bytesize::ByteSize(bytes)
    ))?;
    report.json(&Indexed {
        memory: args.output.display().to_string(),
        tokens: tokens.len(),
        blocks: info.blocks(),
        bytes,
        tokens_per_second: whole as f64 / seconds,
        peak_memory_bytes: peak_memory(),
    })
}

/// Pages are saved as they lie in the memory.
fn page_type(compute: DType) -> PageType {
    match compute {
        DType::Bf16 => PageType::Bf16,
        DType::F16 => PageType::F16,
        _ => PageType::F32,
    }
}

fn absolute(path: &Path) -> String {
    if embedded::is_name(path) {
        return path.display().to_string();
    }
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}

/// Copies a memory to a file, a few pages at a time.
fn save<B: Backend>(
    engine: &Engine<B>,
    info: &MemoryInfo,
    tokens: &[u32],
    path: &Path,
    report: &Report,
) -> Result<()> {
    let mut writer = MemoryWriter::create(path, info.clone())?;
    let page = info.block * info.head_dim;
    let mut landmarks = Vec::with_capacity(info.layers);
    let total = (2 * info.layers * info.pages()) as u64;
    let (progress, mut done) = (report.progress("saving", total, "pages"), 0);
    for cache in &engine.model().caches {
        let LayerCache::Mem { keys, values, landmarks: of } = *cache else { continue };
        for tensor in [keys, values] {
            for first in (0..info.pages()).step_by(PAGES_AT_ONCE) {
                let last = (first + PAGES_AT_ONCE).min(info.pages());
                writer.pages(&block_on(engine.read_at::<u8>(tensor, first * page..last * page))?)?;
                done += (last - first) as u64;
                progress.at(done, "");
            }
        }
        // The ring has more slots than blocks were filled.
        let all = block_on(engine.read_floats(of))?;
        let of_head = |keys: &[f32]| keys[..info.blocks() * info.head_dim].to_vec();
        landmarks.push(all.chunks_exact(all.len() / info.kv_heads).flat_map(of_head).collect());
    }
    Ok(writer.finish(tokens, &landmarks)?)
}

/// Landmark keys of a saved memory, into an engine with room for them.
fn load<B: Backend>(engine: &mut Engine<B>, saved: &[Vec<f32>], info: &MemoryInfo) -> Result<()> {
    let caches = engine.model().caches.clone();
    for (cache, keys) in caches.iter().zip(saved) {
        let LayerCache::Mem { landmarks, .. } = *cache else { continue };
        let slots = engine.model().layout.info(landmarks).shape.dims()[2];
        for (head, keys) in keys.chunks_exact((info.blocks() * info.head_dim).max(1)).enumerate() {
            engine.write_floats_at(landmarks, head * slots * info.head_dim, keys)?;
        }
    }
    Ok(())
}

/// What a question gave.
#[derive(Clone, Debug, Serialize)]
struct Answered {
    #[serde(flatten)]
    continuation: Continuation,
    /// Tokens that were not read, because they are remembered.
    remembered_tokens: usize,
    seconds: f64,
    tokens_per_second: f64,
    peak_memory_bytes: Option<u64>,
}

/// Answers a question from a saved memory.
///
/// # Errors
/// If the flags cannot be followed, the memory is damaged or another model's, or the model fails.
pub fn ask(args: &AskArgs, report: &Report) -> Result<()> {
    let device = args.device.device.select()?;
    let sampling = super::generate::sampling(&args.answer)?;
    let saved = MemoryFile::open(&args.saved)?;
    let model = ModelArgs {
        model: args.model.model.clone().or_else(|| Some(saved.info().model_path.clone().into())),
        ..args.model.clone()
    };
    let opened = Opened::open(&model, device)?;
    if opened.fingerprint()? != saved.info().model {
        return Err(Error::Input {
            path: args.saved.clone(),
            reason: format!("was read by another model than {}", opened.checkpoint.path().display()),
            help: "name the model that read it with --model (and --adapter), or read the text again with landmark index"
                .to_owned(),
        });
    }
    ask_on(device.open(opened.blocks())?, args, &opened, saved, sampling, report)
}

fn ask_on<B: Backend>(
    backend: B,
    args: &AskArgs,
    opened: &Opened,
    saved: MemoryFile,
    sampling: Sampling,
    report: &Report,
) -> Result<()> {
    let began = Instant::now();
    let info = saved.info().clone();
    let question = match (&args.question, &args.question_tokens) {
        (_, Some(tokens)) => tokens.clone(),
        (Some(question), None) => opened.encode_more(&args.template.replace("{question}", question))?,
        (None, None) => Vec::new(),
    };
    let mut flags = args.memory.clone();
    flags.cache_topk = flags.cache_topk.or(Some(info.top_k));
    flags.mid_length = flags.mid_length.or(Some(info.chunk));
    flags.mem_cache_freq = Some(info.block - 1);
    if flags.cache_selection_method.is_none() && flags.offload_cache_to_cpu.is_none() {
        flags.cache_selection_method = Selection::named(&info.retrieval);
    }
    let text = saved.tokens().to_vec();
    let read = info.positions - info.blocks();
    let memory = opened.memory(&flags, text.len() + question.len() + args.answer.max_new_tokens)?;
    let shape = (info.layers, info.kv_heads, info.head_dim);
    let config = &opened.config;
    let CacheShape::Mem { blocks, block, .. } = memory.cache else {
        let help = "leave --lm-cache out";
        return Err(Error::flag("--lm-cache", "a saved memory is a landmark memory", help));
    };
    if shape != (config.layers, config.kv_heads, config.head_dim) || blocks < info.blocks() {
        let (reason, help) =
            ("does not fit this model".to_owned(), "give larger --mem-cache-size".to_owned());
        return Err(Error::Input { path: args.saved.clone(), reason, help });
    }
    let landmarks: Vec<Vec<f32>> = (0..info.layers).map(|layer| saved.landmarks(layer).to_vec()).collect();
    let lookups = args.answer.wants_lookups();
    let mut engine = opened::engine(backend, opened, &memory, &flags, 1, lookups, Some(saved))?;
    opened.fill(&mut engine)?;
    load(&mut engine, &landmarks, &info)?;
    let settings = memory.settings(sampling, args.answer.seed, lookups);
    let mut generator = Generator::resume(&mut engine, settings, vec![info.positions])?;
    let prompt = [&text[read..], &question].concat();
    let end = if args.answer.ignore_eos { Vec::new() } else { opened.end_tokens() };
    let (mut found, Times { written, .. }) =
        answer::answer(&mut generator, &[&prompt], &end, opened.tokenizer.as_ref(), &args.answer, report)?;
    let continuation = found.remove(0);
    if args.answer.no_stream {
        report.print(&continuation.text)?;
    }
    if lookups {
        let all = [&text[..], &question].concat();
        let shape = (config.layers, config.heads);
        let title = args.saved.display().to_string();
        let lookup = answer::lookup(&title, &all, block, opened.tokenizer.as_ref(), shape, &continuation);
        answer::show(&lookup, &args.answer, report)?;
    }
    report.json(&Answered {
        tokens_per_second: continuation.new_tokens.len() as f64 / written,
        continuation,
        remembered_tokens: read,
        seconds: began.elapsed().as_secs_f64(),
        peak_memory_bytes: peak_memory(),
    })
}
