//! Landmark attention as a call of its own, for models that are not recorded with this project: tensors are addresses
//! and strides, the stream is the caller's. `examples/candle` makes it an op of another framework.
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
//! # What is served, and by what
//!
//! Every GPU from sm_80 on, bf16, f16 and f32, blocks of 2 positions and more or none, any head width, query heads that share key
//! heads, queries that are the last of the keys, any strides. The kernels are those of the recorded op, chosen in the same way;
//! the fastest ask for bf16 or f16 with addresses and strides that are multiples of 16 bytes, and heads whose width is a multiple of
//! 16 up to 128, or 256:
//!
//! | kernels | forward, heads up to 128; of 256 | backward, heads up to 128; of 256 |
//! |---|---|---|
//! | Hopper's matrix units and copy engines (9.0) | blocks of 8 to 160; 8 to 80 | 8 to 128; 8 to 64 |
//! | tensor cores (8.0 and later) | 2 to 256; 9 to 64 | 2 to 128; 9 to 64 |
//! | arithmetic in f32 | all else | all else |
//!
//! Without landmarks the first two serve, too. A GPU with less shared memory than an A100's (8.6, 8.9, 12.x) takes the third for
//! the longest blocks of the widest heads. The third is several times slower, and writes scores down: its workspace is up to 256 MiB,
//! more where the rows of one key head alone need more. How much a pass needs, [`Cuda::fused_forward_workspace`] and
//! [`Cuda::fused_backward_workspace`] say; for a forward pass by the first two it is nothing.
#![allow(unsafe_code)] // Addresses and a stream that callers vouch for.

use crate::arena::aligned;
pub use crate::attention::HeadsAt;
use crate::attention::{Attention, Gradients, LandmarksAt, Launches, RandomnessAt, Side};
use crate::backend::{Cuda, Shared};
use crate::compile::{Arch, Defines};
use crate::driver::{Arg, Launch};
use crate::ops::{landmark_attention, landmark_attention_backward};
use crate::plan::Kernel;
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
    /// Of queries, keys, values and results: [`DType::Bf16`], [`DType::F16`] or [`DType::F32`].
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
    /// [`Cuda::fused_forward_workspace`] bytes, a multiple of 16; undefined before and after. The backward pass does not use it.
    pub workspace: u64,
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
    /// [`Cuda::fused_backward_workspace`] bytes, a multiple of 16; undefined before and after.
    pub workspace: u64,
}

/// Largest extent and stride: what kernels count in 32 bits.
const LARGEST: usize = 1 << 30;

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
        let tiles = batch.saturating_mul(heads).saturating_mul(queries.div_ceil(64));
        if [queries, keys, head_dim, tiles].iter().any(|&n| n > LARGEST) {
            return Err(unsupported(format!("extents beyond 2^30: {:?}", self.heads)));
        }
        if let Some(block @ 0..2) = self.block {
            return Err(unsupported(format!("a block of {block} positions holds no ordinary token")));
        }
        if self.block.is_some_and(|block| block > LARGEST) {
            return Err(unsupported("blocks longer than 2^30 positions"));
        }
        if !self.dtype.is_float() {
            return Err(unsupported(format!("tensors in {} instead of bf16, f16 or f32", self.dtype.name())));
        }
        if self.scale.is_some_and(|scale| !(scale > 0.0 && scale.is_finite())) {
            return Err(unsupported("the scale must be positive"));
        }
        Ok(())
    }

    fn side(&self, name: &str, at: HeadsAt) -> Result<Side> {
        if at.address == 0 || !at.address.is_multiple_of(self.dtype.size() as u64) {
            return Err(unsupported(format!(
                "{name}: {:#x} is no address of {}",
                at.address,
                self.dtype.name()
            )));
        }
        if at.row.max(at.head) > LARGEST {
            return Err(unsupported(format!("{name}: strides beyond 2^30: {at:?}")));
        }
        Ok(Side { at, dtype: self.dtype })
    }

    /// # Errors
    /// What is wrong with extents or addresses, in words.
    fn forward(&self, at: &FusedForward) -> Result<Attention> {
        self.check()?;
        let word = |name: &str, address: u64| match address {
            0 => Err(unsupported(format!("{name}: no address"))),
            _ if !address.is_multiple_of(4) => {
                Err(unsupported(format!("{name}: {address:#x} is no multiple of 4")))
            }
            _ => Ok(address),
        };
        let landmarks = match self.block {
            None => LandmarksAt::Nowhere,
            Some(block) => LandmarksAt::Regular { block, phases: word("phases", at.phases)? },
        };
        Ok(Attention {
            heads: self.heads,
            landmarks,
            scale: self.scale.unwrap_or(1.0 / (self.heads.head_dim as f32).sqrt()),
            q: self.side("q", at.q)?,
            k: self.side("k", at.k)?,
            v: self.side("v", at.v)?,
            out: self.side("out", at.out)?,
            lse: word("lse", at.lse)?,
            miss: None,
            first_key: 0,
            randomness: RandomnessAt::default(),
        })
    }

    fn backward(&self, at: &FusedGradients) -> Result<Gradients> {
        Ok(Gradients {
            forward: self.forward(&at.forward)?,
            dout: self.side("dout", at.dout)?,
            dq: self.side("dq", at.dq)?,
            dk: self.side("dk", at.dk)?,
            dv: self.side("dv", at.dv)?,
        })
    }
}

/// Launches onto a stream, or only the counting of their workspace.
struct AtOnce<'a> {
    shared: &'a Shared,
    /// `None`: counting. Null: the device's own.
    stream: Option<*mut c_void>,
    ticket: u64,
    workspace: u64,
    used: u64,
}

impl<'a> AtOnce<'a> {
    fn counting(shared: &'a Shared) -> Self {
        AtOnce { shared, stream: None, ticket: 0, workspace: 0, used: 0 }
    }

    /// # Safety
    /// The stream is alive, and what is launched may be run.
    unsafe fn onto(
        shared: &'a Shared,
        stream: *mut c_void,
        ticket: u64,
        workspace: u64,
    ) -> Result<AtOnce<'a>> {
        if !workspace.is_multiple_of(16) {
            return Err(unsupported("the workspace's address is not a multiple of 16"));
        }
        shared.device.enter()?;
        Ok(AtOnce { shared, stream: Some(stream), ticket, workspace, used: 0 })
    }
}

impl Launches for AtOnce<'_> {
    fn arch(&self) -> Arch {
        Arch(self.shared.device.info.capability)
    }

    fn multiprocessors(&self) -> u32 {
        self.shared.device.info.multiprocessors
    }

    fn ticket(&self) -> u64 {
        self.ticket
    }

    fn workspace(&mut self, bytes: u64) -> u64 {
        let at = self.used;
        self.used = aligned(at + bytes);
        self.workspace + at
    }

    fn kernel(&mut self, file: &'static str, function: &'static str, defines: Defines) -> Result<Kernel> {
        if self.stream.is_none() {
            return Ok(Kernel(None));
        }
        let module = self.shared.kernels.module(&self.shared.device, file, &defines)?;
        Ok(Kernel(Some(module.function(function)?)))
    }

    fn launch(
        &mut self,
        kernel: &Kernel,
        grid: [u32; 3],
        block: u32,
        shared: u32,
        args: Vec<Arg>,
    ) -> Result<()> {
        let (Some(stream), Some(function)) = (self.stream, kernel.0.clone()) else { return Ok(()) };
        if self.used > 0 && self.workspace == 0 {
            return Err(unsupported(format!("no workspace, where {} bytes are needed", self.used)));
        }
        function.allow_shared(shared)?;
        let launch = Launch { function, grid, block, shared, dependent: false, cluster: 1, args };
        if stream.is_null() {
            return launch.issue(&self.shared.device);
        }
        // SAFETY: promised when this was made.
        unsafe { launch.issue_on(stream.cast()) }
    }

    fn launch_dependent(
        &mut self,
        kernel: &Kernel,
        grid: [u32; 3],
        block: u32,
        shared: u32,
        args: Vec<Arg>,
    ) -> Result<()> {
        // What runs ahead of it on the caller's stream does not know of it.
        self.launch(kernel, grid, block, shared, args)
    }
}

impl Cuda {
    /// Bytes of memory that a forward pass needs besides its tensors; `at` as the pass will get it, but for the workspace.
    ///
    /// # Errors
    /// As [the pass](Self::fused_landmark_attention), whose kernels are not compiled yet.
    pub fn fused_forward_workspace(&self, attention: &FusedAttention, at: &FusedForward) -> Result<u64> {
        let mut count = AtOnce::counting(self.shared());
        landmark_attention::forward(&attention.forward(at)?, &mut count)?;
        Ok(count.used)
    }

    /// Bytes of memory that a backward pass needs besides its tensors; `at` as the pass will get it, but for the workspace.
    ///
    /// # Errors
    /// As [the pass](Self::fused_landmark_attention_backward), whose kernels are not compiled yet.
    pub fn fused_backward_workspace(&self, attention: &FusedAttention, at: &FusedGradients) -> Result<u64> {
        let mut count = AtOnce::counting(self.shared());
        landmark_attention_backward::backward(&attention.backward(at)?, &mut count)?;
        Ok(count.used)
    }

    /// `out = P · v`, `P` the grouped softmax of `q · kᵀ · scale`; see [the module](crate::fused).
    ///
    /// Queues one kernel on `stream` (a `CUstream` of the device's primary context; null: this object's own stream), or a few where
    /// arithmetic in f32 serves, and returns. The first call with a new block length, head width or element type compiles the kernels
    /// or takes them from the cache.
    ///
    /// # Errors
    /// [`Error::Unsupported`], in words: extents that are 0, beyond 2^30 or do not belong together (more queries than keys, heads that
    /// cannot share key heads), a block of fewer than 2 positions, tensors that are no floats, a scale that is not positive, an address that is
    /// missing or not a multiple of its elements' size, a workspace that is missing or askew. [`Error::Device`]: what driver and compiler say.
    ///
    /// # Safety
    /// Every element that `at` describes lies in memory that the device may access, and stays there until the stream has run the
    /// kernels. Nothing else writes `out`, `lse`, `ticket` and the workspace meanwhile, nor reads them; nothing writes the inputs. The
    /// stream is alive.
    pub unsafe fn fused_landmark_attention(
        &self,
        attention: &FusedAttention,
        at: &FusedForward,
        stream: *mut c_void,
    ) -> Result<()> {
        let pass = attention.forward(at)?;
        if at.ticket == 0 || !at.ticket.is_multiple_of(4) {
            return Err(unsupported("the ticket is no address of a u32"));
        }
        // SAFETY: the caller's promise.
        let mut onto = unsafe { AtOnce::onto(self.shared(), stream, at.ticket, at.workspace) }?;
        landmark_attention::forward(&pass, &mut onto)
    }

    /// Gradients of `q`, `k` and `v` from that of `out` and from what [the forward pass](Self::fused_landmark_attention) read and
    /// wrote. The same bits every time.
    ///
    /// Queues two kernels on `stream`, or more where their workspace would be large or arithmetic in f32 serves, and returns; else as
    /// the forward pass.
    ///
    /// # Errors
    /// As the forward pass.
    ///
    /// # Safety
    /// As the forward pass; this writes `dq`, `dk`, `dv` and the workspace.
    pub unsafe fn fused_landmark_attention_backward(
        &self,
        attention: &FusedAttention,
        at: &FusedGradients,
        stream: *mut c_void,
    ) -> Result<()> {
        let pass = attention.backward(at)?;
        // SAFETY: the caller's promise.
        let mut onto = unsafe { AtOnce::onto(self.shared(), stream, 0, at.workspace) }?;
        landmark_attention_backward::backward(&pass, &mut onto)
    }
}
