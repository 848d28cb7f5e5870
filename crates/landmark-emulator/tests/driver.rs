//! The driver's functions in the order in which a backend calls them: memory, a module, a launch, a graph; and what they
//! say of what is wrong.
#![allow(unsafe_code)] // Calls as C makes them.

use landmark_emulator::driver::*;
use landmark_emulator::lt::*;
use landmark_emulator::status::code;
use std::ffi::{CStr, c_void};
use std::ptr::null_mut;

/// `x[i] += increment` for as many as there are threads.
const ADD: &CStr = c".version 8.0
.target sm_80
.address_size 64
.visible .entry add(.param .u64 x, .param .f32 increment)
{
    .reg .b32 %r<4>;
    .reg .f32 %f<4>;
    .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [x];
    ld.param.f32 %f1, [increment];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd1, %rd1, %rd2;
    ld.global.f32 %f2, [%rd1];
    add.f32 %f2, %f2, %f1;
    st.global.f32 [%rd1], %f2;
    ret;
}
";

/// `CUlaunchConfig`, as C lays it out.
#[repr(C)]
struct Config {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: *mut c_void,
    attributes: *const c_void,
    count: u32,
}

fn text(status: u32) -> String {
    let mut text = std::ptr::null();
    // SAFETY: a pointer to write.
    unsafe {
        assert_eq!(cuGetErrorString(status, &mut text), 0);
        CStr::from_ptr(text).to_string_lossy().into_owned()
    }
}

struct Kernel {
    module: *mut c_void,
    function: *mut c_void,
}

impl Kernel {
    fn new() -> Kernel {
        let (mut module, mut function) = (null_mut(), null_mut());
        // SAFETY: text that ends with a zero, a loaded module.
        unsafe {
            assert_eq!(cuModuleLoadData(&mut module, ADD.as_ptr().cast()), 0);
            assert_eq!(cuModuleGetFunction(&mut function, module, c"add".as_ptr()), 0);
        }
        Kernel { module, function }
    }

    fn launch(&self, threads: u32, mut x: u64, mut increment: f32, stream: *mut c_void) -> u32 {
        let mut parameters = [(&raw mut x).cast::<c_void>(), (&raw mut increment).cast()];
        let attributes = std::ptr::null();
        let config = Config { grid: [1; 3], block: [threads, 1, 1], shared: 0, stream, attributes, count: 0 };
        // SAFETY: two parameters of the kernel's types.
        unsafe {
            cuLaunchKernelEx((&raw const config).cast(), self.function, parameters.as_mut_ptr(), null_mut())
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // SAFETY: loaded, and its function is not used any more.
        unsafe { assert_eq!(cuModuleUnload(self.module), 0) };
    }
}

fn device_memory(bytes: usize) -> u64 {
    let mut address = 0;
    // SAFETY: a pointer to write.
    unsafe { assert_eq!(cuMemAlloc_v2(&mut address, bytes), 0) };
    address
}

fn upload(to: u64, values: &[f32], stream: *mut c_void) {
    // SAFETY: a slice of its length.
    let status =
        unsafe { cuMemcpyHtoDAsync_v2(to, values.as_ptr().cast(), size_of_val(values), stream.cast()) };
    assert_eq!(status, 0);
}

fn download(from: u64, count: usize) -> Vec<f32> {
    let mut values = vec![0.0_f32; count];
    // SAFETY: as many as there is room for.
    unsafe { assert_eq!(cuMemcpyDtoHAsync_v2(values.as_mut_ptr().cast(), from, 4 * count, null_mut()), 0) };
    values
}

#[test]
fn a_kernel_runs_at_once_and_as_a_graph() {
    let kernel = Kernel::new();
    let x = device_memory(16);
    let mut stream = null_mut();
    // SAFETY: a pointer to write.
    unsafe { assert_eq!(cuStreamCreate(&mut stream, 1), 0) };
    assert!(download(x, 4).iter().all(|x| x.is_nan()), "fresh memory holds no number");

    upload(x, &[1.0, 2.0, 3.0, 4.0], stream.cast());
    assert_eq!(kernel.launch(3, x, 0.5, stream.cast()), 0);
    assert_eq!(download(x, 4), [1.5, 2.5, 3.5, 4.0]);

    // SAFETY: handles that were made here, each destroyed once.
    unsafe {
        assert_eq!(cuStreamBeginCapture_v2(stream, 1), 0);
        assert_eq!(kernel.launch(4, x, 1.0, stream.cast()), 0);
        assert_eq!(kernel.launch(1, x, 10.0, stream.cast()), 0);
        assert_eq!(cuStreamSynchronize(stream), code::CAPTURE_UNSUPPORTED);
        let (mut graph, mut executable) = (null_mut(), null_mut());
        assert_eq!(cuStreamEndCapture(stream, &mut graph), 0);
        assert_eq!(cuGraphInstantiateWithFlags(&mut executable, graph, 0), 0);
        assert_eq!(cuGraphDestroy(graph), 0);
        assert_eq!(download(x, 4), [1.5, 2.5, 3.5, 4.0], "what is captured does not run");
        for _ in 0..2 {
            assert_eq!(cuGraphLaunch(executable, stream), 0);
        }
        assert_eq!(cuStreamSynchronize(stream), 0);
        assert_eq!(download(x, 4), [23.5, 4.5, 5.5, 6.0]);
        assert_eq!(cuGraphExecDestroy(executable), 0);
        assert_eq!(cuStreamDestroy_v2(stream), 0);
    }
    assert_eq!(cuMemFree_v2(x), 0);
    assert_eq!(cuMemFree_v2(x), code::INVALID_VALUE);
}

#[test]
fn an_error_names_the_kernel_the_line_and_the_thread() {
    let kernel = Kernel::new();
    let x = device_memory(16);
    upload(x, &[0.0; 4], null_mut());
    let status = kernel.launch(5, x, 1.0, null_mut());
    assert_eq!(status, code::LAUNCH_FAILED);
    let said = text(status);
    for part in ["kernel add", "line 14", "ld.global.f32", "thread [4, 0, 0]", "in no allocation"] {
        assert!(said.contains(part), "{part} in: {said}");
    }
    assert_eq!(kernel.launch(1025, x, 1.0, null_mut()), code::INVALID_VALUE);
    let mut function = null_mut();
    // SAFETY: a loaded module.
    let status = unsafe { cuModuleGetFunction(&mut function, kernel.module, c"subtract".as_ptr()) };
    assert_eq!(status, code::NOT_FOUND);
    assert!(text(status).contains("subtract"));
    let status = {
        let mut module = null_mut();
        // SAFETY: text that ends with a zero.
        unsafe { cuModuleLoadData(&mut module, c"\x7fELF".as_ptr().cast()) }
    };
    assert_eq!(status, code::INVALID_IMAGE);
    assert!(text(status).contains("LANDMARK_CUDA_IMAGE=ptx"));
    assert_eq!(cuMemFree_v2(x), 0);
}

/// One product of column-major matrices by the library's functions: [1 2; 3 4] [5; 6] + [100; 200].
fn product(types: [u32; 4], values: &[f32]) -> (u32, Vec<f32>) {
    let memory = device_memory(4 * 256);
    for (i, values) in [values, &[5.0, 6.0], &[100.0, 200.0]].iter().enumerate() {
        upload(memory + 256 * i as u64, values, null_mut());
    }
    let (mut handle, mut description, mut preference) = (null_mut(), null_mut(), null_mut());
    let mut layouts = [null_mut(); 4];
    let [one, mut count] = [1.0_f32.to_bits() as i32, 0];
    // SAFETY: everything is made here, described with its own sizes, and destroyed once.
    let status = unsafe {
        assert_eq!(cublasLtCreate(&mut handle), 0);
        assert_eq!(cublasLtMatmulDescCreate(&mut description, 68, 0), 0);
        for (layout, (dtype, shape)) in
            layouts.iter_mut().zip(types.into_iter().zip([(2, 2), (2, 1), (2, 1), (2, 1)]))
        {
            assert_eq!(cublasLtMatrixLayoutCreate(layout, dtype, shape.0, shape.1, 2), 0);
        }
        let [a, b, c, d] = layouts;
        let mut found = std::mem::zeroed();
        assert_eq!(cublasLtMatmulPreferenceCreate(&mut preference), 0);
        let chosen = cublasLtMatmulAlgoGetHeuristic(
            handle,
            description,
            a,
            b,
            c,
            d,
            preference,
            1,
            &mut found,
            &mut count,
        );
        let one = (&raw const one).cast::<c_void>();
        let at = |i: u64| (memory + 256 * i) as *mut c_void;
        let status = if chosen != 0 {
            chosen
        } else {
            let algorithm = (&raw const found).cast();
            cublasLtMatmul(
                handle,
                description,
                one,
                at(0),
                a,
                at(1),
                b,
                one,
                at(2),
                c,
                at(3),
                d,
                algorithm,
                null_mut(),
                0,
                null_mut(),
            )
        };
        assert_eq!(cublasLtMatmulPreferenceDestroy(preference), 0);
        for layout in layouts {
            assert_eq!(cublasLtMatrixLayoutDestroy(layout), 0);
        }
        assert_eq!(cublasLtMatmulDescDestroy(description) + cublasLtDestroy(handle), 0);
        status
    };
    let result = download(memory + 3 * 256, 2);
    assert_eq!(cuMemFree_v2(memory), 0);
    (status, result)
}

#[test]
fn a_product_is_computed_and_impossible_ones_are_refused() {
    assert_eq!(product([0; 4], &[1.0, 3.0, 2.0, 4.0]), (0, vec![117.0, 239.0]));
    let (mixed, untouched) = product([0, 14, 0, 0], &[1.0, 3.0, 2.0, 4.0]);
    assert!(mixed != 0 && untouched.iter().all(|x| x.is_nan()), "f32 times bf16");
}
