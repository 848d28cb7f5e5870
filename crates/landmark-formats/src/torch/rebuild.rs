//! What the calls in a pickle amount to: dictionaries, tensors, scalars, or something inert.
//!
//! Every function here checks its arguments as if they came from an enemy, copies at most a bounded amount for each
//! call (an argument tuple may be called a million times), and reports what is wrong as a sentence.

use super::TensorMeta;
use super::globals::{self, Meaning};
use super::objects::{Arena, Id, Object, Storage};
use crate::tensor::{DType, TensorRef};

/// PyTorch's own limit.
const MOST_DIMENSIONS: usize = 64;

/// The longest string that is turned into bytes: NumPy scalars need 8, and arrays are left inert.
const LONGEST_ENCODED: usize = 64;

/// Why an object could not be built.
pub(super) type Reason = String;

/// Tells how many bytes an entry of the archive has.
pub(super) trait Storages {
    /// The index and length of the entry that holds the storage `key`.
    fn find(&self, key: &str) -> Option<usize>;
    /// The length in bytes of an entry.
    fn length(&self, entry: usize) -> usize;
}

/// The result of calling `callee` with the tuple `arguments`.
pub(super) fn call(
    arena: &mut Arena,
    storages: &dyn Storages,
    callee: Id,
    arguments: Id,
) -> Result<Id, Reason> {
    let meaning = match arena.get(callee) {
        Object::Global(name) => globals::meaning(name),
        Object::Opaque { .. } => None,
        _ => return Err("it calls something that is no function".to_string()),
    };
    let Some(arguments) = arena.elements(arguments) else {
        return Err("it calls a function with something that is not a tuple".to_string());
    };
    // Enough for every function that is understood, and bounded however long the tuple is.
    let arguments: Vec<Id> = arguments.iter().copied().take(8).collect();
    match meaning {
        None => Ok(arena.add(Object::Opaque { callee })),
        Some(Meaning::FromType) => from_type(arena, storages, callee, &arguments),
        Some(meaning) => understood(arena, storages, callee, meaning, &arguments),
    }
}

fn understood(
    arena: &mut Arena,
    storages: &dyn Storages,
    callee: Id,
    meaning: Meaning,
    arguments: &[Id],
) -> Result<Id, Reason> {
    let object = match (meaning, arguments) {
        (Meaning::Dict, []) | (Meaning::DefaultDict, _) => Object::Dict(Vec::new()),
        (Meaning::Argument | Meaning::Parameter, [argument, ..]) => return Ok(*argument),
        (Meaning::Argument, []) => Object::List(Vec::new()),
        (Meaning::TensorV2, [storage, offset, size, stride, ..]) => {
            tensor(arena, storages, [*storage, *offset, *size, *stride], None)?
        }
        (Meaning::TensorV3, [storage, offset, size, stride, _, _, dtype, ..]) => match arena.get(*dtype) {
            Object::DType(dtype) => {
                tensor(arena, storages, [*storage, *offset, *size, *stride], Some(*dtype))?
            }
            _ => Object::Opaque { callee: *dtype_or(arena, dtype, &callee) },
        },
        (Meaning::NumpyDType, [code, ..]) => {
            Object::NumpyDType(arena.str(*code).and_then(globals::numpy_dtype))
        }
        (Meaning::NumpyScalar, [dtype, bytes]) => {
            scalar(arena.get(*dtype), arena.get(*bytes)).unwrap_or(Object::Opaque { callee })
        }
        (Meaning::Encode, [text, ..]) => {
            arena.str(*text).and_then(encode).unwrap_or(Object::Opaque { callee })
        }
        // A dictionary made of pairs, and calls with too few arguments.
        _ => Object::Opaque { callee },
    };
    Ok(arena.add(object))
}

/// A type that is not supported is a global, and names itself; anything else is named by the call.
fn dtype_or<'a>(arena: &Arena, dtype: &'a Id, callee: &'a Id) -> &'a Id {
    if arena.global(*dtype).is_some() { dtype } else { callee }
}

/// `_rebuild_from_type_v2(function, type, arguments, state)`, for tensors with attributes. Only the plain functions
/// are called, so this does not recurse.
fn from_type(arena: &mut Arena, storages: &dyn Storages, callee: Id, arguments: &[Id]) -> Result<Id, Reason> {
    if let [function, _, inner, ..] = *arguments
        && let Object::Global(name) = arena.get(function)
        && let Some(meaning @ (Meaning::TensorV2 | Meaning::TensorV3 | Meaning::Parameter)) =
            globals::meaning(name)
        && let Some(inner) = arena.elements(inner)
    {
        let inner: Vec<Id> = inner.iter().copied().take(8).collect();
        return understood(arena, storages, function, meaning, &inner);
    }
    Ok(arena.add(Object::Opaque { callee }))
}

/// A storage, from what `BINPERSID` finds: ("storage", class, key, device, element count).
pub(super) fn storage(arena: &Arena, storages: &dyn Storages, id: Id) -> Result<Object, Reason> {
    let parts = arena.elements(id).unwrap_or_default();
    let [tag, class, key, ..] = parts else {
        return Err("it refers to data outside of it in an unknown way".to_string());
    };
    let (Some("storage"), Some(key)) = (arena.str(*tag), arena.str(*key)) else {
        return Err("it refers to data outside of it in an unknown way".to_string());
    };
    let Object::Global(name) = arena.get(*class) else {
        return Err("it has a storage without a class".to_string());
    };
    let dtype = globals::storage_dtype(name)
        .ok_or_else(|| format!("`{}` is not a class of storages", crate::error::short(name)))?;
    let entry = storages.find(key);
    let entry =
        entry.ok_or_else(|| format!("the data of storage `{}` are missing", crate::error::short(key)))?;
    Ok(Object::Storage(Storage { entry, dtype, class: *class }))
}

/// A tensor from its storage, offset, size and stride, all counted in elements. Whatever it could ever read is
/// checked to lie within its storage here, once.
fn tensor(
    arena: &Arena,
    storages: &dyn Storages,
    [storage, offset, size, stride]: [Id; 4],
    dtype: Option<DType>,
) -> Result<Object, Reason> {
    let Object::Storage(storage) = *arena.get(storage) else {
        // A storage that was itself rebuilt in some unknown way.
        return match arena.global(storage) {
            Some(_) => Ok(Object::Opaque { callee: storage }),
            None => Err("it has a tensor without a storage".to_string()),
        };
    };
    let Some(dtype) = dtype.or(storage.dtype) else { return Ok(Object::Opaque { callee: storage.class }) };
    let (shape, strides) = (dimensions(arena, size)?, dimensions(arena, stride)?);
    let offset = match arena.get(offset) {
        Object::Int(offset) => {
            usize::try_from(*offset).map_err(|_| "it has a tensor with a negative offset")?
        }
        _ => return Err("it has a tensor whose offset is no integer".to_string()),
    };
    let meta = TensorMeta { dtype, shape, strides, offset, entry: storage.entry };
    let length = storages.length(storage.entry);
    match meta.bytes_spanned() {
        Some(spanned) if spanned <= length => Ok(Object::Tensor(Box::new(meta))),
        _ => Err(format!(
            "a {dtype} tensor of shape {:?} and strides {:?} at {offset} does not fit its storage of {length} bytes",
            meta.shape, meta.strides
        )),
    }
}

fn dimensions(arena: &Arena, id: Id) -> Result<Vec<usize>, Reason> {
    let elements = arena.elements(id).ok_or("it has a tensor whose size is no tuple")?;
    if elements.len() > MOST_DIMENSIONS {
        return Err(format!("it has a tensor of {} dimensions", elements.len()));
    }
    let dimension = |&id: &Id| match arena.get(id) {
        Object::Int(value) => usize::try_from(*value).ok(),
        _ => None,
    };
    let dimensions: Option<Vec<usize>> = elements.iter().map(dimension).collect();
    dimensions.ok_or_else(|| "it has a tensor with a size or stride that is no count".to_string())
}

/// A NumPy scalar, if type and length are as they should be.
fn scalar(dtype: &Object, bytes: &Object) -> Option<Object> {
    let (Object::NumpyDType(Some(dtype)), Object::Bytes(bytes)) = (dtype, bytes) else { return None };
    let tensor = TensorRef::new(*dtype, vec![], &bytes[..]).ok()?;
    Some(match dtype {
        DType::Bool => Object::Bool(bytes[0] != 0),
        _ if dtype.is_float() => Object::Float(tensor.to_f64()[0]),
        _ => Object::Int(tensor.to_i64().ok()?[0]),
    })
}

/// Latin-1, the one encoding that pickle uses for bytes; anything longer than a scalar stays inert.
fn encode(text: &str) -> Option<Object> {
    if text.len() > 2 * LONGEST_ENCODED {
        return None;
    }
    let bytes: Option<Box<[u8]>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
    bytes.filter(|bytes| bytes.len() <= LONGEST_ENCODED).map(Object::Bytes)
}

/// `BUILD`: sets the state of an object. It matters for one type only; attributes of dictionaries (`_metadata` of a
/// state dict) and of inert objects are dropped.
pub(super) fn build(arena: &mut Arena, target: Id, state: Id) {
    if !matches!(arena.get(target), Object::NumpyDType(_)) {
        return;
    }
    // (version, byte order, ...): NumPy writes "<" or "|" for what we can read.
    let order = arena.elements(state).and_then(|state| state.get(1)).and_then(|&order| arena.str(order));
    if !matches!(order, Some("<" | "|")) {
        *arena.get_mut(target) = Object::NumpyDType(None);
    }
}
