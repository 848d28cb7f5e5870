//! Whichever backend was chosen, as one type.
//!
//! Models, training and memories are generic over their backend. Were each command instantiated for each backend, this
//! crate would take three times as long to build; behind one type that looks at its variant once a call, all of it is
//! there once. A call runs a whole program, so the look costs nothing.

use std::ops::Range;

use landmark_core::{Answer, Backend, Cpu, Elements, Error, Layout, Paging, Program, Result, Tensor};
use landmark_cuda::{Cuda, CudaArena, CudaPlan};
use landmark_wgpu::{Wgpu, WgpuArena, WgpuPlan};

/// A backend.
#[derive(Clone)]
pub enum AnyBackend {
    /// The processor.
    Cpu(Cpu<f32>),
    /// An NVIDIA GPU.
    Cuda(Cuda),
    /// Any GPU.
    Wgpu(Wgpu),
}

/// Its tensors.
pub enum AnyArena {
    /// On the processor.
    Cpu(Box<<Cpu<f32> as Backend>::Arena>),
    /// On an NVIDIA GPU.
    Cuda(Box<CudaArena>),
    /// On any GPU.
    Wgpu(Box<WgpuArena>),
}

/// Its compiled programs.
pub enum AnyPlan {
    /// For the processor.
    Cpu(Box<<Cpu<f32> as Backend>::Plan>),
    /// For an NVIDIA GPU.
    Cuda(Box<CudaPlan>),
    /// For any GPU.
    Wgpu(Box<WgpuPlan>),
}

/// What is told of tensors or programs of another backend. Nobody has two.
fn foreign() -> Error {
    Error::Device("tensors or a program of another backend".to_owned())
}

impl Backend for AnyBackend {
    type Arena = AnyArena;
    type Plan = AnyPlan;

    fn allocate_within(&self, layout: &Layout, paging: Paging) -> Result<AnyArena> {
        Ok(match self {
            AnyBackend::Cpu(cpu) => AnyArena::Cpu(Box::new(cpu.allocate_within(layout, paging)?)),
            AnyBackend::Cuda(cuda) => AnyArena::Cuda(Box::new(cuda.allocate_within(layout, paging)?)),
            AnyBackend::Wgpu(wgpu) => AnyArena::Wgpu(Box::new(wgpu.allocate_within(layout, paging)?)),
        })
    }

    fn compile(&self, program: &Program, arena: &AnyArena) -> Result<AnyPlan> {
        Ok(match (self, arena) {
            (AnyBackend::Cpu(cpu), AnyArena::Cpu(arena)) => {
                AnyPlan::Cpu(Box::new(cpu.compile(program, arena)?))
            }
            (AnyBackend::Cuda(cuda), AnyArena::Cuda(arena)) => {
                AnyPlan::Cuda(Box::new(cuda.compile(program, arena)?))
            }
            (AnyBackend::Wgpu(wgpu), AnyArena::Wgpu(arena)) => {
                AnyPlan::Wgpu(Box::new(wgpu.compile(program, arena)?))
            }
            _ => return Err(foreign()),
        })
    }

    fn write_at(&self, arena: &mut AnyArena, tensor: Tensor, first: usize, bytes: &[u8]) -> Result<()> {
        match (self, arena) {
            (AnyBackend::Cpu(cpu), AnyArena::Cpu(arena)) => cpu.write_at(arena, tensor, first, bytes),
            (AnyBackend::Cuda(cuda), AnyArena::Cuda(arena)) => cuda.write_at(arena, tensor, first, bytes),
            (AnyBackend::Wgpu(wgpu), AnyArena::Wgpu(arena)) => wgpu.write_at(arena, tensor, first, bytes),
            _ => Err(foreign()),
        }
    }

    fn run(&self, plan: &mut AnyPlan, arena: &mut AnyArena) -> Result<()> {
        match (self, plan, arena) {
            (AnyBackend::Cpu(cpu), AnyPlan::Cpu(plan), AnyArena::Cpu(arena)) => cpu.run(plan, arena),
            (AnyBackend::Cuda(cuda), AnyPlan::Cuda(plan), AnyArena::Cuda(arena)) => cuda.run(plan, arena),
            (AnyBackend::Wgpu(wgpu), AnyPlan::Wgpu(plan), AnyArena::Wgpu(arena)) => wgpu.run(plan, arena),
            _ => Err(foreign()),
        }
    }

    async fn read(&self, arena: &AnyArena, tensor: Tensor) -> Result<Vec<u8>> {
        match (self, arena) {
            (AnyBackend::Cpu(cpu), AnyArena::Cpu(arena)) => cpu.read(arena, tensor).await,
            (AnyBackend::Cuda(cuda), AnyArena::Cuda(arena)) => cuda.read(arena, tensor).await,
            (AnyBackend::Wgpu(wgpu), AnyArena::Wgpu(arena)) => wgpu.read(arena, tensor).await,
            _ => Err(foreign()),
        }
    }

    async fn read_at(&self, arena: &AnyArena, tensor: Tensor, elements: Range<usize>) -> Result<Vec<u8>> {
        match (self, arena) {
            (AnyBackend::Cpu(cpu), AnyArena::Cpu(arena)) => cpu.read_at(arena, tensor, elements).await,
            (AnyBackend::Cuda(cuda), AnyArena::Cuda(arena)) => cuda.read_at(arena, tensor, elements).await,
            (AnyBackend::Wgpu(wgpu), AnyArena::Wgpu(arena)) => wgpu.read_at(arena, tensor, elements).await,
            _ => Err(foreign()),
        }
    }

    async fn read_into(
        &self,
        arena: &AnyArena,
        tensor: Tensor,
        elements: Range<usize>,
        to: &mut [u8],
    ) -> Result<()> {
        match (self, arena) {
            (AnyBackend::Cpu(cpu), AnyArena::Cpu(arena)) => cpu.read_into(arena, tensor, elements, to).await,
            (AnyBackend::Cuda(cuda), AnyArena::Cuda(arena)) => {
                cuda.read_into(arena, tensor, elements, to).await
            }
            (AnyBackend::Wgpu(wgpu), AnyArena::Wgpu(arena)) => {
                wgpu.read_into(arena, tensor, elements, to).await
            }
            _ => Err(foreign()),
        }
    }

    fn begin_read(&self, arena: &AnyArena, wanted: &[Elements]) -> Result<Option<Answer>> {
        match (self, arena) {
            (AnyBackend::Cpu(cpu), AnyArena::Cpu(arena)) => cpu.begin_read(arena, wanted),
            (AnyBackend::Cuda(cuda), AnyArena::Cuda(arena)) => cuda.begin_read(arena, wanted),
            (AnyBackend::Wgpu(wgpu), AnyArena::Wgpu(arena)) => wgpu.begin_read(arena, wanted),
            _ => Err(foreign()),
        }
    }
}
