// Stores a chunk's keys (without positions) and values in the rings of the landmark memory, and the keys of landmarks a
// second time, close together (spec section 4, op AppendKv): a copy, one thread an element.
//
// Of a chunk longer than the ring only the newest positions are stored, so that no two threads write one place.
//
// -D: X_T (k, v), RING_T (rings, landmarks), HEAD_DIM, BLOCK.
#include "element.cuh"

extern "C" __global__ void __launch_bounds__(256)
append_kv(const storage<X_T> *k, int k_stride, const storage<X_T> *v, int v_stride, const u32 *lengths, const u32 *counts,
          storage<RING_T> *keys, storage<RING_T> *values, storage<RING_T> *landmarks, int rows, int skip, int slots,
          int kv_heads) {
    wait_for_launch_ahead();
    let_launch_behind_begin();
    const int b = blockIdx.y, width = kv_heads * HEAD_DIM, count = min(int(counts[b]), rows - skip);
    const u32 length = lengths[b];
    for (i64 i = blockIdx.x * 256ll + threadIdx.x; i < (i64)count * width; i += gridDim.x * 256ll) {
        const int t = int(i / width), h = int(i % width) / HEAD_DIM, e = int(i % HEAD_DIM);
        if (count - t > slots * BLOCK) continue;
        const u32 position = length + t;
        const int slot = position / BLOCK % slots, o = position % BLOCK;
        const i64 row = (i64)b * rows + skip + t, page = ((i64)b * slots + slot) * kv_heads + h;
        const auto key = from_f32<RING_T>(to_f32<X_T>(k[row * k_stride + h * HEAD_DIM + e]));
        keys[(page * BLOCK + o) * HEAD_DIM + e] = key;
        values[(page * BLOCK + o) * HEAD_DIM + e] = from_f32<RING_T>(to_f32<X_T>(v[row * v_stride + h * HEAD_DIM + e]));
        if (o == BLOCK - 1) landmarks[(((i64)b * kv_heads + h) * slots + slot) * HEAD_DIM + e] = key;
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
