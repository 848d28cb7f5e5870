//! Weights in blocks of 8 or 4 bits.
//!
//! A row is cut into blocks of 32 elements; each has one scale, a float of 16 bits, and a code for each element, so
//! that `value = scale · code`. Codes are symmetric: -127 to 127 in 8 bits, -7 to 7 in 4, which are stored with 8
//! added, the first element of two in the lower half of a byte. The scale is the largest magnitude of the block over the largest
//! code, so the largest element keeps its value but for the scale's rounding, and quantising again what was quantised
//! changes nothing: a file of quantised weights may hold the rounded values in any type.
//!
//! Rejected: an offset for each block (asymmetric codes), which costs a second number a block and an addition for each
//! element for weights whose mean is 0.

use half::f16;

/// Elements that share a scale.
pub const BLOCK: usize = 32;

/// How many bits a code has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bits {
    /// 8.5 bits an element, the scale counted.
    Eight,
    /// 4.5 bits an element.
    Four,
}

impl Bits {
    /// How many.
    pub const fn count(self) -> u32 {
        match self {
            Bits::Eight => 8,
            Bits::Four => 4,
        }
    }

    /// Bytes of the codes of a block.
    pub const fn code_bytes(self) -> usize {
        match self {
            Bits::Eight => BLOCK,
            Bits::Four => BLOCK / 2,
        }
    }

    fn largest(self) -> f32 {
        match self {
            Bits::Eight => 127.0,
            Bits::Four => 7.0,
        }
    }
}

/// Whether a tensor is a matrix of weights whose rows are whole blocks: what is kept in blocks where weights are. Norms
/// and biases never are.
pub fn is_matrix(name: &str, dims: &[usize]) -> bool {
    dims.len() == 2 && dims[1].is_multiple_of(BLOCK) && name.ends_with(".weight")
}

/// Codes and scales of some values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quantized {
    /// Codes, block after block.
    pub codes: Vec<u8>,
    /// Scales, one a block.
    pub scales: Vec<f16>,
}

/// Quantises values; a multiple of [`BLOCK`] of them.
///
/// # Panics
/// When they are not.
pub fn quantize(values: &[f32], bits: Bits) -> Quantized {
    assert!(values.len().is_multiple_of(BLOCK), "{} values are not whole blocks", values.len());
    let mut found = Quantized::default();
    for block in values.chunks_exact(BLOCK) {
        let top = block.iter().fold(0.0_f32, |top, x| top.max(x.abs()));
        let scale = f16::from_f32((top / bits.largest()).min(f16::MAX.to_f32()));
        let over = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
        let code = |x: &f32| (x * over).round().clamp(-bits.largest(), bits.largest()) as i8;
        match bits {
            Bits::Eight => found.codes.extend(block.iter().map(|x| code(x) as u8)),
            Bits::Four => found.codes.extend(
                block.chunks_exact(2).map(|x| (code(&x[0]) + 8) as u8 | ((code(&x[1]) + 8) as u8) << 4),
            ),
        }
        found.scales.push(scale);
    }
    found
}

/// The values that codes and scales stand for.
pub fn dequantize(quantized: &Quantized, bits: Bits) -> Vec<f32> {
    let blocks = quantized.codes.chunks_exact(bits.code_bytes()).zip(&quantized.scales);
    let values = |(codes, scale): (&[u8], &f16)| {
        let scale = scale.to_f32();
        let codes: Vec<i8> = match bits {
            Bits::Eight => codes.iter().map(|&c| c as i8).collect(),
            Bits::Four => codes.iter().flat_map(|&c| [(c & 15) as i8 - 8, (c >> 4) as i8 - 8]).collect(),
        };
        codes.into_iter().map(move |code| scale * f32::from(code)).collect::<Vec<f32>>()
    };
    blocks.flat_map(values).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 1.7).sin() * (1.0 + (i / BLOCK) as f32)).collect()
    }

    #[test]
    fn values_come_back_within_half_a_step() {
        for bits in [Bits::Eight, Bits::Four] {
            let values = values(4 * BLOCK);
            let quantized = quantize(&values, bits);
            assert_eq!(quantized.codes.len(), 4 * bits.code_bytes());
            for (block, (values, found)) in
                values.chunks(BLOCK).zip(dequantize(&quantized, bits).chunks(BLOCK)).enumerate()
            {
                let step = quantized.scales[block].to_f32();
                // The scale itself is rounded to 11 bits, which moves the largest code's value.
                let allowed = step * (0.5 + bits.largest() / 2048.0);
                for (x, y) in values.iter().zip(found) {
                    assert!((x - y).abs() <= allowed, "{x} became {y}, step {step}");
                }
            }
        }
    }

    #[test]
    fn what_is_quantised_stays_as_it_is() {
        for bits in [Bits::Eight, Bits::Four] {
            let once = quantize(&values(64 * BLOCK), bits);
            assert_eq!(quantize(&dequantize(&once, bits), bits), once);
        }
    }

    #[test]
    fn zeros_tiny_and_huge_values() {
        for bits in [Bits::Eight, Bits::Four] {
            for x in [0.0, 1e-12, -1e30] {
                let found = dequantize(&quantize(&[x; BLOCK], bits), bits);
                assert!(found.iter().all(|y| y.is_finite() && y.abs() <= x.abs()), "{x}: {found:?}");
            }
        }
    }

    /// By hand: a block whose largest element is 7 has a scale of 1.
    #[test]
    fn four_bits_lie_as_they_are_documented() {
        let mut values = [0.0; BLOCK];
        values[..4].copy_from_slice(&[7.0, -7.0, 1.0, -2.4]);
        let found = quantize(&values, Bits::Four);
        assert_eq!(found.scales, vec![f16::ONE]);
        assert_eq!(found.codes[..3], [0x1f, 0x69, 0x88]);
    }
}
