//! Compiling a program: every op's launcher, addresses, memory, and the graph that replays the launches.
//!
//! The ops are walked twice. The first walk finds which kernels are wanted and how much workspace; what is missing is
//! compiled in parallel, memory is allocated, and the second walk makes the launches. So launchers are plain functions
//! that may ask for anything at any time, and give the same answer to both walks.
//!
//! Scratch tensors and workspaces lie in one *transient* buffer that all programs of a device share: programs run one
//! after the other, and none of them expects to find what it left there.

use crate::arena::{CudaArena, aligned, lay_out};
use crate::attention::Launches;
use crate::backend::Shared;
use crate::compile::{Arch, Defines};
use crate::cublaslt::{Ask, Product};
use crate::driver::{Arg, Buffer, Event, Function, Graph, Launch};
use crate::ops;
use crate::paging::{Rings, Span};
use landmark_core::ops::Op;
use landmark_core::plan::Plan;
use landmark_core::program::{Info, Place};
use landmark_core::{Cols, DType, Error, Program, Result, Shape, Tensor};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How long an op took, see [`Cuda::profile`](crate::Cuda::profile).
#[derive(Clone, Debug, PartialEq)]
pub struct OpTime {
    /// Number of the op in the program; of the first, where a launch serves several.
    pub op: usize,
    /// Its name.
    pub name: &'static str,
    /// Milliseconds of a run, gaps between launches included.
    pub milliseconds: f32,
}

/// What replaces addresses in the first walk: aligned, and never used.
const NOWHERE: u64 = 1 << 40;

/// One thing that the stream does.
#[derive(Debug)]
pub(crate) enum Step {
    Kernel(Launch),
    Zero { address: u64, bytes: u64 },
    Product(Box<Product>),
}

/// A compiled program.
#[derive(Debug)]
pub struct CudaPlan {
    pub(crate) name: String,
    /// Steps, with the op that each belongs to.
    pub(crate) steps: Vec<(usize, Step)>,
    pub(crate) op_names: Vec<&'static str>,
    pub(crate) graph: Option<Graph>,
    pub(crate) runs: u64,
    /// Memory that the steps touch.
    pub(crate) _transient: Arc<Buffer>,
    pub(crate) _arena: (Arc<Buffer>, Option<Arc<Rings>>),
}

/// A kernel that a launcher asked for. In the first walk there is no function yet.
#[derive(Clone, Debug)]
pub(crate) struct Kernel(pub(crate) Option<Function>);

/// What launchers work with.
pub(crate) struct Compiler<'a> {
    shared: &'a Shared,
    program: &'a Program,
    arena: &'a CudaArena,
    scratch: Scratch,
    /// `None` in the first walk.
    transient: Option<u64>,
    /// By index: the scratch tensors of which some launch wants the address. Others need no memory: what passes inside a
    /// launch of several ops may be the largest tensor of the program (the scores of all landmarks).
    touched: RefCell<Vec<bool>>,
    /// Number of the op whose launcher is called.
    at: usize,
    workspace_used: u64,
    workspace_bytes: u64,
    wanted: Vec<(&'static str, Defines)>,
    steps: Vec<(usize, Step)>,
}

/// Arguments of a launch, in the order of the kernel's parameters: `u64` addresses, `i32`, `u32`, `f32`, `TensorMap`,
/// and structs by value as `Arc<[u64]>`.
macro_rules! args {
    ($($arg:expr),* $(,)?) => { vec![$($crate::driver::Arg::from($arg)),*] };
}
pub(crate) use args;

impl Compiler<'_> {
    /// The op to launch, and those behind it.
    pub(crate) fn ahead(&self) -> &[Op] {
        &self.program.ops()[self.at..]
    }

    pub(crate) fn program(&self) -> &Program {
        self.program
    }

    pub(crate) fn info(&self, tensor: Tensor) -> &Info {
        self.program.info(tensor)
    }

    pub(crate) fn shape(&self, tensor: Tensor) -> &Shape {
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

    /// Device address of a tensor, a multiple of 256.
    pub(crate) fn pointer(&self, tensor: Tensor) -> u64 {
        match self.info(tensor).place {
            Place::Persistent(owner) => self.arena.address(owner),
            Place::Scratch => {
                self.touched.borrow_mut()[tensor.index()] = true;
                self.transient.unwrap_or(NOWHERE) + self.scratch.offset(tensor)
            }
        }
    }

    /// The same, 0 where there is no tensor.
    pub(crate) fn pointer_or_null(&self, tensor: Option<Tensor>) -> u64 {
        tensor.map_or(0, |t| self.pointer(t))
    }

    /// Address of the first of these columns in the first row. Rows are [`cols`](Self::cols) elements apart.
    pub(crate) fn cols_pointer(&self, cols: Cols) -> u64 {
        self.pointer(cols.tensor) + (cols.start * self.dtype(cols.tensor).size()) as u64
    }

    /// Parts of the cache of pages that two rings in host memory have; `None` where the rings are on the device.
    pub(crate) fn page_cache(&self, keys: Tensor, values: Tensor) -> Option<(Span, Span)> {
        let rings = self.arena.rings.as_ref()?;
        let of = |t: Tensor| rings.cache(self.program.owner(t));
        Some((of(keys)?, of(values)?))
    }

    /// Whether nobody sees a tensor that the next `taken` ops write: it is scratch, and no later op reads it. Then launches
    /// that take these ops need not write it.
    pub(crate) fn is_passing(&self, tensor: Tensor, taken: usize) -> bool {
        use landmark_core::ops::Access;
        let reads =
            |op: &Op| op.operand_list().iter().any(|o| o.tensor == tensor && o.access != Access::Write);
        self.info(tensor).place == Place::Scratch && !self.ahead()[taken..].iter().any(reads)
    }

    /// Query heads of the attention over a ring of keys in this program.
    pub(crate) fn query_heads(&self, keys: Tensor) -> Option<usize> {
        self.program.ops().iter().find_map(|op| match op {
            Op::RetrievalAttention(op) if self.program.owner(op.keys) == self.program.owner(keys) => {
                Some(op.heads.heads)
            }
            _ => None,
        })
    }

    /// The extents with which a tensor was laid out: of a view, those of the whole.
    pub(crate) fn whole(&self, tensor: Tensor) -> &Shape {
        self.program.shape(self.program.owner(tensor))
    }

    pub(crate) fn arch(&self) -> Arch {
        Arch(self.shared.device.info.capability)
    }

    pub(crate) fn multiprocessors(&self) -> u32 {
        self.shared.device.info.multiprocessors
    }

    /// Bytes of shared memory that a block of threads can have.
    pub(crate) fn shared_per_block(&self) -> usize {
        self.shared.device.info.shared_per_block as usize
    }

    /// Function `function` of `kernels/<file>` under these definitions.
    pub(crate) fn kernel(
        &mut self,
        file: &'static str,
        function: &'static str,
        defines: Defines,
    ) -> Result<Kernel> {
        if self.transient.is_none() {
            let wanted = (file, defines);
            if !self.wanted.contains(&wanted) {
                self.wanted.push(wanted);
            }
            return Ok(Kernel(None));
        }
        Ok(Kernel(Some(self.shared.kernels.module(&self.shared.device, file, &defines)?.function(function)?)))
    }

    /// `bytes` of memory for this op alone, undefined at the beginning, a multiple of 256. May be called several times.
    pub(crate) fn workspace(&mut self, bytes: u64) -> u64 {
        let at = self.workspace_used;
        self.workspace_used = aligned(at + bytes);
        self.workspace_bytes = self.workspace_bytes.max(self.workspace_used);
        self.transient.unwrap_or(NOWHERE) + self.scratch.bytes + at
    }

    /// Appends a launch: grid in blocks, threads of a block, bytes of dynamic shared memory.
    pub(crate) fn launch(
        &mut self,
        kernel: &Kernel,
        grid: [u32; 3],
        block: u32,
        shared: u32,
        args: Vec<Arg>,
    ) -> Result<()> {
        self.push(kernel, grid, block, shared, args, (false, 1))
    }

    /// The same for a kernel that begins with `wait_for_launch_ahead()` before it touches memory: it may start while
    /// the launch ahead of it ends.
    pub(crate) fn launch_dependent(
        &mut self,
        kernel: &Kernel,
        grid: [u32; 3],
        block: u32,
        shared: u32,
        args: Vec<Arg>,
    ) -> Result<()> {
        let dependent = self.may_be_dependent();
        self.push(kernel, grid, block, shared, args, (dependent, 1))
    }

    /// Launches overlap only between kernels: behind anything else the order is a plain one.
    fn may_be_dependent(&self) -> bool {
        self.arch().0 >= 90 && matches!(self.steps.last(), Some((_, Step::Kernel(_))))
    }

    /// The same with blocks that come in clusters of `cluster` along the grid's first axis (sm_90 on).
    pub(crate) fn launch_cluster(
        &mut self,
        kernel: &Kernel,
        grid: [u32; 3],
        cluster: u32,
        block: u32,
        shared: u32,
        args: Vec<Arg>,
    ) -> Result<()> {
        let dependent = self.may_be_dependent();
        self.push(kernel, grid, block, shared, args, (dependent, cluster))
    }

    fn push(
        &mut self,
        kernel: &Kernel,
        grid: [u32; 3],
        block: u32,
        shared: u32,
        args: Vec<Arg>,
        (dependent, cluster): (bool, u32),
    ) -> Result<()> {
        let Some(function) = kernel.0.clone() else { return Ok(()) };
        if grid.contains(&0) {
            return Ok(());
        }
        function.allow_shared(shared)?;
        self.step(Step::Kernel(Launch { function, grid, block, shared, dependent, cluster, args }));
        Ok(())
    }

    fn step(&mut self, step: Step) {
        self.steps.push((self.at, step));
    }

    /// Appends clearing memory.
    pub(crate) fn zero(&mut self, address: u64, bytes: u64) {
        self.step(Step::Zero { address, bytes });
    }

    /// Appends a matrix product.
    pub(crate) fn product(&mut self, ask: Ask) -> Result<()> {
        if self.transient.is_some() {
            let product = Product::new(self.shared.cublaslt()?, ask)?;
            self.step(Step::Product(Box::new(product)));
        }
        Ok(())
    }

    /// Whether two tensors may lie in the same memory: a scratch tensor that an op behind writes may take the place of
    /// one that this op still reads. To be asked before ops are joined.
    pub(crate) fn may_overlap(&self, a: Tensor, b: Tensor) -> bool {
        match (self.info(a).place, self.info(b).place) {
            (Place::Persistent(a), Place::Persistent(b)) => a == b,
            (Place::Scratch, Place::Scratch) => self.scratch.share(a, b),
            _ => false,
        }
    }

    /// Two arguments by which a kernel reports an index of `tensor` that is not below `limit`: `u64 *status` and
    /// `u32 check` for `report_index`. The next read gives the error.
    pub(crate) fn index_check(&self, op: &'static str, tensor: Tensor, limit: usize) -> (u64, u32) {
        let tensor = self.info(tensor).name.clone();
        (self.shared.status.address, self.shared.check(op, tensor, limit))
    }

    /// The error of a launcher that cannot serve an op as it was recorded.
    pub(crate) fn unsupported(&self, reason: impl Into<String>) -> Error {
        use landmark_core::ops::Operation;
        Error::Unsupported { op: self.ahead()[0].name(), reason: reason.into() }
    }

    fn walk(&mut self) -> Result<()> {
        self.at = 0;
        while self.at < self.program.ops().len() {
            self.workspace_used = 0;
            let done = ops::launch(self)?;
            debug_assert!(done > 0, "a launcher takes at least its own op");
            self.at += done;
        }
        Ok(())
    }
}

impl Launches for Compiler<'_> {
    fn arch(&self) -> Arch {
        self.arch()
    }

    fn multiprocessors(&self) -> u32 {
        self.multiprocessors()
    }

    fn ticket(&self) -> u64 {
        self.shared.ticket.address
    }

    fn workspace(&mut self, bytes: u64) -> u64 {
        self.workspace(bytes)
    }

    fn kernel(&mut self, file: &'static str, function: &'static str, defines: Defines) -> Result<Kernel> {
        self.kernel(file, function, defines)
    }

    fn launch(
        &mut self,
        kernel: &Kernel,
        grid: [u32; 3],
        block: u32,
        shared: u32,
        args: Vec<Arg>,
    ) -> Result<()> {
        self.launch(kernel, grid, block, shared, args)
    }

    fn launch_dependent(
        &mut self,
        kernel: &Kernel,
        grid: [u32; 3],
        block: u32,
        shared: u32,
        args: Vec<Arg>,
    ) -> Result<()> {
        self.launch_dependent(kernel, grid, block, shared, args)
    }
}

/// Scratch up to this size is not shared.
const UNSHARED: u64 = 256 << 20;

/// Where the scratch tensors lie in the transient buffer.
///
/// In a small program (a step of generation) each has a place of its own: then launches that take several ops may write
/// the last op's result while other blocks still read the first op's operands. In others they share slots.
#[derive(Clone)]
struct Scratch {
    plan: Option<Plan>,
    /// Of each slot, or of each tensor where there is no plan.
    offsets: Vec<u64>,
    bytes: u64,
}

impl Scratch {
    /// Room for all scratch tensors.
    fn new(program: &Program) -> Self {
        let all = vec![true; program.tensors().len()];
        let own = Self::laid_out(program, None, &all);
        if own.bytes <= UNSHARED { own } else { Self::laid_out(program, Some(Plan::new(program)), &all) }
    }

    /// Room for some of them, which share what they shared.
    fn with_only(&self, program: &Program, touched: &[bool]) -> Self {
        Self::laid_out(program, self.plan.clone(), touched)
    }

    fn laid_out(program: &Program, plan: Option<Plan>, touched: &[bool]) -> Self {
        let wanted = |t: &Info, index: usize| {
            if touched[index] && t.place == Place::Scratch { t.bytes() as u64 } else { 0 }
        };
        let (offsets, bytes) = match &plan {
            None => lay_out(program.tensors().iter().enumerate().map(|(index, t)| wanted(t, index))),
            Some(plan) => {
                let mut slots = vec![0; plan.slots.len()];
                for (tensor, slot) in plan.assigned() {
                    slots[slot] = wanted(program.info(tensor), tensor.index()).max(slots[slot]);
                }
                lay_out(slots.into_iter())
            }
        };
        Scratch { plan, offsets, bytes }
    }

    /// Whether two scratch tensors lie in the same place.
    fn share(&self, a: Tensor, b: Tensor) -> bool {
        self.place(a) == self.place(b)
    }

    fn offset(&self, tensor: Tensor) -> u64 {
        self.place(tensor).map_or(0, |place| self.offsets[place])
    }

    fn place(&self, tensor: Tensor) -> Option<usize> {
        match &self.plan {
            Some(plan) => plan.slot(tensor),
            None => Some(tensor.index()),
        }
    }
}

/// Compiles `program` over `arena`.
pub(crate) fn compile(shared: &Shared, program: &Program, arena: &CudaArena) -> Result<CudaPlan> {
    let scratch = Scratch::new(program);
    let mut compiler = Compiler {
        shared,
        program,
        arena,
        scratch: scratch.clone(),
        transient: None,
        touched: RefCell::new(vec![false; program.tensors().len()]),
        at: 0,
        workspace_used: 0,
        workspace_bytes: 0,
        wanted: Vec::new(),
        steps: Vec::new(),
    };
    compiler.walk()?;
    shared.kernels.load(&shared.device, &compiler.wanted)?;
    let transient = loop {
        let touched = compiler.touched.borrow().clone();
        compiler.scratch = scratch.with_only(program, &touched);
        let transient = shared.transient(compiler.scratch.bytes + compiler.workspace_bytes, &program.name)?;
        compiler.transient = Some(transient.address);
        compiler.steps.clear();
        compiler.walk()?;
        // Both walks launch the same; if they ever should not, there is room for what was found now.
        if *compiler.touched.borrow() == touched {
            break transient;
        }
    };
    use landmark_core::ops::Operation;
    Ok(CudaPlan {
        name: program.name.clone(),
        steps: compiler.steps,
        op_names: program.ops().iter().map(Operation::name).collect(),
        graph: None,
        runs: 0,
        _transient: transient,
        _arena: (arena.buffer.clone(), arena.rings.clone()),
    })
}

impl CudaPlan {
    /// Issues every step.
    fn issue(&self, shared: &Shared) -> Result<()> {
        self.steps.iter().try_for_each(|(op, step)| self.issue_step(shared, *op, step))
    }

    fn issue_step(&self, shared: &Shared, op: usize, step: &Step) -> Result<()> {
        let device = &shared.device;
        let issued = match step {
            Step::Kernel(launch) => launch.issue(device),
            Step::Zero { address, bytes } => device.zero(*address, *bytes),
            Step::Product(product) => product.issue(device),
        };
        let issued = if shared.is_cautious { issued.and_then(|()| device.synchronise()) } else { issued };
        issued.map_err(|error| {
            Error::Device(format!("{}, op {op} ({}): {error}", self.name, self.op_names[op]))
        })
    }

    /// Runs the program step by step, with a point in time before each op.
    pub(crate) fn profile(&self, shared: &Shared) -> Result<Vec<OpTime>> {
        let mut points: Vec<(usize, Event)> = Vec::new();
        for (op, step) in &self.steps {
            if points.last().is_none_or(|(last, _)| last != op) {
                let event = Event::timed()?;
                event.record(&shared.device)?;
                points.push((*op, event));
            }
            self.issue_step(shared, *op, step)?;
        }
        let end = Event::timed()?;
        end.record(&shared.device)?;
        shared.device.synchronise()?;
        let ends = points.iter().skip(1).map(|(_, event)| event).chain([&end]);
        let time = |((op, begin), end): (&(usize, Event), &Event)| {
            Ok(OpTime { op: *op, name: self.op_names[*op], milliseconds: end.since(begin)? })
        };
        points.iter().zip(ends).map(time).collect()
    }

    /// Times by kind of op, the longest first.
    pub(crate) fn summary(&self, times: &[OpTime]) -> String {
        let mut kinds: BTreeMap<&str, (usize, f32)> = BTreeMap::new();
        for time in times {
            let (count, sum) = kinds.entry(time.name).or_default();
            (*count, *sum) = (*count + 1, *sum + time.milliseconds);
        }
        let mut kinds: Vec<_> = kinds.into_iter().collect();
        kinds.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
        let total: f32 = times.iter().map(|t| t.milliseconds).sum();
        let mut text = format!("{}: {total:.3} ms in {} launches\n", self.name, self.steps.len());
        for (name, (count, sum)) in kinds {
            let each = 1e3 * sum / count as f32;
            text +=
                &format!("{sum:10.3} ms  {:5.1} %  {count:4} x {each:8.1} us  {name}\n", 100.0 * sum / total);
        }
        text
    }

    /// Runs the program: step by step the first time, when kernels are loaded; as a graph from then on.
    pub(crate) fn run(&mut self, shared: &Shared) -> Result<()> {
        if self.runs > 0 && !shared.is_cautious {
            if self.graph.is_none() {
                self.graph = Some(Graph::capture(&shared.device, || self.issue(shared))?);
            }
            if let Some(graph) = &mut self.graph {
                graph.launch()?;
            }
        } else {
            self.issue(shared)?;
        }
        self.runs += 1;
        Ok(())
    }
}
