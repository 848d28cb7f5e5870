//! Any bytes as a memory that `landmark index` saved: opened, and its pages read, or refused.
#![no_main]

use landmark_formats::pages::MemoryFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), bytes).expect("a temporary file");
    let Ok(memory) = MemoryFile::open(file.path()) else { return };
    let mut page = vec![0; memory.info().page_bytes()];
    for tensor in 0..2 * memory.info().layers {
        for number in [0, 1, memory.info().pages(), usize::MAX] {
            let _ = memory.read(tensor, number, &mut page);
        }
        let _ = memory.landmarks(tensor / 2);
    }
});
