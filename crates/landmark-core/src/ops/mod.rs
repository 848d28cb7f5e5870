//! The op vocabulary: what a program can say.
//!
//! Ops are as coarse as the kernels that run them. Each is a struct with named fields whose documentation
//! states the maths, the shapes, and whether a result replaces (`=`) or is added to (`+=`) what was there.
//! An op declares its operands once, with how each is accessed; shape checks, the memory plan, printing,
//! counting, the reverse walk and the lockstep comparison are all written over that declaration.
//!
//! In shapes, `B` is the batch, `T` the positions of one row, `N` rows of a tensor seen as a matrix, `C` the
//! width of the model, `V` the vocabulary, `H` heads, `D` the head dimension.

mod copy;
mod cross_entropy;
mod dropout;
mod elementwise;
mod embed;
mod landmark_attention;
mod likeliest;
mod matmul;
mod memory;
mod norm;
mod optimizer;
mod rope;

pub use copy::{CopyRows, Fill};
pub use cross_entropy::{LinearCrossEntropy, LossGradient};
pub use dropout::{Bernoulli, Dropout};
pub use elementwise::{Gelu, GeluBackward, SwiGlu, SwiGluBackward};
pub use embed::{Embed, EmbedBackward};
pub use landmark_attention::{
    AttentionGradients, Blocks, Heads, LandmarkAttention, LandmarkAttentionBackward, MissToken, Randomness,
};
pub use likeliest::Likeliest;
pub use matmul::{Matmul, SumRows};
pub use memory::{
    AppendKv, LandmarkScores, MemoryShape, MemoryState, NO_BLOCK, Origin, RetrievalAttention, SelectBlocks,
    Selection,
};
pub use norm::{AddNorm, Norm, NormBackward, NormKind};
pub use optimizer::{Adafactor, AdamW, ClipScale, Sgd, SquaredNorm};
pub use rope::{Rope, RopeStyle};

use crate::count::Cost;
use crate::program::Program;
use crate::reverse::Reverse;
use crate::tensor::{Cols, DType, Out, Shape, Tensor};

/// How an op touches an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads it.
    Read,
    /// Writes all of it (`=`), without reading it first.
    Write,
    /// Writes a part of it and leaves the rest.
    Part,
    /// Reads and writes it (`+=`, or in place).
    Update,
}

/// One operand of an op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operand {
    /// Name of the op's field.
    pub field: &'static str,
    /// The tensor.
    pub tensor: Tensor,
    /// How it is touched.
    pub access: Access,
}

/// Collects the operands that an op declares.
#[derive(Default)]
pub struct Operands(Vec<Operand>);

impl Operands {
    fn read(&mut self, field: &'static str, tensor: impl Into<Option<Tensor>>) {
        self.push(field, tensor.into(), Access::Read);
    }
    fn write(&mut self, field: &'static str, tensor: impl Into<Option<Tensor>>) {
        self.push(field, tensor.into(), Access::Write);
    }
    fn update(&mut self, field: &'static str, tensor: impl Into<Option<Tensor>>) {
        self.push(field, tensor.into(), Access::Update);
    }
    fn out(&mut self, field: &'static str, out: impl Into<Option<Out>>) {
        if let Some(out) = out.into() {
            self.push(field, Some(out.tensor), if out.add { Access::Update } else { Access::Write });
        }
    }
    fn part(&mut self, field: &'static str, tensor: Tensor) {
        self.push(field, Some(tensor), Access::Part);
    }
    /// Two operands of one op may be parts of one tensor (queries and keys of a fused `qkv`).
    fn push(&mut self, field: &'static str, tensor: Option<Tensor>, access: Access) {
        if let Some(tensor) = tensor {
            self.0.push(Operand { field, tensor, access });
        }
    }
}

/// What every op can say of itself.
pub trait Operation {
    /// Its name, the same in every place where it lives.
    fn name(&self) -> &'static str;
    /// Declares every operand.
    fn operands(&self, operands: &mut Operands);
    /// Whether the shapes fit; if not, which operand and why.
    fn check(&self, program: &Program) -> Result<(), String>;
    /// What one run costs.
    fn cost(&self, program: &Program) -> Cost;
    /// Records the ops that compute its gradients.
    ///
    /// # Panics
    /// When the op has no gradient.
    fn backward(&self, _reverse: &mut Reverse<'_>) {
        panic!("{} has no gradient", self.name());
    }
}

macro_rules! vocabulary {
    ($($op:ident),* $(,)?) => {
        /// Any op.
        #[derive(Clone, Debug)]
        pub enum Op { $(
            #[doc = concat!("See [`", stringify!($op), "`].")]
            $op($op),
        )* }

        $(impl From<$op> for Op {
            fn from(op: $op) -> Self { Op::$op(op) }
        })*

        impl Operation for Op {
            fn name(&self) -> &'static str { match self { $(Op::$op(op) => op.name()),* } }
            fn operands(&self, operands: &mut Operands) { match self { $(Op::$op(op) => op.operands(operands)),* } }
            fn check(&self, program: &Program) -> Result<(), String> { match self { $(Op::$op(op) => op.check(program)),* } }
            fn cost(&self, program: &Program) -> Cost { match self { $(Op::$op(op) => op.cost(program)),* } }
            fn backward(&self, reverse: &mut Reverse<'_>) { match self { $(Op::$op(op) => op.backward(reverse)),* } }
        }
    };
}

vocabulary!(
    Adafactor,
    AdamW,
    AddNorm,
    AppendKv,
    Bernoulli,
    ClipScale,
    CopyRows,
    Dropout,
    Embed,
    EmbedBackward,
    Fill,
    Gelu,
    GeluBackward,
    LandmarkAttention,
    LandmarkAttentionBackward,
    LandmarkScores,
    Likeliest,
    LinearCrossEntropy,
    Matmul,
    Norm,
    NormBackward,
    RetrievalAttention,
    Rope,
    SelectBlocks,
    Sgd,
    SquaredNorm,
    SumRows,
    SwiGlu,
    SwiGluBackward,
);

impl Op {
    /// Its operands.
    pub fn operand_list(&self) -> Vec<Operand> {
        let mut operands = Operands::default();
        self.operands(&mut operands);
        operands.0
    }
}

// ---- helpers for checks and costs ----

fn expect_shape(p: &Program, field: &str, tensor: Tensor, shape: impl Into<Shape>) -> Result<(), String> {
    let (info, shape) = (p.info(tensor), shape.into());
    if info.shape == shape {
        return Ok(());
    }
    Err(format!("{field} `{}` has shape {:?}, expected {shape:?}", info.name, info.shape))
}

fn expect_numel(p: &Program, field: &str, tensor: Tensor, numel: usize) -> Result<(), String> {
    let info = p.info(tensor);
    if info.shape.numel() == numel {
        return Ok(());
    }
    Err(format!("{field} `{}` {:?} should hold {numel} elements", info.name, info.shape))
}

fn expect_same(p: &Program, a: (&str, Tensor), b: (&str, Tensor)) -> Result<(), String> {
    let (x, y) = (p.info(a.1), p.info(b.1));
    if x.shape.numel() == y.shape.numel() && x.shape.cols() == y.shape.cols() {
        return Ok(());
    }
    Err(format!("{} `{}` {:?} and {} `{}` {:?} differ", a.0, x.name, x.shape, b.0, y.name, y.shape))
}

fn expect_dtype(p: &Program, field: &str, tensor: Tensor, dtype: DType) -> Result<(), String> {
    let info = p.info(tensor);
    if info.dtype == dtype {
        return Ok(());
    }
    Err(format!("{field} `{}` is {}, expected {}", info.name, info.dtype.name(), dtype.name()))
}

fn expect_floats(p: &Program, fields: &[(&str, Tensor)]) -> Result<(), String> {
    for (field, tensor) in fields {
        let info = p.info(*tensor);
        if !info.dtype.is_float() {
            return Err(format!("{field} `{}` is {}, expected a float", info.name, info.dtype.name()));
        }
    }
    Ok(())
}

fn expect_cols(p: &Program, field: &str, cols: Cols) -> Result<(), String> {
    let info = p.info(cols.tensor);
    if info.dtype.is_float() && cols.width > 0 && cols.start + cols.width <= info.shape.cols() {
        return Ok(());
    }
    Err(format!(
        "{field}: columns {}..{} of `{}` {} {:?}",
        cols.start,
        cols.start + cols.width,
        info.name,
        info.dtype.name(),
        info.shape
    ))
}

/// Bytes of all operands, each moved once: what a fused kernel has to move at least.
fn traffic(p: &Program, op: &impl Operation) -> Cost {
    let mut operands = Operands::default();
    op.operands(&mut operands);
    let mut cost = Cost::default();
    let mut seen = Vec::new();
    for operand in operands.0 {
        if seen.contains(&(operand.tensor, operand.access)) {
            continue;
        }
        seen.push((operand.tensor, operand.access));
        let bytes = p.info(operand.tensor).bytes() as u64;
        if operand.access != Access::Write {
            cost.bytes_read += bytes;
        }
        if operand.access != Access::Read {
            cost.bytes_written += bytes;
        }
    }
    cost
}

/// Traffic, and `flops` floating-point operations for each element of `tensor`.
fn elementwise(p: &Program, op: &impl Operation, tensor: Tensor, flops: u64) -> Cost {
    Cost { flops: flops * p.shape(tensor).numel() as u64, ..traffic(p, op) }
}
