//! Launchers: what each op becomes on the device.
//!
//! One file an op, named as the op's file in the core. A launcher reads the op and its tensors' shapes and types, and
//! appends launches to the [`Compiler`]. It may look at the ops behind its own and take some of them along; it
//! returns how many ops it took.

mod copy;
mod cross_entropy;
mod dropout;
mod elementwise;
mod embed;
pub(crate) mod landmark_attention;
mod landmark_attention_any;
pub(crate) mod landmark_attention_backward;
mod landmark_attention_backward_hopper;
mod landmark_attention_hopper;
mod likeliest;
mod matmul;
mod matvec;
mod memory;
mod norm;
mod optimizer;
mod retrieval_decode;
mod retrieval_prefill;
mod rope;

use crate::compile::{Defines, Variant};
use crate::plan::Compiler;
use landmark_core::Result;
use landmark_core::ops::Op;

/// Launches the next op or ops; returns how many.
pub(crate) fn launch(c: &mut Compiler<'_>) -> Result<usize> {
    let taken = retrieval_decode::try_launch(c)?;
    if taken > 0 {
        return Ok(taken);
    }
    let taken = retrieval_prefill::try_choice(c)?;
    if taken > 0 {
        return Ok(taken);
    }
    let taken = matvec::try_group(c)?;
    if taken > 0 {
        return Ok(taken);
    }
    let op = c.ahead()[0].clone();
    match &op {
        Op::Adafactor(op) => optimizer::adafactor(op, c)?,
        Op::AdamW(op) => optimizer::adamw(op, c)?,
        Op::AddNorm(op) => norm::add_norm(op, c)?,
        Op::Bernoulli(op) => dropout::bernoulli(op, c)?,
        Op::ClipScale(op) => optimizer::clip_scale(op, c)?,
        Op::CopyRows(op) => copy::copy_rows(op, c)?,
        Op::Dropout(op) => dropout::dropout(op, c)?,
        Op::Embed(op) => embed::embed(op, c)?,
        Op::EmbedBackward(op) => embed::embed_backward(op, c)?,
        Op::Fill(op) => copy::fill(op, c)?,
        Op::AppendKv(op) => memory::append_kv(op, c)?,
        Op::LandmarkScores(op) => memory::landmark_scores(op, c)?,
        Op::RetrievalAttention(op) => memory::retrieval_attention(op, c)?,
        Op::SelectBlocks(op) => memory::select_blocks(op, c)?,
        Op::Gelu(op) => elementwise::gelu(op, c)?,
        Op::GeluBackward(op) => elementwise::gelu_backward(op, c)?,
        Op::LandmarkAttention(op) => landmark_attention::launch(op, c)?,
        Op::LandmarkAttentionBackward(op) => landmark_attention_backward::launch(op, c)?,
        Op::Likeliest(op) => likeliest::likeliest(op, c)?,
        Op::LinearCrossEntropy(op) => cross_entropy::linear_cross_entropy(op, c)?,
        Op::Matmul(op) => matmul::matmul(op, c)?,
        Op::Norm(op) => norm::norm(op, c)?,
        Op::NormBackward(op) => return norm::norm_backward(op, c),
        Op::Rope(op) => return rope::rope(op, c),
        Op::Sgd(op) => optimizer::sgd(op, c)?,
        Op::SquaredNorm(op) => optimizer::squared_norm(op, c)?,
        Op::SumRows(op) => matmul::sum_rows(op, c)?,
        Op::SwiGlu(op) => elementwise::swiglu(op, c)?,
        Op::SwiGluBackward(op) => elementwise::swiglu_backward(op, c)?,
    }
    Ok(1)
}

/// Every kernel variant that the launchers may ask for, for the sizes of common models: what is compiled without a GPU
/// to see that it compiles and spills no registers.
pub fn variants() -> Vec<Variant> {
    let mut all = vec![Variant::new("apply_copies.cu", Defines::new())];
    all.extend(copy::variants());
    all.extend(cross_entropy::variants());
    all.extend(dropout::variants());
    all.extend(elementwise::variants());
    all.extend(embed::variants());
    all.extend(landmark_attention_hopper::variants());
    all.extend(landmark_attention::variants());
    all.extend(landmark_attention_any::variants());
    all.extend(landmark_attention_backward::variants());
    all.extend(likeliest::variants());
    all.extend(matmul::variants());
    all.extend(matvec::variants());
    all.extend(memory::variants());
    all.extend(norm::variants());
    all.extend(optimizer::variants());
    all.extend(retrieval_decode::variants());
    all.extend(retrieval_prefill::variants());
    all.extend(rope::variants());
    all.extend(landmark_attention_backward_hopper::variants());
    all
}
