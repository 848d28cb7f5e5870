//! Pages of the landmark memory within a budget: the most recently used ones here, the rest in a [`PageStore`].
//!
//! On this backend the device is the host, so its two budgets are one. A page in use is taken out of the cache, so
//! nothing has to be pinned, and what is put back is the most recent.

use super::real::Real;
use crate::error::{Error, Result};
use crate::paging::{PageId, PageStore, Paging};
use lru::LruCache;
use std::sync::Arc;

/// What a page in the cache takes besides its elements: its entry in two tables, and the allocator's share.
const OVERHEAD: u64 = 128;

/// One page.
#[derive(Debug)]
pub(super) struct Page<T> {
    pub(super) data: Box<[T]>,
    /// Whether it differs from what the store holds.
    pub(super) dirty: bool,
}

/// Pages of all paged tensors of an arena.
#[derive(Debug)]
pub(super) struct Pager<T> {
    /// Bytes allowed; `None`: nothing is paged.
    budget: Option<u64>,
    used: u64,
    resident: LruCache<PageId, Page<T>>,
    store: Option<Arc<dyn PageStore>>,
}

impl<T: Real> Pager<T> {
    pub(super) fn new(paging: Paging) -> Self {
        let budget = match (paging.device, paging.host) {
            (Some(device), Some(host)) => Some(device.saturating_add(host)),
            // Without a store there is nowhere else to go.
            (Some(limit), None) | (None, Some(limit)) if paging.store.is_some() => Some(limit),
            (None, None) if paging.store.is_some() => Some(u64::MAX),
            _ => None,
        };
        Pager { budget, used: 0, resident: LruCache::unbounded(), store: paging.store }
    }

    /// Whether tensors of `bytes` in all are kept in pages: not if there is room for all of them.
    pub(super) fn is_needed(&self, bytes: u64) -> bool {
        self.store.as_ref().is_some() || self.budget.is_some_and(|budget| bytes > budget)
    }

    /// Pages of `numel` elements that an op may hold at a time: half of the budget, the other half being for pages
    /// that it wants again; at least one.
    pub(super) fn at_once(&self, numel: usize) -> usize {
        let budget = self.budget.unwrap_or(u64::MAX) / 2;
        usize::try_from(budget / cost::<T>(numel)).unwrap_or(usize::MAX).max(1)
    }

    /// A page of `numel` elements, taken out of the cache: zeros if it was never written.
    pub(super) fn take(&mut self, id: PageId, numel: usize) -> Result<Page<T>> {
        if let Some(page) = self.resident.pop(&id) {
            self.used -= cost::<T>(numel);
            return Ok(page);
        }
        let mut data = vec![T::ZERO; numel].into_boxed_slice();
        if let Some(store) = &self.store {
            store.read(id, bytemuck::cast_slice_mut(&mut data)).map_err(Error::Pages)?;
        }
        Ok(Page { data, dirty: false })
    }

    /// A new page, which replaces whatever there was.
    pub(super) fn fresh(&mut self, id: PageId, numel: usize) -> Page<T> {
        if self.resident.pop(&id).is_some() {
            self.used -= cost::<T>(numel);
        }
        Page { data: vec![T::ZERO; numel].into_boxed_slice(), dirty: true }
    }

    /// Puts a page into the cache; the least recently used ones make room.
    pub(super) fn put(&mut self, id: PageId, page: Page<T>) -> Result<()> {
        self.used += cost::<T>(page.data.len());
        self.resident.push(id, page);
        let budget = self.budget.unwrap_or(u64::MAX);
        while self.used > budget && self.resident.len() > 1 {
            let Some((id, page)) = self.resident.pop_lru() else { break };
            self.used -= cost::<T>(page.data.len());
            if page.dirty {
                let store = self.store.as_ref().ok_or(Error::Budget { budget })?;
                store.write(id, bytemuck::cast_slice(&page.data)).map_err(Error::Pages)?;
            }
        }
        Ok(())
    }
}

fn cost<T>(numel: usize) -> u64 {
    (numel * size_of::<T>()) as u64 + OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::sync::Mutex;

    #[derive(Debug, Default)]
    struct Kept(Mutex<HashMap<PageId, Vec<u8>>>);

    impl PageStore for Kept {
        fn read(&self, id: PageId, into: &mut [u8]) -> Result<(), String> {
            if let Some(bytes) = self.0.lock().unwrap().get(&id) {
                into.copy_from_slice(bytes);
            }
            Ok(())
        }
        fn write(&self, id: PageId, from: &[u8]) -> Result<(), String> {
            if id.page == 13 {
                return Err("no room for page 13".into());
            }
            self.0.lock().unwrap().insert(id, from.to_vec());
            Ok(())
        }
    }

    fn id(page: usize) -> PageId {
        PageId { tensor: 0, page }
    }

    fn pager(pages: u64, store: Option<Arc<Kept>>) -> Pager<f32> {
        let budget = pages * cost::<f32>(4);
        let store = store.map(|kept| kept as Arc<dyn PageStore>);
        Pager::new(Paging { device: Some(budget), host: Some(0), store })
    }

    fn fill(pager: &mut Pager<f32>, pages: impl Iterator<Item = usize>) -> Result<()> {
        pages.into_iter().try_for_each(|page| {
            let mut new = pager.fresh(id(page), 4);
            new.data.fill(page as f32);
            pager.put(id(page), new)
        })
    }

    #[test]
    fn old_pages_go_to_the_store_and_come_back() {
        let kept = Arc::new(Kept::default());
        let mut pager = pager(3, Some(kept.clone()));
        fill(&mut pager, 0..10).unwrap();
        assert_eq!((pager.used, pager.resident.len()), (3 * cost::<f32>(4), 3));
        assert_eq!(kept.0.lock().unwrap().len(), 7);
        for page in (0..10).rev() {
            let found = pager.take(id(page), 4).unwrap();
            assert_eq!(*found.data, [page as f32; 4]);
            pager.put(id(page), found).unwrap();
            assert!(pager.used <= 3 * cost::<f32>(4));
        }
        assert_eq!(*pager.take(id(99), 4).unwrap().data, [0.0; 4], "never written");
    }

    #[test]
    fn pages_that_did_not_change_are_not_written_again() {
        let kept = Arc::new(Kept::default());
        let mut pager = pager(1, Some(kept.clone()));
        fill(&mut pager, 0..2).unwrap();
        let page = pager.take(id(0), 4).unwrap();
        kept.0.lock().unwrap().clear();
        pager.put(id(0), page).unwrap();
        fill(&mut pager, 5..7).unwrap();
        assert!(!kept.0.lock().unwrap().contains_key(&id(0)));
        assert!(kept.0.lock().unwrap().contains_key(&id(5)));
    }

    #[test]
    fn failures_are_told() {
        let mut alone = pager(2, None);
        assert!(matches!(fill(&mut alone, 0..3), Err(Error::Budget { .. })));
        let mut full = pager(1, Some(Arc::default()));
        assert!(matches!(fill(&mut full, 13..15), Err(Error::Pages(why)) if why.contains("13")));
    }
}
