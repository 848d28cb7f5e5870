//! Products of a few rows with what stands around them, as a step of generation records them: they are one launch where the
//! kernel serves them, and must give what the ops give one by one.

mod common;

use common::{Case, cuda};
use landmark_core::ops::{AddNorm, Gelu, Matmul, Norm, NormKind, SwiGlu};
use landmark_core::{DType, Out};

const HALVES: [DType; 2] = [DType::Bf16, DType::F16];
const F32: DType = DType::F32;

fn scale(inner: usize) -> f64 {
    1.0 / (inner as f64).sqrt()
}

#[test]
fn single_products() {
    let Some(cuda) = cuda() else { return };
    for dtype in HALVES {
        for (rows, columns, inner) in
            [(1, 300, 64), (2, 7, 32), (3, 133, 96), (5, 40, 224), (8, 65, 512), (1, 1, 1024)]
        {
            for (out_type, add, with_bias) in [(dtype, false, false), (F32, true, true), (dtype, false, true)]
            {
                let mut case = Case::new(format!(
                    "{rows} x {columns} x {inner} {} to {}",
                    dtype.name(),
                    out_type.name()
                ));
                let x = case.normal(dtype, [rows, inner], 1.0);
                let weight = case.normal(dtype, [columns, inner], scale(inner));
                let bias = with_bias.then(|| case.normal(F32, [columns], 1.0));
                let out = if add {
                    case.normal(out_type, [rows, columns], 1.0)
                } else {
                    case.result(out_type, [rows, columns])
                };
                case.check(cuda, |r| {
                    let plain = Matmul::linear(x, weight, bias, out);
                    r.push(Matmul { scale: 0.5, out: Out { tensor: out, add }, ..plain });
                });
            }
        }
    }
}

#[test]
fn a_norm_and_three_products_of_its_result() {
    let Some(cuda) = cuda() else { return };
    for dtype in HALVES {
        for (rows, width) in [(1, 128), (2, 96), (7, 64)] {
            let mut case = Case::new(format!("AddNorm and q, k, v of {rows} x {width} {}", dtype.name()));
            let stream = case.normal(F32, [rows, width], 2.0);
            let delta = case.normal(dtype, [rows, width], 1.0);
            let weight = case.normal(F32, [width], 1.0);
            let products = [width, 32, 33].map(|n| case.normal(dtype, [n, width], scale(width)));
            let outs = [width, 32, 33].map(|n| case.result(dtype, [rows, n]));
            let sum = case.result(F32, [rows, width]);
            let kind = NormKind::Rms { eps: 1e-6 };
            case.check(cuda, |r| {
                let out = r.scratch("normed", dtype, [rows, width]);
                r.push(AddNorm { kind, x: stream, delta, weight, bias: None, sum, out });
                for (b, to) in products.into_iter().zip(outs) {
                    r.push(Matmul::linear(out, b, None, to));
                }
            });
        }
    }
}

#[test]
fn a_norm_that_others_read_too() {
    let Some(cuda) = cuda() else { return };
    let (rows, width, dtype) = (2, 64, DType::Bf16);
    let mut case = Case::new("Norm, product with bias and Gelu");
    let stream = case.normal(F32, [rows, width], 2.0);
    let [weight, shift] = [(); 2].map(|()| case.normal(F32, [width], 1.0));
    let up = case.normal(dtype, [100, width], scale(width));
    let bias = case.normal(F32, [100], 1.0);
    let result = case.result(dtype, [rows, 100]);
    let again = case.result(dtype, [rows, 100]);
    let kind = NormKind::Layer { eps: 1e-5 };
    case.check(cuda, |r| {
        let out = r.scratch("normed", dtype, [rows, width]);
        let inner = r.scratch("up", dtype, [rows, 100]);
        r.push(Norm { kind, x: stream, weight, bias: Some(shift), out });
        r.push(Matmul::linear(out, up, Some(bias), inner));
        r.push(Gelu { x: inner, out: result });
        r.push(Matmul::linear(out, up, None, again));
    });
}

#[test]
fn gate_and_inner_matrix_with_swiglu() {
    let Some(cuda) = cuda() else { return };
    for dtype in HALVES {
        for rows in [1, 3] {
            let (width, hidden) = (96, 70);
            let mut case = Case::new(format!("SwiGlu of {rows} {}", dtype.name()));
            let x = case.normal(dtype, [rows, width], 1.0);
            let [gate, up] = [(); 2].map(|()| case.normal(dtype, [hidden, width], scale(width)));
            let out = case.result(dtype, [rows, hidden]);
            case.check(cuda, |r| {
                let [a, b] = ["gate", "up"].map(|name| r.scratch(name, dtype, [rows, hidden]));
                r.push(Matmul::linear(x, gate, None, a));
                r.push(Matmul::linear(x, up, None, b));
                r.push(SwiGlu { gate: a, up: b, out });
            });
        }
    }
}
