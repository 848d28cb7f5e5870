//! Weights in 8 and 4 bits: what is written is rounded to blocks, and products of the rounded values are as exact as
//! any.

mod common;

use common::{device, tolerance, values};
use landmark_core::lockstep::compare;
use landmark_core::ops::{Embed, Gelu, LinearCrossEntropy, Matmul};
use landmark_core::quantize::{Bits, dequantize, quantize};
use landmark_core::testing::{f32_bytes, i32_bytes, normals, u32_bytes};
use landmark_core::{Backend, Cpu, DType, Layout, Recorder};
use landmark_wgpu::{Options, Wgpu};
use pollster::block_on;

/// A device whose kernels' threads work alone or share workgroup memory.
fn open(bits: Bits, largest_binding: Option<u64>, threads_alone: bool) -> Wgpu {
    let options = Options {
        weights: Some(bits),
        largest_binding,
        baseline: true,
        threads_alone: Some(threads_alone),
        ..Options::default()
    };
    block_on(Wgpu::open(&options)).expect("an adapter")
}

#[test]
fn products_embeddings_and_losses() {
    for bits in [Bits::Eight, Bits::Four] {
        let cases = [(None, 1, 32, 3), (None, 3, 96, 66), (None, 11, 160, 70), (Some(5000), 9, 128, 130)];
        for ((largest, rows, cols, vocab), alone) in
            cases.into_iter().flat_map(|case| [(case, false), (case, true)])
        {
            let device = open(bits, largest, alone);
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

/// Of activations in f16, with all that the adapter offers: matrix units, where it has them.
#[test]
fn products_of_halves() {
    for bits in [Bits::Eight, Bits::Four] {
        let options = Options { weights: Some(bits), ..Options::default() };
        let device = block_on(Wgpu::open(&options)).expect("an adapter");
        for (rows, columns, inner) in [(1, 70, 96), (9, 16, 32), (140, 130, 160), (257, 140, 192)] {
            let mut layout = Layout::new();
            let a = layout.add("a", DType::F16, [rows, inner]);
            let weight = layout.add("b.weight", DType::F32, [columns, inner]);
            let out = layout.add("out", DType::F32, [rows, columns]);
            let mut r = Recorder::new(format!("{bits:?}, {rows} x {columns} x {inner}, of halves"), &layout);
            r.push(Matmul::linear(a, weight, None, out));
            let given: Vec<f32> = normals(1, columns * inner).iter().map(|&x| x as f32).collect();
            let rounded: Vec<f64> =
                dequantize(&quantize(&given, bits), bits).into_iter().map(f64::from).collect();
            let activations = normals(2, rows * inner);
            let halves = activations.iter().flat_map(|x| half::f16::from_f64(*x).to_le_bytes()).collect();
            let inputs = [(a, halves), (weight, f32_bytes(&rounded))];
            // Matrix units take weights in f16.
            let found = block_on(compare(&r.finish(), &device, &inputs, |_| 0.001)).unwrap();
            assert_eq!(found, None, "{bits:?} {rows} x {columns} x {inner}");
        }
    }
}

/// Several products of one factor share a launch, as far as WebGPU's limits allow one to bind their tensors, and none
/// that reads what another makes.
#[test]
fn products_of_one_factor_share_launches() {
    const INNER: usize = 96;
    let rounded = |bits, values: Vec<f64>| -> Vec<f64> {
        let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
        dequantize(&quantize(&values, bits), bits).into_iter().map(f64::from).collect()
    };
    let devices = [(device().clone(), 3), (open(Bits::Eight, None, false), 4)];
    for ((device, launches), rows) in devices.into_iter().flat_map(|d| [(d.clone(), 1), (d, 5)]) {
        let mut layout = Layout::new();
        let a = layout.add("a", DType::F32, [rows, INNER]);
        let bias = layout.add("bias", DType::F32, [64]);
        let mut inputs = vec![(a, f32_bytes(&normals(1, rows * INNER))), (bias, f32_bytes(&normals(2, 64)))];
        let mut products = Vec::new();
        for (i, columns) in [6, 64, 130, 4, INNER].into_iter().enumerate() {
            let weight = layout.add(format!("{i}.weight"), DType::F32, [columns, INNER]);
            let out = layout.add(format!("{i}.out"), DType::F32, [rows, columns]);
            let values = rounded(Bits::Eight, normals(3 + i as u32, columns * INNER));
            inputs.push((weight, f32_bytes(&values)));
            products.push(Matmul::linear(a, weight, (i == 1).then_some(bias), out));
        }
        let last = layout.add("last", DType::F32, [rows, rows]);
        products.push(Matmul::linear(a, products[4].out.tensor, None, last));
        let mut r = Recorder::new(format!("products of {rows} rows"), &layout);
        products.iter().for_each(|product| r.push(product.clone()));
        let program = r.finish();
        let (oracle, mut found) = (Cpu::<f64>::new(), device.allocate(&layout).unwrap());
        let mut expected = oracle.allocate(&layout).unwrap();
        for (tensor, bytes) in &inputs {
            oracle.write(&mut expected, *tensor, bytes).unwrap();
            device.write(&mut found, *tensor, bytes).unwrap();
        }
        oracle.run(&mut oracle.compile(&program, &expected).unwrap(), &mut expected).unwrap();
        let mut plan = device.compile(&program, &found).unwrap();
        assert_eq!(plan.launches(), launches);
        device.run(&mut plan, &mut found).unwrap();
        for product in &products {
            let tensor = product.out.tensor;
            let expected = values(&block_on(oracle.read(&expected, tensor)).unwrap());
            let found = values(&block_on(device.read(&found, tensor)).unwrap());
            let size = expected.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
            let error = expected.iter().zip(&found).fold(0.0_f64, |m, (x, y)| m.max((x - y).abs()));
            assert!(error <= 4.0 * tolerance("") * size, "{rows} rows, {tensor:?}: {error} of {size}");
        }
    }
}

#[test]
fn other_ops_refuse_quantised_tensors() {
    let device = open(Bits::Four, None, true);
    let mut layout = Layout::new();
    let weight = layout.add("a.weight", DType::F16, [4, 32]);
    let out = layout.add("out", DType::F16, [4, 32]);
    let mut r = Recorder::new("odd", &layout);
    r.push(Gelu { x: weight, out });
    let arena = device.allocate(&layout).unwrap();
    let message = device.compile(&r.finish(), &arena).map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("`a.weight` is quantised"), "{message}");
}
