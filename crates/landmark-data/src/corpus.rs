//! What a corpus looks like on disk: which files it has, in which order, and which part of the data set each
//! belongs to.
//!
//! Only folders are looked at here; `read` opens the files and [`jsonl`] understands their lines. The order of
//! the files is the order of the documents in the streams, so it is fixed: book numbers for PG19, else by path.

pub mod jsonl;
pub(crate) mod read;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::dataset::Split;
use crate::error::{Error, Result, reading};
use jsonl::Filter;

/// A kind of corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corpus {
    /// PG19's folders `train`, `validation` and `test` of books named `N.txt`, in the order of their numbers.
    Pg19,
    /// The arXiv part of the proof-pile: `train` and `dev` folders of JSON lines.
    ArxivMath,
    /// JSON lines with a field `text`, as RedPajama has them: a file, or a folder and all below.
    RedPajama,
    /// A text file, or the `.txt` files of a folder and all below; a file is a document.
    Text,
}

impl Corpus {
    /// As the command line and `dataset.json` spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pg19 => "pg19",
            Self::ArxivMath => "arxivmath",
            Self::RedPajama => "redpajama",
            Self::Text => "text",
        }
    }
}

impl FromStr for Corpus {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "pg19" => Ok(Self::Pg19),
            "arxivmath" | "proof-pile" => Ok(Self::ArxivMath),
            "redpajama" => Ok(Self::RedPajama),
            "text" => Ok(Self::Text),
            _ => Err(Error::Option {
                option: "--dataset",
                message: format!("{name:?} is none of pg19, arxivmath (or proof-pile), redpajama, text"),
            }),
        }
    }
}

/// How a file is compressed, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// It is not.
    None,
    /// gzip, perhaps of several members.
    Gzip,
    /// Zstandard, perhaps of several frames.
    Zstd,
}

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// One document of text.
    Text,
    /// Documents, one a line.
    JsonLines(Compression, Filter),
}

/// A file of the corpus, or part of one.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) format: Format,
    /// The bytes to read, as stored.
    pub(crate) range: Range<u64>,
    /// The part of the data set; none if that is decided document by document.
    pub(crate) split: Option<Split>,
}

/// The files of a corpus, in order.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) sources: Vec<Source>,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    /// Whether the corpus comes divided into parts.
    pub(crate) divided: bool,
}

/// Folder names of each part; the first is what messages say.
const TRAIN: [&str; 1] = ["train"];
const VALIDATION: [&str; 4] = ["validation", "dev", "valid", "val"];
const TEST: [&str; 1] = ["test"];

/// Finds the files of the corpus at `input`.
///
/// A part that does not exist is made of a share of `validation_fraction` of the documents, or of the end of the
/// text if the corpus is a single text file.
pub(crate) fn plan(corpus: Corpus, input: &Path, validation_fraction: f64) -> Result<Plan> {
    let found = fs::metadata(input).map_err(reading(input))?;
    let mut plan = if found.is_dir() { plan_folder(corpus, input)? } else { plan_file(corpus, input)? };
    plan.files = plan.sources.len() as u64;
    plan.bytes = plan.sources.iter().map(|source| source.range.end).sum();
    if let [only] = &plan.sources[..]
        && only.format == Format::Text
        && !plan.divided
        && validation_fraction > 0.0
    {
        plan.sources = divide(only, validation_fraction)?;
    }
    Ok(plan)
}

fn plan_folder(corpus: Corpus, input: &Path) -> Result<Plan> {
    let (train, validation, test) =
        (subfolder(input, &TRAIN), subfolder(input, &VALIDATION), subfolder(input, &TEST));
    let mut sources = Vec::new();
    let divided = match (train, validation) {
        (Some(train), Some(validation)) => {
            for (folder, split) in
                [(Some(train), Split::Train), (Some(validation), Split::Validation), (test, Split::Test)]
            {
                let Some(folder) = folder else { continue };
                let files = list(corpus, &folder)?;
                if files.is_empty() {
                    return Err(no_files(corpus, &folder));
                }
                for path in files {
                    sources.push(source(corpus, path, Some(split))?);
                }
            }
            true
        }
        _ if matches!(corpus, Corpus::Pg19 | Corpus::ArxivMath) => {
            let second = if corpus == Corpus::Pg19 { "validation" } else { "dev" };
            return Err(Error::Corpus {
                path: input.into(),
                message: format!(
                    "expected the folders train and {second} in it, as {} has them; for other folders of text use \
                     --dataset text or redpajama",
                    corpus.name()
                ),
            });
        }
        _ => {
            for path in list(corpus, input)? {
                sources.push(source(corpus, path, None)?);
            }
            false
        }
    };
    if sources.is_empty() {
        return Err(no_files(corpus, input));
    }
    Ok(Plan { sources, files: 0, bytes: 0, divided })
}

fn plan_file(corpus: Corpus, input: &Path) -> Result<Plan> {
    if matches!(corpus, Corpus::Pg19 | Corpus::ArxivMath) {
        return Err(Error::Corpus {
            path: input.into(),
            message: format!("is a file, but {} is a folder; name that", corpus.name()),
        });
    }
    Ok(Plan { sources: vec![source(corpus, input.into(), None)?], files: 0, bytes: 0, divided: false })
}

fn subfolder(input: &Path, names: &[&str]) -> Option<PathBuf> {
    names.iter().map(|name| input.join(name)).find(|path| path.is_dir())
}

fn no_files(corpus: Corpus, folder: &Path) -> Error {
    let wanted = match corpus {
        Corpus::Pg19 => "files named N.txt",
        Corpus::Text => ".txt files",
        Corpus::ArxivMath | Corpus::RedPajama => ".jsonl, .jsonl.gz or .jsonl.zst files",
    };
    Error::Corpus { path: folder.into(), message: format!("has no {wanted}; is this the right folder?") }
}

fn source(corpus: Corpus, path: PathBuf, split: Option<Split>) -> Result<Source> {
    let length = fs::metadata(&path).map_err(reading(&path))?.len();
    let format = match corpus {
        Corpus::Pg19 | Corpus::Text => Format::Text,
        Corpus::ArxivMath => Format::JsonLines(compression(&path), Filter::Arxiv),
        Corpus::RedPajama => Format::JsonLines(compression(&path), Filter::All),
    };
    Ok(Source { path, format, range: 0..length, split })
}

fn compression(path: &Path) -> Compression {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("gz") => Compression::Gzip,
        Some("zst") => Compression::Zstd,
        _ => Compression::None,
    }
}

/// The files of a folder that belong to the corpus, in order. Hidden files are left out.
fn list(corpus: Corpus, folder: &Path) -> Result<Vec<PathBuf>> {
    if corpus == Corpus::Pg19 {
        return list_books(folder);
    }
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for (path, name) in entries(&folder)? {
            // Links to folders are not followed: one to a folder above would make the walk endless.
            let link = fs::symlink_metadata(&path).map_err(reading(&path))?.is_symlink();
            if path.is_dir() {
                if !link {
                    folders.push(path);
                }
            } else if wanted(corpus, &name) {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn list_books(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut books = Vec::new();
    for (path, name) in entries(folder)? {
        let Some(number) = name.strip_suffix(".txt") else { continue };
        let number: u64 = number.parse().map_err(|_| Error::Corpus {
            path: path.clone(),
            message: "is not named N.txt, as PG19's books are; rename or move it, or use --dataset text"
                .into(),
        })?;
        books.push((number, path));
    }
    books.sort();
    Ok(books.into_iter().map(|(_, path)| path).collect())
}

/// The visible entries of a folder, with their names.
fn entries(folder: &Path) -> Result<Vec<(PathBuf, String)>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(reading(folder))? {
        let entry = entry.map_err(reading(folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            entries.push((entry.path(), name));
        }
    }
    Ok(entries)
}

fn wanted(corpus: Corpus, name: &str) -> bool {
    match corpus {
        Corpus::Pg19 | Corpus::Text => name.ends_with(".txt"),
        Corpus::ArxivMath | Corpus::RedPajama => {
            [".jsonl", ".jsonl.gz", ".jsonl.zst"].iter().any(|end| name.ends_with(end))
        }
    }
}

/// A single text file as two documents: its beginning for training, its end for validation.
fn divide(source: &Source, validation_fraction: f64) -> Result<Vec<Source>> {
    let end = source.range.end;
    let wanted = (end as f64 * (1.0 - validation_fraction)) as u64;
    let cut = read::next_line(&source.path, wanted)?;
    if cut == 0 || cut >= end {
        return Err(Error::Corpus {
            path: source.path.clone(),
            message: format!(
                "is a single text of {end} bytes, with no end of line at which its last {validation_fraction} could be \
                 set aside; name a longer text or a folder, or use --validation-fraction"
            ),
        });
    }
    let part = |range, split| Source { range, split: Some(split), ..source.clone() };
    Ok(vec![part(0..cut, Split::Train), part(cut..end, Split::Validation)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(plan: &Plan) -> Vec<(String, Option<Split>)> {
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_string();
        plan.sources.iter().map(|source| (name(&source.path), source.split)).collect()
    }

    fn write(folder: &Path, files: &[&str]) {
        for file in files {
            fs::create_dir_all(folder.join(file).parent().unwrap()).unwrap();
            fs::write(folder.join(file), "one line\nand another\n").unwrap();
        }
    }

    #[test]
    fn books_come_in_the_order_of_their_numbers() {
        let folder = tempfile::tempdir().unwrap();
        write(
            folder.path(),
            &["train/10.txt", "train/9.txt", "train/.9.txt.swp", "validation/2.txt", "test/1.txt"],
        );
        let plan = plan(Corpus::Pg19, folder.path(), 0.1).unwrap();
        let want = [
            ("9.txt".into(), Some(Split::Train)),
            ("10.txt".into(), Some(Split::Train)),
            ("2.txt".into(), Some(Split::Validation)),
            ("1.txt".into(), Some(Split::Test)),
        ];
        assert_eq!(names(&plan), want);
        assert!(plan.divided && plan.bytes == 4 * 21);
    }

    #[test]
    fn a_folder_is_walked_in_the_order_of_paths() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &["b/2.txt", "a.txt", "b/1.txt", "c.md", ".git/x.txt"]);
        let plan = plan(Corpus::Text, folder.path(), 0.1).unwrap();
        assert_eq!(names(&plan), [("a.txt".into(), None), ("1.txt".into(), None), ("2.txt".into(), None)]);
        assert!(!plan.divided);
    }

    #[test]
    fn the_compression_of_json_lines_is_in_their_name() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &["a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.json"]);
        let plan = plan(Corpus::RedPajama, folder.path(), 0.1).unwrap();
        let formats: Vec<_> = plan.sources.iter().map(|source| source.format).collect();
        let want = [Compression::None, Compression::Gzip, Compression::Zstd];
        assert_eq!(formats, want.map(|compression| Format::JsonLines(compression, Filter::All)));
    }

    #[test]
    fn a_single_text_is_divided_at_a_line() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &["a.txt"]);
        let file = folder.path().join("a.txt");
        for input in [file.as_path(), folder.path()] {
            let plan = plan(Corpus::Text, input, 0.9).unwrap();
            let ranges: Vec<_> = plan.sources.iter().map(|source| source.range.clone()).collect();
            assert_eq!(ranges, [0..9, 9..21]);
            assert_eq!((plan.files, plan.bytes), (1, 21));
        }
        let error = plan(Corpus::Text, &file, 0.1).unwrap_err().to_string();
        assert!(error.contains("a.txt") && error.contains("--validation-fraction"), "{error}");
    }

    #[test]
    fn wrong_folders_say_what_was_expected() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &["a.txt"]);
        let at = folder.path().display().to_string();
        for (corpus, path, want) in [
            (Corpus::Pg19, folder.path().to_path_buf(), "train and validation"),
            (Corpus::ArxivMath, folder.path().to_path_buf(), "train and dev"),
            (Corpus::RedPajama, folder.path().to_path_buf(), "has no .jsonl"),
            (Corpus::Pg19, folder.path().join("a.txt"), "is a file"),
            (Corpus::Text, folder.path().join("none"), "cannot read"),
        ] {
            let error = plan(corpus, &path, 0.1).unwrap_err().to_string();
            assert!(error.contains(want) && error.contains(&at), "{error}");
        }
        write(folder.path(), &["train/1.txt", "validation/preface.txt"]);
        let error = plan(Corpus::Pg19, folder.path(), 0.1).unwrap_err().to_string();
        assert!(error.contains("preface.txt: is not named N.txt"), "{error}");
        assert!("pg20".parse::<Corpus>().unwrap_err().to_string().contains("--dataset"));
    }
}
