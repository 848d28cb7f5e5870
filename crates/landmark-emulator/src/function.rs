//! Modules, kernels and their launches: what the driver checks before a kernel runs.

use crate::machine::{self, Launch};
use crate::memory;
use crate::ptx;
use crate::status::{Failure, Outcome, code, failure};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

/// Compute capability of the emulated device, 90 for 9.0: `LANDMARK_EMULATED_CAPABILITY`, or 90.
pub fn capability() -> u32 {
    let given = std::env::var("LANDMARK_EMULATED_CAPABILITY").ok();
    given.and_then(|text| text.trim().parse().ok()).unwrap_or(90)
}

/// Bytes of shared memory that a block may have when it asks for them.
pub fn largest_shared() -> u32 {
    if capability() == 80 { 163 << 10 } else { 227 << 10 }
}

/// Bytes of shared memory of a multiprocessor.
pub fn shared_of_multiprocessor() -> u32 {
    largest_shared() + 1024
}

/// Bytes of shared memory that need no asking.
const UNASKED_SHARED: u32 = 48 << 10;

/// Reads a module.
///
/// # Errors
/// It is not PTX, or not for this device, or not understood.
pub fn load(image: &[u8]) -> Result<Arc<ptx::Module>, Failure> {
    if image.starts_with(b"\x7fELF") {
        let text = "machine code was given where the emulator runs PTX: set LANDMARK_CUDA_IMAGE=ptx";
        return Err(failure(code::INVALID_IMAGE, text));
    }
    let text =
        std::str::from_utf8(image).map_err(|_| failure(code::INVALID_IMAGE, "the image is not PTX"))?;
    let target = text.split(".target sm_").nth(1).unwrap_or_default();
    let digits: String = target.chars().take_while(char::is_ascii_digit).collect();
    let wanted: u32 = digits.parse().map_err(|_| failure(code::INVALID_PTX, "the PTX names no target"))?;
    let alone = target[digits.len()..].starts_with('a');
    let here = capability();
    if wanted > here || (alone && wanted != here) {
        let text = format!("PTX for sm_{wanted}{} on a device of {here}", if alone { "a" } else { "" });
        return Err(failure(code::NO_BINARY, text));
    }
    ptx::Module::parse(text).map(Arc::new).map_err(|text| failure(code::INVALID_PTX, text))
}

/// A kernel of a module.
#[derive(Debug)]
pub struct Function {
    module: Arc<ptx::Module>,
    name: String,
    /// Bytes of dynamic shared memory that were asked for.
    allowed: AtomicU32,
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks of a cluster.
    pub cluster: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

impl Function {
    /// The kernel of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn find(module: &Arc<ptx::Module>, name: &str) -> Result<Function, Failure> {
        if module.kernel(name).is_none() {
            return Err(failure(code::NOT_FOUND, format!("the module has no kernel `{name}`")));
        }
        Ok(Function { module: module.clone(), name: name.into(), allowed: AtomicU32::new(UNASKED_SHARED) })
    }

    /// The kernel.
    ///
    /// # Errors
    /// None, in effect: [`Function::find`] found it.
    pub fn kernel(&self) -> Result<&ptx::Kernel, Failure> {
        let missing = || failure(code::NOT_FOUND, format!("no kernel `{}`", self.name));
        self.module.kernel(&self.name).ok_or_else(missing)
    }

    /// Allows this many bytes of dynamic shared memory.
    ///
    /// # Errors
    /// More than there is.
    pub fn allow_shared(&self, bytes: u32) -> Outcome {
        let fixed = self.kernel()?.static_shared as u32;
        if bytes > largest_shared().saturating_sub(fixed) {
            let text = format!(
                "{bytes} bytes of shared memory and {fixed} fixed ones: {} is most",
                largest_shared()
            );
            return Err(failure(code::INVALID_VALUE, text));
        }
        self.allowed.store(bytes.max(UNASKED_SHARED), Ordering::Relaxed);
        Ok(())
    }

    /// Blocks that fit a multiprocessor, as far as shared memory and threads go: registers are not known from PTX.
    ///
    /// # Errors
    /// None, in effect.
    pub fn blocks_per_multiprocessor(&self, threads: u32, shared: u32) -> Result<u32, Failure> {
        let fixed = self.kernel()?.static_shared as u32;
        let by_memory = shared_of_multiprocessor() / (shared + fixed + 1024);
        Ok(by_memory.min(2048 / threads.max(1)).min(32))
    }

    fn refuse(&self, shape: &Shape) -> Outcome {
        let Shape { grid, block, cluster, shared } = *shape;
        let threads: u64 = block.iter().map(|&n| u64::from(n)).product();
        let refused =
            |why: &str| Err(failure(code::INVALID_VALUE, format!("{}: {why}: {shape:?}", self.name)));
        if grid.contains(&0) || grid[0] > i32::MAX as u32 || grid[1] > 65_535 || grid[2] > 65_535 {
            return refused("no such grid is possible");
        }
        if threads == 0 || threads > 1024 || block[2] > 64 {
            return refused("no such block is possible");
        }
        if grid.iter().zip(cluster).any(|(&blocks, size)| size == 0 || blocks % size != 0) {
            return refused("the grid is no whole number of clusters");
        }
        if cluster != [1; 3] && capability() < 90 {
            return refused("clusters came with 9.0");
        }
        let fixed = self.kernel()?.static_shared as u32;
        let allowed = self.allowed.load(Ordering::Relaxed);
        if shared > allowed || shared.saturating_add(fixed) > largest_shared() {
            return refused(&format!(
                "{shared} bytes of shared memory and {fixed} fixed ones, {allowed} allowed"
            ));
        }
        if allowed == UNASKED_SHARED && shared + fixed > UNASKED_SHARED {
            return refused("more than 48 KiB of shared memory must be asked for");
        }
        Ok(())
    }

    /// Checks a launch and makes it work to submit. `parameters` are the kernel's, laid out.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn prepare(
        &self,
        shape: Shape,
        parameters: Vec<u8>,
    ) -> Result<impl Fn() -> Outcome + Send + Sync + use<>, Failure> {
        self.refuse(&shape)?;
        let (module, name) = (self.module.clone(), self.name.clone());
        Ok(move || {
            let Some(kernel) = module.kernel(&name) else { return Ok(()) };
            let Shape { grid, block, cluster, shared } = shape;
            let parameters = &parameters;
            let launch = Launch { module: &module, kernel, grid, block, cluster, shared, parameters };
            let begun = Instant::now();
            let result = machine::run(&launch, &memory::snapshot());
            if std::env::var_os("LANDMARK_EMULATOR_TRACE").is_some() {
                let state = if result.is_ok() { "" } else { " failed" };
                eprintln!("{name} {grid:?} x {block:?}, {shared} bytes: {:.1?}{state}", begun.elapsed());
            }
            result.map_err(|text| failure(code::LAUNCH_FAILED, text))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = ".version 8.0\n.target sm_80\n.address_size 64\n\
                         .visible .entry nothing()\n{\n.shared .align 4 .b8 fixed[1024];\nret;\n}\n";

    #[test]
    fn what_the_driver_refuses_is_refused() {
        assert_eq!(load(b"\x7fELF...").map(|_| ()).unwrap_err().code, code::INVALID_IMAGE);
        assert_eq!(load(b"nothing").map(|_| ()).unwrap_err().code, code::INVALID_PTX);
        assert_eq!(load(b".target sm_100").map(|_| ()).unwrap_err().code, code::NO_BINARY);

        let module = load(EMPTY.as_bytes()).expect("a module");
        assert_eq!(Function::find(&module, "other").map(|_| ()).unwrap_err().code, code::NOT_FOUND);
        let function = Function::find(&module, "nothing").expect("a kernel");
        let shape = Shape { grid: [1; 3], block: [32, 1, 1], cluster: [1; 3], shared: 0 };
        let prepare = |shape| function.prepare(shape, Vec::new()).map(|_| ());
        assert!(prepare(shape).is_ok());
        assert!(prepare(Shape { grid: [0, 1, 1], ..shape }).is_err());
        assert!(prepare(Shape { grid: [1, 1 << 16, 1], ..shape }).is_err());
        assert!(prepare(Shape { block: [1025, 1, 1], ..shape }).is_err());
        assert!(prepare(Shape { cluster: [2, 1, 1], ..shape }).is_err());
        assert!(prepare(Shape { shared: 48 << 10, ..shape }).is_err());
        assert!(function.allow_shared(227 << 10).is_err());
        assert!(function.allow_shared(100 << 10).is_ok());
        assert!(prepare(Shape { shared: 100 << 10, ..shape }).is_ok());
    }
}
