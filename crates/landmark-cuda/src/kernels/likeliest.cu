// The likeliest token of each row of logits (N, V): of equal ones the lowest, never `banned`; NO_TOKEN where a logit is no
// number or +inf, or nothing is left. One block a row: a vocabulary is a few hundred kilobytes.
#include "element.cuh"

#define THREADS 1024
#define WARPS (THREADS / 32)
#define NO_TOKEN 0xffffffffu

extern "C" __global__ void __launch_bounds__(THREADS)
likeliest(const float *logits, u32 *out, int vocabulary, u32 banned) {
    __shared__ u32 scores[WARPS], tokens[WARPS], broken[WARPS];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    wait_for_launch_ahead();
    const float *row = logits + (i64)blockIdx.x * vocabulary;
    u32 score = 0, token = NO_TOKEN;
    bool is_broken = false;
    auto take = [&](float x, int at) {
        is_broken = is_broken || x != x || x == -MINUS_INFINITY;
        // Zeros are equal, whatever their sign.
        u32 s = ordered(x + 0.0f);
        if (x != MINUS_INFINITY && u32(at) != banned && s > score) score = s, token = at;
    };
    if (vocabulary % 4 == 0) {
        const float4 *quads = reinterpret_cast<const float4 *>(row);
#pragma unroll 4
        for (int i = threadIdx.x; i < vocabulary / 4; i += THREADS) {
            float4 x = quads[i];
            take(x.x, 4 * i), take(x.y, 4 * i + 1), take(x.z, 4 * i + 2), take(x.w, 4 * i + 3);
        }
    } else {
#pragma unroll 8
        for (int i = threadIdx.x; i < vocabulary; i += THREADS) take(row[i], i);
    }
    u32 top, which;
    best_of_warp(score, token, top, which);
    u32 any = __ballot_sync(0xffffffffu, is_broken);
    if (lane == 0) scores[warp] = top, tokens[warp] = which, broken[warp] = any;
    __syncthreads();
    if (warp > 0) return;
    best_of_warp(scores[lane], tokens[lane], top, which);
    any = __ballot_sync(0xffffffffu, broken[lane] != 0);
    if (lane == 0) out[blockIdx.x] = any ? NO_TOKEN : which;
}
