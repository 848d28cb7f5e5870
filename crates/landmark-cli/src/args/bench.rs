//! `landmark bench`.

use bytesize::ByteSize;
use clap::ValueEnum;

use super::quantize::BlockBits;
use super::values::{Dtype, Model, Selection};
use super::{Common, DeviceArg};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Training steps: forward, backward, update.
    Train,
    /// The forward pass with the loss alone.
    Forward,
    /// Landmark attention alone, forward and backward.
    Attention,
    /// Reading a long prompt into a landmark memory.
    Prefill,
    /// Reading a long prompt, and then generating with it, token by token.
    Decode,
}

/// Extents under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ShapeName {
    /// The paper's GPT: 12 layers of width 1024, 8 heads, context 512, blocks of 51.
    Gpt,
    /// LLaMA 7B: 32 layers of width 4096, 32 heads, context 2048, blocks of 64.
    #[value(name = "llama-7b")]
    Llama7b,
}

/// Flags of `landmark bench`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  landmark bench train --json
  landmark bench train --shape gpt --batch-size 16 --acc-steps 8 --device cuda
  landmark bench attention --batch-size 4 --n-head 32 --sequence-length 2048 --head-dim 128 --block 64 --device cuda
  landmark bench decode --shape llama-7b --context 32768 --device cuda --device-memory 3GiB

Prints speeds on random tokens and random weights. Without --shape, train and forward take a model of 4 layers of width
256, and prefill and decode one of the same size.")]
pub struct BenchArgs {
    /// What to measure.
    #[arg(value_enum)]
    pub what: What,
    /// Extents of a model by name; the flags below change single ones.
    #[arg(long, value_enum, value_name = "NAME")]
    pub shape: Option<ShapeName>,
    /// Architecture.
    #[arg(long, value_enum, default_value = "landmark")]
    pub model: Model,
    /// Blocks of attention and MLP [default: 4].
    #[arg(long, value_name = "N")]
    pub n_layer: Option<usize>,
    /// Attention heads [default: 4].
    #[arg(long, value_name = "N")]
    pub n_head: Option<usize>,
    /// Width [default: 256].
    #[arg(long, value_name = "N")]
    pub n_embd: Option<usize>,
    /// Tokens of a row [default: 256].
    #[arg(long, value_name = "N")]
    pub sequence_length: Option<usize>,
    /// Rows [default: 4; 1 for prefill and decode].
    #[arg(long, value_name = "N")]
    pub batch_size: Option<usize>,
    /// Micro-batches of a training step.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub acc_steps: u32,
    /// Rows of the embedding [default: 50304; 32002 for llama-7b].
    #[arg(long, value_name = "N")]
    pub vocab_size: Option<usize>,
    /// Ordinary tokens between landmarks [default: 50; 63 for llama-7b].
    #[arg(long, value_name = "N")]
    pub mem_freq: Option<usize>,
    /// What a GPU computes in [default: torch.bfloat16]; wgpu takes float16 for it, the CPU computes in float32.
    #[arg(long, value_enum, value_name = "TYPE")]
    pub dtype: Option<Dtype>,
    /// Keep weights in blocks of so many bits (wgpu; for prefill and decode).
    #[arg(long, value_enum, value_name = "BITS")]
    pub bits: Option<BlockBits>,
    /// Steps measured, after one that is not [default: as many as fit in 20 seconds].
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
    /// Seed of weights and tokens.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub seed: u64,
    /// Of `attention`.
    #[command(flatten)]
    pub attention: AttentionShape,
    /// Of `prefill` and `decode`.
    #[command(flatten)]
    pub memory: MemoryShapeArgs,
    /// Where to compute.
    #[command(flatten)]
    pub device: DeviceArg,
    /// Flags of every command.
    #[command(flatten)]
    pub common: Common,
}

/// What `bench attention` measures, besides batch, heads and length.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Attention")]
pub struct AttentionShape {
    /// Width of a head.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub head_dim: usize,
    /// Positions of a block, its landmark included; 0 for plain causal attention.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub block: usize,
    /// Key heads [default: as many as query heads].
    #[arg(long, value_name = "N")]
    pub n_kv_head: Option<usize>,
}

/// What `bench prefill` and `bench decode` measure.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Prefill and decode")]
pub struct MemoryShapeArgs {
    /// Tokens of the prompt.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub context: usize,
    /// Tokens generated.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub new_tokens: usize,
    /// Blocks retrieved.
    #[arg(long, value_name = "K", default_value_t = 5)]
    pub cache_topk: usize,
    /// Tokens of a chunk [default: what fits the trained context].
    #[arg(long, value_name = "N")]
    pub mid_length: Option<usize>,
    /// For whom blocks are chosen.
    #[arg(long, value_enum, value_name = "HOW", default_value = "per_token_and_head")]
    pub cache_selection_method: Selection,
    /// Bytes of blocks kept on the device [default: all].
    #[arg(long, value_name = "SIZE")]
    pub device_memory: Option<ByteSize>,
}
