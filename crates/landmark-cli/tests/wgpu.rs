//! The commands on an adapter of wgpu: llvmpipe (Debian's mesa-vulkan-drivers) is enough. What they give is what the CPU
//! gives.

mod common;

use common::{fixture, landmark, model_with_tokenizer, refused, result, stderr, text};
use serde_json::Value;

/// A text of 40 tokens: nine blocks with what is generated, as many as are retrieved. (Where something is left out, the
/// first layer's equal landmarks are told apart by rounding, which is each backend's own.)
fn prompt() -> String {
    let tokens: Vec<String> = (0..40).map(|i| (3 + i * 37 % 120).to_string()).collect();
    tokens.join(",")
}

/// The software adapter, whatever else there is: numbers are compared.
fn software() -> String {
    let info = result(&["info", "--json"]);
    let adapters = info["wgpu"].as_array().unwrap();
    let found = adapters.iter().find(|adapter| adapter["kind"] == "software");
    found.expect("apt install mesa-vulkan-drivers gives one")["device"].as_str().unwrap().to_owned()
}

fn generated(model: &str, device: &str, more: &[&str]) -> Value {
    let prompt = prompt();
    let asked = [
        "generate",
        "--model",
        model,
        "--prompt-tokens",
        &prompt,
        "--max-new-tokens",
        "20",
        "--device",
        device,
    ];
    let memory = ["--cache-topk", "9", "--mid-length", "14"];
    result(&[&asked[..], &memory, &["--logits", "--json"], more].concat())
}

/// Tokens are the same, logits nearly.
fn assert_alike(found: &Value, expected: &Value, tolerance: f64) {
    assert_eq!(found["new_tokens"], expected["new_tokens"]);
    let (found, expected) = (found["steps"].as_array().unwrap(), expected["steps"].as_array().unwrap());
    assert_eq!((found.len(), expected.len()), (20, 20));
    for (found, expected) in found.iter().zip(expected) {
        let logit = |step: &Value| step["top"][0]["logit"].as_f64().unwrap();
        let (found, expected) = (logit(found), logit(expected));
        assert!((found - expected).abs() < tolerance, "{found} and {expected}");
    }
}

#[test]
fn what_is_generated_is_what_the_cpu_generates() {
    let device = software();
    for model in ["llama", "gpt_landmark"] {
        let model = fixture(model);
        let expected = generated(text(&model), "cpu", &[]);
        let found = generated(text(&model), &device, &["--dtype", "torch.float32"]);
        assert_alike(&found, &expected, 1e-3);
    }
}

#[test]
fn quantised_weights_stay_in_their_blocks() {
    let (device, temporary) = (software(), tempfile::tempdir().unwrap());
    for bits in ["8", "4"] {
        let model = temporary.path().join(bits);
        result(&["quantize", text(&fixture("llama")), text(&model), "--bits", bits, "--json"]);
        assert_alike(&generated(text(&model), &device, &[]), &generated(text(&model), "cpu", &[]), 1e-3);
    }
}

#[test]
fn losses_are_those_of_the_cpu() {
    let (device, model) = (software(), fixture("gpt_landmark"));
    let data = model.join("val.bin");
    let loss = |device: &str| {
        let asked =
            ["eval", "--checkpoint", text(&model), "--data", text(&data), "--device", device, "--json"];
        let memory =
            ["--lm_cache", "mem", "--mem_cache_size", "6", "--cache_topk", "6", "--eval_seq_length", "128"];
        let rest = ["--mid_length", "28", "--dtype", "torch.float32", "--eval_sample_size", "1024"];
        result(&[&asked[..], &memory, &rest].concat())["val_loss"].as_f64().unwrap()
    };
    let (found, expected) = (loss(&device), loss("cpu"));
    assert!((found - expected).abs() < 1e-4 * expected, "{found} and {expected}");
}

/// A text read on one device is asked about on another.
#[test]
fn memories_go_from_device_to_device() {
    let (device, temporary) = (software(), tempfile::tempdir().unwrap());
    let model = temporary.path().join("model");
    std::fs::create_dir(&model).unwrap();
    model_with_tokenizer(&model);
    let text_file = temporary.path().join("text");
    std::fs::write(&text_file, "a text of a few chunks").unwrap();
    let index = |device: &str, name: &str| {
        let to = temporary.path().join(name);
        let asked = ["index", text(&text_file), "-o", text(&to), "--model", text(&model), "--device", device];
        result(
            &[&asked[..], &["--dtype", "torch.float32", "--cache-topk", "9", "--mid-length", "14", "--json"]]
                .concat(),
        );
        to
    };
    let answer = |device: &str, saved: &std::path::Path| {
        let asked =
            ["ask", text(saved), "where is it", "--max-new-tokens", "8", "--device", device, "--json"];
        result(&[&asked[..], &["--dtype", "torch.float32", "--ignore-eos"]].concat())["new_tokens"].clone()
    };
    let (here, there) = (index("cpu", "cpu.memory"), index(&device, "wgpu.memory"));
    let expected = answer("cpu", &here);
    for (device, saved) in [("cpu", &there), (device.as_str(), &here), (device.as_str(), &there)] {
        assert_eq!(answer(device, saved), expected, "{device} {saved:?}");
    }
}

#[test]
fn the_machine_is_described() {
    let info = result(&["info", "--json"]);
    let adapter = &info["wgpu"][0];
    assert!(adapter["device"] == "wgpu:0" && adapter["name"].is_string() && adapter["interface"].is_string());
    assert!(info["devices"].as_array().unwrap().iter().any(|device| device["device"] == "wgpu:0"));
    let auto = info["auto"].as_str().unwrap();
    // A software adapter is never taken by itself.
    let of_auto = info["wgpu"].as_array().unwrap().iter().find(|adapter| adapter["device"] == auto);
    assert!(of_auto.is_none_or(|adapter| adapter["kind"] != "software"), "{info}");
    assert!(info["because"].as_str().unwrap().len() > 20);
    let output = landmark(&["info"]);
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    for said in ["--device auto takes", adapter["name"].as_str().unwrap(), "wgpu:0: driver"] {
        assert!(shown.contains(said), "{said}: {shown} {}", stderr(&output));
    }
}

#[test]
fn what_wgpu_cannot_do_is_said_before_anything_is_done() {
    let (device, model) = (software(), fixture("llama"));
    let model = text(&model);
    let asked = ["generate", "--model", model, "--prompt-tokens", "1,2,3", "--device"];
    let with = |device: &str, more: &[&str], code, said: &[&str]| {
        refused(&[&asked[..], &[device], more].concat(), code, said);
    };
    with("wgpu:no such adapter", &[], 2, &["--device wgpu:no such adapter: ", "`no such adapter`", "0: "]);
    with("wgpu:77", &[], 2, &["--device wgpu:77: ", "number 77", "landmark info"]);
    with("wgpu:", &[], 2, &["wgpu:NAME"]);
    with(&device, &["--host-memory", "1GiB"], 2, &["--host-memory", "whole on the device", "--device cuda"]);
    with(&device, &["--device-memory", "1KiB"], 2, &["--device-memory"]);
    with(&device, &["--offload-cache-to-cpu"], 2, &["--offload-cache-to-cpu"]);
    let temporary = tempfile::tempdir().unwrap();
    let out = temporary.path().join("out");
    for line in [
        &["train", "--data-dir", "nowhere", "--dataset", "text"][..],
        &["finetune", "--model_name_or_path", model, "--train_file", model, "--output_dir", text(&out)],
        &["demo", "--output", text(&out)],
        &["bench", "train"],
    ] {
        refused(&[line, &["--device", &device]].concat(), 2, &["does not train", "--device cuda"]);
    }
    assert!(!out.exists());
    let bits = ["bench", "decode", "--bits", "8", "--device", "cpu"];
    refused(&bits, 2, &["--bits", "--device wgpu"]);
}

/// A few tokens on a tiny model: that the benchmarks run, and say on what.
#[test]
fn benchmarks_run() {
    let device = software();
    let model =
        ["--n-layer", "1", "--n-embd", "64", "--n-head", "2", "--vocab-size", "96", "--mem-freq", "7"];
    for (what, more) in [
        ("forward", &["--sequence-length", "32", "--batch-size", "1", "--steps", "1"][..]),
        ("prefill", &["--context", "40", "--sequence-length", "64"]),
        ("decode", &["--context", "40", "--sequence-length", "64", "--new-tokens", "3", "--bits", "4"]),
    ] {
        let found = result(&[&["bench", what, "--device", &device, "--json"], &model[..], more].concat());
        assert_eq!(found["what"], what);
        assert!(found["device"].as_str().unwrap().contains("Vulkan"), "{found}");
    }
    let asked = [
        "bench",
        "attention",
        "--n-head",
        "2",
        "--sequence-length",
        "32",
        "--head-dim",
        "32",
        "--steps",
        "1",
    ];
    let found = result(&[&asked[..], &["--batch-size", "1", "--device", &device, "--json"]].concat());
    assert!(
        found["forward_milliseconds"].as_f64().unwrap() > 0.0 && found.get("backward_milliseconds").is_none()
    );
}
