//! The landmark memory against a naive one that keeps everything, chunk after chunk, and every op of it against the
//! oracle in lockstep.

mod common;

use common::{compare_on_all, device, devices, tolerance, values};
use landmark_core::lockstep::compare;
use landmark_core::ops::{Op, RopeStyle, Selection};
use landmark_core::program::Info;
use landmark_core::testing::memory::cases;
use landmark_core::testing::{Planted, u32_bytes, worst};
use landmark_core::{Backend, DType, Layout, PageId, PageStore, Paging, plant};
use landmark_wgpu::{Options, Wgpu};
use std::sync::Arc;

#[test]
fn every_chunk_of_every_case_agrees_with_the_definition() {
    for case in cases() {
        for device in devices() {
            let (tensors, mut histories) = (case.tensors(), case.histories());
            let mut arena = device.allocate(&tensors.layout).unwrap();
            for (tensor, bytes) in case.prepare(&tensors, &histories) {
                device.write(&mut arena, tensor, &bytes).unwrap();
            }
            for index in 0..case.chunks.len() {
                let chunk = case.chunk(index);
                for (tensor, bytes) in case.feed(&tensors, &histories, &chunk) {
                    device.write(&mut arena, tensor, &bytes).unwrap();
                }
                let program = case.record(&tensors, chunk.tokens);
                device.run(&mut device.compile(&program, &arena).unwrap(), &mut arena).unwrap();
                let expected = case.naive(&histories, &chunk);
                let found = values(&pollster::block_on(device.read(&arena, tensors.out)).unwrap());
                let error = worst(&expected, &found[..expected.len()]);
                // Values are normal numbers, weights sum to 1: rounding of a few hundred operations in f32.
                assert!(error < 1e-5, "{}, chunk {index}: {error:e}", case.name);
                case.remember(&mut histories, &chunk);
                let lengths: Vec<u32> = histories.iter().map(|h| h.keys.len() as u32).collect();
                device.write(&mut arena, tensors.lengths, &u32_bytes(&lengths)).unwrap();
            }
        }
    }
}

#[test]
fn in_lockstep_every_op_follows_the_oracle() {
    for case in cases() {
        let (tensors, mut histories) = (case.tensors(), case.histories());
        for index in 0..case.chunks.len() {
            let chunk = case.chunk(index);
            let mut inputs = case.prepare(&tensors, &histories);
            inputs.extend(case.feed(&tensors, &histories, &chunk));
            // Scores of blocks that are not there are undefined; a full ring has none of those.
            let full = histories.iter().all(|h| h.keys.len() / case.memory.block >= case.memory.blocks);
            if full {
                compare_on_all(&case.record(&tensors, chunk.tokens), &inputs);
            }
            case.remember(&mut histories, &chunk);
        }
    }
}

/// Each check above has been seen to fail: a bug in one op shows in lockstep at that op.
#[test]
fn planted_bugs_are_seen() {
    type Plant = fn(&mut Op) -> bool;
    let bugs: [(&str, &str, Plant); 5] = [
        ("LandmarkScores", "each token", plant!(Op::LandmarkScores(op) => op.style = RopeStyle::Halves)),
        (
            "SelectBlocks",
            "each token",
            plant!(Op::SelectBlocks(op) => op.selection = Selection::MaxOverTokens),
        ),
        ("RetrievalAttention", "max over heads", plant!(Op::RetrievalAttention(op) => op.chosen = None)),
        ("RetrievalAttention", "cut off", plant!(Op::RetrievalAttention(op) => op.miss_cutoff = None)),
        (
            "AppendKv",
            "max over tokens",
            plant!(Op::AppendKv(op) => std::mem::swap(&mut op.keys, &mut op.values)),
        ),
    ];
    for (name, of, plant) in bugs {
        let case = cases().into_iter().find(|c| c.name.contains(of)).expect("a case");
        let (tensors, mut histories) = (case.tensors(), case.histories());
        let backend = Planted { inner: device().clone(), plant };
        let mut found = None;
        for index in 0..case.chunks.len() {
            let chunk = case.chunk(index);
            let mut inputs = case.prepare(&tensors, &histories);
            inputs.extend(case.feed(&tensors, &histories, &chunk));
            let program = case.record(&tensors, chunk.tokens);
            found = found.or(pollster::block_on(compare(&program, &backend, &inputs, tolerance)).unwrap());
            case.remember(&mut histories, &chunk);
        }
        assert_eq!(found.expect("a divergence").name, name);
    }
}

/// Whether a tensor is one of the rings, or a view of one.
fn is_ring(info: &Info) -> bool {
    info.shape.dims().len() == 5
}

/// Rings of several heads, of which a binding holds one or two, give what whole rings give; pages are written and read
/// where they are.
#[test]
fn rings_larger_than_a_binding_are_split_by_heads() {
    let mut split = 0;
    for case in cases().into_iter().filter(|case| case.memory.kv_heads > 1) {
        let tensors = case.tensors();
        let ring = tensors.layout.paged().next().expect("a ring");
        let keys = tensors.layout.find(&ring.name).expect("a tensor");
        let head = (ring.bytes() / case.memory.kv_heads) as u64;
        // Everything else has to fit in one piece.
        let programs: Vec<_> = case.chunks.iter().map(|&tokens| case.record(&tensors, tokens)).collect();
        let others = programs.iter().flat_map(|program| program.tensors()).filter(|info| !is_ring(info));
        let largest = others.map(|info| info.bytes() as u64).max().unwrap_or(0);
        let limit = head.max(largest).next_multiple_of(256) + 256;
        if limit >= ring.bytes() as u64 {
            continue;
        }
        split += 1;
        for alone in [false, true] {
            let mut histories = case.histories();
            let options =
                Options { largest_binding: Some(limit), threads_alone: Some(alone), ..Options::default() };
            let small = pollster::block_on(Wgpu::open(&options)).expect("an adapter");
            let mut arena = small.allocate(&tensors.layout).unwrap();
            let bytes: Vec<u8> = (0..ring.bytes()).map(|i| (i % 251) as u8).collect();
            small.write(&mut arena, keys, &bytes).unwrap();
            assert!(pollster::block_on(small.read(&arena, keys)).unwrap() == bytes);
            let some = pollster::block_on(small.read_at(&arena, keys, 5..ring.shape.numel() - 3)).unwrap();
            assert!(some == bytes[20..bytes.len() - 12]);
            for index in 0..case.chunks.len() {
                let chunk = case.chunk(index);
                let mut inputs = case.prepare(&tensors, &histories);
                inputs.extend(case.feed(&tensors, &histories, &chunk));
                let program = case.record(&tensors, chunk.tokens);
                let full = histories.iter().all(|h| h.keys.len() / case.memory.block >= case.memory.blocks);
                if full {
                    let found = pollster::block_on(compare(&program, &small, &inputs, tolerance)).unwrap();
                    assert_eq!(found, None, "{}, chunk {index}", case.name);
                }
                case.remember(&mut histories, &chunk);
            }
        }
    }
    assert!(split > 0, "no case has rings that large");
}

/// A memory that was kept elsewhere is read into the rings when they are made; budgets that they exceed are refused.
#[test]
fn kept_pages_are_read_and_budgets_are_held() {
    #[derive(Debug)]
    struct Kept;
    impl PageStore for Kept {
        fn read(&self, id: PageId, into: &mut [u8]) -> Result<(), String> {
            if id.page == 5 {
                return Ok(());
            }
            into.fill((1 + id.page + 100 * id.tensor) as u8);
            Ok(())
        }
        fn write(&self, _: PageId, _: &[u8]) -> Result<(), String> {
            Err("nothing is written".into())
        }
    }
    let mut layout = Layout::new();
    layout.add("before", DType::F32, [3]);
    let keys = layout.add_paged("keys", DType::F16, [1, 3, 4, 4, 8], 32);
    let values = layout.add_paged("values", DType::F16, [1, 3, 4, 4, 8], 32);
    for largest_binding in [None, Some(512)] {
        let options = Options { largest_binding, ..Options::default() };
        let device = pollster::block_on(Wgpu::open(&options)).expect("an adapter");
        let paging = Paging { store: Some(Arc::new(Kept)), ..Paging::default() };
        let arena = device.allocate_within(&layout, paging).unwrap();
        for (tensor, of) in [(keys, 0), (values, 1)] {
            let found = pollster::block_on(device.read(&arena, tensor)).unwrap();
            for (page, bytes) in found.chunks_exact(64).enumerate() {
                let expected = if page == 5 { 0 } else { (1 + page + 100 * of) as u8 };
                assert!(bytes.iter().all(|&byte| byte == expected), "page {page} of {of}");
            }
        }
        let within = |device_bytes| {
            let paging = Paging { device: Some(device_bytes), ..Paging::default() };
            device.allocate_within(&layout, paging).map(|_| ()).map_err(|error| error.to_string())
        };
        assert_eq!(within(2 * 768), Ok(()));
        let message = within(2 * 768 - 1).unwrap_err();
        assert!(message.contains("--device-memory") && message.contains("--device cuda"), "{message}");
    }
    let small = Options { largest_binding: Some(256 * 3), ..Options::default() };
    let small = pollster::block_on(Wgpu::open(&small)).expect("an adapter");
    let mut layout = Layout::new();
    layout.add_paged("keys", DType::F32, [1, 30, 2, 4, 8], 32);
    let message = small.allocate(&layout).map(|_| ()).unwrap_err().to_string();
    assert!(
        message.contains("one key head of `keys` takes 3840") && message.contains("--mem-cache-size"),
        "{message}"
    );
}
