//! Addresses: which window they lie in, shared memory that knows what was written, and the door to the host's memory.
//!
//! Shared memory keeps a state for every byte: never written, written, or being filled by an asynchronous copy that
//! nobody has waited for. Reading anything but the second is an error, which finds missing waits. Missing barriers are
//! found by [`super::races`].

use std::cell::RefCell;

use super::races::{Clock, Races};
use super::{Cluster, Fault};

/// Generic addresses of shared memory are this and the address within the window of shared memory.
pub const SHARED_WINDOW: u64 = 0x1000_0000_0000_0000;
/// Those of local memory.
pub const LOCAL_WINDOW: u64 = 0x2000_0000_0000_0000;
/// Those of parameters.
pub const PARAMETER_WINDOW: u64 = 0x3000_0000_0000_0000;
/// Which window.
pub const WINDOW_MASK: u64 = 0xf000_0000_0000_0000;
/// The rank of a block of the cluster, plus 1, in an address of shared memory; 0 is the block's own.
pub const RANK_SHIFT: u32 = 24;

/// What is known of a byte of shared memory.
pub const UNWRITTEN: u8 = 0;
/// It was written.
pub const WRITTEN: u8 = 1;
/// An asynchronous copy is filling it.
pub const PENDING: u8 = 2;

/// A block's shared memory; index = address.
#[derive(Debug, Default)]
pub struct Shared {
    bytes: Vec<u8>,
    state: Vec<u8>,
    base: usize,
    races: RefCell<Races>,
}

impl Shared {
    /// Forgets everything; memory reaches from `base` to `end`. Counts of warps begin again if `forget`.
    pub fn reset(&mut self, base: u32, end: u32, forget: bool) {
        self.races.get_mut().begin(end as usize, forget);
        self.base = base as usize;
        self.bytes.clear();
        self.bytes.resize(end as usize, 0xff);
        self.state.clear();
        self.state.resize(end as usize, UNWRITTEN);
    }

    fn range(&self, address: u32, bytes: usize) -> Result<std::ops::Range<usize>, String> {
        let from = address as usize;
        if from < self.base || from + bytes > self.bytes.len() {
            return Err(format!(
                "shared memory is addressed at {address:#x} ({bytes} bytes); it reaches from {:#x} to {:#x}",
                self.base,
                self.bytes.len()
            ));
        }
        Ok(from..from + bytes)
    }

    /// Reads bytes that were written.
    ///
    /// # Errors
    /// They lie outside, or were not.
    #[inline(always)]
    pub fn read(&self, address: u32, to: &mut [u8], clock: &Clock) -> Result<(), String> {
        let range = self.range(address, to.len())?;
        if self.state[range.clone()].iter().any(|state| *state != WRITTEN) {
            return Err(self.unreadable(range));
        }
        self.races.borrow_mut().read(range.start, to.len(), clock)?;
        to.copy_from_slice(&self.bytes[range]);
        Ok(())
    }

    /// Reads `N` bytes that were written.
    ///
    /// # Errors
    /// They lie outside, or were not.
    #[inline(always)]
    pub fn get<const N: usize>(&self, address: u32, clock: &Clock) -> Result<[u8; N], String> {
        let range = self.range(address, N)?;
        if self.state[range.clone()] != [WRITTEN; N] {
            return Err(self.unreadable(range));
        }
        self.races.borrow_mut().read(range.start, N, clock)?;
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.bytes[range]);
        Ok(bytes)
    }

    /// Writes `N` bytes.
    ///
    /// # Errors
    /// They lie outside, or a copy is filling them.
    #[inline(always)]
    pub fn put<const N: usize>(&mut self, address: u32, from: &[u8; N], clock: &Clock) -> Result<(), String> {
        let range = self.range(address, N)?;
        let mut state = [0; N];
        state.copy_from_slice(&self.state[range.clone()]);
        if state.iter().fold(0, |all, state| all | state) & PENDING != 0 {
            return Err(format!(
                "shared memory at {address:#x} is written while an asynchronous copy is filling it"
            ));
        }
        // who writes what is there changes nothing for anybody
        if self.bytes[range.clone()] != *from || state != [WRITTEN; N] {
            self.races.get_mut().write(range.start, N, clock)?;
        }
        self.state[range.clone()].copy_from_slice(&[WRITTEN; N]);
        self.bytes[range].copy_from_slice(from);
        Ok(())
    }

    /// The bytes themselves, if all were written; without a clock if they are what brings order.
    ///
    /// # Errors
    /// They lie outside, or were not.
    pub fn view(&self, address: u32, bytes: usize, clock: Option<&Clock>) -> Result<&[u8], String> {
        let range = self.range(address, bytes)?;
        if self.state[range.clone()].iter().any(|state| *state != WRITTEN) {
            return Err(self.unreadable(range));
        }
        if let Some(clock) = clock {
            self.races.borrow_mut().read(range.start, bytes, clock)?;
        }
        Ok(&self.bytes[range])
    }

    #[cold]
    fn unreadable(&self, range: std::ops::Range<usize>) -> String {
        let at = range.clone().find(|at| self.state[*at] != WRITTEN).unwrap_or(range.start);
        match self.state[at] {
            PENDING => format!("shared memory at {at:#x} is read while an asynchronous copy is filling it"),
            _ => format!("shared memory at {at:#x} is read and was never written"),
        }
    }

    /// Writes bytes; without a clock if they are what brings order.
    ///
    /// # Errors
    /// They lie outside, or a copy is filling them.
    pub fn write(&mut self, address: u32, from: &[u8], clock: Option<&Clock>) -> Result<(), String> {
        let range = self.range(address, from.len())?;
        if self.state[range.clone()].contains(&PENDING) {
            return Err(format!(
                "shared memory at {address:#x} is written while an asynchronous copy is filling it"
            ));
        }
        match clock {
            Some(clock) => self.races.get_mut().write(range.start, from.len(), clock)?,
            None => self.races.get_mut().forget(range.start, from.len()),
        }
        self.state[range.clone()].fill(WRITTEN);
        self.bytes[range].copy_from_slice(from);
        Ok(())
    }

    /// An asynchronous copy begins to fill bytes: nobody may touch them until [`Shared::deliver`].
    ///
    /// # Errors
    /// They lie outside, or another copy is filling them.
    pub fn begin(&mut self, address: u32, bytes: usize, clock: &Clock) -> Result<(), String> {
        let range = self.range(address, bytes)?;
        if self.state[range.clone()].contains(&PENDING) {
            return Err(format!("two asynchronous copies fill shared memory at {address:#x}"));
        }
        self.races.get_mut().write(range.start, bytes, clock)?;
        self.state[range].fill(PENDING);
        Ok(())
    }

    /// An asynchronous copy ends: by the warp of the clock, or where everybody who waits for it sees it.
    ///
    /// # Errors
    /// They lie outside.
    pub fn deliver(&mut self, address: u32, from: &[u8], clock: Option<&Clock>) -> Result<(), String> {
        let range = self.range(address, from.len())?;
        self.races.get_mut().forget(range.start, from.len());
        if let Some(clock) = clock {
            self.races.get_mut().write(range.start, from.len(), clock)?;
        }
        self.state[range.clone()].fill(WRITTEN);
        self.bytes[range].copy_from_slice(from);
        Ok(())
    }

    /// Its size, from address 0.
    pub fn end(&self) -> u32 {
        self.bytes.len() as u32
    }
}

/// Reads the host's memory.
///
/// # Errors
/// The kernel may not.
#[allow(unsafe_code)]
pub fn read_host(cluster: &Cluster<'_>, address: u64, to: &mut [u8]) -> Result<(), String> {
    check(cluster, address, to.len(), false)?;
    // SAFETY: `check` found these bytes within an allocation that lives as long as the launch.
    unsafe { std::ptr::copy_nonoverlapping(address as *const u8, to.as_mut_ptr(), to.len()) };
    Ok(())
}

/// Writes the host's memory.
///
/// # Errors
/// The kernel may not.
#[allow(unsafe_code)]
pub fn write_host(cluster: &Cluster<'_>, address: u64, from: &[u8]) -> Result<(), String> {
    check(cluster, address, from.len(), true)?;
    // SAFETY: as above, and the allocation may be written. Blocks that run at the same time are those of kernels that
    // do not communicate, so that two of them write the same bytes only in a kernel that is wrong on a GPU too.
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), address as *mut u8, from.len()) };
    Ok(())
}

/// Whether the kernel may access these bytes.
///
/// # Errors
/// It may not.
pub fn check(cluster: &Cluster<'_>, address: u64, bytes: usize, write: bool) -> Result<(), String> {
    match cluster.memory.check(address, bytes, write) {
        Ok(()) => Ok(()),
        Err(_) if cluster.launch.module.holds(address, bytes) => Ok(()),
        Err(message) => Err(message),
    }
}

/// Reads without a check.
///
/// # Safety
/// [`check`] allowed these bytes.
#[inline(always)]
#[allow(unsafe_code)]
pub(super) unsafe fn read_checked(address: u64, to: &mut [u8]) {
    let to_pointer = to.as_mut_ptr();
    // SAFETY: by the caller's promise. One size a branch, so that each is a plain move.
    unsafe {
        match to.len() {
            1 => *to_pointer = *(address as *const u8),
            2 => to_pointer.cast::<u16>().write_unaligned((address as *const u16).read_unaligned()),
            4 => to_pointer.cast::<u32>().write_unaligned((address as *const u32).read_unaligned()),
            8 => to_pointer.cast::<u64>().write_unaligned((address as *const u64).read_unaligned()),
            16 => to_pointer.cast::<u128>().write_unaligned((address as *const u128).read_unaligned()),
            n => std::ptr::copy_nonoverlapping(address as *const u8, to_pointer, n),
        }
    }
}

/// Writes without a check.
///
/// # Safety
/// [`check`] allowed these bytes to be written.
#[inline(always)]
#[allow(unsafe_code)]
pub(super) unsafe fn write_checked(address: u64, from: &[u8]) {
    // SAFETY: by the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), address as *mut u8, from.len()) }
}

impl Cluster<'_> {
    /// The shared memory that an address of a block's window means, and the address in it.
    ///
    /// # Errors
    /// No block of the cluster has that rank.
    #[inline(always)]
    pub fn shared(&mut self, block: usize, address: u32) -> Result<(&mut Shared, u32), Fault> {
        let (rank, at) = self.place(block, address)?;
        Ok((&mut self.blocks[rank].shared, at))
    }

    /// The rank of the block that such an address is in, and the address in it.
    ///
    /// # Errors
    /// No block of the cluster has that rank.
    #[inline(always)]
    pub fn place(&self, block: usize, address: u32) -> Result<(usize, u32), Fault> {
        let rank = address >> RANK_SHIFT;
        let at = if rank == 0 { block } else { rank as usize - 1 };
        if at >= self.blocks.len() {
            return Err(Fault::from(format!("{address:#x} is no address of shared memory")));
        }
        Ok((at, address & ((1 << RANK_SHIFT) - 1)))
    }
}

/// Reads parameters.
///
/// # Errors
/// They lie outside.
pub fn read_parameters(parameters: &[u8], address: u32, to: &mut [u8]) -> Result<(), String> {
    let from = address as usize;
    let bytes =
        parameters.get(from..from + to.len()).ok_or_else(|| format!("parameters have no byte {from}"))?;
    to.copy_from_slice(bytes);
    Ok(())
}
