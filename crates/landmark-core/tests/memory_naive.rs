//! The landmark memory of the CPU backend against a naive one that keeps everything, chunk after chunk.

use landmark_core::backend::Backend;
use landmark_core::cpu::Real;
use landmark_core::ops::{
    Blocks, Heads, LandmarkAttention, MemoryShape, Op, Origin, Rope, RopeStyle, Selection,
};
use landmark_core::testing::memory::{Chunk, History, MemoryCase, cases};
use landmark_core::testing::{alter, f32_bytes, i32_bytes, u32_bytes, worst};
use landmark_core::{Cols, Cpu, DType, Layout, PageId, PageStore, Paging, Recorder, plant};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Runs all chunks of a case; returns the largest error of any chunk and its number.
fn run<T: Real>(case: &MemoryCase, plant: impl Fn(&mut Op) -> bool) -> (f64, usize) {
    let cpu = Cpu::<T>::new();
    let (tensors, mut histories) = (case.tensors(), case.histories());
    let mut arena = cpu.allocate(&tensors.layout).unwrap();
    for (tensor, bytes) in case.prepare(&tensors, &histories) {
        cpu.write(&mut arena, tensor, &bytes).unwrap();
    }
    let mut found = (0.0, 0);
    for index in 0..case.chunks.len() {
        let chunk = case.chunk(index);
        for (tensor, bytes) in case.feed(&tensors, &histories, &chunk) {
            cpu.write(&mut arena, tensor, &bytes).unwrap();
        }
        let mut program = case.record(&tensors, chunk.tokens);
        alter(&mut program, &plant);
        cpu.run(&mut cpu.compile(&program, &arena).unwrap(), &mut arena).unwrap();
        let expected = case.naive(&histories, &chunk);
        let error = worst(&expected, &cpu.read_f64(&arena, tensors.out)[..expected.len()]);
        if error > found.0 || error.is_nan() {
            found = (error, index);
        }
        case.remember(&mut histories, &chunk);
        // The driver advances the lengths; `feed` writes them again before the next chunk.
        let lengths: Vec<u32> = histories.iter().map(|h| h.keys.len() as u32).collect();
        cpu.write(&mut arena, tensors.lengths, &u32_bytes(&lengths)).unwrap();
    }
    found
}

#[test]
fn every_chunk_of_every_case_agrees_with_the_definition() {
    for case in cases() {
        let (error, chunk) = run::<f64>(&case, |_| false);
        // Values are normal numbers, weights sum to 1: rounding of a few hundred operations.
        assert!(error < 1e-12, "{}, chunk {chunk}: {error:e}", case.name);
    }
}

/// Results and rings of a case, chunk after chunk, run with `paging`, each chunk padded by `padding` rows of rubbish.
fn bits(case: &MemoryCase, padding: usize, paging: Paging) -> Vec<Vec<f64>> {
    let cpu = Cpu::<f64>::new();
    let wide = MemoryCase { chunks: case.chunks.iter().map(|n| n + padding).collect(), ..case.clone() };
    let (tensors, mut histories) = (wide.tensors(), case.histories());
    let mut arena = cpu.allocate_within(&tensors.layout, paging).unwrap();
    for (tensor, bytes) in case.prepare(&tensors, &histories) {
        cpu.write(&mut arena, tensor, &bytes).unwrap();
    }
    let batch = case.memory.batch;
    let widths = (case.heads * case.memory.head_dim, case.memory.kv_heads * case.memory.head_dim);
    let pad = |x: &[f64], width: usize| -> Vec<f64> {
        let rows = x.chunks(x.len() / batch);
        rows.flat_map(|row| row.iter().copied().chain(vec![1e3; padding * width]).collect::<Vec<f64>>())
            .collect()
    };
    let mut found = Vec::new();
    for index in 0..case.chunks.len() {
        let chunk = case.chunk(index);
        let padded = Chunk {
            tokens: chunk.tokens + padding,
            q: pad(&chunk.q, widths.0),
            k: pad(&chunk.k, widths.1),
            v: pad(&chunk.v, widths.1),
        };
        for (tensor, bytes) in wide.feed(&tensors, &histories, &padded) {
            cpu.write(&mut arena, tensor, &bytes).unwrap();
        }
        cpu.write(&mut arena, tensors.counts, &u32_bytes(&vec![chunk.tokens as u32; batch])).unwrap();
        let program = wide.record(&tensors, padded.tokens);
        cpu.run(&mut cpu.compile(&program, &arena).unwrap(), &mut arena).unwrap();
        let out = cpu.read_f64(&arena, tensors.out);
        let rows = case.skip() + chunk.tokens;
        let row = |b: usize| &out[b * (rows + padding) * widths.0..][..rows * widths.0];
        found.push((0..batch).flat_map(row).copied().collect());
        case.remember(&mut histories, &chunk);
    }
    found
}

#[test]
fn padding_changes_nothing() {
    for case in cases() {
        let (plain, padded) = (bits(&case, 0, Paging::default()), bits(&case, 3, Paging::default()));
        for (chunk, (plain, padded)) in plain.iter().zip(&padded).enumerate() {
            let error = worst(plain, padded);
            assert!(error < 1e-12, "{}, chunk {chunk}: {error:e}", case.name);
        }
    }
}

/// Pages that were written, and what came of reading them.
#[derive(Debug, Default)]
struct Kept {
    pages: Mutex<HashMap<PageId, Vec<u8>>>,
    reads: AtomicUsize,
}

impl PageStore for Kept {
    fn read(&self, id: PageId, into: &mut [u8]) -> Result<(), String> {
        if let Some(bytes) = self.pages.lock().unwrap().get(&id) {
            self.reads.fetch_add(1, Ordering::Relaxed);
            into.copy_from_slice(bytes);
        }
        Ok(())
    }
    fn write(&self, id: PageId, from: &[u8]) -> Result<(), String> {
        self.pages.lock().unwrap().insert(id, from.to_vec());
        Ok(())
    }
}

/// With room for everything, for a few pages, and for one page, the results are the same to the last bit.
#[test]
fn where_pages_lie_changes_no_bit() {
    let mut fetched = 0;
    for case in cases() {
        let whole = bits(&case, 0, Paging::default());
        for budget in [0, 2000, 1 << 20] {
            let kept = Arc::new(Kept::default());
            let store: Arc<dyn PageStore> = kept.clone();
            let paging = Paging { device: Some(budget), host: Some(0), store: Some(store) };
            assert!(bits(&case, 0, paging) == whole, "{} within {budget} bytes", case.name);
            fetched += kept.reads.load(Ordering::Relaxed);
        }
    }
    assert!(fetched > 1000, "only {fetched} pages were fetched");
}

#[test]
fn planted_bugs_are_seen() {
    type Plant = fn(&mut Op) -> bool;
    let plants: [(&str, &str, Plant); 8] = [
        (
            "choice of another granularity",
            "each token and head",
            plant!(Op::SelectBlocks(op) => op.selection = Selection::MaxOverTokens),
        ),
        (
            "scores with the other rotary pairs",
            "each token and head",
            plant!(Op::LandmarkScores(op) => op.style = RopeStyle::Halves),
        ),
        (
            "fetched keys with the other rotary pairs",
            "max over heads",
            plant!(Op::RetrievalAttention(op) => op.style = RopeStyle::Pairs),
        ),
        (
            "retrieved blocks forgotten",
            "max over tokens",
            plant!(Op::RetrievalAttention(op) => op.chosen = None),
        ),
        ("cut-off forgotten", "cut off", plant!(Op::RetrievalAttention(op) => op.miss_cutoff = None)),
        ("the context-miss token stored", "context-miss token", plant!(Op::AppendKv(op) => op.skip = 0)),
        (
            "keys and values stored in each other's place",
            "each token and head",
            plant!(Op::AppendKv(op) => std::mem::swap(&mut op.k, &mut op.v)),
        ),
        ("positions taken off", "each token and head", plant!(Op::Rope(op) => op.inverse = true)),
    ];
    for (bug, name, plant) in plants {
        let case =
            cases().into_iter().find(|c| c.name.contains(name)).unwrap_or_else(|| panic!("no case {name}"));
        let (error, _) = run::<f64>(&case, plant);
        assert!(error.is_nan() || error > 1e-3, "{bug} in case {}: only {error:e}", case.name);
    }
}

/// When every block is kept and chosen, retrieval is dense landmark attention, at positions that the stingy
/// rule gives: with no more blocks than `k`, each stands one block nearer than it was. (With more than `k` the
/// last ones keep their distance, but then not every block can be chosen; so there is no case in which the
/// *true* positions give the same result.)
#[test]
fn with_all_blocks_chosen_retrieval_is_dense_attention() {
    let case = MemoryCase {
        memory: MemoryShape {
            batch: 2,
            blocks: 4,
            block: 3,
            top_k: 4,
            kv_heads: 1,
            head_dim: 6,
            origin: Origin::BlocksSeen,
        },
        start: vec![0, 0],
        chunks: vec![4, 1, 5, 2, 6],
        ..cases().into_iter().find(|c| c.name == "each token and head, rows of different lengths").unwrap()
    };
    let cpu = Cpu::<f64>::new();
    let (tensors, mut histories) = (case.tensors(), case.histories());
    let mut arena = cpu.allocate(&tensors.layout).unwrap();
    for (tensor, bytes) in case.prepare(&tensors, &histories) {
        cpu.write(&mut arena, tensor, &bytes).unwrap();
    }
    for index in 0..case.chunks.len() {
        let chunk = case.chunk(index);
        for (tensor, bytes) in case.feed(&tensors, &histories, &chunk) {
            cpu.write(&mut arena, tensor, &bytes).unwrap();
        }
        let program = case.record(&tensors, chunk.tokens);
        cpu.run(&mut cpu.compile(&program, &arena).unwrap(), &mut arena).unwrap();
        let dense = dense(&case, &histories, &chunk);
        let error = worst(&dense, &cpu.read_f64(&arena, tensors.out)[..dense.len()]);
        assert!(error < 1e-12, "chunk {index}: {error:e}");
        case.remember(&mut histories, &chunk);
    }
}

/// Landmark attention over everything remembered and the chunk.
fn dense(case: &MemoryCase, histories: &[History], chunk: &Chunk) -> Vec<f64> {
    let MemoryShape { batch, block, kv_heads, head_dim, .. } = case.memory;
    let (stored, tokens) = (histories[0].keys.len(), chunk.tokens);
    let (q_width, k_width, rows) = (case.heads * head_dim, kv_heads * head_dim, stored + tokens);
    let whole = stored / block * block;
    let position = |p: usize| (if p < whole { p + block } else { p }) as i32;
    let mut layout = Layout::new();
    let q = layout.add("q", DType::F32, [batch, tokens, q_width]);
    let [k, v] = ["k", "v"].map(|name| layout.add(name, DType::F32, [batch, rows, k_width]));
    let out = layout.add("out", DType::F32, [batch, tokens, q_width]);
    let lse = layout.add("lse", DType::F32, [batch, case.heads, tokens]);
    let q_positions = layout.add("q positions", DType::I32, [batch * tokens]);
    let k_positions = layout.add("k positions", DType::I32, [batch * rows]);
    let frequencies = layout.add("frequencies", DType::F32, [head_dim / 2]);
    let phases = layout.add("phases", DType::U32, [batch]);
    let (q, k, v) = (Cols::all(q, q_width), Cols::all(k, k_width), Cols::all(v, k_width));
    let mut r = Recorder::new("dense", &layout);
    for (x, positions) in [(q, q_positions), (k, k_positions)] {
        r.push(Rope { x, positions, frequencies, style: case.style, head_dim, inverse: false, out: x });
    }
    r.push(LandmarkAttention {
        heads: Heads { batch, queries: tokens, keys: rows, heads: case.heads, kv_heads, head_dim },
        q,
        k,
        v,
        blocks: Blocks::Regular { block, phases },
        miss: None,
        first_key: None,
        randomness: None,
        out,
        lse,
    });
    let join = |of: fn(&History) -> &Vec<Vec<f64>>, new: &[f64]| -> Vec<f64> {
        let rows = histories.iter().zip(new.chunks(tokens * k_width));
        rows.flat_map(|(h, new)| of(h).iter().flatten().chain(new).copied().collect::<Vec<f64>>()).collect()
    };
    let frequency = |i: usize| 10_000_f64.powf(-2.0 * i as f64 / head_dim as f64);
    let cpu = Cpu::<f64>::new();
    let mut arena = cpu.allocate(&layout).unwrap();
    for (tensor, bytes) in [
        (q.tensor, f32_bytes(&chunk.q)),
        (k.tensor, f32_bytes(&join(|h| &h.keys, &chunk.k))),
        (v.tensor, f32_bytes(&join(|h| &h.values, &chunk.v))),
        (frequencies, f32_bytes(&(0..head_dim / 2).map(frequency).collect::<Vec<f64>>())),
        (
            q_positions,
            i32_bytes(&(0..batch * tokens).map(|i| position(stored + i % tokens)).collect::<Vec<i32>>()),
        ),
        (k_positions, i32_bytes(&(0..batch * rows).map(|i| position(i % rows)).collect::<Vec<i32>>())),
    ] {
        cpu.write(&mut arena, tensor, &bytes).unwrap();
    }
    cpu.run(&mut cpu.compile(&r.finish(), &arena).unwrap(), &mut arena).unwrap();
    cpu.read_f64(&arena, out)
}
