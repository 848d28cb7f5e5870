//! The landmark memory on a device: the core's table of cases chunk after chunk, and steps in half types, from one token
//! to a long chunk, against the oracle.

mod common;

use common::{Case, FLOATS, bytes, cuda, fits, values};
use landmark_core::ops::{
    AppendKv, CopyRows, Heads, LandmarkScores, MemoryShape, Op, Origin, RetrievalAttention, Rope, RopeStyle,
    SelectBlocks, Selection,
};
use landmark_core::testing::memory::{MemoryCase, cases};
use landmark_core::testing::naive::allowed;
use landmark_core::testing::{alter, normals, now, worst};
use landmark_core::{Backend, Cols, Cpu, DType, Error, Layout, PageId, PageStore, Paging, Recorder, plant};
use landmark_cuda::Cuda;
use std::sync::Arc;

/// The largest error of the device in any chunk, over what is allowed: twice that of the CPU in f32.
fn run(cuda: &Cuda, case: &MemoryCase, paging: &Paging, bug: impl Fn(&mut Op) -> bool) -> f64 {
    let cpu = Cpu::<f32>::new();
    let (tensors, mut histories) = (case.tensors(), case.histories());
    let mut naive = cpu.allocate(&tensors.layout).unwrap();
    let mut arena = cuda.allocate_within(&tensors.layout, paging.clone()).unwrap();
    for (tensor, bytes) in case.prepare(&tensors, &histories) {
        cpu.write(&mut naive, tensor, &bytes).unwrap();
        cuda.write(&mut arena, tensor, &bytes).unwrap();
    }
    let mut largest = 0.0_f64;
    for index in 0..case.chunks.len() {
        let chunk = case.chunk(index);
        for (tensor, bytes) in case.feed(&tensors, &histories, &chunk) {
            cpu.write(&mut naive, tensor, &bytes).unwrap();
            cuda.write(&mut arena, tensor, &bytes).unwrap();
        }
        let mut program = case.record(&tensors, chunk.tokens);
        cpu.run(&mut cpu.compile(&program, &naive).unwrap(), &mut naive).unwrap();
        alter(&mut program, &bug);
        cuda.run(&mut cuda.compile(&program, &arena).unwrap(), &mut arena).unwrap();
        let expected = case.naive(&histories, &chunk);
        let found = values(DType::F32, &now(cuda.read(&arena, tensors.out)).unwrap());
        let error = worst(&expected, &found[..expected.len()]);
        let permitted =
            allowed(&expected, &cpu.read_f64(&naive, tensors.out)[..expected.len()], 2.0_f64.powi(-24));
        let ratio = error / permitted;
        if !fits(ratio) {
            println!(
                "{}, chunk {index} of {}: error {error:e}, allowed {permitted:e}",
                case.name, chunk.tokens
            );
        }
        largest = if ratio > largest || ratio.is_nan() { ratio } else { largest };
        case.remember(&mut histories, &chunk);
    }
    largest
}

#[test]
fn every_chunk_of_every_case_agrees_with_the_definition() {
    let Some(cuda) = cuda() else { return };
    let worst: Vec<_> = cases()
        .iter()
        .map(|case| (case.name, run(cuda, case, &Paging::default(), |_| false)))
        .filter(|(_, ratio)| !fits(*ratio))
        .collect();
    assert!(worst.is_empty(), "times the error that is allowed: {worst:?}");
}

#[test]
fn planted_bugs_are_found() {
    let Some(cuda) = cuda() else { return };
    let case = cases().into_iter().find(|c| c.name.starts_with("each token and head")).unwrap();
    let find = |bug: &dyn Fn(&mut Op) -> bool| run(cuda, &case, &Paging::default(), bug);
    assert!(!fits(find(&plant!(Op::LandmarkScores(op) => op.style = RopeStyle::Halves))));
    assert!(!fits(find(&plant!(Op::SelectBlocks(op) => op.memory.block = 2))));
    assert!(!fits(find(&plant!(Op::RetrievalAttention(op) => op.memory.origin = Origin::BlocksRetrieved))));
    assert!(!fits(find(&plant!(Op::AppendKv(op) => op.memory.block = 2))));
}

/// A step over a memory that is filled with normal numbers.
#[derive(Clone, Debug)]
struct Step {
    memory: MemoryShape,
    heads: usize,
    style: RopeStyle,
    lengths: Vec<usize>,
    counts: Vec<usize>,
    tokens: usize,
    shares: bool,
}

impl Step {
    fn position(&self, b: usize, t: usize) -> i64 {
        let state = self.memory.state(self.lengths[b]);
        (state.start + state.unfinished + t) as i64
    }
}

fn frequency(i: usize, d: usize) -> f64 {
    f64::from(10_000_f64.powf(-2.0 * i as f64 / d as f64) as f32)
}

/// Turns one head.
fn turned(head: &[f64], position: i64, style: RopeStyle) -> Vec<f64> {
    let (d, mut out) = (head.len(), head.to_vec());
    for i in 0..d / 2 {
        let (a, b) = if style == RopeStyle::Pairs { (2 * i, 2 * i + 1) } else { (i, i + d / 2) };
        let (sin, cos) = (position as f64 * frequency(i, d)).sin_cos();
        (out[a], out[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
    }
    out
}

/// Queries, keys and values in one tensor `(B, T, (H + 2 Hkv) D)`, with queries whose choice is clear: rounding may not
/// change which blocks are the best, since then nothing could be compared.
fn clear_queries(step: &Step, dtype: DType, landmarks: &[f64]) -> Vec<f64> {
    let m = &step.memory;
    let (d, width) = (m.head_dim, (step.heads + 2 * m.kv_heads) * m.head_dim);
    let rounded = |x: &[f64]| values(dtype, &bytes(dtype, x));
    let mut qkv = rounded(&normals(99, m.batch * step.tokens * width));
    let mut salt = 5000;
    for b in 0..m.batch {
        let state = m.state(step.lengths[b]);
        for h in 0..step.heads {
            let kv = h / (step.heads / m.kv_heads);
            let keys: Vec<Vec<f64>> = (0..state.cached)
                .map(|j| {
                    let at = ((b * m.kv_heads + kv) * m.slots() + m.slot(&state, j)) * d;
                    let position = (m.index(&state, j) * m.block + m.block - 1) as i64;
                    turned(&landmarks[at..][..d], position, step.style)
                })
                .collect();
            for t in 0..step.tokens {
                let at = (b * step.tokens + t) * width + h * d;
                loop {
                    let q = turned(&qkv[at..][..d], step.position(b, t), step.style);
                    let score = |key: &Vec<f64>| key.iter().zip(&q).map(|(x, y)| x * y).sum::<f64>();
                    let mut scores: Vec<f64> = keys.iter().map(score).collect();
                    scores.sort_by(|x, y| y.total_cmp(x));
                    let margin = match scores.get(state.retrieved.wrapping_sub(1)..=state.retrieved) {
                        Some([last, next]) => (last - next) / (d as f64).sqrt(),
                        _ => f64::INFINITY,
                    };
                    if margin > 16.0 * common::rounding(dtype) {
                        break;
                    }
                    salt += 1;
                    qkv[at..][..d].copy_from_slice(&rounded(&normals(salt, d)));
                }
            }
        }
    }
    qkv
}

/// The case of a step whose inputs are exact in `dtype`, held in tensors of type `held`.
fn step_case(step: &Step, dtype: DType, held: DType) -> (Case, impl Fn(&mut Recorder) + use<>) {
    let (step, m) = (step.clone(), step.memory);
    let d = m.head_dim;
    let (q_width, k_width) = (step.heads * d, m.kv_heads * d);
    let mut case = Case::new(format!("{step:?} in {}", dtype.name()));
    let ring = [m.batch, m.slots(), m.kv_heads, m.block, d];
    let numel: usize = ring.iter().product();
    let ring_keys = normals(11, numel);
    let mut marks = vec![0.0; m.batch * m.kv_heads * m.slots() * d];
    for (page, key) in ring_keys.chunks_exact(m.block * d).enumerate() {
        let (b, slot, h) = (page / m.kv_heads / m.slots(), page / m.kv_heads % m.slots(), page % m.kv_heads);
        marks[((b * m.kv_heads + h) * m.slots() + slot) * d..][..d]
            .copy_from_slice(&key[(m.block - 1) * d..]);
    }
    let rounded = |x: &[f64]| values(dtype, &bytes(dtype, x));
    let marks = rounded(&marks);
    let keys = case.holding(held, ring, &rounded(&ring_keys));
    let ring_values = case.holding(held, ring, &rounded(&normals(12, numel)));
    let landmarks = case.holding(held, [m.batch, m.kv_heads, m.slots(), d], &marks);
    let qkv = clear_queries(&step, dtype, &marks);
    let (width, of_qkv) = (q_width + 2 * k_width, [m.batch, step.tokens, q_width + 2 * k_width]);
    let given = case.holding(held, of_qkv, &qkv);
    let places: Vec<f64> =
        (0..m.batch * step.tokens).map(|i| step.position(i / step.tokens, i % step.tokens) as f64).collect();
    let positions = case.holding(DType::I32, [m.batch * step.tokens], &places);
    let numbers = |n: &[usize]| n.iter().map(|&x| x as f64).collect::<Vec<f64>>();
    let lengths = case.holding(DType::U32, [m.batch], &numbers(&step.lengths));
    let counts = case.holding(DType::U32, [m.batch], &numbers(&step.counts));
    let turns: Vec<f64> = (0..d / 2).map(|i| frequency(i, d)).collect();
    let frequencies = case.holding(DType::F32, [d / 2], &turns);
    let out = case.result(held, [m.batch, step.tokens, q_width]);
    let of_choice = [m.batch, step.heads, step.tokens, m.top_k];
    let chosen = case.result(DType::U32, of_choice);
    let shares = step.shares.then(|| case.result(DType::F32, of_choice));
    let record = move |r: &mut Recorder| {
        // As in a model, the projections are scratch: nobody sees whether they were turned in place.
        let qkv = r.scratch("qkv", held, of_qkv);
        let (from, to, rows) = (Cols::all(given, width), Cols::all(qkv, width), step.tokens);
        r.push(CopyRows { from, from_row: 0, to, add: false, to_row: 0, rows });
        let cols = |start, width| Cols { tensor: qkv, start, width };
        let (q, k, v) = (cols(0, q_width), cols(q_width, k_width), cols(q_width + k_width, k_width));
        let turned = Cols::all(r.scratch("k.turned", held, [m.batch, step.tokens, k_width]), k_width);
        let rope =
            |x, out| Rope { x, positions, frequencies, style: step.style, head_dim: d, inverse: false, out };
        r.push(rope(q, q));
        r.push(rope(k, turned));
        let scores = r.scratch("scores", DType::F32, [m.batch, step.heads, step.tokens, m.blocks]);
        let (heads, style) = (step.heads, step.style);
        r.push(LandmarkScores {
            memory: m,
            heads,
            skip: 0,
            q,
            landmarks,
            lengths,
            frequencies,
            style,
            out: scores,
        });
        let selection = Selection::PerTokenAndHead;
        r.push(SelectBlocks { memory: m, selection, scores, lengths, counts, chosen });
        r.push(RetrievalAttention {
            memory: m,
            heads: Heads {
                batch: m.batch,
                queries: step.tokens,
                keys: step.tokens,
                heads,
                kv_heads: m.kv_heads,
                head_dim: d,
            },
            q,
            k: turned,
            v,
            keys,
            values: ring_values,
            lengths,
            chosen: Some(chosen),
            frequencies,
            style,
            miss: false,
            miss_cutoff: None,
            shares,
            out,
        });
        r.push(AppendKv { memory: m, skip: 0, k, v, lengths, counts, keys, values: ring_values, landmarks });
    };
    (case, record)
}

fn shape(
    batch: usize,
    blocks: usize,
    block: usize,
    top_k: usize,
    kv_heads: usize,
    head_dim: usize,
) -> MemoryShape {
    MemoryShape { batch, blocks, block, top_k, kv_heads, head_dim, origin: Origin::BlocksSeen }
}

/// Steps of 1 to 4 tokens: in one launch, where the kernel serves them.
fn short_steps() -> Vec<Step> {
    use RopeStyle::{Halves, Pairs};
    let base = Step {
        memory: shape(1, 12, 64, 5, 2, 128),
        heads: 2,
        style: Halves,
        lengths: vec![64 * 10 + 5],
        counts: vec![1],
        tokens: 1,
        shares: false,
    };
    let retrieved = |m: MemoryShape| MemoryShape { origin: Origin::BlocksRetrieved, ..m };
    vec![
        base.clone(),
        // The ring has come round; an empty memory beside it; padding.
        Step {
            memory: shape(2, 10, 51, 2, 3, 64),
            heads: 3,
            style: Pairs,
            lengths: vec![51 * 30 + 50, 7],
            counts: vec![2, 1],
            tokens: 2,
            shares: true,
        },
        // Grouped queries; a chunk that closes a block and begins the next, over the oldest.
        Step {
            memory: retrieved(shape(2, 7, 16, 3, 2, 64)),
            heads: 4,
            lengths: vec![16 * 12 + 14, 16 * 2],
            counts: vec![4, 3],
            tokens: 4,
            ..base.clone()
        },
        // The same with as many key heads, stored by the same launch.
        Step {
            memory: shape(2, 7, 16, 3, 2, 64),
            lengths: vec![16 * 12 + 14, 16 * 5 + 15],
            counts: vec![4, 4],
            tokens: 4,
            ..base.clone()
        },
        // Clusters of 8 blocks.
        Step {
            memory: retrieved(shape(1, 70, 8, 4, 1, 32)),
            heads: 1,
            style: Pairs,
            lengths: vec![8 * 66 + 6],
            counts: vec![2],
            tokens: 2,
            shares: true,
        },
        // Fewer blocks than are wanted; a landmark as the only query.
        Step { memory: shape(1, 9, 12, 8, 2, 96), lengths: vec![12 * 3 + 11], ..base.clone() },
        Step { memory: shape(1, 9, 12, 8, 2, 96), lengths: vec![0], ..base.clone() },
        // More landmarks than a block of threads compares all with all.
        Step {
            memory: shape(1, 1300, 4, 3, 1, 32),
            heads: 1,
            lengths: vec![4 * 1290 + 2],
            tokens: 2,
            counts: vec![2],
            ..base.clone()
        },
        // A width whose last lanes are idle.
        Step { memory: shape(1, 20, 16, 2, 2, 80), lengths: vec![16 * 18 + 3], style: Pairs, ..base },
    ]
}

/// Chunks for the tensor cores.
fn long_steps() -> Vec<Step> {
    use RopeStyle::{Halves, Pairs};
    let base = Step {
        memory: shape(1, 12, 64, 5, 1, 128),
        heads: 1,
        style: Halves,
        lengths: vec![64 * 10],
        counts: vec![70],
        tokens: 70,
        shares: false,
    };
    vec![
        base.clone(),
        Step {
            memory: shape(2, 6, 51, 2, 1, 64),
            heads: 2,
            style: Pairs,
            lengths: vec![51 * 13 + 50, 7],
            counts: vec![66, 20],
            tokens: 66,
            shares: true,
        },
        Step {
            memory: MemoryShape { origin: Origin::BlocksRetrieved, ..shape(1, 80, 8, 3, 2, 32) },
            heads: 4,
            lengths: vec![8 * 79 + 3],
            counts: vec![40],
            tokens: 40,
            shares: true,
            ..base.clone()
        },
        Step {
            memory: shape(1, 3, 100, 2, 1, 96),
            lengths: vec![150],
            tokens: 130,
            counts: vec![130],
            ..base.clone()
        },
        Step { lengths: vec![0], tokens: 17, counts: vec![17], memory: shape(1, 4, 8, 2, 1, 64), ..base },
    ]
}

/// The largest error of the device over what is allowed: twice that of naive code in the same precision, both against
/// exact arithmetic on the same inputs. What is copied or chosen must be the same.
fn step_error(cuda: &Cuda, step: &Step, dtype: DType, bug: impl Fn(&mut Op) -> bool) -> f64 {
    let (exact, record) = step_case(step, dtype, DType::F32);
    let program = exact.program(record);
    let written = exact.written(&program);
    let oracle = exact.run_cpu::<f64>(&program, &written);
    let (case, record) = step_case(step, dtype, dtype);
    let mut program = case.program(record);
    let naive = case.run_cpu::<f32>(&program, &written);
    alter(&mut program, &bug);
    let [first, second] = case.run_cuda(cuda, &program, &written);
    let mut largest = 0.0_f64;
    for (i, tensor) in written.iter().enumerate() {
        let info = case.layout.info(*tensor);
        assert!(first[i] == second[i], "{}, `{}`: two runs differ", case.name, info.name);
        let found = values(info.dtype, &first[i]);
        let error = worst(&oracle[i], &found);
        // Shares are f32, of scores that are not.
        let unit = if info.dtype.is_float() { common::rounding(dtype) } else { 0.0 };
        let permitted = allowed(&oracle[i], &naive[i], unit / 4.0);
        let ratio = if error == 0.0 { 0.0 } else { error / permitted };
        if !fits(ratio) {
            println!("{}, `{}`: error {error:e}, allowed {permitted:e}", case.name, info.name);
        }
        largest = if ratio > largest || ratio.is_nan() { ratio } else { largest };
    }
    largest
}

fn check_steps(steps: &[Step]) {
    let Some(cuda) = cuda() else { return };
    let mut bad = Vec::new();
    for dtype in FLOATS {
        for step in steps {
            let ratio = step_error(cuda, step, dtype, |_| false);
            if !fits(ratio) {
                bad.push(format!("{ratio} times the error that is allowed: {step:?} in {}", dtype.name()));
            }
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn steps_of_a_few_tokens() {
    check_steps(&short_steps());
}

#[test]
fn long_chunks() {
    check_steps(&long_steps());
}

#[test]
fn a_step_with_a_planted_bug_is_found() {
    let Some(cuda) = cuda() else { return };
    for step in [&short_steps()[0], &long_steps()[0]] {
        // With so few blocks the two origins differ, and so the place of the unfinished one.
        let few = Step { lengths: vec![64 * 2 + 5], ..step.clone() };
        let bug = plant!(Op::RetrievalAttention(op) => op.memory.origin = Origin::BlocksRetrieved);
        assert!(!fits(step_error(cuda, &few, DType::Bf16, bug)));
        let bug = plant!(Op::LandmarkScores(op) => op.style = RopeStyle::Pairs);
        assert!(!fits(step_error(cuda, step, DType::Bf16, bug)));
    }
}

/// Bits of the results of every chunk, twice over: the second time the memory is written anew into the same arena, from
/// position 0, so that nothing may be left of the first text.
fn bits(cuda: &Cuda, case: &MemoryCase, paging: Paging) -> Vec<Vec<u8>> {
    let tensors = case.tensors();
    let mut arena = cuda.allocate_within(&tensors.layout, paging).unwrap();
    let mut all = Vec::new();
    for start in [case.start.clone(), vec![0; case.start.len()]] {
        let case = MemoryCase { start, ..case.clone() };
        let mut histories = case.histories();
        for (tensor, bytes) in case.prepare(&tensors, &histories) {
            cuda.write(&mut arena, tensor, &bytes).unwrap();
        }
        for index in 0..case.chunks.len() {
            let chunk = case.chunk(index);
            for (tensor, bytes) in case.feed(&tensors, &histories, &chunk) {
                cuda.write(&mut arena, tensor, &bytes).unwrap();
            }
            let program = case.record(&tensors, chunk.tokens);
            cuda.run(&mut cuda.compile(&program, &arena).unwrap(), &mut arena).unwrap();
            let used = case.memory.batch * chunk.tokens * case.heads * case.memory.head_dim * 4;
            all.push(now(cuda.read(&arena, tensors.out)).unwrap()[..used].to_vec());
            case.remember(&mut histories, &chunk);
        }
    }
    all
}

#[test]
fn a_memory_in_host_memory_gives_the_same_bits() {
    let Some(cuda) = cuda() else { return };
    let case = MemoryCase {
        name: "tiers",
        memory: shape(2, 20, 8, 3, 2, 32),
        heads: 2,
        selection: Selection::PerTokenAndHead,
        style: RopeStyle::Halves,
        miss: false,
        cutoff: None,
        start: vec![8 * 17 + 3, 60],
        chunks: vec![1, 1, 2, 1, 30, 1, 1, 1, 100, 1, 2, 1, 1, 1, 1, 1, 1, 1],
        without_choice: false,
    };
    let on_device = bits(cuda, &case, Paging::default());
    // A cache of 14 pages for each head; none.
    for device in [120_000, 0] {
        let paging = Paging { device: Some(device), host: None, store: None };
        let in_host = bits(cuda, &case, paging);
        let differ = on_device.iter().zip(&in_host).position(|(a, b)| a != b);
        assert_eq!(differ, None, "the first chunk that differs with {device} bytes on the device");
    }
}

/// A store that was filled before: every byte of a page is its number.
#[derive(Debug)]
struct Saved;

impl PageStore for Saved {
    fn read(&self, id: PageId, into: &mut [u8]) -> Result<(), String> {
        into.fill((10 * id.tensor + id.page) as u8);
        Ok(())
    }
    fn write(&self, _: PageId, _: &[u8]) -> Result<(), String> {
        Err("nothing is written below the host's memory".into())
    }
}

#[test]
fn a_saved_memory_is_read_from_its_store() {
    let Some(cuda) = cuda() else { return };
    let mut layout = Layout::new();
    layout.add("other", DType::F32, [3]);
    let keys = layout.add_paged("keys", DType::Bf16, [4, 8], 8);
    let values = layout.add_paged("values", DType::Bf16, [4, 8], 8);
    let expected = |tensor: u8| (0..4).flat_map(|page| [10 * tensor + page; 16]).collect::<Vec<u8>>();
    let within =
        |device, host| cuda.allocate_within(&layout, Paging { device, host, store: Some(Arc::new(Saved)) });
    for device in [None, Some(0)] {
        let mut arena = within(device, Some(0)).unwrap();
        assert_eq!(now(cuda.read(&arena, keys)).unwrap(), expected(0));
        assert_eq!(now(cuda.read_at(&arena, values, 8..24)).unwrap(), expected(1)[16..48]);
        cuda.write_at(&mut arena, values, 16, &[7; 16]).unwrap();
        assert_eq!(now(cuda.read_at(&arena, values, 16..24)).unwrap(), [7; 16]);
        assert_eq!(now(cuda.read_at(&arena, values, 24..32)).unwrap(), expected(1)[48..]);
    }
    assert!(matches!(within(Some(0), Some(8)), Err(Error::Unsupported { .. })));
}
