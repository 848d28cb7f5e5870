// What the memory and decoding kernels share beyond common.cuh: elements by type, asynchronous copies, the tensor cores'
// product of 16 x 16 by 16 x 8, and an order on scores.
#pragma once

#include "common.cuh"

#define MINUS_INFINITY __int_as_float(0xff800000)
// A slot without a block.
#define NO_BLOCK 0xffffffffu
// Of exponentials that are taken to base 2.
#define LOG2_E 1.44269504088896341f

template <int TYPE> struct Element {
    typedef storage<TYPE> Bits;
    static __device__ __forceinline__ float load(Bits x) { return to_f32<TYPE>(x); }
    static __device__ __forceinline__ Bits store(float x) { return from_f32<TYPE>(x); }
};

// The two elements of a 16-bit type in one register.
template <int TYPE> __device__ __forceinline__ float low(u32 x) {
    if constexpr (TYPE == BF16) return __uint_as_float(x << 16);
    else return f16_to_f32(u16(x & 0xffff));
}
template <int TYPE> __device__ __forceinline__ float high(u32 x) {
    if constexpr (TYPE == BF16) return __uint_as_float(x & 0xffff0000u);
    else return f16_to_f32(u16(x >> 16));
}

// The elements of 16 bytes as floats.
template <int TYPE> __device__ __forceinline__ void unpack(const uint4 &x, float (&y)[wide<TYPE>]) {
    if constexpr (TYPE == F32) {
        y[0] = __uint_as_float(x.x), y[1] = __uint_as_float(x.y), y[2] = __uint_as_float(x.z), y[3] = __uint_as_float(x.w);
    } else {
        y[0] = low<TYPE>(x.x), y[1] = high<TYPE>(x.x), y[2] = low<TYPE>(x.y), y[3] = high<TYPE>(x.y);
        y[4] = low<TYPE>(x.z), y[5] = high<TYPE>(x.z), y[6] = low<TYPE>(x.w), y[7] = high<TYPE>(x.w);
    }
}

// c += a · b on the tensor cores; a (16, 16) by rows, b (16, 8) by columns, both 16-bit of the given type.
template <int TYPE>
__device__ __forceinline__ void mma_16816(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    if constexpr (TYPE == BF16)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
            "{%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
            "{%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Floats as integers of the same order; NaN comes last.
__device__ __forceinline__ u32 ordered(float x) {
    u32 bits = __float_as_uint(x);
    return x != x ? 0u : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The best entry of a warp: the largest score, of equals the lowest number.
__device__ __forceinline__ void best_of_warp(u32 score, u32 number, u32 &top, u32 &which) {
    top = __reduce_max_sync(0xffffffffu, score);
    which = __reduce_min_sync(0xffffffffu, score == top ? number : NO_BLOCK);
}

// ---- what a memory holds (MemoryShape::state in the core) ----

struct State {
    int seen, cached, unfinished, retrieved, old, oldest;
    // First slot behind the retrieved blocks: where the unfinished block stands, in blocks.
    int start;
};

// ORIGIN: 0 behind the blocks seen, 1 behind the blocks retrieved.
__device__ __forceinline__ State state_of(int length, int block, int blocks, int top_k, int origin) {
    State s;
    s.seen = length / block, s.unfinished = length % block;
    s.cached = min(s.seen, blocks), s.retrieved = min(top_k, s.cached);
    s.old = s.cached - s.retrieved, s.oldest = s.seen - s.cached;
    s.start = origin == 0 ? min(s.seen, top_k + 1) : s.retrieved + 1;
    return s;
}
