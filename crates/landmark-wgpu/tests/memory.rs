//! The landmark memory against a naive one that keeps everything, chunk after chunk, and every op of it against the
//! oracle in lockstep.

mod common;

use common::{compare_on_all, device, devices, tolerance, values};
use landmark_core::lockstep::compare;
use landmark_core::ops::{Op, RopeStyle, Selection};
use landmark_core::testing::memory::cases;
use landmark_core::testing::{Planted, u32_bytes, worst};
use landmark_core::{Backend, plant};

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
