//! Layouts, programs, and the recorder that makes them.
//!
//! A [`Layout`] lists the *persistent* tensors: weights, optimiser state, the memory, the inputs of a step.
//! A [`Program`] is a list of ops over those and over *scratch* tensors of its own, whose storage the
//! planner shares out. A *view* names the first elements of a persistent tensor with another shape, so that
//! one input buffer serves batches and chunks of every size.

use crate::ops::{Access, Op, Operation};
use crate::tensor::{DType, Shape, Tensor};
use std::fmt;

/// Where the elements of a tensor lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the arena: the tensor itself, or (for a view) the persistent tensor that it looks at.
    Persistent(Tensor),
    /// In storage that the planner gives to this program.
    Scratch,
}

/// What is known of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Info {
    /// Name, as shown in messages and printed programs.
    pub name: String,
    /// Extents.
    pub shape: Shape,
    /// Element type.
    pub dtype: DType,
    /// Where it lies.
    pub place: Place,
    /// Elements of a page, where the tensor may be kept in pages: see [`Paging`](crate::paging::Paging).
    pub page: Option<usize>,
}

impl Info {
    /// Bytes that the elements take.
    pub fn bytes(&self) -> usize {
        self.shape.numel() * self.dtype.size()
    }
}

/// The persistent tensors that a group of programs shares.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    tensors: Vec<Info>,
}

impl Layout {
    /// No tensors yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a persistent tensor.
    pub fn add(&mut self, name: impl Into<String>, dtype: DType, shape: impl Into<Shape>) -> Tensor {
        let tensor = Tensor(self.tensors.len() as u32);
        let place = Place::Persistent(tensor);
        self.tensors.push(Info { name: name.into(), shape: shape.into(), dtype, place, page: None });
        tensor
    }

    /// Adds a persistent tensor that need not be whole in the device's memory: a backend may keep its pages, of
    /// `page` elements each, elsewhere.
    pub fn add_paged(
        &mut self,
        name: impl Into<String>,
        dtype: DType,
        shape: impl Into<Shape>,
        page: usize,
    ) -> Tensor {
        let tensor = self.add(name, dtype, shape);
        self.tensors[tensor.index()].page = Some(page);
        tensor
    }

    /// The tensors that may be kept in pages, in the order of their ids: the order in which
    /// [`PageId`](crate::paging::PageId) numbers them.
    pub fn paged(&self) -> impl Iterator<Item = &Info> {
        self.tensors.iter().filter(|t| t.page.is_some())
    }

    /// All of them, in the order of their ids.
    pub fn tensors(&self) -> &[Info] {
        &self.tensors
    }

    /// What is known of one.
    pub fn info(&self, tensor: Tensor) -> &Info {
        &self.tensors[tensor.index()]
    }

    /// The tensor of this name.
    pub fn find(&self, name: &str) -> Option<Tensor> {
        self.tensors.iter().position(|t| t.name == name).map(|i| Tensor(i as u32))
    }

    /// Bytes of all tensors together.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes() as u64).sum()
    }
}

/// A recorded program.
#[derive(Clone, Debug)]
pub struct Program {
    /// Name, as shown in messages.
    pub name: String,
    tensors: Vec<Info>,
    persistent: usize,
    ops: Vec<Op>,
}

impl Program {
    /// The ops in the order in which they run.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// The ops, to be changed without any check: how tests plant bugs.
    #[cfg(feature = "test-support")]
    pub(crate) fn ops_mut(&mut self) -> &mut [Op] {
        &mut self.ops
    }

    /// All tensors: those of the layout first, then views and scratch.
    pub fn tensors(&self) -> &[Info] {
        &self.tensors
    }

    /// How many of [`tensors`](Self::tensors) belong to the layout.
    pub fn persistent(&self) -> usize {
        self.persistent
    }

    /// What is known of a tensor.
    pub fn info(&self, tensor: Tensor) -> &Info {
        &self.tensors[tensor.index()]
    }

    /// Shape of a tensor.
    pub fn shape(&self, tensor: Tensor) -> &Shape {
        &self.info(tensor).shape
    }

    /// The tensor that owns the storage of `tensor`: what a view looks at, or `tensor` itself.
    pub fn owner(&self, tensor: Tensor) -> Tensor {
        match self.info(tensor).place {
            Place::Persistent(owner) => owner,
            Place::Scratch => tensor,
        }
    }

    /// The same ops cut out as programs of one op each, over a layout in which every tensor is persistent.
    /// This is how [`lockstep`](crate::lockstep) looks between two ops of any backend.
    pub(crate) fn unfused(&self) -> (Layout, Vec<Program>) {
        let mut tensors = self.tensors.clone();
        for (i, info) in tensors.iter_mut().enumerate() {
            if info.place == Place::Scratch {
                info.place = Place::Persistent(Tensor(i as u32));
            }
        }
        let layout = Layout { tensors: tensors.clone() };
        let persistent = tensors.len();
        let single = |op: &Op| Program {
            name: format!("{} / {}", self.name, op.name()),
            tensors: tensors.clone(),
            persistent,
            ops: vec![op.clone()],
        };
        (layout, self.ops.iter().map(single).collect())
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "program {} ({} ops)", self.name, self.ops.len())?;
        for (i, op) in self.ops.iter().enumerate() {
            let (mut writes, mut reads) = (Vec::new(), Vec::new());
            for operand in op.operand_list() {
                let info = self.info(operand.tensor);
                let text = format!("{} {}{:?}", info.name, info.dtype.name(), info.shape.dims());
                match operand.access {
                    Access::Read => reads.push(format!("{}: {text}", operand.field)),
                    Access::Write => writes.push(format!("{text} =")),
                    Access::Part => writes.push(format!("{text}[..] =")),
                    Access::Update => writes.push(format!("{text} +=")),
                }
            }
            writeln!(f, "{i:4} {} {}({})", writes.join(" "), op.name(), reads.join(", "))?;
        }
        Ok(())
    }
}

/// Records a [`Program`] over a [`Layout`].
///
/// # Panics
/// Every method panics when an op does not fit its tensors: that is a mistake in the recording code, not in
/// anything that a user gave.
pub struct Recorder {
    program: Program,
}

impl Recorder {
    /// Starts a program.
    pub fn new(name: impl Into<String>, layout: &Layout) -> Self {
        let tensors = layout.tensors.clone();
        let persistent = tensors.len();
        Recorder { program: Program { name: name.into(), tensors, persistent, ops: Vec::new() } }
    }

    /// A new scratch tensor.
    pub fn scratch(&mut self, name: impl Into<String>, dtype: DType, shape: impl Into<Shape>) -> Tensor {
        self.push_info(Info {
            name: name.into(),
            shape: shape.into(),
            dtype,
            place: Place::Scratch,
            page: None,
        })
    }

    /// The first elements of a persistent tensor, seen with another shape.
    pub fn view(&mut self, of: Tensor, shape: impl Into<Shape>) -> Tensor {
        let (base, shape) = (self.program.info(of).clone(), shape.into());
        if base.shape == shape {
            return of;
        }
        assert!(matches!(base.place, Place::Persistent(_)), "view: `{}` is not persistent", base.name);
        assert!(
            shape.numel() <= base.shape.numel(),
            "view: {shape:?} does not fit into `{}` {:?}",
            base.name,
            base.shape
        );
        self.push_info(Info { shape, ..base })
    }

    /// Appends an op.
    pub fn push(&mut self, op: impl Into<Op>) {
        let op = op.into();
        if let Err(reason) = op.check(&self.program) {
            panic!("{}: op {} ({}): {reason}", self.program.name, self.program.ops.len(), op.name());
        }
        self.program.ops.push(op);
    }

    /// What has been recorded so far.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Shape of a tensor.
    pub fn shape(&self, tensor: Tensor) -> &Shape {
        self.program.shape(tensor)
    }

    /// The finished program.
    pub fn finish(self) -> Program {
        self.program
    }

    fn push_info(&mut self, info: Info) -> Tensor {
        let tensor = Tensor(self.program.tensors.len() as u32);
        self.program.tensors.push(info);
        tensor
    }
}
