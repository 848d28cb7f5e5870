// Gradients of the queries of landmark attention on Hopper, and the statistics for the gradients of keys and values: the first of
// two kernels, see landmark_attention_backward_hopper.cuh.
//
// A thread block has 128 queries of a head, 64 for each of two warp groups that compute; a third copies tiles of keys and
// values (TMA) into a ring. A tile is a whole number of blocks, its first row shifted by the batch row's phase, so that where
// blocks end in it is known here, and sums over a block run along a thread's registers and the four threads of a row. Tiles
// come from the diagonal backwards. Those that a warp group sees in part, or that begin before the first key, are masked;
// all others take the path without a comparison. While one warp group is at its softmax, the products of the other run; the
// product ds k of a tile runs on while the scores of the next are issued.
//
// 64 queries by 128 keys leave room for nothing else in registers (scores, dP and dq are 64 each); with heads of 256 columns a
// tile has 64 keys.

#include "landmark_attention_backward_hopper.cuh"

// Keys of a tile. Factors of each (row, block) are kept in registers, so small blocks come in smaller tiles, and those of which
// three would fit, each of another shape in the registers, come in twos.
constexpr int MOST = BLOCK && BLOCK < 16                        ? 32
                     : HEAD_DIM > 128 || (BLOCK && BLOCK < 32) ? 64
                     : BLOCK > 32 && BLOCK < 43                ? 96
                                                               : 128;
constexpr int BLOCKS = BLOCK ? MOST / DIVISOR : 1;
constexpr int SPAN = BLOCK ? BLOCKS * BLOCK : MOST;
constexpr int COLUMNS = (SPAN + 7) / 8 * 8;    // of scores and dP
constexpr int INNER = (SPAN + 15) / 16 * 16;   // of the product ds k, and rows of a tile in memory; those past SPAN weigh 0
static_assert(BLOCKS > 0, "a block does not fit a tile");

constexpr int SIDE = 2 * PANEL * PANELS;       // bytes of 128 rows of queries
constexpr int TILE = INNER * 128 * PANELS;     // bytes of a tile of keys or values

constexpr int KEY_STAGES = 2;
constexpr int VALUE_STAGES = HEAD_DIM > 128 ? 1 : 2;

// Offsets in shared memory.
constexpr int QUERIES_AT = 0;
constexpr int DOUT_AT = SIDE;
constexpr int KEYS_AT = 2 * SIDE;
constexpr int VALUES_AT = KEYS_AT + KEY_STAGES * TILE;
constexpr int BARRIERS_AT = VALUES_AT + VALUE_STAGES * TILE;
// One for the queries; for each stage, one for its arrival and one that it is free again.
constexpr int KEY_BARRIERS_AT = BARRIERS_AT + 8;
constexpr int VALUE_BARRIERS_AT = KEY_BARRIERS_AT + 16 * KEY_STAGES;

// What a thread knows of its two rows, 8 apart.
struct Rows {
    float lse[2], delta[2];  // log2 of the outer sum; Δ
    int position;            // of the first, from the start of the first block
    float *statistics;       // of the first, for block 0
};

// What of a tile a thread's rows see, in the tile's columns and blocks.
struct Mask {
    int first;    // first column with a key
    int last[2];  // last column that the row sees
    int own[2];   // the row's own block
};

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(EVERY, x, 1);
    return x + __shfl_xor_sync(EVERY, x, 2);
}

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(EVERY, x, 1));
    return fmaxf(x, __shfl_xor_sync(EVERY, x, 2));
}

__device__ __forceinline__ float log2_fast(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// ---- Which columns are whose ---------------------------------------------------------------------------------------
//
// Register 4 n + 2 h + e holds row h, column 8 n + e + 2 (lane % 4). The four columns of (n, e) lie in one block or in two.

// Whether all four are ordinary keys of block b; whether none is.
__device__ constexpr bool in_block(int n, int e, int b) { return 8 * n + e >= b * BLOCK && 8 * n + e + 6 <= b * BLOCK + BLOCK - 2; }
__device__ constexpr bool outside_block(int n, int e, int b) { return 8 * n + e + 6 < b * BLOCK || 8 * n + e > b * BLOCK + BLOCK - 2; }
// First and last of their blocks.
__device__ constexpr int block_of(int column) { return column / DIVISOR < BLOCKS ? column / DIVISOR : BLOCKS - 1; }

// ---- Scores to weights ---------------------------------------------------------------------------------------------

// Scores `s` become weights, up to a factor of each (row, block): `share` of the landmark times `inverse` of the inner sum; in the
// row's own block they are the weights themselves. What weighs nothing becomes 0. Writes z.
template <bool MASKED>
__device__ __forceinline__ void weigh(float (&s)[COLUMNS / 2], float (&share)[2][BLOCKS], float (&inverse)[2][BLOCKS], const Rows &rows,
                                      const Mask &mask, float c, int first_block, const Dimensions &d) {
    const int lane = threadIdx.x % 32, pair = 2 * (lane % 4);
    if (MASKED) {
#pragma unroll
        for (int i = 0; i < COLUMNS / 2; ++i) {
            const int column = i / 4 * 8 + i % 2, h = i / 2 % 2;
            if (column < mask.first - pair || column > mask.last[h] - pair) s[i] = -INFINITE;
        }
    }
#if BLOCK == 0
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; ++i) s[i] = exp2_fast(fmaf(s[i], c, -rows.lse[i / 2 % 2]));
#else
    const u32 stride = d.panels * (2 * ROWS);  // a head has less than 2^32 statistics
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int b = 0; b < BLOCKS; ++b) {
            const int start = b * BLOCK, landmark = start + BLOCK - 1;
            const auto member = [&](int n, int e) {
                const int column = 8 * n + e + pair;
                return in_block(n, e, b) || (column >= start && column < landmark);
            };
            float tops[2] = {-INFINITE, -INFINITE};  // two, for shorter chains
#pragma unroll
            for (int n = start / 8; n <= landmark / 8; ++n)
#pragma unroll
                for (int e = 0; e < 2; ++e)
                    if (!outside_block(n, e, b)) tops[e] = fmaxf(tops[e], member(n, e) ? s[4 * n + 2 * h + e] : -INFINITE);
            float top = quad_max(fmaxf(tops[0], tops[1])) * c;
            const float landmark_score = __shfl_sync(EVERY, s[4 * (landmark / 8) + 2 * h + landmark % 2], (lane & ~3) | landmark % 8 / 2);
            const float log_share = fmaf(landmark_score, c, -rows.lse[h]);
            const bool own = MASKED && b == mask.own[h], future = MASKED && b > mask.own[h];
            if (MASKED) top = own ? rows.lse[h] : top == -INFINITE ? 0 : top;
            float sums[2] = {0, 0};
#pragma unroll
            for (int n = start / 8; n <= landmark / 8; ++n)
#pragma unroll
                for (int e = 0; e < 2; ++e)
                    if (!outside_block(n, e, b)) {
                        float &x = s[4 * n + 2 * h + e];
                        const float weight = exp2_fast(fmaf(x, c, -top));
                        if (member(n, e)) x = weight, sums[e] += weight;
                    }
            const float sum = quad_sum(sums[0] + sums[1]);
            // A block whose only key is its landmark has nothing to share out.
            const bool empty = MASKED && sum == 0;
            inverse[h][b] = empty ? 0 : reciprocal_fast(sum);
            share[h][b] = own || future ? 0 : exp2_fast(log_share);
            const float z = own ? rows.lse[h] : empty ? INFINITE : top + log2_fast(sum) - log_share;
            const bool write = lane % 4 == 0 && !future && (!MASKED || first_block + b < d.blocks);
            if (write) rows.statistics[(first_block + b) * stride + 8 * h] = z;
        }
    // Landmarks, and what is past the tile.
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; ++i) {
        const int n = i / 4, e = i % 2, b = (8 * n + e) / BLOCK, column = 8 * n + e + pair;
        if (b >= BLOCKS || !in_block(n, e, b))
            if (column >= SPAN || column == b * BLOCK + BLOCK - 1 || column == (b + 1) * BLOCK + BLOCK - 1) s[i] = 0;
    }
#endif
}

// ---- Weights and dP to gradients of the scores ---------------------------------------------------------------------

// ds in place of dP. Writes δ.
template <bool MASKED>
__device__ __forceinline__ void differentiate(const float (&s)[COLUMNS / 2], float (&dp)[COLUMNS / 2], const float (&share)[2][BLOCKS],
                                              const float (&inverse)[2][BLOCKS], const Rows &rows, const Mask &mask, int first_block,
                                              const Dimensions &d) {
#if BLOCK == 0
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; ++i) dp[i] = s[i] * (dp[i] - rows.delta[i / 2 % 2]);
#else
    const int lane = threadIdx.x % 32, pair = 2 * (lane % 4);
    const u32 stride = d.panels * (2 * ROWS);
    // ds = weight (gain dP - offset); a landmark's is `landmarks`.
    float gain[2][BLOCKS], offset[2][BLOCKS], landmarks[2][BLOCKS];
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int b = 0; b < BLOCKS; ++b) {
            const int start = b * BLOCK, landmark = start + BLOCK - 1;
            float sums[2] = {0, 0};
#pragma unroll
            for (int n = start / 8; n <= landmark / 8; ++n)
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const int column = 8 * n + e + pair, i = 4 * n + 2 * h + e;
                    if (!outside_block(n, e, b)) {
                        const float with = fmaf(s[i], dp[i], sums[e]);
                        sums[e] = in_block(n, e, b) || (column >= start && column < landmark) ? with : sums[e];
                    }
                }
            const float mean = quad_sum(sums[0] + sums[1]) * inverse[h][b];
            const bool own = MASKED && b == mask.own[h], future = MASKED && b > mask.own[h];
            const float delta = own ? rows.delta[h] : mean;
            gain[h][b] = own ? 1 : share[h][b] * inverse[h][b];
            offset[h][b] = gain[h][b] * delta;
            landmarks[h][b] = share[h][b] * (delta - rows.delta[h]);
            const bool write = lane % 4 == 0 && !future && (!MASKED || first_block + b < d.blocks);
            if (write) rows.statistics[(first_block + b) * stride + ROWS + 8 * h] = delta;
        }
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; ++i) {
        const int n = i / 4, e = i % 2, h = i / 2 % 2, column = 8 * n + e + pair;
        const int b = block_of(8 * n + e), after = block_of(8 * n + e + 6);
        const bool first = b == after || column < after * BLOCK;
        float x = s[i] * fmaf(dp[i], first ? gain[h][b] : gain[h][after], first ? -offset[h][b] : -offset[h][after]);
        if (!in_block(n, e, b) && column == b * BLOCK + BLOCK - 1) x = landmarks[h][b];
        if (after != b && column == after * BLOCK + BLOCK - 1) x = landmarks[h][after];
        dp[i] = x;
    }
#endif
}

// ---- Rows ----------------------------------------------------------------------------------------------------------

constexpr int HALF_TYPE = HALF_F16 ? F16 : BF16;

// Δ = dout · out of the thread's two rows, and log2 of the outer sum; both also go to the statistics.
__device__ __forceinline__ void find_rows(Rows &rows, const u16 *out, const u16 *dout, u64 out_row, u64 dout_row, const float *lse,
                                          int first_query, const Dimensions &d) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    // Here two lanes share a row.
    const int row = first_query + warp * 16 + lane / 2;
    float sum = 0;
    if (row < d.queries) {
        const u16 *x = out + row * out_row + lane % 2 * (HEAD_DIM / 2), *y = dout + row * dout_row + lane % 2 * (HEAD_DIM / 2);
#pragma unroll
        for (int i = 0; i < HEAD_DIM / 16; ++i) {
            float a[8], b[8];
            load<HALF_TYPE>(a, x + 8 * i);
            load<HALF_TYPE>(b, y + 8 * i);
#pragma unroll
            for (int j = 0; j < 8; ++j) sum = fmaf(a[j], b[j], sum);
        }
    }
    sum += __shfl_xor_sync(EVERY, sum, 1);
    const u32 last = d.blocks * d.panels * (2 * ROWS);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        rows.delta[h] = __shfl_sync(EVERY, sum, lane / 4 * 2 + 16 * h);
        const int query = first_query + warp * 16 + lane / 4 + 8 * h;
        // Rows that do not exist or attend to nothing weigh nothing.
        const float outer = query < d.queries ? lse[query] * LOG2_E : INFINITE;
        rows.lse[h] = outer == -INFINITE ? INFINITE : outer;
        if (lane % 4 == 0) {
            rows.statistics[last + 8 * h] = rows.lse[h];
            rows.statistics[last + ROWS + 8 * h] = rows.delta[h];
        }
    }
}

// ---- The kernel ----------------------------------------------------------------------------------------------------

// Grid (tiles of 128 queries, query heads, batch rows) of the slice. Boxes of k_map and v_map have INNER rows, of the others ROWS.
extern "C" __global__ void __launch_bounds__(3 * WARP_GROUP, 1)
    queries(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map, const __grid_constant__ TensorMap v_map,
            const __grid_constant__ TensorMap dout_map, const __grid_constant__ TensorMap dq_map, const u16 *out, u64 out_batch,
            u64 out_row, u64 out_head, const u16 *dout, u64 dout_batch, u64 dout_row, u64 dout_head, const float *lse,
            const u32 *phases, float *statistics, int query_count, int key_count, int heads, int group_heads, int first_batch,
            int first_head, int blocks, int panels, float scale) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const Dimensions d = {query_count, key_count, heads, group_heads, first_batch, first_head, static_cast<int>(gridDim.y), blocks, panels,
                          scale};
    const u32 base = shared_address(shared);
    const u32 queries_full = base + BARRIERS_AT;
    const auto keys_full = [&](int stage) { return base + KEY_BARRIERS_AT + 16 * stage; };
    const auto keys_free = [&](int stage) { return base + KEY_BARRIERS_AT + 16 * stage + 8; };
    const auto values_full = [&](int stage) { return base + VALUE_BARRIERS_AT + 16 * stage; };
    const auto values_free = [&](int stage) { return base + VALUE_BARRIERS_AT + 16 * stage + 8; };

    if (threadIdx.x == 0) {
        mbarrier_init(queries_full, 1);
        for (int s = 0; s < KEY_STAGES; ++s) mbarrier_init(keys_full(s), 1), mbarrier_init(keys_free(s), 8);
        for (int s = 0; s < VALUE_STAGES; ++s) mbarrier_init(values_full(s), 1), mbarrier_init(values_free(s), 8);
        mbarrier_init_fence();
        tma_prefetch_map(&q_map), tma_prefetch_map(&k_map), tma_prefetch_map(&v_map);
        tma_prefetch_map(&dout_map), tma_prefetch_map(&dq_map);
    }
    __syncthreads();
    wait_for_launch_ahead();
    let_launch_behind_begin();

    // The longest rows first.
    const int tile = gridDim.x - 1 - blockIdx.x;
    const int batch = d.first_batch + blockIdx.z, head = d.first_head + blockIdx.y, key_head = head / d.group;
    const int phase = BLOCK ? phases[batch] % DIVISOR : 0;
    const int offset = d.keys - d.queries + phase;  // position of query 0
    const int last_query = min(tile * 2 * ROWS + 2 * ROWS, d.queries) - 1;
    const int tiles = (last_query + offset) / SPAN + 1;

    if (threadIdx.x < WARP_GROUP) {
        registers_shrink<24>();
        if (threadIdx.x == 0) {
            mbarrier_arrive_expect(queries_full, 2 * SIDE);
            for (int p = 0; p < PANELS; ++p)
                for (int half = 0; half < 2; ++half) {
                    const int row = (2 * tile + half) * ROWS;
                    const u32 to = base + (2 * p + half) * PANEL;
                    tma_load(to + QUERIES_AT, &q_map, queries_full, p * 64, head, row, batch);
                    tma_load(to + DOUT_AT, &dout_map, queries_full, p * 64, head, row, batch);
                }
            Ring<KEY_STAGES> keys;
            Ring<VALUE_STAGES> values;
            for (int t = tiles - 1; t >= 0; --t, keys.advance(), values.advance()) {
                const int row = t * SPAN - phase;
                mbarrier_wait(keys_free(keys.stage), keys.parity ^ 1);
                mbarrier_arrive_expect(keys_full(keys.stage), TILE);
                for (int p = 0; p < PANELS; ++p)
                    tma_load(base + KEYS_AT + keys.stage * TILE + p * INNER * 128, &k_map, keys_full(keys.stage), p * 64, key_head, row,
                             batch);
                mbarrier_wait(values_free(values.stage), values.parity ^ 1);
                mbarrier_arrive_expect(values_full(values.stage), TILE);
                for (int p = 0; p < PANELS; ++p)
                    tma_load(base + VALUES_AT + values.stage * TILE + p * INNER * 128, &v_map, values_full(values.stage), p * 64, key_head,
                             row, batch);
            }
        }
        return;
    }

    registers_grow<240>();
    // The same in all lanes, and the compiler knows it: products must not look as if threads could part.
    const int group = __shfl_sync(EVERY, threadIdx.x / WARP_GROUP, 0) - 1;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    const int first_query = (2 * tile + group) * ROWS, row = warp * 16 + lane / 4;
    const float c = d.scale * LOG2_E;
    Rows rows;
    rows.position = first_query + row + offset;
    rows.statistics = statistics + statistics_at(d, blockIdx.z, blockIdx.y, 0) + (2 * tile + group) * (2 * ROWS) + row;
    find_rows(rows, out + batch * out_batch + head * out_head, dout + batch * dout_batch + head * dout_head, out_row, dout_row,
              lse + (static_cast<u64>(batch) * d.heads + head) * d.queries, first_query, d);

    const u32 q = base + QUERIES_AT + group * PANEL, dout_tile = base + DOUT_AT + group * PANEL;
    float dq[HEAD_DIM / 2];
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; ++i) dq[i] = 0;

    Ring<KEY_STAGES> keys;
    Ring<VALUE_STAGES> values;
    int t = tiles - 1;
    // Tiles that only the other warp group sees.
    const int own_tiles = first_query < d.queries ? (min(first_query + ROWS, d.queries) - 1 + offset) / SPAN + 1 : 0;
    for (; t >= own_tiles; --t, keys.advance(), values.advance()) {
        mbarrier_wait(keys_full(keys.stage), keys.parity);
        mbarrier_wait(values_full(values.stage), values.parity);
        if (lane == 0) mbarrier_arrive(keys_free(keys.stage)), mbarrier_arrive(values_free(values.stage));
    }
    // Tiles below this one are past for all rows.
    const int unmasked = BLOCK ? (first_query + offset) / DIVISOR / BLOCKS : (first_query + offset + 1) / SPAN;

    mbarrier_wait(queries_full, 0);
    u32 before = 0;  // barrier of the tile whose product ds k is under way
    for (; t >= 0; --t, keys.advance(), values.advance()) {
        const u32 key_tile = base + KEYS_AT + keys.stage * TILE;
        const int first_block = t * BLOCKS;
        float s[COLUMNS / 2], dp[COLUMNS / 2];
        mbarrier_wait(keys_full(keys.stage), keys.parity);
        issue_scores<COLUMNS>(s, q, 2 * PANEL, key_tile, INNER * 128);
        wgmma_wait<1>();
        if (lane == 0 && before) mbarrier_arrive(before);
        before = keys_free(keys.stage);
        mbarrier_wait(values_full(values.stage), values.parity);
        issue_scores<COLUMNS>(dp, dout_tile, 2 * PANEL, base + VALUES_AT + values.stage * TILE, INNER * 128);

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
                mask.own[h] = BLOCK ? (rows.position + 8 * h) / DIVISOR - first_block : 0;
            }
            weigh<true>(s, share, inverse, rows, mask, c, first_block, d);
        } else {
            weigh<false>(s, share, inverse, rows, mask, c, first_block, d);
        }
        wgmma_wait<0>();
        hold(dp);
        if (lane == 0) mbarrier_arrive(values_free(values.stage));
        if (masked)
            differentiate<true>(s, dp, share, inverse, rows, mask, first_block, d);
        else
            differentiate<false>(s, dp, share, inverse, rows, mask, first_block, d);

        u32 ds[INNER / 4];
#pragma unroll
        for (int i = 0; i < INNER / 4; ++i) ds[i] = 2 * i < COLUMNS / 2 ? pack(dp[2 * i], dp[2 * i + 1]) : 0;
        hold(ds);
        hold(dq);
        wgmma_fence();
        issue_sum<INNER, HEAD_DIM>(dq, ds, key_tile, INNER * 128);
        wgmma_commit();
    }
    wgmma_wait<0>();
    hold(dq);
    barrier_sync(1 + group, WARP_GROUP);
    if (first_query < d.queries) store_tile<HEAD_DIM>(dq, d.scale, q, 2 * PANEL, &dq_map, 0, head, first_query, batch, 1 + group);
    tma_store_wait_read<0>();
}
