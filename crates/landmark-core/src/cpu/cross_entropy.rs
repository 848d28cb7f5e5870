//! Output matrix and loss, a slice of rows at a time.

use super::gemm::{Mat, MatMut, gemm};
use super::real::{Real, exp_sum, for_rows, max};
use super::storage::Memory;
use crate::error::{Error, Result};
use crate::ops::LinearCrossEntropy;

/// Logits held at a time, in elements: large enough that adding to the whole output matrix once a slice is
/// small change, small enough that a batch of any size fits. In this crate's own tests every case has several
/// slices.
const SLICE: usize = if cfg!(test) { 12 } else { 24 << 20 };

pub(super) fn linear_cross_entropy<T: Real>(op: &LinearCrossEntropy, m: &mut Memory<'_, T>) -> Result<()> {
    let (rows, width, vocab) = (m.rows(op.x), m.cols(op.x), m.rows(op.weight));
    if let Some(&target) = m.i32(op.targets).iter().find(|&&t| t >= 0 && t as usize >= vocab) {
        let tensor = m.info(op.targets).name.clone();
        return Err(Error::Index { op: "LinearCrossEntropy", tensor, index: target as u64, limit: vocab });
    }
    let slice = (SLICE / vocab).clamp(1, rows);
    // The logits of a slice, then one loss a row.
    let mut workspace = m.take_workspace(slice * vocab + rows);
    let (logits, losses) = workspace.split_at_mut(slice * vocab);
    let mut predictions = op.predictions.map(|t| m.take_u32(t));
    let mut gradient = op.gradient.as_ref().map(|g| (m.take(g.dx), m.take(g.dweight.tensor)));
    let (x, weight, targets) = (m.real(op.x), m.real(op.weight), m.i32(op.targets));
    let counted = targets.iter().filter(|&&t| t >= 0).count();
    let share = match (&op.gradient, counted) {
        (Some(g), 1..) => T::of(f64::from(g.scale) / counted as f64),
        _ => T::ZERO,
    };
    for first in (0..rows).step_by(slice) {
        let n = slice.min(rows - first);
        let x = Mat::new(&x[first * width..][..n * width], n, width);
        let weight = Mat::new(&weight, vocab, width);
        let logits = &mut logits[..n * vocab];
        gemm(MatMut::new(logits, n, vocab), false, T::ONE, x, weight.t(), true);
        if let Some(predictions) = &mut predictions {
            for (p, row) in predictions[first..].iter_mut().zip(logits.chunks_exact(vocab)) {
                let best = max(row);
                // A row of NaN has no best logit; its loss says so.
                *p = row.iter().position(|&l| l == best).unwrap_or(0) as u32;
            }
        }
        for (i, loss) in losses[first..first + n].iter_mut().enumerate() {
            *loss = match targets[first + i] {
                target @ 0.. => -logits[i * vocab + target as usize],
                _ => T::ZERO,
            };
        }
        // Each row becomes its softmax, with log(sum) left for the loss.
        let sums = std::sync::Mutex::new(vec![T::ZERO; n]);
        for_rows(logits, vocab, |(i, row)| {
            let target = targets[first + i];
            if target < 0 {
                row.fill(T::ZERO);
                return;
            }
            let top = max(row);
            let sum = exp_sum(row, top);
            sums.lock().expect("no thread panics while it holds the sums")[i] = top + sum.ln();
            if op.gradient.is_some() {
                let scale = share / sum;
                row.iter_mut().for_each(|p| *p *= scale);
                row[target as usize] -= share;
            }
        });
        let sums = sums.into_inner().expect("no thread panics while it holds the sums");
        losses[first..first + n].iter_mut().zip(sums).for_each(|(loss, s)| *loss += s);
        if let (Some(g), Some((dx, dweight))) = (&op.gradient, &mut gradient) {
            let dlogits = Mat::new(logits, n, vocab);
            let dx = &mut dx[first * width..][..n * width];
            gemm(MatMut::new(dx, n, width), false, T::ONE, dlogits, weight, true);
            let add = g.dweight.add || first > 0;
            gemm(MatMut::new(dweight, vocab, width), add, T::ONE, dlogits.t(), x, true);
        }
    }
    let total: T = losses[..rows].iter().copied().sum();
    drop((x, weight));
    m.put_workspace(workspace);
    if let (Some(g), Some((dx, dweight))) = (&op.gradient, gradient) {
        m.put(g.dx, dx);
        m.put(g.dweight.tensor, dweight);
    }
    if let (Some(tensor), Some(predictions)) = (op.predictions, predictions) {
        m.put_u32(tensor, predictions);
    }
    let mut loss = m.take(op.loss);
    loss[0] = if counted == 0 { T::ZERO } else { total / T::of(counted as f64) };
    m.put(op.loss, loss);
    Ok(())
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
        for add in [false, true] {
            let mut r = Recorder::new("loss", &layout);
            let gradient = Some(LossGradient { dx, dweight: Out { tensor: dweight, add }, scale: 2.0 });
            r.push(LinearCrossEntropy { x, weight, targets, loss, predictions: Some(predictions), gradient });
            cpu.write_f64(&mut arena, dweight, &[10.0; VOCAB * WIDTH]).unwrap();
            cpu.run(&mut cpu.compile(&r.finish(), &arena).unwrap(), &mut arena).unwrap();
            let (want_loss, want_dx, want_dweight, best) = naive(&xs, &weights);
            let close = |found: Vec<f64>, want: Vec<f64>| {
                assert!(found.iter().zip(&want).all(|(f, w)| (f - w).abs() < 1e-13), "{found:?}, {want:?}");
            };
            let held = if add { 10.0 } else { 0.0 };
            close(cpu.read_f64(&arena, loss), vec![want_loss]);
            close(cpu.read_f64(&arena, dx), want_dx.iter().map(|d| 2.0 * d).collect());
            close(cpu.read_f64(&arena, dweight), want_dweight.iter().map(|d| 2.0 * d + held).collect());
            close(cpu.read_f64(&arena, predictions), best);
        }
    }
}
