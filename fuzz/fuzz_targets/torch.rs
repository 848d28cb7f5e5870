//! Any bytes as a PyTorch checkpoint, checksums aside: opening it and reading every tensor in it neither panics nor
//! runs out of memory. Most inputs die as zip files; `pickle` goes on from there.

#![no_main]

use landmark_formats::torch::{Checksums, TorchFile};
use libfuzzer_sys::fuzz_target;

mod read_all;

fuzz_target!(|bytes: &[u8]| {
    // With checksums nearly every input would be refused at the first comparison.
    let Ok(file) = TorchFile::from_bytes_with("fuzz", bytes.to_vec(), Checksums::Ignore) else { return };
    read_all::read_all(&file);
});
