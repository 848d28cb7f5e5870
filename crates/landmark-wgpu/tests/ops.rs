//! Every op of inference against the oracle in f64, in lockstep, on whatever the sizes of the table say.
//!
//! Needs an adapter; llvmpipe (Debian's mesa-vulkan-drivers) is enough, and what CI has. Each case runs three
//! times: with everything that the adapter offers, on WebGPU's default limits without optional features, and there with kernels
//! whose threads work alone.

mod common;

use common::{compare_on_all, devices};
use landmark_core::lockstep::compare;
use landmark_core::ops::*;
use landmark_core::testing::{f32_bytes, i32_bytes, normals, u32_bytes};
use landmark_core::{Cols, DType, Layout, Out, Recorder, Tensor};

/// Sizes that straddle words, vectors and workgroups.
const SIZES: [usize; 6] = [1, 3, 4, 62, 1024, 1031];

#[test]
fn activations() {
    for n in SIZES {
        let mut layout = Layout::new();
        let [x, up, gelu, swiglu, filled] =
            ["x", "up", "gelu", "swiglu", "filled"].map(|name| layout.add(name, DType::F32, [n]));
        let mut r = Recorder::new(format!("activations of {n}"), &layout);
        r.push(Gelu { x, out: gelu });
        r.push(SwiGlu { gate: x, up, out: swiglu });
        r.push(Fill { out: filled, value: -1.5 });
        let wide: Vec<f64> = normals(1, n).iter().map(|x| x * 4.0).collect();
        let inputs = vec![(x, f32_bytes(&wide)), (up, f32_bytes(&normals(2, n)))];
        compare_on_all(&r.finish(), &inputs);
    }
}

#[test]
fn products() {
    // Rows on both sides of the matrix-vector kernel's end, and of a tile's; odd depths and widths.
    for (m, n, k) in [
        (1, 1, 1),
        (1, 5, 7),
        (2, 64, 128),
        (8, 67, 66),
        (9, 4, 4),
        (9, 70, 33),
        (65, 130, 100),
        (129, 64, 36),
    ] {
        for (has_bias, add, scale) in
            [(false, false, 1.0), (true, false, 0.5), (true, true, 1.0), (false, true, -2.0)]
        {
            let mut layout = Layout::new();
            let a = layout.add("a", DType::F32, [m, k]);
            let b = layout.add("b", DType::F32, [n, k]);
            let bias = layout.add("bias", DType::F32, [n]);
            let out = layout.add("out", DType::F32, [m, n]);
            let mut r = Recorder::new(format!("{m} x {n} x {k}, bias {has_bias}, add {add}"), &layout);
            r.push(Matmul {
                a,
                b,
                transpose_a: false,
                transpose_b: true,
                scale,
                bias: has_bias.then_some(bias),
                out: Out { tensor: out, add },
            });
            let values =
                |salt, tensor: Tensor| (tensor, f32_bytes(&normals(salt, layout.info(tensor).shape.numel())));
            let inputs = vec![values(1, a), values(2, b), values(3, bias), values(4, out)];
            compare_on_all(&r.finish(), &inputs);
        }
    }
}

/// In f16, which matrix units multiply where there are some: extents on both sides of their tiles and slices, rows that are
/// whole vectors and rows that are not, and both kinds of result.
#[test]
fn products_of_halves() {
    for (m, n, k) in
        [(9, 16, 8), (17, 40, 37), (70, 130, 36), (130, 90, 72), (257, 140, 128), (300, 260, 200)]
    {
        for (dtype, add) in [(DType::F32, true), (DType::F16, false)] {
            let mut layout = Layout::new();
            let a = layout.add("a", DType::F16, [m, k]);
            let b = layout.add("b", DType::F16, [n, k]);
            let bias = layout.add("bias", DType::F32, [n]);
            let out = layout.add("out", dtype, [m, n]);
            let mut r = Recorder::new(format!("{m} x {n} x {k}, halves into {}", dtype.name()), &layout);
            r.push(Matmul {
                scale: 0.5,
                out: Out { tensor: out, add },
                ..Matmul::linear(a, b, Some(bias), out)
            });
            let halves = |salt, tensor: Tensor| {
                let values = normals(salt, layout.info(tensor).shape.numel());
                (tensor, values.iter().flat_map(|x| half::f16::from_f64(*x).to_le_bytes()).collect())
            };
            let mut inputs = vec![halves(1, a), halves(2, b), floats(&layout, 3, bias)];
            if add {
                inputs.push(floats(&layout, 4, out));
            }
            // What is written in f16 is rounded to it.
            let allowed = if dtype == DType::F16 { 0.001 } else { common::tolerance("") };
            let program = r.finish();
            for device in devices() {
                let divergence =
                    pollster::block_on(compare(&program, device, &inputs, |_| allowed)).expect("a product");
                assert_eq!(divergence, None, "{}", program.name);
            }
        }
    }
}

fn floats(layout: &Layout, salt: u32, tensor: Tensor) -> (Tensor, Vec<u8>) {
    (tensor, f32_bytes(&normals(salt, layout.info(tensor).shape.numel())))
}

#[test]
fn norms() {
    for (rows, cols) in [(1, 1), (3, 6), (5, 7), (2, 64), (7, 260), (2, 2052)] {
        for kind in [NormKind::Layer { eps: 1e-5 }, NormKind::Rms { eps: 1e-6 }] {
            for has_bias in [false, true] {
                let mut layout = Layout::new();
                let [x, delta, sum, out, alone] = ["x", "delta", "sum", "out", "alone"]
                    .map(|name| layout.add(name, DType::F32, [rows, cols]));
                let [weight, bias] = ["weight", "bias"].map(|name| layout.add(name, DType::F32, [cols]));
                let given = has_bias.then_some(bias);
                let mut r = Recorder::new(format!("{kind:?} of {rows} x {cols}, bias {has_bias}"), &layout);
                r.push(Norm { kind, x, weight, bias: given, out: alone });
                r.push(AddNorm { kind, x, delta, weight, bias: given, sum, out });
                let inputs: Vec<_> = [x, delta, weight, bias]
                    .iter()
                    .zip(1..)
                    .map(|(t, salt)| floats(&layout, salt, *t))
                    .collect();
                compare_on_all(&r.finish(), &inputs);
            }
        }
    }
}

#[test]
fn embeddings_and_copies() {
    for (vocab, cols) in [(5, 3), (7, 4), (300, 66)] {
        let mut layout = Layout::new();
        let tokens = layout.add("tokens", DType::U32, [2, 5]);
        let table = layout.add("table", DType::F32, [vocab, cols]);
        let out = layout.add("out", DType::F32, [2, 5, cols]);
        let to = layout.add("to", DType::F32, [2, 7, cols + 3]);
        let mut r = Recorder::new(format!("embedding {vocab} x {cols}"), &layout);
        r.push(Embed { tokens, table, out });
        for (add, start) in [(false, 0), (true, 1), (false, 3)] {
            let from = Cols { tensor: out, start: 1, width: cols - 1 };
            let to = Cols { tensor: to, start, width: cols - 1 };
            r.push(CopyRows { from, from_row: 1, to, add, to_row: 3, rows: 4 });
        }
        let ids: Vec<u32> = (0..10).map(|i| i * 7 % vocab as u32).collect();
        let inputs = vec![(tokens, u32_bytes(&ids)), floats(&layout, 1, table), floats(&layout, 2, to)];
        compare_on_all(&r.finish(), &inputs);
    }
}

#[test]
fn likeliest_tokens() {
    for (rows, vocabulary) in [(1, 1), (3, 31), (2, 1000), (1, 4099)] {
        for banned in [None, Some(vocabulary as u32 / 2)] {
            let mut layout = Layout::new();
            let logits = layout.add("logits", DType::F32, [rows, vocabulary]);
            let out = layout.add("out", DType::U32, [rows]);
            let mut r = Recorder::new(format!("likeliest of {rows} x {vocabulary}"), &layout);
            r.push(Likeliest { logits, banned, out });
            let mut values: Vec<f32> =
                (0..rows * vocabulary).map(|i| ((i * 7919) % 1009) as f32 / 8.0 - 60.0).collect();
            // Equal ones, the first of which may be banned, and tokens that cannot occur.
            values[vocabulary / 2] = 70.0;
            values[vocabulary - 1] = 70.0;
            values[0] = f32::NEG_INFINITY;
            if rows == 3 {
                values[vocabulary + 5] = f32::NAN;
                values[2 * vocabulary + 9] = f32::INFINITY;
            }
            let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            compare_on_all(&r.finish(), &[(logits, bytes)]);
        }
    }
}

#[test]
fn rotary_positions() {
    for style in [RopeStyle::Pairs, RopeStyle::Halves] {
        for head_dim in [2, 4, 6, 8, 10, 20, 128] {
            let mut layout = Layout::new();
            let x = layout.add("x", DType::F32, [3, 5 * head_dim + 2]);
            let out = layout.add("out", DType::F32, [3, 2 * head_dim]);
            let positions = layout.add("positions", DType::I32, [3]);
            let frequencies = layout.add("frequencies", DType::F32, [head_dim / 2]);
            let mut r = Recorder::new(format!("{style:?} of {head_dim}"), &layout);
            let cols = Cols { tensor: x, start: head_dim + 2, width: 2 * head_dim };
            let all = Cols::all(out, 2 * head_dim);
            for (out, inverse) in [(all, false), (cols, false), (cols, true)] {
                r.push(Rope { x: cols, positions, frequencies, style, head_dim, inverse, out });
            }
            let angles: Vec<f64> = (0..head_dim / 2).map(|i| 0.7_f64.powi(i as i32)).collect();
            let inputs = vec![
                floats(&layout, 1, x),
                (positions, i32_bytes(&[-1, 7, 120])),
                (frequencies, f32_bytes(&angles)),
            ];
            compare_on_all(&r.finish(), &inputs);
        }
    }
}

/// Predictions are compared exactly, losses as products are.
#[test]
fn losses() {
    for (rows, cols, vocab) in [(1, 4, 3), (5, 7, 300), (11, 64, 1027)] {
        for (predicts, has_targets) in [(true, true), (false, true), (true, false)] {
            let mut layout = Layout::new();
            let x = layout.add("x", DType::F32, [rows, cols]);
            let weight = layout.add("weight", DType::F32, [vocab, cols]);
            let targets = layout.add("targets", DType::I32, [rows]);
            let loss = layout.add("loss", DType::F32, [1]);
            let predictions = layout.add("predictions", DType::U32, [rows]);
            let mut r = Recorder::new(format!("loss of {rows} x {vocab}"), &layout);
            let predictions = predicts.then_some(predictions);
            r.push(LinearCrossEntropy { x, weight, targets, loss, predictions, gradient: None });
            let target = |i: usize| if i % 3 == 2 || !has_targets { -1 } else { (i * 17 % vocab) as i32 };
            let inputs = vec![
                floats(&layout, 1, x),
                floats(&layout, 2, weight),
                (targets, i32_bytes(&(0..rows).map(target).collect::<Vec<i32>>())),
            ];
            compare_on_all(&r.finish(), &inputs);
        }
    }
}

#[test]
fn the_devices_are_of_one_adapter() {
    let [full, others @ ..] = devices();
    assert!(full.info().largest_binding >= 128 << 20);
    assert!(others.iter().all(|other| other.info().name == full.info().name));
}
