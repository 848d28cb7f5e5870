// Gradients of landmark attention on Hopper (sm_90a): what its two kernels share. The maths is in the spec, section 2, and at
// `LandmarkAttentionBackward` in landmark-core's ops/landmark_attention.rs.
//
// `queries` has a tile of queries and walks over the keys: scores s = q kᵀ and dP = dO vᵀ, the softmax of every (query,
// block) in registers, dq += ds k. For every (query, block) it leaves two numbers z and δ such that
//
//     P = exp2(s c - z),  ds = P (dP - δ),  c = log2(e) / sqrt(D)
//
// holds for the block's ordinary keys, whether the block is past (z = the inner normaliser less log2 of the landmark's weight,
// δ = Σ w dP) or the query's own (z = log2 of the outer sum, δ = Δ = dO · O). `keys` has a tile of keys and walks over the
// queries: with z and δ at hand it is the backward pass of plain attention, and its tiles need not know where blocks end,
// only which of these `statistics` each key reads. A landmark has P = 0 and ds = exp2(s c - lse) (δ - Δ).
//
// That is seven products a pair, where one kernel for all three gradients needs five. But in that kernel dq is a sum over
// thread blocks, in f32 in memory, and to give the same bits every time they would have to take turns; here P and ds feed the
// products from registers, no sum leaves a thread block, and both kernels have the shape that runs closest to the matrix units'
// rate. Also rejected: keeping P and ds for the second kernel (N² of memory traffic), and computing z and δ a second time
// (sums over a block run along registers in one kernel and across the warps of a warp group in the other).
//
// statistics: (batch and head, blocks + 1, panels, 2, ROWS) f32: a panel is ROWS queries; first z, then δ. In the place of one
// more block stand log2 of the outer sum and Δ. `panels` is even.
//
// -D: HEAD_DIM, a multiple of 16 up to 128, or 256; BLOCK, 8 to 128 (to 64 where HEAD_DIM is 256), 0: no landmarks, plain
// causal attention; HALF_F16.

#pragma once

#include "hopper.cuh"

constexpr float LOG2_E = 1.4426950408889634f;
#define INFINITE __uint_as_float(0x7f800000u)
constexpr u32 EVERY = 0xffffffff;

constexpr int ROWS = 64;                       // of a warp group's tile, and of every box but those of whole key tiles
constexpr int PANELS = (HEAD_DIM + 63) / 64;   // of 64 columns
constexpr int PANEL = ROWS * 128;              // bytes of ROWS rows of a panel
constexpr int STEPS = HEAD_DIM / 16;           // inner steps of a product over the head's columns
constexpr int WARP_GROUP = 128;
constexpr int DIVISOR = BLOCK ? BLOCK : 1;  // BLOCK where one divides by it

// Named barriers: 1 and 2 of one computing warp group each, 3 of both.
constexpr u32 BOTH_GROUPS = 3;

struct Dimensions {
    int queries, keys, heads, group;  // of the whole operation; `group` query heads share a key head
    int first_batch, first_head;      // of the slice that this launch is for
    int slice_heads;                  // query heads of the slice
    int blocks, panels;               // of the statistics
    float scale;                      // 1 / sqrt(D)
};

// Where the statistics of a block begin, counted from those of the slice's first head.
__device__ __forceinline__ u64 statistics_at(const Dimensions &d, int batch, int head, int block) {
    const u64 pair = static_cast<u64>(batch) * d.slice_heads + head;
    return (pair * (d.blocks + 1) + block) * d.panels * (2 * ROWS);
}

// A ring of stages in shared memory.
template <int STAGES> struct Ring {
    int stage = 0;
    u32 parity = 0;
    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

// result (ROWS, N) = left (ROWS, HEAD_DIM) right (N, HEAD_DIM)ᵀ, issued as one group. Panels are `left_panel` and `right_panel`
// bytes apart.
template <int N>
__device__ __forceinline__ void issue_scores(float (&result)[N / 2], u32 left, int left_panel, u32 right, int right_panel) {
    const u64 a = wgmma_operand(left), b = wgmma_operand(right);
    wgmma_fence();
    Wgmma<N>::template ss_first<0, 0>(result, a, b);
#pragma unroll
    for (int i = 1; i < STEPS; ++i)
        Wgmma<N>::template ss<0, 0>(result, wgmma_advance(a, i / 4 * left_panel + i % 4 * 32),
                                    wgmma_advance(b, i / 4 * right_panel + i % 4 * 32), 1);
    wgmma_commit();
}

// result (ROWS, N) += left (ROWS, INNER) right (INNER, N), `left` packed in registers; issued, the group left open.
template <int INNER, int N>
__device__ __forceinline__ void issue_sum(float (&result)[N / 2], const u32 (&left)[INNER / 4], u32 right, int right_panel) {
    const u64 b = wgmma_operand(right, right_panel);
#pragma unroll
    for (int i = 0; i < INNER / 16; ++i) Wgmma<N>::template rs<1>(result, left + 4 * i, wgmma_advance(b, i * 2048), 1);
}

// A warp group's results, scaled and rounded, to ROWS rows of panels in shared memory that nobody reads any more, and
// from there by the copy engine to columns `column` on of `map`. `barrier` is the warp group's own.
template <int N>
__device__ __forceinline__ void store_tile(const float (&values)[N / 2], float scale, u32 to, int panel, const TensorMap *map, int column,
                                           int head, int row, int batch, u32 barrier) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    const u32 at = to + (warp * 16 + lane % 16) * 128;
#pragma unroll
    for (int i = 0; i < N / 16; ++i) {
        const float *x = values + 8 * i;
        const u32 chunk = (2 * i % 8 + lane / 16) ^ (lane % 8);
        store_matrices(at + i / 4 * panel + chunk * 16, pack(x[0] * scale, x[1] * scale), pack(x[2] * scale, x[3] * scale),
                       pack(x[4] * scale, x[5] * scale), pack(x[6] * scale, x[7] * scale));
    }
    fence_async();
    barrier_sync(barrier, WARP_GROUP);
    if (threadIdx.x % WARP_GROUP == 0) {
#pragma unroll
        for (int p = 0; p < (N + 63) / 64; ++p) tma_store(map, to + p * panel, column + p * 64, head, row, batch);
        tma_store_commit();
    }
}
