//! The gradient checker: the recorded backward pass against central finite differences, in f64.
//!
//! A rig holds a recorded function of some inputs. Its value is the sum of its outputs times fixed random
//! coefficients, plus its loss where it has one; the coefficients are the gradients that the reverse walk
//! starts from. Every element of every input is moved by ±h.
//!
//! Tolerance: with h = 1e-5, functions of magnitude F <= 100 and third derivatives of that size, truncation is
//! h² F / 6 = 2e-9 and rounding 2^-53 F / h = 1e-9; 1e-6 of the largest gradient leaves room for three orders of
//! magnitude, and is four orders below the smallest bug that is planted (1 %).

use landmark_core::backend::Backend;
use landmark_core::ops::{CopyRows, Op};
use landmark_core::testing::{alter, magnitude, normals};
use landmark_core::{Cols, Cpu, DType, Layout, Program, Recorder, Shape, Tensor};
use std::cell::Cell;

const H: f64 = 1e-5;
const TOLERANCE: f64 = 1e-6;

/// A planted bug: what it is, and how it changes an op (see [`alter`]).
pub(crate) type Plant<'a> = (&'a str, Box<dyn Fn(&mut Op) -> bool>);

struct Input {
    name: String,
    value: Tensor,
    gradient: Tensor,
    at: Vec<f64>,
}

struct Output {
    value: Tensor,
    /// Where the reverse walk starts; a loss has none, its gradient is made by the op itself.
    seed: Option<Tensor>,
    coefficients: Vec<f64>,
}

type Record = Box<dyn Fn(&mut Recorder) -> Vec<(Tensor, Tensor)>>;

#[derive(Default)]
pub(crate) struct Rig {
    layout: Layout,
    inputs: Vec<Input>,
    fixed: Vec<(Tensor, Vec<u8>)>,
    outputs: Vec<Output>,
    record: Option<Record>,
}

/// Gradients of every input, in order.
pub(crate) type Gradients = Vec<Vec<f64>>;

impl Rig {
    pub(crate) fn new() -> Self {
        Rig::default()
    }

    /// A rig whose first tensors are made already.
    pub(crate) fn over(layout: Layout) -> Self {
        Rig { layout, ..Rig::default() }
    }

    /// A float input with random values.
    pub(crate) fn input(&mut self, name: &str, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        let at = normals(self.inputs.len() as u32, shape.numel());
        let value = self.layout.add(name, DType::F32, shape.clone());
        let gradient = self.layout.add(format!("d.{name}"), DType::F32, shape);
        self.trained(name, value, gradient, at);
        value
    }

    /// An input that is in the layout already.
    pub(crate) fn trained(&mut self, name: &str, value: Tensor, gradient: Tensor, at: Vec<f64>) {
        self.inputs.push(Input { name: name.into(), value, gradient, at });
    }

    /// Where the gradient of an input is added.
    pub(crate) fn gradient(&self, input: Tensor) -> Tensor {
        self.inputs.iter().find(|i| i.value == input).expect("an input").gradient
    }

    /// A tensor that stays as it is.
    pub(crate) fn fixed(&mut self, name: &str, dtype: DType, bytes: Vec<u8>) -> Tensor {
        let tensor = self.layout.add(name, dtype, [bytes.len() / dtype.size()]);
        self.write_fixed(tensor, bytes);
        tensor
    }

    pub(crate) fn write_fixed(&mut self, tensor: Tensor, bytes: Vec<u8>) {
        self.fixed.push((tensor, bytes));
    }

    /// An output `(B, T, C)`, to be filled by [`emit`].
    pub(crate) fn output(&mut self, shape: [usize; 3]) -> Tensor {
        let number = self.outputs.len();
        let coefficients = normals(500 + number as u32, shape.iter().product());
        let value = self.layout.add(format!("output {number}"), DType::F32, shape);
        let seed = Some(self.layout.add(format!("seed {number}"), DType::F32, shape));
        self.outputs.push(Output { value, seed, coefficients });
        value
    }

    /// A loss `(1)` that counts `scale` times.
    pub(crate) fn loss(&mut self, scale: f64) -> Tensor {
        let value = self.layout.add("loss", DType::F32, [1]);
        self.loss_at(value, scale);
        value
    }

    pub(crate) fn loss_at(&mut self, value: Tensor, scale: f64) {
        self.outputs.push(Output { value, seed: None, coefficients: vec![scale] });
    }

    /// How the function is recorded; returns tensors whose gradients the forward ops make themselves.
    pub(crate) fn record(&mut self, record: impl Fn(&mut Recorder) -> Vec<(Tensor, Tensor)> + 'static) {
        self.record = Some(Box::new(record));
    }

    fn programs(&self) -> (Program, Program) {
        let record = self.record.as_ref().expect("a recorded function");
        let mut forward = Recorder::new("forward", &self.layout);
        record(&mut forward);
        let mut both = Recorder::new("both", &self.layout);
        let mut seeds = record(&mut both);
        seeds.extend(self.outputs.iter().filter_map(|o| Some((o.value, o.seed?))));
        let parameters: Vec<_> = self.inputs.iter().map(|i| (i.value, i.gradient)).collect();
        both.backward(&parameters, &seeds);
        (forward.finish(), both.finish())
    }

    /// The recorded backward pass, with a bug in its ops (and in those of the forward pass, if `everywhere`).
    pub(crate) fn analytic(&self, plant: Option<&Plant<'_>>, everywhere: bool) -> Gradients {
        let (forward, mut program) = self.programs();
        if let Some((name, plant)) = plant {
            let (number, first) = (Cell::new(0), if everywhere { 0 } else { forward.ops().len() });
            let changed = alter(&mut program, |op| {
                number.set(number.get() + 1);
                number.get() > first && plant(op)
            });
            assert!(changed > 0, "{name}: no op to spoil in\n{program}");
        }
        let cpu = Cpu::<f64>::new();
        let mut arena = cpu.allocate(&self.layout).unwrap();
        for (tensor, bytes) in &self.fixed {
            cpu.write(&mut arena, *tensor, bytes).unwrap();
        }
        for input in &self.inputs {
            cpu.write_f64(&mut arena, input.value, &input.at).unwrap();
        }
        for output in &self.outputs {
            if let Some(seed) = output.seed {
                cpu.write_f64(&mut arena, seed, &output.coefficients).unwrap();
            }
        }
        let mut plan = cpu.compile(&program, &arena).unwrap();
        cpu.run(&mut plan, &mut arena).unwrap();
        self.inputs.iter().map(|i| cpu.read_f64(&arena, i.gradient)).collect()
    }

    /// Central differences.
    pub(crate) fn numeric(&self) -> Gradients {
        let (program, _) = self.programs();
        let cpu = Cpu::<f64>::new();
        let mut arena = cpu.allocate(&self.layout).unwrap();
        for (tensor, bytes) in &self.fixed {
            cpu.write(&mut arena, *tensor, bytes).unwrap();
        }
        for input in &self.inputs {
            cpu.write_f64(&mut arena, input.value, &input.at).unwrap();
        }
        let mut plan = cpu.compile(&program, &arena).unwrap();
        let mut value = |input: &Input, element: usize, step: f64| -> f64 {
            let mut at = input.at.clone();
            at[element] += step;
            cpu.write_f64(&mut arena, input.value, &at).unwrap();
            cpu.run(&mut plan, &mut arena).unwrap();
            cpu.write_f64(&mut arena, input.value, &input.at).unwrap();
            let product = |o: &Output| -> f64 {
                cpu.read_f64(&arena, o.value).iter().zip(&o.coefficients).map(|(x, c)| x * c).sum()
            };
            self.outputs.iter().map(product).sum()
        };
        let mut difference = |i: &Input, e: usize| (value(i, e, H) - value(i, e, -H)) / (2.0 * H);
        self.inputs.iter().map(|i| (0..i.at.len()).map(|e| difference(i, e)).collect()).collect()
    }

    /// Whether two sets of gradients agree; if not, where.
    pub(crate) fn compare(&self, analytic: &Gradients, numeric: &Gradients) -> Result<(), String> {
        let largest = numeric.iter().map(|g| magnitude(g)).fold(0.0, f64::max);
        for ((input, analytic), numeric) in self.inputs.iter().zip(analytic).zip(numeric) {
            // An input without influence has gradient 0, and differences that are rounding only.
            let allowed = TOLERANCE * magnitude(numeric).max(1e-3 * largest);
            for (element, (a, n)) in analytic.iter().zip(numeric).enumerate() {
                if (a - n).abs() > allowed || a.is_nan() || n.is_nan() {
                    return Err(format!("d.{}[{element}] is {a}, differences say {n}", input.name));
                }
            }
        }
        Ok(())
    }

    /// Proves the backward pass right, and the check able to fail: for every planted bug in the ops of the
    /// backward pass, for a gradient that is 1 % too large, and for one element with the wrong sign.
    pub(crate) fn prove(&self, plants: &[Plant<'_>]) {
        self.prove_with(plants, false);
    }

    /// The same, with bugs planted in the forward ops as well.
    pub(crate) fn prove_everywhere(&self, plants: &[Plant<'_>]) {
        self.prove_with(plants, true);
    }

    fn prove_with(&self, plants: &[Plant<'_>], everywhere: bool) {
        let (analytic, numeric) = (self.analytic(None, false), self.numeric());
        if let Err(difference) = self.compare(&analytic, &numeric) {
            panic!("{difference}, in\n{}", self.programs().1);
        }
        for plant in plants {
            let spoilt = self.analytic(Some(plant), everywhere);
            assert!(self.compare(&spoilt, &numeric).is_err(), "`{}` goes unnoticed", plant.0);
        }
        let largest = numeric.iter().map(|g| magnitude(g)).fold(0.0, f64::max);
        for (i, input) in self.inputs.iter().enumerate() {
            let top = magnitude(&analytic[i]);
            if top < 1e-3 * largest {
                continue;
            }
            let mut scaled = analytic.clone();
            scaled[i].iter_mut().for_each(|g| *g *= 1.01);
            assert!(self.compare(&scaled, &numeric).is_err(), "d.{}: 1 % goes unnoticed", input.name);
            let mut turned = analytic.clone();
            turned[i].iter_mut().filter(|g| g.abs() == top).for_each(|g| *g = -*g);
            assert!(self.compare(&turned, &numeric).is_err(), "d.{}: a sign goes unnoticed", input.name);
        }
    }
}

/// Copies a scratch tensor into an output. Inputs and outputs lie in the arena, and the walk lets gradients
/// flow only through scratch tensors and parameters.
pub(crate) fn emit(r: &mut Recorder, from: Tensor, to: Tensor) {
    copy(r, from, to);
}

/// A scratch copy of a parameter, where an op's reverse needs a tensor of its own.
pub(crate) fn scratch_of(r: &mut Recorder, parameter: Tensor) -> Tensor {
    let info = r.program().info(parameter).clone();
    let out = r.scratch(format!("copy of {}", info.name), DType::F32, info.shape);
    copy(r, parameter, out);
    out
}

fn copy(r: &mut Recorder, from: Tensor, to: Tensor) {
    let shape = r.shape(from).clone();
    let (rows, width) = (shape.dims()[1], shape.cols());
    let (from, to) = (Cols::all(from, width), Cols::all(to, width));
    r.push(CopyRows { from, from_row: 0, to, add: false, to_row: 0, rows });
}
