// Landmark attention, forward, for tensor cores from sm_80 on (spec section 2): bf16 or f16, regular landmarks or none.
//
// FlashAttention-2's schedule: a thread block has 4 warps of WARP_ROWS queries each and walks the tiles of keys backwards from
// its own; K of the next tile is copied during P V, V during Q K^T. What differs is the softmax. Within a tile every
// (query, landmark block) has its own maximum m and sum l over the ordinary keys, and then
//
//   an earlier block:   P_ij = exp(s_ij - m) / l * exp(s_ip - M),  and exp(s_ip - M) joins the outer sum
//   one's own block:    P_ij = exp(s_ij - m) * exp(m - M),         and l exp(m - M) does
//
// with s_ip the landmark's score and M the outer maximum so far. Blocks are whole in a tile, so m and l are final at once,
// and one exponential an element is taken, as in plain attention; without landmarks every tile is one's own block and
// this *is* plain flash attention. The accumulator is rescaled only where M would grow by more than 2^8, which after the
// first tiles hardly happens; results do not depend on that, since sum and accumulator share M.
//
// Exponentials are to base 2, the scale and log2(e) folded into one factor.

#include "attention_tile.cuh"

#ifndef WARP_ROWS
#define WARP_ROWS 32
#endif
#ifndef WARPS
#define WARPS 4
#endif

struct Attention {
    View q, k, v, out;
    float* lse;                  // (B, H, Nq)
    const unsigned* phases;      // (B)
    const unsigned* first_key;   // (B), may be null
    int batch, queries, keys, heads, kv_heads;
    int tiles;                   // of queries
    int together;                // heads whose tiles run side by side, longest first
    float scale;                 // of scores, times log2(e)
};

static_assert(sizeof(Attention) == 152, "as ops/landmark_attention.rs writes it");

constexpr int THREADS = WARPS * 32;
constexpr int TILE_QUERIES = WARPS * WARP_ROWS;
constexpr int M_TILES = WARP_ROWS / 16;
constexpr int N_TILES = TILE_KEYS / 8;
constexpr int BLOCK_TILES = PADDED / 8;

extern "C" __global__ void __launch_bounds__(THREADS, THREADS == 128 ? 2 : 1) forward(const __grid_constant__ Attention a) {
    extern __shared__ __align__(16) unsigned short shared[];
    unsigned short* const sq = shared;
    unsigned short* const sk = sq + TILE_QUERIES * PITCH;
    unsigned short* const sv = sk + TILE_KEYS * PITCH;

    wait_for_launch_ahead();

    // Groups of heads whose keys fit into the cache together; in a group the longest tiles first.
    const int total = a.batch * a.heads, per_group = a.together * a.tiles;
    const int group = blockIdx.x / per_group, rest = blockIdx.x % per_group;
    const int members = min(a.together, total - group * a.together);
    const int bh = group * a.together + rest % members, b = bh / a.heads, h = bh % a.heads;
    const int query0 = (a.tiles - 1 - rest / members) * TILE_QUERIES;

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, quad = lane / 4, place = lane % 4;
    const int past = a.keys - a.queries;  // keys before the first query
    const int phase = BLOCK ? (int)(a.phases[b] % (unsigned)(BLOCK ? BLOCK : 1)) : 0;
    const int first = a.first_key ? (int)a.first_key[b] : 0;
    const unsigned short* const k = head_of(a.k, b, h / (a.heads / a.kv_heads));
    const unsigned short* const v = head_of(a.v, b, h / (a.heads / a.kv_heads));

    const int last_key = past + min(query0 + TILE_QUERIES, a.queries) - 1;
    const int last_tile = (last_key + phase) / TILE_SPAN;
    const int first_tile = first > last_key ? last_tile + 1 : (first + phase) / TILE_SPAN;
    const auto base_of = [&](int tile) { return tile * TILE_SPAN - phase; };
    const auto copy_keys = [&](unsigned short* to, const unsigned short* head, int stride, int tile) {
        const int base = base_of(tile);
        copy_rows<TILE_KEYS, THREADS>(shared_address(to), head, stride, a.keys, [&](int r) { return key_of(base, r); });
    };

    copy_rows<TILE_QUERIES, THREADS>(shared_address(sq), head_of(a.q, b, h), a.q.row, a.queries, [&](int r) { return query0 + r; });
    copy_keys(sk, k, a.k.row, last_tile);
    commit_copies();

    // For each row of this thread the outer maximum (scaled, may lag behind) and the outer sum.
    float top[M_TILES][2], sum[M_TILES][2];
    float out[M_TILES][D / 8][4] = {};
#pragma unroll
    for (int i = 0; i < M_TILES; i++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            top[i][e] = -INFINITE;
            sum[i][e] = 0.0f;
        }
    // Positions among the keys of the warp's first query, and of this thread's first row.
    const int warp_first = past + query0 + warp * WARP_ROWS, position = warp_first + quad;

    const unsigned q_address = shared_address(sq + (warp * WARP_ROWS + lane % 16) * PITCH + lane / 16 * 8);
    const unsigned k_address = shared_address(sk + (lane % 8 + lane / 16 * 8) * PITCH + lane / 8 % 2 * 8);
    const unsigned v_address = shared_address(sv + lane % 16 * PITCH + lane / 16 * 8);

    for (int tile = last_tile; tile >= first_tile; tile--) {
        wait_copies<0>();
        __syncthreads();  // K is here, and nobody reads V any more
        copy_keys(sv, v, a.v.row, tile);
        commit_copies();

        float s[M_TILES][N_TILES][4] = {};
#pragma unroll
        for (int d = 0; d < D / 16; d++) {
            unsigned qf[M_TILES][4];
#pragma unroll
            for (int i = 0; i < M_TILES; i++) ldmatrix4(qf[i], q_address + (i * 16 * PITCH + d * 16) * 2);
#pragma unroll
            for (int n = 0; n < N_TILES; n += 2) {
                unsigned kf[4];
                if (n + 1 < N_TILES)
                    ldmatrix4(kf, k_address + (n * 8 * PITCH + d * 16) * 2);
                else
                    ldmatrix2(kf[0], kf[1], shared_address(sk + (n * 8 + lane % 8) * PITCH + d * 16 + lane / 8 % 2 * 8));
#pragma unroll
                for (int i = 0; i < M_TILES; i++) {
                    mma(s[i][n], qf[i], kf[0], kf[1]);
                    if (n + 1 < N_TILES) mma(s[i][n + 1 < N_TILES ? n + 1 : n], qf[i], kf[2], kf[3]);
                }
            }
        }

        const int base = base_of(tile);
        // Keys after a query, or hidden ones, occur only at the ends of the walk.
        if (base + TILE_SPAN - 1 > warp_first || base < first) {
#pragma unroll
            for (int i = 0; i < M_TILES; i++)
#pragma unroll
                for (int n = 0; n < N_TILES; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        const int key = base + n / BLOCK_TILES * BLOCK + n % BLOCK_TILES * 8 + place * 2 + e % 2;
                        if (key > position + i * 16 + e / 2 * 8 || key < first) s[i][n][e] = -INFINITE;
                    }
        }

#pragma unroll
        for (int block = 0; block < TILE_BLOCKS; block++)
#pragma unroll
            for (int i = 0; i < M_TILES; i++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const int n0 = block * BLOCK_TILES, last = n0 + BLOCK_TILES - 1;
                    bool earlier = false;
                    float landmark = -INFINITE;
                    if (BLOCK) {
                        earlier = base + block * BLOCK + BLOCK - 1 < position + i * 16 + e * 8;
                        landmark = __shfl_sync(0xffffffffu, s[i][last][e * 2 + LANDMARK % 2], lane / 4 * 4 + LANDMARK / 2 % 4);
#pragma unroll
                        for (int c = 0; c < 2; c++)
                            if (place * 2 + c >= LANDMARK) s[i][last][e * 2 + c] = -INFINITE;
                    }
                    float m = -INFINITE;
#pragma unroll
                    for (int n = n0; n <= last; n++) m = fmaxf(m, fmaxf(s[i][n][e * 2], s[i][n][e * 2 + 1]));
                    m = quad_max(m);
                    const float shift = m == -INFINITE ? 0.0f : m * a.scale;
                    float l = 0.0f;
#pragma unroll
                    for (int n = n0; n <= last; n++)
#pragma unroll
                        for (int c = 0; c < 2; c++) {
                            float& x = s[i][n][e * 2 + c];
                            x = power2(fmaf(x, a.scale, -shift));
                            l += x;
                        }
                    l = quad_sum(l);
                    const float outer = (earlier ? landmark : m) * a.scale;
                    if (__any_sync(0xffffffffu, outer > top[i][e] + 8.0f)) {
                        const float higher = fmaxf(top[i][e], outer);
                        const float factor = higher == top[i][e] ? 1.0f : power2(top[i][e] - higher);
                        top[i][e] = higher;
                        sum[i][e] *= factor;
#pragma unroll
                        for (int d = 0; d < D / 8; d++)
#pragma unroll
                            for (int c = 0; c < 2; c++) out[i][d][e * 2 + c] *= factor;
                        // Weights of this tile's other blocks are not among the results yet.
#pragma unroll
                        for (int n = 0; n < n0; n++)
#pragma unroll
                            for (int c = 0; c < 2; c++) s[i][n][e * 2 + c] *= factor;
                    }
                    const float share = outer == -INFINITE ? 0.0f : power2(outer - top[i][e]);
                    sum[i][e] += earlier ? share : share * l;
                    // An earlier block may have a landmark only: then it takes its share and gives nothing.
                    const float factor = earlier ? (l > 0.0f ? __fdividef(share, l) : 0.0f) : share;
#pragma unroll
                    for (int n = n0; n <= last; n++)
#pragma unroll
                        for (int c = 0; c < 2; c++) s[i][n][e * 2 + c] *= factor;
                }
        unsigned p[M_TILES][N_TILES][2];
#pragma unroll
        for (int i = 0; i < M_TILES; i++)
#pragma unroll
            for (int n = 0; n < N_TILES; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) p[i][n][e] = pack(s[i][n][e * 2], s[i][n][e * 2 + 1]);

        wait_copies<0>();
        __syncthreads();  // V is here, and nobody reads K any more
        if (tile > first_tile) copy_keys(sk, k, a.k.row, tile - 1);
        commit_copies();

#pragma unroll
        for (int n = 0; n < N_TILES; n += 2)
#pragma unroll
            for (int d = 0; d < D / 8; d += 2) {
                unsigned vf[4];
                if (n + 1 < N_TILES) {
                    ldmatrix4_transposed(vf, v_address + (n * 8 * PITCH + d * 8) * 2);
#pragma unroll
                    for (int i = 0; i < M_TILES; i++) {
                        constexpr int LAST = N_TILES - 1;
                        const unsigned pf[4] = {p[i][n][0], p[i][n][1], p[i][n < LAST ? n + 1 : n][0], p[i][n < LAST ? n + 1 : n][1]};
                        mma(out[i][d], pf, vf[0], vf[1]);
                        mma(out[i][d + 1], pf, vf[2], vf[3]);
                    }
                } else if (d % 4 == 0 || d + 2 == D / 8) {
                    // The last 8 keys: four groups of 8 columns at once, two at the end where D is 16 more.
                    ldmatrix4_transposed(vf, shared_address(sv + (n * 8 + lane % 8) * PITCH + min(d * 8 + lane / 8 * 8, D - 8)));
#pragma unroll
                    for (int i = 0; i < M_TILES; i++)
#pragma unroll
                        for (int c = 0; c < 4; c++)
                            if (d % 4 == 0 && d + c < D / 8)
                                mma8(out[i][d + c < D / 8 ? d + c : d], p[i][n][0], p[i][n][1], vf[c]);
                }
            }
    }
    wait_copies<0>();
    __syncthreads();

    // Through the rows of Q that only this warp has read, so that global memory is written in whole lines.
#pragma unroll
    for (int i = 0; i < M_TILES; i++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const float scale = sum[i][e] > 0.0f ? 1.0f / sum[i][e] : 0.0f;
            const int row = warp * WARP_ROWS + i * 16 + e * 8 + quad;
#pragma unroll
            for (int d = 0; d < D / 8; d++)
                *reinterpret_cast<unsigned*>(sq + row * PITCH + d * 8 + place * 2) =
                    pack(out[i][d][e * 2] * scale, out[i][d][e * 2 + 1] * scale);
            if (place == 0 && query0 + row < a.queries)
                a.lse[((long long)b * a.heads + h) * a.queries + query0 + row] =
                    sum[i][e] > 0.0f ? (top[i][e] + log2f(sum[i][e])) * 0.693147180559945f : -INFINITE;
        }
    __syncwarp();
    unsigned short* const to = const_cast<unsigned short*>(head_of(a.out, b, h));
    for (int e = lane; e < WARP_ROWS * (D / 8); e += 32) {
        const int r = warp * WARP_ROWS + e / (D / 8), c = e % (D / 8) * 8;
        if (query0 + r < a.queries)
            *reinterpret_cast<uint4*>(to + (long long)(query0 + r) * a.out.row + c) =
                *reinterpret_cast<const uint4*>(sq + r * PITCH + c);
    }
}
