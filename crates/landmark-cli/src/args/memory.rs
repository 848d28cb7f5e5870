//! Flags of the commands that ask a model: which one, and how it remembers.

use std::path::{Path, PathBuf};

use bytesize::ByteSize;

use super::values::{Dtype, LmCache, Selection};
use crate::embedded;

/// Which model.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ModelArgs {
    /// A folder in Hugging Face's layout, a checkpoint, a folder of checkpoints, or hf://OWNER/NAME [default: builtin://passkey, a
    /// small model within the program that finds pass keys].
    #[arg(long, visible_alias = "checkpoint", value_name = "PATH")]
    pub model: Option<PathBuf>,
    /// Adapters (LoRA) on the model: a folder in PEFT's layout.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Settings that the model's files do not say: paper (the weights published in 2023).
    #[arg(long, value_name = "NAME")]
    pub preset: Option<String>,
    /// A tokenizer.json [default: the model's own; GPT-2's BPE for a GPT].
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// The type that a GPU computes in [default: torch.bfloat16]; wgpu takes float16 for it, a CPU computes in float32.
    #[arg(long, value_enum, value_name = "TYPE", help_heading = "Output and machine")]
    pub dtype: Option<Dtype>,
}

impl ModelArgs {
    /// The model's path, or the name of the built-in one.
    pub fn path(&self) -> &Path {
        self.model.as_deref().unwrap_or(Path::new(embedded::PASSKEY.name))
    }
}

/// How earlier text is remembered.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Memory")]
pub struct MemoryArgs {
    /// What is remembered [default: mem for landmark models, none for others].
    #[arg(long, value_enum)]
    pub lm_cache: Option<LmCache>,
    /// Cached blocks (mem) or keys (kv) [default: as many as the text needs; kv: at most the trained context].
    #[arg(long, value_name = "N")]
    pub mem_cache_size: Option<usize>,
    /// Ordinary tokens of a block [default: as trained].
    #[arg(long, value_name = "N", alias = "mem-freq")]
    pub mem_cache_freq: Option<usize>,
    /// Blocks retrieved [default: 5, or as many as fit the trained context].
    #[arg(long, value_name = "K", aliases = ["cache-top-k", "cache_top_k"])]
    pub cache_topk: Option<usize>,
    /// How finely blocks are chosen [default: per_token_and_head].
    #[arg(long, value_enum, visible_alias = "retrieval")]
    pub cache_selection_method: Option<Selection>,
    /// Tokens of the chunks in which a text is read [default: what fits the trained context].
    #[arg(long, value_name = "N", alias = "max-chunk-length")]
    pub mid_length: Option<usize>,
    /// Memory on the device, such as 8GiB: landmark keys, and as many blocks as fit [default: no limit].
    #[arg(long, value_name = "SIZE")]
    pub device_memory: Option<ByteSize>,
    /// Memory of the host for blocks that the device has no room for. On the CPU the two budgets add up.
    #[arg(long, value_name = "SIZE")]
    pub host_memory: Option<ByteSize>,
    /// Keep the rest in a scratch file beside this name; it is gone when the command ends.
    #[arg(long, value_name = "FILE")]
    pub memory_file: Option<PathBuf>,
    /// As the released program: blocks in host memory, one choice for all tokens of a chunk. A GPU keeps 2 GiB of the blocks
    /// that it used last, unless --device-memory says otherwise.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_parser = super::values::python_bool, value_name = "BOOL")]
    pub offload_cache_to_cpu: Option<bool>,
}
