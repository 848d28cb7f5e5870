//! `landmark finetune`: flags to settings.

use std::path::PathBuf;

use landmark_model::lora::{Lora, Targets, WHOLE, Whole};
use landmark_model::rows::Placing;
use landmark_model::schedule::Schedule;
use serde_json::{Value, json};

use crate::args::finetune::{FinetuneArgs, LrScheduler, Strategy};
use crate::args::values::Dtype;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::finetuning;
use crate::report::Report;

/// Periods of the released cosine.
const CYCLES: f64 = 0.4;

/// When checkpoints are saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Save {
    /// Only the result.
    Never,
    /// Every so many steps.
    Every(u64),
    /// At the end of every epoch.
    Epoch,
}

/// Where a run begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the newest checkpoint in its folder, or at step 0 if there is none.
    Newest,
    /// At this checkpoint.
    At(PathBuf),
    /// At step 0; checkpoints of earlier runs are deleted.
    Anew,
}

/// Adapters as asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraSettings {
    /// Everything but the matrices trained whole.
    pub lora: Lora,
    /// Those; `None` for both if the vocabulary grows, and none if not.
    pub whole: Option<Whole>,
}

/// A run, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct FinetuneSettings {
    /// The model to begin with, as given.
    pub model: String,
    /// Text.
    pub files: Vec<PathBuf>,
    /// Where everything goes.
    pub folder: PathBuf,
    /// Ordinary tokens of a row.
    pub length: usize,
    /// Ordinary tokens of a block.
    pub mem_freq: usize,
    /// How landmarks get into rows.
    pub placing: Placing,
    /// Passes over the text, where `max_steps` does not say.
    pub epochs: f64,
    /// Steps.
    pub max_steps: Option<u64>,
    /// Rows of a micro-batch.
    pub batch: usize,
    /// Micro-batches of a step.
    pub micro_batches: u32,
    /// Shape of the learning rate.
    pub scheduler: LrScheduler,
    /// Highest learning rate.
    pub rate: f64,
    /// Share of the steps going up.
    pub warmup_ratio: f64,
    /// Steps going up, where not 0.
    pub warmup_steps: u64,
    /// AdamW: decays of the moments, epsilon.
    pub adam: [f64; 3],
    /// Weight decay.
    pub weight_decay: f64,
    /// Largest norm of the gradients.
    pub max_norm: Option<f64>,
    /// Seed of everything random.
    pub seed: u64,
    /// Compute blocks again in the backward pass.
    pub recompute: bool,
    /// Adapters, if any.
    pub lora: Option<LoraSettings>,
    /// When checkpoints are saved.
    pub save: Save,
    /// How many are kept.
    pub keep: Option<usize>,
    /// Steps between two lines about the loss.
    pub log_every: u64,
    /// Where to begin.
    pub start: Start,
    /// Where to compute.
    pub device: Device,
    /// What a GPU computes in.
    pub dtype: Dtype,
    /// What the user should know before the run begins.
    pub remarks: Vec<String>,
}

impl FinetuneSettings {
    /// Everything that changes what is computed: a run goes on only from a checkpoint with the same.
    pub fn identity(&self) -> Value {
        let lora = self.lora.as_ref().map(|LoraSettings { lora, whole }| {
            json!({
                "r": lora.rank, "alpha": lora.alpha, "dropout": lora.dropout, "rslora": lora.rank_stabilised,
                "target_modules": lora.targets.names(), "modules_to_save": whole.map(|whole| whole.names()),
            })
        });
        json!({
            "model_name_or_path": self.model,
            "model_max_length": self.length,
            "mem_freq": self.mem_freq,
            "use_flash": self.placing == Placing::Inside,
            "per_device_train_batch_size": self.batch,
            "gradient_accumulation_steps": self.micro_batches,
            "lr_scheduler_type": format!("{:?}", self.scheduler),
            "learning_rate": self.rate,
            "warmup_ratio": self.warmup_ratio,
            "warmup_steps": self.warmup_steps,
            "adam": self.adam,
            "weight_decay": self.weight_decay,
            "max_grad_norm": self.max_norm,
            "seed": self.seed,
            "lora": lora,
        })
    }

    /// The learning rate of a run of `steps`.
    pub fn schedule(&self, steps: u64) -> Schedule {
        let max_rate = self.rate;
        let warmup_steps = match self.warmup_steps {
            0 => (self.warmup_ratio * steps as f64).ceil() as u64,
            given => given,
        }
        .min(steps);
        match self.scheduler {
            LrScheduler::Constant => Schedule::Constant { rate: max_rate },
            LrScheduler::ConstantWithWarmup => Schedule::WarmupConstant { max_rate, warmup_steps },
            LrScheduler::Linear => Schedule::WarmupLinear { max_rate, warmup_steps, total_steps: steps },
            LrScheduler::Cosine => {
                Schedule::WarmupCosine { max_rate, warmup_steps, total_steps: steps, cycles: CYCLES }
            }
        }
    }
}

/// Resolves the flags. Reads nothing.
///
/// # Errors
/// Names the flag that cannot be followed.
pub fn settings(args: &FinetuneArgs) -> Result<FinetuneSettings> {
    let device = args.device.device.select_for_training()?;
    let dtype = dtype(args)?;
    check(args)?;
    let start = match args.resume_from_checkpoint.as_deref() {
        _ if args.overwrite_output_dir => Start::Anew,
        None | Some("true" | "True" | "1" | "false" | "False" | "0") => Start::Newest,
        Some(path) => Start::At(path.into()),
    };
    Ok(FinetuneSettings {
        device,
        dtype,
        model: args.model_name_or_path.clone(),
        files: args.train_file.clone(),
        folder: args.output_dir.clone(),
        length: args.model_max_length,
        mem_freq: args.mem_freq,
        placing: if args.use_flash { Placing::Inside } else { Placing::AsTokens },
        epochs: args.num_train_epochs.0,
        max_steps: u64::try_from(args.max_steps).ok().filter(|&steps| steps > 0),
        batch: args.per_device_train_batch_size.get(),
        micro_batches: args.gradient_accumulation_steps.get(),
        scheduler: args.lr_scheduler_type,
        rate: args.learning_rate.0,
        warmup_ratio: args.warmup_ratio.0,
        warmup_steps: args.warmup_steps,
        adam: [args.adam_beta1.0, args.adam_beta2.0, args.adam_epsilon.0],
        weight_decay: args.weight_decay.0,
        max_norm: Some(args.max_grad_norm.0).filter(|&norm| norm > 0.0),
        seed: args.seed,
        recompute: args.gradient_checkpointing,
        lora: lora(args)?,
        save: match args.save_strategy {
            Strategy::No => Save::Never,
            Strategy::Steps => Save::Every(args.save_steps.get()),
            Strategy::Epoch => Save::Epoch,
        },
        keep: args.save_total_limit.map(std::num::NonZeroUsize::get),
        log_every: args.logging_steps.get(),
        start,
        remarks: remarks(args, device),
    })
}

fn check(args: &FinetuneArgs) -> Result<()> {
    let bounded = |flag: &str, value: f64, least: f64, below: f64, range: &str| {
        if value >= least && value < below {
            return Ok(());
        }
        Err(Error::flag(flag, format!("{value} makes no sense"), format!("give a number {range}")))
    };
    let huge = f64::INFINITY;
    bounded("--learning-rate", args.learning_rate.0, 0.0, huge, "of at least 0")?;
    bounded("--weight-decay", args.weight_decay.0, 0.0, huge, "of at least 0")?;
    bounded("--max-grad-norm", args.max_grad_norm.0, 0.0, huge, "of at least 0")?;
    bounded("--warmup-ratio", args.warmup_ratio.0, 0.0, 1.0 + f64::EPSILON, "between 0 and 1")?;
    bounded("--adam-beta1", args.adam_beta1.0, 0.0, 1.0, "in [0, 1)")?;
    bounded("--adam-beta2", args.adam_beta2.0, 0.0, 1.0, "in [0, 1)")?;
    bounded("--adam-epsilon", args.adam_epsilon.0, f64::MIN_POSITIVE, huge, "above 0")?;
    if args.max_steps <= 0 {
        bounded("--num-train-epochs", args.num_train_epochs.0, f64::MIN_POSITIVE, 1e9, "above 0")?;
    }
    for (flag, value) in [("--model-max-length", args.model_max_length), ("--mem-freq", args.mem_freq)] {
        if !(1..=1 << 24).contains(&value) {
            return Err(Error::flag(
                flag,
                format!("{value} makes no sense"),
                "give a number between 1 and 2^24",
            ));
        }
    }
    if args.use_flash && !args.model_max_length.is_multiple_of(args.mem_freq) {
        let (length, freq) = (args.model_max_length, args.mem_freq);
        let nearest = (length / freq).max(1) * freq;
        let reason = format!("{length} is not a multiple of --mem-freq {freq}, as --use-flash needs");
        return Err(Error::flag("--model-max-length", reason, format!("give {nearest}, for example")));
    }
    if args.unused.evaluation_strategy.is_some_and(|strategy| strategy != Strategy::No) {
        let help = "give --evaluation_strategy no; landmark eval measures a finished model";
        return Err(Error::flag("--evaluation-strategy", "there is no evaluation set", help));
    }
    Ok(())
}

fn lora(args: &FinetuneArgs) -> Result<Option<LoraSettings>> {
    let Some(rank) = args.lora_r.filter(|&rank| rank > 0) else { return Ok(None) };
    let names = args.lora_target_modules.iter().map(String::as_str);
    let targets =
        Targets::named(names).map_err(|error| Error::flag("--lora-target-modules", error.to_string(), ""))?;
    let whole = match &args.lora_modules_to_save {
        None => None,
        Some(names) if names.iter().all(|name| ["none", "None", ""].contains(&name.as_str())) => {
            Some(Whole::default())
        }
        Some(names) => {
            let whole = Whole::named(names.iter().map(String::as_str));
            Some(whole.map_err(|error| Error::flag("--lora-modules-to-save", error.to_string(), ""))?)
        }
    };
    let (alpha, dropout) = (args.lora_alpha.0, args.lora_dropout.0 as f32);
    if alpha <= 0.0 {
        return Err(Error::flag("--lora-alpha", format!("{alpha} makes no sense"), "give a number above 0"));
    }
    if !(0.0..1.0).contains(&dropout) {
        return Err(Error::flag(
            "--lora-dropout",
            format!("{dropout} makes no sense"),
            "give a number in [0, 1)",
        ));
    }
    let rank_stabilised = args.use_rslora;
    let lora = Lora { rank, alpha, dropout, rank_stabilised, targets, whole: Whole::default() };
    Ok(Some(LoraSettings { lora, whole }))
}

/// As Hugging Face's trainer has it: float32 unless told otherwise.
fn dtype(args: &FinetuneArgs) -> Result<Dtype> {
    match (args.bf16 == Some(true), args.fp16 == Some(true)) {
        (true, true) => Err(Error::flag("--bf16", "--fp16 is given too", "give one of the two")),
        (true, false) => Ok(Dtype::Bfloat16),
        (false, true) => Ok(Dtype::Float16),
        (false, false) => Ok(Dtype::Float32),
    }
}

fn remarks(args: &FinetuneArgs, device: Device) -> Vec<String> {
    let unused = &args.unused;
    let mut remarks = Vec::new();
    let mut say = |applies: bool, text: &str| {
        if applies {
            remarks.push(text.to_owned());
        }
    };
    say(
        device == Device::Cpu && (args.bf16 == Some(true) || args.fp16 == Some(true)),
        "--bf16, --fp16: the CPU computes in float32, and weights are saved in float32",
    );
    say(unused.tf32 == Some(true), "--tf32: means nothing on a CPU");
    say(
        unused.fsdp.as_deref().is_some_and(|words| !words.is_empty())
            || unused.fsdp_transformer_layer_cls_to_wrap.is_some(),
        "--fsdp: there is one device, nothing is sharded",
    );
    say(unused.per_device_eval_batch_size.is_some(), "--per_device_eval_batch_size: nothing is evaluated");
    say(
        unused.report_to.as_deref().is_some_and(|name| name != "none"),
        "--report_to: nothing is sent anywhere; losses are in metrics.jsonl",
    );
    if let Some(names) = &args.lora_modules_to_save
        && names.iter().all(|name| !WHOLE.contains(&name.as_str()))
    {
        say(true, "--lora-modules-to-save: the landmark's row of embedding and head stays as it is");
    }
    remarks
}

/// Fine-tunes.
///
/// # Errors
/// If the flags cannot be followed, or the run fails.
pub fn run(args: &FinetuneArgs, report: &Report) -> Result<()> {
    let settings = settings(args)?;
    for remark in &settings.remarks {
        report.log(remark);
    }
    let outcome = finetuning::run(settings.device.open(None)?, &settings, report)?;
    report.json(&outcome)?;
    report.print(format!(
        "loss {:.4} after {} steps ({:.2} epochs)\nwritten to {}",
        outcome.train_loss,
        outcome.steps,
        outcome.epochs,
        outcome.output_dir.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, parse};

    fn resolve(flags: &str) -> Result<FinetuneSettings> {
        let line =
            format!("landmark finetune --model_name_or_path m --train_file a b --output_dir o {flags}");
        let Command::Finetune(args) = parse(line.split_whitespace())?.command else { panic!() };
        settings(&args)
    }

    #[test]
    fn the_released_command_line_is_followed() {
        let settings = resolve(
            "--bf16 True --cache_dir hf-cache/ --num_train_epochs 1 --per_device_train_batch_size 2 \
             --per_device_eval_batch_size 2 --gradient_accumulation_steps 8 --evaluation_strategy no \
             --save_strategy steps --save_steps 2000 --save_total_limit 2 --learning_rate 2e-5 \
             --weight_decay 0.1 --warmup_ratio 0.03 --lr_scheduler_type cosine --logging_steps 1 \
             --fsdp full_shard_auto_wrap --fsdp_transformer_layer_cls_to_wrap LlamaDecoderLayer \
             --tf32 True --max_steps 15000",
        )
        .unwrap();
        assert_eq!(
            (settings.batch, settings.micro_batches, settings.max_steps, settings.keep),
            (2, 8, Some(15_000), Some(2))
        );
        assert_eq!((settings.length, settings.mem_freq, settings.placing), (512, 63, Placing::AsTokens));
        assert_eq!((settings.max_norm, settings.adam), (Some(1.0), [0.9, 0.999, 1e-8]));
        assert_eq!((settings.save, &settings.start, settings.seed), (Save::Every(2000), &Start::Newest, 42));
        let cosine =
            Schedule::WarmupCosine { max_rate: 2e-5, warmup_steps: 450, total_steps: 15_000, cycles: 0.4 };
        assert_eq!(settings.schedule(15_000), cosine);
        assert_eq!(settings.remarks.len(), 4, "{:?}", settings.remarks);
        assert!(settings.lora.is_none());
    }

    #[test]
    fn booleans_stand_alone_or_take_a_word_and_dashes_are_underscores() {
        let flash = "--model-max-length 504 --mem-freq 63";
        for on in ["--use_flash", "--use-flash True", "--use_flash=true"] {
            assert_eq!(resolve(&format!("{flash} {on}")).unwrap().placing, Placing::Inside);
        }
        assert_eq!(resolve("--use_flash False").unwrap().placing, Placing::AsTokens);
        assert!(resolve("--gradient_checkpointing").unwrap().recompute);
        assert!(!resolve("--gradient_checkpointing False").unwrap().recompute);
        assert_eq!(resolve("--resume_from_checkpoint a/b").unwrap().start, Start::At("a/b".into()));
        assert_eq!(resolve("--resume_from_checkpoint").unwrap().start, Start::Newest);
        assert_eq!(resolve("--overwrite_output_dir").unwrap().start, Start::Anew);
        assert_eq!(resolve("--max_grad_norm 0").unwrap().max_norm, None);
    }

    #[test]
    fn adapters_are_named_as_peft_names_them() {
        let settings = resolve("--lora_r 8 --lora_alpha 32 --lora_target_modules q_proj,v_proj --use_rslora");
        let LoraSettings { lora, whole } = settings.unwrap().lora.unwrap();
        assert_eq!((lora.rank, lora.alpha, lora.targets.names()), (8, 32.0, vec!["q_proj", "v_proj"]));
        assert!(lora.rank_stabilised && whole.is_none());
        let settings = resolve("--lora_r 8 --lora_modules_to_save lm_head --lora_target_modules all-linear");
        assert_eq!(settings.unwrap().lora.unwrap().whole.unwrap().names(), ["lm_head"]);
        let settings = resolve("--lora_r 8 --lora_modules_to_save none");
        assert_eq!(settings.unwrap().lora.unwrap().whole, Some(Whole::default()));
        assert!(resolve("--lora_r 0").unwrap().lora.is_none());
    }

    #[test]
    fn what_makes_no_sense_is_a_usage_error() {
        for (flags, said) in [
            ("--use_flash --model_max_length 512", "504"),
            ("--learning_rate -1", "--learning-rate"),
            ("--learning_rate nan", "learning-rate"),
            ("--warmup_ratio 1.5", "--warmup-ratio"),
            ("--adam_beta2 1", "--adam-beta2"),
            ("--num_train_epochs 0", "--num-train-epochs"),
            ("--mem_freq 0", "--mem-freq"),
            ("--model_max_length 99999999999", "--model-max-length"),
            ("--evaluation_strategy steps", "--evaluation-strategy"),
            ("--eval_strategy epoch", "--evaluation-strategy"),
            ("--lora_r 4 --lora_target_modules w_proj", "w_proj"),
            ("--lora_r 4 --lora_modules_to_save norm", "norm"),
            ("--lora_r 4 --lora_dropout 1", "--lora-dropout"),
            ("--per_device_train_batch_size 0", "per-device-train-batch-size"),
            ("--device cuda:4096", "cuda:4096"),
            ("--lr_scheduler_type polynomial", "polynomial"),
        ] {
            let error = resolve(flags).expect_err(flags);
            let text = format!("{error} {}", error.help().unwrap_or_default());
            assert!(text.contains(said), "{flags}: {text}");
            assert_eq!(error.exit_code(), 2, "{flags}");
        }
    }
}
