//! A text read into a landmark memory, piece by piece, and questions about it.
//!
//! Whole chunks of the text are read and then left alone; what is left behind them is read with each question, as
//! `landmark ask` does it. So an answer is the one that text and question together would have got from the command line,
//! token for token, and another question costs no second reading: the memory goes back to where the chunks ended.
//!
//! The same question *without* the memory of the text goes to an engine of its own, which sees the last tokens of the trained
//! context and nothing else. It reads them as the model was trained to, with landmarks, into a memory as long as that context:
//! what a short text says is found, what stands before the window is not. Rejected: the window without landmarks, which a model
//! trained with them has never seen, so that it fails for another reason than the one that is to be shown.

use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::text::Text;
use landmark_core::{Backend, DType};
use landmark_model::engine::Engine;
use landmark_model::generate::{DEFAULT_TOP_K, Generator, Settings, fitting_chunk, fitting_top_k};
use landmark_model::memory_reader::Fetched;
use landmark_model::model::{CacheShape, Room};
use landmark_model::reader::PredictAt;
use landmark_model::record::Granularity;
use landmark_model::sample::Sampling;
use landmark_wgpu::AdapterInfo;

/// Tokens that a question may have.
pub const LONGEST_QUESTION: usize = 512;

/// Tokens that an answer may have.
pub const LONGEST_ANSWER: usize = 256;

/// The type of activations and of the memory on an adapter: half types, half the bytes of what a context of 131,072 tokens
/// leaves behind; but floats where it computes in software, which takes longer to widen a half than to read a float.
pub fn on_wgpu(adapter: &AdapterInfo) -> DType {
    if adapter.is_software { DType::F32 } else { DType::F16 }
}

/// Settings under which the model reads and answers: those of the command line.
fn settings(files: &ModelFiles, lookups: bool) -> (Settings, usize) {
    let (context, block) = (files.config.context, files.block());
    let top_k = fitting_top_k(context, block, DEFAULT_TOP_K);
    let settings = Settings {
        sampling: Sampling::default(),
        seed: 0,
        chunk: fitting_chunk(context, block, top_k),
        selection: Granularity::PerTokenAndHead,
        miss_cutoff: None,
        predict: PredictAt::of(&files.config),
        lookups,
    };
    (settings, top_k)
}

/// An engine with the model's weights in it.
fn engine<B: Backend + 'static>(backend: B, files: &ModelFiles, room: Room) -> Result<Engine<B>> {
    room.validate(&files.config).map_err(landmark_model::engine::Error::from)?;
    let mut engine = Engine::new(backend, files.config.clone(), room)?;
    engine.load(|name| files.find(name))?;
    Ok(engine)
}

/// Blocks of a memory for a text of `tokens`, a question and an answer.
fn blocks(files: &ModelFiles, tokens: usize) -> usize {
    (tokens + LONGEST_QUESTION + LONGEST_ANSWER) / files.freq + 2
}

/// An answer under way.
struct Answer<B: Backend + 'static> {
    generator: Generator<'static, B>,
    tokens: Vec<u32>,
}

impl<B: Backend + 'static> Answer<B> {
    /// None yet, from a memory of so many blocks. Gives the settings of the memory as well.
    fn new(
        backend: B,
        files: &ModelFiles,
        blocks: usize,
        compute: DType,
        lookups: bool,
    ) -> Result<(Answer<B>, Settings, usize)> {
        let (settings, top_k) = settings(files, lookups);
        let cache = CacheShape::Mem { blocks, block: files.block(), top_k };
        let room = Room { compute, ..settings.room(&files.config, cache, 1) };
        let generator = Generator::owning(engine(backend, files, room)?, settings.clone())?;
        Ok((Answer { generator, tokens: Vec::new() }, settings, top_k))
    }

    /// The answer with one more token, or none at its end. Characters that are not whole yet are left out.
    async fn next(&mut self, files: &ModelFiles) -> Result<Option<String>> {
        let token = self.generator.next().await?[0];
        match token.filter(|token| !files.end.contains(token) && self.tokens.len() < LONGEST_ANSWER) {
            None => Ok(None),
            Some(token) => {
                self.tokens.push(token);
                let text = files.tokenizer.decode(&self.tokens);
                Ok(Some(text.trim_end_matches('\u{FFFD}').to_owned()))
            }
        }
    }
}

/// A memory of a text.
pub struct Recall<B: Backend + 'static> {
    answer: Answer<B>,
    /// Blocks that the ring has room for.
    blocks: usize,
    top_k: usize,
    chunk: usize,
    /// Ordinary tokens read in whole chunks.
    read: usize,
    /// Positions that they take.
    positions: usize,
}

impl<B: Backend + 'static> Recall<B> {
    /// An empty memory with room for a text of `tokens`, a question and an answer, in the given type.
    ///
    /// # Errors
    /// Too little memory, weights that are missing or of another model.
    pub fn new(backend: B, files: &ModelFiles, tokens: usize, compute: DType) -> Result<Recall<B>> {
        let blocks = blocks(files, tokens);
        let (answer, Settings { chunk, .. }, top_k) = Answer::new(backend, files, blocks, compute, true)?;
        Ok(Recall { answer, blocks, top_k, chunk, read: 0, positions: 0 })
    }

    /// Whether it can be used again for a text of `tokens`: it has room, and not far too much.
    pub fn fits(&self, files: &ModelFiles, tokens: usize) -> bool {
        let blocks = blocks(files, tokens);
        (blocks..=blocks.saturating_mul(2)).contains(&self.blocks)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        (self.read, self.positions) = (0, 0);
        self.answer.generator.rewind(0);
    }

    /// Ordinary tokens of a chunk.
    pub fn chunk(&self) -> usize {
        self.chunk
    }

    /// Blocks fetched for each token and head.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Its generator, to look inside.
    pub fn generator(&mut self) -> &mut Generator<'static, B> {
        &mut self.answer.generator
    }

    /// Reads up to `chunks` more chunks, waits for them, and gives the number of tokens read in all. A rest that makes no
    /// whole chunk is read with the question.
    ///
    /// # Errors
    /// Failures of the backend, tokens that the model does not have.
    pub async fn read(&mut self, text: &Text, chunks: usize) -> Result<usize> {
        let generator = &mut self.answer.generator;
        if self.positions != generator.lengths()[0] {
            generator.rewind(self.positions);
        }
        for _ in 0..chunks {
            let Some(chunk) = text.tokens().get(self.read..self.read + self.chunk) else { break };
            generator.fill(chunk)?;
            self.read += self.chunk;
            self.positions = generator.lengths()[0];
        }
        generator.settle().await?;
        Ok(self.read)
    }

    /// Whether all whole chunks of a text are read.
    pub fn is_done(&self, text: &Text) -> bool {
        self.read + self.chunk > text.tokens().len()
    }

    /// Reads what is left of the text and the question behind it.
    ///
    /// # Errors
    /// A text that is not read yet, an empty question, one that is too long, failures of the backend.
    pub async fn ask(&mut self, files: &ModelFiles, text: &Text, question: &str) -> Result<()> {
        if !self.is_done(text) {
            return Err(Error::Order("read the text"));
        }
        let tokens = text.followed_by(files, question, self.read)?;
        check(&tokens, text.tokens().len() - self.read)?;
        self.answer.tokens.clear();
        self.answer.generator.rewind(self.positions);
        self.answer.generator.read(&[&tokens], |_| ()).await?;
        Ok(())
    }

    /// The answer with one more token; none at its end.
    ///
    /// # Errors
    /// Nothing was asked, failures of the backend.
    pub async fn next(&mut self, files: &ModelFiles) -> Result<Option<String>> {
        self.answer.next(files).await
    }

    /// What was fetched for the last token of the answer, by layer and head.
    ///
    /// # Errors
    /// Failures of the backend.
    pub async fn lookups(&self) -> Result<Vec<Vec<Vec<Fetched>>>> {
        Ok(self.answer.generator.lookups(0).await?)
    }
}

/// A question has to be one, and to fit.
fn check(tokens: &[u32], before: usize) -> Result<()> {
    match tokens.len().checked_sub(before) {
        _ if tokens.is_empty() => Err(Error::Input("There is no question. Ask something.".into())),
        Some(count) if count > LONGEST_QUESTION => Err(Error::Input(format!(
            "The question has {count} tokens; it may have {LONGEST_QUESTION}. Put what is long into the text."
        ))),
        _ => Ok(()),
    }
}

/// The model without a memory of the text: it sees one window.
pub struct Alone<B: Backend + 'static> {
    answer: Answer<B>,
    /// Ordinary tokens of the window.
    window: usize,
}

impl<B: Backend + 'static> Alone<B> {
    /// A model that sees its trained context.
    ///
    /// # Errors
    /// As [`Recall::new`].
    pub fn new(backend: B, files: &ModelFiles, compute: DType) -> Result<Alone<B>> {
        let window = files.config.context;
        let (answer, ..) = Answer::new(backend, files, blocks(files, window), compute, false)?;
        Ok(Alone { answer, window })
    }

    /// Its generator, to look inside.
    pub fn generator(&mut self) -> &mut Generator<'static, B> {
        &mut self.answer.generator
    }

    /// Reads as much of the text's end, with the question behind it, as the window holds. Gives the number of tokens.
    ///
    /// # Errors
    /// As [`Recall::ask`].
    pub async fn ask(&mut self, files: &ModelFiles, text: &Text, question: &str) -> Result<usize> {
        let tokens = text.followed_by(files, question, 0)?;
        check(&tokens, text.tokens().len())?;
        let seen = &tokens[tokens.len().saturating_sub(self.window)..];
        self.answer.tokens.clear();
        self.answer.generator.rewind(0);
        self.answer.generator.read(&[seen], |_| ()).await?;
        Ok(seen.len())
    }

    /// The answer with one more token; none at its end.
    ///
    /// # Errors
    /// As [`Recall::next`].
    pub async fn next(&mut self, files: &ModelFiles) -> Result<Option<String>> {
        self.answer.next(files).await
    }
}
