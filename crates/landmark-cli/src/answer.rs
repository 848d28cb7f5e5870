//! Continuing prompts: tokens as they come, and what is told about each.

use std::path::Path;
use std::time::Instant;

use landmark_core::Backend;
use landmark_data::Tokenizer;
use landmark_model::generate::Generator;
use landmark_model::memory_reader::Fetched;
use landmark_probe::lookup::{AnswerToken, Fetch, Look, Lookup};
use pollster::block_on;
use serde::Serialize;

use crate::args::generate::AnswerArgs;
use crate::error::Result;
use crate::report::Report;

/// Logits told of each token.
const TOP: usize = 5;

/// What came after one prompt.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Continuation {
    /// The tokens.
    pub new_tokens: Vec<u32>,
    /// Their text.
    pub text: String,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// What is told of each token, if that was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
}

/// One new token.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Step {
    /// Its id.
    pub token: u32,
    /// Its text.
    pub text: String,
    /// The best logits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<Logit>,
    /// Blocks fetched to choose it, by layer and head.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub retrieved: Vec<Vec<Vec<Fetched>>>,
}

/// A token and its logit.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Logit {
    /// Id.
    pub token: u32,
    /// Logit.
    pub logit: f32,
}

/// How long reading and writing took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// Seconds for the prompts.
    pub read: f64,
    /// Seconds for the new tokens.
    pub written: f64,
}

/// Reads a prompt for each row and continues it. The first row's text is shown as it comes if there is one row.
///
/// # Errors
/// If a prompt is empty or has tokens that the model lacks, or the model fails.
pub fn answer<B: Backend>(
    generator: &mut Generator<'_, B>,
    prompts: &[&[u32]],
    end: &[u32],
    tokenizer: Option<&Tokenizer>,
    args: &AnswerArgs,
    report: &Report,
) -> Result<(Vec<Continuation>, Times)> {
    let began = Instant::now();
    let total: usize = prompts.iter().map(|prompt| prompt.len()).sum();
    let progress = report.progress("reading the prompt", total as u64, "tokens");
    block_on(generator.read(prompts, |done| progress.at((done as u64).min(total as u64), "")))?;
    drop(progress);
    let read = began.elapsed().as_secs_f64();

    let began = Instant::now();
    let is_streamed = prompts.len() == 1 && !args.no_stream;
    let mut found: Vec<Continuation> =
        prompts.iter().map(|p| Continuation { prompt_tokens: p.len(), ..Continuation::default() }).collect();
    let mut decoders: Vec<_> = prompts.iter().map(|_| tokenizer.map(Tokenizer::decode_stream)).collect();
    let is_told = args.logits || args.wants_lookups();
    for _ in 0..args.max_new_tokens {
        let tokens = block_on(generator.next())?;
        if tokens.iter().all(Option::is_none) {
            break;
        }
        for (row, token) in tokens.into_iter().enumerate() {
            let Some(token) = token else { continue };
            if end.contains(&token) {
                generator.finish(row);
                continue;
            }
            let text = decoders[row].as_mut().map(|decoder| decoder.push(token)).unwrap_or_default();
            if is_streamed {
                report.stream(&text)?;
            }
            if is_told {
                let top = if args.logits { best(&block_on(generator.logits(row))?) } else { Vec::new() };
                let retrieved =
                    if args.wants_lookups() { block_on(generator.lookups(row))? } else { Vec::new() };
                found[row].steps.push(Step { token, text: text.clone(), top, retrieved });
            }
            found[row].text += &text;
            found[row].new_tokens.push(token);
        }
    }
    for (continuation, decoder) in found.iter_mut().zip(&mut decoders) {
        let rest = decoder.as_mut().map(|decoder| decoder.finish()).unwrap_or_default();
        if is_streamed {
            report.print(&rest)?;
        }
        continuation.text += &rest;
    }
    Ok((found, Times { read, written: began.elapsed().as_secs_f64() }))
}

/// The best logits, the lower id first among equals.
fn best(logits: &[f32]) -> Vec<Logit> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    order.iter().take(TOP).map(|&i| Logit { token: i as u32, logit: logits[i] }).collect()
}

/// What was looked up for a continuation of `tokens`, the ordinary tokens of everything before it.
pub fn lookup(
    title: &str,
    tokens: &[u32],
    block: usize,
    tokenizer: Option<&Tokenizer>,
    (layers, heads): (usize, usize),
    continuation: &Continuation,
) -> Lookup {
    let ordinary = block - 1;
    let text = |tokens: &[u32]| match tokenizer {
        Some(tokenizer) => tokenizer.decode(tokens),
        None => format!("{tokens:?}"),
    };
    let blocks = tokens
        .chunks_exact(ordinary)
        .enumerate()
        .map(|(i, tokens)| landmark_probe::lookup::Block { text: text(tokens), first_token: i * ordinary });
    let blocks: Vec<_> = blocks.collect();
    let fetched = |step: &Step| -> Vec<Fetch> {
        let heads = step.retrieved.iter().enumerate().flat_map(|(layer, heads)| {
            heads.iter().enumerate().flat_map(move |(head, found)| {
                found.iter().map(move |f| Fetch {
                    layer,
                    head,
                    block: f.block,
                    weight: f.share.clamp(0.0, 1.0),
                })
            })
        });
        // Blocks of the answer itself may be fetched too; the view shows the text that was given.
        heads.filter(|fetch| fetch.block < blocks.len()).collect()
    };
    let answer =
        continuation.steps.iter().map(|step| AnswerToken { text: step.text.clone(), fetched: fetched(step) });
    Lookup {
        title: title.to_owned(),
        layers,
        heads,
        answer: answer.collect(),
        rest: text(tokens.chunks_exact(ordinary).remainder()),
        blocks,
        needle: Vec::new(),
    }
}

/// Shows or writes what was looked up, as the flags ask.
///
/// # Errors
/// If the page cannot be written.
pub fn show(lookup: &Lookup, args: &AnswerArgs, report: &Report) -> Result<()> {
    if args.lookups {
        report.print(lookup.to_text(&Look::default()))?;
    }
    if let Some(path) = &args.lookups_html {
        write_page(lookup, path, report)?;
    }
    Ok(())
}

fn write_page(lookup: &Lookup, path: &Path, report: &Report) -> Result<()> {
    lookup.write_html(path)?;
    report.log(format!("what was looked up is shown in {}", path.display()));
    Ok(())
}
