//! The door to the `gemm` crate, which takes pointers and strides.
#![allow(unsafe_code)] // One call, of slices whose lengths are checked.

/// `out = a b` of dense row-major matrices, `m` by `k` and `k` by `n`.
pub(crate) fn multiply<T>(m: usize, n: usize, k: usize, a: &[T], b: &[T], out: &mut [T], one: T)
where
    T: Default + Clone + 'static,
{
    assert!(a.len() >= m * k && b.len() >= k * n && out.len() >= m * n, "matrices have their extents");
    let (n_, k_) = (n as isize, k as isize);
    // SAFETY: every matrix is a slice with its extents, checked above, and `out` overlaps neither factor. `out` is not
    // read.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n_,
            false,
            a.as_ptr(),
            1,
            k_,
            b.as_ptr(),
            1,
            n_,
            T::default(),
            one,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
