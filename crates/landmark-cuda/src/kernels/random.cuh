// Philox4x32-10, bit for bit as landmark_core::random computes it: a function of seed, step, salt and index.
#pragma once
#include "common.cuh"

struct Stream {
    u32 key0, key1, step, salt;
};

// `seed` is the op's tensor of four numbers.
__device__ __forceinline__ Stream stream_of(const u32 *seed, u32 salt) {
    return {seed[0], seed[1], seed[2], salt ^ (seed[3] << 16)};
}

// The bits of elements 4 · group to 4 · group + 3.
__device__ __forceinline__ uint4 random_bits(const Stream &stream, u64 group) {
    u32 c0 = (u32)group, c1 = (u32)(group >> 32), c2 = stream.step, c3 = stream.salt;
    u32 k0 = stream.key0, k1 = stream.key1;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const u32 a_high = __umulhi(0xD2511F53u, c0), a_low = 0xD2511F53u * c0;
        const u32 b_high = __umulhi(0xCD9E8D57u, c2), b_low = 0xCD9E8D57u * c2;
        c0 = b_high ^ c1 ^ k0;
        c1 = b_low;
        c2 = a_high ^ c3 ^ k1;
        c3 = a_low;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return make_uint4(c0, c1, c2, c3);
}

// Whether an element with these bits is drawn under probability p.
__device__ __forceinline__ bool drawn(u32 bits, float p) { return (float)(bits >> 8) * (1.0f / 16777216.0f) < p; }

// The same for one element.
__device__ __forceinline__ bool draw(const Stream &stream, u64 index, float p) {
    const uint4 bits = random_bits(stream, index >> 2);
    const u32 of[4] = {bits.x, bits.y, bits.z, bits.w};
    u32 mine = of[0];
#pragma unroll
    for (int i = 1; i < 4; i++) mine = (index & 3) == i ? of[i] : mine;
    return drawn(mine, p);
}
