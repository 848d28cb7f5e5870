//! Landmark attention against the naive one, over the whole table of cases.

mod common;

use common::{devices, values};
use landmark_core::ops::Op;
use landmark_core::testing::attention::{cases, unpack};
use landmark_core::testing::naive::allowed;
use landmark_core::testing::{magnitude, worst};
use landmark_core::{Backend, Cpu, Recorder, Tensor};

/// The forward op of a case alone: the backward pass is for training.
fn forward(
    case: &landmark_core::testing::attention::AttentionCase,
    inputs: &landmark_core::testing::attention::Inputs,
) -> (landmark_core::testing::attention::Recorded, landmark_core::Program, Tensor) {
    let recorded = case.record(inputs);
    let Some(Op::LandmarkAttention(op)) = recorded.program.ops().first() else { panic!("no attention") };
    let mut r = Recorder::new(case.name.clone(), &recorded.layout);
    r.push(op.clone());
    let lse = op.lse;
    let program = r.finish();
    (recorded, program, lse)
}

#[test]
fn the_table_agrees_with_the_definition() {
    let mut tested = 0;
    for case in cases().into_iter().filter(|c| c.dropout == 0.0 && c.group_dropout == 0.0) {
        let inputs = case.inputs();
        let (recorded, program, lse) = forward(&case, &inputs);
        let (oracle, naive) = (&case.naive::<f64>(&inputs)[0], &case.naive::<f32>(&inputs)[0]);
        let cpu = Cpu::<f64>::new();
        let mut cpu_arena = cpu.allocate(&recorded.layout).unwrap();
        for (tensor, bytes) in &recorded.inputs {
            cpu.write(&mut cpu_arena, *tensor, bytes).unwrap();
        }
        cpu.run(&mut cpu.compile(&program, &cpu_arena).unwrap(), &mut cpu_arena).unwrap();
        let expected_lse = cpu.read_f64(&cpu_arena, lse);
        for device in devices() {
            let mut arena = device.allocate(&recorded.layout).unwrap();
            for (tensor, bytes) in &recorded.inputs {
                device.write(&mut arena, *tensor, bytes).unwrap();
            }
            let mut plan = device.compile(&program, &arena).unwrap();
            // Twice: nothing may be left over from the first run.
            for _ in 0..2 {
                device.run(&mut plan, &mut arena).unwrap();
            }
            let (_, cols) = recorded.results[0];
            let found = values(&pollster::block_on(device.read(&arena, cols.tensor)).unwrap());
            let found = unpack(&recorded.layout, cols, &found);
            let error = worst(&oracle.1, &found);
            let allowed = allowed(&oracle.1, &naive.1, f64::from(f32::EPSILON));
            assert!(error <= allowed, "{}: {error:e} > {allowed:e}", case.name);
            let found = values(&pollster::block_on(device.read(&arena, lse)).unwrap());
            let (mut size, mut error) = (1.0_f64, 0.0_f64);
            for (want, found) in expected_lse.iter().zip(&found) {
                if want.is_finite() {
                    size = size.max(magnitude(&[*want]));
                    error = error.max((want - found).abs());
                } else {
                    assert_eq!(want, found, "{}", case.name);
                }
            }
            assert!(error <= 16.0 * f64::from(f32::EPSILON) * size, "{}: lse {error:e}", case.name);
        }
        tested += 1;
    }
    assert!(tested > 25, "only {tested} cases");
}
