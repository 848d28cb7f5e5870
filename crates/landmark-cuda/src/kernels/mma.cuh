// Tensor cores and asynchronous copies as every GPU from sm_80 has them: mma.sync, ldmatrix, cp.async.
//
// Fragments (PTX ISA, "Matrix Fragments for mma.m16n8k16"): lane = 4 g + t. An accumulator tile of 16 x 8 holds rows g
// (values 0, 1) and g + 8 (values 2, 3) at columns 2 t and 2 t + 1, so a row lies in the four lanes of a *quad*. Two
// accumulator tiles side by side, rounded to half precision, are the A operand of the next product: that is why neither
// P nor dS ever goes through shared memory.
//
// Tiles in shared memory have rows of D elements and 16 bytes of padding: a row is then an odd number of 16-byte
// units for every D that is a multiple of 16, and the 8 rows of a matrix that ldmatrix reads fall into different
// banks. A swizzle would save the padding, 6 % of the space for D 128, and cost an exclusive-or for each address.
#pragma once

#include "common.cuh"

// Half precision of the operands: 1 bf16, 2 f16.
#ifndef HALF_T
#define HALF_T 1
#endif

// Four 8 x 8 matrices; lane l names row l % 8 of matrix l / 8.
__device__ __forceinline__ void ldmatrix4(unsigned (&r)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ void ldmatrix4_transposed(unsigned (&r)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ void ldmatrix2(unsigned& r0, unsigned& r1, unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(r0), "=r"(r1) : "r"(address) : "memory");
}

// c += a b, k = 16.
__device__ __forceinline__ void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if HALF_T == 1
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#endif
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// c += a b, k = 8.
__device__ __forceinline__ void mma8(float (&c)[4], unsigned a0, unsigned a1, unsigned b0) {
#if HALF_T == 1
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
#else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
#endif
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(b0));
}

// Two values as a pair of halves, `low` in the lower 16 bits.
__device__ __forceinline__ unsigned pack(float low, float high) { return pack<HALF_T>(low, high); }
// The two halves of a pair.
__device__ __forceinline__ float2 unpack(unsigned x) {
#if HALF_T == 1
    return make_float2(__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u));
#else
    float2 y;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}" : "=f"(y.x), "=f"(y.y) : "r"(x));
    return y;
#endif
}

// 2 to the power of x, flushing what is too small.
__device__ __forceinline__ float power2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

#define INFINITE __int_as_float(0x7f800000)
