//! Landmark attention in all its variants.

use crate::rig::{Plant, Rig, emit, scratch_of};
use landmark_core::ops::*;
use landmark_core::testing::u32_bytes;
use landmark_core::{Cols, DType, plant};

/// What a variant changes; tensors that ops refer to are made by [`rig`].
#[derive(Clone)]
struct Variant {
    heads: Heads,
    block: usize,
    phases: [u32; 2],
    /// Landmarks anywhere, instead of regular ones.
    anywhere: Option<Vec<u32>>,
    plain: bool,
    miss: bool,
    gated: Option<Vec<u32>>,
    first_key: Option<[u32; 2]>,
    dropout: f32,
    group_dropout: f32,
}

fn regular(queries: usize, keys: usize) -> Variant {
    Variant {
        heads: Heads { batch: 2, queries, keys, heads: 2, kv_heads: 2, head_dim: 2 },
        block: 3,
        phases: [0, 2],
        anywhere: None,
        plain: false,
        miss: false,
        gated: None,
        first_key: None,
        dropout: 0.0,
        group_dropout: 0.0,
    }
}

/// What a plant may put in place of the right tensor.
struct Others {
    phases: landmark_core::Tensor,
}

fn rig(variant: &Variant) -> (Rig, Others) {
    let (v, h) = (variant.clone(), variant.heads);
    let (q_width, k_width) = (h.heads * h.head_dim, h.kv_heads * h.head_dim);
    let mut rig = Rig::new();
    let q = rig.input("q", [h.batch, h.queries, q_width]);
    // Keys and values are columns of one tensor, with two columns to spare.
    let kv = rig.input("kv", [h.batch, h.keys, 2 * k_width + 2]);
    let mut small = |name: &str, values: &[u32]| rig.fixed(name, DType::U32, u32_bytes(values));
    let phases = small("phases", &v.phases);
    let others = Others { phases: small("other phases", &v.phases.map(|p| p + 1)) };
    let blocks = match (&v.anywhere, v.plain) {
        (_, true) => Blocks::None,
        (Some(mask), _) => Blocks::Anywhere { is_landmark: small("is_landmark", mask) },
        (None, _) => Blocks::Regular { block: v.block, phases },
    };
    let gated = v.gated.as_ref().map(|g| small("gated", g));
    let miss = v.miss.then_some(MissToken { gated });
    let first_key = v.first_key.map(|f| small("first_key", &f));
    let seed = small("seed", &[5, 6, 7, 0]);
    let random = v.dropout + v.group_dropout > 0.0;
    let (dropout, group_dropout) = (v.dropout, v.group_dropout);
    let randomness = random.then_some(Randomness { seed, salt: 3, dropout, group_dropout });
    let shape = [h.batch, h.queries, q_width];
    let output = rig.output(shape);
    rig.record(move |r| {
        let (q, kv) = (Cols::all(scratch_of(r, q), q_width), scratch_of(r, kv));
        let k = Cols { tensor: kv, start: 1, width: k_width };
        let v = Cols { tensor: kv, start: 2 + k_width, width: k_width };
        let out = r.scratch("out", DType::F32, shape);
        let lse = r.scratch("lse", DType::F32, [h.batch, h.heads, h.queries]);
        r.push(LandmarkAttention { heads: h, q, k, v, blocks, miss, first_key, randomness, out, lse });
        emit(r, out, output);
        vec![]
    });
    (rig, others)
}

fn bug(name: &str, change: impl Fn(&mut LandmarkAttention) + 'static) -> Plant<'_> {
    (name, Box::new(plant!(Op::LandmarkAttentionBackward(op) => change(&mut op.forward))))
}

#[test]
fn plain() {
    let variant = Variant { plain: true, ..regular(5, 5) };
    rig(&variant).0.prove(&[
        bug("keys and values exchanged", |op| std::mem::swap(&mut op.k, &mut op.v)),
        ("gradients of keys and values exchanged", Box::new(plant!(Op::LandmarkAttentionBackward(op) => std::mem::swap(&mut op.gradients.dk, &mut op.gradients.dv)))),
    ]);
}

#[test]
fn regular_blocks_with_a_phase_for_each_row() {
    let (rig, others) = rig(&regular(8, 8));
    rig.prove(&[
        bug("phases off by one", move |op| op.blocks = Blocks::Regular { block: 3, phases: others.phases }),
        bug("blocks one longer", move |op| {
            if let Blocks::Regular { block, .. } = &mut op.blocks {
                *block += 1;
            }
        }),
        bug("landmarks forgotten", |op| op.blocks = Blocks::None),
    ]);
}

/// The bugs that a kernel for landmarks is most likely to have, put into right gradients by hand.
#[test]
fn a_lost_block_and_a_landmark_of_the_wrong_sign_are_seen() {
    let (rig, _) = rig(&regular(8, 8));
    let (right, numeric) = (rig.analytic(None, false), rig.numeric());
    rig.compare(&right, &numeric).unwrap();
    let width = right[1].len() / 16;
    // Row 0 of the batch has phase 0: tokens 0 and 1 are a block, token 2 its landmark.
    let mut lost = right.clone();
    lost[1][..2 * width].fill(0.0);
    assert!(rig.compare(&lost, &numeric).is_err());
    let mut turned = right.clone();
    let landmark = &mut turned[1][2 * width..3 * width];
    assert!(landmark.iter().any(|g| g.abs() > 0.0));
    landmark.iter_mut().for_each(|g| *g = -*g);
    assert!(rig.compare(&turned, &numeric).is_err());
}

#[test]
fn landmarks_anywhere() {
    // First, consecutive and last; and none at all.
    let mut mask = vec![1, 0, 1, 1, 0, 0, 1];
    mask.extend([0; 7]);
    let variant = Variant { anywhere: Some(mask), ..regular(7, 7) };
    rig(&variant).0.prove(&[bug("landmarks forgotten", |op| op.blocks = Blocks::None)]);
    let variant = Variant { anywhere: Some(vec![1, 1, 1, 0, 0, 1, 1, 0, 1, 0, 0, 1, 0, 1]), ..regular(7, 7) };
    rig(&variant).0.prove(&[]);
}

#[test]
fn fewer_queries_than_keys() {
    for queries in [1, 3] {
        rig(&regular(queries, 8)).0.prove(&[bug("landmarks forgotten", |op| op.blocks = Blocks::None)]);
    }
}

#[test]
fn grouped_query_heads() {
    let heads = Heads { batch: 2, queries: 6, keys: 6, heads: 4, kv_heads: 2, head_dim: 2 };
    rig(&Variant { heads, ..regular(6, 6) })
        .0
        .prove(&[bug("one head's columns too far left", |op| op.k.start -= 1)]);
}

#[test]
fn more_queries_than_a_tile() {
    let heads = Heads { batch: 2, queries: 66, keys: 66, heads: 1, kv_heads: 1, head_dim: 2 };
    rig(&Variant { heads, block: 8, ..regular(66, 66) }).0.prove(&[]);
}

#[test]
fn hidden_keys() {
    let variant = Variant { first_key: Some([1, 5]), ..regular(7, 7) };
    rig(&variant).0.prove(&[bug("hidden keys seen", |op| op.first_key = None)]);
}

#[test]
fn context_miss_token() {
    let variant = Variant { miss: true, ..regular(8, 8) };
    rig(&variant).0.prove(&[bug("the token treated as any other", |op| {
        op.miss = None;
        op.blocks = Blocks::None;
    })]);
}

#[test]
fn gated_landmarks() {
    // Landmarks of row 0 are tokens 2 and 5, of row 1 tokens 0, 3 and 6.
    let gated = vec![0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 1];
    let variant = Variant { miss: true, gated: Some(gated), ..regular(8, 8) };
    rig(&variant).0.prove(&[bug("gating forgotten", |op| op.miss = Some(MissToken { gated: None }))]);
}

#[test]
fn dropout_of_keys_and_of_blocks() {
    let (gated, all) = (vec![0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 1], regular(8, 8));
    for variant in [
        Variant { dropout: 0.4, ..all.clone() },
        Variant { group_dropout: 0.4, ..all.clone() },
        Variant { dropout: 0.3, group_dropout: 0.3, miss: true, gated: Some(gated), ..all },
    ] {
        rig(&variant).0.prove(&[
            bug("other bits", |op| op.randomness.as_mut().unwrap().salt += 1),
            bug("dropout forgotten", |op| op.randomness = None),
        ]);
    }
}
