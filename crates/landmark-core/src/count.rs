//! Counts of floating-point operations and bytes.
//!
//! A multiply-add counts as two operations. Bytes are those that a kernel has to move when every operand
//! crosses memory once: the bound that measurements are compared with, not a prediction of cache misses.

use crate::ops::Operation;
use crate::program::Program;
use std::ops::AddAssign;

/// What an op, or a whole program, costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        self.flops += other.flops;
        self.bytes_read += other.bytes_read;
        self.bytes_written += other.bytes_written;
    }
}

impl Program {
    /// What one run of the whole program costs.
    pub fn cost(&self) -> Cost {
        let mut total = Cost::default();
        for op in self.ops() {
            total += op.cost(self);
        }
        total
    }
}
