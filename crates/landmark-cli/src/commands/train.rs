//! `landmark train`: flags to settings.

use std::path::PathBuf;

use landmark_model::schedule::{Anneal, Schedule};

use crate::args::train::TrainArgs;
use crate::args::values::{Dtype, Scheduler};
use crate::device::Device;
use crate::error::Result;

use crate::report::Report;
use crate::settings::{RunArgs, Settings, check, experiment, summary};
use crate::training;

/// Where a run begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// At step 0.
    Fresh,
    /// At the newest checkpoint in the experiment's folder, or at step 0 if there is none.
    Newest,
    /// At this checkpoint.
    At(PathBuf),
}

/// A training run, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainSettings {
    /// All settings; `exp_name` and `dataset` are filled in.
    pub run: RunArgs,
    /// Folder for checkpoints, metrics and summary.json.
    pub folder: PathBuf,
    /// Folder with train.bin and validation.bin.
    pub data: PathBuf,
    /// The learning rate.
    pub schedule: Schedule,
    /// Where to compute.
    pub device: Device,
    /// Where to begin.
    pub start: Start,
    /// How many of the regular checkpoints to keep.
    pub keep_last: Option<usize>,
    /// What the user should know before the run begins.
    pub remarks: Vec<String>,
}

/// Resolves the flags. Reads nothing.
///
/// # Errors
/// Names the flag that cannot be followed.
pub fn settings(args: &TrainArgs) -> Result<TrainSettings> {
    let mut run = RunArgs::resolve(&Settings::new(), &args.given);
    check::training(&run)?;
    let device = run.device.select_for_training()?;
    let data = data_folder_of(&mut run, args)?;
    let schedule = schedule(&run);
    schedule.validate()?;
    let folder = experiment::folder(&run);
    run.exp_name = Some(experiment::name(&run));
    let start = match &args.resume {
        None => Start::Fresh,
        Some(None) => Start::Newest,
        Some(Some(path)) => Start::At(path.clone()),
    };
    let remarks = remarks(&run, &folder, device);
    let keep_last = args.keep_last.map(std::num::NonZeroUsize::get);
    Ok(TrainSettings { run, folder, data, schedule, device, start, keep_last, remarks })
}

fn data_folder_of(run: &mut RunArgs, args: &TrainArgs) -> Result<PathBuf> {
    super::data_folder(&mut run.dataset, args.data_dir.as_ref())
}

/// The learning rate that the flags describe.
fn schedule(run: &RunArgs) -> Schedule {
    match run.scheduler {
        Scheduler::Cos => Schedule::released(run.lr, run.iterations, run.warmup_percent, Anneal::Cos),
        Scheduler::Linear => Schedule::released(run.lr, run.iterations, run.warmup_percent, Anneal::Linear),
        Scheduler::None => Schedule::Constant { rate: run.lr },
        Scheduler::WarmupCos => Schedule::WarmupCosine {
            max_rate: run.lr,
            warmup_steps: (run.warmup_percent * run.iterations as f64).ceil() as u64,
            total_steps: run.iterations,
            cycles: run.cycles,
        },
    }
}

fn remarks(run: &RunArgs, folder: &std::path::Path, device: Device) -> Vec<String> {
    let mut remarks = Vec::new();
    if run.wandb {
        remarks.push(format!(
            "--wandb: nothing is sent while training; afterwards `wandb sync --sync-tensorboard --project {} \"{}\"` \
             imports the event file",
            run.wandb_project,
            folder.display()
        ));
    }
    if run.dtype == Dtype::Float16 && device == Device::Cpu {
        remarks.push("--dtype: the CPU computes in float32".to_owned());
    }
    remarks
}

/// Whether the experiment is finished: then its summary.json exists.
pub fn is_finished(settings: &TrainSettings) -> bool {
    settings.folder.join(summary::FILE_NAME).is_file()
}

/// Trains.
///
/// # Errors
/// If the flags cannot be followed, or the run fails.
pub fn run(args: &TrainArgs, report: &Report) -> Result<()> {
    let settings = settings(args)?;
    for remark in &settings.remarks {
        report.log(remark);
    }
    if is_finished(&settings) {
        report.log(format!("already found experiment {}; skipping it", settings.folder.display()));
        return Ok(());
    }
    let outcome = training::run(settings.device.open(None)?, &settings, report)?;
    report.json(&outcome)?;
    report.print(format!(
        "validation loss {:.4} (perplexity {:.2}) after {} steps\ncheckpoint {}\nloss curve {}",
        outcome.val_loss,
        outcome.val_perplexity,
        outcome.iterations,
        outcome.checkpoint.display(),
        outcome.curve.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, parse};

    fn resolve(flags: &str) -> Result<TrainSettings> {
        let line = format!("landmark train {flags}");
        let Command::Train(train) = parse(line.split_whitespace()).unwrap().command else { panic!() };
        settings(&train)
    }

    #[test]
    fn the_released_command_line_runs() {
        let settings = resolve(
            "--config_format rotary --model landmark --n_embd 1024 --n_head 8 --n_layer 12 --batch_size 16 \
             --sequence_length 512 --acc_steps 8 --wandb_project memory-llm --dataset pg19 --iterations 240000 \
             --dropout 0.0 --positional_encoder rotary --softmax_func mem_opt --mem_freq 50 --wandb \
             --save_checkpoint_freq 20000",
        )
        .unwrap();
        assert_eq!(settings.data, PathBuf::from("./data/pg19"));
        assert_eq!(settings.schedule, Schedule::released(2e-3, 240_000, 0.02, Anneal::Cos));
        assert_eq!((settings.start, settings.keep_last), (Start::Fresh, None));
        assert_eq!(settings.run.save_checkpoint_freq, Some(20_000));
        assert!(settings.remarks[0].contains("--project memory-llm"), "{:?}", settings.remarks);
        assert!(settings.folder.starts_with("./exps/pg19/landmark"));
    }

    #[test]
    fn the_llama_schedule_can_be_had() {
        let flags = "--dataset pg19 --scheduler warmup_cos --cycles 0.4 --lr 2e-5 --warmup_percent 0.03";
        let expected =
            Schedule::WarmupCosine { max_rate: 2e-5, warmup_steps: 450, total_steps: 15_000, cycles: 0.4 };
        assert_eq!(resolve(flags).unwrap().schedule, expected);
        assert!(resolve(&format!("{flags} --cycles 0")).is_err());
    }

    #[test]
    fn resuming_takes_the_newest_or_a_given_checkpoint() {
        assert_eq!(resolve("--dataset pg19 --resume").unwrap().start, Start::Newest);
        assert_eq!(resolve("--dataset pg19 --resume a/b").unwrap().start, Start::At("a/b".into()));
        assert_eq!(resolve("--resume --dataset pg19 --keep_last 3").unwrap().keep_last, Some(3));
    }

    #[test]
    fn a_missing_data_set_or_device_is_a_usage_error() {
        for flags in ["", "--dataset wiki", "--dataset pg19 --device cuda:0", "--dataset pg19 --n_head 3"] {
            assert_eq!(resolve(flags).expect_err(flags).exit_code(), 2, "{flags}");
        }
    }
}
