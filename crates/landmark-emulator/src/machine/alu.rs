//! Arithmetic of integers, and comparisons: a row of 32 lanes in, a row out.

use super::float::{flush, half_value};
use crate::ptx::instruction::{Bool, Compare, Count, Int, IntUnary, Test, Type};

/// A register of 32 bits in all lanes.
pub type R32 = [u32; 32];
/// A register of 64 bits in all lanes.
pub type R64 = [u64; 32];

#[inline(always)]
pub(super) fn map<A: Copy, D: Copy + Default>(a: &[A; 32], f: impl Fn(A) -> D) -> [D; 32] {
    let mut d = [D::default(); 32];
    for lane in 0..32 {
        d[lane] = f(a[lane]);
    }
    d
}

#[inline(always)]
pub(super) fn map2<A: Copy, B: Copy, D: Copy + Default>(
    a: &[A; 32],
    b: &[B; 32],
    f: impl Fn(A, B) -> D,
) -> [D; 32] {
    let mut d = [D::default(); 32];
    for lane in 0..32 {
        d[lane] = f(a[lane], b[lane]);
    }
    d
}

#[inline(always)]
pub(super) fn map3<A: Copy, B: Copy, C: Copy, D: Copy + Default>(
    a: &[A; 32],
    b: &[B; 32],
    c: &[C; 32],
    f: impl Fn(A, B, C) -> D,
) -> [D; 32] {
    let mut d = [D::default(); 32];
    for lane in 0..32 {
        d[lane] = f(a[lane], b[lane], c[lane]);
    }
    d
}

/// A narrow integer as 32 bits.
#[inline(always)]
pub fn extend(x: u32, ty: Type) -> u32 {
    match ty {
        Type::S8 => x as u8 as i8 as i32 as u32,
        Type::U8 | Type::B8 => u32::from(x as u8),
        Type::S16 => x as u16 as i16 as i32 as u32,
        Type::U16 | Type::B16 => u32::from(x as u16),
        _ => x,
    }
}

// ---- integers ----

/// Operations of two registers; `c` is for `sad`.
#[inline(always)]
pub fn int32(op: Int, ty: Type, a: &R32, b: &R32, c: &R32) -> R32 {
    if ty.bits() < 32 {
        let shift = matches!(op, Int::Shl | Int::Shr);
        let (a, c) = (map(a, |x| extend(x, ty)), map(c, |x| extend(x, ty)));
        let b = if shift { *b } else { map(b, |x| extend(x, ty)) };
        let d = match op {
            Int::MulHi => map2(&a, &b, |x, y| x.wrapping_mul(y) >> 16),
            Int::AddSaturated => map2(&a, &b, |x, y| (x as i32 + y as i32).clamp(-32768, 32767) as u32),
            Int::SubSaturated => map2(&a, &b, |x, y| (x as i32 - y as i32).clamp(-32768, 32767) as u32),
            _ => full32(op, ty.signed(), &a, &b, &c),
        };
        return map(&d, |x| x & 0xffff);
    }
    full32(op, ty.signed(), a, b, c)
}

#[inline(always)]
fn full32(op: Int, signed: bool, a: &R32, b: &R32, c: &R32) -> R32 {
    match (op, signed) {
        (Int::Add, _) => map2(a, b, u32::wrapping_add),
        (Int::Sub, _) => map2(a, b, u32::wrapping_sub),
        (Int::AddSaturated, _) => map2(a, b, |x, y| (x as i32).saturating_add(y as i32) as u32),
        (Int::SubSaturated, _) => map2(a, b, |x, y| (x as i32).saturating_sub(y as i32) as u32),
        (Int::MulLo, _) => map2(a, b, u32::wrapping_mul),
        (Int::MulHi, false) => map2(a, b, |x, y| ((u64::from(x) * u64::from(y)) >> 32) as u32),
        (Int::MulHi, true) => map2(a, b, |x, y| ((i64::from(x as i32) * i64::from(y as i32)) >> 32) as u32),
        (Int::Div, false) => map2(a, b, |x, y| x.checked_div(y).unwrap_or(u32::MAX)),
        (Int::Div, true) => {
            map2(a, b, |x, y| if y == 0 { u32::MAX } else { (x as i32).wrapping_div(y as i32) as u32 })
        }
        (Int::Rem, false) => map2(a, b, |x, y| x.checked_rem(y).unwrap_or(x)),
        (Int::Rem, true) => {
            map2(a, b, |x, y| if y == 0 { x } else { (x as i32).wrapping_rem(y as i32) as u32 })
        }
        (Int::Min, false) => map2(a, b, u32::min),
        (Int::Min, true) => map2(a, b, |x, y| (x as i32).min(y as i32) as u32),
        (Int::Max, false) => map2(a, b, u32::max),
        (Int::Max, true) => map2(a, b, |x, y| (x as i32).max(y as i32) as u32),
        (Int::And, _) => map2(a, b, |x, y| x & y),
        (Int::Or, _) => map2(a, b, |x, y| x | y),
        (Int::Xor, _) => map2(a, b, |x, y| x ^ y),
        (Int::Shl, _) => map2(a, b, |x, y| if y > 31 { 0 } else { x << y }),
        (Int::Shr, false) => map2(a, b, |x, y| if y > 31 { 0 } else { x >> y }),
        (Int::Shr, true) => map2(a, b, |x, y| (x as i32 >> y.min(31)) as u32),
        (Int::Sad, false) => map3(a, b, c, |x, y, z| z.wrapping_add(x.abs_diff(y))),
        (Int::Sad, true) => map3(a, b, c, |x, y, z| z.wrapping_add((x as i32).abs_diff(y as i32))),
    }
}

/// The same of 64 bits; shifts are by `n`.
#[inline(always)]
pub fn int64(op: Int, signed: bool, a: &R64, b: &R64, c: &R64, n: &R32) -> R64 {
    match (op, signed) {
        (Int::Add | Int::AddSaturated, _) => map2(a, b, u64::wrapping_add),
        (Int::Sub | Int::SubSaturated, _) => map2(a, b, u64::wrapping_sub),
        (Int::MulLo, _) => map2(a, b, u64::wrapping_mul),
        (Int::MulHi, false) => map2(a, b, |x, y| ((u128::from(x) * u128::from(y)) >> 64) as u64),
        (Int::MulHi, true) => map2(a, b, |x, y| ((i128::from(x as i64) * i128::from(y as i64)) >> 64) as u64),
        (Int::Div, false) => map2(a, b, |x, y| x.checked_div(y).unwrap_or(u64::MAX)),
        (Int::Div, true) => {
            map2(a, b, |x, y| if y == 0 { u64::MAX } else { (x as i64).wrapping_div(y as i64) as u64 })
        }
        (Int::Rem, false) => map2(a, b, |x, y| x.checked_rem(y).unwrap_or(x)),
        (Int::Rem, true) => {
            map2(a, b, |x, y| if y == 0 { x } else { (x as i64).wrapping_rem(y as i64) as u64 })
        }
        (Int::Min, false) => map2(a, b, u64::min),
        (Int::Min, true) => map2(a, b, |x, y| (x as i64).min(y as i64) as u64),
        (Int::Max, false) => map2(a, b, u64::max),
        (Int::Max, true) => map2(a, b, |x, y| (x as i64).max(y as i64) as u64),
        (Int::And, _) => map2(a, b, |x, y| x & y),
        (Int::Or, _) => map2(a, b, |x, y| x | y),
        (Int::Xor, _) => map2(a, b, |x, y| x ^ y),
        (Int::Shl, _) => map2(a, n, |x, y| if y > 63 { 0 } else { x << y }),
        (Int::Shr, false) => map2(a, n, |x, y| if y > 63 { 0 } else { x >> y }),
        (Int::Shr, true) => map2(a, n, |x, y| (x as i64 >> y.min(63)) as u64),
        (Int::Sad, false) => map3(a, b, c, |x, y, z| z.wrapping_add(x.abs_diff(y))),
        (Int::Sad, true) => map3(a, b, c, |x, y, z| z.wrapping_add((x as i64).abs_diff(y as i64))),
    }
}

/// Operations of one register.
#[inline(always)]
pub fn int_unary32(op: IntUnary, ty: Type, a: &R32) -> R32 {
    let (bits, narrow) = (ty.bits(), ty.bits() < 32);
    let mask = if narrow { (1u32 << bits) - 1 } else { u32::MAX };
    let a = if narrow { map(a, |x| extend(x, ty)) } else { *a };
    let d = match op {
        IntUnary::Neg => map(&a, u32::wrapping_neg),
        IntUnary::Abs => map(&a, |x| (x as i32).unsigned_abs()),
        IntUnary::Not => map(&a, |x| !x),
        IntUnary::Cnot => map(&a, |x| u32::from(x & mask == 0)),
        IntUnary::Brev => map(&a, |x| x.reverse_bits() >> (32 - bits)),
    };
    if narrow { map(&d, |x| x & mask) } else { d }
}

/// Operations of one register.
#[inline(always)]
pub fn int_unary64(op: IntUnary, a: &R64) -> R64 {
    match op {
        IntUnary::Neg => map(a, u64::wrapping_neg),
        IntUnary::Abs => map(a, |x| (x as i64).unsigned_abs()),
        IntUnary::Not => map(a, |x| !x),
        IntUnary::Cnot => map(a, |x| u64::from(x == 0)),
        IntUnary::Brev => map(a, u64::reverse_bits),
    }
}

/// Bits counted: of a register of 32 bits.
#[inline(always)]
pub fn count32(op: Count, signed: bool, a: &R32) -> R32 {
    // bfind looks for the highest bit that differs from the sign
    let found = |x: u32| if signed && (x as i32) < 0 { !x } else { x };
    match op {
        Count::Popc => map(a, u32::count_ones),
        Count::Clz => map(a, u32::leading_zeros),
        Count::Bfind => map(a, |x| found(x).checked_ilog2().unwrap_or(u32::MAX)),
        Count::BfindShift => map(a, |x| found(x).checked_ilog2().map_or(u32::MAX, |at| 31 - at)),
    }
}

/// Bits counted: of a register of 64 bits.
#[inline(always)]
pub fn count64(op: Count, signed: bool, a: &R64) -> R32 {
    let found = |x: u64| if signed && (x as i64) < 0 { !x } else { x };
    match op {
        Count::Popc => map(a, u64::count_ones),
        Count::Clz => map(a, u64::leading_zeros),
        Count::Bfind => map(a, |x| found(x).checked_ilog2().unwrap_or(u32::MAX)),
        Count::BfindShift => map(a, |x| found(x).checked_ilog2().map_or(u32::MAX, |at| 63 - at)),
    }
}

/// The whole product of two registers of 32 bits, plus `c`.
#[inline(always)]
pub fn mul_wide(signed: bool, a: &R32, b: &R32, c: Option<&R64>) -> R64 {
    let d = if signed {
        map2(a, b, |x, y| (i64::from(x as i32) * i64::from(y as i32)) as u64)
    } else {
        map2(a, b, |x, y| u64::from(x) * u64::from(y))
    };
    match c {
        Some(c) => map2(&d, c, u64::wrapping_add),
        None => d,
    }
}

/// The whole product of two registers of 16 bits, plus `c`.
#[inline(always)]
pub fn mul_wide16(ty: Type, a: &R32, b: &R32, c: Option<&R32>) -> R32 {
    let d = map2(a, b, |x, y| extend(x, ty).wrapping_mul(extend(y, ty)));
    match c {
        Some(c) => map2(&d, c, u32::wrapping_add),
        None => d,
    }
}

/// The product of 24 bits of each.
#[inline(always)]
pub fn mul24(high: bool, signed: bool, a: &R32, b: &R32) -> R32 {
    map2(a, b, |x, y| {
        let product = if signed {
            (i64::from((x << 8) as i32 >> 8) * i64::from((y << 8) as i32 >> 8)) as u64
        } else {
            u64::from(x & 0xff_ffff) * u64::from(y & 0xff_ffff)
        };
        if high { (product >> 16) as u32 } else { product as u32 }
    })
}

/// A field of `length` bits from `position` on.
#[inline(always)]
pub fn bfe(ty: Type, x: u64, position: u32, length: u32) -> u64 {
    let bits = ty.bits();
    let (position, length) = (position & 0xff, length & 0xff);
    if length == 0 {
        return 0;
    }
    let x = if bits == 32 { x & 0xffff_ffff } else { x };
    let field = if position >= bits { 0 } else { x >> position };
    let kept = length.min(bits);
    let field = if kept == 64 { field } else { field & ((1 << kept) - 1) };
    if !ty.signed() {
        return field;
    }
    // the sign is the field's highest bit, or the register's if the field reaches beyond it
    let sign = x >> (position + length - 1).min(bits - 1) & 1;
    let reaches = bits.saturating_sub(position).min(kept);
    if sign == 1 && reaches < 64 { field | u64::MAX << reaches } else { field }
}

/// `a`'s low bits put into `b`.
#[inline(always)]
pub fn bfi(bits: u32, a: u64, b: u64, position: u32, length: u32) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    if length == 0 || position >= bits {
        return b;
    }
    let ones = if length >= 64 { u64::MAX } else { (1 << length) - 1 };
    let mask = ones << position;
    b & !mask | a << position & mask
}

/// Bytes chosen from a pair of registers.
#[inline(always)]
pub fn prmt(kind: u8, a: u32, b: u32, selector: u32) -> u32 {
    let pair = (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
    let i = selector & 3;
    let chosen: [u32; 4] = match kind {
        0 => std::array::from_fn(|k| selector >> (4 * k) & 0xf),
        1 => [i, i + 1, i + 2, i + 3], // f4e
        2 => [i, i.wrapping_sub(1) & 7, i.wrapping_sub(2) & 7, i.wrapping_sub(3) & 7], // b4e
        3 => [i; 4],                   // rc8
        4 => std::array::from_fn(|k| (k as u32).max(i)), // ecl
        5 => std::array::from_fn(|k| (k as u32).min(i)), // ecr
        _ => {
            let j = (i & 1) * 2; // rc16
            [j, j + 1, j, j + 1]
        }
    };
    u32::from_le_bytes(chosen.map(|at| {
        let byte = pair[(at & 7) as usize];
        // in the general form, bit 3 of a choice asks for the byte's sign
        if kind == 0 && at & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte }
    }))
}

/// Any function of three bits.
#[inline(always)]
pub fn lop3(table: u32, a: &R32, b: &R32, c: &R32) -> R32 {
    match table {
        0x80 => map3(a, b, c, |x, y, z| x & y & z),
        0xfe => map3(a, b, c, |x, y, z| x | y | z),
        0x96 => map3(a, b, c, |x, y, z| x ^ y ^ z),
        0xea => map3(a, b, c, |x, y, z| x & y | z),
        _ => map3(a, b, c, |x, y, z| {
            let mut d = 0;
            for i in 0..8 {
                if table >> i & 1 == 1 {
                    let pick = |v: u32, bit: u32| if i >> bit & 1 == 1 { v } else { !v };
                    d |= pick(x, 2) & pick(y, 1) & pick(z, 0);
                }
            }
            d
        }),
    }
}

/// The pair `b:a` shifted, its high half (left) or low half (right).
#[inline(always)]
pub fn shf(left: bool, wrap: bool, a: &R32, b: &R32, c: &R32) -> R32 {
    map3(a, b, c, |low, high, n| {
        let n = if wrap { n & 31 } else { n.min(32) };
        let pair = u64::from(high) << 32 | u64::from(low);
        if left { ((u128::from(pair) << n) >> 32) as u32 } else { (pair >> n) as u32 }
    })
}

/// Four products of bytes, summed.
#[inline(always)]
pub fn dp4a(a_signed: bool, b_signed: bool, a: u32, b: u32, c: u32) -> u32 {
    let value = |byte: u8, signed: bool| if signed { i32::from(byte as i8) } else { i32::from(byte) };
    let products = a
        .to_le_bytes()
        .into_iter()
        .zip(b.to_le_bytes())
        .map(|(x, y)| value(x, a_signed) * value(y, b_signed));
    c.wrapping_add(products.sum::<i32>() as u32)
}

// ---- comparisons ----

#[inline(always)]
fn bits<A: Copy>(a: &[A; 32], b: &[A; 32], f: impl Fn(A, A) -> bool) -> u32 {
    let mut d = 0;
    for lane in 0..32 {
        d |= u32::from(f(a[lane], b[lane])) << lane;
    }
    d
}

#[inline(always)]
#[allow(clippy::double_comparisons)] // `!=` would be true of what is not a number
fn ordered<A: Copy + PartialOrd>(op: Compare, a: &[A; 32], b: &[A; 32]) -> u32 {
    match op {
        Compare::Eq => bits(a, b, |x, y| x == y),
        Compare::Ne => bits(a, b, |x, y| x < y || x > y),
        Compare::Lt => bits(a, b, |x, y| x < y),
        Compare::Le => bits(a, b, |x, y| x <= y),
        Compare::Gt => bits(a, b, |x, y| x > y),
        Compare::Ge => bits(a, b, |x, y| x >= y),
        // the unordered ones are the negated opposites
        Compare::Equ => !bits(a, b, |x, y| x < y || x > y),
        Compare::Neu => bits(a, b, |x, y| x != y),
        Compare::Ltu => !bits(a, b, |x, y| x >= y),
        Compare::Leu => !bits(a, b, |x, y| x > y),
        Compare::Gtu => !bits(a, b, |x, y| x <= y),
        Compare::Geu => !bits(a, b, |x, y| x < y),
        Compare::Num => bits(a, b, |x, y| x.partial_cmp(&y).is_some()),
        Compare::Nan => bits(a, b, |x, y| x.partial_cmp(&y).is_none()),
    }
}

/// Compares registers of up to 32 bits; one bit a lane.
#[inline(always)]
pub fn compare32(op: Compare, ty: Type, ftz: bool, a: &R32, b: &R32) -> u32 {
    match ty {
        Type::F32 => {
            let value = |x: u32| f32::from_bits(if ftz { flush(x) } else { x });
            ordered(op, &map(a, value), &map(b, value))
        }
        Type::F16 => ordered(op, &map(a, half_value), &map(b, half_value)),
        Type::Bf16 => ordered(op, &map(a, |x| f32::from_bits(x << 16)), &map(b, |x| f32::from_bits(x << 16))),
        Type::S16 | Type::S8 => {
            let value = |x: u32| extend(x, ty) as i32;
            ordered(op, &map(a, value), &map(b, value))
        }
        Type::U16 | Type::B16 | Type::U8 | Type::B8 => {
            let value = |x: u32| extend(x, ty);
            ordered(op, &map(a, value), &map(b, value))
        }
        Type::S32 => ordered(op, &map(a, |x| x as i32), &map(b, |x| x as i32)),
        _ => ordered(op, a, b),
    }
}

/// Compares registers of 64 bits; one bit a lane.
#[inline(always)]
pub fn compare64(op: Compare, ty: Type, a: &R64, b: &R64) -> u32 {
    match ty {
        Type::F64 => ordered(op, &map(a, f64::from_bits), &map(b, f64::from_bits)),
        Type::S64 => ordered(op, &map(a, |x| x as i64), &map(b, |x| x as i64)),
        _ => ordered(op, a, b),
    }
}

/// Combines predicates.
#[inline(always)]
pub fn combine(op: Bool, a: u32, b: u32) -> u32 {
    match op {
        Bool::And => a & b,
        Bool::Or => a | b,
        Bool::Xor => a ^ b,
    }
}

/// `testp`; one bit a lane.
pub fn test(kind: Test, values: impl Iterator<Item = f64>, smallest: f64) -> u32 {
    values.enumerate().fold(0, |d, (lane, x)| {
        let yes = match kind {
            Test::Finite => x.is_finite(),
            Test::Infinite => x.is_infinite(),
            Test::Number => !x.is_nan(),
            Test::NotANumber => x.is_nan(),
            Test::Normal => x.is_finite() && x.abs() >= smallest,
            Test::Subnormal => x != 0.0 && x.abs() < smallest,
        };
        d | u32::from(yes) << lane
    })
}
