//! The two floats that the backend computes in, and loops that the compiler can vectorise.
//!
//! f64 takes every function from the standard library and `libm`: it is the oracle. f32 brings `exp` and `erf`
//! of its own, branch-free, so that softmax and GELU run at vector speed: `exp` by Cody-Waite reduction and a
//! polynomial of degree 6, `erf` by a rational function of x² on [-4, 4]. Both are within a few units in the
//! last place of the exact value; the tests below hold them to it.

use rayon::prelude::*;
use std::fmt::Debug;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

/// `f32` or `f64`.
pub trait Real:
    Copy
    + Debug
    + Default
    + Send
    + Sync
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + Sum
    + bytemuck::Pod
    + 'static
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Negative infinity.
    const NEG_INFINITY: Self;
    /// Rounds from `f64`.
    fn of(x: f64) -> Self;
    /// Widens to `f64`.
    fn f64(self) -> f64;
    /// e to the power of this.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Error function.
    fn erf(self) -> Self;
    /// Sine and cosine.
    fn sin_cos(self) -> (Self, Self);
    /// The larger of two numbers.
    fn max(self, other: Self) -> Self;
    /// Whether this is neither infinite nor NaN.
    fn is_finite(self) -> bool;
}

impl Real for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = f64::NEG_INFINITY;
    fn of(x: f64) -> Self {
        x
    }
    fn f64(self) -> f64 {
        self
    }
    fn exp(self) -> Self {
        f64::exp(self)
    }
    fn ln(self) -> Self {
        f64::ln(self)
    }
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }
    fn erf(self) -> Self {
        libm::erf(self)
    }
    fn sin_cos(self) -> (Self, Self) {
        f64::sin_cos(self)
    }
    fn max(self, other: Self) -> Self {
        if self > other { self } else { other }
    }
    fn is_finite(self) -> bool {
        f64::is_finite(self)
    }
}

impl Real for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = f32::NEG_INFINITY;
    #[inline(always)]
    fn of(x: f64) -> Self {
        x as f32
    }
    #[inline(always)]
    fn f64(self) -> f64 {
        f64::from(self)
    }
    /// `2^n · p(r)` with `x = n ln 2 + r`, `|r| <= ln 2 / 2`.
    #[inline(always)]
    fn exp(self) -> Self {
        // Adding 1.5 · 2^23 rounds to an integer and leaves it in the low bits.
        const ROUND: f32 = 12_582_912.0;
        const LN2_HIGH: f32 = 0.693_359_4;
        const LN2_LOW: f32 = -2.121_944_4e-4;
        // Below, the result would be subnormal: 0. Above, 2^n needs the exponent of infinity.
        let x = if self > 88.72 { 88.72 } else { self };
        let shifted = x * std::f32::consts::LOG2_E + ROUND;
        let n = shifted - ROUND;
        let r = (x - n * LN2_HIGH) - n * LN2_LOW;
        let mut p = 1.987_569_1e-4;
        p = p * r + 1.398_199_9e-3;
        p = p * r + 8.333_452e-3;
        p = p * r + 4.166_579_6e-2;
        p = p * r + 1.666_666_5e-1;
        p = p * r + 0.5;
        p = p * r * r + r + 1.0;
        // n reaches 128 for the largest inputs: two factors keep both exponents legal.
        let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
        let half = n >> 1;
        let power = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
        let y = p * power(half) * power(n - half);
        if self < -87.336 { 0.0 } else { y }
    }
    #[inline(always)]
    fn ln(self) -> Self {
        f32::ln(self)
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }
    /// Minimax rational approximation `x · P(x²) / Q(x²)`; beyond 4 the result is 1 to the last bit.
    #[inline(always)]
    fn erf(self) -> Self {
        let x = if self > 4.0 { 4.0 } else { self };
        let x = if x < -4.0 { -4.0 } else { x };
        let s = x * x;
        let mut p = -2.726_142_3e-10;
        for c in
            [2.770_681_4e-8, -2.101_024e-6, -5.692_506_4e-5, -7.349_906_3e-4, -2.954_6e-3, -1.609_603_3e-2]
        {
            p = p * s + c;
        }
        let mut q = -1.456_607_2e-5;
        for c in [-2.133_740_6e-4, -1.682_827e-3, -7.373_329_2e-3, -1.426_473_9e-2] {
            q = q * s + c;
        }
        x * p / q
    }
    fn sin_cos(self) -> (Self, Self) {
        f32::sin_cos(self)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        if self > other { self } else { other }
    }
    fn is_finite(self) -> bool {
        f32::is_finite(self)
    }
}

/// Runs a loop compiled for the best vector unit of this machine.
#[inline(always)]
pub(super) fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// Partial results of a reduction: enough for two vectors of eight, and the same on every machine.
const LANES: usize = 16;

#[inline(always)]
fn reduce<T: Real>(n: usize, start: T, term: impl Fn(T, usize) -> T, join: impl Fn(T, T) -> T) -> T {
    let mut lanes = [start; LANES];
    let whole = n - n % LANES;
    for base in (0..whole).step_by(LANES) {
        for (lane, value) in lanes.iter_mut().enumerate() {
            *value = term(*value, base + lane);
        }
    }
    for i in whole..n {
        lanes[i - whole] = term(lanes[i - whole], i);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = join(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Sum of products.
#[inline(always)]
pub(super) fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    reduce(n, T::ZERO, |sum, i| sum + a[i] * b[i], |x, y| x + y)
}

/// Sum.
#[inline(always)]
pub(super) fn sum<T: Real>(a: &[T]) -> T {
    reduce(a.len(), T::ZERO, |sum, i| sum + a[i], |x, y| x + y)
}

/// Largest element.
#[inline(always)]
pub(super) fn max<T: Real>(a: &[T]) -> T {
    reduce(a.len(), T::NEG_INFINITY, |m, i| m.max(a[i]), |x, y| x.max(y))
}

/// Replaces every element by `exp(x - shift)` and gives their sum.
#[inline(always)]
pub(super) fn exp_sum<T: Real>(a: &mut [T], shift: T) -> T {
    for x in a.iter_mut() {
        *x = (*x - shift).exp();
    }
    sum(a)
}

/// `f((index, row))` for every row of a matrix with `cols` columns, in parallel.
pub(super) fn for_rows<T: Real>(matrix: &mut [T], cols: usize, f: impl Fn((usize, &mut [T])) + Sync) {
    // A few thousand elements a task, or the hand-over costs more than the row.
    let group = (8192 / cols.max(1)).max(1);
    matrix.par_chunks_mut(group * cols).enumerate().for_each(|(g, rows)| {
        vectorised(
            #[inline(always)]
            || {
                for (r, row) in rows.chunks_exact_mut(cols).enumerate() {
                    f((g * group + r, row));
                }
            },
        );
    });
}

/// Elements handled by one task of an elementwise loop.
pub(super) const CHUNK: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    fn worst(exact: impl Fn(f64) -> f64, ours: impl Fn(f32) -> f32, from: f32, to: f32) -> f64 {
        let n = 200_000;
        let error = |i: i32| {
            let x = from + (to - from) * i as f32 / n as f32;
            let (got, want) = (f64::from(ours(x)), exact(f64::from(x)));
            (got - want).abs() / want.abs().max(1e-30)
        };
        (0..=n).map(error).fold(0.0, f64::max)
    }

    #[test]
    fn exp_in_f32_is_within_two_units_in_the_last_place() {
        assert!(worst(f64::exp, Real::exp, -87.3, 88.7) < 2.0 * f64::from(f32::EPSILON));
        assert_eq!(Real::exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(Real::exp(0.0_f32), 1.0);
        assert!(Real::exp(f32::NAN).is_nan());
    }

    #[test]
    fn erf_in_f32_is_within_a_few_units_in_the_last_place() {
        let error = worst(libm::erf, Real::erf, -6.0, 6.0);
        assert!(error < 6.0 * f64::from(f32::EPSILON), "{error}");
    }

    #[test]
    fn reductions_see_every_element() {
        for n in [0, 1, 15, 16, 17, 37] {
            let a: Vec<f64> = (0..n).map(f64::from).collect();
            assert_eq!(sum(&a), (0..n).map(f64::from).sum());
            assert_eq!(dot(&a, &a), (0..n).map(|x| f64::from(x * x)).sum());
            assert_eq!(max(&a), if n == 0 { f64::NEG_INFINITY } else { f64::from(n - 1) });
        }
    }
}
