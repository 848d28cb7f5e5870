//! From flags to settings: defaults, then what a checkpoint was trained with, then what the command line
//! says.
//!
//! All three are JSON objects with the flags' names as keys, so that one merge serves every setting, and a
//! stored value is checked by the same types as a given one.

pub mod check;
pub mod experiment;
pub mod model;
pub mod summary;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

pub use crate::args::released::{Given, RunArgs};

/// Settings by the names of their flags, in the order of the released program.
pub type Settings = Map<String, Value>;

impl RunArgs {
    /// All settings by name.
    pub fn to_map(&self) -> Settings {
        object(self)
    }

    /// The defaults, overridden by `stored` (from [`summary::settings_of`], whose values are known to fit),
    /// overridden by `given`.
    pub fn resolve(stored: &Settings, given: &Given) -> RunArgs {
        let mut settings = RunArgs::default().to_map();
        let layers = [stored, &object(given)];
        for (key, value) in layers.into_iter().flatten() {
            settings.insert(key.clone(), value.clone());
        }
        // Both layers have passed the types of their fields, so this is total; the fallback keeps it from
        // panicking.
        from_object(settings).unwrap_or_default()
    }
}

impl Given {
    /// Whether the flag of this name (with underscores) is on the command line.
    pub fn has(&self, name: &str) -> bool {
        object(self).contains_key(name)
    }

    /// The flags on the command line, with underscores.
    pub fn names(&self) -> Vec<String> {
        object(self).into_iter().map(|(name, _)| name).collect()
    }
}

/// The fields of a struct.
fn object(value: &impl Serialize) -> Settings {
    match serde_json::to_value(value) {
        Ok(Value::Object(fields)) => fields,
        _ => Settings::new(),
    }
}

fn from_object<T: DeserializeOwned>(fields: Settings) -> serde_json::Result<T> {
    serde_json::from_value(Value::Object(fields))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::values::{Finite, LmCache, Maybe, Model};

    /// A flag's type on the command line and as a setting must write the same JSON. Every flag is given here,
    /// each with a value other than its default; a missing or misspelt one shows as an unchanged or
    /// unreadable setting.
    #[test]
    fn every_flag_arrives() {
        let line = "landmark train --config_format rotary --batch_size 3 --acc_steps 5 --seed 7 --device cpu \
            --iterations 9 --lr 0.5 --warmup_percent 0.25 --weight_decay 0.125 --beta1 0.5 --beta2 0.5 \
            --scheduler linear --opt sgd --eval_freq 11 --results_base_folder here --save_checkpoint_freq 13 \
            --dataset pg19 --vocab_size 128 --mem_freq None --model landmark --dropout 0.5 --group_dropout 0.5 \
            --n_head 2 --n_layer 1 --n_embd 64 --sequence_length 17 --dtype torch.float16 --bias --no_compile \
            --run_prefix a --exp_name b --softmax_func nomem --positional_encoder rotary_mem_jump --wandb \
            --wandb_project p --distributed_backend nccl --max_groups_for_softmax 64 --use_cache --lm_cache kv \
            --mem_cache_size 10 --mem_cache_freq 7 --cache_topk 2 --cache_selection_method max_over_heads \
            --eval_seq_length 99 --eval_sample_size 1000 --mid_length 33 --allow_cache_during_training \
            --postpone_lm_cache --optimization_process transformer_xl --under_rem_score_prob None --rem_cutoff 0.5 \
            --enable_rem_score --pos_jump_on_mem 3 --total_sequence_length 77 --landmark_id 100 --cycles 0.4 \
            --grad_clip 1 --accumulation mean --eval_batches 2";
        let crate::args::Command::Train(train) = crate::args::parse(line.split_whitespace()).unwrap().command
        else {
            panic!()
        };
        let (defaults, given) = (RunArgs::default().to_map(), object(&train.given));
        let resolved = RunArgs::resolve(&Settings::new(), &train.given).to_map();
        for (key, default) in &defaults {
            assert!(given.contains_key(key), "{key} is not on the line");
            assert_ne!(resolved[key], *default, "{key} did not arrive");
            assert_eq!(resolved[key], given[key], "{key}");
        }
        assert_eq!(defaults.len(), resolved.len());
    }

    #[test]
    fn given_beats_stored_beats_default() {
        let stored = serde_json::json!({"mem_freq": 7, "n_embd": 64, "use_cache": true, "cache_topk": 3});
        let given = Given {
            mem_freq: Some(Maybe(None)),
            cache_topk: Some(1),
            lr: Some(Finite(0.002)),
            ..Given::default()
        };
        let run = RunArgs::resolve(stored.as_object().unwrap(), &given);
        assert_eq!((run.mem_freq, run.n_embd, run.cache_topk, run.n_layer), (None, 64, 1, 12));
        assert!(run.use_cache && run.model == Model::BaseRotary && run.lm_cache == LmCache::None);
        assert!(given.has("lr") && !given.has("n_embd"));
    }

    #[test]
    fn settings_survive_json() {
        let run = RunArgs { rem_cutoff: Some(0.125), ..RunArgs::default() };
        let text = serde_json::to_string(&run).unwrap();
        assert_eq!(serde_json::from_str::<RunArgs>(&text).unwrap(), run);
    }
}
