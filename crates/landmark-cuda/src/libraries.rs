//! NVIDIA's libraries, looked for by name when the program runs.
//!
//! Not by cudarc's own probes: these exist only where cudarc loads libraries itself, and in a build beside a crate that
//! has it link them (candle) they do not. Names are among those that cudarc tries, so what is found here is found there.
#![allow(unsafe_code)] // Loading a library runs its initialisers.

use libloading::Library;
use std::sync::OnceLock;

/// A library by the first of these names that the loader finds.
pub(crate) fn find(names: &[&str]) -> Option<Library> {
    // SAFETY: NVIDIA's libraries may be loaded at any time, by any thread.
    names.iter().find_map(|&name| unsafe { Library::new(name) }.ok())
}

/// The driver's library.
pub(crate) fn driver() -> Option<&'static Library> {
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    LIBRARY.get_or_init(|| find(&["libcuda.so", "libcuda.so.1", "nvcuda.dll"])).as_ref()
}
