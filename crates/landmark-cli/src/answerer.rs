//! A model as something that answers prompts, for [`probe`](crate::probe).
//!
//! The model is opened once. Its memory is made as large as a prompt needs, so it is made anew only when prompts become longer than any
//! before, or much shorter: a long memory's landmarks would be scored for nothing.

use std::path::Path;
use std::time::{Instant, UNIX_EPOCH};

use landmark_core::Cpu;
use landmark_data::Tokenizer;
use landmark_model::config::ModelConfig;
use landmark_model::engine::Engine;
use landmark_model::generate::{self, Generator};
use landmark_model::reader::PredictAt;
use landmark_model::sample::Sampling;
use landmark_probe::{Answer, Answerer, Failure};
use pollster::block_on;
use serde_json::{Value, json};

use crate::args::generate::GenerateArgs;
use crate::args::passkey::ProbeArgs;
use crate::args::{self, Command};
use crate::checkpoint::{AttentionBias, Checkpoint};
use crate::commands::generate::{Memory, memory};
use crate::error::{Error, Result};
use crate::evaluation::granularity;
use crate::machine::peak_memory;
use crate::settings::{Given, RunArgs};

/// Counts tokens, without a model.
#[derive(Debug)]
pub struct Counter(Tokenizer);

impl Counter {
    /// The tokenizer that the flags name.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn open(args: &ProbeArgs) -> Result<Counter> {
        let tokenizer = match &args.tokenizer {
            Some(path) => Tokenizer::from_file(path, None)?,
            None => Tokenizer::gpt2(),
        };
        Ok(Counter(tokenizer))
    }

    /// Tokens of a text.
    ///
    /// # Errors
    /// If the tokenizer has none for a part of it.
    pub fn count(&self, text: &str) -> std::result::Result<usize, Failure> {
        Ok(self.0.encode_ordinary(text)?.len())
    }
}

/// A model that was opened.
pub struct Opened {
    /// Answers.
    pub answerer: Box<dyn Answerer>,
    /// What tells it from others: the file and its age, the tokenizer.
    pub identity: Value,
    /// A name for people.
    pub title: String,
}

/// Opens a model.
///
/// # Errors
/// If it cannot be read.
pub fn open(model: &Path, args: &ProbeArgs) -> Result<Opened> {
    let checkpoint = Checkpoint::open(model)?;
    let counter = Counter::open(args)?;
    let run = RunArgs::resolve(checkpoint.settings(), &Given::default());
    let config = checkpoint.config(&run)?;
    let info = counter.0.info();
    let identity = json!({ "file": identity(checkpoint.path())?, "tokenizer": info });
    // The flags of a generation that gives none but the model.
    let line = ["landmark", "generate", "--checkpoint", "-"];
    let Command::Generate(flags) = args::parse(line)?.command else {
        return Err(Error::flag("--model", "its flags are not those of a generation", ""));
    };
    let title = model.display().to_string();
    let answerer = CheckpointModel { checkpoint, counter, run, config, flags, engine: None };
    Ok(Opened { answerer: Box::new(answerer), identity, title })
}

/// Which file, and whether it is still the one that it was.
fn identity(path: &Path) -> Result<Value> {
    let found = std::fs::metadata(path).map_err(|error| Error::io(path, error))?;
    let modified = found.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    Ok(
        json!({ "path": path, "bytes": found.len(), "modified": modified.map(|time| time.as_millis() as u64) }),
    )
}

struct CheckpointModel {
    checkpoint: Checkpoint,
    counter: Counter,
    run: RunArgs,
    config: ModelConfig,
    flags: GenerateArgs,
    /// With room for prompts and answers of so many tokens.
    engine: Option<(usize, Memory, Engine<Cpu<f32>>)>,
}

impl CheckpointModel {
    fn settings(&self, chunk: usize) -> generate::Settings {
        generate::Settings {
            sampling: Sampling::default(),
            seed: 0,
            chunk,
            selection: granularity(self.run.cache_selection_method),
            miss_cutoff: self.run.rem_cutoff.map(|cutoff| cutoff as f32),
            predict: PredictAt::LastToken,
        }
    }

    /// An engine with room for `length` tokens.
    fn prepare(&mut self, length: usize) -> Result<()> {
        if self.engine.as_ref().is_some_and(|(room, _, _)| (length..length.saturating_mul(2)).contains(room))
        {
            return Ok(());
        }
        self.engine = None;
        let length = length + length / 16 + 1;
        let memory = memory(&self.flags, &self.run, &self.config, length)?;
        let room = self.settings(memory.chunk).room(&self.config, memory.cache);
        let mut engine = Engine::new(Cpu::<f32>::new(), self.config.clone(), room)?;
        self.checkpoint.load(&mut engine, AttentionBias::Keep)?;
        self.engine = Some((length, memory, engine));
        Ok(())
    }
}

impl Answerer for CheckpointModel {
    fn count(&self, text: &str) -> std::result::Result<usize, Failure> {
        self.counter.count(text)
    }

    fn answer(&mut self, prompt: &str, max_new_tokens: usize) -> std::result::Result<Answer, Failure> {
        let began = Instant::now();
        let tokens = self.counter.0.encode_ordinary(prompt)?;
        self.prepare(tokens.len() + max_new_tokens)?;
        let chunk = self.engine.as_ref().map_or(1, |(_, memory, _)| memory.chunk);
        let settings = self.settings(chunk);
        let Some((_, _, engine)) = &mut self.engine else { return Err("the model is not open".into()) };
        let mut generator = Generator::new(engine, settings);
        block_on(generator.read(&tokens, |_| ()))?;
        let new: std::result::Result<Vec<u32>, _> =
            (0..max_new_tokens).map(|_| block_on(generator.next())).collect();
        Ok(Answer {
            text: self.counter.0.decode(&new?),
            prompt_tokens: tokens.len(),
            seconds: began.elapsed().as_secs_f64(),
            peak_memory_bytes: peak_memory(),
        })
    }
}
