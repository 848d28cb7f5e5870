//! Landmark attention, forward and backward, against the oracle: the core's table in every element type, and the sizes
//! at which the tensor cores' kernels change their ways.

mod common;

use common::attention::{self, case};
use common::{Case, FLOATS, bytes, cuda, fits, values};
use landmark_core::DType;
use landmark_core::ops::{Access, Blocks, LandmarkAttention, Op, Operand};
use landmark_core::testing::alter;
use landmark_core::testing::attention::{AttentionCase, cases, unpack};
use landmark_cuda::Cuda;

/// The largest error of the case in `dtype` over what is allowed: twice that of naive code that computes in f32 and
/// leaves inputs, scores, weights, their gradients and results in `dtype`. Two runs must agree in every bit.
fn ratio(cuda: &Cuda, case: &AttentionCase, dtype: DType, plant: impl Fn(&mut Op) -> bool) -> f64 {
    let given = attention::inputs(case, dtype);
    let mut recorded = case.record_in(&given, dtype);
    alter(&mut recorded.program, plant);
    // What the op leaves unwritten shows.
    let operands: Vec<Operand> = recorded.program.ops().iter().flat_map(Op::operand_list).collect();
    for operand in operands.iter().filter(|o| o.access != Access::Read) {
        let info = recorded.layout.info(operand.tensor);
        recorded.inputs.push((operand.tensor, bytes(info.dtype, &vec![f64::NAN; info.shape.numel()])));
    }
    let name = format!("{} in {}", case.name, dtype.name());
    let mut device = Case::new(name);
    (device.layout, device.inputs) = (recorded.layout, recorded.inputs);
    let wanted = recorded.results.map(|(_, cols)| cols.tensor);
    let [first, second] = device.run_cuda(cuda, &recorded.program, &wanted);
    for ((name, _), (first, second)) in recorded.results.iter().zip(first.iter().zip(&second)) {
        assert!(first == second, "{}, {name}: two runs differ", device.name);
    }
    let found =
        std::array::from_fn(|i| unpack(&device.layout, recorded.results[i].1, &values(dtype, &first[i])));
    attention::ratio(case, &given, dtype, &found)
}

fn check(cuda: &Cuda, case: &AttentionCase, dtype: DType) {
    let ratio = ratio(cuda, case, dtype, |_| false);
    assert!(fits(ratio), "{} in {}: {ratio} times the error that is allowed", case.name, dtype.name());
}

#[test]
fn the_table_of_cases_in_every_type() {
    let Some(cuda) = cuda() else { return };
    for case in cases() {
        for dtype in FLOATS {
            check(cuda, &case, dtype);
        }
    }
}

/// Block lengths that fill a tile, that do not, that share one, and that are too long for one; around each, rows that
/// end within a tile of queries and within a tile of keys.
#[test]
fn blocks_of_every_kind() {
    let Some(cuda) = cuda() else { return };
    for block in [0, 2, 3, 8, 9, 16, 31, 40, 63, 65, 100, 128, 129, 200] {
        let phases = [(block as u32).saturating_sub(1), block as u32 / 2];
        check(cuda, &case([2, 97, 97, 2, 1, 64], block, &phases), DType::Bf16);
    }
    for block in [0, 51, 64] {
        for head_dim in [16, 80, 96, 128, 256] {
            check(cuda, &case([1, 75, 140, 2, 2, head_dim], block, &[block as u32 / 3]), DType::F16);
        }
    }
    for (queries, keys) in [(1, 1), (1, 200), (63, 64), (64, 64), (65, 129), (130, 131)] {
        check(cuda, &case([2, queries, keys, 4, 2, 64], 51, &[50, 1]), DType::Bf16);
    }
}

/// Sizes at which Hopper's gradients change their ways: tiles of 102 or 128 keys, warp groups of 64 rows, tiles that one warp
/// group leaves out, rings that go round, keys of one warp in two blocks, heads of which one takes all of a thread block.
#[test]
fn gradients_around_every_boundary() {
    let Some(cuda) = cuda() else { return };
    for n in [2, 52, 64, 65, 103, 129, 193] {
        check(cuda, &case([1, n, n, 1, 1, 128], 64, &[0]), DType::Bf16);
        check(cuda, &case([1, n, n, 1, 1, 64], 51, &[13]), DType::Bf16);
    }
    for phase in [1, 15, 16, 47, 63] {
        check(cuda, &case([1, 150, 150, 1, 1, 64], 64, &[phase]), DType::F16);
    }
    for block in [15, 31, 42, 127] {
        check(cuda, &case([1, 197, 197, 1, 1, 64], block, &[7]), DType::Bf16);
    }
    for head_dim in [80, 256] {
        check(cuda, &case([2, 140, 140, 4, 2, head_dim], 64, &[0, 40]), DType::F16);
        check(cuda, &case([1, 70, 140, 3, 1, head_dim], 13, &[9]), DType::Bf16);
    }
    for (queries, keys) in [(5, 130), (70, 131), (129, 300)] {
        check(cuda, &case([1, queries, keys, 2, 1, 64], 64, &[21]), DType::Bf16);
    }
    check(cuda, &case([1, 650, 700, 2, 1, 16], 51, &[50]), DType::F16);
}

/// The keys of a row may begin anywhere, also behind its queries.
#[test]
fn hidden_keys_with_tensor_cores() {
    let Some(cuda) = cuda() else { return };
    for block in [0, 7, 16, 51] {
        let phases = [0, 3, 6, 1];
        let hidden = AttentionCase {
            first_key: Some(vec![0, 40, 100, 99]),
            ..case([4, 70, 100, 2, 1, 64], block, &phases)
        };
        check(cuda, &hidden, DType::Bf16);
    }
}

/// Longer scores than the workspace of the f32 kernels holds at once go in slices; so do the tensor cores' lists.
#[test]
#[ignore = "takes minutes where the device is emulated"]
fn long_rows_go_in_slices() {
    let Some(cuda) = cuda() else { return };
    check(cuda, &case([1, 6000, 6000, 1, 1, 16], 64, &[5]), DType::F32);
    check(cuda, &case([1, 4096, 4096, 2, 1, 64], 2, &[1]), DType::Bf16);
}

#[test]
fn planted_bugs_are_seen() {
    let Some(cuda) = cuda() else { return };
    fn forward(op: &mut Op, f: impl Fn(&mut LandmarkAttention)) -> bool {
        match op {
            Op::LandmarkAttention(op) => f(op),
            Op::LandmarkAttentionBackward(op) => f(&mut op.forward),
            _ => return false,
        }
        true
    }
    let small = case([2, 97, 97, 2, 1, 64], 16, &[15, 8]);
    for dtype in [DType::F32, DType::Bf16] {
        let longer = ratio(cuda, &small, dtype, |op| {
            forward(op, |a| {
                if let Blocks::Regular { block, .. } = &mut a.blocks {
                    *block += 1;
                }
            })
        });
        assert!(!fits(longer / 10.0), "blocks one longer: only {longer}");
        let swapped = ratio(cuda, &small, dtype, |op| forward(op, |a| std::mem::swap(&mut a.k, &mut a.v)));
        assert!(!fits(swapped / 10.0), "keys and values swapped: only {swapped}");
    }
    let table = cases();
    let named = |name: &str| table.iter().find(|c| c.name.contains(name)).expect("a case of that name");
    let salted = ratio(cuda, named("group dropout"), DType::F32, |op| {
        forward(op, |a| {
            if let Some(r) = &mut a.randomness {
                r.salt += 1;
            }
        })
    });
    assert!(!fits(salted / 10.0), "other random bits: only {salted}");
}
