//! Any bytes as JSON lines, plain and compressed. The first byte chooses the compression and the filter.
#![no_main]

use std::path::Path;

use landmark_data::corpus::Compression;
use landmark_data::corpus::jsonl::{Filter, Lines, document};
use libfuzzer_sys::fuzz_target;

/// Decompressed lines may be far longer than the input; this is what may be held of one.
const LIMIT: usize = 1 << 16;

fuzz_target!(|input: &[u8]| {
    let Some((&choice, bytes)) = input.split_first() else { return };
    let compression = [Compression::None, Compression::Gzip, Compression::Zstd][usize::from(choice % 3)];
    let filter = if choice & 0x80 == 0 { Filter::All } else { Filter::Arxiv };
    let path = Path::new("fuzz.jsonl");
    let Ok(mut lines) = Lines::new(bytes, compression, LIMIT) else { return };
    let mut before = 0;
    while let Ok(Some((number, line))) = lines.next_line(path) {
        assert!(number > before && line.len() <= LIMIT + 1);
        before = number;
        let _ = document(&line, filter, path, number);
        if number > 1000 {
            break; // a few bytes of gzip may hold millions of lines
        }
    }
});
