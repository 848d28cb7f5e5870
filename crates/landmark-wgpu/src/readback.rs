//! Reading a buffer: the only wait.

use crate::device::{CHECKS, Shared, lock};
use landmark_core::{Error, Result};
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

/// What the callback of a mapping leaves for whoever waits.
#[derive(Default)]
struct Mapping {
    outcome: Option<Result<(), wgpu::BufferAsyncError>>,
    waker: Option<Waker>,
}

/// Some bytes of a buffer to be read: it, the first byte (a multiple of 4), and how many (likewise).
pub(crate) struct Copy<'a> {
    pub(crate) buffer: &'a wgpu::Buffer,
    pub(crate) first: u64,
    pub(crate) bytes: u64,
}

/// The bytes of all copies, one behind the other, after everything submitted so far; or what kernels reported.
pub(crate) async fn read(shared: &Shared, copies: &[Copy<'_>]) -> Result<Vec<u8>> {
    shared.settle().await?;
    let status = 4 * CHECKS as u64;
    let total: u64 = copies.iter().map(|c| c.bytes).sum();
    let staging = shared.staging(status + total);
    if staging.size() < status + total {
        return Err(Error::Device(format!(
            "{} is too small: maxBufferSize is {}, but {total} bytes are to be read at once",
            shared.info.name, shared.limits.max_buffer_size
        )));
    }
    let mut encoder = shared.device.create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(&shared.status, 0, &staging, 0, status);
    let mut at = status;
    for copy in copies {
        encoder.copy_buffer_to_buffer(copy.buffer, copy.first, &staging, at, copy.bytes);
        at += copy.bytes;
    }
    shared.queue.submit([encoder.finish()]);
    *lock(&shared.unsubmitted) = 0;
    let mapping: Arc<Mutex<Mapping>> = Arc::default();
    let slice = staging.slice(..at);
    slice.map_async(wgpu::MapMode::Read, {
        let mapping = mapping.clone();
        move |outcome| {
            let mut mapping = lock(&mapping);
            mapping.outcome = Some(outcome);
            if let Some(waker) = mapping.waker.take() {
                waker.wake();
            }
        }
    });
    // A native device answers only when it is asked; a browser does so by itself.
    #[cfg(not(target_arch = "wasm32"))]
    shared.device.poll(wgpu::PollType::wait_indefinitely()).map_err(|e| Error::Device(e.to_string()))?;
    let outcome = poll_fn(|context| {
        let mut mapping = lock(&mapping);
        match mapping.outcome.take() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                mapping.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    })
    .await;
    // What went wrong meanwhile says more than the mapping that failed of it.
    shared.check()?;
    outcome.map_err(|e| Error::Device(format!("reading: {e}")))?;
    let bytes = match slice.get_mapped_range() {
        Ok(view) => view.to_vec(),
        Err(error) => return Err(Error::Device(format!("reading: {error}"))),
    };
    staging.unmap();
    shared.return_staging(staging);
    let (words, bytes) = bytes.split_at(status as usize);
    shared.report(words)?;
    Ok(bytes.to_vec())
}
