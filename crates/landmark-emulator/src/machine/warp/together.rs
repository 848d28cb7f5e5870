//! What the lanes of a warp, and the warps of a block, do together: shuffles, votes, barriers, and who hears of whom.

use super::super::hopper;
use super::super::view::View;
use super::super::{Cluster, Fault, Meeting};
use super::access::atomic;
use super::{ALL, Next, Wait, Warp, lanes};
use crate::ptx::instruction::{Atomic, Barrier, Instruction, NONE, Op, Shuffle, Type, Vote};

impl Warp<'_> {
    #[inline(always)]
    pub(super) fn shuffle(&mut self, i: &Instruction, mask: u32, how: Shuffle) -> Result<Next, Fault> {
        if let Some(wait) = self.missing(self.a32(i.f), mask)? {
            return Ok(Next::Stay(wait));
        }
        let (a, b, c) = (self.a32(i.a), self.a32(i.b), self.a32(i.c));
        let (mut d, mut valid, mut absent) = ([0; 32], 0, 0);
        for lane in 0..32 {
            let segment = (c[lane] >> 8 & 31) as i32;
            let clamp = (c[lane] & 31) as i32;
            let (own, by) = (lane as i32, (b[lane] & 31) as i32);
            let last = own & segment | clamp & !segment;
            let (from, inside) = match how {
                Shuffle::Up => (own - by, own - by >= last),
                Shuffle::Down => (own + by, own + by <= last),
                Shuffle::Butterfly => (own ^ by, own ^ by <= last),
                Shuffle::Index => {
                    let from = own & segment | by & !segment;
                    (from, from <= last)
                }
            };
            let from = if inside { from } else { own } as usize & 31;
            d[lane] = a[from];
            valid |= u32::from(inside) << lane;
            absent |= (!mask >> from & 1) << lane;
        }
        if absent & mask != 0 {
            let lane = (absent & mask).trailing_zeros() as usize;
            return Err(Fault::from("the lane shuffled from does not take part").lane(lane));
        }
        self.put32(i.d, mask, d);
        if i.e != NONE {
            self.put_predicate(i.e, mask, valid);
        }
        Ok(Next::On)
    }

    pub(super) fn vote(
        &mut self,
        i: &Instruction,
        mask: u32,
        vote: Vote,
        negate: bool,
    ) -> Result<Next, Fault> {
        if let Some(wait) = self.missing(self.a32(i.b), mask)? {
            return Ok(Next::Stay(wait));
        }
        let votes = self.predicates[i.a as usize] ^ if negate { ALL } else { 0 };
        let members = *self.a32(i.b);
        let mut bits = 0;
        let mut ballots = [0; 32];
        for lane in lanes(mask) {
            let members = members[lane] & mask;
            ballots[lane] = votes & members;
            let yes = match vote {
                Vote::All => ballots[lane] == members,
                Vote::Any => ballots[lane] != 0,
                Vote::Uniform => ballots[lane] == 0 || ballots[lane] == members,
                Vote::Ballot => false,
            };
            bits |= u32::from(yes) << lane;
        }
        if vote == Vote::Ballot {
            self.put32(i.d, mask, ballots);
        } else {
            self.put_predicate(i.d, mask, bits);
        }
        Ok(Next::On)
    }

    pub(super) fn matched(
        &mut self,
        i: &Instruction,
        mask: u32,
        all: bool,
        wide: bool,
    ) -> Result<Next, Fault> {
        if let Some(wait) = self.missing(self.a32(i.b), mask)? {
            return Ok(Next::Stay(wait));
        }
        let value = |lane: usize| if wide { self.a64(i.a)[lane] } else { u64::from(self.a32(i.a)[lane]) };
        let members = self.a32(i.b);
        let (mut d, mut bits) = ([0; 32], 0);
        for lane in lanes(mask) {
            let members = members[lane] & mask;
            let same = lanes(members)
                .filter(|other| value(*other) == value(lane))
                .fold(0, |bits, lane| bits | 1 << lane);
            let unanimous = same == members;
            d[lane] = if all && !unanimous { 0 } else { same };
            bits |= u32::from(unanimous) << lane;
        }
        self.put32(i.d, mask, d);
        if i.e != NONE {
            self.put_predicate(i.e, mask, bits);
        }
        Ok(Next::On)
    }

    pub(super) fn redux(&mut self, i: &Instruction, mask: u32, op: Atomic, ty: Type) -> Result<Next, Fault> {
        if let Some(wait) = self.missing(self.a32(i.b), mask)? {
            return Ok(Next::Stay(wait));
        }
        let (a, members) = (*self.a32(i.a), *self.a32(i.b));
        let mut d = [0; 32];
        for lane in lanes(mask) {
            let mut values = lanes(members[lane] & mask).map(|lane| u64::from(a[lane]));
            let first = values.next().unwrap_or(0);
            let reduced =
                values.try_fold(first, |x, y| atomic(op, ty, x, y, 0)).ok_or("an unknown reduction")?;
            d[lane] = reduced as u32;
        }
        self.put32(i.d, mask, d);
        Ok(Next::On)
    }

    pub(super) fn barrier(
        &mut self,
        cluster: &mut Cluster<'_>,
        i: &Instruction,
        mask: u32,
        barrier: Barrier,
        negate: bool,
    ) -> Result<Next, Fault> {
        if let Some(wait) = self.missing_any(mask) {
            return Ok(Next::Stay(wait));
        }
        let id = self.uniform(i.a, mask, "the barrier's number")? as usize;
        if id >= 16 {
            return Err(Fault::from(format!("there is no barrier {id}")));
        }
        let expected = if i.b == NONE { 0 } else { self.uniform(i.b, mask, "the number of threads")? };
        if i.b != NONE && (expected == 0 || expected % 32 != 0) {
            return Err(Fault::from(format!("a barrier of {expected} threads")));
        }
        let meeting = &mut cluster.blocks[self.block].barriers[id];
        if meeting.arrived > 0 && meeting.expected != expected {
            return Err(Fault::from(format!(
                "barrier {id} is expected to meet {expected} threads here and {} elsewhere (0: all)",
                meeting.expected
            )));
        }
        meeting.expected = expected;
        meeting.arrived += 32;
        let generation = meeting.generation;
        self.clock.release(&mut cluster.blocks[self.block].told[id].0);
        let meeting = &mut cluster.blocks[self.block].barriers[id];
        if i.c != NONE {
            let votes = self.predicates[i.c as usize] ^ if negate { ALL } else { 0 };
            meeting.counted += (votes & mask).count_ones();
            meeting.asked += mask.count_ones();
        }
        cluster.complete(self.block, id);
        if barrier == Barrier::Arrive {
            return Ok(Next::On);
        }
        let meeting = cluster.blocks[self.block].barriers[id];
        if meeting.generation == generation {
            return Ok(Next::Wait(Wait::Barrier { id: id as u32, generation }));
        }
        self.clock.acquire(&cluster.blocks[self.block].told[id].1);
        self.barrier_result(i, &meeting, mask);
        Ok(Next::On)
    }

    /// The group's products up to here have read what they read.
    pub(super) fn hear_of_group(&mut self, cluster: &Cluster<'_>) {
        let group = self.index / 4;
        let count = cluster.blocks[self.block].groups[group].1 - 1;
        self.clock.hear_of_group(cluster.group_number(self.block, group), count);
    }

    /// Who hears of the `mbarrier`s that the lanes arrive at hears of this warp.
    pub(super) fn tell(
        &mut self,
        cluster: &mut Cluster<'_>,
        i: &Instruction,
        mask: u32,
    ) -> Result<(), Fault> {
        for (rank, at) in self.mbarriers(cluster, i, mask)? {
            self.clock.release(cluster.blocks[rank].told_at.entry(at).or_default());
        }
        Ok(())
    }

    /// A phase of the `mbarrier`s was found to be over. All that was ever told there is heard: a phase too much, which
    /// may hide a missing barrier but invents none.
    pub(super) fn hear(
        &mut self,
        cluster: &mut Cluster<'_>,
        i: &Instruction,
        mask: u32,
    ) -> Result<(), Fault> {
        for (rank, at) in self.mbarriers(cluster, i, mask)? {
            if let Some(told) = cluster.blocks[rank].told_at.get(&at) {
                self.clock.acquire(told);
            }
        }
        Ok(())
    }

    pub(super) fn mbarriers(
        &mut self,
        cluster: &mut Cluster<'_>,
        i: &Instruction,
        mask: u32,
    ) -> Result<Vec<(usize, u32)>, Fault> {
        let mut found = Vec::new();
        for lane in lanes(mask) {
            let view = View { warp: self, cluster, mask, together: None };
            let address = hopper::Place::at(&view, i.d).shared(&view, lane)?;
            let place = cluster.place(self.block, address)?;
            if !found.contains(&place) {
                found.push(place);
            }
        }
        Ok(found)
    }

    /// Writes what a reducing barrier found.
    pub(super) fn barrier_result(&mut self, i: &Instruction, meeting: &Meeting, mask: u32) {
        let Op::Barrier { barrier, .. } = i.op else { return };
        let (count, of) = (meeting.result, meeting.result_of);
        match barrier {
            Barrier::RedPopc => self.put32(i.d, mask, [count; 32]),
            Barrier::RedAnd => self.put_predicate(i.d, mask, if count == of { ALL } else { 0 }),
            Barrier::RedOr => self.put_predicate(i.d, mask, if count > 0 { ALL } else { 0 }),
            Barrier::Sync | Barrier::Arrive => {}
        }
    }
}
