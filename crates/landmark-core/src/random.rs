//! Random bits inside programs: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
//! SC 2011), a function of (seed, step, salt, index) with no state.
//!
//! A dropout mask is never stored: the backward pass computes it again, a resumed run draws what it would
//! have drawn, and every backend draws the same bits, since the function is integer arithmetic only. PyTorch
//! and cuRAND use the same generator on GPUs.

/// Where a program's random bits come from: `(seed low, seed high, step, micro-batch)` in a `u32` tensor of
/// four elements, plus a number of the op's own.
pub const SEED_LEN: usize = 4;

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Ten rounds of Philox4x32.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// Random stream of one op in one step.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    key: [u32; 2],
    step: u32,
    salt: u32,
}

impl Stream {
    /// The stream of op `salt` under the seed tensor's four numbers.
    pub fn new(seed: &[u32], salt: u32) -> Self {
        // The micro-batch shares a word with the salt: both stay far below 2^16.
        Stream { key: [seed[0], seed[1]], step: seed[2], salt: salt ^ (seed[3] << 16) }
    }

    /// Random bits of element `index`.
    pub fn bits(&self, index: u64) -> u32 {
        let word = (index & 3) as usize;
        let group = index >> 2;
        philox([group as u32, (group >> 32) as u32, self.step, self.salt], self.key)[word]
    }

    /// Whether element `index` is drawn under probability `p`.
    pub fn draw(&self, index: u64, p: f32) -> bool {
        // 24 bits fit a float exactly, so every backend compares the same numbers.
        ((self.bits(index) >> 8) as f32) * (1.0 / 16_777_216.0) < p
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers published with Random123 (kat_vectors, philox4x32 10).
    #[test]
    fn philox_gives_the_published_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn draws_have_the_asked_frequency_and_differ_between_ops_and_steps() {
        let count =
            |seed: &[u32], salt| (0..100_000).filter(|&i| Stream::new(seed, salt).draw(i, 0.3)).count();
        let hits = count(&[1, 2, 3, 0], 7);
        assert!((29_000..31_000).contains(&hits), "{hits}");
        let bits = |seed: &[u32], salt| Stream::new(seed, salt).bits(5);
        let one = bits(&[1, 2, 3, 0], 7);
        assert!(
            [bits(&[1, 2, 3, 1], 7), bits(&[1, 2, 4, 0], 7), bits(&[1, 2, 3, 0], 8)]
                .iter()
                .all(|&x| x != one)
        );
    }
}
