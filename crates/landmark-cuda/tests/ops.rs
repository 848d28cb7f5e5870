//! Every op but attention and the memory against the oracle, in every element type, at sizes around every boundary.

mod common;

use common::{Case, FLOATS, cuda};
use landmark_core::ops::{
    Adafactor, AdamW, AddNorm, Bernoulli, ClipScale, CopyRows, Dropout, Embed, EmbedBackward, Fill, Gelu,
    GeluBackward, Likeliest, LinearCrossEntropy, LossGradient, Matmul, Norm, NormBackward, NormKind, Op,
    Rope, RopeStyle, Sgd, SquaredNorm, SumRows, SwiGlu, SwiGluBackward,
};
use landmark_core::testing::{check_begun_reads, now};
use landmark_core::{Backend, Cols, DType, Error, Out, plant};

const F32: DType = DType::F32;

fn out(tensor: landmark_core::Tensor, add: bool) -> Out {
    Out { tensor, add }
}

/// A result that is written, or one that holds numbers and is added to.
fn target(case: &mut Case, dtype: DType, shape: &[usize], add: bool) -> landmark_core::Tensor {
    if add { case.normal(dtype, shape, 1.0) } else { case.result(dtype, shape) }
}

#[test]
fn activations() {
    let Some(cuda) = cuda() else { return };
    for dtype in FLOATS {
        for n in [1, 7, 8, 2048, 2051] {
            let mut case = Case::new(format!("activations of {n} {}", dtype.name()));
            let [x, y, d] = [(); 3].map(|()| case.normal(dtype, [n], 2.0));
            let [a, b] = [(); 2].map(|()| case.result(dtype, [n]));
            let [e, f, g] = [false, true, true].map(|add| target(&mut case, dtype, &[n], add));
            case.check(cuda, |r| {
                r.push(Gelu { x, out: a });
                r.push(GeluBackward { x, dout: d, dx: out(e, false) });
                r.push(SwiGlu { gate: x, up: y, out: b });
                r.push(SwiGluBackward {
                    gate: x,
                    up: y,
                    dout: d,
                    dgate: Some(out(f, true)),
                    dup: Some(out(g, true)),
                });
                r.push(SwiGluBackward { gate: y, up: x, dout: d, dgate: None, dup: Some(out(e, true)) });
            });
        }
    }
}

#[test]
fn norms() {
    let Some(cuda) = cuda() else { return };
    for half in FLOATS {
        let more = [(5, 1), (4, 100), (9, 256), (2, 1024), (2, 4100)];
        let shapes =
            [(1, 24), (3, 37), (140, 64)].into_iter().chain(more.into_iter().filter(|_| half == F32));
        for (rows, cols) in shapes {
            for kind in [NormKind::Layer { eps: 1e-5 }, NormKind::Rms { eps: 1e-6 }] {
                let mut case = Case::new(format!("{kind:?} of {rows} x {cols} {}", half.name()));
                let is_layer = matches!(kind, NormKind::Layer { .. });
                let x = case.normal(F32, [rows, cols], 3.0);
                let [delta, dout] = [(); 2].map(|()| case.normal(half, [rows, cols], 1.0));
                let [weight, shift] = [(); 2].map(|()| case.normal(F32, [cols], 1.0));
                let bias = is_layer.then_some(shift);
                let sum = case.result(F32, [rows, cols]);
                let [first, second] = [(); 2].map(|()| case.result(half, [rows, cols]));
                let dx = case.normal(F32, [rows, cols], 1.0);
                let fresh = case.result(F32, [rows, cols]);
                let dweight = case.normal(F32, [cols], 1.0);
                let dbias = case.result(F32, [cols]);
                case.check(cuda, |r| {
                    r.push(Norm { kind, x, weight, bias, out: first });
                    r.push(AddNorm { kind, x, delta, weight, bias, sum, out: second });
                    r.push(NormBackward {
                        kind,
                        x,
                        weight,
                        dout,
                        dx: Some(out(dx, true)),
                        dweight: Some(out(dweight, true)),
                        dbias: is_layer.then(|| out(dbias, false)),
                    });
                    let (dweight, dbias) = (None, None);
                    r.push(NormBackward {
                        kind,
                        x,
                        weight,
                        dout,
                        dx: Some(out(fresh, false)),
                        dweight,
                        dbias,
                    });
                });
            }
        }
    }
}

/// A gradient that is wanted in another type right behind the norm is written by the norm's kernel.
#[test]
fn a_copy_behind_a_norm_is_written_on_the_way() {
    let Some(cuda) = cuda() else { return };
    let (rows, cols, kind) = (6, 64, NormKind::Layer { eps: 1e-5 });
    let mut case = Case::new("a copy behind a norm");
    let x = case.normal(F32, [2, 3, cols], 1.0);
    let dout = case.normal(DType::Bf16, [rows, cols], 1.0);
    let weight = case.normal(F32, [cols], 1.0);
    let dx = case.normal(F32, [2, 3, cols], 1.0);
    let copy = case.result(DType::Bf16, [2, 3, cols]);
    case.check(cuda, |r| {
        let (dweight, dbias) = (None, None);
        r.push(NormBackward { kind, x, weight, dout, dx: Some(out(dx, true)), dweight, dbias });
        let (from, to) = (Cols::all(dx, cols), Cols::all(copy, cols));
        r.push(CopyRows { from, from_row: 0, to, add: false, to_row: 0, rows: 3 });
    });
}

#[test]
fn products() {
    let Some(cuda) = cuda() else { return };
    for dtype in FLOATS {
        for (m, n, k) in [(1, 1, 1), (3, 5, 7), (12, 40, 24), (9, 136, 64), (130, 96, 72)] {
            for bits in 0..16 {
                let [transpose_a, transpose_b, add, with_bias] = [1, 2, 4, 8].map(|bit| bits & bit != 0);
                let result = if bits % 3 == 0 { F32 } else { dtype };
                let name = format!("product {m} x {n} x {k} {} {bits}", dtype.name());
                let mut case = Case::new(name);
                let a = case.normal(dtype, if transpose_a { [k, m] } else { [m, k] }, 1.0);
                let b = case.normal(dtype, if transpose_b { [n, k] } else { [k, n] }, 1.0);
                // A bias is rounded to the result's type: these numbers are not changed by that.
                let shift: Vec<f64> = (0..n).map(|i| (i % 23) as f64 / 16.0 - 0.5).collect();
                let bias = with_bias.then(|| case.holding(F32, [n], &shift));
                let to = target(&mut case, result, &[m, n], add);
                let op = Matmul { a, b, transpose_a, transpose_b, scale: 0.5, bias, out: out(to, add) };
                case.check(cuda, |r| r.push(op));
            }
        }
    }
}

#[test]
fn column_sums() {
    let Some(cuda) = cuda() else { return };
    for dtype in FLOATS {
        for (rows, cols, add) in [(1, 1, true), (33, 70, false), (257, 300, true), (5000, 8, false)] {
            let mut case = Case::new(format!("column sums of {rows} x {cols} {}", dtype.name()));
            let x = case.normal(dtype, [rows, cols], 1.0);
            let to = target(&mut case, F32, &[cols], add);
            case.check(cuda, |r| r.push(SumRows { x, out: out(to, add) }));
        }
    }
}

#[test]
fn rotary_positions() {
    let Some(cuda) = cuda() else { return };
    for dtype in FLOATS {
        for (rows, heads, head_dim) in
            [(1, 1, 2), (5, 3, 6), (7, 2, 64), (9, 2, 80), (4, 1, 128), (6, 2, 256)]
        {
            for (style, inverse) in
                [(RopeStyle::Pairs, false), (RopeStyle::Halves, false), (RopeStyle::Pairs, true)]
            {
                let width = heads * head_dim;
                let name = format!("rope {style:?} {rows} x {heads} x {head_dim} {} {inverse}", dtype.name());
                let mut case = Case::new(name);
                let qkv = case.normal(dtype, [rows, 3 * width], 1.0);
                let apart = case.normal(dtype, [rows, width], 1.0);
                let places: Vec<f64> = (0..rows).map(|i| (i * i) as f64 * 7.0 - 1.0).collect();
                let positions = case.holding(DType::I32, [rows], &places);
                let angles: Vec<f64> = (0..head_dim / 2).map(|i| f64::from(0.7_f32.powi(i as i32))).collect();
                let frequencies = case.holding(F32, [head_dim / 2], &angles);
                let rope = |x, out| Rope { x, positions, frequencies, style, head_dim, inverse, out };
                let cols = |start| Cols { tensor: qkv, start, width };
                case.check(cuda, |r| {
                    // The values are left alone.
                    r.push(rope(cols(2 * width), Cols::all(apart, width)));
                    let (first, second) = if inverse { (width, 0) } else { (0, width) };
                    r.push(rope(cols(first), cols(first)));
                    r.push(rope(cols(second), cols(second)));
                });
            }
        }
    }
}

#[test]
fn rows_and_constants() {
    let Some(cuda) = cuda() else { return };
    for from_type in FLOATS {
        for to_type in FLOATS {
            for (start, width, add) in [(0, 16, false), (8, 8, true), (3, 5, false), (4, 12, true)] {
                let mut case = Case::new(format!("rows {from_type:?} to {to_type:?}, {width} from {start}"));
                let from = case.normal(from_type, [2, 5, 24], 1.0);
                let to = case.normal(to_type, [2, 7, 32], 1.0);
                let filled = case.result(to_type, [2 * width + 1]);
                case.check(cuda, |r| {
                    let (from, to) = (
                        Cols { tensor: from, start, width },
                        Cols { tensor: to, start: start + start % 2, width },
                    );
                    r.push(CopyRows { from, from_row: 1, to, add, to_row: 3, rows: 4 });
                    r.push(Fill { out: filled, value: 0.375 });
                });
            }
        }
    }
}

#[test]
fn embeddings() {
    let Some(cuda) = cuda() else { return };
    for table_type in FLOATS {
        for (tokens, cols) in [(1, 3), (40, 12), (300, 64), (2500, 8)] {
            let vocabulary = 29;
            let mut case = Case::new(format!("embedding of {tokens} x {cols} {}", table_type.name()));
            let ids: Vec<f64> = (0..tokens).map(|i| (i * i % vocabulary.min(i + 2)) as f64).collect();
            let ids = case.holding(DType::U32, [tokens], &ids);
            let table = case.normal(table_type, [vocabulary, cols], 1.0);
            let dout = case.normal(F32, [tokens, cols], 1.0);
            let embedded = case.result(F32, [tokens, cols]);
            let added = case.normal(F32, [vocabulary, cols], 1.0);
            let set = case.result(F32, [vocabulary, cols]);
            case.check(cuda, |r| {
                r.push(Embed { tokens: ids, table, out: embedded });
                r.push(EmbedBackward { tokens: ids, dout, dtable: out(added, true) });
                r.push(EmbedBackward { tokens: ids, dout, dtable: out(set, false) });
            });
        }
    }
}

#[test]
fn likeliest_tokens() {
    let Some(cuda) = cuda() else { return };
    for (rows, vocabulary) in [(1, 1), (3, 31), (2, 1000), (1, 50_304), (2, 32_002)] {
        for banned in [None, Some(vocabulary as u32 / 2)] {
            let mut case = Case::new(format!("likeliest of {rows} x {vocabulary}"));
            let mut values: Vec<f64> =
                (0..rows * vocabulary).map(|i| ((i * 7919) % 1009) as f64 / 8.0 - 60.0).collect();
            // Equal ones, the first of which may be banned, and tokens that cannot occur.
            values[vocabulary / 2] = 70.0;
            values[vocabulary - 1] = 70.0;
            values[0] = f64::NEG_INFINITY;
            if rows == 3 {
                values[vocabulary + 5] = f64::NAN;
                values[2 * vocabulary + 9] = f64::INFINITY;
            }
            let logits = case.holding(F32, [rows, vocabulary], &values);
            let chosen = case.result(DType::U32, [rows]);
            case.check(cuda, |r| r.push(Likeliest { logits, banned, out: chosen }));
        }
    }
}

#[test]
fn random_masks() {
    let Some(cuda) = cuda() else { return };
    for dtype in FLOATS {
        for n in [1, 4, 1027] {
            let mut case = Case::new(format!("masks of {n} {}", dtype.name()));
            let x = case.normal(dtype, [n], 1.0);
            let seed = case.holding(DType::U32, [4], &[5.0, 4_000_000_000.0, 3.0, 2.0]);
            let dropped = case.result(dtype, [n]);
            let added = case.normal(F32, [n], 1.0);
            let drawn = case.result(DType::U32, [n]);
            case.check(cuda, |r| {
                r.push(Dropout { x, p: 0.3, seed, salt: 9, out: out(dropped, false) });
                r.push(Dropout { x, p: 0.6, seed, salt: 10, out: out(added, true) });
                r.push(Bernoulli { p: 0.4, seed, salt: 11, out: drawn });
            });
        }
    }
}

#[test]
fn losses() {
    let Some(cuda) = cuda() else { return };
    for dtype in FLOATS {
        for (rows, width, vocabulary) in [(1, 8, 2), (7, 16, 11), (20, 24, 517), (3, 8, 5000)] {
            for add in [false, true] {
                let mut case = Case::new(format!("loss of {rows} x {width} x {vocabulary} {}", dtype.name()));
                // Logits are rounded between the products; the largest are several times the loss.
                case.within = (dtype, 8.0);
                let x = case.normal(dtype, [rows, width], 1.0);
                let weight = case.normal(dtype, [vocabulary, width], 0.5);
                let targets: Vec<f64> = (0..rows)
                    .map(|i| if i % 3 == 1 { -1.0 } else { ((i * 7 + 1) % vocabulary) as f64 })
                    .collect();
                let targets = case.holding(DType::I32, [rows], &targets);
                let nobody = case.holding(DType::I32, [rows], &vec![-1.0; rows]);
                let [loss, bare, none] = [(); 3].map(|()| case.result(F32, [1]));
                let [dx, zero] = [(); 2].map(|()| case.result(dtype, [rows, width]));
                let dweight = target(&mut case, F32, &[vocabulary, width], add);
                let predictions = case.result(DType::U32, [rows]);
                // In half types, logits that round to the same number are equal.
                let predictions = (dtype == F32).then_some(predictions);
                case.check(cuda, |r| {
                    let op = LinearCrossEntropy { x, weight, targets, loss, predictions, gradient: None };
                    r.push(LinearCrossEntropy { loss: bare, ..op.clone() });
                    let gradient = LossGradient { dx, dweight: Some(out(dweight, add)), scale: 0.5 };
                    r.push(LinearCrossEntropy { gradient: Some(gradient), ..op.clone() });
                    let gradient = LossGradient { dx: zero, dweight: None, scale: 1.0 };
                    r.push(LinearCrossEntropy {
                        targets: nobody,
                        loss: none,
                        gradient: Some(gradient),
                        ..op
                    });
                });
            }
        }
    }
}

#[test]
fn optimisers() {
    let Some(cuda) = cuda() else { return };
    for copy_type in [None, Some(DType::Bf16), Some(DType::F16)] {
        for shape in [&[3][..], &[1027], &[9, 70], &[130, 8]] {
            let mut case = Case::new(format!("optimisers of {shape:?}, copy {copy_type:?}"));
            let is_matrix = shape.len() == 2;
            let numel: usize = shape.iter().product();
            let squares = |case: &mut Case, shape: &[usize]| {
                let numel: usize = shape.iter().product();
                let values: Vec<f64> = (0..numel).map(|i| 0.01 + (i % 13) as f64 * 0.125).collect();
                case.holding(F32, shape, &values)
            };
            let hyper = case.holding(F32, [3], &[0.0625, 0.75, 0.5]);
            let scale = case.holding(F32, [1], &[0.5]);
            let params = [(); 3].map(|()| case.normal(F32, shape, 1.0));
            let grads = [(); 3].map(|()| case.normal(F32, shape, 1.0));
            let copies = [(); 3].map(|()| copy_type.map(|t| case.result(t, shape)));
            let [m, buffer] = [(); 2].map(|()| case.normal(F32, shape, 0.5));
            let v = squares(&mut case, shape);
            let rows = squares(&mut case, if is_matrix { &shape[..1] } else { shape });
            let columns = is_matrix.then(|| squares(&mut case, &shape[1..]));
            let (norm, clip) = (case.holding(F32, [1], &[2.0]), case.result(F32, [1]));
            let x = case.normal(DType::Bf16, [numel], 1.0);
            case.check(cuda, |r| {
                r.push(AdamW {
                    param: params[0],
                    copy: copies[0],
                    grad: grads[0],
                    m,
                    v,
                    hyper,
                    scale: Some(scale),
                    beta1: 0.9,
                    beta2: 0.95,
                    eps: 1e-8,
                    weight_decay: 0.1,
                });
                r.push(Sgd {
                    param: params[1],
                    copy: copies[1],
                    grad: grads[1],
                    buffer,
                    hyper,
                    scale: None,
                    momentum: 0.9,
                    weight_decay: 0.1,
                });
                r.push(Adafactor {
                    param: params[2],
                    copy: copies[2],
                    grad: grads[2],
                    rows,
                    columns,
                    hyper,
                    scale: Some(scale),
                    weight_decay: 0.01,
                });
                r.push(SquaredNorm { x, out: out(norm, true) });
                r.push(ClipScale { squared_norm: norm, max_norm: 0.5, out: clip });
            });
        }
    }
}

#[test]
fn a_token_outside_the_vocabulary_is_named() {
    let Some(cuda) = cuda() else { return };
    let mut case = Case::new("a bad token");
    let tokens = case.holding(DType::U32, [3], &[1.0, 9.0, 2.0]);
    let table = case.normal(F32, [4, 8], 1.0);
    let embedded = case.result(F32, [3, 8]);
    let program = case.program(|r| r.push(Embed { tokens, table, out: embedded }));
    let mut arena = cuda.allocate(&case.layout).unwrap();
    for (tensor, bytes) in &case.inputs {
        cuda.write(&mut arena, *tensor, bytes).unwrap();
    }
    let mut plan = cuda.compile(&program, &arena).unwrap();
    cuda.run(&mut plan, &mut arena).unwrap();
    match now(cuda.read(&arena, embedded)) {
        Err(Error::Index { op: "Embed", index: 9, limit: 4, .. }) => {}
        other => panic!("{other:?}"),
    }
    // It is said once; the next run is a new one.
    cuda.write_at(&mut arena, tokens, 1, &3_u32.to_le_bytes()).unwrap();
    cuda.run(&mut plan, &mut arena).unwrap();
    assert!(now(cuda.read(&arena, embedded)).is_ok());
}

#[test]
fn writes_of_any_size_and_place_arrive_in_order() {
    let Some(cuda) = cuda() else { return };
    let mut case = Case::new("writes");
    let large = case.normal(F32, [20_000], 1.0);
    let small = case.normal(DType::Bf16, [37], 1.0);
    let mut arena = cuda.allocate(&case.layout).unwrap();
    let mut expected: Vec<Vec<u8>> =
        case.layout.tensors().iter().map(|t| vec![0; t.shape.numel() * t.dtype.size()]).collect();
    for step in 0..3000_usize {
        let (tensor, which) = if step % 3 == 0 { (small, 1) } else { (large, 0) };
        let info = case.layout.info(tensor);
        let (size, numel) = (info.dtype.size(), info.shape.numel());
        let first = step * 31 % numel;
        let n = (if step % 500 == 7 { 9000 } else { step % 11 }).min(numel - first);
        let bytes: Vec<u8> = (0..n * size).map(|i| (i + step) as u8).collect();
        cuda.write_at(&mut arena, tensor, first, &bytes).unwrap();
        expected[which][first * size..][..n * size].copy_from_slice(&bytes);
    }
    for (which, tensor) in [large, small].into_iter().enumerate() {
        assert!(now(cuda.read(&arena, tensor)).unwrap() == expected[which], "tensor {which}");
    }
    let part = now(cuda.read_at(&arena, large, 5..9)).unwrap();
    assert_eq!(part, expected[0][20..36]);
    assert!(matches!(cuda.write_at(&mut arena, small, 30, &[0; 20]), Err(Error::Size { .. })));
    assert!(matches!(now(cuda.read_at(&arena, small, 30..40)), Err(Error::Size { .. })));
}

/// What waits to be written to tensors that nobody has any more goes nowhere else.
#[test]
fn writes_outlive_their_tensors() {
    let Some(cuda) = cuda() else { return };
    let mut case = Case::new("given up");
    let tensor = case.normal(F32, [64], 1.0);
    for round in 0..4_u8 {
        let mut arena = cuda.allocate(&case.layout).unwrap();
        assert!(now(cuda.read(&arena, tensor)).unwrap().iter().all(|&byte| byte == 0), "round {round}");
        cuda.write(&mut arena, tensor, &[round + 1; 256]).unwrap();
    }
}

#[test]
fn reads_that_were_begun_show_what_was_there() {
    let Some(cuda) = cuda() else { return };
    check_begun_reads(cuda);
}

/// The checks above are seen to fail.
#[test]
fn planted_bugs_are_seen() {
    let Some(cuda) = cuda() else { return };
    let kind = NormKind::Rms { eps: 1e-6 };
    let mut case = Case::new("planted");
    let x = case.normal(DType::Bf16, [12, 16], 1.0);
    let weight = case.normal(F32, [16], 1.0);
    let [normed, turned] = [(); 2].map(|()| case.result(DType::Bf16, [12, 16]));
    let positions = case.holding(DType::I32, [12], &[1.0; 12]);
    let frequencies = case.holding(F32, [4], &[1.0, 0.5, 0.25, 0.125]);
    let product = case.result(DType::Bf16, [12, 12]);
    let record = |r: &mut landmark_core::Recorder| {
        r.push(Norm { kind, x, weight, bias: None, out: normed });
        let (style, inverse, head_dim) = (RopeStyle::Halves, false, 8);
        let (from, to) = (Cols::all(normed, 16), Cols::all(turned, 16));
        r.push(Rope { x: from, positions, frequencies, style, head_dim, inverse, out: to });
        r.push(Matmul::linear(turned, x, None, product));
    };
    case.check(cuda, record);
    type Plant = fn(&mut Op) -> bool;
    let plants: [(&str, Plant); 3] = [
        ("eps", plant!(Op::Norm(op) => op.kind = NormKind::Rms { eps: 0.3 })),
        ("style", plant!(Op::Rope(op) => op.style = RopeStyle::Pairs)),
        ("scale", plant!(Op::Matmul(op) => op.scale = 1.05)),
    ];
    for (name, plant) in plants {
        let ratio = case.compare(cuda, record, plant);
        assert!(!common::fits(ratio), "{name}: only {ratio}");
    }
}
