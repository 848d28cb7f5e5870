//! The layout of every uniform as naga sees it: parameters lie where the host writes them.

mod common;

use common::devices;
use landmark_core::Backend;
use landmark_core::testing::memory::cases;

/// Parameters are 32-bit scalars one behind the other, which is how the host writes them.
#[test]
fn parameters_lie_where_they_are_written() {
    let mut shaders = Vec::new();
    for device in devices() {
        for case in cases() {
            let tensors = case.tensors();
            let arena = device.allocate(&tensors.layout).unwrap();
            device.compile(&case.record(&tensors, case.chunks[0]), &arena).unwrap();
        }
        let some = device.shaders();
        assert!(some.len() > 20, "only {} shaders", some.len());
        shaders.extend(some);
    }
    for source in shaders {
        let module = naga::front::wgsl::parse_str(&source).expect("WGSL");
        let (_, params) = module
            .global_variables
            .iter()
            .find(|(_, v)| v.name.as_deref() == Some("params"))
            .expect("parameters");
        let naga::TypeInner::Struct { members, span } = &module.types[params.ty].inner else {
            panic!("parameters are a struct")
        };
        for (i, member) in members.iter().enumerate() {
            assert_eq!(member.offset, 4 * i as u32, "{:?}", member.name);
        }
        assert_eq!(*span, 4 * members.len() as u32);
        // Eight storage buffers are what WebGPU promises.
        let storage = module
            .global_variables
            .iter()
            .filter(|(_, v)| matches!(v.space, naga::AddressSpace::Storage { .. }));
        assert!(storage.count() <= 8, "{}", source.lines().next().unwrap_or_default());
    }
}
