//! A model made from nothing can be described, trained and asked.

mod common;

use common::{result, text};
use std::fs;

#[test]
fn a_fresh_model_is_one_that_can_be_trained_and_asked() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir(folder.path().join("text")).unwrap();
    let book = "The pass key is 12345. Remember it. 12345 is the pass key. The grass is green.\n".repeat(60);
    fs::write(folder.path().join("text/a.txt"), &book).unwrap();
    let made = result(&[
        "init",
        &at("fresh"),
        "--vocabulary-from",
        &at("text"),
        "--vocab-size",
        "300",
        "--single-digits",
        "--hidden-size",
        "32",
        "--num-hidden-layers",
        "2",
        "--num-attention-heads",
        "4",
        "--num-key-value-heads",
        "2",
        "--max-position-embeddings",
        "64",
        "--json",
    ]);
    assert_eq!(made["model"]["kv_heads"], 2);
    assert_eq!(made["model"]["hidden"], 96, "8/3 of the width, in steps of 32");
    let info = result(&["info", &at("fresh"), "--json"]);
    assert_eq!(info["parameters"], made["parameters"]);
    // The same flags give the same weights.
    let again = ["init", &at("again"), "--tokenizer", &format!("{}/tokenizer.json", at("fresh")), "--json"];
    let shape = ["--hidden-size", "32", "--num-hidden-layers", "2", "--num-key-value-heads", "2"];
    result(&[&again[..], &shape, &["--max-position-embeddings", "64"]].concat());
    let weights = |name: &str| fs::read(folder.path().join(name).join("model.safetensors")).unwrap();
    assert!(weights("fresh") == weights("again"));
    let trained = result(&[
        "finetune",
        "--model_name_or_path",
        &at("fresh"),
        "--train_file",
        &at("text/a.txt"),
        "--output_dir",
        &at("trained"),
        "--model_max_length",
        "30",
        "--mem_freq",
        "7",
        "--max_steps",
        "2",
        "--per_device_train_batch_size",
        "2",
        "--gradient_accumulation_steps",
        "1",
        "--device",
        "cpu",
        "--json",
    ]);
    assert!(trained["train_loss"].as_f64().unwrap() > 1.0);
    let answer = result(&[
        "generate",
        "--model",
        &at("trained"),
        "--prompt",
        "The pass key is",
        "--max-new-tokens",
        "3",
        "--device",
        "cpu",
        "--json",
    ]);
    assert!(text(std::path::Path::new(&at("trained"))).contains("trained"));
    assert!(!answer.to_string().is_empty());
}
