//! Files that Landmark reads and writes.
//!
//! | module | what it reads or writes |
//! |---|---|
//! | [`safetensors`] | weights and optimiser state, ours and Hugging Face's |
//! | [`quantized`] | ... and how they hold matrices in blocks of 8 or 4 bits |
//! | [`peft`] | low-rank adapters as Hugging Face's PEFT stores them |
//! | [`torch`] | PyTorch checkpoints: `ckpt.pt` of the released program, `pytorch_model-*.bin` shards |
//! | [`folder`] | where a model's files lie: on the disk, or in the program |
//! | [`huggingface`] | folders in Hugging Face's layout: one file of weights or several with their index |
//! | [`events`] | TensorBoard event files |
//! | [`jsonl`] | metrics, one JSON object a line |
//! | [`curve`] | the loss curve as an SVG picture |
//! | [`pages`] | a landmark memory: saved, or in a scratch file |
//! | [`atomic`] | how every whole file gets onto the disk: under a temporary name, synced, renamed |
//!
//! What all of them have in common is a view of input: a file is hostile until parsed. A reader here returns an
//! [`Error`] that names the file and says what to do; it does not panic, does not execute anything that a file
//! asks for, and allocates no more than a small multiple of what the file holds.
//!
//! Big files are memory-mapped ([`bytes`]) and tensors are views into the map ([`tensor`]), so a checkpoint of
//! many gigabytes costs no memory until a tensor of it is converted.
//!
//! On wasm there are no paths: the readers take bytes, and the modules that write are left out.

pub mod bytes;
mod error;
pub mod quantized;
pub mod safetensors;
pub mod tensor;
pub mod torch;

#[cfg(not(target_family = "wasm"))]
pub mod atomic;
#[cfg(not(target_family = "wasm"))]
pub mod curve;
#[cfg(not(target_family = "wasm"))]
pub mod events;
#[cfg(not(target_family = "wasm"))]
pub mod folder;
#[cfg(not(target_family = "wasm"))]
pub mod huggingface;
#[cfg(not(target_family = "wasm"))]
pub mod jsonl;
#[cfg(not(target_family = "wasm"))]
pub mod pages;
#[cfg(not(target_family = "wasm"))]
pub mod peft;

pub use error::{Error, Result};
