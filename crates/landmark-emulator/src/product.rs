//! Matrix products on the CPU, as cuBLASLt defines them: `D = alpha op(A) op(B) + beta C + bias`.
//!
//! Factors become f32 (f64 for f64), sums are of that type, and the result is rounded once: what the tensor units do,
//! but for the order of the sums.

use half::{bf16, f16};

/// Types of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// f32.
    F32,
    /// f64.
    F64,
    /// f16.
    F16,
    /// bf16.
    Bf16,
}

impl Type {
    /// Of CUDA's number.
    pub fn from_number(number: u32) -> Option<Type> {
        match number {
            0 => Some(Type::F32),
            1 => Some(Type::F64),
            2 => Some(Type::F16),
            14 => Some(Type::Bf16),
            _ => None,
        }
    }

    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Type::F64 => 8,
            Type::F32 => 4,
            Type::F16 | Type::Bf16 => 2,
        }
    }

    /// The element at the front of `bytes`.
    fn read(self, bytes: &[u8]) -> f64 {
        match (self, bytes) {
            (Type::F16, &[a, b, ..]) => f16::from_le_bytes([a, b]).to_f64(),
            (Type::Bf16, &[a, b, ..]) => bf16::from_le_bytes([a, b]).to_f64(),
            (Type::F32, &[a, b, c, d, ..]) => f64::from(f32::from_le_bytes([a, b, c, d])),
            (Type::F64, bytes) => bytes.first_chunk().map_or(f64::NAN, |chunk| f64::from_le_bytes(*chunk)),
            _ => f64::NAN,
        }
    }

    /// Rounds into the front of `bytes`. Halves are rounded from f32, as the epilogue of a kernel does.
    fn write(self, value: f64, bytes: &mut [u8]) {
        let n = self.bytes().min(bytes.len());
        match self {
            Type::F16 => bytes[..n].copy_from_slice(&f16::from_f32(value as f32).to_le_bytes()[..n]),
            Type::Bf16 => bytes[..n].copy_from_slice(&bf16::from_f32(value as f32).to_le_bytes()[..n]),
            Type::F32 => bytes[..n].copy_from_slice(&(value as f32).to_le_bytes()[..n]),
            Type::F64 => bytes[..n].copy_from_slice(&value.to_le_bytes()[..n]),
        }
    }
}

/// How a matrix lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Of elements.
    pub dtype: Type,
    /// Rows, as stored.
    pub rows: usize,
    /// Columns, as stored.
    pub cols: usize,
    /// Elements from one column to the next (row, if `row_major`).
    pub leading: usize,
    /// Rows follow each other instead of columns.
    pub row_major: bool,
    /// Matrices.
    pub batch: usize,
    /// Elements from one to the next.
    pub batch_stride: usize,
}

impl Layout {
    /// Elements from one row to the next, and from one column to the next.
    fn strides(&self) -> (usize, usize) {
        if self.row_major { (self.leading, 1) } else { (1, self.leading) }
    }

    /// Elements from the first to the last, and one; none where that overflows.
    pub fn span(&self) -> Option<usize> {
        let (row, col) = self.strides();
        let last = |n: usize, stride: usize| n.checked_sub(1)?.checked_mul(stride);
        let sum = last(self.rows, row)?.checked_add(last(self.cols, col)?)?;
        sum.checked_add(last(self.batch, self.batch_stride)?)?.checked_add(1)
    }

    /// Whether its leading dimension suffices, and it has elements.
    pub fn is_sound(&self) -> bool {
        let inner = if self.row_major { self.cols } else { self.rows };
        self.rows > 0 && self.cols > 0 && self.batch > 0 && self.leading >= inner && self.span().is_some()
    }
}

/// A matrix: layout and bytes.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// Its layout.
    pub layout: Layout,
    /// Its bytes, [`Layout::span`] elements.
    pub bytes: &'a [u8],
}

/// What is multiplied, and how.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// The first factor.
    pub a: Matrix<'a>,
    /// The second.
    pub b: Matrix<'a>,
    /// Whether the first is used transposed.
    pub transpose_a: bool,
    /// Whether the second is.
    pub transpose_b: bool,
    /// On the product.
    pub alpha: f64,
    /// On `c`.
    pub beta: f64,
    /// Added for each row of the result, in the result's type.
    pub bias: Option<&'a [u8]>,
    /// Sums in f64.
    pub double: bool,
}

/// A matrix of the batch, dense, row by row after the transposition.
fn dense<T>(matrix: &Matrix<'_>, transposed: bool, index: usize, convert: impl Fn(f64) -> T) -> Vec<T> {
    let Matrix { layout, bytes } = matrix;
    let (mut row, mut col) = layout.strides();
    let (mut rows, mut cols) = (layout.rows, layout.cols);
    if transposed {
        (row, col, rows, cols) = (col, row, cols, rows);
    }
    let size = layout.dtype.bytes();
    let base = index * layout.batch_stride;
    let at = |i: usize, j: usize| layout.dtype.read(&bytes[(base + i * row + j * col) * size..]);
    let mut out = Vec::with_capacity(rows * cols);
    for i in 0..rows {
        out.extend((0..cols).map(|j| convert(at(i, j))));
    }
    out
}

fn multiply<T: Default + Clone + 'static>(m: usize, n: usize, k: usize, a: &[T], b: &[T], one: T) -> Vec<T> {
    assert!(a.len() >= m * k && b.len() >= k * n, "factors have their extents");
    let mut out = vec![T::default(); m * n];
    crate::gemm_door::multiply(m, n, k, a, b, &mut out, one);
    out
}

/// Computes into `d`. `c` and `d` have the same extents; `c` is the bytes of what is added, `None` where it is what
/// `d` holds.
pub fn compute(product: &Product<'_>, c: Option<Matrix<'_>>, layout: Layout, d: &mut [u8]) {
    let Product { a, b, transpose_a, transpose_b, alpha, beta, bias, double } = *product;
    let (m, n) = (layout.rows, layout.cols);
    let k = if transpose_a { a.layout.rows } else { a.layout.cols };
    let size = layout.dtype.bytes();
    let (row, col) = layout.strides();
    for index in 0..layout.batch {
        let sums: Vec<f64> = if double {
            let (a, b) = (dense(&a, transpose_a, index, |x| x), dense(&b, transpose_b, index, |x| x));
            multiply(m, n, k, &a, &b, 1.0_f64)
        } else {
            let (a, b) =
                (dense(&a, transpose_a, index, |x| x as f32), dense(&b, transpose_b, index, |x| x as f32));
            multiply(m, n, k, &a, &b, 1.0_f32).into_iter().map(f64::from).collect()
        };
        for (at, sum) in sums.into_iter().enumerate() {
            let (i, j) = (at / n, at % n);
            let place = (index * layout.batch_stride + i * row + j * col) * size;
            let mut value = alpha * sum;
            if beta != 0.0 {
                let there = match &c {
                    None => layout.dtype.read(&d[place..]),
                    Some(c) => {
                        let (row, col) = c.layout.strides();
                        let place = index * c.layout.batch_stride + i * row + j * col;
                        c.layout.dtype.read(&c.bytes[place * c.layout.dtype.bytes()..])
                    }
                };
                value += beta * there;
            }
            if let Some(bias) = bias {
                value += layout.dtype.read(&bias[i * size..]);
            }
            layout.dtype.write(value, &mut d[place..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(values: &[f32], dtype: Type) -> Vec<u8> {
        let mut out = vec![0; values.len() * dtype.bytes()];
        for (value, place) in values.iter().zip(out.chunks_mut(dtype.bytes())) {
            dtype.write(f64::from(*value), place);
        }
        out
    }

    fn layout(dtype: Type, rows: usize, cols: usize, row_major: bool) -> Layout {
        let leading = if row_major { cols } else { rows };
        Layout { dtype, rows, cols, leading, row_major, batch: 1, batch_stride: 0 }
    }

    /// [1 2; 3 4] [5 6; 7 8] = [19 22; 43 50] in every layout.
    #[test]
    fn products_by_hand() {
        for (transpose_a, transpose_b, row_major) in [
            (false, false, true),
            (true, false, true),
            (false, true, true),
            (false, false, false),
            (true, true, false),
        ] {
            for (dtype, out) in [(Type::F32, Type::F32), (Type::Bf16, Type::F32), (Type::F16, Type::F16)] {
                let place = |values: [f32; 4], transposed: bool| {
                    let [a, b, c, d] = values;
                    let flipped = transposed == row_major;
                    bytes(&if flipped { [a, c, b, d] } else { values }, dtype)
                };
                // Row-major and not transposed lies as written; so does column-major and transposed.
                let (a, b) = (place([1., 2., 3., 4.], transpose_a), place([5., 6., 7., 8.], transpose_b));
                let shape = layout(dtype, 2, 2, row_major);
                let bias = bytes(&[100., 200.], out);
                let product = Product {
                    a: Matrix { layout: shape, bytes: &a },
                    b: Matrix { layout: shape, bytes: &b },
                    transpose_a,
                    transpose_b,
                    alpha: 2.0,
                    beta: 0.5,
                    bias: Some(&bias),
                    double: false,
                };
                let mut d = bytes(&[2., 4., 6., 8.], out);
                compute(&product, None, layout(out, 2, 2, true), &mut d);
                assert_eq!(
                    d,
                    bytes(&[139., 146., 289., 304.], out),
                    "{transpose_a} {transpose_b} {row_major}"
                );
            }
        }
    }

    #[test]
    fn what_is_multiplied_by_zero_is_not_read() {
        let one = bytes(&[3.0], Type::F32);
        let shape = layout(Type::F32, 1, 1, true);
        let matrix = Matrix { layout: shape, bytes: &one };
        let product = Product {
            a: matrix,
            b: matrix,
            transpose_a: false,
            transpose_b: false,
            alpha: 1.0,
            beta: 0.0,
            bias: None,
            double: false,
        };
        let mut d = bytes(&[f32::NAN], Type::F32);
        compute(&product, None, shape, &mut d);
        assert_eq!(d, bytes(&[9.0], Type::F32));
    }

    #[test]
    fn layouts_that_overlap_or_overflow_are_not_sound() {
        let sound = layout(Type::F32, 4, 3, false);
        assert!(sound.is_sound() && sound.span() == Some(12));
        assert!(!Layout { leading: 3, ..sound }.is_sound());
        assert!(!Layout { cols: 0, ..sound }.is_sound());
        assert!(!Layout { leading: usize::MAX, ..sound }.is_sound());
    }
}
