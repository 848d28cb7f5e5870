//! Matrix units: whether an adapter has them as kernels want them, and whether they compute what they should.
//!
//! wgpu offers cooperative matrices natively, as an experimental feature: shapes and types are the driver's, and whoever
//! switches it on vouches that it is used well. So few kernels use them, those of products (`matmul_cooperative.wgsl`) and of
//! attention to a memory (`attention_tile.wgsl`); they are for matrices of 16 x 16 in f16 with sums in f32 and subgroups of
//! 32, and a device that is opened with them has to multiply two matrices of whole numbers first, and to find what queries
//! attend to alone. Where it does not give what is exact, or fails, the device is opened anew without them: the portable
//! kernels are slower, and right.

use crate::Wgpu;
use crate::kernel::Kernel;
use half::f16;
use landmark_core::ops::{Heads, Matmul, MemoryShape, Origin, RetrievalAttention, RopeStyle};
use landmark_core::{Backend, Cols, DType, Layout, Recorder, Result};

/// The optional features that the kernels need.
pub(crate) const FEATURES: wgpu::Features =
    wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(wgpu::Features::SHADER_F16);

/// Bytes of workgroup memory that products need; attention is cut to what there is.
pub(crate) const WORKGROUP_BYTES: u32 = 45_056;

/// Threads of a subgroup that they are written for.
const SUBGROUP: u32 = 32;

/// What the kernels of attention write their products for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Units {
    /// Matrix units.
    Real,
    /// Plain arithmetic, so that all else can be tested without.
    Emulated,
}

impl Units {
    /// Gives a kernel its matrices. It says itself what lies in workgroup memory.
    pub(crate) fn describe(self, k: &mut Kernel) {
        k.extension("f16");
        match self {
            Units::Real => {
                k.extension("wgpu_cooperative_matrix");
                k.include(include_str!("shaders/matrix_units.wgsl"));
            }
            Units::Emulated => k.include(include_str!("shaders/matrix_units_emulated.wgsl")),
        }
    }
}

/// Whether an adapter has what the kernels need.
pub(crate) fn are_offered(adapter: &wgpu::Adapter) -> bool {
    use wgpu::CooperativeScalarType::{F16, F32};
    let info = adapter.get_info();
    adapter.features().contains(FEATURES)
        && (info.subgroup_min_size, info.subgroup_max_size) == (SUBGROUP, SUBGROUP)
        && adapter.limits().max_compute_workgroup_storage_size >= WORKGROUP_BYTES
        && adapter.cooperative_matrix_properties().iter().any(|found| {
            (found.m_size, found.n_size, found.k_size) == (16, 16, 16)
                && (found.ab_type, found.cr_type) == (F16, F32)
        })
}

/// What wgpu asks of those who use an experimental feature.
pub(crate) fn permission() -> wgpu::ExperimentalFeatures {
    // SAFETY: the condition is to know that the feature may have bugs in wgpu which make its use undefined. One kernel
    // uses it; it reads and writes within its own workgroup memory at constant places, and a device on which it does not
    // compute exact products is not used (`is_right`).
    #[allow(unsafe_code)]
    unsafe {
        wgpu::ExperimentalFeatures::enabled()
    }
}

/// Whether a device multiplies exactly what can be multiplied exactly: whole numbers, with extents on both sides of the
/// kernel's tiles, and depths that are whole slices of it and that are not.
pub(crate) async fn is_right(device: &Wgpu) -> bool {
    for (m, n, k) in [(16, 16, 16), (150, 200, 72), (150, 200, 192)] {
        if !matches!(multiplies(device, m, n, k).await, Ok(true)) {
            return false;
        }
    }
    matches!(attends(device).await, Ok(true))
}

/// Whether queries that see one key alone get its value: keys are unit vectors, and a query is so long in the direction of
/// one key before it that the other weights are zero in f16.
async fn attends(device: &Wgpu) -> Result<bool> {
    const LENGTH: f32 = 400.0;
    let (tokens, head_dim) = (63, 64);
    let memory = MemoryShape {
        batch: 1,
        blocks: 1,
        block: 64,
        top_k: 1,
        kv_heads: 1,
        head_dim,
        origin: Origin::BlocksRetrieved,
    };
    let mut layout = Layout::new();
    let qkv = layout.add("qkv", DType::F16, [1, tokens, 3 * head_dim]);
    let ring = [1, memory.slots(), 1, memory.block, head_dim];
    let [keys, values] =
        ["keys", "values"].map(|name| layout.add_paged(name, DType::F16, ring, memory.page()));
    let lengths = layout.add("lengths", DType::U32, [1]);
    let frequencies = layout.add("frequencies", DType::F32, [head_dim / 2]);
    let out = layout.add("out", DType::F16, [1, tokens, head_dim]);
    let cols = |start| Cols { tensor: qkv, start, width: head_dim };
    let mut recorder = Recorder::new("attention to one key alone", &layout);
    recorder.push(RetrievalAttention {
        memory,
        heads: Heads { batch: 1, queries: tokens, keys: tokens, heads: 1, kv_heads: 1, head_dim },
        q: cols(0),
        k: cols(head_dim),
        v: cols(2 * head_dim),
        keys,
        values,
        lengths,
        chosen: None,
        frequencies,
        style: RopeStyle::Halves,
        miss: false,
        miss_cutoff: None,
        shares: None,
        out,
    });
    let mut arena = device.allocate(&layout)?;
    let mut plan = device.compile(&recorder.finish(), &arena)?;
    let seen = |t: usize| 7 * t % (t + 1);
    let value = |t: usize, i: usize| ((t * 11 + i * 3 + t * i) % 61 + 1) as f32;
    let unit = |is_one: bool| f32::from(u8::from(is_one));
    let row = |t: usize| {
        let query = (0..head_dim).map(move |i| LENGTH * unit(i == seen(t)));
        let key = (0..head_dim).map(move |i| unit(i == t));
        query.chain(key).chain((0..head_dim).map(move |i| value(t, i)))
    };
    device.write(&mut arena, qkv, &halves((0..tokens).flat_map(row)))?;
    device.run(&mut plan, &mut arena)?;
    let expected = (0..tokens).flat_map(|t| (0..head_dim).map(move |i| value(seen(t), i)));
    Ok(device.read(&arena, out).await? == halves(expected))
}

fn halves(elements: impl Iterator<Item = f32>) -> Vec<u8> {
    elements.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect()
}

async fn multiplies(device: &Wgpu, m: usize, n: usize, k: usize) -> Result<bool> {
    let mut layout = Layout::new();
    let a = layout.add("a", DType::F16, [m, k]);
    let b = layout.add("b", DType::F16, [n, k]);
    let out = layout.add("out", DType::F32, [m, n]);
    let mut recorder = Recorder::new("a product of whole numbers", &layout);
    recorder.push(Matmul::linear(a, b, None, out));
    let mut arena = device.allocate(&layout)?;
    let mut plan = device.compile(&recorder.finish(), &arena)?;
    // No two rows or columns alike, and no sum beyond what both types hold.
    let number = |i: usize, j: usize, of: usize| ((i * 7 + j * 5 + i * j * of) % 13) as i32 - 6;
    let bytes = |rows: usize, of: usize| -> Vec<u8> {
        halves((0..rows).flat_map(|i| (0..k).map(move |j| number(i, j, of) as f32)))
    };
    device.write(&mut arena, a, &bytes(m, 1))?;
    device.write(&mut arena, b, &bytes(n, 3))?;
    device.run(&mut plan, &mut arena)?;
    let found = device.read(&arena, out).await?;
    let found = found.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let expected = (0..m).flat_map(|i| {
        (0..n).map(move |j| (0..k).map(|l| number(i, l, 1) * number(j, l, 3)).sum::<i32>() as f32)
    });
    Ok(found.eq(expected))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Options;
    use pollster::block_on;

    /// The check itself, on whatever kernel there is: it holds for a right product, and a wrong one is seen.
    #[test]
    fn right_products_pass() {
        let device = block_on(Wgpu::open(&Options::default())).expect("an adapter");
        assert!(block_on(is_right(&device)));
        device.lose();
        assert!(!block_on(is_right(&device)));
    }
}
