//! From text corpora to token streams.
//!
//! Training and evaluation read *token streams*: files of token ids and nothing else, mapped into memory
//! ([`TokenStream`]). [`prepare`](fn@prepare) makes them from a corpus on disk, with a [`Tokenizer`], and leaves a
//! [`DatasetInfo`] beside them; [`generate_demo_corpus`] makes a corpus where there is none.
//!
//! | module | what it knows |
//! |---|---|
//! | [`corpus`] | what corpora look like on disk; lines of JSON |
//! | `gpt2` | GPT-2's encoding: the split into pieces, the merges |
//! | [`tokenizer`] | GPT-2's encoding or a `tokenizer.json`, behind one type |
//! | [`packed`] | documents packed into rows of one length, for fine-tuning |
//! | `sentencepiece` | a SentencePiece `tokenizer.model` as a `tokenizer.json` |
//! | [`tokenizer_folder`] | the tokenizer of a model's folder; one that has grown, written |
//! | [`mod@prepare`] | reading, encoding on all cores, writing |
//! | [`dataset`] | `dataset.json` |
//! | [`stream`] | reading a token stream |
//! | [`demo`] | a corpus by rule |
//!
//! Landmarks are unknown here: streams hold ordinary tokens, so that one stream serves every block length.
//!
//! On wasm there are no paths, and a page has one tokenizer: only `tokenizer.json`, from its bytes, is read there.

#![forbid(unsafe_code)]

mod contain;
#[cfg(not(target_family = "wasm"))]
pub mod corpus;
#[cfg(not(target_family = "wasm"))]
pub mod dataset;
#[cfg(not(target_family = "wasm"))]
pub mod demo;
mod error;
#[cfg(not(target_family = "wasm"))]
mod gpt2;
mod hash;
#[cfg(not(target_family = "wasm"))]
pub mod packed;
#[cfg(not(target_family = "wasm"))]
pub mod prepare;
#[cfg(not(target_family = "wasm"))]
mod sentencepiece;
#[cfg(not(target_family = "wasm"))]
pub mod stream;
pub mod tokenizer;
#[cfg(not(target_family = "wasm"))]
pub mod tokenizer_folder;
#[cfg(not(target_family = "wasm"))]
pub mod vocabulary;

#[cfg(not(target_family = "wasm"))]
pub use corpus::Corpus;
#[cfg(not(target_family = "wasm"))]
pub use dataset::{DatasetInfo, Split, SplitInfo, TokenType};
#[cfg(not(target_family = "wasm"))]
pub use demo::generate_demo_corpus;
pub use error::{Error, Result};
#[cfg(not(target_family = "wasm"))]
pub use prepare::{PrepareOptions, Progress, Summary, prepare};
#[cfg(not(target_family = "wasm"))]
pub use stream::TokenStream;
pub use tokenizer::{StreamDecoder, Tokenizer, TokenizerInfo};
#[cfg(not(target_family = "wasm"))]
pub use vocabulary::learn_vocabulary;
