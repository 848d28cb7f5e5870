//! Which device computes: `--device auto|cpu|cuda|cuda:N|wgpu`.
//!
//! The name is checked while the command line is parsed; whether the device can be had is asked when the
//! command starts. `auto` takes the best there is: an NVIDIA GPU if one can be used, else the CPU.
//!
//! `on_device!` is the one place where a backend is chosen. Everything behind it is generic.

use std::fmt;
use std::str::FromStr;

use landmark_core::DType;
use serde::{Deserialize, Serialize};

use crate::args::values::Dtype;
use crate::error::{Error, Result};

/// A device as the command line names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceName {
    /// The best there is.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU, by number.
    Cuda(u32),
    /// A GPU by way of Vulkan, Metal or WebGPU.
    Wgpu,
}

/// A device that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU, by number.
    Cuda(u32),
}

impl Device {
    /// What it computes in when asked for `dtype`: the CPU in float32 whatever is asked.
    pub fn compute(self, dtype: Dtype) -> DType {
        match (self, dtype) {
            (Device::Cpu, _) | (_, Dtype::Float32) => DType::F32,
            (_, Dtype::Bfloat16) => DType::Bf16,
            (_, Dtype::Float16) => DType::F16,
        }
    }
}

/// Runs an expression with a name bound to the backend of a device: `on_device!(device, |backend| work(backend))`.
macro_rules! on_device {
    ($device:expr, |$backend:ident| $work:expr) => {
        match $device {
            $crate::device::Device::Cpu => {
                let $backend = landmark_core::Cpu::<f32>::new();
                $work
            }
            $crate::device::Device::Cuda(number) => {
                let $backend = $crate::device::cuda(number)?;
                $work
            }
        }
    };
}
pub(crate) use on_device;

impl DeviceName {
    /// Whether a device that was named can be had, for commands that compute nothing, or not yet. `auto` always can, and
    /// no driver is woken to say so.
    ///
    /// # Errors
    /// As [`select`](Self::select).
    pub fn check(self) -> Result<()> {
        match self {
            DeviceName::Auto => Ok(()),
            named => named.select().map(|_| ()),
        }
    }

    /// The device of this name, if it can be had.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn select(self) -> Result<Device> {
        let missing = |reason: String| Error::Device { device: self.to_string(), reason };
        match self {
            DeviceName::Auto => {
                Ok(if cuda_devices().is_ok_and(|count| count > 0) { Device::Cuda(0) } else { Device::Cpu })
            }
            DeviceName::Cpu => Ok(Device::Cpu),
            DeviceName::Cuda(number) => match cuda_devices() {
                Ok(count) if (number as usize) < count => Ok(Device::Cuda(number)),
                Ok(count) => Err(missing(format!("there is no CUDA device {number}: {count} found"))),
                Err(error) => Err(missing(error.to_string())),
            },
            DeviceName::Wgpu => Err(missing("this build has no wgpu backend".to_owned())),
        }
    }
}

fn cuda_devices() -> landmark_core::Result<usize> {
    landmark_cuda::device_count()
}

/// Bytes of a GPU's memory that are in use.
pub fn memory_in_use(device: Device) -> Option<u64> {
    match device {
        Device::Cpu => None,
        Device::Cuda(number) => landmark_cuda::memory_in_use(number as usize).ok(),
    }
}

/// The backend of a CUDA device.
///
/// # Errors
/// A device that cannot be opened: too old, no compiler for kernels.
pub fn cuda(number: u32) -> Result<landmark_cuda::Cuda> {
    landmark_cuda::Cuda::new(number as usize).map_err(|error| Error::Device {
        device: DeviceName::Cuda(number).to_string(),
        reason: error.to_string(),
    })
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<DeviceName, String> {
        let unknown = || format!("there is no device {name:?}; give auto, cpu, cuda, cuda:N or wgpu");
        match name {
            "auto" => Ok(DeviceName::Auto),
            "cpu" => Ok(DeviceName::Cpu),
            "cuda" => Ok(DeviceName::Cuda(0)),
            "wgpu" => Ok(DeviceName::Wgpu),
            _ => {
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
            DeviceName::Wgpu => out.write_str("wgpu"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for (name, device) in [
            ("auto", DeviceName::Auto),
            ("cpu", DeviceName::Cpu),
            ("cuda:0", DeviceName::Cuda(0)),
            ("cuda:12", DeviceName::Cuda(12)),
            ("wgpu", DeviceName::Wgpu),
        ] {
            assert_eq!(name.parse(), Ok(device));
            assert_eq!(device.to_string(), name);
        }
        assert_eq!("cuda".parse(), Ok(DeviceName::Cuda(0)));
        for wrong in ["", "CPU", "cuda:", "cuda:-1", "cuda:+1", "cuda:99999999999", "gpu", "wgpu:0"] {
            assert!(wrong.parse::<DeviceName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_cannot_be_had_is_said() {
        assert_eq!(DeviceName::Cpu.select().unwrap(), Device::Cpu);
        for (name, said) in
            [(DeviceName::Cuda(4096), "--device cuda:4096: "), (DeviceName::Wgpu, "--device wgpu: ")]
        {
            assert!(name.check().is_err(), "{name}");
            let error = name.select().unwrap_err();
            assert!(error.to_string().starts_with(said), "{error}");
            assert_eq!((error.exit_code(), error.help().is_some()), (2, true));
        }
    }

    #[test]
    fn a_cpu_computes_in_float32() {
        assert_eq!(Device::Cpu.compute(Dtype::Bfloat16), DType::F32);
        assert_eq!(Device::Cuda(0).compute(Dtype::Bfloat16), DType::Bf16);
        assert_eq!(Device::Cuda(0).compute(Dtype::Float32), DType::F32);
    }
}
