//! One instruction, for the lanes of a mask.

use super::super::alu::{self, R64};
use super::super::float::{self, Conversion};
use super::super::hopper::{self, Flow};
use super::super::memory::{LOCAL_WINDOW, PARAMETER_WINDOW, RANK_SHIFT, SHARED_WINDOW, WINDOW_MASK};
use super::super::view::View;
use super::super::{Cluster, Fault, mma};
use super::{ALL, Next, Wait, Warp, lanes};
use crate::ptx::instruction::{Instruction, Int, NONE, Op, Round, Space, Test, Type};

impl Warp<'_> {
    #[inline(always)]
    pub(super) fn step(
        &mut self,
        cluster: &mut Cluster<'_>,
        i: &Instruction,
        mask: u32,
    ) -> Result<Next, Fault> {
        match i.op {
            Op::Nop => {}
            Op::Branch => return Ok(Next::Jump(i.d)),
            Op::Move32 => {
                let d = *self.a32(i.a);
                self.put32(i.d, mask, d);
            }
            Op::Move64 => {
                let d = *self.a64(i.a);
                self.put64(i.d, mask, d);
            }
            Op::MovePred => {
                let bits = self.predicates[i.a as usize];
                self.put_predicate(i.d, mask, bits);
            }
            Op::Int(op, ty) => {
                if ty.bits() == 64 {
                    let shift = matches!(op, Int::Shl | Int::Shr);
                    let (b, n) = if shift { (NONE, i.b) } else { (i.b, NONE) };
                    let d =
                        alu::int64(op, ty.signed(), self.a64(i.a), self.o64(b), self.o64(i.c), self.o32(n));
                    self.put64(i.d, mask, d);
                } else {
                    let d = alu::int32(op, ty, self.a32(i.a), self.a32(i.b), self.o32(i.c));
                    self.put32(i.d, mask, d);
                }
            }
            Op::Float(op, ty, mode) => match ty {
                Type::F32 => {
                    let d = float::float32(op, mode, self.a32(i.a), self.a32(i.b), self.o32(i.c));
                    self.put32(i.d, mask, d);
                }
                Type::F64 => {
                    if mode.round != Round::Nearest {
                        return Err("f64 is rounded to the nearest alone".into());
                    }
                    let d = float::float64(op, mode, self.a64(i.a), self.a64(i.b), self.o64(i.c));
                    self.put64(i.d, mask, d);
                }
                _ => {
                    let d = float::float_half(op, ty, mode, self.a32(i.a), self.a32(i.b), self.o32(i.c));
                    self.put32(i.d, mask, d);
                }
            },
            Op::FloatUnary(op, ty, mode) => match ty {
                Type::F32 => {
                    let d = float::float_unary32(op, mode, self.a32(i.a));
                    self.put32(i.d, mask, d);
                }
                Type::F64 => {
                    let d = float::float_unary64(op, self.a64(i.a));
                    self.put64(i.d, mask, d);
                }
                _ => {
                    let d = float::float_unary_half(op, ty, mode, self.a32(i.a));
                    self.put32(i.d, mask, d);
                }
            },
            Op::Setp { compare, ty, ftz, combine, negate } => {
                let mut bits = if ty.bits() == 64 {
                    alu::compare64(compare, ty, self.a64(i.a), self.a64(i.b))
                } else {
                    alu::compare32(compare, ty, ftz, self.a32(i.a), self.a32(i.b))
                };
                let mut complement = !bits;
                if i.c != NONE {
                    let other = self.predicates[i.c as usize] ^ if negate { ALL } else { 0 };
                    (bits, complement) =
                        (alu::combine(combine, bits, other), alu::combine(combine, complement, other));
                }
                self.put_predicate(i.d, mask, bits);
                if i.e != NONE {
                    self.put_predicate(i.e, mask, complement);
                }
            }
            Op::Load { space, ty, count, wide, address64 } => {
                let from = self.addresses(i.a, address64, i.c as i32);
                match ty.bytes() * usize::from(count) {
                    1 => self.load::<1>(cluster, i, mask, space, ty, wide, &from)?,
                    2 => self.load::<2>(cluster, i, mask, space, ty, wide, &from)?,
                    4 => self.load::<4>(cluster, i, mask, space, ty, wide, &from)?,
                    8 => self.load::<8>(cluster, i, mask, space, ty, wide, &from)?,
                    16 => self.load::<16>(cluster, i, mask, space, ty, wide, &from)?,
                    _ => self.load::<32>(cluster, i, mask, space, ty, wide, &from)?,
                }
            }
            Op::Store { space, ty, count, wide, address64 } => {
                let to = self.addresses(i.a, address64, i.c as i32);
                match ty.bytes() * usize::from(count) {
                    1 => self.store::<1>(cluster, i, mask, space, ty, wide, &to)?,
                    2 => self.store::<2>(cluster, i, mask, space, ty, wide, &to)?,
                    4 => self.store::<4>(cluster, i, mask, space, ty, wide, &to)?,
                    8 => self.store::<8>(cluster, i, mask, space, ty, wide, &to)?,
                    16 => self.store::<16>(cluster, i, mask, space, ty, wide, &to)?,
                    _ => self.store::<32>(cluster, i, mask, space, ty, wide, &to)?,
                }
            }
            Op::Selp32 => {
                let (bits, a, b) = (self.predicates[i.c as usize], self.a32(i.a), self.a32(i.b));
                let mut d = [0; 32];
                for lane in 0..32 {
                    d[lane] = if bits >> lane & 1 == 1 { a[lane] } else { b[lane] };
                }
                self.put32(i.d, mask, d);
            }
            Op::Selp64 => {
                let (bits, a, b) = (self.predicates[i.c as usize], self.a64(i.a), self.a64(i.b));
                let mut d = [0; 32];
                for lane in 0..32 {
                    d[lane] = if bits >> lane & 1 == 1 { a[lane] } else { b[lane] };
                }
                self.put64(i.d, mask, d);
            }
            Op::Bool(op) => {
                let bits = alu::combine(op, self.predicates[i.a as usize], self.predicates[i.b as usize]);
                self.put_predicate(i.d, mask, bits);
            }
            Op::Not => {
                let bits = !self.predicates[i.a as usize];
                self.put_predicate(i.d, mask, bits);
            }
            Op::Convert { to, from, round, whole, ftz, sat, relu, wide_from, wide_to } => {
                let how = Conversion { to, from, round, whole, ftz, sat, relu };
                self.convert(i, mask, how, wide_from, wide_to);
            }
            Op::ConvertPair { to, round, relu, sat } => {
                let d = float::convert_pair(to, round, relu, sat, self.a32(i.a), self.a32(i.b));
                self.put32(i.d, mask, d);
            }
            Op::MulWide(ty) | Op::MadWide(ty) => {
                if ty.bits() == 16 {
                    let c = (i.c != NONE).then(|| self.a32(i.c));
                    let d = alu::mul_wide16(ty, self.a32(i.a), self.a32(i.b), c);
                    self.put32(i.d, mask, d);
                } else {
                    let c = (i.c != NONE).then(|| self.a64(i.c));
                    let d = alu::mul_wide(ty.signed(), self.a32(i.a), self.a32(i.b), c);
                    self.put64(i.d, mask, d);
                }
            }
            Op::Mad { high, ty } => {
                let op = if high { Int::MulHi } else { Int::MulLo };
                if ty.bits() == 64 {
                    let none = self.o64(NONE);
                    let product =
                        alu::int64(op, ty.signed(), self.a64(i.a), self.a64(i.b), none, self.o32(NONE));
                    let d = alu::int64(Int::Add, false, &product, self.a64(i.c), none, self.o32(NONE));
                    self.put64(i.d, mask, d);
                } else {
                    let product = alu::int32(op, ty, self.a32(i.a), self.a32(i.b), self.o32(NONE));
                    let d = alu::int32(Int::Add, ty, &product, self.a32(i.c), self.o32(NONE));
                    self.put32(i.d, mask, d);
                }
            }
            Op::Mma(product) => {
                if let Some(wait) = self.missing_any(mask) {
                    return Ok(Next::Stay(wait));
                }
                mma::whole(mask)?;
                mma::multiply(self, i, product);
            }
            Op::Shuffle(how) => return self.shuffle(i, mask, how),
            _ => return self.rare(cluster, i, mask),
        }
        Ok(Next::On)
    }

    /// What is not worth a place in the loop that is compiled for the vector unit.
    #[inline(never)]
    pub(super) fn rare(
        &mut self,
        cluster: &mut Cluster<'_>,
        i: &Instruction,
        mask: u32,
    ) -> Result<Next, Fault> {
        match i.op {
            Op::Exit => return Ok(Next::Exit),
            Op::Trap => return Err("trap".into()),
            Op::Unsupported => {
                let message = self.kernel.messages.get(i.d as usize).map_or("", String::as_str);
                return Err(Fault::from(message));
            }
            Op::BranchIndexed => {
                let mut targets = [0; 32];
                for lane in lanes(mask) {
                    let index = self.a32(i.a)[lane];
                    if index >= i.b {
                        return Err(Fault::from(format!("branch {index} of {}", i.b)).lane(lane));
                    }
                    targets[lane] = self.list[(i.d + index) as usize];
                }
                return Ok(Next::Scatter(targets));
            }
            Op::Pack { bits, parts } => {
                let rows = &self.list[i.a as usize..][..usize::from(parts)];
                let ones = if bits == 32 { u64::from(ALL) } else { (1 << bits) - 1 };
                let mut d = [0u64; 32];
                for (part, row) in rows.iter().enumerate() {
                    let from = self.a32(*row);
                    for lane in 0..32 {
                        d[lane] |= (u64::from(from[lane]) & ones) << (part * usize::from(bits));
                    }
                }
                if bits * parts == 64 {
                    self.put64(i.d, mask, d);
                } else {
                    self.put32(i.d, mask, d.map(|x| x as u32));
                }
            }
            Op::Unpack { bits, parts } => {
                let from: R64 =
                    if bits * parts == 64 { *self.a64(i.a) } else { self.a32(i.a).map(u64::from) };
                let ones = if bits == 32 { ALL } else { (1 << bits) - 1 };
                for part in 0..usize::from(parts) {
                    let row = self.list[i.d as usize + part];
                    if row != NONE {
                        self.put32(row, mask, from.map(|x| (x >> (part * usize::from(bits))) as u32 & ones));
                    }
                }
            }
            Op::IntUnary(op, ty) => {
                if ty.bits() == 64 {
                    let d = alu::int_unary64(op, self.a64(i.a));
                    self.put64(i.d, mask, d);
                } else {
                    let d = alu::int_unary32(op, ty, self.a32(i.a));
                    self.put32(i.d, mask, d);
                }
            }
            Op::Count(op, ty) => {
                let d = if ty.bits() == 64 {
                    alu::count64(op, ty.signed(), self.a64(i.a))
                } else {
                    alu::count32(op, ty.signed(), self.a32(i.a))
                };
                self.put32(i.d, mask, d);
            }
            Op::Mul24 { high, signed, add } => {
                let mut d = alu::mul24(high, signed, self.a32(i.a), self.a32(i.b));
                if add {
                    let c = self.a32(i.c);
                    d = std::array::from_fn(|lane| d[lane].wrapping_add(c[lane]));
                }
                self.put32(i.d, mask, d);
            }
            Op::Carry { subtract, carry_in, carry_out, wide } => {
                self.carry(i, mask, subtract, carry_in, carry_out, wide)
            }
            Op::Bfe(ty) => {
                let (b, c) = (*self.a32(i.b), *self.a32(i.c));
                if ty.bits() == 64 {
                    let a = self.a64(i.a);
                    let d = std::array::from_fn(|lane| alu::bfe(ty, a[lane], b[lane], c[lane]));
                    self.put64(i.d, mask, d);
                } else {
                    let a = self.a32(i.a);
                    let d =
                        std::array::from_fn(|lane| alu::bfe(ty, u64::from(a[lane]), b[lane], c[lane]) as u32);
                    self.put32(i.d, mask, d);
                }
            }
            Op::Bfi(ty) => {
                let (c, e) = (*self.a32(i.c), *self.a32(i.e));
                if ty.bits() == 64 {
                    let (a, b) = (self.a64(i.a), self.a64(i.b));
                    let d = std::array::from_fn(|lane| alu::bfi(64, a[lane], b[lane], c[lane], e[lane]));
                    self.put64(i.d, mask, d);
                } else {
                    let (a, b) = (self.a32(i.a), self.a32(i.b));
                    let one = |lane: usize| {
                        alu::bfi(32, u64::from(a[lane]), u64::from(b[lane]), c[lane], e[lane]) as u32
                    };
                    let d = std::array::from_fn(one);
                    self.put32(i.d, mask, d);
                }
            }
            Op::Prmt(kind) => {
                let (a, b, c) = (self.a32(i.a), self.a32(i.b), self.a32(i.c));
                let d = std::array::from_fn(|lane| alu::prmt(kind, a[lane], b[lane], c[lane]));
                self.put32(i.d, mask, d);
            }
            Op::Lop3 => {
                let d = alu::lop3(i.e, self.a32(i.a), self.a32(i.b), self.a32(i.c));
                self.put32(i.d, mask, d);
            }
            Op::Shf { left, wrap } => {
                let d = alu::shf(left, wrap, self.a32(i.a), self.a32(i.b), self.a32(i.c));
                self.put32(i.d, mask, d);
            }
            Op::Dp4a { a_signed, b_signed } => {
                let (a, b, c) = (self.a32(i.a), self.a32(i.b), self.a32(i.c));
                let d = std::array::from_fn(|lane| alu::dp4a(a_signed, b_signed, a[lane], b[lane], c[lane]));
                self.put32(i.d, mask, d);
            }
            Op::Testp(kind, ty) => {
                let bits = self.test(i, kind, ty);
                self.put_predicate(i.d, mask, bits);
            }
            Op::Set { compare, ty, float, ftz, combine, negate } => {
                let mut bits = if ty.bits() == 64 {
                    alu::compare64(compare, ty, self.a64(i.a), self.a64(i.b))
                } else {
                    alu::compare32(compare, ty, ftz, self.a32(i.a), self.a32(i.b))
                };
                if i.c != NONE {
                    bits = alu::combine(
                        combine,
                        bits,
                        self.predicates[i.c as usize] ^ if negate { ALL } else { 0 },
                    );
                }
                let one = if float { 1f32.to_bits() } else { ALL };
                let d = std::array::from_fn(|lane| if bits >> lane & 1 == 1 { one } else { 0 });
                self.put32(i.d, mask, d);
            }
            Op::SetpPair { compare, ty, combine, negate } => {
                let part = if ty == Type::F16x2 { Type::F16 } else { Type::Bf16 };
                let other = if i.c == NONE {
                    None
                } else {
                    Some(self.predicates[i.c as usize] ^ if negate { ALL } else { 0 })
                };
                for (half, to) in [i.d, i.e].into_iter().enumerate().filter(|(_, to)| *to != NONE) {
                    let values = |row: u32| self.a32(row).map(|x| x >> (16 * half) & 0xffff);
                    let mut bits = alu::compare32(compare, part, false, &values(i.a), &values(i.b));
                    if let Some(other) = other {
                        bits = alu::combine(combine, bits, other);
                    }
                    self.put_predicate(to, mask, bits);
                }
            }
            Op::Slct { wide, float } => {
                let c = *self.a32(i.c);
                let first = |lane: usize| {
                    if float { f32::from_bits(c[lane]) >= 0.0 } else { c[lane] as i32 >= 0 }
                };
                if wide {
                    let (a, b) = (self.a64(i.a), self.a64(i.b));
                    let d = std::array::from_fn(|lane| if first(lane) { a[lane] } else { b[lane] });
                    self.put64(i.d, mask, d);
                } else {
                    let (a, b) = (self.a32(i.a), self.a32(i.b));
                    let d = std::array::from_fn(|lane| if first(lane) { a[lane] } else { b[lane] });
                    self.put32(i.d, mask, d);
                }
            }
            Op::Cvta { space, to, wide } => self.cvta(i, mask, space, to, wide)?,
            Op::IsSpace { space, wide } => {
                let window = match space {
                    Space::Shared => SHARED_WINDOW,
                    Space::Local => LOCAL_WINDOW,
                    Space::Parameter => PARAMETER_WINDOW,
                    _ => 0,
                };
                let bits = lanes(mask).fold(0, |bits, lane| {
                    let address = if wide { self.a64(i.a)[lane] } else { u64::from(self.a32(i.a)[lane]) };
                    bits | u32::from(address & WINDOW_MASK == window) << lane
                });
                self.put_predicate(i.d, mask, bits);
            }
            Op::Atomic { op, ty, space, address64 } => {
                self.atomic(cluster, i, mask, op, ty, space, address64)?
            }
            Op::Vote { vote, negate } => return self.vote(i, mask, vote, negate),
            Op::Match { all, wide } => return self.matched(i, mask, all, wide),
            Op::Redux(op, ty) => return self.redux(i, mask, op, ty),
            Op::ActiveMask => self.put32(i.d, mask, [mask; 32]),
            Op::WarpSync => {
                if let Some(wait) = self.missing(self.a32(i.a), mask)? {
                    return Ok(Next::Stay(wait));
                }
            }
            Op::Elect => {
                if let Some(wait) = self.missing(self.a32(i.a), mask)? {
                    return Ok(Next::Stay(wait));
                }
                let chosen = self.a32(i.a).map(|members| (members & mask).trailing_zeros());
                let bits =
                    lanes(mask).fold(0, |bits, lane| bits | u32::from(chosen[lane] == lane as u32) << lane);
                self.put32(i.d, mask, chosen);
                self.put_predicate(i.e, mask, bits);
            }
            Op::Barrier { barrier, negate, .. } => return self.barrier(cluster, i, mask, barrier, negate),
            Op::ClusterArrive => {
                if let Some(wait) = self.missing_any(mask) {
                    return Ok(Next::Stay(wait));
                }
                self.cluster_generation = cluster.meeting.generation;
                self.clock.release(&mut cluster.told.0);
                cluster.meeting.arrived += 1;
                cluster.complete_cluster();
            }
            Op::ClusterWait => {
                if let Some(wait) = self.missing_any(mask) {
                    return Ok(Next::Stay(wait));
                }
                let generation = self.cluster_generation;
                if cluster.meeting.generation == generation {
                    return Ok(Next::Wait(Wait::Cluster { generation }));
                }
                self.clock.acquire(&cluster.told.1);
            }
            Op::CpAsync { bytes, ignore } => self.copy(cluster, i, mask, usize::from(bytes), ignore)?,
            Op::CpAsyncCommit => {
                for lane in lanes(mask) {
                    self.committed[lane] += 1;
                }
            }
            Op::CpAsyncWait { all } => self.wait_copies(cluster, mask, if all { None } else { Some(i.a) })?,
            Op::LdMatrix { count, transposed } => {
                if let Some(wait) = self.missing_any(mask) {
                    return Ok(Next::Stay(wait));
                }
                mma::whole(mask)?;
                mma::load_matrices(self, cluster, i, count, transposed)?;
            }
            Op::StMatrix { count, transposed } => {
                if let Some(wait) = self.missing_any(mask) {
                    return Ok(Next::Stay(wait));
                }
                mma::whole(mask)?;
                mma::store_matrices(self, cluster, i, count, transposed)?;
            }
            Op::MovMatrix => {
                if let Some(wait) = self.missing_any(mask) {
                    return Ok(Next::Stay(wait));
                }
                mma::whole(mask)?;
                let d = mma::transpose(self.a32(i.a));
                self.put32(i.d, mask, d);
            }
            Op::Mapa { wide, generic } => {
                for lane in lanes(mask) {
                    let rank = self.a32(i.b)[lane];
                    if rank as usize >= cluster.blocks.len() {
                        let message = format!("rank {rank} in a cluster of {} blocks", cluster.blocks.len());
                        return Err(Fault::from(message).lane(lane));
                    }
                    let window = |address: u32| address & ((1 << RANK_SHIFT) - 1) | (rank + 1) << RANK_SHIFT;
                    if wide {
                        let address = self.a64(i.a)[lane];
                        self.r64[i.d as usize][lane] =
                            u64::from(window(address as u32)) | if generic { SHARED_WINDOW } else { 0 };
                    } else {
                        self.r32[i.d as usize][lane] = window(self.a32(i.a)[lane]);
                    }
                }
            }
            Op::GetRank { wide } => {
                for lane in lanes(mask) {
                    let address = if wide { self.a64(i.a)[lane] as u32 } else { self.a32(i.a)[lane] };
                    let rank = address >> RANK_SHIFT;
                    self.r32[i.d as usize][lane] = if rank == 0 { self.block as u32 } else { rank - 1 };
                }
            }
            Op::Clock { wide, .. } => {
                let clock = cluster.clock;
                if wide {
                    self.put64(i.d, mask, [clock; 32]);
                } else {
                    self.put32(i.d, mask, [clock as u32; 32]);
                }
            }
            Op::NanoSleep => return Ok(Next::Wait(Wait::Yield)),
            Op::Hopper(op) => {
                if aligned(op)
                    && let Some(wait) = self.missing_any(mask)
                {
                    return Ok(Next::Stay(wait));
                }
                let before = cluster.blocks[self.block].hopper.progress;
                if matches!(op, hopper::Op::BarrierArrive { .. } | hopper::Op::BarrierComplete) {
                    self.tell(cluster, i, mask)?;
                }
                let waits = op == hopper::Op::ProductWait;
                let together = waits.then(|| {
                    let (group, count) =
                        (self.index / 4, cluster.blocks[self.block].groups[self.index / 4].1);
                    self.clock.of_group(cluster.group_number(self.block, group), count)
                });
                let mut view = View { warp: self, cluster, mask, together };
                let flow = hopper::execute(op, i, &mut view).map_err(Fault::from)?;
                if cluster.blocks[self.block].hopper.progress != before {
                    cluster.events += 1;
                }
                if waits {
                    let generation = cluster.blocks[self.block].groups[self.index / 4].0.generation;
                    if !cluster.complete_group(self.block, self.index / 4) {
                        return Ok(Next::Wait(Wait::Group { generation }));
                    }
                    self.hear_of_group(cluster);
                }
                if flow == Flow::Next && matches!(op, hopper::Op::BarrierTest { .. }) {
                    self.hear(cluster, i, mask)?;
                }
                if flow == Flow::Yield {
                    return Ok(Next::Wait(Wait::Yield));
                }
            }
            op => return Err(Fault::from(format!("{op:?} is not known"))),
        }
        Ok(Next::On)
    }

    // ---- arithmetic between files ----

    #[inline(always)]
    pub(super) fn convert(
        &mut self,
        i: &Instruction,
        mask: u32,
        how: Conversion,
        wide_from: bool,
        wide_to: bool,
    ) {
        if !how.sat && !how.ftz && !how.relu {
            // what addresses and conversions of types are made of
            match (how.to, how.from) {
                (Type::S64 | Type::U64, Type::S32) if !wide_from => {
                    let d = self.a32(i.a).map(|x| x as i32 as i64 as u64);
                    return self.put64(i.d, mask, d);
                }
                (Type::S64 | Type::U64, Type::U32) if !wide_from => {
                    let d = self.a32(i.a).map(u64::from);
                    return self.put64(i.d, mask, d);
                }
                (Type::U32 | Type::S32, Type::U64 | Type::S64) if !wide_to => {
                    let d = self.a64(i.a).map(|x| x as u32);
                    return self.put32(i.d, mask, d);
                }
                (Type::F32, Type::S32) if how.round == Round::Nearest => {
                    let d = self.a32(i.a).map(|x| (x as i32 as f32).to_bits());
                    return self.put32(i.d, mask, d);
                }
                (Type::F32, Type::U32) if how.round == Round::Nearest => {
                    let d = self.a32(i.a).map(|x| (x as f32).to_bits());
                    return self.put32(i.d, mask, d);
                }
                (Type::Bf16, Type::F32) if how.round == Round::Nearest => {
                    let d = self.a32(i.a).map(float::bf16_bits);
                    return self.put32(i.d, mask, d);
                }
                (Type::F32, Type::Bf16) => {
                    let d = self.a32(i.a).map(|x| x << 16);
                    return self.put32(i.d, mask, d);
                }
                (Type::F32, Type::F16) => {
                    let d = self.a32(i.a).map(|x| (float::widen16(x & 0xffff, false) as f32).to_bits());
                    return self.put32(i.d, mask, d);
                }
                _ => {}
            }
        }
        self.convert_each(i, mask, how, wide_from, wide_to);
    }

    #[inline(never)]
    pub(super) fn convert_each(
        &mut self,
        i: &Instruction,
        mask: u32,
        how: Conversion,
        wide_from: bool,
        wide_to: bool,
    ) {
        for lane in lanes(mask) {
            let from = if wide_from { self.a64(i.a)[lane] } else { u64::from(self.a32(i.a)[lane]) };
            let value = float::convert(how, from);
            if wide_to {
                self.r64[i.d as usize][lane] = value;
            } else {
                self.r32[i.d as usize][lane] = value as u32;
            }
        }
    }

    pub(super) fn carry(
        &mut self,
        i: &Instruction,
        mask: u32,
        subtract: bool,
        carry_in: bool,
        carry_out: bool,
        wide: bool,
    ) {
        let mut carries = 0;
        for lane in lanes(mask) {
            let (a, mut b) = if wide {
                (self.a64(i.a)[lane], self.a64(i.b)[lane])
            } else {
                (u64::from(self.a32(i.a)[lane]), u64::from(self.a32(i.b)[lane]))
            };
            // a - b is a + !b + 1, so a carry out of it says that nothing was borrowed; PTX keeps the borrow
            let borrow = self.carry >> lane & 1;
            let mut carry = u64::from(carry_in && borrow == 1);
            if subtract {
                b = !b & if wide { u64::MAX } else { u64::from(ALL) };
                carry = 1 - carry;
            }
            let sum = u128::from(a) + u128::from(b) + u128::from(carry);
            let out = (sum >> if wide { 64 } else { 32 }) as u32 & 1;
            carries |= (if subtract { 1 - out } else { out }) << lane;
            if wide {
                self.r64[i.d as usize][lane] = sum as u64;
            } else {
                self.r32[i.d as usize][lane] = sum as u32;
            }
        }
        if carry_out {
            self.carry = self.carry & !mask | carries;
        }
    }

    pub(super) fn test(&self, i: &Instruction, kind: Test, ty: Type) -> u32 {
        match ty {
            Type::F64 => alu::test(kind, self.a64(i.a).iter().map(|x| f64::from_bits(*x)), f64::MIN_POSITIVE),
            _ => {
                let values = self.a32(i.a).iter().map(|x| f64::from(f32::from_bits(*x)));
                alu::test(kind, values, f64::from(f32::MIN_POSITIVE))
            }
        }
    }
}

/// Whether an instruction is one of the whole warp.
fn aligned(op: hopper::Op) -> bool {
    use hopper::Op;
    matches!(op, Op::Product(_) | Op::ProductFence | Op::ProductCommit | Op::ProductWait | Op::Registers)
}
