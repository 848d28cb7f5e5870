//! What a model is: its extents, and which norm, MLP, positions and attention its blocks have.
//!
//! GPT and LLaMA are one block under two configurations. Settings of a run (dropout, cache, batch) are not
//! here: they belong to the programs that are recorded over a model, see [`crate::record`].

use landmark_core::ops::{NormKind, RopeStyle};
use serde::{Deserialize, Serialize};

/// Which names the weights carry, and how the projections are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Names of the released GPT (`transformer.h.0.attn.c_attn.weight`); queries, keys and values in one matrix.
    Gpt,
    /// Names of Hugging Face's LLaMA (`model.layers.0.self_attn.q_proj.weight`); three matrices.
    Llama,
}

/// How a model attends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attention {
    /// Plain causal attention; a landmark id is a token like any other.
    Plain,
    /// Landmark attention (spec section 2).
    Landmark,
    /// Landmark attention with a context-miss token.
    LandmarkWithMiss,
}

/// Normalisation of a block.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// LayerNorm with this epsilon.
    Layer(f32),
    /// RMSNorm with this epsilon.
    Rms(f32),
}

impl Norm {
    /// As the ops name it.
    pub fn kind(self) -> NormKind {
        match self {
            Norm::Layer(eps) => NormKind::Layer { eps },
            Norm::Rms(eps) => NormKind::Rms { eps },
        }
    }
}

/// The MLP of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mlp {
    /// Two linear layers with an exact GELU between them.
    Gelu,
    /// `down(silu(gate(x)) · up(x))`.
    SwiGlu,
}

/// Rotary positions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rotary {
    /// Adjacent pairs (GPT) instead of halves (LLaMA).
    pub pairs: bool,
    /// Base of the frequencies: pair `i` turns by `theta^(-2i / head_dim)` at each position.
    pub theta: f64,
}

impl Rotary {
    /// As the ops name it.
    pub fn style(&self) -> RopeStyle {
        if self.pairs { RopeStyle::Pairs } else { RopeStyle::Halves }
    }

    /// Angle of each pair of a head at position 1.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        (0..head_dim / 2).map(|i| self.theta.powf(-2.0 * i as f64 / head_dim as f64) as f32).collect()
    }
}

/// A model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Names of the weights.
    pub family: Family,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream (`n_embd`, `hidden_size`).
    pub width: usize,
    /// Blocks (`n_layer`, `num_hidden_layers`).
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Inner width of the MLP.
    pub hidden: usize,
    /// Normalisation.
    pub norm: Norm,
    /// MLP.
    pub mlp: Mlp,
    /// Whether linear layers and norms carry a bias.
    pub bias: bool,
    /// Whether the output matrix is the embedding.
    pub tied: bool,
    /// Positions.
    pub rotary: Rotary,
    /// Attention.
    pub attention: Attention,
    /// Id of the landmark token.
    pub landmark_id: u32,
    /// Positions that the model was trained on (`sequence_length`), landmarks included.
    pub context: usize,
}

/// A configuration that no model can have.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ConfigError {
    /// An extent is 0 or absurd.
    #[error("{name} is {value}; it has to lie between 1 and {largest}")]
    Extent {
        /// Name of the setting.
        name: &'static str,
        /// Its value.
        value: usize,
        /// Largest value allowed.
        largest: usize,
    },
    /// One setting has to divide another.
    #[error("{name} {value} cannot be split evenly by {by}: choose another --n_embd or --n_head")]
    Indivisible {
        /// Name of the setting.
        name: &'static str,
        /// Its value.
        value: usize,
        /// What has to divide it.
        by: usize,
    },
    /// More weights than any machine holds.
    #[error(
        "the model would have {0} weights, more than 2^40; its settings are damaged, or meant for another program"
    )]
    TooManyWeights(u128),
    /// The inputs, caches or results of one step are too large.
    #[error("{what} would take {bytes} bytes; lower {lower}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        bytes: u128,
        /// The flags that it depends on.
        lower: &'static str,
    },
    /// The landmark is not a token.
    #[error("landmark id {landmark} is outside the vocabulary of {vocab}: raise --vocab_size")]
    Landmark {
        /// The id.
        landmark: u32,
        /// Rows of the embedding.
        vocab: usize,
    },
}

impl ModelConfig {
    /// The released GPT: LayerNorm, exact GELU of four times the width, tied embedding.
    pub fn gpt(vocab_size: usize, width: usize, layers: usize, heads: usize, attention: Attention) -> Self {
        ModelConfig {
            family: Family::Gpt,
            vocab_size,
            width,
            layers,
            heads,
            kv_heads: heads,
            head_dim: width / heads.max(1),
            hidden: 4 * width,
            norm: Norm::Layer(1e-5),
            mlp: Mlp::Gelu,
            bias: false,
            tied: true,
            rotary: Rotary { pairs: true, theta: 10_000.0 },
            attention,
            landmark_id: 50_260,
            context: 512,
        }
    }

    /// Checks one extent of a model: 1 to 2^24.
    ///
    /// # Errors
    /// [`ConfigError::Extent`] with this name.
    pub fn check_extent(name: &'static str, value: usize) -> Result<(), ConfigError> {
        const LARGEST: usize = 1 << 24;
        match value {
            1..=LARGEST => Ok(()),
            _ => Err(ConfigError::Extent { name, value, largest: LARGEST }),
        }
    }

    /// Weights of linear layers and embeddings, without biases and norms.
    pub fn weight_count(&self) -> u128 {
        let [width, hidden, head_dim] = [self.width, self.hidden, self.head_dim].map(|x| x as u128);
        let heads = (2 * self.heads as u128 + 2 * self.kv_heads as u128) * head_dim;
        let mlp = hidden * if self.mlp == Mlp::SwiGlu { 3 } else { 2 };
        let tables = self.vocab_size as u128 * if self.tied { 1 } else { 2 };
        width * (self.layers as u128 * (heads + mlp) + tables)
    }

    /// Checks that a model of this configuration can exist.
    ///
    /// # Errors
    /// Which setting is impossible, and why.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (name, value) in [
            ("the vocabulary size", self.vocab_size),
            ("the model's width (n_embd)", self.width),
            ("the number of heads (n_head)", self.heads),
            ("the number of key heads", self.kv_heads),
            ("the head dimension", self.head_dim),
            ("the MLP's inner width", self.hidden),
            ("the context length (sequence_length)", self.context),
        ] {
            Self::check_extent(name, value)?;
        }
        if self.layers == 0 || self.layers > 4096 {
            let name = "the number of layers (n_layer)";
            return Err(ConfigError::Extent { name, value: self.layers, largest: 4096 });
        }
        if self.family == Family::Gpt && self.heads * self.head_dim != self.width {
            return Err(ConfigError::Indivisible { name: "n_embd", value: self.width, by: self.heads });
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(ConfigError::Indivisible { name: "the head dimension", value: self.head_dim, by: 2 });
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(ConfigError::Indivisible { name: "n_head", value: self.heads, by: self.kv_heads });
        }
        if self.weight_count() > 1 << 40 {
            return Err(ConfigError::TooManyWeights(self.weight_count()));
        }
        if self.attention != Attention::Plain && self.landmark_id as usize >= self.vocab_size {
            return Err(ConfigError::Landmark { landmark: self.landmark_id, vocab: self.vocab_size });
        }
        Ok(())
    }

    /// Rows in front of every sequence that are not tokens: 1 with a context-miss token.
    pub fn extra_rows(&self) -> usize {
        usize::from(self.attention == Attention::LandmarkWithMiss)
    }
}
