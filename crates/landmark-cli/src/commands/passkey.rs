//! `landmark passkey`: flags to a suite of prompts. The rest is [`probe`].

use std::path::PathBuf;

use landmark_probe::filler::Filler;
use landmark_probe::passkey::{Passkey, RELEASED_CHARACTERS, RELEASED_TESTS, Unit};
use serde_json::json;

use crate::args::passkey::{FillerName, PasskeyArgs};
use crate::error::Result;
use crate::probe::{self, Plan};
use crate::report::Report;

/// Lengths that the built-in model is asked at: its trained context, and up to 64 times that.
const LENGTHS: [usize; 4] = [512, 2048, 8192, 32_768];

/// Depths that it is asked at, so that the picture has no holes.
const DEPTHS: [f64; 5] = [0.0, 0.25, 0.5, 0.75, 1.0];

/// Where its results go.
const RESULTS: &str = "passkey-results";

/// Resolves the flags. Reads nothing.
///
/// # Errors
/// Names the flag that cannot be followed.
pub fn suite(args: &PasskeyArgs) -> Result<Passkey> {
    let builtin = args.probe.asks_builtin();
    let (lengths, unit) = match (&args.lengths[..], &args.n_values[..]) {
        ([], []) if builtin => (LENGTHS.to_vec(), Unit::Tokens),
        ([], []) => (RELEASED_CHARACTERS.to_vec(), Unit::Characters),
        ([], characters) => (characters.to_vec(), Unit::Characters),
        (tokens, _) => (tokens.to_vec(), Unit::Tokens),
    };
    let filler = match args.filler {
        Some(FillerName::Released) => Filler::Released,
        Some(FillerName::Notes) => Filler::Notes,
        Some(FillerName::Prose) => Filler::Prose,
        None if builtin => Filler::Prose,
        None => Filler::Released,
    };
    let (depths, tests) = match (&args.probe.depths[..], args.num_tests) {
        ([], None) if builtin => (DEPTHS.to_vec(), 1),
        (depths, None) if builtin => (depths.to_vec(), 1),
        (depths, tests) => (depths.to_vec(), tests.unwrap_or(RELEASED_TESTS)),
    };
    let suite = Passkey { lengths, unit, depths, tests, filler, seed: args.probe.seed };
    suite.validate()?;
    Ok(suite)
}

/// Asks for pass keys.
///
/// # Errors
/// If the flags cannot be followed, the model cannot be read, or a question is not answered.
pub fn run(args: &PasskeyArgs, report: &Report) -> Result<()> {
    let suite = suite(args)?;
    let settings = json!({ "seed": suite.seed, "unit": suite.unit, "filler": suite.filler });
    let results = args.probe.asks_builtin().then(|| PathBuf::from(RESULTS));
    let plan = Plan { name: "passkey", unit: suite.unit, suite: &suite, settings, results };
    probe::run(&plan, &args.probe, report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, parse};

    fn resolve(flags: &str) -> Result<Passkey> {
        resolve_line(&format!("--model m {flags}"))
    }

    fn resolve_line(flags: &str) -> Result<Passkey> {
        let line = format!("landmark passkey {flags}");
        let Command::Passkey(args) = parse(line.split_whitespace())?.command else { panic!() };
        suite(&args)
    }

    #[test]
    fn lengths_are_tokens_or_released_characters() {
        assert_eq!(resolve("").unwrap(), Passkey::released(2));
        let tokens =
            resolve("--lengths 4096,32768 --num-tests 5 --depths 0,0.5 --filler prose --seed 7").unwrap();
        let expected = Passkey {
            lengths: vec![4096, 32_768],
            unit: Unit::Tokens,
            depths: vec![0.0, 0.5],
            tests: 5,
            filler: Filler::Prose,
            seed: 7,
        };
        assert_eq!(tokens, expected);
        for flag in ["--n-values", "--n_values", "--garbage"] {
            let characters = resolve(&format!("{flag} 0,100")).unwrap();
            assert_eq!((characters.lengths, characters.unit), (vec![0, 100], Unit::Characters), "{flag}");
        }
    }

    #[test]
    fn the_built_in_model_has_defaults_of_its_own() {
        let asked = |flags: &str| {
            let suite = resolve_line(flags).unwrap();
            (suite.lengths, suite.unit, suite.depths, suite.tests, suite.filler)
        };
        let (lengths, depths, tokens) = (LENGTHS.to_vec(), DEPTHS.to_vec(), Unit::Tokens);
        assert_eq!(asked(""), (lengths.clone(), tokens, depths.clone(), 1, Filler::Prose));
        assert_eq!(asked("--lengths 512"), (vec![512], tokens, depths, 1, Filler::Prose));
        assert_eq!(asked("--num-tests 3"), (lengths.clone(), tokens, vec![], 3, Filler::Prose));
        assert_eq!(
            asked("--depths 1 --filler notes"),
            (lengths.clone(), tokens, vec![1.0], 1, Filler::Notes)
        );
        // Prompts for other programs are the released ones.
        assert_eq!(resolve_line("--dump-prompts f").unwrap(), Passkey::released(2));
    }

    #[test]
    fn mistakes_are_usage_errors() {
        for (flags, said) in [
            ("--depths 0,2", "--depths"),
            ("--num-tests 0", "--num-tests"),
            ("--lengths 1 --n-values 2", "--n-values"),
            ("--lengths x", "--lengths"),
            ("--answers a", "--prompts"),
            ("--prompts p --dump-prompts d", "--dump-prompts"),
        ] {
            let error = resolve(flags).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains(said), "{flags}: {error}");
        }
        assert!(parse(["landmark", "passkey", "--dump-prompts", "f"]).is_ok());
    }
}
