//! The grouped softmax of one query (spec section 2), forward and backward, on a row of scores.
//!
//! Training and retrieval both lay the keys of a query out in one row, blocks in time order, the query's own
//! block last; so both share these two functions, and the formulas stand once.

use super::real::{Real, dot, exp_sum, max};
use std::ops::Range;

/// The context-miss token as one query sees it.
pub(super) struct Miss<'a, T> {
    /// Score of its key.
    pub(super) score: T,
    /// Whether the landmark at this index of the row is gated.
    pub(super) gated: &'a dyn Fn(usize) -> bool,
    /// Shares below this count as 0.
    pub(super) cutoff: Option<T>,
}

/// What the forward pass of a row found, for its backward pass. Kept between rows to save allocations.
#[derive(Default)]
pub(super) struct Factors<T> {
    /// Landmark index and range of the ordinary keys of every earlier block.
    blocks: Vec<(usize, Range<usize>)>,
    /// For each block its share of the softmax it takes part in: outer, or that of the gated ones.
    share: Vec<T>,
    /// For each block the factor on its inner weights, after dropout.
    factor: Vec<T>,
    gated: Vec<bool>,
    own: Range<usize>,
    miss: T,
    /// Log of the outer sum; negative infinity when there is nothing to attend to.
    pub(super) lse: T,
}

impl<T: Real> Factors<T> {
    /// Turns the scores of keys `0..row.len()` into weights.
    ///
    /// `landmarks` lists the landmarks among them, ascending; when the last key is one, it is the query's own
    /// and nobody attends to it. Keys before `first` are invisible. `keep(l)` is the dropout factor of the
    /// block whose landmark is at index `l`.
    pub(super) fn forward(
        &mut self,
        row: &mut [T],
        first: usize,
        landmarks: &[usize],
        miss: Option<Miss<'_, T>>,
        keep: impl Fn(usize) -> T,
    ) {
        self.split(row.len(), first, landmarks);
        let hidden = first.min(row.len());
        row[..hidden].fill(T::ZERO);
        let own_closes = landmarks.last() == Some(&(row.len() - 1));
        if own_closes && let Some(last) = row.last_mut() {
            *last = T::ZERO;
        }
        self.outer(row, miss.as_ref());
        for (b, (landmark, keys)) in self.blocks.iter().enumerate() {
            let share = if self.gated[b] { self.miss * self.share[b] } else { self.share[b] };
            self.factor[b] = share * keep(*landmark);
            row[*landmark] = T::ZERO;
            let inner = &mut row[keys.clone()];
            let sum = exp_sum(inner, max(inner));
            let scale = self.factor[b] / sum;
            inner.iter_mut().for_each(|w| *w *= scale);
        }
    }

    /// The factor on each earlier block's inner weights that [`forward`](Self::forward) found: `S_{i,p_b}`.
    pub(super) fn shares(&self) -> &[T] {
        &self.factor
    }

    fn split(&mut self, len: usize, first: usize, landmarks: &[usize]) {
        self.blocks.clear();
        let mut start = first;
        for &landmark in landmarks.iter().filter(|&&l| l >= first && l + 1 < len) {
            self.blocks.push((landmark, start..landmark));
            start = landmark + 1;
        }
        let end = if landmarks.last() == Some(&(len - 1)) { len - 1 } else { len };
        self.own = start.min(end)..end;
        let n = self.blocks.len();
        for list in [&mut self.share, &mut self.factor] {
            list.clear();
            list.resize(n, T::ZERO);
        }
        self.gated.clear();
        self.gated.resize(n, false);
    }

    /// The outer softmax; the own block's part of the row becomes weights.
    fn outer(&mut self, row: &mut [T], miss: Option<&Miss<'_, T>>) {
        if let Some(miss) = miss {
            for (gated, (landmark, _)) in self.gated.iter_mut().zip(&self.blocks) {
                *gated = (miss.gated)(*landmark);
            }
        }
        let top_of = |wanted: bool, start: T| {
            let scores = self.blocks.iter().zip(&self.gated).filter(|&(_, &g)| g == wanted);
            scores.fold(start, |top, ((landmark, _), _)| top.max(row[*landmark]))
        };
        let miss_score = miss.map_or(T::NEG_INFINITY, |m| m.score);
        let top = top_of(false, max(&row[self.own.clone()]).max(miss_score));
        let gated_top = top_of(true, T::NEG_INFINITY);
        if top == T::NEG_INFINITY {
            // Nothing to attend to: a landmark that closes an empty block at the start of the row.
            (self.miss, self.lse) = (T::ZERO, T::NEG_INFINITY);
            row[self.own.clone()].fill(T::ZERO);
            return;
        }
        let mut sum = exp_sum(&mut row[self.own.clone()], top);
        let mut gated_sum = T::ZERO;
        for (b, (landmark, _)) in self.blocks.iter().enumerate() {
            let (shift, sum) = if self.gated[b] { (gated_top, &mut gated_sum) } else { (top, &mut sum) };
            self.share[b] = (row[*landmark] - shift).exp();
            *sum += self.share[b];
        }
        let miss_share = if miss.is_some() { (miss_score - top).exp() } else { T::ZERO };
        sum += miss_share;
        for (share, &gated) in self.share.iter_mut().zip(&self.gated) {
            *share = *share / if gated { gated_sum } else { sum };
        }
        row[self.own.clone()].iter_mut().for_each(|w| *w = *w / sum);
        self.miss = miss_share / sum;
        if miss.and_then(|m| m.cutoff).is_some_and(|cutoff| self.miss < cutoff) {
            self.miss = T::ZERO;
        }
        self.lse = top + sum.ln();
    }

    /// Gradients of the scores from the weights of [`forward`](Self::forward) and the gradients of the
    /// weights, which they replace. Returns the gradient of the context-miss token's score.
    pub(super) fn backward(&self, weights: &[T], gradients: &mut [T]) -> T {
        let own = self.own.clone();
        let mut total = dot(&weights[own.clone()], &gradients[own.clone()]);
        let mut gated_total = T::ZERO;
        // First the sums `c_b` of every block, kept where the landmark's gradient will stand.
        for (b, (landmark, keys)) in self.blocks.iter().enumerate() {
            let c = dot(&weights[keys.clone()], &gradients[keys.clone()]);
            total += c;
            if self.gated[b] {
                gated_total += c;
            }
            let mean = if self.factor[b] > T::ZERO { c / self.factor[b] } else { T::ZERO };
            for j in keys.clone() {
                gradients[j] = weights[j] * (gradients[j] - mean);
            }
            gradients[*landmark] = c;
        }
        for (b, (landmark, _)) in self.blocks.iter().enumerate() {
            let over = if self.gated[b] { gated_total } else { total };
            let c = gradients[*landmark];
            gradients[*landmark] = c - self.share[b] * over;
        }
        for j in own.clone() {
            gradients[j] = weights[j] * (gradients[j] - total);
        }
        let first = self.blocks.first().map_or(own.start, |(_, keys)| keys.start);
        gradients[..first].fill(T::ZERO);
        gradients[own.end..].fill(T::ZERO);
        gated_total - self.miss * total
    }
}
