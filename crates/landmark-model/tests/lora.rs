//! Adapters: their gradients against differences, kept apart against merged, and what is left out of training.

use landmark_core::{Cpu, DType, Paging};
use landmark_model::config::{Attention, Biases, Family, Mlp, ModelConfig, Norm, Rotary, Scaling};
use landmark_model::engine::{Engine, Error};
use landmark_model::lora::{Lora, LoraError, TARGETS, Targets, Whole, merge};
use landmark_model::model::{CacheShape, Optimizer, Room};
use landmark_model::reader::{Reader, Training};
use landmark_model::record::{Granularity, Update};
use pollster::block_on;

const TOKENS: [u32; 14] = [3, 1, 4, 11, 5, 9, 2, 6, 5, 3, 11, 5, 8, 9];
const TARGETS_OF: [i32; 14] = [1, 4, -1, 5, 9, 2, 6, 5, 3, -1, 5, 8, 9, 7];

fn llama() -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
        kv_heads: 1,
        hidden: 10,
        norm: Norm::Rms(1e-6),
        mlp: Mlp::SwiGlu,
        biases: Biases::NONE,
        tied: false,
        rotary: Rotary { pairs: false, theta: 10_000.0, scaling: Scaling::None },
        landmark_id: 11,
        ..ModelConfig::gpt(12, 8, 2, 2, Attention::Landmark)
    }
}

fn lora(targets: Targets) -> Lora {
    Lora { rank: 2, alpha: 3.0, dropout: 0.25, rank_stabilised: false, targets, whole: Whole::default() }
}

fn engine(lora: Option<Lora>, training: bool) -> Engine<Cpu<f64>> {
    let training = training.then_some(Optimizer::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8 });
    let room = Room {
        batch: 1,
        tokens: 14,
        logits: 14,
        cache: CacheShape::None,
        training,
        lookups: false,
        compute: DType::F32,
    };
    let mut engine = Engine::with(Cpu::<f64>::new(), llama(), room, lora, Paging::default()).unwrap();
    engine.initialise(5).unwrap();
    let adapters = engine.model().weights.adapters.clone();
    for (index, p) in adapters.iter().enumerate() {
        let values: Vec<f32> = (0..p.numel()).map(|i| ((3 * i + 5 * index) as f32).sin() * 0.3).collect();
        engine.write(p.tensor, &values).unwrap();
    }
    engine
}

fn loss(engine: &mut Engine<Cpu<f64>>, scale: f32) -> f64 {
    let training = Training { seed: [1, 2, 3, 0], scale, ..Training::default() };
    let mut reader = Reader::new(engine, 1, Granularity::PerTokenAndHead, None);
    block_on(reader.learn(&TOKENS, &TARGETS_OF, training)).unwrap();
    let loss = engine.model().inputs.loss;
    let (cpu, arena) = engine.parts();
    cpu.read_f64(arena, loss)[0]
}

/// Central differences in f64. Weights are about 0.02, on which norms act: h = 1e-6 is a relative step of 5e-5, so
/// truncation is some 1e-9 of a gradient, and rounding 2^-53 / h = 1e-10.
#[test]
fn gradients_agree_with_differences() {
    let whole = Whole { embedding: true, head: true };
    let mut engine = engine(Some(Lora { whole, ..lora(Targets::ALL) }), true);
    loss(&mut engine, 1.0);
    let trained = engine.model().trained.clone();
    let names: Vec<String> = engine.model().trained_parameters().map(|p| p.name.clone()).collect();
    assert_eq!(names.len(), 2 * 7 * 2 + 2);
    let (cpu, arena) = engine.parts();
    let gradients: Vec<Vec<f64>> = trained.iter().map(|t| cpu.read_f64(arena, t.grad)).collect();
    for ((name, t), gradient) in names.iter().zip(&trained).zip(&gradients) {
        let (cpu, arena) = engine.parts();
        let at = cpu.read_f64(arena, t.param);
        let largest = gradient.iter().fold(0.0_f64, |m, g| m.max(g.abs()));
        assert!(largest > 1e-5, "{name} has no gradient");
        for element in (0..at.len()).step_by(3) {
            let mut value = |step: f64| {
                let mut moved = at.clone();
                moved[element] += step;
                let (cpu, arena) = engine.parts();
                cpu.write_f64(arena, t.param, &moved).unwrap();
                loss(&mut engine, 1.0)
            };
            let difference = (value(1e-6) - value(-1e-6)) / 2e-6;
            let error = (gradient[element] - difference).abs();
            assert!(
                error < 1e-6 * largest.max(1e-2),
                "{name}[{element}]: {} and {difference}",
                gradient[element]
            );
        }
        let (cpu, arena) = engine.parts();
        cpu.write_f64(arena, t.param, &at).unwrap();
    }
}

fn logits(engine: &mut Engine<Cpu<f64>>) -> Vec<f32> {
    let mut reader = Reader::new(engine, 1, Granularity::PerTokenAndHead, None);
    block_on(reader.all_logits(&TOKENS, 14)).unwrap()
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |m, (a, b)| m.max((a - b).abs()))
}

/// Merged weights are rounded to f32 once: logits of size 1 agree to some 1e-6.
#[test]
fn merged_and_apart_give_the_same_logits() {
    for rank_stabilised in [false, true] {
        let lora = Lora { rank_stabilised, ..lora(Targets::ALL) };
        let mut apart = engine(Some(lora), false);
        let (mut plain, mut merged) = (engine(None, false), engine(None, false));
        let adapters = apart.model().weights.adapters.clone();
        for pair in adapters.chunks_exact(2) {
            let base = pair[0].name.replace("lora_A.weight", "weight");
            let parameters = merged.model().weights.parameters.clone();
            let parameter = parameters.iter().find(|p| p.name == base).unwrap();
            let [a, b] = [0, 1].map(|i| block_on(apart.read::<f32>(pair[i].tensor)).unwrap());
            let mut weight = block_on(merged.read::<f32>(parameter.tensor)).unwrap();
            merge(&mut weight, &a, &b, lora.rank, lora.scale());
            merged.write(parameter.tensor, &weight).unwrap();
        }
        let [apart, plain, merged] = [&mut apart, &mut plain, &mut merged].map(logits);
        assert!(worst(&apart, &merged) < 1e-5, "{}", worst(&apart, &merged));
        assert!(worst(&apart, &plain) > 1e-2, "the adapters do something");
    }
}

/// 2 x 2, rank 1, worked by hand.
#[test]
fn merging_is_worked_by_hand() {
    let mut weight = [1.0, 2.0, 3.0, 4.0];
    merge(&mut weight, &[5.0, 6.0], &[7.0, 8.0], 1, 0.5);
    assert_eq!(weight, [1.0 + 17.5, 2.0 + 21.0, 3.0 + 20.0, 4.0 + 24.0]);
    let lora = Lora { rank: 16, alpha: 8.0, ..lora(Targets::ALL) };
    assert_eq!(lora.scale(), 0.5);
    assert_eq!(Lora { rank_stabilised: true, ..lora }.scale(), 2.0);
}

/// Adapters as they begin change nothing.
#[test]
fn fresh_adapters_change_nothing() {
    let mut fresh = engine(Some(lora(Targets::ALL)), false);
    fresh.initialise(5).unwrap();
    assert_eq!(logits(&mut fresh), logits(&mut engine(None, false)));
    let adapters = fresh.model().weights.adapters.clone();
    let a = block_on(fresh.read::<f32>(adapters[0].tensor)).unwrap();
    let bound = 1.0 / 8.0_f32.sqrt();
    assert!(a.iter().all(|x| x.abs() <= bound) && a.iter().any(|x| x.abs() > 0.5 * bound), "{a:?}");
}

/// The base has neither gradients nor state, and an update leaves it as it was.
#[test]
fn the_base_is_frozen() {
    let targets = Targets::named(["q_proj", "v_proj"]).unwrap();
    let mut engine = engine(Some(lora(targets)), true);
    let model = engine.model();
    assert_eq!(model.trained_parameters().count(), 2 * 2 * 2);
    assert!(model.trained_parameters().all(|p| p.name.contains("lora_")));
    let gradients = model.layout.tensors().iter().filter(|t| t.name.starts_with("grad.")).count();
    assert_eq!(gradients, 8);
    let base: Vec<_> = model.weights.parameters.iter().map(|p| p.tensor).collect();
    let tuned: Vec<_> = model.weights.adapters.iter().map(|p| p.tensor).collect();
    let values = |engine: &mut Engine<Cpu<f64>>, tensors: &[_]| {
        let (cpu, arena) = engine.parts();
        tensors.iter().map(|&t| cpu.read_f64(arena, t)).collect::<Vec<_>>()
    };
    let before = (values(&mut engine, &base), values(&mut engine, &tuned));
    loss(&mut engine, 1.0);
    let update = Update { weight_decay: 0.1, max_norm: Some(1.0) };
    engine.update(&update, [0.01, 0.1, 0.001]).unwrap();
    assert_eq!(values(&mut engine, &base), before.0);
    assert!(values(&mut engine, &tuned).iter().zip(&before.1).all(|(now, before)| now != before));
}

#[test]
fn impossible_adapters_are_refused() {
    let refused = |lora: Lora, config: ModelConfig| {
        let room = Room {
            batch: 1,
            tokens: 4,
            logits: 0,
            cache: CacheShape::None,
            training: None,
            lookups: false,
            compute: DType::F32,
        };
        match Engine::with(Cpu::<f32>::new(), config, room, Some(lora), Paging::default()) {
            Err(Error::Lora(error)) => error,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("accepted"),
        }
    };
    let good = lora(Targets::ALL);
    assert_eq!(refused(Lora { rank: 0, ..good }, llama()), LoraError::Rank { rank: 0, largest: 8 });
    assert!(refused(Lora { alpha: f64::NAN, ..good }, llama()).to_string().contains("lora_alpha"));
    assert_eq!(refused(Lora { dropout: 1.0, ..good }, llama()), LoraError::Dropout(1.0));
    assert_eq!(refused(Lora { targets: Targets::default(), ..good }, llama()), LoraError::Nothing);
    assert_eq!(refused(good, ModelConfig::gpt(12, 8, 2, 2, Attention::Plain)), LoraError::Family);
}

#[test]
fn layers_go_by_their_names() {
    assert_eq!(Targets::named(["all-linear"]).unwrap().names(), TARGETS);
    let two = Targets::named(["v_proj", "q_proj"]).unwrap();
    assert_eq!(two.names(), ["q_proj", "v_proj"]);
    assert!(two.adapts("model.layers.0.self_attn.q_proj") && !two.adapts("model.layers.0.self_attn.k_proj"));
    assert_eq!(Targets::named(["lm_head"]), Err(LoraError::Target("lm_head".into())));
    assert_eq!(Targets::named([]), Err(LoraError::Nothing));
    assert_eq!(Whole::named(["lm_head"]).unwrap().names(), ["lm_head"]);
    assert_eq!(Whole::named(["norm"]), Err(LoraError::Whole("norm".into())));
}
