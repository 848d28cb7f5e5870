// Attention of a long chunk over [retrieved blocks, unfinished block, chunk] on the tensor cores (spec sections 2 and 4, op
// RetrievalAttention without a context-miss token).
//
// A choice for every token and head would gather k blocks for each. Instead the queries of a head are listed by the block
// that they chose (`list_choosers`), and each block is read once for up to 64 of them: a team of two warps of `attend_blocks`
// takes a block, turns its keys by their offsets, 16 queries a warp by their slots, and keeps for each of them the
// inner softmax's result and the landmark's score. What is left is attention over [unfinished block, chunk], which
// in the end weighs in what the query's slots brought: a block of keys counts with its landmark's score, or for the query's
// own block the log of its sum, and all are weighed alike by the outer softmax. `attend_local` does that by mma.sync, one
// landmark block of keys at a time; on Hopper landmark_attention_hopper.cu does it, more than twice as fast.
//
// In which order a block lists its queries depends on timing; a query's result does not, since rows of a matrix product do
// not meet.
//
// Between the two kernels a slot's result lies as fragments do: the thread of a quad finds its columns side by side.
//
// In a long memory a block is chosen by few queries of a chunk, and reading it is what there is to do; but then its keys must be
// turned, which takes more instructions than the products, and a multiprocessor has room for a few blocks only. So two warps
// share the turns of a block, the next keys come as soon as the scores of these are there, queries never see shared memory, and
// a copy is an addition to the address of the one before.
//
// -D: X_T (bf16, f16; all tensors), HEAD_DIM (64, 96, 128), BLOCK (<= 128), TOPK, STYLE, ORIGIN, CHOICE, SHARES, TEAMS (of a
//     block of `attend_blocks`).
#include "tiles.cuh"

#define THREADS 128
// Queries of a tile of `attend_local`, and at most of a piece of `attend_blocks`; products of 16 keys; rows of keys in shared memory.
#define QUERIES 64
#define MEMBERS 64
#define PAIRS ((BLOCK + 15) / 16)
#define ROWS (PAIRS * 16)
#define TILE_BYTES (ROWS * (K_STRIDE + V_STRIDE))

typedef storage<X_T> Bits;

// ---- which queries chose which block ----

// For each head of each row of the batch: `list` (T · k): entries t · k + slot, block after block; `tiles` (room): block,
// first entry, entries, of each piece of at most MEMBERS; `tile_count`. By one block of 1024 threads each. `first`: (blocks + 1).
__device__ __forceinline__ void list_choosers(u32 *first, const u32 *chosen, const u32 *lengths, u32 *list, uint4 *tiles,
                                              u32 *tile_count, int queries, int blocks, int heads, int room) {
    __shared__ u32 sums[32], carry[2]; // `first` has the entries of a block, then where the next one goes
    const int at = blockIdx.x, b = at / heads, thread = threadIdx.x, lane = thread % 32;
    const State now = state_of(lengths[b], BLOCK, blocks, TOPK, ORIGIN);
    const u32 *choice = chosen + (i64)at * queries * TOPK;
    u32 *to = list + (i64)at * queries * TOPK;
    uint4 *tile = tiles + (i64)at * room;
    for (int j = thread; j < now.cached; j += 1024) first[j] = 0;
    if (thread < 2) carry[thread] = 0;
    __syncthreads();
    for (int i = thread; i < queries * TOPK; i += 1024) {
        const u32 j = choice[i];
        if (i % TOPK < now.retrieved && j != NO_BLOCK) atomicAdd(&first[j], 1);
    }
    __syncthreads();
    // Sums of entries and of tiles before each block, 1024 blocks at a time; both in one word would not do for long chunks.
    for (int from = 0; from < now.cached; from += 1024) {
        const int j = from + thread;
        const u32 count = j < now.cached ? first[j] : 0, pieces = (count + MEMBERS - 1) / MEMBERS;
        u32 before[2];
#pragma unroll
        for (int what = 0; what < 2; what++) {
            const u32 mine = what == 0 ? count : pieces;
            u32 sum = mine;
#pragma unroll
            for (int d = 1; d < 32; d *= 2) {
                const u32 other = __shfl_up_sync(0xffffffffu, sum, d);
                if (lane >= d) sum += other;
            }
            if (lane == 31) sums[thread / 32] = sum;
            __syncthreads();
            u32 base = carry[what];
            for (int w = 0; w < thread / 32; w++) base += sums[w];
            before[what] = base + sum - mine;
            __syncthreads();
            if (thread == 1023) carry[what] = base + sum;
        }
        if (j < now.cached) first[j] = before[0];
        for (u32 i = 0; i < pieces; i++)
            tile[before[1] + i] = make_uint4(j, before[0] + i * MEMBERS, min(count - i * MEMBERS, u32(MEMBERS)), 0);
        __syncthreads();
    }
    if (thread == 0) tile_count[at] = carry[1];
    for (int i = thread; i < queries * TOPK; i += 1024) {
        const u32 j = choice[i];
        if (i % TOPK < now.retrieved && j != NO_BLOCK) to[atomicAdd(&first[j], 1)] = i;
    }
}

// Angles of the offsets in a block, then, to be taken off, of the starts of slots 0 .. k + 1: (BLOCK + TOPK + 2, HEAD_DIM / 2).
__device__ __forceinline__ void fill_angles(const float *frequencies, float2 *angles, int thread, int threads) {
    for (int i = thread; i < (BLOCK + TOPK + 2) * (HEAD_DIM / 2); i += threads) {
        const int row = i / (HEAD_DIM / 2);
        const float position = row < BLOCK ? float(row) : -float((row - BLOCK) * BLOCK);
        const Angle a = angle_of(position * frequencies[i % (HEAD_DIM / 2)]);
        angles[i] = make_float2(a.cos, a.sin);
    }
}

// Of each row of the batch whose last block is unfinished, the first `span` positions from that block's start on, keys with
// positions: what the memory holds of the block, the chunk, and zeros behind it. (B, span, Hkv, HEAD_DIM) each.
__device__ __forceinline__ void unfinished_tile(const Bits *k, int k_stride, const Bits *v, int v_stride, const Bits *keys,
                                                const Bits *values, const u32 *lengths, const float *frequencies, Bits *first_k,
                                                Bits *first_v, int span, int queries, int blocks, int kv_heads, int b, int thread,
                                                int threads) {
    const State now = state_of(lengths[b], BLOCK, blocks, TOPK, ORIGIN);
    if (now.unfinished == 0) return;
    const int slots = blocks + 1;
    for (int i = thread; i < span * kv_heads * (HEAD_DIM / 2); i += threads) {
        const int pair = i % (HEAD_DIM / 2), hk = i / (HEAD_DIM / 2) % kv_heads, row = i / (HEAD_DIM / 2) / kv_heads;
        const int e = STYLE == 0 ? 2 * pair : pair, f = STYLE == 0 ? e + 1 : e + HEAD_DIM / 2;
        const i64 to = (((i64)b * span + row) * kv_heads + hk) * HEAD_DIM;
        Bits key_e = 0, key_f = 0, value_e = 0, value_f = 0;
        if (row < now.unfinished) {
            const i64 from = ((((i64)b * slots + now.seen % slots) * kv_heads + hk) * BLOCK + row) * HEAD_DIM;
            const Angle angle = angle_of(float(now.start * BLOCK + row) * frequencies[pair]);
            const float x = to_f32<X_T>(keys[from + e]), y = to_f32<X_T>(keys[from + f]);
            key_e = from_f32<X_T>(x * angle.cos - y * angle.sin), key_f = from_f32<X_T>(y * angle.cos + x * angle.sin);
            value_e = values[from + e], value_f = values[from + f];
        } else if (row - now.unfinished < queries) {
            const i64 from = (i64)b * queries + row - now.unfinished;
            const Bits *key = k + from * k_stride + hk * HEAD_DIM, *value = v + from * v_stride + hk * HEAD_DIM;
            key_e = key[e], key_f = key[f], value_e = value[e], value_f = value[f];
        }
        first_k[to + e] = key_e, first_k[to + f] = key_f;
        first_v[to + e] = value_e, first_v[to + f] = value_f;
    }
}

// Everything that the other kernels want to have beforehand: the first `lists` blocks of threads list choosers, the others do
// the rest. `span` 0: no tile is wanted.
extern "C" __global__ void __launch_bounds__(1024)
prepare(const u32 *chosen, const u32 *lengths, u32 *list, uint4 *tiles, u32 *tile_count, const float *frequencies, float2 *angles,
        const Bits *k, int k_stride, const Bits *v, int v_stride, const Bits *keys, const Bits *values, Bits *first_k, Bits *first_v,
        int span, int queries, int blocks, int heads, int kv_heads, int batch, int lists, int room) {
    extern __shared__ u32 first[];
    wait_for_launch_ahead();
    let_launch_behind_begin();
    if (int(blockIdx.x) < lists) {
        list_choosers(first, chosen, lengths, list, tiles, tile_count, queries, blocks, heads, room);
        return;
    }
    const int thread = (blockIdx.x - lists) * 1024 + threadIdx.x, threads = (gridDim.x - lists) * 1024;
    fill_angles(frequencies, angles, thread, threads);
    if (span > 0)
        for (int b = 0; b < batch; b++)
            unfinished_tile(k, k_stride, v, v_stride, keys, values, lengths, frequencies, first_k, first_v, span, queries, blocks,
                            kv_heads, b, thread, threads);
}

// ---- the inner softmax of a block of keys for 16 queries of a warp ----

struct Scores {
    float s[2 * PAIRS][4];
};

// Scores in units of log 2, of all keys of a tile.
__device__ __forceinline__ void score_tile(Scores &p, const uint4 (&a)[STEPS], const uint4 (&a8)[STEPS],
                                           const unsigned char *keys, int g, int t) {
    const float scale = rsqrtf(float(HEAD_DIM)) * LOG2_E;
#pragma unroll
    for (int n = 0; n < 2 * PAIRS; n++) {
        scores_of_8<X_T>(p.s[n], a, a8, keys, n * 8 + g, t);
#pragma unroll
        for (int i = 0; i < 4; i++) p.s[n][i] *= scale;
    }
}

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Scores of ordinary keys become exp2(s - m), all else 0. `count[r]`: ordinary keys that row g + 8 r sees. Gives m, the
// sum and the landmark's score for both rows.
__device__ __forceinline__ void weigh_tile(Scores &p, const int (&count)[2], int t, float (&top)[2], float (&sum)[2],
                                           float (&mark)[2]) {
    constexpr int MARK = BLOCK - 1;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float mine = p.s[MARK / 8][2 * r + MARK % 2];
        mark[r] = __shfl_sync(0xffffffffu, mine, threadIdx.x % 32 / 4 * 4 + MARK % 8 / 2);
        float m = MINUS_INFINITY;
#pragma unroll
        for (int n = 0; n < 2 * PAIRS; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int o = n * 8 + 2 * t + i;
                float &s = p.s[n][2 * r + i];
                if (o >= count[r]) s = MINUS_INFINITY;
                m = fmaxf(m, s);
            }
        m = quad_max(m);
        top[r] = m;
        const float shift = m == MINUS_INFINITY ? 0.0f : m;
        float total = 0.0f;
#pragma unroll
        for (int n = 0; n < 2 * PAIRS; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float &s = p.s[n][2 * r + i];
                s = exp2f(s - shift);
                total += s;
            }
        sum[r] = quad_sum(total);
    }
}

// o += p · v, p scaled for each row.
__device__ __forceinline__ void add_values(float (&o)[HEAD_DIM / 8][4], const Scores &p, const float (&scale)[2],
                                           const unsigned char *values) {
#pragma unroll
    for (int k = 0; k < PAIRS; k++) {
        const u32 a0 = pack<X_T>(p.s[2 * k][0] * scale[0], p.s[2 * k][1] * scale[0]);
        const u32 a1 = pack<X_T>(p.s[2 * k][2] * scale[1], p.s[2 * k][3] * scale[1]);
        const u32 a2 = pack<X_T>(p.s[2 * k + 1][0] * scale[0], p.s[2 * k + 1][1] * scale[0]);
        const u32 a3 = pack<X_T>(p.s[2 * k + 1][2] * scale[1], p.s[2 * k + 1][3] * scale[1]);
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 16; n++) {
            u32 v[4];
            values_of_16(v, values, k * 16, n * 16);
            mma_16816<X_T>(o[2 * n], a0, a1, a2, a3, v[0], v[1]);
            mma_16816<X_T>(o[2 * n + 1], a0, a1, a2, a3, v[2], v[3]);
        }
    }
}

// ---- blocks, each for the queries that chose it ----

#define TEAM 64 // threads
// Rows of a block that a team turns at a time, each thread a unit of one.
#define TURN_ROWS (TEAM / TURN_UNITS)

// Turns the keys of a block by their offsets. A thread's keys are TURN_ROWS apart, so its angles grow by the same each time,
// and no table is read: `angles` only says where they begin and how they grow.
__device__ __forceinline__ void turn_block(unsigned char *keys, const float2 *angles, int thread) {
    const int unit = thread % TURN_UNITS, first = thread / TURN_UNITS;
    if (first >= min(TURN_ROWS, BLOCK)) return;
    UnitAngles at = unit_angles(angles + first * (HEAD_DIM / 2), unit);
    const UnitAngles by = unit_angles(angles + min(TURN_ROWS, BLOCK - 1) * (HEAD_DIM / 2), unit);
#pragma unroll 2
    for (int row = first; row < BLOCK; row += TURN_ROWS) {
        turn_unit<X_T>(keys + row * K_STRIDE, keys + row * K_STRIDE, unit, at);
#pragma unroll
        for (int i = 0; i < TURN_PAIRS / 2; i++) {
            const float4 a = at.of[i], b = by.of[i];
            at.of[i] = make_float4(a.x * b.x - a.y * b.y, a.y * b.x + a.x * b.y, a.z * b.z - a.w * b.w, a.w * b.z + a.z * b.w);
        }
    }
}

// A query's fragments of a thread t of a quad, and those of their partners, which are among them where steps come in pairs.
struct Query {
    uint4 own[STEPS], partner[STEPS];
};
#define PARTNERS_ARE_OWN (STYLE == 0 || STEPS % 2 == 0)

__device__ __forceinline__ Query query_at(const Bits *row, int t) {
    Query q;
#pragma unroll
    for (int s = 0; s < STEPS; s++) q.own[s] = *reinterpret_cast<const uint4 *>(row + s * 32 + t * 8);
#pragma unroll
    for (int s = 0; s < STEPS; s++)
        q.partner[s] = PARTNERS_ARE_OWN ? q.own[(s + STEPS / 2) % STEPS]
                                        : *reinterpret_cast<const uint4 *>(row + (s * 32 + t * 8 + HEAD_DIM / 2) % HEAD_DIM);
    return q;
}

// The query turned by a row of angles (HEAD_DIM / 2).
__device__ __forceinline__ void turn_query(uint4 (&a)[STEPS], const Query &q, const float2 *angles, int t) {
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        const int unit = 4 * s + t;
        const UnitAngles by = unit_angles(angles, STYLE == 0 ? unit : unit % TURN_UNITS);
        const u32 w[4] = {q.own[s].x, q.own[s].y, q.own[s].z, q.own[s].w};
        const u32 z[4] = {q.partner[s].x, q.partner[s].y, q.partner[s].z, q.partner[s].w};
        u32 turned[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if constexpr (STYLE == 0) {
                const float x = low<X_T>(w[i]), y = high<X_T>(w[i]);
                const float cos = i % 2 ? by.of[i / 2].z : by.of[i / 2].x, sin = i % 2 ? by.of[i / 2].w : by.of[i / 2].y;
                turned[i] = pack<X_T>(x * cos - y * sin, y * cos + x * sin);
            } else {
                const float4 angle = by.of[i];
                const float side = unit < TURN_UNITS ? -1.0f : 1.0f;
                turned[i] = pack<X_T>(low<X_T>(w[i]) * angle.x + side * (low<X_T>(z[i]) * angle.y),
                                      high<X_T>(w[i]) * angle.z + side * (high<X_T>(z[i]) * angle.w));
            }
        }
        a[s] = make_uint4(turned[0], turned[1], turned[2], turned[3]);
    }
}

// Result of a slot: (B, H, T, k, HEAD_DIM) as fragments, and the landmark's score (B, H, T, k).
extern "C" __global__ void __launch_bounds__(TEAMS * TEAM, 1)
attend_blocks(const Bits *q, int q_stride, const Bits *keys, const Bits *values, const u32 *lengths, const float2 *angles,
              const u32 *list, const uint4 *tiles, const u32 *tile_count, Bits *parts, float *marks, int queries,
              int blocks, int heads, int kv_heads, int room) {
    extern __shared__ __align__(128) unsigned char shared[]; // for each team: keys, values
    const int h = blockIdx.y, b = blockIdx.z, at = b * heads + h, hk = h / (heads / kv_heads), slots = blocks + 1;
    const int team = threadIdx.x / TEAM, thread = threadIdx.x % TEAM, g = thread % 32 / 4, t = thread % 4;
    unsigned char *k = shared + team * TILE_BYTES, *v = k + ROWS * K_STRIDE;
    wait_for_launch_ahead();
    let_launch_behind_begin();
    auto meet = [&] { asm volatile("bar.sync %0, %1;" ::"r"(1 + team), "n"(TEAM) : "memory"); };
    const State now = state_of(lengths[b], BLOCK, blocks, TOPK, ORIGIN);
    const int count = tile_count[at], step = gridDim.x * TEAMS;
    const uint4 *mine = tiles + (i64)at * room;
    const u32 *entries = list + (i64)at * queries * TOPK;
    auto tile_at = [&](int i) { return i < count ? mine[i] : make_uint4(0, 0, 0, 0); };
    auto page_of = [&](const uint4 &tile) {
        return (((i64)b * slots + (now.oldest + int(tile.x)) % slots) * kv_heads + hk) * BLOCK * HEAD_DIM;
    };
    // The thread's part of the first `rows` rows of a page: a column, every so many rows.
    constexpr int ROWS_AT_ONCE = TEAM / CHUNKS;
    const int column = thread % CHUNKS, first = thread / CHUNKS;
    auto copy_rows = [&](unsigned char *to, int stride, const Bits *page, int rows) {
        const u32 place = shared_address(to) + first * stride + column * 16;
        const Bits *from = page + first * HEAD_DIM + column * 8;
        if (first < ROWS_AT_ONCE)
#pragma unroll 8
            for (int row = first, n = 0; row < rows; row += ROWS_AT_ONCE, n++)
                copy_async(place + n * ROWS_AT_ONCE * stride, from + n * ROWS_AT_ONCE * HEAD_DIM, true);
        commit_copies();
    };
    // What no page brings: rows behind a block, and the landmark's value, which are read with weight 0.
    for (int c = thread; c < (ROWS - BLOCK + 1) * CHUNKS; c += TEAM) {
        const int row = BLOCK - 1 + c / CHUNKS, at = c % CHUNKS * 16;
        *reinterpret_cast<uint4 *>(v + row * V_STRIDE + at) = make_uint4(0, 0, 0, 0);
        if (row >= BLOCK) *reinterpret_cast<uint4 *>(k + row * K_STRIDE + at) = make_uint4(0, 0, 0, 0);
    }
    // Which entries a warp has of a piece's 16 from `from` on: those of rows g and g + 8.
    auto entries_of = [&](const uint4 &tile, int from, u32 (&entry)[2]) {
#pragma unroll
        for (int r = 0; r < 2; r++) entry[r] = from + g + r * 8 < int(tile.z) ? entries[tile.y + from + g + r * 8] : 0;
    };
    const int from_here = thread / 32 * 16;
    int i = team * gridDim.x + blockIdx.x;
    if (i >= count) return; // the whole team
    uint4 tile = tile_at(i);
    copy_rows(k, K_STRIDE, keys + page_of(tile), BLOCK);
    u32 entry[2];
    entries_of(tile, from_here, entry);
#pragma unroll 1
    for (; i < count; i += step) {
        const int later = int(tile.x) >= now.old ? 1 : 0;
        wait_copies<0>();
        meet(); // the keys are there, and nobody reads the values before them any more
        copy_rows(v, V_STRIDE, values + page_of(tile), BLOCK - 1);
        // What comes next comes nearer meanwhile.
        if (thread == 0 && i + step < count) {
            const uint4 next = tile_at(i + step);
            prefetch_bulk(keys + page_of(next), BLOCK * HEAD_DIM * sizeof(Bits));
            prefetch_bulk(values + page_of(next), BLOCK * HEAD_DIM * sizeof(Bits));
        }
        turn_block(k, angles, thread);
#pragma unroll 1
        for (int from = from_here; from - from_here < int(tile.z); from += 2 * 16) {
            const bool some = from < int(tile.z), last = from - from_here + 2 * 16 >= int(tile.z);
            uint4 a[STEPS], a8[STEPS];
            auto load_query = [&](uint4 (&to)[STEPS], u32 entry) {
                const Query query = query_at(q + ((i64)b * queries + entry / TOPK) * q_stride + h * HEAD_DIM, t);
                turn_query(to, query, angles + (BLOCK + entry % TOPK + later) * (HEAD_DIM / 2), t);
            };
            if (some) load_query(a, entry[0]), load_query(a8, entry[1]);
            if (from == from_here) meet(); // the keys are turned
            Scores p;
            if (some) score_tile(p, a, a8, k, g, t);
            wait_copies<0>();
            meet(); // the values are there, and in the end nobody reads the keys any more
            const uint4 next = tile_at(i + step);
            if (last && i + step < count) copy_rows(k, K_STRIDE, keys + page_of(next), BLOCK);
            const u32 written[2] = {entry[0], entry[1]};
            if (last)
                entries_of(next, from_here, entry);
            else
                entries_of(tile, from + 2 * 16, entry);
            if (!some) continue;
            const int seen[2] = {BLOCK - 1, BLOCK - 1};
            float top[2], sum[2], mark[2], o[HEAD_DIM / 8][4] = {};
            weigh_tile(p, seen, t, top, sum, mark);
            const float scale[2] = {1.0f / sum[0], 1.0f / sum[1]};
            add_values(o, p, scale, v);
#pragma unroll
            for (int r = 0; r < 2; r++) {
                if (from + g + r * 8 >= int(tile.z)) continue;
                const i64 to = (i64)at * queries * TOPK + written[r];
                if (t == 0) marks[to] = mark[r];
                uint4 *part = reinterpret_cast<uint4 *>(parts + to * HEAD_DIM + t * (HEAD_DIM / 4));
#pragma unroll
                for (int n = 0; n < HEAD_DIM / 32; n++)
                    part[n] = make_uint4(pack<X_T>(o[4 * n][2 * r], o[4 * n][2 * r + 1]),
                                         pack<X_T>(o[4 * n + 1][2 * r], o[4 * n + 1][2 * r + 1]),
                                         pack<X_T>(o[4 * n + 2][2 * r], o[4 * n + 2][2 * r + 1]),
                                         pack<X_T>(o[4 * n + 3][2 * r], o[4 * n + 3][2 * r + 1]));
            }
        }
        tile = tile_at(i + step);
    }
}

// ---- the unfinished block and the chunk, and everything together ----

// q, k: with positions; v, out (B, T, ..).
extern "C" __global__ void __launch_bounds__(THREADS, 2)
attend_local(const Bits *q, int q_stride, const Bits *k, int k_stride, const Bits *v, int v_stride, const Bits *keys,
             const Bits *values, const u32 *lengths, const float *frequencies, const u32 *chosen, const Bits *parts,
             const float *marks, Bits *out, float *shares, int queries, int blocks, int heads, int kv_heads) {
    extern __shared__ __align__(128) unsigned char shared[]; // 2 x (keys, values)
    // Long rows first.
    const int tile = gridDim.x - 1 - blockIdx.x, h = blockIdx.y, b = blockIdx.z, hk = h / (heads / kv_heads);
    const int slots = blocks + 1, warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    wait_for_launch_ahead();
    let_launch_behind_begin();
    State now = state_of(lengths[b], BLOCK, blocks, TOPK, ORIGIN);
    if (!CHOICE) now.retrieved = 0;
    const i64 page = (((i64)b * slots + now.seen % slots) * kv_heads + hk) * BLOCK * HEAD_DIM;
    const int length = now.unfinished + queries, first = tile * QUERIES + warp * 16;
    const int tiles = (now.unfinished + min(tile * QUERIES + QUERIES, queries) - 1) / BLOCK + 1;
    auto copy_tile = [&](int i, int buffer) {
        if (i < tiles) {
            unsigned char *tk = shared + buffer * TILE_BYTES, *tv = tk + ROWS * K_STRIDE;
            for (int c = threadIdx.x; c < ROWS * CHUNKS; c += THREADS) {
                const int o = c / CHUNKS, column = c % CHUNKS, at = i * BLOCK + o;
                const bool is_there = o < BLOCK && at < length;
                const Bits *key = keys + page + o * HEAD_DIM, *value = values + page + o * HEAD_DIM;
                if (at >= now.unfinished) {
                    const i64 row = (i64)b * queries + min(at - now.unfinished, queries - 1);
                    key = k + row * k_stride + hk * HEAD_DIM, value = v + row * v_stride + hk * HEAD_DIM;
                }
                if (!is_there) key = k, value = v;
                copy_async(shared_address(tk + o * K_STRIDE + column * 16), key + column * 8, is_there);
                copy_async(shared_address(tv + o * V_STRIDE + column * 16), value + column * 8, is_there);
            }
        }
        commit_copies();
    };
    copy_tile(0, 0);
    uint4 a[STEPS], a8[STEPS];
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        const i64 row = (i64)b * queries + min(first + g, queries - 1), row8 = (i64)b * queries + min(first + g + 8, queries - 1);
        a[s] = *reinterpret_cast<const uint4 *>(q + row * q_stride + h * HEAD_DIM + s * 32 + t * 8);
        a8[s] = *reinterpret_cast<const uint4 *>(q + row8 * q_stride + h * HEAD_DIM + s * 32 + t * 8);
    }
    float o[HEAD_DIM / 8][4] = {}, outer_top[2] = {MINUS_INFINITY, MINUS_INFINITY}, outer_sum[2] = {0.0f, 0.0f};
    // A part with this outer score joins: the factors of what is there, and of the part.
    auto join = [&](int r, float score, float &old, float &fresh) {
        const float top = fmaxf(outer_top[r], score), shift = top == MINUS_INFINITY ? 0.0f : top;
        old = exp2f(outer_top[r] - shift), fresh = exp2f(score - shift);
        outer_sum[r] = outer_sum[r] * old + fresh;
        outer_top[r] = top;
    };
    const int last_of_warp = now.unfinished + min(first + 15, queries - 1);
#pragma unroll 1
    for (int i = 0; i < tiles; i++) {
        wait_copies<0>();
        __syncthreads();
        copy_tile(i + 1, (i & 1) ^ 1);
        unsigned char *tk = shared + (i & 1) * TILE_BYTES, *tv = tk + ROWS * K_STRIDE;
        if (i == 0 && now.unfinished > 0) {
            // The unfinished block's keys have no positions yet.
            for (int c = threadIdx.x; c < now.unfinished * (HEAD_DIM / 2); c += THREADS) {
                const int row = c / (HEAD_DIM / 2), pair = c % (HEAD_DIM / 2);
                const int e = STYLE == 0 ? 2 * pair : pair, f = STYLE == 0 ? e + 1 : e + HEAD_DIM / 2;
                Bits *key = reinterpret_cast<Bits *>(tk + row * K_STRIDE);
                const Angle angle = angle_of(float(now.start * BLOCK + row) * frequencies[pair]);
                const float x = to_f32<X_T>(key[e]), y = to_f32<X_T>(key[f]);
                key[e] = from_f32<X_T>(x * angle.cos - y * angle.sin);
                key[f] = from_f32<X_T>(y * angle.cos + x * angle.sin);
            }
            __syncthreads();
        }
        if (i * BLOCK > last_of_warp || first >= queries) continue;
        Scores p;
        score_tile(p, a, a8, tk, g, t);
        int seen[2];
        bool closed[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int own = now.unfinished + first + g + r * 8 - i * BLOCK; // where the query stands in this block
            closed[r] = own >= BLOCK;
            seen[r] = max(min(own + 1, BLOCK - 1), 0);
        }
        float top[2], sum[2], mark[2], scale[2];
        weigh_tile(p, seen, t, top, sum, mark);
        float old[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float score = closed[r] ? mark[r] : seen[r] > 0 ? top[r] + log2f(sum[r]) : MINUS_INFINITY;
            float fresh;
            join(r, score, old[r], fresh);
            scale[r] = seen[r] > 0 ? fresh / sum[r] : 0.0f;
        }
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++) o[n][0] *= old[0], o[n][1] *= old[0], o[n][2] *= old[1], o[n][3] *= old[1];
        add_values(o, p, scale, tv);
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = first + g + r * 8;
        if (row >= queries) continue; // all four threads of the row alike, and no shuffles follow
        const i64 slot = (((i64)b * heads + h) * queries + row) * TOPK;
#pragma unroll 1
        for (int i = 0; i < now.retrieved; i++) {
            // A slot without a block scores 0 and brings nothing.
            const bool is_there = chosen[slot + i] != NO_BLOCK;
            float old, fresh;
            join(r, is_there ? marks[slot + i] : 0.0f, old, fresh);
            const uint4 *part = reinterpret_cast<const uint4 *>(parts + (slot + i) * HEAD_DIM + t * (HEAD_DIM / 4));
#pragma unroll
            for (int n = 0; n < HEAD_DIM / 32; n++) {
                const uint4 x = is_there ? part[n] : make_uint4(0, 0, 0, 0);
                const u32 w[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    o[4 * n + c][2 * r] = o[4 * n + c][2 * r] * old + low<X_T>(w[c]) * fresh;
                    o[4 * n + c][2 * r + 1] = o[4 * n + c][2 * r + 1] * old + high<X_T>(w[c]) * fresh;
                }
            }
        }
        const float scale = 1.0f / outer_sum[r];
        Bits *to = out + (((i64)b * queries + row) * heads + h) * HEAD_DIM + 2 * t;
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++)
            *reinterpret_cast<u32 *>(to + n * 8) = pack<X_T>(o[n][2 * r] * scale, o[n][2 * r + 1] * scale);
        if (SHARES && t == 0)
            for (int i = 0; i < TOPK; i++) {
                float share = 0.0f;
                if (i < now.retrieved)
                    share = exp2f((chosen[slot + i] != NO_BLOCK ? marks[slot + i] : 0.0f) - outer_top[r]) * scale;
                shares[slot + i] = share;
            }
    }
}
