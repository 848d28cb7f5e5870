//! The name of an experiment, and the folder of its results.
//!
//! The released program derives the name from the settings: model, learning rate, landmark frequency, batch
//! and window in front; then every other setting that is not the default, ten to a folder; the seed at the
//! end. The same settings give the same name here, so that a run started again finds itself finished.

use std::path::PathBuf;

use serde_json::Value;

use super::RunArgs;
use crate::device::DeviceName;
use crate::python;

/// Settings with a place of their own in the name, or none.
const NOT_LISTED: [&str; 13] = [
    "model",
    "lr",
    "batch_size",
    "acc_steps",
    "seed",
    "exp_name",
    "wandb",
    "wandb_project",
    "run_prefix",
    "distributed_backend",
    "config_format",
    "sequence_length",
    "mem_freq",
];

/// Overridden settings in one component of the path.
const PER_FOLDER: usize = 10;

/// The experiment's name: `exp_name` if there is one, otherwise made from the settings. It may hold slashes.
pub fn name(run: &RunArgs) -> String {
    if let Some(name) = &run.exp_name {
        return name.clone();
    }
    let settings = run.to_map();
    let text = |key: &str| settings.get(key).map_or_else(String::new, python::str);
    let overridden: Vec<String> =
        overridden(run).into_iter().map(|key| format!("{key}={}", text(&key))).collect();
    let overridden: Vec<String> = overridden.chunks(PER_FOLDER).map(|some| some.join("_")).collect();
    let prefix = run.run_prefix.as_ref().map_or_else(String::new, |prefix| format!("{prefix}_"));
    format!(
        "{prefix}{}_lr{}_memfreq{}_bs{}x{}_seqlen{}/{}_seed={}",
        text("model"),
        text("lr"),
        text("mem_freq"),
        text("batch_size"),
        text("acc_steps"),
        text("sequence_length"),
        overridden.join("/"),
        text("seed"),
    )
}

/// The settings that are not the defaults and not named otherwise, in the order of the released program.
fn overridden(run: &RunArgs) -> Vec<String> {
    // The released default device is cuda:0; taking the best device there is, the default here, is no
    // override either.
    let device = if run.device == DeviceName::Cuda(0) { run.device.clone() } else { DeviceName::Auto };
    let defaults = RunArgs { device, ..RunArgs::default() }.to_map();
    let differs = |key: &str, value: &Value| defaults.get(key) != Some(value) && !NOT_LISTED.contains(&key);
    run.to_map().into_iter().filter(|(key, value)| differs(key, value)).map(|(key, _)| key).collect()
}

/// Where the results of the run go: `{results_base_folder}/{dataset}/{model}/{name}`.
pub fn folder(run: &RunArgs) -> PathBuf {
    let settings = run.to_map();
    let text = |key: &str| settings.get(key).map_or_else(String::new, python::str);
    // Joined as text: a name that begins with a slash shall not lead out of the results.
    PathBuf::from(format!(
        "{}/{}/{}/{}",
        text("results_base_folder"),
        text("dataset"),
        text("model"),
        name(run)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, parse};
    use crate::settings::Settings;

    fn run(flags: &str) -> RunArgs {
        let line = format!("landmark train {flags}");
        let Command::Train(train) = parse(line.split_whitespace()).unwrap().command else { panic!() };
        RunArgs::resolve(&Settings::new(), &train.given)
    }

    /// The names of the released program for these command lines.
    #[test]
    fn names_are_the_released_ones() {
        let readme = "--config_format rotary --model landmark --n_embd 1024 --n_head 8 --n_layer 12 --batch_size 16 \
            --sequence_length 512 --acc_steps 8 --wandb_project memory-llm --dataset pg19 --iterations 240000 \
            --dropout 0.0 --positional_encoder rotary --softmax_func mem_opt --mem_freq 50 --wandb \
            --save_checkpoint_freq 20000";
        assert_eq!(
            folder(&run(&readme.replace('\\', ""))).to_str(),
            Some(
                "./exps/pg19/landmark/landmark_lr0.002_memfreq50_bs16x8_seqlen512/\
                 iterations=240000_save_checkpoint_freq=20000_dataset=pg19_seed=2"
            )
        );
        let many = "--model landmark_with_cmt --lr 2e-5 --mem_freq None --seed 3 --run_prefix x --device cpu --bias \
            --weight_decay 0.00001 --dataset arxivmath --enable_rem_score --under_rem_score_prob 0.5 --n_embd 64 \
            --n_head 2 --n_layer 1 --lm_cache kv_train --mem_cache_size 64 --allow_cache_during_training \
            --total_sequence_length 2048 --dtype torch.float16";
        assert_eq!(
            name(&run(&many.replace('\\', ""))),
            "x_landmark_with_cmt_lr2e-05_memfreqNone_bs50x4_seqlen512/\
             device=cpu_weight_decay=1e-05_dataset=arxivmath_n_head=2_n_layer=1_n_embd=64_dtype=torch.float16_bias=True_\
             lm_cache=kv_train_mem_cache_size=64/\
             allow_cache_during_training=True_under_rem_score_prob=0.5_enable_rem_score=True_total_sequence_length=2048\
             _seed=3"
        );
        assert_eq!(
            name(&run("--sequence_length 64")),
            "base_rotary_lr0.002_memfreq50_bs50x4_seqlen64/_seed=2"
        );
        assert_eq!(name(&run("")), "base_rotary_lr0.002_memfreq50_bs50x4_seqlen512/_seed=2");
    }

    #[test]
    fn a_given_name_is_taken_as_it_is() {
        assert_eq!(name(&run("--exp_name /a/b --seed 9")), "/a/b");
        assert_eq!(
            folder(&run("--exp_name /a/b --dataset pg19")).to_str(),
            Some("./exps/pg19/base_rotary//a/b")
        );
    }

    #[test]
    fn the_default_device_is_no_override() {
        for device in ["auto", "cuda", "cuda:0"] {
            assert!(name(&run(&format!("--device {device}"))).ends_with("/_seed=2"));
        }
        assert!(name(&run("--device cuda:1")).ends_with("/device=cuda:1_seed=2"));
    }

    /// What changes a run changes its name, flags that the released program does not have included.
    #[test]
    fn new_flags_are_named_too() {
        assert!(
            name(&run("--grad_clip 1 --accumulation mean"))
                .ends_with("/grad_clip=1.0_accumulation=mean_seed=2")
        );
    }
}
