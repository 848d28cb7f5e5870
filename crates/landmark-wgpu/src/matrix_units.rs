//! Matrix units: whether an adapter has them as kernels want them, and whether they compute what they should.
//!
//! wgpu offers cooperative matrices natively, as an experimental feature: shapes and types are the driver's, and whoever
//! switches it on vouches that it is used well. So there is one kernel that uses them (`matmul_cooperative.wgsl`), it is for
//! matrices of 16 x 16 in f16 with sums in f32 and subgroups of 32, and a device that is opened with them has to multiply
//! two matrices of whole numbers first. Where it does not give the exact product, or fails, the device is opened anew
//! without them: the portable kernel is slower, and right.

use crate::Wgpu;
use crate::kernel::Kernel;
use half::f16;
use landmark_core::ops::Matmul;
use landmark_core::{Backend, DType, Layout, Recorder, Result};

/// The optional features that the kernel needs.
pub(crate) const FEATURES: wgpu::Features =
    wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(wgpu::Features::SHADER_F16);

/// Bytes of workgroup memory that it needs.
const WORKGROUP_BYTES: u32 = 45_056;

/// Threads of a subgroup that it is written for.
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

/// Whether an adapter has what the kernel needs.
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
    true
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
        let elements = (0..rows).flat_map(|i| (0..k).map(move |j| number(i, j, of)));
        elements.flat_map(|x| f16::from_f32(x as f32).to_le_bytes()).collect()
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
