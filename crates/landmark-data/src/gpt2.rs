//! GPT-2's byte-level byte-pair encoding, exact and fast.
//!
//! The vocabulary is the one that `tiktoken-rs` embeds, so nothing is downloaded. Its encoder spends most of its
//! time in a backtracking regular expression; ours splits by table ([`split`]), merges by pairs of ids
//! ([`merge`]), and remembers words: text repeats its words so much that most pieces cost one look-up in a table
//! that fits the cache of a core. Tests compare every token with those of `tiktoken-rs`.

mod merge;
mod split;

use std::cell::RefCell;
use std::sync::LazyLock;

use rustc_hash::FxHashMap;

use merge::Merges;
use split::Splitter;

/// The id of `<|endoftext|>`.
pub(crate) const END_OF_TEXT: u32 = 50_256;
/// Ids are less than this.
pub(crate) const VOCAB_SIZE: u32 = 50_257;

/// The vocabulary and its rules; there is one, see [`gpt2`].
pub(crate) struct Gpt2 {
    /// The bytes of all tokens, end to end; token i is `bytes[ends[i - 1]..ends[i]]`.
    bytes: Vec<u8>,
    ends: Vec<usize>,
    ids: FxHashMap<Box<[u8]>, u32>,
    merges: Merges,
    splitter: Splitter,
}

/// The encoding, built when it is first asked for (some tens of milliseconds).
pub(crate) fn gpt2() -> &'static Gpt2 {
    static GPT2: LazyLock<Gpt2> = LazyLock::new(Gpt2::new);
    &GPT2
}

impl Gpt2 {
    fn new() -> Self {
        let embedded = tiktoken_rs::r50k_base().expect("the embedded vocabulary is well formed");
        let (mut bytes, mut ends, mut ids) = (Vec::new(), Vec::new(), FxHashMap::default());
        for id in 0..VOCAB_SIZE {
            let token = embedded.decode_bytes(&[id]).expect("the embedded vocabulary has no holes");
            bytes.extend_from_slice(&token);
            ends.push(bytes.len());
            if id != END_OF_TEXT {
                ids.insert(token.into_boxed_slice(), id);
            }
        }
        Self { bytes, ends, merges: Merges::new(&ids), ids, splitter: Splitter::new() }
    }

    /// The bytes of a token, `<|endoftext|>` included; `None` for an id beyond the vocabulary.
    pub(crate) fn token(&self, id: u32) -> Option<&[u8]> {
        let id = usize::try_from(id).ok()?;
        let start = if id == 0 { 0 } else { *self.ends.get(id - 1)? };
        Some(&self.bytes[start..*self.ends.get(id)?])
    }

    /// Appends the tokens of `text` to `out`. Nothing in `text` is special: `<|endoftext|>` is encoded as the
    /// characters that it is made of.
    pub(crate) fn encode_ordinary(&self, text: &str, out: &mut Vec<u32>) {
        thread_local! {
            static WORDS: RefCell<Words> = RefCell::new(Words::new());
        }
        WORDS.with_borrow_mut(|words| {
            let bytes = text.as_bytes();
            let mut start = 0;
            while start < bytes.len() {
                let end = self.splitter.piece_end(text, start);
                match Words::key(bytes, start, end) {
                    Some(key) => {
                        if !words.find(key, out) {
                            let before = out.len();
                            self.encode_piece(&bytes[start..end], out);
                            words.insert(key, &out[before..]);
                        }
                    }
                    None => self.encode_piece(&bytes[start..end], out),
                }
                start = end;
            }
        });
    }

    /// See [`Splitter::last_cut`].
    pub(crate) fn last_cut(&self, bytes: &[u8]) -> Option<usize> {
        self.splitter.last_cut(bytes)
    }

    fn encode_piece(&self, piece: &[u8], out: &mut Vec<u32>) {
        match self.ids.get(piece) {
            Some(&id) => out.push(id),
            None => self.merges.encode(piece, out),
        }
    }
}

/// Tokens of words seen lately, by the thread that saw them: a table in which each word has one place, and the
/// latest word stays.
struct Words {
    slots: Box<[Slot]>,
}

/// A word of at most 15 bytes and its at most 3 tokens; 24 bytes, so that the table is 1.5 MiB.
#[derive(Clone, Copy, Default)]
struct Slot {
    key: [u64; 2],
    tokens: [u16; 3],
    count: u16,
}

impl Words {
    const LOG_SLOTS: u32 = 16;

    fn new() -> Self {
        Self { slots: vec![Slot::default(); 1 << Self::LOG_SLOTS].into_boxed_slice() }
    }

    /// The word `bytes[start..end]` and its length, packed; `None` if it is too long. No word has the key 0.
    #[inline]
    fn key(bytes: &[u8], start: usize, end: usize) -> Option<[u64; 2]> {
        let length = end - start;
        if length > 15 {
            return None;
        }
        let word = match bytes.get(start..start + 16) {
            Some(window) => {
                let window = u128::from_le_bytes(window.try_into().expect("16 bytes"));
                window & ((1 << (8 * length)) - 1)
            }
            None => bytes[start..end].iter().rev().fold(0, |word, &byte| word << 8 | u128::from(byte)),
        };
        Some([word as u64, (word >> 64) as u64 | (length as u64) << 56])
    }

    fn slot(key: [u64; 2]) -> usize {
        const MIX: u64 = 0x9E37_79B9_7F4A_7C15; // 2^64 over the golden ratio: multiplying spreads low bits upwards
        let mixed = (key[0] ^ key[1].wrapping_mul(MIX).rotate_left(29)).wrapping_mul(MIX);
        (mixed >> (64 - Self::LOG_SLOTS)) as usize
    }

    /// Appends the tokens of the word to `out`, if they are known.
    #[inline]
    fn find(&self, key: [u64; 2], out: &mut Vec<u32>) -> bool {
        let slot = &self.slots[Self::slot(key)];
        let known = slot.key == key;
        if known {
            out.extend(slot.tokens[..usize::from(slot.count)].iter().map(|&id| u32::from(id)));
        }
        known
    }

    fn insert(&mut self, key: [u64; 2], tokens: &[u32]) {
        let mut slot = Slot { key, ..Slot::default() };
        if tokens.len() > slot.tokens.len() {
            return;
        }
        slot.count = tokens.len() as u16;
        for (to, &from) in slot.tokens.iter_mut().zip(tokens) {
            *to = from as u16; // GPT-2's ids fit
        }
        self.slots[Self::slot(key)] = slot;
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    use super::*;

    fn encode(text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        gpt2().encode_ordinary(text, &mut ids);
        ids
    }

    #[test]
    fn known_tokens() {
        assert_eq!(encode("Hello world"), [15496, 995]);
        assert_eq!(encode("Hello, I'm a language model,"), [15496, 11, 314, 1101, 257, 3303, 2746, 11]);
        assert_eq!(encode("\n\n"), [628]);
        assert_eq!(encode("\n"), [198]);
        assert_eq!(encode("don't"), [9099, 470]);
        assert_eq!(encode("<|endoftext|>"), [27, 91, 437, 1659, 5239, 91, 29]);
        assert!(encode("").is_empty());
    }

    #[test]
    fn every_token_is_its_own_encoding_or_decodes_back() {
        let mut text = Vec::new();
        for id in 0..VOCAB_SIZE {
            let token = gpt2().token(id).unwrap();
            if let Ok(token) = std::str::from_utf8(token) {
                text.clear();
                for id in encode(token) {
                    text.extend_from_slice(gpt2().token(id).unwrap());
                }
                assert_eq!(text, token.as_bytes(), "{id}");
            }
        }
        assert_eq!(gpt2().token(END_OF_TEXT), Some(&b"<|endoftext|>"[..]));
        assert_eq!(gpt2().token(VOCAB_SIZE), None);
    }

    /// Text that visits the boundaries of the rule: runs of characters from each class and from the edges of the
    /// classes, contractions in both cases, words, and long repetitions.
    fn random_text(rng: &mut ChaCha8Rng) -> String {
        const PARTS: [&str; 40] = [
            " ",
            "  ",
            "\n",
            "\r\n",
            "\t",
            "\u{a0}",
            "\u{3000}",
            "\u{85}",
            "'",
            "'s",
            "'ll",
            "'RE",
            "'ve",
            "a",
            "Z",
            "the",
            " walking",
            "é",
            "e\u{301}",
            "ß",
            "中文",
            "ﬃ",
            "ǅ",
            "ª",
            "0",
            "7",
            "2023",
            "½",
            "Ⅷ",
            "٣",
            ".",
            "...",
            "--",
            "!'",
            "\u{200b}",
            "\u{feff}",
            "🙂",
            "👩\u{200d}🚀",
            "\u{0}",
            "\u{10ffff}",
        ];
        let mut text = String::new();
        for _ in 0..1 + rng.next_u32() % 24 {
            let repeat = if rng.next_u32().is_multiple_of(16) { 90 } else { 1 + rng.next_u32() % 2 };
            if rng.next_u32().is_multiple_of(4) {
                let c = char::from_u32(rng.next_u32() % 0x110000).unwrap_or(' ');
                (0..repeat).for_each(|_| text.push(c));
            } else {
                let part = PARTS[rng.next_u32() as usize % PARTS.len()];
                (0..repeat).for_each(|_| text.push_str(part));
            }
        }
        text
    }

    #[test]
    fn random_text_gives_the_tokens_of_tiktoken() {
        let reference = tiktoken_rs::r50k_base().unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for round in 0..4000 {
            let text = random_text(&mut rng);
            assert_eq!(encode(&text), reference.encode_ordinary(&text), "round {round}: {text:?}");
        }
    }

    #[test]
    fn every_cut_leaves_the_tokens_as_they_are() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut cuts = 0;
        for _ in 0..2000 {
            let text = random_text(&mut rng);
            if let Some(cut) = gpt2().last_cut(text.as_bytes()) {
                let mut parts = encode(&text[..cut]);
                parts.extend(encode(&text[cut..]));
                assert_eq!(parts, encode(&text), "{text:?} at {cut}");
                cuts += 1;
            }
        }
        assert!(cuts > 500, "{cuts}");
    }
}
