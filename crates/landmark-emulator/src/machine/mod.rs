//! Runs kernels: clusters of blocks, one after the other or several at once; the warps of a cluster in turns.
//!
//! A warp runs until it has to wait, so a block is as quick as one warp after the other. Nothing runs at the same time
//! within a cluster: what is atomic on a GPU is plain here, and every run is the same. Clusters run at the same time
//! only if the kernel cannot tell (no atomic operations on, no waiting for, global memory).
//!
//! If no warp can go on, the kernel would hang on a GPU; that is an error that says where each of them waits.

pub mod alu;
pub mod float;
pub mod hopper;
pub mod memory;
mod mma;
pub mod races;
mod view;
pub mod warp;

use std::collections::HashMap;

use rayon::prelude::*;

use crate::ptx::{Kernel, Module, SHARED_BASE};
use memory::Shared;
use races::TOO_FAR;
use warp::{Outcome, Warp};

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Where the kernel is from.
    pub module: &'a Module,
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks of a cluster.
    pub cluster: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// The parameters' bytes, laid out.
    pub parameters: &'a [u8],
}

/// Memory of the device: an address there is an address of the host.
pub trait Memory: Sync {
    /// Whether a kernel may access these bytes.
    ///
    /// # Errors
    /// It may not; the message says why.
    fn check(&self, address: u64, bytes: usize, write: bool) -> Result<(), String>;
}

/// What went wrong in an instruction, and in which lane if in one.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The lane.
    pub lane: Option<u32>,
    /// What.
    pub message: String,
}

impl From<String> for Fault {
    fn from(message: String) -> Fault {
        Fault { lane: None, message }
    }
}

impl From<&str> for Fault {
    fn from(message: &str) -> Fault {
        Fault { lane: None, message: message.to_string() }
    }
}

impl Fault {
    /// In that lane.
    pub fn lane(self, lane: usize) -> Fault {
        Fault { lane: Some(lane as u32), ..self }
    }
}

/// A barrier that threads meet at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meeting {
    /// How often it was passed.
    pub generation: u32,
    /// Threads that came, by warps of 32.
    arrived: u32,
    /// Threads it waits for; 0 says all of the block.
    expected: u32,
    /// Threads whose predicate was true.
    counted: u32,
    /// ... of those that passed it last.
    result: u32,
    /// Threads whose predicate was asked for.
    asked: u32,
    /// ... of those that passed it last.
    result_of: u32,
}

/// A block at work.
#[derive(Debug, Default)]
pub struct Block {
    /// Its place in the grid.
    pub index: [u32; 3],
    /// Its shared memory.
    pub shared: Shared,
    /// Its barriers.
    pub barriers: [Meeting; 16],
    /// Its warps that have not ended.
    pub live_warps: u32,
    /// What those that came to a barrier have told, and what those that pass it hear.
    told: [(Vec<u32>, Vec<u32>); 16],
    /// What those that arrived at an `mbarrier` have told.
    told_at: HashMap<u32, Vec<u32>>,
    /// Its warp groups waiting for their products: who came to the wait, and how far each group is.
    groups: Vec<(Meeting, u32)>,
    /// What Hopper's instructions keep.
    pub hopper: hopper::BlockState,
}

/// The blocks of a cluster at work.
pub struct Cluster<'a> {
    /// What runs.
    pub launch: Launch<'a>,
    /// What it may access.
    pub memory: &'a dyn Memory,
    /// By rank.
    pub blocks: Vec<Block>,
    /// The barrier of the cluster, which counts warps.
    pub meeting: Meeting,
    told: (Vec<u32>, Vec<u32>),
    /// Counts whatever may let a warp that waits go on; see `Warp::run`.
    pub events: u64,
    /// Counts instructions.
    pub clock: u64,
}

/// Warp instructions between two turns.
const QUANTUM: u64 = 1 << 16;
/// Turns in which nothing happens until a kernel is taken to hang.
const PATIENCE: u32 = 1000;
/// Warp instructions of a cluster until a kernel is taken to hang.
const LIMIT: u64 = 1 << 31;

/// Runs a kernel to its end.
///
/// # Errors
/// What went wrong, and where.
pub fn run(launch: &Launch<'_>, memory: &dyn Memory) -> Result<(), String> {
    let kernel = launch.kernel;
    let mut launch = *launch;
    if let Some(required) = kernel.required_cluster {
        launch.cluster = required;
    }
    let wrong = |what: String| Err(format!("kernel {}: {what}", kernel.name));
    let threads = launch.block.iter().map(|n| u64::from(*n)).product::<u64>();
    if threads == 0 || threads > 1024 {
        return wrong(format!("{threads} threads in a block"));
    }
    if kernel.max_threads.is_some_and(|most| threads > u64::from(most)) {
        return wrong(format!("{threads} threads in a block, more than its launch bounds"));
    }
    if launch.parameters.len() < kernel.parameter_bytes {
        return wrong(format!(
            "{} bytes of parameters, {} needed",
            launch.parameters.len(),
            kernel.parameter_bytes
        ));
    }
    if u64::from(kernel.dynamic_shared) + u64::from(launch.shared) > 1 << 20 {
        return wrong("too much shared memory".into());
    }
    let mut clusters = [0; 3];
    for axis in 0..3 {
        let (grid, cluster) = (launch.grid[axis], launch.cluster[axis].max(1));
        launch.cluster[axis] = cluster;
        if grid == 0 || grid % cluster != 0 {
            return wrong(format!("a grid of {:?} blocks in clusters of {:?}", launch.grid, launch.cluster));
        }
        clusters[axis] = grid / cluster;
    }
    let count = clusters.iter().map(|n| u64::from(*n)).product::<u64>();
    let place = |i: u64| {
        let (x, y) = (u64::from(clusters[0]), u64::from(clusters[1]));
        [(i % x) as u32, (i / x % y) as u32, (i / x / y) as u32]
    };
    if kernel.ordered || count == 1 {
        let mut machine = Machine::new(launch, memory);
        (0..count).try_for_each(|i| machine.run(place(i)))
    } else {
        (0..count)
            .into_par_iter()
            .try_for_each_init(|| Machine::new(launch, memory), |machine, i| machine.run(place(i)))
    }
}

/// One cluster's worth of state, used for one cluster after the other.
struct Machine<'a> {
    cluster: Cluster<'a>,
    warps: Vec<Warp<'a>>,
}

impl<'a> Machine<'a> {
    fn new(launch: Launch<'a>, memory: &'a dyn Memory) -> Machine<'a> {
        let blocks = launch.cluster.iter().product::<u32>() as usize;
        let warps = launch.block.iter().product::<u32>().div_ceil(32) as usize;
        Machine {
            cluster: Cluster {
                launch,
                memory,
                blocks: (0..blocks).map(|_| Block::default()).collect(),
                meeting: Meeting::default(),
                told: Default::default(),
                events: 0,
                clock: 0,
            },
            warps: (0..blocks * warps)
                .map(|i| {
                    Warp::new(launch.kernel, i / warps, i % warps, (i, blocks * (warps + warps.div_ceil(4))))
                })
                .collect(),
        }
    }

    fn run(&mut self, place: [u32; 3]) -> Result<(), String> {
        let launch = self.cluster.launch;
        let warps = (self.warps.len() / self.cluster.blocks.len()) as u32;
        // all that was done before is known to all
        let mut now = self.warps.iter().map(|warp| warp.clock.count()).max().unwrap_or(1);
        let forget = now > TOO_FAR;
        if forget {
            now = 1;
        }
        for warp in &mut self.warps {
            warp.clock.begin(now);
        }
        self.cluster.told = Default::default();
        for (rank, block) in self.cluster.blocks.iter_mut().enumerate() {
            let (rank, [x, y, _]) = (rank as u32, launch.cluster);
            let within = [rank % x, rank / x % y, rank / x / y];
            block.index = std::array::from_fn(|axis| place[axis] * launch.cluster[axis] + within[axis]);
            block.shared.reset(SHARED_BASE, launch.kernel.dynamic_shared + launch.shared, forget);
            block.told = Default::default();
            block.told_at.clear();
            block.groups = vec![(Meeting::default(), now + 1); warps.div_ceil(4) as usize];
            block.barriers = Default::default();
            block.live_warps = warps;
            block.hopper = hopper::BlockState::default();
        }
        self.cluster.meeting = Meeting::default();
        for warp in &mut self.warps {
            warp.begin(&self.cluster);
        }
        let (mut idle, mut left) = (0, self.warps.len());
        let started = self.cluster.clock;
        while left > 0 {
            let (mut progress, mut waiting) = (false, false);
            for warp in &mut self.warps {
                if warp.ended() {
                    continue;
                }
                let before = (self.cluster.events, self.cluster.clock);
                let outcome = match warp.run(&mut self.cluster, QUANTUM) {
                    Ok(outcome) => outcome,
                    Err(fault) => return Err(locate(&self.cluster, warp, &fault)),
                };
                match outcome {
                    Outcome::Ended => (progress, left) = (true, left - 1),
                    Outcome::Quantum => progress = true,
                    Outcome::Blocked => progress |= self.cluster.clock != before.1,
                    Outcome::Yielded => {
                        waiting = true;
                        progress |= self.cluster.events != before.0;
                    }
                }
            }
            idle = if progress { 0 } else { idle + 1 };
            if left > 0 && (idle > PATIENCE || idle > 0 && !waiting) {
                return Err(self.stuck("no thread can go on"));
            }
            if self.cluster.clock - started > LIMIT {
                return Err(self.stuck("it does not end"));
            }
        }
        Ok(())
    }

    /// Where everything waits.
    fn stuck(&self, what: &str) -> String {
        let launch = &self.cluster.launch;
        let mut message = format!("kernel {}: {what}", launch.kernel.name);
        for warp in self.warps.iter().filter(|warp| !warp.ended()).take(32) {
            for (line, lanes, why) in warp.waits(launch.kernel) {
                message += &format!(
                    "\n  block {:?}, warp {}, lanes {lanes:#010x}, PTX line {line} `{}`: {why}",
                    self.cluster.blocks[warp.block].index,
                    warp.index,
                    launch.module.line(line)
                );
            }
        }
        message
    }
}

/// An error with its place.
fn locate(cluster: &Cluster<'_>, warp: &Warp<'_>, fault: &Fault) -> String {
    let launch = &cluster.launch;
    let line = warp.line;
    let thread = match fault.lane {
        Some(lane) => {
            let (i, [x, y, _]) = (warp.index as u32 * 32 + lane, launch.block);
            format!("thread {:?}", [i % x, i / x % y, i / x / y])
        }
        None => format!("warp {}", warp.index),
    };
    format!(
        "kernel {}, PTX line {line} `{}`, block {:?}, {thread}: {}",
        launch.kernel.name,
        launch.module.line(line),
        cluster.blocks[warp.block].index,
        fault.message
    )
}

impl Cluster<'_> {
    /// A barrier may now be complete because warps ended.
    fn recheck(&mut self, block: usize) {
        for id in 0..16 {
            if self.blocks[block].barriers[id].arrived > 0 {
                self.complete(block, id);
            }
        }
        self.complete_cluster();
    }

    fn complete(&mut self, block: usize, id: usize) {
        let all = self.blocks[block].live_warps * 32;
        let meeting = &mut self.blocks[block].barriers[id];
        let expected = if meeting.expected == 0 { all } else { meeting.expected };
        if meeting.arrived >= expected {
            *meeting = Meeting {
                generation: meeting.generation + 1,
                result: meeting.counted,
                result_of: meeting.asked,
                ..Meeting::default()
            };
            let told = &mut self.blocks[block].told[id];
            told.1 = std::mem::take(&mut told.0);
            self.events += 1;
        }
    }

    /// A warp of a group has done its part of the products. They are one: none of the group's warps goes on before all
    /// have, so that one of them may speak for all. Whether that was the last.
    fn complete_group(&mut self, block: usize, group: usize) -> bool {
        let warps = self.launch.block.iter().product::<u32>().div_ceil(32);
        let expected = (warps - 4 * group as u32).min(4);
        let (meeting, count) = &mut self.blocks[block].groups[group];
        meeting.arrived += 1;
        if meeting.arrived < expected {
            return false;
        }
        *meeting = Meeting { generation: meeting.generation + 1, ..Meeting::default() };
        *count += 1;
        self.events += 1;
        true
    }

    /// The number of a group of warps, among those of the cluster.
    fn group_number(&self, block: usize, group: usize) -> usize {
        let warps = self.launch.block.iter().product::<u32>().div_ceil(32) as usize;
        self.blocks.len() * warps + block * warps.div_ceil(4) + group
    }

    fn complete_cluster(&mut self) {
        let all = self.blocks.iter().map(|block| block.live_warps).sum::<u32>();
        if self.meeting.arrived >= all && all > 0 {
            self.meeting = Meeting { generation: self.meeting.generation + 1, ..Meeting::default() };
            self.told.1 = std::mem::take(&mut self.told.0);
            self.events += 1;
        }
    }
}
