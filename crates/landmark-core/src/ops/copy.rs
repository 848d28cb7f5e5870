//! Moving rows between tensors: joining and cutting sequences, shifting a cache.

use super::*;

/// `to[b, to_row + r, :] (=|+=) from[b, from_row + r, :]` for `r < rows`; other rows of `to` are left alone.
///
/// `from` `(B, Tf, C)` and `to` `(B, Tt, C)`. Joining two sequences is two of these, cutting one is one.
#[derive(Clone, Debug)]
pub struct CopyRows {
    /// Source.
    pub from: Tensor,
    /// First row taken, in every batch row.
    pub from_row: usize,
    /// Target; [`Out::add`] adds.
    pub to: Out,
    /// First row written.
    pub to_row: usize,
    /// Rows copied.
    pub rows: usize,
}

impl CopyRows {
    /// `(batch, rows of from, rows of to, columns)`.
    pub fn extents(&self, p: &Program) -> (usize, usize, usize, usize) {
        let (f, t) = (p.shape(self.from).dims(), p.shape(self.to.tensor).dims());
        (f[0], f[1], t[1], f[2])
    }
}

impl Operation for CopyRows {
    fn name(&self) -> &'static str {
        "CopyRows"
    }
    fn operands(&self, o: &mut Operands) {
        o.read("from", self.from);
        if self.to.add {
            o.update("to", self.to.tensor);
        } else {
            o.part("to", self.to.tensor);
        }
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        let (from, to) = (p.info(self.from), p.info(self.to.tensor));
        let (f, t) = (from.shape.dims(), to.shape.dims());
        if f.len() != 3 || t.len() != 3 || f[0] != t[0] || f[2] != t[2] || from.dtype != to.dtype {
            return Err(format!("from {f:?} {:?} and to {t:?} {:?} differ", from.dtype, to.dtype));
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
        let (batch, _, _, cols) = self.extents(p);
        let bytes = (batch * self.rows * cols * p.info(self.from).dtype.size()) as u64;
        Cost { flops: 0, bytes_read: bytes, bytes_written: bytes }
    }
    fn backward(&self, reverse: &mut Reverse<'_>) {
        let Some(dto) = reverse.gradient(self.to.tensor) else { return };
        let whole = self.rows == reverse.shape(self.from).dims()[1];
        let to = if whole { reverse.contribute(self.from) } else { reverse.contribute_part(self.from) };
        if let Some(to) = to {
            let (from_row, to_row, rows) = (self.to_row, self.from_row, self.rows);
            reverse.push(CopyRows { from: dto, from_row, to, to_row, rows });
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
