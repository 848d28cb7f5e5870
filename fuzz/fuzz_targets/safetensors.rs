//! Any bytes as a safetensors file: opening it and converting every tensor in it neither panics nor runs out of memory.

#![no_main]

use landmark_formats::safetensors::SafetensorsFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = SafetensorsFile::from_bytes("fuzz", bytes.to_vec()) else { return };
    let _ = file.metadata();
    for name in file.names() {
        // Within an open file, only an unsupported type may stop a tensor from being read.
        if let Ok(tensor) = file.get(name) {
            assert_eq!(tensor.to_f32().len(), tensor.element_count());
            let _ = (tensor.to_i64(), tensor.to_u32());
        }
    }
});
