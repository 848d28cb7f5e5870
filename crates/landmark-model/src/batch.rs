//! Batches of windows over a token stream, for training and for evaluation.
//!
//! **Training** takes windows at uniformly random offsets of the landmark-laden stream, so the rows of one
//! batch meet their landmarks at different phases. The target of a position is the next token, or the one
//! after it where the next is a landmark; where the input is a landmark or `<|endoftext|>` there is no loss.
//! Offsets are drawn anew for each (seed, step, micro-batch), see [`crate::random`].
//!
//! **Evaluation** cuts the stream into consecutive rows and asks for the next token everywhere. The last
//! start is always left out, though its row may be whole: the released program does so, and its figures are
//! the ones to meet. A random subset is chosen with NumPy's legacy generator, so that the same seed means the
//! same subset.

use rand::{Rng, RngExt};
use rand_mt::Mt;

use crate::random::{Purpose, generator};
use crate::tokens::{Laden, Tokens};

/// The target that asks for no loss.
pub const NO_LOSS: i32 = -1;

/// `<|endoftext|>` of GPT-2's vocabulary: it ends every document, and nothing is to be predicted from it.
pub const END_OF_TEXT: u32 = 50256;

/// Rows of tokens and what each position shall predict.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Batch {
    /// Rows.
    pub batch: usize,
    /// Tokens of a row.
    pub length: usize,
    /// Inputs, `(batch, length)`.
    pub tokens: Vec<u32>,
    /// What to predict, `(batch, length)`; [`NO_LOSS`] for nothing.
    pub targets: Vec<i32>,
    /// For each row, where its first token lies in its block, `(batch)`: position j of a row is a landmark if
    /// and only if `(j + phase) % block == block - 1`. All 0 in a stream without landmarks.
    pub phases: Vec<u32>,
}

impl Batch {
    /// The columns from `start` up to `end` (clipped to the row), as a batch of its own: one chunk of longer
    /// rows. `block` is the block length of the stream, which moves the phases along.
    pub fn columns(&self, start: usize, end: usize, block: Option<usize>) -> Batch {
        let end = end.min(self.length);
        let start = start.min(end);
        let rows = (0..self.batch).map(|row| row * self.length + start..row * self.length + end);
        let moved = |&phase: &u32| block.map_or(phase, |block| ((phase as usize + start) % block) as u32);
        Batch {
            batch: self.batch,
            length: end - start,
            tokens: rows.clone().flat_map(|row| self.tokens[row].iter().copied()).collect(),
            targets: rows.flat_map(|row| self.targets[row].iter().copied()).collect(),
            phases: self.phases.iter().map(moved).collect(),
        }
    }
}

/// Where the batches of training come from.
pub trait Batches {
    /// The batch of `rows` rows for one micro-batch of one step: a function of these numbers, and of nothing else.
    fn train_batch(&self, seed: u64, step: u64, micro: u32, rows: usize) -> Batch;

    /// Positions of a block, its landmark included; `None` without landmarks.
    fn block(&self) -> Option<usize>;

    /// Id of the landmark.
    fn landmark(&self) -> u32;
}

impl<T: Tokens> Batches for Windows<T> {
    fn train_batch(&self, seed: u64, step: u64, micro: u32, rows: usize) -> Batch {
        self.batch(seed, Purpose::TrainBatch, step, micro, rows)
    }

    fn block(&self) -> Option<usize> {
        self.stream.block()
    }

    fn landmark(&self) -> u32 {
        self.stream.landmark()
    }
}

/// A stream from which the batches asked for cannot be drawn.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BatchError {
    /// Not one window fits.
    #[error(
        "the stream has {tokens} tokens (landmarks included), a window of {length} needs at least {needed}; \
         prepare more text or shorten the window"
    )]
    TooShort {
        /// Tokens of the landmark-laden stream.
        tokens: usize,
        /// Tokens of a window.
        length: usize,
        /// The fewest tokens that would do.
        needed: usize,
    },
    /// Windows or batches of nothing.
    #[error("{0} is 0; it must be at least 1")]
    Zero(&'static str),
    /// A subset larger than the set.
    #[error(
        "a sample of {wanted} rows (--eval-sample-size / --eval-seq-length) is asked for, the stream has {rows}; \
         lower --eval-sample-size, or give None for all rows"
    )]
    SampleTooLarge {
        /// Rows asked for.
        wanted: usize,
        /// Rows there are.
        rows: usize,
    },
    /// A subset without a row.
    #[error(
        "a sample of {sample} tokens holds no row of {length}; raise --eval-sample-size to at least one row"
    )]
    SampleTooSmall {
        /// Tokens asked for.
        sample: usize,
        /// Tokens of a row.
        length: usize,
    },
    /// NumPy's generator has 32-bit seeds.
    #[error(
        "seed {0} does not fit in 32 bits, which choosing a random subset of the rows needs; lower --seed"
    )]
    Seed(u64),
}

/// Windows at random offsets of a stream.
#[derive(Clone, Debug)]
pub struct Windows<T> {
    stream: Laden<T>,
    length: usize,
    end_of_text: u32,
}

impl<T: Tokens> Windows<T> {
    /// Windows of `length` tokens of `stream`; nothing is predicted from `end_of_text` (usually
    /// [`END_OF_TEXT`]).
    ///
    /// # Errors
    /// If `stream` is too short for one window and its targets: two tokens more than the window.
    pub fn new(stream: Laden<T>, length: usize, end_of_text: u32) -> Result<Self, BatchError> {
        if length == 0 {
            return Err(BatchError::Zero("the sequence length"));
        }
        let needed = length.saturating_add(2);
        if stream.len() < needed {
            return Err(BatchError::TooShort { tokens: stream.len(), length, needed });
        }
        Ok(Windows { stream, length, end_of_text })
    }

    /// The stream, landmarks in place.
    pub fn stream(&self) -> &Laden<T> {
        &self.stream
    }

    /// How many starts there are to choose from; they begin at 0.
    pub fn starts(&self) -> usize {
        self.stream.len() - self.length - 1
    }

    /// The batch of `rows` windows for one micro-batch of one step.
    pub fn batch(&self, seed: u64, purpose: Purpose, step: u64, micro: u32, rows: usize) -> Batch {
        self.draw(&mut generator(seed, purpose, step, micro), rows)
    }

    /// A batch of `rows` windows, their starts drawn uniformly and independently.
    pub fn draw(&self, random: &mut impl Rng, rows: usize) -> Batch {
        let starts: Vec<usize> =
            (0..rows).map(|_| random.random_range(0..self.starts() as u64) as usize).collect();
        self.at(&starts)
    }

    /// The windows that begin at `starts`.
    ///
    /// # Panics
    /// If one of them is not below [`starts`](Windows::starts).
    pub fn at(&self, starts: &[usize]) -> Batch {
        let mut batch = empty(starts.len(), self.length);
        let mut row = vec![0; self.length + 2]; // inputs, and up to two tokens further for the last target
        for &start in starts {
            self.stream.read(start, &mut row);
            batch.tokens.extend_from_slice(&row[..self.length]);
            batch.targets.extend(row.windows(3).map(|next| self.target(next[0], next[1], next[2])));
            batch.phases.push(self.stream.phase(start) as u32);
        }
        batch
    }

    /// What input `token` shall predict, given the two tokens that follow it.
    fn target(&self, token: u32, next: u32, after: u32) -> i32 {
        if token == self.stream.landmark() || token == self.end_of_text {
            NO_LOSS
        } else if next == self.stream.landmark() {
            as_target(after)
        } else {
            as_target(next)
        }
    }
}

/// Consecutive rows of a stream, all or a random subset, for evaluation.
#[derive(Clone, Debug)]
pub struct EvalRows<T> {
    stream: Laden<T>,
    length: usize,
    starts: Vec<usize>,
}

/// A random subset of the rows: about how many tokens it holds, and the seed of the choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Tokens; the subset has `tokens / length` rows.
    pub tokens: usize,
    /// Seed of NumPy's generator, below 2³².
    pub seed: u64,
}

impl<T: Tokens> EvalRows<T> {
    /// Rows of `length` tokens of `stream`, in order, or in random order a `sample` of them.
    ///
    /// # Errors
    /// If there is not one row (the last start never counts), or the sample is larger than the set or empty.
    pub fn new(stream: Laden<T>, length: usize, sample: Option<Sample>) -> Result<Self, BatchError> {
        if length == 0 {
            return Err(BatchError::Zero("the evaluation length (--eval-seq-length)"));
        }
        let tokens = stream.len();
        let rows = tokens.div_ceil(length).saturating_sub(1);
        if rows == 0 {
            return Err(BatchError::TooShort { tokens, length, needed: length.saturating_add(1) });
        }
        let mut starts: Vec<usize> = (0..rows).map(|row| row * length).collect();
        if let Some(sample) = sample {
            let wanted = sample.tokens / length;
            if wanted > rows {
                return Err(BatchError::SampleTooLarge { wanted, rows });
            }
            if wanted == 0 {
                return Err(BatchError::SampleTooSmall { sample: sample.tokens, length });
            }
            let seed = u32::try_from(sample.seed).map_err(|_| BatchError::Seed(sample.seed))?;
            shuffle_like_numpy(&mut starts, seed);
            starts.truncate(wanted);
        }
        Ok(EvalRows { stream, length, starts })
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.starts.len()
    }

    /// The rows in batches of `batch_size` (at least 1); the last batch may be smaller.
    pub fn batches(&self, batch_size: usize) -> impl ExactSizeIterator<Item = Batch> + '_ {
        self.starts.chunks(batch_size.max(1)).map(|starts| self.at(starts))
    }

    fn at(&self, starts: &[usize]) -> Batch {
        let mut batch = empty(starts.len(), self.length);
        let mut row = vec![0; self.length + 1];
        for &start in starts {
            self.stream.read(start, &mut row);
            batch.tokens.extend_from_slice(&row[..self.length]);
            batch.targets.extend(row[1..].iter().map(|&next| as_target(next)));
            batch.phases.push(self.stream.phase(start) as u32);
        }
        batch
    }
}

/// A batch with room for `rows` rows and none in it.
fn empty(rows: usize, length: usize) -> Batch {
    Batch {
        batch: rows,
        length,
        tokens: Vec::with_capacity(rows * length),
        targets: Vec::with_capacity(rows * length),
        phases: Vec::with_capacity(rows),
    }
}

/// A token as a target. An id beyond any vocabulary stays beyond it, instead of turning into [`NO_LOSS`].
fn as_target(token: u32) -> i32 {
    i32::try_from(token).unwrap_or(i32::MAX)
}

/// `numpy.random.seed(seed)` followed by the permutation inside `numpy.random.choice(..., replace=False)`:
/// Fisher-Yates from the end, each index a 32-bit draw masked to the next power of two and drawn again if too
/// large.
fn shuffle_like_numpy<E>(items: &mut [E], seed: u32) {
    let mut random = Mt::new(seed);
    for last in (1..items.len()).rev() {
        let mask = (last as u64 + 1).next_power_of_two() - 1;
        let chosen = loop {
            // NumPy takes two words for indices beyond 32 bits.
            let word = if mask > u64::from(u32::MAX) {
                u64::from(random.next_u32()) << 32 | u64::from(random.next_u32())
            } else {
                u64::from(random.next_u32())
            };
            if word & mask <= last as u64 {
                break (word & mask) as usize;
            }
        };
        items.swap(last, chosen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroUsize;

    const LANDMARK: u32 = 100;

    fn laden(plain: &[u32], mem_freq: usize) -> Laden<&[u32]> {
        Laden::new(plain, NonZeroUsize::new(mem_freq), LANDMARK)
    }

    /// A stream of 3-token blocks with an end of text in it, worked by hand.
    #[test]
    fn targets_step_over_landmarks() {
        let plain = [1, 2, 3, 4, END_OF_TEXT, 6, 7, 8];
        // laden: 1 2 L 3 4 L E 6 L 7 8 L
        let windows = Windows::new(laden(&plain, 2), 7, END_OF_TEXT).unwrap();
        assert_eq!(windows.starts(), 4);
        let batch = windows.at(&[0, 1, 3]);
        let (l, e) = (LANDMARK, END_OF_TEXT);
        assert_eq!(batch.tokens, [1, 2, l, 3, 4, l, e, 2, l, 3, 4, l, e, 6, 3, 4, l, e, 6, l, 7]);
        let end = e as i32;
        assert_eq!(
            batch.targets,
            [2, 3, -1, 4, end, -1, -1, 3, -1, 4, end, -1, -1, 7, 4, end, -1, -1, 7, -1, 8]
        );
        assert_eq!(batch.phases, [0, 1, 0]);
    }

    #[test]
    fn phases_tell_where_the_landmarks_are() {
        let plain: Vec<u32> = (0..90).collect();
        let windows = Windows::new(laden(&plain, 7), 30, END_OF_TEXT).unwrap();
        let batch = windows.batch(1, Purpose::TrainBatch, 0, 0, 64);
        for (row, &phase) in batch.phases.iter().enumerate() {
            for j in 0..30 {
                let is_landmark = batch.tokens[row * 30 + j] == LANDMARK;
                assert_eq!(is_landmark, (j + phase as usize) % 8 == 7, "row {row} position {j}");
            }
        }
        let chunk = batch.columns(13, 99, Some(8));
        assert_eq!(chunk.length, 17);
        for (row, &phase) in chunk.phases.iter().enumerate() {
            assert_eq!(chunk.tokens[row * 17..][..17], batch.tokens[row * 30 + 13..][..17]);
            assert_eq!(chunk.targets[row * 17 + 16], batch.targets[row * 30 + 29]);
            for j in 0..17 {
                assert_eq!(chunk.tokens[row * 17 + j] == LANDMARK, (j + phase as usize) % 8 == 7);
            }
        }
    }

    /// All offsets occur, about equally often, and none else (each of 10 expected 1000 ± 30 times).
    #[test]
    fn offsets_are_uniform() {
        let plain: Vec<u32> = (0..14).collect();
        let windows = Windows::new(laden(&plain, 0), 3, END_OF_TEXT).unwrap();
        assert_eq!(windows.starts(), 10);
        let batch = windows.batch(7, Purpose::TrainBatch, 0, 0, 10_000);
        let mut counts = [0; 10];
        batch.tokens.chunks(3).for_each(|row| counts[row[0] as usize] += 1);
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_batch_depends_on_its_name_alone() {
        let plain: Vec<u32> = (0..5000).collect();
        let windows = Windows::new(laden(&plain, 50), 64, END_OF_TEXT).unwrap();
        let batch = |step, micro| windows.batch(2, Purpose::TrainBatch, step, micro, 4);
        assert_eq!(batch(3, 1), batch(3, 1));
        assert_ne!(batch(3, 1), batch(3, 0));
        assert_ne!(batch(3, 1), batch(2, 1));
        assert_eq!(batch(3, 1).phases.len(), 4);
    }

    #[test]
    fn short_streams_are_refused() {
        let plain = [1, 2, 3, 4, 5];
        assert_eq!(Windows::new(laden(&plain, 0), 3, END_OF_TEXT).unwrap().starts(), 1);
        let error = Windows::new(laden(&plain, 0), 4, END_OF_TEXT).unwrap_err();
        assert_eq!(error, BatchError::TooShort { tokens: 5, length: 4, needed: 6 });
        assert!(Windows::new(laden(&plain, 0), 0, END_OF_TEXT).is_err());
        assert!(Windows::new(laden(&plain, 0), usize::MAX, END_OF_TEXT).is_err());
        assert_eq!(EvalRows::new(laden(&plain, 0), 4, None).unwrap().rows(), 1);
        assert!(EvalRows::new(laden(&plain, 0), 5, None).is_err());
        assert!(EvalRows::new(laden(&[], 0), 5, None).is_err());
    }

    #[test]
    fn evaluation_reads_rows_in_order_and_drops_the_last_start() {
        let plain: Vec<u32> = (0..25).collect();
        let rows = EvalRows::new(laden(&plain, 0), 4, None).unwrap();
        let batches: Vec<Batch> = rows.batches(4).collect();
        assert_eq!(batches.iter().map(|batch| batch.batch).collect::<Vec<_>>(), [4, 2]);
        assert_eq!(batches[1].tokens, [16, 17, 18, 19, 20, 21, 22, 23]);
        assert_eq!(batches[1].targets, [17, 18, 19, 20, 21, 22, 23, 24]);
        // A stream of whole rows loses its last one.
        assert_eq!(EvalRows::new(laden(&plain[..24], 0), 4, None).unwrap().rows(), 5);
    }

    /// Landmarks in the stream count as tokens and are predicted like any other.
    #[test]
    fn evaluation_of_a_laden_stream_keeps_landmarks() {
        let plain = [1, 2, 3, 4, 5, 6];
        let rows = EvalRows::new(laden(&plain, 2), 4, None).unwrap(); // 1 2 L 3 | 4 L 5 6 | L
        let batch = rows.batches(8).next().unwrap();
        assert_eq!(batch.targets, [2, 100, 3, 4, 100, 5, 6, 100]);
        assert_eq!(batch.phases, [0, 1]);
    }

    /// The values of `numpy.random.seed(s); numpy.random.choice(list(range(n)), size=k, replace=False)`.
    #[test]
    fn samples_are_those_of_numpy() {
        let cases: [(u32, usize, &[usize]); 4] = [
            (2, 10, &[4, 1, 5, 0, 7, 2, 3, 6, 9, 8]),
            (2, 100, &[83, 30, 56, 24, 16, 23, 2]),
            (1234, 1000, &[681, 990, 155, 768, 438]),
            (0, 70_000, &[10840, 56267, 14849, 62726, 47180, 61640]),
        ];
        for (seed, count, expected) in cases {
            let mut items: Vec<usize> = (0..count).collect();
            shuffle_like_numpy(&mut items, seed);
            assert_eq!(items[..expected.len()], *expected, "seed {seed} of {count}");
        }
        let plain: Vec<u32> = (0..5000).collect();
        let sample = |tokens| EvalRows::new(laden(&plain, 0), 24, Some(Sample { tokens, seed: 2 }));
        let rows = sample(600).unwrap();
        assert_eq!(rows.rows(), 25);
        assert_eq!(rows.starts[..5], [3696, 4608, 3240, 240, 312]);
        assert_eq!(sample(5000).unwrap().rows(), 208);
        assert_eq!(sample(5016).unwrap_err(), BatchError::SampleTooLarge { wanted: 209, rows: 208 });
        assert!(sample(23).is_err());
    }
}
