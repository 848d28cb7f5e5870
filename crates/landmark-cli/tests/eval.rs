//! `landmark eval` against what the released evaluation printed, on checkpoints of either kind; and its tables.

mod common;

use common::{as_ours, copy, fixture, json, landmark, result, stderr, text};
use serde_json::Value;

/// Relative error that the fixtures, float32 on another machine, allow.
const TOLERANCE: f64 = 1e-4;

/// As far as a chunk's loss may be from where the released program chose among equal blocks by rounding: in the first
/// layer all old blocks score the same, and PyTorch's small products round some of them differently when their
/// number is no multiple of 4. (The fixtures of single evaluations tell the same, with the same bound.)
const CHANCE_TOLERANCE: f64 = 2e-3;

/// Chunks of a case before the first in which a choice fell by rounding.
fn chunks_without_chance(case: &Value, chunks: usize) -> usize {
    let number = |key: &str| case[key].as_u64().unwrap_or(0) as usize;
    if case["lm_cache"] != "mem" {
        return chunks;
    }
    let cached =
        |c: usize| (c * number("mid_length") / number("mem_cache_freq")).min(number("mem_cache_size"));
    (0..chunks).find(|&c| cached(c) < 13 && cached(c) % 4 != 0).unwrap_or(chunks)
}

/// The command line of a case of `eval_stream.json`.
fn line(checkpoint: &str, data: &str, case: &Value) -> Vec<String> {
    let mut line: Vec<String> =
        ["eval", "--json", "--quiet", "--checkpoint", checkpoint, "--data", data].map(String::from).to_vec();
    for (key, value) in case.as_object().expect("a case") {
        if key != "val_loss" && key != "chunk_losses" {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            line.extend([format!("--{key}"), value]);
        }
    }
    if case["lm_cache"] != "none" {
        line.push("--use_cache".to_owned());
    }
    line
}

fn close(what: &str, found: &Value, expected: &Value, tolerance: f64) {
    let (found, expected) = (found.as_f64().expect(what), expected.as_f64().expect(what));
    assert!((found - expected).abs() <= tolerance * expected.abs(), "{what}: {found} instead of {expected}");
}

/// Evaluates every case of a fixture and compares all losses.
fn meets(name: &str, checkpoint: &str) {
    let data = fixture(name).join("val.bin");
    for case in json(&format!("{name}/eval_stream.json")).as_array().expect("cases") {
        let line = line(checkpoint, text(&data), case);
        let found = result(&line.iter().map(String::as_str).collect::<Vec<_>>());
        close(&format!("{case}: val_loss"), &found["val_loss"], &case["val_loss"], TOLERANCE);
        let losses = case["chunk_losses"].as_array().expect("losses");
        assert_eq!(found["chunk_losses"].as_array().expect("losses").len(), losses.len(), "{case}");
        for (index, loss) in losses.iter().enumerate() {
            let by_rule = index < chunks_without_chance(case, losses.len());
            let tolerance = if by_rule { TOLERANCE } else { CHANCE_TOLERANCE };
            close(&format!("{case}: chunk {index}"), &found["chunk_losses"][index], loss, tolerance);
        }
        let perplexity = std::f64::consts::E.powf(case["val_loss"].as_f64().expect("a loss"));
        assert!((found["val_perplexity"].as_f64().expect("a perplexity") / perplexity - 1.0).abs() < 1e-3);
        let accuracy = found["val_acc"].as_f64().expect("an accuracy");
        assert!((0.0..=1.0).contains(&accuracy));
        assert!(found["tokens_per_second"].as_f64().expect("a speed") > 0.0);
        if cfg!(target_os = "linux") {
            assert!(found["peak_memory_bytes"].as_u64().expect("memory") > 1 << 20);
        }
    }
}

#[test]
fn every_case_of_the_landmark_model_is_met() {
    meets("gpt_landmark", text(&fixture("gpt_landmark")));
}

#[test]
fn every_case_of_the_base_model_is_met() {
    meets("gpt_base", text(&fixture("gpt_base").join("ckpt.pt")));
}

/// One file is enough: the settings are in it, and the optimiser's state is passed over.
#[test]
fn our_own_checkpoints_are_met_too() {
    let folder = tempfile::tempdir().expect("a folder");
    as_ours("gpt_base", &folder.path().join("ckpt_20.safetensors"), |_, _| ());
    meets("gpt_base", text(folder.path()));
}

/// The released evaluation leaves biases of queries, keys and values at 0; our checkpoints keep them.
#[test]
fn biases_are_left_out_where_the_released_evaluation_leaves_them_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let (kept, zeroed) = (folder.path().join("kept.safetensors"), folder.path().join("zeroed.safetensors"));
    as_ours("gpt_bias", &kept, |_, _| ());
    as_ours("gpt_bias", &zeroed, |name, values| {
        if name.ends_with("c_attn.bias") {
            values.fill(0.0);
        }
    });
    let data = fixture("gpt_landmark/val.bin");
    let flags = ["--eval_seq_length", "24", "--mid_length", "24", "--json"];
    let run = |checkpoint: &str| {
        let line = [&["eval", "--checkpoint", checkpoint, "--data", text(&data)], &flags[..]].concat();
        let output = landmark(&line);
        let found: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        (found["val_loss"].as_f64().expect("a loss"), stderr(&output).contains("left at 0"))
    };
    let (released, kept, zeroed) = (run(text(&fixture("gpt_bias"))), run(text(&kept)), run(text(&zeroed)));
    assert_eq!(released.0, zeroed.0);
    assert!((released.0 - kept.0).abs() > 1e-5, "{} and {}", released.0, kept.0);
    assert_eq!([released.1, kept.1, zeroed.1], [true, false, false]);
}

#[test]
fn a_prepared_data_set_is_found_by_its_folder() {
    let folder = copy("gpt_base");
    std::fs::rename(folder.path().join("val.bin"), folder.path().join("validation.bin")).expect("a name");
    let flags = ["--eval_seq_length", "48", "--mid_length", "48", "--batch_size", "4", "--mem_freq", "None"];
    let path = text(folder.path());
    let found = result(&[&["eval", "--json", "--checkpoint", path, "--data-dir", path], &flags[..]].concat());
    let expected = &json("gpt_base/eval_stream.json")[0]["val_loss"];
    close("val_loss", &found["val_loss"], expected, TOLERANCE);
}

/// A sweep writes its tables, and started again it measures only what is not measured yet.
#[test]
fn a_table_is_resumable() {
    let folder = copy("gpt_base");
    let (output, data) = (folder.path().join("out"), folder.path().join("pg19.bin"));
    let stream: Vec<u8> = std::fs::read(fixture("gpt_base/val.bin")).expect("a stream").repeat(4);
    std::fs::write(&data, stream).expect("a stream");
    let (checkpoint, data) =
        (format!("pg19_baseline={}", text(folder.path())), format!("pg19={}", text(&data)));
    let line =
        ["eval", "--table", "1", "--checkpoint", &checkpoint, "--data", &data, "--output", text(&output)];
    let run = |line: &[&str]| {
        let output = landmark(line);
        assert!(output.status.success(), "{}", stderr(&output));
        let repeated = stderr(&output).matches("measured before").count();
        (String::from_utf8(output.stdout).expect("text"), repeated)
    };
    let (table, repeated) = run(&line);
    assert_eq!((table.contains("| 16.12 |"), repeated), (true, 0), "{table}");
    assert_eq!(run(&line), (table.clone(), 2));
    assert_eq!(std::fs::read_to_string(output.join("table_1.md")).expect("a table").trim(), table.trim());
    let rows: Value =
        serde_json::from_slice(&std::fs::read(output.join("table_1.json")).expect("a table")).expect("JSON");
    let measured = rows.as_array().expect("rows").iter().filter(|row| !row["measured"].is_null());
    assert_eq!(measured.count(), 2);

    // Other settings, another evaluation; and a damaged file is not taken for results.
    let other = [&line[..], &["--batch_size", "3"]].concat();
    assert_eq!(run(&other).1, 0);
    std::fs::write(output.join("results.json"), "{").expect("a file");
    common::refused(&line, 1, &["results.json", "cannot be understood"]);
}
