//! Tensors as files hold them: a type, a shape and little-endian bytes in row-major order.
//!
//! [`TensorRef`] borrows from a memory-mapped file wherever the bytes there are usable as they are, and owns them
//! where a reader had to gather them. It computes nothing; model code converts it to the type that it computes in
//! and hands it to a backend.

use crate::{Error, Result};
use half::{bf16, f16};
use std::borrow::Cow;
use std::fmt;

/// The element types that checkpoints and token streams use. Eight-bit floats, complex numbers and 64-bit unsigned
/// integers are left out: no model here has them, and a reader that meets them says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are the documentation
pub enum DType {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U8,
    U16,
    U32,
    /// One byte an element, 0 or 1.
    Bool,
}

impl DType {
    /// Every type, for tables and tests.
    pub const ALL: [DType; 12] = [
        DType::F64,
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::I64,
        DType::I32,
        DType::I16,
        DType::I8,
        DType::U8,
        DType::U16,
        DType::U32,
        DType::Bool,
    ];

    /// Bytes in one element.
    pub fn size(self) -> usize {
        match self {
            DType::F64 | DType::I64 => 8,
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::F16 | DType::BF16 | DType::I16 | DType::U16 => 2,
            DType::I8 | DType::U8 | DType::Bool => 1,
        }
    }

    /// True for the four floating-point types.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F64 | DType::F32 | DType::F16 | DType::BF16)
    }

    /// The name that safetensors headers use: "F32", "BOOL".
    pub fn name(self) -> &'static str {
        match self {
            DType::F64 => "F64",
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            DType::I64 => "I64",
            DType::I32 => "I32",
            DType::I16 => "I16",
            DType::I8 => "I8",
            DType::U8 => "U8",
            DType::U16 => "U16",
            DType::U32 => "U32",
            DType::Bool => "BOOL",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The number of elements of a shape, or `None` if it does not fit a `usize`.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    // A zero anywhere means no elements, whatever the other dimensions would multiply to.
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1usize, |count, &dimension| count.checked_mul(dimension))
}

/// The number of bytes of a tensor, or `None` if it does not fit a `usize`.
pub fn byte_count(dtype: DType, shape: &[usize]) -> Option<usize> {
    element_count(shape)?.checked_mul(dtype.size())
}

/// One tensor: row-major, contiguous, little-endian.
#[derive(Clone, PartialEq)]
pub struct TensorRef<'a> {
    dtype: DType,
    shape: Vec<usize>,
    data: Cow<'a, [u8]>,
}

impl<'a> TensorRef<'a> {
    /// A tensor over `data`.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the bytes are not as many as the type and shape ask for.
    pub fn new(dtype: DType, shape: Vec<usize>, data: impl Into<Cow<'a, [u8]>>) -> Result<Self> {
        let data = data.into();
        if byte_count(dtype, &shape) != Some(data.len()) {
            let reason = format!("{} bytes do not make a {dtype} tensor of shape {shape:?}", data.len());
            return Err(Error::tensor("without a name", reason));
        }
        Ok(TensorRef { dtype, shape, data })
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The shape, outermost dimension first; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    pub fn element_count(&self) -> usize {
        self.data.len() / self.dtype.size()
    }

    /// The bytes. They may lie at any alignment.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The bytes, borrowed from the file if they are.
    pub fn into_data(self) -> Cow<'a, [u8]> {
        self.data
    }

    /// Elements `range` of the tensor, as a vector.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn part(&self, range: std::ops::Range<usize>) -> TensorRef<'_> {
        let size = self.dtype.size();
        let data = Cow::Borrowed(&self.data[range.start * size..range.end * size]);
        TensorRef { dtype: self.dtype, shape: vec![range.len()], data }
    }

    /// All elements as `f32`: 16-bit floats exactly, `f64` and large integers rounded to nearest, booleans as 0 and 1.
    pub fn to_f32(&self) -> Vec<f32> {
        match self.dtype {
            DType::F64 => self.each(|b| f64::from_le_bytes(b) as f32),
            DType::F32 => self.each(f32::from_le_bytes),
            DType::F16 => self.each(|b| f16::from_le_bytes(b).to_f32()),
            DType::BF16 => self.each(|b| bf16::from_le_bytes(b).to_f32()),
            _ => self.integers().into_iter().map(|value| value as f32).collect(),
        }
    }

    /// All elements as `f64`; exact for everything but `i64` beyond 2^53.
    pub fn to_f64(&self) -> Vec<f64> {
        match self.dtype {
            DType::F64 => self.each(f64::from_le_bytes),
            DType::F32 => self.each(|b| f32::from_le_bytes(b).into()),
            DType::F16 => self.each(|b| f16::from_le_bytes(b).to_f64()),
            DType::BF16 => self.each(|b| bf16::from_le_bytes(b).to_f64()),
            _ => self.integers().into_iter().map(|value| value as f64).collect(),
        }
    }

    /// All elements of an integer or boolean tensor.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a tensor of floats.
    pub fn to_i64(&self) -> Result<Vec<i64>> {
        if self.dtype.is_float() {
            let reason = format!("it holds {} where integers are needed", self.dtype);
            return Err(Error::tensor("without a name", reason));
        }
        Ok(self.integers())
    }

    /// All elements of an integer or boolean tensor, for token ids and counters.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a tensor of floats, or an element that is negative or above `u32::MAX`.
    pub fn to_u32(&self) -> Result<Vec<u32>> {
        let narrow = |value: i64| {
            let reason = || format!("element {value} is not in 0..=4294967295");
            u32::try_from(value).map_err(|_| Error::tensor("without a name", reason()))
        };
        self.to_i64()?.into_iter().map(narrow).collect()
    }

    /// Elements of the integer types; empty for floats, which the callers have dealt with.
    fn integers(&self) -> Vec<i64> {
        match self.dtype {
            DType::I64 => self.each(i64::from_le_bytes),
            DType::I32 => self.each(|b| i32::from_le_bytes(b).into()),
            DType::I16 => self.each(|b| i16::from_le_bytes(b).into()),
            DType::I8 => self.each(|b| i8::from_le_bytes(b).into()),
            DType::U8 => self.each(|b| u8::from_le_bytes(b).into()),
            DType::U16 => self.each(|b| u16::from_le_bytes(b).into()),
            DType::U32 => self.each(|b| u32::from_le_bytes(b).into()),
            DType::Bool => self.each(|b: [u8; 1]| (b[0] != 0).into()),
            DType::F64 | DType::F32 | DType::F16 | DType::BF16 => Vec::new(),
        }
    }

    /// Element by element from bytes, because a mapped file promises no alignment; the compiler makes plain loads
    /// of it.
    fn each<const N: usize, T>(&self, convert: impl Fn([u8; N]) -> T) -> Vec<T> {
        let (elements, _) = self.data.as_chunks::<N>();
        elements.iter().map(|&element| convert(element)).collect()
    }
}

/// The bytes of numbers in one of the floating-point types, rounded to nearest.
///
/// # Errors
/// [`Error::Tensor`] without a name for a type that is not floating-point, or a finite number that becomes infinite.
pub fn float_bytes(values: &[f32], dtype: DType) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(values.len() * dtype.size());
    let mut overflows = false;
    let mut halve = |value: f32, half: f32| overflows |= value.is_finite() && !half.is_finite();
    match dtype {
        DType::F64 => values.iter().for_each(|&x| bytes.extend(f64::from(x).to_le_bytes())),
        DType::F32 => values.iter().for_each(|x| bytes.extend(x.to_le_bytes())),
        DType::F16 => values.iter().for_each(|&x| {
            let half = f16::from_f32(x);
            halve(x, half.to_f32());
            bytes.extend(half.to_le_bytes());
        }),
        DType::BF16 => values.iter().for_each(|&x| {
            let half = bf16::from_f32(x);
            halve(x, half.to_f32());
            bytes.extend(half.to_le_bytes());
        }),
        _ => return Err(Error::tensor("without a name", format!("{dtype} is no floating-point type"))),
    }
    if overflows {
        let reason = format!("it holds numbers too large for {dtype}; choose F32 or BF16");
        return Err(Error::tensor("without a name", reason));
    }
    Ok(bytes)
}

/// Without the data, which may be gigabytes.
impl fmt::Debug for TensorRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TensorRef({} {:?})", self.dtype, self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(dtype: DType, bytes: &[u8]) -> TensorRef<'_> {
        TensorRef::new(dtype, vec![bytes.len() / dtype.size()], bytes).unwrap()
    }

    #[test]
    fn every_type_converts_by_hand() {
        // Bytes written out by hand: 1.5 and -2, or 1 and the type's largest or smallest.
        let cases: [(DType, &[u8], [f64; 2]); 12] = [
            (DType::F64, &[0, 0, 0, 0, 0, 0, 0xf8, 0x3f, 0, 0, 0, 0, 0, 0, 0, 0xc0], [1.5, -2.0]),
            (DType::F32, &[0, 0, 0xc0, 0x3f, 0, 0, 0, 0xc0], [1.5, -2.0]),
            (DType::F16, &[0, 0x3e, 0, 0xc0], [1.5, -2.0]),
            (DType::BF16, &[0xc0, 0x3f, 0, 0xc0], [1.5, -2.0]),
            (DType::I64, &[1, 0, 0, 0, 0, 0, 0, 0, 0xfe, 255, 255, 255, 255, 255, 255, 255], [1.0, -2.0]),
            (DType::I32, &[1, 0, 0, 0, 0, 0, 0, 0x80], [1.0, -2147483648.0]),
            (DType::I16, &[1, 0, 0, 0x80], [1.0, -32768.0]),
            (DType::I8, &[1, 0x80], [1.0, -128.0]),
            (DType::U8, &[1, 255], [1.0, 255.0]),
            (DType::U16, &[1, 0, 255, 255], [1.0, 65535.0]),
            (DType::U32, &[1, 0, 0, 0, 255, 255, 255, 255], [1.0, 4294967295.0]),
            (DType::Bool, &[1, 0], [1.0, 0.0]),
        ];
        for (dtype, bytes, values) in cases {
            let tensor = tensor(dtype, bytes);
            assert_eq!(tensor.to_f64(), values, "{dtype}");
            assert_eq!(tensor.to_f32(), values.map(|value| value as f32), "{dtype}");
            match tensor.to_i64() {
                Ok(integers) => assert_eq!(integers, values.map(|value| value as i64), "{dtype}"),
                Err(error) => assert!(dtype.is_float(), "{error}"),
            }
        }
    }

    #[test]
    fn unaligned_bytes_convert() {
        let bytes = [9, 0, 0, 0xc0, 0x3f, 0, 0, 0, 0xc0];
        assert_eq!(tensor(DType::F32, &bytes[1..]).to_f32(), [1.5, -2.0]);
    }

    #[test]
    fn floats_are_written_in_every_float_type() {
        let values = [1.5, -2.0, f32::INFINITY, 0.1];
        for dtype in DType::ALL.into_iter().filter(|dtype| dtype.is_float()) {
            let bytes = float_bytes(&values, dtype).unwrap();
            let found = tensor(dtype, &bytes).to_f32();
            assert_eq!(found[..3], values[..3], "{dtype}");
            assert!((found[3] - 0.1).abs() < 1e-3, "{dtype}");
        }
        let third = tensor(DType::F32, &[0, 0, 0xc0, 0x3f, 0, 0, 0, 0xc0]);
        assert_eq!(third.part(1..2).to_f32(), [-2.0]);
        assert!(float_bytes(&values, DType::I32).is_err());
        assert!(float_bytes(&[70_000.0], DType::F16).unwrap_err().to_string().contains("too large"));
        assert!(float_bytes(&[70_000.0], DType::BF16).is_ok());
    }

    #[test]
    fn token_ids_must_fit() {
        assert_eq!(tensor(DType::U16, &[0x55, 0xc4]).to_u32().unwrap(), [50261]);
        let error = tensor(DType::I32, &[0xff; 4]).to_u32().unwrap_err().to_string();
        assert!(error.contains("-1"), "{error}");
    }

    #[test]
    fn the_byte_count_must_match_and_cannot_overflow() {
        assert!(TensorRef::new(DType::F32, vec![2, 2], vec![0; 16]).is_ok());
        assert!(TensorRef::new(DType::F32, vec![2, 2], vec![0; 15]).is_err());
        assert!(TensorRef::new(DType::F32, vec![], vec![0; 4]).is_ok(), "a scalar");
        assert!(TensorRef::new(DType::F32, vec![0, usize::MAX, 2], vec![]).is_ok(), "nothing, however wide");
        // 2^62 elements of four bytes are 2^64 bytes, which would wrap to none at all.
        assert!(TensorRef::new(DType::F32, vec![1 << 31, 1 << 31], vec![]).is_err());
        assert!(TensorRef::new(DType::U8, vec![1 << 32, 1 << 32], vec![]).is_err());
    }
}
