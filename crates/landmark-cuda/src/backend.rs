//! [`Cuda`]: the backend itself.

use crate::arena::{CudaArena, lay_out};
use crate::cache::Cache;
use crate::compile::Defines;
use crate::cublaslt::CublasLt;
use crate::driver::{Buffer, Device, DeviceInfo, Launch, Pinned};
use crate::modules::Kernels;
use crate::paging::{self, Rings};
use crate::plan::{self, CudaPlan, OpTime};
use crate::staging::{LARGEST, Staging};
use landmark_core::program::Info;
use landmark_core::{Answer, Backend, Elements, Error, Layout, Paging, Program, Result, Tensor};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// An index that some kernel checks, for the message.
#[derive(Debug)]
struct IndexCheck {
    op: &'static str,
    tensor: String,
    limit: usize,
}

/// What the backend and its plans share.
#[derive(Debug)]
pub(crate) struct Shared {
    staging: Mutex<Staging>,
    /// One word in which kernels report a bad index.
    pub(crate) status: Pinned,
    /// One word, 0 between launches, from which the blocks of a kernel draw their work.
    pub(crate) ticket: Buffer,
    checks: Mutex<Vec<IndexCheck>>,
    transient: Mutex<Option<Arc<Buffer>>>,
    pub(crate) kernels: Kernels,
    cublaslt: OnceLock<Arc<CublasLt>>,
    /// Waits after every launch, so that a failure names its op (`LANDMARK_CUDA_CAUTIOUS=1`).
    pub(crate) is_cautious: bool,
    /// Prints once for each program how long its ops took (`LANDMARK_CUDA_PROFILE=1`).
    is_profiling: bool,
    /// Last, so that everything on it is gone before it is.
    pub(crate) device: Arc<Device>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// The stream, for one caller at a time: a run is not one call of the driver, and runs share transient memory. What
    /// waited to be written has been launched.
    pub(crate) fn turn(&self) -> Result<MutexGuard<'_, Staging>> {
        self.device.enter()?;
        let mut staging = lock(&self.staging);
        staging.flush(&self.device)?;
        Ok(staging)
    }

    /// The number of a check for `report_index`, from 1.
    pub(crate) fn check(&self, op: &'static str, tensor: String, limit: usize) -> u32 {
        let mut checks = lock(&self.checks);
        let same = |c: &IndexCheck| c.op == op && c.tensor == tensor && c.limit == limit;
        let at = checks.iter().position(same).unwrap_or_else(|| {
            checks.push(IndexCheck { op, tensor, limit });
            checks.len() - 1
        });
        at as u32 + 1
    }

    /// The transient buffer, of at least `bytes`.
    pub(crate) fn transient(&self, bytes: u64, program: &str) -> Result<Arc<Buffer>> {
        let mut held = lock(&self.transient);
        if let Some(buffer) = held.as_ref().filter(|b| b.bytes >= bytes) {
            return Ok(buffer.clone());
        }
        // Plans over the smaller one hold it; if there is none, its memory is needed now.
        *held = None;
        let what = format!(
            "the activations of {program}; a smaller batch, shorter chunks (--mid-length), a memory that is not all on the device \
             (--device-memory) or activation checkpointing needs less"
        );
        let buffer = Arc::new(Buffer::new(&self.device, bytes, &what)?);
        *held = Some(buffer.clone());
        Ok(buffer)
    }

    /// cuBLASLt, opened when the first product is planned.
    pub(crate) fn cublaslt(&self) -> Result<&Arc<CublasLt>> {
        if self.cublaslt.get().is_none() {
            let _ = self.cublaslt.set(Arc::new(CublasLt::new()?));
        }
        self.cublaslt.get().ok_or_else(|| Error::Device("cuBLASLt was not opened".into()))
    }

    /// After a wait: the index that a kernel found out of range.
    fn report(&self) -> Result<()> {
        let word = self.status.slice()[..8].try_into().map_or(0, u64::from_le_bytes);
        if word == 0 {
            return Ok(());
        }
        self.device.zero(self.status.address, 8)?;
        self.device.synchronise()?;
        let checks = lock(&self.checks);
        let Some(check) = checks.get((word >> 32) as usize - 1) else {
            return Err(Error::Device(format!("a kernel reported {word:#x}")));
        };
        Err(Error::Index {
            op: check.op,
            tensor: check.tensor.clone(),
            index: word & 0xffff_ffff,
            limit: check.limit,
        })
    }
}

/// A CUDA device that runs programs.
#[derive(Clone, Debug)]
pub struct Cuda {
    shared: Arc<Shared>,
}

impl Cuda {
    /// Device `ordinal` (0 is the first), with the user's kernel cache.
    ///
    /// # Errors
    /// No driver, a driver or a device that is too old, or no NVRTC: in words for the user.
    pub fn new(ordinal: usize) -> Result<Self> {
        Self::with_cache(ordinal, Cache::of_user())
    }

    /// The same with another kernel cache.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_cache(ordinal: usize, cache: Cache) -> Result<Self> {
        let device = Device::open(ordinal)?;
        let kernels = Kernels::new(cache);
        let function =
            kernels.module(&device, "apply_copies.cu", &Defines::new())?.function("apply_copies")?;
        let apply = Launch {
            function,
            grid: [1; 3],
            block: 128,
            shared: 0,
            dependent: false,
            cluster: 1,
            args: Vec::new(),
        };
        let staging = Mutex::new(Staging::new(&device, apply)?);
        let status = Pinned::new(&device, 8, "messages of kernels")?;
        let ticket = Buffer::new(&device, 4, "kernels that hand out work")?;
        device.zero(ticket.address, 4)?;
        let is_on = |name| std::env::var_os(name).is_some_and(|v| v == "1");
        let (is_cautious, is_profiling) = (is_on("LANDMARK_CUDA_CAUTIOUS"), is_on("LANDMARK_CUDA_PROFILE"));
        let (checks, transient, cublaslt) = (Mutex::default(), Mutex::default(), OnceLock::new());
        Ok(Cuda {
            shared: Arc::new(Shared {
                staging,
                status,
                ticket,
                checks,
                transient,
                kernels,
                cublaslt,
                is_cautious,
                is_profiling,
                device,
            }),
        })
    }

    /// The device.
    pub fn info(&self) -> &DeviceInfo {
        &self.shared.device.info
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Waits for everything that was started: for measuring.
    ///
    /// # Errors
    /// What went wrong on the device meanwhile.
    pub fn wait(&self) -> Result<()> {
        let _turn = self.shared.turn()?;
        self.shared.device.synchronise()?;
        self.shared.report()
    }

    /// Runs a program once, launch by launch, and says how long each op took.
    ///
    /// # Errors
    /// As [`run`](Backend::run).
    pub fn profile(&self, plan: &mut CudaPlan, _arena: &mut CudaArena) -> Result<Vec<OpTime>> {
        let _turn = self.shared.turn()?;
        plan.profile(&self.shared)
    }

    fn read_span(&self, arena: &CudaArena, tensor: Tensor, address: u64, to: &mut [u8]) -> Result<()> {
        if let Some(rings) = arena.rings_of(tensor) {
            self.wait()?;
            rings.read(address, to);
            return Ok(());
        }
        let shared = &self.shared;
        let mut turn = shared.turn()?;
        turn.download(&shared.device, address, to)?;
        shared.report()
    }
}

impl Backend for Cuda {
    type Arena = CudaArena;
    type Plan = CudaPlan;

    fn allocate_within(&self, layout: &Layout, paging: Paging) -> Result<CudaArena> {
        let _turn = self.shared.turn()?;
        let device = &self.shared.device;
        let in_host = paging::in_host(layout, &paging)?;
        let here = |t: &Info| if in_host && t.page.is_some() { 0 } else { t.bytes() as u64 };
        let (offsets, bytes) = lay_out(layout.tensors().iter().map(here));
        let what = "weights, optimiser state and memory; --device-memory keeps less of a landmark memory on the device";
        let buffer = Arc::new(Buffer::new(device, bytes, what)?);
        device.zero(buffer.address, bytes)?;
        let rings = if in_host { Some(Arc::new(Rings::new(device, layout, &paging)?)) } else { None };
        if let Some(store) = paging.store.as_ref().filter(|_| !in_host) {
            let paged = layout.tensors().iter().zip(&offsets).filter(|(t, _)| t.page.is_some());
            let firsts: Vec<u64> = paged.map(|(_, at)| buffer.address + at).collect();
            paging::read_store(layout, store.as_ref(), |tensor, first, page| {
                device.upload(firsts[tensor] + first, page)
            })?;
        }
        Ok(CudaArena { layout: layout.clone(), buffer, offsets, rings })
    }

    fn compile(&self, program: &Program, arena: &CudaArena) -> Result<CudaPlan> {
        self.shared.device.enter()?;
        plan::compile(&self.shared, program, arena)
    }

    fn write_at(&self, arena: &mut CudaArena, tensor: Tensor, first: usize, bytes: &[u8]) -> Result<()> {
        let shared = &self.shared;
        let address = arena.span(tensor, first, bytes.len())?;
        shared.device.enter()?;
        if let Some(rings) = arena.rings_of(tensor) {
            let _turn = shared.turn()?;
            shared.device.synchronise()?;
            rings.write(address, bytes);
            return Ok(());
        }
        if bytes.is_empty() {
            return Ok(());
        }
        if bytes.len() <= LARGEST {
            return lock(&shared.staging).push(&shared.device, &arena.buffer, address, bytes);
        }
        let _turn = shared.turn()?;
        shared.device.upload(address, bytes)
    }

    fn run(&self, plan: &mut CudaPlan, arena: &mut CudaArena) -> Result<()> {
        let shared = &self.shared;
        let _turn = shared.turn()?;
        if let Some(rings) = &arena.rings {
            rings.refresh(&shared.device)?;
        }
        if shared.is_profiling && plan.runs == 2 {
            eprint!("{}", plan.summary(&plan.profile(shared)?));
            plan.runs += 1;
            return Ok(());
        }
        plan.run(shared)
    }

    async fn read(&self, arena: &CudaArena, tensor: Tensor) -> Result<Vec<u8>> {
        let mut to = vec![0; arena.layout.info(tensor).bytes()];
        self.read_span(arena, tensor, arena.address(tensor), &mut to)?;
        Ok(to)
    }

    async fn read_at(&self, arena: &CudaArena, tensor: Tensor, elements: Range<usize>) -> Result<Vec<u8>> {
        let (address, bytes) = arena.elements(tensor, &elements)?;
        let mut to = vec![0; bytes];
        self.read_span(arena, tensor, address, &mut to)?;
        Ok(to)
    }

    async fn read_into(
        &self,
        arena: &CudaArena,
        tensor: Tensor,
        elements: Range<usize>,
        to: &mut [u8],
    ) -> Result<()> {
        let (address, bytes) = arena.elements(tensor, &elements)?;
        assert_eq!(bytes, to.len(), "room for the elements");
        self.read_span(arena, tensor, address, to)
    }

    fn begin_read(&self, arena: &CudaArena, wanted: &[Elements]) -> Result<Option<Answer>> {
        let mut places = Vec::with_capacity(wanted.len());
        for (tensor, elements) in wanted {
            let (address, bytes) = arena.elements(*tensor, elements)?;
            if arena.rings_of(*tensor).is_some() || bytes > LARGEST {
                return Ok(None);
            }
            places.push((address, bytes));
        }
        self.shared.device.enter()?;
        let mut arrivals = Vec::with_capacity(places.len());
        for (address, bytes) in places {
            let mut staging = lock(&self.shared.staging);
            arrivals.push((staging.pull(&self.shared.device, &arena.buffer, address, bytes)?, bytes));
        }
        let shared = self.shared.clone();
        Ok(Some(Box::pin(async move {
            // Launches them, if nothing that was run since has.
            drop(shared.turn()?);
            let mut all = Vec::new();
            for (arrival, bytes) in arrivals {
                all.append(&mut arrival.wait(bytes)?);
            }
            Ok(all)
        })))
    }
}
