//! The op: what candle asks of a custom op, and the addresses and strides that the kernels want.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use candle_core::{CpuStorage, CudaStorage, CustomOp3, Error, Layout, Result, Shape, Storage, Tensor};
use half::bf16;
use landmark_core::DType;
use landmark_core::ops::Heads;
use landmark_cuda::Cuda;
use landmark_cuda::fused::{FusedAttention, FusedForward, FusedGradients, HeadsAt};
use std::sync::{Arc, Mutex, PoisonError};

/// Causal attention with landmarks: queries `(B, H, Nq, D)`, keys and values `(B, Hkv, Nk, D)` in bf16, positions applied.
///
/// One of these serves one application: it keeps what the backward pass needs.
pub struct LandmarkAttention {
    cuda: Arc<Cuda>,
    /// Positions of a block, its landmark included.
    block: usize,
    /// `(B)` u32: how far each row's first key is into its block.
    phases: Tensor,
    /// `(B, H, Nq)`: logarithms of the outer sums.
    lse: Mutex<Option<CudaSlice<f32>>>,
}

/// Queries, keys and values, as a custom op gets them.
type Sides<'a> = [(&'a CudaStorage, &'a Layout); 3];

fn heads_at(address: u64, layout: &Layout) -> Result<HeadsAt> {
    match *layout.stride() {
        [batch, head, row, 1] => {
            Ok(HeadsAt { address: address + 2 * layout.start_offset() as u64, batch, row, head })
        }
        ref other => Err(Error::Msg(format!("strides {other:?}: the head's own columns must be dense"))),
    }
}

/// The address of a slice that `stream` is about to read. What stands beside it is held until the kernel is queued.
fn reading<'a, T>(slice: &'a CudaSlice<T>, stream: &'a CudaStream) -> (u64, impl Drop + 'a) {
    slice.device_ptr(stream)
}

fn on_device(storage: &Storage) -> Result<&CudaStorage> {
    match storage {
        Storage::Cuda(storage) => Ok(storage),
        _ => Err(Error::Msg("every tensor must be on the device".into())),
    }
}

impl LandmarkAttention {
    /// For one application.
    pub fn new(cuda: Arc<Cuda>, block: usize, phases: Tensor) -> Self {
        LandmarkAttention { cuda, block, phases, lse: Mutex::default() }
    }

    fn attention(&self, sides: &Sides<'_>) -> Result<FusedAttention> {
        let (batch, heads, queries, head_dim) = sides[0].1.shape().dims4()?;
        let (_, kv_heads, keys, _) = sides[1].1.shape().dims4()?;
        let heads = Heads { batch, queries, keys, heads, kv_heads, head_dim };
        Ok(FusedAttention { heads, block: Some(self.block), dtype: DType::Bf16, scale: None })
    }

    fn forward(&self, sides: Sides<'_>) -> Result<(CudaStorage, Shape)> {
        let attention = self.attention(&sides)?;
        let Heads { batch, queries, heads, head_dim, .. } = attention.heads;
        let device = sides[0].0.device().clone();
        let stream = device.cuda_stream();
        let shape = Shape::from((batch, heads, queries, head_dim));
        // SAFETY: the kernel writes every element of both.
        let (mut out, mut sums) = unsafe {
            (device.alloc::<bf16>(shape.elem_count())?, device.alloc::<f32>(batch * heads * queries)?)
        };
        let mut ticket = device.alloc_zeros::<u32>(1)?;
        {
            let [(q, q_layout), (k, k_layout), (v, v_layout)] = sides;
            let (q, _q) = reading(q.as_cuda_slice::<bf16>()?, &stream);
            let (k, _k) = reading(k.as_cuda_slice::<bf16>()?, &stream);
            let (v, _v) = reading(v.as_cuda_slice::<bf16>()?, &stream);
            let (phases, _) = self.phases.storage_and_layout();
            let (phases, _phases) = reading(on_device(&phases)?.as_cuda_slice::<u32>()?, &stream);
            let (out, _out) = out.device_ptr_mut(&stream);
            let (lse, _lse) = sums.device_ptr_mut(&stream);
            let (ticket, _ticket) = ticket.device_ptr_mut(&stream);
            let at = FusedForward {
                q: heads_at(q, q_layout)?,
                k: heads_at(k, k_layout)?,
                v: heads_at(v, v_layout)?,
                phases,
                out: heads_at(out, &Layout::contiguous(&shape))?,
                lse,
                ticket,
            };
            // SAFETY: candle's tensors lie in the device's primary context and are freed in the order of its stream,
            // on which the kernel is queued.
            let queued =
                unsafe { self.cuda.fused_landmark_attention(&attention, &at, stream.cu_stream().cast()) };
            queued.map_err(Error::wrap)?;
        }
        *self.lse.lock().unwrap_or_else(PoisonError::into_inner) = Some(sums);
        Ok((CudaStorage::wrap_cuda_slice(out, device), shape))
    }
}

/// The backward pass as an op of its own, since candle makes tensors of device memory for ops alone: gradients of queries,
/// keys and values end to end.
struct Gradients<'a> {
    forward: &'a LandmarkAttention,
    out: &'a Tensor,
    dout: &'a Tensor,
}

impl Gradients<'_> {
    fn run(&self, sides: Sides<'_>) -> Result<(CudaStorage, Shape)> {
        let attention = self.forward.attention(&sides)?;
        let device = sides[0].0.device().clone();
        let stream = device.cuda_stream();
        let shapes = sides.map(|(_, layout)| layout.shape().clone());
        let length: usize = shapes.iter().map(Shape::elem_count).sum();
        let workspace = attention.backward_workspace().div_ceil(4) as usize;
        // SAFETY: the kernels write every element of the gradients, and of the workspace what they read.
        let (mut all, mut workspace) =
            unsafe { (device.alloc::<bf16>(length)?, device.alloc::<u32>(workspace.max(4))?) };
        {
            let [(q, q_layout), (k, k_layout), (v, v_layout)] = sides;
            let (q, _q) = reading(q.as_cuda_slice::<bf16>()?, &stream);
            let (k, _k) = reading(k.as_cuda_slice::<bf16>()?, &stream);
            let (v, _v) = reading(v.as_cuda_slice::<bf16>()?, &stream);
            let (phases, _) = self.forward.phases.storage_and_layout();
            let (phases, _phases) = reading(on_device(&phases)?.as_cuda_slice::<u32>()?, &stream);
            let (out, out_layout) = self.out.storage_and_layout();
            let (out, _out) = reading(on_device(&out)?.as_cuda_slice::<bf16>()?, &stream);
            let (dout, dout_layout) = self.dout.storage_and_layout();
            let (dout, _dout) = reading(on_device(&dout)?.as_cuda_slice::<bf16>()?, &stream);
            let lse = self.forward.lse.lock().unwrap_or_else(PoisonError::into_inner);
            let lse =
                lse.as_ref().ok_or_else(|| Error::Msg("a backward pass without a forward pass".into()))?;
            let (lse, _lse) = reading(lse, &stream);
            let (all, _all) = all.device_ptr_mut(&stream);
            let (workspace, _workspace) = workspace.device_ptr_mut(&stream);
            let mut next = all;
            let [dq, dk, dv] = shapes.each_ref().map(|shape| {
                let address = next;
                next += 2 * shape.elem_count() as u64;
                heads_at(address, &Layout::contiguous(shape))
            });
            let at = FusedGradients {
                forward: FusedForward {
                    q: heads_at(q, q_layout)?,
                    k: heads_at(k, k_layout)?,
                    v: heads_at(v, v_layout)?,
                    phases,
                    out: heads_at(out, out_layout)?,
                    lse,
                    ticket: 0,
                },
                dout: heads_at(dout, dout_layout)?,
                dq: dq?,
                dk: dk?,
                dv: dv?,
                workspace,
            };
            let cuda = &self.forward.cuda;
            // SAFETY: as in the forward pass.
            let queued =
                unsafe { cuda.fused_landmark_attention_backward(&attention, &at, stream.cu_stream().cast()) };
            queued.map_err(Error::wrap)?;
        }
        Ok((CudaStorage::wrap_cuda_slice(all, device), Shape::from(length)))
    }
}

fn no_cpu() -> Result<(CpuStorage, Shape)> {
    Err(Error::Msg("landmark attention runs on a GPU here".into()))
}

impl CustomOp3 for LandmarkAttention {
    fn name(&self) -> &'static str {
        "landmark-attention"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        no_cpu()
    }

    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        q_layout: &Layout,
        k: &CudaStorage,
        k_layout: &Layout,
        v: &CudaStorage,
        v_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.forward([(q, q_layout), (k, k_layout), (v, v_layout)])
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dout = dout.contiguous()?;
        let all = q.apply_op3_no_bwd(k, v, &Gradients { forward: self, out, dout: &dout })?;
        let mut start = 0;
        let mut take = |like: &Tensor| -> Result<Option<Tensor>> {
            let part = all.narrow(0, start, like.elem_count())?.reshape(like.shape())?;
            start += like.elem_count();
            Ok(Some(part))
        };
        Ok((take(q)?, take(k)?, take(v)?))
    }
}

impl CustomOp3 for Gradients<'_> {
    fn name(&self) -> &'static str {
        "landmark-attention-backward"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        no_cpu()
    }

    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        q_layout: &Layout,
        k: &CudaStorage,
        k_layout: &Layout,
        v: &CudaStorage,
        v_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.run([(q, q_layout), (k, k_layout), (v, v_layout)])
    }
}
