//! Does a model find again what it read long ago?
//!
//! A *probe* hides something in a long text and asks for it. Here are the prompts, made by rule and without a
//! network; the scores; the reports; and a view of what a memory looked up on the way to an answer.
//!
//! | module | what it knows |
//! |---|---|
//! | [`passkey`] | the released program's test: a number in a field of filler |
//! | [`retrieval`] | harder ones after RULER: needles of many kinds, chains of variables, counting words |
//! | [`filler`] | text to hide something in |
//! | [`case`] | one question: its name, its prompt, what is expected, how an answer is scored |
//! | [`lessons`] | texts to learn from: prompts with their answers |
//! | [`run`] | asks an [`Answerer`] all questions of a [`Suite`](case::Suite), but those answered before |
//! | `journal`, `prompts` | answers kept as they come; prompts written for other programs, and their answers |
//! | [`summary`], [`table`], [`csv`], `heatmap` | what came of it: numbers, text, picture |
//! | [`lookup`] | which blocks were fetched for each token of an answer, for a terminal and as a page |
//!
//! No model and no tokenizer is known here: whoever asks implements [`Answerer`]. Tests do so with answerers that know
//! the rule by which the prompts were made, so the code that scores a model is the code that gives them 0 and 100.
//!
//! Every draw is named by seed, task, length, depth and number of the question, so any single one can be made again, and a
//! longer run asks what a shorter one asked. On wasm, what writes files is left out.

#![forbid(unsafe_code)]

pub mod case;
pub mod csv;
mod draw;
mod error;
pub mod filler;
mod fit;
pub mod lessons;
pub mod lookup;
pub mod passkey;
pub mod retrieval;
pub mod run;
pub mod summary;
pub mod table;
#[cfg(test)]
mod testing;

#[cfg(not(target_family = "wasm"))]
pub mod heatmap;
#[cfg(not(target_family = "wasm"))]
pub mod journal;
#[cfg(not(target_family = "wasm"))]
pub mod prompts;

pub use error::{Error, Failure, Result};
pub use run::{Answer, Answerer};
