//! `landmark bench`: how fast training, attention, reading and generating are, on random tokens and weights.

mod attention;
mod inference;
mod training;

use std::time::{Duration, Instant};

use crate::args::bench::{BenchArgs, What};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::report::Report;

/// How long to measure, if no number of steps is given.
const DEFAULT_TIME: Duration = Duration::from_secs(20);

/// Measures speed.
///
/// # Errors
/// If the flags cannot be followed.
pub fn run(args: &BenchArgs, report: &Report) -> Result<()> {
    if args.steps == Some(0) {
        return Err(Error::flag("--steps", "must be at least 1", ""));
    }
    let device = match args.what {
        What::Train => args.device.device.select_for_training()?,
        _ => args.device.device.select()?,
    };
    match args.what {
        What::Train | What::Forward => training::run(args, device, report),
        What::Attention => attention::run(args, device, report),
        What::Prefill | What::Decode => inference::run(args, device, report),
    }
}

/// The device, for people and for tables of results.
fn name(device: Device) -> String {
    match device {
        Device::Cpu => "cpu".to_owned(),
        Device::Cuda(number) => match landmark_cuda::device_info(number as usize) {
            Ok(info) => info.name,
            Err(_) => device.to_string(),
        },
        Device::Wgpu(number) => {
            let adapters = pollster::block_on(landmark_wgpu::adapters());
            adapters
                .get(number)
                .map_or(device.to_string(), |adapter| format!("{} ({})", adapter.name, adapter.backend))
        }
    }
}

/// Seconds of each step, sorted; the first step, which compiles, does not count.
fn measure(steps: Option<u64>, report: &Report, mut step: impl FnMut(u64) -> Result<()>) -> Result<Vec<f64>> {
    step(0)?;
    let mut times = Vec::new();
    let began = Instant::now();
    let progress = report.progress("measuring", steps.unwrap_or(0), "steps");
    for index in 1.. {
        let start = Instant::now();
        step(index)?;
        times.push(start.elapsed().as_secs_f64());
        let done = match steps {
            Some(steps) => index >= steps,
            None => began.elapsed() >= DEFAULT_TIME && times.len() >= 3,
        };
        if steps.is_some() {
            progress.at(index, "");
        }
        if done {
            break;
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}
