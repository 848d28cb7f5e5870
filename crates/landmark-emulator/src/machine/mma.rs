//! Products of a warp on its tensor core, and the loads and stores of their fragments.
//!
//! Fragments as the PTX ISA draws them, with lane = 4 g + t. Products are exact and summed in f32 one after the other;
//! a tensor core sums in an order and with a rounding of its own, which no test may rely on.

use half::f16;

use super::warp::{Warp, lanes};
use super::{Cluster, Fault};
use crate::ptx::instruction::{Instruction, Product, Type};

const ALL: u32 = u32::MAX;

/// The address of row `lane % 8` of matrix `lane / 8`, for all rows of `count` matrices.
fn rows(warp: &Warp<'_>, instruction: &Instruction, count: u8) -> Result<[u32; 32], Fault> {
    let mut addresses = [0; 32];
    for lane in 0..usize::from(count) * 8 {
        addresses[lane] = warp.r32[instruction.a as usize][lane].wrapping_add(instruction.e);
        if addresses[lane] % 16 != 0 {
            return Err(Fault::from(format!("{:#x} is not a multiple of 16", addresses[lane])).lane(lane));
        }
    }
    Ok(addresses)
}

pub(super) fn load_matrices(
    warp: &mut Warp<'_>,
    cluster: &mut Cluster<'_>,
    instruction: &Instruction,
    count: u8,
    transposed: bool,
) -> Result<(), Fault> {
    let addresses = rows(warp, instruction, count)?;
    for matrix in 0..usize::from(count) {
        let mut elements = [[0u16; 8]; 8];
        for row in 0..8 {
            let (lane, mut bytes) = (8 * matrix + row, [0; 16]);
            let (shared, at) = cluster.shared(warp.block, addresses[lane])?;
            shared.read(at, &mut bytes, &warp.clock).map_err(|e| Fault::from(e).lane(lane))?;
            elements[row] = std::array::from_fn(|i| u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]));
        }
        let d = warp.list[instruction.d as usize + matrix] as usize;
        for lane in 0..32 {
            let (row, column) = (lane / 4, 2 * (lane % 4));
            let (low, high) = if transposed {
                (elements[column][row], elements[column + 1][row])
            } else {
                (elements[row][column], elements[row][column + 1])
            };
            warp.r32[d][lane] = u32::from(high) << 16 | u32::from(low);
        }
    }
    Ok(())
}

pub(super) fn store_matrices(
    warp: &mut Warp<'_>,
    cluster: &mut Cluster<'_>,
    instruction: &Instruction,
    count: u8,
    transposed: bool,
) -> Result<(), Fault> {
    let addresses = rows(warp, instruction, count)?;
    for matrix in 0..usize::from(count) {
        let from = warp.r32[warp.list[instruction.d as usize + matrix] as usize];
        let mut elements = [[0u16; 8]; 8];
        for lane in 0..32 {
            let (row, column) = (lane / 4, 2 * (lane % 4));
            for half in 0..2 {
                let value = (from[lane] >> (16 * half)) as u16;
                if transposed {
                    elements[column + half][row] = value;
                } else {
                    elements[row][column + half] = value;
                }
            }
        }
        for row in 0..8 {
            let (lane, mut bytes) = (8 * matrix + row, [0; 16]);
            for i in 0..8 {
                bytes[2 * i..2 * i + 2].copy_from_slice(&elements[row][i].to_le_bytes());
            }
            let (shared, at) = cluster.shared(warp.block, addresses[lane])?;
            shared.write(at, &bytes, Some(&warp.clock)).map_err(|e| Fault::from(e).lane(lane))?;
        }
    }
    Ok(())
}

/// An 8 x 8 matrix over the warp's registers, transposed.
pub(super) fn transpose(from: &[u32; 32]) -> [u32; 32] {
    let element = |row: usize, column: usize| from[4 * row + column / 2] >> (16 * (column % 2)) & 0xffff;
    std::array::from_fn(|lane| {
        let (row, column) = (lane / 4, 2 * (lane % 4));
        element(column + 1, row) << 16 | element(column, row)
    })
}

/// The value of half `i` of a register (or the register's).
#[inline(always)]
fn value(bits: u32, ty: Type, i: usize) -> f32 {
    match ty {
        Type::Bf16 => f32::from_bits(if i == 0 { bits << 16 } else { bits & 0xffff_0000 }),
        Type::F16 => f16::from_bits((bits >> (16 * i)) as u16).to_f32(),
        // the tensor core does not look at the lowest bits
        _ => f32::from_bits(bits & 0xffff_e000),
    }
}

/// D = A B + C, 16 x 8.
#[inline(always)]
pub(super) fn multiply(warp: &mut Warp<'_>, instruction: &Instruction, product: Product) {
    let inner = usize::from(product.inner);
    let ty = product.operands;
    let list: &[u32] = &warp.list[instruction.d as usize..];
    let halves = if ty == Type::Tf32 { 1 } else { 2 };
    let results = if product.results == Type::F16 { 2 } else { 4 };
    let a_count = inner / 2 / halves;
    let (a_rows, b_rows, c_rows) =
        (&list[results..], &list[results + a_count..], &list[results + a_count * 3 / 2..]);
    let (mut a, mut b, mut c) = ([[0f32; 16]; 16], [[0f32; 8]; 16], [[0f32; 8]; 16]);
    // register r of A: row g or g + 8, inner columns from 0 or from the second half on
    for r in 0..a_count {
        let register = &warp.r32[a_rows[r] as usize];
        for lane in 0..32 {
            let (row, column) = (lane / 4 + 8 * (r % 2), r / 2 * 4 * halves + lane % 4 * halves);
            for i in 0..halves {
                a[row][column + i] = value(register[lane], ty, i);
            }
        }
    }
    for r in 0..a_count / 2 {
        let register = &warp.r32[b_rows[r] as usize];
        for lane in 0..32 {
            let row = r * 4 * halves + lane % 4 * halves;
            for i in 0..halves {
                b[row + i][lane / 4] = value(register[lane], ty, i);
            }
        }
    }
    for r in 0..results {
        let register = &warp.r32[c_rows[r] as usize];
        for lane in 0..32 {
            let column = 2 * (lane % 4);
            if results == 4 {
                c[lane / 4 + 8 * (r / 2)][column + r % 2] = f32::from_bits(register[lane]);
            } else {
                for i in 0..2 {
                    c[lane / 4 + 8 * r][column + i] = value(register[lane], Type::F16, i);
                }
            }
        }
    }
    for row in 0..16 {
        for k in 0..inner {
            for column in 0..8 {
                c[row][column] = a[row][k].mul_add(b[k][column], c[row][column]);
            }
        }
    }
    for r in 0..results {
        let mut d = [0; 32];
        for lane in 0..32 {
            let column = 2 * (lane % 4);
            d[lane] = if results == 4 {
                c[lane / 4 + 8 * (r / 2)][column + r % 2].to_bits()
            } else {
                let half = |i: usize| u32::from(f16::from_f32(c[lane / 4 + 8 * r][column + i]).to_bits());
                half(1) << 16 | half(0)
            };
        }
        let to = warp.list[instruction.d as usize + r] as usize;
        warp.r32[to] = d;
    }
}

/// Fails unless every lane takes part.
pub(super) fn whole(mask: u32) -> Result<(), Fault> {
    if mask == ALL {
        return Ok(());
    }
    let lane = lanes(!mask).next().unwrap_or(0);
    Err(Fault::from("not every lane of the warp takes part").lane(lane))
}
