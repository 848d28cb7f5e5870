//! What PTX is lowered to: one fixed-size record an instruction, operands as rows of register files.
//!
//! Every operand is a row: constants, special registers that do not change and addresses of variables get rows of
//! their own, filled when a warp begins. The machine so never asks what kind of operand it has, and every arithmetic
//! instruction is a loop over the 32 lanes of two or three rows. Three files of rows: 32 bits (narrower values too,
//! zero-extended), 64 bits, and predicates (one bit a lane).

use crate::machine::hopper;

/// The type suffix of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are PTX's
pub enum Type {
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    Tf32,
    F32,
    F64,
    Pred,
}

impl Type {
    /// The type of that suffix.
    pub fn of(name: &str) -> Option<Type> {
        Some(match name {
            "b8" => Type::B8,
            "b16" => Type::B16,
            "b32" => Type::B32,
            "b64" => Type::B64,
            "b128" => Type::B128,
            "u8" => Type::U8,
            "u16" => Type::U16,
            "u32" => Type::U32,
            "u64" => Type::U64,
            "s8" => Type::S8,
            "s16" => Type::S16,
            "s32" => Type::S32,
            "s64" => Type::S64,
            "f16" => Type::F16,
            "f16x2" => Type::F16x2,
            "bf16" => Type::Bf16,
            "bf16x2" => Type::Bf16x2,
            "tf32" => Type::Tf32,
            "f32" => Type::F32,
            "f64" => Type::F64,
            "pred" => Type::Pred,
            _ => return None,
        })
    }

    /// Its size in bits; a predicate has one.
    pub fn bits(self) -> u32 {
        match self {
            Type::Pred => 1,
            Type::B8 | Type::U8 | Type::S8 => 8,
            Type::B16 | Type::U16 | Type::S16 | Type::F16 | Type::Bf16 => 16,
            Type::B32 | Type::U32 | Type::S32 | Type::F32 | Type::F16x2 | Type::Bf16x2 | Type::Tf32 => 32,
            Type::B64 | Type::U64 | Type::S64 | Type::F64 => 64,
            Type::B128 => 128,
        }
    }

    /// Its size in bytes.
    pub fn bytes(self) -> usize {
        self.bits().div_ceil(8) as usize
    }

    /// Whether it is a signed integer.
    pub fn signed(self) -> bool {
        matches!(self, Type::S8 | Type::S16 | Type::S32 | Type::S64)
    }

    /// Whether its values are floating point numbers, one or two.
    pub fn float(self) -> bool {
        matches!(
            self,
            Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2 | Type::F32 | Type::F64 | Type::Tf32
        )
    }
}

/// Where an address points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Space {
    Generic,
    Global,
    Constant,
    Parameter,
    Local,
    /// An address of the block's own, or of its cluster's, shared memory: both have one window.
    Shared,
}

/// How a result is rounded; the second four to whole numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Round {
    Nearest,
    Away,
    Zero,
    Down,
    Up,
}

/// The modifiers of floating-point arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// Rounding.
    pub round: Round,
    /// Subnormal numbers count as zero.
    pub ftz: bool,
    /// Clamped to 0 ..= 1.
    pub sat: bool,
    /// Negative results become zero.
    pub relu: bool,
    /// Not a number if either operand is not.
    pub nan: bool,
}

/// Integer operations of two operands, and bitwise ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Int {
    Add,
    AddSaturated,
    Sub,
    SubSaturated,
    MulLo,
    MulHi,
    Div,
    Rem,
    Min,
    Max,
    And,
    Or,
    Xor,
    Shl,
    Shr,
    Sad,
}

/// Integer operations of one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum IntUnary {
    Neg,
    Abs,
    Not,
    Cnot,
    Brev,
}

/// Bits that are counted; results have 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Count {
    Popc,
    Clz,
    Bfind,
    BfindShift,
}

/// Floating-point operations of two operands, and the fused product and sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Float {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
    CopySign,
    Fma,
}

/// Floating-point operations of one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum FloatUnary {
    Neg,
    Abs,
    Rcp,
    Sqrt,
    Rsqrt,
    Ex2,
    Lg2,
    Sin,
    Cos,
    Tanh,
}

/// Comparisons. With `unordered`, true if either operand is not a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

/// Ways to combine predicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Bool {
    And,
    Or,
    Xor,
}

/// `testp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Test {
    Finite,
    Infinite,
    Number,
    NotANumber,
    Normal,
    Subnormal,
}

/// What an atomic operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Atomic {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Inc,
    Dec,
    Exchange,
    CompareExchange,
}

/// How a shuffle finds its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

/// Votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

/// What a barrier also does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Barrier {
    Sync,
    Arrive,
    RedPopc,
    RedAnd,
    RedOr,
}

/// Products of a warp on its tensor core: `m16n8k{inner}`, or `m8n8k{inner}` for doubles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// Rows.
    pub rows: u8,
    /// The inner extent.
    pub inner: u8,
    /// Elements of A and B.
    pub operands: Type,
    /// Elements of C and D.
    pub results: Type,
}

/// No row.
pub const NONE: u32 = u32::MAX;

/// What an instruction does. Where operands are is said at [`Instruction`] unless said here.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Op {
    Nop,
    Exit,
    Trap,
    /// To instruction `d`.
    Branch,
    /// To the instruction that the list `d`, of `b`, names at index `a`.
    BranchIndexed,
    /// What the emulator does not know: message `d`.
    Unsupported,
    Move32,
    Move64,
    MovePred,
    /// `list[a ..]`, `parts` of `bits` each, lowest first, into `d`.
    Pack {
        bits: u8,
        parts: u8,
    },
    /// `a` into `list[d ..]`, rows or [`NONE`].
    Unpack {
        bits: u8,
        parts: u8,
    },
    Int(Int, Type),
    IntUnary(IntUnary, Type),
    Count(Count, Type),
    MulWide(Type),
    MadWide(Type),
    Mad {
        high: bool,
        ty: Type,
    },
    Mul24 {
        high: bool,
        signed: bool,
        add: bool,
    },
    /// `d`, `a`, `b`; carry in and out through the warp's carry flags.
    Carry {
        subtract: bool,
        carry_in: bool,
        carry_out: bool,
        wide: bool,
    },
    Bfe(Type),
    /// `d`, `a`, `b`, position `c`, length `e`.
    Bfi(Type),
    Prmt(u8),
    /// Table in `e`.
    Lop3,
    Shf {
        left: bool,
        wrap: bool,
    },
    Dp4a {
        a_signed: bool,
        b_signed: bool,
    },
    Float(Float, Type, Mode),
    FloatUnary(FloatUnary, Type, Mode),
    Testp(Test, Type),
    /// Into predicate `d` (and its complement into `e`); combined with predicate `c` if it is not [`NONE`].
    Setp {
        compare: Compare,
        ty: Type,
        ftz: bool,
        combine: Bool,
        negate: bool,
    },
    /// Into `d`: all ones or 1.0.
    Set {
        compare: Compare,
        ty: Type,
        float: bool,
        ftz: bool,
        combine: Bool,
        negate: bool,
    },
    /// Halves of a pair compared, into `d` and `e`.
    SetpPair {
        compare: Compare,
        ty: Type,
        combine: Bool,
        negate: bool,
    },
    /// By predicate `c`.
    Selp32,
    Selp64,
    /// By the sign of `c`.
    Slct {
        wide: bool,
        float: bool,
    },
    Bool(Bool),
    Not,
    /// Of one value, from whichever file `from` needs to that of `to`. `wide_from`, `wide_to`: the registers have 64 bits.
    Convert {
        to: Type,
        from: Type,
        round: Round,
        whole: bool,
        ftz: bool,
        sat: bool,
        relu: bool,
        wide_from: bool,
        wide_to: bool,
    },
    /// Of two floats, `a` into the high half.
    ConvertPair {
        to: Type,
        round: Round,
        relu: bool,
        sat: bool,
    },
    /// `list[d ..]` from address `a` + `c`; parameters lie at `b`, `a` may be [`NONE`].
    /// `wide`: the registers have 64 bits; `address64`: so has the address. `cached`: by the read-only path.
    Load {
        space: Space,
        ty: Type,
        count: u8,
        wide: bool,
        address64: bool,
    },
    /// `list[d ..]` to address `a` + `c`.
    Store {
        space: Space,
        ty: Type,
        count: u8,
        wide: bool,
        address64: bool,
    },
    /// The address `a` in the window of `space` as a generic one, or the other way.
    Cvta {
        space: Space,
        to: bool,
        wide: bool,
    },
    IsSpace {
        space: Space,
        wide: bool,
    },
    /// `d` (or [`NONE`]), address `a` + `e`, operands `b` and `c`.
    Atomic {
        op: Atomic,
        ty: Type,
        space: Space,
        address64: bool,
    },
    /// `d`, predicate `e`, `a`, lane `b`, clamp `c`, members `list`: see `e2`.
    Shuffle(Shuffle),
    /// Of predicate `a` by the members `b`.
    Vote {
        vote: Vote,
        negate: bool,
    },
    /// Of `a` by the members `b`, predicate `e`.
    Match {
        all: bool,
        wide: bool,
    },
    /// Of `a` by the members `b`.
    Redux(Atomic, Type),
    /// The lanes at work.
    ActiveMask,
    /// Of the members `a`.
    WarpSync,
    /// The lowest of the members `a`: its number into `d`, whether this is it into predicate `e`.
    Elect,
    /// Barrier `a` of `b` threads (or [`NONE`]: all); with a reduction, of predicate `c` into `d`.
    Barrier {
        barrier: Barrier,
        negate: bool,
        aligned: bool,
    },
    ClusterArrive,
    ClusterWait,
    /// `bytes` from `a` + `e` to shared `d` + `f`, of which `b` (or [`NONE`]: all) are read; with predicate `c`, nothing is.
    CpAsync {
        bytes: u8,
        ignore: bool,
    },
    CpAsyncCommit,
    /// Until `a` groups are left.
    CpAsyncWait {
        all: bool,
    },
    /// `count` matrices into `list[d ..]` from `a` + `e`.
    LdMatrix {
        count: u8,
        transposed: bool,
    },
    /// `list[d ..]` to `a` + `e`.
    StMatrix {
        count: u8,
        transposed: bool,
    },
    MovMatrix,
    /// D, A, B and C one after the other in `list[d ..]`.
    Mma(Product),
    /// Of shared address `a` in the block of rank `b`.
    Mapa {
        wide: bool,
        generic: bool,
    },
    GetRank {
        wide: bool,
    },
    /// A clock.
    Clock {
        wide: bool,
        nanoseconds: bool,
    },
    NanoSleep,
    /// One of Hopper's own.
    Hopper(hopper::Op),
}

/// One instruction. Operands are rows (whose file the operation tells), or what [`Op`] says.
#[derive(Clone, Copy, Debug)]
pub struct Instruction {
    /// What it does.
    pub op: Op,
    /// The predicate that guards it, or [`NONE`].
    pub guard: u32,
    /// Whether the guard is negated.
    pub guard_negated: bool,
    /// The destination.
    pub d: u32,
    /// The first operand.
    pub a: u32,
    /// The second.
    pub b: u32,
    /// The third.
    pub c: u32,
    /// A fourth, or a number.
    pub e: u32,
    /// A fifth, or a number.
    pub f: u32,
    /// Its line in the text, from 1.
    pub line: u32,
}

impl Instruction {
    /// An instruction without operands.
    pub fn new(op: Op) -> Instruction {
        Instruction {
            op,
            guard: NONE,
            guard_negated: false,
            d: NONE,
            a: NONE,
            b: NONE,
            c: NONE,
            e: NONE,
            f: NONE,
            line: 0,
        }
    }
}
