//! `prepare` from folders on disk to streams on disk, on corpora small enough to write down.

use std::fs;
use std::io::Write;
use std::path::Path;

use landmark_data::{
    Corpus, DatasetInfo, PrepareOptions, Split, Summary, TokenStream, TokenType, Tokenizer,
    generate_demo_corpus, prepare,
};
use tempfile::TempDir;

const EOT: u32 = 50256;

fn write(root: &Path, files: &[(&str, &[u8])]) {
    for (name, contents) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }
}

fn corpus(files: &[(&str, &[u8])]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), files);
    root
}

/// Options whose output is `out` in the corpus's own folder, for a corpus in `in`.
fn options(kind: Corpus, root: &TempDir) -> PrepareOptions {
    PrepareOptions::new(kind, root.path().join("in"), root.path().join("out"))
}

fn run(options: &PrepareOptions) -> Result<Summary, String> {
    prepare(options, &Tokenizer::gpt2(), &mut |_| {}).map_err(|error| error.to_string())
}

fn tokens(root: &TempDir, name: &str) -> Vec<u32> {
    let stream = TokenStream::open(&root.path().join("out").join(name)).unwrap();
    stream.get(0..stream.len()).unwrap()
}

/// The tokens of documents, each followed by the end token.
fn documents(texts: &[&str]) -> Vec<u32> {
    let tokenizer = Tokenizer::gpt2();
    texts.iter().flat_map(|text| tokenizer.encode_ordinary(text).unwrap().into_iter().chain([EOT])).collect()
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn nothing_was_written(root: &TempDir) -> bool {
    fs::read_dir(root.path().join("out")).map_or(true, |mut entries| entries.next().is_none())
}

#[test]
fn pg19_books_follow_each_other_by_number() {
    let root = corpus(&[
        ("in/train/10.txt", b"Hello world"),
        ("in/train/9.txt", b"Hello\r\nworld"),
        ("in/validation/3.txt", b""),
        ("in/test/1.txt", b"Hello"),
    ]);
    let mut last = Default::default();
    let summary =
        prepare(&options(Corpus::Pg19, &root), &Tokenizer::gpt2(), &mut |progress| last = *progress).unwrap();
    assert_eq!(tokens(&root, "train.bin"), [15496, 198, 6894, EOT, 15496, 995, EOT]);
    assert_eq!(tokens(&root, "validation.bin"), [EOT]);
    assert_eq!(tokens(&root, "test.bin"), [15496, EOT]);

    assert_eq!(DatasetInfo::load(&root.path().join("out")).unwrap().unwrap(), summary.info);
    let train = &summary.info.splits[&Split::Train];
    assert_eq!((train.tokens, train.documents, train.file.as_str()), (7, 2, "train.bin"));
    assert_eq!((last.bytes_done, last.bytes_total, last.tokens, last.documents), (28, 28, 10, 4));
    assert_eq!(fs::read_dir(root.path().join("out")).unwrap().count(), 4, "no temporary file stays");
}

#[test]
fn the_sha256_is_that_of_the_file() {
    let root = corpus(&[("in/train/1.txt", b"Hello world"), ("in/validation/1.txt", b"x")]);
    let summary = run(&options(Corpus::Pg19, &root)).unwrap();
    // printf '\x88\x3c\xe3\x03\x50\xc4' | sha256sum
    let want = "111ddda7ad5c4ef481f5e73ebe98465670b516e354fb3f29d0ce68c2d4d33232";
    assert_eq!(fs::read(root.path().join("out/train.bin")).unwrap(), b"\x88\x3c\xe3\x03\x50\xc4");
    assert_eq!(summary.info.splits[&Split::Train].sha256, want);
}

#[test]
fn a_large_document_is_cut_and_batched_without_a_trace() {
    // Long enough for many segments and several batches; no cut for long stretches; blanks of all kinds around cuts.
    let mut text = String::new();
    for i in 0..60_000 {
        text.push_str(&format!("{i}. It's a  line, isn't it?\r\n \u{3000}\t{}\r", "word ".repeat(i % 40)));
    }
    text.push_str(&"x".repeat(700_000));
    text.push_str(" end  ");
    let root = corpus(&[("in/train/1.txt", text.as_bytes()), ("in/validation/1.txt", b"x")]);
    run(&options(Corpus::Pg19, &root)).unwrap();
    let whole = text.replace("\r\n", "\n").replace('\r', "\n");
    assert!(tokens(&root, "train.bin") == documents(&[&whole]), "the tokens differ");
}

#[test]
fn arxiv_documents_are_picked_from_the_proof_pile() {
    let train = r#"{"text": "one", "meta": "{\"config\": \"arxiv\"}"}
{"text": "no", "meta": "{\"config\": \"wiki\"}"}
{"text": "two", "meta": {"config": "arxiv"}}
"#;
    let dev = r#"{"text": "three", "meta": {"config": "arxiv"}}"#;
    let root = corpus(&[("in/train/a.jsonl.gz", &gzip(train)), ("in/dev/a.jsonl.gz", &gzip(dev))]);
    let summary = run(&options(Corpus::ArxivMath, &root)).unwrap();
    assert_eq!(tokens(&root, "train.bin"), documents(&["one", "two"]));
    assert_eq!(tokens(&root, "validation.bin"), documents(&["three"]));
    assert_eq!(summary.info.settings.validation_fraction, None);
}

#[test]
fn redpajama_is_divided_by_document_over_all_files() {
    let line = |text: &str| format!("{{\"text\": \"{text}\", \"meta\": {{}}}}\n");
    let zstd = zstd::encode_all((line("c") + &line("d")).as_bytes(), 1).unwrap();
    let root = corpus(&[
        ("in/x/1.jsonl", (line("a") + "\n" + &line("b")).as_bytes()),
        ("in/x/2.jsonl.zst", &zstd),
        ("in/y.jsonl.gz", &gzip(&line("e"))),
    ]);
    let mut options = options(Corpus::RedPajama, &root);
    options.validation_fraction = 0.34;
    run(&options).unwrap();
    assert_eq!(tokens(&root, "validation.bin"), documents(&["a", "d"]), "every third");
    assert_eq!(tokens(&root, "train.bin"), documents(&["b", "c", "e"]));
    options.validation_fraction = 0.0;
    options.force = true;
    run(&options).unwrap();
    assert_eq!(tokens(&root, "train.bin"), documents(&["a", "b", "c", "d", "e"]));
    assert!(!root.path().join("out/validation.bin").exists(), "the stream of the other division is gone");
}

#[test]
fn a_single_text_gives_its_end_to_validation() {
    let root = corpus(&[("in", b"one\ntwo\nthree\n")]);
    let mut options = options(Corpus::Text, &root);
    options.validation_fraction = 0.4;
    run(&options).unwrap();
    assert_eq!(tokens(&root, "train.bin"), documents(&["one\ntwo\n"]));
    assert_eq!(tokens(&root, "validation.bin"), documents(&["three\n"]));
}

#[test]
fn what_is_there_already_is_kept() {
    let root = corpus(&[("in/a.txt", b"one"), ("in/b.txt", b"two")]);
    let mut options = options(Corpus::Text, &root);
    assert!(!run(&options).unwrap().skipped);
    let again = run(&options).unwrap();
    assert!(again.skipped);
    assert_eq!(again.info.splits[&Split::Train].tokens, 2);

    options.validation_fraction = 0.5;
    let error = run(&options).unwrap_err();
    assert!(
        error.contains("validation fraction: 0.005 there, 0.5 now") && error.contains("--force"),
        "{error}"
    );
    options.force = true;
    assert!(!run(&options).unwrap().skipped);

    options.force = false;
    fs::write(root.path().join("out/train.bin"), b"x").unwrap();
    assert!(!run(&options).unwrap().skipped, "a damaged stream is made again");

    fs::remove_file(root.path().join("out/dataset.json")).unwrap();
    let error = run(&options).unwrap_err();
    assert!(error.contains("holds a train.bin without a dataset.json"), "{error}");
}

#[test]
fn a_changed_corpus_is_noticed() {
    let root = corpus(&[("in/a.txt", b"one"), ("in/b.txt", b"two")]);
    run(&options(Corpus::Text, &root)).unwrap();
    write(root.path(), &[("in/c.txt", b"three")]);
    assert!(run(&options(Corpus::Text, &root)).unwrap_err().contains("files of the corpus: 2 there, 3 now"));
}

#[test]
fn bad_input_names_file_and_line_and_leaves_no_stream() {
    let cut = |bytes: &[u8]| bytes[..bytes.len() - 4].to_vec();
    let zstd = zstd::encode_all(&b"{\"text\": \"a\"}\n"[..], 1).unwrap();
    let cases: [(Corpus, &str, &[u8], &str); 9] = [
        (Corpus::Text, "a.txt", b"fine\n\nnot \xFF", "a.txt, line 3 (byte 10): not UTF-8"),
        (
            Corpus::RedPajama,
            "a.jsonl",
            b"{\"text\": \"a\"}\n\n{\"txt\": 1}\n",
            "a.jsonl, line 3: there is no \"text\"",
        ),
        (Corpus::RedPajama, "a.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"", "a.jsonl, line 2: EOF"),
        (Corpus::RedPajama, "a.jsonl", b"{\"text\": \"\xC3\"}\n", "a.jsonl, line 1 (byte 10): not UTF-8"),
        (Corpus::RedPajama, "a.jsonl.gz", &cut(&gzip("{\"text\": \"a\"}\n")), "a.jsonl.gz, after line"),
        (Corpus::RedPajama, "a.jsonl.gz", b"no gzip at all", "a.jsonl.gz, after line 0: damaged"),
        (Corpus::RedPajama, "a.jsonl.zst", &cut(&zstd), "a.jsonl.zst, after line"),
        (Corpus::RedPajama, "a.jsonl", b"", "in: has no documents to prepare"),
        (
            Corpus::RedPajama,
            "a.jsonl",
            b"{\"text\": \"a\"}",
            "in: has a single document, which cannot be divided",
        ),
    ];
    for (kind, name, contents, want) in cases {
        let root = corpus(&[(&format!("in/{name}"), contents), ("in/z.txt", b"more\n")]);
        let error = run(&options(kind, &root)).unwrap_err();
        assert!(error.contains(want), "{error}");
        assert!(nothing_was_written(&root), "{want}");
    }
}

#[test]
fn the_first_of_several_errors_is_told() {
    let root = corpus(&[
        ("in/a.jsonl", b"{\"text\": \"a\"}\n{\"text\": 1}\n{\"text\": 2}\n"),
        ("in/b.jsonl.gz", b"damaged"),
    ]);
    let error = run(&options(Corpus::RedPajama, &root)).unwrap_err();
    assert!(error.contains("a.jsonl, line 2: "), "{error}");
}

#[test]
fn long_lines_and_undivided_documents_are_refused() {
    let root =
        corpus(&[("in/a.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"a long one\"}\n"), ("in/b.jsonl", b"")]);
    let mut options = options(Corpus::RedPajama, &root);
    options.max_document_bytes = 16;
    let error = run(&options).unwrap_err();
    assert!(error.contains("a.jsonl, line 2: the line is longer than 16 bytes"), "{error}");

    let text = "x".repeat(1 << 20);
    let root = corpus(&[("in/a.txt", text.as_bytes()), ("in/b.txt", b"x")]);
    let mut options = self::options(Corpus::Text, &root);
    options.max_document_bytes = 1 << 18;
    let error = run(&options).unwrap_err();
    assert!(error.contains("a.txt, line 1: ") && error.contains("is longer than 262144 bytes"), "{error}");
}

#[test]
fn folders_that_cannot_be_written_are_named() {
    let root = corpus(&[("in/a.txt", b"one"), ("in/b.txt", b"two"), ("out", b"a file")]);
    let error = run(&options(Corpus::Text, &root)).unwrap_err();
    assert!(error.starts_with("--output: ") && error.ends_with("out is a file; name a folder"), "{error}");
    let mut options = options(Corpus::Text, &root);
    options.output = root.path().join("out/below");
    let error = run(&options).unwrap_err();
    assert!(error.contains("out/below") && error.starts_with("cannot "), "{error}");
}

#[test]
fn wide_tokens_are_asked_for_or_needed() {
    let root = corpus(&[("in/a.txt", b"Hello world"), ("in/b.txt", b"Hello")]);
    let mut options = options(Corpus::Text, &root);
    options.dtype = Some(TokenType::Uint32);
    run(&options).unwrap();
    assert_eq!(fs::read(root.path().join("out/validation.bin")).unwrap().len(), 12);
    assert_eq!(tokens(&root, "validation.bin"), [15496, 995, EOT], "dataset.json tells the width");

    let json = r#"{"version":"1.0","added_tokens":[],"model":{"type":"WordLevel","unk_token":"one",
        "vocab":{"one":0,"two":70000,"</s>":2}},"pre_tokenizer":{"type":"Whitespace"}}"#;
    let tokenizer = Tokenizer::from_json(json.as_bytes(), "wide", None).unwrap();
    options.force = true;
    write(root.path(), &[("in/a.txt", b"one two")]);
    options.dtype = Some(TokenType::Uint16);
    let error = prepare(&options, &tokenizer, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("--dtype") && error.contains("uint16"), "{error}");
    options.dtype = None;
    prepare(&options, &tokenizer, &mut |_| {}).unwrap();
    assert_eq!(tokens(&root, "validation.bin"), [0, 70000, 2]);
}

#[test]
fn the_demo_corpus_can_be_prepared_both_ways() {
    let root = tempfile::tempdir().unwrap();
    generate_demo_corpus(&root.path().join("in"), 1, 200_000).unwrap();
    let pg19 = run(&options(Corpus::Pg19, &root)).unwrap();
    let mut options = options(Corpus::Text, &root);
    options.force = true;
    let text = run(&options).unwrap();
    for info in [&pg19.info, &text.info] {
        assert_eq!(info.splits[&Split::Train].documents, 5);
        assert_eq!(info.splits[&Split::Validation].documents, 5);
    }
    assert!(pg19.info.splits[&Split::Train].tokens > 20_000);
}
