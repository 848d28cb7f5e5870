//! The fuzz targets without a fuzzer: every seed, cut off anywhere, and with any one of its bits turned over (of long
//! seeds, a sample of these).
//!
//! Fuzzing needs a compiler of its own and hours; this needs a second and runs with the other tests, so a change
//! that breaks a target or its reader is seen at once. The targets themselves are compiled in, under a macro of
//! the same name as libFuzzer's.

extern crate self as libfuzzer_sys;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

macro_rules! targets {
    ($($target:ident = $path:literal),* $(,)?) => {
        $(
            // The targets are crate roots elsewhere, and say `no_main` there.
            #[allow(unused_attributes, clippy::duplicate_mod)]
            #[path = $path]
            mod $target;
        )*

        const TARGETS: &[(&str, fn(&[u8]))] = &[$((stringify!($target), $target::run)),*];
    };
}

targets! {
    config_json = "../../fuzz/fuzz_targets/config_json.rs",
    corpus_jsonl = "../../fuzz/fuzz_targets/corpus_jsonl.rs",
    pickle = "../../fuzz/fuzz_targets/pickle.rs",
    safetensors = "../../fuzz/fuzz_targets/safetensors.rs",
    saved_memory = "../../fuzz/fuzz_targets/saved_memory.rs",
    summary = "../../fuzz/fuzz_targets/summary.rs",
    token_stream = "../../fuzz/fuzz_targets/token_stream.rs",
    tokenizer_json = "../../fuzz/fuzz_targets/tokenizer_json.rs",
    tokenizer_model = "../../fuzz/fuzz_targets/tokenizer_model.rs",
    torch = "../../fuzz/fuzz_targets/torch.rs",
}

/// Makes a target a function `run` of bytes. It stands below the targets, which import it from `libfuzzer_sys`.
#[macro_export]
macro_rules! fuzz_target {
    (|$input:ident: &[u8]| $body:expr) => {
        pub(crate) fn run($input: &[u8]) {
            $body
        }
    };
}

/// Longest seed that is damaged in every way; longer ones are at every 97th place.
const SHORT: usize = 400;

fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a parent");
    let folder = match target {
        "torch" => root.join("crates/landmark-formats/tests/data"),
        _ => root.join("fuzz/seeds").join(target),
    };
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut seeds: Vec<_> =
        paths.map(|path| (path.display().to_string(), std::fs::read(&path).expect("a seed"))).collect();
    seeds.sort();
    assert!(!seeds.is_empty(), "{target} has no seeds");
    seeds
}

/// Runs `target` on a seed and its damaged copies; gives the number of inputs.
fn replay(target: fn(&[u8]), seed: &[u8]) -> usize {
    target(seed);
    let step = if seed.len() <= SHORT { 1 } else { 97 };
    let mut inputs = 1;
    for length in (0..seed.len()).step_by(step) {
        target(&seed[..length]);
        inputs += 1;
    }
    let mut damaged = seed.to_vec();
    for bit in (0..8 * seed.len()).step_by(step) {
        damaged[bit / 8] ^= 1 << (bit % 8);
        target(&damaged);
        damaged[bit / 8] = seed[bit / 8];
        inputs += 1;
    }
    inputs
}

#[test]
fn no_target_panics_on_seeds_and_damaged_seeds() {
    for (name, target) in TARGETS {
        let mut inputs = 0;
        for (seed, bytes) in seeds(name) {
            let outcome = catch_unwind(AssertUnwindSafe(|| replay(*target, &bytes)));
            inputs += outcome.unwrap_or_else(|_| panic!("{name} panics on {seed} or a damaged copy of it"));
        }
        println!("{name}: {inputs} inputs");
        assert!(inputs > 100, "{name}: {inputs} inputs");
    }
}

#[test]
fn a_panic_would_be_seen() {
    let planted = |bytes: &[u8]| assert!(bytes.len() != 3 && bytes != [1, 2, 3, 5]);
    let caught = |seed: &[u8]| catch_unwind(AssertUnwindSafe(|| replay(planted, seed))).is_err();
    assert!(caught(&[1, 2, 3, 4]), "a beginning");
    assert!(caught(&[1, 2, 3, 4, 5]), "a beginning");
    assert!(!caught(&[1, 2]));
}
