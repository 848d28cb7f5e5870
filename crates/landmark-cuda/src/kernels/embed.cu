// Token embedding: rows of a table, and the gradient of the table.
//
// The gradient adds rows of equal tokens in the order of the text without atomics: the block of a token's first place
// finds all of its places, in order, and adds their rows; blocks of later places find an earlier one and leave. Every
// block looks at all tokens, which are few bytes in cache. Sorting them first would be less work for very long batches.
//
// TABLE_T, OUT_T. CHECKS tokens against the vocabulary: a bad one is reported and read as 0.
#include "common.cuh"

constexpr int THREADS = 256;
constexpr int V = COLS % 8 == 0 ? 8 : COLS % 4 == 0 ? 4 : 1;

extern "C" __global__ void __launch_bounds__(THREADS)
embed(const u32 *tokens, const storage<TABLE_T> *table, storage<OUT_T> *out, int n, u32 vocabulary, u64 *status, u32 check) {
    wait_for_launch_ahead();
    constexpr int VECTORS = COLS / V;
    const i64 i = (i64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= (i64)n * VECTORS) return;
    const int row = (int)(i / VECTORS), col = (int)(i % VECTORS) * V;
    u32 token = tokens[row];
    if (token >= vocabulary) {
        report_index(status, check, token);
        token = 0;
    }
    float v[V];
    load<TABLE_T>(v, table + (i64)token * COLS + col);
    store<OUT_T>(out + (i64)row * COLS + col, v);
}

constexpr int LISTED = 1024;

// One block for each of `n` tokens. `out` is the gradient dout, in OUT_T; the table's is in TABLE_T and was cleared
// before if it is not added to.
extern "C" __global__ void __launch_bounds__(THREADS)
embed_backward(const u32 *tokens, const storage<OUT_T> *dout, storage<TABLE_T> *dtable, int n, u32 vocabulary, u64 *status,
               u32 check) {
    __shared__ int places[LISTED];
    __shared__ int counts[THREADS / 32];
    wait_for_launch_ahead();
    const int self = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 token = tokens[self];
    if (token >= vocabulary) {
        if (threadIdx.x == 0) report_index(status, check, token);
        return;
    }
    for (int first = 0; first < self; first += 4 * THREADS) {
        bool seen = false;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int i = first + j * THREADS + threadIdx.x;
            seen |= i < self && tokens[i] == token;
        }
        if (__syncthreads_or(seen)) return;
    }
    for (int begin = self; begin < n;) {
        // The next places, in order, as many as are certain to fit the list.
        int listed = 0;
        for (; begin < n && listed + THREADS <= LISTED; begin += THREADS) {
            const int i = begin + threadIdx.x;
            const bool here = i < n && tokens[i] == token;
            const u32 votes = __ballot_sync(0xffffffff, here);
            if (lane == 0) counts[warp] = __popc(votes);
            __syncthreads();
            int before = listed, all = 0;
#pragma unroll
            for (int w = 0; w < THREADS / 32; w++) {
                if (w < warp) before += counts[w];
                all += counts[w];
            }
            if (here) places[before + __popc(votes & ((1u << lane) - 1))] = i;
            listed += all;
            __syncthreads();
        }
        for (int col = threadIdx.x * V; col < COLS; col += THREADS * V) {
            float sum[V];
            storage<TABLE_T> *to = dtable + (i64)token * COLS + col;
            load<TABLE_T>(sum, to);
            int p = 0;
            for (; p + 4 <= listed; p += 4) {
                float v[4][V];
#pragma unroll
                for (int j = 0; j < 4; j++) load<OUT_T>(v[j], dout + (i64)places[p + j] * COLS + col);
#pragma unroll
                for (int j = 0; j < 4; j++)
#pragma unroll
                    for (int k = 0; k < V; k++) sum[k] += v[j][k];
            }
            for (; p < listed; p++) {
                float v[V];
                load<OUT_T>(v, dout + (i64)places[p] * COLS + col);
#pragma unroll
                for (int k = 0; k < V; k++) sum[k] += v[k];
            }
            store<TABLE_T>(to, sum);
        }
        __syncthreads();
    }
}
