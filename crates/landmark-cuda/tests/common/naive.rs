//! Attention from its definition, leaving scores, weights and results in the type of the tensors, as code that writes
//! each step down does: what the kernels, which round weights between two products, may err twice as much as.

use super::{bytes, values};
use landmark_core::DType;
use landmark_core::ops::Heads;
use landmark_core::testing::naive::{Key, dot, grouped_softmax};

/// Landmarks of a test: length of a block (0: none) and each row's phase.
pub type Landmarks<'a> = (usize, &'a [f64]);

/// `out` and `lse`, and each value passed through `stored` where it would be stored. Inputs are dense: `(B, N, H, D)`.
pub fn forward(
    h: Heads,
    landmarks: Landmarks<'_>,
    [q, k, v]: [&[f64]; 3],
    stored: impl Fn(f64) -> f64,
) -> [Vec<f64>; 2] {
    let mut out = vec![0.0; h.batch * h.queries * h.heads * h.head_dim];
    let mut lse = vec![f64::NEG_INFINITY; h.batch * h.heads * h.queries];
    let scale = 1.0 / (h.head_dim as f64).sqrt();
    for (b, head, query) in
        (0..lse.len()).map(|i| (i / (h.heads * h.queries), i / h.queries % h.heads, i % h.queries))
    {
        let group = h.heads / h.kv_heads;
        let of_key = |j: usize| ((b * h.keys + j) * h.kv_heads + head / group) * h.head_dim;
        let at = ((b * h.queries + query) * h.heads + head) * h.head_dim;
        let is_landmark = |j: usize| match landmarks {
            (0, _) => false,
            (block, phases) => (j + phases[b] as usize) % block == block - 1,
        };
        let score = |j: usize| stored(dot(&q[at..][..h.head_dim], &k[of_key(j)..][..h.head_dim]) * scale);
        let keys: Vec<Key<f64>> = (0..=h.keys - h.queries + query)
            .map(|j| Key { score: score(j), landmark: is_landmark(j), gated: false, keep: 1.0 })
            .collect();
        if keys.len() == 1 && keys[0].landmark {
            continue; // nothing to attend to
        }
        let row = grouped_softmax(&keys, None, None);
        let own = row.block[keys.len() - 1];
        let outer = keys.iter().zip(&row.block).filter(|(key, block)| (**block == own) != key.landmark);
        lse[(b * h.heads + head) * h.queries + query] =
            outer.map(|(key, _)| key.score.exp()).sum::<f64>().ln();
        for (j, weight) in row.weight.iter().enumerate() {
            let value = &v[of_key(j)..][..h.head_dim];
            out[at..][..h.head_dim].iter_mut().zip(value).for_each(|(to, x)| *to += stored(*weight) * x);
        }
    }
    [out, lse]
}

/// `x` as a tensor of this type gives it back.
pub fn stored(dtype: DType, x: f64) -> f64 {
    values(dtype, &bytes(dtype, &[x]))[0]
}
