//! The memory plan: which scratch tensors share storage.
//!
//! A tensor lives from the first op that writes it to the last op that touches it. The largest tensors choose
//! first: each takes a *slot* whose other tensors do not live while it does, the smallest such, or a new one of
//! its size. Slots rather than offsets, because wgpu binds whole buffers and refuses one buffer bound both ways
//! in a dispatch; a backend with one flat arena lays the slots end to end.
//!
//! Rejected: giving out free slots in the order of the ops. A residual stream that is kept from the forward to
//! the backward pass then sits in a slot made for the wider inside of an MLP, which has to be made again.
//!
//! [`Plan::verify`] proves from the operands alone that no write touches storage that a live tensor still
//! needs: it shares no code with the assignment, and it runs on every plan that is made.

use crate::ops::Access;
use crate::program::{Place, Program};
use crate::tensor::{DType, Tensor};
use std::collections::HashMap;

/// Storage shared by scratch tensors of one element type whose lives do not overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Element type.
    pub dtype: DType,
    /// Elements of the largest tensor in it.
    pub numel: usize,
}

/// Where every scratch tensor of a program lies.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The slots.
    pub slots: Vec<Slot>,
    assigned: HashMap<Tensor, usize>,
}

/// First and last op that touch a tensor.
#[derive(Clone, Copy, Debug)]
struct Life {
    first: usize,
    last: usize,
}

impl Life {
    /// Whether some op touches both.
    fn meets(self, other: Life) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

fn lives(program: &Program) -> HashMap<Tensor, Life> {
    let mut lives: HashMap<Tensor, Life> = HashMap::new();
    for (i, op) in program.ops().iter().enumerate() {
        for operand in op.operand_list() {
            if program.info(operand.tensor).place == Place::Scratch {
                lives.entry(operand.tensor).or_insert(Life { first: i, last: i }).last = i;
            }
        }
    }
    lives
}

impl Plan {
    /// Plans a program.
    ///
    /// # Panics
    /// When the program reads a scratch tensor that no op wrote: a mistake in the recording code.
    pub fn new(program: &Program) -> Self {
        Self::with(program, &[])
    }

    /// The same for a backend that, in the place of some ops, touches tensors that other ops name: `also` says which,
    /// and the numbers of these ops.
    ///
    /// # Panics
    /// As [`Plan::new`].
    pub fn with(program: &Program, also: &[(Tensor, usize)]) -> Self {
        let mut lives = lives(program);
        for (tensor, op) in also {
            if let Some(life) = lives.get_mut(tensor) {
                *life = Life { first: life.first.min(*op), last: life.last.max(*op) };
            }
        }
        let mut tensors: Vec<(Tensor, Life)> = lives.into_iter().collect();
        let size = |tensor: Tensor| program.info(tensor).bytes();
        tensors.sort_by_key(|&(tensor, life)| (std::cmp::Reverse(size(tensor)), life.first, tensor));
        let mut plan = Plan { slots: Vec::new(), assigned: HashMap::new() };
        // When each slot is taken.
        let mut taken: Vec<Vec<Life>> = Vec::new();
        for (tensor, life) in tensors {
            let info = program.info(tensor);
            let fits = |&slot: &usize| {
                plan.slots[slot].dtype == info.dtype && !taken[slot].iter().any(|other| other.meets(life))
            };
            // Slots were made from large to small, and all of them for tensors at least as large as this.
            let slot = (0..plan.slots.len()).rev().find(fits).unwrap_or_else(|| {
                plan.slots.push(Slot { dtype: info.dtype, numel: info.shape.numel() });
                taken.push(Vec::new());
                plan.slots.len() - 1
            });
            taken[slot].push(life);
            plan.assigned.insert(tensor, slot);
        }
        if let Err(reason) = plan.verify(program) {
            panic!("memory plan of {}: {reason}", program.name);
        }
        plan
    }

    /// Slot of a scratch tensor.
    pub fn slot(&self, tensor: Tensor) -> Option<usize> {
        self.assigned.get(&tensor).copied()
    }

    /// Every scratch tensor and its slot, in no order.
    pub fn assigned(&self) -> impl Iterator<Item = (Tensor, usize)> + '_ {
        self.assigned.iter().map(|(&tensor, &slot)| (tensor, slot))
    }

    /// Bytes of all slots.
    pub fn bytes(&self) -> u64 {
        self.slots.iter().map(|s| (s.numel * s.dtype.size()) as u64).sum()
    }

    /// Checks that every read finds what was written for it, and that no op writes storage that it also
    /// reads under another name.
    ///
    /// # Errors
    /// The op, the tensors and the slot, in words.
    pub fn verify(&self, program: &Program) -> Result<(), String> {
        // What each piece of storage holds at this point of the program.
        let mut holds: HashMap<usize, Tensor> = HashMap::new();
        for (i, op) in program.ops().iter().enumerate() {
            let operands = op.operand_list();
            let at = |t: Tensor| {
                format!("op {i} ({}): `{}`", crate::ops::Operation::name(op), program.info(t).name)
            };
            for a in operands.iter().filter(|o| o.access != Access::Read) {
                for b in &operands {
                    let same_name = a.tensor == b.tensor;
                    if same_name && a.access == Access::Write && b.access == Access::Read {
                        return Err(format!("{} is written whole and read by the same op", at(a.tensor)));
                    }
                    if !same_name && self.storage(program, a.tensor) == self.storage(program, b.tensor) {
                        return Err(format!(
                            "{} is written over `{}`",
                            at(a.tensor),
                            program.info(b.tensor).name
                        ));
                    }
                }
            }
            for operand in &operands {
                let Storage::Slot(slot) = self.storage(program, operand.tensor) else { continue };
                let info = program.info(operand.tensor);
                if self.slots[slot].dtype != info.dtype || self.slots[slot].numel < info.shape.numel() {
                    return Err(format!("{} does not fit slot {slot}", at(operand.tensor)));
                }
                match operand.access {
                    Access::Read | Access::Update if holds.get(&slot) != Some(&operand.tensor) => {
                        return Err(match holds.get(&slot) {
                            None => format!("{} is read before anything is written", at(operand.tensor)),
                            Some(&other) => {
                                format!(
                                    "{} was overwritten by `{}`",
                                    at(operand.tensor),
                                    program.info(other).name
                                )
                            }
                        });
                    }
                    _ => {}
                }
            }
            for operand in operands.iter().filter(|o| o.access != Access::Read) {
                if let Storage::Slot(slot) = self.storage(program, operand.tensor) {
                    holds.insert(slot, operand.tensor);
                }
            }
        }
        Ok(())
    }

    fn storage(&self, program: &Program, tensor: Tensor) -> Storage {
        match program.info(tensor).place {
            Place::Persistent(owner) => Storage::Arena(owner),
            Place::Scratch => Storage::Slot(self.assigned[&tensor]),
        }
    }
}

#[derive(PartialEq)]
enum Storage {
    Arena(Tensor),
    Slot(usize),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Gelu;
    use crate::program::{Layout, Recorder};

    /// x -> a -> b -> c -> y: three scratch tensors, of which two live at a time.
    fn chain() -> Program {
        let mut layout = Layout::new();
        let x = layout.add("x", DType::F32, [4, 8]);
        let y = layout.add("y", DType::F32, [4, 8]);
        let mut r = Recorder::new("chain", &layout);
        let [a, b, c] = ["a", "b", "c"].map(|name| r.scratch(name, DType::F32, [4, 8]));
        for (from, to) in [(x, a), (a, b), (b, c), (c, y)] {
            r.push(Gelu { x: from, out: to });
        }
        r.finish()
    }

    #[test]
    fn tensors_share_slots_as_soon_as_they_can() {
        let program = chain();
        let plan = Plan::new(&program);
        assert_eq!(plan.slots, vec![Slot { dtype: DType::F32, numel: 32 }; 2]);
    }

    #[test]
    fn what_other_ops_touch_lives_for_them() {
        let program = chain();
        let a = Tensor(2);
        let also = |op| Plan::with(&program, &[(a, op)]);
        // `a` lives from op 0 to op 1, `b` and `c` from 1 and 2 on.
        assert_eq!(also(1).slots.len(), 2);
        let plan = also(2);
        assert_eq!(plan.slots.len(), 3);
        assert!(plan.slot(a) != plan.slot(Tensor(4)));
    }

    #[test]
    fn a_plan_that_overwrites_a_live_tensor_is_refused() {
        let program = chain();
        let mut plan = Plan::new(&program);
        let scratch: Vec<Tensor> = (2..5).map(Tensor).collect();
        plan.assigned.insert(scratch[1], plan.assigned[&scratch[0]]);
        let reason = plan.verify(&program).unwrap_err();
        assert!(reason.contains("`b` is written over `a`"), "{reason}");
    }

    #[test]
    fn a_value_lost_between_write_and_read_is_found() {
        let mut layout = Layout::new();
        let x = layout.add("x", DType::F32, [4]);
        let mut r = Recorder::new("lost", &layout);
        let [a, b, c] = ["a", "b", "c"].map(|name| r.scratch(name, DType::F32, [4]));
        r.push(Gelu { x, out: a });
        r.push(Gelu { x, out: b });
        r.push(Gelu { x: a, out: c });
        let program = r.finish();
        let mut plan = Plan::new(&program);
        plan.assigned.insert(b, plan.assigned[&a]);
        let reason = plan.verify(&program).unwrap_err();
        assert!(reason.contains("`a` was overwritten by `b`"), "{reason}");
    }

    #[test]
    #[should_panic(expected = "read before anything is written")]
    fn reading_what_nobody_wrote_is_a_mistake() {
        let mut layout = Layout::new();
        let y = layout.add("y", DType::F32, [4]);
        let mut r = Recorder::new("unwritten", &layout);
        let a = r.scratch("a", DType::F32, [4]);
        r.push(Gelu { x: a, out: y });
        Plan::new(&r.finish());
    }
}
