//! Arithmetic of floats, and conversions: a row of 32 lanes in, a row out.
//!
//! IEEE 754 to the last bit where PTX promises it (sums, products, fused ones, quotients, roots; all roundings), and
//! correctly rounded or nearly so where a GPU approximates: a result that is right only because of an
//! approximation's error would be luck. Half precision is computed in f64 and rounded once.

use half::{bf16, f16};

use super::alu::{R32, R64, extend, map, map2, map3};
use crate::ptx::instruction::{Float, FloatUnary, Mode, Round, Type};

/// Subnormal numbers become zero.
#[inline(always)]
pub fn flush(x: u32) -> u32 {
    if x & 0x7f80_0000 == 0 { x & 0x8000_0000 } else { x }
}

#[inline(always)]
pub(super) fn half_value(x: u32) -> f32 {
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
