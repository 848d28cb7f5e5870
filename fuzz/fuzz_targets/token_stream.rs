//! Any bytes as a token stream, of either width, with and without a vocabulary: reading anywhere gives tokens or
//! an error. Sixteen bytes in front say how it is read.
#![no_main]

use landmark_data::{TokenStream, TokenType};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&[flags, rest @ ..], bytes)) = input.split_first_chunk::<16>() else { return };
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte));
    let vocabulary = number(&rest[..4]) as u32;
    let (start, length) = (number(&rest[4..12]) as usize, number(&rest[12..14]) as usize);
    let dtype = if flags & 1 == 0 { TokenType::Uint16 } else { TokenType::Uint32 };
    let limited = flags & 2 != 0;
    let Ok(mut stream) = TokenStream::from_bytes(bytes.to_vec(), dtype, "fuzz.bin") else { return };
    assert_eq!(stream.len() * dtype.width(), bytes.len());
    if limited {
        stream = stream.with_vocabulary(vocabulary);
    }
    let _ = stream.get(0..stream.len());
    let _ = stream.get(start..start.wrapping_add(length));
    let mut ids = vec![0; length];
    if stream.read(start, &mut ids).is_ok() {
        assert!(start + ids.len() <= stream.len());
        assert!(!limited || ids.iter().all(|&id| id < vocabulary));
    }
});
