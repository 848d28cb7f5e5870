// GELU and SwiGLU, forward and backward: one element in, one element out, at the speed of memory.
//
// The exact GELU, as PyTorch has it; cuBLASLt's epilogue has the tanh form, which differs by up to 5e-4. With erff the two
// kernels are bound by arithmetic, so half types take a shorter formula, whose error they cannot show.
// Sizes need not be multiples of anything: vectors of VECTOR elements, and the last one element by element.
//
// X_T: inputs of the forward op. G_T: gradients of results, and results. D_T: gradients of inputs. ADD, ADD2: += instead of =.
#include "common.cuh"

constexpr int VECTOR = 8;

// In f32 as exact as expf; in half types the fast form's error vanishes in the rounding.
__device__ __forceinline__ float exponential(float x) { return X_T == F32 ? expf(x) : __expf(x); }

// The normal distribution at x, and its density but for the factor 1 / sqrt(2 pi).
struct Normal {
    float below, bell;
};
__device__ __forceinline__ Normal normal(float x) {
    const float bell = exponential(-0.5f * x * x);
    if constexpr (X_T == F32) return {0.5f * (1.0f + erff(x * 0.70710678118654752f)), bell};
    // erfc by Abramowitz and Stegun, 7.1.26: within 1.5e-7.
    const float t = __fdividef(1.0f, 1.0f + 0.3275911f * 0.70710678118654752f * fabsf(x));
    const float p = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    const float tail = 0.5f * p * bell;
    return {x < 0.0f ? tail : 1.0f - tail, bell};
}
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

// Up to VECTOR elements from i on.
template <int T> __device__ __forceinline__ void take(float (&to)[VECTOR], const storage<T> *from, i64 i, i64 n) {
    if (i + VECTOR <= n) {
        load<T>(to, from + i);
    } else {
#pragma unroll
        for (int j = 0; j < VECTOR; j++) to[j] = i + j < n ? to_f32<T>(from[i + j]) : 0.0f;
    }
}
template <int T, bool add> __device__ __forceinline__ void put(storage<T> *to, float (&from)[VECTOR], i64 i, i64 n) {
    if (i + VECTOR <= n) {
        if constexpr (add) {
            float there[VECTOR];
            load<T>(there, to + i);
#pragma unroll
            for (int j = 0; j < VECTOR; j++) from[j] += there[j];
        }
        store<T>(to + i, from);
    } else {
#pragma unroll
        for (int j = 0; j < VECTOR; j++)
            if (i + j < n) to[i + j] = from_f32<T>(from[j] + (add ? to_f32<T>(to[i + j]) : 0.0f));
    }
}

extern "C" __global__ void __launch_bounds__(256, 6) gelu(const storage<X_T> *x, storage<G_T> *out, i64 n) {
    wait_for_launch_ahead();
    const i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    if (i >= n) return;
    float v[VECTOR];
    take<X_T>(v, x, i, n);
#pragma unroll
    for (int j = 0; j < VECTOR; j++) v[j] *= normal(v[j]).below;
    put<G_T, false>(out, v, i, n);
}

extern "C" __global__ void __launch_bounds__(256, 6)
gelu_backward(const storage<X_T> *x, const storage<G_T> *dout, storage<D_T> *dx, i64 n) {
    wait_for_launch_ahead();
    const i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    if (i >= n) return;
    float v[VECTOR], d[VECTOR];
    take<X_T>(v, x, i, n);
    take<G_T>(d, dout, i, n);
#pragma unroll
    for (int j = 0; j < VECTOR; j++) {
        const Normal at = normal(v[j]);
        d[j] *= at.below + v[j] * 0.39894228040143268f * at.bell;
    }
    put<D_T, ADD>(dx, d, i, n);
}

extern "C" __global__ void __launch_bounds__(256, 6)
swiglu(const storage<X_T> *gate, const storage<X_T> *up, storage<G_T> *out, i64 n) {
    wait_for_launch_ahead();
    const i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    if (i >= n) return;
    float g[VECTOR], u[VECTOR];
    take<X_T>(g, gate, i, n);
    take<X_T>(u, up, i, n);
#pragma unroll
    for (int j = 0; j < VECTOR; j++) g[j] *= sigmoid(g[j]) * u[j];
    put<G_T, false>(out, g, i, n);
}

// `dgate` and `dup` may be null.
extern "C" __global__ void __launch_bounds__(256, 4)
swiglu_backward(const storage<X_T> *gate, const storage<X_T> *up, const storage<G_T> *dout, storage<D_T> *dgate,
                storage<D_T> *dup, i64 n) {
    wait_for_launch_ahead();
    const i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    if (i >= n) return;
    float g[VECTOR], u[VECTOR], d[VECTOR];
    take<X_T>(g, gate, i, n);
    take<X_T>(u, up, i, n);
    take<G_T>(d, dout, i, n);
#pragma unroll
    for (int j = 0; j < VECTOR; j++) {
        const float s = sigmoid(g[j]);
        u[j] *= d[j] * s * (1.0f + g[j] * (1.0f - s));
        d[j] *= g[j] * s;
    }
    if (dgate) put<D_T, ADD>(dgate, u, i, n);
    if (dup) put<D_T, ADD2>(dup, d, i, n);
}
