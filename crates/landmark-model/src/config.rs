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

/// Which layers carry a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Biases {
    /// The projections to queries, keys and values.
    pub qkv: bool,
    /// The projection from the heads back to the residual stream.
    pub output: bool,
    /// The linear layers of the MLP.
    pub mlp: bool,
    /// The norms.
    pub norm: bool,
}

impl Biases {
    /// Nowhere.
    pub const NONE: Biases = Biases { qkv: false, output: false, mlp: false, norm: false };
    /// Everywhere: the released GPT with `--bias`.
    pub const ALL: Biases = Biases { qkv: true, output: true, mlp: true, norm: true };

    /// Everywhere or nowhere.
    pub fn all_or_none(all: bool) -> Biases {
        if all { Biases::ALL } else { Biases::NONE }
    }
}

/// How rotary frequencies were stretched so that a model reads further than it was first trained for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scaling {
    /// Not at all.
    #[default]
    None,
    /// All frequencies divided by a factor (position interpolation).
    Linear {
        /// Divides the frequencies.
        factor: f64,
    },
    /// A base that grows with the length of a text once that exceeds the trained one (dynamic NTK).
    ///
    /// Up to `max_position_embeddings` positions it is the unscaled rotation, and that is what is computed here: with
    /// a landmark memory no position exceeds the trained context, however long the text is. (A longer text
    /// read at once without memory gets the unscaled frequencies too.)
    Dynamic {
        /// How much further.
        factor: f64,
    },
    /// LLaMA 3: low frequencies are divided by a factor, high ones stay, those between are blended.
    Llama3 {
        /// Divides the low frequencies.
        factor: f64,
        /// Waves longer than `original_context / low_freq_factor` are low.
        low_freq_factor: f64,
        /// Waves shorter than `original_context / high_freq_factor` are high.
        high_freq_factor: f64,
        /// The context of the first training, in positions.
        original_context: usize,
    },
}

impl Scaling {
    /// The frequency of a pair, in radians a position, from its unscaled one.
    fn apply(self, frequency: f64) -> f64 {
        match self {
            Scaling::None | Scaling::Dynamic { .. } => frequency,
            Scaling::Linear { factor } => frequency / factor,
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                // How often the wave fits the first training's context.
                let turns = original_context as f64 * frequency / std::f64::consts::TAU;
                if turns < low_freq_factor {
                    frequency / factor
                } else if turns > high_freq_factor {
                    frequency
                } else {
                    let high = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - high) * frequency / factor + high * frequency
                }
            }
        }
    }

    /// Checks that the factors give finite frequencies.
    fn validate(self) -> Result<(), ConfigError> {
        let positive = |name, value: f64| {
            let is_sound = value.is_finite() && value > 0.0;
            if is_sound { Ok(()) } else { Err(ConfigError::Factor { name, value }) }
        };
        match self {
            Scaling::None => Ok(()),
            Scaling::Linear { factor } | Scaling::Dynamic { factor } => {
                positive("the factor of the rotary scaling", factor)
            }
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                positive("the factor of the rotary scaling", factor)?;
                positive("low_freq_factor of the rotary scaling", low_freq_factor)?;
                positive("high_freq_factor of the rotary scaling", high_freq_factor)?;
                if high_freq_factor <= low_freq_factor {
                    let name = "high_freq_factor of the rotary scaling (it has to exceed low_freq_factor)";
                    return Err(ConfigError::Factor { name, value: high_freq_factor });
                }
                ModelConfig::check_extent("the original context of the rotary scaling", original_context)
            }
        }
    }
}

/// Rotary positions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rotary {
    /// Adjacent pairs (GPT) instead of halves (LLaMA).
    pub pairs: bool,
    /// Base of the frequencies: pair `i` turns by `theta^(-2i / head_dim)` at each position, before scaling.
    pub theta: f64,
    /// What became of the frequencies afterwards.
    pub scaling: Scaling,
}

impl Rotary {
    /// As the ops name it.
    pub fn style(&self) -> RopeStyle {
        if self.pairs { RopeStyle::Pairs } else { RopeStyle::Halves }
    }

    /// Angle of each pair of a head at position 1, scaled.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        let plain = |i| self.theta.powf(-2.0 * i as f64 / head_dim as f64);
        (0..head_dim / 2).map(|i| self.scaling.apply(plain(i)) as f32).collect()
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
    /// Which layers carry a bias.
    pub biases: Biases,
    /// Whether the output matrix is the embedding.
    pub tied: bool,
    /// Positions.
    pub rotary: Rotary,
    /// Attention.
    pub attention: Attention,
    /// Id of the landmark token.
    pub landmark_id: u32,
    /// Ordinary tokens of a block, where the model's own files say (`mem_freq`).
    pub mem_freq: Option<usize>,
    /// Whether the model was trained to predict the token after a full block at that block's landmark
    /// (`include_landmark_in_loss`), and not at the last ordinary token before it.
    pub landmark_in_loss: bool,
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
    /// A factor that gives no finite frequencies.
    #[error("{name} is {value}; it has to be a finite number above 0")]
    Factor {
        /// Name of the factor.
        name: &'static str,
        /// Its value.
        value: f64,
    },
    /// The landmark is not a token.
    #[error(
        "landmark id {landmark} is outside the vocabulary of {vocab}: raise --vocab_size, or give a checkpoint with that token"
    )]
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
            biases: Biases::NONE,
            tied: true,
            rotary: Rotary { pairs: true, theta: 10_000.0, scaling: Scaling::None },
            attention,
            landmark_id: 50_260,
            mem_freq: None,
            landmark_in_loss: false,
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
        if !self.rotary.theta.is_finite() || self.rotary.theta <= 0.0 {
            return Err(ConfigError::Factor {
                name: "the base of the rotary positions (rope_theta)",
                value: self.rotary.theta,
            });
        }
        self.rotary.scaling.validate()?;
        if self.mem_freq.is_some_and(|freq| freq == 0 || freq >= 1 << 24) {
            let name = "the number of tokens of a block (mem_freq)";
            return Err(ConfigError::Extent {
                name,
                value: self.mem_freq.unwrap_or(0),
                largest: (1 << 24) - 1,
            });
        }
        if self.attention != Attention::Plain && self.landmark_id as usize >= self.vocab_size {
            return Err(ConfigError::Landmark { landmark: self.landmark_id, vocab: self.vocab_size });
        }
        Ok(())
    }

    /// The token that is never generated: a landmark, which the memory puts where it belongs.
    pub fn banned(&self) -> Option<u32> {
        (self.attention != Attention::Plain).then_some(self.landmark_id)
    }

    /// Rows in front of every sequence that are not tokens: 1 with a context-miss token.
    pub fn extra_rows(&self) -> usize {
        usize::from(self.attention == Attention::LandmarkWithMiss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scaled(theta: f64, scaling: Scaling, head_dim: usize) -> Vec<f32> {
        Rotary { pairs: false, theta, scaling }.frequencies(head_dim)
    }

    #[test]
    fn linear_scaling_divides_and_dynamic_waits() {
        let plain = scaled(10_000.0, Scaling::None, 8);
        assert_eq!(plain, [1.0, 0.1, 0.01, 0.001]);
        assert_eq!(
            scaled(10_000.0, Scaling::Linear { factor: 4.0 }, 8),
            plain.iter().map(|f| f / 4.0).collect::<Vec<_>>()
        );
        assert_eq!(scaled(10_000.0, Scaling::Dynamic { factor: 4.0 }, 8), plain);
    }

    /// The numbers are those of transformers 5.23 for a base of 500,000 and a first context of 128.
    #[test]
    fn llama3_scaling_blends_between_two_lengths() {
        let llama3 = Scaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 128,
        };
        let expected = [
            1.0,
            0.191_126_5,
            0.004_700_754,
            9.115_831e-4,
            1.767_766_8e-4,
            3.428_102_4e-5,
            6.647_87e-6,
            1.289_173_2e-6,
        ];
        for (found, expected) in scaled(500_000.0, llama3, 16).iter().zip(expected) {
            assert!((found - expected).abs() <= 2e-7 * expected, "{found} instead of {expected}");
        }
    }

    #[test]
    fn factors_without_finite_frequencies_are_refused() {
        let valid = |scaling| {
            let mut config = ModelConfig::gpt(100, 16, 1, 2, Attention::Plain);
            config.rotary.scaling = scaling;
            config.validate().is_ok()
        };
        let llama3 = |low_freq_factor, high_freq_factor, original_context| Scaling::Llama3 {
            factor: 8.0,
            low_freq_factor,
            high_freq_factor,
            original_context,
        };
        assert!(
            valid(Scaling::None) && valid(Scaling::Linear { factor: 2.0 }) && valid(llama3(1.0, 4.0, 32))
        );
        for factor in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(!valid(Scaling::Linear { factor }) && !valid(Scaling::Dynamic { factor }));
            assert!(!valid(llama3(factor, 4.0, 32)), "{factor}");
        }
        assert!(!valid(llama3(4.0, 4.0, 32)) && !valid(llama3(1.0, 4.0, 0)));
    }
}
