//! The grouped softmax from its definition, with no thought of speed.
//!
//! A query sees a list of keys in time order, itself last. Everything else follows from which of them are
//! landmarks. Exponentials are taken as they stand, without a maximum taken off first: the inputs of the case
//! tables are small, and so the code stays the definition. Generic over the float, because the error that a
//! kernel may make in f32 is derived from the error that *this* makes in f32 (see [`allowed`]).

use std::iter::Sum;
use std::ops::{Add, Div, Mul, Sub};

/// `f32` or `f64`, with the functions of the standard library.
pub trait Float:
    Copy + Sum + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// Rounds from `f64`.
    fn of(x: f64) -> Self;
    /// Widens.
    fn f64(self) -> f64;
    /// e to the power of this.
    fn exp(self) -> Self;
}

impl Float for f64 {
    fn of(x: f64) -> Self {
        x
    }
    fn f64(self) -> f64 {
        self
    }
    fn exp(self) -> Self {
        f64::exp(self)
    }
}

impl Float for f32 {
    fn of(x: f64) -> Self {
        x as f32
    }
    fn f64(self) -> f64 {
        f64::from(self)
    }
    fn exp(self) -> Self {
        f32::exp(self)
    }
}

/// A key as one query sees it.
#[derive(Clone, Copy, Debug)]
pub struct Key<F> {
    /// `q · k / sqrt(D)`.
    pub score: F,
    /// Whether it is a landmark.
    pub landmark: bool,
    /// Whether that landmark is gated by the context-miss token.
    pub gated: bool,
    /// Dropout's factor on the landmark's share: 1, or 0 or `1 / (1 - p)` in training.
    pub keep: F,
}

/// What a query makes of its keys.
#[derive(Clone, Debug)]
pub struct Row<F> {
    /// Weight of each key's value.
    pub weight: Vec<F>,
    /// For a landmark its share of the softmax it is part of, for an ordinary key of an earlier block its inner
    /// weight, for a key of the own block its outer weight.
    pub part: Vec<F>,
    /// Share of the context-miss token.
    pub miss: F,
    /// Number of landmarks before each key: its block.
    pub block: Vec<usize>,
}

/// The grouped softmax (spec: outer set, inner sets, context-miss token). A share of the token below `cutoff`
/// counts as 0.
pub fn grouped_softmax<F: Float>(keys: &[Key<F>], miss: Option<F>, cutoff: Option<f64>) -> Row<F> {
    let zero = F::of(0.0);
    let mut before = 0;
    let block: Vec<usize> = keys.iter().map(|k| (before, before += usize::from(k.landmark)).0).collect();
    let own = block[keys.len() - 1];
    let exp: Vec<F> = keys.iter().map(|k| k.score.exp()).collect();
    let sum = |member: &dyn Fn(usize) -> bool| -> F {
        (0..keys.len()).filter(|&j| member(j)).map(|j| exp[j]).sum()
    };
    let earlier = |j: usize| block[j] < own;
    let miss_exp = miss.map_or(zero, F::exp);
    let outer =
        miss_exp + sum(&|j| if earlier(j) { keys[j].landmark && !keys[j].gated } else { !keys[j].landmark });
    let gated = sum(&|j| earlier(j) && keys[j].landmark && keys[j].gated);
    let inner: Vec<F> = (0..own).map(|b| sum(&|j| block[j] == b && !keys[j].landmark)).collect();
    let miss = if miss.is_some() { miss_exp / outer } else { zero };
    let miss = if cutoff.is_some_and(|c| miss.f64() < c) { zero } else { miss };
    let part: Vec<F> = (0..keys.len())
        .map(|j| match (earlier(j), keys[j].landmark) {
            (false, false) => exp[j] / outer,
            (false, true) => zero,
            (true, true) => exp[j] / if keys[j].gated { gated } else { outer },
            (true, false) => exp[j] / inner[block[j]],
        })
        .collect();
    let share = |b: usize| {
        let l =
            (0..keys.len()).find(|&l| keys[l].landmark && block[l] == b).expect("an earlier block is closed");
        keys[l].keep * part[l] * if keys[l].gated { miss } else { F::of(1.0) }
    };
    let share: Vec<F> = (0..own).map(share).collect();
    let weight = (0..keys.len())
        .map(|j| {
            if keys[j].landmark {
                zero
            } else if earlier(j) {
                share[block[j]] * part[j]
            } else {
                part[j]
            }
        })
        .collect();
    Row { weight, part, miss, block }
}

/// Gradients of the scores, and of the context-miss token's score, from the gradients of the weights.
///
/// With `c_b` the sum of `P dP` over block `b`, `Δ` over the row and `Γ` over gated blocks: own block
/// `P (dP - Δ)`; earlier ordinary key `P dP - w c_b`; landmark `c_b - S Δ`, gated `c_b - S Γ`; token
/// `Γ - S Δ`.
pub fn grouped_softmax_backward<F: Float>(keys: &[Key<F>], row: &Row<F>, dweight: &[F]) -> (Vec<F>, F) {
    let n = keys.len();
    let own = row.block[n - 1];
    let sums = |member: &dyn Fn(usize) -> bool| -> F {
        (0..n).filter(|&j| member(j)).map(|j| row.weight[j] * dweight[j]).sum()
    };
    let c: Vec<F> = (0..=own).map(|b| sums(&|j| row.block[j] == b)).collect();
    let closed_by_gated = |b: usize| (0..n).any(|l| keys[l].landmark && row.block[l] == b && keys[l].gated);
    let gated: F = (0..own).filter(|&b| closed_by_gated(b)).map(|b| c[b]).sum();
    let total: F = c.iter().copied().sum();
    let dscore = |j: usize| match (row.block[j] < own, keys[j].landmark) {
        (false, _) => row.weight[j] * (dweight[j] - total),
        (true, true) => c[row.block[j]] - row.part[j] * if keys[j].gated { gated } else { total },
        (true, false) => row.weight[j] * dweight[j] - row.part[j] * c[row.block[j]],
    };
    ((0..n).map(dscore).collect(), gated - row.miss * total)
}

/// Scalar product.
pub fn dot<F: Float>(a: &[F], b: &[F]) -> F {
    a.iter().zip(b).map(|(&x, &y)| x * y).sum()
}

/// The error that a kernel in a low precision may make: twice that of the naive implementation in the same
/// precision, both against the oracle, plus a few units in the last place of the largest value (for cases so
/// small that the naive one makes no error at all).
pub fn allowed(oracle: &[f64], naive: &[f64], ulp: f64) -> f64 {
    2.0 * super::worst(oracle, naive) + 4.0 * ulp * super::magnitude(oracle)
}
