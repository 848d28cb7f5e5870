//! Products of a few rows: a stream of the weights at the memory's speed, and what stands around it.
//!
//! A step of generation is little else, and between two launches memory is idle. So what surrounds a product is taken
//! along: products of one factor (queries, keys and values) share a launch; an RMSNorm in front is made by every workgroup
//! for itself, since each reads the whole row in any case ([`takes_norm`]); a residual addition, a GELU or a SwiGLU behind it
//! is made where the sums are. What a launch cannot bind within WebGPU's limits stays a launch of its own.
//!
//! Some tensors are thereby touched by earlier or later launches than the program says: [`borrowed`] tells the memory plan.

use crate::kernel::{Entry, Kernel, Resource};
use crate::plan::{Compiler, MOST_BINDINGS, Part, alignment};
use landmark_core::ops::{Access, AddNorm, Matmul, Norm, NormKind, Op};
use landmark_core::quantize::Bits;
use landmark_core::{DType, Program, Result, Tensor};
use std::collections::HashMap;
use std::fmt::Write;

/// Up to so many rows, a product is bound by reading the weights.
pub(super) const FEW_ROWS: usize = 8;

/// What is behind the names of each product of a launch of several.
const SUFFIXES: [&str; 3] = ["", "_1", "_2"];
/// Their parameters: columns, the first of them in the result, the result's columns.
const EXTENTS: [[&str; 3]; 3] =
    [["n", "first", "stride"], ["n_1", "first_1", "stride_1"], ["n_2", "first_2", "stride_2"]];

/// A norm that products make for themselves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Normed {
    /// What is normed.
    stream: Tensor,
    weight: Tensor,
    eps: f32,
}

/// What is done with products before they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behind {
    Nothing,
    /// Added to this.
    Residual(Tensor),
    Gelu,
    SwiGlu,
}

impl Behind {
    fn describe(self, k: &mut Kernel, c: &Compiler<'_>, alignment: usize) -> Result<()> {
        k.flag("GELU", self == Behind::Gelu);
        k.flag("SWIGLU", self == Behind::SwiGlu);
        let stream = if let Behind::Residual(stream) = self { Some(stream) } else { None };
        c.read_if(k, "residual", stream, alignment)
    }
}

/// Tensors that a launch may touch before or after the ops that name them do, with the number of the op in whose place
/// the launch stands; `last` is the last op that touches each tensor.
pub(crate) fn borrowed(program: &Program, last: &HashMap<Tensor, usize>) -> Vec<(Tensor, usize)> {
    let (ops, mut borrowed) = (program.ops(), Vec::new());
    for (at, op) in ops.iter().enumerate() {
        let (stream, out) = match op {
            Op::Norm(op) => (op.x, op.out),
            Op::AddNorm(op) => {
                if at > 0 && matches!(&ops[at - 1], Op::Matmul(product) if product.out.tensor == op.delta) {
                    borrowed.push((op.sum, at - 1));
                }
                (op.sum, op.out)
            }
            _ => continue,
        };
        if program.shape(out).rows() <= FEW_ROWS {
            borrowed.extend(last.get(&out).map(|&last| (stream, last)));
        }
    }
    borrowed
}

/// Whether these kernels make a product. In software others do.
pub(super) fn serves(op: &Matmul, c: &Compiler<'_>) -> bool {
    !c.works_alone() && !op.transpose_a && op.transpose_b && c.rows(op.a) <= FEW_ROWS
}

/// Whether whoever reads a norm's result makes it for himself, so that it need not be launched. From now on they do.
pub(super) fn takes_norm(op: &Norm, c: &mut Compiler<'_>) -> bool {
    let NormKind::Rms { eps } = op.kind else { return false };
    let is_plain = op.bias.is_none() && c.last_if_scratch(op.weight).is_none();
    let Some(last) = c.last_if_scratch(op.out).filter(|_| is_plain) else { return false };
    let is_read = |later: &Op| match later {
        Op::Matmul(product) => product.a == op.out && product.b != op.out && serves(product, c),
        _ => false,
    };
    let is_left = |tensor: Tensor, access| {
        access == Access::Read || ![op.x, op.weight].iter().any(|read| c.owner(*read) == c.owner(tensor))
    };
    let is_served = c.ahead(1..=last - c.number()).iter().all(|later| {
        let operands = later.operand_list();
        (is_read(later) || operands.iter().all(|o| o.tensor != op.out))
            && operands.iter().all(|o| is_left(o.tensor, o.access))
    });
    if is_served {
        c.normed.insert(op.out, Normed { stream: op.x, weight: op.weight, eps });
    }
    is_served
}

/// A product of a few rows, with what is behind it.
pub(super) fn matvec(op: &Matmul, c: &mut Compiler<'_>) -> Result<()> {
    let parts = c.parts(op.b)?;
    if let [part] = &parts[..]
        && with_swiglu(op, part, c)?
    {
        return Ok(());
    }
    let (behind, out, taken) = behind(op, c);
    for part in &parts {
        let mut k = kernel(op.a, c.rows(op.a), op.b, part, c)?;
        let aligned = alignment(&[c.cols(out), part.first, part.rows]);
        behind.describe(&mut k, c, aligned)?;
        k.flag("ADD", op.out.add);
        operands(op, out, aligned, "", &mut k, c)?;
        let mut extents = vec![[part.rows, part.first, c.cols(out)]];
        if parts.len() == 1 && behind == Behind::Nothing {
            while let Some((next, beside)) = beside(op, extents.len(), &k, c)? {
                let suffix = SUFFIXES[extents.len()];
                let aligned = alignment(&[c.cols(next.out.tensor), beside.first, beside.rows]);
                c.read_chunks(&mut k, &format!("b{suffix}"), next.b, &beside);
                operands(next, next.out.tensor, aligned, suffix, &mut k, c)?;
                extents.push([beside.rows, beside.first, c.cols(next.out.tensor)]);
                c.take_next();
            }
        }
        several(&mut k, &extents);
        launch(k, &extents, 4, 0, op.scale, c)?;
    }
    if let Behind::Residual(_) = behind {
        // Its norm remains.
        c.added = Some(out);
    }
    (0..taken).for_each(|_| c.take_next());
    Ok(())
}

/// Some rows of `a`, times transpose(`b`), into a workspace of f32.
pub(super) fn into_workspace(
    a: Tensor,
    rows: std::ops::Range<usize>,
    b: Tensor,
    out: &Resource,
    c: &mut Compiler<'_>,
) -> Result<()> {
    let cols = c.rows(b);
    for part in c.parts(b)? {
        let mut k = kernel(a, rows.len(), b, &part, c)?;
        let aligned = alignment(&[cols, part.first, part.rows]);
        Behind::Nothing.describe(&mut k, c, aligned)?;
        k.flag("ADD", false);
        k.absent("bias");
        k.storage("out", DType::F32, aligned, Entry::Write, out.clone());
        let extents = [[part.rows, part.first, cols]];
        several(&mut k, &extents);
        launch(k, &extents, 4, rows.start, 1.0, c)?;
    }
    Ok(())
}

/// What of the ops behind a product its launch does, where the result goes then, and how many ops it takes along.
fn behind(op: &Matmul, c: &Compiler<'_>) -> (Behind, Tensor, usize) {
    let (made, nothing) = (op.out.tensor, (Behind::Nothing, op.out.tensor, 0));
    let passes = c.last_if_scratch(made) == Some(c.number() + 1);
    match c.ahead(1..=1) {
        _ if op.out.add || !passes => nothing,
        [Op::Gelu(next)] if next.x == made && is_apart(op, next.out, c) => (Behind::Gelu, next.out, 1),
        // The norm behind the addition finds the sum there.
        [Op::AddNorm(next)] if next.delta == made && next.x != made && is_apart(op, next.sum, c) => {
            (Behind::Residual(next.x), next.sum, 0)
        }
        _ => nothing,
    }
}

/// Whether a launch that reads what a product reads may write this.
fn is_apart(op: &Matmul, out: Tensor, c: &Compiler<'_>) -> bool {
    let factor = c.normed.get(&op.a).map_or(op.a, |normed| normed.stream);
    [Some(factor), Some(op.b), op.bias].iter().flatten().all(|&read| !c.is_same_storage(read, out))
}

/// Two products and the SwiGLU of them, if they come next: a workgroup makes two columns of each.
fn with_swiglu(op: &Matmul, part: &Part, c: &mut Compiler<'_>) -> Result<bool> {
    let [Op::Matmul(other), Op::SwiGlu(next)] = c.ahead(1..=2) else { return Ok(false) };
    let behind = c.number() + 2;
    let products = [op, other];
    let is_plain = |p: &&Matmul| {
        p.a == op.a
            && serves(p, c)
            && !p.out.add
            && p.scale.to_bits() == op.scale.to_bits()
            && c.last_if_scratch(p.out.tensor) == Some(behind)
            && is_apart(p, next.out, c)
    };
    let is_alike = c.dtype(op.b) == c.dtype(other.b) && c.rows(op.b) == c.rows(other.b);
    let parts = c.parts(other.b)?;
    let ([beside], true) = (&parts[..], is_alike && products.iter().all(is_plain)) else { return Ok(false) };
    if part.quantised.is_some() != beside.quantised.is_some() {
        return Ok(false);
    }
    let order = [op.out.tensor, other.out.tensor];
    let pairs = match () {
        () if order == [next.gate, next.up] => [(op, part), (other, beside)],
        () if order == [next.up, next.gate] => [(other, beside), (op, part)],
        () => return Ok(false),
    };
    let mut k = kernel(op.a, c.rows(op.a), pairs[0].0.b, pairs[0].1, c)?;
    c.read_chunks(&mut k, "b_1", pairs[1].0.b, pairs[1].1);
    let aligned = alignment(&[2, part.rows]);
    Behind::SwiGlu.describe(&mut k, c, aligned)?;
    k.flag("ADD", false);
    c.read_if(&mut k, "bias_1", pairs[1].0.bias, aligned)?;
    operands(pairs[0].0, next.out, aligned, "", &mut k, c)?;
    if k.storage_bindings() > MOST_BINDINGS {
        return Ok(false);
    }
    let extents = [[part.rows, 0, part.rows]];
    text(&mut k, "", ["b_1", "bias_1"], 0);
    k.include(
        "fn work(group: vec3<u32>, groups: vec3<u32>, thread: u32) {
    product(2u * group_index(group, groups), thread);
}
",
    );
    launch(k, &extents, 2, 0, op.scale, c)?;
    c.take_next();
    c.take_next();
    Ok(true)
}

/// Bias and result.
fn operands(
    op: &Matmul,
    out: Tensor,
    alignment: usize,
    suffix: &str,
    k: &mut Kernel,
    c: &Compiler<'_>,
) -> Result<()> {
    c.read_if(k, &format!("bias{suffix}"), op.bias, alignment)?;
    c.write(k, &format!("out{suffix}"), out, alignment)
}

/// The next op, if it is a product of the same factor that a launch of `count` others has room for.
fn beside<'a>(op: &Matmul, count: usize, k: &Kernel, c: &Compiler<'a>) -> Result<Option<(&'a Matmul, Part)>> {
    let [Op::Matmul(next)] = c.ahead(1..=1) else { return Ok(None) };
    let is_alike = next.a == op.a
        && serves(next, c)
        && next.scale.to_bits() == op.scale.to_bits()
        && !op.out.add
        && !next.out.add;
    if !is_alike || count == SUFFIXES.len() {
        return Ok(None);
    }
    let mut parts = c.parts(next.b)?;
    let (Some(part), true) = (parts.pop(), parts.is_empty()) else { return Ok(None) };
    let bindings = 2 + usize::from(next.bias.is_some()) + usize::from(part.quantised.is_some());
    // What the others write is nothing that this one reads; and a launch has a buffer either to read it or to write it.
    let mut touched = vec![part.resource.clone(), c.whole(next.out.tensor)?];
    touched.extend(next.bias.map(|bias| c.whole(bias)).transpose()?);
    let is_free = !touched.iter().any(|resource| k.binds(resource));
    Ok((is_free && k.storage_bindings() + bindings <= MOST_BINDINGS).then_some((next, part)))
}

/// Threads of a workgroup that makes four columns: as many as find 16 bytes each in a row, twice, but no more than 128. (On
/// an H200, a step of 8 layers of LLaMA 7B in f16 runs at 659 tokens/s so, at 596 with 256 threads and at 587 with 64.)
fn threads(inner: usize, part: &Part) -> usize {
    let of_16_bytes = match part.quantised {
        None => 8,
        Some((Bits::Eight, _)) => 16,
        Some((Bits::Four, _)) => 32,
    };
    (inner / (2 * of_16_bytes)).next_power_of_two().clamp(64, 128)
}

/// The kernel for so many rows of `a`, or of what it is the norm of, with the first factor of weights.
fn kernel(a: Tensor, rows: usize, b: Tensor, part: &Part, c: &Compiler<'_>) -> Result<Kernel> {
    let inner = c.cols(b);
    let mut k = Kernel::new("matvec", "");
    k.constant("ROWS", rows);
    k.constant("INNER", inner);
    k.constant("WORKGROUP", threads(inner, part));
    let normed = c.normed.get(&a);
    let squares = normed.map_or(0, |_| rows.div_ceil(4));
    k.combining(rows + squares, c.has(wgpu::Features::SUBGROUP));
    k.include(include_str!("../shaders/activations.wgsl"));
    k.flag("NORM", normed.is_some());
    let alignment = alignment(&[inner]);
    c.read(&mut k, "a", normed.map_or(a, |normed| normed.stream), alignment)?;
    c.read_if(&mut k, "norm", normed.map(|normed| normed.weight), alignment)?;
    k.param("eps", normed.map_or(0.0, |normed| normed.eps));
    c.read_chunks(&mut k, "b", b, part);
    Ok(k)
}

/// Launches a kernel whose text is complete, a workgroup for so many columns.
fn launch(
    mut k: Kernel,
    extents: &[[usize; 3]],
    columns: usize,
    above: usize,
    scale: f32,
    c: &mut Compiler<'_>,
) -> Result<()> {
    k.param("above", above);
    k.param("scale", scale);
    for (names, values) in EXTENTS.iter().zip(extents) {
        names.iter().zip(values).for_each(|(name, value)| k.param(name, *value));
    }
    let groups = extents.iter().map(|[n, ..]| n.div_ceil(columns)).sum();
    c.dispatch(k, groups)
}

/// The text of a product; the third and fourth rows of weights of a workgroup are of `third`, so many columns on.
fn text(k: &mut Kernel, suffix: &str, third: [&str; 2], columns: usize) {
    let text = include_str!("../shaders/matvec.wgsl");
    let text = text.replace("THIRD", &format!("{columns}u"));
    k.include(&text.replace("third$", third[0]).replace("third_bias$", third[1]).replace('$', suffix));
}

/// The text of products beside each other, each by workgroups of its own, a workgroup for four columns.
fn several(k: &mut Kernel, extents: &[[usize; 3]]) {
    let mut work = "fn work(group: vec3<u32>, groups: vec3<u32>, thread: u32) {
    var number = group_index(group, groups);
"
    .to_owned();
    for suffix in &SUFFIXES[..extents.len()] {
        text(k, suffix, ["b$", "bias$"], 2);
        let _ = write!(
            work,
            "    let groups_of{suffix} = (params.n{suffix} + 3u) / 4u;
    if (number < groups_of{suffix}) {{
        product{suffix}(4u * number, thread);
        return;
    }}
    number -= groups_of{suffix};
"
        );
    }
    k.include(&(work + "}\n"));
}

/// What remains of an addition and its norm when the addition is done.
pub(super) fn rest_of(op: &AddNorm, c: &mut Compiler<'_>) -> Option<Norm> {
    let &AddNorm { kind, weight, bias, sum, out, .. } = op;
    (c.added.take() == Some(sum)).then_some(Norm { kind, x: sum, weight, bias, out })
}
