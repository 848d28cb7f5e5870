// The choice of blocks (spec section 4, op SelectBlocks): the best k of a row of scores, in time order.
//
// `select_rows`, one warp a row, finds the k-th best by k passes over the row (each finds the best entry below the last
// one), then a pass in time order writes what is at least as good. Of equal blocks the older is better. Nothing is
// sorted, and any k will do.
//
// Where queries choose together, scores become probabilities first: `row_sums` finds the maximum and the sum of every
// row, `best_probabilities` the largest probability that any row of a group gives to each block; the groups' rows then
// go through `select_rows`, which writes the choice for every member.
//
// -D: TOGETHER (0 each token and head, 1 over heads, 2 over tokens), BLOCK, TOPK.
#include "element.cuh"

#define WARPS 4

// scores (B, H, T, blocks), or of groups: (B, T, blocks) over heads, (B, H, blocks) over tokens. chosen (B, H, T, k).
extern "C" __global__ void __launch_bounds__(WARPS * 32)
select_rows(const float *scores, const u32 *lengths, const u32 *counts, u32 *chosen, int batch, int heads, int queries,
            int blocks) {
    wait_for_launch_ahead();
    let_launch_behind_begin();
    const int lane = threadIdx.x % 32, per_row = TOGETHER == 0 ? heads * queries : TOGETHER == 1 ? queries : heads;
    const i64 row = (i64)blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= (i64)batch * per_row) return;
    const int b = int(row / per_row), in_row = int(row % per_row);
    const State now = state_of(lengths[b], BLOCK, blocks, TOPK, 0);
    const int count = min(int(counts[b]), queries);
    const float *s = scores + row * blocks;
    // Members: h from .. to, t from .. to.
    const int h0 = TOGETHER == 0 ? in_row / queries : TOGETHER == 1 ? 0 : in_row, h1 = TOGETHER == 1 ? heads : h0 + 1;
    const int t0 = TOGETHER == 0 ? in_row % queries : TOGETHER == 1 ? in_row : 0, t1 = TOGETHER == 2 ? queries : t0 + 1;
    u32 limit_top = 0, limit = NO_BLOCK;
    const bool is_real = TOGETHER == 2 || t0 < count;
    if (is_real)
        for (int i = 0; i < now.retrieved; i++) {
            u32 top = 0, best = NO_BLOCK;
            for (int j = lane; j < now.cached; j += 32) {
                const u32 x = ordered(s[j]);
                const bool below = i == 0 || x < limit_top || (x == limit_top && u32(j) > limit);
                if (below && (best == NO_BLOCK || x > top)) top = x, best = j;
            }
            best_of_warp(top, best, limit_top, limit);
        }
    auto put = [&](int at, u32 j) {
        for (int h = h0; h < h1; h++)
            for (int t = t0; t < t1; t++)
                chosen[((((i64)b * heads + h) * queries) + t) * TOPK + at] = t < count ? j : NO_BLOCK;
    };
    int found = 0;
    if (is_real && now.retrieved > 0)
        for (int from = 0; from < now.cached; from += 32) {
            const int j = from + lane;
            bool take = false;
            if (j < now.cached) {
                const u32 x = ordered(s[j]);
                take = x > limit_top || (x == limit_top && u32(j) <= limit);
            }
            const u32 takers = __ballot_sync(0xffffffffu, take);
            if (take) put(found + __popc(takers & ((1u << lane) - 1)), j);
            found += __popc(takers);
        }
    for (int at = found + lane; at < TOPK; at += 32) put(at, NO_BLOCK);
}

// sums (B · H · T): maximum, and one over the sum, of every row over the cached blocks.
extern "C" __global__ void __launch_bounds__(WARPS * 32)
row_sums(const float *scores, const u32 *lengths, float2 *sums, int batch, int rows, int blocks) {
    wait_for_launch_ahead();
    let_launch_behind_begin();
    const int lane = threadIdx.x % 32;
    const i64 row = (i64)blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= (i64)batch * rows) return;
    const State now = state_of(lengths[row / rows], BLOCK, blocks, TOPK, 0);
    const float *s = scores + row * blocks;
    float top = MINUS_INFINITY, sum = 0.0f;
    for (int j = lane; j < now.cached; j += 32) top = fmaxf(top, s[j]);
    top = warp_max(top);
    for (int j = lane; j < now.cached; j += 32) sum += expf(s[j] - top);
    sum = warp_sum(sum);
    if (lane == 0) sums[row] = make_float2(top, 1.0f / sum);
}

// best (groups, blocks).
extern "C" __global__ void __launch_bounds__(128)
best_probabilities(const float *scores, const float2 *sums, const u32 *lengths, const u32 *counts, float *best, int heads,
                   int queries, int blocks) {
    wait_for_launch_ahead();
    let_launch_behind_begin();
    const int per_row = TOGETHER == 1 ? queries : heads, b = blockIdx.y / per_row, group = blockIdx.y % per_row;
    const State now = state_of(lengths[b], BLOCK, blocks, TOPK, 0);
    const int j = blockIdx.x * 128 + threadIdx.x;
    if (j >= now.cached) return;
    const int members = TOGETHER == 1 ? heads : min(int(counts[b]), queries);
    float top = 0.0f;
    for (int i = 0; i < members; i++) {
        const i64 row = ((i64)b * heads + (TOGETHER == 1 ? i : group)) * queries + (TOGETHER == 1 ? group : i);
        const float2 sum = sums[row];
        top = fmaxf(top, expf(scores[row * blocks + j] - sum.x) * sum.y);
    }
    best[(i64)blockIdx.y * blocks + j] = top;
}
