//! Fine-tuning takes the steps that Hugging Face's trainer takes: gradients of micro-batches averaged, their norm cut
//! down, weight decay on all but norms, AdamW with its corrections, at the rate of that step. The numbers come from PyTorch
//! and transformers; `scripts/trainer-reference` writes them.

use landmark_core::Cpu;
use landmark_core::cpu::Real;
use landmark_model::batch::{Batch, Batches, NO_LOSS};
use landmark_model::config::Attention;
use landmark_model::engine::Engine;
use landmark_model::model::{CacheShape, Optimizer};
use landmark_model::record::Regularisation;
use landmark_model::schedule::Schedule;
use landmark_model::train::{TrainSettings, Trainer};
use landmark_tests::{FIXTURE_TOLERANCE, Tensors, assert_close, hugging_face_weights, json, llama_config};
use pollster::block_on;
use serde_json::Value;

/// Micro-batches of one row: the first whole, the second with fewer targets.
struct TwoRows {
    tokens: Vec<u32>,
    masked_from: usize,
}

impl Batches for TwoRows {
    fn train_batch(&self, _: u64, _: u64, micro: u32, rows: usize) -> Batch {
        let length = self.tokens.len() / 2;
        let tokens = self.tokens[micro as usize * length..][..length].to_vec();
        let next = tokens.iter().skip(1).enumerate().map(|(t, &next)| {
            let is_masked = micro == 1 && t + 1 >= self.masked_from;
            if is_masked { NO_LOSS } else { next as i32 }
        });
        let targets = next.chain([NO_LOSS]).collect();
        Batch { batch: rows, length, tokens, targets, phases: vec![0; rows] }
    }

    fn block(&self) -> Option<usize> {
        None
    }

    fn landmark(&self) -> u32 {
        0
    }
}

/// A change of the settings.
type Change<'a> = &'a dyn Fn(&mut TrainSettings);

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

/// Losses of the steps, and after the last the values kept of each parameter.
fn train<T: Real>(
    expected: &Value,
    change: impl Fn(&mut TrainSettings),
) -> (Vec<f64>, Vec<(String, Vec<f64>)>) {
    let settings = &expected["settings"];
    let steps = expected["steps"].as_array().expect("steps").len();
    let data = TwoRows {
        tokens: Tensors::open("llama_cases.safetensors").tokens("plain.tokens"),
        masked_from: expected["masked_from"].as_u64().expect("a position") as usize,
    };
    let length = data.tokens.len() / 2;
    let mut how = TrainSettings {
        schedule: Schedule::WarmupCosine {
            max_rate: number(&settings["learning_rate"]),
            warmup_steps: 1,
            total_steps: steps as u64,
            cycles: number(&settings["cycles"]),
        },
        optimizer: Optimizer::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8 },
        weight_decay: number(&settings["weight_decay"]) as f32,
        max_norm: Some(number(&settings["max_grad_norm"]) as f32),
        batch: 1,
        length,
        total_length: length,
        micro_batches: 2,
        mean: true,
        regularisation: Regularisation::default(),
        position_jump: None,
        seed: 0,
        cache: CacheShape::None,
        recompute: false,
    };
    change(&mut how);
    let config = llama_config("llama", Attention::Plain);
    let mut engine = Engine::new(Cpu::<T>::new(), config, how.room()).expect("an engine");
    engine.load(hugging_face_weights("llama")).expect("weights");
    let mut trainer = Trainer::new(engine, how);
    let losses = (0..steps).map(|_| block_on(trainer.step(&data)).expect("a step").loss).collect();
    let weights = trainer.weights();
    let (cpu, arena) = trainer.engine().parts();
    let kept = weights.into_iter().map(|(name, _, tensor)| {
        let values = cpu.read_f64(arena, tensor);
        let count = expected["weights"][&name].as_array().expect("values").len();
        let values = values.iter().step_by((values.len() / count).max(1)).take(count).copied().collect();
        (name, values)
    });
    (losses, kept.collect())
}

fn steps_are_met<T: Real>() {
    let expected = json("llama_trainer.json");
    let (losses, weights) = train::<T>(&expected, |_| {});
    let steps: Vec<f64> =
        expected["steps"].as_array().expect("steps").iter().map(|s| number(&s["loss"])).collect();
    assert_close("losses", &losses, &steps, FIXTURE_TOLERANCE);
    assert_eq!(weights.len(), expected["weights"].as_object().expect("weights").len());
    for (name, values) in weights {
        let expected: Vec<f64> =
            expected["weights"][&name].as_array().expect("values").iter().map(number).collect();
        assert_close(&name, &values, &expected, FIXTURE_TOLERANCE);
    }
}

#[test]
fn steps_of_hugging_faces_trainer_are_met() {
    steps_are_met::<f64>();
    steps_are_met::<f32>();
}

/// What each part of a step is worth: without any of them the weights are others.
#[test]
fn a_step_without_one_of_its_parts_is_seen() {
    let expected = json("llama_trainer.json");
    let (_, right) = train::<f64>(&expected, |_| {});
    let furthest = |change: Change<'_>| {
        let (_, wrong) = train::<f64>(&expected, change);
        let of = |right: &[f64], wrong: &[f64]| {
            let size = right.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
            right.iter().zip(wrong).map(|(r, w)| (r - w).abs() / size).fold(0.0, f64::max)
        };
        right.iter().zip(&wrong).map(|(r, w)| of(&r.1, &w.1)).fold(0.0, f64::max)
    };
    let changes: [(&str, Change<'_>); 4] = [
        ("gradients summed", &|how| how.mean = false),
        ("no clipping", &|how| how.max_norm = None),
        ("no decay", &|how| how.weight_decay = 0.0),
        ("another cosine", &|how| {
            how.schedule =
                Schedule::WarmupCosine { max_rate: 1e-2, warmup_steps: 1, total_steps: 6, cycles: 0.5 };
        }),
    ];
    for (what, change) in changes {
        assert!(furthest(change) > 20.0 * FIXTURE_TOLERANCE, "{what}: {}", furthest(change));
    }
}
