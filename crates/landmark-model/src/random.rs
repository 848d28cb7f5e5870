//! Every random draw of a run, addressed instead of remembered.
//!
//! A draw is named by the run's seed, what it is for, the step and the micro-batch, and the name alone yields
//! its generator: nothing has to be saved with a checkpoint but the step number, a resumed run draws what the
//! uninterrupted one would have drawn, and adding one kind of draw never shifts another. ChaCha makes this
//! cheap, being a function of (key, stream, position): seed and purpose form the key, the step picks the
//! stream, the micro-batch the position. Rejected: one generator whose state is saved, which ties the order
//! of draws to the order of the code.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// What a draw is for. Each purpose has its own key, so that the draws of one tell nothing about another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Initial weights.
    Weights,
    /// Initial weights of low-rank adapters.
    Adapters,
    /// Where the windows of a training batch start.
    TrainBatch,
    /// Where the windows of the evaluation during training start.
    EvalBatch,
    /// Dropout, group dropout and gated landmarks.
    Dropout,
    /// Random jumps of positions after landmarks (`pos_jump_on_mem`).
    PositionJumps,
    /// Choosing generated tokens.
    Sampling,
    /// Text made up by rule for the demonstration.
    Corpus,
}

impl Purpose {
    /// Eight bytes of the key. Changing one changes every run of that kind.
    fn tag(self) -> [u8; 8] {
        *match self {
            Purpose::Weights => b"weights ",
            Purpose::Adapters => b"adapters",
            Purpose::TrainBatch => b"train   ",
            Purpose::EvalBatch => b"eval    ",
            Purpose::Dropout => b"dropout ",
            Purpose::PositionJumps => b"jumps   ",
            Purpose::Sampling => b"sampling",
            Purpose::Corpus => b"corpus  ",
        }
    }
}

/// The generator for one purpose at one step and micro-batch of a run. Draws of different `micro` overlap
/// only after 2³² words (16 GiB) each.
pub fn generator(seed: u64, purpose: Purpose, step: u64, micro: u32) -> ChaCha8Rng {
    let mut key = *b"seed....purpose.landmark draws 1";
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&purpose.tag());
    let mut generator = ChaCha8Rng::from_seed(key);
    generator.set_stream(step);
    generator.set_word_pos(u128::from(micro) << 32);
    generator
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn every_part_of_the_name_matters() {
        let first = |seed, purpose, step, micro| generator(seed, purpose, step, micro).next_u64();
        let draws = [
            first(2, Purpose::TrainBatch, 5, 1),
            first(3, Purpose::TrainBatch, 5, 1),
            first(2, Purpose::EvalBatch, 5, 1),
            first(2, Purpose::TrainBatch, 6, 1),
            first(2, Purpose::TrainBatch, 5, 2),
        ];
        assert_eq!(draws[0], first(2, Purpose::TrainBatch, 5, 1));
        for i in 0..draws.len() {
            for j in 0..i {
                assert_ne!(draws[i], draws[j], "draws {i} and {j}");
            }
        }
    }

    #[test]
    fn micro_batches_do_not_continue_each_other() {
        let mut first = generator(2, Purpose::TrainBatch, 0, 0);
        let start_of_second = generator(2, Purpose::TrainBatch, 0, 1).next_u64();
        assert!((0..10_000).all(|_| first.next_u64() != start_of_second));
    }
}
