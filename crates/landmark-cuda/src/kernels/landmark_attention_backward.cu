// Landmark attention, backward, for tensor cores from sm_80 on (spec section 2): bf16 or f16, regular landmarks or none.
//
// Two kernels and no atomics. `backward_queries` walks the keys of a tile of queries: S = Q K^T, dP = dO V^T, dQ += dS K.
// A row of a tile holds whole landmark blocks, so the block's maximum m, sum l and mean gradient are sums over a quad:
//
//   an earlier block:  w = exp(s - m) / l,  share = exp(s_landmark - lse),  mean = sum of w dP
//                      ds = share w (dP - mean),  ds_landmark = share (mean - Delta)
//   one's own block:   ds = exp(s - lse) (dP - Delta)
//
// It leaves behind, for every (query, block), `logs` with P = exp(s - log) and `means`; one's own block has lse and Delta
// there. With these `backward_keys` is plain flash attention's: a tile of keys walks the queries, S^T = K Q^T, dP^T = V dO^T,
// dV += P^T dO, dK += dS^T Q, with P^T and dS^T straight from the registers in which they were computed. Seven products
// where an atomic version has five; the gradients are the same bits in every run.
//
// Rejected: computing the block sums again in `backward_keys` instead of storing them. They run across the warps there
// (keys are rows), or P and dS have to go through shared memory.
//
// `logs` and `means` take 8 bytes for each (query, block) of a head; the launcher runs as many heads at a time as fit.

#include "attention_tile.cuh"

// How many thread blocks share the columns of a key tile's results, which take 2 D / SPLIT registers.
#ifndef SPLIT
#define SPLIT 1
#endif
// Tiles of queries in shared memory.
#ifndef STAGES
#define STAGES 1
#endif

struct Attention {
    View q, k, v, out, dout, dq, dk, dv;
    const float* lse;            // (B, H, Nq)
    const unsigned* phases;      // (B)
    const unsigned* first_key;   // (B), may be null
    float* tops;                 // (heads of the slice, ld): lse to base 2, infinite where there is nothing to attend to
    float* deltas;               // (heads of the slice, ld): sum of dout out
    float* logs;                 // (heads of the slice, blocks, ld)
    float* means;                // (heads of the slice, blocks, ld)
    int batch, queries, keys, heads, kv_heads;
    int ld;                      // queries, rounded up to a tile
    int blocks;                  // landmark blocks of a row, rounded up to a tile of keys
    int tiles;                   // of queries, or of keys
    int together;                // heads whose tiles run side by side, longest first
    int first_head, count_heads; // key heads of the slice, numbered b * kv_heads + h
    float scale;
};

static_assert(sizeof(Attention) == 296, "as ops/landmark_attention_backward.rs writes it");

constexpr int QUERIES = 64;
// Queries whose S and dP a warp of `backward_keys` holds at a time: beside dK and dV there are no registers for 64, and
// many short blocks want some of their own.
constexpr int PASS = PADDED == 8 ? 16 : 32;
constexpr int N_TILES = TILE_KEYS / 8;
constexpr int BLOCK_TILES = PADDED / 8;
#define LOG2E 1.44269504088896f

// ---- queries ----

extern "C" __global__ void __launch_bounds__(128, 2) backward_queries(const __grid_constant__ Attention a) {
    constexpr int THREADS = 128;
    extern __shared__ __align__(16) unsigned short shared[];
    unsigned short* const sq = shared;
    unsigned short* const sg = sq + QUERIES * PITCH;  // dout
    unsigned short* const sk = sg + QUERIES * PITCH;
    unsigned short* const sv = sk + TILE_KEYS * PITCH;

    wait_for_launch_ahead();

    const int per_kv = a.heads / a.kv_heads;
    const int total = a.count_heads * per_kv, per_group = a.together * a.tiles;
    const int group = blockIdx.x / per_group, rest = blockIdx.x % per_group;
    const int members = min(a.together, total - group * a.together);
    const int index = group * a.together + rest % members;  // head of the slice
    const int kv = a.first_head + index / per_kv, b = kv / a.kv_heads, hk = kv % a.kv_heads;
    const int h = hk * per_kv + index % per_kv;
    const int query0 = (a.tiles - 1 - rest / members) * QUERIES;

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, quad = lane / 4, place = lane % 4;
    const int past = a.keys - a.queries;
    const int phase = BLOCK ? (int)(a.phases[b] % (unsigned)(BLOCK ? BLOCK : 1)) : 0;
    const int first = a.first_key ? (int)a.first_key[b] : 0;
    const float scale = a.scale * LOG2E;
    // What is wanted once in a tile waits in shared memory: the accumulators leave no registers for it.
    struct Fixed {
        int b, hk, h, index;
    };
    __shared__ Fixed written;
    if (threadIdx.x == 0) written = {b, hk, h, index};
    __syncthreads();
    const volatile Fixed& fixed = written;

    const int last_key = past + min(query0 + QUERIES, a.queries) - 1;
    const int last_tile = (last_key + phase) / TILE_SPAN;
    const int first_tile = first > last_key ? last_tile + 1 : (first + phase) / TILE_SPAN;
    const auto copy_keys = [&](unsigned short* to, const View& x, int tile) {
        const int base = tile * TILE_SPAN - phase;
        copy_rows<TILE_KEYS, THREADS>(shared_address(to), head_of(x, fixed.b, fixed.hk), x.row, a.keys, [&](int r) { return key_of(base, r); });
    };

    copy_rows<QUERIES, THREADS>(shared_address(sq), head_of(a.q, b, h), a.q.row, a.queries, [&](int r) { return query0 + r; });
    copy_rows<QUERIES, THREADS>(shared_address(sg), head_of(a.dout, b, h), a.dout.row, a.queries, [&](int r) { return query0 + r; });
    commit_copies();
    copy_keys(sk, a.k, last_tile);
    copy_keys(sv, a.v, last_tile);
    commit_copies();

    wait_copies<1>();
    __syncthreads();
    float top[2], delta[2];
#pragma unroll
    for (int e = 0; e < 2; e++) {
        const int row = warp * 16 + e * 8 + quad, query = query0 + row;
        top[e] = INFINITE;
        delta[e] = 0.0f;
        if (query < a.queries) {
            const float lse = a.lse[((long long)b * a.heads + h) * a.queries + query];
            if (lse != -INFINITE) top[e] = lse * LOG2E;
            const unsigned short* const o = head_of(a.out, b, h) + (long long)query * a.out.row;
            for (int c = place; c < D / 8; c += 4) {
                const uint4 x = *reinterpret_cast<const uint4*>(o + c * 8);
                const uint4 g = *reinterpret_cast<const uint4*>(sg + row * PITCH + c * 8);
                const unsigned xs[4] = {x.x, x.y, x.z, x.w}, gs[4] = {g.x, g.y, g.z, g.w};
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float2 u = unpack(xs[i]), w = unpack(gs[i]);
                    delta[e] = fmaf(u.x, w.x, fmaf(u.y, w.y, delta[e]));
                }
            }
        }
        delta[e] = quad_sum(delta[e]);
        if (place == 0) a.tops[(long long)index * a.ld + query] = top[e];
        if (place == 1) a.deltas[(long long)index * a.ld + query] = delta[e];
    }

    float dq[D / 8][4] = {};
    const int warp_first = past + query0 + warp * 16, position = warp_first + quad;
    // Bytes from Q to dO, to K, and from K to V.
    constexpr int G_AT = QUERIES * PITCH * 2, K_AT = 2 * G_AT, V_AT = TILE_KEYS * PITCH * 2;
    const unsigned q_address = shared_address(shared) + ((warp * 16 + lane % 16) * PITCH + lane / 16 * 8) * 2;
    const unsigned k_address = shared_address(shared) + K_AT + ((lane % 8 + lane / 16 * 8) * PITCH + lane / 8 % 2 * 8) * 2;
    const unsigned kt_address = shared_address(shared) + K_AT + (lane % 16 * PITCH + lane / 16 * 8) * 2;

    for (int tile = last_tile; tile >= first_tile; tile--) {
        wait_copies<0>();
        __syncthreads();
        float s[N_TILES][4] = {}, dp[N_TILES][4] = {};
#pragma unroll
        for (int d = 0; d < D / 16; d++) {
            unsigned qf[4], gf[4];
            ldmatrix4(qf, q_address + d * 32);
            ldmatrix4(gf, q_address + G_AT + d * 32);
#pragma unroll
            for (int n = 0; n < N_TILES; n += 2) {
                constexpr int LAST = N_TILES - 1;
                unsigned kf[4], vf[4];
                if (n < LAST) {
                    ldmatrix4(kf, k_address + (n * 8 * PITCH + d * 16) * 2);
                    ldmatrix4(vf, k_address + V_AT + (n * 8 * PITCH + d * 16) * 2);
                } else {
                    const int at = (n * 8 + lane % 8) * PITCH + d * 16 + lane / 8 % 2 * 8;
                    ldmatrix2(kf[0], kf[1], shared_address(sk + at));
                    ldmatrix2(vf[0], vf[1], shared_address(sv + at));
                }
                mma(s[n], qf, kf[0], kf[1]);
                mma(dp[n], gf, vf[0], vf[1]);
                if (n < LAST) {
                    mma(s[n < LAST ? n + 1 : n], qf, kf[2], kf[3]);
                    mma(dp[n < LAST ? n + 1 : n], gf, vf[2], vf[3]);
                }
            }
        }
        __syncthreads();  // nobody reads V any more
        if (tile > first_tile) copy_keys(sv, a.v, tile - 1);

        const int base = tile * TILE_SPAN - phase;
        if (base + TILE_SPAN - 1 > warp_first || base < first) {
#pragma unroll
            for (int n = 0; n < N_TILES; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int key = base + n / BLOCK_TILES * BLOCK + n % BLOCK_TILES * 8 + place * 2 + e % 2;
                    if (key > position + e / 2 * 8 || key < first) s[n][e] = -INFINITE;
                }
        }

        unsigned ds[N_TILES][2];
#pragma unroll
        for (int block = 0; block < TILE_BLOCKS; block++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int n0 = block * BLOCK_TILES, last = n0 + BLOCK_TILES - 1;
                float shift = top[e], mean = delta[e], factor = 1.0f, landmark = -INFINITE, share = 0.0f;
                bool earlier = false;
                if (BLOCK) {
                    earlier = base + block * BLOCK + BLOCK - 1 < position + e * 8;
                    landmark = __shfl_sync(0xffffffffu, s[last][e * 2 + LANDMARK % 2], lane / 4 * 4 + LANDMARK / 2 % 4) * scale;
#pragma unroll
                    for (int c = 0; c < 2; c++)
                        if (place * 2 + c >= LANDMARK) s[last][e * 2 + c] = -INFINITE;
                    float m = -INFINITE;
#pragma unroll
                    for (int n = n0; n <= last; n++) m = fmaxf(m, fmaxf(s[n][e * 2], s[n][e * 2 + 1]));
                    m = quad_max(m);
                    if (earlier) shift = m == -INFINITE ? 0.0f : m * scale;
                }
                float l = 0.0f, sum = 0.0f;
#pragma unroll
                for (int n = n0; n <= last; n++)
#pragma unroll
                    for (int c = 0; c < 2; c++) {
                        float& x = s[n][e * 2 + c];
                        x = power2(fmaf(x, scale, -shift));
                        if (BLOCK) {
                            l += x;
                            sum = fmaf(x, dp[n][e * 2 + c], sum);
                        }
                    }
                if (BLOCK) {
                    l = quad_sum(l);
                    sum = quad_sum(sum);
                    float log = top[e];
                    if (earlier) {
                        const float one = l > 0.0f ? __fdividef(1.0f, l) : 0.0f;
                        share = power2(landmark - top[e]);
                        mean = sum * one;
                        factor = share * one;
                        log = l > 0.0f ? shift + __log2f(l) - landmark + top[e] : INFINITE;
                    }
                    const long long at = ((long long)fixed.index * a.blocks + tile * TILE_BLOCKS + block) * a.ld + (position - past) + e * 8;
                    if (place == 0) a.logs[at] = log;
                    if (place == 1) a.means[at] = mean;
                }
#pragma unroll
                for (int n = n0; n <= last; n++) {
                    float x[2];
#pragma unroll
                    for (int c = 0; c < 2; c++) {
                        x[c] = s[n][e * 2 + c] * factor * (dp[n][e * 2 + c] - mean);
                        if (BLOCK && n == last && place * 2 + c == LANDMARK) x[c] = share * (mean - delta[e]);
                    }
                    ds[n][e] = pack(x[0], x[1]);
                }
            }

#pragma unroll
        for (int n = 0; n < N_TILES; n += 2)
#pragma unroll
            for (int d = 0; d < D / 8; d += 2) {
                constexpr int LAST = N_TILES - 1;
                unsigned kf[4];
                if (n < LAST) {
                    ldmatrix4_transposed(kf, kt_address + (n * 8 * PITCH + d * 8) * 2);
                    const unsigned df[4] = {ds[n][0], ds[n][1], ds[n < LAST ? n + 1 : n][0], ds[n < LAST ? n + 1 : n][1]};
                    mma(dq[d], df, kf[0], kf[1]);
                    mma(dq[d + 1], df, kf[2], kf[3]);
                } else if (d % 4 == 0) {
                    ldmatrix4_transposed(kf, shared_address(sk + (n * 8 + lane % 8) * PITCH + min(d * 8 + lane / 8 * 8, D - 8)));
#pragma unroll
                    for (int c = 0; c < 4; c++)
                        if (d + c < D / 8) mma8(dq[d + c < D / 8 ? d + c : d], ds[n][0], ds[n][1], kf[c]);
                }
            }
        __syncthreads();  // nobody reads K any more
        if (tile > first_tile) copy_keys(sk, a.k, tile - 1);
        commit_copies();
    }
    wait_copies<0>();

    // Through the rows of Q that only this warp has read.
#pragma unroll
    for (int e = 0; e < 2; e++)
#pragma unroll
        for (int d = 0; d < D / 8; d++)
            *reinterpret_cast<unsigned*>(sq + (warp * 16 + e * 8 + quad) * PITCH + d * 8 + place * 2) =
                pack(dq[d][e * 2] * a.scale, dq[d][e * 2 + 1] * a.scale);
    __syncwarp();
    unsigned short* const to = const_cast<unsigned short*>(head_of(a.dq, fixed.b, fixed.h));
    for (int e = lane; e < 16 * (D / 8); e += 32) {
        const int r = warp * 16 + e / (D / 8), c = e % (D / 8) * 8;
        if (query0 + r < a.queries)
            *reinterpret_cast<uint4*>(to + (long long)(query0 + r) * a.dq.row + c) =
                *reinterpret_cast<const uint4*>(sq + r * PITCH + c);
    }
}

// ---- keys ----

constexpr int KEY_WARPS = (TILE_KEYS + 15) / 16;
constexpr int KEY_THREADS = KEY_WARPS * 32;
constexpr int KEY_ROWS = KEY_WARPS * 16;
// Rows of numbers beside a tile of queries: tops, deltas, and logs and means of each block.
constexpr int LISTS = BLOCK ? 2 + 2 * TILE_BLOCKS : 2;
constexpr int STAGE = 2 * QUERIES * PITCH + LISTS * QUERIES * 2;  // in halves

extern "C" __global__ void __launch_bounds__(KEY_THREADS, KEY_THREADS <= 128 ? 2 : 1) backward_keys(const __grid_constant__ Attention a) {
    constexpr int COLUMNS = D / SPLIT;
    // Bytes from K to V, from there to the stages, and in a stage from Q to dO to the lists.
    constexpr int V_AT = KEY_ROWS * PITCH * 2, STAGES_AT = 2 * V_AT, G_AT = QUERIES * PITCH * 2, LISTS_AT = 2 * G_AT;
    extern __shared__ __align__(16) unsigned short shared[];
    const unsigned start = shared_address(shared);

    wait_for_launch_ahead();

    const int per_kv = a.heads / a.kv_heads, per_group = a.together * a.tiles;
    const int group = blockIdx.x / per_group, rest = blockIdx.x % per_group;
    const int members = min(a.together, a.count_heads - group * a.together);
    const int local = group * a.together + rest % members;  // key head of the slice
    const int kv = a.first_head + local, b = kv / a.kv_heads, hk = kv % a.kv_heads;
    const int tile = rest / members;

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, quad = lane / 4, place = lane % 4;
    const int past = a.keys - a.queries;
    const int phase = BLOCK ? (int)(a.phases[b] % (unsigned)(BLOCK ? BLOCK : 1)) : 0;
    const int first = a.first_key ? (int)a.first_key[b] : 0;
    const int base = tile * TILE_SPAN - phase;
    const float scale = a.scale * LOG2E;

    const auto key_row = [](int base, int r) { return KEY_ROWS == TILE_KEYS || r < TILE_KEYS ? key_of(base, r) : -1; };
    copy_rows<KEY_ROWS, KEY_THREADS>(start, head_of(a.k, b, hk), a.k.row, a.keys, [&](int r) { return key_row(base, r); });
    copy_rows<KEY_ROWS, KEY_THREADS>(start + V_AT, head_of(a.v, b, hk), a.v.row, a.keys, [&](int r) { return key_row(base, r); });

    // The walk: for every query head of the group, the tiles of queries that see these keys. What is the same for all
    // threads and wanted once in a tile waits in shared memory: the accumulators leave no registers for it.
    const int first_query = max(0, max(base, first) - past) / QUERIES * QUERIES;
    struct Fixed {
        int b, hk, local, block, base, first, first_query;
    };
    __shared__ Fixed written;
    if (threadIdx.x == 0) written = {b, hk, local, tile * TILE_BLOCKS, base, first, first_query};
    __syncthreads();
    const volatile Fixed& fixed = written;
    const auto copy_queries = [&](unsigned stage, int head, int query0) {
        const unsigned to = start + STAGES_AT + stage;
        const int row = fixed.b, per_kv = a.heads / a.kv_heads, h = fixed.hk * per_kv + head;
        const auto query = [&](int r) { return query0 + r; };
        copy_rows<QUERIES, KEY_THREADS>(to, head_of(a.q, row, h), a.q.row, a.queries, query);
        copy_rows<QUERIES, KEY_THREADS>(to + G_AT, head_of(a.dout, row, h), a.dout.row, a.queries, query);
        const long long index = (long long)fixed.local * per_kv + head;
#pragma unroll 1
        for (int e = afresh(threadIdx.x); e < LISTS * (QUERIES / 4); e += KEY_THREADS) {
            const int list = e / (QUERIES / 4), c = e % (QUERIES / 4) * 4;
            const float* from;
            if (list < 2)
                from = (list == 0 ? a.tops : a.deltas) + index * a.ld;
            else
                from = (list % 2 == 0 ? a.logs : a.means) + (index * a.blocks + fixed.block + (list - 2) / 2) * a.ld;
            copy_async(to + LISTS_AT + (list * QUERIES + c) * 4, from + query0 + c, true);
        }
    };
    int head = base + TILE_SPAN <= first || first_query >= a.ld ? per_kv : 0, query0 = first_query;
    unsigned stage = 0;
    if (head < per_kv) copy_queries(0, head, query0);
    commit_copies();

    float dk[COLUMNS / 8][4] = {}, dv[COLUMNS / 8][4] = {};
    const unsigned k_address = start + ((warp * 16 + lane % 16) * PITCH + lane / 16 * 8) * 2;
    const unsigned direct = start + STAGES_AT + ((lane % 8 + lane / 16 * 8) * PITCH + lane / 8 % 2 * 8) * 2;
    const unsigned transposed = start + STAGES_AT + (lane % 16 * PITCH + lane / 16 * 8 + (SPLIT > 1 ? blockIdx.y * COLUMNS : 0)) * 2;

    while (head < a.heads / a.kv_heads) {
        int next = query0 + QUERIES, next_head = head;
        if (next >= a.ld) next = fixed.first_query, next_head++;
        if (STAGES > 1) {
            if (next_head < a.heads / a.kv_heads) copy_queries(STAGE * 2 - stage, next_head, next);
            commit_copies();
            wait_copies<1>();
        } else {
            wait_copies<0>();
        }
        __syncthreads();
        const float* const lists = reinterpret_cast<const float*>(
            reinterpret_cast<const char*>(shared) + STAGES_AT + LISTS_AT + (STAGES > 1 ? stage : 0));
        const unsigned direct_now = direct + (STAGES > 1 ? stage : 0), transposed_now = transposed + (STAGES > 1 ? stage : 0);

#pragma unroll 1
        for (int pass = 0; pass < QUERIES; pass += PASS) {
            const unsigned direct_pass = direct_now + pass * PITCH * 2, transposed_pass = transposed_now + pass * PITCH * 2;
            const float* const now = lists + pass;
            float s[PASS / 8][4] = {}, dp[PASS / 8][4] = {};
#pragma unroll
            for (int d = 0; d < D / 16; d++) {
                unsigned kf[4], vf[4];
                ldmatrix4(kf, k_address + d * 32);
                ldmatrix4(vf, k_address + V_AT + d * 32);
#pragma unroll
                for (int n = 0; n < PASS / 8; n += 2) {
                    unsigned qf[4], gf[4];
                    ldmatrix4(qf, direct_pass + (n * 8 * PITCH + d * 16) * 2);
                    ldmatrix4(gf, direct_pass + G_AT + (n * 8 * PITCH + d * 16) * 2);
                    mma(s[n], kf, qf[0], qf[1]);
                    mma(s[n + 1], kf, qf[2], qf[3]);
                    mma(dp[n], vf, gf[0], gf[1]);
                    mma(dp[n + 1], vf, gf[2], gf[3]);
                }
            }

            // Rows of 8 keys lie in one block.
            unsigned p[PASS / 8][2], ds[PASS / 8][2];
            const int base = fixed.base, first = fixed.first, past = a.keys - a.queries;
            const int position = past + query0 + pass + place * 2;
            // Whether some query of the tile comes before some key, or a key is hidden or none.
            const bool edge = base + TILE_SPAN > past + query0 || base < first;
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int thread = afresh(threadIdx.x);
                const int eight = thread / 32 * 16 + e * 8, block = eight / PADDED, offset = eight % PADDED + thread % 32 / 4;
                const bool is_landmark = BLOCK && offset == BLOCK - 1;
                const bool is_padding = (KEY_ROWS != TILE_KEYS && eight >= TILE_KEYS) || (BLOCK && offset >= BLOCK);
                const int key = base + block * BLOCK + offset;
                // The first position that sees this key: itself, or for a landmark the one after it. Within the text
                // all do.
                const bool is_nothing = is_padding || (edge && (key < first || key >= a.keys));
                const int from = is_nothing ? 0x7fffffff : edge ? key + is_landmark : 0;
                const int list = BLOCK ? (2 + 2 * min(block, TILE_BLOCKS - 1)) * QUERIES : 0;
                const bool has_landmark = BLOCK && eight % PADDED == PADDED - 8;
#pragma unroll
                for (int n = 0; n < PASS / 8; n++) {
                    asm volatile("" ::: "memory");  // no loads ahead of time: there are no registers for them
                    const float2 log = *reinterpret_cast<const float2*>(now + list + n * 8 + place * 2);
                    const float2 mean = *reinterpret_cast<const float2*>(now + list + QUERIES + n * 8 + place * 2);
                    float logs[2] = {log.x, log.y}, means[2] = {mean.x, mean.y};
                    float x[2] = {dp[n][e * 2], dp[n][e * 2 + 1]};
                    if (has_landmark) {
                        const float2 top = *reinterpret_cast<const float2*>(now + n * 8 + place * 2);
                        const float2 delta = *reinterpret_cast<const float2*>(now + QUERIES + n * 8 + place * 2);
                        if (is_landmark) {
                            logs[0] = top.x, logs[1] = top.y;
                            x[0] = means[0], x[1] = means[1];
                            means[0] = delta.x, means[1] = delta.y;
                        }
                    }
                    float weight[2], gradient[2];
#pragma unroll
                    for (int c = 0; c < 2; c++) {
                        weight[c] = power2(fmaf(s[n][e * 2 + c], scale, -logs[c]));
                        gradient[c] = weight[c] * (x[c] - means[c]);
                        // What nobody sees may have no log and no mean.
                        if (from > position + n * 8 + c) weight[c] = gradient[c] = 0.0f;
                        if (is_landmark) weight[c] = 0.0f;
                    }
                    p[n][e] = pack(weight[0], weight[1]);
                    ds[n][e] = pack(gradient[0], gradient[1]);
                }
            }

#pragma unroll
            for (int n = 0; n < PASS / 8; n += 2) {
                const unsigned pf[4] = {p[n][0], p[n][1], p[n + 1][0], p[n + 1][1]};
                const unsigned df[4] = {ds[n][0], ds[n][1], ds[n + 1][0], ds[n + 1][1]};
#pragma unroll
                for (int d = 0; d < COLUMNS / 8; d += 2) {
                    unsigned gf[4], qf[4];
                    ldmatrix4_transposed(gf, transposed_pass + G_AT + (n * 8 * PITCH + d * 8) * 2);
                    mma(dv[d], pf, gf[0], gf[1]);
                    mma(dv[d + 1], pf, gf[2], gf[3]);
                    ldmatrix4_transposed(qf, transposed_pass + (n * 8 * PITCH + d * 8) * 2);
                    mma(dk[d], df, qf[0], qf[1]);
                    mma(dk[d + 1], df, qf[2], qf[3]);
                }
            }
        }
        __syncthreads();  // nobody reads this stage any more
        if (STAGES == 1) {
            if (next_head < a.heads / a.kv_heads) copy_queries(0, next_head, next);
            commit_copies();
        }
        query0 = next, head = next_head, stage = STAGE * 2 - stage;
    }
    wait_copies<0>();
    __syncthreads();

    const int end_b = fixed.b, end_hk = fixed.hk, end_base = fixed.base;
    unsigned short *const sk = shared, *const sv = shared + V_AT / 2;
    const int column0 = SPLIT > 1 ? blockIdx.y * COLUMNS : 0;
    // Through the rows of K and V that only this warp has read.
#pragma unroll
    for (int e = 0; e < 2; e++)
#pragma unroll
        for (int d = 0; d < COLUMNS / 8; d++) {
            const int at = (warp * 16 + e * 8 + quad) * PITCH + d * 8 + place * 2;
            *reinterpret_cast<unsigned*>(sk + at) = pack(dk[d][e * 2] * a.scale, dk[d][e * 2 + 1] * a.scale);
            *reinterpret_cast<unsigned*>(sv + at) = pack(dv[d][e * 2], dv[d][e * 2 + 1]);
        }
    __syncwarp();
    unsigned short* const to_k = const_cast<unsigned short*>(head_of(a.dk, end_b, end_hk)) + column0;
    unsigned short* const to_v = const_cast<unsigned short*>(head_of(a.dv, end_b, end_hk)) + column0;
    for (int e = lane; e < 16 * (COLUMNS / 8); e += 32) {
        const int r = warp * 16 + e / (COLUMNS / 8), c = e % (COLUMNS / 8) * 8, key = key_row(end_base, r);
        if ((unsigned)key < (unsigned)a.keys) {
            *reinterpret_cast<uint4*>(to_k + (long long)key * a.dk.row + c) = *reinterpret_cast<const uint4*>(sk + r * PITCH + c);
            *reinterpret_cast<uint4*>(to_v + (long long)key * a.dv.row + c) = *reinterpret_cast<const uint4*>(sv + r * PITCH + c);
        }
    }
}
