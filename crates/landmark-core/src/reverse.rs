//! The reverse walk: records the backward pass of what has been recorded so far.
//!
//! There is no tape at run time and no second, hand-written model. Walking the forward ops from last to
//! first, each op asks for the gradient of its results ([`Reverse::gradient`]), asks where the gradients of
//! its operands go ([`Reverse::contribute`]: `=` for the first contribution, `+=` for later ones, nothing
//! where no parameter depends on it) and pushes the ops that compute them. The result is an ordinary part of
//! the same program, planned, counted and compared like the rest.
//!
//! A residual addition gives the *same* gradient to both operands. They share one tensor until somebody
//! wants to add to it while another owner still has to read it; then it is copied. An operand of another element
//! type (a layer's result in a half type, added to a stream in f32) gets a copy in its own type at once.
//!
//! The walk need not begin at the last op and end at the first: [`Recorder::backward_of`] walks a range of ops
//! and hands back the gradients of what the range read from outside. Activation checkpointing is made of that:
//! a segment's forward ops are recorded a second time, and the walk goes over the second recording, so that the
//! results of the first need not be kept. Rejected: a pass that clones and renames recorded ops, which would need
//! every op to be able to rename its operands; recording again says the same in a line.

use crate::ops::{Access, CopyRows, Fill, Op, Operation};
use crate::program::{Place, Recorder};
use crate::tensor::{Cols, DType, Out, Shape, Tensor};
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// State of the walk; what ops see of it while they record their gradients.
pub struct Reverse<'a> {
    recorder: &'a mut Recorder,
    /// Gradients of parameters: persistent, always added to.
    parameters: HashMap<Tensor, Tensor>,
    /// Tensors on which the loss can depend through a parameter.
    wanted: HashSet<Tensor>,
    /// Gradients recorded so far.
    gradients: HashMap<Tensor, Tensor>,
    /// Tensors whose producer has been walked past: nobody reads their gradient any more.
    consumed: HashSet<Tensor>,
}

impl Recorder {
    /// Records the backward pass of every op so far.
    ///
    /// `parameters` lists each trained tensor with the persistent tensor that its gradient is *added* to.
    /// The walk starts at the ops that make a gradient of their own, such as
    /// [`LinearCrossEntropy`](crate::ops::LinearCrossEntropy): `seeds` names those tensors with their
    /// gradients.
    pub fn backward(&mut self, parameters: &[(Tensor, Tensor)], seeds: &[(Tensor, Tensor)]) {
        self.backward_of(0..self.program().ops().len(), parameters, seeds, &[]);
    }

    /// Records the backward pass of the ops in `range` alone; returns the gradient of each of `inputs`, tensors
    /// that those ops read and that others made, where anything in the range contributed to it.
    ///
    /// Several seeds may share one gradient (the terms of a sum that lies outside the range).
    ///
    /// # Panics
    /// When an input is made inside the range.
    pub fn backward_of(
        &mut self,
        range: Range<usize>,
        parameters: &[(Tensor, Tensor)],
        seeds: &[(Tensor, Tensor)],
        inputs: &[Tensor],
    ) -> Vec<Option<Tensor>> {
        let forward: Vec<Op> = self.program().ops()[range].to_vec();
        let parameters: HashMap<_, _> = parameters.iter().copied().collect();
        let wanted = wanted(&forward, parameters.keys().chain(inputs).copied().collect());
        let (gradients, consumed) = (HashMap::new(), HashSet::new());
        let mut reverse = Reverse { recorder: self, parameters, wanted, gradients, consumed };
        for &(tensor, gradient) in seeds {
            reverse.give(tensor, gradient);
        }
        for op in forward.iter().rev() {
            op.backward(&mut reverse);
            for operand in op.operand_list() {
                if operand.access == Access::Write {
                    assert!(!inputs.contains(&operand.tensor), "an input is made inside the range");
                    reverse.consumed.insert(operand.tensor);
                }
            }
        }
        inputs.iter().map(|&input| reverse.gradient(input)).collect()
    }
}

/// Every tensor that an op computed from those that are `wanted` to begin with, directly or not.
fn wanted(ops: &[Op], mut wanted: HashSet<Tensor>) -> HashSet<Tensor> {
    for op in ops {
        let operands = op.operand_list();
        if operands.iter().any(|o| o.access != Access::Write && wanted.contains(&o.tensor)) {
            wanted.extend(operands.iter().filter(|o| o.access != Access::Read).map(|o| o.tensor));
        }
    }
    wanted
}

impl Reverse<'_> {
    /// Appends an op of the backward pass.
    pub fn push(&mut self, op: impl Into<Op>) {
        self.recorder.push(op);
    }

    /// Shape of a tensor.
    pub fn shape(&self, tensor: Tensor) -> &Shape {
        self.recorder.shape(tensor)
    }

    /// The gradient of an op's result, if anything contributed to it.
    pub fn gradient(&self, tensor: Tensor) -> Option<Tensor> {
        self.gradients.get(&tensor).copied()
    }

    /// Where a contribution to the gradient of all of `tensor` goes; `None` when nobody wants it.
    pub fn contribute(&mut self, tensor: Tensor) -> Option<Out> {
        if let Some(&gradient) = self.parameters.get(&tensor) {
            return Some(Out::add(gradient));
        }
        // What lies in the arena and is no parameter came from outside (a cache of earlier keys).
        let persistent = matches!(self.recorder.program().info(tensor).place, Place::Persistent(_));
        if persistent || !self.wanted.contains(&tensor) {
            return None;
        }
        match self.gradient(tensor) {
            Some(_) => {
                self.own(tensor);
                Some(Out::add(self.gradients[&tensor]))
            }
            None => Some(Out::set(self.new_gradient(tensor))),
        }
    }

    /// Where a contribution to the gradient of *some rows* of `tensor` goes: always `+=`, over zeros at first.
    pub fn contribute_part(&mut self, tensor: Tensor) -> Option<Out> {
        let out = self.contribute(tensor)?;
        if !out.add {
            self.push(Fill { out: out.tensor, value: 0.0 });
        }
        Some(Out::add(out.tensor))
    }

    /// Where the gradients of three groups of columns go, each `=`. Groups may be parts of one tensor.
    ///
    /// # Panics
    /// When one of them has a gradient already, or is a parameter: attention is the only reader of its
    /// projections.
    pub fn contribute_cols(&mut self, cols: [Cols; 3]) -> [Cols; 3] {
        let mut made: Vec<Tensor> = Vec::new();
        cols.map(|part| {
            let tensor = part.tensor;
            if !made.contains(&tensor) {
                assert!(self.gradient(tensor).is_none(), "columns have a gradient already");
                assert!(!self.parameters.contains_key(&tensor), "columns of a parameter have no gradient");
                let gradient = self.new_gradient(tensor);
                let covered: usize = cols.iter().filter(|c| c.tensor == tensor).map(|c| c.width).sum();
                if covered != self.shape(tensor).cols() {
                    self.push(Fill { out: gradient, value: 0.0 });
                }
                made.push(tensor);
            }
            Cols { tensor: self.gradients[&tensor], ..part }
        })
    }

    /// `sum` was computed as a plain sum of `terms`: they get its gradient as it is.
    pub fn share(&mut self, sum: Tensor, terms: &[Tensor]) {
        let Some(gradient) = self.gradient(sum) else { return };
        self.consumed.insert(sum);
        for &term in terms {
            if !self.wanted.contains(&term) {
                continue;
            }
            if let Some(&parameter) = self.parameters.get(&term) {
                self.copy(gradient, Out::add(parameter));
                continue;
            }
            if self.gradient(term).is_some() {
                self.own(term);
                self.copy(gradient, Out::add(self.gradients[&term]));
            } else {
                self.give(term, gradient);
            }
        }
    }

    /// Makes `gradient` the gradient of `tensor`, in the tensor's own element type.
    fn give(&mut self, tensor: Tensor, gradient: Tensor) {
        if self.dtype(tensor) == self.dtype(gradient) {
            self.gradients.insert(tensor, gradient);
        } else {
            let copy = self.new_gradient(tensor);
            self.copy(gradient, Out::set(copy));
        }
    }

    /// Makes sure that adding to the gradient of `tensor` changes nobody else's.
    fn own(&mut self, tensor: Tensor) {
        let gradient = self.gradients[&tensor];
        let others = self
            .gradients
            .iter()
            .any(|(&owner, &g)| g == gradient && owner != tensor && !self.consumed.contains(&owner));
        if others {
            let copy = self.new_gradient(tensor);
            self.copy(gradient, Out::set(copy));
        }
    }

    fn copy(&mut self, from: Tensor, to: Out) {
        let shape = self.shape(from).clone();
        let (rows, width) = (shape.dims()[1], shape.cols());
        let (from, add) = (Cols::all(from, width), to.add);
        self.push(CopyRows { from, from_row: 0, to: Cols::all(to.tensor, width), add, to_row: 0, rows });
    }

    fn dtype(&self, tensor: Tensor) -> DType {
        self.recorder.program().info(tensor).dtype
    }

    fn new_gradient(&mut self, tensor: Tensor) -> Tensor {
        let info = self.recorder.program().info(tensor).clone();
        let gradient = self.recorder.scratch(format!("d.{}", info.name), info.dtype, info.shape);
        self.gradients.insert(tensor, gradient);
        gradient
    }
}
