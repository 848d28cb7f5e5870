//! Pass keys and retrieval from the command line: asked of a tiny model, and scored for programs of known accuracy.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{fixture, landmark, refused, result, stderr, text};
use serde_json::{Value, json};

/// A tokenizer with a token a character: the fixtures' vocabularies are too small for any other.
fn tokenizer(folder: &Path) -> PathBuf {
    let characters = (' '..='~').chain(['\n']).map(String::from).chain(["</s>".to_owned()]);
    let vocab: serde_json::Map<String, Value> =
        characters.enumerate().map(|(id, c)| (c, id.into())).collect();
    let json = json!({
        "version": "1.0",
        "added_tokens": [{"id": 96, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    let path = folder.join("tokenizer.json");
    fs::write(&path, json.to_string()).unwrap();
    path
}

fn passkey(folder: &Path, flags: &[&str]) -> Vec<String> {
    let (model, tokenizer) = (fixture("gpt_landmark"), tokenizer(folder));
    let line = ["passkey", "--model", text(&model), "--tokenizer", text(&tokenizer), "--json"];
    [&line[..], flags].concat().into_iter().map(str::to_owned).collect()
}

fn run(line: &[String]) -> Value {
    result(&line.iter().map(String::as_str).collect::<Vec<_>>())
}

/// All of a result but the time and memory that it took.
fn timeless(mut result: Value) -> Value {
    fn strip(value: &mut Value) {
        if let Value::Object(map) = value {
            map.retain(|name, _| name != "seconds" && name != "peak_memory_bytes");
        }
        match value {
            Value::Object(map) => map.values_mut().for_each(strip),
            Value::Array(values) => values.iter_mut().for_each(strip),
            _ => {}
        }
    }
    strip(&mut result);
    result
}

#[test]
fn a_run_that_was_killed_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let flags =
        ["--lengths", "400,700", "--num-tests", "2", "--depths", "0,1", "--output-dir", text(&output)];
    let line = passkey(folder.path(), &flags);
    let whole = run(&line);
    assert_eq!(whole["unit"], "tokens");
    let lengths: Vec<&Value> = whole["results"].as_array().unwrap().iter().map(|of| &of["length"]).collect();
    assert_eq!(lengths, [400, 700]);
    for of in whole["results"].as_array().unwrap() {
        assert_eq!((&of["tests"], &of["tokens"]), (&json!(4), &of["length"]), "a token a character is exact");
        assert!(of["seconds"].as_f64().unwrap() > 0.0 && of["peak_memory_bytes"].as_u64().unwrap() > 1 << 20);
        assert!((0.0..=1.0).contains(&of["accuracy"].as_f64().unwrap()));
    }
    for (file, said) in
        [("results.json", "\"results\""), ("results.csv", "passkey,400,0,2"), ("results.svg", "</svg>")]
    {
        assert!(fs::read_to_string(output.join(file)).unwrap().contains(said), "{file}");
    }
    let answers = fs::read_to_string(output.join("answers.jsonl")).unwrap();
    assert_eq!(answers.lines().count(), 1 + 8);

    // Killed in the middle of the sixth line: five answers were not given yet.
    let cut = answers.match_indices('\n').nth(4).unwrap().0 + 50;
    fs::write(output.join("answers.jsonl"), &answers[..cut]).unwrap();
    let output_of = landmark(&line.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(stderr(&output_of).contains("4 of 8 questions were answered before"), "{}", stderr(&output_of));
    let resumed: Value = serde_json::from_slice(&output_of.stdout).unwrap();
    assert_eq!(timeless(resumed), timeless(whole.clone()));
    let again = fs::read_to_string(output.join("answers.jsonl")).unwrap();
    let strip = |text: &str| {
        text.lines().map(|line| timeless(serde_json::from_str(line).unwrap())).collect::<Vec<_>>()
    };
    assert_eq!(strip(&again), strip(&answers));

    // More of the same is the same run; another seed is not.
    let more = passkey(folder.path(), &[&flags[..], &["--num-tests", "3"]].concat());
    assert_eq!(run(&more)["tests"], 12);
    assert_eq!(fs::read_to_string(output.join("answers.jsonl")).unwrap().lines().count(), 1 + 12);
    let other = passkey(folder.path(), &[&flags[..], &["--seed", "9"]].concat());
    refused(&other.iter().map(String::as_str).collect::<Vec<_>>(), 1, &["answers.jsonl", "another seed"]);
}

/// Programs of known accuracy: always right, always wrong, and one that sees the end of the prompt alone.
#[test]
fn programs_of_known_accuracy_get_their_scores() {
    let folder = tempfile::tempdir().unwrap();
    let (prompts, answers) = (folder.path().join("prompts.jsonl"), folder.path().join("answers.jsonl"));
    for (command, flags) in [
        ("passkey", &["--num-tests", "3"][..]),
        ("retrieval", &["--num-samples", "3", "--tasks", "niah_single,niah_multikey_1"]),
    ] {
        let line =
            ["--lengths", "1000,2000", "--depths", "0,0.5,1", "--dump-prompts", text(&prompts), "--json"];
        let dumped = result(&[&[command][..], &line, flags].concat());
        let questions: Vec<Value> = fs::read_to_string(&prompts)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(dumped["count"], questions.len());
        for question in &questions {
            let (tokens, length) =
                (question["tokens"].as_u64().unwrap(), question["length"].as_u64().unwrap());
            assert!(tokens <= length && tokens + 4 >= length, "{}: {tokens} tokens", question["id"]);
        }
        // The last 600 characters hold what is asked for at depth 1, and nothing that is at 0 or 0.5.
        let seen = |prompt: &str, skill: &str| match skill {
            "right" => prompt.to_owned(),
            "last" => prompt[prompt.len() - 600..].to_owned(),
            _ => String::new(),
        };
        for (skill, accuracy) in [("right", 1.0), ("wrong", 0.0), ("last", 1.0 / 3.0)] {
            let answer = |question: &Value| {
                let seen = seen(question["prompt"].as_str().unwrap(), skill);
                let expected = question["expected"].as_array().unwrap().iter().map(|e| e.as_str().unwrap());
                let found: Vec<&str> = expected.filter(|e| seen.contains(&format!(" {e}."))).collect();
                json!({"id": question["id"], "answer": format!(" {}.", found.join(", "))}).to_string() + "\n"
            };
            fs::write(&answers, questions.iter().map(answer).collect::<String>()).unwrap();
            let scored =
                result(&[command, "--prompts", text(&prompts), "--answers", text(&answers), "--json"]);
            assert!(
                (scored["accuracy"].as_f64().unwrap() - accuracy).abs() < 1e-9,
                "{command} {skill}: {scored}"
            );
            for of in scored["results"].as_array().unwrap() {
                assert!(
                    (of["accuracy"].as_f64().unwrap() - accuracy).abs() < 1e-9,
                    "{command} {skill}: {of}"
                );
            }
            for of in scored["depths"].as_array().unwrap().iter().filter(|_| skill == "last") {
                let expected = if of["depth"] == 1.0 { 1.0 } else { 0.0 };
                assert_eq!(of["accuracy"], expected, "{command}: {of}");
            }
        }
    }
}

#[test]
fn prompts_from_a_file_are_asked_like_those_made() {
    let folder = tempfile::tempdir().unwrap();
    let (tokenizer, prompts) = (tokenizer(folder.path()), folder.path().join("prompts.jsonl"));
    let model = fixture("gpt_landmark");
    let what = ["--tasks", "niah_single_1,vt,fwe", "--lengths", "1500", "--num-samples", "1"];
    let dump = ["retrieval", "--tokenizer", text(&tokenizer), "--dump-prompts", text(&prompts)];
    assert!(landmark(&[&dump[..], &what].concat()).status.success());
    let asked = ["retrieval", "--model", text(&model), "--tokenizer", text(&tokenizer), "--json"];
    let made = result(&[&asked[..], &what].concat());
    let mut read = result(&[&asked[..], &["--prompts", text(&prompts)]].concat());
    assert_eq!(made["tasks"].as_array().unwrap().len(), 3);
    read["settings"] = made["settings"].clone();
    assert_eq!(timeless(read), timeless(made));
}

#[test]
fn the_table_is_for_people() {
    let folder = tempfile::tempdir().unwrap();
    let line = passkey(folder.path(), &["--n-values", "0,200", "--num-tests", "1"]);
    let line: Vec<&str> = line.iter().map(String::as_str).filter(|flag| *flag != "--json").collect();
    let output = landmark(&line);
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.lines().next().unwrap().contains("characters") && shown.contains(" 200 "), "{shown}");
    assert!(!shown.contains('\x1b') && stderr(&output).contains("2/2 questions"), "{shown}");
}

#[test]
fn what_cannot_be_asked_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("none");
    let model = fixture("gpt_landmark");
    refused(&["passkey", "--model", text(&missing)], 1, &["none"]);
    refused(&["passkey", "--model", text(&model), "--depths", "2"], 2, &["--depths", "2"]);
    refused(&["passkey", "--model", text(&model), "--lengths", "99"], 1, &["--tokenizer", "gpt2"]);
    let tokenizer = tokenizer(folder.path());
    let line = ["passkey", "--model", text(&model), "--tokenizer", text(&tokenizer), "--lengths", "20"];
    refused(&line, 1, &["20 tokens", "at least"]);
    refused(&["retrieval", "--model", text(&model), "--tasks", "dance"], 2, &["--tasks", "dance", "niah"]);
    refused(&["passkey", "--prompts", text(&missing), "--answers", "a"], 1, &["none"]);
    refused(&["passkey", "--dump-prompts", "/nowhere/p.jsonl", "--lengths", "200"], 1, &["/nowhere/p.jsonl"]);
    // GPT-2's tokens are not those of a model with a vocabulary of 128.
    refused(
        &["passkey", "--model", text(&model), "--lengths", "200"],
        1,
        &["passkey/200", "the model has 128"],
    );
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let line = passkey(folder.path(), &["--lengths", "400", "--output-dir", text(&file)]);
    refused(&line.iter().map(String::as_str).collect::<Vec<_>>(), 1, &["file"]);
}
