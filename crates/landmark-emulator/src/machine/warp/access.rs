//! Loads, stores, atomic operations and asynchronous copies of a warp.
//!
//! The lanes of a warp mostly access one allocation: the range from the lowest to the highest address is looked up
//! first, and every lane by itself only if that fails.

use super::super::alu::R64;
use super::super::float;
use super::super::memory::{
    LOCAL_WINDOW, PARAMETER_WINDOW, SHARED_WINDOW, WINDOW_MASK, check, read_checked, read_host,
    read_parameters, write_checked, write_host,
};
use super::super::races::Clock;
use super::super::{Cluster, Fault};
use super::{Copying, Warp, lanes};
use crate::ptx::LOCAL_BASE;
use crate::ptx::instruction::{Atomic, Instruction, NONE, Round, Space, Type};

impl Warp<'_> {
    #[inline(always)]
    pub(super) fn addresses(&self, row: u32, wide: bool, offset: i32) -> R64 {
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

    pub(super) fn cvta(
        &mut self,
        i: &Instruction,
        mask: u32,
        space: Space,
        to: bool,
        wide: bool,
    ) -> Result<(), Fault> {
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
    pub(super) fn host(
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
    pub(super) fn host_each(
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
    pub(super) fn aligned<const N: usize>(addresses: &R64, mask: u32) -> Result<(), Fault> {
        for lane in lanes(mask) {
            if !addresses[lane].is_multiple_of(N as u64) {
                let message = format!("{:#x} is not a multiple of {N}", addresses[lane]);
                return Err(Fault::from(message).lane(lane));
            }
        }
        Ok(())
    }

    #[inline(always)]
    #[allow(unsafe_code)]
    pub(super) fn load<const N: usize>(
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
    pub(super) fn spread<const N: usize>(
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
    pub(super) fn store<const N: usize>(
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

    pub(super) fn local(&self, address: u32, bytes: usize, lane: usize) -> Result<usize, Fault> {
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
    pub(super) fn read(
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
    pub(super) fn write(
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

    pub(super) fn atomic(
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
            if !address.is_multiple_of(size as u64) {
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

    pub(super) fn copy(
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
            if !(to as usize).is_multiple_of(length) || !(from as usize).is_multiple_of(length) {
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
    pub(super) fn wait_copies(
        &mut self,
        cluster: &mut Cluster<'_>,
        mask: u32,
        but: Option<u32>,
    ) -> Result<(), Fault> {
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
pub(super) fn atomic(op: Atomic, ty: Type, old: u64, b: u64, c: u64) -> Option<u64> {
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
            u64::from(float::float_half(add, ty, mode, &[old as u32; 32], &[b as u32; 32], &[0; 32])[0])
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
