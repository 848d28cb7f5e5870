//! NVRTC, the compiler for kernels, found at run time.
//!
//! Bound here rather than through cudarc, which looks for names only: people have the library in a Python package, in
//! a toolkit, or where `LANDMARK_NVRTC` says, and its absence is an error to explain and not a panic.
#![allow(unsafe_code)] // Calls of a C library; every pointer passed is to memory that outlives the call.

use landmark_core::{Error, Result};
use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

type Program = *mut c_void;
type Status = c_int;

/// The functions that are called.
#[derive(Debug)]
pub(crate) struct Nvrtc {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status,
    error: unsafe extern "C" fn(Status) -> *const c_char,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    destroy: unsafe extern "C" fn(*mut Program) -> Status,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    log: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    ptx_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    ptx: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    /// Where it was found, as the loader knows it.
    pub(crate) path: PathBuf,
    _libraries: Vec<Library>,
}

/// What a compilation is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Image {
    /// Machine code for one architecture.
    Cubin,
    /// The portable assembly that the driver compiles itself.
    Ptx,
}

/// What a compilation gives.
pub(crate) struct Compiled {
    /// Machine code, or PTX with a zero byte at its end.
    pub(crate) image: Vec<u8>,
    /// Warnings, and the report of the assembler where it was asked for.
    pub(crate) log: String,
}

/// Names and places to look at, best first.
fn candidates() -> Vec<PathBuf> {
    let names = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so", "nvrtc64_130_0.dll", "nvrtc64_120_0.dll"];
    let mut found = Vec::new();
    if let Some(given) = std::env::var_os("LANDMARK_NVRTC") {
        let given = PathBuf::from(given);
        if given.is_dir() {
            found.extend(names.iter().map(|name| given.join(name)));
        } else {
            found.push(given);
        }
    }
    found.extend(names.iter().map(PathBuf::from));
    let homes = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(std::env::var_os).map(PathBuf::from);
    for home in homes.chain([PathBuf::from("/usr/local/cuda")]) {
        found.extend(names.iter().map(|name| home.join("lib64").join(name)));
    }
    found
}

/// NVRTC opens its built-in functions by name, which finds them where they are loaded already: so they are loaded from
/// the folder of the library, if it was given with one.
fn companions(path: &Path) -> Vec<Library> {
    let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) else { return Vec::new() };
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    let is_one = |p: &PathBuf| {
        p.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libnvrtc-builtins.so."))
    };
    // SAFETY: as in `Nvrtc::load`.
    paths.filter(is_one).filter_map(|p| unsafe { Library::new(p) }.ok()).collect()
}

impl Nvrtc {
    /// The library, loaded once for the process.
    pub(crate) fn get() -> Result<&'static Nvrtc> {
        static LOADED: OnceLock<Option<Nvrtc>> = OnceLock::new();
        LOADED.get_or_init(|| candidates().into_iter().find_map(Nvrtc::load)).as_ref().ok_or_else(|| {
            Error::Device(
                "NVRTC, NVIDIA's run-time compiler, was not found (libnvrtc.so.13 or .12). Install it with `pip install \
                 nvidia-cuda-nvrtc` and set LANDMARK_NVRTC to the folder of libnvrtc.so.13 in that package, or with \
                 `apt install cuda-nvrtc-13-0` (cuda-nvrtc-12-x for a 12.x driver) from NVIDIA's repository"
                    .into(),
            )
        })
    }

    fn load(path: PathBuf) -> Option<Nvrtc> {
        // SAFETY: the library is NVIDIA's, its initialisers touch nothing of ours; the signatures are those of nvrtc.h.
        unsafe {
            let mut libraries = companions(&path);
            let library = Library::new(&path).ok()?;
            macro_rules! symbol {
                ($name:literal) => {
                    *library.get($name).ok()?
                };
            }
            let found = Nvrtc {
                version: symbol!(b"nvrtcVersion\0"),
                error: symbol!(b"nvrtcGetErrorString\0"),
                create: symbol!(b"nvrtcCreateProgram\0"),
                destroy: symbol!(b"nvrtcDestroyProgram\0"),
                compile: symbol!(b"nvrtcCompileProgram\0"),
                log_size: symbol!(b"nvrtcGetProgramLogSize\0"),
                log: symbol!(b"nvrtcGetProgramLog\0"),
                cubin_size: symbol!(b"nvrtcGetCUBINSize\0"),
                cubin: symbol!(b"nvrtcGetCUBIN\0"),
                ptx_size: symbol!(b"nvrtcGetPTXSize\0"),
                ptx: symbol!(b"nvrtcGetPTX\0"),
                path,
                _libraries: Vec::new(),
            };
            libraries.push(library);
            Some(Nvrtc { _libraries: libraries, ..found })
        }
    }

    /// Major and minor version.
    pub(crate) fn version(&self) -> (i32, i32) {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: two integers to write.
        unsafe { (self.version)(&mut major, &mut minor) };
        (major, minor)
    }

    /// Compiles `source` to `image`; `headers` are the names and texts that it may include.
    pub(crate) fn compile(
        &self,
        name: &str,
        source: &str,
        headers: &[(&str, &str)],
        options: &[String],
        image: Image,
    ) -> Result<Compiled> {
        let (size_of_image, get_image) = match image {
            Image::Cubin => (self.cubin_size, self.cubin),
            Image::Ptx => (self.ptx_size, self.ptx),
        };
        let c = |text: &str| CString::new(text).map_err(|_| Error::Device(format!("{name}: a zero byte")));
        let (source, file) = (c(source)?, c(name)?);
        let names: Vec<CString> = headers.iter().map(|(name, _)| c(name)).collect::<Result<_>>()?;
        let texts: Vec<CString> = headers.iter().map(|(_, text)| c(text)).collect::<Result<_>>()?;
        let options: Vec<CString> = options.iter().map(|o| c(o)).collect::<Result<_>>()?;
        let pointers = |list: &[CString]| list.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (names, texts, flags) = (pointers(&names), pointers(&texts), pointers(&options));
        let mut program: Program = std::ptr::null_mut();
        // SAFETY: all strings live until the program is destroyed; sizes are asked for before buffers are filled.
        unsafe {
            let status = (self.create)(
                &mut program,
                source.as_ptr(),
                file.as_ptr(),
                names.len() as c_int,
                texts.as_ptr(),
                names.as_ptr(),
            );
            self.check(status, name, "")?;
            let status = (self.compile)(program, flags.len() as c_int, flags.as_ptr());
            let mut size = 0;
            (self.log_size)(program, &mut size);
            let mut log = vec![0_u8; size.max(1)];
            (self.log)(program, log.as_mut_ptr().cast());
            let log = String::from_utf8_lossy(&log).trim_end_matches(['\0', '\n', ' ']).to_string();
            let result = self.check(status, name, &log).and_then(|()| {
                let mut size = 0;
                self.check(size_of_image(program, &mut size), name, "")?;
                let mut image = vec![0_u8; size];
                self.check(get_image(program, image.as_mut_ptr().cast()), name, "")?;
                Ok(Compiled { image, log })
            });
            (self.destroy)(&mut program);
            result
        }
    }

    fn check(&self, status: Status, name: &str, log: &str) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: NVRTC answers with a static string for every status.
        let text = unsafe { CStr::from_ptr((self.error)(status)) }.to_string_lossy().into_owned();
        Err(Error::Device(format!("NVRTC, compiling {name}: {text}\n{log}")))
    }
}
