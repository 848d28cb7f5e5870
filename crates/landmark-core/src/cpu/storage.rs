//! Buffers, and what an op sees of them while it runs.

use super::pager::{Page, Pager};
use super::real::Real;
use crate::error::Result;
use crate::paging::PageId;
use crate::program::Info;
use crate::tensor::{Cols, DType, Tensor};
use half::{bf16, f16};
use std::borrow::Cow;
use std::cell::RefCell;
use std::ops::{Deref, DerefMut, Range};

/// Elements of one persistent tensor or slot.
#[derive(Clone, Debug)]
pub(super) enum Buffer<T> {
    Real(Vec<T>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    /// A float tensor kept in pages, of this number among the paged ones, with pages of so many elements.
    Paged {
        tensor: usize,
        page: usize,
    },
}

impl<T: Real> Buffer<T> {
    pub(super) fn zeroed(dtype: DType, numel: usize) -> Self {
        match dtype {
            DType::F32 => Buffer::Real(vec![T::ZERO; numel]),
            DType::Bf16 => Buffer::Bf16(vec![bf16::ZERO; numel]),
            DType::F16 => Buffer::F16(vec![f16::ZERO; numel]),
            DType::U32 => Buffer::U32(vec![0; numel]),
            DType::I32 => Buffer::I32(vec![0; numel]),
        }
    }

    /// Writes elements from number `first` on.
    pub(super) fn write_bytes(&mut self, first: usize, bytes: &[u8], pager: &mut Pager<T>) -> Result<()> {
        match self {
            Buffer::Real(v) => widen(&mut v[first..], bytes),
            Buffer::Bf16(v) => bytes_mut(&mut v[first..], bytes.len()).copy_from_slice(bytes),
            Buffer::F16(v) => bytes_mut(&mut v[first..], bytes.len()).copy_from_slice(bytes),
            Buffer::U32(v) => bytes_mut(&mut v[first..], bytes.len()).copy_from_slice(bytes),
            Buffer::I32(v) => bytes_mut(&mut v[first..], bytes.len()).copy_from_slice(bytes),
            Buffer::Paged { tensor, page } => {
                for (i, bytes) in bytes.chunks(*page * 4).enumerate() {
                    let id = PageId { tensor: *tensor, page: first / *page + i };
                    let mut fresh = pager.fresh(id, *page);
                    widen(&mut fresh.data, bytes);
                    pager.put(id, fresh)?;
                }
            }
        }
        Ok(())
    }

    /// The bytes of some elements.
    pub(super) fn to_bytes(&self, elements: Range<usize>, pager: &mut Pager<T>) -> Result<Vec<u8>> {
        let narrow = |v: &[T]| v.iter().flat_map(|x| (x.f64() as f32).to_le_bytes()).collect::<Vec<u8>>();
        Ok(match self {
            Buffer::Real(v) => narrow(&v[elements]),
            Buffer::Bf16(v) => bytemuck::cast_slice(&v[elements]).to_vec(),
            Buffer::F16(v) => bytemuck::cast_slice(&v[elements]).to_vec(),
            Buffer::U32(v) => bytemuck::cast_slice(&v[elements]).to_vec(),
            Buffer::I32(v) => bytemuck::cast_slice(&v[elements]).to_vec(),
            Buffer::Paged { tensor, page } => {
                let mut bytes = Vec::with_capacity(elements.len() * 4);
                for number in elements.start / page..elements.end / page {
                    let id = PageId { tensor: *tensor, page: number };
                    let found = pager.take(id, *page)?;
                    bytes.extend(narrow(&found.data));
                    pager.put(id, found)?;
                }
                bytes
            }
        })
    }

    pub(super) fn write_f64(&mut self, values: &[f64]) {
        match self {
            Buffer::Real(v) => v.iter_mut().zip(values).for_each(|(to, &from)| *to = T::of(from)),
            Buffer::Bf16(v) => v.iter_mut().zip(values).for_each(|(to, &from)| *to = bf16::from_f64(from)),
            Buffer::F16(v) => v.iter_mut().zip(values).for_each(|(to, &from)| *to = f16::from_f64(from)),
            Buffer::U32(v) => v.iter_mut().zip(values).for_each(|(to, &from)| *to = from as u32),
            Buffer::I32(v) => v.iter_mut().zip(values).for_each(|(to, &from)| *to = from as i32),
            Buffer::Paged { .. } => unreachable!("tests that look inside keep nothing in pages"),
        }
    }

    pub(super) fn read_f64(&self) -> Vec<f64> {
        match self {
            Buffer::Real(v) => v.iter().map(|x| x.f64()).collect(),
            Buffer::Bf16(v) => v.iter().map(|x| x.to_f64()).collect(),
            Buffer::F16(v) => v.iter().map(|x| x.to_f64()).collect(),
            Buffer::U32(v) => v.iter().map(|&x| f64::from(x)).collect(),
            Buffer::I32(v) => v.iter().map(|&x| f64::from(x)).collect(),
            Buffer::Paged { .. } => unreachable!("tests that look inside keep nothing in pages"),
        }
    }
}

fn bytes_mut<E: bytemuck::Pod>(elements: &mut [E], count: usize) -> &mut [u8] {
    &mut bytemuck::cast_slice_mut(elements)[..count]
}

/// Floats from the bytes of f32.
fn widen<T: Real>(to: &mut [T], bytes: &[u8]) {
    for (to, from) in to.iter_mut().zip(bytes.chunks_exact(4)) {
        *to = T::of(f64::from(f32::from_le_bytes([from[0], from[1], from[2], from[3]])));
    }
}

/// Where a tensor of the program lies.
#[derive(Clone, Copy, Debug)]
pub(super) enum Where {
    Arena(usize),
    Slot(usize),
    Nowhere,
}

/// All storage that a running program can reach.
pub(super) struct Memory<'a, T> {
    pub(super) tensors: &'a [Info],
    pub(super) places: &'a [Where],
    pub(super) arena: &'a mut Vec<Buffer<T>>,
    pub(super) slots: &'a mut Vec<Buffer<T>>,
    pub(super) workspace: &'a mut Vec<T>,
    pub(super) pager: &'a RefCell<Pager<T>>,
}

/// A ring of blocks to read: all of it, or the pages that were asked for, by number.
pub(super) enum Ring<'a, T: Real> {
    Whole(Cow<'a, [T]>),
    Pages(Vec<(usize, Page<T>)>),
}

impl<T: Real> Ring<'_, T> {
    /// The elements of a page.
    pub(super) fn page(&self, number: usize, numel: usize) -> &[T] {
        match self {
            Ring::Whole(all) => &all[number * numel..][..numel],
            Ring::Pages(pages) => match pages.binary_search_by_key(&number, |(n, _)| *n) {
                Ok(found) => &pages[found].1.data,
                Err(_) => unreachable!("only pages that were fetched are read"),
            },
        }
    }
}

/// A float buffer taken out of the table to be written; widened where it is stored in a half type.
pub(super) struct Lease<T> {
    stored: Buffer<T>,
    wide: Vec<T>,
    numel: usize,
}

impl<T> Deref for Lease<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        match &self.stored {
            Buffer::Real(v) => &v[..self.numel],
            _ => &self.wide,
        }
    }
}

impl<T> DerefMut for Lease<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match &mut self.stored {
            Buffer::Real(v) => &mut v[..self.numel],
            _ => &mut self.wide,
        }
    }
}

impl<T: Real> Memory<'_, T> {
    pub(super) fn info(&self, tensor: Tensor) -> &Info {
        &self.tensors[tensor.index()]
    }

    /// Columns of a tensor seen as a matrix.
    pub(super) fn cols(&self, tensor: Tensor) -> usize {
        self.info(tensor).shape.cols()
    }

    pub(super) fn rows(&self, tensor: Tensor) -> usize {
        self.info(tensor).shape.rows()
    }

    fn buffer(&self, tensor: Tensor) -> &Buffer<T> {
        match self.places[tensor.index()] {
            Where::Arena(i) => &self.arena[i],
            Where::Slot(i) => &self.slots[i],
            Where::Nowhere => unreachable!("the planner places every tensor that an op touches"),
        }
    }

    fn buffer_mut(&mut self, tensor: Tensor) -> &mut Buffer<T> {
        match self.places[tensor.index()] {
            Where::Arena(i) => &mut self.arena[i],
            Where::Slot(i) => &mut self.slots[i],
            Where::Nowhere => unreachable!("the planner places every tensor that an op touches"),
        }
    }

    /// A float tensor to read.
    pub(super) fn real(&self, tensor: Tensor) -> Cow<'_, [T]> {
        let numel = self.info(tensor).shape.numel();
        match self.buffer(tensor) {
            Buffer::Real(v) => Cow::Borrowed(&v[..numel]),
            Buffer::Bf16(v) => v[..numel].iter().map(|x| T::of(x.to_f64())).collect(),
            Buffer::F16(v) => v[..numel].iter().map(|x| T::of(x.to_f64())).collect(),
            Buffer::U32(_) | Buffer::I32(_) | Buffer::Paged { .. } => unreachable!("checked while recording"),
        }
    }

    /// A `u32` tensor to read.
    pub(super) fn u32(&self, tensor: Tensor) -> &[u32] {
        match self.buffer(tensor) {
            Buffer::U32(v) => &v[..self.info(tensor).shape.numel()],
            _ => unreachable!("checked while recording"),
        }
    }

    /// An `i32` tensor to read.
    pub(super) fn i32(&self, tensor: Tensor) -> &[i32] {
        match self.buffer(tensor) {
            Buffer::I32(v) => &v[..self.info(tensor).shape.numel()],
            _ => unreachable!("checked while recording"),
        }
    }

    /// Takes a float tensor out, to write it.
    pub(super) fn take(&mut self, tensor: Tensor) -> Lease<T> {
        let numel = self.info(tensor).shape.numel();
        let stored = std::mem::replace(self.buffer_mut(tensor), Buffer::U32(Vec::new()));
        let wide = match &stored {
            Buffer::Bf16(v) => v[..numel].iter().map(|x| T::of(x.to_f64())).collect(),
            Buffer::F16(v) => v[..numel].iter().map(|x| T::of(x.to_f64())).collect(),
            _ => Vec::new(),
        };
        Lease { stored, wide, numel }
    }

    /// Puts a float tensor back.
    pub(super) fn put(&mut self, tensor: Tensor, mut lease: Lease<T>) {
        match &mut lease.stored {
            Buffer::Bf16(v) => {
                v.iter_mut().zip(&lease.wide).for_each(|(to, x)| *to = bf16::from_f64(x.f64()))
            }
            Buffer::F16(v) => v.iter_mut().zip(&lease.wide).for_each(|(to, x)| *to = f16::from_f64(x.f64())),
            _ => {}
        }
        *self.buffer_mut(tensor) = lease.stored;
    }

    /// Takes a `u32` tensor out, to write it.
    pub(super) fn take_u32(&mut self, tensor: Tensor) -> Vec<u32> {
        match std::mem::replace(self.buffer_mut(tensor), Buffer::I32(Vec::new())) {
            Buffer::U32(v) => v,
            _ => unreachable!("checked while recording"),
        }
    }

    /// Puts a `u32` tensor back.
    pub(super) fn put_u32(&mut self, tensor: Tensor, values: Vec<u32>) {
        *self.buffer_mut(tensor) = Buffer::U32(values);
    }

    /// The number of a tensor that is kept in pages, among those.
    pub(super) fn paged(&self, tensor: Tensor) -> Option<usize> {
        match self.buffer(tensor) {
            Buffer::Paged { tensor, .. } => Some(*tensor),
            _ => None,
        }
    }

    /// Pages that an op may hold at a time of a tensor with pages of `numel` elements.
    pub(super) fn pages_at_once(&self, tensor: Tensor, numel: usize) -> usize {
        self.paged(tensor).map_or(usize::MAX, |_| self.pager.borrow().at_once(numel))
    }

    /// The pages of these numbers, which ascend, of a float tensor; all of it where it is not kept in pages.
    pub(super) fn fetch(
        &self,
        tensor: Tensor,
        numel: usize,
        numbers: impl Iterator<Item = usize>,
    ) -> Result<Ring<'_, T>> {
        let Some(paged) = self.paged(tensor) else { return Ok(Ring::Whole(self.real(tensor))) };
        let mut pager = self.pager.borrow_mut();
        let take = |page| Ok((page, pager.take(PageId { tensor: paged, page }, numel)?));
        Ok(Ring::Pages(numbers.map(take).collect::<Result<_>>()?))
    }

    /// Gives fetched pages back.
    pub(super) fn release(&self, tensor: Tensor, ring: Ring<'_, T>) -> Result<()> {
        let (Ring::Pages(pages), Some(paged)) = (ring, self.paged(tensor)) else { return Ok(()) };
        let mut pager = self.pager.borrow_mut();
        pages
            .into_iter()
            .try_for_each(|(number, page)| pager.put(PageId { tensor: paged, page: number }, page))
    }

    /// Room for intermediate results, kept from run to run: grows in the first run, and then never again.
    pub(super) fn take_workspace(&mut self, numel: usize) -> Vec<T> {
        let mut workspace = std::mem::take(self.workspace);
        if workspace.len() < numel {
            workspace.resize(numel, T::ZERO);
        }
        workspace
    }

    pub(super) fn put_workspace(&mut self, workspace: Vec<T>) {
        *self.workspace = workspace;
    }

    /// Stores rows of `width` columns laid out head by head, `(B, H, rows, D)`, into columns `(B, rows, H · D)`.
    pub(super) fn scatter_heads(
        &mut self,
        cols: Cols,
        from: &[T],
        batch: usize,
        rows: usize,
        head_dim: usize,
    ) {
        let stride = self.cols(cols.tensor);
        let heads = cols.width / head_dim;
        let mut to = self.take(cols.tensor);
        let store = |(index, row): (usize, &mut [T])| {
            let (b, r) = (index / rows, index % rows);
            for h in 0..heads {
                let source = &from[((b * heads + h) * rows + r) * head_dim..][..head_dim];
                row[cols.start + h * head_dim..][..head_dim].copy_from_slice(source);
            }
        };
        debug_assert_eq!(to.len(), batch * rows * stride);
        super::real::for_rows(&mut to, stride, store);
        self.put(cols.tensor, to);
    }
}
