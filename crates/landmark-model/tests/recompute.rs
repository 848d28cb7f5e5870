//! Activation checkpointing changes the memory of a training step, and nothing else.

use landmark_core::plan::Plan;
use landmark_core::{Cpu, DType, Paging};
use landmark_model::config::{Attention, Biases, Family, Mlp, ModelConfig, Norm, Rotary, Scaling};
use landmark_model::engine::Engine;
use landmark_model::lora::{Lora, Targets, Whole};
use landmark_model::model::{CacheShape, Model, Optimizer, Room};
use landmark_model::reader::{Reader, Training};
use landmark_model::record::{self, Context, Granularity, Pass, Placement, Regularisation, Want};
use pollster::block_on;

const BATCH: usize = 2;
const TOKENS: usize = 17;
const BLOCK: usize = 5;

fn gpt(layers: usize, attention: Attention) -> ModelConfig {
    let mut config = ModelConfig::gpt(40, 16, layers, 2, attention);
    config.landmark_id = 39;
    config.biases = Biases::ALL;
    config
}

fn llama(layers: usize) -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
        kv_heads: 1,
        hidden: 24,
        norm: Norm::Rms(1e-6),
        mlp: Mlp::SwiGlu,
        biases: Biases::NONE,
        tied: false,
        rotary: Rotary { pairs: false, theta: 10_000.0, scaling: Scaling::None },
        ..gpt(layers, Attention::Landmark)
    }
}

fn room() -> Room {
    let training = Some(Optimizer::AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8 });
    Room {
        batch: BATCH,
        tokens: TOKENS,
        logits: 0,
        cache: CacheShape::None,
        training,
        lookups: false,
        compute: DType::F32,
    }
}

fn lora(whole: Whole) -> Lora {
    Lora { rank: 3, alpha: 6.0, dropout: 0.2, rank_stabilised: false, targets: Targets::ALL, whole }
}

/// Loss and all gradients of two micro-batches, every kind of random mask on.
fn gradients(config: &ModelConfig, lora: Option<Lora>, recompute: bool) -> (f64, Vec<Vec<f64>>) {
    let mut engine =
        Engine::with(Cpu::<f64>::new(), config.clone(), room(), lora, Paging::default()).unwrap();
    engine.initialise(3).unwrap();
    // B starts at 0, and then A would have no gradient.
    let adapters = engine.model().weights.adapters.clone();
    for (index, b) in adapters.iter().enumerate().filter(|(_, p)| p.name.contains("lora_B")) {
        let values: Vec<f32> = (0..b.numel()).map(|i| ((i + 7 * index) as f32).sin() * 0.1).collect();
        engine.write(b.tensor, &values).unwrap();
    }
    let tokens: Vec<u32> = (0..(BATCH * TOKENS) as u32)
        .map(|i| if i as usize % TOKENS % BLOCK == BLOCK - 1 { 39 } else { i * i % 37 })
        .collect();
    let targets: Vec<i32> =
        tokens.iter().map(|&t| if t % 7 == 3 { -1 } else { ((t + 1) % 39) as i32 }).collect();
    let mut loss = 0.0;
    for micro in 0..2 {
        let training = Training {
            seed: [1, 2, 3, micro],
            scale: 0.5,
            regularisation: Regularisation { dropout: 0.1, group_dropout: 0.2, gate: 0.3 },
            recompute,
            blocks: Some((BLOCK, vec![0; BATCH])),
            positions: None,
        };
        let mut reader = Reader::new(&mut engine, BATCH, Granularity::PerTokenAndHead, None);
        loss += block_on(reader.learn(&tokens, &targets, training)).unwrap();
    }
    let trained = engine.model().trained.clone();
    let (cpu, arena) = engine.parts();
    (loss, trained.iter().map(|t| cpu.read_f64(arena, t.grad)).collect())
}

#[test]
fn gradients_are_the_same_to_the_last_bit() {
    let head_only = Whole { embedding: false, head: true };
    let both = Whole { embedding: true, head: true };
    for (what, config, lora) in [
        ("GPT", gpt(3, Attention::Landmark), None),
        ("GPT with a context-miss token", gpt(2, Attention::LandmarkWithMiss), None),
        ("LLaMA", llama(3), None),
        ("one block", llama(1), None),
        ("adapters alone", llama(2), Some(lora(Whole::default()))),
        ("adapters and the head", llama(2), Some(lora(head_only))),
        ("adapters, embedding and head", llama(2), Some(lora(both))),
    ] {
        let (kept, again) = (gradients(&config, lora, false), gradients(&config, lora, true));
        assert_eq!(kept.0.to_bits(), again.0.to_bits(), "{what}: the loss");
        for (index, (kept, again)) in kept.1.iter().zip(&again.1).enumerate() {
            assert!(kept.iter().any(|&g| g != 0.0), "{what}: gradient {index} is 0");
            let same = kept.iter().zip(again).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{what}: gradient {index} differs");
        }
    }
}

fn bytes(layers: usize, recompute: bool) -> u64 {
    let model = Model::new(llama(layers), room());
    let regularisation = Regularisation::default();
    let want = Want::Gradients { scale: 1.0, regularisation, recompute };
    let placement = Placement::Regular { block: BLOCK };
    let pass = Pass { batch: BATCH, tokens: TOKENS, placement, context: Context::None, want };
    Plan::new(&record::step(&model, &pass)).bytes()
}

/// What a further block costs: one residual stream, instead of every result that its backward pass reads.
#[test]
fn only_the_streams_between_blocks_are_kept() {
    let rows = (BATCH * TOKENS) as u64;
    let (stream, kv, hidden, heads) = (16, 8, 24, 2);
    assert_eq!(bytes(12, true) - bytes(11, true), 4 * rows * stream);
    // Two streams and two norms of them, q, k, v, the attention's result and its logarithms of sums, gate, up and their
    // product.
    let kept = 4 * stream + stream + 2 * kv + stream + heads + 3 * hidden;
    assert_eq!(bytes(12, false) - bytes(11, false), 4 * rows * kept);
    assert!(bytes(12, true) * 3 < bytes(12, false), "{} and {}", bytes(12, true), bytes(12, false));
}
