//! Lockstep: run a program op by op on two backends and name the first op where they part.
//!
//! The first backend is the oracle, the CPU in f64. Every op runs on both from the *oracle's* values (rounded
//! to the other's element types), so a difference belongs to the op that shows it and not to one before it.

use crate::backend::Backend;
use crate::cpu::Cpu;
use crate::error::Result;
use crate::ops::{Access, Operation};
use crate::program::Program;
use crate::tensor::{DType, Tensor};

/// Where two backends part.
#[derive(Clone, Debug, PartialEq)]
pub struct Divergence {
    /// Number of the op in the program.
    pub op: usize,
    /// Its name.
    pub name: &'static str,
    /// The tensor that it wrote.
    pub tensor: String,
    /// First element that differs by too much.
    pub element: usize,
    /// What the oracle has there.
    pub expected: f64,
    /// What the other backend has there.
    pub found: f64,
    /// Largest error in the tensor over its largest magnitude.
    pub relative_error: f64,
}

/// Runs `program` on the oracle and on `other`, both starting from `inputs` (persistent tensors and their
/// bytes); `tolerance` gives, for an op's name, the largest error allowed relative to the largest magnitude
/// in the tensor. Returns the first divergence.
///
/// # Errors
/// Whatever either backend reports.
pub async fn compare<B: Backend>(
    program: &Program,
    other: &B,
    inputs: &[(Tensor, Vec<u8>)],
    tolerance: impl Fn(&str) -> f64,
) -> Result<Option<Divergence>> {
    let oracle = Cpu::<f64>::new();
    let (layout, steps) = program.unfused();
    let (mut expected, mut found) = (oracle.allocate(&layout)?, other.allocate(&layout)?);
    for (tensor, bytes) in inputs {
        oracle.write(&mut expected, *tensor, bytes)?;
        other.write(&mut found, *tensor, bytes)?;
    }
    for (index, step) in steps.iter().enumerate() {
        let op = &step.ops()[0];
        let written: Vec<Tensor> = op
            .operand_list()
            .iter()
            .filter(|o| o.access != Access::Read)
            .map(|o| step.owner(o.tensor))
            .collect();
        oracle.run(&mut oracle.compile(step, &expected)?, &mut expected)?;
        other.run(&mut other.compile(step, &found)?, &mut found)?;
        for tensor in written {
            let info = layout.info(tensor);
            let want = oracle.read(&expected, tensor).await?;
            let got = other.read(&found, tensor).await?;
            if let Some((element, expected, found, relative_error)) =
                differ(info.dtype, &want, &got, tolerance(op.name()))
            {
                let (name, tensor) = (op.name(), info.name.clone());
                let op = index;
                return Ok(Some(Divergence { op, name, tensor, element, expected, found, relative_error }));
            }
            other.write(&mut found, tensor, &want)?;
        }
    }
    Ok(None)
}

fn values(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    let four = |f: fn([u8; 4]) -> f64| bytes.chunks_exact(4).map(|c| f([c[0], c[1], c[2], c[3]])).collect();
    let two = |f: fn([u8; 2]) -> f64| bytes.chunks_exact(2).map(|c| f([c[0], c[1]])).collect();
    match dtype {
        DType::F32 => four(|b| f64::from(f32::from_le_bytes(b))),
        DType::U32 => four(|b| f64::from(u32::from_le_bytes(b))),
        DType::I32 => four(|b| f64::from(i32::from_le_bytes(b))),
        DType::Bf16 => two(|b| half::bf16::from_le_bytes(b).to_f64()),
        DType::F16 => two(|b| half::f16::from_le_bytes(b).to_f64()),
    }
}

fn differ(dtype: DType, want: &[u8], got: &[u8], tolerance: f64) -> Option<(usize, f64, f64, f64)> {
    let (want, got) = (values(dtype, want), values(dtype, got));
    let size = want.iter().filter(|x| x.is_finite()).fold(0.0_f64, |m, x| m.max(x.abs()));
    let allowed = if dtype.is_float() { tolerance * size } else { 0.0 };
    let error = |(&w, &g): (&f64, &f64)| if w == g { 0.0 } else { (w - g).abs() };
    let element = want.iter().zip(&got).position(|pair| error(pair).is_nan() || error(pair) > allowed)?;
    let worst = want.iter().zip(&got).map(error).fold(0.0_f64, f64::max);
    Some((element, want[element], got[element], worst / size.max(f64::MIN_POSITIVE)))
}
