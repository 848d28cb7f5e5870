//! Storage of persistent tensors: a buffer each, or several, each with some of the rows.
//!
//! A tensor that is larger than a binding may be is split by rows. Kernels whose operand may be that large (the
//! weights of products, embeddings) are launched once a piece; all others ask for tensors in one piece.
//!
//! The rings of a landmark memory grow with the text, and are split by key heads: what a query attends to lies in the
//! ring of its head, so a kernel is launched once a piece here too, each for its heads. Rejected: pieces of blocks, which
//! would have to meet in every softmax.
//!
//! Matrices of weights may be kept in blocks of 8 or 4 bits: a backend that is opened so quantises what is written to
//! them, and gives back rounded values when they are read. Nobody else has to know.

use crate::device::{Shared, padded};
use landmark_core::program::Info;
use landmark_core::quantize::{BLOCK, Bits, is_matrix};
use landmark_core::{Error, Layout, Result, Tensor};
use std::ops::Range;

/// Some rows of a tensor, or some key heads of a ring.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    /// First row, or head.
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

    /// The bytes of some elements of a tensor.
    pub(crate) fn bytes_of(&self, tensor: Tensor, elements: &Range<usize>) -> Range<usize> {
        let size = self.layout.info(tensor).dtype.size();
        elements.start.saturating_mul(size)..elements.end.saturating_mul(size)
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
        if let (Some(page), true) = (info.page, self.pieces(tensor).len() > 1) {
            return Ok(self.ring_spans(tensor, page * info.dtype.size(), bytes));
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

impl WgpuArena {
    /// The same of a ring whose heads lie in several pieces. A piece has all slots of all rows, each with its heads.
    fn ring_spans(
        &self,
        tensor: Tensor,
        page: usize,
        bytes: Range<usize>,
    ) -> Vec<(&Piece, Range<usize>, usize)> {
        let (pieces, heads) = (self.pieces(tensor), heads_of(self.layout.info(tensor)));
        let (mut spans, mut at) = (Vec::new(), bytes.start);
        while at < bytes.end {
            let (slot, head) = (at / page / heads, at / page % heads);
            let Some(piece) = pieces.iter().find(|p| (p.first..p.first + p.rows).contains(&head)) else {
                break;
            };
            // The heads of a piece lie together.
            let end = ((slot * heads + piece.first + piece.rows) * page).min(bytes.end);
            let start = (slot * piece.rows + head - piece.first) * page + at % page;
            spans.push((piece, start..start + end - at, at - bytes.start));
            at = end;
        }
        spans
    }
}

/// Key heads of a ring `(B, slots, heads, block, width)`.
fn heads_of(info: &Info) -> usize {
    info.shape.dims().get(2).copied().unwrap_or(1).max(1)
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
    if info.page.is_some() {
        return allocate_ring(shared, info);
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

/// A ring in pieces of as many heads as a binding holds.
fn allocate_ring(shared: &Shared, info: &Info) -> Result<Vec<Piece>> {
    let heads = heads_of(info);
    let of_head = (info.bytes() / heads) as u64;
    let most = (shared.largest_binding() / padded(of_head)) as usize;
    if most == 0 {
        return Err(Error::Device(format!(
            "{} is too small: maxStorageBufferBindingSize is {} bytes, but one key head of `{}` takes {of_head}; a smaller \
             memory (--mem-cache-size) or float16 (--dtype) needs less",
            shared.info.name,
            shared.largest_binding(),
            info.name
        )));
    }
    let piece = |first: usize| {
        let rows = most.min(heads - first);
        Ok(Piece { first, rows, buffer: shared.buffer(rows as u64 * of_head, &info.name)?, scales: None })
    };
    (0..heads).step_by(most).map(piece).collect()
}
