//! A model that computes in a half type: what is stored in which type, and how far it strays from float32.

use landmark_core::{Cpu, DType, Paging};
use landmark_model::config::{Attention, Biases, Family, Mlp, ModelConfig, Norm, Rotary, Scaling};
use landmark_model::engine::Engine;
use landmark_model::lora::{Lora, Targets, Whole};
use landmark_model::model::{CacheShape, Model, Optimizer, Room};
use landmark_model::reader::{Reader, Training};
use landmark_model::record::{Granularity, Regularisation, Update};
use pollster::block_on;

const BATCH: usize = 2;
const TOKENS: usize = 17;
const BLOCK: usize = 5;

fn gpt(attention: Attention) -> ModelConfig {
    let mut config = ModelConfig::gpt(40, 16, 2, 2, attention);
    config.landmark_id = 39;
    config.biases = Biases::ALL;
    config
}

fn llama() -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
        kv_heads: 1,
        hidden: 24,
        norm: Norm::Rms(1e-6),
        mlp: Mlp::SwiGlu,
        biases: Biases::NONE,
        tied: false,
        rotary: Rotary { pairs: false, theta: 10_000.0, scaling: Scaling::None },
        ..gpt(Attention::Landmark)
    }
}

fn lora() -> Lora {
    let whole = Whole { embedding: false, head: true };
    Lora { rank: 3, alpha: 6.0, dropout: 0.0, rank_stabilised: false, targets: Targets::ALL, whole }
}

fn room(compute: DType) -> Room {
    let training = Some(Optimizer::AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8 });
    let cache = CacheShape::None;
    Room { batch: BATCH, tokens: TOKENS, logits: 0, cache, training, lookups: false, compute }
}

/// Losses of some steps, each of one micro-batch.
fn losses(config: &ModelConfig, lora: Option<Lora>, compute: DType, recompute: bool) -> Vec<f64> {
    let mut engine =
        Engine::with(Cpu::<f32>::new(), config.clone(), room(compute), lora, Paging::default()).unwrap();
    engine.initialise(3).unwrap();
    let tokens: Vec<u32> = (0..(BATCH * TOKENS) as u32)
        .map(|i| if i as usize % TOKENS % BLOCK == BLOCK - 1 { 39 } else { i * i % 37 })
        .collect();
    let targets: Vec<i32> = tokens.iter().map(|&t| ((t * 3 + 1) % 37) as i32).collect();
    let step = |t: i32| {
        let training = Training {
            seed: [1, 2, t as u32, 0],
            scale: 1.0,
            regularisation: Regularisation::default(),
            recompute,
            blocks: Some((BLOCK, vec![0; BATCH])),
            positions: None,
        };
        let mut reader = Reader::new(&mut engine, BATCH, Granularity::PerTokenAndHead, None);
        let loss = block_on(reader.learn(&tokens, &targets, training)).unwrap();
        let hyper = [1e-2, 1.0 - 0.9_f32.powi(t), 1.0 - 0.95_f32.powi(t)];
        engine.update(&Update { weight_decay: 0.1, max_norm: Some(1.0) }, hyper).unwrap();
        loss
    };
    (1..=12).map(step).collect()
}

#[test]
fn training_in_half_follows_float32() {
    for (what, config, lora) in [
        ("GPT", gpt(Attention::Landmark), None),
        ("GPT with a context-miss token", gpt(Attention::LandmarkWithMiss), None),
        ("LLaMA", llama(), None),
        ("adapters and the head", llama(), Some(lora())),
    ] {
        let exact = losses(&config, lora, DType::F32, false);
        assert!(exact[11] < exact[0] - 0.05, "{what}: nothing was learned: {exact:?}");
        for compute in [DType::Bf16, DType::F16] {
            let half = losses(&config, lora, compute, false);
            let worst = exact.iter().zip(&half).map(|(a, b)| ((a - b) / a).abs()).fold(0.0, f64::max);
            // 8 bits of a bfloat16 are 0.4 %; without a master, steps of 1 % of a weight would be lost.
            assert!(worst < 5e-3, "{what} in {}: {half:?} instead of {exact:?}", compute.name());
            assert!(worst > 0.0, "{what}: {} computed in float32", compute.name());
            assert_eq!(half, losses(&config, lora, compute, true), "{what}: blocks computed again");
        }
    }
}

/// What is trained has a master in float32 and a copy; what is frozen, or only asked, is in the half type alone.
#[test]
fn only_trained_matrices_have_masters() {
    let of = |lora, training| {
        let room = Room { training, ..room(DType::Bf16) };
        let model = Model::with_adapters(llama(), room, lora);
        let weights = model.weights.parameters.iter().chain(&model.weights.adapters);
        let all: Vec<_> = weights.map(|p| (p.clone(), model.layout.info(p.tensor).dtype)).collect();
        all
    };
    let adam = room(DType::Bf16).training;
    for (parameter, dtype) in of(None, adam) {
        let is_matrix = parameter.shape.len() == 2;
        assert_eq!((dtype, parameter.copy.is_some()), (DType::F32, is_matrix), "{}", parameter.name);
    }
    for (parameter, dtype) in of(Some(lora()), adam) {
        let is_trained = parameter.name.contains("lora_") || parameter.name == "lm_head.weight";
        let is_frozen_matrix = parameter.shape.len() == 2 && !is_trained;
        let expected = if is_frozen_matrix { DType::Bf16 } else { DType::F32 };
        assert_eq!((dtype, parameter.copy.is_some()), (expected, is_trained), "{}", parameter.name);
    }
    for (parameter, dtype) in of(None, None) {
        let expected = if parameter.shape.len() == 2 { DType::Bf16 } else { DType::F32 };
        assert_eq!((dtype, parameter.copy), (expected, None), "{}", parameter.name);
    }
}
