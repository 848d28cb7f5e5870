//! The settings of a finished run, from its `summary.json`.
//!
//! The file is `{"train_loss": [...], ..., "args": {...}}`, written by the released program or by this one.
//! Only settings that a flag can set are taken; the rest of `args` (say, `world_size`) describes the run. As
//! released, `device` and `dtype` are left out: they belong to the machine that trained. So does
//! `distributed_backend`, which the released program has to be told to forget.

use std::path::Path;

use landmark_model::released::{self, LARGEST_SUMMARY};

use super::{RunArgs, Settings, from_object};
use crate::error::{Error, Result};

/// Name of the file in an experiment's folder. It exists once the run is finished.
pub const FILE_NAME: &str = "summary.json";

/// Settings of the machine that trained.
const OF_THE_MACHINE: [&str; 3] = ["device", "dtype", "distributed_backend"];

/// Reads the settings stored in the summary at `path`.
///
/// # Errors
/// If the file cannot be read, is no JSON object with `args`, or holds a value that its flag would refuse.
pub fn read(path: &Path) -> Result<Settings> {
    let size = std::fs::metadata(path).map_err(|error| Error::io(path, error))?.len();
    let refuse = |reason: String| Error::Input {
        path: path.to_owned(),
        reason,
        help: "a summary.json is a JSON object with the settings of the run under \"args\"".to_owned(),
    };
    if size > LARGEST_SUMMARY as u64 {
        return Err(refuse(format!("is {size} bytes long, too long for a summary")));
    }
    let bytes = std::fs::read(path).map_err(|error| Error::io(path, error))?;
    let args = released::parse_summary(&bytes).map_err(|error| refuse(error.to_string()))?;
    settings_of(&args, path)
}

/// The settings among `args`, each checked by the type of its flag. `path` is named in errors.
///
/// # Errors
/// Names the first value that its flag would refuse.
pub fn settings_of(args: &Settings, path: &Path) -> Result<Settings> {
    let defaults = RunArgs::default().to_map();
    let mut settings = Settings::new();
    for (key, value) in args {
        if !defaults.contains_key(key) || OF_THE_MACHINE.contains(&key.as_str()) {
            continue;
        }
        let mut alone = defaults.clone();
        alone.insert(key.clone(), value.clone());
        if let Err(error) = from_object::<RunArgs>(alone) {
            let reason = error.to_string();
            return Err(Error::Stored { path: path.to_owned(), key: key.clone(), reason });
        }
        settings.insert(key.clone(), value.clone());
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::values::Model;
    use crate::settings::Given;
    use serde_json::Value;
    use serde_json::json;

    fn settings(args: Value) -> Result<Settings> {
        settings_of(args.as_object().unwrap(), Path::new("run/summary.json"))
    }

    /// Arguments as the released program stores them: nulls, integers for floats, keys that are no flags.
    #[test]
    fn released_summaries_are_read() {
        let stored = settings(json!({
            "vocab_size": 128, "sequence_length": 64, "n_embd": 64, "n_head": 4, "n_layer": 2, "dropout": 0,
            "bias": false, "lm_cache": "none", "softmax_func": "mem_opt", "group_dropout": null, "mem_freq": null,
            "landmark_id": 100, "model": "base", "rem_cutoff": null, "under_rem_score_prob": 0.0, "cache_topk": 2,
            "config_format": "rotary", "dataset": "pg19", "lr": 0.002, "device": null, "dtype": null, "distributed_backend": "nccl",
            "world_size": 1, "exp_name": "a/b"
        }))
        .unwrap();
        let run = RunArgs::resolve(&stored, &Given::default());
        assert_eq!((run.model, run.landmark_id, run.mem_freq, run.dropout), (Model::Base, 100, None, 0.0));
        assert_eq!(run.exp_name.as_deref(), Some("a/b"));
        assert!(["world_size", "device", "distributed_backend"].iter().all(|key| !stored.contains_key(*key)));
    }

    #[test]
    fn nonsense_is_named() {
        for (args, key) in [
            (json!({"n_layer": 2, "n_head": -4}), "n_head"),
            (json!({"n_head": "four"}), "n_head"),
            (json!({"lm_cache": "disk"}), "lm_cache"),
            (json!({"bias": null}), "bias"),
            (json!({"mem_freq": 50.5}), "mem_freq"),
        ] {
            let error = settings(args).unwrap_err().to_string();
            assert!(error.starts_with(&format!("run/summary.json: {key}: ")), "{error}");
        }
    }

    #[test]
    fn files_that_are_no_summaries_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        assert!(matches!(read(&path).unwrap_err(), Error::Io { .. }));
        for (text, reason) in
            [("{\"args\": {", "is not JSON"), ("[]", "has no object"), ("{\"args\": 3}", "has no object")]
        {
            std::fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        std::fs::write(&path, "{\"args\": {\"n_embd\": 64}}").unwrap();
        assert_eq!(read(&path).unwrap()["n_embd"], 64);
    }
}
