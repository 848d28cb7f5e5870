//! [`Wgpu`]: the backend itself.

use crate::adapter::AdapterInfo;
use crate::arena::WgpuArena;
use crate::device::{Shared, lock};
use crate::plan::{self, WgpuPlan};
use crate::readback::{Copy, Reading, read};
use half::{bf16, f16};
use landmark_core::quantize::{BLOCK, Bits, Quantized, dequantize, quantize};
use landmark_core::{
    Answer, Backend, DType, Elements, Error, Layout, PageId, PageStore, Paging, Program, Result, Tensor,
};
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

    /// Bytes of device memory that programs share, beside what lies in arenas: activations and what is read back.
    pub fn shared_bytes(&self) -> u64 {
        self.shared.shared_bytes()
    }

    /// Loses the device, as a driver's reset would: for seeing what then happens.
    pub fn lose(&self) {
        self.shared.device.destroy();
    }

    /// Sources of all shaders that were compiled, as the device got them: for tests that look inside.
    pub fn shaders(&self) -> Vec<String> {
        self.shared.sources()
    }

    /// Quantises whole blocks that are written to a matrix of weights.
    fn write_quantised(
        &self,
        arena: &WgpuArena,
        tensor: Tensor,
        bits: Bits,
        start: usize,
        bytes: &[u8],
    ) -> Result<()> {
        let info = arena.layout.info(tensor);
        for (piece, within, at) in arena.spans(tensor, start..start + bytes.len())? {
            let (size, Some(scales)) = (info.dtype.size(), &piece.scales) else { continue };
            let (first, count) = (within.start / size, within.len() / size);
            let is_last = first + count == piece.rows * info.shape.cols();
            // Two scales share a word.
            if !first.is_multiple_of(2 * BLOCK) || !(count.is_multiple_of(2 * BLOCK) || is_last) {
                return Err(Error::Unsupported {
                    op: "write",
                    reason: format!("parts of rows of `{}`, which is quantised", info.name),
                });
            }
            let values = floats(info.dtype, &bytes[at..][..within.len()]);
            let mut quantized = quantize(&values, bits);
            if !quantized.scales.len().is_multiple_of(2) {
                quantized.scales.push(f16::ZERO);
            }
            let words: Vec<u8> = quantized.scales.iter().flat_map(|s| s.to_le_bytes()).collect();
            let block = first / BLOCK;
            self.shared.queue.write_buffer(
                &piece.buffer,
                (block * bits.code_bytes()) as u64,
                &quantized.codes,
            );
            self.shared.queue.write_buffer(scales, 2 * block as u64, &words);
        }
        Ok(())
    }

    /// The values that a quantised matrix stands for, in its element type.
    async fn read_quantised(
        &self,
        arena: &WgpuArena,
        tensor: Tensor,
        bits: Bits,
        bytes: Range<usize>,
    ) -> Result<Vec<u8>> {
        let (info, mut whole) = (arena.layout.info(tensor), Vec::new());
        arena.spans(tensor, bytes.clone())?;
        for piece in arena.pieces(tensor) {
            let Some(scales) = &piece.scales else { continue };
            let blocks = piece.rows * info.shape.cols() / BLOCK;
            let code_bytes = blocks * bits.code_bytes();
            let scale_bytes = (2 * blocks).next_multiple_of(4);
            let copies = [
                Copy { buffer: &piece.buffer, first: 0, bytes: code_bytes as u64 },
                Copy { buffer: scales, first: 0, bytes: scale_bytes as u64 },
            ];
            let read = read(&self.shared, &copies).await?;
            let (codes, scales) = read.split_at(code_bytes);
            let scales =
                scales.chunks_exact(2).take(blocks).map(|s| f16::from_le_bytes([s[0], s[1]])).collect();
            let values = dequantize(&Quantized { codes: codes.to_vec(), scales }, bits);
            whole.extend(in_type(info.dtype, &values));
        }
        Ok(whole[bytes].to_vec())
    }

    /// Fills the rings of a landmark memory from where it was kept.
    fn read_store(&self, arena: &mut WgpuArena, store: &dyn PageStore) -> Result<()> {
        let infos = arena.layout.tensors().to_vec();
        for (tensor, info) in infos.iter().filter(|info| info.page.is_some()).enumerate() {
            let (Some(page), Some(ring)) = (info.page, arena.layout.find(&info.name)) else { continue };
            let mut bytes = vec![0; page * info.dtype.size()];
            for number in 0..info.shape.numel() / page {
                bytes.fill(0);
                store.read(PageId { tensor, page: number }, &mut bytes).map_err(Error::Pages)?;
                // Buffers are zero when they are made.
                if bytes.iter().any(|&byte| byte != 0) {
                    self.write_at(arena, ring, number * page, &bytes)?;
                }
            }
        }
        Ok(())
    }

    async fn read_bytes(&self, arena: &WgpuArena, tensor: Tensor, bytes: Range<usize>) -> Result<Vec<u8>> {
        if let Some(bits) = arena.bits(tensor) {
            return self.read_quantised(arena, tensor, bits, bytes).await;
        }
        self.shared.settle().await?;
        self.begin_bytes(arena, &[(tensor, bytes)])?.await
    }

    /// Submits the copies of what is not quantised.
    fn begin_bytes(
        &self,
        arena: &WgpuArena,
        wanted: &[(Tensor, Range<usize>)],
    ) -> Result<impl Future<Output = Result<Vec<u8>>> + use<>> {
        let (mut copies, mut asked, mut at) = (Vec::new(), Vec::new(), 0);
        for (tensor, bytes) in wanted {
            for (piece, bytes, _) in arena.spans(*tensor, bytes.clone())? {
                // Copies are of whole words.
                let (first, end) = (bytes.start / 4 * 4, bytes.end.next_multiple_of(4));
                copies.push(Copy { buffer: &piece.buffer, first: first as u64, bytes: (end - first) as u64 });
                asked.push(at + bytes.start - first..at + bytes.end - first);
                at += end - first;
            }
        }
        let reading = Reading::begin(&self.shared, &copies)?;
        let shared = self.shared.clone();
        Ok(async move {
            let read = reading.finish(&shared).await?;
            Ok(asked.into_iter().flat_map(|range| &read[range]).copied().collect())
        })
    }
}

/// The floats that bytes of this type hold.
fn floats(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let halves = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    match dtype {
        DType::Bf16 => halves().map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
        DType::F16 => halves().map(|b| f16::from_le_bytes(b).to_f32()).collect(),
        _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}

/// Floats as bytes of this type.
fn in_type(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

impl Backend for Wgpu {
    type Arena = WgpuArena;
    type Plan = WgpuPlan;

    fn allocate_within(&self, layout: &Layout, paging: Paging) -> Result<WgpuArena> {
        self.shared.check()?;
        let needed: u64 = layout.paged().map(|info| info.bytes() as u64).sum();
        if let Some(budget) = paging.device.filter(|&budget| budget < needed) {
            return Err(Error::Unsupported {
                op: "a landmark memory beside the device's",
                reason: format!(
                    "the wgpu backend keeps a landmark memory whole on the device: its {needed} bytes are more than the \
                     {budget} allowed (--device-memory); use --device cuda or --device cpu"
                ),
            });
        }
        let mut arena = WgpuArena::new(&self.shared, layout)?;
        if let Some(store) = &paging.store {
            self.read_store(&mut arena, store.as_ref())?;
        }
        Ok(arena)
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
        let bits = arena.bits(tensor);
        if let Some(bits) = bits {
            self.write_quantised(arena, tensor, bits, start, bytes)?;
        }
        let spans = if bits.is_none() { arena.spans(tensor, start..end)? } else { Vec::new() };
        for (piece, within, at) in spans {
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
        plan.run(&self.shared)?;
        self.shared.check()
    }

    async fn read(&self, arena: &WgpuArena, tensor: Tensor) -> Result<Vec<u8>> {
        self.read_bytes(arena, tensor, 0..arena.layout.info(tensor).bytes()).await
    }

    async fn read_at(&self, arena: &WgpuArena, tensor: Tensor, elements: Range<usize>) -> Result<Vec<u8>> {
        self.read_bytes(arena, tensor, arena.bytes_of(tensor, &elements)).await
    }

    fn begin_read(&self, arena: &WgpuArena, wanted: &[Elements]) -> Result<Option<Answer>> {
        if wanted.iter().any(|(tensor, _)| arena.bits(*tensor).is_some()) {
            return Ok(None);
        }
        let in_bytes = |(tensor, elements): &Elements| (*tensor, arena.bytes_of(*tensor, elements));
        let wanted: Vec<_> = wanted.iter().map(in_bytes).collect();
        Ok(Some(Box::pin(self.begin_bytes(arena, &wanted)?)))
    }
}
