//! Low-rank adapters (Hu et al., "LoRA", 2021): `y = W x + scale · B A dropout(x)` with `W` frozen.
//!
//! An adapter is two small matrices beside a linear layer, `A` `(rank, in)` and `B` `(out, rank)`. In training only they
//! have gradients and optimiser state. Kept apart, they are two more products in each program; merged, `W + scale · B
//! A` is a plain weight again ([`merge`]). Layers are named as PEFT names them, so that its files can be read and
//! written.
//!
//! A new token cannot be learned through adapters of the blocks: its row of the embedding and of the output matrix has to
//! change. [`Whole`] names these two matrices, which are then trained as they are (PEFT's `modules_to_save`).

use crate::config::{Family, Mlp, ModelConfig};

/// The layers that can be adapted, by PEFT's names.
pub const TARGETS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// All layers of [`TARGETS`], in one word.
pub const ALL_LINEAR: &str = "all-linear";

/// The matrices that can be trained whole, by PEFT's names.
pub const WHOLE: [&str; 2] = ["embed_tokens", "lm_head"];

/// Which layers of every block are adapted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Targets([bool; TARGETS.len()]);

/// Which matrices outside the blocks are trained whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Whole {
    /// The embedding.
    pub embedding: bool,
    /// The output matrix.
    pub head: bool,
}

/// Adapters of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lora {
    /// Rows of `A`, columns of `B`.
    pub rank: usize,
    /// Strength: see [`scale`](Lora::scale).
    pub alpha: f64,
    /// Dropout of an adapter's input, in training.
    pub dropout: f32,
    /// Divide by the root of the rank instead of the rank (Kalajdzievski, "rsLoRA", 2023).
    pub rank_stabilised: bool,
    /// Adapted layers.
    pub targets: Targets,
    /// Matrices trained whole.
    pub whole: Whole,
}

/// Adapters that cannot be.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum LoraError {
    /// A rank of 0, or one that saves nothing.
    #[error(
        "rank {rank} of the adapters is not between 1 and {largest}, the model's width: choose another --lora_r"
    )]
    Rank {
        /// The rank.
        rank: usize,
        /// The model's width.
        largest: usize,
    },
    /// A strength that is no positive number.
    #[error("--lora_alpha {0} is no number above 0")]
    Alpha(f64),
    /// A probability out of range.
    #[error("--lora_dropout {0} is not in [0, 1)")]
    Dropout(f32),
    /// A layer without a name of PEFT's.
    #[error("there is no layer {0:?} to adapt; give some of {TARGETS:?}, or {ALL_LINEAR}")]
    Target(String),
    /// A matrix that is not one of the two.
    #[error("{0:?} cannot be trained whole; give some of {WHOLE:?}")]
    Whole(String),
    /// Nothing to adapt.
    #[error("no layer is to be adapted; give some of {TARGETS:?}, or {ALL_LINEAR}")]
    Nothing,
    /// Another kind of model.
    #[error("adapters are for models of the LLaMA family; this one has other layers")]
    Family,
}

impl Targets {
    /// All of them.
    pub const ALL: Targets = Targets([true; TARGETS.len()]);

    /// The layers of these names; [`ALL_LINEAR`] stands for all.
    ///
    /// # Errors
    /// A name that is none of [`TARGETS`], or no name at all.
    pub fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Targets, LoraError> {
        let mut targets = Targets::default();
        for name in names {
            match TARGETS.iter().position(|&target| target == name) {
                Some(at) => targets.0[at] = true,
                None if name == ALL_LINEAR => targets = Targets::ALL,
                None => return Err(LoraError::Target(name.to_owned())),
            }
        }
        if targets == Targets::default() { Err(LoraError::Nothing) } else { Ok(targets) }
    }

    /// Their names.
    pub fn names(&self) -> Vec<&'static str> {
        TARGETS.into_iter().zip(self.0).filter(|target| target.1).map(|target| target.0).collect()
    }

    /// Whether the layer of this full name (`model.layers.0.self_attn.q_proj`) is adapted.
    pub fn adapts(&self, layer: &str) -> bool {
        let last = layer.rsplit('.').next().unwrap_or(layer);
        TARGETS.iter().zip(self.0).any(|(&target, is_adapted)| is_adapted && target == last)
    }
}

impl Whole {
    /// The matrices of these names.
    ///
    /// # Errors
    /// A name that is none of [`WHOLE`].
    pub fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Whole, LoraError> {
        let mut whole = Whole::default();
        for name in names {
            match name {
                "embed_tokens" => whole.embedding = true,
                "lm_head" => whole.head = true,
                _ => return Err(LoraError::Whole(name.to_owned())),
            }
        }
        Ok(whole)
    }

    /// Their names.
    pub fn names(&self) -> Vec<&'static str> {
        WHOLE.into_iter().zip([self.embedding, self.head]).filter(|w| w.1).map(|w| w.0).collect()
    }
}

impl Lora {
    /// The factor on `B A`: `alpha / rank`, or `alpha / sqrt(rank)` if rank-stabilised.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f64;
        (self.alpha / if self.rank_stabilised { rank.sqrt() } else { rank }) as f32
    }

    /// Checks that a model of this configuration can have these adapters.
    ///
    /// # Errors
    /// What is impossible, by the flag that sets it.
    pub fn validate(&self, config: &ModelConfig) -> Result<(), LoraError> {
        if config.family != Family::Llama || config.mlp != Mlp::SwiGlu {
            return Err(LoraError::Family);
        }
        if !(1..=config.width).contains(&self.rank) {
            return Err(LoraError::Rank { rank: self.rank, largest: config.width });
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return Err(LoraError::Alpha(self.alpha));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(LoraError::Dropout(self.dropout));
        }
        if self.targets == Targets::default() { Err(LoraError::Nothing) } else { Ok(()) }
    }
}

/// `weight += scale · B A`: an adapter becomes part of its layer.
///
/// `weight` is `(out, in)`, `a` `(rank, in)`, `b` `(out, rank)`. The product is summed in f64 and rounded once, so that the
/// order of the sum does not matter to f32.
///
/// # Panics
/// When the extents do not fit each other.
pub fn merge(weight: &mut [f32], a: &[f32], b: &[f32], rank: usize, scale: f32) {
    let inner = a.len() / rank;
    assert!(a.len() == rank * inner && b.len() * inner == weight.len() * rank, "extents of an adapter");
    let mut sums = vec![0.0_f64; inner];
    for (row, b) in weight.chunks_exact_mut(inner).zip(b.chunks_exact(rank)) {
        sums.fill(0.0);
        for (&b, a) in b.iter().zip(a.chunks_exact(inner)) {
            sums.iter_mut().zip(a).for_each(|(sum, &a)| *sum += f64::from(b) * f64::from(a));
        }
        row.iter_mut().zip(&sums).for_each(|(w, &sum)| *w = (f64::from(*w) + f64::from(scale) * sum) as f32);
    }
}
