//! The opcodes of arithmetic and conversion.

use super::instruction::{
    Bool, Count, Float, FloatUnary, Instruction, Int, IntUnary, NONE, Op, Round, Test, Type,
};
use super::lower::Lowering;
use super::opcode::{Lowered, mode, number, round, types};
use super::text::Operand;

pub(super) fn arithmetic(l: &mut Lowering<'_>, parts: &[&str], o: &[Operand], ty: Type) -> Lowered {
    let has = |name: &str| parts.contains(&name);
    let need = |count: usize| {
        if o.len() < count { Err(format!("{} operands where {count} are needed", o.len())) } else { Ok(()) }
    };
    let mode = mode(parts);
    need(2)?;
    if ty == Type::Pred {
        let d = l.write_predicate(&o[0])?;
        let (a, negated) = l.read_predicate(&o[1])?;
        let op = match parts[0] {
            "not" => Op::Not,
            "and" => Op::Bool(Bool::And),
            "or" => Op::Bool(Bool::Or),
            "xor" => Op::Bool(Bool::Xor),
            _ => return Err("not an operation of predicates".into()),
        };
        let b = if op == Op::Not {
            NONE
        } else {
            need(3)?;
            let (b, negated) = l.read_predicate(&o[2])?;
            if negated {
                return Err("a negated operand".into());
            }
            b
        };
        if negated {
            return Err("a negated operand".into());
        }
        l.push(Instruction { d, a, b, ..Instruction::new(op) });
        return Ok(());
    }
    let float_unary = match parts[0] {
        "neg" => Some(FloatUnary::Neg),
        "abs" => Some(FloatUnary::Abs),
        "rcp" => Some(FloatUnary::Rcp),
        "sqrt" => Some(FloatUnary::Sqrt),
        "rsqrt" => Some(FloatUnary::Rsqrt),
        "ex2" => Some(FloatUnary::Ex2),
        "lg2" => Some(FloatUnary::Lg2),
        "sin" => Some(FloatUnary::Sin),
        "cos" => Some(FloatUnary::Cos),
        "tanh" => Some(FloatUnary::Tanh),
        _ => None,
    };
    if let (Some(op), true) = (float_unary, ty.float()) {
        let (d, a) = (l.write(&o[0], ty)?, l.read(&o[1], ty)?);
        l.push(Instruction { d, a, ..Instruction::new(Op::FloatUnary(op, ty, mode)) });
        return Ok(());
    }
    if ty.float() {
        let op = match parts[0] {
            "add" => Float::Add,
            "sub" => Float::Sub,
            "mul" => Float::Mul,
            "div" => Float::Div,
            "min" => Float::Min,
            "max" => Float::Max,
            "copysign" => Float::CopySign,
            "fma" | "mad" => Float::Fma,
            "testp" => {
                let kind = match parts.get(1) {
                    Some(&"finite") => Test::Finite,
                    Some(&"infinite") => Test::Infinite,
                    Some(&"number") => Test::Number,
                    Some(&"notanumber") => Test::NotANumber,
                    Some(&"normal") => Test::Normal,
                    Some(&"subnormal") => Test::Subnormal,
                    _ => return Err("an unknown test".into()),
                };
                let (d, a) = (l.write_predicate(&o[0])?, l.read(&o[1], ty)?);
                l.push(Instruction { d, a, ..Instruction::new(Op::Testp(kind, ty)) });
                return Ok(());
            }
            _ => return Err("not an operation of floats".into()),
        };
        need(3)?;
        let (d, a, b) = (l.write(&o[0], ty)?, l.read(&o[1], ty)?, l.read(&o[2], ty)?);
        let c = if op == Float::Fma {
            need(4)?;
            l.read(&o[3], ty)?
        } else if o.len() > 3 {
            return Err("three operands".into());
        } else {
            NONE
        };
        l.push(Instruction { d, a, b, c, ..Instruction::new(Op::Float(op, ty, mode)) });
        return Ok(());
    }

    // integers
    let unary = match parts[0] {
        "neg" => Some(IntUnary::Neg),
        "abs" => Some(IntUnary::Abs),
        "not" => Some(IntUnary::Not),
        "cnot" => Some(IntUnary::Cnot),
        "brev" => Some(IntUnary::Brev),
        _ => None,
    };
    if let Some(op) = unary {
        let (d, a) = (l.write(&o[0], ty)?, l.read(&o[1], ty)?);
        l.push(Instruction { d, a, ..Instruction::new(Op::IntUnary(op, ty)) });
        return Ok(());
    }
    let count = match parts[0] {
        "popc" => Some(Count::Popc),
        "clz" => Some(Count::Clz),
        "bfind" if has("shiftamt") => Some(Count::BfindShift),
        "bfind" => Some(Count::Bfind),
        _ => None,
    };
    if let Some(op) = count {
        let (d, a) = (l.write32(&o[0])?, l.read(&o[1], ty)?);
        l.push(Instruction { d, a, ..Instruction::new(Op::Count(op, ty)) });
        return Ok(());
    }
    need(3)?;
    if has("cc") || parts[0] == "addc" || parts[0] == "subc" {
        if !matches!(parts[0], "add" | "addc" | "sub" | "subc") {
            return Err("products with carry are not known".into());
        }
        let (d, a, b) = (l.write(&o[0], ty)?, l.read(&o[1], ty)?, l.read(&o[2], ty)?);
        let op = Op::Carry {
            subtract: parts[0].starts_with("sub"),
            carry_in: parts[0].ends_with('c'),
            carry_out: has("cc"),
            wide: ty.bits() == 64,
        };
        l.push(Instruction { d, a, b, ..Instruction::new(op) });
        return Ok(());
    }
    let twice = |ty: Type| match ty {
        Type::S16 => Some(Type::S32),
        Type::U16 => Some(Type::U32),
        Type::S32 => Some(Type::S64),
        Type::U32 => Some(Type::U64),
        _ => None,
    };
    match parts[0] {
        "mul" if has("wide") => {
            let wide = twice(ty).ok_or("an unknown wide product")?;
            let (d, a, b) = (l.write(&o[0], wide)?, l.read32(&o[1], ty)?, l.read32(&o[2], ty)?);
            l.push(Instruction { d, a, b, ..Instruction::new(Op::MulWide(ty)) });
        }
        "mad" => {
            need(4)?;
            if has("wide") {
                let wide = twice(ty).ok_or("an unknown wide product")?;
                let (d, a, b) = (l.write(&o[0], wide)?, l.read32(&o[1], ty)?, l.read32(&o[2], ty)?);
                let c = l.read(&o[3], wide)?;
                l.push(Instruction { d, a, b, c, ..Instruction::new(Op::MadWide(ty)) });
            } else {
                if has("sat") {
                    return Err("saturation".into());
                }
                let (d, a, b) = (l.write(&o[0], ty)?, l.read(&o[1], ty)?, l.read(&o[2], ty)?);
                let c = l.read(&o[3], ty)?;
                l.push(Instruction { d, a, b, c, ..Instruction::new(Op::Mad { high: has("hi"), ty }) });
            }
        }
        "mul24" | "mad24" => {
            let add = parts[0] == "mad24";
            need(if add { 4 } else { 3 })?;
            let (d, a, b) = (l.write32(&o[0])?, l.read32(&o[1], ty)?, l.read32(&o[2], ty)?);
            let c = if add { l.read32(&o[3], ty)? } else { NONE };
            let op = Op::Mul24 { high: has("hi"), signed: ty.signed(), add };
            l.push(Instruction { d, a, b, c, ..Instruction::new(op) });
        }
        "bfe" | "bfi" => {
            need(if parts[0] == "bfe" { 4 } else { 5 })?;
            let (d, a) = (l.write(&o[0], ty)?, l.read(&o[1], ty)?);
            if parts[0] == "bfe" {
                let (b, c) = (l.read32(&o[2], Type::U32)?, l.read32(&o[3], Type::U32)?);
                l.push(Instruction { d, a, b, c, ..Instruction::new(Op::Bfe(ty)) });
            } else {
                let b = l.read(&o[2], ty)?;
                let (c, e) = (l.read32(&o[3], Type::U32)?, l.read32(&o[4], Type::U32)?);
                l.push(Instruction { d, a, b, c, e, ..Instruction::new(Op::Bfi(ty)) });
            }
        }
        "prmt" => {
            need(4)?;
            let kind = ["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"].iter().position(|kind| has(kind));
            let (d, a, b) = (l.write32(&o[0])?, l.read32(&o[1], Type::B32)?, l.read32(&o[2], Type::B32)?);
            let c = l.read32(&o[3], Type::B32)?;
            l.push(Instruction {
                d,
                a,
                b,
                c,
                ..Instruction::new(Op::Prmt(kind.map_or(0, |kind| kind as u8 + 1)))
            });
        }
        "lop3" => {
            need(5)?;
            if has("and") || has("or") {
                return Err("a predicate as result".into());
            }
            let (d, a, b) = (l.write32(&o[0])?, l.read32(&o[1], Type::B32)?, l.read32(&o[2], Type::B32)?);
            let (c, e) = (l.read32(&o[3], Type::B32)?, number(&o[4])?);
            l.push(Instruction { d, a, b, c, e, ..Instruction::new(Op::Lop3) });
        }
        "shf" => {
            need(4)?;
            let (d, a, b) = (l.write32(&o[0])?, l.read32(&o[1], Type::B32)?, l.read32(&o[2], Type::B32)?);
            let c = l.read32(&o[3], Type::U32)?;
            l.push(Instruction {
                d,
                a,
                b,
                c,
                ..Instruction::new(Op::Shf { left: has("l"), wrap: has("wrap") })
            });
        }
        "dp4a" => {
            need(4)?;
            let ty = types(parts);
            let (d, a, b) = (l.write32(&o[0])?, l.read32(&o[1], Type::B32)?, l.read32(&o[2], Type::B32)?);
            let c = l.read32(&o[3], Type::B32)?;
            let signed = |i: usize| ty.get(i).is_some_and(|ty| ty.signed());
            l.push(Instruction {
                d,
                a,
                b,
                c,
                ..Instruction::new(Op::Dp4a { a_signed: signed(0), b_signed: signed(1) })
            });
        }
        "shl" | "shr" => {
            let (d, a, b) = (l.write(&o[0], ty)?, l.read(&o[1], ty)?, l.read32(&o[2], Type::U32)?);
            let op = if parts[0] == "shl" { Int::Shl } else { Int::Shr };
            l.push(Instruction { d, a, b, ..Instruction::new(Op::Int(op, ty)) });
        }
        name => {
            let op = match name {
                "add" if has("sat") => Int::AddSaturated,
                "add" => Int::Add,
                "sub" if has("sat") => Int::SubSaturated,
                "sub" => Int::Sub,
                "mul" if has("hi") => Int::MulHi,
                "mul" => Int::MulLo,
                "div" => Int::Div,
                "rem" => Int::Rem,
                "min" => Int::Min,
                "max" => Int::Max,
                "and" => Int::And,
                "or" => Int::Or,
                "xor" => Int::Xor,
                "sad" => Int::Sad,
                _ => return Err("an unknown operation".into()),
            };
            if has("relu") {
                return Err("relu".into());
            }
            let (d, a, b) = (l.write(&o[0], ty)?, l.read(&o[1], ty)?, l.read(&o[2], ty)?);
            let c = if op == Int::Sad {
                need(4)?;
                l.read(&o[3], ty)?
            } else {
                NONE
            };
            l.push(Instruction { d, a, b, c, ..Instruction::new(Op::Int(op, ty)) });
        }
    }
    Ok(())
}

pub(super) fn convert(l: &mut Lowering<'_>, parts: &[&str], o: &[Operand], ty: &[Type]) -> Lowered {
    let has = |name: &str| parts.contains(&name);
    let [to, from] = ty[..] else { return Err("types of eight bits or fewer are not known".into()) };
    if has("satfinite") {
        return Err("saturation to finite numbers".into());
    }
    if matches!(to, Type::F16x2 | Type::Bf16x2) {
        if o.len() != 3 || from != Type::F32 {
            return Err("not two floats".into());
        }
        let (d, a, b) = (l.write32(&o[0])?, l.read32(&o[1], from)?, l.read32(&o[2], from)?);
        let op = Op::ConvertPair {
            to,
            round: round(parts).unwrap_or(Round::Nearest),
            relu: has("relu"),
            sat: has("sat"),
        };
        l.push(Instruction { d, a, b, ..Instruction::new(op) });
        return Ok(());
    }
    if o.len() != 2 {
        return Err("not one operand".into());
    }
    let wide_from = from.bits() == 64 || l.is_wide(&o[1]);
    let wide_to = to.bits() == 64 || l.is_wide(&o[0]);
    let d = if wide_to { l.write64(&o[0])? } else { l.write32(&o[0])? };
    let a = if wide_from { l.read64(&o[1], from)? } else { l.read32(&o[1], from)? };
    let op = Op::Convert {
        to,
        from,
        round: round(parts).unwrap_or(Round::Nearest),
        whole: ["rni", "rzi", "rmi", "rpi"].iter().any(|name| has(name)),
        ftz: has("ftz"),
        sat: has("sat"),
        relu: has("relu"),
        wide_from,
        wide_to,
    };
    l.push(Instruction { d, a, ..Instruction::new(op) });
    Ok(())
}
