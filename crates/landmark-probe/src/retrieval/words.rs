//! Counting words: which come most often? The answer is nowhere in the text; it has to be gathered from all of it.
//!
//! *Common words*: a numbered list in which ten words come often and all others seldom; with more room there are more of the
//! others, never more of the ten. A short list with its answer comes first, as published. *Frequent words*: made-up words, the one of rank k
//! as often as k to the power -alpha has it (Zipf's law); the most frequent of all is no word but dots.

use serde::{Deserialize, Serialize};

use super::Write;
use super::vocabulary::Compounds;
use crate::draw::Draw;
use crate::{Error, Result};

/// Below so many tokens the published list of common words is a smaller one.
const SMALL: usize = 4096;

/// Settings of common words extraction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommonWords {
    /// Words that come often.
    pub words: usize,
    /// How often they come. As published, 30 times, or 6 in prompts of less than 4096 tokens, if there is none.
    pub often: Option<usize>,
    /// How often all others come. As published, 3 times, or once, if there is none.
    pub seldom: Option<usize>,
}

impl CommonWords {
    pub(super) fn validate(&self) -> Result<()> {
        let wrong = |setting, reason: &str| Err(Error::Setting { setting, reason: reason.into() });
        let (often, seldom) = (self.often.unwrap_or(30), self.seldom.unwrap_or(1));
        if !(1..=100).contains(&self.words) {
            return wrong("common-words", "from 1 to 100 words can be asked for");
        }
        if seldom == 0 || often <= seldom || often > 10_000 {
            return wrong(
                "common-words",
                "common words must come more often than others, which come at least once",
            );
        }
        Ok(())
    }

    pub(super) fn writer(&self, length: usize, draws: &dyn Fn(u64) -> Draw) -> CommonWriter {
        let (often, seldom, example) = if length < SMALL { (6, 1, (3, 1)) } else { (30, 3, (10, 3)) };
        let (often, seldom) = (self.often.unwrap_or(often), self.seldom.unwrap_or(seldom));
        let compounds = Compounds::new(&mut draws(0));
        let words = self.words;
        let common: Vec<String> = (0..words).map(|i| compounds.word(i)).collect();
        // The example has words of its own: as many common ones, and as many others.
        let own = |i: usize| compounds.word(words + i);
        let mut list = entries(example.0, &(0..words).map(own).collect::<Vec<_>>());
        list.extend((0..words).flat_map(|i| vec![own(words + i); example.1]));
        draws(1).shuffle(&mut list);
        let answer = numbered(&(0..words).map(own).collect::<Vec<_>>());
        let example = format!("{} {answer}\n\n", ask(&list, words));
        CommonWriter { example, common, often, seldom, compounds, draw: draws(2) }
    }
}

/// Every word `times` times.
fn entries(times: usize, words: &[String]) -> Vec<String> {
    words.iter().flat_map(|word| vec![word.clone(); times]).collect()
}

/// `1. one 2. two`.
fn numbered(words: &[String]) -> String {
    let entries: Vec<String> =
        words.iter().enumerate().map(|(i, word)| format!("{}. {word}", i + 1)).collect();
    entries.join(" ")
}

fn ask(list: &[String], words: usize) -> String {
    let list = numbered(list);
    format!(
        "In the numbered list below some words come much more often than the others. Remember those.\n{list}\n\
         Which {words} words come most often in the list above? The {words} words that come most often are:"
    )
}

/// Writes the prompts of one question: a unit is an entry of a word that comes seldom.
pub(super) struct CommonWriter {
    example: String,
    common: Vec<String>,
    often: usize,
    seldom: usize,
    compounds: Compounds,
    draw: Draw,
}

impl Write for CommonWriter {
    fn prompt(&mut self, units: usize, _: usize) -> String {
        let mut list = entries(self.often, &self.common);
        let first = 3 * self.common.len();
        list.extend((0..units).map(|i| self.compounds.word(first + i / self.seldom)));
        self.draw.clone().shuffle(&mut list);
        self.example.clone() + &ask(&list, self.common.len())
    }

    fn answer(&mut self, _: usize) -> (Vec<String>, Option<f64>) {
        (self.common.clone(), None)
    }
}

/// Settings of frequent words extraction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FrequentWords {
    /// The exponent of Zipf's law; 2.0 as published.
    pub alpha: f64,
    /// Words asked for.
    pub words: usize,
}

/// Letters of a made-up word.
const CODED: usize = 6;
/// What stands in place of the most frequent word.
const DOTS: &str = "...";

impl FrequentWords {
    pub(super) fn validate(&self) -> Result<()> {
        if !(self.alpha > 1.0 && self.alpha <= 10.0) {
            let reason = format!("{} is not greater than 1 and at most 10", self.alpha);
            return Err(Error::Setting { setting: "alpha", reason });
        }
        if !(1..=100).contains(&self.words) {
            let reason = "from 1 to 100 frequent words can be asked for".to_owned();
            return Err(Error::Setting { setting: "words", reason });
        }
        Ok(())
    }

    pub(super) fn writer(&self, draws: &dyn Fn(u64) -> Draw) -> FrequentWriter {
        let zeta = zeta(self.alpha);
        let vocabulary = vec![DOTS.to_owned()];
        FrequentWriter { settings: self.clone(), zeta, vocabulary, coder: draws(0), draw: draws(1) }
    }
}

/// Riemann's zeta function for `s > 1`: a sum, and the integral of what is left (Euler and Maclaurin), to some 1e-10.
fn zeta(s: f64) -> f64 {
    let n = 1000.0f64;
    let sum: f64 = (1..1000).map(|k| f64::from(k).powf(-s)).sum();
    sum + n.powf(1.0 - s) / (s - 1.0) + 0.5 * n.powf(-s) + s / 12.0 * n.powf(-s - 1.0)
}

/// Writes the prompts of one question: a unit is a word of the text.
pub(super) struct FrequentWriter {
    settings: FrequentWords,
    zeta: f64,
    /// Words by rank; the dots are the first.
    vocabulary: Vec<String>,
    coder: Draw,
    draw: Draw,
}

impl FrequentWriter {
    /// How often the words of each rank come in a text of `units` words; the words are made up if need be.
    fn counts(&mut self, units: usize) -> Vec<usize> {
        let share = |rank: usize| (rank as f64).powf(-self.settings.alpha) / self.zeta;
        let counts: Vec<usize> =
            (1..).map(|rank| (units as f64 * share(rank)) as usize).take_while(|&count| count > 0).collect();
        while self.vocabulary.len() < counts.len() {
            let word = self.coder.letters(CODED, b"abcdefghijklmnopqrstuvwxyz");
            // Few ranks are ever reached (the square root of the words, for alpha 2), so looking through them is quick.
            if !self.vocabulary.contains(&word) {
                self.vocabulary.push(word);
            }
        }
        counts
    }
}

impl Write for FrequentWriter {
    fn prompt(&mut self, units: usize, padding: usize) -> String {
        let counts = self.counts(units);
        let mut text: Vec<&str> = Vec::with_capacity(units);
        for (word, count) in self.vocabulary.iter().zip(counts) {
            text.extend(std::iter::repeat_n(word.as_str(), count));
        }
        self.draw.clone().shuffle(&mut text);
        text.extend(std::iter::repeat_n(DOTS, padding));
        let words = self.settings.words;
        format!(
            "The text below is in code. Keep count of the coded words; dots are no words.\n{}\n\
             Which {words} coded words come most often in the text above, dots aside? \
             The {words} words that come most often are:",
            text.join(" ")
        )
    }

    fn most_padding(&self) -> usize {
        32
    }

    /// Nothing if the text is so short that the last word asked for comes no more often than the next.
    fn answer(&mut self, units: usize) -> (Vec<String>, Option<f64>) {
        let counts = self.counts(units);
        let words = self.settings.words;
        let is_clear =
            counts.get(words).is_some_and(|&last| last > counts.get(words + 1).copied().unwrap_or(0));
        let expected = if is_clear { self.vocabulary[1..=words].to_vec() } else { Vec::new() };
        (expected, None)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, Retrieval, Task};
    use super::*;
    use crate::case::{Case, Suite};
    use crate::testing::pieces;
    use std::collections::BTreeMap;

    fn case(name: &str, length: usize) -> Case {
        let suite = Retrieval {
            tasks: Task::of(name).unwrap(),
            lengths: vec![length],
            depths: vec![],
            samples: 1,
            seed: 8,
        };
        suite.make(&suite.keys()[0], &pieces).unwrap()
    }

    /// How often each word comes among `text`'s, most frequent first.
    fn census<'a>(text: impl Iterator<Item = &'a str>) -> Vec<(usize, &'a str)> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        text.for_each(|word| *counts.entry(word).or_default() += 1);
        let mut counts: Vec<(usize, &str)> = counts.into_iter().map(|(word, count)| (count, word)).collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        counts
    }

    #[test]
    fn common_words_come_as_often_as_published() {
        for (length, often, seldom, example) in [(1500, 6, 1, (3, 1)), (9000, 30, 3, (10, 3))] {
            let case = case("cwe", length);
            let lists: Vec<&str> = case.prompt.lines().filter(|line| line.starts_with("1. ")).collect();
            assert_eq!(lists.len(), 2, "an example and the question");
            for (list, often, seldom) in [(lists[0], example.0, example.1), (lists[1], often, seldom)] {
                let words = list.split(' ').skip(1).step_by(2);
                let counts = census(words);
                assert!(counts[..10].iter().all(|(count, _)| *count == often), "{length}");
                assert!(counts[10..].iter().all(|(count, _)| *count <= seldom), "{length}");
                // The last word alone may come less often.
                assert!(counts[10..].iter().filter(|(count, _)| *count < seldom).count() <= 1);
                let mut most: Vec<&str> = counts[..10].iter().map(|(_, word)| *word).collect();
                most.sort_unstable();
                let mut expected: Vec<&str> = case.expected.iter().map(String::as_str).collect();
                expected.sort_unstable();
                assert_eq!(most == expected, list == lists[1]);
            }
            let example = case.prompt.split("are: ").nth(1).unwrap().lines().next().unwrap();
            assert_eq!(case.score(example), 0.0, "the example's answer is not the answer");
            let numbers = lists[1].split(' ').step_by(2).enumerate();
            assert!(numbers.into_iter().all(|(i, number)| number == format!("{}.", i + 1)));
        }
    }

    /// Of 1000 words: 1000/(k² ζ(2)) = 607.9, 151.98, 67.5, 37.99, 24.3, ...
    #[test]
    fn frequent_words_follow_zipf() {
        let mut writer = FrequentWords { alpha: 2.0, words: 3 }.writer(&|stream| {
            let key = crate::case::CaseKey { task: "fwe".into(), length: 1, depth: None, index: 0 };
            Draw::new(1, &key, stream)
        });
        assert_eq!(writer.counts(1000)[..5], [607, 151, 67, 37, 24]);
        let prompt = writer.prompt(1000, 4);
        let text = prompt.lines().nth(1).unwrap();
        let counts = census(text.split(' '));
        assert_eq!(counts[0], (611, "..."), "padding is dots");
        let most: Vec<&str> = counts[1..4].iter().map(|(_, word)| *word).collect();
        assert_eq!(writer.answer(1000).0, most);
        assert!(writer.answer(20).0.is_empty(), "12, 3, 1, 0: nobody could tell the third from the others");
        assert!(counts[1..].iter().all(|(_, word)| word.len() == 6));
    }

    #[test]
    fn zeta_is_riemanns() {
        assert!((zeta(2.0) - std::f64::consts::PI.powi(2) / 6.0).abs() < 1e-9);
        assert!((zeta(4.0) - std::f64::consts::PI.powi(4) / 90.0).abs() < 1e-9);
        assert!((zeta(1.5) - 2.612_375_348_685_488).abs() < 1e-8);
    }

    #[test]
    fn impossible_settings_are_named() {
        let Kind::CommonWords(common) = Task::named("cwe").unwrap().kind else { panic!() };
        assert!(common.validate().is_ok());
        assert!(CommonWords { words: 0, ..common.clone() }.validate().is_err());
        assert!(CommonWords { often: Some(3), seldom: Some(3), ..common }.validate().is_err());
        for (alpha, words) in [(1.0, 3), (f64::NAN, 3), (11.0, 3), (2.0, 0)] {
            assert!(FrequentWords { alpha, words }.validate().is_err(), "{alpha} {words}");
        }
    }
}
