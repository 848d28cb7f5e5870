//! Whole models, every op of every step in lockstep with the oracle: GPT and LLaMA, every cache, f32 and both half
//! types.
//!
//! The models run on the CPU through a backend that looks on: whatever program it is asked to run, it first compares
//! op by op between the oracle and wgpu, from the state that the model is in.

use landmark_core::lockstep::compare;
use landmark_core::{Backend, Cpu, DType, Layout, Paging, Program, Result, Tensor};
use landmark_model::config::{Attention, Biases, Family, Mlp, ModelConfig, Norm, Rotary, Scaling};
use landmark_model::engine::Engine;
use landmark_model::generate::{Generator, Settings};
use landmark_model::model::{CacheShape, Room};
use landmark_model::reader::{PredictAt, Reader, laden_length};
use landmark_model::record::Granularity;
use landmark_model::sample::Sampling;
use landmark_tests::{FIXTURE_TOLERANCE, Tensors, assert_close, hugging_face_weights, llama_config};
use landmark_wgpu::{Options, Wgpu};
use pollster::block_on;
use std::cell::Cell;
use std::future::Future;
use std::ops::Range;
use std::sync::OnceLock;

/// The best adapter there is, with kernels whose threads share workgroup memory, and with those whose threads work alone;
/// llvmpipe (Debian's mesa-vulkan-drivers) is enough.
fn devices() -> &'static [Wgpu; 2] {
    static DEVICES: OnceLock<[Wgpu; 2]> = OnceLock::new();
    DEVICES.get_or_init(|| {
        [false, true].map(|alone| {
            let options = Options { threads_alone: Some(alone), ..Options::default() };
            block_on(Wgpu::open(&options)).expect("an adapter")
        })
    })
}

/// The CPU, and wgpu held against it.
struct Watched {
    cpu: Cpu<f32>,
    tolerance: f64,
    compared: Cell<usize>,
}

struct WatchedArena {
    layout: Layout,
    arena: <Cpu<f32> as Backend>::Arena,
}

struct WatchedPlan {
    program: Program,
    plan: <Cpu<f32> as Backend>::Plan,
}

impl Backend for Watched {
    type Arena = WatchedArena;
    type Plan = WatchedPlan;

    fn allocate_within(&self, layout: &Layout, paging: Paging) -> Result<WatchedArena> {
        Ok(WatchedArena { layout: layout.clone(), arena: self.cpu.allocate_within(layout, paging)? })
    }
    fn compile(&self, program: &Program, arena: &WatchedArena) -> Result<WatchedPlan> {
        Ok(WatchedPlan { program: program.clone(), plan: self.cpu.compile(program, &arena.arena)? })
    }
    fn write_at(&self, arena: &mut WatchedArena, tensor: Tensor, first: usize, bytes: &[u8]) -> Result<()> {
        self.cpu.write_at(&mut arena.arena, tensor, first, bytes)
    }
    fn run(&self, plan: &mut WatchedPlan, arena: &mut WatchedArena) -> Result<()> {
        let state = |info: &landmark_core::program::Info| {
            let tensor = arena.layout.find(&info.name).expect("a tensor of the layout");
            Ok((tensor, block_on(self.cpu.read(&arena.arena, tensor))?))
        };
        let inputs = arena.layout.tensors().iter().map(state).collect::<Result<Vec<_>>>()?;
        for device in devices() {
            let divergence = block_on(compare(&plan.program, device, &inputs, |_| self.tolerance))?;
            assert_eq!(divergence, None, "{}", plan.program.name);
        }
        self.compared.set(self.compared.get() + plan.program.ops().len());
        self.cpu.run(&mut plan.plan, &mut arena.arena)
    }
    fn read(&self, arena: &WatchedArena, tensor: Tensor) -> impl Future<Output = Result<Vec<u8>>> {
        self.cpu.read(&arena.arena, tensor)
    }
    fn read_at(
        &self,
        arena: &WatchedArena,
        tensor: Tensor,
        elements: Range<usize>,
    ) -> impl Future<Output = Result<Vec<u8>>> {
        self.cpu.read_at(&arena.arena, tensor, elements)
    }
}

const BATCH: usize = 2;
const BLOCK: usize = 5;
const TOKENS: usize = 12;
const LANDMARK: u32 = 39;

fn gpt(attention: Attention) -> ModelConfig {
    let mut config = ModelConfig::gpt(40, 16, 2, 2, attention);
    config.landmark_id = LANDMARK;
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

/// In f32, reductions of a few hundred terms. Half types: kernels round as the CPU does, once, but from other last bits, so to the next value at worst. That is
/// a unit in the last place of the largest value, or less.
fn allowed(dtype: DType) -> f64 {
    match dtype {
        DType::Bf16 => 1.0 / 128.0,
        DType::F16 => 1.0 / 1024.0,
        _ => 64.0 * f64::from(f32::EPSILON),
    }
}

fn engine(config: &ModelConfig, cache: CacheShape, compute: DType) -> Engine<Watched> {
    let watched = Watched { cpu: Cpu::new(), tolerance: allowed(compute), compared: Cell::new(0) };
    let room = Room {
        batch: BATCH,
        tokens: laden_length(TOKENS, BLOCK),
        logits: 2,
        cache,
        training: None,
        lookups: matches!(cache, CacheShape::Mem { .. }),
        compute,
    };
    let mut engine = Engine::new(watched, config.clone(), room).expect("an engine");
    engine.initialise(3).expect("weights");
    engine
}

fn models() -> [(&'static str, ModelConfig); 4] {
    [
        ("plain GPT", gpt(Attention::Plain)),
        ("GPT", gpt(Attention::Landmark)),
        ("GPT with a context-miss token", gpt(Attention::LandmarkWithMiss)),
        ("LLaMA", llama()),
    ]
}

fn compared(engine: &mut Engine<Watched>) -> usize {
    engine.parts().0.compared.get()
}

#[test]
fn chunks_with_every_cache() {
    for compute in [DType::F32, DType::F16, DType::Bf16] {
        // Accessors differ between the half types, kernels do not.
        let skipped = if compute == DType::Bf16 { 2 } else { 0 };
        for (name, config) in models().into_iter().skip(skipped) {
            let with_memory = config.attention != Attention::Plain;
            // As many blocks are retrieved as there are: which of equal blocks is taken is a backend's business.
            let caches = [
                CacheShape::None,
                CacheShape::Kv { positions: 9 },
                CacheShape::Mem { blocks: 3, block: BLOCK, top_k: 3 },
            ];
            for cache in caches.into_iter().take(if with_memory { 3 } else { 2 }) {
                let is_memory = matches!(cache, CacheShape::Mem { .. });
                let mut engine = engine(&config, cache, compute);
                let mut reader = Reader::new(&mut engine, BATCH, Granularity::PerTokenAndHead, Some(0.05));
                for (chunk, length) in [3, TOKENS, 1, 8].into_iter().enumerate() {
                    let token = |i: usize| {
                        let is_landmark = !is_memory && with_memory && i % 5 == 4;
                        if is_landmark { LANDMARK } else { ((i * i + chunk * 7) % 37) as u32 }
                    };
                    let tokens: Vec<u32> = (0..BATCH * length).map(token).collect();
                    let targets: Vec<i32> = tokens.iter().map(|t| (t * 3 % 37) as i32).collect();
                    block_on(reader.score(&tokens, &targets)).unwrap_or_else(|e| panic!("{name}: {e}"));
                }
                assert!(compared(&mut engine) > 60, "{name}");
            }
        }
    }
}

fn settings(config: &ModelConfig, selection: Granularity, chunk: usize) -> Settings {
    Settings {
        sampling: Sampling::default(),
        seed: 1,
        chunk,
        selection,
        miss_cutoff: None,
        predict: PredictAt::of(config),
        lookups: true,
    }
}

/// Blocks of 4 and chunks of 6 tokens make steps without padding, for which results are undefined.
#[test]
fn prompts_and_generation() {
    for (compute, selection) in [
        (DType::F32, Granularity::PerTokenAndHead),
        (DType::F32, Granularity::MaxOverHeads),
        (DType::F16, Granularity::MaxOverTokens),
    ] {
        for (name, config) in models().into_iter().skip(1) {
            let mut engine = engine(&config, CacheShape::Mem { blocks: 7, block: 4, top_k: 7 }, compute);
            let mut generator =
                Generator::new(&mut engine, settings(&config, selection, 6), BATCH).expect("a generator");
            let prompts = [0, 5].map(|add| (0..12).map(|i| (i * i + add) % 37).collect::<Vec<u32>>());
            block_on(generator.read(&[&prompts[0], &prompts[1]], |_| ()))
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            for _ in 0..5 {
                block_on(generator.next()).unwrap_or_else(|e| panic!("{name}: {e}"));
            }
            assert!(compared(&mut engine) > 60, "{name}");
        }
    }
}

/// Logits of a prompt's last tokens and of what is generated, and what was looked up.
fn generate<B: Backend>(backend: B, config: &ModelConfig, compute: DType) -> Vec<Vec<f32>> {
    let settings = settings(config, Granularity::PerTokenAndHead, 9);
    let cache = CacheShape::Mem { blocks: 7, block: BLOCK, top_k: 7 };
    let room = Room { compute, ..settings.room(config, cache, BATCH) };
    let mut engine = Engine::new(backend, config.clone(), room).expect("an engine");
    engine.initialise(3).expect("weights");
    let mut generator = Generator::new(&mut engine, settings, BATCH).expect("a generator");
    // Rows of different lengths: one is padded.
    let prompts: [Vec<u32>; 2] = [(0..13).map(|i| i * i % 37).collect(), vec![5, 1, 2]];
    block_on(generator.read(&[&prompts[0], &prompts[1]], |_| ())).expect("a prompt");
    let mut found = Vec::new();
    for _ in 0..6 {
        found.extend([0, 1].map(|row| block_on(generator.logits(row)).expect("logits")));
        for row in 0..BATCH {
            let lookups = block_on(generator.lookups(row)).expect("lookups");
            found.push(lookups.into_iter().flatten().flatten().map(|f| f.share + f.block as f32).collect());
        }
        block_on(generator.next()).expect("a token");
    }
    found
}

#[test]
fn rows_of_different_lengths_give_what_they_give_on_the_cpu() {
    for (name, config) in models().into_iter().skip(1) {
        let on_cpu = generate(Cpu::<f32>::new(), &config, DType::F32);
        for device in devices() {
            let found = generate(device.clone(), &config, DType::F32);
            for (cpu, wgpu) in on_cpu.iter().zip(&found) {
                assert_eq!(cpu.len(), wgpu.len(), "{name}");
                let error = cpu.iter().zip(wgpu).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
                let size = cpu.iter().fold(1e-3_f32, |m, x| m.max(x.abs()));
                assert!(error <= 1e-4 * size, "{name}: {error:e} of {size}");
            }
        }
    }
}

/// One text, of which only the tokens are asked for, and the logits at the end: its steps are begun ahead.
fn write<B: Backend>(backend: B, config: &ModelConfig) -> (Vec<u32>, Vec<f32>) {
    let settings = Settings { lookups: false, ..settings(config, Granularity::PerTokenAndHead, 9) };
    let cache = CacheShape::Mem { blocks: 7, block: BLOCK, top_k: 7 };
    let room = settings.room(config, cache, 1);
    let mut engine = Engine::new(backend, config.clone(), room).expect("an engine");
    engine.initialise(3).expect("weights");
    let mut generator = Generator::new(&mut engine, settings, 1).expect("a generator");
    block_on(generator.read(&[&[5, 1, 2]], |_| ())).expect("a prompt");
    let token = |_| block_on(generator.next()).expect("a token")[0].expect("one that is wanted");
    let tokens = (0..2 * BLOCK as u32 + 3).map(token).collect();
    (tokens, block_on(generator.logits(0)).expect("logits"))
}

#[test]
fn steps_begun_ahead_write_what_the_cpu_writes() {
    for (name, config) in models().into_iter().skip(1) {
        let (tokens, on_cpu) = write(Cpu::<f32>::new(), &config);
        for device in devices() {
            let (found, logits) = write(device.clone(), &config);
            assert_eq!(found, tokens, "{name}");
            let error = on_cpu.iter().zip(&logits).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
            let size = on_cpu.iter().fold(1e-3_f32, |m, x| m.max(x.abs()));
            assert!(error <= 1e-4 * size, "{name}: {error:e} of {size}");
        }
    }
}

/// The released LLaMA's logits, with landmarks, without, and with grouped-query heads.
#[test]
fn the_released_logits_are_met() {
    let cases = Tensors::open("llama_cases.safetensors");
    for (name, attention, case) in [
        ("llama", Attention::Landmark, "train"),
        ("llama", Attention::Plain, "plain"),
        ("llama_gqa", Attention::Plain, "gqa"),
    ] {
        let tokens = cases.tokens(&format!("{case}.tokens"));
        let length = tokens.len() / 2;
        let room = Room {
            batch: 2,
            tokens: length,
            logits: length,
            cache: CacheShape::None,
            training: None,
            lookups: false,
            compute: DType::F32,
        };
        for device in devices() {
            let mut engine =
                Engine::new(device.clone(), llama_config(name, attention), room).expect("an engine");
            engine.load(hugging_face_weights(name)).expect("weights");
            let mut reader = Reader::new(&mut engine, 2, Granularity::PerTokenAndHead, None);
            let found = block_on(reader.all_logits(&tokens, length)).expect("logits");
            let found: Vec<f64> = found.into_iter().map(f64::from).collect();
            assert_close(case, &found, &cases.f64(&format!("{case}.logits")), FIXTURE_TOLERANCE);
        }
    }
}
