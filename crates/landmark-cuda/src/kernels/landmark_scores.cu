// Scores of the landmarks of all kept blocks (spec section 4, op LandmarkScores), for any type, width and batch:
// out[b, h, t, j] = q[b, skip + t, h] · rope(landmark of cached block j) / sqrt(D).
//
// A thread takes one landmark and QUERIES queries, which lie in shared memory; it turns the landmark as it reads it. All
// old blocks share one position, whose angles lie in shared memory too; those of the last k blocks are computed.
// What is not there (j >= cached) is not written.
//
// -D: X_T (q, landmarks), HEAD_DIM, BLOCK, TOPK, STYLE.
#include "element.cuh"
#include "rotary.cuh"

#define THREADS 128
#define QUERIES 8

extern "C" __global__ void __launch_bounds__(THREADS, 4)
landmark_scores(const storage<X_T> *q, int q_stride, const storage<X_T> *landmarks, const u32 *lengths,
                const float *frequencies, float *out, int rows, int skip, int blocks, int heads, int kv_heads) {
    __shared__ float queries[QUERIES][HEAD_DIM];
    __shared__ Angle away[HEAD_DIM / 2];
    wait_for_launch_ahead();
    let_launch_behind_begin();
    const int b = blockIdx.z / heads, h = blockIdx.z % heads, hk = h / (heads / kv_heads), slots = blocks + 1;
    const int first = blockIdx.y * QUERIES, queries_all = rows - skip, count = min(QUERIES, queries_all - first);
    const State now = state_of(lengths[b], BLOCK, blocks, TOPK, 0);
    if (int(blockIdx.x) * THREADS >= now.cached) return;
    for (int i = threadIdx.x; i < QUERIES * HEAD_DIM; i += THREADS) {
        const int t = i / HEAD_DIM, e = i % HEAD_DIM;
        const i64 row = (i64)b * rows + skip + first + t;
        queries[t][e] = t < count ? to_f32<X_T>(q[row * q_stride + h * HEAD_DIM + e]) : 0.0f;
    }
    for (int i = threadIdx.x; i < HEAD_DIM / 2; i += THREADS) away[i] = angle_of(float(BLOCK - 1) * frequencies[i]);
    __syncthreads();
    const int j = blockIdx.x * THREADS + threadIdx.x;
    if (j >= now.cached) return;
    const int index = max(j + now.retrieved + 1 - now.cached, 0);
    const float position = float(index * BLOCK + BLOCK - 1);
    const storage<X_T> *key = landmarks + (((i64)b * kv_heads + hk) * slots + (now.oldest + j) % slots) * HEAD_DIM;
    float sum[QUERIES] = {};
    for (int i = 0; i < HEAD_DIM / 2; i++) {
        const int e = STYLE == 0 ? 2 * i : i, f = STYLE == 0 ? e + 1 : e + HEAD_DIM / 2;
        const Angle a = index == 0 ? away[i] : angle_of(position * frequencies[i]);
        const float x = to_f32<X_T>(key[e]), y = to_f32<X_T>(key[f]);
        const float turned_x = x * a.cos - y * a.sin, turned_y = y * a.cos + x * a.sin;
#pragma unroll
        for (int t = 0; t < QUERIES; t++) sum[t] = fmaf(queries[t][e], turned_x, fmaf(queries[t][f], turned_y, sum[t]));
    }
    const float scale = rsqrtf(float(HEAD_DIM));
#pragma unroll
    for (int t = 0; t < QUERIES; t++)
        if (t < count) out[(((i64)b * heads + h) * queries_all + first + t) * blocks + j] = sum[t] * scale;
}
