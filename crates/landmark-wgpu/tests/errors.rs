//! What goes wrong: said plainly, as errors, and nothing panics.

mod common;

use common::{compare_on_all, device, tolerance};
use landmark_core::lockstep::compare;
use landmark_core::ops::{Bernoulli, Embed, Gelu, LinearCrossEntropy, Matmul};
use landmark_core::testing::{check_begun_reads, f32_bytes, i32_bytes, normals, u32_bytes};
use landmark_core::{Backend, DType, Error, Layout, Recorder};
use landmark_wgpu::{Choice, OpenError, Options, Wgpu, adapters};
use pollster::block_on;

#[test]
fn an_adapter_that_is_not_there() {
    let options = Options { adapter: Choice::Name("abacus".into()), ..Options::default() };
    let message = block_on(Wgpu::open(&options)).unwrap_err().to_string();
    assert!(message.contains("with `abacus` in its name; there are: 0: "), "{message}");
    let options = Options { adapter: Choice::Index(77), ..Options::default() };
    assert!(matches!(block_on(Wgpu::open(&options)), Err(OpenError::Unknown { .. })));
    let all = block_on(adapters());
    let named = Options { adapter: Choice::Name(all[0].name.to_uppercase()), ..Options::default() };
    assert_eq!(block_on(Wgpu::open(&named)).unwrap().info(), &all[0]);
}

#[test]
fn an_index_outside_the_vocabulary() {
    let mut layout = Layout::new();
    let tokens = layout.add("tokens", DType::U32, [3]);
    let table = layout.add("table", DType::F32, [5, 4]);
    let out = layout.add("out", DType::F32, [3, 4]);
    let weight = layout.add("weight", DType::F32, [5, 4]);
    let targets = layout.add("targets", DType::I32, [3]);
    let loss = layout.add("loss", DType::F32, [1]);
    let mut r = Recorder::new("lookup", &layout);
    r.push(Embed { tokens, table, out });
    r.push(LinearCrossEntropy { x: out, weight, targets, loss, predictions: None, gradient: None });
    let device = device();
    let mut arena = device.allocate(&layout).unwrap();
    let mut plan = device.compile(&r.finish(), &arena).unwrap();
    let mut attempt = |ids: [u32; 3], goals: [i32; 3]| {
        device.write(&mut arena, tokens, &u32_bytes(&ids))?;
        device.write(&mut arena, targets, &i32_bytes(&goals))?;
        device.run(&mut plan, &mut arena)?;
        block_on(device.read(&arena, out)).map(|_| ())
    };
    for (ids, goals, op, tensor, index) in [
        ([0, 5, 1], [0, 1, -1], "Embed", "tokens", 5),
        ([0, u32::MAX, 1], [0, 1, -1], "Embed", "tokens", u64::from(u32::MAX) - 1),
        ([0, 4, 1], [0, 9, -1], "LinearCrossEntropy", "targets", 9),
    ] {
        match attempt(ids, goals) {
            Err(Error::Index { op: found, tensor: of, index: at, limit: 5 }) => {
                assert_eq!((found, &of[..], at), (op, tensor, index));
            }
            other => panic!("{other:?}"),
        }
        // Said once; the next run is a new one.
        attempt([0, 4, 1], [0, 4, -7]).unwrap();
    }
}

#[test]
fn too_many_bytes_and_broken_elements() {
    let mut layout = Layout::new();
    let x = layout.add("x", DType::F32, [3]);
    let y = layout.add("y", DType::F16, [5]);
    let mut arena = device().allocate(&layout).unwrap();
    for (tensor, first, bytes) in [(x, 0, 16), (x, 2, 8), (x, 0, 6), (y, 0, 12), (x, usize::MAX, 4)] {
        let found = device().write_at(&mut arena, tensor, first, &vec![1; bytes]);
        assert!(matches!(found, Err(Error::Size { .. })), "{found:?}");
    }
    // An odd number of halves: the last one shares its word with nobody.
    let bytes: Vec<u8> = (0..10).collect();
    device().write(&mut arena, y, &bytes).unwrap();
    assert_eq!(block_on(device().read(&arena, y)).unwrap(), bytes);
    assert_eq!(block_on(device().read_at(&arena, y, 1..4)).unwrap(), &bytes[2..8]);
    assert!(matches!(block_on(device().read_at(&arena, y, 4..6)), Err(Error::Size { .. })));
    // In the middle it would take the next one with it.
    assert!(matches!(device().write(&mut arena, y, &bytes[..6]), Err(Error::Unsupported { .. })));
}

#[test]
fn training_is_refused() {
    let mut layout = Layout::new();
    let seed = layout.add("seed", DType::U32, [4]);
    let out = layout.add("out", DType::U32, [9]);
    let mut r = Recorder::new("training", &layout);
    r.push(Bernoulli { p: 0.5, seed, salt: 1, out });
    let arena = device().allocate(&layout).unwrap();
    let message = device().compile(&r.finish(), &arena).map(|_| ()).unwrap_err().to_string();
    assert!(message.starts_with("Bernoulli: ") && message.contains("--device cuda"), "{message}");
}

#[test]
fn weights_larger_than_a_binding_are_split() {
    let options = Options { largest_binding: Some(2048), ..Options::default() };
    let small = block_on(Wgpu::open(&options)).unwrap();
    let mut layout = Layout::new();
    let tokens = layout.add("tokens", DType::U32, [3]);
    let table = layout.add("table", DType::F32, [130, 8]);
    let targets = layout.add("targets", DType::I32, [3]);
    let bias = layout.add("bias", DType::F32, [130]);
    let loss = layout.add("loss", DType::F32, [1]);
    let [x, out] = [("x", 8), ("out", 130)].map(|(name, cols)| layout.add(name, DType::F32, [3, cols]));
    let mut r = Recorder::new("split", &layout);
    r.push(Embed { tokens, table, out: x });
    r.push(Matmul::linear(x, table, Some(bias), out));
    r.push(LinearCrossEntropy { x, weight: table, targets, loss, predictions: None, gradient: None });
    let program = r.finish();
    let inputs = vec![
        (tokens, u32_bytes(&[129, 0, 70])),
        (table, f32_bytes(&normals(1, 130 * 8))),
        (bias, f32_bytes(&normals(2, 130))),
        (targets, i32_bytes(&[3, 129, 64])),
    ];
    assert_eq!(block_on(compare(&program, &small, &inputs, tolerance)).unwrap(), None);
    compare_on_all(&program, &inputs);
    // Activations are not.
    let mut layout = Layout::new();
    let [wide, narrow] = ["wide", "narrow"].map(|name| layout.add(name, DType::F32, [4, 200]));
    let mut r = Recorder::new("wide", &layout);
    r.push(Gelu { x: wide, out: narrow });
    let arena = small.allocate(&layout).unwrap();
    let message = small.compile(&r.finish(), &arena).map(|_| ()).unwrap_err().to_string();
    assert!(
        message.contains("maxStorageBufferBindingSize is 2048 bytes, but `wide` takes 3200"),
        "{message}"
    );
    let mut layout = Layout::new();
    layout.add("row", DType::F32, [2, 4000]);
    let message = small.allocate(&layout).map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("two rows of `row` take 32000 bytes"), "{message}");
}

#[test]
fn reads_that_were_begun_show_what_was_there() {
    check_begun_reads(device());
}

#[test]
fn a_lost_device_is_reported() {
    let own = block_on(Wgpu::open(&Options::default())).unwrap();
    let mut layout = Layout::new();
    let [x, out] = ["x", "out"].map(|name| layout.add(name, DType::F32, [8]));
    let mut r = Recorder::new("lost", &layout);
    r.push(Gelu { x, out });
    let mut arena = own.allocate(&layout).unwrap();
    let mut plan = own.compile(&r.finish(), &arena).unwrap();
    own.run(&mut plan, &mut arena).unwrap();
    block_on(own.read(&arena, out)).unwrap();
    own.lose();
    // Whatever is asked next fails, at the latest the read.
    let run = own.run(&mut plan, &mut arena);
    let read = block_on(own.read(&arena, out)).unwrap_err();
    assert!(read.to_string().contains("lost"), "{run:?}, {read}");
    assert!(own.allocate(&layout).is_err());
}
