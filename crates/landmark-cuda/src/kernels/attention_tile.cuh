// What the forward and backward kernels for mma.sync share: how landmark blocks lie in a tile of keys, and copies.
//
// A tile of keys is TILE_BLOCKS whole landmark blocks, each padded to a multiple of 8 rows (BLOCK 51: one block in 56
// rows; BLOCK 64: one in 64; BLOCK 16: four in 64; BLOCK 3: eight in 64). Where a block ends is then known when the
// kernel is compiled, and a group of 8 columns belongs to one block. The phase of a row of the batch shifts its first
// tile to a negative key; rows beyond either end are zeros.
#pragma once

#include "mma.cuh"

#ifndef HEAD_DIM
#define HEAD_DIM 128
#endif
// Positions of a landmark block; 0: plain causal attention, in which every tile counts as one's own block.
#ifndef BLOCK
#define BLOCK 64
#endif

// One head of a tensor: element (b, row, h, d) lies at b * batch + row * row_stride + h * head + d.
struct View {
    const unsigned short* data;
    long long batch;
    int row;
    int head;
};

// How many copies a thread issues at a time. More hide more latency of the address arithmetic and cost registers, which
// the widest shapes do not have.
#ifndef COPY_UNROLL
#define COPY_UNROLL 1
#endif

constexpr int D = HEAD_DIM;
constexpr int PITCH = D + 8;  // elements from row to row in shared memory
constexpr int PADDED = BLOCK ? (BLOCK + 7) / 8 * 8 : 64;
constexpr int TILE_BLOCKS = PADDED >= 64 ? 1 : 64 / PADDED;
constexpr int TILE_KEYS = TILE_BLOCKS * PADDED;
// Keys from one tile to the next.
constexpr int TILE_SPAN = BLOCK ? TILE_BLOCKS * BLOCK : 64;
// Column of the landmark in the last 8 of its block; what follows is padding.
constexpr int LANDMARK = BLOCK ? (BLOCK - 1) % 8 : 8;

__device__ __forceinline__ const unsigned short* head_of(const View& x, int b, int h) {
    return x.data + b * x.batch + (long long)h * x.head;
}

// x, as something that the compiler does not know: what follows from it is computed again at each use instead of
// staying in registers that we do not have.
__device__ __forceinline__ int afresh(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

// Copies `ROWS` rows to shared address `to`, the row r of which is row `row(r)` of a head, or zeros where that is not
// in [0, limit).
template <int ROWS, int THREADS, class Row>
__device__ __forceinline__ void copy_rows(unsigned to, const unsigned short* head, int stride, int limit, Row row) {
    constexpr int CHUNKS = D / 8;
    const int thread = afresh(threadIdx.x);
#pragma unroll COPY_UNROLL
    for (int i = 0; i < (ROWS * CHUNKS + THREADS - 1) / THREADS; i++) {
        const int e = thread + i * THREADS, r = e / CHUNKS, c = e % CHUNKS;
        if (ROWS * CHUNKS % THREADS == 0 || e < ROWS * CHUNKS) {
            const int from = row(r);
            const bool valid = (unsigned)from < (unsigned)limit;
            copy_async(to + (r * PITCH + c * 8) * 2, head + (valid ? (long long)from * stride + c * 8 : 0), valid);
        }
    }
}

// Key in row r of the tile whose first key is `base`; -1 for padding (and for some keys before the first).
__device__ __forceinline__ int key_of(int base, int r) {
    if (BLOCK == 0 || PADDED == BLOCK) return base + r;
    const int block = r / PADDED, offset = r % PADDED;
    return offset < BLOCK ? base + block * BLOCK + offset : -1;
}
