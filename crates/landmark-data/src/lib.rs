//! From text corpora to token streams.
