//! The functions of `libcuda.so.1` that Landmark calls.
//!
//! Their signatures are those of `cuda.h`; a function that is not here is missing to whoever looks for it, as it would
//! be in an old driver. Everything is done when the call returns (see [`crate::stream`]); what goes wrong in a kernel
//! is the answer to its launch already.
#![allow(unsafe_code)] // Pointers from C: each is checked for null, and otherwise what the caller promises.
#![allow(missing_docs, clippy::missing_safety_doc)] // The driver's manual has both: pointers are valid for what they are for.

use crate::function::{self, Function, Shape};
use crate::machine::Memory;
use crate::memory::{self, Kind};
use crate::ptx;
use crate::status::{self, Failure, Outcome, answer, code, failure};
use crate::stream::{Stream, Work};
use crate::tensor_map::{self, Description};
use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

type Status = u32;

/// What work without a stream goes to.
static DEFAULT: Stream = Stream::new();

/// A module and its functions, whose addresses are handles.
struct Loaded {
    module: Arc<ptx::Module>,
    functions: Mutex<Vec<Arc<Function>>>,
}

type Graph = Arc<Vec<Work>>;

fn null(what: &str) -> Failure {
    failure(code::INVALID_VALUE, format!("a null pointer for {what}"))
}

/// Writes an answer through a pointer of the caller.
unsafe fn put<T>(to: *mut T, value: T, what: &str) -> Outcome {
    if to.is_null() {
        return Err(null(what));
    }
    // SAFETY: not null, and writable as the caller promises.
    unsafe { to.write(value) };
    Ok(())
}

/// What a handle stands for.
unsafe fn get<'a, T>(handle: *mut T, what: &str) -> Result<&'a T, Failure> {
    // SAFETY: null, or made by `Box::into_raw` here and not destroyed, as the caller promises.
    unsafe { handle.as_ref() }.ok_or_else(|| failure(code::INVALID_HANDLE, format!("a null {what}")))
}

/// Destroys what a handle stands for.
unsafe fn destroy<T>(handle: *mut T, what: &str) -> Outcome {
    if handle.is_null() {
        return Err(failure(code::INVALID_HANDLE, format!("a null {what}")));
    }
    // SAFETY: made by `Box::into_raw` here and destroyed once, as the caller promises.
    drop(unsafe { Box::from_raw(handle) });
    Ok(())
}

/// The stream of a handle; null is the default one.
pub(crate) unsafe fn stream<'a>(handle: *mut Stream) -> &'a Stream {
    // SAFETY: as `get`.
    unsafe { handle.as_ref() }.unwrap_or(&DEFAULT)
}

/// Fails where these bytes are not the device's.
pub(crate) fn reachable(address: u64, bytes: usize, write: bool, what: &str) -> Outcome {
    let checked = memory::snapshot().check(address, bytes, write);
    checked.map_err(|text| failure(code::INVALID_VALUE, format!("{what}: {text}")))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(flags: c_uint) -> Status {
    answer(|| if flags == 0 { Ok(()) } else { Err(failure(code::INVALID_VALUE, "cuInit with flags")) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> Status {
    // SAFETY: the caller's.
    answer(|| unsafe { put(version, 13_000, "a version") })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(status: Status, text: *mut *const c_char) -> Status {
    // SAFETY: the caller's.
    unsafe { status::write_text(status, text) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> Status {
    // SAFETY: the caller's.
    answer(|| unsafe { put(count, 1, "a count") })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> Status {
    answer(|| {
        if ordinal != 0 {
            return Err(failure(code::INVALID_DEVICE, format!("there is no device {ordinal}")));
        }
        // SAFETY: the caller's.
        unsafe { put(device, 0, "a device") }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: c_int, _device: c_int) -> Status {
    answer(|| {
        let text = c"Emulated GPU".to_bytes_with_nul();
        if name.is_null() || length < text.len() as c_int {
            return Err(failure(code::INVALID_VALUE, "no room for a name"));
        }
        // SAFETY: `length` bytes may be written, as the caller promises.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, text.len()) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, _device: c_int) -> Status {
    // SAFETY: the caller's.
    answer(|| unsafe { put(bytes, memory::CAPACITY as usize, "a size") })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, which: c_int, _device: c_int) -> Status {
    answer(|| {
        let found = match which {
            1 => 1024,                                  // threads of a block
            8 => 48 << 10,                              // shared memory of a block, unasked
            10 => 32,                                   // threads of a warp
            16 => 132,                                  // multiprocessors
            19 => 1,                                    // maps memory of the host
            38 => 50 << 20,                             // bytes of the second cache
            75 => function::capability() / 10,          // major
            76 => function::capability() % 10,          // minor
            81 => function::shared_of_multiprocessor(), // shared memory of a multiprocessor
            97 => function::largest_shared(),           // shared memory of a block, asked for
            other => {
                let text = format!("attribute {other} of a device is not emulated");
                return Err(failure(code::NOT_SUPPORTED, text));
            }
        };
        // SAFETY: the caller's.
        unsafe { put(value, found as c_int, "an attribute") }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut *mut c_void, _device: c_int) -> Status {
    // There is one context, and nothing in it: any address will do for its handle.
    // SAFETY: the caller's.
    answer(|| unsafe { put(context, (&raw const DEFAULT).cast_mut().cast(), "a context") })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(_device: c_int) -> Status {
    code::SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(_context: *mut c_void) -> Status {
    code::SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Status {
    answer(|| {
        // SAFETY: the caller's.
        unsafe {
            put(free, memory::free_bytes() as usize, "free bytes")?;
            put(total, memory::CAPACITY as usize, "all bytes")
        }
    })
}

fn allocate(bytes: usize, kind: Kind) -> Result<u64, Failure> {
    if bytes == 0 {
        return Err(failure(code::INVALID_VALUE, "an allocation of no bytes"));
    }
    let none = || failure(code::OUT_OF_MEMORY, format!("out of memory, asked for {bytes} bytes"));
    memory::allocate(bytes as u64, kind).ok_or_else(none)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(address: *mut c_ulonglong, bytes: usize) -> Status {
    // SAFETY: the caller's.
    answer(|| unsafe { put(address, allocate(bytes, Kind::Device)?, "an address") })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(address: c_ulonglong) -> Status {
    answer(|| {
        if address == 0 || memory::free(address, Kind::Device) {
            return Ok(());
        }
        Err(failure(code::INVALID_VALUE, format!("freeing {address:#x}, which is no allocation")))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(at: *mut *mut c_void, bytes: usize, _flags: c_uint) -> Status {
    // SAFETY: the caller's.
    answer(|| unsafe { put(at, allocate(bytes, Kind::Pinned)? as *mut c_void, "an address") })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeHost(at: *mut c_void) -> Status {
    answer(|| {
        if memory::free(at as u64, Kind::Pinned) {
            return Ok(());
        }
        Err(failure(code::INVALID_VALUE, format!("freeing {at:?}, which is no pinned allocation")))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostRegister_v2(at: *mut c_void, bytes: usize, _flags: c_uint) -> Status {
    answer(|| {
        if memory::register(at as u64, bytes as u64) {
            return Ok(());
        }
        Err(failure(code::INVALID_VALUE, format!("{bytes} bytes at {at:?} are registered already, or none")))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemHostUnregister(at: *mut c_void) -> Status {
    answer(|| {
        let known = memory::unregister(at as u64);
        if known { Ok(()) } else { Err(failure(code::INVALID_VALUE, format!("{at:?} was not registered"))) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostGetDevicePointer_v2(
    address: *mut c_ulonglong,
    at: *mut c_void,
    _flags: c_uint,
) -> Status {
    answer(|| {
        reachable(at as u64, 1, false, "a device's address for pinned memory")?;
        // SAFETY: the caller's.
        unsafe { put(address, at as u64, "an address") }
    })
}

/// Work that copies; which sides are the device's is checked when it runs.
fn copy(to: u64, from: u64, bytes: usize, device: [bool; 2]) -> Work {
    Box::new(move || {
        if device[0] {
            reachable(to, bytes, true, "a copy's destination")?;
        }
        if device[1] {
            reachable(from, bytes, false, "a copy's source")?;
        }
        if to == 0 || from == 0 {
            return Err(null("a copy"));
        }
        // SAFETY: checked where it is the device's, promised by the caller where it is the host's.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: c_ulonglong,
    from: *const c_void,
    bytes: usize,
    on: *mut Stream,
) -> Status {
    // SAFETY: the caller's.
    answer(|| unsafe { stream(on) }.submit(copy(to, from as u64, bytes, [true, false])))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut c_void,
    from: c_ulonglong,
    bytes: usize,
    on: *mut Stream,
) -> Status {
    // SAFETY: the caller's.
    answer(|| unsafe { stream(on) }.submit(copy(to as u64, from, bytes, [false, true])))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoDAsync_v2(
    to: c_ulonglong,
    from: c_ulonglong,
    bytes: usize,
    on: *mut Stream,
) -> Status {
    // SAFETY: the caller's.
    answer(|| unsafe { stream(on) }.submit(copy(to, from, bytes, [true, true])))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD8Async(
    at: c_ulonglong,
    value: u8,
    bytes: usize,
    on: *mut Stream,
) -> Status {
    let work = move || {
        reachable(at, bytes, true, "setting memory")?;
        // SAFETY: checked.
        unsafe { std::ptr::write_bytes(at as *mut u8, value, bytes) };
        Ok(())
    };
    // SAFETY: the caller's.
    answer(|| unsafe { stream(on) }.submit(Box::new(work)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: *mut *mut c_void, image: *const c_void) -> Status {
    answer(|| {
        if image.is_null() {
            return Err(null("an image"));
        }
        // SAFETY: PTX ends with a zero byte, and so does what can be told from PTX by its first bytes.
        let text = unsafe { CStr::from_ptr(image.cast()) }.to_bytes();
        let loaded = Loaded { module: function::load(text)?, functions: Mutex::default() };
        // SAFETY: the caller's.
        unsafe { put(module, Box::into_raw(Box::new(loaded)).cast(), "a module") }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleUnload(module: *mut c_void) -> Status {
    // SAFETY: the caller's.
    answer(|| unsafe { destroy(module.cast::<Loaded>(), "module") })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    found: *mut *mut c_void,
    module: *mut c_void,
    name: *const c_char,
) -> Status {
    answer(|| {
        if name.is_null() {
            return Err(null("a name"));
        }
        // SAFETY: the caller's: a module of ours and a string.
        let (loaded, name) = unsafe { (get(module.cast::<Loaded>(), "module")?, CStr::from_ptr(name)) };
        let function = Arc::new(Function::find(&loaded.module, &name.to_string_lossy())?);
        let handle = Arc::as_ptr(&function).cast_mut().cast();
        loaded.functions.lock().unwrap_or_else(PoisonError::into_inner).push(function);
        // SAFETY: the caller's.
        unsafe { put(found, handle, "a function") }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncSetAttribute(function: *mut c_void, which: c_int, value: c_int) -> Status {
    answer(|| {
        // SAFETY: the caller's.
        let function = unsafe { get(function.cast::<Function>(), "function")? };
        match which {
            8 => function.allow_shared(value.max(0) as u32), // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            9 => Ok(()),                                     // preferred share of the cache: a hint
            other => Err(failure(code::NOT_SUPPORTED, format!("attribute {other} of a function"))),
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    blocks: *mut c_int,
    function: *mut c_void,
    threads: c_int,
    shared: usize,
) -> Status {
    answer(|| {
        // SAFETY: the caller's.
        let function = unsafe { get(function.cast::<Function>(), "function")? };
        let found = function.blocks_per_multiprocessor(threads.max(1) as u32, shared as u32)?;
        // SAFETY: the caller's.
        unsafe { put(blocks, found as c_int, "blocks") }
    })
}

/// `CUlaunchAttribute`: a number, padding, and a union of 64 bytes.
#[repr(C)]
pub struct Attribute {
    id: u32,
    _padding: u32,
    value: [u32; 16],
}

/// `CUlaunchConfig`.
#[repr(C)]
pub struct Config {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: *mut Stream,
    attributes: *const Attribute,
    count: u32,
}

/// The bytes of a kernel's parameters, laid out.
unsafe fn parameters(kernel: &ptx::Kernel, pointers: *mut *mut c_void) -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![0; kernel.parameter_bytes];
    for (i, parameter) in kernel.parameters.iter().enumerate() {
        let range = parameter.offset..parameter.offset + parameter.bytes;
        let Some(into) = bytes.get_mut(range) else { continue };
        // SAFETY: as many pointers as the kernel has parameters, to as many bytes as each has: the caller's promise.
        unsafe {
            if pointers.is_null() || (*pointers.add(i)).is_null() {
                return Err(null("a parameter"));
            }
            std::ptr::copy_nonoverlapping((*pointers.add(i)).cast(), into.as_mut_ptr(), parameter.bytes);
        }
    }
    Ok(bytes)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernelEx(
    config: *const Config,
    function: *mut c_void,
    pointers: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Status {
    answer(|| {
        if !extra.is_null() {
            return Err(failure(code::NOT_SUPPORTED, "parameters in one buffer are not emulated"));
        }
        // SAFETY: the caller's.
        let (config, function) = unsafe {
            (get(config.cast_mut(), "configuration")?, get(function.cast::<Function>(), "function")?)
        };
        let mut shape =
            Shape { grid: config.grid, block: config.block, cluster: [1; 3], shared: config.shared };
        for i in 0..config.count as usize {
            // SAFETY: `count` of them, the caller promises.
            let attribute = unsafe { get(config.attributes.cast_mut().wrapping_add(i), "attribute")? };
            match attribute.id {
                4 => shape.cluster.copy_from_slice(&attribute.value[..3]), // CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
                0 | 6 => {} // none; may begin early, which is always allowed not to happen
                other => return Err(failure(code::NOT_SUPPORTED, format!("launch attribute {other}"))),
            }
        }
        // SAFETY: the caller's.
        let bytes = unsafe { parameters(function.kernel()?, pointers)? };
        let work = function.prepare(shape, bytes)?;
        // SAFETY: the caller's.
        unsafe { stream(config.stream) }.submit(Box::new(work))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(made: *mut *mut Stream, _flags: c_uint) -> Status {
    // SAFETY: the caller's.
    answer(|| unsafe { put(made, Box::into_raw(Box::new(Stream::new())), "a stream") })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamDestroy_v2(on: *mut Stream) -> Status {
    // SAFETY: the caller's.
    answer(|| unsafe { destroy(on, "stream") })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamSynchronize(on: *mut Stream) -> Status {
    // SAFETY: the caller's.
    answer(|| unsafe { stream(on) }.wait())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamBeginCapture_v2(on: *mut Stream, _mode: c_int) -> Status {
    // SAFETY: the caller's.
    answer(|| unsafe { get(on, "stream to capture") }?.begin())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamEndCapture(on: *mut Stream, graph: *mut *mut Graph) -> Status {
    answer(|| {
        // SAFETY: the caller's.
        unsafe {
            let list = get(on, "captured stream")?.end()?;
            put(graph, Box::into_raw(Box::new(Arc::new(list))), "a graph")
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphInstantiateWithFlags(
    made: *mut *mut Graph,
    graph: *mut Graph,
    _flags: c_ulonglong,
) -> Status {
    // SAFETY: the caller's.
    answer(|| unsafe { put(made, Box::into_raw(Box::new(get(graph, "graph")?.clone())), "a graph") })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphDestroy(graph: *mut Graph) -> Status {
    // SAFETY: the caller's.
    answer(|| unsafe { destroy(graph, "graph") })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphExecDestroy(graph: *mut Graph) -> Status {
    // SAFETY: the caller's.
    answer(|| unsafe { destroy(graph, "graph") })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphLaunch(graph: *mut Graph, on: *mut Stream) -> Status {
    answer(|| {
        // SAFETY: the caller's.
        let (graph, stream) = unsafe { (get(graph, "graph")?, stream(on)) };
        stream.wait()?;
        graph.iter().try_for_each(|work| work())
    })
}

/// An event: when it was recorded.
#[derive(Debug, Default)]
pub struct Event(Mutex<Option<Instant>>);

impl Event {
    fn time(&self) -> Result<Instant, Failure> {
        let time = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        time.ok_or_else(|| failure(code::INVALID_HANDLE, "an event that was not recorded"))
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: *mut *mut Event, _flags: c_uint) -> Status {
    // SAFETY: the caller's.
    answer(|| unsafe { put(event, Box::into_raw(Box::default()), "an event") })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventDestroy_v2(event: *mut Event) -> Status {
    // SAFETY: the caller's.
    answer(|| unsafe { destroy(event, "event") })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventRecord(event: *mut Event, _on: *mut Stream) -> Status {
    answer(|| {
        // SAFETY: the caller's.
        let event = unsafe { get(event, "event")? };
        *event.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventSynchronize(event: *mut Event) -> Status {
    // SAFETY: the caller's.
    answer(|| unsafe { get(event, "event") }.map(|_| ()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(time: *mut f32, from: *mut Event, to: *mut Event) -> Status {
    answer(|| {
        // SAFETY: the caller's.
        unsafe {
            let passed = get(to, "event")?.time()?.saturating_duration_since(get(from, "event")?.time()?);
            put(time, passed.as_secs_f32() * 1e3, "a time")
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuTensorMapEncodeTiled(
    map: *mut [u64; tensor_map::WORDS],
    data_type: c_uint,
    rank: c_uint,
    address: *mut c_void,
    extents: *const u64,
    strides: *const u64,
    box_: *const u32,
    steps: *const u32,
    interleave: c_uint,
    swizzle: c_uint,
    _promotion: c_uint,
    fill: c_uint,
) -> Status {
    answer(|| {
        let rank = rank as usize;
        if !(1..=5).contains(&rank) {
            return Err(failure(code::INVALID_VALUE, format!("a tensor map of rank {rank}")));
        }
        if extents.is_null() || box_.is_null() || steps.is_null() || (strides.is_null() && rank > 1) {
            return Err(null("a list of a tensor map"));
        }
        // SAFETY: lists of `rank` elements (one fewer of strides), the caller promises.
        let given = unsafe {
            Description {
                data_type,
                address: address as u64,
                extents: std::slice::from_raw_parts(extents, rank),
                strides: if rank > 1 { std::slice::from_raw_parts(strides, rank - 1) } else { &[] },
                box_: std::slice::from_raw_parts(box_, rank),
                steps: std::slice::from_raw_parts(steps, rank),
                interleave,
                swizzle,
                fill,
            }
        };
        let words = tensor_map::encode(&given).map_err(|text| failure(code::INVALID_VALUE, text))?;
        if !(map as usize).is_multiple_of(64) {
            return Err(failure(code::INVALID_VALUE, "a tensor map's own address is a multiple of 64"));
        }
        // SAFETY: the caller's.
        unsafe { put(map, words, "a tensor map") }
    })
}
