//! GPT and LLaMA with landmark attention: configuration, weights, memory, training, generation.

#![forbid(unsafe_code)]

pub mod batch;
pub mod config;
pub mod engine;
pub mod evaluate;
pub mod generate;
pub mod huggingface;
pub mod lora;
pub mod memory_reader;
pub mod model;
pub mod preset;
pub mod random;
pub mod reader;
pub mod record;
pub mod released;
pub mod rows;
pub mod sample;
pub mod schedule;
pub mod sweep;
pub mod table;
pub mod tokens;
pub mod train;
pub mod weights;
