// Rotary positions inside the memory kernels: sine and cosine of position · frequency, and which elements turn together.
//
// The product is taken in f32, as the CPU does. `sincosf` is not used: its path for large angles wants local memory,
// which no kernel of ours may touch. Here the angle is reduced by multiples of pi/2 in three pieces (exact enough for
// positions beyond a million), then both functions are short polynomials on [-pi/4, pi/4]; 1 ulp or so.
#pragma once

struct Angle {
    float cos, sin;
};

__device__ __forceinline__ Angle angle_of(float x) {
    float n = rintf(x * 0.63661977236758134f);
    float r = fmaf(n, -1.57079637050628662f, x);
    r = fmaf(n, 4.37113900018624283e-8f, r);
    r = fmaf(n, 1.71512451000000000e-15f, r);
    float r2 = r * r;
    float s = fmaf(fmaf(fmaf(-1.95152959e-4f, r2, 8.33216087e-3f), r2, -1.66666546e-1f), r2 * r, r);
    float c = fmaf(fmaf(fmaf(2.44331571e-5f, r2, -1.38873163e-3f), r2, 4.16666457e-2f), r2 * r2, fmaf(-0.5f, r2, 1.0f));
    int quadrant = int(n) & 3;
    float sin = quadrant & 1 ? c : s, cos = quadrant & 1 ? s : c;
    if (quadrant & 2) sin = -sin;
    if ((quadrant + 1) & 2) cos = -cos;
    return {cos, sin};
}

// Element e of a head: the index of its pair, its partner, and whether it is the first of the two.
template <int PAIRS, int WIDTH> __device__ __forceinline__ int pair_of(int e) { return PAIRS == 0 ? e / 2 : e % (WIDTH / 2); }
template <int PAIRS, int WIDTH> __device__ __forceinline__ int partner_of(int e) {
    return PAIRS == 0 ? e ^ 1 : (e < WIDTH / 2 ? e + WIDTH / 2 : e - WIDTH / 2);
}
template <int PAIRS, int WIDTH> __device__ __forceinline__ bool is_first(int e) {
    return PAIRS == 0 ? (e & 1) == 0 : e < WIDTH / 2;
}
