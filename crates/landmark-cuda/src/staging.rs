//! Small writes, gathered in pinned memory and applied by one kernel; and reads, which come by pinned memory too.
//!
//! A step of decoding writes a handful of tensors of a few bytes each. As copies they would cost several microseconds
//! each; here they wait in pinned memory until the next run or read, and one launch stores all of them. Segments are
//! used in turn, and each is used again only after its kernel has read it. Small reads that nobody waits for yet go along.

use crate::driver::{Buffer, Device, Event, Launch, Pinned};
use landmark_core::Result;
use std::sync::Arc;

/// The largest write or read that is gathered; larger ones are copies.
pub(crate) const LARGEST: usize = 16 << 10;
const SEGMENTS: usize = 8;
const SEGMENT: usize = 128 << 10;
/// Entries of a segment, at most.
const ENTRIES: usize = 512;
/// Bytes of an entry. `struct Copy` of `kernels/apply_copies.cu`.
const ENTRY: usize = 24;
/// Bytes of reads that come by pinned memory: the logits of a batch. (By the driver's own, a vocabulary of 50,304 took
/// longer to arrive than a layer to compute.)
const BACK: usize = 4 << 20;

#[derive(Debug)]
struct Entry {
    from: u64,
    to: u64,
    bytes: u64,
    /// The one of both addresses that is not pinned memory.
    address: u64,
}

/// Where a read arrives that nobody waits for yet.
#[derive(Debug)]
pub(crate) struct Arrival {
    memory: Pinned,
    /// When it was launched: it has arrived.
    passed: Event,
}

impl Arrival {
    /// Waits for the bytes, once everything that waited has been launched.
    pub(crate) fn wait(&self, bytes: usize) -> Result<Vec<u8>> {
        self.passed.wait()?;
        Ok(self.memory.slice()[..bytes].to_vec())
    }
}

/// Copies that wait.
#[derive(Debug)]
pub(crate) struct Staging {
    memory: Pinned,
    passed: Vec<Event>,
    /// Flushes since the device was last waited for.
    in_flight: usize,
    segment: usize,
    used: usize,
    entries: Vec<Entry>,
    /// What is written or read, kept until the copies are launched: its owner may give it up before.
    buffers: Vec<Arc<Buffer>>,
    /// Reads among the entries.
    arriving: Vec<Arc<Arrival>>,
    /// All places where reads arrive. One that nobody else holds is free.
    arrivals: Vec<Arc<Arrival>>,
    /// `apply_copies`, its arguments still to be set.
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
            buffers: Vec::new(),
            arriving: Vec::new(),
            arrivals: Vec::new(),
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
        if self.used + bytes.len() > SEGMENT {
            self.flush(device)?;
        }
        self.make_way(device, address, bytes.len())?;
        let start = self.segment * SEGMENT + self.used;
        self.memory.slice_mut()[start..start + bytes.len()].copy_from_slice(bytes);
        let from = self.memory.address + start as u64;
        self.enter(target, Entry { from, to: address, bytes: bytes.len() as u64, address });
        self.used = (self.used + bytes.len()).next_multiple_of(16);
        Ok(())
    }

    /// Takes a read of at most [`LARGEST`] bytes of `source`, to be launched with what waits.
    pub(crate) fn pull(
        &mut self,
        device: &Arc<Device>,
        source: &Arc<Buffer>,
        address: u64,
        bytes: usize,
    ) -> Result<Arc<Arrival>> {
        self.make_way(device, address, bytes)?;
        let free = self.arrivals.iter().find(|arrival| Arc::strong_count(arrival) == 1).cloned();
        let arrival = match free {
            Some(arrival) => arrival,
            None => {
                let memory = Pinned::new(device, LARGEST, "results on their way from the device")?;
                let made = Arc::new(Arrival { memory, passed: Event::new()? });
                self.arrivals.push(made.clone());
                made
            }
        };
        let to = arrival.memory.address;
        self.enter(source, Entry { from: address, to, bytes: bytes as u64, address });
        self.arriving.push(arrival.clone());
        Ok(arrival)
    }

    /// Launches what waits if it leaves no room for one more, or touches this memory: entries are copied in no order.
    fn make_way(&mut self, device: &Device, address: u64, bytes: usize) -> Result<()> {
        let end = address + bytes as u64;
        let overlaps = |e: &Entry| e.address < end && address < e.address + e.bytes;
        if self.entries.len() == ENTRIES || self.entries.iter().any(overlaps) {
            self.flush(device)
        } else {
            Ok(())
        }
    }

    fn enter(&mut self, buffer: &Arc<Buffer>, entry: Entry) {
        if self.buffers.last().is_none_or(|last| !Arc::ptr_eq(last, buffer)) {
            self.buffers.push(buffer.clone());
        }
        self.entries.push(entry);
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
            to[..8].copy_from_slice(&entry.from.to_le_bytes());
            to[8..16].copy_from_slice(&entry.to.to_le_bytes());
            to[16..].copy_from_slice(&entry.bytes.to_le_bytes());
        }
        self.apply.grid = [self.entries.len() as u32, 1, 1];
        self.apply.args = vec![(self.memory.address + base as u64).into()];
        self.apply.issue(device)?;
        self.passed[self.segment].record(device)?;
        for arrival in self.arriving.drain(..) {
            arrival.passed.record(device)?;
        }
        self.in_flight += 1;
        self.entries.clear();
        self.buffers.clear();
        self.segment = (self.segment + 1) % SEGMENTS;
        self.used = ENTRIES * ENTRY;
        // Where every step is waited for before the next, nothing is in flight.
        if self.in_flight < SEGMENTS { Ok(()) } else { self.passed[self.segment].wait() }
    }
}
