//! Hopper's instructions, from the text.

use super::{Op, Place, Reduce, product::Shape};
use crate::ptx::instruction::{self, Instruction, NONE, Type};
use crate::ptx::{Lowering, Operand};

/// Words of a kernel's list, in the making.
struct Words<'a, 'b> {
    lowering: &'a mut Lowering<'b>,
    words: Vec<u32>,
}

impl Words<'_, '_> {
    fn address(&mut self, operand: &Operand) -> Result<(), String> {
        let address = self.lowering.address(operand)?;
        self.words.extend([address.row, u32::from(address.wide), address.offset as u32]);
        debug_assert_eq!(Place::WORDS, 3);
        Ok(())
    }

    fn row32(&mut self, operand: &Operand) -> Result<(), String> {
        let row = self.lowering.read32(operand, Type::U32)?;
        self.words.push(row);
        Ok(())
    }

    fn row64(&mut self, operand: &Operand) -> Result<(), String> {
        let row = self.lowering.read64(operand, Type::U64)?;
        self.words.push(row);
        Ok(())
    }

    fn finish(self, op: Op) -> Instruction {
        let d = self.lowering.list(&self.words);
        Instruction { d, ..Instruction::new(instruction::Op::Hopper(op)) }
    }
}

fn constant(operand: Option<&Operand>) -> Result<i64, String> {
    match operand {
        Some(Operand::Integer(value)) => {
            i64::try_from(*value).map_err(|_| format!("{value} is out of range"))
        }
        other => Err(format!("{other:?} is not a constant")),
    }
}

fn operand(operands: &[Operand], index: usize) -> Result<&Operand, String> {
    operands.get(index).ok_or_else(|| format!("{} operands are too few", operands.len()))
}

fn plain(op: Op) -> Instruction {
    Instruction::new(instruction::Op::Hopper(op))
}

/// The instruction of that name, if it is one of Hopper's.
///
/// # Errors
/// It is, and its operands are not understood.
pub fn lower(
    lowering: &mut Lowering<'_>,
    parts: &[&str],
    operands: &[Operand],
) -> Result<Option<Instruction>, String> {
    match parts {
        ["mbarrier", ..] => mbarrier(lowering, parts, operands).map(Some),
        ["cp", "async", "bulk", ..] | ["cp", "reduce", "async", "bulk", ..] => {
            bulk(lowering, parts, operands).map(Some)
        }
        ["wgmma", ..] => wgmma(lowering, parts, operands).map(Some),
        ["setmaxnreg", ..] => {
            let e = constant(operands.first())? as u32;
            Ok(Some(Instruction { e, ..plain(Op::Registers) }))
        }
        ["fence", "proxy", ..] => Ok(Some(plain(Op::Fence))),
        _ => Ok(None),
    }
}

fn mbarrier(
    lowering: &mut Lowering<'_>,
    parts: &[&str],
    operands: &[Operand],
) -> Result<Instruction, String> {
    let has = |name: &str| parts.contains(&name);
    let kind = parts.get(1).copied().unwrap_or_default();
    let mut words = Words { lowering, words: Vec::new() };
    if has("noComplete") {
        return Err("arrivals that may not end a phase are not emulated".into());
    }
    Ok(match kind {
        "init" | "expect_tx" | "complete_tx" => {
            words.address(operand(operands, 0)?)?;
            words.row32(operand(operands, 1)?)?;
            words.finish(match kind {
                "init" => Op::BarrierInit,
                "expect_tx" => Op::BarrierExpect,
                _ => Op::BarrierComplete,
            })
        }
        "inval" => {
            words.address(operand(operands, 0)?)?;
            words.finish(Op::BarrierInvalidate)
        }
        "arrive" => {
            let a = match operand(operands, 0)? {
                Operand::Sink => NONE,
                state => words.lowering.write64(state)?,
            };
            words.address(operand(operands, 1)?)?;
            match operands.get(2) {
                Some(value) => words.row32(value)?,
                None => words.words.push(NONE),
            }
            let op = Op::BarrierArrive { expect: has("expect_tx"), cluster: has("shared::cluster") };
            Instruction { a, ..words.finish(op) }
        }
        "test_wait" | "try_wait" => {
            let a = words.lowering.write_predicate(operand(operands, 0)?)?;
            words.address(operand(operands, 1)?)?;
            let parity = has("parity");
            let phase = operand(operands, 2)?;
            if parity {
                words.row32(phase)?
            } else {
                words.row64(phase)?
            };
            Instruction { a, ..words.finish(Op::BarrierTest { parity }) }
        }
        other => return Err(format!("mbarrier.{other} is not emulated")),
    })
}

fn bulk(lowering: &mut Lowering<'_>, parts: &[&str], operands: &[Operand]) -> Result<Instruction, String> {
    let has = |name: &str| parts.contains(&name);
    if has("commit_group") {
        return Ok(plain(Op::BulkCommit));
    }
    if has("wait_group") {
        let e = constant(operands.first())? as u32;
        return Ok(Instruction { e, ..plain(Op::BulkWait) });
    }
    if has("prefetch") {
        return Ok(plain(Op::Fence));
    }
    if let Some(odd) = parts.iter().find(|part| part.starts_with("multicast") || part.starts_with("im2col")) {
        return Err(format!("bulk copies with .{odd} are not emulated"));
    }
    let global = parts.iter().position(|part| *part == "global");
    let shared = parts.iter().position(|part| part.starts_with("shared"));
    let (Some(global), Some(shared)) = (global, shared) else {
        return Err("a bulk copy between which spaces?".into());
    };
    let reduce = match (parts[1] == "reduce", has("add"), has("u32")) {
        (false, ..) => None,
        (true, true, false) if has("tensor") || has("f32") => Some(Reduce::AddF32),
        (true, true, true) => Some(Reduce::AddU32),
        _ => return Err("of bulk reductions, only sums of f32 and u32 are emulated".into()),
    };
    let rank = parts.iter().find_map(|part| part.strip_suffix('d')?.parse::<u8>().ok());
    let mut words = Words { lowering, words: Vec::new() };
    let load = shared < global;
    if has("tensor") {
        let rank = rank.filter(|rank| (1..=5).contains(rank)).ok_or("a tensor of which rank?")?;
        let (at, map) = if load { (0, 1) } else { (1, 0) };
        let map = operand(operands, map)?;
        let Operand::Address(_, _, rest) = map else {
            return Err(format!("{map:?} is no tensor and coordinates"));
        };
        let Some(Operand::Vector(coordinates)) = rest.first() else { return Err("no coordinates".into()) };
        if coordinates.len() != usize::from(rank) {
            return Err(format!("{} coordinates for {rank} dimensions", coordinates.len()));
        }
        if load {
            words.address(operand(operands, at)?)?;
            words.address(map)?;
            words.address(operand(operands, 2)?)?;
        } else {
            words.address(map)?;
            words.address(operand(operands, at)?)?;
        }
        for coordinate in coordinates {
            words.row32(coordinate)?;
        }
        return Ok(words.finish(if load {
            Op::TensorLoad { rank }
        } else {
            Op::TensorStore { rank, reduce }
        }));
    }
    words.address(operand(operands, 0)?)?;
    words.address(operand(operands, 1)?)?;
    words.row32(operand(operands, 2)?)?;
    if load {
        words.address(operand(operands, 3)?)?;
    }
    Ok(words.finish(if load { Op::BulkLoad } else { Op::BulkStore { reduce } }))
}

fn wgmma(lowering: &mut Lowering<'_>, parts: &[&str], operands: &[Operand]) -> Result<Instruction, String> {
    match parts.get(1).copied().unwrap_or_default() {
        "fence" => return Ok(plain(Op::ProductFence)),
        "commit_group" => return Ok(plain(Op::ProductCommit)),
        "wait_group" => {
            let e = constant(operands.first())? as u32;
            return Ok(Instruction { e, ..plain(Op::ProductWait) });
        }
        "mma_async" => {}
        other => return Err(format!("wgmma.{other} is not known")),
    }
    let size = parts.iter().find_map(|part| part.strip_prefix("m64n")?.strip_suffix("k16"));
    let columns: Option<u16> = size.and_then(|size| size.parse().ok());
    let columns =
        columns.filter(|n| n % 8 == 0 && (8..=256).contains(n)).ok_or("a product of which size?")?;
    let bf16 = match parts.get(parts.len().saturating_sub(3)..) {
        Some(["f32", "bf16", "bf16"]) => true,
        Some(["f32", "f16", "f16"]) => false,
        other => return Err(format!("products of {other:?} are not emulated")),
    };
    let (Operand::Vector(results), a) = (operand(operands, 0)?, operand(operands, 1)?) else {
        return Err("no vector of accumulators".into());
    };
    let mut words = Words { lowering, words: Vec::new() };
    for result in results {
        let row = words.lowering.write32(result)?;
        words.words.push(row);
    }
    let registers = match a {
        Operand::Vector(rows) if rows.len() == 4 => {
            rows.iter().try_for_each(|row| words.row32(row))?;
            true
        }
        descriptor => {
            words.row64(descriptor)?;
            false
        }
    };
    words.row64(operand(operands, 2)?)?;
    let (scale, negated) = words.lowering.read_predicate(operand(operands, 3)?)?;
    let signs = [constant(operands.get(4))?, constant(operands.get(5))?];
    if signs.iter().any(|sign| sign.abs() != 1) {
        return Err(format!("factors are scaled by 1 or -1, not {signs:?}"));
    }
    let transposed: Vec<bool> =
        (6..operands.len()).map(|i| Ok(constant(operands.get(i))? != 0)).collect::<Result<_, String>>()?;
    let (transpose_a, transpose_b) = match (registers, transposed.as_slice()) {
        (true, [b]) => (false, *b),
        (false, [a, b]) => (*a, *b),
        (_, other) => return Err(format!("{} transpositions", other.len())),
    };
    let shape = Shape {
        columns,
        bf16,
        registers,
        transpose_a,
        transpose_b,
        negate_a: signs[0] < 0,
        negate_b: signs[1] < 0,
    };
    if results.len() != shape.results() as usize {
        return Err(format!("{} accumulators for {columns} columns", results.len()));
    }
    Ok(Instruction { a: scale, b: u32::from(negated), ..words.finish(Op::Product(shape)) })
}
