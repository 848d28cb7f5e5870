// Hopper's own instructions (sm_90a) behind small functions: barriers in shared memory, the bulk tensor copy engine
// (TMA), products of a warp group (wgmma), and the sharing out of registers.
//
// Everything is inline PTX, since CUDA's headers are not at hand where these kernels are compiled. Shared
// memory is addressed by its 32-bit shared-window address throughout (`shared_address`).
//
// Tiles are laid out as TMA's 128-byte swizzle writes them: panels of 64 sixteen-bit columns, one row of a panel 128
// bytes, row after row; the 16-byte chunk `c` of row `r` lies at chunk `c ^ (r % 8)`. A panel starts at a multiple of
// 1024 bytes. Narrower swizzles were not taken: a head of 80 or 96 columns costs shared memory in its second panel,
// which TMA fills with zeros past the tensor's width, but no traffic and no products.
//
// Element type of products: bf16, or f16 with -DHALF_F16=1.

#pragma once

#include "common.cuh"

#if HALF_F16
#define HALF_KIND "f16"
#else
#define HALF_KIND "bf16"
#endif

// ---- Barriers in shared memory -------------------------------------------------------------------------------------

__device__ __forceinline__ void mbarrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to the copy engine. Follow with a barrier of the block.
__device__ __forceinline__ void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ __forceinline__ void mbarrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and announces `bytes` that copies will bring.
__device__ __forceinline__ void mbarrier_arrive_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ bool mbarrier_test(u32 barrier, u32 parity) {
    u32 done;
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.b32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
    return done != 0;
}

// Waits for the end of the phase of this parity. A fresh barrier is in phase 0, so waiting for parity 1 passes at once.
__device__ __forceinline__ void mbarrier_wait(u32 barrier, u32 parity) {
#ifdef BOUND_WAITS
    for (u32 i = 0; !mbarrier_test(barrier, parity); ++i)
        if (i > (1u << 22)) asm volatile("trap;");
#else
    while (!mbarrier_test(barrier, parity)) {
    }
#endif
}

// ---- Named barriers of the block -----------------------------------------------------------------------------------

__device__ __forceinline__ void barrier_sync(u32 id, u32 threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void barrier_arrive(u32 id, u32 threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Orders this thread's ordinary accesses of shared memory before later ones by copy engine and tensor cores.
__device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- Registers -----------------------------------------------------------------------------------------------------

template <int COUNT> __device__ __forceinline__ void registers_grow() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

template <int COUNT> __device__ __forceinline__ void registers_shrink() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// True in one lane of a converged warp.
__device__ __forceinline__ bool elect_one() {
    u32 elected;
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.b32 %0, 1, 0, p;\n}" : "=r"(elected));
    return elected != 0;
}

// ---- Bulk tensor copies --------------------------------------------------------------------------------------------

// Cache policies, as CUTLASS and the driver encode them.
constexpr u64 KEEP_IN_CACHE = 0x14F0000000000000ull;
constexpr u64 DROP_FROM_CACHE = 0x12F0000000000000ull;

__device__ __forceinline__ void tma_prefetch_map(const TensorMap *map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Box at (column, head, row, batch) of a 4-dimensional tensor; what lies outside arrives as zeros (and counts in the
// barrier's bytes).
__device__ __forceinline__ void tma_load(u32 to, const TensorMap *map, u32 barrier, int column, int head, int row, int batch,
                                         u64 policy = KEEP_IN_CACHE) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(to),
        "l"(map), "r"(barrier), "r"(column), "r"(head), "r"(row), "r"(batch), "l"(policy)
        : "memory");
}

// The other way; what lies outside is not written.
__device__ __forceinline__ void tma_store(const TensorMap *map, u32 from, int column, int head, int row, int batch) {
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map), "r"(from),
                 "r"(column), "r"(head), "r"(row), "r"(batch)
                 : "memory");
}

__device__ __forceinline__ void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Until this thread's stores have read their shared memory.
template <int PENDING> __device__ __forceinline__ void tma_store_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

// ---- Values --------------------------------------------------------------------------------------------------------

// Two f32 as two elements of the products' type, `low` in the low half.
__device__ __forceinline__ u32 pack(float low, float high) {
#if HALF_F16
    return pack_f16(low, high);
#else
    return pack_bf16(low, high);
#endif
}

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float reciprocal_fast(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Four 8 x 8 matrices; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void store_matrices(u32 address, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a), "r"(b), "r"(c), "r"(d)
                 : "memory");
}

__device__ __forceinline__ void store_matrices_transposed(u32 address, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a), "r"(b), "r"(c),
                 "r"(d)
                 : "memory");
}

// ---- Products of a warp group --------------------------------------------------------------------------------------
//
// D (64, N) += A (64, 16) B (16, N), D in registers: thread t of the warp group holds of rows 16 (t / 32) + (t % 32) / 4
// and that + 8 the columns 8 j + 2 (t % 4) + {0, 1}, at d[4 j + {0, 1}] and d[4 j + {2, 3}]. A from registers has the same
// layout for its 16 columns, so results feed the next product as they are, two rounded to a register:
// {row, cols 0-7}, {row + 8, cols 0-7}, {row, cols 8-15}, {row + 8, cols 8-15}.

// Before the first product, and after registers of D or A were written by anything else.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Keeps the compiler from moving uses of registers across the asynchronous products that own them.
template <int COUNT> __device__ __forceinline__ void hold(float (&values)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(values[i])::"memory");
}
template <int COUNT> __device__ __forceinline__ void hold(u32 (&values)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+r"(values[i])::"memory");
}

// Descriptor of an operand that starts at `address`, in panels of the 128-byte swizzle.
//
// Not transposed (the product's inner dimension runs along the panel's columns): 16 further inner columns are 32 bytes
// on, the next panel after four such steps; `panel_bytes` does not matter.
// Transposed (the inner dimension runs along rows, TRANS = 1): 16 further inner rows are 2048 bytes on; columns beyond 64
// are in the panel `panel_bytes` on.
__device__ __forceinline__ u64 wgmma_operand(u32 address, u32 panel_bytes = 16) {
    return static_cast<u64>((address & 0x3ffff) >> 4) | static_cast<u64>(panel_bytes >> 4) << 16 | static_cast<u64>(1024 >> 4) << 32 |
           1ull << 62;
}

// The operand `bytes` further on: an addition, where a descriptor made anew is a dozen instructions. Addresses in shared
// memory stay below what the field holds, so nothing is carried out of it.
__device__ __forceinline__ u64 wgmma_advance(u64 operand, u32 bytes) {
    return (operand & 0xffffffff00000000ull) | (static_cast<u32>(operand) + (bytes >> 4));
}

// Wgmma<N>::ss<TRANS_A, TRANS_B>(d, a, b, accumulate): both operands from shared memory.
// Wgmma<N>::ss_first<TRANS_A, TRANS_B>(d, a, b): the same with D = A B; the compiler knows that what D held is not read, so old
// values need no registers while another product is under way.
// Wgmma<N>::rs<TRANS_B>(d, a, b, accumulate): A from four registers.
// TRANS_B = 0: B's tile has N rows and inner columns (as keys for scores); 1: inner rows and N columns (as values).
template <int N> struct Wgmma;

// Register lists in steps of eight columns: numbers for the instruction, operands for the compiler.
#define WGMMA_NUMBERS_8 "%0, %1, %2, %3"
#define WGMMA_NUMBERS_16 WGMMA_NUMBERS_8 ", " "%4, %5, %6, %7"
#define WGMMA_NUMBERS_24 WGMMA_NUMBERS_16 ", " "%8, %9, %10, %11"
#define WGMMA_NUMBERS_32 WGMMA_NUMBERS_24 ", " "%12, %13, %14, %15"
#define WGMMA_NUMBERS_40 WGMMA_NUMBERS_32 ", " "%16, %17, %18, %19"
#define WGMMA_NUMBERS_48 WGMMA_NUMBERS_40 ", " "%20, %21, %22, %23"
#define WGMMA_NUMBERS_56 WGMMA_NUMBERS_48 ", " "%24, %25, %26, %27"
#define WGMMA_NUMBERS_64 WGMMA_NUMBERS_56 ", " "%28, %29, %30, %31"
#define WGMMA_NUMBERS_72 WGMMA_NUMBERS_64 ", " "%32, %33, %34, %35"
#define WGMMA_NUMBERS_80 WGMMA_NUMBERS_72 ", " "%36, %37, %38, %39"
#define WGMMA_NUMBERS_88 WGMMA_NUMBERS_80 ", " "%40, %41, %42, %43"
#define WGMMA_NUMBERS_96 WGMMA_NUMBERS_88 ", " "%44, %45, %46, %47"
#define WGMMA_NUMBERS_104 WGMMA_NUMBERS_96 ", " "%48, %49, %50, %51"
#define WGMMA_NUMBERS_112 WGMMA_NUMBERS_104 ", " "%52, %53, %54, %55"
#define WGMMA_NUMBERS_120 WGMMA_NUMBERS_112 ", " "%56, %57, %58, %59"
#define WGMMA_NUMBERS_128 WGMMA_NUMBERS_120 ", " "%60, %61, %62, %63"
#define WGMMA_NUMBERS_136 WGMMA_NUMBERS_128 ", " "%64, %65, %66, %67"
#define WGMMA_NUMBERS_144 WGMMA_NUMBERS_136 ", " "%68, %69, %70, %71"
#define WGMMA_NUMBERS_152 WGMMA_NUMBERS_144 ", " "%72, %73, %74, %75"
#define WGMMA_NUMBERS_160 WGMMA_NUMBERS_152 ", " "%76, %77, %78, %79"
#define WGMMA_NUMBERS_168 WGMMA_NUMBERS_160 ", " "%80, %81, %82, %83"
#define WGMMA_NUMBERS_176 WGMMA_NUMBERS_168 ", " "%84, %85, %86, %87"
#define WGMMA_NUMBERS_184 WGMMA_NUMBERS_176 ", " "%88, %89, %90, %91"
#define WGMMA_NUMBERS_192 WGMMA_NUMBERS_184 ", " "%92, %93, %94, %95"
#define WGMMA_NUMBERS_200 WGMMA_NUMBERS_192 ", " "%96, %97, %98, %99"
#define WGMMA_NUMBERS_208 WGMMA_NUMBERS_200 ", " "%100, %101, %102, %103"
#define WGMMA_NUMBERS_216 WGMMA_NUMBERS_208 ", " "%104, %105, %106, %107"
#define WGMMA_NUMBERS_224 WGMMA_NUMBERS_216 ", " "%108, %109, %110, %111"
#define WGMMA_NUMBERS_232 WGMMA_NUMBERS_224 ", " "%112, %113, %114, %115"
#define WGMMA_NUMBERS_240 WGMMA_NUMBERS_232 ", " "%116, %117, %118, %119"
#define WGMMA_NUMBERS_248 WGMMA_NUMBERS_240 ", " "%120, %121, %122, %123"
#define WGMMA_NUMBERS_256 WGMMA_NUMBERS_248 ", " "%124, %125, %126, %127"
#define WGMMA_FOUR(c, i) c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3])
#define WGMMA_OPERANDS_8(c) WGMMA_FOUR(c, 0)
#define WGMMA_OPERANDS_16(c) WGMMA_OPERANDS_8(c), WGMMA_FOUR(c, 4)
#define WGMMA_OPERANDS_24(c) WGMMA_OPERANDS_16(c), WGMMA_FOUR(c, 8)
#define WGMMA_OPERANDS_32(c) WGMMA_OPERANDS_24(c), WGMMA_FOUR(c, 12)
#define WGMMA_OPERANDS_40(c) WGMMA_OPERANDS_32(c), WGMMA_FOUR(c, 16)
#define WGMMA_OPERANDS_48(c) WGMMA_OPERANDS_40(c), WGMMA_FOUR(c, 20)
#define WGMMA_OPERANDS_56(c) WGMMA_OPERANDS_48(c), WGMMA_FOUR(c, 24)
#define WGMMA_OPERANDS_64(c) WGMMA_OPERANDS_56(c), WGMMA_FOUR(c, 28)
#define WGMMA_OPERANDS_72(c) WGMMA_OPERANDS_64(c), WGMMA_FOUR(c, 32)
#define WGMMA_OPERANDS_80(c) WGMMA_OPERANDS_72(c), WGMMA_FOUR(c, 36)
#define WGMMA_OPERANDS_88(c) WGMMA_OPERANDS_80(c), WGMMA_FOUR(c, 40)
#define WGMMA_OPERANDS_96(c) WGMMA_OPERANDS_88(c), WGMMA_FOUR(c, 44)
#define WGMMA_OPERANDS_104(c) WGMMA_OPERANDS_96(c), WGMMA_FOUR(c, 48)
#define WGMMA_OPERANDS_112(c) WGMMA_OPERANDS_104(c), WGMMA_FOUR(c, 52)
#define WGMMA_OPERANDS_120(c) WGMMA_OPERANDS_112(c), WGMMA_FOUR(c, 56)
#define WGMMA_OPERANDS_128(c) WGMMA_OPERANDS_120(c), WGMMA_FOUR(c, 60)
#define WGMMA_OPERANDS_136(c) WGMMA_OPERANDS_128(c), WGMMA_FOUR(c, 64)
#define WGMMA_OPERANDS_144(c) WGMMA_OPERANDS_136(c), WGMMA_FOUR(c, 68)
#define WGMMA_OPERANDS_152(c) WGMMA_OPERANDS_144(c), WGMMA_FOUR(c, 72)
#define WGMMA_OPERANDS_160(c) WGMMA_OPERANDS_152(c), WGMMA_FOUR(c, 76)
#define WGMMA_OPERANDS_168(c) WGMMA_OPERANDS_160(c), WGMMA_FOUR(c, 80)
#define WGMMA_OPERANDS_176(c) WGMMA_OPERANDS_168(c), WGMMA_FOUR(c, 84)
#define WGMMA_OPERANDS_184(c) WGMMA_OPERANDS_176(c), WGMMA_FOUR(c, 88)
#define WGMMA_OPERANDS_192(c) WGMMA_OPERANDS_184(c), WGMMA_FOUR(c, 92)
#define WGMMA_OPERANDS_200(c) WGMMA_OPERANDS_192(c), WGMMA_FOUR(c, 96)
#define WGMMA_OPERANDS_208(c) WGMMA_OPERANDS_200(c), WGMMA_FOUR(c, 100)
#define WGMMA_OPERANDS_216(c) WGMMA_OPERANDS_208(c), WGMMA_FOUR(c, 104)
#define WGMMA_OPERANDS_224(c) WGMMA_OPERANDS_216(c), WGMMA_FOUR(c, 108)
#define WGMMA_OPERANDS_232(c) WGMMA_OPERANDS_224(c), WGMMA_FOUR(c, 112)
#define WGMMA_OPERANDS_240(c) WGMMA_OPERANDS_232(c), WGMMA_FOUR(c, 116)
#define WGMMA_OPERANDS_248(c) WGMMA_OPERANDS_240(c), WGMMA_FOUR(c, 120)
#define WGMMA_OPERANDS_256(c) WGMMA_OPERANDS_248(c), WGMMA_FOUR(c, 124)

// The numbers after N are those of the operands that follow the N / 2 results.
#define WGMMA(N, i0, i1, i2, i3, i4, i5, i6)                                                                                     \
    template <> struct Wgmma<N> {                                                                                                \
        template <int TRANS_A, int TRANS_B>                                                                                      \
        static __device__ __forceinline__ void ss(float (&d)[N / 2], u64 a, u64 b, int accumulate) {                             \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i2 ", 0;\n"                                                       \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." HALF_KIND "." HALF_KIND " {" WGMMA_NUMBERS_##N "}, "  \
                         "%" #i0 ", %" #i1 ", p, 1, 1, %" #i3 ", %" #i4 ";\n}"                                                   \
                         : WGMMA_OPERANDS_##N("+f")                                                                              \
                         : "l"(a), "l"(b), "r"(accumulate), "n"(TRANS_A), "n"(TRANS_B));                                         \
        }                                                                                                                        \
        template <int TRANS_A, int TRANS_B> static __device__ __forceinline__ void ss_first(float (&d)[N / 2], u64 a, u64 b) {   \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 0, 0;\n"                                                              \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." HALF_KIND "." HALF_KIND " {" WGMMA_NUMBERS_##N "}, "  \
                         "%" #i0 ", %" #i1 ", p, 1, 1, %" #i2 ", %" #i3 ";\n}"                                                   \
                         : WGMMA_OPERANDS_##N("=f")                                                                              \
                         : "l"(a), "l"(b), "n"(TRANS_A), "n"(TRANS_B));                                                          \
        }                                                                                                                        \
        template <int TRANS_B>                                                                                                   \
        static __device__ __forceinline__ void rs(float (&d)[N / 2], const u32 *a, u64 b, int accumulate) {                      \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i5 ", 0;\n"                                                       \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." HALF_KIND "." HALF_KIND " {" WGMMA_NUMBERS_##N "}, "  \
                         "{%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}, %" #i4 ", p, 1, 1, %" #i6 ";\n}"                             \
                         : WGMMA_OPERANDS_##N("+f")                                                                              \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(TRANS_B));                   \
        }                                                                                                                        \
    };

WGMMA(8, 4, 5, 6, 7, 8, 9, 10)
WGMMA(16, 8, 9, 10, 11, 12, 13, 14)
WGMMA(24, 12, 13, 14, 15, 16, 17, 18)
WGMMA(32, 16, 17, 18, 19, 20, 21, 22)
WGMMA(40, 20, 21, 22, 23, 24, 25, 26)
WGMMA(48, 24, 25, 26, 27, 28, 29, 30)
WGMMA(56, 28, 29, 30, 31, 32, 33, 34)
WGMMA(64, 32, 33, 34, 35, 36, 37, 38)
WGMMA(72, 36, 37, 38, 39, 40, 41, 42)
WGMMA(80, 40, 41, 42, 43, 44, 45, 46)
WGMMA(88, 44, 45, 46, 47, 48, 49, 50)
WGMMA(96, 48, 49, 50, 51, 52, 53, 54)
WGMMA(104, 52, 53, 54, 55, 56, 57, 58)
WGMMA(112, 56, 57, 58, 59, 60, 61, 62)
WGMMA(120, 60, 61, 62, 63, 64, 65, 66)
WGMMA(128, 64, 65, 66, 67, 68, 69, 70)
WGMMA(136, 68, 69, 70, 71, 72, 73, 74)
WGMMA(144, 72, 73, 74, 75, 76, 77, 78)
WGMMA(152, 76, 77, 78, 79, 80, 81, 82)
WGMMA(160, 80, 81, 82, 83, 84, 85, 86)
WGMMA(168, 84, 85, 86, 87, 88, 89, 90)
WGMMA(176, 88, 89, 90, 91, 92, 93, 94)
WGMMA(184, 92, 93, 94, 95, 96, 97, 98)
WGMMA(192, 96, 97, 98, 99, 100, 101, 102)
WGMMA(200, 100, 101, 102, 103, 104, 105, 106)
WGMMA(208, 104, 105, 106, 107, 108, 109, 110)
WGMMA(216, 108, 109, 110, 111, 112, 113, 114)
WGMMA(224, 112, 113, 114, 115, 116, 117, 118)
WGMMA(232, 116, 117, 118, 119, 120, 121, 122)
WGMMA(240, 120, 121, 122, 123, 124, 125, 126)
WGMMA(248, 124, 125, 126, 127, 128, 129, 130)
WGMMA(256, 128, 129, 130, 131, 132, 133, 134)
