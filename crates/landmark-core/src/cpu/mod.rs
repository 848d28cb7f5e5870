//! The CPU backend: in f64 the oracle that every kernel is tested against, in f32 a backend to use where
//! there is no GPU.
//!
//! One file an op, named as the op. The loops are plain; what makes them fast is a good matrix product
//! (`gemm`), rows in parallel, and an `exp` that the compiler can vectorise (`real`). Storage is a buffer
//! for each persistent tensor and for each slot of the memory plan. While an op runs, the buffers that it
//! writes are taken out of the table and the ones that it reads are borrowed from it, so aliasing is ruled
//! out by the compiler as well as by the plan.
//!
//! bf16 and f16 tensors are storage only: an op sees them widened, and what it writes is rounded once.
//!
//! Results do not depend on timing: work is cut by fixed sizes, and partial sums are added in order.

mod copy;
mod cross_entropy;
mod dropout;
mod elementwise;
mod embed;
mod gemm;
mod grouped_softmax;
mod landmark_attention;
mod likeliest;
mod matmul;
mod memory;
mod norm;
mod optimizer;
mod pager;
mod real;
mod rope;
mod storage;
mod top_k;

pub use real::Real;

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::ops::Op;
use crate::paging::Paging;
use crate::plan::Plan;
use crate::program::{Layout, Place, Program};
use crate::tensor::{DType, Tensor};
use pager::Pager;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;
use storage::{Buffer, Memory, Where};

/// The CPU, computing in `T` (`f32` or `f64`).
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu<T = f32>(PhantomData<T>);

impl<T: Real> Cpu<T> {
    /// The CPU of this machine.
    pub fn new() -> Self {
        Cpu(PhantomData)
    }

    /// Writes a float tensor from `f64`, without rounding to its element type on the way (unless that is a
    /// half type).
    ///
    /// # Errors
    /// [`Error::Size`].
    pub fn write_f64(&self, arena: &mut Arena<T>, tensor: Tensor, values: &[f64]) -> Result<()> {
        let (info, buffer) = arena.entry(tensor);
        let numel = info.shape.numel();
        if values.len() > numel {
            return Err(Error::Size {
                tensor: info.name.clone(),
                expected: numel * 8,
                given: values.len() * 8,
            });
        }
        buffer.write_f64(values);
        Ok(())
    }

    /// Reads a float tensor as `f64`.
    pub fn read_f64(&self, arena: &Arena<T>, tensor: Tensor) -> Vec<f64> {
        arena.buffers[tensor.index()].read_f64()
    }
}

/// Buffers of the persistent tensors.
pub struct Arena<T: Real> {
    layout: Layout,
    buffers: Vec<Buffer<T>>,
    pager: RefCell<Pager<T>>,
}

impl<T: Real> Arena<T> {
    fn entry(&mut self, tensor: Tensor) -> (&crate::program::Info, &mut Buffer<T>) {
        (self.layout.info(tensor), &mut self.buffers[tensor.index()])
    }
}

/// A program with its scratch buffers.
pub struct CpuPlan<T> {
    program: Program,
    places: Vec<Where>,
    slots: Vec<Buffer<T>>,
    workspace: Vec<T>,
}

impl<T> CpuPlan<T> {
    /// The program that this plan runs.
    pub fn program(&self) -> &Program {
        &self.program
    }
}

/// Refuses what the allocator would refuse with an abort, and what the system would promise without having it: it kills who then
/// uses it.
fn affordable(bytes: u64, what: &str) -> Result<()> {
    let mut probe: Vec<u8> = Vec::new();
    let needed = usize::try_from(bytes).unwrap_or(usize::MAX);
    let is_promised = probe.try_reserve_exact(needed).is_ok();
    if !is_promised || available_memory().is_some_and(|available| bytes > available) {
        return Err(Error::OutOfMemory { needed: bytes, what: what.into() });
    }
    Ok(())
}

/// Bytes that the system can still give, where it says so (on Linux).
fn available_memory() -> Option<u64> {
    let said = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kilobytes = |name: &str| -> Option<u64> {
        let line = said.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    Some(1024 * (kilobytes("MemAvailable:")? + kilobytes("SwapFree:").unwrap_or(0)))
}

impl<T: Real> Backend for Cpu<T> {
    type Arena = Arena<T>;
    type Plan = CpuPlan<T>;

    fn allocate_within(&self, layout: &Layout, paging: Paging) -> Result<Arena<T>> {
        let in_memory = |bytes: u64| bytes * (size_of::<T>() as u64) / 4;
        let paged = layout.paged().map(|t| t.bytes() as u64).sum();
        let pager = Pager::new(paging);
        let is_paged = pager.is_needed(in_memory(paged));
        let whole = layout.bytes() - if is_paged { paged } else { 0 };
        affordable(in_memory(whole), "weights, optimiser state and memory")?;
        let mut seen = 0;
        let buffer = |t: &crate::program::Info| {
            let tensor = seen;
            seen += usize::from(t.page.is_some());
            match t.page {
                Some(page) if is_paged => Buffer::Paged { tensor, page },
                _ => Buffer::zeroed(t.dtype, t.shape.numel()),
            }
        };
        let buffers = layout.tensors().iter().map(buffer).collect();
        Ok(Arena { layout: layout.clone(), buffers, pager: RefCell::new(pager) })
    }

    fn compile(&self, program: &Program, _arena: &Arena<T>) -> Result<CpuPlan<T>> {
        let plan = Plan::new(program);
        affordable(plan.bytes() * (size_of::<T>() as u64) / 4, &format!("activations of {}", program.name))?;
        let slots = plan.slots.iter().map(|slot| Buffer::zeroed(slot.dtype, slot.numel)).collect();
        let place = |(i, info): (usize, &crate::program::Info)| match info.place {
            Place::Persistent(owner) => Where::Arena(owner.index()),
            // Tensors that no op touches have no slot, and nobody asks for them.
            Place::Scratch => plan.slot(Tensor(i as u32)).map_or(Where::Nowhere, Where::Slot),
        };
        let places = program.tensors().iter().enumerate().map(place).collect();
        Ok(CpuPlan { program: program.clone(), places, slots, workspace: Vec::new() })
    }

    fn write_at(&self, arena: &mut Arena<T>, tensor: Tensor, first: usize, bytes: &[u8]) -> Result<()> {
        let pager = arena.pager.get_mut();
        let (info, buffer) = (arena.layout.info(tensor), &mut arena.buffers[tensor.index()]);
        let (before, unit) = (first * info.dtype.size(), info.page.unwrap_or(1) * info.dtype.size());
        let is_whole = bytes.len().is_multiple_of(info.dtype.size())
            && (!matches!(buffer, Buffer::Paged { .. })
                || bytes.len().is_multiple_of(unit) && before.is_multiple_of(unit));
        if before + bytes.len() > info.bytes() || !is_whole {
            let (tensor, expected) = (info.name.clone(), info.bytes() - before.min(info.bytes()));
            return Err(Error::Size { tensor, expected, given: bytes.len() });
        }
        buffer.write_bytes(first, bytes, pager)
    }

    fn run(&self, plan: &mut CpuPlan<T>, arena: &mut Arena<T>) -> Result<()> {
        let mut memory = Memory {
            tensors: plan.program.tensors(),
            places: &plan.places,
            arena: &mut arena.buffers,
            slots: &mut plan.slots,
            workspace: &mut plan.workspace,
            pager: &arena.pager,
        };
        plan.program.ops().iter().try_for_each(|op| run_op(op, &mut memory))
    }

    async fn read(&self, arena: &Arena<T>, tensor: Tensor) -> Result<Vec<u8>> {
        self.read_at(arena, tensor, 0..arena.layout.info(tensor).shape.numel()).await
    }

    async fn read_at(&self, arena: &Arena<T>, tensor: Tensor, elements: Range<usize>) -> Result<Vec<u8>> {
        arena.buffers[tensor.index()].to_bytes(elements, &mut arena.pager.borrow_mut())
    }
}

fn run_op<T: Real>(op: &Op, m: &mut Memory<'_, T>) -> Result<()> {
    match op {
        Op::Adafactor(op) => optimizer::adafactor(op, m),
        Op::AdamW(op) => optimizer::adamw(op, m),
        Op::AddNorm(op) => norm::add_norm(op, m),
        Op::AppendKv(op) => return memory::append_kv(op, m),
        Op::Bernoulli(op) => dropout::bernoulli(op, m),
        Op::ClipScale(op) => optimizer::clip_scale(op, m),
        Op::CopyRows(op) => copy::copy_rows(op, m),
        Op::Dropout(op) => dropout::dropout(op, m),
        Op::Embed(op) => return embed::embed(op, m),
        Op::EmbedBackward(op) => return embed::embed_backward(op, m),
        Op::Fill(op) => copy::fill(op, m),
        Op::Gelu(op) => elementwise::gelu(op, m),
        Op::GeluBackward(op) => elementwise::gelu_backward(op, m),
        Op::LandmarkAttention(op) => landmark_attention::forward(op, m),
        Op::LandmarkAttentionBackward(op) => landmark_attention::backward(op, m),
        Op::LandmarkScores(op) => memory::landmark_scores(op, m),
        Op::Likeliest(op) => likeliest::likeliest(op, m),
        Op::LinearCrossEntropy(op) => return cross_entropy::linear_cross_entropy(op, m),
        Op::Matmul(op) => matmul::matmul(op, m),
        Op::Norm(op) => norm::norm(op, m),
        Op::NormBackward(op) => norm::norm_backward(op, m),
        Op::RetrievalAttention(op) => return memory::retrieval_attention(op, m),
        Op::Rope(op) => rope::rope(op, m),
        Op::SelectBlocks(op) => memory::select_blocks(op, m),
        Op::Sgd(op) => optimizer::sgd(op, m),
        Op::SquaredNorm(op) => optimizer::squared_norm(op, m),
        Op::SumRows(op) => matmul::sum_rows(op, m),
        Op::SwiGlu(op) => elementwise::swiglu(op, m),
        Op::SwiGluBackward(op) => elementwise::swiglu_backward(op, m),
    }
    Ok(())
}

/// Bytes that one element takes in this backend, for estimates.
pub const fn element_size<T>(dtype: DType) -> usize {
    match dtype {
        DType::F32 => size_of::<T>(),
        other => other.size(),
    }
}
