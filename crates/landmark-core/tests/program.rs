//! What is done with whole programs: printing, counting, lockstep, half storage, and the same bits from any
//! number of threads.

use half::{bf16, f16};
use landmark_core::backend::Backend;
use landmark_core::count::Cost;
use landmark_core::lockstep::compare;
use landmark_core::ops::*;
use landmark_core::testing::model::{Kind, Tiny};
use landmark_core::testing::{Planted, f32_bytes, i32_bytes, normals, now};
use landmark_core::{Cpu, DType, Layout, Out, Program, Recorder, Tensor, plant};

fn small() -> Program {
    let mut layout = Layout::new();
    let tokens = layout.add("tokens", DType::U32, [4]);
    let table = layout.add("table", DType::F32, [5, 3]);
    let weight = layout.add("weight", DType::Bf16, [2, 3]);
    let dweight = layout.add("d.weight", DType::F32, [2, 3]);
    let [out, seed] = ["out", "seed"].map(|name| layout.add(name, DType::F32, [1, 4, 2]));
    let mut r = Recorder::new("small", &layout);
    let x = r.scratch("x", DType::F32, [1, 4, 3]);
    let y = r.scratch("y", DType::F32, [1, 4, 2]);
    r.push(Embed { tokens, table, out: x });
    r.push(Matmul::linear(x, weight, None, y));
    r.push(Gelu { x: y, out });
    r.backward(&[(weight, dweight)], &[(out, seed)]);
    r.finish()
}

#[test]
fn a_program_prints_as_it_runs() {
    let expected = "\
program small (5 ops)
   0 x f32[1, 4, 3] = Embed(tokens: tokens u32[4], table: table f32[5, 3])
   1 y f32[1, 4, 2] = Matmul(a: x f32[1, 4, 3], b: weight bf16[2, 3])
   2 out f32[1, 4, 2] = Gelu(x: y f32[1, 4, 2])
   3 d.y f32[1, 4, 2] = GeluBackward(x: y f32[1, 4, 2], dout: seed f32[1, 4, 2])
   4 d.weight f32[2, 3] += Matmul(a: d.y f32[1, 4, 2], b: x f32[1, 4, 3])
";
    assert_eq!(small().to_string(), expected);
}

/// Worked by hand. Embed moves its rows (12 floats) in and out. The products are 2·4·2·3 operations each, the
/// first reading x (48 bytes) and a bf16 weight (12), the second d.y (32), x (48) and what it adds to (24). GELU is
/// counted as 12 operations for each of 8 elements, its gradient as 20.
#[test]
fn a_program_counts_its_operations_and_bytes() {
    let expected = Cost {
        flops: 48 + 12 * 8 + 20 * 8 + 48,
        bytes_read: 48 + (48 + 12) + 32 + (32 + 32) + (32 + 48 + 24),
        bytes_written: 48 + 32 + 32 + 32 + 24,
    };
    assert_eq!(small().cost(), expected);
}

fn bytes_of_weights(tiny: &Tiny, bytes: impl Fn(&[f64]) -> Vec<u8>) -> Vec<(Tensor, Vec<u8>)> {
    let weights = tiny.weights.iter().map(|w| (w.value, bytes(&w.initial)));
    weights.chain(tiny.inputs.iter().cloned()).collect()
}

/// Reductions of a few dozen terms in f32, relative to the largest element.
fn tolerance(_: &str) -> f64 {
    64.0 * f64::from(f32::EPSILON)
}

#[test]
fn in_lockstep_f32_follows_the_oracle() {
    for kind in [Kind::Gpt, Kind::Llama] {
        let tiny = Tiny::new(kind, DType::F32);
        let inputs = bytes_of_weights(&tiny, f32_bytes);
        let divergence = now(compare(&tiny.training(), &Cpu::<f32>::new(), &inputs, tolerance)).unwrap();
        assert_eq!(divergence, None, "{kind:?}");
    }
}

#[test]
fn lockstep_names_the_op_with_the_bug() {
    type Spoilt = fn(&Op) -> bool;
    type Plant = fn(&mut Op) -> bool;
    let bugs: [(Kind, Spoilt, Plant); 6] = [
        (Kind::Gpt, |op| matches!(op, Op::AddNorm(_)), plant!(Op::AddNorm(op) => op.bias = None)),
        (
            Kind::Gpt,
            |op| matches!(op, Op::Rope(op) if op.inverse),
            plant!(Op::Rope(op) => op.inverse = false),
        ),
        (
            Kind::Gpt,
            |op| matches!(op, Op::LandmarkAttentionBackward(_)),
            plant!(Op::LandmarkAttentionBackward(op) => op.forward.blocks = Blocks::None),
        ),
        (
            Kind::Gpt,
            |op| matches!(op, Op::EmbedBackward(_)),
            plant!(Op::EmbedBackward(op) => op.dtable.add = false),
        ),
        (
            Kind::Llama,
            |op| matches!(op, Op::SwiGluBackward(_)),
            plant!(Op::SwiGluBackward(op) => std::mem::swap(&mut op.gate, &mut op.up)),
        ),
        (
            Kind::Llama,
            |op| matches!(op, Op::LinearCrossEntropy(_)),
            plant!(Op::LinearCrossEntropy(op) => op.gradient.as_mut().unwrap().scale *= 1.001),
        ),
    ];
    for (kind, spoilt, plant) in bugs {
        let tiny = Tiny::new(kind, DType::F32);
        let (program, inputs) = (tiny.training(), bytes_of_weights(&tiny, f32_bytes));
        let expected = program.ops().iter().position(spoilt).expect("an op to spoil");
        let backend = Planted { inner: Cpu::<f32>::new(), plant };
        let found = now(compare(&program, &backend, &inputs, tolerance)).unwrap().expect("a divergence");
        assert_eq!((found.op, found.name), (expected, program.ops()[expected].name()), "{found:?}");
        assert!(found.relative_error > 1e-5, "{found:?}");
    }
}

/// Bytes of the loss and of every gradient after one training step in f32.
fn train(tiny: &Tiny, inputs: &[(Tensor, Vec<u8>)]) -> Vec<Vec<u8>> {
    let cpu = Cpu::<f32>::new();
    let mut arena = cpu.allocate(&tiny.layout).unwrap();
    for (tensor, bytes) in inputs {
        cpu.write(&mut arena, *tensor, bytes).unwrap();
    }
    cpu.run(&mut cpu.compile(&tiny.training(), &arena).unwrap(), &mut arena).unwrap();
    let results = tiny.weights.iter().map(|w| w.gradient).chain([tiny.loss]);
    results.map(|tensor| now(cpu.read(&arena, tensor)).unwrap()).collect()
}

#[test]
fn half_weights_are_the_same_as_weights_rounded_before() {
    let round = |dtype: DType, x: f64| {
        if dtype == DType::Bf16 { bf16::from_f64(x).to_f64() } else { f16::from_f64(x).to_f64() }
    };
    for (kind, dtype) in [(Kind::Gpt, DType::Bf16), (Kind::Gpt, DType::F16), (Kind::Llama, DType::Bf16)] {
        let (half, full) = (Tiny::new(kind, dtype), Tiny::new(kind, DType::F32));
        let bytes = |values: &[f64]| -> Vec<u8> {
            let bits = |&x: &f64| {
                if dtype == DType::Bf16 { bf16::from_f64(x).to_bits() } else { f16::from_f64(x).to_bits() }
            };
            values.iter().map(bits).flat_map(u16::to_le_bytes).collect()
        };
        let rounded =
            |values: &[f64]| f32_bytes(&values.iter().map(|&x| round(dtype, x)).collect::<Vec<f64>>());
        let stored = train(&half, &bytes_of_weights(&half, bytes));
        assert!(stored == train(&full, &bytes_of_weights(&full, rounded)), "{kind:?} {dtype:?}");
        // And the rounding does show.
        assert!(stored != train(&full, &bytes_of_weights(&full, f32_bytes)), "{kind:?} {dtype:?}");
    }
}

#[test]
fn half_results_are_rounded_once() {
    let values = normals(1, 50);
    let run = |dtype: DType| {
        let mut layout = Layout::new();
        let x = layout.add("x", DType::F32, [50]);
        let y = layout.add("y", dtype, [50]);
        let mut r = Recorder::new("gelu", &layout);
        r.push(Gelu { x, out: y });
        let cpu = Cpu::<f32>::new();
        let mut arena = cpu.allocate(&layout).unwrap();
        cpu.write_f64(&mut arena, x, &values).unwrap();
        cpu.run(&mut cpu.compile(&r.finish(), &arena).unwrap(), &mut arena).unwrap();
        cpu.read_f64(&arena, y)
    };
    let exact = run(DType::F32);
    let rounded = |f: fn(f64) -> f64| exact.iter().map(|&x| f(x)).collect::<Vec<f64>>();
    assert_eq!(run(DType::Bf16), rounded(|x| bf16::from_f64(x).to_f64()));
    assert_eq!(run(DType::F16), rounded(|x| f16::from_f64(x).to_f64()));
}

/// A step large enough that matrix products, sums and norms are cut into pieces.
fn large() -> (Layout, Program, Vec<(Tensor, Vec<u8>)>) {
    const ROWS: usize = 300;
    let mut layout = Layout::new();
    let mut inputs = Vec::new();
    let mut weights = Vec::new();
    for (name, shape) in [("table", [97, 64]), ("norm", [1, 64]), ("up", [96, 64]), ("down", [64, 96])] {
        let value = layout.add(name, DType::F32, shape);
        weights.push((value, layout.add(format!("d.{name}"), DType::F32, shape)));
        inputs.push((value, f32_bytes(&normals(weights.len() as u32, shape[0] * shape[1]))));
    }
    let tokens = layout.add("tokens", DType::U32, [ROWS]);
    let targets = layout.add("targets", DType::I32, [ROWS]);
    let loss = layout.add("loss", DType::F32, [1]);
    let ids: Vec<i32> = (0..ROWS as i32).map(|i| i * 31 % 97).collect();
    inputs.extend([(tokens, i32_bytes(&ids)), (targets, i32_bytes(&ids))]);
    let mut r = Recorder::new("large", &layout);
    let [x, n, y, last] = ["x", "n", "y", "dy"].map(|name| r.scratch(name, DType::F32, [1, ROWS, 64]));
    let [wide, active] = ["wide", "active"].map(|name| r.scratch(name, DType::F32, [1, ROWS, 96]));
    let [(table, dtable), (norm, _), (up, _), (down, _)] = weights[..] else { unreachable!() };
    r.push(Embed { tokens, table, out: x });
    r.push(Norm { kind: NormKind::Rms { eps: 1e-5 }, x, weight: norm, bias: None, out: n });
    r.push(Matmul::linear(n, up, None, wide));
    r.push(Gelu { x: wide, out: active });
    r.push(Matmul::linear(active, down, None, y));
    let gradient = Some(LossGradient { dx: last, dweight: Some(Out::add(dtable)), scale: 1.0 });
    r.push(LinearCrossEntropy { x: y, weight: table, targets, loss, predictions: None, gradient });
    r.backward(&weights, &[(y, last)]);
    (layout, r.finish(), inputs)
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let (layout, program, inputs) = large();
    let run = |threads: usize| -> Vec<Vec<u8>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let cpu = Cpu::<f32>::new();
            let mut arena = cpu.allocate(&layout).unwrap();
            for (tensor, bytes) in &inputs {
                cpu.write(&mut arena, *tensor, bytes).unwrap();
            }
            cpu.run(&mut cpu.compile(&program, &arena).unwrap(), &mut arena).unwrap();
            let all = layout.tensors().iter().map(|t| layout.find(&t.name).unwrap());
            all.map(|tensor| now(cpu.read(&arena, tensor)).unwrap()).collect()
        })
    };
    let one = run(1);
    for threads in [2, 3, 5] {
        assert!(one == run(threads), "{threads} threads");
    }
}
