//! Matrix products: a tiled one for many rows, and one for few that reads the weights as fast as memory gives them.
//!
//! Weights larger than a binding are multiplied piece by piece: their rows are columns of the result.

use crate::kernel::Kernel;
use crate::plan::{Compiler, alignment};
use landmark_core::Result;
use landmark_core::ops::Matmul;

/// Up to so many rows of `a`, the product is bound by reading `b`.
const FEW_ROWS: usize = 8;
/// Rows and columns of a tile of the other kernel.
const TILE: usize = 64;

pub(super) fn matmul(op: &Matmul, c: &mut Compiler<'_>) -> Result<()> {
    if op.transpose_a || !op.transpose_b {
        return Err(c.unsupported(
            "the wgpu backend runs models and does not train them: train with --device cuda or --device cpu",
        ));
    }
    for part in c.parts(op.b)? {
        let mut k = kernel(c.rows(op.a));
        let (cols, depth) = (c.cols(op.out.tensor), c.cols(op.a));
        c.read(&mut k, "a", op.a, alignment(&[depth]))?;
        c.read_part(&mut k, "b", op.b, &part, alignment(&[depth]));
        let out = alignment(&[cols, part.first, part.rows]);
        c.read_if(&mut k, "bias", op.bias, out)?;
        c.write(&mut k, "out", op.out.tensor, out)?;
        k.flag("ADD", op.out.add);
        launch(c, k, [c.rows(op.a), part.rows, depth], part.first, cols, op.scale)?;
    }
    Ok(())
}

/// The kernel for so many rows.
fn kernel(rows: usize) -> Kernel {
    if rows <= FEW_ROWS {
        let mut k = Kernel::new("matvec", include_str!("../shaders/matvec.wgsl"));
        k.constant("ROWS", rows);
        k.constant("WORKGROUP", 64);
        k
    } else {
        Kernel::new("matmul", include_str!("../shaders/matmul.wgsl"))
    }
}

fn launch(
    c: &mut Compiler<'_>,
    mut k: Kernel,
    [m, n, depth]: [usize; 3],
    first: usize,
    stride: usize,
    scale: f32,
) -> Result<()> {
    k.param("m", m);
    k.param("n", n);
    k.param("k", depth);
    k.param("first", first);
    k.param("stride", stride);
    k.param("scale", scale);
    if k.name == "matvec" {
        return c.dispatch(k, n.div_ceil(4));
    }
    c.dispatch_grid(k, [n.div_ceil(TILE), m.div_ceil(TILE), 1])
}
