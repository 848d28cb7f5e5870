//! The likeliest token.

use super::{Operands, Operation, expect_dtype, expect_numel};
use crate::count::Cost;
use crate::program::Program;
use crate::tensor::{DType, Tensor};

/// `out[n] = argmax_v logits[n, v]` over the tokens `v` that are not banned; of equal ones the lowest. So greedy generation
/// reads one number back and not a vocabulary of them.
#[derive(Clone, Debug)]
pub struct Likeliest {
    /// `(N, V)` f32.
    pub logits: Tensor,
    /// A token that is never chosen.
    pub banned: Option<u32>,
    /// `(N)` u32: the token, or [`NO_TOKEN`](Self::NO_TOKEN).
    pub out: Tensor,
}

impl Likeliest {
    /// Where a logit is no number or +∞, or all that are not banned are -∞: nothing can be chosen.
    pub const NO_TOKEN: u32 = u32::MAX;
}

impl Operation for Likeliest {
    fn name(&self) -> &'static str {
        "Likeliest"
    }
    fn operands(&self, o: &mut Operands) {
        o.read("logits", self.logits);
        o.write("out", self.out);
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        expect_dtype(p, "logits", self.logits, DType::F32)?;
        expect_dtype(p, "out", self.out, DType::U32)?;
        expect_numel(p, "out", self.out, p.shape(self.logits).rows())
    }
    fn cost(&self, p: &Program) -> Cost {
        let (logits, out) = (p.info(self.logits), p.info(self.out));
        Cost {
            flops: logits.shape.numel() as u64,
            bytes_read: logits.bytes() as u64,
            bytes_written: out.bytes() as u64,
        }
    }
}
