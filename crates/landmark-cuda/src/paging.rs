//! The tiers of a landmark memory: rings in pinned host memory, pages that were used lately on the device.
//!
//! While the rings fit the budget for the device they are tensors like any other. Else they lie in pinned host memory, which
//! kernels read and write through its mapped address: every kernel works as it is, and results are the same in every bit.
//! What the device may hold is then a cache of pages for the kernel that generates token by token (`retrieval_decode.cu`),
//! which looks pages up, chooses victims and fetches, all on the device. Appending writes through to the rings and
//! forgets the pages it writes; so the cache never holds what the rings do not.
//!
//! Each query head of each row has its own part of the cache, so that no two clusters meet there. Its pages go in
//! the order in which they came, but for those that the step itself uses. Rejected: the least recently used page, which
//! needs a search for every victim; and one cache for all heads, which needs atomics and an order among them.
//!
//! There is no tier below the host's memory: a page store is read once, when the rings are made.

use crate::arena::{aligned, lay_out};
use crate::driver::{Buffer, Device, Pinned};
use landmark_core::{Error, Layout, PageId, PageStore, Paging, Result, Tensor};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Addresses on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) address: u64,
    pub(crate) bytes: u64,
}

/// Rings in host memory.
#[derive(Debug)]
pub(crate) struct Rings {
    memory: Pinned,
    /// Where each tensor of the layout lies in it, and its part of the cache, if it is paged.
    places: Vec<Option<(u64, Range<u64>)>>,
    cache: Option<Buffer>,
    /// The rings were written by the host since the last run.
    is_stale: AtomicBool,
}

/// Bytes of all paged tensors.
fn total(layout: &Layout) -> u64 {
    layout.paged().map(|t| aligned(t.bytes() as u64)).sum()
}

/// Whether the rings have to lie in host memory.
///
/// # Errors
/// Where they fit neither tier.
pub(crate) fn in_host(layout: &Layout, paging: &Paging) -> Result<bool> {
    let bytes = total(layout);
    let Some(device) = paging.device.filter(|&device| device < bytes) else { return Ok(false) };
    // A budget of nothing beside a store only says that nobody asked for more.
    let host = paging.host.filter(|&host| paging.store.is_none() || host > 0);
    match host {
        Some(host) if host.saturating_add(device) < bytes => Err(if paging.store.is_some() {
            let reason = format!(
                "the CUDA backend keeps a landmark memory on the device or in host memory, not in a file: \
                 its {bytes} bytes need a larger --host-memory, or --device cpu"
            );
            Error::Unsupported { op: "a landmark memory in a file", reason }
        } else {
            Error::Budget { budget: host.saturating_add(device) }
        }),
        _ => Ok(true),
    }
}

/// Passes every page of `store` to `take`: number of the paged tensor, first byte in it, and bytes.
pub(crate) fn read_store(
    layout: &Layout,
    store: &dyn PageStore,
    mut take: impl FnMut(usize, u64, &[u8]) -> Result<()>,
) -> Result<()> {
    for (tensor, info) in layout.paged().enumerate() {
        let bytes = info.page.unwrap_or(1) * info.dtype.size();
        let mut page = vec![0; bytes];
        for number in 0..info.bytes() / bytes {
            page.fill(0);
            store.read(PageId { tensor, page: number }, &mut page).map_err(Error::Pages)?;
            take(tensor, (number * bytes) as u64, &page)?;
        }
    }
    Ok(())
}

impl Rings {
    pub(crate) fn new(device: &Arc<Device>, layout: &Layout, paging: &Paging) -> Result<Rings> {
        let (offsets, bytes) = lay_out(layout.paged().map(|t| t.bytes() as u64));
        let what = "a landmark memory; a smaller one (--cache-blocks) needs less";
        let memory = Pinned::new(device, bytes as usize, what)?;
        let budget = paging.device.unwrap_or(0);
        // Every paged tensor has the same share of the cache for each of its bytes.
        let share =
            |t: u64| (u128::from(budget) * u128::from(t) / u128::from(bytes.max(1))) as u64 / 256 * 256;
        let mut shares = Vec::new();
        let mut end = 0;
        for info in layout.paged() {
            let next = end + share(info.bytes() as u64);
            shares.push(end..next);
            end = next;
        }
        let cache = if end > 0 {
            let buffer = Buffer::new(device, end, "blocks of a landmark memory; --device-memory gives less")?;
            device.zero(buffer.address, end)?;
            Some(buffer)
        } else {
            None
        };
        let mut paged = offsets.into_iter().zip(shares);
        let place = |info: &landmark_core::program::Info| info.page.and_then(|_| paged.next());
        let places: Vec<_> = layout.tensors().iter().map(place).collect();
        let rings = Rings { memory, places, cache, is_stale: AtomicBool::new(false) };
        if let Some(store) = &paging.store {
            let firsts: Vec<u64> = rings.places.iter().flatten().map(|(at, _)| *at).collect();
            read_store(layout, store.as_ref(), |tensor, first, page| {
                rings.memory.write((firsts[tensor] + first) as usize, page);
                Ok(())
            })?;
        }
        Ok(rings)
    }

    /// Where a tensor lies, if it is here.
    pub(crate) fn address(&self, tensor: Tensor) -> Option<u64> {
        self.places[tensor.index()].as_ref().map(|(at, _)| self.memory.address + at)
    }

    /// A paged tensor's part of the cache.
    pub(crate) fn cache(&self, tensor: Tensor) -> Option<Span> {
        let ((_, range), cache) = (self.places[tensor.index()].as_ref()?, self.cache.as_ref()?);
        Some(Span { address: cache.address + range.start, bytes: range.end - range.start })
    }

    fn offset(&self, address: u64) -> usize {
        (address - self.memory.address) as usize
    }

    /// Writes to the rings. The caller has waited for the device.
    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        self.memory.write(self.offset(address), bytes);
        self.is_stale.store(true, Ordering::Relaxed);
    }

    /// Reads from the rings. The caller has waited for the device.
    pub(crate) fn read(&self, address: u64, to: &mut [u8]) {
        to.copy_from_slice(&self.memory.slice()[self.offset(address)..][..to.len()]);
    }

    /// Before a run: forgets every page, if the host wrote any.
    pub(crate) fn refresh(&self, device: &Device) -> Result<()> {
        match &self.cache {
            Some(cache) if self.is_stale.swap(false, Ordering::Relaxed) => {
                device.zero(cache.address, cache.bytes)
            }
            _ => Ok(()),
        }
    }
}

/// How a memory's part of the cache is cut up: for each query head of each row `ways` pages of keys and of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ways {
    /// `(B · H, ways)` u32: 1 + number of the block, counted from the beginning of the text; 0: none.
    pub(crate) tags: u64,
    /// `(B · H)` u32: the way that is filled next.
    pub(crate) hands: u64,
    /// Pages of keys.
    pub(crate) keys: u64,
    /// Pages of values.
    pub(crate) values: u64,
    pub(crate) ways: u32,
}

/// More are not looked through by one pass of a block's threads.
const MOST_WAYS: u64 = 1024;

impl Ways {
    /// Cuts the parts of keys and values for `heads` query heads of all rows; `None` if there is no room for `fewest` pages
    /// each.
    pub(crate) fn cut(keys: Span, values: Span, heads: u64, page: u64, fewest: u64) -> Option<Ways> {
        // Tags and hands lie in front of the pages of keys.
        let heads = heads.max(1);
        let fixed = aligned(heads * 4) + 512;
        let of_keys = keys.bytes.saturating_sub(fixed) / heads / (page + 4);
        let ways = of_keys.min(values.bytes / heads / page).min(MOST_WAYS);
        if ways < fewest {
            return None;
        }
        let hands = keys.address + aligned(heads * ways * 4);
        let pages = aligned(hands + heads * 4);
        Some(Ways { tags: keys.address, hands, keys: pages, values: values.address, ways: ways as u32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use landmark_core::DType;

    fn layout() -> Layout {
        let mut layout = Layout::new();
        layout.add("weights", DType::F32, [1000]);
        layout.add_paged("keys", DType::Bf16, [4, 64], 64);
        layout.add_paged("values", DType::Bf16, [4, 64], 64);
        layout
    }

    #[test]
    fn rings_move_to_the_host_when_the_device_may_not_hold_them() {
        let at = |device, host| in_host(&layout(), &Paging { device, host, store: None });
        assert!(!at(None, None).unwrap());
        assert!(!at(Some(1024), Some(0)).unwrap());
        assert!(at(Some(1023), None).unwrap());
        assert!(at(Some(24), Some(1000)).unwrap());
        assert!(matches!(at(Some(23), Some(1000)), Err(Error::Budget { budget: 1023 })));
    }

    #[test]
    fn ways_do_not_overlap_and_stay_in_their_parts() {
        let span = |address, bytes| Span { address, bytes };
        for (heads, page, bytes) in [(1, 128, 4096), (6, 384, 100_000), (64, 16384, 1 << 26)] {
            let (keys, values) = (span(1 << 20, bytes), span(1 << 30, bytes));
            let ways = Ways::cut(keys, values, heads, page, 1).unwrap();
            let n = u64::from(ways.ways);
            assert!(n > 0 && ways.tags + heads * n * 4 <= ways.hands);
            assert!(ways.hands + heads * 4 <= ways.keys && ways.keys.is_multiple_of(256));
            assert!(ways.keys + heads * n * page <= keys.address + keys.bytes);
            assert!(ways.values + heads * n * page <= values.address + values.bytes);
        }
        assert_eq!(Ways::cut(span(0, 4096), span(0, 4096), 64, 128, 1), None);
    }
}
