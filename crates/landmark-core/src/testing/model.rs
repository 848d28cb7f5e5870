//! Two tiny transformers, recorded from the ops alone: every op of a training step in its place, small enough
//! for a finite difference of every weight.

use super::{f32_bytes, i32_bytes, normals, u32_bytes};
use crate::ops::{
    AddNorm, Blocks, Dropout, Embed, Gelu, Heads, LandmarkAttention, LinearCrossEntropy, LossGradient,
    Matmul, Norm, NormKind, Randomness, Rope, RopeStyle, SwiGlu,
};
use crate::program::{Layout, Program, Recorder};
use crate::tensor::{Cols, DType, Out, Tensor};

/// Which transformer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// LayerNorm with biases, GELU, adjacent rotary pairs, tied embedding, dropout everywhere.
    Gpt,
    /// RMSNorm, SwiGLU, rotary halves, grouped-query heads, an output matrix of its own.
    Llama,
}

/// A weight: its name, itself, and the tensor that its gradient is added to.
#[derive(Clone, Debug)]
pub struct Weight {
    /// Name.
    pub name: String,
    /// The weight.
    pub value: Tensor,
    /// Its gradient, f32.
    pub gradient: Tensor,
    /// Initial values.
    pub initial: Vec<f64>,
}

/// A tiny transformer.
#[derive(Clone, Debug)]
pub struct Tiny {
    /// Which.
    pub kind: Kind,
    /// All persistent tensors.
    pub layout: Layout,
    /// The weights.
    pub weights: Vec<Weight>,
    /// Everything else that has to be written before a run.
    pub inputs: Vec<(Tensor, Vec<u8>)>,
    /// Mean loss, `(1)`.
    pub loss: Tensor,
    dtype: DType,
}

const BATCH: usize = 2;
const ROWS: usize = 7;
const VOCAB: usize = 11;
const LAYERS: usize = 2;
const HEADS: usize = 2;
const HEAD_DIM: usize = 4;
const WIDTH: usize = HEADS * HEAD_DIM;
const MLP: usize = 12;
const BLOCK: usize = 3;

impl Tiny {
    /// The transformer, its weights stored as `dtype`.
    pub fn new(kind: Kind, dtype: DType) -> Self {
        let layout = Layout::new();
        let mut tiny = Tiny { kind, layout, weights: Vec::new(), inputs: Vec::new(), loss: Tensor(0), dtype };
        tiny.loss = tiny.layout.add("loss", DType::F32, [1]);
        let kv = if kind == Kind::Gpt { WIDTH } else { HEAD_DIM };
        tiny.weight("embedding", &[VOCAB, WIDTH]);
        for layer in 0..LAYERS {
            for norm in ["norm 1", "norm 2"] {
                tiny.norm_weights(&format!("{layer}.{norm}"));
            }
            let mut linear = |name: &str, out: usize, width: usize| {
                tiny.weight(&format!("{layer}.{name}"), &[out, width]);
                if kind == Kind::Gpt {
                    tiny.weight(&format!("{layer}.{name}.bias"), &[out]);
                }
            };
            linear("qkv", WIDTH + 2 * kv, WIDTH);
            linear("projection", WIDTH, WIDTH);
            linear("up", MLP, WIDTH);
            if kind == Kind::Llama {
                linear("gate", MLP, WIDTH);
            }
            linear("down", WIDTH, MLP);
        }
        tiny.norm_weights("last norm");
        if kind == Kind::Llama {
            tiny.weight("head", &[VOCAB, WIDTH]);
        }
        tiny.add_inputs();
        tiny
    }

    fn norm_weights(&mut self, name: &str) {
        self.weight(name, &[WIDTH]);
        if self.kind == Kind::Gpt {
            self.weight(&format!("{name}.bias"), &[WIDTH]);
        }
    }

    fn weight(&mut self, name: &str, shape: &[usize]) {
        let value = self.layout.add(name, self.dtype, shape);
        let gradient = self.layout.add(format!("d.{name}"), DType::F32, shape);
        let initial = normals(100 + self.weights.len() as u32, shape.iter().product())
            .iter()
            .map(|x| 0.5 * x)
            .collect();
        self.weights.push(Weight { name: name.into(), value, gradient, initial });
    }

    fn add_inputs(&mut self) {
        let n = BATCH * ROWS;
        let u32s = |x: &[usize]| u32_bytes(&x.iter().map(|&x| x as u32).collect::<Vec<u32>>());
        let tokens: Vec<usize> = (0..n).map(|i| (i * 5 + i * i) % VOCAB).collect();
        let targets: Vec<i32> =
            (0..n).map(|i| if i % 5 == 3 { -1 } else { (i * 7 % VOCAB) as i32 }).collect();
        let positions: Vec<i32> = (0..n).map(|i| (i % ROWS + i / ROWS * 2) as i32).collect();
        let frequencies: Vec<f64> = (0..HEAD_DIM / 2).map(|i| 0.3_f64.powi(i as i32)).collect();
        for (name, dtype, shape, bytes) in [
            ("tokens", DType::U32, n, u32s(&tokens)),
            ("targets", DType::I32, n, i32_bytes(&targets)),
            ("positions", DType::I32, n, i32_bytes(&positions)),
            ("phases", DType::U32, BATCH, u32s(&[0, 2])),
            ("seed", DType::U32, 4, u32s(&[1, 2, 3, 0])),
            ("frequencies", DType::F32, HEAD_DIM / 2, f32_bytes(&frequencies)),
        ] {
            let tensor = self.layout.add(name, dtype, [shape]);
            self.inputs.push((tensor, bytes));
        }
    }

    fn find(&self, name: &str) -> Tensor {
        self.layout.find(name).unwrap_or_else(|| panic!("no tensor `{name}`"))
    }

    /// Each weight with the tensor that its gradient is added to.
    pub fn parameters(&self) -> Vec<(Tensor, Tensor)> {
        self.weights.iter().map(|w| (w.value, w.gradient)).collect()
    }

    /// A whole training step but for the optimiser: forward and backward pass.
    pub fn training(&self) -> Program {
        let mut r = Recorder::new(format!("{:?} training", self.kind), &self.layout);
        let seeds = self.forward(&mut r);
        r.backward(&self.parameters(), &seeds);
        r.finish()
    }

    /// Records the forward pass and the loss; returns the tensor that the backward pass starts at, with its
    /// gradient.
    pub fn forward(&self, r: &mut Recorder) -> Vec<(Tensor, Tensor)> {
        let (gpt, stream) = (self.kind == Kind::Gpt, [BATCH, ROWS, WIDTH]);
        let new = |r: &mut Recorder, name: &str| r.scratch(name, DType::F32, stream);
        let embedded = new(r, "embedded");
        r.push(Embed { tokens: self.find("tokens"), table: self.find("embedding"), out: embedded });
        let mut x = if gpt { self.drop(r, embedded, 1) } else { embedded };
        let mut delta = None;
        for layer in 0..LAYERS {
            let n = self.norm(r, &format!("{layer}.norm 1"), &mut x, delta);
            let a = self.attention(r, layer, n);
            let n = self.norm(r, &format!("{layer}.norm 2"), &mut x, Some(a));
            delta = Some(self.mlp(r, layer, n));
        }
        let x = self.norm(r, "last norm", &mut x, delta);
        let weight = self.find(if gpt { "embedding" } else { "head" });
        let dweight = self.weights.iter().find(|w| w.value == weight).expect("a weight").gradient;
        let dx = new(r, "d.last");
        let gradient = Some(LossGradient { dx, dweight: Some(Out::add(dweight)), scale: 0.5 });
        r.push(LinearCrossEntropy {
            x,
            weight,
            targets: self.find("targets"),
            loss: self.loss,
            predictions: None,
            gradient,
        });
        vec![(x, dx)]
    }

    fn norm(&self, r: &mut Recorder, name: &str, x: &mut Tensor, delta: Option<Tensor>) -> Tensor {
        let gpt = self.kind == Kind::Gpt;
        let kind = if gpt { NormKind::Layer { eps: 1e-5 } } else { NormKind::Rms { eps: 1e-6 } };
        let (weight, bias) = (self.find(name), gpt.then(|| self.find(&format!("{name}.bias"))));
        let out = r.scratch(name, DType::F32, [BATCH, ROWS, WIDTH]);
        match delta {
            None => r.push(Norm { kind, x: *x, weight, bias, out }),
            Some(delta) => {
                let sum = r.scratch(format!("{name} sum"), DType::F32, [BATCH, ROWS, WIDTH]);
                r.push(AddNorm { kind, x: *x, delta, weight, bias, sum, out });
                *x = sum;
            }
        }
        out
    }

    fn linear(&self, r: &mut Recorder, name: &str, x: Tensor) -> Tensor {
        let weight = self.find(name);
        let width = self.layout.info(weight).shape.rows();
        let out = r.scratch(format!("{name} out"), DType::F32, [BATCH, ROWS, width]);
        let bias = (self.kind == Kind::Gpt).then(|| self.find(&format!("{name}.bias")));
        r.push(Matmul::linear(x, weight, bias, out));
        out
    }

    fn drop(&self, r: &mut Recorder, x: Tensor, salt: u32) -> Tensor {
        let out = r.scratch("dropped", DType::F32, [BATCH, ROWS, WIDTH]);
        r.push(Dropout { x, p: 0.2, seed: self.find("seed"), salt, out: Out::set(out) });
        out
    }

    fn attention(&self, r: &mut Recorder, layer: usize, x: Tensor) -> Tensor {
        let gpt = self.kind == Kind::Gpt;
        let (style, kv_heads) = if gpt { (RopeStyle::Pairs, HEADS) } else { (RopeStyle::Halves, 1) };
        let qkv = self.linear(r, &format!("{layer}.qkv"), x);
        let kv = kv_heads * HEAD_DIM;
        let [q, k, v] = [(0, WIDTH), (WIDTH, kv), (WIDTH + kv, kv)].map(|(start, width)| Cols {
            tensor: qkv,
            start,
            width,
        });
        let (positions, frequencies) = (self.find("positions"), self.find("frequencies"));
        for x in [q, k] {
            r.push(Rope { x, positions, frequencies, style, head_dim: HEAD_DIM, inverse: false, out: x });
        }
        let out = r.scratch(format!("{layer}.attended"), DType::F32, [BATCH, ROWS, WIDTH]);
        let lse = r.scratch(format!("{layer}.lse"), DType::F32, [BATCH, HEADS, ROWS]);
        let random =
            Randomness { seed: self.find("seed"), salt: 10 + layer as u32, dropout: 0.1, group_dropout: 0.2 };
        r.push(LandmarkAttention {
            heads: Heads {
                batch: BATCH,
                queries: ROWS,
                keys: ROWS,
                heads: HEADS,
                kv_heads,
                head_dim: HEAD_DIM,
            },
            q,
            k,
            v,
            blocks: Blocks::Regular { block: BLOCK, phases: self.find("phases") },
            miss: None,
            first_key: None,
            randomness: gpt.then_some(random),
            out,
            lse,
        });
        let out = self.linear(r, &format!("{layer}.projection"), out);
        if gpt { self.drop(r, out, 20 + layer as u32) } else { out }
    }

    fn mlp(&self, r: &mut Recorder, layer: usize, x: Tensor) -> Tensor {
        let up = self.linear(r, &format!("{layer}.up"), x);
        let out = r.scratch(format!("{layer}.active"), DType::F32, [BATCH, ROWS, MLP]);
        match self.kind {
            Kind::Gpt => r.push(Gelu { x: up, out }),
            Kind::Llama => {
                let gate = self.linear(r, &format!("{layer}.gate"), x);
                r.push(SwiGlu { gate, up, out });
            }
        }
        self.linear(r, &format!("{layer}.down"), out)
    }
}
