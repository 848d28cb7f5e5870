//! Buffers, and what an op sees of them while it runs.

use super::real::Real;
use crate::program::Info;
use crate::tensor::{Cols, DType, Tensor};
use half::{bf16, f16};
use std::borrow::Cow;
use std::ops::{Deref, DerefMut};

/// Elements of one persistent tensor or slot.
#[derive(Clone, Debug)]
pub(super) enum Buffer<T> {
    Real(Vec<T>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
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

    pub(super) fn write_bytes(&mut self, bytes: &[u8]) {
        match self {
            Buffer::Real(v) => {
                for (to, from) in v.iter_mut().zip(bytes.chunks_exact(4)) {
                    *to = T::of(f64::from(f32::from_le_bytes([from[0], from[1], from[2], from[3]])));
                }
            }
            Buffer::Bf16(v) => bytemuck::cast_slice_mut(v)[..bytes.len()].copy_from_slice(bytes),
            Buffer::F16(v) => bytemuck::cast_slice_mut(v)[..bytes.len()].copy_from_slice(bytes),
            Buffer::U32(v) => bytemuck::cast_slice_mut(v)[..bytes.len()].copy_from_slice(bytes),
            Buffer::I32(v) => bytemuck::cast_slice_mut(v)[..bytes.len()].copy_from_slice(bytes),
        }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        match self {
            Buffer::Real(v) => v.iter().flat_map(|x| (x.f64() as f32).to_le_bytes()).collect(),
            Buffer::Bf16(v) => bytemuck::cast_slice(v).to_vec(),
            Buffer::F16(v) => bytemuck::cast_slice(v).to_vec(),
            Buffer::U32(v) => bytemuck::cast_slice(v).to_vec(),
            Buffer::I32(v) => bytemuck::cast_slice(v).to_vec(),
        }
    }

    pub(super) fn write_f64(&mut self, values: &[f64]) {
        match self {
            Buffer::Real(v) => v.iter_mut().zip(values).for_each(|(to, &from)| *to = T::of(from)),
            Buffer::Bf16(v) => v.iter_mut().zip(values).for_each(|(to, &from)| *to = bf16::from_f64(from)),
            Buffer::F16(v) => v.iter_mut().zip(values).for_each(|(to, &from)| *to = f16::from_f64(from)),
            Buffer::U32(v) => v.iter_mut().zip(values).for_each(|(to, &from)| *to = from as u32),
            Buffer::I32(v) => v.iter_mut().zip(values).for_each(|(to, &from)| *to = from as i32),
        }
    }

    pub(super) fn read_f64(&self) -> Vec<f64> {
        match self {
            Buffer::Real(v) => v.iter().map(|x| x.f64()).collect(),
            Buffer::Bf16(v) => v.iter().map(|x| x.to_f64()).collect(),
            Buffer::F16(v) => v.iter().map(|x| x.to_f64()).collect(),
            Buffer::U32(v) => v.iter().map(|&x| f64::from(x)).collect(),
            Buffer::I32(v) => v.iter().map(|&x| f64::from(x)).collect(),
        }
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
            Buffer::U32(_) | Buffer::I32(_) => unreachable!("checked while recording"),
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
