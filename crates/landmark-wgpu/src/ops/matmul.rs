//! Matrix products: a tiled one for many rows, and one for few that reads the weights as fast as memory gives them. In software
//! one whose threads work alone serves both.
//!
//! Weights larger than a binding are multiplied piece by piece: their rows are columns of the result. Products of a few rows
//! with several matrices (queries, keys and values; gate and up) share a launch: between two of them memory is idle.

use crate::kernel::{Entry, Kernel, Resource};
use crate::matrix_units;
use crate::plan::{Compiler, LONE_THREADS, MOST_BINDINGS, Part, alignment};
use landmark_core::ops::{Matmul, Op};
use landmark_core::quantize::Bits;
use landmark_core::{DType, Result, Tensor};
use std::fmt::Write;

/// Up to so many rows of `a`, the product is bound by reading `b`.
const FEW_ROWS: usize = 8;
/// Rows and columns of a tile of the other kernel.
const TILE: usize = 64;
/// The same on matrix units.
const WIDE_TILE: usize = 128;
/// Columns of the operands that matrix units take at a time.
const SLICE: usize = 64;

/// What is behind the names of each product of a launch of several.
const SUFFIXES: [&str; 3] = ["", "_1", "_2"];
/// Their parameters: columns, the first of them in the result, the result's columns.
const EXTENTS: [[&str; 3]; 3] =
    [["n", "first", "stride"], ["n_1", "first_1", "stride_1"], ["n_2", "first_2", "stride_2"]];

/// Which kernel makes a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// A matrix and a few vectors.
    Few,
    /// On matrix units, in f16 with sums in f32.
    MatrixUnits,
    /// In f32.
    Portable,
    /// The same by threads that work alone.
    Alone,
}

impl Product {
    /// The fastest that serves. Activations in f32 are not rounded for the matrix units' sake; weights in blocks have no
    /// more digits than f16 has.
    fn way(&self, part: &Part, c: &Compiler<'_>) -> Way {
        let is_half = |tensor| c.dtype(tensor) == DType::F16;
        match self.rows {
            _ if c.works_alone() => Way::Alone,
            ..=FEW_ROWS => Way::Few,
            _ if !c.has(matrix_units::FEATURES) || !is_half(self.a) => Way::Portable,
            _ if part.quantised.is_some() || is_half(self.b) => Way::MatrixUnits,
            _ => Way::Portable,
        }
    }
}

/// `a · transpose(b)`, of some rows of `a` `(M, K)`; `b` `(N, K)`.
pub(super) struct Product {
    pub(super) a: Tensor,
    /// First row of `a`.
    pub(super) first: usize,
    /// Rows of `a`.
    pub(super) rows: usize,
    pub(super) b: Tensor,
}

pub(super) fn matmul(op: &Matmul, c: &mut Compiler<'_>) -> Result<()> {
    if op.transpose_a || !op.transpose_b {
        return Err(c.unsupported(super::TRAINING));
    }
    let cols = c.cols(op.out.tensor);
    let product = Product { a: op.a, first: 0, rows: c.rows(op.a), b: op.b };
    let parts = c.parts(op.b)?;
    let is_whole = parts.len() == 1;
    for part in parts {
        let mut k = kernel(&product, &part, c)?;
        operands(op, &part, SUFFIXES[0], &mut k, c)?;
        k.flag("ADD", op.out.add);
        let mut extents = vec![[part.rows, part.first, cols]];
        if is_whole && product.way(&part, c) == Way::Few {
            while let Some((next, beside)) = beside(op, extents.len(), &k, c)? {
                let suffix = SUFFIXES[extents.len()];
                c.read_chunks(&mut k, &format!("b{suffix}"), next.b, &beside);
                operands(next, &beside, suffix, &mut k, c)?;
                extents.push([beside.rows, beside.first, c.cols(next.out.tensor)]);
                c.take_next();
            }
        }
        launch(&product, &part, k, &extents, op.scale, c)?;
    }
    Ok(())
}

/// Bias and result.
fn operands(op: &Matmul, part: &Part, suffix: &str, k: &mut Kernel, c: &Compiler<'_>) -> Result<()> {
    let alignment = alignment(&[c.cols(op.out.tensor), part.first, part.rows]);
    c.read_if(k, &format!("bias{suffix}"), op.bias, alignment)?;
    c.write(k, &format!("out{suffix}"), op.out.tensor, alignment)
}

/// The next op, if it is a product of the same factor that a launch of `count` others has room for.
fn beside<'a>(op: &Matmul, count: usize, k: &Kernel, c: &Compiler<'a>) -> Result<Option<(&'a Matmul, Part)>> {
    let Some(Op::Matmul(next)) = c.next() else { return Ok(None) };
    let is_alike = next.a == op.a
        && !next.transpose_a
        && next.transpose_b
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

/// The product into a workspace of f32.
pub(super) fn into_workspace(product: &Product, out: &Resource, c: &mut Compiler<'_>) -> Result<()> {
    let cols = c.rows(product.b);
    for part in c.parts(product.b)? {
        let mut k = kernel(product, &part, c)?;
        k.absent("bias");
        k.storage("out", DType::F32, alignment(&[cols, part.first, part.rows]), Entry::Write, out.clone());
        k.flag("ADD", false);
        launch(product, &part, k, &[[part.rows, part.first, cols]], 1.0, c)?;
    }
    Ok(())
}

/// Threads of a workgroup that makes four columns: as many as find 16 bytes each in a row, twice. (On an H100, rows of
/// 4,096 in f16 are read 15 % faster by 256 threads than by 64.)
fn threads(inner: usize, part: &Part) -> usize {
    let of_16_bytes = match part.quantised {
        None => 8,
        Some((Bits::Eight, _)) => 16,
        Some((Bits::Four, _)) => 32,
    };
    (inner / (2 * of_16_bytes)).next_power_of_two().clamp(64, 256)
}

/// The kernel for so many rows, with its factors.
fn kernel(product: &Product, part: &Part, c: &Compiler<'_>) -> Result<Kernel> {
    let way = product.way(part, c);
    let mut k = match way {
        Way::Few => {
            let mut k = Kernel::new("matvec", "");
            k.constant("ROWS", product.rows);
            k.constant("WORKGROUP", threads(c.cols(product.b), part));
            k.combining(c.has(wgpu::Features::SUBGROUP));
            k
        }
        Way::MatrixUnits => {
            let body = include_str!("../shaders/matmul_cooperative.wgsl");
            let mut k = Kernel::new("matmul on matrix units", body);
            k.extension("f16");
            k.extension("wgpu_cooperative_matrix");
            k.flag("WHOLE", c.cols(product.a).is_multiple_of(SLICE));
            k
        }
        Way::Portable => Kernel::new("matmul", include_str!("../shaders/matmul.wgsl")),
        Way::Alone => {
            let mut k = Kernel::new("matmul", include_str!("../shaders/matmul_alone.wgsl"));
            let [rows, columns] = lone_tile(product);
            k.constant("ROWS", rows);
            k.constant("COLS", columns);
            k.constant("WORKGROUP", LONE_THREADS);
            k
        }
    };
    if way != Way::Few {
        k.include(include_str!("../shaders/store_product.wgsl"));
    }
    let alignment = alignment(&[c.cols(product.a)]);
    match way {
        Way::Few => {
            c.read(&mut k, "a", product.a, alignment)?;
            c.read_chunks(&mut k, "b", product.b, part);
        }
        Way::MatrixUnits => {
            for part in c.parts(product.a)? {
                c.read_octs(&mut k, "a", product.a, &part);
            }
            c.read_octs(&mut k, "b", product.b, part);
        }
        Way::Alone => {
            c.read(&mut k, "a", product.a, alignment)?;
            k.rows("a", c.dtype(product.a), alignment);
            c.read_rows(&mut k, "b", product.b, part);
        }
        Way::Portable => {
            c.read(&mut k, "a", product.a, alignment)?;
            c.read_part(&mut k, "b", product.b, part, alignment);
        }
    }
    Ok(k)
}

/// Rows and columns of the result that a thread makes alone.
fn lone_tile(product: &Product) -> [usize; 2] {
    match product.rows {
        1 => [1, 8],
        2..=4 => [4, 16],
        _ => [8, 16],
    }
}

fn launch(
    product: &Product,
    part: &Part,
    mut k: Kernel,
    extents: &[[usize; 3]],
    scale: f32,
    c: &mut Compiler<'_>,
) -> Result<()> {
    k.param("m", product.rows);
    k.param("k", c.cols(product.a));
    k.param("above", product.first);
    k.param("scale", scale);
    for (names, values) in EXTENTS.iter().zip(extents) {
        names.iter().zip(values).for_each(|(name, value)| k.param(name, *value));
    }
    let tiles = |tile: usize| (product.rows.div_ceil(tile), part.rows.div_ceil(tile));
    match product.way(part, c) {
        Way::Few => {
            let groups = several(&mut k, extents);
            c.dispatch(k, groups)
        }
        Way::MatrixUnits => {
            let (down, across) = tiles(WIDE_TILE);
            c.dispatch_grid(k, [down, across, 1])
        }
        Way::Portable => {
            let (down, across) = tiles(TILE);
            c.dispatch_grid(k, [across, down, 1])
        }
        Way::Alone => {
            let [rows, columns] = lone_tile(product);
            let threads = product.rows.div_ceil(rows) * part.rows.div_ceil(columns);
            c.dispatch(k, threads.div_ceil(LONE_THREADS))
        }
    }
}

/// The text of products with a few rows: each by workgroups of its own, a workgroup for four columns. How many workgroups.
fn several(k: &mut Kernel, extents: &[[usize; 3]]) -> usize {
    let mut work = "fn work(group: vec3<u32>, groups: vec3<u32>, thread: u32) {
    var number = group_index(group, groups);
"
    .to_owned();
    for suffix in &SUFFIXES[..extents.len()] {
        k.include(&include_str!("../shaders/matvec.wgsl").replace('$', suffix));
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
    extents.iter().map(|[columns, ..]| columns.div_ceil(4)).sum()
}
