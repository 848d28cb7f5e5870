//! The index of a checkpoint in several files: which file holds which tensor.
//!
//! `{"metadata": {"total_size": ...}, "weight_map": {"name": "file", ...}}`. Only the map is read. It names files, so it
//! can name any file of the machine: here a name is one in the index's own folder or it is refused. Parsed from
//! bytes, so that it can be fuzzed; a name given twice is an error, where a JSON library would keep the last.

use std::collections::HashMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::error::short;

/// Largest index that is read, in bytes; that of a model with a hundred thousand tensors has a tenth of that.
pub const LARGEST: u64 = 64 << 20;

/// Which file holds each tensor.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct WeightMap {
    /// File by tensor.
    pub files: HashMap<String, String>,
}

/// Reads the bytes of an index.
///
/// # Errors
/// What is wrong with it, as a sentence without the name of the file.
pub fn parse(bytes: &[u8]) -> Result<WeightMap, String> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: WeightMap,
    }
    if bytes.len() as u64 > LARGEST {
        return Err(format!("it has more than {LARGEST} bytes"));
    }
    let index: Index = serde_json::from_slice(bytes).map_err(|error| short(&error.to_string()))?;
    if index.weight_map.files.is_empty() {
        return Err("its weight_map names no tensors".to_owned());
    }
    for (tensor, file) in &index.weight_map.files {
        if !is_plain_name(file) {
            let (tensor, file) = (short(tensor), short(file));
            return Err(format!("it puts `{tensor}` into `{file}`, which is no file of its own folder"));
        }
    }
    Ok(index.weight_map)
}

/// Whether a name stays in its folder on every system.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', ':', '\0'])
}

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object that gives a file for each tensor")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut files = HashMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if files.contains_key(&name) {
                        map.next_value::<IgnoredAny>()?;
                        return Err(A::Error::custom(format!("`{}` is named twice", short(&name))));
                    }
                    files.insert(name, map.next_value()?);
                }
                Ok(WeightMap { files })
            }
        }
        deserializer.deserialize_map(Names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_is_read() {
        let map = parse(br#"{"metadata": {"total_size": 9}, "weight_map": {"a": "x.bin", "b": "y.bin"}}"#);
        let files = map.unwrap().files;
        assert_eq!((files.len(), &*files["a"], &*files["b"]), (2, "x.bin", "y.bin"));
    }

    #[test]
    fn what_is_no_index_is_refused() {
        for (text, said) in [
            ("", "EOF"),
            ("{}", "weight_map"),
            (r#"{"weight_map": {}}"#, "no tensors"),
            (r#"{"weight_map": {"a": 3}}"#, "string"),
            (r#"{"weight_map": {"a": "x", "a": "y"}}"#, "`a` is named twice"),
            (r#"{"weight_map": {"a": "../x.bin"}}"#, "no file of its own folder"),
            (r#"{"weight_map": {"a": "/etc/passwd"}}"#, "no file of its own folder"),
            (r#"{"weight_map": {"a": "..\\x"}}"#, "no file of its own folder"),
            (r#"{"weight_map": {"a": "C:x"}}"#, "no file of its own folder"),
            (r#"{"weight_map": {"a": ""}}"#, "no file of its own folder"),
            (r#"{"weight_map": {"a": ".."}}"#, "no file of its own folder"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
        assert!(parse("[".repeat(1 << 20).as_bytes()).is_err(), "too deep");
    }
}
