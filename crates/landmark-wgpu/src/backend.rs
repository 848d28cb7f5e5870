//! [`Wgpu`]: the backend itself.

use crate::adapter::AdapterInfo;
use crate::arena::WgpuArena;
use crate::device::{Shared, lock};
use crate::plan::{self, WgpuPlan};
use crate::readback::{Copy, read};
use landmark_core::{Backend, Error, Layout, Paging, Program, Result, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// Bytes that may be written before they are handed to the device: wgpu copies what is written, and keeps the copy
/// until the next submission.
const WRITTEN_AT_ONCE: u64 = 64 << 20;

/// A device that runs programs.
#[derive(Clone, Debug)]
pub struct Wgpu {
    pub(crate) shared: Arc<Shared>,
}

impl Wgpu {
    /// The adapter that the device belongs to.
    pub fn info(&self) -> &AdapterInfo {
        &self.shared.info
    }

    /// Loses the device, as a driver's reset would: for seeing what then happens.
    pub fn lose(&self) {
        self.shared.device.destroy();
    }

    /// Sources of all shaders that were compiled, as the device got them: for tests that look inside.
    pub fn shaders(&self) -> Vec<String> {
        self.shared.sources()
    }

    async fn read_bytes(&self, arena: &WgpuArena, tensor: Tensor, bytes: Range<usize>) -> Result<Vec<u8>> {
        let mut whole = Vec::with_capacity(bytes.len());
        let spans = arena.spans(tensor, bytes)?;
        // Copies are of whole words.
        let copies: Vec<Copy<'_>> = spans
            .iter()
            .map(|(piece, bytes, _)| {
                let (first, end) = (bytes.start / 4 * 4, bytes.end.next_multiple_of(4));
                Copy { buffer: &piece.buffer, first: first as u64, bytes: (end - first) as u64 }
            })
            .collect();
        let read = read(&self.shared, &copies).await?;
        let mut at = 0;
        for ((_, bytes, _), copy) in spans.iter().zip(&copies) {
            let skipped = bytes.start - copy.first as usize;
            whole.extend_from_slice(&read[at + skipped..][..bytes.len()]);
            at += copy.bytes as usize;
        }
        Ok(whole)
    }
}

impl Backend for Wgpu {
    type Arena = WgpuArena;
    type Plan = WgpuPlan;

    fn allocate_within(&self, layout: &Layout, _paging: Paging) -> Result<WgpuArena> {
        self.shared.check()?;
        WgpuArena::new(&self.shared, layout)
    }

    fn compile(&self, program: &Program, arena: &WgpuArena) -> Result<WgpuPlan> {
        self.shared.check()?;
        plan::compile(&self.shared, program, arena)
    }

    fn write_at(&self, arena: &mut WgpuArena, tensor: Tensor, first: usize, bytes: &[u8]) -> Result<()> {
        self.shared.check()?;
        let info = arena.layout.info(tensor);
        let size = info.dtype.size();
        let start = first.saturating_mul(size);
        let end = start.saturating_add(bytes.len());
        let error = || Error::Size {
            tensor: info.name.clone(),
            expected: info.bytes() - start.min(info.bytes()),
            given: bytes.len(),
        };
        if !bytes.len().is_multiple_of(size) || end > info.bytes() {
            return Err(error());
        }
        for (piece, within, at) in arena.spans(tensor, start..end)? {
            let bytes = &bytes[at..][..within.len()];
            // Whole words are written; a half element that shares its word with another can only be the last of all.
            let is_last = within.end as u64 + 2 > piece.buffer.size() || end == info.bytes();
            if !within.start.is_multiple_of(4) || !(bytes.len().is_multiple_of(4) || is_last) {
                return Err(Error::Unsupported {
                    op: "write",
                    reason: format!("an odd number of half elements of `{}`", info.name),
                });
            }
            let (words, rest) = bytes.split_at(bytes.len() / 4 * 4);
            self.shared.queue.write_buffer(&piece.buffer, within.start as u64, words);
            if let [low, high] = *rest {
                let at = (within.start + words.len()) as u64;
                self.shared.queue.write_buffer(&piece.buffer, at, &[low, high, 0, 0]);
            }
        }
        let mut unsubmitted = lock(&self.shared.unsubmitted);
        *unsubmitted += bytes.len() as u64;
        if *unsubmitted > WRITTEN_AT_ONCE {
            *unsubmitted = 0;
            self.shared.queue.submit([]);
            // Without being asked, a native device frees nothing.
            #[cfg(not(target_arch = "wasm32"))]
            self.shared
                .device
                .poll(wgpu::PollType::wait_indefinitely())
                .map_err(|e| Error::Device(e.to_string()))?;
        }
        self.shared.check()
    }

    fn run(&self, plan: &mut WgpuPlan, _arena: &mut WgpuArena) -> Result<()> {
        self.shared.check()?;
        *lock(&self.shared.unsubmitted) = 0;
        plan.run(&self.shared);
        self.shared.check()
    }

    async fn read(&self, arena: &WgpuArena, tensor: Tensor) -> Result<Vec<u8>> {
        self.read_bytes(arena, tensor, 0..arena.layout.info(tensor).bytes()).await
    }

    async fn read_at(&self, arena: &WgpuArena, tensor: Tensor, elements: Range<usize>) -> Result<Vec<u8>> {
        let size = arena.layout.info(tensor).dtype.size();
        self.read_bytes(arena, tensor, elements.start.saturating_mul(size)..elements.end.saturating_mul(size))
            .await
    }
}
