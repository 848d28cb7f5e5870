//! Any bytes as a `summary.json`: what is read describes a model within bounds, or is refused.
#![no_main]

use landmark_model::released::{config, parse_args, parse_summary};
use libfuzzer_sys::fuzz_target;

/// No extent of a model may be larger.
const LARGEST: usize = 1 << 24;

fuzz_target!(|bytes: &[u8]| {
    for args in [parse_summary(bytes), parse_args(bytes)] {
        let Ok(config) = args.and_then(|args| config(&args)) else { continue };
        config.validate().expect("what is read is valid");
        assert_eq!(config.heads * config.head_dim, config.width);
        for extent in [config.vocab_size, config.width, config.layers, config.context] {
            assert!((1..=LARGEST).contains(&extent));
        }
    }
});
