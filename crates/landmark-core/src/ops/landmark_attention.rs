//! Landmark attention: causal attention with the grouped softmax of the paper (section 3.1; spec section 2).
//!
//! A landmark closes every block. For query `i` the *outer set* holds the ordinary keys of its own block up
//! to itself and the landmarks of all earlier blocks; one softmax over it gives `S`. The *inner* softmax of an
//! earlier block runs over its ordinary keys and gives `w`. A key of the own block weighs `S`, a key of an
//! earlier block `S(landmark) · w`, a landmark nothing. Without landmarks this is plain causal attention.
//!
//! With `Nq < Nk` the queries are the last `Nq` positions.

use super::*;
use crate::random::SEED_LEN;

/// Extents of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Rows of the batch.
    pub batch: usize,
    /// Queries of a row (`Nq`), the context-miss token's row included where there is one.
    pub queries: usize,
    /// Keys of a row (`Nk >= Nq`), likewise.
    pub keys: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads` (grouped-query attention).
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl Heads {
    /// Query-key pairs that causal attention computes, over all rows and heads.
    pub fn pairs(&self) -> u64 {
        let (q, k) = (self.queries as u64, self.keys as u64);
        (q * (k - q) + q * (q + 1) / 2) * (self.batch * self.heads) as u64
    }
}

/// Where the landmarks are. Key indices do not count the context-miss token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Blocks {
    /// Nowhere: plain attention.
    None,
    /// Key `j` of row `b` is a landmark where `(j + phases[b]) % block == block - 1`.
    Regular {
        /// Positions of a block, its landmark included.
        block: usize,
        /// `(B)` u32: how far the row's first key is into its block.
        phases: Tensor,
    },
    /// Where `is_landmark` `(B, Nk)` u32 is not 0.
    Anywhere {
        /// The mask.
        is_landmark: Tensor,
    },
}

/// The context-miss token (spec section 2): row 0 of queries, keys and values.
///
/// Its key is one more member of every outer set, and takes the share `S(-1)`. *Gated* landmarks leave the
/// outer set: they share `S(-1)` by a softmax of their own. Its own output row is 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MissToken {
    /// `(B, Nk - 1)` u32: which landmarks are gated. `None`: none is.
    pub gated: Option<Tensor>,
}

/// Dropout inside the attention, in training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Randomness {
    /// `(4)` u32.
    pub seed: Tensor,
    /// A number of this op's own.
    pub salt: u32,
    /// Probability of dropping a weight of a single key.
    pub dropout: f32,
    /// Probability of dropping the factor of a whole earlier block (`group_dropout`).
    pub group_dropout: f32,
}

/// `out = P · v`, `P` the grouped softmax of `q · kᵀ / sqrt(D)`; `lse` is the log of the outer sum.
///
/// `q` `(B, Nq, H · D)`, `k` and `v` `(B, Nk, Hkv · D)`, positions applied already; `out` `(B, Nq, H · D)`,
/// `lse` `(B, H, Nq)`.
#[derive(Clone, Debug)]
pub struct LandmarkAttention {
    /// Extents.
    pub heads: Heads,
    /// Queries.
    pub q: Cols,
    /// Keys.
    pub k: Cols,
    /// Values.
    pub v: Cols,
    /// Landmarks.
    pub blocks: Blocks,
    /// Context-miss token.
    pub miss: Option<MissToken>,
    /// `(B)` u32: first key that a row may see (a prefix that is not filled yet, padding on the left).
    pub first_key: Option<Tensor>,
    /// Dropout.
    pub randomness: Option<Randomness>,
    /// Result.
    pub out: Tensor,
    /// Log of the outer sum, kept for the backward pass.
    pub lse: Tensor,
}

fn read_inputs(o: &mut Operands, op: (Cols, Cols, Cols), blocks: Blocks, miss: Option<MissToken>) {
    o.read("q", op.0.tensor);
    o.read("k", op.1.tensor);
    o.read("v", op.2.tensor);
    match blocks {
        Blocks::None => {}
        Blocks::Regular { phases, .. } => o.read("phases", phases),
        Blocks::Anywhere { is_landmark } => o.read("is_landmark", is_landmark),
    }
    o.read("gated", miss.and_then(|m| m.gated));
}

pub(super) fn check_heads(p: &Program, h: &Heads, q: Cols, k: Cols, v: Cols) -> Result<(), String> {
    for (field, cols, rows, heads) in
        [("q", q, h.queries, h.heads), ("k", k, h.keys, h.kv_heads), ("v", v, h.keys, h.kv_heads)]
    {
        expect_cols(p, field, cols)?;
        if p.shape(cols.tensor).rows() != h.batch * rows || cols.width != heads * h.head_dim {
            return Err(format!(
                "{field}: {} columns of `{}` {:?} are not {} rows of {rows} with {heads} heads of {}",
                cols.width,
                p.info(cols.tensor).name,
                p.shape(cols.tensor),
                h.batch,
                h.head_dim
            ));
        }
    }
    if h.kv_heads == 0 || !h.heads.is_multiple_of(h.kv_heads) {
        return Err(format!("{} heads cannot share {} key heads", h.heads, h.kv_heads));
    }
    Ok(())
}

impl Operation for LandmarkAttention {
    fn name(&self) -> &'static str {
        "LandmarkAttention"
    }
    fn operands(&self, o: &mut Operands) {
        read_inputs(o, (self.q, self.k, self.v), self.blocks, self.miss);
        o.read("first_key", self.first_key);
        o.read("seed", self.randomness.map(|r| r.seed));
        o.write("out", self.out);
        o.write("lse", self.lse);
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        let h = &self.heads;
        check_heads(p, h, self.q, self.k, self.v)?;
        if h.keys < h.queries {
            return Err(format!("{} queries are more than {} keys", h.queries, h.keys));
        }
        let tokens = h.keys - usize::from(self.miss.is_some());
        match self.blocks {
            Blocks::None => {}
            Blocks::Regular { block, phases } => {
                expect_dtype(p, "phases", phases, DType::U32)?;
                expect_numel(p, "phases", phases, h.batch)?;
                if block < 2 {
                    return Err(format!("a block of {block} positions holds no ordinary token"));
                }
            }
            Blocks::Anywhere { is_landmark } => {
                expect_dtype(p, "is_landmark", is_landmark, DType::U32)?;
                expect_numel(p, "is_landmark", is_landmark, h.batch * tokens)?;
            }
        }
        if let Some(gated) = self.miss.and_then(|m| m.gated) {
            expect_dtype(p, "gated", gated, DType::U32)?;
            expect_numel(p, "gated", gated, h.batch * tokens)?;
        }
        if let Some(first_key) = self.first_key {
            expect_dtype(p, "first_key", first_key, DType::U32)?;
            expect_numel(p, "first_key", first_key, h.batch)?;
        }
        if let Some(r) = self.randomness {
            expect_dtype(p, "seed", r.seed, DType::U32)?;
            expect_numel(p, "seed", r.seed, SEED_LEN)?;
        }
        expect_numel(p, "out", self.out, h.batch * h.queries * h.heads * h.head_dim)?;
        expect_shape(p, "lse", self.lse, [h.batch, h.heads, h.queries])
    }
    fn cost(&self, p: &Program) -> Cost {
        Cost { flops: self.heads.pairs() * (4 * self.heads.head_dim as u64 + 4), ..traffic(p, self) }
    }
    fn backward(&self, reverse: &mut Reverse<'_>) {
        let Some(dout) = reverse.gradient(self.out) else { return };
        let [dq, dk, dv] = reverse.contribute_cols([self.q, self.k, self.v]);
        reverse.push(LandmarkAttentionBackward {
            forward: self.clone(),
            dout,
            gradients: AttentionGradients { dq, dk, dv },
        });
    }
}

/// Where the gradients of an attention go; each `=`.
#[derive(Clone, Copy, Debug)]
pub struct AttentionGradients {
    /// Of the queries.
    pub dq: Cols,
    /// Of the keys.
    pub dk: Cols,
    /// Of the values.
    pub dv: Cols,
}

/// Gradients of [`LandmarkAttention`] (spec section 2). With `dP = dout · vᵀ`, `c_b` the sum of `P dP` over an
/// earlier block, `δ_b = c_b / S_b` and `Δ` the sum of `P dP` over the whole row:
/// own block `ds = P (dP - Δ)`; landmark `ds = c_b - S_b Δ`; earlier key `ds = P (dP - δ_b)`.
#[derive(Clone, Debug)]
pub struct LandmarkAttentionBackward {
    /// The forward op: inputs, landmarks, and its two results.
    pub forward: LandmarkAttention,
    /// Gradient of its `out`.
    pub dout: Tensor,
    /// Results.
    pub gradients: AttentionGradients,
}

impl Operation for LandmarkAttentionBackward {
    fn name(&self) -> &'static str {
        "LandmarkAttentionBackward"
    }
    fn operands(&self, o: &mut Operands) {
        let f = &self.forward;
        read_inputs(o, (f.q, f.k, f.v), f.blocks, f.miss);
        o.read("first_key", f.first_key);
        o.read("seed", f.randomness.map(|r| r.seed));
        o.read("out", f.out);
        o.read("lse", f.lse);
        o.read("dout", self.dout);
        o.part("dq", self.gradients.dq.tensor);
        o.part("dk", self.gradients.dk.tensor);
        o.part("dv", self.gradients.dv.tensor);
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        self.forward.check(p)?;
        check_heads(p, &self.forward.heads, self.gradients.dq, self.gradients.dk, self.gradients.dv)?;
        expect_same(p, ("out", self.forward.out), ("dout", self.dout))
    }
    fn cost(&self, p: &Program) -> Cost {
        let h = &self.forward.heads;
        Cost { flops: h.pairs() * (10 * h.head_dim as u64 + 8), ..traffic(p, self) }
    }
}
