// Random bits: Philox4x32-10, bit for bit those of landmark_core::random.
#pragma once

struct Stream {
    unsigned key0, key1, step, salt;

    Stream() = default;
    __device__ __forceinline__ Stream(const unsigned* seed, unsigned salt)
        : key0(seed[0]), key1(seed[1]), step(seed[2]), salt(salt ^ seed[3] << 16) {}

    __device__ __forceinline__ unsigned bits(unsigned long long index) const {
        unsigned c0 = (unsigned)(index >> 2), c1 = (unsigned)(index >> 34), c2 = step, c3 = salt, k0 = key0, k1 = key1;
#pragma unroll
        for (int round = 0; round < 10; round++) {
            const unsigned a = 0xD2511F53u * c0, ah = __umulhi(0xD2511F53u, c0);
            const unsigned b = 0xCD9E8D57u * c2, bh = __umulhi(0xCD9E8D57u, c2);
            c0 = bh ^ c1 ^ k0;
            c1 = b;
            c2 = ah ^ c3 ^ k1;
            c3 = a;
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        const unsigned word = (unsigned)index & 3;
        return word == 0 ? c0 : word == 1 ? c1 : word == 2 ? c2 : c3;
    }

    // Whether element `index` is drawn under probability p.
    __device__ __forceinline__ bool draw(unsigned long long index, float p) const {
        return (float)(bits(index) >> 8) * (1.0f / 16777216.0f) < p;
    }

    // Inverted dropout's factor.
    __device__ __forceinline__ float keep(unsigned long long index, float p) const {
        return draw(index, p) ? 0.0f : 1.0f / (1.0f - p);
    }
};
