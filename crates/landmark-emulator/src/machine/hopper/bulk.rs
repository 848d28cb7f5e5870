//! `cp.async.bulk`: copies by the engine of the multiprocessor, plain and of boxes out of a tensor.
//!
//! A load is kept with its barrier until somebody tests that barrier; a store is kept with its thread's group until the
//! thread waits for the group, and reads shared memory only then.

use super::{Context, Place, Reduce, barrier, lanes};
use crate::tensor_map::{Swizzle, TensorMap, WORDS};

/// What is moved, resolved: pieces of a run of bytes here and there.
#[derive(Clone, Debug)]
struct Transfer {
    /// Offset from the start in shared memory before the permutation, global address, bytes.
    pieces: Vec<(u32, u64, usize)>,
    /// Where it starts in shared memory.
    shared: u32,
    /// Bytes there, gaps included.
    extent: usize,
    swizzle: Swizzle,
    /// Bytes that the barrier counts.
    counted: usize,
    /// Every byte of what lies outside of the tensor.
    fill: u8,
}

/// A load under way.
#[derive(Clone, Debug)]
pub struct Load {
    transfer: Transfer,
    barrier: u32,
    /// Its line in the text.
    pub line: u32,
}

#[derive(Clone, Debug)]
struct Store {
    transfer: Transfer,
    reduce: Option<Reduce>,
    line: u32,
}

/// Stores of one thread: groups, and those that are in none yet.
#[derive(Clone, Debug, Default)]
pub struct Stores {
    open: Vec<Store>,
    groups: Vec<Vec<Store>>,
}

impl Stores {
    /// The line of one that is under way.
    pub fn pending(&self) -> Option<u32> {
        self.groups.iter().flatten().chain(&self.open).map(|store| store.line).next()
    }
}

/// The pieces of a box at these coordinates, and bytes of its extent in shared memory.
fn pieces(map: &TensorMap, coordinates: &[i32]) -> (Vec<(u32, u64, usize)>, usize) {
    let row = map.box_[0] as usize * map.element;
    let pitch = if map.swizzle == Swizzle::None { row } else { map.swizzle.span() };
    let rows: usize = map.box_[1..].iter().map(|&n| n as usize).product();
    let at = |dimension: usize| i64::from(coordinates.get(dimension).copied().unwrap_or(0));
    let clip = |dimension: usize, from: i64, n: i64| {
        let extent = map.extents[dimension] as i64;
        (from.clamp(0, extent), (from + n).clamp(0, extent))
    };
    let (first, last) = clip(0, at(0), i64::from(map.box_[0]));
    let mut found = Vec::new();
    for index in 0..rows {
        let (mut rest, mut address, mut inside) = (index, map.address, first < last);
        for dimension in 1..5 {
            let here = at(dimension) + (rest % map.box_[dimension] as usize) as i64;
            rest /= map.box_[dimension] as usize;
            inside &= (0..map.extents[dimension] as i64).contains(&here);
            address = address.wrapping_add((here as u64).wrapping_mul(map.strides[dimension]));
        }
        if inside {
            let skipped = (first - at(0)) as usize * map.element;
            let address = address + first as u64 * map.element as u64;
            let bytes = (last - first) as usize * map.element;
            found.push(((index * pitch + skipped) as u32, address, bytes));
        }
    }
    (found, rows * pitch)
}

/// Reads the map and the coordinates of a lane.
fn tensor(
    context: &dyn Context,
    map: Place,
    shared: u32,
    coordinates: u32,
    rank: usize,
    lane: usize,
) -> Result<Transfer, String> {
    let mut bytes = [0; 8 * WORDS];
    let address = map.raw(context, lane);
    if !address.is_multiple_of(64) {
        return Err(format!("a tensor map at {address:#x}, no multiple of 64"));
    }
    context.read(address, &mut bytes).map_err(|why| format!("the tensor map: {why}"))?;
    let mut words = [0; WORDS];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = chunk.first_chunk().map_or(0, |chunk| u64::from_le_bytes(*chunk));
    }
    let map = TensorMap::decode(&words)?;
    if map.rank != rank {
        return Err(format!("{rank} coordinates for a tensor map of {} dimensions", map.rank));
    }
    let row = map.box_[0] as usize * map.element;
    if map.swizzle != Swizzle::None && row != map.swizzle.span() {
        return Err(format!(
            "a box of {row} bytes a row, swizzled over {}: not emulated",
            map.swizzle.span()
        ));
    }
    if !shared.is_multiple_of(128) {
        return Err(format!("a tensor's box at {shared:#x} of shared memory, no multiple of 128"));
    }
    let at: Vec<i32> =
        (0..rank as u32).map(|i| context.row32(context.list(coordinates + i))[lane] as i32).collect();
    let (pieces, extent) = pieces(&map, &at);
    // Not a number in bf16, f16 and f32, as the driver's manual has it: all ones.
    let fill = if map.nan { 0xff } else { 0 };
    Ok(Transfer { pieces, shared, extent, swizzle: map.swizzle, counted: map.box_bytes(), fill })
}

/// A run of bytes.
fn plain(shared: u32, global: u64, bytes: u32) -> Result<Transfer, String> {
    if !shared.is_multiple_of(16) || !global.is_multiple_of(16) || !bytes.is_multiple_of(16) || bytes == 0 {
        return Err(format!("a bulk copy of {bytes} bytes, {shared:#x} and {global:#x}: no multiples of 16"));
    }
    let extent = bytes as usize;
    Ok(Transfer {
        pieces: vec![(0, global, extent)],
        shared,
        extent,
        swizzle: Swizzle::None,
        counted: extent,
        fill: 0,
    })
}

/// The runs of at most 16 bytes that stay together in shared memory.
fn runs(transfer: &Transfer) -> Vec<(u32, u64, usize)> {
    let mut found = Vec::new();
    for &(offset, global, bytes) in &transfer.pieces {
        if transfer.swizzle == Swizzle::None {
            found.push((transfer.shared + offset, global, bytes));
            continue;
        }
        let mut done = 0;
        while done < bytes {
            let at = transfer.shared + offset + done as u32;
            let run = (16 - at as usize % 16).min(bytes - done);
            found.push((transfer.swizzle.apply(at), global + done as u64, run));
            done += run;
        }
    }
    found
}

impl Load {
    fn begin(transfer: Transfer, barrier: u32, line: u32, context: &mut dyn Context) -> Result<(), String> {
        context.begin_shared(transfer.shared, transfer.extent)?;
        context.block_state().loads.push(Load { transfer, barrier, line });
        Ok(())
    }

    fn finish(&self, context: &mut dyn Context) -> Result<(), String> {
        let Transfer { shared, extent, fill, .. } = self.transfer;
        let mut bytes = vec![fill; extent];
        for (at, global, n) in runs(&self.transfer) {
            let offset = (at - shared) as usize;
            let into = bytes.get_mut(offset..offset + n).ok_or("a copy outside of its box")?;
            context.read(global, into)?;
        }
        context.deliver_shared(shared, &bytes)?;
        barrier::complete(context, self.barrier, self.transfer.counted)
    }
}

/// Finishes the loads whose barrier this is.
pub(super) fn arrive(at: u32, context: &mut dyn Context) -> Result<(), String> {
    let loads = &mut context.block_state().loads;
    if loads.iter().all(|load| load.barrier != at) {
        return Ok(());
    }
    let (now, later): (Vec<Load>, Vec<Load>) =
        std::mem::take(loads).into_iter().partition(|load| load.barrier == at);
    context.block_state().loads = later;
    for load in now {
        load.finish(context).map_err(|why| format!("the bulk load of PTX line {}: {why}", load.line))?;
    }
    Ok(())
}

pub(super) fn tensor_load(
    rank: usize,
    list: u32,
    line: u32,
    context: &mut dyn Context,
) -> Result<(), String> {
    let (shared, map) = (Place::at(context, list), Place::at(context, list + Place::WORDS));
    let barrier = Place::at(context, list + 2 * Place::WORDS);
    for lane in lanes(context.mask()) {
        let (to, barrier) = (shared.shared(context, lane)?, barrier.shared(context, lane)?);
        let transfer = tensor(context, map, to, list + 3 * Place::WORDS, rank, lane)?;
        Load::begin(transfer, barrier, line, context)?;
    }
    Ok(())
}

pub(super) fn load(list: u32, line: u32, context: &mut dyn Context) -> Result<(), String> {
    let (shared, global) = (Place::at(context, list), Place::at(context, list + Place::WORDS));
    let (bytes, barrier) =
        (context.list(list + 2 * Place::WORDS), Place::at(context, list + 2 * Place::WORDS + 1));
    for lane in lanes(context.mask()) {
        let (to, barrier) = (shared.shared(context, lane)?, barrier.shared(context, lane)?);
        let transfer = plain(to, global.raw(context, lane), context.row32(bytes)[lane])?;
        Load::begin(transfer, barrier, line, context)?;
    }
    Ok(())
}

impl Store {
    fn finish(&self, context: &mut dyn Context) -> Result<(), String> {
        for (at, global, n) in runs(&self.transfer) {
            let mut bytes = context.shared(at, n)?.to_vec();
            if let Some(reduce) = self.reduce {
                let mut there = vec![0; n];
                context.read(global, &mut there)?;
                for (new, old) in bytes.chunks_exact_mut(4).zip(there.chunks_exact(4)) {
                    let word =
                        |chunk: &[u8]| chunk.first_chunk().map_or(0, |chunk| u32::from_le_bytes(*chunk));
                    let (a, b) = (word(new), word(old));
                    let sum = match reduce {
                        Reduce::AddF32 => (f32::from_bits(a) + f32::from_bits(b)).to_bits(),
                        Reduce::AddU32 => a.wrapping_add(b),
                    };
                    new.copy_from_slice(&sum.to_le_bytes());
                }
            }
            context.write(global, &bytes)?;
        }
        Ok(())
    }
}

fn keep(store: Store, lane: usize, context: &mut dyn Context) {
    context.warp_state().stores.entry(lane as u32).or_default().open.push(store);
}

pub(super) fn tensor_store(
    rank: usize,
    reduce: Option<Reduce>,
    list: u32,
    line: u32,
    context: &mut dyn Context,
) -> Result<(), String> {
    let (map, shared) = (Place::at(context, list), Place::at(context, list + Place::WORDS));
    for lane in lanes(context.mask()) {
        let from = shared.shared(context, lane)?;
        let transfer = tensor(context, map, from, list + 2 * Place::WORDS, rank, lane)?;
        keep(Store { transfer, reduce, line }, lane, context);
    }
    Ok(())
}

pub(super) fn store(
    reduce: Option<Reduce>,
    list: u32,
    line: u32,
    context: &mut dyn Context,
) -> Result<(), String> {
    let (global, shared) = (Place::at(context, list), Place::at(context, list + Place::WORDS));
    let bytes = context.list(list + 2 * Place::WORDS);
    for lane in lanes(context.mask()) {
        let from = shared.shared(context, lane)?;
        let transfer = plain(from, global.raw(context, lane), context.row32(bytes)[lane])?;
        keep(Store { transfer, reduce, line }, lane, context);
    }
    Ok(())
}

/// Everything stored so far is a group.
pub(super) fn commit(context: &mut dyn Context) {
    for lane in lanes(context.mask()) {
        let stores = context.warp_state().stores.entry(lane as u32).or_default();
        let open = std::mem::take(&mut stores.open);
        stores.groups.push(open);
    }
}

/// Until `left` groups are under way.
pub(super) fn wait(left: usize, context: &mut dyn Context) -> Result<(), String> {
    for lane in lanes(context.mask()) {
        let Some(stores) = context.warp_state().stores.get_mut(&(lane as u32)) else { continue };
        let done = stores.groups.len().saturating_sub(left);
        let groups: Vec<Vec<Store>> = stores.groups.drain(..done).collect();
        for store in groups.into_iter().flatten() {
            store
                .finish(context)
                .map_err(|why| format!("the bulk store of PTX line {}: {why}", store.line))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor_map::{Description, encode};

    fn map(extents: &[u64], strides: &[u64], box_: &[u32], swizzle: u32) -> TensorMap {
        let steps = vec![1; box_.len()];
        let given = Description {
            data_type: 9,
            address: 0x10000,
            extents,
            strides,
            box_,
            steps: &steps,
            interleave: 0,
            swizzle,
            fill: 0,
        };
        TensorMap::decode(&encode(&given).expect("a map")).expect("a map")
    }

    #[test]
    fn a_box_is_clipped_on_every_side() {
        let map = map(&[20, 10], &[48], &[8, 4], 0);
        // Inside: rows of 16 bytes, one after the other.
        let (inside, extent) = pieces(&map, &[8, 2]);
        assert_eq!(extent, 64);
        let row = |i: u64| (16 * i as u32, 0x10000 + (2 + i) * 48 + 16, 16);
        assert_eq!(inside, (0..4).map(row).collect::<Vec<_>>());
        // Four of eight columns, one of four rows.
        assert_eq!(pieces(&map, &[16, 9]).0, [(0, 0x10000 + 9 * 48 + 32, 8)]);
        assert_eq!(pieces(&map, &[-4, -3]).0, [(3 * 16 + 8, 0x10000, 8)]);
        assert!(pieces(&map, &[20, 0]).0.is_empty() && pieces(&map, &[0, -4]).0.is_empty());
        assert!(pieces(&map, &[i32::MIN, i32::MAX]).0.is_empty());
    }

    #[test]
    fn swizzled_rows_change_their_chunks() {
        let map = map(&[64, 100], &[128], &[64, 16], 3);
        let (pieces, extent) = pieces(&map, &[0, 50]);
        assert_eq!(extent, 2048);
        let transfer =
            Transfer { pieces, shared: 2048, extent, swizzle: map.swizzle, counted: 2048, fill: 0 };
        let runs = runs(&transfer);
        assert_eq!(runs.len(), 128);
        assert_eq!(runs[0], (2048, 0x10000 + 50 * 128, 16));
        // Row 3, chunk 5 lies at chunk 5 ^ 3 = 6.
        assert_eq!(runs[3 * 8 + 5], (2048 + 3 * 128 + 6 * 16, 0x10000 + 53 * 128 + 80, 16));
    }
}
