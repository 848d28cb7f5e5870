//! Which device computes: `--device auto|cpu|cuda|cuda:N|wgpu`.
//!
//! The name is checked while the command line is parsed; whether the device can be had is asked when the
//! command starts. `auto` takes the best there is, which in this build is the CPU.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

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
}

impl DeviceName {
    /// The device of this name, if this build has it.
    ///
    /// # Errors
    /// Says which backend is missing.
    pub fn select(self) -> Result<Device> {
        let missing = |backend: &str| Error::Device {
            device: self.to_string(),
            reason: format!("this build has no {backend} backend"),
        };
        match self {
            DeviceName::Auto | DeviceName::Cpu => Ok(Device::Cpu),
            DeviceName::Cuda(_) => Err(missing("CUDA")),
            DeviceName::Wgpu => Err(missing("wgpu")),
        }
    }
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
    fn only_the_cpu_can_be_had() {
        assert_eq!(DeviceName::Auto.select().unwrap(), Device::Cpu);
        let error = DeviceName::Cuda(1).select().unwrap_err();
        assert_eq!(error.to_string(), "--device cuda:1: this build has no CUDA backend");
        assert_eq!((error.exit_code(), error.help().is_some()), (2, true));
    }
}
