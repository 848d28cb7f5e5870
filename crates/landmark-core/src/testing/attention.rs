//! The one table of cases for landmark attention, with a naive forward and backward pass.
//!
//! Sizes straddle every boundary (1, block - 1, block, block + 1, a prime; tiles of 64 queries); head widths
//! include ones that are no power of two; every feature of the op stands alone in some case and together with
//! the others in one.

use super::naive::{Float, Key, Row, dot, grouped_softmax, grouped_softmax_backward};
use super::{float_bytes, normals, u32_bytes};
use crate::ops::{
    AttentionGradients, Blocks, Heads, LandmarkAttention, LandmarkAttentionBackward, MissToken, Randomness,
};
use crate::program::{Layout, Program, Recorder};
use crate::random::Stream;
use crate::tensor::{Cols, DType, Tensor};

/// Where the landmarks of a case are.
#[derive(Clone, Debug)]
pub enum Landmarks {
    /// Nowhere.
    None,
    /// At the end of every block, with a phase for each row of the batch.
    Regular(usize, Vec<u32>),
    /// At these tokens, listed for each row of the batch.
    Anywhere(Vec<Vec<usize>>),
}

/// One case.
#[derive(Clone, Debug)]
pub struct AttentionCase {
    /// What it is for.
    pub name: String,
    /// Extents; with a context-miss token its row is counted.
    pub heads: Heads,
    /// Where the landmarks are.
    pub landmarks: Landmarks,
    /// Row 0 is a context-miss token.
    pub miss: bool,
    /// About half of the landmarks are gated.
    pub gated: bool,
    /// First visible token of each row of the batch.
    pub first_key: Option<Vec<u32>>,
    /// Probability of dropping a key.
    pub dropout: f32,
    /// Probability of dropping a block.
    pub group_dropout: f32,
}

/// Values of a case's inputs, dense: `q` and `dout` `(B, Nq, H · D)`, `k` and `v` `(B, Nk, Hkv · D)`.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Queries.
    pub q: Vec<f64>,
    /// Keys.
    pub k: Vec<f64>,
    /// Values.
    pub v: Vec<f64>,
    /// Gradient of the result.
    pub dout: Vec<f64>,
}

/// Results of a case: `out`, `dq`, `dk`, `dv`, each named, in the shapes of [`Inputs`].
pub type Results = [(&'static str, Vec<f64>); 4];

/// A case as a program: forward and backward pass.
pub struct Recorded {
    /// Persistent tensors.
    pub layout: Layout,
    /// The program.
    pub program: Program,
    /// Bytes to write before it runs.
    pub inputs: Vec<(Tensor, Vec<u8>)>,
    /// Where the results are: name and columns.
    pub results: [(&'static str, Cols); 4],
}

const SEED: [u32; 4] = [17, 4, 9, 1];
const SALT: u32 = 5;

fn heads(batch: usize, queries: usize, keys: usize, heads: usize, kv_heads: usize, head_dim: usize) -> Heads {
    Heads { batch, queries, keys, heads, kv_heads, head_dim }
}

fn case(name: &str, heads: Heads, landmarks: Landmarks) -> AttentionCase {
    let (name, first_key) = (name.to_owned(), None);
    AttentionCase {
        name,
        heads,
        landmarks,
        miss: false,
        gated: false,
        first_key,
        dropout: 0.0,
        group_dropout: 0.0,
    }
}

/// The table.
pub fn cases() -> Vec<AttentionCase> {
    use Landmarks::{Anywhere, None as Plain, Regular};
    let mut cases = Vec::new();
    let shapes =
        [(2, 2, 1, 1, 7), (3, 16, 4, 2, 11), (8, 64, 2, 1, 29), (51, 80, 2, 2, 131), (64, 128, 2, 1, 199)];
    for (block, head_dim, h, kv, prime) in shapes {
        let mut lengths = vec![1, block - 1, block, block + 1, prime];
        lengths.dedup();
        for n in lengths {
            let phases = vec![0, (n as u32 * 5 + 1) % block as u32];
            let name = format!("block {block}, {n} keys, {h}/{kv} heads of {head_dim}");
            cases.push(case(&name, heads(2, n, n, h, kv, head_dim), Regular(block, phases)));
        }
    }
    cases.push(case("plain", heads(1, 67, 67, 2, 1, 16), Plain));
    cases.push(case("plain, one query of many keys", heads(2, 1, 70, 4, 2, 16), Plain));
    cases.push(case("one query of many keys", heads(2, 1, 70, 4, 2, 16), Regular(8, vec![3, 0])));
    cases.push(case("last 5 queries", heads(2, 5, 29, 6, 2, 10), Regular(8, vec![7, 2])));
    cases.push(case(
        "more queries than a tile, more keys",
        heads(2, 70, 131, 2, 1, 16),
        Regular(51, vec![50, 11]),
    ));
    let irregular = vec![vec![0, 1, 5, 6, 7, 12, 20], vec![], vec![3, 19, 20]];
    cases.push(case(
        "landmarks anywhere: first, last, consecutive",
        heads(3, 21, 21, 2, 2, 6),
        Anywhere(irregular),
    ));
    let masked = AttentionCase {
        first_key: Some(vec![0, 4, 9, 23]),
        ..case("keys hidden on the left", heads(4, 23, 23, 2, 1, 8), Regular(4, vec![0, 1, 2, 3]))
    };
    cases.push(masked);
    let miss = case("context-miss token", heads(2, 24, 24, 2, 1, 8), Regular(5, vec![0, 3]));
    cases.push(AttentionCase { miss: true, ..miss.clone() });
    let gated = AttentionCase { name: "gated landmarks".into(), miss: true, gated: true, ..miss };
    cases.push(gated.clone());
    let dropped = case("attention dropout", heads(2, 23, 23, 4, 2, 8), Regular(4, vec![1, 2]));
    cases.push(AttentionCase { dropout: 0.3, ..dropped.clone() });
    cases.push(AttentionCase { name: "group dropout".into(), group_dropout: 0.4, ..dropped });
    let all = AttentionCase {
        name: "everything at once".into(),
        first_key: Some(vec![2, 0]),
        dropout: 0.2,
        group_dropout: 0.3,
        ..gated
    };
    cases.push(all);
    cases
}

impl AttentionCase {
    fn shift(&self) -> usize {
        usize::from(self.miss)
    }

    fn tokens(&self) -> usize {
        self.heads.keys - self.shift()
    }

    fn is_landmark(&self, b: usize, token: usize) -> bool {
        match &self.landmarks {
            Landmarks::None => false,
            Landmarks::Regular(block, phases) => (token + phases[b] as usize) % block == block - 1,
            Landmarks::Anywhere(lists) => lists[b].contains(&token),
        }
    }

    fn is_gated(&self, b: usize, token: usize) -> bool {
        self.gated && Stream::new(&SEED, 99).draw((b * self.tokens() + token) as u64, 0.5)
    }

    /// Random inputs, exact in f32.
    pub fn inputs(&self) -> Inputs {
        let h = &self.heads;
        let (q, k) = (h.batch * h.queries * h.heads * h.head_dim, h.batch * h.keys * h.kv_heads * h.head_dim);
        Inputs { q: normals(1, q), k: normals(2, k), v: normals(3, k), dout: normals(4, q) }
    }

    /// Dropout's factor for a query and key; the bits that [`Randomness`] promises.
    fn keep<F: Float>(&self, p: f32, salt: u32, (b, h, query, key): (usize, usize, usize, usize)) -> F {
        let e = &self.heads;
        let index = ((b * e.heads + h) * e.queries + query) * e.keys + key;
        let dropped = p > 0.0 && Stream::new(&SEED, salt).draw(index as u64, p);
        F::of(if dropped { 0.0 } else { 1.0 / (1.0 - f64::from(p)) })
    }

    /// The visible tokens of a query, first and one past the last, and what it makes of them. `None` where
    /// there is nothing to attend to.
    fn row<F: Float>(
        &self,
        q: &[F],
        k: &[F],
        (b, h, query): (usize, usize, usize),
        stored: &impl Fn(F) -> F,
    ) -> Option<(usize, Vec<Key<F>>, Row<F>)> {
        let (e, shift) = (&self.heads, self.shift());
        if self.miss && query == 0 {
            return None;
        }
        let last = e.keys - e.queries + query - shift;
        let first = self.first_key.as_ref().map_or(0, |f| f[b] as usize);
        let q = &q[((b * e.queries + query) * e.heads + h) * e.head_dim..][..e.head_dim];
        let scale = F::of(1.0 / (e.head_dim as f64).sqrt());
        let score = |row: usize| stored(dot(q, self.head(k, b, h, row)) * scale);
        let keys: Vec<Key<F>> = (first..=last)
            .map(|j| Key {
                score: score(j + shift),
                landmark: self.is_landmark(b, j),
                gated: self.is_gated(b, j),
                keep: self.keep(self.group_dropout, SALT | 1 << 15, (b, h, query, j + shift)),
            })
            .collect();
        let alone = !self.miss && keys.len() == 1 && keys[0].landmark;
        (!alone && !keys.is_empty()).then(|| {
            let row = grouped_softmax(&keys, self.miss.then(|| score(0)), None);
            (first, keys, row)
        })
    }

    /// Row `row` of the keys or values that query head `h` reads.
    fn head<'a, F>(&self, k: &'a [F], b: usize, h: usize, row: usize) -> &'a [F] {
        let e = &self.heads;
        &k[((b * e.keys + row) * e.kv_heads + h / (e.heads / e.kv_heads)) * e.head_dim..][..e.head_dim]
    }

    /// Forward and backward pass from the definition, in `F`.
    pub fn naive<F: Float>(&self, inputs: &Inputs) -> Results {
        self.naive_stored(inputs, |x: F| x)
    }

    /// The same, where scores, weights and their gradients pass through `stored`: what they lose when each step of
    /// the computation leaves its result in memory, in a half type say.
    pub fn naive_stored<F: Float>(&self, inputs: &Inputs, stored: impl Fn(F) -> F) -> Results {
        let (e, shift) = (&self.heads, self.shift());
        let [q, k, v, dout] = [&inputs.q, &inputs.k, &inputs.v, &inputs.dout]
            .map(|x| x.iter().map(|&x| F::of(x)).collect::<Vec<F>>());
        let (zero, scale) = (F::of(0.0), F::of(1.0 / (e.head_dim as f64).sqrt()));
        let (mut out, mut dq) = (vec![zero; q.len()], vec![zero; q.len()]);
        let (mut dk, mut dv) = (vec![zero; k.len()], vec![zero; k.len()]);
        let add =
            |to: &mut [F], x: F, from: &[F]| to.iter_mut().zip(from).for_each(|(to, &y)| *to = *to + x * y);
        for (b, h, query) in (0..e.batch * e.heads * e.queries)
            .map(|i| (i / (e.heads * e.queries), i / e.queries % e.heads, i % e.queries))
        {
            let Some((first, keys, row)) = self.row::<F>(&q, &k, (b, h, query), &stored) else { continue };
            let at = ((b * e.queries + query) * e.heads + h) * e.head_dim;
            let dim = at..at + e.head_dim;
            let kept = |j: usize| -> F { self.keep(self.dropout, SALT, (b, h, query, j)) };
            let rows: Vec<usize> = (0..keys.len()).map(|i| i + first + shift).collect();
            let dweight: Vec<F> = rows
                .iter()
                .map(|&j| kept(j) * stored(dot(&dout[dim.clone()], self.head(&v, b, h, j))))
                .collect();
            let (ds, dmiss) = grouped_softmax_backward(&keys, &row, &dweight);
            let score_gradients = rows.iter().copied().zip(ds).chain(self.miss.then_some((0, dmiss)));
            for (j, ds) in score_gradients.map(|(j, ds)| (j, stored(ds))) {
                add(&mut dq[dim.clone()], ds * scale, self.head(&k, b, h, j));
                let to = self.head_range(b, h, j);
                add(&mut dk[to], ds * scale, &q[dim.clone()]);
            }
            for (&j, weight) in rows.iter().zip(row.weight.iter().map(|&weight: &F| stored(weight))) {
                add(&mut out[dim.clone()], kept(j) * weight, self.head(&v, b, h, j));
                add(&mut dv[self.head_range(b, h, j)], kept(j) * weight, &dout[dim.clone()]);
            }
        }
        let wide = |x: Vec<F>| x.into_iter().map(F::f64).collect();
        [("out", wide(out)), ("dq", wide(dq)), ("dk", wide(dk)), ("dv", wide(dv))]
    }

    fn head_range(&self, b: usize, h: usize, row: usize) -> std::ops::Range<usize> {
        let e = &self.heads;
        let at = ((b * e.keys + row) * e.kv_heads + h / (e.heads / e.kv_heads)) * e.head_dim;
        at..at + e.head_dim
    }

    /// The case as a program over f32 tensors. Where there are as many queries as keys, they and the values are
    /// columns of one tensor, as a model has them.
    pub fn record(&self, values: &Inputs) -> Recorded {
        self.record_in(values, DType::F32)
    }

    /// The same over tensors of `dtype`, but for `lse`.
    pub fn record_in(&self, values: &Inputs, dtype: DType) -> Recorded {
        let h = self.heads;
        let mut layout = Layout::new();
        let mut inputs = Vec::new();
        let mut small = |layout: &mut Layout, name: &str, values: Vec<u32>| {
            let tensor = layout.add(name, DType::U32, [values.len()]);
            inputs.push((tensor, u32_bytes(&values)));
            tensor
        };
        let mask = |f: &dyn Fn(usize, usize) -> bool| -> Vec<u32> {
            (0..h.batch * self.tokens()).map(|i| u32::from(f(i / self.tokens(), i % self.tokens()))).collect()
        };
        let blocks = match &self.landmarks {
            Landmarks::None => Blocks::None,
            Landmarks::Regular(block, phases) => {
                Blocks::Regular { block: *block, phases: small(&mut layout, "phases", phases.clone()) }
            }
            Landmarks::Anywhere(_) => Blocks::Anywhere {
                is_landmark: small(&mut layout, "is_landmark", mask(&|b, j| self.is_landmark(b, j))),
            },
        };
        let gated = self.gated.then(|| small(&mut layout, "gated", mask(&|b, j| self.is_gated(b, j))));
        let first_key = self.first_key.clone().map(|f| small(&mut layout, "first_key", f));
        let random = self.dropout > 0.0 || self.group_dropout > 0.0;
        let randomness = random.then(|| Randomness {
            seed: small(&mut layout, "seed", SEED.to_vec()),
            salt: SALT,
            dropout: self.dropout,
            group_dropout: self.group_dropout,
        });
        let [q, k, v] = projections(&mut layout, "", &h, dtype);
        let [dq, dk, dv] = projections(&mut layout, "d.", &h, dtype);
        let width = h.heads * h.head_dim;
        let [out, dout] = ["out", "dout"].map(|name| layout.add(name, dtype, [h.batch, h.queries, width]));
        let lse = layout.add("lse", DType::F32, [h.batch, h.heads, h.queries]);
        for (cols, values) in pack(&layout, &[(q, &values.q), (k, &values.k), (v, &values.v)]) {
            inputs.push((cols, float_bytes(dtype, &values)));
        }
        inputs.push((dout, float_bytes(dtype, &values.dout)));
        let forward = LandmarkAttention {
            heads: h,
            q,
            k,
            v,
            blocks,
            miss: self.miss.then_some(MissToken { gated }),
            first_key,
            randomness,
            out,
            lse,
        };
        let mut recorder = Recorder::new(self.name.clone(), &layout);
        recorder.push(forward.clone());
        recorder.push(LandmarkAttentionBackward {
            forward,
            dout,
            gradients: AttentionGradients { dq, dk, dv },
        });
        let results = [("out", Cols::all(out, width)), ("dq", dq), ("dk", dk), ("dv", dv)];
        Recorded { layout, program: recorder.finish(), inputs, results }
    }
}

/// Queries, keys and values: columns of one tensor where they have the same rows.
fn projections(layout: &mut Layout, prefix: &str, h: &Heads, dtype: DType) -> [Cols; 3] {
    let (q, k) = (h.heads * h.head_dim, h.kv_heads * h.head_dim);
    if h.queries == h.keys {
        let tensor = layout.add(format!("{prefix}qkv"), dtype, [h.batch, h.keys, q + 2 * k]);
        [(0, q), (q, k), (q + k, k)].map(|(start, width)| Cols { tensor, start, width })
    } else {
        [("q", h.queries, q), ("k", h.keys, k), ("v", h.keys, k)].map(|(name, rows, width)| {
            Cols::all(layout.add(format!("{prefix}{name}"), dtype, [h.batch, rows, width]), width)
        })
    }
}

/// Whole tensors from the values of their columns.
fn pack(layout: &Layout, parts: &[(Cols, &Vec<f64>)]) -> Vec<(Tensor, Vec<f64>)> {
    let mut packed: Vec<(Tensor, Vec<f64>)> = Vec::new();
    for &(cols, values) in parts {
        let shape = &layout.info(cols.tensor).shape;
        if packed.last().is_none_or(|(t, _)| *t != cols.tensor) {
            packed.push((cols.tensor, vec![0.0; shape.numel()]));
        }
        let whole = packed.last_mut().expect("just pushed").1.chunks_exact_mut(shape.cols());
        for (row, values) in whole.zip(values.chunks_exact(cols.width)) {
            row[cols.start..][..cols.width].copy_from_slice(values);
        }
    }
    packed
}

/// The values of some columns of a tensor.
pub fn unpack(layout: &Layout, cols: Cols, whole: &[f64]) -> Vec<f64> {
    let stride = layout.info(cols.tensor).shape.cols();
    whole.chunks_exact(stride).flat_map(|row| row[cols.start..][..cols.width].iter().copied()).collect()
}
