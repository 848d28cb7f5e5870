//! Any bytes as a token stream, of either width, with and without a vocabulary: reading anywhere gives tokens or
//! an error.
#![no_main]

use landmark_data::{TokenStream, TokenType};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, Option<u32>, usize, u16, Vec<u8>)| {
    let (wide, vocab_size, start, length, bytes) = input;
    let dtype = if wide { TokenType::Uint32 } else { TokenType::Uint16 };
    let size = bytes.len();
    let Ok(mut stream) = TokenStream::from_bytes(bytes, dtype, "fuzz.bin") else { return };
    assert_eq!(stream.len() * dtype.width(), size);
    if let Some(vocab_size) = vocab_size {
        stream = stream.with_vocabulary(vocab_size);
    }
    let _ = stream.get(0..stream.len());
    let _ = stream.get(start..start.wrapping_add(usize::from(length)));
    let mut ids = vec![0; usize::from(length)];
    if stream.read(start, &mut ids).is_ok() {
        assert!(start + ids.len() <= stream.len());
        assert!(vocab_size.is_none_or(|size| ids.iter().all(|&id| id < size)));
    }
});
