//! Every op but attention.

use crate::rig::{Plant, Rig, emit, scratch_of};
use landmark_core::ops::*;
use landmark_core::testing::{f32_bytes, i32_bytes, u32_bytes};
use landmark_core::{Cols, DType, Out, plant};

/// Batch, rows, columns of most inputs. Rows and columns are equal, so that a matrix that is transposed by
/// mistake still fits.
const SHAPE: [usize; 3] = [1, 4, 4];

const LAYER: NormKind = NormKind::Layer { eps: 0.1 };
const RMS: NormKind = NormKind::Rms { eps: 0.1 };

#[test]
fn embed() {
    let mut rig = Rig::new();
    let tokens = rig.fixed("tokens", DType::U32, u32_bytes(&[3, 0, 3, 3, 1, 4]));
    let others = rig.fixed("others", DType::U32, u32_bytes(&[3, 0, 3, 3, 4, 1]));
    let table = rig.input("table", [5, 4]);
    let out = rig.output([2, 3, 4]);
    rig.record(move |r| {
        let y = r.scratch("y", DType::F32, [2, 3, 4]);
        r.push(Embed { tokens, table, out: y });
        emit(r, y, out);
        vec![]
    });
    let bug: Plant<'_> =
        ("rows of other tokens", Box::new(plant!(Op::EmbedBackward(op) => op.tokens = others)));
    rig.prove(&[bug]);
}

fn norm_rig(kind: NormKind, with_bias: bool) -> Rig {
    let mut rig = Rig::new();
    let (x, weight) = (rig.input("x", [2, 3, 5]), rig.input("weight", [5]));
    let bias = with_bias.then(|| rig.input("bias", [5]));
    let out = rig.output([2, 3, 5]);
    rig.record(move |r| {
        let y = r.scratch("y", DType::F32, [2, 3, 5]);
        r.push(Norm { kind, x, weight, bias, out: y });
        emit(r, y, out);
        vec![]
    });
    rig
}

#[test]
fn norm() {
    for (kind, other, bias) in [(LAYER, RMS, true), (LAYER, RMS, false), (RMS, LAYER, false)] {
        let no_eps = match kind {
            NormKind::Layer { .. } => NormKind::Layer { eps: 0.0 },
            NormKind::Rms { .. } => NormKind::Rms { eps: 0.0 },
        };
        norm_rig(kind, bias).prove(&[
            ("the other norm", Box::new(plant!(Op::NormBackward(op) => op.kind = other))),
            ("epsilon forgotten", Box::new(plant!(Op::NormBackward(op) => op.kind = no_eps))),
        ]);
    }
}

/// Three residual layers: each sum's gradient is shared by both terms and added to by the norms before it.
#[test]
fn add_norm_over_layers() {
    let mut rig = Rig::new();
    let (x, first) = (rig.input("x", SHAPE), rig.input("first", SHAPE));
    let (weight, bias, matrix) =
        (rig.input("weight", [4]), rig.input("bias", [4]), rig.input("matrix", [4, 4]));
    let (out, stream) = (rig.output(SHAPE), rig.output(SHAPE));
    rig.record(move |r| {
        let (mut x, mut delta) = (scratch_of(r, x), scratch_of(r, first));
        for layer in 0..3 {
            let [sum, normed, next] =
                ["sum", "normed", "next"].map(|n| r.scratch(format!("{n} {layer}"), DType::F32, SHAPE));
            let kind = if layer == 1 { RMS } else { LAYER };
            r.push(AddNorm { kind, x, delta, weight, bias: (layer != 1).then_some(bias), sum, out: normed });
            r.push(Matmul::linear(normed, matrix, None, next));
            (x, delta) = (sum, next);
        }
        emit(r, delta, out);
        emit(r, x, stream);
        vec![]
    });
    rig.prove(&[(
        "the stream's gradient overwritten",
        Box::new(plant!(Op::NormBackward(op) => op.dx.as_mut().unwrap().add = false)),
    )]);
}

/// A term that is a parameter gets the shared gradient added to its own.
#[test]
fn add_norm_of_parameters() {
    let mut rig = Rig::new();
    let (x, delta, weight) = (rig.input("x", SHAPE), rig.input("delta", SHAPE), rig.input("weight", [4]));
    let out = rig.output(SHAPE);
    rig.record(move |r| {
        let [sum, normed] = ["sum", "normed"].map(|n| r.scratch(n, DType::F32, SHAPE));
        r.push(AddNorm { kind: LAYER, x, delta, weight, bias: None, sum, out: normed });
        emit(r, normed, out);
        vec![]
    });
    rig.prove(&[]);
}

/// The term of a sum is read elsewhere too: before the sum (so that its gradient is added to while the other
/// term still needs the shared one, which must be copied) and after it (so that it has a gradient already).
#[test]
fn shared_gradients_are_copied_before_one_owner_adds() {
    for late in [false, true] {
        let mut rig = Rig::new();
        let (a, b, weight) = (rig.input("a", SHAPE), rig.input("b", SHAPE), rig.input("weight", [4]));
        let outs = [0; 3].map(|_| rig.output(SHAPE));
        rig.record(move |r| {
            let [x, delta, side, sum, normed] =
                ["x", "delta", "side", "sum", "normed"].map(|n| r.scratch(n, DType::F32, SHAPE));
            r.push(Gelu { x: a, out: x });
            r.push(Gelu { x: b, out: delta });
            let add = AddNorm { kind: RMS, x, delta, weight, bias: None, sum, out: normed };
            if late {
                r.push(add);
                r.push(Gelu { x, out: side });
            } else {
                r.push(Gelu { x, out: side });
                r.push(add);
            }
            for (from, to) in [sum, normed, side].into_iter().zip(outs) {
                emit(r, from, to);
            }
            vec![]
        });
        // The copy is the only one with a gradient of the backward pass on both sides: whole rows, `=` or `+=`.
        rig.prove(&[("gradients not copied", Box::new(plant!(Op::CopyRows(op) => op.rows = 0)))]);
    }
}

#[test]
fn matmul() {
    for with_bias in [true, false] {
        let mut rig = Rig::new();
        let (x, weight) = (rig.input("x", SHAPE), rig.input("weight", [4, 4]));
        let bias = with_bias.then(|| rig.input("bias", [4]));
        let out = rig.output(SHAPE);
        rig.record(move |r| {
            let y = r.scratch("y", DType::F32, SHAPE);
            r.push(Matmul::linear(x, weight, bias, y));
            emit(r, y, out);
            vec![]
        });
        let mut plants: Vec<Plant<'_>> = vec![
            ("weight transposed", Box::new(plant!(Op::Matmul(op) => op.transpose_b = !op.transpose_b))),
            ("gradient transposed", Box::new(plant!(Op::Matmul(op) => op.transpose_a = !op.transpose_a))),
        ];
        if with_bias {
            plants.push(("sum of something else", Box::new(plant!(Op::SumRows(op) => op.x = x))));
        }
        rig.prove(&plants);
    }
}

#[test]
fn matmul_of_other_extents() {
    let mut rig = Rig::new();
    let (x, weight, bias) = (rig.input("x", [2, 3, 5]), rig.input("weight", [7, 5]), rig.input("bias", [7]));
    let out = rig.output([2, 3, 7]);
    rig.record(move |r| {
        let y = r.scratch("y", DType::F32, [2, 3, 7]);
        r.push(Matmul::linear(x, weight, Some(bias), y));
        emit(r, y, out);
        vec![]
    });
    rig.prove(&[]);
}

#[test]
fn gelu() {
    let mut rig = Rig::new();
    let x = rig.input("x", [2, 3, 5]);
    let out = rig.output([2, 3, 5]);
    rig.record(move |r| {
        let y = r.scratch("y", DType::F32, [2, 3, 5]);
        r.push(Gelu { x, out: y });
        emit(r, y, out);
        vec![]
    });
    rig.prove(&[("derivative at another place", Box::new(plant!(Op::GeluBackward(op) => op.x = op.dout)))]);
}

#[test]
fn swiglu() {
    let mut rig = Rig::new();
    let (gate, up) = (rig.input("gate", [2, 3, 5]), rig.input("up", [2, 3, 5]));
    let out = rig.output([2, 3, 5]);
    rig.record(move |r| {
        let y = r.scratch("y", DType::F32, [2, 3, 5]);
        r.push(SwiGlu { gate, up, out: y });
        emit(r, y, out);
        vec![]
    });
    rig.prove(&[(
        "halves exchanged",
        Box::new(plant!(Op::SwiGluBackward(op) => std::mem::swap(&mut op.gate, &mut op.up))),
    )]);
}

/// Only one half depends on a parameter: the other gradient is not asked for.
#[test]
fn swiglu_with_one_half_constant() {
    for which in 0..2 {
        let mut rig = Rig::new();
        let x = rig.input("x", SHAPE);
        let constant: Vec<f64> = (0..16).map(|i| 0.3 * f64::from(i) - 2.0).collect();
        let constant = rig.fixed("constant", DType::F32, f32_bytes(&constant));
        let out = rig.output(SHAPE);
        rig.record(move |r| {
            let (constant, y) = (r.view(constant, SHAPE), r.scratch("y", DType::F32, SHAPE));
            let (gate, up) = if which == 0 { (x, constant) } else { (constant, x) };
            r.push(SwiGlu { gate, up, out: y });
            emit(r, y, out);
            vec![]
        });
        rig.prove(&[]);
    }
}

#[test]
fn rope() {
    for (style, other) in [(RopeStyle::Pairs, RopeStyle::Halves), (RopeStyle::Halves, RopeStyle::Pairs)] {
        let mut rig = Rig::new();
        // Two heads of 4 in columns 2..10, one in 10..14; the first two columns are left alone.
        let x = rig.input("x", [2, 3, 14]);
        let positions = rig.fixed("positions", DType::I32, i32_bytes(&[0, 1, 2, -1, 5, 900]));
        let others = rig.fixed("other positions", DType::I32, i32_bytes(&[0, 1, 2, -1, 5, 901]));
        let frequencies = rig.fixed("frequencies", DType::F32, f32_bytes(&[1.0, 0.3]));
        let out = rig.output([2, 3, 14]);
        rig.record(move |r| {
            let y = scratch_of(r, x);
            for (start, width) in [(2, 8), (10, 4)] {
                let x = Cols { tensor: y, start, width };
                r.push(Rope { x, positions, frequencies, style, head_dim: 4, inverse: false, out: x });
            }
            emit(r, y, out);
            vec![]
        });
        rig.prove(&[
            ("not turned back", Box::new(plant!(Op::Rope(op) => op.inverse = false))),
            ("other pairs", Box::new(plant!(Op::Rope(op) => op.style = other))),
            ("one position off", Box::new(plant!(Op::Rope(op) => op.positions = others))),
        ]);
    }
}

#[test]
fn dropout() {
    let mut rig = Rig::new();
    let x = rig.input("x", [2, 4, 5]);
    let seed = rig.fixed("seed", DType::U32, u32_bytes(&[1, 2, 3, 4]));
    let out = rig.output([2, 4, 5]);
    rig.record(move |r| {
        let y = r.scratch("y", DType::F32, [2, 4, 5]);
        r.push(Dropout { x, p: 0.4, seed, salt: 7, out: Out::set(y) });
        emit(r, y, out);
        vec![]
    });
    rig.prove(&[
        ("other bits", Box::new(plant!(Op::Dropout(op) => op.salt += 1))),
        ("nothing dropped", Box::new(plant!(Op::Dropout(op) => op.p = 0.0))),
    ]);
}

/// Two sequences are joined, some columns moved, and overlapping rows cut out again.
#[test]
fn copy_rows() {
    let mut rig = Rig::new();
    let (a, b) = (rig.input("a", [2, 3, 4]), rig.input("b", [2, 2, 4]));
    let outs = [rig.output([2, 4, 4]), rig.output([2, 2, 4])];
    rig.record(move |r| {
        let joined = r.scratch("joined", DType::F32, [2, 5, 4]);
        let copy = |from, from_row, to, to_row, rows| CopyRows {
            from: Cols::all(from, 4),
            from_row,
            to: Cols::all(to, 4),
            add: false,
            to_row,
            rows,
        };
        r.push(copy(a, 0, joined, 0, 3));
        r.push(copy(b, 0, joined, 3, 2));
        let narrow = r.scratch("narrow", DType::F32, [2, 2, 4]);
        r.push(Fill { out: narrow, value: 1.0 });
        let (from, to) =
            (Cols { tensor: joined, start: 1, width: 2 }, Cols { tensor: narrow, start: 2, width: 2 });
        r.push(CopyRows { from, from_row: 2, to, add: true, to_row: 0, rows: 2 });
        let cut = r.scratch("cut", DType::F32, [2, 4, 4]);
        r.push(copy(joined, 1, cut, 0, 4));
        emit(r, cut, outs[0]);
        emit(r, narrow, outs[1]);
        vec![]
    });
    rig.prove(&[
        ("overwritten instead of added", Box::new(plant!(Op::CopyRows(op) => op.add = false))),
        ("from the first row", Box::new(plant!(Op::CopyRows(op) => op.from_row = 0))),
        ("to the first row", Box::new(plant!(Op::CopyRows(op) => op.to_row = 0))),
        ("to the first columns", Box::new(plant!(Op::CopyRows(op) => op.to.start = 0))),
        ("parts over anything but zeros", Box::new(plant!(Op::Fill(op) => op.value = 0.1))),
    ]);
}

/// With rows that count for nothing, a factor on the loss, and a table that is embedding and output in one.
#[test]
fn linear_cross_entropy() {
    let mut rig = Rig::new();
    let table = rig.input("table", [6, 4]);
    let matrix = rig.input("matrix", [4, 4]);
    let tokens = rig.fixed("tokens", DType::U32, u32_bytes(&[0, 5, 2, 2, 1]));
    let targets = rig.fixed("targets", DType::I32, i32_bytes(&[5, -1, 2, 0, -1]));
    let others = rig.fixed("other targets", DType::I32, i32_bytes(&[5, -1, 2, 0, 3]));
    let loss = rig.loss(0.25);
    let dtable = rig.gradient(table);
    rig.record(move |r| {
        let [x, y, dy] = ["x", "y", "dy"].map(|name| r.scratch(name, DType::F32, [1, 5, 4]));
        r.push(Embed { tokens, table, out: x });
        r.push(Matmul::linear(x, matrix, None, y));
        let gradient = Some(LossGradient { dx: dy, dweight: Some(Out::add(dtable)), scale: 0.25 });
        r.push(LinearCrossEntropy { x: y, weight: table, targets, loss, predictions: None, gradient });
        vec![(y, dy)]
    });
    rig.prove_everywhere(&[
        (
            "scale forgotten",
            Box::new(plant!(Op::LinearCrossEntropy(op) => op.gradient.as_mut().unwrap().scale = 1.0)),
        ),
        ("other targets", Box::new(plant!(Op::LinearCrossEntropy(op) => op.targets = others))),
    ]);
}

/// Without a single target there is no loss, and no gradient.
#[test]
fn linear_cross_entropy_without_targets() {
    let mut rig = Rig::new();
    let (x, weight) = (rig.input("x", [1, 3, 4]), rig.input("weight", [5, 4]));
    let targets = rig.fixed("targets", DType::I32, i32_bytes(&[-1; 3]));
    let loss = rig.loss(1.0);
    let dweight = rig.gradient(weight);
    rig.record(move |r| {
        let (x, dx) = (scratch_of(r, x), r.scratch("dx", DType::F32, [1, 3, 4]));
        let gradient = Some(LossGradient { dx, dweight: Some(Out::add(dweight)), scale: 1.0 });
        r.push(LinearCrossEntropy { x, weight, targets, loss, predictions: None, gradient });
        vec![(x, dx)]
    });
    assert!(rig.analytic(None, false).iter().flatten().all(|&g| g == 0.0));
}

/// A layer with a low-rank adapter, `y = x Wᵀ + 0.5 · (dropout(x) Aᵀ) Bᵀ`, read by another: the second product adds to
/// the first, and both have the gradient of their sum.
#[test]
fn low_rank_adapter() {
    let mut rig = Rig::new();
    let (x, weight, bias) = (rig.input("x", SHAPE), rig.input("weight", [4, 4]), rig.input("bias", [4]));
    let (a, b, next) = (rig.input("a", [2, 4]), rig.input("b", [4, 2]), rig.input("next", [4, 4]));
    let seed = rig.fixed("seed", DType::U32, u32_bytes(&[1, 2, 3, 0]));
    let out = rig.output(SHAPE);
    rig.record(move |r| {
        let x = scratch_of(r, x);
        let [y, dropped, z] = ["y", "dropped", "z"].map(|n| r.scratch(n, DType::F32, SHAPE));
        let inner = r.scratch("inner", DType::F32, [1, 4, 2]);
        r.push(Matmul::linear(x, weight, Some(bias), y));
        r.push(Dropout { x, p: 0.3, seed, salt: 5, out: Out::set(dropped) });
        r.push(Matmul::linear(dropped, a, None, inner));
        r.push(Matmul { scale: 0.5, out: Out::add(y), ..Matmul::linear(inner, b, None, y) });
        r.push(Matmul::linear(y, next, None, z));
        emit(r, z, out);
        vec![]
    });
    rig.prove(&[
        ("the scale forgotten", Box::new(plant!(Op::Matmul(op) => op.scale = 1.0))),
        ("another mask", Box::new(plant!(Op::Dropout(op) => op.salt += 1))),
    ]);
}
