//! Keeps the panics of a library that we feed with files from outside.
//!
//! `tokenizers` answers most malformed files with an error, but not all: a fuzzer soon found an `expect` behind which
//! any unusual decoder ends, and there are more of its kind, in readers and models. Checking everything beforehand
//! would mean to write the library's readers again. So its panics are caught here and become errors. The hook that
//! reports panics is passed over while the calling thread is inside, since an error will tell the story.
//!
//! This needs panics that unwind, as they do unless a profile says otherwise.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`; a panic in it becomes an error with the panic's message.
///
/// What `work` was changing when it panicked must not be used afterwards.
pub(crate) fn contain<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let outside = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !INSIDE.get() {
                outside(info);
            }
        }));
    });
    let before = INSIDE.replace(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(work));
    INSIDE.set(before);
    outcome.map_err(|payload| {
        let message = payload.downcast_ref::<String>().map(String::as_str);
        message.or(payload.downcast_ref::<&str>().copied()).unwrap_or("unknown").into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error() {
        assert_eq!(contain(|| 3), Ok(3));
        assert_eq!(contain(|| panic!("as {}", "planned")), Err::<(), _>("as planned".into()));
        assert_eq!(contain(|| -> i32 { panic!("plainly") }), Err("plainly".into()));
        assert!(!INSIDE.get());
    }
}
