//! Needles in a haystack: single ones, among others alike, with several values, several asked for at once.
//!
//! A needle is a sentence that gives a *key* (a name or a UUID) a *value*. All needles asked for are in the text once; needles with
//! other keys may stand beside them, and in the hardest haystacks there is nothing else. Where a depth is given, what is asked for
//! stands there and the rest at random; otherwise everything stands at random.

use serde::{Deserialize, Serialize};

use super::{Write, enumerate, padding, vocabulary};
use crate::draw::Draw;
use crate::filler::Filler;
use crate::{Error, Result};

/// What needles are hidden in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Haystack {
    /// A few sentences, repeated.
    Noise,
    /// Prose, made by rule.
    Prose,
    /// Other needles.
    Needles,
}

/// What keys look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyKind {
    /// `adjective-noun`.
    Words,
    /// A UUID.
    Uuid,
}

/// What values look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ValueKind {
    /// Seven digits.
    Number,
    /// `adjective-noun`.
    Words,
    /// A UUID.
    Uuid,
}

/// Settings of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Needles {
    /// What needles are hidden in.
    pub haystack: Haystack,
    /// What keys look like.
    pub key: KeyKind,
    /// What values look like.
    pub value: ValueKind,
    /// Different keys hidden, those asked for included.
    pub keys: usize,
    /// Values of each key that is asked for.
    pub values: usize,
    /// Keys asked for.
    pub queries: usize,
}

/// More needles than this are no test that anybody could read.
const MOST: usize = 1000;

impl Needles {
    pub(super) fn validate(&self) -> Result<()> {
        let wrong = |setting, reason: &str| Err(Error::Setting { setting, reason: reason.into() });
        match self {
            Needles { queries: 0, .. } => wrong("queries", "at least one key must be asked for"),
            Needles { values: 0, .. } => wrong("values", "a key needs at least one value"),
            Needles { keys, queries, .. } if keys < queries => {
                wrong("keys", "there must be at least as many keys as are asked for")
            }
            Needles { keys, values, .. } if keys.saturating_mul(*values) > MOST => {
                wrong("keys", "at most 1000 needles can be hidden")
            }
            _ => Ok(()),
        }
    }

    pub(super) fn writer(&self, depth: Option<f64>, draws: &dyn Fn(u64) -> Draw) -> Writer {
        let mut draw = draws(0);
        let key = |draw: &mut Draw| match self.key {
            KeyKind::Words => vocabulary::name(draw),
            KeyKind::Uuid => draw.uuid(),
        };
        let mut keys: Vec<String> = Vec::new();
        while keys.len() < self.keys {
            let new = key(&mut draw);
            if !keys.contains(&new) {
                keys.push(new);
            }
        }
        let asked = keys[..self.queries].to_vec();
        let mut needles = Vec::new();
        let mut expected: Vec<String> = Vec::new();
        for (number, key) in keys.iter().enumerate() {
            let is_asked = number < self.queries;
            for _ in 0..if is_asked { self.values } else { 1 } {
                let random = draw.unit();
                let value = loop {
                    let value = self.value(&mut draw);
                    if !expected.contains(&value) {
                        break value;
                    }
                };
                let at = if is_asked { depth.unwrap_or(random) } else { random };
                needles.push((at, self.sentence(key, &value)));
                if is_asked {
                    expected.push(value);
                }
            }
        }
        let placed = needles[0].0;
        // Stable, so needles at one depth stay in the order of the question.
        needles.sort_by(|a, b| a.0.total_cmp(&b.0));
        Writer { settings: self.clone(), asked, expected, needles, placed, hay: Vec::new(), draw: draws(1) }
    }

    fn value(&self, draw: &mut Draw) -> String {
        match self.value {
            ValueKind::Number => draw.between(1_000_000, 9_999_999).to_string(),
            ValueKind::Words => vocabulary::name(draw),
            ValueKind::Uuid => draw.uuid(),
        }
    }

    fn noun(&self, count: usize) -> &'static str {
        match (self.value, count) {
            (ValueKind::Number, 1) => "number",
            (ValueKind::Number, _) => "numbers",
            (ValueKind::Words, 1) => "word",
            (ValueKind::Words, _) => "words",
            (ValueKind::Uuid, 1) => "code",
            (ValueKind::Uuid, _) => "codes",
        }
    }

    fn sentence(&self, key: &str, value: &str) -> String {
        format!("Take note: a secret {} of {key} is {value}.", self.noun(1))
    }
}

/// Writes the prompts of one question.
pub(super) struct Writer {
    settings: Needles,
    asked: Vec<String>,
    expected: Vec<String>,
    /// Depth and sentence, in the order of the text.
    needles: Vec<(f64, String)>,
    placed: f64,
    /// Sentences of the haystack drawn so far.
    hay: Vec<String>,
    draw: Draw,
}

impl Writer {
    /// One more sentence of the haystack.
    fn grow(&mut self) {
        let sentence = match self.settings.haystack {
            Haystack::Noise => Filler::Notes.sentence(&mut self.draw),
            Haystack::Prose => Filler::Prose.sentence(&mut self.draw),
            Haystack::Needles => loop {
                let key = match self.settings.key {
                    KeyKind::Words => vocabulary::name(&mut self.draw),
                    KeyKind::Uuid => self.draw.uuid(),
                };
                // A key that is asked for has no other values.
                if !self.asked.contains(&key) {
                    let value = self.settings.value(&mut self.draw);
                    break self.settings.sentence(&key, &value);
                }
            },
        };
        self.hay.push(sentence);
    }
}

/// Words of padding: those of the longest sentence there is to fill up for.
const MOST_PADDING: usize = 64;

impl Write for Writer {
    fn prompt(&mut self, units: usize, pad: usize) -> String {
        while self.hay.len() <= units {
            self.grow();
        }
        let Writer { settings, needles, hay, .. } = self;
        let count = self.expected.len();
        let (noun, nouns) = (settings.noun(count), settings.noun(2));
        let verb = if count == 1 { "is" } else { "are" };
        let which = enumerate(&self.asked);
        let mut text = format!(
            "Somewhere in the following text there are secret {nouns}. Keep them in mind: \
             you will be asked about them at the end.\n"
        );
        let mut next = needles.iter().peekable();
        for sentence in 0..=units {
            let is_here = |at: f64| (at * units as f64).round() as usize <= sentence;
            while let Some((_, needle)) = next.next_if(|needle| is_here(needle.0)) {
                text += needle;
                text.push('\n');
            }
            if sentence < units {
                text += &hay[sentence];
                text.push('\n');
            }
        }
        text.truncate(text.trim_end().len());
        let filler = "And so it went on, day after day and year after year, while the seasons came and went \
                      and the people of the town did what they had always done, without a thought for anything else, and in \
                      the evening they sat by the fire and told each other what had been told before, until it was late \
                      and one after the other went home along the river to sleep and to begin again in the morning.";
        text += &padding(filler, pad);
        text + &format!(
            "\nWhich secret {noun} of {which} {verb} given in the text above? \
             The secret {noun} of {which} given in the text {verb}"
        )
    }

    fn most_padding(&self) -> usize {
        MOST_PADDING
    }

    fn answer(&mut self, _: usize) -> (Vec<String>, Option<f64>) {
        (self.expected.clone(), Some(self.placed))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, Retrieval, Task};
    use super::*;
    use crate::case::{Case, Suite};
    use crate::testing::pieces;

    fn cases(name: &str, depths: &[f64], length: usize) -> Vec<Case> {
        let tasks = Task::of(name).unwrap();
        let suite = Retrieval { tasks, lengths: vec![length], depths: depths.to_vec(), samples: 2, seed: 9 };
        suite.keys().iter().map(|key| suite.make(key, &pieces).unwrap()).collect()
    }

    fn needles(case: &Case) -> usize {
        case.prompt.matches("Take note:").count()
    }

    /// Written by hand from the rule: two keys, one asked for, of two values, at half the depth of four sentences.
    #[test]
    fn a_prompt_by_hand() {
        let settings = Needles {
            haystack: Haystack::Noise,
            key: KeyKind::Words,
            value: ValueKind::Number,
            keys: 2,
            values: 2,
            queries: 1,
        };
        let mut writer = Writer {
            asked: vec!["red-fox".into()],
            expected: vec!["1111111".into(), "2222222".into()],
            needles: vec![
                (0.5, settings.sentence("red-fox", "1111111")),
                (0.5, settings.sentence("red-fox", "2222222")),
                (0.9, settings.sentence("old-owl", "3333333")),
            ],
            placed: 0.5,
            hay: ["A.", "B.", "C.", "D.", "E."].map(String::from).to_vec(),
            draw: Draw::new(1, &crate::passkey::Passkey::released(1).keys()[0], 0),
            settings,
        };
        let expected = "Somewhere in the following text there are secret numbers. Keep them in mind: \
            you will be asked about them at the end.\n\
            A.\nB.\n\
            Take note: a secret number of red-fox is 1111111.\n\
            Take note: a secret number of red-fox is 2222222.\n\
            C.\nD.\n\
            Take note: a secret number of old-owl is 3333333. And so\n\
            Which secret numbers of red-fox are given in the text above? \
            The secret numbers of red-fox given in the text are";
        assert_eq!(writer.prompt(4, 2), expected);
    }

    #[test]
    fn as_many_needles_as_published() {
        for (name, hidden, expected, digits) in [
            ("niah_single_1", 1, 1, 7),
            ("niah_single_2", 1, 1, 7),
            ("niah_single_3", 1, 1, 36),
            ("niah_multikey_1", 4, 1, 7),
            ("niah_multivalue", 4, 4, 7),
            ("niah_multiquery", 4, 4, 7),
        ] {
            for case in cases(name, &[], 1000) {
                assert_eq!((needles(&case), case.expected.len()), (hidden, expected), "{name}");
                assert!(case.expected.iter().all(|value| value.len() == digits), "{name}");
            }
        }
        for name in ["niah_multikey_2", "niah_multikey_3"] {
            for case in cases(name, &[], 2000) {
                let lines = case.prompt.lines().count();
                assert_eq!(needles(&case), lines - 2, "{name}: nothing but needles");
                assert!(lines > 30);
                let question = case.prompt.lines().last().unwrap();
                let key = question.split(' ').nth(4).unwrap();
                assert_eq!(
                    case.prompt.matches(&format!("of {key} is ")).count(),
                    2,
                    "once in the text: {key}"
                );
            }
        }
    }

    #[test]
    fn needles_stand_where_they_are_asked_for() {
        for name in ["niah_single_2", "niah_multikey_2", "niah_multivalue"] {
            for case in cases(name, &[0.0, 0.25, 1.0], 4000) {
                let depth = case.key.depth.unwrap();
                for value in &case.expected {
                    let at = case.prompt.find(value).unwrap() as f64 / case.prompt.len() as f64;
                    assert!((at - depth).abs() < 0.07, "{}: {at}", case.id);
                }
                assert_eq!(case.placed, Some(depth));
            }
        }
        let placed: Vec<f64> =
            cases("niah_single", &[], 500).iter().map(|case| case.placed.unwrap()).collect();
        assert!(placed.windows(2).all(|pair| pair[0] != pair[1]), "{placed:?}");
    }

    #[test]
    fn impossible_settings_are_named() {
        let Some(Task { kind: Kind::Needles(good), .. }) = Task::named("niah_multiquery") else { panic!() };
        for (wrong, setting) in [
            (Needles { queries: 0, ..good.clone() }, "queries"),
            (Needles { queries: 5, ..good.clone() }, "keys"),
            (Needles { values: 0, ..good.clone() }, "values"),
            (Needles { keys: 501, values: 2, ..good.clone() }, "keys"),
        ] {
            assert!(wrong.validate().unwrap_err().to_string().starts_with(setting));
        }
        assert!(good.validate().is_ok());
    }
}
