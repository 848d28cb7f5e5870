//! Steps that are begun before they are asked for, on a device that answers later.

use landmark_core::{Answer, Backend, Cpu, Elements, Error, Layout, Paging, Program, Result, Tensor};
use landmark_model::config::{Attention, ModelConfig};
use landmark_model::engine::Engine;
use landmark_model::generate::{Generator, Settings};
use landmark_model::memory_reader::Fetched;
use landmark_model::model::CacheShape;
use landmark_model::reader::PredictAt;
use landmark_model::record::Granularity;
use landmark_model::sample::Sampling;
use pollster::block_on;
use std::cell::{Cell, RefCell};
use std::ops::Range;

/// The CPU as a device is: it may be asked for what will be there, and tells of failures when it is read.
#[derive(Default)]
struct Device {
    cpu: Cpu<f64>,
    failure: RefCell<Option<Error>>,
    begun: Cell<usize>,
}

impl Backend for Device {
    type Arena = <Cpu<f64> as Backend>::Arena;
    type Plan = <Cpu<f64> as Backend>::Plan;

    fn allocate_within(&self, layout: &Layout, paging: Paging) -> Result<Self::Arena> {
        self.cpu.allocate_within(layout, paging)
    }
    fn compile(&self, program: &Program, arena: &Self::Arena) -> Result<Self::Plan> {
        self.cpu.compile(program, arena)
    }
    fn write_at(&self, arena: &mut Self::Arena, tensor: Tensor, first: usize, bytes: &[u8]) -> Result<()> {
        self.cpu.write_at(arena, tensor, first, bytes)
    }
    fn run(&self, plan: &mut Self::Plan, arena: &mut Self::Arena) -> Result<()> {
        if let Err(error) = self.cpu.run(plan, arena) {
            self.failure.borrow_mut().get_or_insert(error);
        }
        Ok(())
    }
    async fn read(&self, arena: &Self::Arena, tensor: Tensor) -> Result<Vec<u8>> {
        self.failure.take().map_or(Ok(()), Err)?;
        self.cpu.read(arena, tensor).await
    }
    async fn read_at(&self, arena: &Self::Arena, tensor: Tensor, elements: Range<usize>) -> Result<Vec<u8>> {
        self.failure.take().map_or(Ok(()), Err)?;
        self.cpu.read_at(arena, tensor, elements).await
    }
    fn begin_read(&self, arena: &Self::Arena, wanted: &[Elements]) -> Result<Option<Answer>> {
        self.begun.set(self.begun.get() + 1);
        let mut all = Vec::new();
        for (tensor, elements) in wanted {
            all.extend(block_on(self.cpu.read_at(arena, *tensor, elements.clone()))?);
        }
        Ok(Some(Box::pin(async { Ok(all) })))
    }
}

/// What is asked of a generator.
#[derive(Clone, Copy)]
enum Ask {
    Read(&'static [u32]),
    Tokens(usize),
    Logits,
    Rewind(usize),
}

const BLOCK: usize = 4;

fn settings(predict: PredictAt, lookups: bool) -> Settings {
    Settings {
        sampling: Sampling::default(),
        seed: 1,
        chunk: 6,
        selection: Granularity::PerTokenAndHead,
        miss_cutoff: None,
        predict,
        lookups,
    }
}

fn engine<B: Backend>(backend: B, settings: &Settings, blocks: usize) -> Engine<B> {
    let mut config = ModelConfig::gpt(40, 16, 2, 2, Attention::Landmark);
    (config.landmark_id, config.context) = (39, 20);
    let room = settings.room(&config, CacheShape::Mem { blocks, block: BLOCK, top_k: 2 }, 1);
    let mut engine = Engine::new(backend, config, room).unwrap();
    engine.initialise(3).unwrap();
    // First weights are so small that every token looks like every other.
    for parameter in engine.model().weights.parameters.clone() {
        if parameter.shape.len() == 2 {
            let values: Vec<f32> = parameter.initial(3, 0).iter().map(|x| x * 10.0).collect();
            engine.write(parameter.tensor, &values).unwrap();
        }
    }
    engine
}

/// What a generator gave.
#[derive(Debug, Default, PartialEq)]
struct Given {
    tokens: Vec<u32>,
    logits: Vec<Vec<f32>>,
    /// Of each token, by layer and head.
    lookups: Vec<Vec<Vec<Vec<Fetched>>>>,
}

fn answers<B: Backend>(engine: &mut Engine<B>, settings: &Settings, script: &[Ask]) -> Given {
    let mut generator = Generator::new(engine, settings.clone(), 1).unwrap();
    let mut given = Given::default();
    for ask in script {
        match *ask {
            Ask::Read(prompt) => block_on(generator.read(&[prompt], |_| ())).unwrap(),
            Ask::Tokens(count) => {
                for _ in 0..count {
                    given.tokens.push(block_on(generator.next()).unwrap()[0].unwrap());
                    given.lookups.push(block_on(generator.lookups(0)).unwrap());
                }
            }
            Ask::Logits => given.logits.push(block_on(generator.logits(0)).unwrap()),
            Ask::Rewind(length) => generator.rewind(length),
        }
        given.tokens.push(generator.lengths()[0] as u32);
    }
    given
}

const PROMPT: &[u32] = &[0, 7, 28, 5, 25, 1, 20, 24, 13, 16, 4, 6, 22, 23, 9, 9, 23];

#[test]
fn steps_begun_ahead_change_nothing() {
    use Ask::{Logits, Read, Rewind, Tokens};
    // Longer than the ring, which takes 9 blocks.
    let mut scripts = vec![
        (9, vec![Read(PROMPT), Tokens(60)]),
        (9, vec![Read(PROMPT), Tokens(30), Read(&[3, 1, 4, 1, 5]), Tokens(9), Read(&[2]), Tokens(9)]),
        (30, vec![Read(PROMPT), Tokens(9), Rewind(13), Tokens(0), Read(&[8]), Tokens(12)]),
    ];
    // At every place in a block, and behind a ring that is full.
    for count in 28..28 + 2 * BLOCK {
        scripts.push((9, vec![Read(PROMPT), Tokens(count), Logits, Tokens(7), Logits]));
    }
    let predicted = [PredictAt::LastToken, PredictAt::LastPosition];
    for (predict, lookups) in predicted.into_iter().flat_map(|predict| [(predict, false), (predict, true)]) {
        for (blocks, script) in &scripts {
            let settings = settings(predict, lookups);
            let mut on_device = engine(Device::default(), &settings, *blocks);
            let found = answers(&mut on_device, &settings, script);
            let mut on_cpu = engine(Cpu::<f64>::new(), &settings, *blocks);
            assert_eq!(found, answers(&mut on_cpu, &settings, script));
            assert_eq!(
                found.lookups.iter().any(|layers| layers.iter().flatten().any(|head| !head.is_empty())),
                lookups
            );
            let begun = on_device.parts().0.begun.get();
            assert!(begun > 5, "{begun} steps were begun ahead");
        }
    }
}

/// The step ahead then reads a token that is none. What is told is what happened before.
#[test]
fn logits_that_are_no_numbers_are_told_as_such() {
    let settings = settings(PredictAt::LastToken, false);
    let mut engine = engine(Device::default(), &settings, 9);
    let head = engine.model().weights.head;
    let values = vec![f32::NAN; engine.model().layout.info(head).shape.numel()];
    engine.write(head, &values).unwrap();
    let mut generator = Generator::new(&mut engine, settings, 1).unwrap();
    block_on(generator.read(&[&[5]], |_| ())).unwrap();
    let error = block_on(generator.next()).unwrap_err();
    assert!(error.to_string().contains("not a finite number"), "{error}");
    assert_eq!(generator.engine().parts().0.begun.get(), 1);
}
