//! LLaMA's block against the released program: RMSNorm, SwiGLU, positions on halves, an untied head, and
//! grouped-query heads, trained and run by the code that trains and runs the GPTs.

use landmark_core::cpu::Real;
use landmark_core::{Cpu, DType};
use landmark_model::batch::NO_LOSS;
use landmark_model::config::Attention;
use landmark_model::engine::{Engine, Error};
use landmark_model::model::{CacheShape, Optimizer, Room};
use landmark_model::reader::{Reader, Training};
use landmark_model::record::Granularity;
use landmark_tests::{FIXTURE_TOLERANCE, Tensors, assert_close, hugging_face_weights, json, llama_config};
use pollster::block_on;

fn engine<T: Real>(name: &str, attention: Attention, room: Room) -> Engine<Cpu<T>> {
    let mut engine = Engine::new(Cpu::<T>::new(), llama_config(name, attention), room).expect("an engine");
    engine.load(hugging_face_weights(name)).expect("weights");
    engine
}

fn reader<T: Real>(engine: &mut Engine<Cpu<T>>) -> Reader<'_, Cpu<T>> {
    Reader::new(engine, 2, Granularity::PerTokenAndHead, None)
}

fn room(tokens: usize) -> Room {
    Room {
        batch: 2,
        tokens,
        logits: tokens,
        cache: CacheShape::None,
        training: None,
        lookups: false,
        compute: DType::F32,
    }
}

fn logits_are_met<T: Real>(name: &str, attention: Attention, case: &str) {
    let cases = Tensors::open("llama_cases.safetensors");
    let tokens = cases.tokens(&format!("{case}.tokens"));
    let length = tokens.len() / 2;
    let mut engine = engine::<T>(name, attention, room(length));
    let found = block_on(reader(&mut engine).all_logits(&tokens, length)).expect("logits");
    let found: Vec<f64> = found.into_iter().map(f64::from).collect();
    assert_close(&format!("{case} logits"), &found, &cases.f64(&format!("{case}.logits")), FIXTURE_TOLERANCE);
}

#[test]
fn logits_with_landmarks_are_met() {
    logits_are_met::<f64>("llama", Attention::Landmark, "train");
    logits_are_met::<f32>("llama", Attention::Landmark, "train");
}

#[test]
fn logits_of_plain_attention_are_met() {
    logits_are_met::<f64>("llama", Attention::Plain, "plain");
    logits_are_met::<f32>("llama", Attention::Plain, "plain");
}

#[test]
fn logits_of_grouped_query_heads_are_met() {
    logits_are_met::<f64>("llama_gqa", Attention::Plain, "gqa");
    logits_are_met::<f32>("llama_gqa", Attention::Plain, "gqa");
}

/// The same model in two PyTorch files of half precision: the weights are those of `llama`, each rounded once, and the
/// logits differ by no more than that rounding makes of them.
#[test]
fn logits_of_half_precision_files_are_met() {
    let (mut whole, mut half) = (hugging_face_weights("llama"), hugging_face_weights("llama_bin"));
    let config = llama_config("llama_bin", Attention::Landmark);
    assert_eq!(config, llama_config("llama", Attention::Landmark));
    let cases = Tensors::open("llama_cases.safetensors");
    let tokens = cases.tokens("train.tokens");
    let length = tokens.len() / 2;
    let mut engine = Engine::new(Cpu::<f32>::new(), config, room(length)).expect("an engine");
    let mut largest = 0.0_f32;
    engine
        .load(|name| -> Result<_, Error> {
            let ((shape, exact), (_, rounded)) = (whole(name)?.expect(name), half(name)?.expect(name));
            for (exact, rounded) in exact.iter().zip(&rounded) {
                // 11 significant bits, and below 2^-14 steps of 2^-24.
                let step = (exact.abs() * 2.0_f32.powi(-11)).max(2.0_f32.powi(-25));
                assert!((exact - rounded).abs() <= step, "{name}: {rounded} for {exact}");
                largest = largest.max((exact - rounded).abs());
            }
            Ok(Some((shape, rounded)))
        })
        .expect("weights");
    assert!(largest > 0.0, "the files are compared with themselves");
    let found = block_on(reader(&mut engine).all_logits(&tokens, length)).expect("logits");
    let found: Vec<f64> = found.into_iter().map(f64::from).collect();
    assert_close("half logits", &found, &cases.f64("train.logits"), 2.0_f64.powi(-9));
}

/// The next token everywhere, landmarks included, and nothing at the end of a row
/// (`include_landmark_in_loss = true`).
fn next_tokens(tokens: &[u32], length: usize) -> Vec<i32> {
    let row = |row: &[u32]| row[1..].iter().map(|&id| id as i32).chain([NO_LOSS]).collect::<Vec<_>>();
    tokens.chunks_exact(length).flat_map(row).collect()
}

fn loss_and_gradients<T: Real>(blocks: Option<(usize, Vec<u32>)>) {
    let cases = Tensors::open("llama_cases.safetensors");
    let tokens = cases.tokens("train.tokens");
    let length = tokens.len() / 2;
    let targets = next_tokens(&tokens, length);
    let training = Some(Optimizer::AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8 });
    let mut engine = engine::<T>("llama", Attention::Landmark, Room { training, ..room(length) });

    let one = Training { scale: 1.0, blocks, ..Training::default() };
    let loss = block_on(reader(&mut engine).learn(&tokens, &targets, one)).expect("a loss");
    assert_close("loss", &[loss], &cases.f64("train.loss"), FIXTURE_TOLERANCE);
    let trained = engine.model().trained.clone();
    let parameters = engine.model().weights.parameters.clone();
    for (parameter, trained) in parameters.iter().zip(&trained) {
        let fixture = format!("train.grad.{}", parameter.name);
        let (cpu, arena) = engine.parts();
        let found = cpu.read_f64(arena, trained.grad);
        assert_close(&fixture, &found, &cases.f64(&fixture), FIXTURE_TOLERANCE);
    }
    let fixtures = cases.names().iter().filter(|n| n.starts_with("train.grad.")).count();
    assert_eq!(parameters.len(), fixtures, "every gradient of the fixture is compared");
}

#[test]
fn loss_and_gradients_are_met() {
    loss_and_gradients::<f64>(None);
    loss_and_gradients::<f32>(None);
}

#[test]
fn loss_and_gradients_are_met_with_regular_blocks() {
    let block = json("llama/config.json")["mem_freq"].as_u64().expect("mem_freq") as usize + 1;
    loss_and_gradients::<f32>(Some((block, vec![0, 0])));
}

#[test]
fn a_wrong_configuration_is_seen() {
    // What each part of the configuration is worth: with any of them wrong, the logits are far off.
    let cases = Tensors::open("llama_cases.safetensors");
    let tokens = cases.tokens("gqa.tokens");
    let expected = cases.f64("gqa.logits");
    let right = llama_config("llama_gqa", Attention::Plain);
    let mut wrong = vec![right.clone(); 3];
    wrong[0].rotary.pairs = true;
    wrong[1].rotary.theta = 10_000.0;
    wrong[2].norm = landmark_model::config::Norm::Layer(1e-6);
    for config in wrong {
        let mut engine = Engine::new(Cpu::<f32>::new(), config.clone(), room(50)).expect("an engine");
        engine.load(hugging_face_weights("llama_gqa")).expect("weights");
        let found = block_on(reader(&mut engine).all_logits(&tokens, 50)).expect("logits");
        let size = expected.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
        let error = found.iter().zip(&expected).fold(0.0_f64, |m, (f, e)| m.max((f64::from(*f) - e).abs()));
        assert!(error > 10.0 * FIXTURE_TOLERANCE * size, "{config:?} gives the right logits: {error}");
    }
}
