//! What tests of any backend share: tables of cases, naive oracles, and ways to plant a bug.
//!
//! Behind the feature `test-support`, so that nothing of it is in a program that users run. The oracles
//! ([`naive`]) are written from the definitions and share nothing with the kernels; the tables
//! ([`attention`], [`memory`]) and the [`model`] are run over every backend; [`alter`] and [`Planted`] change recorded ops, so
//! that each check can be seen to fail.

pub mod attention;
pub mod memory;
pub mod model;
pub mod naive;

use crate::backend::Backend;
use crate::error::Result;
use crate::ops::Op;
use crate::paging::Paging;
use crate::program::{Layout, Program};
use crate::random::Stream;
use crate::tensor::{DType, Tensor};
use std::future::Future;
use std::ops::Range;
use std::task::{Context, Poll, Waker};

/// Passes every op of a program to `plant`, which changes it and says whether it did; returns how many it
/// changed. Nothing is checked again: this is for planting bugs.
pub fn alter(program: &mut Program, plant: impl Fn(&mut Op) -> bool) -> usize {
    program.ops_mut().iter_mut().map(plant).filter(|&changed| changed).count()
}

/// A change of one kind of op, for [`alter`]: `plant!(Op::Rope(op) => op.inverse = true)`.
#[macro_export]
macro_rules! plant {
    ($kind:pat => $change:expr) => {
        move |op: &mut $crate::ops::Op| match op {
            $kind => {
                $change;
                true
            }
            _ => false,
        }
    };
}

/// A backend with a planted bug: it runs `inner` on programs that `plant` has changed.
pub struct Planted<B, F> {
    /// The backend that does the work.
    pub inner: B,
    /// What goes wrong; see [`alter`].
    pub plant: F,
}

impl<B: Backend, F: Fn(&mut Op) -> bool> Backend for Planted<B, F> {
    type Arena = B::Arena;
    type Plan = B::Plan;

    fn allocate_within(&self, layout: &Layout, paging: Paging) -> Result<B::Arena> {
        self.inner.allocate_within(layout, paging)
    }
    fn compile(&self, program: &Program, arena: &B::Arena) -> Result<B::Plan> {
        let mut program = program.clone();
        alter(&mut program, &self.plant);
        self.inner.compile(&program, arena)
    }
    fn write_at(&self, arena: &mut B::Arena, tensor: Tensor, first: usize, bytes: &[u8]) -> Result<()> {
        self.inner.write_at(arena, tensor, first, bytes)
    }
    fn run(&self, plan: &mut B::Plan, arena: &mut B::Arena) -> Result<()> {
        self.inner.run(plan, arena)
    }
    fn read(&self, arena: &B::Arena, tensor: Tensor) -> impl Future<Output = Result<Vec<u8>>> {
        self.inner.read(arena, tensor)
    }
    fn read_at(
        &self,
        arena: &B::Arena,
        tensor: Tensor,
        elements: Range<usize>,
    ) -> impl Future<Output = Result<Vec<u8>>> {
        self.inner.read_at(arena, tensor, elements)
    }
}

/// The result of a future that is ready when first asked, as the CPU backend's are.
///
/// # Panics
/// When it is not.
pub fn now<R>(future: impl Future<Output = R>) -> R {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("the future is not ready"),
    }
}

/// Checks that reads which were begun show what was there then, whatever came since and in whichever order they are waited
/// for, and that they may be given up.
///
/// # Panics
/// When they do not, or when the backend begins none.
pub fn check_begun_reads<B: Backend>(backend: &B) {
    let mut layout = Layout::new();
    let tensor = layout.add("numbers", DType::U32, [70]);
    let mut arena = backend.allocate(&layout).unwrap();
    let numbers = |round: u32| u32_bytes(&(0..70).map(|i| 100 * round + i).collect::<Vec<u32>>());
    let mut answers = Vec::new();
    for round in 0..12 {
        backend.write(&mut arena, tensor, &numbers(round)).unwrap();
        let wanted = [(tensor, 3..70), (tensor, 1..2)];
        let answer = backend.begin_read(&arena, &wanted).unwrap().expect("a read that is begun");
        if round % 4 != 3 {
            answers.push((round, answer));
        }
    }
    assert_eq!(now(backend.read(&arena, tensor)).unwrap(), numbers(11));
    for (round, answer) in answers.into_iter().rev() {
        let expected = [&numbers(round)[12..], &numbers(round)[4..8]].concat();
        assert_eq!(now(answer).unwrap(), expected, "round {round}");
    }
    assert!(backend.begin_read(&arena, &[(tensor, 0..1), (tensor, 60..71)]).is_err());
}

/// `n` normal numbers, the same on every machine for the same `salt`, each exact in f32: then a backend in f32
/// and the oracle in f64 start from the same inputs.
pub fn normals(salt: u32, n: usize) -> Vec<f64> {
    let stream = Stream::new(&[0x1a_5eed, 0, 0, 0], salt);
    let uniform = |i: u64| (f64::from(stream.bits(i)) + 0.5) / 4_294_967_296.0;
    let normal =
        |i: u64| (-2.0 * uniform(2 * i).ln()).sqrt() * (std::f64::consts::TAU * uniform(2 * i + 1)).cos();
    (0..n as u64).map(|i| f64::from(normal(i) as f32)).collect()
}

/// Bytes of a float tensor in f32, for [`Backend::write`].
pub fn f32_bytes(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect()
}

/// The same in any float type.
///
/// # Panics
/// When `dtype` is none.
pub fn float_bytes(dtype: DType, values: &[f64]) -> Vec<u8> {
    match dtype {
        DType::F32 => f32_bytes(values),
        DType::Bf16 => values.iter().flat_map(|&x| half::bf16::from_f64(x).to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&x| half::f16::from_f64(x).to_le_bytes()).collect(),
        DType::U32 | DType::I32 => panic!("{} is no float type", dtype.name()),
    }
}

/// Bytes of a `u32` tensor.
pub fn u32_bytes(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Bytes of an `i32` tensor.
pub fn i32_bytes(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Largest difference of two equally long lists; NaN where either holds one.
pub fn worst(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "lists to compare");
    let difference = |(x, y): (&f64, &f64)| if x == y { 0.0 } else { (x - y).abs() };
    a.iter().zip(b).map(difference).fold(0.0, |m, e| if e > m || e.is_nan() { e } else { m })
}

/// Largest magnitude of a list.
pub fn magnitude(a: &[f64]) -> f64 {
    a.iter().fold(0.0, |m, x| x.abs().max(m))
}
