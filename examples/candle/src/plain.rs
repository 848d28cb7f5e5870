//! The same attention from its definition, in candle's own ops on whole matrices: what the op is held against.

use candle_core::{Device, Result, Tensor};

/// Which keys are what for each query, as zeros and ones.
pub struct Masks {
    /// `(B, 1, Nq, Nk)`: ordinary keys of the query's own block.
    own: Tensor,
    /// `(B, 1, Nq, Nk)`: those, and the landmarks of earlier blocks: what the outer softmax is over.
    outer: Tensor,
    /// `(B, 1, Nq, Nk)`: ordinary keys of earlier blocks.
    earlier: Tensor,
    /// `(B, 1, Nk, blocks)`: which block a key belongs to.
    member: Tensor,
    /// `(B, 1, Nk, blocks)`: the same of landmarks alone.
    landmark: Tensor,
    /// `(B, 1, Nq, blocks)`: blocks without an ordinary key among the earlier ones.
    none: Tensor,
}

impl Masks {
    /// Of `queries` that are the last of `keys`, in f32.
    pub fn new(queries: usize, keys: usize, block: usize, phases: &[u32], device: &Device) -> Result<Self> {
        let blocks = (keys + block - 1) / block + 1;
        let of = |b: usize, j: usize| (j + phases[b] as usize) / block;
        let is_landmark = |b: usize, j: usize| (j + phases[b] as usize) % block == block - 1;
        let position = |i: usize| keys - queries + i;
        let own = |b: usize, i: usize, j: usize| {
            j <= position(i) && of(b, j) == of(b, position(i)) && !is_landmark(b, j)
        };
        let before = |b: usize, i: usize, j: usize| of(b, j) < of(b, position(i));
        let earlier = |b: usize, i: usize, j: usize| before(b, i, j) && !is_landmark(b, j);
        let mask = |rows: usize, cols: usize, is_set: &dyn Fn(usize, usize, usize) -> bool| {
            let each = |x: usize| f32::from(u8::from(is_set(x / (rows * cols), x / cols % rows, x % cols)));
            let values: Vec<f32> = (0..phases.len() * rows * cols).map(each).collect();
            Tensor::from_vec(values, (phases.len(), 1, rows, cols), device)
        };
        Ok(Masks {
            own: mask(queries, keys, &own)?,
            outer: mask(queries, keys, &|b, i, j| own(b, i, j) || before(b, i, j) && is_landmark(b, j))?,
            earlier: mask(queries, keys, &earlier)?,
            member: mask(keys, blocks, &|b, j, block| of(b, j) == block)?,
            landmark: mask(keys, blocks, &|b, j, block| of(b, j) == block && is_landmark(b, j))?,
            none: mask(queries, blocks, &|b, i, block| {
                !(0..keys).any(|j| earlier(b, i, j) && of(b, j) == block)
            })?,
        })
    }
}

/// Keys or values of as many heads as there are query heads.
fn shared(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, kv_heads, rows, head_dim) = x.dims4()?;
    let spread = x.unsqueeze(2)?.broadcast_as((batch, kv_heads, heads / kv_heads, rows, head_dim))?;
    spread.reshape((batch, heads, rows, head_dim))
}

/// Scores `(B, H, Nq, Nk)`, and the values that they weigh.
fn scores([q, k, v]: [&Tensor; 3]) -> Result<[Tensor; 2]> {
    let (_, heads, _, head_dim) = q.dims4()?;
    let scores = q.contiguous()?.matmul(&shared(k, heads)?.t()?.contiguous()?)?;
    Ok([(scores / (head_dim as f64).sqrt())?, shared(v, heads)?])
}

/// Queries `(B, H, Nq, D)`, keys and values `(B, Hkv, Nk, D)`, every step in their type.
pub fn landmark_attention(qkv: [&Tensor; 3], masks: &Masks) -> Result<Tensor> {
    let [scores, v] = scores(qkv)?;
    let mask = |mask: &Tensor| mask.to_dtype(scores.dtype());
    let e = scores.exp()?;
    // The outer softmax, and what each earlier block has of it: its landmark's weight.
    let outer = e.broadcast_mul(&mask(&masks.outer)?)?;
    let outer = outer.broadcast_div(&outer.sum_keepdim(3)?)?;
    let of_block = outer.broadcast_matmul(&mask(&masks.landmark)?)?;
    // The inner softmax of each earlier block, times that.
    let inner = e.broadcast_mul(&mask(&masks.earlier)?)?;
    let sums = inner.broadcast_matmul(&mask(&masks.member)?)?.broadcast_add(&mask(&masks.none)?)?;
    let of_key = (of_block / sums)?.broadcast_matmul(&mask(&masks.member)?.transpose(2, 3)?.contiguous()?)?;
    let weights = (outer.broadcast_mul(&mask(&masks.own)?)? + (inner * of_key)?)?;
    weights.matmul(&v)
}

/// Causal attention without landmarks, as candle's models write it, for the clock: `mask` is 0 where a key may be seen, else
/// negative infinity.
pub fn causal_attention(qkv: [&Tensor; 3], mask: &Tensor) -> Result<Tensor> {
    let [scores, v] = scores(qkv)?;
    let scores = scores.broadcast_add(mask)?;
    let e = scores.broadcast_sub(&scores.max_keepdim(3)?)?.exp()?;
    e.broadcast_div(&e.sum_keepdim(3)?)?.matmul(&v)
}
