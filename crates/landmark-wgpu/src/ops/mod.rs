//! Launchers: what each op becomes on the device.
//!
//! One file an op, named as the op's file in the core. A launcher reads the op and its tensors' shapes and types, and
//! appends dispatches to the [`Compiler`].

mod copy;
mod cross_entropy;
mod elementwise;
mod embed;
mod landmark_attention;
mod likeliest;
mod matmul;
pub(crate) mod matvec;
pub(crate) mod memory;
mod norm;
mod retrieval;
mod retrieval_alone;
mod retrieval_units;
pub(crate) mod rope;

use crate::plan::Compiler;
use landmark_core::Result;
use landmark_core::ops::Op;

/// Text that several shaders share: the state of a memory, and the grouped softmax of a workgroup.
const MEMORY: &str = include_str!("../shaders/memory.wgsl");
const SOFTMAX: &str = include_str!("../shaders/grouped_softmax.wgsl");

/// Why an op has no kernel.
const TRAINING: &str =
    "the wgpu backend runs models and does not train them: train with --device cuda or --device cpu";

/// Launches an op.
pub(crate) fn launch(c: &mut Compiler<'_>) -> Result<()> {
    match c.op() {
        Op::AddNorm(op) => norm::add_norm(op, c),
        Op::AppendKv(op) => memory::append_kv(op, c),
        Op::CopyRows(op) => copy::copy_rows(op, c),
        Op::Embed(op) => embed::embed(op, c),
        Op::Fill(op) => elementwise::fill(op, c),
        Op::Gelu(op) => elementwise::gelu(op, c),
        Op::LandmarkAttention(op) => landmark_attention::landmark_attention(op, c),
        Op::LandmarkScores(op) => memory::landmark_scores(op, c),
        Op::Likeliest(op) => likeliest::likeliest(op, c),
        Op::LinearCrossEntropy(op) => cross_entropy::linear_cross_entropy(op, c),
        Op::Matmul(op) => matmul::matmul(op, c),
        Op::Norm(op) => norm::norm(op, c),
        Op::RetrievalAttention(op) => retrieval::retrieval_attention(op, c),
        Op::Rope(op) => rope::rope(op, c),
        Op::SelectBlocks(op) => memory::select_blocks(op, c),
        Op::SwiGlu(op) => elementwise::swiglu(op, c),
        _ => Err(c.unsupported(TRAINING)),
    }
}
