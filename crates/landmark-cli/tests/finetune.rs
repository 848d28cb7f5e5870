//! Fine-tuning as somebody does it who has a folder of a LLaMA and a file of text: the program is run, and what it leaves
//! is used.
//!
//! The model is the fixture's without its landmark: a plain LLaMA of 99 tokens, which are bytes of text. Two tokens are
//! added to it, so its embedding and head grow.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{fixture, landmark, refused, result, stderr, text};
use landmark_formats::huggingface::WeightFolder;
use landmark_formats::peft::Adapter;
use landmark_formats::safetensors::{SafetensorsFile, TensorSource, write_safetensors};
use landmark_formats::tensor::DType;
use landmark_model::lora::merge;
use serde_json::{Value, json};

/// Tokens of the plain model: three special ones and 96 characters.
const VOCAB: usize = 99;
const WIDTH: usize = 64;

/// Folders of a test.
struct Scratch(tempfile::TempDir);

impl Scratch {
    /// With a plain model in `model` and documents in `text.jsonl`.
    fn new() -> Scratch {
        let scratch = Scratch(tempfile::tempdir().expect("a folder"));
        plain_model(&scratch.path("model"));
        documents(&scratch.path("text.jsonl"), 12);
        scratch
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn name(&self, name: &str) -> String {
        text(&self.path(name)).to_owned()
    }

    /// The flags of a quick run into folder `out`, then `flags`.
    fn flags(&self, out: &str, flags: &str) -> Vec<String> {
        let quick = "--max_steps 30 --per_device_train_batch_size 2 --learning_rate 3e-3 --lr_scheduler_type constant \
                     --model_max_length 28 --mem_freq 7 --logging_steps 10";
        let mut all = vec!["finetune".to_owned(), "--json".to_owned(), "--quiet".to_owned()];
        for (flag, name) in
            [("--model_name_or_path", "model"), ("--train_file", "text.jsonl"), ("--output_dir", out)]
        {
            all.extend([flag.to_owned(), self.name(name)]);
        }
        // A flag given again replaces what stands here.
        let given: Vec<&str> = flags.split_whitespace().collect();
        let quick: Vec<&str> = quick.split_whitespace().collect();
        for pair in quick.chunks(2).filter(|pair| !given.contains(&pair[0])) {
            all.extend(pair.iter().map(ToString::to_string));
        }
        all.extend(given.iter().map(ToString::to_string));
        all
    }

    fn run(&self, out: &str, flags: &str) -> Value {
        let flags = self.flags(out, flags);
        result(&flags.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn refused(&self, out: &str, flags: &str, code: i32, said: &[&str]) {
        let flags = self.flags(out, flags);
        refused(&flags.iter().map(String::as_str).collect::<Vec<_>>(), code, said);
    }

    /// What a model says after a text.
    fn generate(&self, model: &str, flags: &[&str]) -> Value {
        let model = self.name(model);
        let prompt = "the river by the meadow, the lantern of copper and the violet harbour";
        let first = ["generate", "--model", &model, "--prompt", prompt, "--max-new-tokens", "12"];
        result(&[&first[..], &["--ignore-eos", "--logits", "--json", "--quiet"], flags].concat())
    }

    fn losses(&self, out: &str) -> Vec<f64> {
        let text = fs::read_to_string(self.path(out).join("metrics.jsonl")).expect("metrics");
        let loss = |line: &str| serde_json::from_str::<Value>(line).expect("JSON")["loss"].as_f64();
        text.lines().map(|line| loss(line).expect("a number")).collect()
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(name)).expect("a file")).expect("JSON")
    }

    /// The checkpoints in a folder, by step.
    fn checkpoints(&self, out: &str) -> Vec<u64> {
        let Ok(entries) = fs::read_dir(self.path(out)) else { return Vec::new() };
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        let step = |name: String| name.strip_prefix("checkpoint-")?.parse().ok();
        let mut steps: Vec<u64> =
            names.filter_map(|name| step(name.to_string_lossy().into_owned())).collect();
        steps.sort_unstable();
        steps
    }
}

/// The fixture's weights without what belongs to landmarks, and a tokenizer of characters.
fn plain_model(folder: &Path) {
    fs::create_dir(folder).expect("a folder");
    let mut config = common::json("llama/config.json");
    let fields = config.as_object_mut().expect("an object");
    for name in ["mem_id", "mem_freq", "train_context_length", "include_landmark_in_loss"] {
        fields.remove(name);
    }
    fields.insert("model_type".into(), json!("llama"));
    fields.insert("vocab_size".into(), json!(VOCAB));
    fs::write(folder.join("config.json"), config.to_string()).expect("a file");

    let file = SafetensorsFile::open(&fixture("llama").join("model.safetensors")).expect("weights");
    let tensors: Vec<TensorSource<'_>> = file
        .names()
        .map(|name| {
            let tensor = file.get(name).expect("a tensor");
            let (mut shape, mut values) = (tensor.shape().to_vec(), tensor.to_f32());
            if shape == [201, WIDTH] {
                shape[0] = VOCAB;
                values.truncate(VOCAB * WIDTH);
            }
            f32s(name, shape, &values)
        })
        .collect();
    write_safetensors(&folder.join("model.safetensors"), tensors, &BTreeMap::new()).expect("weights");

    let mut vocab: serde_json::Map<String, Value> =
        (0..96_u8).map(|i| (char::from(32 + i).to_string(), json!(u32::from(i) + 3))).collect();
    let specials = ["<unk>", "<s>", "</s>"];
    vocab.extend(specials.iter().enumerate().map(|(id, name)| ((*name).to_owned(), json!(id))));
    let added = specials.iter().enumerate().map(|(id, name)| {
        json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": false},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": vocab, "merges": []}
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).expect("a file");
    let names = json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"});
    fs::write(folder.join("special_tokens_map.json"), names.to_string()).expect("a file");
}

fn f32s(name: &str, shape: Vec<usize>, values: &[f32]) -> TensorSource<'static> {
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    TensorSource::new(name, DType::F32, shape, bytes)
}

/// Documents as RedPajama has them, of few words, so that there is something to learn.
fn documents(path: &Path, count: usize) {
    let words = ["stone", "river", "lantern", "meadow", "copper", "violet", "harbour", "thunder"];
    let document = |d: usize| {
        let text: Vec<&str> = (0..40).map(|i| words[(i * i + i / 3 + d) % words.len()]).collect();
        json!({"text": text.join(" "), "meta": {"source": "none", "number": d}}).to_string() + "\n"
    };
    fs::write(path, (0..count).map(document).collect::<String>()).expect("documents");
}

/// Every tensor of a model's folder.
fn weights(folder: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let folder = WeightFolder::open(folder).expect("weights");
    let tensor = |name: &str| {
        let tensor = folder.get(name).expect("a tensor");
        (name.to_owned(), (tensor.shape().to_vec(), tensor.to_f32()))
    };
    folder.names().map(tensor).collect()
}

fn mean(losses: &[f64]) -> f64 {
    losses.iter().sum::<f64>() / losses.len() as f64
}

/// The command of the released README, word by word but for its paths, its number of steps, and the text.
#[test]
fn the_released_command_line_runs() {
    let scratch = Scratch::new();
    // A row of 512 tokens and a landmark after each 63 of them.
    documents(&scratch.path("text.jsonl"), 40);
    let (model, data, out) = (scratch.name("model"), scratch.name("text.jsonl"), scratch.name("out"));
    let arguments = [
        ["--model_name_or_path", &model],
        ["--bf16", "True"],
        ["--output_dir", &out],
        ["--cache_dir", "/hf-cache/"],
        ["--num_train_epochs", "1"],
        ["--per_device_train_batch_size", "2"],
        ["--per_device_eval_batch_size", "2"],
        ["--gradient_accumulation_steps", "8"],
        ["--evaluation_strategy", "no"],
        ["--save_strategy", "steps"],
        ["--save_steps", "2000"],
        ["--save_total_limit", "2"],
        ["--learning_rate", "2e-5"],
        ["--weight_decay", "0.1"],
        ["--warmup_ratio", "0.03"],
        ["--lr_scheduler_type", "cosine"],
        ["--logging_steps", "1"],
        ["--fsdp", "full_shard auto_wrap"],
        ["--fsdp_transformer_layer_cls_to_wrap", "LlamaDecoderLayer"],
        ["--tf32", "True"],
        ["--max_steps", "2"],
        ["--train_file", &data],
    ];
    let arguments = [&["finetune"][..], arguments.as_flattened()].concat();
    let output = landmark(&arguments);
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    // What means nothing here is said to mean nothing.
    for word in ["--bf16", "--tf32", "--fsdp", "--per_device_eval_batch_size", "step 1: loss", "step 2: loss"]
    {
        assert!(said.contains(word), "{word}: {said}");
    }
    let config = scratch.json("out/config.json");
    assert_eq!(config["mem_freq"], 63);
    assert_eq!(config["train_context_length"], 512);
    assert_eq!(scratch.losses("out").len(), 2);
    // 0.03 · 2 steps, rounded up, go up: the first is at 0.
    let log = scratch.json("out/trainer_state.json");
    assert_eq!(log["log_history"][0]["learning_rate"], 0.0);
    assert_eq!(log["log_history"][1]["learning_rate"], 2e-5);
}

/// Both ways of placing landmarks: the loss falls, and what is left is a model with landmarks and its tokenizer.
#[test]
fn the_loss_falls_and_the_result_is_a_model() {
    let scratch = Scratch::new();
    for (out, flags, in_loss, context) in
        [("tokens", "", true, 28), ("inside", "--use_flash True --gradient_checkpointing True", false, 32)]
    {
        let outcome = scratch.run(out, &format!("--save_steps 8 --save_total_limit 2 {flags}"));
        let losses = scratch.losses(out);
        assert_eq!(losses.len(), 30);
        assert!(mean(&losses[25..]) < 0.75 * mean(&losses[..5]), "{losses:?}");
        let reported = outcome["train_loss"].as_f64().unwrap();
        assert!((reported - mean(&losses)).abs() < 1e-9, "{outcome}");
        assert_eq!(outcome["steps"], 30);

        let config = scratch.json(&format!("{out}/config.json"));
        for (field, value) in [
            ("vocab_size", json!(VOCAB + 2)),
            ("mem_id", json!(VOCAB + 1)),
            ("pad_token_id", json!(VOCAB)),
            ("mem_freq", json!(7)),
            ("train_context_length", json!(context)),
            ("include_landmark_in_loss", json!(in_loss)),
            ("hidden_size", json!(WIDTH)),
        ] {
            assert_eq!(config[field], value, "{out}: {field}");
        }
        let tokenizer = scratch.json(&format!("{out}/tokenizer.json"));
        let added = tokenizer["added_tokens"].as_array().unwrap();
        let id = |name: &str| added.iter().find(|token| token["content"] == name).map(|t| t["id"].clone());
        assert_eq!((id("[PAD]"), id("<landmark>")), (Some(json!(VOCAB)), Some(json!(VOCAB + 1))));

        // The newest two of 8, 16 and 24 are kept, and each is a model, as the result is.
        assert_eq!(scratch.checkpoints(out), [16, 24]);
        assert_eq!(weights(&scratch.path(out))["lm_head.weight"].0, [VOCAB + 2, WIDTH]);
        for folder in [out, &format!("{out}/checkpoint-24")] {
            let answer = scratch.generate(folder, &["--cache-top-k", "1"]);
            assert_eq!(answer["new_tokens"].as_array().unwrap().len(), 12, "{folder}");
        }
        let leftover = |entry: fs::DirEntry| entry.file_name().to_string_lossy().contains("tmp");
        assert!(!fs::read_dir(scratch.path(out)).unwrap().any(|entry| leftover(entry.unwrap())));
    }
    // Computing blocks again in the backward pass changes no bit.
    let again = scratch.run("kept", "--use_flash");
    assert_eq!(again["steps"], 30);
    assert_eq!(weights(&scratch.path("kept")), weights(&scratch.path("inside")));
}

/// A run killed at an arbitrary moment goes on by itself and ends, bit for bit, as one that was left alone; and it refuses
/// to go on as another run.
#[test]
fn a_killed_run_goes_on() {
    let scratch = Scratch::new();
    let lora = "--lora_r 4 --lora_dropout 0.1 --lora_target_modules all-linear";
    for (kind, flags) in [("whole", ""), ("adapters", lora)] {
        let flags = format!("{flags} --max_steps 60 --save_steps 3 --save_total_limit 2 --weight_decay 0.1");
        let (alone, killed) = (format!("{kind}-alone"), format!("{kind}-killed"));
        scratch.run(&alone, &flags);
        let mut child = Command::new(env!("CARGO_BIN_EXE_landmark"))
            .args(scratch.flags(&killed, &flags))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        while scratch.checkpoints(&killed).is_empty() {
            assert!(child.try_wait().expect("a status").is_none(), "it ended before it was killed");
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().expect("a kill");
        assert!(!child.wait().expect("an end").success(), "it was killed");
        assert!(!scratch.path(&killed).join("config.json").exists(), "there is no result yet");

        scratch.refused(
            &killed,
            &format!("{flags} --seed 1"),
            1,
            &["was trained with seed 42, not 1", "checkpoint-"],
        );
        let flags_of_a_longer = flags.replace("60", "61");
        scratch.refused(&killed, &flags_of_a_longer, 1, &["is of a run of 60 steps, not 61"]);
        scratch.run(&killed, &flags);
        assert_eq!(scratch.losses(&killed), scratch.losses(&alone));
        for file in ["model.safetensors", "adapter_model.safetensors", "checkpoint-60/optimizer.safetensors"]
        {
            let read = |out: &str| fs::read(scratch.path(out).join(file)).ok();
            assert_eq!(read(&killed), read(&alone), "{kind}: {file}");
        }
        assert_eq!(scratch.checkpoints(&killed), [57, 60]);
    }
    // Another text is another run.
    documents(&scratch.path("text.jsonl"), 11);
    let flags = "--max_steps 60 --save_steps 3 --save_total_limit 2 --weight_decay 0.1";
    scratch.refused("whole-killed", flags, 1, &["another text", "--overwrite-output-dir"]);
    scratch.run("whole-killed", &format!("{flags} --overwrite_output_dir --max_steps 3"));
    assert_eq!(scratch.checkpoints("whole-killed"), [3]);
}

/// Adapters apart from the model say what the model says into which they are merged.
#[test]
fn adapters_are_used_apart_or_merged() {
    let scratch = Scratch::new();
    let before = weights(&scratch.path("model"));
    for (out, flags) in [
        ("default", "--lora_r 4"),
        (
            "all",
            "--lora_r 3 --lora_alpha 12 --use_rslora --lora_target_modules all-linear --lora_dropout 0.1",
        ),
        ("frozen", "--lora_r 4 --lora_modules_to_save none"),
    ] {
        scratch.run(out, flags);
        let losses = scratch.losses(out);
        assert!(mean(&losses[25..]) < mean(&losses[..5]), "{losses:?}");
        assert!(!scratch.path(out).join("model.safetensors").exists());
        let adapter = Adapter::open(&scratch.path(out)).expect("an adapter");
        assert_eq!(adapter.config().base_model, Some(scratch.name("model")));

        let merged = format!("{out}-merged");
        merge_into(&before, &adapter, &scratch.path(out), &scratch.path(&merged));
        if out != "frozen" {
            let (from, to) = (scratch.name("model"), format!("{out}-converted"));
            let adapter = scratch.name(out);
            result(&["convert", &from, &scratch.name(&to), "--merge-lora", &adapter, "--json", "--quiet"]);
            assert_eq!(weights(&scratch.path(&to)), weights(&scratch.path(&merged)), "{out}");
        }
        let apart = scratch.generate("model", &["--adapter", &scratch.name(out)]);
        let together = scratch.generate(&merged, &[]);
        assert_eq!(apart["new_tokens"], together["new_tokens"], "{out}");
        same_logits(&apart, &together);
        let plain = scratch.generate("model", &["--lm-cache", "none"]);
        assert_ne!(apart["steps"], plain["steps"], "{out}");
        let checkpoint = scratch.path(out).join("checkpoint-30");
        assert!(!checkpoint.exists(), "by default the first is that of step 500");

        refused(
            &["generate", "--model", &scratch.name(out), "--prompt", "a"],
            2,
            &["holds adapters", "--adapter"],
        );
    }
    // An adapter on another model than its own, one that is damaged, none at all.
    let (model, adapter, other) = (scratch.name("model"), scratch.name("all"), fixture("llama_gqa"));
    let on = |model: &str, adapter: &str, said: &[&str]| {
        refused(&["generate", "--model", model, "--adapter", adapter, "--prompt-tokens", "5,6"], 1, said);
    };
    on(text(&other), &adapter, &["belongs to another model than"]);
    on(&model, &scratch.name("nowhere"), &["nowhere", "adapter_config.json"]);
    let file = scratch.path("all").join("adapter_model.safetensors");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    on(&model, &adapter, &["adapter_model.safetensors"]);
    let stranger = [f32s("base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight", vec![1], &[0.0])];
    write_safetensors(&file, stranger, &BTreeMap::new()).unwrap();
    on(&model, &adapter, &["layers.7.self_attn.q_proj.lora_A.weight", "no place"]);
}

/// Writes the model that a base and its adapter make; the base's tables grow as the adapter's do, or by the mean of
/// their rows.
fn merge_into(
    base: &BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    adapter: &Adapter,
    beside: &Path,
    target: &Path,
) {
    fs::create_dir(target).unwrap();
    for name in ["config.json", "tokenizer.json"] {
        fs::copy(beside.join(name), target.join(name)).unwrap();
    }
    let config = adapter.config();
    let rank = config.rank as f64;
    let scale = (config.alpha / if config.rank_stabilised { rank.sqrt() } else { rank }) as f32;
    let tensors = base.iter().map(|(name, (shape, values))| {
        let (mut shape, mut values) = (shape.clone(), values.clone());
        let module = name.strip_suffix(".weight").unwrap();
        let half = |which: &str| adapter.get(&format!("{module}.{which}.weight")).map(|t| t.to_f32());
        if adapter.contains(name) {
            let tensor = adapter.get(name).unwrap();
            (shape, values) = (tensor.shape().to_vec(), tensor.to_f32());
        } else if let (Ok(a), Ok(b)) = (half("lora_A"), half("lora_B")) {
            merge(&mut values, &a, &b, config.rank, scale);
        } else if shape == [VOCAB, WIDTH] {
            let mean = |column: usize| {
                let sum: f64 = values.iter().skip(column).step_by(WIDTH).map(|&x| f64::from(x)).sum();
                (sum / VOCAB as f64) as f32
            };
            let mean: Vec<f32> = (0..WIDTH).map(mean).collect();
            values.extend([&mean[..], &mean[..]].concat());
            shape[0] += 2;
        }
        f32s(name, shape, &values)
    });
    write_safetensors(&target.join("model.safetensors"), tensors.collect::<Vec<_>>(), &BTreeMap::new())
        .unwrap();
}

/// The five best logits of each step agree to 1e-4.
fn same_logits(one: &Value, other: &Value) {
    let steps = |of: &Value| of["steps"].as_array().unwrap().clone();
    for (one, other) in steps(one).iter().zip(steps(other)) {
        let logits = |of: &Value| -> Vec<f64> {
            of["top"].as_array().unwrap().iter().map(|top| top["logit"].as_f64().unwrap()).collect()
        };
        let (one, other) = (logits(one), logits(&other));
        assert!(
            one.len() == 5 && one.iter().zip(&other).all(|(a, b)| (a - b).abs() < 1e-4),
            "{one:?} {other:?}"
        );
    }
}

/// A model that has landmarks is trained on: nothing grows, and other blocks than it has are remarked on.
#[test]
fn a_model_with_landmarks_is_tuned_on() {
    let scratch = Scratch::new();
    scratch.run("first", "--max_steps 3");
    let on = |out: &str, freq: &str| {
        let flags = scratch.flags(out, &format!("--max_steps 2 --mem_freq {freq}"));
        let flags: Vec<String> = flags.into_iter().filter(|flag| flag != "--quiet").collect();
        let first = scratch.name("first");
        let model = scratch.name("model");
        let flags: Vec<&str> =
            flags.iter().map(|flag| if *flag == model { first.as_str() } else { flag.as_str() }).collect();
        let output = landmark(&flags);
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(scratch.json(&format!("{out}/config.json"))["vocab_size"], VOCAB + 2);
        assert_eq!(scratch.json(&format!("{out}/config.json"))["mem_freq"].to_string(), freq);
        stderr(&output)
    };
    assert!(!on("same", "7").contains("warning"), "nothing to remark on");
    let said = on("other", "5");
    assert!(said.contains("trained with blocks of 7 tokens") && said.contains("asks for 5"), "{said}");
}

#[test]
fn what_cannot_be_done_is_said() {
    let scratch = Scratch::new();
    for (flags, said) in [
        ("--use_flash --model_max_length 30", &["--model-max-length", "multiple of --mem-freq 7", "28"][..]),
        ("--lr_scheduler_type polynomial", &["lr-scheduler-type", "polynomial", "cosine"]),
        ("--per_device_train_batch_size 0", &["per-device-train-batch-size"]),
        ("--learning_rate much", &["learning-rate", "much"]),
        ("--evaluation_strategy epoch", &["--evaluation-strategy"]),
        ("--lora_r 4 --lora_target_modules c_attn", &["c_attn", "q_proj"]),
    ] {
        scratch.refused("out", flags, 2, said);
    }
    let model = scratch.name("model");
    let line = ["finetune", "--model_name_or_path", &model, "--output_dir", &scratch.name("out")];
    refused(&line, 2, &["--train-file"]);
    assert!(!scratch.path("out").exists(), "nothing is written before the flags are understood");

    let other = |flag: &str, value: &str, said: &[&str]| {
        let mut flags = scratch.flags("out", "");
        let at = flags.iter().position(|given| given == flag).unwrap();
        flags[at + 1] = value.to_owned();
        refused(&flags.iter().map(String::as_str).collect::<Vec<_>>(), 1, said);
    };
    other("--model_name_or_path", &scratch.name("nowhere"), &["nowhere", "--model-name-or-path"]);
    other("--train_file", &scratch.name("nowhere.jsonl"), &["nowhere.jsonl"]);
    other("--output_dir", "/proc/nowhere", &["/proc/nowhere"]);
    scratch.refused("out", "--lora_r 65", 1, &["rank 65", "64"]);
    scratch.refused("out", "--resume_from_checkpoint nowhere", 1, &["nowhere"]);
    fs::write(scratch.path("text.jsonl"), "{\"text\": \"one\"}\n{\"tekst\": 1}\n").unwrap();
    scratch.refused("out", "", 1, &["text.jsonl", "2", "\"text\""]);
    fs::remove_file(scratch.path("model/tokenizer.json")).unwrap();
    scratch.refused("out", "", 1, &["tokenizer.json", "model"]);
    assert!(scratch.checkpoints("out").is_empty() && !scratch.path("out/config.json").exists());
}
