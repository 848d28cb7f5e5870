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
    Reading::begin(shared, copies)?.finish(shared).await
}

/// Copies on their way.
pub(crate) struct Reading {
    staging: wgpu::Buffer,
    bytes: u64,
    mapping: Arc<Mutex<Mapping>>,
    submission: wgpu::SubmissionIndex,
}

/// Before what is read comes what kernels reported.
const STATUS: u64 = 4 * CHECKS as u64;

impl Reading {
    /// Submits the copies.
    pub(crate) fn begin(shared: &Shared, copies: &[Copy<'_>]) -> Result<Reading> {
        let bytes = STATUS + copies.iter().map(|c| c.bytes).sum::<u64>();
        let staging = shared.staging(bytes);
        if staging.size() < bytes {
            return Err(Error::Device(format!(
                "{} is too small: maxBufferSize is {}, but {} bytes are to be read at once",
                shared.info.name,
                shared.limits.max_buffer_size,
                bytes - STATUS
            )));
        }
        let mut encoder = shared.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(&shared.status, 0, &staging, 0, STATUS);
        let mut at = STATUS;
        for copy in copies {
            encoder.copy_buffer_to_buffer(copy.buffer, copy.first, &staging, at, copy.bytes);
            at += copy.bytes;
        }
        let submission = shared.queue.submit([encoder.finish()]);
        *lock(&shared.unsubmitted) = 0;
        let mapping: Arc<Mutex<Mapping>> = Arc::default();
        staging.slice(..bytes).map_async(wgpu::MapMode::Read, {
            let mapping = mapping.clone();
            move |outcome| {
                let mut mapping = lock(&mapping);
                mapping.outcome = Some(outcome);
                if let Some(waker) = mapping.waker.take() {
                    waker.wake();
                }
            }
        });
        Ok(Reading { staging, bytes, mapping, submission })
    }

    /// Waits for them, and for nothing submitted since.
    pub(crate) async fn finish(self, shared: &Shared) -> Result<Vec<u8>> {
        // A native device answers only when it is asked; a browser does so by itself.
        if cfg!(not(target_arch = "wasm32")) {
            let wait = wgpu::PollType::Wait { submission_index: Some(self.submission), timeout: None };
            // A lost device refuses the submission; what there is to wait for then is to be told why.
            let wait_for_all = |_| shared.device.poll(wgpu::PollType::wait_indefinitely());
            shared.device.poll(wait).or_else(wait_for_all).map_err(|e| Error::Device(e.to_string()))?;
        }
        let outcome = poll_fn(|context| {
            let mut mapping = lock(&self.mapping);
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
        let bytes = match self.staging.slice(..self.bytes).get_mapped_range() {
            Ok(view) => view.to_vec(),
            Err(error) => return Err(Error::Device(format!("reading: {error}"))),
        };
        self.staging.unmap();
        shared.return_staging(self.staging);
        let (words, bytes) = bytes.split_at(STATUS as usize);
        shared.report(words)?;
        Ok(bytes.to_vec())
    }
}
