//! The tokenizer of a model's folder, and how it grows.
//!
//! | file | what is taken from it |
//! |---|---|
//! | `tokenizer.json` | everything, if it is there |
//! | `tokenizer.model` | everything, if there is no `tokenizer.json` |
//! | `added_tokens.json` | tokens that were added to a `tokenizer.model`: what older versions of `transformers` write |
//! | `tokenizer_config.json` | tokens that were added, which are special, whether a BOS or EOS is put around a text |
//! | `special_tokens_map.json` | which tokens are special |
//!
//! Tokens are added to the JSON of a tokenizer, before the `tokenizers` crate sees it, so that what is read, what is
//! written and what others read are one thing.

use std::borrow::Cow;
use std::path::Path;

use landmark_formats::folder::Folder;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::sentencepiece::{self, added_token, template};
use crate::tokenizer::{Tokenizer, read_file};

/// Pads rows to one length.
pub const PAD: &str = "[PAD]";
/// Closes a block.
pub const LANDMARK: &str = "<landmark>";

/// Tokens that text must never become, whatever a file says of them.
const ALWAYS_SPECIAL: [&str; 2] = [PAD, LANDMARK];

/// Names of fields that hold a special token.
const SPECIAL_FIELDS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];

/// Files of a folder that make a tokenizer, in the order in which they are looked for.
pub const TOKENIZER_FILES: [&str; 2] = ["tokenizer.json", "tokenizer.model"];

/// The bytes of a file of a tokenizer, if there is one of this name.
fn bytes(folder: &Folder, name: &str) -> Result<Option<Cow<'static, [u8]>>> {
    match folder {
        Folder::Disk(path) => {
            let path = path.join(name);
            Ok(if path.is_file() { Some(read_file(&path)?.into()) } else { None })
        }
        Folder::Embedded(embedded) => Ok(embedded.file(name).map(Cow::Borrowed)),
    }
}

/// A small JSON file beside a tokenizer; an empty object if there is none.
fn beside(folder: &Folder, name: &str) -> Result<Map<String, Value>> {
    let Some(bytes) = bytes(folder, name)? else { return Ok(Map::new()) };
    serde_json::from_slice(&bytes).map_err(|error| Error::Tokenizer {
        name: folder.file(name).display().to_string(),
        message: format!("is not a JSON object ({error}); fetch it again"),
    })
}

/// The files of a folder, read.
struct Files {
    /// The tokenizer's own file.
    name: String,
    json: Value,
    is_model: bool,
    config: Map<String, Value>,
    special: Map<String, Value>,
    added: Map<String, Value>,
}

impl Files {
    fn read(folder: &Folder) -> Result<Option<Files>> {
        let Some(file) = TOKENIZER_FILES.into_iter().find(|name| folder.has(name)) else { return Ok(None) };
        let Some(bytes) = bytes(folder, file)? else { return Ok(None) };
        let name = folder.file(file).display().to_string();
        let is_model = file == "tokenizer.model";
        let json = if is_model {
            sentencepiece::to_tokenizer_json(&bytes)
        } else {
            serde_json::from_slice(&bytes)
                .map_err(|error| format!("is not JSON ({error}); fetch the tokenizer.json again"))
        };
        let json = json.map_err(|message| Error::Tokenizer { name: name.clone(), message })?;
        let config = beside(folder, "tokenizer_config.json")?;
        let special = beside(folder, "special_tokens_map.json")?;
        let added = beside(folder, "added_tokens.json")?;
        let mut files = Files { name, json, is_model, config, special, added };
        files.add_missing()?;
        Ok(Some(files))
    }

    fn wrong(&self, message: impl Into<String>) -> Error {
        Error::Tokenizer { name: self.name.clone(), message: message.into() }
    }

    /// Whether one of the files calls a token special.
    fn is_special(&self, content: &str) -> bool {
        let named = |fields: &Map<String, Value>| {
            let single = SPECIAL_FIELDS.iter().filter_map(|&field| token_name(fields.get(field)?));
            let others = fields.get("additional_special_tokens").and_then(Value::as_array);
            single.chain(others.into_iter().flatten().filter_map(token_name)).any(|name| name == content)
        };
        ALWAYS_SPECIAL.contains(&content) || named(&self.config) || named(&self.special)
    }

    /// Adds what the files beside the tokenizer add to it.
    fn add_missing(&mut self) -> Result<()> {
        let mut wanted: Vec<(usize, String, bool)> = Vec::new();
        for (content, id) in &self.added {
            if let Some(id) = id.as_u64().and_then(|id| usize::try_from(id).ok()) {
                wanted.push((id, content.clone(), self.is_special(content)));
            }
        }
        if let Some(decoder) = self.config.get("added_tokens_decoder").and_then(Value::as_object) {
            for (id, token) in decoder {
                if let (Ok(id), Some(content)) = (id.parse(), token_name(token)) {
                    let special = token["special"].as_bool().unwrap_or(false) || self.is_special(content);
                    wanted.push((id, content.to_owned(), special));
                }
            }
        }
        wanted.sort();
        for (id, content, special) in wanted {
            self.add(id, &content, special)?;
        }
        let entries = self.json.get_mut("added_tokens").and_then(Value::as_array_mut).into_iter().flatten();
        for entry in entries.filter_map(Value::as_object_mut) {
            let content = entry.get("content").and_then(Value::as_str);
            if content.is_some_and(|content| ALWAYS_SPECIAL.contains(&content)) {
                entry.insert("special".into(), json!(true));
            }
        }
        Ok(())
    }

    /// Adds one token, if it is not there.
    fn add(&mut self, id: usize, content: &str, special: bool) -> Result<()> {
        if self.json.get("added_tokens").is_none_or(Value::is_null)
            && let Some(fields) = self.json.as_object_mut()
        {
            fields.insert("added_tokens".into(), json!([]));
        }
        let in_vocabulary = self.json["model"]["vocab"].get(content).and_then(Value::as_u64);
        let Some(entries) = self.json.get_mut("added_tokens").and_then(Value::as_array_mut) else {
            return Err(self.wrong("has no list of added tokens; it is no tokenizer.json"));
        };
        if entries.iter().any(|entry| entry["content"] == content) {
            return Ok(());
        }
        let other = entries.iter().find(|entry| entry["id"] == id).map(|entry| entry["content"].to_string());
        if let Some(other) = other {
            return Err(self.wrong(format!(
                "has {other} as token {id}, where the files beside it have {content:?}; they belong to different models"
            )));
        }
        // A token of the vocabulary that is only declared special keeps its id.
        let id = in_vocabulary.and_then(|id| usize::try_from(id).ok()).unwrap_or(id);
        entries.push(added_token(id, content, special));
        Ok(())
    }

    /// The tokenizer.
    fn tokenizer(&self, eot: Option<&str>) -> Result<Tokenizer> {
        let eos = self.config.get("eos_token").and_then(token_name);
        let eos = eos.or_else(|| self.special.get("eos_token").and_then(token_name));
        let json = self.json.to_string();
        let named = Tokenizer::from_json(json.as_bytes(), &self.name, eot.or(eos));
        // A name in a side file that is no token is no reason to fail.
        let mut tokenizer = match named {
            Err(_) if eot.is_none() && eos.is_some() => {
                Tokenizer::from_json(json.as_bytes(), &self.name, None)?
            }
            other => other?,
        };
        let switch = |name: &str| self.config.get(name).and_then(Value::as_bool);
        let named = |field: &str, usual: &str| {
            let name = self.config.get(field).and_then(token_name);
            let name = name.or_else(|| self.special.get(field).and_then(token_name));
            tokenizer.token_id(name.unwrap_or(usual)).into_iter().collect::<Vec<u32>>()
        };
        let before =
            switch("add_bos_token").map(|add| if add { named("bos_token", "<s>") } else { Vec::new() });
        let after =
            switch("add_eos_token").map(|add| if add { named("eos_token", "</s>") } else { Vec::new() });
        tokenizer.put_around(before, after);
        Ok(tokenizer)
    }
}

/// A token's name, written as a string or as an object with `content`.
fn token_name(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

impl Tokenizer {
    /// The tokenizer of a model's folder: its `tokenizer.json`, else its `tokenizer.model`; `None` if it has neither. What
    /// other files there say of added tokens and of BOS and EOS is heeded. `eot` names the token that ends a
    /// document; without it that is the folder's `eos_token`.
    ///
    /// # Errors
    /// If a file cannot be read, or they contradict each other.
    pub fn from_folder(folder: &Path, eot: Option<&str>) -> Result<Option<Self>> {
        Self::from_files(&Folder::from(folder), eot)
    }

    /// The same, of a folder that may be a part of the program.
    ///
    /// # Errors
    /// As [`from_folder`](Self::from_folder).
    pub fn from_files(folder: &Folder, eot: Option<&str>) -> Result<Option<Self>> {
        Files::read(folder)?.map(|files| files.tokenizer(eot)).transpose()
    }
}

/// A folder's tokenizer with more tokens.
#[derive(Debug)]
pub struct GrownTokenizer {
    /// Files by name: `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json`. A
    /// `tokenizer.model` is to be copied as it is beside them.
    pub files: Vec<(&'static str, String)>,
    /// Ids of the tokens, in their order.
    pub ids: Vec<u32>,
    /// Ids are less than this.
    pub vocab_size: u32,
}

/// Adds special tokens to the tokenizer of a folder: `[PAD]` as its padding token, others as additional special tokens.
/// Tokens that it has keep their ids; new ones follow the last. `None` if the folder has no tokenizer.
///
/// # Errors
/// If the tokenizer cannot be read.
pub fn grow(folder: &Path, tokens: &[&str]) -> Result<Option<GrownTokenizer>> {
    let Some(mut files) = Files::read(&Folder::from(folder))? else { return Ok(None) };
    let mut next = files.tokenizer(None)?.vocab_size();
    let mut ids = Vec::new();
    for &token in tokens {
        let known = files.tokenizer(None)?.token_id(token);
        let id = known.unwrap_or(next);
        next = next.max(id.saturating_add(1));
        files.add(id as usize, token, true)?;
        ids.push(id);
    }
    let vocab_size = files.tokenizer(None)?.vocab_size();
    files.put_around_in_json();

    let decoder: Map<String, Value> = files.json["added_tokens"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| {
            let mut entry = entry.clone();
            let id = entry.as_object_mut().and_then(|fields| fields.shift_remove("id")).unwrap_or_default();
            (id.to_string(), entry)
        })
        .collect();
    files.config.insert("added_tokens_decoder".into(), Value::Object(decoder));
    for fields in [&mut files.config, &mut files.special] {
        for &token in tokens {
            if token == PAD {
                fields.insert("pad_token".into(), json!(PAD));
            } else {
                add_special(fields, token);
            }
        }
    }
    for (&token, &id) in tokens.iter().zip(&ids) {
        files.added.insert(token.to_owned(), json!(id));
    }
    let pretty = |fields: &Map<String, Value>| format!("{:#}\n", json!(fields));
    let written = vec![
        ("tokenizer.json", format!("{:#}\n", files.json)),
        ("tokenizer_config.json", pretty(&files.config)),
        ("special_tokens_map.json", pretty(&files.special)),
        ("added_tokens.json", pretty(&files.added)),
    ];
    Ok(Some(GrownTokenizer { files: written, ids, vocab_size }))
}

fn add_special(fields: &mut Map<String, Value>, token: &str) {
    let others = fields.entry("additional_special_tokens").or_insert_with(|| json!([]));
    if let Some(others) = others.as_array_mut()
        && !others.iter().any(|other| token_name(other) == Some(token))
    {
        others.push(json!(token));
    }
}

impl Files {
    /// Writes what `tokenizer_config.json` says of BOS and EOS into a converted `tokenizer.model`, so that readers of
    /// `tokenizer.json` alone do the same.
    fn put_around_in_json(&mut self) {
        let switch = |name: &str, usual| self.config.get(name).and_then(Value::as_bool).unwrap_or(usual);
        if !self.is_model {
            return;
        }
        let entries = self.json["added_tokens"].as_array().cloned().unwrap_or_default();
        let token = |field: &str, usual: &'static str| {
            let name = self.config.get(field).and_then(token_name).unwrap_or(usual);
            let entry = entries.iter().find(|entry| entry["content"] == name)?;
            Some((usize::try_from(entry["id"].as_u64()?).ok()?, name.to_owned()))
        };
        let before = token("bos_token", "<s>").filter(|_| switch("add_bos_token", true));
        let after = token("eos_token", "</s>").filter(|_| switch("add_eos_token", false));
        self.json["post_processor"] = template(
            before.as_ref().map(|(id, name)| (*id, name.as_str())),
            after.as_ref().map(|(id, name)| (*id, name.as_str())),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sentencepiece::tests::model;

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        folder
    }

    fn open(folder: &tempfile::TempDir) -> Tokenizer {
        Tokenizer::from_folder(folder.path(), None).unwrap().unwrap()
    }

    fn llama() -> Vec<u8> {
        model(2, (true, false), "")
    }

    #[test]
    fn side_files_decide_what_is_put_around_a_text() {
        let around = |config: &str| {
            let folder =
                folder(&[("tokenizer.model", &llama()), ("tokenizer_config.json", config.as_bytes())]);
            let ids = open(&folder).encode("the").unwrap();
            (ids[0] == 1, ids.last() == Some(&2))
        };
        assert_eq!(around("{}"), (true, false));
        assert_eq!(around(r#"{"add_bos_token": false}"#), (false, false));
        assert_eq!(
            around(r#"{"add_bos_token": true, "add_eos_token": true, "eos_token": "</s>"}"#),
            (true, true)
        );
    }

    #[test]
    fn added_tokens_are_found_wherever_they_are_written() {
        let next = 259 + 18;
        for (name, text) in [
            ("added_tokens.json", json!({"<landmark>": next + 1, "[PAD]": next}).to_string()),
            (
                "tokenizer_config.json",
                json!({"added_tokens_decoder": {(next + 1).to_string(): {"content": "<landmark>"},
                    next.to_string(): {"content": "[PAD]", "special": true}}})
                .to_string(),
            ),
        ] {
            let folder = folder(&[("tokenizer.model", &llama()), (name, text.as_bytes())]);
            let tokenizer = open(&folder);
            assert_eq!(tokenizer.token_id(LANDMARK), Some(next + 1), "{name}");
            assert_eq!((tokenizer.token_id(PAD), tokenizer.vocab_size()), (Some(next), next + 2), "{name}");
            let ids = tokenizer.encode("the <landmark> [PAD]<landmark>").unwrap();
            assert!(ids.iter().all(|&id| id < next), "{name}: text became a landmark: {ids:?}");
            assert_eq!(tokenizer.eot(), 2);
        }
    }

    /// The grown files say the same to a reader of any of them, and text still cannot become a landmark.
    #[test]
    fn a_grown_tokenizer_is_read_again() {
        let before = folder(&[
            ("tokenizer.model", &llama()),
            ("tokenizer_config.json", br#"{"add_bos_token": true, "tokenizer_class": "LlamaTokenizer"}"#),
        ]);
        let grown = grow(before.path(), &[PAD, LANDMARK]).unwrap().unwrap();
        let next = 259 + 18;
        assert_eq!((grown.ids.clone(), grown.vocab_size), (vec![next, next + 1], next + 2));
        let text = "the cat <landmark> é中\n";
        let expected = open(&before).encode(text).unwrap();
        let all: Vec<(&str, &[u8])> =
            grown.files.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
        let json_only = folder(&all[..1]);
        let model_only = folder(&[&all[1..], &[("tokenizer.model", &llama()[..])]].concat());
        for after in [folder(&all), json_only, model_only] {
            let tokenizer = open(&after);
            assert_eq!(tokenizer.encode(text).unwrap(), expected);
            assert_eq!(tokenizer.token_id(LANDMARK), Some(next + 1));
            let again = grow(after.path(), &[PAD, LANDMARK]).unwrap().unwrap();
            assert_eq!(again.ids, grown.ids, "what is there is not added again");
        }
        let config: Value = serde_json::from_str(&grown.files[1].1).unwrap();
        assert_eq!(
            (&config["pad_token"], &config["additional_special_tokens"]),
            (&json!(PAD), &json!([LANDMARK]))
        );
        assert_eq!(config["tokenizer_class"], "LlamaTokenizer");
    }

    #[test]
    fn folders_that_contradict_themselves_are_refused() {
        let empty = folder(&[]);
        assert!(Tokenizer::from_folder(empty.path(), None).unwrap().is_none());
        assert!(grow(empty.path(), &[PAD]).unwrap().is_none());
        for (name, text, said) in [
            ("added_tokens.json", r#"{"<landmark>": 1}"#, "different models"),
            ("added_tokens.json", "[]", "not a JSON object"),
            ("tokenizer.json", "{}", "cannot be used"),
            ("tokenizer.json", "[]", "cannot be used"),
            ("tokenizer.json", r#"{"added_tokens": [3]}"#, "cannot be used"),
            ("tokenizer.json", "[", "not JSON"),
        ] {
            let folder = folder(&[("tokenizer.model", &llama()), (name, text.as_bytes())]);
            let error = Tokenizer::from_folder(folder.path(), None).err().map(|error| error.to_string());
            let error = error.unwrap_or_else(|| panic!("{name}: {text}"));
            assert!(error.contains(said) && error.contains("token"), "{error}");
        }
    }
}
