//! The op: what candle asks of a custom op, and the addresses and strides that the kernels want.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, SyncOnDrop,
};
use candle_core::{CpuStorage, CudaStorage, CustomOp3, Error, Layout, Result, Shape, Storage, Tensor};
use half::{bf16, f16};
use landmark_core::DType;
use landmark_core::ops::Heads;
use landmark_cuda::Cuda;
use landmark_cuda::fused::{FusedAttention, FusedForward, FusedGradients, HeadsAt};
use std::sync::{Mutex, PoisonError};

/// Causal attention with landmarks, gradients included: queries `(B, H, Nq, D)`, keys and values `(B, Hkv, Nk, D)`, positions
/// applied, in bf16, f16 or f32. `block` positions are a block, its landmark included; `phases` `(B)` u32 says how far each row's first
/// key is into its block.
///
/// # Errors
/// What `landmark_cuda::fused` does not serve, in words.
pub fn landmark_attention(
    cuda: &Cuda,
    [q, k, v]: [&Tensor; 3],
    block: usize,
    phases: &Tensor,
) -> Result<Tensor> {
    let op =
        LandmarkAttention { cuda: cuda.clone(), block, phases: phases.contiguous()?, lse: Mutex::default() };
    q.apply_op3(k, v, op)
}

/// One application: it keeps what the backward pass needs.
struct LandmarkAttention {
    cuda: Cuda,
    block: usize,
    phases: Tensor,
    /// `(B, H, Nq)`: logarithms of the outer sums.
    lse: Mutex<Option<CudaSlice<f32>>>,
}

/// Element types that the kernels and candle have.
trait Element: CudaDType + DeviceRepr + 'static {
    const DTYPE: DType;
}

impl Element for bf16 {
    const DTYPE: DType = DType::Bf16;
}

impl Element for f16 {
    const DTYPE: DType = DType::F16;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}

/// Queries, keys and values, as a custom op gets them.
type Sides<'a> = [(&'a CudaStorage, &'a Layout); 3];

fn heads_at<T>(address: u64, layout: &Layout) -> Result<HeadsAt> {
    match *layout.stride() {
        [batch, head, row, 1] => {
            let address = address + (size_of::<T>() * layout.start_offset()) as u64;
            Ok(HeadsAt { address, batch, row, head })
        }
        ref other => Err(Error::Msg(format!("strides {other:?}: the head's own columns must be dense"))),
    }
}

/// Addresses that a stream is about to read. What candle gives beside each is held until the kernels are queued.
struct Reads<'a> {
    stream: &'a CudaStream,
    held: Vec<SyncOnDrop<'a>>,
}

impl<'a> Reads<'a> {
    fn address<T>(&mut self, slice: &'a CudaSlice<T>) -> u64 {
        let (address, held) = slice.device_ptr(self.stream);
        self.held.push(held);
        address
    }

    fn heads<T: Element>(&mut self, storage: &'a CudaStorage, layout: &Layout) -> Result<HeadsAt> {
        heads_at::<T>(self.address(storage.as_cuda_slice::<T>()?), layout)
    }

    fn phases(&mut self, storage: &'a Storage, layout: &Layout) -> Result<u64> {
        let address = self.address(on_device(storage)?.as_cuda_slice::<u32>()?);
        Ok(address + (size_of::<u32>() * layout.start_offset()) as u64)
    }
}

fn on_device(storage: &Storage) -> Result<&CudaStorage> {
    match storage {
        Storage::Cuda(storage) => Ok(storage),
        _ => Err(Error::Msg("every tensor must be on the device".into())),
    }
}

impl LandmarkAttention {
    fn attention<T: Element>(&self, sides: &Sides<'_>) -> Result<FusedAttention> {
        let (batch, heads, queries, head_dim) = sides[0].1.shape().dims4()?;
        let (_, kv_heads, keys, _) = sides[1].1.shape().dims4()?;
        if sides[1].1.shape().dims() != [batch, kv_heads, keys, head_dim]
            || sides[2].1.shape() != sides[1].1.shape()
            || self.phases.dims() != [batch]
        {
            let shapes = sides.map(|(_, layout)| layout.shape().clone());
            let phases = self.phases.shape();
            return Err(Error::Msg(format!(
                "q, k, v {shapes:?} and phases {phases:?} do not belong together"
            )));
        }
        let heads = Heads { batch, queries, keys, heads, kv_heads, head_dim };
        Ok(FusedAttention { heads, block: Some(self.block), dtype: T::DTYPE, scale: None })
    }

    fn forward<T: Element>(
        &self,
        sides @ [(q, q_layout), (k, k_layout), (v, v_layout)]: Sides<'_>,
    ) -> Result<(CudaStorage, Shape)> {
        let attention = self.attention::<T>(&sides)?;
        let Heads { batch, queries, heads, head_dim, .. } = attention.heads;
        let (device, stream) = (q.device().clone(), q.device().cuda_stream());
        let shape = Shape::from((batch, heads, queries, head_dim));
        // SAFETY: the kernels write every element of both.
        let (mut out, mut sums) = unsafe {
            (device.alloc::<T>(shape.elem_count())?, device.alloc::<f32>(batch * heads * queries)?)
        };
        let mut ticket = device.alloc_zeros::<u32>(1)?;
        let (phases, phases_layout) = self.phases.storage_and_layout();
        {
            let mut reads = Reads { stream: &stream, held: Vec::new() };
            let (out, _out) = out.device_ptr_mut(&stream);
            let (lse, _lse) = sums.device_ptr_mut(&stream);
            let (ticket, _ticket) = ticket.device_ptr_mut(&stream);
            let mut at = FusedForward {
                q: reads.heads::<T>(q, q_layout)?,
                k: reads.heads::<T>(k, k_layout)?,
                v: reads.heads::<T>(v, v_layout)?,
                phases: reads.phases(&phases, phases_layout)?,
                out: heads_at::<T>(out, &Layout::contiguous(&shape))?,
                lse,
                ticket,
                workspace: 0,
            };
            let bytes = self.cuda.fused_forward_workspace(&attention, &at).map_err(Error::wrap)?;
            // SAFETY: the kernels read what they wrote.
            let mut workspace = unsafe { device.alloc::<u8>(bytes.max(1) as usize)? };
            let (workspace, _workspace) = workspace.device_ptr_mut(&stream);
            at.workspace = workspace;
            // SAFETY: candle's tensors lie in the device's primary context and are freed in the order of its stream,
            // on which the kernels are queued.
            unsafe { self.cuda.fused_landmark_attention(&attention, &at, stream.cu_stream().cast()) }
                .map_err(Error::wrap)?;
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
    fn backward<T: Element>(
        &self,
        sides @ [(q, q_layout), (k, k_layout), (v, v_layout)]: Sides<'_>,
    ) -> Result<(CudaStorage, Shape)> {
        let LandmarkAttention { cuda, phases, lse, .. } = self.forward;
        let attention = self.forward.attention::<T>(&sides)?;
        let (device, stream) = (q.device().clone(), q.device().cuda_stream());
        let shapes = sides.map(|(_, layout)| layout.shape());
        let length: usize = shapes.iter().map(|shape| shape.elem_count()).sum();
        // SAFETY: the kernels write every element.
        let mut all = unsafe { device.alloc::<T>(length)? };
        let (phases, phases_layout) = phases.storage_and_layout();
        let (out, out_layout) = self.out.storage_and_layout();
        let (dout, dout_layout) = self.dout.storage_and_layout();
        let lse = lse.lock().unwrap_or_else(PoisonError::into_inner);
        let lse = lse.as_ref().ok_or_else(|| Error::Msg("a backward pass without a forward pass".into()))?;
        {
            let mut reads = Reads { stream: &stream, held: Vec::new() };
            let (mut next, _all) = all.device_ptr_mut(&stream);
            let [dq, dk, dv] = shapes.map(|shape| {
                let address = next;
                next += (size_of::<T>() * shape.elem_count()) as u64;
                heads_at::<T>(address, &Layout::contiguous(shape))
            });
            let forward = FusedForward {
                q: reads.heads::<T>(q, q_layout)?,
                k: reads.heads::<T>(k, k_layout)?,
                v: reads.heads::<T>(v, v_layout)?,
                phases: reads.phases(&phases, phases_layout)?,
                out: reads.heads::<T>(on_device(&out)?, out_layout)?,
                lse: reads.address(lse),
                ticket: 0,
                workspace: 0,
            };
            let dout = reads.heads::<T>(on_device(&dout)?, dout_layout)?;
            let mut at = FusedGradients { forward, dout, dq: dq?, dk: dk?, dv: dv?, workspace: 0 };
            let bytes = cuda.fused_backward_workspace(&attention, &at).map_err(Error::wrap)?;
            // SAFETY: the kernels read what they wrote.
            let mut workspace = unsafe { device.alloc::<u8>(bytes.max(1) as usize)? };
            let (workspace, _workspace) = workspace.device_ptr_mut(&stream);
            at.workspace = workspace;
            // SAFETY: as in the forward pass.
            unsafe { cuda.fused_landmark_attention_backward(&attention, &at, stream.cu_stream().cast()) }
                .map_err(Error::wrap)?;
        }
        Ok((CudaStorage::wrap_cuda_slice(all, device), Shape::from(length)))
    }
}

/// Calls a method for the element type of the queries.
macro_rules! of_type {
    ($this:ident . $method:ident ($sides:expr)) => {
        match $sides[0].0.dtype() {
            candle_core::DType::BF16 => $this.$method::<bf16>($sides),
            candle_core::DType::F16 => $this.$method::<f16>($sides),
            candle_core::DType::F32 => $this.$method::<f32>($sides),
            other => Err(Error::Msg(format!("landmark attention in {other:?} instead of bf16, f16 or f32"))),
        }
    };
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
        let sides = [(q, q_layout), (k, k_layout), (v, v_layout)];
        of_type!(self.forward(sides))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        // It may be one number, seen as a tensor.
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
        let sides = [(q, q_layout), (k, k_layout), (v, v_layout)];
        of_type!(self.backward(sides))
    }
}
