//! How long ops take on the device, printed once for each program: `LANDMARK_WGPU_PROFILE=1`.
//!
//! A run that is profiled has a pass for each dispatch, with a time stamp before and behind it, so dispatches that could
//! run side by side do not: the sum is more than a run takes. Native devices only, since the answer is waited for.

use crate::device::Shared;
use crate::readback::{Copy, read};
use landmark_core::{Error, Result};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// What a device needs for it.
pub(crate) const FEATURES: wgpu::Features = wgpu::Features::TIMESTAMP_QUERY;

/// The run that is profiled: by then everything is compiled and warm.
pub(crate) const RUN: u64 = 2;

/// Whether the user asks for it.
pub(crate) fn is_wanted() -> bool {
    !cfg!(target_arch = "wasm32")
        && std::env::var_os("LANDMARK_WGPU_PROFILE").is_some_and(|value| !value.is_empty() && value != "0")
}

/// Time stamps of many passes: queries in sets of the largest size that WebGPU has, and what they are resolved into.
pub(crate) struct Stamps {
    sets: Vec<wgpu::QuerySet>,
    resolved: wgpu::Buffer,
    count: u32,
}

impl Stamps {
    /// For so many passes.
    pub(crate) fn new(shared: &Shared, passes: usize) -> Stamps {
        let count = 2 * passes as u32;
        let set = |first: u32| {
            shared.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("profile"),
                ty: wgpu::QueryType::Timestamp,
                count: (count - first).min(wgpu::QUERY_SET_MAX_QUERIES),
            })
        };
        let sets = (0..count).step_by(wgpu::QUERY_SET_MAX_QUERIES as usize).map(set).collect();
        let resolved = shared.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("profile"),
            size: 8 * u64::from(count.max(1)),
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        Stamps { sets, resolved, count }
    }

    /// Where a pass leaves its stamps.
    pub(crate) fn of(&self, pass: usize) -> Option<wgpu::ComputePassTimestampWrites<'_>> {
        let (each, query) = (wgpu::QUERY_SET_MAX_QUERIES, 2 * pass as u32);
        Some(wgpu::ComputePassTimestampWrites {
            query_set: self.sets.get((query / each) as usize)?,
            beginning_of_pass_write_index: Some(query % each),
            end_of_pass_write_index: Some(query % each + 1),
        })
    }

    /// To be encoded behind the passes.
    pub(crate) fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        for (set, first) in
            self.sets.iter().zip((0..self.count).step_by(wgpu::QUERY_SET_MAX_QUERIES as usize))
        {
            let here = (self.count - first).min(wgpu::QUERY_SET_MAX_QUERIES);
            encoder.resolve_query_set(set, 0..here, &self.resolved, 8 * u64::from(first));
        }
    }

    /// Milliseconds of each pass, when they have run.
    pub(crate) fn milliseconds(&self, shared: &Shared) -> Result<Vec<f64>> {
        let copies = [Copy { buffer: &self.resolved, first: 0, bytes: 8 * u64::from(self.count) }];
        // A native device answers at once: reading waits for it.
        let bytes = match pin!(read(shared, &copies)).as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(bytes) => bytes?,
            Poll::Pending => return Err(Error::Device("no time stamps were read".into())),
        };
        let (stamps, _) = bytes.as_chunks::<8>();
        let period = f64::from(shared.queue.get_timestamp_period());
        let of = |pair: &[[u8; 8]]| {
            let [begin, end] = [pair[0], pair[1]].map(u64::from_le_bytes);
            end.saturating_sub(begin) as f64 * period / 1e6
        };
        Ok(stamps.chunks_exact(2).map(of).collect())
    }
}

/// Times by kind of kernel, the longest first.
pub(crate) fn summary(program: &str, names: &[String], times: &[f64]) -> String {
    let mut kinds: BTreeMap<&str, (usize, f64)> = BTreeMap::new();
    for (name, time) in names.iter().zip(times) {
        let (count, sum) = kinds.entry(name.as_str()).or_default();
        (*count, *sum) = (*count + 1, *sum + time);
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
    let total: f64 = times.iter().sum();
    let mut text = format!("{program}: {total:.3} ms in {} dispatches\n", times.len());
    for (name, (count, sum)) in kinds {
        let (share, each) = (100.0 * sum / total.max(1e-9), 1e3 * sum / count as f64);
        let _ = writeln!(text, "{sum:10.3} ms  {share:5.1} %  {count:4} x {each:8.1} us  {name}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_summed_up() {
        let text = summary("step", &["norm", "matvec", "norm"].map(String::from), &[0.5, 2.0, 1.5]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "step: 4.000 ms in 3 dispatches");
        let words: Vec<&str> = lines[1].split_whitespace().collect();
        assert_eq!(words, ["2.000", "ms", "50.0", "%", "1", "x", "2000.0", "us", "matvec"]);
        assert!(lines[2].ends_with("2 x   1000.0 us  norm"), "{text}");
    }
}
