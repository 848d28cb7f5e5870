// Gradients of landmark attention for Hopper (sm_90a): wgmma, TMA, warp specialisation. The maths is in the spec,
// section 2, and at `LandmarkAttentionBackward` in landmark-core's ops/landmark_attention.rs.
//
// Two kernels. `queries` has a tile of 128 queries and walks over the keys: scores s = q kᵀ and dP = dO vᵀ, the softmax
// of every (query, block) in registers, dq += ds k. For every (query, block) it leaves two numbers z and δ such that
//     P = 2^(s c - z),  ds = P (dP - δ),  c = log2(e) / sqrt(D)
// holds for the block's ordinary keys, whether the block is past (z = inner normaliser - log2 of the landmark's share,
// δ = Σ w dP) or the query's own (z = log2 of the outer sum, δ = Δ = dO · O). `keys` has a tile of 128 keys and walks over
// the queries: with z and δ at hand it is the backward pass of plain attention, and its tiles know nothing of blocks
// except which row of these `statistics` each key reads. A landmark has P = 0 and ds = 2^(s c - lse) (δ - Δ).
//
// Seven products per pair instead of the five of one kernel that does both; but sums of dq over key tiles need neither
// atomics nor an order between thread blocks, so results are the same bits every time, and the products of both kernels run
// near the tensor cores' rate, since P and ds feed them from registers.
//
// -D: HEAD_DIM (16..128, a multiple of 16), BLOCK (16..128; 0: no landmarks, plain causal attention), HALF_F16.
//
// statistics: (batch and head of the slice, blocks + 1, panels, 2, 64) f32: panel of 64 queries, then z or δ. The last
// "block" holds log2 of the outer sum, and Δ.

#include "hopper.cuh"

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float INFINITE = __builtin_huge_valf();

constexpr int PANELS = (HEAD_DIM + 63) / 64;
constexpr int STEPS = HEAD_DIM / 16;  // inner steps of a product over the head

// Keys of a tile of `queries`: whole blocks.
#if BLOCK == 0
constexpr int BLOCKS = 1;
constexpr int SPAN = 128;
#else
constexpr int BLOCKS = (BLOCK >= 32 ? 128 : 64) / BLOCK;
constexpr int SPAN = BLOCKS * BLOCK;
#endif
constexpr int COLUMNS = (SPAN + 7) / 8 * 8;    // of the products s and dP
constexpr int INNER = (SPAN + 15) / 16 * 16;   // of the product ds k, and rows of a tile in memory

constexpr int ROWS = 64;                       // of a warp group's tile, and of the boxes of q, dout, dq, dk, dv
constexpr int PANEL = ROWS * 128;              // bytes of 64 rows of a panel
constexpr int SIDE = 2 * PANEL * PANELS;       // bytes of a tile of 128 rows

// ---- Dimensions ----------------------------------------------------------------------------------------------------

struct Dimensions {
    int queries, keys, heads, group;   // of the whole operation; `group` query heads share a key head
    int first_batch, first_head;       // of the slice this launch is for
    int slice_heads;                   // query heads of the slice
    int blocks;                        // rows of statistics for blocks
    int panels;                        // panels of 64 queries, even
    float scale;                       // 1 / sqrt(D)
};

// Statistics of (slice's batch and head, block), first panel.
__device__ __forceinline__ float *statistics_row(float *statistics, const Dimensions &d, int batch, int head, int block) {
    const u64 row = (static_cast<u64>(batch) * d.slice_heads + head) * (d.blocks + 1) + block;
    return statistics + row * d.panels * (2 * ROWS);
}

// ---- Small things --------------------------------------------------------------------------------------------------

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ __forceinline__ float log2_fast(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float low_half(u32 x) {
#ifdef HALF_F16
    float y;
    asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %1;\ncvt.f32.f16 %0, l;\n}" : "=f"(y) : "r"(x));
    return y;
#else
    return __uint_as_float(x << 16);
#endif
}

__device__ __forceinline__ float high_half(u32 x) {
#ifdef HALF_F16
    float y;
    asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %1;\ncvt.f32.f16 %0, h;\n}" : "=f"(y) : "r"(x));
    return y;
#else
    return __uint_as_float(x & 0xffff0000u);
#endif
}

__device__ __forceinline__ float dot2(u32 a, u32 b, float sum) {
    return fmaf(high_half(a), high_half(b), fmaf(low_half(a), low_half(b), sum));
}

// A ring of stages in shared memory.
template <int STAGES> struct Ring {
    int stage = 0;
    u32 parity = 0;
    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

// Rows of a warp group's f32 results, scaled, as sixteen-bit values to `rows` (ROWS rows of panels `panel_bytes` apart),
// and from there by the copy engine to `map`.
__device__ __forceinline__ void store_tile(const float (&values)[HEAD_DIM / 2], float scale, u32 rows, u32 panel_bytes,
                                           const TensorMap *map, int head, int row, int batch, int warp_group) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    const u32 at = rows + (warp * 16 + lane % 16) * 128;
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 16; ++i) {
        const float *x = values + 8 * i;
        const u32 chunk = (2 * i % 8 + lane / 16) ^ (lane % 8);
        store_matrices(at + i / 4 * panel_bytes + chunk * 16, pack(x[0] * scale, x[1] * scale), pack(x[2] * scale, x[3] * scale),
                       pack(x[4] * scale, x[5] * scale), pack(x[6] * scale, x[7] * scale));
    }
    fence_async();
    barrier_sync(1 + warp_group, 128);
    if (threadIdx.x % 128 == 0) {
#pragma unroll
        for (int p = 0; p < PANELS; ++p) tma_store(map, rows + p * panel_bytes, p * 64, head, row, batch);
        tma_store_commit();
    }
}

// ---- queries: dq and the statistics --------------------------------------------------------------------------------

constexpr int KEY_STAGES = 2;
constexpr int TILE = INNER * 128 * PANELS;   // bytes of a tile of keys or values

struct QueriesShared {
    static constexpr int Q = 0, DOUT = SIDE, KEYS = 2 * SIDE, VALUES = KEYS + KEY_STAGES * TILE, BARRIERS = VALUES + KEY_STAGES * TILE;
    static constexpr int BYTES = BARRIERS + 8 * (1 + 4 * KEY_STAGES);
};
// Barriers: queries arrived; then for each stage: keys arrived, keys free, values arrived, values free.

// What a thread knows of its two rows, 8 apart.
struct QueryRows {
    float lse[2], delta[2];  // log2 of the outer sum; Δ
    int position;            // of the first, from the start of the first block
    float *statistics;       // of the first, for block 0
};

// Where a tile's keys end for a row, in the tile's columns.
struct Mask {
    int first;       // first column with a key
    int last[2];     // last column that the row sees
    int own[2];      // its own block, counted from the tile's first
};

// Whether column 8 n + e + 2 (lane % 4) is an ordinary key of block b: in every lane, or in none.
__device__ constexpr bool in_block(int n, int e, int b) { return 8 * n + e >= b * BLOCK && 8 * n + e + 6 <= b * BLOCK + BLOCK - 2; }
__device__ constexpr bool outside_block(int n, int e, int b) { return 8 * n + e + 6 < b * BLOCK || 8 * n + e > b * BLOCK + BLOCK - 2; }

// Scores `s` become weights, up to a factor of each (row, block): `share` of the landmark times `inverse` of the inner sum; in the
// row's own block they are the weights themselves. What weighs nothing becomes 0. Writes z.
template <bool MASKED>
__device__ __forceinline__ void weigh(float (&s)[COLUMNS / 2], float (&share)[2][BLOCKS], float (&inverse)[2][BLOCKS],
                                      const QueryRows &rows, const Mask &mask, float c, int first_block, const Dimensions &d) {
    const int lane = threadIdx.x % 32, pair = 2 * (lane % 4);
#if BLOCK == 0
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; ++i) {
        const int column = i / 4 * 8 + i % 2 + pair, h = i / 2 % 2;
        s[i] = exp2_fast(fmaf(s[i], c, -rows.lse[h]));
        if (MASKED && column > mask.last[h]) s[i] = 0;
    }
#else
    const u32 stride = d.panels * (2 * ROWS);  // a slice has less than 2^32 statistics
    if (MASKED) {
#pragma unroll
        for (int i = 0; i < COLUMNS / 2; ++i) {
            const int column = i / 4 * 8 + i % 2, h = i / 2 % 2;
            if (column < mask.first - pair || column > mask.last[h] - pair) s[i] = -INFINITE;
        }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int b = 0; b < BLOCKS; ++b) {
            const int start = b * BLOCK, landmark = start + BLOCK - 1;
            const auto member = [&](int n, int e) {
                const int column = 8 * n + e + pair;
                return in_block(n, e, b) || (column >= start && column < landmark);
            };
            float top = -INFINITE;
#pragma unroll
            for (int n = start / 8; n <= landmark / 8; ++n)
#pragma unroll
                for (int e = 0; e < 2; ++e)
                    if (!outside_block(n, e, b)) top = fmaxf(top, member(n, e) ? s[4 * n + 2 * h + e] : -INFINITE);
            top = quad_max(top) * c;
            float score = __shfl_sync(~0u, s[4 * (landmark / 8) + 2 * h + landmark % 2], (lane & ~3) | landmark % 8 / 2) * c;
            score -= rows.lse[h];
            if (MASKED) {
                top = b == mask.own[h] ? rows.lse[h] : top == -INFINITE ? 0 : top;
            }
            float sum = 0;
#pragma unroll
            for (int n = start / 8; n <= landmark / 8; ++n)
#pragma unroll
                for (int e = 0; e < 2; ++e)
                    if (!outside_block(n, e, b)) {
                        float &x = s[4 * n + 2 * h + e];
                        const float weight = exp2_fast(fmaf(x, c, -top));
                        if (member(n, e)) x = weight, sum += weight;
                    }
            sum = quad_sum(sum);
            const bool own = MASKED && b == mask.own[h], future = MASKED && b > mask.own[h], empty = MASKED && sum == 0;
            inverse[h][b] = empty ? 0 : reciprocal_fast(sum);
            share[h][b] = own || future ? 0 : exp2_fast(score);
            const float z = own ? rows.lse[h] : empty ? INFINITE : top + log2_fast(sum) - score;
            const bool write = lane % 4 == 0 && !future && (!MASKED || first_block + b < d.blocks);
            if (write) rows.statistics[(first_block + b) * stride + 8 * h] = z;
        }
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; ++i) {
        const int n = i / 4, e = i % 2, b = (8 * n + e) / BLOCK, column = 8 * n + e + pair;
        if (!(b < BLOCKS && in_block(n, e, b)))
            if (column >= SPAN || column == b * BLOCK + BLOCK - 1 || column == (b + 1) * BLOCK + BLOCK - 1) s[i] = 0;
    }
#endif
}

// Gradients of the scores in place of dP. Writes δ.
template <bool MASKED>
__device__ __forceinline__ void differentiate(const float (&s)[COLUMNS / 2], float (&dp)[COLUMNS / 2], const float (&share)[2][BLOCKS],
                                              const float (&inverse)[2][BLOCKS], const QueryRows &rows, const Mask &mask,
                                              int first_block, const Dimensions &d) {
    const int lane = threadIdx.x % 32, pair = 2 * (lane % 4);
#if BLOCK == 0
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; ++i) dp[i] = s[i] * (dp[i] - rows.delta[i / 2 % 2]);
#else
    const u32 stride = d.panels * (2 * ROWS);  // a slice has less than 2^32 statistics
    // ds = weight (gain dP - offset); a landmark's is `landmarks`.
    float gain[2][BLOCKS], offset[2][BLOCKS], landmarks[2][BLOCKS];
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int b = 0; b < BLOCKS; ++b) {
            const int start = b * BLOCK, landmark = start + BLOCK - 1;
            float sum = 0;
#pragma unroll
            for (int n = start / 8; n <= landmark / 8; ++n)
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const int column = 8 * n + e + pair, i = 4 * n + 2 * h + e;
                    if (!outside_block(n, e, b)) {
                        const float sum_with = fmaf(s[i], dp[i], sum);
                        sum = in_block(n, e, b) || (column >= start && column < landmark) ? sum_with : sum;
                    }
                }
            sum = quad_sum(sum) * inverse[h][b];
            const bool own = MASKED && b == mask.own[h], future = MASKED && b > mask.own[h];
            const float delta = own ? rows.delta[h] : sum;
            gain[h][b] = own ? 1 : share[h][b] * inverse[h][b];
            offset[h][b] = gain[h][b] * delta;
            landmarks[h][b] = share[h][b] * (delta - rows.delta[h]);
            const bool write = lane % 4 == 0 && !future && (!MASKED || first_block + b < d.blocks);
            if (write) rows.statistics[(first_block + b) * stride + ROWS + 8 * h] = delta;
        }
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; ++i) {
        const int n = i / 4, e = i % 2, h = i / 2 % 2, column = 8 * n + e + pair;
        const int b = (8 * n + e) / BLOCK < BLOCKS ? (8 * n + e) / BLOCK : BLOCKS - 1;
        const int after = (8 * n + e + 6) / BLOCK < BLOCKS ? (8 * n + e + 6) / BLOCK : BLOCKS - 1;
        const bool first = b == after || column < after * BLOCK;
        float x = s[i] * fmaf(dp[i], first ? gain[h][b] : gain[h][after], first ? -offset[h][b] : -offset[h][after]);
        if (!in_block(n, e, b) && column == b * BLOCK + BLOCK - 1) x = landmarks[h][b];
        if (after != b && column == after * BLOCK + BLOCK - 1) x = landmarks[h][after];
        dp[i] = x;
    }
#endif
}

// Δ = dout · out of the thread's two rows, and log2 of the outer sum; both also go to the statistics.
__device__ __forceinline__ void query_rows(QueryRows &rows, const u16 *out, const u16 *dout, u64 out_stride, u64 dout_stride,
                                           const float *lse, int first_query, const Dimensions &d) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    // Two lanes share a row here.
    const int row = first_query + warp * 16 + lane / 2;
    float sum = 0;
    if (row < d.queries) {
        const uint4 *o = reinterpret_cast<const uint4 *>(out + row * out_stride) + lane % 2 * (HEAD_DIM / 16);
        const uint4 *g = reinterpret_cast<const uint4 *>(dout + row * dout_stride) + lane % 2 * (HEAD_DIM / 16);
#pragma unroll
        for (int i = 0; i < HEAD_DIM / 16; ++i) {
            const uint4 x = o[i], y = g[i];
            sum = dot2(x.x, y.x, dot2(x.y, y.y, dot2(x.z, y.z, dot2(x.w, y.w, sum))));
        }
    }
    sum += __shfl_xor_sync(~0u, sum, 1);
    const u32 last = d.blocks * d.panels * (2 * ROWS);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        rows.delta[h] = __shfl_sync(~0u, sum, lane / 4 * 2 + 16 * h);
        const int query = first_query + warp * 16 + lane / 4 + 8 * h;
        // Rows that do not exist, or attend to nothing, weigh nothing.
        const float outer = query < d.queries ? lse[query] * LOG2_E : INFINITE;
        rows.lse[h] = outer == -INFINITE ? INFINITE : outer;
        if (lane % 4 == 0) {
            rows.statistics[last + 8 * h] = rows.lse[h];
            rows.statistics[last + ROWS + 8 * h] = rows.delta[h];
        }
    }
}

extern "C" __global__ void __launch_bounds__(384, 1)
    landmark_attention_backward_queries(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
                                        const __grid_constant__ TensorMap v_map, const __grid_constant__ TensorMap dout_map,
                                        const __grid_constant__ TensorMap dq_map, const u16 *out, u64 out_batch, u64 out_row,
                                        u64 out_head, const u16 *dout, u64 dout_batch, u64 dout_row, u64 dout_head, const float *lse,
                                        const u32 *phases, float *statistics, const Dimensions d) {
    extern __shared__ __align__(1024) unsigned char shared[];
    typedef QueriesShared Shared;
    const u32 base = shared_address(shared);
    const u32 queries_full = base + Shared::BARRIERS, rings = queries_full + 8;
    const auto keys_full = [&](int stage) { return rings + 32 * stage; };
    const auto keys_free = [&](int stage) { return rings + 32 * stage + 8; };
    const auto values_full = [&](int stage) { return rings + 32 * stage + 16; };
    const auto values_free = [&](int stage) { return rings + 32 * stage + 24; };

    // The longest rows first.
    const int tile = gridDim.x - 1 - blockIdx.x;
    const int batch = d.first_batch + blockIdx.z, head = d.first_head + blockIdx.y, key_head = head / d.group;
    const int phase = BLOCK ? static_cast<int>(phases[batch]) : 0;
    const int offset = d.keys - d.queries + phase;  // position of query 0
    const int last_query = min(tile * 2 * ROWS + 2 * ROWS, d.queries) - 1;
    const int tiles = (last_query + offset) / SPAN + 1;

    if (threadIdx.x == 0) {
        mbarrier_init(queries_full, 1);
        for (int s = 0; s < KEY_STAGES; ++s) {
            mbarrier_init(keys_full(s), 1);
            mbarrier_init(values_full(s), 1);
            mbarrier_init(keys_free(s), 8);
            mbarrier_init(values_free(s), 8);
        }
        mbarrier_init_fence();
    }
    __syncthreads();

    if (threadIdx.x < 128) {
        registers_shrink<24>();
        if (threadIdx.x == 0) {
            mbarrier_arrive_expect(queries_full, 2 * SIDE);
            for (int p = 0; p < PANELS; ++p)
                for (int half = 0; half < 2; ++half) {
                    const int row = (2 * tile + half) * ROWS;
                    const u32 to = base + (2 * p + half) * PANEL;
                    tma_load(to + Shared::Q, &q_map, queries_full, p * 64, head, row, batch);
                    tma_load(to + Shared::DOUT, &dout_map, queries_full, p * 64, head, row, batch);
                }
            Ring<KEY_STAGES> ring;
            for (int t = tiles - 1; t >= 0; --t, ring.advance()) {
                const int s = ring.stage, row = t * SPAN - phase;
                mbarrier_wait(keys_free(s), ring.parity ^ 1);
                mbarrier_arrive_expect(keys_full(s), TILE);
                for (int p = 0; p < PANELS; ++p)
                    tma_load(base + Shared::KEYS + s * TILE + p * INNER * 128, &k_map, keys_full(s), p * 64, key_head, row, batch);
                mbarrier_wait(values_free(s), ring.parity ^ 1);
                mbarrier_arrive_expect(values_full(s), TILE);
                for (int p = 0; p < PANELS; ++p)
                    tma_load(base + Shared::VALUES + s * TILE + p * INNER * 128, &v_map, values_full(s), p * 64, key_head, row, batch);
            }
        }
    } else {
        registers_grow<240>();
        const int group = __shfl_sync(~0u, threadIdx.x / 128, 0) - 1, lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
        const int first_query = (2 * tile + group) * ROWS;
        const float c = d.scale * LOG2_E;
        QueryRows rows;
        const int row = warp * 16 + lane / 4;
        rows.position = first_query + row + offset;
        rows.statistics = statistics_row(statistics, d, blockIdx.z, blockIdx.y, 0) + (2 * tile + group) * (2 * ROWS) + row;
        query_rows(rows, out + batch * out_batch + head * out_head, dout + batch * dout_batch + head * dout_head, out_row, dout_row,
                   lse + (static_cast<u64>(batch) * d.heads + head) * d.queries, first_query, d);

        const u32 q = base + Shared::Q + group * PANEL, dout_tile = base + Shared::DOUT + group * PANEL;
        float dq[HEAD_DIM / 2];
#pragma unroll
        for (int i = 0; i < HEAD_DIM / 2; ++i) dq[i] = 0;
        const auto product = [&](float(&result)[COLUMNS / 2], u32 left, u32 right) {
            wgmma_fence();
            Wgmma<COLUMNS>::template ss_first<0, 0>(result, wgmma_operand(left), wgmma_operand(right));
#pragma unroll
            for (int i = 1; i < STEPS; ++i)
                Wgmma<COLUMNS>::template ss<0, 0>(result, wgmma_operand(left + i / 4 * (2 * PANEL) + i % 4 * 32),
                                                  wgmma_operand(right + i / 4 * (INNER * 128) + i % 4 * 32), 1);
            wgmma_commit();
        };

        Ring<KEY_STAGES> ring;
        int t = tiles - 1;
        // Tiles that only the other warp group sees.
        const int own_tiles = first_query < d.queries ? (min(first_query + ROWS, d.queries) - 1 + offset) / SPAN + 1 : 0;
        for (; t >= own_tiles; --t, ring.advance()) {
            mbarrier_wait(keys_full(ring.stage), ring.parity);
            mbarrier_wait(values_full(ring.stage), ring.parity);
            if (lane == 0) mbarrier_arrive(keys_free(ring.stage)), mbarrier_arrive(values_free(ring.stage));
        }
        // Tiles below this one are past for all rows.
        const int unmasked = BLOCK ? (first_query + offset) / (BLOCK ? BLOCK : 1) / BLOCKS : (first_query + offset + 1) / SPAN;

        mbarrier_wait(queries_full, 0);
        u32 before = 0;  // barrier of the tile whose product ds k is under way
        for (; t >= 0; --t, ring.advance()) {
            const u32 keys = base + Shared::KEYS + ring.stage * TILE;
            float s[COLUMNS / 2], dp[COLUMNS / 2];
            mbarrier_wait(keys_full(ring.stage), ring.parity);
            product(s, q, keys);
            wgmma_wait<1>();
            if (lane == 0 && before) mbarrier_arrive(before);
            before = keys_free(ring.stage);
            mbarrier_wait(values_full(ring.stage), ring.parity);
            product(dp, dout_tile, base + Shared::VALUES + ring.stage * TILE);
            const bool masked = t >= unmasked || (t == 0 && phase != 0);
            float share[2][BLOCKS], inverse[2][BLOCKS];
            Mask mask;
            wgmma_wait<1>();
            hold(s);
            if (masked) {
                mask.first = phase - t * SPAN;
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    mask.last[h] = rows.position + 8 * h - t * SPAN;
                    mask.own[h] = BLOCK ? (rows.position + 8 * h) / (BLOCK ? BLOCK : 1) - t * BLOCKS : 0;
                }
                weigh<true>(s, share, inverse, rows, mask, c, t * BLOCKS, d);
            } else {
                weigh<false>(s, share, inverse, rows, mask, c, t * BLOCKS, d);
            }
            wgmma_wait<0>();
            hold(dp);
            if (lane == 0) mbarrier_arrive(values_free(ring.stage));
            if (masked)
                differentiate<true>(s, dp, share, inverse, rows, mask, t * BLOCKS, d);
            else
                differentiate<false>(s, dp, share, inverse, rows, mask, t * BLOCKS, d);
            u32 ds[INNER / 4];
#pragma unroll
            for (int i = 0; i < INNER / 4; ++i) ds[i] = 2 * i < COLUMNS / 2 ? pack(dp[2 * i], dp[2 * i + 1]) : 0;
            hold(ds);
            hold(dq);
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < INNER / 16; ++i)
                Wgmma<HEAD_DIM>::template rs<1>(dq, ds + 4 * i, wgmma_operand(keys + i * 2048, INNER * 128), 1);
            wgmma_commit();
        }
        wgmma_wait<0>();
        hold(dq);
        barrier_sync(1 + group, 128);
        if (first_query < d.queries) store_tile(dq, d.scale, q, 2 * PANEL, &dq_map, head, first_query, batch, group);
        tma_store_wait_read<0>();
    }
}

// ---- keys: dk and dv -----------------------------------------------------------------------------------------------

constexpr int QUERY_STAGES = 3;
constexpr int SLOTS = BLOCK ? (126 + BLOCK) / (BLOCK ? BLOCK : 1) + 1 : 0;  // blocks that 128 keys can touch
constexpr int SLOT = 2 * ROWS * 4;                                          // bytes of a slot: z and δ of 64 queries

struct KeysShared {
    static constexpr int K = 0, V = SIDE, STAGES = 2 * SIDE;
    static constexpr int Q = 0, DOUT = PANELS * PANEL, STATISTICS = 2 * PANELS * PANEL, STATISTICS_BYTES = (SLOTS + 1) * SLOT;
    static constexpr int STAGE = STATISTICS + (STATISTICS_BYTES + 1023) / 1024 * 1024;
    static constexpr int BARRIERS = STAGES + QUERY_STAGES * STAGE;
    static constexpr int BYTES = BARRIERS + 8 * (1 + 2 * QUERY_STAGES);
};
// Barriers: keys and values arrived; then for each stage: queries arrived, free.

__device__ __forceinline__ void bulk_load(u32 to, const void *from, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from),
                 "r"(bytes), "r"(barrier)
                 : "memory");
}

// What a thread knows of its two keys, 8 apart.
struct KeyRows {
    bool landmark[2];
    int slot[2];     // of its block
    int first[2];    // first query, counted from query 0, that sees it
};

extern "C" __global__ void __launch_bounds__(384, 1)
    landmark_attention_backward_keys(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
                                     const __grid_constant__ TensorMap v_map, const __grid_constant__ TensorMap dout_map,
                                     const __grid_constant__ TensorMap dk_map, const __grid_constant__ TensorMap dv_map,
                                     const u32 *phases, float *statistics, const Dimensions d) {
    extern __shared__ __align__(1024) unsigned char shared[];
    typedef KeysShared Shared;
    const u32 base = shared_address(shared);
    const u32 keys_full = base + Shared::BARRIERS, rings = keys_full + 8;
    const auto queries_full = [&](int stage) { return rings + 16 * stage; };
    const auto queries_free = [&](int stage) { return rings + 16 * stage + 8; };

    const int first_key = blockIdx.x * 2 * ROWS;
    const int slice_head = blockIdx.y * d.group;
    const int batch = d.first_batch + blockIdx.z, head = d.first_head + slice_head, key_head = head / d.group;
    const int phase = BLOCK ? static_cast<int>(phases[batch]) : 0;
    const int offset = d.keys - d.queries;  // key of query 0
    const int first_block = BLOCK ? (first_key + phase) / (BLOCK ? BLOCK : 1) : 0;
    const int first_tile = max(first_key - offset, 0) / ROWS, end_tile = (d.queries + ROWS - 1) / ROWS;

    if (threadIdx.x == 0) {
        mbarrier_init(keys_full, 1);
        for (int s = 0; s < QUERY_STAGES; ++s) {
            mbarrier_init(queries_full(s), 1);
            mbarrier_init(queries_free(s), 8);
        }
        mbarrier_init_fence();
    }
    __syncthreads();

    if (threadIdx.x < 128) {
        registers_shrink<24>();
        if (threadIdx.x == 0) {
            mbarrier_arrive_expect(keys_full, 2 * SIDE);
            for (int p = 0; p < PANELS; ++p)
                for (int half = 0; half < 2; ++half) {
                    const u32 to = base + (2 * p + half) * PANEL;
                    tma_load(to + Shared::K, &k_map, keys_full, p * 64, key_head, first_key + half * ROWS, batch);
                    tma_load(to + Shared::V, &v_map, keys_full, p * 64, key_head, first_key + half * ROWS, batch);
                }
            Ring<QUERY_STAGES> ring;
            for (int g = 0; g < d.group; ++g) {
                for (int t = first_tile; t < end_tile; ++t, ring.advance()) {
                    const u32 full = queries_full(ring.stage), to = base + Shared::STAGES + ring.stage * Shared::STAGE;
                    mbarrier_wait(queries_free(ring.stage), ring.parity ^ 1);
                    mbarrier_arrive_expect(full, Shared::STATISTICS + Shared::STATISTICS_BYTES);
                    for (int p = 0; p < PANELS; ++p) {
                        tma_load(to + Shared::Q + p * PANEL, &q_map, full, p * 64, head + g, t * ROWS, batch);
                        tma_load(to + Shared::DOUT + p * PANEL, &dout_map, full, p * 64, head + g, t * ROWS, batch);
                    }
#pragma unroll 1
                    for (int i = 0; i <= SLOTS; ++i) {
                        const int block = i == SLOTS ? d.blocks : min(first_block + i, d.blocks - 1);
                        const float *from = statistics_row(statistics, d, blockIdx.z, slice_head + g, block) + t * (2 * ROWS);
                        bulk_load(to + Shared::STATISTICS + i * SLOT, from, SLOT, full);
                    }
                }
            }
        }
    } else {
        registers_grow<240>();
        const int group = __shfl_sync(~0u, threadIdx.x / 128, 0) - 1, lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, pair = 2 * (lane % 4);
        const float c = d.scale * LOG2_E;
        const int group_key = first_key + group * ROWS;
        KeyRows rows;
        // Whether the warp's keys need more than the statistics of one block.
        bool mixed = false;
        {
            const int first = group_key + warp * 16;
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int key = first + lane / 4 + 8 * h;
                rows.landmark[h] = false;
                rows.slot[h] = 0;
#if BLOCK
                rows.landmark[h] = (key + phase) % BLOCK == BLOCK - 1;
                rows.slot[h] = (key + phase) / BLOCK - first_block;
#endif
                rows.first[h] = key - offset + rows.landmark[h];
            }
#if BLOCK
            mixed = (first + phase) / BLOCK != (first + phase + 16) / BLOCK;
#endif
        }

        const u32 k = base + Shared::K + group * PANEL, v = base + Shared::V + group * PANEL;
        float dk[HEAD_DIM / 2], dv[HEAD_DIM / 2];
#pragma unroll
        for (int i = 0; i < HEAD_DIM / 2; ++i) dk[i] = dv[i] = 0;
        const auto product = [&](float(&result)[ROWS / 2], u32 left, u32 right) {
            wgmma_fence();
            Wgmma<ROWS>::template ss_first<0, 0>(result, wgmma_operand(left), wgmma_operand(right));
#pragma unroll
            for (int i = 1; i < STEPS; ++i)
                Wgmma<ROWS>::template ss<0, 0>(result, wgmma_operand(left + i / 4 * (2 * PANEL) + i % 4 * 32),
                                               wgmma_operand(right + i / 4 * PANEL + i % 4 * 32), 1);
            wgmma_commit();
        };

        mbarrier_wait(keys_full, 0);
        Ring<QUERY_STAGES> ring;
        // The first tiles of a head may be before all keys of this warp group.
        const int own_tile = group_key < d.keys ? max(group_key - offset, 0) / ROWS : end_tile;
        const int tiles = (end_tile - first_tile) * d.group;
        int t = first_tile, left = tiles;
        const auto next = [&]() {
            --left;
            ring.advance();
            if (++t == end_tile) t = first_tile;
        };
        // To the next tile with work.
        const auto settle = [&]() {
            while (left > 0 && t < own_tile) {
                mbarrier_wait(queries_full(ring.stage), ring.parity);
                if (lane == 0) mbarrier_arrive(queries_free(ring.stage));
                next();
            }
            if (left > 0) mbarrier_wait(queries_full(ring.stage), ring.parity);
        };
        u32 before = 0;  // barrier of the tile whose products are under way
        for (settle(); left > 0; next(), settle()) {
            const u32 stage = Shared::STAGES + ring.stage * Shared::STAGE;
            float s[ROWS / 2], dp[ROWS / 2];
            product(s, k, base + stage + Shared::Q);
            wgmma_wait<1>();
            if (lane == 0 && before) mbarrier_arrive(before);
            before = queries_free(ring.stage);
            product(dp, v, base + stage + Shared::DOUT);
            const float *table = reinterpret_cast<const float *>(shared + stage + Shared::STATISTICS) + pair;
            const bool general = mixed || group_key + ROWS - offset >= t * ROWS;
            u32 p[ROWS / 4], ds[ROWS / 4];
            wgmma_wait<1>();
            hold(s);
            if (!general) {
                const float *z = table + (BLOCK ? rows.slot[0] : 0) * (2 * ROWS);
#pragma unroll
                for (int n = 0; n < 8; ++n) {
                    const float2 x = *reinterpret_cast<const float2 *>(z + 8 * n);
                    s[4 * n] = exp2_fast(fmaf(s[4 * n], c, -x.x));
                    s[4 * n + 1] = exp2_fast(fmaf(s[4 * n + 1], c, -x.y));
                    s[4 * n + 2] = exp2_fast(fmaf(s[4 * n + 2], c, -x.x));
                    s[4 * n + 3] = exp2_fast(fmaf(s[4 * n + 3], c, -x.y));
                }
            } else {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const float *z = table + (rows.landmark[h] ? SLOTS : rows.slot[h]) * (2 * ROWS);
                    const int first = rows.first[h] - t * ROWS - pair;
#pragma unroll
                    for (int n = 0; n < 8; ++n) {
                        const float2 x = *reinterpret_cast<const float2 *>(z + 8 * n);
                        float &a = s[4 * n + 2 * h], &b = s[4 * n + 2 * h + 1];
                        a = 8 * n >= first ? exp2_fast(fmaf(a, c, -x.x)) : 0;
                        b = 8 * n + 1 >= first ? exp2_fast(fmaf(b, c, -x.y)) : 0;
                    }
                }
            }
            wgmma_wait<0>();
            hold(dp);
            if (!general) {
                const float *delta = table + (BLOCK ? rows.slot[0] : 0) * (2 * ROWS) + ROWS;
#pragma unroll
                for (int n = 0; n < 8; ++n) {
                    const float2 x = *reinterpret_cast<const float2 *>(delta + 8 * n);
                    p[2 * n] = pack(s[4 * n], s[4 * n + 1]);
                    p[2 * n + 1] = pack(s[4 * n + 2], s[4 * n + 3]);
                    ds[2 * n] = pack(s[4 * n] * (dp[4 * n] - x.x), s[4 * n + 1] * (dp[4 * n + 1] - x.y));
                    ds[2 * n + 1] = pack(s[4 * n + 2] * (dp[4 * n + 2] - x.x), s[4 * n + 3] * (dp[4 * n + 3] - x.y));
                }
            } else {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const float *own = table + rows.slot[h] * (2 * ROWS) + ROWS;
                    const float *delta = rows.landmark[h] ? table + SLOTS * (2 * ROWS) + ROWS : own;
                    const int first = rows.first[h] - t * ROWS - pair;
#pragma unroll
                    for (int n = 0; n < 8; ++n) {
                        const float2 x = *reinterpret_cast<const float2 *>(delta + 8 * n);
                        float2 y = {dp[4 * n + 2 * h], dp[4 * n + 2 * h + 1]};
                        if (rows.landmark[h]) y = *reinterpret_cast<const float2 *>(own + 8 * n);
                        const float a = 8 * n >= first ? s[4 * n + 2 * h] * (y.x - x.x) : 0;
                        const float b = 8 * n + 1 >= first ? s[4 * n + 2 * h + 1] * (y.y - x.y) : 0;
                        p[2 * n + h] = rows.landmark[h] ? 0 : pack(s[4 * n + 2 * h], s[4 * n + 2 * h + 1]);
                        ds[2 * n + h] = pack(a, b);
                    }
                }
            }
            hold(p);
            hold(ds);
            hold(dv);
            hold(dk);
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < ROWS / 16; ++i)
                Wgmma<HEAD_DIM>::template rs<1>(dv, p + 4 * i, wgmma_operand(base + stage + Shared::DOUT + i * 2048, PANEL), 1);
#pragma unroll
            for (int i = 0; i < ROWS / 16; ++i)
                Wgmma<HEAD_DIM>::template rs<1>(dk, ds + 4 * i, wgmma_operand(base + stage + Shared::Q + i * 2048, PANEL), 1);
            wgmma_commit();
        }
        wgmma_wait<0>();
        hold(dk);
        hold(dv);
        barrier_sync(1 + group, 128);
        if (group_key < d.keys) {
            store_tile(dk, d.scale, k, 2 * PANEL, &dk_map, key_head, group_key, batch, group);
            store_tile(dv, 1, v, 2 * PANEL, &dv_map, key_head, group_key, batch, group);
        }
        tma_store_wait_read<0>();
    }
}
