//! The model that is a part of the program, so that `landmark passkey` needs nothing but the program.
//!
//! It is `models/passkey` of the repository, compiled in; `models/passkey/README.md` says how it was trained. On command lines and
//! in messages it is called `builtin://passkey`, and whatever opens a model by its path opens it by that name
//! ([`hub::folder`](crate::hub::folder)). `landmark convert builtin://passkey FOLDER` writes it to the disk.
//!
//! The files lie outside this crate's folder, which a crate on a registry could not do; this one is in none. Rejected: a crate that
//! holds nothing but the files, and a download at first use.

use std::path::Path;

use landmark_formats::folder::Embedded;

use crate::error::{Error, Result};

/// What the names of built-in models begin with.
const SCHEME: &str = "builtin://";

/// Finds pass keys, and little else.
pub static PASSKEY: Embedded = Embedded {
    name: "builtin://passkey",
    files: &[
        ("config.json", include_bytes!("../../../models/passkey/config.json")),
        ("tokenizer.json", include_bytes!("../../../models/passkey/tokenizer.json")),
        ("model.safetensors", include_bytes!("../../../models/passkey/model.safetensors")),
    ],
};

/// Whether a path is the name of a built-in model, or was meant to be one.
pub fn is_name(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.starts_with(SCHEME))
}

/// The model of this name; none if it is no such name but a path.
///
/// # Errors
/// If there is no model of this name.
pub fn named(path: &Path) -> Result<Option<&'static Embedded>> {
    match path.to_str() {
        Some(text) if text == PASSKEY.name => Ok(Some(&PASSKEY)),
        _ if is_name(path) => Err(Error::Input {
            path: path.to_owned(),
            reason: "is no built-in model".to_owned(),
            help: format!("there is {}", PASSKEY.name),
        }),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        assert!(named(Path::new("builtin://passkey")).unwrap().is_some());
        assert!(named(Path::new("models/passkey")).unwrap().is_none() && !is_name(Path::new("hf://a/b")));
        let error = named(Path::new("builtin://other")).unwrap_err();
        assert!(error.to_string().contains("builtin://other"), "{error}");
        assert!(error.help().unwrap().contains("builtin://passkey"));
    }
}
