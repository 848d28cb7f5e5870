//! Words to make keys, values, prose and lists of.
//!
//! Plain English words, most of them one or two tokens in common vocabularies. Two nouns written together give more than
//! sixty thousand words, three give millions: enough distinct entries for the longest list.

use crate::draw::Draw;

/// What things are.
#[rustfmt::skip]
pub(crate) const ADJECTIVES: [&str; 173] = [
    "amber", "ancient", "arctic", "bitter", "blank", "blunt", "bold", "brave", "brief", "bright", "brittle",
    "broad", "bronze", "busy", "calm", "careful", "cheerful", "chilly", "civil", "clear", "clever", "coarse",
    "copper", "coral", "cosy", "crimson", "crisp", "curious", "curly", "damp", "daring", "dark", "deep",
    "dense", "distant", "dizzy", "double", "dusty", "eager", "early", "elegant", "empty", "even", "faint",
    "fancy", "fertile", "fierce", "final", "firm", "flat", "fluffy", "fond", "formal", "fragile", "frank",
    "fresh", "frosty", "gentle", "giant", "glad", "gloomy", "golden", "graceful", "grand", "grateful",
    "handy", "happy", "harsh", "hasty", "hazy", "heavy", "hidden", "hollow", "honest", "humble", "icy",
    "idle", "ivory", "jolly", "keen", "kind", "large", "late", "lazy", "lean", "light", "little", "lively",
    "lonely", "loose", "loud", "lucky", "mellow", "mild", "misty", "modest", "muddy", "narrow", "neat",
    "nimble", "noble", "obscure", "orange", "pale", "patient", "plain", "polite", "proud", "purple", "quick",
    "quiet", "rapid", "rare", "rough", "round", "royal", "rural", "rusty", "salty", "scarlet", "shallow",
    "sharp", "shiny", "silent", "silver", "simple", "sleepy", "slender", "slow", "smooth", "snowy", "solemn",
    "solid", "sour", "spare", "steady", "steep", "stern", "sticky", "stout", "strange", "sturdy", "subtle",
    "sudden", "sunny", "sweet", "swift", "tall", "tame", "tender", "thick", "thin", "tidy", "timid", "tiny",
    "tough", "tranquil", "upper", "useful", "vague", "vast", "velvet", "violet", "vivid", "warm", "weary",
    "wide", "wild", "windy", "wise", "wooden", "yellow", "young",
];

/// Things. None is a number or a name.
#[rustfmt::skip]
pub(crate) const NOUNS: [&str; 233] = [
    "acorn", "anchor", "ankle", "anvil", "apple", "apron", "arch", "arrow", "attic", "badge", "balcony",
    "banner", "barley", "barn", "barrel", "basin", "basket", "beach", "beacon", "beaver", "bell", "bench",
    "berry", "blanket", "boat", "bonnet", "boot", "bottle", "bowl", "bracket", "branch", "bread", "brick",
    "bridge", "broom", "brush", "bucket", "bundle", "butter", "button", "cabin", "cable", "camel", "candle",
    "canoe", "canvas", "carpet", "castle", "cedar", "cellar", "chain", "chalk", "cherry", "chimney", "cinder",
    "circle", "cliff", "cloak", "clover", "coach", "cobble", "collar", "comet", "compass", "copper",
    "cottage", "cotton", "crane", "crate", "cricket", "crown", "curtain", "daisy", "dancer", "desert",
    "ditch", "dolphin", "drawer", "drum", "eagle", "easel", "elbow", "engine", "falcon", "feather", "fence",
    "fiddle", "finger", "flag", "flute", "forest", "fossil", "fountain", "garden", "garlic", "gate", "ginger",
    "glacier", "glove", "goblet", "grape", "hammer", "hamlet", "harbor", "harp", "harvest", "hazel", "heron",
    "hill", "hinge", "horizon", "hornet", "island", "jacket", "jasmine", "jewel", "jungle", "kettle",
    "kitten", "ladder", "lantern", "lemon", "lily", "linen", "lizard", "lobster", "locket", "magnet",
    "mantle", "maple", "marble", "market", "meadow", "melon", "mill", "mirror", "mitten", "moth", "mountain",
    "mule", "mustard", "napkin", "needle", "nest", "nettle", "oasis", "oat", "ocean", "olive", "onion",
    "orchard", "otter", "oven", "owl", "paddle", "panther", "parcel", "parrot", "pasture", "peach", "pearl",
    "pebble", "pencil", "pepper", "piano", "pigeon", "pillow", "pine", "planet", "plum", "pocket", "pond",
    "poplar", "porch", "potato", "prairie", "puddle", "pumpkin", "quarry", "quilt", "rabbit", "radish",
    "raft", "raven", "ribbon", "river", "robin", "rocket", "saddle", "saffron", "salmon", "sandal", "satchel",
    "saucer", "shadow", "shell", "shovel", "shutter", "spider", "spoon", "squirrel", "stable", "statue",
    "stream", "sugar", "swan", "table", "tailor", "temple", "thimble", "thistle", "thunder", "tiger",
    "timber", "tower", "trumpet", "tulip", "tunnel", "turnip", "valley", "vase", "village", "violin", "wagon",
    "walnut", "weasel", "whistle", "willow", "window", "winter", "wolf", "yarn", "zebra",
];

/// `adjective-noun`.
pub(crate) fn name(draw: &mut Draw) -> String {
    format!("{}-{}", draw.one(&ADJECTIVES), draw.one(&NOUNS))
}

/// A list of distinct compound words without end, in an order of its own for each question.
#[derive(Debug)]
pub(crate) struct Compounds {
    /// The permutation `i -> (start + i * step) mod N²`.
    start: usize,
    step: usize,
}

impl Compounds {
    const PAIRS: usize = NOUNS.len() * NOUNS.len();

    pub(crate) fn new(draw: &mut Draw) -> Compounds {
        let start = draw.below(Self::PAIRS);
        // Coprime with the number of pairs, so that the sequence comes back to its start only after all of them.
        let step = loop {
            let step = draw.between(Self::PAIRS / 8, Self::PAIRS - 1);
            if coprime(step, Self::PAIRS) {
                break step;
            }
        };
        Compounds { start, step }
    }

    /// The word of number `i`. Beyond all pairs a third noun is added, and so on.
    pub(crate) fn word(&self, i: usize) -> String {
        let (round, i) = (i / Self::PAIRS, i % Self::PAIRS);
        let pair = ((self.start as u128 + i as u128 * self.step as u128) % Self::PAIRS as u128) as usize;
        let mut word = format!("{}{}", NOUNS[pair / NOUNS.len()], NOUNS[pair % NOUNS.len()]);
        let mut rest = round;
        while rest > 0 {
            word += NOUNS[(rest - 1) % NOUNS.len()];
            rest = (rest - 1) / NOUNS.len();
        }
        word
    }
}

fn coprime(mut a: usize, mut b: usize) -> bool {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a == 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::CaseKey;
    use std::collections::BTreeSet;

    #[test]
    fn words_are_plain_and_all_different() {
        let all: BTreeSet<&str> = ADJECTIVES.iter().chain(&NOUNS).copied().collect();
        // "copper" is both.
        assert_eq!(all.len(), ADJECTIVES.len() + NOUNS.len() - 1);
        assert!(all.iter().all(|w| w.len() <= 9 && w.bytes().all(|b| b.is_ascii_lowercase())));
    }

    #[test]
    fn compounds_do_not_come_twice() {
        let key = CaseKey { task: "words".into(), length: 0, depth: None, index: 0 };
        let compounds = Compounds::new(&mut Draw::new(1, &key, 0));
        let count = Compounds::PAIRS + 5_000;
        let words: BTreeSet<String> = (0..count).map(|i| compounds.word(i)).collect();
        assert_eq!(words.len(), count);
        let other = Compounds::new(&mut Draw::new(2, &key, 0));
        assert_ne!(compounds.word(0), other.word(0));
        assert!(coprime(9, 4) && !coprime(9, 6));
    }
}
