//! `landmark retrieval`: flags to a suite of prompts. The rest is [`probe`].

use landmark_probe::passkey::Unit;
use landmark_probe::retrieval::{Kind, Retrieval, Task};
use serde_json::json;

use crate::args::retrieval::RetrievalArgs;
use crate::error::{Error, Result};
use crate::probe::{self, Plan};
use crate::report::Report;

/// Resolves the flags. Reads nothing.
///
/// # Errors
/// Names the flag that cannot be followed.
pub fn suite(args: &RetrievalArgs) -> Result<Retrieval> {
    let mut tasks: Vec<Task> = Vec::new();
    for name in &args.tasks {
        for mut task in Task::of(name.trim())? {
            adjust(&mut task, args);
            if !tasks.contains(&task) {
                tasks.push(task);
            }
        }
    }
    let is_any = |kind: fn(&Kind) -> bool| tasks.iter().any(|task| kind(&task.kind));
    for (flag, is_given, has_task) in [
        ("--keys", args.keys.is_some(), is_any(|kind| matches!(kind, Kind::Needles(_)))),
        ("--values", args.values.is_some(), is_any(|kind| matches!(kind, Kind::Needles(_)))),
        ("--queries", args.queries.is_some(), is_any(|kind| matches!(kind, Kind::Needles(_)))),
        ("--chains", args.chains.is_some(), is_any(|kind| matches!(kind, Kind::Variables(_)))),
        ("--hops", args.hops.is_some(), is_any(|kind| matches!(kind, Kind::Variables(_)))),
        ("--alpha", args.alpha.is_some(), is_any(|kind| matches!(kind, Kind::FrequentWords(_)))),
    ] {
        if is_given && !has_task {
            let reason = "means nothing to the tasks given";
            return Err(Error::flag(flag, reason, "leave it out, or add a task to --tasks that it is for"));
        }
    }
    let suite = Retrieval {
        tasks,
        lengths: args.lengths.clone(),
        depths: args.probe.depths.clone(),
        samples: args.num_samples,
        seed: args.probe.seed,
    };
    suite.validate()?;
    Ok(suite)
}

fn adjust(task: &mut Task, args: &RetrievalArgs) {
    match &mut task.kind {
        Kind::Needles(needles) => {
            needles.values = args.values.unwrap_or(needles.values);
            needles.queries = args.queries.unwrap_or(needles.queries);
            // More keys asked for are more keys hidden.
            needles.keys = args.keys.unwrap_or(needles.keys.max(needles.queries));
        }
        Kind::Variables(variables) => {
            variables.chains = args.chains.unwrap_or(variables.chains);
            variables.hops = args.hops.unwrap_or(variables.hops);
        }
        Kind::FrequentWords(words) => words.alpha = args.alpha.unwrap_or(words.alpha),
        Kind::CommonWords(_) => {}
    }
}

/// Asks the questions of the tasks.
///
/// # Errors
/// If the flags cannot be followed, the model cannot be read, or a question is not answered.
pub fn run(args: &RetrievalArgs, report: &Report) -> Result<()> {
    let suite = suite(args)?;
    // Settings by task: a run of more tasks is the same run, extended.
    let adjusted = [args.keys, args.values, args.queries, args.chains, args.hops];
    let settings =
        json!({ "seed": suite.seed, "keys, values, queries, chains, hops": adjusted, "alpha": args.alpha });
    probe::run(
        &Plan { name: "retrieval", unit: Unit::Tokens, suite: &suite, settings, results: None },
        &args.probe,
        report,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, parse};

    fn resolve(flags: &str) -> Result<Retrieval> {
        let line = format!("landmark retrieval --model m {flags}");
        let Command::Retrieval(args) = parse(line.split_whitespace())?.command else { panic!() };
        suite(&args)
    }

    #[test]
    fn tasks_are_named_grouped_and_adjusted() {
        let all = resolve("").unwrap();
        assert_eq!((all.tasks.len(), &all.lengths[..], all.samples), (11, &[4096][..], 20));
        let some = resolve("--tasks vt,niah_single,niah_single_2 --hops 2 --queries 3 --values 2").unwrap();
        let names: Vec<&str> = some.tasks.iter().map(|task| task.name.as_str()).collect();
        assert_eq!(names, ["vt", "niah_single_1", "niah_single_2", "niah_single_3"]);
        let Kind::Needles(needles) = &some.tasks[1].kind else { panic!() };
        assert_eq!((needles.keys, needles.queries, needles.values), (3, 3, 2));
        assert!(matches!(&some.tasks[0].kind, Kind::Variables(v) if v.hops == 2 && v.chains == 1));
    }

    #[test]
    fn mistakes_are_usage_errors() {
        for (flags, said) in [
            ("--tasks niah,dance", "dance"),
            ("--tasks vt --keys 3", "--keys"),
            ("--tasks niah --keys 1 --queries 2", "--keys"),
            ("--tasks fwe --alpha 0.5", "--alpha"),
            ("--num-samples 0", "--num-samples"),
            ("--depths -1", "--depths"),
        ] {
            let error = resolve(flags).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains(said), "{flags}: {error}");
        }
    }
}
