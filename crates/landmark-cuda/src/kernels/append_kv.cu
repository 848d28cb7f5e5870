// Stores a chunk's keys (without positions) and values in the rings of the landmark memory, and the keys of landmarks a
// second time, close together (spec section 4, op AppendKv): a copy, one thread 16 bytes of a head where types and places
// allow it, one element elsewhere. Indices have 32 bits: divisions of 64 took longer than the copies.
//
// Of a chunk longer than the ring only the newest positions are stored, so that no two threads write one place.
//
// -D: X_T (k, v), RING_T (rings, landmarks), HEAD_DIM, BLOCK, WIDE (16 bytes at a time: one type, aligned heads).
#include "element.cuh"

#if WIDE
typedef uint4 From;
typedef uint4 To;
#define UNIT wide<X_T>
__device__ __forceinline__ To converted(const From &x) { return x; }
#else
typedef storage<X_T> From;
typedef storage<RING_T> To;
#define UNIT 1
__device__ __forceinline__ To converted(From x) { return from_f32<RING_T>(to_f32<X_T>(x)); }
#endif
// Units of a head.
#define UNITS (HEAD_DIM / UNIT)

// Strides in elements.
extern "C" __global__ void __launch_bounds__(256)
append_kv(const From *k, int k_stride, const From *v, int v_stride, const u32 *lengths, const u32 *counts, To *keys, To *values,
          To *landmarks, int rows, int skip, int slots, int kv_heads) {
    wait_for_launch_ahead();
    let_launch_behind_begin();
    const int b = blockIdx.y, width = kv_heads * UNITS, count = min(int(counts[b]), rows - skip);
    const u32 length = lengths[b];
    for (u32 i = blockIdx.x * 256 + threadIdx.x; i < u32(count * width); i += gridDim.x * 256) {
        const int t = i / width, h = i % width / UNITS, e = i % UNITS;
        if (count - t > slots * BLOCK) continue;
        const u32 position = length + t;
        const int slot = position / BLOCK % slots, o = position % BLOCK;
        const i64 row = (i64)b * rows + skip + t, page = ((i64)b * slots + slot) * kv_heads + h;
        const To key = converted(k[row * (k_stride / UNIT) + h * UNITS + e]);
        const To value = converted(v[row * (v_stride / UNIT) + h * UNITS + e]);
        keys[(page * BLOCK + o) * UNITS + e] = key;
        values[(page * BLOCK + o) * UNITS + e] = value;
        if (o == BLOCK - 1) landmarks[(((i64)b * kv_heads + h) * slots + slot) * UNITS + e] = key;
    }
}

// Forgets what the cache of pages (paging.rs) holds of the blocks that a chunk writes: another text stood there before.
// One block of threads for each query head of each row.
extern "C" __global__ void __launch_bounds__(256)
forget_pages(const u32 *lengths, const u32 *counts, u32 *tags, int heads, int ways) {
    wait_for_launch_ahead();
    let_launch_behind_begin();
    const int b = blockIdx.x / heads;
    const u32 length = lengths[b], first = length / BLOCK + 1, last = (length + max(counts[b], 1u) - 1) / BLOCK + 1;
    u32 *mine = tags + (i64)blockIdx.x * ways;
    for (int w = threadIdx.x; w < ways; w += 256)
        if (mine[w] >= first && mine[w] <= last) mine[w] = 0;
}
