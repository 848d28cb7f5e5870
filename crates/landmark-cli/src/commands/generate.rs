//! `landmark generate`: flags to settings.

use std::io::Read;
use std::path::{Path, PathBuf};

use landmark_model::sample::Sampling;

use crate::args::generate::GenerateArgs;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::report::Report;

/// Prompts longer than this are mistakes (a wrong file): about a hundred million tokens.
const LONGEST_PROMPT: u64 = 512 << 20;

/// What is continued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// A text, to be tokenised.
    Text(String),
    /// The text in a file.
    File(PathBuf),
    /// The text on standard input.
    Stdin,
    /// Tokens.
    Tokens(Vec<u32>),
}

/// A generation, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateSettings {
    /// What is continued.
    pub prompt: Prompt,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Where to compute.
    pub device: Device,
}

/// Resolves the flags that do not depend on the checkpoint. Reads nothing.
///
/// # Errors
/// Names the flag that cannot be followed.
pub fn settings(args: &GenerateArgs) -> Result<GenerateSettings> {
    let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p };
    sampling.validate()?;
    let prompt = match (&args.prompt, &args.prompt_file, &args.prompt_tokens) {
        (Some(text), _, _) => Prompt::Text(text.clone()),
        (_, Some(file), _) => Prompt::File(file.clone()),
        (_, _, Some(tokens)) => Prompt::Tokens(tokens.clone()),
        _ => Prompt::Stdin,
    };
    for (flag, count) in [
        ("--mem-cache-size", args.mem_cache_size),
        ("--mem-cache-freq", args.mem_cache_freq),
        ("--mid-length", args.mid_length),
    ] {
        if count == Some(0) {
            return Err(Error::flag(flag, "must be at least 1", ""));
        }
    }
    Ok(GenerateSettings { prompt, sampling, device: args.device.device.select()? })
}

impl Prompt {
    /// The text to be tokenised; `None` if the prompt is tokens.
    ///
    /// # Errors
    /// If the file or standard input cannot be read, is too long, or is not UTF-8.
    pub fn text(&self) -> Result<Option<String>> {
        let (name, input): (&Path, Box<dyn Read>) = match self {
            Prompt::Tokens(_) => return Ok(None),
            Prompt::Text(text) => return Ok(Some(text.clone())),
            Prompt::Stdin => (Path::new("<standard input>"), Box::new(std::io::stdin().lock())),
            Prompt::File(path) => {
                (path, Box::new(std::fs::File::open(path).map_err(|error| Error::io(path, error))?))
            }
        };
        let mut bytes = Vec::new();
        input.take(LONGEST_PROMPT + 1).read_to_end(&mut bytes).map_err(|error| Error::io(name, error))?;
        let refuse = |reason: &str, help: &str| Error::Input {
            path: name.to_owned(),
            reason: reason.to_owned(),
            help: help.to_owned(),
        };
        if bytes.len() as u64 > LONGEST_PROMPT {
            return Err(refuse("is too long for a prompt", "a prompt has at most 512 MiB"));
        }
        let text = String::from_utf8(bytes)
            .map_err(|_| refuse("is not UTF-8 text", "convert it, or give --prompt-tokens"))?;
        Ok(Some(text))
    }
}

/// Generates text.
///
/// # Errors
/// If the flags cannot be followed, the checkpoint cannot be read, or a token cannot be chosen.
pub fn run(args: &GenerateArgs, _report: &Report) -> Result<()> {
    settings(args)?;
    Err(Error::NotWired("generate"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, parse};

    fn resolve(flags: &[&str]) -> Result<GenerateSettings> {
        let line = [&["landmark", "generate", "--checkpoint", "a"], flags].concat();
        let Command::Generate(generate) = parse(line)?.command else { panic!() };
        settings(&generate)
    }

    #[test]
    fn prompts_come_from_one_place() {
        let prompt = |flags: &[&str]| resolve(flags).unwrap().prompt;
        assert_eq!(prompt(&[]), Prompt::Stdin);
        assert_eq!(prompt(&["--prompt", "--top_k is a flag"]), Prompt::Text("--top_k is a flag".into()));
        assert_eq!(prompt(&["--prompt_tokens", "1,2,3"]), Prompt::Tokens(vec![1, 2, 3]));
        assert_eq!(prompt(&["--prompt-file", "f"]), Prompt::File("f".into()));
        assert!(resolve(&["--prompt", "a", "--prompt-tokens", "1"]).is_err());
        assert!(resolve(&["--prompt-tokens", "1,-2"]).is_err());
    }

    #[test]
    fn impossible_choices_are_usage_errors() {
        for flags in [["--temperature", "-1"], ["--top-k", "0"], ["--top-p", "1.5"], ["--mid-length", "0"]] {
            assert_eq!(resolve(&flags).unwrap_err().exit_code(), 2, "{flags:?}");
        }
    }

    #[test]
    fn prompts_that_are_no_text_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompt.txt");
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(Prompt::File(path.clone()).text().unwrap_err().to_string().contains("is not UTF-8"));
        std::fs::write(&path, "text").unwrap();
        assert_eq!(Prompt::File(path.clone()).text().unwrap().as_deref(), Some("text"));
        assert!(matches!(Prompt::File(folder.path().join("none")).text(), Err(Error::Io { .. })));
    }
}
