//! From text corpora to token streams.

#![deny(unsafe_code)]
mod gpt2;
