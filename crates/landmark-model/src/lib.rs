//! GPT and LLaMA with landmark attention: configuration, weights, memory, training, generation.

#![forbid(unsafe_code)]

pub mod batch;
pub mod random;
pub mod sample;
pub mod schedule;
pub mod sweep;
pub mod table;
pub mod tokens;
