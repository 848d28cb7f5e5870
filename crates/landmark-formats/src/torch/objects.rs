//! The objects that a pickle describes, in one arena.
//!
//! Objects refer to each other by index. A tree of owned values was rejected: pickles share objects (an optimiser's
//! state and its parameters), may contain cycles, and can nest so deep or share so much that walking them as a tree
//! would overflow the stack or never end. In an arena every object exists once, whatever refers to it, and nothing
//! here recurses.

use super::TensorMeta;
use super::globals;
use crate::tensor::DType;
use std::fmt;

/// Index of an object in its arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Id(pub(super) u32);

/// One object. Sets are read as lists: nobody here needs to tell them apart.
#[derive(Debug)]
pub(super) enum Object {
    None,
    Bool(bool),
    Int(i64),
    /// An integer that does not fit 64 bits, of which nothing is kept.
    LargeInt,
    Float(f64),
    Str(Box<str>),
    Bytes(Box<[u8]>),
    List(Vec<Id>),
    Tuple(Box<[Id]>),
    Dict(Vec<(Id, Id)>),
    Tensor(Box<TensorMeta>),
    DType(DType),
    Storage(Storage),
    NumpyDType(Option<DType>),
    /// A function or class, as module and name.
    Global(Box<str>),
    /// The result of calling something that is not understood.
    Opaque {
        callee: Id,
    },
}

/// A storage that tensors are views of: an entry of the archive.
#[derive(Debug, Clone, Copy)]
pub(super) struct Storage {
    /// Index of the entry.
    pub(super) entry: usize,
    /// Element type; `None` if it is not supported.
    pub(super) dtype: Option<DType>,
    /// The class, for errors.
    pub(super) class: Id,
}

/// All objects of one pickle.
#[derive(Debug, Default)]
pub(super) struct Arena {
    objects: Vec<Object>,
}

impl Arena {
    pub(super) fn add(&mut self, object: Object) -> Id {
        self.objects.push(object);
        Id((self.objects.len() - 1) as u32) // the machine's budget is far below 2^32 objects
    }

    pub(super) fn get(&self, id: Id) -> &Object {
        &self.objects[id.0 as usize]
    }

    pub(super) fn get_mut(&mut self, id: Id) -> &mut Object {
        &mut self.objects[id.0 as usize]
    }

    pub(super) fn elements(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Object::List(elements) => Some(elements),
            Object::Tuple(elements) => Some(elements),
            _ => None,
        }
    }

    pub(super) fn str(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Object::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The global that an object is, or was made by calling.
    pub(super) fn global(&self, mut id: Id) -> Option<&str> {
        loop {
            match self.get(id) {
                Object::Global(name) => return Some(name),
                // A callee is always older than its result, so this ends.
                Object::Opaque { callee } => id = *callee,
                _ => return None,
            }
        }
    }
}

/// An object of a checkpoint, as the Python value that it stands for.
#[derive(Clone, Copy)]
pub struct Value<'a> {
    pub(super) arena: &'a Arena,
    pub(super) id: Id,
}

/// What a [`Value`] is.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Kind<'a> {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer, also a NumPy one.
    Int(i64),
    /// An integer beyond 64 bits; its value is not kept.
    LargeInt,
    /// A float, also a NumPy one.
    Float(f64),
    /// A string, or the name of a device.
    Str(&'a str),
    /// A byte string.
    Bytes(&'a [u8]),
    /// A list or a set, with its length.
    List(usize),
    /// A tuple or a `torch.Size`, with its length.
    Tuple(usize),
    /// A dictionary, with its length.
    Dict(usize),
    /// A tensor; [`TorchFile::tensor`](super::TorchFile::tensor) reads it.
    Tensor(&'a TensorMeta),
    /// `torch.float32` and its like.
    DType(DType),
    /// Something that this reader does not understand, and the function or class that it is or comes from.
    Opaque(&'a str),
}

impl<'a> Value<'a> {
    /// What the value is.
    pub fn kind(self) -> Kind<'a> {
        match self.arena.get(self.id) {
            Object::None => Kind::None,
            Object::Bool(value) => Kind::Bool(*value),
            Object::Int(value) => Kind::Int(*value),
            Object::LargeInt => Kind::LargeInt,
            Object::Float(value) => Kind::Float(*value),
            Object::Str(text) => Kind::Str(text),
            Object::Bytes(bytes) => Kind::Bytes(bytes),
            Object::List(elements) => Kind::List(elements.len()),
            Object::Tuple(elements) => Kind::Tuple(elements.len()),
            Object::Dict(entries) => Kind::Dict(entries.len()),
            Object::Tensor(meta) => Kind::Tensor(meta),
            Object::DType(dtype) => Kind::DType(*dtype),
            Object::NumpyDType(_) => Kind::Opaque("numpy.dtype"),
            Object::Storage(storage) => Kind::Opaque(self.arena.global(storage.class).unwrap_or("storage")),
            Object::Global(_) | Object::Opaque { .. } => {
                Kind::Opaque(self.arena.global(self.id).unwrap_or("something without a name"))
            }
        }
    }

    /// The value under a string key of a dictionary. As in Python, the last of equal keys counts.
    pub fn get(self, key: &str) -> Option<Value<'a>> {
        let Object::Dict(entries) = self.arena.get(self.id) else { return None };
        let (_, id) = entries.iter().rev().find(|(k, _)| self.arena.str(*k) == Some(key))?;
        Some(Value { arena: self.arena, id: *id })
    }

    /// The entries of a dictionary in the order in which they were added; nothing for other values.
    pub fn entries(self) -> impl ExactSizeIterator<Item = (Value<'a>, Value<'a>)> {
        let arena = self.arena;
        let entries: &'a [(Id, Id)] = match arena.get(self.id) {
            Object::Dict(entries) => entries,
            _ => &[],
        };
        entries.iter().map(move |&(key, value)| (Value { arena, id: key }, Value { arena, id: value }))
    }

    /// The elements of a list or tuple; nothing for other values.
    pub fn elements(self) -> impl ExactSizeIterator<Item = Value<'a>> {
        let arena = self.arena;
        arena.elements(self.id).unwrap_or_default().iter().map(move |&id| Value { arena, id })
    }

    /// The string, if it is one.
    pub fn as_str(self) -> Option<&'a str> {
        self.arena.str(self.id)
    }

    /// The integer, if it is one that fits.
    pub fn as_i64(self) -> Option<i64> {
        match self.arena.get(self.id) {
            Object::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// The number, if it is a float or an integer.
    pub fn as_f64(self) -> Option<f64> {
        match self.arena.get(self.id) {
            Object::Float(value) => Some(*value),
            Object::Int(value) => Some(*value as f64),
            _ => None,
        }
    }

    /// The tensor, if it is one.
    pub fn as_tensor(self) -> Option<&'a TensorMeta> {
        match self.arena.get(self.id) {
            Object::Tensor(meta) => Some(meta),
            _ => None,
        }
    }

    /// A word for errors: "a list", "an object of module.Class".
    pub(super) fn describe(self) -> String {
        match self.kind() {
            Kind::None => "None".to_string(),
            Kind::Bool(_) => "a boolean".to_string(),
            Kind::Int(_) | Kind::LargeInt => "an integer".to_string(),
            Kind::Float(_) => "a float".to_string(),
            Kind::Str(_) => "a string".to_string(),
            Kind::Bytes(_) => "bytes".to_string(),
            Kind::List(_) => "a list".to_string(),
            Kind::Tuple(_) => "a tuple".to_string(),
            Kind::Dict(_) => "a dictionary".to_string(),
            Kind::Tensor(_) => "a tensor".to_string(),
            Kind::DType(_) => "a dtype".to_string(),
            Kind::Opaque(global) => format!("an object of `{}`", crate::error::short(global)),
        }
    }
}

/// One level only: what lies below may be shared without end.
impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind().fmt(f)
    }
}

/// What calling a global gives, where it is not inert from the start: types have values of their own.
pub(super) fn object_of_global(name: String) -> Object {
    match globals::dtype(&name) {
        Some(dtype) => Object::DType(dtype),
        None => Object::Global(name.into_boxed_str()),
    }
}
