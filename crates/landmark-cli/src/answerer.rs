//! A model as something that answers prompts, for [`probe`](crate::probe).
//!
//! The model is opened once. Its memory is made as large as a prompt needs, so it is made anew only when prompts become
//! longer than any before, or much shorter: a long memory's landmarks would take room for nothing.

use std::path::Path;
use std::time::{Instant, UNIX_EPOCH};

use landmark_core::Backend;
use landmark_data::Tokenizer;
use landmark_model::engine::Engine;
use landmark_model::generate::Generator;
use landmark_model::sample::Sampling;
use landmark_probe::{Answer, Answerer, Failure};
use pollster::block_on;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::args::memory::MemoryArgs;
use crate::args::passkey::ProbeArgs;
use crate::checkpoint::hex;
use crate::device::Device;
use crate::embedded;
use crate::error::{Error, Result};
use crate::machine::peak_memory;
use crate::opened::{self, Memory, Opened};

/// Counts tokens, without a model's weights.
pub struct Counter(Tokenizer);

impl Counter {
    /// The tokenizer that the flags name, or that of the model, or GPT-2's.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn open(args: &ProbeArgs) -> Result<Counter> {
        match (&args.model.tokenizer, &args.model.model) {
            (Some(path), _) => Ok(Counter(Tokenizer::from_file(path, None)?)),
            (None, Some(_)) => {
                let opened = Opened::open(&args.model, Device::Cpu)?;
                opened.tokenizer()?;
                Ok(Counter(opened.tokenizer.unwrap_or_else(Tokenizer::gpt2)))
            }
            (None, None) => Ok(Counter(Tokenizer::gpt2())),
        }
    }

    /// Tokens of a text, with those that the tokenizer puts around it.
    ///
    /// # Errors
    /// If the tokenizer has none for a part of it.
    pub fn count(&self, text: &str) -> std::result::Result<usize, Failure> {
        Ok(self.0.encode(text)?.len())
    }
}

/// A model that was opened to answer.
pub struct Asked {
    /// Answers.
    pub answerer: Box<dyn Answerer>,
    /// What tells it from others: the file and its age, the tokenizer.
    pub identity: Value,
    /// A name for people.
    pub title: String,
}

/// Opens a model, to be asked in prompts of up to `longest` tokens.
///
/// # Errors
/// If it cannot be read, or the machine has too little memory for such prompts.
pub fn open(args: &ProbeArgs, longest: Option<usize>) -> Result<Asked> {
    let path = args.model.path();
    let device = args.device.device.select()?;
    let opened = Opened::open(&args.model, device)?;
    let tokenizer = opened.tokenizer()?.info().clone();
    let identity = json!({
        "file": identity(opened.checkpoint.path())?,
        "tokenizer": tokenizer,
        "memory": format!("{:?}", args.memory),
    });
    let (title, memory) = (path.display().to_string(), args.memory.clone());
    let backend = device.open(opened.blocks())?;
    let model = Model { backend, opened, flags: memory, engine: None };
    // Before a long prompt is written. A GPU has other memory than that in which prompts are written.
    if let (Some(length), Device::Cpu) = (longest, device) {
        model.room(length)?;
    }
    Ok(Asked { answerer: Box::new(model), identity, title })
}

/// Which file, and whether it is still the one that it was.
fn identity(path: &Path) -> Result<Value> {
    if let Some(model) = embedded::named(path)? {
        let mut hash = Sha256::new();
        model.files.iter().for_each(|(_, bytes)| hash.update(bytes));
        return Ok(json!({ "path": model.name, "sha256": hex(hash) }));
    }
    let found = std::fs::metadata(path).map_err(|error| Error::io(path, error))?;
    let modified = found.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    Ok(
        json!({ "path": path, "bytes": found.len(), "modified": modified.map(|time| time.as_millis() as u64) }),
    )
}

struct Model<B: Backend> {
    backend: B,
    opened: Opened,
    flags: MemoryArgs,
    /// With room for prompts and answers of so many tokens.
    engine: Option<(usize, Memory, Engine<B>)>,
}

impl<B: Backend + Clone> Model<B> {
    /// Makes an engine with room for `length` tokens.
    fn prepare(&mut self, length: usize) -> Result<()> {
        if self.engine.as_ref().is_some_and(|(room, _, _)| (length..length.saturating_mul(2)).contains(room))
        {
            return Ok(());
        }
        self.engine = None;
        let (length, memory, mut engine) = self.room(length)?;
        self.opened.fill(&mut engine)?;
        self.engine = Some((length, memory, engine));
        Ok(())
    }

    /// Room for `length` tokens and a few more, which are counted.
    fn room(&self, length: usize) -> Result<(usize, Memory, Engine<B>)> {
        let length = length.saturating_add(length / 16 + 1);
        let memory = self.opened.memory(&self.flags, length)?;
        let engine =
            opened::engine(self.backend.clone(), &self.opened, &memory, &self.flags, 1, false, None)?;
        Ok((length, memory, engine))
    }

    fn continued(&mut self, prompt: &str, max_new_tokens: usize) -> Result<Answer> {
        let began = Instant::now();
        let tokens = self.opened.encode(prompt)?;
        self.prepare(tokens.len() + max_new_tokens)?;
        let end = self.opened.end_tokens();
        let mut new = Vec::new();
        if let Some((_, memory, engine)) = &mut self.engine {
            let settings = memory.settings(Sampling::default(), 0, false);
            let mut generator = Generator::new(engine, settings, 1)?;
            block_on(generator.read(&[&tokens], |_| ()))?;
            while new.len() < max_new_tokens {
                match block_on(generator.next())?[0] {
                    Some(token) if !end.contains(&token) => new.push(token),
                    _ => break,
                }
            }
        }
        Ok(Answer {
            text: self.opened.tokenizer()?.decode(&new),
            prompt_tokens: tokens.len(),
            seconds: began.elapsed().as_secs_f64(),
            peak_memory_bytes: peak_memory(),
        })
    }
}

impl<B: Backend + Clone> Answerer for Model<B> {
    fn count(&self, text: &str) -> std::result::Result<usize, Failure> {
        Ok(self.opened.encode(text)?.len())
    }

    fn answer(&mut self, prompt: &str, max_new_tokens: usize) -> std::result::Result<Answer, Failure> {
        Ok(self.continued(prompt, max_new_tokens)?)
    }
}
