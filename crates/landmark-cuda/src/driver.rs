//! The door to NVIDIA's driver: device, memory, modules, launches, graphs.
//!
//! A thin layer over cudarc's `sys`, since cudarc's own safe layer allocates per tensor, tracks events per slice and
//! panics where a library is missing. Here everything runs on one stream of one device in its primary context, memory
//! is a handful of [`Buffer`]s, and whatever the driver refuses is an [`Error`] in words.
#![allow(unsafe_code)] // Calls of the driver. Addresses that kernels get are made in `plan` from buffers it holds.

use crate::libraries;
use cudarc::driver::sys::{self, CUresult};
use landmark_core::{Error, Result};
use std::ffi::{CStr, c_void};
use std::sync::Arc;

/// The oldest driver that has what is used here: that of CUDA 12.0.
const OLDEST_DRIVER: i32 = 12_000;

/// Turns an answer of the driver into a result; `what` was being done.
pub(crate) fn check(status: CUresult, what: &str) -> Result<()> {
    if status == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text = std::ptr::null();
    // SAFETY: the driver answers with a static string or with an error, which leaves null.
    let text = unsafe {
        match sys::cuGetErrorString(status, &mut text) {
            CUresult::CUDA_SUCCESS if !text.is_null() => CStr::from_ptr(text).to_string_lossy().into_owned(),
            _ => "unknown error".into(),
        }
    };
    Err(Error::Device(format!("CUDA, {what}: {text} ({})", status as u32)))
}

/// What is known of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Compute capability, 90 for 9.0.
    pub capability: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory that a block of threads can have.
    pub shared_per_block: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Version of the driver, 13000 for 13.0.
    pub driver: u32,
}

/// Loads and initialises the driver.
fn initialise() -> Result<i32> {
    if libraries::driver().is_none() {
        return Err(Error::Device(
            "no NVIDIA driver was found (libcuda.so.1): install the driver of your GPU, or use --device cpu"
                .into(),
        ));
    }
    let mut version = 0;
    // SAFETY: both may be called at any time, and the library is there.
    unsafe {
        check(sys::cuDriverGetVersion(&mut version), "asking the driver for its version")?;
        if version < OLDEST_DRIVER {
            return Err(Error::Device(format!(
                "the NVIDIA driver is too old: it serves CUDA {}.{}, and 12.0 or later is needed. Update the driver, or \
                 use --device cpu",
                version / 1000,
                version % 1000 / 10
            )));
        }
        check(sys::cuInit(0), "initialising the driver")?;
    }
    Ok(version)
}

/// How many devices there are.
///
/// # Errors
/// No driver, or one too old.
pub fn count() -> Result<usize> {
    initialise()?;
    let mut count = 0;
    // SAFETY: an integer to write.
    unsafe { check(sys::cuDeviceGetCount(&mut count), "counting devices")? };
    Ok(count as usize)
}

/// What is known of a device.
///
/// # Errors
/// No driver, no such device, or one that is too old.
pub fn info(ordinal: usize) -> Result<DeviceInfo> {
    Ok(Device::open(ordinal)?.info.clone())
}

/// Bytes of a device's memory that are in use, by this process or others.
///
/// # Errors
/// As [`info`].
pub fn memory_in_use(ordinal: usize) -> Result<u64> {
    let device = Device::open(ordinal)?;
    Ok(device.info.memory.saturating_sub(device.free_memory()?))
}

/// A device, with the one stream on which everything happens.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) info: DeviceInfo,
    handle: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
}

// SAFETY: contexts and streams of the driver may be used from any thread; `enter` makes the context current first.
unsafe impl Send for Device {}
// SAFETY: as above; the driver locks for itself.
unsafe impl Sync for Device {}

impl Device {
    pub(crate) fn open(ordinal: usize) -> Result<Arc<Device>> {
        let driver = initialise()?;
        let (mut handle, mut name, mut memory) = (0, [0_u8; 256], 0);
        let (mut context, mut stream) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: every pointer is to a local that outlives its call; the context is released in `drop`.
        let (info, context, stream) = unsafe {
            let found = count()?;
            if ordinal >= found {
                return Err(Error::Device(format!("there is no CUDA device {ordinal}: {found} found")));
            }
            check(sys::cuDeviceGet(&mut handle, ordinal as i32), "opening the device")?;
            check(sys::cuDeviceGetName(name.as_mut_ptr().cast(), 255, handle), "asking for a name")?;
            check(sys::cuDeviceTotalMem_v2(&mut memory, handle), "asking for the size of memory")?;
            let attribute = |which| {
                let mut value = 0;
                check(sys::cuDeviceGetAttribute(&mut value, which, handle), "asking for an attribute")
                    .map(|()| value as u32)
            };
            use sys::CUdevice_attribute_enum as A;
            let major = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
            let minor = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
            let info = DeviceInfo {
                ordinal,
                name: CStr::from_bytes_until_nul(&name).unwrap_or_default().to_string_lossy().into_owned(),
                capability: major * 10 + minor,
                multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
                shared_per_block: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
                memory: memory as u64,
                driver: driver as u32,
            };
            if info.capability < 80 {
                return Err(Error::Device(format!(
                    "{} has compute capability {major}.{minor}, and 8.0 (Ampere) or later is needed: use --device cpu",
                    info.name
                )));
            }
            check(sys::cuDevicePrimaryCtxRetain(&mut context, handle), "making a context")?;
            check(sys::cuCtxSetCurrent(context), "entering the context")?;
            let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
            check(sys::cuStreamCreate(&mut stream, flags), "making a stream")?;
            (info, context, stream)
        };
        Ok(Arc::new(Device { info, handle, context, stream }))
    }

    /// Makes the context current on this thread: first of all in every call from outside.
    pub(crate) fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as the device.
        unsafe { check(sys::cuCtxSetCurrent(self.context), "entering the context") }
    }

    pub(crate) fn stream(&self) -> sys::CUstream {
        self.stream
    }

    /// Waits for everything launched so far.
    pub(crate) fn synchronise(&self) -> Result<()> {
        // SAFETY: the stream lives as long as the device.
        unsafe { check(sys::cuStreamSynchronize(self.stream), "waiting for the device") }
    }

    /// Free bytes of memory.
    pub(crate) fn free_memory(&self) -> Result<u64> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: two integers to write.
        unsafe { check(sys::cuMemGetInfo_v2(&mut free, &mut total), "asking for free memory")? };
        Ok(free as u64)
    }

    /// Sets bytes to zero, in the stream's order.
    pub(crate) fn zero(&self, address: u64, bytes: u64) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's range lies in a buffer that it holds.
        unsafe { check(sys::cuMemsetD8Async(address, 0, bytes as usize, self.stream), "clearing memory") }
    }

    /// Copies to the device, in the stream's order. The bytes were taken when this returns.
    pub(crate) fn upload(&self, address: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: pageable memory is staged before the call returns; the caller's range lies in a buffer it holds.
        unsafe {
            let from = bytes.as_ptr().cast();
            check(sys::cuMemcpyHtoDAsync_v2(address, from, bytes.len(), self.stream), "copying to the device")
        }
    }

    /// Copies from the device, after everything launched so far, and waits.
    pub(crate) fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        if !bytes.is_empty() {
            // SAFETY: `bytes` is not touched before the stream has been waited for.
            unsafe {
                let to = bytes.as_mut_ptr().cast();
                check(
                    sys::cuMemcpyDtoHAsync_v2(to, address, bytes.len(), self.stream),
                    "copying from the device",
                )?;
            }
        }
        self.synchronise()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: nobody else holds the stream; a failure at the end has nobody to tell.
        unsafe {
            let _ = sys::cuCtxSetCurrent(self.context);
            let _ = sys::cuStreamDestroy_v2(self.stream);
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.handle);
        }
    }
}

/// Memory of the device.
#[derive(Debug)]
pub(crate) struct Buffer {
    device: Arc<Device>,
    pub(crate) address: u64,
    pub(crate) bytes: u64,
}

impl Buffer {
    /// Memory for `what`, as the message says when there is not enough.
    pub(crate) fn new(device: &Arc<Device>, bytes: u64, what: &str) -> Result<Buffer> {
        let bytes = bytes.max(256);
        let mut address = 0;
        // SAFETY: the address is freed in `drop`.
        let status = unsafe { sys::cuMemAlloc_v2(&mut address, bytes as usize) };
        if status == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            let free = device.free_memory().unwrap_or(0);
            return Err(Error::OutOfMemory {
                needed: bytes,
                what: format!("{what} ({:.1} GiB are free)", free as f64 / f64::from(1 << 30)),
            });
        }
        check(status, "allocating memory")?;
        Ok(Buffer { device: device.clone(), address, bytes })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: whoever launched work on it waits for the stream, which frees do as well.
        unsafe {
            let _ = sys::cuCtxSetCurrent(self.device.context);
            let _ = sys::cuMemFree_v2(self.address);
        }
    }
}

/// Memory of the host that the device reaches by itself, pinned and mapped.
#[derive(Debug)]
pub(crate) struct Pinned {
    device: Arc<Device>,
    host: *mut u8,
    /// The address by which kernels know it.
    pub(crate) address: u64,
    pub(crate) bytes: usize,
}

// SAFETY: plain memory, given out as slices under the borrow of its owner.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Zeroed memory for `what`.
    pub(crate) fn new(device: &Arc<Device>, bytes: usize, what: &str) -> Result<Pinned> {
        let (mut host, mut address) = (std::ptr::null_mut::<c_void>(), 0);
        // SAFETY: freed in `drop`; zeroed before anybody sees it.
        unsafe {
            let status = sys::cuMemHostAlloc(&mut host, bytes.max(1), sys::CU_MEMHOSTALLOC_DEVICEMAP);
            if status == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                return Err(Error::OutOfMemory {
                    needed: bytes as u64,
                    what: format!("{what} (pinned host memory)"),
                });
            }
            check(status, "allocating pinned memory")?;
            let mut pinned = Pinned { device: device.clone(), host: host.cast(), address: 0, bytes };
            check(sys::cuMemHostGetDevicePointer_v2(&mut address, host, 0), "mapping pinned memory")?;
            pinned.address = address;
            std::ptr::write_bytes(pinned.host, 0, bytes);
            Ok(pinned)
        }
    }

    /// The bytes. The caller knows that no kernel writes them now.
    pub(crate) fn slice(&self) -> &[u8] {
        // SAFETY: allocated with this length and zeroed.
        unsafe { std::slice::from_raw_parts(self.host, self.bytes) }
    }

    /// Writes bytes through a shared handle. The caller knows that nobody reads or writes them now: no kernel, since it
    /// has waited for the device, and no slice, since it holds the arena for writing.
    pub(crate) fn write(&self, first: usize, bytes: &[u8]) {
        assert!(first + bytes.len() <= self.bytes, "a write within pinned memory");
        // SAFETY: within the allocation, as asserted; nobody else touches it now.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.host.add(first), bytes.len()) }
    }

    /// The bytes, to write. The caller knows that no kernel reads them now.
    pub(crate) fn slice_mut(&mut self) -> &mut [u8] {
        // SAFETY: as `slice`, and borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.host, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: freed once; the driver waits for work that uses it.
        unsafe {
            let _ = sys::cuCtxSetCurrent(self.device.context);
            let _ = sys::cuMemFreeHost(self.host.cast());
        }
    }
}

/// A loaded CUBIN.
#[derive(Debug)]
pub(crate) struct Module {
    device: Arc<Device>,
    handle: sys::CUmodule,
}

// SAFETY: modules and functions are handles that any thread may use.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    pub(crate) fn load(device: &Arc<Device>, cubin: &[u8], name: &str) -> Result<Arc<Module>> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: a CUBIN made by NVRTC for this device, whose checksum was verified if it came from a file.
        unsafe {
            check(sys::cuModuleLoadData(&mut handle, cubin.as_ptr().cast()), &format!("loading {name}"))?;
        }
        Ok(Arc::new(Module { device: device.clone(), handle }))
    }

    pub(crate) fn function(self: &Arc<Self>, name: &'static str) -> Result<Function> {
        let text = std::ffi::CString::new(name).map_err(|_| Error::Device("a zero byte in a name".into()))?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the module is loaded, and `Function` holds it.
        unsafe {
            check(
                sys::cuModuleGetFunction(&mut handle, self.handle, text.as_ptr()),
                &format!("finding kernel `{name}`"),
            )?;
        }
        Ok(Function { module: self.clone(), handle, name })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: no `Function` of it is left.
        unsafe {
            let _ = sys::cuCtxSetCurrent(self.device.context);
            let _ = sys::cuModuleUnload(self.handle);
        }
    }
}

/// A kernel.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    #[expect(dead_code, reason = "holds the code")]
    module: Arc<Module>,
    handle: sys::CUfunction,
    pub(crate) name: &'static str,
}

// SAFETY: a handle that any thread may use.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    /// Allows `bytes` of dynamic shared memory.
    pub(crate) fn allow_shared(&self, bytes: u32) -> Result<()> {
        if bytes <= 48 << 10 {
            return Ok(());
        }
        let which = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is loaded.
        unsafe {
            let what = format!("giving `{}` {bytes} bytes of shared memory", self.name);
            check(sys::cuFuncSetAttribute(self.handle, which, bytes as i32), &what)
        }
    }
}

/// A description of a tensor for the copy engine of Hopper; `const __grid_constant__ TensorMap` in a kernel.
#[derive(Clone, Copy)]
pub(crate) struct TensorMap(pub(crate) sys::CUtensorMap);

impl std::fmt::Debug for TensorMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TensorMap")
    }
}

/// What a [`TensorMap`] describes: a box of elements moved at a time out of a tensor with strides.
#[derive(Clone, Debug)]
pub(crate) struct TensorMapShape<'a> {
    pub(crate) dtype: landmark_core::DType,
    pub(crate) address: u64,
    /// Extents, the innermost (dense) first.
    pub(crate) extents: &'a [u64],
    /// Bytes from one to the next, of every extent but the innermost; multiples of 16.
    pub(crate) strides: &'a [u64],
    /// Elements of the box, innermost first.
    pub(crate) box_: &'a [u32],
    /// Bytes over which rows are swizzled in shared memory: 0, 32, 64 or 128.
    pub(crate) swizzle: u32,
}

impl TensorMap {
    pub(crate) fn new(shape: &TensorMapShape<'_>) -> Result<TensorMap> {
        use landmark_core::DType;
        use sys::CUtensorMapDataType_enum as Type;
        use sys::CUtensorMapSwizzle_enum as Swizzle;
        let dtype = match shape.dtype {
            DType::F32 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            DType::Bf16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            DType::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            DType::U32 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT32,
            DType::I32 => Type::CU_TENSOR_MAP_DATA_TYPE_INT32,
        };
        let swizzle = match shape.swizzle {
            0 => Swizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
            32 => Swizzle::CU_TENSOR_MAP_SWIZZLE_32B,
            64 => Swizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            128 => Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            other => return Err(Error::Device(format!("there is no swizzle over {other} bytes"))),
        };
        let rank = shape.extents.len();
        if rank == 0 || shape.strides.len() + 1 != rank || shape.box_.len() != rank {
            return Err(Error::Device(format!("a tensor map with ranks that differ: {shape:?}")));
        }
        let ones = [1_u32; 5];
        let mut map = std::mem::MaybeUninit::<sys::CUtensorMap>::zeroed();
        // SAFETY: every list has `rank` elements (one fewer for strides); the driver fills the map.
        unsafe {
            let status = sys::cuTensorMapEncodeTiled(
                map.as_mut_ptr(),
                dtype,
                rank as u32,
                shape.address as *mut c_void,
                shape.extents.as_ptr(),
                shape.strides.as_ptr(),
                shape.box_.as_ptr(),
                ones.as_ptr(),
                sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            );
            check(status, &format!("describing a tensor: {shape:?}"))?;
            Ok(TensorMap(map.assume_init()))
        }
    }
}

/// An argument of a kernel.
#[derive(Clone, Debug)]
pub(crate) enum Arg {
    U64(u64),
    U32(u32),
    I32(i32),
    F32(f32),
    Map(TensorMap),
    /// A struct taken by value, of members of at most 8 bytes.
    Struct(Arc<[u64]>),
}

macro_rules! from {
    ($($type:ty => $variant:ident),*) => { $(
        impl From<$type> for Arg {
            fn from(value: $type) -> Self { Arg::$variant(value) }
        }
    )* };
}
from!(u64 => U64, u32 => U32, i32 => I32, f32 => F32, TensorMap => Map, Arc<[u64]> => Struct);

/// One launch of a kernel.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) function: Function,
    pub(crate) grid: [u32; 3],
    pub(crate) block: u32,
    pub(crate) shared: u32,
    /// May begin before the launch ahead of it has ended: the kernel waits by `griddepcontrol.wait`.
    pub(crate) dependent: bool,
    /// Blocks of a cluster, along the grid's first axis; 1: no clusters.
    pub(crate) cluster: u32,
    pub(crate) args: Vec<Arg>,
}

impl Launch {
    pub(crate) fn issue(&self, device: &Device) -> Result<()> {
        // SAFETY: the device's own stream is alive.
        unsafe { self.issue_on(device.stream) }
    }

    /// The same on another stream of the primary context.
    ///
    /// # Safety
    /// The stream is alive.
    pub(crate) unsafe fn issue_on(&self, stream: sys::CUstream) -> Result<()> {
        let mut pointers: Vec<*mut c_void> = self
            .args
            .iter()
            .map(|arg| match arg {
                Arg::U64(x) => (x as *const u64).cast_mut().cast(),
                Arg::U32(x) => (x as *const u32).cast_mut().cast(),
                Arg::I32(x) => (x as *const i32).cast_mut().cast(),
                Arg::F32(x) => (x as *const f32).cast_mut().cast(),
                Arg::Map(x) => (&raw const x.0).cast_mut().cast(),
                Arg::Struct(x) => x.as_ptr().cast_mut().cast(),
            })
            .collect();
        // SAFETY: all bits zero are a valid value of this plain C struct.
        let mut attributes: [sys::CUlaunchAttribute; 2] = unsafe { std::mem::zeroed() };
        let mut count = 0;
        if self.dependent {
            attributes[count].id =
                sys::CUlaunchAttributeID_enum::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            attributes[count].value.programmaticStreamSerializationAllowed = 1;
            count += 1;
        }
        if self.cluster > 1 {
            attributes[count].id = sys::CUlaunchAttributeID_enum::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
            attributes[count].value.clusterDim =
                sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: self.cluster, y: 1, z: 1 };
            count += 1;
        }
        let config = sys::CUlaunchConfig {
            gridDimX: self.grid[0],
            gridDimY: self.grid[1],
            gridDimZ: self.grid[2],
            blockDimX: self.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: self.shared,
            hStream: stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: count as u32,
        };
        // SAFETY: the launcher gave the arguments that the kernel takes, which the driver copies during the call.
        let status = unsafe {
            sys::cuLaunchKernelEx(&config, self.function.handle, pointers.as_mut_ptr(), std::ptr::null_mut())
        };
        if status == CUresult::CUDA_SUCCESS {
            return Ok(());
        }
        let Launch { grid, block, shared, .. } = self;
        let name = self.function.name;
        check(status, &format!("launching `{name}` with grid {grid:?}, block {block}, {shared} bytes shared"))
    }
}

/// A recorded list of launches, replayed with one call.
#[derive(Debug)]
pub(crate) struct Graph {
    device: Arc<Device>,
    executable: sys::CUgraphExec,
}

// SAFETY: a handle that any thread may use, one at a time; `Graph` is launched through `&mut` of its plan.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `issue` launches on the device's stream.
    pub(crate) fn capture(device: &Arc<Device>, issue: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let (mut graph, mut executable) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: capture is ended in every case; the graph is destroyed once it was instantiated.
        unsafe {
            let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            check(sys::cuStreamBeginCapture_v2(device.stream, mode), "beginning a graph")?;
            let issued = issue();
            let ended = check(sys::cuStreamEndCapture(device.stream, &mut graph), "ending a graph");
            let made = issued.and(ended).and_then(|()| {
                check(sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0), "making a graph")
            });
            if !graph.is_null() {
                let _ = sys::cuGraphDestroy(graph);
            }
            made?;
        }
        Ok(Graph { device: device.clone(), executable })
    }

    pub(crate) fn launch(&mut self) -> Result<()> {
        // SAFETY: instantiated, and everything that it touches is held by its plan.
        unsafe { check(sys::cuGraphLaunch(self.executable, self.device.stream), "launching a graph") }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: destroyed once; a launch in flight keeps what it needs.
        unsafe {
            let _ = sys::cuCtxSetCurrent(self.device.context);
            let _ = sys::cuGraphExecDestroy(self.executable);
        }
    }
}

/// A point in the stream.
#[derive(Debug)]
pub(crate) struct Event(sys::CUevent);

// SAFETY: a handle that any thread may use.
unsafe impl Send for Event {}
// SAFETY: as above, and several at once.
unsafe impl Sync for Event {}

impl Event {
    /// One to wait for.
    pub(crate) fn new() -> Result<Event> {
        Self::with(sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING)
    }

    /// One that knows its time.
    pub(crate) fn timed() -> Result<Event> {
        Self::with(sys::CUevent_flags_enum::CU_EVENT_DEFAULT)
    }

    fn with(flags: sys::CUevent_flags_enum) -> Result<Event> {
        let mut event = std::ptr::null_mut();
        // SAFETY: destroyed in `drop`.
        unsafe { check(sys::cuEventCreate(&mut event, flags as u32), "making an event")? };
        Ok(Event(event))
    }

    pub(crate) fn record(&self, device: &Device) -> Result<()> {
        // SAFETY: both are alive.
        unsafe { check(sys::cuEventRecord(self.0, device.stream), "recording an event") }
    }

    pub(crate) fn wait(&self) -> Result<()> {
        // SAFETY: alive.
        unsafe { check(sys::cuEventSynchronize(self.0), "waiting for an event") }
    }

    /// Milliseconds from `earlier` to this; both have passed.
    pub(crate) fn since(&self, earlier: &Event) -> Result<f32> {
        let mut time = 0.0;
        type Elapsed = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> CUresult;
        // SAFETY: both are alive; the signature is that of cuda.h. Asked for by its first name, since the second came
        // with the drivers of 12.8.
        unsafe {
            let elapsed =
                libraries::driver().and_then(|cuda| cuda.get::<Elapsed>(b"cuEventElapsedTime\0").ok());
            let elapsed = elapsed.ok_or_else(|| Error::Device("the driver measures no times".into()))?;
            check(elapsed(&mut time, earlier.0, self.0), "reading a time")?;
        }
        Ok(time)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: destroyed once.
        unsafe {
            let _ = sys::cuEventDestroy_v2(self.0);
        }
    }
}
