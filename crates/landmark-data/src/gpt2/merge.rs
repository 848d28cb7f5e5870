//! Byte-pair merges: from the bytes of one piece to tokens.
//!
//! A piece starts as its bytes, one token each. The adjacent pair whose union has the smallest id is merged, the
//! leftmost first among equals, until no adjacent pair is a token (in GPT-2's vocabulary, ids are in the order in
//! which merges were learned). The table maps a pair of *ids* to the id of their union, so that no bytes are hashed
//! in the loop; it holds every way to cut a token in two tokens, since any of these may occur.
//!
//! Short pieces, nearly all, rescan a small array after each merge; that is quadratic, so long ones (a line of
//! dashes, a megabyte of base64) go through a heap.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

/// Longest piece, in bytes, that is merged by rescanning.
const SHORT: usize = 64;
/// No token: the pair does not merge.
const NONE: u32 = u32::MAX;

/// The merge rules of a vocabulary.
pub(super) struct Merges {
    /// The token of each single byte.
    bytes: [u32; 256],
    /// Union of two tokens, by (left id << 32 | right id).
    pairs: FxHashMap<u64, u32>,
}

impl Merges {
    /// The rules of the vocabulary `ids`, in which every single byte is a token.
    pub(super) fn new(ids: &FxHashMap<Box<[u8]>, u32>) -> Self {
        let mut bytes = [NONE; 256];
        let mut pairs = FxHashMap::default();
        pairs.reserve(4 * ids.len());
        for (token, &id) in ids {
            if let [byte] = token[..] {
                bytes[usize::from(byte)] = id;
            }
            for cut in 1..token.len() {
                if let (Some(&left), Some(&right)) = (ids.get(&token[..cut]), ids.get(&token[cut..])) {
                    pairs.insert(key(left, right), id);
                }
            }
        }
        assert!(bytes.iter().all(|&id| id != NONE), "every byte is a token of a byte-level vocabulary");
        Self { bytes, pairs }
    }

    /// Appends the tokens of `piece` to `out`.
    pub(super) fn encode(&self, piece: &[u8], out: &mut Vec<u32>) {
        if piece.len() <= SHORT { self.encode_short(piece, out) } else { self.encode_long(piece, out) }
    }

    fn union(&self, left: u32, right: u32) -> u32 {
        self.pairs.get(&key(left, right)).copied().unwrap_or(NONE)
    }

    fn encode_short(&self, piece: &[u8], out: &mut Vec<u32>) {
        let mut ids = [NONE; SHORT];
        // unions[i] is what ids[i] and ids[i + 1] would become.
        let mut unions = [NONE; SHORT];
        let mut len = piece.len();
        for (id, &byte) in ids.iter_mut().zip(piece) {
            *id = self.bytes[usize::from(byte)];
        }
        for i in 1..len {
            unions[i - 1] = self.union(ids[i - 1], ids[i]);
        }
        while len > 1 {
            // `min_by_key` keeps the first, that is leftmost, of equals.
            let Some((at, &best)) = unions[..len - 1].iter().enumerate().min_by_key(|&(_, union)| *union)
            else {
                break;
            };
            if best == NONE {
                break;
            }
            ids[at] = best;
            ids.copy_within(at + 2..len, at + 1);
            unions.copy_within(at + 1..len, at);
            len -= 1;
            if at > 0 {
                unions[at - 1] = self.union(ids[at - 1], best);
            }
            unions[at] = if at + 1 < len { self.union(best, ids[at + 1]) } else { NONE };
        }
        out.extend_from_slice(&ids[..len]);
    }

    /// The same with a doubly linked list of tokens and a heap of (union, position of the left token). Entries of
    /// the heap are not taken out when they become stale; they are recognised when they come up.
    fn encode_long(&self, piece: &[u8], out: &mut Vec<u32>) {
        let len = piece.len();
        let mut ids: Vec<u32> = piece.iter().map(|&byte| self.bytes[usize::from(byte)]).collect();
        let mut next: Vec<usize> = (1..=len).collect();
        let mut previous: Vec<usize> = (0..len).map(|i| i.wrapping_sub(1)).collect();
        let mut heap = BinaryHeap::new();
        for i in 1..len {
            let union = self.union(ids[i - 1], ids[i]);
            if union != NONE {
                heap.push(Reverse((union, i - 1)));
            }
        }
        while let Some(Reverse((union, left))) = heap.pop() {
            // A token that was merged into its left neighbour has id NONE, which merges with nothing.
            let right = next[left];
            if right == len || self.union(ids[left], ids[right]) != union {
                continue;
            }
            ids[left] = union;
            ids[right] = NONE;
            next[left] = next[right];
            if next[left] < len {
                previous[next[left]] = left;
                let union = self.union(ids[left], ids[next[left]]);
                if union != NONE {
                    heap.push(Reverse((union, left)));
                }
            }
            if left > 0 {
                let before = previous[left];
                let union = self.union(ids[before], ids[left]);
                if union != NONE {
                    heap.push(Reverse((union, before)));
                }
            }
        }
        out.extend(ids.iter().filter(|&&id| id != NONE));
    }
}

fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All bytes, then "ab", "bc", "abc", "aa".
    fn merges() -> Merges {
        let mut ids = FxHashMap::default();
        for byte in 0..=255u8 {
            ids.insert(vec![byte].into_boxed_slice(), u32::from(byte));
        }
        for (id, token) in [(256, "ab"), (257, "bc"), (258, "abc"), (259, "aa")] {
            ids.insert(token.as_bytes().into(), id);
        }
        Merges::new(&ids)
    }

    #[test]
    fn the_smallest_union_goes_first_and_the_leftmost_among_equals() {
        let merges = merges();
        for (text, want) in [
            ("abc", vec![258]),
            ("bcab", vec![257, 256]),
            ("aaa", vec![259, 97]),
            ("aab", vec![97, 256]),
            ("x", vec![120]),
        ] {
            let (mut short, mut long) = (Vec::new(), Vec::new());
            merges.encode_short(text.as_bytes(), &mut short);
            merges.encode_long(text.as_bytes(), &mut long);
            assert_eq!(short, want, "{text}");
            assert_eq!(long, want, "{text}");
        }
    }

    #[test]
    fn both_ways_agree_on_every_short_word_of_three_letters() {
        let merges = merges();
        for length in 1..=8u32 {
            for word in 0..3usize.pow(length) {
                let piece: Vec<u8> = (0..length).map(|i| b'a' + (word / 3usize.pow(i) % 3) as u8).collect();
                let (mut short, mut long) = (Vec::new(), Vec::new());
                merges.encode_short(&piece, &mut short);
                merges.encode_long(&piece, &mut long);
                assert_eq!(short, long, "{piece:?}");
            }
        }
    }
}
