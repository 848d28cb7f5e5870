//! What can be checked of the tree itself: sizes, module documentation, words that do not belong, `unsafe`, who
//! may depend on whom, and that an op has one name wherever it lives.
//!
//! Each rule is a function of names and texts, so that each is seen to fail here on a planted breach.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Longest Rust file, in lines. A reader should hold a file in mind; this is where it is certainly too much.
const LONGEST: usize = 700;

/// The only modules with `unsafe`, each of them a door that checks what it lets through.
const DOORS: [&str; 21] = [
    "crates/landmark-cli/src/environment.rs",
    "crates/landmark-core/src/cpu/gemm.rs",
    "crates/landmark-cuda/src/cublaslt.rs",
    "crates/landmark-cuda/src/driver.rs",
    "crates/landmark-cuda/src/fused.rs",
    "crates/landmark-cuda/src/libraries.rs",
    "crates/landmark-cuda/src/nvrtc.rs",
    "crates/landmark-cuda/tests/fused.rs",
    "crates/landmark-emulator/src/driver.rs",
    "crates/landmark-emulator/src/gemm_door.rs",
    "crates/landmark-emulator/src/lt.rs",
    "crates/landmark-emulator/src/machine/memory.rs",
    "crates/landmark-emulator/src/machine/warp.rs",
    "crates/landmark-emulator/src/machine/warp/access.rs",
    "crates/landmark-emulator/src/memory.rs",
    "crates/landmark-emulator/src/status.rs",
    "crates/landmark-emulator/tests/driver.rs",
    "crates/landmark-formats/src/bytes.rs",
    "crates/landmark-wgpu/src/device.rs",
    "crates/landmark-wgpu/src/matrix_units.rs",
    "examples/candle/src/op.rs",
];

/// Which crates of this workspace a crate may depend on. Backends know the core and not each other.
const MAY_KNOW: [(&str, &[&str]); 12] = [
    ("landmark-attention-in-candle", &["landmark-core", "landmark-cuda"]),
    ("landmark-core", &[]),
    ("landmark-model", &["landmark-core"]),
    ("landmark-cuda", &["landmark-core"]),
    ("landmark-wgpu", &["landmark-core"]),
    ("landmark-emulator", &[]),
    ("landmark-formats", &["landmark-core"]),
    ("landmark-data", &["landmark-formats"]),
    ("landmark-probe", &["landmark-formats"]),
    (
        "landmark-web",
        &[
            "landmark-core",
            "landmark-data",
            "landmark-formats",
            "landmark-model",
            "landmark-probe",
            "landmark-wgpu",
        ],
    ),
    (
        "landmark-cli",
        &[
            "landmark-core",
            "landmark-cuda",
            "landmark-data",
            "landmark-formats",
            "landmark-model",
            "landmark-probe",
            "landmark-wgpu",
        ],
    ),
    (
        "landmark-tests",
        &[
            "landmark-core",
            "landmark-cuda",
            "landmark-data",
            "landmark-formats",
            "landmark-model",
            "landmark-wgpu",
        ],
    ),
];

/// Files of `ops/` that hold no op, and so need no twin.
const NOT_OPS: [&str; 1] = ["mod.rs"];

/// Files of `cpu/` that ops share.
const CPU_SHARED: [&str; 7] =
    ["pager.rs", "gemm.rs", "grouped_softmax.rs", "mod.rs", "real.rs", "storage.rs", "top_k.rs"];

/// What is not part of the source (`.git` is a file in a linked worktree).
const SKIPPED: [&str; 11] = [
    ".git",
    "target",
    "exps",
    "demo",
    "data",
    "fixtures",
    "seeds",
    "fuzz/corpus",
    "fuzz/artifacts",
    "node_modules",
    "web/dist",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a parent").to_path_buf()
}

/// Path from the root (with `/`) and text of every source and text file.
fn tree() -> BTreeMap<String, String> {
    let (root, mut files) = (root(), BTreeMap::new());
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(&root).expect("inside").to_string_lossy().replace('\\', "/");
            let last = name.rsplit('/').next().unwrap_or_default();
            if SKIPPED.contains(&last) || SKIPPED.contains(&name.as_str()) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if last != "Cargo.lock"
                && let Ok(text) = std::fs::read_to_string(&path)
            {
                files.insert(name, text);
            }
        }
    }
    assert!(files.len() > 100, "the tree was found");
    files
}

fn assert_none(rule: &str, breaches: &[String]) {
    assert!(breaches.is_empty(), "{rule}:\n  {}", breaches.join("\n  "));
}

/// Whether `word` stands in `line` by itself.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        !line[..at].ends_with(is_part) && !line[at + word.len()..].starts_with(is_part)
    })
}

/// Longer than [`LONGEST`], or without a first paragraph.
fn shape(name: &str, text: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    let lines = text.lines().count();
    if lines > LONGEST {
        breaches.push(format!("{name} has {lines} lines, more than {LONGEST}: split it"));
    }
    if !text.starts_with("//!") {
        breaches.push(format!("{name} does not begin with `//!` and what it is for"));
    }
    breaches
}

#[test]
fn files_are_of_readable_length_and_say_what_they_are() {
    let files = tree();
    let rust = files.iter().filter(|(name, _)| name.ends_with(".rs"));
    assert_none("shape", &rust.flat_map(|(name, text)| shape(name, text)).collect::<Vec<_>>());

    assert_eq!(shape("a.rs", "use std;\n").len(), 1);
    assert_eq!(shape("a.rs", &format!("//! a\n{}", "x\n".repeat(LONGEST))).len(), 1);
    assert!(shape("a.rs", "//! a\n").is_empty());
}

/// Notes to oneself, and places that exist on one machine only. Put together here, so that this file passes.
fn forbidden() -> Vec<String> {
    [["TO", "DO"], ["FIX", "ME"], ["to", "do!"], ["unimple", "mented!"], ["db", "g!"], ["sess", "ion"]]
        .iter()
        .map(|parts| parts.concat())
        .chain(["work", "home", "root", "Users"].map(|folder| format!("/{folder}/")))
        .collect()
}

fn words(name: &str, text: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for word in forbidden() {
            let found = if word.starts_with('/') { line.contains(&word) } else { has_word(line, &word) };
            if found {
                breaches.push(format!("{name}:{}: {word}", number + 1));
            }
        }
    }
    breaches
}

#[test]
fn nothing_is_left_for_later_and_no_path_is_private() {
    assert_none("words", &tree().iter().flat_map(|(name, text)| words(name, text)).collect::<Vec<_>>());
    for word in forbidden() {
        let line = if word.starts_with('/') { format!("{word}a") } else { format!("// {word}") };
        assert_eq!(words("a.rs", &line).len(), 1, "{line}");
    }
    assert!(words("a.rs", "obsessions").is_empty());
}

/// `unsafe` in code, or leave given for it.
fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    has_word(code, "unsafe") || code.contains("allow(unsafe_code") || code.contains("expect(unsafe_code")
}

#[test]
fn unsafe_stays_behind_its_doors() {
    let files = tree();
    let is_code = |name: &str| name.ends_with(".rs") && name != "tests/tests/tidy.rs";
    let with: BTreeSet<&str> = files
        .iter()
        .filter(|(name, text)| is_code(name) && text.lines().any(is_unsafe))
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(with, BTreeSet::from(DOORS), "modules with unsafe code");
    for line in ["    unsafe {", "#![allow(unsafe_code)]", "pub unsafe fn f() {"] {
        assert!(is_unsafe(line), "{line}");
    }
    assert!(!is_unsafe("#![forbid(unsafe_code)]") && !is_unsafe("// unsafe"));
}

/// Crates of this workspace among the dependencies (of any kind) of a manifest.
fn siblings(manifest: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut in_dependencies = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            in_dependencies = line.contains("dependencies");
        } else if in_dependencies && line.starts_with("landmark-") {
            found.insert(line.split(['.', ' ', '=']).next().unwrap_or_default().to_string());
        }
    }
    found
}

#[test]
fn crates_know_only_whom_they_may() {
    let files = tree();
    let mut crates = 0;
    for (path, manifest) in files.iter().filter(|(path, _)| path.ends_with("/Cargo.toml")) {
        if path.starts_with("fuzz/") {
            continue;
        }
        let name = manifest.lines().find_map(|l| l.strip_prefix("name = \"")).expect("a name");
        let name = name.trim_end_matches('"');
        let (_, may) = MAY_KNOW.iter().find(|(known, _)| *known == name).unwrap_or_else(|| {
            panic!("{name} is new: say in MAY_KNOW, and in ARCHITECTURE.md, whom it may depend on")
        });
        let known = siblings(manifest);
        let breaches: Vec<String> =
            known.into_iter().filter(|k| k != name && !may.contains(&k.as_str())).collect();
        assert_none(&format!("{name} must not depend on"), &breaches);
        crates += 1;
    }
    assert_eq!(crates, MAY_KNOW.len(), "every crate is checked");
    let planted = "[dependencies]\nlandmark-cli.workspace = true\n[dev-dependencies]\nlandmark-data = { }\n";
    assert_eq!(siblings(planted).len(), 2);
}

#[test]
fn third_party_versions_say_why_they_are_there() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("the manifest");
    let section = manifest.split("[workspace.dependencies]").nth(1).expect("dependencies");
    let section = section.split("\n[").next().expect("an end");
    let lines = section.lines().filter(|l| !l.is_empty() && !l.starts_with(['#', ' ']));
    let bare: Vec<String> =
        lines.filter(|l| !l.contains("path = ") && !l.contains(" # ")).map(str::to_string).collect();
    assert_none("dependencies without a reason", &bare);
}

/// Names in `ops` and not in `cpu`, or the other way round.
fn unpaired(ops: &BTreeSet<String>, cpu: &BTreeSet<String>) -> Vec<String> {
    let only = |a: &BTreeSet<String>, b: &BTreeSet<String>, where_: &str| {
        a.difference(b).map(|name| format!("{name} is in {where_} only")).collect::<Vec<_>>()
    };
    [only(ops, cpu, "ops/"), only(cpu, ops, "cpu/")].concat()
}

#[test]
fn an_op_has_one_name_in_every_place() {
    let files = tree();
    let names = |folder: &str, without: &[&str]| -> BTreeSet<String> {
        let names = files.keys().filter_map(|path| path.strip_prefix(folder));
        names.filter(|name| !name.contains('/') && !without.contains(name)).map(str::to_string).collect()
    };
    let ops = names("crates/landmark-core/src/ops/", &NOT_OPS);
    let cpu = names("crates/landmark-core/src/cpu/", &CPU_SHARED);
    assert!(ops.len() > 5);
    assert_none("ops and their CPU twins", &unpaired(&ops, &cpu));

    let mut planted = cpu.clone();
    planted.remove("rope.rs");
    planted.insert("rotary.rs".into());
    assert_eq!(unpaired(&ops, &planted).len(), 2);
}

#[test]
fn every_fuzz_target_is_built_documented_and_seeded() {
    let files = tree();
    let (manifest, readme) = (&files["fuzz/Cargo.toml"], &files["fuzz/README.md"]);
    let targets = files.iter().filter_map(|(path, text)| {
        let name = path.strip_prefix("fuzz/fuzz_targets/")?.strip_suffix(".rs")?;
        text.contains("fuzz_target!").then_some(name)
    });
    let mut breaches = Vec::new();
    for target in targets {
        if !manifest.contains(&format!("path = \"fuzz_targets/{target}.rs\"")) {
            breaches.push(format!("{target} is not in fuzz/Cargo.toml"));
        }
        if !readme.contains(&format!("| `{target}` |")) {
            breaches.push(format!("{target} is not in fuzz/README.md"));
        }
        if target != "torch" && !root().join("fuzz/seeds").join(target).is_dir() {
            breaches.push(format!("{target} has no fuzz/seeds/{target}"));
        }
    }
    assert_none("fuzz targets", &breaches);
}
