//! Compiling a program: every op's launcher, storage for scratch, and the dispatches of one compute pass.
//!
//! Launchers ([`ops`]) append dispatches; buffers for scratch tensors, workspaces and tables are made behind the last
//! one, when all sizes are known, and then the bind groups. The parameters of all dispatches lie in one uniform
//! buffer that is written once.

use crate::arena::WgpuArena;
use crate::device::{Pipeline, Shared};
use crate::kernel::{Bound, Entry, Kernel, Resource};
use crate::matrix_units::{self, Units};
use crate::ops::{self, matvec, matvec::Normed, memory, rope, rope::ToTurn};
use crate::profile;
use landmark_core::ops::{Op, Operation, SelectBlocks};
use landmark_core::plan::Plan;
use landmark_core::program::{Info, Place};
use landmark_core::quantize::Bits;
use landmark_core::{DType, Error, Program, Result, Shape, Tensor};
use std::collections::HashMap;
use std::ops::RangeInclusive;

/// Parameters of dispatches start at multiples of this: the strictest alignment that WebGPU allows a device to ask for.
const PARAMS_ALIGNMENT: usize = 256;
/// Workgroups of a dimension that every device allows.
const MOST_GROUPS: usize = 65_535;
/// Bindings in storage that WebGPU's default limits allow a kernel.
pub(crate) const MOST_BINDINGS: usize = 8;
/// Threads of a workgroup where nothing else decides.
pub(crate) const WORKGROUP: usize = 256;
/// The same where threads work alone: software has a few of them to give to a core, and a step not many.
pub(crate) const LONE_THREADS: usize = 16;

struct Dispatch {
    name: &'static str,
    pipeline: wgpu::ComputePipeline,
    bindings: wgpu::BindGroup,
    groups: [u32; 3],
}

impl Dispatch {
    fn encode(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bindings, &[]);
        let [x, y, z] = self.groups;
        pass.dispatch_workgroups(x, y, z);
    }
}

/// A compiled program.
pub struct WgpuPlan {
    name: String,
    dispatches: Vec<Dispatch>,
    runs: u64,
    /// The commands of the next run.
    ahead: Option<wgpu::CommandBuffer>,
}

/// A dispatch whose storage is not there yet.
struct Pending {
    name: &'static str,
    pipeline: Pipeline,
    bound: Vec<Bound>,
    /// Where its parameters lie, and how many bytes they are.
    params: (usize, usize),
    groups: [u32; 3],
}

/// Some rows of a tensor as a kernel is given them.
pub(crate) struct Part {
    pub(crate) first: usize,
    pub(crate) rows: usize,
    pub(crate) resource: Resource,
    /// Bits and scales of weights that are quantised.
    pub(crate) quantised: Option<(Bits, Resource)>,
}

/// What launchers work with.
pub(crate) struct Compiler<'a> {
    shared: &'a Shared,
    program: &'a Program,
    arena: &'a WgpuArena,
    plan: &'a Plan,
    /// Number of the op whose launcher is called.
    at: usize,
    /// The last op that touches each tensor.
    last: HashMap<Tensor, usize>,
    /// Tensors that are not made, since who reads them makes their norm for himself.
    pub(crate) normed: HashMap<Tensor, Normed>,
    /// Heads that are turned by those who read them.
    pub(crate) to_turn: HashMap<Tensor, ToTurn>,
    /// The choice that the attention behind it makes.
    pub(crate) to_choose: Option<SelectBlocks>,
    /// The sum that the launch ahead of a norm has made.
    pub(crate) added: Option<Tensor>,
    /// Bytes of every scratch buffer: the slots of the plan first.
    scratch: Vec<u64>,
    /// Scratch buffers that are workspaces, in the order in which an op asks for them.
    workspaces: Vec<usize>,
    workspaces_used: usize,
    /// Scratch buffers that are filled once a run, with what fills them.
    tables: Vec<(String, usize)>,
    params: Vec<u8>,
    pending: Vec<Pending>,
}

/// The largest of 4, 2 and 1 that divides all of these: the alignment of elements whose numbers are sums of them.
pub(crate) fn alignment(extents: &[usize]) -> usize {
    [4, 2].into_iter().find(|a| extents.iter().all(|e| e.is_multiple_of(*a))).unwrap_or(1)
}

impl<'a> Compiler<'a> {
    pub(crate) fn op(&self) -> &'a Op {
        &self.program.ops()[self.at]
    }

    /// Its number.
    pub(crate) fn number(&self) -> usize {
        self.at
    }

    /// The op behind it.
    pub(crate) fn next(&self) -> Option<&'a Op> {
        self.program.ops().get(self.at + 1)
    }

    /// Ops by their distance from it, as far as there are so many.
    pub(crate) fn ahead(&self, distances: RangeInclusive<usize>) -> &'a [Op] {
        let (ops, first) = (self.program.ops(), self.at + distances.start());
        &ops[first.min(ops.len())..(self.at + distances.end() + 1).min(ops.len())]
    }

    /// The last op that touches a tensor, if nobody can see it when the program has run.
    pub(crate) fn last_if_scratch(&self, tensor: Tensor) -> Option<usize> {
        self.last.get(&tensor).copied().filter(|_| self.info(tensor).place == Place::Scratch)
    }

    /// The tensor whose storage it is.
    pub(crate) fn owner(&self, tensor: Tensor) -> Tensor {
        self.program.owner(tensor)
    }

    /// Whether two tensors lie in the same place.
    pub(crate) fn is_same_storage(&self, one: Tensor, other: Tensor) -> bool {
        let slots = [one, other].map(|tensor| self.plan.slot(tensor));
        self.owner(one) == self.owner(other) || (slots[0].is_some() && slots[0] == slots[1])
    }

    /// Says that this launch serves the op behind it, too.
    pub(crate) fn take_next(&mut self) {
        self.at += 1;
    }

    pub(crate) fn info(&self, tensor: Tensor) -> &'a Info {
        self.program.info(tensor)
    }

    pub(crate) fn shape(&self, tensor: Tensor) -> &'a Shape {
        self.program.shape(tensor)
    }

    pub(crate) fn dtype(&self, tensor: Tensor) -> DType {
        self.info(tensor).dtype
    }

    /// Columns of a tensor seen as a matrix: the stride of its rows.
    pub(crate) fn cols(&self, tensor: Tensor) -> usize {
        self.shape(tensor).cols()
    }

    pub(crate) fn rows(&self, tensor: Tensor) -> usize {
        self.shape(tensor).rows()
    }

    /// The error of a launcher that cannot serve an op as it was recorded.
    pub(crate) fn unsupported(&self, reason: impl Into<String>) -> Error {
        Error::Unsupported { op: self.op().name(), reason: reason.into() }
    }

    /// Whether the device has an optional feature.
    pub(crate) fn has(&self, feature: wgpu::Features) -> bool {
        self.shared.features.contains(feature)
    }

    /// What kernels for matrix units are to be written for.
    pub(crate) fn matrix_units(&self) -> Option<Units> {
        if self.has(matrix_units::FEATURES) {
            return Some(Units::Real);
        }
        (self.shared.emulates_units && self.has(wgpu::Features::SHADER_F16)).then_some(Units::Emulated)
    }

    /// Whether kernels are to be those whose threads work alone, without workgroup memory and barriers.
    pub(crate) fn works_alone(&self) -> bool {
        self.shared.works_alone && self.matrix_units().is_none()
    }

    /// How many threads a subgroup has at least and at most, where there are subgroups.
    pub(crate) fn subgroups(&self) -> Option<RangeInclusive<usize>> {
        let info = self.shared.device.adapter_info();
        let sizes = info.subgroup_min_size as usize..=info.subgroup_max_size as usize;
        (self.has(wgpu::Features::SUBGROUP) && *sizes.end() <= WORKGROUP).then_some(sizes)
    }

    /// Bytes of workgroup memory.
    pub(crate) fn workgroup_bytes(&self) -> u32 {
        self.shared.limits.max_compute_workgroup_storage_size
    }

    pub(crate) fn largest_binding(&self) -> u64 {
        self.shared.largest_binding()
    }

    /// Where a tensor lies, piece by piece.
    pub(crate) fn parts(&self, tensor: Tensor) -> Result<Vec<Part>> {
        let (info, rows) = (self.info(tensor), self.rows(tensor));
        match info.place {
            Place::Scratch => {
                let slot =
                    self.plan.slot(tensor).ok_or_else(|| self.unsupported("a tensor without storage"))?;
                Ok(vec![Part { first: 0, rows, resource: Resource::Scratch(slot), quantised: None }])
            }
            Place::Persistent(owner) => {
                let pieces = self.arena.pieces(owner);
                let is_whole = pieces.len() == 1 && pieces[0].scales.is_none();
                if !is_whole && self.arena.layout.info(owner).shape.cols() != info.shape.cols() {
                    return Err(self.unsupported(format!(
                        "`{}` is quantised or larger than a binding of this device, and is seen with other rows",
                        info.name
                    )));
                }
                let bits = self.arena.bits(owner);
                let part = |piece: &crate::arena::Piece| Part {
                    first: piece.first,
                    rows: if is_whole { rows } else { piece.rows.min(rows - piece.first) },
                    resource: Resource::Buffer(piece.buffer.clone()),
                    quantised: bits.zip(piece.scales.clone().map(Resource::Buffer)),
                };
                Ok(pieces.iter().filter(|piece| piece.first < rows).map(part).collect())
            }
        }
    }

    /// Where rings lie, piece by piece: those of keys and of values, which are split alike.
    pub(crate) fn rings(&self, keys: Tensor, values: Tensor) -> Result<Vec<(Part, Part)>> {
        let parts = |tensor: Tensor| match self.info(tensor).place {
            Place::Persistent(owner) => {
                let of = |piece: &crate::arena::Piece| Part {
                    first: piece.first,
                    rows: piece.rows,
                    resource: Resource::Buffer(piece.buffer.clone()),
                    quantised: None,
                };
                Ok(self.arena.pieces(owner).iter().map(of).collect::<Vec<Part>>())
            }
            Place::Scratch => self.parts(tensor),
        };
        let (mut keys, mut values) = (parts(keys)?, parts(values)?);
        let is_alike =
            keys.len() == values.len() && keys.iter().zip(&values).all(|(k, v)| k.first == v.first);
        if !is_alike {
            return Err(self.unsupported("keys and values of different types in pieces"));
        }
        if let ([keys], [values]) = (&mut keys[..], &mut values[..]) {
            // In one piece: every head.
            (keys.rows, values.rows) = (usize::MAX, usize::MAX);
        }
        Ok(keys.into_iter().zip(values).collect())
    }

    /// Binds a piece of a ring.
    pub(crate) fn ring(
        &self,
        k: &mut Kernel,
        name: &str,
        tensor: Tensor,
        alignment: usize,
        entry: Entry,
        part: &Part,
    ) -> Result<()> {
        if entry == Entry::Write {
            self.refuse_odd_halves(tensor, alignment)?;
        }
        k.storage(name, self.dtype(tensor), alignment, entry, part.resource.clone());
        Ok(())
    }

    /// Where a tensor in one piece lies.
    pub(crate) fn whole(&self, tensor: Tensor) -> Result<Resource> {
        let mut parts = self.parts(tensor)?;
        if parts.iter().any(|part| part.quantised.is_some()) {
            let name = &self.info(tensor).name;
            return Err(
                self.unsupported(format!("`{name}` is quantised, which only products and embeddings read"))
            );
        }
        if parts.len() == 1 {
            return Ok(parts.remove(0).resource);
        }
        Err(Error::Device(format!(
            "{} is too small: maxStorageBufferBindingSize is {} bytes, but `{}` takes {}",
            self.shared.info.name,
            self.largest_binding(),
            self.info(tensor).name,
            self.info(tensor).bytes()
        )))
    }

    /// Binds a tensor to be read.
    pub(crate) fn read(&self, k: &mut Kernel, name: &str, tensor: Tensor, alignment: usize) -> Result<()> {
        k.storage(name, self.dtype(tensor), alignment, Entry::Read, self.whole(tensor)?);
        Ok(())
    }

    /// The same where it may be missing.
    pub(crate) fn read_if(
        &self,
        k: &mut Kernel,
        name: &str,
        tensor: Option<Tensor>,
        alignment: usize,
    ) -> Result<()> {
        match tensor {
            Some(tensor) => self.read(k, name, tensor, alignment),
            None => {
                k.absent(name);
                Ok(())
            }
        }
    }

    /// Binds some rows of a tensor to be read.
    pub(crate) fn read_part(
        &self,
        k: &mut Kernel,
        name: &str,
        tensor: Tensor,
        part: &Part,
        alignment: usize,
    ) {
        match &part.quantised {
            None => k.storage(name, self.dtype(tensor), alignment, Entry::Read, part.resource.clone()),
            Some((bits, scales)) => k.quantised(name, *bits, part.resource.clone(), scales.clone()),
        }
    }

    /// The same in eights, for matrix units: `x_oct` and `x_quads`.
    pub(crate) fn read_octs(&self, k: &mut Kernel, name: &str, tensor: Tensor, part: &Part) {
        if let Some((bits, scales)) = &part.quantised {
            return k.octs_of_codes(name, *bits, part.resource.clone(), scales.clone());
        }
        let (dtype, cols) = (self.dtype(tensor), self.cols(tensor));
        if dtype == DType::F16 && cols.is_multiple_of(8) {
            k.octs(name, part.resource.clone());
        } else {
            self.read_part(k, name, tensor, part, alignment(&[cols]));
            k.octs_of_quads(name);
        }
        k.quads_of_octs(name);
    }

    /// The same in chunks of 16 bytes, for kernels that read a lot: `x_load`, `x_part` and `x_scale`.
    pub(crate) fn read_chunks(&self, k: &mut Kernel, name: &str, tensor: Tensor, part: &Part) {
        let (dtype, cols) = (self.dtype(tensor), self.cols(tensor));
        match &part.quantised {
            Some((bits, scales)) => k.quantised(name, *bits, part.resource.clone(), scales.clone()),
            None => k.chunks(name, dtype, alignment(&[cols]), cols.is_multiple_of(8), part.resource.clone()),
        }
    }

    /// The same for threads that work alone: `x_start`, `x_next` and `x_scale`.
    pub(crate) fn read_rows(&self, k: &mut Kernel, name: &str, tensor: Tensor, part: &Part) {
        match &part.quantised {
            Some((bits, scales)) => k.codes(name, *bits, part.resource.clone(), scales.clone()),
            None => {
                let (dtype, alignment) = (self.dtype(tensor), alignment(&[self.cols(tensor)]));
                k.storage(name, dtype, alignment, Entry::Read, part.resource.clone());
                k.rows(name, dtype, alignment);
            }
        }
    }

    /// Gives a kernel its rows, each by a workgroup of so many threads, or by a thread alone: how many workgroups.
    pub(crate) fn rows_by(&self, k: &mut Kernel, rows: usize, threads: usize) -> usize {
        let is_alone = self.works_alone();
        k.constant("WORKGROUP", if is_alone { LONE_THREADS } else { threads });
        k.include(if is_alone {
            include_str!("shaders/row_by_thread.wgsl")
        } else {
            include_str!("shaders/row_by_workgroup.wgsl")
        });
        if is_alone { rows.div_ceil(LONE_THREADS) } else { rows }
    }

    /// Binds a tensor to be written, or read and written.
    pub(crate) fn write(&self, k: &mut Kernel, name: &str, tensor: Tensor, alignment: usize) -> Result<()> {
        self.refuse_odd_halves(tensor, alignment)?;
        k.storage(name, self.dtype(tensor), alignment, Entry::Write, self.whole(tensor)?);
        Ok(())
    }

    fn refuse_odd_halves(&self, tensor: Tensor, alignment: usize) -> Result<()> {
        let info = self.info(tensor);
        if info.dtype.size() == 2 && alignment < 2 {
            return Err(self.unsupported(format!(
                "`{}` {:?} is {}, whose elements this backend writes in pairs, and its rows or columns are odd",
                info.name,
                info.shape,
                info.dtype.name()
            )));
        }
        Ok(())
    }

    /// The same where nobody may want it.
    pub(crate) fn write_if(
        &self,
        k: &mut Kernel,
        name: &str,
        tensor: Option<Tensor>,
        alignment: usize,
    ) -> Result<()> {
        match tensor {
            Some(tensor) => self.write(k, name, tensor, alignment),
            None => {
                k.absent(name);
                Ok(())
            }
        }
    }

    /// Binds a small tensor of 32-bit elements as a uniform.
    pub(crate) fn uniform(&self, k: &mut Kernel, name: &str, tensor: Tensor) -> Result<()> {
        let (info, most) = (self.info(tensor), self.shared.limits.max_uniform_buffer_binding_size);
        if info.bytes().next_multiple_of(16) as u64 > most {
            return Err(Error::Device(format!(
                "{} is too small: maxUniformBufferBindingSize is {most}, but `{}` takes {} bytes; take a smaller batch",
                self.shared.info.name,
                info.name,
                info.bytes()
            )));
        }
        if info.dtype.size() != 4 {
            return Err(self.unsupported(format!("`{}` is {}", info.name, info.dtype.name())));
        }
        k.uniform(name, info.dtype, info.shape.numel(), self.whole(tensor)?);
        Ok(())
    }

    /// Binds the status buffer, in which a kernel reports an index of `tensor` that is not below `limit`, and passes
    /// the number of the check.
    pub(crate) fn index_check(&self, k: &mut Kernel, tensor: Tensor, limit: usize) {
        k.raw("status", "atomic<u32>", Entry::Write, Resource::Buffer(self.shared.status.clone()));
        let check = self.shared.index_check(self.op().name(), self.info(tensor).name.clone(), limit);
        k.param("check", check);
    }

    /// Memory for this op alone, undefined at the beginning. May be asked for several times.
    pub(crate) fn workspace(&mut self, bytes: u64) -> Resource {
        if self.workspaces_used == self.workspaces.len() {
            self.workspaces.push(self.scratch.len());
            self.scratch.push(0);
        }
        let number = self.workspaces[self.workspaces_used];
        self.workspaces_used += 1;
        self.scratch[number] = self.scratch[number].max(bytes);
        Resource::Scratch(number)
    }

    /// Memory that is filled once a run and then read by any op that names it alike; whether it is new, and has to be
    /// filled here.
    pub(crate) fn table(&mut self, name: String, bytes: u64) -> (Resource, bool) {
        if let Some((_, number)) = self.tables.iter().find(|(known, _)| *known == name) {
            return (Resource::Scratch(*number), false);
        }
        let number = self.scratch.len();
        self.scratch.push(bytes);
        self.tables.push((name, number));
        (Resource::Scratch(number), true)
    }

    /// Appends a launch of this many workgroups, folded into two dimensions: `group_index` numbers them, and may
    /// number a few more.
    pub(crate) fn dispatch(&mut self, kernel: Kernel, groups: usize) -> Result<()> {
        let x = groups.min(MOST_GROUPS);
        self.dispatch_grid(kernel, [x, groups.div_ceil(x.max(1)), 1])
    }

    /// Appends a launch over a grid.
    pub(crate) fn dispatch_grid(&mut self, kernel: Kernel, groups: [usize; 3]) -> Result<()> {
        if groups.contains(&0) {
            return Ok(());
        }
        if let Some(most) = groups.iter().find(|n| **n > MOST_GROUPS) {
            return Err(self.unsupported(format!("{most} workgroups in a dimension; take a smaller batch")));
        }
        debug_assert!(
            kernel.storage_bindings() <= MOST_BINDINGS,
            "{} binds more than WebGPU's default limits allow",
            kernel.name
        );
        let pipeline = self.shared.pipeline(kernel.name, &kernel.source(), &kernel.entries())?;
        let params = kernel.params();
        let at = self.params.len();
        self.params.extend(&params);
        self.params.resize(self.params.len().next_multiple_of(PARAMS_ALIGNMENT), 0);
        let groups = groups.map(|n| n as u32);
        let name = kernel.name;
        self.pending.push(Pending {
            name,
            pipeline,
            params: (at, params.len()),
            bound: kernel.bound,
            groups,
        });
        Ok(())
    }

    fn finish(self) -> Result<WgpuPlan> {
        let shared = self.shared;
        let scratch = shared.scratch(&self.scratch, &self.program.name)?;
        let params = shared.buffer(self.params.len() as u64, "parameters")?;
        shared.queue.write_buffer(&params, 0, &self.params);
        let bind = |pending: Pending| {
            let (at, bytes) = pending.params;
            let bound = |b: &'_ Bound| match &b.resource {
                Resource::Buffer(buffer) => buffer.clone(),
                Resource::Scratch(number) => scratch[*number].clone(),
            };
            let buffers: Vec<wgpu::Buffer> = pending.bound.iter().map(bound).collect();
            let binding = |buffer, offset: usize, bytes: Option<u64>| {
                let size = bytes.and_then(wgpu::BufferSize::new);
                wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset: offset as u64, size })
            };
            let first = binding(&params, at, Some(bytes.next_multiple_of(16) as u64));
            let others = buffers.iter().zip(&pending.bound).map(|(buffer, b)| binding(buffer, 0, b.bytes));
            let entries: Vec<wgpu::BindGroupEntry<'_>> = std::iter::once(first)
                .chain(others)
                .enumerate()
                .map(|(i, resource)| wgpu::BindGroupEntry { binding: i as u32, resource })
                .collect();
            let bindings = shared.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &pending.pipeline.layout,
                entries: &entries,
            });
            let (name, groups) = (pending.name, pending.groups);
            Dispatch { name, pipeline: pending.pipeline.pipeline, bindings, groups }
        };
        let dispatches = self.pending.into_iter().map(bind).collect();
        shared.check()?;
        Ok(WgpuPlan { name: self.program.name.clone(), dispatches, runs: 0, ahead: None })
    }
}

/// The last op that touches each tensor of a program.
fn last_touches(program: &Program) -> HashMap<Tensor, usize> {
    let touches = |(at, op): (usize, &Op)| {
        let operands = op.operand_list().into_iter();
        operands.map(move |operand| (operand.tensor, at)).collect::<Vec<_>>()
    };
    program.ops().iter().enumerate().flat_map(touches).collect()
}

/// Compiles `program` over `arena`.
pub(crate) fn compile(shared: &Shared, program: &Program, arena: &WgpuArena) -> Result<WgpuPlan> {
    let last = last_touches(program);
    let borrowed = [matvec::borrowed, rope::borrowed, memory::borrowed].map(|of| of(program, &last)).concat();
    let plan = Plan::with(program, &borrowed);
    let scratch = plan.slots.iter().map(|slot| (slot.numel * slot.dtype.size()) as u64).collect();
    let mut compiler = Compiler {
        shared,
        program,
        arena,
        plan: &plan,
        at: 0,
        last,
        normed: HashMap::new(),
        to_turn: HashMap::new(),
        to_choose: None,
        added: None,
        scratch,
        workspaces: Vec::new(),
        workspaces_used: 0,
        tables: Vec::new(),
        params: Vec::new(),
        pending: Vec::new(),
    };
    while compiler.at < program.ops().len() {
        compiler.workspaces_used = 0;
        ops::launch(&mut compiler)?;
        compiler.at += 1;
    }
    compiler.finish()
}

impl WgpuPlan {
    /// How many kernels one run launches.
    pub fn launches(&self) -> usize {
        self.dispatches.len()
    }

    /// Submits the program. From the second run on, the commands of the next one are encoded while the device is busy
    /// with this one: a step of generation waits for nothing then but the device.
    ///
    /// # Errors
    /// Where a profile was asked for, and cannot be had.
    pub(crate) fn run(&mut self, shared: &Shared) -> Result<()> {
        if self.runs == profile::RUN && shared.features.contains(profile::FEATURES) {
            self.runs += 1;
            eprint!("{}", self.profile(shared)?);
            return Ok(());
        }
        let commands = self.ahead.take().unwrap_or_else(|| self.encode(shared));
        shared.queue.submit([commands]);
        self.runs += 1;
        if self.runs > 1 {
            self.ahead = Some(self.encode(shared));
        }
        Ok(())
    }

    /// Runs the program, and says how long each kind of kernel took.
    fn profile(&self, shared: &Shared) -> Result<String> {
        let stamps = profile::Stamps::new(shared, self.dispatches.len());
        let mut encoder = shared.device.create_command_encoder(&Default::default());
        for (at, dispatch) in self.dispatches.iter().enumerate() {
            let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes: stamps.of(at) };
            dispatch.encode(&mut encoder.begin_compute_pass(&descriptor));
        }
        stamps.resolve(&mut encoder);
        shared.queue.submit([encoder.finish()]);
        // Launches of one kernel over different shapes are told apart by their size.
        let name = |dispatch: &Dispatch| {
            let groups: u32 = dispatch.groups.iter().product();
            format!("{}, {groups} workgroups", dispatch.name)
        };
        let names: Vec<String> = self.dispatches.iter().map(name).collect();
        Ok(profile::summary(&self.name, &names, &stamps.milliseconds(shared)?))
    }

    fn encode(&self, shared: &Shared) -> wgpu::CommandBuffer {
        let label = wgpu::CommandEncoderDescriptor { label: Some(&self.name) };
        let mut encoder = shared.device.create_command_encoder(&label);
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for dispatch in &self.dispatches {
                dispatch.encode(&mut pass);
            }
        }
        encoder.finish()
    }
}
