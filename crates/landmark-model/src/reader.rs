//! Reading sequences chunk by chunk, with whatever the model keeps of earlier chunks.
//!
//! The reader does on the host what spec section 4 asks around the programs: it inserts landmarks as blocks
//! fill up, works out positions, and advances the cache. All rows of a batch are equally long.

use crate::batch::NO_LOSS;
use crate::config::{Attention, ModelConfig};
use crate::engine::{Engine, Error, Held, Result};
use crate::model::CacheShape;
use crate::record::{Choice, Context, Granularity, Pass, Placement, Regularisation, Want};
use landmark_core::Backend;
use landmark_core::ops::MemoryShape;

/// Reads the rows of one batch.
pub struct Reader<'e, B: Backend> {
    engine: Held<'e, B>,
    batch: usize,
    /// Positions read so far, landmarks included.
    length: usize,
    choice: Choice,
    predict: PredictAt,
    training: Training,
}

/// What training knows of a chunk beyond its tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Training {
    /// Names the random bits of the chunk.
    pub seed: [u32; 4],
    /// Factor on the loss.
    pub scale: f32,
    /// Random masks.
    pub regularisation: Regularisation,
    /// Compute each block again before its backward pass instead of keeping its results.
    pub recompute: bool,
    /// Length of the blocks and how far each row is into its first one, where landmarks are regular. Without
    /// it they are looked for among the tokens.
    pub blocks: Option<(usize, Vec<u32>)>,
    /// Positions `(B, n)` other than `0..n` (`rotary_mem_jump`).
    pub positions: Option<Vec<i32>>,
}

/// What a chunk gave.
#[derive(Clone, Debug, Default)]
pub struct Read {
    /// Mean loss over the targets, in nats.
    pub loss: f64,
    /// For each token given, `(B, n)`, the most likely next one.
    pub predictions: Vec<u32>,
}

/// At which position the token after a chunk is predicted. It matters where the chunk fills a block, whose landmark
/// then follows it through the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PredictAt {
    /// At the last token given: models trained without a loss at landmarks (the GPTs).
    #[default]
    LastToken,
    /// At the last position, which may be a landmark: models trained with landmarks in the loss
    /// (`include_landmark_in_loss`).
    LastPosition,
}

impl PredictAt {
    /// Where a model of this configuration was trained to predict.
    pub fn of(config: &ModelConfig) -> PredictAt {
        if config.landmark_in_loss { PredictAt::LastPosition } else { PredictAt::LastToken }
    }
}

/// A chunk as the model sees it.
struct Laden {
    /// Positions of a row.
    tokens: usize,
    ids: Vec<u32>,
    targets: Vec<i32>,
    /// Where the given tokens stand in a row.
    given: Vec<usize>,
}

impl<'e, B: Backend> Reader<'e, B> {
    /// Starts `batch` rows with an empty cache.
    ///
    /// # Panics
    /// When the engine has no room for so many rows.
    pub fn new(
        engine: &'e mut Engine<B>,
        batch: usize,
        selection: Granularity,
        miss_cutoff: Option<f32>,
    ) -> Self {
        Self::holding(Held::Lent(engine), batch, selection, miss_cutoff)
    }

    /// The same with an engine that may be the reader's own.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    pub fn holding(
        engine: Held<'e, B>,
        batch: usize,
        selection: Granularity,
        miss_cutoff: Option<f32>,
    ) -> Self {
        assert!(batch <= engine.model().room.batch, "a reader of more rows than the engine has room for");
        let choice = Choice { selection, miss_cutoff: miss_cutoff.map(f32::to_bits) };
        Reader {
            engine,
            batch,
            length: 0,
            choice,
            predict: PredictAt::LastPosition,
            training: Training::default(),
        }
    }

    /// Positions read so far, landmarks included.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The engine.
    pub fn engine(&mut self) -> &mut Engine<B> {
        &mut self.engine
    }

    /// Forgets everything read so far.
    pub fn clear(&mut self) {
        // What lies in the cache is never looked at before it is overwritten.
        self.length = 0;
    }

    /// Says that the landmarks of the next chunk are regular: one at the end of every `block` positions, row `b`
    /// beginning `phases[b]` positions into a block. Otherwise they are looked for among the tokens.
    pub fn place_regularly(&mut self, block: usize, phases: &[u32]) {
        self.training.blocks = Some((block, phases.to_vec()));
    }

    /// Reads a chunk `(B, n)` with its targets; gives the loss and predictions.
    ///
    /// # Errors
    /// Rows of different lengths, landmarks among tokens for a memory, failures of the backend.
    pub async fn score(&mut self, tokens: &[u32], targets: &[i32]) -> Result<Read> {
        let laden = self.run(tokens, targets, Want::Loss)?;
        let inputs = self.engine.model().inputs;
        let loss = f64::from(self.engine.read::<f32>(inputs.loss).await?[0]);
        let all = self.engine.read::<u32>(inputs.predictions).await?;
        let rows = all.chunks_exact(laden.tokens).take(self.batch);
        let predictions = rows.flat_map(|row| laden.given.iter().map(|&t| row[t])).collect();
        Ok(Read { loss, predictions })
    }

    /// Reads a chunk in training: gradients are added, and the loss is returned.
    ///
    /// # Errors
    /// As [`score`](Self::score).
    pub async fn learn(&mut self, tokens: &[u32], targets: &[i32], training: Training) -> Result<f64> {
        let Training { scale, regularisation, recompute, .. } = training;
        let inputs = self.engine.model().inputs;
        self.engine.write(inputs.seed, &training.seed)?;
        self.training = training;
        let outcome = self.run(tokens, targets, Want::Gradients { scale, regularisation, recompute });
        self.training = Training::default();
        outcome?;
        Ok(f64::from(self.engine.read::<f32>(inputs.loss).await?[0]))
    }

    /// Reads a chunk; gives the logits `(B, V)` of the token after it.
    ///
    /// # Errors
    /// As [`score`](Self::score).
    pub async fn logits(&mut self, tokens: &[u32], predict: PredictAt) -> Result<Vec<f32>> {
        self.predict = predict;
        self.run(tokens, &[], Want::Logits { rows: 1 })?;
        self.read_logits(1).await
    }

    /// Reads a chunk; gives the logits of its last `rows` positions, `(B, rows, V)`, landmarks included.
    ///
    /// # Errors
    /// As [`score`](Self::score).
    pub async fn all_logits(&mut self, tokens: &[u32], rows: usize) -> Result<Vec<f32>> {
        self.predict = PredictAt::LastPosition;
        self.run(tokens, &[], Want::Logits { rows })?;
        self.read_logits(rows).await
    }

    async fn read_logits(&self, rows: usize) -> Result<Vec<f32>> {
        let model = self.engine.model();
        let tensor = model.inputs.logits.expect("logits of an engine with room for them");
        self.engine.read_first(tensor, self.batch * rows * model.config.vocab_size).await
    }

    /// Reads a chunk into the cache, and nothing else.
    ///
    /// # Errors
    /// As [`score`](Self::score).
    pub fn fill(&mut self, tokens: &[u32]) -> Result<()> {
        self.run(tokens, &[], Want::Nothing).map(|_| ())
    }

    fn run(&mut self, tokens: &[u32], targets: &[i32], want: Want) -> Result<Laden> {
        if tokens.is_empty() || !tokens.len().is_multiple_of(self.batch) {
            return Err(Error::Ragged { tokens: tokens.len(), batch: self.batch });
        }
        let room = self.engine.model().room;
        let memory = self.engine.model().memory(self.batch);
        let laden = match &memory {
            Some(memory) => self.insert_landmarks(memory, tokens, targets)?,
            None => self.as_given(tokens, targets),
        };
        let inputs = self.engine.model().inputs;
        self.engine.write(inputs.tokens, &laden.ids)?;
        if !targets.is_empty() {
            self.engine.write(inputs.targets, &laden.targets)?;
        }
        let start = memory.as_ref().map_or(self.length, |m| {
            let state = m.state(self.length);
            state.start + state.unfinished
        });
        // Without a cache every chunk stands alone.
        let start = if room.cache == CacheShape::None { 0 } else { start };
        match std::mem::take(&mut self.training.positions) {
            None => self.write_positions(inputs.positions, start as i32, laden.tokens)?,
            Some(given) => {
                let rows = given.chunks_exact(laden.tokens);
                let extra = self.engine.config().extra_rows();
                let behind = |row: &[i32]| [vec![-1; extra], row.to_vec()].concat();
                let positions: Vec<i32> = rows.flat_map(behind).collect();
                self.engine.write(inputs.positions, &positions)?;
            }
        }
        let (context, placement) = match room.cache {
            CacheShape::None => (Context::None, self.place(0, &laden)?),
            CacheShape::Kv { positions } => {
                self.write_positions(
                    inputs.key_positions,
                    self.length as i32 - positions as i32,
                    positions + laden.tokens,
                )?;
                let hidden = positions - positions.min(self.length);
                self.engine.write(inputs.first_key, &vec![hidden as u32; self.batch])?;
                (Context::Kv, self.place(positions, &laden)?)
            }
            CacheShape::Mem { .. } => {
                self.engine.write(inputs.lengths, &vec![self.length as u32; self.batch])?;
                self.engine.write(inputs.counts, &vec![laden.tokens as u32; self.batch])?;
                (Context::Mem(self.choice), Placement::None)
            }
        };
        if let (Want::Logits { rows }, Some(wanted)) = (want, inputs.wanted) {
            let last = match self.predict {
                PredictAt::LastToken => laden.given[laden.given.len() - 1],
                PredictAt::LastPosition => laden.tokens - 1,
            };
            let row = |b: usize| (0..rows).map(move |i| (b * laden.tokens + last + 1 - rows + i) as u32);
            let ids: Vec<u32> = (0..self.batch).flat_map(row).collect();
            self.engine.write(wanted, &ids)?;
        }
        self.engine.run(&Pass { batch: self.batch, tokens: laden.tokens, placement, context, want })?;
        self.length += laden.tokens;
        Ok(laden)
    }

    /// Positions `start ..` for each row, behind that of the context-miss token.
    fn write_positions(&mut self, tensor: landmark_core::Tensor, start: i32, count: usize) -> Result<()> {
        let extra = self.engine.config().extra_rows();
        let row = std::iter::repeat_n(-1, extra).chain((0..count as i32).map(|t| start + t));
        let positions: Vec<i32> = std::iter::repeat_n(row, self.batch).flatten().collect();
        self.engine.write(tensor, &positions)
    }

    /// Marks the landmarks among the given tokens, behind `prefix` keys that hold none.
    fn place(&mut self, prefix: usize, laden: &Laden) -> Result<Placement> {
        let config = self.engine.config();
        let landmark = config.landmark_id;
        if let Some((block, phases)) = self.training.blocks.take() {
            let tensor = self.engine.model().inputs.phases;
            self.engine.write(tensor, &phases)?;
            return Ok(Placement::Regular { block });
        }
        if config.attention == Attention::Plain || !laden.ids.contains(&landmark) {
            return Ok(Placement::None);
        }
        let row = |ids: &[u32]| {
            let chunk = ids.iter().map(|&id| u32::from(id == landmark)).collect::<Vec<_>>();
            std::iter::repeat_n(0, prefix).chain(chunk).collect::<Vec<u32>>()
        };
        let mask: Vec<u32> = laden.ids.chunks_exact(laden.tokens).flat_map(row).collect();
        let tensor = self.engine.model().inputs.is_landmark;
        self.engine.write(tensor, &mask)?;
        Ok(Placement::Anywhere)
    }

    fn as_given(&self, tokens: &[u32], targets: &[i32]) -> Laden {
        let count = tokens.len() / self.batch;
        Laden { tokens: count, ids: tokens.to_vec(), targets: targets.to_vec(), given: (0..count).collect() }
    }

    /// A landmark after every full block; nothing is predicted at it.
    fn insert_landmarks(&self, memory: &MemoryShape, tokens: &[u32], targets: &[i32]) -> Result<Laden> {
        let landmark = self.engine.config().landmark_id;
        if tokens.contains(&landmark) {
            return Err(Error::LandmarkInInput);
        }
        let count = tokens.len() / self.batch;
        let given = given_positions(self.length, count, memory.block);
        let last = given.last().map_or(0, |&last| last + 1);
        let length = last + usize::from((self.length + last) % memory.block == memory.block - 1);
        let mut ids = vec![landmark; self.batch * length];
        let mut laden_targets = vec![NO_LOSS; self.batch * length];
        for b in 0..self.batch {
            for (t, &at) in given.iter().enumerate() {
                ids[b * length + at] = tokens[b * count + t];
                if let Some(&target) = targets.get(b * count + t) {
                    laden_targets[b * length + at] = target;
                }
            }
        }
        Ok(Laden { tokens: length, ids, targets: laden_targets, given })
    }
}

/// Where `count` ordinary tokens stand that follow `length` positions, counted from there: a landmark stands after
/// every full block.
pub(crate) fn given_positions(length: usize, count: usize, block: usize) -> Vec<usize> {
    let mut next = 0;
    let place = |_| {
        if (length + next) % block == block - 1 {
            next += 1;
        }
        next += 1;
        next - 1
    };
    (0..count).map(place).collect()
}

/// Positions that `tokens` ordinary tokens can take at most in a memory of this block length.
pub fn laden_length(tokens: usize, block: usize) -> usize {
    tokens + tokens.div_ceil(block - 1)
}
