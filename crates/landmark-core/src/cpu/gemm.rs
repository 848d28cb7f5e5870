//! The one door to the matrix product of crate `gemm`, whose functions take raw pointers.
//!
//! Bounds are checked here, from extents and strides, before any pointer is made; this is the only module of
//! the crate that may contain `unsafe`.

#![allow(unsafe_code)]

use super::real::Real;

/// A matrix inside a slice.
#[derive(Clone, Copy)]
pub(super) struct Mat<'a, T> {
    pub(super) data: &'a [T],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

/// A matrix inside a slice, to be written.
pub(super) struct MatMut<'a, T> {
    pub(super) data: &'a mut [T],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
}

impl<'a, T> Mat<'a, T> {
    /// Rows one after the other.
    pub(super) fn new(data: &'a [T], rows: usize, cols: usize) -> Self {
        Mat { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// Rows `stride` elements apart.
    pub(super) fn strided(data: &'a [T], rows: usize, cols: usize, stride: usize) -> Self {
        Mat { data, rows, cols, row_stride: stride, col_stride: 1 }
    }

    /// The transpose.
    pub(super) fn t(self) -> Self {
        Mat {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }

    fn last(&self) -> usize {
        (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride
    }
}

impl<'a, T> MatMut<'a, T> {
    /// Rows one after the other.
    pub(super) fn new(data: &'a mut [T], rows: usize, cols: usize) -> Self {
        MatMut { data, rows, cols, row_stride: cols }
    }

    /// Rows `stride` elements apart.
    pub(super) fn strided(data: &'a mut [T], rows: usize, cols: usize, stride: usize) -> Self {
        MatMut { data, rows, cols, row_stride: stride }
    }
}

/// Products below this many multiply-adds run on the calling thread.
const PARALLEL_FROM: usize = 1 << 20;

/// `out (=|+=) scale · a · b`. `parallel` allows several threads; callers that run in parallel themselves say no.
pub(super) fn gemm<T: Real>(
    out: MatMut<'_, T>,
    add: bool,
    scale: T,
    a: Mat<'_, T>,
    b: Mat<'_, T>,
    parallel: bool,
) {
    let (m, n, k) = (out.rows, out.cols, a.cols);
    assert_eq!((a.rows, b.rows, b.cols), (m, k, n), "extents of a matrix product");
    if m == 0 || n == 0 {
        return;
    }
    assert!(out.cols <= out.row_stride || m == 1, "rows of the result overlap");
    assert!((m - 1) * out.row_stride + n <= out.data.len(), "result is too small");
    if k == 0 {
        if !add {
            out.data.chunks_mut(out.row_stride).take(m).for_each(|row| row[..n].fill(T::ZERO));
        }
        return;
    }
    assert!(a.last() < a.data.len() && b.last() < b.data.len(), "factor is too small");
    let threads = if parallel && m * n * k >= PARALLEL_FROM {
        gemm::Parallelism::Rayon(0)
    } else {
        gemm::Parallelism::None
    };
    // SAFETY: every index that extents and strides can reach was checked against its slice above; `out` is
    // borrowed mutably, so it overlaps neither factor; its rows do not overlap each other.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.data.as_mut_ptr(),
            1,
            out.row_stride as isize,
            add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            T::ONE,
            scale,
            false,
            false,
            false,
            threads,
        );
    }
}
