//! The names that a pickle may refer to, and what each stands for here.
//!
//! A pickle is a program: `GLOBAL` names any importable function and `REDUCE` calls it, which is how a checkpoint
//! runs code on whoever loads it. This reader has no importer and nothing to call. The few names below are
//! *understood*: their meaning is built in. All others become inert objects that remember their name, because
//! checkpoints hold odd things beside the weights (an old `OneCycleLR` keeps a bound method, trainers keep their
//! argument objects) and the weights next to them are still wanted.
//!
//! Safety does not rest on [`is_forbidden`]: an inert object does nothing whatever it is called. The list is there
//! because a file that mentions `os.system` is an attack, and its reader should be told rather than served.

use crate::tensor::DType;

/// What an understood name does when it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// `collections.OrderedDict`, `dict`: a dictionary, from nothing or from pairs.
    Dict,
    /// `collections.defaultdict`: a dictionary; its argument is the function for missing values.
    DefaultDict,
    /// `set`, `frozenset`, `torch.Size`, `torch.device`: what they are given, unchanged.
    Argument,
    /// `torch._utils._rebuild_tensor_v2`: a view of a typed storage.
    TensorV2,
    /// `torch._utils._rebuild_tensor_v3`: a view of bytes, with a type.
    TensorV3,
    /// `torch._utils._rebuild_parameter`: the tensor that it is given.
    Parameter,
    /// `torch._tensor._rebuild_from_type_v2`: calls its first argument with its third.
    FromType,
    /// `numpy.dtype`.
    NumpyDType,
    /// NumPy's `scalar`, from a type and bytes.
    NumpyScalar,
    /// `_codecs.encode`: how bytes are written at protocol 2.
    Encode,
}

/// The meaning of a global that is understood when called.
pub(super) fn meaning(global: &str) -> Option<Meaning> {
    Some(match global {
        "collections.OrderedDict" | "builtins.dict" | "__builtin__.dict" => Meaning::Dict,
        "collections.defaultdict" => Meaning::DefaultDict,
        "builtins.set" | "builtins.frozenset" | "__builtin__.set" | "__builtin__.frozenset" => {
            Meaning::Argument
        }
        "torch.Size" | "torch.device" => Meaning::Argument,
        "torch._utils._rebuild_tensor_v2" => Meaning::TensorV2,
        "torch._utils._rebuild_tensor_v3" => Meaning::TensorV3,
        "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => {
            Meaning::Parameter
        }
        "torch._tensor._rebuild_from_type_v2" => Meaning::FromType,
        "numpy.dtype" => Meaning::NumpyDType,
        "numpy.core.multiarray.scalar" | "numpy._core.multiarray.scalar" => Meaning::NumpyScalar,
        "_codecs.encode" => Meaning::Encode,
        _ => return None,
    })
}

/// `torch.float32` and its like.
pub(super) fn dtype(global: &str) -> Option<DType> {
    Some(match global.strip_prefix("torch.")? {
        "float64" => DType::F64,
        "float32" => DType::F32,
        "float16" => DType::F16,
        "bfloat16" => DType::BF16,
        "int64" => DType::I64,
        "int32" => DType::I32,
        "int16" => DType::I16,
        "int8" => DType::I8,
        "uint8" => DType::U8,
        "uint16" => DType::U16,
        "uint32" => DType::U32,
        "bool" => DType::Bool,
        _ => return None,
    })
}

/// The element type of a storage class. Outer `None`: not a storage class. Inner `None`: one whose elements are
/// not supported.
pub(super) fn storage_dtype(global: &str) -> Option<Option<DType>> {
    let class = global.strip_prefix("torch.cuda.").or_else(|| global.strip_prefix("torch."))?;
    Some(match class {
        "DoubleStorage" => Some(DType::F64),
        "FloatStorage" => Some(DType::F32),
        "HalfStorage" => Some(DType::F16),
        "BFloat16Storage" => Some(DType::BF16),
        "LongStorage" => Some(DType::I64),
        "IntStorage" => Some(DType::I32),
        "ShortStorage" => Some(DType::I16),
        "CharStorage" => Some(DType::I8),
        "ByteStorage" | "storage.UntypedStorage" | "UntypedStorage" => Some(DType::U8),
        "BoolStorage" => Some(DType::Bool),
        _ if class.ends_with("Storage") => None,
        _ => return None,
    })
}

/// The element type of a NumPy type code, native or little-endian: "f8", "b1".
pub(super) fn numpy_dtype(code: &str) -> Option<DType> {
    Some(match code {
        "f8" => DType::F64,
        "f4" => DType::F32,
        "f2" => DType::F16,
        "i8" => DType::I64,
        "i4" => DType::I32,
        "i2" => DType::I16,
        "i1" => DType::I8,
        "u1" => DType::U8,
        "u2" => DType::U16,
        "u4" => DType::U32,
        "b1" => DType::Bool,
        _ => return None,
    })
}

/// Whether a pickle can only name this in order to run code, or to reach the system, when it is loaded.
pub(super) fn is_forbidden(global: &str) -> bool {
    const MODULES: &[&str] = &[
        "_pickle",
        "asyncio",
        "cPickle",
        "code",
        "codeop",
        "commands",
        "ctypes",
        "http",
        "imp",
        "importlib",
        "io",
        "marshal",
        "nt",
        "os",
        "pdb",
        "pickle",
        "pip",
        "pkgutil",
        "popen2",
        "posix",
        "pty",
        "requests",
        "runpy",
        "shutil",
        "signal",
        "socket",
        "subprocess",
        "sys",
        "timeit",
        "urllib",
        "webbrowser",
        "zipimport",
    ];
    const BUILTINS: &[&str] = &[
        "__import__",
        "apply",
        "breakpoint",
        "compile",
        "delattr",
        "eval",
        "exec",
        "execfile",
        "file",
        "globals",
        "input",
        "locals",
        "open",
        "reload",
        "setattr",
        "vars",
    ];
    let Some((module, name)) = global.split_once('.') else { return false };
    match module {
        "builtins" | "__builtin__" => BUILTINS.contains(&name),
        _ => MODULES.contains(&module),
    }
}
