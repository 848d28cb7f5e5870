//! Persistent tensors on the device: one allocation, every tensor at a multiple of 256 bytes.

use crate::driver::Buffer;
use crate::paging::Rings;
use landmark_core::{Error, Layout, Result, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// Bytes to which tensors are aligned: what the copy engine and wide loads ask for, with room.
pub(crate) const ALIGNMENT: u64 = 256;

/// The next multiple of [`ALIGNMENT`].
pub(crate) fn aligned(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGNMENT)
}

/// Storage of the persistent tensors of a layout.
#[derive(Debug)]
pub struct CudaArena {
    pub(crate) layout: Layout,
    pub(crate) buffer: Arc<Buffer>,
    /// Where each tensor begins, in bytes from the buffer's beginning.
    pub(crate) offsets: Vec<u64>,
    /// Paged tensors that lie elsewhere.
    pub(crate) rings: Option<Arc<Rings>>,
}

/// Offsets of all tensors laid end to end, and the bytes of all together.
pub(crate) fn lay_out(sizes: impl Iterator<Item = u64>) -> (Vec<u64>, u64) {
    let mut end = 0;
    let offsets = sizes
        .map(|bytes| {
            let start = end;
            end = aligned(start + bytes);
            start
        })
        .collect();
    (offsets, end)
}

impl CudaArena {
    /// Device address of a tensor of the layout, valid as long as the arena lives.
    pub fn address(&self, tensor: Tensor) -> u64 {
        let in_host = self.rings.as_ref().and_then(|rings| rings.address(tensor));
        in_host.unwrap_or(self.buffer.address + self.offsets[tensor.index()])
    }

    /// Address of `bytes` bytes of a tensor from element `first` on, if they are within it and whole elements.
    pub(crate) fn span(&self, tensor: Tensor, first: usize, bytes: usize) -> Result<u64> {
        let info = self.layout.info(tensor);
        let before = first * info.dtype.size();
        let unit = info.page.unwrap_or(1) * info.dtype.size();
        let is_whole = bytes.is_multiple_of(info.dtype.size())
            && (info.page.is_none() || before == 0 || before.is_multiple_of(unit));
        if before + bytes > info.bytes() || !is_whole {
            let expected = info.bytes() - before.min(info.bytes());
            return Err(Error::Size { tensor: info.name.clone(), expected, given: bytes });
        }
        Ok(self.address(tensor) + before as u64)
    }

    /// The rings, if that is where a tensor lies.
    pub(crate) fn rings_of(&self, tensor: Tensor) -> Option<&Rings> {
        self.rings.as_deref().filter(|rings| rings.address(tensor).is_some())
    }

    /// Address and length of a range of elements.
    pub(crate) fn elements(&self, tensor: Tensor, elements: &Range<usize>) -> Result<(u64, usize)> {
        let bytes = elements.len() * self.layout.info(tensor).dtype.size();
        Ok((self.span(tensor, elements.start, bytes)?, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_begin_at_multiples_of_the_alignment_and_do_not_overlap() {
        let (offsets, end) = lay_out([1, 256, 257, 0, 4].into_iter());
        assert_eq!(offsets, [0, 256, 512, 1024, 1024]);
        assert_eq!(end, 1280);
    }
}
