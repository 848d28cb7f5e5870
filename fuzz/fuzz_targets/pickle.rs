//! Any bytes as the pickle in an otherwise sound checkpoint with three storages.

#![no_main]

use landmark_formats::torch::TorchFile;
use libfuzzer_sys::fuzz_target;
use std::io::Write;

mod read_all;

fuzz_target!(|pickle: &[u8]| {
    let Ok(file) = TorchFile::from_bytes("fuzz", checkpoint(pickle)) else { return };
    read_all::read_all(&file);
});

fn checkpoint(pickle: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut zip = rawzip::ZipArchiveWriter::new(&mut file);
    let storages = ["a/data/0", "a/data/1", "a/data/2"].map(|name| (name, &[0x40; 64][..]));
    for (name, bytes) in [("a/data.pkl", pickle)].into_iter().chain(storages) {
        let (mut entry, config) = zip.new_file(name).start().expect("the name is valid");
        let mut writer = config.wrap(&mut entry);
        writer.write_all(bytes).expect("memory is written");
        let (_, descriptor) = writer.finish().expect("memory is written");
        entry.finish(descriptor).expect("memory is written");
    }
    zip.finish().expect("memory is written");
    file
}
