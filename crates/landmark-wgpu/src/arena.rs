//! Storage of persistent tensors: a buffer each, or several, each with some of the rows.
//!
//! A tensor that is larger than a binding may be is split by rows. Kernels whose operand may be that large (the
//! weights of products, embeddings) are launched once a piece; all others ask for tensors in one piece.

use crate::device::{Shared, padded};
use landmark_core::program::Info;
use landmark_core::{Error, Layout, Result, Tensor};
use std::ops::Range;

/// Some rows of a tensor.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    /// First row.
    pub(crate) first: usize,
    /// How many.
    pub(crate) rows: usize,
    pub(crate) buffer: wgpu::Buffer,
}

/// Buffers of the persistent tensors.
#[derive(Debug)]
pub struct WgpuArena {
    pub(crate) layout: Layout,
    tensors: Vec<Vec<Piece>>,
}

impl WgpuArena {
    pub(crate) fn new(shared: &Shared, layout: &Layout) -> Result<Self> {
        let tensors = layout.tensors().iter().map(|info| allocate(shared, info)).collect::<Result<_>>()?;
        Ok(WgpuArena { layout: layout.clone(), tensors })
    }

    pub(crate) fn pieces(&self, tensor: Tensor) -> &[Piece] {
        &self.tensors[tensor.index()]
    }

    /// The bytes of some elements, piece by piece: number of the piece, bytes in it, and where they lie among those
    /// asked for.
    ///
    /// # Errors
    /// [`Error::Size`].
    pub(crate) fn spans(
        &self,
        tensor: Tensor,
        bytes: Range<usize>,
    ) -> Result<Vec<(&Piece, Range<usize>, usize)>> {
        let info = self.layout.info(tensor);
        if bytes.end > info.bytes() {
            let (tensor, expected) = (info.name.clone(), info.bytes() - bytes.start.min(info.bytes()));
            return Err(Error::Size { tensor, expected, given: bytes.len() });
        }
        let row = info.shape.cols() * info.dtype.size();
        let overlap = |piece: &Piece| {
            let (start, end) = (piece.first * row, (piece.first + piece.rows) * row);
            bytes.start.max(start)..bytes.end.min(end)
        };
        Ok(self
            .pieces(tensor)
            .iter()
            .map(|piece| (piece, overlap(piece)))
            .filter(|(_, found)| found.start < found.end)
            .map(|(piece, found)| {
                let start = piece.first * row;
                (piece, found.start - start..found.end - start, found.start - bytes.start)
            })
            .collect())
    }
}

fn allocate(shared: &Shared, info: &Info) -> Result<Vec<Piece>> {
    let (rows, row) = (info.shape.rows(), info.shape.cols() * info.dtype.size());
    let bytes = info.bytes() as u64;
    if padded(bytes) <= shared.largest_binding() {
        return Ok(vec![Piece { first: 0, rows, buffer: shared.buffer(bytes, &info.name)? }]);
    }
    // An even number of rows, so that no piece ends inside a word.
    let most = (shared.largest_binding() / row.max(1) as u64 / 2 * 2) as usize;
    if most == 0 {
        return Err(Error::Device(format!(
            "{} is too small: a row of `{}` takes {row} bytes, a binding {}",
            shared.info.name,
            info.name,
            shared.largest_binding()
        )));
    }
    let piece = |first: usize| {
        let rows = most.min(rows - first);
        Ok(Piece { first, rows, buffer: shared.buffer((rows * row) as u64, &info.name)? })
    };
    (0..rows).step_by(most).map(piece).collect()
}
