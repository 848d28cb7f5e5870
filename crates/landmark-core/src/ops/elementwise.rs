//! The activations of the two MLPs: exact GELU, and SwiGLU.

use super::*;

/// `out = x · Φ(x)`, Φ the normal distribution function (the exact form with `erf`).
#[derive(Clone, Debug)]
pub struct Gelu {
    /// Input.
    pub x: Tensor,
    /// Result, same shape.
    pub out: Tensor,
}

impl Operation for Gelu {
    fn name(&self) -> &'static str {
        "Gelu"
    }
    fn operands(&self, o: &mut Operands) {
        o.read("x", self.x);
        o.write("out", self.out);
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        expect_floats(p, &[("x", self.x), ("out", self.out)])?;
        expect_same(p, ("x", self.x), ("out", self.out))
    }
    fn cost(&self, p: &Program) -> Cost {
        elementwise(p, self, self.x, 12)
    }
    fn backward(&self, reverse: &mut Reverse<'_>) {
        let Some(dout) = reverse.gradient(self.out) else { return };
        if let Some(dx) = reverse.contribute(self.x) {
            reverse.push(GeluBackward { x: self.x, dout, dx });
        }
    }
}

/// `dx (=|+=) dout · (Φ(x) + x φ(x))`
#[derive(Clone, Debug)]
pub struct GeluBackward {
    /// Input of the forward op.
    pub x: Tensor,
    /// Gradient of its result.
    pub dout: Tensor,
    /// Gradient of its input.
    pub dx: Out,
}

impl Operation for GeluBackward {
    fn name(&self) -> &'static str {
        "GeluBackward"
    }
    fn operands(&self, o: &mut Operands) {
        o.read("x", self.x);
        o.read("dout", self.dout);
        o.out("dx", self.dx);
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        expect_same(p, ("x", self.x), ("dout", self.dout))?;
        expect_same(p, ("x", self.x), ("dx", self.dx.tensor))
    }
    fn cost(&self, p: &Program) -> Cost {
        elementwise(p, self, self.x, 20)
    }
}

/// `out = silu(gate) · up`, `silu(g) = g / (1 + exp(-g))`.
#[derive(Clone, Debug)]
pub struct SwiGlu {
    /// Gated half.
    pub gate: Tensor,
    /// Linear half.
    pub up: Tensor,
    /// Result, same shape.
    pub out: Tensor,
}

impl Operation for SwiGlu {
    fn name(&self) -> &'static str {
        "SwiGlu"
    }
    fn operands(&self, o: &mut Operands) {
        o.read("gate", self.gate);
        o.read("up", self.up);
        o.write("out", self.out);
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        expect_floats(p, &[("gate", self.gate), ("up", self.up), ("out", self.out)])?;
        expect_same(p, ("gate", self.gate), ("up", self.up))?;
        expect_same(p, ("gate", self.gate), ("out", self.out))
    }
    fn cost(&self, p: &Program) -> Cost {
        elementwise(p, self, self.gate, 6)
    }
    fn backward(&self, reverse: &mut Reverse<'_>) {
        let Some(dout) = reverse.gradient(self.out) else { return };
        let (dgate, dup) = (reverse.contribute(self.gate), reverse.contribute(self.up));
        if dgate.is_some() || dup.is_some() {
            reverse.push(SwiGluBackward { gate: self.gate, up: self.up, dout, dgate, dup });
        }
    }
}

/// `dgate (=|+=) dout · up · silu'(gate)`, `dup (=|+=) dout · silu(gate)`
#[derive(Clone, Debug)]
pub struct SwiGluBackward {
    /// Gated half.
    pub gate: Tensor,
    /// Linear half.
    pub up: Tensor,
    /// Gradient of the result.
    pub dout: Tensor,
    /// Gradient of the gated half, where it is wanted.
    pub dgate: Option<Out>,
    /// Gradient of the linear half, where it is wanted.
    pub dup: Option<Out>,
}

impl Operation for SwiGluBackward {
    fn name(&self) -> &'static str {
        "SwiGluBackward"
    }
    fn operands(&self, o: &mut Operands) {
        o.read("gate", self.gate);
        o.read("up", self.up);
        o.read("dout", self.dout);
        o.out("dgate", self.dgate);
        o.out("dup", self.dup);
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        let mut like_gate = vec![("up", self.up), ("dout", self.dout)];
        like_gate.extend(self.dgate.map(|out| ("dgate", out.tensor)));
        like_gate.extend(self.dup.map(|out| ("dup", out.tensor)));
        like_gate.into_iter().try_for_each(|(field, t)| expect_same(p, ("gate", self.gate), (field, t)))
    }
    fn cost(&self, p: &Program) -> Cost {
        elementwise(p, self, self.gate, 14)
    }
}
