//! Adapters: what is there, and choosing one.
//!
//! The choice depends on what the caller says and on nothing else: wgpu's environment variables are not read. Left to
//! itself, a discrete GPU is preferred to an integrated one, and anything to a software rasteriser.

use crate::Wgpu;
use crate::device::Shared;
use crate::{matrix_units, profile};
use landmark_core::quantize::Bits;
use std::sync::Arc;
use wgpu::{Backends, DeviceType, Limits};

/// Which adapter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The fastest kind that there is.
    #[default]
    Best,
    /// The adapter of this number in [`adapters`].
    Index(usize),
    /// The first whose name contains this, whatever the case of its letters.
    Name(String),
}

impl Choice {
    /// A number is an index, anything else a part of a name.
    pub fn parse(text: &str) -> Self {
        text.parse().map_or_else(|_| Choice::Name(text.to_owned()), Choice::Index)
    }
}

/// How a device is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Which adapter.
    pub adapter: Choice,
    /// WebGPU's default limits and no optional feature, whatever the adapter offers.
    pub baseline: bool,
    /// Bytes of a tensor above which it is split, where that is less than the device's own limit.
    pub largest_binding: Option<u64>,
    /// No matrix units, though the adapter may have them: for seeing what they are worth.
    pub no_matrix_units: bool,
    /// Attention's kernels for matrix units also without them, on plain arithmetic in their place: for tests.
    pub emulate_matrix_units: bool,
    /// Kernels whose threads work alone, without workgroup memory and barriers, or those whose threads share it. `None`: the
    /// former where the adapter computes in software, where there is no such memory and barriers are what takes time.
    pub threads_alone: Option<bool>,
    /// Matrices of weights are kept in blocks of so many bits ([`landmark_core::quantize`]), whatever they are
    /// written in.
    pub weights: Option<Bits>,
}

/// What is known of an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterInfo {
    /// Name of the device, as its driver gives it.
    pub name: String,
    /// Vulkan, Metal, DX12 or WebGPU.
    pub backend: String,
    /// Discrete, integrated, virtual, software or other.
    pub kind: &'static str,
    /// Name and version of the driver.
    pub driver: String,
    /// It computes on the CPU: slower than the CPU backend.
    pub is_software: bool,
    /// Bytes of the largest binding: larger weights are split.
    pub largest_binding: u64,
    /// Bytes of the largest buffer.
    pub largest_buffer: u64,
    /// Optional features that this backend makes use of.
    pub features: Vec<&'static str>,
    /// Which of its limits is below what every kernel needs, if one is.
    pub too_small: Option<String>,
}

impl AdapterInfo {
    /// Its place among the kinds of adapters, the fastest first.
    pub fn rank(&self) -> usize {
        let kinds = ["discrete", "integrated", "virtual", "other", "software"];
        kinds.iter().position(|kind| *kind == self.kind).unwrap_or(kinds.len())
    }
}

/// Why no device could be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is none.
    #[error("{}", no_adapter())]
    NoAdapter,
    /// There is none of that name or number.
    #[error("there is no adapter {wanted}; there are: {found}")]
    Unknown {
        /// What was asked for.
        wanted: String,
        /// What there is.
        found: String,
    },
    /// The adapter cannot do what every kernel needs.
    #[error("{adapter} is too small: {limit} is {has}, but {needs} are needed for {what}; use --device cpu")]
    TooSmall {
        /// The adapter.
        adapter: String,
        /// Which of its limits, as WebGPU names it.
        limit: &'static str,
        /// What it has.
        has: u64,
        /// What is needed.
        needs: u64,
        /// What for.
        what: &'static str,
    },
    /// The same, in words.
    #[error("{0}")]
    Small(String),
    /// The adapter refused.
    #[error("{adapter} gave no device: {reason}")]
    Refused {
        /// The adapter.
        adapter: String,
        /// In its words.
        reason: String,
    },
}

fn no_adapter() -> &'static str {
    if cfg!(target_arch = "wasm32") {
        "this browser offers no WebGPU adapter: switch WebGPU or hardware acceleration on, or use the CPU"
    } else {
        "no GPU was found that speaks Vulkan, Metal or DX12: install its driver, or use --device cpu"
    }
}

/// What every device must have: WebGPU's defaults for all that kernels count on. What is asked for is named as WebGPU
/// names it.
fn requirements(limits: &Limits) -> [(&'static str, u64, u64, &'static str); 7] {
    [
        (
            "maxStorageBuffersPerShaderStage",
            limits.max_storage_buffers_per_shader_stage.into(),
            8,
            "the operands of an op",
        ),
        (
            "maxComputeWorkgroupStorageSize",
            limits.max_compute_workgroup_storage_size.into(),
            16_384,
            "the tiles of a product",
        ),
        (
            "maxComputeInvocationsPerWorkgroup",
            limits.max_compute_invocations_per_workgroup.into(),
            256,
            "the threads of a workgroup",
        ),
        (
            "maxComputeWorkgroupSizeX",
            limits.max_compute_workgroup_size_x.into(),
            256,
            "the threads of a workgroup",
        ),
        (
            "maxComputeWorkgroupsPerDimension",
            limits.max_compute_workgroups_per_dimension.into(),
            65_535,
            "the workgroups of an op",
        ),
        (
            "maxUniformBufferBindingSize",
            limits.max_uniform_buffer_binding_size,
            16_384,
            "the lengths of the rows of a batch",
        ),
        ("maxStorageBufferBindingSize", limits.max_storage_buffer_binding_size, 128 << 20, "activations"),
    ]
}

fn check(adapter: &str, limits: &Limits) -> Result<(), OpenError> {
    for (limit, has, needs, what) in requirements(limits) {
        if has < needs {
            return Err(OpenError::TooSmall { adapter: adapter.to_owned(), limit, has, needs, what });
        }
    }
    Ok(())
}

fn instance() -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = Backends::VULKAN | Backends::METAL | Backends::DX12 | Backends::BROWSER_WEBGPU;
    // Debug builds would otherwise ask for the driver's validation layers.
    descriptor.flags = wgpu::InstanceFlags::empty();
    wgpu::Instance::new(descriptor)
}

/// Adapters in the order in which they are numbered: that of the drivers.
async fn found(instance: &wgpu::Instance) -> Vec<wgpu::Adapter> {
    if cfg!(target_arch = "wasm32") {
        let options = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        };
        return instance.request_adapter(&options).await.into_iter().collect();
    }
    instance.enumerate_adapters(Backends::all()).await
}

/// Every adapter of this machine, or the one that the browser gives.
pub async fn adapters() -> Vec<AdapterInfo> {
    found(&instance()).await.iter().map(describe).collect()
}

/// The number and the description of the adapter that is chosen. Nothing is opened.
///
/// # Errors
/// As [`Wgpu::open`].
pub async fn find(choice: &Choice) -> Result<(usize, AdapterInfo), OpenError> {
    let mut infos = adapters().await;
    let index = position(&infos, choice)?;
    match &infos[index].too_small {
        None => Ok((index, infos.swap_remove(index))),
        Some(reason) => Err(OpenError::Small(reason.clone())),
    }
}

fn kind(device_type: DeviceType) -> &'static str {
    match device_type {
        DeviceType::DiscreteGpu => "discrete",
        DeviceType::IntegratedGpu => "integrated",
        DeviceType::VirtualGpu => "virtual",
        DeviceType::Cpu => "software",
        DeviceType::Other => "other",
    }
}

/// Optional features that some kernel has a faster variant for.
const FEATURES: [(wgpu::Features, &str); 1] = [(wgpu::Features::SUBGROUP, "subgroups")];

pub(crate) fn describe(adapter: &wgpu::Adapter) -> AdapterInfo {
    let (info, limits) = (adapter.get_info(), adapter.limits());
    let too_small = check(&info.name, &limits).err().map(|error| error.to_string());
    let has = adapter.features();
    AdapterInfo {
        name: info.name,
        backend: match info.backend {
            wgpu::Backend::Vulkan => "Vulkan",
            wgpu::Backend::Metal => "Metal",
            wgpu::Backend::Dx12 => "DX12",
            wgpu::Backend::BrowserWebGpu => "WebGPU",
            wgpu::Backend::Gl => "OpenGL",
            wgpu::Backend::Noop => "none",
        }
        .to_owned(),
        kind: kind(info.device_type),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        is_software: info.device_type == DeviceType::Cpu,
        largest_binding: limits.max_storage_buffer_binding_size,
        largest_buffer: limits.max_buffer_size,
        features: FEATURES
            .iter()
            .filter(|(f, _)| has.contains(*f))
            .map(|(_, name)| *name)
            .chain(matrix_units::are_offered(adapter).then_some("matrix units"))
            .collect(),
        too_small,
    }
}

fn choose(adapters: Vec<wgpu::Adapter>, choice: &Choice) -> Result<wgpu::Adapter, OpenError> {
    let infos: Vec<AdapterInfo> = adapters.iter().map(describe).collect();
    let index = position(&infos, choice)?;
    adapters.into_iter().nth(index).ok_or(OpenError::NoAdapter)
}

fn position(infos: &[AdapterInfo], choice: &Choice) -> Result<usize, OpenError> {
    if infos.is_empty() {
        return Err(OpenError::NoAdapter);
    }
    let at = match choice {
        Choice::Best => (0..infos.len()).min_by_key(|&i| (infos[i].too_small.is_some(), infos[i].rank())),
        Choice::Index(index) => (*index < infos.len()).then_some(*index),
        Choice::Name(part) => {
            infos.iter().position(|info| info.name.to_lowercase().contains(&part.to_lowercase()))
        }
    };
    at.ok_or_else(|| OpenError::Unknown {
        wanted: match choice {
            Choice::Name(name) => format!("with `{name}` in its name"),
            Choice::Index(index) => format!("number {index}"),
            Choice::Best => String::new(),
        },
        found: infos
            .iter()
            .enumerate()
            .map(|(i, a)| format!("{i}: {} ({})", a.name, a.backend))
            .collect::<Vec<_>>()
            .join(", "),
    })
}

impl Wgpu {
    /// Opens a device.
    ///
    /// # Errors
    /// No adapter, none of that name, or one that is too small.
    pub async fn open(options: &Options) -> Result<Self, OpenError> {
        let adapter = choose(found(&instance()).await, &options.adapter)?;
        let info = describe(&adapter);
        let limits = if options.baseline { Limits::default() } else { adapter.limits() };
        check(&info.name, &adapter.limits())?;
        let mut wanted = FEATURES.iter().fold(wgpu::Features::empty(), |all, (feature, _)| all | *feature);
        if profile::is_wanted() {
            wanted |= profile::FEATURES;
        }
        if options.emulate_matrix_units {
            wanted |= wgpu::Features::SHADER_F16;
        }
        let features = if options.baseline { wgpu::Features::empty() } else { adapter.features() & wanted };
        let mut descriptor = wgpu::DeviceDescriptor {
            label: Some("landmark"),
            required_features: features,
            required_limits: limits,
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        };
        let has_units = !options.no_matrix_units && !options.emulate_matrix_units;
        if !options.baseline && has_units && matrix_units::are_offered(&adapter) {
            let with = wgpu::DeviceDescriptor {
                required_features: features | matrix_units::FEATURES,
                experimental_features: matrix_units::permission(),
                ..descriptor.clone()
            };
            if let Ok((device, queue)) = adapter.request_device(&with).await {
                // Small weights are not quantised: the check multiplies f16 as they are.
                let own = Wgpu { shared: Arc::new(Shared::new(device, queue, info.clone(), options)) };
                if matrix_units::is_right(&own).await {
                    return Ok(own);
                }
            }
            descriptor.required_features = features;
        }
        let refused = |e: wgpu::RequestDeviceError| OpenError::Refused {
            adapter: info.name.clone(),
            reason: e.to_string(),
        };
        let (device, queue) = adapter.request_device(&descriptor).await.map_err(refused)?;
        Ok(Wgpu { shared: Arc::new(Shared::new(device, queue, info, options)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &str, kind: &'static str) -> AdapterInfo {
        AdapterInfo {
            name: name.into(),
            backend: "Vulkan".into(),
            kind,
            driver: String::new(),
            is_software: kind == "software",
            largest_binding: 0,
            largest_buffer: 0,
            features: Vec::new(),
            too_small: None,
        }
    }

    #[test]
    fn adapters_are_chosen_by_kind_number_or_name() {
        let all = [info("llvmpipe", "software"), info("Iris", "integrated"), info("GeForce", "discrete")];
        let at = |choice| position(&all, &choice).map_err(|e| e.to_string());
        assert_eq!(at(Choice::Best), Ok(2));
        assert_eq!(at(Choice::parse("1")), Ok(1));
        assert_eq!(at(Choice::parse("LLVM")), Ok(0));
        let message = at(Choice::parse("radeon")).unwrap_err();
        assert!(message.contains("`radeon`") && message.contains("2: GeForce (Vulkan)"), "{message}");
        assert!(at(Choice::parse("3")).unwrap_err().contains("number 3"));
        assert!(matches!(position(&[], &Choice::Best), Err(OpenError::NoAdapter)));
    }

    #[test]
    fn an_adapter_that_is_too_small_says_which_limit() {
        assert!(check("GPU", &Limits::default()).is_ok());
        let small = Limits { max_storage_buffers_per_shader_stage: 4, ..Limits::default() };
        let message = check("GPU", &small).unwrap_err().to_string();
        let expected = "GPU is too small: maxStorageBuffersPerShaderStage is 4, but 8 are needed for the operands of an op";
        assert!(message.starts_with(expected), "{message}");
    }
}
