// Optimisers: one pass over a parameter, its gradient and its state, which also clears the gradient and writes the
// parameter's half copy. Sums of squares in two stages of fixed order.
//
// P_T, GRAD_T, M_T, V_T: element types of the parameter, its gradient and its two states. COPY_T: of the copy, where
// COPY. All arithmetic in f32.
#include "common.cuh"

constexpr int THREADS = 256;
constexpr int V = 4;

// Calls f(values...) on V elements at a time; tails element by element.
struct Span {
    i64 at;
    bool is_whole;
};
__device__ __forceinline__ Span span(i64 n) {
    const i64 at = ((i64)blockIdx.x * THREADS + threadIdx.x) * V;
    return {at, at + V <= n};
}
template <int T> __device__ __forceinline__ void take(float (&to)[V], const storage<T> *from, const Span &s, i64 n) {
    if (s.is_whole) {
        load<T>(to, from + s.at);
    } else {
#pragma unroll
        for (int i = 0; i < V; i++) to[i] = s.at + i < n ? to_f32<T>(from[s.at + i]) : 0.0f;
    }
}
template <int T> __device__ __forceinline__ void put(storage<T> *to, const float (&from)[V], const Span &s, i64 n) {
    if (s.is_whole) {
        store<T>(to + s.at, from);
    } else {
#pragma unroll
        for (int i = 0; i < V; i++)
            if (s.at + i < n) to[s.at + i] = from_f32<T>(from[i]);
    }
}
template <int T> __device__ __forceinline__ void clear(storage<T> *to, const Span &s, i64 n) {
    const float zero[V] = {};
    put<T>(to, zero, s, n);
}
// Writes the parameter, and its copy from the value as stored.
__device__ __forceinline__ void put_param(storage<P_T> *param, storage<COPY_T> *copy, const float (&p)[V], const Span &s, i64 n) {
    put<P_T>(param, p, s, n);
    if (COPY) {
        float q[V];
#pragma unroll
        for (int i = 0; i < V; i++) q[i] = rounded<P_T>(p[i]);
        put<COPY_T>(copy, q, s, n);
    }
}

// hyper: learning rate, 1 - beta1^t, 1 - beta2^t. `scale` may be null.
extern "C" __global__ void __launch_bounds__(THREADS)
adamw(storage<P_T> *param, storage<COPY_T> *copy, storage<GRAD_T> *grad, storage<M_T> *m, storage<V_T> *v, const float *hyper,
      const float *scale, float beta1, float beta2, float eps, float weight_decay, i64 n) {
    wait_for_launch_ahead();
    const Span s = span(n);
    if (s.at >= n) return;
    float p[V], g[V], first[V], second[V];
    take<P_T>(p, param, s, n);
    take<GRAD_T>(g, grad, s, n);
    take<M_T>(first, m, s, n);
    take<V_T>(second, v, s, n);
    const float factor = scale ? *scale : 1.0f, rate = hyper[0];
    const float keep = 1.0f - rate * weight_decay, step = rate / hyper[1], root = sqrtf(hyper[2]);
#pragma unroll
    for (int i = 0; i < V; i++) {
        const float gradient = factor * g[i];
        first[i] = beta1 * first[i] + (1.0f - beta1) * gradient;
        second[i] = beta2 * second[i] + (1.0f - beta2) * gradient * gradient;
        p[i] = p[i] * keep - step * first[i] / (sqrtf(second[i]) / root + eps);
    }
    put_param(param, copy, p, s, n);
    put<M_T>(m, first, s, n);
    put<V_T>(v, second, s, n);
    clear<GRAD_T>(grad, s, n);
}

extern "C" __global__ void __launch_bounds__(THREADS)
sgd(storage<P_T> *param, storage<COPY_T> *copy, storage<GRAD_T> *grad, storage<M_T> *buffer, const float *hyper, const float *scale,
    float momentum, float weight_decay, i64 n) {
    wait_for_launch_ahead();
    const Span s = span(n);
    if (s.at >= n) return;
    float p[V], g[V], b[V];
    take<P_T>(p, param, s, n);
    take<GRAD_T>(g, grad, s, n);
    take<M_T>(b, buffer, s, n);
    const float factor = scale ? *scale : 1.0f;
#pragma unroll
    for (int i = 0; i < V; i++) {
        b[i] = momentum * b[i] + factor * g[i] + weight_decay * p[i];
        p[i] -= hyper[0] * b[i];
    }
    put_param(param, copy, p, s, n);
    put<M_T>(buffer, b, s, n);
    clear<GRAD_T>(grad, s, n);
}

// ---- sums of squares ----

// Every block writes one partial sum; `pieces` of them.
template <int T> __device__ __forceinline__ float squares(const storage<T> *x, i64 n) {
    float sum = 0.0f;
    for (i64 i = ((i64)blockIdx.x * THREADS + threadIdx.x) * V; i < n; i += (i64)gridDim.x * THREADS * V) {
        float v[V];
        take<T>(v, x, {i, i + V <= n}, n);
#pragma unroll
        for (int j = 0; j < V; j++) sum += v[j] * v[j];
    }
    return sum;
}
extern "C" __global__ void __launch_bounds__(THREADS) partial_squares(const storage<P_T> *x, float *partial, i64 n) {
    __shared__ float shared[THREADS / 32];
    wait_for_launch_ahead();
    const float sum = block_sum<THREADS>(squares<P_T>(x, n), shared);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}
// One block: the sum of partial sums.
__device__ __forceinline__ float sum_of(const float *partial, int pieces, float *shared) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < pieces; i += THREADS) sum += partial[i];
    return block_sum<THREADS>(sum, shared);
}
extern "C" __global__ void __launch_bounds__(THREADS) total_squares(const float *partial, int pieces, storage<M_T> *out, int add) {
    __shared__ float shared[THREADS / 32];
    wait_for_launch_ahead();
    const float sum = sum_of(partial, pieces, shared);
    if (threadIdx.x == 0) *out = from_f32<M_T>(sum + (add ? to_f32<M_T>(*out) : 0.0f));
}
extern "C" __global__ void clip_scale(const storage<P_T> *squared_norm, storage<M_T> *out, float max_norm) {
    wait_for_launch_ahead();
    *out = from_f32<M_T>(fminf(1.0f, max_norm / (sqrtf(to_f32<P_T>(*squared_norm)) + 1e-6f)));
}

// ---- Adafactor ----
// Five passes, since the update's own size clips it: moments of rows, of columns, their mean, the size of the update,
// the update. `scale` is folded into every read of the gradient.

constexpr float EPS1 = 1.1920929e-07f, EPS2 = 1e-3f;

// A block takes a row: mean of squares into the row's moment.
extern "C" __global__ void __launch_bounds__(THREADS)
adafactor_rows(const storage<GRAD_T> *grad, storage<M_T> *rows, const float *hyper, const float *scale, int cols) {
    __shared__ float shared[THREADS / 32];
    wait_for_launch_ahead();
    const float factor = scale ? *scale : 1.0f;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < cols; i += THREADS) {
        const float g = factor * to_f32<GRAD_T>(grad[(i64)blockIdx.x * cols + i]);
        sum += g * g;
    }
    sum = block_sum<THREADS>(sum, shared);
    if (threadIdx.x == 0) {
        const float old = to_f32<M_T>(rows[blockIdx.x]);
        rows[blockIdx.x] = from_f32<M_T>(old + hyper[2] * (sum / cols - old));
    }
}
// grid (columns / 256, pieces): squares of a column over some rows.
extern "C" __global__ void __launch_bounds__(THREADS)
adafactor_column_squares(const storage<GRAD_T> *grad, float *partial, const float *scale, int rows, int cols, int rows_of_piece) {
    wait_for_launch_ahead();
    const int col = blockIdx.x * THREADS + threadIdx.x;
    if (col >= cols) return;
    const float factor = scale ? *scale : 1.0f;
    const int end = min(rows, (int)(blockIdx.y + 1) * rows_of_piece);
    float sum = 0.0f;
    for (int row = blockIdx.y * rows_of_piece; row < end; row++) {
        const float g = factor * to_f32<GRAD_T>(grad[(i64)row * cols + col]);
        sum += g * g;
    }
    partial[(i64)blockIdx.y * cols + col] = sum;
}
extern "C" __global__ void __launch_bounds__(THREADS)
adafactor_columns(const float *partial, int pieces, storage<V_T> *columns, const float *hyper, int rows, int cols) {
    wait_for_launch_ahead();
    const int col = blockIdx.x * THREADS + threadIdx.x;
    if (col >= cols) return;
    float sum = 0.0f;
    for (int i = 0; i < pieces; i++) sum += partial[(i64)i * cols + col];
    const float old = to_f32<V_T>(columns[col]);
    columns[col] = from_f32<V_T>(old + hyper[2] * (sum / rows - old));
}
// One block: the mean of the rows' moments, into sums[0].
extern "C" __global__ void __launch_bounds__(THREADS) adafactor_mean(const storage<M_T> *rows, float *sums, int n) {
    __shared__ float shared[THREADS / 32];
    wait_for_launch_ahead();
    float sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += THREADS) sum += to_f32<M_T>(rows[i]);
    sum = block_sum<THREADS>(sum, shared);
    if (threadIdx.x == 0) sums[0] = fmaxf(sum / n, EPS1);
}
// A vector's moments, one for each element.
extern "C" __global__ void __launch_bounds__(THREADS)
adafactor_elements(const storage<GRAD_T> *grad, storage<M_T> *rows, const float *hyper, const float *scale, i64 n) {
    wait_for_launch_ahead();
    const i64 i = (i64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    const float g = (scale ? *scale : 1.0f) * to_f32<GRAD_T>(grad[i]), old = to_f32<M_T>(rows[i]);
    rows[i] = from_f32<M_T>(old + hyper[2] * (g * g - old));
}
// The update before clipping; `columns` is null for a vector.
__device__ __forceinline__ float update(const storage<GRAD_T> *grad, const storage<M_T> *rows, const storage<V_T> *columns, float mean,
                                        float factor, i64 i, int cols) {
    const float g = factor * to_f32<GRAD_T>(grad[i]);
    const float moment = columns ? to_f32<M_T>(rows[i / cols]) * to_f32<V_T>(columns[i % cols]) / mean : to_f32<M_T>(rows[i]);
    return g / sqrtf(fmaxf(moment, EPS1 * EPS1));
}
// Squares of the update and of the parameter: two partial sums of every block, `gridDim.x` apart.
extern "C" __global__ void __launch_bounds__(THREADS)
adafactor_sizes(const storage<P_T> *param, const storage<GRAD_T> *grad, const storage<M_T> *rows, const storage<V_T> *columns,
                const float *sums, const float *scale, float *partial, i64 n, int cols) {
    __shared__ float shared[2][THREADS / 32];
    wait_for_launch_ahead();
    const float factor = scale ? *scale : 1.0f;
    float updates = 0.0f, params = 0.0f;
    for (i64 i = (i64)blockIdx.x * THREADS + threadIdx.x; i < n; i += (i64)gridDim.x * THREADS) {
        const float u = update(grad, rows, columns, sums[0], factor, i, cols), p = to_f32<P_T>(param[i]);
        updates += u * u;
        params += p * p;
    }
    updates = block_sum<THREADS>(updates, shared[0]);
    params = block_sum<THREADS>(params, shared[1]);
    if (threadIdx.x == 0) partial[blockIdx.x] = updates, partial[gridDim.x + blockIdx.x] = params;
}
// One block: the step, into sums[1].
extern "C" __global__ void __launch_bounds__(THREADS)
adafactor_step(const float *partial, int pieces, const float *hyper, float *sums, i64 n) {
    __shared__ float shared[2][THREADS / 32];
    wait_for_launch_ahead();
    const float updates = sum_of(partial, pieces, shared[0]), params = sum_of(partial + pieces, pieces, shared[1]);
    if (threadIdx.x == 0) {
        const float alpha = fmaxf(sqrtf(params / n), EPS2) * hyper[0];
        sums[1] = alpha / fmaxf(sqrtf(updates / n), 1.0f);
    }
}
extern "C" __global__ void __launch_bounds__(THREADS)
adafactor_update(storage<P_T> *param, storage<COPY_T> *copy, storage<GRAD_T> *grad, const storage<M_T> *rows,
                 const storage<V_T> *columns, const float *sums, const float *hyper, const float *scale, float weight_decay, i64 n,
                 int cols) {
    wait_for_launch_ahead();
    const i64 i = (i64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    const float u = update(grad, rows, columns, sums[0], scale ? *scale : 1.0f, i, cols);
    const float p = to_f32<P_T>(param[i]) * (1.0f - hyper[1] * weight_decay) - sums[1] * u;
    param[i] = from_f32<P_T>(p);
    if (COPY) copy[i] = from_f32<COPY_T>(rounded<P_T>(p));
    grad[i] = from_f32<GRAD_T>(0.0f);
}
