//! The other commands, from a folder of texts to generated ones.

mod common;

use std::fs;

use common::{fixture, landmark, result, text};

#[test]
fn text_is_prepared_and_described() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in"), folder.path().join("out"));
    fs::create_dir(&input).unwrap();
    for book in 0..4 {
        fs::write(input.join(format!("{book}.txt")), format!("Book {book}. Hello world")).unwrap();
    }
    let line = ["prepare", "--dataset", "text", "--input", text(&input), "--output", text(&output), "--json"];
    let line = [&line[..], &["--validation-fraction", "0.25"]].concat();
    let first = result(&line);
    assert_eq!((&first["skipped"], first["tokens"].as_u64()), (&false.into(), Some(4 * 6)));
    assert_eq!(result(&line)["skipped"], true);
    let info = result(&["info", text(&output), "--json"]);
    assert_eq!((&info["kind"], &info["splits"]["validation"]["tokens"]), (&"dataset".into(), &6.into()));
    let info = result(&["info", text(&output.join("validation.bin")), "--json"]);
    assert_eq!(info["first_tokens"], serde_json::json!([10482, 657, 13, 18435, 995, 50256]));
    assert_eq!((&info["kind"], &info["largest_token"]), (&"stream".into(), &50256.into()));
}

#[test]
fn checkpoints_are_described() {
    let info = result(&["info", text(&fixture("gpt_cmt")), "--json"]);
    assert_eq!(
        (&info["kind"], &info["released"], &info["iteration"]),
        (&"checkpoint".into(), &true.into(), &1.into())
    );
    // 128·64 of the embedding, 12·64² and two norms a block, a last norm, a context-miss token.
    assert_eq!(info["parameters"], 128 * 64 + 2 * (12 * 64 * 64 + 2 * 64) + 64 + 64);
    assert_eq!(info["weights"]["rem_token_embedding.weight"], serde_json::json!([1, 64]));
}

#[test]
fn generation_is_repeatable_and_shows_what_it_says() {
    let checkpoint = fixture("gpt_landmark");
    let prompt: Vec<String> = (0..60).map(|i| (i * 37 % 97).to_string()).collect();
    let prompt = prompt.join(",");
    let flags = ["--max-new-tokens", "20", "--temperature", "1", "--seed", "5"];
    let run = |more: &[&str]| {
        let line = ["generate", "--checkpoint", text(&checkpoint), "--prompt-tokens", &prompt];
        [&line[..], &flags[..], more].concat().iter().map(|s| (*s).to_owned()).collect::<Vec<String>>()
    };
    let tokens = |more: &[&str]| {
        let line = run(&[more, &["--json"]].concat());
        let found = result(&line.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(found["new_tokens"].as_array().unwrap().len(), 20);
        assert!(found["new_tokens"].as_array().unwrap().iter().all(|token| *token != 100), "a landmark");
        (found["new_tokens"].clone(), found["text"].as_str().unwrap().to_owned())
    };
    let (with_memory, said) = tokens(&[]);
    assert_eq!(tokens(&["--lm_cache", "mem", "--mem_cache_freq", "7"]).0, with_memory);
    assert_ne!(tokens(&["--seed", "6"]).0, with_memory);
    assert_ne!(tokens(&["--lm_cache", "none"]).0, with_memory);
    for more in [&[][..], &["--no-stream"]] {
        let line = run(more);
        let output = landmark(&line.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{said}\n"), "{more:?}");
    }
}

#[test]
fn speed_is_measured() {
    let shape =
        ["--n_layer", "1", "--n_head", "2", "--n_embd", "16", "--sequence_length", "32", "--vocab_size"];
    for what in ["forward", "train"] {
        let line =
            [&["bench", what, "--json", "--steps", "2", "--threads", "1"], &shape[..], &["64"]].concat();
        let found = result(&line);
        assert!(found["tokens_per_second"].as_f64().unwrap() > 0.0);
        assert_eq!(
            (&found["steps"], &found["threads"], &found["what"]),
            (&2.into(), &1.into(), &what.into())
        );
        // A multiply-add is two operations: twice 12·16² weights and the head's 16·64 for each of 4·32 tokens.
        let least = 2 * (12 * 16 * 16 + 16 * 64) * 4 * 32 * if what == "train" { 3 } else { 1 };
        let flops = found["flops_per_step"].as_u64().unwrap();
        assert!((least..2 * least).contains(&flops), "{what}: {flops} and {least}");
    }
}
