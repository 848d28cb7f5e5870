// Clusters of RANKS blocks: barriers, and stores into each other's shared memory. With RANKS 1 (before sm_90 always) a block is
// alone, and the same code serves.
//
// -D: RANKS.
#pragma once

#include "common.cuh"

#if RANKS > 1
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
// A place in the shared memory of a block of the cluster.
__device__ __forceinline__ u32 at_rank(const void *p, int rank) {
    u32 to;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(shared_address(p)), "r"(rank));
    return to;
}
__device__ __forceinline__ void push(u32 to, float x) {
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(to), "f"(x) : "memory");
}
__device__ __forceinline__ void push(u32 to, uint2 x) {
    asm volatile("st.shared::cluster.v2.u32 [%0], {%1, %2};" ::"r"(to), "r"(x.x), "r"(x.y) : "memory");
}
#else
__device__ __forceinline__ void cluster_arrive() {}
__device__ __forceinline__ void cluster_wait() { __syncthreads(); }
template <class Item> __device__ __forceinline__ Item *at_rank(Item *p, int) { return p; }
template <class Item> __device__ __forceinline__ void push(Item *to, Item x) { *to = x; }
#endif
