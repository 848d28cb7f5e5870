//! Keeps the panics of a library that we feed with files from outside.
//!
//! `tokenizers` answers most malformed files with an error, but not all: fuzzing finds `expect`s in its readers and
//! index arithmetic in its models that a crafted file reaches. Checking all of that beforehand would mean to write
//! the library's readers again. So its panics are caught here and become errors, and nobody is told of a panic that
//! was caught: the hook that prints them is passed over while the calling thread is inside.

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
