//! Generation: a prompt of any length is read in chunks, then token by token (spec section 4).
//!
//! With a memory, tokens are appended one at a time, and when a block is full its landmark goes through the model
//! too (the [`MemoryReader`] sees to that); a landmark is never chosen. Several prompts of any lengths are read side by
//! side. With a kv cache, likewise without landmarks, one prompt at a time. Without either, as in the released
//! program, the last `context` tokens are read anew for every token.
//!
//! Programs have static shapes, so a window that grows token by token would be compiled anew each time. It is
//! padded on the right to a multiple of `PADDING` instead: no position sees what comes after it.

use crate::config::ModelConfig;
use crate::engine::{self, Engine, Held};
use crate::memory_reader::{Fetched, MemoryReader};
use crate::model::{CacheShape, Room};
use crate::random::{Purpose, generator};
use crate::reader::{PredictAt, Reader, laden_length};
use crate::record::Granularity;
use crate::sample::{SampleError, Sampling};
use landmark_core::ops::Likeliest;
use landmark_core::{Backend, DType};
use rand_chacha::ChaCha8Rng;

/// Blocks retrieved unless something else is asked for, if the trained context has room for them.
pub const DEFAULT_TOP_K: usize = 5;

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
    /// Whether it is kept which blocks were retrieved.
    pub lookups: bool,
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
    /// Settings under which a batch cannot be generated.
    #[error("{0} prompts at a time need a landmark memory; without one, give one prompt")]
    Batch(usize),
}

impl Settings {
    /// Room that an engine needs to generate from `batch` prompts at a time with this cache.
    pub fn room(&self, config: &ModelConfig, cache: CacheShape, batch: usize) -> Room {
        let (tokens, logits) = match cache {
            CacheShape::None => (config.context.next_multiple_of(PADDING), PADDING),
            CacheShape::Kv { .. } => (self.chunk, 1),
            CacheShape::Mem { block, .. } => (laden_length(self.chunk, block), 1),
        };
        Room { batch, tokens, logits, cache, training: None, lookups: self.lookups, compute: DType::F32 }
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

/// Generates one token after another, for one prompt or several.
pub struct Generator<'e, B: Backend> {
    source: Source<'e, B>,
    settings: Settings,
    banned: Vec<u32>,
    rows: Vec<Row>,
}

/// What reads the tokens.
enum Source<'e, B: Backend> {
    Memory(MemoryReader<'e, B>),
    Keys(Reader<'e, B>),
    /// The last tokens, at most a context of them.
    Window(Reader<'e, B>, Vec<u32>),
}

/// One prompt and its continuation.
struct Row {
    random: ChaCha8Rng,
    /// Of the token to come.
    next: Next,
    /// Chosen, and not yet read.
    chosen: Option<u32>,
    /// Nothing more is wanted.
    is_done: bool,
}

/// What is known of the token to come.
#[derive(Clone, Debug, PartialEq)]
enum Next {
    /// No prompt was read.
    Nothing,
    /// Its logits.
    Logits(Vec<f32>),
    /// The likeliest one, chosen on the device, where the logits stay until somebody wants them.
    Likeliest(u32),
}

impl Next {
    /// Room for logits.
    fn as_logits(&mut self) -> &mut Vec<f32> {
        if !matches!(self, Next::Logits(_)) {
            *self = Next::Logits(Vec::new());
        }
        match self {
            Next::Logits(logits) => logits,
            Next::Nothing | Next::Likeliest(_) => unreachable!("made logits above"),
        }
    }
}

impl<'e, B: Backend> Generator<'e, B> {
    /// A generator of `batch` rows with nothing read yet. The engine has [`Settings::room`].
    ///
    /// # Errors
    /// Several rows without a memory.
    pub fn new(engine: &'e mut Engine<B>, settings: Settings, batch: usize) -> Result<Self, Error> {
        Self::resume(engine, settings, vec![0; batch])
    }

    /// A generator of one row that keeps its engine.
    ///
    /// # Errors
    /// None of those of [`new`](Self::new): one row always can be generated.
    pub fn owning(engine: Engine<B>, settings: Settings) -> Result<Generator<'static, B>, Error> {
        Generator::holding(Held::Owned(Box::new(engine)), settings, vec![0])
    }

    /// A generator whose rows' memories hold so many positions already.
    ///
    /// # Errors
    /// Several rows without a memory.
    pub fn resume(engine: &'e mut Engine<B>, settings: Settings, lengths: Vec<usize>) -> Result<Self, Error> {
        Self::holding(Held::Lent(engine), settings, lengths)
    }

    fn holding(engine: Held<'e, B>, settings: Settings, lengths: Vec<usize>) -> Result<Self, Error> {
        let banned = engine.config().banned().into_iter().collect();
        let row = |number| Row {
            random: generator(settings.seed, Purpose::Sampling, number, 0),
            next: Next::Nothing,
            chosen: None,
            is_done: false,
        };
        let rows: Vec<Row> = (0..lengths.len() as u64).map(row).collect();
        let (selection, cutoff) = (settings.selection, settings.miss_cutoff);
        let source = match engine.model().room.cache {
            CacheShape::Mem { .. } => {
                Source::Memory(MemoryReader::holding(engine, lengths, selection, cutoff, settings.predict))
            }
            _ if rows.len() != 1 => return Err(Error::Batch(rows.len())),
            CacheShape::Kv { .. } => Source::Keys(Reader::holding(engine, 1, selection, cutoff)),
            CacheShape::None => Source::Window(Reader::holding(engine, 1, selection, cutoff), Vec::new()),
        };
        Ok(Generator { source, settings, banned, rows })
    }

    /// The engine.
    pub fn engine(&mut self) -> &mut Engine<B> {
        match &mut self.source {
            Source::Memory(reader) => reader.engine(),
            Source::Keys(reader) | Source::Window(reader, _) => reader.engine(),
        }
    }

    /// Reads a prompt for each row, behind what was read before. `progress` is told how many tokens of all of them
    /// are read.
    ///
    /// # Errors
    /// An empty prompt, tokens that the model does not have, landmarks where the memory puts its own.
    pub async fn read(&mut self, prompts: &[&[u32]], mut progress: impl FnMut(usize)) -> Result<(), Error> {
        assert_eq!(prompts.len(), self.rows.len(), "a prompt for each row");
        let vocab = self.engine().config().vocab_size;
        if let Some(&token) = prompts.iter().copied().flatten().find(|&&token| token as usize >= vocab) {
            return Err(engine::Error::Token { token, vocab }.into());
        }
        if prompts.iter().any(|prompt| prompt.is_empty()) {
            return Err(Error::Empty);
        }
        // What was chosen before and not read yet comes first.
        let texts: Vec<Vec<u32>> = self
            .rows
            .iter_mut()
            .zip(prompts)
            .map(|(row, prompt)| row.chosen.take().into_iter().chain(prompt.iter().copied()).collect())
            .collect();
        if matches!(self.source, Source::Window(..)) {
            let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
            self.step(&texts).await?;
            progress(prompts[0].len());
            return Ok(());
        }
        let chunk = self.settings.chunk.max(1);
        let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
        for start in (0..longest).step_by(chunk) {
            let end = start + chunk;
            let piece = |text: &'_ Vec<u32>| text.get(start..text.len().min(end)).unwrap_or(&[]).to_vec();
            let pieces: Vec<Vec<u32>> = texts.iter().map(piece).collect();
            let pieces: Vec<&[u32]> = pieces.iter().map(Vec::as_slice).collect();
            // Logits are wanted of a row's last chunk.
            if texts.iter().any(|text| (start + 1..=end).contains(&text.len())) {
                self.step(&pieces).await?;
            } else {
                match &mut self.source {
                    Source::Memory(reader) => reader.fill(&pieces)?,
                    Source::Keys(reader) | Source::Window(reader, _) => reader.fill(pieces[0])?,
                }
            }
            progress(texts.iter().map(|text| text.len().min(end)).sum());
        }
        Ok(())
    }

    /// Reads a chunk of one row's text of which no more is wanted than that it is remembered. Nothing waits: a backend that
    /// works for itself may not even have begun. [`settle`](Self::settle) waits.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    ///
    /// # Panics
    /// Without a memory, with several rows, or with more tokens than a chunk has.
    pub fn fill(&mut self, chunk: &[u32]) -> Result<(), Error> {
        assert!(chunk.len() <= self.settings.chunk, "more than a chunk");
        let row = &mut self.rows[0];
        (row.chosen, row.is_done, row.next) = (None, false, Next::Nothing);
        match &mut self.source {
            Source::Memory(reader) => Ok(reader.fill(&[chunk])?),
            Source::Keys(_) | Source::Window(..) => panic!("only a memory is filled"),
        }
    }

    /// Waits until everything that was read is in the memory.
    ///
    /// # Errors
    /// Failures of the backend.
    pub async fn settle(&self) -> Result<(), Error> {
        match &self.source {
            Source::Memory(reader) => Ok(reader.settle().await?),
            Source::Keys(_) | Source::Window(..) => Ok(()),
        }
    }

    /// Forgets everything behind the first `length` positions of the only row: another question about the same text. Without
    /// a memory, everything.
    ///
    /// # Panics
    /// As [`MemoryReader::rewind`].
    pub fn rewind(&mut self, length: usize) {
        let row = &mut self.rows[0];
        (row.chosen, row.is_done, row.next) = (None, false, Next::Nothing);
        match &mut self.source {
            Source::Memory(reader) => reader.rewind(0, length),
            Source::Window(_, window) => window.clear(),
            Source::Keys(reader) => reader.clear(),
        }
    }

    /// Reads a piece for each row; rows with an empty one keep their logits.
    async fn step(&mut self, pieces: &[&[u32]]) -> Result<(), Error> {
        match (&mut self.source, &mut self.rows[..]) {
            (Source::Memory(reader), [row]) if self.settings.sampling.is_greedy() => {
                row.next = Next::Likeliest(reader.likeliest(pieces[0]).await?);
            }
            (Source::Memory(reader), rows) => {
                let mut logits: Vec<&mut Vec<f32>> =
                    rows.iter_mut().map(|row| row.next.as_logits()).collect();
                reader.logits(pieces, &mut logits).await?;
            }
            (Source::Keys(reader), rows) => {
                rows[0].next = Next::Logits(reader.logits(pieces[0], self.settings.predict).await?);
            }
            (Source::Window(reader, window), rows) => {
                rows[0].next = Next::Logits(slide(reader, window, pieces[0]).await?);
            }
        }
        Ok(())
    }

    /// The next token of every row that is not done. They are read when the ones after them are asked for.
    ///
    /// # Errors
    /// No prompt was read, logits that are no numbers, failures of the backend.
    pub async fn next(&mut self) -> Result<Vec<Option<u32>>, Error> {
        let pieces: Vec<Vec<u32>> = self
            .rows
            .iter_mut()
            .map(|row| if row.is_done { Vec::new() } else { row.chosen.take().into_iter().collect() })
            .collect();
        if pieces.iter().any(|piece| !piece.is_empty()) {
            let pieces: Vec<&[u32]> = pieces.iter().map(Vec::as_slice).collect();
            self.step(&pieces).await?;
        }
        if let [Row { next: Next::Likeliest(Likeliest::NO_TOKEN), is_done: false, .. }] = &self.rows[..] {
            // The logits say why.
            self.rows[0].next = Next::Logits(self.logits(0).await?);
        }
        let mut next = Vec::with_capacity(self.rows.len());
        for row in &mut self.rows {
            if row.is_done {
                next.push(None);
                continue;
            }
            let token = match &row.next {
                Next::Nothing => return Err(Error::Empty),
                Next::Likeliest(token) => {
                    self.settings.sampling.validate()?;
                    *token
                }
                Next::Logits(logits) => {
                    self.settings.sampling.choose(logits, &self.banned, &mut row.random)?
                }
            };
            row.chosen = Some(token);
            next.push(Some(token));
        }
        Ok(next)
    }

    /// Says that nothing more is wanted of a row.
    pub fn finish(&mut self, row: usize) {
        self.rows[row].is_done = true;
    }

    /// Logits of which the last token of a row was chosen, or of the one to come; none before the prompt.
    ///
    /// # Errors
    /// Failures of the backend.
    pub async fn logits(&mut self, row: usize) -> Result<Vec<f32>, Error> {
        match (&self.rows[row].next, &mut self.source) {
            (Next::Logits(logits), _) => Ok(logits.clone()),
            (Next::Likeliest(_), Source::Memory(reader)) => Ok(reader.last_logits().await?),
            (Next::Nothing | Next::Likeliest(_), _) => Ok(Vec::new()),
        }
    }

    /// What a row fetched to give those logits, by layer and head; empty without a memory.
    ///
    /// # Errors
    /// Failures of the backend.
    pub async fn lookups(&self, row: usize) -> Result<Vec<Vec<Vec<Fetched>>>, Error> {
        match &self.source {
            Source::Memory(reader) => Ok(reader.lookups(row).await?),
            Source::Keys(_) | Source::Window(..) => Ok(Vec::new()),
        }
    }

    /// Positions stored for each row of a memory, landmarks included.
    pub fn lengths(&self) -> &[usize] {
        match &self.source {
            Source::Memory(reader) => reader.lengths(),
            Source::Keys(_) | Source::Window(..) => &[],
        }
    }
}

/// Logits after the window, moved on by `tokens`.
async fn slide<B: Backend>(
    reader: &mut Reader<'_, B>,
    window: &mut Vec<u32>,
    tokens: &[u32],
) -> Result<Vec<f32>, Error> {
    let config = reader.engine().config();
    let (context, vocab) = (config.context, config.vocab_size);
    // Any token will do behind the window, but a landmark would add a block.
    let padding = u32::from(config.landmark_id == 0);
    window.extend_from_slice(tokens);
    window.drain(..window.len().saturating_sub(context));
    let mut padded = window.clone();
    padded.resize(window.len().next_multiple_of(PADDING), padding);
    let rows = reader.all_logits(&padded, PADDING).await?;
    let last = PADDING - (padded.len() - window.len()) - 1;
    Ok(rows[last * vocab..(last + 1) * vocab].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Attention;
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
            lookups: false,
        }
    }

    fn engine(attention: Attention, cache: CacheShape, settings: &Settings) -> Engine<Cpu<f64>> {
        batch_engine(attention, cache, settings, 1)
    }

    fn batch_engine(
        attention: Attention,
        cache: CacheShape,
        settings: &Settings,
        batch: usize,
    ) -> Engine<Cpu<f64>> {
        let mut config = ModelConfig::gpt(40, 16, 2, 2, attention);
        (config.landmark_id, config.context) = (LANDMARK, 20);
        let room = Room { logits: 20, ..settings.room(&config, cache, batch) };
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
        let mut generator = Generator::new(&mut engine, settings, 1).unwrap();
        wait(generator.read(&[prompt], |_| ())).unwrap();
        (0..30).map(|_| wait(generator.next()).unwrap()[0].unwrap()).collect()
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

    /// Rows of a batch give what they give alone, whatever lies beside them. All blocks are retrieved: where some are
    /// left out, those of the first layer, whose landmarks are equal but for rounding, would be chosen by rounding,
    /// which is not the same for products of other shapes.
    #[test]
    fn rows_of_a_batch_do_not_see_each_other() {
        let settings = settings(6);
        let prompts = [prompt(17), prompt(1), prompt(30), prompt(6)];
        let all = CacheShape::Mem { blocks: 20, block: 4, top_k: 20 };
        for selection in [Granularity::PerTokenAndHead, Granularity::MaxOverHeads, Granularity::MaxOverTokens]
        {
            let settings = Settings { selection, lookups: true, ..settings.clone() };
            let alone: Vec<Vec<u32>> =
                prompts.iter().map(|p| generate(Attention::Landmark, all, settings.clone(), p)).collect();
            let mut engine = batch_engine(Attention::Landmark, all, &settings, 4);
            let mut generator = Generator::new(&mut engine, settings, 4).unwrap();
            let texts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
            wait(generator.read(&texts, |_| ())).unwrap();
            let mut found = vec![Vec::new(); 4];
            for step in 0..30 {
                if step == 10 {
                    generator.finish(1);
                }
                for (row, token) in wait(generator.next()).unwrap().into_iter().enumerate() {
                    found[row].extend(token);
                }
                for row in [0, 2, 3] {
                    let fetched = wait(generator.lookups(row)).unwrap();
                    let most = generator.lengths()[row] / 4;
                    assert!(fetched.iter().flatten().all(|head| head.len() <= most));
                    let share = |head: &Vec<Fetched>| head.iter().map(|f| f.share).sum::<f32>();
                    assert!(fetched.iter().flatten().all(|head| (0.0..=1.0001).contains(&share(head))));
                }
            }
            assert_eq!(found[1], alone[1][..10], "{selection:?}");
            for row in [0, 2, 3] {
                assert_eq!(found[row], alone[row], "{selection:?}, row {row}");
            }
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
        let mut generator = Generator::new(&mut engine, settings, 1).unwrap();
        let mut logits = vec![0.0; 40];
        logits[LANDMARK as usize] = 1e9;
        generator.rows[0].next = Next::Logits(logits);
        assert_ne!(wait(generator.next()).unwrap(), [Some(LANDMARK)]);
    }

    #[test]
    fn impossible_prompts_are_refused() {
        let settings = settings(6);
        let mut engine = engine(Attention::Landmark, MEM, &settings);
        let mut generator = Generator::new(&mut engine, settings, 1).unwrap();
        assert!(matches!(wait(generator.next()), Err(Error::Empty)));
        assert!(matches!(wait(generator.read(&[&[]], |_| ())), Err(Error::Empty)));
        let stranger = wait(generator.read(&[&[1, 40]], |_| ()));
        assert!(matches!(stranger, Err(Error::Engine(engine::Error::Token { token: 40, vocab: 40 }))));
        let refused = wait(generator.read(&[&[1, LANDMARK]], |_| ()));
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
