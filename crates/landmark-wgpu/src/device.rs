//! What a device, its arenas and its plans share: the queue, compiled pipelines, storage for scratch tensors, and
//! what went wrong.
//!
//! wgpu tells of most failures later, or to a handler. The handler keeps the first; whatever is asked of the backend
//! next returns it. Running out of memory is caught by a scope around each allocation, which on a native device
//! answers at once and in a browser when it is waited for.

use crate::adapter::{AdapterInfo, Options};
use crate::kernel::Entry;
use landmark_core::quantize::Bits;
use landmark_core::{Error, Result};
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// An index that some kernel checks, for the message.
#[derive(Debug, PartialEq)]
struct IndexCheck {
    op: &'static str,
    tensor: String,
    limit: usize,
}

/// Words of the buffer in which kernels report indices: one a check.
pub(crate) const CHECKS: usize = 64;

/// The answer of a scope. A native device may be used from any thread, a browser's belongs to one.
#[cfg(not(target_arch = "wasm32"))]
type Answer = Pin<Box<dyn Future<Output = Option<wgpu::Error>> + Send>>;
#[cfg(target_arch = "wasm32")]
type Answer = Pin<Box<dyn Future<Output = Option<wgpu::Error>>>>;

/// A scope that has not answered yet.
struct Scope {
    bytes: u64,
    what: String,
    answer: Answer,
}

/// A pipeline with the layout of its bindings.
#[derive(Clone, Debug)]
pub(crate) struct Pipeline {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
}

/// See the module.
pub(crate) struct Shared {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) info: AdapterInfo,
    pub(crate) limits: wgpu::Limits,
    pub(crate) features: wgpu::Features,
    largest_binding: u64,
    /// How matrices of weights are kept, where that is not how they are written.
    pub(crate) weights: Option<Bits>,
    /// Whether kernels use no workgroup memory and no barriers.
    pub(crate) works_alone: bool,
    /// Whether kernels for matrix units may be written for none.
    pub(crate) emulates_units: bool,
    /// One word a check: the largest index out of range, plus 1.
    pub(crate) status: wgpu::Buffer,
    checks: Mutex<Vec<IndexCheck>>,
    failure: Arc<Mutex<Option<Error>>>,
    scopes: Mutex<Vec<Scope>>,
    pipelines: Mutex<HashMap<String, Pipeline>>,
    pool: Mutex<Vec<wgpu::Buffer>>,
    staging: Mutex<Vec<wgpu::Buffer>>,
    /// Bytes written since the last submission.
    pub(crate) unsubmitted: Mutex<u64>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("info", &self.info).finish_non_exhaustive()
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sizes of bindings and copies are multiples of this.
pub(crate) fn padded(bytes: u64) -> u64 {
    bytes.next_multiple_of(16).max(16)
}

const STORAGE: wgpu::BufferUsages = wgpu::BufferUsages::STORAGE
    .union(wgpu::BufferUsages::UNIFORM)
    .union(wgpu::BufferUsages::COPY_SRC)
    .union(wgpu::BufferUsages::COPY_DST);

impl Shared {
    pub(crate) fn new(
        device: wgpu::Device,
        queue: wgpu::Queue,
        info: AdapterInfo,
        options: &Options,
    ) -> Self {
        let failure: Arc<Mutex<Option<Error>>> = Arc::default();
        let keep = {
            let failure = failure.clone();
            move |error: Error| {
                lock(&failure).get_or_insert(error);
            }
        };
        device.on_uncaptured_error(Arc::new({
            let keep = keep.clone();
            move |error: wgpu::Error| keep(translate(&error, 0, "the device"))
        }));
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                keep(Error::Device(format!(
                    "the device was lost: {message}; start again, or use --device cpu"
                )));
            } else {
                keep(Error::Device("the device was lost: it was destroyed".into()));
            }
        });
        let (limits, features) = (device.limits(), device.features());
        let status = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("status"),
            size: 4 * CHECKS as u64,
            usage: STORAGE,
            mapped_at_creation: false,
        });
        let largest = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        let largest_binding = options.largest_binding.unwrap_or(u64::MAX).min(largest) / 256 * 256;
        let works_alone = options.threads_alone.unwrap_or(info.is_software);
        Shared {
            device,
            queue,
            info,
            limits,
            features,
            largest_binding,
            weights: options.weights,
            works_alone,
            emulates_units: options.emulate_matrix_units,
            status,
            checks: Mutex::default(),
            failure,
            scopes: Mutex::default(),
            pipelines: Mutex::default(),
            pool: Mutex::default(),
            staging: Mutex::default(),
            unsubmitted: Mutex::new(0),
        }
    }

    /// Bytes of the largest binding.
    pub(crate) fn largest_binding(&self) -> u64 {
        self.largest_binding
    }

    /// What went wrong so far.
    pub(crate) fn check(&self) -> Result<()> {
        match &*lock(&self.failure) {
            None => Ok(()),
            Some(Error::OutOfMemory { needed, what }) => {
                Err(Error::OutOfMemory { needed: *needed, what: what.clone() })
            }
            Some(error) => Err(Error::Device(error.to_string())),
        }
    }

    /// A zeroed buffer.
    pub(crate) fn buffer(&self, bytes: u64, what: &str) -> Result<wgpu::Buffer> {
        let size = padded(bytes);
        if size > self.limits.max_buffer_size || size > self.limits.max_storage_buffer_binding_size {
            let (limit, has) = if size > self.limits.max_buffer_size {
                ("maxBufferSize", self.limits.max_buffer_size)
            } else {
                ("maxStorageBufferBindingSize", self.limits.max_storage_buffer_binding_size)
            };
            return Err(Error::Device(format!(
                "{} is too small: {limit} is {has} bytes, but {size} are needed for {what}",
                self.info.name
            )));
        }
        self.scoped(size, what, || {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(what),
                size,
                usage: STORAGE,
                mapped_at_creation: false,
            })
        })
    }

    /// Calls `make`, and turns running out of memory into an error: at once where the device answers at once, else
    /// when it is next waited for.
    fn scoped<T>(&self, bytes: u64, what: &str, make: impl FnOnce() -> T) -> Result<T> {
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let made = make();
        let mut answer: Answer = Box::pin(scope.pop());
        match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(None) => Ok(made),
            Poll::Ready(Some(error)) => Err(translate(&error, bytes, what)),
            Poll::Pending => {
                lock(&self.scopes).push(Scope { bytes, what: what.to_owned(), answer });
                Ok(made)
            }
        }
    }

    /// Waits for the scopes that have not answered.
    pub(crate) async fn settle(&self) -> Result<()> {
        let scopes = std::mem::take(&mut *lock(&self.scopes));
        for scope in scopes {
            if let Some(error) = scope.answer.await {
                let error = translate(&error, scope.bytes, &scope.what);
                lock(&self.failure).get_or_insert(error);
            }
        }
        self.check()
    }

    /// The number of a check, or none where there are too many to tell apart.
    pub(crate) fn index_check(&self, op: &'static str, tensor: String, limit: usize) -> u32 {
        let (mut checks, check) = (lock(&self.checks), IndexCheck { op, tensor, limit });
        let at = checks.iter().position(|c| *c == check).unwrap_or_else(|| {
            if checks.len() < CHECKS {
                checks.push(check);
            }
            checks.len() - 1
        });
        at as u32
    }

    /// What the words of the status buffer say; cleared where they say something.
    pub(crate) fn report(&self, words: &[u8]) -> Result<()> {
        let values = words.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]]));
        let Some((at, value)) = values.enumerate().find(|(_, value)| *value != 0) else { return Ok(()) };
        self.queue.write_buffer(&self.status, 0, &[0; 4 * CHECKS]);
        match lock(&self.checks).get(at) {
            Some(check) => Err(Error::Index {
                op: check.op,
                tensor: check.tensor.clone(),
                index: u64::from(value) - 1,
                limit: check.limit,
            }),
            None => Err(Error::Device(format!("a kernel reported {value}"))),
        }
    }

    /// The pipeline of a shader, compiled when it is first asked for.
    pub(crate) fn pipeline(&self, name: &str, source: &str, entries: &[Entry]) -> Result<Pipeline> {
        if let Some(pipeline) = lock(&self.pipelines).get(source) {
            return Ok(pipeline.clone());
        }
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let made = self.compile(name, source, entries);
        let mut answer: Answer = Box::pin(scope.pop());
        match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(error)) => return Err(Error::Device(format!("shader {name}: {error}"))),
            Poll::Ready(None) => {}
            Poll::Pending => {
                lock(&self.scopes).push(Scope { bytes: 0, what: format!("shader {name}"), answer });
            }
        }
        lock(&self.pipelines).insert(source.to_owned(), made.clone());
        Ok(made)
    }

    fn compile(&self, name: &str, source: &str, entries: &[Entry]) -> Pipeline {
        let entries: Vec<wgpu::BindGroupLayoutEntry> =
            entries.iter().enumerate().map(|(i, entry)| entry.layout(i as u32)).collect();
        let descriptor = wgpu::BindGroupLayoutDescriptor { label: Some(name), entries: &entries };
        let layout = self.device.create_bind_group_layout(&descriptor);
        let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(name),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let module = wgpu::ShaderModuleDescriptor {
            label: Some(name),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        };
        // wgpu counts the turns of every loop, lest one be endless, and drivers unroll no loop that also ends by a count:
        // without that, LLaMA 7B decodes a fifth faster. Indices stay checked. (A browser decides for itself.)
        let checks = wgpu::ShaderRuntimeChecks { force_loop_bounding: false, ..Default::default() };
        // SAFETY: the condition is that no loop is endless. Shaders are this crate's own text, and each of their loops
        // moves a number on towards a bound in every turn.
        #[allow(unsafe_code)]
        let module = unsafe { self.device.create_shader_module_trusted(module, checks) };
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                // Kernels write workgroup memory before they read it.
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        });
        Pipeline { pipeline, layout }
    }

    /// Sources of all shaders compiled so far.
    pub(crate) fn sources(&self) -> Vec<String> {
        lock(&self.pipelines).keys().cloned().collect()
    }

    /// Buffers of at least these sizes for scratch, each another one. Plans share them: programs run one after the
    /// other, and none expects to find what it left there.
    pub(crate) fn scratch(&self, sizes: &[u64], program: &str) -> Result<Vec<wgpu::Buffer>> {
        let mut pool = lock(&self.pool);
        // The largest get the largest.
        let mut order: Vec<usize> = (0..sizes.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(sizes[i]));
        pool.sort_by_key(|buffer| std::cmp::Reverse(buffer.size()));
        let mut given: Vec<Option<wgpu::Buffer>> = vec![None; sizes.len()];
        for (at, &i) in order.iter().enumerate() {
            if pool.get(at).is_none_or(|buffer| buffer.size() < sizes[i]) {
                let made = self.buffer(sizes[i], &format!("the activations of {program}"))?;
                if at < pool.len() {
                    pool[at] = made;
                } else {
                    pool.push(made);
                }
            }
            given[i] = Some(pool[at].clone());
        }
        Ok(given.into_iter().flatten().collect())
    }

    /// Bytes of the buffers that plans share.
    pub(crate) fn shared_bytes(&self) -> u64 {
        let sum = |held: &Mutex<Vec<wgpu::Buffer>>| lock(held).iter().map(wgpu::Buffer::size).sum::<u64>();
        sum(&self.pool) + sum(&self.staging)
    }

    /// A buffer of at least `bytes` that the host can read.
    pub(crate) fn staging(&self, bytes: u64) -> wgpu::Buffer {
        let mut held = lock(&self.staging);
        if let Some(at) = held.iter().position(|buffer| buffer.size() >= bytes) {
            return held.swap_remove(at);
        }
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("readback"),
            size: bytes.next_power_of_two().max(4096).min(self.limits.max_buffer_size / 4 * 4),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }

    /// Gives a staging buffer back. Large ones are not kept.
    pub(crate) fn return_staging(&self, buffer: wgpu::Buffer) {
        if buffer.size() <= 64 << 20 {
            lock(&self.staging).push(buffer);
        }
    }
}

/// An error of wgpu's as ours.
fn translate(error: &wgpu::Error, needed: u64, what: &str) -> Error {
    match error {
        wgpu::Error::OutOfMemory { .. } => Error::OutOfMemory { needed, what: what.to_owned() },
        wgpu::Error::Validation { description, .. } | wgpu::Error::Internal { description, .. } => {
            Error::Device(format!("{what}: {description}"))
        }
    }
}
