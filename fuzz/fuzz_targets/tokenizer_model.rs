//! Any bytes as a SentencePiece `tokenizer.model`; what loads must encode and decode, or say why not.
#![no_main]

use landmark_data::Tokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(tokenizer) = Tokenizer::from_sentencepiece(bytes, "tokenizer.model", None) else { return };
    let Ok(ids) = tokenizer.encode("Hello world, it's <s>😀</s>\n\n  1234") else { return };
    let _ = tokenizer.decode(&ids);
});
