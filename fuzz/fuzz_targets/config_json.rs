//! Any bytes as the `config.json` of a model or of an adapter: what is read describes one within bounds, or is refused.
#![no_main]

use landmark_formats::peft::PeftConfig;
use landmark_model::huggingface::{config, parse, to_fields};
use libfuzzer_sys::fuzz_target;

/// No extent of a model may be larger.
const LARGEST: usize = 1 << 24;

fuzz_target!(|bytes: &[u8]| {
    let _ = PeftConfig::parse(bytes);
    let Ok(fields) = parse(bytes) else { return };
    let Ok(model) = config(&fields) else { return };
    model.validate().expect("what is read is valid");
    for extent in [model.vocab_size, model.width, model.layers, model.hidden, model.context, model.head_dim] {
        assert!((1..=LARGEST).contains(&extent));
    }
    // What is written is read as the same model.
    if let Ok(written) = to_fields(&model, Some(&fields)) {
        assert_eq!(config(&written).expect("our own fields"), model);
    }
});
