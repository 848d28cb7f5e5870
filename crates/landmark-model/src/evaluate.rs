//! Evaluation as the released program does it: rows of a stream, read in chunks, losses averaged batch by batch.

use crate::batch::Batch;
use crate::engine::{Engine, Result};
use crate::reader::Reader;
use crate::record::Granularity;
use landmark_core::Backend;

/// How rows are read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EvalSettings {
    /// Tokens of a chunk (`mid_length`), landmarks not counted.
    pub chunk: usize,
    /// Granularity of the choice of blocks.
    pub selection: Granularity,
    /// Shares of the context-miss token below this count as 0 (`rem_cutoff`).
    pub miss_cutoff: Option<f32>,
}

/// Running averages of an evaluation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Averages {
    losses: Vec<f64>,
    correct: usize,
    /// Tokens with a target.
    tokens: usize,
    chunks: Vec<(f64, usize)>,
}

impl Averages {
    /// Mean over batches of the mean loss of a batch, in nats: as released, where a last smaller batch weighs as
    /// much as the others.
    pub fn loss(&self) -> f64 {
        self.losses.iter().sum::<f64>() / self.losses.len() as f64
    }

    /// Share of tokens whose most likely successor was right.
    ///
    /// The released evaluation divides by the tokens of one row instead of those of the batch; its figure is
    /// this one times the batch size.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.tokens as f64
    }

    /// `2.71828^loss`, with the released program's constant.
    pub fn perplexity(&self) -> f64 {
        perplexity(self.loss())
    }

    /// Mean loss of the first, second, ... chunk of the rows.
    pub fn chunk_losses(&self) -> Vec<f64> {
        self.chunks.iter().map(|&(sum, count)| sum / count as f64).collect()
    }

    /// Tokens scored so far.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

/// `2.71828^loss`, with the released program's constant.
#[allow(clippy::approx_constant)] // so that the figures compare digit by digit
pub fn perplexity(loss: f64) -> f64 {
    2.71828_f64.powf(loss)
}

/// Reads one batch of rows, from an empty cache, and adds what it finds to `averages`.
///
/// # Errors
/// As [`Reader::score`].
pub async fn evaluate_batch<B: Backend>(
    engine: &mut Engine<B>,
    settings: &EvalSettings,
    batch: &Batch,
    averages: &mut Averages,
) -> Result<()> {
    let mut reader = Reader::new(engine, batch.batch, settings.selection, settings.miss_cutoff);
    let mut total = 0.0;
    for (index, start) in (0..batch.length).step_by(settings.chunk).enumerate() {
        let chunk = batch.columns(start, start + settings.chunk, None);
        let read = reader.score(&chunk.tokens, &chunk.targets).await?;
        total += read.loss * chunk.length as f64;
        let hits =
            read.predictions.iter().zip(&chunk.targets).filter(|&(&p, &t)| i64::from(p) == i64::from(t));
        averages.correct += hits.count();
        averages.tokens += chunk.targets.iter().filter(|&&target| target >= 0).count();
        if averages.chunks.len() <= index {
            averages.chunks.push((0.0, 0));
        }
        averages.chunks[index].0 += read.loss;
        averages.chunks[index].1 += 1;
    }
    averages.losses.push(total / batch.length as f64);
    Ok(())
}
