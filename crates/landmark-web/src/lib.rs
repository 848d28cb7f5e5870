//! Landmark for a web page.
//!
//! A model is opened from bytes, reads a text of up to 131,072 tokens in chunks, answers questions about it, and tells
//! which blocks of the text it fetched to do so; on WebGPU, or where there is none, on the CPU. The page is in `web/`;
//! this crate is what its worker runs.
//!
//! | module | what it knows |
//! |---|---|
//! | [`files`] | the model's three files |
//! | [`prompt`] | texts with a pass key in them |
//! | [`text`] | a text as tokens and blocks |
//! | [`recall`] | a text in a memory, questions about it; the same without a memory |
//! | [`page`] | what JavaScript calls |
//!
//! All but the last are ordinary Rust and tested as such. With the command line this crate shares every line that
//! computes: what it adds is that nothing blocks.

#![forbid(unsafe_code)]

mod error;
pub mod files;
pub mod page;
pub mod prompt;
pub mod recall;
pub mod text;

pub use error::{Error, Result};
