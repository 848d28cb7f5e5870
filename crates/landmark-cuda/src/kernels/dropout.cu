// Random masks, drawn again in the backward pass instead of stored.
//
// X_T, OUT_T: element types. ADD: += instead of =. A thread takes the four elements that one call of Philox serves.
#include "random.cuh"

extern "C" __global__ void __launch_bounds__(256)
dropout(const storage<X_T> *x, storage<OUT_T> *out, const u32 *seed, u32 salt, float p, float scale, i64 n) {
    wait_for_launch_ahead();
    const i64 group = (i64)blockIdx.x * 256 + threadIdx.x, i = group * 4;
    if (i >= n) return;
    const uint4 bits = random_bits(stream_of(seed, salt), group);
    const u32 of[4] = {bits.x, bits.y, bits.z, bits.w};
    float v[4], there[4];
    if (i + 4 <= n) {
        load<X_T>(v, x + i);
        if (ADD) load<OUT_T>(there, out + i);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            v[j] = drawn(of[j], p) ? 0.0f : v[j] * scale;
            if (ADD) v[j] += there[j];
        }
        store<OUT_T>(out + i, v);
    } else {
        for (int j = 0; j < 4 && i + j < n; j++) {
            const float value = drawn(of[j], p) ? 0.0f : to_f32<X_T>(x[i + j]) * scale;
            out[i + j] = from_f32<OUT_T>(value + (ADD ? to_f32<OUT_T>(out[i + j]) : 0.0f));
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) bernoulli(u32 *out, const u32 *seed, u32 salt, float p, i64 n) {
    wait_for_launch_ahead();
    const i64 group = (i64)blockIdx.x * 256 + threadIdx.x, i = group * 4;
    if (i >= n) return;
    const uint4 bits = random_bits(stream_of(seed, salt), group);
    const u32 of[4] = {bits.x, bits.y, bits.z, bits.w};
    for (int j = 0; j < 4 && i + j < n; j++) out[i + j] = drawn(of[j], p);
}
