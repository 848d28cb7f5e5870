//! A converted model is the same model; an adapter merged is the model that it makes; names of the hub are found in its
//! cache; and what cannot be converted is refused before anything is written.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{fixture, refused, result, text};
use landmark_formats::huggingface::WeightFolder;
use landmark_formats::peft::{PeftConfig, write_adapter};
use landmark_formats::safetensors::{TensorSource, write_safetensors};
use landmark_formats::tensor::{DType, float_bytes};
use serde_json::{Value, json};

fn convert(from: &Path, to: &Path, flags: &[&str]) -> Value {
    result(&[&["convert", text(from), text(to), "--json", "--quiet"], flags].concat())
}

/// What a model says to a prompt: every step's best logits.
fn steps(model: &Path) -> Value {
    let prompt = (0..60).map(|i| (i * i * 31 % 97 + 3).to_string()).collect::<Vec<_>>().join(",");
    let flags = ["--prompt-tokens", &prompt, "--max-new-tokens", "8", "--json", "--quiet", "--logits"];
    result(&[&["generate", "--model", text(model)], &flags[..]].concat())["steps"].clone()
}

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
}

/// A copy of the fixture `llama` with a field and files that mean nothing here.
fn llama(folder: &Path) {
    for name in ["config.json", "model.safetensors"] {
        fs::copy(fixture("llama").join(name), folder.join(name)).unwrap();
    }
    let mut fields = config(folder);
    fields["flavour"] = json!("vanilla");
    fs::write(folder.join("config.json"), fields.to_string()).unwrap();
    fs::write(folder.join("generation_config.json"), "{\"top_p\": 0.9}").unwrap();
    fs::write(folder.join("notes.txt"), "not part of a model").unwrap();
}

#[test]
fn folders_change_their_files_and_not_their_model() {
    let scratch = tempfile::tempdir().unwrap();
    llama(scratch.path());
    let expected = steps(scratch.path());
    let to = scratch.path().join("deep/sharded");
    let written = convert(scratch.path(), &to, &["--max-shard-size", "100KB"]);
    assert_eq!((&written["layout"], &written["parameters"]), (&json!("huggingface"), &json!(126_400)));
    let weights = WeightFolder::open(&to).unwrap();
    assert!(weights.shard_count() > 3);
    let files: Vec<&str> = written["files"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(files.contains(&"generation_config.json") && !files.contains(&"notes.txt"), "{files:?}");
    assert_eq!(steps(&to), expected);
    let fields = config(&to);
    assert_eq!((&fields["flavour"], &fields["model_type"]), (&json!("vanilla"), &json!("llama")));
    assert_eq!((&fields["mem_id"], &fields["mem_freq"]), (&json!(200), &json!(7)));
    let info = result(&["info", text(&to), "--json"]);
    assert_eq!((&info["kind"], &info["parameters"]), (&json!("model"), &json!(126_400)));
    assert_eq!((&info["landmark"]["mem_freq"], &info["types"]), (&json!(7), &json!({"F32": 21})));
    assert_eq!(info["files"].as_array().unwrap().len(), weights.shard_count());
}

/// Half-precision PyTorch files hold numbers that float32 holds too, and they come back to the bit.
#[test]
fn types_change_and_come_back() {
    let scratch = tempfile::tempdir().unwrap();
    let [wide, narrow, same] = ["wide", "narrow", "same"].map(|name| scratch.path().join(name));
    let bin = fixture("llama_bin");
    let expected = steps(&bin);
    convert(&bin, &wide, &["--dtype", "f32"]);
    convert(&wide, &narrow, &["--dtype", "f16"]);
    convert(&bin, &same, &[]);
    for (folder, dtype) in [(&wide, DType::F32), (&narrow, DType::F16), (&same, DType::F16)] {
        assert_eq!(steps(folder), expected, "{dtype}");
        let weights = WeightFolder::open(folder).unwrap();
        assert!(weights.names().all(|name| weights.dtype(name).unwrap() == dtype));
    }
    assert_eq!(config(&narrow)["torch_dtype"], "float16");
}

/// The released evaluation gives the same losses before and after.
#[test]
fn released_checkpoints_become_ours() {
    let scratch = tempfile::tempdir().unwrap();
    let (file, folder) = (scratch.path().join("a/my.safetensors"), scratch.path().join("b"));
    let stream = fixture("gpt_landmark/val.bin");
    let losses = |checkpoint: &Path| {
        let flags =
            ["--data", text(&stream), "--eval_seq_length", "48", "--mid_length", "24", "--json", "--quiet"];
        result(&[&["eval", "--checkpoint", text(checkpoint)], &flags[..]].concat())["chunk_losses"].clone()
    };
    let released = fixture("gpt_landmark");
    let written = convert(&released, &file, &[]);
    assert_eq!((&written["layout"], &written["files"]), (&json!("landmark"), &json!(["my.safetensors"])));
    convert(&file, &folder, &["--to", "landmark"]);
    let expected = losses(&released);
    assert!(expected[0].as_f64().unwrap() > 1.0);
    assert_eq!((losses(&file), losses(&folder)), (expected.clone(), expected));
    let info = |path: &Path| result(&["info", text(path), "--json"]);
    let (before, after) = (info(&released), info(&folder));
    for key in ["iteration", "settings", "parameters", "model", "weights"] {
        assert_eq!(after[key], before[key], "{key}");
    }
    assert_eq!((&before["released"], &after["released"]), (&json!(true), &json!(false)));
}

fn tensor(name: &str, shape: &[usize], value: impl Fn(usize) -> f32) -> TensorSource<'static> {
    let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
    TensorSource::new(name, DType::F32, shape.to_vec(), float_bytes(&values, DType::F32).unwrap())
}

const Q: &str = "model.layers.0.self_attn.q_proj";

/// An adapter of rank 2 for one layer, and another output matrix.
fn adapter(folder: &Path, layer: &str, rows: usize) {
    let config = PeftConfig {
        base_model: Some("somebody/llama".to_owned()),
        rank: 2,
        alpha: 6.0,
        dropout: 0.0,
        rank_stabilised: false,
        targets: vec!["q_proj".to_owned()],
        whole: vec!["lm_head".to_owned()],
    };
    fs::create_dir(folder).unwrap();
    let tensors = vec![
        tensor(&format!("{layer}.lora_A.weight"), &[2, 64], |i| if i < 64 { 1.0 } else { i as f32 }),
        tensor(&format!("{layer}.lora_B.weight"), &[rows, 2], |i| if i == 2 { 0.5 } else { 0.0 }),
        tensor("lm_head.weight", &[201, 64], |i| i as f32 / 1000.0),
    ];
    write_adapter(folder, &config, tensors).unwrap();
}

/// Row 1 of the layer grows by 6 / 2 * 0.5 * (1, 1, ...), and nothing else changes but the output matrix.
#[test]
fn adapters_are_merged() {
    let scratch = tempfile::tempdir().unwrap();
    let (from, to) = (scratch.path().join("adapter"), scratch.path().join("merged"));
    adapter(&from, Q, 64);
    let written = convert(&fixture("llama"), &to, &["--merge-lora", text(&from)]);
    assert_eq!(written["merged"], 2);
    let (before, after) = (WeightFolder::open(&fixture("llama")).unwrap(), WeightFolder::open(&to).unwrap());
    assert_eq!(before.names().len(), after.names().len());
    for name in before.names() {
        let (old, new) = (before.get(name).unwrap().to_f32(), after.get(name).unwrap().to_f32());
        for (i, (old, new)) in old.into_iter().zip(new).enumerate() {
            let expected = match name {
                "lm_head.weight" => i as f32 / 1000.0,
                "model.layers.0.self_attn.q_proj.weight" if i / 64 == 1 => old + 1.5,
                _ => old,
            };
            assert_eq!(new, expected, "{name} {i}");
        }
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let to = scratch.path().join("to");
    let run = |from: &Path, flags: &[&str], code, said: &[&str]| {
        refused(&[&["convert", text(from), text(&to)], flags].concat(), code, said);
        assert!(!to.exists(), "{flags:?}");
    };
    let (gpt, llama) = (fixture("gpt_landmark"), fixture("llama"));
    run(&gpt, &["--to", "huggingface"], 2, &["--to", "GPT", "no form"]);
    run(&llama, &["--to", "landmark"], 2, &["--to", "LLaMA"]);
    run(&gpt, &["--max-shard-size", "1GB"], 2, &["--max-shard-size"]);
    run(&gpt, &["--merge-lora", "/nowhere"], 2, &["--merge-lora"]);
    run(&llama, &["--max-shard-size", "0"], 2, &["--max-shard-size"]);
    run(&llama, &["--merge-lora", "/nowhere"], 2, &["--merge-lora", "/nowhere"]);
    run(Path::new("/nowhere"), &[], 1, &["/nowhere"]);
    let (strange, wrong) = (scratch.path().join("strange"), scratch.path().join("wrong"));
    adapter(&strange, "model.layers.7.self_attn.q_proj", 64);
    run(&llama, &["--merge-lora", text(&strange)], 1, &["model.layers.7", "no place", "somebody/llama"]);
    adapter(&wrong, Q, 65);
    run(&llama, &["--merge-lora", text(&wrong)], 1, &["lora_B", "[65, 2]", "[64, 2]"]);
    // A number that float16 does not hold: said by the weight's name, and no half of a folder is left.
    let large = scratch.path().join("large");
    fs::create_dir(&large).unwrap();
    fs::copy(llama.join("config.json"), large.join("config.json")).unwrap();
    let weights = WeightFolder::open(&llama).unwrap();
    let tensors = weights.names().map(|name| {
        let factor = if name == "model.norm.weight" { 1e6 } else { 1.0 };
        let values = weights.get(name).unwrap().to_f32();
        tensor(name, &weights.shape(name).unwrap(), |i| values[i] * factor)
    });
    write_safetensors(&large.join("model.safetensors"), tensors, &BTreeMap::new()).unwrap();
    run(&large, &["--dtype", "f16"], 1, &["model.norm.weight", "too large for F16"]);
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 3, "nothing is left behind");
    // What is there stays.
    fs::create_dir(&to).unwrap();
    fs::write(to.join("mine"), "").unwrap();
    for from in [&gpt, &llama] {
        refused(&["convert", text(from), text(&to)], 1, &["to", "not an empty folder"]);
    }
    assert_eq!(fs::read_dir(&to).unwrap().count(), 1);
}

/// Names of the hub are found in its cache, without a network, and a name that is not there says how to get it.
#[test]
fn models_are_found_by_name_in_the_cache() {
    let home = tempfile::tempdir().unwrap();
    let repo = home.path().join("hub/models--some-body--tiny");
    let snapshot = repo.join("snapshots/00ff");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repo.join("refs")).unwrap();
    fs::write(repo.join("refs/main"), "00ff").unwrap();
    llama(&snapshot);
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_landmark"));
        let command = command.args(arguments).stdin(Stdio::null()).env("HF_HOME", home.path());
        // Should the cache not be enough after all, nothing answers there.
        let command = command.env("HF_ENDPOINT", "http://127.0.0.1:9").env_remove("HF_HUB_CACHE");
        let output = command.env_remove("HF_HUB_OFFLINE").output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned(), common::stderr(&output))
    };
    for name in ["hf://some-body/tiny", "some-body/tiny", "hf://some-body/tiny@00ff"] {
        let (code, out, error) = run(&["info", name, "--json"]);
        assert_eq!(code, Some(0), "{error}");
        let info: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(info["path"], text(&snapshot));
        let prompt = ["--prompt-tokens", "1,2,3", "--max-new-tokens", "1", "--json", "--quiet"];
        let (code, _, error) = run(&[&["generate", "--model", name], &prompt[..]].concat());
        assert_eq!(code, Some(0), "{error}");
    }
    for name in ["hf://some-body/other", "some-body/other", "hf://some-body/tiny@older"] {
        let (code, _, error) = run(&["info", name]);
        assert_eq!(code, Some(1), "{error}");
        assert!(
            error.contains("could not be fetched") && error.contains("hf download some-body/"),
            "{error}"
        );
    }
    let (_, _, error) = run(&["info", "hf://nobody"]);
    assert!(error.contains("hf://OWNER/NAME"), "{error}");
}
