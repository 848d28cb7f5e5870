//! The weights of a model: names, shapes, first values, and where they stand in a layout.

use crate::config::{Attention, Biases, Family, Mlp, ModelConfig};
use crate::lora::Lora;
use crate::random::{Purpose, generator};
use landmark_core::{DType, Layout, Tensor};
use rand::{Rng, RngExt};

/// One tensor that training can change.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Name under which it is saved.
    pub name: String,
    /// Extents.
    pub shape: Vec<usize>,
    /// Whether weight decay applies: matrices of linear layers, and LLaMA's embedding (what Hugging Face's trainer
    /// does).
    pub decay: bool,
    /// First value.
    pub init: Init,
    /// Its place in the layout. In f32 if it is trained or no matrix, else in the type that the model computes in.
    pub tensor: Tensor,
    /// The same matrix in the type that the model computes in, where `tensor` is a master in f32 beside it.
    pub copy: Option<Tensor>,
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All ones.
    Ones,
    /// All zeros.
    Zeros,
    /// Normal with this standard deviation.
    Normal(f32),
    /// Uniform between plus and minus this.
    Uniform(f32),
}

/// A linear layer, `(out, in)`.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// Matrix.
    pub weight: Tensor,
    /// Shift.
    pub bias: Option<Tensor>,
    /// Low-rank addition.
    pub adapter: Option<Adapter>,
}

/// A low-rank addition to a linear layer, `scale · B · A`: see [`crate::lora`].
#[derive(Clone, Copy, Debug)]
pub struct Adapter {
    /// `(rank, in)`.
    pub a: Tensor,
    /// `(out, rank)`.
    pub b: Tensor,
    /// Factor.
    pub scale: f32,
    /// Dropout of its input, in training.
    pub dropout: f32,
}

/// Scale and shift of a norm.
#[derive(Clone, Copy, Debug)]
pub struct NormWeights {
    /// Scale.
    pub weight: Tensor,
    /// Shift.
    pub bias: Option<Tensor>,
}

/// Projections to queries, keys and values.
#[derive(Clone, Copy, Debug)]
pub enum Projections {
    /// One matrix for all three.
    Fused(Linear),
    /// A matrix each.
    Split {
        /// Queries.
        q: Linear,
        /// Keys.
        k: Linear,
        /// Values.
        v: Linear,
    },
}

/// The MLP's layers.
#[derive(Clone, Copy, Debug)]
pub enum MlpWeights {
    /// Up, GELU, down.
    Gelu {
        /// First layer.
        up: Linear,
        /// Second layer.
        down: Linear,
    },
    /// SwiGLU.
    SwiGlu {
        /// Gated layer.
        gate: Linear,
        /// Linear layer.
        up: Linear,
        /// Last layer.
        down: Linear,
    },
}

/// One block.
#[derive(Clone, Copy, Debug)]
pub struct BlockWeights {
    /// Norm before the attention.
    pub attention_norm: NormWeights,
    /// Queries, keys, values.
    pub projections: Projections,
    /// Back into the residual stream.
    pub output: Linear,
    /// Norm before the MLP.
    pub mlp_norm: NormWeights,
    /// MLP.
    pub mlp: MlpWeights,
}

/// All weights of a model.
#[derive(Clone, Debug)]
pub struct Weights {
    /// The tensors of the model itself, in the order of saving.
    pub parameters: Vec<Parameter>,
    /// The tensors of its adapters: `A` and `B` of each adapted layer.
    pub adapters: Vec<Parameter>,
    /// Embedding `(V, C)`, as it is looked up.
    pub table: Tensor,
    /// Embedding of the context-miss token `(1, C)`.
    pub miss: Option<Tensor>,
    /// The blocks.
    pub blocks: Vec<BlockWeights>,
    /// Norm before the output.
    pub final_norm: NormWeights,
    /// Output matrix `(V, C)`, as it is multiplied with; the embedding where they are tied.
    pub head: Tensor,
}

/// Element types of the weights of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Types {
    /// What products read.
    pub compute: DType,
    /// Whether weights are trained, and so need a master in f32.
    pub trains: bool,
}

impl Types {
    /// Everything in f32.
    pub const F32: Types = Types { compute: DType::F32, trains: false };
}

/// Collects parameters while the model is laid out.
struct Builder<'a> {
    layout: &'a mut Layout,
    types: Types,
    biases: Biases,
    lora: Option<Lora>,
    parameters: Vec<Parameter>,
    adapters: Vec<Parameter>,
}

impl Builder<'_> {
    fn place(
        &mut self,
        name: String,
        shape: &[usize],
        decay: bool,
        init: Init,
        is_trained: bool,
    ) -> Parameter {
        let Types { compute, trains } = self.types;
        let is_half = shape.len() > 1 && compute != DType::F32;
        let has_master = is_half && trains && is_trained;
        let dtype = if is_half && !has_master { compute } else { DType::F32 };
        let tensor = self.layout.add(name.clone(), dtype, shape);
        let copy = has_master.then(|| self.layout.add(format!("{name}.{}", compute.name()), compute, shape));
        Parameter { name, shape: shape.to_vec(), decay, init, tensor, copy }
    }

    /// A parameter of the model itself: trained unless there are adapters.
    fn add(&mut self, name: String, shape: &[usize], decay: bool, init: Init) -> Tensor {
        let is_trained = self.lora.is_none();
        self.add_as(name, shape, decay, init, is_trained).operand()
    }

    fn add_as(
        &mut self,
        name: String,
        shape: &[usize],
        decay: bool,
        init: Init,
        is_trained: bool,
    ) -> Parameter {
        let parameter = self.place(name, shape, decay, init, is_trained);
        self.parameters.push(parameter.clone());
        parameter
    }

    fn linear(&mut self, name: String, [out, inner]: [usize; 2], bias: bool, std: f32) -> Linear {
        let weight = self.add(format!("{name}.weight"), &[out, inner], true, Init::Normal(std));
        let bias = bias.then(|| self.add(format!("{name}.bias"), &[out], false, Init::Zeros));
        let lora = self.lora.filter(|lora| lora.targets.adapts(&name));
        let adapter = lora.map(|lora| self.adapter(&lora, &name, out, inner));
        Linear { weight, bias, adapter }
    }

    /// `A` starts as PEFT's does (uniform, of variance 1 / 3in), `B` at zero: so the model starts as it was.
    fn adapter(&mut self, lora: &Lora, name: &str, out: usize, inner: usize) -> Adapter {
        let uniform = Init::Uniform((inner as f32).sqrt().recip());
        let a = self.place(format!("{name}.lora_A.weight"), &[lora.rank, inner], true, uniform, true);
        let b = self.place(format!("{name}.lora_B.weight"), &[out, lora.rank], true, Init::Zeros, true);
        let (scale, dropout) = (lora.scale(), lora.dropout);
        let adapter = Adapter { a: a.operand(), b: b.operand(), scale, dropout };
        self.adapters.extend([a, b]);
        adapter
    }

    fn norm(&mut self, name: String, width: usize) -> NormWeights {
        let weight = self.add(format!("{name}.weight"), &[width], false, Init::Ones);
        let bias = self.biases.norm.then(|| self.add(format!("{name}.bias"), &[width], false, Init::Zeros));
        NormWeights { weight, bias }
    }
}

/// Standard deviation of first weights (GPT-2).
const STD: f32 = 0.02;

impl Weights {
    /// Adds the weights of `config` to a layout, and those of its adapters.
    pub fn lay_out(config: &ModelConfig, lora: Option<Lora>, types: Types, layout: &mut Layout) -> Weights {
        let (parameters, adapters) = (Vec::new(), Vec::new());
        let mut b = Builder { layout, types, biases: config.biases, lora, parameters, adapters };
        let (embedding, final_norm) = match config.family {
            Family::Gpt => ("transformer.wte.weight", "transformer.ln_f"),
            Family::Llama => ("model.embed_tokens.weight", "model.norm"),
        };
        let matrix = [config.vocab_size, config.width];
        let is_llama = config.family == Family::Llama;
        let is_trained = lora.is_none_or(|lora| lora.whole.embedding);
        let table = b.add_as(embedding.into(), &matrix, is_llama, Init::Normal(STD), is_trained);
        let blocks = (0..config.layers).map(|i| block(config, &mut b, i)).collect();
        let final_norm = b.norm(final_norm.into(), config.width);
        let miss = (config.attention == Attention::LandmarkWithMiss).then(|| {
            let name = "rem_token_embedding.weight".into();
            b.add_as(name, &[1, config.width], false, Init::Normal(STD), lora.is_none()).tensor
        });
        let head = if config.tied {
            table.operand()
        } else {
            let is_trained = lora.is_none_or(|lora| lora.whole.head);
            b.add_as("lm_head.weight".into(), &matrix, true, Init::Normal(STD), is_trained).operand()
        };
        // Looked up, not multiplied: the master will do, and the residual stream starts from it.
        let table = table.tensor;
        let Builder { parameters, adapters, .. } = b;
        Weights { parameters, adapters, table, miss, blocks, final_norm, head }
    }
}

fn block(config: &ModelConfig, b: &mut Builder<'_>, index: usize) -> BlockWeights {
    let (width, hidden) = (config.width, config.hidden);
    let biases = config.biases;
    let (q_width, kv_width) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    // Residual projections start smaller, so that the stream's variance does not grow with depth.
    let residual = STD / (2.0 * config.layers as f32).sqrt();
    let name = |part: &str| match config.family {
        Family::Gpt => format!("transformer.h.{index}.{part}"),
        Family::Llama => format!("model.layers.{index}.{part}"),
    };
    match config.family {
        Family::Gpt => BlockWeights {
            attention_norm: b.norm(name("ln_1"), width),
            projections: Projections::Fused(b.linear(
                name("attn.c_attn"),
                [q_width + 2 * kv_width, width],
                biases.qkv,
                STD,
            )),
            output: b.linear(name("attn.c_proj"), [width, q_width], biases.output, residual),
            mlp_norm: b.norm(name("ln_2"), width),
            mlp: MlpWeights::Gelu {
                up: b.linear(name("mlp.c_fc"), [hidden, width], biases.mlp, STD),
                down: b.linear(name("mlp.c_proj"), [width, hidden], biases.mlp, residual),
            },
        },
        Family::Llama => BlockWeights {
            attention_norm: b.norm(name("input_layernorm"), width),
            projections: Projections::Split {
                q: b.linear(name("self_attn.q_proj"), [q_width, width], biases.qkv, STD),
                k: b.linear(name("self_attn.k_proj"), [kv_width, width], biases.qkv, STD),
                v: b.linear(name("self_attn.v_proj"), [kv_width, width], biases.qkv, STD),
            },
            output: b.linear(name("self_attn.o_proj"), [width, q_width], biases.output, residual),
            mlp_norm: b.norm(name("post_attention_layernorm"), width),
            mlp: match config.mlp {
                Mlp::SwiGlu => MlpWeights::SwiGlu {
                    gate: b.linear(name("mlp.gate_proj"), [hidden, width], biases.mlp, STD),
                    up: b.linear(name("mlp.up_proj"), [hidden, width], biases.mlp, STD),
                    down: b.linear(name("mlp.down_proj"), [width, hidden], biases.mlp, residual),
                },
                Mlp::Gelu => MlpWeights::Gelu {
                    up: b.linear(name("mlp.up_proj"), [hidden, width], biases.mlp, STD),
                    down: b.linear(name("mlp.down_proj"), [width, hidden], biases.mlp, residual),
                },
            },
        },
    }
}

impl Parameter {
    /// The tensor that products read.
    pub fn operand(&self) -> Tensor {
        self.copy.unwrap_or(self.tensor)
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// First values, a function of the run's seed and of the parameter's place in the model.
    pub fn initial(&self, seed: u64, index: usize) -> Vec<f32> {
        match self.init {
            Init::Uniform(bound) => {
                let mut random = generator(seed, Purpose::Adapters, index as u64, 0);
                (0..self.numel()).map(|_| (2.0 * random.random::<f32>() - 1.0) * bound).collect()
            }
            Init::Ones => vec![1.0; self.numel()],
            Init::Zeros => vec![0.0; self.numel()],
            Init::Normal(std) => {
                let mut random = generator(seed, Purpose::Weights, index as u64, 0);
                let mut values = Vec::with_capacity(self.numel() + 1);
                while values.len() < self.numel() {
                    let (a, b) = normal_pair(&mut random);
                    values.extend([a * std, b * std]);
                }
                values.truncate(self.numel());
                values
            }
        }
    }
}

/// Two independent normal numbers (Box-Muller).
fn normal_pair(random: &mut impl Rng) -> (f32, f32) {
    let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
    let angle = std::f64::consts::TAU * random.random::<f64>();
    ((radius * angle.cos()) as f32, (radius * angle.sin()) as f32)
}
