//! The likeliest token.

use super::real::Real;
use super::storage::Memory;
use crate::ops::Likeliest;

pub(super) fn likeliest<T: Real>(op: &Likeliest, m: &mut Memory<'_, T>) {
    let cols = m.cols(op.logits);
    let mut out = m.take_u32(op.out);
    let logits = m.real(op.logits);
    for (out, row) in out.iter_mut().zip(logits.chunks_exact(cols)) {
        *out = of_row(row.iter().map(|logit| logit.f64()), op.banned);
    }
    drop(logits);
    m.put_u32(op.out, out);
}

fn of_row(logits: impl Iterator<Item = f64>, banned: Option<u32>) -> u32 {
    let mut best = (Likeliest::NO_TOKEN, f64::NEG_INFINITY);
    for (token, logit) in (0u32..).zip(logits) {
        if logit.is_nan() || logit == f64::INFINITY {
            return Likeliest::NO_TOKEN;
        }
        if logit > best.1 && Some(token) != banned {
            best = (token, logit);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_of_equals_that_is_not_banned() {
        let of = |logits: &[f64], banned| of_row(logits.iter().copied(), banned);
        assert_eq!(of(&[1.0, 3.0, 2.0, 3.0], None), 1);
        assert_eq!(of(&[1.0, 3.0, 2.0, 3.0], Some(1)), 3);
        assert_eq!(of(&[-0.0, 0.0], None), 0);
        for nothing in [&[1.0, f64::NAN][..], &[f64::INFINITY, 0.0], &[f64::NEG_INFINITY; 2], &[]] {
            assert_eq!(of(nothing, None), Likeliest::NO_TOKEN);
        }
        assert_eq!(of(&[1.0], Some(0)), Likeliest::NO_TOKEN);
    }
}
