//! Whole models on a CUDA device beside the CPU: training steps, and answers out of a landmark memory.
//!
//! Without a device the tests pass and say so, unless `LANDMARK_REQUIRE_GPU` is set. What single ops do is tested in
//! `landmark-cuda`.

use landmark_core::lockstep;
use landmark_core::{Backend, Cpu, DType, Paging};
use landmark_cuda::Cuda;
use landmark_model::config::{Attention, Biases, Family, Mlp, ModelConfig, Norm, Rotary, Scaling};
use landmark_model::engine::Engine;
use landmark_model::generate::{Generator, Settings};
use landmark_model::model::{CacheShape, Optimizer, Room};
use landmark_model::reader::{PredictAt, Reader, Training};
use landmark_model::record::{
    Choice, Context, Granularity, Pass, Placement, Regularisation, Update, Want, step,
};
use landmark_model::sample::Sampling;
use pollster::block_on;

const BATCH: usize = 2;
const TOKENS: usize = 33;
const BLOCK: usize = 8;
const WIDTH: usize = 32;

fn cuda() -> Option<Cuda> {
    match Cuda::new(0) {
        Ok(cuda) => Some(cuda),
        Err(error) => {
            assert!(std::env::var_os("LANDMARK_REQUIRE_GPU").is_none(), "{error}");
            eprintln!("not run: {error}");
            None
        }
    }
}

fn gpt() -> ModelConfig {
    let mut config = ModelConfig::gpt(64, WIDTH, 2, 2, Attention::Landmark);
    config.landmark_id = 63;
    config.biases = Biases::ALL;
    config
}

fn llama() -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
        kv_heads: 1,
        hidden: 48,
        norm: Norm::Rms(1e-6),
        mlp: Mlp::SwiGlu,
        biases: Biases::NONE,
        tied: false,
        rotary: Rotary { pairs: false, theta: 10_000.0, scaling: Scaling::None },
        ..gpt()
    }
}

fn training_room(compute: DType) -> Room {
    let training = Some(Optimizer::AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8 });
    let cache = CacheShape::None;
    Room { batch: BATCH, tokens: TOKENS, logits: 0, cache, training, lookups: false, compute }
}

fn tokens() -> Vec<u32> {
    let token = |i: usize| if i % TOKENS % BLOCK == BLOCK - 1 { 63 } else { (i * i % 61) as u32 };
    (0..BATCH * TOKENS).map(token).collect()
}

/// Losses of some steps.
fn losses<B: Backend>(backend: B, config: &ModelConfig, compute: DType, dropout: f32) -> Vec<f64> {
    let mut engine =
        Engine::with(backend, config.clone(), training_room(compute), None, Paging::default()).unwrap();
    engine.initialise(3).unwrap();
    let tokens = tokens();
    let targets: Vec<i32> = tokens.iter().map(|&t| ((t * 3 + 1) % 61) as i32).collect();
    let step = |t: i32| {
        let training = Training {
            seed: [1, 2, t as u32, 0],
            scale: 1.0,
            regularisation: Regularisation { dropout, ..Regularisation::default() },
            recompute: t > 2,
            blocks: Some((BLOCK, vec![0; BATCH])),
            positions: None,
        };
        let mut reader = Reader::new(&mut engine, BATCH, Granularity::PerTokenAndHead, None);
        let loss = block_on(reader.learn(&tokens, &targets, training)).unwrap();
        let hyper = [1e-2, 1.0 - 0.9_f32.powi(t), 1.0 - 0.95_f32.powi(t)];
        engine.update(&Update { weight_decay: 0.1, max_norm: Some(1.0) }, hyper).unwrap();
        loss
    };
    (1..=4).map(step).collect()
}

#[test]
fn training_follows_the_cpu() {
    let Some(cuda) = cuda() else { return };
    let (single, brain, half) = ((DType::F32, 2e-5), (DType::Bf16, 5e-3), (DType::F16, 2e-3));
    for (what, config, dropout, types) in [
        ("GPT", gpt(), 0.0, &[single, brain, half][..]),
        ("GPT with dropout", gpt(), 0.1, &[single]),
        ("LLaMA", llama(), 0.0, &[single, brain]),
    ] {
        for &(compute, allowed) in types {
            let expected = losses(Cpu::<f32>::new(), &config, compute, dropout);
            let found = losses(cuda.clone(), &config, compute, dropout);
            let worst = expected.iter().zip(&found).map(|(a, b)| ((a - b) / a).abs()).fold(0.0, f64::max);
            assert!(worst < allowed, "{what} in {}: {found:?} instead of {expected:?}", compute.name());
            assert!(expected[3] < expected[0] - 0.05, "{what}: nothing was learned: {expected:?}");
            let again = losses(cuda.clone(), &config, compute, dropout);
            assert_eq!(found, again, "{what} in {}: two runs differ", compute.name());
        }
    }
}

/// Logits of a prompt that is longer than its chunks and of tokens behind it: each time that `every` tokens were chosen.
fn logits<B: Backend>(
    backend: B,
    config: &ModelConfig,
    compute: DType,
    lengths: &[usize],
    every: usize,
) -> Vec<Vec<f32>> {
    let settings = Settings {
        sampling: Sampling::default(),
        seed: 1,
        chunk: 21,
        selection: Granularity::PerTokenAndHead,
        miss_cutoff: None,
        predict: PredictAt::of(config),
        lookups: false,
    };
    // Every block is retrieved: in the first layer all landmarks are one token, so that old blocks are equal to the last
    // bit, and which of them is taken is the backend's business.
    let cache = CacheShape::Mem { blocks: 16, block: BLOCK, top_k: 16 };
    let room = Room { compute, ..settings.room(config, cache, lengths.len()) };
    let mut engine = Engine::with(backend, config.clone(), room, None, Paging::default()).unwrap();
    engine.initialise(5).unwrap();
    let prompts: Vec<Vec<u32>> =
        lengths.iter().map(|&n| (0..n).map(|i| ((i * i + n) % 61) as u32).collect()).collect();
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let mut generator = Generator::new(&mut engine, settings, lengths.len()).unwrap();
    block_on(generator.read(&prompts, |_| ())).unwrap();
    let mut found = Vec::new();
    for _ in 0..12 / every {
        for _ in 0..every {
            block_on(generator.next()).unwrap();
        }
        found.extend((0..lengths.len()).map(|row| block_on(generator.logits(row)).unwrap()));
    }
    found
}

#[test]
fn answers_out_of_a_memory_are_the_cpus() {
    let Some(cuda) = cuda() else { return };
    for (what, config) in [("GPT", gpt()), ("LLaMA", llama())] {
        // Steps are begun ahead until logits are asked for.
        for (lengths, every) in [(&[71][..], 1), (&[71], 12), (&[30, 55], 1)] {
            let expected = logits(Cpu::<f32>::new(), &config, DType::F32, lengths, every);
            let found = logits(cuda.clone(), &config, DType::F32, lengths, every);
            for (step, (e, f)) in expected.iter().zip(&found).enumerate() {
                let size = e.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
                let worst = e.iter().zip(f).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst <= 1e-4 * size, "{what}, prompts {lengths:?}, step {step}: {worst} of {size}");
            }
        }
    }
}

/// Every op of a training step and of a chunk read into a memory, from the oracle's values.
#[test]
fn whole_programs_agree_op_by_op() {
    let Some(cuda) = cuda() else { return };
    for config in [gpt(), llama()] {
        for compute in [DType::F32, DType::Bf16] {
            let regularisation = Regularisation { dropout: 0.1, ..Regularisation::default() };
            let train = Pass {
                batch: BATCH,
                tokens: TOKENS,
                placement: Placement::Regular { block: BLOCK },
                context: Context::None,
                want: Want::Gradients { scale: 1.0, regularisation, recompute: false },
            };
            compare(&cuda, &config, training_room(compute), &train);
            let cache = CacheShape::Mem { blocks: 5, block: BLOCK, top_k: 2 };
            let room = Room { cache, training: None, logits: 1, ..training_room(compute) };
            let choice = Choice { selection: Granularity::PerTokenAndHead, miss_cutoff: None };
            for tokens in [1, 19] {
                let want = Want::Logits { rows: 1 };
                let context = Context::Mem(choice);
                let read = Pass { tokens, context, want, ..train };
                compare(&cuda, &config, room, &read);
            }
        }
    }
}

/// Runs a pass in lockstep, from random weights and a memory that holds something.
fn compare(cuda: &Cuda, config: &ModelConfig, room: Room, pass: &Pass) {
    let mut engine = Engine::with(Cpu::<f32>::new(), config.clone(), room, None, Paging::default()).unwrap();
    engine.initialise(7).unwrap();
    let program = step(engine.model(), pass);
    let layout = engine.model().layout.clone();
    let model_inputs = engine.model().inputs;
    let mut inputs = Vec::new();
    let (cpu, arena) = engine.parts();
    for (i, info) in layout.tensors().iter().enumerate() {
        let tensor = layout.find(&info.name).expect("a tensor of the layout");
        assert_eq!(tensor.index(), i, "two tensors are called {}", info.name);
        let mut bytes = block_on(cpu.read(arena, tensor)).unwrap();
        let is_memory = info.page.is_some() || info.name.contains("landmarks");
        if is_memory {
            let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 40.0;
            let n = info.shape.numel();
            bytes = match info.dtype {
                DType::F32 => (0..n).flat_map(|i| value(i).to_le_bytes()).collect(),
                // Whatever the half type: small numbers of both signs.
                _ => (0..n)
                    .flat_map(|i| (0x3c00_u16 | ((i as u16).wrapping_mul(77) & 0x80ff)).to_le_bytes())
                    .collect(),
            };
        }
        let u32s = |values: Vec<u32>| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let n = info.shape.numel();
        if tensor == model_inputs.tokens {
            bytes = u32s((0..n).map(|i| (i * i % 61) as u32).collect());
        } else if tensor == model_inputs.targets {
            bytes = u32s((0..n).map(|i| (i * 3 % 61) as u32).collect());
        } else if tensor == model_inputs.positions {
            bytes = u32s((0..n).map(|i| (i % pass.tokens) as u32).collect());
        } else if tensor == model_inputs.seed {
            bytes = u32s(vec![4, 5, 6, 0]);
        } else if tensor == model_inputs.lengths {
            bytes = u32s((0..n).map(|i| (29 + 22 * i) as u32).collect());
        } else if tensor == model_inputs.counts {
            bytes = u32s((0..n).map(|i| (pass.tokens - i.min(pass.tokens - 1)) as u32).collect());
        }
        inputs.push((tensor, bytes));
    }
    let allowed = if room.compute == DType::F32 { 2e-5 } else { 1e-2 };
    if let Some(found) = block_on(lockstep::compare(&program, cuda, &inputs, |_| allowed)).unwrap() {
        panic!("{}, {:?} in {}: {found:?}", program.name, config.family, room.compute.name());
    }
}
