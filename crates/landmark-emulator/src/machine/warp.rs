//! A warp: 32 lanes, their registers, and who of them is where.
//!
//! Lanes at the same instruction are a group, and the group furthest behind runs, so that those that took different
//! ways meet again where the ways do. An instruction that needs lanes of other groups (a shuffle, a barrier, a product)
//! makes its group wait for them there.

mod access;
mod execute;
mod together;

use super::alu::{R32, R64};
use super::hopper;
use super::races::Clock;
use super::{Cluster, Fault};
use crate::ptx::instruction::{Instruction, NONE};
use crate::ptx::{Kernel, Special};

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
    /// Until the other warps of the group have done their part of the products.
    Group {
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
            Wait::Group { .. } => {
                (line(group.pc - 1), group.mask, "waits for the other warps of its group".to_string())
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
        if let [group] = &self.groups[..]
            && group.wait == Wait::Ready
        {
            return Some(0);
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
                Wait::Group { generation } => {
                    let (meeting, _) = cluster.blocks[self.block].groups[self.index / 4];
                    if meeting.generation != generation {
                        self.groups[i].wait = Wait::Ready;
                        self.hear_of_group(cluster);
                    }
                }
                _ => {}
            }
        }
        let waits_elsewhere =
            |wait: Wait| matches!(wait, Wait::Barrier { .. } | Wait::Cluster { .. } | Wait::Group { .. });
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
