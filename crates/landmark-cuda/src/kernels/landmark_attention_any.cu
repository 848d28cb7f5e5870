// Landmark attention with every feature of the op, on any GPU, in f32 arithmetic: irregular landmarks, context-miss
// token with gated landmarks, keys hidden on the left, dropout of keys and of blocks, any head width, any block.
//
// Maths: spec section 2; the row functions follow cpu/grouped_softmax.rs step by step. Scores of a *slice* (some key
// heads, some queries) are laid out in a workspace, one row a query, and every step is one kernel over that slice:
//
//   forward:   scores = scale q k^T   ->  weights (in place)            ->  out = weights v
//   backward:  scores, and dP = dout v^T  ->  weights and dS (in place) ->  dq = scale dS k;  dv += P^T dout, dk += dS^T q
//
// The products are plain tiles in true f32, so that f32 results may be compared with a CPU's. A row of the softmax may
// be walked as often as it takes, which is what makes all the features simple: a thread block a row, a warp a landmark
// block. Sums are taken in a fixed order; slices of one key head are launched one after the other, so dk and dv grow
// in a fixed order as well.
//
// Rejected: one kernel that keeps everything in registers, as the tensor-core kernels do. Irregular landmarks and the
// two softmaxes of a context-miss token would need three passes over the keys there, and nobody trains 32k tokens so.
//
// Rows and columns of a slice count the context-miss token (row 0) where there is one; "tokens" do not.

#include "common.cuh"
#include "random.cuh"

// Element types: 0 f32, 1 bf16, 2 f16.
#ifndef Q_T
#define Q_T 0
#define K_T 0
#define V_T 0
#define O_T 0
#define DO_T 0
#define DQ_T 0
#define DK_T 0
#define DV_T 0
#endif

// One head of a tensor: element (b, row, h, d) lies at b * batch + row * row_stride + h * head + d.
struct View {
    const void* data;
    i64 batch;
    int row;
    int head;
};

struct Attention {
    View q, k, v, out, dout, dq, dk, dv;
    float* lse;                   // (B, H, Nq)
    const unsigned* phases;       // (B), regular landmarks
    const unsigned* is_landmark;  // (B, tokens), irregular ones
    const unsigned* gated;        // (B, tokens)
    const unsigned* first_key;    // (B)
    const unsigned* seed;         // (4)
    float* scores;                // (heads of the slice, queries of the slice, ld)
    float* gradients;             // the same, backward only
    float* dk_sum;                // (key heads of the slice, Nk, D): only where queries come in several slices
    float* dv_sum;
    int* list;                    // (B, tokens): irregular landmarks in order
    int* before;                  // (B, tokens + 1): how many landmarks are before a token
    int batch, queries, keys, heads, kv_heads, head_dim;
    int block;                    // 0: no landmarks; -1: irregular
    int miss;                     // 1: row 0 is the context-miss token
    int ld;                       // length of a row of scores: keys, rounded up to a tile
    int first_head, count_heads;  // key heads of the slice, numbered b * kv_heads + h
    int first_query, count_queries;
    int first_slice, last_slice;  // of the queries of these key heads
    float scale;
    unsigned salt;
    float dropout, group_dropout;
};

static_assert(sizeof(Attention) == 368, "as ops/landmark_attention_any.rs writes it");

#define TILE 64
#define STEP 32
#define ROW_THREADS 128

// Where a query head of the slice lies.
struct Head {
    int b, h, kv;
};

__device__ __forceinline__ Head head_of(const Attention& a, int index) {
    int group = a.heads / a.kv_heads;
    int g = a.first_head + index / group;
    Head at;
    at.b = g / a.kv_heads;
    at.kv = g % a.kv_heads;
    at.h = at.kv * group + index % group;
    return at;
}

template <int T>
__device__ __forceinline__ float element(const View& x, int b, int row, int h, int d) {
    return to_f32<T>(static_cast<const storage<T>*>(x.data)[b * x.batch + (i64)row * x.row + h * x.head + d]);
}

template <int T>
__device__ __forceinline__ void set(const View& x, int b, int row, int h, int d, float value) {
    static_cast<storage<T>*>(const_cast<void*>(x.data))[b * x.batch + (i64)row * x.row + h * x.head + d] = from_f32<T>(value);
}

// Row `query` (of the slice) of head `index` (of the slice) in a slab of scores.
__device__ __forceinline__ float* row_of(const Attention& a, float* slab, int index, int query) {
    return slab + ((i64)index * a.count_queries + query) * a.ld;
}

// One past the last key that any query of the tile from `query` (of the slice) on sees.
__device__ __forceinline__ int seen_by(const Attention& a, int query) {
    int last = min(query + TILE, a.count_queries) - 1;
    return a.keys - a.queries + a.first_query + last + 1;
}

// ---- products ----

// acc[i][j] += sum over k in [begin, end) of A(m, k) B(k, n), for the 4 x 4 elements of a thread in a TILE x TILE tile.
// `a_along_k` and `b_along_k` say which index neighbouring threads should take for their loads to be contiguous.
template <bool A_ALONG_K, bool B_ALONG_K, class A, class B>
__device__ __forceinline__ void product(float (&acc)[4][4], A a, B b, int begin, int end) {
    __shared__ float sa[STEP][TILE + 4];
    __shared__ float sb[STEP][TILE + 4];
    const int t = threadIdx.x, x = t % 16 * 4, y = t / 16 * 4;
    for (int k0 = begin; k0 < end; k0 += STEP) {
        __syncthreads();
#pragma unroll
        for (int e = t; e < STEP * TILE; e += 256) {
            int ka = A_ALONG_K ? e % STEP : e / TILE, m = A_ALONG_K ? e / STEP : e % TILE;
            sa[ka][m] = k0 + ka < end ? a(m, k0 + ka) : 0.0f;
            int kb = B_ALONG_K ? e % STEP : e / TILE, n = B_ALONG_K ? e / STEP : e % TILE;
            sb[kb][n] = k0 + kb < end ? b(k0 + kb, n) : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < STEP; k++) {
            float4 u = *reinterpret_cast<const float4*>(&sa[k][y]);
            float4 w = *reinterpret_cast<const float4*>(&sb[k][x]);
            float m[4] = {u.x, u.y, u.z, u.w}, n[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) acc[i][j] = fmaf(m[i], n[j], acc[i][j]);
        }
    }
}

// scores (or gradients) of a tile = factor * X Y^T. Grid: (keys, queries, heads of the slice).
template <int X_T, int Y_T>
__device__ __forceinline__ void score_tile(const Attention& a, const View& x, const View& y, float* slab, float factor) {
    const int j0 = blockIdx.x * TILE, i0 = blockIdx.y * TILE;
    if (j0 >= seen_by(a, i0)) return;
    const Head at = head_of(a, blockIdx.z);
    float acc[4][4] = {};
    product<true, true>(
        acc,
        [&](int m, int d) {
            return i0 + m < a.count_queries ? element<X_T>(x, at.b, a.first_query + i0 + m, at.h, d) : 0.0f;
        },
        [&](int d, int n) { return j0 + n < a.keys ? element<Y_T>(y, at.b, j0 + n, at.kv, d) : 0.0f; }, 0, a.head_dim);
    const int c = threadIdx.x % 16 * 4, r = threadIdx.x / 16 * 4;
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (i0 + r + i < a.count_queries) {
            float4 value = make_float4(acc[i][0] * factor, acc[i][1] * factor, acc[i][2] * factor, acc[i][3] * factor);
            *reinterpret_cast<float4*>(row_of(a, slab, blockIdx.z, i0 + r + i) + j0 + c) = value;
        }
}

extern "C" __global__ void __launch_bounds__(256) any_scores(const __grid_constant__ Attention a) {
    score_tile<Q_T, K_T>(a, a.q, a.k, a.scores, a.scale);
}

extern "C" __global__ void __launch_bounds__(256) any_score_gradients(const __grid_constant__ Attention a) {
    score_tile<DO_T, V_T>(a, a.dout, a.v, a.gradients, 1.0f);
}

// result (query, d) = factor * sum over keys of slab (query, key) y (key, d). Grid: (head_dim, queries, heads).
template <int Y_T, int R_T>
__device__ __forceinline__ void query_tile(const Attention& a, float* slab, const View& y, const View& result, float factor) {
    const int d0 = blockIdx.x * TILE, i0 = blockIdx.y * TILE;
    const Head at = head_of(a, blockIdx.z);
    float acc[4][4] = {};
    product<true, false>(
        acc, [&](int m, int j) { return i0 + m < a.count_queries ? row_of(a, slab, blockIdx.z, i0 + m)[j] : 0.0f; },
        [&](int j, int n) { return d0 + n < a.head_dim ? element<Y_T>(y, at.b, j, at.kv, d0 + n) : 0.0f; }, 0,
        seen_by(a, i0));
    const int c = threadIdx.x % 16 * 4, r = threadIdx.x / 16 * 4;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (i0 + r + i < a.count_queries && d0 + c + j < a.head_dim)
                set<R_T>(result, at.b, a.first_query + i0 + r + i, at.h, d0 + c + j, acc[i][j] * factor);
}

extern "C" __global__ void __launch_bounds__(256) any_values(const __grid_constant__ Attention a) {
    query_tile<V_T, O_T>(a, a.scores, a.v, a.out, 1.0f);
}

extern "C" __global__ void __launch_bounds__(256) any_dq(const __grid_constant__ Attention a) {
    query_tile<K_T, DQ_T>(a, a.gradients, a.k, a.dq, a.scale);
}

// result (key, d) = factor * sum over the heads of the group and the queries of slab (query, key) x (query, d), on top
// of what earlier slices found. Grid: (head_dim, keys, key heads of the slice).
template <int X_T, int R_T>
__device__ __forceinline__ void key_tile(
    const Attention& a, float* slab, const View& x, const View& result, float* sum, float factor) {
    const int d0 = blockIdx.x * TILE, j0 = blockIdx.y * TILE, group = a.heads / a.kv_heads;
    // The first tile of queries that reads zeros or weights at these keys.
    const int first = max(0, j0 - (a.keys - a.queries) - a.first_query) / TILE * TILE;
    float acc[4][4] = {};
    for (int g = 0; g < group; g++) {
        const int index = blockIdx.z * group + g;
        const Head at = head_of(a, index);
        product<false, false>(
            acc,
            [&](int m, int i) { return row_of(a, slab, index, i)[j0 + m]; },
            [&](int i, int n) {
                return d0 + n < a.head_dim ? element<X_T>(x, at.b, a.first_query + i, at.h, d0 + n) : 0.0f;
            },
            first, a.count_queries);
    }
    const Head at = head_of(a, blockIdx.z * group);
    const int c = threadIdx.x % 16 * 4, r = threadIdx.x / 16 * 4;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int key = j0 + r + i, d = d0 + c + j;
            if (key >= a.keys || d >= a.head_dim) continue;
            const i64 place = ((i64)blockIdx.z * a.keys + key) * a.head_dim + d;
            const float total = acc[i][j] * factor + (a.first_slice ? 0.0f : sum[place]);
            if (a.last_slice)
                set<R_T>(result, at.b, key, at.kv, d, total);
            else
                sum[place] = total;
        }
}

extern "C" __global__ void __launch_bounds__(256) any_dv(const __grid_constant__ Attention a) {
    key_tile<DO_T, DV_T>(a, a.scores, a.dout, a.dv, a.dv_sum, 1.0f);
}

extern "C" __global__ void __launch_bounds__(256) any_dk(const __grid_constant__ Attention a) {
    key_tile<Q_T, DK_T>(a, a.gradients, a.q, a.dk, a.dk_sum, a.scale);
}

// ---- landmarks ----

// Lists irregular landmarks and counts them. One thread block a row of the batch.
extern "C" __global__ void __launch_bounds__(256) any_landmarks(const __grid_constant__ Attention a) {
    __shared__ int counts[256];
    const int tokens = a.keys - a.miss, t = threadIdx.x;
    const unsigned* mask = a.is_landmark + (i64)blockIdx.x * tokens;
    int* list = a.list + (i64)blockIdx.x * tokens;
    int* before = a.before + (i64)blockIdx.x * (tokens + 1);
    const int share = (tokens + 255) / 256, begin = min(tokens, t * share), end = min(tokens, begin + share);
    int n = 0;
    for (int j = begin; j < end; j++) n += mask[j] != 0;
    counts[t] = n;
    __syncthreads();
    int at = 0;
    for (int i = 0; i < t; i++) at += counts[i];
    for (int j = begin; j < end; j++) {
        before[j] = at;
        if (mask[j] != 0) list[at++] = j;
    }
    if (t == 255) before[tokens] = at;
}

// The landmarks of one row of the batch, among its tokens.
struct Landmarks {
    int block, first;
    const int* list;
    const int* counts;

    __device__ __forceinline__ Landmarks(const Attention& a, int b) {
        const int tokens = a.keys - a.miss;
        block = a.block;
        first = block > 0 ? block - 1 - (int)(a.phases[b] % (unsigned)block) : 0;
        list = a.list + (i64)b * tokens;
        counts = a.before + (i64)b * (tokens + 1);
    }
    // How many are before token j.
    __device__ __forceinline__ int before(int j) const {
        if (block > 0) return j > first ? (j - first - 1) / block + 1 : 0;
        return block == 0 ? 0 : counts[j];
    }
    __device__ __forceinline__ int at(int n) const { return block > 0 ? first + n * block : list[n]; }
};

// ---- the grouped softmax of a row ----

// Over the ROW_THREADS threads of a block, in every thread, always in the same order.
__device__ __forceinline__ float row_sum(float x) {
    __shared__ float partial[ROW_THREADS / 32];
    __syncthreads();
    return block_sum<ROW_THREADS>(x, partial);
}
__device__ __forceinline__ float row_max(float x) {
    __shared__ float partial[ROW_THREADS / 32];
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < ROW_THREADS / 32; i++) x = fmaxf(x, partial[i]);
    return x;
}

#define INFINITE __int_as_float(0x7f800000)

// Inverted dropout's factor on an element.
__device__ __forceinline__ float keep(const Stream& stream, u64 index, float p) {
    return draw(stream, index, p) ? 0.0f : 1.0f / (1.0f - p);
}

// What a row sees, and its outer softmax.
struct Row {
    Head at;
    int query;           // of the row of the batch
    int end;             // tokens that it may see: itself and all before
    int first;           // first visible token
    int own, own_end;    // ordinary tokens of its own block
    int n0, n;           // its earlier blocks have the landmarks number n0 .. n0 + n
    float top, sum, gated_top, gated_sum, miss_share;
    const unsigned* gated;
    Stream keys, groups;

    __device__ __forceinline__ bool is_gated(int landmark) const { return gated && gated[landmark] != 0; }

    // The share of a block in the softmax it takes part in, from its landmark's score.
    __device__ __forceinline__ float share(float score, bool of_gated) const {
        if (top == -INFINITE) return 0.0f;
        return of_gated ? expf(score - gated_top) / gated_sum : expf(score - top) / sum;
    }

    __device__ __forceinline__ i64 index(const Attention& a, int column) const {
        return (((i64)at.b * a.heads + at.h) * a.queries + query) * a.keys + column;
    }
    __device__ __forceinline__ float keep_key(const Attention& a, int column) const {
        return a.dropout > 0.0f ? keep(keys, index(a, column), a.dropout) : 1.0f;
    }
    __device__ __forceinline__ float keep_block(const Attention& a, int landmark) const {
        return a.group_dropout > 0.0f ? keep(groups, index(a, landmark + a.miss), a.group_dropout) : 1.0f;
    }
};

// Finds blocks and the outer softmax of a row; `s` are the scores of its tokens.
__device__ __forceinline__ Row open(const Attention& a, const Landmarks& landmarks, const float* s, int index, int query) {
    Row r;
    r.at = head_of(a, index);
    r.query = query;
    r.end = a.keys - a.queries + query + 1 - a.miss;
    r.first = min(a.first_key ? (int)a.first_key[r.at.b] : 0, r.end);
    r.gated = a.gated ? a.gated + (i64)r.at.b * (a.keys - a.miss) : nullptr;
    if (a.seed) {
        r.keys = stream_of(a.seed, a.salt);
        r.groups = stream_of(a.seed, a.salt | 1u << 15);
    }
    r.n0 = landmarks.before(r.first);
    int n1 = landmarks.before(r.end);
    // A landmark's query belongs to the block that it closes, and does not see itself. `first` may be beyond it.
    const bool closes = n1 > 0 && landmarks.at(n1 - 1) == r.end - 1;
    r.own_end = closes ? r.end - 1 : r.end;
    if (closes) n1--;
    r.n = max(0, n1 - r.n0);
    r.own = min(r.n > 0 ? landmarks.at(n1 - 1) + 1 : r.first, r.own_end);

    const float miss = a.miss ? s[-1] : -INFINITE;
    float top = -INFINITE, gated_top = -INFINITE;
    for (int j = r.own + threadIdx.x; j < r.own_end; j += ROW_THREADS) top = fmaxf(top, s[j]);
    for (int i = threadIdx.x; i < r.n; i += ROW_THREADS) {
        const int l = landmarks.at(r.n0 + i);
        if (r.is_gated(l))
            gated_top = fmaxf(gated_top, s[l]);
        else
            top = fmaxf(top, s[l]);
    }
    r.top = fmaxf(row_max(top), miss);
    r.gated_top = r.gated ? row_max(gated_top) : -INFINITE;
    float sum = 0.0f, gated_sum = 0.0f;
    for (int j = r.own + threadIdx.x; j < r.own_end; j += ROW_THREADS) sum += expf(s[j] - r.top);
    for (int i = threadIdx.x; i < r.n; i += ROW_THREADS) {
        const int l = landmarks.at(r.n0 + i);
        if (r.is_gated(l))
            gated_sum += expf(s[l] - r.gated_top);
        else
            sum += expf(s[l] - r.top);
    }
    const float miss_share = a.miss ? expf(miss - r.top) : 0.0f;
    r.sum = row_sum(sum) + miss_share;
    r.gated_sum = r.gated ? row_sum(gated_sum) : 0.0f;
    r.miss_share = a.miss ? miss_share / r.sum : 0.0f;
    return r;
}

// First token of the earlier block number i, by the landmark before it.
__device__ __forceinline__ int block_start(const Row& r, const Landmarks& landmarks, int i) {
    return i == 0 ? r.first : landmarks.at(r.n0 + i - 1) + 1;
}

// Zeros what the products read of a row beside its weights: hidden keys, and keys that only later queries of the tile
// see.
__device__ __forceinline__ void clear_around(const Attention& a, const Row& r, float* row, int slice_query) {
    const int stop = (seen_by(a, slice_query / TILE * TILE) + TILE - 1) / TILE * TILE;
    for (int j = threadIdx.x; j < a.miss + r.first; j += ROW_THREADS) row[j] = 0.0f;
    for (int j = a.miss + r.own_end + threadIdx.x; j < stop; j += ROW_THREADS) row[j] = 0.0f;
}

__device__ __forceinline__ void clear_row(const Attention& a, float* row, int slice_query) {
    const int stop = (seen_by(a, slice_query / TILE * TILE) + TILE - 1) / TILE * TILE;
    for (int j = threadIdx.x; j < stop; j += ROW_THREADS) row[j] = 0.0f;
}

// Scores become weights. Grid: (queries of the slice, heads of the slice).
extern "C" __global__ void __launch_bounds__(ROW_THREADS, 4) any_weights(const __grid_constant__ Attention a) {
    const int query = a.first_query + blockIdx.x;
    float* row = row_of(a, a.scores, blockIdx.y, blockIdx.x);
    const Head at = head_of(a, blockIdx.y);
    float* lse = a.lse + ((i64)at.b * a.heads + at.h) * a.queries + query;
    if (a.miss && query == 0) {
        if (threadIdx.x == 0) *lse = -INFINITE;
        clear_row(a, row, blockIdx.x);
        return;
    }
    float* s = row + a.miss;
    const Landmarks landmarks(a, at.b);
    const Row r = open(a, landmarks, s, blockIdx.y, query);
    if (threadIdx.x == 0) *lse = r.top == -INFINITE ? r.top : r.top + logf(r.sum);
    // All have read the scores of their own block and of the landmarks before the first weight is written; a landmark's
    // score is read again, by the one warp that has its block.
    __syncthreads();
    for (int j = r.own + threadIdx.x; j < r.own_end; j += ROW_THREADS)
        s[j] = expf(s[j] - r.top) / r.sum * r.keep_key(a, j + a.miss);
    const int lane = threadIdx.x % 32;
    for (int i = threadIdx.x / 32; i < r.n; i += ROW_THREADS / 32) {
        const int l = landmarks.at(r.n0 + i), start = block_start(r, landmarks, i);
        const bool gated = r.is_gated(l);
        const float factor = r.share(s[l], gated) * (gated ? r.miss_share : 1.0f) * r.keep_block(a, l);
        float top = -INFINITE, sum = 0.0f;
        for (int j = start + lane; j < l; j += 32) top = fmaxf(top, s[j]);
        top = warp_max(top);
        for (int j = start + lane; j < l; j += 32) sum += expf(s[j] - top);
        const float scale = factor / warp_sum(sum);
        for (int j = start + lane; j < l; j += 32) s[j] = expf(s[j] - top) * scale * r.keep_key(a, j + a.miss);
        if (lane == 0) s[l] = 0.0f;
    }
    clear_around(a, r, row, blockIdx.x);
}

// Scores become the weights that multiplied the values, and gradients of those become gradients of the scores.
// Grid: (queries of the slice, heads of the slice).
extern "C" __global__ void __launch_bounds__(ROW_THREADS, 4) any_weight_gradients(const __grid_constant__ Attention a) {
    const int query = a.first_query + blockIdx.x;
    float* row = row_of(a, a.scores, blockIdx.y, blockIdx.x);
    float* drow = row_of(a, a.gradients, blockIdx.y, blockIdx.x);
    if (a.miss && query == 0) {
        clear_row(a, row, blockIdx.x);
        clear_row(a, drow, blockIdx.x);
        return;
    }
    float *s = row + a.miss, *g = drow + a.miss;
    const Landmarks landmarks(a, head_of(a, blockIdx.y).b);
    const Row r = open(a, landmarks, s, blockIdx.y, query);
    __syncthreads();
    const int lane = threadIdx.x % 32;
    float total = 0.0f, gated_total = 0.0f;
    for (int j = r.own + threadIdx.x; j < r.own_end; j += ROW_THREADS) {
        s[j] = expf(s[j] - r.top) / r.sum;
        g[j] *= r.keep_key(a, j + a.miss);
        total = fmaf(s[j], g[j], total);
    }
    // Earlier blocks: c = sum of P dP stands where the landmark's gradient will, its score stays for now.
    for (int i = threadIdx.x / 32; i < r.n; i += ROW_THREADS / 32) {
        const int l = landmarks.at(r.n0 + i), start = block_start(r, landmarks, i);
        const bool gated = r.is_gated(l);
        const float factor = r.share(s[l], gated) * (gated ? r.miss_share : 1.0f) * r.keep_block(a, l);
        float top = -INFINITE, sum = 0.0f, c = 0.0f;
        for (int j = start + lane; j < l; j += 32) top = fmaxf(top, s[j]);
        top = warp_max(top);
        for (int j = start + lane; j < l; j += 32) sum += expf(s[j] - top);
        const float scale = factor / warp_sum(sum);
        for (int j = start + lane; j < l; j += 32) {
            s[j] = expf(s[j] - top) * scale;
            g[j] *= r.keep_key(a, j + a.miss);
            c = fmaf(s[j], g[j], c);
        }
        c = warp_sum(c);
        const float mean = factor > 0.0f ? c / factor : 0.0f;
        for (int j = start + lane; j < l; j += 32) {
            g[j] = s[j] * (g[j] - mean);
            // What multiplied the values was the weight after dropout.
            s[j] *= r.keep_key(a, j + a.miss);
        }
        if (lane == 0) {
            g[l] = c;
            total += c;
            if (gated) gated_total += c;
        }
    }
    total = row_sum(total);
    gated_total = r.gated ? row_sum(gated_total) : 0.0f;
    for (int i = threadIdx.x; i < r.n; i += ROW_THREADS) {
        const int l = landmarks.at(r.n0 + i);
        const bool gated = r.is_gated(l);
        g[l] -= r.share(s[l], gated) * (gated ? gated_total : total);
        s[l] = 0.0f;
    }
    for (int j = r.own + threadIdx.x; j < r.own_end; j += ROW_THREADS) {
        g[j] = s[j] * (g[j] - total);
        s[j] *= r.keep_key(a, j + a.miss);
    }
    clear_around(a, r, row, blockIdx.x);
    clear_around(a, r, drow, blockIdx.x);
    __syncthreads();
    if (a.miss && threadIdx.x == 0) drow[0] = gated_total - r.miss_share * total;
}
