//! Matrix products by cuBLASLt, its plans made once.
//!
//! Matrices here are row-major and cuBLASLt's are column-major, so it is asked for the transpose: `outᵀ = op(b)ᵀ
//! op(a)ᵀ`, which costs nothing. The algorithm is the first that its heuristic names for a shape, so that every run
//! on a machine computes the same bits. Reductions over split inner extents happen in the accumulator's type or in
//! place in a fixed order; none of either uses atomics on sums.
#![allow(unsafe_code)] // Calls of a C library; descriptors live as long as the `Product` that uses them.

use crate::driver::Device;
use crate::libraries;
use cudarc::cublaslt::sys::{self, cublasStatus_t};
use landmark_core::{DType, Error, Result};
use std::ffi::c_void;
use std::sync::Arc;

/// Bytes of workspace that every product may use; what the vendor recommends for Hopper.
pub(crate) const WORKSPACE: u64 = 32 << 20;

fn check(status: cublasStatus_t, what: impl FnOnce() -> String) -> Result<()> {
    if status == cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        return Ok(());
    }
    Err(Error::Device(format!("cuBLASLt, {}: {status:?}", what())))
}

/// The library.
#[derive(Debug)]
pub(crate) struct CublasLt {
    handle: sys::cublasLtHandle_t,
}

// SAFETY: the handle may be used from any thread, the vendor says.
unsafe impl Send for CublasLt {}
// SAFETY: as above.
unsafe impl Sync for CublasLt {}

impl CublasLt {
    pub(crate) fn new() -> Result<CublasLt> {
        const NAMES: [&str; 4] =
            ["libcublasLt.so", "libcublasLt.so.13", "libcublasLt.so.12", "cublasLt64_13.dll"];
        if libraries::find(&NAMES).is_none() {
            return Err(Error::Device(
                "cuBLASLt was not found (libcublasLt.so.13 or .12). Install it with `pip install nvidia-cublas` and \
                 add the folder of libcublasLt.so in that package to LD_LIBRARY_PATH, or with `apt install \
                 libcublas-13-0` (libcublas-12-x for a 12.x driver) from NVIDIA's repository"
                    .into(),
            ));
        }
        let mut handle = std::ptr::null_mut();
        // SAFETY: the library is there; a context is current.
        unsafe { check(sys::cublasLtCreate(&mut handle), || "opening the library".into())? };
        Ok(CublasLt { handle })
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // SAFETY: no product is left that uses it.
        unsafe {
            let _ = sys::cublasLtDestroy(self.handle);
        }
    }
}

/// One product: what is asked of the library.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ask {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    /// Both factors.
    pub(crate) factors: DType,
    pub(crate) result: DType,
    pub(crate) transpose_a: bool,
    pub(crate) transpose_b: bool,
    /// Elements from row to row of a, b and out, as they are stored.
    pub(crate) strides: [usize; 3],
    pub(crate) a: u64,
    pub(crate) b: u64,
    pub(crate) out: u64,
    /// Added to every row, in the result's type; 0 for none.
    pub(crate) bias: u64,
    pub(crate) scale: Scale,
    pub(crate) add: bool,
    /// [`WORKSPACE`] bytes.
    pub(crate) workspace: u64,
}

/// The factor on a product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scale {
    Host(f32),
    /// Address of two floats: the factor on the product, and that on what is there (0 or 1).
    Device(u64),
}

fn data_type(dtype: DType) -> Result<sys::cudaDataType> {
    Ok(match dtype {
        DType::F32 => sys::cudaDataType::CUDA_R_32F,
        DType::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        DType::F16 => sys::cudaDataType::CUDA_R_16F,
        DType::U32 | DType::I32 => return Err(Error::Device("a product of integers".into())),
    })
}

/// A planned product.
#[derive(Debug)]
pub(crate) struct Product {
    library: Arc<CublasLt>,
    ask: Ask,
    description: sys::cublasLtMatmulDesc_t,
    /// Of `b`, `a` and `out`, which are A, B and D there.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

// SAFETY: descriptors are plain memory that the library reads.
unsafe impl Send for Product {}

impl Product {
    pub(crate) fn new(library: &Arc<CublasLt>, ask: Ask) -> Result<Product> {
        let mut product = Product {
            library: library.clone(),
            ask,
            description: std::ptr::null_mut(),
            layouts: [std::ptr::null_mut(); 3],
            // SAFETY: plain words; overwritten below.
            algorithm: unsafe { std::mem::zeroed() },
        };
        product.describe()?;
        product.choose()?;
        Ok(product)
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: T) -> Result<()> {
        let at = (&raw const value).cast::<c_void>();
        // SAFETY: a plain value of the attribute's type, copied by the call.
        unsafe {
            check(
                sys::cublasLtMatmulDescSetAttribute(self.description, attribute, at, size_of::<T>()),
                || format!("describing {:?}", self.ask),
            )
        }
    }

    fn describe(&mut self) -> Result<()> {
        use sys::cublasLtMatmulDescAttributes_t as A;
        let Ask { m, n, k, transpose_a, transpose_b, strides, bias, scale, .. } = self.ask;
        let (factors, result) = (data_type(self.ask.factors)?, data_type(self.ask.result)?);
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        // SAFETY: the descriptor is destroyed in `drop`.
        unsafe {
            check(
                sys::cublasLtMatmulDescCreate(&mut self.description, compute, sys::cudaDataType::CUDA_R_32F),
                || "describing a product".into(),
            )?;
        }
        let operation = |transposed: bool| u32::from(transposed) as i32;
        self.set(A::CUBLASLT_MATMUL_DESC_TRANSA, operation(transpose_b))?;
        self.set(A::CUBLASLT_MATMUL_DESC_TRANSB, operation(transpose_a))?;
        if bias != 0 {
            self.set(
                A::CUBLASLT_MATMUL_DESC_EPILOGUE,
                sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32,
            )?;
            self.set(A::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)?;
        }
        if let Scale::Device(_) = scale {
            let device = sys::cublasLtPointerMode_t::CUBLASLT_POINTER_MODE_DEVICE as u32;
            self.set(A::CUBLASLT_MATMUL_DESC_POINTER_MODE, device)?;
        }
        // Column-major, each is the transpose of what it is here.
        let shapes = [
            if transpose_b { (factors, k, n, strides[1]) } else { (factors, n, k, strides[1]) },
            if transpose_a { (factors, m, k, strides[0]) } else { (factors, k, m, strides[0]) },
            (result, n, m, strides[2]),
        ];
        for (layout, (dtype, rows, cols, stride)) in self.layouts.iter_mut().zip(shapes) {
            // SAFETY: destroyed in `drop`.
            unsafe {
                check(
                    sys::cublasLtMatrixLayoutCreate(layout, dtype, rows as u64, cols as u64, stride as i64),
                    || "describing a matrix".into(),
                )?;
            }
        }
        Ok(())
    }

    fn choose(&mut self) -> Result<()> {
        use sys::cublasLtMatmulPreferenceAttributes_t as P;
        let mut preference = std::ptr::null_mut();
        let [b, a, out] = self.layouts;
        // SAFETY: everything described above; one result is asked for, and room for one is given.
        unsafe {
            check(sys::cublasLtMatmulPreferenceCreate(&mut preference), || "asking for an algorithm".into())?;
            let set = |attribute, value: *const c_void, bytes| {
                sys::cublasLtMatmulPreferenceSetAttribute(preference, attribute, value, bytes)
            };
            let workspace = WORKSPACE as usize;
            let schemes = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
            let first = set(
                P::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const workspace).cast(),
                size_of::<usize>(),
            );
            let second = set(
                P::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                (&raw const schemes).cast(),
                size_of::<u32>(),
            );
            let mut found: sys::cublasLtMatmulHeuristicResult_t = std::mem::zeroed();
            let mut count = 0;
            let status = sys::cublasLtMatmulAlgoGetHeuristic(
                self.library.handle,
                self.description,
                b,
                a,
                out,
                out,
                preference,
                1,
                &mut found,
                &mut count,
            );
            let _ = sys::cublasLtMatmulPreferenceDestroy(preference);
            for status in [first, second, status] {
                check(status, || format!("choosing an algorithm for {:?}", self.ask))?;
            }
            if count == 0 {
                return Err(Error::Device(format!("cuBLASLt has no algorithm for {:?}", self.ask)));
            }
            self.algorithm = found.algo;
        }
        Ok(())
    }

    pub(crate) fn issue(&self, device: &Device) -> Result<()> {
        let Ask { a, b, out, scale, add, workspace, .. } = self.ask;
        let host = [if let Scale::Host(scale) = scale { scale } else { 1.0 }, f32::from(u8::from(add))];
        let (alpha, beta): (*const c_void, *const c_void) = match scale {
            Scale::Host(_) => ((&raw const host[0]).cast(), (&raw const host[1]).cast()),
            Scale::Device(at) => (at as *const c_void, (at + 4) as *const c_void),
        };
        let [b_layout, a_layout, out_layout] = self.layouts;
        // SAFETY: addresses lie in buffers that the plan holds; host scalars are read during the call.
        unsafe {
            check(
                sys::cublasLtMatmul(
                    self.library.handle,
                    self.description,
                    alpha,
                    b as *const c_void,
                    b_layout,
                    a as *const c_void,
                    a_layout,
                    beta,
                    out as *const c_void,
                    out_layout,
                    out as *mut c_void,
                    out_layout,
                    &self.algorithm,
                    workspace as *mut c_void,
                    WORKSPACE as usize,
                    device.stream().cast(),
                ),
                || format!("computing {:?}", self.ask),
            )
        }
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        // SAFETY: each is destroyed once, if it was made.
        unsafe {
            for layout in self.layouts.into_iter().filter(|l| !l.is_null()) {
                let _ = sys::cublasLtMatrixLayoutDestroy(layout);
            }
            if !self.description.is_null() {
                let _ = sys::cublasLtMatmulDescDestroy(self.description);
            }
        }
    }
}
