// The choice of blocks for a long chunk: scores of all landmarks on the tensor cores, the best k of every row kept in
// registers, no score stored (spec section 4; ops LandmarkScores and SelectBlocks, a choice for each token and head).
//
// `turn_landmarks` puts the positions on the landmarks first, in the order of time: one pass over what all queries of a
// chunk read. All but the newest k landmarks have the same position, so a thread keeps its angles from one to the next.
//
// `landmark_choice` then is a product of 64 queries with 64 landmarks at a time. Each thread keeps a sorted
// list of its columns' best for its two rows. Threads of a warp that insert at different times wait for each other, and
// that was more than half of the time; so little as possible gets that far: a score must not only be above the last of
// the thread's own list but reach what k scores of the row are known to reach (`bar_of`), and the best of a thread's eight is
// taken out at a time, mostly once, instead of trying to insert all eight. In the end the four threads of a row merge their
// lists. Of equal scores the older block is better.
//
// -D: X_T (bf16, f16), HEAD_DIM (a multiple of 32), BLOCK, TOPK, STYLE.
#include "tiles.cuh"

#define QUERIES 64
#define KEYS 64
#define THREADS 128
// Groups of 8 landmarks that are scored side by side.
#define AT_ONCE 4
// Landmarks that a block of threads turns at a time.
#define TURNED_AT_ONCE (256 / TURN_UNITS)

typedef storage<X_T> Bits;

extern "C" __global__ void __launch_bounds__(256)
turn_landmarks(const Bits *landmarks, const u32 *lengths, const float *frequencies, Bits *turned, int blocks,
               int kv_heads) {
    wait_for_launch_ahead();
    let_launch_behind_begin();
    const int b = blockIdx.y / kv_heads, slots = blocks + 1, unit = threadIdx.x % TURN_UNITS;
    const State now = state_of(lengths[b], BLOCK, blocks, TOPK, 0);
    if (threadIdx.x >= TURNED_AT_ONCE * TURN_UNITS) return;
    UnitAngles by;
    int turned_to = -1;
#pragma unroll 2
    for (int j = blockIdx.x * TURNED_AT_ONCE + threadIdx.x / TURN_UNITS; j < now.cached; j += gridDim.x * TURNED_AT_ONCE) {
        const int index = max(j + now.retrieved + 1 - now.cached, 0);
        if (index != turned_to) {
            turned_to = index;
#pragma unroll
            for (int i = 0; i < TURN_PAIRS; i += 2) {
                const float *frequency = frequencies + unit * TURN_PAIRS + i;
                const float position = index * BLOCK + BLOCK - 1;
                const Angle a = angle_of(position * frequency[0]), c = angle_of(position * frequency[1]);
                by.of[i / 2] = make_float4(a.cos, a.sin, c.cos, c.sin);
            }
        }
        const Bits *key = landmarks + ((i64)blockIdx.y * slots + (now.oldest + j) % slots) * HEAD_DIM;
        Bits *to = turned + ((i64)blockIdx.y * blocks + j) * HEAD_DIM;
        turn_unit<X_T>(reinterpret_cast<unsigned char *>(to), reinterpret_cast<const unsigned char *>(key), unit, by);
    }
}

// A sorted list of the best entries.
struct Best {
    float score[TOPK];
    u32 number[TOPK];
    // `s` is above the last one.
    __device__ __forceinline__ void insert(float s, u32 j) {
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

// What at least k scores reach that the four threads of a row have in their lists: all of one list, half of each of two, a
// quarter of each of four. A score below it is not among the row's best.
__device__ __forceinline__ float bar_of(const Best &best) {
    auto other = [](float x, int d) { return __shfl_xor_sync(0xffffffffu, x, d); };
    float all = best.score[TOPK - 1], half = best.score[(TOPK + 1) / 2 - 1], quarter = best.score[(TOPK + 3) / 4 - 1];
    half = fminf(half, other(half, 1));
    quarter = fminf(quarter, other(quarter, 1));
    all = fmaxf(all, other(all, 1));
    all = fmaxf(all, half);
    all = fmaxf(all, other(all, 2));
    return fmaxf(all, fminf(quarter, other(quarter, 2)));
}

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
    float bar[2] = {MINUS_INFINITY, MINUS_INFINITY};
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
            if ((tile + 1) * KEYS > now.cached)
#pragma unroll
                for (int i = 0; i < AT_ONCE; i++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        if (j + i * 8 + e % 2 >= now.cached) c[i][e] = MINUS_INFINITY;
#pragma unroll
            for (int r = 0; r < 2; r++) {
                auto top_of = [&] {
                    float top = MINUS_INFINITY;
#pragma unroll
                    for (int i = 0; i < AT_ONCE; i++) top = fmaxf(top, fmaxf(c[i][2 * r], c[i][2 * r + 1]));
                    return top;
                };
#pragma unroll 1
                for (float top = top_of(); top > best[r].score[TOPK - 1] && top >= bar[r]; top = top_of()) {
                    // The first that is as large.
                    int which = 0;
                    bool found = false;
#pragma unroll
                    for (int i = 0; i < 2 * AT_ONCE; i++) {
                        float &score = c[i / 2][2 * r + i % 2];
                        const bool is_it = !found && score == top;
                        if (is_it) which = i / 2 * 8 + i % 2, score = MINUS_INFINITY;
                        found = found || is_it;
                    }
                    best[r].insert(top, j + which);
                }
            }
        }
        bar[0] = bar_of(best[0]), bar[1] = bar_of(best[1]);
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
