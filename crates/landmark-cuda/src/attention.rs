//! Landmark attention with addresses in place of tensors: what the recorded op and the library call ([`crate::fused`]) both
//! become, so that one choice of kernels and one way of launching them serve both.

use crate::compile::{Arch, Defines};
use crate::driver::Arg;
use crate::plan::Kernel;
use landmark_core::ops::Heads;
use landmark_core::{DType, Result};
use std::sync::Arc;

/// `(batch, rows, heads, head_dim)` in device memory. Strides in elements; `head_dim` is dense.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeadsAt {
    /// Of the first element.
    pub address: u64,
    /// From one row of the batch to the next.
    pub batch: usize,
    /// From one position to the next.
    pub row: usize,
    /// From one head to the next.
    pub head: usize,
}

impl HeadsAt {
    /// Whether every row of a head begins at a multiple of 16 bytes in a tensor of halves.
    fn is_aligned(&self) -> bool {
        self.address.is_multiple_of(16)
            && [self.batch, self.row, self.head].iter().all(|s| s.is_multiple_of(8))
    }
}

/// One of the tensors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Side {
    pub(crate) at: HeadsAt,
    pub(crate) dtype: DType,
}

/// Where the landmarks are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LandmarksAt {
    Nowhere,
    /// `phases`: `(B)` u32.
    Regular {
        block: usize,
        phases: u64,
    },
    /// `(B, tokens)` u32.
    Anywhere {
        is_landmark: u64,
    },
}

/// Dropout, and the seed that it draws from.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RandomnessAt {
    pub(crate) seed: u64,
    pub(crate) salt: u32,
    pub(crate) dropout: f32,
    pub(crate) group_dropout: f32,
}

/// A forward pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention {
    pub(crate) heads: Heads,
    pub(crate) landmarks: LandmarksAt,
    /// What scores are multiplied by.
    pub(crate) scale: f32,
    pub(crate) q: Side,
    pub(crate) k: Side,
    pub(crate) v: Side,
    pub(crate) out: Side,
    /// `(B, H, Nq)` f32.
    pub(crate) lse: u64,
    /// With a context-miss token: where the gated landmarks are, or 0.
    pub(crate) miss: Option<u64>,
    /// `(B)` u32, or 0.
    pub(crate) first_key: u64,
    pub(crate) randomness: RandomnessAt,
}

/// A backward pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gradients {
    pub(crate) forward: Attention,
    pub(crate) dout: Side,
    pub(crate) dq: Side,
    pub(crate) dk: Side,
    pub(crate) dv: Side,
}

/// A forward pass whose tensors are all of one half type and aligned, over regular blocks or none, without a context-miss
/// token and dropout: what tensor cores may serve.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Halves {
    pub(crate) heads: Heads,
    /// Positions of a block; 0: no landmarks.
    pub(crate) block: usize,
    pub(crate) dtype: DType,
    pub(crate) scale: f32,
    pub(crate) q: HeadsAt,
    pub(crate) k: HeadsAt,
    pub(crate) v: HeadsAt,
    pub(crate) out: HeadsAt,
    /// `(B)` u32; anything without landmarks.
    pub(crate) phases: u64,
    /// `(B)` u32, or 0.
    pub(crate) first_key: u64,
    /// `(B, H, Nq)` f32.
    pub(crate) lse: u64,
}

/// The same of a backward pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HalfGradients {
    pub(crate) forward: Halves,
    pub(crate) dout: HeadsAt,
    pub(crate) dq: HeadsAt,
    pub(crate) dk: HeadsAt,
    pub(crate) dv: HeadsAt,
}

impl Attention {
    /// The pass as one of halves, if it is one.
    pub(crate) fn halves(&self) -> Option<Halves> {
        let (block, phases) = match self.landmarks {
            LandmarksAt::Nowhere => (0, 0),
            LandmarksAt::Regular { block, phases } => (block, phases),
            LandmarksAt::Anywhere { .. } => return None,
        };
        let Attention { heads, scale, q, k, v, out, lse, first_key, .. } = *self;
        let dtype = q.dtype;
        let is_dropping = self.randomness.dropout > 0.0 || self.randomness.group_dropout > 0.0;
        let serves = self.miss.is_none() && !is_dropping && are_halves(dtype, &[q, k, v, out]);
        let [q, k, v, out] = [q, k, v, out].map(|side| side.at);
        serves.then_some(Halves { heads, block, dtype, scale, q, k, v, out, phases, first_key, lse })
    }
}

impl Gradients {
    /// The pass as one of halves, if it is one.
    pub(crate) fn halves(&self) -> Option<HalfGradients> {
        let forward = self.forward.halves()?;
        let sides = [self.dout, self.dq, self.dk, self.dv];
        let [dout, dq, dk, dv] = sides.map(|side| side.at);
        are_halves(forward.dtype, &sides).then_some(HalfGradients { forward, dout, dq, dk, dv })
    }
}

fn are_halves(dtype: DType, sides: &[Side]) -> bool {
    matches!(dtype, DType::Bf16 | DType::F16)
        && sides.iter().all(|side| side.dtype == dtype && side.at.is_aligned())
}

/// Where launches go: into a program, or at once onto a stream.
pub(crate) trait Launches {
    fn arch(&self) -> Arch;

    fn multiprocessors(&self) -> u32;

    /// A word that is 0 between launches, for kernels that hand out work and leave it so.
    fn ticket(&self) -> u64;

    /// `bytes` of memory of this pass alone, undefined at the beginning. May be called several times, ahead of launches.
    fn workspace(&mut self, bytes: u64) -> u64;

    /// Function `function` of `kernels/<file>` under these definitions.
    fn kernel(&mut self, file: &'static str, function: &'static str, defines: Defines) -> Result<Kernel>;

    /// Appends a launch: grid in blocks, threads of a block, bytes of dynamic shared memory.
    fn launch(
        &mut self,
        kernel: &Kernel,
        grid: [u32; 3],
        block: u32,
        shared: u32,
        args: Vec<Arg>,
    ) -> Result<()>;

    /// The same for a kernel that begins with `wait_for_launch_ahead()`, and so may start early.
    fn launch_dependent(
        &mut self,
        kernel: &Kernel,
        grid: [u32; 3],
        block: u32,
        shared: u32,
        args: Vec<Arg>,
    ) -> Result<()>;
}

/// A struct that a kernel takes by value: its members in order. The kernel file asserts its size.
#[derive(Default)]
pub(crate) struct Struct(Vec<u8>);

impl Struct {
    pub(crate) fn address(mut self, address: u64) -> Self {
        debug_assert!(self.0.len().is_multiple_of(8), "addresses stand before smaller members");
        self.0.extend(address.to_le_bytes());
        self
    }

    pub(crate) fn int(mut self, value: usize) -> Self {
        debug_assert!(i32::try_from(value).is_ok(), "extents fit into 31 bits");
        self.0.extend((value as i32).to_le_bytes());
        self
    }

    pub(crate) fn signed(mut self, value: i32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn word(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn float(mut self, value: f32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    /// Of some heads: address, and strides in elements from one row of the batch, position and head to the next.
    pub(crate) fn heads(self, at: HeadsAt) -> Self {
        let mut this = self.address(at.address);
        this.0.extend((at.batch as u64).to_le_bytes());
        this.int(at.row).int(at.head)
    }

    /// As the kernel's parameter of `bytes` bytes.
    pub(crate) fn finish(mut self, bytes: usize) -> Arg {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        debug_assert_eq!(self.0.len(), bytes, "the kernel's struct has another size");
        let words = self.0.chunks_exact(8).map(|b| b.iter().rev().fold(0, |w, &b| w << 8 | u64::from(b)));
        Arg::from(words.collect::<Arc<[u64]>>())
    }
}
