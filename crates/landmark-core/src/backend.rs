//! What every backend does.
//!
//! The trait is as small as the three implementations it was drawn for allow: a CPU that computes at once, a
//! CUDA stream that replays a graph, and a wgpu queue that answers later (on the web, only through a
//! future). So writing and running return at once, and [`Backend::read`] is the only wait.

use crate::error::Result;
use crate::paging::Paging;
use crate::program::{Layout, Program};
use crate::tensor::Tensor;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;

/// Some elements of a tensor.
pub type Elements = (Tensor, Range<usize>);

/// Bytes on their way from a device. They may be given up.
pub type Answer = Pin<Box<dyn Future<Output = Result<Vec<u8>>>>>;

/// Something that runs programs.
pub trait Backend: Sized {
    /// Storage of the persistent tensors of a [`Layout`].
    type Arena;
    /// A compiled program, with its scratch storage.
    type Plan;

    /// Storage for every tensor of `layout`, zeroed.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    fn allocate(&self, layout: &Layout) -> Result<Self::Arena> {
        self.allocate_within(layout, Paging::default())
    }

    /// The same, the paged tensors kept where `paging` allows.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    fn allocate_within(&self, layout: &Layout, paging: Paging) -> Result<Self::Arena>;

    /// Plans the scratch storage of a program and makes it ready to run over `arena`.
    ///
    /// # Errors
    /// Out of memory, or [`Error::Unsupported`](crate::Error::Unsupported) when this backend lacks an op or
    /// one of its variants.
    fn compile(&self, program: &Program, arena: &Self::Arena) -> Result<Self::Plan>;

    /// Writes the first `bytes.len()` bytes of a persistent tensor, in its element type.
    ///
    /// # Errors
    /// [`Error::Size`](crate::Error::Size) when there are more bytes than the tensor holds, or a broken
    /// element at the end.
    fn write(&self, arena: &mut Self::Arena, tensor: Tensor, bytes: &[u8]) -> Result<()> {
        self.write_at(arena, tensor, 0, bytes)
    }

    /// Writes elements from number `first` on. In a paged tensor, `first` and the length are whole pages.
    ///
    /// # Errors
    /// As [`write`](Self::write), and failures of a page store.
    fn write_at(&self, arena: &mut Self::Arena, tensor: Tensor, first: usize, bytes: &[u8]) -> Result<()>;

    /// Runs a compiled program once.
    ///
    /// # Errors
    /// [`Error::Index`](crate::Error::Index) for a token outside the vocabulary; failures of the device.
    fn run(&self, plan: &mut Self::Plan, arena: &mut Self::Arena) -> Result<()>;

    /// The bytes of a persistent tensor, in its element type, after everything that was run.
    fn read(&self, arena: &Self::Arena, tensor: Tensor) -> impl Future<Output = Result<Vec<u8>>>;

    /// The bytes of some of its elements. In a paged tensor, these are whole pages.
    fn read_at(
        &self,
        arena: &Self::Arena,
        tensor: Tensor,
        elements: Range<usize>,
    ) -> impl Future<Output = Result<Vec<u8>>>;

    /// The same into bytes that are there already, for what is read after every token.
    ///
    /// # Panics
    /// When they are not as many.
    fn read_into(
        &self,
        arena: &Self::Arena,
        tensor: Tensor,
        elements: Range<usize>,
        to: &mut [u8],
    ) -> impl Future<Output = Result<()>> {
        async move {
            to.copy_from_slice(&self.read_at(arena, tensor, elements).await?);
            Ok(())
        }
    }

    /// Asks for some elements of one or several tensors, as what was run so far leaves them, whatever is run before the answer
    /// is waited for: their bytes, one behind the other. It is one trip to the device, however many they are. What kernels
    /// found wrong may not be told by that, only by what is read after everything.
    ///
    /// `None` where there is nothing to be ahead of, since [`run`](Self::run) has computed all when it returns, or where a
    /// tensor cannot be read so.
    ///
    /// # Errors
    /// Failures of the device.
    fn begin_read(&self, _arena: &Self::Arena, _wanted: &[Elements]) -> Result<Option<Answer>> {
        Ok(None)
    }
}
