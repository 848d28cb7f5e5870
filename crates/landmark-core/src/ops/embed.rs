//! Token embedding: rows of a table.

use super::*;

/// `out[n, :] = table[tokens[n], :]`
///
/// `tokens` `(N)` u32, `table` `(V, C)`, `out` `(N, C)`.
#[derive(Clone, Debug)]
pub struct Embed {
    /// Token ids.
    pub tokens: Tensor,
    /// Embedding matrix.
    pub table: Tensor,
    /// Result.
    pub out: Tensor,
}

impl Operation for Embed {
    fn name(&self) -> &'static str {
        "Embed"
    }
    fn operands(&self, o: &mut Operands) {
        o.read("tokens", self.tokens);
        o.read("table", self.table);
        o.write("out", self.out);
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        expect_dtype(p, "tokens", self.tokens, DType::U32)?;
        expect_floats(p, &[("table", self.table), ("out", self.out)])?;
        expect_numel(p, "out", self.out, p.shape(self.tokens).numel() * p.shape(self.table).cols())
    }
    fn cost(&self, p: &Program) -> Cost {
        let bytes = p.info(self.out).bytes() as u64;
        Cost { flops: 0, bytes_read: bytes, bytes_written: bytes }
    }
    fn backward(&self, reverse: &mut Reverse<'_>) {
        let Some(dout) = reverse.gradient(self.out) else { return };
        if let Some(dtable) = reverse.contribute(self.table) {
            reverse.push(EmbedBackward { tokens: self.tokens, dout, dtable });
        }
    }
}

/// `dtable[tokens[n], :] += dout[n, :]`, in the order of `n`, so that repeats give the same bits.
#[derive(Clone, Debug)]
pub struct EmbedBackward {
    /// Token ids `(N)`.
    pub tokens: Tensor,
    /// Gradient of the embedded rows `(N, C)`.
    pub dout: Tensor,
    /// Gradient of the table `(V, C)`.
    pub dtable: Out,
}

impl Operation for EmbedBackward {
    fn name(&self) -> &'static str {
        "EmbedBackward"
    }
    fn operands(&self, o: &mut Operands) {
        o.read("tokens", self.tokens);
        o.read("dout", self.dout);
        o.out("dtable", self.dtable);
    }
    fn check(&self, p: &Program) -> Result<(), String> {
        expect_dtype(p, "tokens", self.tokens, DType::U32)?;
        expect_numel(p, "dout", self.dout, p.shape(self.tokens).numel() * p.shape(self.dtable.tensor).cols())
    }
    fn cost(&self, p: &Program) -> Cost {
        let bytes = p.info(self.dout).bytes() as u64;
        Cost { flops: p.shape(self.dout).numel() as u64, bytes_read: 2 * bytes, bytes_written: bytes }
    }
}
