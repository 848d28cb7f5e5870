//! `mbarrier`: a barrier of 8 bytes in shared memory that counts arrivals and bytes.
//!
//! All of its state is in those bytes, so that a barrier that was never initialised, or overwritten, is found like any
//! other memory. The layout is ours; a kernel may not look at it.

use super::{Context, Flow, Op, Place, bulk, lanes};
use crate::ptx::instruction::NONE;

/// Set in every barrier.
const MARK: u64 = 1 << 63;

/// The most arrivals of a phase.
const MOST: u32 = (1 << 20) - 1;

/// A barrier, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Barrier {
    /// Arrivals of every phase.
    expected: u32,
    /// Arrivals that this phase lacks.
    pending: u32,
    /// Bytes that it lacks; negative while more came than were announced.
    bytes: i32,
    /// The phase's parity.
    parity: bool,
}

impl Barrier {
    /// A fresh one.
    ///
    /// # Errors
    /// No such count is possible.
    pub fn new(count: u32) -> Result<Barrier, String> {
        if count == 0 || count > MOST {
            return Err(format!("mbarrier.init with a count of {count}"));
        }
        Ok(Barrier { expected: count, pending: count, bytes: 0, parity: false })
    }

    fn to_word(self) -> u64 {
        let bytes = u64::from(self.bytes as u32 & 0x3f_ffff);
        MARK | u64::from(self.pending)
            | u64::from(self.expected) << 20
            | bytes << 40
            | u64::from(self.parity) << 62
    }

    fn from_word(word: u64) -> Option<Barrier> {
        let field = |at: u32| (word >> at) as u32 & MOST;
        let bytes = ((word >> 40) as u32 & 0x3f_ffff) << 10;
        let barrier = Barrier {
            expected: field(20),
            pending: field(0),
            bytes: bytes as i32 >> 10,
            parity: word >> 62 & 1 == 1,
        };
        (word & MARK != 0 && barrier.expected > 0 && barrier.pending <= barrier.expected).then_some(barrier)
    }

    /// Ends the phase if nothing lacks. Whether it did.
    fn turn(&mut self) -> bool {
        let ends = self.pending == 0 && self.bytes == 0;
        if ends {
            self.pending = self.expected;
            self.parity = !self.parity;
        }
        ends
    }

    /// Announces bytes.
    fn expect(&mut self, bytes: i32) -> Result<(), String> {
        self.bytes += bytes;
        if self.bytes.abs() >= 1 << 20 {
            return Err(format!("an mbarrier lacks {} bytes: below 2^20 can be counted", self.bytes));
        }
        Ok(())
    }

    /// Arrives. Whether the phase ended.
    fn arrive(&mut self, count: u32) -> Result<bool, String> {
        if count == 0 || count > self.pending {
            return Err(format!(
                "{count} arrive at an mbarrier whose phase lacks {} of {}",
                self.pending, self.expected
            ));
        }
        self.pending -= count;
        Ok(self.turn())
    }

    /// Bytes came. Whether the phase ended.
    fn complete(&mut self, bytes: i32) -> Result<bool, String> {
        self.expect(-bytes)?;
        Ok(self.turn())
    }
}

fn get(context: &dyn Context, at: u32) -> Result<Barrier, String> {
    if !at.is_multiple_of(8) {
        return Err(format!("an mbarrier at {at:#x}, no multiple of 8"));
    }
    let bytes = context.shared(at, 8).map_err(|why| format!("mbarrier: {why}"))?;
    let word = bytes.first_chunk().map_or(0, |chunk| u64::from_le_bytes(*chunk));
    Barrier::from_word(word).ok_or_else(|| format!("there is no mbarrier at {at:#x} of shared memory"))
}

fn put(context: &mut dyn Context, at: u32, barrier: Barrier) -> Result<(), String> {
    context.write_shared(at, &barrier.to_word().to_le_bytes())
}

/// Bytes came to the barrier at `at`.
///
/// # Errors
/// There is no barrier, or too many came.
pub(super) fn complete(context: &mut dyn Context, at: u32, bytes: usize) -> Result<(), String> {
    let mut barrier = get(context, at)?;
    barrier.complete(bytes as i32)?;
    context.block_state().progress += 1;
    put(context, at, barrier)
}

/// Everything but tests.
pub(super) fn change(op: Op, list: u32, state: u32, context: &mut dyn Context) -> Result<(), String> {
    let place = Place::at(context, list);
    let operand = if op == Op::BarrierInvalidate { NONE } else { context.list(list + Place::WORDS) };
    for lane in lanes(context.mask()) {
        let at = place.shared(context, lane)?;
        let value = (operand != NONE).then(|| context.row32(operand)[lane]);
        if op == Op::BarrierInit {
            if !at.is_multiple_of(8) {
                return Err(format!("an mbarrier at {at:#x}, no multiple of 8"));
            }
            put(context, at, Barrier::new(value.unwrap_or(0))?)?;
            continue;
        }
        let mut barrier = get(context, at)?;
        if state != NONE {
            context.row64_mut(state)[lane] = barrier.to_word();
        }
        let bytes = i32::try_from(value.unwrap_or(0)).unwrap_or(i32::MAX);
        match op {
            Op::BarrierInvalidate => {
                context.write_shared(at, &[0; 8])?;
                continue;
            }
            Op::BarrierArrive { expect: true, .. } => {
                barrier.expect(bytes)?;
                barrier.arrive(1)?;
            }
            Op::BarrierArrive { expect: false, .. } => {
                barrier.arrive(value.unwrap_or(1))?;
            }
            Op::BarrierExpect => barrier.expect(bytes)?,
            _ => {
                barrier.complete(bytes)?;
            }
        }
        context.block_state().progress += 1;
        put(context, at, barrier)?;
    }
    Ok(())
}

/// Tests whether a phase has ended; what is on its way to the barrier arrives first.
pub(super) fn test(parity: bool, list: u32, result: u32, context: &mut dyn Context) -> Result<Flow, String> {
    let (place, operand) = (Place::at(context, list), context.list(list + Place::WORDS));
    let (mut ended, mut last) = (0, None);
    for lane in lanes(context.mask()) {
        let at = place.shared(context, lane)?;
        if last != Some(at) {
            bulk::arrive(at, context)?;
            last = Some(at);
        }
        let barrier = get(context, at)?;
        let phase = if parity {
            context.row32(operand)[lane] & 1 == 1
        } else {
            let state = Barrier::from_word(context.row64(operand)[lane]);
            state.ok_or("what is tested is no state of an mbarrier")?.parity
        };
        ended |= u32::from(barrier.parity != phase) << lane;
    }
    context.set_predicate(result, ended);
    Ok(if ended == context.mask() { Flow::Next } else { Flow::Yield })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_ends_with_the_last_arrival_and_the_last_byte() {
        let mut barrier = Barrier::new(2).expect("a barrier");
        assert_eq!(barrier.arrive(1), Ok(false));
        barrier.expect(100).expect("room");
        assert_eq!(barrier.arrive(1), Ok(false));
        assert_eq!(barrier.complete(60), Ok(false));
        assert_eq!(Barrier::from_word(barrier.to_word()), Some(barrier));
        assert_eq!(barrier.complete(40), Ok(true));
        assert!(barrier.parity && barrier.pending == 2 && barrier.bytes == 0);

        // Bytes may come before they are announced.
        assert_eq!(barrier.complete(8), Ok(false));
        assert_eq!(Barrier::from_word(barrier.to_word()), Some(barrier));
        assert_eq!(barrier.arrive(2), Ok(false));
        barrier.expect(8).expect("room");
        assert!(barrier.turn() && !barrier.parity);
    }

    #[test]
    fn what_no_barrier_allows_is_an_error() {
        assert!(Barrier::new(0).is_err() && Barrier::new(1 << 20).is_err());
        let mut barrier = Barrier::new(1).expect("a barrier");
        assert!(barrier.arrive(2).is_err());
        assert!(barrier.expect(1 << 20).is_err());
        assert_eq!(Barrier::from_word(0), None);
        assert_eq!(Barrier::from_word(MARK | 1), None);
    }
}
