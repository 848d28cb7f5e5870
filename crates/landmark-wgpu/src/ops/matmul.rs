//! Matrix products: a tiled one for many rows, and one for few that reads the weights as fast as memory gives them.
//!
//! Weights larger than a binding are multiplied piece by piece: their rows are columns of the result.

use crate::kernel::{Entry, Kernel, Resource};
use crate::matrix_units;
use crate::plan::{Compiler, Part, alignment};
use landmark_core::ops::Matmul;
use landmark_core::{DType, Result, Tensor};

/// Up to so many rows of `a`, the product is bound by reading `b`.
const FEW_ROWS: usize = 8;
/// Rows and columns of a tile of the other kernel.
const TILE: usize = 64;
/// The same on matrix units.
const WIDE_TILE: usize = 128;
/// Columns of the operands that matrix units take at a time.
const SLICE: usize = 64;

/// Which kernel makes a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// A matrix and a few vectors.
    Few,
    /// On matrix units, in f16 with sums in f32.
    MatrixUnits,
    /// In f32.
    Portable,
}

impl Product {
    /// The fastest that serves. Activations in f32 are not rounded for the matrix units' sake; weights in blocks have no
    /// more digits than f16 has.
    fn way(&self, part: &Part, c: &Compiler<'_>) -> Way {
        let is_half = |tensor| c.dtype(tensor) == DType::F16;
        match self.rows {
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
    let (out, cols) = (op.out.tensor, c.cols(op.out.tensor));
    let product = Product { a: op.a, first: 0, rows: c.rows(op.a), b: op.b };
    for part in c.parts(op.b)? {
        let mut k = kernel(&product, &part, c)?;
        let alignment = alignment(&[cols, part.first, part.rows]);
        c.read_if(&mut k, "bias", op.bias, alignment)?;
        c.write(&mut k, "out", out, alignment)?;
        k.flag("ADD", op.out.add);
        launch(&product, &part, k, cols, op.scale, c)?;
    }
    Ok(())
}

/// The product into a workspace of f32.
pub(super) fn into_workspace(product: &Product, out: &Resource, c: &mut Compiler<'_>) -> Result<()> {
    let cols = c.rows(product.b);
    for part in c.parts(product.b)? {
        let mut k = kernel(product, &part, c)?;
        k.absent("bias");
        k.storage("out", DType::F32, alignment(&[cols, part.first, part.rows]), Entry::Write, out.clone());
        k.flag("ADD", false);
        launch(product, &part, k, cols, 1.0, c)?;
    }
    Ok(())
}

/// Threads of a workgroup that makes four columns: as many as find 16 bytes of f16 each in a row, twice. (On an H100, rows of
/// 4,096 are read 15 % faster by 256 threads than by 64.)
fn threads(inner: usize) -> usize {
    (inner / 16).next_power_of_two().clamp(64, 256)
}

/// The kernel for so many rows, with its factors.
fn kernel(product: &Product, part: &Part, c: &Compiler<'_>) -> Result<Kernel> {
    let way = product.way(part, c);
    let mut k = match way {
        Way::Few => {
            let mut k = Kernel::new("matvec", include_str!("../shaders/matvec.wgsl"));
            k.constant("ROWS", product.rows);
            k.constant("WORKGROUP", threads(c.cols(product.b)));
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
        Way::Portable => {
            c.read(&mut k, "a", product.a, alignment)?;
            c.read_part(&mut k, "b", product.b, part, alignment);
        }
    }
    Ok(k)
}

fn launch(
    product: &Product,
    part: &Part,
    mut k: Kernel,
    stride: usize,
    scale: f32,
    c: &mut Compiler<'_>,
) -> Result<()> {
    k.param("m", product.rows);
    k.param("n", part.rows);
    k.param("k", c.cols(product.a));
    k.param("above", product.first);
    k.param("first", part.first);
    k.param("stride", stride);
    k.param("scale", scale);
    let tiles = |tile: usize| (product.rows.div_ceil(tile), part.rows.div_ceil(tile));
    match product.way(part, c) {
        Way::Few => c.dispatch(k, part.rows.div_ceil(4)),
        Way::MatrixUnits => {
            let (down, across) = tiles(WIDE_TILE);
            c.dispatch_grid(k, [down, across, 1])
        }
        Way::Portable => {
            let (down, across) = tiles(TILE);
            c.dispatch_grid(k, [across, down, 1])
        }
    }
}
