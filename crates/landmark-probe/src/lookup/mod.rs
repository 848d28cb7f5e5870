//! What was looked up: for each token of an answer, the blocks that each layer and head fetched, and how much each counted.
//!
//! A memory of landmarks can be asked what no plain attention can: which part of the text did this word of the answer come
//! from? The weight of a block is its factor in the grouped softmax, the share of a query's attention that all of the block's
//! tokens got together. Whoever runs the model fills a [`Lookup`]; here it is summed up, and shown in a terminal
//! (`terminal`) and as a page (`page`). As JSON it is what its fields say.

mod page;
mod terminal;

use std::ops::Range;

use serde::{Deserialize, Serialize};

pub use terminal::Look;

use crate::{Error, Result};

/// A block of the memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// Its text. Any text: it is escaped wherever it is shown.
    pub text: String,
    /// Its first ordinary token, counted from the beginning of the text.
    pub first_token: usize,
}

/// A block that was fetched.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fetch {
    /// By which layer.
    pub layer: usize,
    /// By which head of it.
    pub head: usize,
    /// Which block, in the order of the text.
    pub block: usize,
    /// The share of the head's attention that it got, from 0 to 1.
    pub weight: f32,
}

/// A token of the answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AnswerToken {
    /// Its text, perhaps empty where a character takes several tokens.
    pub text: String,
    /// What was fetched to choose it, in any order.
    pub fetched: Vec<Fetch>,
}

/// What was looked up for an answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lookup {
    /// What is shown above it: the model, the file.
    pub title: String,
    /// Layers of the model.
    pub layers: usize,
    /// Heads of each layer.
    pub heads: usize,
    /// The memory.
    pub blocks: Vec<Block>,
    /// Text behind the last whole block: mostly the question.
    pub rest: String,
    /// The answer.
    pub answer: Vec<AnswerToken>,
    /// Blocks that hold what should have been found, if somebody knows.
    pub needle: Vec<usize>,
}

/// Which heads are looked at, for which tokens: all of them where there is no number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Token of the answer.
    pub token: Option<usize>,
    /// Layer.
    pub layer: Option<usize>,
    /// Head of each layer.
    pub head: Option<usize>,
}

/// Heads of a model in all; more is a mistake, and would be a page of gigabytes.
const MOST_HEADS: usize = 1 << 20;

impl Lookup {
    /// The blocks of a text, from the bytes that each takes. Bytes that are no characters, or none of the text, become U+FFFD or
    /// nothing: a token may end inside a character.
    pub fn blocks_of(text: &str, ranges: &[Range<usize>], tokens_a_block: usize) -> Vec<Block> {
        let bytes = text.as_bytes();
        let block = |(number, range): (usize, &Range<usize>)| Block {
            text: String::from_utf8_lossy(bytes.get(range.clone()).unwrap_or_default()).into_owned(),
            first_token: number * tokens_a_block,
        };
        ranges.iter().enumerate().map(block).collect()
    }

    /// Notes the blocks that hold the first occurrence of `text`, all of them if it lies across several. Nothing is noted if it does not
    /// occur.
    pub fn mark(&mut self, text: &str) {
        let all: String = self.blocks.iter().map(|block| block.text.as_str()).collect();
        let Some(begin) = all.find(text).filter(|_| !text.is_empty()) else { return };
        let mut at = 0;
        for (number, block) in self.blocks.iter().enumerate() {
            let range = at..at + block.text.len();
            if range.start < begin + text.len() && begin < range.end && !self.needle.contains(&number) {
                self.needle.push(number);
            }
            at = range.end;
        }
    }

    /// Checks that everything refers to something.
    ///
    /// # Errors
    /// Says what does not.
    pub fn validate(&self) -> Result<()> {
        let wrong = |reason: String| Err(Error::Setting { setting: "lookup", reason });
        if self.layers.saturating_mul(self.heads) > MOST_HEADS {
            return wrong(format!("{} layers of {} heads are too many", self.layers, self.heads));
        }
        if let Some(block) = self.needle.iter().find(|block| **block >= self.blocks.len()) {
            return wrong(format!("there is no block {block} to be marked"));
        }
        for (number, token) in self.answer.iter().enumerate() {
            for fetch in &token.fetched {
                let Fetch { layer, head, block, weight } = *fetch;
                if layer >= self.layers || head >= self.heads || block >= self.blocks.len() {
                    return wrong(format!(
                        "token {number} of the answer has block {block} from layer {layer}, head {head}, \
                         of {} blocks, {} layers and {} heads",
                        self.blocks.len(),
                        self.layers,
                        self.heads
                    ));
                }
                // A little more than 1 comes of rounding.
                if !(0.0..=1.001).contains(&weight) {
                    return wrong(format!(
                        "token {number} of the answer gives block {block} the weight {weight}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// The share of attention of every block, on average over the chosen tokens, layers and heads.
    pub fn shares(&self, choice: Choice) -> Vec<f64> {
        let mut shares = vec![0.0; self.blocks.len()];
        let is = |chosen: Option<usize>, found: usize| chosen.is_none_or(|chosen| chosen == found);
        let mut tokens = 0;
        for (number, token) in self.answer.iter().enumerate().filter(|token| is(choice.token, token.0)) {
            debug_assert!(is(choice.token, number));
            tokens += 1;
            for fetch in token.fetched.iter().filter(|f| is(choice.layer, f.layer) && is(choice.head, f.head))
            {
                if let Some(share) = shares.get_mut(fetch.block) {
                    *share += f64::from(fetch.weight);
                }
            }
        }
        let count = |chosen: Option<usize>, all: usize| chosen.map_or(all, |_| 1);
        let heads = tokens * count(choice.layer, self.layers) * count(choice.head, self.heads);
        shares.iter_mut().for_each(|share| *share /= heads.max(1) as f64);
        shares
    }

    /// The `most` blocks with the largest shares, largest first; blocks without any are left out. Equal ones are in the order of the
    /// text.
    pub fn top(&self, choice: Choice, most: usize) -> Vec<(usize, f64)> {
        let mut shares: Vec<(usize, f64)> =
            self.shares(choice).into_iter().enumerate().filter(|(_, share)| *share > 0.0).collect();
        shares.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        shares.truncate(most);
        shares
    }

    /// The whole as one JSON object.
    pub fn to_json(&self) -> String {
        // Text and numbers, none of them NaN in a valid lookup; it has a form in JSON.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The whole as a page of HTML that needs nothing else. See the invariants in the module `page`.
    pub fn to_html(&self) -> String {
        page::to_html(self)
    }

    /// Writes the page to `path`.
    ///
    /// # Errors
    /// If it cannot be written.
    #[cfg(not(target_family = "wasm"))]
    pub fn write_html(&self, path: &std::path::Path) -> Result<()> {
        let page = self.to_html();
        Ok(landmark_formats::atomic::write_atomic(path, |writer| {
            std::io::Write::write_all(writer, page.as_bytes())
        })?)
    }

    /// The whole as text for a terminal.
    pub fn to_text(&self, look: &Look) -> String {
        terminal::to_text(self, look)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn fetch(layer: usize, head: usize, block: usize, weight: f32) -> Fetch {
        Fetch { layer, head, block, weight }
    }

    /// Two layers of two heads, four blocks, two tokens.
    pub(crate) fn lookup() -> Lookup {
        let text = "The first block.The pass key is 4711, rememberit. The third.Last.";
        let token = |text: &str, fetched: Vec<Fetch>| AnswerToken { text: text.into(), fetched };
        Lookup {
            title: "a model".into(),
            layers: 2,
            heads: 2,
            blocks: Lookup::blocks_of(text, &[0..16, 16..46, 46..60, 60..65], 8),
            rest: "What is it?".into(),
            answer: vec![
                token(
                    " 47",
                    vec![
                        fetch(0, 0, 1, 0.5),
                        fetch(0, 1, 0, 0.25),
                        fetch(1, 0, 1, 0.75),
                        fetch(1, 0, 3, 0.125),
                    ],
                ),
                token("11", vec![fetch(1, 1, 2, 1.0)]),
            ],
            needle: vec![1],
        }
    }

    #[test]
    fn shares_by_hand() {
        let lookup = lookup();
        let shares = |token, layer, head| lookup.shares(Choice { token, layer, head });
        assert_eq!(shares(Some(0), Some(0), Some(0)), [0.0, 0.5, 0.0, 0.0]);
        assert_eq!(shares(Some(0), None, None), [0.0625, 0.3125, 0.0, 0.03125]);
        assert_eq!(shares(Some(0), None, Some(0)), [0.0, 0.625, 0.0, 0.0625]);
        assert_eq!(shares(Some(1), Some(1), None), [0.0, 0.0, 0.5, 0.0]);
        assert_eq!(shares(None, None, None), [0.03125, 0.15625, 0.125, 0.015_625]);
        assert_eq!(shares(Some(9), None, None), [0.0; 4]);
        let top = lookup.top(Choice::default(), 2);
        assert_eq!(top, [(1, 0.15625), (2, 0.125)]);
        assert_eq!(lookup.top(Choice { token: Some(1), ..Choice::default() }, 9).len(), 1);
    }

    #[test]
    fn needles_are_found_across_blocks() {
        for (text, blocks) in
            [("4711", &[1][..]), ("rememberit", &[1, 2]), ("block.The", &[0, 1]), ("no", &[]), ("", &[])]
        {
            let mut lookup = Lookup { needle: vec![], ..lookup() };
            lookup.mark(text);
            assert_eq!(lookup.needle, blocks, "{text}");
        }
    }

    #[test]
    fn texts_are_cut_anywhere() {
        let blocks = Lookup::blocks_of("aé€", &[0..2, 2..3, 3..6, 6..7, 8..9], 2);
        let texts: Vec<&str> = blocks.iter().map(|block| block.text.as_str()).collect();
        assert_eq!(texts, ["a\u{fffd}", "\u{fffd}", "€", "", ""]);
        assert_eq!(blocks[3].first_token, 6);
    }

    #[test]
    fn what_refers_to_nothing_is_refused() {
        assert!(lookup().validate().is_ok());
        for wrong in [fetch(2, 0, 0, 0.5), fetch(0, 2, 0, 0.5), fetch(0, 0, 4, 0.5), fetch(0, 0, 0, -0.1)] {
            let mut lookup = lookup();
            lookup.answer[1].fetched.push(wrong);
            assert!(lookup.validate().unwrap_err().to_string().contains("token 1"), "{wrong:?}");
        }
        let weights = [f32::NAN, 1.1].map(|weight| Lookup {
            answer: vec![AnswerToken { text: String::new(), fetched: vec![fetch(0, 0, 0, weight)] }],
            ..lookup()
        });
        assert!(weights.iter().all(|lookup| lookup.validate().is_err()));
        assert!(Lookup { needle: vec![4], ..lookup() }.validate().is_err());
        assert!(Lookup { layers: usize::MAX, ..lookup() }.validate().is_err());
    }

    #[test]
    fn json_comes_back() {
        let json = lookup().to_json();
        assert_eq!(serde_json::from_str::<Lookup>(&json).unwrap(), lookup());
    }
}
