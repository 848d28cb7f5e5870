//! Recording the programs of a model: one block, written once, for every way of running it.
//!
//! A [`Pass`] says how large the step is, what it attends to besides itself, and what is wanted of it. The
//! block is the same in all of them; only the attention asks where its keys come from.

mod segments;

use crate::config::{Attention, ModelConfig};
use crate::model::{LayerCache, Model, Optimizer};
use crate::weights::{Adapter, BlockWeights, Linear, MlpWeights, NormWeights, Projections};
use landmark_core::ops::{
    Adafactor, AdamW, AddNorm, AppendKv, Bernoulli, Blocks, ClipScale, CopyRows, Dropout, Embed, Fill, Gelu,
    Heads, LandmarkAttention, LandmarkScores, Likeliest, LinearCrossEntropy, LossGradient, Matmul, MissToken,
    Norm, Randomness, RetrievalAttention, Rope, SelectBlocks, Selection, Sgd, SquaredNorm, SwiGlu,
};
use landmark_core::{Cols, DType, Out, Program, Recorder, Tensor};

/// Where the landmarks of a step are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Placement {
    /// There are none, or they are tokens like any other.
    None,
    /// At the end of every block, with a phase for each row (`phases`).
    Regular {
        /// Positions of a block.
        block: usize,
    },
    /// Where the mask says (`is_landmark`).
    Anywhere,
}

/// What a step attends to besides itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Context {
    /// Nothing.
    None,
    /// The cached keys of earlier chunks, all of them; the chunk is then added to them.
    Kv,
    /// Blocks retrieved from the memory; the chunk is then added to it.
    Mem(Choice),
}

/// How blocks are retrieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Choice {
    /// Granularity.
    pub selection: Granularity,
    /// `rem_cutoff`, as bits, so that a pass can be a key: shares of the context-miss token below it count as 0.
    pub miss_cutoff: Option<u32>,
}

/// Granularity of the choice of blocks (`cache_selection_method`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    /// Each token and head its own.
    PerTokenAndHead,
    /// One for each token.
    MaxOverHeads,
    /// One for each head.
    MaxOverTokens,
}

impl Granularity {
    fn selection(self) -> Selection {
        match self {
            Granularity::PerTokenAndHead => Selection::PerTokenAndHead,
            Granularity::MaxOverHeads => Selection::MaxOverHeads,
            Granularity::MaxOverTokens => Selection::MaxOverTokens,
        }
    }
}

/// Random masks of a training step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Regularisation {
    /// Dropout of embeddings, attention weights and residual branches.
    pub dropout: f32,
    /// Dropout of whole blocks inside the attention.
    pub group_dropout: f32,
    /// Probability that a landmark is gated by the context-miss token (`under_rem_score_prob`).
    pub gate: f32,
}

/// What is wanted of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Want {
    /// Loss and predictions.
    Loss,
    /// Loss, and gradients added to those of the model; the loss counts `scale` times.
    Gradients {
        /// Factor on the loss.
        scale: f32,
        /// Random masks.
        regularisation: Regularisation,
        /// Keep only the residual stream between blocks, and compute each block again before its backward pass.
        recompute: bool,
    },
    /// Logits of `rows` positions of each row: those that the input `wanted` names.
    Logits {
        /// How many.
        rows: usize,
    },
    /// Nothing: only fill the cache.
    Nothing,
}

/// One way of running a model for a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pass {
    /// Rows of the batch.
    pub batch: usize,
    /// Positions of a row, landmarks included.
    pub tokens: usize,
    /// Landmarks.
    pub placement: Placement,
    /// Other keys.
    pub context: Context,
    /// Results.
    pub want: Want,
}

/// Records a step.
///
/// # Panics
/// When the model was not laid out for it (too small, no cache, no gradients): a mistake of the caller.
pub fn step(model: &Model, pass: &Pass) -> Program {
    let name = format!("{:?} of {} x {}", pass.want, pass.batch, pass.tokens);
    let recorder = Recorder::new(name, &model.layout);
    let regularisation = match pass.want {
        Want::Gradients { regularisation, .. } => regularisation,
        _ => Regularisation::default(),
    };
    let extra = model.config.extra_rows();
    let mut step = Step {
        model,
        config: &model.config,
        pass,
        r: recorder,
        extra,
        regularisation,
        salt: 0,
        boundaries: Vec::new(),
    };
    let x = step.hidden_states();
    step.output(x);
    step.r.finish()
}

/// State while a step is recorded.
struct Step<'a> {
    model: &'a Model,
    config: &'a ModelConfig,
    pass: &'a Pass,
    r: Recorder,
    /// Rows in front of each sequence: the context-miss token.
    extra: usize,
    regularisation: Regularisation,
    /// Numbers the ops that draw random bits.
    salt: u32,
    /// The residual stream in front of each block, and behind the last.
    boundaries: Vec<Boundary>,
}

/// A place between two blocks.
#[derive(Clone, Copy)]
struct Boundary {
    /// The residual stream.
    stream: Tensor,
    /// The number of the last op before it that draws random bits.
    salt: u32,
    /// Ops recorded before it.
    ops: usize,
}

impl Step<'_> {
    fn rows(&self) -> usize {
        self.pass.tokens + self.extra
    }

    /// An activation with a row for each position, `(B, T (+ 1), cols)`.
    fn rowwise(&mut self, name: String, cols: usize) -> Tensor {
        self.r.scratch(name, self.model.room.compute, [self.pass.batch, self.rows(), cols])
    }

    /// The residual stream at some place: in f32, since a sum over all blocks is what half types round away.
    fn stream(&mut self, name: String) -> Tensor {
        self.r.scratch(name, DType::F32, [self.pass.batch, self.rows(), self.config.width])
    }

    fn next_salt(&mut self) -> u32 {
        self.salt += 1;
        self.salt
    }

    fn dropout(&mut self, x: Tensor) -> Tensor {
        self.drop_with(x, self.regularisation.dropout)
    }

    fn drop_with(&mut self, x: Tensor, p: f32) -> Tensor {
        if p == 0.0 {
            return x;
        }
        let info = self.r.program().info(x).clone();
        let out = self.r.scratch(format!("{}.dropped", info.name), info.dtype, info.shape);
        let salt = self.next_salt();
        self.r.push(Dropout { x, p, seed: self.model.inputs.seed, salt, out: Out::set(out) });
        out
    }

    fn linear(&mut self, x: Tensor, layer: Linear, name: String) -> Tensor {
        let cols = self.r.shape(layer.weight).rows();
        let out = self.rowwise(name.clone(), cols);
        self.r.push(Matmul::linear(x, layer.weight, layer.bias, out));
        if let Some(adapter) = layer.adapter {
            self.adapt(x, adapter, name, out);
        }
        out
    }

    /// `out += scale · (dropout(x) · Aᵀ) · Bᵀ`; dropout in training only.
    fn adapt(&mut self, x: Tensor, Adapter { a, b, scale, dropout }: Adapter, name: String, out: Tensor) {
        let is_training = matches!(self.pass.want, Want::Gradients { .. });
        let x = if is_training { self.drop_with(x, dropout) } else { x };
        let rank = self.r.shape(a).rows();
        let inner = self.rowwise(format!("{name}.lora"), rank);
        self.r.push(Matmul::linear(x, a, None, inner));
        self.r.push(Matmul { scale, out: Out::add(out), ..Matmul::linear(inner, b, None, out) });
    }

    fn norm(&mut self, x: Tensor, norm: NormWeights, name: String) -> Tensor {
        let out = self.rowwise(name, self.config.width);
        let kind = self.config.norm.kind();
        self.r.push(Norm { kind, x, weight: norm.weight, bias: norm.bias, out });
        out
    }

    /// Adds `delta` to the residual stream; returns the stream and its norm.
    fn add_norm(&mut self, x: Tensor, delta: Tensor, norm: NormWeights, name: String) -> (Tensor, Tensor) {
        let sum = self.stream(format!("{name}.stream"));
        let out = self.rowwise(name, self.config.width);
        let kind = self.config.norm.kind();
        self.r.push(AddNorm { kind, x, delta, weight: norm.weight, bias: norm.bias, sum, out });
        (sum, out)
    }

    fn hidden_states(&mut self) -> Tensor {
        let mut x = self.embed();
        self.mark(x);
        let blocks = &self.model.weights.blocks;
        let mut y = self.norm(x, blocks[0].attention_norm, "h0.attn.in".into());
        for i in 0..blocks.len() {
            let (stream, delta) = self.block(i, x, y);
            let (norm, name) = self.norm_before(i + 1);
            (x, y) = self.add_norm(stream, delta, norm, name);
            self.mark(x);
        }
        self.without_extra_rows(y)
    }

    /// One block, from the residual stream and its norm: the stream after the attention, and what the MLP adds to it.
    fn block(&mut self, i: usize, x: Tensor, y: Tensor) -> (Tensor, Tensor) {
        let block = &self.model.weights.blocks[i];
        let delta = self.attention(i, block, y);
        let delta = self.dropout(delta);
        let (x, y) = self.add_norm(x, delta, block.mlp_norm, format!("h{i}.mlp.in"));
        let delta = self.mlp(i, &block.mlp, y);
        (x, self.dropout(delta))
    }

    /// The norm in front of block `i`, or behind the last, and the name of its result.
    fn norm_before(&self, i: usize) -> (NormWeights, String) {
        let weights = &self.model.weights;
        match weights.blocks.get(i) {
            Some(block) => (block.attention_norm, format!("h{i}.attn.in")),
            None => (weights.final_norm, "final".into()),
        }
    }

    fn mark(&mut self, stream: Tensor) {
        self.boundaries.push(Boundary { stream, salt: self.salt, ops: self.r.program().ops().len() });
    }

    fn without_extra_rows(&mut self, y: Tensor) -> Tensor {
        if self.extra == 0 {
            return y;
        }
        let (batch, tokens, width) = (self.pass.batch, self.pass.tokens, self.config.width);
        let cut = self.r.scratch("final.tokens", self.model.room.compute, [batch, tokens, width]);
        self.copy(Cols::all(y, width), self.extra, cut, 0, tokens);
        cut
    }

    fn copy(&mut self, from: Cols, from_row: usize, to: Tensor, to_row: usize, rows: usize) {
        let to = Cols::all(to, from.width);
        self.r.push(CopyRows { from, from_row, to, add: false, to_row, rows });
    }

    fn embed(&mut self) -> Tensor {
        let (batch, tokens, width) = (self.pass.batch, self.pass.tokens, self.config.width);
        let ids = self.r.view(self.model.inputs.tokens, [batch, tokens]);
        let x = self.r.scratch("embedded", DType::F32, [batch, tokens, width]);
        self.r.push(Embed { tokens: ids, table: self.model.weights.table, out: x });
        let x = self.dropout(x);
        let Some(table) = self.model.weights.miss else { return x };
        let ids = self.r.view(self.model.inputs.miss_tokens, [batch]);
        let miss = self.r.scratch("miss", DType::F32, [batch, 1, width]);
        self.r.push(Embed { tokens: ids, table, out: miss });
        let joined = self.stream("embedded.all".into());
        self.copy(Cols::all(miss, width), 0, joined, 0, 1);
        self.copy(Cols::all(x, width), 0, joined, 1, tokens);
        joined
    }

    fn mlp(&mut self, i: usize, mlp: &MlpWeights, x: Tensor) -> Tensor {
        let hidden = self.config.hidden;
        let (inner, down) = match *mlp {
            MlpWeights::Gelu { up, down } => {
                let x = self.linear(x, up, format!("h{i}.mlp.up"));
                let out = self.rowwise(format!("h{i}.mlp.gelu"), hidden);
                self.r.push(Gelu { x, out });
                (out, down)
            }
            MlpWeights::SwiGlu { gate, up, down } => {
                let gate = self.linear(x, gate, format!("h{i}.mlp.gate"));
                let up = self.linear(x, up, format!("h{i}.mlp.up"));
                let out = self.rowwise(format!("h{i}.mlp.swiglu"), hidden);
                self.r.push(SwiGlu { gate, up, out });
                (out, down)
            }
        };
        self.linear(inner, down, format!("h{i}.mlp.out"))
    }

    fn attention(&mut self, i: usize, block: &BlockWeights, x: Tensor) -> Tensor {
        let (q_width, kv_width) = self.widths();
        let (q, k, v) = match block.projections {
            Projections::Fused(layer) => {
                let qkv = self.linear(x, layer, format!("h{i}.qkv"));
                let cols = |start, width| Cols { tensor: qkv, start, width };
                (cols(0, q_width), cols(q_width, kv_width), cols(q_width + kv_width, kv_width))
            }
            Projections::Split { q, k, v } => (
                Cols::all(self.linear(x, q, format!("h{i}.q")), q_width),
                Cols::all(self.linear(x, k, format!("h{i}.k")), kv_width),
                Cols::all(self.linear(x, v, format!("h{i}.v")), kv_width),
            ),
        };
        let rows = self.rows();
        let positions = self.r.view(self.model.inputs.positions, [self.pass.batch, rows]);
        self.rope(q, q, positions);
        let out = self.rowwise(format!("h{i}.attn"), q_width);
        match (self.pass.context, self.model.caches.get(i).copied()) {
            (Context::None, _) => {
                self.rope(k, k, positions);
                self.attend(i, (q, k, v), rows, out);
            }
            (Context::Kv, Some(LayerCache::Kv { keys, values })) => {
                let (k, v) = self.join_cache(i, (k, keys), (v, values));
                let all = self.r.shape(k.tensor).dims()[1];
                let positions = self.r.view(self.model.inputs.key_positions, [self.pass.batch, all]);
                self.rope(k, k, positions);
                self.attend(i, (q, k, v), all, out);
            }
            (Context::Mem(choice), Some(LayerCache::Mem { keys, values, landmarks })) => {
                let turned = self.rowwise(format!("h{i}.k.turned"), kv_width);
                self.rope(k, Cols::all(turned, kv_width), positions);
                self.retrieve(i, choice, (q, Cols::all(turned, kv_width), v), (keys, values, landmarks), out);
                self.append(k, v, (keys, values, landmarks));
            }
            (context, cache) => panic!("the model was laid out with {cache:?}, not for {context:?}"),
        }
        self.linear(out, block.output, format!("h{i}.attn.out"))
    }

    fn widths(&self) -> (usize, usize) {
        (self.config.heads * self.config.head_dim, self.config.kv_heads * self.config.head_dim)
    }

    fn rope(&mut self, x: Cols, out: Cols, positions: Tensor) {
        self.r.push(Rope {
            x,
            positions,
            frequencies: self.model.inputs.frequencies,
            style: self.config.rotary.style(),
            head_dim: self.config.head_dim,
            inverse: false,
            out,
        });
    }

    fn heads(&self, keys: usize) -> Heads {
        Heads {
            batch: self.pass.batch,
            queries: self.rows(),
            keys,
            heads: self.config.heads,
            kv_heads: self.config.kv_heads,
            head_dim: self.config.head_dim,
        }
    }

    fn attend(&mut self, i: usize, (q, k, v): (Cols, Cols, Cols), keys: usize, out: Tensor) {
        let (batch, tokens) = (self.pass.batch, keys - self.extra);
        let inputs = &self.model.inputs;
        let blocks = match self.pass.placement {
            _ if self.config.attention == Attention::Plain => Blocks::None,
            Placement::None => Blocks::None,
            Placement::Regular { block } => {
                Blocks::Regular { block, phases: self.r.view(inputs.phases, [batch]) }
            }
            Placement::Anywhere => {
                Blocks::Anywhere { is_landmark: self.r.view(inputs.is_landmark, [batch, tokens]) }
            }
        };
        let miss = (self.extra > 0).then(|| MissToken { gated: self.gated(i, tokens) });
        let kv = self.pass.context == Context::Kv;
        let first_key = kv.then(|| self.r.view(inputs.first_key, [batch]));
        let Regularisation { dropout, group_dropout, .. } = self.regularisation;
        let randomness = (dropout > 0.0 || group_dropout > 0.0).then(|| {
            let salt = self.next_salt();
            Randomness { seed: inputs.seed, salt, dropout, group_dropout }
        });
        let rows = self.rows();
        let lse = self.r.scratch(format!("h{i}.lse"), DType::F32, [batch, self.config.heads, rows]);
        let heads = self.heads(keys);
        self.r.push(LandmarkAttention { heads, q, k, v, blocks, miss, first_key, randomness, out, lse });
    }

    fn gated(&mut self, i: usize, tokens: usize) -> Option<Tensor> {
        let p = self.regularisation.gate;
        (p > 0.0).then(|| {
            let out = self.r.scratch(format!("h{i}.gated"), DType::U32, [self.pass.batch, tokens]);
            let salt = self.next_salt();
            self.r.push(Bernoulli { p, seed: self.model.inputs.seed, salt, out });
            out
        })
    }

    /// Keys and values of `[context-miss token, cache, chunk]`; the cache moves on to the newest of them.
    fn join_cache(&mut self, i: usize, k: (Cols, Tensor), v: (Cols, Tensor)) -> (Cols, Cols) {
        let mut join = |name: &str, (chunk, cache): (Cols, Tensor)| {
            let (batch, width, extra, tokens) = (self.pass.batch, chunk.width, self.extra, self.pass.tokens);
            let (kept, dtype) = (self.r.shape(cache).dims()[1], self.model.room.compute);
            let cache = self.r.view(cache, [batch, kept, width]);
            let all =
                self.r.scratch(format!("h{i}.{name}.all"), dtype, [batch, extra + kept + tokens, width]);
            if extra > 0 {
                self.copy(chunk, 0, all, 0, extra);
            }
            self.copy(Cols::all(cache, width), 0, all, extra, kept);
            self.copy(chunk, extra, all, extra + kept, tokens);
            self.copy(Cols::all(all, width), extra + tokens, cache, 0, kept);
            Cols::all(all, width)
        };
        (join("k", k), join("v", v))
    }

    fn retrieve(
        &mut self,
        i: usize,
        choice: Choice,
        (q, k, v): (Cols, Cols, Cols),
        (keys, values, landmarks): (Tensor, Tensor, Tensor),
        out: Tensor,
    ) {
        let memory = self.memory();
        let inputs = &self.model.inputs;
        let (batch, heads, tokens) = (self.pass.batch, self.config.heads, self.pass.tokens);
        let (keys, values, landmarks) = self.rings(keys, values, landmarks);
        let lengths = self.r.view(inputs.lengths, [batch]);
        let counts = self.r.view(inputs.counts, [batch]);
        let (frequencies, style) = (inputs.frequencies, self.config.rotary.style());
        let lookup =
            matches!(self.pass.want, Want::Logits { .. }).then(|| self.model.lookups.get(i)).flatten();
        let per_choice = [batch, heads, tokens, memory.top_k];
        let chosen = (memory.top_k > 0 && memory.blocks > 0).then(|| {
            let scores =
                self.r.scratch(format!("h{i}.scores"), DType::F32, [batch, heads, tokens, memory.blocks]);
            let skip = self.extra;
            self.r.push(LandmarkScores {
                memory,
                heads,
                skip,
                q,
                landmarks,
                lengths,
                frequencies,
                style,
                out: scores,
            });
            let chosen = match lookup {
                Some(lookup) => self.r.view(lookup.chosen, per_choice),
                None => self.r.scratch(format!("h{i}.chosen"), DType::U32, per_choice),
            };
            let selection = choice.selection.selection();
            self.r.push(SelectBlocks { memory, selection, scores, lengths, counts, chosen });
            chosen
        });
        let shares = lookup.map(|lookup| self.r.view(lookup.shares, per_choice));
        let heads = self.heads(self.rows());
        let (miss, miss_cutoff) = (self.extra > 0, choice.miss_cutoff.map(f32::from_bits));
        self.r.push(RetrievalAttention {
            memory,
            heads,
            q,
            k,
            v,
            keys,
            values,
            lengths,
            chosen,
            frequencies,
            style,
            miss,
            miss_cutoff,
            shares,
            out,
        });
    }

    fn append(&mut self, k: Cols, v: Cols, (keys, values, landmarks): (Tensor, Tensor, Tensor)) {
        let memory = self.memory();
        let (keys, values, landmarks) = self.rings(keys, values, landmarks);
        let lengths = self.r.view(self.model.inputs.lengths, [self.pass.batch]);
        let counts = self.r.view(self.model.inputs.counts, [self.pass.batch]);
        self.r.push(AppendKv { memory, skip: self.extra, k, v, lengths, counts, keys, values, landmarks });
    }

    fn memory(&self) -> landmark_core::ops::MemoryShape {
        self.model.memory(self.pass.batch).expect("a pass with a memory over a model that has one")
    }

    /// The rings, cut to this pass's batch.
    fn rings(&mut self, keys: Tensor, values: Tensor, landmarks: Tensor) -> (Tensor, Tensor, Tensor) {
        let m = self.memory();
        let ring = [m.batch, m.slots(), m.kv_heads, m.block, m.head_dim];
        let landmarks_shape = [m.batch, m.kv_heads, m.slots(), m.head_dim];
        (self.r.view(keys, ring), self.r.view(values, ring), self.r.view(landmarks, landmarks_shape))
    }

    fn output(&mut self, x: Tensor) {
        let (inputs, weights) = (&self.model.inputs, &self.model.weights);
        let (batch, width) = (self.pass.batch, self.config.width);
        match self.pass.want {
            Want::Nothing => {}
            Want::Logits { rows } => {
                let room = "logits of a model that was laid out for them";
                // A step of one token has nothing to choose from.
                let last = if self.pass.tokens == 1 && self.r.shape(x).rows() == batch * rows {
                    x
                } else {
                    let wanted = self.r.view(inputs.wanted.expect(room), [batch * rows]);
                    let last = self.r.scratch("final.wanted", self.model.room.compute, [batch, rows, width]);
                    // Rows of the hidden states by number are looked up as tokens are.
                    self.r.push(Embed { tokens: wanted, table: x, out: last });
                    last
                };
                let logits = inputs.logits.expect(room);
                let logits = self.r.view(logits, [batch, rows, self.config.vocab_size]);
                self.r.push(Matmul::linear(last, weights.head, None, logits));
                // Who generates one text greedily reads no more than this, and has it read next.
                if (batch, rows) == (1, 1) {
                    let banned = self.config.banned();
                    let out = self.r.view(inputs.tokens, [1]);
                    self.r.push(Likeliest { logits, banned, out });
                }
            }
            Want::Loss => {
                self.loss(x, None);
            }
            Want::Gradients { scale, recompute, .. } => {
                let shape = self.r.shape(x).clone();
                let dx = self.r.scratch("d.final", self.model.room.compute, shape);
                let parameters = self.model.gradients();
                assert!(!parameters.is_empty(), "gradients of a model that was laid out for training");
                let dweight = parameters.iter().find(|p| p.0 == weights.head).map(|p| Out::add(p.1));
                self.loss(x, Some(LossGradient { dx, dweight, scale }));
                if recompute {
                    self.backward_by_block(&parameters, dx);
                } else {
                    self.r.backward(&parameters, &[(x, dx)]);
                }
            }
        }
    }

    fn loss(&mut self, x: Tensor, gradient: Option<LossGradient>) {
        let inputs = &self.model.inputs;
        let (batch, tokens) = (self.pass.batch, self.pass.tokens);
        let targets = self.r.view(inputs.targets, [batch, tokens]);
        let predictions = gradient.is_none().then(|| self.r.view(inputs.predictions, [batch, tokens]));
        self.r.push(LinearCrossEntropy {
            x,
            weight: self.model.weights.head,
            targets,
            loss: inputs.loss,
            predictions,
            gradient,
        });
    }
}

/// What the optimiser does besides its own rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Weight decay, of the parameters that have it.
    pub weight_decay: f32,
    /// Largest norm of all gradients together.
    pub max_norm: Option<f32>,
}

/// Records the update of every parameter from its gradient, which is cleared.
///
/// # Panics
/// When the model was not laid out for training.
pub fn update(model: &Model, update: &Update) -> Program {
    let mut r = Recorder::new("update", &model.layout);
    let inputs = &model.inputs;
    let scale = update.max_norm.map(|max_norm| {
        r.push(Fill { out: inputs.squared_norm, value: 0.0 });
        for t in &model.trained {
            r.push(SquaredNorm { x: t.grad, out: Out::add(inputs.squared_norm) });
        }
        r.push(ClipScale { squared_norm: inputs.squared_norm, max_norm, out: inputs.clip });
        inputs.clip
    });
    let optimizer = model.room.training.expect("an update of a model that was laid out for training");
    let hyper = inputs.hyper;
    for t in &model.trained {
        let (param, copy, grad) = (t.param, t.copy, t.grad);
        let weight_decay = if t.decay { update.weight_decay } else { 0.0 };
        let state = |i: usize| t.state[i].1;
        match optimizer {
            Optimizer::AdamW { beta1, beta2, eps } => r.push(AdamW {
                param,
                copy,
                grad,
                m: state(0),
                v: state(1),
                hyper,
                scale,
                beta1,
                beta2,
                eps,
                weight_decay,
            }),
            Optimizer::Sgd { momentum } => {
                r.push(Sgd { param, copy, grad, buffer: state(0), hyper, scale, momentum, weight_decay });
            }
            Optimizer::Adafactor => {
                let columns = t.state.get(1).map(|s| s.1);
                r.push(Adafactor { param, copy, grad, rows: state(0), columns, hyper, scale, weight_decay });
            }
        }
    }
    r.finish()
}
