//! Safetensors: a length, a JSON header and the tensors' bytes.
//!
//! Reading uses the `safetensors` crate for the header, which checks that the tensors lie one behind another,
//! without gaps or overlaps, and that shapes match lengths. Its own `SafeTensors` type borrows the whole file, so
//! it cannot be kept next to a memory map; [`SafetensorsFile`] keeps the parsed header and makes views on demand.
//!
//! Writing is ours. The crate wants all tensors at hand at once and writes in place or without syncing; a checkpoint
//! of optimiser state should need no second copy in memory, be written atomically, and come out byte for byte the
//! same each time (the crate keeps metadata in a hash map, whose order changes from run to run).
//!
//! Matrices in blocks of 8 or 4 bits are read as their values: see [`quantized`].
//!
//! Format: <https://huggingface.co/docs/safetensors#format>.

use crate::bytes::FileBytes;
use crate::error::{short, some_names};
use crate::quantized;
use crate::tensor::{DType, TensorRef, byte_count};
use crate::{Error, Result};
use landmark_core::quantize::{BLOCK, Bits};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::io::Write;

/// Length of the header's length.
const PREFIX: usize = 8;

/// The largest header that other readers accept; ours are some hundred bytes a tensor.
const LARGEST_HEADER: usize = 100_000_000;

/// The key under which a header holds its free-form strings.
const METADATA_KEY: &str = "__metadata__";

/// An open safetensors file: its header parsed and checked, its tensors not yet touched.
#[derive(Debug)]
pub struct SafetensorsFile {
    bytes: FileBytes,
    header: Metadata,
    names: Vec<String>,
    data_start: usize,
    /// How its matrices are quantised, if they are.
    quantization: Option<Bits>,
}

impl SafetensorsFile {
    /// Maps and checks the file at `path`.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be opened, [`Error::Damaged`] if header, offsets and length do not agree.
    #[cfg(not(target_family = "wasm"))]
    pub fn open(path: &std::path::Path) -> Result<Self> {
        Self::parse(FileBytes::open(path)?)
    }

    /// Checks a file that is in memory; `label` names it in errors.
    ///
    /// # Errors
    /// [`Error::Damaged`], as [`SafetensorsFile::open`].
    pub fn from_bytes(label: impl Into<String>, bytes: Vec<u8>) -> Result<Self> {
        Self::parse(FileBytes::from_vec(label, bytes))
    }

    /// Checks a file, wherever its bytes are.
    ///
    /// # Errors
    /// [`Error::Damaged`], as [`SafetensorsFile::open`].
    pub fn parse(bytes: FileBytes) -> Result<Self> {
        let file = bytes.as_slice();
        let damaged = |reason: String| damaged(bytes.label(), reason);
        let Some((prefix, rest)) = file.split_first_chunk::<PREFIX>() else {
            return Err(damaged(format!("it has {} bytes, not even a header's length", file.len())));
        };
        let length = u64::from_le_bytes(*prefix);
        let header =
            usize::try_from(length).ok().filter(|&n| n <= LARGEST_HEADER).and_then(|n| rest.get(..n));
        let Some(header) = header else {
            return Err(damaged(format!(
                "it gives its header {length} bytes and has {} after that",
                rest.len()
            )));
        };
        let data_start = PREFIX + header.len();
        let header: Metadata = serde_json::from_slice(header)
            .map_err(|e| damaged(format!("its header: {}", short(&e.to_string()))))?;
        // Parsing has shown that the tensors lie one behind another from 0 on, so their last byte is all that is
        // left to check. (The crate's own check adds to it first, which overflows for the largest offsets.)
        if header.data_len() != file.len() - data_start {
            let (expected, actual) = (header.data_len(), file.len() - data_start);
            return Err(damaged(format!("its tensors need {expected} bytes and it holds {actual}")));
        }
        let names = header.offset_keys();
        let mut file = SafetensorsFile { header, names, data_start, bytes, quantization: None };
        file.find_quantized()?;
        Ok(file)
    }

    /// Sees whether matrices are quantised, checks that each has its scales, and takes the scales off the names.
    fn find_quantized(&mut self) -> Result<()> {
        let Some(kind) = self.metadata_value(quantized::METADATA) else { return Ok(()) };
        let Some(bits) = quantized::parse(kind) else {
            return Err(Error::Unsupported {
                file: self.label().to_owned(),
                reason: format!("its weights are quantised as `{}`, and q8 and q4 are known", short(kind)),
            });
        };
        let damaged = |reason: String| Err(damaged(self.label(), reason));
        for name in &self.names {
            let Some(info) = self.header.info(name) else { continue };
            if let Some(of) = name.strip_suffix(quantized::SCALES)
                && self.header.info(of).is_none_or(|info| info.dtype != Dtype::U8)
            {
                return damaged(format!(
                    "there are scales, and no `{}` in U8 that they belong to",
                    short(of)
                ));
            }
            if info.dtype != Dtype::U8 {
                continue;
            }
            let Some([rows, cols]) = quantized::matrix_shape(&info.shape, bits) else {
                return damaged(format!(
                    "`{}` of shape {:?} is not whole blocks of {kind}",
                    short(name),
                    info.shape
                ));
            };
            let Some(scales) = self.header.info(&format!("{name}{}", quantized::SCALES)) else {
                return damaged(format!("there is no `{}{}`", short(name), quantized::SCALES));
            };
            let expected = [rows, cols / BLOCK];
            if scales.dtype != Dtype::F16 || scales.shape != expected {
                return damaged(format!(
                    "`{}{}` is {:?} of {:?}, and F16 of {expected:?} belongs to a matrix in {kind}",
                    short(name),
                    quantized::SCALES,
                    scales.dtype,
                    scales.shape
                ));
            }
        }
        self.names.retain(|name| !name.ends_with(quantized::SCALES));
        self.quantization = Some(bits);
        Ok(())
    }

    /// How its matrices are quantised, if they are: see [`quantized`].
    pub fn quantization(&self) -> Option<Bits> {
        self.quantization
    }

    /// The names of all tensors, in the order in which they lie in the file.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        !self.is_scales(name) && self.header.info(name).is_some()
    }

    /// Whether this would be the name of a quantised matrix's scales, which are part of the matrix.
    fn is_scales(&self, name: &str) -> bool {
        self.quantization.is_some() && name.ends_with(quantized::SCALES)
    }

    /// The kind of blocks and the shape of a quantised matrix.
    fn as_quantized(&self, name: &str) -> Option<(Bits, [usize; 2])> {
        let (bits, info) = (self.quantization?, self.header.info(name)?);
        (info.dtype == Dtype::U8).then_some(())?;
        Some((bits, quantized::matrix_shape(&info.shape, bits)?))
    }

    /// The shape of the tensor `name`; its bytes are not looked at.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn shape(&self, name: &str) -> Result<Vec<usize>> {
        match self.as_quantized(name) {
            Some((_, shape)) => Ok(shape.to_vec()),
            None => Ok(self.stored(name)?.shape().to_vec()),
        }
    }

    /// The element type of the tensor `name`: F32 for a quantised matrix. Its bytes are not looked at.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn dtype(&self, name: &str) -> Result<DType> {
        match self.as_quantized(name) {
            Some(_) => Ok(DType::F32),
            None => Ok(self.stored(name)?.dtype()),
        }
    }

    /// The tensor `name`, as a view into the file; of a quantised matrix, its values in F32.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is none, [`Error::Tensor`] if its type is not one of [`DType`], or its scales are damaged.
    pub fn get(&self, name: &str) -> Result<TensorRef<'_>> {
        if self.is_scales(name) {
            return Err(self.missing(name));
        }
        let Some((bits, shape)) = self.as_quantized(name) else { return self.stored(name) };
        let (codes, scales) = (self.stored(name)?, self.stored(&format!("{name}{}", quantized::SCALES))?);
        let values = quantized::restored(name, &codes, &scales, shape, bits)?;
        // Whoever asked can give up the values, and not what they were made of.
        self.release(codes.data());
        self.release(scales.data());
        Ok(values)
    }

    fn missing(&self, name: &str) -> Error {
        Error::Missing {
            file: self.bytes.label().to_string(),
            what: format!("tensor `{}`", short(name)),
            present: some_names(self.names()),
        }
    }

    /// A tensor as it is stored.
    fn stored(&self, name: &str) -> Result<TensorRef<'_>> {
        let Some(info) = self.header.info(name) else { return Err(self.missing(name)) };
        let Some(dtype) = from_safetensors(info.dtype) else {
            let reason = format!(
                "{} holds it as {:?}, which is not supported; convert it to F32, F16 or BF16",
                self.bytes.label(),
                info.dtype
            );
            return Err(Error::tensor(short(name), reason));
        };
        let (start, end) = info.data_offsets;
        let data = &self.bytes.as_slice()[self.data_start..][start..end];
        TensorRef::new(dtype, info.shape.clone(), data)
    }

    /// Gives up the memory that looking at these bytes of a tensor took; see [`FileBytes::release`].
    pub fn release(&self, part: &[u8]) {
        self.bytes.release(part);
    }

    /// The value of `key` in the header's metadata.
    pub fn metadata_value(&self, key: &str) -> Option<&str> {
        self.header.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// The header's metadata, sorted by key; empty if there is none.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        self.header.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// The path, or the label given with the bytes.
    pub fn label(&self) -> &str {
        self.bytes.label()
    }
}

fn damaged(file: &str, reason: String) -> Error {
    Error::Damaged { file: file.to_string(), format: "safetensors", reason }
}

fn from_safetensors(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::I8 => DType::I8,
        Dtype::U8 => DType::U8,
        Dtype::U16 => DType::U16,
        Dtype::U32 => DType::U32,
        Dtype::BOOL => DType::Bool,
        _ => return None,
    })
}

/// A tensor on its way into a file. Its bytes are asked for when its turn comes, so that only one tensor need be
/// in memory at a time.
pub struct TensorSource<'a> {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    produce: Produce<'a>,
}

/// What takes the pieces of a tensor's bytes.
pub type Sink<'s> = dyn FnMut(&[u8]) -> Result<()> + 's;

type Whole<'a> = dyn FnOnce() -> Result<Cow<'a, [u8]>> + 'a;
type Pieces<'a> = dyn FnOnce(&mut Sink<'_>) -> Result<()> + 'a;

enum Produce<'a> {
    Whole(Box<Whole<'a>>),
    Pieces(Box<Pieces<'a>>),
}

impl<'a> TensorSource<'a> {
    /// A tensor whose bytes are at hand.
    pub fn new(
        name: impl Into<String>,
        dtype: DType,
        shape: Vec<usize>,
        bytes: impl Into<Cow<'a, [u8]>>,
    ) -> Self {
        let bytes = bytes.into();
        Self::lazy(name, dtype, shape, move || Ok(bytes))
    }

    /// A tensor whose bytes are made, or read back from a device, when they are written.
    pub fn lazy(
        name: impl Into<String>,
        dtype: DType,
        shape: Vec<usize>,
        produce: impl FnOnce() -> Result<Cow<'a, [u8]>> + 'a,
    ) -> Self {
        TensorSource { name: name.into(), dtype, shape, produce: Produce::Whole(Box::new(produce)) }
    }

    /// A tensor whose bytes are made piece by piece, so that not even one tensor is in memory at a time.
    pub fn pieces(
        name: impl Into<String>,
        dtype: DType,
        shape: Vec<usize>,
        produce: impl FnOnce(&mut Sink<'_>) -> Result<()> + 'a,
    ) -> Self {
        TensorSource { name: name.into(), dtype, shape, produce: Produce::Pieces(Box::new(produce)) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of its bytes; the largest number if they are too many to count.
    pub fn byte_count(&self) -> u64 {
        byte_count(self.dtype, &self.shape).map_or(u64::MAX, |bytes| bytes as u64)
    }

    /// Produces the bytes, and lets go of them.
    ///
    /// # Errors
    /// What the source returns.
    pub fn consume(self) -> Result<()> {
        match self.produce {
            Produce::Whole(produce) => produce().map(|_| ()),
            Produce::Pieces(produce) => produce(&mut |_| Ok(())),
        }
    }

    /// The same tensor under another name.
    #[must_use]
    pub fn renamed(self, name: impl Into<String>) -> Self {
        TensorSource { name: name.into(), ..self }
    }
}

/// Writes `tensors` and `metadata` to `path`, atomically.
///
/// The tensors are stored widest type first, so that each is aligned to its element size, and otherwise in the order
/// given. The same input gives the same bytes.
///
/// # Errors
/// [`Error::Tensor`] for a repeated or reserved name, or bytes that do not fit a shape; [`Error::Io`] from the disk.
#[cfg(not(target_family = "wasm"))]
pub fn write_safetensors<'a>(
    path: &std::path::Path,
    tensors: impl IntoIterator<Item = TensorSource<'a>>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    crate::atomic::write_atomic_with(path, |writer| {
        write_safetensors_to(writer, &path.display().to_string(), tensors, metadata)
    })
}

/// As [`write_safetensors`], to any writer; `label` names it in errors.
///
/// # Errors
/// As [`write_safetensors`].
pub fn write_safetensors_to<'a>(
    writer: &mut impl Write,
    label: &str,
    tensors: impl IntoIterator<Item = TensorSource<'a>>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let mut tensors: Vec<_> = tensors.into_iter().collect();
    tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.size()));
    let header = header_of(&tensors, metadata)?;
    let io = |source| Error::Io { file: label.to_string(), action: "write", source };
    writer.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    writer.write_all(&header).map_err(io)?;
    for tensor in tensors {
        let mut written = 0;
        let mut write = |bytes: &[u8]| {
            written += bytes.len();
            writer.write_all(bytes).map_err(io)
        };
        match tensor.produce {
            Produce::Whole(produce) => write(&produce()?)?,
            Produce::Pieces(produce) => produce(&mut write)?,
        }
        if byte_count(tensor.dtype, &tensor.shape) != Some(written) {
            let (dtype, shape) = (tensor.dtype, &tensor.shape);
            let reason = format!("{written} bytes do not make a {dtype} tensor of shape {shape:?}");
            return Err(Error::tensor(tensor.name, reason));
        }
    }
    Ok(())
}

/// The JSON header for tensors in this order, padded with spaces so that the data begins at a multiple of eight.
fn header_of(tensors: &[TensorSource<'_>], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut entries = serde_json::Map::new();
    if !metadata.is_empty() {
        entries.insert(METADATA_KEY.to_string(), serde_json::json!(metadata));
    }
    let mut offset = 0usize;
    let mut seen = HashSet::new();
    for TensorSource { name, dtype, shape, .. } in tensors {
        if name == METADATA_KEY || !seen.insert(name) {
            return Err(Error::tensor(
                name,
                "the name is taken already; every tensor of a file needs its own",
            ));
        }
        let end = byte_count(*dtype, shape).and_then(|length| offset.checked_add(length));
        let end = end.ok_or_else(|| Error::tensor(name, format!("shape {shape:?} is too large")))?;
        let entry = serde_json::json!({"dtype": dtype.name(), "shape": shape, "data_offsets": [offset, end]});
        entries.insert(name.clone(), entry);
        offset = end;
    }
    let mut header = serde_json::Value::Object(entries).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> BTreeMap<String, String> {
        [("step", "12"), ("format", "landmark"), ("a", "b")]
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .into()
    }

    fn example() -> Vec<u8> {
        let tensors = [
            TensorSource::new("flags", DType::Bool, vec![3], vec![1, 0, 1]),
            TensorSource::pieces("b.weight", DType::F32, vec![2, 1], |sink| {
                sink(&[0, 0, 0xc0])?;
                sink(&[0x3f, 0, 0, 0, 0xc0])
            }),
            TensorSource::new("a.weight", DType::F32, vec![], vec![0; 4]),
            TensorSource::lazy("empty", DType::BF16, vec![0, 7], || Ok(Cow::Borrowed(&[]))),
        ];
        let mut file = Vec::new();
        write_safetensors_to(&mut file, "memory", tensors, &metadata()).unwrap();
        file
    }

    fn read(bytes: Vec<u8>) -> Result<SafetensorsFile> {
        SafetensorsFile::from_bytes("memory", bytes)
    }

    /// A file with this header and `data` zero bytes.
    fn crafted(header: &str, data: usize) -> Vec<u8> {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        file.resize(file.len() + data, 0);
        file
    }

    #[test]
    fn what_is_written_is_read() {
        let file = read(example()).unwrap();
        assert_eq!(file.names().collect::<Vec<_>>(), ["b.weight", "a.weight", "empty", "flags"]);
        let weight = file.get("b.weight").unwrap();
        assert_eq!((weight.dtype(), weight.shape()), (DType::F32, &[2, 1][..]));
        assert_eq!(weight.to_f32(), [1.5, -2.0]);
        assert_eq!(file.get("a.weight").unwrap().shape(), [0usize; 0]);
        assert_eq!(file.get("empty").unwrap().element_count(), 0);
        assert_eq!(file.get("flags").unwrap().to_u32().unwrap(), [1, 0, 1]);
        assert_eq!(file.metadata(), metadata());
        assert_eq!(file.metadata_value("step"), Some("12"));
        let error = file.get("c").unwrap_err().to_string();
        assert!(error.contains("memory") && error.contains("b.weight"), "{error}");
    }

    #[test]
    fn the_bytes_are_what_the_format_says() {
        let mut file = Vec::new();
        let tensors = [TensorSource::new("t", DType::U8, vec![2], vec![7, 8])];
        write_safetensors_to(&mut file, "memory", tensors, &BTreeMap::new()).unwrap();
        let header = br#"{"t":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}   "#;
        assert_eq!(header.len() % 8, 0);
        assert_eq!(file, [&(header.len() as u64).to_le_bytes()[..], header, &[7, 8]].concat());
    }

    #[test]
    fn the_reference_reader_reads_ours() {
        let file = example();
        let reference = safetensors::SafeTensors::deserialize(&file).unwrap();
        assert_eq!(reference.tensor("b.weight").unwrap().data(), [0, 0, 0xc0, 0x3f, 0, 0, 0, 0xc0]);
        assert_eq!(reference.len(), 4);
    }

    #[test]
    fn every_truncation_and_extension_is_an_error() {
        let file = example();
        for length in 0..file.len() {
            let error = read(file[..length].to_vec()).expect_err("truncated").to_string();
            assert!(error.contains("memory"), "{error}");
        }
        let longer = [file, vec![0]].concat();
        assert!(read(longer).is_err());
    }

    #[test]
    fn no_flipped_bit_panics() {
        let file = example();
        for bit in 0..file.len() * 8 {
            let mut flipped = file.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok(file) = read(flipped) {
                for name in file.names() {
                    let _ = file.get(name).map(|tensor| tensor.to_f32());
                }
            }
        }
    }

    #[test]
    fn hostile_headers_are_errors() {
        let max = u64::MAX;
        let cases = [
            ("overlap", r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#.to_string(), 6),
            ("gap", r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}"#.into(), 4),
            ("backwards", r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[2,0]}}"#.into(), 2),
            ("shape does not fit", r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#.into(), 8),
            ("shape overflows", r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#.into(), 0),
            ("bytes overflow", r#"{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}}"#.into(), 0),
            ("offset at the end of the address space", format!(r#"{{"a":{{"dtype":"U8","shape":[{max}],"data_offsets":[0,{max}]}}}}"#), 8),
            ("negative", r#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}"#.into(), 1),
            ("not an object", "[]".into(), 0),
            ("deep", "[".repeat(100_000), 0),
            ("unknown type", r#"{"a":{"dtype":"Q8","shape":[1],"data_offsets":[0,1]}}"#.into(), 1),
        ];
        for (what, header, data) in cases {
            let error = read(crafted(&header, data)).expect_err(what).to_string();
            assert!(error.len() < 500, "{what}: {error}");
        }
        let mut long = crafted("{}", 0);
        long[..8].copy_from_slice(&max.to_le_bytes());
        assert!(read(long).is_err());
    }

    #[test]
    fn unsupported_types_fail_when_asked_for_only() {
        let header = r#"{"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
        let file = read(crafted(header, 2)).unwrap();
        assert!(file.get("b").is_ok());
        let error = file.get("a").unwrap_err().to_string();
        assert!(error.contains('a') && error.contains("F8_E4M3"), "{error}");
    }

    #[test]
    fn bad_tensors_are_not_written() {
        let write = |tensors: Vec<TensorSource<'_>>| {
            write_safetensors_to(&mut Vec::new(), "memory", tensors, &BTreeMap::new())
                .unwrap_err()
                .to_string()
        };
        let tensor = |name: &str, bytes: usize| TensorSource::new(name, DType::F32, vec![2], vec![0; bytes]);
        assert!(write(vec![tensor("w", 8), tensor("w", 8)]).contains("taken"));
        assert!(write(vec![tensor(METADATA_KEY, 8)]).contains("taken"));
        assert!(write(vec![tensor("w", 9)]).contains("9 bytes"));
        let pieces = TensorSource::pieces("w", DType::F32, vec![2], |sink| {
            sink(&[0; 4])?;
            sink(&[0; 3])
        });
        assert!(write(vec![pieces]).contains("7 bytes"));
    }

    #[cfg(not(target_family = "wasm"))]
    #[test]
    fn files_are_written_atomically_and_repeatably() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        for path in [&one, &two] {
            let tensors = [TensorSource::new("w", DType::F32, vec![1], vec![0; 4])];
            write_safetensors(path, tensors, &metadata()).unwrap();
        }
        assert_eq!(std::fs::read(&one).unwrap(), std::fs::read(&two).unwrap());
        assert_eq!(SafetensorsFile::open(&one).unwrap().get("w").unwrap().to_f32(), [0.0]);

        let failing = TensorSource::lazy("w", DType::F32, vec![1], || Err(Error::tensor("w", "device lost")));
        assert!(write_safetensors(&one, [failing], &metadata()).is_err());
        assert_eq!(SafetensorsFile::open(&one).unwrap().get("w").unwrap().to_f32(), [0.0]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
