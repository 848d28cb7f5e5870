//! Choosing the next token from its logits.
//!
//! The filters mean what they mean in Hugging Face's `generate`, and run in its order: banned ids,
//! temperature, top-k, top-p. Top-k keeps everything that ties with the k-th best. Top-p removes the least
//! likely tokens as long as together they hold at most 1 - p, and always keeps the best. Among equal logits
//! the lower id counts as the likelier one, so that a seed means the same text on every machine; greedy
//! choice follows the same rule.

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

/// How to choose among the tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Logits are divided by this; 0 means the likeliest token, always.
    pub temperature: f32,
    /// Keep the k likeliest tokens.
    pub top_k: Option<usize>,
    /// Keep the likeliest tokens that together reach this probability, in (0, 1].
    pub top_p: Option<f32>,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Sampling { temperature: 0.0, top_k: None, top_p: None }
    }
}

/// Settings or logits from which no token can be chosen.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum SampleError {
    /// A temperature that is negative or not a number.
    #[error("the temperature is {0}; give a finite number that is not negative (--temperature)")]
    Temperature(f32),
    /// Top-k of nothing.
    #[error("top-k is 0; keep at least one token (--top-k)")]
    TopK,
    /// A probability outside (0, 1].
    #[error("top-p is {0}; give a probability above 0 and at most 1 (--top-p)")]
    TopP(f32),
    /// Nothing to choose from.
    #[error("all {0} tokens of the vocabulary are banned or have no probability")]
    NoToken(usize),
    /// A logit that is not a number, or infinite.
    #[error("the logit of token {0} is not a finite number; the weights or the arithmetic are broken")]
    NotFinite(usize),
}

impl Sampling {
    /// Whether the likeliest token is always chosen.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// Names the setting at fault and its flag.
    pub fn validate(&self) -> Result<(), SampleError> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(SampleError::Temperature(self.temperature));
        }
        if self.top_k == Some(0) {
            return Err(SampleError::TopK);
        }
        match self.top_p {
            Some(p) if !(p > 0.0 && p <= 1.0) => Err(SampleError::TopP(p)),
            _ => Ok(()),
        }
    }

    /// The next token, given one logit for each token of the vocabulary; never one of `banned`.
    ///
    /// # Errors
    /// If a logit is not a number or +∞, or no token is left. A logit of -∞ is a token that cannot occur.
    pub fn choose(&self, logits: &[f32], banned: &[u32], random: &mut impl Rng) -> Result<u32, SampleError> {
        self.validate()?;
        if let Some(token) = not_finite(logits) {
            return Err(SampleError::NotFinite(token));
        }
        if self.is_greedy() {
            return likeliest(logits, banned).ok_or(SampleError::NoToken(logits.len()));
        }
        let mut allowed: Vec<(u32, f32)> = (0u32..)
            .zip(logits.iter().copied())
            .filter(|(token, logit)| *logit > f32::NEG_INFINITY && !banned.contains(token))
            .collect();
        self.keep_top_k(&mut allowed);
        let mut weights = self.weights(&allowed);
        self.keep_top_p(&mut weights);
        let total: f64 = weights.iter().sum();
        let mut left = random.random::<f64>() * total;
        let chosen = weights.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        // Rounding may leave a sliver after the last token; it belongs to that token.
        let chosen = chosen.or(weights.len().checked_sub(1)).ok_or(SampleError::NoToken(logits.len()))?;
        Ok(allowed[chosen].0)
    }

    /// Puts the likeliest first, and drops what top-k drops.
    fn keep_top_k(&self, allowed: &mut Vec<(u32, f32)>) {
        let likelier = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if let Some(k) = self.top_k.filter(|&k| k < allowed.len()) {
            // Few of many thousands are kept: only those are sorted.
            let least = allowed.select_nth_unstable_by(k - 1, likelier).1.1;
            allowed.retain(|&(_, logit)| logit >= least);
        }
        allowed.sort_unstable_by(likelier);
    }

    /// Probabilities up to a common factor, likeliest first.
    fn weights(&self, sorted: &[(u32, f32)]) -> Vec<f64> {
        let highest = sorted.first().map_or(0.0, |&(_, logit)| f64::from(logit));
        let temperature = f64::from(self.temperature);
        sorted.iter().map(|&(_, logit)| ((f64::from(logit) - highest) / temperature).exp()).collect()
    }

    fn keep_top_p(&self, weights: &mut Vec<f64>) {
        let Some(p) = self.top_p else { return };
        let removable = (1.0 - f64::from(p)) * weights.iter().sum::<f64>();
        let mut removed = 0.0;
        while let [_, .., last] = weights[..] {
            removed += last;
            if removed > removable {
                break;
            }
            weights.pop();
        }
    }
}

/// Numbers that are looked at together: a loop over so many has no branch and becomes vector instructions, which a
/// vocabulary of fifty thousand for every token is worth.
const TOGETHER: usize = 64;

/// The first logit that is not a number, or infinite.
fn not_finite(logits: &[f32]) -> Option<usize> {
    let is_broken = |logit: &f32| logit.is_nan() || *logit == f32::INFINITY;
    let piece =
        logits.chunks(TOGETHER).position(|piece| piece.iter().fold(false, |any, x| any | is_broken(x)))?;
    let first = piece * TOGETHER;
    Some(first + logits[first..].iter().position(is_broken)?)
}

/// The token with the highest logit above -∞ that is not banned; of several, the lowest id.
fn likeliest(logits: &[f32], banned: &[u32]) -> Option<u32> {
    let mut best = (None, f32::NEG_INFINITY);
    for (piece, first) in logits.chunks(TOGETHER).zip((0u32..).step_by(TOGETHER)) {
        let is_better = piece.iter().fold(false, |any, &logit| any | (logit > best.1));
        if is_better {
            for (token, &logit) in (first..).zip(piece) {
                if logit > best.1 && !banned.contains(&token) {
                    best = (Some(token), logit);
                }
            }
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, generator};

    /// How often each of the tokens is chosen in `draws` draws.
    fn frequencies(sampling: &Sampling, logits: &[f32], banned: &[u32], draws: usize) -> Vec<f64> {
        let mut random = generator(5, Purpose::Sampling, 0, 0);
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..draws {
            counts[sampling.choose(logits, banned, &mut random).unwrap() as usize] += 1.0;
        }
        counts.iter().map(|count| count / draws as f64).collect()
    }

    fn assert_close(found: &[f64], expected: &[f64]) {
        // 20,000 draws: a standard deviation is at most 0.0036.
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 0.015), "{found:?} {expected:?}");
    }

    /// Logits whose probabilities at temperature 1 are these.
    fn logits(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln()).collect()
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals_and_nothing_banned() {
        let mut random = generator(5, Purpose::Sampling, 0, 0);
        let mut choose =
            |banned: &[u32]| Sampling::default().choose(&[1.0, 3.0, 2.0, 3.0], banned, &mut random);
        assert_eq!(choose(&[]), Ok(1));
        assert_eq!(choose(&[1]), Ok(3));
        assert_eq!(choose(&[1, 3]), Ok(2));
        assert_eq!(choose(&[0, 1, 2, 3]), Err(SampleError::NoToken(4)));
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let plain = Sampling { temperature: 1.0, ..Sampling::default() };
        let p = logits(&[0.5, 0.2, 0.1, 0.2]);
        assert_close(&frequencies(&plain, &p, &[], 20_000), &[0.5, 0.2, 0.1, 0.2]);
        assert_close(&frequencies(&plain, &p, &[0], 20_000), &[0.0, 0.4, 0.2, 0.4]);
        // Temperature 1/2 squares the probabilities: 25, 4, 1, 4 of 34.
        let cold = Sampling { temperature: 0.5, ..Sampling::default() };
        assert_close(&frequencies(&cold, &p, &[], 20_000), &[0.735, 0.118, 0.029, 0.118]);
    }

    #[test]
    fn top_k_keeps_ties() {
        let top = |k| Sampling { temperature: 1.0, top_k: Some(k), top_p: None };
        let p = logits(&[0.1, 0.2, 0.5, 0.2]);
        assert_close(&frequencies(&top(1), &p, &[], 20_000), &[0.0, 0.0, 1.0, 0.0]);
        assert_close(&frequencies(&top(2), &p, &[], 20_000), &[0.0, 0.222, 0.556, 0.222]);
        assert_close(&frequencies(&top(9), &p, &[], 20_000), &[0.1, 0.2, 0.5, 0.2]);
    }

    #[test]
    fn top_p_keeps_the_token_that_crosses_the_line() {
        let top = |p| Sampling { temperature: 1.0, top_k: None, top_p: Some(p) };
        let p = logits(&[0.15, 0.3, 0.5, 0.05]);
        // 0.05 and 0.15 together exceed 1 - 0.85, so token 0 stays.
        assert_close(&frequencies(&top(0.85), &p, &[], 20_000), &[0.158, 0.316, 0.526, 0.0]);
        assert_close(&frequencies(&top(0.75), &p, &[], 20_000), &[0.0, 0.375, 0.625, 0.0]);
        assert_close(&frequencies(&top(1e-6), &p, &[], 20_000), &[0.0, 0.0, 1.0, 0.0]);
        assert_close(&frequencies(&top(1.0), &p, &[], 20_000), &[0.15, 0.3, 0.5, 0.05]);
        // Temperature and top-k come first: with them only tokens 1 and 2 are left, 0.36 to 0.64 of what
        // counts.
        let all = Sampling { temperature: 1.0, top_k: Some(2), top_p: Some(0.6) };
        assert_close(&frequencies(&all, &p, &[], 20_000), &[0.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn bad_settings_and_logits_are_refused() {
        let mut random = generator(5, Purpose::Sampling, 0, 0);
        let hot = Sampling { temperature: f32::INFINITY, ..Sampling::default() };
        assert!(hot.choose(&[0.0], &[], &mut random).is_err());
        assert_eq!(Sampling { top_k: Some(0), ..Sampling::default() }.validate(), Err(SampleError::TopK));
        for p in [0.0, -1.0, 1.5, f32::NAN] {
            assert!(Sampling { top_p: Some(p), ..Sampling::default() }.validate().is_err(), "{p}");
        }
        let greedy = Sampling::default();
        assert_eq!(greedy.choose(&[0.0, f32::NAN], &[], &mut random), Err(SampleError::NotFinite(1)));
        assert_eq!(greedy.choose(&[f32::NEG_INFINITY; 2], &[], &mut random), Err(SampleError::NoToken(2)));
        assert_eq!(greedy.choose(&[], &[], &mut random), Err(SampleError::NoToken(0)));
    }
}
