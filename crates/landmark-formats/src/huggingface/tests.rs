//! Folders of one file and of several, and folders that contradict themselves.

use super::*;
use crate::safetensors::{TensorSource, write_safetensors};
use crate::tensor::float_bytes;
use serde_json::json;
use std::collections::BTreeMap;

fn source(name: &str, values: &[f32], dtype: DType) -> TensorSource<'static> {
    TensorSource::new(name, dtype, vec![values.len()], float_bytes(values, dtype).unwrap())
}

/// A folder of three tensors, in files of at most `limit` bytes.
fn folder(limit: u64) -> (tempfile::TempDir, PathBuf) {
    let outer = tempfile::tempdir().unwrap();
    let path = outer.path().join("made/model");
    let writer = ModelWriter::create(&path).unwrap();
    let tensors = vec![
        source("a", &[1.0, 2.0], DType::F32),
        source("b", &[3.0, 4.0, 5.0], DType::F32),
        source("c", &[6.0], DType::F32),
    ];
    writer.write_weights(tensors, limit).unwrap();
    assert!(!path.exists(), "nothing is there before the end");
    writer.finish(json!({"model_type": "llama"}).as_object().unwrap()).unwrap();
    (outer, path)
}

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn what_is_written_is_read_in_one_file_or_several() {
    for (limit, shards) in [(SHARD_BYTES, 1), (24, 1), (23, 2), (16, 2), (12, 3), (1, 3)] {
        let (_outer, path) = folder(limit);
        let weights = WeightFolder::open(&path).unwrap();
        assert_eq!(weights.shard_count(), shards, "{limit}: {:?}", files(&path));
        assert_eq!(weights.names().collect::<Vec<_>>(), ["a", "b", "c"]);
        for (name, expected) in [("a", &[1.0, 2.0][..]), ("b", &[3.0, 4.0, 5.0]), ("c", &[6.0])] {
            let tensor = weights.get(name).unwrap();
            assert_eq!(tensor.to_f32(), expected);
            weights.release(name, tensor.data());
            assert_eq!(tensor.to_f32(), expected, "released, and read again");
            assert_eq!(weights.shape(name).unwrap(), [expected.len()]);
            assert_eq!(weights.dtype(name).unwrap(), DType::F32);
        }
        assert!(weights.contains("a") && !weights.contains("d"));
        assert!(weights.get("d").unwrap_err().to_string().contains("`d`"));
        let index = path.join("model.safetensors.index.json");
        assert_eq!(index.exists(), shards > 1);
        if shards == 3 {
            let index: serde_json::Value = serde_json::from_slice(&std::fs::read(&index).unwrap()).unwrap();
            assert_eq!(index["metadata"]["total_size"], 24);
            assert_eq!(index["weight_map"]["b"], "model-00002-of-00003.safetensors");
        }
    }
}

/// PyTorch files written by `data/make_torch.py` hold dictionaries; the last of its kinds is a bare one.
#[test]
fn pytorch_files_are_read_by_the_same_name() {
    let outer = tempfile::tempdir().unwrap();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama_bin");
    for file in files(&data) {
        std::fs::copy(data.join(&file), outer.path().join(&file)).unwrap();
    }
    let weights = WeightFolder::open(outer.path()).unwrap();
    assert_eq!(weights.shard_count(), 2);
    assert_eq!(weights.dtype("lm_head.weight").unwrap(), DType::F16);
    assert_eq!(weights.shape("model.embed_tokens.weight").unwrap(), [201, 64]);
    assert_eq!(weights.get("model.norm.weight").unwrap().element_count(), 64);

    std::fs::remove_file(outer.path().join("pytorch_model-00002-of-00002.bin")).unwrap();
    let error = WeightFolder::open(outer.path()).unwrap_err().to_string();
    for said in ["pytorch_model-00002-of-00002.bin", "index.json", "1 of 2"] {
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn contradictions_are_errors() {
    let (_outer, path) = folder(12);
    let index = path.join("model.safetensors.index.json");
    let whole = std::fs::read_to_string(&index).unwrap();
    for (from, to, said) in [
        ("\"a\":", "\"z\":", "`z`"),
        ("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "`a`"),
        ("model-00001-of-00003.safetensors", "../model.safetensors", "no file of its own folder"),
        ("model-00003-of-00003.safetensors", "model-00004.safetensors", "fetch the others"),
        ("\"a\":", "\"b\":", "twice"),
        ("{", "[", "index"),
    ] {
        std::fs::write(&index, whole.replacen(from, to, 1)).unwrap();
        let error = WeightFolder::open(&path).unwrap_err().to_string();
        assert!(error.contains(said), "{from} -> {to}: {error}");
    }
    std::fs::write(&index, &whole).unwrap();
    let again = [source("a", &[1.0], DType::F32), source("c", &[6.0], DType::F32)];
    write_safetensors(&path.join("model-00003-of-00003.safetensors"), again, &BTreeMap::new()).unwrap();
    let error = WeightFolder::open(&path).unwrap_err().to_string();
    assert!(error.contains("`a` is in") && error.contains("00003"), "{error}");
}

#[test]
fn a_folder_without_weights_says_what_it_has() {
    let outer = tempfile::tempdir().unwrap();
    std::fs::write(outer.path().join("config.json"), "{}").unwrap();
    let error = WeightFolder::open(outer.path()).unwrap_err().to_string();
    assert!(error.contains("model.safetensors") && error.contains("config.json"), "{error}");
    assert!(WeightFolder::find(outer.path()).is_none());
}

#[test]
fn nothing_is_overwritten_and_nothing_is_left_behind() {
    let (outer, path) = folder(SHARD_BYTES);
    let error = ModelWriter::create(&path).unwrap_err().to_string();
    assert!(error.contains("name a new folder"), "{error}");
    let other = outer.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let writer = ModelWriter::create(&other).unwrap();
    let failing = TensorSource::lazy("w", DType::F32, vec![1], || Err(Error::tensor("w", "lost")));
    assert!(writer.write_weights(vec![failing], SHARD_BYTES).is_err());
    let twice = vec![source("w", &[1.0], DType::F32), source("w", &[1.0], DType::F32)];
    assert!(writer.write_weights(twice, 1).unwrap_err().to_string().contains("taken"));
    drop(writer);
    assert_eq!(files(outer.path()), ["made", "other"]);
    assert!(files(&other).is_empty());
    ModelWriter::create(&other).unwrap().finish(&serde_json::Map::new()).unwrap();
    assert_eq!(files(&other), ["config.json"]);
}
