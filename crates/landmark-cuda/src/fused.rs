//! Landmark attention as a call of its own, for models that are not recorded with this project: tensors are addresses
//! and strides, the stream is the caller's.
//!
//! Putting it into a model takes three changes:
//!
//! 1. **Tokens.** A landmark token, one new entry of the vocabulary, goes into the input after every `block - 1` ordinary ones. (The
//!    new rows of embedding and output matrix may start as the mean of the old ones.)
//! 2. **Attention.** [`Cuda::fused_landmark_attention`] takes the place of causal attention, queries and keys with their
//!    positions applied. `phases[b]` says how far row `b`'s first key is into its block, so that key `j` is a landmark where
//!    `(j + phases[b]) % block == block - 1`: 0 where rows begin with a block, anything where they are cut out of a stream.
//!    The results `out` and `lse` are what the backward pass, [`Cuda::fused_landmark_attention_backward`], needs besides its
//!    inputs and the gradient of `out`.
//! 3. **Loss.** A landmark is no token to be predicted: the target of the token ahead of it is the token behind it, and the
//!    landmark's own output has no target.
//!
//! On Hopper, in bf16 and f16; the recorded op serves everything else.
#![allow(unsafe_code)] // Addresses and a stream that callers vouch for.

use crate::backend::Cuda;
use crate::driver::Launch;
use crate::ops::landmark_attention_backward_hopper::FusedBackward;
use crate::ops::landmark_attention_hopper::Fused;
pub use crate::ops::landmark_attention_hopper::HeadsAt;
use landmark_core::ops::Heads;
use landmark_core::{DType, Error, Result};
use std::ffi::c_void;

/// Sizes and kind of an attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FusedAttention {
    /// Extents; the queries are the last positions of the keys.
    pub heads: Heads,
    /// Positions of a block, its landmark included; `None`: plain causal attention.
    pub block: Option<usize>,
    /// Of queries, keys, values and results: [`DType::Bf16`] or [`DType::F16`].
    pub dtype: DType,
    /// What scores are multiplied by; `None`: `1 / sqrt(head_dim)`.
    pub scale: Option<f32>,
}

/// Where a forward pass reads and writes, all in the memory of the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FusedForward {
    /// Queries `(B, Nq, H, D)`.
    pub q: HeadsAt,
    /// Keys `(B, Nk, Hkv, D)`.
    pub k: HeadsAt,
    /// Values `(B, Nk, Hkv, D)`.
    pub v: HeadsAt,
    /// `(B)` u32; not read without landmarks.
    pub phases: u64,
    /// Results `(B, Nq, H, D)`, `=`.
    pub out: HeadsAt,
    /// Log of the outer sums `(B, H, Nq)` f32, `=`; negative infinity where a query has nothing to attend to.
    pub lse: u64,
    /// `(1)` u32, 0 before the first call and left at 0 by every call. Calls that may run at the same time, on different streams,
    /// need one each. The backward pass does not use it.
    pub ticket: u64,
}

/// Where a backward pass reads and writes, all in the memory of the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FusedGradients {
    /// What the forward pass read and wrote.
    pub forward: FusedForward,
    /// Gradient of `out` `(B, Nq, H, D)`.
    pub dout: HeadsAt,
    /// Gradient of `q` `(B, Nq, H, D)`, `=`.
    pub dq: HeadsAt,
    /// Gradient of `k` `(B, Nk, Hkv, D)`, `=`, summed over the query heads that share a key head.
    pub dk: HeadsAt,
    /// Gradient of `v`, likewise.
    pub dv: HeadsAt,
    /// [`FusedAttention::backward_workspace`] bytes, a multiple of 16; undefined before and after.
    pub workspace: u64,
}

fn unsupported(reason: impl Into<String>) -> Error {
    Error::Unsupported { op: "fused_landmark_attention", reason: reason.into() }
}

impl FusedAttention {
    /// # Errors
    /// Extents that do not belong together, in words.
    fn check(&self) -> Result<()> {
        let Heads { batch, queries, keys, heads, kv_heads, head_dim } = self.heads;
        if [batch, queries, keys, heads, kv_heads, head_dim].contains(&0) {
            return Err(unsupported(format!("an extent of 0: {:?}", self.heads)));
        }
        if queries > keys {
            return Err(unsupported(format!("{queries} queries are more than {keys} keys")));
        }
        if !heads.is_multiple_of(kv_heads) {
            return Err(unsupported(format!("{heads} heads cannot share {kv_heads} key heads")));
        }
        if [queries, keys, batch * heads * queries.div_ceil(64)].iter().any(|&n| n > 1 << 30) {
            return Err(unsupported(format!("extents beyond 2^30: {:?}", self.heads)));
        }
        if let Some(block @ 0..2) = self.block {
            return Err(unsupported(format!("a block of {block} positions holds no ordinary token")));
        }
        if self.scale.is_some_and(|scale| !(scale > 0.0 && scale.is_finite())) {
            return Err(unsupported("the scale must be positive"));
        }
        Ok(())
    }

    /// Bytes of memory that a backward pass needs besides its tensors.
    pub fn backward_workspace(&self) -> u64 {
        if self.check().is_err() { 0 } else { self.backward(&FusedGradients::default()).workspace_bytes() }
    }

    fn backward(&self, at: &FusedGradients) -> FusedBackward {
        let FusedForward { q, k, v, phases, out, lse, ticket: _ } = at.forward;
        let FusedGradients { dout, dq, dk, dv, .. } = *at;
        let block = self.block.unwrap_or(0);
        let (heads, dtype, scale) = (self.heads, self.dtype, self.scale());
        FusedBackward { heads, block, dtype, scale, q, k, v, out, dout, dq, dk, dv, phases, lse }
    }

    fn scale(&self) -> f32 {
        self.scale.unwrap_or(1.0 / (self.heads.head_dim as f32).sqrt())
    }
}

impl Cuda {
    /// `out = P · v`, `P` the grouped softmax of `q · kᵀ · scale`; see [the module](crate::fused).
    ///
    /// Queues one kernel on `stream` (a `CUstream` of the device's primary context; null: this object's own stream) and
    /// returns. The first call with a new block length, head width or element type compiles the kernel or takes it from the cache.
    ///
    /// # Errors
    /// No Hopper GPU, or sizes, element types or strides that the kernel does not serve, each in words.
    ///
    /// # Safety
    /// Every element that `at` describes lies in memory that the device may access, and stays there until the stream has run the
    /// kernel. Nothing else writes `out`, `lse` and `ticket` meanwhile, nor reads them; nothing writes the inputs. The stream is
    /// alive.
    pub unsafe fn fused_landmark_attention(
        &self,
        attention: &FusedAttention,
        at: &FusedForward,
        stream: *mut c_void,
    ) -> Result<()> {
        attention.check()?;
        let FusedForward { q, k, v, phases, out, lse, ticket } = *at;
        let (block, scale) = (attention.block.unwrap_or(0), attention.scale());
        let (heads, dtype) = (attention.heads, attention.dtype);
        let fused = Fused { heads, block, dtype, scale, q, k, v, out, phases, ticket, lse };
        let shared = self.shared();
        if self.info().capability != 90 {
            return Err(unsupported(format!("{} is not a Hopper GPU", self.info().name)));
        }
        if let Some(reason) = fused.refusal() {
            return Err(unsupported(reason));
        }
        if ticket == 0 || !ticket.is_multiple_of(4) {
            return Err(unsupported("the ticket is no address of a u32"));
        }
        shared.device.enter()?;
        let Some((file, function, defines)) = fused.kernel() else { return Err(unsupported("these sizes")) };
        let function = shared.kernels.module(&shared.device, file, &defines)?.function(function)?;
        let launch = fused.launch(self.info().multiprocessors)?;
        function.allow_shared(launch.shared)?;
        let (grid, block, shared_bytes, args) = (launch.grid, launch.threads, launch.shared, launch.args);
        let launch =
            Launch { function, grid, block, shared: shared_bytes, dependent: false, cluster: 1, args };
        if stream.is_null() {
            return launch.issue(&shared.device);
        }
        // SAFETY: the caller's promise.
        unsafe { launch.issue_on(stream.cast()) }
    }

    /// Gradients of `q`, `k` and `v` from that of `out` and from what [the forward pass](Self::fused_landmark_attention) read and
    /// wrote. The same bits every time.
    ///
    /// Queues two kernels on `stream`, or more where their workspace would be large, and returns; else as the forward pass.
    ///
    /// # Errors
    /// As the forward pass. Blocks longer than 128 positions, or than 64 where heads have 256 columns, are not served.
    ///
    /// # Safety
    /// As the forward pass; this writes `dq`, `dk`, `dv` and the workspace.
    pub unsafe fn fused_landmark_attention_backward(
        &self,
        attention: &FusedAttention,
        at: &FusedGradients,
        stream: *mut c_void,
    ) -> Result<()> {
        attention.check()?;
        let fused = attention.backward(at);
        let shared = self.shared();
        if self.info().capability != 90 {
            return Err(unsupported(format!("{} is not a Hopper GPU", self.info().name)));
        }
        if let Some(reason) = fused.refusal() {
            return Err(unsupported(reason));
        }
        if !at.workspace.is_multiple_of(16) {
            return Err(unsupported("the workspace's address is not a multiple of 16"));
        }
        shared.device.enter()?;
        let load = |(file, function, defines)| {
            shared.kernels.module(&shared.device, file, &defines)?.function(function)
        };
        let [queries, keys] = fused.kernels();
        let functions = [load(queries)?, load(keys)?];
        for launch in fused.launches(at.workspace)? {
            let function = functions[launch.kernel].clone();
            function.allow_shared(launch.shared)?;
            let (grid, block, shared_bytes, args) = (launch.grid, launch.threads, launch.shared, launch.args);
            let launch =
                Launch { function, grid, block, shared: shared_bytes, dependent: false, cluster: 1, args };
            if stream.is_null() {
                launch.issue(&shared.device)?;
            } else {
                // SAFETY: the caller's promise.
                unsafe { launch.issue_on(stream.cast()) }?;
            }
        }
        Ok(())
    }
}
