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

#![forbid(unsafe_code)]

mod contain;
pub mod corpus;
pub mod dataset;
pub mod demo;
mod error;
mod gpt2;
mod hash;
pub mod packed;
pub mod prepare;
mod sentencepiece;
pub mod stream;
pub mod tokenizer;
pub mod tokenizer_folder;
pub mod vocabulary;

pub use corpus::Corpus;
pub use dataset::{DatasetInfo, Split, SplitInfo, TokenType};
pub use demo::generate_demo_corpus;
pub use error::{Error, Result};
pub use prepare::{PrepareOptions, Progress, Summary, prepare};
pub use stream::TokenStream;
pub use tokenizer::{StreamDecoder, Tokenizer, TokenizerInfo};
pub use vocabulary::learn_vocabulary;
