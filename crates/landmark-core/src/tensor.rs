//! Handles to tensors: ids with a name, a shape and an element type, and no data.
//!
//! Where the data lies is a backend's business. All tensors are dense and row-major. Ops that work on a
//! part of a row (the queries inside a fused `qkv`) say so with [`Cols`]; ops that can add to what is there
//! say so with [`Out`].

use std::fmt;

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// 32-bit float. The CPU backend in f64 holds these in 64 bits.
    F32,
    /// bfloat16: storage only, computed in the backend's float.
    Bf16,
    /// IEEE half: storage only, computed in the backend's float.
    F16,
    /// Unsigned 32-bit integer: token ids, counts, masks.
    U32,
    /// Signed 32-bit integer: targets (-1 = no loss) and positions.
    I32,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 | DType::U32 | DType::I32 => 4,
            DType::Bf16 | DType::F16 => 2,
        }
    }

    /// Whether it is one of the floats.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::Bf16 | DType::F16)
    }

    /// Lower-case name, as printed.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
            DType::U32 => "u32",
            DType::I32 => "i32",
        }
    }
}

/// Extents of a tensor, outermost first.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Shape(Vec<usize>);

impl Shape {
    /// The extents.
    pub fn dims(&self) -> &[usize] {
        &self.0
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.0.iter().product()
    }

    /// The innermost extent: columns of the tensor seen as a matrix.
    pub fn cols(&self) -> usize {
        self.0.last().copied().unwrap_or(1)
    }

    /// All other extents together: rows of the tensor seen as a matrix.
    pub fn rows(&self) -> usize {
        self.0.iter().rev().skip(1).product()
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Self {
        Shape(dims.to_vec())
    }
}

impl From<&[usize]> for Shape {
    fn from(dims: &[usize]) -> Self {
        Shape(dims.to_vec())
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// A tensor of a [`Layout`](crate::Layout) or of one [`Program`](crate::Program).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tensor(pub(crate) u32);

impl Tensor {
    /// Position in the table of tensors.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Columns `start .. start + width` of every row of a tensor seen as a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cols {
    /// The tensor, `(..., columns)`.
    pub tensor: Tensor,
    /// First column.
    pub start: usize,
    /// Number of columns.
    pub width: usize,
}

impl Cols {
    /// All columns of a tensor with `width` of them.
    pub fn all(tensor: Tensor, width: usize) -> Self {
        Cols { tensor, start: 0, width }
    }
}

/// A result, and whether it replaces (`=`) or is added to (`+=`) what the tensor holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Out {
    /// The tensor written.
    pub tensor: Tensor,
    /// `+=` instead of `=`.
    pub add: bool,
}

impl Out {
    /// `tensor = ...`
    pub fn set(tensor: Tensor) -> Self {
        Out { tensor, add: false }
    }

    /// `tensor += ...`
    pub fn add(tensor: Tensor) -> Self {
        Out { tensor, add: true }
    }
}
