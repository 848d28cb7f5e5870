//! A model in blocks of 8 or 4 bits is read by every command, and computes what its rounded weights compute.

mod common;

use common::{fixture, refused, result, text};
use landmark_core::quantize::is_matrix;
use landmark_core::quantize::{Bits, dequantize, quantize};
use landmark_formats::huggingface::{ModelWriter, SHARD_BYTES, WeightFolder};
use landmark_formats::safetensors::TensorSource;
use landmark_formats::tensor::{DType, float_bytes};
use std::path::{Path, PathBuf};

/// A folder with the fixture's model: its weights rounded to blocks, and stored as the values that these stand for.
fn rounded(into: &Path, bits: Bits) -> PathBuf {
    let (from, to) = (fixture("llama"), into.join("rounded"));
    let weights = WeightFolder::open(&from).unwrap();
    let source = |name: &str| {
        let tensor = weights.get(name).unwrap();
        let mut values = tensor.to_f32();
        if is_matrix(name, tensor.shape()) {
            values = dequantize(&quantize(&values, bits), bits);
        }
        let bytes = float_bytes(&values, DType::F32).unwrap();
        TensorSource::new(name, DType::F32, tensor.shape().to_vec(), bytes)
    };
    let writer = ModelWriter::create(&to).unwrap();
    writer.write_weights(weights.names().map(source).collect(), SHARD_BYTES).unwrap();
    let config = std::fs::read(from.join("config.json")).unwrap();
    writer.finish(&serde_json::from_slice(&config).unwrap()).unwrap();
    to
}

fn answer(model: &Path) -> serde_json::Value {
    let tokens = "5,17,3,99,42,8,77,120,6,31,64,2,90,11,12,13,54,23";
    let flags = ["--max-new-tokens", "12", "--logits", "--device", "cpu", "--json"];
    result(&[&["generate", "--model", text(model), "--prompt-tokens", tokens], &flags[..]].concat())
}

#[test]
fn quantised_models_compute_what_their_rounded_weights_do() {
    for (flag, bits, error) in [("8", Bits::Eight, 0.01), ("4", Bits::Four, 0.12)] {
        let temporary = tempfile::tempdir().unwrap();
        let model = temporary.path().join("q");
        let made = result(&["quantize", text(&fixture("llama")), text(&model), "--bits", flag, "--json"]);
        let relative = made["relative_error"].as_f64().unwrap();
        assert!(relative > error / 20.0 && relative < error, "{relative}");
        let values = made["parameters"].as_f64().unwrap();
        assert!(made["quantized"].as_f64().unwrap() > 0.75 * values);
        let per_weight = 8.0 * made["bytes"].as_f64().unwrap() / values;
        assert!(per_weight < if bits == Bits::Eight { 13.0 } else { 10.0 }, "{per_weight} bits");
        let (found, expected) = (answer(&model), answer(&rounded(temporary.path(), bits)));
        assert_eq!(found["new_tokens"], expected["new_tokens"]);
        // Logits to the last bit: the values are the same.
        assert!(!found["steps"].as_array().unwrap().is_empty());
        assert_eq!(found["steps"], expected["steps"]);
        // What is written back as values is no longer quantised, and the same.
        let back = temporary.path().join("back");
        result(&["convert", text(&model), text(&back), "--json"]);
        assert!(!std::fs::read_to_string(back.join("config.json")).unwrap().contains("quantization"));
        assert_eq!(answer(&back)["new_tokens"], expected["new_tokens"]);
    }
}

#[test]
fn what_cannot_be_quantised_is_refused_and_nothing_is_left_behind() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let llama = fixture("llama");
    result(&["quantize", text(&llama), text(&at("q")), "--json"]);
    for (arguments, code, said) in [
        (["quantize", text(&at("q")), text(&at("new"))], 1, ["is quantised already", "made of"]),
        (["quantize", text(&llama), text(&at("q"))], 1, ["is there already", "new folder"]),
        (["quantize", text(&at("none")), text(&at("new"))], 1, ["none", ""]),
        (["quantize", text(&fixture("gpt_landmark")), text(&at("new"))], 1, ["is a GPT", "config.json"]),
    ] {
        refused(&arguments, code, &said);
    }
    refused(&["quantize", text(&llama), text(&at("new")), "--bits", "5"], 2, &["--bits"]);
    // A scale that is no number, found when the weight is read.
    let file = at("q").join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let parsed: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let scales = parsed.as_object().unwrap().iter().find(|(name, _)| name.ends_with("q_proj.weight.scales"));
    let start = 8 + header + scales.unwrap().1["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[start..start + 2].copy_from_slice(&[0, 0x7e]);
    std::fs::write(&file, &bytes).unwrap();
    let damaged = at("q");
    let asked = ["generate", "--model", text(&damaged), "--prompt-tokens", "1,2", "--device", "cpu"];
    refused(&asked, 1, &["q_proj.weight: its scales", "damaged"]);
    // Codes cut off.
    std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    refused(&asked, 1, &["model.safetensors"]);
    let mut names: Vec<_> =
        std::fs::read_dir(temporary.path()).unwrap().flatten().map(|e| e.file_name()).collect();
    names.sort();
    assert_eq!(names, ["q"]);
}
