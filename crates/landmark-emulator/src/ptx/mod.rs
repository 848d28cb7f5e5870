//! PTX, from text to instructions.
//!
//! What NVRTC writes for a kernel, and the inline assembler in it: no separate compilation, no calls but those that it
//! inlined. An instruction that is not known is no error until a kernel comes to it, so that one kernel's oddity does
//! not hide the others of its file.

mod arithmetic;
mod declaration;
pub mod instruction;
mod lower;
mod opcode;
mod text;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use declaration::Declaration;
use instruction::Instruction;
pub use lower::{Address, Lowering};
pub use text::Operand;
use text::{Piece, Reader};

/// Where a block's shared memory begins: a null pointer is then none of it, and dynamic shared memory without static
/// is aligned as on a device.
pub const SHARED_BASE: u32 = 1024;
/// Where a thread's local memory begins.
pub const LOCAL_BASE: u32 = 256;

/// One parameter of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Where it begins.
    pub offset: usize,
    /// Its size.
    pub bytes: usize,
}

/// A register that the hardware sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are PTX's
pub enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    Clusterid(u8),
    Nclusterid(u8),
    ClusterCtaid(u8),
    ClusterNctaid(u8),
    ClusterCtarank,
    ClusterNctarank,
    LaneId,
    WarpId,
    NwarpId,
    SmId,
    NsmId,
    GridId,
    LanemaskEq,
    LanemaskLt,
    LanemaskLe,
    LanemaskGt,
    LanemaskGe,
    DynamicSharedSize,
    TotalSharedSize,
}

/// A kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// Its parameters, in order.
    pub parameters: Vec<Parameter>,
    /// Bytes of all of them, laid out.
    pub parameter_bytes: usize,
    /// Bytes of shared memory that it declares.
    pub static_shared: usize,
    /// The most threads that a block may have, if it says so.
    pub max_threads: Option<u32>,
    /// The cluster it requires, if it says so.
    pub required_cluster: Option<[u32; 3]>,
    /// Its instructions.
    pub code: Vec<Instruction>,
    /// Lists of rows and targets.
    pub list: Vec<u32>,
    /// Rows of 32 bits.
    pub rows32: usize,
    /// Rows of 64 bits.
    pub rows64: usize,
    /// Predicates.
    pub predicates: usize,
    /// Rows of 32 bits that are constant.
    pub constants32: Vec<(u32, u32)>,
    /// Rows of 64 bits that are constant.
    pub constants64: Vec<(u32, u64)>,
    /// Predicates that are constant.
    pub constant_predicates: Vec<(u32, bool)>,
    /// Rows that hold special registers.
    pub specials: Vec<(u32, Special)>,
    /// Bytes of local memory of a thread, from [`LOCAL_BASE`] on.
    pub local_bytes: usize,
    /// Where dynamic shared memory begins.
    pub dynamic_shared: u32,
    /// What unsupported instructions say.
    pub messages: Vec<String>,
    /// Its blocks must run in their order: it has atomic operations on, or waits for, global memory.
    pub ordered: bool,
    /// Rows that may hold copies of accumulators under way.
    pub copies: crate::machine::hopper::product::Copies,
}

/// Variables of a module, at an address of the host.
#[derive(Debug)]
#[repr(align(128))]
struct Line([AtomicU64; 16]);

/// A translation unit.
#[derive(Clone, Debug)]
pub struct Module {
    kernels: Vec<Kernel>,
    lines: Vec<String>,
    storage: Arc<[Line]>,
    globals: HashMap<String, (usize, usize)>,
}

/// A kernel that was read but not lowered.
struct Function {
    name: String,
    header: String,
    after: String,
    pieces: Vec<Piece>,
    line: u32,
}

impl Module {
    /// Reads PTX.
    ///
    /// # Errors
    /// What was not understood, with its line.
    pub fn parse(ptx: &str) -> Result<Module, String> {
        let mut reader = Reader::new(ptx);
        let (mut functions, mut variables) = (Vec::new(), Vec::new());
        while !reader.at_end() {
            let line = reader.line;
            let located = |message: String| format!("PTX line {line}: {message}");
            match reader.word() {
                ".version" | ".target" | ".address_size" | ".file" | ".loc" => reader.skip_line(),
                ".section" => {
                    reader.until(b"{", false).map_err(located)?;
                    reader.skip_braces();
                }
                ".pragma" => {
                    reader.until(b";", false).map_err(located)?;
                }
                "" => return Err(located("what begins here is no statement".into())),
                _ => {
                    let (head, stop) = reader.until(b";{=", false).map_err(located)?;
                    let words: Vec<&str> = head.split(|c: char| c.is_whitespace() || c == '(').collect();
                    if let Some(entry) = words.iter().position(|word| matches!(*word, ".entry" | ".func")) {
                        if stop == b';' {
                            continue;
                        }
                        if words[entry] == ".func" {
                            reader.skip_braces();
                            continue;
                        }
                        let name = words.get(entry + 1).map_or("", |name| name.trim()).to_string();
                        functions.push(Function::read(&mut reader, name, &head, line).map_err(located)?);
                    } else {
                        let mut text = head;
                        if stop == b'=' {
                            text = format!("{text} = {}", reader.until(b";", true).map_err(located)?.0);
                        } else if stop == b'{' {
                            return Err(located(format!("`{text}` has a body and is no kernel")));
                        }
                        variables.push(Declaration::parse(&text).map_err(located)?);
                    }
                }
            }
        }

        // variables of the module get their place
        let (mut globals, mut bytes) = (HashMap::new(), Vec::<u8>::new());
        for variable in variables.iter().filter(|v| matches!(v.space.as_str(), "global" | "const")) {
            for name in &variable.names {
                bytes.resize(bytes.len().next_multiple_of(variable.align.max(16)), 0);
                globals.insert(name.name.clone(), (bytes.len(), variable.bytes(name)));
                bytes.extend(variable.initial(name)?);
            }
        }
        let storage: Arc<[Line]> = (0..bytes.len().div_ceil(128)).map(|_| Line(Default::default())).collect();
        for (i, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            storage[i / 16].0[i % 16].store(u64::from_le_bytes(word), Ordering::Relaxed);
        }
        let mut module = Module {
            kernels: Vec::new(),
            lines: ptx.lines().map(|line| line.trim().to_string()).collect(),
            storage,
            globals,
        };
        for function in functions {
            let kernel = function.lower(&module, &variables)?;
            module.kernels.push(kernel);
        }
        Ok(module)
    }

    /// The kernel of that name.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|kernel| kernel.name == name)
    }

    /// All kernels.
    pub fn kernels(&self) -> &[Kernel] {
        &self.kernels
    }

    /// Address and size of a variable.
    pub fn global(&self, name: &str) -> Option<(u64, usize)> {
        let (offset, bytes) = *self.globals.get(name)?;
        Some((self.storage.as_ptr() as u64 + offset as u64, bytes))
    }

    /// Whether these bytes lie among the module's variables.
    pub fn holds(&self, address: u64, bytes: usize) -> bool {
        let start = self.storage.as_ptr() as u64;
        let size = self.storage.len() as u64 * 128;
        address >= start && bytes as u64 <= size && address - start <= size - bytes as u64
    }

    /// A line of the text, from 1.
    pub fn line(&self, line: u32) -> &str {
        self.lines.get((line as usize).wrapping_sub(1)).map_or("", String::as_str)
    }
}

impl Function {
    /// The header was taken up to the `{`.
    fn read(reader: &mut Reader<'_>, name: String, head: &str, line: u32) -> Result<Function, String> {
        let (header, after) = match (head.find('('), head.rfind(')')) {
            (Some(open), Some(close)) if open < close => (&head[open + 1..close], &head[close + 1..]),
            _ => ("", head.rsplit_once(name.as_str()).map_or("", |(_, after)| after)),
        };
        let (mut pieces, mut depth) = (Vec::new(), 0);
        loop {
            let piece = reader.piece()?;
            match piece {
                Piece::Open => depth += 1,
                Piece::Close if depth == 0 => break,
                Piece::Close => depth -= 1,
                _ => {}
            }
            pieces.push(piece);
        }
        Ok(Function { name, header: header.to_string(), after: after.to_string(), pieces, line })
    }

    fn lower(self, module: &Module, variables: &[Declaration]) -> Result<Kernel, String> {
        let located =
            |line: u32, message: String| format!("PTX line {line}, kernel {}: {message}", self.name);
        let mut lowering = Lowering::new(module);
        for part in text::split(&self.header) {
            let parameter = Declaration::parse(part).map_err(|e| located(self.line, e))?;
            for name in &parameter.names {
                lowering.parameter(&name.name, parameter.align, parameter.bytes(name));
            }
        }
        // shared memory: the kernel's own variables and the module's that it names, then the dynamic part
        let (mut inner, mut dynamic) = (Vec::new(), None);
        for piece in &self.pieces {
            if let Piece::Statement(text, line) = piece
                && text.starts_with('.')
                && text.split_whitespace().any(|w| w == ".shared")
            {
                inner.push(Declaration::parse(text).map_err(|e| located(*line, e))?);
            }
        }
        let outer = variables.iter().filter(|v| {
            v.space == "shared" && v.names.iter().any(|n| self.pieces.iter().any(|p| mentions(p, &n.name)))
        });
        for variable in outer.chain(&inner) {
            for name in &variable.names {
                if variable.external || variable.bytes(name) == 0 {
                    let align = dynamic.as_ref().map_or(16, |(align, _): &(usize, Vec<String>)| *align);
                    let names = dynamic.take().map_or(Vec::new(), |(_, names)| names);
                    dynamic = Some((align.max(variable.align), [names, vec![name.name.clone()]].concat()));
                } else {
                    lowering.shared(&name.name, variable.align, variable.bytes(name));
                }
            }
        }
        let (align, names) = dynamic.unwrap_or((16, Vec::new()));
        lowering.dynamic_shared(&names, align);
        for piece in &self.pieces {
            match piece {
                Piece::Open => lowering.open(),
                Piece::Close => lowering.close(),
                Piece::Label(name) => lowering.label(name),
                Piece::Statement(text, line) => {
                    lowering.statement(text, *line).map_err(|e| located(*line, e))?
                }
            }
        }
        let mut kernel = lowering.finish(self.name.clone()).map_err(|e| located(self.line, e))?;
        let words: Vec<&str> =
            self.after.split(|c: char| c.is_whitespace() || c == ',').filter(|w| !w.is_empty()).collect();
        for (i, word) in words.iter().enumerate() {
            let numbers: Vec<u32> = words[i + 1..].iter().map_while(|w| w.parse().ok()).collect();
            match *word {
                ".maxntid" | ".reqntid" => kernel.max_threads = Some(numbers.iter().product()),
                ".reqnctapercluster" => {
                    let mut cluster = [1; 3];
                    for (to, from) in cluster.iter_mut().zip(&numbers) {
                        *to = *from;
                    }
                    kernel.required_cluster = Some(cluster);
                }
                _ => {}
            }
        }
        Ok(kernel)
    }
}

fn mentions(piece: &Piece, name: &str) -> bool {
    let Piece::Statement(text, _) = piece else { return false };
    text.match_indices(name).any(|(at, _)| {
        let named = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'.');
        !text.as_bytes()[..at].last().is_some_and(|c| named(*c))
            && !text.as_bytes().get(at + name.len()).is_some_and(|c| named(*c))
    })
}
