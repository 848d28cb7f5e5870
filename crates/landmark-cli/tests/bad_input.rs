//! What cannot be done is said in one line that names the file or flag, before or instead of a wrong result.

mod common;

use std::fs;
use std::path::Path;

use common::{as_ours, copy, fixture, landmark, refused, text};

/// Runs an evaluation of the checkpoint and stream in `folder`.
fn eval<'a>(folder: &'a Path, data: &'a str, flags: &[&'a str]) -> Vec<&'a str> {
    let line = ["eval", "--checkpoint", text(folder), "--data", data, "--eval_seq_length", "48"];
    [&line[..], &["--mid_length", "24"], flags].concat()
}

#[test]
fn missing_files_are_named() {
    let folder = copy("gpt_landmark");
    let data = text(&folder.path().join("val.bin")).to_owned();
    refused(&eval(&folder.path().join("none"), &data, &[]), 1, &["none"]);
    refused(&eval(folder.path(), "/nowhere/val.bin", &[]), 1, &["/nowhere/val.bin"]);
    refused(&["eval", "--checkpoint", text(folder.path()), "--data-dir", "/nowhere"], 1, &["/nowhere"]);
    fs::remove_file(folder.path().join("summary.json")).unwrap();
    refused(&eval(folder.path(), &data, &[]), 1, &["ckpt.pt", "summary.json"]);
    fs::remove_file(folder.path().join("ckpt.pt")).unwrap();
    refused(&eval(folder.path(), &data, &[]), 1, &["holds no checkpoint"]);
}

#[test]
fn damaged_checkpoints_are_refused() {
    let folder = copy("gpt_landmark");
    let data = text(&folder.path().join("val.bin")).to_owned();
    let (path, whole) = (folder.path().join("ckpt.pt"), fs::read(fixture("gpt_landmark/ckpt.pt")).unwrap());
    for length in [0, 1, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        refused(&eval(folder.path(), &data, &[]), 1, &["ckpt.pt"]);
    }
    let ours = folder.path().join("ckpt.safetensors");
    as_ours("gpt_landmark", &ours, |_, _| ());
    let whole = fs::read(&ours).unwrap();
    for length in [0, 7, 100, whole.len() - 1] {
        fs::write(&ours, &whole[..length]).unwrap();
        refused(&eval(folder.path(), &data, &[]), 1, &["ckpt.safetensors"]);
    }
    as_ours("gpt_landmark", &ours, |name, values| {
        if name.ends_with("ln_f.weight") {
            values[3] = f32::NAN;
        }
    });
    refused(&eval(folder.path(), &data, &[]), 1, &["ckpt.safetensors", "the loss is NaN"]);
}

/// Settings of another model: the weight that does not fit is named, with its shapes.
#[test]
fn mixed_up_summaries_are_refused() {
    let folder = copy("gpt_landmark");
    let data = text(&folder.path().join("val.bin")).to_owned();
    let original = fs::read_to_string(folder.path().join("summary.json")).unwrap();
    for (from, to, said) in [
        ("\"n_embd\": 64", "\"n_embd\": 32", &["transformer.wte.weight", "[128, 64]", "[128, 32]"][..]),
        ("\"n_layer\": 2", "\"n_layer\": 3", &["transformer.h.2", "missing"]),
        ("\"n_layer\": 2", "\"n_layer\": 1", &["transformer.h.1", "no place"]),
        ("\"bias\": false", "\"bias\": true", &["bias", "missing"]),
        ("\"n_head\": 4", "\"n_head\": 5", &["--n-embd"]),
        ("\"n_head\": 4", "\"n_head\": -4", &["summary.json", "n_head"]),
        ("\"n_embd\": 64", "\"n_embd\": 1152921504606846976", &["--n-embd"]),
        ("\"model\": \"landmark\"", "\"model\": \"gpt\"", &["summary.json", "model"]),
        ("\"softmax_func\": \"mem_opt\"", "\"softmax_func\": \"ignore_mem\"", &["ignore_mem"]),
        ("\"args\"", "\"arg\"", &["summary.json", "args"]),
        ("\"args\": {", "\"args\": {{", &["summary.json", "not JSON"]),
    ] {
        assert!(original.contains(from), "{from}");
        fs::write(folder.path().join("summary.json"), original.replace(from, to)).unwrap();
        let output = landmark(&eval(folder.path(), &data, &[]));
        let code = output.status.code().unwrap_or(-1);
        assert!(code == 1 || code == 2, "{to}");
        refused(&eval(folder.path(), &data, &[]), code, said);
    }
}

#[test]
fn streams_that_are_none_are_refused() {
    let folder = copy("gpt_landmark");
    let data = folder.path().join("val.bin");
    let run = |bytes: &[u8], said: &[&str]| {
        fs::write(&data, bytes).unwrap();
        refused(&eval(folder.path(), text(&data), &[]), 1, said);
    };
    run(&[1; 2401], &["val.bin", "2401 bytes"]);
    run(&[], &["val.bin", "is empty"]);
    run(&[1, 0, 2, 0], &["2 tokens", "needs"]);
    let mut foreign = [1, 0].repeat(400);
    foreign[301] = 1; // token 257
    run(&foreign, &["val.bin", "token 257", "vocabulary has 128"]);
    refused(&eval(folder.path(), text(folder.path()), &[]), 1, &["not a regular file"]);
}

#[test]
fn impossible_flags_are_usage_errors() {
    let data = fixture("gpt_landmark/val.bin");
    let mem = ["--lm_cache", "mem", "--mem_cache_freq", "7", "--mem_cache_size"];
    for (model, flags, said) in [
        ("gpt_landmark", [&mem[..], &["0"]].concat(), "--mem-cache-size"),
        ("gpt_landmark", [&mem[..], &["6", "--mem_freq", "7"]].concat(), "--mem-freq"),
        ("gpt_base", [&mem[..], &["6"]].concat(), "--lm-cache"),
        ("gpt_base", vec!["--batch_size", "0"], "--batch-size"),
        ("gpt_base", vec!["--device", "cuda"], "--device"),
        ("gpt_base", vec!["--softmax_func", "ignore_mem"], "--softmax-func"),
        ("gpt_base", vec!["--table", "3"], "--table"),
    ] {
        refused(&eval(&fixture(model), text(&data), &flags), 2, &[said]);
    }
    // Possible, but not on any machine.
    for (size, said) in [("1099511627776", "bytes"), ("1073741000", "lower --batch-size")] {
        let huge = ["--lm_cache", "kv", "--mem_cache_size", size];
        refused(&eval(&fixture("gpt_base"), text(&data), &huge), 1, &[said]);
    }
}

#[test]
fn impossible_generations_are_refused() {
    let checkpoint = fixture("gpt_landmark");
    let run = |flags: &[&str], code, said: &[&str]| {
        refused(&[&["generate", "--checkpoint", text(&checkpoint)], flags].concat(), code, said);
    };
    run(&["--prompt-tokens", "1,128"], 1, &["token 128", "vocabulary of 128"]);
    run(&["--prompt-tokens", "1,100"], 1, &["landmark"]);
    run(&[], 1, &["prompt is empty"]);
    run(&["--prompt-tokens", "1", "--top-p", "2"], 2, &["--top-p"]);
    run(&["--prompt-file", "/nowhere"], 1, &["/nowhere"]);
    run(&["--prompt", "a", "--tokenizer", "/nowhere"], 1, &["/nowhere"]);
    run(&["--prompt-tokens", "1", "--max-new-tokens", "18446744073709551615"], 1, &["the cache", "bytes"]);
}

/// Before prompts of that length are written.
#[test]
fn texts_longer_than_memory_are_refused() {
    let said = ["out of memory", "iB are needed", "--memory-file"];
    refused(&["passkey", "--device", "cpu", "--lengths", "400000000", "--num-tests", "1"], 1, &said);
}

#[test]
fn impossible_preparations_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in"), folder.path().join("out"));
    fs::create_dir(&input).unwrap();
    let run = |flags: &[&str], code, said: &[&str]| {
        let line = ["prepare", "--input", text(&input), "--output", text(&output), "--dataset"];
        refused(&[&line[..], flags].concat(), code, said);
    };
    run(&["pg19"], 1, &[text(&input)]);
    run(&["text"], 1, &[text(&input)]);
    run(&["text", "--validation-fraction", "0.9"], 2, &["--validation-fraction"]);
    run(&["text", "--tokenizer", "/nowhere"], 1, &["/nowhere"]);
    run(&["books"], 2, &["books"]);
}
