//! Landmark attention as a call over strided tensors, forward and backward, against the oracle: on every GPU, in orders of
//! the tensors' axes that recorded programs do not have.
#![allow(unsafe_code)] // The call takes addresses.

mod common;

use common::attention::{case, inputs, ratio};
use common::{FLOATS, bytes, cuda, fits, values};
use landmark_core::ops::Heads;
use landmark_core::testing::attention::{AttentionCase, Landmarks, cases};
use landmark_core::testing::now;
use landmark_core::{Backend, DType, Error, Layout};
use landmark_cuda::fused::{FusedAttention, FusedForward, FusedGradients, HeadsAt};
use landmark_cuda::{Cuda, CudaArena};
use std::ptr::null_mut;

const BF16: DType = DType::Bf16;

/// How a tensor lies in memory.
#[derive(Clone, Copy, Debug)]
enum Order {
    /// `(B, H, N, D)`, as other frameworks have it.
    HeadsFirst,
    /// `(B, N, H, D)` with gaps behind every head, position and row of the batch, none a multiple of a head.
    Gaps,
    /// The same with strides that no copy of 16 bytes can follow.
    Askew,
}

/// A tensor of heads; its address is that of the first byte of a buffer until it has one.
#[derive(Clone, Copy)]
struct Side {
    at: HeadsAt,
    extents: [usize; 4],
}

impl Side {
    fn new(order: Order, h: &Heads, rows: usize, heads: usize) -> Self {
        let d = h.head_dim;
        let gaps = |head: usize, row: usize, batch: usize| {
            let (head, row) = (d + head, heads * (d + head) + row);
            HeadsAt { address: 0, batch: rows * row + batch, row, head }
        };
        let at = match order {
            Order::HeadsFirst => HeadsAt { address: 0, batch: heads * rows * d, row: d, head: rows * d },
            Order::Gaps => gaps(8, 24, 40),
            Order::Askew => gaps(1, 2, 3),
        };
        Side { at, extents: [h.batch, rows, heads, d] }
    }

    /// Where each element lies, in the order `(B, N, H, D)`.
    fn elements(&self) -> impl Iterator<Item = usize> {
        let ([batch, rows, heads, d], at) = (self.extents, self.at);
        (0..batch * rows * heads * d).map(move |i| {
            let (b, n, h) = (i / (rows * heads * d), i / (heads * d) % rows, i / d % heads);
            b * at.batch + n * at.row + h * at.head + i % d
        })
    }

    fn len(&self) -> usize {
        self.extents[0] * self.at.batch
    }

    /// The buffer: these values, NaN in the gaps.
    fn scattered(&self, dense: &[f64]) -> Vec<f64> {
        let mut buffer = vec![f64::NAN; self.len()];
        self.elements().zip(dense).for_each(|(at, &x)| buffer[at] = x);
        buffer
    }

    /// The values of a buffer whose gaps nobody may have written.
    fn gathered(&self, buffer: &[f64]) -> Vec<f64> {
        let mut gaps = buffer.to_vec();
        self.elements().for_each(|at| gaps[at] = f64::NAN);
        assert!(gaps.iter().all(|x| x.is_nan()), "something was written into a gap");
        self.elements().map(|at| buffer[at]).collect()
    }
}

/// Device memory with the tensors of a case: q, k, v, out, dout, dq, dk, dv.
struct Placed {
    layout: Layout,
    arena: CudaArena,
    attention: FusedAttention,
    sides: [Side; 8],
    gradients: FusedGradients,
}

fn place(cuda: &Cuda, case: &AttentionCase, dtype: DType, order: Order) -> Placed {
    let h = case.heads;
    let (block, phases) = match &case.landmarks {
        Landmarks::None => (None, vec![0; h.batch]),
        Landmarks::Regular(block, phases) => (Some(*block), phases.clone()),
        Landmarks::Anywhere(_) => panic!("the call serves regular blocks"),
    };
    let attention = FusedAttention { heads: h, block, dtype, scale: None };
    let (q, kv) = (Side::new(order, &h, h.queries, h.heads), Side::new(order, &h, h.keys, h.kv_heads));
    let mut sides = [q, kv, kv, q, q, q, kv, kv];
    let mut layout = Layout::new();
    let names = ["q", "k", "v", "out", "dout", "dq", "dk", "dv"];
    let tensors = [0, 1, 2, 3, 4, 5, 6, 7].map(|i| layout.add(names[i], dtype, [sides[i].len()]));
    let words = layout.add("phases", DType::U32, [h.batch]);
    let lse = layout.add("lse", DType::F32, [h.batch, h.heads, h.queries]);
    let ticket = layout.add("ticket", DType::U32, [1]);
    let mut arena = cuda.allocate(&layout).unwrap();
    let given = inputs(case, dtype);
    for (i, values) in [&given.q, &given.k, &given.v, &vec![], &given.dout, &vec![], &vec![], &vec![]]
        .into_iter()
        .enumerate()
    {
        cuda.write(&mut arena, tensors[i], &bytes(dtype, &sides[i].scattered(values))).unwrap();
        sides[i].at.address = arena.address(tensors[i]);
    }
    let phases: Vec<f64> = phases.into_iter().map(f64::from).collect();
    cuda.write(&mut arena, words, &bytes(DType::U32, &phases)).unwrap();
    let [q, k, v, out, dout, dq, dk, dv] = sides.map(|side| side.at);
    let forward = FusedForward {
        q,
        k,
        v,
        phases: arena.address(words),
        out,
        lse: arena.address(lse),
        ticket: arena.address(ticket),
        workspace: 0,
    };
    let gradients = FusedGradients { forward, dout, dq, dk, dv, workspace: 0 };
    cuda.wait().unwrap();
    Placed { layout, arena, attention, sides, gradients }
}

impl Placed {
    /// `out`, `dq`, `dk`, `dv`, each `(B, N, H, D)`, of `attention`, which may be another than the case's.
    fn run(&self, cuda: &Cuda, attention: &FusedAttention) -> [Vec<f64>; 4] {
        let mut gradients = self.gradients;
        let forward_bytes = cuda.fused_forward_workspace(attention, &gradients.forward).unwrap();
        let backward_bytes = cuda.fused_backward_workspace(attention, &gradients).unwrap();
        let mut layout = Layout::new();
        let [forward, backward] = [forward_bytes, backward_bytes]
            .map(|n| layout.add(format!("{n} bytes"), DType::U32, [n as usize / 4 + 4]));
        let memory = cuda.allocate(&layout).unwrap();
        gradients.forward.workspace = if forward_bytes == 0 { 0 } else { memory.address(forward) };
        gradients.workspace = memory.address(backward);
        // SAFETY: all of it lies in the arenas, which nothing else uses, and is waited for below.
        unsafe {
            cuda.fused_landmark_attention(attention, &gradients.forward, null_mut()).unwrap();
            cuda.fused_landmark_attention_backward(attention, &gradients, null_mut()).unwrap();
        }
        let read = |name: &str| {
            let tensor = self.layout.find(name).expect("a tensor of that name");
            values(self.layout.info(tensor).dtype, &now(cuda.read(&self.arena, tensor)).unwrap())
        };
        assert_eq!(read("ticket"), [0.0], "the ticket is left as it was found");
        [("out", 3), ("dq", 5), ("dk", 6), ("dv", 7)].map(|(name, i)| self.sides[i].gathered(&read(name)))
    }
}

fn check(cuda: &Cuda, case: &AttentionCase, dtype: DType, order: Order) {
    let placed = place(cuda, case, dtype, order);
    let [first, second] = [(); 2].map(|()| placed.run(cuda, &placed.attention));
    let name = format!("{} in {}, {order:?}", case.name, dtype.name());
    assert!(first == second, "{name}: two runs differ");
    let ratio = ratio(case, &inputs(case, dtype), dtype, &first);
    assert!(fits(ratio), "{name}: {ratio} times the error that is allowed");
}

#[test]
fn the_table_of_cases_in_every_order() {
    let Some(cuda) = cuda() else { return };
    let has_more = |c: &AttentionCase| {
        matches!(c.landmarks, Landmarks::Anywhere(_))
            || c.miss
            || c.first_key.is_some()
            || c.dropout.max(c.group_dropout) > 0.0
    };
    let served: Vec<AttentionCase> = cases().into_iter().filter(|case| !has_more(case)).collect();
    assert!(served.len() > 20, "most of the table");
    let orders = [Order::Gaps, Order::HeadsFirst, Order::Askew];
    for (i, case) in served.iter().enumerate() {
        for (j, dtype) in FLOATS.into_iter().enumerate() {
            check(cuda, case, dtype, orders[(i + j) % orders.len()]);
        }
    }
}

/// Widths of heads and lengths of blocks, of which some belong to each set of kernels; fewer queries than keys; shared keys.
#[test]
fn every_width_with_every_kind_of_block() {
    let Some(cuda) = cuda() else { return };
    for head_dim in [64, 80, 96, 128, 256] {
        for (block, dtype) in [(0, BF16), (2, BF16), (51, BF16), (64, DType::F16), (100, DType::F16)] {
            let phases = [0, block as u32 / 2];
            check(cuda, &case([2, 75, 140, 2, 1, head_dim], block, &phases), dtype, Order::Gaps);
        }
    }
    for head_dim in [64, 256] {
        check(cuda, &case([1, 30, 300, 2, 2, head_dim], 256, &[17]), BF16, Order::HeadsFirst);
    }
}

#[test]
fn scores_may_be_scaled_otherwise() {
    let Some(cuda) = cuda() else { return };
    let case = case([1, 70, 70, 2, 1, 64], 16, &[3]);
    for dtype in FLOATS {
        let placed = place(cuda, &case, dtype, Order::Gaps);
        let usual = placed.run(cuda, &placed.attention);
        let same = FusedAttention { scale: Some(0.125), ..placed.attention };
        assert!(placed.run(cuda, &same) == usual, "the usual scale, given");
        let other = placed.run(cuda, &FusedAttention { scale: Some(0.25), ..placed.attention });
        let ratio = ratio(&case, &inputs(&case, dtype), dtype, &other);
        assert!(!fits(ratio / 10.0), "twice the scale: only {ratio}");
    }
}

#[test]
fn planted_bugs_are_seen() {
    let Some(cuda) = cuda() else { return };
    let case = case([2, 97, 97, 2, 1, 64], 16, &[15, 8]);
    let placed = place(cuda, &case, BF16, Order::Gaps);
    for block in [None, Some(17)] {
        let found = placed.run(cuda, &FusedAttention { block, ..placed.attention });
        let ratio = ratio(&case, &inputs(&case, BF16), BF16, &found);
        assert!(!fits(ratio / 10.0), "blocks of {block:?}: only {ratio}");
    }
}

/// What it does not serve, it says.
#[test]
fn errors() {
    let Some(cuda) = cuda() else { return };
    let case = case([2, 100, 130, 4, 2, 64], 51, &[0, 30]);
    let placed = place(cuda, &case, BF16, Order::Gaps);
    let Placed { attention, gradients, .. } = placed;
    let refused = |attention: FusedAttention, gradients: FusedGradients| {
        // SAFETY: nothing is launched.
        let answers = unsafe {
            [
                cuda.fused_landmark_attention(&attention, &gradients.forward, null_mut()),
                cuda.fused_landmark_attention_backward(&attention, &gradients, null_mut()),
            ]
        };
        answers.into_iter().find_map(|answer| match answer {
            Err(Error::Unsupported { reason, .. }) => Some(reason),
            _ => None,
        })
    };
    let h = attention.heads;
    let of_heads = |heads: Heads| FusedAttention { heads, ..attention };
    let forward = gradients.forward;
    let of_forward = |forward: FusedForward| FusedGradients { forward, ..gradients };
    let askew = HeadsAt { address: forward.k.address + 1, ..forward.k };
    let far = HeadsAt { row: 1 << 31, ..gradients.dk };
    for (attention, gradients, says) in [
        (of_heads(Heads { queries: 131, ..h }), gradients, "131 queries"),
        (of_heads(Heads { kv_heads: 3, ..h }), gradients, "4 heads cannot share 3"),
        (of_heads(Heads { batch: 0, ..h }), gradients, "an extent of 0"),
        (of_heads(Heads { batch: 1 << 30, ..h }), gradients, "beyond 2^30"),
        (FusedAttention { block: Some(1), ..attention }, gradients, "no ordinary token"),
        (FusedAttention { dtype: DType::U32, ..attention }, gradients, "instead of bf16, f16 or f32"),
        (FusedAttention { scale: Some(0.0), ..attention }, gradients, "scale"),
        (attention, of_forward(FusedForward { ticket: 0, ..forward }), "ticket"),
        (attention, of_forward(FusedForward { phases: 0, ..forward }), "phases: no address"),
        (attention, of_forward(FusedForward { lse: 6, ..forward }), "lse"),
        (attention, of_forward(FusedForward { k: askew, ..forward }), "k: 0x"),
        (attention, of_forward(FusedForward { workspace: 8, ..forward }), "multiple of 16"),
        (attention, FusedGradients { dk: far, ..gradients }, "dk: strides beyond"),
        (attention, FusedGradients { dq: HeadsAt::default(), ..gradients }, "dq"),
        (attention, FusedGradients { workspace: 8, ..gradients }, "multiple of 16"),
        (attention, gradients, "no workspace, where"),
    ] {
        let reason = refused(attention, gradients).unwrap_or_else(|| panic!("not refused: {says}"));
        assert!(reason.contains(says), "{reason} instead of {says}");
    }
    cuda.wait().unwrap();
}
