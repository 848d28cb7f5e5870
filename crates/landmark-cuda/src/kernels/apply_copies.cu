// Copies small pieces between pinned host memory and the device's (staging.rs): a block takes one of them. The segment
// begins with its table.
#include "common.cuh"

struct Copy {
    unsigned long long from, to, bytes;
};
static_assert(sizeof(Copy) == 24, "as staging.rs writes it");

extern "C" __global__ void apply_copies(const Copy *table) {
    const Copy copy = table[blockIdx.x];
    // Addresses are at least multiples of the element's size, 2 or 4.
    if ((copy.from | copy.to | copy.bytes) % 4 == 0) {
        for (unsigned int i = threadIdx.x; i < copy.bytes / 4; i += blockDim.x)
            ((unsigned int *)copy.to)[i] = ((const volatile unsigned int *)copy.from)[i];
    } else {
        for (unsigned int i = threadIdx.x; i < copy.bytes; i += blockDim.x)
            ((unsigned char *)copy.to)[i] = ((const volatile unsigned char *)copy.from)[i];
    }
}
