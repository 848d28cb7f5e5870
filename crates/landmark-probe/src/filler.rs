//! Text to hide something in, without end and without anything worth remembering.
//!
//! Three kinds. The released program's sentence, again and again, is the test that the paper reports; a model may well learn to
//! pass over it as noise. *Notes* repeat a few other sentences in random order. *Prose* is made by rule from lists of words:
//! every sentence is new, so that no block of text looks like another, and what is hidden is less conspicuous. RULER takes
//! essays for this; those are not ours to ship, and nothing is downloaded here. No filler holds digits.

use serde::{Deserialize, Serialize};

use crate::draw::Draw;
use crate::retrieval::vocabulary::{ADJECTIVES, NOUNS};

/// The released program's filler.
const GRASS: &str =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

const NOTES: [&str; 12] = [
    "The kettle is on.",
    "A bus went by.",
    "Nobody was at the door.",
    "The lamp flickered twice.",
    "It rained until noon.",
    "The clock kept ticking.",
    "Some leaves fell.",
    "The radio played softly.",
    "A chair was moved.",
    "The street was quiet again.",
    "Somebody laughed next door.",
    "The window stood open.",
];

const PLACES: [&str; 16] = [
    "by the harbour",
    "behind the old mill",
    "near the market",
    "on the northern road",
    "under the bridge",
    "at the edge of the forest",
    "across the valley",
    "in the upper town",
    "along the canal",
    "above the quarry",
    "next to the chapel",
    "beside the railway",
    "beyond the orchard",
    "at the foot of the hill",
    "on the far shore",
    "in the narrow lanes",
];

const TIMES: [&str; 12] = [
    "In early spring",
    "Late that summer",
    "On most evenings",
    "Before the war",
    "Years afterwards",
    "On a cold morning",
    "During the festival",
    "Soon after dawn",
    "At the end of autumn",
    "Once the snow had gone",
    "In those days",
    "Toward midnight",
];

const VERBS: [&str; 20] = [
    "described",
    "followed",
    "painted",
    "forgot",
    "admired",
    "repaired",
    "carried",
    "ignored",
    "sold",
    "borrowed",
    "studied",
    "found",
    "missed",
    "drew",
    "guarded",
    "mentioned",
    "kept",
    "lost",
    "praised",
    "bought",
];

const PEOPLE: [&str; 16] = [
    "the teacher",
    "a traveller",
    "the miller",
    "an old sailor",
    "the clerk",
    "her brother",
    "a neighbour",
    "the judge",
    "my aunt",
    "the gardener",
    "a young painter",
    "the widow",
    "his cousin",
    "the baker",
    "a stranger",
    "the doctor",
];

const CLOSINGS: [&str; 10] = [
    "and nobody thought much of it",
    "though few people noticed",
    "as was the custom there",
    "which surprised the whole village",
    "because the weather had turned",
    "and the matter rested there",
    "while the others looked on",
    "so the story was told again",
    "and it was soon forgotten",
    "without a word of complaint",
];

/// A kind of filler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filler {
    /// The released program's: one sentence after another, always the same.
    #[default]
    Released,
    /// A few short sentences in random order.
    Notes,
    /// Sentences by rule, no two alike.
    Prose,
}

impl Filler {
    /// All kinds, with the names that a user gives.
    pub const NAMED: [(&str, Filler); 3] =
        [("released", Filler::Released), ("notes", Filler::Notes), ("prose", Filler::Prose)];

    /// The next sentence.
    pub(crate) fn sentence(self, draw: &mut Draw) -> String {
        match self {
            Filler::Released => GRASS.to_owned(),
            Filler::Notes => draw.one(&NOTES).to_owned(),
            Filler::Prose => prose(draw),
        }
    }
}

fn prose(draw: &mut Draw) -> String {
    let thing = |draw: &mut Draw| format!("{} {}", draw.one(&ADJECTIVES), draw.one(&NOUNS));
    let (who, verb) = (draw.one(&PEOPLE), draw.one(&VERBS));
    let what = thing(draw);
    match draw.below(4) {
        0 => format!("{}, {who} {verb} the {what} {}.", draw.one(&TIMES), draw.one(&PLACES)),
        1 => format!("{}, {who} {verb} every {what}, {}.", draw.one(&TIMES), draw.one(&CLOSINGS)),
        2 => {
            let other = thing(draw);
            let begin = capital(who);
            format!(
                "{begin} {verb} one {what} and another {other} {}, {}.",
                draw.one(&PLACES),
                draw.one(&CLOSINGS)
            )
        }
        _ => {
            let other = thing(draw);
            format!("{} {verb} the {what} rather than the {other}, {}.", capital(who), draw.one(&CLOSINGS))
        }
    }
}

fn capital(text: &str) -> String {
    text[..1].to_uppercase() + &text[1..]
}

/// Filler as a text without end, of which any number of characters can be had. All of it is ASCII, so characters are bytes.
#[derive(Debug)]
pub(crate) struct Endless {
    filler: Filler,
    draw: Draw,
    text: String,
}

impl Endless {
    pub(crate) fn new(filler: Filler, draw: Draw) -> Endless {
        Endless { filler, draw, text: String::new() }
    }

    /// The first `n` characters, cut wherever that is.
    pub(crate) fn first(&mut self, n: usize) -> &str {
        while self.text.len() < n {
            if !self.text.is_empty() {
                self.text.push(' ');
            }
            let sentence = self.filler.sentence(&mut self.draw);
            self.text += &sentence;
        }
        &self.text[..n]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::CaseKey;

    fn draw(index: usize) -> Draw {
        Draw::new(1, &CaseKey { task: "filler".into(), length: 0, depth: None, index }, 0)
    }

    #[test]
    fn the_released_filler_is_the_released_one() {
        let mut text = Endless::new(Filler::Released, draw(0));
        assert_eq!(text.first(0), "");
        assert_eq!(text.first(20), "The grass is green. ");
        // "..back again." and the next "The" are joined by one blank; the period of the text is 90 characters.
        let text = text.first(500).to_owned();
        assert_eq!(&text[80..105], "ck again. The grass is gr");
        assert!(text.as_bytes().windows(91).all(|w| w[0] == w[90]), "{text}");
    }

    #[test]
    fn fillers_are_ascii_without_digits_and_grow_at_their_end() {
        for (name, filler) in Filler::NAMED {
            let mut text = Endless::new(filler, draw(0));
            let short = text.first(1000).to_owned();
            let long = text.first(50_000);
            assert!(long.starts_with(&short) && long.len() == 50_000, "{name}");
            assert!(long.bytes().all(|b| b.is_ascii_graphic() && !b.is_ascii_digit() || b == b' '), "{name}");
            assert!(!long.contains("key") && !long.contains("secret"), "{name}");
        }
        let (mut a, mut b) = (Endless::new(Filler::Prose, draw(0)), Endless::new(Filler::Prose, draw(1)));
        assert_ne!(a.first(500), b.first(500));
        let mut sentences: Vec<&str> = a.first(200_000).split(". ").collect();
        let all = sentences.len();
        sentences.sort_unstable();
        sentences.dedup();
        assert!(sentences.len() * 100 > all * 98, "{} of {all} are different", sentences.len());
    }
}
