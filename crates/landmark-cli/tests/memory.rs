//! Where the memory lies changes no token: on the device, in a file, saved and loaded; alone or in a batch.

mod common;

use common::{model_with_tokenizer, refused, result as run_json};
use serde_json::{Value, json};
use std::path::Path;

const PROMPT: usize = 150;

fn fixture(name: &str) -> String {
    common::text(&common::fixture(name)).to_owned()
}

fn tokens(from: usize, count: usize) -> Vec<u32> {
    (from..from + count).map(|i| (i * i * 31 + i * 7) as u32 % 190 + 3).collect()
}

fn list(tokens: &[u32]) -> String {
    tokens.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn generate(prompt: &[u32], flags: &[&str]) -> Value {
    let model = fixture("llama");
    let prompt = list(prompt);
    let first = ["generate", "--model", &model, "--prompt-tokens", &prompt, "--max-new-tokens", "20"];
    run_json(&[&first[..], &["--json", "--quiet", "--logits", "--lookups"], flags].concat())
}

#[test]
fn tiers_change_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("scratch");
    let file = file.to_str().unwrap();
    for retrieval in ["per_token_and_head", "max_over_tokens", "max_over_heads"] {
        for k in ["1", "3", "5"] {
            let same = ["--cache-top-k", k, "--retrieval", retrieval];
            let whole = generate(&tokens(0, PROMPT), &same);
            for tiers in [
                &["--device-memory", "40KB", "--memory-file", file][..],
                &["--device-memory", "16KB", "--host-memory", "1KB", "--memory-file", file],
                &["--device-memory", "40KB", "--host-memory", "1MB"],
                &["--memory-file", file],
            ] {
                let tiered = generate(&tokens(0, PROMPT), &[&same[..], tiers].concat());
                assert_eq!(tiered["steps"], whole["steps"], "{retrieval} {k} {tiers:?}");
            }
            let steps = whole["steps"].as_array().unwrap();
            assert_eq!(steps.len(), 20);
            assert_eq!(steps[0]["top"].as_array().unwrap().len(), 5);
            let fetched = &steps[0]["retrieved"];
            assert_eq!((fetched.as_array().unwrap().len(), fetched[0].as_array().unwrap().len()), (2, 4));
            assert_eq!(fetched[1][3].as_array().unwrap().len().to_string(), k);
        }
    }
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "scratch files are gone");
}

/// Prompts of other lengths beside it change nothing in what a prompt retrieves all of. (Where something is left out,
/// the first layer's equal landmarks are told apart by rounding, which products of another shape do otherwise.)
#[test]
fn a_batch_gives_what_each_gives_alone() {
    let folder = tempfile::tempdir().unwrap();
    let prompts: Vec<Vec<u32>> = [30, 7, 1, 41].iter().map(|&n| tokens(n, n)).collect();
    let lines: Vec<String> = prompts.iter().map(|p| json!({"prompt_tokens": p}).to_string()).collect();
    let file = folder.path().join("prompts.jsonl");
    std::fs::write(&file, lines.join("\n")).unwrap();
    let (model, file) = (fixture("llama"), file.to_str().unwrap().to_owned());
    let flags = ["--cache-top-k", "9", "--mid-length", "14"];
    for batch in ["1", "3", "4"] {
        let first = ["generate", "--model", &model, "--prompts", &file, "--max-new-tokens", "20", "--json"];
        let all = run_json(&[&first[..], &["--batch-size", batch], &flags].concat());
        for (result, prompt) in all["results"].as_array().unwrap().iter().zip(&prompts) {
            assert_eq!(result["new_tokens"], generate(prompt, &flags)["new_tokens"], "{batch} at a time");
        }
    }
}

fn words(path: &Path, count: usize) -> String {
    let words = ["stone", "river", "lantern", "meadow", "copper", "violet", "harbour", "thunder"];
    let text: Vec<&str> = (0..count).map(|i| words[(i * i + i / 3) % 8]).collect();
    std::fs::write(path, text.join(" ")).unwrap();
    text.join(" ")
}

#[test]
fn a_saved_memory_answers_as_the_text_does() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(at("model")).unwrap();
    model_with_tokenizer(Path::new(&at("model")));
    for (count, k) in [(40, "3"), (60, "5"), (1, "1")] {
        let text = words(Path::new(&at("text")), count);
        let index = ["index", &at("text"), "--model", &at("model"), "-o", &at("a.memory"), "--cache-topk", k];
        let indexed = run_json(
            &[&index[..], &["--json", "--device-memory", "60KB", "--memory-file", &at("s")]].concat(),
        );
        assert_eq!(indexed["tokens"], text.len());
        let info = run_json(&["info", &at("a.memory"), "--json"]);
        assert_eq!(
            (&info["kind"], &info["tokens"], &info["bytes"]),
            (&json!("memory"), &json!(text.len()), &indexed["bytes"])
        );
        let question = "where is the lantern?";
        let ask = ["ask", &at("a.memory"), question, "--template", " {question}", "--max-new-tokens", "20"];
        let ask = [&ask[..], &["--ignore-eos", "--json", "--lookups"]].concat();
        let prompt = format!("{text} {question}");
        let generate = ["generate", "--model", &at("model"), "--prompt", &prompt, "--cache-topk", k];
        let generate =
            [&generate[..], &["--max-new-tokens", "20", "--ignore-eos", "--json", "--lookups"]].concat();
        let (asked, generated) = (run_json(&ask), run_json(&generate));
        assert_eq!(asked["steps"], generated["steps"], "{count} words, k {k}");
        let again = run_json(&[&ask[..], &["--device-memory", "40KB", "--host-memory", "2KB"]].concat());
        assert_eq!(again["steps"], asked["steps"], "within a budget");
        let whole = asked["remembered_tokens"].as_u64().unwrap();
        assert!(whole <= text.len() as u64 && whole + 70 > text.len() as u64, "{whole} of {}", text.len());
    }

    // Another model, a damaged file, no file.
    std::fs::create_dir(at("other")).unwrap();
    model_with_tokenizer(Path::new(&at("other")));
    let mut weights = std::fs::read(at("other/model.safetensors")).unwrap();
    let last = weights.len() - 1;
    weights[last] ^= 1;
    std::fs::write(at("other/model.safetensors"), weights).unwrap();
    let fails = |arguments: &[&str], reason: &str| refused(arguments, 1, &[reason, "a.memory"]);
    fails(&["ask", &at("a.memory"), "?", "--model", &at("other")], "was read by another model");
    let whole = std::fs::read(at("a.memory")).unwrap();
    std::fs::write(at("a.memory"), &whole[..whole.len() - 5]).unwrap();
    fails(&["ask", &at("a.memory"), "?"], "ends too early");
    std::fs::remove_file(at("a.memory")).unwrap();
    fails(&["ask", &at("a.memory"), "?"], "cannot open");
}

#[test]
fn impossible_memories_are_usage_errors() {
    let model = fixture("llama");
    let base = ["generate", "--model", &model, "--prompt-tokens", "5,6,7,8", "--max-new-tokens", "400"];
    for (flags, reason) in [
        (&["--cache-topk", "7"][..], "the largest that fits is 6"),
        (&["--device-memory", "1KB"], "give at least"),
        (&["--device-memory", "100KB", "--host-memory", "1KB"], "--memory-file"),
        (&["--device-memory", "many"], "--device-memory"),
        (&["--lm-cache", "none", "--memory-file", "x"], "tiers are for a landmark memory"),
        (&["--preset", "papers"], "give paper"),
    ] {
        refused(&[&base[..], flags].concat(), 2, &[reason]);
    }
    let no_tokenizer = ["generate", "--model", &model, "--prompt", "text"];
    refused(&no_tokenizer, 1, &["no tokenizer.json", "--prompt-tokens"]);
    let elsewhere = ["--device-memory", "100KB", "--memory-file", "/nowhere/at/all"];
    refused(&[&base[..], &elsewhere].concat(), 1, &["/nowhere/at"]);
}
