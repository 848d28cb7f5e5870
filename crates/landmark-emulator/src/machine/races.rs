//! Finds accesses of shared memory by two warps that nothing puts in an order: missing barriers.
//!
//! Warps run one after the other here, so a missing barrier would mostly go unnoticed. Hence what happened before what
//! is followed as in FastTrack (Flanagan and Freund, PLDI 2009): every warp counts its own barriers, and knows how far
//! every other warp had counted when it last heard of it. Two bytes of shared memory remember who wrote them last, and
//! who has read them since, each with its count; an access is in order if its warp has heard of those.
//!
//! Who read is a set, and the bytes of a tile have the same few sets: they are numbered, and the step from one to the
//! next is looked up. Lanes of one warp are not told apart. Single bytes are not followed, and neither are atomic
//! operations nor the words of `mbarrier`s, which are what brings order.

use std::collections::HashMap;

/// Bits of a count in a stamp; the rest is the warp.
const COUNT_BITS: u32 = 22;
const COUNT: u32 = (1 << COUNT_BITS) - 1;

/// How far a warp knows every warp of its cluster to be.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    warp: u32,
    seen: Vec<u32>,
}

impl Clock {
    /// Of one of so many warps and groups of warps.
    pub(super) fn new(warp: usize, warps: usize) -> Clock {
        Clock { warp: warp as u32, seen: vec![1; warps] }
    }

    /// Its own count.
    pub(super) fn count(&self) -> u32 {
        self.seen[self.warp as usize]
    }

    /// Everything up to `count` has happened.
    pub(super) fn begin(&mut self, count: u32) {
        self.seen.fill(count);
        self.seen[self.warp as usize] += 1;
    }

    /// The same knowledge, for what a group of warps does together: `group` is its number among the warps, and `count` how
    /// far it is.
    pub(super) fn of_group(&self, group: usize, count: u32) -> Clock {
        let mut clock = Clock { warp: group as u32, seen: self.seen.clone() };
        clock.seen[group] = count;
        clock
    }

    /// Hears that a group is so far.
    pub(super) fn hear_of_group(&mut self, group: usize, count: u32) {
        self.seen[group] = self.seen[group].max(count);
        self.seen[self.warp as usize] += 1;
    }

    /// What was done so far is told to who hears of `to`.
    pub(super) fn release(&mut self, to: &mut Vec<u32>) {
        to.resize(self.seen.len(), 0);
        for (to, seen) in to.iter_mut().zip(&self.seen) {
            *to = (*to).max(*seen);
        }
        self.seen[self.warp as usize] += 1;
    }

    /// Hears of what was told.
    pub(super) fn acquire(&mut self, from: &[u32]) {
        for (seen, from) in self.seen.iter_mut().zip(from) {
            *seen = (*seen).max(*from);
        }
        self.seen[self.warp as usize] += 1;
    }

    fn stamp(&self) -> u32 {
        self.warp << COUNT_BITS | self.seen[self.warp as usize] & COUNT
    }

    fn knows(&self, stamp: u32) -> bool {
        self.seen.get((stamp >> COUNT_BITS) as usize).is_some_and(|seen| stamp & COUNT <= *seen)
    }
}

/// Counts may not grow beyond this within a block.
pub(super) const TOO_FAR: u32 = COUNT / 2;

/// What is remembered of an access and its outcome, so that the next two bytes are quick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    writer: u32,
    readers: u32,
    stamp: u32,
}

/// The accesses of a block's shared memory.
#[derive(Debug, Default)]
pub struct Races {
    /// By two bytes: the stamp of the last write.
    writers: Vec<u32>,
    /// By two bytes: the number of the set of reads since.
    readers: Vec<u32>,
    sets: Vec<Vec<u32>>,
    next: HashMap<(u32, u32), u32>,
    last_read: (Seen, u32),
    last_write: Seen,
}

impl Races {
    /// Makes room for that many bytes, and forgets if `forget`. What is remembered of a block before does no harm: every
    /// warp of the next has heard of it.
    pub(super) fn begin(&mut self, bytes: usize, forget: bool) {
        if forget || self.sets.len() > 1 << 16 || self.sets.is_empty() {
            *self = Races { sets: vec![Vec::new()], ..Races::default() };
        }
        self.writers.resize(bytes / 2 + 1, 0);
        self.readers.resize(bytes / 2 + 1, 0);
    }

    /// A warp reads.
    ///
    /// # Errors
    /// Not in order; who wrote.
    #[inline(always)]
    pub(super) fn read(&mut self, at: usize, bytes: usize, clock: &Clock) -> Result<(), String> {
        if bytes == 1 {
            return Ok(());
        }
        let stamp = clock.stamp();
        for cell in at / 2..(at + bytes) / 2 {
            let seen = Seen { writer: self.writers[cell], readers: self.readers[cell], stamp };
            if seen != self.last_read.0 {
                self.read_new(cell, seen, clock)?;
            }
            self.readers[cell] = self.last_read.1;
        }
        Ok(())
    }

    #[inline(never)]
    fn read_new(&mut self, cell: usize, seen: Seen, clock: &Clock) -> Result<(), String> {
        if seen.writer != 0 && !clock.knows(seen.writer) {
            return Err(conflict(cell, "reads", seen.writer, "wrote"));
        }
        let to = match self.next.get(&(seen.readers, seen.stamp)) {
            Some(to) => *to,
            None => {
                let before = &self.sets[seen.readers as usize];
                let to = if before.contains(&seen.stamp) {
                    seen.readers
                } else {
                    // those that this warp has heard of are ordered before whoever hears of this warp
                    let kept = before.iter().copied().filter(|stamp| !clock.knows(*stamp));
                    let set = kept.chain([seen.stamp]).collect();
                    self.sets.push(set);
                    self.sets.len() as u32 - 1
                };
                self.next.insert((seen.readers, seen.stamp), to);
                to
            }
        };
        self.last_read = (seen, to);
        Ok(())
    }

    /// A warp writes.
    ///
    /// # Errors
    /// Not in order; who wrote or read.
    #[inline(always)]
    pub(super) fn write(&mut self, at: usize, bytes: usize, clock: &Clock) -> Result<(), String> {
        if bytes == 1 {
            return Ok(());
        }
        let stamp = clock.stamp();
        for cell in at / 2..(at + bytes) / 2 {
            let seen = Seen { writer: self.writers[cell], readers: self.readers[cell], stamp };
            if seen != self.last_write {
                self.write_new(cell, seen, clock)?;
            }
            self.writers[cell] = stamp;
            self.readers[cell] = 0;
        }
        Ok(())
    }

    #[inline(never)]
    fn write_new(&mut self, cell: usize, seen: Seen, clock: &Clock) -> Result<(), String> {
        if seen.writer != 0 && !clock.knows(seen.writer) {
            return Err(conflict(cell, "writes", seen.writer, "wrote"));
        }
        if let Some(reader) = self.sets[seen.readers as usize].iter().find(|stamp| !clock.knows(**stamp)) {
            return Err(conflict(cell, "writes", *reader, "read"));
        }
        self.last_write = seen;
        Ok(())
    }

    /// Bytes that something else put in order.
    pub(super) fn forget(&mut self, at: usize, bytes: usize) {
        let cells = at / 2..(at + bytes) / 2;
        self.writers[cells.clone()].fill(0);
        self.readers[cells].fill(0);
    }
}

#[cold]
fn conflict(cell: usize, does: &str, stamp: u32, did: &str) -> String {
    let (at, warp) = (cell * 2, stamp >> COUNT_BITS);
    format!("it {does} shared memory at {at:#x} that warp {warp} {did}, and no barrier is between them")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_barrier_between_two_warps_brings_order() {
        let (mut a, mut b) = (Clock::new(0, 2), Clock::new(1, 2));
        let mut races = Races::default();
        races.begin(64, true);
        a.begin(1);
        b.begin(1);
        races.write(0, 4, &a).unwrap();
        assert!(races.read(0, 4, &b).unwrap_err().contains("warp 0 wrote"));
        let mut told = Vec::new();
        a.release(&mut told);
        b.release(&mut told);
        a.acquire(&told);
        b.acquire(&told);
        races.read(0, 4, &b).unwrap();
        races.read(0, 4, &a).unwrap();
        // both have read; either must wait before it writes
        assert!(races.write(0, 4, &a).unwrap_err().contains("warp 1 read"));
        assert!(races.write(0, 4, &b).unwrap_err().contains("warp 0 read"));
        let mut told = Vec::new();
        a.release(&mut told);
        b.acquire(&told);
        races.write(0, 4, &b).unwrap();
        assert!(races.write(2, 2, &a).is_err());
        races.write(8, 4, &a).unwrap();
    }

    #[test]
    fn an_arrival_alone_orders_one_way() {
        let (mut a, mut b) = (Clock::new(0, 2), Clock::new(1, 2));
        let mut races = Races::default();
        races.begin(64, true);
        a.begin(1);
        b.begin(1);
        let mut told = Vec::new();
        races.read(16, 16, &a).unwrap();
        a.release(&mut told);
        b.acquire(&told);
        races.write(16, 16, &b).unwrap();
        assert!(races.read(16, 16, &a).is_err());
    }
}
