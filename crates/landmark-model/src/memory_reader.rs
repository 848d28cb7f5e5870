//! Reading into a landmark memory, rows of different lengths side by side.
//!
//! A reader holds the rows of one batch, each with a memory of its own length. A step takes some tokens of each row
//! (none of a row that is done), puts a landmark after every block that fills up (spec section 4), and pads the rows
//! to one length; padding is neither stored nor chosen for. Since programs have static shapes, lengths are padded to
//! powers of two up to a chunk, so that a handful of compiled programs serves every prompt.
//!
//! What each row reads does not depend on the rows beside it.
//!
//! Who generates greedily reads back one token of each step, and most often has it read next. A device that works by
//! itself need not wait for that: it has the token, so its next step is begun before the token is on its way. If something
//! else is read next, that step is as if it had not been: what it put into the memory lies behind the row's length. What the
//! step looked up comes with its token, where it is kept: one trip to the device, and the step ahead may overwrite it.

use crate::engine::{Engine, Error, Held, Result};
use crate::model::Lookup;
use crate::reader::{PredictAt, given_positions};
use crate::record::{Choice, Context, Granularity, Pass, Placement, Want};
use landmark_core::ops::{Likeliest, MemoryShape, NO_BLOCK};
use landmark_core::{Backend, Elements};
use std::borrow::Cow;

/// Reads the rows of one batch.
pub struct MemoryReader<'e, B: Backend> {
    engine: Held<'e, B>,
    memory: MemoryShape,
    choice: Choice,
    predict: PredictAt,
    /// Positions stored for each row, landmarks included.
    lengths: Vec<usize>,
    last: Step,
    /// What the last step looked up, if it came with its token: the tensors of each layer, one behind the other.
    looked_up: Option<Vec<u32>>,
    /// Whether steps are begun ahead.
    looks_ahead: bool,
    ahead: Option<Ahead>,
}

/// Where everything of a step goes. Of the last one it is remembered, to read its lookups.
#[derive(Clone, Debug, Default)]
struct Step {
    /// Positions of a row, padding included.
    tokens: usize,
    /// Where each row's own tokens are; between them are landmarks.
    given: Vec<Vec<usize>>,
    /// Positions of each row that are no padding.
    counts: Vec<usize>,
    /// Where the logits of each row are read.
    at: Vec<Option<usize>>,
    /// Lengths before the step.
    lengths: Vec<usize>,
}

/// A step of the only row that was begun before anybody asked for it.
#[derive(Debug)]
struct Ahead {
    step: Step,
    /// The token that the last step read.
    last: u32,
    /// The token that it reads, once it is known.
    token: Option<u32>,
}

/// What generation wants of a step.
const NEXT_TOKEN: Want = Want::Logits { rows: 1 };

/// A block that was fetched.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Fetched {
    /// Number of the block in the text, from 0.
    pub block: usize,
    /// Share of the attention that went to it (`S_{i,p_b}` of spec section 2).
    pub share: f32,
}

impl<'e, B: Backend> MemoryReader<'e, B> {
    /// Starts `batch` rows with empty memories; with `lengths`, rows whose memories hold so many positions already.
    ///
    /// # Panics
    /// When the engine has no memory, or no room for so many rows.
    pub fn new(
        engine: &'e mut Engine<B>,
        lengths: Vec<usize>,
        selection: Granularity,
        miss_cutoff: Option<f32>,
        predict: PredictAt,
    ) -> Self {
        Self::holding(Held::Lent(engine), lengths, selection, miss_cutoff, predict)
    }

    /// The same with an engine that may be the reader's own.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    pub fn holding(
        engine: Held<'e, B>,
        lengths: Vec<usize>,
        selection: Granularity,
        miss_cutoff: Option<f32>,
        predict: PredictAt,
    ) -> Self {
        let memory = engine.model().memory(lengths.len()).expect("a reader of a model with a memory");
        assert!(lengths.len() <= engine.model().room.batch, "more rows than the engine has room for");
        let choice = Choice { selection, miss_cutoff: miss_cutoff.map(f32::to_bits) };
        MemoryReader {
            engine,
            memory,
            choice,
            predict,
            lengths,
            last: Step::default(),
            looked_up: None,
            looks_ahead: true,
            ahead: None,
        }
    }

    /// Positions stored for each row, landmarks included.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// The engine.
    pub fn engine(&mut self) -> &mut Engine<B> {
        &mut self.engine
    }

    /// Goes back to when a row had read no more than `length` positions. What came behind them is read over as the row
    /// goes on, so the ring must not have come around since.
    ///
    /// # Panics
    /// When the row has read less, or so much more that blocks before `length` were overwritten.
    pub fn rewind(&mut self, row: usize, length: usize) {
        let (now, memory) = (self.lengths[row], self.memory);
        assert!(length <= now, "position {length} is still to come");
        assert!(now / memory.block <= memory.blocks, "the ring came around");
        self.lengths[row] = length;
        (self.last, self.looked_up, self.ahead) = (Step::default(), None, None);
    }

    /// Waits until everything that was asked of the engine is done.
    ///
    /// # Errors
    /// Failures of the backend.
    pub async fn settle(&self) -> Result<()> {
        self.engine.read_first::<u32>(self.engine.model().inputs.counts, 1).await?;
        Ok(())
    }

    /// Reads a piece of each row into its memory; empty ones are passed over.
    ///
    /// # Errors
    /// Landmarks among the tokens, tokens outside the vocabulary, failures of the backend.
    pub fn fill(&mut self, rows: &[&[u32]]) -> Result<()> {
        self.run(rows, Want::Nothing)
    }

    /// Reads a piece of each row. The logits `(V)` of the token after it replace what is in `to` for the row, unless the piece is
    /// empty.
    ///
    /// # Errors
    /// As [`fill`](Self::fill).
    pub async fn logits(&mut self, rows: &[&[u32]], to: &mut [&mut Vec<f32>]) -> Result<()> {
        self.run(rows, NEXT_TOKEN)?;
        let model = self.engine.model();
        let (tensor, vocab) =
            (model.inputs.logits.expect("logits of an engine with room"), model.config.vocab_size);
        if let ([row], [to]) = (rows, &mut *to) {
            if !row.is_empty() {
                to.resize(vocab, 0.0);
                self.engine.read_into(tensor, to).await?;
            }
            return Ok(());
        }
        let all = self.engine.read_first::<f32>(tensor, rows.len() * vocab).await?;
        for ((row, to), logits) in rows.iter().zip(to).zip(all.chunks_exact(vocab)) {
            if !row.is_empty() {
                logits.clone_into(to);
            }
        }
        Ok(())
    }

    /// Reads a piece of the only row; gives the likeliest token after it, or
    /// [`NO_TOKEN`](landmark_core::ops::Likeliest::NO_TOKEN).
    ///
    /// # Errors
    /// As [`fill`](Self::fill).
    ///
    /// # Panics
    /// With several rows.
    pub async fn likeliest(&mut self, piece: &[u32]) -> Result<u32> {
        match self.ahead.take() {
            Some(ahead) if ahead.token.is_some_and(|token| piece == [token]) => self.take(ahead.step),
            _ => self.run(&[piece], NEXT_TOKEN)?,
        }
        // The device puts it where the next step looks for its first token.
        let tensor = self.engine.model().inputs.tokens;
        let answer = if self.may_go_ahead(piece) {
            self.engine.begin_read::<u32>(&[&[(tensor, 0..1)][..], &self.lookup_elements()].concat())?
        } else {
            None
        };
        let Some(answer) = answer else {
            let mut token = [0];
            self.engine.read_into(tensor, &mut token).await?;
            return Ok(token[0]);
        };
        self.go_ahead(piece[0])?;
        let mut looked_up = answer.await?;
        let token = looked_up.remove(0);
        if token == Likeliest::NO_TOKEN {
            // The step ahead looked it up and has said so, which is not what went wrong.
            let _ = self.settle().await;
        }
        self.ahead.as_mut().expect("begun above").token = Some(token);
        self.looked_up = Some(looked_up);
        Ok(token)
    }

    /// Not behind a step that filled a block: where the ring has come around, the next position takes the place of a block
    /// that the step may have read, so that it could not be [run again](Self::return_to_last).
    fn may_go_ahead(&self, piece: &[u32]) -> bool {
        self.looks_ahead && piece.len() == 1 && !self.lengths[0].is_multiple_of(self.memory.block)
    }

    /// Begins the step of the token that the last one found, which read `last`.
    fn go_ahead(&mut self, last: u32) -> Result<()> {
        let step = self.lay_out(&[1]);
        if step.tokens > 1 {
            let (tensor, landmark) = (self.engine.model().inputs.tokens, self.engine.config().landmark_id);
            self.engine.write_at(tensor, 1, &vec![landmark; step.tokens - 1])?;
        }
        self.begin(&step, NEXT_TOKEN)?;
        self.ahead = Some(Ahead { step, last, token: None });
        Ok(())
    }

    /// Runs the last step again if another was begun behind it. Who asks for what it left will ask again, so that no more
    /// steps are begun ahead.
    fn return_to_last(&mut self) -> Result<()> {
        let Some(ahead) = self.ahead.take() else { return Ok(()) };
        self.looks_ahead = false;
        self.lengths.clone_from(&self.last.lengths);
        self.run(&[&[ahead.last]], NEXT_TOKEN)
    }

    /// The logits `(V)` that the last step left of the only row.
    ///
    /// # Errors
    /// Failures of the backend.
    pub async fn last_logits(&mut self) -> Result<Vec<f32>> {
        self.return_to_last()?;
        let model = self.engine.model();
        let tensor = model.inputs.logits.expect("logits of an engine with room");
        self.engine.read_first(tensor, model.config.vocab_size).await
    }

    /// What row `row` fetched to give its last logits, by layer and head; the engine was made with room for lookups.
    /// Empty if it read nothing then.
    ///
    /// # Errors
    /// Failures of the backend.
    pub async fn lookups(&self, row: usize) -> Result<Vec<Vec<Vec<Fetched>>>> {
        let Some(&Some(at)) = self.last.at.get(row) else { return Ok(Vec::new()) };
        let (heads, k, tokens) = (self.engine.config().heads, self.memory.top_k, self.last.tokens);
        let state = self.memory.state(self.last.lengths[row]);
        let oldest = state.seen - state.cached;
        let found = match &self.looked_up {
            Some(found) => Cow::Borrowed(found),
            None => Cow::Owned(self.read_lookups().await?),
        };
        let mut layers = Vec::new();
        for layer in found.chunks_exact((2 * self.lookup_count()).max(1)) {
            let (chosen, shares) = layer.split_at(layer.len() / 2);
            let head = |h: usize| {
                let first = ((row * heads + h) * tokens + at) * k;
                let pairs = chosen[first..first + k].iter().zip(&shares[first..first + k]);
                let found = pairs.filter(|&(&j, _)| j != NO_BLOCK);
                let fetched =
                    |(&j, &share)| Fetched { block: oldest + j as usize, share: f32::from_bits(share) };
                found.map(fetched).collect()
            };
            layers.push((0..heads).map(head).collect());
        }
        Ok(layers)
    }

    /// Elements of each tensor that tells what the last step looked up.
    fn lookup_count(&self) -> usize {
        self.lengths.len() * self.engine.config().heads * self.last.tokens * self.memory.top_k
    }

    /// Blocks and shares of each layer, as the last step left them.
    fn lookup_elements(&self) -> Vec<Elements> {
        let (count, of) = (self.lookup_count(), |lookup: &Lookup| [lookup.chosen, lookup.shares]);
        self.engine.model().lookups.iter().flat_map(of).map(|tensor| (tensor, 0..count)).collect()
    }

    async fn read_lookups(&self) -> Result<Vec<u32>> {
        let wanted = self.lookup_elements();
        if let Some(answer) = self.engine.begin_read(&wanted)? {
            return answer.await;
        }
        let mut found = Vec::new();
        for (tensor, elements) in wanted {
            found.append(&mut self.engine.read_at(tensor, elements).await?);
        }
        Ok(found)
    }

    fn run(&mut self, rows: &[&[u32]], want: Want) -> Result<()> {
        assert_eq!(rows.len(), self.lengths.len(), "a piece for each row");
        let config = self.engine.config();
        let (landmark, vocab) = (config.landmark_id, config.vocab_size);
        if rows.iter().any(|row| row.contains(&landmark)) {
            return Err(Error::LandmarkInInput);
        }
        if let Some(&token) = rows.iter().copied().flatten().find(|&&token| token as usize >= vocab) {
            return Err(Error::Token { token, vocab });
        }
        if rows.iter().all(|row| row.is_empty()) {
            return Ok(());
        }
        let step = self.lay_out(&rows.iter().map(|row| row.len()).collect::<Vec<_>>());
        // Padding is a landmark, which every vocabulary has; nothing sees it.
        let mut ids = vec![landmark; rows.len() * step.tokens];
        for (b, (row, given)) in rows.iter().zip(&step.given).enumerate() {
            given.iter().zip(*row).for_each(|(&at, &id)| ids[b * step.tokens + at] = id);
        }
        let tensor = self.engine.model().inputs.tokens;
        self.engine.write(tensor, &ids)?;
        self.begin(&step, want)?;
        self.take(step);
        Ok(())
    }

    /// The step that reads so many tokens of each row, some of at least one.
    fn lay_out(&self, rows: &[usize]) -> Step {
        let (block, room) = (self.memory.block, self.engine.model().room.tokens);
        let given: Vec<Vec<usize>> = rows
            .iter()
            .zip(&self.lengths)
            .map(|(&row, &length)| given_positions(length, row, block))
            .collect();
        let counts: Vec<usize> = given
            .iter()
            .zip(&self.lengths)
            .map(|(given, &length)| given.last().map_or(0, |&last| last + 1 + closes(length + last, block)))
            .collect();
        let longest = counts.iter().copied().max().unwrap_or(0);
        assert!(longest <= room, "a piece of {longest} positions in an engine with room for {room}");
        // A whole chunk, the usual case, has a program of its very length; shorter pieces share those of a few.
        let tokens = longest.next_power_of_two().min(room);
        let at: Vec<Option<usize>> = given
            .iter()
            .zip(&counts)
            .map(|(given, &count)| match self.predict {
                PredictAt::LastToken => given.last().copied(),
                PredictAt::LastPosition => count.checked_sub(1),
            })
            .collect();
        Step { tokens, given, counts, at, lengths: self.lengths.clone() }
    }

    /// Runs a step whose tokens are in place.
    fn begin(&mut self, step: &Step, want: Want) -> Result<()> {
        let (batch, tokens) = (self.lengths.len(), step.tokens);
        let extra = self.engine.config().extra_rows();
        let mut positions = Vec::with_capacity(batch * (tokens + extra));
        for &length in &step.lengths {
            let state = self.memory.state(length);
            let start = (state.start + state.unfinished) as i32;
            positions.extend(std::iter::repeat_n(-1, extra));
            positions.extend((0..tokens as i32).map(|t| start + t));
        }
        let inputs = self.engine.model().inputs;
        self.engine.write(inputs.positions, &positions)?;
        self.engine.write(inputs.lengths, &narrow(&step.lengths))?;
        self.engine.write(inputs.counts, &narrow(&step.counts))?;
        if let (Want::Logits { .. }, Some(wanted)) = (want, inputs.wanted) {
            let rows = step.at.iter().enumerate();
            let rows: Vec<u32> = rows.map(|(b, at)| (b * tokens + at.unwrap_or(0)) as u32).collect();
            self.engine.write(wanted, &rows)?;
        }
        let context = Context::Mem(self.choice);
        self.engine.run(&Pass { batch, tokens, placement: Placement::None, context, want })
    }

    /// Counts what a step read.
    fn take(&mut self, step: Step) {
        self.lengths.iter_mut().zip(&step.counts).for_each(|(length, count)| *length += count);
        (self.last, self.looked_up, self.ahead) = (step, None, None);
    }
}

/// 1 if a landmark follows the token at this position of the text, which then ends its block.
fn closes(position: usize, block: usize) -> usize {
    usize::from((position + 1) % block == block - 1)
}

fn narrow(numbers: &[usize]) -> Vec<u32> {
    numbers.iter().map(|&n| n as u32).collect()
}
