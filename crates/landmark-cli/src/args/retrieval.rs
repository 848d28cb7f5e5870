//! `landmark retrieval`.

use super::passkey::ProbeArgs;

/// Flags of `landmark retrieval`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  landmark retrieval --model exps/a --lengths 4096,32768 --num-samples 50
  landmark retrieval --model exps/a --tasks niah_single,vt --lengths 8192 --depths 0,0.5,1 --output-dir retrieval
  landmark retrieval --model exps/a --tasks niah_multiquery --keys 16 --queries 8 --lengths 8192 --json

Tasks (after RULER, arXiv 2404.06654): niah_single_1, _2, _3 (one needle in noise, in prose, a UUID), niah_multikey_1,
_2, _3 (among others alike), niah_multivalue, niah_multiquery, vt (variable tracking), cwe and fwe (common and
frequent words). A name without its ending stands for all that begin so. Scores are the fraction of what is
expected that the answer holds.")]
pub struct RetrievalArgs {
    /// Tasks, by name or group.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "all")]
    pub tasks: Vec<String>,
    /// Lengths of the prompts, in tokens.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "4096")]
    pub lengths: Vec<usize>,
    /// Questions of each task and length (and depth); 500 are published.
    #[arg(long, value_name = "N", visible_alias = "num-tests", default_value_t = 20)]
    pub num_samples: usize,
    /// Different keys hidden by the niah tasks [default: as published, 1 or 4].
    #[arg(long, value_name = "N", help_heading = "Difficulty")]
    pub keys: Option<usize>,
    /// Values of each key that is asked for [default: as published, 1 or 4].
    #[arg(long, value_name = "N", help_heading = "Difficulty")]
    pub values: Option<usize>,
    /// Keys asked for by the niah tasks [default: as published, 1 or 4].
    #[arg(long, value_name = "N", help_heading = "Difficulty")]
    pub queries: Option<usize>,
    /// Chains of vt, one of which is asked for [default: 1].
    #[arg(long, value_name = "N", help_heading = "Difficulty")]
    pub chains: Option<usize>,
    /// Assignments from variable to variable in a chain of vt [default: 4].
    #[arg(long, value_name = "N", help_heading = "Difficulty")]
    pub hops: Option<usize>,
    /// Exponent of the frequencies of fwe [default: 2.0].
    #[arg(long, value_name = "ALPHA", help_heading = "Difficulty")]
    pub alpha: Option<f64>,
    /// Flags shared with `passkey`.
    #[command(flatten)]
    pub probe: ProbeArgs,
}
