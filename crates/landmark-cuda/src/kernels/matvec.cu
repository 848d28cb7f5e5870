// Matrix products of a few rows: out[m, n] (=|+=) scale · sum_k x[m, k] w[n, k] + bias[n] for up to 8 rows of x.
//
// The weights are read once, and nothing else costs anything: so this is a stream of the weights at the memory's speed.
// Rows of the product are cut evenly among the blocks of a grid of one block a multiprocessor. In a block, the warps
// cut K among themselves: each streams 16 rows of its part of K at a time through a ring of its own in shared memory
// (cp.async, read by the thread that copied it: no synchronisation), and multiplies on the tensor cores, with x as the
// 8 columns of the right factor; partial sums meet in shared memory in the order of the warps, so results repeat.
// K is permuted inside 32 columns, for both factors alike, so that a thread's 16 contiguous bytes of a row are its part
// of two matrix fragments.
//
// Since the weights do not depend on the kernel before, the rings are filled before waiting for it: so two blocks have to
// fit a multiprocessor, in registers too.
//
// Several matrices that multiply one x go in one launch (q, k, v). With -DSWIGLU, w0 and w1 are the gate and the
// inner matrix of an MLP, and out = silu(x w0ᵀ) · (x w1ᵀ). With -DGELU, out = gelu(..).
// With -DNORM, x is made here: x[m] = norm(stream[m] + delta[m]), and stream + delta is stored once, by block 0.
//
// `behind` are the weights of the product behind this one, if they fit the second-level cache: a launch that begins long before
// its turn asks for them too, since the next one finds room on the multiprocessors only when this one begins to work.
//
// Rejected: one warp a row on CUDA cores. It is as fast for one row of x, but 8 rows of x are 8 times the arithmetic.
// Asking for what lies behind the rings to come into the second-level cache, too, while the kernel before ends: 160 KiB a
// block made a token of LLaMA 7B 5 % slower, 64 KiB 1 %.
//
// -D: W_T, M (rows of x), SEGMENTS (1..3), OUT_T, BIAS_T (-1: none), ADD, SWIGLU, GELU, NORM (0, 1 rms, 2 layer),
//     DELTA_T, NORM_T, WARPS, DEPTH, HELD (elements of a row of x that a thread keeps while it norms; 0: too many).
#include "element.cuh"

#ifndef SEGMENTS
#define SEGMENTS 1
#endif
#ifndef BIAS_T
#define BIAS_T -1
#endif
#ifndef ADD
#define ADD 0
#endif
#ifndef SWIGLU
#define SWIGLU 0
#endif
#ifndef GELU
#define GELU 0
#endif
#ifndef NORM
#define NORM 0
#endif
#ifndef DELTA_T
#define DELTA_T W_T
#endif
#ifndef NORM_T
#define NORM_T 0
#endif
#ifndef WARPS
#define WARPS 16
#endif
#ifndef DEPTH
#define DEPTH 6
#endif
#ifndef HELD
#define HELD 0
#endif

#define THREADS (WARPS * 32)
// Rows of the product that one 16-row fragment gives.
#define TILE (SWIGLU ? 8 : 16)
// Fragments between two meetings of the warps.
#define GROUP (M >= 8 ? 1 : 8 / M)
#define PARTIAL (WARPS * 16 * M)

typedef Element<W_T>::Bits Weight;

struct Segment {
    const Weight *weight;
    void *out;
    const void *bias;
    int rows;
};

__device__ __forceinline__ float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }

#if NORM
// Sum over the block, in a fixed order; `room` holds a float for each warp.
__device__ __forceinline__ float sum_of_block(float x, float *room) {
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
    __syncthreads();
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < WARPS; i++) total += room[i];
    return total;
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 2)
matvec(const Weight *w0, void *out0, const void *bias0, int rows0, const Weight *w1, void *out1, const void *bias1,
       int rows1, const Weight *w2, void *out2, const void *bias2, int rows2, const Weight *x, int k, float scale,
       const float *stream, const void *delta, const void *norm_weight, const void *norm_bias, float *sum_out,
       Weight *norm_out, float eps, const unsigned char *behind, u32 behind_bytes) {
    const Segment s0 = {w0, out0, bias0, rows0}, s1 = {w1, out1, bias1, rows1}, s2 = {w2, out2, bias2, rows2};
    extern __shared__ __align__(128) unsigned char shared[];
    // Ring of every warp: DEPTH steps of two halves of 32 x 16 bytes.
    unsigned char *ring = shared + (threadIdx.x / 32) * DEPTH * 1024;
    float *partial = reinterpret_cast<float *>(shared + WARPS * DEPTH * 1024); // (2, GROUP, WARPS, 16, M)
    Weight *xs = reinterpret_cast<Weight *>(partial + 2 * GROUP * PARTIAL);     // (M, k + 32)
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int xstride = k + 32;

    let_launch_behind_begin();

    const int rows = SWIGLU ? s0.rows : s0.rows + (SEGMENTS > 1 ? s1.rows : 0) + (SEGMENTS > 2 ? s2.rows : 0);
    // 32 bits do: a matrix of 2^31 / 1024 rows has more bytes than any GPU.
    const int first = u32(rows) * blockIdx.x / gridDim.x;
    const int last = u32(rows) * (blockIdx.x + 1) / gridDim.x;
    const int tiles = (last - first + TILE - 1) / TILE;
    const int steps = k / 32, begin = steps * warp / WARPS, count = steps * (warp + 1) / WARPS - begin;
    const int total = tiles * count;

    auto row_of = [&](int row) -> const Weight * {
        if (SEGMENTS > 1 && row >= s0.rows) {
            row -= s0.rows;
            if (SEGMENTS > 2 && row >= s1.rows) return s2.weight + (long long)(row - s1.rows) * k;
            return s1.weight + (long long)row * k;
        }
        return s0.weight + (long long)row * k;
    };
    // The copies: what comes next, and where.
    int next = 0, next_tile = 0, next_step = 0;
    const Weight *from[2] = {s0.weight, s0.weight};
    bool valid[2] = {false, false};
    auto copy_next = [&]() {
        if (next < total) {
            if (next_step == 0) {
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    int row = first + next_tile * TILE + (SWIGLU ? 0 : half * 8) + g;
                    valid[half] = row < last;
                    const Weight *start = SWIGLU ? (half ? s1.weight : s0.weight) + (long long)row * k : row_of(row);
                    from[half] = valid[half] ? start + begin * 32 + t * 8 : s0.weight;
                }
            }
            unsigned to = shared_address(ring) + (next % DEPTH) * 1024 + lane * 16;
            copy_async(to, from[0] + (valid[0] ? next_step * 32 : 0), valid[0]);
            copy_async(to + 512, from[1] + (valid[1] ? next_step * 32 : 0), valid[1]);
            next++;
            if (++next_step == count) next_step = 0, next_tile++;
        }
        commit_copies();
    };
    // Rolled up, as all that runs once: the kernels of a step together have to fit the caches of instructions.
#pragma unroll 1
    for (int i = 0; i < DEPTH; i++) copy_next();
    if (threadIdx.x == 0 && behind) {
        const u32 each = (behind_bytes / gridDim.x + 15) / 16 * 16, from = min(blockIdx.x * each, behind_bytes);
        if (from < behind_bytes) prefetch_bulk(behind + from, min(each, behind_bytes - from));
    }
#if NORM && HELD > 0
    // The norm's weights are known before the kernel ahead is done, too.
    float held_weight[HELD], held_bias[HELD];
#pragma unroll
    for (int j = 0; j < HELD; j++) {
        int i = j * THREADS + threadIdx.x;
        held_weight[j] = held_bias[j] = 0.0f;
        if (i >= k) continue;
        held_weight[j] = Element<NORM_T>::load(reinterpret_cast<const Element<NORM_T>::Bits *>(norm_weight)[i]);
        if (NORM == 2 && norm_bias) held_bias[j] = Element<NORM_T>::load(reinterpret_cast<const Element<NORM_T>::Bits *>(norm_bias)[i]);
    }
#endif

    wait_for_launch_ahead();

#if NORM
    __shared__ float room[WARPS];
    __shared__ float2 moments[WARPS];
#pragma unroll 1
    for (int m = 0; m < M; m++) {
        float total_sum = 0.0f, total_square = 0.0f;
        const float *srow = stream + (long long)m * k;
        const Element<DELTA_T>::Bits *drow = reinterpret_cast<const Element<DELTA_T>::Bits *>(delta) + (long long)m * k;
        auto value = [&](int i) { return srow[i] + (delta ? Element<DELTA_T>::load(drow[i]) : 0.0f); };
#if HELD > 0
        float held[HELD];
#pragma unroll
        for (int j = 0; j < HELD; j++) {
            int i = j * THREADS + threadIdx.x;
            held[j] = i < k ? value(i) : 0.0f;
        }
#pragma unroll
        for (int j = 0; j < HELD; j++) total_sum += held[j], total_square += held[j] * held[j];
        float mean = 0.0f, square;
        if (NORM == 2 && k == HELD * THREADS) {
            // Every thread has as many: means and squares about them of the warps are joined in one meeting.
            const float own = warp_sum(total_sum) / (32 * HELD);
            float d = 0.0f;
#pragma unroll
            for (int j = 0; j < HELD; j++) d += (held[j] - own) * (held[j] - own);
            d = warp_sum(d);
            if (m > 0) __syncthreads();
            if (lane == 0) moments[warp] = make_float2(own, d);
            __syncthreads();
#pragma unroll
            for (int i = 0; i < WARPS; i++) mean += moments[i].x * (1.0f / WARPS);
            square = 0.0f;
#pragma unroll
            for (int i = 0; i < WARPS; i++) {
                const float2 x = moments[i];
                square += x.y + 32 * HELD * (x.x - mean) * (x.x - mean);
            }
            square /= k;
        } else if (NORM == 2) {
            mean = sum_of_block(total_sum, room) / k;
            float d = 0.0f;
#pragma unroll
            for (int j = 0; j < HELD; j++)
                if (j * THREADS + threadIdx.x < k) d += (held[j] - mean) * (held[j] - mean);
            square = sum_of_block(d, room) / k;
        } else {
            square = sum_of_block(total_square, room) / k;
        }
        const float factor = rsqrtf(square + eps);
#pragma unroll
        for (int j = 0; j < HELD; j++) {
            int i = j * THREADS + threadIdx.x;
            if (i >= k) continue;
            Weight y = Element<W_T>::store((held[j] - mean) * factor * held_weight[j] + held_bias[j]);
            xs[m * xstride + i] = y;
            if (sum_out && blockIdx.x == 0) sum_out[(long long)m * k + i] = held[j];
            if (norm_out && blockIdx.x == 0) norm_out[(long long)m * k + i] = y;
        }
#else
        // Too long a row to keep: it is read again.
        for (int i = threadIdx.x; i < k; i += THREADS) {
            float v = value(i);
            total_sum += v;
            total_square += v * v;
            if (sum_out && blockIdx.x == 0) sum_out[(long long)m * k + i] = v;
        }
        float mean = 0.0f, square;
        if (NORM == 2) {
            mean = sum_of_block(total_sum, room) / k;
            float d = 0.0f;
            for (int i = threadIdx.x; i < k; i += THREADS) {
                float v = value(i) - mean;
                d += v * v;
            }
            square = sum_of_block(d, room) / k;
        } else {
            square = sum_of_block(total_square, room) / k;
        }
        float factor = rsqrtf(square + eps);
        for (int i = threadIdx.x; i < k; i += THREADS) {
            float w = Element<NORM_T>::load(reinterpret_cast<const Element<NORM_T>::Bits *>(norm_weight)[i]);
            float b = norm_bias ? Element<NORM_T>::load(reinterpret_cast<const Element<NORM_T>::Bits *>(norm_bias)[i]) : 0.0f;
            Weight y = Element<W_T>::store((value(i) - mean) * factor * w + b);
            xs[m * xstride + i] = y;
            if (norm_out && blockIdx.x == 0) norm_out[(long long)m * k + i] = y;
        }
#endif
    }
    __syncthreads();
#else
    // A warp needs x only where its part of K is.
    for (int i = lane; i < M * count * 4; i += 32) {
        int m = i / (count * 4), at = begin * 32 + (i - m * count * 4) * 8;
        *reinterpret_cast<uint4 *>(xs + m * xstride + at) = *reinterpret_cast<const uint4 *>(x + (long long)m * k + at);
    }
    __syncwarp();
#endif

    auto finish = [&](int group, int fragments) {
        // Adds what the warps have of the last `fragments` fragments and stores the results.
        __syncthreads();
        const float *from = partial + (group & 1) * GROUP * PARTIAL;
        for (int i = threadIdx.x; i < fragments * TILE * M; i += THREADS) {
            int fragment = i / (TILE * M), r = i / M % TILE, m = i % M;
            int row = first + (group * GROUP + fragment) * TILE + r;
            float sum = 0.0f, inner = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                const float *p = from + (fragment * WARPS + w) * 16 * M;
                sum += p[r * M + m];
                if (SWIGLU) inner += p[(r + 8) * M + m];
            }
            if (row >= last) continue;
            Segment s = s0;
            if (!SWIGLU && SEGMENTS > 1 && row >= s0.rows) {
                row -= s0.rows, s = s1;
                if (SEGMENTS > 2 && row >= s1.rows) row -= s1.rows, s = s2;
            }
            typedef Element<OUT_T> Out;
            Out::Bits *out = reinterpret_cast<Out::Bits *>(s.out) + (long long)m * s.rows + row;
            float y = sum * scale;
            if (SWIGLU) {
                // The two products are rounded as they would be between kernels.
                float a = Out::load(Out::store(sum)), b = Out::load(Out::store(inner));
                y = a / (1.0f + expf(-a)) * b;
            }
            if (BIAS_T >= 0 && s.bias)
                y += Element<(BIAS_T < 0 ? 0 : BIAS_T)>::load(
                    reinterpret_cast<const Element<(BIAS_T < 0 ? 0 : BIAS_T)>::Bits *>(s.bias)[row]);
            if (GELU) y = gelu(Out::load(Out::store(y)));
            if (ADD) y += Out::load(*out);
            *out = Out::store(y);
        }
    };

    const Weight *xrow = xs + g * xstride + begin * 32 + t * 8;
    const bool has_x = g < M;
    int group = 0, done = 0;
#pragma unroll 1
    for (int tile = 0, i = 0; tile < tiles; tile++) {
        float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 2
        for (int step = 0; step < count; step++, i++) {
            wait_copies<DEPTH - 1>();
            const unsigned char *slot = ring + (i % DEPTH) * 1024 + lane * 16;
            uint4 a = *reinterpret_cast<const uint4 *>(slot), b = *reinterpret_cast<const uint4 *>(slot + 512);
            uint4 v = make_uint4(0, 0, 0, 0);
            if (has_x) v = *reinterpret_cast<const uint4 *>(xrow + step * 32);
            mma_16816<W_T>(c, a.x, b.x, a.y, b.y, v.x, v.y);
            mma_16816<W_T>(c, a.z, b.z, a.w, b.w, v.z, v.w);
            copy_next();
        }
        // c[0], c[1]: row g, columns 2t and 2t + 1; c[2], c[3]: row g + 8.
        float *to = partial + ((group & 1) * GROUP + done) * PARTIAL + warp * 16 * M;
        if (2 * t < M) to[g * M + 2 * t] = c[0], to[(g + 8) * M + 2 * t] = c[2];
        if (2 * t + 1 < M) to[g * M + 2 * t + 1] = c[1], to[(g + 8) * M + 2 * t + 1] = c[3];
        if (++done == GROUP || tile + 1 == tiles) {
            finish(group, done);
            group++, done = 0;
        }
    }
}
