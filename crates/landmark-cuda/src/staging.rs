//! Small writes, gathered in pinned memory and applied by one kernel; and reads, which come by pinned memory too.
//!
//! A step of decoding writes a handful of tensors of a few bytes each. As copies they would cost several microseconds
//! each; here they wait in pinned memory until the next run or read, and one launch stores all of them. Segments are
//! used in turn, and each is used again only after its kernel has read it.

use crate::driver::{Buffer, Device, Event, Launch, Pinned};
use landmark_core::Result;
use std::sync::Arc;

/// The largest write that is gathered; larger ones are copies.
pub(crate) const LARGEST: usize = 16 << 10;
const SEGMENTS: usize = 8;
const SEGMENT: usize = 128 << 10;
/// Writes of a segment, at most.
const ENTRIES: usize = 512;
/// Bytes of an entry: address, offset, length. `struct Write` of `kernels/apply_writes.cu`.
const ENTRY: usize = 16;
/// Bytes of reads that come by pinned memory: the logits of a batch. (By the driver's own, a vocabulary of 50,304 took
/// longer to arrive than a layer to compute.)
const BACK: usize = 4 << 20;

#[derive(Debug)]
struct Entry {
    address: u64,
    offset: u32,
    bytes: u32,
}

/// Writes that wait.
#[derive(Debug)]
pub(crate) struct Staging {
    memory: Pinned,
    passed: Vec<Event>,
    /// Flushes since the device was last waited for.
    in_flight: usize,
    segment: usize,
    used: usize,
    entries: Vec<Entry>,
    /// What is written to, kept until the writes are launched: its owner may give it up before.
    targets: Vec<Arc<Buffer>>,
    /// `apply_writes`, its arguments still to be set.
    apply: Launch,
    /// Where reads arrive.
    back: Pinned,
}

impl Staging {
    pub(crate) fn new(device: &Arc<Device>, apply: Launch) -> Result<Staging> {
        let memory = Pinned::new(device, SEGMENTS * SEGMENT, "inputs on their way to the device")?;
        let back = Pinned::new(device, BACK, "results on their way from the device")?;
        let passed = (0..SEGMENTS).map(|_| Event::new()).collect::<Result<_>>()?;
        let entries = Vec::with_capacity(ENTRIES);
        Ok(Staging {
            memory,
            passed,
            in_flight: 0,
            segment: 0,
            used: ENTRIES * ENTRY,
            entries,
            targets: Vec::new(),
            apply,
            back,
        })
    }

    /// Takes a write of at most [`LARGEST`] bytes, into `target`.
    pub(crate) fn push(
        &mut self,
        device: &Device,
        target: &Arc<Buffer>,
        address: u64,
        bytes: &[u8],
    ) -> Result<()> {
        let end = address + bytes.len() as u64;
        let overlaps = |e: &Entry| e.address < end && address < e.address + u64::from(e.bytes);
        let is_full = self.used + bytes.len() > SEGMENT || self.entries.len() == ENTRIES;
        // Entries are stored in no order, so no two may touch.
        if is_full || self.entries.iter().any(overlaps) {
            self.flush(device)?;
        }
        let start = self.segment * SEGMENT + self.used;
        self.memory.slice_mut()[start..start + bytes.len()].copy_from_slice(bytes);
        if self.targets.last().is_none_or(|last| !Arc::ptr_eq(last, target)) {
            self.targets.push(target.clone());
        }
        self.entries.push(Entry { address, offset: self.used as u32, bytes: bytes.len() as u32 });
        self.used = (self.used + bytes.len()).next_multiple_of(16);
        Ok(())
    }

    /// Copies from the device, after everything launched so far, and waits.
    pub(crate) fn download(&mut self, device: &Device, address: u64, to: &mut [u8]) -> Result<()> {
        self.in_flight = 0;
        if to.len() > BACK {
            return device.download(address, to);
        }
        let from = &mut self.back.slice_mut()[..to.len()];
        device.download(address, from)?;
        to.copy_from_slice(from);
        Ok(())
    }

    /// Launches what waits.
    pub(crate) fn flush(&mut self, device: &Device) -> Result<()> {
        if self.entries.is_empty() {
            return Ok(());
        }
        let base = self.segment * SEGMENT;
        let table = &mut self.memory.slice_mut()[base..base + ENTRIES * ENTRY];
        for (entry, to) in self.entries.iter().zip(table.chunks_exact_mut(ENTRY)) {
            to[..8].copy_from_slice(&entry.address.to_le_bytes());
            to[8..12].copy_from_slice(&entry.offset.to_le_bytes());
            to[12..].copy_from_slice(&entry.bytes.to_le_bytes());
        }
        self.apply.grid = [self.entries.len() as u32, 1, 1];
        self.apply.args = vec![(self.memory.address + base as u64).into()];
        self.apply.issue(device)?;
        self.passed[self.segment].record(device)?;
        self.in_flight += 1;
        self.entries.clear();
        self.targets.clear();
        self.segment = (self.segment + 1) % SEGMENTS;
        self.used = ENTRIES * ENTRY;
        // A step of generation is waited for before the next: nothing is in flight then.
        if self.in_flight < SEGMENTS { Ok(()) } else { self.passed[self.segment].wait() }
    }
}
