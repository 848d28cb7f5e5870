//! Hopper's landmark attention, forward, against the oracle. (Its gradients are tested with all other kernels of the op, in
//! `landmark_attention.rs`.)

mod common;

use common::attention::{attention, heads, hopper};
use common::naive::{self, Landmarks, stored};
use common::{Case, fits, values};
use landmark_core::ops::{Blocks, Heads, LandmarkAttention, Op};
use landmark_core::testing::naive::allowed;
use landmark_core::testing::{alter, magnitude, normals, worst};
use landmark_core::{Cols, DType};

/// The largest error of the device over what is allowed: twice that of code that stores every step in `dtype`. Inputs are
/// dense, columns of one tensor where queries and keys have the same rows. Two runs must agree in every bit.
fn ratio(
    name: &str,
    h: Heads,
    landmarks: Landmarks<'_>,
    inputs: [&[f64]; 3],
    dtype: DType,
    plant: impl Fn(&mut Op) -> bool,
) -> f64 {
    let Some(cuda) = hopper() else { return 0.0 };
    let mut case = Case::new(name);
    let (block, phases) = landmarks;
    let widths = [h.heads, h.kv_heads, h.kv_heads].map(|n| n * h.head_dim);
    let starts = [0, widths[0], widths[0] + widths[1]];
    let [q, k, v] = if h.queries == h.keys {
        let row = |i: usize| (0..3).flat_map(move |t| &inputs[t][i * widths[t]..][..widths[t]]);
        let joined: Vec<f64> = (0..h.batch * h.keys).flat_map(row).copied().collect();
        let tensor = case.holding(dtype, [h.batch, h.keys, widths.iter().sum()], &joined);
        [0, 1, 2].map(|t| Cols { tensor, start: starts[t], width: widths[t] })
    } else {
        let rows = [h.queries, h.keys, h.keys];
        [0, 1, 2].map(|t| Cols::all(case.holding(dtype, [h.batch, rows[t], widths[t]], inputs[t]), widths[t]))
    };
    let blocks = match block {
        0 => Blocks::None,
        block => Blocks::Regular { block, phases: case.holding(DType::U32, [h.batch], phases) },
    };
    let out = case.result(dtype, [h.batch, h.queries, h.heads * h.head_dim]);
    let lse = case.result(DType::F32, [h.batch, h.heads, h.queries]);
    let op = LandmarkAttention {
        heads: h,
        q,
        k,
        v,
        blocks,
        miss: None,
        first_key: None,
        randomness: None,
        out,
        lse,
    };
    let mut program = case.program(|r| r.push(op));
    alter(&mut program, plant);
    let [first, second] = case.run_cuda(cuda, &program, &[out, lse]);
    assert!(first == second, "{name}: two runs differ");
    compare(name, h, landmarks, inputs, dtype, [values(dtype, &first[0]), values(DType::F32, &first[1])])
}

fn compare(
    name: &str,
    h: Heads,
    landmarks: Landmarks<'_>,
    inputs: [&[f64]; 3],
    dtype: DType,
    found: [Vec<f64>; 2],
) -> f64 {
    let given = inputs.map(|x| x.iter().map(|&x| stored(dtype, x)).collect::<Vec<f64>>());
    let given = [&given[0][..], &given[1], &given[2]];
    let oracle = naive::forward(h, landmarks, given, |x| x);
    let [mut out, lse] = naive::forward(h, landmarks, given, |x| stored(dtype, x));
    out.iter_mut().for_each(|x| *x = stored(dtype, *x));
    let mut largest = 0.0_f64;
    for (what, oracle, naive, found) in
        [("out", &oracle[0], out, &found[0]), ("lse", &oracle[1], lse, &found[1])]
    {
        // Rows with nothing to attend to are equal, or the comparison is infinite.
        let finite = |x: &[f64]| -> Vec<f64> {
            x.iter().zip(oracle).filter(|(_, o)| o.is_finite()).map(|(x, _)| *x).collect()
        };
        let permitted = allowed(&finite(oracle), &finite(&naive), common::rounding(dtype) / 4.0);
        let error = worst(oracle, found);
        let ratio = if error == 0.0 { 0.0 } else { error / permitted };
        if !fits(ratio) {
            println!("{name}, {what}: error {error:e}, allowed {permitted:e} of {:e}", magnitude(oracle));
        }
        largest = if ratio > largest || ratio.is_nan() { ratio } else { largest };
    }
    largest
}

/// Normal queries, keys and values.
fn random(h: Heads) -> [Vec<f64>; 3] {
    [(1, h.queries * h.heads), (2, h.keys * h.kv_heads), (3, h.keys * h.kv_heads)]
        .map(|(salt, vectors)| normals(salt, h.batch * vectors * h.head_dim))
}

fn check(h: Heads, block: usize, phases: &[f64], dtype: DType) {
    let name = format!("blocks of {block}, {h:?}, {}", dtype.name());
    let [q, k, v] = &random(h);
    let ratio = ratio(&name, h, (block, phases), [q, k, v], dtype, |_| false);
    assert!(fits(ratio), "{name}: {ratio} times the error that is allowed");
}

const BF16: DType = DType::Bf16;
const F16: DType = DType::F16;

#[test]
fn lengths_around_every_boundary() {
    // Blocks of 51 and 64, tiles of 128 and 153 keys, warp groups of 64 and thread blocks of 128 queries.
    for n in [2, 51, 52, 64, 65, 128, 129, 153, 154, 193] {
        check(heads(1, n, n, 1, 1, 128), 64, &[0.0], BF16);
        check(heads(1, n, n, 1, 1, 64), 51, &[0.0], BF16);
    }
}

#[test]
fn any_phase() {
    for (a, b) in [(1, 63), (31, 62), (5, 17)] {
        check(heads(2, 150, 150, 1, 1, 64), 64, &[f64::from(a), f64::from(b)], BF16);
        check(heads(2, 150, 150, 1, 1, 64), 51, &[f64::from(a), f64::from(b % 51)], F16);
    }
}

#[test]
fn block_lengths() {
    for block in [8, 9, 21, 33, 100, 160] {
        check(heads(2, 197, 197, 1, 1, 64), block, &[3.0, 7.0], BF16);
    }
    for block in [13, 80] {
        check(heads(2, 133, 133, 1, 1, 256), block, &[3.0, 7.0], BF16);
    }
}

#[test]
fn head_widths_and_shared_keys() {
    for head_dim in [16, 80, 96, 112, 128] {
        check(heads(2, 140, 140, 4, 2, head_dim), 64, &[0.0, 40.0], BF16);
    }
    for head_dim in [64, 256] {
        check(heads(1, 140, 140, 3, 1, head_dim), 51, &[9.0], F16);
    }
}

#[test]
fn fewer_queries_than_keys() {
    for (queries, keys) in [(1, 2), (1, 300), (5, 130), (70, 131), (129, 400)] {
        check(heads(2, queries, keys, 2, 1, 64), 64, &[0.0, 21.0], BF16);
        check(heads(1, queries, keys, 2, 2, 128), 51, &[50.0], BF16);
    }
}

#[test]
fn without_landmarks() {
    for head_dim in [80, 256] {
        check(heads(2, 200, 200, 2, 1, head_dim), 0, &[], BF16);
        check(heads(1, 70, 131, 2, 2, head_dim), 0, &[], F16);
    }
}

/// More work than multiprocessors: a thread block goes through several tiles of queries, and all rings go round.
#[test]
fn more_tiles_than_multiprocessors() {
    check(heads(1, 200, 200, 70, 70, 16), 64, &[11.0], BF16);
}

/// Scores so far apart that the reference is raised again and again, and weights underflow.
#[test]
fn scores_far_apart() {
    let h = heads(1, 300, 300, 1, 1, 64);
    let [mut q, mut k, v] = random(h);
    // Later keys are smaller, and tiles come from the last: M rises with every one.
    q.iter_mut().for_each(|x| *x *= 4.0);
    k.iter_mut().enumerate().for_each(|(i, x)| *x *= 8.0 / (1.0 + (i / 64) as f64 / 32.0));
    for dtype in [BF16, F16] {
        let ratio = ratio("scores far apart", h, (16, &[0.0]), [&q, &k, &v], dtype, |_| false);
        assert!(fits(ratio), "scores far apart: {ratio} times the error that is allowed");
    }
}

/// A landmark that closes an empty block has nothing to attend to: zeros, and a sum whose logarithm is negative infinity.
#[test]
fn a_landmark_alone() {
    let Some(cuda) = hopper() else { return };
    let mut case = Case::new("a landmark alone");
    let op = attention(&mut case, heads(1, 3, 3, 1, 1, 64), 64, &[63.0], BF16);
    let (out, lse) = (op.out, op.lse);
    let program = case.program(|r| r.push(op));
    let [first, second] = case.run_cuda(cuda, &program, &[out, lse]);
    assert!(first == second, "two runs differ");
    assert!(values(BF16, &first[0])[..64].iter().all(|&x| x == 0.0), "the landmark's own row");
    let lse = values(DType::F32, &first[1]);
    assert!(lse[0] == f64::NEG_INFINITY && lse[1].is_finite() && lse[2].is_finite(), "{lse:?}");
}

#[test]
fn planted_bugs_are_found() {
    if hopper().is_none() {
        return;
    }
    let h = heads(2, 150, 150, 2, 1, 64);
    let [q, k, v] = &random(h);
    let with = |plant: &dyn Fn(&mut LandmarkAttention)| {
        let plant = |op: &mut Op| match op {
            Op::LandmarkAttention(op) => {
                plant(op);
                true
            }
            _ => false,
        };
        ratio("planted", h, (51, &[0.0, 20.0]), [q, k, v], BF16, plant)
    };
    let longer = with(&|op| {
        if let Blocks::Regular { block, .. } = &mut op.blocks {
            *block = 52;
        }
    });
    assert!(!fits(longer), "a block that is too long");
    assert!(!fits(with(&|op| op.blocks = Blocks::None)), "no landmarks");
    assert!(!fits(with(&|op| std::mem::swap(&mut op.k, &mut op.v))), "keys for values");
}
