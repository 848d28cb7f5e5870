//! Weights in blocks of 8 or 4 bits, in a safetensors file.
//!
//! A matrix `X` of (rows, cols) is two tensors: `X`, the codes of [`landmark_core::quantize`] as U8 of (rows, cols) in 8
//! bits and of (rows, cols / 2) in 4, and `X.scales`, F16 of (rows, cols / 32). What else a file holds is stored as ever. The
//! file's metadata says `landmark_quantization`: `q8` or `q4`.
//!
//! [`SafetensorsFile`](crate::safetensors::SafetensorsFile) reads such a file as if it held the matrices in F32: names,
//! shapes and values are those of `X`, and scales are no tensors of their own. So whatever reads weights reads these.
//! Rounding twice in the same way changes nothing; a backend that keeps weights in blocks gets back the very codes.
//!
//! Rejected: GGUF, a format of its own with its own names for every layer; and one tensor with scales between the codes,
//! which no tool for safetensors could make sense of.

use half::f16;
use landmark_core::quantize::{BLOCK, Bits, Quantized, dequantize, quantize};

use crate::safetensors::TensorSource;
use crate::tensor::{DType, TensorRef};
use crate::{Error, Result};

/// The key of a file's metadata under which it says that its matrices are quantised, and how.
pub const METADATA: &str = "landmark_quantization";

/// What is put behind a matrix's name to name its scales.
pub const SCALES: &str = ".scales";

/// The name of a kind of blocks in a file's metadata.
pub fn name(bits: Bits) -> &'static str {
    match bits {
        Bits::Eight => "q8",
        Bits::Four => "q4",
    }
}

/// The kind of blocks of this name.
pub fn parse(name: &str) -> Option<Bits> {
    [Bits::Eight, Bits::Four].into_iter().find(|&bits| self::name(bits) == name)
}

/// The shape of the matrix that codes of this shape stand for.
pub(crate) fn matrix_shape(codes: &[usize], bits: Bits) -> Option<[usize; 2]> {
    let &[rows, cols] = codes else { return None };
    let cols = match bits {
        Bits::Eight => cols,
        Bits::Four => cols.checked_mul(2)?,
    };
    cols.is_multiple_of(BLOCK).then_some([rows, cols])
}

/// The matrix that codes and scales stand for, in F32.
///
/// # Errors
/// [`Error::Tensor`] if a scale is no number.
pub(crate) fn restored(
    name: &str,
    codes: &TensorRef<'_>,
    scales: &TensorRef<'_>,
    shape: [usize; 2],
    bits: Bits,
) -> Result<TensorRef<'static>> {
    let (pairs, _) = scales.data().as_chunks::<2>();
    let scales: Vec<f16> = pairs.iter().map(|&pair| f16::from_le_bytes(pair)).collect();
    if !scales.iter().all(|scale| scale.is_finite()) {
        let reason = "its scales hold what is not a number; the file is damaged: copy or quantise it again";
        return Err(Error::tensor(name, reason));
    }
    let (mut bytes, blocks) = (Vec::with_capacity(4 * shape[0] * shape[1]), 1024);
    for (codes, scales) in codes.data().chunks(blocks * bits.code_bytes()).zip(scales.chunks(blocks)) {
        let values = dequantize(&Quantized { codes: codes.to_vec(), scales: scales.to_vec() }, bits);
        bytes.extend(values.into_iter().flat_map(f32::to_le_bytes));
    }
    TensorRef::new(DType::F32, shape.to_vec(), bytes)
}

/// The two tensors, codes and scales, of a matrix whose `values` are asked for once for each.
///
/// Writing them fails with [`Error::Tensor`] where a value is no number, or too large for a scale.
pub fn sources<'a>(
    name: &str,
    shape: [usize; 2],
    bits: Bits,
    values: impl Fn() -> Result<Vec<f32>> + Clone + 'a,
) -> [TensorSource<'a>; 2] {
    let [rows, cols] = shape;
    let packed = cols / BLOCK * bits.code_bytes();
    let quantized = {
        let name = name.to_owned();
        move || {
            let values = values()?;
            let largest = f32::from(f16::MAX) * 7.0;
            if let Some(value) = values.iter().find(|value| !value.is_finite() || value.abs() > largest) {
                let reason = format!("it holds {value}, which no block of {} bits can", bits.count());
                return Err(Error::tensor(name.clone(), reason));
            }
            Ok(quantize(&values, bits))
        }
    };
    let scales = {
        let quantized = quantized.clone();
        move || {
            let scales = quantized()?.scales;
            Ok(scales.into_iter().flat_map(f16::to_le_bytes).collect::<Vec<u8>>().into())
        }
    };
    [
        TensorSource::lazy(name, DType::U8, vec![rows, packed], move || Ok(quantized()?.codes.into())),
        TensorSource::lazy(format!("{name}{SCALES}"), DType::F16, vec![rows, cols / BLOCK], scales),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::safetensors::{SafetensorsFile, write_safetensors_to};
    use std::collections::BTreeMap;

    fn values() -> Vec<f32> {
        (0..3 * 64).map(|i| (i as f32 * 0.7).sin() * (1 + i / 32) as f32).collect()
    }

    fn tensors(bits: Bits) -> Vec<TensorSource<'static>> {
        let mut tensors = Vec::from(sources("a.weight", [3, 64], bits, || Ok(values())));
        tensors.push(TensorSource::new("norm.weight", DType::F32, vec![1], 2.5_f32.to_le_bytes().to_vec()));
        tensors
    }

    fn file(tensors: Vec<TensorSource<'_>>, kind: &str) -> Result<SafetensorsFile> {
        let mut bytes = Vec::new();
        let metadata = BTreeMap::from([(METADATA.to_owned(), kind.to_owned())]);
        write_safetensors_to(&mut bytes, "test", tensors, &metadata)?;
        SafetensorsFile::from_bytes("test", bytes)
    }

    #[test]
    fn matrices_come_back_as_their_rounded_values() {
        for (bits, most) in [(Bits::Eight, 0.03), (Bits::Four, 0.5)] {
            let file = file(tensors(bits), name(bits)).unwrap();
            assert_eq!(file.quantization(), Some(bits));
            let mut names: Vec<&str> = file.names().collect();
            names.sort_unstable();
            assert_eq!(names, ["a.weight", "norm.weight"]);
            assert!(!file.contains("a.weight.scales") && file.get("a.weight.scales").is_err());
            assert_eq!(file.shape("a.weight").unwrap(), [3, 64]);
            assert_eq!(file.dtype("a.weight").unwrap(), DType::F32);
            let tensor = file.get("a.weight").unwrap();
            assert_eq!((tensor.dtype(), tensor.shape()), (DType::F32, &[3, 64][..]));
            let found = tensor.to_f32();
            assert_eq!(found, dequantize(&quantize(&values(), bits), bits));
            let error = found.iter().zip(values()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(error > 0.0 && error < most, "{error}");
            assert_eq!(file.get("norm.weight").unwrap().to_f32(), [2.5]);
        }
    }

    /// The larger part of a file is codes: that is what it is for.
    #[test]
    fn four_bits_take_half_of_eight() {
        let bytes = |bits| -> u64 { tensors(bits).iter().take(2).map(TensorSource::byte_count).sum() };
        assert_eq!((bytes(Bits::Eight), bytes(Bits::Four)), (192 + 12, 96 + 12));
    }

    #[test]
    fn damaged_files_are_refused() {
        let whole = || tensors(Bits::Eight);
        let said = |tensors, kind: &str| file(tensors, kind).map(|_| ()).unwrap_err().to_string();
        // Metadata and tensors that do not belong together.
        assert!(said(whole(), "q5").contains("q5"));
        assert!(said(whole(), "q4").contains("a.weight.scales"), "{}", said(whole(), "q4"));
        assert!(said(tensors(Bits::Four), "q8").contains("a.weight.scales"));
        // One without the other.
        let mut alone = whole();
        alone.remove(1);
        assert!(said(alone, "q8").contains("no `a.weight.scales`"));
        let mut alone = whole();
        alone.remove(0);
        assert!(said(alone, "q8").contains("no `a.weight`"));
        // Scales of another type or shape, and codes that are no whole blocks.
        let replaced = |at: usize, with| {
            let mut tensors = whole();
            tensors[at] = with;
            said(tensors, "q8")
        };
        let scales = |dtype: DType, shape: Vec<usize>| {
            let bytes = vec![0; shape.iter().product::<usize>() * dtype.size()];
            TensorSource::new("a.weight.scales", dtype, shape, bytes)
        };
        assert!(replaced(1, scales(DType::F32, vec![3, 2])).contains("F32"));
        assert!(replaced(1, scales(DType::F16, vec![2, 3])).contains("[2, 3]"));
        let codes = TensorSource::new("a.weight", DType::U8, vec![3, 33], vec![0; 99]);
        assert!(replaced(0, codes).contains("[3, 33]"));
        // A scale that is no number.
        let mut tensors = whole();
        let mut bytes = vec![0; 12];
        bytes[3] = 0x7e;
        tensors[1] = TensorSource::new("a.weight.scales", DType::F16, vec![3, 2], bytes);
        let file = file(tensors, "q8").unwrap();
        assert!(file.get("a.weight").unwrap_err().to_string().contains("a.weight: its scales"));
    }

    #[test]
    fn what_no_block_can_hold_is_not_written() {
        for value in [f32::NAN, f32::INFINITY, 1e9] {
            let sources = sources("a.weight", [1, 32], Bits::Four, move || Ok(vec![value; 32]));
            assert!(file(sources.into(), "q4").unwrap_err().to_string().contains("a.weight"), "{value}");
        }
    }
}
