//! From statements to instructions: names to rows, constants to rows of their own, labels to indices.

use std::collections::HashMap;

use super::declaration::Declaration;
use super::instruction::{Instruction, NONE, Op, Type};
use super::text::{Operand, narrow, split};
use super::{Kernel, LOCAL_BASE, Module, Parameter, SHARED_BASE, Special, opcode};

/// What a name stands for.
#[derive(Clone, Copy, Debug)]
enum Symbol {
    Row32(u32),
    Row64(u32),
    Predicate(u32),
    /// An address within parameters, shared or local memory.
    Offset(u32),
    /// An address of the host.
    Global(u64),
}

/// An address operand: a row (of 64 bits or of 32) and a constant.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    /// The row.
    pub row: u32,
    /// Whether it is one of 64 bits.
    pub wide: bool,
    /// What is added.
    pub offset: i32,
}

/// A kernel in the making.
pub struct Lowering<'a> {
    module: &'a Module,
    scopes: Vec<HashMap<String, Symbol>>,
    /// Numbers of the open scopes, for labels.
    scope_numbers: Vec<u32>,
    scopes_opened: u32,
    labels: HashMap<(u32, String), u32>,
    /// Lists of targets (`.branchtargets`).
    targets: HashMap<String, Vec<String>>,
    last_label: String,
    /// Instruction, label, scopes around it.
    branches: Vec<(usize, String, Vec<u32>)>,
    indexed: Vec<(usize, String, Vec<u32>)>,
    constants32: HashMap<u32, u32>,
    constants64: HashMap<u64, u32>,
    constant_predicates: HashMap<bool, u32>,
    specials: HashMap<Special, u32>,
    shared_end: u32,
    line: u32,
    kernel: Kernel,
}

impl<'a> Lowering<'a> {
    pub(super) fn new(module: &'a Module) -> Lowering<'a> {
        Lowering {
            module,
            scopes: vec![HashMap::new()],
            scope_numbers: vec![0],
            scopes_opened: 0,
            labels: HashMap::new(),
            targets: HashMap::new(),
            last_label: String::new(),
            branches: Vec::new(),
            indexed: Vec::new(),
            constants32: HashMap::new(),
            constants64: HashMap::new(),
            constant_predicates: HashMap::new(),
            specials: HashMap::new(),
            shared_end: SHARED_BASE,
            line: 0,
            kernel: Kernel {
                name: String::new(),
                parameters: Vec::new(),
                parameter_bytes: 0,
                static_shared: 0,
                max_threads: None,
                required_cluster: None,
                code: Vec::new(),
                list: Vec::new(),
                rows32: 0,
                rows64: 0,
                predicates: 0,
                constants32: Vec::new(),
                constants64: Vec::new(),
                constant_predicates: Vec::new(),
                specials: Vec::new(),
                local_bytes: 0,
                dynamic_shared: SHARED_BASE,
                messages: Vec::new(),
                ordered: false,
                copies: Default::default(),
            },
        }
    }

    // ---- declarations ----

    fn define(&mut self, name: &str, symbol: Symbol) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name.to_string(), symbol);
        }
    }

    pub(super) fn parameter(&mut self, name: &str, align: usize, bytes: usize) {
        let offset = self.kernel.parameter_bytes.next_multiple_of(align);
        self.kernel.parameters.push(Parameter { offset, bytes });
        self.kernel.parameter_bytes = offset + bytes;
        self.define(name, Symbol::Offset(offset as u32));
    }

    pub(super) fn shared(&mut self, name: &str, align: usize, bytes: usize) {
        let offset = (self.shared_end as usize).next_multiple_of(align);
        self.shared_end = (offset + bytes) as u32;
        self.kernel.static_shared = (self.shared_end - SHARED_BASE) as usize;
        self.define(name, Symbol::Offset(offset as u32));
    }

    pub(super) fn dynamic_shared(&mut self, names: &[String], align: usize) {
        self.kernel.dynamic_shared = self.shared_end.next_multiple_of(align as u32);
        for name in names {
            self.define(name, Symbol::Offset(self.kernel.dynamic_shared));
        }
    }

    pub(super) fn open(&mut self) {
        self.scopes.push(HashMap::new());
        self.scopes_opened += 1;
        self.scope_numbers.push(self.scopes_opened);
    }

    pub(super) fn close(&mut self) {
        self.scopes.pop();
        self.scope_numbers.pop();
    }

    pub(super) fn label(&mut self, name: &str) {
        let scope = self.scope_numbers.last().copied().unwrap_or(0);
        self.labels.insert((scope, name.to_string()), self.kernel.code.len() as u32);
        self.last_label = name.to_string();
    }

    fn declare(&mut self, text: &str) -> Result<(), String> {
        let declaration = Declaration::parse(text)?;
        match declaration.space.as_str() {
            "reg" => {
                for name in &declaration.names {
                    let one = |lowering: &mut Self, name: &str| {
                        let symbol = match declaration.ty.bits() {
                            1 => Symbol::Predicate(lowering.new_predicate()),
                            64 => Symbol::Row64(lowering.new64()),
                            128 => return Err("registers of 128 bits are not known".to_string()),
                            _ => Symbol::Row32(lowering.new32()),
                        };
                        lowering.define(name, symbol);
                        Ok(())
                    };
                    match name.registers {
                        None => one(self, &name.name)?,
                        Some(count) if count > 1 << 20 => return Err("too many registers".into()),
                        Some(count) => {
                            for i in 0..count {
                                one(self, &format!("{}{i}", name.name))?;
                            }
                        }
                    }
                }
            }
            "local" => {
                for name in &declaration.names {
                    let offset =
                        (LOCAL_BASE as usize + self.kernel.local_bytes).next_multiple_of(declaration.align);
                    self.kernel.local_bytes = offset + declaration.bytes(name) - LOCAL_BASE as usize;
                    self.define(&name.name, Symbol::Offset(offset as u32));
                }
            }
            "shared" => {}
            "param" => {}
            other => return Err(format!("a variable in .{other} within a function")),
        }
        Ok(())
    }

    fn symbol(&self, name: &str) -> Option<Symbol> {
        let local = self.scopes.iter().rev().find_map(|scope| scope.get(name)).copied();
        local.or_else(|| self.module.global(name).map(|(address, _)| Symbol::Global(address)))
    }

    // ---- rows ----

    /// A new row of 32 bits.
    pub fn new32(&mut self) -> u32 {
        self.kernel.rows32 += 1;
        self.kernel.rows32 as u32 - 1
    }

    /// A new row of 64 bits.
    pub fn new64(&mut self) -> u32 {
        self.kernel.rows64 += 1;
        self.kernel.rows64 as u32 - 1
    }

    /// A new predicate.
    pub fn new_predicate(&mut self) -> u32 {
        self.kernel.predicates += 1;
        self.kernel.predicates as u32 - 1
    }

    /// The row that holds a constant.
    pub fn constant32(&mut self, value: u32) -> u32 {
        if let Some(row) = self.constants32.get(&value) {
            return *row;
        }
        let row = self.new32();
        self.constants32.insert(value, row);
        self.kernel.constants32.push((row, value));
        row
    }

    /// The row that holds a constant.
    pub fn constant64(&mut self, value: u64) -> u32 {
        if let Some(row) = self.constants64.get(&value) {
            return *row;
        }
        let row = self.new64();
        self.constants64.insert(value, row);
        self.kernel.constants64.push((row, value));
        row
    }

    fn constant_predicate(&mut self, value: bool) -> u32 {
        if let Some(row) = self.constant_predicates.get(&value) {
            return *row;
        }
        let row = self.new_predicate();
        self.constant_predicates.insert(value, row);
        self.kernel.constant_predicates.push((row, value));
        row
    }

    fn special(&mut self, name: &str) -> Option<u32> {
        let special = special(name)?;
        if let Some(row) = self.specials.get(&special) {
            return Some(*row);
        }
        let row = self.new32();
        self.specials.insert(special, row);
        self.kernel.specials.push((row, special));
        Some(row)
    }

    // ---- operands ----

    /// Whether an operand is a register of 64 bits.
    pub fn is_wide(&self, operand: &Operand) -> bool {
        match operand {
            Operand::Name(name, _) => matches!(self.symbol(name), Some(Symbol::Row64(_))),
            Operand::Pair(first, _) => self.is_wide(first),
            Operand::Vector(parts) => parts.iter().any(|part| self.is_wide(part)),
            _ => false,
        }
    }

    /// Whether an operand is a predicate.
    pub fn is_predicate(&self, operand: &Operand) -> bool {
        match operand {
            Operand::Name(name, _) => matches!(self.symbol(name), Some(Symbol::Predicate(_))),
            Operand::Not(_) => true,
            _ => false,
        }
    }

    /// The row of 32 bits (or fewer) that a source operand is read from.
    pub fn read32(&mut self, operand: &Operand, ty: Type) -> Result<u32, String> {
        let mask = if ty.bits() >= 32 { u32::MAX } else { (1 << ty.bits()) - 1 };
        match operand {
            Operand::Name(name, offset) => match self.symbol(name) {
                Some(Symbol::Row32(row)) if *offset == 0 => Ok(row),
                Some(Symbol::Offset(address)) => Ok(self.constant32(address.wrapping_add(*offset as u32))),
                Some(_) => Err(format!("{name} is not a register of {} bits", ty.bits())),
                None if name == "WARP_SZ" => Ok(self.constant32(32)),
                None => self.special(name).ok_or_else(|| format!("{name} is not known")),
            },
            Operand::Integer(value) => Ok(self.constant32(*value as u32 & mask)),
            Operand::Float(value) => {
                let bits = match ty {
                    Type::F16 => u32::from(half::f16::from_f64(*value).to_bits()),
                    Type::Bf16 => u32::from(half::bf16::from_f64(*value).to_bits()),
                    _ => narrow(*value) & mask,
                };
                Ok(self.constant32(bits))
            }
            other => Err(format!("{other:?} is no operand of {} bits", ty.bits())),
        }
    }

    /// The row of 64 bits that a source operand is read from.
    pub fn read64(&mut self, operand: &Operand, ty: Type) -> Result<u32, String> {
        match operand {
            Operand::Name(name, offset) => match self.symbol(name) {
                Some(Symbol::Row64(row)) if *offset == 0 => Ok(row),
                Some(Symbol::Offset(address)) => {
                    Ok(self.constant64(u64::from(address).wrapping_add_signed(*offset)))
                }
                Some(Symbol::Global(address)) => Ok(self.constant64(address.wrapping_add_signed(*offset))),
                Some(_) => Err(format!("{name} is not a register of 64 bits")),
                None => Err(format!("{name} is not known")),
            },
            Operand::Integer(value) if ty == Type::F64 => Ok(self.constant64((*value as f64).to_bits())),
            Operand::Integer(value) => Ok(self.constant64(*value as u64)),
            Operand::Float(value) => Ok(self.constant64(value.to_bits())),
            other => Err(format!("{other:?} is no operand of 64 bits")),
        }
    }

    /// A source operand of that type, from the file that the type belongs to.
    pub fn read(&mut self, operand: &Operand, ty: Type) -> Result<u32, String> {
        if ty.bits() == 64 { self.read64(operand, ty) } else { self.read32(operand, ty) }
    }

    /// The predicate that is read, and whether it is negated.
    pub fn read_predicate(&mut self, operand: &Operand) -> Result<(u32, bool), String> {
        let (name, negated) = match operand {
            Operand::Name(name, 0) => (name, false),
            Operand::Not(name) => (name, true),
            Operand::Integer(value) => return Ok((self.constant_predicate(*value != 0), false)),
            other => return Err(format!("{other:?} is no predicate")),
        };
        match self.symbol(name) {
            Some(Symbol::Predicate(row)) => Ok((row, negated)),
            _ => Err(format!("{name} is no predicate")),
        }
    }

    /// The row of 32 bits that is written.
    pub fn write32(&mut self, operand: &Operand) -> Result<u32, String> {
        match operand {
            Operand::Sink => Ok(self.new32()),
            Operand::Name(name, 0) => match self.symbol(name) {
                Some(Symbol::Row32(row)) => Ok(row),
                _ => Err(format!("{name} is not a register of 32 bits")),
            },
            other => Err(format!("{other:?} cannot be written")),
        }
    }

    /// The row of 64 bits that is written.
    pub fn write64(&mut self, operand: &Operand) -> Result<u32, String> {
        match operand {
            Operand::Sink => Ok(self.new64()),
            Operand::Name(name, 0) => match self.symbol(name) {
                Some(Symbol::Row64(row)) => Ok(row),
                _ => Err(format!("{name} is not a register of 64 bits")),
            },
            other => Err(format!("{other:?} cannot be written")),
        }
    }

    /// The row of that type that is written.
    pub fn write(&mut self, operand: &Operand, ty: Type) -> Result<u32, String> {
        if ty.bits() == 64 { self.write64(operand) } else { self.write32(operand) }
    }

    /// The predicate that is written.
    pub fn write_predicate(&mut self, operand: &Operand) -> Result<u32, String> {
        match operand {
            Operand::Sink => Ok(self.new_predicate()),
            Operand::Name(name, 0) => match self.symbol(name) {
                Some(Symbol::Predicate(row)) => Ok(row),
                _ => Err(format!("{name} is no predicate")),
            },
            other => Err(format!("{other:?} is no predicate")),
        }
    }

    /// An address in brackets.
    pub fn address(&mut self, operand: &Operand) -> Result<Address, String> {
        let Operand::Address(base, offset, _) = operand else {
            return Err(format!("{operand:?} is no address"));
        };
        let offset = i32::try_from(*offset).map_err(|_| "an offset beyond 32 bits".to_string())?;
        match &**base {
            Operand::Name(name, 0) => match self.symbol(name) {
                Some(Symbol::Row64(row)) => Ok(Address { row, wide: true, offset }),
                Some(Symbol::Row32(row)) => Ok(Address { row, wide: false, offset }),
                Some(Symbol::Offset(address)) => Ok(Address {
                    row: self.constant32(address.wrapping_add_signed(offset)),
                    wide: false,
                    offset: 0,
                }),
                Some(Symbol::Global(address)) => {
                    Ok(Address { row: self.constant64(address), wide: true, offset })
                }
                _ => Err(format!("{name} is no address")),
            },
            Operand::Integer(value) => {
                Ok(Address { row: self.constant64(*value as u64), wide: true, offset })
            }
            other => Err(format!("{other:?} is no address")),
        }
    }

    /// Appends to the kernel's lists; where the new part begins.
    pub fn list(&mut self, rows: &[u32]) -> u32 {
        let at = self.kernel.list.len() as u32;
        self.kernel.list.extend_from_slice(rows);
        at
    }

    /// Appends an instruction.
    pub fn push(&mut self, instruction: Instruction) {
        self.kernel.code.push(Instruction { line: self.line, ..instruction });
    }

    /// The blocks of this kernel must run in their order.
    pub fn needs_order(&mut self) {
        self.kernel.ordered = true;
    }

    /// Appends a jump; the target is resolved at the end.
    pub(super) fn branch(&mut self, label: &str, op: Op, index: u32) {
        let jump = (self.kernel.code.len(), label.to_string(), self.scope_numbers.clone());
        match op {
            Op::Branch => self.branches.push(jump),
            _ => self.indexed.push(jump),
        }
        self.push(Instruction { a: index, ..Instruction::new(op) });
    }

    /// Appends a stop with a message.
    fn unsupported(&mut self, message: String) {
        self.kernel.messages.push(message);
        let d = self.kernel.messages.len() as u32 - 1;
        self.push(Instruction { d, ..Instruction::new(Op::Unsupported) });
    }

    // ---- statements ----

    pub(super) fn statement(&mut self, text: &str, line: u32) -> Result<(), String> {
        self.line = line;
        if text.starts_with('.') {
            let word = text.split_whitespace().next().unwrap_or("");
            match word {
                ".branchtargets" => {
                    let names = split(text[word.len()..].trim()).into_iter().map(str::to_string).collect();
                    self.targets.insert(self.last_label.clone(), names);
                    return Ok(());
                }
                ".pragma" | ".callprototype" | ".calltargets" | ".loc" => return Ok(()),
                _ => return self.declare(text),
            }
        }
        let first = self.kernel.code.len();
        let mut rest = text;
        let mut guard = None;
        if let Some(guarded) = text.strip_prefix('@') {
            let end = guarded.find(char::is_whitespace).ok_or("a guard without an instruction")?;
            let (name, negated) = match guarded[..end].strip_prefix('!') {
                Some(name) => (name, true),
                None => (&guarded[..end], false),
            };
            let (row, _) = self.read_predicate(&Operand::Name(name.to_string(), 0))?;
            guard = Some((row, negated));
            rest = guarded[end..].trim_start();
        }
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let (name, operands) = (&rest[..end], rest[end..].trim());
        let parts: Vec<&str> = name.split('.').collect();
        let lowered = if parts[0] == "call" {
            Err("calls are not known: the emulator runs what NVRTC has inlined".to_string())
        } else {
            split(operands)
                .into_iter()
                .map(Operand::parse)
                .collect::<Result<Vec<_>, _>>()
                .and_then(|operands| opcode::lower(self, &parts, &operands))
        };
        if let Err(message) = lowered {
            self.kernel.code.truncate(first);
            self.branches.retain(|(at, _, _)| *at < first);
            self.indexed.retain(|(at, _, _)| *at < first);
            self.unsupported(format!("`{text}`: {message}"));
        }
        if let Some((row, negated)) = guard {
            for instruction in &mut self.kernel.code[first..] {
                (instruction.guard, instruction.guard_negated) = (row, negated);
            }
        }
        Ok(())
    }

    fn target(&self, label: &str, scopes: &[u32]) -> Result<u32, String> {
        let found = scopes.iter().rev().find_map(|scope| self.labels.get(&(*scope, label.to_string())));
        found.copied().ok_or_else(|| format!("no label {label}"))
    }

    pub(super) fn finish(mut self, name: String) -> Result<Kernel, String> {
        // falling off the end is a return
        self.push(Instruction::new(Op::Exit));
        for (at, label, scopes) in &self.branches {
            let target = self.target(label, scopes)?;
            self.kernel.code[*at].d = target;
        }
        for (at, label, scopes) in &self.indexed {
            let names = self.targets.get(label).ok_or_else(|| format!("no list of targets {label}"))?;
            let targets =
                names.iter().map(|name| self.target(name, scopes)).collect::<Result<Vec<_>, _>>()?;
            (self.kernel.code[*at].d, self.kernel.code[*at].b) =
                (self.kernel.list.len() as u32, targets.len() as u32);
            self.kernel.list.extend(targets);
        }
        self.kernel.name = name;
        self.kernel.copies =
            crate::machine::hopper::product::Copies::of(&self.kernel.code, &self.kernel.list);
        debug_assert!(self.kernel.code.iter().all(|i| i.op != Op::Branch || i.d != NONE));
        Ok(self.kernel)
    }
}

fn special(name: &str) -> Option<Special> {
    let (base, axis) = match name.rsplit_once('.') {
        Some((base, "x")) => (base, 0),
        Some((base, "y")) => (base, 1),
        Some((base, "z")) => (base, 2),
        _ => (name, 0),
    };
    Some(match base {
        "%tid" => Special::Tid(axis),
        "%ntid" => Special::Ntid(axis),
        "%ctaid" => Special::Ctaid(axis),
        "%nctaid" => Special::Nctaid(axis),
        "%clusterid" => Special::Clusterid(axis),
        "%nclusterid" => Special::Nclusterid(axis),
        "%cluster_ctaid" => Special::ClusterCtaid(axis),
        "%cluster_nctaid" => Special::ClusterNctaid(axis),
        "%cluster_ctarank" => Special::ClusterCtarank,
        "%cluster_nctarank" => Special::ClusterNctarank,
        "%laneid" => Special::LaneId,
        "%warpid" => Special::WarpId,
        "%nwarpid" => Special::NwarpId,
        "%smid" => Special::SmId,
        "%nsmid" => Special::NsmId,
        "%gridid" => Special::GridId,
        "%lanemask_eq" => Special::LanemaskEq,
        "%lanemask_lt" => Special::LanemaskLt,
        "%lanemask_le" => Special::LanemaskLe,
        "%lanemask_gt" => Special::LanemaskGt,
        "%lanemask_ge" => Special::LanemaskGe,
        "%dynamic_smem_size" => Special::DynamicSharedSize,
        "%total_smem_size" => Special::TotalSharedSize,
        _ => return None,
    })
}
