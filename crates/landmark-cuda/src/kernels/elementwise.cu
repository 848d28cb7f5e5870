// GELU and SwiGLU, forward and backward: one element in, one element out, at the speed of memory.
//
// The exact GELU with erff, as PyTorch has it. Sizes need not be multiples of anything: whole vectors of VECTOR
// elements first, the rest one by one.
//
// Types: X_T (inputs of the forward op), G_T (gradients and results written). ADD: += instead of =.
#include "common.cuh"

constexpr int VECTOR = 8;

__device__ __forceinline__ float normal(float x) { return 0.5f * (1.0f + erff(x * 0.70710678118654752f)); }
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + __expf(-x)); }

extern "C" __global__ void __launch_bounds__(256) gelu(const storage<X_T> *x, storage<G_T> *out, i64 n) {
    wait_for_launch_ahead();
    const i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    if (i + VECTOR <= n) {
        float v[VECTOR];
        load<X_T>(v, x + i);
#pragma unroll
        for (int j = 0; j < VECTOR; j++) v[j] *= normal(v[j]);
        store<G_T>(out + i, v);
    } else {
        for (i64 j = i; j < n; j++) {
            const float v = to_f32<X_T>(x[j]);
            out[j] = from_f32<G_T>(v * normal(v));
        }
    }
}
