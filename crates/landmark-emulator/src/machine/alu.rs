//! Arithmetic: a row of 32 lanes in, a row out.
//!
//! IEEE 754 to the last bit where PTX promises it (sums, products, fused ones, quotients, roots; all roundings), and
//! correctly rounded or nearly so where a GPU approximates: a result that is right only because of an
//! approximation's error would be luck. Half precision is computed in f64 and rounded once.

use half::{bf16, f16};

use crate::ptx::instruction::{
    Bool, Compare, Count, Float, FloatUnary, Int, IntUnary, Mode, Round, Test, Type,
};

/// A register of 32 bits in all lanes.
pub type R32 = [u32; 32];
/// A register of 64 bits in all lanes.
pub type R64 = [u64; 32];

#[inline(always)]
fn map<A: Copy, D: Copy + Default>(a: &[A; 32], f: impl Fn(A) -> D) -> [D; 32] {
    let mut d = [D::default(); 32];
    for lane in 0..32 {
        d[lane] = f(a[lane]);
    }
    d
}

#[inline(always)]
fn map2<A: Copy, B: Copy, D: Copy + Default>(a: &[A; 32], b: &[B; 32], f: impl Fn(A, B) -> D) -> [D; 32] {
    let mut d = [D::default(); 32];
    for lane in 0..32 {
        d[lane] = f(a[lane], b[lane]);
    }
    d
}

#[inline(always)]
fn map3<A: Copy, B: Copy, C: Copy, D: Copy + Default>(
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
        (Int::MulHi, false) => map2(a, b, |x, y| (u64::from(x) * u64::from(y) >> 32) as u32),
        (Int::MulHi, true) => map2(a, b, |x, y| (i64::from(x as i32) * i64::from(y as i32) >> 32) as u32),
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
        (Int::MulHi, false) => map2(a, b, |x, y| (u128::from(x) * u128::from(y) >> 64) as u64),
        (Int::MulHi, true) => map2(a, b, |x, y| (i128::from(x as i64) * i128::from(y as i64) >> 64) as u64),
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

// ---- floats ----

/// Subnormal numbers become zero.
#[inline(always)]
pub fn flush(x: u32) -> u32 {
    if x & 0x7f80_0000 == 0 { x & 0x8000_0000 } else { x }
}

#[inline(always)]
fn half_value(x: u32) -> f32 {
    f16::from_bits(x as u16).to_f32()
}

/// What PTX makes of "not a number".
const NAN32: u32 = 0x7fff_ffff;

/// `x` rounded to a narrower type, of which `nearest` is the nearest value; `rest` is what `x` lacks of the exact result.
fn directed(x: f64, rest: f64, nearest: f64, round: Round) -> i32 {
    // -1: one step down, 1: one up
    let below = x > nearest || x == nearest && rest > 0.0;
    let above = x < nearest || x == nearest && rest < 0.0;
    match round {
        Round::Nearest | Round::Away => 0,
        Round::Down => -i32::from(above),
        Round::Up => i32::from(below),
        Round::Zero if x > 0.0 || x == 0.0 && rest > 0.0 => -i32::from(above),
        Round::Zero => i32::from(below),
    }
}

/// An exact result `x + rest` as f32.
pub fn round_f32(x: f64, rest: f64, round: Round) -> f32 {
    let mut nearest = x as f32;
    // a tie that `rest` breaks
    if round == Round::Nearest && rest != 0.0 && x.is_finite() {
        let off = x - f64::from(nearest);
        if off != 0.0 && off.signum() == rest.signum() {
            let next = if off > 0.0 { nearest.next_up() } else { nearest.next_down() };
            if (f64::from(next) - x).abs() <= off.abs() {
                nearest = next;
            }
        }
    }
    if nearest.is_nan() || x.is_infinite() {
        return nearest;
    }
    match directed(x, rest, f64::from(nearest), round) {
        -1 => nearest.next_down(),
        1 => nearest.next_up(),
        _ => nearest,
    }
}

fn round_f16(x: f64, round: Round) -> u32 {
    let nearest = f16::from_f64(x);
    if nearest.is_nan() || x.is_infinite() {
        return u32::from(nearest.to_bits());
    }
    let step = directed(x, 0.0, nearest.to_f64(), round);
    step16(nearest.to_bits(), step)
}

fn round_bf16(x: f64, round: Round) -> u32 {
    let nearest = bf16::from_f64(x);
    if nearest.is_nan() || x.is_infinite() {
        return u32::from(nearest.to_bits());
    }
    let step = directed(x, 0.0, nearest.to_f64(), round);
    step16(nearest.to_bits(), step)
}

fn step16(bits: u16, step: i32) -> u32 {
    let negative = bits & 0x8000 != 0;
    u32::from(match (step, negative) {
        (0, _) => bits,
        (1, false) | (-1, true) if bits & 0x7fff != 0x7fff => bits + 1,
        _ if bits & 0x7fff == 0 => {
            if step > 0 {
                1
            } else {
                0x8001
            }
        }
        _ => bits - 1,
    })
}

/// Sum, exact: the rounded one and the rest.
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let part = sum - a;
    let rest = (a - (sum - part)) + (b - part);
    (sum, if rest.is_finite() { rest } else { 0.0 })
}

#[inline(always)]
fn min_max(max: bool, nan: bool, x: u32, y: u32) -> u32 {
    let (a, b) = (f32::from_bits(x), f32::from_bits(y));
    if a.is_nan() || b.is_nan() {
        if nan || a.is_nan() && b.is_nan() {
            return NAN32;
        }
        return if a.is_nan() { y } else { x };
    }
    if a == b {
        // -0 is less than +0
        return if max { x & y } else { x | y };
    }
    if (a > b) == max { x } else { y }
}

/// Operations on f32.
#[inline(always)]
pub fn float32(op: Float, mode: Mode, a: &R32, b: &R32, c: &R32) -> R32 {
    let flushed;
    let (a, b, c) = if mode.ftz {
        flushed = [map(a, flush), map(b, flush), map(c, flush)];
        (&flushed[0], &flushed[1], &flushed[2])
    } else {
        (a, b, c)
    };
    let f = f32::from_bits;
    let d = match (op, mode.round) {
        (Float::Min, _) => map2(a, b, |x, y| min_max(false, mode.nan, x, y)),
        (Float::Max, _) => map2(a, b, |x, y| min_max(true, mode.nan, x, y)),
        (Float::CopySign, _) => map2(a, b, |x, y| x & 0x8000_0000 | y & 0x7fff_ffff),
        (Float::Add, Round::Nearest) => map2(a, b, |x, y| (f(x) + f(y)).to_bits()),
        (Float::Sub, Round::Nearest) => map2(a, b, |x, y| (f(x) - f(y)).to_bits()),
        (Float::Mul, Round::Nearest) => map2(a, b, |x, y| (f(x) * f(y)).to_bits()),
        (Float::Div, Round::Nearest) => map2(a, b, |x, y| (f(x) / f(y)).to_bits()),
        (Float::Fma, Round::Nearest) => map3(a, b, c, |x, y, z| f(x).mul_add(f(y), f(z)).to_bits()),
        (op, round) => map3(a, b, c, |x, y, z| directed_f32(op, round, f(x), f(y), f(z)).to_bits()),
    };
    finish32(d, mode)
}

/// With another rounding than to the nearest: the exact result in two f64, then rounded.
#[inline(never)]
fn directed_f32(op: Float, round: Round, x: f32, y: f32, z: f32) -> f32 {
    let (x, y, z) = (f64::from(x), f64::from(y), f64::from(z));
    let (value, rest) = match op {
        Float::Add => two_sum(x, y),
        Float::Sub => two_sum(x, -y),
        Float::Mul => (x * y, 0.0),
        Float::Fma => two_sum(x * y, z),
        _ => {
            let quotient = x / y;
            let rest = (-quotient).mul_add(y, x) / y;
            (quotient, if rest.is_finite() { rest } else { 0.0 })
        }
    };
    round_f32(value, rest, round)
}

#[inline(always)]
fn finish32(d: R32, mode: Mode) -> R32 {
    let d = if mode.ftz { map(&d, flush) } else { d };
    if mode.sat {
        // not a number becomes 0
        map(&d, |x| {
            let x = f32::from_bits(x);
            if x > 0.0 { x.min(1.0).to_bits() } else { 0 }
        })
    } else if mode.relu {
        map(&d, |x| if f32::from_bits(x) < 0.0 { 0 } else { x })
    } else {
        d
    }
}

/// Operations on f64.
#[inline(always)]
pub fn float64(op: Float, mode: Mode, a: &R64, b: &R64, c: &R64) -> R64 {
    let f = f64::from_bits;
    map3(a, b, c, |x, y, z| {
        let d = match op {
            Float::Add => f(x) + f(y),
            Float::Sub => f(x) - f(y),
            Float::Mul => f(x) * f(y),
            Float::Div => f(x) / f(y),
            Float::Fma => f(x).mul_add(f(y), f(z)),
            Float::CopySign => f(y).copysign(f(x)),
            Float::Min | Float::Max => {
                let (max, a, b) = (op == Float::Max, f(x), f(y));
                if a.is_nan() {
                    b
                } else if b.is_nan() || a == b && (a.is_sign_negative() != max) {
                    a
                } else if a == b {
                    b
                } else if (a > b) == max {
                    a
                } else {
                    b
                }
            }
        };
        let d = if mode.sat { if d > 0.0 { d.min(1.0) } else { 0.0 } } else { d };
        d.to_bits()
    })
}

/// A value of 16 bits.
#[inline(always)]
pub fn widen16(x: u32, brain: bool) -> f64 {
    if brain { f64::from(f32::from_bits(x << 16)) } else { f16::from_bits(x as u16).to_f64() }
}

#[inline(always)]
fn narrow16(x: f64, brain: bool, mode: Mode) -> u32 {
    let x = if mode.sat {
        if x > 0.0 { x.min(1.0) } else { 0.0 }
    } else if mode.relu && x < 0.0 {
        0.0
    } else {
        x
    };
    if x.is_nan() {
        return 0x7fff;
    }
    if brain { round_bf16(x, mode.round) } else { round_f16(x, mode.round) }
}

fn float16(op: Float, mode: Mode, brain: bool, x: u32, y: u32, z: u32) -> u32 {
    let (a, b) = (widen16(x & 0xffff, brain), widen16(y & 0xffff, brain));
    match op {
        Float::CopySign => x & 0x8000 | y & 0x7fff,
        Float::Min | Float::Max => {
            let max = op == Float::Max;
            if a.is_nan() || b.is_nan() {
                if mode.nan || a.is_nan() && b.is_nan() {
                    0x7fff
                } else if a.is_nan() {
                    y & 0xffff
                } else {
                    x & 0xffff
                }
            } else if a == b {
                (if max { x & y } else { x | y }) & 0xffff
            } else if (a > b) == max {
                x & 0xffff
            } else {
                y & 0xffff
            }
        }
        Float::Add => narrow16(a + b, brain, mode),
        Float::Sub => narrow16(a - b, brain, mode),
        Float::Mul => narrow16(a * b, brain, mode),
        Float::Div => narrow16(a / b, brain, mode),
        Float::Fma => narrow16(a.mul_add(b, widen16(z & 0xffff, brain)), brain, mode),
    }
}

/// Operations on f16 and bf16, one or two a register.
#[inline(always)]
pub fn float_half(op: Float, ty: Type, mode: Mode, a: &R32, b: &R32, c: &R32) -> R32 {
    let brain = matches!(ty, Type::Bf16 | Type::Bf16x2);
    let one = |x, y, z| float16(op, mode, brain, x, y, z);
    match ty {
        Type::F16x2 | Type::Bf16x2 => {
            map3(a, b, c, |x, y, z| one(x, y, z) | one(x >> 16, y >> 16, z >> 16) << 16)
        }
        _ => map3(a, b, c, one),
    }
}

/// Operations of one f32.
#[inline(always)]
pub fn float_unary32(op: FloatUnary, mode: Mode, a: &R32) -> R32 {
    let flushed;
    let a = if mode.ftz {
        flushed = map(a, flush);
        &flushed
    } else {
        a
    };
    let f = f32::from_bits;
    let exact = |value: fn(f64) -> f64| map(a, |x| (value(f64::from(f(x))) as f32).to_bits());
    let d = match op {
        FloatUnary::Neg => map(a, |x| x ^ 0x8000_0000),
        FloatUnary::Abs => map(a, |x| x & 0x7fff_ffff),
        FloatUnary::Rcp if mode.round == Round::Nearest => map(a, |x| (1.0 / f(x)).to_bits()),
        FloatUnary::Rcp => map(a, |x| directed_f32(Float::Div, mode.round, 1.0, f(x), 0.0).to_bits()),
        FloatUnary::Sqrt if mode.round == Round::Nearest => map(a, |x| f(x).sqrt().to_bits()),
        FloatUnary::Sqrt => map(a, |x| {
            let value = f64::from(f(x));
            let root = value.sqrt();
            let rest = (-root).mul_add(root, value);
            round_f32(root, if rest.is_finite() { rest } else { 0.0 }, mode.round).to_bits()
        }),
        FloatUnary::Rsqrt => exact(|x| 1.0 / x.sqrt()),
        FloatUnary::Ex2 => map(a, |x| f(x).exp2().to_bits()),
        FloatUnary::Lg2 => exact(f64::log2),
        FloatUnary::Sin => exact(f64::sin),
        FloatUnary::Cos => exact(f64::cos),
        FloatUnary::Tanh => exact(f64::tanh),
    };
    finish32(d, mode)
}

/// Operations of one f64.
pub fn float_unary64(op: FloatUnary, a: &R64) -> R64 {
    map(a, |x| {
        let value = f64::from_bits(x);
        match op {
            FloatUnary::Neg => x ^ 1 << 63,
            FloatUnary::Abs => x & !(1 << 63),
            FloatUnary::Rcp => (1.0 / value).to_bits(),
            FloatUnary::Sqrt => value.sqrt().to_bits(),
            FloatUnary::Rsqrt => (1.0 / value.sqrt()).to_bits(),
            FloatUnary::Ex2 => value.exp2().to_bits(),
            FloatUnary::Lg2 => value.log2().to_bits(),
            FloatUnary::Sin => value.sin().to_bits(),
            FloatUnary::Cos => value.cos().to_bits(),
            FloatUnary::Tanh => value.tanh().to_bits(),
        }
    })
}

/// Operations of one or two f16 or bf16 a register.
pub fn float_unary_half(op: FloatUnary, ty: Type, mode: Mode, a: &R32) -> R32 {
    let brain = matches!(ty, Type::Bf16 | Type::Bf16x2);
    let one = |x: u32| {
        let x = x & 0xffff;
        let value = widen16(x, brain);
        let rounded = |value: f64| narrow16(value, brain, mode);
        match op {
            FloatUnary::Neg => x ^ 0x8000,
            FloatUnary::Abs => x & 0x7fff,
            FloatUnary::Rcp => rounded(1.0 / value),
            FloatUnary::Sqrt => rounded(value.sqrt()),
            FloatUnary::Rsqrt => rounded(1.0 / value.sqrt()),
            FloatUnary::Ex2 => rounded(value.exp2()),
            FloatUnary::Lg2 => rounded(value.log2()),
            FloatUnary::Sin => rounded(value.sin()),
            FloatUnary::Cos => rounded(value.cos()),
            FloatUnary::Tanh => rounded(value.tanh()),
        }
    };
    match ty {
        Type::F16x2 | Type::Bf16x2 => map(a, |x| one(x) | one(x >> 16) << 16),
        _ => map(a, one),
    }
}

// ---- conversions ----

/// How a value is converted.
#[derive(Clone, Copy, Debug)]
pub struct Conversion {
    /// To what.
    pub to: Type,
    /// From what.
    pub from: Type,
    /// How it is rounded.
    pub round: Round,
    /// To a whole number.
    pub whole: bool,
    /// Subnormal f32 count as zero.
    pub ftz: bool,
    /// Clamped to the range of integers, or to 0 ..= 1.
    pub sat: bool,
    /// Negative results become zero.
    pub relu: bool,
}

fn whole(x: f64, round: Round) -> f64 {
    match round {
        Round::Nearest | Round::Away => x.round_ties_even(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
    }
}

/// Converts one value; integers narrower than their register are extended as their type says.
pub fn convert(how: Conversion, x: u64) -> u64 {
    let Conversion { to, from, round, .. } = how;
    if from.float() {
        let value = match from {
            Type::F16 | Type::Bf16 => widen16(x as u32 & 0xffff, from == Type::Bf16),
            Type::F64 => f64::from_bits(x),
            _ => f64::from(f32::from_bits(if how.ftz { flush(x as u32) } else { x as u32 })),
        };
        if !to.float() {
            // `as` saturates, and makes 0 of what is not a number
            let value = whole(value, round);
            let clamped = match (to.signed(), to.bits()) {
                (true, 8) => value as i8 as i64 as u64,
                (true, 16) => value as i16 as i64 as u64,
                (true, 32) => value as i32 as i64 as u64,
                (true, _) => value as i64 as u64,
                (false, 8) => u64::from(value as u8),
                (false, 16) => u64::from(value as u16),
                (false, 32) => u64::from(value as u32),
                (false, _) => value as u64,
            };
            return clamped;
        }
        let value = if how.whole { whole(value, round) } else { value };
        return narrow(how, value);
    }
    // sign or zero extension to 64 bits
    let x = match from {
        Type::S32 => x as i32 as i64 as u64,
        Type::U32 | Type::B32 => x & 0xffff_ffff,
        Type::S8 | Type::U8 | Type::B8 | Type::U16 | Type::B16 => u64::from(extend(x as u32, from)),
        Type::S16 => x as i16 as i64 as u64,
        _ => x,
    };
    let x = if from == Type::S8 { x as i8 as i64 as u64 } else { x };
    if to.float() {
        let exact = if from.signed() { i128::from(x as i64) } else { i128::from(x) };
        let value = exact as f64;
        let rest = (exact - value as i128) as f64;
        return match to {
            Type::F32 => u64::from(round_f32(value, rest, round).to_bits()),
            Type::F64 => {
                let step = directed(value, rest, value, round);
                match step {
                    -1 => value.next_down(),
                    1 => value.next_up(),
                    _ => value,
                }
                .to_bits()
            }
            _ => narrow(how, value),
        };
    }
    let x = if how.sat {
        let exact = if from.signed() { i128::from(x as i64) } else { i128::from(x) };
        let bits = to.bits();
        let (low, high) = if to.signed() {
            (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)
        } else {
            (0, (1i128 << bits) - 1)
        };
        exact.clamp(low, high) as u64
    } else {
        x
    };
    match to {
        Type::S32 => x as i32 as i64 as u64,
        Type::U32 | Type::B32 => x & 0xffff_ffff,
        Type::S16 => x as i16 as i64 as u64,
        Type::S8 => x as i8 as i64 as u64,
        Type::U16 | Type::B16 => x & 0xffff,
        Type::U8 | Type::B8 => x & 0xff,
        _ => x,
    }
}

fn narrow(how: Conversion, value: f64) -> u64 {
    let mode = Mode {
        round: if how.whole { Round::Nearest } else { how.round },
        ftz: how.ftz,
        sat: how.sat,
        relu: how.relu,
        nan: false,
    };
    match how.to {
        Type::F64 => {
            let value = if how.sat { if value > 0.0 { value.min(1.0) } else { 0.0 } } else { value };
            value.to_bits()
        }
        Type::F16 | Type::Bf16 => u64::from(narrow16(value, how.to == Type::Bf16, mode)),
        Type::Tf32 => {
            let bits = (value as f32).to_bits();
            if value.is_nan() || value.is_infinite() {
                return u64::from(bits);
            }
            let rounded = match how.round {
                Round::Away => bits.wrapping_add(0x1000),
                Round::Zero => bits,
                _ => bits.wrapping_add(0xfff + (bits >> 13 & 1)),
            };
            u64::from(rounded & !0x1fff)
        }
        _ => {
            let mut rounded = [round_f32(value, 0.0, mode.round).to_bits(); 32];
            rounded = finish32(rounded, mode);
            u64::from(rounded[0])
        }
    }
}

/// Two f32 as a pair of halves, `a` in the high one.
#[inline(always)]
pub fn convert_pair(to: Type, round: Round, relu: bool, sat: bool, a: &R32, b: &R32) -> R32 {
    let brain = to == Type::Bf16x2;
    if brain && round == Round::Nearest && !relu && !sat {
        return map2(a, b, |high, low| bf16_bits(high) << 16 | bf16_bits(low));
    }
    let mode = Mode { round, ftz: false, sat, relu, nan: false };
    let one = |x: u32| narrow16(f64::from(f32::from_bits(x)), brain, mode);
    map2(a, b, |high, low| one(high) << 16 | one(low))
}

/// An f32 as bf16, to nearest even.
#[inline(always)]
pub fn bf16_bits(x: u32) -> u32 {
    let rounded = x.wrapping_add(0x7fff + (x >> 16 & 1)) >> 16;
    if x & 0x7fff_ffff > 0x7f80_0000 { 0x7fff } else { rounded }
}
