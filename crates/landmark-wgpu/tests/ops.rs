//! Every op of inference against the oracle in f64, in lockstep, on whatever the sizes of the table say.
//!
//! Needs an adapter; llvmpipe (Debian's mesa-vulkan-drivers) is enough, and what CI has. Each case runs twice: with
//! everything that the adapter offers, and on WebGPU's default limits without optional features.

mod common;

use common::{compare_on_all, devices};
use landmark_core::ops::*;
use landmark_core::testing::{f32_bytes, normals};
use landmark_core::{DType, Layout, Out, Recorder, Tensor};

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

#[test]
fn both_devices_are_there() {
    let [full, baseline] = devices();
    assert!(full.info().largest_binding >= 128 << 20);
    assert_eq!(full.info().name, baseline.info().name);
}
