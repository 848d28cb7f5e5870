//! The command line, parsed. Nothing here touches a file or a device.
//!
//! Long flags are written `--mem-freq` or, as in the released program, `--mem_freq`: every flag with a dash
//! in its name gets the spelling with underscores as an alias ([`command`] does so for all at once).
//! Rejected: rewriting the arguments before they are parsed, which cannot tell a flag from a value that looks
//! like one. As with the released program, a flag given twice counts as given last.

pub mod ask;
pub mod bench;
pub mod convert;
pub mod demo;
pub mod eval;
pub mod finetune;
pub mod generate;
pub mod info;
pub mod init;
pub mod lessons;
pub mod memory;
pub mod passkey;
pub mod prepare;
pub mod quantize;
pub mod released;
pub mod retrieval;
pub mod train;
pub mod values;
pub mod weight_diff;

use std::ffi::OsString;
use std::num::NonZeroUsize;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::device::DeviceName;
use crate::error::{Error, Result};
use crate::python;
use crate::settings::RunArgs;

/// Random-access infinite context for transformers: landmark attention.
#[derive(Clone, Debug, Parser)]
#[command(name = "landmark", version, arg_required_else_help = true, subcommand_required = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Turn text into token streams.
    Prepare(prepare::PrepareArgs),
    /// Train a model.
    Train(Box<train::TrainArgs>),
    /// Give a LLaMA landmark attention: fine-tune it, whole or through adapters.
    Finetune(Box<finetune::FinetuneArgs>),
    /// Measure a model's loss, with or without memory.
    Eval(Box<eval::EvalArgs>),
    /// Continue a text.
    Generate(Box<generate::GenerateArgs>),
    /// Read a text once and save the memory of it.
    Index(Box<ask::IndexArgs>),
    /// Answer a question from a saved memory, without reading the text again.
    Ask(Box<ask::AskArgs>),
    /// Ask for a pass key hidden in long texts.
    Passkey(Box<passkey::PasskeyArgs>),
    /// Ask for needles, chains of variables and common words in long texts.
    Retrieval(Box<retrieval::RetrievalArgs>),
    /// Make the difference of fine-tuned and raw weights, or recover the weights from it.
    #[command(alias = "weight_diff")]
    WeightDiff(Box<weight_diff::WeightDiffArgs>),
    /// Write texts from which a model learns to retrieve.
    Lessons(lessons::LessonsArgs),
    /// Begin a LLaMA of any size, with random weights and a vocabulary of its own.
    Init(init::InitArgs),
    /// Rewrite a checkpoint: another layout, type or number of files, an adapter merged.
    Convert(convert::ConvertArgs),
    /// Rewrite a LLaMA's weights in blocks of 8 or 4 bits.
    Quantize(quantize::QuantizeArgs),
    /// Train and evaluate a small model, from nothing, in minutes.
    Demo(demo::DemoArgs),
    /// Measure the speed of training, attention, reading and generating.
    Bench(bench::BenchArgs),
    /// Describe this machine, a model, a checkpoint, a saved memory or a token stream.
    Info(info::InfoArgs),
}

/// Flags of every command.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Output and machine")]
pub struct Common {
    /// Print the result as one JSON object, and nothing else, on standard output.
    #[arg(long)]
    pub json: bool,
    /// Print no progress.
    #[arg(long)]
    pub quiet: bool,
    /// Threads to compute with [default: one a core].
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
}

/// `--device` of the commands that do not take the released program's flags.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct DeviceArg {
    /// Where to compute: auto, cpu, cuda, cuda:N, wgpu, wgpu:N or wgpu:NAME.
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Output and machine")]
    pub device: DeviceName,
}

impl Command {
    /// The flags that every command has.
    pub fn common(&self) -> &Common {
        match self {
            Command::Prepare(args) => &args.common,
            Command::Train(args) => &args.common,
            Command::Finetune(args) => &args.common,
            Command::Eval(args) => &args.common,
            Command::Generate(args) => &args.common,
            Command::Index(args) => &args.common,
            Command::Ask(args) => &args.common,
            Command::Passkey(args) => &args.probe.common,
            Command::Retrieval(args) => &args.probe.common,
            Command::WeightDiff(args) => &args.common,
            Command::Lessons(args) => &args.common,
            Command::Init(args) => &args.common,
            Command::Convert(args) => &args.common,
            Command::Quantize(args) => &args.common,
            Command::Demo(args) => &args.common,
            Command::Bench(args) => &args.common,
            Command::Info(args) => &args.common,
        }
    }

    /// The flags with which it takes less memory, as a piece of advice.
    pub fn memory_savers(&self) -> &'static str {
        match self {
            Command::Train(_) => {
                "lower --batch-size and raise --acc-steps, which makes the same steps, or take a smaller model or \
                 --sequence-length"
            }
            Command::Finetune(_) => {
                "lower --per-device-train-batch-size (and raise --gradient-accumulation-steps) or \
                 --model-max-length, or give --gradient-checkpointing"
            }
            Command::Eval(_) => "lower --batch-size, --mid-length or --mem-cache-size",
            Command::Generate(_)
            | Command::Index(_)
            | Command::Ask(_)
            | Command::Passkey(_)
            | Command::Retrieval(_) => {
                "keep blocks of the memory elsewhere with --device-memory SIZE, --host-memory SIZE and \
                 --memory-file FILE, keep fewer with --mem-cache-size, or read shorter chunks with --mid-length"
            }
            Command::Bench(_) => {
                "lower --batch-size, --context or --n-layer, or keep only so much of the memory on the device with \
                 --device-memory SIZE"
            }
            _ => "use a machine with more memory, or a smaller model",
        }
    }
}

/// The parser, with both spellings of every flag. The released flags get their defaults from [`RunArgs`]: in
/// their help, and where the default is yes or no, in being given alone or with a word.
pub fn command() -> clap::Command {
    let defaults = RunArgs::default().to_map();
    Cli::command().mut_subcommands(move |command| {
        let takes_released_flags = ["train", "eval"].contains(&command.get_name());
        command.args_override_self(true).mut_args(|arg| {
            let default = defaults.get(arg.get_id().as_str()).filter(|_| takes_released_flags);
            let arg = default.map_or(arg.clone(), |default| with_default(arg, default));
            let takes_value = arg.get_action().takes_values();
            let arg = arg.allow_negative_numbers(takes_value);
            match arg.get_long().filter(|long| long.contains('-')).map(|long| long.replace('-', "_")) {
                Some(underscored) => arg.alias(underscored),
                None => arg,
            }
        })
    })
}

/// A released flag whose setting is `default` if it is not given.
fn with_default(arg: clap::Arg, default: &serde_json::Value) -> clap::Arg {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let help = format!("{} [default: {}]", help.trim_end_matches('.'), python::str(default));
    let arg = arg.help(help.clone()).long_help(help);
    if !default.is_boolean() {
        return arg;
    }
    arg.num_args(0..=1).default_missing_value("true").value_parser(values::python_bool).value_name("BOOL")
}

/// Parses a command line, the program's name first.
///
/// # Errors
/// If it does not parse; also for `--help` and `--version`, as [`Error::Shown`].
pub fn parse(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Cli> {
    let matches = command().try_get_matches_from(arguments).map_err(from_clap)?;
    Cli::from_arg_matches(&matches).map_err(from_clap)
}

/// clap's many-lined message as ours: what is wrong on one line, what to do on another.
fn from_clap(error: clap::Error) -> Error {
    use clap::error::ErrorKind;
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => return Error::Shown(text),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            let cli = Cli::command();
            let names: Vec<&str> = cli.get_subcommands().map(clap::Command::get_name).collect();
            return Error::Parse {
                message: "no command given".to_owned(),
                help: format!("give one of {}; landmark --help describes them", names.join(", ")),
            };
        }
        _ => {}
    }
    let lines = text.lines().take_while(|line| !line.starts_with("Usage:")).map(str::trim);
    let lines: Vec<&str> =
        lines.filter(|line| !line.is_empty() && !line.starts_with("For more information")).collect();
    let (tips, message): (Vec<&str>, Vec<&str>) =
        lines.into_iter().partition(|line| line.starts_with("tip:"));
    let message = message.join(" ");
    let help = match tips.first() {
        Some(tip) => tip.trim_start_matches("tip:").trim().to_owned(),
        None => "landmark COMMAND --help lists the flags".to_owned(),
    };
    Error::Parse { message: message.trim_start_matches("error:").trim().to_owned(), help }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> Result<Cli> {
        parse(line.split_whitespace())
    }

    #[test]
    fn the_parser_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn flags_that_save_memory_are_flags_of_the_command() {
        for line in [
            "train",
            "eval --checkpoint c",
            "finetune --model_name_or_path m --train_file t --output_dir o",
            "generate --prompt p",
            "index a --output b",
            "ask m q",
            "passkey",
            "retrieval --model m",
            "bench decode",
        ] {
            let name = line.split(' ').next().unwrap_or_default();
            let advice = parse_line(&format!("landmark {line}")).unwrap().command.memory_savers();
            let commands = command();
            let flags: Vec<&str> = commands
                .find_subcommand(name)
                .unwrap()
                .get_arguments()
                .filter_map(clap::Arg::get_long)
                .collect();
            let named: Vec<&str> =
                advice.split([' ', ',', ')']).filter_map(|word| word.strip_prefix("--")).collect();
            assert!(!named.is_empty(), "{name}");
            assert!(named.iter().all(|flag| flags.contains(flag)), "{name}: {advice}");
        }
    }

    #[test]
    fn both_spellings_are_one_flag_and_values_are_left_alone() {
        for line in [
            "landmark train --mem-freq 7 --run-prefix a_b-c",
            "landmark train --mem_freq 7 --run_prefix a_b-c",
            "landmark train --mem_freq=7 --run_prefix=a_b-c",
            "landmark train --mem_freq 50 --mem-freq 7 --run_prefix=a_b-c",
        ] {
            let Command::Train(train) = parse_line(line).unwrap().command else { panic!("{line}") };
            assert_eq!(train.given.mem_freq.map(|freq| freq.0), Some(Some(7)), "{line}");
            assert_eq!(train.given.run_prefix.and_then(|prefix| prefix.0).as_deref(), Some("a_b-c"));
        }
        let all_flags_have_both = command().get_subcommands().all(|command| {
            command.get_arguments().filter_map(|arg| arg.get_long().map(|long| (arg, long))).all(
                |(arg, long)| {
                    !long.contains('-')
                        || arg.get_all_aliases().is_some_and(|all| all.contains(&&*long.replace('-', "_")))
                },
            )
        });
        assert!(all_flags_have_both);
    }

    #[test]
    fn switches_stand_alone_or_take_a_word() {
        for (flags, expected) in [
            ("--bias --wandb", Some(true)),
            ("--bias True", Some(true)),
            ("--bias=False", Some(false)),
            ("--bias false --wandb", Some(false)),
            ("--wandb", None),
        ] {
            let Command::Train(train) = parse_line(&format!("landmark train {flags}")).unwrap().command
            else {
                panic!("{flags}")
            };
            assert_eq!(train.given.bias, expected, "{flags}");
        }
        assert!(parse_line("landmark train --bias perhaps").is_err());
    }

    #[test]
    fn mistakes_are_one_line_and_a_tip() {
        let Error::Parse { message, help } = parse_line("landmark train --n-hed 3").unwrap_err() else {
            panic!()
        };
        assert_eq!(message, "unexpected argument '--n-hed' found");
        assert!(help.contains("--n-head"), "{help}");
        let error = parse_line("landmark train --model gpt5").unwrap_err();
        assert!(error.to_string().contains("landmark_with_cmt"), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
        assert_eq!(error.exit_code(), 2);
        for line in ["landmark", "landmark dance", "landmark train --lr -x", "landmark train --n-head -3"] {
            assert_eq!(parse_line(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn every_command_has_help_with_an_example() {
        for command in command().get_subcommands() {
            let line = format!("landmark {} --help", command.get_name());
            let Error::Shown(text) = parse_line(&line).unwrap_err() else { panic!("{line}") };
            assert!(text.contains(&format!("landmark {}", command.get_name())), "{text}");
            assert!(text.contains("Example"), "{text}");
            assert!(text.contains("--json") && text.contains("--device"), "{text}");
        }
        let Error::Shown(text) = parse_line("landmark train --help").unwrap_err() else { panic!() };
        assert!(text.contains("[default: 240") || text.contains("[default: 15000]"), "{text}");
    }
}
