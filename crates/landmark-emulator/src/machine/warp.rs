//! A warp: 32 lanes, their registers, and who of them is where.
//!
//! Lanes at the same instruction are a group, and the group furthest behind runs, so that those that took different
//! ways meet again where the ways do. An instruction that needs lanes of other groups (a shuffle, a barrier, a product)
//! makes its group wait for them there.

use super::alu::{self, Conversion, R32, R64};
use super::hopper::{self, Flow};
use super::memory::{
    LOCAL_WINDOW, PARAMETER_WINDOW, RANK_SHIFT, SHARED_WINDOW, WINDOW_MASK, check, read_checked, read_host,
    read_parameters, write_checked, write_host,
};
use super::races::Clock;
use super::view::View;
use super::{Cluster, Fault, Meeting, mma};
use crate::ptx::instruction::{
    Atomic, Barrier, Instruction, Int, NONE, Op, Round, Shuffle, Space, Test, Type, Vote,
};
use crate::ptx::{Kernel, LOCAL_BASE, Special};

/// The lanes of a mask.
#[inline(always)]
pub(super) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        let lane = left.trailing_zeros();
        left &= left.wrapping_sub(1);
        (lane < 32).then_some(lane as usize)
    })
}

/// Why a group does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    Ready,
    /// Until these lanes are at the same instruction.
    Converge(u32),
    /// Until the barrier was passed. The instruction before may want to know who came.
    Barrier {
        id: u32,
        generation: u32,
    },
    Cluster {
        generation: u32,
    },
    /// Until the other warps had a turn.
    Yield,
}

#[derive(Clone, Copy, Debug)]
struct Group {
    pc: u32,
    mask: u32,
    wait: Wait,
}

/// What comes after an instruction.
enum Next {
    On,
    Jump(u32),
    /// To a place for every lane.
    Scatter([u32; 32]),
    Exit,
    /// Here, until others come.
    Stay(Wait),
    /// Behind it, until others come.
    Wait(Wait),
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No lane is left.
    Ended,
    /// It was long enough.
    Quantum,
    /// Nothing can run before somebody else does something.
    Blocked,
    /// It runs, to ask in vain for what somebody else has to do.
    Yielded,
}

/// An asynchronous copy of a lane that nobody waited for yet.
#[derive(Clone, Copy, Debug)]
struct Copying {
    lane: u8,
    length: u8,
    to: u32,
    group: u32,
    bytes: [u8; 16],
}

/// A warp at work.
#[derive(Debug)]
pub struct Warp<'a> {
    kernel: &'a Kernel,
    /// The kernel's lists.
    pub list: &'a [u32],
    /// The rank of its block in the cluster.
    pub block: usize,
    /// Its number in the block.
    pub index: usize,
    /// Registers of up to 32 bits.
    pub r32: Vec<R32>,
    /// Registers of 64 bits.
    pub r64: Vec<R64>,
    /// Predicates.
    pub predicates: Vec<u32>,
    /// The line of the instruction at work.
    pub line: u32,
    /// What it knows of the other warps.
    pub clock: Clock,
    carry: u32,
    live: u32,
    exists: u32,
    groups: Vec<Group>,
    local: Vec<u8>,
    copies: Vec<Copying>,
    committed: [u32; 32],
    /// What Hopper's instructions keep.
    pub(super) hopper: hopper::WarpState,
    cluster_generation: u32,
    quick: bool,
}

const ALL: u32 = u32::MAX;

impl<'a> Warp<'a> {
    /// A warp that has not begun; `number` of so many of its cluster.
    pub fn new(kernel: &'a Kernel, block: usize, index: usize, number: (usize, usize)) -> Warp<'a> {
        let mut warp = Warp {
            kernel,
            list: &kernel.list,
            block,
            index,
            r32: vec![[u32::MAX; 32]; kernel.rows32],
            r64: vec![[u64::MAX; 32]; kernel.rows64],
            predicates: vec![0; kernel.predicates],
            line: 0,
            clock: Clock::new(number.0, number.1),
            carry: 0,
            live: 0,
            exists: 0,
            groups: Vec::new(),
            local: vec![0xff; kernel.local_bytes * 32],
            copies: Vec::new(),
            committed: [0; 32],
            hopper: hopper::WarpState::default(),
            cluster_generation: 0,
            quick: quick(),
        };
        for (row, value) in &kernel.constants32 {
            warp.r32[*row as usize] = [*value; 32];
        }
        for (row, value) in &kernel.constants64 {
            warp.r64[*row as usize] = [*value; 32];
        }
        for (row, value) in &kernel.constant_predicates {
            warp.predicates[*row as usize] = if *value { ALL } else { 0 };
        }
        warp
    }

    /// Rows that may hold copies of an accumulator.
    pub(super) fn copies_of(&self, row: u32) -> &[u32] {
        self.kernel.copies.get(row)
    }

    /// Begins a block.
    pub(super) fn begin(&mut self, cluster: &Cluster<'_>) {
        let launch = &cluster.launch;
        let threads = launch.block.iter().product::<u32>();
        let first = self.index as u32 * 32;
        let count = (threads - first).min(32);
        self.exists = if count == 32 { ALL } else { (1 << count) - 1 };
        self.live = self.exists;
        self.groups.clear();
        self.groups.push(Group { pc: 0, mask: self.exists, wait: Wait::Ready });
        self.copies.clear();
        self.committed = [0; 32];
        self.hopper = hopper::WarpState::default();
        let index = cluster.blocks[self.block].index;
        let along = |values: [u32; 3]| values[0] * values[1] * values[2];
        for (row, special) in &self.kernel.specials {
            let axis = |axis: &u8| usize::from(*axis);
            let [x, y, _] = launch.block;
            let each = |f: &dyn Fn(u32) -> u32| -> R32 { std::array::from_fn(|lane| f(lane as u32)) };
            self.r32[*row as usize] = match special {
                Special::Tid(0) => each(&|lane| (first + lane) % x),
                Special::Tid(1) => each(&|lane| (first + lane) / x % y),
                Special::Tid(_) => each(&|lane| (first + lane) / x / y),
                Special::Ntid(a) => [launch.block[axis(a)]; 32],
                Special::Ctaid(a) => [index[axis(a)]; 32],
                Special::Nctaid(a) => [launch.grid[axis(a)]; 32],
                Special::Clusterid(a) => [index[axis(a)] / launch.cluster[axis(a)]; 32],
                Special::Nclusterid(a) => [launch.grid[axis(a)] / launch.cluster[axis(a)]; 32],
                Special::ClusterCtaid(a) => [index[axis(a)] % launch.cluster[axis(a)]; 32],
                Special::ClusterNctaid(a) => [launch.cluster[axis(a)]; 32],
                Special::ClusterCtarank => [self.block as u32; 32],
                Special::ClusterNctarank => [along(launch.cluster); 32],
                Special::LaneId => each(&|lane| lane),
                Special::WarpId => [self.index as u32; 32],
                Special::NwarpId => [threads.div_ceil(32); 32],
                Special::SmId => {
                    let [width, height, _] = launch.grid;
                    [(index[0] + width * (index[1] + height * index[2])) % 132; 32]
                }
                Special::NsmId => [132; 32],
                Special::GridId => [0; 32],
                Special::LanemaskEq => each(&|lane| 1 << lane),
                Special::LanemaskLt => each(&|lane| (1 << lane) - 1),
                Special::LanemaskLe => each(&|lane| ALL >> (31 - lane)),
                Special::LanemaskGt => each(&|lane| !(ALL >> (31 - lane))),
                Special::LanemaskGe => each(&|lane| ALL << lane),
                Special::DynamicSharedSize => [launch.shared; 32],
                Special::TotalSharedSize => {
                    [self.kernel.dynamic_shared - crate::ptx::SHARED_BASE + launch.shared; 32]
                }
            };
        }
    }

    /// Whether all lanes have ended.
    pub fn ended(&self) -> bool {
        self.groups.is_empty()
    }

    /// For every group that waits: line, lanes, why.
    pub(super) fn waits(&self, kernel: &Kernel) -> Vec<(u32, u32, String)> {
        let line = |pc: u32| kernel.code.get(pc as usize).map_or(0, |instruction| instruction.line);
        let waits = self.groups.iter().map(|group| match group.wait {
            Wait::Ready => (line(group.pc), group.mask, "runs".to_string()),
            Wait::Converge(need) => (
                line(group.pc),
                group.mask,
                format!("waits for lanes {:#010x} of its warp", need & !group.mask),
            ),
            Wait::Barrier { id, .. } => (line(group.pc - 1), group.mask, format!("waits at barrier {id}")),
            Wait::Cluster { .. } => {
                (line(group.pc - 1), group.mask, "waits at the cluster's barrier".to_string())
            }
            Wait::Yield => (line(group.pc), group.mask, "asks in vain".to_string()),
        });
        waits.collect()
    }

    /// Runs until it has to wait, or for `quantum` instructions.
    ///
    /// # Errors
    /// What went wrong, at [`Warp::line`].
    pub(super) fn run(&mut self, cluster: &mut Cluster<'_>, quantum: u64) -> Result<Outcome, Fault> {
        #[cfg(target_arch = "x86_64")]
        if self.quick {
            #[allow(unsafe_code)]
            // SAFETY: `quick` found these features.
            return unsafe { self.run_quick(cluster, quantum) };
        }
        self.run_plain(cluster, quantum)
    }

    /// The same code for the vector unit of the last ten years: without it a fused product is a call of a function.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt,f16c")]
    #[allow(unsafe_code)]
    unsafe fn run_quick(&mut self, cluster: &mut Cluster<'_>, quantum: u64) -> Result<Outcome, Fault> {
        self.run_plain(cluster, quantum)
    }

    #[inline(always)]
    fn run_plain(&mut self, cluster: &mut Cluster<'_>, quantum: u64) -> Result<Outcome, Fault> {
        let code: &'a [Instruction] = &self.kernel.code;
        let mut left = quantum;
        loop {
            let Some(current) = self.choose(cluster) else {
                if self.groups.is_empty() {
                    return Ok(Outcome::Ended);
                }
                let mut yielded = false;
                for group in self.groups.iter_mut().filter(|group| group.wait == Wait::Yield) {
                    (group.wait, yielded) = (Wait::Ready, true);
                }
                return Ok(if yielded { Outcome::Yielded } else { Outcome::Blocked });
            };
            let Group { mut pc, mask, .. } = self.groups[current];
            let alone = self.groups.len() == 1;
            loop {
                let instruction = &code[pc as usize];
                self.line = instruction.line;
                cluster.clock += 1;
                left -= 1;
                let active = match instruction.guard {
                    NONE => mask,
                    guard => {
                        let bits = self.predicates[guard as usize];
                        mask & if instruction.guard_negated { !bits } else { bits }
                    }
                };
                let next = if active == 0 { Next::On } else { self.step(cluster, instruction, active)? };
                match next {
                    Next::On => pc += 1,
                    Next::Jump(target) if active == mask => pc = target,
                    next => {
                        self.part(cluster, current, Group { pc, mask, wait: Wait::Ready }, active, next)?;
                        break;
                    }
                }
                if left == 0 || !alone {
                    self.groups[current].pc = pc;
                    break;
                }
            }
            if left == 0 {
                return Ok(if self.groups.is_empty() { Outcome::Ended } else { Outcome::Quantum });
            }
        }
    }

    /// Replaces a group by those that it falls into.
    #[inline(never)]
    fn part(
        &mut self,
        cluster: &mut Cluster<'_>,
        current: usize,
        group: Group,
        active: u32,
        next: Next,
    ) -> Result<(), Fault> {
        self.groups.swap_remove(current);
        let rest = Group { pc: group.pc + 1, mask: group.mask & !active, wait: Wait::Ready };
        if rest.mask != 0 {
            self.groups.push(rest);
        }
        match next {
            Next::On => self.groups.push(Group { pc: group.pc + 1, mask: active, wait: Wait::Ready }),
            Next::Jump(pc) => self.groups.push(Group { pc, mask: active, wait: Wait::Ready }),
            Next::Scatter(targets) => {
                for lane in lanes(active) {
                    self.groups.push(Group { pc: targets[lane], mask: 1 << lane, wait: Wait::Ready });
                }
            }
            Next::Stay(wait) => self.groups.push(Group { pc: group.pc, mask: active, wait }),
            Next::Wait(wait) => self.groups.push(Group { pc: group.pc + 1, mask: active, wait }),
            Next::Exit => {
                self.live &= !active;
                for group in &mut self.groups {
                    if matches!(group.wait, Wait::Converge(_)) {
                        group.wait = Wait::Ready;
                    }
                }
                if self.groups.is_empty() {
                    self.hopper.finish()?;
                    let block = &mut cluster.blocks[self.block];
                    block.live_warps -= 1;
                    if block.live_warps == 0 {
                        block.hopper.finish()?;
                    }
                    cluster.events += 1;
                    cluster.recheck(self.block);
                }
            }
        }
        Ok(())
    }

    /// The group to run: wakes those whose wait is over, joins those that meet.
    #[inline(always)]
    fn choose(&mut self, cluster: &Cluster<'_>) -> Option<usize> {
        if let [group] = &self.groups[..] {
            if group.wait == Wait::Ready {
                return Some(0);
            }
        }
        self.choose_among(cluster)
    }

    #[inline(never)]
    fn choose_among(&mut self, cluster: &Cluster<'_>) -> Option<usize> {
        for i in 0..self.groups.len() {
            let group = self.groups[i];
            match group.wait {
                Wait::Barrier { id, generation } => {
                    let meeting = cluster.blocks[self.block].barriers[id as usize];
                    if meeting.generation != generation {
                        self.groups[i].wait = Wait::Ready;
                        self.clock.acquire(&cluster.blocks[self.block].told[id as usize].1);
                        let instruction = self.kernel.code[group.pc as usize - 1];
                        self.barrier_result(&instruction, &meeting, group.mask);
                    }
                }
                Wait::Cluster { generation } if cluster.meeting.generation != generation => {
                    self.groups[i].wait = Wait::Ready;
                    self.clock.acquire(&cluster.told.1);
                }
                _ => {}
            }
        }
        let waits_elsewhere = |wait: Wait| matches!(wait, Wait::Barrier { .. } | Wait::Cluster { .. });
        let mut i = 0;
        while i < self.groups.len() {
            let mut j = i + 1;
            while j < self.groups.len() {
                let (a, b) = (self.groups[i], self.groups[j]);
                if a.pc == b.pc && !waits_elsewhere(a.wait) && !waits_elsewhere(b.wait) {
                    // one that asks in vain waits for its turn
                    let wait = if a.wait == Wait::Yield && b.wait == Wait::Yield {
                        Wait::Yield
                    } else {
                        Wait::Ready
                    };
                    self.groups[i] = Group { pc: a.pc, mask: a.mask | b.mask, wait };
                    self.groups.swap_remove(j);
                } else {
                    j += 1;
                }
            }
            i += 1;
        }
        let ready = self.groups.iter().enumerate().filter(|(_, group)| group.wait == Wait::Ready);
        ready.min_by_key(|(_, group)| group.pc).map(|(i, _)| i)
    }

    // ---- operands ----

    #[inline(always)]
    fn a32(&self, row: u32) -> &R32 {
        &self.r32[row as usize]
    }

    #[inline(always)]
    fn a64(&self, row: u32) -> &R64 {
        &self.r64[row as usize]
    }

    /// Operand or zeros.
    #[inline(always)]
    fn o32(&self, row: u32) -> &R32 {
        const ZERO: R32 = [0; 32];
        if row == NONE { &ZERO } else { &self.r32[row as usize] }
    }

    #[inline(always)]
    fn o64(&self, row: u32) -> &R64 {
        const ZERO: R64 = [0; 32];
        if row == NONE { &ZERO } else { &self.r64[row as usize] }
    }

    #[inline(always)]
    fn put32(&mut self, row: u32, mask: u32, values: R32) {
        let to = &mut self.r32[row as usize];
        if mask == ALL {
            *to = values;
        } else {
            for lane in 0..32 {
                to[lane] = if mask >> lane & 1 == 1 { values[lane] } else { to[lane] };
            }
        }
    }

    #[inline(always)]
    fn put64(&mut self, row: u32, mask: u32, values: R64) {
        let to = &mut self.r64[row as usize];
        if mask == ALL {
            *to = values;
        } else {
            for lane in 0..32 {
                to[lane] = if mask >> lane & 1 == 1 { values[lane] } else { to[lane] };
            }
        }
    }

    #[inline(always)]
    fn put_predicate(&mut self, row: u32, mask: u32, bits: u32) {
        let to = &mut self.predicates[row as usize];
        *to = *to & !mask | bits & mask;
    }

    /// The one value of the lanes at work.
    fn uniform(&self, row: u32, mask: u32, what: &str) -> Result<u32, Fault> {
        let values = self.a32(row);
        let first = values[mask.trailing_zeros() as usize & 31];
        match lanes(mask).find(|lane| values[*lane] != first) {
            None => Ok(first),
            Some(lane) => {
                Err(Fault::from(format!("{what} differs between lanes: {first} and {}", values[lane]))
                    .lane(lane))
            }
        }
    }

    /// Whether lanes have still to come; those that a members mask names and that have ended never will.
    fn missing(&self, members: &R32, mask: u32) -> Result<Option<Wait>, Fault> {
        let mut need = 0;
        for lane in lanes(mask) {
            if members[lane] >> lane & 1 == 0 {
                return Err(Fault::from(format!(
                    "the members {:#010x} leave out the lane itself",
                    members[lane]
                ))
                .lane(lane));
            }
            need |= members[lane];
        }
        need &= self.exists;
        if need & !self.live != 0 {
            let ended = need & !self.live;
            return Err(Fault::from(format!(
                "the members {need:#010x} name lanes that have ended: {ended:#010x}"
            )));
        }
        Ok((need & !mask != 0).then_some(Wait::Converge(need)))
    }

    /// As above, for instructions of the whole warp.
    fn missing_any(&self, mask: u32) -> Option<Wait> {
        (self.live & !mask != 0).then_some(Wait::Converge(self.live))
    }

    // ---- instructions ----

    #[inline(always)]
    fn step(&mut self, cluster: &mut Cluster<'_>, i: &Instruction, mask: u32) -> Result<Next, Fault> {
        match i.op {
            Op::Nop => {}
            Op::Branch => return Ok(Next::Jump(i.d)),
            Op::Move32 => {
                let d = *self.a32(i.a);
                self.put32(i.d, mask, d);
            }
            Op::Move64 => {
                let d = *self.a64(i.a);
                self.put64(i.d, mask, d);
            }
            Op::MovePred => {
                let bits = self.predicates[i.a as usize];
                self.put_predicate(i.d, mask, bits);
            }
            Op::Int(op, ty) => {
                if ty.bits() == 64 {
                    let shift = matches!(op, Int::Shl | Int::Shr);
                    let (b, n) = if shift { (NONE, i.b) } else { (i.b, NONE) };
                    let d =
                        alu::int64(op, ty.signed(), self.a64(i.a), self.o64(b), self.o64(i.c), self.o32(n));
                    self.put64(i.d, mask, d);
                } else {
                    let d = alu::int32(op, ty, self.a32(i.a), self.a32(i.b), self.o32(i.c));
                    self.put32(i.d, mask, d);
                }
            }
            Op::Float(op, ty, mode) => match ty {
                Type::F32 => {
                    let d = alu::float32(op, mode, self.a32(i.a), self.a32(i.b), self.o32(i.c));
                    self.put32(i.d, mask, d);
                }
                Type::F64 => {
                    if mode.round != Round::Nearest {
                        return Err("f64 is rounded to the nearest alone".into());
                    }
                    let d = alu::float64(op, mode, self.a64(i.a), self.a64(i.b), self.o64(i.c));
                    self.put64(i.d, mask, d);
                }
                _ => {
                    let d = alu::float_half(op, ty, mode, self.a32(i.a), self.a32(i.b), self.o32(i.c));
                    self.put32(i.d, mask, d);
                }
            },
            Op::FloatUnary(op, ty, mode) => match ty {
                Type::F32 => {
                    let d = alu::float_unary32(op, mode, self.a32(i.a));
                    self.put32(i.d, mask, d);
                }
                Type::F64 => {
                    let d = alu::float_unary64(op, self.a64(i.a));
                    self.put64(i.d, mask, d);
                }
                _ => {
                    let d = alu::float_unary_half(op, ty, mode, self.a32(i.a));
                    self.put32(i.d, mask, d);
                }
            },
            Op::Setp { compare, ty, ftz, combine, negate } => {
                let mut bits = if ty.bits() == 64 {
                    alu::compare64(compare, ty, self.a64(i.a), self.a64(i.b))
                } else {
                    alu::compare32(compare, ty, ftz, self.a32(i.a), self.a32(i.b))
                };
                let mut complement = !bits;
                if i.c != NONE {
                    let other = self.predicates[i.c as usize] ^ if negate { ALL } else { 0 };
                    (bits, complement) =
                        (alu::combine(combine, bits, other), alu::combine(combine, complement, other));
                }
                self.put_predicate(i.d, mask, bits);
                if i.e != NONE {
                    self.put_predicate(i.e, mask, complement);
                }
            }
            Op::Load { space, ty, count, wide, address64 } => {
                let from = self.addresses(i.a, address64, i.c as i32);
                match ty.bytes() * usize::from(count) {
                    1 => self.load::<1>(cluster, i, mask, space, ty, wide, &from)?,
                    2 => self.load::<2>(cluster, i, mask, space, ty, wide, &from)?,
                    4 => self.load::<4>(cluster, i, mask, space, ty, wide, &from)?,
                    8 => self.load::<8>(cluster, i, mask, space, ty, wide, &from)?,
                    16 => self.load::<16>(cluster, i, mask, space, ty, wide, &from)?,
                    _ => self.load::<32>(cluster, i, mask, space, ty, wide, &from)?,
                }
            }
            Op::Store { space, ty, count, wide, address64 } => {
                let to = self.addresses(i.a, address64, i.c as i32);
                match ty.bytes() * usize::from(count) {
                    1 => self.store::<1>(cluster, i, mask, space, ty, wide, &to)?,
                    2 => self.store::<2>(cluster, i, mask, space, ty, wide, &to)?,
                    4 => self.store::<4>(cluster, i, mask, space, ty, wide, &to)?,
                    8 => self.store::<8>(cluster, i, mask, space, ty, wide, &to)?,
                    16 => self.store::<16>(cluster, i, mask, space, ty, wide, &to)?,
                    _ => self.store::<32>(cluster, i, mask, space, ty, wide, &to)?,
                }
            }
            Op::Selp32 => {
                let (bits, a, b) = (self.predicates[i.c as usize], self.a32(i.a), self.a32(i.b));
                let mut d = [0; 32];
                for lane in 0..32 {
                    d[lane] = if bits >> lane & 1 == 1 { a[lane] } else { b[lane] };
                }
                self.put32(i.d, mask, d);
            }
            Op::Selp64 => {
                let (bits, a, b) = (self.predicates[i.c as usize], self.a64(i.a), self.a64(i.b));
                let mut d = [0; 32];
                for lane in 0..32 {
                    d[lane] = if bits >> lane & 1 == 1 { a[lane] } else { b[lane] };
                }
                self.put64(i.d, mask, d);
            }
            Op::Bool(op) => {
                let bits = alu::combine(op, self.predicates[i.a as usize], self.predicates[i.b as usize]);
                self.put_predicate(i.d, mask, bits);
            }
            Op::Not => {
                let bits = !self.predicates[i.a as usize];
                self.put_predicate(i.d, mask, bits);
            }
            Op::Convert { to, from, round, whole, ftz, sat, relu, wide_from, wide_to } => {
                let how = Conversion { to, from, round, whole, ftz, sat, relu };
                self.convert(i, mask, how, wide_from, wide_to);
            }
            Op::ConvertPair { to, round, relu, sat } => {
                let d = alu::convert_pair(to, round, relu, sat, self.a32(i.a), self.a32(i.b));
                self.put32(i.d, mask, d);
            }
            Op::MulWide(ty) | Op::MadWide(ty) => {
                if ty.bits() == 16 {
                    let c = (i.c != NONE).then(|| self.a32(i.c));
                    let d = alu::mul_wide16(ty, self.a32(i.a), self.a32(i.b), c);
                    self.put32(i.d, mask, d);
                } else {
                    let c = (i.c != NONE).then(|| self.a64(i.c));
                    let d = alu::mul_wide(ty.signed(), self.a32(i.a), self.a32(i.b), c);
                    self.put64(i.d, mask, d);
                }
            }
            Op::Mad { high, ty } => {
                let op = if high { Int::MulHi } else { Int::MulLo };
                if ty.bits() == 64 {
                    let none = self.o64(NONE);
                    let product =
                        alu::int64(op, ty.signed(), self.a64(i.a), self.a64(i.b), none, self.o32(NONE));
                    let d = alu::int64(Int::Add, false, &product, self.a64(i.c), none, self.o32(NONE));
                    self.put64(i.d, mask, d);
                } else {
                    let product = alu::int32(op, ty, self.a32(i.a), self.a32(i.b), self.o32(NONE));
                    let d = alu::int32(Int::Add, ty, &product, self.a32(i.c), self.o32(NONE));
                    self.put32(i.d, mask, d);
                }
            }
            Op::Mma(product) => {
                if let Some(wait) = self.missing_any(mask) {
                    return Ok(Next::Stay(wait));
                }
                mma::whole(mask)?;
                mma::multiply(self, i, product);
            }
            Op::Shuffle(how) => return self.shuffle(i, mask, how),
            _ => return self.rare(cluster, i, mask),
        }
        Ok(Next::On)
    }

    /// What is not worth a place in the loop that is compiled for the vector unit.
    #[inline(never)]
    fn rare(&mut self, cluster: &mut Cluster<'_>, i: &Instruction, mask: u32) -> Result<Next, Fault> {
        match i.op {
            Op::Exit => return Ok(Next::Exit),
            Op::Trap => return Err("trap".into()),
            Op::Unsupported => {
                let message = self.kernel.messages.get(i.d as usize).map_or("", String::as_str);
                return Err(Fault::from(message));
            }
            Op::BranchIndexed => {
                let mut targets = [0; 32];
                for lane in lanes(mask) {
                    let index = self.a32(i.a)[lane];
                    if index >= i.b {
                        return Err(Fault::from(format!("branch {index} of {}", i.b)).lane(lane));
                    }
                    targets[lane] = self.list[(i.d + index) as usize];
                }
                return Ok(Next::Scatter(targets));
            }
            Op::Pack { bits, parts } => {
                let rows = &self.list[i.a as usize..][..usize::from(parts)];
                let ones = if bits == 32 { u64::from(ALL) } else { (1 << bits) - 1 };
                let mut d = [0u64; 32];
                for (part, row) in rows.iter().enumerate() {
                    let from = self.a32(*row);
                    for lane in 0..32 {
                        d[lane] |= (u64::from(from[lane]) & ones) << (part * usize::from(bits));
                    }
                }
                if bits * parts == 64 {
                    self.put64(i.d, mask, d);
                } else {
                    self.put32(i.d, mask, d.map(|x| x as u32));
                }
            }
            Op::Unpack { bits, parts } => {
                let from: R64 =
                    if bits * parts == 64 { *self.a64(i.a) } else { self.a32(i.a).map(u64::from) };
                let ones = if bits == 32 { ALL } else { (1 << bits) - 1 };
                for part in 0..usize::from(parts) {
                    let row = self.list[i.d as usize + part];
                    if row != NONE {
                        self.put32(row, mask, from.map(|x| (x >> (part * usize::from(bits))) as u32 & ones));
                    }
                }
            }
            Op::IntUnary(op, ty) => {
                if ty.bits() == 64 {
                    let d = alu::int_unary64(op, self.a64(i.a));
                    self.put64(i.d, mask, d);
                } else {
                    let d = alu::int_unary32(op, ty, self.a32(i.a));
                    self.put32(i.d, mask, d);
                }
            }
            Op::Count(op, ty) => {
                let d = if ty.bits() == 64 {
                    alu::count64(op, ty.signed(), self.a64(i.a))
                } else {
                    alu::count32(op, ty.signed(), self.a32(i.a))
                };
                self.put32(i.d, mask, d);
            }
            Op::Mul24 { high, signed, add } => {
                let mut d = alu::mul24(high, signed, self.a32(i.a), self.a32(i.b));
                if add {
                    let c = self.a32(i.c);
                    d = std::array::from_fn(|lane| d[lane].wrapping_add(c[lane]));
                }
                self.put32(i.d, mask, d);
            }
            Op::Carry { subtract, carry_in, carry_out, wide } => {
                self.carry(i, mask, subtract, carry_in, carry_out, wide)
            }
            Op::Bfe(ty) => {
                let (b, c) = (*self.a32(i.b), *self.a32(i.c));
                if ty.bits() == 64 {
                    let a = self.a64(i.a);
                    let d = std::array::from_fn(|lane| alu::bfe(ty, a[lane], b[lane], c[lane]));
                    self.put64(i.d, mask, d);
                } else {
                    let a = self.a32(i.a);
                    let d =
                        std::array::from_fn(|lane| alu::bfe(ty, u64::from(a[lane]), b[lane], c[lane]) as u32);
                    self.put32(i.d, mask, d);
                }
            }
            Op::Bfi(ty) => {
                let (c, e) = (*self.a32(i.c), *self.a32(i.e));
                if ty.bits() == 64 {
                    let (a, b) = (self.a64(i.a), self.a64(i.b));
                    let d = std::array::from_fn(|lane| alu::bfi(64, a[lane], b[lane], c[lane], e[lane]));
                    self.put64(i.d, mask, d);
                } else {
                    let (a, b) = (self.a32(i.a), self.a32(i.b));
                    let one = |lane: usize| {
                        alu::bfi(32, u64::from(a[lane]), u64::from(b[lane]), c[lane], e[lane]) as u32
                    };
                    let d = std::array::from_fn(one);
                    self.put32(i.d, mask, d);
                }
            }
            Op::Prmt(kind) => {
                let (a, b, c) = (self.a32(i.a), self.a32(i.b), self.a32(i.c));
                let d = std::array::from_fn(|lane| alu::prmt(kind, a[lane], b[lane], c[lane]));
                self.put32(i.d, mask, d);
            }
            Op::Lop3 => {
                let d = alu::lop3(i.e, self.a32(i.a), self.a32(i.b), self.a32(i.c));
                self.put32(i.d, mask, d);
            }
            Op::Shf { left, wrap } => {
                let d = alu::shf(left, wrap, self.a32(i.a), self.a32(i.b), self.a32(i.c));
                self.put32(i.d, mask, d);
            }
            Op::Dp4a { a_signed, b_signed } => {
                let (a, b, c) = (self.a32(i.a), self.a32(i.b), self.a32(i.c));
                let d = std::array::from_fn(|lane| alu::dp4a(a_signed, b_signed, a[lane], b[lane], c[lane]));
                self.put32(i.d, mask, d);
            }
            Op::Testp(kind, ty) => {
                let bits = self.test(i, kind, ty);
                self.put_predicate(i.d, mask, bits);
            }
            Op::Set { compare, ty, float, ftz, combine, negate } => {
                let mut bits = if ty.bits() == 64 {
                    alu::compare64(compare, ty, self.a64(i.a), self.a64(i.b))
                } else {
                    alu::compare32(compare, ty, ftz, self.a32(i.a), self.a32(i.b))
                };
                if i.c != NONE {
                    bits = alu::combine(
                        combine,
                        bits,
                        self.predicates[i.c as usize] ^ if negate { ALL } else { 0 },
                    );
                }
                let one = if float { 1f32.to_bits() } else { ALL };
                let d = std::array::from_fn(|lane| if bits >> lane & 1 == 1 { one } else { 0 });
                self.put32(i.d, mask, d);
            }
            Op::SetpPair { compare, ty, combine, negate } => {
                let part = if ty == Type::F16x2 { Type::F16 } else { Type::Bf16 };
                let other = if i.c == NONE {
                    None
                } else {
                    Some(self.predicates[i.c as usize] ^ if negate { ALL } else { 0 })
                };
                for (half, to) in [i.d, i.e].into_iter().enumerate().filter(|(_, to)| *to != NONE) {
                    let values = |row: u32| self.a32(row).map(|x| x >> (16 * half) & 0xffff);
                    let mut bits = alu::compare32(compare, part, false, &values(i.a), &values(i.b));
                    if let Some(other) = other {
                        bits = alu::combine(combine, bits, other);
                    }
                    self.put_predicate(to, mask, bits);
                }
            }
            Op::Slct { wide, float } => {
                let c = *self.a32(i.c);
                let first = |lane: usize| {
                    if float { f32::from_bits(c[lane]) >= 0.0 } else { c[lane] as i32 >= 0 }
                };
                if wide {
                    let (a, b) = (self.a64(i.a), self.a64(i.b));
                    let d = std::array::from_fn(|lane| if first(lane) { a[lane] } else { b[lane] });
                    self.put64(i.d, mask, d);
                } else {
                    let (a, b) = (self.a32(i.a), self.a32(i.b));
                    let d = std::array::from_fn(|lane| if first(lane) { a[lane] } else { b[lane] });
                    self.put32(i.d, mask, d);
                }
            }
            Op::Cvta { space, to, wide } => self.cvta(i, mask, space, to, wide)?,
            Op::IsSpace { space, wide } => {
                let window = match space {
                    Space::Shared => SHARED_WINDOW,
                    Space::Local => LOCAL_WINDOW,
                    Space::Parameter => PARAMETER_WINDOW,
                    _ => 0,
                };
                let bits = lanes(mask).fold(0, |bits, lane| {
                    let address = if wide { self.a64(i.a)[lane] } else { u64::from(self.a32(i.a)[lane]) };
                    bits | u32::from(address & WINDOW_MASK == window) << lane
                });
                self.put_predicate(i.d, mask, bits);
            }
            Op::Atomic { op, ty, space, address64 } => {
                self.atomic(cluster, i, mask, op, ty, space, address64)?
            }
            Op::Vote { vote, negate } => return self.vote(i, mask, vote, negate),
            Op::Match { all, wide } => return self.matched(i, mask, all, wide),
            Op::Redux(op, ty) => return self.redux(i, mask, op, ty),
            Op::ActiveMask => self.put32(i.d, mask, [mask; 32]),
            Op::WarpSync => {
                if let Some(wait) = self.missing(self.a32(i.a), mask)? {
                    return Ok(Next::Stay(wait));
                }
            }
            Op::Elect => {
                if let Some(wait) = self.missing(self.a32(i.a), mask)? {
                    return Ok(Next::Stay(wait));
                }
                let chosen = self.a32(i.a).map(|members| (members & mask).trailing_zeros());
                let bits =
                    lanes(mask).fold(0, |bits, lane| bits | u32::from(chosen[lane] == lane as u32) << lane);
                self.put32(i.d, mask, chosen);
                self.put_predicate(i.e, mask, bits);
            }
            Op::Barrier { barrier, negate, .. } => return self.barrier(cluster, i, mask, barrier, negate),
            Op::ClusterArrive => {
                if let Some(wait) = self.missing_any(mask) {
                    return Ok(Next::Stay(wait));
                }
                self.cluster_generation = cluster.meeting.generation;
                self.clock.release(&mut cluster.told.0);
                cluster.meeting.arrived += 1;
                cluster.complete_cluster();
            }
            Op::ClusterWait => {
                if let Some(wait) = self.missing_any(mask) {
                    return Ok(Next::Stay(wait));
                }
                let generation = self.cluster_generation;
                if cluster.meeting.generation == generation {
                    return Ok(Next::Wait(Wait::Cluster { generation }));
                }
                self.clock.acquire(&cluster.told.1);
            }
            Op::CpAsync { bytes, ignore } => self.copy(cluster, i, mask, usize::from(bytes), ignore)?,
            Op::CpAsyncCommit => {
                for lane in lanes(mask) {
                    self.committed[lane] += 1;
                }
            }
            Op::CpAsyncWait { all } => self.wait_copies(cluster, mask, if all { None } else { Some(i.a) })?,
            Op::LdMatrix { count, transposed } => {
                if let Some(wait) = self.missing_any(mask) {
                    return Ok(Next::Stay(wait));
                }
                mma::whole(mask)?;
                mma::load_matrices(self, cluster, i, count, transposed)?;
            }
            Op::StMatrix { count, transposed } => {
                if let Some(wait) = self.missing_any(mask) {
                    return Ok(Next::Stay(wait));
                }
                mma::whole(mask)?;
                mma::store_matrices(self, cluster, i, count, transposed)?;
            }
            Op::MovMatrix => {
                if let Some(wait) = self.missing_any(mask) {
                    return Ok(Next::Stay(wait));
                }
                mma::whole(mask)?;
                let d = mma::transpose(self.a32(i.a));
                self.put32(i.d, mask, d);
            }
            Op::Mapa { wide, generic } => {
                for lane in lanes(mask) {
                    let rank = self.a32(i.b)[lane];
                    if rank as usize >= cluster.blocks.len() {
                        let message = format!("rank {rank} in a cluster of {} blocks", cluster.blocks.len());
                        return Err(Fault::from(message).lane(lane));
                    }
                    let window = |address: u32| address & ((1 << RANK_SHIFT) - 1) | (rank + 1) << RANK_SHIFT;
                    if wide {
                        let address = self.a64(i.a)[lane];
                        self.r64[i.d as usize][lane] =
                            u64::from(window(address as u32)) | if generic { SHARED_WINDOW } else { 0 };
                    } else {
                        self.r32[i.d as usize][lane] = window(self.a32(i.a)[lane]);
                    }
                }
            }
            Op::GetRank { wide } => {
                for lane in lanes(mask) {
                    let address = if wide { self.a64(i.a)[lane] as u32 } else { self.a32(i.a)[lane] };
                    let rank = address >> RANK_SHIFT;
                    self.r32[i.d as usize][lane] = if rank == 0 { self.block as u32 } else { rank - 1 };
                }
            }
            Op::Clock { wide, .. } => {
                let clock = cluster.clock;
                if wide {
                    self.put64(i.d, mask, [clock; 32]);
                } else {
                    self.put32(i.d, mask, [clock as u32; 32]);
                }
            }
            Op::NanoSleep => return Ok(Next::Wait(Wait::Yield)),
            Op::Hopper(op) => {
                if aligned(op) {
                    if let Some(wait) = self.missing_any(mask) {
                        return Ok(Next::Stay(wait));
                    }
                }
                let before = cluster.blocks[self.block].hopper.progress;
                if matches!(op, hopper::Op::BarrierArrive { .. } | hopper::Op::BarrierComplete) {
                    self.tell(cluster, i, mask)?;
                }
                let flow =
                    hopper::execute(op, i, &mut View { warp: self, cluster, mask }).map_err(Fault::from)?;
                if cluster.blocks[self.block].hopper.progress != before {
                    cluster.events += 1;
                }
                if flow == Flow::Next && matches!(op, hopper::Op::BarrierTest { .. }) {
                    self.hear(cluster, i, mask)?;
                }
                if flow == Flow::Yield {
                    return Ok(Next::Wait(Wait::Yield));
                }
            }
            op => return Err(Fault::from(format!("{op:?} is not known"))),
        }
        Ok(Next::On)
    }

    // ---- arithmetic between files ----

    #[inline(always)]
    fn convert(&mut self, i: &Instruction, mask: u32, how: Conversion, wide_from: bool, wide_to: bool) {
        if !how.sat && !how.ftz && !how.relu {
            // what addresses and conversions of types are made of
            match (how.to, how.from) {
                (Type::S64 | Type::U64, Type::S32) if !wide_from => {
                    let d = self.a32(i.a).map(|x| x as i32 as i64 as u64);
                    return self.put64(i.d, mask, d);
                }
                (Type::S64 | Type::U64, Type::U32) if !wide_from => {
                    let d = self.a32(i.a).map(u64::from);
                    return self.put64(i.d, mask, d);
                }
                (Type::U32 | Type::S32, Type::U64 | Type::S64) if !wide_to => {
                    let d = self.a64(i.a).map(|x| x as u32);
                    return self.put32(i.d, mask, d);
                }
                (Type::F32, Type::S32) if how.round == Round::Nearest => {
                    let d = self.a32(i.a).map(|x| (x as i32 as f32).to_bits());
                    return self.put32(i.d, mask, d);
                }
                (Type::F32, Type::U32) if how.round == Round::Nearest => {
                    let d = self.a32(i.a).map(|x| (x as f32).to_bits());
                    return self.put32(i.d, mask, d);
                }
                (Type::Bf16, Type::F32) if how.round == Round::Nearest => {
                    let d = self.a32(i.a).map(alu::bf16_bits);
                    return self.put32(i.d, mask, d);
                }
                (Type::F32, Type::Bf16) => {
                    let d = self.a32(i.a).map(|x| x << 16);
                    return self.put32(i.d, mask, d);
                }
                (Type::F32, Type::F16) => {
                    let d = self.a32(i.a).map(|x| (alu::widen16(x & 0xffff, false) as f32).to_bits());
                    return self.put32(i.d, mask, d);
                }
                _ => {}
            }
        }
        self.convert_each(i, mask, how, wide_from, wide_to);
    }

    #[inline(never)]
    fn convert_each(&mut self, i: &Instruction, mask: u32, how: Conversion, wide_from: bool, wide_to: bool) {
        for lane in lanes(mask) {
            let from = if wide_from { self.a64(i.a)[lane] } else { u64::from(self.a32(i.a)[lane]) };
            let value = alu::convert(how, from);
            if wide_to {
                self.r64[i.d as usize][lane] = value;
            } else {
                self.r32[i.d as usize][lane] = value as u32;
            }
        }
    }

    fn carry(
        &mut self,
        i: &Instruction,
        mask: u32,
        subtract: bool,
        carry_in: bool,
        carry_out: bool,
        wide: bool,
    ) {
        let mut carries = 0;
        for lane in lanes(mask) {
            let (a, mut b) = if wide {
                (self.a64(i.a)[lane], self.a64(i.b)[lane])
            } else {
                (u64::from(self.a32(i.a)[lane]), u64::from(self.a32(i.b)[lane]))
            };
            // a - b is a + !b + 1, so a carry out of it says that nothing was borrowed; PTX keeps the borrow
            let borrow = self.carry >> lane & 1;
            let mut carry = u64::from(carry_in && borrow == 1);
            if subtract {
                b = !b & if wide { u64::MAX } else { u64::from(ALL) };
                carry = 1 - carry;
            }
            let sum = u128::from(a) + u128::from(b) + u128::from(carry);
            let out = (sum >> if wide { 64 } else { 32 }) as u32 & 1;
            carries |= (if subtract { 1 - out } else { out }) << lane;
            if wide {
                self.r64[i.d as usize][lane] = sum as u64;
            } else {
                self.r32[i.d as usize][lane] = sum as u32;
            }
        }
        if carry_out {
            self.carry = self.carry & !mask | carries;
        }
    }

    fn test(&self, i: &Instruction, kind: Test, ty: Type) -> u32 {
        match ty {
            Type::F64 => alu::test(kind, self.a64(i.a).iter().map(|x| f64::from_bits(*x)), f64::MIN_POSITIVE),
            _ => {
                let values = self.a32(i.a).iter().map(|x| f64::from(f32::from_bits(*x)));
                alu::test(kind, values, f64::from(f32::MIN_POSITIVE))
            }
        }
    }

    // ---- addresses and memory ----

    #[inline(always)]
    fn addresses(&self, row: u32, wide: bool, offset: i32) -> R64 {
        let mut d = [0; 32];
        if wide {
            let from = self.a64(row);
            for lane in 0..32 {
                d[lane] = from[lane].wrapping_add_signed(i64::from(offset));
            }
        } else {
            let from = self.a32(row);
            for lane in 0..32 {
                d[lane] = u64::from(from[lane].wrapping_add_signed(offset));
            }
        }
        d
    }

    fn cvta(&mut self, i: &Instruction, mask: u32, space: Space, to: bool, wide: bool) -> Result<(), Fault> {
        let window = match space {
            Space::Shared => SHARED_WINDOW,
            Space::Local => LOCAL_WINDOW,
            Space::Parameter => PARAMETER_WINDOW,
            _ => 0,
        };
        if !wide {
            return Err("generic addresses have 64 bits".into());
        }
        for lane in lanes(mask) {
            let from = self.a64(i.a)[lane];
            self.r64[i.d as usize][lane] = if to {
                if from & WINDOW_MASK != window {
                    return Err(
                        Fault::from(format!("{from:#x} is no address of {space:?} memory")).lane(lane)
                    );
                }
                from & !WINDOW_MASK
            } else if window != 0 {
                window | from & 0xffff_ffff
            } else {
                from
            };
        }
        Ok(())
    }

    /// Whether all lanes address the host's memory and may: one look at the whole range first.
    #[inline(always)]
    fn host(
        &self,
        cluster: &Cluster<'_>,
        addresses: &R64,
        bytes: usize,
        mask: u32,
        write: bool,
    ) -> Result<(), Fault> {
        let (mut low, mut high) = (u64::MAX, 0);
        for lane in lanes(mask) {
            (low, high) = (low.min(addresses[lane]), high.max(addresses[lane]));
        }
        if check(cluster, low, (high - low) as usize + bytes, write).is_ok() {
            return Ok(());
        }
        self.host_each(cluster, addresses, bytes, mask, write)
    }

    #[inline(never)]
    fn host_each(
        &self,
        cluster: &Cluster<'_>,
        addresses: &R64,
        bytes: usize,
        mask: u32,
        write: bool,
    ) -> Result<(), Fault> {
        for lane in lanes(mask) {
            check(cluster, addresses[lane], bytes, write).map_err(|e| Fault::from(e).lane(lane))?;
        }
        Ok(())
    }

    #[inline(always)]
    fn aligned<const N: usize>(addresses: &R64, mask: u32) -> Result<(), Fault> {
        for lane in lanes(mask) {
            if addresses[lane] % N as u64 != 0 {
                let message = format!("{:#x} is not a multiple of {N}", addresses[lane]);
                return Err(Fault::from(message).lane(lane));
            }
        }
        Ok(())
    }

    #[inline(always)]
    #[allow(unsafe_code)]
    fn load<const N: usize>(
        &mut self,
        cluster: &mut Cluster<'_>,
        i: &Instruction,
        mask: u32,
        space: Space,
        ty: Type,
        wide: bool,
        from: &R64,
    ) -> Result<(), Fault> {
        Self::aligned::<N>(from, mask)?;
        let plain = match space {
            Space::Global | Space::Constant => true,
            Space::Generic => lanes(mask).all(|lane| from[lane] & WINDOW_MASK == 0),
            _ => false,
        };
        if plain {
            self.host(cluster, from, N, mask, false)?;
            for lane in lanes(mask) {
                let mut bytes = [0; N];
                // SAFETY: `host` allowed these lanes' bytes.
                unsafe { read_checked(from[lane], &mut bytes) };
                self.spread(i, lane, ty, wide, &bytes);
            }
        } else if space == Space::Shared {
            for lane in lanes(mask) {
                let (shared, at) = cluster.shared(self.block, from[lane] as u32)?;
                let bytes = shared.get::<N>(at, &self.clock).map_err(|e| Fault::from(e).lane(lane))?;
                self.spread(i, lane, ty, wide, &bytes);
            }
        } else {
            for lane in lanes(mask) {
                let mut bytes = [0; N];
                self.read(cluster, space, from[lane], lane, &mut bytes, Some(&self.clock))
                    .map_err(|fault| fault.lane(lane))?;
                self.spread(i, lane, ty, wide, &bytes);
            }
        }
        Ok(())
    }

    /// Puts what was loaded into registers.
    #[inline(always)]
    fn spread<const N: usize>(
        &mut self,
        i: &Instruction,
        lane: usize,
        ty: Type,
        wide: bool,
        bytes: &[u8; N],
    ) {
        let size = ty.bytes();
        for part in 0..N / size {
            let row = self.list[i.d as usize + part] as usize;
            let at = part * size;
            let raw = match size {
                1 => u64::from(bytes[at]),
                2 => u64::from(u16::from_le_bytes([bytes[at], bytes[at + 1]])),
                4 => u64::from(u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])),
                _ => {
                    let mut word = [0; 8];
                    word.copy_from_slice(&bytes[at..at + 8]);
                    u64::from_le_bytes(word)
                }
            };
            let raw = match ty {
                Type::S8 => raw as i8 as i64 as u64,
                Type::S16 => raw as i16 as i64 as u64,
                Type::S32 => raw as i32 as i64 as u64,
                _ => raw,
            };
            if wide {
                self.r64[row][lane] = raw;
            } else {
                self.r32[row][lane] = raw as u32;
            }
        }
    }

    #[inline(always)]
    #[allow(unsafe_code)]
    fn store<const N: usize>(
        &mut self,
        cluster: &mut Cluster<'_>,
        i: &Instruction,
        mask: u32,
        space: Space,
        ty: Type,
        wide: bool,
        to: &R64,
    ) -> Result<(), Fault> {
        Self::aligned::<N>(to, mask)?;
        let plain = match space {
            Space::Global => true,
            Space::Generic => lanes(mask).all(|lane| to[lane] & WINDOW_MASK == 0),
            _ => false,
        };
        if plain {
            self.host(cluster, to, N, mask, true)?;
        }
        let size = ty.bytes();
        for lane in lanes(mask) {
            let mut bytes = [0; N];
            for part in 0..N / size {
                let row = self.list[i.d as usize + part] as usize;
                let raw = if wide { self.r64[row][lane] } else { u64::from(self.r32[row][lane]) };
                bytes[part * size..(part + 1) * size].copy_from_slice(&raw.to_le_bytes()[..size]);
            }
            if plain {
                // SAFETY: `host` allowed these lanes' bytes to be written.
                unsafe { write_checked(to[lane], &bytes) };
            } else if space == Space::Shared {
                let (shared, at) = cluster.shared(self.block, to[lane] as u32)?;
                shared.put::<N>(at, &bytes, &self.clock).map_err(|e| Fault::from(e).lane(lane))?;
            } else {
                self.write(cluster, space, to[lane], lane, &bytes, false)
                    .map_err(|fault| fault.lane(lane))?;
            }
        }
        Ok(())
    }

    fn local(&self, address: u32, bytes: usize, lane: usize) -> Result<usize, Fault> {
        let at = address.wrapping_sub(LOCAL_BASE) as usize;
        if address < LOCAL_BASE || at + bytes > self.kernel.local_bytes {
            return Err(Fault::from(format!(
                "local memory is addressed at {address:#x} ({bytes} bytes); it reaches from {LOCAL_BASE:#x} to {:#x}",
                LOCAL_BASE as usize + self.kernel.local_bytes
            )));
        }
        Ok(lane * self.kernel.local_bytes + at)
    }

    /// Reads anywhere.
    fn read(
        &self,
        cluster: &mut Cluster<'_>,
        space: Space,
        address: u64,
        lane: usize,
        to: &mut [u8],
        clock: Option<&Clock>,
    ) -> Result<(), Fault> {
        let (space, address) = resolve(space, address)?;
        match space {
            Space::Shared => {
                let (shared, at) = cluster.shared(self.block, address as u32)?;
                to.copy_from_slice(shared.view(at, to.len(), clock)?);
            }
            Space::Local => {
                let at = self.local(address as u32, to.len(), lane)?;
                to.copy_from_slice(&self.local[at..at + to.len()]);
            }
            Space::Parameter => read_parameters(cluster.launch.parameters, address as u32, to)?,
            _ => read_host(cluster, address, to)?,
        }
        Ok(())
    }

    /// Writes anywhere.
    fn write(
        &mut self,
        cluster: &mut Cluster<'_>,
        space: Space,
        address: u64,
        lane: usize,
        from: &[u8],
        atomic: bool,
    ) -> Result<(), Fault> {
        let (space, address) = resolve(space, address)?;
        match space {
            Space::Shared => {
                let (shared, at) = cluster.shared(self.block, address as u32)?;
                shared.write(at, from, (!atomic).then_some(&self.clock))?;
            }
            Space::Local => {
                let at = self.local(address as u32, from.len(), lane)?;
                self.local[at..at + from.len()].copy_from_slice(from);
            }
            Space::Parameter | Space::Constant => {
                return Err("parameters and constants cannot be written".into());
            }
            _ => write_host(cluster, address, from)?,
        }
        Ok(())
    }

    fn atomic(
        &mut self,
        cluster: &mut Cluster<'_>,
        i: &Instruction,
        mask: u32,
        op: Atomic,
        ty: Type,
        space: Space,
        address64: bool,
    ) -> Result<(), Fault> {
        let addresses = self.addresses(i.a, address64, i.e as i32);
        let size = ty.bytes();
        for lane in lanes(mask) {
            let address = addresses[lane];
            if address % size as u64 != 0 {
                return Err(Fault::from(format!("{address:#x} is not a multiple of {size}")).lane(lane));
            }
            let mut bytes = [0; 8];
            self.read(cluster, space, address, lane, &mut bytes[..size], None)
                .map_err(|fault| fault.lane(lane))?;
            let old = u64::from_le_bytes(bytes);
            let value = |row: u32| {
                if row == NONE {
                    0
                } else if size == 8 {
                    self.a64(row)[lane]
                } else {
                    u64::from(self.a32(row)[lane])
                }
            };
            let new =
                atomic(op, ty, old, value(i.b), value(i.c)).ok_or("not an atomic operation of this type")?;
            self.write(cluster, space, address, lane, &new.to_le_bytes()[..size], true)
                .map_err(|fault| fault.lane(lane))?;
            if i.d != NONE {
                if size == 8 {
                    self.r64[i.d as usize][lane] = old;
                } else {
                    self.r32[i.d as usize][lane] = old as u32;
                }
            }
        }
        cluster.events += 1;
        Ok(())
    }

    fn copy(
        &mut self,
        cluster: &mut Cluster<'_>,
        i: &Instruction,
        mask: u32,
        length: usize,
        ignore: bool,
    ) -> Result<(), Fault> {
        for lane in lanes(mask) {
            let at = |fault: Fault| fault.lane(lane);
            let to = self.a32(i.d)[lane].wrapping_add(i.f);
            let from = self.a64(i.a)[lane].wrapping_add_signed(i64::from(i.e as i32));
            let mut size = if i.b == NONE { length } else { self.a32(i.b)[lane] as usize };
            if ignore && self.predicates[i.c as usize] >> lane & 1 == 1 {
                size = 0;
            }
            if size > length {
                return Err(at(Fault::from(format!("{size} bytes of {length} are copied"))));
            }
            if to as usize % length != 0 || from as usize % length != 0 {
                return Err(at(Fault::from(format!("{from:#x} or {to:#x} is not a multiple of {length}"))));
            }
            let mut bytes = [0; 16];
            read_host_part(cluster, from, &mut bytes[..size]).map_err(|e| at(Fault::from(e)))?;
            let (shared, place) = cluster.shared(self.block, to)?;
            shared.begin(place, length, &self.clock).map_err(|e| at(Fault::from(e)))?;
            let group = self.committed[lane];
            self.copies.push(Copying { lane: lane as u8, length: length as u8, to, group, bytes });
        }
        Ok(())
    }

    /// Delivers what the lanes wait for: all, or all groups but the last few.
    fn wait_copies(&mut self, cluster: &mut Cluster<'_>, mask: u32, but: Option<u32>) -> Result<(), Fault> {
        let copies = std::mem::take(&mut self.copies);
        for copy in copies {
            let lane = usize::from(copy.lane);
            let due = match but {
                None => true,
                Some(but) => copy.group + but < self.committed[lane],
            };
            if mask >> lane & 1 == 1 && due {
                let (shared, at) = cluster.shared(self.block, copy.to)?;
                shared.deliver(at, &copy.bytes[..usize::from(copy.length)], Some(&self.clock))?;
            } else {
                self.copies.push(copy);
            }
        }
        Ok(())
    }

    // ---- together ----

    #[inline(always)]
    fn shuffle(&mut self, i: &Instruction, mask: u32, how: Shuffle) -> Result<Next, Fault> {
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

    fn vote(&mut self, i: &Instruction, mask: u32, vote: Vote, negate: bool) -> Result<Next, Fault> {
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

    fn matched(&mut self, i: &Instruction, mask: u32, all: bool, wide: bool) -> Result<Next, Fault> {
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

    fn redux(&mut self, i: &Instruction, mask: u32, op: Atomic, ty: Type) -> Result<Next, Fault> {
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

    fn barrier(
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

    /// Who hears of the `mbarrier`s that the lanes arrive at hears of this warp.
    fn tell(&mut self, cluster: &mut Cluster<'_>, i: &Instruction, mask: u32) -> Result<(), Fault> {
        for (rank, at) in self.mbarriers(cluster, i, mask)? {
            self.clock.release(cluster.blocks[rank].told_at.entry(at).or_default());
        }
        Ok(())
    }

    /// A phase of the `mbarrier`s was found to be over. All that was ever told there is heard: a phase too much, which
    /// may hide a missing barrier but invents none.
    fn hear(&mut self, cluster: &mut Cluster<'_>, i: &Instruction, mask: u32) -> Result<(), Fault> {
        for (rank, at) in self.mbarriers(cluster, i, mask)? {
            if let Some(told) = cluster.blocks[rank].told_at.get(&at) {
                self.clock.acquire(told);
            }
        }
        Ok(())
    }

    fn mbarriers(
        &mut self,
        cluster: &mut Cluster<'_>,
        i: &Instruction,
        mask: u32,
    ) -> Result<Vec<(usize, u32)>, Fault> {
        let mut found = Vec::new();
        for lane in lanes(mask) {
            let view = View { warp: self, cluster, mask };
            let address = hopper::Place::at(&view, i.d).shared(&view, lane)?;
            let place = cluster.place(self.block, address)?;
            if !found.contains(&place) {
                found.push(place);
            }
        }
        Ok(found)
    }

    /// Writes what a reducing barrier found.
    fn barrier_result(&mut self, i: &Instruction, meeting: &Meeting, mask: u32) {
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

/// The space that a generic address is in.
fn resolve(space: Space, address: u64) -> Result<(Space, u64), Fault> {
    if space != Space::Generic {
        return Ok((space, address));
    }
    Ok(match address & WINDOW_MASK {
        0 => (Space::Global, address),
        SHARED_WINDOW => (Space::Shared, address & !WINDOW_MASK),
        LOCAL_WINDOW => (Space::Local, address & !WINDOW_MASK),
        PARAMETER_WINDOW => (Space::Parameter, address & !WINDOW_MASK),
        _ => return Err(Fault::from(format!("{address:#x} is no address"))),
    })
}

fn read_host_part(cluster: &Cluster<'_>, from: u64, to: &mut [u8]) -> Result<(), String> {
    if to.is_empty() { Ok(()) } else { read_host(cluster, from, to) }
}

/// What an atomic operation makes of the old value.
fn atomic(op: Atomic, ty: Type, old: u64, b: u64, c: u64) -> Option<u64> {
    let wide = ty.bits() == 64;
    let float =
        |f: fn(f32, f32) -> f32| u64::from(f(f32::from_bits(old as u32), f32::from_bits(b as u32)).to_bits());
    Some(match (op, ty) {
        (Atomic::Exchange, _) => b,
        (Atomic::CompareExchange, _) => {
            let ones = if wide { u64::MAX } else { (1 << ty.bits()) - 1 };
            if old & ones == b & ones { c } else { old }
        }
        (Atomic::Add, Type::F32) => float(|x, y| x + y),
        (Atomic::Add, Type::F64) => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
        (Atomic::Add, Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2) => {
            let mode = crate::ptx::instruction::Mode {
                round: Round::Nearest,
                ftz: false,
                sat: false,
                relu: false,
                nan: false,
            };
            let add = crate::ptx::instruction::Float::Add;
            u64::from(alu::float_half(add, ty, mode, &[old as u32; 32], &[b as u32; 32], &[0; 32])[0])
        }
        (_, ty) if ty.float() => return None,
        (Atomic::Add, _) if wide => old.wrapping_add(b),
        (Atomic::Add, _) => u64::from((old as u32).wrapping_add(b as u32)),
        (Atomic::Min, Type::S32) => u64::from((old as i32).min(b as i32) as u32),
        (Atomic::Max, Type::S32) => u64::from((old as i32).max(b as i32) as u32),
        (Atomic::Min, Type::S64) => (old as i64).min(b as i64) as u64,
        (Atomic::Max, Type::S64) => (old as i64).max(b as i64) as u64,
        (Atomic::Min, _) => old.min(b),
        (Atomic::Max, _) => old.max(b),
        (Atomic::And, _) => old & b,
        (Atomic::Or, _) => old | b,
        (Atomic::Xor, _) => old ^ b,
        (Atomic::Inc, _) => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        (Atomic::Dec, _) => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
    })
}

/// Whether an instruction is one of the whole warp.
fn aligned(op: hopper::Op) -> bool {
    use hopper::Op;
    matches!(op, Op::Product(_) | Op::ProductFence | Op::ProductCommit | Op::ProductWait | Op::Registers)
}

/// Whether the processor has what [`Warp::run_quick`] is compiled for.
fn quick() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("fma")
            && std::arch::is_x86_feature_detected!("bmi1")
            && std::arch::is_x86_feature_detected!("bmi2")
            && std::arch::is_x86_feature_detected!("lzcnt")
            && std::arch::is_x86_feature_detected!("popcnt")
            && std::arch::is_x86_feature_detected!("f16c")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}
