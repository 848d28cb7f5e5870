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

/// No device of CI has matrix units; that their kernel is WGSL, and becomes SPIR-V, can be seen without.
#[test]
fn the_kernel_for_matrix_units_is_valid() {
    for whole in [false, true] {
        let source = matrix_units_source(whole);
        let module =
            naga::front::wgsl::parse_str(&source).unwrap_or_else(|e| panic!("{}", e.emit_to_string(&source)));
        let capabilities = naga::valid::Capabilities::all();
        naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities)
            .validate(&module)
            .expect("valid");
        let bytes: u32 = module
            .global_variables
            .iter()
            .filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup)
            .map(|(_, v)| module.types[v.ty].inner.size(module.to_ctx()))
            .sum();
        assert_eq!(bytes, 45_056, "what `matrix_units.rs` asks of an adapter");
    }
}

/// The kernel with accessors, as for rows that are whole slices or not.
fn matrix_units_source(whole: bool) -> String {
    let mut source = "enable f16;\nenable wgpu_cooperative_matrix;\n\
        struct Params { m: u32, n: u32, k: u32, above: u32, first: u32, stride: u32, scale: f32 }\n\
        @group(0) @binding(0) var<uniform> params: Params;\nconst ADD: bool = true;\n"
        .to_owned();
    source += &format!("const WHOLE: bool = {whole};\n");
    for (binding, name) in ["a", "b"].into_iter().enumerate() {
        let binding = binding + 1;
        source += &format!(
            "@group(0) @binding({binding}) var<storage, read> {name}: array<vec4<u32>>;\n\
             fn {name}_oct(e: u32, valid: u32) -> vec4<u32> {{ return {name}[e >> 3u]; }}\n"
        );
    }
    for (binding, name) in ["bias", "out"].into_iter().enumerate() {
        let binding = binding + 3;
        source += &format!(
            "@group(0) @binding({binding}) var<storage, read> {name}: array<vec4<f32>>;\n\
             fn {name}_quad(e: u32, valid: u32) -> vec4<f32> {{ return {name}[e >> 2u]; }}\n\
             fn {name}_put(e: u32, v: vec4<f32>, valid: u32) {{ }}\n"
        );
    }
    source += include_str!("../src/shaders/common.wgsl");
    source += include_str!("../src/shaders/store_product.wgsl");
    source += include_str!("../src/shaders/matmul_cooperative.wgsl");
    source
}
