//! Rotary positions (RoFormer), on adjacent pairs as GPT has them or on halves as LLaMA has them.

use super::*;

/// Which coordinates of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// `(2i, 2i + 1)`: the released GPT.
    Pairs,
    /// `(i, i + D/2)`: LLaMA.
    Halves,
}

/// Turns every pair of coordinates of every head by `positions[n] · frequencies[i]`.
///
/// `x` and `out` are `(N, heads · D)` columns and may be the same ones (in place). Positions are explicit and
/// may be negative (the context-miss token sits at -1).
#[derive(Clone, Debug)]
pub struct Rope {
    /// Input.
    pub x: Cols,
    /// One position for each row, `(N)` i32.
    pub positions: Tensor,
    /// Angle of each pair at position 1, `(D / 2)`.
    pub frequencies: Tensor,
    /// Which coordinates make a pair.
    pub style: RopeStyle,
    /// Coordinates of a head.
    pub head_dim: usize,
    /// Turn back: the gradient of the forward turn.
    pub inverse: bool,
    /// Result.
    pub out: Cols,
}

impl Rope {
    fn in_place(&self) -> bool {
        self.x == self.out
    }
}

impl Operation for Rope {
    fn name(&self) -> &'static str {
        "Rope"
    }
    fn operands(&self, o: &mut Operands) {
        o.read("positions", self.positions);
        o.read("frequencies", self.frequencies);
        if self.in_place() {
            o.update("out", self.out.tensor);
        } else {
            o.read("x", self.x.tensor);
            o.part("out", self.out.tensor);
        }
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        expect_cols(p, "x", self.x)?;
        expect_cols(p, "out", self.out)?;
        expect_dtype(p, "positions", self.positions, DType::I32)?;
        let rows = p.shape(self.x.tensor).rows();
        expect_numel(p, "positions", self.positions, rows)?;
        expect_numel(p, "frequencies", self.frequencies, self.head_dim / 2)?;
        if self.x.width != self.out.width || p.shape(self.out.tensor).rows() != rows {
            return Err("x and out differ".into());
        }
        if !self.head_dim.is_multiple_of(2) || !self.x.width.is_multiple_of(self.head_dim) {
            return Err(format!(
                "head_dim {} does not divide width {} into pairs",
                self.head_dim, self.x.width
            ));
        }
        if self.x.tensor == self.out.tensor && !self.in_place() {
            return Err("x and out are different columns of one tensor".into());
        }
        Ok(())
    }
    fn cost(&self, p: &Program) -> Cost {
        let elements = (p.shape(self.x.tensor).rows() * self.x.width) as u64;
        let bytes = elements * p.info(self.x.tensor).dtype.size() as u64;
        Cost { flops: 3 * elements, bytes_read: bytes, bytes_written: bytes }
    }
    fn backward(&self, reverse: &mut Reverse<'_>) {
        assert!(self.in_place(), "only Rope in place has a gradient");
        let Some(gradient) = reverse.gradient(self.out.tensor) else { return };
        let cols = Cols { tensor: gradient, ..self.x };
        reverse.push(Rope { x: cols, out: cols, inverse: !self.inverse, ..self.clone() });
    }
}
