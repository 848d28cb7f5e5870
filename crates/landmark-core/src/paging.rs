//! Tensors that need not be whole in the device's memory.
//!
//! The keys and values of a landmark memory grow with the text, and a token reads a few blocks of them. So they are
//! *paged* ([`Layout::add_paged`](crate::Layout::add_paged)): a page is one block of one key head, and a backend keeps
//! as many pages as it is allowed to in the device's memory, more of them in the host's, and the rest in a
//! [`PageStore`], in practice a file. Where a page lies changes no result, not by a bit: pages move as they are.
//!
//! The tiers belong to the backend, and not to the model around it, because the choice of blocks is made on the
//! device: a backend with kernels can fetch what it chose without asking the host. Rejected: mapping a file into
//! memory and leaving the rest to the operating system, which knows no budget.

use std::fmt::Debug;
use std::sync::Arc;

/// One page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageId {
    /// Which tensor, counted among the paged tensors of the layout.
    pub tensor: usize,
    /// Which page of it.
    pub page: usize,
}

/// Where pages go that fit no memory. A backend may read from several threads at once.
pub trait PageStore: Debug + Send + Sync {
    /// Fills `into` with a page as it was last written; with zeros where it never was.
    ///
    /// # Errors
    /// In words for the user: which file, what is wrong with it, what to do.
    fn read(&self, id: PageId, into: &mut [u8]) -> Result<(), String>;

    /// Keeps a page. All pages of a tensor have one length, in the backend's own element type.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn write(&self, id: PageId, from: &[u8]) -> Result<(), String>;
}

/// How much of the paged tensors may be where. By default everything is on the device.
#[derive(Clone, Debug, Default)]
pub struct Paging {
    /// Bytes of pages in the device's memory; `None`: no limit.
    pub device: Option<u64>,
    /// Bytes of pages in the host's memory, for those that the device has no room for; `None`: no limit. Where the
    /// device is the host (the CPU backend) the two budgets are one.
    pub host: Option<u64>,
    /// Where the rest goes.
    pub store: Option<Arc<dyn PageStore>>,
}
