// Attention over [retrieved blocks, unfinished block, chunk] by the grouped softmax, with everything that the op can ask
// for (spec sections 2 and 4, op RetrievalAttention): a block of threads for each query, scores in shared memory, f32.
//
// This is the kernel for unusual features (context-miss token) and types; retrieval_decode.cu and
// retrieval_prefill.cu do the common cases fast. Positions inside a block are put on the key as it is read, the position
// of the slot is taken off the query: so a key costs one angle for each pair, whatever slot it stands in.
//
// The row of scores is laid out as on the CPU: keys of fetched blocks, of the unfinished block, of the chunk up to the
// query. Every BLOCK-th of them is a landmark. A slot whose choice is missing (a padding query) scores 0 and adds nothing.
//
// -D: X_T (q, k, v, out), RING_T, HEAD_DIM, BLOCK, TOPK, CHOICE (0/1), STYLE, ORIGIN, MISS, CUTOFF (0/1), SHARES (0/1).
#include "element.cuh"
#include "rotary.cuh"

#define WARPS 4
#define THREADS (WARPS * 32)
#define TURNED (TOPK + 3)
// Rows of shared memory in front of the scores: turned queries, later the warps' sums.
#define ROOM (TURNED < WARPS ? WARPS : TURNED)

// The maximum over the block; `room` holds a float for each warp.
__device__ __forceinline__ float block_max(float x, float *room) {
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
    __syncthreads();
    float top = room[0];
#pragma unroll
    for (int i = 1; i < WARPS; i++) top = fmaxf(top, room[i]);
    return top;
}
__device__ __forceinline__ float sum_of_block(float x, float *room) {
    __syncthreads();
    return block_sum<THREADS>(x, room);
}

extern "C" __global__ void __launch_bounds__(THREADS, 4)
retrieval_attention(const storage<X_T> *q, int q_stride, const storage<X_T> *k, int k_stride, const storage<X_T> *v,
                    int v_stride, const storage<RING_T> *keys, const storage<RING_T> *values, const u32 *lengths,
                    const u32 *chosen, const float *frequencies, storage<X_T> *out, float *shares, int rows, int blocks,
                    int heads, int kv_heads, float cutoff) {
    extern __shared__ float shared[];
    __shared__ float room[WARPS];
    float *turned = shared;                  // (TURNED, HEAD_DIM): by slots 0 .. k + 1; then as it came
    float *scores = shared + ROOM * HEAD_DIM; // the row
    wait_for_launch_ahead();
    let_launch_behind_begin();
    const int r = blockIdx.x, h = blockIdx.y, b = blockIdx.z, hk = h / (heads / kv_heads), slots = blocks + 1;
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, t = r - MISS, queries = rows - MISS;
    storage<X_T> *to = out + ((i64)(b * rows + r) * heads + h) * HEAD_DIM;
    if (MISS && r == 0) {
        for (int e = thread; e < HEAD_DIM; e += THREADS) to[e] = from_f32<X_T>(0.0f);
        return;
    }
    State now = state_of(lengths[b], BLOCK, blocks, TOPK, ORIGIN);
    if (!CHOICE) now.retrieved = 0;
    const int fetched = now.retrieved * BLOCK, local = fetched + now.unfinished, length = local + t + 1;
    const u32 *choice = chosen + (((i64)b * heads + h) * queries + t) * TOPK;
    const storage<X_T> *query = q + (i64)(b * rows + r) * q_stride + h * HEAD_DIM;
    for (int i = thread; i < TURNED * (HEAD_DIM / 2); i += THREADS) {
        const int s = i / (HEAD_DIM / 2), pair = i % (HEAD_DIM / 2);
        const int e = STYLE == 0 ? 2 * pair : pair, f = STYLE == 0 ? e + 1 : e + HEAD_DIM / 2;
        const float x = to_f32<X_T>(query[e]), y = to_f32<X_T>(query[f]);
        Angle a = {1.0f, 0.0f};
        if (s < TURNED - 1) a = angle_of(-float(s * BLOCK) * frequencies[pair]);
        turned[s * HEAD_DIM + e] = x * a.cos - y * a.sin;
        turned[s * HEAD_DIM + f] = y * a.cos + x * a.sin;
    }
    __syncthreads();
    auto page_of = [&](int slot) { return (((i64)b * slots + slot) * kv_heads + hk) * BLOCK * HEAD_DIM; };
    auto block_at = [&](int i) { return choice[i / BLOCK]; };
    // Where key i of the row lies in the rings.
    auto ring_of = [&](int i) -> i64 {
        if (i >= fetched) return page_of(now.seen % slots) + (i64)(i - fetched) * HEAD_DIM;
        return page_of((now.oldest + int(block_at(i))) % slots) + (i64)(i % BLOCK) * HEAD_DIM;
    };
    const storage<X_T> *chunk_k = k + (i64)(b * rows + MISS) * k_stride + hk * HEAD_DIM;
    const storage<X_T> *chunk_v = v + (i64)(b * rows + MISS) * v_stride + hk * HEAD_DIM;
    const float scale = rsqrtf(float(HEAD_DIM));
    // The chunk's keys come with their positions.
    auto plain_score = [&](const storage<X_T> *key) {
        float sum = 0.0f;
        for (int e = lane; e < HEAD_DIM; e += 32) sum = fmaf(to_f32<X_T>(key[e]), turned[(TURNED - 1) * HEAD_DIM + e], sum);
        return warp_sum(sum) * scale;
    };
    for (int i = warp; i < length; i += WARPS) {
        float sum = 0.0f;
        if (i >= local) {
            sum = plain_score(chunk_k + (i64)(i - local) * k_stride);
        } else if (i >= fetched || block_at(i) != NO_BLOCK) {
            const storage<RING_T> *key = keys + ring_of(i);
            const int o = i >= fetched ? i - fetched : i % BLOCK;
            const int slot = i >= fetched ? now.start : i / BLOCK + (int(block_at(i)) >= now.old ? 1 : 0);
            const float *mine = turned + slot * HEAD_DIM;
            for (int pair = lane; pair < HEAD_DIM / 2; pair += 32) {
                const int e = STYLE == 0 ? 2 * pair : pair, f = STYLE == 0 ? e + 1 : e + HEAD_DIM / 2;
                const Angle a = angle_of(float(o) * frequencies[pair]);
                const float x = to_f32<RING_T>(key[e]), y = to_f32<RING_T>(key[f]);
                sum += (x * a.cos - y * a.sin) * mine[e] + (y * a.cos + x * a.sin) * mine[f];
            }
            sum = warp_sum(sum) * scale;
        }
        if (lane == 0) scores[i] = sum;
    }
    float miss = MINUS_INFINITY;
    if (MISS) miss = plain_score(k + (i64)(b * rows) * k_stride + hk * HEAD_DIM);
    __syncthreads();

    // ---- the grouped softmax. Earlier blocks are whole; the query's own begins at `own`.
    const int earlier = (length - 1) / BLOCK, own = earlier * BLOCK;
    const int end = length % BLOCK == 0 ? length - 1 : length; // a landmark does not attend to itself
    for (int m = warp; m < earlier; m += WARPS) {
        float *block = scores + m * BLOCK;
        float top = MINUS_INFINITY, sum = 0.0f;
        for (int o = lane; o < BLOCK - 1; o += 32) top = fmaxf(top, block[o]);
        top = warp_max(top);
        for (int o = lane; o < BLOCK - 1; o += 32) sum += expf(block[o] - top);
        sum = warp_sum(sum);
        for (int o = lane; o < BLOCK - 1; o += 32) block[o] = expf(block[o] - top) / sum;
    }
    // Gated: landmarks of fetched blocks, where there is a context-miss token.
    auto is_gated = [&](int m) { return MISS && m < now.retrieved; };
    float top = miss, gated_top = MINUS_INFINITY;
    for (int m = thread; m < earlier; m += THREADS) {
        const float s = scores[m * BLOCK + BLOCK - 1];
        if (is_gated(m)) gated_top = fmaxf(gated_top, s);
        else top = fmaxf(top, s);
    }
    for (int i = own + thread; i < end; i += THREADS) top = fmaxf(top, scores[i]);
    top = block_max(top, room);
    gated_top = block_max(gated_top, room);
    const bool nothing = top == MINUS_INFINITY;
    float sum = 0.0f, gated_sum = 0.0f;
    for (int m = thread; m < earlier; m += THREADS) {
        const float s = scores[m * BLOCK + BLOCK - 1];
        if (is_gated(m)) gated_sum += expf(s - gated_top);
        else sum += expf(s - top);
    }
    for (int i = own + thread; i < end; i += THREADS) sum += expf(scores[i] - top);
    sum = sum_of_block(sum, room);
    gated_sum = sum_of_block(gated_sum, room);
    float miss_share = 0.0f;
    if (MISS) {
        const float own_share = expf(miss - top);
        sum += own_share;
        miss_share = own_share / sum;
        if (CUTOFF && miss_share < cutoff) miss_share = 0.0f;
    }
    __syncthreads();
    for (int m = thread; m < earlier; m += THREADS) {
        const float s = scores[m * BLOCK + BLOCK - 1];
        float share = is_gated(m) ? miss_share * (expf(s - gated_top) / gated_sum) : expf(s - top) / sum;
        if (nothing) share = 0.0f;
        scores[m * BLOCK + BLOCK - 1] = share;
        if (SHARES && m < now.retrieved) shares[(((i64)b * heads + h) * queries + t) * TOPK + m] = share;
    }
    if (SHARES)
        for (int m = now.retrieved + thread; m < TOPK; m += THREADS)
            shares[(((i64)b * heads + h) * queries + t) * TOPK + m] = 0.0f;
    for (int i = own + thread; i < end; i += THREADS) scores[i] = nothing ? 0.0f : expf(scores[i] - top) / sum;
    __syncthreads();

    // ---- the values: every warp takes some blocks, lanes the elements; the warps' sums meet in the warps' order.
    float *parts = turned; // (WARPS, HEAD_DIM)
    for (int first = 0; first < HEAD_DIM; first += 32) {
        const int e = first + lane;
        float x = 0.0f;
        if (e < HEAD_DIM)
            for (int m = warp; m <= earlier; m += WARPS) {
                float part = 0.0f;
                if (m < now.retrieved && block_at(m * BLOCK) == NO_BLOCK) continue;
                const int last = m == earlier ? end : m * BLOCK + BLOCK - 1;
                for (int i = m * BLOCK; i < last; i++) {
                    const float value = i >= local ? to_f32<X_T>(chunk_v[(i64)(i - local) * v_stride + e])
                                                   : to_f32<RING_T>(values[ring_of(i) + e]);
                    part = fmaf(scores[i], value, part);
                }
                x += m == earlier ? part : scores[m * BLOCK + BLOCK - 1] * part;
            }
        if (e < HEAD_DIM) parts[warp * HEAD_DIM + e] = x;
    }
    __syncthreads();
    for (int e = thread; e < HEAD_DIM; e += THREADS) {
        float x = 0.0f;
        for (int w = 0; w < WARPS; w++) x += parts[w * HEAD_DIM + e];
        to[e] = from_f32<X_T>(x);
    }
}
