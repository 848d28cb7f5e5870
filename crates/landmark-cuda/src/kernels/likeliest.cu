// The likeliest token of each row of logits (N, V): of equal ones the lowest, never `banned`; NO_TOKEN where a logit is no
// number or +inf, or nothing is left. A cluster takes a row, and its first block has the last word.
//
// -D: RANKS (blocks of a cluster).
#include "cluster.cuh"
#include "element.cuh"

#define THREADS 512
#define WARPS (THREADS / 32)
#define NO_TOKEN 0xffffffffu

extern "C" __global__ void __launch_bounds__(THREADS)
likeliest(const float *logits, u32 *out, int vocabulary, u32 banned) {
    __shared__ u32 scores[WARPS], tokens[WARPS], broken[WARPS];
    // Of each block the best, and whether it found something broken: (score, token), (broken, 0).
    __shared__ __align__(8) uint2 of_blocks[RANKS][2];
    const int rank = blockIdx.x % RANKS, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    cluster_arrive();
    wait_for_launch_ahead();
    let_launch_behind_begin();
    const float *row = logits + (i64)blockIdx.y * vocabulary;
    u32 score = 0, token = NO_TOKEN;
    bool is_broken = false;
    auto take = [&](float x, int at) {
        is_broken = is_broken || x != x || x == -MINUS_INFINITY;
        // Zeros are equal, whatever their sign.
        u32 s = ordered(x + 0.0f);
        if (x != MINUS_INFINITY && u32(at) != banned && s > score) score = s, token = at;
    };
    const int first = rank * THREADS + threadIdx.x;
    if (vocabulary % 4 == 0) {
        const float4 *quads = reinterpret_cast<const float4 *>(row);
#pragma unroll 4
        for (int i = first; i < vocabulary / 4; i += RANKS * THREADS) {
            float4 x = quads[i];
            take(x.x, 4 * i), take(x.y, 4 * i + 1), take(x.z, 4 * i + 2), take(x.w, 4 * i + 3);
        }
    } else {
#pragma unroll 8
        for (int i = first; i < vocabulary; i += RANKS * THREADS) take(row[i], i);
    }
    u32 top, which;
    best_of_warp(score, token, top, which);
    u32 any = __ballot_sync(0xffffffffu, is_broken);
    if (lane == 0) scores[warp] = top, tokens[warp] = which, broken[warp] = any;
    __syncthreads();
    cluster_wait(); // every block of the cluster runs: its shared memory may be written
    if (warp == 0) {
        const bool is_there = lane < WARPS;
        best_of_warp(is_there ? scores[lane] : 0, is_there ? tokens[lane] : NO_TOKEN, top, which);
        any = __ballot_sync(0xffffffffu, is_there && broken[lane] != 0);
        if (lane == 0) push(at_rank(&of_blocks[rank][0], 0), make_uint2(top, which));
        if (lane == 0) push(at_rank(&of_blocks[rank][1], 0), make_uint2(any, 0u));
    }
    __syncwarp();
    cluster_arrive();
    cluster_wait();
    if (rank != 0 || warp > 0) return;
    const bool is_there = lane < RANKS;
    best_of_warp(is_there ? of_blocks[lane][0].x : 0, is_there ? of_blocks[lane][0].y : NO_TOKEN, top, which);
    any = __ballot_sync(0xffffffffu, is_there && of_blocks[lane][1].x != 0);
    if (lane == 0) out[blockIdx.y] = any ? NO_TOKEN : which;
}
