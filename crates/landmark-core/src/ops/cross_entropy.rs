//! The output matrix and the loss in one op, so that no backend has to store the logits of a whole batch.
//!
//! With a vocabulary of 50,304 the logits are the largest tensor of a small GPT by far: 200 MB for 1,024
//! tokens. The op computes them a slice of rows at a time, and the gradients with them.

use super::*;

/// `logits = x · weightᵀ`; `loss = mean over targets >= 0 of (logsumexp(logits[n]) - logits[n, targets[n]])`.
///
/// Where there is no target at all, the loss and its gradients are 0.
#[derive(Clone, Debug)]
pub struct LinearCrossEntropy {
    /// Last hidden states `(N, C)`.
    pub x: Tensor,
    /// Output matrix `(V, C)`.
    pub weight: Tensor,
    /// Target ids `(N)` i32; a negative one means no loss here.
    pub targets: Tensor,
    /// Mean loss in nats, `(1)`.
    pub loss: Tensor,
    /// Most likely id of every row `(N)` u32, the lowest of equals.
    pub predictions: Option<Tensor>,
    /// Gradients, when training.
    pub gradient: Option<LossGradient>,
}

/// The gradients that [`LinearCrossEntropy`] computes on the way.
#[derive(Clone, Copy, Debug)]
pub struct LossGradient {
    /// `dx = scale · dloss/dx`, `(N, C)`.
    pub dx: Tensor,
    /// `dweight (=|+=) scale · dloss/dweight`, `(V, C)`; `None` where the output matrix is not trained.
    pub dweight: Option<Out>,
    /// Factor on the loss: 1 sums micro-batches, `1 / acc_steps` averages them.
    pub scale: f32,
}

impl Operation for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        "LinearCrossEntropy"
    }
    fn operands(&self, o: &mut Operands) {
        o.read("x", self.x);
        o.read("weight", self.weight);
        o.read("targets", self.targets);
        o.write("loss", self.loss);
        o.write("predictions", self.predictions);
        if let Some(gradient) = &self.gradient {
            o.write("dx", gradient.dx);
            o.out("dweight", gradient.dweight);
        }
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        expect_floats(p, &[("x", self.x), ("weight", self.weight), ("loss", self.loss)])?;
        let (rows, vocab) = (p.shape(self.x).rows(), p.shape(self.weight).rows());
        expect_numel(p, "weight", self.weight, vocab * p.shape(self.x).cols())?;
        expect_dtype(p, "targets", self.targets, DType::I32)?;
        expect_numel(p, "targets", self.targets, rows)?;
        expect_numel(p, "loss", self.loss, 1)?;
        if let Some(predictions) = self.predictions {
            expect_dtype(p, "predictions", predictions, DType::U32)?;
            expect_numel(p, "predictions", predictions, rows)?;
        }
        if let Some(gradient) = &self.gradient {
            expect_same(p, ("x", self.x), ("dx", gradient.dx))?;
            if let Some(dweight) = gradient.dweight {
                expect_same(p, ("weight", self.weight), ("dweight", dweight.tensor))?;
            }
        }
        Ok(())
    }
    fn cost(&self, p: &Program) -> Cost {
        let (rows, vocab, cols) =
            (p.shape(self.x).rows(), p.shape(self.weight).rows(), p.shape(self.x).cols());
        let products = self.gradient.map_or(1, |g| if g.dweight.is_some() { 3 } else { 2 });
        Cost { flops: ((2 * cols * products + 6) * rows * vocab) as u64, ..traffic(p, self) }
    }
    /// The gradients are there already.
    fn backward(&self, _reverse: &mut Reverse<'_>) {}
}
