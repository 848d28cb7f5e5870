//! What went wrong, as the driver's number and in words.
//!
//! The driver's functions answer with a number alone. The words are kept until `cuGetErrorString` asks for that number,
//! so that what a program prints of an error names the kernel, the line and the thread.
#![allow(unsafe_code)] // A pointer for the answer of `cuGetErrorString`.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

/// The driver's numbers.
pub mod code {
    #![allow(missing_docs)] // Their names are the driver's.
    pub const SUCCESS: u32 = 0;
    pub const INVALID_VALUE: u32 = 1;
    pub const OUT_OF_MEMORY: u32 = 2;
    pub const INVALID_DEVICE: u32 = 101;
    pub const INVALID_IMAGE: u32 = 200;
    pub const NO_BINARY: u32 = 209;
    pub const INVALID_PTX: u32 = 218;
    pub const INVALID_HANDLE: u32 = 400;
    pub const NOT_FOUND: u32 = 500;
    pub const ILLEGAL_ADDRESS: u32 = 700;
    pub const OUT_OF_RESOURCES: u32 = 701;
    pub const LAUNCH_FAILED: u32 = 719;
    pub const NOT_SUPPORTED: u32 = 801;
    pub const CAPTURE_UNSUPPORTED: u32 = 900;
    pub const CAPTURE_UNMATCHED: u32 = 903;
}

/// A number and its words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// See [`code`].
    pub code: u32,
    /// What happened.
    pub text: String,
}

/// Such a failure.
pub fn failure(code: u32, text: impl Into<String>) -> Failure {
    Failure { code, text: text.into() }
}

/// The result of what the driver is asked for.
pub type Outcome = Result<(), Failure>;

/// The words of the last failure with each number, given away for good: a caller may keep the pointer.
static TEXTS: Mutex<BTreeMap<u32, &'static CStr>> = Mutex::new(BTreeMap::new());

fn remember(failure: &Failure) {
    let text = CString::new(failure.text.replace('\0', " ")).unwrap_or_default();
    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    if texts.get(&failure.code).is_none_or(|known| *known != text.as_c_str()) {
        texts.insert(failure.code, Box::leak(text.into_boxed_c_str()));
    }
}

/// The driver's answer; a panic becomes one as well, since it must not cross into C.
pub fn answer(work: impl FnOnce() -> Outcome) -> u32 {
    let outcome = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_string()));
        Err(failure(code::LAUNCH_FAILED, format!("the emulator failed: {}", text.unwrap_or_default())))
    });
    match outcome {
        Ok(()) => code::SUCCESS,
        Err(failure) => {
            remember(&failure);
            failure.code
        }
    }
}

/// The words for a number.
pub fn text_of(code: u32) -> &'static CStr {
    let texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    texts.get(&code).copied().unwrap_or(if code == code::SUCCESS {
        c"no error"
    } else {
        c"an error of the emulator"
    })
}

/// Writes the words for a number.
///
/// # Safety
/// `text` is null or may be written.
pub unsafe fn write_text(code: u32, text: *mut *const c_char) -> u32 {
    if text.is_null() {
        return code::INVALID_VALUE;
    }
    // SAFETY: the caller's promise.
    unsafe { *text = text_of(code).as_ptr() };
    code::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_kept_and_panics_are_caught() {
        assert_eq!(answer(|| Ok(())), 0);
        assert_eq!(answer(|| Err(failure(9001, "one"))), 9001);
        assert_eq!(text_of(9001), c"one");
        assert_eq!(answer(|| Err(failure(9001, "two"))), 9001);
        assert_eq!(text_of(9001), c"two");
        assert_eq!(text_of(0), c"no error");
        assert_eq!(answer(|| panic!("oh")), code::LAUNCH_FAILED);
        assert_eq!(text_of(code::LAUNCH_FAILED), c"the emulator failed: oh");
    }
}
