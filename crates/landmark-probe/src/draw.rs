//! Draws that are named, not remembered.
//!
//! Seed, task, length, depth and number of a question form the key of a ChaCha generator: nothing depends on which
//! questions were asked before. Distributions are written out here in a few lines, so that prompts stay what they are
//! when a library changes its own.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::case::CaseKey;

/// A source of random draws for one question.
#[derive(Clone, Debug)]
pub(crate) struct Draw(ChaCha8Rng);

impl Draw {
    /// The draws of one question. `stream` tells apart draws that must not depend on each other's number: text,
    /// for example, is drawn until it is long enough.
    pub(crate) fn new(seed: u64, case: &CaseKey, stream: u64) -> Draw {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&fnv(case.task.as_bytes()).to_le_bytes());
        key[16..24].copy_from_slice(&(case.length as u64).to_le_bytes());
        let depth = case.depth.map_or(u32::MAX, |depth| (depth * 1e6).round() as u32);
        key[24..28].copy_from_slice(&depth.to_le_bytes());
        key[28..].copy_from_slice(&(case.index as u32).to_le_bytes());
        let mut generator = ChaCha8Rng::from_seed(key);
        generator.set_stream(stream);
        Draw(generator)
    }

    /// A number less than `n`, which is not 0. The bias, n/2^64, is of no account.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.0.next_u64()) * n as u128) >> 64) as usize
    }

    /// A number from `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// A number from 0 up to, but without, 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// One of several.
    pub(crate) fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }

    /// Brings `items` into random order.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }

    /// Letters from `alphabet`, `n` of them.
    pub(crate) fn letters(&mut self, n: usize, alphabet: &[u8]) -> String {
        (0..n).map(|_| char::from(alphabet[self.below(alphabet.len())])).collect()
    }

    /// 32 hexadecimal digits in the groups of a UUID (version 4).
    pub(crate) fn uuid(&mut self) -> String {
        let (high, low) = (self.0.next_u64(), self.0.next_u64());
        let bits = (u128::from(high) << 64 | u128::from(low)) & !(0xf << 76) & !(0x3 << 62);
        let digits = format!("{:032x}", bits | 0x4 << 76 | 0x2 << 62);
        let groups = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
        groups.join("-")
    }
}

/// The 64-bit FNV-1a hash: a task's name as part of a key.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> CaseKey {
        CaseKey { task: "t".into(), length: 10, depth: None, index: 0 }
    }

    #[test]
    fn every_part_of_the_name_matters() {
        let first = |seed, key: &CaseKey, stream| Draw::new(seed, key, stream).below(usize::MAX);
        let reference = first(1, &key(), 0);
        assert_eq!(reference, first(1, &key(), 0));
        let others = [
            first(2, &key(), 0),
            first(1, &key(), 1),
            first(1, &CaseKey { task: "u".into(), ..key() }, 0),
            first(1, &CaseKey { length: 11, ..key() }, 0),
            first(1, &CaseKey { depth: Some(0.5), ..key() }, 0),
            first(1, &CaseKey { index: 1, ..key() }, 0),
        ];
        assert!(!others.contains(&reference));
    }

    #[test]
    fn draws_cover_their_range_and_nothing_else() {
        let mut draw = Draw::new(1, &key(), 0);
        let mut seen = [0; 6];
        for _ in 0..600 {
            seen[draw.between(2, 5)] += 1;
            assert!((0.0..1.0).contains(&draw.unit()));
        }
        assert_eq!(seen[..2], [0, 0]);
        assert!(seen[2..].iter().all(|&n| n > 100), "{seen:?}");
        let mut items: Vec<usize> = (0..50).collect();
        draw.shuffle(&mut items);
        assert!(items.windows(2).any(|pair| pair[0] > pair[1]));
        items.sort_unstable();
        assert!(items.into_iter().eq(0..50));
    }

    #[test]
    fn uuids_look_like_uuids() {
        let uuid = Draw::new(1, &key(), 0).uuid();
        let lengths: Vec<usize> = uuid.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12], "{uuid}");
        assert_eq!(uuid.as_bytes()[14], b'4');
        assert!(b"89ab".contains(&uuid.as_bytes()[19]), "{uuid}");
        // The published test vector of the hash.
        assert_eq!(fnv(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
