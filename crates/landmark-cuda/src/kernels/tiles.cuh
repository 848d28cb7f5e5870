// Tiles of keys, values and queries in shared memory for the prefill kernels, and their turns by rotary angles.
//
// Matrix fragments of Q and K are read 16 bytes at a time: inside 32 columns, K's and Q's columns are permuted alike, so that a
// thread's 8 contiguous elements are its part of two fragments. Rows are padded so that the 8 threads that are served
// together, 2 rows of 64 bytes, meet no bank twice. Values go through ldmatrix.trans, with the usual padding of 16 bytes.
#pragma once

#include "element.cuh"
#include "rotary.cuh"

// Bytes from row to row: of K and Q an odd multiple of 64 bytes, of V a multiple of 16 that is no multiple of 32.
#define ROW_BYTES (HEAD_DIM * 2)
#define K_STRIDE (ROW_BYTES % 128 == 64 ? ROW_BYTES : ROW_BYTES + 64)
#define V_STRIDE (ROW_BYTES + 16)
#define CHUNKS (HEAD_DIM / 8)
// Steps of 32 columns.
#define STEPS (HEAD_DIM / 32)

// Columns 8 c .. 8 c + 7 of a fragment's row, as thread t of a quad wants them in step s: c = 4 s + t.
__device__ __forceinline__ uint4 fragment(const unsigned char *tile, int row, int step, int t) {
    return *reinterpret_cast<const uint4 *>(tile + row * K_STRIDE + step * 64 + t * 16);
}

// s[row g / g + 8][8 keys] of a warp's 16 queries: a is rows g, b is rows g + 8.
template <int TYPE>
__device__ __forceinline__ void scores_of_8(float (&c)[4], const uint4 (&a)[STEPS], const uint4 (&b)[STEPS],
                                            const unsigned char *keys, int key, int t) {
    c[0] = c[1] = c[2] = c[3] = 0.0f;
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        const uint4 k = fragment(keys, key, s, t);
        mma_16816<TYPE>(c, a[s].x, b[s].x, a[s].y, b[s].y, k.x, k.y);
        mma_16816<TYPE>(c, a[s].z, b[s].z, a[s].w, b[s].w, k.z, k.w);
    }
}

// Four 8 x 8 matrices of V, transposed: keys of 16 rows from `row`, columns of 16 from `column`: the right factors of
// the two products of 8 columns.
__device__ __forceinline__ void values_of_16(u32 (&v)[4], const unsigned char *tile, int row, int column) {
    const int lane = threadIdx.x % 32;
    const u32 at = shared_address(tile + (row + lane % 16) * V_STRIDE + (column + lane / 16 * 8) * 2);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(at)
                 : "memory");
}

// Units into which the turn of a row falls, 8 columns and their 8 partners, or 8 columns that are 4 pairs; and pairs of a unit.
#define TURN_UNITS (STYLE == 0 ? CHUNKS : CHUNKS / 2)
#define TURN_PAIRS (STYLE == 0 ? 4 : 8)

// Cosine and sine of two pairs in each vector.
struct UnitAngles {
    float4 of[TURN_PAIRS / 2];
};

// Those of a unit, from a row of a table (HEAD_DIM / 2): cosine, sine.
__device__ __forceinline__ UnitAngles unit_angles(const float2 *row, int unit) {
    UnitAngles by;
#pragma unroll
    for (int i = 0; i < TURN_PAIRS / 2; i++) by.of[i] = reinterpret_cast<const float4 *>(row + unit * TURN_PAIRS)[i];
    return by;
}

// Turns a unit of a row, which may stay where it is.
template <int TYPE>
__device__ __forceinline__ void turn_unit(unsigned char *to, const unsigned char *row, int unit, const UnitAngles &by) {
    const uint4 x = *reinterpret_cast<const uint4 *>(row + unit * 16);
    u32 w[4] = {x.x, x.y, x.z, x.w};
    if constexpr (STYLE == 0) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float p = low<TYPE>(w[i]), q = high<TYPE>(w[i]);
            const float cos = i % 2 ? by.of[i / 2].z : by.of[i / 2].x, sin = i % 2 ? by.of[i / 2].w : by.of[i / 2].y;
            w[i] = pack<TYPE>(p * cos - q * sin, q * cos + p * sin);
        }
    } else {
        const uint4 y = *reinterpret_cast<const uint4 *>(row + unit * 16 + HEAD_DIM);
        u32 z[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float4 a = by.of[i];
            const float x0 = low<TYPE>(w[i]), x1 = high<TYPE>(w[i]), y0 = low<TYPE>(z[i]), y1 = high<TYPE>(z[i]);
            w[i] = pack<TYPE>(x0 * a.x - y0 * a.y, x1 * a.z - y1 * a.w);
            z[i] = pack<TYPE>(y0 * a.x + x0 * a.y, y1 * a.z + x1 * a.w);
        }
        *reinterpret_cast<uint4 *>(to + unit * 16 + HEAD_DIM) = make_uint4(z[0], z[1], z[2], z[3]);
    }
    *reinterpret_cast<uint4 *>(to + unit * 16) = make_uint4(w[0], w[1], w[2], w[3]);
}
