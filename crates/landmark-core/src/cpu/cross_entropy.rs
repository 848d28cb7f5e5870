//! Output matrix and loss, without the logits of a whole batch.
//!
//! For the loss alone, the vocabulary goes by in tiles: each task holds the logits of a few rows and a
//! thousand ids, small enough for its cache, and keeps a running maximum and sum for each row. With gradients
//! the logits of a slice of rows are held whole, become `dloss/dlogits` in place, and feed two products; a
//! second pass over tiles would compute them twice.

use super::gemm::{Mat, MatMut, gemm};
use super::real::{Real, exp_sum, max, vectorised};
use super::storage::Memory;
use crate::error::{Error, Result};
use crate::ops::LinearCrossEntropy;
use rayon::prelude::*;

/// Logits held at a time when there are gradients, in elements: large enough that adding to the whole output
/// matrix once a slice is small change, small enough that a batch of any size fits. In this crate's own tests
/// every case has several slices and tiles.
const SLICE: usize = if cfg!(test) { 12 } else { 24 << 20 };
/// Rows and ids of a tile when there are none: 512 KB in f32.
const TILE_ROWS: usize = if cfg!(test) { 2 } else { 256 };
const TILE_IDS: usize = if cfg!(test) { 3 } else { 512 };

/// What the rows of logits come down to.
#[derive(Clone, Copy)]
struct Row<T> {
    /// Largest logit so far, and its id.
    top: T,
    best: u32,
    /// Sum of `exp(logit - top)`.
    sum: T,
    /// Logit of the target.
    target: T,
}

impl<T: Real> Row<T> {
    fn loss(&self, target: i32) -> T {
        if target < 0 { T::ZERO } else { self.top + self.sum.ln() - self.target }
    }
}

/// Operands of the op, borrowed.
struct Inputs<'a, T> {
    x: &'a [T],
    weight: &'a [T],
    targets: &'a [i32],
    width: usize,
    vocab: usize,
}

pub(super) fn linear_cross_entropy<T: Real>(op: &LinearCrossEntropy, m: &mut Memory<'_, T>) -> Result<()> {
    let (rows, width, vocab) = (m.rows(op.x), m.cols(op.x), m.rows(op.weight));
    if let Some(&target) = m.i32(op.targets).iter().find(|&&t| t >= 0 && t as usize >= vocab) {
        let tensor = m.info(op.targets).name.clone();
        return Err(Error::Index { op: "LinearCrossEntropy", tensor, index: target as u64, limit: vocab });
    }
    let slice = if op.gradient.is_some() { (SLICE / vocab).clamp(1, rows) } else { 0 };
    let mut logits = m.take_workspace(slice * vocab);
    let mut gradient =
        op.gradient.as_ref().map(|g| (m.take(g.dx), g.dweight.map(|dweight| m.take(dweight.tensor))));
    let mut predictions = op.predictions.map(|t| m.take_u32(t));
    let (x, weight, targets) = (m.real(op.x), m.real(op.weight), m.i32(op.targets));
    let inputs = Inputs { x: &x, weight: &weight, targets, width, vocab };
    let found = match (&op.gradient, &mut gradient) {
        (Some(g), Some((dx, dweight))) => {
            let wanted = predictions.is_some();
            let scale = T::of(f64::from(g.scale));
            let dweight = g.dweight.zip(dweight.as_deref_mut()).map(|(out, dweight)| (out.add, dweight));
            differentiate(&inputs, scale, wanted, dx, dweight, &mut logits[..slice * vocab])
        }
        _ => score(&inputs),
    };
    let counted = targets.iter().filter(|&&t| t >= 0).count();
    let total: T = found.iter().zip(targets).map(|(row, &target)| row.loss(target)).sum();
    if let Some(predictions) = &mut predictions {
        predictions.iter_mut().zip(&found).for_each(|(p, row)| *p = row.best);
    }
    drop((x, weight));
    m.put_workspace(logits);
    if let (Some(g), Some((dx, dweight))) = (&op.gradient, gradient) {
        m.put(g.dx, dx);
        if let Some((out, dweight)) = g.dweight.zip(dweight) {
            m.put(out.tensor, dweight);
        }
    }
    if let (Some(tensor), Some(predictions)) = (op.predictions, predictions) {
        m.put_u32(tensor, predictions);
    }
    let mut loss = m.take(op.loss);
    loss[0] = if counted == 0 { T::ZERO } else { total / T::of(counted as f64) };
    m.put(op.loss, loss);
    Ok(())
}

/// Position of the largest element; a row of NaN has none, and its loss says so.
fn position<T: Real>(row: &[T], top: T) -> u32 {
    row.iter().position(|&l| l == top).unwrap_or(0) as u32
}

/// Loss alone: tiles of the vocabulary, several groups of rows at a time.
fn score<T: Real>(inputs: &Inputs<'_, T>) -> Vec<Row<T>> {
    let &Inputs { x, weight, targets, width, vocab } = inputs;
    let nothing = Row { top: T::NEG_INFINITY, best: 0, sum: T::ZERO, target: T::ZERO };
    let mut found = vec![nothing; targets.len()];
    found.par_chunks_mut(TILE_ROWS).enumerate().for_each_init(
        || vec![T::ZERO; TILE_ROWS * TILE_IDS],
        |tile, (group, found)| {
            let n = found.len();
            let x = Mat::new(&x[group * TILE_ROWS * width..][..n * width], n, width);
            for first in (0..vocab).step_by(TILE_IDS) {
                let ids = TILE_IDS.min(vocab - first);
                let weight = Mat::new(&weight[first * width..][..ids * width], ids, width);
                gemm(MatMut::new(&mut tile[..n * ids], n, ids), false, T::ONE, x, weight.t(), false);
                let targets = &targets[group * TILE_ROWS..];
                vectorised(
                    #[inline(always)]
                    || {
                        for ((row, logits), &target) in
                            found.iter_mut().zip(tile.chunks_exact_mut(ids)).zip(targets)
                        {
                            add_tile(row, logits, first, target);
                        }
                    },
                );
            }
        },
    );
    found
}

/// Takes the logits of ids `first ..` into a row's running maximum and sum.
#[inline(always)]
fn add_tile<T: Real>(row: &mut Row<T>, logits: &mut [T], first: usize, target: i32) {
    let top = max(logits);
    if top > row.top {
        row.sum *= (row.top - top).exp();
        row.top = top;
        row.best = first as u32 + position(logits, top);
    }
    let target = target as usize;
    if target >= first && target < first + logits.len() {
        row.target = logits[target - first];
    }
    // Writing the exponentials back costs less than a sum that the compiler does not vectorise.
    row.sum += exp_sum(logits, row.top);
}

/// Loss and gradients, a slice of rows at a time. `dweight` comes with whether it is added to.
fn differentiate<T: Real>(
    inputs: &Inputs<'_, T>,
    scale: T,
    predict: bool,
    dx: &mut [T],
    mut dweight: Option<(bool, &mut [T])>,
    logits: &mut [T],
) -> Vec<Row<T>> {
    let &Inputs { x, weight, targets, width, vocab } = inputs;
    let counted = targets.iter().filter(|&&t| t >= 0).count();
    let share = if counted == 0 { T::ZERO } else { scale / T::of(counted as f64) };
    let slice = logits.len() / vocab;
    let weight = Mat::new(weight, vocab, width);
    let mut found = Vec::with_capacity(targets.len());
    for (index, targets) in targets.chunks(slice).enumerate() {
        let (first, n) = (index * slice, targets.len());
        let x = Mat::new(&x[first * width..][..n * width], n, width);
        let logits = &mut logits[..n * vocab];
        gemm(MatMut::new(logits, n, vocab), false, T::ONE, x, weight.t(), true);
        let rows = logits.par_chunks_exact_mut(vocab).zip(targets);
        found.par_extend(rows.map(|(row, &target)| {
            vectorised(
                #[inline(always)]
                || differentiate_row(row, target, share, predict),
            )
        }));
        let dlogits = Mat::new(logits, n, vocab);
        let dx = &mut dx[first * width..][..n * width];
        gemm(MatMut::new(dx, n, width), false, T::ONE, dlogits, weight, true);
        if let Some((add, dweight)) = &mut dweight {
            let add = *add || first > 0;
            gemm(MatMut::new(dweight, vocab, width), add, T::ONE, dlogits.t(), x, true);
        }
    }
    found
}

/// A row of logits becomes `share · (softmax - onehot(target))`, or zeros without a target.
#[inline(always)]
fn differentiate_row<T: Real>(row: &mut [T], target: i32, share: T, predict: bool) -> Row<T> {
    let top = max(row);
    let best = if predict { position(row, top) } else { 0 };
    if target < 0 {
        row.fill(T::ZERO);
        return Row { top, best, sum: T::ONE, target: T::ZERO };
    }
    let at = row[target as usize];
    let sum = exp_sum(row, top);
    let scale = share / sum;
    row.iter_mut().for_each(|p| *p *= scale);
    row[target as usize] -= share;
    Row { top, best, sum, target: at }
}

#[cfg(test)]
mod tests {
    use crate::backend::Backend;
    use crate::ops::{LinearCrossEntropy, LossGradient};
    use crate::{Cpu, DType, Layout, Out, Recorder};

    const ROWS: usize = 7;
    const WIDTH: usize = 3;
    const VOCAB: usize = 5;
    const TARGETS: [i32; ROWS] = [4, -1, 0, 2, 2, -1, 1];

    fn value(i: usize) -> f64 {
        (i as f64 * 1.7).sin()
    }

    /// Loss, its gradients by `x` and the weight, and the most likely ids, from the definition.
    fn naive(x: &[f64], weight: &[f64]) -> (f64, Vec<f64>, Vec<f64>, Vec<f64>) {
        let (mut loss, mut dx, mut dweight) = (0.0, vec![0.0; x.len()], vec![0.0; weight.len()]);
        let mut best = Vec::new();
        let counted = TARGETS.iter().filter(|&&t| t >= 0).count() as f64;
        for (n, &target) in TARGETS.iter().enumerate() {
            let logit = |v: usize| (0..WIDTH).map(|c| x[n * WIDTH + c] * weight[v * WIDTH + c]).sum::<f64>();
            best.push((0..VOCAB).max_by(|&a, &b| logit(a).total_cmp(&logit(b))).unwrap() as f64);
            if target < 0 {
                continue;
            }
            let sum: f64 = (0..VOCAB).map(|v| logit(v).exp()).sum();
            loss += (sum.ln() - logit(target as usize)) / counted;
            for v in 0..VOCAB {
                let d = (logit(v).exp() / sum - f64::from(u8::from(v == target as usize))) / counted;
                for c in 0..WIDTH {
                    dx[n * WIDTH + c] += d * weight[v * WIDTH + c];
                    dweight[v * WIDTH + c] += d * x[n * WIDTH + c];
                }
            }
        }
        (loss, dx, dweight, best)
    }

    #[test]
    fn tiles_together_are_the_whole() {
        const { assert!(super::TILE_IDS < VOCAB && super::TILE_ROWS < ROWS) };
        let mut layout = Layout::new();
        let x = layout.add("x", DType::F32, [ROWS, WIDTH]);
        let weight = layout.add("weight", DType::F32, [VOCAB, WIDTH]);
        let targets = layout.add("targets", DType::I32, [ROWS]);
        let loss = layout.add("loss", DType::F32, [1]);
        let predictions = layout.add("predictions", DType::U32, [ROWS]);
        let mut r = Recorder::new("tiles", &layout);
        r.push(LinearCrossEntropy {
            x,
            weight,
            targets,
            loss,
            predictions: Some(predictions),
            gradient: None,
        });
        let program = r.finish();
        let cpu = Cpu::<f64>::new();
        let mut arena = cpu.allocate(&layout).unwrap();
        let xs: Vec<f64> = (0..ROWS * WIDTH).map(value).collect();
        let ws: Vec<f64> = (0..VOCAB * WIDTH).map(|i| value(i + 100) * 3.0).collect();
        cpu.write_f64(&mut arena, x, &xs).unwrap();
        cpu.write_f64(&mut arena, weight, &ws).unwrap();
        cpu.write_f64(&mut arena, targets, &TARGETS.map(f64::from)).unwrap();
        cpu.run(&mut cpu.compile(&program, &arena).unwrap(), &mut arena).unwrap();
        let (expected, _, _, best) = naive(&xs, &ws);
        assert!((cpu.read_f64(&arena, loss)[0] - expected).abs() < 1e-12);
        assert_eq!(cpu.read_f64(&arena, predictions), best);
    }

    #[test]
    fn slices_together_are_the_whole() {
        const { assert!(super::SLICE / VOCAB < ROWS) };
        let mut layout = Layout::new();
        let [x, dx] = ["x", "dx"].map(|name| layout.add(name, DType::F32, [ROWS, WIDTH]));
        let [weight, dweight] =
            ["weight", "dweight"].map(|name| layout.add(name, DType::F32, [VOCAB, WIDTH]));
        let targets = layout.add("targets", DType::I32, [ROWS]);
        let predictions = layout.add("predictions", DType::U32, [ROWS]);
        let loss = layout.add("loss", DType::F32, [1]);
        let cpu = Cpu::<f64>::new();
        let mut arena = cpu.allocate(&layout).unwrap();
        let xs: Vec<f64> = (0..ROWS * WIDTH).map(value).collect();
        let weights: Vec<f64> = (0..VOCAB * WIDTH).map(|i| value(i + 40)).collect();
        cpu.write_f64(&mut arena, x, &xs).unwrap();
        cpu.write_f64(&mut arena, weight, &weights).unwrap();
        cpu.write_f64(&mut arena, targets, &TARGETS.map(f64::from)).unwrap();
        // Replaced, added to, and left alone: an output matrix that is not trained.
        for add in [Some(false), Some(true), None] {
            let mut r = Recorder::new("loss", &layout);
            let written = add.map(|add| Out { tensor: dweight, add });
            let gradient = Some(LossGradient { dx, dweight: written, scale: 2.0 });
            r.push(LinearCrossEntropy { x, weight, targets, loss, predictions: Some(predictions), gradient });
            cpu.write_f64(&mut arena, dweight, &[10.0; VOCAB * WIDTH]).unwrap();
            cpu.run(&mut cpu.compile(&r.finish(), &arena).unwrap(), &mut arena).unwrap();
            let (want_loss, want_dx, want_dweight, best) = naive(&xs, &weights);
            let close = |found: Vec<f64>, want: Vec<f64>| {
                assert!(found.iter().zip(&want).all(|(f, w)| (f - w).abs() < 1e-13), "{found:?}, {want:?}");
            };
            let (held, factor) = match add {
                Some(false) => (0.0, 2.0),
                Some(true) => (10.0, 2.0),
                None => (10.0, 0.0),
            };
            close(cpu.read_f64(&arena, loss), vec![want_loss]);
            close(cpu.read_f64(&arena, dx), want_dx.iter().map(|d| 2.0 * d).collect());
            close(cpu.read_f64(&arena, dweight), want_dweight.iter().map(|d| factor * d + held).collect());
            close(cpu.read_f64(&arena, predictions), best);
        }
    }
}
