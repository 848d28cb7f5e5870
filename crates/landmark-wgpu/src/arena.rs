//! Storage of persistent tensors: a buffer each, or several, each with some of the rows.
//!
//! A tensor that is larger than a binding may be is split by rows. Kernels whose operand may be that large (the
//! weights of products, embeddings) are launched once a piece; all others ask for tensors in one piece.
//!
//! Matrices of weights may be kept in blocks of 8 or 4 bits: a backend that is opened so quantises what is written to
//! them, and gives back rounded values when they are read. Nobody else has to know.

use crate::device::{Shared, padded};
use landmark_core::program::Info;
use landmark_core::quantize::{BLOCK, Bits, is_matrix};
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
    /// Scales of a quantised tensor, whose codes are in `buffer`.
    pub(crate) scales: Option<wgpu::Buffer>,
}

/// Buffers of the persistent tensors.
#[derive(Debug)]
pub struct WgpuArena {
    pub(crate) layout: Layout,
    tensors: Vec<Vec<Piece>>,
    /// How matrices of weights are kept.
    weights: Option<Bits>,
}

impl WgpuArena {
    pub(crate) fn new(shared: &Shared, layout: &Layout) -> Result<Self> {
        let tensors = layout.tensors().iter().map(|info| allocate(shared, info)).collect::<Result<_>>()?;
        Ok(WgpuArena { layout: layout.clone(), tensors, weights: shared.weights })
    }

    /// Bytes of all buffers.
    pub fn bytes(&self) -> u64 {
        let of = |piece: &Piece| piece.buffer.size() + piece.scales.as_ref().map_or(0, wgpu::Buffer::size);
        self.tensors.iter().flatten().map(of).sum()
    }

    pub(crate) fn pieces(&self, tensor: Tensor) -> &[Piece] {
        &self.tensors[tensor.index()]
    }

    /// The bits that a tensor is kept in, if it is quantised.
    pub(crate) fn bits(&self, tensor: Tensor) -> Option<Bits> {
        self.weights.filter(|_| is_quantised(self.layout.info(tensor)))
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

/// A browser frees a buffer when it next collects garbage, which may be long after another memory was asked for.
#[cfg(target_arch = "wasm32")]
impl Drop for WgpuArena {
    fn drop(&mut self) {
        for piece in self.tensors.iter().flatten() {
            piece.buffer.destroy();
            if let Some(scales) = &piece.scales {
                scales.destroy();
            }
        }
    }
}

/// Whether a tensor is a matrix of weights, whose rows are whole blocks.
fn is_quantised(info: &Info) -> bool {
    info.dtype.is_float() && is_matrix(&info.name, info.shape.dims())
}

fn allocate(shared: &Shared, info: &Info) -> Result<Vec<Piece>> {
    let (rows, cols) = (info.shape.rows(), info.shape.cols());
    let bits = shared.weights.filter(|_| is_quantised(info));
    let row = bits.map_or(cols * info.dtype.size(), |bits| cols / BLOCK * bits.code_bytes());
    let piece = |first: usize, rows: usize| {
        let buffer = shared.buffer((rows * row) as u64, &info.name)?;
        let scales = bits.map(|_| shared.buffer((rows * cols / BLOCK * 2) as u64, &info.name)).transpose()?;
        Ok(Piece { first, rows, buffer, scales })
    };
    if padded((rows * row) as u64) <= shared.largest_binding() {
        return Ok(vec![piece(0, rows)?]);
    }
    // An even number of rows, so that no piece ends inside a word.
    let most = (shared.largest_binding() / row.max(1) as u64 / 2 * 2) as usize;
    if most == 0 {
        return Err(Error::Device(format!(
            "{} is too small: two rows of `{}` take {} bytes, a binding {}",
            shared.info.name,
            info.name,
            2 * row,
            shared.largest_binding()
        )));
    }
    (0..rows).step_by(most).map(|first| piece(first, most.min(rows - first))).collect()
}
