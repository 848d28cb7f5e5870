//! `landmark finetune`: the flags of the released program, which are those of Hugging Face's trainer, and ours.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::ValueEnum;

use super::values::{Finite, python_bool};
use super::{Common, DeviceArg};

/// `--lr_scheduler_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum LrScheduler {
    /// Down to 0 in a straight line.
    #[default]
    Linear,
    /// 0.4 periods of a cosine, as released: it ends at a tenth of the highest rate.
    Cosine,
    /// The same rate throughout.
    Constant,
    /// The same rate after the warm-up.
    ConstantWithWarmup,
}

/// `--save_strategy` and `--evaluation_strategy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Strategy {
    /// Never.
    No,
    /// Every so many steps.
    Steps,
    /// At the end of every epoch.
    Epoch,
}

/// Flags of `landmark finetune`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Example, the released recipe (its command line with another program's name, and the text):
  landmark finetune --model_name_or_path llama-7b --train_file redpajama/*.jsonl --output_dir llama-redpajama \\
      --bf16 True --per_device_train_batch_size 2 --gradient_accumulation_steps 8 --save_steps 2000 \\
      --save_total_limit 2 --learning_rate 2e-5 --weight_decay 0.1 --warmup_ratio 0.03 \\
      --lr_scheduler_type cosine --max_steps 15000 --model_max_length 512 --mem_freq 63
Example, adapters only:
  landmark finetune --model_name_or_path llama-7b --train_file book.txt --output_dir tuned --lora_r 16 \\
      --lora_alpha 32 --lora_target_modules all-linear --gradient_checkpointing --max_steps 500

Flags may be written with underscores or with dashes. A run that was cut off goes on from the newest checkpoint
in --output_dir when it is started again."
)]
pub struct FinetuneArgs {
    /// The model to begin with: a folder in Hugging Face's layout.
    #[arg(long, value_name = "DIR", help_heading = "Model and text")]
    pub model_name_or_path: String,
    /// Text: JSON lines with a field "text" (.jsonl, .gz, .zst), a document (.txt), or folders of these.
    #[arg(long, value_name = "FILE", num_args = 1.., required = true, help_heading = "Model and text")]
    pub train_file: Vec<PathBuf>,
    /// Where checkpoints and the result go.
    #[arg(long, value_name = "DIR", help_heading = "Model and text")]
    pub output_dir: PathBuf,
    /// Where downloads are kept.
    #[arg(long, value_name = "DIR", help_heading = "Model and text")]
    pub cache_dir: Option<PathBuf>,
    /// Ordinary tokens of a row.
    #[arg(long, value_name = "N", default_value_t = 512, help_heading = "Model and text")]
    pub model_max_length: usize,
    /// Ordinary tokens of a block: a landmark follows each.
    #[arg(long, value_name = "N", default_value_t = 63, help_heading = "Model and text")]
    pub mem_freq: usize,
    /// Put landmarks in inside the model, out of text and loss, as the released program's fused kernel wants it.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value = "false", default_missing_value = "true", value_parser = python_bool, action = clap::ArgAction::Set, help_heading = "Model and text")]
    pub use_flash: bool,

    /// Passes over the text, if --max-steps does not say.
    #[arg(long, value_name = "X", default_value = "3.0", help_heading = "Training")]
    pub num_train_epochs: Finite,
    /// Steps; overrides --num-train-epochs.
    #[arg(long, value_name = "N", default_value_t = -1, help_heading = "Training")]
    pub max_steps: i64,
    /// Rows of a micro-batch.
    #[arg(long, value_name = "N", default_value = "8", help_heading = "Training")]
    pub per_device_train_batch_size: NonZeroUsize,
    /// Micro-batches of a step; their gradients are averaged.
    #[arg(long, value_name = "N", default_value = "1", help_heading = "Training")]
    pub gradient_accumulation_steps: std::num::NonZeroU32,
    /// Highest learning rate.
    #[arg(long, value_name = "LR", default_value = "5e-5", help_heading = "Training")]
    pub learning_rate: Finite,
    /// Shape of the learning rate.
    #[arg(long, value_enum, default_value_t, help_heading = "Training")]
    pub lr_scheduler_type: LrScheduler,
    /// Share of the steps in which the rate goes up.
    #[arg(long, value_name = "X", default_value = "0.0", help_heading = "Training")]
    pub warmup_ratio: Finite,
    /// Steps in which the rate goes up; overrides --warmup-ratio.
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Training")]
    pub warmup_steps: u64,
    /// Weight decay, of everything but norms and biases.
    #[arg(long, value_name = "X", default_value = "0.0", help_heading = "Training")]
    pub weight_decay: Finite,
    /// Largest norm of the gradients; 0 for no limit.
    #[arg(long, value_name = "X", default_value = "1.0", help_heading = "Training")]
    pub max_grad_norm: Finite,
    /// AdamW's decay of the first moment.
    #[arg(long, value_name = "X", default_value = "0.9", help_heading = "Training")]
    pub adam_beta1: Finite,
    /// AdamW's decay of the second moment.
    #[arg(long, value_name = "X", default_value = "0.999", help_heading = "Training")]
    pub adam_beta2: Finite,
    /// AdamW's epsilon.
    #[arg(long, value_name = "X", default_value = "1e-8", help_heading = "Training")]
    pub adam_epsilon: Finite,
    /// Seed of every random draw.
    #[arg(long, value_name = "N", default_value_t = 42, help_heading = "Training")]
    pub seed: u64,
    /// Compute each block again in the backward pass: much less memory, a third more work.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value = "false", default_missing_value = "true", value_parser = python_bool, action = clap::ArgAction::Set, help_heading = "Training")]
    pub gradient_checkpointing: bool,

    /// Train low-rank adapters of this rank and freeze the model.
    #[arg(long, value_name = "R", help_heading = "Adapters (LoRA)")]
    pub lora_r: Option<usize>,
    /// Strength of the adapters: they count alpha / r times.
    #[arg(long, value_name = "X", default_value = "16", help_heading = "Adapters (LoRA)")]
    pub lora_alpha: Finite,
    /// Dropout of the adapters' input.
    #[arg(long, value_name = "P", default_value = "0.0", help_heading = "Adapters (LoRA)")]
    pub lora_dropout: Finite,
    /// Adapted layers: some of q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj, or all-linear.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', num_args = 1.., default_value = "q_proj,v_proj", help_heading = "Adapters (LoRA)")]
    pub lora_target_modules: Vec<String>,
    /// Matrices trained whole: embed_tokens,lm_head, or none [default: both if tokens are added to the vocabulary].
    #[arg(long, value_name = "NAMES", value_delimiter = ',', num_args = 1.., help_heading = "Adapters (LoRA)")]
    pub lora_modules_to_save: Option<Vec<String>>,
    /// Adapters count alpha / sqrt(r) times.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value = "false", default_missing_value = "true", value_parser = python_bool, action = clap::ArgAction::Set, help_heading = "Adapters (LoRA)")]
    pub use_rslora: bool,

    /// When checkpoints are saved.
    #[arg(long, value_enum, default_value = "steps", help_heading = "Checkpoints and logs")]
    pub save_strategy: Strategy,
    /// Steps between two checkpoints.
    #[arg(long, value_name = "N", default_value = "500", help_heading = "Checkpoints and logs")]
    pub save_steps: std::num::NonZeroU64,
    /// Keep this many checkpoints [default: all].
    #[arg(long, value_name = "N", help_heading = "Checkpoints and logs")]
    pub save_total_limit: Option<NonZeroUsize>,
    /// Steps between two lines about the loss.
    #[arg(long, value_name = "N", default_value = "500", help_heading = "Checkpoints and logs")]
    pub logging_steps: std::num::NonZeroU64,
    /// Go on from this checkpoint, or with True from the newest (which happens by itself, too).
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = "true", help_heading = "Checkpoints and logs")]
    pub resume_from_checkpoint: Option<String>,
    /// Delete the checkpoints in --output-dir and begin anew.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value = "false", default_missing_value = "true", value_parser = python_bool, action = clap::ArgAction::Set, help_heading = "Checkpoints and logs")]
    pub overwrite_output_dir: bool,

    /// Flags that mean nothing here.
    #[command(flatten)]
    pub unused: Unused,
    /// Where to compute.
    #[command(flatten)]
    pub device: DeviceArg,
    /// bfloat16 products on a GPU; weights stay in float32. The CPU computes in float32.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", value_parser = python_bool, help_heading = "Output and machine")]
    pub bf16: Option<bool>,
    /// float16 products on a GPU, likewise.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", value_parser = python_bool, help_heading = "Output and machine")]
    pub fp16: Option<bool>,
    /// Flags of every command.
    #[command(flatten)]
    pub common: Common,
}

/// Flags of the released command line that change nothing here.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Accepted, without effect on a single device")]
pub struct Unused {
    /// TensorFloat-32 products.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", value_parser = python_bool)]
    pub tf32: Option<bool>,
    /// Sharding over several devices.
    #[arg(long, value_name = "WORDS")]
    pub fsdp: Option<String>,
    /// Which layers are sharded.
    #[arg(long, value_name = "NAME")]
    pub fsdp_transformer_layer_cls_to_wrap: Option<String>,
    /// AdamW's implementation.
    #[arg(long, value_name = "NAME", value_parser = ["adamw_torch", "adamw_hf", "adamw_torch_fused"])]
    pub optim: Option<String>,
    /// Rows of an evaluation batch; nothing is evaluated.
    #[arg(long, value_name = "N")]
    pub per_device_eval_batch_size: Option<usize>,
    /// When to evaluate: only `no`, as there is no evaluation set.
    #[arg(long, value_enum, alias = "eval_strategy")]
    pub evaluation_strategy: Option<Strategy>,
    /// Where metrics are sent: nowhere.
    #[arg(long, value_name = "NAME")]
    pub report_to: Option<String>,
    /// Name of the run.
    #[arg(long, value_name = "NAME")]
    pub run_name: Option<String>,
}
