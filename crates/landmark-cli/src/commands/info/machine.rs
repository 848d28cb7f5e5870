//! This machine: what can compute, which of it `--device auto` takes and why, and which kernels are compiled.

use landmark_cuda::cache::Cache;
use landmark_model::table::{Format, Table};
use serde::Serialize;

use crate::args::info::InfoArgs;
use crate::device::{Device, DeviceName};
use crate::error::Result;
use crate::report::Report;

/// What `landmark info` says about this machine.
#[derive(Debug, Serialize)]
struct Machine {
    version: &'static str,
    system: String,
    threads: usize,
    devices: Vec<Found>,
    /// What `--device auto` takes.
    auto: String,
    cuda: Cuda,
}

/// A device that can be used.
#[derive(Debug, Serialize)]
struct Found {
    /// As `--device` takes it.
    device: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
    /// Compute capability, 9.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    compute_capability: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    multiprocessors: Option<u32>,
}

/// What CUDA needs besides a device.
#[derive(Debug, Serialize)]
struct Cuda {
    /// Why no device can be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<String>,
    /// The newest CUDA that the driver serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    driver: Option<String>,
    /// The compiler of kernels, or why there is none.
    compiler: String,
    /// Where compiled kernels are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<String>,
    cached_kernels: usize,
    cached_bytes: u64,
}

/// Prints it.
pub(super) fn describe(args: &InfoArgs, report: &Report) -> Result<()> {
    let threads = args.common.threads.or_else(|| std::thread::available_parallelism().ok());
    let threads = threads.map_or(1, std::num::NonZeroUsize::get);
    let (gpus, cuda) = cuda();
    let cpu = Found {
        device: "cpu".to_owned(),
        name: format!("{threads} threads"),
        memory_bytes: None,
        compute_capability: None,
        multiprocessors: None,
    };
    let auto = match DeviceName::Auto.select()? {
        Device::Cpu => "cpu".to_owned(),
        Device::Cuda(number) => DeviceName::Cuda(number).to_string(),
    };
    let machine = Machine {
        version: env!("CARGO_PKG_VERSION"),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        threads,
        devices: gpus.into_iter().chain([cpu]).collect(),
        auto,
        cuda,
    };
    report.print(rendered(&machine))?;
    report.json(&machine)
}

fn cuda() -> (Vec<Found>, Cuda) {
    let mut cuda = Cuda {
        missing: None,
        driver: None,
        compiler: landmark_cuda::compile::compiler().unwrap_or_else(|error| error.to_string()),
        cache: None,
        cached_kernels: 0,
        cached_bytes: 0,
    };
    if let Some(folder) = Cache::of_user().folder() {
        cuda.cache = Some(folder.display().to_string());
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if let Ok(data) = entry.metadata() {
                cuda.cached_kernels += 1;
                cuda.cached_bytes += data.len();
            }
        }
    }
    let found = landmark_cuda::device_count().and_then(|count| {
        (0..count).map(landmark_cuda::device_info).collect::<std::result::Result<Vec<_>, _>>()
    });
    match found {
        Err(error) => {
            cuda.missing = Some(error.to_string());
            (Vec::new(), cuda)
        }
        Ok(found) => {
            cuda.driver = found.first().map(|d| format!("{}.{}", d.driver / 1000, d.driver % 1000 / 10));
            let of = |d: &landmark_cuda::DeviceInfo| Found {
                device: DeviceName::Cuda(d.ordinal as u32).to_string(),
                name: d.name.clone(),
                memory_bytes: Some(d.memory),
                compute_capability: Some(format!("{}.{}", d.capability / 10, d.capability % 10)),
                multiprocessors: Some(d.multiprocessors),
            };
            (found.iter().map(of).collect(), cuda)
        }
    }
}

fn rendered(machine: &Machine) -> String {
    let mut table = Table::new(["device", "what it is", "memory", "capability"]);
    for found in &machine.devices {
        let memory = found.memory_bytes.map_or("-".to_owned(), |b| bytesize::ByteSize(b).to_string());
        let capability = found.compute_capability.clone().unwrap_or_else(|| "-".to_owned());
        table.row([found.device.clone(), found.name.clone(), memory, capability]);
    }
    let Machine { version, system, threads, auto, cuda, .. } = machine;
    let mut lines = vec![
        format!("landmark {version} on {system}, {threads} threads; --device auto takes {auto}"),
        String::new(),
        table.render(Format::Text).trim_end().to_owned(),
        String::new(),
    ];
    lines.extend(cuda.missing.as_ref().map(|reason| format!("cuda: {reason}")));
    lines.extend(cuda.driver.as_ref().map(|version| format!("cuda: the driver serves CUDA {version}")));
    lines.push(format!("kernels are compiled by: {}", cuda.compiler));
    if let Some(cache) = &cuda.cache {
        let size = bytesize::ByteSize(cuda.cached_bytes);
        lines.push(format!("compiled kernels: {} in {cache}, {size}", cuda.cached_kernels));
    }
    lines.push("wgpu: not part of this build".to_owned());
    lines.join("\n")
}
