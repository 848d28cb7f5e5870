//! The flags of the released program, in its order and with its defaults, followed by the flags that Landmark
//! adds.
//!
//! One list yields two types. [`Given`] is what was on the command line, every field optional, so that a flag
//! not given is told from one given with its default: an evaluation takes what is not given from the
//! checkpoint. [`RunArgs`] has a value for everything. The bridge between them, and to a checkpoint's
//! `summary.json`, is a JSON object with the flags' names as keys (see [`crate::settings`]). The order
//! matters: overridden values appear in an experiment's name in it.

use serde::{Deserialize, Serialize};

use super::values::{
    Accumulation, ConfigFormat, DistributedBackend, Dtype, Finite, LmCache, Maybe, Model,
    OptimizationProcess, Optimizer, PositionalEncoder, Scheduler, Selection, SoftmaxFunc,
};
use crate::device::DeviceName;

/// A flag reads `name: type on the command line => type of the setting = default;`.
macro_rules! flags {
    ($($heading:literal { $(
        #[doc = $doc:literal]
        $name:ident: $given:ty => $setting:ty = $default:expr;
    )* })*) => {
        /// The flags given on a command line, and only those.
        #[derive(Clone, Debug, Default, clap::Args, Serialize)]
        pub struct Given { $($(
            #[doc = $doc]
            #[arg(long, help_heading = $heading)]
            #[serde(skip_serializing_if = "Option::is_none")]
            pub $name: Option<$given>,
        )*)* }

        /// Every setting of a run, under the name of its flag. Serialised, this is `args` of `summary.json`.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub struct RunArgs { $($(
            #[doc = $doc]
            pub $name: $setting,
        )*)* }

        impl Default for RunArgs {
            /// The released program's defaults.
            fn default() -> RunArgs {
                RunArgs { $($($name: $default,)*)* }
            }
        }
    };
}

flags! {
    "Training" {
        /// The set of flags; both mean this one.
        config_format: ConfigFormat => ConfigFormat = ConfigFormat::Base;
        /// Rows of a micro-batch.
        batch_size: usize => usize = 50;
        /// Micro-batches of a step.
        acc_steps: usize => usize = 4;
        /// Seed of every random draw.
        seed: u64 => u64 = 2;
        /// Where to compute: auto, cpu, cuda, cuda:N, wgpu, wgpu:N or wgpu:NAME.
        device: DeviceName => DeviceName = DeviceName::Auto;
        /// Steps.
        iterations: u64 => u64 = 15_000;
        /// Highest learning rate.
        lr: Finite => f64 = 2e-3;
        /// Fraction of the steps in which the learning rate rises.
        warmup_percent: Finite => f64 = 0.02;
        /// Weight decay of the linear weights.
        weight_decay: Finite => f64 = 1e-3;
        /// AdamW's decay of the first moment.
        beta1: Finite => f64 = 0.9;
        /// AdamW's decay of the second moment.
        beta2: Finite => f64 = 0.95;
        /// How the learning rate moves.
        scheduler: Scheduler => Scheduler = Scheduler::Cos;
        /// Optimiser.
        opt: Optimizer => Optimizer = Optimizer::Adamw;
        /// Steps between evaluations.
        eval_freq: u64 => u64 = 200;
        /// Folder of all results.
        results_base_folder: String => String = "./exps".to_owned();
        /// Steps between checkpoints; None for one at the end.
        save_checkpoint_freq: Maybe<u64> => Option<u64> = None;
    }
    "Data" {
        /// pg19, arxivmath, redpajama, text, or with --data-dir any name.
        dataset: Maybe<String> => Option<String> = None;
        /// Rows of the embedding.
        vocab_size: usize => usize = 50_304;
        /// Ordinary tokens between landmarks; None for a stream without landmarks.
        mem_freq: Maybe<usize> => Option<usize> = Some(50);
    }
    "Model" {
        /// Architecture.
        model: Model => Model = Model::BaseRotary;
        /// Dropout of activations.
        dropout: Finite => f64 = 0.0;
        /// Dropout of whole earlier blocks.
        group_dropout: Maybe<Finite> => Option<f64> = None;
        /// Attention heads.
        n_head: usize => usize = 8;
        /// Blocks of attention and MLP.
        n_layer: usize => usize = 12;
        /// Width.
        n_embd: usize => usize = 1024;
        /// Tokens of a window.
        sequence_length: usize => usize = 512;
        /// Precision of matrix products on a GPU; the CPU computes in float32.
        dtype: Dtype => Dtype = Dtype::Bfloat16;
        /// Whether linear layers and norms have biases (alone, or with true or false).
        bias: bool => bool = false;
        /// Accepted and without effect: nothing here is compiled by PyTorch.
        no_compile: bool => bool = false;
        /// Put before the generated name of the experiment.
        run_prefix: Maybe<String> => Option<String> = None;
        /// Name of the experiment, instead of a generated one.
        exp_name: Maybe<String> => Option<String> = None;
        /// Softmax of the attention.
        softmax_func: SoftmaxFunc => SoftmaxFunc = SoftmaxFunc::MemOpt;
        /// Positions.
        positional_encoder: PositionalEncoder => PositionalEncoder = PositionalEncoder::Rotary;
    }
    "Logging and distribution" {
        /// Say how to bring the run into Weights & Biases (event files are written in any case).
        wandb: bool => bool = false;
        /// Project there.
        wandb_project: String => String = "my-project".to_owned();
        /// None; several GPUs are not supported yet.
        distributed_backend: Maybe<DistributedBackend> => Option<DistributedBackend> = None;
        /// Accepted and without effect: the number of groups has no limit here.
        max_groups_for_softmax: u64 => u64 = 16;
    }
    "Memory" {
        /// Use the cache of --lm-cache.
        use_cache: bool => bool = false;
        /// What is remembered of earlier chunks.
        lm_cache: LmCache => LmCache = LmCache::None;
        /// Cached blocks (mem) or keys (kv).
        mem_cache_size: Maybe<usize> => Option<usize> = None;
        /// Ordinary tokens between the landmarks that the memory inserts: its block size.
        mem_cache_freq: Maybe<usize> => Option<usize> = None;
        /// Blocks retrieved.
        cache_topk: usize => usize = 1;
        /// How finely blocks are chosen.
        cache_selection_method: Selection => Selection = Selection::PerTokenAndHead;
        /// Tokens of an evaluated row.
        eval_seq_length: usize => usize = 512;
        /// Tokens of the random subset that is evaluated; None for everything.
        eval_sample_size: Maybe<usize> => Option<usize> = None;
        /// Tokens of the chunks in which a row is read.
        mid_length: usize => usize = 250;
        /// Let the cache be used in training.
        allow_cache_during_training: bool => bool = false;
        /// Accepted and without effect: here the cache exists when it is first used.
        postpone_lm_cache: bool => bool = false;
        /// How to train.
        optimization_process: OptimizationProcess => OptimizationProcess = OptimizationProcess::Landmark;
    }
    "Context miss token, positions, Transformer-XL" {
        /// Probability with which a landmark is gated in training.
        under_rem_score_prob: Maybe<Finite> => Option<f64> = Some(0.0);
        /// Share of the context miss token below which nothing is fetched.
        rem_cutoff: Maybe<Finite> => Option<f64> = None;
        /// Learn a context miss token.
        enable_rem_score: bool => bool = false;
        /// Positions jump by less than this after a landmark, in training.
        pos_jump_on_mem: Maybe<u64> => Option<u64> = None;
        /// Tokens over which Transformer-XL carries its cache.
        total_sequence_length: Maybe<usize> => Option<usize> = None;
    }
    "Beyond the released program" {
        /// Token that closes a block.
        landmark_id: u32 => u32 = 50_260;
        /// Periods of the cosine of --scheduler warmup_cos; the LLaMA recipe has 0.4.
        cycles: Finite => f64 = 0.5;
        /// Largest norm of the gradient; None for no limit.
        grad_clip: Maybe<Finite> => Option<f64> = None;
        /// What the gradients of the micro-batches become.
        accumulation: Accumulation => Accumulation = Accumulation::Sum;
        /// Random batches of each evaluation during training.
        eval_batches: usize => usize = 24;
    }
}
