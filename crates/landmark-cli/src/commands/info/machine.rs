//! This machine: what can compute, which of it `--device auto` takes and why, and which kernels are compiled.

use landmark_cuda::cache::Cache;
use landmark_model::table::{Format, Table};
use landmark_wgpu::AdapterInfo;
use pollster::block_on;
use serde::Serialize;

use crate::args::info::InfoArgs;
use crate::device::{self, Device, DeviceName};
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
    /// Why.
    because: String,
    cuda: Cuda,
    wgpu: Vec<Adapter>,
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

/// An adapter that wgpu finds.
#[derive(Debug, Serialize)]
struct Adapter {
    /// As `--device` takes it.
    device: String,
    name: String,
    /// Vulkan, Metal or DX12.
    interface: String,
    /// Discrete, integrated, virtual, software or other.
    kind: &'static str,
    driver: String,
    /// Optional features that kernels make use of.
    features: Vec<&'static str>,
    /// Bytes of a tensor above which it is split.
    largest_binding_bytes: u64,
    /// Why it cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    too_small: Option<String>,
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
    let (auto, because) = device::best();
    let wgpu: Vec<Adapter> =
        block_on(landmark_wgpu::adapters()).into_iter().enumerate().map(adapter).collect();
    let usable = |adapter: &&Adapter| adapter.too_small.is_none();
    let others: Vec<Found> = wgpu.iter().filter(usable).map(found).chain([cpu]).collect();
    let machine = Machine {
        version: env!("CARGO_PKG_VERSION"),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        threads,
        devices: gpus.into_iter().chain(others).collect(),
        auto: auto.to_string(),
        because,
        cuda,
        wgpu,
    };
    report.print(rendered(&machine))?;
    report.json(&machine)
}

fn adapter((number, info): (usize, AdapterInfo)) -> Adapter {
    Adapter {
        device: Device::Wgpu(number).to_string(),
        name: info.name,
        interface: info.backend,
        kind: info.kind,
        driver: info.driver,
        features: info.features,
        largest_binding_bytes: info.largest_binding,
        too_small: info.too_small,
    }
}

fn found(adapter: &Adapter) -> Found {
    Found {
        device: adapter.device.clone(),
        name: format!("{} ({}, {})", adapter.name, adapter.interface, adapter.kind),
        memory_bytes: None,
        compute_capability: None,
        multiprocessors: None,
    }
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
    let Machine { version, system, threads, auto, because, cuda, .. } = machine;
    let mut lines = vec![
        format!("landmark {version} on {system}, {threads} threads"),
        format!("--device auto takes {auto}: {because}"),
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
    for adapter in &machine.wgpu {
        let features = match adapter.features.is_empty() {
            true => "none".to_owned(),
            false => adapter.features.join(", "),
        };
        lines.push(match &adapter.too_small {
            Some(reason) => format!("{}: {reason}", adapter.device),
            None => format!(
                "{}: driver {}; optional features in use: {features}; tensors are split above {}",
                adapter.device,
                adapter.driver,
                bytesize::ByteSize(adapter.largest_binding_bytes)
            ),
        });
    }
    if machine.wgpu.is_empty() {
        lines.push("wgpu: no GPU was found that speaks Vulkan, Metal or DX12".to_owned());
    }
    lines.join("\n")
}
