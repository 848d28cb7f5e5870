//! Generation: a prompt of any length is read in chunks, then token by token (spec section 4).
//!
//! With a memory, tokens are appended one at a time, and when a block is full its landmark goes through the model
//! too (the [`Reader`] sees to that); a landmark is never chosen. With a kv cache, likewise without landmarks.
//! Without either, as in the released program, the last `context` tokens are read anew for every token.
//!
//! Programs have static shapes, so a window that grows token by token would be compiled anew each time. It is
//! padded on the right to a multiple of `PADDING` instead: no position sees what comes after it.

use crate::config::{Attention, ModelConfig};
use crate::engine::{self, Engine};
use crate::model::{CacheShape, Room};
use crate::random::{Purpose, generator};
use crate::reader::{PredictAt, Reader, laden_length};
use crate::record::Granularity;
use crate::sample::{SampleError, Sampling};
use landmark_core::Backend;
use rand_chacha::ChaCha8Rng;

/// Window lengths are multiples of this.
const PADDING: usize = 16;

/// How to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Seed of the choice.
    pub seed: u64,
    /// Ordinary tokens of a chunk of the prompt, where there is a cache.
    pub chunk: usize,
    /// Granularity of the choice of blocks.
    pub selection: Granularity,
    /// Shares of the context-miss token below this count as 0 (`rem_cutoff`).
    pub miss_cutoff: Option<f32>,
    /// Where the token after a full block is predicted.
    pub predict: PredictAt,
}

/// Why no token could be generated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model failed.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// No token could be chosen.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// There is nothing to continue.
    #[error("the prompt is empty; give at least one token to continue")]
    Empty,
    /// A token that the model does not have.
    #[error(
        "token {token} of the prompt is outside the model's vocabulary of {vocab}; use the tokenizer that the model was trained with"
    )]
    Token {
        /// The token.
        token: u32,
        /// Rows of the embedding.
        vocab: usize,
    },
}

impl Settings {
    /// Room that an engine needs to generate with this cache.
    pub fn room(&self, config: &ModelConfig, cache: CacheShape) -> Room {
        let (tokens, logits) = match cache {
            CacheShape::None => (config.context.next_multiple_of(PADDING), PADDING),
            CacheShape::Kv { .. } => (self.chunk, 1),
            CacheShape::Mem { block, .. } => (laden_length(self.chunk, block), 2),
        };
        Room { batch: 1, tokens, logits, cache, training: None }
    }
}

/// The most blocks, up to `wanted`, that can be retrieved and leave room for a chunk of a block in the context that
/// the model was trained on; at least 1.
pub fn fitting_top_k(context: usize, block: usize, wanted: usize) -> usize {
    (context / block).saturating_sub(2).clamp(1, wanted.max(1))
}

/// Ordinary tokens of a chunk of whole blocks that, with `top_k` retrieved blocks and an unfinished one, fits the
/// context that the model was trained on: `T - T mod B - (k + 1)·B` positions (spec section 4), or one block.
pub fn fitting_chunk(context: usize, block: usize, top_k: usize) -> usize {
    (context / block).saturating_sub(top_k + 1).max(1) * (block - 1)
}

/// Generates one token after another.
pub struct Generator<'e, B: Backend> {
    reader: Reader<'e, B>,
    settings: Settings,
    random: ChaCha8Rng,
    banned: Vec<u32>,
    /// The last tokens, at most a context of them, where there is no cache.
    window: Vec<u32>,
    /// Of the token to come; empty before the prompt.
    logits: Vec<f32>,
    /// Chosen, and not yet read.
    chosen: Option<u32>,
}

impl<'e, B: Backend> Generator<'e, B> {
    /// A generator with nothing read yet. The engine has [`Settings::room`].
    pub fn new(engine: &'e mut Engine<B>, settings: Settings) -> Self {
        let config = engine.config();
        let banned = match config.attention {
            Attention::Plain => Vec::new(),
            Attention::Landmark | Attention::LandmarkWithMiss => vec![config.landmark_id],
        };
        let random = generator(settings.seed, Purpose::Sampling, 0, 0);
        let reader = Reader::new(engine, 1, settings.selection, settings.miss_cutoff);
        Generator { reader, settings, random, banned, window: Vec::new(), logits: Vec::new(), chosen: None }
    }

    /// Reads a prompt, behind what was read before. `progress` is told how many of its tokens are read.
    ///
    /// # Errors
    /// An empty prompt, tokens that the model does not have, landmarks where the memory puts its own.
    pub async fn read(&mut self, tokens: &[u32], mut progress: impl FnMut(usize)) -> Result<(), Error> {
        let vocab = self.reader.engine().config().vocab_size;
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocab) {
            return Err(Error::Token { token, vocab });
        }
        if tokens.is_empty() {
            return Err(Error::Empty);
        }
        let tokens: Vec<u32> = self.chosen.take().into_iter().chain(tokens.iter().copied()).collect();
        if self.reader.engine().model().room.cache == CacheShape::None {
            self.logits = self.slide(&tokens).await?;
            progress(tokens.len());
            return Ok(());
        }
        let chunk = self.settings.chunk.max(1);
        let mut done = 0;
        while tokens.len() - done > chunk {
            self.reader.fill(&tokens[done..done + chunk])?;
            done += chunk;
            progress(done);
        }
        self.logits = self.reader.logits(&tokens[done..], self.settings.predict).await?;
        progress(tokens.len());
        Ok(())
    }

    /// The next token. It is read when the one after it is asked for.
    ///
    /// # Errors
    /// No prompt was read, logits that are no numbers, failures of the backend.
    pub async fn next(&mut self) -> Result<u32, Error> {
        if let Some(token) = self.chosen.take() {
            self.logits = match self.reader.engine().model().room.cache {
                CacheShape::None => self.slide(&[token]).await?,
                _ => self.reader.logits(&[token], self.settings.predict).await?,
            };
        }
        if self.logits.is_empty() {
            return Err(Error::Empty);
        }
        let token = self.settings.sampling.choose(&self.logits, &self.banned, &mut self.random)?;
        self.chosen = Some(token);
        Ok(token)
    }

    /// Logits after the window, moved on by `tokens`.
    async fn slide(&mut self, tokens: &[u32]) -> Result<Vec<f32>, Error> {
        let config = self.reader.engine().config();
        let (context, vocab) = (config.context, config.vocab_size);
        // Any token will do behind the window, but a landmark would add a block.
        let padding = u32::from(config.landmark_id == 0);
        self.window.extend_from_slice(tokens);
        self.window.drain(..self.window.len().saturating_sub(context));
        let length = self.window.len();
        let mut padded = self.window.clone();
        padded.resize(length.next_multiple_of(PADDING), padding);
        let rows = self.reader.all_logits(&padded, PADDING).await?;
        let last = PADDING - (padded.len() - length) - 1;
        Ok(rows[last * vocab..(last + 1) * vocab].to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use landmark_core::Cpu;
    use std::future::Future;
    use std::task::{Context, Poll, Waker};

    const LANDMARK: u32 = 30;
    const MEM: CacheShape = CacheShape::Mem { blocks: 9, block: 4, top_k: 2 };

    /// The CPU answers at once.
    fn wait<T>(future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("the CPU backend does not wait"),
        }
    }

    fn settings(chunk: usize) -> Settings {
        Settings {
            sampling: Sampling::default(),
            seed: 1,
            chunk,
            selection: Granularity::PerTokenAndHead,
            miss_cutoff: None,
            predict: PredictAt::LastToken,
        }
    }

    fn engine(attention: Attention, cache: CacheShape, settings: &Settings) -> Engine<Cpu<f64>> {
        let mut config = ModelConfig::gpt(40, 16, 2, 2, attention);
        (config.landmark_id, config.context) = (LANDMARK, 20);
        let room = Room { logits: 20, ..settings.room(&config, cache) };
        let mut engine = Engine::new(Cpu::new(), config, room).unwrap();
        engine.initialise(3).unwrap();
        // First weights are so small that every token looks like every other.
        for parameter in engine.model().weights.parameters.clone() {
            let values: Vec<f32> = parameter.initial(3, 0).iter().map(|x| x * 10.0).collect();
            if parameter.shape.len() == 2 {
                engine.write(parameter.tensor, &values).unwrap();
            }
        }
        engine
    }

    fn generate(attention: Attention, cache: CacheShape, settings: Settings, prompt: &[u32]) -> Vec<u32> {
        let mut engine = engine(attention, cache, &settings);
        let mut generator = Generator::new(&mut engine, settings);
        wait(generator.read(prompt, |_| ())).unwrap();
        (0..30).map(|_| wait(generator.next()).unwrap()).collect()
    }

    fn prompt(length: u32) -> Vec<u32> {
        (0..length).map(|i| i * i * 7 % 29).collect()
    }

    /// The logits after a full block are those at its last ordinary token, or those at its landmark.
    #[test]
    fn the_prediction_after_a_full_block_is_read_where_the_model_learnt_it() {
        for (count, fills) in [(2, false), (3, true), (4, false), (6, true), (9, true)] {
            let settings = settings(20);
            let mut engine = engine(Attention::Landmark, MEM, &settings);
            let logits = |engine: &mut Engine<Cpu<f64>>, predict| {
                let mut reader = Reader::new(engine, 1, settings.selection, None);
                wait(reader.logits(&prompt(count), predict)).unwrap()
            };
            let token = logits(&mut engine, PredictAt::LastToken);
            let position = logits(&mut engine, PredictAt::LastPosition);
            let mut reader = Reader::new(&mut engine, 1, settings.selection, None);
            let all = wait(reader.all_logits(&prompt(count), 2)).unwrap();
            assert_eq!(position, all[40..], "{count}");
            assert_eq!(token, if fills { &all[..40] } else { &all[40..] }, "{count}");
        }
    }

    /// Where nothing needs to be chosen, the chunks in which the prompt is read change nothing.
    #[test]
    fn chunks_of_the_prompt_do_not_matter_to_a_cache_that_keeps_all() {
        let kv = CacheShape::Kv { positions: 60 };
        let at_once = generate(Attention::Plain, kv, settings(20), &prompt(17));
        for chunk in [1, 2, 5, 16, 17] {
            assert_eq!(generate(Attention::Plain, kv, settings(chunk), &prompt(17)), at_once, "{chunk}");
        }
    }

    /// The window, read anew each time, gives what a cache gives, until it slides.
    #[test]
    fn padding_a_window_changes_nothing() {
        let kv = generate(Attention::Plain, CacheShape::Kv { positions: 60 }, settings(20), &prompt(3));
        let window = generate(Attention::Plain, CacheShape::None, settings(20), &prompt(3));
        assert_eq!(kv[..17], window[..17]);
    }

    /// The same tokens, pushed by hand through a reader.
    #[test]
    fn generation_with_memory_is_reading_token_by_token() {
        for length in [1, 3, 8, 27] {
            let settings = settings(6);
            let found = generate(Attention::Landmark, MEM, settings.clone(), &prompt(length));
            let mut engine = engine(Attention::Landmark, MEM, &settings);
            let mut reader = Reader::new(&mut engine, 1, settings.selection, None);
            let tokens = prompt(length);
            let mut logits = Vec::new();
            for chunk in tokens.chunks(6) {
                logits = wait(reader.logits(chunk, PredictAt::LastToken)).unwrap();
            }
            for &token in &found {
                logits[LANDMARK as usize] = f32::NEG_INFINITY;
                let best = (0..40).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
                assert_eq!(token, best as u32);
                logits = wait(reader.logits(&[token], PredictAt::LastToken)).unwrap();
            }
            let total = length as usize + found.len();
            assert_eq!(reader.length(), total + total / 3, "a landmark after every three tokens");
        }
    }

    /// A model that wants nothing but landmarks never gets one.
    #[test]
    fn landmarks_are_never_chosen() {
        let settings =
            Settings { sampling: Sampling { temperature: 5.0, ..Sampling::default() }, ..settings(6) };
        for cache in [MEM, CacheShape::None] {
            let tokens = generate(Attention::Landmark, cache, settings.clone(), &prompt(5));
            assert!(!tokens.contains(&LANDMARK), "{tokens:?}");
        }
        let mut engine = engine(Attention::Landmark, MEM, &settings);
        let mut generator = Generator::new(&mut engine, settings);
        generator.logits = vec![0.0; 40];
        generator.logits[LANDMARK as usize] = 1e9;
        assert_ne!(wait(generator.next()).unwrap(), LANDMARK);
    }

    #[test]
    fn impossible_prompts_are_refused() {
        let settings = settings(6);
        let mut engine = engine(Attention::Landmark, MEM, &settings);
        let mut generator = Generator::new(&mut engine, settings);
        assert!(matches!(wait(generator.next()), Err(Error::Empty)));
        assert!(matches!(wait(generator.read(&[], |_| ())), Err(Error::Empty)));
        assert!(matches!(wait(generator.read(&[1, 40], |_| ())), Err(Error::Token { token: 40, vocab: 40 })));
        let refused = wait(generator.read(&[1, LANDMARK], |_| ()));
        assert!(matches!(refused, Err(Error::Engine(engine::Error::LandmarkInInput))));
    }

    /// The rules of spec section 4, by hand: T 512, B 51, k 5 leaves 10 - 6 blocks of 50 tokens.
    #[test]
    fn chunks_fit_the_context() {
        assert_eq!((fitting_top_k(512, 51, 5), fitting_chunk(512, 51, 5)), (5, 200));
        assert_eq!((fitting_top_k(256, 51, 5), fitting_chunk(256, 51, 3)), (3, 50));
        assert_eq!((fitting_top_k(64, 51, 5), fitting_chunk(64, 51, 1)), (1, 50));
    }
}
