//! Gradients of landmark attention as a call over strided tensors, against the oracle. (Through recorded programs they are
//! tested with all other kernels of the op, in `landmark_attention.rs`.)
#![allow(unsafe_code)] // The call takes addresses.

mod common;

use common::attention::{heads, hopper};
use common::{bytes, rounding, values};
use landmark_core::ops::Heads;
use landmark_core::testing::attention::{AttentionCase, Inputs, Landmarks};
use landmark_core::testing::naive::allowed;
use landmark_core::testing::{magnitude, now, worst};
use landmark_core::{Backend, DType, Error, Layout};
use landmark_cuda::fused::{FusedAttention, FusedForward, FusedGradients, HeadsAt};

const BF16: DType = DType::Bf16;
const BLOCK: usize = 51;
const PHASES: [u32; 2] = [0, 30];

/// `(B, N, H, D)` as `(B, H, N, D)`, as other frameworks have it.
fn transposed(values: &[f64], batch: usize, heads: usize, head_dim: usize) -> Vec<f64> {
    let rows = values.len() / (batch * heads * head_dim);
    let each = |i: usize| {
        let (b, h, n, d) =
            (i / (heads * rows * head_dim), i / (rows * head_dim) % heads, i / head_dim % rows, i % head_dim);
        values[((b * rows + n) * heads + h) * head_dim + d]
    };
    (0..values.len()).map(each).collect()
}

fn stored(x: f64) -> f64 {
    values(BF16, &bytes(BF16, &[x]))[0]
}

fn case(heads: Heads) -> (AttentionCase, Inputs) {
    let case = AttentionCase {
        name: "heads ahead of rows".into(),
        heads,
        landmarks: Landmarks::Regular(BLOCK, PHASES.to_vec()),
        miss: false,
        gated: false,
        first_key: None,
        dropout: 0.0,
        group_dropout: 0.0,
    };
    let exact = case.inputs();
    let [q, k, v, dout] =
        [exact.q, exact.k, exact.v, exact.dout].map(|x| x.into_iter().map(stored).collect::<Vec<f64>>());
    (case, Inputs { q, k, v, dout })
}

#[test]
fn heads_ahead_of_rows() {
    let Some(cuda) = hopper() else { return };
    let h = heads(2, 100, 130, 4, 2, 64);
    let (case, given) = case(h);
    let oracle = case.naive::<f64>(&given);
    let naive = case.naive_stored::<f32>(&given, |x| stored(f64::from(x)) as f32);

    let attention = FusedAttention { heads: h, block: Some(BLOCK), dtype: BF16, scale: None };
    let mut layout = Layout::new();
    let mut tensor =
        |name: &str, heads: usize, rows: usize| layout.add(name, BF16, [h.batch, heads, rows, h.head_dim]);
    let [q, out, dout, dq] = ["q", "out", "dout", "dq"].map(|name| tensor(name, h.heads, h.queries));
    let [k, v, dk, dv] = ["k", "v", "dk", "dv"].map(|name| tensor(name, h.kv_heads, h.keys));
    let phases = layout.add("phases", DType::U32, [h.batch]);
    let lse = layout.add("lse", DType::F32, [h.batch, h.heads, h.queries]);
    let ticket = layout.add("ticket", DType::U32, [1]);
    let workspace = layout.add("workspace", DType::U32, [attention.backward_workspace() as usize / 4]);
    let mut arena = cuda.allocate(&layout).unwrap();
    for (tensor, values, heads) in [
        (q, &given.q, h.heads),
        (k, &given.k, h.kv_heads),
        (v, &given.v, h.kv_heads),
        (dout, &given.dout, h.heads),
    ] {
        cuda.write(&mut arena, tensor, &bytes(BF16, &transposed(values, h.batch, heads, h.head_dim)))
            .unwrap();
    }
    for result in [out, dq, dk, dv] {
        cuda.write(&mut arena, result, &bytes(BF16, &vec![f64::NAN; layout.info(result).shape.numel()]))
            .unwrap();
    }
    cuda.write(&mut arena, phases, &bytes(DType::U32, &PHASES.map(f64::from))).unwrap();
    cuda.wait().unwrap();
    let at = |tensor| {
        let shape = layout.info(tensor).shape.clone();
        let (row, head) = (h.head_dim, shape.numel() / h.batch / h.heads);
        let head = if [k, v, dk, dv].contains(&tensor) { head * h.heads / h.kv_heads } else { head };
        HeadsAt { address: arena.address(tensor), batch: shape.numel() / h.batch, row, head }
    };
    let forward = FusedForward {
        q: at(q),
        k: at(k),
        v: at(v),
        phases: arena.address(phases),
        out: at(out),
        lse: arena.address(lse),
        ticket: arena.address(ticket),
    };
    let workspace = arena.address(workspace);
    let gradients = FusedGradients { forward, dout: at(dout), dq: at(dq), dk: at(dk), dv: at(dv), workspace };
    // SAFETY: all of it lies in the arena, which nothing else uses, and is waited for below.
    unsafe {
        cuda.fused_landmark_attention(&attention, &forward, std::ptr::null_mut()).unwrap();
        cuda.fused_landmark_attention_backward(&attention, &gradients, std::ptr::null_mut()).unwrap();
    }
    for (i, tensor) in [out, dq, dk, dv].into_iter().enumerate() {
        let (name, heads) = (oracle[i].0, if i < 2 { h.heads } else { h.kv_heads });
        let found = values(BF16, &now(cuda.read(&arena, tensor)).unwrap());
        let oracle = transposed(&oracle[i].1, h.batch, heads, h.head_dim);
        let naive: Vec<f64> = naive[i].1.iter().map(|&x| stored(x)).collect();
        let naive = transposed(&naive, h.batch, heads, h.head_dim);
        let (error, permitted) = (worst(&oracle, &found), allowed(&oracle, &naive, rounding(BF16) / 2.0));
        assert!(
            error <= permitted,
            "{name}: error {error:e}, allowed {permitted:e} of {:e}",
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
