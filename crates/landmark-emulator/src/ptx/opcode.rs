//! What each opcode's name and operands mean.

use super::arithmetic::{arithmetic, convert};
use super::instruction::{
    Atomic, Barrier, Bool, Compare, Instruction, Mode, NONE, Op, Product, Round, Shuffle, Space, Type, Vote,
};
use super::lower::Lowering;
use super::text::Operand;
use crate::machine::hopper;

pub(super) type Lowered = Result<(), String>;

pub(super) fn types(parts: &[&str]) -> Vec<Type> {
    parts.iter().filter_map(|part| Type::of(part)).collect()
}

pub(super) fn mode(parts: &[&str]) -> Mode {
    let has = |name| parts.contains(&name);
    Mode {
        round: round(parts).unwrap_or(Round::Nearest),
        ftz: has("ftz"),
        sat: has("sat"),
        relu: has("relu"),
        nan: has("NaN"),
    }
}

pub(super) fn round(parts: &[&str]) -> Option<Round> {
    parts.iter().find_map(|part| {
        Some(match *part {
            "rn" | "rni" => Round::Nearest,
            "rna" => Round::Away,
            "rz" | "rzi" => Round::Zero,
            "rm" | "rmi" => Round::Down,
            "rp" | "rpi" => Round::Up,
            _ => return None,
        })
    })
}

fn space(parts: &[&str]) -> Space {
    parts
        .iter()
        .find_map(|part| {
            Some(match part.split("::").next()? {
                "global" => Space::Global,
                "const" => Space::Constant,
                "param" => Space::Parameter,
                "local" => Space::Local,
                "shared" => Space::Shared,
                _ => return None,
            })
        })
        .unwrap_or(Space::Generic)
}

fn compare(part: &str) -> Option<Compare> {
    Some(match part {
        "eq" => Compare::Eq,
        "ne" => Compare::Ne,
        "lt" | "lo" => Compare::Lt,
        "le" | "ls" => Compare::Le,
        "gt" | "hi" => Compare::Gt,
        "ge" | "hs" => Compare::Ge,
        "equ" => Compare::Equ,
        "neu" => Compare::Neu,
        "ltu" => Compare::Ltu,
        "leu" => Compare::Leu,
        "gtu" => Compare::Gtu,
        "geu" => Compare::Geu,
        "num" => Compare::Num,
        "nan" => Compare::Nan,
        _ => return None,
    })
}

fn combine(parts: &[&str]) -> Bool {
    if parts.contains(&"or") {
        Bool::Or
    } else if parts.contains(&"xor") {
        Bool::Xor
    } else {
        Bool::And
    }
}

pub(super) fn number(operand: &Operand) -> Result<u32, String> {
    match operand {
        Operand::Integer(value) => u32::try_from(*value).map_err(|_| format!("{value} is out of range")),
        other => Err(format!("{other:?} is not a constant")),
    }
}

fn vector(operand: &Operand) -> &[Operand] {
    match operand {
        Operand::Vector(parts) => parts,
        other => std::slice::from_ref(other),
    }
}

/// Appends the instructions of one statement.
pub(super) fn lower(l: &mut Lowering<'_>, parts: &[&str], o: &[Operand]) -> Lowered {
    let has = |name: &str| parts.contains(&name);
    let ty = types(parts);
    let last = ty.last().copied();
    let need = |count: usize| {
        if o.len() < count { Err(format!("{} operands where {count} are needed", o.len())) } else { Ok(()) }
    };
    let typed = || last.ok_or_else(|| "no type".to_string());
    match parts[0] {
        "fence" | "membar" | "griddepcontrol" | "prefetch" | "prefetchu" | "discard" | "applypriority"
        | "pmevent" | "setmaxnreg" | "brkpt" => {
            // the stand-ins that matter are looked at there
            if let Some(done) = hopper::lower::lower(l, parts, o)? {
                l.push(done);
            } else {
                l.push(Instruction::new(Op::Nop));
            }
        }
        "createpolicy" => {
            need(1)?;
            let (d, a) = (l.write64(&o[0])?, l.constant64(0));
            l.push(Instruction { d, a, ..Instruction::new(Op::Move64) });
        }
        "exit" | "ret" => l.push(Instruction::new(Op::Exit)),
        "trap" => l.push(Instruction::new(Op::Trap)),
        "nanosleep" => l.push(Instruction::new(Op::NanoSleep)),
        "bra" => match o {
            [Operand::Name(label, 0)] => l.branch(label, Op::Branch, NONE),
            _ => return Err("no label".into()),
        },
        "brx" => match o {
            [index, Operand::Name(list, 0)] => {
                let index = l.read32(index, Type::U32)?;
                l.branch(list, Op::BranchIndexed, index);
            }
            _ => return Err("no list of targets".into()),
        },
        "mov" => {
            need(2)?;
            mov(l, typed()?, &o[0], &o[1])?;
        }
        "add" | "sub" | "mul" | "div" | "rem" | "min" | "max" | "and" | "or" | "xor" | "shl" | "shr"
        | "sad" | "addc" | "subc" | "copysign" | "fma" | "mad" | "mul24" | "mad24" | "not" | "neg"
        | "abs" | "cnot" | "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" | "brev"
        | "popc" | "clz" | "bfind" | "bfe" | "bfi" | "prmt" | "lop3" | "shf" | "dp4a" | "testp" => {
            arithmetic(l, parts, o, typed()?)?
        }
        "setp" => {
            need(3)?;
            let ty = typed()?;
            let compare = parts.iter().find_map(|part| compare(part)).ok_or("no comparison")?;
            let (first, second) = match &o[0] {
                Operand::Pair(p, q) => (&**p, Some(&**q)),
                p => (p, None),
            };
            let d = l.write_predicate(first)?;
            let e = second.map_or(Ok(NONE), |q| l.write_predicate(q))?;
            let (a, b) = (l.read(&o[1], ty)?, l.read(&o[2], ty)?);
            let (c, negate) = o.get(3).map_or(Ok((NONE, false)), |p| l.read_predicate(p))?;
            let op = if matches!(ty, Type::F16x2 | Type::Bf16x2) {
                Op::SetpPair { compare, ty, combine: combine(parts), negate }
            } else {
                Op::Setp { compare, ty, ftz: has("ftz"), combine: combine(parts), negate }
            };
            l.push(Instruction { d, a, b, c, e, ..Instruction::new(op) });
        }
        "set" => {
            need(3)?;
            let [to, from] = ty[..] else { return Err("not two types".into()) };
            let compare = parts.iter().find_map(|part| compare(part)).ok_or("no comparison")?;
            if !matches!(to, Type::U32 | Type::S32 | Type::F32) {
                return Err("this type of result is not known".into());
            }
            let d = l.write32(&o[0])?;
            let (a, b) = (l.read(&o[1], from)?, l.read(&o[2], from)?);
            let (c, negate) = o.get(3).map_or(Ok((NONE, false)), |p| l.read_predicate(p))?;
            let op = Op::Set {
                compare,
                ty: from,
                float: to == Type::F32,
                ftz: has("ftz"),
                combine: combine(parts),
                negate,
            };
            l.push(Instruction { d, a, b, c, ..Instruction::new(op) });
        }
        "selp" => {
            need(4)?;
            let ty = typed()?;
            let (d, mut a, mut b) = (l.write(&o[0], ty)?, l.read(&o[1], ty)?, l.read(&o[2], ty)?);
            let (c, negated) = l.read_predicate(&o[3])?;
            if negated {
                (a, b) = (b, a);
            }
            l.push(Instruction {
                d,
                a,
                b,
                c,
                ..Instruction::new(if ty.bits() == 64 { Op::Selp64 } else { Op::Selp32 })
            });
        }
        "slct" => {
            need(4)?;
            let [ty, by] = ty[..] else { return Err("not two types".into()) };
            let (d, a, b) = (l.write(&o[0], ty)?, l.read(&o[1], ty)?, l.read(&o[2], ty)?);
            let c = l.read32(&o[3], by)?;
            let op = Op::Slct { wide: ty.bits() == 64, float: by == Type::F32 };
            l.push(Instruction { d, a, b, c, ..Instruction::new(op) });
        }
        "cvt" => convert(l, parts, o, &ty)?,
        "cvta" => {
            need(2)?;
            let wide = typed()?.bits() == 64;
            let (d, a) = (l.write(&o[0], typed()?)?, l.read(&o[1], typed()?)?);
            l.push(Instruction {
                d,
                a,
                ..Instruction::new(Op::Cvta { space: space(parts), to: has("to"), wide })
            });
        }
        "isspacep" => {
            need(2)?;
            let (d, wide) = (l.write_predicate(&o[0])?, l.is_wide(&o[1]));
            let a = if wide { l.read64(&o[1], Type::U64)? } else { l.read32(&o[1], Type::U32)? };
            l.push(Instruction { d, a, ..Instruction::new(Op::IsSpace { space: space(parts), wide }) });
        }
        "ld" | "ldu" | "st" => {
            need(2)?;
            if matches!(parts.get(1), Some(&("async" | "bulk"))) {
                return hopper(l, parts, o);
            }
            let ty = typed()?;
            let count = match parts.iter().find(|part| matches!(**part, "v2" | "v4" | "v8")) {
                Some(part) => part.as_bytes()[1] - b'0',
                None => 1,
            };
            if ty == Type::B128 {
                return Err("accesses of 128 bits at once are not known".into());
            }
            let store = parts[0] == "st";
            let (values, address) = if store { (&o[1], &o[0]) } else { (&o[0], &o[1]) };
            let values = vector(values);
            if values.len() != usize::from(count) {
                return Err(format!("{} values where there should be {count}", values.len()));
            }
            let wide = ty.bits() == 64 || values.iter().any(|value| l.is_wide(value));
            let mut rows = Vec::new();
            for value in values {
                rows.push(match (store, wide) {
                    (true, true) => l.read64(value, ty)?,
                    (true, false) => l.read32(value, ty)?,
                    (false, true) => l.write64(value)?,
                    (false, false) => l.write32(value)?,
                });
            }
            let space = space(parts);
            // who only writes such words waits for nobody
            if !store
                && space != Space::Shared
                && ["volatile", "relaxed", "acquire", "mmio"].iter().any(|name| has(name))
            {
                l.needs_order();
            }
            let address = l.address(address)?;
            let d = l.list(&rows);
            let op = if store {
                Op::Store { space, ty, count, wide, address64: address.wide }
            } else {
                Op::Load { space, ty, count, wide, address64: address.wide }
            };
            l.push(Instruction { d, a: address.row, c: address.offset as u32, ..Instruction::new(op) });
        }
        "atom" | "red" => {
            if parts.get(1) == Some(&"async") {
                return hopper(l, parts, o);
            }
            atomic(l, parts, o, typed()?)?;
        }
        "shfl" => {
            need(5)?;
            let (value, valid) = match &o[0] {
                Operand::Pair(d, p) => (&**d, Some(&**p)),
                d => (d, None),
            };
            let d = l.write32(value)?;
            let e = valid.map_or(Ok(NONE), |p| l.write_predicate(p))?;
            let (a, b, c) =
                (l.read32(&o[1], Type::B32)?, l.read32(&o[2], Type::U32)?, l.read32(&o[3], Type::U32)?);
            let f = l.read32(&o[4], Type::U32)?;
            let how = match parts.get(2) {
                Some(&"up") => Shuffle::Up,
                Some(&"down") => Shuffle::Down,
                Some(&"bfly") => Shuffle::Butterfly,
                Some(&"idx") => Shuffle::Index,
                _ => return Err("an unknown way to shuffle".into()),
            };
            l.push(Instruction { d, a, b, c, e, f, ..Instruction::new(Op::Shuffle(how)) });
        }
        "vote" => {
            need(3)?;
            let vote = match parts.get(2) {
                Some(&"all") => Vote::All,
                Some(&"any") => Vote::Any,
                Some(&"uni") => Vote::Uniform,
                Some(&"ballot") => Vote::Ballot,
                _ => return Err("an unknown vote".into()),
            };
            let d = if vote == Vote::Ballot { l.write32(&o[0])? } else { l.write_predicate(&o[0])? };
            let (a, negate) = l.read_predicate(&o[1])?;
            let b = l.read32(&o[2], Type::U32)?;
            l.push(Instruction { d, a, b, ..Instruction::new(Op::Vote { vote, negate }) });
        }
        "match" => {
            need(3)?;
            let ty = typed()?;
            let (value, same) = match &o[0] {
                Operand::Pair(d, p) => (&**d, Some(&**p)),
                d => (d, None),
            };
            let d = l.write32(value)?;
            let e = same.map_or(Ok(NONE), |p| l.write_predicate(p))?;
            let (a, b) = (l.read(&o[1], ty)?, l.read32(&o[2], Type::U32)?);
            let op = Op::Match { all: has("all"), wide: ty.bits() == 64 };
            l.push(Instruction { d, a, b, e, ..Instruction::new(op) });
        }
        "redux" => {
            need(3)?;
            let (d, a, b) = (l.write32(&o[0])?, l.read32(&o[1], typed()?)?, l.read32(&o[2], Type::U32)?);
            let op = atomic_kind(parts.get(2).copied().unwrap_or("")).ok_or("an unknown reduction")?;
            if typed()?.float() {
                return Err("reductions of floats are not known".into());
            }
            l.push(Instruction { d, a, b, ..Instruction::new(Op::Redux(op, typed()?)) });
        }
        "activemask" => {
            need(1)?;
            let d = l.write32(&o[0])?;
            l.push(Instruction { d, ..Instruction::new(Op::ActiveMask) });
        }
        "elect" => {
            need(2)?;
            let Operand::Pair(number, elected) = &o[0] else { return Err("no predicate".into()) };
            let (d, e) = (l.write32(number)?, l.write_predicate(elected)?);
            let a = l.read32(&o[1], Type::U32)?;
            l.push(Instruction { d, a, e, ..Instruction::new(Op::Elect) });
        }
        "bar" | "barrier" => barrier(l, parts, o)?,
        "cp" => {
            if parts.get(1) != Some(&"async") || has("bulk") || has("mbarrier") || has("reduce") {
                return hopper(l, parts, o);
            }
            copy(l, parts, o)?;
        }
        "ldmatrix" | "stmatrix" => {
            need(2)?;
            let store = parts[0] == "stmatrix";
            let (values, address) = if store { (&o[1], &o[0]) } else { (&o[0], &o[1]) };
            if !has("m8n8") || !has("b16") {
                return Err("only matrices of 8 x 8 elements of 16 bits are known".into());
            }
            let count: u8 = if has("x4") {
                4
            } else if has("x2") {
                2
            } else {
                1
            };
            let values = vector(values);
            if values.len() != usize::from(count) {
                return Err(format!("{} registers where there should be {count}", values.len()));
            }
            let mut rows = Vec::new();
            for value in values {
                rows.push(if store { l.read32(value, Type::B32)? } else { l.write32(value)? });
            }
            let address = l.address(address)?;
            let d = l.list(&rows);
            let transposed = has("trans");
            let op =
                if store { Op::StMatrix { count, transposed } } else { Op::LdMatrix { count, transposed } };
            let a = shared_row(l, address.row, address.wide);
            l.push(Instruction { d, a, e: address.offset as u32, ..Instruction::new(op) });
        }
        "movmatrix" => {
            need(2)?;
            let (d, a) = (l.write32(&o[0])?, l.read32(&o[1], Type::B32)?);
            l.push(Instruction { d, a, ..Instruction::new(Op::MovMatrix) });
        }
        "mma" => {
            need(4)?;
            product(l, parts, o, &ty)?;
        }
        "mapa" => {
            need(3)?;
            let ty = typed()?;
            let (d, a, b) = (l.write(&o[0], ty)?, l.read(&o[1], ty)?, l.read32(&o[2], Type::U32)?);
            let op = Op::Mapa { wide: ty.bits() == 64, generic: space(parts) == Space::Generic };
            l.push(Instruction { d, a, b, ..Instruction::new(op) });
        }
        "getctarank" => {
            need(2)?;
            let ty = typed()?;
            let (d, a) = (l.write32(&o[0])?, l.read(&o[1], ty)?);
            l.push(Instruction { d, a, ..Instruction::new(Op::GetRank { wide: ty.bits() == 64 }) });
        }
        _ => return hopper(l, parts, o),
    }
    Ok(())
}

fn hopper(l: &mut Lowering<'_>, parts: &[&str], o: &[Operand]) -> Lowered {
    match hopper::lower::lower(l, parts, o)? {
        Some(instruction) => {
            l.push(instruction);
            Ok(())
        }
        None => Err("the emulator does not know this instruction".into()),
    }
}

/// A shared address as a row of 32 bits.
fn shared_row(l: &mut Lowering<'_>, row: u32, wide: bool) -> u32 {
    if !wide {
        return row;
    }
    let narrow = l.new32();
    let op = Op::Convert {
        to: Type::U32,
        from: Type::U64,
        round: Round::Nearest,
        whole: false,
        ftz: false,
        sat: false,
        relu: false,
        wide_from: true,
        wide_to: false,
    };
    l.push(Instruction { d: narrow, a: row, ..Instruction::new(op) });
    narrow
}

fn mov(l: &mut Lowering<'_>, ty: Type, to: &Operand, from: &Operand) -> Lowered {
    if let Operand::Name(name, 0) = from {
        let clock = match name.as_str() {
            "%clock" | "%clock_hi" => Some((false, false)),
            "%clock64" => Some((true, false)),
            "%globaltimer" => Some((true, true)),
            "%globaltimer_lo" | "%globaltimer_hi" => Some((false, true)),
            _ => None,
        };
        if let Some((wide, nanoseconds)) = clock {
            let d = if wide { l.write64(to)? } else { l.write32(to)? };
            l.push(Instruction { d, ..Instruction::new(Op::Clock { wide, nanoseconds }) });
            return Ok(());
        }
    }
    let bits = ty.bits() as usize;
    match (to, from) {
        (Operand::Vector(parts), from) => {
            let part = bits / parts.len().max(1);
            let a = l.read(from, ty)?;
            let mut rows = Vec::new();
            for to in parts {
                rows.push(if *to == Operand::Sink { NONE } else { l.write32(to)? });
            }
            let d = l.list(&rows);
            let op = Op::Unpack { bits: part as u8, parts: rows.len() as u8 };
            l.push(Instruction { d, a, ..Instruction::new(op) });
        }
        (to, Operand::Vector(parts)) => {
            let part = bits / parts.len().max(1);
            let part_type = match part {
                8 => Type::B8,
                16 => Type::B16,
                32 => Type::B32,
                _ => return Err("parts of an unknown size".into()),
            };
            let d = l.write(to, ty)?;
            let rows = parts.iter().map(|from| l.read32(from, part_type)).collect::<Result<Vec<_>, _>>()?;
            let a = l.list(&rows);
            l.push(Instruction {
                d,
                a,
                ..Instruction::new(Op::Pack { bits: part as u8, parts: rows.len() as u8 })
            });
        }
        _ if ty == Type::Pred => {
            let (d, (a, negated)) = (l.write_predicate(to)?, l.read_predicate(from)?);
            l.push(Instruction { d, a, ..Instruction::new(if negated { Op::Not } else { Op::MovePred }) });
        }
        _ if ty.bits() == 64 => {
            // a special register has 32 bits and may be moved to 64
            let d = l.write64(to)?;
            let a = l.read64(from, ty)?;
            l.push(Instruction { d, a, ..Instruction::new(Op::Move64) });
        }
        _ => {
            let (d, a) = (l.write32(to)?, l.read32(from, ty)?);
            l.push(Instruction { d, a, ..Instruction::new(Op::Move32) });
        }
    }
    Ok(())
}

fn atomic_kind(name: &str) -> Option<Atomic> {
    Some(match name {
        "add" => Atomic::Add,
        "min" => Atomic::Min,
        "max" => Atomic::Max,
        "and" => Atomic::And,
        "or" => Atomic::Or,
        "xor" => Atomic::Xor,
        "inc" => Atomic::Inc,
        "dec" => Atomic::Dec,
        "exch" => Atomic::Exchange,
        "cas" => Atomic::CompareExchange,
        _ => return None,
    })
}

fn atomic(l: &mut Lowering<'_>, parts: &[&str], o: &[Operand], ty: Type) -> Lowered {
    let op = parts[1..].iter().find_map(|part| atomic_kind(part)).ok_or("an unknown atomic operation")?;
    if parts.iter().any(|part| matches!(*part, "v2" | "v4" | "v8")) {
        return Err("vectors".into());
    }
    let (to, rest) =
        if parts[0] == "atom" { (Some(o.first().ok_or("no operands")?), &o[1..]) } else { (None, o) };
    let [address, b, rest @ ..] = rest else { return Err("too few operands".into()) };
    let space = space(parts);
    if space != Space::Shared {
        l.needs_order();
    }
    let address = l.address(address)?;
    let d = to.map_or(Ok(NONE), |to| l.write(to, ty))?;
    let b = l.read(b, ty)?;
    let c = if op == Atomic::CompareExchange {
        l.read(rest.first().ok_or("too few operands")?, ty)?
    } else {
        NONE
    };
    let op = Op::Atomic { op, ty, space, address64: address.wide };
    l.push(Instruction { d, a: address.row, b, c, e: address.offset as u32, ..Instruction::new(op) });
    Ok(())
}

fn barrier(l: &mut Lowering<'_>, parts: &[&str], o: &[Operand]) -> Lowered {
    let has = |name: &str| parts.contains(&name);
    if has("cluster") {
        l.push(Instruction::new(if has("arrive") { Op::ClusterArrive } else { Op::ClusterWait }));
        return Ok(());
    }
    if has("warp") {
        let a = l.read32(o.first().ok_or("no members")?, Type::U32)?;
        l.push(Instruction { a, ..Instruction::new(Op::WarpSync) });
        return Ok(());
    }
    let aligned = parts[0] == "bar" || has("aligned");
    let (kind, d, o) = if has("red") {
        let kind = if has("popc") {
            Barrier::RedPopc
        } else if has("and") {
            Barrier::RedAnd
        } else {
            Barrier::RedOr
        };
        let to = o.first().ok_or("no destination")?;
        let d = if kind == Barrier::RedPopc { l.write32(to)? } else { l.write_predicate(to)? };
        (kind, d, &o[1..])
    } else if has("arrive") {
        (Barrier::Arrive, NONE, o)
    } else {
        (Barrier::Sync, NONE, o)
    };
    let reduces = d != NONE;
    let a = l.read32(o.first().ok_or("no barrier")?, Type::U32)?;
    let threads = match (o.len(), reduces) {
        (2, false) | (3, true) => Some(&o[1]),
        _ => None,
    };
    let b = threads.map_or(Ok(NONE), |threads| l.read32(threads, Type::U32))?;
    let (c, negate) = match (reduces, o.last()) {
        (true, Some(predicate)) => l.read_predicate(predicate)?,
        _ => (NONE, false),
    };
    l.push(Instruction { d, a, b, c, ..Instruction::new(Op::Barrier { barrier: kind, negate, aligned }) });
    Ok(())
}

/// `cp.async`, `.commit_group`, `.wait_group`, `.wait_all`.
fn copy(l: &mut Lowering<'_>, parts: &[&str], o: &[Operand]) -> Lowered {
    match parts.get(2) {
        Some(&"commit_group") => l.push(Instruction::new(Op::CpAsyncCommit)),
        Some(&"wait_all") => l.push(Instruction::new(Op::CpAsyncWait { all: true })),
        Some(&"wait_group") => {
            let a = number(o.first().ok_or("no number")?)?;
            l.push(Instruction { a, ..Instruction::new(Op::CpAsyncWait { all: false }) });
        }
        Some(&("ca" | "cg")) => {
            let [to, from, bytes, rest @ ..] = o else { return Err("too few operands".into()) };
            let bytes = number(bytes)?;
            if !matches!(bytes, 4 | 8 | 16) || (parts[2] == "cg" && bytes != 16) {
                return Err(format!("copies of {bytes} bytes"));
            }
            let (to, from) = (l.address(to)?, l.address(from)?);
            if !from.wide {
                return Err("a global address of 32 bits".into());
            }
            let (mut b, mut c, mut ignore) = (NONE, NONE, false);
            match rest.first() {
                Some(predicate) if l.is_predicate(predicate) => {
                    let (row, negated) = l.read_predicate(predicate)?;
                    if negated {
                        return Err("a negated predicate".into());
                    }
                    (c, ignore) = (row, true);
                }
                Some(policy) if l.is_wide(policy) => {}
                Some(size) => b = l.read32(size, Type::U32)?,
                None => {}
            }
            let d = shared_row(l, to.row, to.wide);
            l.push(Instruction {
                d,
                a: from.row,
                b,
                c,
                e: from.offset as u32,
                f: to.offset as u32,
                ..Instruction::new(Op::CpAsync { bytes: bytes as u8, ignore })
            });
        }
        _ => return Err("an unknown asynchronous copy".into()),
    }
    Ok(())
}

fn product(l: &mut Lowering<'_>, parts: &[&str], o: &[Operand], ty: &[Type]) -> Lowered {
    let shape = parts.iter().find(|part| part.starts_with('m') && part.contains('k')).copied().unwrap_or("");
    let [d_type, a_type, b_type, c_type] = ty[..] else { return Err("not four types".into()) };
    if a_type != b_type || d_type != c_type || !parts.contains(&"row") || !parts.contains(&"col") {
        return Err("a product of an unknown kind".into());
    }
    let inner = match (shape, a_type, d_type) {
        ("m16n8k16", Type::F16, Type::F16 | Type::F32) | ("m16n8k16", Type::Bf16, Type::F32) => 16,
        ("m16n8k8", Type::F16, Type::F16 | Type::F32) | ("m16n8k8", Type::Bf16 | Type::Tf32, Type::F32) => 8,
        ("m16n8k4", Type::Tf32, Type::F32) => 4,
        _ => return Err("a product of an unknown shape".into()),
    };
    let results = if d_type == Type::F16 { 2 } else { 4 };
    // elements of A in a lane, over those of a register
    let a_registers = if a_type == Type::Tf32 { inner / 2 } else { inner / 4 };
    let expected = [results, a_registers, a_registers / 2, results];
    let mut rows = Vec::new();
    for (i, (operand, count)) in o.iter().zip(expected).enumerate() {
        let registers = vector(operand);
        if registers.len() != count {
            return Err(format!("{} registers where there should be {count}", registers.len()));
        }
        for register in registers {
            rows.push(if i == 0 { l.write32(register)? } else { l.read32(register, Type::B32)? });
        }
    }
    let d = l.list(&rows);
    let product = Product { rows: 16, inner: inner as u8, operands: a_type, results: d_type };
    l.push(Instruction { d, ..Instruction::new(Op::Mma(product)) });
    Ok(())
}
