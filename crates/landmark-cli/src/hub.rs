//! Models by name: `hf://owner/name`, fetched once from the Hugging Face hub and kept in its cache.
//!
//! The cache is the one that all of Hugging Face's tools share (`HF_HUB_CACHE`, else `HF_HOME/hub`, else
//! `~/.cache/huggingface/hub`), so what one of them has fetched is found here and the other way round. A model that is whole
//! in the cache is opened without a look at the network, and stays the one that it was; to follow a branch, fetch it anew
//! with the hub's own tool. A bare `owner/name` is taken for a name if there is no such path.
//!
//! What is fetched is what is read: the configuration, the weights in one form (safetensors before PyTorch's, as
//! [`WeightFolder`] looks for them), the tokenizer. All files are asked for at the one commit that the branch pointed at when
//! the first was, so a repository that changes meanwhile cannot give halves of two models; only when all are there the
//! branch's name is put to that commit.
//!
//! Rejected: taking each file by the branch's name, which has that flaw; and asking the hub for news at each start, which
//! makes results depend on the day.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use landmark_formats::folder::Folder;
use landmark_formats::huggingface::{CONFIG, WEIGHTS, WeightFolder, index, read_bounded};

use crate::embedded;
use crate::error::{Error, Result};

/// What a name begins with where it could be a path as well.
const SCHEME: &str = "hf://";

/// The branch, if none is named.
const MAIN: &str = "main";

/// How often a broken download goes on.
const RETRIES: usize = 5;

/// Files beside configuration and weights that a model may come with: its tokenizer, and how it likes to be sampled.
pub const COMPANIONS: [&str; 10] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
];

/// A model on the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name {
    /// `owner/name`.
    id: String,
    /// Branch, tag or commit.
    revision: String,
}

impl Name {
    /// The name in `text`, without scheme: `owner/name` or `owner/name@revision`.
    fn parse(text: &str) -> Option<Name> {
        let (id, revision) = text.split_once('@').unwrap_or((text, MAIN));
        let (owner, name) = id.split_once('/')?;
        let is_sound = |part: &str| {
            let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') && part.chars().all(is_allowed)
        };
        // A revision becomes part of a path in the cache.
        let is_revision = revision.split('/').all(is_sound);
        (is_sound(owner) && is_sound(name) && is_revision)
            .then(|| Name { id: id.to_owned(), revision: revision.to_owned() })
    }

    fn repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.id.clone(), RepoType::Model, revision.to_owned())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.id)?;
        if self.revision == MAIN { Ok(()) } else { write!(f, "@{}", self.revision) }
    }
}

/// The folder that a model's path or name stands for: on the disk as [`resolve`] finds it, or in the program.
///
/// # Errors
/// If the name is none, or the model is not in the cache and cannot be fetched.
pub fn folder(given: &Path) -> Result<Folder> {
    match embedded::named(given)? {
        Some(model) => Ok(Folder::Embedded(model)),
        None => Ok(Folder::from(&*resolve(given)?)),
    }
}

/// The path that a model's path or name stands for: itself, or a folder of the cache, filled if need be.
///
/// # Errors
/// If the name is none, the model is not in the cache and cannot be fetched, or it is in the program and has no path.
pub fn resolve(given: &Path) -> Result<Cow<'_, Path>> {
    if let Some(model) = embedded::named(given)? {
        return Err(Error::Input {
            path: given.to_owned(),
            reason: "is a part of the program, and a folder is needed here".to_owned(),
            help: format!("landmark convert {} FOLDER writes it into one", model.name),
        });
    }
    let Some(text) = given.to_str() else { return Ok(Cow::Borrowed(given)) };
    let name = match text.strip_prefix(SCHEME) {
        Some(rest) => Name::parse(rest).ok_or_else(|| Error::Input {
            path: given.to_owned(),
            reason: "is no name of a model on the hub".to_owned(),
            help: "names are hf://OWNER/NAME or hf://OWNER/NAME@REVISION".to_owned(),
        })?,
        None if given.exists() => return Ok(Cow::Borrowed(given)),
        None => match Name::parse(text) {
            Some(name) => name,
            None => return Ok(Cow::Borrowed(given)),
        },
    };
    Hub::from_environment(&name)?.folder(&name).map(Cow::Owned)
}

/// The cache, and how to reach what is not in it.
struct Hub {
    cache: Cache,
    endpoint: Option<String>,
    token: Option<String>,
    is_offline: bool,
}

impl Hub {
    fn from_environment(name: &Name) -> Result<Hub> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let home = variable("HF_HOME").map(PathBuf::from).or_else(|| {
            let caches = variable("XDG_CACHE_HOME").map(PathBuf::from);
            let caches = caches.or_else(|| std::env::home_dir().map(|home| home.join(".cache")));
            caches.map(|caches| caches.join("huggingface"))
        });
        let folder = variable("HF_HUB_CACHE").map(PathBuf::from);
        let folder = folder.or_else(|| home.as_ref().map(|home| home.join("hub")));
        let folder = folder.ok_or_else(|| Error::Input {
            path: name.to_string().into(),
            reason: "there is no home directory in which models from the hub could be kept".to_owned(),
            help: "name a folder for them in the environment variable HF_HOME".to_owned(),
        })?;
        let is_on = |value: String| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str());
        let saved = || home.map(|home| Cache::new(home.join("hub"))).and_then(|cache| cache.token());
        Ok(Hub {
            cache: Cache::new(folder),
            endpoint: variable("HF_ENDPOINT"),
            token: variable("HF_TOKEN").or_else(saved),
            is_offline: variable("HF_HUB_OFFLINE").is_some_and(is_on),
        })
    }

    /// The folder of a model's files.
    fn folder(&self, name: &Name) -> Result<PathBuf> {
        if let Some(folder) = self.cached(name) {
            return Ok(folder);
        }
        if self.is_offline {
            let reason = "is not in the cache, and HF_HUB_OFFLINE forbids to fetch it".to_owned();
            return Err(self.unreachable(name, reason));
        }
        self.fetch(name)?;
        // Not taken for granted: a cache on a disk without links may look otherwise.
        self.cached(name).ok_or_else(|| {
            self.unreachable(name, "was fetched, but is not whole in the cache afterwards".to_owned())
        })
    }

    /// The folder of a model that is whole in the cache.
    fn cached(&self, name: &Name) -> Option<PathBuf> {
        let in_ref = self.cache.repo(name.repo(&name.revision)).get(CONFIG);
        let config = in_ref.or_else(|| {
            // A commit may lie there without a name that points at it.
            let commit = self.cache.repo(name.repo(MAIN)).pointer_path(&name.revision).join(CONFIG);
            commit.is_file().then_some(commit)
        })?;
        let folder = config.parent()?.to_owned();
        let weights = WeightFolder::find(&folder)?;
        let shards = shards(&weights).ok()?;
        shards.iter().all(|shard| folder.join(shard).is_file()).then_some(folder)
    }

    fn fetch(&self, name: &Name) -> Result<()> {
        let failed = |error: ApiError| self.failure(name, &error);
        let mut builder =
            ApiBuilder::from_cache(self.cache.clone()).with_token(self.token.clone()).with_retries(RETRIES);
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        let api: Api = builder.build().map_err(failed)?;
        let info = api.repo(name.repo(&name.revision)).info().map_err(failed)?;
        if info.sha.is_empty() || !info.sha.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(self.unreachable(name, format!("the hub names its commit {:?}", info.sha)));
        }
        let repo: ApiRepo = api.repo(name.repo(&info.sha));
        let has = |file: &str| info.siblings.iter().any(|sibling| sibling.rfilename == file);
        let weights = WEIGHTS.iter().map(|(file, _)| *file).find(|file| has(file));
        let (true, Some(weights)) = (has(CONFIG), weights) else {
            return Err(Error::Input {
                path: name.to_string().into(),
                reason: format!("holds no {CONFIG} or none of the weights that are read here"),
                help:
                    "it has to be a model in the layout of `transformers`, as safetensors or PyTorch files; \
                       quantised formats such as GGUF are not read"
                        .to_owned(),
            });
        };
        let entry = repo.get(weights).map_err(failed)?;
        for shard in shards(&entry)? {
            repo.get(&shard).map_err(failed)?;
        }
        for file in COMPANIONS.into_iter().filter(|file| has(file)) {
            repo.get(file).map_err(failed)?;
        }
        repo.get(CONFIG).map_err(failed)?;
        let named = self.cache.repo(name.repo(&name.revision));
        named.create_ref(&info.sha).map_err(|error| Error::io(self.cache.path().clone(), error))
    }

    fn failure(&self, name: &Name, error: &ApiError) -> Error {
        let text = error.to_string();
        let status = |codes: &[&str]| codes.iter().any(|code| text.contains(&format!("http status: {code}")));
        if status(&["401", "403"]) {
            return Error::Input {
                path: name.to_string().into(),
                reason: format!("the hub does not give it to everybody ({text}), or it does not exist"),
                help: "check the name; accept the model's conditions on its page, and give a token of yours in the \
                       environment variable HF_TOKEN"
                    .to_owned(),
            };
        }
        let reason = if status(&["404"]) {
            "is neither a path here nor a model on the hub".to_owned()
        } else {
            format!("is not in the cache and could not be fetched ({text})")
        };
        self.unreachable(name, reason)
    }

    /// Says how to get a model by hand.
    fn unreachable(&self, name: &Name, reason: String) -> Error {
        let Name { id, revision } = name;
        Error::Input {
            path: name.to_string().into(),
            reason,
            help: format!(
                "where there is a network, run `hf download {id} --revision {revision}` and copy the folder {} from the \
                 cache there to {}; or give the path of a folder with its {CONFIG}, weights and tokenizer",
                name.repo(revision).folder_name(),
                self.cache.path().display()
            ),
        }
    }
}

/// Files that hold the weights beside `entry`: those that an index names, none for a single file.
fn shards(entry: &Path) -> Result<Vec<String>> {
    if entry.extension().is_none_or(|extension| extension != "json") {
        return Ok(Vec::new());
    }
    let bytes = read_bounded(entry, index::LARGEST)?;
    let map = index::parse(&bytes).map_err(|reason| Error::Input {
        path: entry.to_owned(),
        reason: format!("it is no index of weights: {reason}"),
        help: "fetch it again".to_owned(),
    })?;
    let mut files: Vec<String> = map.files.into_values().collect();
    files.sort();
    files.dedup();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        let name = |id: &str, revision: &str| Some(Name { id: id.to_owned(), revision: revision.to_owned() });
        assert_eq!(Name::parse("meta-llama/Llama-3.2-1B"), name("meta-llama/Llama-3.2-1B", "main"));
        assert_eq!(Name::parse("a/b@refs/pr/3"), name("a/b", "refs/pr/3"));
        for text in
            ["", "a", "a/", "/b", "a/b/c", "../b", "./b", "a/..", "a/b c", "a/b@", "a/b@../../x", "a/b@/x"]
        {
            assert_eq!(Name::parse(text), None, "{text}");
        }
        assert_eq!(Name::parse("a/b").unwrap().to_string(), "hf://a/b");
        assert_eq!(Name::parse("a/b@c").unwrap().to_string(), "hf://a/b@c");
    }

    /// A model in a cache of its own, as the hub's tools lay it out.
    fn hub(files: &[(&str, &str)]) -> (tempfile::TempDir, Hub) {
        let folder = tempfile::tempdir().unwrap();
        let repo = folder.path().join("models--a--b");
        let snapshot = repo.join("snapshots/0123abcd");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir_all(repo.join("refs")).unwrap();
        std::fs::write(repo.join("refs/main"), "0123abcd").unwrap();
        for (name, text) in files {
            std::fs::write(snapshot.join(name), text).unwrap();
        }
        let cache = Cache::new(folder.path().to_owned());
        (folder, Hub { cache, endpoint: None, token: None, is_offline: true })
    }

    #[test]
    fn only_whole_models_are_taken_from_the_cache() {
        let name = Name::parse("a/b").unwrap();
        let commit = Name::parse("a/b@0123abcd").unwrap();
        let index = r#"{"weight_map": {"x": "one.bin", "y": "two.bin"}}"#;
        let sharded =
            [("config.json", ""), ("pytorch_model.bin.index.json", index), ("one.bin", ""), ("two.bin", "")];
        for (files, is_whole) in [
            (&[("config.json", ""), ("model.safetensors", "")][..], true),
            (&sharded[..], true),
            (&sharded[..3], false),
            (&[("config.json", ""), ("model.safetensors.index.json", "{")], false),
            (&[("config.json", ""), ("tokenizer.json", "")], false),
            (&[("model.safetensors", "")], false),
        ] {
            let (folder, hub) = hub(files);
            let expected = is_whole.then(|| folder.path().join("models--a--b/snapshots/0123abcd"));
            assert_eq!(hub.cached(&name), expected, "{files:?}");
            assert_eq!(hub.cached(&commit), expected, "{files:?}");
            assert_eq!(hub.cached(&Name::parse("a/c").unwrap()), None);
            if !is_whole {
                let error = hub.folder(&name).unwrap_err();
                assert!(error.to_string().contains("hf://a/b: is not in the cache"), "{error}");
                assert!(error.help().unwrap().contains("hf download a/b"), "{error:?}");
            }
        }
    }
}
