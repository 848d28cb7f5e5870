//! Attention over a memory, of few queries and of many, against the oracle: shapes that every path of it has to serve.

mod common;

use common::{compare_on_all, device, tolerance};
use landmark_core::lockstep::compare;
use landmark_core::ops::{
    Heads, LandmarkScores, MemoryShape, NO_BLOCK, Origin, RetrievalAttention, RopeStyle,
};
use landmark_core::testing::{f32_bytes, float_bytes, normals, u32_bytes};
use landmark_core::{Cols, DType, Layout, Program, Recorder, Tensor};
use landmark_wgpu::{Options, Wgpu};
use std::collections::BTreeSet;

/// Attention of a chunk over a memory whose rows have these lengths.
#[derive(Clone, Debug)]
struct Step {
    memory: MemoryShape,
    heads: usize,
    style: RopeStyle,
    lengths: Vec<usize>,
    tokens: usize,
    /// Types of the rings, and of projections and result.
    rings: DType,
    projections: DType,
    chooses: bool,
}

impl Step {
    /// The program, with inputs, and the largest of its tensors but the rings.
    fn record(&self) -> (Program, Vec<(Tensor, Vec<u8>)>, usize) {
        let (m, mut layout) = (self.memory, Layout::new());
        let (q_width, k_width) = (self.heads * m.head_dim, m.kv_heads * m.head_dim);
        let width = q_width + 2 * k_width;
        let qkv = layout.add("qkv", self.projections, [m.batch, self.tokens, width]);
        let ring = [m.batch, m.slots(), m.kv_heads, m.block, m.head_dim];
        let [keys, values] =
            ["keys", "values"].map(|name| layout.add_paged(name, self.rings, ring, m.page()));
        let lengths = layout.add("lengths", DType::U32, [m.batch]);
        let frequencies = layout.add("frequencies", DType::F32, [m.head_dim / 2]);
        let of_choice = [m.batch, self.heads, self.tokens, m.top_k];
        let chosen = layout.add("chosen", DType::U32, of_choice);
        let shares = layout.add("shares", DType::F32, of_choice);
        let out = layout.add("out", self.projections, [m.batch, self.tokens, q_width]);
        let mut r = Recorder::new(format!("{self:?}"), &layout);
        let cols = |start, width| Cols { tensor: qkv, start, width };
        let (queries, head_dim, kv_heads) = (self.tokens, m.head_dim, m.kv_heads);
        r.push(RetrievalAttention {
            memory: m,
            heads: Heads { batch: m.batch, queries, keys: queries, heads: self.heads, kv_heads, head_dim },
            q: cols(0, q_width),
            k: cols(q_width, k_width),
            v: cols(q_width + k_width, k_width),
            keys,
            values,
            lengths,
            chosen: self.chooses.then_some(chosen),
            frequencies,
            style: self.style,
            miss: false,
            miss_cutoff: None,
            shares: self.chooses.then_some(shares),
            out,
        });
        let numel: usize = ring.iter().product();
        let stored: Vec<u32> = self.lengths.iter().map(|&n| n as u32).collect();
        let turns: Vec<f64> =
            (0..head_dim / 2).map(|i| 10_000_f64.powf(-2.0 * i as f64 / head_dim as f64)).collect();
        let inputs = vec![
            (qkv, float_bytes(self.projections, &normals(1, m.batch * self.tokens * width))),
            (keys, float_bytes(self.rings, &normals(2, numel))),
            (values, float_bytes(self.rings, &normals(3, numel))),
            (lengths, u32_bytes(&stored)),
            (frequencies, f32_bytes(&turns)),
            (chosen, u32_bytes(&self.choice())),
        ];
        let others = [qkv, chosen, out].map(|tensor| layout.info(tensor).bytes());
        (r.finish(), inputs, others.into_iter().max().unwrap_or(0))
    }

    /// Blocks that each query might have chosen, in time order.
    fn choice(&self) -> Vec<u32> {
        let m = &self.memory;
        let mut all = Vec::new();
        for i in 0..m.batch * self.heads * self.tokens {
            let state = m.state(self.lengths[i / self.tokens / self.heads]);
            let mut some: Vec<u32> =
                (0..state.retrieved).map(|s| ((i * 7 + s) % state.cached) as u32).collect();
            some.sort_unstable();
            some.resize(m.top_k, NO_BLOCK);
            all.extend(some);
        }
        all
    }
}

fn shape(
    batch: usize,
    blocks: usize,
    block: usize,
    top_k: usize,
    kv_heads: usize,
    head_dim: usize,
) -> MemoryShape {
    MemoryShape { batch, blocks, block, top_k, kv_heads, head_dim, origin: Origin::BlocksRetrieved }
}

fn steps() -> Vec<Step> {
    use RopeStyle::{Halves, Pairs};
    let base = Step {
        memory: shape(1, 12, 64, 5, 1, 128),
        heads: 1,
        style: Halves,
        lengths: vec![64 * 10 + 5],
        tokens: 1,
        rings: DType::F32,
        projections: DType::F32,
        chooses: true,
    };
    let released = |m: MemoryShape| MemoryShape { origin: Origin::BlocksSeen, ..m };
    vec![
        // A step of LLaMA's generation, and a chunk of it that begins inside a block and goes over two ends.
        base.clone(),
        Step { rings: DType::F16, tokens: 139, ..base.clone() },
        // Grouped queries; the ring has come round, an empty memory beside it; a chunk that closes a block.
        Step {
            memory: released(shape(2, 10, 51, 2, 2, 64)),
            heads: 4,
            style: Pairs,
            lengths: vec![51 * 30 + 49, 7],
            tokens: 3,
            rings: DType::F16,
            ..base.clone()
        },
        Step {
            memory: shape(2, 10, 51, 2, 2, 64),
            heads: 4,
            style: Pairs,
            lengths: vec![51 * 30 + 49, 7],
            tokens: 70,
            rings: DType::Bf16,
            ..base.clone()
        },
        // Several blocks end within a few tokens; widths whose last units are not whole.
        Step {
            memory: released(shape(2, 9, 3, 4, 1, 10)),
            heads: 2,
            lengths: vec![3 * 40 + 2, 4],
            tokens: 8,
            ..base.clone()
        },
        Step {
            memory: shape(2, 9, 3, 4, 1, 10),
            heads: 2,
            style: Pairs,
            lengths: vec![3 * 40 + 2, 4],
            tokens: 37,
            ..base.clone()
        },
        // More retrieved than one workgroup takes; the widest heads; more blocks wanted than there are.
        Step { memory: shape(1, 30, 60, 20, 1, 32), lengths: vec![60 * 33 + 59], tokens: 9, ..base.clone() },
        Step { memory: shape(1, 4, 20, 6, 1, 256), lengths: vec![20 * 3 + 7], tokens: 33, ..base.clone() },
        Step { memory: shape(1, 4, 20, 6, 1, 256), lengths: vec![20 * 3 + 7], tokens: 2, ..base.clone() },
        // Long blocks; a landmark as the only query; nothing retrieved.
        Step { memory: shape(1, 3, 200, 2, 1, 40), lengths: vec![200 * 3 + 190], tokens: 20, ..base.clone() },
        Step { memory: shape(1, 3, 200, 2, 1, 40), lengths: vec![200 * 3 + 199], ..base.clone() },
        Step { memory: shape(1, 3, 4, 2, 1, 16), lengths: vec![3], chooses: false, ..base.clone() },
        Step { memory: shape(1, 3, 4, 2, 1, 16), lengths: vec![3], tokens: 40, chooses: false, ..base },
    ]
}

/// Steps that matrix units serve, and of each whether it is worth the time that a software driver takes to compile
/// emulated products.
fn half_steps() -> Vec<(Step, bool)> {
    use RopeStyle::{Halves, Pairs};
    let base = Step {
        memory: shape(1, 12, 64, 5, 1, 128),
        heads: 1,
        style: Halves,
        lengths: vec![64 * 10 + 5],
        tokens: 139,
        rings: DType::F16,
        projections: DType::F16,
        chooses: true,
    };
    let of = |memory, length, tokens| Step { memory, lengths: vec![length], tokens, ..base.clone() };
    vec![
        // Grouped queries; the ring has come round, an empty memory beside it; a chunk that closes a block.
        (
            Step {
                memory: MemoryShape { origin: Origin::BlocksSeen, ..shape(2, 10, 51, 2, 2, 64) },
                heads: 4,
                style: Pairs,
                lengths: vec![51 * 30 + 49, 7],
                tokens: 70,
                ..base.clone()
            },
            true,
        ),
        // Wide heads, and blocks that nobody chose.
        (of(shape(1, 40, 17, 2, 1, 128), 17 * 50 + 16, 40), true),
        // Nothing retrieved, and more landmarks in the chunk than a tile of keys takes.
        (Step { chooses: false, ..of(shape(1, 3, 32, 2, 1, 64), 31, 1100) }, true),
        // Many queries to a block; more blocks wanted than there are; LLaMA's shape.
        (of(shape(1, 3, 32, 1, 1, 64), 32 * 9, 170), false),
        (Step { style: Pairs, ..of(shape(1, 4, 48, 6, 1, 64), 48 * 3, 33) }, false),
        (base, false),
    ]
}

/// Products of halves: weights have 11 bits, and so have keys and queries when they are turned.
fn half_tolerance(_: &str) -> f64 {
    2.0 * 2.0_f64.powi(-11)
}

/// A program that scores the landmarks of a full memory in halves, and its inputs.
fn scores(m: MemoryShape, style: RopeStyle, tokens: usize) -> (Program, Vec<(Tensor, Vec<u8>)>) {
    let (heads, skip) = (2 * m.kv_heads, 1);
    let mut layout = Layout::new();
    let q = layout.add("q", DType::F16, [m.batch, skip + tokens, heads * m.head_dim]);
    let landmarks = layout.add("landmarks", DType::F16, [m.batch, m.kv_heads, m.slots(), m.head_dim]);
    let lengths = layout.add("lengths", DType::U32, [m.batch]);
    let frequencies = layout.add("frequencies", DType::F32, [m.head_dim / 2]);
    let out = layout.add("out", DType::F32, [m.batch, heads, tokens, m.blocks]);
    let mut r = Recorder::new(format!("scores of {m:?}"), &layout);
    let q_cols = Cols { tensor: q, start: 0, width: heads * m.head_dim };
    r.push(LandmarkScores { memory: m, heads, skip, q: q_cols, landmarks, lengths, frequencies, style, out });
    let halves = |seed, shape: &[usize]| float_bytes(DType::F16, &normals(seed, shape.iter().product()));
    let full: Vec<u32> = (0..m.batch).map(|b| (m.block * (m.blocks + 3 * b) + 5 * b) as u32).collect();
    let turns: Vec<f64> =
        (0..m.head_dim / 2).map(|i| 10_000_f64.powf(-2.0 * i as f64 / m.head_dim as f64)).collect();
    let inputs = vec![
        (q, halves(1, &[m.batch, skip + tokens, heads * m.head_dim])),
        (landmarks, halves(2, &[m.batch, m.kv_heads, m.slots(), m.head_dim])),
        (lengths, u32_bytes(&full)),
        (frequencies, f32_bytes(&turns)),
    ];
    (r.finish(), inputs)
}

/// Where there are no matrix units, arithmetic in their place shows all but the units.
#[test]
fn halves_follow_the_oracle_on_matrix_units() {
    let options = Options { emulate_matrix_units: true, ..Options::default() };
    let emulating = pollster::block_on(Wgpu::open(&options)).expect("an adapter");
    let mut programs = Vec::new();
    for (step, is_emulated) in half_steps() {
        let (program, inputs, _) = step.record();
        programs.push((program, inputs, is_emulated));
    }
    for (memory, style, is_emulated) in [
        (shape(2, 70, 64, 5, 1, 64), RopeStyle::Pairs, true),
        (shape(1, 9, 50, 2, 2, 128), RopeStyle::Halves, false),
    ] {
        let (program, inputs) = scores(memory, style, 70);
        programs.push((program, inputs, is_emulated));
    }
    for (program, inputs, is_emulated) in programs {
        let devices = [Some(device()), is_emulated.then_some(&emulating)];
        for device in devices.into_iter().flatten() {
            let found = pollster::block_on(compare(&program, device, &inputs, half_tolerance)).unwrap();
            assert_eq!(found, None, "{}", program.name);
        }
    }
    let mut used = BTreeSet::new();
    for source in emulating.shaders() {
        if source.contains(EMULATED) {
            used.insert(source.lines().next().unwrap_or_default().to_owned());
            check(&source.replace(EMULATED, UNITS));
        }
    }
    assert_eq!(Vec::from_iter(used), ["// attend_blocks", "// attend_chunk", "// score_landmarks"]);
}

const UNITS: &str = include_str!("../src/shaders/matrix_units.wgsl");
const EMULATED: &str = include_str!("../src/shaders/matrix_units_emulated.wgsl");

/// That a shader for matrix units is valid.
fn check(source: &str) {
    let source = format!("enable wgpu_cooperative_matrix;\n{source}");
    let module =
        naga::front::wgsl::parse_str(&source).unwrap_or_else(|e| panic!("{}", e.emit_to_string(&source)));
    let (flags, capabilities) = (naga::valid::ValidationFlags::all(), naga::valid::Capabilities::all());
    naga::valid::Validator::new(flags, capabilities)
        .validate(&module)
        .unwrap_or_else(|e| panic!("{}", e.emit_to_string(&source)));
}

#[test]
fn few_and_many_queries_follow_the_oracle() {
    for step in steps() {
        let (program, inputs, _) = step.record();
        compare_on_all(&program, &inputs);
    }
}

/// The same where a binding holds one head of a ring.
#[test]
fn heads_in_pieces_follow_the_oracle() {
    let mut split = 0;
    for step in steps().into_iter().filter(|step| step.memory.kv_heads > 1) {
        let (program, inputs, largest) = step.record();
        let m = &step.memory;
        let head = m.batch * m.slots() * m.page() * step.rings.size();
        let limit = head.max(largest).next_multiple_of(256);
        if limit >= 2 * head {
            continue;
        }
        split += 1;
        for alone in [false, true] {
            let options = Options {
                largest_binding: Some(limit as u64),
                threads_alone: Some(alone),
                ..Options::default()
            };
            let small = pollster::block_on(Wgpu::open(&options)).expect("an adapter");
            let found = pollster::block_on(compare(&program, &small, &inputs, tolerance)).unwrap();
            assert_eq!(found, None, "{step:?}");
        }
    }
    assert!(split > 0, "no step has rings that large");
}
