//! `landmark passkey`: flags to a suite of prompts. The rest is [`probe`].

use landmark_probe::filler::Filler;
use landmark_probe::passkey::{Passkey, RELEASED_CHARACTERS, Unit};
use serde_json::json;

use crate::args::passkey::{FillerName, PasskeyArgs};
use crate::error::Result;
use crate::probe::{self, Plan};
use crate::report::Report;

/// Resolves the flags. Reads nothing.
///
/// # Errors
/// Names the flag that cannot be followed.
pub fn suite(args: &PasskeyArgs) -> Result<Passkey> {
    let (lengths, unit) = match (&args.lengths[..], &args.n_values[..]) {
        ([], []) => (RELEASED_CHARACTERS.to_vec(), Unit::Characters),
        ([], characters) => (characters.to_vec(), Unit::Characters),
        (tokens, _) => (tokens.to_vec(), Unit::Tokens),
    };
    let filler = match args.filler {
        FillerName::Released => Filler::Released,
        FillerName::Notes => Filler::Notes,
        FillerName::Prose => Filler::Prose,
    };
    let suite = Passkey {
        lengths,
        unit,
        depths: args.probe.depths.clone(),
        tests: args.num_tests,
        filler,
        seed: args.probe.seed,
    };
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
    probe::run(&Plan { name: "passkey", unit: suite.unit, suite: &suite, settings }, &args.probe, report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, parse};

    fn resolve(flags: &str) -> Result<Passkey> {
        let line = format!("landmark passkey --model m {flags}");
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
