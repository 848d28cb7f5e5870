//! Hopper's own instructions: barriers in shared memory, bulk copies, products of a warp group.
//!
//! All of them are asynchronous on the device, and here they are as late as they may be: a copy's data, and what a
//! product adds to its registers, arrive when somebody waits for them and not before. Until then the destination is
//! poisoned: shared memory counts as never written, registers hold numbers that are none. So a missing wait is found,
//! and so is memory that is written again while a copy or a product still reads it.
//!
//! - [`barrier`] is `mbarrier`.
//! - [`bulk`] is `cp.async.bulk`, with and without a tensor map.
//! - [`product`] is `wgmma`.
//! - [`lower()`] reads them from the text.

pub mod barrier;
pub mod bulk;
pub mod lower;
pub mod product;

use super::memory::{SHARED_WINDOW, WINDOW_MASK};
use crate::ptx::instruction::{Instruction, NONE};
pub use lower::lower;
use std::collections::HashMap;

/// What an instruction does. Operands are in the kernel's list from `d` on; an address takes three words there, see
/// [`Place`]. Results are named by `a`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    /// `mbarrier.init`: address, count.
    BarrierInit,
    /// `mbarrier.inval`: address.
    BarrierInvalidate,
    /// `mbarrier.arrive`: address, count or bytes or [`NONE`]; the state into `a`, 64 bits, or [`NONE`].
    BarrierArrive {
        /// The operand is bytes to expect, and one arrival is made.
        expect: bool,
        /// The barrier is another block's if need be: no state.
        cluster: bool,
    },
    /// `mbarrier.expect_tx`: address, bytes.
    BarrierExpect,
    /// `mbarrier.complete_tx`: address, bytes.
    BarrierComplete,
    /// `mbarrier.test_wait` and `try_wait`: address, parity (32 bits) or state (64 bits); predicate `a`.
    BarrierTest {
        /// Of a parity, else of a state.
        parity: bool,
    },
    /// `cp.async.bulk.tensor` to shared memory: address, map's address, barrier, coordinates.
    TensorLoad {
        /// Coordinates.
        rank: u8,
    },
    /// The other way: map's address, address, coordinates.
    TensorStore {
        /// Coordinates.
        rank: u8,
        /// Adds to what is there.
        reduce: Option<Reduce>,
    },
    /// `cp.async.bulk` to shared memory: address, global address, bytes, barrier.
    BulkLoad,
    /// The other way: global address, address, bytes.
    BulkStore {
        /// Adds to what is there.
        reduce: Option<Reduce>,
    },
    /// `cp.async.bulk.commit_group`.
    BulkCommit,
    /// `cp.async.bulk.wait_group`, until `e` groups are left.
    BulkWait,
    /// `wgmma.mma_async`: registers of D, then A's registers or its descriptor, B's descriptor; scale-d is predicate `a`
    /// (negated if `b` is 1) or [`NONE`] for true.
    Product(product::Shape),
    /// `wgmma.fence`.
    ProductFence,
    /// `wgmma.commit_group`.
    ProductCommit,
    /// `wgmma.wait_group`, until `e` groups are left.
    ProductWait,
    /// Orders what is in order anyway.
    Fence,
    /// `setmaxnreg` to `e` registers.
    Registers,
}

/// What a bulk reduction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    /// Adds f32.
    AddF32,
    /// Adds u32.
    AddU32,
}

/// Whether to go on with this warp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// With its next instruction.
    Next,
    /// It waits for others, though it may go on: it asked for a phase that has not ended.
    Yield,
}

/// What the machine gives an instruction: registers of the warp, shared memory of the block, global memory.
pub trait Context {
    /// The lanes that execute.
    fn mask(&self) -> u32;
    /// The kernel's list.
    fn list(&self, at: u32) -> u32;
    /// A row of 32 bits.
    fn row32(&self, row: u32) -> &[u32; 32];
    /// The same, to write.
    fn row32_mut(&mut self, row: u32) -> &mut [u32; 32];
    /// A row of 64 bits.
    fn row64(&self, row: u32) -> &[u64; 32];
    /// The same, to write.
    fn row64_mut(&mut self, row: u32) -> &mut [u64; 32];
    /// A predicate, one bit a lane.
    fn predicate(&self, row: u32) -> u32;
    /// Writes the bits of the lanes that execute.
    fn set_predicate(&mut self, row: u32, bits: u32);
    /// Bytes of shared memory.
    ///
    /// # Errors
    /// They are out of bounds, or nobody wrote them.
    fn shared(&self, at: u32, bytes: usize) -> Result<&[u8], String>;
    /// Writes bytes of shared memory.
    ///
    /// # Errors
    /// They are out of bounds.
    fn write_shared(&mut self, at: u32, bytes: &[u8]) -> Result<(), String>;
    /// An asynchronous copy begins to fill bytes of shared memory: nobody may touch them until it delivers.
    ///
    /// # Errors
    /// They are out of bounds, or another copy fills them.
    fn begin_shared(&mut self, at: u32, bytes: usize) -> Result<(), String>;
    /// What it fills them with.
    ///
    /// # Errors
    /// They are out of bounds.
    fn deliver_shared(&mut self, at: u32, bytes: &[u8]) -> Result<(), String>;
    /// Reads bytes at a generic address: global memory, or a parameter of the kernel.
    ///
    /// # Errors
    /// They are nobody's.
    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), String>;
    /// Writes global memory.
    ///
    /// # Errors
    /// The bytes are nobody's.
    fn write(&mut self, at: u64, from: &[u8]) -> Result<(), String>;
    /// What Hopper's instructions keep for this warp.
    fn warp_state(&mut self) -> &mut WarpState;
    /// What they keep for the block.
    fn block_state(&mut self) -> &mut BlockState;
    /// Rows that may hold copies of a register of accumulators: see [`product::Copies`].
    fn copies(&self, row: u32) -> &[u32];
    /// Which warp of the block this is.
    fn warp_index(&self) -> u32;
}

/// What is kept for a warp.
#[derive(Debug, Default)]
pub struct WarpState {
    products: product::Queue,
    stores: HashMap<u32, bulk::Stores>,
}

impl WarpState {
    /// Nothing may be under way when a warp ends.
    ///
    /// # Errors
    /// Something is.
    pub fn finish(&self) -> Result<(), String> {
        if let Some(line) = self.products.pending() {
            return Err(format!("the warp ends and did not wait for the product of PTX line {line}"));
        }
        match self.stores.values().find_map(bulk::Stores::pending) {
            Some(line) => {
                Err(format!("the warp ends and did not wait for the bulk store of PTX line {line}"))
            }
            None => Ok(()),
        }
    }
}

/// What is kept for a block.
#[derive(Debug, Default)]
pub struct BlockState {
    loads: Vec<bulk::Load>,
    /// Grows with everything that may let a waiting warp go on: while it stands and every warp yields, they wait for
    /// ever.
    pub progress: u64,
}

impl BlockState {
    /// Nothing may be under way when a block ends.
    ///
    /// # Errors
    /// Something is.
    pub fn finish(&self) -> Result<(), String> {
        match self.loads.first() {
            Some(load) => {
                Err(format!("the block ends and nobody waited for the bulk load of PTX line {}", load.line))
            }
            None => Ok(()),
        }
    }
}

/// An address operand: three words of the list.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    row: u32,
    wide: bool,
    offset: i32,
}

impl Place {
    /// Words of one.
    pub const WORDS: u32 = 3;

    /// At this place of the list.
    pub fn at(context: &dyn Context, list: u32) -> Place {
        Place {
            row: context.list(list),
            wide: context.list(list + 1) != 0,
            offset: context.list(list + 2) as i32,
        }
    }

    /// The address as it is.
    pub fn raw(self, context: &dyn Context, lane: usize) -> u64 {
        if self.wide {
            context.row64(self.row)[lane].wrapping_add_signed(i64::from(self.offset))
        } else {
            u64::from(context.row32(self.row)[lane].wrapping_add_signed(self.offset))
        }
    }

    /// The address in shared memory: as it is, or a generic one.
    ///
    /// # Errors
    /// It is none.
    pub fn shared(self, context: &dyn Context, lane: usize) -> Result<u32, String> {
        let raw = self.raw(context, lane);
        let inner = if raw & WINDOW_MASK == SHARED_WINDOW { raw & !WINDOW_MASK } else { raw };
        u32::try_from(inner).map_err(|_| format!("{raw:#x} is no address of shared memory"))
    }
}

/// The lanes of a mask.
fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |lane| mask >> lane & 1 == 1)
}

/// Fails unless the whole warp executes.
fn whole(context: &dyn Context, what: &str) -> Result<(), String> {
    if context.mask() == u32::MAX {
        return Ok(());
    }
    Err(format!("{what} is executed by lanes {:#010x} of the warp alone", context.mask()))
}

/// Executes an instruction of the warp.
///
/// # Errors
/// What went wrong.
pub fn execute(op: Op, instruction: &Instruction, context: &mut dyn Context) -> Result<Flow, String> {
    let (list, line) = (instruction.d, instruction.line);
    match op {
        Op::Fence => {}
        Op::Registers => {
            whole(context, "setmaxnreg")?;
            if !instruction.e.is_multiple_of(8) || !(24..=256).contains(&instruction.e) {
                return Err(format!("{} registers: 24 to 256 in steps of 8 can be asked for", instruction.e));
            }
        }
        Op::BarrierInit
        | Op::BarrierInvalidate
        | Op::BarrierArrive { .. }
        | Op::BarrierExpect
        | Op::BarrierComplete => barrier::change(op, list, instruction.a, context)?,
        Op::BarrierTest { parity } => return barrier::test(parity, list, instruction.a, context),
        Op::TensorLoad { rank } => bulk::tensor_load(usize::from(rank), list, line, context)?,
        Op::TensorStore { rank, reduce } => {
            bulk::tensor_store(usize::from(rank), reduce, list, line, context)?;
        }
        Op::BulkLoad => bulk::load(list, line, context)?,
        Op::BulkStore { reduce } => bulk::store(reduce, list, line, context)?,
        Op::BulkCommit => bulk::commit(context),
        Op::BulkWait => bulk::wait(instruction.e as usize, context)?,
        Op::Product(shape) => {
            whole(context, "wgmma")?;
            let scale = (instruction.a != NONE).then_some((instruction.a, instruction.b == 1));
            product::issue(shape, list, scale, line, context)?;
        }
        Op::ProductFence => {
            whole(context, "wgmma.fence")?;
            context.warp_state().products.fence();
        }
        Op::ProductCommit => {
            whole(context, "wgmma.commit_group")?;
            context.warp_state().products.commit();
        }
        Op::ProductWait => {
            whole(context, "wgmma.wait_group")?;
            product::wait(instruction.e as usize, context)?;
        }
    }
    Ok(Flow::Next)
}
