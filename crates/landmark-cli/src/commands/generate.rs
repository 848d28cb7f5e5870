//! `landmark generate`: flags to settings, prompts to tokens, tokens to text as they come.

use std::io::Read;
use std::path::{Path, PathBuf};

use landmark_core::Backend;
use landmark_model::config::Attention;
use landmark_model::generate::Generator;
use landmark_model::model::CacheShape;
use landmark_model::sample::Sampling;
use serde::{Deserialize, Serialize};

use crate::answer::{self, Continuation, Times};
use crate::args::generate::{AnswerArgs, GenerateArgs};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::machine::peak_memory;
use crate::opened::{self, Opened};
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
    /// One of each line of a file.
    Lines(PathBuf),
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
    let sampling = sampling(&args.answer)?;
    let prompt = match (&args.prompt, &args.prompt_file, &args.prompt_tokens, &args.prompts) {
        (Some(text), ..) => Prompt::Text(text.clone()),
        (_, Some(file), ..) => Prompt::File(file.clone()),
        (_, _, Some(tokens), _) => Prompt::Tokens(tokens.clone()),
        (.., Some(file)) => Prompt::Lines(file.clone()),
        _ => Prompt::Stdin,
    };
    if args.batch_size == 0 {
        return Err(Error::flag("--batch-size", "must be at least 1", ""));
    }
    if args.answer.lookups_html.is_some() && matches!(prompt, Prompt::Lines(_)) {
        return Err(Error::flag("--lookups-html", "shows one prompt", "give --lookups --json for many"));
    }
    Ok(GenerateSettings { prompt, sampling, device: args.device.device.select()? })
}

/// How tokens are chosen.
///
/// # Errors
/// Names the flag that cannot be followed.
pub fn sampling(args: &AnswerArgs) -> Result<Sampling> {
    let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p };
    sampling.validate()?;
    Ok(sampling)
}

impl Prompt {
    /// The text to be tokenised; `None` if the prompt is tokens.
    ///
    /// # Errors
    /// If the file or standard input cannot be read, is too long, or is not UTF-8.
    pub fn text(&self) -> Result<Option<String>> {
        let (name, input): (&Path, Box<dyn Read>) = match self {
            Prompt::Tokens(_) | Prompt::Lines(_) => return Ok(None),
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
            .map_err(|_| refuse("is not UTF-8 text", "convert it, with iconv for instance"))?;
        Ok(Some(text))
    }
}

/// A line of `--prompts`.
#[derive(Clone, Debug, Deserialize)]
struct Line {
    prompt: Option<String>,
    prompt_tokens: Option<Vec<u32>>,
}

/// A prompt as tokens, and whether it was a text, which ends where the model says so.
struct Prompted {
    tokens: Vec<u32>,
    is_text: bool,
}

fn prompts(prompt: &Prompt, opened: &Opened) -> Result<Vec<Prompted>> {
    if let Some(text) = prompt.text()? {
        return Ok(vec![Prompted { tokens: opened.encode(&text)?, is_text: true }]);
    }
    let path = match prompt {
        Prompt::Lines(path) => path,
        Prompt::Tokens(tokens) => return Ok(vec![Prompted { tokens: tokens.clone(), is_text: false }]),
        _ => return Ok(Vec::new()),
    };
    let text = Prompt::File(path.clone()).text()?.unwrap_or_default();
    let wrong = |number: usize, reason: String| Error::Input {
        path: path.clone(),
        reason: format!("line {}: {reason}", number + 1),
        help: "each line is {\"prompt\": \"...\"} or {\"prompt_tokens\": [1, 2]}".to_owned(),
    };
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let read = |(number, line): (usize, &str)| -> Result<Prompted> {
        let line: Line = serde_json::from_str(line).map_err(|error| wrong(number, error.to_string()))?;
        match (line.prompt, line.prompt_tokens) {
            (Some(text), None) => Ok(Prompted { tokens: opened.encode(&text)?, is_text: true }),
            (None, Some(tokens)) => Ok(Prompted { tokens, is_text: false }),
            _ => Err(wrong(number, "it has to hold one of prompt and prompt_tokens".to_owned())),
        }
    };
    let found = lines.map(read).collect::<Result<Vec<_>>>()?;
    match found.is_empty() {
        true => Err(wrong(0, "there is no prompt in the file".to_owned())),
        false => Ok(found),
    }
}

/// What a generation gave, of one prompt.
#[derive(Clone, Debug, Serialize)]
struct Outcome {
    #[serde(flatten)]
    continuation: Continuation,
    #[serde(flatten)]
    speed: Speed,
}

/// What a generation gave, of several prompts.
#[derive(Clone, Debug, Serialize)]
struct Outcomes {
    results: Vec<Continuation>,
    #[serde(flatten)]
    speed: Speed,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Speed {
    /// Tokens of the prompts read in each second.
    prompt_tokens_per_second: f64,
    /// Tokens generated in each second.
    tokens_per_second: f64,
    peak_memory_bytes: Option<u64>,
}

/// Generates text.
///
/// # Errors
/// If the flags cannot be followed, the checkpoint cannot be read, or a token cannot be chosen.
pub fn run(args: &GenerateArgs, report: &Report) -> Result<()> {
    let settings = settings(args)?;
    let opened = Opened::open(&args.model, settings.device)?;
    let prompts = prompts(&settings.prompt, &opened)?;
    let backend = settings.device.open(opened.blocks())?;
    run_on(backend, args, &settings, &opened, &prompts, report)
}

fn run_on<B: Backend>(
    backend: B,
    args: &GenerateArgs,
    settings: &GenerateSettings,
    opened: &Opened,
    prompts: &[Prompted],
    report: &Report,
) -> Result<()> {
    let longest = prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0);
    let memory = opened.memory(&args.memory, longest.saturating_add(args.answer.max_new_tokens))?;
    let batch = match memory.cache {
        CacheShape::Mem { .. } => args.batch_size.min(prompts.len()),
        CacheShape::Kv { .. } | CacheShape::None => 1,
    };
    let lookups = args.answer.wants_lookups();
    let mut engine = opened::engine(backend, opened, &memory, &args.memory, batch, lookups, None)?;
    opened.fill(&mut engine)?;
    let mut results = Vec::with_capacity(prompts.len());
    let mut times = Times::default();
    for group in prompts.chunks(batch.max(1)) {
        let how = memory.settings(settings.sampling.clone(), args.answer.seed, lookups);
        let mut generator = Generator::new(&mut engine, how, group.len())?;
        let tokens: Vec<&[u32]> = group.iter().map(|prompt| prompt.tokens.as_slice()).collect();
        let is_ended = !args.answer.ignore_eos && group.iter().all(|prompt| prompt.is_text);
        let end = if is_ended { opened.end_tokens() } else { Vec::new() };
        let (found, taken) =
            answer::answer(&mut generator, &tokens, &end, opened.tokenizer.as_ref(), &args.answer, report)?;
        times = Times { read: times.read + taken.read, written: times.written + taken.written };
        results.extend(found);
    }
    if prompts.len() > 1 || args.answer.no_stream {
        results.iter().try_for_each(|result| report.print(&result.text))?;
    }
    if let (true, CacheShape::Mem { block, .. }) = (lookups, memory.cache) {
        for (prompt, result) in prompts.iter().zip(&results) {
            let title = opened.checkpoint.path().display().to_string();
            let shape = (opened.config.layers, opened.config.heads);
            let lookup =
                answer::lookup(&title, &prompt.tokens, block, opened.tokenizer.as_ref(), shape, result);
            answer::show(&lookup, &args.answer, report)?;
        }
    } else if lookups {
        let what =
            if opened.config.attention == Attention::Plain { "this model has" } else { "this run has" };
        report.warn(format!("nothing is looked up: {what} no landmark memory"));
    }
    let count = |of: &dyn Fn(&Continuation) -> usize| results.iter().map(of).sum::<usize>() as f64;
    let speed = Speed {
        prompt_tokens_per_second: count(&|c| c.prompt_tokens) / times.read,
        tokens_per_second: count(&|c| c.new_tokens.len()) / times.written,
        peak_memory_bytes: peak_memory(),
    };
    match (&settings.prompt, results.len()) {
        (Prompt::Lines(_), _) | (_, 0) => report.json(&Outcomes { results, speed }),
        _ => report.json(&Outcome { continuation: results.remove(0), speed }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, parse};

    fn resolve(flags: &[&str]) -> Result<GenerateSettings> {
        let line = [&["landmark", "generate", "--model", "a"], flags].concat();
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
        for flags in [["--temperature", "-1"], ["--top-k", "0"], ["--top-p", "1.5"], ["--batch-size", "0"]] {
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
