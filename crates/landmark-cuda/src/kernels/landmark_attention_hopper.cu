// Landmark attention, forward, on Hopper (sm_90a): out = P v and the log of the outer sum, P the grouped softmax of
// q kᵀ · scale (spec section 2), scores never stored.
//
// A key tile is a whole number of blocks, its first row shifted by the batch row's phase, so that where a block ends in a
// tile is known when this is compiled (-DBLOCK). A past block then costs one exponential an element, as in flash
// attention, and for each (row, block) a maximum, a sum and one factor:
//
//     P_ij = exp2(s_ij - m_b) · f_b,    f_b = exp2(s_(landmark of b) - M) / sum_j exp2(s_ij - m_b)
//
// A row's own block fits the same form with f = exp2(m_b - M), which adds its whole sum to the outer one. M is a score
// that the outer maximum exceeds by 2^MARGIN at most: only beyond that are accumulator and sum scaled down, which after the
// diagonal hardly ever happens. The margin costs nothing in floats of either width.
//
// One warp group copies tiles (TMA), two compute 64 queries each. A step issues the scores of the next tile and the
// values of the last one together, so that the softmax of one overlaps the product of the other, and the two groups take turns
// at issuing, so that one multiplies while the other exponentiates. Tiles come from the diagonal backwards; those that some row
// sees in part are masked, all others take the path without a comparison.
//
// The grid is one block an SM. Work is handed out in the order of a list, to whichever block is free: heads in groups whose
// keys and values stay in the L2 cache, in a group the longest rows of tiles first. (Dealing the list out beforehand left
// multiprocessors idle for up to a third of the time.) Which block computes a row makes no difference to it.
//
// With -DMEMORY this is the last part of a chunk's attention to the landmark memory (retrieval_prefill.cu): keys and values are
// those of the unfinished block, then the chunk's, and in the end every row weighs in what its slots brought. The unfinished
// block is where it is phases that say how long it is; it lies in the memory, so the first tile, if it has any of it, is taken
// from where `unfinished_tile` put it together.
//
// -DBLOCK=n, positions of a block, 8 or more; 0: plain causal attention. -DHEAD_DIM, a multiple of 16. -DTILE, keys of a
// tile, a multiple of 16. -DHALF_F16=1. With -DMEMORY also -DTOPK, -DCHOICE, -DSHARES. Rejected: the outer maximum known
// beforehand from the landmarks' keys (a pass of its own for what the margin gets for nothing).

#include "hopper.cuh"
#if MEMORY
#include "element.cuh"
#endif

constexpr int ROWS = 128;       // queries of a thread block
constexpr int GROUP_ROWS = 64;  // queries of a warp group
constexpr int STAGES = 2;
constexpr int READERS = 2 * 4;  // warps that compute
constexpr int PANELS = (HEAD_DIM + 63) / 64;
constexpr int BLOCKS = BLOCK ? TILE / BLOCK : 1;    // blocks of a tile
constexpr int SPAN = BLOCK ? BLOCKS * BLOCK : TILE; // positions a tile advances

constexpr int TILE_BYTES = PANELS * TILE * 128;
constexpr int QUERY_BYTES = PANELS * ROWS * 128;
constexpr int BARRIER_BYTES = 128;
// Results have a place of their own where there is room, so that the next queries arrive while these leave.
constexpr bool OWN_STAGING = 2 * QUERY_BYTES + 2 * STAGES * TILE_BYTES + BARRIER_BYTES + 1024 <= 232448;
#ifndef MARGIN
#define MARGIN 8.0f // in powers of two
#endif
constexpr float LOWEST = -1e30f;
constexpr u32 EVERY = 0xffffffff;
#if MEMORY
constexpr int TYPE = HALF_F16 ? F16 : BF16;
#else
#define MEMORY 0
#endif
// A phase's positions are keys, too.
constexpr bool PHASE_IS_SEEN = MEMORY;

struct Shape {
    int batch, heads, heads_per_kv, queries, keys;
    int heads_at_once; // (batch row, head) pairs that are walked together
    float scale_log2;  // scale · log2(e)
};

struct Item {
    int batch, head, row, phase, tiles;
};

// Where the launch gets and leaves what plain landmark attention does not have.
struct Memory {
    const u32 *lengths;  // (B)
    const u32 *chosen;   // (B, H, T, k)
    const u16 *parts;    // (B, H, T, k, HEAD_DIM), as fragments
    const float *marks;  // (B, H, T, k)
    float *shares;       // (B, H, T, k)
    int blocks;
};

__device__ __forceinline__ int query_tiles_of(const Shape &shape) { return (shape.queries + ROWS - 1) / ROWS; }

// How long the list of work is.
__device__ __forceinline__ int items_of(const Shape &shape) { return query_tiles_of(shape) * shape.batch * shape.heads; }

// What stands at `rank` in the list.
__device__ __forceinline__ Item find_item(const Shape &shape, const u32 *phases, int rank) {
    Item item;
    const int query_tiles = query_tiles_of(shape), pairs = shape.batch * shape.heads;
    const int group = rank / (shape.heads_at_once * query_tiles);
    const int first = group * shape.heads_at_once;
    const int width = min(shape.heads_at_once, pairs - first);
    const int within = rank - first * query_tiles;
    const int pair = first + within % width;
    item.batch = pair / shape.heads;
    item.head = pair - item.batch * shape.heads;
    item.row = (query_tiles - 1 - within / width) * ROWS;
    item.phase = BLOCK ? phases[item.batch] % max(BLOCK, 1) : 0;
    const int last = min(item.row + ROWS, shape.queries) - 1;
    item.tiles = (item.phase + shape.keys - shape.queries + last) / SPAN + 1;
    return item;
}

// What a thread of a computing warp group keeps of its two rows.
struct Rows {
    float scores[TILE / 2];
    float out[HEAD_DIM / 2];
    u32 weights[TILE / 4];
    float reference[2]; // M, in powers of two
    float sum[2];       // outer sum over exp2(M); without landmarks this thread's part of it
    float shrink[2];
    bool rescale;
    int position[2]; // of the row, counted from the start of the first block
    int lane;        // of four that share a row
};

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(EVERY, x, 1));
    return fmaxf(x, __shfl_xor_sync(EVERY, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(EVERY, x, 1);
    return x + __shfl_xor_sync(EVERY, x, 2);
}

// Raises M where an outer score exceeds it by more than the margin; `rows.out` follows later (`apply_rescale`).
__device__ __forceinline__ void raise_reference(Rows &rows, const float (&top)[2]) {
    const bool beyond = top[0] > rows.reference[0] + MARGIN || top[1] > rows.reference[1] + MARGIN;
    rows.rescale = __any_sync(EVERY, beyond);
    if (rows.rescale) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float raised = fmaxf(rows.reference[r], top[r]);
            rows.shrink[r] = exp2_fast(rows.reference[r] - raised);
            rows.reference[r] = raised;
            rows.sum[r] *= rows.shrink[r];
        }
    }
}

__device__ __forceinline__ void apply_rescale(Rows &rows) {
    if (rows.rescale) {
#pragma unroll
        for (int i = 0; i < HEAD_DIM / 2; ++i) rows.out[i] *= rows.shrink[i / 2 % 2];
    }
}

// f(Constant<0>()) ... f(Constant<COUNT - 1>()). A loop that is unrolled later becomes constant too late for arrays whose
// element depends on where a block ends: they would lie in memory.
template <int VALUE> struct Constant {
    static constexpr int value = VALUE;
};
template <int COUNT, int FROM = 0, class F> __device__ __forceinline__ void unroll(F &&f) {
    if constexpr (FROM < COUNT) {
        f(Constant<FROM>());
        unroll<COUNT, FROM + 1>(f);
    }
}

// Whose columns 8 J .. 8 J + 7 of a tile are.
template <int J> struct Eight {
    static constexpr int LENGTH = BLOCK ? BLOCK : TILE;
    static constexpr int block = 8 * J / LENGTH;
    static constexpr bool inside = block < BLOCKS;                                        // some are a block's
    static constexpr int landmark = LENGTH * (block + 1) - 1 - 8 * J;                     // from 8 J; 8 and more: elsewhere
    static constexpr bool closes = inside && landmark < 8;                                // a landmark is among them
    static constexpr bool splits = closes && landmark < 7 && block + 1 < BLOCKS;          // and keys of the next block follow
    static constexpr int next = splits ? block + 1 : block;
};

// Scores of tile `tile` become weights, without landmarks.
template <bool MASKED> __device__ __forceinline__ void weigh_plain(Rows &rows, int tile, const Item &item, float scale) {
    const float infinity = __int_as_float(0x7f800000);
    float top[2] = {-infinity, -infinity};
#pragma unroll
    for (int i = 0; i < TILE / 2; ++i) {
        const int r = i / 2 % 2, column = 8 * (i / 4) + i % 2;
        if (MASKED && column > rows.position[r] - tile * SPAN - 2 * rows.lane) rows.scores[i] = -infinity;
        top[r] = fmaxf(top[r], rows.scores[i]);
    }
    top[0] = quad_max(top[0]) * scale, top[1] = quad_max(top[1]) * scale;
    raise_reference(rows, top);
#pragma unroll
    for (int i = 0; i < TILE / 2; ++i) {
        const int r = i / 2 % 2;
        rows.scores[i] = exp2_fast(rows.scores[i] * scale - rows.reference[r]);
        rows.sum[r] += rows.scores[i];
    }
}

// Scores of tile `tile` become weights.
template <bool MASKED> __device__ __forceinline__ void weigh(Rows &rows, int tile, const Item &item, float scale) {
    const float infinity = __int_as_float(0x7f800000);
    const int at = 2 * rows.lane; // this thread's first column of every eight
    float outer[2][BLOCKS], factor[2][BLOCKS], top[2][BLOCKS], total[2][BLOCKS];
    unroll<2 * BLOCKS>([&](auto index) {
        constexpr int b = index.value / 2, r = index.value % 2, column = (b + 1) * BLOCK - 1;
        outer[r][b] = __shfl_sync(EVERY, rows.scores[4 * (column / 8) + 2 * r + column % 2], column % 8 / 2, 4) * scale;
        top[r][b] = -infinity;
        total[r][b] = 0;
    });
    // Largest scores. Landmarks, and what follows the tile's last one, weigh nothing themselves.
    unroll<TILE / 2>([&](auto index) {
        constexpr int i = index.value, r = i / 2 % 2;
        using E = Eight<i / 4>;
        if constexpr (E::inside) {
            const int column = at + i % 2;
            float &score = rows.scores[i];
            if (MASKED) {
                const int first = item.phase - tile * SPAN - 8 * (i / 4), last = rows.position[r] - tile * SPAN - 8 * (i / 4);
                if ((!PHASE_IS_SEEN && column < first) || column > last) score = -infinity;
            }
            if (E::closes && (E::splits || E::landmark == 7 ? column == E::landmark : column >= E::landmark)) score = -infinity;
            if constexpr (E::splits) {
                top[r][E::block] = fmaxf(top[r][E::block], column < E::landmark ? score : -infinity);
                top[r][E::next] = fmaxf(top[r][E::next], column < E::landmark ? -infinity : score);
            } else {
                top[r][E::block] = fmaxf(top[r][E::block], score);
            }
        }
    });
    float highest[2] = {-infinity, -infinity};
    unroll<2 * BLOCKS>([&](auto index) {
        constexpr int b = index.value / 2, r = index.value % 2;
        const float high = quad_max(top[r][b]) * scale;
        if constexpr (MASKED) {
            const float landmark = outer[r][b];
            const int own = rows.position[r] / BLOCK - tile * BLOCKS;
            outer[r][b] = b == own ? high : b < own ? landmark : -infinity;
            top[r][b] = high == -infinity ? 0 : high;
        } else {
            top[r][b] = high;
        }
        highest[r] = fmaxf(highest[r], outer[r][b]);
    });
    raise_reference(rows, highest);
    unroll<TILE / 2>([&](auto index) {
        constexpr int i = index.value, r = i / 2 % 2;
        using E = Eight<i / 4>;
        if constexpr (E::inside) {
            float &score = rows.scores[i];
            if constexpr (E::splits) {
                const bool before = at + i % 2 < E::landmark;
                score = exp2_fast(score * scale - (before ? top[r][E::block] : top[r][E::next]));
                total[r][E::block] += before ? score : 0;
                total[r][E::next] += before ? 0 : score;
            } else {
                score = exp2_fast(score * scale - top[r][E::block]);
                total[r][E::block] += score;
            }
        }
    });
    unroll<2 * BLOCKS>([&](auto index) {
        constexpr int b = index.value / 2, r = index.value % 2;
        const float sum = quad_sum(total[r][b]);
        const float share = exp2_fast(outer[r][b] - rows.reference[r]);
        if constexpr (MASKED) {
            const bool own = b == rows.position[r] / BLOCK - tile * BLOCKS;
            rows.sum[r] += own ? share * sum : share;
            factor[r][b] = own ? share : sum > 0 ? share * reciprocal_fast(sum) : 0;
        } else {
            rows.sum[r] += share;
            factor[r][b] = share * reciprocal_fast(sum);
        }
    });
    unroll<TILE / 2>([&](auto index) {
        constexpr int i = index.value, r = i / 2 % 2;
        using E = Eight<i / 4>;
        if constexpr (!E::inside)
            rows.scores[i] = 0;
        else if constexpr (E::splits)
            rows.scores[i] *= at + i % 2 < E::landmark ? factor[r][E::block] : factor[r][E::next];
        else
            rows.scores[i] *= factor[r][E::block];
    });
}

__device__ __forceinline__ void round_weights(Rows &rows) {
#pragma unroll
    for (int i = 0; i < TILE / 4; ++i) rows.weights[i] = pack(rows.scores[2 * i], rows.scores[2 * i + 1]);
}

__device__ __forceinline__ void issue_scores(Rows &rows, u32 queries, u32 keys) {
    const u64 a = wgmma_operand(queries), b = wgmma_operand(keys);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < HEAD_DIM / 16; ++k)
        Wgmma<TILE>::ss<0, 0>(rows.scores, wgmma_advance(a, k / 4 * (ROWS * 128) + k % 4 * 32),
                              wgmma_advance(b, k / 4 * (TILE * 128) + k % 4 * 32), k != 0);
    wgmma_commit();
}

__device__ __forceinline__ void issue_values(Rows &rows, u32 values) {
    const u64 b = wgmma_operand(values, TILE * 128);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < TILE / 16; ++k) Wgmma<HEAD_DIM>::rs<1>(rows.out, rows.weights + 4 * k, wgmma_advance(b, k * 2048), 1);
    wgmma_commit();
}

#if MEMORY
__device__ __forceinline__ int retrieved_of(const Memory &memory, int batch) {
    return CHOICE ? state_of(memory.lengths[batch], BLOCK, memory.blocks, TOPK, 0).retrieved : 0;
}

__device__ __forceinline__ i64 slots_of(const Item &item, const Shape &shape, int row) {
    return ((static_cast<i64>(item.batch) * shape.heads + item.head) * shape.queries + row) * TOPK;
}
#endif

// Asks for what an item's rows will join in the end to come into the second-level cache.
__device__ __forceinline__ void bring_slots(const Item &item, const Shape &shape, const Memory &memory) {
#if MEMORY
    if (retrieved_of(memory, item.batch) > 0)
        prefetch_bulk(memory.parts + slots_of(item, shape, item.row) * HEAD_DIM,
                      min(ROWS, shape.queries - item.row) * TOPK * HEAD_DIM * 2);
#endif
}

// The slots of rows `row` and `row` + 8 join: each with its landmark's score. One without a block scores 0 and brings nothing.
__device__ __forceinline__ void join_slots(Rows &rows, const Item &item, const Shape &shape, const Memory &memory, int row) {
#if MEMORY
    const int retrieved = retrieved_of(memory, item.batch);
    i64 slots[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) slots[r] = slots_of(item, shape, min(row + 8 * r, shape.queries - 1));
    // Read whether it is there or not, so that all reads are under way together.
    auto mark_of = [&](i64 slot) {
        const float mark = memory.marks[slot];
        return memory.chosen[slot] != NO_BLOCK ? mark : 0.0f;
    };
#pragma unroll 2
    for (int i = 0; i < retrieved; ++i)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const i64 slot = slots[r] + i;
            const uint4 *part = reinterpret_cast<const uint4 *>(memory.parts + slot * HEAD_DIM + rows.lane * (HEAD_DIM / 4));
            uint4 x[HEAD_DIM / 32];
#pragma unroll
            for (int n = 0; n < HEAD_DIM / 32; ++n) x[n] = part[n];
            const bool any = memory.chosen[slot] != NO_BLOCK;
            const float mark = mark_of(slot), top = fmaxf(rows.reference[r], mark);
            const float old = exp2_fast(rows.reference[r] - top), share = exp2_fast(mark - top);
            rows.reference[r] = top, rows.sum[r] = rows.sum[r] * old + share;
#pragma unroll
            for (int n = 0; n < HEAD_DIM / 32; ++n) {
                const u32 w[4] = {x[n].x, x[n].y, x[n].z, x[n].w};
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    float *o = rows.out + 4 * (4 * n + c) + 2 * r;
                    const u32 pair = any ? w[c] : 0;
                    o[0] = o[0] * old + share * low<TYPE>(pair);
                    o[1] = o[1] * old + share * high<TYPE>(pair);
                }
            }
        }
    if (SHARES && rows.lane == 0)
        for (int r = 0; r < 2; ++r)
            for (int i = 0; i < TOPK && row + 8 * r < shape.queries; ++i)
                memory.shares[slots[r] + i] =
                    i < retrieved ? exp2_fast(mark_of(slots[r] + i) - rows.reference[r]) / rows.sum[r] : 0.0f;
#endif
}

// Addresses of everything in shared memory.
struct Places {
    u32 queries, keys, values, staging, barriers;
    __device__ u32 query_full() const { return barriers; }
    __device__ u32 query_empty() const { return barriers + 8; }
    __device__ u32 key_full(int stage) const { return barriers + 16 + 8 * stage; }
    __device__ u32 key_empty(int stage) const { return barriers + 16 + 8 * (STAGES + stage); }
    __device__ u32 value_full(int stage) const { return barriers + 16 + 8 * (2 * STAGES + stage); }
    __device__ u32 value_empty(int stage) const { return barriers + 16 + 8 * (3 * STAGES + stage); }
    // Rank of the item whose queries are here, written before `query_full`; negative: there is no more.
    __device__ void write_rank(int rank) const {
        asm volatile("st.shared.s32 [%0], %1;" ::"r"(barriers + BARRIER_BYTES - 8), "r"(rank) : "memory");
    }
    __device__ int read_rank() const {
        int rank;
        asm volatile("ld.shared.s32 %0, [%1];" : "=r"(rank) : "r"(barriers + BARRIER_BYTES - 8) : "memory");
        return rank;
    }
};

// A tile's number since the start, as a place in the ring.
struct Turn {
    u32 stage, parity;
    __device__ explicit Turn(u32 number) : stage(number % STAGES), parity(number / STAGES & 1) {}
};

__device__ __forceinline__ void load_tile(const TensorMap *map, u32 to, u32 barrier, int batch, int head, int row) {
    mbarrier_arrive_expect(barrier, TILE_BYTES);
#pragma unroll
    for (int p = 0; p < PANELS; ++p) tma_load(to + p * TILE * 128, map, barrier, 64 * p, head, row, batch);
}

// `first_k`, `first_v`: of tiles that begin before the first key of `k` and `v`; these themselves where nothing is before it.
__device__ __forceinline__ void produce(const TensorMap *q, const TensorMap *k, const TensorMap *v, const TensorMap *first_k,
                                        const TensorMap *first_v, const u32 *phases, u32 *ticket, const Shape &shape,
                                        const Memory &memory, const Places &at) {
    const int items = items_of(shape);
    u32 number = 0;
    int rank = blockIdx.x, round = 0;
    for (; rank < items; ++round) {
        const Item item = find_item(shape, phases, rank);
        const int kv_head = item.head / shape.heads_per_kv;
        auto load_keys = [&](u32 number, int row) {
            const Turn turn(number);
            mbarrier_wait(at.key_empty(turn.stage), turn.parity ^ 1);
            const bool before = PHASE_IS_SEEN && row < 0;
            load_tile(before ? first_k : k, at.keys + turn.stage * TILE_BYTES, at.key_full(turn.stage), item.batch, kv_head,
                      before ? 0 : row);
        };
        auto load_values = [&](u32 number, int row) {
            const Turn turn(number);
            mbarrier_wait(at.value_empty(turn.stage), turn.parity ^ 1);
            const bool before = PHASE_IS_SEEN && row < 0;
            load_tile(before ? first_v : v, at.values + turn.stage * TILE_BYTES, at.value_full(turn.stage), item.batch, kv_head,
                      before ? 0 : row);
        };
        int row = (item.tiles - 1) * SPAN - item.phase;
        bring_slots(item, shape, memory);
        load_keys(number, row);
        mbarrier_wait(at.query_empty(), (round & 1) ^ 1);
        at.write_rank(rank);
        mbarrier_arrive_expect(at.query_full(), QUERY_BYTES);
#pragma unroll
        for (int p = 0; p < PANELS; ++p)
            tma_load(at.queries + p * ROWS * 128, q, at.query_full(), 64 * p, item.head, item.row, item.batch, DROP_FROM_CACHE);
        for (; row > 0; row -= SPAN, ++number) {
            load_keys(number + 1, row - SPAN);
            load_values(number, row);
        }
        load_values(number++, row);
        // Each block takes its first item unasked and asks until there is no more: as many tickets as items, and the count
        // is back at 0.
        rank = gridDim.x + atomicInc(ticket, items - 1);
    }
    mbarrier_wait(at.query_empty(), (round & 1) ^ 1);
    at.write_rank(-1);
    mbarrier_arrive(at.query_full());
}

// One step: scores of `tile` beside the values of the tile before.
template <bool MASKED>
__device__ __forceinline__ void step(Rows &rows, int tile, int number, const Item &item, const Shape &shape, const Places &at,
                                     u32 queries, int group, bool speaker) {
    const Turn now(number), before(number - 1);
    mbarrier_wait(at.key_full(now.stage), now.parity);
    barrier_sync(1 + group, 256);
    hold(rows.scores);
    hold(rows.out);
    hold(rows.weights);
    issue_scores(rows, queries, at.keys + now.stage * TILE_BYTES);
    mbarrier_wait(at.value_full(before.stage), before.parity);
    issue_values(rows, at.values + before.stage * TILE_BYTES);
    barrier_arrive(2 - group, 256);
    wgmma_wait<1>();
    hold(rows.scores);
    if (speaker) mbarrier_arrive(at.key_empty(now.stage));
    if constexpr (BLOCK != 0)
        weigh<MASKED>(rows, tile, item, shape.scale_log2);
    else
        weigh_plain<MASKED>(rows, tile, item, shape.scale_log2);
    wgmma_wait<0>();
    hold(rows.out);
    hold(rows.weights);
    if (speaker) mbarrier_arrive(at.value_empty(before.stage));
    round_weights(rows);
    apply_rescale(rows);
}

// Divides by the sums and sends the rows off.
__device__ __forceinline__ void finish(Rows &rows, const TensorMap *out, float *lse, const Item &item, const Shape &shape,
                                       const Memory &memory, u32 staging, int group, bool leader) {
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const int first = item.row + group * GROUP_ROWS;
    join_slots(rows, item, shape, memory, first + 16 * warp + lane / 4);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        if (!BLOCK) rows.sum[r] = quad_sum(rows.sum[r]);
        const int row = first + 16 * warp + 8 * r + lane / 4;
        if (!MEMORY && lane % 4 == 0 && row < shape.queries)
            lse[(static_cast<u64>(item.batch) * shape.heads + item.head) * shape.queries + row] =
                rows.sum[r] > 0 ? (rows.reference[r] + log2f(rows.sum[r])) * 0.6931471805599453f : -__int_as_float(0x7f800000);
        rows.shrink[r] = rows.sum[r] > 0 ? 1 / rows.sum[r] : 0;
    }
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; ++i) rows.out[i] *= rows.shrink[i / 2 % 2];
    if (leader) tma_store_wait_read<0>();
    barrier_sync(3 + group, 128);
    const int row = 16 * warp + lane % 16;
#pragma unroll
    for (int j = 0; j < HEAD_DIM / 16; ++j) {
        const int chunk = 2 * j + lane / 16;
        const float *o = rows.out + 8 * j;
        store_matrices(staging + chunk / 8 * (ROWS * 128) + row * 128 + ((chunk % 8 ^ row % 8) << 4), pack(o[0], o[1]), pack(o[2], o[3]),
                       pack(o[4], o[5]), pack(o[6], o[7]));
    }
    fence_async();
    barrier_sync(3 + group, 128);
    if (leader && first < shape.queries) {
#pragma unroll
        for (int p = 0; p < PANELS; ++p) tma_store(out, staging + p * ROWS * 128, 64 * p, item.head, first, item.batch);
        tma_store_commit();
    }
}

__device__ __forceinline__ void consume(const TensorMap *out, const u32 *phases, float *lse, const Shape &shape, const Memory &memory,
                                        const Places &at) {
    const int group = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    // One thread of the group sends results; one of each warp says what its warp has read.
    const bool leader = threadIdx.x % 128 == 0, speaker = lane == 0;
    const u32 queries = at.queries + group * GROUP_ROWS * 128;
    const u32 staging = at.staging + group * GROUP_ROWS * 128;
    Rows rows;
    rows.lane = lane % 4;
    int number = 0;
    if (group == 1) barrier_arrive(1, 256);
    for (int round = 0;; ++round) {
        mbarrier_wait(at.query_full(), round & 1);
        const int rank = at.read_rank();
        if (rank < 0) break;
        const Item item = find_item(shape, phases, rank);
        // Position of this warp group's first query, its last tile, and the first tile not wholly past for all its rows.
        const int start = item.phase + shape.keys - shape.queries + item.row + group * GROUP_ROWS;
        const int top = min((start + GROUP_ROWS - 1) / SPAN, item.tiles - 1);
        const int past = BLOCK ? start / max(BLOCK, 1) / BLOCKS : (start + 1) / SPAN;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            rows.position[r] = start + 16 * warp + 8 * r + lane / 4;
            rows.reference[r] = LOWEST;
            rows.sum[r] = 0;
        }
#pragma unroll
        for (int i = 0; i < HEAD_DIM / 2; ++i) rows.out[i] = 0;
        int tile = item.tiles - 1;
        // Tiles that only the other warp group sees.
        for (; tile > top; --tile, ++number) {
            const Turn turn(number);
            mbarrier_wait(at.key_full(turn.stage), turn.parity);
            mbarrier_wait(at.value_full(turn.stage), turn.parity);
            barrier_sync(1 + group, 256);
            barrier_arrive(2 - group, 256);
            if (speaker) {
                mbarrier_arrive(at.key_empty(turn.stage));
                mbarrier_arrive(at.value_empty(turn.stage));
            }
        }
        {
            const Turn turn(number);
            mbarrier_wait(at.key_full(turn.stage), turn.parity);
            issue_scores(rows, queries, at.keys + turn.stage * TILE_BYTES);
            wgmma_wait<0>();
            hold(rows.scores);
            if (speaker) mbarrier_arrive(at.key_empty(turn.stage));
            if constexpr (BLOCK != 0)
                weigh<true>(rows, tile, item, shape.scale_log2);
            else
                weigh_plain<true>(rows, tile, item, shape.scale_log2);
            round_weights(rows);
            --tile, ++number;
        }
        for (; tile >= past && tile >= 0; --tile, ++number) step<true>(rows, tile, number, item, shape, at, queries, group, speaker);
        const int plain = BLOCK && item.phase && !PHASE_IS_SEEN ? 1 : 0;
        for (; tile >= plain; --tile, ++number) step<false>(rows, tile, number, item, shape, at, queries, group, speaker);
        if (tile == 0) {
            step<true>(rows, tile, number, item, shape, at, queries, group, speaker);
            ++number;
        }
        if (OWN_STAGING && speaker) mbarrier_arrive(at.query_empty());
        const Turn turn(number - 1);
        mbarrier_wait(at.value_full(turn.stage), turn.parity);
        hold(rows.out);
        hold(rows.weights);
        issue_values(rows, at.values + turn.stage * TILE_BYTES);
        wgmma_wait<0>();
        hold(rows.out);
        if (speaker) mbarrier_arrive(at.value_empty(turn.stage));
        finish(rows, out, lse, item, shape, memory, staging, group, leader);
        if (!OWN_STAGING && speaker) {
            if (leader) tma_store_wait_read<0>();
            mbarrier_arrive(at.query_empty());
        }
    }
    // The other group's last turn is taken, and shared memory outlives what is sent from it.
    if (group == 0) barrier_sync(1, 256);
    if (leader) tma_store_wait_read<0>();
}

__device__ __forceinline__ void attend(const TensorMap *q, const TensorMap *k, const TensorMap *v, const TensorMap *first_k,
                                       const TensorMap *first_v, const TensorMap *out, const u32 *phases, u32 *ticket, float *lse,
                                       const Shape &shape, const Memory &memory) {
    extern __shared__ __align__(1024) unsigned char shared[];
    Places at;
    at.queries = shared_address(shared);
    at.keys = at.queries + QUERY_BYTES;
    at.values = at.keys + STAGES * TILE_BYTES;
    at.staging = OWN_STAGING ? at.values + STAGES * TILE_BYTES : at.queries;
    at.barriers = at.values + STAGES * TILE_BYTES + (OWN_STAGING ? QUERY_BYTES : 0);
    if (threadIdx.x == 0) {
        tma_prefetch_map(q), tma_prefetch_map(k), tma_prefetch_map(v), tma_prefetch_map(out);
        mbarrier_init(at.query_full(), 1);
        mbarrier_init(at.query_empty(), READERS);
        for (int s = 0; s < STAGES; ++s) {
            mbarrier_init(at.key_full(s), 1);
            mbarrier_init(at.value_full(s), 1);
            mbarrier_init(at.key_empty(s), READERS);
            mbarrier_init(at.value_empty(s), READERS);
        }
        mbarrier_init_fence();
    }
    __syncthreads();
    wait_for_launch_ahead();
    if (threadIdx.x < 128) {
        registers_shrink<40>();
        if (threadIdx.x == 0) produce(q, k, v, first_k, first_v, phases, ticket, shape, memory, at);
    } else {
        registers_grow<232>();
        consume(out, phases, lse, shape, memory, at);
    }
}

#if MEMORY
// q, k: with positions; first_k, first_v (B, SPAN, Hkv, HEAD_DIM).
extern "C" __global__ void __launch_bounds__(384, 1)
    attend_chunk(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,
                 const __grid_constant__ TensorMap first_k, const __grid_constant__ TensorMap first_v,
                 const __grid_constant__ TensorMap out, const u32 *lengths, u32 *ticket, const u32 *chosen, const u16 *parts,
                 const float *marks, float *shares, int blocks, int batch, int heads, int heads_per_kv, int queries, int heads_at_once,
                 float scale_log2) {
    attend(&q, &k, &v, &first_k, &first_v, &out, lengths, ticket, nullptr,
           {batch, heads, heads_per_kv, queries, queries, heads_at_once, scale_log2}, {lengths, chosen, parts, marks, shares, blocks});
}
#else
extern "C" __global__ void __launch_bounds__(384, 1)
    forward(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,
            const __grid_constant__ TensorMap out, const u32 *phases, u32 *ticket, float *lse, int batch, int heads, int heads_per_kv, int queries,
            int keys, int heads_at_once, float scale_log2) {
    attend(&q, &k, &v, &k, &v, &out, phases, ticket, lse, {batch, heads, heads_per_kv, queries, keys, heads_at_once, scale_log2}, {});
}
#endif
