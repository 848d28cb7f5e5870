//! `wgmma`: products of a warp group, each warp its 16 rows.
//!
//! While a product is under way its accumulators hold tokens: numbers that are none, which name the product's registers.
//! A compiler may copy such registers (a copy that the assembler of the device takes away again), so the sums go to
//! every copy that still holds its token when the wait ends; and a product whose accumulators are tokens continues
//! the sums that the tokens stand for.
//!
//! Shared memory is read when the wait ends: who overwrites a factor before will see it.

use super::Context;
use crate::ptx::instruction::{Instruction, Op};
use crate::tensor_map::Swizzle;
use half::f16;
use std::collections::{HashMap, VecDeque};

/// What is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Columns of B and D: 8 to 256.
    pub columns: u16,
    /// Elements are bf16, else f16.
    pub bf16: bool,
    /// A is in registers, 4 of them; else in shared memory.
    pub registers: bool,
    /// A is stored along its rows.
    pub transpose_a: bool,
    /// B is stored along its columns.
    pub transpose_b: bool,
    /// A counts negative.
    pub negate_a: bool,
    /// B does.
    pub negate_b: bool,
}

impl Shape {
    /// Registers of D.
    pub fn results(&self) -> u32 {
        u32::from(self.columns) / 2
    }
}

/// Rows of a warp.
const ROWS: usize = 16;
/// The inner extent.
const INNER: usize = 16;

/// A factor in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    start: u32,
    leading: u32,
    stride: u32,
    swizzle: Swizzle,
}

impl Descriptor {
    /// Of its 64 bits.
    ///
    /// # Errors
    /// A field has a value that is not supported.
    pub fn new(bits: u64) -> Result<Descriptor, String> {
        let field = |at: u32| ((bits >> at & 0x3fff) as u32) << 4;
        let swizzle =
            [Swizzle::None, Swizzle::Bytes128, Swizzle::Bytes64, Swizzle::Bytes32][(bits >> 62) as usize];
        if bits >> 49 & 7 != 0 {
            return Err(format!("the descriptor {bits:#x} has a base offset: not emulated"));
        }
        Ok(Descriptor { start: field(0), leading: field(16), stride: field(32), swizzle })
    }

    /// Where the 16 bytes lie that begin at row `outer` (of M or N) and inner index `inner`; `outer` is a multiple of 8 if
    /// the matrix is `transposed` (stored along M or N), else `inner` is.
    fn chunk(&self, outer: usize, inner: usize, transposed: bool) -> u32 {
        let (outer, inner) = (outer as u32, inner as u32);
        let width = self.swizzle.span() as u32;
        let plain = self.swizzle == Swizzle::None;
        let at = if transposed {
            let chunk = outer / 8;
            let chunks = width / 16;
            let (next, group) = if plain { (self.stride, self.leading) } else { (self.leading, self.stride) };
            chunk % chunks * 16 + chunk / chunks * next + inner % 8 * width + inner / 8 * group
        } else {
            let step = if plain { self.leading } else { 16 };
            outer % 8 * width + outer / 8 * self.stride + inner / 8 * step
        };
        self.swizzle.apply(self.start + at)
    }
}

/// The factor A of a warp.
#[derive(Clone, Debug)]
enum Rows {
    Values(Box<[f32; ROWS * INNER]>),
    Memory(Descriptor, u32),
}

#[derive(Clone, Debug)]
struct Product {
    shape: Shape,
    accumulator: u32,
    a: Rows,
    b: Descriptor,
    line: u32,
}

/// Sums under way.
#[derive(Clone, Debug)]
struct Accumulator {
    /// Registers that were named last.
    rows: Vec<u32>,
    /// 16 rows of `columns`.
    sums: Vec<f32>,
    columns: usize,
    /// Products that add to it and are not done.
    pending: usize,
}

/// The products of a warp.
#[derive(Debug, Default)]
pub struct Queue {
    open: Vec<Product>,
    groups: VecDeque<Vec<Product>>,
    accumulators: HashMap<u32, Accumulator>,
    next: u32,
    /// `wgmma.fence` was executed since results were delivered last.
    fenced: bool,
}

/// The bits above a token's number: not a number, negative, quiet.
const TOKEN: u32 = 0xffc0_0000;

/// Accumulators that can be told apart.
const NUMBERS: u32 = 0x7ffe;

/// What register `index` of an accumulator holds while products are under way. Never the number that memory without
/// contents holds, or that arithmetic makes.
fn token(accumulator: u32, index: usize) -> u32 {
    TOKEN | (accumulator % NUMBERS + 1) << 7 | index as u32
}

/// The accumulator of a token.
fn accumulator_of(bits: u32, index: usize) -> Option<u32> {
    let number = bits >> 7 & 0x7fff;
    (bits & TOKEN == TOKEN && bits & 0x7f == index as u32 && (1..=NUMBERS).contains(&number))
        .then(|| number - 1)
}

impl Queue {
    /// The line of a product that is under way.
    pub fn pending(&self) -> Option<u32> {
        self.groups.iter().flatten().chain(&self.open).map(|product| product.line).next()
    }

    pub(super) fn fence(&mut self) {
        self.fenced = true;
    }

    pub(super) fn commit(&mut self) {
        let open = std::mem::take(&mut self.open);
        self.groups.push_back(open);
    }
}

fn to_f32(bits: u16, bf16: bool) -> f32 {
    if bf16 { f32::from_bits(u32::from(bits) << 16) } else { f16::from_bits(bits).to_f32() }
}

/// Row and column of D that lane `lane` holds in register `index`; A's registers are two of such elements each.
fn element(lane: usize, index: usize) -> (usize, usize) {
    (lane / 4 + 8 * (index / 2 % 2), 8 * (index / 4) + 2 * (lane % 4) + index % 2)
}

pub(super) fn issue(
    shape: Shape,
    list: u32,
    scale: Option<(u32, bool)>,
    line: u32,
    context: &mut dyn Context,
) -> Result<(), String> {
    let columns = usize::from(shape.columns);
    let count = shape.results();
    let rows: Vec<u32> = (0..count).map(|i| context.list(list + i)).collect();
    let keeps = match scale {
        None => true,
        Some((predicate, negated)) => match context.predicate(predicate) ^ if negated { u32::MAX } else { 0 }
        {
            0 => false,
            u32::MAX => true,
            bits => return Err(format!("scale-d differs between lanes: {bits:#010x}")),
        },
    };
    let uniform = |row: u32, what: &str| -> Result<Descriptor, String> {
        let values = context.row64(row);
        if values.iter().any(|value| *value != values[0]) {
            return Err(format!("the descriptor of {what} differs between lanes"));
        }
        Descriptor::new(values[0])
    };
    let after = list + count;
    let (a, next) = if shape.registers {
        let mut values = Box::new([0.0; ROWS * INNER]);
        for register in 0..4 {
            let bits = context.row32(context.list(after + register));
            for (lane, bits) in bits.iter().enumerate() {
                for half in 0..2 {
                    let (row, column) = element(lane, 2 * register as usize + half);
                    values[row * INNER + column] = to_f32((bits >> (16 * half)) as u16, shape.bf16);
                }
            }
        }
        (Rows::Values(values), after + 4)
    } else {
        (Rows::Memory(uniform(context.list(after), "A")?, context.warp_index() % 4 * ROWS as u32), after + 1)
    };
    let b = uniform(context.list(next), "B")?;

    // A number that stands for sums, or numbers to begin with.
    let first = context.row32(rows[0])[0];
    let under_way =
        accumulator_of(first, 0).filter(|id| context.warp_state().products.accumulators.contains_key(id));
    let continued = under_way.filter(|_| keeps);
    let mut sums = Vec::new();
    if let Some(id) = continued {
        let same =
            rows.iter().enumerate().all(|(i, row)| context.row32(*row).iter().all(|x| *x == token(id, i)));
        let known = context.warp_state().products.accumulators.get(&id).map(|known| known.columns);
        if !same || known != Some(columns) {
            return Err("some accumulators are those of a product under way, and some are not".into());
        }
    } else {
        sums = vec![0.0; ROWS * columns];
        for (index, row) in rows.iter().enumerate().filter(|_| keeps) {
            for (lane, bits) in context.row32(*row).iter().enumerate() {
                let (i, j) = element(lane, index);
                sums[i * columns + j] = f32::from_bits(*bits);
            }
        }
    }
    let queue = &mut context.warp_state().products;
    if !queue.fenced {
        return Err("no wgmma.fence since the results of the products before were waited for".into());
    }
    let id = continued.unwrap_or_else(|| {
        while queue.accumulators.contains_key(&queue.next) {
            queue.next = (queue.next + 1) % NUMBERS;
        }
        let id = queue.next;
        queue.next = (queue.next + 1) % NUMBERS;
        id
    });
    let accumulator =
        queue.accumulators.entry(id).or_insert(Accumulator { rows: Vec::new(), sums, columns, pending: 0 });
    accumulator.pending += 1;
    accumulator.rows.clone_from(&rows);
    queue.open.push(Product { shape, accumulator: id, a, b, line });
    for (index, row) in rows.iter().enumerate() {
        *context.row32_mut(*row) = [token(id, index); 32];
    }
    Ok(())
}

/// A factor of `outer` rows (from `from` on) as f32: by row, or by inner index if `by_inner`.
fn gather(
    descriptor: Descriptor,
    from: usize,
    outer: usize,
    shape: Shape,
    transposed: bool,
    by_inner: bool,
    context: &dyn Context,
) -> Result<Vec<f32>, String> {
    let mut out = vec![0.0; outer * INNER];
    let place = |o: usize, i: usize| if by_inner { i * outer + o } else { o * INNER + i };
    let (outers, inners) = if transposed { (outer / 8, INNER) } else { (outer, INNER / 8) };
    for o in 0..outers {
        for i in 0..inners {
            let (row, inner) = if transposed { (8 * o, i) } else { (o, 8 * i) };
            let bytes = context.shared(descriptor.chunk(from + row, inner, transposed), 16)?;
            for (e, pair) in bytes.chunks_exact(2).enumerate() {
                let value = to_f32(u16::from_le_bytes([pair[0], pair[1]]), shape.bf16);
                let (o, i) = if transposed { (row + e, inner) } else { (row, inner + e) };
                out[place(o, i)] = value;
            }
        }
    }
    Ok(out)
}

/// `sums += a b`, 16 rows.
struct Add<'a> {
    columns: usize,
    a: &'a [f32],
    b: &'a [f32],
    sums: &'a mut [f32],
}

impl pulp::NullaryFnOnce for Add<'_> {
    type Output = ();

    /// Products of two halves are exact in f32, so that a fused sum and two roundings are the same.
    #[inline(always)]
    fn call(self) {
        let Add { columns, a, b, sums } = self;
        for (a, sums) in a.chunks_exact(INNER).zip(sums.chunks_exact_mut(columns)) {
            for (a, b) in a.iter().zip(b.chunks_exact(columns)) {
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum += a * b;
                }
            }
        }
    }
}

impl Product {
    fn compute(&self, context: &mut dyn Context) -> Result<(), String> {
        let shape = self.shape;
        let columns = usize::from(shape.columns);
        let mut a = match &self.a {
            Rows::Values(values) => values.to_vec(),
            Rows::Memory(descriptor, from) => {
                gather(*descriptor, *from as usize, ROWS, shape, shape.transpose_a, false, context)?
            }
        };
        if shape.negate_a != shape.negate_b {
            a.iter_mut().for_each(|x| *x = -*x);
        }
        let b = gather(self.b, 0, columns, shape, shape.transpose_b, true, context)?;
        let queue = &mut context.warp_state().products;
        if let Some(accumulator) = queue.accumulators.get_mut(&self.accumulator) {
            pulp::Arch::new().dispatch(Add { columns, a: &a, b: &b, sums: &mut accumulator.sums });
            accumulator.pending -= 1;
        }
        Ok(())
    }
}

/// Until `left` groups are under way.
pub(super) fn wait(left: usize, context: &mut dyn Context) -> Result<(), String> {
    while context.warp_state().products.groups.len() > left {
        let group = context.warp_state().products.groups.pop_front().unwrap_or_default();
        for product in group {
            product
                .compute(context)
                .map_err(|why| format!("the product of PTX line {}: {why}", product.line))?;
        }
    }
    let queue = &mut context.warp_state().products;
    let done: Vec<u32> =
        queue.accumulators.iter().filter(|(_, sums)| sums.pending == 0).map(|(id, _)| *id).collect();
    for id in done {
        let Some(accumulator) = context.warp_state().products.accumulators.remove(&id) else { continue };
        context.warp_state().products.fenced = false;
        for (index, row) in accumulator.rows.iter().enumerate() {
            let sought = token(id, index);
            let value = |lane: usize| {
                let (i, j) = element(lane, index);
                accumulator.sums[i * accumulator.columns + j].to_bits()
            };
            let mut copies = context.copies(*row).to_vec();
            copies.push(*row);
            for copy in copies {
                for (lane, bits) in context.row32_mut(copy).iter_mut().enumerate() {
                    if *bits == sought {
                        *bits = value(lane);
                    }
                }
            }
        }
    }
    Ok(())
}

/// Which rows of 32 bits may hold copies of which: rows that moves connect with a product's accumulators.
#[derive(Clone, Debug, Default)]
pub struct Copies(HashMap<u32, Vec<u32>>);

impl Copies {
    /// Of a kernel's code.
    pub fn of(code: &[Instruction], list: &[u32]) -> Copies {
        let mut parents: HashMap<u32, u32> = HashMap::new();
        fn root(parents: &mut HashMap<u32, u32>, mut row: u32) -> u32 {
            while let Some(&parent) = parents.get(&row) {
                if parent == row {
                    break;
                }
                row = parent;
            }
            row
        }
        let products = code.iter().filter_map(|i| match i.op {
            Op::Hopper(super::Op::Product(shape)) => Some((i.d as usize, shape.results() as usize)),
            _ => None,
        });
        let results: Vec<u32> =
            products.flat_map(|(at, n)| list.get(at..at + n).unwrap_or(&[])).copied().collect();
        if results.is_empty() {
            return Copies::default();
        }
        let mut members: Vec<u32> = results.clone();
        for instruction in code {
            let sources = match instruction.op {
                Op::Move32 => [instruction.a, instruction.a],
                Op::Selp32 => [instruction.a, instruction.b],
                _ => continue,
            };
            for source in sources {
                let (a, b) = (root(&mut parents, source), root(&mut parents, instruction.d));
                members.extend([source, instruction.d]);
                parents.insert(a, b);
            }
        }
        members.sort_unstable();
        members.dedup();
        let mut classes: HashMap<u32, Vec<u32>> = HashMap::new();
        for row in members {
            classes.entry(root(&mut parents, row)).or_default().push(row);
        }
        let of = |row: &u32| (*row, classes.get(&root(&mut parents, *row)).cloned().unwrap_or_default());
        Copies(results.iter().map(of).collect())
    }

    /// Of a row.
    pub fn get(&self, row: u32) -> &[u32] {
        self.0.get(&row).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(start: u32, leading: u32, stride: u32, mode: u64) -> Descriptor {
        let bits =
            u64::from(start >> 4) | u64::from(leading >> 4) << 16 | u64::from(stride >> 4) << 32 | mode << 62;
        Descriptor::new(bits).expect("a descriptor")
    }

    #[test]
    fn core_matrices_lie_as_the_manual_has_them() {
        // No swizzle, along the inner dimension: 8 rows of 16 bytes, then the next inner 8, then the next 8 rows.
        let plain = descriptor(4096, 128, 256, 0);
        assert_eq!(plain.chunk(3, 0, false), 4096 + 48);
        assert_eq!(plain.chunk(3, 8, false), 4096 + 128 + 48);
        assert_eq!(plain.chunk(11, 8, false), 4096 + 256 + 128 + 48);
        // 128 bytes: row 3 of 128 bytes, chunk 1 at 1 ^ 3 = 2.
        let wide = descriptor(4096, 16, 1024, 1);
        assert_eq!(wide.chunk(3, 8, false), 4096 + 3 * 128 + 32);
        assert_eq!(wide.chunk(12, 0, false), 4096 + 1024 + 4 * 128 + 64);
        // 32 bytes further on, the next 16 inner elements: chunk 2 of row 3 at 2 ^ 3 = 1.
        assert_eq!(descriptor(4096 + 32, 16, 1024, 1).chunk(3, 0, false), 4096 + 3 * 128 + 16);
        // Along the outer dimension: inner index 5 is row 5; outer 16 is chunk 2, at 2 ^ 5 = 7; 64 further is a panel on.
        let across = descriptor(4096, 8192, 1024, 1);
        assert_eq!(across.chunk(16, 5, true), 4096 + 5 * 128 + 7 * 16);
        assert_eq!(across.chunk(64 + 16, 8 + 5, true), 4096 + 8192 + 1024 + 5 * 128 + 7 * 16);
        assert!(Descriptor::new(1 << 49).is_err());
    }

    #[test]
    fn registers_hold_what_the_manual_says() {
        assert_eq!(element(0, 0), (0, 0));
        assert_eq!(element(5, 1), (1, 3));
        assert_eq!(element(5, 2), (9, 2));
        assert_eq!(element(31, 7), (15, 15));
    }

    #[test]
    fn tokens_name_their_registers() {
        for (id, index) in [(0, 0), (7, 127), (0x7ffd, 127)] {
            assert!(f32::from_bits(token(id, index)).is_nan());
            assert_eq!(accumulator_of(token(id, index), index), Some(id));
            assert_eq!(accumulator_of(token(id, index), (index + 1) % 128), None);
        }
        assert_eq!(accumulator_of(0xffff_ffff, 127), None);
        assert_eq!(accumulator_of(0x7fff_ffff, 127), None);
        assert_eq!(accumulator_of(TOKEN, 0), None);
    }

    #[test]
    fn copies_are_followed_through_moves() {
        let shape = Shape {
            columns: 8,
            bf16: true,
            registers: false,
            transpose_a: false,
            transpose_b: false,
            negate_a: false,
            negate_b: false,
        };
        let product =
            Instruction { d: 0, ..Instruction::new(Op::Hopper(crate::machine::hopper::Op::Product(shape))) };
        let copy = |d, a| Instruction { d, a, ..Instruction::new(Op::Move32) };
        let copies = Copies::of(&[product, copy(20, 10), copy(21, 20), copy(30, 31)], &[10, 11, 12, 13]);
        assert_eq!(copies.get(10), [10, 20, 21]);
        assert_eq!(copies.get(11), [11]);
        assert!(copies.get(30).is_empty());
    }
}
