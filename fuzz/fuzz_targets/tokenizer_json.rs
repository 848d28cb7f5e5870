//! Any bytes as a `tokenizer.json`; what loads must encode and decode, or say why not.
#![no_main]

use landmark_data::Tokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    let Ok(tokenizer) = Tokenizer::from_json(json, "tokenizer.json", None) else { return };
    let Ok(ids) = tokenizer.encode_ordinary("Hello world, it's <s>😀</s>\n\n  1234") else { return };
    let mut stream = tokenizer.decode_stream();
    for &id in ids.iter().chain(&[0, tokenizer.eot(), u32::MAX]) {
        let _ = stream.push(id);
    }
    let _ = stream.finish();
    let _ = tokenizer.decode(&ids);
});
