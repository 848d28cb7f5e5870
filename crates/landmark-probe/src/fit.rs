//! How much filler makes a prompt of a given length in tokens.
//!
//! Tokens of a prompt grow with its filler, but by no formula: a tokenizer has to be asked, and asking about a prompt of
//! a million tokens takes a while. So the amount is found by interpolation between what was asked before (the growth is
//! nearly linear, so a handful of questions will do), falling back to halves. Cutting a word can make *more* tokens
//! of it, so the count is not quite monotone; what holds in any case is that the answer was itself counted, and fits.

use crate::case::Count;
use crate::{Error, Result};

/// Most units of filler (characters, words) for each token asked for: a bound for tokenizers that give filler no tokens at all.
const MOST_A_TOKEN: usize = 64;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fit {
    /// Units of filler.
    pub(crate) units: usize,
    /// Tokens with them, at most as many as allowed.
    pub(crate) tokens: usize,
}

/// The largest number of units up to `most` with `size(units) <= limit`, or any with exactly `limit`. If nothing fits,
/// `Err` with `size(0)`.
fn largest<E>(
    limit: usize,
    most: usize,
    mut size: impl FnMut(usize) -> std::result::Result<usize, E>,
) -> std::result::Result<std::result::Result<Fit, usize>, E> {
    let empty = size(0)?;
    if empty > limit {
        return Ok(Err(empty));
    }
    let mut low = Fit { units: 0, tokens: empty };
    let mut high: Option<Fit> = None;
    // A first step that is cheap to count and long enough to tell the rate.
    let mut next = limit.min(256).min(most);
    let mut halve = false;
    while low.tokens != limit && next > low.units && high.is_none_or(|high| next < high.units) {
        let found = Fit { units: next, tokens: size(next)? };
        let width = high.map_or(usize::MAX, |high| high.units - low.units);
        if found.tokens <= limit {
            low = found;
        } else {
            high = Some(found);
        }
        let missing = (limit - low.tokens) as u128;
        next = match high {
            None => {
                let (units, tokens) = (low.units.max(1) as u128, (low.tokens - empty).max(1) as u128);
                // A little beyond the estimate, so that the limit is soon between two points.
                let step = (missing * units / tokens).saturating_mul(65) / 64 + 1;
                // Filler without tokens must not send this to infinity in one step.
                let step = step.min(low.units as u128 * 1024 + 1024);
                (low.units as u128 + step).min(most as u128) as usize
            }
            Some(high) => {
                // Interpolation from one side only can creep: if it did not halve the interval, halve it.
                halve = !halve && high.units - low.units > width / 2;
                let width = (high.units - low.units) as u128;
                let step = match halve {
                    true => width / 2,
                    false => missing * width / (high.tokens - low.tokens).max(1) as u128,
                };
                if width < 2 { low.units } else { low.units + step.clamp(1, width - 1) as usize }
            }
        };
    }
    Ok(Ok(low))
}

/// Makes a prompt of at most `length` tokens: as many units of filler as fit, then up to `most_padding` small units
/// behind them. `build` is asked for prompts of so many units and so much padding.
pub(crate) fn fit(
    id: &str,
    length: usize,
    most_padding: usize,
    count: &Count<'_>,
    mut build: impl FnMut(usize, usize) -> String,
) -> Result<(Fit, Fit)> {
    let counted = |text: String| count(&text).map_err(|source| Error::Count { id: id.to_owned(), source });
    let units =
        largest(length, length.saturating_mul(MOST_A_TOKEN), |units| counted(build(units, 0)))?.map_err(
            |least| Error::TooShort { task: id.split('/').next().unwrap_or(id).to_owned(), length, least },
        )?;
    if units.tokens == length || most_padding == 0 {
        return Ok((units, Fit { units: 0, tokens: units.tokens }));
    }
    let padding = largest(length, most_padding, |padding| counted(build(units.units, padding)))?;
    Ok((units, padding.unwrap_or(Fit { units: 0, tokens: units.tokens })))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 1 << 40;

    fn find(
        limit: usize,
        most: usize,
        size: impl Fn(usize) -> usize,
    ) -> (std::result::Result<Fit, usize>, usize) {
        let mut asked = 0;
        let found = largest(limit, most, |n| {
            asked += 1;
            assert!(asked < 200, "it ends");
            Ok::<_, ()>(size(n))
        });
        (found.unwrap(), asked)
    }

    #[test]
    fn the_largest_amount_is_found() {
        for limit in (20..3000).step_by(7) {
            for per in [1, 3, 5, 50] {
                // `per` units a token, and the other way round.
                let (found, _) = find(limit, MOST, |n| 20 + n / per);
                assert_eq!(found.unwrap().tokens, limit, "{limit} {per}");
                let (found, _) = find(limit, MOST, |n| 20 + n * per);
                assert_eq!(found.unwrap().units, (limit - 20) / per, "{limit} {per}");
            }
        }
        assert_eq!(find(10, MOST, |n| 11 + n).0, Err(11));
        assert_eq!(find(10, 3, |n| n).0.unwrap().units, 3);
        assert_eq!(find(10, 0, |n| n).0.unwrap().units, 0);
    }

    #[test]
    fn few_questions_are_enough_and_strange_counts_end() {
        let (found, asked) = find(1_000_000, MOST, |n| 37 + n * 1000 / 4321 + n % 2);
        assert!(found.unwrap().tokens >= 999_999 && asked <= 8, "{found:?} {asked}");
        assert!(find(1000, MOST, |n| n.min(500)).0.unwrap().tokens == 500, "filler that takes no tokens");
        let steps = |n: usize| if n < 777 { 5 } else { 5000 };
        assert_eq!(find(1000, MOST, steps).0.unwrap().units, 776);
        let wavy = |n: usize| n + n * 7919 % 5;
        for limit in 0..300 {
            let found = find(limit, MOST, wavy).0.unwrap();
            assert!(found.tokens <= limit && limit - found.tokens <= 5 && wavy(found.units) == found.tokens);
        }
    }

    #[test]
    fn padding_fills_what_units_leave() {
        let build = |units: usize, padding: usize| "x".repeat(10 * units + padding + 3);
        let count = |text: &str| Ok(text.len());
        let (units, padding) = fit("t/1/random/0", 98, 9, &count, build).unwrap();
        assert_eq!((units.units, padding.units, padding.tokens), (9, 5, 98));
        let error = fit("t/1/random/0", 2, 9, &count, build).unwrap_err().to_string();
        assert!(error.starts_with("t: a prompt of 2 tokens") && error.contains("at least 3"), "{error}");
    }
}
