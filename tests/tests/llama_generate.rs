//! Generation with memory against the released LLaMA: prompts shorter and longer than a chunk and than the memory's
//! reach, k of 1, 3 and 5, a choice per token and head or over tokens.
//!
//! In the first layer every landmark's key is the same, the landmark's embedding turned, and all old blocks stand at
//! one position. Blocks of the prompt have keys that are equal to the last bit, there and here, and ties are settled
//! as `torch.topk` does. Blocks that fill up during generation pass through products of two rows instead of a chunk,
//! which round otherwise: from the step on at which such a block is an old one, the released program's choice between
//! it and the others hangs on the last bit of its library's products, and so may everything after. Up to that step
//! tokens and logits have to be the released ones (ARCHITECTURE.md, "Equal blocks").

use landmark_core::Cpu;
use landmark_core::cpu::Real;
use landmark_model::config::Attention;
use landmark_model::engine::Engine;
use landmark_model::generate::{Generator, Settings, fitting_chunk};
use landmark_model::model::CacheShape;
use landmark_model::reader::PredictAt;
use landmark_model::record::Granularity;
use landmark_model::sample::Sampling;
use landmark_tests::{Tensors, hugging_face_weights, json, llama_config};
use pollster::block_on;

/// Where the released program's two best logits are closer than this, either token will do, and the rest of the
/// case with it.
const DECIDED: f32 = 1e-4;

/// What a case's generation gave: the first step at which another token was chosen though the logits were decided,
/// the largest error of the logits up to there, and the first step that hangs on a last bit.
struct Outcome {
    parted: Option<usize>,
    worst: f32,
    chance: usize,
}

fn run<T: Real>(index: usize, case: &serde_json::Value) -> Outcome {
    let cases = Tensors::open("llama_cases.safetensors");
    let number = |key: &str| case[key].as_u64().expect(key) as usize;
    let top_k = number("cache_top_k");
    let config = llama_config("llama", Attention::Landmark);
    let block = config.mem_freq.expect("mem_freq") + 1;
    let selection = match case["retrieval"].as_str() {
        Some("per_token_and_head") => Granularity::PerTokenAndHead,
        Some("max_over_tokens") => Granularity::MaxOverTokens,
        other => panic!("{other:?}"),
    };
    let settings = Settings {
        sampling: Sampling::default(),
        seed: 1,
        chunk: fitting_chunk(config.context, block, top_k),
        selection,
        miss_cutoff: None,
        predict: PredictAt::of(&config),
        lookups: false,
    };
    let (head_dim, context) = (config.head_dim, config.context);
    let prompt = cases.tokens(&format!("gen.{index}.prompt"));
    assert_eq!(prompt.len(), number("prompt_len"));
    let expected: Vec<u32> = case["new_tokens"]
        .as_array()
        .expect("tokens")
        .iter()
        .map(|t| t.as_u64().expect("id") as u32)
        .collect();
    let logits = cases.f32(&format!("gen.{index}.logits"));
    let blocks = (prompt.len() + expected.len()) / (block - 1) + 1;
    let room = settings.room(&config, CacheShape::Mem { blocks, block, top_k }, 1);
    let mut engine = Engine::new(Cpu::<T>::new(), config, room).expect("an engine");
    engine.load(hugging_face_weights("llama")).expect("weights");
    let mut generator = Generator::new(&mut engine, settings, 1).expect("a generator");
    block_on(generator.read(&[&prompt], |_| ())).expect("a prompt");
    // Block `first` is the first one that fills up during generation; it is old once k blocks follow it.
    let first = prompt.len() / (block - 1);
    let old = ((first + top_k + 1) * (block - 1)).saturating_sub(prompt.len());
    // Products with at least 400 terms leave PyTorch's own loop for the library, which rounds the last columns of a
    // row otherwise where there are 2 or 3 more than a multiple of 4.
    let chance = (0..old).find(|step| {
        let cached = (prompt.len() + step) / (block - 1);
        cached * head_dim >= 400 && cached % 4 >= 2
    });
    let chance = chance.unwrap_or(old);
    // So do products of a whole chunk with fewer than 13 columns (see gpt_fixtures.rs).
    let blocks_of_chunk = context / block - top_k - 1;
    let by_rounding = |c: usize| c < 13 && !c.is_multiple_of(4) && c > top_k + 1;
    let in_prompt = selection == Granularity::PerTokenAndHead
        && (blocks_of_chunk..=first).step_by(blocks_of_chunk).any(by_rounding);
    let chance = if in_prompt { 0 } else { chance };
    let mut worst = 0.0_f32;
    for (step, (&token, logits)) in expected.iter().zip(logits.chunks_exact(201)).enumerate() {
        let found = block_on(generator.next()).expect("a token")[0];
        let size = logits[..200].iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        let ours = block_on(generator.logits(0)).expect("logits");
        let error = ours[..200].iter().zip(logits).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
        if step < chance {
            worst = worst.max(error / size);
        }
        if found != Some(token) {
            let mut sorted = logits[..200].to_vec();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let parted = (sorted[0] - sorted[1] > DECIDED).then_some(step);
            return Outcome { parted, worst, chance };
        }
    }
    Outcome { parted: None, worst, chance }
}

fn all<T: Real>() {
    let cases = json("llama_generate.json");
    let (mut failures, mut whole) = (Vec::new(), 0);
    for (index, case) in cases["cases"].as_array().expect("cases").iter().enumerate() {
        let Outcome { parted, worst, chance } = run::<T>(index, case);
        whole += usize::from(parted.is_none());
        if parted.is_some_and(|step| step < chance) || worst > 1e-4 {
            failures.push(format!(
                "case {index} (prompt {}, k {}, {}): parted at {parted:?}, logits off by {worst:e}",
                case["prompt_len"], case["cache_top_k"], case["retrieval"]
            ));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(whole >= 12, "only {whole} cases are the released ones to the end");
}

#[test]
fn generated_tokens_are_the_released_ones() {
    all::<f32>();
}

#[test]
fn generated_tokens_are_the_released_ones_in_f64() {
    all::<f64>();
}
