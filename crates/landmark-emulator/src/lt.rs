//! The functions of `libcublasLt.so.13` that Landmark calls.
//!
//! What cuBLASLt refuses is refused: factors of two types, results of a type that its table does not have, addresses
//! that its kernels could not load from. There is one algorithm, and it is [`crate::product`].
#![allow(unsafe_code)] // Pointers from C: each is checked for null, and otherwise what the caller promises.
#![allow(missing_docs, clippy::missing_safety_doc)] // cuBLASLt's manual has both: pointers are valid for what they are for.

use crate::driver::{reachable, stream};
use crate::product::{self, Layout, Matrix, Product, Type};
use crate::status::{self, Outcome, code, failure};
use crate::stream::Stream;
use std::ffi::{c_int, c_void};

type Status = u32;
const SUCCESS: Status = 0;
const INVALID_VALUE: Status = 7;
const EXECUTION_FAILED: Status = 13;
const NOT_SUPPORTED: Status = 15;

/// Marks an algorithm as ours.
const ALGORITHM: u64 = 0x4c4d_414c;

/// Says why on the error stream, since cuBLASLt's numbers have no words of their own.
fn refuse(status: Status, why: &str) -> Status {
    eprintln!("the emulated cuBLASLt refuses: {why}");
    status
}

/// `cublasLtMatmulDesc_t`.
#[derive(Clone, Copy, Debug)]
pub struct Description {
    compute: u32,
    scale: u32,
    device_scalars: bool,
    transpose: [bool; 2],
    epilogue: u32,
    bias: u64,
    bias_type: Option<u32>,
}

/// `cublasLtMatmulPreference_t`: the least alignment of A, B, C and D, and the most workspace.
#[derive(Clone, Copy, Debug)]
pub struct Preference {
    alignment: [u32; 4],
}

/// `cublasLtMatmulAlgo_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Algorithm {
    data: [u64; 8],
}

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Heuristic {
    algorithm: Algorithm,
    workspace: usize,
    state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

/// A layout, while types may still be ones that are not emulated.
#[derive(Clone, Copy, Debug)]
pub struct Described {
    dtype: u32,
    rows: u64,
    cols: u64,
    leading: i64,
    order: i32,
    batch: i32,
    batch_stride: i64,
}

impl Described {
    fn layout(&self) -> Option<Layout> {
        let layout = Layout {
            dtype: Type::from_number(self.dtype)?,
            rows: usize::try_from(self.rows).ok()?,
            cols: usize::try_from(self.cols).ok()?,
            leading: usize::try_from(self.leading).ok()?,
            row_major: match self.order {
                0 => false,
                1 => true,
                _ => return None,
            },
            batch: usize::try_from(self.batch).ok()?,
            batch_stride: usize::try_from(self.batch_stride).ok()?,
        };
        layout.is_sound().then_some(layout)
    }
}

unsafe fn put<T>(to: *mut T, value: T) -> Status {
    if to.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: not null, and writable as the caller promises.
    unsafe { to.write(value) };
    SUCCESS
}

unsafe fn destroy<T>(handle: *mut T) -> Status {
    if !handle.is_null() {
        // SAFETY: made by `Box::into_raw` here and destroyed once, as the caller promises.
        drop(unsafe { Box::from_raw(handle) });
    }
    SUCCESS
}

/// An attribute's value.
unsafe fn value<T: Copy>(from: *const c_void, bytes: usize) -> Option<T> {
    // SAFETY: `bytes` of them may be read, as the caller promises.
    (!from.is_null() && bytes == size_of::<T>()).then(|| unsafe { from.cast::<T>().read_unaligned() })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtCreate(handle: *mut *mut c_void) -> Status {
    // SAFETY: the caller's.
    unsafe { put(handle, Box::into_raw(Box::new(0_u64)).cast()) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtDestroy(handle: *mut c_void) -> Status {
    // SAFETY: the caller's.
    unsafe { destroy(handle.cast::<u64>()) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescCreate(
    made: *mut *mut Description,
    compute: u32,
    scale: u32,
) -> Status {
    let description = Description {
        compute,
        scale,
        device_scalars: false,
        transpose: [false; 2],
        epilogue: 1,
        bias: 0,
        bias_type: None,
    };
    // SAFETY: the caller's.
    unsafe { put(made, Box::into_raw(Box::new(description))) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescDestroy(description: *mut Description) -> Status {
    // SAFETY: the caller's.
    unsafe { destroy(description) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescSetAttribute(
    description: *mut Description,
    which: u32,
    from: *const c_void,
    bytes: usize,
) -> Status {
    // SAFETY: the caller's.
    let (Some(description), word, long) =
        (unsafe { (description.as_mut(), value::<u32>(from, bytes), value::<u64>(from, bytes)) })
    else {
        return INVALID_VALUE;
    };
    match (which, word, long) {
        (2, Some(mode @ 0..=1), _) => description.device_scalars = mode == 1,
        (3 | 4, Some(operation @ 0..=2), _) => description.transpose[which as usize - 3] = operation != 0,
        (7, Some(epilogue @ (1 | 4)), _) => description.epilogue = epilogue,
        (8, _, Some(bias)) => description.bias = bias,
        (15, ..) | (25, ..) => {} // multiprocessors to use; fast sums of 8-bit floats
        (26, Some(dtype), _) => description.bias_type = Some(dtype),
        _ => return refuse(INVALID_VALUE, &format!("attribute {which} of a product with {word:?} {long:?}")),
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatrixLayoutCreate(
    made: *mut *mut Described,
    dtype: u32,
    rows: u64,
    cols: u64,
    leading: i64,
) -> Status {
    let described = Described { dtype, rows, cols, leading, order: 0, batch: 1, batch_stride: 0 };
    // SAFETY: the caller's.
    unsafe { put(made, Box::into_raw(Box::new(described))) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatrixLayoutDestroy(layout: *mut Described) -> Status {
    // SAFETY: the caller's.
    unsafe { destroy(layout) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatrixLayoutSetAttribute(
    layout: *mut Described,
    which: u32,
    from: *const c_void,
    bytes: usize,
) -> Status {
    // SAFETY: the caller's.
    let (Some(layout), word, long) =
        (unsafe { (layout.as_mut(), value::<i32>(from, bytes), value::<i64>(from, bytes)) })
    else {
        return INVALID_VALUE;
    };
    match (which, word, long) {
        (0, Some(dtype), _) => layout.dtype = dtype as u32,
        (1, Some(order), _) => layout.order = order,
        (2, _, Some(rows)) => layout.rows = rows as u64,
        (3, _, Some(cols)) => layout.cols = cols as u64,
        (4, _, Some(leading)) => layout.leading = leading,
        (5, Some(batch), _) => layout.batch = batch,
        (6, _, Some(stride)) => layout.batch_stride = stride,
        _ => return refuse(INVALID_VALUE, &format!("attribute {which} of a layout with {word:?} {long:?}")),
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceCreate(made: *mut *mut Preference) -> Status {
    // SAFETY: the caller's.
    unsafe { put(made, Box::into_raw(Box::new(Preference { alignment: [256; 4] }))) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceDestroy(preference: *mut Preference) -> Status {
    // SAFETY: the caller's.
    unsafe { destroy(preference) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceSetAttribute(
    preference: *mut Preference,
    which: u32,
    from: *const c_void,
    bytes: usize,
) -> Status {
    // SAFETY: the caller's.
    let (Some(preference), word) = (unsafe { (preference.as_mut(), value::<u32>(from, bytes)) }) else {
        return INVALID_VALUE;
    };
    // Others say how to search, how much workspace, which reductions: nothing that our one algorithm cares for.
    if let (5..=8, Some(alignment)) = (which, word) {
        preference.alignment[which as usize - 5] = alignment;
    }
    SUCCESS
}

/// Whether cuBLASLt multiplies these, and if not, why.
fn supported(description: &Description, [a, b, c, d]: [&Layout; 4]) -> Result<(), String> {
    // CUBLAS_COMPUTE_32F and its pedantic and faster kin; 64F.
    let types = match (description.compute, description.scale) {
        (68 | 69 | 74 | 75 | 77, 0) => matches!(
            (a.dtype, d.dtype),
            (Type::F32 | Type::F16 | Type::Bf16, Type::F32)
                | (Type::F16, Type::F16)
                | (Type::Bf16, Type::Bf16)
        ),
        (70 | 71, 1) => a.dtype == Type::F64 && d.dtype == Type::F64,
        _ => false,
    };
    if !types || a.dtype != b.dtype || c.dtype != d.dtype {
        return Err(format!(
            "{:?} x {:?} with {:?} into {:?}, compute type {}, scale type {}",
            a.dtype, b.dtype, c.dtype, d.dtype, description.compute, description.scale
        ));
    }
    let extents = |layout: &Layout, transposed: bool| {
        if transposed { (layout.cols, layout.rows) } else { (layout.rows, layout.cols) }
    };
    let [(m, k), (k_, n)] = [extents(a, description.transpose[0]), extents(b, description.transpose[1])];
    let agree = k == k_ && [(d.rows, d.cols), (c.rows, c.cols)] == [(m, n); 2];
    if !agree || [a, b, c].iter().any(|x| x.batch != d.batch) {
        return Err(format!(
            "extents that do not agree: {a:?} {b:?} {c:?} {d:?} {:?}",
            description.transpose
        ));
    }
    if description.epilogue == 4 && d.row_major {
        return Err("a bias with a result in row order".into());
    }
    let bias = description.bias_type.map(Type::from_number);
    if description.epilogue == 4 && (description.bias == 0 || bias.is_some_and(|bias| bias != Some(d.dtype)))
    {
        return Err(format!(
            "a bias at {:#x} of type {bias:?} with a result of {:?}",
            description.bias, d.dtype
        ));
    }
    Ok(())
}

/// Everything that is described, or what to answer.
unsafe fn described(
    description: *const Description,
    layouts: [*const Described; 4],
) -> Result<(Description, [Layout; 4]), Status> {
    // SAFETY: null, or ours and not destroyed, as the caller promises.
    let Some(description) = (unsafe { description.as_ref() }) else { return Err(INVALID_VALUE) };
    let mut found = Vec::new();
    for layout in layouts {
        // SAFETY: as above.
        let layout = unsafe { layout.as_ref() }.ok_or(INVALID_VALUE)?;
        found.push(layout.layout().ok_or_else(|| refuse(INVALID_VALUE, &format!("the layout {layout:?}")))?);
    }
    let Ok(layouts) = <[Layout; 4]>::try_from(found) else { return Err(INVALID_VALUE) };
    let [a, b, c, d] = &layouts;
    supported(description, [a, b, c, d]).map_err(|why| refuse(NOT_SUPPORTED, &why))?;
    Ok((*description, layouts))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulAlgoGetHeuristic(
    _handle: *mut c_void,
    description: *const Description,
    a: *const Described,
    b: *const Described,
    c: *const Described,
    d: *const Described,
    preference: *const Preference,
    room: c_int,
    results: *mut Heuristic,
    count: *mut c_int,
) -> Status {
    // SAFETY: the caller's.
    unsafe {
        let Some(preference) = preference.as_ref() else { return INVALID_VALUE };
        if results.is_null() || count.is_null() || room < 1 {
            return INVALID_VALUE;
        }
        count.write(0);
        if let Err(status) = described(description, [a, b, c, d]) {
            return status;
        }
        let [a, b, c, d] = preference.alignment.map(u64::from);
        let algorithm = Algorithm { data: [ALGORITHM, a, b, c, d, 0, 0, 0] };
        results.write(Heuristic { algorithm, workspace: 0, state: SUCCESS, waves: 1.0, reserved: [0; 4] });
        count.write(1);
    }
    SUCCESS
}

/// One product, as it was asked for.
#[derive(Clone, Copy, Debug)]
struct Call {
    description: Description,
    layouts: [Layout; 4],
    /// Of A, B, C and D.
    addresses: [u64; 4],
    /// Where alpha and beta are, or what they are.
    scalars: Result<[f64; 2], [u64; 2]>,
}

impl Call {
    fn bytes(&self, which: usize) -> usize {
        self.layouts[which].span().unwrap_or(0) * self.layouts[which].dtype.bytes()
    }

    fn run(&self) -> Outcome {
        let Call { description, layouts: [a, b, c, d], addresses, scalars } = *self;
        let double = d.dtype == Type::F64;
        let scalar = |at: u64| -> Result<f64, status::Failure> {
            reachable(at, if double { 8 } else { 4 }, false, "a scalar of a product")?;
            // SAFETY: checked.
            Ok(unsafe { if double { *(at as *const f64) } else { f64::from(*(at as *const f32)) } })
        };
        let [alpha, beta] = match scalars {
            Ok(values) => values,
            Err([alpha, beta]) => [scalar(alpha)?, scalar(beta)?],
        };
        for (which, name) in ["A", "B", "C", "D"].iter().enumerate() {
            if which != 2 || beta != 0.0 {
                let what = format!("{name} of a product");
                reachable(addresses[which], self.bytes(which), which == 3, &what)?;
            }
        }
        let biased = description.epilogue == 4;
        if biased {
            reachable(description.bias, d.rows * d.dtype.bytes(), false, "the bias of a product")?;
        }
        let spans: Vec<(u64, u64)> =
            (0..4).map(|which| (addresses[which], addresses[which] + self.bytes(which) as u64)).collect();
        let overlap = |x: (u64, u64), y: (u64, u64)| x.0 < y.1 && y.0 < x.1;
        if overlap(spans[0], spans[3]) || overlap(spans[1], spans[3]) {
            return Err(failure(code::INVALID_VALUE, "a product whose result overlaps a factor"));
        }
        let in_place = addresses[2] == addresses[3] && c == d;
        if beta != 0.0 && !in_place && overlap(spans[2], spans[3]) {
            return Err(failure(
                code::INVALID_VALUE,
                "a product whose result overlaps what is added, elsewhere",
            ));
        }
        // SAFETY: all of it is the device's, checked above, and what is written overlaps nothing that is read.
        unsafe {
            let bytes = |address: u64, bytes: usize| std::slice::from_raw_parts(address as *const u8, bytes);
            let product = Product {
                a: Matrix { layout: a, bytes: bytes(addresses[0], self.bytes(0)) },
                b: Matrix { layout: b, bytes: bytes(addresses[1], self.bytes(1)) },
                transpose_a: description.transpose[0],
                transpose_b: description.transpose[1],
                alpha,
                beta,
                bias: biased.then(|| bytes(description.bias, d.rows * d.dtype.bytes())),
                double,
            };
            let added = (beta != 0.0 && !in_place)
                .then(|| Matrix { layout: c, bytes: bytes(addresses[2], self.bytes(2)) });
            let out = std::slice::from_raw_parts_mut(addresses[3] as *mut u8, self.bytes(3));
            product::compute(&product, added, d, out);
        }
        Ok(())
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmul(
    _handle: *mut c_void,
    description: *const Description,
    alpha: *const c_void,
    a: *const c_void,
    a_layout: *const Described,
    b: *const c_void,
    b_layout: *const Described,
    beta: *const c_void,
    c: *const c_void,
    c_layout: *const Described,
    d: *mut c_void,
    d_layout: *const Described,
    algorithm: *const Algorithm,
    _workspace: *mut c_void,
    _workspace_bytes: usize,
    on: *mut Stream,
) -> Status {
    // SAFETY: the caller's.
    let (description, layouts) =
        match unsafe { described(description, [a_layout, b_layout, c_layout, d_layout]) } {
            Ok(found) => found,
            Err(status) => return status,
        };
    let addresses = [a as u64, b as u64, c as u64, d as u64];
    // SAFETY: the caller's.
    let alignment = match unsafe { algorithm.as_ref() } {
        None => [256; 4],
        Some(Algorithm { data: [ALGORITHM, a, b, c, d, ..] }) => [*a, *b, *c, *d],
        Some(_) => return refuse(INVALID_VALUE, "an algorithm that no heuristic named"),
    };
    // Loads of 16 bytes and the copy engine are what an alignment is for.
    let aligned = addresses.iter().zip(alignment).all(|(address, least)| address % least.clamp(1, 16) == 0);
    if !aligned || alpha.is_null() || beta.is_null() {
        return refuse(
            INVALID_VALUE,
            &format!("addresses {addresses:x?} with an alignment of {alignment:?}"),
        );
    }
    let scalar = |at: *const c_void| {
        // SAFETY: a scalar of the scale type, the caller promises.
        unsafe {
            if description.scale == 1 { at.cast::<f64>().read() } else { f64::from(at.cast::<f32>().read()) }
        }
    };
    let scalars = if description.device_scalars {
        Err([alpha as u64, beta as u64])
    } else {
        Ok([scalar(alpha), scalar(beta)])
    };
    let call = Call { description, layouts, addresses, scalars };
    // SAFETY: the caller's.
    let submitted = status::answer(|| unsafe { stream(on) }.submit(Box::new(move || call.run())));
    if submitted == code::SUCCESS {
        return SUCCESS;
    }
    refuse(EXECUTION_FAILED, &status::text_of(submitted).to_string_lossy())
}
