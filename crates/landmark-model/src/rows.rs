//! Batches for fine-tuning: rows cut one after the other from text, each epoch in another random order.
//!
//! A row holds ordinary tokens; landmarks are put in as the row is drawn, in one of two ways ([`Placing`]) that differ in
//! where rows end and in what is predicted, as the released program's two ways do. The order of an epoch is a
//! permutation that is *computed*, element by element, not shuffled and stored: so a row is a function of (seed, step,
//! micro-batch), a run that goes on needs nothing but its step, and a billion rows cost no table.

use crate::batch::{Batch, Batches, NO_LOSS};
use crate::random::{Purpose, generator};
use rand::Rng;

/// How landmarks get into a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placing {
    /// They are tokens of the row, predicted like any other, and what follows a block is predicted at its landmark
    /// (`include_landmark_in_loss = true`). None stands at the end of a row.
    AsTokens,
    /// They are seen by the model only: nothing is predicted at them, and they are never to be predicted
    /// (`include_landmark_in_loss = false`, the way of the fused kernel). Every block has one.
    Inside,
}

/// Rows of tokens, each `length` ordinary ones.
#[derive(Clone, Debug)]
pub struct Rows {
    /// Ordinary tokens, row after row.
    tokens: Vec<u32>,
    length: usize,
    mem_freq: usize,
    landmark: u32,
    padding: Option<u32>,
    placing: Placing,
    micro_batches: u32,
}

/// Rows that cannot be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RowsError {
    /// There is no whole row.
    #[error("the text makes not one row of {length} tokens")]
    None {
        /// Tokens of a row.
        length: usize,
    },
    /// A row of nothing, or blocks of nothing.
    #[error("{0} is 0; it must be at least 1")]
    Zero(&'static str),
    /// Blocks that rows cannot be cut into.
    #[error("a row of {length} tokens is not a whole number of blocks of {mem_freq}")]
    Blocks {
        /// Tokens of a row.
        length: usize,
        /// Ordinary tokens of a block.
        mem_freq: usize,
    },
}

impl Rows {
    /// Cuts `tokens` into rows of `length`; what is left over is dropped. A step takes `micro_batches` micro-batches.
    /// The token `padding` is never predicted.
    ///
    /// # Errors
    /// If there is no row, or for [`Placing::Inside`] a row is no whole number of blocks.
    pub fn new(
        mut tokens: Vec<u32>,
        length: usize,
        mem_freq: usize,
        landmark: u32,
        padding: Option<u32>,
        placing: Placing,
        micro_batches: u32,
    ) -> Result<Rows, RowsError> {
        for (name, value) in [("the length of a row", length), ("the length of a block", mem_freq)] {
            if value == 0 {
                return Err(RowsError::Zero(name));
            }
        }
        if placing == Placing::Inside && !length.is_multiple_of(mem_freq) {
            return Err(RowsError::Blocks { length, mem_freq });
        }
        tokens.truncate(tokens.len() / length * length);
        if tokens.is_empty() {
            return Err(RowsError::None { length });
        }
        Ok(Rows { tokens, length, mem_freq, landmark, padding, placing, micro_batches })
    }

    /// How many rows there are.
    pub fn count(&self) -> usize {
        self.tokens.len() / self.length
    }

    /// Positions of a row, landmarks included.
    pub fn laden_length(&self) -> usize {
        laden_length(self.length, self.mem_freq, self.placing)
    }

    /// Steps of one pass over the rows, at `rows` a micro-batch: those that fill no whole step are left out, and the
    /// next epoch leaves out others. At least 1.
    pub fn steps_per_epoch(&self, rows: usize) -> u64 {
        (self.count() as u64 / (rows as u64 * u64::from(self.micro_batches))).max(1)
    }

    /// Row `index` with its landmarks, and what is to be predicted at each position.
    pub fn row(&self, index: usize) -> (Vec<u32>, Vec<i32>) {
        let ordinary = &self.tokens[index * self.length..][..self.length];
        let mut tokens = Vec::with_capacity(self.laden_length());
        for block in ordinary.chunks(self.mem_freq) {
            tokens.extend_from_slice(block);
            if tokens.len() < self.laden_length() {
                tokens.push(self.landmark);
            }
        }
        let targets = match self.placing {
            Placing::AsTokens => {
                tokens.iter().skip(1).map(|&next| self.target(next)).chain([NO_LOSS]).collect()
            }
            Placing::Inside => self.targets_around_landmarks(ordinary),
        };
        (tokens, targets)
    }

    /// The next ordinary token at each ordinary one, nothing at landmarks.
    fn targets_around_landmarks(&self, ordinary: &[u32]) -> Vec<i32> {
        let next = ordinary.iter().skip(1).map(|&next| self.target(next)).chain([NO_LOSS]);
        let next: Vec<i32> = next.collect();
        next.chunks(self.mem_freq).flat_map(|block| block.iter().copied().chain([NO_LOSS])).collect()
    }

    fn target(&self, next: u32) -> i32 {
        if Some(next) == self.padding { NO_LOSS } else { i32::try_from(next).unwrap_or(NO_LOSS) }
    }
}

/// Positions of a row of `length` ordinary tokens, landmarks included.
pub fn laden_length(length: usize, mem_freq: usize, placing: Placing) -> usize {
    match placing {
        Placing::AsTokens => length + (length - 1) / mem_freq,
        Placing::Inside => length + length / mem_freq,
    }
}

impl Batches for Rows {
    fn train_batch(&self, seed: u64, step: u64, micro: u32, rows: usize) -> Batch {
        let length = self.laden_length();
        let per_epoch = self.steps_per_epoch(rows);
        let (epoch, step) = (step / per_epoch, step % per_epoch);
        let mut batch = Batch { batch: rows, length, phases: vec![0; rows], ..Batch::default() };
        for row in 0..rows as u64 {
            let place = (step * u64::from(self.micro_batches) + u64::from(micro)) * rows as u64 + row;
            // Fewer rows than a step takes: some come twice.
            let place = place % self.count() as u64;
            let (tokens, targets) = self.row(permuted(place, self.count() as u64, seed, epoch) as usize);
            batch.tokens.extend(tokens);
            batch.targets.extend(targets);
        }
        batch
    }

    fn block(&self) -> Option<usize> {
        Some(self.mem_freq + 1)
    }

    fn landmark(&self) -> u32 {
        self.landmark
    }
}

/// Place `index` of a random order of `0..count`, another one for each epoch: a Feistel network of six rounds over the
/// smallest even number of bits that holds `count`, walked on until it lands below `count` (on average less than
/// four times).
fn permuted(index: u64, count: u64, seed: u64, epoch: u64) -> u64 {
    let half = (u64::BITS - (count - 1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1_u64 << half) - 1;
    let mut random = generator(seed, Purpose::TrainBatch, epoch, 0);
    let keys: [u64; 6] = std::array::from_fn(|_| random.next_u64());
    let mut at = index;
    loop {
        let (mut left, mut right) = (at >> half, at & mask);
        for key in keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        at = left << half | right;
        if at < count {
            return at;
        }
    }
}

/// A scramble of 64 bits (the finaliser of SplitMix64).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAD: u32 = 90;
    const MEM: u32 = 91;

    fn rows(tokens: impl IntoIterator<Item = u32>, length: usize, placing: Placing) -> Rows {
        Rows::new(tokens.into_iter().collect(), length, 2, MEM, Some(PAD), placing, 2).unwrap()
    }

    /// Worked by hand: after every second token where more follow, and not at the end.
    #[test]
    fn landmarks_as_tokens_are_predicted_and_predict() {
        let five = rows([1, 2, 3, 4, 5], 5, Placing::AsTokens);
        assert_eq!(five.row(0), (vec![1, 2, MEM, 3, 4, MEM, 5], vec![2, 91, 3, 4, 91, 5, -1]));
        let four = rows([1, 2, 3, 4], 4, Placing::AsTokens);
        assert_eq!(four.row(0), (vec![1, 2, MEM, 3, 4], vec![2, 91, 3, 4, -1]));
    }

    /// Padding is not predicted, but a landmark inside it is, as released.
    #[test]
    fn padding_is_not_predicted() {
        let padded = rows([1, 2, PAD, PAD, PAD, PAD], 6, Placing::AsTokens);
        let (tokens, targets) = padded.row(0);
        assert_eq!(tokens, [1, 2, MEM, PAD, PAD, MEM, PAD, PAD]);
        assert_eq!(targets, [2, 91, -1, -1, 91, -1, -1, -1]);
        let inside = rows([1, 2, 3, PAD], 4, Placing::Inside);
        assert_eq!(inside.row(0), (vec![1, 2, MEM, 3, PAD, MEM], vec![2, 3, -1, -1, -1, -1]));
    }

    #[test]
    fn landmarks_inside_are_neither_predicted_nor_asked() {
        let inside = rows([1, 2, 3, 4, 5, 6, 7, 8], 4, Placing::Inside);
        assert_eq!(inside.count(), 2);
        assert_eq!(inside.row(1), (vec![5, 6, MEM, 7, 8, MEM], vec![6, 7, -1, 8, -1, -1]));
        let error = Rows::new(vec![1; 9], 3, 2, MEM, None, Placing::Inside, 1).unwrap_err();
        assert_eq!(error, RowsError::Blocks { length: 3, mem_freq: 2 });
        let none = Rows::new(vec![1; 9], 10, 2, MEM, None, Placing::AsTokens, 1).unwrap_err();
        assert_eq!(none, RowsError::None { length: 10 });
    }

    #[test]
    fn lengths_are_those_of_the_rows() {
        for placing in [Placing::AsTokens, Placing::Inside] {
            for length in [2, 4, 6] {
                let rows = rows(0..24, length, placing);
                let (tokens, targets) = rows.row(1);
                assert_eq!((tokens.len(), targets.len()), (rows.laden_length(), rows.laden_length()));
            }
        }
        assert_eq!(laden_length(512, 63, Placing::AsTokens), 520);
        assert_eq!(laden_length(504, 63, Placing::Inside), 512);
    }

    #[test]
    fn an_order_holds_every_row_once() {
        for count in [1, 2, 3, 5, 16, 17, 1000] {
            for epoch in 0..3 {
                let mut seen: Vec<u64> = (0..count).map(|i| permuted(i, count, 7, epoch)).collect();
                seen.sort_unstable();
                assert_eq!(seen, (0..count).collect::<Vec<_>>(), "{count} rows, epoch {epoch}");
            }
        }
        let order = |seed, epoch| (0..50).map(|i| permuted(i, 50, seed, epoch)).collect::<Vec<_>>();
        assert_ne!(order(7, 0), order(7, 1));
        assert_ne!(order(7, 0), order(8, 0));
        assert_ne!(order(7, 0), (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn an_epoch_reads_every_row_once() {
        // 13 rows, 3 a micro-batch, 2 micro-batches a step: 2 steps of 6 rows, one row left out.
        let rows = rows(0..26, 2, Placing::AsTokens);
        assert_eq!((rows.count(), rows.steps_per_epoch(3)), (13, 2));
        let firsts = |steps: std::ops::Range<u64>| {
            let mut firsts = Vec::new();
            for step in steps {
                for micro in 0..2 {
                    let batch = rows.train_batch(5, step, micro, 3);
                    assert_eq!((batch.tokens.len(), batch.targets.len(), batch.length), (6, 6, 2));
                    firsts.extend(batch.tokens.iter().copied().step_by(2));
                }
            }
            firsts
        };
        let (first, second) = (firsts(0..2), firsts(2..4));
        for epoch in [&first, &second] {
            let mut distinct = epoch.clone();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct.len(), 12);
        }
        assert_ne!(first, second);
        // Fewer rows than a step takes.
        let few = super::tests::rows(0..4, 2, Placing::AsTokens);
        assert_eq!(few.steps_per_epoch(3), 1);
        assert_eq!(few.train_batch(5, 0, 1, 3).tokens.len(), 6);
    }
}
