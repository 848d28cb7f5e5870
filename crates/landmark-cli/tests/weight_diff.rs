//! Weight differences: the released fixture recovered, made again, and refused where something does not fit.

mod common;

use std::fs;
use std::path::Path;

use common::{fixture, refused, result, text};
use landmark_formats::huggingface::WeightFolder;

fn weights(folder: &Path) -> Vec<(String, Vec<f32>)> {
    let weights = WeightFolder::open(folder).unwrap();
    let mut names: Vec<String> = weights.names().map(str::to_owned).collect();
    names.sort();
    names.into_iter().map(|name| (name.clone(), weights.get(&name).unwrap().to_f32())).collect()
}

#[test]
fn the_released_difference_is_recovered_and_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, diff) = (fixture("weight_diff/raw"), fixture("weight_diff/diff"));
    let (tuned, again) = (folder.path().join("tuned"), folder.path().join("diff"));
    let line = ["weight-diff", "recover", "--path_raw", text(&raw), "--path_diff", text(&diff), "--json"];
    let found = result(&[&line[..], &["--path_tuned", text(&tuned)]].concat());
    let expected: f64 =
        fs::read_to_string(fixture("weight_diff/diff/checksum_psum.txt")).unwrap().trim().parse().unwrap();
    assert!((found["checksum"].as_f64().unwrap() - expected).abs() < 1e-2);
    // The fixture is the fine-tuned LLaMA of the other fixtures.
    for ((name, found), (_, expected)) in weights(&tuned).iter().zip(weights(&fixture("llama"))) {
        let worst = found.iter().zip(&expected).fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs()));
        assert!(found.len() == expected.len() && worst < 1e-6, "{name}: {worst}");
    }
    // What was recovered generates.
    let prompt =
        ["generate", "--model", text(&tuned), "--prompt-tokens", "5,6,7", "--json", "--max-new-tokens", "3"];
    assert_eq!(result(&prompt)["new_tokens"].as_array().unwrap().len(), 3);

    let make = ["weight-diff", "make_diff", "--path_raw", text(&raw), "--path_diff", text(&again), "--json"];
    result(&[&make[..], &["--path-tuned", text(&tuned), "--device", "cpu"]].concat());
    for ((name, found), (_, expected)) in weights(&again).iter().zip(weights(&diff)) {
        let worst = found.iter().zip(&expected).fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs()));
        assert!(found.len() == expected.len() && worst < 1e-6, "{name}: {worst}");
    }
    let sum = fs::read_to_string(again.join("checksum_psum.txt")).unwrap();
    assert!((sum.parse::<f64>().unwrap() - expected).abs() < 1e-2);
    // Without --path_tuned it is checked, and nothing is written.
    assert!(result(&line)["path"].is_null());

    let half = folder.path().join("half");
    result(&[&line[..], &["--path_tuned", text(&half), "--dtype", "f16"]].concat());
    for ((name, found), (_, expected)) in weights(&half).iter().zip(weights(&tuned)) {
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-3 * b.abs() + 1e-6;
        assert!(found.iter().zip(&expected).all(close), "{name}");
    }
}

/// float16 shards of `torch.save` are read like safetensors of float32, within what they can hold.
#[test]
fn shards_of_pytorch_are_read() {
    for ((name, found), (_, expected)) in
        weights(&fixture("llama_bin")).iter().zip(weights(&fixture("llama")))
    {
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-3 * b.abs() + 1e-6;
        assert!(found.len() == expected.len() && found.iter().zip(&expected).all(close), "{name}");
    }
    let generate = |name: &str| {
        let model = fixture(name);
        let line =
            ["generate", "--model", text(&model), "--prompt-tokens", "5,6,7,8,9", "--json", "--logits"];
        result(&[&line[..], &["--max-new-tokens", "1"]].concat())["steps"][0]["top"][0].clone()
    };
    let (found, expected) = (generate("llama_bin"), generate("llama"));
    assert_eq!(found["token"], expected["token"]);
    let difference = found["logit"].as_f64().unwrap() - expected["logit"].as_f64().unwrap();
    assert!(difference.abs() < 5e-3 && difference != 0.0, "{difference}");
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, diff, llama) = (fixture("weight_diff/raw"), fixture("weight_diff/diff"), fixture("llama"));
    let out = folder.path().join("out");
    let recover = |raw: &Path, diff: &Path, more: &[&str], code: i32, said: &[&str]| {
        let line = ["weight-diff", "recover", "--path_raw", text(raw), "--path_diff", text(diff)];
        refused(&[&line[..], &["--path_tuned", text(&out)], more].concat(), code, said);
        assert!(!out.exists(), "nothing is written");
    };
    // The tuned model in the place of the raw one: the sum is wrong.
    recover(&llama, &diff, &[], 1, &["sum of the recovered weights", "322.435"]);
    recover(&raw, &diff, &["--preset", "paper"], 1, &["49798.7656"]);
    recover(&raw, &diff, &["--preset", "papers"], 2, &["give paper"]);
    recover(&raw, &llama, &[], 1, &["checksum_psum.txt", "--preset paper"]);
    recover(&fixture("llama_gqa"), &diff, &[], 1, &["self_attn.k_proj.weight", "[32, 64]", "[64, 64]"]);
    recover(&folder.path().join("none"), &diff, &[], 1, &["none"]);
    // A checksum that is no number, and a shard that is missing.
    let copied = folder.path().join("copy");
    fs::create_dir(&copied).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(diff.join(name), copied.join(name)).unwrap();
    }
    fs::write(copied.join("checksum_psum.txt"), "much").unwrap();
    recover(&raw, &copied, &[], 1, &["checksum_psum.txt", "much"]);
    let shards = folder.path().join("shards");
    fs::create_dir(&shards).unwrap();
    for name in ["config.json", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"] {
        fs::copy(fixture("llama_bin").join(name), shards.join(name)).unwrap();
    }
    recover(&raw, &shards, &[], 1, &["pytorch_model-00002-of-00002.bin"]);
    let line = ["weight-diff", "make", "--path_raw", text(&raw), "--path_diff", text(&out)];
    refused(&line, 2, &["path"]);
}
