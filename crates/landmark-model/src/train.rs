//! Training: micro-batches into gradients, gradients into weights.
//!
//! A trainer is its weights, the optimiser's state and the number of steps done; everything random is a
//! function of the seed and of that number. So a checkpoint holds those three, and a run that goes on from one
//! computes what it would have computed.

use crate::batch::{Batch, Batches, Windows};
use crate::engine::{Engine, Error, Result};
use crate::model::{CacheShape, Optimizer, Room};
use crate::random::{Purpose, generator};
use crate::reader::{Reader, Training};
use crate::record::{Granularity, Regularisation, Update};
use crate::schedule::Schedule;
use crate::tokens::Tokens;
use landmark_core::{Backend, DType, Tensor};
use rand::{Rng, RngExt};

/// How a model is trained.
#[derive(Clone, Debug)]
pub struct TrainSettings {
    /// Learning rate.
    pub schedule: Schedule,
    /// Optimiser.
    pub optimizer: Optimizer,
    /// Weight decay, of the parameters that have it (see [`crate::weights::Parameter::decay`]).
    pub weight_decay: f32,
    /// Largest norm of the gradients; larger ones are scaled down to it.
    pub max_norm: Option<f32>,
    /// Rows of a micro-batch.
    pub batch: usize,
    /// Positions that the model reads at a time (`sequence_length`), landmarks included.
    pub length: usize,
    /// Positions of a training row (`total_sequence_length`): longer than `length` in Transformer-XL training, where
    /// its segments are read one after the other with a cache of earlier keys.
    pub total_length: usize,
    /// Micro-batches of a step.
    pub micro_batches: u32,
    /// Average the gradients of micro-batches instead of summing them.
    pub mean: bool,
    /// Random masks.
    pub regularisation: Regularisation,
    /// After each landmark, later positions are shifted by a random number below this (`pos_jump_on_mem`).
    pub position_jump: Option<u32>,
    /// Seed of everything random.
    pub seed: u64,
    /// Keys that Transformer-XL training keeps.
    pub cache: CacheShape,
    /// Compute each block again before its backward pass instead of keeping its results (activation checkpointing);
    /// not with a cache.
    pub recompute: bool,
}

impl TrainSettings {
    /// Room that an engine needs for this.
    pub fn room(&self) -> Room {
        let (batch, tokens) = (self.batch, self.length);
        Room {
            batch,
            tokens,
            logits: 0,
            cache: self.cache,
            training: Some(self.optimizer),
            lookups: false,
            compute: DType::F32,
        }
    }

    /// Tokens that one step reads.
    pub fn tokens_per_step(&self) -> u64 {
        self.batch as u64 * self.total_length as u64 * u64::from(self.micro_batches)
    }
}

/// What a step gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Steps done, this one included.
    pub step: u64,
    /// Mean loss of its micro-batches, in nats.
    pub loss: f64,
    /// Learning rate that was used.
    pub rate: f64,
}

/// Averages of an evaluation during training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Validation {
    /// Mean loss in nats.
    pub loss: f64,
    /// Share of right predictions, over all positions as released (those without a target count as wrong).
    pub accuracy: f64,
}

/// A model in training.
pub struct Trainer<B: Backend> {
    engine: Engine<B>,
    settings: TrainSettings,
    done: u64,
}

impl<B: Backend> Trainer<B> {
    /// Takes an engine that has [`TrainSettings::room`], with its weights in place.
    pub fn new(engine: Engine<B>, settings: TrainSettings) -> Self {
        Trainer { engine, settings, done: 0 }
    }

    /// The engine.
    pub fn engine(&mut self) -> &mut Engine<B> {
        &mut self.engine
    }

    /// The engine, to look at.
    pub fn engine_ref(&self) -> &Engine<B> {
        &self.engine
    }

    /// Steps done.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// The engine, for other uses of the trained weights.
    pub fn into_engine(self) -> Engine<B> {
        self.engine
    }

    /// Does one step on `data`.
    ///
    /// # Errors
    /// [`Error::Loss`] when the loss is not a finite number: the weights are then those of the step before.
    /// Failures of the backend.
    pub async fn step(&mut self, data: &impl Batches) -> Result<Step> {
        let mut total = 0.0;
        for micro in 0..self.settings.micro_batches {
            let batch = data.train_batch(self.settings.seed, self.done, micro, self.settings.batch);
            total += self.micro_batch(&batch, data, micro).await?;
        }
        let rate = self.settings.schedule.rate(self.done);
        let hyper = hyper(self.settings.optimizer, rate, self.done + 1);
        let update = Update { weight_decay: self.settings.weight_decay, max_norm: self.settings.max_norm };
        self.engine.update(&update, hyper)?;
        self.done += 1;
        Ok(Step { step: self.done, loss: total / f64::from(self.settings.micro_batches), rate })
    }

    /// Adds the gradients of one micro-batch; returns its mean loss over segments.
    async fn micro_batch(&mut self, batch: &Batch, data: &impl Batches, micro: u32) -> Result<f64> {
        let settings = &self.settings;
        let segments = batch.length.div_ceil(settings.length);
        let scale = if settings.mean { 1.0 / settings.micro_batches as f32 } else { 1.0 };
        let key: u64 = generator(settings.seed, Purpose::Dropout, 0, 0).next_u64();
        let block = data.block();
        let mut reader = Reader::new(&mut self.engine, batch.batch, Granularity::PerTokenAndHead, None);
        let mut total = 0.0;
        for (index, start) in (0..batch.length).step_by(settings.length).enumerate() {
            let part = batch.columns(start, start + settings.length, block);
            let cached = matches!(settings.cache, CacheShape::Kv { .. });
            let training = Training {
                seed: [
                    key as u32,
                    (key >> 32) as u32,
                    self.done as u32,
                    micro * segments as u32 + index as u32,
                ],
                scale,
                regularisation: settings.regularisation,
                recompute: settings.recompute,
                // Behind a cache the landmarks are looked for; a prefix has no phase.
                blocks: block.filter(|_| !cached).map(|block| (block, part.phases.clone())),
                positions: settings
                    .position_jump
                    .filter(|&jump| jump > 0)
                    .map(|jump| jumping(&part, data.landmark(), jump, settings.seed, self.done, micro)),
            };
            let loss = reader.learn(&part.tokens, &part.targets, training).await?;
            if !loss.is_finite() {
                return Err(Error::Loss { loss, step: self.done });
            }
            total += loss;
        }
        Ok(total / segments as f64)
    }

    /// Evaluates `batches` random batches of `stream`, the same for a given step of a given run.
    ///
    /// # Errors
    /// Failures of the backend.
    pub async fn validate<T: Tokens>(&mut self, stream: &Windows<T>, batches: u32) -> Result<Validation> {
        let settings = &self.settings;
        let (mut loss, mut hits, mut positions) = (0.0, 0, 0);
        for index in 0..batches {
            let batch = stream.batch(settings.seed, Purpose::EvalBatch, self.done, index, settings.batch);
            let mut reader = Reader::new(&mut self.engine, batch.batch, Granularity::PerTokenAndHead, None);
            let segments = batch.length.div_ceil(settings.length);
            for start in (0..batch.length).step_by(settings.length) {
                let part = batch.columns(start, start + settings.length, stream.stream().block());
                let read = reader.score(&part.tokens, &part.targets).await?;
                loss += read.loss / segments as f64;
                let pairs = read.predictions.iter().zip(&part.targets);
                hits += pairs.filter(|&(&p, &t)| i64::from(p) == i64::from(t)).count();
                positions += part.tokens.len();
            }
        }
        Ok(Validation { loss: loss / f64::from(batches), accuracy: hits as f64 / positions as f64 })
    }

    /// What training changes: names under which to save, shapes, and the tensors.
    pub fn weights(&self) -> Vec<(String, Vec<usize>, Tensor)> {
        self.engine
            .model()
            .trained_parameters()
            .map(|p| (p.name.clone(), p.shape.clone(), p.tensor))
            .collect()
    }

    /// State of the optimiser, likewise.
    pub fn optimizer_state(&self) -> Vec<(String, Vec<usize>, Tensor)> {
        let model = self.engine.model();
        let state = model.trained.iter().flat_map(|t| &t.state);
        state
            .map(|(name, tensor)| (name.clone(), model.layout.info(*tensor).shape.dims().to_vec(), *tensor))
            .collect()
    }

    /// Both: everything that a checkpoint holds.
    pub fn state(&self) -> Vec<(String, Vec<usize>, Tensor)> {
        let (mut state, optimizer) = (self.weights(), self.optimizer_state());
        state.extend(optimizer);
        state
    }

    /// Goes on from a checkpoint: `find` gives shape and values of a name of [`state`](Self::state).
    ///
    /// # Errors
    /// A tensor that is missing or has another shape, whatever `find` reports, failures of the backend.
    pub fn restore<E: From<Error>>(
        &mut self,
        done: u64,
        mut find: impl FnMut(&str) -> Result<Option<(Vec<usize>, Vec<f32>)>, E>,
    ) -> Result<(), E> {
        for (name, expected, tensor) in self.state() {
            let (found, values) = find(&name)?.ok_or_else(|| Error::Missing(name.clone()))?;
            if found != expected {
                return Err(Error::Shape { name, found, expected }.into());
            }
            self.engine.write_floats(tensor, &values)?;
        }
        self.done = done;
        Ok(())
    }
}

/// What the optimiser's op reads in step `t` (counted from 1).
fn hyper(optimizer: Optimizer, rate: f64, t: u64) -> [f32; 3] {
    let power = |beta: f32| f64::from(beta).powf(t as f64);
    match optimizer {
        Optimizer::AdamW { beta1, beta2, .. } => {
            [rate as f32, (1.0 - power(beta1)) as f32, (1.0 - power(beta2)) as f32]
        }
        Optimizer::Sgd { .. } => [rate as f32, 0.0, 0.0],
        Optimizer::Adafactor => {
            let t = t as f64;
            [rate.min(t.sqrt().recip()) as f32, rate as f32, t.powf(-0.8) as f32]
        }
    }
}

/// Positions that jump ahead by a random number below `jump` after each landmark.
fn jumping(part: &Batch, landmark: u32, jump: u32, seed: u64, step: u64, micro: u32) -> Vec<i32> {
    let mut random = generator(seed, Purpose::PositionJumps, step, micro);
    let row = |tokens: &[u32]| {
        let mut shift = 0;
        let at = |(t, &token): (usize, &u32)| {
            let position = t as i32 + shift;
            if token == landmark {
                shift += random.random_range(0..jump) as i32;
            }
            position
        };
        tokens.iter().enumerate().map(at).collect::<Vec<i32>>()
    };
    part.tokens.chunks_exact(part.length.max(1)).flat_map(row).collect()
}
