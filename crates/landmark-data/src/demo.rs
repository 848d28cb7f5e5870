//! A corpus by rule, for when there is no data at hand.
//!
//! Its text is simple enough for a tiny model, and it rewards memory. Each document is of one of two kinds:
//!
//! - **Stories.** At the beginning, every one of a few characters gets a surname, a trade, a village, an animal with a
//!   name, and a thing made of something, all drawn anew for each document. From then on they are mentioned again
//!   and again, at distances from a few dozen to several thousand tokens; without the earlier mention, a value is one
//!   of dozens, with it there is no doubt. Some scenes follow a character that was just there, so that a short
//!   window has something to learn from; chapters end in a gathering and in questions about anybody, which only a long memory
//!   can foretell. That memory is worth some 0.4 nats a token, half of it beyond 256 tokens.
//! - **Pass keys.** The prompt of the paper: filler, "The pass key is N. Remember it. N is the pass key.", filler, and
//!   "What is the pass key? The pass key is N.", asked again after stretches of filler of very different length.
//!
//! Words were chosen that GPT-2's vocabulary mostly holds as single tokens.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use landmark_formats::atomic::write_atomic;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::error::{Result, writing};

/// Length of a document, in bytes; some 4,500 tokens.
const DOCUMENT_BYTES: usize = 20_000;
/// One document in so many is about a pass key.
const PASSKEY_EVERY: usize = 5;
/// One document in so many goes to validation.
const VALIDATION_EVERY: usize = 6;

/// Writes a corpus of about `bytes` bytes in `folder`: `train/N.txt` and `validation/N.txt`, as PG19 is laid out
/// (and fit for `--dataset text`, too). The same `seed` gives the same corpus. At least ten documents are written,
/// however small `bytes` is.
///
/// # Errors
/// If the files cannot be written.
pub fn generate_demo_corpus(folder: &Path, seed: u64, bytes: usize) -> Result<()> {
    let documents = bytes.div_ceil(DOCUMENT_BYTES).max(2 * PASSKEY_EVERY);
    // The last ones are for validation: at least one of each kind.
    let validation = (documents / VALIDATION_EVERY).max(PASSKEY_EVERY);
    for split in ["train", "validation"] {
        let path = folder.join(split);
        fs::create_dir_all(&path).map_err(writing(&path))?;
    }
    for number in 0..documents {
        let split = if number < documents - validation { "train" } else { "validation" };
        // A generator for each document: a larger corpus begins with the documents of a smaller one.
        let mut draw = Draw(ChaCha8Rng::seed_from_u64(seed));
        draw.0.set_stream(number as u64);
        let text =
            if number % PASSKEY_EVERY == PASSKEY_EVERY - 1 { passkey(&mut draw) } else { story(&mut draw) };
        let path = folder.join(split).join(format!("{}.txt", number + 1));
        write_atomic(&path, |writer| std::io::Write::write_all(writer, text.as_bytes()))?;
    }
    Ok(())
}

/// Draws that do not depend on the version of a library of distributions.
struct Draw(ChaCha8Rng);

impl Draw {
    /// A number less than `n`.
    fn below(&mut self, n: usize) -> usize {
        // The bias of the remainder is of no account for the small `n` here.
        (self.0.next_u64() % n as u64) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }

    /// `n` different ones, in random order.
    fn several<'a>(&mut self, n: usize, of: &[&'a str]) -> Vec<&'a str> {
        let mut pool = of.to_vec();
        (0..n.min(of.len())).map(|_| pool.swap_remove(self.below(pool.len()))).collect()
    }
}

const WOMEN: [&str; 16] = [
    "Alice", "Anna", "Clara", "Emma", "Grace", "Helen", "Jane", "Julia", "Laura", "Lucy", "Maria", "Martha",
    "Nancy", "Rose", "Ruth", "Sarah",
];
const MEN: [&str; 16] = [
    "Adam", "Arthur", "Daniel", "David", "Edward", "Frank", "George", "Harry", "Henry", "Jack", "James",
    "Martin", "Oliver", "Peter", "Simon", "Thomas",
];
const SURNAMES: [&str; 32] = [
    "Baker", "Black", "Brooks", "Brown", "Carter", "Clark", "Cole", "Cooper", "Cross", "Field", "Fisher",
    "Fox", "Gray", "Green", "Hall", "Hill", "Hunt", "King", "Lake", "Marsh", "Moore", "Noble", "Parker",
    "Porter", "Reed", "Rivers", "Shaw", "Stone", "Walker", "West", "White", "Wood",
];
const TRADES: [&str; 16] = [
    "baker",
    "carpenter",
    "doctor",
    "driver",
    "farmer",
    "hunter",
    "judge",
    "lawyer",
    "miner",
    "painter",
    "pilot",
    "poet",
    "sailor",
    "singer",
    "teacher",
    "writer",
];
const VILLAGES: [&str; 24] = [
    "Ashton",
    "Bath",
    "Bedford",
    "Bristol",
    "Burton",
    "Cambridge",
    "Chester",
    "Clifton",
    "Derby",
    "Dover",
    "Durham",
    "Exeter",
    "Hampton",
    "Kent",
    "Lancaster",
    "Lincoln",
    "Milton",
    "Newport",
    "Norfolk",
    "Oxford",
    "Plymouth",
    "Preston",
    "Stafford",
    "York",
];
const ANIMALS: [&str; 16] = [
    "bear", "bird", "cat", "cow", "deer", "dog", "duck", "fox", "goat", "horse", "monkey", "mouse", "pig",
    "rabbit", "sheep", "wolf",
];
const PETS: [&str; 24] = [
    "Angel", "Apple", "Berry", "Button", "Candy", "Captain", "Cloud", "Coffee", "Diamond", "Duke", "Ginger",
    "Honey", "Lady", "Lucky", "Max", "Pepper", "Prince", "Rocket", "Shadow", "Silver", "Star", "Storm",
    "Sugar", "Tiger",
];
const THINGS: [&str; 16] = [
    "bell", "bowl", "box", "clock", "crown", "cup", "hammer", "key", "knife", "lamp", "mirror", "pipe",
    "ring", "spoon", "sword", "wheel",
];
const MATERIALS: [&str; 16] = [
    "bone", "brass", "bronze", "clay", "copper", "crystal", "glass", "gold", "iron", "ivory", "lead",
    "leather", "silver", "steel", "stone", "wood",
];

/// A character and the facts to be remembered.
struct Person {
    name: &'static str,
    pronoun: &'static str,
    surname: &'static str,
    trade: &'static str,
    village: &'static str,
    animal: &'static str,
    pet: &'static str,
    thing: &'static str,
    material: &'static str,
}

/// Within a document no two characters share a value, so that each value has one key and each key one value.
fn cast(draw: &mut Draw) -> Vec<Person> {
    let size = 13 + draw.below(3);
    let (women, men) = (draw.several(size, &WOMEN), draw.several(size, &MEN));
    let (surnames, trades) = (draw.several(size, &SURNAMES), draw.several(size, &TRADES));
    let (villages, animals) = (draw.several(size, &VILLAGES), draw.several(size, &ANIMALS));
    let (pets, things) = (draw.several(size, &PETS), draw.several(size, &THINGS));
    let materials = draw.several(size, &MATERIALS);
    (0..size)
        .map(|i| {
            let woman = draw.chance(50);
            Person {
                name: if woman { women[i] } else { men[i] },
                pronoun: if woman { "She" } else { "He" },
                surname: surnames[i],
                trade: trades[i],
                village: villages[i],
                animal: animals[i],
                pet: pets[i],
                thing: things[i],
                material: materials[i],
            }
        })
        .collect()
}

fn story(draw: &mut Draw) -> String {
    let cast = cast(draw);
    let mut text = String::with_capacity(DOCUMENT_BYTES + 2000);
    introduce(&mut text, &cast);
    let mut recent = [0, 1]; // the cast is in random order
    let mut chapter = 0;
    while text.len() < DOCUMENT_BYTES {
        chapter += 1;
        let _ = writeln!(text, "\nChapter {chapter}\n");
        for _ in 0..3 + draw.below(3) {
            let who = if draw.chance(40) { recent[draw.below(2)] } else { draw.below(cast.len()) };
            if who != recent[0] {
                recent = [who, recent[0]];
            }
            scene(&mut text, draw, &cast[who], &cast[recent[1]]);
        }
        gathering(&mut text, draw, &cast, recent);
    }
    text
}

fn introduce(text: &mut String, cast: &[Person]) {
    for person in cast {
        let _ = writeln!(text, "There was {}.", person.portrait());
    }
}

impl Person {
    /// All of the facts in one breath.
    fn portrait(&self) -> String {
        let Person { name, surname, trade, village, animal, pet, thing, material, .. } = self;
        format!(
            "{name} {surname} of {village}, the {trade}, with a {animal} called {pet} and a {thing} made of {material}"
        )
    }
}

/// A paragraph about one character, with three to five of the facts.
fn scene(text: &mut String, draw: &mut Draw, who: &Person, other: &Person) {
    let Person { name, pronoun, surname, trade, village, animal, pet, thing, material } = who;
    let time = draw.one(&[
        "One morning",
        "One evening",
        "At noon",
        "The next day",
        "After the rain",
        "Late at night",
    ]);
    let went = draw.one(&[
        "walked down the road",
        "went to the market",
        "sat by the river",
        "came out of the house",
    ]);
    let _ = write!(text, "{time} {name} {surname} {went}. ");
    let facts = 2 + draw.below(3);
    for fact in draw.several(facts, &["trade", "village", "pet", "thing", "other"]) {
        let _ = match fact {
            "trade" => write!(text, "It was a good day to be a {trade}, thought {name}. "),
            "village" => match draw.below(2) {
                0 => write!(text, "{name} thought of home, and home was {village}. "),
                _ => write!(text, "\"Where do you live?\" asked the stranger. {name} lived in {village}. "),
            },
            "pet" => match draw.below(2) {
                0 => write!(
                    text,
                    "The {animal} called {pet} {}. ",
                    draw.one(&["ran ahead", "slept", "was hungry"])
                ),
                _ => write!(text, "{name} looked for the {animal} called {pet}. "),
            },
            "thing" => match draw.below(2) {
                0 => write!(text, "{pronoun} carried the {thing} made of {material}. "),
                _ => write!(text, "Nobody else had a {thing} made of {material}. "),
            },
            _ => write!(text, "There {name} met {} {}. ", other.name, other.surname),
        };
        if draw.chance(20) {
            filler(text, draw, pronoun);
        }
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
}

/// A sentence that needs no memory.
fn filler(text: &mut String, draw: &mut Draw, pronoun: &str) {
    let _ = match draw.below(4) {
        0 => write!(
            text,
            "The {} was {}. ",
            draw.one(&["sky", "wind", "water", "road", "field", "garden"]),
            draw.one(&["cold", "quiet", "bright", "dark", "still", "green"]),
        ),
        1 => write!(
            text,
            "{pronoun} {} the {}. ",
            draw.one(&["looked at", "listened to", "remembered", "liked", "painted"]),
            draw.one(&["trees", "birds", "children", "old bridge", "hills", "music"]),
        ),
        2 => write!(
            text,
            "{pronoun} was {} and a little {}. ",
            draw.one(&["tired", "happy", "hungry", "late", "cold"]),
            draw.one(&["sad", "afraid", "proud", "lost", "curious"]),
        ),
        _ => write!(
            text,
            "Far away a {} was {}. ",
            draw.one(&["door", "child", "dog", "train", "choir"]),
            draw.one(&["singing", "calling", "waiting", "moving", "laughing"]),
        ),
    };
}

/// The end of a chapter: about anybody, however long ago they were seen.
fn gathering(text: &mut String, draw: &mut Draw, cast: &[Person], recent: [usize; 2]) {
    text.push_str("\nIn the evening they all came together.\n");
    for _ in 0..6 + draw.below(4) {
        let who = if draw.chance(20) { recent[draw.below(2)] } else { draw.below(cast.len()) };
        let _ = writeln!(text, "There was {}.", cast[who].portrait());
    }
    text.push('\n');
    for _ in 0..3 + draw.below(3) {
        let Person { name, surname, trade, village, animal, pet, thing, material, .. } =
            &cast[draw.below(cast.len())];
        let _ = match draw.below(5) {
            0 => writeln!(text, "Where did {name} live? {name} lived in {village}."),
            1 => writeln!(text, "What was the {animal} called? It was a {animal} called {pet}."),
            2 => writeln!(text, "What was the {thing} made of? It was a {thing} made of {material}."),
            3 => writeln!(text, "Who was the {trade}? The {trade} was {name} {surname}."),
            _ => writeln!(text, "What was the full name of {name}? It was {name} {surname}."),
        };
    }
}

fn passkey(draw: &mut Draw) -> String {
    const TASK: &str = "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I \
                        will quiz you about the important information there.";
    const FILLER: &str =
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";
    let key = 1 + draw.below(50_000);
    let mut text = format!("{TASK}\n");
    // Stretches of 1 to 64 sentences' worth of filler, as many short ones as long ones.
    let stretch = |text: &mut String, draw: &mut Draw| {
        let longest = 1 << draw.below(7);
        for _ in 0..1 + draw.below(longest) {
            let _ = writeln!(text, "{FILLER}");
        }
    };
    stretch(&mut text, draw);
    let _ = writeln!(text, "The pass key is {key}. Remember it. {key} is the pass key.");
    while text.len() < DOCUMENT_BYTES {
        stretch(&mut text, draw);
        let _ = writeln!(text, "What is the pass key? The pass key is {key}.");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Tokenizer;

    fn draw(seed: u64) -> Draw {
        Draw(ChaCha8Rng::seed_from_u64(seed))
    }

    #[test]
    fn a_seed_gives_one_corpus() {
        let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        for (folder, seed) in folders.iter().zip([1, 1, 2]) {
            generate_demo_corpus(folder.path(), seed, 300_000).unwrap();
        }
        let read = |i: usize, name: &str| fs::read_to_string(folders[i].path().join(name)).unwrap();
        for name in ["train/1.txt", "train/5.txt", "validation/15.txt"] {
            assert_eq!(read(0, name), read(1, name));
            assert_ne!(read(0, name), read(2, name));
        }
        let count = |split: &str| fs::read_dir(folders[0].path().join(split)).unwrap().count();
        assert_eq!((count("train"), count("validation")), (10, 5));
    }

    #[test]
    fn documents_are_several_thousand_tokens_long() {
        let tokenizer = Tokenizer::gpt2();
        for text in [story(&mut draw(3)), passkey(&mut draw(3))] {
            let tokens = tokenizer.encode_ordinary(&text).unwrap().len();
            assert!((4096..8000).contains(&tokens), "{tokens}");
        }
    }

    #[test]
    fn facts_of_the_beginning_come_back_near_and_far() {
        let tokenizer = Tokenizer::gpt2();
        let mut gaps: Vec<usize> = Vec::new();
        for seed in 0..10 {
            let text = story(&mut draw(seed));
            for person in cast(&mut draw(seed)) {
                let fact = format!("{} called {}", person.animal, person.pet);
                let at: Vec<usize> = text.match_indices(&fact).map(|(at, _)| at).collect();
                assert!(at.len() >= 2, "{fact} is told once only");
                gaps.extend(
                    at.windows(2)
                        .map(|pair| tokenizer.encode_ordinary(&text[pair[0]..pair[1]]).unwrap().len()),
                );
            }
        }
        let share = |low: usize, high: usize| {
            gaps.iter().filter(|&&gap| (low..high).contains(&gap)).count() as f64 / gaps.len() as f64
        };
        assert!(share(50, 256) > 0.15, "something to learn from in a short window: {}", share(50, 256));
        assert!(share(512, 4096) > 0.3, "something that only memory can know: {}", share(512, 4096));
    }

    #[test]
    fn a_pass_key_is_asked_for_many_times() {
        let text = passkey(&mut draw(7));
        let key = text.split("The pass key is ").nth(1).unwrap().split('.').next().unwrap();
        assert!(text.contains(&format!("The pass key is {key}. Remember it. {key} is the pass key.")));
        assert!(text.matches(&format!("What is the pass key? The pass key is {key}.")).count() >= 5);
    }
}
