//! `landmark generate`: flags to settings, a prompt to tokens, tokens to text as they come.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use landmark_core::{Backend, Cpu};
use landmark_data::Tokenizer;
use landmark_model::config::{Attention, ModelConfig};
use landmark_model::engine::Engine;
use landmark_model::generate::{self, Generator, fitting_chunk, fitting_top_k};
use landmark_model::model::CacheShape;
use landmark_model::reader::PredictAt;
use landmark_model::sample::Sampling;
use pollster::block_on;
use serde::Serialize;

use crate::args::generate::GenerateArgs;
use crate::args::values::LmCache;
use crate::checkpoint::{AttentionBias, Checkpoint};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::evaluation::granularity;
use crate::machine::peak_memory;
use crate::report::Report;
use crate::settings::{Given, RunArgs};

/// Blocks retrieved, if the trained context has room for them.
const DEFAULT_TOP_K: usize = 5;

/// Prompts longer than this are mistakes (a wrong file): about a hundred million tokens.
const LONGEST_PROMPT: u64 = 512 << 20;

/// What is continued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// A text, to be tokenised.
    Text(String),
    /// The text in a file.
    File(PathBuf),
    /// The text on standard input.
    Stdin,
    /// Tokens.
    Tokens(Vec<u32>),
}

/// A generation, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateSettings {
    /// What is continued.
    pub prompt: Prompt,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Where to compute.
    pub device: Device,
}

/// Resolves the flags that do not depend on the checkpoint. Reads nothing.
///
/// # Errors
/// Names the flag that cannot be followed.
pub fn settings(args: &GenerateArgs) -> Result<GenerateSettings> {
    let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p };
    sampling.validate()?;
    let prompt = match (&args.prompt, &args.prompt_file, &args.prompt_tokens) {
        (Some(text), _, _) => Prompt::Text(text.clone()),
        (_, Some(file), _) => Prompt::File(file.clone()),
        (_, _, Some(tokens)) => Prompt::Tokens(tokens.clone()),
        _ => Prompt::Stdin,
    };
    for (flag, count) in [
        ("--mem-cache-size", args.mem_cache_size),
        ("--mem-cache-freq", args.mem_cache_freq),
        ("--mid-length", args.mid_length),
    ] {
        if count == Some(0) {
            return Err(Error::flag(flag, "must be at least 1", ""));
        }
    }
    Ok(GenerateSettings { prompt, sampling, device: args.device.device.select()? })
}

impl Prompt {
    /// The text to be tokenised; `None` if the prompt is tokens.
    ///
    /// # Errors
    /// If the file or standard input cannot be read, is too long, or is not UTF-8.
    pub fn text(&self) -> Result<Option<String>> {
        let (name, input): (&Path, Box<dyn Read>) = match self {
            Prompt::Tokens(_) => return Ok(None),
            Prompt::Text(text) => return Ok(Some(text.clone())),
            Prompt::Stdin => (Path::new("<standard input>"), Box::new(std::io::stdin().lock())),
            Prompt::File(path) => {
                (path, Box::new(std::fs::File::open(path).map_err(|error| Error::io(path, error))?))
            }
        };
        let mut bytes = Vec::new();
        input.take(LONGEST_PROMPT + 1).read_to_end(&mut bytes).map_err(|error| Error::io(name, error))?;
        let refuse = |reason: &str, help: &str| Error::Input {
            path: name.to_owned(),
            reason: reason.to_owned(),
            help: help.to_owned(),
        };
        if bytes.len() as u64 > LONGEST_PROMPT {
            return Err(refuse("is too long for a prompt", "a prompt has at most 512 MiB"));
        }
        let text = String::from_utf8(bytes)
            .map_err(|_| refuse("is not UTF-8 text", "convert it, or give --prompt-tokens"))?;
        Ok(Some(text))
    }
}

/// The cache that a generation uses, and the chunks in which its prompt is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The cache.
    pub cache: CacheShape,
    /// Ordinary tokens of a chunk.
    pub chunk: usize,
}

/// Resolves the flags of the memory for a model that was trained with the settings `run`, and a text of `length`
/// tokens in all.
///
/// # Errors
/// Names the flag that cannot be followed.
pub fn memory(args: &GenerateArgs, run: &RunArgs, config: &ModelConfig, length: usize) -> Result<Memory> {
    let is_landmark = config.attention != Attention::Plain;
    let default = if is_landmark { LmCache::Mem } else { LmCache::None };
    let chunk = args.mid_length;
    match args.lm_cache.unwrap_or(default) {
        LmCache::None => Ok(Memory { cache: CacheShape::None, chunk: config.context }),
        LmCache::Kv | LmCache::KvTrain => {
            // Keys farther back than the trained context are of no use to a model that never saw the distance.
            let positions = args.mem_cache_size.unwrap_or(length.min(config.context));
            let chunk = chunk.unwrap_or(config.context.min(256)).min(length);
            Ok(Memory { cache: CacheShape::Kv { positions }, chunk })
        }
        LmCache::Mem if !is_landmark => Err(Error::flag(
            "--lm-cache",
            "mem finds blocks by their landmarks, and this model has none",
            "use kv or none for this model",
        )),
        LmCache::Mem => {
            let freq = args.mem_cache_freq.or(run.mem_freq).or(run.mem_cache_freq).ok_or_else(|| {
                let help = "give the number of ordinary tokens between landmarks that it was trained with";
                Error::flag("--mem-cache-freq", "the checkpoint does not say how long its blocks are", help)
            })?;
            let block = freq.max(1).saturating_add(1);
            let top_k =
                args.cache_topk.unwrap_or_else(|| fitting_top_k(config.context, block, DEFAULT_TOP_K));
            let blocks = args.mem_cache_size.unwrap_or(length / (block - 1) + 1);
            let chunk = chunk.unwrap_or_else(|| fitting_chunk(config.context, block, top_k)).min(length);
            Ok(Memory { cache: CacheShape::Mem { blocks, block, top_k }, chunk })
        }
    }
}

/// What a generation gave.
#[derive(Clone, Debug, Serialize)]
struct Outcome {
    new_tokens: Vec<u32>,
    text: String,
    prompt_tokens: usize,
    /// Tokens of the prompt read in each second.
    prompt_tokens_per_second: f64,
    /// Tokens generated in each second.
    tokens_per_second: f64,
    peak_memory_bytes: Option<u64>,
}

/// Generates text.
///
/// # Errors
/// If the flags cannot be followed, the checkpoint cannot be read, or a token cannot be chosen.
pub fn run(args: &GenerateArgs, report: &Report) -> Result<()> {
    let settings = settings(args)?;
    let checkpoint = Checkpoint::open(&args.checkpoint)?;
    let tokenizer = match &args.tokenizer {
        Some(path) => Tokenizer::from_file(path, None)?,
        None => Tokenizer::gpt2(),
    };
    let prompt = match (settings.prompt.text()?, &settings.prompt) {
        (Some(text), _) => tokenizer.encode_ordinary(&text)?,
        (None, Prompt::Tokens(tokens)) => tokens.clone(),
        (None, _) => Vec::new(),
    };
    match settings.device {
        Device::Cpu => run_on(Cpu::<f32>::new(), args, &settings, &checkpoint, &tokenizer, &prompt, report),
    }
}

fn run_on<B: Backend>(
    backend: B,
    args: &GenerateArgs,
    settings: &GenerateSettings,
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    report: &Report,
) -> Result<()> {
    let run = RunArgs::resolve(checkpoint.settings(), &Given::default());
    let config = checkpoint.config(&run)?;
    let Memory { cache, chunk } =
        memory(args, &run, &config, prompt.len().saturating_add(args.max_new_tokens).max(1))?;
    let how = generate::Settings {
        sampling: settings.sampling.clone(),
        seed: args.seed,
        chunk,
        selection: granularity(args.cache_selection_method.unwrap_or(run.cache_selection_method)),
        miss_cutoff: run.rem_cutoff.map(|cutoff| cutoff as f32),
        predict: PredictAt::of(&config),
    };
    let mut engine = Engine::new(backend, config.clone(), how.room(&config, cache))?;
    checkpoint.load(&mut engine, AttentionBias::Keep)?;
    let mut generator = Generator::new(&mut engine, how);
    let began = Instant::now();
    let progress = report.progress("reading the prompt", prompt.len() as u64, "tokens");
    block_on(generator.read(prompt, |done| progress.at(done as u64, "")))?;
    drop(progress);
    let read = began.elapsed().as_secs_f64();

    let began = Instant::now();
    let mut decoder = tokenizer.decode_stream();
    let (mut new_tokens, mut text) = (Vec::new(), String::new());
    for _ in 0..args.max_new_tokens {
        let token = block_on(generator.next())?;
        new_tokens.push(token);
        let piece = decoder.push(token);
        text += &piece;
        if !args.no_stream {
            report.stream(&piece)?;
        }
    }
    let rest = decoder.finish();
    text += &rest;
    report.print(if args.no_stream { &text } else { &rest })?;
    let seconds = began.elapsed().as_secs_f64();
    report.json(&Outcome {
        tokens_per_second: new_tokens.len() as f64 / seconds,
        new_tokens,
        text,
        prompt_tokens: prompt.len(),
        prompt_tokens_per_second: prompt.len() as f64 / read,
        peak_memory_bytes: peak_memory(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, parse};

    fn resolve(flags: &[&str]) -> Result<GenerateSettings> {
        let line = [&["landmark", "generate", "--checkpoint", "a"], flags].concat();
        let Command::Generate(generate) = parse(line)?.command else { panic!() };
        settings(&generate)
    }

    #[test]
    fn prompts_come_from_one_place() {
        let prompt = |flags: &[&str]| resolve(flags).unwrap().prompt;
        assert_eq!(prompt(&[]), Prompt::Stdin);
        assert_eq!(prompt(&["--prompt", "--top_k is a flag"]), Prompt::Text("--top_k is a flag".into()));
        assert_eq!(prompt(&["--prompt_tokens", "1,2,3"]), Prompt::Tokens(vec![1, 2, 3]));
        assert_eq!(prompt(&["--prompt-file", "f"]), Prompt::File("f".into()));
        assert!(resolve(&["--prompt", "a", "--prompt-tokens", "1"]).is_err());
        assert!(resolve(&["--prompt-tokens", "1,-2"]).is_err());
    }

    #[test]
    fn impossible_choices_are_usage_errors() {
        for flags in [["--temperature", "-1"], ["--top-k", "0"], ["--top-p", "1.5"], ["--mid-length", "0"]] {
            assert_eq!(resolve(&flags).unwrap_err().exit_code(), 2, "{flags:?}");
        }
    }

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
            memory(&args, &run, &config, 1000)
        };
        let mem = |blocks, block, top_k| CacheShape::Mem { blocks, block, top_k };
        assert_eq!(resolve("landmark", "").unwrap(), Memory { cache: mem(143, 8, 5), chunk: 14 });
        let given =
            resolve("landmark", "--mem_cache_size 9 --mem_cache_freq 3 --cache_topk 2 --mid_length 30");
        assert_eq!(given.unwrap(), Memory { cache: mem(9, 4, 2), chunk: 30 });
        assert_eq!(resolve("base", "").unwrap().cache, CacheShape::None);
        assert_eq!(resolve("landmark", "--lm_cache none").unwrap().cache, CacheShape::None);
        assert_eq!(resolve("base", "--lm_cache kv").unwrap().cache, CacheShape::Kv { positions: 64 });
        assert!(resolve("base", "--lm_cache mem").unwrap_err().to_string().starts_with("--lm-cache: "));
    }

    #[test]
    fn prompts_that_are_no_text_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompt.txt");
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(Prompt::File(path.clone()).text().unwrap_err().to_string().contains("is not UTF-8"));
        std::fs::write(&path, "text").unwrap();
        assert_eq!(Prompt::File(path.clone()).text().unwrap().as_deref(), Some("text"));
        assert!(matches!(Prompt::File(folder.path().join("none")).text(), Err(Error::Io { .. })));
    }
}
