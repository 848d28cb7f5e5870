//! What tests on a device share: the device, and cases that are run there, on the oracle, and naively.
#![allow(dead_code, unreachable_pub)] // Not every test binary uses all of it.

pub mod attention;
pub mod naive;

use landmark_core::ops::{Access, Op};
use landmark_core::testing::naive::allowed;
use landmark_core::testing::{alter, magnitude, normals, now, worst};
use landmark_core::{Backend, Cpu, DType, Layout, Program, Recorder, Shape, Tensor};
use landmark_cuda::Cuda;
use std::sync::OnceLock;

/// The device; `None`, with a word why, where there is none. With `LANDMARK_REQUIRE_GPU` that is a failure.
pub fn cuda() -> Option<&'static Cuda> {
    static DEVICE: OnceLock<Option<Cuda>> = OnceLock::new();
    let open = || match Cuda::new(0) {
        Ok(cuda) => Some(cuda),
        Err(error) => {
            assert!(std::env::var_os("LANDMARK_REQUIRE_GPU").is_none(), "{error}");
            eprintln!("not run: {error}");
            None
        }
    };
    DEVICE.get_or_init(open).as_ref()
}

/// The float types that models compute in.
pub const FLOATS: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

/// Values as a tensor's bytes.
pub fn bytes(dtype: DType, values: &[f64]) -> Vec<u8> {
    let each = |x: &f64| match dtype {
        DType::F32 => (*x as f32).to_le_bytes().to_vec(),
        DType::Bf16 => half::bf16::from_f64(*x).to_le_bytes().to_vec(),
        DType::F16 => half::f16::from_f64(*x).to_le_bytes().to_vec(),
        DType::U32 => (*x as u32).to_le_bytes().to_vec(),
        DType::I32 => (*x as i32).to_le_bytes().to_vec(),
    };
    values.iter().flat_map(each).collect()
}

/// A tensor's bytes as values.
pub fn values(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    let four = |b: &[u8]| [b[0], b[1], b[2], b[3]];
    bytes
        .chunks_exact(dtype.size())
        .map(|b| match dtype {
            DType::F32 => f64::from(f32::from_le_bytes(four(b))),
            DType::Bf16 => half::bf16::from_le_bytes([b[0], b[1]]).to_f64(),
            DType::F16 => half::f16::from_le_bytes([b[0], b[1]]).to_f64(),
            DType::U32 => f64::from(u32::from_le_bytes(four(b))),
            DType::I32 => f64::from(i32::from_le_bytes(four(b))),
        })
        .collect()
}

/// What rounding to nearest may change of a number, relative to it.
pub fn rounding(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 2.0_f64.powi(-24),
        DType::Bf16 => 2.0_f64.powi(-9),
        DType::F16 => 2.0_f64.powi(-12),
        DType::U32 | DType::I32 => 0.0,
    }
}

/// Whether an error is within what is allowed; one that is no number is not.
pub fn fits(ratio: f64) -> bool {
    ratio <= 1.0
}

/// Tensors with values, over which a program is recorded.
pub struct Case {
    pub name: String,
    pub layout: Layout,
    pub inputs: Vec<(Tensor, Vec<u8>)>,
    /// Roundings to this type that a kernel makes of intermediate results where the naive code has none.
    pub within: (DType, f64),
}

impl Case {
    pub fn new(name: impl Into<String>) -> Self {
        Case { name: name.into(), layout: Layout::new(), inputs: Vec::new(), within: (DType::F32, 0.0) }
    }

    /// A tensor that holds these values.
    pub fn holding(&mut self, dtype: DType, shape: impl Into<Shape>, values: &[f64]) -> Tensor {
        let name = format!("t{}", self.layout.tensors().len());
        let tensor = self.layout.add(name, dtype, shape);
        assert_eq!(self.layout.info(tensor).shape.numel(), values.len(), "values of a tensor");
        self.inputs.push((tensor, bytes(dtype, values)));
        tensor
    }

    /// Normal numbers times `scale`.
    pub fn normal(&mut self, dtype: DType, shape: impl Into<Shape>, scale: f64) -> Tensor {
        let shape = shape.into();
        let salt = 7 * self.layout.tensors().len() as u32 + shape.numel() as u32;
        let values: Vec<f64> = normals(salt, shape.numel()).iter().map(|x| x * scale).collect();
        self.holding(dtype, shape, &values)
    }

    /// A tensor to be written: NaN before.
    pub fn result(&mut self, dtype: DType, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        let poison = if dtype.is_float() { f64::NAN } else { 123_456_789.0 };
        let values = vec![poison; shape.numel()];
        self.holding(dtype, shape, &values)
    }

    /// The program that `record` records.
    pub fn program(&self, record: impl FnOnce(&mut Recorder)) -> Program {
        let mut recorder = Recorder::new(self.name.clone(), &self.layout);
        record(&mut recorder);
        recorder.finish()
    }

    /// What the CPU makes of `wanted`, computed in `T`.
    pub fn run_cpu<T: landmark_core::cpu::Real>(
        &self,
        program: &Program,
        wanted: &[Tensor],
    ) -> Vec<Vec<f64>> {
        let cpu = Cpu::<T>::new();
        let mut arena = cpu.allocate(&self.layout).unwrap();
        for (tensor, bytes) in &self.inputs {
            cpu.write(&mut arena, *tensor, bytes).unwrap();
        }
        cpu.run(&mut cpu.compile(program, &arena).unwrap(), &mut arena).unwrap();
        wanted.iter().map(|t| cpu.read_f64(&arena, *t)).collect()
    }

    /// Bytes of `wanted` after a run on the device: the first time launch by launch, the second time as a graph.
    pub fn run_cuda(&self, cuda: &Cuda, program: &Program, wanted: &[Tensor]) -> [Vec<Vec<u8>>; 2] {
        let mut arena = cuda.allocate(&self.layout).unwrap();
        let mut plan = cuda.compile(program, &arena).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        [(); 2].map(|()| {
            for (tensor, bytes) in &self.inputs {
                cuda.write(&mut arena, *tensor, bytes).unwrap();
            }
            cuda.run(&mut plan, &mut arena).unwrap_or_else(|e| panic!("{}: {e}", self.name));
            let read =
                |t: &Tensor| now(cuda.read(&arena, *t)).unwrap_or_else(|e| panic!("{}: {e}", self.name));
            wanted.iter().map(read).collect()
        })
    }

    /// Values of `wanted` by the oracle and by naive code in f32.
    pub fn on_the_cpu(&self, record: impl FnOnce(&mut Recorder), wanted: &[Tensor]) -> [Vec<Vec<f64>>; 2] {
        let program = self.program(record);
        [self.run_cpu::<f64>(&program, wanted), self.run_cpu::<f32>(&program, wanted)]
    }

    /// What the program writes of the persistent tensors.
    pub fn written(&self, program: &Program) -> Vec<Tensor> {
        let operands = program.ops().iter().flat_map(Op::operand_list);
        let mut written: Vec<Tensor> =
            operands.filter(|o| o.access != Access::Read).map(|o| program.owner(o.tensor)).collect();
        written.retain(|t| t.index() < self.layout.tensors().len());
        written.sort();
        written.dedup();
        written
    }

    /// The largest error of the device over what is allowed: twice the error of naive code in f32 that rounds where
    /// the tensors do, and a unit in the last place, since the oracle rounds half tensors too and may fall to the other
    /// side. Two runs must agree in every bit.
    pub fn compare(
        &self,
        cuda: &Cuda,
        record: impl FnOnce(&mut Recorder),
        plant: impl Fn(&mut Op) -> bool,
    ) -> f64 {
        let program = self.program(record);
        let written = self.written(&program);
        let (oracle, naive) =
            (self.run_cpu::<f64>(&program, &written), self.run_cpu::<f32>(&program, &written));
        let mut planted = program.clone();
        alter(&mut planted, plant);
        let [first, second] = self.run_cuda(cuda, &planted, &written);
        let mut worst_ratio = 0.0_f64;
        for (i, tensor) in written.iter().enumerate() {
            let info = self.layout.info(*tensor);
            assert!(first[i] == second[i], "{}, `{}`: two runs differ", self.name, info.name);
            let found = values(info.dtype, &first[i]);
            let error = worst(&oracle[i], &found);
            let within = rounding(self.within.0) * self.within.1 * magnitude(&oracle[i]);
            let permitted = allowed(&oracle[i], &naive[i], rounding(info.dtype)).max(within);
            let ratio = if error == 0.0 { 0.0 } else { error / permitted };
            if !fits(ratio) {
                let off = |(o, f): (&f64, &f64)| o != f && !fits((o - f).abs() / permitted);
                let at = oracle[i].iter().zip(&found).position(off);
                let at = at.unwrap_or(0);
                println!(
                    "{}, `{}` {} {:?}: error {error:e}, allowed {permitted:e} of {:e}; first at {at}: {} for {}",
                    self.name,
                    info.name,
                    info.dtype.name(),
                    info.shape,
                    magnitude(&oracle[i]),
                    found[at],
                    oracle[i][at],
                );
            }
            worst_ratio = if ratio > worst_ratio || ratio.is_nan() { ratio } else { worst_ratio };
        }
        worst_ratio
    }

    /// Fails where the device's error is larger than is allowed.
    pub fn check(&self, cuda: &Cuda, record: impl FnOnce(&mut Recorder)) {
        let ratio = self.compare(cuda, record, |_| false);
        assert!(fits(ratio), "{}: {ratio} times the error that is allowed", self.name);
    }
}
