// LayerNorm and RMSNorm, alone or behind the residual addition, and their gradients.
//
// A block takes a row and keeps it in registers: the mean and the variance are two sums over the block, the second of
// differences, since E[x^2] - E[x]^2 cancels. Thread t holds WIDE consecutive elements from (p * THREADS + t) * WIDE on, for
// p < PER. Loads go out before the first sum; eight or more rows are in flight on a multiprocessor.
//
// In the backward pass a block takes many rows, so that each thread sums the gradients of its columns' parameters in
// registers; the sums of all blocks are added in a second launch (`total` of sum_rows.cu), in a fixed order. What a row needs
// is loaded while the row before it is summed, if registers allow it, or memory would idle at every sum.
//
// COLS, ROW_THREADS, WIDE: extents. RMS: which norm. BIAS. X_T: the row normalised (and the sum of AddNorm), D_T: what AddNorm
// adds, O_T: results and their gradients, W_T: parameters, R_T: the gradient written, ADD: += instead of =.
// HALF_T: with COPY, a second result of the backward pass, the gradient in another type.
#include "common.cuh"

constexpr int THREADS = ROW_THREADS;
constexpr int PER = (COLS + THREADS * WIDE - 1) / (THREADS * WIDE);
constexpr bool EXACT = COLS == PER * THREADS * WIDE;

// Whether the backward pass has registers for a row more.
constexpr bool AHEAD = PER * WIDE <= 8;

__device__ __forceinline__ int column(int p) { return (p * THREADS + threadIdx.x) * WIDE; }
__device__ __forceinline__ bool inside(int p) { return EXACT || column(p) < COLS; }

struct Statistics {
    float mean, scale;
};

__device__ __forceinline__ Statistics statistics(const float (&x)[PER][WIDE], float eps) {
    __shared__ float shared[2][32];
    float mean = 0.0f;
    if (!RMS) {
        float sum = 0.0f;
#pragma unroll
        for (int p = 0; p < PER; p++)
#pragma unroll
            for (int i = 0; i < WIDE; i++) sum += x[p][i];
        mean = block_sum<THREADS>(sum, shared[0]) / COLS;
    }
    float squares = 0.0f;
#pragma unroll
    for (int p = 0; p < PER; p++)
        if (inside(p))
#pragma unroll
            for (int i = 0; i < WIDE; i++) squares += (x[p][i] - mean) * (x[p][i] - mean);
    squares = block_sum<THREADS>(squares, shared[1]);
    return {mean, rsqrtf(squares / COLS + eps)};
}

// Elements outside of the row are 0.
template <int T> __device__ __forceinline__ void take(float (&to)[PER][WIDE], const storage<T> *from) {
#pragma unroll
    for (int p = 0; p < PER; p++) {
        if (inside(p)) {
            load<T>(to[p], from + column(p));
        } else {
#pragma unroll
            for (int i = 0; i < WIDE; i++) to[p][i] = 0.0f;
        }
    }
}

__device__ __forceinline__ void normalise(float (&x)[PER][WIDE], float eps, const storage<W_T> *weight, const storage<W_T> *bias,
                                          storage<O_T> *out) {
    const Statistics s = statistics(x, eps);
#pragma unroll
    for (int p = 0; p < PER; p++) {
        if (!inside(p)) continue;
        float w[WIDE];
        load<W_T>(w, weight + column(p));
#pragma unroll
        for (int i = 0; i < WIDE; i++) x[p][i] = (x[p][i] - s.mean) * s.scale * w[i];
        if (BIAS) {
            load<W_T>(w, bias + column(p));
#pragma unroll
            for (int i = 0; i < WIDE; i++) x[p][i] += w[i];
        }
        store<O_T>(out + column(p), x[p]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
norm_alone(const storage<X_T> *x, const storage<W_T> *weight, const storage<W_T> *bias, storage<O_T> *out, float eps) {
    wait_for_launch_ahead();
    float row[PER][WIDE];
    take<X_T>(row, x + (i64)blockIdx.x * COLS);
    normalise(row, eps, weight, bias, out + (i64)blockIdx.x * COLS);
}

extern "C" __global__ void __launch_bounds__(THREADS)
add_norm(const storage<X_T> *x, const storage<D_T> *delta, const storage<W_T> *weight, const storage<W_T> *bias,
         storage<X_T> *sum, storage<O_T> *out, float eps) {
    wait_for_launch_ahead();
    const i64 at = (i64)blockIdx.x * COLS;
    float row[PER][WIDE], added[PER][WIDE];
    take<X_T>(row, x + at);
    take<D_T>(added, delta + at);
#pragma unroll
    for (int p = 0; p < PER; p++) {
#pragma unroll
        for (int i = 0; i < WIDE; i++) row[p][i] = rounded<X_T>(row[p][i] + added[p][i]);
        if (inside(p)) store<X_T>(sum + at + column(p), row[p]);
    }
    normalise(row, eps, weight, bias, out + at);
}

// Gradients of rows blockIdx.x, blockIdx.x + gridDim.x, ... `dx` may be null. `dweight` and `dbias` take this block's
// sums, a row of COLS for each block; null where they are not wanted.
extern "C" __global__ void __launch_bounds__(THREADS)
norm_backward(const storage<X_T> *x, const storage<W_T> *weight, const storage<O_T> *dout, storage<R_T> *dx, storage<HALF_T> *copy,
              float *dweight, float *dbias, int rows, float eps) {
    __shared__ float shared[2][2][32];
    wait_for_launch_ahead();
    float w[PER][WIDE], dw[PER][WIDE], db[PER][WIDE];
    take<W_T>(w, weight);
#pragma unroll
    for (int p = 0; p < PER; p++)
#pragma unroll
        for (int i = 0; i < WIDE; i++) dw[p][i] = db[p][i] = 0.0f;
    float next_row[PER][WIDE], next_g[PER][WIDE], next_there[PER][WIDE];
    auto fetch = [&](int r) {
        if (r >= rows) return;
        const i64 at = (i64)r * COLS;
        take<X_T>(next_row, x + at);
        take<O_T>(next_g, dout + at);
        if (ADD && dx) take<R_T>(next_there, dx + at);
    };
    if (AHEAD) fetch(blockIdx.x);
    for (int r = blockIdx.x, turn = 0; r < rows; r += gridDim.x, turn ^= 1) {
        const i64 at = (i64)r * COLS;
        float row[PER][WIDE], g[PER][WIDE], there[PER][WIDE];
        if (!AHEAD) fetch(r);
#pragma unroll
        for (int p = 0; p < PER; p++)
#pragma unroll
            for (int i = 0; i < WIDE; i++) row[p][i] = next_row[p][i], g[p][i] = next_g[p][i], there[p][i] = next_there[p][i];
        if (AHEAD) fetch(r + gridDim.x);
        const Statistics s = statistics(row, eps);
        // x̂, and g = dout · weight.
        float g_sum = 0.0f, gx_sum = 0.0f;
#pragma unroll
        for (int p = 0; p < PER; p++)
#pragma unroll
            for (int i = 0; i < WIDE; i++) {
                row[p][i] = (row[p][i] - s.mean) * s.scale;
                dw[p][i] += g[p][i] * row[p][i];
                db[p][i] += g[p][i];
                g[p][i] *= w[p][i];
                g_sum += g[p][i];
                gx_sum += g[p][i] * row[p][i];
            }
        if (dx) {
            const float g_mean = RMS ? 0.0f : block_sum<THREADS>(g_sum, shared[turn][0]) / COLS;
            const float gx_mean = block_sum<THREADS>(gx_sum, shared[turn][1]) / COLS;
#pragma unroll
            for (int p = 0; p < PER; p++) {
                if (!inside(p)) continue;
                float v[WIDE];
#pragma unroll
                for (int i = 0; i < WIDE; i++) {
                    v[i] = s.scale * (g[p][i] - g_mean - row[p][i] * gx_mean);
                    if (ADD) v[i] += there[p][i];
                }
                store<R_T>(dx + at + column(p), v);
                if (COPY) store<HALF_T>(copy + at + column(p), v);
            }
        }
        // `statistics` uses the same shared memory in every turn.
        if (THREADS > 32) __syncthreads();
    }
#pragma unroll
    for (int p = 0; p < PER; p++) {
        if (!inside(p)) continue;
        if (dweight) store<F32>(dweight + (i64)blockIdx.x * COLS + column(p), dw[p]);
        if (dbias) store<F32>(dbias + (i64)blockIdx.x * COLS + column(p), db[p]);
    }
}
