//! Hopper's landmark attention against the oracle: through recorded programs, and as a call over strided tensors.
#![allow(unsafe_code)] // The call takes addresses.

mod common;

use common::attention::{attention, heads, hopper};
use common::{Case, bytes, fits, values};
use landmark_core::ops::{Blocks, Heads, LandmarkAttention, Op};
use landmark_core::testing::naive::allowed;
use landmark_core::testing::{magnitude, normals, now, worst};
use landmark_core::{Backend, Cols, DType, Error, Layout, Tensor};
use landmark_cuda::fused::{FusedAttention, FusedForward, HeadsAt};

fn check(h: Heads, block: usize, phases: &[f64], dtype: DType) {
    let Some(cuda) = hopper() else { return };
    let mut case = Case::new(format!("blocks of {block}, {h:?}, {}", dtype.name()));
    let op = attention(&mut case, h, block, phases, dtype);
    case.check(cuda, |r| r.push(op));
}

const BF16: DType = DType::Bf16;
const F16: DType = DType::F16;

#[test]
fn lengths_around_every_boundary() {
    // Blocks of 51 and 64, tiles of 128 and 153 keys, warp groups of 64 and thread blocks of 128 queries.
    for n in [2, 50, 51, 52, 63, 64, 65, 127, 128, 129, 153, 154, 193] {
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
    for block in [8, 9, 16, 21, 33, 100, 159, 160] {
        check(heads(2, 197, 197, 1, 1, 64), block, &[3.0, 7.0], BF16);
    }
    for block in [13, 37, 80] {
        check(heads(2, 133, 133, 1, 1, 256), block, &[3.0, 7.0], BF16);
    }
}

#[test]
fn head_widths_and_shared_keys() {
    for head_dim in [16, 64, 80, 96, 112, 128, 256] {
        for dtype in [BF16, F16] {
            check(heads(2, 140, 140, 4, 2, head_dim), 64, &[0.0, 40.0], dtype);
        }
        check(heads(1, 140, 140, 3, 1, head_dim), 51, &[9.0], BF16);
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
    for head_dim in [64, 80, 128, 256] {
        check(heads(2, 200, 200, 2, 1, head_dim), 0, &[], BF16);
        check(heads(1, 70, 131, 2, 2, head_dim), 0, &[], F16);
    }
}

/// More work than multiprocessors: a thread block goes through several tiles of queries, and all rings go round.
#[test]
fn more_tiles_than_multiprocessors() {
    check(heads(2, 300, 300, 67, 67, 16), 64, &[0.0, 11.0], BF16);
}

/// Scores so far apart that the reference is raised again and again, and weights underflow.
#[test]
fn scores_far_apart() {
    let Some(cuda) = hopper() else { return };
    let h = heads(1, 300, 300, 1, 1, 64);
    let mut case = Case::new("scores far apart");
    let rows = |scale: &dyn Fn(usize) -> f64| -> Vec<f64> {
        normals(3, 300 * 64).iter().enumerate().map(|(i, x)| x * scale(i / 64)).collect()
    };
    // Later keys are smaller, and tiles come from the last: M rises with every one.
    let q = case.holding(BF16, [1, 300, 64], &rows(&|_| 4.0));
    let k = case.holding(BF16, [1, 300, 64], &rows(&|row| 8.0 / (1.0 + row as f64 / 32.0)));
    let v = case.normal(BF16, [1, 300, 64], 1.0);
    let phases = case.holding(DType::U32, [1], &[0.0]);
    let out = case.result(BF16, [1, 300, 64]);
    let lse = case.result(DType::F32, [1, 1, 300]);
    let [q, k, v] = [q, k, v].map(|t| Cols::all(t, 64));
    let blocks = Blocks::Regular { block: 16, phases };
    case.check(cuda, |r| {
        r.push(LandmarkAttention {
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
        });
    });
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
    let Some(cuda) = hopper() else { return };
    let h = heads(2, 150, 150, 2, 1, 64);
    let mut case = Case::new("planted");
    let op = attention(&mut case, h, 51, &[0.0, 20.0], BF16);
    let longer = |op: &mut Op| match op {
        Op::LandmarkAttention(LandmarkAttention { blocks: Blocks::Regular { block, .. }, .. }) => {
            *block = 52;
            true
        }
        _ => false,
    };
    assert!(!fits(case.compare(cuda, |r| r.push(op.clone()), longer)), "a block that is too long");
    let plain = |op: &mut Op| match op {
        Op::LandmarkAttention(op) => {
            op.blocks = Blocks::None;
            true
        }
        _ => false,
    };
    assert!(!fits(case.compare(cuda, |r| r.push(op), plain)), "no landmarks");
}

/// `(B, H, N, D)` instead of `(B, N, H, D)`, as other frameworks have it, through the call.
fn transposed(values: &[f64], rows: usize, heads: usize, head_dim: usize) -> Vec<f64> {
    let each = |i: usize| {
        let (b, h, n, d) =
            (i / (heads * rows * head_dim), i / (rows * head_dim) % heads, i / head_dim % rows, i % head_dim);
        values[((b * rows + n) * heads + h) * head_dim + d]
    };
    (0..values.len()).map(each).collect()
}

#[test]
fn heads_ahead_of_rows_through_the_call() {
    let Some(cuda) = hopper() else { return };
    let h = heads(2, 100, 130, 4, 2, 64);
    let [q, k, v] = [(1, h.queries * h.heads), (2, h.keys * h.kv_heads), (3, h.keys * h.kv_heads)]
        .map(|(salt, vectors)| normals(salt, h.batch * vectors * h.head_dim));
    // The oracle: the recorded op over rows ahead of heads.
    let mut case = Case::new("heads ahead of rows");
    let shape = |rows: usize, heads: usize| [h.batch, rows, heads * h.head_dim];
    let tensors = [(h.queries, h.heads, &q), (h.keys, h.kv_heads, &k), (h.keys, h.kv_heads, &v)];
    let [cq, ck, cv] =
        tensors.map(|(rows, n, x)| Cols::all(case.holding(BF16, shape(rows, n), x), n * h.head_dim));
    let phases = case.holding(DType::U32, [2], &[0.0, 30.0]);
    let out = case.result(BF16, shape(h.queries, h.heads));
    let lse = case.result(DType::F32, [h.batch, h.heads, h.queries]);
    let blocks = Blocks::Regular { block: 51, phases };
    let op = LandmarkAttention {
        heads: h,
        q: cq,
        k: ck,
        v: cv,
        blocks,
        miss: None,
        first_key: None,
        randomness: None,
        out,
        lse,
    };
    let [oracle, naive] = case.on_the_cpu(|r| r.push(op), &[out, lse]);

    let mut layout = Layout::new();
    let tensors = tensors.map(|(rows, n, x)| {
        let tensor = layout.add(format!("t{}", layout.tensors().len()), BF16, [h.batch, n, rows, h.head_dim]);
        (tensor, bytes(BF16, &transposed(x, rows, n, h.head_dim)))
    });
    let phases = layout.add("phases", DType::U32, [2]);
    let out = layout.add("out", BF16, [h.batch, h.heads, h.queries, h.head_dim]);
    let lse = layout.add("lse", DType::F32, [h.batch, h.heads, h.queries]);
    let mut arena = cuda.allocate(&layout).unwrap();
    for (tensor, bytes) in &tensors {
        cuda.write(&mut arena, *tensor, bytes).unwrap();
    }
    cuda.write(&mut arena, phases, &bytes(DType::U32, &[0.0, 30.0])).unwrap();
    cuda.wait().unwrap();
    let at = |tensor: Tensor, rows: usize, heads: usize| {
        let (row, head) = (h.head_dim, rows * h.head_dim);
        HeadsAt { address: arena.address(tensor), batch: heads * head, row, head }
    };
    let attention = FusedAttention { heads: h, block: Some(51), dtype: BF16, scale: None };
    let places = FusedForward {
        q: at(tensors[0].0, h.queries, h.heads),
        k: at(tensors[1].0, h.keys, h.kv_heads),
        v: at(tensors[2].0, h.keys, h.kv_heads),
        phases: arena.address(phases),
        out: at(out, h.queries, h.heads),
        lse: arena.address(lse),
    };
    // SAFETY: all of it lies in the arena, which nothing else uses, and is waited for below.
    unsafe { cuda.fused_landmark_attention(&attention, &places, std::ptr::null_mut()) }.unwrap();
    let found = values(BF16, &now(cuda.read(&arena, out)).unwrap());
    for (name, found, i) in
        [("out", found, 0), ("lse", values(DType::F32, &now(cuda.read(&arena, lse)).unwrap()), 1)]
    {
        let order =
            |x: &[f64]| if i == 0 { transposed(x, h.queries, h.heads, h.head_dim) } else { x.to_vec() };
        let (oracle, naive) = (order(&oracle[i]), order(&naive[i]));
        let error = worst(&oracle, &found);
        let permitted =
            allowed(&oracle, &naive, common::rounding(if i == 0 { BF16 } else { DType::F32 }) / 4.0);
        assert!(
            error <= permitted,
            "{name}: error {error:e}, allowed {permitted:e} of {:e}",
            magnitude(&oracle)
        );
    }

    // What it does not serve, it says.
    let refused = |attention: FusedAttention, places: FusedForward| {
        // SAFETY: as above.
        let answer = unsafe { cuda.fused_landmark_attention(&attention, &places, std::ptr::null_mut()) };
        match answer {
            Err(Error::Unsupported { reason, .. }) => reason,
            other => panic!("{other:?}"),
        }
    };
    assert!(
        refused(FusedAttention { dtype: DType::F32, ..attention }, places).contains("instead of bf16 or f16")
    );
    assert!(refused(FusedAttention { block: Some(1), ..attention }, places).contains("no ordinary token"));
    let askew = FusedForward { k: HeadsAt { row: 65, ..places.k }, ..places };
    assert!(refused(attention, askew).contains("multiples of 16 bytes"));
    let more = Heads { queries: 131, ..h };
    assert!(refused(FusedAttention { heads: more, ..attention }, places).contains("131 queries"));
}
