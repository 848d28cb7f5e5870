//! What the commands do: each resolves its flags into settings, then runs.

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
pub mod passkey;
pub mod prepare;
pub mod quantize;
pub mod retrieval;
pub mod sweep;
pub mod train;
pub mod weight_diff;

use std::path::PathBuf;

use crate::args::{Cli, Command};
use crate::error::{Error, Result};
use crate::report::Report;

/// Runs a parsed command line.
///
/// # Errors
/// Whatever keeps the command from its result.
pub fn run(cli: &Cli) -> Result<()> {
    let common = cli.command.common();
    if let Some(threads) = common.threads {
        // Fails only where the pool exists already: in a process that runs several commands, such as a test.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads.get()).build_global();
    }
    let report = Report::new(common);
    dispatch(&cli.command, &report).map_err(|error| error.for_want_of_memory(cli.command.memory_savers()))
}

fn dispatch(command: &Command, report: &Report) -> Result<()> {
    match command {
        Command::Prepare(args) => prepare::run(args, report),
        Command::Train(args) => train::run(args, report),
        Command::Finetune(args) => finetune::run(args, report),
        Command::Eval(args) => eval::run(args, report),
        Command::Generate(args) => generate::run(args, report),
        Command::Index(args) => ask::index(args, report),
        Command::Ask(args) => ask::ask(args, report),
        Command::Passkey(args) => passkey::run(args, report),
        Command::Retrieval(args) => retrieval::run(args, report),
        Command::WeightDiff(args) => weight_diff::run(args, report),
        Command::Lessons(args) => lessons::run(args, report),
        Command::Init(args) => init::run(args, report),
        Command::Convert(args) => convert::run(args, report),
        Command::Quantize(args) => quantize::run(args, report),
        Command::Demo(args) => demo::run(args, report),
        Command::Bench(args) => bench::run(args, report),
        Command::Info(args) => info::run(args, report),
    }
}

/// The data sets with a known place, and that place: the released program's.
const KNOWN_DATA: [(&str, &str); 4] = [
    ("pg19", "./data/pg19"),
    ("arxivmath", "./data/proof-pile"),
    ("redpajama", "./data/redpajama"),
    ("text", "./data/text"),
];

/// The folder with the streams of `dataset`: `given`, or the place where `dataset` is known to be. Without a
/// `dataset`, the folder's name is its name.
fn data_folder(dataset: &mut Option<String>, given: Option<&PathBuf>) -> Result<PathBuf> {
    if let Some(folder) = given {
        if dataset.is_none() {
            *dataset = folder.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        }
        if dataset.is_none() {
            let reason = format!("{} has no name that could name the data set", folder.display());
            return Err(Error::flag("--data-dir", reason, "give --dataset NAME as well"));
        }
    }
    let Some(name) = dataset.as_deref() else {
        let help = "give --dataset pg19, arxivmath, redpajama or text, or --data-dir DIR";
        return Err(Error::flag("--dataset", "no data set is given", help));
    };
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\']) {
        let help = "the name is part of a path: use letters, digits, dashes";
        return Err(Error::flag("--dataset", format!("{name:?} is no name for a data set"), help));
    }
    match (given, KNOWN_DATA.iter().find(|known| known.0 == name)) {
        (Some(folder), _) => Ok(folder.clone()),
        (None, Some(known)) => Ok(PathBuf::from(known.1)),
        (None, None) => {
            let help = "give --data-dir DIR, or one of pg19, arxivmath, redpajama, text";
            Err(Error::flag("--dataset", format!("{name:?} is not a data set with a known place"), help))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_sets_are_found_by_name_or_by_folder() {
        let find = |name: Option<&str>, folder: Option<&str>| {
            let mut dataset = name.map(str::to_owned);
            let found = data_folder(&mut dataset, folder.map(PathBuf::from).as_ref());
            found
                .map(|folder| (dataset.unwrap(), folder.to_str().unwrap().to_owned()))
                .map_err(|error| error.to_string())
        };
        let pair = |name: &str, folder: &str| Ok((name.to_owned(), folder.to_owned()));
        assert_eq!(find(Some("arxivmath"), None), pair("arxivmath", "./data/proof-pile"));
        assert_eq!(find(None, Some("/x/wiki")), pair("wiki", "/x/wiki"));
        assert_eq!(find(Some("pg19"), Some("/x/wiki")), pair("pg19", "/x/wiki"));
        for (name, folder) in
            [(None, None), (Some("wiki"), None), (None, Some("..")), (Some("../x"), Some("y"))]
        {
            assert!(find(name, folder).is_err(), "{name:?} {folder:?}");
        }
    }
}
