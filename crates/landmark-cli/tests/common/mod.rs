//! What the tests of the program share: running it, and the fixtures of the released program.

#![allow(dead_code)] // every test file uses a part

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use landmark_formats::safetensors::{TensorSource, write_safetensors};
use landmark_formats::tensor::DType;
use landmark_formats::torch::TorchFile;
use serde_json::Value;

/// A fixture of the workspace.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// A fixture in JSON.
pub(crate) fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name)).expect("a fixture")).expect("JSON")
}

/// Runs `landmark` with these arguments and nothing on standard input.
pub(crate) fn landmark(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_landmark"));
    command.args(arguments).stdin(Stdio::null()).output().expect("the program starts")
}

/// The JSON object that a successful run prints.
pub(crate) fn result(arguments: &[&str]) -> Value {
    let output = landmark(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// Standard error as text.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Asserts that a run ends with this exit code and an error of one line that says all of `said`.
pub(crate) fn refused(arguments: &[&str], code: i32, said: &[&str]) {
    let output = landmark(arguments);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    let errors: Vec<&str> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{arguments:?}: {text}");
    for &word in said {
        assert!(text.contains(word), "{arguments:?} does not say {word:?}: {text}");
    }
    assert!(!text.contains("panicked") && output.stdout.is_empty(), "{arguments:?}: {text}");
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A folder with copies of a fixture's checkpoint, settings and stream.
pub(crate) fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for file in ["ckpt.pt", "summary.json", "val.bin"] {
        let from = fixture(name).join(file);
        if from.exists() {
            std::fs::copy(from, folder.path().join(file)).expect("a copy");
        }
    }
    folder
}

/// Writes the weights of a fixture as `landmark train` does, `change`d by name.
pub(crate) fn as_ours(name: &str, path: &Path, mut change: impl FnMut(&str, &mut Vec<f32>)) {
    let file = TorchFile::open(&fixture(name).join("ckpt.pt")).expect("a checkpoint");
    let mut tensors = Vec::new();
    for (name, meta) in file.state_dict(&["model"]).expect("weights") {
        if name.ends_with(".attn.bias") || name.contains("wpe") || name == "lm_head.weight" {
            continue;
        }
        let mut values = file.tensor(&meta).expect("a tensor").to_f32();
        change(&name, &mut values);
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        tensors.push(TensorSource::new(name.clone(), DType::F32, meta.shape().to_vec(), bytes.clone()));
        tensors.push(TensorSource::new(
            format!("optimizer.m.{name}"),
            DType::F32,
            meta.shape().to_vec(),
            bytes,
        ));
    }
    let args = json(&format!("{name}/summary.json"))["args"].to_string();
    let metadata = BTreeMap::from([("args".to_owned(), args), ("iteration".to_owned(), "20".to_owned())]);
    write_safetensors(path, tensors, &metadata).expect("a checkpoint");
}

/// A folder with the weights of the fixture and a tokenizer for it: bytes.
pub(crate) fn model_with_tokenizer(folder: &Path) {
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("llama").join(name), folder.join(name)).unwrap();
    }
    let vocab: serde_json::Map<String, Value> =
        (0..96_u8).map(|i| (char::from(32 + i).to_string(), serde_json::json!(u32::from(i) + 3))).collect();
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [
            {"id": 2, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
             "normalized": false, "special": true}],
        "normalizer": null, "pre_tokenizer": {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": false},
        "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": vocab, "merges": []}
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}
