//! Activation checkpointing: the backward pass block by block, each block computed again just before.
//!
//! What a backward pass needs of the forward pass is the largest part of the memory of training: a dozen tensors of
//! every block. Of these only the residual stream in front of each block is kept here. Going backwards, a block is
//! recorded a second time from its stream, with the numbers of its random bits wound back so that the same masks are
//! drawn, and the reverse walk goes over that second recording. The planner sees that nobody reads the results of
//! the first one later, and gives their storage away as soon as the forward pass is through with them.
//!
//! The price is a second forward pass of the blocks: a third more work. Gradients are the same to the last bit, since
//! the same ops add the same numbers in the same order.

use super::Step;
use landmark_core::Tensor;

impl Step<'_> {
    /// Records the backward pass; `dfinal` is the gradient of the last hidden states.
    ///
    /// # Panics
    /// When the pass has a cache: recorded again, its blocks would move the cache on a second time.
    pub(super) fn backward_by_block(&mut self, parameters: &[(Tensor, Tensor)], dfinal: Tensor) {
        assert!(self.pass.context == super::Context::None, "blocks with a cache cannot be computed again");
        let mut boundaries = std::mem::take(&mut self.boundaries);
        let last = boundaries.pop().expect("a boundary behind the last block");
        let from = self.recorded();
        let y = self.norm_at(boundaries.len(), last.stream);
        let y = self.without_extra_rows(y);
        let mut gradient = self.backward_since(from, parameters, &[(y, dfinal)], Some(last.stream));
        // Before the first block there is only the embedding, which may be frozen.
        let table_is_trained = self.is_trained(parameters);
        for (i, boundary) in boundaries.iter().enumerate().rev() {
            let Some(dstream) = gradient else { return };
            let from = self.recorded();
            self.salt = boundary.salt;
            let y = self.norm_at(i, boundary.stream);
            let (stream, delta) = self.block(i, boundary.stream, y);
            // The block's result is their sum, so both have its gradient.
            let seeds = [(stream, dstream), (delta, dstream)];
            let input = (i > 0 || table_is_trained).then_some(boundary.stream);
            gradient = self.backward_since(from, parameters, &seeds, input);
        }
        if let Some(dstream) = gradient {
            // The embedding was recorded once; the walk goes over that.
            let first = boundaries[0];
            self.r.backward_of(0..first.ops, parameters, &[(first.stream, dstream)], &[]);
        }
    }

    fn recorded(&self) -> usize {
        self.r.program().ops().len()
    }

    fn norm_at(&mut self, i: usize, stream: Tensor) -> Tensor {
        let (norm, name) = self.norm_before(i);
        self.norm(stream, norm, name)
    }

    fn backward_since(
        &mut self,
        from: usize,
        parameters: &[(Tensor, Tensor)],
        seeds: &[(Tensor, Tensor)],
        input: Option<Tensor>,
    ) -> Option<Tensor> {
        let inputs: Vec<Tensor> = input.into_iter().collect();
        let gradients = self.r.backward_of(from..self.recorded(), parameters, seeds, &inputs);
        gradients.first().copied().flatten()
    }

    fn is_trained(&self, parameters: &[(Tensor, Tensor)]) -> bool {
        let weights = &self.model.weights;
        parameters.iter().any(|p| p.0 == weights.table || Some(p.0) == weights.miss)
    }
}
