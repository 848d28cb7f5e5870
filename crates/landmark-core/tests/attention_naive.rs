//! Landmark attention of the CPU backend against the naive one, over the whole table of cases.

use landmark_core::Cpu;
use landmark_core::backend::Backend;
use landmark_core::cpu::Real;
use landmark_core::ops::{Blocks, Op};
use landmark_core::testing::attention::{AttentionCase, Inputs, Results, cases, unpack};
use landmark_core::testing::naive::allowed;
use landmark_core::testing::{alter, magnitude, worst};

/// Runs a case, with `plant` applied to its ops.
fn run<T: Real>(case: &AttentionCase, inputs: &Inputs, plant: impl Fn(&mut Op) -> bool) -> Results {
    let mut recorded = case.record(inputs);
    alter(&mut recorded.program, plant);
    let cpu = Cpu::<T>::new();
    let mut arena = cpu.allocate(&recorded.layout).unwrap();
    for (tensor, bytes) in &recorded.inputs {
        cpu.write(&mut arena, *tensor, bytes).unwrap();
    }
    let mut plan = cpu.compile(&recorded.program, &arena).unwrap();
    // Twice: nothing may be left over from the first run.
    cpu.run(&mut plan, &mut arena).unwrap();
    cpu.run(&mut plan, &mut arena).unwrap();
    recorded
        .results
        .map(|(name, cols)| (name, unpack(&recorded.layout, cols, &cpu.read_f64(&arena, cols.tensor))))
}

fn sound(_: &mut Op) -> bool {
    false
}

/// Largest error of any result, relative to its largest magnitude.
fn relative_error(expected: &Results, found: &Results) -> f64 {
    let error = |((_, e), (_, f)): (&(_, Vec<f64>), &(_, Vec<f64>))| worst(e, f) / magnitude(e).max(1.0);
    expected.iter().zip(found).map(error).fold(0.0, |m, e| if e > m || e.is_nan() { e } else { m })
}

/// Two computations of the same formulas in f64 differ by rounding only: a few thousand operations of 2^-53.
const ROUNDING: f64 = 1e-12;

#[test]
fn in_f64_every_case_agrees_with_the_definition() {
    for case in cases() {
        let inputs = case.inputs();
        let error = relative_error(&case.naive::<f64>(&inputs), &run::<f64>(&case, &inputs, sound));
        assert!(error < ROUNDING, "{}: {error:e}", case.name);
    }
}

#[test]
fn in_f32_the_error_is_at_most_twice_that_of_the_naive_implementation() {
    for case in cases() {
        let inputs = case.inputs();
        let (oracle, naive) = (case.naive::<f64>(&inputs), case.naive::<f32>(&inputs));
        for (((name, oracle), (_, naive)), (_, found)) in
            oracle.iter().zip(&naive).zip(&run::<f32>(&case, &inputs, sound))
        {
            let (error, allowed) = (worst(oracle, found), allowed(oracle, naive, f64::from(f32::EPSILON)));
            assert!(error <= allowed, "{}, {name}: error {error:e}, allowed {allowed:e}", case.name);
        }
    }
}

/// Every planted bug must show in the cases that have the feature it spoils.
#[test]
fn planted_bugs_are_seen() {
    type Plant = fn(&mut Op) -> bool;
    fn forward(op: &mut Op, f: impl Fn(&mut landmark_core::ops::LandmarkAttention)) -> bool {
        match op {
            Op::LandmarkAttention(op) => f(op),
            Op::LandmarkAttentionBackward(op) => f(&mut op.forward),
            _ => return false,
        }
        true
    }
    let plants: [(&str, &str, Plant); 6] = [
        ("blocks one longer", "block 8, 29 keys", |op| {
            forward(op, |a| {
                if let Blocks::Regular { block, .. } = &mut a.blocks {
                    *block += 1;
                }
            })
        }),
        ("landmarks forgotten", "landmarks anywhere", |op| forward(op, |a| a.blocks = Blocks::None)),
        ("hidden keys seen", "keys hidden", |op| forward(op, |a| a.first_key = None)),
        ("gating forgotten", "gated", |op| forward(op, |a| a.miss.as_mut().unwrap().gated = None)),
        ("other random bits", "group dropout", |op| {
            forward(op, |a| a.randomness.as_mut().unwrap().salt += 1)
        }),
        ("keys and values swapped", "block 51, 52", |op| forward(op, |a| std::mem::swap(&mut a.k, &mut a.v))),
    ];
    for (bug, name, plant) in plants {
        let case =
            cases().into_iter().find(|c| c.name.contains(name)).unwrap_or_else(|| panic!("no case {name}"));
        let inputs = case.inputs();
        let error = relative_error(&case.naive::<f64>(&inputs), &run::<f64>(&case, &inputs, plant));
        assert!(error.is_nan() || error > 1e-3, "{bug} in case {}: only {error:e}", case.name);
    }
}
