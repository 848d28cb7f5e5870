//! Optimisers: one pass over a parameter, its gradient and its state.
//!
//! What changes from step to step lies in small tensors (`hyper`, `scale`), so that a compiled program is
//! replayed unchanged. Each optimiser leaves the gradient at zero, ready for the next sum of micro-batches.
//! Where a model computes in a half type, the parameter is the master in f32, and `copy` what the products read:
//! `copy = param` after the update, rounded.

use super::*;

fn expect_copy(p: &Program, param: Tensor, copy: Option<Tensor>) -> Result<(), String> {
    let Some(copy) = copy else { return Ok(()) };
    expect_floats(p, &[("copy", copy)])?;
    expect_same(p, ("param", param), ("copy", copy))
}

/// AdamW (Loshchilov & Hutter) as `torch.optim.AdamW` computes it.
///
/// `hyper` `(3)`: learning rate, `1 - beta1^t`, `1 - beta2^t`. With `g = scale · grad`:
/// `param -= lr · weight_decay · param`; `m = beta1 m + (1 - beta1) g`; `v = beta2 v + (1 - beta2) g²`;
/// `param -= lr / hyper[1] · m / (sqrt(v / hyper[2]) + eps)`; `grad = 0`.
#[derive(Clone, Debug)]
pub struct AdamW {
    /// Weights.
    pub param: Tensor,
    /// The same weights in another type.
    pub copy: Option<Tensor>,
    /// Their gradient.
    pub grad: Tensor,
    /// First moment.
    pub m: Tensor,
    /// Second moment.
    pub v: Tensor,
    /// Learning rate and bias corrections.
    pub hyper: Tensor,
    /// Factor on the gradient `(1)`, from [`ClipScale`].
    pub scale: Option<Tensor>,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
}

impl Operation for AdamW {
    fn name(&self) -> &'static str {
        "AdamW"
    }
    fn operands(&self, o: &mut Operands) {
        o.update("param", self.param);
        o.write("copy", self.copy);
        o.update("grad", self.grad);
        o.update("m", self.m);
        o.update("v", self.v);
        o.read("hyper", self.hyper);
        o.read("scale", self.scale);
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        expect_copy(p, self.param, self.copy)?;
        for (field, tensor) in [("grad", self.grad), ("m", self.m), ("v", self.v)] {
            expect_same(p, ("param", self.param), (field, tensor))?;
        }
        expect_numel(p, "hyper", self.hyper, 3)
    }
    fn cost(&self, p: &Program) -> Cost {
        elementwise(p, self, self.param, 14)
    }
}

/// SGD with momentum as `torch.optim.SGD`: `g = scale · grad + weight_decay · param`;
/// `buffer = momentum · buffer + g`; `param -= lr · buffer`; `grad = 0`. `hyper` `(3)`: learning rate first.
#[derive(Clone, Debug)]
pub struct Sgd {
    /// Weights.
    pub param: Tensor,
    /// The same weights in another type.
    pub copy: Option<Tensor>,
    /// Their gradient.
    pub grad: Tensor,
    /// Momentum.
    pub buffer: Tensor,
    /// Learning rate.
    pub hyper: Tensor,
    /// Factor on the gradient `(1)`.
    pub scale: Option<Tensor>,
    /// Decay of the buffer.
    pub momentum: f32,
    /// Weight decay, part of the gradient.
    pub weight_decay: f32,
}

impl Operation for Sgd {
    fn name(&self) -> &'static str {
        "Sgd"
    }
    fn operands(&self, o: &mut Operands) {
        o.update("param", self.param);
        o.write("copy", self.copy);
        o.update("grad", self.grad);
        o.update("buffer", self.buffer);
        o.read("hyper", self.hyper);
        o.read("scale", self.scale);
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        expect_copy(p, self.param, self.copy)?;
        expect_same(p, ("param", self.param), ("grad", self.grad))?;
        expect_same(p, ("param", self.param), ("buffer", self.buffer))
    }
    fn cost(&self, p: &Program) -> Cost {
        elementwise(p, self, self.param, 5)
    }
}

/// Adafactor (Shazeer & Stern 2018) as `torch.optim.Adafactor` computes it, with its defaults `d = 1`,
/// `eps = (1.19e-7, 1e-3)`.
///
/// Matrices keep one second moment for each row and each column, vectors one for each element (`columns`
/// is `None`). `hyper` `(3)`: the relative step `min(lr, 1 / sqrt(t))`, the learning rate itself, and `t^-0.8`,
/// the weight of the new square.
#[derive(Clone, Debug)]
pub struct Adafactor {
    /// Weights.
    pub param: Tensor,
    /// The same weights in another type.
    pub copy: Option<Tensor>,
    /// Their gradient.
    pub grad: Tensor,
    /// Second moment of each row, or of each element of a vector.
    pub rows: Tensor,
    /// Second moment of each column of a matrix.
    pub columns: Option<Tensor>,
    /// Relative step, learning rate and decay.
    pub hyper: Tensor,
    /// Factor on the gradient `(1)`.
    pub scale: Option<Tensor>,
    /// Decoupled weight decay, times the learning rate.
    pub weight_decay: f32,
}

impl Operation for Adafactor {
    fn name(&self) -> &'static str {
        "Adafactor"
    }
    fn operands(&self, o: &mut Operands) {
        o.update("param", self.param);
        o.write("copy", self.copy);
        o.update("grad", self.grad);
        o.update("rows", self.rows);
        o.update("columns", self.columns);
        o.read("hyper", self.hyper);
        o.read("scale", self.scale);
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        expect_copy(p, self.param, self.copy)?;
        expect_same(p, ("param", self.param), ("grad", self.grad))?;
        let shape = p.shape(self.param);
        match self.columns {
            Some(columns) => {
                expect_numel(p, "rows", self.rows, shape.rows())?;
                expect_numel(p, "columns", columns, shape.cols())
            }
            None => expect_numel(p, "rows", self.rows, shape.numel()),
        }
    }
    fn cost(&self, p: &Program) -> Cost {
        elementwise(p, self, self.param, 10)
    }
}

/// `out (=|+=) sum of x²`, `out` `(1)`.
#[derive(Clone, Debug)]
pub struct SquaredNorm {
    /// Input.
    pub x: Tensor,
    /// Result.
    pub out: Out,
}

impl Operation for SquaredNorm {
    fn name(&self) -> &'static str {
        "SquaredNorm"
    }
    fn operands(&self, o: &mut Operands) {
        o.read("x", self.x);
        o.out("out", self.out);
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        expect_numel(p, "out", self.out.tensor, 1)
    }
    fn cost(&self, p: &Program) -> Cost {
        elementwise(p, self, self.x, 2)
    }
}

/// `out = min(1, max_norm / (sqrt(squared_norm) + 1e-6))`, as `torch.nn.utils.clip_grad_norm_`.
#[derive(Clone, Debug)]
pub struct ClipScale {
    /// Sum of squares of all gradients, `(1)`.
    pub squared_norm: Tensor,
    /// Largest norm allowed.
    pub max_norm: f32,
    /// Factor for the gradients, `(1)`.
    pub out: Tensor,
}

impl Operation for ClipScale {
    fn name(&self) -> &'static str {
        "ClipScale"
    }
    fn operands(&self, o: &mut Operands) {
        o.read("squared_norm", self.squared_norm);
        o.write("out", self.out);
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        expect_numel(p, "squared_norm", self.squared_norm, 1)?;
        expect_numel(p, "out", self.out, 1)
    }
    fn cost(&self, p: &Program) -> Cost {
        traffic(p, self)
    }
}
