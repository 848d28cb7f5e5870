//! What Hopper's instructions see of the machine.

use super::hopper::{BlockState, Context, WarpState};
use super::memory::{PARAMETER_WINDOW, SHARED_WINDOW, WINDOW_MASK, read_host, read_parameters, write_host};
use super::races::Clock;
use super::warp::Warp;
use super::{Cluster, Fault};

/// Bytes of an `mbarrier`: nothing else of Hopper's accesses so few.
const BARRIER: usize = 8;

/// A warp at an instruction.
pub(super) struct View<'v, 'a, 'c> {
    pub(super) warp: &'v mut Warp<'a>,
    pub(super) cluster: &'v mut Cluster<'c>,
    pub(super) mask: u32,
    /// Who reads, if it is the warp's group.
    pub(super) together: Option<Clock>,
}

fn message(fault: Fault) -> String {
    fault.message
}

impl Context for View<'_, '_, '_> {
    fn mask(&self) -> u32 {
        self.mask
    }

    fn list(&self, at: u32) -> u32 {
        self.warp.list[at as usize]
    }

    fn row32(&self, row: u32) -> &[u32; 32] {
        &self.warp.r32[row as usize]
    }

    fn row32_mut(&mut self, row: u32) -> &mut [u32; 32] {
        &mut self.warp.r32[row as usize]
    }

    fn row64(&self, row: u32) -> &[u64; 32] {
        &self.warp.r64[row as usize]
    }

    fn row64_mut(&mut self, row: u32) -> &mut [u64; 32] {
        &mut self.warp.r64[row as usize]
    }

    fn predicate(&self, row: u32) -> u32 {
        self.warp.predicates[row as usize]
    }

    fn set_predicate(&mut self, row: u32, bits: u32) {
        let to = &mut self.warp.predicates[row as usize];
        *to = *to & !self.mask | bits & self.mask;
    }

    fn shared(&self, at: u32, bytes: usize) -> Result<&[u8], String> {
        let (rank, at) = self.cluster.place(self.warp.block, at).map_err(message)?;
        let clock = (bytes != BARRIER).then_some(self.together.as_ref().unwrap_or(&self.warp.clock));
        self.cluster.blocks[rank].shared.view(at, bytes, clock)
    }

    fn write_shared(&mut self, at: u32, bytes: &[u8]) -> Result<(), String> {
        let (shared, at) = self.cluster.shared(self.warp.block, at).map_err(message)?;
        shared.write(at, bytes, (bytes.len() != BARRIER).then_some(&self.warp.clock))
    }

    fn begin_shared(&mut self, at: u32, bytes: usize) -> Result<(), String> {
        let (shared, at) = self.cluster.shared(self.warp.block, at).map_err(message)?;
        shared.begin(at, bytes, &self.warp.clock)
    }

    fn deliver_shared(&mut self, at: u32, bytes: &[u8]) -> Result<(), String> {
        let (shared, at) = self.cluster.shared(self.warp.block, at).map_err(message)?;
        shared.deliver(at, bytes, None)
    }

    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), String> {
        match at & WINDOW_MASK {
            0 => read_host(self.cluster, at, into),
            SHARED_WINDOW => {
                into.copy_from_slice(self.shared(at as u32, into.len())?);
                Ok(())
            }
            PARAMETER_WINDOW => read_parameters(self.cluster.launch.parameters, at as u32, into),
            _ => Err(format!("{at:#x} is no address that could be read here")),
        }
    }

    fn write(&mut self, at: u64, from: &[u8]) -> Result<(), String> {
        write_host(self.cluster, at, from)
    }

    fn warp_state(&mut self) -> &mut WarpState {
        &mut self.warp.hopper
    }

    fn block_state(&mut self) -> &mut BlockState {
        &mut self.cluster.blocks[self.warp.block].hopper
    }

    fn copies(&self, row: u32) -> &[u32] {
        self.warp.copies_of(row)
    }

    fn warp_index(&self) -> u32 {
        self.warp.index as u32
    }
}
