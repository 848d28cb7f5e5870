//! What the tests share: the two devices, and a comparison in lockstep.

#![allow(dead_code)]

use landmark_core::lockstep::compare;
use landmark_core::{Program, Tensor};
use landmark_wgpu::{Options, Wgpu};
use std::sync::OnceLock;

/// The first adapter, with all that it offers and on default limits; and on those with kernels whose threads work alone,
/// which it would otherwise use in software only.
pub(crate) fn devices() -> &'static [Wgpu; 3] {
    static DEVICES: OnceLock<[Wgpu; 3]> = OnceLock::new();
    DEVICES.get_or_init(|| {
        [(false, false), (true, false), (true, true)].map(|(baseline, alone)| {
            let options = Options { baseline, threads_alone: Some(alone), ..Options::default() };
            pollster::block_on(Wgpu::open(&options))
                .expect("an adapter; apt install mesa-vulkan-drivers gives one")
        })
    })
}

/// Reductions of a few hundred terms in f32, and functions good to a few units in the last place.
pub(crate) fn tolerance(_: &str) -> f64 {
    64.0 * f64::from(f32::EPSILON)
}

/// Compares every op of a program with the oracle, on all devices.
pub(crate) fn compare_on_all(program: &Program, inputs: &[(Tensor, Vec<u8>)]) {
    for device in devices() {
        let divergence = pollster::block_on(compare(program, device, inputs, tolerance))
            .unwrap_or_else(|e| panic!("{}: {e}", program.name));
        assert_eq!(divergence, None, "{}", program.name);
    }
}

/// The floats of a tensor in f32.
pub(crate) fn values(bytes: &[u8]) -> Vec<f64> {
    bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
}

/// The device with all that its adapter offers.
pub(crate) fn device() -> &'static Wgpu {
    &devices()[0]
}
