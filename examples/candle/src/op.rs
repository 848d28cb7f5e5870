//! The op: what candle asks of a custom op, and the addresses and strides that the kernel wants.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use candle_core::{CpuStorage, CudaStorage, CustomOp3, Error, Layout, Result, Shape, Storage, Tensor};
use half::bf16;
use landmark_core::DType;
use landmark_core::ops::Heads;
use landmark_cuda::Cuda;
use landmark_cuda::fused::{FusedAttention, FusedForward, HeadsAt};
use std::sync::Arc;

/// Causal attention with landmarks: queries `(B, H, Nq, D)`, keys and values `(B, Hkv, Nk, D)` in bf16, positions applied.
pub struct LandmarkAttention {
    /// The device, opened once.
    pub cuda: Arc<Cuda>,
    /// Positions of a block, its landmark included.
    pub block: usize,
    /// `(B)` u32: how far each row's first key is into its block.
    pub phases: Tensor,
}

fn heads_at(address: u64, layout: &Layout) -> Result<HeadsAt> {
    match *layout.stride() {
        [batch, head, row, 1] => {
            Ok(HeadsAt { address: address + 2 * layout.start_offset() as u64, batch, row, head })
        }
        ref other => Err(Error::Msg(format!("strides {other:?}: the head's own columns must be dense"))),
    }
}

/// The address of a slice that `stream` is about to read. What is returned beside it is held until the kernel is queued.
fn reading<'a, T>(slice: &'a CudaSlice<T>, stream: &'a CudaStream) -> (u64, impl Drop + 'a) {
    slice.device_ptr(stream)
}

impl LandmarkAttention {
    fn run(
        &self,
        sides: [(&CudaStorage, &Layout); 3],
        phases: &CudaSlice<u32>,
    ) -> Result<(CudaStorage, Shape)> {
        let [(q, q_layout), (k, k_layout), (v, v_layout)] = sides;
        let (batch, heads, queries, head_dim) = q_layout.shape().dims4()?;
        let (_, kv_heads, keys, _) = k_layout.shape().dims4()?;
        let device = q.device().clone();
        let stream = device.cuda_stream();
        let shape = Shape::from((batch, heads, queries, head_dim));
        // SAFETY: the kernel writes every element of both.
        let (mut out, mut lse) = unsafe {
            (device.alloc::<bf16>(shape.elem_count())?, device.alloc::<f32>(batch * heads * queries)?)
        };
        {
            let (q, _q) = reading(q.as_cuda_slice::<bf16>()?, &stream);
            let (k, _k) = reading(k.as_cuda_slice::<bf16>()?, &stream);
            let (v, _v) = reading(v.as_cuda_slice::<bf16>()?, &stream);
            let (phases, _phases) = reading(phases, &stream);
            let (out, _out) = out.device_ptr_mut(&stream);
            let (lse, _lse) = lse.device_ptr_mut(&stream);
            let attention = FusedAttention {
                heads: Heads { batch, queries, keys, heads, kv_heads, head_dim },
                block: Some(self.block),
                dtype: DType::Bf16,
                scale: None,
            };
            let at = FusedForward {
                q: heads_at(q, q_layout)?,
                k: heads_at(k, k_layout)?,
                v: heads_at(v, v_layout)?,
                phases,
                out: heads_at(out, &Layout::contiguous(&shape))?,
                lse,
            };
            // SAFETY: candle's tensors lie in the device's primary context and are freed in the order of its stream,
            // on which the kernel is queued.
            let queued =
                unsafe { self.cuda.fused_landmark_attention(&attention, &at, stream.cu_stream().cast()) };
            queued.map_err(Error::wrap)?;
        }
        // `lse` is what the backward pass needs besides inputs and result: keep it for `bwd` where the model is trained.
        drop(lse);
        Ok((CudaStorage::wrap_cuda_slice(out, device), shape))
    }
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
        Err(Error::Msg("landmark attention runs on a GPU here".into()))
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
        let (phases, _) = self.phases.storage_and_layout();
        let Storage::Cuda(phases) = &*phases else {
            return Err(Error::Msg("the phases must be on the device".into()));
        };
        self.run([(q, q_layout), (k, k_layout), (v, v_layout)], phases.as_cuda_slice::<u32>()?)
    }
}
