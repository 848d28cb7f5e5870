//! A model laid out: weights, inputs of a step, caches, and (for training) gradients and optimiser state.
//!
//! One layout serves every program that is recorded over the model. Inputs have room for the largest batch
//! and chunk asked for; programs of smaller ones look at their first elements.

use crate::config::{ConfigError, Family, ModelConfig};
use crate::lora::Lora;
use crate::weights::{Parameter, Types, Weights};
use landmark_core::ops::{MemoryShape, Origin};
use landmark_core::random::SEED_LEN;
use landmark_core::{DType, Layout, Tensor};

/// Which optimiser, with its constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Optimizer {
    /// AdamW.
    AdamW {
        /// Decay of the first moment.
        beta1: f32,
        /// Decay of the second moment.
        beta2: f32,
        /// Added to the root of the second moment; 1e-8 is usual.
        eps: f32,
    },
    /// SGD with momentum.
    Sgd {
        /// Decay of the momentum.
        momentum: f32,
    },
    /// Adafactor.
    Adafactor,
}

/// What earlier keys and values a model keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheShape {
    /// None: every chunk stands alone.
    None,
    /// The last `positions` keys and values, all attended to (Transformer-XL).
    Kv {
        /// Keys kept for each row of the batch.
        positions: usize,
    },
    /// A landmark memory.
    Mem {
        /// Whole blocks kept.
        blocks: usize,
        /// Positions of a block, its landmark included.
        block: usize,
        /// Blocks retrieved.
        top_k: usize,
    },
}

/// How large the inputs have to be, and what else is needed.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Rows of the largest batch.
    pub batch: usize,
    /// Positions of the longest row, landmarks included.
    pub tokens: usize,
    /// Rows of logits kept of each row of the batch (0: none).
    pub logits: usize,
    /// Cache.
    pub cache: CacheShape,
    /// Gradients, and state of an optimiser.
    pub training: Option<Optimizer>,
    /// Which blocks were retrieved, and with what share, is kept beside the logits.
    pub lookups: bool,
    /// Type of what is computed: activations, caches, and the matrices of the products. The residual stream, norms,
    /// losses, gradients of weights and the masters of trained weights are in f32 whatever this is.
    pub compute: DType,
}

impl Room {
    /// Checks that inputs, caches and the results of one op stay within sizes that can be computed with; whether
    /// there is that much memory is for the backend to say.
    ///
    /// # Errors
    /// What would be too large, and which flags make it so.
    pub fn validate(&self, config: &ModelConfig) -> Result<(), ConfigError> {
        const LARGEST: u128 = 1 << 48;
        let [batch, tokens, logits] = [self.batch, self.tokens, self.logits].map(|x| x as u128);
        let kept = match self.cache {
            CacheShape::None => 0,
            CacheShape::Kv { positions } => positions as u128,
            CacheShape::Mem { blocks, block, .. } => (blocks as u128 + 1) * block as u128,
        };
        let top_k = if let CacheShape::Mem { top_k, .. } = self.cache { top_k as u128 } else { 0 };
        let [width, hidden, heads, kv, vocab] =
            [config.width, config.hidden, config.heads, config.kv_heads * config.head_dim, config.vocab_size]
                .map(|x| x as u128);
        let rows = batch.saturating_mul(tokens + 1);
        let cached = batch.saturating_mul(kept).saturating_mul(2 * kv * config.layers as u128);
        let chunk = "--batch-size, --mid-length or --sequence-length";
        let cache = "--mem-cache-size, --cache-topk, --batch-size or the length of the text";
        // Each with a count that has to fit 32 bits, as positions and ids of rows do.
        for (what, count, numbers, lower) in [
            ("the cache", kept.max(top_k), cached, cache),
            ("one activation of a step", rows, rows.saturating_mul(width.max(hidden).max(heads)), chunk),
            ("the logits of a step", logits, batch.saturating_mul(logits).saturating_mul(vocab), chunk),
            (
                "the scores of the cached blocks",
                0,
                rows.saturating_mul(heads * kept.max(top_k).max(1)),
                cache,
            ),
        ] {
            let bytes = numbers.saturating_mul(4);
            if bytes > LARGEST || count > 1 << 30 {
                return Err(ConfigError::TooLarge { what, bytes, lower });
            }
        }
        Ok(())
    }
}

/// Inputs and results of a step.
#[derive(Clone, Copy, Debug)]
pub struct Inputs {
    /// Token ids `(B, T)` u32.
    pub tokens: Tensor,
    /// Targets `(B, T)` i32; negative: no loss.
    pub targets: Tensor,
    /// Positions of the queries `(B, T + 1)` i32.
    pub positions: Tensor,
    /// Positions of all keys of an attention with a kv cache `(B, P + T + 1)` i32.
    pub key_positions: Tensor,
    /// Phase of each row in its block `(B)` u32.
    pub phases: Tensor,
    /// Which keys are landmarks `(B, P + T)` u32.
    pub is_landmark: Tensor,
    /// First key that a row may see `(B)` u32.
    pub first_key: Tensor,
    /// Positions in the memory `(B)` u32.
    pub lengths: Tensor,
    /// Positions of each row that are no padding `(B)` u32.
    pub counts: Tensor,
    /// Rows of the step, `b · T + t`, whose logits are wanted `(B · rows)` u32.
    pub wanted: Option<Tensor>,
    /// Seed of the step's random bits.
    pub seed: Tensor,
    /// Zeros `(B)` u32: the ids of context-miss tokens.
    pub miss_tokens: Tensor,
    /// Angle of each rotary pair `(D / 2)`.
    pub frequencies: Tensor,
    /// Mean loss `(1)`.
    pub loss: Tensor,
    /// Most likely ids `(B, T)` u32.
    pub predictions: Tensor,
    /// Logits `(B, rows, V)`.
    pub logits: Option<Tensor>,
    /// Learning rate and corrections of the optimiser `(3)`.
    pub hyper: Tensor,
    /// Sum of squares of all gradients `(1)`.
    pub squared_norm: Tensor,
    /// Factor on the gradients `(1)`.
    pub clip: Tensor,
}

/// What one block keeps of earlier chunks.
#[derive(Clone, Copy, Debug)]
pub enum LayerCache {
    /// Time-ordered, the newest last, `(B, P, Hkv · D)` each.
    Kv {
        /// Keys without positions.
        keys: Tensor,
        /// Values.
        values: Tensor,
    },
    /// Rings of blocks: see [`landmark_core::ops::AppendKv`].
    Mem {
        /// Keys.
        keys: Tensor,
        /// Values.
        values: Tensor,
        /// Landmark keys.
        landmarks: Tensor,
    },
}

/// What one block retrieved in the last step that gave logits.
#[derive(Clone, Copy, Debug)]
pub struct Lookup {
    /// Cached blocks by number, the oldest first `(B, H, T, k)` u32, [`NO_BLOCK`](landmark_core::ops::NO_BLOCK)
    /// where there are fewer.
    pub chosen: Tensor,
    /// Their shares of the attention `(B, H, T, k)`.
    pub shares: Tensor,
}

/// Gradient of a parameter, and the optimiser's state for it with the names under which it is saved.
#[derive(Clone, Debug)]
pub struct Trained {
    /// The parameter.
    pub param: Tensor,
    /// The same in the type of the products, if that is another.
    pub copy: Option<Tensor>,
    /// Whether weight decay applies to it.
    pub decay: bool,
    /// Its gradient, added to by every micro-batch and cleared by the optimiser.
    pub grad: Tensor,
    /// State: for AdamW the two moments, for SGD the momentum, for Adafactor rows and columns.
    pub state: Vec<(String, Tensor)>,
}

/// A model laid out.
#[derive(Clone, Debug)]
pub struct Model {
    /// Configuration.
    pub config: ModelConfig,
    /// Every persistent tensor.
    pub layout: Layout,
    /// Weights.
    pub weights: Weights,
    /// Inputs.
    pub inputs: Inputs,
    /// Cache of each block; empty without one.
    pub caches: Vec<LayerCache>,
    /// What each block retrieved; empty unless asked for.
    pub lookups: Vec<Lookup>,
    /// Gradients and optimiser state of [`trained_parameters`](Model::trained_parameters), in that order; empty
    /// without training.
    pub trained: Vec<Trained>,
    /// What it was laid out for.
    pub room: Room,
    /// Its adapters, if it has any. Then they are what is trained, and the rest is frozen.
    pub lora: Option<Lora>,
}

impl Model {
    /// Lays a model out.
    pub fn new(config: ModelConfig, room: Room) -> Model {
        Model::with_adapters(config, room, None)
    }

    /// Lays a model out, with adapters if `lora` is given.
    pub fn with_adapters(config: ModelConfig, room: Room, lora: Option<Lora>) -> Model {
        let mut layout = Layout::new();
        let types = Types { compute: room.compute, trains: room.training.is_some() };
        let weights = Weights::lay_out(&config, lora, types, &mut layout);
        let inputs = inputs(&config, &room, &mut layout);
        let caches = (0..config.layers).filter_map(|i| cache(&config, &room, i, &mut layout)).collect();
        let lookups = (0..config.layers).filter_map(|i| lookup(&config, &room, i, &mut layout)).collect();
        let none = Vec::new();
        let mut model = Model { config, layout, weights, inputs, caches, lookups, trained: none, room, lora };
        if let Some(optimizer) = room.training {
            let parameters: Vec<Parameter> = model.trained_parameters().cloned().collect();
            model.trained = parameters.iter().map(|p| trained(p, optimizer, &mut model.layout)).collect();
        }
        model
    }

    /// What training changes: everything, or with adapters these and the matrices that are trained whole.
    pub fn trained_parameters(&self) -> impl Iterator<Item = &Parameter> {
        let weights = &self.weights;
        let is_trained = move |parameter: &&Parameter| {
            self.lora.is_none_or(|lora| {
                (lora.whole.embedding && parameter.tensor == weights.table)
                    || (lora.whole.head && parameter.operand() == weights.head)
            })
        };
        weights.adapters.iter().chain(weights.parameters.iter().filter(is_trained))
    }

    /// Each trained parameter with its gradient; where there is a half copy, that too, with the same gradient.
    pub fn gradients(&self) -> Vec<(Tensor, Tensor)> {
        let masters = self.trained.iter().map(|t| (t.param, t.grad));
        let copies = self.trained.iter().filter_map(|t| Some((t.copy?, t.grad)));
        masters.chain(copies).collect()
    }

    /// Extents of the memory of `batch` rows, if the model has one.
    pub fn memory(&self, batch: usize) -> Option<MemoryShape> {
        let CacheShape::Mem { blocks, block, top_k } = self.room.cache else { return None };
        let (kv_heads, head_dim) = (self.config.kv_heads, self.config.head_dim);
        let origin = match self.config.family {
            Family::Gpt => Origin::BlocksSeen,
            Family::Llama => Origin::BlocksRetrieved,
        };
        Some(MemoryShape { batch, blocks, block, top_k, kv_heads, head_dim, origin })
    }

    /// Numbers in the model, without its adapters.
    pub fn parameter_count(&self) -> usize {
        self.weights.parameters.iter().map(|p| p.numel()).sum()
    }

    /// Numbers that training changes.
    pub fn trained_count(&self) -> usize {
        self.trained_parameters().map(|p| p.numel()).sum()
    }
}

fn inputs(config: &ModelConfig, room: &Room, layout: &mut Layout) -> Inputs {
    let Room { batch, tokens, logits, cache, .. } = *room;
    let prefix = if let CacheShape::Kv { positions } = cache { positions } else { 0 };
    let mut add = |name: &str, dtype, shape: &[usize]| layout.add(name, dtype, shape);
    Inputs {
        tokens: add("tokens", DType::U32, &[batch, tokens]),
        targets: add("targets", DType::I32, &[batch, tokens]),
        positions: add("positions", DType::I32, &[batch, tokens + 1]),
        key_positions: add("key_positions", DType::I32, &[batch, prefix + tokens + 1]),
        phases: add("phases", DType::U32, &[batch]),
        is_landmark: add("is_landmark", DType::U32, &[batch, prefix + tokens]),
        first_key: add("first_key", DType::U32, &[batch]),
        lengths: add("lengths", DType::U32, &[batch]),
        counts: add("counts", DType::U32, &[batch]),
        wanted: (logits > 0).then(|| add("wanted", DType::U32, &[batch * logits])),
        seed: add("seed", DType::U32, &[SEED_LEN]),
        miss_tokens: add("miss_tokens", DType::U32, &[batch]),
        frequencies: add("frequencies", DType::F32, &[config.head_dim / 2]),
        loss: add("loss", DType::F32, &[1]),
        predictions: add("predictions", DType::U32, &[batch, tokens]),
        logits: (logits > 0).then(|| add("logits", DType::F32, &[batch, logits, config.vocab_size])),
        hyper: add("hyper", DType::F32, &[3]),
        squared_norm: add("squared_norm", DType::F32, &[1]),
        clip: add("clip", DType::F32, &[1]),
    }
}

fn cache(config: &ModelConfig, room: &Room, index: usize, layout: &mut Layout) -> Option<LayerCache> {
    let named = |name: &str| format!("cache.{index}.{name}");
    match room.cache {
        CacheShape::None => None,
        CacheShape::Kv { positions } => {
            let shape = [room.batch, positions, config.kv_heads * config.head_dim];
            let mut add = |name: &str| layout.add(named(name), room.compute, shape);
            Some(LayerCache::Kv { keys: add("keys"), values: add("values") })
        }
        CacheShape::Mem { blocks, block, .. } => {
            let ring = [room.batch, blocks + 1, config.kv_heads, block, config.head_dim];
            let landmarks = [room.batch, config.kv_heads, blocks + 1, config.head_dim];
            // A page is one block of one key head, see `MemoryShape::page`.
            let mut add =
                |name: &str| layout.add_paged(named(name), room.compute, ring, block * config.head_dim);
            let (keys, values) = (add("keys"), add("values"));
            let landmarks = layout.add(named("landmarks"), room.compute, landmarks);
            Some(LayerCache::Mem { keys, values, landmarks })
        }
    }
}

fn lookup(config: &ModelConfig, room: &Room, index: usize, layout: &mut Layout) -> Option<Lookup> {
    let CacheShape::Mem { blocks, top_k, .. } = room.cache else { return None };
    if !room.lookups || blocks == 0 || top_k == 0 {
        return None;
    }
    let shape = [room.batch, config.heads, room.tokens, top_k];
    let mut add = |name: &str, dtype| layout.add(format!("lookup.{index}.{name}"), dtype, shape);
    Some(Lookup { chosen: add("chosen", DType::U32), shares: add("shares", DType::F32) })
}

fn trained(parameter: &Parameter, optimizer: Optimizer, layout: &mut Layout) -> Trained {
    let name = &parameter.name;
    let shape = &parameter.shape[..];
    let grad = layout.add(format!("grad.{name}"), DType::F32, shape);
    let mut state = |kind: &str, shape: &[usize]| {
        let saved = format!("optimizer.{kind}.{name}");
        let tensor = layout.add(saved.clone(), DType::F32, shape);
        (saved, tensor)
    };
    let state = match optimizer {
        Optimizer::AdamW { .. } => vec![state("exp_avg", shape), state("exp_avg_sq", shape)],
        Optimizer::Sgd { .. } => vec![state("momentum_buffer", shape)],
        Optimizer::Adafactor if shape.len() > 1 => {
            let cols = shape[shape.len() - 1];
            let rows = parameter.numel() / cols;
            vec![state("row_var", &[rows]), state("col_var", &[cols])]
        }
        Optimizer::Adafactor => vec![state("variance", shape)],
    };
    Trained { param: parameter.tensor, copy: parameter.copy, decay: parameter.decay, grad, state }
}
