//! Which device computes: `--device auto|cpu|cuda|cuda:N|wgpu|wgpu:N|wgpu:NAME`.
//!
//! The name is checked while the command line is parsed; whether the device can be had is asked when the
//! command starts. `auto` takes the best there is: an NVIDIA GPU by way of CUDA, else any GPU by way of wgpu, else the CPU.
//! A software rasteriser is no GPU: it computes on the CPU, slower than the CPU backend, and has to be asked for by name.
//!
//! wgpu runs models and does not train them. So commands that train ask for a device by
//! [`select_for_training`](DeviceName::select_for_training). [`Device::open`] is the one place where a backend is chosen;
//! everything behind it is generic.

use std::fmt;
use std::str::FromStr;

use landmark_core::quantize::Bits;
use landmark_core::{Cpu, DType};
use landmark_cuda::Cuda;
use landmark_wgpu::{AdapterInfo, Choice, Options, Wgpu};
use pollster::block_on;
use serde::{Deserialize, Serialize};

use crate::args::values::Dtype;
use crate::backend::AnyBackend;
use crate::error::{Error, Result};

/// A device as the command line names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceName {
    /// The best there is.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU, by number.
    Cuda(u32),
    /// A GPU by way of Vulkan, Metal or DX12: the adapter of this number, or with this in its name; the fastest kind if
    /// nothing is said.
    Wgpu(Option<String>),
}

/// A device that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU, by number.
    Cuda(u32),
    /// An adapter of wgpu, by number.
    Wgpu(usize),
}

impl Device {
    /// What it computes in when asked for `dtype`: the CPU in float32 whatever is asked; wgpu in float16 where the
    /// other half type is asked for, since float16 is what every GPU unpacks in one instruction and multiplies in its
    /// matrix units.
    pub fn compute(self, dtype: Dtype) -> DType {
        match (self, dtype) {
            (Device::Cpu, _) | (_, Dtype::Float32) => DType::F32,
            (Device::Wgpu(_), _) | (_, Dtype::Float16) => DType::F16,
            (_, Dtype::Bfloat16) => DType::Bf16,
        }
    }

    /// The same for weights that are kept in blocks. Unless asked otherwise, wgpu computes in float32 with those: a
    /// float16 holds their values rounded a second time, and they take no room as values.
    pub fn compute_with(self, dtype: Option<Dtype>, blocks: Option<Bits>) -> DType {
        match (self, dtype, blocks) {
            (Device::Wgpu(_), None, Some(_)) => DType::F32,
            _ => self.compute(dtype.unwrap_or_default()),
        }
    }

    /// Its backend, which keeps weights in such blocks, if it is told to and can: see [`Device::blocks`].
    ///
    /// # Errors
    /// A device that cannot be opened: too old, too small, no compiler for kernels.
    pub fn open(self, blocks: Option<Bits>) -> Result<AnyBackend> {
        let failed = |reason: String| Error::Device { device: self.to_string(), reason };
        match self {
            Device::Cpu => Ok(AnyBackend::Cpu(Cpu::new())),
            Device::Cuda(number) => match Cuda::new(number as usize) {
                Ok(cuda) => Ok(AnyBackend::Cuda(cuda)),
                Err(error) => Err(failed(error.to_string())),
            },
            Device::Wgpu(number) => {
                let options =
                    Options { adapter: Choice::Index(number), weights: blocks, ..Options::default() };
                block_on(Wgpu::open(&options))
                    .map(AnyBackend::Wgpu)
                    .map_err(|error| failed(error.to_string()))
            }
        }
    }

    /// The blocks in which weights stay on this device that come in such: wgpu keeps them, other devices compute with
    /// the values.
    pub fn blocks(self, stored: Option<Bits>) -> Option<Bits> {
        stored.filter(|_| matches!(self, Device::Wgpu(_)))
    }
}

/// As `--device` takes it.
impl fmt::Display for Device {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => out.write_str("cpu"),
            Device::Cuda(number) => write!(out, "cuda:{number}"),
            Device::Wgpu(number) => write!(out, "wgpu:{number}"),
        }
    }
}

/// Why a device does not train.
pub fn trains_not(device: impl fmt::Display) -> Error {
    Error::Device {
        device: device.to_string(),
        reason: "wgpu runs models and does not train them; train with --device cuda or --device cpu"
            .to_owned(),
    }
}

impl DeviceName {
    /// Whether a device that was named can be had, for commands that compute nothing, or not yet. `auto` always can, and
    /// no driver is woken to say so.
    ///
    /// # Errors
    /// As [`select`](Self::select).
    pub fn check(&self) -> Result<()> {
        match self {
            DeviceName::Auto => Ok(()),
            named => named.select().map(|_| ()),
        }
    }

    /// The device of this name, if it can be had.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn select(&self) -> Result<Device> {
        let missing = |reason: String| Error::Device { device: self.to_string(), reason };
        match self {
            DeviceName::Auto => Ok(best().0),
            DeviceName::Cpu => Ok(Device::Cpu),
            DeviceName::Cuda(number) => match cuda_devices() {
                Ok(count) if (*number as usize) < count => Ok(Device::Cuda(*number)),
                Ok(count) => Err(missing(format!("there is no CUDA device {number}: {count} found"))),
                Err(error) => Err(missing(error.to_string())),
            },
            DeviceName::Wgpu(adapter) => {
                let choice = adapter.as_deref().map_or(Choice::Best, Choice::parse);
                match block_on(landmark_wgpu::find(&choice)) {
                    Ok((number, _)) => Ok(Device::Wgpu(number)),
                    Err(error) => Err(missing(error.to_string())),
                }
            }
        }
    }

    /// The same for a command that trains.
    ///
    /// # Errors
    /// As [`select`](Self::select), and for a device that does not train.
    pub fn select_for_training(&self) -> Result<Device> {
        match self {
            DeviceName::Auto => Ok(if has_cuda() { Device::Cuda(0) } else { Device::Cpu }),
            DeviceName::Wgpu(_) => Err(trains_not(self)),
            named => named.select(),
        }
    }
}

fn cuda_devices() -> landmark_core::Result<usize> {
    landmark_cuda::device_count()
}

fn has_cuda() -> bool {
    cuda_devices().is_ok_and(|count| count > 0)
}

/// What `auto` takes, and why.
pub fn best() -> (Device, String) {
    if has_cuda() {
        return (Device::Cuda(0), "an NVIDIA GPU by way of CUDA is the fastest".to_owned());
    }
    if !may_have_gpu() {
        return (Device::Cpu, "there is no CUDA device, and the system shows no GPU".to_owned());
    }
    let adapters = block_on(landmark_wgpu::adapters());
    let fit = |(_, adapter): &(usize, &AdapterInfo)| why_not(adapter).is_none();
    let found: Vec<(usize, &AdapterInfo)> = adapters.iter().enumerate().filter(fit).collect();
    match found.iter().min_by_key(|(_, adapter)| adapter.rank()) {
        Some((number, adapter)) => {
            let why = format!("there is no CUDA device, and {} speaks {}", adapter.name, adapter.backend);
            (Device::Wgpu(*number), why)
        }
        None if adapters.is_empty() => {
            (Device::Cpu, "there is no CUDA device, and wgpu finds no adapter".to_owned())
        }
        None => {
            let reasons: Vec<String> = adapters.iter().filter_map(why_not).collect();
            (Device::Cpu, format!("there is no CUDA device, and of wgpu's adapters {}", reasons.join("; ")))
        }
    }
}

/// Whether the system shows any sign of a GPU. Drivers take a while to wake, and some have something to say then; where
/// nothing can come of it they are left alone.
fn may_have_gpu() -> bool {
    if !cfg!(target_os = "linux") {
        return true;
    }
    // Most drivers; NVIDIA's; Windows' subsystem for Linux; Adreno's and Mali's.
    let nodes = ["/dev/dri", "/dev/nvidiactl", "/dev/dxg", "/dev/kgsl-3d0", "/dev/mali0"];
    nodes.iter().any(|node| std::path::Path::new(node).exists())
}

/// Why `auto` passes over an adapter, if it does.
fn why_not(adapter: &AdapterInfo) -> Option<String> {
    if adapter.is_software {
        return Some(format!("{} computes on the CPU, slower than the CPU backend", adapter.name));
    }
    adapter.too_small.clone()
}

/// Bytes of a GPU's memory that are in use, where its interface says.
pub fn memory_in_use(device: Device) -> Option<u64> {
    match device {
        Device::Cpu | Device::Wgpu(_) => None,
        Device::Cuda(number) => landmark_cuda::memory_in_use(number as usize).ok(),
    }
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<DeviceName, String> {
        let unknown = || {
            format!("there is no device {name:?}; give auto, cpu, cuda, cuda:N, wgpu, wgpu:N or wgpu:NAME")
        };
        match name {
            "auto" => Ok(DeviceName::Auto),
            "cpu" => Ok(DeviceName::Cpu),
            "cuda" => Ok(DeviceName::Cuda(0)),
            "wgpu" => Ok(DeviceName::Wgpu(None)),
            _ => {
                if let Some(adapter) = name.strip_prefix("wgpu:").filter(|adapter| !adapter.trim().is_empty())
                {
                    return Ok(DeviceName::Wgpu(Some(adapter.to_owned())));
                }
                let number = name.strip_prefix("cuda:").ok_or_else(unknown)?;
                let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
                number.parse().ok().filter(|_| is_number).map(DeviceName::Cuda).ok_or_else(unknown)
            }
        }
    }
}

impl TryFrom<String> for DeviceName {
    type Error = String;

    fn try_from(name: String) -> std::result::Result<DeviceName, String> {
        name.parse()
    }
}

impl From<DeviceName> for String {
    fn from(name: DeviceName) -> String {
        name.to_string()
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceName::Auto => out.write_str("auto"),
            DeviceName::Cpu => out.write_str("cpu"),
            DeviceName::Cuda(number) => write!(out, "cuda:{number}"),
            DeviceName::Wgpu(None) => out.write_str("wgpu"),
            DeviceName::Wgpu(Some(adapter)) => write!(out, "wgpu:{adapter}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wgpu(adapter: &str) -> DeviceName {
        DeviceName::Wgpu(Some(adapter.to_owned()))
    }

    #[test]
    fn names_are_read_and_written() {
        for (name, device) in [
            ("auto", DeviceName::Auto),
            ("cpu", DeviceName::Cpu),
            ("cuda:0", DeviceName::Cuda(0)),
            ("cuda:12", DeviceName::Cuda(12)),
            ("wgpu", DeviceName::Wgpu(None)),
            ("wgpu:1", wgpu("1")),
            ("wgpu:Radeon RX", wgpu("Radeon RX")),
        ] {
            assert_eq!(name.parse(), Ok(device.clone()));
            assert_eq!(device.to_string(), name);
        }
        assert_eq!("cuda".parse(), Ok(DeviceName::Cuda(0)));
        for wrong in ["", "CPU", "cuda:", "cuda:-1", "cuda:+1", "cuda:99999999999", "gpu", "wgpu:", "wgpu: "]
        {
            assert!(wrong.parse::<DeviceName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_cannot_be_had_is_said() {
        assert_eq!(DeviceName::Cpu.select().unwrap(), Device::Cpu);
        for (name, said) in [
            (DeviceName::Cuda(4096), "--device cuda:4096: "),
            (wgpu("4096"), "--device wgpu:4096: "),
            (wgpu("no such GPU"), "--device wgpu:no such GPU: "),
        ] {
            assert!(name.check().is_err(), "{name}");
            let error = name.select().unwrap_err();
            assert!(error.to_string().starts_with(said), "{error}");
            assert_eq!((error.exit_code(), error.help().is_some()), (2, true));
        }
        let error = DeviceName::Wgpu(None).select_for_training().unwrap_err().to_string();
        assert!(error.starts_with("--device wgpu: ") && error.contains("--device cuda"), "{error}");
    }

    #[test]
    fn what_is_computed_in_depends_on_the_device() {
        assert_eq!(Device::Cpu.compute(Dtype::Bfloat16), DType::F32);
        assert_eq!(Device::Cuda(0).compute(Dtype::Bfloat16), DType::Bf16);
        assert_eq!(Device::Cuda(0).compute(Dtype::Float32), DType::F32);
        assert_eq!(Device::Wgpu(0).compute(Dtype::Bfloat16), DType::F16);
        assert_eq!(Device::Wgpu(0).compute(Dtype::Float32), DType::F32);
        let eight = Some(Bits::Eight);
        assert_eq!(Device::Wgpu(0).compute_with(None, eight), DType::F32);
        assert_eq!(Device::Wgpu(0).compute_with(Some(Dtype::Float16), eight), DType::F16);
        assert_eq!(Device::Wgpu(0).compute_with(None, None), DType::F16);
        assert_eq!((Device::Wgpu(0).blocks(eight), Device::Cpu.blocks(eight)), (eight, None));
    }
}
