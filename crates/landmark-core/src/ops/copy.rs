//! Moving rows between tensors: joining and cutting sequences, shifting a cache.

use super::*;

/// `to[b, to_row + r, :] (=|+=) from[b, from_row + r, :]` for `r < rows`, over the columns named on both sides;
/// everything else of `to` is left alone. Where the element types differ, elements are converted.
///
/// `from` `(B, Tf, ..)` and `to` `(B, Tt, ..)`. Joining two sequences is two of these, cutting one is one.
#[derive(Clone, Debug)]
pub struct CopyRows {
    /// Source.
    pub from: Cols,
    /// First row taken, in every batch row.
    pub from_row: usize,
    /// Target, as many columns as the source.
    pub to: Cols,
    /// `+=` instead of `=`.
    pub add: bool,
    /// First row written.
    pub to_row: usize,
    /// Rows copied.
    pub rows: usize,
}

impl Operation for CopyRows {
    fn name(&self) -> &'static str {
        "CopyRows"
    }
    fn operands(&self, o: &mut Operands) {
        o.read("from", self.from.tensor);
        if self.add {
            o.update("to", self.to.tensor);
        } else {
            o.part("to", self.to.tensor);
        }
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        expect_cols(p, "from", self.from)?;
        expect_cols(p, "to", self.to)?;
        let (f, t) = (p.shape(self.from.tensor).dims(), p.shape(self.to.tensor).dims());
        if f.len() != 3 || t.len() != 3 || f[0] != t[0] || self.from.width != self.to.width {
            return Err(format!(
                "{} columns of from {f:?} and {} columns of to {t:?} differ",
                self.from.width, self.to.width
            ));
        }
        if self.from_row + self.rows > f[1] || self.to_row + self.rows > t[1] {
            return Err(format!(
                "{} rows from {} of {f:?} to {} of {t:?}",
                self.rows, self.from_row, self.to_row
            ));
        }
        Ok(())
    }
    fn cost(&self, p: &Program) -> Cost {
        let elements = p.shape(self.from.tensor).dims()[0] * self.rows * self.from.width;
        let bytes = (elements * p.info(self.from.tensor).dtype.size()) as u64;
        Cost { flops: 0, bytes_read: bytes, bytes_written: bytes }
    }
    fn backward(&self, reverse: &mut Reverse<'_>) {
        let Some(dto) = reverse.gradient(self.to.tensor) else { return };
        let source = reverse.shape(self.from.tensor);
        let whole = self.rows == source.dims()[1] && self.from.width == source.cols();
        let tensor = self.from.tensor;
        let out = if whole { reverse.contribute(tensor) } else { reverse.contribute_part(tensor) };
        if let Some(out) = out {
            reverse.push(CopyRows {
                from: Cols { tensor: dto, ..self.to },
                from_row: self.to_row,
                to: Cols { tensor: out.tensor, ..self.from },
                add: out.add,
                to_row: self.from_row,
                rows: self.rows,
            });
        }
    }
}

/// `out = value`
#[derive(Clone, Debug)]
pub struct Fill {
    /// Result, float.
    pub out: Tensor,
    /// The value of every element.
    pub value: f32,
}

impl Operation for Fill {
    fn name(&self) -> &'static str {
        "Fill"
    }
    fn operands(&self, o: &mut Operands) {
        o.write("out", self.out);
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        expect_floats(p, &[("out", self.out)])
    }
    fn cost(&self, p: &Program) -> Cost {
        traffic(p, self)
    }
    fn backward(&self, _reverse: &mut Reverse<'_>) {}
}
