//! Steps of generation, run whole: what lies between their products is made by the launches beside it, which no comparison
//! op by op sees. The oracle runs the same program.

mod common;

use common::{devices, tolerance};
use landmark_core::ops::*;
use landmark_core::quantize::{Bits, dequantize, quantize};
use landmark_core::testing::{f32_bytes, float_bytes, i32_bytes, normals, u32_bytes};
use landmark_core::{Backend, Cols, Cpu, DType, Layout, Program, Recorder, Tensor};
use landmark_wgpu::{Options, Wgpu};
use pollster::block_on;

type Inputs = Vec<(Tensor, Vec<u8>)>;

/// Runs a program; the launches that it took, and the worst error of some tensors, relative to their largest element.
fn run(
    device: &Wgpu,
    layout: &Layout,
    program: &Program,
    inputs: &Inputs,
    results: &[Tensor],
) -> (usize, f64) {
    let (oracle, mut found) = (Cpu::<f64>::new(), device.allocate(layout).unwrap());
    let mut expected = oracle.allocate(layout).unwrap();
    for (tensor, bytes) in inputs {
        oracle.write(&mut expected, *tensor, bytes).unwrap();
        device.write(&mut found, *tensor, bytes).unwrap();
    }
    oracle.run(&mut oracle.compile(program, &expected).unwrap(), &mut expected).unwrap();
    let mut plan = device.compile(program, &found).unwrap();
    device.run(&mut plan, &mut found).unwrap();
    let error = |&tensor: &Tensor| {
        let dtype = layout.info(tensor).dtype;
        let expected = floats(dtype, &block_on(oracle.read(&expected, tensor)).unwrap());
        let found = floats(dtype, &block_on(device.read(&found, tensor)).unwrap());
        let size = expected.iter().fold(1e-3_f64, |m, x| m.max(x.abs()));
        let apart = |(x, y): (&f64, &f64)| if y.is_finite() { (x - y).abs() } else { f64::INFINITY };
        expected.iter().zip(&found).map(apart).fold(0.0_f64, f64::max) / size
    };
    (plan.launches(), results.iter().map(error).fold(0.0, f64::max))
}

fn floats(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    match dtype {
        DType::F16 => {
            bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f64()).collect()
        }
        _ => common::values(bytes),
    }
}

fn close(kind: &str, dtype: DType, error: f64) {
    // A few products behind each other; halves are rounded between them, by the oracle at more places than by kernels.
    let allowed = if dtype == DType::F16 { 0.004 } else { 8.0 * tolerance("") };
    assert!(error <= allowed, "{kind}: {error:e}");
}

/// A layer without its attention, between two norms.
#[derive(Clone, Debug)]
struct Layer {
    rows: usize,
    width: usize,
    hidden: usize,
    dtype: DType,
    kind: NormKind,
    biases: bool,
    gated: bool,
}

impl Layer {
    fn record(&self, bits: Option<Bits>) -> (Layout, Program, Inputs, Vec<Tensor>) {
        let Layer { rows, width, hidden, dtype, kind, .. } = *self;
        let (mut layout, mut inputs) = (Layout::new(), Inputs::new());
        let given = |layout: &mut Layout, inputs: &mut Inputs, name: &str, dtype: DType, dims: &[usize]| {
            let tensor = layout.add(name, dtype, dims);
            let numel: usize = dims.iter().product();
            let scale =
                if dims.len() == 2 && name.ends_with("weight") { (dims[1] as f64).powf(-0.5) } else { 1.0 };
            let mut values: Vec<f64> =
                normals(inputs.len() as u32 + 1, numel).iter().map(|x| x * scale).collect();
            if let (Some(bits), 2, true) = (bits, dims.len(), name.ends_with("weight")) {
                // The oracle gets the rounded values.
                let exact: Vec<f32> = values.iter().map(|&x| x as f32).collect();
                values = dequantize(&quantize(&exact, bits), bits).into_iter().map(f64::from).collect();
            }
            inputs.push((tensor, float_bytes(dtype, &values)));
            tensor
        };
        let mut add = |name: &str, dtype, dims: &[usize]| given(&mut layout, &mut inputs, name, dtype, dims);
        let x = add("x", DType::F32, &[rows, width]);
        let [first, second, last] = ["first", "second", "last"].map(|name| add(name, dtype, &[width]));
        let shift = add("shift", dtype, &[width]);
        let shifts = matches!(kind, NormKind::Layer { .. }).then_some(shift);
        let mut linear = |name: &str, n: usize, k: usize| {
            let bias = add(&format!("{name}.bias"), dtype, &[n]);
            (add(&format!("{name}.weight"), dtype, &[n, k]), self.biases.then_some(bias))
        };
        let [q, k, v] = ["q", "k", "v"].map(|name| linear(name, width, width));
        let o = linear("o", width, width);
        let [gate, up] = ["gate", "up"].map(|name| linear(name, hidden, width));
        let down = linear("down", width, hidden);
        let head = linear("head", width + 3 + width % 2, width);
        let outs = [("q.out", width), ("k.out", width), ("v.out", width), ("logits", width + 3 + width % 2)];
        let [q_out, k_out, v_out, logits] = outs.map(|(name, n)| layout.add(name, DType::F32, [rows, n]));
        let mut r = Recorder::new(format!("{self:?}, {bits:?}"), &layout);
        let scratch = |r: &mut Recorder, name: &str, dtype, n| r.scratch(name, dtype, [rows, n]);
        let [y, z, w, delta, more] =
            ["y", "z", "w", "delta", "more"].map(|name| scratch(&mut r, name, dtype, width));
        let [sum, total] = ["sum", "total"].map(|name| scratch(&mut r, name, DType::F32, width));
        let [g, u, inner] = ["g", "u", "inner"].map(|name| scratch(&mut r, name, dtype, hidden));
        let attended = scratch(&mut r, "attended", dtype, width);
        let product = |r: &mut Recorder, x, (weight, bias): (Tensor, Option<Tensor>), out| {
            r.push(Matmul::linear(x, weight, bias, out));
        };
        r.push(Norm { kind, x, weight: first, bias: shifts, out: y });
        product(&mut r, y, q, q_out);
        product(&mut r, y, k, k_out);
        product(&mut r, y, v, v_out);
        // What stands for the attention; `x` is the stream still.
        r.push(Gelu { x: q_out, out: k_out });
        product(&mut r, x, v, attended);
        product(&mut r, attended, o, delta);
        r.push(AddNorm { kind, x, delta, weight: second, bias: shifts, sum, out: z });
        if self.gated {
            product(&mut r, z, gate, g);
            product(&mut r, z, up, u);
            r.push(SwiGlu { gate: g, up: u, out: inner });
        } else {
            product(&mut r, z, up, u);
            r.push(Gelu { x: u, out: inner });
        }
        product(&mut r, inner, down, more);
        r.push(AddNorm { kind, x: sum, delta: more, weight: last, bias: shifts, sum: total, out: w });
        product(&mut r, w, head, logits);
        (layout.clone(), r.finish(), inputs, vec![q_out, k_out, v_out, logits])
    }
}

const RMS: NormKind = NormKind::Rms { eps: 1e-6 };

fn layers() -> Vec<Layer> {
    let base =
        Layer { rows: 1, width: 64, hidden: 96, dtype: DType::F32, kind: RMS, biases: false, gated: true };
    vec![
        base.clone(),
        Layer { rows: 8, width: 128, hidden: 352, ..base.clone() },
        Layer { rows: 3, width: 37, hidden: 51, ..base.clone() },
        Layer { rows: 5, width: 66, hidden: 70, biases: true, ..base.clone() },
        Layer { width: 1030, hidden: 1026, ..base.clone() },
        Layer { gated: false, rows: 2, ..base.clone() },
        Layer { gated: false, width: 99, hidden: 101, biases: true, ..base.clone() },
        Layer { gated: false, biases: true, kind: NormKind::Layer { eps: 1e-5 }, ..base.clone() },
        Layer { dtype: DType::F16, ..base.clone() },
        Layer { dtype: DType::F16, rows: 4, width: 2048, hidden: 2056, biases: true, ..base.clone() },
        Layer { dtype: DType::F16, rows: 7, width: 66, hidden: 90, gated: false, ..base.clone() },
        // One more than are few.
        Layer { rows: 9, ..base },
    ]
}

#[test]
fn layers_between_their_norms() {
    for layer in layers() {
        let (layout, program, inputs, results) = layer.record(None);
        for (device, is_alone) in devices().iter().zip([false, false, true]) {
            let (launches, error) = run(device, &layout, &program, &inputs, &results);
            close(&program.name, layer.dtype, error);
            let is_all_taken = layer.rows <= 8 && layer.kind == RMS && !layer.biases && !is_alone;
            // Queries, keys and values; two for what stands for the attention; the output, the gate and the inner matrix,
            // and two products more.
            if is_all_taken {
                assert_eq!(launches, 7, "{}", program.name);
            }
        }
    }
}

#[test]
fn layers_of_weights_in_blocks() {
    for bits in [Bits::Eight, Bits::Four] {
        let options = Options { weights: Some(bits), threads_alone: Some(false), ..Options::default() };
        let device = block_on(Wgpu::open(&options)).expect("an adapter");
        for (rows, width, hidden, biases) in [(1, 64, 96, false), (3, 160, 352, true), (8, 2080, 64, false)] {
            let layer = Layer { rows, width, hidden, dtype: DType::F32, kind: RMS, biases, gated: true };
            let (layout, program, inputs, results) = layer.record(Some(bits));
            let (_, error) = run(&device, &layout, &program, &inputs, &results);
            close(&program.name, DType::F32, error);
        }
    }
}

#[test]
fn layers_of_weights_in_pieces() {
    let options = Options { largest_binding: Some(6000), threads_alone: Some(false), ..Options::default() };
    let device = block_on(Wgpu::open(&options)).expect("an adapter");
    for gated in [false, true] {
        let layer =
            Layer { rows: 2, width: 62, hidden: 90, dtype: DType::F32, kind: RMS, biases: true, gated };
        let (layout, program, inputs, results) = layer.record(None);
        let (_, error) = run(&device, &layout, &program, &inputs, &results);
        close(&program.name, DType::F32, error);
    }
}

/// Attention over a memory between the projections and what follows.
#[derive(Clone, Debug)]
struct Attention {
    memory: MemoryShape,
    heads: usize,
    style: RopeStyle,
    lengths: Vec<usize>,
    counts: Vec<usize>,
    tokens: usize,
    dtype: DType,
    selection: Selection,
}

impl Attention {
    fn record(&self) -> (Layout, Program, Inputs, Vec<Tensor>) {
        let (m, mut layout, mut inputs) = (self.memory, Layout::new(), Inputs::new());
        let (d, width, dtype) = (m.head_dim, 48, self.dtype);
        let (q_width, k_width) = (self.heads * d, m.kv_heads * d);
        let mut add = |name: &str, dtype, dims: &[usize]| {
            let tensor = layout.add(name, dtype, dims);
            let numel: usize = dims.iter().product();
            inputs.push((tensor, float_bytes(dtype, &normals(inputs.len() as u32 + 1, numel))));
            tensor
        };
        let x = add("x", dtype, &[m.batch, self.tokens, width]);
        let [q_weight, k_weight, v_weight] = [("q", q_width), ("k", k_width), ("v", k_width)]
            .map(|(name, n)| add(&format!("{name}.weight"), dtype, &[n, width]));
        let ring = [m.batch, m.slots(), m.kv_heads, m.block, d];
        let [keys, values] = ["keys", "values"].map(|name| add(name, dtype, &ring));
        let landmarks = add("landmarks", dtype, &[m.batch, m.kv_heads, m.slots(), d]);
        let out = add("out", dtype, &[m.batch, self.tokens, q_width]);
        let frequencies = layout.add("frequencies", DType::F32, [d / 2]);
        let turns: Vec<f64> = (0..d / 2).map(|i| 10_000_f64.powf(-2.0 * i as f64 / d as f64)).collect();
        inputs.push((frequencies, f32_bytes(&turns)));
        let mut numbers = |name: &str, given: &[usize]| {
            let tensor = layout.add(name, DType::U32, [given.len()]);
            inputs.push((tensor, u32_bytes(&given.iter().map(|&n| n as u32).collect::<Vec<_>>())));
            tensor
        };
        let (lengths, counts) = (numbers("lengths", &self.lengths), numbers("counts", &self.counts));
        let positions = layout.add("positions", DType::I32, [m.batch, self.tokens]);
        let first = |&length: &usize| m.state(length).retrieved.max(1) + 3 + length % m.block;
        let at: Vec<i32> = self
            .lengths
            .iter()
            .flat_map(|length| (0..self.tokens).map(move |t| (first(length) + t) as i32))
            .collect();
        inputs.push((positions, i32_bytes(&at)));
        let mut r = Recorder::new(format!("{self:?}"), &layout);
        let rows = |r: &mut Recorder, name: &str, n| r.scratch(name, dtype, [m.batch, self.tokens, n]);
        let [q, k, v] =
            [("q", q_width), ("k", k_width), ("v", k_width)].map(|(name, n)| rows(&mut r, name, n));
        let turned = rows(&mut r, "turned", k_width);
        for (weight, out) in [(q_weight, q), (k_weight, k), (v_weight, v)] {
            r.push(Matmul { scale: 0.2, ..Matmul::linear(x, weight, None, out) });
        }
        let (q, k, v) = (Cols::all(q, q_width), Cols::all(k, k_width), Cols::all(v, k_width));
        let (style, head_dim, turned) = (self.style, d, Cols::all(turned, k_width));
        for (x, out) in [(q, q), (k, turned)] {
            r.push(Rope { x, positions, frequencies, style, head_dim, inverse: false, out });
        }
        let scores = r.scratch("scores", DType::F32, [m.batch, self.heads, self.tokens, m.blocks]);
        let chosen = r.scratch("chosen", DType::U32, [m.batch, self.heads, self.tokens, m.top_k]);
        let (memory, heads, skip) = (m, self.heads, 0);
        r.push(LandmarkScores {
            memory,
            heads,
            skip,
            q,
            landmarks,
            lengths,
            frequencies,
            style,
            out: scores,
        });
        r.push(SelectBlocks { memory, selection: self.selection, scores, lengths, counts, chosen });
        let (queries, kv_heads) = (self.tokens, m.kv_heads);
        r.push(RetrievalAttention {
            memory,
            heads: Heads { batch: m.batch, queries, keys: queries, heads, kv_heads, head_dim },
            q,
            k: turned,
            v,
            keys,
            values,
            lengths,
            chosen: Some(chosen),
            frequencies,
            style,
            miss: false,
            miss_cutoff: None,
            shares: None,
            out,
        });
        r.push(AppendKv { memory, skip, k, v, lengths, counts, keys, values, landmarks });
        (layout.clone(), r.finish(), inputs, vec![out, keys, values, landmarks])
    }
}

fn attentions() -> Vec<Attention> {
    use RopeStyle::{Halves, Pairs};
    let shape = |batch, blocks, block, top_k, kv_heads, head_dim| MemoryShape {
        batch,
        blocks,
        block,
        top_k,
        kv_heads,
        head_dim,
        origin: Origin::BlocksRetrieved,
    };
    let base = Attention {
        memory: shape(1, 70, 8, 4, 2, 64),
        heads: 2,
        style: Halves,
        lengths: vec![8 * 67 + 5],
        counts: vec![1],
        tokens: 1,
        dtype: DType::F32,
        selection: Selection::PerTokenAndHead,
    };
    vec![
        base.clone(),
        Attention { dtype: DType::F16, ..base.clone() },
        // Grouped queries; a ring that has come round beside a memory of fewer blocks than are chosen; a block is closed.
        Attention {
            memory: MemoryShape { origin: Origin::BlocksSeen, ..shape(2, 9, 5, 3, 2, 12) },
            heads: 6,
            style: Pairs,
            lengths: vec![5 * 30 + 3, 7],
            counts: vec![4, 4],
            tokens: 4,
            ..base.clone()
        },
        // Eight tokens over two ends of blocks, and an empty memory.
        Attention {
            memory: shape(2, 40, 3, 5, 1, 20),
            lengths: vec![3 * 33 + 1, 0],
            counts: vec![8, 8],
            tokens: 8,
            ..base.clone()
        },
        // What a launch of its own chooses, and one token more than a step has.
        Attention { selection: Selection::MaxOverHeads, ..base.clone() },
        Attention { counts: vec![9], tokens: 9, ..base },
    ]
}

#[test]
fn attention_between_its_projections() {
    for attention in attentions() {
        let (layout, program, inputs, results) = attention.record();
        for (device, has_subgroups) in devices().iter().zip([true, false]) {
            let (launches, error) = run(device, &layout, &program, &inputs, &results);
            close(&program.name, attention.dtype, error);
            // Projections, angles, scores, what blocks give, and what joins that and appends.
            let is_each = attention.selection == Selection::PerTokenAndHead && has_subgroups;
            if attention.tokens <= 8 && is_each && attention.memory.top_k <= 4 {
                assert_eq!(launches, 5, "{}", program.name);
            }
        }
    }
}
