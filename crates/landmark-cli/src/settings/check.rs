//! Settings that cannot be followed, found before anything is read or computed.
//!
//! Each function answers with the first mistake, as the flag, what is wrong, and what to do. Flags that have
//! no meaning here and change nothing (`--no_compile`, `--max_groups_for_softmax`) pass; flags that would
//! change the result and cannot be honoured are refused.

use landmark_model::released;

use super::RunArgs;
use crate::args::values::{LmCache, Model, OptimizationProcess, PositionalEncoder, SoftmaxFunc};
use crate::error::{Error, Result};

/// Larger counts than this are mistakes: no run has a trillion of anything.
const LARGEST_COUNT: u64 = 1 << 40;

/// Larger models than this are mistakes: 2⁴⁰ weights are 4 TiB.
const LARGEST_MODEL: u64 = 1 << 40;

/// Settings of the model and of everything that runs it.
///
/// # Errors
/// Names the flag at fault.
pub fn model(run: &RunArgs) -> Result<()> {
    refused(run)?;
    for (flag, count) in [
        ("--batch-size", run.batch_size),
        ("--n-head", run.n_head),
        ("--n-layer", run.n_layer),
        ("--n-embd", run.n_embd),
        ("--sequence-length", run.sequence_length),
        ("--vocab-size", run.vocab_size),
    ] {
        at_least_one(flag, count as u64)?;
    }
    if !run.n_embd.is_multiple_of(run.n_head) || !(run.n_embd / run.n_head).is_multiple_of(2) {
        return Err(Error::flag(
            "--n-embd",
            format!("a width of {} does not divide into {} heads of even width", run.n_embd, run.n_head),
            "rotary positions turn pairs: make --n-embd a multiple of twice --n-head",
        ));
    }
    if run.vocab_size > i32::MAX as usize {
        return Err(Error::flag("--vocab-size", "token ids have 31 bits", "give at most 2147483647"));
    }
    let (width, layers) = (run.n_embd as u64, run.n_layer as u64);
    let weights = width
        .checked_mul(width)
        .and_then(|square| square.checked_mul(12)?.checked_mul(layers))
        .and_then(|blocks| blocks.checked_add((run.vocab_size as u64).checked_mul(width)?));
    if weights.is_none_or(|weights| weights > LARGEST_MODEL) {
        return Err(Error::flag(
            "--n-embd",
            "the model would have more than 2^40 weights",
            "lower --n-embd, --n-layer or --vocab-size",
        ));
    }
    has_landmarks(run)
}

/// Flags of the released program that would ask for what is not there.
fn refused(run: &RunArgs) -> Result<()> {
    if run.distributed_backend.is_some() {
        return Err(Error::flag(
            "--distributed-backend",
            "nccl needs several GPUs, and this build computes on one device",
            "leave the flag out, or give None; --acc-steps makes up for the smaller batch",
        ));
    }
    if run.softmax_func == SoftmaxFunc::Mem {
        return Err(Error::flag(
            "--softmax-func",
            "mem is listed by the released program but fails there: no such function exists",
            "use mem_opt, the grouped softmax",
        ));
    }
    if run.softmax_func == SoftmaxFunc::IgnoreMem {
        return Err(Error::flag("--softmax-func", format!("ignore_mem: {}", released::IGNORE_MEM), ""));
    }
    if run.softmax_func == SoftmaxFunc::Nomem && run.model == Model::LandmarkWithCmt {
        return Err(Error::flag("--softmax-func", format!("nomem: {}", released::NOMEM_WITH_MISS), ""));
    }
    Ok(())
}

/// Landmarks in the data, if there are any, can be told from other tokens.
fn has_landmarks(run: &RunArgs) -> Result<()> {
    if run.mem_freq == Some(0) {
        let help = "give at least 1, or None for a stream without landmarks";
        return Err(Error::flag("--mem-freq", "a landmark after every 0 tokens", help));
    }
    let is_landmark_model = matches!(run.model, Model::Landmark | Model::LandmarkWithCmt);
    if is_landmark_model && run.landmark_id as usize >= run.vocab_size {
        return Err(Error::flag(
            "--landmark-id",
            format!("token {} is not in a vocabulary of {}", run.landmark_id, run.vocab_size),
            "raise --vocab-size or give another --landmark-id",
        ));
    }
    Ok(())
}

/// Settings of a training run, those of [`model`] included.
///
/// # Errors
/// Names the flag at fault.
pub fn training(run: &RunArgs) -> Result<()> {
    model(run)?;
    for (flag, count) in [
        ("--acc-steps", run.acc_steps as u64),
        ("--iterations", run.iterations),
        ("--eval-freq", run.eval_freq),
        ("--save-checkpoint-freq", run.save_checkpoint_freq.unwrap_or(1)),
        ("--eval-batches", run.eval_batches as u64),
    ] {
        at_least_one(flag, count)?;
    }
    for (flag, value) in [
        ("--dropout", run.dropout),
        ("--group-dropout", run.group_dropout.unwrap_or(0.0)),
        ("--beta1", run.beta1),
        ("--beta2", run.beta2),
    ] {
        between(flag, value, "0 and below 1", (0.0..1.0).contains(&value))?;
    }
    for (flag, value) in [
        ("--under-rem-score-prob", run.under_rem_score_prob.unwrap_or(0.0)),
        ("--warmup-percent", run.warmup_percent),
    ] {
        between(flag, value, "0 and 1", (0.0..=1.0).contains(&value))?;
    }
    for (flag, value) in [("--weight-decay", run.weight_decay), ("--lr", run.lr)] {
        between(flag, value, "0 and infinity", value >= 0.0)?;
    }
    if run.grad_clip.is_some_and(|norm| norm <= 0.0) {
        return Err(Error::flag("--grad-clip", "a norm must be above 0", "give None for no limit"));
    }
    if run.positional_encoder == PositionalEncoder::RotaryMemJump && run.pos_jump_on_mem.unwrap_or(0) == 0 {
        return Err(Error::flag(
            "--positional-encoder",
            "rotary_mem_jump needs to know how far to jump",
            "give --pos-jump-on-mem, at least 1",
        ));
    }
    if run.optimization_process == OptimizationProcess::TransformerXl {
        transformer_xl(run)?;
    }
    Ok(())
}

fn transformer_xl(run: &RunArgs) -> Result<()> {
    match run.total_sequence_length {
        Some(total) if total >= run.sequence_length => {}
        given => {
            let given = given.map_or("none is given".to_owned(), |total| format!("{total} is shorter"));
            return Err(Error::flag(
                "--total-sequence-length",
                format!("transformer_xl trains over segments of at least --sequence-length; {given}"),
                format!("give at least {}", run.sequence_length),
            ));
        }
    }
    cache(run)
}

/// Settings of an evaluation, those of [`model`] included.
///
/// # Errors
/// Names the flag at fault.
pub fn evaluation(run: &RunArgs) -> Result<()> {
    model(run)?;
    for (flag, count) in [
        ("--eval-seq-length", run.eval_seq_length),
        ("--mid-length", run.mid_length),
        ("--eval-sample-size", run.eval_sample_size.unwrap_or(1)),
    ] {
        at_least_one(flag, count as u64)?;
    }
    if run.use_cache { cache(run) } else { Ok(()) }
}

/// Whether the cache asked for can exist.
fn cache(run: &RunArgs) -> Result<()> {
    let needs = |flag: &str, what: &str, value: Option<usize>| match value {
        Some(0) | None => Err(Error::flag(
            flag,
            format!("the {what} cache needs it, at least 1"),
            "give it, or --lm-cache none",
        )),
        Some(count) => at_least_one(flag, count as u64),
    };
    match run.lm_cache {
        LmCache::None => Ok(()),
        LmCache::Kv | LmCache::KvTrain => needs("--mem-cache-size", "kv", run.mem_cache_size),
        LmCache::Mem if matches!(run.model, Model::Base | Model::BaseRotary) => Err(Error::flag(
            "--lm-cache",
            "mem finds blocks by their landmarks, and a base model has none",
            "use kv or none for this model",
        )),
        LmCache::Mem if run.softmax_func == SoftmaxFunc::Nomem => Err(Error::flag(
            "--lm-cache",
            "mem finds blocks by the grouped softmax, and this model was trained with nomem",
            "use kv or none for this model",
        )),
        LmCache::Mem => {
            needs("--mem-cache-size", "mem", run.mem_cache_size)?;
            needs("--mem-cache-freq", "mem", run.mem_cache_freq)
        }
    }
}

fn at_least_one(flag: &str, count: u64) -> Result<()> {
    if count == 0 {
        return Err(Error::flag(flag, "must be at least 1", ""));
    }
    if count > LARGEST_COUNT {
        return Err(Error::flag(flag, format!("{count} is more than any machine can hold"), ""));
    }
    Ok(())
}

fn between(flag: &str, value: f64, range: &str, is_inside: bool) -> Result<()> {
    if is_inside { Ok(()) } else { Err(Error::flag(flag, format!("{value} is not between {range}"), "")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, parse};
    use crate::settings::Settings;

    fn run(flags: &str) -> RunArgs {
        let line = format!("landmark train --model landmark {flags}");
        let Command::Train(train) = parse(line.split_whitespace()).unwrap().command else { panic!() };
        RunArgs::resolve(&Settings::new(), &train.given)
    }

    #[test]
    fn the_defaults_are_fine() {
        training(&run("")).unwrap();
        evaluation(&run("")).unwrap();
        evaluation(&run("--use_cache --lm_cache mem --mem_cache_size 40 --mem_cache_freq 50")).unwrap();
        training(&run("--model base --mem_freq None --lm_cache kv_train --mem_cache_size 256 \
                       --optimization_process transformer_xl --total_sequence_length 2048"))
        .unwrap();
    }

    /// Each of these lines is refused for the flag beside it.
    #[test]
    fn impossible_training_is_refused() {
        for (flags, flag) in [
            ("--distributed_backend nccl", "--distributed-backend"),
            ("--softmax_func mem", "--softmax-func"),
            ("--batch_size 0", "--batch-size"),
            ("--acc_steps 0", "--acc-steps"),
            ("--iterations 0", "--iterations"),
            ("--eval_freq 0", "--eval-freq"),
            ("--save_checkpoint_freq 0", "--save-checkpoint-freq"),
            ("--n_embd 100 --n_head 3", "--n-embd"),
            ("--n_embd 9 --n_head 3", "--n-embd"),
            ("--n_embd 1099511627776", "--n-embd"),
            ("--n_layer 18446744073709551615", "--n-layer"),
            ("--vocab_size 4294967296", "--vocab-size"),
            ("--mem_freq 0", "--mem-freq"),
            ("--vocab_size 128", "--landmark-id"),
            ("--dropout 1", "--dropout"),
            ("--dropout -0.1", "--dropout"),
            ("--group_dropout 2", "--group-dropout"),
            ("--warmup_percent 1.5", "--warmup-percent"),
            ("--lr -1", "--lr"),
            ("--grad_clip 0", "--grad-clip"),
            ("--positional_encoder rotary_mem_jump", "--positional-encoder"),
            ("--optimization_process transformer_xl", "--total-sequence-length"),
            ("--optimization_process transformer_xl --total_sequence_length 511", "--total-sequence-length"),
        ] {
            let error = training(&run(flags)).expect_err(flags);
            assert!(error.to_string().starts_with(&format!("{flag}: ")), "{flags}: {error}");
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn impossible_evaluation_is_refused() {
        for (flags, flag) in [
            ("--mid_length 0", "--mid-length"),
            ("--eval_seq_length 0", "--eval-seq-length"),
            ("--use_cache --lm_cache mem --mem_cache_freq 50", "--mem-cache-size"),
            ("--use_cache --lm_cache mem --mem_cache_size 40", "--mem-cache-freq"),
            ("--use_cache --lm_cache kv --mem_cache_size 0", "--mem-cache-size"),
            ("--model base --use_cache --lm_cache mem", "--lm-cache"),
        ] {
            let error = evaluation(&run(flags)).expect_err(flags);
            assert!(error.to_string().starts_with(&format!("{flag}: ")), "{flags}: {error}");
        }
    }
}
