//! LayerNorm and RMSNorm, alone or behind the residual addition that comes before them.

use super::*;

/// Which normalisation, with its epsilon.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormKind {
    /// `(x - mean) / sqrt(variance + eps) * weight + bias`, variance without Bessel's correction.
    Layer {
        /// Added to the variance.
        eps: f32,
    },
    /// `x / sqrt(mean(x²) + eps) * weight`.
    Rms {
        /// Added to the mean square.
        eps: f32,
    },
}

fn check_parameters(p: &Program, x: Tensor, weight: Tensor, bias: Option<Tensor>) -> Result<(), String> {
    expect_numel(p, "weight", weight, p.shape(x).cols())?;
    bias.map_or(Ok(()), |bias| expect_numel(p, "bias", bias, p.shape(x).cols()))
}

/// `out[n, :] = norm(x[n, :])`; all `(N, C)`, `weight` and `bias` `(C)`.
#[derive(Clone, Debug)]
pub struct Norm {
    /// Which one.
    pub kind: NormKind,
    /// Input.
    pub x: Tensor,
    /// Scale.
    pub weight: Tensor,
    /// Shift (LayerNorm only).
    pub bias: Option<Tensor>,
    /// Result.
    pub out: Tensor,
}

impl Operation for Norm {
    fn name(&self) -> &'static str {
        "Norm"
    }
    fn operands(&self, o: &mut Operands) {
        o.read("x", self.x);
        o.read("weight", self.weight);
        o.read("bias", self.bias);
        o.write("out", self.out);
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        expect_floats(p, &[("x", self.x), ("weight", self.weight), ("out", self.out)])?;
        expect_same(p, ("x", self.x), ("out", self.out))?;
        check_parameters(p, self.x, self.weight, self.bias)
    }
    fn cost(&self, p: &Program) -> Cost {
        elementwise(p, self, self.x, 8)
    }
    fn backward(&self, reverse: &mut Reverse<'_>) {
        record_backward(reverse, self.kind, self.x, self.weight, self.bias, self.out);
    }
}

fn record_backward(
    reverse: &mut Reverse<'_>,
    kind: NormKind,
    x: Tensor,
    weight: Tensor,
    bias: Option<Tensor>,
    out: Tensor,
) {
    let Some(dout) = reverse.gradient(out) else { return };
    let dweight = reverse.contribute(weight);
    let dbias = bias.and_then(|bias| reverse.contribute(bias));
    let dx = reverse.contribute(x);
    reverse.push(NormBackward { kind, x, weight, dout, dx, dweight, dbias });
}

/// `sum = x + delta; out = norm(sum)`; all `(N, C)`.
///
/// One op, since the sum is the residual stream: it is written once and read by the norm on the way.
#[derive(Clone, Debug)]
pub struct AddNorm {
    /// Which norm.
    pub kind: NormKind,
    /// Residual stream so far.
    pub x: Tensor,
    /// What the last layer adds to it.
    pub delta: Tensor,
    /// Scale.
    pub weight: Tensor,
    /// Shift (LayerNorm only).
    pub bias: Option<Tensor>,
    /// Residual stream after the addition.
    pub sum: Tensor,
    /// Its norm.
    pub out: Tensor,
}

impl Operation for AddNorm {
    fn name(&self) -> &'static str {
        "AddNorm"
    }
    fn operands(&self, o: &mut Operands) {
        o.read("x", self.x);
        o.read("delta", self.delta);
        o.read("weight", self.weight);
        o.read("bias", self.bias);
        o.write("sum", self.sum);
        o.write("out", self.out);
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        expect_floats(p, &[("x", self.x), ("delta", self.delta), ("sum", self.sum), ("out", self.out)])?;
        expect_same(p, ("x", self.x), ("delta", self.delta))?;
        expect_same(p, ("x", self.x), ("sum", self.sum))?;
        expect_same(p, ("x", self.x), ("out", self.out))?;
        check_parameters(p, self.x, self.weight, self.bias)
    }
    fn cost(&self, p: &Program) -> Cost {
        elementwise(p, self, self.x, 9)
    }
    fn backward(&self, reverse: &mut Reverse<'_>) {
        record_backward(reverse, self.kind, self.sum, self.weight, self.bias, self.out);
        reverse.share(self.sum, &[self.x, self.delta]);
    }
}

/// Gradients of a norm. The row's mean and scale are computed again from `x`: two passes over a row in cache
/// cost less than a tensor kept from the forward pass.
///
/// `dx (=|+=)`, `dweight[c] (=|+=) sum_n dout[n, c] · x̂[n, c]`, `dbias[c] (=|+=) sum_n dout[n, c]`.
#[derive(Clone, Debug)]
pub struct NormBackward {
    /// Which norm.
    pub kind: NormKind,
    /// Its input `(N, C)`.
    pub x: Tensor,
    /// Its scale `(C)`.
    pub weight: Tensor,
    /// Gradient of its result `(N, C)`.
    pub dout: Tensor,
    /// Gradient of the input.
    pub dx: Option<Out>,
    /// Gradient of the scale.
    pub dweight: Option<Out>,
    /// Gradient of the shift.
    pub dbias: Option<Out>,
}

impl Operation for NormBackward {
    fn name(&self) -> &'static str {
        "NormBackward"
    }
    fn operands(&self, o: &mut Operands) {
        o.read("x", self.x);
        o.read("weight", self.weight);
        o.read("dout", self.dout);
        o.out("dx", self.dx);
        o.out("dweight", self.dweight);
        o.out("dbias", self.dbias);
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        expect_same(p, ("x", self.x), ("dout", self.dout))?;
        if let Some(dx) = self.dx {
            expect_same(p, ("x", self.x), ("dx", dx.tensor))?;
        }
        check_parameters(p, self.x, self.weight, self.dbias.map(|b| b.tensor))
    }
    fn cost(&self, p: &Program) -> Cost {
        elementwise(p, self, self.x, 14)
    }
}
