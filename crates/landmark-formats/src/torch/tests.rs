//! Files made by PyTorch (`tests/data/make_torch.py` says how), and pickles assembled by hand that PyTorch would never
//! write.

use super::*;
use std::io::Write;

/// The files that `make_torch.py` makes.
macro_rules! data {
    ($name:literal) => {
        include_bytes!(concat!("../../tests/data/", $name))
    };
}

const CHECKPOINTS: [(&str, &[u8]); 4] = [
    ("checkpoint2.pt", data!("checkpoint2.pt")),
    ("checkpoint3.pt", data!("checkpoint3.pt")),
    ("checkpoint4.pt", data!("checkpoint4.pt")),
    ("checkpoint5.pt", data!("checkpoint5.pt")),
];

fn read(name: &str, bytes: &[u8]) -> Result<TorchFile> {
    TorchFile::from_bytes(name, bytes.to_vec())
}

fn message(result: Result<TorchFile>) -> String {
    result.expect_err("it must not load").to_string()
}

/// All tensors of a bare state dict as `f32`.
fn values(file: &TorchFile, path: &[&str]) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let tensors = file.state_dict(path).unwrap();
    let value = |(name, meta): (String, TensorMeta)| {
        let tensor = file.tensor(&meta).unwrap();
        (name, tensor.shape().to_vec(), tensor.to_f32())
    };
    tensors.into_iter().map(value).collect()
}

/// A checkpoint with this pickle, and storages "0", "1", ... of these bytes.
fn checkpoint(pickle: &[u8], storages: &[&[u8]]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut zip = rawzip::ZipArchiveWriter::new(&mut file);
    let mut add = |name: &str, bytes: &[u8]| {
        let (mut entry, config) = zip.new_file(name).start().unwrap();
        let mut writer = config.wrap(&mut entry);
        writer.write_all(bytes).unwrap();
        let (_, descriptor) = writer.finish().unwrap();
        entry.finish(descriptor).unwrap();
    };
    add("archive/data.pkl", pickle);
    add("archive/byteorder", b"little");
    for (key, bytes) in storages.iter().enumerate() {
        add(&format!("archive/data/{key}"), bytes);
    }
    zip.finish().unwrap();
    file
}

fn load(pickle: &[u8]) -> Result<TorchFile> {
    read("crafted", &checkpoint(pickle, &[&[0; 64]]))
}

/// The pickle of {"w": a float tensor with this offset, size and stride}, each given as opcodes.
fn tensor_pickle(offset: &[u8], size: &[u8], stride: &[u8]) -> Vec<u8> {
    [
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage"
            .as_slice(),
        b"ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x10tQ",
        offset,
        size,
        stride,
        b"\x89ccollections\nOrderedDict\n)RtRs.",
    ]
    .concat()
}

#[test]
fn every_element_type_is_read() {
    let file = read("dtypes.pt", data!("dtypes.pt")).unwrap();
    let mut seen = Vec::new();
    for (key, value) in file.root().entries() {
        let name = key.as_str().unwrap();
        let Some(meta) = value.as_tensor() else {
            assert!(matches!(value.kind(), Kind::Opaque("torch.ComplexFloatStorage")), "{name}: {value:?}");
            continue;
        };
        let expected = if name == "bool" { [0.0, 1.0, 1.0, 1.0] } else { [0.0, 1.0, 2.0, 3.0] };
        assert_eq!(file.tensor(meta).unwrap().to_f32(), expected, "{name}");
        seen.push(meta.dtype());
    }
    assert_eq!(seen.len(), DType::ALL.len());
    assert!(DType::ALL.iter().all(|dtype| seen.contains(dtype)), "{seen:?}");
    // As weights, a type that is not supported is an error that says which.
    let error = file.state_dict(&[]).unwrap_err().to_string();
    assert!(error.contains("complex64") && error.contains("torch.ComplexFloatStorage"), "{error}");
}

#[test]
fn views_are_gathered_by_their_strides() {
    let file = read("views.pt", data!("views.pt")).unwrap();
    // base[i][j][k] = 12 i + 4 j + k
    let at = |i: usize, j: usize, k: usize| (12 * i + 4 * j + k) as f32;
    let mut transposed = Vec::new();
    let mut permuted = Vec::new();
    for (outer, inner) in (0..4).flat_map(|k| (0..3).map(move |j| (k, j))) {
        transposed.extend((0..2).map(|i| at(i, inner, outer)));
    }
    for (j, k) in (0..3).flat_map(|j| (0..4).map(move |k| (j, k))) {
        permuted.extend((0..2).map(|i| at(i, j, k)));
    }
    let expected: Vec<(&str, Vec<usize>, Vec<f32>)> = vec![
        ("base", vec![2, 3, 4], (0..24).map(|n| n as f32).collect()),
        ("transposed", vec![4, 3, 2], transposed),
        ("permuted", vec![3, 4, 2], permuted),
        ("column", vec![2, 3], vec![1.0, 5.0, 9.0, 13.0, 17.0, 21.0]),
        ("tail", vec![3, 4], (12..24).map(|n| n as f32).collect()),
        ("strided", vec![2, 2, 2], vec![0.0, 3.0, 8.0, 11.0, 12.0, 15.0, 20.0, 23.0]),
        ("expanded", vec![3, 4], [0.0, 1.0, 2.0, 3.0].repeat(3)),
        ("scalar", vec![], vec![23.0]),
        ("empty", vec![2, 0, 4], vec![]),
    ];
    let read = values(&file, &[]);
    assert_eq!(read.len(), expected.len());
    for (read, expected) in read.iter().zip(&expected) {
        assert_eq!((read.0.as_str(), &read.1, &read.2), (expected.0, &expected.1, &expected.2));
    }
    let tensors = file.state_dict(&[]).unwrap();
    assert!(tensors.iter().all(|(_, meta)| meta.shares_storage(&tensors[0].1)));
    let tail = file.tensor(&tensors[4].1).unwrap();
    assert!(matches!(tail.into_data(), std::borrow::Cow::Borrowed(_)), "a contiguous view is not copied");
}

#[test]
fn weights_load_from_beside_odd_objects() {
    for (name, bytes) in CHECKPOINTS {
        let file = read(name, bytes).unwrap();
        let weights = values(&file, &["model"]);
        assert_eq!(
            weights[0],
            ("weight".to_string(), vec![2, 3], vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]),
            "{name}"
        );
        assert_eq!(weights[1], ("bias".to_string(), vec![2], vec![-1.0, 1.0]), "{name}");
        assert_eq!(file.root().get("itr").unwrap().as_i64(), Some(7));

        let optimizer = file.root().get("optimizer").unwrap();
        let (_, first) = optimizer.get("state").unwrap().entries().next().unwrap();
        let average = first.get("exp_avg").unwrap().as_tensor().unwrap();
        assert_eq!(average.shape(), [2, 3]);
        let group = optimizer.get("param_groups").unwrap().elements().next().unwrap();
        assert_eq!(group.get("betas").unwrap().elements().nth(1).unwrap().as_f64(), Some(0.999));

        let scheduler = file.root().get("scheduler").unwrap();
        assert_eq!(scheduler.get("total_steps").unwrap().as_i64(), Some(10));
        assert_eq!(scheduler.get("default").unwrap().get("a").unwrap().elements().len(), 1);
        for (key, global) in [("strange", "__main__.Strange"), ("partial", "functools.partial")] {
            let kind = scheduler.get(key).unwrap().kind();
            assert!(matches!(kind, Kind::Opaque(found) if found == global), "{name} {key}: {kind:?}");
        }
        let parameter = file.root().get("parameter").unwrap().as_tensor().unwrap();
        assert_eq!(file.tensor(parameter).unwrap().to_f32(), [0.0, 1.0]);
    }
}

#[test]
fn scalars_of_every_kind_are_read() {
    for (name, bytes) in CHECKPOINTS {
        let file = read(name, bytes).unwrap();
        let scalars = file.root().get("scalars").unwrap();
        let get = |key: &str| scalars.get(key).unwrap().kind();
        assert!(matches!(get("float"), Kind::Float(1.5)), "{name}: {:?}", get("float"));
        assert!(matches!(get("single"), Kind::Float(-0.25)));
        assert!(matches!(get("int"), Kind::Int(-3)));
        assert!(matches!(get("bool"), Kind::Bool(true)));
        assert!(matches!(get("large"), Kind::LargeInt));
        assert!(matches!(get("negative"), Kind::Int(-0x100_0000_0000)));
        assert!(matches!(get("set"), Kind::List(1)), "{name}: {:?}", get("set"));
        assert!(matches!(get("none"), Kind::None));
        assert!(matches!(get("device"), Kind::Str("cpu")));
        assert!(matches!(get("dtype"), Kind::DType(DType::BF16)));
        assert!(matches!(get("size"), Kind::Tuple(2)));
        assert!(matches!(get("bytes"), Kind::Bytes(b"\x00\xff")), "{name}: {:?}", get("bytes"));
        assert!(matches!(get("text"), Kind::Str("\u{e9}")));
    }
}

#[test]
fn errors_say_what_there_is_instead() {
    let file = read("checkpoint2.pt", CHECKPOINTS[0].1).unwrap();
    let missing = file.state_dict(&["modle"]).unwrap_err().to_string();
    assert!(missing.contains("checkpoint2.pt") && missing.contains("optimizer"), "{missing}");
    let number = file.state_dict(&["itr"]).unwrap_err().to_string();
    assert!(number.contains("`itr` is an integer"), "{number}");
    let odd = file.state_dict(&["scheduler"]).unwrap_err().to_string();
    assert!(odd.contains("getattr"), "{odd}");
}

#[test]
fn attacks_do_not_load_and_are_named() {
    for (name, bytes) in [("attack2.pt", &data!("attack2.pt")[..]), ("attack4.pt", &data!("attack4.pt")[..])]
    {
        let error = message(read(name, bytes));
        assert!(error.contains(name) && error.contains("posix.system"), "{error}");
        assert!(error.contains("nothing was executed"), "{error}");
    }
    let pickles: [(&[u8], &str); 5] = [
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        (b"\x80\x02c__builtin__\neval\nX\x01\x00\x00\x001\x85R.", "__builtin__.eval"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93.", "builtins.exec"),
        (b"(S'true'\nisubprocess\nPopen\n.", "subprocess.Popen"),
        (b"\x80\x02cimportlib\nimport_module\n.", "importlib.import_module"),
    ];
    for (pickle, global) in pickles {
        let error = message(load(pickle));
        assert!(error.contains(global), "{error}");
    }
}

#[test]
fn other_formats_are_told_apart() {
    let legacy = message(read("legacy.pt", data!("legacy.pt")));
    assert!(legacy.contains("before version 1.6") && legacy.contains("save it again"), "{legacy}");
    let deflated = message(read("deflated.pt", data!("deflated.pt")));
    assert!(deflated.contains("compressed"), "{deflated}");
    let mut safetensors = 2u64.to_le_bytes().to_vec();
    safetensors.extend_from_slice(b"{}");
    assert!(message(read("w.bin", &safetensors)).contains("safetensors"));
    assert!(message(read("empty.pt", b"")).contains("0 bytes"));
    assert!(message(read("text.pt", b"hello")).contains("text.pt"));
}

#[test]
fn big_endian_files_are_refused() {
    let mut file = data!("views.pt").to_vec();
    let at = file.windows(6).position(|window| window == b"little").unwrap();
    file[at..at + 6].copy_from_slice(b"BIGGER");
    assert!(message(TorchFile::from_bytes_with("b.pt", file, Checksums::Ignore)).contains("byteorder"));
}

#[test]
fn every_truncation_is_an_error() {
    let whole = CHECKPOINTS[0].1;
    for length in 0..whole.len() {
        let error = message(read("cut.pt", &whole[..length]));
        assert!(error.contains("cut.pt"), "{error}");
    }
}

#[test]
fn no_flipped_bit_goes_unnoticed() {
    let whole = data!("views.pt");
    let intact = values(&read("views.pt", whole).unwrap(), &[]);
    let (mut noticed, mut harmless) = (0, 0);
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let outcome = TorchFile::from_bytes("f", flipped).and_then(|file| {
            let tensors = file.state_dict(&[])?;
            tensors.iter().map(|(_, meta)| Ok(file.tensor(meta)?.to_f32())).collect::<Result<Vec<_>>>()
        });
        match outcome {
            Err(_) => noticed += 1,
            // Padding and fields that nobody reads: then the values must be what they were.
            Ok(values) => {
                harmless += 1;
                let intact: Vec<_> = intact.iter().map(|(_, _, values)| values).collect();
                assert_eq!(values.iter().collect::<Vec<_>>(), intact, "bit {bit}");
            }
        }
    }
    assert!(noticed > 0 && harmless > 0, "{noticed} {harmless}");
}

#[test]
fn checksums_can_be_ignored_where_they_are_not_true() {
    let mut file = data!("views.pt").to_vec();
    let one = 1f32.to_le_bytes();
    let at = file.windows(8).position(|window| window == [[0; 4], one].concat()).unwrap();
    file[at..at + 4].copy_from_slice(&9f32.to_le_bytes());
    let verifying = TorchFile::from_bytes("v", file.clone()).unwrap();
    let meta = verifying.root().get("base").unwrap().as_tensor().unwrap();
    assert!(verifying.tensor(meta).unwrap_err().to_string().contains("checksum"));
    let trusting = TorchFile::from_bytes_with("t", file, Checksums::Ignore).unwrap();
    let meta = trusting.root().get("base").unwrap().as_tensor().unwrap();
    assert_eq!(trusting.tensor(meta).unwrap().to_f32()[0], 9.0);
}

#[test]
fn tensors_must_lie_within_their_storage() {
    // Sixteen floats; (4, 4) from 0 fits exactly.
    let square: &[u8] = b"K\x04K\x04\x86";
    let strides: &[u8] = b"K\x04K\x01\x86";
    assert!(load(&tensor_pickle(b"K\x00", square, strides)).is_ok());
    let huge: &[u8] = b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f";
    let many_dimensions = [b"(".as_slice(), &b"K\x01".repeat(65), b"t"].concat();
    type Case<'a> = (&'a str, &'a [u8], Vec<u8>, Vec<u8>); // what, offset, size, stride
    let cases: [Case<'_>; 8] = [
        ("one beyond the end", b"K\x01", square.into(), strides.into()),
        ("stride beyond the end", b"K\x00", square.into(), b"K\x05K\x01\x86".into()),
        ("negative offset", b"J\xff\xff\xff\xff", square.into(), strides.into()),
        ("negative stride", b"K\x00", square.into(), b"J\xff\xff\xff\xffK\x01\x86".into()),
        ("overflowing offset", huge, square.into(), strides.into()),
        ("overflowing shape", b"K\x00", [huge, huge, b"\x86"].concat(), strides.into()),
        ("fewer strides than dimensions", b"K\x00", square.into(), b"K\x01\x85".into()),
        ("too many dimensions", b"K\x00", many_dimensions.clone(), many_dimensions),
    ];
    for (what, offset, size, stride) in cases {
        let error = load(&tensor_pickle(offset, &size, &stride)).expect_err(what).to_string();
        assert!(error.contains("tensor"), "{what}: {error}");
    }
}

#[test]
fn small_storages_do_not_become_huge_tensors() {
    // One float, repeated 2^20 x 2^12 times with stride 0: 16 GiB.
    let file = load(&tensor_pickle(b"K\x00", b"J\x00\x00\x10\x00M\x00\x10\x86", b"K\x00K\x00\x86")).unwrap();
    let meta = file.root().get("w").unwrap().as_tensor().unwrap();
    assert!(file.tensor(meta).unwrap_err().to_string().contains("repeats"));
    assert!(file.state_dict(&[]).unwrap_err().to_string().contains("far more"));
}

#[test]
fn dimensions_of_length_one_may_have_any_stride() {
    let huge: &[u8] = b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f";
    let stride = [huge, b"K\x02K\x01\x87"].concat();
    let file = load(&tensor_pickle(b"K\x00", b"K\x01K\x03K\x01\x87", &stride)).unwrap();
    let meta = file.root().get("w").unwrap().as_tensor().unwrap();
    assert_eq!(file.tensor(meta).unwrap().shape(), [1, 3, 1]);
}

#[test]
fn nesting_and_sharing_cost_nothing() {
    // Half a million lists in one another: as a tree this overflows the stack when it is dropped or printed.
    let deep = [b"\x80\x02".as_slice(), &b"]".repeat(500_000), &b"a".repeat(499_999), b"."].concat();
    let file = load(&deep).unwrap();
    assert_eq!(format!("{:?}", file.root()), "List(1)");
    // Each list holds the one before twice: 2^60 elements as a tree.
    let doubling = [b"\x80\x02]".as_slice(), &b"2\x86".repeat(60), b"."].concat();
    assert!(matches!(load(&doubling).unwrap().root().kind(), Kind::Tuple(2)));
    // A dictionary that holds itself.
    let cycle = load(b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.").unwrap();
    assert!(matches!(cycle.root().get("a").unwrap().get("a").unwrap().kind(), Kind::Dict(1)));
}

#[test]
fn the_memo_sees_later_additions() {
    // [d, d] where d is kept while empty and filled afterwards.
    let pickle = b"\x80\x02](}q\x00X\x01\x00\x00\x00kK\x05sh\x00e.";
    let file = load(pickle).unwrap();
    for element in file.root().elements() {
        assert_eq!(element.get("k").unwrap().as_i64(), Some(5));
    }
}

#[test]
fn budgets_stop_amplification() {
    let endless = [b"\x80\x02".as_slice(), &b"N".repeat(9_000_000), b"."].concat();
    assert!(message(load(&endless)).contains("absurd"));
    // A name of a million letters, named ten thousand times.
    let long = "x".repeat(1 << 20);
    let mut naming = b"\x80\x04X".to_vec();
    naming.extend_from_slice(&(long.len() as u32).to_le_bytes());
    naming.extend_from_slice(long.as_bytes());
    naming.extend_from_slice(b"q\x00");
    naming.extend_from_slice(&b"h\x00h\x00\x93".repeat(10_000));
    naming.push(b'.');
    assert!(message(load(&naming)).contains("absurd"));
    // A dictionary of a thousand pairs, made again and again.
    let pairs =
        [b"\x80\x02ccollections\nOrderedDict\nq\x00](".as_slice(), &b"NN\x86".repeat(1000), b"e\x85q\x01"]
            .concat();
    let making = [pairs, b"h\x00h\x01R".repeat(100_000), b".".to_vec()].concat();
    assert!(message(load(&making)).contains("absurd"));
}

#[test]
fn malformed_pickles_are_errors() {
    let cases: [&[u8]; 17] = [
        b"",
        b".",
        b"\x80",
        b"\x80\x06N.",
        b"N",
        b"h\x00.",
        b"t.",
        b"(.",
        b"N(0\x86.",
        b"}NNNu.",
        b"}(Nu.",
        b"NNa.",
        b"NNNs.",
        b"N)R.",
        b"\x8b\xff\xff\xff\xffabc.",
        b"X\xff\xff\xff\xffabc.",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\xffabc.",
    ];
    for pickle in cases {
        let error = message(load(pickle));
        assert!(error.contains("crafted"), "{pickle:?}: {error}");
    }
}

#[test]
fn protocol_zero_is_read() {
    // pickle.dumps({"a": [1, 2.5, True, None, 10**20, (3,)]}, 0), with its memo.
    let pickle = b"(dp0\nVa\np1\n(lp2\nI1\naF2.5\naI01\naNaL100000000000000000000L\na(I3\ntp3\nas.";
    let file = load(pickle).unwrap();
    let list: Vec<Value<'_>> = file.root().get("a").unwrap().elements().collect();
    assert_eq!(list[0].as_i64(), Some(1));
    assert_eq!(list[1].as_f64(), Some(2.5));
    assert!(matches!(list[2].kind(), Kind::Bool(true)));
    assert!(matches!(list[3].kind(), Kind::None));
    assert!(matches!(list[4].kind(), Kind::LargeInt));
    assert!(matches!(list[5].kind(), Kind::Tuple(1)));
}

#[test]
fn storages_must_exist() {
    let pickle = tensor_pickle(b"K\x00", b"K\x04\x85", b"K\x01\x85");
    let error = message(read("crafted", &checkpoint(&pickle, &[])));
    assert!(error.contains("storage `0`") && error.contains("missing"), "{error}");
}

#[test]
fn tensors_of_another_file_do_not_panic() {
    let views = read("views.pt", data!("views.pt")).unwrap();
    let small = load(&tensor_pickle(b"K\x00", b"K\x04\x85", b"K\x01\x85")).unwrap();
    for (_, meta) in views.state_dict(&[]).unwrap() {
        let _ = small.tensor(&meta);
    }
    for (name, bytes) in CHECKPOINTS {
        let other = read(name, bytes).unwrap();
        for (_, value) in other.root().get("optimizer").unwrap().get("state").unwrap().entries() {
            let _ = small.tensor(value.get("exp_avg_sq").unwrap().as_tensor().unwrap());
        }
    }
}
