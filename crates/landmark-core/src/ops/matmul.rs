//! Matrix products, and the column sums that are a bias's gradient.

use super::*;

/// `out (=|+=) scale · op(a) · op(b) + bias`
///
/// Tensors are seen as matrices: the last extent is the columns, all others together the rows. With
/// `op(a)` `(M, K)` and `op(b)` `(K, N)`, `out` is `(M, N)` and `bias` `(N)`. A linear layer with weight
/// `(out, in)` is `a = x`, `b = weight`, `transpose_b = true`.
#[derive(Clone, Debug)]
pub struct Matmul {
    /// Left factor.
    pub a: Tensor,
    /// Right factor.
    pub b: Tensor,
    /// `a` is stored `(K, M)`.
    pub transpose_a: bool,
    /// `b` is stored `(N, K)`.
    pub transpose_b: bool,
    /// Factor on the product: 1 but for low-rank adapters.
    pub scale: f32,
    /// Added to every row.
    pub bias: Option<Tensor>,
    /// Result.
    pub out: Out,
}

impl Matmul {
    /// A linear layer, `out = x · weightᵀ + bias`.
    pub fn linear(x: Tensor, weight: Tensor, bias: Option<Tensor>, out: Tensor) -> Self {
        let out = Out::set(out);
        Matmul { a: x, b: weight, transpose_a: false, transpose_b: true, scale: 1.0, bias, out }
    }

    /// `(M, N, K)`.
    pub fn extents(&self, p: &Program) -> (usize, usize, usize) {
        let (a, b) = (p.shape(self.a), p.shape(self.b));
        let (m, k) = if self.transpose_a { (a.cols(), a.rows()) } else { (a.rows(), a.cols()) };
        (m, if self.transpose_b { b.rows() } else { b.cols() }, k)
    }
}

impl Operation for Matmul {
    fn name(&self) -> &'static str {
        "Matmul"
    }
    fn operands(&self, o: &mut Operands) {
        o.read("a", self.a);
        o.read("b", self.b);
        o.read("bias", self.bias);
        o.out("out", self.out);
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        expect_floats(p, &[("a", self.a), ("b", self.b), ("out", self.out.tensor)])?;
        let (m, n, k) = self.extents(p);
        let b = p.shape(self.b);
        let inner = if self.transpose_b { b.cols() } else { b.rows() };
        let out = p.shape(self.out.tensor);
        if inner != k || out.rows() != m || out.cols() != n {
            return Err(format!(
                "a {:?} (transposed: {}) times b {b:?} (transposed: {}) does not give out {out:?}",
                p.shape(self.a),
                self.transpose_a,
                self.transpose_b
            ));
        }
        self.bias.map_or(Ok(()), |bias| expect_numel(p, "bias", bias, n))
    }
    fn cost(&self, p: &Program) -> Cost {
        let (m, n, k) = self.extents(p);
        Cost { flops: 2 * (m * n * k) as u64, ..traffic(p, self) }
    }
    /// Only for linear layers: that is what the models record. One that adds to what is there (the low-rank part
    /// of an adapted layer) leaves the gradient of its result to whoever wrote it first.
    fn backward(&self, reverse: &mut Reverse<'_>) {
        let Some(dout) = reverse.gradient(self.out.tensor) else { return };
        assert!(!self.transpose_a && self.transpose_b, "only linear layers have a gradient");
        let (x, weight, scale) = (self.a, self.b, self.scale);
        let product =
            |a, b, transpose_a, out| Matmul { a, b, transpose_a, transpose_b: false, scale, bias: None, out };
        if let Some(out) = reverse.contribute(x) {
            reverse.push(product(dout, weight, false, out));
        }
        if let Some(out) = reverse.contribute(weight) {
            reverse.push(product(dout, x, true, out));
        }
        if let Some(out) = self.bias.and_then(|bias| reverse.contribute(bias)) {
            reverse.push(SumRows { x: dout, out });
        }
    }
}

/// `out[c] (=|+=) sum_n x[n, c]`
#[derive(Clone, Debug)]
pub struct SumRows {
    /// `(N, C)`.
    pub x: Tensor,
    /// `(C)`.
    pub out: Out,
}

impl Operation for SumRows {
    fn name(&self) -> &'static str {
        "SumRows"
    }
    fn operands(&self, o: &mut Operands) {
        o.read("x", self.x);
        o.out("out", self.out);
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        expect_numel(p, "out", self.out.tensor, p.shape(self.x).cols())
    }
    fn cost(&self, p: &Program) -> Cost {
        elementwise(p, self, self.x, 1)
    }
}
