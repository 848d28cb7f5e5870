//! Descriptions of tensors for the copy engine: `cuTensorMapEncodeTiled`, and what the machine reads out of them.
//!
//! NVIDIA's layout of the 128 bytes is not public, and nobody but the driver writes them, so they are laid out here as
//! suits us. What the driver refuses is refused: a kernel that was only ever described here would otherwise fail on
//! its first GPU.

/// Marks the bytes as ours.
const MAGIC: u64 = 0x4c4d_544d;

/// Words of a map.
pub const WORDS: usize = 16;

/// How rows of a box are permuted in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    /// As they are.
    None,
    /// Pieces of 16 bytes over 32.
    Bytes32,
    /// Over 64.
    Bytes64,
    /// Over 128.
    Bytes128,
}

impl Swizzle {
    /// Of the driver's number.
    fn from_number(number: u32) -> Option<Swizzle> {
        [Swizzle::None, Swizzle::Bytes32, Swizzle::Bytes64, Swizzle::Bytes128].get(number as usize).copied()
    }

    /// Bytes over which it goes.
    pub fn span(self) -> usize {
        match self {
            Swizzle::None => 16,
            Swizzle::Bytes32 => 32,
            Swizzle::Bytes64 => 64,
            Swizzle::Bytes128 => 128,
        }
    }

    /// Where in shared memory the byte lies that would lie at `address` without it: bits 4 and up are combined with
    /// those from 7 on, one, two or three of them.
    #[inline]
    pub fn apply(self, address: u32) -> u32 {
        match self {
            Swizzle::None => address,
            Swizzle::Bytes32 => address ^ ((address >> 3) & 0x10),
            Swizzle::Bytes64 => address ^ ((address >> 3) & 0x30),
            Swizzle::Bytes128 => address ^ ((address >> 3) & 0x70),
        }
    }
}

/// A description, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// Bytes of an element.
    pub element: usize,
    /// Dimensions, 1 to 5.
    pub rank: usize,
    /// Of the first element.
    pub address: u64,
    /// Elements, the innermost dimension first; 1 beyond the rank.
    pub extents: [u64; 5],
    /// Bytes from one to the next in each dimension, the innermost (dense) first.
    pub strides: [u64; 5],
    /// Elements of the box.
    pub box_: [u32; 5],
    /// The permutation in shared memory.
    pub swizzle: Swizzle,
    /// Fill with NaN instead of zero.
    pub nan: bool,
}

/// Bytes of an element of the driver's data types.
fn element_bytes(data_type: u32) -> Option<usize> {
    // u8, u16, u32, i32, u64, i64, f16, f32, f64, bf16, f32 flushed, tf32, tf32 flushed
    [1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4].get(data_type as usize).copied()
}

/// The arguments of `cuTensorMapEncodeTiled`, with the driver's numbers.
#[derive(Clone, Copy, Debug)]
pub struct Description<'a> {
    /// Element type.
    pub data_type: u32,
    /// Of the first element.
    pub address: u64,
    /// Elements, innermost first.
    pub extents: &'a [u64],
    /// Bytes, of every dimension but the innermost.
    pub strides: &'a [u64],
    /// Elements of the box.
    pub box_: &'a [u32],
    /// Steps in elements: 1 each is what is supported.
    pub steps: &'a [u32],
    /// 0 is what is supported.
    pub interleave: u32,
    /// The permutation.
    pub swizzle: u32,
    /// 1 to fill with NaN.
    pub fill: u32,
}

/// Makes the 128 bytes.
///
/// # Errors
/// What the driver would refuse, and what is not supported here.
pub fn encode(given: &Description<'_>) -> Result<[u64; WORDS], String> {
    let rank = given.extents.len();
    if !(1..=5).contains(&rank)
        || given.strides.len() + 1 != rank
        || given.box_.len() != rank
        || given.steps.len() != rank
    {
        return Err(format!("a rank of 1 to 5, with as many of each, is needed: {given:?}"));
    }
    let element =
        element_bytes(given.data_type).ok_or_else(|| format!("no data type {}", given.data_type))?;
    let swizzle =
        Swizzle::from_number(given.swizzle).ok_or_else(|| format!("no swizzle {}", given.swizzle))?;
    if given.interleave != 0 || given.steps.iter().any(|&step| step != 1) {
        return Err("interleaved layouts and steps other than 1 are not emulated".into());
    }
    if given.address == 0 || !given.address.is_multiple_of(16) {
        return Err(format!("the address {:#x} is not a multiple of 16", given.address));
    }
    if let Some(extent) = given.extents.iter().find(|&&extent| extent == 0 || extent > 1 << 32) {
        return Err(format!("an extent of {extent}: 1 to 2^32 is allowed"));
    }
    if let Some(stride) = given.strides.iter().find(|&&stride| stride % 16 != 0 || stride >= 1 << 40) {
        return Err(format!("a stride of {stride} bytes: multiples of 16 below 2^40 are allowed"));
    }
    if let Some(elements) = given.box_.iter().find(|&&elements| elements == 0 || elements > 256) {
        return Err(format!("a box of {elements}: 1 to 256 are allowed"));
    }
    let inner = given.box_[0] as usize * element;
    if !inner.is_multiple_of(16) {
        return Err(format!("the box's inner extent is {inner} bytes: a multiple of 16 is needed"));
    }
    if swizzle != Swizzle::None && inner > swizzle.span() {
        return Err(format!(
            "the box's inner extent is {inner} bytes, above the swizzle's {}",
            swizzle.span()
        ));
    }
    let mut words = [0; WORDS];
    words[0] = MAGIC << 32
        | (element as u64) << 24
        | (rank as u64) << 16
        | u64::from(given.swizzle) << 8
        | u64::from(given.fill == 1);
    words[1] = given.address;
    for dimension in 0..5 {
        words[2 + dimension] = given.extents.get(dimension).copied().unwrap_or(1);
        if dimension < 4 {
            words[7 + dimension] = given.strides.get(dimension).copied().unwrap_or(0);
        }
        let elements = u64::from(given.box_.get(dimension).copied().unwrap_or(1));
        words[11 + dimension / 3] |= elements << (16 * (dimension % 3));
    }
    Ok(words)
}

impl TensorMap {
    /// Reads the 128 bytes.
    ///
    /// # Errors
    /// They are not a map.
    pub fn decode(words: &[u64; WORDS]) -> Result<TensorMap, String> {
        let swizzle = Swizzle::from_number((words[0] >> 8 & 0xff) as u32);
        let rank = (words[0] >> 16 & 0xff) as usize;
        let (true, Some(swizzle), 1..=5) = (words[0] >> 32 == MAGIC, swizzle, rank) else {
            return Err("there is no tensor map at that address".into());
        };
        let element = (words[0] >> 24 & 0xff) as usize;
        let mut map = TensorMap {
            element,
            rank,
            address: words[1],
            extents: [1; 5],
            strides: [0; 5],
            box_: [1; 5],
            swizzle,
            nan: words[0] & 1 == 1,
        };
        map.extents.copy_from_slice(&words[2..7]);
        map.strides[0] = element as u64;
        map.strides[1..].copy_from_slice(&words[7..11]);
        for dimension in 0..5 {
            map.box_[dimension] = (words[11 + dimension / 3] >> (16 * (dimension % 3)) & 0xffff) as u32;
        }
        Ok(map)
    }

    /// Bytes of a box.
    pub fn box_bytes(&self) -> usize {
        self.box_.iter().map(|&n| n as usize).product::<usize>() * self.element
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: Description<'_> = Description {
        data_type: 9,
        address: 0x1000,
        extents: &[64, 100, 3],
        strides: &[128, 12800],
        box_: &[64, 256, 1],
        steps: &[1, 1, 1],
        interleave: 0,
        swizzle: 3,
        fill: 0,
    };

    #[test]
    fn what_was_written_is_read() {
        let map = TensorMap::decode(&encode(&GIVEN).expect("a map")).expect("a map");
        assert_eq!((map.element, map.rank, map.address), (2, 3, 0x1000));
        assert_eq!(map.extents, [64, 100, 3, 1, 1]);
        assert_eq!(map.strides, [2, 128, 12800, 0, 0]);
        assert_eq!(map.box_, [64, 256, 1, 1, 1]);
        assert_eq!((map.swizzle, map.nan), (Swizzle::Bytes128, false));
        assert_eq!(map.box_bytes(), 64 * 256 * 2);
        assert!(TensorMap::decode(&[0; WORDS]).is_err());
    }

    #[test]
    fn what_the_driver_refuses_is_refused() {
        assert!(encode(&Description { address: 0x1008, ..GIVEN }).is_err());
        assert!(encode(&Description { strides: &[120, 12800], ..GIVEN }).is_err());
        assert!(encode(&Description { box_: &[128, 1, 1], ..GIVEN }).is_err());
        assert!(encode(&Description { box_: &[64, 257, 1], ..GIVEN }).is_err());
        assert!(encode(&Description { swizzle: 2, ..GIVEN }).is_err());
        assert!(encode(&Description { extents: &[64, 0, 3], ..GIVEN }).is_err());
        assert!(encode(&Description { extents: &[64, 100], ..GIVEN }).is_err());
    }

    #[test]
    fn swizzles_are_those_of_the_manual() {
        // Row 1 of 128 bytes: pieces 0 and 1 change places, and so on.
        assert_eq!(Swizzle::Bytes128.apply(128), 128 + 16);
        assert_eq!(Swizzle::Bytes128.apply(7 * 128 + 16 * 2 + 5), 7 * 128 + 16 * 5 + 5);
        assert_eq!(Swizzle::Bytes64.apply(3 * 128 + 64), 3 * 128 + 64 + 48);
        assert_eq!(Swizzle::Bytes32.apply(128), 128 + 16);
        assert_eq!(Swizzle::Bytes32.apply(64), 64);
    }
}
