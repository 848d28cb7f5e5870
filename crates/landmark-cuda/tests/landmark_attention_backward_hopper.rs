//! Hopper's gradients of landmark attention against the oracle: through recorded programs, and as a call over strided tensors.
#![allow(unsafe_code)] // The call takes addresses.

mod common;

use common::attention::{attention, heads, hopper};
use common::{Case, bytes, fits, values};
use landmark_core::ops::{
    AttentionGradients, Blocks, Heads, LandmarkAttention, LandmarkAttentionBackward, Op,
};
use landmark_core::testing::naive::allowed;
use landmark_core::testing::{magnitude, now, worst};
use landmark_core::{Backend, Cols, DType, Error, Layout, Tensor};
use landmark_cuda::fused::{FusedAttention, FusedForward, FusedGradients, HeadsAt};

const BF16: DType = DType::Bf16;
const F16: DType = DType::F16;

/// The backward pass of an attention. Gradients are columns of one tensor where the inputs are.
fn backward(case: &mut Case, forward: &LandmarkAttention, dtype: DType) -> LandmarkAttentionBackward {
    let h = forward.heads;
    let dout = case.normal(dtype, [h.batch, h.queries, h.heads * h.head_dim], 1.0);
    let inputs = [(forward.q, h.queries), (forward.k, h.keys), (forward.v, h.keys)];
    let [dq, dk, dv] = if forward.q.tensor == forward.k.tensor {
        let width = inputs.iter().map(|(cols, _)| cols.width).sum::<usize>();
        let tensor = case.result(dtype, [h.batch, h.keys, width]);
        inputs.map(|(cols, _)| Cols { tensor, ..cols })
    } else {
        inputs.map(|(cols, rows)| Cols::all(case.result(dtype, [h.batch, rows, cols.width]), cols.width))
    };
    let gradients = AttentionGradients { dq, dk, dv };
    LandmarkAttentionBackward { forward: forward.clone(), dout, gradients }
}

fn check(h: Heads, block: usize, phases: &[f64], dtype: DType) {
    let Some(cuda) = hopper() else { return };
    let mut case = Case::new(format!("gradients, blocks of {block}, {h:?}, {}", dtype.name()));
    let forward = attention(&mut case, h, block, phases, dtype);
    let backward = backward(&mut case, &forward, dtype);
    case.check(cuda, |r| {
        r.push(forward);
        r.push(backward);
    });
}

#[test]
fn lengths_around_every_boundary() {
    // Blocks of 51 and 64, tiles of 102 and 128 keys, warp groups of 64 rows.
    for n in [2, 50, 51, 52, 63, 64, 65, 102, 103, 127, 128, 129, 193] {
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
    for block in [8, 9, 15, 16, 21, 31, 32, 33, 43, 100, 127, 128] {
        check(heads(2, 197, 197, 1, 1, 64), block, &[3.0, 7.0], BF16);
    }
    for block in [13, 37, 64] {
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

/// Enough tiles that every ring goes round more than once, in both directions.
#[test]
fn long_rows() {
    check(heads(1, 700, 700, 1, 1, 64), 64, &[13.0], BF16);
    check(heads(1, 650, 700, 3, 1, 16), 51, &[50.0], F16);
}

#[test]
fn planted_bugs_are_found() {
    let Some(cuda) = hopper() else { return };
    let h = heads(2, 150, 150, 2, 1, 64);
    let mut case = Case::new("planted");
    let forward = attention(&mut case, h, 51, &[0.0, 20.0], BF16);
    let backward = backward(&mut case, &forward, BF16);
    let planted = |plant: &dyn Fn(&mut LandmarkAttention)| {
        let plant = |op: &mut Op| match op {
            Op::LandmarkAttentionBackward(op) => {
                plant(&mut op.forward);
                true
            }
            _ => false,
        };
        case.compare(
            cuda,
            |r| {
                r.push(forward.clone());
                r.push(backward.clone());
            },
            plant,
        )
    };
    let longer = planted(&|op| {
        if let Blocks::Regular { block, .. } = &mut op.blocks {
            *block = 52;
        }
    });
    assert!(!fits(longer), "a block that is too long");
    assert!(!fits(planted(&|op| op.blocks = Blocks::None)), "no landmarks");
    assert!(!fits(planted(&|op| std::mem::swap(&mut op.k, &mut op.v))), "keys for values");
}

/// `(B, N, H, D)` as `(B, H, N, D)`, as other frameworks have it.
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
    // The oracle: the recorded ops over rows ahead of heads.
    let mut case = Case::new("heads ahead of rows");
    let forward = attention(&mut case, h, 51, &[0.0, 30.0], BF16);
    let backward = backward(&mut case, &forward, BF16);
    let g = backward.gradients;
    let of_queries = [forward.q.tensor, forward.out, backward.dout, g.dq.tensor];
    let results = [g.dq.tensor, g.dk.tensor, g.dv.tensor];
    let [oracle, naive] = case.on_the_cpu(
        |r| {
            r.push(forward.clone());
            r.push(backward.clone());
        },
        &results,
    );

    // The same values, heads ahead of rows.
    let attention = FusedAttention { heads: h, block: Some(51), dtype: BF16, scale: None };
    let mut layout = Layout::new();
    let mut places = Vec::new();
    for (tensor, contents) in &case.inputs {
        let info = case.layout.info(*tensor);
        let is_half = info.dtype == BF16;
        let (n, rows) = if of_queries.contains(tensor) { (h.heads, h.queries) } else { (h.kv_heads, h.keys) };
        let here = if is_half {
            layout.add(info.name.clone(), BF16, [h.batch, n, rows, h.head_dim])
        } else {
            layout.add(info.name.clone(), info.dtype, info.shape.clone())
        };
        let contents = match is_half {
            true => bytes(BF16, &transposed(&values(BF16, contents), rows, n, h.head_dim)),
            false => contents.clone(),
        };
        places.push((*tensor, here, rows, n, contents));
    }
    let workspace = layout.add("workspace", DType::U32, [attention.backward_workspace() as usize / 4]);
    let mut arena = cuda.allocate(&layout).unwrap();
    for (_, here, _, _, contents) in &places {
        cuda.write(&mut arena, *here, contents).unwrap();
    }
    cuda.wait().unwrap();
    let find = |tensor: Tensor| places.iter().find(|place| place.0 == tensor).unwrap();
    let at = |tensor: Tensor| {
        let (_, here, rows, heads, _) = find(tensor);
        let (row, head) = (h.head_dim, rows * h.head_dim);
        HeadsAt { address: arena.address(*here), batch: heads * head, row, head }
    };
    let Blocks::Regular { phases, .. } = forward.blocks else { panic!("landmarks") };
    let address = |tensor: Tensor| arena.address(find(tensor).1);
    let forward = FusedForward {
        q: at(forward.q.tensor),
        k: at(forward.k.tensor),
        v: at(forward.v.tensor),
        phases: address(phases),
        out: at(forward.out),
        lse: address(forward.lse),
    };
    let gradients = FusedGradients {
        forward,
        dout: at(backward.dout),
        dq: at(g.dq.tensor),
        dk: at(g.dk.tensor),
        dv: at(g.dv.tensor),
        workspace: arena.address(workspace),
    };
    // SAFETY: all of it lies in the arena, which nothing else uses, and is waited for below.
    unsafe {
        cuda.fused_landmark_attention(&attention, &forward, std::ptr::null_mut()).unwrap();
        cuda.fused_landmark_attention_backward(&attention, &gradients, std::ptr::null_mut()).unwrap();
    }
    for (i, tensor) in results.into_iter().enumerate() {
        let (_, here, rows, heads, _) = find(tensor);
        let found = values(BF16, &now(cuda.read(&arena, *here)).unwrap());
        let [oracle, naive] = [&oracle[i], &naive[i]].map(|x| transposed(x, *rows, *heads, h.head_dim));
        let error = worst(&oracle, &found);
        let permitted = allowed(&oracle, &naive, common::rounding(BF16) / 4.0);
        assert!(
            error <= permitted,
            "gradient {i}: error {error:e}, allowed {permitted:e} of {:e}",
            magnitude(&oracle)
        );
    }

    // What it does not serve, it says.
    let refused = |attention: FusedAttention, gradients: FusedGradients| {
        // SAFETY: as above.
        let answer =
            unsafe { cuda.fused_landmark_attention_backward(&attention, &gradients, std::ptr::null_mut()) };
        match answer {
            Err(Error::Unsupported { reason, .. }) => reason,
            other => panic!("{other:?}"),
        }
    };
    assert!(refused(FusedAttention { block: Some(129), ..attention }, gradients).contains("blocks of 129"));
    assert!(
        refused(FusedAttention { dtype: DType::F32, ..attention }, gradients).contains("instead of bf16")
    );
    let askew = FusedGradients { dk: HeadsAt { row: 65, ..gradients.dk }, ..gradients };
    assert!(refused(attention, askew).contains("dk"));
    assert!(refused(attention, FusedGradients { workspace: 8, ..gradients }).contains("workspace"));
}
