//! Matrix products: a tiled one for many rows; those of few rows are in `matvec.rs`. In software one whose threads work alone
//! serves both.
//!
//! Weights larger than a binding are multiplied piece by piece: their rows are columns of the result.

use super::matvec::{self, FEW_ROWS};
use crate::kernel::{Entry, Kernel, Resource};
use crate::matrix_units;
use crate::plan::{Compiler, LONE_THREADS, Part, alignment};
use landmark_core::ops::Matmul;
use landmark_core::{DType, Result, Tensor};

/// Rows and columns of a tile.
const TILE: usize = 64;
/// The same on matrix units.
const WIDE_TILE: usize = 128;
/// Columns of the operands that matrix units take at a time.
const SLICE: usize = 64;

/// Which kernel makes a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
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
        let is_served =
            c.has(matrix_units::FEATURES) && is_half(self.a) && (part.quantised.is_some() || is_half(self.b));
        match () {
            () if c.works_alone() => Way::Alone,
            () if is_served => Way::MatrixUnits,
            () => Way::Portable,
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
    if matvec::serves(op, c) {
        return matvec::matvec(op, c);
    }
    let cols = c.cols(op.out.tensor);
    let product = Product { a: op.a, first: 0, rows: c.rows(op.a), b: op.b };
    for part in c.parts(op.b)? {
        let mut k = kernel(&product, &part, c)?;
        let alignment = alignment(&[cols, part.first, part.rows]);
        c.read_if(&mut k, "bias", op.bias, alignment)?;
        c.write(&mut k, "out", op.out.tensor, alignment)?;
        k.flag("ADD", op.out.add);
        launch(&product, &part, k, cols, op.scale, c)?;
    }
    Ok(())
}

/// The product into a workspace of f32.
pub(super) fn into_workspace(product: &Product, out: &Resource, c: &mut Compiler<'_>) -> Result<()> {
    if product.rows <= FEW_ROWS && !c.works_alone() {
        let rows = product.first..product.first + product.rows;
        return matvec::into_workspace(product.a, rows, product.b, out, c);
    }
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

/// The kernel, with its factors.
fn kernel(product: &Product, part: &Part, c: &Compiler<'_>) -> Result<Kernel> {
    let way = product.way(part, c);
    let mut k = match way {
        Way::MatrixUnits => on_matrix_units(c.cols(product.a)),
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
    k.include(include_str!("../shaders/store_product.wgsl"));
    let alignment = alignment(&[c.cols(product.a)]);
    match way {
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

/// The kernel for rows of so many columns, but for its operands.
fn on_matrix_units(cols: usize) -> Kernel {
    let mut k = Kernel::new("matmul on matrix units", include_str!("../shaders/matmul_cooperative.wgsl"));
    k.extension("f16");
    k.extension("wgpu_cooperative_matrix");
    k.flag("WHOLE", cols.is_multiple_of(SLICE));
    k
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
    cols: usize,
    scale: f32,
    c: &mut Compiler<'_>,
) -> Result<()> {
    k.param("m", product.rows);
    k.param("k", c.cols(product.a));
    k.param("above", product.first);
    k.param("scale", scale);
    k.param("n", part.rows);
    k.param("first", part.first);
    k.param("stride", cols);
    let tiles = |tile: usize| (product.rows.div_ceil(tile), part.rows.div_ceil(tile));
    match product.way(part, c) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readback::{Copy, read};
    use crate::{Options, Wgpu};
    use half::f16;
    use landmark_core::quantize::{Bits, dequantize, quantize};
    use pollster::block_on;
    use wgpu::util::DeviceExt;

    /// What matrix units are given of weights in blocks are the weights, rounded to f16.
    #[test]
    fn codes_become_the_weights_in_f16() {
        const BODY: &str = "fn put_eight(i: u32) {
    let quads = b_quads(b_oct(8u * i, 8u), 8u * i);
    out_put(8u * i, vec4<f32>(quads[0]), 4u);
    out_put(8u * i + 4u, vec4<f32>(quads[1]), 4u);
}
";
        // For f16 in shaders, which llvmpipe has.
        let options = Options { emulate_matrix_units: true, ..Options::default() };
        let device = block_on(Wgpu::open(&options)).expect("an adapter");
        let shared = &device.shared;
        let values: Vec<f32> = (0..256).map(|i| (i as f32 * 0.71).sin() * (1 + i / 32) as f32).collect();
        for bits in [Bits::Eight, Bits::Four] {
            let blocks = quantize(&values, bits);
            let scales: Vec<u8> = blocks.scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
            let mut k = Kernel::new("codes", BODY);
            k.extension("f16");
            k.param("none", 0_usize);
            k.constant("WORKGROUP", 32);
            let scratch = Resource::Scratch;
            k.octs_of_codes("b", bits, scratch(0), scratch(1));
            k.storage("out", DType::F32, 4, Entry::Write, scratch(2));
            k.each("put_eight");
            let params = k.params();
            let usage =
                wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_SRC;
            let buffers = [&params[..], &blocks.codes, &scales, &[0; 1024]].map(|contents| {
                let described = wgpu::util::BufferInitDescriptor { label: None, contents, usage };
                shared.device.create_buffer_init(&described)
            });
            let made = shared.pipeline("codes", &k.source(), &k.entries()).unwrap();
            let entries: Vec<wgpu::BindGroupEntry<'_>> = (0..)
                .zip(&buffers)
                .map(|(binding, buffer)| wgpu::BindGroupEntry {
                    binding,
                    resource: buffer.as_entire_binding(),
                })
                .collect();
            let layout = &made.layout;
            let group = shared.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout,
                entries: &entries,
            });
            let mut encoder = shared.device.create_command_encoder(&Default::default());
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(&made.pipeline);
            pass.set_bind_group(0, &group, &[]);
            pass.dispatch_workgroups(1, 1, 1);
            drop(pass);
            shared.queue.submit([encoder.finish()]);
            let found =
                block_on(read(shared, &[Copy { buffer: &buffers[3], first: 0, bytes: 1024 }])).unwrap();
            let found: Vec<f32> =
                found.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            let expected: Vec<f32> =
                dequantize(&blocks, bits).into_iter().map(|weight| f16::from_f32(weight).to_f32()).collect();
            assert_eq!(found, expected, "{bits:?}");
        }
    }

    /// No device of CI has matrix units; that their kernel is WGSL for every kind of weights can be seen without.
    #[test]
    fn the_kernel_for_matrix_units_is_valid() {
        for (cols, bits) in [SLICE, SLICE + 32]
            .into_iter()
            .flat_map(|cols| [None, Some(Bits::Eight), Some(Bits::Four)].map(|bits| (cols, bits)))
        {
            let mut k = on_matrix_units(cols);
            k.flag("ADD", true);
            k.include(include_str!("../shaders/store_product.wgsl"));
            let scratch = Resource::Scratch;
            k.octs("a", scratch(0));
            k.quads_of_octs("a");
            match bits {
                Some(bits) => k.octs_of_codes("b", bits, scratch(1), scratch(2)),
                None => {
                    k.storage("b", DType::Bf16, 4, Entry::Read, scratch(1));
                    k.octs_of_quads("b");
                    k.quads_of_octs("b");
                }
            }
            k.absent("bias");
            k.storage("out", DType::F32, 4, Entry::Write, scratch(3));
            ["m", "k", "above", "n", "first", "stride"].iter().for_each(|name| k.param(name, 1_usize));
            k.param("scale", 1.0_f32);
            let source = k.source();
            let module = naga::front::wgsl::parse_str(&source)
                .unwrap_or_else(|e| panic!("{}", e.emit_to_string(&source)));
            let capabilities = naga::valid::Capabilities::all();
            naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities)
                .validate(&module)
                .unwrap_or_else(|e| panic!("{}", e.emit_to_string(&source)));
            let bytes: u32 = module
                .global_variables
                .iter()
                .filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup)
                .map(|(_, v)| module.types[v.ty].inner.size(module.to_ctx()))
                .sum();
            assert_eq!(bytes, matrix_units::WORKGROUP_BYTES);
        }
    }
}
