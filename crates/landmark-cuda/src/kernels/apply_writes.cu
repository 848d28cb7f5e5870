// Stores small writes gathered in pinned host memory (staging.rs): a block takes one of them. The segment begins with
// its table, and offsets count from there.
#include "common.cuh"

struct Write {
    unsigned long long address;
    unsigned int offset, bytes;
};
static_assert(sizeof(Write) == 16, "as staging.rs writes it");

extern "C" __global__ void apply_writes(const unsigned char *segment) {
    const Write write = ((const Write *)segment)[blockIdx.x];
    const unsigned char *from = segment + write.offset;
    unsigned char *to = (unsigned char *)write.address;
    // Offsets are multiples of 16; addresses are at least multiples of the element's size, 2 or 4.
    if ((write.address | write.bytes) % 4 == 0) {
        for (unsigned int i = threadIdx.x; i < write.bytes / 4; i += blockDim.x)
            ((unsigned int *)to)[i] = ((const volatile unsigned int *)from)[i];
    } else {
        for (unsigned int i = threadIdx.x; i < write.bytes; i += blockDim.x) to[i] = ((const volatile unsigned char *)from)[i];
    }
}
