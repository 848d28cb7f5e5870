//! Matrix products of a few rows: a stream of the weights at the memory's speed.
//!
//! A step of generation is little else, so what stands around a product is taken along where it can be: several
//! products of one x are one launch (q, k, v), gate, inner matrix and SwiGlu are one, a Gelu is an epilogue, and the norm in
//! front is made by every block for itself. cuBLASLt remains for everything that this kernel does not serve.

use crate::compile::{Defines, Variant};
use crate::plan::{Compiler, args};
use landmark_core::ops::{AddNorm, Matmul, Norm, NormKind, Op};
use landmark_core::{DType, Result, Tensor};

/// Rows of x.
const MOST_ROWS: usize = 8;
/// Matrices in one launch.
const MOST_SEGMENTS: usize = 3;
/// As in the kernel file.
const WARPS: usize = 16;
/// Steps of 1 KiB that each warp has under way, at best. Two launches fit a multiprocessor's shared memory, so that one
/// fills its rings while the other ends.
const DEPTH: usize = 6;
/// The same where rows are short and a launch is over after a few steps: then three launches fit.
const SHORT_DEPTH: usize = 4;
const SHORT_ROW: usize = 2048;
const TWO_FIT: usize = 113 * 1024;
const ONE_FITS: usize = 220 * 1024;
/// Bytes of weights that a launch asks for on behalf of the next one, at most: a part of the second-level cache.
const MOST_BEHIND: usize = 16 << 20;
/// Bytes of weights that take longer than what an early beginning gains.
const LONG_STREAM: usize = 64 << 20;
/// Elements of a row of x that a thread keeps in registers while it norms.
const MOST_HELD: usize = 8;

/// What stands behind the products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behind {
    Nothing,
    Gelu,
    SwiGlu,
}

/// What stands in front of them.
#[derive(Clone, Debug)]
enum InFront {
    Nothing,
    Norm(Norm),
    AddNorm(AddNorm),
}

/// Products of one x, and what is taken along.
struct Group {
    front: InFront,
    products: Vec<Matmul>,
    behind: Behind,
    out: Option<Tensor>,
    ops: usize,
}

#[derive(Clone, Debug)]
struct Shape {
    weight: DType,
    out: DType,
    bias: Option<DType>,
    rows: usize,
    segments: usize,
    add: bool,
    behind: Behind,
    /// Kind of norm, and the types of what it adds and of its weights.
    norm: Option<(NormKind, DType, DType)>,
    depth: usize,
    held: usize,
}

impl Shape {
    fn defines(&self) -> Defines {
        let norm = match self.norm {
            None => 0,
            Some((NormKind::Rms { .. }, ..)) => 1,
            Some((NormKind::Layer { .. }, ..)) => 2,
        };
        let types = Defines::new().dtype("W_T", self.weight).dtype("OUT_T", self.out);
        let types = match self.bias {
            Some(bias) => types.dtype("BIAS_T", bias),
            None => types.set("BIAS_T", -1),
        };
        let types = match self.norm {
            Some((_, delta, weight)) => types.dtype("DELTA_T", delta).dtype("NORM_T", weight),
            None => types,
        };
        types
            .set("M", self.rows)
            .set("SEGMENTS", self.segments)
            .set("DEPTH", self.depth)
            .set("HELD", self.held)
            .set("WARPS", WARPS)
            .set("NORM", norm)
            .flag("ADD", self.add)
            .flag("SWIGLU", self.behind == Behind::SwiGlu)
            .flag("GELU", self.behind == Behind::Gelu)
    }
}

fn bytes_of_shared(rows: usize, inner: usize, depth: usize) -> usize {
    let group = (8 / rows).max(1);
    WARPS * depth * 1024 + 2 * group * WARPS * 16 * rows * 4 + rows * (inner + 32) * 2
}

/// The depth of the rings, if x fits beside them.
fn depth(rows: usize, inner: usize) -> Option<usize> {
    let fits = |limit: usize, depth: usize| bytes_of_shared(rows, inner, depth) <= limit;
    let most = if inner <= SHORT_ROW { SHORT_DEPTH } else { DEPTH };
    (4..=most).rev().find(|&d| fits(TWO_FIT, d)).or_else(|| fits(ONE_FITS, DEPTH).then_some(DEPTH))
}

/// Elements of a row that each thread keeps; 0 if those are too many.
fn held(inner: usize) -> usize {
    Some(inner.div_ceil(WARPS * 32)).filter(|&held| held <= MOST_HELD).unwrap_or(0)
}

/// Whether the kernel serves a product.
fn serves(op: &Matmul, c: &Compiler<'_>) -> bool {
    let (rows, columns, inner) = op.extents(c.program());
    let weight = c.dtype(op.b);
    !op.transpose_a
        && op.transpose_b
        && (1..=MOST_ROWS).contains(&rows)
        && columns > 0
        && inner > 0
        && inner.is_multiple_of(32)
        && matches!(weight, DType::Bf16 | DType::F16)
        && c.dtype(op.a) == weight
        && c.dtype(op.out.tensor).is_float()
        && depth(rows, inner).is_some()
}

/// Whether two products can be one launch.
fn alike(one: &Matmul, other: &Matmul, c: &Compiler<'_>) -> bool {
    one.a == other.a
        && one.scale == other.scale
        && one.out.add == other.out.add
        && c.dtype(one.b) == c.dtype(other.b)
        && c.dtype(one.out.tensor) == c.dtype(other.out.tensor)
        && one.bias.map(|b| c.dtype(b)) == other.bias.map(|b| c.dtype(b))
}

/// The products that come next but for `skip` ops, with what follows them.
fn products(skip: usize, c: &Compiler<'_>) -> Option<Group> {
    let ops = &c.ahead()[skip..];
    let mut products: Vec<Matmul> = Vec::new();
    for op in ops.iter().take(MOST_SEGMENTS) {
        match op {
            Op::Matmul(op)
                if serves(op, c)
                    && products.first().is_none_or(|first| alike(first, op, c))
                    && products.iter().all(|p| p.out.tensor != op.out.tensor) =>
            {
                products.push(op.clone());
            }
            _ => break,
        }
    }
    products.first()?;
    let plain = |op: &Matmul| op.scale == 1.0 && !op.out.add;
    let (behind, out, ops_taken) = match (&products[..], ops.get(products.len())) {
        ([gate, up], Some(Op::SwiGlu(op)))
            if op.gate == gate.out.tensor
                && op.up == up.out.tensor
                && plain(gate)
                && gate.bias.is_none()
                && c.dtype(op.out) == c.dtype(op.gate)
                && c.rows(gate.b) == c.rows(up.b)
                && c.is_passing(op.gate, skip + 3)
                && c.is_passing(op.up, skip + 3) =>
        {
            (Behind::SwiGlu, Some(op.out), 3)
        }
        ([up], Some(Op::Gelu(op)))
            if op.x == up.out.tensor
                && !up.out.add
                && c.dtype(op.out) == c.dtype(op.x)
                && c.is_passing(op.x, skip + 2) =>
        {
            (Behind::Gelu, Some(op.out), 2)
        }
        (some, _) => (Behind::Nothing, None, some.len()),
    };
    Some(Group { front: InFront::Nothing, products, behind, out, ops: ops_taken })
}

/// Whether the bytes of two tensors overlap.
fn overlap(c: &Compiler<'_>, one: Tensor, other: Tensor) -> bool {
    let span = |t: Tensor| (c.pointer(t), c.pointer(t) + c.info(t).bytes() as u64);
    let ((a0, a1), (b0, b1)) = (span(one), span(other));
    a0 < b1 && b0 < a1
}

/// A norm and the products of its result.
fn with_norm(c: &Compiler<'_>) -> Option<Group> {
    let (front, stream, delta, normed, weights) = match c.ahead().first()? {
        Op::Norm(op) => (InFront::Norm(op.clone()), op.x, None, op.out, (op.weight, op.bias)),
        Op::AddNorm(op) => (InFront::AddNorm(op.clone()), op.x, Some(op.delta), op.out, (op.weight, op.bias)),
        _ => return None,
    };
    let group = products(1, c)?;
    let weight = c.dtype(group.products[0].b);
    let sum = match &front {
        InFront::AddNorm(op) => Some(op.sum),
        _ => None,
    };
    let types = c.dtype(stream) == DType::F32
        && sum.is_none_or(|s| c.dtype(s) == DType::F32)
        && c.dtype(normed) == weight
        && weights.1.is_none_or(|b| c.dtype(b) == c.dtype(weights.0));
    // Some blocks may store results while others still read what the norm is made of.
    let results: Vec<Tensor> = match group.out {
        Some(out) => vec![out],
        None => group.products.iter().map(|p| p.out.tensor).collect(),
    };
    let reads = [Some(stream), delta];
    let writes = [sum, Some(normed)];
    let apart =
        results.iter().all(|&result| reads.iter().chain(&writes).flatten().all(|&t| !overlap(c, result, t)))
            && writes.iter().flatten().all(|&w| reads.iter().flatten().all(|&r| !overlap(c, w, r)));
    let is_next = group.products.iter().all(|p| p.a == normed);
    (types && apart && is_next).then(|| Group { front, ops: group.ops + 1, ..group })
}

/// Launches the products that come next, with what stands around them; returns how many ops it took.
pub(super) fn try_group(c: &mut Compiler<'_>) -> Result<usize> {
    let Some(group) = with_norm(c).or_else(|| products(0, c)) else { return Ok(0) };
    launch(&group, c)
}

/// Launches one product, if the kernel serves it.
pub(super) fn try_launch(op: &Matmul, c: &mut Compiler<'_>) -> Result<bool> {
    if !serves(op, c) {
        return Ok(false);
    }
    let (front, behind) = (InFront::Nothing, Behind::Nothing);
    let group = Group { front, products: vec![op.clone()], behind, out: None, ops: 1 };
    Ok(launch(&group, c)? > 0)
}

/// The weights of the product behind a group, if that reads what the group makes.
fn next_weights(group: &Group, c: &Compiler<'_>) -> Option<Tensor> {
    let Some(Op::Matmul(next)) = c.ahead().get(group.ops) else { return None };
    let made = group.out.or_else(|| group.products.first().map(|p| p.out.tensor));
    (made == Some(next.a) && serves(next, c) && c.info(next.b).bytes() <= MOST_BEHIND).then_some(next.b)
}

fn launch(group: &Group, c: &mut Compiler<'_>) -> Result<usize> {
    let first = &group.products[0];
    let (rows, _, inner) = first.extents(c.program());
    let Some(depth) = depth(rows, inner) else { return Ok(0) };
    let norm = match &group.front {
        InFront::Nothing => None,
        InFront::Norm(op) => Some((op.kind, c.dtype(first.b), c.dtype(op.weight))),
        InFront::AddNorm(op) => Some((op.kind, c.dtype(op.delta), c.dtype(op.weight))),
    };
    let shape = Shape {
        weight: c.dtype(first.b),
        out: c.dtype(first.out.tensor),
        bias: first.bias.map(|b| c.dtype(b)),
        rows,
        segments: group.products.len(),
        add: first.out.add,
        behind: group.behind,
        norm,
        depth,
        held: norm.map_or(0, |_| held(inner)),
    };
    let kernel = c.kernel("matvec.cu", "matvec", shape.defines())?;
    let mut args = Vec::new();
    let mut columns = 0;
    for i in 0..MOST_SEGMENTS {
        let Some(op) = group.products.get(i) else {
            args.extend(args![0_u64, 0_u64, 0_u64, 0_i32]);
            continue;
        };
        let out = group.out.unwrap_or(op.out.tensor);
        let here = c.rows(op.b);
        if group.behind != Behind::SwiGlu || i == 0 {
            columns += here;
        }
        args.extend(args![c.pointer(op.b), c.pointer(out), c.pointer_or_null(op.bias), here as i32]);
    }
    args.extend(args![c.pointer(first.a), inner as i32, first.scale]);
    let eps = |kind: NormKind| match kind {
        NormKind::Layer { eps } | NormKind::Rms { eps } => eps,
    };
    // The norm's own result is stored only for those who read it behind this launch.
    let wanted = |out: Tensor| if c.is_passing(out, group.ops) { 0 } else { c.pointer(out) };
    args.extend(match &group.front {
        InFront::Nothing => args![0_u64, 0_u64, 0_u64, 0_u64, 0_u64, 0_u64, 0.0_f32],
        InFront::Norm(op) => args![
            c.pointer(op.x),
            0_u64,
            c.pointer(op.weight),
            c.pointer_or_null(op.bias),
            0_u64,
            wanted(op.out),
            eps(op.kind),
        ],
        InFront::AddNorm(op) => args![
            c.pointer(op.x),
            c.pointer(op.delta),
            c.pointer(op.weight),
            c.pointer_or_null(op.bias),
            c.pointer(op.sum),
            wanted(op.out),
            eps(op.kind),
        ],
    });
    args.extend(match next_weights(group, c) {
        Some(weights) => args![c.pointer(weights), c.info(weights).bytes() as u32],
        None => args![0_u64, 0_u32],
    });
    let grid = [c.multiprocessors().min(columns as u32), 1, 1];
    let shared = bytes_of_shared(rows, inner, depth) as u32;
    // A long stream behind short launches begins when they are all gone: else some multiprocessors get two of its blocks and
    // others none (10 us of the 35 that the output layer of a GPT of 12 x 1024 takes).
    let weights: usize = group.products.iter().map(|p| c.info(p.b).bytes()).sum();
    if depth == SHORT_DEPTH && weights >= LONG_STREAM {
        c.launch(&kernel, grid, (WARPS * 32) as u32, shared, args)?;
    } else {
        c.launch_dependent(&kernel, grid, (WARPS * 32) as u32, shared, args)?;
    }
    Ok(group.ops)
}

pub(super) fn variants() -> Vec<Variant> {
    let mut all = Vec::new();
    let rms = NormKind::Rms { eps: 0.0 };
    let layer = NormKind::Layer { eps: 0.0 };
    for weight in [DType::Bf16, DType::F16] {
        let plain = Shape {
            weight,
            out: weight,
            bias: None,
            rows: 1,
            segments: 1,
            add: false,
            behind: Behind::Nothing,
            norm: None,
            depth: DEPTH,
            held: 0,
        };
        for rows in [1, 3, 8] {
            all.push(Shape { rows, ..plain.clone() });
        }
        all.push(Shape { rows: 2, segments: 3, bias: Some(DType::F32), ..plain.clone() });
        let norm = |kind| Some((kind, weight, DType::F32));
        all.push(Shape { segments: 2, behind: Behind::SwiGlu, norm: norm(rms), held: 8, ..plain.clone() });
        all.push(Shape { segments: 3, rows: 2, norm: norm(rms), held: 8, ..plain.clone() });
        all.push(Shape { segments: 3, norm: norm(rms), ..plain.clone() });
        all.push(Shape { behind: Behind::Gelu, norm: norm(layer), held: 2, ..plain.clone() });
        all.push(Shape {
            behind: Behind::Gelu,
            bias: Some(DType::F32),
            rows: 8,
            norm: norm(layer),
            ..plain.clone()
        });
        all.push(Shape { out: DType::F32, add: true, depth: 4, ..plain.clone() });
    }
    all.iter().map(|shape| Variant::new("matvec.cu", shape.defines())).collect()
}
