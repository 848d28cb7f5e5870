// The choice of blocks for a long chunk: scores of all landmarks on the tensor cores, the best k of every row kept in
// registers, no score stored (spec section 4; ops LandmarkScores and SelectBlocks, a choice for each token and head).
//
// `turn_landmarks` puts the positions on the landmarks first, in the order of time: one pass over what all queries of a
// chunk read. `landmark_choice` then is a product of 64 queries with 64 landmarks at a time. Each thread keeps a sorted
// list of its columns' best for its two rows; most scores fail the one comparison with the list's last. In the end
// the four threads of a row merge their lists. Of equal scores the older block is better.
//
// -D: X_T (bf16, f16), HEAD_DIM (a multiple of 32), BLOCK, TOPK, STYLE.
#include "tiles.cuh"

#define QUERIES 64
#define KEYS 64
#define THREADS 128
// Groups of 8 landmarks that are scored side by side.
#define AT_ONCE 4

typedef storage<X_T> Bits;

extern "C" __global__ void __launch_bounds__(256)
turn_landmarks(const Bits *landmarks, const u32 *lengths, const float *frequencies, Bits *turned, int blocks,
               int kv_heads) {
    wait_for_launch_ahead();
    let_launch_behind_begin();
    const int b = blockIdx.y / kv_heads, slots = blocks + 1;
    const State now = state_of(lengths[b], BLOCK, blocks, TOPK, 0);
    const int at = blockIdx.x * 256 + threadIdx.x, j = at / (HEAD_DIM / 2), pair = at % (HEAD_DIM / 2);
    if (j >= now.cached) return;
    const int index = max(j + now.retrieved + 1 - now.cached, 0);
    const Angle a = angle_of(float(index * BLOCK + BLOCK - 1) * frequencies[pair]);
    const Bits *key = landmarks + ((i64)blockIdx.y * slots + (now.oldest + j) % slots) * HEAD_DIM;
    Bits *to = turned + ((i64)blockIdx.y * blocks + j) * HEAD_DIM;
    const int e = STYLE == 0 ? 2 * pair : pair, f = STYLE == 0 ? e + 1 : e + HEAD_DIM / 2;
    const float x = to_f32<X_T>(key[e]), y = to_f32<X_T>(key[f]);
    to[e] = from_f32<X_T>(x * a.cos - y * a.sin);
    to[f] = from_f32<X_T>(y * a.cos + x * a.sin);
}

// A sorted list of the best entries.
struct Best {
    float score[TOPK];
    u32 number[TOPK];
    __device__ __forceinline__ void insert(float s, u32 j) {
        if (!(s > score[TOPK - 1])) return;
#pragma unroll
        for (int i = 0; i < TOPK; i++) {
            const bool here = s > score[i];
            const float old = score[i];
            const u32 number_here = number[i];
            score[i] = here ? s : old, number[i] = here ? j : number_here;
            s = here ? old : s, j = here ? number_here : j;
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 3)
landmark_choice(const Bits *q, int q_stride, const Bits *turned, const u32 *lengths, const u32 *counts, u32 *chosen,
                int rows, int skip, int blocks, int heads, int kv_heads) {
    extern __shared__ __align__(128) unsigned char shared[]; // (2, KEYS, K_STRIDE)
    const int h = blockIdx.y, b = blockIdx.z, hk = h / (heads / kv_heads), queries = rows - skip;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    wait_for_launch_ahead();
    let_launch_behind_begin();
    const State now = state_of(lengths[b], BLOCK, blocks, TOPK, 0);
    const int count = min(int(counts[b]), queries);
    const Bits *marks = turned + (i64)(b * kv_heads + hk) * blocks * HEAD_DIM;
    const int first = blockIdx.x * QUERIES + warp * 16;
    const int tiles = int(blockIdx.x) * QUERIES < count ? (now.cached + KEYS - 1) / KEYS : 0;
    auto copy_tile = [&](int tile) {
        if (tile < tiles)
            for (int i = threadIdx.x; i < KEYS * CHUNKS; i += THREADS) {
                const int key = i / CHUNKS, c = i % CHUNKS, j = tile * KEYS + key;
                copy_async(shared_address(shared + (tile & 1) * KEYS * K_STRIDE + key * K_STRIDE + c * 16),
                           marks + (i64)min(j, now.cached - 1) * HEAD_DIM + c * 8, j < now.cached);
            }
        commit_copies();
    };
    copy_tile(0);
    uint4 a[STEPS], a8[STEPS];
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        const int row = min(first + g, queries - 1), row8 = min(first + g + 8, queries - 1);
        const i64 column = h * HEAD_DIM + s * 32 + t * 8;
        a[s] = *reinterpret_cast<const uint4 *>(q + ((i64)b * rows + skip + row) * q_stride + column);
        a8[s] = *reinterpret_cast<const uint4 *>(q + ((i64)b * rows + skip + row8) * q_stride + column);
    }
    Best best[2];
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
        for (int i = 0; i < TOPK; i++) best[r].score[i] = MINUS_INFINITY, best[r].number[i] = NO_BLOCK;
#pragma unroll 1
    for (int tile = 0; tile < tiles; tile++) {
        wait_copies<0>();
        __syncthreads(); // the tile is there, and nobody reads the other buffer any more
        copy_tile(tile + 1);
        const unsigned char *keys = shared + (tile & 1) * KEYS * K_STRIDE;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n += AT_ONCE) {
            // Products that do not wait for each other, and nothing between them that the compiler must not move them past.
            float c[AT_ONCE][4] = {};
#pragma unroll
            for (int s = 0; s < STEPS; s++)
#pragma unroll
                for (int i = 0; i < AT_ONCE; i++) {
                    const uint4 k = fragment(keys, (n + i) * 8 + g, s, t);
                    mma_16816<X_T>(c[i], a[s].x, a8[s].x, a[s].y, a8[s].y, k.x, k.y);
                    mma_16816<X_T>(c[i], a[s].z, a8[s].z, a[s].w, a8[s].w, k.z, k.w);
                }
            const int j = tile * KEYS + n * 8 + 2 * t;
            float top[2] = {MINUS_INFINITY, MINUS_INFINITY};
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    if (j + i * 8 + e % 2 >= now.cached) c[i][e] = MINUS_INFINITY;
                    top[e / 2] = fmaxf(top[e / 2], c[i][e]);
                }
            // Few get past the last of the best.
#pragma unroll
            for (int r = 0; r < 2; r++)
                if (top[r] > best[r].score[TOPK - 1])
#pragma unroll
                    for (int i = 0; i < AT_ONCE; i++)
                        best[r].insert(c[i][2 * r], j + i * 8), best[r].insert(c[i][2 * r + 1], j + i * 8 + 1);
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        u32 found[TOPK];
#pragma unroll
        for (int i = 0; i < TOPK; i++) {
            float top = best[r].score[0];
            u32 which = best[r].number[0];
#pragma unroll
            for (int d = 1; d < 4; d *= 2) {
                const float other = __shfl_xor_sync(0xffffffffu, top, d);
                const u32 number = __shfl_xor_sync(0xffffffffu, which, d);
                if (other > top || (other == top && number < which)) top = other, which = number;
            }
            found[i] = which;
            if (best[r].number[0] == which) {
#pragma unroll
                for (int o = 0; o + 1 < TOPK; o++) best[r].score[o] = best[r].score[o + 1], best[r].number[o] = best[r].number[o + 1];
                best[r].score[TOPK - 1] = MINUS_INFINITY, best[r].number[TOPK - 1] = NO_BLOCK;
            }
        }
        const int row = first + g + r * 8;
        if (row >= queries || t != 0) continue;
        u32 *to = chosen + (((i64)b * heads + h) * queries + row) * TOPK;
#pragma unroll
        for (int i = 0; i < TOPK; i++) {
            int at = 0;
#pragma unroll
            for (int o = 0; o < TOPK; o++) at += found[o] < found[i] || (found[o] == found[i] && o < i);
            to[at] = row < count ? found[i] : NO_BLOCK;
        }
    }
}
