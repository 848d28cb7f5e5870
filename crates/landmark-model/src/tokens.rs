//! Token streams, and the view of a stream with its landmarks in place.
//!
//! A prepared corpus holds ordinary tokens only. Landmarks are regular (one after every `mem_freq` ordinary
//! tokens), so the stream that holds them need not exist: [`Laden`] answers each read by arithmetic on
//! indices. One prepared file then serves every `mem_freq`, and changing it costs nothing. Rejected: writing
//! the laden stream to disk, as the released program does, which takes a second copy of the corpus for every
//! block length.

use std::num::NonZeroUsize;

/// A stream of token ids with random access.
pub trait Tokens {
    /// Tokens in the stream.
    fn len(&self) -> usize;

    /// Fills `out` with the tokens from `start` on.
    ///
    /// # Panics
    /// If `start + out.len()` exceeds [`len`](Tokens::len): readers check their windows first.
    fn read(&self, start: usize, out: &mut [u32]);

    /// Whether there are no tokens.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Tokens for [u16] {
    fn len(&self) -> usize {
        <[u16]>::len(self)
    }

    fn read(&self, start: usize, out: &mut [u32]) {
        let from = &self[start..start + out.len()];
        for (to, &from) in out.iter_mut().zip(from) {
            *to = u32::from(from);
        }
    }
}

impl Tokens for [u32] {
    fn len(&self) -> usize {
        <[u32]>::len(self)
    }

    fn read(&self, start: usize, out: &mut [u32]) {
        out.copy_from_slice(&self[start..start + out.len()]);
    }
}

impl<T: Tokens + ?Sized> Tokens for &T {
    fn len(&self) -> usize {
        (**self).len()
    }

    fn read(&self, start: usize, out: &mut [u32]) {
        (**self).read(start, out);
    }
}

impl<T: Tokens + ?Sized> Tokens for Box<T> {
    fn len(&self) -> usize {
        (**self).len()
    }

    fn read(&self, start: usize, out: &mut [u32]) {
        (**self).read(start, out);
    }
}

/// Bytes (of a file, or a mapped one) that are little-endian u16 token ids: the layout of a prepared `.bin`.
#[derive(Clone, Debug)]
pub struct LittleEndianU16<B>(B);

/// The bytes of a token stream end inside a token.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error(
    "a stream of 16-bit tokens has an even number of bytes, this one has {0}; it is cut short or not a .bin"
)]
pub struct OddLength(pub usize);

impl<B: AsRef<[u8]>> LittleEndianU16<B> {
    /// Reads `bytes` as tokens.
    ///
    /// # Errors
    /// If the last token is cut in half.
    pub fn new(bytes: B) -> Result<Self, OddLength> {
        match bytes.as_ref().len() {
            length if length % 2 == 0 => Ok(LittleEndianU16(bytes)),
            length => Err(OddLength(length)),
        }
    }
}

impl<B: AsRef<[u8]>> Tokens for LittleEndianU16<B> {
    fn len(&self) -> usize {
        self.0.as_ref().len() / 2
    }

    fn read(&self, start: usize, out: &mut [u32]) {
        let bytes = &self.0.as_ref()[2 * start..2 * (start + out.len())];
        for (to, from) in out.iter_mut().zip(bytes.chunks_exact(2)) {
            *to = u32::from(u16::from_le_bytes([from[0], from[1]]));
        }
    }
}

/// A stream seen with one landmark after every `mem_freq` of its tokens; a last block that is not full has
/// none. Without a `mem_freq`, the stream itself.
#[derive(Clone, Debug)]
pub struct Laden<T> {
    plain: T,
    mem_freq: Option<NonZeroUsize>,
    landmark: u32,
}

impl<T: Tokens> Laden<T> {
    /// `plain` with token `landmark` after every `mem_freq` tokens.
    pub fn new(plain: T, mem_freq: Option<NonZeroUsize>, landmark: u32) -> Self {
        Laden { plain, mem_freq, landmark }
    }

    /// Positions of a block, its landmark included; `None` without landmarks.
    pub fn block(&self) -> Option<usize> {
        self.mem_freq.map(|freq| freq.get().saturating_add(1))
    }

    /// The token that marks the end of a block.
    pub fn landmark(&self) -> u32 {
        self.landmark
    }

    /// Where position `start` lies in its block: the phase of a window that starts there. 0 without
    /// landmarks.
    pub fn phase(&self, start: usize) -> usize {
        self.block().map_or(0, |block| start % block)
    }
}

impl<T: Tokens> Tokens for Laden<T> {
    fn len(&self) -> usize {
        let plain = self.plain.len();
        plain + self.mem_freq.map_or(0, |freq| plain / freq)
    }

    fn read(&self, start: usize, out: &mut [u32]) {
        let Some(freq) = self.mem_freq.map(NonZeroUsize::get) else {
            return self.plain.read(start, out);
        };
        assert!(start + out.len() <= self.len(), "a window of {} from {start} on", out.len());
        let (mut block, mut inside) = (start / (freq + 1), start % (freq + 1));
        let mut rest = out;
        while !rest.is_empty() {
            let run = (freq - inside).min(rest.len());
            let (ordinary, after) = rest.split_at_mut(run);
            self.plain.read(block * freq + inside, ordinary);
            if let Some((slot, after)) = after.split_first_mut() {
                *slot = self.landmark;
                rest = after;
            } else {
                rest = &mut [];
            }
            block += 1;
            inside = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The stream that the released preparation would have written.
    fn materialised(plain: &[u32], mem_freq: Option<usize>, landmark: u32) -> Vec<u32> {
        let mut laden = Vec::new();
        for (index, &token) in plain.iter().enumerate() {
            laden.push(token);
            if mem_freq.is_some_and(|freq| index % freq == freq - 1) {
                laden.push(landmark);
            }
        }
        laden
    }

    /// Every window of streams with and without a full last block equals that of the materialised stream.
    #[test]
    fn windows_equal_those_of_a_stream_that_holds_its_landmarks() {
        for length in [0, 1, 2, 3, 6, 7, 8, 13, 14, 15, 23] {
            let plain: Vec<u32> = (0..length).collect();
            for mem_freq in [None, Some(1), Some(2), Some(3), Some(7), Some(23), Some(50)] {
                let laden = Laden::new(&plain[..], mem_freq.and_then(NonZeroUsize::new), 99);
                let expected = materialised(&plain, mem_freq, 99);
                assert_eq!(laden.len(), expected.len(), "length {length} freq {mem_freq:?}");
                for start in 0..=expected.len() {
                    for end in start..=expected.len() {
                        let mut window = vec![u32::MAX; end - start];
                        laden.read(start, &mut window);
                        assert_eq!(window, expected[start..end], "{length} {mem_freq:?} {start}..{end}");
                    }
                }
                if let Some(block) = laden.block() {
                    for (position, &token) in expected.iter().enumerate() {
                        assert_eq!(token == 99, laden.phase(position) == block - 1, "{position}");
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "a window of 1 from 9 on")]
    fn reading_past_the_last_landmark_is_caught() {
        // Eight tokens and one landmark: position 9 would be plain token 8, which does not exist.
        Laden::new(&[0u32; 8][..], NonZeroUsize::new(8), 99).read(9, &mut [0]);
    }

    #[test]
    fn bytes_are_little_endian_and_whole() {
        let tokens = LittleEndianU16::new([0x34, 0x12, 0xff, 0xff]).unwrap();
        let mut out = [0; 2];
        tokens.read(0, &mut out);
        assert_eq!((out, tokens.len()), ([0x1234, 0xffff], 2));
        assert_eq!(LittleEndianU16::new([1, 2, 3]).unwrap_err(), OddLength(3));
    }
}
