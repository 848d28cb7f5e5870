//! Declarations: variables, parameters, registers.

use super::instruction::Type;
use super::text::{Operand, integer, narrow, split};

/// A declaration.
#[derive(Clone, Debug)]
pub(super) struct Declaration {
    /// `reg`, `shared`, `global`, `const`, `local`, `param`.
    pub(super) space: String,
    /// Declared here, made elsewhere: dynamic shared memory.
    pub(super) external: bool,
    pub(super) align: usize,
    pub(super) ty: Type,
    /// Values of an element: `.v2`, `.v4`.
    vector: usize,
    pub(super) names: Vec<Name>,
}

/// A name of a declaration.
#[derive(Clone, Debug)]
pub(super) struct Name {
    pub(super) name: String,
    /// Elements, 1 for a scalar and 0 for `[]`.
    elements: usize,
    /// `%r<N>`: N registers.
    pub(super) registers: Option<usize>,
    initial: Option<String>,
}

impl Declaration {
    /// Reads one, without its semicolon.
    pub(super) fn parse(text: &str) -> Result<Declaration, String> {
        let wrong = |what: &str| format!("{what} in the declaration `{}`", &text[..text.len().min(120)]);
        let (mut space, mut external, mut align, mut ty, mut vector) = (String::new(), false, None, None, 1);
        let mut rest = text.trim();
        while rest.starts_with('.') {
            let end = rest.find(|c: char| c.is_whitespace() || c == '(').unwrap_or(rest.len());
            let word = &rest[1..end];
            rest = rest[end..].trim_start();
            match word {
                "reg" | "shared" | "global" | "const" | "local" | "param" if space.is_empty() => {
                    space = word.into()
                }
                // attributes of a pointer parameter
                "global" | "shared" | "const" | "local" | "param" | "ptr" | "visible" | "weak" | "common" => {
                }
                "extern" => external = true,
                "align" => {
                    let end = rest.find(char::is_whitespace).ok_or_else(|| wrong("no alignment"))?;
                    align = Some(rest[..end].parse::<usize>().map_err(|_| wrong("a bad alignment"))?);
                    rest = rest[end..].trim_start();
                }
                "attribute" => {
                    let end = rest.find(')').ok_or_else(|| wrong("an open parenthesis"))?;
                    rest = rest[end + 1..].trim_start();
                }
                "v2" => vector = 2,
                "v4" => vector = 4,
                _ => ty = Some(Type::of(word).ok_or_else(|| wrong(&format!("unknown `.{word}`")))?),
            }
        }
        let ty = ty.ok_or_else(|| wrong("no type"))?;
        let mut names = Vec::new();
        for part in split(rest) {
            let (name, initial) = match part.split_once('=') {
                Some((name, initial)) => (name.trim(), Some(initial.trim().to_string())),
                None => (part, None),
            };
            let (mut elements, mut registers) = (1, None);
            let mut end = name.len();
            if let Some(open) = name.find('<') {
                let count =
                    name[open + 1..].trim_end_matches('>').parse().map_err(|_| wrong("a bad count"))?;
                registers = Some(count);
                end = open;
            } else if let Some(open) = name.find('[') {
                for extent in name[open + 1..].split('[') {
                    let extent = extent.trim().trim_end_matches(']').trim();
                    let extent = if extent.is_empty() { Some(0) } else { integer(extent) };
                    let extent =
                        extent.and_then(|e| usize::try_from(e).ok()).ok_or_else(|| wrong("a bad extent"))?;
                    elements *= extent;
                }
                end = open;
            }
            names.push(Name { name: name[..end].trim().to_string(), elements, registers, initial });
        }
        let align = align.unwrap_or(ty.bytes() * vector);
        if !align.is_power_of_two() {
            return Err(wrong("a bad alignment"));
        }
        Ok(Declaration { space, external, align, ty, vector, names })
    }

    /// The size of one of its variables.
    pub(super) fn bytes(&self, name: &Name) -> usize {
        name.elements * self.vector * self.ty.bytes()
    }

    /// The bytes that a variable begins with.
    pub(super) fn initial(&self, name: &Name) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        if let Some(initial) = &name.initial {
            let flat: String =
                initial.chars().map(|c| if matches!(c, '{' | '}') { ' ' } else { c }).collect();
            for value in split(&flat) {
                let value = match Operand::parse(value)? {
                    Operand::Integer(value) => value as u64,
                    Operand::Float(value) if self.ty == Type::F32 => u64::from(narrow(value)),
                    Operand::Float(value) => value.to_bits(),
                    other => {
                        return Err(format!("{} begins with {other:?}, which is not a number", name.name));
                    }
                };
                bytes.extend_from_slice(&value.to_le_bytes()[..self.ty.bytes().min(8)]);
            }
        }
        let size = self.bytes(name);
        if bytes.len() > size {
            return Err(format!("{} begins with more than it holds", name.name));
        }
        bytes.resize(size, 0);
        Ok(bytes)
    }
}
