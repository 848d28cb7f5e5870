// What all kernels share: element types by number, conversions, vectors of 16 bytes, sums over warps and blocks.
//
// Users have NVRTC and no toolkit, so nothing of NVIDIA's headers is included; half types are their bits, converted by
// PTX. A file gets each operand's type by -D as a number: 0 f32, 1 bf16, 2 f16, 3 u32, 4 i32 (compile.rs, type_code).
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define F32 0
#define BF16 1
#define F16 2

#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
#ifndef NAN
#define NAN __int_as_float(0x7fffffff)
#endif

// A tensor map of the copy engine; taken as `const __grid_constant__ TensorMap`.
struct alignas(64) TensorMap {
    u64 opaque[16];
};

// ---- element types ----

template <int T> struct Storage { typedef float type; };
template <> struct Storage<BF16> { typedef u16 type; };
template <> struct Storage<F16> { typedef u16 type; };
template <int T> using storage = typename Storage<T>::type;

template <int T> constexpr int size_of = sizeof(storage<T>);
// Elements in 16 bytes.
template <int T> constexpr int wide = 16 / size_of<T>;

__device__ __forceinline__ float bf16_to_f32(u32 bits) { return __uint_as_float(bits << 16); }
__device__ __forceinline__ float f16_to_f32(u16 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}
// Rounds to nearest even.
__device__ __forceinline__ u16 f32_to_bf16(float x) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
__device__ __forceinline__ u16 f32_to_f16(float x) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
// Two at a time: `low` in the low half.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
    u32 bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}
__device__ __forceinline__ u32 pack_f16(float low, float high) {
    u32 bits;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}
template <int T> __device__ __forceinline__ u32 pack(float low, float high) {
    if constexpr (T == BF16) return pack_bf16(low, high);
    else return pack_f16(low, high);
}
template <int T> __device__ __forceinline__ float to_f32(storage<T> x) {
    if constexpr (T == F32) return x;
    else if constexpr (T == BF16) return bf16_to_f32(x);
    else return f16_to_f32(x);
}
template <int T> __device__ __forceinline__ storage<T> from_f32(float x) {
    if constexpr (T == F32) return x;
    else if constexpr (T == BF16) return f32_to_bf16(x);
    else return f32_to_f16(x);
}
// `x` as a tensor of type T would give it back.
template <int T> __device__ __forceinline__ float rounded(float x) { return to_f32<T>(from_f32<T>(x)); }

// ---- vectors ----

// N consecutive elements as floats, by loads of up to 16 bytes; the address is aligned to min(16, N elements).
template <int T, int N> __device__ __forceinline__ void load(float (&to)[N], const storage<T> *from) {
    if constexpr (T == F32) {
        if constexpr (N % 4 == 0) {
#pragma unroll
            for (int i = 0; i < N / 4; i++) {
                const float4 v = ((const float4 *)from)[i];
                to[4 * i] = v.x, to[4 * i + 1] = v.y, to[4 * i + 2] = v.z, to[4 * i + 3] = v.w;
            }
        } else {
#pragma unroll
            for (int i = 0; i < N; i++) to[i] = from[i];
        }
    } else if constexpr (N % 2 == 0) {
        u32 bits[N / 2];
        if constexpr (N % 8 == 0) {
#pragma unroll
            for (int i = 0; i < N / 8; i++) {
                const uint4 v = ((const uint4 *)from)[i];
                bits[4 * i] = v.x, bits[4 * i + 1] = v.y, bits[4 * i + 2] = v.z, bits[4 * i + 3] = v.w;
            }
        } else if constexpr (N % 4 == 0) {
#pragma unroll
            for (int i = 0; i < N / 4; i++) {
                const uint2 v = ((const uint2 *)from)[i];
                bits[2 * i] = v.x, bits[2 * i + 1] = v.y;
            }
        } else {
#pragma unroll
            for (int i = 0; i < N / 2; i++) bits[i] = ((const u32 *)from)[i];
        }
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            to[2 * i] = to_f32<T>((u16)(bits[i] & 0xffff));
            to[2 * i + 1] = to_f32<T>((u16)(bits[i] >> 16));
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) to[i] = to_f32<T>(from[i]);
    }
}

template <int T, int N> __device__ __forceinline__ void store(storage<T> *to, const float (&from)[N]) {
    if constexpr (T == F32) {
        if constexpr (N % 4 == 0) {
#pragma unroll
            for (int i = 0; i < N / 4; i++)
                ((float4 *)to)[i] = make_float4(from[4 * i], from[4 * i + 1], from[4 * i + 2], from[4 * i + 3]);
        } else {
#pragma unroll
            for (int i = 0; i < N; i++) to[i] = from[i];
        }
    } else if constexpr (N % 2 == 0) {
        u32 bits[N / 2];
#pragma unroll
        for (int i = 0; i < N / 2; i++) bits[i] = pack<T>(from[2 * i], from[2 * i + 1]);
        if constexpr (N % 8 == 0) {
#pragma unroll
            for (int i = 0; i < N / 8; i++)
                ((uint4 *)to)[i] = make_uint4(bits[4 * i], bits[4 * i + 1], bits[4 * i + 2], bits[4 * i + 3]);
        } else if constexpr (N % 4 == 0) {
#pragma unroll
            for (int i = 0; i < N / 4; i++) ((uint2 *)to)[i] = make_uint2(bits[2 * i], bits[2 * i + 1]);
        } else {
#pragma unroll
            for (int i = 0; i < N / 2; i++) ((u32 *)to)[i] = bits[i];
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) to[i] = from_f32<T>(from[i]);
    }
}

// ---- shared memory ----

// An address in the window of shared memory, as instructions on it want it.
__device__ __forceinline__ u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }

// Copies 16 bytes to shared memory without waiting; zeros where `valid` is not set (`from` is not read then).
__device__ __forceinline__ void copy_async(u32 to, const void *from, bool valid) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// ---- sums ----

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffff, x, d);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, d));
    return x;
}

// The sum over a block of THREADS threads, in every thread; always in the same order. `shared` holds THREADS / 32
// floats and may be used again after the next __syncthreads().
template <int THREADS> __device__ __forceinline__ float block_sum(float x, float *shared) {
    x = warp_sum(x);
    if constexpr (THREADS == 32) return x;
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < THREADS / 32; i++) sum += shared[i];
    return sum;
}

// ---- launches that overlap (sm_90 on) ----

// Waits until what the launch ahead wrote is visible: first thing in a kernel launched as dependent.
__device__ __forceinline__ void wait_for_launch_ahead() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Lets the launch behind begin.
__device__ __forceinline__ void let_launch_behind_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// Asks for `bytes` (a multiple of 16) from `from` on (16-byte aligned) to come into the second-level cache.
__device__ __forceinline__ void prefetch_bulk(const void *from, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
#endif
}

// ---- indices from tensors ----

// Where a bad index is reported: one word of pinned memory, the number of the check in the high half. Any of several
// bad indices will do.
__device__ __forceinline__ void report_index(u64 *status, u32 check, u32 index) {
    *(volatile u64 *)status = ((u64)check << 32) | index;
}
