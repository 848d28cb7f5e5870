//! The model within the program: it finds pass keys without any file, and is the one of `models/passkey`.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{refused, result, stderr, text};
use serde_json::Value;

const NAME: &str = "builtin://passkey";

/// Runs `landmark` in a folder, and gives what it printed.
fn run_in(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_landmark"));
    let output = command.args(arguments).current_dir(folder).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn models() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/passkey"))
}

#[test]
fn pass_keys_are_found_without_naming_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let line = ["passkey", "--lengths", "512", "--num-tests", "2", "--device", "cpu"];
    let found: Value =
        serde_json::from_str(&run_in(folder.path(), &[&line[..], &["--json"]].concat())).unwrap();
    assert_eq!((&found["tests"], &found["accuracy"]), (&2.into(), &1.0.into()), "{found}");
    assert_eq!(found["settings"]["filler"], "prose");
    assert_eq!(found["settings"]["model"]["file"]["path"], NAME);

    // The picture and the numbers are left behind, and are written over by the next run, whatever it asks.
    let results = folder.path().join("passkey-results");
    let mut names: Vec<_> = fs::read_dir(&results)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["results.csv", "results.json", "results.svg"]);
    let picture = fs::read_to_string(results.join("results.svg")).unwrap();
    let shown = run_in(folder.path(), &[&line[..], &["--filler", "notes", "--depths", "1"]].concat());
    assert!(shown.contains("100.0 %") && shown.contains(" 512 "), "{shown}");
    assert_ne!(fs::read_to_string(results.join("results.svg")).unwrap(), picture);

    // An answer is kept where a folder is named, and counts for the same model only.
    let kept = ["passkey", "--lengths", "512", "--num-tests", "1", "--device", "cpu", "--output-dir", "kept"];
    run_in(folder.path(), &kept);
    assert!(folder.path().join("kept/answers.jsonl").is_file());
    let kept = folder.path().join("kept");
    let other = ["passkey", "--lengths", "512", "--num-tests", "1", "--device", "cpu", "--filler", "prose"];
    let other = [&other[..], &["--output-dir", text(&kept), "--model", text(models())]].concat();
    refused(&other, 1, &["answers.jsonl", "another"]);
}

#[test]
fn it_is_the_model_of_the_repository() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    let prompt =
        "The pass key is 31415. Remember it. 31415 is the pass key.\nWhat is the pass key? The pass key is";
    let generate = ["generate", "--prompt", prompt, "--max-new-tokens", "8", "--device", "cpu", "--json"];
    let said = |flags: &[&str]| {
        let found = result(&[&generate[..], flags].concat());
        (found["new_tokens"].clone(), found["text"].clone())
    };
    let ours = said(&[]);
    assert!(ours.1.as_str().unwrap().contains("31415"), "{}", ours.1);
    assert_eq!(said(&["--model", text(models())]), ours);

    // Written to the disk it is a model like any other.
    result(&["convert", NAME, text(&copy), "--json"]);
    assert_eq!(said(&["--model", text(&copy)]), ours);
    let (inside, outside) = (result(&["info", NAME, "--json"]), result(&["info", text(&copy), "--json"]));
    assert_eq!((&inside["model"], &inside["weights"]), (&outside["model"], &outside["weights"]));
    assert_eq!(inside["companions"], serde_json::json!(["tokenizer.json"]));
    assert_eq!(inside["files"][0]["name"], "model.safetensors");
}

#[test]
fn a_text_is_read_and_asked_about_without_naming_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let filler = "The clouds moved slowly over the valley, and nobody counted them. ".repeat(40);
    let story = format!("{filler}\nThe pass key is 2718. Remember it. 2718 is the pass key.\n{filler}");
    fs::write(folder.path().join("story.txt"), story).unwrap();
    run_in(folder.path(), &["index", "story.txt", "-o", "story.memory", "--device", "cpu", "--quiet"]);
    let info: Value =
        serde_json::from_str(&run_in(folder.path(), &["info", "story.memory", "--json"])).unwrap();
    assert_eq!(info["model_path"], NAME);
    let question = "What is the pass key? The pass key is";
    let ask = ["ask", "story.memory", question, "--max-new-tokens", "8", "--device", "cpu", "--no-stream"];
    let answer = run_in(folder.path(), &ask);
    assert!(answer.contains("2718"), "{answer}");
}

#[test]
fn names_that_stand_for_no_folder_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    refused(&["generate", "--model", "builtin://other", "--prompt", "a"], 1, &["builtin://other", NAME]);
    let text_file = folder.path().join("a.txt");
    fs::write(&text_file, "words").unwrap();
    let line = ["finetune", "--model_name_or_path", NAME, "--train_file", text(&text_file), "--output_dir"];
    let out = folder.path().join("out");
    refused(&[&line[..], &[text(&out)]].concat(), 1, &[NAME, "landmark convert"]);
}
