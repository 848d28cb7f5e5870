// The loss between the two products of LinearCrossEntropy: rows of logits become losses, predictions, and gradients in
// place.
//
// A block takes a row. The first pass keeps a running maximum and sum in every thread and merges them once; the second
// writes the gradient and finds the row in the L2 cache. Gradients are stored as softmax - onehot, of size one, so that
// no half type rounds them to nothing; the factor scale / targets, known on the device only, is the products' alpha.
//
// LOGIT_T: element type of the logits. ROW_THREADS. VOCAB; STRIDE: elements from row to row, a multiple of 8.
#include "common.cuh"

constexpr int THREADS = ROW_THREADS;

__device__ __forceinline__ float exponential(float x) { return LOGIT_T == F32 ? expf(x) : __expf(x); }

// One block: counts the targets and writes (alpha, 0, alpha, 1), the factors of the products.
extern "C" __global__ void __launch_bounds__(THREADS)
count_targets(const int *targets, int n, float scale, float *factors, float *count, u64 *status, u32 check) {
    __shared__ float shared[THREADS / 32];
    wait_for_launch_ahead();
    float mine = 0.0f;
    for (int i = threadIdx.x; i < n; i += THREADS) {
        if (targets[i] >= 0) mine += 1.0f;
        if (targets[i] >= VOCAB) report_index(status, check, (u32)targets[i]);
    }
    const float all = block_sum<THREADS>(mine, shared);
    if (threadIdx.x == 0) {
        const float alpha = all > 0.0f ? scale / all : 0.0f;
        factors[0] = alpha, factors[1] = 0.0f, factors[2] = alpha, factors[3] = 1.0f;
        *count = all;
    }
}

struct Top {
    float top, sum;
    int best;
};
// Of equal logits the lower id.
__device__ __forceinline__ Top merge(Top a, Top b) {
    const bool first = a.top > b.top || (a.top == b.top && a.best < b.best);
    const float top = first ? a.top : b.top;
    // Of two empty ones, neither has a maximum.
    const float sum = top == -INFINITY ? 0.0f : a.sum * exponential(a.top - top) + b.sum * exponential(b.top - top);
    return {top, sum, first ? a.best : b.best};
}

// grid: rows. `predictions` may be null.
extern "C" __global__ void __launch_bounds__(THREADS)
score_rows(storage<LOGIT_T> *logits, const int *targets, float *losses, u32 *predictions, int gradient) {
    __shared__ Top shared[THREADS / 32];
    wait_for_launch_ahead();
    storage<LOGIT_T> *row = logits + (i64)blockIdx.x * STRIDE;
    const int target = targets[blockIdx.x];
    Top mine = {-INFINITY, 0.0f, 0x7fffffff};
    bool sound = true;
    for (int first = threadIdx.x * 8; first < VOCAB; first += THREADS * 8) {
        float v[8];
        load<LOGIT_T>(v, row + first);
        float top = mine.top;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (first + i >= VOCAB) v[i] = -INFINITY;
            sound &= v[i] == v[i];
            if (v[i] > top) top = v[i], mine.best = first + i;
        }
        if (top != mine.top) mine.sum *= exponential(mine.top - top), mine.top = top;
        if (top != -INFINITY)
#pragma unroll
            for (int i = 0; i < 8; i++) mine.sum += exponential(v[i] - top);
    }
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
        const Top other = {__shfl_xor_sync(0xffffffff, mine.top, d), __shfl_xor_sync(0xffffffff, mine.sum, d),
                           __shfl_xor_sync(0xffffffff, mine.best, d)};
        // Both sides merge in one order, and so agree on every bit.
        mine = threadIdx.x & d ? merge(other, mine) : merge(mine, other);
    }
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = mine;
    // Also a barrier before the row is written.
    sound = __syncthreads_and(sound);
    Top all = shared[0];
#pragma unroll
    for (int i = 1; i < THREADS / 32; i++) all = merge(all, shared[i]);
    if (!sound) all.sum = NAN;
    const bool counts = target >= 0 && target < VOCAB;
    if (threadIdx.x == 0) {
        losses[blockIdx.x] = counts ? all.top + logf(all.sum) - to_f32<LOGIT_T>(row[target]) : 0.0f;
        if (predictions) predictions[blockIdx.x] = all.best < VOCAB && sound ? all.best : 0;
    }
    if (!gradient) return;
    __syncthreads();
    const float inverse = 1.0f / all.sum;
    for (int first = threadIdx.x * 8; first < VOCAB; first += THREADS * 8) {
        float v[8];
        load<LOGIT_T>(v, row + first);
#pragma unroll
        for (int i = 0; i < 8; i++)
            v[i] = counts ? exponential(v[i] - all.top) * inverse - (first + i == target ? 1.0f : 0.0f) : 0.0f;
        store<LOGIT_T>(row + first, v);
    }
}

// One block: the mean of the rows' losses.
extern "C" __global__ void __launch_bounds__(THREADS)
mean_loss(const float *losses, int n, const float *count, float *loss) {
    __shared__ float shared[THREADS / 32];
    wait_for_launch_ahead();
    float sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += THREADS) sum += losses[i];
    sum = block_sum<THREADS>(sum, shared);
    if (threadIdx.x == 0) *loss = *count > 0.0f ? sum / *count : 0.0f;
}
