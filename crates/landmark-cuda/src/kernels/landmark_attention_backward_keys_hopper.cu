// Gradients of the keys and values of landmark attention on Hopper: the second of two kernels, see
// landmark_attention_backward_hopper.cuh.
//
// A thread block has 128 keys of a key head, 64 for each of two warp groups that compute, and walks over the queries that see
// them, of all query heads that share the key head, one head after the other: no sum leaves the warp group. A third warp group
// copies queries, dout and statistics (TMA) into a ring. Keys are the rows of every product, so P and ds are its left operand
// straight from registers: s = k qᵀ, dP = v dOᵀ, dv += P dO, dk += ds q. Keys of any blocks may share a tile, since each row
// reads the statistics of its own block; a warp whose 16 keys are ordinary ones of one block reads them once for all.
//
// Heads of 256 columns: dk and dv of 64 keys would be all of a thread's registers. There both warp groups have the same 64
// keys, and half of the columns of dk and dv each; scores and dP are computed by both, which is 1.5 times the products.

#include "landmark_attention_backward_hopper.cuh"

constexpr bool SPLIT = HEAD_DIM > 128;
constexpr int WIDTH = SPLIT ? HEAD_DIM / 2 : HEAD_DIM;  // columns of dk and dv that a warp group has
constexpr int KEYS = SPLIT ? ROWS : 2 * ROWS;           // keys of a thread block
constexpr int KEY_PANEL = KEYS * 128;

constexpr int SLOTS = BLOCK ? (KEYS - 2 + BLOCK) / DIVISOR + 1 : 0;  // blocks that KEYS keys can touch
constexpr int SLOT = 2 * ROWS;                                             // floats of a slot: z and δ of ROWS queries
constexpr int STATISTICS_BYTES = (SLOTS + 1) * SLOT * 4;

constexpr int STAGES = SPLIT ? 2 : 3;

// Offsets in shared memory, and in a stage.
constexpr int KEYS_AT = 0;
constexpr int VALUES_AT = PANELS * KEY_PANEL;
constexpr int STAGES_AT = 2 * PANELS * KEY_PANEL;
constexpr int QUERIES_IN = 0;
constexpr int DOUT_IN = PANELS * PANEL;
constexpr int STATISTICS_IN = 2 * PANELS * PANEL;
constexpr int STAGE = STATISTICS_IN + (STATISTICS_BYTES + 1023) / 1024 * 1024;
// One for keys and values; for each stage, one for its arrival and one that it is free again.
constexpr int BARRIERS_AT = STAGES_AT + STAGES * STAGE;

__device__ __forceinline__ void bulk_load(u32 to, const void *from, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from),
                 "r"(bytes), "r"(barrier)
                 : "memory");
}

// What a thread knows of its two keys, 8 apart.
struct Rows {
    bool landmark[2];
    int slot[2];   // of its block
    int first[2];  // first query that sees it
};

// Grid (tiles of KEYS keys, key heads, batch rows) of the slice. All boxes have ROWS rows.
extern "C" __global__ void __launch_bounds__(3 * WARP_GROUP, 1)
    keys(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map, const __grid_constant__ TensorMap v_map,
         const __grid_constant__ TensorMap dout_map, const __grid_constant__ TensorMap dk_map, const __grid_constant__ TensorMap dv_map,
         const u32 *phases, const float *statistics, int query_count, int key_count, int heads, int group_heads, int first_batch,
         int first_head, int blocks, int panels, float scale) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const Dimensions d = {query_count,
                          key_count,
                          heads,
                          group_heads,
                          first_batch,
                          first_head,
                          static_cast<int>(gridDim.y) * group_heads,
                          blocks,
                          panels,
                          scale};
    const u32 base = shared_address(shared);
    const u32 keys_full = base + BARRIERS_AT;
    const auto queries_full = [&](int stage) { return base + BARRIERS_AT + 8 + 16 * stage; };
    const auto queries_free = [&](int stage) { return base + BARRIERS_AT + 8 + 16 * stage + 8; };

    if (threadIdx.x == 0) {
        mbarrier_init(keys_full, 1);
        for (int s = 0; s < STAGES; ++s) mbarrier_init(queries_full(s), 1), mbarrier_init(queries_free(s), 8);
        mbarrier_init_fence();
        tma_prefetch_map(&q_map), tma_prefetch_map(&k_map), tma_prefetch_map(&v_map);
        tma_prefetch_map(&dout_map), tma_prefetch_map(&dk_map), tma_prefetch_map(&dv_map);
    }
    __syncthreads();
    wait_for_launch_ahead();
    let_launch_behind_begin();

    const int first_key = blockIdx.x * KEYS;
    const int slice_head = blockIdx.y * d.group;
    const int batch = d.first_batch + blockIdx.z, head = d.first_head + slice_head, key_head = head / d.group;
    const int phase = BLOCK ? phases[batch] % DIVISOR : 0;
    const int offset = d.keys - d.queries;  // key of query 0
    const int first_block = BLOCK ? (first_key + phase) / DIVISOR : 0;
    const int first_tile = max(first_key - offset, 0) / ROWS, end_tile = (d.queries + ROWS - 1) / ROWS;

    if (threadIdx.x < WARP_GROUP) {
        registers_shrink<24>();
        if (threadIdx.x == 0) {
            mbarrier_arrive_expect(keys_full, 2 * PANELS * KEY_PANEL);
            for (int p = 0; p < PANELS; ++p)
                for (int part = 0; part < KEYS / ROWS; ++part) {
                    const u32 to = base + p * KEY_PANEL + part * PANEL;
                    const int row = first_key + part * ROWS;
                    tma_load(to + KEYS_AT, &k_map, keys_full, p * 64, key_head, row, batch);
                    tma_load(to + VALUES_AT, &v_map, keys_full, p * 64, key_head, row, batch);
                }
            Ring<STAGES> ring;
            for (int g = 0; g < d.group; ++g)
                for (int t = first_tile; t < end_tile; ++t, ring.advance()) {
                    const u32 full = queries_full(ring.stage), to = base + STAGES_AT + ring.stage * STAGE;
                    mbarrier_wait(queries_free(ring.stage), ring.parity ^ 1);
                    mbarrier_arrive_expect(full, STATISTICS_IN + STATISTICS_BYTES);
                    for (int p = 0; p < PANELS; ++p) {
                        tma_load(to + QUERIES_IN + p * PANEL, &q_map, full, p * 64, head + g, t * ROWS, batch);
                        tma_load(to + DOUT_IN + p * PANEL, &dout_map, full, p * 64, head + g, t * ROWS, batch);
                    }
#pragma unroll 1
                    for (int i = 0; i <= SLOTS; ++i) {
                        // A slot past the last block is nobody's.
                        const int block = i == SLOTS ? d.blocks : min(first_block + i, d.blocks - 1);
                        const float *from = statistics + statistics_at(d, blockIdx.z, slice_head + g, block) + t * SLOT;
                        bulk_load(to + STATISTICS_IN + i * SLOT * 4, from, SLOT * 4, full);
                    }
                }
        }
        return;
    }

    registers_grow<240>();
    // The same in all lanes, and the compiler knows it: products must not look as if threads could part.
    const int group = __shfl_sync(EVERY, threadIdx.x / WARP_GROUP, 0) - 1;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, pair = 2 * (lane % 4);
    const float c = d.scale * LOG2_E;
    const int part = SPLIT ? 0 : group, group_key = first_key + part * ROWS;
    Rows rows;
    // Whether the warp's keys are not all ordinary keys of one block.
    bool mixed = false;
    {
        const int first = group_key + warp * 16;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int key = first + lane / 4 + 8 * h, position = key + phase;
            rows.landmark[h] = BLOCK && position % DIVISOR == BLOCK - 1;
            rows.slot[h] = BLOCK ? position / DIVISOR - first_block : 0;
            // Not even a landmark's own query sees it.
            rows.first[h] = key - offset + rows.landmark[h];
        }
        if (BLOCK) mixed = (first + phase) / DIVISOR != (first + phase + 16) / DIVISOR;
    }

    const u32 k = base + KEYS_AT + part * PANEL, v = base + VALUES_AT + part * PANEL;
    float dk[WIDTH / 2], dv[WIDTH / 2];
#pragma unroll
    for (int i = 0; i < WIDTH / 2; ++i) dk[i] = dv[i] = 0;
    const int column_panel = SPLIT ? group * (WIDTH / 64) : 0;

    // The first tile of a head may be before all keys of this warp group.
    const int own_tile = group_key < d.keys ? max(group_key - offset, 0) / ROWS : end_tile;
    Ring<STAGES> ring;
    int t = first_tile, left = (end_tile - first_tile) * d.group;
    const auto next = [&]() {
        --left;
        ring.advance();
        if (++t == end_tile) t = first_tile;
    };
    // To the next tile with work. It holds a stage while it waits for the tile behind the one that it leaves out: three stages.
    const auto settle = [&]() {
        while (left > 0 && t < own_tile) {
            mbarrier_wait(queries_full(ring.stage), ring.parity);
            if (lane == 0) mbarrier_arrive(queries_free(ring.stage));
            next();
        }
        if (left > 0) mbarrier_wait(queries_full(ring.stage), ring.parity);
    };

    mbarrier_wait(keys_full, 0);
    u32 before = 0;  // barrier of the tile whose last products are under way
    for (settle(); left > 0; next(), settle()) {
        const u32 stage = STAGES_AT + ring.stage * STAGE;
        float s[ROWS / 2], dp[ROWS / 2];
        issue_scores<ROWS>(s, k, KEY_PANEL, base + stage + QUERIES_IN, PANEL);
        wgmma_wait<1>();
        if (lane == 0 && before) mbarrier_arrive(before);
        before = queries_free(ring.stage);
        issue_scores<ROWS>(dp, v, KEY_PANEL, base + stage + DOUT_IN, PANEL);

        const float *table = reinterpret_cast<const float *>(shared + stage + STATISTICS_IN) + pair;
        const bool general = mixed || group_key + ROWS - offset > t * ROWS;
        wgmma_wait<1>();
        hold(s);
        if (!general) {
            const float *z = table + rows.slot[0] * SLOT;
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
                const float *z = table + (rows.landmark[h] ? SLOTS : rows.slot[h]) * SLOT;
                const int first = rows.first[h] - t * ROWS - pair;
#pragma unroll
                for (int n = 0; n < 8; ++n) {
                    const float2 x = *reinterpret_cast<const float2 *>(z + 8 * n);
                    float &a = s[4 * n + 2 * h], &b = s[4 * n + 2 * h + 1];
                    // Statistics of blocks that a query does not see were never written.
                    a = 8 * n >= first ? exp2_fast(fmaf(a, c, -x.x)) : 0;
                    b = 8 * n + 1 >= first ? exp2_fast(fmaf(b, c, -x.y)) : 0;
                }
            }
        }
        wgmma_wait<0>();
        hold(dp);
        u32 p[ROWS / 4], ds[ROWS / 4];
        if (!general) {
            const float *delta = table + rows.slot[0] * SLOT + ROWS;
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
                const float *own = table + rows.slot[h] * SLOT + ROWS;
                const float *delta = rows.landmark[h] ? table + SLOTS * SLOT + ROWS : own;
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
        issue_sum<ROWS, WIDTH>(dv, p, base + stage + DOUT_IN + column_panel * PANEL, PANEL);
        issue_sum<ROWS, WIDTH>(dk, ds, base + stage + QUERIES_IN + column_panel * PANEL, PANEL);
        wgmma_commit();
    }
    wgmma_wait<0>();
    hold(dk);
    hold(dv);
    // Results take the place of keys and values; where both warp groups read the same ones, they wait for each other.
    if (SPLIT)
        barrier_sync(BOTH_GROUPS, 2 * WARP_GROUP);
    else
        barrier_sync(1 + group, WARP_GROUP);
    if (group_key < d.keys) {
        const int column = column_panel * 64;
        store_tile<WIDTH>(dk, d.scale, k + column_panel * KEY_PANEL, KEY_PANEL, &dk_map, column, key_head, group_key, batch, 1 + group);
        store_tile<WIDTH>(dv, 1, v + column_panel * KEY_PANEL, KEY_PANEL, &dv_map, column, key_head, group_key, batch, 1 + group);
    }
    tma_store_wait_read<0>();
}
