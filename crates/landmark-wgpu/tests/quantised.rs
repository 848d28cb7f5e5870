//! Weights in 8 and 4 bits: what is written is rounded to blocks, and products of the rounded values are as exact as
//! any.

mod common;

use common::tolerance;
use landmark_core::lockstep::compare;
use landmark_core::ops::{Embed, Gelu, LinearCrossEntropy, Matmul};
use landmark_core::quantize::{Bits, dequantize, quantize};
use landmark_core::testing::{f32_bytes, i32_bytes, normals, u32_bytes};
use landmark_core::{Backend, DType, Layout, Recorder};
use landmark_wgpu::{Options, Wgpu};
use pollster::block_on;

fn open(bits: Bits, largest_binding: Option<u64>) -> Wgpu {
    let options = Options { weights: Some(bits), largest_binding, baseline: true, ..Options::default() };
    block_on(Wgpu::open(&options)).expect("an adapter")
}

#[test]
fn products_embeddings_and_losses() {
    for bits in [Bits::Eight, Bits::Four] {
        for (largest, rows, cols, vocab) in
            [(None, 1, 32, 3), (None, 3, 96, 66), (None, 11, 160, 70), (Some(5000), 9, 128, 130)]
        {
            let device = open(bits, largest);
            let mut layout = Layout::new();
            let tokens = layout.add("tokens", DType::U32, [rows]);
            let table = layout.add("table.weight", DType::F32, [vocab, cols]);
            let x = layout.add("x", DType::F32, [rows, cols]);
            let out = layout.add("out", DType::F32, [rows, vocab]);
            let targets = layout.add("targets", DType::I32, [rows]);
            let loss = layout.add("loss", DType::F32, [1]);
            let mut r = Recorder::new(format!("{bits:?}, {rows} x {vocab} x {cols}"), &layout);
            r.push(Embed { tokens, table, out: x });
            r.push(Matmul::linear(x, table, None, out));
            r.push(LinearCrossEntropy { x, weight: table, targets, loss, predictions: None, gradient: None });
            // The oracle gets the rounded values.
            let given: Vec<f32> = normals(1, vocab * cols).iter().map(|&x| x as f32).collect();
            let rounded: Vec<f64> =
                dequantize(&quantize(&given, bits), bits).into_iter().map(f64::from).collect();
            let inputs = vec![
                (tokens, u32_bytes(&(0..rows).map(|i| (i * 7 % vocab) as u32).collect::<Vec<u32>>())),
                (table, f32_bytes(&rounded)),
                (targets, i32_bytes(&(0..rows).map(|i| ((i * 5 + 1) % vocab) as i32).collect::<Vec<i32>>())),
            ];
            let found = block_on(compare(&r.finish(), &device, &inputs, tolerance)).unwrap();
            assert_eq!(found, None, "{bits:?} {rows} x {vocab} x {cols}");
            let mut arena = device.allocate(&layout).unwrap();
            let bytes: Vec<u8> = given.iter().flat_map(|x| x.to_le_bytes()).collect();
            device.write(&mut arena, table, &bytes).unwrap();
            assert!(block_on(device.read(&arena, table)).unwrap() == f32_bytes(&rounded));
        }
    }
}

#[test]
fn other_ops_refuse_quantised_tensors() {
    let device = open(Bits::Four, None);
    let mut layout = Layout::new();
    let weight = layout.add("a.weight", DType::F16, [4, 32]);
    let out = layout.add("out", DType::F16, [4, 32]);
    let mut r = Recorder::new("odd", &layout);
    r.push(Gelu { x: weight, out });
    let arena = device.allocate(&layout).unwrap();
    let message = device.compile(&r.finish(), &arena).map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("`a.weight` is quantised"), "{message}");
}
