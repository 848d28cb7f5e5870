//! From a kernel file and its definitions to machine code.
//!
//! Every `.cu` file is one translation unit, compiled as often as there are sets of definitions in use: element types,
//! head width, block length are known to the compiler, and a kernel has no branch on them. CUBIN rather than PTX, so
//! that the driver compiles nothing and the cache on disk is all there is to wait for.

use crate::cache::{self, Cache};
use crate::nvrtc::{Compiled, Image, Nvrtc};
use landmark_core::{DType, Error, Result};
use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::sync::Mutex;

macro_rules! embedded {
    ($($name:literal),* $(,)?) => { [$(($name, include_str!(concat!("kernels/", $name)))),*] };
}

/// Headers that kernels include by name.
static HEADERS: &[(&str, &str)] = &embedded![
    "attention_tile.cuh",
    "cluster.cuh",
    "common.cuh",
    "element.cuh",
    "hopper.cuh",
    "landmark_attention_backward_hopper.cuh",
    "mma.cuh",
    "random.cuh",
    "rotary.cuh",
    "tiles.cuh",
];

/// Kernel files.
static SOURCES: &[(&str, &str)] = &embedded![
    "append_kv.cu",
    "apply_copies.cu",
    "copy.cu",
    "cross_entropy.cu",
    "dropout.cu",
    "elementwise.cu",
    "embed.cu",
    "landmark_attention_backward_keys_hopper.cu",
    "landmark_attention_backward_queries_hopper.cu",
    "landmark_attention_hopper.cu",
    "landmark_choice.cu",
    "landmark_scores.cu",
    "likeliest.cu",
    "matvec.cu",
    "norm.cu",
    "optimizer.cu",
    "retrieval_attention.cu",
    "retrieval_decode.cu",
    "retrieval_prefill.cu",
    "rope.cu",
    "select_blocks.cu",
    "sum_rows.cu",
    "landmark_attention.cu",
    "landmark_attention_any.cu",
    "landmark_attention_backward.cu",
];

/// What `-D` gives a kernel file, in alphabetical order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Defines(BTreeMap<&'static str, String>);

impl Defines {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// These and `name = value`.
    pub fn set(mut self, name: &'static str, value: impl Display) -> Self {
        self.0.insert(name, value.to_string());
        self
    }

    /// These and the code of an element type: see `common.cuh`.
    pub fn dtype(self, name: &'static str, dtype: DType) -> Self {
        self.set(name, type_code(dtype))
    }

    /// These and 0 or 1.
    pub fn flag(self, name: &'static str, value: bool) -> Self {
        self.set(name, u8::from(value))
    }
}

impl Display for Defines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each: Vec<String> = self.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
        f.write_str(&each.join(" "))
    }
}

/// The number by which kernels know an element type.
pub fn type_code(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => 0,
        DType::Bf16 => 1,
        DType::F16 => 2,
        DType::U32 => 3,
        DType::I32 => 4,
    }
}

/// What code is made for: compute capability, 80 for 8.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Arch(pub u32);

impl Arch {
    /// Whether the matrix units and copy engines of Hopper (wgmma, TMA) are there. They belong to 9.0 alone.
    pub fn is_hopper(self) -> bool {
        self.0 == 90
    }

    fn option(self, image: Image) -> String {
        let kind = if image == Image::Ptx { "compute" } else { "sm" };
        format!("--gpu-architecture={kind}_{}{}", self.0, if self.is_hopper() { "a" } else { "" })
    }
}

/// One kernel file with one set of definitions.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Variant {
    /// Name in `kernels/`.
    pub file: &'static str,
    /// Its definitions.
    pub defines: Defines,
    /// Whether it needs Hopper; else it is compiled for every architecture.
    pub hopper: bool,
}

impl Variant {
    /// One for every architecture.
    pub fn new(file: &'static str, defines: Defines) -> Self {
        Variant { file, defines, hopper: false }
    }

    /// One for Hopper alone.
    pub fn for_hopper(file: &'static str, defines: Defines) -> Self {
        Variant { file, defines, hopper: true }
    }
}

impl Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.file, self.defines)
    }
}

/// What the assembler says of one function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Its name.
    pub function: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of registers stored to memory for want of room, and loaded again.
    pub spilled: u32,
    /// Bytes of a thread's stack.
    pub stack: u32,
}

fn source_of(file: &str) -> Result<&'static str> {
    let found = SOURCES.iter().find(|(name, _)| *name == file);
    found.map(|(_, text)| *text).ok_or_else(|| Error::Device(format!("there is no kernel file {file}")))
}

/// What the driver is given: machine code, unless `LANDMARK_CUDA_IMAGE=ptx`, as for a device that is newer than NVRTC,
/// or none at all (`landmark-emulator`).
fn image() -> Image {
    let is_ptx = std::env::var_os("LANDMARK_CUDA_IMAGE").is_some_and(|v| v == "ptx");
    if is_ptx { Image::Ptx } else { Image::Cubin }
}

fn options(defines: &Defines, arch: Arch, image: Image) -> Vec<String> {
    let mut options = vec![arch.option(image), "--std=c++17".into(), "-default-device".into()];
    options.extend(defines.0.iter().map(|(name, value)| format!("-D{name}={value}")));
    options
}

fn run(nvrtc: &Nvrtc, file: &str, options: &[String], image: Image) -> Result<Compiled> {
    nvrtc.compile(file, source_of(file)?, HEADERS, options, image)
}

/// The machine code of a variant or its PTX, from the cache or made now.
///
/// # Errors
/// NVRTC is missing where the cache does not have it, or the source does not compile.
pub fn cubin(file: &str, defines: &Defines, arch: Arch, cache: &Cache) -> Result<Vec<u8>> {
    let nvrtc = Nvrtc::get()?;
    let image = image();
    let options = options(defines, arch, image);
    let (major, minor) = nvrtc.version();
    let version = format!("NVRTC {major}.{minor}");
    let mut parts = vec![version.as_bytes(), source_of(file)?.as_bytes()];
    parts.extend(HEADERS.iter().map(|(_, text)| text.as_bytes()));
    parts.extend(options.iter().map(|o| o.as_bytes()));
    let key = cache::key(parts);
    if let Some(found) = cache.get(&key) {
        return Ok(found);
    }
    let compiled = run(nvrtc, file, &options, image)?;
    cache.put(&key, &compiled.image);
    Ok(compiled.image)
}

/// Compiles many variants at once, on as many threads as the machine has processors. Results are in the order of
/// the question.
///
/// # Errors
/// The first failure.
pub(crate) fn cubins(wanted: &[(&'static str, Defines)], arch: Arch, cache: &Cache) -> Result<Vec<Vec<u8>>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(wanted.len());
    let next = Mutex::new(0..wanted.len());
    let take = || next.lock().map(|mut range| range.next()).unwrap_or(None);
    let work = || {
        let mut done = Vec::new();
        while let Some(i) = take() {
            done.push((i, cubin(wanted[i].0, &wanted[i].1, arch, cache)));
        }
        done
    };
    let mut done: Vec<(usize, Result<Vec<u8>>)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|w| w.join().unwrap_or_default()).collect()
    });
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, cubin)| cubin).collect()
}

/// Compiles a variant for `arch`, cache or not, and reports what its functions take.
///
/// # Errors
/// As [`cubin`].
pub fn report(variant: &Variant, arch: Arch) -> Result<Vec<Resources>> {
    let mut options = options(&variant.defines, arch, Image::Cubin);
    options.push("--ptxas-options=-v".into());
    Ok(parse_report(&run(Nvrtc::get()?, variant.file, &options, Image::Cubin)?.log))
}

/// Whether there is a compiler, and which: its path and version.
///
/// # Errors
/// There is none; the message says what to install.
pub fn compiler() -> Result<String> {
    let nvrtc = Nvrtc::get()?;
    let (major, minor) = nvrtc.version();
    Ok(format!("NVRTC {major}.{minor} ({})", nvrtc.path.display()))
}

/// The number before `unit` in a line such as `0 bytes stack frame, 0 bytes spill stores`.
fn number_before(line: &str, unit: &str) -> u32 {
    let before = line.find(unit).map_or("", |at| &line[..at]);
    before.split_whitespace().last().and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn parse_report(log: &str) -> Vec<Resources> {
    let mut found: Vec<Resources> = Vec::new();
    for line in log.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let function = rest.split('\'').next().unwrap_or_default().to_string();
            found.push(Resources { function, ..Resources::default() });
        } else if let Some(last) = found.last_mut() {
            if line.contains("bytes stack frame") {
                last.stack = number_before(line, " bytes stack frame");
                last.spilled =
                    number_before(line, " bytes spill stores") + number_before(line, " bytes spill loads");
            } else if line.contains("registers") {
                last.registers = number_before(line, " registers");
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_assemblers_report_is_understood() {
        let log = "ptxas info    : Compiling entry function 'forward' for 'sm_90a'\n\
                   ptxas info    : Function properties for forward\n    \
                   24 bytes stack frame, 16 bytes spill stores, 20 bytes spill loads\n\
                   ptxas info    : Used 168 registers, used 1 barriers, 24 bytes cumulative stack size\n";
        let forward = Resources { function: "forward".into(), registers: 168, spilled: 36, stack: 24 };
        assert_eq!(parse_report(log), vec![forward]);
    }

    #[test]
    fn definitions_are_in_one_order() {
        let one = Defines::new().set("B", 1).flag("A", true);
        let other = Defines::new().dtype("A", DType::Bf16).set("B", 1);
        assert_eq!(one, other);
        assert_eq!(one.to_string(), "A=1 B=1");
    }
}
