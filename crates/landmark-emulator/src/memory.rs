//! What is allocated: device memory, pinned memory, registered memory of the host.
//!
//! An address of the device is an address of the host, so that kernels, copies and matrix products need no
//! translation; a table says which ranges may be touched. Fresh device memory holds the byte 0xFF, which is a NaN in
//! every floating type and -1 in every integer one: who reads what nobody wrote will see it. A gap after every
//! allocation keeps an access beyond its end from landing in the next.
#![allow(unsafe_code)] // The allocator's functions; the table remembers the layout of each.

use crate::machine::Memory;
use std::alloc::Layout;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};

/// Bytes of the device's memory.
pub const CAPACITY: u64 = 8 << 30;

/// Bytes after an allocation that belong to nobody.
const GAP: usize = 4096;

/// Alignment of an allocation, as the driver promises at least.
const ALIGNMENT: usize = 512;

/// What a range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Memory of the device.
    Device,
    /// Pinned memory of the host.
    Pinned,
    /// Memory of the caller, made known to the device.
    Registered,
}

#[derive(Clone, Copy, Debug)]
struct Range {
    bytes: u64,
    kind: Kind,
}

#[derive(Debug, Default)]
struct Table {
    /// By first address.
    ranges: BTreeMap<u64, Range>,
    /// Bytes of kind [`Kind::Device`].
    used: u64,
}

static TABLE: RwLock<Table> = RwLock::new(Table { ranges: BTreeMap::new(), used: 0 });

fn layout(bytes: u64) -> Option<Layout> {
    Layout::from_size_align(usize::try_from(bytes).ok()?.checked_add(GAP)?, ALIGNMENT).ok()
}

/// Free bytes of the device.
pub fn free_bytes() -> u64 {
    CAPACITY - TABLE.read().unwrap_or_else(PoisonError::into_inner).used
}

/// Allocates; none when there is not enough.
pub fn allocate(bytes: u64, kind: Kind) -> Option<u64> {
    let mut table = TABLE.write().unwrap_or_else(PoisonError::into_inner);
    if bytes == 0 || (kind == Kind::Device && table.used.checked_add(bytes)? > CAPACITY) {
        return None;
    }
    let layout = layout(bytes)?;
    // SAFETY: the layout has a size; it is filled before anybody sees it.
    let address = unsafe {
        let at = std::alloc::alloc(layout);
        if at.is_null() {
            return None;
        }
        std::ptr::write_bytes(at, 0xFF, layout.size());
        at as u64
    };
    if kind == Kind::Device {
        table.used += bytes;
    }
    table.ranges.insert(address, Range { bytes, kind });
    Some(address)
}

/// Frees what [`allocate`] gave for this kind. False where there is no such allocation.
pub fn free(address: u64, kind: Kind) -> bool {
    let mut table = TABLE.write().unwrap_or_else(PoisonError::into_inner);
    let Some(&range) = table.ranges.get(&address) else { return false };
    let Some(layout) = layout(range.bytes) else { return false };
    if range.kind != kind || kind == Kind::Registered {
        return false;
    }
    table.ranges.remove(&address);
    if kind == Kind::Device {
        table.used -= range.bytes;
    }
    // SAFETY: allocated with this layout, and out of the table, so never freed again.
    unsafe { std::alloc::dealloc(address as *mut u8, layout) };
    true
}

/// Makes memory of the caller known to the device. False where it overlaps what is known.
pub fn register(address: u64, bytes: u64) -> bool {
    let mut table = TABLE.write().unwrap_or_else(PoisonError::into_inner);
    let Some(end) = address.checked_add(bytes) else { return false };
    let before = table.ranges.range(..end).next_back();
    if bytes == 0 || address == 0 || before.is_some_and(|(&at, range)| at + range.bytes > address) {
        return false;
    }
    table.ranges.insert(address, Range { bytes, kind: Kind::Registered });
    true
}

/// Ends what [`register`] began.
pub fn unregister(address: u64) -> bool {
    let mut table = TABLE.write().unwrap_or_else(PoisonError::into_inner);
    let known = table.ranges.get(&address).is_some_and(|range| range.kind == Kind::Registered);
    known && table.ranges.remove(&address).is_some()
}

/// The ranges at one moment, for the time of a launch: asked at every access, so without a lock.
#[derive(Debug)]
pub struct Snapshot {
    /// First address and the one after the last, in order.
    ranges: Vec<(u64, u64)>,
    /// Where the last answer was.
    last: AtomicUsize,
}

/// The ranges as they are now.
pub fn snapshot() -> Snapshot {
    let table = TABLE.read().unwrap_or_else(PoisonError::into_inner);
    let ranges = table.ranges.iter().map(|(&at, range)| (at, at + range.bytes)).collect();
    Snapshot { ranges, last: AtomicUsize::new(0) }
}

impl Snapshot {
    fn explain(&self, address: u64, bytes: usize) -> String {
        let after = self.ranges.partition_point(|range| range.0 <= address);
        let nearest = after.checked_sub(1).and_then(|i| self.ranges.get(i));
        match nearest {
            Some(&(from, to)) if address < to => {
                let over = address + bytes as u64 - to;
                format!(
                    "{bytes} bytes at {address:#x} end {over} beyond an allocation of {} bytes",
                    to - from
                )
            }
            Some(&(from, to)) => format!(
                "{bytes} bytes at {address:#x} are in no allocation; the one before has {} bytes and ends {} earlier",
                to - from,
                address - to
            ),
            None => format!("{bytes} bytes at {address:#x} are in no allocation"),
        }
    }
}

impl Memory for Snapshot {
    #[inline]
    fn check(&self, address: u64, bytes: usize, _write: bool) -> Result<(), String> {
        let end = address.wrapping_add(bytes as u64);
        let inside = |range: &(u64, u64)| range.0 <= address && end <= range.1 && address <= end;
        let last = self.last.load(Ordering::Relaxed);
        if self.ranges.get(last).is_some_and(inside) {
            return Ok(());
        }
        let at = self.ranges.partition_point(|range| range.0 <= address).wrapping_sub(1);
        if self.ranges.get(at).is_some_and(inside) {
            self.last.store(at, Ordering::Relaxed);
            return Ok(());
        }
        Err(self.explain(address, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_ends_where_it_ends() {
        let at = allocate(1000, Kind::Device).expect("memory");
        let other = allocate(1000, Kind::Pinned).expect("memory");
        let memory = snapshot();
        assert!(memory.check(at, 1000, true).is_ok());
        assert!(memory.check(at + 996, 4, false).is_ok());
        assert!(memory.check(at + 997, 4, false).unwrap_err().contains("1 beyond"));
        assert!(memory.check(at + 1000, 1, false).is_err());
        assert!(memory.check(other, 1, false).is_ok());
        assert!(memory.check(0, 4, false).is_err());
        assert!(memory.check(u64::MAX - 1, 4, false).is_err());
        assert!(!free(at, Kind::Pinned) && free(at, Kind::Device) && !free(at, Kind::Device));
        assert!(snapshot().check(at, 4, false).is_err());
        assert!(free(other, Kind::Pinned));
    }

    #[test]
    fn there_is_no_more_than_there_is() {
        assert!(allocate(CAPACITY + 1, Kind::Device).is_none());
        assert!(allocate(u64::MAX, Kind::Pinned).is_none());
    }

    #[test]
    fn memory_of_the_caller_is_known_while_it_is_registered() {
        let bytes = [0_u8; 64];
        let at = bytes.as_ptr() as u64;
        assert!(snapshot().check(at, 64, false).is_err());
        assert!(register(at, 64) && !register(at + 10, 4));
        assert!(snapshot().check(at, 64, false).is_ok());
        assert!(unregister(at) && !unregister(at));
    }
}
