//! The pickle machine: reads protocols 0 to 5 and executes nothing.
//!
//! A pickle is a program for a stack machine. This one knows all opcodes that build data, and calls go to
//! [`rebuild`](super::rebuild), which knows a handful of functions by name. There is no importer.
//!
//! Hostile pickles cannot exhaust memory: each opcode costs a unit of a fixed budget and so does each element that
//! is copied, strings are copied once from the file, and the memo is a map rather than a table as long as the
//! largest index. Nothing recurses, so nesting cannot exhaust the stack.

use super::globals;
use super::objects::{Arena, Id, Object, object_of_global};
use super::rebuild::{self, Reason, Storages};
use std::collections::HashMap;

/// Opcodes executed plus elements copied. A checkpoint of a thousand tensors with its optimiser needs 100,000.
const BUDGET: usize = 8_000_000;

/// The largest pickle that is read. Weights are not part of it.
pub(super) const LARGEST: usize = 64 << 20;

/// Why a pickle was not read.
#[derive(Debug)]
pub(super) enum Failure {
    /// It is malformed, or asks for something impossible.
    Malformed(Reason),
    /// It names a function that only runs code.
    Forbidden(String),
}

impl From<Reason> for Failure {
    fn from(reason: Reason) -> Self {
        Failure::Malformed(reason)
    }
}

impl From<&str> for Failure {
    fn from(reason: &str) -> Self {
        Failure::Malformed(reason.to_string())
    }
}

type Step<T = ()> = std::result::Result<T, Failure>;

/// Runs `pickle` and returns its objects and the one that it leaves.
pub(super) fn load(pickle: &[u8], storages: &dyn Storages) -> Step<(Arena, Id)> {
    if pickle.len() > LARGEST {
        return Err(format!("its description of the objects is {} bytes long", pickle.len()).into());
    }
    let mut arena = Arena::default();
    let constants = Constants {
        none: arena.add(Object::None),
        no: arena.add(Object::Bool(false)),
        yes: arena.add(Object::Bool(true)),
        empty_tuple: arena.add(Object::Tuple(Box::new([]))),
    };
    let mut machine = Machine {
        input: Input { rest: pickle },
        arena,
        constants,
        storages,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        budget: BUDGET,
    };
    let root = loop {
        if let Some(root) = machine.step()? {
            break root;
        }
    };
    Ok((machine.arena, root))
}

/// Objects of which one is enough, so that the shortest opcodes allocate nothing.
struct Constants {
    none: Id,
    no: Id,
    yes: Id,
    empty_tuple: Id,
}

struct Machine<'a> {
    input: Input<'a>,
    arena: Arena,
    constants: Constants,
    storages: &'a dyn Storages,
    stack: Vec<Id>,
    /// Heights of the stack at each open `MARK`.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
    budget: usize,
}

impl Machine<'_> {
    /// Executes one opcode; returns the root at `STOP`.
    fn step(&mut self) -> Step<Option<Id>> {
        self.charge(1)?;
        let opcode = self.input.byte()?;
        match opcode {
            b'.' => return self.pop().map(Some),
            0x80 => self.protocol()?,
            0x95 => _ = self.input.array::<8>()?, // FRAME: a hint for buffering
            b'(' => self.marks.push(self.stack.len()),
            b'0' => self.discard()?,
            b'1' => _ = self.pop_mark()?,
            b'2' => self.duplicate()?,
            b'N' => self.stack.push(self.constants.none),
            0x88 => self.stack.push(self.constants.yes),
            0x89 => self.stack.push(self.constants.no),
            b'q' | b'r' | b'p' | 0x94 => self.memoize(opcode)?,
            b'h' | b'j' | b'g' => self.recall(opcode)?,
            b'K' | b'M' | b'J' | 0x8a | 0x8b | b'I' | b'L' | b'G' | b'F' => self.number(opcode)?,
            b'X' | 0x8c | 0x8d | b'V' | b'S' | b'T' | b'U' => self.string(opcode)?,
            b'B' | b'C' | 0x8e | 0x96 => self.bytes(opcode)?,
            b')' | b't' | 0x85 | 0x86 | 0x87 => self.tuple(opcode)?,
            b']' | 0x8f | b'l' | b'a' | b'e' | 0x90 | 0x91 => self.list(opcode)?,
            b'}' | b'd' | b's' | b'u' => self.dict(opcode)?,
            b'c' | 0x93 => self.global(opcode)?,
            b'R' | 0x81 | 0x92 | b'i' | b'o' => self.call(opcode)?,
            b'b' => self.build()?,
            b'Q' => self.persistent()?,
            _ => return Err(format!("opcode {opcode:#04x} in it is unknown or not supported").into()),
        }
        Ok(None)
    }

    fn charge(&mut self, amount: usize) -> Step {
        self.budget = self.budget.checked_sub(amount).ok_or("it describes an absurd number of objects")?;
        Ok(())
    }

    fn push(&mut self, object: Object) {
        let id = self.arena.add(object);
        self.stack.push(id);
    }

    fn pop(&mut self) -> Step<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err("its stack runs empty".into());
        }
        self.stack.pop().ok_or_else(|| "its stack runs empty".into())
    }

    fn top(&self) -> Step<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack[floor..].last().copied().ok_or_else(|| "its stack runs empty".into())
    }

    /// Everything above the last mark, which is removed with it.
    fn pop_mark(&mut self) -> Step<Vec<Id>> {
        let height = self.marks.pop().ok_or("it closes something that it did not open")?;
        Ok(self.stack.split_off(height))
    }

    fn protocol(&mut self) -> Step {
        match self.input.byte()? {
            0..=5 => Ok(()),
            version => Err(format!("it uses version {version} of pickle; 5 is the newest known").into()),
        }
    }

    /// `POP` removes a value, or a mark with nothing above it.
    fn discard(&mut self) -> Step {
        if self.marks.last() == Some(&self.stack.len()) {
            self.marks.pop();
            return Ok(());
        }
        self.pop().map(|_| ())
    }

    fn duplicate(&mut self) -> Step {
        let top = self.top()?;
        self.stack.push(top);
        Ok(())
    }

    fn memoize(&mut self, opcode: u8) -> Step {
        let index = match opcode {
            0x94 => self.memo.len() as u64,
            b'p' => self.input.decimal()?,
            _ => self.memo_index(opcode == b'q')?,
        };
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }

    fn recall(&mut self, opcode: u8) -> Step {
        let index = match opcode {
            b'g' => self.input.decimal()?,
            _ => self.memo_index(opcode == b'h')?,
        };
        let id = *self
            .memo
            .get(&index)
            .ok_or_else(|| format!("it recalls object {index}, which it never kept"))?;
        self.stack.push(id);
        Ok(())
    }

    fn memo_index(&mut self, short: bool) -> Step<u64> {
        if short { Ok(self.input.byte()?.into()) } else { Ok(u32::from_le_bytes(self.input.array()?).into()) }
    }

    fn number(&mut self, opcode: u8) -> Step {
        let object = match opcode {
            b'K' => Object::Int(self.input.byte()?.into()),
            b'M' => Object::Int(u16::from_le_bytes(self.input.array()?).into()),
            b'J' => Object::Int(i32::from_le_bytes(self.input.array()?).into()),
            0x8a => {
                let length = self.input.byte()?.into();
                integer(self.input.take(length)?)
            }
            0x8b => integer(self.input.counted(4)?),
            b'G' => Object::Float(f64::from_be_bytes(self.input.array()?)),
            b'F' => Object::Float(self.input.line()?.trim().parse().map_err(|_| "it has a malformed float")?),
            _ => match self.input.line()?.trim().trim_end_matches('L') {
                "01" if opcode == b'I' => Object::Bool(true), // protocol 0 has no booleans of its own
                "00" if opcode == b'I' => Object::Bool(false),
                digits => match digits.parse() {
                    Ok(value) => Object::Int(value),
                    Err(_) if is_decimal(digits) => Object::LargeInt,
                    Err(_) => return Err("it has a malformed integer".into()),
                },
            },
        };
        self.push(object);
        Ok(())
    }

    fn string(&mut self, opcode: u8) -> Step {
        let text = match opcode {
            b'X' => utf8(self.input.counted(4)?)?,
            0x8c => utf8(self.input.counted(1)?)?,
            0x8d => utf8(self.input.counted(8)?)?,
            // Escapes are kept as they are written: names of weights have none.
            b'V' => self.input.line()?,
            b'S' => self.input.line()?.trim().trim_matches(['\'', '"']),
            b'T' => utf8(self.input.counted(4)?)?,
            _ => utf8(self.input.counted(1)?)?,
        };
        self.push(Object::Str(text.into()));
        Ok(())
    }

    fn bytes(&mut self, opcode: u8) -> Step {
        let bytes = match opcode {
            b'C' => self.input.counted(1)?,
            b'B' => self.input.counted(4)?,
            _ => self.input.counted(8)?,
        };
        self.push(Object::Bytes(bytes.into()));
        Ok(())
    }

    fn tuple(&mut self, opcode: u8) -> Step {
        let elements = match opcode {
            b')' => {
                self.stack.push(self.constants.empty_tuple);
                return Ok(());
            }
            b't' => self.pop_mark()?,
            _ => {
                let mut elements = Vec::with_capacity(3);
                for _ in 0..opcode - 0x84 {
                    elements.push(self.pop()?);
                }
                elements.reverse();
                elements
            }
        };
        self.push(Object::Tuple(elements.into_boxed_slice()));
        Ok(())
    }

    fn list(&mut self, opcode: u8) -> Step {
        match opcode {
            b']' | 0x8f => self.push(Object::List(Vec::new())),
            b'l' => {
                let elements = self.pop_mark()?;
                self.push(Object::List(elements));
            }
            0x91 => {
                let elements = self.pop_mark()?;
                self.push(Object::Tuple(elements.into_boxed_slice()));
            }
            _ => {
                let added = if opcode == b'a' { vec![self.pop()?] } else { self.pop_mark()? };
                let target = self.top()?;
                match self.arena.get_mut(target) {
                    Object::List(elements) => elements.extend(added),
                    Object::Opaque { .. } => {} // a subclass of list: its elements are not looked at
                    _ => return Err("it appends to something that is no list".into()),
                }
            }
        }
        Ok(())
    }

    fn dict(&mut self, opcode: u8) -> Step {
        if opcode == b'}' {
            self.push(Object::Dict(Vec::new()));
            return Ok(());
        }
        let flat = match opcode {
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.pop_mark()?,
        };
        let (pairs, []) = flat.as_chunks::<2>() else { return Err("it has a key without a value".into()) };
        let pairs = pairs.iter().map(|&[key, value]| (key, value));
        if opcode == b'd' {
            let dict = Object::Dict(pairs.collect());
            self.push(dict);
            return Ok(());
        }
        let target = self.top()?;
        match self.arena.get_mut(target) {
            Object::Dict(entries) => entries.extend(pairs),
            Object::Opaque { .. } => {} // a subclass of dict: its entries are not looked at
            _ => return Err("it sets entries of something that is no dictionary".into()),
        }
        Ok(())
    }

    fn global(&mut self, opcode: u8) -> Step {
        let name = if opcode == b'c' {
            self.global_by_lines()?
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            match (self.arena.str(module), self.arena.str(name)) {
                (Some(module), Some(name)) => {
                    // These strings may be named again and again, unlike text in the pickle itself.
                    let length = module.len() + name.len() + 1;
                    let name = format!("{module}.{name}");
                    self.charge(length)?;
                    name
                }
                _ => return Err("it names a function by something that is no text".into()),
            }
        };
        self.push_global(name)
    }

    fn global_by_lines(&mut self) -> Step<String> {
        let module = self.input.line()?;
        Ok(format!("{module}.{}", self.input.line()?))
    }

    fn push_global(&mut self, name: String) -> Step {
        if globals::is_forbidden(&name) {
            return Err(Failure::Forbidden(name));
        }
        self.push(object_of_global(name));
        Ok(())
    }

    fn call(&mut self, opcode: u8) -> Step {
        let (callee, arguments) = match opcode {
            b'R' | 0x81 => {
                let arguments = self.pop()?;
                (self.pop()?, arguments)
            }
            0x92 => {
                let _keywords = self.pop()?;
                let arguments = self.pop()?;
                (self.pop()?, arguments)
            }
            b'i' => {
                let arguments = self.pop_mark()?;
                let name = self.global_by_lines()?;
                self.push_global(name)?;
                (self.pop()?, self.arena.add(Object::Tuple(arguments.into_boxed_slice())))
            }
            _ => {
                let mut arguments = self.pop_mark()?;
                if arguments.is_empty() {
                    return Err("it makes an object of no class".into());
                }
                let class = arguments.remove(0);
                (class, self.arena.add(Object::Tuple(arguments.into_boxed_slice())))
            }
        };
        let result = match self.pairs_of(callee, arguments) {
            Some(pairs) => {
                self.charge(pairs.len())?;
                self.arena.add(Object::Dict(pairs))
            }
            None => rebuild::call(&mut self.arena, self.storages, callee, arguments)?,
        };
        self.stack.push(result);
        Ok(())
    }

    /// `OrderedDict([(key, value), ...])`, as Python 2 wrote them. Here and not in `rebuild` because its cost is not
    /// bounded by a constant.
    fn pairs_of(&self, callee: Id, arguments: Id) -> Option<Vec<(Id, Id)>> {
        let Object::Global(name) = self.arena.get(callee) else { return None };
        let [list] = *self.arena.elements(arguments)? else { return None };
        if globals::meaning(name) != Some(globals::Meaning::Dict) {
            return None;
        }
        let list = self.arena.elements(list)?;
        if list.len() > self.budget {
            return None;
        }
        let pair = |&id: &Id| match self.arena.elements(id) {
            Some(&[key, value]) => Some((key, value)),
            _ => None,
        };
        list.iter().map(pair).collect()
    }

    fn build(&mut self) -> Step {
        let state = self.pop()?;
        let target = self.top()?;
        rebuild::build(&mut self.arena, target, state);
        Ok(())
    }

    fn persistent(&mut self) -> Step {
        let id = self.pop()?;
        let storage = rebuild::storage(&self.arena, self.storages, id)?;
        self.push(storage);
        Ok(())
    }
}

/// A little-endian two's complement integer of any length.
fn integer(bytes: &[u8]) -> Object {
    let Some(&last) = bytes.last() else { return Object::Int(0) };
    if bytes.len() > 8 {
        return Object::LargeInt;
    }
    let mut full = [if last >= 0x80 { 0xff } else { 0 }; 8];
    full[..bytes.len()].copy_from_slice(bytes);
    Object::Int(i64::from_le_bytes(full))
}

fn is_decimal(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

fn utf8(bytes: &[u8]) -> Step<&str> {
    std::str::from_utf8(bytes).map_err(|_| "it has text that is not UTF-8".into())
}

/// What is left of the pickle.
struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> Step<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or("it ends in the middle of an object")?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or("it ends in the middle of an object")?;
        self.rest = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Step<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Bytes behind their own number, which is little-endian and `width` bytes long.
    fn counted(&mut self, width: usize) -> Step<&'a [u8]> {
        let mut length = [0; 8];
        length[..width].copy_from_slice(self.take(width)?);
        let length = usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX);
        self.take(length)
    }

    /// Text up to a newline, as protocol 0 writes it.
    fn line(&mut self) -> Step<&'a str> {
        let end =
            self.rest.iter().position(|&byte| byte == b'\n').ok_or("it ends in the middle of a line")?;
        let line = self.take(end)?;
        self.take(1)?;
        utf8(line)
    }

    fn decimal(&mut self) -> Step<u64> {
        self.line()?.trim().parse().map_err(|_| "it has a malformed index".into())
    }
}
