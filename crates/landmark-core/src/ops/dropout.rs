//! Random masks. Bits come from [`crate::random`], so the backward pass draws them again instead of reading
//! a stored mask.

use super::*;
use crate::random::SEED_LEN;

/// `out[i] = x[i] / (1 - p)` with probability `1 - p`, else 0.
#[derive(Clone, Debug)]
pub struct Dropout {
    /// Input.
    pub x: Tensor,
    /// Probability of dropping, in `[0, 1)`.
    pub p: f32,
    /// `(4)` u32: see [`crate::random::SEED_LEN`].
    pub seed: Tensor,
    /// A number of this op's own.
    pub salt: u32,
    /// Result, same shape. For a gradient that is already there, this may add.
    pub out: Out,
}

impl Operation for Dropout {
    fn name(&self) -> &'static str {
        "Dropout"
    }
    fn operands(&self, o: &mut Operands) {
        o.read("x", self.x);
        o.read("seed", self.seed);
        o.out("out", self.out);
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        if !(0.0..1.0).contains(&self.p) {
            return Err(format!("p = {} is not in [0, 1)", self.p));
        }
        expect_dtype(p, "seed", self.seed, DType::U32)?;
        expect_numel(p, "seed", self.seed, SEED_LEN)?;
        expect_same(p, ("x", self.x), ("out", self.out.tensor))
    }
    fn cost(&self, p: &Program) -> Cost {
        elementwise(p, self, self.x, 2)
    }
    fn backward(&self, reverse: &mut Reverse<'_>) {
        let Some(dout) = reverse.gradient(self.out.tensor) else { return };
        if let Some(dx) = reverse.contribute(self.x) {
            reverse.push(Dropout { x: dout, out: dx, ..self.clone() });
        }
    }
}

/// `out[i] = 1` with probability `p`, else 0. No gradient flows.
#[derive(Clone, Debug)]
pub struct Bernoulli {
    /// Probability of a one.
    pub p: f32,
    /// `(4)` u32.
    pub seed: Tensor,
    /// A number of this op's own.
    pub salt: u32,
    /// Result, u32, any shape.
    pub out: Tensor,
}

impl Operation for Bernoulli {
    fn name(&self) -> &'static str {
        "Bernoulli"
    }
    fn operands(&self, o: &mut Operands) {
        o.read("seed", self.seed);
        o.write("out", self.out);
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        expect_dtype(p, "seed", self.seed, DType::U32)?;
        expect_numel(p, "seed", self.seed, SEED_LEN)?;
        expect_dtype(p, "out", self.out, DType::U32)
    }
    fn cost(&self, p: &Program) -> Cost {
        traffic(p, self)
    }
    fn backward(&self, _reverse: &mut Reverse<'_>) {}
}
